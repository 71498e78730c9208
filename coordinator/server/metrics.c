#include "coordinator/server/metrics.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
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

/* ---- paged experts ---- */

static uint64_t n_found(const struct metrics_lookups *a)
{
    return a->n_hit + a->n_joined + a->n_miss;
}

/* A number of all ranks together with one more label or two; a NULL value of a label leaves it out.
 */
static void put_expert(struct writer *writer, const char *name, const char *label,
                       const char *value, const char *label2, const char *value2, double number)
{
    put_series(writer, name, "", "rank", writer->state->n_rank > 1 ? "all" : "0");
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

static void put_expert_count(struct writer *writer, const char *name, const char *help,
                             uint64_t number)
{
    put_head(writer, name, "counter", help);
    put_expert(writer, name, NULL, NULL, NULL, NULL, (double)number);
}

static void put_lookups(struct writer *writer, const struct metrics_experts *experts)
{
    static const char *const phases[] = {"decode", "prefill"};
    static const char lookups[] = "lean_expert_lookups_total",
                      bytes[] = "lean_expert_miss_bytes_total",
                      wait[] = "lean_expert_wait_seconds_total";
    const struct metrics_lookups *const of_phase[] = {&experts->decode, &experts->prefill};
    put_head(
        writer, lookups, "counter",
        "Experts that a step and layer needed, by how they were found: resident, on their way, "
        "or neither.");
    for (size_t i = 0; i < 2; i++) {
        put_expert(writer, lookups, "phase", phases[i], "result", "hit",
                   (double)of_phase[i]->n_hit);
        put_expert(writer, lookups, "phase", phases[i], "result", "joined",
                   (double)of_phase[i]->n_joined);
        put_expert(writer, lookups, "phase", phases[i], "result", "miss",
                   (double)of_phase[i]->n_miss);
    }
    put_head(writer, bytes, "counter", "Size of the experts that were missed.");
    for (size_t i = 0; i < 2; i++)
        put_expert(writer, bytes, "phase", phases[i], NULL, NULL, (double)of_phase[i]->miss_bytes);
    put_head(writer, wait, "counter", "Time that steps waited for experts to be read.");
    for (size_t i = 0; i < 2; i++)
        put_expert(writer, wait, "phase", phases[i], NULL, NULL, of_phase[i]->wait_s);
}

static void put_layers(struct writer *writer, const struct metrics_experts *experts)
{
    static const char name[] = "lean_expert_layer_lookups_total";
    if (!experts->n_layer) return; /* a family without series is none */
    put_head(writer, name, "counter", "The same by layer.");
    for (uint32_t i = 0; i < experts->n_layer; i++) {
        const struct metrics_expert_layer *layer = &experts->layer[i];
        char number[16];
        snprintf(number, sizeof(number), "%u", layer->layer);
        put_expert(writer, name, "layer", number, "result", "hit", (double)layer->n_hit);
        put_expert(writer, name, "layer", number, "result", "joined", (double)layer->n_joined);
        put_expert(writer, name, "layer", number, "result", "miss", (double)layer->n_miss);
    }
}

static void put_reads(struct writer *writer, const struct metrics_experts *experts)
{
    static const char *const priorities[METRICS_N_READ] = {"demand", "speculative", "background"};
    static const char reads[] = "lean_expert_reads_total", bytes[] = "lean_expert_read_bytes_total",
                      busy[] = "lean_expert_read_busy_seconds_total",
                      rate[] = "lean_expert_disk_bytes_per_second",
                      loaded[] = "lean_expert_bytes_loaded_total";
    uint64_t n_byte = 0;
    put_head(writer, reads, "counter", "Experts that were read, by what for.");
    for (int i = 0; i < METRICS_N_READ; i++)
        put_expert(writer, reads, "priority", priorities[i], NULL, NULL,
                   (double)experts->n_read[i]);
    put_head(writer, bytes, "counter", "Bytes that were read, by what for.");
    for (int i = 0; i < METRICS_N_READ; i++) {
        put_expert(writer, bytes, "priority", priorities[i], NULL, NULL,
                   (double)experts->read_bytes[i]);
        n_byte += experts->read_bytes[i];
    }
    put_head(writer, loaded, "counter", "Bytes of experts that were read.");
    put_expert(writer, loaded, "source", "ram", NULL, NULL, 0);
    put_expert(writer, loaded, "source", "disk", NULL, NULL, (double)n_byte);
    put_expert(writer, loaded, "source", "peer", NULL, NULL, 0);
    put_head(writer, busy, "counter",
             "Time with at least one read running; bytes read over it are the disk's rate.");
    put_expert(writer, busy, NULL, NULL, NULL, NULL, experts->busy_s);
    put_head(writer, rate, "gauge", "What a probe at the start found; 0: there was none.");
    put_expert(writer, rate, "access", "direct", NULL, NULL, experts->direct_rate);
    put_expert(writer, rate, "access", "buffered", NULL, NULL, experts->buffered_rate);
}

static void put_prefetch(struct writer *writer, const struct metrics_experts *experts)
{
    static const char prefetches[] = "lean_expert_prefetches_total",
                      bytes[] = "lean_expert_prefetch_bytes_total";
    put_expert_count(writer, "lean_expert_predicted_total",
                     "Experts named before their router ran.", experts->n_predicted);
    put_expert_count(writer, "lean_expert_predicted_chosen_total",
                     "Experts chosen where some had been named.", experts->n_chosen);
    put_expert_count(writer, "lean_expert_predicted_recalled_total",
                     "Experts chosen that had been named.", experts->n_recalled);
    put_head(writer, prefetches, "counter",
             "Experts read on a prediction, and of them used, or evicted before.");
    put_expert(writer, prefetches, "result", "read", NULL, NULL, (double)experts->n_prefetched);
    put_expert(writer, prefetches, "result", "used", NULL, NULL, (double)experts->n_prefetch_used);
    put_expert(writer, prefetches, "result", "wasted", NULL, NULL,
               (double)experts->n_prefetch_wasted);
    put_head(writer, bytes, "counter", "Their bytes.");
    put_expert(writer, bytes, "result", "read", NULL, NULL, (double)experts->prefetched_bytes);
    put_expert(writer, bytes, "result", "used", NULL, NULL, (double)experts->prefetch_used_bytes);
}

static void put_experts(struct writer *writer, const struct metrics_experts *experts)
{
    static const char slots[] = "lean_expert_slots";
    const uint64_t n_hit = experts->decode.n_hit + experts->prefill.n_hit;
    put_expert_count(writer, "lean_expert_cache_hits_total", "Experts found in memory.", n_hit);
    put_expert_count(writer, "lean_expert_cache_misses_total",
                     "Experts that were not, also those on their way.",
                     n_found(&experts->decode) + n_found(&experts->prefill) - n_hit);
    put_lookups(writer, experts);
    put_layers(writer, experts);
    put_reads(writer, experts);
    put_prefetch(writer, experts);
    put_expert_count(writer, "lean_expert_evictions_total", "Experts that made room.",
                     experts->n_evicted);
    put_expert_count(writer, "lean_expert_remisses_total",
                     "Experts missed soon after they made room.", experts->n_remiss);
    put_expert_count(writer, "lean_expert_preloads_total",
                     "Experts read on account of a routing profile.", experts->n_preloaded);
    put_head(writer, slots, "gauge", "Places for experts, by state.");
    put_expert(writer, slots, "state", "resident", NULL, NULL, experts->n_resident);
    put_expert(writer, slots, "state", "reading", NULL, NULL, experts->n_reading);
    put_expert(writer, slots, "state", "free", NULL, NULL, experts->n_free);
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
    put_experts(writer, &state->experts);
    put_gauge(writer, "lean_expert_load_imbalance_ratio",
              "Largest over mean tokens per rank; one rank has all.", 1);
    put_head(writer, "lean_rank_up", "gauge", "Whether a rank lives.");
    put_number(writer, "lean_rank_up", "rank", "0", 1);
    const struct {
        const char *kind;
        uint64_t n;
    } memory[] = {{"weights", state->weight_bytes},
                  {"kv", state->kv_bytes},
                  {"scratch", state->scratch_bytes},
                  {"cache", state->cache_bytes}};
    put_head(writer, "lean_rank_memory_bytes", "gauge",
             "Memory that a rank takes at most; cache: of kv, what kept states hold now.");
    for (size_t i = 0; i < 4; i++) {
        put_series(writer, "lean_rank_memory_bytes", "", "rank", "0");
        byte_buffer_printf(writer->out, ",kind=\"%s\"} %llu\n", memory[i].kind,
                           (unsigned long long)memory[i].n);
    }
    put_count(writer, "lean_rank_wait_seconds_total", "Time blocked on other ranks.", "rank", "0",
              0);
    put_count(writer, "lean_collective_seconds_total", "Time in collectives.", "op", "send", 0);
    put_count(writer, "lean_collective_bytes_total", "Bytes in collectives.", "op", "send", 0);
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
