/* Frames one after the other, with a look at the one behind. */
#include "worker/pipeline/stage_loop.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/model/hparams.h"
#include "proto/transport/world.h"
#include "worker/pipeline/wire.h"
#include "worker/pipeline/wire_stats.h"
#include "worker/worker.h"

/* A frame read: its type, and the plan if it is one. */
struct item {
    bool present;
    uint16_t type;
    struct wire_plan *plan;
    bool expected;            /* its input is being received */
    bool with_uses, with_map; /* of STATS_REQUEST */
};

struct stage_loop {
    struct stage_loop_config config;
    bool first, last;
    struct wire_limits limits;
    struct item ahead; /* the next frame, if it was looked at */
    uint64_t n_step;
    struct lm_error *error; /* [n_slot] of the step's sequences */
    uint32_t *n_draft;      /* [n_slot] of the slot's last step */
    struct expert_usage *experts;
    /* of the last stage */
    int32_t *ids;             /* [n_slot][n_ctx] */
    struct lm_error *spoiled; /* [n_slot] */
    struct sampled_token *sampled;
    struct sampled_token *accepted; /* [n_slot][STEP_DRAFT_MAX] of the step's sequences */
    uint32_t *n_accepted;           /* [n_slot] */
    int32_t *drafts;                /* [n_slot][STEP_DRAFT_MAX] */
    uint32_t *n_drafted;            /* [n_slot] */
    struct wire_target *target;     /* [target_size] */
    size_t n_target, target_size;
    struct lm_error failed; /* of a callback: the job cannot go on */
};

/* What the callbacks of a sequence need. */
struct seq_context {
    struct stage_loop *loop;
    uint32_t seq;
};

/* ---- frames ------------------------------------------------------------------------------- */

static void drop_item(struct item *item)
{
    wire_plan_destroy(item->plan);
    *item = (struct item){.present = false};
}

static enum lm_status read_frame(struct stage_loop *loop, const struct frame *frame,
                                 struct lm_error *err)
{
    loop->ahead = (struct item){.type = frame->type};
    if (frame->type == LEAN__FRAME_TYPE__PLAN) {
        const enum lm_status status =
            wire_unpack_plan(&loop->ahead.plan, frame, &loop->limits, err);
        if (status != LM_OK) return status;
    }
    if (frame->type == LEAN__FRAME_TYPE__STATS_REQUEST) {
        ProtobufCMessage *request;
        const enum lm_status status =
            wire_unpack(&request, &lean__stats_request__descriptor, frame, err);
        if (status != LM_OK) return status;
        loop->ahead.with_uses = ((Lean__StatsRequest *)request)->with_uses;
        loop->ahead.with_map = ((Lean__StatsRequest *)request)->with_map;
        protobuf_c_message_free_unpacked(request, NULL);
    }
    loop->ahead.present = true;
    return LM_OK;
}

/* Looks at the next frame. timeout_s 0: if it is there. */
static enum lm_status look_ahead(struct stage_loop *loop, double timeout_s, struct lm_error *err)
{
    struct frame *frame;
    if (loop->ahead.present) return LM_OK;
    enum lm_status status = loop->config.next(loop->config.context, timeout_s, &frame, err);
    if (status == LM_E_BUSY && timeout_s >= 0) return LM_OK;
    if (status != LM_OK) return status;
    status = read_frame(loop, frame, err);
    free(frame);
    return status;
}

/* Waits for the next frame, and does meanwhile what can be done for later steps; but not in the
 * short time between two steps, of which the second would have to wait for it. */
static enum lm_status await_frame(struct stage_loop *loop, struct lm_error *err)
{
    enum lm_status status = look_ahead(loop, STEP_IDLE_S, err);
    while (status == LM_OK && !loop->ahead.present)
        status = look_ahead(loop, worker_idle(loop->config.worker) ? STEP_IDLE_S : -1, err);
    return status;
}

static enum lm_status send_frame(struct stage_loop *loop, struct frame *frame, struct lm_error *err)
{
    frame->from = loop->config.rank;
    const enum lm_status status = loop->config.give(loop->config.context, frame, err);
    free(frame);
    return status;
}

/* ---- slots -------------------------------------------------------------------------------- */

/* Whether what a cut takes away were drafts of the slot's last step. */
static bool can_cut(const struct stage_loop *loop, const struct seq_op *op)
{
    const uint32_t length = worker_length(loop->config.worker, op->slot);
    return op->n <= length && length - op->n <= loop->n_draft[op->slot];
}

