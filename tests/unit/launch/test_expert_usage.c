/* What requests that share steps took of paged experts: each its own distinct choices, and together
 * what the pager counts. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/sched/scheduler.h"
#include "launch/engine.h"
#include "proto/model/hparams.h"

enum { N_SLOT = 4, N_REQUEST = 12, N_TOKEN = 24, CHUNK = 16 };

static const char *const models[] = {"qwen35moe-s-q8_0", "qwen3moe-s-q8_0"};
enum { N_MODEL = sizeof(models) / sizeof(models[0]) };

static const char *path_of(const char *model)
{
    static char path[1000];
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             model);
    return path;
}

static struct engine *open_engine(const char *path, const char *expert_slots)
{
    struct lm_error err;
    struct engine *engine = NULL;
    const struct engine_config config = {.model_path = path,
                                         .n_ctx = 256,
                                         .n_slot = N_SLOT,
                                         .kv_type = "f16",
                                         .own.n_thread = 2,
                                         .own.kernels = "auto",
                                         .prefill_chunk = CHUNK,
                                         .own.expert_slots = expert_slots,
                                         .own.profile = "none",
                                         .n_snapshot = 2};
    if (engine_open(&engine, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return engine;
}

static bool on_token(void *context, const struct sampled_token *token)
{
    (void)context;
    (void)token;
    return true;
}

struct call {
    struct request request;
    int32_t ids[100];
};

static void submit(struct engine *engine, struct call *call, size_t n_prompt, uint32_t n_max,
                   uint32_t seed)
{
    struct lm_error err;
    for (size_t i = 0; i < n_prompt; i++)
        call->ids[i] = (int32_t)((seed + i * 37 + i * i * seed) % 500);
    call->request = (struct request){.prompt = call->ids,
                                     .n_prompt = n_prompt,
                                     .n_max = n_max,
                                     .sampling = sampling_params_default(),
                                     .no_cache = true,
                                     .on_token = on_token,
                                     .context = call};
    assert_int_equal(scheduler_submit(engine_scheduler(engine), &call->request, &err), LM_OK);
}

static uint32_t run_all(struct engine *engine)
{
    uint32_t n = 0;
    while (scheduler_step(engine_scheduler(engine)))
        n++;
    return n;
}

static struct expert_usage total(const struct engine *engine)
{
    const struct expert_pager_stats stats = engine_stats(engine).pager;
    const struct expert_pager_counts *a = &stats.decode, *b = &stats.prefill;
    return (struct expert_usage){.n_lookup = a->n_lookup + b->n_lookup,
                                 .n_hit = a->n_hit + b->n_hit,
                                 .n_joined = a->n_joined + b->n_joined,
                                 .n_miss = a->n_miss + b->n_miss,
                                 .miss_bytes = a->miss_bytes + b->miss_bytes,
                                 .wait_s = a->wait_s + b->wait_s};
}

static void assert_adds_up(const struct engine *engine, const struct call *calls, uint32_t n)
{
    struct expert_usage sum = {0};
    const struct expert_usage all = total(engine);
    for (uint32_t i = 0; i < n; i++) {
        const struct expert_usage *one = &calls[i].request.experts;
        expert_usage_add(&sum, one);
        assert_int_equal(one->n_lookup, one->n_hit + one->n_joined + one->n_miss);
        assert_true(one->wait_s <= all.wait_s * (1 + 1e-9));
    }
    assert_int_equal(sum.n_lookup, all.n_lookup);
    assert_int_equal(sum.n_hit, all.n_hit);
    assert_int_equal(sum.n_joined, all.n_joined);
    assert_int_equal(sum.n_miss, all.n_miss);
    assert_true(sum.miss_bytes == all.miss_bytes);
    assert_true(all.n_miss > 0 && all.miss_bytes > 0 && all.n_hit > 0);
}

static uint32_t n_moe(const struct engine *engine)
{
    const struct hparams *hp = engine_hparams(engine);
    uint32_t n = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        n += hp->layer[il].moe;
    return n;
}

/* Prompts of many lengths beside sequences that generate, more than there are places. */
static void test_adds_up_to_the_pagers(void **state)
{
    (void)state;
    static struct call calls[N_REQUEST];
    for (int m = 0; m < N_MODEL; m++) {
        struct engine *engine = open_engine(path_of(models[m]), "40%");
        for (uint32_t i = 0; i < N_REQUEST; i++)
            submit(engine, &calls[i], 1 + i * 7 % 90, 1 + i * 5 % N_TOKEN, i + 1);
        run_all(engine);
        assert_adds_up(engine, calls, N_REQUEST);
        engine_close(engine, NULL);
    }
}

