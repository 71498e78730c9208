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

struct request {
    const int32_t *prompt; /* [n_prompt], n_prompt >= 1, ids in the vocabulary */
    size_t n_prompt;
    uint32_t n_max; /* tokens to generate at most; 0: none, the prompt is only read */
    struct sampling_params sampling;
    /* A turn begins with this prompt token (0: none does): the state before it is worth keeping. */
    size_t n_turn; /* < n_prompt */
    /* Logits behind each prompt token, in order. The prompt is then read from its beginning. NULL:
     * not wanted. */
    void (*on_logits)(void *context, uint32_t pos, const float *logits, uint32_t n_vocab);
    /* Each generated token; false: this was the last one. */
    bool (*on_token)(void *context, const struct sampled_token *token);
    void (*on_prefill)(void *context, size_t n_done, size_t n_total); /* or NULL */
    void *context;
    atomic_bool cancelled; /* set by anyone, at any time */

    /* Set by the scheduler. */
    bool done;
    enum lm_status status; /* error: the text, if it is not LM_OK */
    struct lm_error error;
    bool stopped; /* by on_token; else by n_max, the context's end, or cancelled */
    size_t n_cached, n_generated;
    double submit_s, prefill_end_s, end_s; /* by log_now_s */
    struct request *next;                  /* in the queue */
};

#endif