static enum lm_status apply(struct stage_loop *loop, const Lean__SlotOp *message,
                            struct lm_error *err)
{
    struct worker *worker = loop->config.worker;
    struct seq_op op = {.slot = message->slot, .to = message->to, .n = message->n};
    if (message->kind == LEAN__SLOT_OP__KIND__RESERVE) {
        worker_reserve(worker, op.slot, op.n, NULL);
        return LM_OK;
    }
    op.kind = message->kind == LEAN__SLOT_OP__KIND__FORK  ? SEQ_FORK
              : message->kind == LEAN__SLOT_OP__KIND__CUT ? SEQ_CUT
                                                          : SEQ_CLEAR;
    if (op.kind == SEQ_CUT && !can_cut(loop, &op))
        return lm_fail(err, LM_E_FAIL, "rank %u: slot %u of %u tokens cannot be cut to %u",
                       loop->config.rank, op.slot, worker_length(worker, op.slot), op.n);
    if (op.kind == SEQ_FORK && op.n > worker_length(worker, op.slot))
        return lm_fail(err, LM_E_FAIL, "rank %u: slot %u holds %u tokens, not %u",
                       loop->config.rank, op.slot, worker_length(worker, op.slot), op.n);
    const enum lm_status status = worker_seq(worker, &op, err);
    if (status == LM_OK) loop->n_draft[op.kind == SEQ_FORK ? op.to : op.slot] = 0;
    if (status != LM_OK || !loop->last) return status;
    if (op.kind == SEQ_CUT) return LM_OK;
    if (op.kind == SEQ_CLEAR) {
        loop->spoiled[op.slot].status = LM_OK;
    } else {
        loop->spoiled[op.to] = loop->spoiled[op.slot];
        memcpy(loop->ids + (size_t)op.to * loop->limits.n_ctx,
               loop->ids + (size_t)op.slot * loop->limits.n_ctx, op.n * sizeof(*loop->ids));
    }
    return LM_OK;
}

/* That the slots hold what rank 0 thinks they do: nothing is computed from anything else. */
static enum lm_status check_positions(struct stage_loop *loop, const struct wire_plan *plan,
                                      struct lm_error *err)
{
    for (uint32_t i = 0; i < plan->plan.n_seq; i++) {
        const Lean__PlanSeq *seq = plan->message->seq[i];
        const uint32_t length = worker_length(loop->config.worker, seq->slot);
        if (length != seq->position)
            return lm_fail(err, LM_E_FAIL, "rank %u: slot %u holds %u tokens, the plan says %u",
                           loop->config.rank, seq->slot, length, seq->position);
    }
    return LM_OK;
}

/* ---- results of the last stage ------------------------------------------------------------ */

static void send_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    const struct seq_context *seq = context;
    struct stage_loop *loop = seq->loop;
    struct frame *frame;
    Lean__Logits message = LEAN__LOGITS__INIT;
    if (loop->failed.status != LM_OK) return;
    message.step = loop->n_step;
    message.seq = seq->seq;
    message.position = pos;
    message.row = (ProtobufCBinaryData){n_vocab * sizeof(float), (uint8_t *)logits};
    loop->failed.status = wire_pack(&frame, LEAN__FRAME_TYPE__LOGITS, &message.base, &loop->failed);
    if (loop->failed.status == LM_OK) loop->failed.status = send_frame(loop, frame, &loop->failed);
}

static void keep_target(void *context, uint32_t pos, const struct sampled_token *token)
{
    const struct seq_context *seq = context;
    struct stage_loop *loop = seq->loop;
    assert(loop->n_target < loop->target_size);
    loop->target[loop->n_target++] =
        (struct wire_target){.seq = seq->seq, .position = pos, .token = *token};
}

/* Room for the targets of a step. */
static enum lm_status grow_targets(struct stage_loop *loop, const struct step_plan *plan,
                                   struct lm_error *err)
{
    size_t n = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++)
        n += plan->seq[i].n_target;
    loop->n_target = 0;
    if (n <= loop->target_size) return LM_OK;
    struct wire_target *target = realloc(loop->target, n * sizeof(*target));
    if (!target) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for %zu targets", n);
    loop->target = target;
    loop->target_size = n;
    return LM_OK;
}