/* In a step of one token a sequence chooses n_expert_used experts of each layer, no matter who else
 * is there. Those who choose the same ones pay in turn. */
static void test_each_has_what_it_chose(void **state)
{
    (void)state;
    static struct call calls[N_SLOT];
    for (int m = 0; m < N_MODEL; m++) {
        for (uint32_t differ = 0; differ < 2; differ++) {
            struct engine *engine = open_engine(path_of(models[m]), "40%");
            const uint32_t k = n_moe(engine) * engine_hparams(engine)->n_expert_used;
            for (uint32_t i = 0; i < N_SLOT; i++)
                submit(engine, &calls[i], 1, N_TOKEN, 1 + differ * i);
            assert_int_equal(run_all(engine), N_TOKEN);
            assert_adds_up(engine, calls, N_SLOT);
            for (uint32_t i = 0; i < N_SLOT; i++) {
                const struct expert_usage *one = &calls[i].request.experts;
                assert_int_equal(one->n_lookup + one->n_shared, N_TOKEN * k);
                if (!differ) assert_int_equal(one->n_lookup, N_TOKEN * k / N_SLOT);
                assert_true(one->wait_s == calls[0].request.experts.wait_s);
            }
            engine_close(engine, NULL);
        }
    }
}

/* Alone a sequence shares nothing and waits as long as the pager does. */
static void test_alone_it_is_all(void **state)
{
    (void)state;
    static struct call call;
    struct engine *engine = open_engine(path_of(models[0]), "40%");
    submit(engine, &call, 80, N_TOKEN, 5);
    run_all(engine);
    assert_adds_up(engine, &call, 1);
    assert_int_equal(call.request.experts.n_shared, 0);
    assert_float_equal(call.request.experts.wait_s, total(engine).wait_s, 1e-9);
    submit(engine, &call, 20, 3, 5); /* counted anew */
    run_all(engine);
    assert_true(call.request.experts.n_lookup < total(engine).n_lookup / 2);
    engine_close(engine, NULL);
}

/* A step that fails has looked up what it has; its requests pay for it like for any other. */
static void test_steps_that_fail_count(void **state)
{
    (void)state;
    static struct call calls[2 * N_SLOT];
    char path[] = "/tmp/lean-test-usage-XXXXXX", piece[4096];
    const int fd = mkstemp(path);
    FILE *source = fopen(path_of(models[0]), "rb");
    off_t n_bytes = 0;
    assert_non_null(source);
    for (size_t n; (n = fread(piece, 1, sizeof(piece), source)); n_bytes += (off_t)n)
        assert_int_equal(write(fd, piece, n), n);
    fclose(source);
    struct engine *engine = open_engine(path, "40%");
    for (uint32_t i = 0; i < N_SLOT; i++)
        submit(engine, &calls[i], 1 + 20 * i, 6, i + 1);
    run_all(engine);
    assert_int_equal(ftruncate(fd, n_bytes / 2), 0);
    for (uint32_t i = N_SLOT; i < 2 * N_SLOT; i++)
        submit(engine, &calls[i], 1 + 20 * (i - N_SLOT), 6, i + 1);
    run_all(engine);
    uint32_t n_failed = 0;
    for (uint32_t i = 0; i < 2 * N_SLOT; i++)
        n_failed += calls[i].request.status == LM_E_IO;
    assert_int_equal(n_failed, N_SLOT);
    assert_adds_up(engine, calls, 2 * N_SLOT);
    engine_close(engine, NULL);
    close(fd);
    unlink(path);
}

static void test_nothing_where_all_are_mapped(void **state)
{
    (void)state;
    static struct call calls[2];
    const struct expert_usage none = {0};
    struct engine *engine = open_engine(path_of(models[0]), NULL);
    for (uint32_t i = 0; i < 2; i++)
        submit(engine, &calls[i], 20, 4, 1);
    run_all(engine);
    for (uint32_t i = 0; i < 2; i++)
        assert_memory_equal(&calls[i].request.experts, &none, sizeof(none));
    engine_close(engine, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adds_up_to_the_pagers),
        cmocka_unit_test(test_each_has_what_it_chose),
        cmocka_unit_test(test_alone_it_is_all),
        cmocka_unit_test(test_steps_that_fail_count),
        cmocka_unit_test(test_nothing_where_all_are_mapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
