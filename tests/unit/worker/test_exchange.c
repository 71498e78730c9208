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

/* The same step of both. False: neither has room. */
static bool step_both(struct side *cpu, struct side *device, uint32_t slot, uint32_t n,
                      uint32_t seed)
{
    int32_t ids[BATCH];
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)((seed + i * 57) % N_VOCAB);
    step(cpu, slot, ids, n);
    step(device, slot, ids, n);
    if (device->status != cpu->status) fail_msg("%s", device->err.message);
    if (cpu->status == LM_E_LIMIT) return false;
    assert_int_equal(cpu->status, LM_OK);
    assert_int_equal(device->n_row, n);
    assert_memory_equal(device->logits, cpu->logits, n * sizeof(cpu->logits[0]));
    return true;
}

struct run {
    struct side cpu, device;
    uint32_t length[N_SLOT];
    uint32_t n_full; /* times that there was no room */
};

static void clear_both(struct run *run, uint32_t slot)
{
    clear(&run->cpu, slot);
    clear(&run->device, slot);
    run->length[slot] = 0;
}

/* Long sequences, then short ones, and so on. */
static void run_randomly(struct run *run, uint32_t n_ctx, uint32_t random)
{
    uint32_t n_slot_min = UINT32_MAX, n_slot_max = 0;
    for (int i = 0; i < N_RUN; i++) {
        random = random * 1664525 + 1013904223;
        const bool is_short = i / 35 % 2;
        const uint32_t slot = (random >> 8) % N_SLOT, kind = random >> 16 & 31;
        const uint32_t n = kind < 8 ? 1 : 1 + (random >> 21) % BATCH;
        const uint32_t end = is_short ? 100 : n_ctx;
        if (run->length[slot] + n > end || kind == 31 || (is_short && kind > 24))
            clear_both(run, slot);
        while (!step_both(&run->cpu, &run->device, slot, n, random)) {
            clear_both(run, slot);
            clear_both(run, (slot + 1) % N_SLOT);
            run->n_full++;
        }
        run->length[slot] += n;
        for (uint32_t k = random >> 26; k < 8 && worker_idle(run->device.worker);)
            k++;
        const uint32_t n_slot = stats_of(&run->device).n_slot;
        if (n_slot < n_slot_min) n_slot_min = n_slot;
        if (n_slot > n_slot_max) n_slot_max = n_slot;
    }
    print_message("slots for %u to %u experts\n", n_slot_min, n_slot_max);
    assert_true(n_slot_min < n_slot_max);
}

static uint32_t check_shape(const struct shape *shape, enum miss_mode miss, bool all_in_memory,
                            uint32_t seed)
{
    static struct hparams hp;
    static struct run run;
    struct gguf_file *file = NULL;
    struct sealed_device device;
    open_golden(&file, &hp, shape->name);
    sealed_device_init(&device);
    device.copy_polls = (int)seed % 5;
    memset(&run, 0, sizeof(run));
    const uint32_t n_expert = hparams_n_expert_of(&hp, 0, hp.n_layer);
    const uint32_t n_pager_slot = all_in_memory ? n_expert : MEMORY_SLOTS;
    open_side(&run.cpu, file, &hp, shape, NULL, MISS_AUTO, 0);
    open_side(&run.device, file, &hp, shape, &device, miss, n_pager_slot);
    const int n_alloc = device.n_alloc;
    run_randomly(&run, shape->n_ctx, seed);
    assert_int_equal(device.n_alloc, n_alloc); /* nobody else has to have memory for it */
    const struct device_tier_stats stats = stats_of(&run.device);
    assert_true(stats.n_to_kv > 0 && stats.n_to_experts > 0);
    assert_true(stats.decode.n_hit > 0);
    assert_int_equal(stats.gathers, all_in_memory && miss == MISS_GPU);
    close_side(&run.device);
    close_side(&run.cpu);
    sealed_device_fini(&device);
    gguf_close(file);
    return run.n_full;
}

static void test_any_order(void **state)
{
    static const struct shape shapes[] = {{"qwen35moe-k-q4km", 1024, 3072},
                                          {"qwen3moe-s-q8_0", 256, 256},
                                          {"afmoe-s-q8_0", 512, 1024}};
    (void)state;
    uint32_t n_full = 0;
    for (uint32_t i = 0; i < 6; i++)
        n_full +=
            check_shape(&shapes[i % 3], MISS_GPU + (enum miss_mode)(i / 2), i % 2, 77 * i + 1);
    assert_true(n_full > 0); /* which is what it is without an exchange */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_any_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
