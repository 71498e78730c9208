/* A worker whose device has slots for some experts, on the CUDA backend's emulator in simulated
 * time: however fast copies and kernels are against each other, logits keep their bits; copies run
 * beside kernels; and a worker that forgot to wait, or to make copies wait, would be seen. */
#include "tests/unit/worker/stage_ranks.h"

#include <unistd.h>

#include "kernels/backend_cuda.h"
#include "worker/pager/policy.h"

/* kernels/cuda/emu/schedule.h: latency in us, GB/s, us of a kernel. */
static const char *const SLOW_COPIES = "1000,0.01,1";
static const char *const SLOW_KERNELS = "0,100000,1000";
static const char *const EVEN = "5,1,5";

static struct gguf_file *file;
static struct hparams hp;
static struct rank whole;
static char trace_path[64];
static struct expert_pager_prediction predicted; /* in the last run */

static struct backend *create_device(const char *copy)
{
    const struct backend_cuda_config config = {.plugin = CUDA_EMU_PLUGIN_FILE};
    struct backend *device;
    struct lm_error err;
    setenv("LEAN_EMU_COPY", copy, 1);
    setenv("LEAN_EMU_TRACE", trace_path, 1);
    if (backend_cuda_create(&device, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return device;
}

/* Whether all logits are those of a CPU with all experts. n_held: of them in memory; 0: all, which
 * the device then gathers. */
static bool runs_the_same(struct backend *device, enum miss_mode miss, uint32_t n_slot,
                          uint32_t n_held)
{
    struct rank rank = {.n_row = 0};
    open_rank(&rank, file, &hp,
              &(struct rank_layers){
                  .end = hp.n_layer,
                  .device = device,
                  .device_begin = hp.n_layer - 2,
                  .device_experts = {n_slot, miss},
                  .pager = {.n_slot = n_held, .policy = &policy_lfru, .prefetch = PREFETCH_ON}});
    run_rank(&rank);
    const bool same = rank.status == LM_OK && rank.n_row == whole.n_row &&
                      !memcmp(rank.logits, whole.logits, whole.n_row * N_VOCAB * sizeof(float));
    predicted = device_tier_stats(worker_tier(rank.worker)).prediction;
    close_rank(&rank);
    return same;
}

static void test_no_speed_changes_a_bit(void **state)
{
    static const char *const speeds[] = {SLOW_COPIES, SLOW_KERNELS};
    static const enum miss_mode modes[] = {MISS_GPU, MISS_HYBRID};
    (void)state;
    const uint32_t n_all = hparams_n_expert_of(&hp, hp.n_layer - 2, hp.n_layer);
    for (int i = 0; i < 2; i++)
        for (int m = 0; m < 2; m++) {
            struct backend *device = create_device(speeds[i]);
            assert_true(runs_the_same(device, modes[m], n_all / 3, 0));
            device->ops->destroy(device);
        }
}

static const struct backend_ops *real_ops;

/* Nobody can ask for it then. */
static uint64_t forget_ticket(struct backend *backend, void *to_host, const void *from,
                              size_t n_bytes)
{
    real_ops->write_back(backend, to_host, from, n_bytes);
    return 0;
}

/* Whether what memory has in the end is what the file has: also what came back from the device. */
static bool holds_the_same(const struct rank *rank)
{
    bool same = true;
    for (uint32_t il = 0; il < hp.n_layer; il++)
        for (uint32_t ie = 0; ie < hp.n_expert; ie++) {
            const struct expert_key key = {il, ie};
            const struct expert_view expected = expert_store_mapped(rank->store, key);
            const struct weight *const down = &expert_store_layer(rank->store, il)->down;
            struct expert_view view;
            if (!expert_pager_hold(worker_pager(rank->worker), key, &view)) continue;
            same = same && !memcmp(view.down, expected.down, down->n_row * down->row_bytes);
            expert_pager_unhold(worker_pager(rank->worker), key);
        }
    return same;
}

/* Copies back beside copies there and kernels, whichever is slow. */
static void test_what_comes_back_is_the_same(void **state)
{
    static const char *const speeds[] = {EVEN, SLOW_KERNELS, SLOW_COPIES};
    (void)state;
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    for (int i = 0; i < 3; i++) {
        struct rank rank = {.n_row = 0};
        struct backend *device = create_device(speeds[i]);
        struct backend_ops forgetful = *(real_ops = device->ops);
        open_rank(&rank, file, &hp,
                  &(struct rank_layers){.end = hp.n_layer,
                                        .device = device,
                                        .device_experts = {n_all / 2, MISS_GPU},
                                        .pager = {.n_slot = n_all / 2, .policy = &policy_lfru}});
        forgetful.write_back = forget_ticket;
        if (i == 2) device->ops = &forgetful;
        run_rank(&rank);
        const struct device_tier_stats stats = device_tier_stats(worker_tier(rank.worker));
        const bool same = rank.n_row == whole.n_row && holds_the_same(&rank) &&
                          !memcmp(rank.logits, whole.logits, whole.n_row * N_VOCAB * sizeof(float));
        print_message("%d written back, %d lost\n", (int)stats.n_written_back, (int)stats.n_lost);
        assert_true(stats.exclusive && stats.n_written_back > 0);
        assert_int_equal(same, i != 2);
        device->ops = real_ops;
        close_rank(&rank);
        device->ops->destroy(device);
    }
}

static void forget_to_await(struct backend *backend, uint64_t ticket)
{
    (void)backend;
    (void)ticket;
}

static uint64_t forget_to_mark(struct backend *backend)
{
    (void)backend;
    return 0;
}

static void test_what_was_forgotten_is_seen(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct backend *device = create_device(i ? SLOW_KERNELS : SLOW_COPIES);
        const struct backend_ops *const ops = device->ops;
        struct backend_ops forgetful = *ops;
        if (i)
            forgetful.mark = forget_to_mark;
        else
            forgetful.await = forget_to_await;
        device->ops = &forgetful;
        assert_false(runs_the_same(device, MISS_GPU, 1, 0));
        device->ops = ops;
        device->ops->destroy(device);
    }
}

/* Simulated time in which a copy to the device and a kernel run at once. */
static double overlap_us(double *copy_us)
{
    enum { SPAN_MAX = 1 << 16 };
    struct span {
        double begin, end;
    } *const copy = calloc(SPAN_MAX, sizeof(*copy)), *const kernel =
                                                         calloc(SPAN_MAX, sizeof(*copy));
    int stream, n_copy = 0, n_kernel = 0;
    char kind[16], what[256];
    struct span s;
    double sum = 0;
    FILE *trace = fopen(trace_path, "r");
    assert_non_null(trace);
    while (fscanf(trace, "%d %lf %lf %15s %255s", &stream, &s.begin, &s.end, kind, what) == 5) {
        if (!strcmp(kind, "kernel") && n_kernel < SPAN_MAX) kernel[n_kernel++] = s;
        if (!strcmp(kind, "copy_in") && stream && n_copy < SPAN_MAX) copy[n_copy++] = s;
    }
    fclose(trace);
    *copy_us = 0;
    for (int i = 0, first = 0; i < n_copy; i++) { /* both are in the order of time */
        *copy_us += copy[i].end - copy[i].begin;
        while (first < n_kernel && kernel[first].end <= copy[i].begin)
            first++;
        for (int k = first; k < n_kernel && kernel[k].begin < copy[i].end; k++)
            sum += (kernel[k].end < copy[i].end ? kernel[k].end : copy[i].end) -
                   (kernel[k].begin > copy[i].begin ? kernel[k].begin : copy[i].begin);
    }
    free(copy);
    free(kernel);
    return sum;
}

static void test_copies_run_beside_kernels(void **state)
{
    (void)state;
    double copy_us;
    struct backend *device = create_device(EVEN);
    assert_true(runs_the_same(device, MISS_GPU, 1, 0));
    const double both_us = overlap_us(&copy_us);
    print_message("of %.0f us of copies %.0f beside kernels\n", copy_us, both_us);
    assert_true(copy_us > 0 && both_us > copy_us / 50);
    device->ops->destroy(device);
}

/* Copies in the order of the calls, and when they were made. */
enum { COPY_MAX = 1 << 14 };
static struct {
    enum copy_lane lane;
    uint64_t ticket;
    double begin_us, end_us;
} copy[COPY_MAX];
static int n_copy, n_ahead_max; /* copies ahead that a demanded one found under way */
static const struct backend_ops *inner;

static uint64_t noted_fetch(struct backend *backend, void *to, const void *from, size_t n_bytes,
                            uint64_t after, enum copy_lane lane)
{
    int n_ahead = 0;
    for (int i = n_copy; lane == COPY_DEMAND && i-- > 0;)
        if (copy[i].lane == COPY_AHEAD && inner->fetched(backend, copy[i].ticket))
            break;
        else
            n_ahead += copy[i].lane == COPY_AHEAD;
    if (n_ahead > n_ahead_max) n_ahead_max = n_ahead;
    assert_true(n_copy < COPY_MAX);
    copy[n_copy].lane = lane;
    return copy[n_copy++].ticket = inner->fetch(backend, to, from, n_bytes, after, lane);
}

/* The two streams of copies are made in the order of the lanes. */
static void read_times(void)
{
    int stream, first = INT32_MAX, next[2] = {0, 0};
    char kind[16], what[256];
    double begin_us, end_us;
    FILE *trace = fopen(trace_path, "r");
    assert_non_null(trace);
    for (int pass = 0; pass < 2; pass++, rewind(trace))
        while (fscanf(trace, "%d %lf %lf %15s %255s", &stream, &begin_us, &end_us, kind, what) ==
               5) {
            if (strcmp(kind, "copy_in") || !stream) continue;
            if (stream < first) first = stream;
            if (!pass) continue;
            int *const at = &next[stream > first];
            while (*at < n_copy && copy[*at].lane != (stream > first ? COPY_AHEAD : COPY_DEMAND))
                ++*at;
            assert_true(*at < n_copy);
            copy[*at].begin_us = begin_us;
            copy[(*at)++].end_us = end_us;
        }
    fclose(trace);
}

/* A copy on a prediction is behind every copy that was demanded before it, and those that are
 * demanded later find no more than two experts' on their way, whatever the link can do. */
static void test_predicted_copies_give_way(void **state)
{
    static const char *const speeds[] = {SLOW_COPIES, EVEN, SLOW_KERNELS};
    enum { PREDICTED_MAX = 2 };
    const uint32_t n_all = hparams_n_expert_of(&hp, 0, hp.n_layer);
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct backend *device = create_device(speeds[i]);
        inner = device->ops;
        struct backend_ops noting = *inner;
        noting.fetch = noted_fetch;
        device->ops = &noting;
        n_copy = n_ahead_max = 0;
        assert_true(runs_the_same(device, MISS_GPU, 10, n_all - 1));
        device->ops = inner;
        device->ops->destroy(device);
        read_times();
        double demanded_us = 0;
        int n_ahead = 0;
        for (int k = 0; k < n_copy; k++) {
            if (copy[k].lane == COPY_DEMAND) {
                if (copy[k].end_us > demanded_us) demanded_us = copy[k].end_us;
                continue;
            }
            assert_true(copy[k].begin_us >= demanded_us);
            n_ahead++;
        }
        print_message("%d copies, %d ahead, %d at once\n", n_copy, n_ahead, n_ahead_max);
        assert_true(n_ahead > 0 && predicted.n_used > 0);
        assert_in_range(n_ahead_max, 0, PREDICTED_MAX * EXPERT_PART_MAX);
    }
}

static int open_whole(void **state)
{
    (void)state;
    snprintf(trace_path, sizeof(trace_path), "/tmp/lean-test-tier-%d", (int)getpid());
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    return whole.status;
}

static int close_whole(void **state)
{
    (void)state;
    close_rank(&whole);
    gguf_close(file);
    unlink(trace_path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_speed_changes_a_bit),
                                       cmocka_unit_test(test_what_was_forgotten_is_seen),
                                       cmocka_unit_test(test_what_comes_back_is_the_same),
                                       cmocka_unit_test(test_copies_run_beside_kernels),
                                       cmocka_unit_test(test_predicted_copies_give_way)};
    return cmocka_run_group_tests(tests, open_whole, close_whole);
}
