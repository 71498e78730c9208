/* What the coordinator asks of the workers, and what comes back: one step of some sequences.
 *
 * A step advances several sequences at once: each by the next tokens of its prompt, or by the one
 * token it generated last. The plan goes to every stage; the last stage answers with the sampled
 * tokens. Sequences are known by slot; what a slot holds is changed by steps and by seq_ops only,
 * in the order in which they are issued.
 *
 * In one process a plan is passed by pointer, so everything in it is borrowed for the call. */
#ifndef LEAN_PROTO_STEP_H
#define LEAN_PROTO_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/model/sampling.h"

enum step_output {
    STEP_OUTPUT_NONE,   /* more of the prompt follows */
    STEP_OUTPUT_SAMPLE, /* a token is sampled behind the last one */
    STEP_OUTPUT_LOGITS  /* the logits of every token go to on_logits, and a token is sampled */
};

/* The part of one sequence. Positions continue where the slot stands. */
struct step_seq {
    uint32_t slot;
    const int32_t *ids; /* [n_token], n_token >= 1 */
    uint32_t n_token;
    enum step_output output;
    /* The tokens known so far, these included: sampling penalizes them. */
    const int32_t *history; /* [n_history] */
    size_t n_history, n_prompt;
    const struct sampling_params *sampling;
    /* Row of logits behind the token at pos: [n_vocab], valid during the call. */
    void (*on_logits)(void *context, uint32_t pos, const float *logits, uint32_t n_vocab);
    void *context;
};

struct step_plan {
    const struct step_seq *seq; /* [n_seq], distinct slots */
    uint32_t n_seq;
};

enum seq_op_kind {
    SEQ_CLEAR,   /* slot becomes empty */
    SEQ_FORK,    /* `to` becomes a copy of slot */
    SEQ_TRUNCATE /* slot keeps its first n tokens; LM_E_UNSUPPORTED: its state cannot go back */
};

struct seq_op {
    enum seq_op_kind kind;
    uint32_t slot, to, n;
};

/* Whoever runs steps: the worker of this process, or the stages of a pipeline. */
struct step_runner {
    void *context;
    /* sampled: [n_seq], set for those that sample. LM_E_LIMIT: no room for the new positions, and
     * nothing has changed; any other failure leaves the slots of the plan to be cleared. */
    enum lm_status (*step)(void *context, const struct step_plan *plan,
                           struct sampled_token *sampled, struct lm_error *err);
    enum lm_status (*seq)(void *context, const struct seq_op *op, struct lm_error *err);
};

#endif
