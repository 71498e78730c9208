/* Where an expert is, and who computes with it, never changes a bit: a device with slots for some
 * experts computes what the CPU computes with all of them, whatever becomes of the others. */
#include "tests/unit/worker/sealed_device.h"
#include "tests/unit/worker/stage_ranks.h"

#include <unistd.h>

#include "worker/pager/policy.h"

static void check_same(const struct rank *rank, const struct rank *whole)
{
    if (rank->status != LM_OK) fail_msg("%s", rank->err.message);
    assert_int_equal(rank->n_row, whole->n_row);
    assert_memory_equal(rank->logits, whole->logits, whole->n_row * N_VOCAB * sizeof(float));
}

/* What was asked for has happened. */
static void check_counts(const struct device_tier_stats *stats, enum miss_mode miss)
{
    const struct device_tier_counts *const decode = &stats->decode;
    const struct device_tier_counts *const prefill = &stats->prefill;
    assert_int_equal(decode->n_lookup, decode->n_hit + decode->n_cpu + decode->n_copied);
    assert_int_equal(prefill->n_lookup, prefill->n_hit + prefill->n_cpu + prefill->n_copied);
    assert_int_equal(prefill->n_cpu, 0); /* the prompt is streamed */
    assert_true(prefill->n_copied > prefill->n_hit);
    assert_true(stats->n_preloaded > 0); /* into free slots, where it goes */
    assert_true(stats->n_slot <= 2 || decode->n_hit > 0);
    if (stats->n_slot == stats->n_expert) return; /* the prompt has brought them all */
    assert_int_equal(decode->n_cpu > 0, miss != MISS_GPU);
    assert_int_equal(decode->copied_bytes > 0, miss != MISS_CPU); /* but what was on its way */
    assert_true(miss == MISS_GPU || stats->n_slot <= 2 || stats->n_admitted > 0 ||
                decode->n_copied > 0);
}

static void check_tier(const struct gguf_file *file, const struct hparams *hp,
                       const struct rank *whole, const struct rank_layers *layers, int copy_polls,
                       bool pins)
{
    struct sealed_device device;
    struct rank rank = {.n_row = 0};
    struct rank_layers own = *layers;
    sealed_device_init(&device);
    device.copy_polls = copy_polls;
    device.refuses_to_pin = !pins;
    own.device = &device.backend;
    open_rank(&rank, file, hp, &own);
    const int n_alloc = device.n_alloc;
    run_rank(&rank);
    check_same(&rank, whole);
    assert_int_equal(device.n_alloc, n_alloc); /* steps take no memory */
    const struct device_tier_stats stats = device_tier_stats(worker_tier(rank.worker));
    check_counts(&stats, own.device_experts.miss);
    const struct expert_pager_stats pager = expert_pager_stats(worker_pager(rank.worker));
    /* what the CPU makes for a layer goes there at once, one time for each group */
    assert_int_equal(device.n_copy_rows > 0, pins && stats.decode.n_cpu > 0);
    assert_true((uint64_t)device.n_copy_rows <= stats.decode.n_cpu);
    const bool foresees = own.pager.prefetch != PREFETCH_OFF && own.pager.n_slot == 1;
    assert_int_equal(pager.n_predicted > 0, foresees);
    close_rank(&rank);
    sealed_device_fini(&device);
}

static void test_placement_changes_no_bit(void **state)
{
    static const char *const names[] = {"qwen35moe-k-q4km", "qwen3moe-s-q8_0", "afmoe-s-q8_0"};
    static const enum miss_mode modes[] = {MISS_GPU, MISS_CPU, MISS_HYBRID};
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct gguf_file *file = NULL;
        static struct hparams hp;
        struct rank whole = {.n_row = 0};
        open_golden(&file, &hp, names[i]);
        open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
        run_rank(&whole);
        assert_int_equal(whole.status, LM_OK);
        const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
        const uint32_t n_slots[] = {1, n_all / 10, n_all / 2, n_all};
        const size_t n_share = i ? 2 : 4; /* the first model has three sizes of experts */
        for (size_t m = 0; m < sizeof(modes) / sizeof(modes[0]); m++)
            for (size_t k = 0; k < n_share; k++)
                for (int paged = 0; paged < 2; paged++)
                    check_tier(file, &hp, &whole,
                               &(struct rank_layers){
                                   .end = hp.n_layer,
                                   .device_begin = k == 2 ? hp.n_layer / 2 : 0,
                                   .device_experts = {n_slots[k], modes[m]},
                                   .pager = {.n_slot = paged ? 1 : 0,
                                             .prefetch = k % 2 ? PREFETCH_ON : PREFETCH_OFF,
                                             .policy = &policy_lfru}},
                               3 * (int)k, k != 1);
        close_rank(&whole);
        gguf_close(file);
    }
}

