/* Plans against figures known from the models' cards and papers, and against their own sums. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coordinator/plan/memory_plan.h"
#include "coordinator/plan/weight_census.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/coordinator/plan/plan_model.h"

#define MIB (1024.0 * 1024.0)

static struct memory_plan plan_of(const struct hparams *hp, uint32_t n_ctx, uint64_t budget_bytes)
{
    struct memory_plan plan;
    const struct memory_request request = {.n_ctx = n_ctx,
                                           .n_slot = 1,
                                           .prefill_chunk = 511,
                                           .kv_type = TENSOR_F16,
                                           .budget_bytes = budget_bytes};
    memory_plan_make(&plan, file, hp, &request);
    return plan;
}

static void test_35b_cache_and_state(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    const struct memory_plan plan = plan_of(&hp, 32768, UINT64_MAX);
    /* 640 MiB at 32k tokens, one block more; 62.81 MiB of state */
    assert_true((double)plan.kv_bytes / MIB >= 640 && (double)plan.kv_bytes / MIB < 643);
    assert_true((double)plan.recurrent_bytes / MIB > 62.8 &&
                (double)plan.recurrent_bytes / MIB < 62.82);
    assert_int_equal(plan.n_ctx_fit, 262144);
}

/* Window layers stop growing: Trinity-Large keeps 1.875 GiB for 15 layers at 32k tokens and at
 * most window and step for the other 45. */
static void test_window_layers(void **state)
{
    (void)state;
    struct hparams hp = shape_35b();
    hp.n_layer = 60;
    hp.head_dim = 128;
    for (uint32_t il = 0; il < 60; il++) {
        hp.layer[il].recurrent = false;
        hp.layer[il].n_head_kv = 8;
        hp.layer[il].window = (il + 1) % 4 ? 4096 : 0;
    }
    const struct memory_plan at_32k = plan_of(&hp, 32768, UINT64_MAX);
    const struct memory_plan at_64k = plan_of(&hp, 65536, UINT64_MAX);
    const double full = (double)(at_64k.kv_bytes - at_32k.kv_bytes) / MIB;
    assert_true(full == 1920);
    const double windows = (double)at_32k.kv_bytes / MIB - full;
    assert_true(windows > 45 * 18 && windows < 45 * 20.5);
}

static void test_sums(void **state)
{
    (void)state;
    struct weight_census census;
    const struct memory_plan plan = plan_of(&tiny, 1000, UINT64_MAX);
    weight_census_take(&census, file, &tiny);
    assert_int_equal(plan.total_bytes, plan.weight_bytes + plan.kv_bytes + plan.recurrent_bytes +
                                           plan.angle_bytes + plan.scratch_bytes +
                                           plan.program_bytes);
    uint64_t n_bytes = 0, n_tensor = 0;
    for (int i = 0; i < WEIGHT_GROUP_COUNT; i++) {
        n_bytes += census.group[i].n_bytes;
        n_tensor += census.group[i].n_tensor;
    }
    assert_int_equal(n_tensor, gguf_n_tensor(file));
    assert_int_equal(n_bytes - census.group[WEIGHTS_MTP].n_bytes, plan.weight_bytes);
    assert_int_equal(census.group[WEIGHTS_OTHER].n_tensor, 0);
    assert_true(census.group[WEIGHTS_MTP].n_tensor == 20);
    /* 4 layers of 12 experts with 3 matrices of 256 x 256, 3 of them used */
    assert_int_equal(census.group[WEIGHTS_EXPERTS].n_param, 4 * 12 * 3 * 65536);
    assert_int_equal(census.n_param - census.n_param_active,
                     4 * 9 * 3 * 65536 + census.group[WEIGHTS_EMBEDDING].n_param);
}

/* The layer that drafts counts with the last one's stage if the request goes one further: its
 * weights, its experts as such, and all that a layer of attention has. */
static void test_the_layer_that_drafts(void **state)
{
    (void)state;
    struct memory_request request = {.layer_end = tiny.n_layer,
                                     .n_ctx = 1000,
                                     .n_slot = 2,
                                     .prefill_chunk = 64,
                                     .kv_type = TENSOR_F16,
                                     .budget_bytes = UINT64_MAX};
    struct memory_plan without, with, last;
    struct weight_census census;
    weight_census_take(&census, file, &tiny);
    memory_plan_make(&without, file, &tiny, &request);
    request.layer_end++;
    memory_plan_make(&with, file, &tiny, &request);
    assert_int_equal(without.mtp_bytes, 0);
    assert_int_equal(with.mtp_bytes, with.total_bytes - without.total_bytes);
    assert_int_equal(with.weight_bytes - without.weight_bytes, census.group[WEIGHTS_MTP].n_bytes);
    assert_int_equal(with.kv_bytes, 2 * without.kv_bytes); /* one of the four has attention */
    assert_int_equal(with.recurrent_bytes, without.recurrent_bytes);
    const uint64_t of_layer = with.expert_bytes - without.expert_bytes;
    assert_in_range(of_layer, without.expert_bytes / 5, without.expert_bytes / 3);

    request.layer_begin = tiny.n_layer - 1;
    memory_plan_make(&last, file, &tiny, &request);
    assert_int_equal(last.mtp_bytes, with.mtp_bytes);
    request.slot_bytes = of_layer; /* paged, they are nobody's in particular */
    memory_plan_make(&last, file, &tiny, &request);
    assert_int_equal(last.mtp_bytes, with.mtp_bytes - of_layer);
}

