/* Where the time of a decode step goes: each kind of operation with its share, the bytes it reads
 * and, against plain reads of memory by the same number of threads, its share of the roof.
 *
 *   bench_stages MODEL [--prompt 512] [--tokens 32] [--threads N] [--kernels NAME]
 *
 * A backend that passes every operation on to the CPU's and looks at the clock around it. Bytes are
 * those that must be read: weights once per step, the KV cache up to the position, states twice
 * (read and written). Time on a quiet machine only. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/bench_arguments.h"
#include "kernels/backend.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "proto/step.h"
#include "worker/pager/expert_store.h"
#include "worker/worker.h"

enum stage {
    STAGE_LINEAR,
    STAGE_HEAD,
    STAGE_ATTENTION,
    STAGE_DELTA_NET,
    STAGE_ROUTE,
    STAGE_FFN,
    STAGE_OTHER,
    STAGE_COUNT
};

static const char *const stage_names[STAGE_COUNT] = {
    "projections", "output head", "attention", "delta net", "router", "experts, FFN", "other"};

struct timed {
    struct backend base;
    struct backend *inner;
    uint32_t n_vocab;
    double seconds[STAGE_COUNT];
    uint64_t n_bytes[STAGE_COUNT];
    double since;
};

static struct backend *begin(struct backend *backend)
{
    struct timed *timed = (struct timed *)backend;
    timed->since = log_now_s();
    return timed->inner;
}

static void end(struct backend *backend, enum stage stage, uint64_t n_bytes)
{
    struct timed *timed = (struct timed *)backend;
    timed->seconds[stage] += log_now_s() - timed->since;
    timed->n_bytes[stage] += n_bytes;
}

static uint64_t weight_bytes(const struct weight *w)
{
    return w && w->row_bytes ? (uint64_t)w->n_row * w->row_bytes : 0;
}

/* ---- operations --------------------------------------------------------------------------- */

static void *timed_alloc(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    struct backend *inner = ((struct timed *)backend)->inner;
    return inner->ops->alloc(inner, n_bytes, err);
}

static void timed_free(struct backend *backend, void *memory)
{
    struct backend *inner = ((struct timed *)backend)->inner;
    inner->ops->free(inner, memory);
}

static void timed_upload(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    struct backend *inner = begin(backend);
    inner->ops->upload(inner, to, from, n_bytes);
    end(backend, STAGE_OTHER, n_bytes);
}

static void timed_download(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    struct backend *inner = begin(backend);
    inner->ops->download(inner, to, from, n_bytes);
    end(backend, STAGE_OTHER, n_bytes);
}

static void timed_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    struct backend *inner = begin(backend);
    inner->ops->copy(inner, to, from, n_bytes);
    end(backend, STAGE_OTHER, n_bytes);
}

static enum lm_status timed_sync(struct backend *backend, struct lm_error *err)
{
    struct backend *inner = ((struct timed *)backend)->inner;
    return inner->ops->sync(inner, err);
}

static void timed_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                        uint32_t n_token, float scale, float *x)
{
    struct backend *inner = begin(backend);
    inner->ops->embed(inner, table, ids, n_token, scale, x);
    end(backend, STAGE_OTHER, n_token * table->row_bytes);
}

static void timed_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                           uint32_t n_token, uint32_t n, float *y)
{
    struct backend *inner = begin(backend);
    inner->ops->rms_norm(inner, x, norm, eps, n_token, n, y);
    end(backend, STAGE_OTHER, 0);
}

static void timed_gather(struct backend *backend, const float *x, const uint32_t *rows,
                         uint32_t n_row, uint32_t n, float *y)
{
    struct backend *inner = begin(backend);
    inner->ops->gather(inner, x, rows, n_row, n, y);
    end(backend, STAGE_OTHER, 0);
}

static void timed_copy_rows(struct backend *backend, const float *x, const uint32_t *rows,
                            uint32_t n_row, uint32_t n, float *y)
{
    struct backend *inner = begin(backend);
    inner->ops->copy_rows(inner, x, rows, n_row, n, y);
    end(backend, STAGE_OTHER, 0);
}

static void timed_linear(struct backend *backend, const struct linear_args *args)
{
    const uint32_t n_vocab = ((struct timed *)backend)->n_vocab;
    const bool head = args->n_out == 1 && args->out[0].w->n_row == n_vocab;
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < args->n_out; i++)
        n_bytes += weight_bytes(args->out[i].w);
    struct backend *inner = begin(backend);
    inner->ops->linear(inner, args);
    end(backend, head ? STAGE_HEAD : STAGE_LINEAR, n_bytes);
}

static void timed_attention(struct backend *backend, const struct attention_args *args)
{
    const size_t row_bytes =
        kv_block_bytes(args->kv_type, args->n_head_kv, args->head_dim) / KV_BLOCK;
    uint64_t n_bytes = 0;
    for (uint32_t it = 0; it < args->n_token; it++) {
        uint32_t reach = args->token[it].pos + 1;
        if (args->window && args->window < reach) reach = args->window;
        n_bytes += reach * row_bytes;
    }
    struct backend *inner = begin(backend);
    inner->ops->attention(inner, args);
    end(backend, STAGE_ATTENTION, n_bytes);
}

