#include "coordinator/server/metrics.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BUCKET = 24, MAX_HTTP_SERIES = 512 };

/* ---- what there is ---- */

struct counter_info {
    const char *name, *label, *value; /* label NULL: none */
    const char *help;
};

#define FINISHED "lean_requests_finished_total", "reason"
#define FINISHED_HELP "Answers that ended, by reason."
#define REJECTED "lean_requests_rejected_total", "cause"
#define REJECTED_HELP "Requests that were not answered, by cause."

static const struct counter_info counter_infos[METRICS_N_COUNTER] = {
    [METRICS_FINISHED_STOP] = {FINISHED, "stop", FINISHED_HELP},
    [METRICS_FINISHED_LENGTH] = {FINISHED, "length", FINISHED_HELP},
    [METRICS_FINISHED_TOOL_CALLS] = {FINISHED, "tool_calls", FINISHED_HELP},
    [METRICS_FINISHED_ABORT] = {FINISHED, "abort", FINISHED_HELP},
    [METRICS_FINISHED_ERROR] = {FINISHED, "error", FINISHED_HELP},
    [METRICS_REJECTED_QUEUE_FULL] = {REJECTED, "queue_full", REJECTED_HELP},
    [METRICS_REJECTED_QUEUE_TIMEOUT] = {REJECTED, "queue_timeout", REJECTED_HELP},
    [METRICS_REJECTED_TOO_LARGE] = {REJECTED, "too_large", REJECTED_HELP},
    [METRICS_REJECTED_CONTEXT] = {REJECTED, "context", REJECTED_HELP},
    [METRICS_REJECTED_INVALID] = {REJECTED, "invalid", REJECTED_HELP},
    [METRICS_REJECTED_LOADING] = {REJECTED, "loading", REJECTED_HELP},
    [METRICS_REJECTED_SHUTTING_DOWN] = {REJECTED, "shutting_down", REJECTED_HELP},
    [METRICS_REJECTED_AUTH] = {REJECTED, "auth", REJECTED_HELP},
    [METRICS_MODEL_NAME_UNKNOWN] = {"lean_model_name_unknown_total", NULL, NULL,
                                    "Requests that named a model that is not served."},
    [METRICS_PROMPT_TOKENS] = {"lean_prompt_tokens_total", NULL, NULL, "Prompt tokens."},
    [METRICS_PROMPT_TOKENS_CACHED] = {"lean_prompt_tokens_cached_total", NULL, NULL,
                                      "Prompt tokens whose computation was skipped."},
    [METRICS_GENERATION_TOKENS] = {"lean_generation_tokens_total", NULL, NULL, "Sampled tokens."},
    [METRICS_REASONING_TOKENS] = {"lean_reasoning_tokens_total", NULL, NULL,
                                  "Sampled tokens of reasoning."},
    [METRICS_PREFIX_QUERIES] = {"lean_prefix_cache_queries_total", NULL, NULL,
                                "Prompt tokens looked up in the prefix cache."},
    [METRICS_PREFIX_HITS] = {"lean_prefix_cache_hits_total", NULL, NULL,
                             "Prompt tokens found in the prefix cache."},
    [METRICS_EXPERTS_SHARED] = {"lean_expert_lookups_shared_total", "rank", "0",
                                "Lookups that requests left to another one of the same step."},
};

struct histogram_info {
    const char *name, *label, *value;
    const char *help;
    double bound[MAX_BUCKET]; /* rising; 0 ends them */
};

#define FIRST_TOKEN_BOUNDS                                                                         \
    {                                                                                              \
        0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640                \
    }
#define TOKEN_BOUNDS                                                                               \
    {                                                                                              \
        0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1,     \
            2.5, 5                                                                                 \
    }
#define REQUEST_BOUNDS                                                                             \
    {                                                                                              \
        0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560                 \
    }
#define COUNT_BOUNDS                                                                               \
    {                                                                                              \
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, \
            500000, 1000000                                                                        \
    }
#define STEP_BOUNDS                                                                                \
    {                                                                                              \
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192                              \
    }
#define GRAMMAR_BOUNDS                                                                             \
    {                                                                                              \
        1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1   \
    }

