/* Matrices one after another, together larger than any cache. */
#include "launch/bench/kernel_probe.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/plan/memory_plan.h"
#include "kernels/backend.h"
#include "launch/bench/write_file.h"
#include "launch/config.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/machine.pb-c.h"
#include "proto/text/textproto.h"

enum {
    N_COL = 2048,
    MATRIX_BYTES = 4 << 20,
    N_MATRIX_MIN = 64,
    N_TINY_ROW = 16, /* a task or two: what is left is the meeting of threads */
    N_ROW_MAX = MATRIX_BYTES / 256,
    MAX_FILE_BYTES = 1 << 16,
    KEPT_S = 7 * 24 * 3600,
};
#define PROBE_S 0.1
/* Types that hold less of the model than this share are left out. */
#define LEAST_SHARE 0.005

/* ---- measuring ---------------------------------------------------------------------------- */

struct probe {
    struct backend *backend;
    char *weights; /* [n_matrix][MATRIX_BYTES] */
    uint32_t n_matrix, i_matrix;
    float *x, *y; /* [N_COL], [N_ROW_MAX] */
};

static void multiply(struct probe *probe, enum tensor_type type, uint32_t n_row)
{
    const struct weight weight = {.data = probe->weights + (size_t)probe->i_matrix * MATRIX_BYTES,
                                  .type = type,
                                  .n_col = N_COL,
                                  .n_row = n_row,
                                  .row_bytes = tensor_row_bytes(type, N_COL)};
    const struct linear_args args = {
        .n_token = 1,
        .x = probe->x,
        .n_col = N_COL,
        .n_out = 1,
        .out = {{.w = &weight, .y = probe->y, .y_stride = N_ROW_MAX}},
    };
    probe->backend->ops->linear(probe->backend, &args);
}

/* Goes on where the type before has ended, so that each finds cold weights. */
static double measure_rate(struct probe *probe, enum tensor_type type)
{
    const size_t row_bytes = tensor_row_bytes(type, N_COL);
    const uint32_t n_row = (uint32_t)(MATRIX_BYTES / row_bytes);
    const double begin_s = log_now_s();
    double seconds, n_bytes = 0;
    do {
        multiply(probe, type, n_row);
        probe->i_matrix = (probe->i_matrix + 1) % probe->n_matrix;
        n_bytes += n_row * (double)row_bytes;
        seconds = log_now_s() - begin_s;
    } while (seconds < PROBE_S);
    return n_bytes / seconds;
}

static double measure_op(struct probe *probe)
{
    const double begin_s = log_now_s();
    double seconds, n = 0;
    do {
        multiply(probe, TENSOR_F32, N_TINY_ROW);
        n++;
        seconds = log_now_s() - begin_s;
    } while (seconds < PROBE_S);
    return seconds / n;
}

static size_t probe_bytes(const struct probe *probe)
{
    return (size_t)probe->n_matrix * MATRIX_BYTES;
}

/* Twice the last cache, which may be one of many guests', unless memory is short. */
static uint32_t choose_n_matrix(void)
{
    const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const uint64_t most = host_memory_available() / 4 / MATRIX_BYTES;
    uint64_t n = cache_bytes > 0 ? 2 * (uint64_t)cache_bytes / MATRIX_BYTES : 0;
    if (n > most) n = most;
    return n < N_MATRIX_MIN ? N_MATRIX_MIN : (uint32_t)n;
}

/* Weights of every type whose scales are small ordinary numbers. */
static enum lm_status make(struct probe *probe, struct lm_error *err)
{
    const struct backend_ops *ops = probe->backend->ops;
    probe->n_matrix = choose_n_matrix();
    probe->weights =
        mmap(NULL, probe_bytes(probe), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe->weights == MAP_FAILED)
        return lm_fail_errno(err, "memory to measure kernels: %zu bytes", probe_bytes(probe));
    madvise(probe->weights, probe_bytes(probe), MADV_HUGEPAGE);
    memset(probe->weights, 0x21, probe_bytes(probe));
    probe->x = ops->alloc(probe->backend, N_COL * sizeof(float), err);
    if (probe->x) probe->y = ops->alloc(probe->backend, N_ROW_MAX * sizeof(float), err);
    if (!probe->y) return LM_E_NO_MEM;
    for (uint32_t i = 0; i < N_COL; i++)
        probe->x[i] = (float)(i % 17) - 8;
    return LM_OK;
}