static void timed_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    const uint64_t state_bytes = (uint64_t)args->n_head_v * args->dim_v * args->dim_k * 4;
    struct backend *inner = begin(backend);
    inner->ops->delta_net(inner, args);
    end(backend, STAGE_DELTA_NET, 2 * state_bytes);
}

static void timed_route(struct backend *backend, const struct route_args *args)
{
    struct backend *inner = begin(backend);
    inner->ops->route(inner, args);
    end(backend, STAGE_ROUTE, weight_bytes(args->router));
}

static int compare_ids(const void *left, const void *right)
{
    const int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return a < b ? -1 : a > b;
}

static uint32_t count_distinct(const int32_t *ids, size_t n)
{
    uint32_t n_distinct = 0;
    int32_t *sorted = malloc((n + 1) * sizeof(*sorted));
    if (!sorted) abort();
    memcpy(sorted, ids, n * sizeof(*ids));
    qsort(sorted, n, sizeof(*sorted), compare_ids);
    for (size_t i = 0; i < n; i++)
        n_distinct += i == 0 || sorted[i] != sorted[i - 1];
    free(sorted);
    return n_distinct;
}

static void timed_ffn(struct backend *backend, const struct ffn_args *args)
{
    uint64_t n_bytes = weight_bytes(args->gate) + weight_bytes(args->up) + weight_bytes(args->down);
    if (args->n_expert_used)
        n_bytes += count_distinct(args->ids, (size_t)args->n_token * args->n_expert_used) *
                   (weight_bytes(&args->gate_exp) + weight_bytes(&args->up_exp) +
                    weight_bytes(&args->down_exp));
    struct backend *inner = begin(backend);
    inner->ops->ffn(inner, args);
    end(backend, STAGE_FFN, n_bytes);
}

/* ffn_experts and ffn_finish are never called: all experts are resident. */
static const struct backend_ops timed_ops = {
    .name = "timed",
    .alloc = timed_alloc,
    .free = timed_free,
    .upload = timed_upload,
    .download = timed_download,
    .copy = timed_copy,
    .sync = timed_sync,
    .embed = timed_embed,
    .rms_norm = timed_rms_norm,
    .gather = timed_gather,
    .copy_rows = timed_copy_rows,
    .linear = timed_linear,
    .attention = timed_attention,
    .delta_net = timed_delta_net,
    .route = timed_route,
    .ffn = timed_ffn,
};

/* ---- the roof ----------------------------------------------------------------------------- */

enum { ROOF_BYTES = 256 << 20 };

struct reader {
    const uint64_t *words;
    size_t n;
    uint64_t sum;
};

static void *read_words(void *context)
{
    struct reader *reader = context;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= reader->n; i += 8)
        for (size_t k = 0; k < 8; k++)
            sum[k] += reader->words[i + k];
    for (size_t k = 0; k < 8; k++)
        reader->sum += sum[k];
    return NULL;
}