/* One combination of all that may differ. */
struct setting {
    uint32_t n_device_slot, n_slot; /* n_slot 0: memory has all */
    enum miss_mode miss;
    enum prefetch prefetch;
    uint32_t n_draft;
};

/* That the setting took effect, and that the logits are the same for as many tokens. */
static void check_setting(const struct gguf_file *file, const struct hparams *hp,
                          const struct rank *whole, const struct setting *setting)
{
    struct sealed_device device;
    struct rank rank = {.n_step = whole->n_step, .n_draft = setting->n_draft};
    sealed_device_init(&device);
    device.copy_polls = 2;
    open_rank(&rank, file, hp,
              &(struct rank_layers){.end = hp->n_layer,
                                    .device = &device.backend,
                                    .device_experts = {setting->n_device_slot, setting->miss},
                                    .pager = {.n_slot = setting->n_slot,
                                              .prefetch = setting->prefetch,
                                              .policy = &policy_lfru}});
    memcpy(rank.ids, whole->ids, sizeof(rank.ids));
    run_rank(&rank);
    check_same(&rank, whole);
    const struct device_tier_stats stats = device_tier_stats(worker_tier(rank.worker));
    const struct expert_pager_stats pager = expert_pager_stats(worker_pager(rank.worker));
    const uint32_t n_all = hparams_n_expert_of(hp, 0, hp->n_layer);
    const bool lacks = stats.n_slot < n_all;
    assert_in_range(stats.n_slot, setting->n_device_slot, n_all);
    assert_int_equal(setting->n_device_slot == n_all, !lacks);
    assert_int_equal(pager.n_slot == n_all, !setting->n_slot);
    assert_int_equal(stats.asked, setting->miss);
    assert_int_equal(stats.decode.n_cpu > 0, lacks && setting->miss != MISS_GPU);
    if (setting->miss != MISS_AUTO) /* which may come to gather */
        assert_int_equal(stats.gathers, setting->miss == MISS_GPU && !setting->n_slot);
    const bool asks = setting->n_slot || setting->miss != MISS_GPU; /* the host, in every layer */
    assert_int_equal(stats.prediction.n_chosen > 0,
                     lacks && asks && setting->prefetch != PREFETCH_OFF);
    close_rank(&rank);
    sealed_device_fini(&device);
}

/* 256 greedy tokens, whatever a device and the memory have, becomes of misses, is predicted and
 * drafted: each value with each of every other setting. */
static void test_no_setting_changes_a_token(void **state)
{
    static struct hparams hp;
    struct gguf_file *file = NULL;
    struct rank whole = {.n_step = N_STEP_MAX, .greedy = true};
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    assert_int_equal(whole.n_row, N_PROMPT + N_STEP_MAX);
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    const uint32_t n_device_slot[] = {1, n_all / 10, n_all / 2, n_all};
    for (int at = 0; at < 32; at++)
        check_setting(
            file, &hp, &whole,
            &(struct setting){.n_device_slot = n_device_slot[at & 3],
                              .miss = (enum miss_mode)(at >> 2 & 3),
                              .n_slot = at >> 4,
                              .prefetch = (at ^ at >> 2 ^ at >> 4) & 1 ? PREFETCH_ON : PREFETCH_OFF,
                              .n_draft = (at >> 1 ^ at >> 3 ^ at >> 4) & 1 ? N_DRAFT : 0});
    close_rank(&whole);
    gguf_close(file);
}

static void clear_rank(struct rank *rank)
{
    const struct seq_op clear = {.kind = SEQ_CLEAR};
    assert_int_equal(worker_seq(rank->worker, &clear, NULL), LM_OK);
    rank->n_row = 0;
}

