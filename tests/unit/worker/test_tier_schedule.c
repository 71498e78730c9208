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

/* Whether all logits are those of a CPU with all experts. */
static bool runs_the_same(struct backend *device, enum miss_mode miss, uint32_t n_slot)
{
    struct rank rank = {.n_row = 0};
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer,
                                    .device = device,
                                    .device_begin = hp.n_layer - 2,
                                    .device_experts = {n_slot, miss},
                                    .pager = {.policy = &policy_lfru}});
    run_rank(&rank);
    const bool same = rank.status == LM_OK && rank.n_row == whole.n_row &&
                      !memcmp(rank.logits, whole.logits, whole.n_row * N_VOCAB * sizeof(float));
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
            assert_true(runs_the_same(device, modes[m], n_all / 3));
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
        assert_false(runs_the_same(device, MISS_GPU, 1));
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
    assert_true(runs_the_same(device, MISS_GPU, 1));
    const double both_us = overlap_us(&copy_us);
    print_message("of %.0f us of copies %.0f beside kernels\n", copy_us, both_us);
    assert_true(copy_us > 0 && both_us > copy_us / 50);
    device->ops->destroy(device);
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
                                       cmocka_unit_test(test_copies_run_beside_kernels)};
    return cmocka_run_group_tests(tests, open_whole, close_whole);
}