static const struct histogram_info histogram_infos[METRICS_N_HISTOGRAM] = {
    [METRICS_TIME_TO_FIRST_TOKEN] = {"lean_time_to_first_token_seconds", NULL, NULL,
                                     "From acceptance to the first token.", FIRST_TOKEN_BOUNDS},
    [METRICS_INTER_TOKEN_LATENCY] = {"lean_inter_token_latency_seconds", NULL, NULL,
                                     "Gaps between the tokens of a sequence.", TOKEN_BOUNDS},
    [METRICS_TIME_PER_OUTPUT_TOKEN] = {"lean_time_per_output_token_seconds", NULL, NULL,
                                       "Mean gap of a request.", TOKEN_BOUNDS},
    [METRICS_E2E_LATENCY] = {"lean_e2e_request_latency_seconds", NULL, NULL,
                             "From acceptance to the end.", REQUEST_BOUNDS},
    [METRICS_QUEUE_TIME] = {"lean_request_queue_seconds", NULL, NULL, "Time in the queue.",
                            REQUEST_BOUNDS},
    [METRICS_PREFILL_TIME] = {"lean_request_prefill_seconds", NULL, NULL,
                              "Time of reading the prompt.", REQUEST_BOUNDS},
    [METRICS_DECODE_TIME] = {"lean_request_decode_seconds", NULL, NULL, "Time of generating.",
                             REQUEST_BOUNDS},
    [METRICS_REQUEST_PROMPT_TOKENS] = {"lean_request_prompt_tokens", NULL, NULL,
                                       "Prompt tokens of a request.", COUNT_BOUNDS},
    [METRICS_REQUEST_GENERATION_TOKENS] = {"lean_request_generation_tokens", NULL, NULL,
                                           "Generated tokens of a request.", COUNT_BOUNDS},
    [METRICS_REQUEST_MAX_TOKENS] = {"lean_request_max_tokens", NULL, NULL,
                                    "Tokens that a request allows.", COUNT_BOUNDS},
    [METRICS_STEP_PREFILL] = {"lean_step_seconds", "phase", "prefill", "Time of a step.",
                              TOKEN_BOUNDS},
    [METRICS_STEP_DECODE] = {"lean_step_seconds", "phase", "decode", "Time of a step.",
                             TOKEN_BOUNDS},
    [METRICS_STEP_MIXED] = {"lean_step_seconds", "phase", "mixed", "Time of a step.", TOKEN_BOUNDS},
    [METRICS_STEP_TOKENS] = {"lean_step_tokens", NULL, NULL, "Tokens in a step.", STEP_BOUNDS},
    [METRICS_GRAMMAR_COMPILE] = {"lean_grammar_compile_seconds", NULL, NULL,
                                 "Time of compiling a grammar.", GRAMMAR_BOUNDS},
    [METRICS_GRAMMAR_MASK] = {"lean_grammar_mask_seconds", NULL, NULL,
                              "Time of a mask of allowed tokens.", GRAMMAR_BOUNDS},
};

/* ---- counting ---- */

struct histogram {
    atomic_uint_fast64_t bucket[MAX_BUCKET + 1]; /* not cumulative; the last one is +Inf */
    _Atomic double sum;
};

struct http_series {
    const char *route;
    int status;
    uint64_t n;
};

struct metrics {
    atomic_uint_fast64_t counter[METRICS_N_COUNTER];
    struct histogram histogram[METRICS_N_HISTOGRAM];
    pthread_mutex_t lock;
    struct http_series http[MAX_HTTP_SERIES]; /* [n_http], guarded by lock */
    size_t n_http;
};

enum lm_status metrics_create(struct metrics **out, struct lm_error *err)
{
    struct metrics *metrics = calloc(1, sizeof(*metrics));
    if (!metrics) return lm_fail(err, LM_E_NO_MEM, "no memory for metrics");
    pthread_mutex_init(&metrics->lock, NULL);
    *out = metrics;
    return LM_OK;
}

void metrics_destroy(struct metrics *metrics)
{
    if (!metrics) return;
    pthread_mutex_destroy(&metrics->lock);
    free(metrics);
}

void metrics_add(struct metrics *metrics, enum metrics_counter counter, uint64_t n)
{
    if (metrics) atomic_fetch_add_explicit(&metrics->counter[counter], n, memory_order_relaxed);
}

