/* Keys and values take memory from experts and give it back: whatever lies where, and however often
 * that changes, a device computes what the CPU computes. */
#include "tests/unit/worker/sealed_device.h"
#include "tests/unit/worker/stage_ranks.h"

#include "worker/pager/policy.h"

enum { N_SLOT = 3, BATCH = 64, N_READY = 128, N_RUN = 140 };

/* Of experts in memory, few: all that may go may be on their way to the device. */
enum { MEMORY_SLOTS = 8 };

/* n_position: so many that their memory is about that of all experts. */
struct shape {
    const char *name;
    uint32_t n_ctx, n_position;
};

struct side {
    struct expert_store *store;
    struct backend *backend;
    struct worker *worker;
    float logits[BATCH][N_VOCAB];
    uint32_t n_row;
    enum lm_status status;
    struct lm_error err;
};

static void take_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    struct side *side = context;
    (void)pos;
    memcpy(side->logits[side->n_row++], logits, n_vocab * sizeof(float));
}

/* device: or NULL. */
static void open_side(struct side *side, const struct gguf_file *file, const struct hparams *hp,
                      const struct shape *shape, struct sealed_device *device, enum miss_mode miss,
                      uint32_t n_pager_slot)
{
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    struct lm_error err;
    memset(side, 0, sizeof(*side));
    assert_int_equal(backend_cpu_create(&side->backend, &cpu, &err), LM_OK);
    assert_int_equal(expert_store_create(&side->store, file, hp, 0, hp->n_layer, &err), LM_OK);
    const struct worker_config config = {
        .file = file,
        .hp = hp,
        .store = side->store,
        .backend = side->backend,
        .device = device ? &device->backend : NULL,
        .device_experts = {.n_slot = device ? 1 : 0, .miss = miss},
        .pager = {.n_slot = device ? n_pager_slot : 0, .policy = &policy_lfru},
        .layer_end = hp->n_layer,
        .n_slot = N_SLOT,
        .n_ctx = shape->n_ctx,
        .n_position = shape->n_position,
        .n_position_ready = N_READY,
        .n_batch = BATCH,
        .kv_type = TENSOR_F16};
    if (worker_create(&side->worker, &config, &err) != LM_OK) fail_msg("%s", err.message);
}

static void close_side(struct side *side)
{
    worker_close(side->worker, NULL);
    expert_store_destroy(side->store);
    side->backend->ops->destroy(side->backend);
}

static void step(struct side *side, uint32_t slot, const int32_t *ids, uint32_t n)
{
    const struct sampling_params sampling = sampling_params_default();
    struct sampled_token sampled;
    struct lm_error seq_err = {.status = LM_OK};
    const struct step_seq seq = {.slot = slot,
                                 .ids = ids,
                                 .n_token = n,
                                 .output = STEP_OUTPUT_LOGITS,
                                 .history = ids,
                                 .n_history = n,
                                 .sampling = &sampling,
                                 .on_logits = take_logits,
                                 .context = side,
                                 .error = &seq_err};
    const struct step_plan plan = {.seq = &seq, .n_seq = 1};
    side->n_row = 0;
    side->status = worker_step(side->worker, &plan, &sampled, &side->err);
}

static void clear(struct side *side, uint32_t slot)
{
    const struct seq_op op = {.kind = SEQ_CLEAR, .slot = slot};
    assert_int_equal(worker_seq(side->worker, &op, NULL), LM_OK);
}

static struct device_tier_stats stats_of(const struct side *side)
{
    return device_tier_stats(worker_tier(side->worker));
}

struct run {
    struct gguf_file *file;
    struct hparams hp;
    struct sealed_device sealed;
    struct side cpu, device;
    uint32_t length[N_SLOT];
    uint32_t n_full, n_failed; /* times that there was no room, that the device failed */
};

static void open_run(struct run *run, const struct shape *shape, enum miss_mode miss,
                     bool all_in_memory, int copy_polls)
{
    memset(run, 0, sizeof(*run));
    open_golden(&run->file, &run->hp, shape->name);
    sealed_device_init(&run->sealed);
    run->sealed.copy_polls = copy_polls;
    const uint32_t n_expert = hparams_n_expert_of(&run->hp, 0, run->hp.n_layer);
    open_side(&run->cpu, run->file, &run->hp, shape, NULL, MISS_AUTO, 0);
    open_side(&run->device, run->file, &run->hp, shape, &run->sealed, miss,
              all_in_memory ? n_expert : MEMORY_SLOTS);
}

static void close_run(struct run *run)
{
    close_side(&run->device);
    close_side(&run->cpu);
    sealed_device_fini(&run->sealed);
    gguf_close(run->file);
}

static void clear_both(struct run *run, uint32_t slot)
{
    clear(&run->cpu, slot);
    clear(&run->device, slot);
    run->length[slot] = 0;
}

