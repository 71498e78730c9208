/* The layer that drafts runs where the decoder's last one does, its experts are kept as those of
 * any other layer: wherever that is, drafts and logits are those of the CPU with all in its
 * mapping. */
#include "tests/unit/worker/sealed_device.h"
#include "tests/unit/worker/stage_ranks.h"

#include <unistd.h>

#include "coordinator/plan/memory_plan.h"
#include "worker/pack/synth.h"
#include "worker/pager/policy.h"

static void open_synthetic(struct gguf_file **file, struct hparams *hp, const char *shape)
{
    char path[] = "/tmp/lean-test-mtp-XXXXXX";
    struct synth_config config = {.mtp = true, .seed = 3};
    struct lm_error err;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    if (synth_shape_find(shape, &config.shape, &err) ||
        recipe_find("Q4_K_M", &config.recipe, &err) || synth_write(path, &config, NULL, &err) ||
        gguf_open(file, path, &err) || hparams_read(hp, *file, &err))
        fail_msg("%s", err.message);
    unlink(path);
    assert_int_equal(hp->n_layer_mtp, 1);
}

static void check_same(const struct rank *rank, const struct rank *whole)
{
    if (rank->status != LM_OK) fail_msg("%s", rank->err.message);
    assert_int_equal(rank->n_row, whole->n_row);
    assert_memory_equal(rank->logits, whole->logits, whole->n_row * N_VOCAB * sizeof(float));
    assert_int_equal(rank->n_drafted, (N_STEP + 1) * N_DRAFT);
    assert_memory_equal(rank->drafts, whole->drafts, sizeof(whole->drafts));
}

/* As the decoder's, the layer's experts are looked up and, where there is no room, read. */
static void check_paging(const struct rank *rank, const struct hparams *hp)
{
    const struct expert_pager_stats all = expert_pager_stats(worker_pager(rank->worker));
    const struct device_tier *const tier = worker_tier(rank->worker);
    assert_int_equal(all.layer_end, hp->n_layer + 1);
    const struct expert_pager_layer_stats own =
        expert_pager_layer_stats(worker_pager(rank->worker), hp->n_layer);
    assert_int_equal(own.n_expert, hp->n_expert);
    if (!tier) assert_true(own.decode.n_lookup >= N_DRAFT * N_STEP);
    if (all.n_slot == all.n_expert || !all.n_slot) return;
    assert_true(own.decode.n_miss + own.prefill.n_miss > 0);
}

static void check(const struct gguf_file *file, const struct hparams *hp, const struct rank *whole,
                  const struct rank_layers *layers, bool device)
{
    struct sealed_device sealed_one;
    struct rank rank = {.n_row = 0};
    struct rank_layers own = *layers;
    own.end = hp->n_layer;
    own.mtp = true;
    if (device) sealed_device_init(&sealed_one);
    if (device) own.device = &sealed_one.backend;
    open_rank(&rank, file, hp, &own);
    const int n_alloc = device ? sealed_one.n_alloc : 0, n_sync = device ? sealed_one.n_sync : 0;
    run_rank(&rank);
    check_same(&rank, whole);
    if (device) assert_int_equal(sealed_one.n_alloc, n_alloc); /* steps take no memory */
    /* a draft makes the host wait once, as a token does; the prompt's logits come in two pieces */
    if (device && !own.device_begin && !own.device_experts.n_slot)
        assert_int_equal(sealed_one.n_sync - n_sync, (N_STEP + 1) * (1 + N_DRAFT) + 1);
    if (hp->n_expert && !(device && !own.device_experts.n_slot && own.pager.n_slot))
        check_paging(&rank, hp);
    close_rank(&rank);
    if (device) sealed_device_fini(&sealed_one);
}

static void test_wherever_it_runs(void **state)
{
    static const char *const shapes[] = {"qwen35moe", "qwen35"};
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct gguf_file *file = NULL;
        static struct hparams hp;
        struct rank whole = {.n_row = 0}, plain = {.n_row = 0};
        open_synthetic(&file, &hp, shapes[i]);
        open_rank(&plain, file, &hp, &(struct rank_layers){.end = hp.n_layer});
        run_rank(&plain);
        assert_int_equal(plain.n_drafted, 0);
        open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer, .mtp = true});
        run_rank(&whole);
        check_same(&whole, &whole);
        assert_memory_equal(plain.logits, whole.logits, whole.n_row * N_VOCAB * sizeof(float));

        const struct pager_options few = {.n_slot = hp.n_expert ? 1 : 0, .policy = &policy_lfru};
        check(file, &hp, &whole, &(struct rank_layers){.pager = few}, false);
        for (uint32_t begin = 0; begin < hp.n_layer; begin += hp.n_layer - 1) {
            check(file, &hp, &whole, &(struct rank_layers){.device_begin = begin}, true);
            if (!hp.n_expert) continue;
            check(file, &hp, &whole, &(struct rank_layers){.device_begin = begin, .pager = few},
                  true);
        }
        close_rank(&plain);
        close_rank(&whole);
        gguf_close(file);
    }
}