/* What the host's slots hold is what the file holds. */
static void check_slots(const struct rank *rank, const struct hparams *hp)
{
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct expert_layer *const layer = expert_store_layer(rank->store, il);
        const struct weight *const matrix[] = {&layer->gate, &layer->up, &layer->down};
        for (uint32_t ie = 0; layer->n_part && ie < hp->n_expert; ie++) {
            const struct expert_key key = {il, ie};
            const struct expert_view file = expert_store_mapped(rank->store, key);
            struct expert_view view;
            if (!expert_pager_hold(worker_pager(rank->worker), key, &view)) continue;
            const void *const expected[] = {file.gate, file.up, file.down};
            const void *const got[] = {view.gate, view.up, view.down};
            for (int i = 0; i < 3; i++)
                if (expected[i])
                    assert_memory_equal(got[i], expected[i],
                                        matrix[i]->n_row * matrix[i]->row_bytes);
            expert_pager_unhold(worker_pager(rank->worker), key);
        }
    }
}

/* What came of some prompts and answers. */
struct outcome {
    struct device_tier_stats device;
    uint64_t n_read; /* experts, in decode */
};

static struct outcome run_outcome(const struct gguf_file *file, const struct hparams *hp,
                                  const struct rank *whole, struct device_options device_experts,
                                  uint32_t n_host)
{
    struct sealed_device device;
    struct rank rank = {.n_row = 0};
    struct outcome out;
    sealed_device_init(&device);
    device.copy_polls = (int)n_host % 3;
    open_rank(&rank, file, hp,
              &(struct rank_layers){
                  .end = hp->n_layer,
                  .device = &device.backend,
                  .device_experts = device_experts,
                  .pager = {.n_slot = n_host, .prefetch = PREFETCH_OFF, .policy = &policy_lfru}});
    for (int round = 0; round < 4; round++) {
        clear_rank(&rank);
        run_rank(&rank);
        check_same(&rank, whole);
    }
    out.device = device_tier_stats(worker_tier(rank.worker));
    out.n_read = expert_pager_stats(worker_pager(rank.worker)).decode.n_miss;
    check_slots(&rank, hp);
    close_rank(&rank);
    sealed_device_fini(&device);
    return out;
}

/* Where the host has too few slots as well, each expert is kept in one place: together they hold
 * more, and less is read, wherever misses are computed. */
static void test_shares_experts_with_the_host(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0};
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    const uint32_t n_slots[][2] = {
        {n_all / 2, n_all / 3}, {n_all * 3 / 8, n_all / 2}, {n_all / 2, n_all / 2}};
    for (int miss = MISS_AUTO; miss <= MISS_HYBRID; miss++) {
        uint64_t n_read[2] = {0};
        for (size_t k = 0; k < sizeof(n_slots) / sizeof(n_slots[0]); k++)
            for (int both = 0; both < 2; both++) {
                const struct device_options options = {
                    .n_slot = n_slots[k][0], .miss = (enum miss_mode)miss, .inclusive = both};
                const struct outcome out = run_outcome(file, &hp, &whole, options, n_slots[k][1]);
                assert_int_equal(out.device.exclusive, !both);
                assert_int_equal(out.device.n_written_back > 0, !both);
                assert_true(!both || !out.device.n_lost);
                n_read[both] += out.n_read;
            }
        print_message("miss %d: %d experts read, %d if the host keeps both\n", miss, (int)n_read[0],
                      (int)n_read[1]);
        assert_true(n_read[0] < n_read[1]);
    }
    close_rank(&whole);
    gguf_close(file);
}

/* A copy back that fails is found out by the sync behind it, and what it should have brought is
 * not used; likewise if the device is lost meanwhile. */
static void test_failed_copy_back(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0};
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    for (int miss = MISS_GPU; miss <= MISS_HYBRID; miss++)
        for (int at = 0; at < 40; at += 3) {
            struct rank rank = {.n_row = 0};
            struct sealed_device device;
            sealed_device_init(&device);
            device.copy_polls = at % 4;
            device.fail_back = at;
            open_rank(&rank, file, &hp,
                      &(struct rank_layers){.end = hp.n_layer,
                                            .device = &device.backend,
                                            .device_experts = {n_all / 2, (enum miss_mode)miss},
                                            .pager = {.n_slot = n_all / 2,
                                                      .prefetch = PREFETCH_OFF,
                                                      .policy = &policy_lfru}});
            do {
                clear_rank(&rank);
                run_rank(&rank);
            } while (rank.status == LM_OK);
            assert_int_equal(rank.status, LM_E_FAIL);
            assert_non_null(strstr(rank.err.message, "sealed device: a copy failed"));
            check_slots(&rank, &hp);
            for (int round = 0; round < 2; round++) {
                clear_rank(&rank);
                run_rank(&rank);
                check_same(&rank, &whole);
            }
            check_slots(&rank, &hp);
            device.lost_op = device.n_op + 5 + at; /* in the end it is lost */
            clear_rank(&rank);
            run_rank(&rank);
            assert_int_equal(rank.status, LM_E_FAIL);
            check_slots(&rank, &hp);
            close_rank(&rank);
            sealed_device_fini(&device);
        }
    close_rank(&whole);
    gguf_close(file);
}