/* The same step of both, with the same bits; whichever status the device has. */
static enum lm_status step_both(struct run *run, uint32_t slot, uint32_t n, uint32_t seed)
{
    struct side *const cpu = &run->cpu, *const device = &run->device;
    int32_t ids[BATCH];
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)((seed + i * 57) % N_VOCAB);
    step(cpu, slot, ids, n);
    step(device, slot, ids, n);
    assert_int_equal(device->status == LM_E_LIMIT, cpu->status == LM_E_LIMIT);
    if (device->status != LM_OK) return device->status;
    assert_int_equal(device->n_row, n);
    assert_memory_equal(device->logits, cpu->logits, n * sizeof(cpu->logits[0]));
    run->length[slot] += n;
    return LM_OK;
}

/* A sequence goes on, or begins anew. */
static enum lm_status go_on(struct run *run, uint32_t end, bool is_short, uint32_t random)
{
    const uint32_t slot = (random >> 8) % N_SLOT, kind = random >> 16 & 31;
    const uint32_t n = kind < 8 ? 1 : 1 + (random >> 21) % BATCH;
    enum lm_status status;
    if (run->length[slot] + n > end || kind == 31 || (is_short && kind > 24)) clear_both(run, slot);
    while ((status = step_both(run, slot, n, random)) == LM_E_LIMIT) {
        clear_both(run, slot);
        clear_both(run, (slot + 1) % N_SLOT);
        run->n_full++;
    }
    for (uint32_t k = random >> 26; k < 8 && worker_idle(run->device.worker);)
        k++;
    return status;
}

/* Long sequences, then short ones, and so on. */
static void run_randomly(struct run *run, uint32_t n_ctx, uint32_t random)
{
    uint32_t n_slot_min = UINT32_MAX, n_slot_max = 0;
    for (int i = 0; i < N_RUN; i++) {
        const bool is_short = i / 35 % 2;
        random = random * 1664525 + 1013904223;
        if (go_on(run, is_short ? 100 : n_ctx, is_short, random) != LM_OK)
            fail_msg("%s", run->device.err.message);
        const uint32_t n_slot = stats_of(&run->device).n_slot;
        if (n_slot < n_slot_min) n_slot_min = n_slot;
        if (n_slot > n_slot_max) n_slot_max = n_slot;
    }
    print_message("slots for %u to %u experts\n", n_slot_min, n_slot_max);
    assert_true(n_slot_min < n_slot_max);
}

static const struct shape shapes[] = {
    {"qwen35moe-k-q4km", 1024, 3072}, {"qwen3moe-s-q8_0", 256, 256}, {"afmoe-s-q8_0", 512, 1024}};
static struct run run;

static void test_any_order(void **state)
{
    uint32_t n_full = 0;
    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        const struct shape *const shape = &shapes[i % 3];
        const enum miss_mode miss = MISS_GPU + (enum miss_mode)(i / 2);
        open_run(&run, shape, miss, i % 2, (int)i % 5);
        const int n_alloc = run.sealed.n_alloc;
        run_randomly(&run, shape->n_ctx, 77 * i + 1);
        assert_int_equal(run.sealed.n_alloc, n_alloc); /* nobody else has to have memory for it */
        const struct device_tier_stats stats = stats_of(&run.device);
        assert_true(stats.n_to_kv > 0 && stats.n_to_experts > 0);
        assert_true(stats.decode.n_hit > 0);
        assert_int_equal(stats.gathers, i % 2 && miss == MISS_GPU);
        n_full += run.n_full;
        close_run(&run);
    }
    assert_true(n_full > 0); /* which is what it is without an exchange */
}

/* A copy that fails, maybe one that an exchange waits for, fails a step, and no bit of later ones.
 */
static void test_failed_copy(void **state)
{
    uint32_t n_failed = 0;
    (void)state;
    for (int fail = 5; fail < 125; fail += 15) {
        uint32_t random = (uint32_t)fail;
        open_run(&run, &shapes[2], MISS_GPU, false, 9);
        run.sealed.fail_fetch = fail;
        for (int i = 0; i < 40; i++) {
            random = random * 1664525 + 1013904223;
            if (go_on(&run, shapes[2].n_ctx, false, random) == LM_OK) continue;
            assert_non_null(strstr(run.device.err.message, "sealed device: a copy failed"));
            for (uint32_t slot = 0; slot < N_SLOT; slot++)
                clear_both(&run, slot);
            run.n_failed++;
        }
        assert_true(run.n_failed <= 1);
        assert_true(stats_of(&run.device).n_to_kv > 0);
        n_failed += run.n_failed;
        close_run(&run);
    }
    assert_true(n_failed > 0);
}

/* Of a device that is lost each step tells, wherever it happened. */
static void test_lost_device(void **state)
{
    (void)state;
    for (int lost = 50; lost < 1500; lost += 210) {
        uint32_t random = (uint32_t)lost;
        enum lm_status status = LM_OK;
        open_run(&run, &shapes[2], MISS_HYBRID, false, 3);
        run.sealed.lost_op = run.sealed.n_op + lost;
        while (status == LM_OK) {
            random = random * 1664525 + 1013904223;
            status = go_on(&run, shapes[2].n_ctx, false, random);
        }
        assert_int_equal(status, LM_E_FAIL);
        assert_int_equal(step_both(&run, 0, 1, 1), LM_E_FAIL);
        assert_string_equal(run.device.err.message, "sealed device: lost");
        close_run(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_any_order),
                                       cmocka_unit_test(test_failed_copy),
                                       cmocka_unit_test(test_lost_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