/* What the stages of a pipeline hold is what one process holds, and a tied matrix once more. */
static void test_stages_hold_the_whole(void **state)
{
    (void)state;
    struct memory_request request = {.n_ctx = 1000,
                                     .n_slot = 2,
                                     .prefill_chunk = 64,
                                     .kv_type = TENSOR_F16,
                                     .budget_bytes = UINT64_MAX};
    struct memory_plan whole, stage;
    struct weight_census census;
    memory_plan_make(&whole, file, &tiny, &request);
    weight_census_take(&census, file, &tiny);
    for (uint32_t cut = 1; cut < tiny.n_layer; cut++) {
        uint64_t weight_bytes = 0, expert_bytes = 0, kv_bytes = 0, recurrent_bytes = 0;
        for (int i = 0; i < 2; i++) {
            request.layer_begin = i ? cut : 0;
            request.layer_end = i ? tiny.n_layer : cut;
            memory_plan_make(&stage, file, &tiny, &request);
            weight_bytes += stage.weight_bytes;
            expert_bytes += stage.expert_bytes;
            kv_bytes += stage.kv_bytes;
            recurrent_bytes += stage.recurrent_bytes;
            assert_true(stage.weight_bytes < whole.weight_bytes);
            /* beside its own batch one that comes and one that goes; logits only at the end */
            const uint64_t edges = 2 * (64 + 2) * tiny.n_embd * sizeof(float);
            if (i)
                assert_int_equal(stage.scratch_bytes, whole.scratch_bytes + edges);
            else
                assert_true(stage.scratch_bytes - edges < whole.scratch_bytes);
        }
        const uint64_t twice = tiny.tied ? census.group[WEIGHTS_EMBEDDING].n_bytes : 0;
        assert_int_equal(weight_bytes, whole.weight_bytes + twice);
        assert_int_equal(expert_bytes, whole.expert_bytes);
        assert_int_equal(kv_bytes, whole.kv_bytes);
        assert_int_equal(recurrent_bytes, whole.recurrent_bytes);
    }
}

/* The context that fits is the longest: it fits, and one block more does not. */
static void test_longest_context(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    for (uint64_t budget = 200u << 20; budget < 2000u << 20; budget += 37u << 20) {
        const struct memory_plan plan = plan_of(&hp, 0, budget);
        struct lm_error err;
        if (!plan.n_ctx_fit) {
            assert_int_equal(plan.n_ctx, 128);
            assert_int_equal(memory_plan_check(&plan, &err), LM_E_NO_MEM);
            continue;
        }
        assert_int_equal(plan.n_ctx, plan.n_ctx_fit);
        assert_int_equal(memory_plan_check(&plan, &err), LM_OK);
        assert_true(plan_of(&hp, plan.n_ctx + 128, budget).total_bytes > budget);
    }
}

static void test_refusal_names_the_numbers(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    const struct memory_plan plan = plan_of(&hp, 200000, 2000u << 20);
    struct lm_error err;
    assert_int_equal(memory_plan_check(&plan, &err), LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "1 x 200000 tokens"));
    assert_non_null(strstr(err.message, "1.95 GiB may be used"));
    char hint[40];
    snprintf(hint, sizeof(hint), "--ctx %u", plan.n_ctx_fit);
    assert_non_null(strstr(err.hint, hint));
}

/* Scratch and program stay within their bound for each published model, and prompts are still read
 * in chunks that are worth it. */
static void test_overhead_of_published_models(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t chunk;
    } models[] = {{"qwen3.5-35b-a3b", 512},
                  {"qwen3.5-122b-a10b", 384},
                  {"qwen3.5-397b-a17b", 320},
                  {"qwen3-coder-next", 512},
                  {"trinity-large-thinking", 448}};
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        struct synth_shape shape;
        struct hparams hp;
        struct memory_plan plan;
        const struct memory_request request = {
            .n_slot = 1, .kv_type = TENSOR_F16, .budget_bytes = UINT64_MAX};
        assert_int_equal(synth_shape_find(models[i].name, &shape, NULL), LM_OK);
        synth_hparams(&hp, &shape, false);
        memory_plan_make(&plan, file, &hp, &request);
        print_message("%s: chunk %u, overhead %.0f MB\n", models[i].name, plan.prefill_chunk,
                      (double)(plan.scratch_bytes + plan.program_bytes) / 1e6);
        assert_int_equal(plan.n_ctx, 262144);
        assert_true(plan.scratch_bytes + plan.program_bytes <= MEMORY_PLAN_OVERHEAD_MAX);
        assert_true(plan.prefill_chunk >= models[i].chunk);
    }
}