/* With all experts in pinned memory no layer asks the host, and slots change behind the steps. */
static void test_device_gathers(void **state)
{
    static const char *const names[] = {"qwen35moe-k-q4km", "qwen3moe-s-q8_0"};
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct gguf_file *file = NULL;
        static struct hparams hp;
        struct rank whole = {.n_row = 0}, rank = {.n_row = 0};
        struct sealed_device device;
        struct device_tier_stats stats;
        open_golden(&file, &hp, names[i]);
        open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
        run_rank(&whole);
        sealed_device_init(&device);
        device.copy_polls = 5;
        const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
        open_rank(&rank, file, &hp,
                  &(struct rank_layers){.end = hp.n_layer,
                                        .device = &device.backend,
                                        .device_experts = {n_all / 3, MISS_GPU},
                                        .pager = {.n_slot = n_all, .policy = &policy_lfru}});
        do { /* until all have been read */
            clear_rank(&rank);
            run_rank(&rank);
            check_same(&rank, &whole);
            stats = device_tier_stats(worker_tier(rank.worker));
        } while (!stats.gathers);
        device.n_gathered = 0;
        const uint64_t n_copied = stats.decode.n_copied;
        for (int k = 0; k < 3; k++) {
            clear_rank(&rank);
            run_rank(&rank);
            check_same(&rank, &whole);
        }
        stats = device_tier_stats(worker_tier(rank.worker));
        assert_true(device.n_gathered > 0);
        assert_int_equal(stats.decode.n_copied - n_copied, device.n_gathered);
        assert_true(stats.n_admitted > 0); /* what is missed often gets a slot */
        close_rank(&rank);
        sealed_device_fini(&device);
        close_rank(&whole);
        gguf_close(file);
    }
}

/* Left to itself, a tier tries all modes and settles on one. What a profile names is there first.
 */
static void test_tries_all_modes(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0}, rank = {.n_row = 0};
    struct sealed_device device;
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    sealed_device_init(&device);
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer,
                                    .device = &device.backend,
                                    .device_experts = {n_all / 4, MISS_AUTO}});
    for (uint32_t ie = 0; ie < hp.n_expert; ie++)
        expert_pager_seed(worker_pager(rank.worker), (struct expert_key){1, ie}, 1.0f / (ie + 1));
    expert_pager_preload(worker_pager(rank.worker));
    struct device_tier_stats stats;
    const uint32_t n_named = n_all / 4 < hp.n_expert ? n_all / 4 : hp.n_expert;
    do { /* as steps would, until the files have been read */
        expert_pager_step(worker_pager(rank.worker), 1, false);
        device_tier_step(worker_tier(rank.worker), 1, false);
        stats = device_tier_stats(worker_tier(rank.worker));
    } while (stats.n_preloaded < n_named);
    assert_int_equal(stats.n_preloaded, n_named);
    for (uint32_t ie = 0; ie < n_named; ie++)
        assert_true(device_tier_is_resident(worker_tier(rank.worker), (struct expert_key){1, ie}));
    for (int k = 0; k < 6; k++) {
        clear_rank(&rank);
        run_rank(&rank);
        check_same(&rank, &whole);
    }
    stats = device_tier_stats(worker_tier(rank.worker));
    assert_int_equal(stats.asked, MISS_AUTO);
    assert_true(stats.mode != MISS_AUTO);
    assert_true(stats.decode.n_cpu > 0 && stats.decode.n_copied > 0 && stats.decode.n_hit > 0);
    close_rank(&rank);
    sealed_device_fini(&device);
    close_rank(&whole);
    gguf_close(file);
}