static void test_with_slots_on_the_device(void **state)
{
    static const enum miss_mode modes[] = {MISS_GPU, MISS_CPU, MISS_HYBRID};
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0};
    (void)state;
    open_synthetic(&file, &hp, "qwen35moe");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer, .mtp = true});
    run_rank(&whole);
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer + 1);
    const uint32_t n_slots[] = {1, n_all / 2, n_all};
    for (size_t m = 0; m < sizeof(modes) / sizeof(modes[0]); m++)
        for (uint32_t k = 0; k < sizeof(n_slots) / sizeof(n_slots[0]); k++)
            check(file, &hp, &whole,
                  &(struct rank_layers){.device_begin = k == 1 ? hp.n_layer / 2 : 0,
                                        .device_experts = {n_slots[k], modes[m]},
                                        .pager = {.n_slot = k + m == 2,
                                                  .prefetch = PREFETCH_ON,
                                                  .policy = &policy_lfru}},
                  true);
    close_rank(&whole);
    gguf_close(file);
}

/* With all experts in pinned memory no layer asks the host, this one neither: each draft is one
 * piece of work for the device, and what a step has moved is known to the next. */
static void test_device_gathers(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0}, rank = {.n_row = 0};
    struct sealed_device device;
    struct device_tier_stats stats;
    const struct seq_op clear = {.kind = SEQ_CLEAR};
    (void)state;
    open_synthetic(&file, &hp, "qwen35moe");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer, .mtp = true});
    run_rank(&whole);
    sealed_device_init(&device);
    device.copy_polls = 5;
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer + 1);
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer,
                                    .device = &device.backend,
                                    .device_experts = {n_all / 3, MISS_GPU},
                                    .pager = {.n_slot = n_all, .policy = &policy_lfru},
                                    .mtp = true});
    do { /* until all have been read */
        rank.n_row = rank.n_drafted = 0;
        assert_int_equal(worker_seq(rank.worker, &clear, NULL), LM_OK);
        run_rank(&rank);
        check_same(&rank, &whole);
        stats = device_tier_stats(worker_tier(rank.worker));
    } while (!stats.gathers);
    device.n_gathered = 0;
    const uint64_t n_copied = stats.decode.n_copied;
    for (int k = 0; k < 3; k++) {
        rank.n_row = rank.n_drafted = 0;
        assert_int_equal(worker_seq(rank.worker, &clear, NULL), LM_OK);
        run_rank(&rank);
        check_same(&rank, &whole);
    }
    stats = device_tier_stats(worker_tier(rank.worker));
    assert_true(device.n_gathered > 0);
    assert_true(stats.decode.n_copied - n_copied >= (uint64_t)device.n_gathered);
    assert_true(stats.n_admitted > 0);
    close_rank(&rank);
    sealed_device_fini(&device);
    close_rank(&whole);
    gguf_close(file);
}

static uint64_t planned(const struct gguf_file *file, const struct hparams *hp, bool mtp)
{
    struct memory_plan plan;
    const struct memory_request request = {.layer_end = hp->n_layer + mtp,
                                           .n_ctx = 512, /* as many positions as open_rank has */
                                           .n_slot = 1,
                                           .prefill_chunk = N_PROMPT - 1,
                                           .kv_type = TENSOR_F16,
                                           .budget_bytes = UINT64_MAX,
                                           .on_device = true};
    memory_plan_make(&plan, file, hp, &request);
    return plan.total_bytes;
}

static uint64_t taken(const struct gguf_file *file, const struct hparams *hp, bool mtp)
{
    struct sealed_device device;
    struct rank rank = {.n_row = 0};
    sealed_device_init(&device);
    open_rank(&rank, file, hp,
              &(struct rank_layers){.end = hp->n_layer, .device = &device.backend, .mtp = mtp});
    const uint64_t n_bytes = device.n_used;
    close_rank(&rank);
    sealed_device_fini(&device);
    return n_bytes;
}

/* What the layer takes of a device is what was counted for it, but for the ends of pieces. */
static void test_as_planned(void **state)
{
    static const char *const shapes[] = {"qwen35moe", "qwen35"};
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct gguf_file *file = NULL;
        static struct hparams hp;
        open_synthetic(&file, &hp, shapes[i]);
        const uint64_t n_planned = planned(file, &hp, true) - planned(file, &hp, false);
        const uint64_t n_taken = taken(file, &hp, true) - taken(file, &hp, false);
        assert_in_range(n_taken, n_planned - n_planned / 20, n_planned + n_planned / 20);
        gguf_close(file);
    }
}

/* Wherever memory runs out there is an error, and nothing is left behind. */
static void test_no_memory(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    enum lm_status status = LM_E_NO_MEM;
    (void)state;
    open_synthetic(&file, &hp, "qwen35moe");
    for (int at = 0; status != LM_OK; at++) {
        struct sealed_device device;
        struct rank rank = {.n_row = 0};
        struct lm_error err;
        sealed_device_init(&device);
        device.fail_alloc = at;
        status = try_open_rank(
            &rank, file, &hp,
            &(struct rank_layers){.end = hp.n_layer, .device = &device.backend, .mtp = true}, &err);
        assert_true(status == LM_OK || status == LM_E_NO_MEM);
        close_rank(&rank);
        sealed_device_fini(&device);
    }
    gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wherever_it_runs), cmocka_unit_test(test_with_slots_on_the_device),
        cmocka_unit_test(test_device_gathers),   cmocka_unit_test(test_as_planned),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
