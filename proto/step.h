/* What the coordinator asks of the workers, and what comes back: one step of some sequences.
 *
 * A step advances several sequences at once: each by the next tokens of its prompt, or by the one
 * token it generated last, behind which there may be drafts of those that follow. The plan goes to
 * every stage; the last stage answers with the sampled tokens. Sequences are known by slot; what a
 * slot holds is changed by steps and by seq_ops only, in the order in which they are issued.
 *
 * Drafts are verified, not trusted: a token is sampled behind each row as it would be without them,
 * for as long as it is the draft that the next row has read. A row's bits do not depend on its
 * companions, so what is sampled is the same with drafts and without, and sooner. The rows of
 * drafts that were not sampled are taken back by SEQ_CUT, which follows each step with drafts. */
#ifndef LEAN_PROTO_STEP_H
#define LEAN_PROTO_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/model/sampling.h"

enum drafting { DRAFTING_OFF, DRAFTING_ON, DRAFTING_AUTO /* where it is faster */ };
enum { STEP_DRAFT_MAX = 15 }; /* of one sequence in one step */

enum step_output {
    STEP_OUTPUT_NONE,   /* more of the prompt follows */
    STEP_OUTPUT_SAMPLE, /* a token is sampled behind the last one */
    STEP_OUTPUT_LOGITS  /* the logits of every token go to on_logits, and a token is sampled */
};

/* What a sequence took of routed experts that are read when they are needed; nothing is counted
 * where all of them are mapped. In each step and layer a chosen expert is looked up once. Where
 * several sequences of the step chose it the lookup, and the read if it was a miss, is counted for
 * one of them, in turn by their rows; for the others it is shared. So what all sequences have adds
 * up to what the pager counts, but for wait_s: that time passes for all sequences of a step alike.
 * Reads that no lookup began (ahead, on a prediction, for a profile) are nobody's. */
struct expert_usage {
    uint64_t n_lookup; /* n_hit + n_joined + n_miss */
    uint64_t n_hit;    /* resident before anything was read for that step and layer */
    uint64_t n_joined; /* read ahead, or on their way */
    uint64_t n_miss;   /* neither */
    uint64_t n_shared; /* besides: looked up for another sequence of the step */
    uint64_t miss_bytes;
    double wait_s; /* its steps waited for reads */
};

static inline void expert_usage_add(struct expert_usage *sum, const struct expert_usage *usage)
{
    sum->n_lookup += usage->n_lookup;
    sum->n_hit += usage->n_hit;
    sum->n_joined += usage->n_joined;
    sum->n_miss += usage->n_miss;
    sum->n_shared += usage->n_shared;
    sum->miss_bytes += usage->miss_bytes;
    sum->wait_s += usage->wait_s;
}

/* The part of one sequence. Positions continue where the slot stands. */
struct step_seq {
    uint32_t slot;
    const int32_t *ids; /* [n_token], n_token >= 1 */
    uint32_t n_token;
    /* The last of them are drafts; STEP_OUTPUT_SAMPLE then. Those that were sampled come first:
     * *n_accepted of them, and accepted[i] is what was sampled in place of draft i. */
    uint32_t n_draft;               /* <= STEP_DRAFT_MAX, < n_token */
    struct sampled_token *accepted; /* [n_draft] */
    uint32_t *n_accepted;           /* set by the step; NULL without drafts */
    /* The runner keeps what it needs to draft for the sequence; without it from the beginning it
     * cannot. */
    bool is_drafted;
    /* Drafts of the tokens behind the sampled one that are wanted from the runner: it gives
     * *n_drafted of them, or fewer, or none if it has no means to. */
    uint32_t n_wanted;   /* <= STEP_DRAFT_MAX */
    int32_t *drafts;     /* [n_wanted] */
    uint32_t *n_drafted; /* set by the step; NULL: none are wanted */
    int32_t next;        /* the token behind these where it is known, of a prompt; -1: it is not */
    enum step_output output;
    /* The tokens known so far, these included: sampling penalizes them, and of drafts those before
     * the row. */
    const int32_t *history; /* [n_history] */
    size_t n_history, n_prompt;
    const struct sampling_params *sampling;
    /* Row of logits behind the token at pos: [n_vocab], valid during the call. */
    void (*on_logits)(void *context, uint32_t pos, const float *logits, uint32_t n_vocab);
    /* targets[i] follows ids[i], and its log-probability there is wanted, with those of the
     * n_target_top best. pos: the target's. In order, before the step returns. */
    const int32_t *targets; /* [n_target], n_target <= n_token */
    uint32_t n_target;
    int32_t n_target_top;
    void (*on_target)(void *context, uint32_t pos, const struct sampled_token *token);
    void *context;
    struct expert_usage *experts; /* is added to, also by a step that fails; NULL: not wanted */
    /* Set where this sequence alone failed, behind the layers: its logits are no numbers, nothing
     * is allowed. Its tokens count as read. LM_OK before the step. */
    struct lm_error *error;
};

struct step_plan {
    const struct step_seq *seq; /* [n_seq], distinct slots */
    uint32_t n_seq;
};

enum seq_op_kind {
    SEQ_CLEAR, /* slot becomes empty */
    /* `to` becomes what slot was after its first n tokens. LM_E_UNSUPPORTED, and nothing changes:
     * the state cannot go back that far. */
    SEQ_FORK,
    /* slot has its first n tokens left, all but drafts of its last step: LM_OK. The next that is
     * done to a slot behind a step with drafts, even if all of them stay, unless it is cleared. */
    SEQ_CUT
};

struct seq_op {
    enum seq_op_kind kind;
    uint32_t slot, to, n;
};

/* What sequences hold of the memory for keys and values. */
struct seq_usage {
    uint64_t n_position, n_position_max; /* whole blocks count; shared ones once */
};

/* Whoever runs steps: the worker of this process, or the stages of a pipeline. Steps end in the
 * order in which they began. Operations on sequences take effect between the steps begun before
 * and those begun after. */
struct step_runner {
    void *context;
    uint32_t n_stage; /* steps that are worked on at once, when all stages are busy */
    /* Steps that can be under way at once, n_stage or a few more, which wait their turn. A sequence
     * may be part of several, if what it reads does not depend on what an earlier one samples. */
    uint32_t depth;
    /* What plan points to is borrowed for the call, but for sampled: [n_seq], set at the end for
     * those that sample, and for the callbacks, contexts, usages, errors and drafts of its
     * sequences.
     * LM_E_LIMIT: no room for the new positions, and nothing has changed nor begun. */
    enum lm_status (*begin)(void *context, const struct step_plan *plan,
                            struct sampled_token *sampled, struct lm_error *err);
    /* Waits for the oldest step under way. A failure leaves the slots of its plan to be cleared. */
    enum lm_status (*end)(void *context, struct lm_error *err);
    enum lm_status (*seq)(void *context, const struct seq_op *op, struct lm_error *err);
    struct seq_usage (*usage)(void *context);
    /* While no step is under way: a few ms of what can be done for later ones. True: there is more,
     * and some of it takes time by itself: call it again after STEP_IDLE_S. NULL: never anything.
     */
    bool (*idle)(void *context);
};

#define STEP_IDLE_S 0.001

#endif