/* What a step that fails has left is not used: the next one computes what it always would. */
static void test_failed_copy(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank whole = {.n_row = 0};
    (void)state;
    open_golden(&file, &hp, "qwen35moe-k-q4km");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    for (int m = MISS_GPU; m <= MISS_HYBRID; m++)
        for (int fail = 0; fail < 100; fail += 7) {
            struct rank rank = {.n_row = 0};
            struct sealed_device device;
            sealed_device_init(&device);
            device.copy_polls = 2;
            device.fail_fetch = fail;
            open_rank(&rank, file, &hp,
                      &(struct rank_layers){.end = hp.n_layer,
                                            .device = &device.backend,
                                            .device_experts = {8, (enum miss_mode)m},
                                            .pager = {.n_slot = 8, .policy = &policy_lfru}});
            run_rank(&rank);
            assert_true(device.n_fetch > fail || fail > 50);
            assert_int_equal(rank.status, device.n_fetch > fail ? LM_E_FAIL : LM_OK);
            if (rank.status != LM_OK)
                assert_non_null(strstr(rank.err.message, "sealed device: a copy failed"));
            device.fail_fetch = -1;
            clear_rank(&rank);
            run_rank(&rank);
            check_same(&rank, &whole);
            close_rank(&rank);
            sealed_device_fini(&device);
        }
    close_rank(&whole);
    gguf_close(file);
}

/* A copy of a golden model that may be spoilt. path: of a template, then of the copy. */
static void open_copy(struct gguf_file **file, struct hparams *hp, char *path)
{
    char command[2000];
    close(mkstemp(path));
    snprintf(command, sizeof(command), "cp '%s/tests/data/golden/models/qwen3moe-s-q8_0.gguf' '%s'",
             getenv("LEAN_SOURCE_DIR"), path);
    assert_int_equal(system(command), 0);
    assert_int_equal(gguf_open(file, path, NULL), LM_OK);
    assert_int_equal(hparams_read(hp, *file, NULL), LM_OK);
}

/* A file that is cut off under its reader: the step that misses an expert of it fails, and says so.
 */
static void test_failed_read(void **state)
{
    char path[] = "/tmp/lean-test-tier-XXXXXX";
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank rank = {.n_row = 0};
    struct sealed_device device;
    (void)state;
    open_copy(&file, &hp, path);
    sealed_device_init(&device);
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer,
                                    .device = &device.backend,
                                    .device_experts = {5, MISS_HYBRID},
                                    .pager = {.n_slot = 1, .policy = &policy_lfru}});
    run_rank(&rank);
    assert_int_equal(rank.status, LM_OK);
    assert_int_equal(truncate(path, 4096), 0);
    for (int again = 0; again < 2; again++) {
        clear_rank(&rank);
        run_rank(&rank);
        assert_int_equal(rank.status, LM_E_IO);
        assert_non_null(strstr(rank.err.message, "expert"));
    }
    close_rank(&rank);
    sealed_device_fini(&device);
    gguf_close(file);
    unlink(path);
}

/* A file that is cut off under the CPU's layers, whose weights are read in its mapping: that is
 * seen when all layers have run. The next step finds the device with nothing to do. */
static void test_lost_mapping(void **state)
{
    char path[] = "/tmp/lean-test-tier-XXXXXX";
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct rank rank = {.n_row = 0};
    struct sealed_device device;
    (void)state;
    open_copy(&file, &hp, path);
    sealed_device_init(&device);
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer,
                                    .device = &device.backend,
                                    .device_begin = 1,
                                    .device_experts = {5, MISS_HYBRID}});
    run_rank(&rank);
    assert_int_equal(rank.status, LM_OK);
    while (expert_pager_idle(worker_pager(rank.worker)))
        ; /* until it has read all experts */
    assert_int_equal(truncate(path, 4096), 0);
    clear_rank(&rank);
    const int n_op = device.n_op;
    run_rank(&rank);
    assert_int_equal(rank.status, LM_E_IO);
    assert_non_null(strstr(rank.err.message, "the file ends before"));
    assert_true(device.n_op > n_op); /* it has computed */
    assert_false(device.busy);
    close_rank(&rank);
    sealed_device_fini(&device);
    gguf_close(file);
    unlink(path);
}

