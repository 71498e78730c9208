/* Counters and histograms of a server, in Prometheus' text format.
 *
 * All series exist from the start with 0. What is a state and not an event (running sequences,
 * memory) is not kept here: metrics_write asks for it when it renders.
 *
 * Threads: all functions from any thread; adding and observing are a few relaxed atomic
 *          operations, and rendering takes no lock of the engine. */
#ifndef LEAN_COORDINATOR_SERVER_METRICS_H
#define LEAN_COORDINATOR_SERVER_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/byte_buffer.h"
#include "proto/base/error.h"
#include "proto/model/hparams.h"

struct metrics;

enum metrics_counter {
    METRICS_FINISHED_STOP, /* lean_requests_finished_total, per choice */
    METRICS_FINISHED_LENGTH,
    METRICS_FINISHED_TOOL_CALLS,
    METRICS_FINISHED_ABORT, /* cancelled, or the client left */
    METRICS_FINISHED_ERROR,
    METRICS_REJECTED_QUEUE_FULL, /* lean_requests_rejected_total; counted by the HTTP layer */
    METRICS_REJECTED_QUEUE_TIMEOUT,
    METRICS_REJECTED_TOO_LARGE,
    METRICS_REJECTED_CONTEXT,
    METRICS_REJECTED_INVALID,
    METRICS_REJECTED_LOADING,
    METRICS_REJECTED_SHUTTING_DOWN,
    METRICS_REJECTED_AUTH,
    METRICS_MODEL_NAME_UNKNOWN, /* a request named a model that is not served */
    METRICS_PROMPT_TOKENS,
    METRICS_PROMPT_TOKENS_CACHED,
    METRICS_GENERATION_TOKENS,
    METRICS_REASONING_TOKENS,
    METRICS_PREFIX_QUERIES, /* lean_prefix_cache_queries_total, in tokens */
    METRICS_PREFIX_HITS,
    METRICS_EXPERTS_SHARED, /* lookups that another sequence of the step had */
    METRICS_N_COUNTER
};

enum metrics_histogram {
    METRICS_TIME_TO_FIRST_TOKEN,
    METRICS_INTER_TOKEN_LATENCY,
    METRICS_TIME_PER_OUTPUT_TOKEN,
    METRICS_E2E_LATENCY,
    METRICS_QUEUE_TIME,
    METRICS_PREFILL_TIME,
    METRICS_DECODE_TIME,
    METRICS_REQUEST_PROMPT_TOKENS,
    METRICS_REQUEST_GENERATION_TOKENS,
    METRICS_REQUEST_MAX_TOKENS,
    METRICS_STEP_PREFILL, /* lean_step_seconds by phase */
    METRICS_STEP_DECODE,
    METRICS_STEP_MIXED,
    METRICS_STEP_TOKENS,
    METRICS_GRAMMAR_COMPILE,
    METRICS_GRAMMAR_MASK,
    METRICS_N_HISTOGRAM
};

enum lm_status metrics_create(struct metrics **out, struct lm_error *err);
void metrics_destroy(struct metrics *metrics); /* NULL is legal */

/* NULL for metrics is legal in both: nothing is counted. */
void metrics_add(struct metrics *metrics, enum metrics_counter counter, uint64_t n);
void metrics_observe(struct metrics *metrics, enum metrics_histogram histogram, double value);
/* A request of a route, answered with status; 0: the series exists from now on. route: static. */
void metrics_count_http(struct metrics *metrics, const char *route, int status);

struct metrics_lookups {
    uint64_t n_hit, n_joined, n_miss, miss_bytes;
    double wait_s;
};

enum { METRICS_MAX_LAYER = HPARAMS_MAX_LAYER };
enum metrics_read {
    METRICS_READ_DEMAND,
    METRICS_READ_SPECULATIVE,
    METRICS_READ_BACKGROUND,
    METRICS_N_READ
};

/* What the pager of experts counts, since the start; zeros where all experts are mapped. */
struct metrics_experts {
    uint64_t n_resident, n_reading, n_free; /* slots */
    struct metrics_lookups decode, prefill;
    uint64_t n_evicted, n_remiss, n_preloaded;
    uint64_t n_predicted, n_chosen, n_recalled; /* named; chosen where some were; both */
    uint64_t n_prefetched, n_prefetch_used, n_prefetch_wasted;
    uint64_t prefetched_bytes, prefetch_used_bytes;
    uint64_t n_read[METRICS_N_READ], read_bytes[METRICS_N_READ];
    double busy_s;                     /* with at least one read running */
    double direct_rate, buffered_rate; /* bytes/s that a probe at the start found; 0: none did */
    struct metrics_device {            /* of devices that have slots for experts; zeros: none has */
        struct metrics_device_lookups {
            uint64_t n_hit, n_cpu, n_copied, hit_bytes, cpu_bytes, copied_bytes;
            double wait_s, cpu_s;
        } decode, prefill;
        uint64_t n_resident, n_free, n_evicted, background_bytes;
        uint64_t n_written_back, written_back_bytes,
            n_lost; /* n_lost: evicted, and not in memory */
        uint64_t n_admitted, n_preloaded, n_warmed;
        uint64_t n_named, n_chosen, n_recalled;                     /* likewise predicted */
        uint64_t n_predicted, n_predicted_used, n_predicted_wasted; /* and copied */
        uint64_t predicted_bytes, predicted_used_bytes;
        uint64_t slot_bytes, kv_bytes, n_to_kv, n_to_experts; /* what they exchange of memory */
    } device;
    uint32_t n_layer; /* that have experts */
    struct metrics_expert_layer {
        uint32_t layer;
        uint64_t n_hit, n_joined, n_miss;
    } layer[METRICS_MAX_LAYER];
};

/* What is known of one rank. */
struct metrics_rank {
    uint64_t weight_bytes, kv_bytes, scratch_bytes, cache_bytes; /* that it takes at most */
    double send_wait_s, receive_wait_s;                          /* since the start, on others */
    uint64_t sent_bytes, received_bytes;                         /* activations */
    struct metrics_experts experts;
};

/* What is not counted but looked at: the state of the server when it is asked. */
struct metrics_state {
    const char *model, *quantization;
    double load_s;
    uint32_t n_running, n_waiting; /* sequences */
    uint32_t n_slot, n_rank;
    uint64_t n_step, n_step_token; /* steps, and tokens in them, so far */
    double kv_usage;               /* 0 .. 1 */
    uint64_t kv_tokens;            /* that the cache holds */
    uint64_t n_checkpoint, checkpoint_bytes;
    uint64_t kv_evictions, checkpoint_evictions, preemptions;
    const struct metrics_rank *rank; /* [n_rank], borrowed; NULL: nothing is known */
    uint64_t spec_drafted, spec_accepted, spec_drafts;
};

/* Appends the whole text. vllm, llamacpp: under those servers' names, too. */
void metrics_write(struct metrics *metrics, const struct metrics_state *state, bool vllm,
                   bool llamacpp, struct byte_buffer *out);

#endif
