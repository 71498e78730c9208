/* A request: a prompt to read, tokens to generate, and where they go.
 *
 * The caller fills the first part, submits, and keeps the struct alive until `done`. The scheduler
 * calls the callbacks from scheduler_step. */
#ifndef LEAN_COORDINATOR_SCHED_REQUEST_H
#define LEAN_COORDINATOR_SCHED_REQUEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/model/sampling.h"
#include "proto/step.h"

struct prefix_node;

struct request {
    const int32_t *prompt; /* [n_prompt], n_prompt >= 1, ids in the vocabulary */
    size_t n_prompt;
    uint32_t n_max; /* tokens to generate at most; 0: none, the prompt is only read */
    struct sampling_params sampling;
    /* Turns begin with these prompt tokens, in rising order: the states before them are worth
     * keeping. Borrowed; n_turn 0: none are known. */
    const size_t *turns; /* [n_turn], each < n_prompt */
    size_t n_turn;
    uint64_t cache_key; /* only prefixes read with the same key are shared; 0 by default */
    bool no_cache;      /* neither finds nor leaves a prefix */
    int32_t priority;   /* lower first, then by arrival */

    /* Logits behind each prompt token, in order. The prompt is then read from its beginning. NULL:
     * not wanted. */
    void (*on_logits)(void *context, uint32_t pos, const float *logits, uint32_t n_vocab);
    /* The given prompt tokens but the first with their log-probabilities and the n_prompt_logprob
     * best in their place, in order; what a cached prefix has kept is taken from there. NULL: not
     * wanted. */
    void (*on_prompt_token)(void *context, uint32_t pos, const struct sampled_token *token);
    int32_t n_prompt_logprob; /* 0 .. SAMPLING_MAX_LOGPROB */
    /* Each generated token; false: this was the last one. */
    bool (*on_token)(void *context, const struct sampled_token *token);
    void (*on_prefill)(void *context, size_t n_done, size_t n_total); /* or NULL */
    void (*on_end)(void *context); /* done is set; the request is not touched afterwards; or NULL */
    void *context;
    atomic_bool cancelled; /* set by anyone, at any time */

    /* Set by the scheduler. */
    bool done;
    enum lm_status status; /* error: the text, if it is not LM_OK */
    struct lm_error error;
    bool stopped; /* by on_token; else by n_max, the context's end, or cancelled */
    size_t n_cached, n_generated;
    size_t n_draft, n_draft_accepted; /* verified; of those, passed on */
    struct expert_usage experts;      /* so far */
    /* By log_now_s; 0: not reached. submit_s may be set before, by whoever took the request in. */
    double submit_s, start_s, prefill_end_s, end_s;
    struct request *next;     /* in a queue */
    struct prefix_node *node; /* of the prompt, in the scheduler's index */
};

#endif