/* A device that is lost in a step ends that step, wherever it happens. */
static void test_lost_device(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    for (int lost = 3; lost < 400; lost += 31) {
        struct rank rank = {.n_row = 0};
        struct sealed_device device;
        sealed_device_init(&device);
        open_rank(&rank, file, &hp,
                  &(struct rank_layers){.end = hp.n_layer,
                                        .device = &device.backend,
                                        .device_experts = {9, MISS_HYBRID},
                                        .pager = {.n_slot = 9, .policy = &policy_lfru}});
        device.lost_op = device.n_op + lost;
        run_rank(&rank);
        assert_int_equal(rank.status, LM_E_FAIL);
        assert_string_equal(rank.err.message, "sealed device: lost");
        close_rank(&rank);
        sealed_device_fini(&device);
    }
    gguf_close(file);
}

/* Whichever piece of the device's memory cannot be had, there is one error, and nothing is left. */
static void test_no_memory_on_the_device(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    enum lm_status status = LM_E_NO_MEM;
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    for (int piece = 0; status != LM_OK; piece++) {
        struct sealed_device device;
        struct rank rank = {.n_row = 0};
        struct lm_error err;
        sealed_device_init(&device);
        device.fail_alloc = piece;
        status = try_open_rank(&rank, file, &hp,
                               &(struct rank_layers){.end = hp.n_layer,
                                                     .device = &device.backend,
                                                     .device_experts = {9, MISS_HYBRID}},
                               &err);
        assert_true(status == LM_OK || strstr(err.message, "no memory for"));
        close_rank(&rank);
        sealed_device_fini(&device);
    }
    gguf_close(file);
}

/* Two ranks, each with slots of a device; the second computes some layers on the CPU. */
static void check_two_ranks(const struct gguf_file *file, const struct hparams *hp,
                            const struct rank *whole, enum prefetch prefetch, uint32_t n_draft)
{
    struct rank ranks[2];
    struct sealed_device device[2];
    struct transport_edge *edge;
    assert_int_equal(transport_loopback_open(&edge, NULL), LM_OK);
    const struct pager_options pager = {.n_slot = 12, .policy = &policy_lfru, .prefetch = prefetch};
    const struct rank_layers layers[2] = {
        {.end = 1,
         .out = edge,
         .device = &device[0].backend,
         .device_experts = {3, MISS_HYBRID},
         .pager = pager},
        {.begin = 1,
         .end = hp->n_layer,
         .in = edge,
         .device = &device[1].backend,
         .device_begin = 2,
         .device_experts = {5, MISS_CPU},
         .pager = pager},
    };
    for (int i = 0; i < 2; i++) {
        ranks[i] = (struct rank){.n_step = whole->n_step, .n_draft = n_draft};
        sealed_device_init(&device[i]);
        device[i].copy_polls = 4;
        open_rank(&ranks[i], file, hp, &layers[i]);
        memcpy(ranks[i].ids, whole->ids, sizeof(whole->ids));
    }
    run_ranks(ranks, 2);
    assert_int_equal(ranks[0].status, LM_OK);
    check_same(&ranks[1], whole);
    for (int i = 0; i < 2; i++) {
        const struct device_tier_stats stats = device_tier_stats(worker_tier(ranks[i].worker));
        assert_true(stats.decode.n_cpu > 0);
        close_rank(&ranks[i]);
        sealed_device_fini(&device[i]);
    }
    edge->ops->close(edge);
}

static void test_two_ranks(void **state)
{
    static struct hparams hp;
    struct gguf_file *file = NULL;
    struct rank whole = {.n_step = N_STEP_MAX, .greedy = true};
    (void)state;
    open_golden(&file, &hp, "qwen35moe-k-q4km");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    check_two_ranks(file, &hp, &whole, PREFETCH_OFF, 0);
    check_two_ranks(file, &hp, &whole, PREFETCH_ON, N_DRAFT);
    close_rank(&whole);
    gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_placement_changes_no_bit),
                                       cmocka_unit_test(test_no_setting_changes_a_token),
                                       cmocka_unit_test(test_shares_experts_with_the_host),
                                       cmocka_unit_test(test_two_ranks),
                                       cmocka_unit_test(test_device_gathers),
                                       cmocka_unit_test(test_tries_all_modes),
                                       cmocka_unit_test(test_failed_copy),
                                       cmocka_unit_test(test_failed_copy_back),
                                       cmocka_unit_test(test_failed_read),
                                       cmocka_unit_test(test_lost_mapping),
                                       cmocka_unit_test(test_lost_device),
                                       cmocka_unit_test(test_no_memory_on_the_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