/* Adds what a received plan leaves out. contexts: [n_seq]. */
static void complete_plan(struct stage_loop *loop, struct wire_plan *plan,
                          struct seq_context *contexts)
{
    for (uint32_t i = 0; i < plan->plan.n_seq; i++) {
        struct step_seq *const seq = &plan->seq[i];
        loop->error[i].status = LM_OK;
        loop->experts[i] = (struct expert_usage){0};
        seq->error = &loop->error[i];
        seq->experts = &loop->experts[i];
        loop->n_draft[seq->slot] = seq->n_draft;
        seq->accepted = &loop->accepted[(size_t)i * STEP_DRAFT_MAX];
        seq->n_accepted = &loop->n_accepted[i];
        loop->n_accepted[i] = loop->n_drafted[i] = 0;
        seq->drafts = &loop->drafts[(size_t)i * STEP_DRAFT_MAX];
        seq->n_drafted = &loop->n_drafted[i];
        if (!loop->last) continue;
        int32_t *const ids = loop->ids + (size_t)seq->slot * loop->limits.n_ctx;
        memcpy(ids + seq->n_history - seq->n_token, seq->ids, seq->n_token * sizeof(*ids));
        seq->history = ids;
        contexts[i] = (struct seq_context){loop, i};
        seq->context = &contexts[i];
        seq->on_logits = send_logits;
        seq->on_target = keep_target;
        if (loop->spoiled[seq->slot].status != LM_OK) loop->error[i] = loop->spoiled[seq->slot];
    }
}

/* Once a step, whatever came of it, so that they can be put together. */
static enum lm_status send_trace(struct stage_loop *loop, struct lm_error *err)
{
    struct frame *frame;
    const uint8_t *records;
    Lean__Trace message = LEAN__TRACE__INIT;
    if (!worker_take_trace(loop->config.worker, &records, &message.records.len)) return LM_OK;
    message.step = loop->n_step;
    message.records.data = (uint8_t *)records;
    const enum lm_status status = wire_pack(&frame, LEAN__FRAME_TYPE__TRACE, &message.base, err);
    return status == LM_OK ? send_frame(loop, frame, err) : status;
}

static enum lm_status send_result(struct stage_loop *loop, const struct wire_plan *plan,
                                  const struct lm_error *failed, struct lm_error *err)
{
    struct frame *frame;
    const struct wire_result result = {.number = loop->n_step,
                                       .failed = failed,
                                       .n_seq = plan->plan.n_seq,
                                       .seq = plan->seq,
                                       .sampled = loop->sampled,
                                       .target = loop->target,
                                       .n_target = loop->n_target};
    for (uint32_t i = 0; failed->status != LM_OK && i < plan->plan.n_seq; i++)
        loop->spoiled[plan->seq[i].slot] = *failed;
    const enum lm_status status = wire_pack_result(&frame, &result, err);
    return status == LM_OK ? send_frame(loop, frame, err) : status;
}

/* ---- steps -------------------------------------------------------------------------------- */

static enum lm_status expect(struct stage_loop *loop, struct item *item, struct lm_error *err)
{
    if (loop->first || item->expected || !item->plan) return LM_OK;
    item->expected = true;
    return worker_expect(loop->config.worker, &item->plan->plan, err);
}

static enum lm_status prepare(struct stage_loop *loop, struct item *item, struct lm_error *err)
{
    const Lean__Plan *message = item->plan->message;
    enum lm_status status = LM_OK;
    if (message->step != loop->n_step)
        return lm_fail(err, LM_E_FAIL, "rank %u: the plan of step %llu came, not of %llu",
                       loop->config.rank, (unsigned long long)message->step,
                       (unsigned long long)loop->n_step);
    for (size_t i = 0; i < message->n_op && status == LM_OK; i++)
        status = apply(loop, message->op[i], err);
    if (status == LM_OK) status = check_positions(loop, item->plan, err);
    if (status == LM_OK) status = expect(loop, item, err);
    if (status == LM_OK) status = look_ahead(loop, 0, err);
    if (status == LM_OK && loop->ahead.present) status = expect(loop, &loop->ahead, err);
    if (status == LM_OK && loop->last) status = grow_targets(loop, &item->plan->plan, err);
    return status;
}