/* A chunk that is asked for is kept, whatever it takes. */
static void test_a_given_chunk_is_kept(void **state)
{
    (void)state;
    struct synth_shape shape;
    struct hparams hp;
    struct memory_plan plan;
    const struct memory_request request = {.n_ctx = 4096,
                                           .n_slot = 1,
                                           .prefill_chunk = 2048,
                                           .kv_type = TENSOR_F16,
                                           .budget_bytes = UINT64_MAX};
    assert_int_equal(synth_shape_find("qwen3.5-397b-a17b", &shape, NULL), LM_OK);
    synth_hparams(&hp, &shape, false);
    memory_plan_make(&plan, file, &hp, &request);
    assert_int_equal(plan.prefill_chunk, 2048);
    assert_true(plan.scratch_bytes > MEMORY_PLAN_OVERHEAD_MAX);
}

static void test_experts_are_paged_only_where_they_do_not_fit(void **state)
{
    (void)state;
    struct memory_request request = {.n_ctx = 128,
                                     .n_slot = 1,
                                     .prefill_chunk = 64,
                                     .kv_type = TENSOR_F16,
                                     .budget_bytes = UINT64_C(1) << 40,
                                     .slot_bytes_min = 4096};
    struct memory_plan whole, part;
    memory_plan_make(&whole, file, &tiny, &request);
    assert_false(whole.paged);
    assert_int_equal(whole.slot_bytes, whole.expert_bytes);
    assert_true(whole.expert_bytes > 2 * request.slot_bytes_min);

    /* to the byte; also with a context beyond the trained one */
    request.budget_bytes = whole.total_bytes;
    memory_plan_make(&part, file, &tiny, &request);
    assert_false(part.paged);
    request.budget_bytes -= 1;
    memory_plan_make(&part, file, &tiny, &request);
    assert_true(part.paged);
    assert_int_equal(part.slot_bytes, whole.expert_bytes - 1);
    assert_int_equal(part.total_bytes, request.budget_bytes);
    request.n_ctx = tiny.n_ctx_train + 1;
    request.budget_bytes = UINT64_C(1) << 40;
    memory_plan_make(&part, file, &tiny, &request);
    assert_false(part.paged);

    /* no less than what works, and slots that were settled stay */
    request.n_ctx = 128;
    request.budget_bytes = 1;
    memory_plan_make(&part, file, &tiny, &request);
    assert_int_equal(part.slot_bytes, request.slot_bytes_min);
    assert_int_equal(memory_plan_check(&part, NULL), LM_E_NO_MEM);
    request.slot_bytes = 8192;
    request.budget_bytes = UINT64_C(1) << 40;
    memory_plan_make(&part, file, &tiny, &request);
    assert_true(part.paged);
    assert_int_equal(part.slot_bytes, 8192);
}

static void test_host_memory(void **state)
{
    (void)state;
    const uint64_t n_bytes = host_memory_available();
    const uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    assert_true(n_bytes > 16u << 20);
    assert_true(n_bytes <= all);
    const uint64_t before = host_memory_taken(), more = 64u << 20;
    void *memory =
        mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    assert_true(memory != MAP_FAILED);
    assert_in_range(host_memory_taken(), before + more / 2, before + 2 * more);
    munmap(memory, more);
}

/* Without a budget something stays free; when others take more than that, it is said. */
static void test_reserve_and_recheck(void **state)
{
    (void)state;
    const uint64_t before = host_memory_available();
    const struct memory_plan plan = plan_of(&tiny, 128, 0);
    const uint64_t after = host_memory_available();
    const uint64_t most = before > after ? before : after;
    assert_true(plan.budget_bytes <= most - (most / 8 < 512u << 20 ? most / 8 : 512u << 20));
    const uint64_t total = plan.total_bytes;
    assert_true(memory_plan_recheck(&plan, total, 0));
    assert_true(memory_plan_recheck(&plan, total / 2, total - total / 2));
    assert_true(memory_plan_recheck(&plan, 1, UINT64_MAX));
    assert_false(memory_plan_recheck(&plan, total / 2, total - total / 2 - 1));
    assert_false(memory_plan_recheck(&plan, 0, total - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_35b_cache_and_state),
        cmocka_unit_test(test_window_layers),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_the_layer_that_drafts),
        cmocka_unit_test(test_stages_hold_the_whole),
        cmocka_unit_test(test_longest_context),
        cmocka_unit_test(test_refusal_names_the_numbers),
        cmocka_unit_test(test_overhead_of_published_models),
        cmocka_unit_test(test_a_given_chunk_is_kept),
        cmocka_unit_test(test_experts_are_paged_only_where_they_do_not_fit),
        cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_reserve_and_recheck),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
