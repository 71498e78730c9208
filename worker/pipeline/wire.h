/* Steps and their results as messages of proto/control.proto.
 *
 * What comes from the wire is checked, and held to the sizes of the receiver: a message that breaks
 * them is LM_E_FORMAT. Positions, and whether a slot can be forked, are the receiver's to check. */
#ifndef LEAN_WORKER_PIPELINE_WIRE_H
#define LEAN_WORKER_PIPELINE_WIRE_H

#include "proto/control.pb-c.h"
#include "proto/step.h"

struct frame;

/* Of slots, and of one step. */
struct wire_limits {
    uint32_t n_slot, n_ctx, n_batch, n_draft, n_vocab;
};

/* A message is packed into a frame from rank 0, which free() frees. */
enum lm_status wire_pack(struct frame **out, Lean__FrameType type, const ProtobufCMessage *message,
                         struct lm_error *err);
/* The message of a frame, which the caller frees. name: for the error. */
enum lm_status wire_unpack(ProtobufCMessage **out, const ProtobufCMessageDescriptor *descriptor,
                           const struct frame *frame, struct lm_error *err);

/* position: [n_seq], what the slots hold; op: [n_op], before the step. */
enum lm_status wire_pack_plan(struct frame **out, uint64_t number, const struct step_plan *plan,
                              const uint32_t *position, const Lean__SlotOp *op, size_t n_op,
                              uint32_t n_vocab, struct lm_error *err);

/* A plan received. Without history, callbacks, room for accepted drafts, and errors. */
struct wire_plan {
    Lean__Plan *message;
    struct step_plan plan;            /* points into what follows, and into the message */
    struct sampling_params *sampling; /* [n_seq] */
    struct logit_bias *bias;
    struct step_seq seq[]; /* [n_seq] */
};
enum lm_status wire_unpack_plan(struct wire_plan **out, const struct frame *frame,
                                const struct wire_limits *limits, struct lm_error *err);
void wire_plan_destroy(struct wire_plan *plan); /* NULL is legal */

/* The log-probability of a target. */
struct wire_target {
    uint32_t seq, position; /* seq: of the plan; these rise */
    struct sampled_token token;
};

struct wire_result {
    uint64_t number;
    const struct lm_error *failed; /* of the step; LM_OK: not failed */
    uint32_t n_seq;
    const struct step_seq *seq;          /* [n_seq], errors and experts of which are part of it */
    const struct sampled_token *sampled; /* [n_seq], where one was */
    const struct wire_target *target;    /* [n_target] */
    size_t n_target;
};
enum lm_status wire_pack_result(struct frame **out, const struct wire_result *result,
                                struct lm_error *err);

void wire_pack_failure(Lean__Failure *out, const struct lm_error *failed); /* borrows its texts */
void wire_unpack_failure(struct lm_error *out, const Lean__Failure *failure);
struct expert_usage wire_unpack_usage(const Lean__ExpertUsage *usage);
/* n tops beyond SAMPLING_MAX_LOGPROB are LM_E_FORMAT. */
enum lm_status wire_unpack_token(struct sampled_token *out, const Lean__Token *token,
                                 struct lm_error *err);

#endif