static enum lm_status run_step(struct stage_loop *loop, struct item *item, struct lm_error *err)
{
    struct lm_error failed = {.status = LM_OK};
    enum lm_status status = prepare(loop, item, err);
    if (status != LM_OK) return status;
    struct seq_context *contexts = calloc(item->plan->plan.n_seq, sizeof(*contexts));
    if (!contexts) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for a step");
    complete_plan(loop, item->plan, contexts);
    failed.status = worker_step(loop->config.worker, &item->plan->plan, loop->sampled, &failed);
    free(contexts);
    if (loop->failed.status != LM_OK) failed = loop->failed;
    if (failed.status == LM_E_RANK_LOST || failed.status == LM_E_LIMIT ||
        loop->failed.status != LM_OK) {
        *err = failed;
        return failed.status;
    }
    status = send_trace(loop, err);
    if (status == LM_OK && loop->last) status = send_result(loop, item->plan, &failed, err);
    loop->n_step++;
    return status;
}

static enum lm_status send_stats(struct stage_loop *loop, const struct item *item,
                                 struct lm_error *err)
{
    struct frame *frame;
    const enum lm_status status =
        wire_pack_stats(&frame, loop->config.worker, item->with_uses, item->with_map, err);
    return status == LM_OK ? send_frame(loop, frame, err) : status;
}

static enum lm_status run_item(struct stage_loop *loop, struct item *item, bool *done,
                               struct lm_error *err)
{
    switch (item->type) {
    case LEAN__FRAME_TYPE__PLAN:
        return run_step(loop, item, err);
    case LEAN__FRAME_TYPE__STATS_REQUEST:
        return send_stats(loop, item, err);
    case LEAN__FRAME_TYPE__DRAIN:
        *done = true;
        return LM_OK;
    }
    return lm_fail(err, LM_E_FORMAT, "rank %u: rank 0 sent a message of type %u", loop->config.rank,
                   item->type);
}

/* ---- life --------------------------------------------------------------------------------- */

static enum lm_status create_arrays(struct stage_loop *loop, struct lm_error *err)
{
    const size_t n = loop->limits.n_slot;
    loop->error = calloc(n, sizeof(*loop->error));
    loop->sampled = calloc(n, sizeof(*loop->sampled));
    loop->experts = calloc(n, sizeof(*loop->experts));
    loop->n_draft = calloc(n, sizeof(*loop->n_draft));
    loop->n_accepted = calloc(n, sizeof(*loop->n_accepted));
    loop->accepted = calloc(n * STEP_DRAFT_MAX, sizeof(*loop->accepted));
    loop->drafts = calloc(n * STEP_DRAFT_MAX, sizeof(*loop->drafts));
    loop->n_drafted = calloc(n, sizeof(*loop->n_drafted));
    bool complete = loop->error && loop->sampled && loop->experts && loop->n_draft &&
                    loop->drafts && loop->n_drafted && loop->n_accepted && loop->accepted;
    if (loop->last) {
        loop->ids = calloc(n * loop->limits.n_ctx, sizeof(*loop->ids));
        loop->spoiled = calloc(n, sizeof(*loop->spoiled));
        complete = complete && loop->ids && loop->spoiled;
    }
    if (complete) return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for %zu slots of %u tokens", n,
                   loop->limits.n_ctx);
}

static void destroy_arrays(struct stage_loop *loop)
{
    drop_item(&loop->ahead);
    free(loop->target);
    free(loop->spoiled);
    free(loop->ids);
    free(loop->n_drafted);
    free(loop->drafts);
    free(loop->accepted);
    free(loop->n_accepted);
    free(loop->n_draft);
    free(loop->sampled);
    free(loop->experts);
    free(loop->error);
}

enum lm_status stage_loop_run(const struct stage_loop_config *config, struct lm_error *err)
{
    const struct worker_config *worker = worker_settings(config->worker);
    struct lm_error own;
    struct stage_loop loop = {.config = *config,
                              .first = worker->layer_begin == 0,
                              .last = worker->layer_end == worker->hp->n_layer,
                              .limits = {.n_slot = worker->n_slot,
                                         .n_ctx = worker->n_ctx,
                                         .n_batch = worker->n_batch,
                                         .n_draft = worker->n_draft,
                                         .n_vocab = worker->hp->n_vocab}};
    bool done = false;
    if (!err) err = &own;
    enum lm_status status = create_arrays(&loop, err);
    while (status == LM_OK && !done) {
        status = await_frame(&loop, err);
        if (status != LM_OK) break;
        struct item item = loop.ahead;
        loop.ahead = (struct item){.present = false};
        status = run_item(&loop, &item, &done, err);
        drop_item(&item);
    }
    destroy_arrays(&loop);
    return status;
}