static void fini(struct probe *probe)
{
    const struct backend_ops *ops = probe->backend->ops;
    if (probe->weights && probe->weights != MAP_FAILED) munmap(probe->weights, probe_bytes(probe));
    ops->free(probe->backend, probe->x);
    ops->free(probe->backend, probe->y);
    ops->destroy(probe->backend);
}

static bool is_wanted(const struct kernel_rates *rates, const uint64_t *bytes, int type)
{
    double total = 0;
    for (int i = 0; i < TENSOR_TYPE_COUNT; i++)
        total += (double)bytes[i];
    return (double)bytes[type] > LEAST_SHARE * total && !(rates->bytes_s[type] > 0) &&
           tensor_type_info((uint32_t)type)->computable;
}

static enum lm_status begin(struct probe *probe, const struct kernel_probe_config *config,
                            struct lm_error *err)
{
    const struct backend_cpu_config of_backend = {
        .n_thread = config->n_thread, .kernels = config->kernels, .pin = !config->n_thread};
    *probe = (struct probe){.x = NULL};
    enum lm_status status = backend_cpu_create(&probe->backend, &of_backend, err);
    if (status != LM_OK) return status;
    status = make(probe, err);
    if (status != LM_OK) fini(probe);
    return status;
}

/* ---- beside a copy ------------------------------------------------------------------------ */

enum { COPY_BYTES = 1 << 20, N_COPY = 64 };

struct copier {
    char *memory; /* [2 * N_COPY][COPY_BYTES] */
    _Atomic uint64_t n_bytes;
    atomic_bool stop;
};

static void *copy_on(void *context)
{
    struct copier *copier = context;
    for (size_t i = 0; !atomic_load(&copier->stop); i = (i + 1) % N_COPY) {
        memcpy(copier->memory + (N_COPY + i) * COPY_BYTES, copier->memory + i * COPY_BYTES,
               COPY_BYTES);
        atomic_fetch_add(&copier->n_bytes, COPY_BYTES);
    }
    return NULL;
}

static enum lm_status measure_overlap(struct probe *probe, struct kernel_overlap *out,
                                      enum tensor_type type, struct lm_error *err)
{
    struct copier copier = {.memory = calloc(2 * N_COPY, COPY_BYTES)};
    pthread_t thread;
    if (!copier.memory || pthread_create(&thread, NULL, copy_on, &copier)) {
        free(copier.memory);
        return lm_fail(err, LM_E_NO_MEM, "no memory to measure copies");
    }
    const uint64_t before = atomic_load(&copier.n_bytes);
    const double begin_s = log_now_s();
    out->beside_bytes_s = measure_rate(probe, type);
    out->copy_bytes_s = (double)(atomic_load(&copier.n_bytes) - before) / (log_now_s() - begin_s);
    atomic_store(&copier.stop, true);
    pthread_join(thread, NULL);
    free(copier.memory);
    out->alone_bytes_s = measure_rate(probe, type);
    return LM_OK;
}

static enum tensor_type main_type(const uint64_t bytes[TENSOR_TYPE_COUNT])
{
    int most = 0;
    for (int type = 1; type < TENSOR_TYPE_COUNT; type++)
        if (bytes[type] > bytes[most]) most = type;
    return (enum tensor_type)most;
}

static enum lm_status measure(struct kernel_rates *out, const struct kernel_probe_config *config,
                              struct lm_error *err)
{
    struct probe probe;
    enum lm_status status = begin(&probe, config, err);
    if (status != LM_OK) return status;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        if (is_wanted(out, config->bytes, type))
            out->bytes_s[type] = measure_rate(&probe, (enum tensor_type)type);
    out->op_s = measure_op(&probe);
    if (config->overlap)
        status = measure_overlap(&probe, config->overlap, main_type(config->bytes), err);
    const enum lm_status synced =
        probe.backend->ops->sync(probe.backend, status == LM_OK ? err : NULL);
    fini(&probe);
    return status == LM_OK ? synced : status;
}