void metrics_observe(struct metrics *metrics, enum metrics_histogram histogram, double value)
{
    if (!metrics) return;
    const double *bound = histogram_infos[histogram].bound;
    struct histogram *into = &metrics->histogram[histogram];
    size_t i = 0;
    while (i < MAX_BUCKET && bound[i] > 0 && value > bound[i])
        i++;
    if (i < MAX_BUCKET && !(bound[i] > 0)) i = MAX_BUCKET;
    atomic_fetch_add_explicit(&into->bucket[i], 1, memory_order_relaxed);
    double sum = atomic_load_explicit(&into->sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&into->sum, &sum, sum + value,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

void metrics_count_http(struct metrics *metrics, const char *route, int status)
{
    pthread_mutex_lock(&metrics->lock);
    size_t i = 0;
    const int shown = status ? status : 200;
    while (i < metrics->n_http &&
           (strcmp(metrics->http[i].route, route) || metrics->http[i].status != shown))
        i++;
    if (i == metrics->n_http && i < MAX_HTTP_SERIES)
        metrics->http[metrics->n_http++] = (struct http_series){route, shown, 0};
    if (i < MAX_HTTP_SERIES && status) metrics->http[i].n++;
    pthread_mutex_unlock(&metrics->lock);
}

/* ---- writing ---- */

struct writer {
    struct byte_buffer *out;
    const struct metrics_state *state;
    const char *model_label; /* "model", or another server's */
    const char *last_name;   /* whose head has been written */
};

static void put_label(struct writer *writer, const char *name, const char *value)
{
    byte_buffer_printf(writer->out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"') byte_buffer_put(writer->out, "\\", 1);
        if (*value == '\n')
            byte_buffer_put_text(writer->out, "\\n");
        else
            byte_buffer_put(writer->out, value, 1);
    }
    byte_buffer_put_text(writer->out, "\"");
}

/* HELP and TYPE, once for neighbours of one name. */
static void put_head(struct writer *writer, const char *name, const char *type, const char *help)
{
    if (writer->last_name && !strcmp(writer->last_name, name)) return;
    writer->last_name = name;
    byte_buffer_printf(writer->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* The series' name and labels, as far as a further label may follow. */
static void put_series(struct writer *writer, const char *name, const char *suffix,
                       const char *label, const char *value)
{
    byte_buffer_printf(writer->out, "%s%s{", name, suffix);
    put_label(writer, writer->model_label, writer->state->model);
    if (strcmp(writer->model_label, "model")) byte_buffer_put_text(writer->out, ",engine=\"0\"");
    if (!label) return;
    byte_buffer_put_text(writer->out, ",");
    put_label(writer, label, value);
}

static void put_number(struct writer *writer, const char *name, const char *label,
                       const char *value, double number)
{
    put_series(writer, name, "", label, value);
    byte_buffer_printf(writer->out, "} %.17g\n", number);
}

static void put_gauge(struct writer *writer, const char *name, const char *help, double number)
{
    put_head(writer, name, "gauge", help);
    put_number(writer, name, NULL, NULL, number);
}

/* A counter that is kept elsewhere. */
static void put_count(struct writer *writer, const char *name, const char *help, const char *label,
                      const char *value, double number)
{
    put_head(writer, name, "counter", help);
    put_number(writer, name, label, value, number);
}

static void put_histogram(struct writer *writer, const struct metrics *metrics,
                          enum metrics_histogram which, const char *name)
{
    const struct histogram_info *info = &histogram_infos[which];
    const struct histogram *histogram = &metrics->histogram[which];
    uint64_t n = 0;
    put_head(writer, name, "histogram", info->help);
    for (size_t i = 0; i <= MAX_BUCKET; i++) {
        const bool last = i == MAX_BUCKET;
        n += atomic_load_explicit(&histogram->bucket[i], memory_order_relaxed);
        if (!last && !(info->bound[i] > 0)) continue;
        put_series(writer, name, "_bucket", info->label, info->value);
        if (last)
            byte_buffer_printf(writer->out, ",le=\"+Inf\"} %llu\n", (unsigned long long)n);
        else
            byte_buffer_printf(writer->out, ",le=\"%g\"} %llu\n", info->bound[i],
                               (unsigned long long)n);
    }
    put_series(writer, name, "_sum", info->label, info->value);
    byte_buffer_printf(writer->out, "} %.17g\n",
                       atomic_load_explicit(&histogram->sum, memory_order_relaxed));
    put_series(writer, name, "_count", info->label, info->value);
    byte_buffer_printf(writer->out, "} %llu\n", (unsigned long long)n);
}

static double count_of(const struct metrics *metrics, enum metrics_counter counter)
{
    return (double)atomic_load_explicit(&metrics->counter[counter], memory_order_relaxed);
}

static void put_http(struct writer *writer, struct metrics *metrics)
{
    put_head(writer, "lean_http_requests_total", "counter", "Requests by route and status.");
    pthread_mutex_lock(&metrics->lock);
    for (size_t i = 0; i < metrics->n_http; i++) {
        const struct http_series *series = &metrics->http[i];
        put_series(writer, "lean_http_requests_total", "", "route", series->route);
        byte_buffer_printf(writer->out, ",status=\"%d\"} %llu\n", series->status,
                           (unsigned long long)series->n);
    }
    pthread_mutex_unlock(&metrics->lock);
}

/* ---- ranks ---- */

/* What is said of every rank: the sum of some numbers of struct metrics_rank. */
struct rank_series {
    const char *name, *type, *help;
    const char *label, *value, *label2, *value2; /* besides the rank's, or NULL */
    enum { RANK_COUNT, RANK_REAL } kind;         /* uint64_t or double */
    size_t n_at, at[4];                          /* where they are */
};

#define AT(member) offsetof(struct metrics_rank, member)
#define OF(...) .n_at = sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t), .at = {__VA_ARGS__}

static const struct rank_series expert_series[] = {
    {"lean_expert_cache_hits_total", "counter", "Experts found in memory.",
     OF(AT(experts.decode.n_hit), AT(experts.prefill.n_hit), AT(experts.device.decode.n_hit),
        AT(experts.device.prefill.n_hit))},
    {"lean_expert_cache_misses_total", "counter", "Experts that were not, also those on their way.",
     OF(AT(experts.decode.n_joined), AT(experts.decode.n_miss), AT(experts.prefill.n_joined),
        AT(experts.prefill.n_miss))},
#define LOOKUPS(phase, member, result)                                                             \
    {                                                                                              \
        "lean_expert_lookups_total", "counter",                                                    \
            "Experts that a step and layer needed, by how they were found: resident, on their "    \
            "way, or "                                                                             \
            "neither.",                                                                            \
            "phase", phase, "result", result, OF(AT(experts.member))                               \
    }
    LOOKUPS("decode", decode.n_hit, "hit"),
    LOOKUPS("decode", decode.n_joined, "joined"),
    LOOKUPS("decode", decode.n_miss, "miss"),
    LOOKUPS("prefill", prefill.n_hit, "hit"),
    LOOKUPS("prefill", prefill.n_joined, "joined"),
    LOOKUPS("prefill", prefill.n_miss, "miss"),
#undef LOOKUPS
    {"lean_expert_miss_bytes_total", "counter", "Size of the experts that were missed.", "phase",
     "decode", OF(AT(experts.decode.miss_bytes))},
    {"lean_expert_miss_bytes_total", "counter", "", "phase", "prefill",
     OF(AT(experts.prefill.miss_bytes))},
    {"lean_expert_wait_seconds_total", "counter", "Time that steps waited for experts to be read.",
     "phase", "decode", .kind = RANK_REAL, OF(AT(experts.decode.wait_s))},
    {"lean_expert_wait_seconds_total", "counter", "", "phase", "prefill", .kind = RANK_REAL,
     OF(AT(experts.prefill.wait_s))},
    {"lean_expert_reads_total", "counter", "Experts that were read, by what for.", "priority",
     "demand", OF(AT(experts.n_read[METRICS_READ_DEMAND]))},
    {"lean_expert_reads_total", "counter", "", "priority", "speculative",
     OF(AT(experts.n_read[METRICS_READ_SPECULATIVE]))},
    {"lean_expert_reads_total", "counter", "", "priority", "background",
     OF(AT(experts.n_read[METRICS_READ_BACKGROUND]))},
    {"lean_expert_read_bytes_total", "counter", "Bytes that were read, by what for.", "priority",
     "demand", OF(AT(experts.read_bytes[METRICS_READ_DEMAND]))},
    {"lean_expert_read_bytes_total", "counter", "", "priority", "speculative",
     OF(AT(experts.read_bytes[METRICS_READ_SPECULATIVE]))},
    {"lean_expert_read_bytes_total", "counter", "", "priority", "background",
     OF(AT(experts.read_bytes[METRICS_READ_BACKGROUND]))},
    {"lean_expert_bytes_loaded_total", "counter",
     "Bytes of experts that were read: from memory to devices, from the disk.", "source", "ram",
     OF(AT(experts.device.decode.copied_bytes), AT(experts.device.prefill.copied_bytes),
        AT(experts.device.background_bytes))},
    {"lean_expert_bytes_loaded_total", "counter", "", "source", "disk",
     OF(AT(experts.read_bytes[METRICS_READ_DEMAND]),
        AT(experts.read_bytes[METRICS_READ_SPECULATIVE]),
        AT(experts.read_bytes[METRICS_READ_BACKGROUND]))},
    {"lean_expert_bytes_loaded_total", "counter", "", "source", .value = "peer"},
    {"lean_expert_read_busy_seconds_total", "counter",
     "Time with at least one read running; bytes read over it are the disk's rate.",
     .kind = RANK_REAL, OF(AT(experts.busy_s))},
    {"lean_expert_disk_bytes_per_second", "gauge",
     "What a probe at the start found; 0: there was none.", "access", "direct", .kind = RANK_REAL,
     OF(AT(experts.direct_rate))},
    {"lean_expert_disk_bytes_per_second", "gauge", "", "access", "buffered", .kind = RANK_REAL,
     OF(AT(experts.buffered_rate))},
    {"lean_expert_predicted_total", "counter", "Experts named before their router ran.",
     OF(AT(experts.n_predicted))},
    {"lean_expert_predicted_chosen_total", "counter", "Experts chosen where some had been named.",
     OF(AT(experts.n_chosen))},
    {"lean_expert_predicted_recalled_total", "counter", "Experts chosen that had been named.",
     OF(AT(experts.n_recalled))},
    {"lean_expert_prefetches_total", "counter",
     "Experts read on a prediction, and of them used, or evicted before.", "result", "read",
     OF(AT(experts.n_prefetched))},
    {"lean_expert_prefetches_total", "counter", "", "result", "used",
     OF(AT(experts.n_prefetch_used))},
    {"lean_expert_prefetches_total", "counter", "", "result", "wasted",
     OF(AT(experts.n_prefetch_wasted))},
    {"lean_expert_prefetch_bytes_total", "counter", "Their bytes.", "result", "read",
     OF(AT(experts.prefetched_bytes))},
    {"lean_expert_prefetch_bytes_total", "counter", "", "result", "used",
     OF(AT(experts.prefetch_used_bytes))},
    {"lean_expert_evictions_total", "counter", "Experts that made room.",
     OF(AT(experts.n_evicted))},
    {"lean_expert_remisses_total", "counter", "Experts missed soon after they made room.",
     OF(AT(experts.n_remiss))},
    {"lean_expert_preloads_total", "counter", "Experts read on account of a routing profile.",
     OF(AT(experts.n_preloaded))},
    {"lean_expert_slots", "gauge", "Places for experts, by state.", "state", "resident",
     OF(AT(experts.n_resident))},
    {"lean_expert_slots", "gauge", "", "state", "reading", OF(AT(experts.n_reading))},
    {"lean_expert_slots", "gauge", "", "state", "free", OF(AT(experts.n_free))},
#define OF_DEVICE(name, text, phase, result, kind_of, member)                                      \
    {                                                                                              \
        name, "counter", text, "phase", phase, "result", result, .kind = kind_of,                  \
                                                                 OF(AT(experts.device.member))     \
    }
#define DEVICE_LOOKUPS(phase, result, member)                                                      \
    OF_DEVICE("lean_device_expert_lookups_total",                                                  \
              "Experts that a step and layer of a device with slots needed: there, computed on "   \
              "the CPU, or copied there.",                                                         \
              phase, result, RANK_COUNT, member)
    DEVICE_LOOKUPS("decode", "hit", decode.n_hit),
    DEVICE_LOOKUPS("decode", "cpu", decode.n_cpu),
    DEVICE_LOOKUPS("decode", "copied", decode.n_copied),
    DEVICE_LOOKUPS("prefill", "hit", prefill.n_hit),
    DEVICE_LOOKUPS("prefill", "cpu", prefill.n_cpu),
    DEVICE_LOOKUPS("prefill", "copied", prefill.n_copied),
#undef DEVICE_LOOKUPS
#define DEVICE_BYTES(phase, result, member)                                                        \
    OF_DEVICE("lean_device_expert_bytes_total", "Size of these experts.", phase, result,           \
              RANK_COUNT, member)
    DEVICE_BYTES("decode", "hit", decode.hit_bytes),
    DEVICE_BYTES("decode", "cpu", decode.cpu_bytes),
    DEVICE_BYTES("decode", "copied", decode.copied_bytes),
    DEVICE_BYTES("prefill", "hit", prefill.hit_bytes),
    DEVICE_BYTES("prefill", "cpu", prefill.cpu_bytes),
    DEVICE_BYTES("prefill", "copied", prefill.copied_bytes),
#undef DEVICE_BYTES
#undef OF_DEVICE
    {"lean_device_expert_wait_seconds_total", "counter",
     "Time that steps waited for the device to choose or copy experts.", "phase", "decode",
     .kind = RANK_REAL, OF(AT(experts.device.decode.wait_s))},
    {"lean_device_expert_wait_seconds_total", "counter", "", "phase", "prefill", .kind = RANK_REAL,
     OF(AT(experts.device.prefill.wait_s))},
    {"lean_device_expert_cpu_seconds_total", "counter",
     "Time that the CPU computed experts of a device's layers.", "phase", "decode",
     .kind = RANK_REAL, OF(AT(experts.device.decode.cpu_s))},
    {"lean_device_expert_cpu_seconds_total", "counter", "", "phase", "prefill", .kind = RANK_REAL,
     OF(AT(experts.device.prefill.cpu_s))},
    {"lean_device_expert_background_total", "counter",
     "Experts copied to devices before they were chosen, by why.", "reason", "use",
     OF(AT(experts.device.n_admitted))},
    {"lean_device_expert_background_total", "counter", "", "reason", "profile",
     OF(AT(experts.device.n_preloaded))},
    {"lean_device_expert_background_total", "counter", "", "reason", "prompt",
     OF(AT(experts.device.n_warmed))},
    {"lean_device_expert_background_total", "counter", "", "reason", "prediction",
     OF(AT(experts.device.n_predicted))},
    {"lean_device_expert_predicted_total", "counter",
     "Experts of devices named before their router ran.", OF(AT(experts.device.n_named))},
    {"lean_device_expert_predicted_chosen_total", "counter",
     "Experts of devices chosen where some had been named.", OF(AT(experts.device.n_chosen))},
    {"lean_device_expert_predicted_recalled_total", "counter",
     "Experts of devices chosen that had been named.", OF(AT(experts.device.n_recalled))},
    {"lean_device_expert_prefetches_total", "counter",
     "Experts copied to devices on a prediction, and of them used, or evicted before.", "result",
     "copied", OF(AT(experts.device.n_predicted))},
    {"lean_device_expert_prefetches_total", "counter", "", "result", "used",
     OF(AT(experts.device.n_predicted_used))},
    {"lean_device_expert_prefetches_total", "counter", "", "result", "wasted",
     OF(AT(experts.device.n_predicted_wasted))},
    {"lean_device_expert_prefetch_bytes_total", "counter", "Their bytes.", "result", "copied",
     OF(AT(experts.device.predicted_bytes))},
    {"lean_device_expert_prefetch_bytes_total", "counter", "", "result", "used",
     OF(AT(experts.device.predicted_used_bytes))},
    {"lean_device_expert_evictions_total", "counter", "Experts that left a device's slots.",
     OF(AT(experts.device.n_evicted))},
    {"lean_device_expert_lost_total", "counter",
     "Of these, on devices that share experts out with memory, those that memory had not.",
     OF(AT(experts.device.n_lost))},
    {"lean_device_expert_write_backs_total", "counter",
     "Experts copied from devices to memory before they left.",
     OF(AT(experts.device.n_written_back))},
    {"lean_device_expert_write_back_bytes_total", "counter", "Their bytes.",
     OF(AT(experts.device.written_back_bytes))},
    {"lean_device_expert_slots", "gauge", "Slots for experts on devices.", "state", "resident",
     OF(AT(experts.device.n_resident))},
    {"lean_device_expert_slots", "gauge", "", "state", "free", OF(AT(experts.device.n_free))},
    {"lean_device_memory_bytes", "gauge",
     "Memory of devices that have slots, of slots and of keys and values, which exchange it.",
     "use", "experts", OF(AT(experts.device.slot_bytes))},
    {"lean_device_memory_bytes", "gauge", "", "use", "kv", OF(AT(experts.device.kv_bytes))},
    {"lean_device_memory_exchanges_total", "counter",
     "Times that memory of a device went from experts to keys and values, or back.", "to", "kv",
     OF(AT(experts.device.n_to_kv))},
    {"lean_device_memory_exchanges_total", "counter", "", "to", "experts",
     OF(AT(experts.device.n_to_experts))},
};

static const struct rank_series own_series[] = {
    {"lean_rank_memory_bytes", "gauge",
     "Memory that a rank takes at most; cache: of rank 0's kv, what kept states hold now.", "kind",
     "weights", OF(AT(weight_bytes))},
    {"lean_rank_memory_bytes", "gauge", "", "kind", "kv", OF(AT(kv_bytes))},
    {"lean_rank_memory_bytes", "gauge", "", "kind", "scratch", OF(AT(scratch_bytes))},
    {"lean_rank_memory_bytes", "gauge", "", "kind", "cache", OF(AT(cache_bytes))},
    {"lean_rank_wait_seconds_total", "counter", "Time blocked on other ranks.", .kind = RANK_REAL,
     OF(AT(send_wait_s), AT(receive_wait_s))},
};

/* What ranks pass on is between two: not by rank. */
static const struct rank_series transfer_series[] = {
    {"lean_collective_seconds_total", "counter", "Time that ranks waited for transfers.", "op",
     "send", .kind = RANK_REAL, OF(AT(send_wait_s))},
    {"lean_collective_seconds_total", "counter", "", "op", "recv", .kind = RANK_REAL,
     OF(AT(receive_wait_s))},
    {"lean_collective_bytes_total", "counter", "Bytes that ranks passed on.", "op", "send",
     OF(AT(sent_bytes))},
    {"lean_collective_bytes_total", "counter", "", "op", "recv", OF(AT(received_bytes))},
};

#undef OF
#undef AT

static uint32_t n_rank_of(const struct metrics_state *state)
{
    return state->rank ? state->n_rank : 1;
}

static const struct metrics_rank *rank_of(const struct metrics_state *state, uint32_t i)
{
    static const struct metrics_rank nothing;
    return state->rank ? &state->rank[i] : &nothing;
}

static double value_of(const struct rank_series *series, const struct metrics_rank *rank)
{
    double sum = 0;
    for (size_t i = 0; i < series->n_at; i++) {
        const char *const at = (const char *)rank + series->at[i];
        sum += series->kind == RANK_REAL ? *(const double *)(const void *)at
                                         : (double)*(const uint64_t *)(const void *)at;
    }
    return sum;
}

/* A number of a rank with one more label or two; a NULL value of a label leaves it out. */
static void put_of_rank(struct writer *writer, uint32_t rank, const char *name, const char *label,
                        const char *value, const char *label2, const char *value2, double number)
{
    char text[16];
    snprintf(text, sizeof(text), "%u", rank);
    put_series(writer, name, "", "rank", text);
    if (value) {
        byte_buffer_put_text(writer->out, ",");
        put_label(writer, label, value);
    }
    if (value2) {
        byte_buffer_put_text(writer->out, ",");
        put_label(writer, label2, value2);
    }
    byte_buffer_printf(writer->out, "} %.17g\n", number);
}

static void put_by_rank(struct writer *writer, const struct rank_series *series, size_t n)
{
    for (const struct rank_series *end = series + n; series < end; series++) {
        put_head(writer, series->name, series->type, series->help);
        for (uint32_t i = 0; i < n_rank_of(writer->state); i++)
            put_of_rank(writer, i, series->name, series->label, series->value, series->label2,
                        series->value2, value_of(series, rank_of(writer->state, i)));
    }
}

static void put_sums(struct writer *writer, const struct rank_series *series, size_t n)
{
    for (const struct rank_series *end = series + n; series < end; series++) {
        double sum = 0;
        for (uint32_t i = 0; i < n_rank_of(writer->state); i++)
            sum += value_of(series, rank_of(writer->state, i));
        put_head(writer, series->name, series->type, series->help);
        put_number(writer, series->name, series->label, series->value, sum);
    }
}

static void put_layers(struct writer *writer)
{
    static const char name[] = "lean_expert_layer_lookups_total";
    for (uint32_t rank = 0; rank < n_rank_of(writer->state); rank++) {
        const struct metrics_experts *experts = &rank_of(writer->state, rank)->experts;
        for (uint32_t i = 0; i < experts->n_layer; i++) {
            const struct metrics_expert_layer *layer = &experts->layer[i];
            const struct {
                const char *result;
                uint64_t n;
            } found[] = {
                {"hit", layer->n_hit}, {"joined", layer->n_joined}, {"miss", layer->n_miss}};
            char number[16];
            snprintf(number, sizeof(number), "%u", layer->layer);
            put_head(writer, name, "counter", "Experts that a layer needed.");
            for (size_t k = 0; k < 3; k++)
                put_of_rank(writer, rank, name, "layer", number, "result", found[k].result,
                            (double)found[k].n);
        }
    }
}

static void put_ranks(struct writer *writer)
{
    put_by_rank(writer, expert_series, sizeof(expert_series) / sizeof(expert_series[0]));
    put_layers(writer);
    put_gauge(writer, "lean_expert_load_imbalance_ratio",
              "Largest over mean tokens per rank; every rank has all.", 1);
    put_head(writer, "lean_rank_up", "gauge", "Whether a rank lives.");
    for (uint32_t i = 0; i < n_rank_of(writer->state); i++)
        put_of_rank(writer, i, "lean_rank_up", NULL, NULL, NULL, NULL, 1);
    put_by_rank(writer, own_series, sizeof(own_series) / sizeof(own_series[0]));
    put_sums(writer, transfer_series, sizeof(transfer_series) / sizeof(transfer_series[0]));
}

/* ---- the rest ---- */

static void put_state(struct writer *writer, const struct metrics_state *state)
{
    put_head(writer, "lean_build_info", "gauge", "What runs; always 1.");
    put_series(writer, "lean_build_info", "", "version", LEAN_VERSION);
    byte_buffer_put_text(writer->out, ",");
    put_label(writer, "commit", LEAN_COMMIT);
    byte_buffer_printf(writer->out, ",ranks=\"%u\",", state->n_rank);
    put_label(writer, "quantization", state->quantization);
    byte_buffer_put_text(writer->out, "} 1\n");
    put_gauge(writer, "lean_model_load_seconds", "Time that loading the model took.",
              state->load_s);
    put_gauge(writer, "lean_requests_running", "Sequences that run.", state->n_running);
    put_gauge(writer, "lean_requests_waiting", "Sequences that wait.", state->n_waiting);
    put_gauge(writer, "lean_kv_cache_usage_ratio", "Used part of the KV cache.", state->kv_usage);
    put_gauge(writer, "lean_kv_cache_tokens", "Tokens in the KV cache.", (double)state->kv_tokens);
    put_gauge(writer, "lean_state_checkpoints", "Snapshots of states that cannot be cut.",
              (double)state->n_checkpoint);
    put_gauge(writer, "lean_state_checkpoint_bytes", "Their size.",
              (double)state->checkpoint_bytes);
    static const char evictions[] = "lean_cache_evictions_total";
    put_count(writer, evictions, "What made room.", "kind", "kv", (double)state->kv_evictions);
    put_count(writer, evictions, "", "kind", "checkpoint", (double)state->checkpoint_evictions);
    put_count(writer, "lean_preemptions_total", "Sequences that were set aside.", NULL, NULL,
              (double)state->preemptions);
    put_ranks(writer);
    put_count(writer, "lean_spec_draft_tokens_total", "Drafted tokens.", NULL, NULL,
              (double)state->spec_drafted);
    put_count(writer, "lean_spec_accepted_tokens_total", "Drafted tokens that were right.", NULL,
              NULL, (double)state->spec_accepted);
    put_count(writer, "lean_spec_drafts_total", "Drafts.", NULL, NULL, (double)state->spec_drafts);
}

/* Resident bytes and open descriptors of this process, CPU seconds, start in Unix seconds. */
static void put_process(struct writer *writer)
{
    unsigned long resident = 0, user = 0, system = 0;
    unsigned long long start = 0;
    double uptime = 0;
    FILE *file = fopen("/proc/self/stat", "re");
    char text[1024] = "";
    if (file) {
        const size_t n = fread(text, 1, sizeof(text) - 1, file);
        text[n] = '\0';
        fclose(file);
    }
    const char *fields = strrchr(text, ')'); /* the name may hold anything */
    if (fields)
        sscanf(fields + 1,
               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d %*d %llu "
               "%*u %lu",
               &user, &system, &start, &resident);
    if ((file = fopen("/proc/uptime", "re"))) {
        if (fscanf(file, "%lf", &uptime) != 1) uptime = 0;
        fclose(file);
    }
    const double ticks = (double)sysconf(_SC_CLK_TCK);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const double started_s =
        (double)now.tv_sec + (double)now.tv_nsec / 1e9 - (uptime - (double)start / ticks);
    size_t n_open = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder && readdir(folder))
        n_open++;
    if (folder) closedir(folder);
    put_gauge(writer, "process_resident_memory_bytes", "Resident memory.",
              (double)resident * (double)sysconf(_SC_PAGESIZE));
    put_count(writer, "process_cpu_seconds_total", "CPU time.", NULL, NULL,
              (double)(user + system) / ticks);
    put_gauge(writer, "process_open_fds", "Open descriptors.", n_open > 3 ? (double)n_open - 3 : 0);
    put_gauge(writer, "process_start_time_seconds", "Start, Unix time.", started_s);
}

static void put_vllm(struct writer *writer, struct metrics *metrics,
                     const struct metrics_state *state)
{
    static const struct {
        enum metrics_histogram which;
        const char *name;
    } histograms[] = {
        {METRICS_TIME_TO_FIRST_TOKEN, "vllm:time_to_first_token_seconds"},
        {METRICS_INTER_TOKEN_LATENCY, "vllm:inter_token_latency_seconds"},
        {METRICS_TIME_PER_OUTPUT_TOKEN, "vllm:time_per_output_token_seconds"},
        {METRICS_E2E_LATENCY, "vllm:e2e_request_latency_seconds"},
        {METRICS_QUEUE_TIME, "vllm:request_queue_time_seconds"},
        {METRICS_PREFILL_TIME, "vllm:request_prefill_time_seconds"},
        {METRICS_DECODE_TIME, "vllm:request_decode_time_seconds"},
        {METRICS_REQUEST_PROMPT_TOKENS, "vllm:request_prompt_tokens"},
        {METRICS_REQUEST_GENERATION_TOKENS, "vllm:request_generation_tokens"},
        {METRICS_STEP_TOKENS, "vllm:iteration_tokens_total"},
    };
    writer->model_label = "model_name";
    put_gauge(writer, "vllm:num_requests_running", "As lean_requests_running.", state->n_running);
    put_gauge(writer, "vllm:num_requests_waiting", "As lean_requests_waiting.", state->n_waiting);
    put_gauge(writer, "vllm:kv_cache_usage_perc", "As lean_kv_cache_usage_ratio.", state->kv_usage);
    put_count(writer, "vllm:prompt_tokens_total", "As lean_prompt_tokens_total.", NULL, NULL,
              count_of(metrics, METRICS_PROMPT_TOKENS));
    put_count(writer, "vllm:generation_tokens_total", "As lean_generation_tokens_total.", NULL,
              NULL, count_of(metrics, METRICS_GENERATION_TOKENS));
    for (int i = METRICS_FINISHED_STOP; i <= METRICS_FINISHED_ERROR; i++)
        put_count(writer, "vllm:request_success_total", "As lean_requests_finished_total.",
                  "finished_reason", counter_infos[i].value,
                  count_of(metrics, (enum metrics_counter)i));
    put_count(writer, "vllm:prefix_cache_queries_total", "As lean_prefix_cache_queries_total.",
              NULL, NULL, count_of(metrics, METRICS_PREFIX_QUERIES));
    put_count(writer, "vllm:prefix_cache_hits_total", "As lean_prefix_cache_hits_total.", NULL,
              NULL, count_of(metrics, METRICS_PREFIX_HITS));
    put_count(writer, "vllm:num_preemptions_total", "As lean_preemptions_total.", NULL, NULL,
              (double)state->preemptions);
    for (size_t i = 0; i < sizeof(histograms) / sizeof(histograms[0]); i++)
        put_histogram(writer, metrics, histograms[i].which, histograms[i].name);
    writer->model_label = "model";
}

static void put_llamacpp(struct writer *writer, struct metrics *metrics,
                         const struct metrics_state *state)
{
    const double n_prompt = count_of(metrics, METRICS_PROMPT_TOKENS),
                 n_generated = count_of(metrics, METRICS_GENERATION_TOKENS),
                 prompt_s = atomic_load(&metrics->histogram[METRICS_PREFILL_TIME].sum),
                 generated_s = atomic_load(&metrics->histogram[METRICS_DECODE_TIME].sum);
    put_count(writer, "llamacpp:prompt_tokens_total", "Prompt tokens.", NULL, NULL, n_prompt);
    put_count(writer, "llamacpp:prompt_seconds_total", "Time of reading prompts.", NULL, NULL,
              prompt_s);
    put_count(writer, "llamacpp:tokens_predicted_total", "Generated tokens.", NULL, NULL,
              n_generated);
    put_count(writer, "llamacpp:tokens_predicted_seconds_total", "Time of generating.", NULL, NULL,
              generated_s);
    put_gauge(writer, "llamacpp:prompt_tokens_seconds", "Mean speed of reading prompts.",
              prompt_s > 0 ? n_prompt / prompt_s : 0);
    put_gauge(writer, "llamacpp:predicted_tokens_seconds", "Mean speed of generating.",
              generated_s > 0 ? n_generated / generated_s : 0);
    put_gauge(writer, "llamacpp:requests_processing", "Sequences that run.", state->n_running);
    put_gauge(writer, "llamacpp:requests_deferred", "Sequences that wait.", state->n_waiting);
    put_count(writer, "llamacpp:n_decode_total", "Steps.", NULL, NULL, (double)state->n_step);
    put_gauge(writer, "llamacpp:n_busy_slots_per_decode", "Tokens in a step, on average.",
              state->n_step ? (double)state->n_step_token / (double)state->n_step : 0);
}

void metrics_write(struct metrics *metrics, const struct metrics_state *state, bool vllm,
                   bool llamacpp, struct byte_buffer *out)
{
    struct writer writer = {.out = out, .state = state, .model_label = "model"};
    put_http(&writer, metrics);
    for (size_t i = 0; i < METRICS_N_COUNTER; i++) {
        const struct counter_info *info = &counter_infos[i];
        put_count(&writer, info->name, info->help, info->label, info->value,
                  count_of(metrics, (enum metrics_counter)i));
    }
    for (size_t i = 0; i < METRICS_N_HISTOGRAM; i++)
        put_histogram(&writer, metrics, (enum metrics_histogram)i, histogram_infos[i].name);
    put_state(&writer, state);
    put_process(&writer);
    if (vllm) put_vllm(&writer, metrics, state);
    if (llamacpp) put_llamacpp(&writer, metrics, state);
}