/* Bytes per second that n threads read of memory, the best of some tries. */
static double measure_roof(uint32_t n_thread)
{
    enum { TRIES = 8, MAX_THREAD = 256 };
    const uint32_t n = n_thread < MAX_THREAD ? n_thread : MAX_THREAD;
    const size_t n_word = ROOF_BYTES / sizeof(uint64_t) / n;
    uint64_t *words =
        mmap(NULL, ROOF_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct reader reader[MAX_THREAD];
    pthread_t thread[MAX_THREAD];
    double best = 0;
    if (words == MAP_FAILED) return 0;
    madvise(words, ROOF_BYTES, MADV_HUGEPAGE);
    memset(words, 1, ROOF_BYTES);
    for (int try = 0; try < TRIES; try++) {
        const double start = log_now_s();
        uint32_t n_started = 0;
        for (uint32_t i = 0; i < n; i++) {
            reader[i] = (struct reader){.words = words + i * n_word, .n = n_word};
            if (!pthread_create(&thread[i], NULL, read_words, &reader[i]))
                n_started++;
            else
                break;
        }
        for (uint32_t i = 0; i < n_started; i++)
            pthread_join(thread[i], NULL);
        const double rate = (double)n_word * 8 * n_started / (log_now_s() - start);
        if (rate > best) best = rate;
    }
    munmap(words, ROOF_BYTES);
    return best;
}

/* ---- main --------------------------------------------------------------------------------- */

static void print_stages(const struct timed *timed, double total_s, uint32_t n_step, double roof)
{
    uint64_t all_bytes = 0;
    double all_s = 0;
    printf("%-14s %9s %7s %11s %9s %8s\n", "stage", "ms/token", "share", "MB/token", "GB/s",
           "of roof");
    for (int i = 0; i < STAGE_COUNT; i++) {
        const double seconds = timed->seconds[i],
                     rate = seconds > 0 ? (double)timed->n_bytes[i] / seconds : 0;
        printf("%-14s %9.3f %6.1f%% %11.2f %9.1f %7.0f%%\n", stage_names[i], 1e3 * seconds / n_step,
               100 * seconds / total_s, (double)timed->n_bytes[i] / 1e6 / n_step, rate / 1e9,
               100 * rate / roof);
        all_bytes += timed->n_bytes[i];
        all_s += seconds;
    }
    printf("%-14s %9.3f %6.1f%%\n", "between them", 1e3 * (total_s - all_s) / n_step,
           100 * (total_s - all_s) / total_s);
    printf("%-14s %9.3f %6.1f%% %11.2f %9.1f %7.0f%%   %.1f tok/s; roof %.1f GB/s\n", "step",
           1e3 * total_s / n_step, 100.0, (double)all_bytes / 1e6 / n_step,
           (double)all_bytes / total_s / 1e9, 100 * (double)all_bytes / total_s / roof,
           n_step / total_s, roof / 1e9);
}

/* The prompt in steps of at most 512 tokens, then n_token steps of one token, the last being timed.
 */
static enum lm_status run(struct worker *worker, struct timed *timed, uint32_t n_prompt,
                          uint32_t n_token, double *seconds, struct lm_error *err)
{
    enum { CHUNK = 512 };
    const struct sampling_params sampling = sampling_params_default();
    int32_t *ids = calloc(n_prompt + n_token + 1, sizeof(*ids));
    enum lm_status status = LM_OK;
    if (!ids) return lm_fail(err, LM_E_NO_MEM, "no memory");
    for (uint32_t i = 0; i < n_prompt; i++)
        ids[i] = (int32_t)(((uint64_t)i * 7919 + 104729) % timed->n_vocab);
    double start = 0;
    for (uint32_t at = 0; at < n_prompt + n_token && status == LM_OK;) {
        const uint32_t left = n_prompt > at ? n_prompt - at : 1, n = left < CHUNK ? left : CHUNK;
        const bool samples = at + n >= n_prompt;
        struct sampled_token sampled;
        const struct step_seq seq = {.ids = ids + at,
                                     .n_token = n,
                                     .output = samples ? STEP_OUTPUT_SAMPLE : STEP_OUTPUT_NONE,
                                     .history = ids,
                                     .n_history = at + n,
                                     .n_prompt = n_prompt,
                                     .sampling = &sampling};
        const struct step_plan plan = {.seq = &seq, .n_seq = 1};
        if (at >= n_prompt && !start) {
            memset(timed->seconds, 0, sizeof(timed->seconds));
            memset(timed->n_bytes, 0, sizeof(timed->n_bytes));
            start = log_now_s();
        }
        status = worker_step(worker, &plan, &sampled, err);
        at += n;
        if (status == LM_OK && samples) ids[at] = sampled.id;
    }
    *seconds = log_now_s() - start;
    free(ids);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_stages MODEL [--prompt N] [--tokens N] [--threads N] "
                        "[--kernels NAME]\n");
        return 2;
    }
    const uint32_t n_prompt = number_argument(argc, argv, "--prompt", 512);
    const uint32_t n_token = number_argument(argc, argv, "--tokens", 32);
    const struct backend_cpu_config cpu = {.n_thread = number_argument(argc, argv, "--threads", 0),
                                           .kernels =
                                               text_argument(argc, argv, "--kernels", "auto"),
                                           .pin = true};
    static struct hparams hp;
    struct lm_error err = {.message = "the prompt and the tokens must be at least 1"};
    struct gguf_file *file = NULL;
    struct expert_store *store = NULL;
    struct worker *worker = NULL;
    struct timed timed = {.base = {&timed_ops}};
    double seconds = 0;
    enum lm_status status = n_prompt && n_token ? LM_OK : LM_E_USAGE;
    if (status == LM_OK) status = gguf_open(&file, argv[1], &err);
    if (status == LM_OK) status = hparams_read(&hp, file, &err);
    if (status == LM_OK) status = expert_store_create(&store, file, &hp, 0, hp.n_layer, &err);
    if (status == LM_OK) status = backend_cpu_create(&timed.inner, &cpu, &err);
    if (status == LM_OK) {
        timed.n_vocab = hp.n_vocab;
        const struct worker_config config = {.file = file,
                                             .hp = &hp,
                                             .store = store,
                                             .backend = &timed.base,
                                             .layer_end = hp.n_layer,
                                             .n_slot = 1,
                                             .n_ctx = n_prompt + n_token,
                                             .n_position = n_prompt + n_token,
                                             .n_batch = 512,
                                             .kv_type = TENSOR_F16};
        status = worker_create(&worker, &config, &err);
    }
    if (status == LM_OK) status = run(worker, &timed, n_prompt, n_token, &seconds, &err);
    if (status == LM_OK)
        print_stages(&timed, seconds, n_token, measure_roof(backend_cpu_n_thread(timed.inner)));
    else
        fprintf(stderr, "bench_stages: %s\n", err.message);
    worker_close(worker, NULL);
    if (timed.inner) timed.inner->ops->destroy(timed.inner);
    expert_store_destroy(store);
    gguf_close(file);
    return status == LM_OK ? 0 : 1;
}