/* ---- what is kept ------------------------------------------------------------------------- */

/* Malloc'ed; NULL: there is nowhere to keep it. */
static char *kept_path(const struct kernel_probe_config *config)
{
    char host[65] = "localhost", suffix[200];
    (void)!gethostname(host, sizeof(host) - 1);
    snprintf(suffix, sizeof(suffix), "lean/machines/%s-%u-%.40s.kernels.textproto", host,
             config->n_thread, config->kernels);
    return config_user_path("XDG_CACHE_HOME", ".cache", suffix);
}

/* Nothing that is malformed or old counts. */
static void read_kept(struct kernel_rates *out, const char *path)
{
    Lean__Kernels *kept = (Lean__Kernels *)textproto_create(&lean__kernels__descriptor);
    char *text = NULL;
    size_t n;
    const bool found = kept && read_all_path(path, MAX_FILE_BYTES, &text, &n, NULL) == LM_OK &&
                       textproto_merge(&kept->base, path, text, n, NULL, NULL, NULL) == LM_OK;
    const int64_t age_s = found ? (int64_t)time(NULL) - kept->time : -1;
    for (size_t i = 0; age_s >= 0 && age_s < KEPT_S && i < kept->n_kernel; i++) {
        const Lean__KernelRate *rate = kept->kernel[i];
        const int type = rate->type ? tensor_type_from_name(rate->type) : -1;
        if (type >= 0 && rate->rate > 0) out->bytes_s[type] = rate->rate;
        out->op_s = kept->op_seconds;
    }
    free(text);
    if (kept) lean__kernels__free_unpacked(kept, NULL);
}

static void write_kept(const struct kernel_rates *rates, char *path)
{
    Lean__KernelRate rate[TENSOR_TYPE_COUNT], *list[TENSOR_TYPE_COUNT];
    Lean__Kernels kept = LEAN__KERNELS__INIT;
    kept.kernel = list;
    kept.has_op_seconds = kept.has_time = true;
    kept.op_seconds = rates->op_s;
    kept.time = (int64_t)time(NULL);
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++) {
        if (!(rates->bytes_s[type] > 0)) continue;
        Lean__KernelRate *const to = list[kept.n_kernel] = &rate[kept.n_kernel];
        *to = (Lean__KernelRate)LEAN__KERNEL_RATE__INIT;
        to->type = (char *)tensor_type_info((uint32_t)type)->name;
        to->has_rate = true;
        to->rate = rates->bytes_s[type];
        kept.n_kernel++;
    }
    char *text = textproto_write(&kept.base, NULL, NULL);
    config_make_parents(path);
    if (text) (void)write_file(path, text, strlen(text), NULL); /* else it is measured again */
    free(text);
}

enum lm_status kernel_probe_run(struct kernel_rates *out, const struct kernel_probe_config *config,
                                struct lm_error *err)
{
    char *path = kept_path(config);
    enum lm_status status = LM_OK;
    bool complete = true;
    *out = (struct kernel_rates){.op_s = 0};
    if (path && !config->afresh) read_kept(out, path);
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        complete &= !is_wanted(out, config->bytes, type);
    if (!complete) {
        status = measure(out, config, err);
        if (status == LM_OK && path) write_kept(out, path);
    }
    free(path);
    return status;
}

double kernel_rates_seconds(const struct kernel_rates *rates,
                            const uint64_t bytes[TENSOR_TYPE_COUNT])
{
    double slowest = INFINITY, seconds = 0;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        if (rates->bytes_s[type] > 0) slowest = fmin(slowest, rates->bytes_s[type]);
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        seconds +=
            (double)bytes[type] / (rates->bytes_s[type] > 0 ? rates->bytes_s[type] : slowest);
    return seconds;
}
