/* The ledger, the steps under way, and the two threads behind the runner. */
#include "worker/pipeline/pipeline.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/progress.h"
#include "proto/model/hparams.h"
#include "proto/transport/frame_queue.h"
#include "proto/transport/world.h"
#include "worker/pipeline/ledger.h"
#include "worker/pipeline/stage_loop.h"
#include "worker/pipeline/wire.h"
#include "worker/pipeline/wire_stats.h"

/* No map of experts is asked for sooner after another. */
#define MAP_S 0.25

/* Logits that have come and wait for end. */
struct logits_row {
    struct logits_row *next;
    Lean__Logits *message;
};

/* Records of a step that wait for those of ranks before. */
struct trace_part {
    struct trace_part *next;
    Lean__Trace *message;
};
struct trace_parts {
    struct trace_part *first, **last;
    uint64_t n_step; /* that have come */
};

/* A step under way. */
struct step {
    /* The caller's: of the plan those that the results go to. */
    struct step_seq *seq; /* [n_seq], of [n_slot] */
    uint32_t n_seq;
    struct sampled_token *sampled;
    /* guarded by lock */
    struct logits_row *logits, **logits_end;
    Lean__Tokens *tokens; /* NULL: not there yet */
};

struct pipeline {
    struct pipeline_config config;
    const struct worker_config *worker; /* of stage 0 */
    uint32_t depth;
    struct frame_queue to_stage; /* the frames of stage 0 */
    pthread_t stage, receiver;
    bool runs_stage, runs_receiver;

    /* the caller's */
    struct ledger *ledger;
    Lean__SlotOp *op; /* [n_op] since the last step began */
    size_t n_op, op_size;
    uint32_t *position; /* [n_slot] */
    struct step *step;  /* [depth], step i in i % depth */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    uint64_t n_begun, n_ended;    /* changed by the caller only */
    struct lm_error failed;       /* LM_OK: the job goes on */
    Lean__Stats **stats;          /* [n_rank] as told last; NULL: never */
    uint32_t n_awaited;           /* ranks that have not answered the last question */
    uint64_t n_asked, n_answered; /* questions put, and answered by all */
    bool asks_again;              /* a question came while another was open */
    Lean__Stats **map;            /* [n_rank] told last with a map; NULL, or one of stats */
    double map_asked_s;
    struct trace_parts *trace; /* [n_rank] */
};

/* ---- what went wrong ---------------------------------------------------------------------- */

/* The job is lost; the first reason counts. */
static void lose(struct pipeline *pipeline, const struct lm_error *why)
{
    pthread_mutex_lock(&pipeline->lock);
    const bool first = pipeline->failed.status == LM_OK;
    if (first) {
        pipeline->failed = *why;
        pipeline->failed.status = LM_E_RANK_LOST;
    }
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
    frame_queue_fail(&pipeline->to_stage, why);
    if (first && pipeline->config.on_lost)
        pipeline->config.on_lost(pipeline->config.lost_context, &pipeline->failed);
}

/* This rank cannot go on. */
static void give_up(struct pipeline *pipeline, const struct lm_error *why)
{
    struct world *world = pipeline->config.world;
    if (why->status != LM_E_RANK_LOST) world->ops->abort(world, why);
    lose(pipeline, why);
}

static enum lm_status check(struct pipeline *pipeline, struct lm_error *err)
{
    pthread_mutex_lock(&pipeline->lock);
    const enum lm_status status = pipeline->failed.status;
    if (status != LM_OK && err) *err = pipeline->failed;
    pthread_mutex_unlock(&pipeline->lock);
    return status;
}

/* ---- the thread that receives ------------------------------------------------------------- */

/* The step with that number, which must be under way. */
static struct step *find_step_locked(struct pipeline *pipeline, uint64_t number)
{
    if (number < pipeline->n_ended || number >= pipeline->n_begun) return NULL;
    struct step *step = &pipeline->step[number % pipeline->depth];
    return step->tokens ? NULL : step;
}

/* For whoever watches over the steps. */
static void count_open_locked(struct pipeline *pipeline, int change)
{
    struct progress *const progress = pipeline->config.world->progress;
    if (progress) atomic_fetch_add(&progress->n_open, (uint32_t)change);
}

static enum lm_status take_tokens(struct pipeline *pipeline, const struct frame *frame,
                                  struct lm_error *err)
{
    ProtobufCMessage *message;
    const enum lm_status status = wire_unpack(&message, &lean__tokens__descriptor, frame, err);
    if (status != LM_OK) return status;
    Lean__Tokens *const tokens = (Lean__Tokens *)message;
    pthread_mutex_lock(&pipeline->lock);
    struct step *step = find_step_locked(pipeline, tokens->step);
    if (step && tokens->n_seq == step->n_seq) {
        step->tokens = tokens;
        count_open_locked(pipeline, -1);
        pthread_cond_broadcast(&pipeline->changed);
        pthread_mutex_unlock(&pipeline->lock);
        return LM_OK;
    }
    pthread_mutex_unlock(&pipeline->lock);
    lm_fail(err, LM_E_FORMAT, "rank %u sent tokens of %zu sequences for step %llu", frame->from,
            tokens->n_seq, (unsigned long long)tokens->step);
    lean__tokens__free_unpacked(tokens, NULL);
    return LM_E_FORMAT;
}

/* Whether the step computes it for that sequence. */
static bool is_position(const struct step_seq *seq, uint32_t position)
{
    return position < seq->n_history && position >= seq->n_history - seq->n_token;
}

static void free_row(struct logits_row *row)
{
    lean__logits__free_unpacked(row->message, NULL);
    free(row);
}

static enum lm_status take_logits(struct pipeline *pipeline, const struct frame *frame,
                                  struct lm_error *err)
{
    ProtobufCMessage *message;
    struct logits_row *row = calloc(1, sizeof(*row));
    if (!row) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for logits");
    const enum lm_status status = wire_unpack(&message, &lean__logits__descriptor, frame, err);
    if (status != LM_OK) {
        free(row);
        return status;
    }
    row->message = (Lean__Logits *)message;
    pthread_mutex_lock(&pipeline->lock);
    struct step *step = find_step_locked(pipeline, row->message->step);
    const bool fits = step && row->message->seq < step->n_seq &&
                      step->seq[row->message->seq].output == STEP_OUTPUT_LOGITS &&
                      is_position(&step->seq[row->message->seq], row->message->position) &&
                      row->message->row.len == pipeline->worker->hp->n_vocab * sizeof(float);
    if (fits) {
        *step->logits_end = row;
        step->logits_end = &row->next;
        pthread_cond_broadcast(&pipeline->changed);
    }
    pthread_mutex_unlock(&pipeline->lock);
    if (fits) return LM_OK;
    free_row(row);
    return lm_fail(err, LM_E_FORMAT, "rank %u sent logits that nobody asked for", frame->from);
}

static enum lm_status put_question(struct pipeline *pipeline, bool with_uses, struct lm_error *err);

static enum lm_status take_stats(struct pipeline *pipeline, const struct frame *frame,
                                 struct lm_error *err)
{
    Lean__Stats *stats;
    const enum lm_status status = wire_unpack_stats(&stats, frame, pipeline->worker->hp, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&pipeline->lock);
    Lean__Stats *old = pipeline->stats[frame->from], **const map = &pipeline->map[frame->from];
    pipeline->stats[frame->from] = stats;
    const bool has_map = stats->n_layer && stats->layer[0]->has_resident;
    Lean__Stats *const old_map = has_map && *map != old ? *map : NULL;
    if (has_map)
        *map = stats;
    else if (*map == old)
        old = NULL;
    const bool complete = pipeline->n_awaited > 0 && --pipeline->n_awaited == 0;
    const bool again = complete && pipeline->asks_again;
    if (complete) {
        pipeline->n_answered++;
        pipeline->asks_again = false;
        pthread_cond_broadcast(&pipeline->changed);
    }
    pthread_mutex_unlock(&pipeline->lock);
    if (old) lean__stats__free_unpacked(old, NULL);
    if (old_map) lean__stats__free_unpacked(old_map, NULL);
    if (complete && pipeline->config.on_stats)
        pipeline->config.on_stats(pipeline->config.stats_context);
    return again ? put_question(pipeline, false, err) : LM_OK;
}

static void drop_first(struct trace_parts *parts)
{
    struct trace_part *const part = parts->first;
    parts->first = part->next;
    if (!parts->first) parts->last = &parts->first;
    lean__trace__free_unpacked(part->message, NULL);
    free(part);
}

/* Hands on the steps of which all ranks have told. */
static void hand_on_traces_locked(struct pipeline *pipeline)
{
    const uint32_t n_rank = pipeline->config.world->n_rank;
    for (;;) {
        for (uint32_t i = 0; i < n_rank; i++)
            if (!pipeline->trace[i].first) return;
        for (uint32_t i = 0; i < n_rank; i++) {
            const ProtobufCBinaryData *records = &pipeline->trace[i].first->message->records;
            if (pipeline->config.on_trace)
                pipeline->config.on_trace(pipeline->config.trace_context, records->data,
                                          records->len);
            drop_first(&pipeline->trace[i]);
        }
    }
}

static enum lm_status take_trace(struct pipeline *pipeline, const struct frame *frame,
                                 struct lm_error *err)
{
    ProtobufCMessage *message;
    struct trace_part *part = calloc(1, sizeof(*part));
    if (!part) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for a trace");
    enum lm_status status = wire_unpack(&message, &lean__trace__descriptor, frame, err);
    if (status != LM_OK) {
        free(part);
        return status;
    }
    part->message = (Lean__Trace *)message;
    pthread_mutex_lock(&pipeline->lock);
    struct trace_parts *const parts = &pipeline->trace[frame->from];
    if (part->message->step != parts->n_step)
        status = lm_fail(err, LM_E_FORMAT, "rank %u sent the trace of step %llu, not of %llu",
                         frame->from, (unsigned long long)part->message->step,
                         (unsigned long long)parts->n_step);
    parts->n_step++;
    *parts->last = part;
    parts->last = &part->next;
    if (status == LM_OK) hand_on_traces_locked(pipeline);
    pthread_mutex_unlock(&pipeline->lock);
    return status;
}

static enum lm_status take_frame(struct pipeline *pipeline, const struct frame *frame,
                                 uint32_t *n_bye, struct lm_error *err)
{
    switch (frame->type) {
    case LEAN__FRAME_TYPE__STATS:
        return take_stats(pipeline, frame, err);
    case LEAN__FRAME_TYPE__TOKENS:
        return take_tokens(pipeline, frame, err);
    case LEAN__FRAME_TYPE__TRACE:
        return take_trace(pipeline, frame, err);
    case LEAN__FRAME_TYPE__LOGITS:
        return take_logits(pipeline, frame, err);
    case LEAN__FRAME_TYPE__BYE:
        ++*n_bye;
        return LM_OK;
    }
    return lm_fail(err, LM_E_FORMAT, "rank %u sent a message of type %u", frame->from, frame->type);
}

static void *receive(void *context)
{
    struct pipeline *pipeline = context;
    struct world *world = pipeline->config.world;
    struct lm_error err = {.status = LM_OK};
    uint32_t n_bye = 0;
    while (err.status == LM_OK && n_bye + 1 < world->n_rank) {
        struct frame *frame;
        err.status = world->ops->recv(world, -1, &frame, &err);
        if (err.status != LM_OK) break;
        err.status = take_frame(pipeline, frame, &n_bye, &err);
        free(frame);
    }
    if (err.status != LM_OK) give_up(pipeline, &err);
    return NULL;
}

/* ---- the thread of stage 0 ---------------------------------------------------------------- */

static enum lm_status next_frame(void *context, double timeout_s, struct frame **out,
                                 struct lm_error *err)
{
    struct pipeline *pipeline = context;
    return frame_queue_pop(&pipeline->to_stage, timeout_s, out, err);
}

/* It is here already. */
static enum lm_status give_frame(void *context, const struct frame *frame, struct lm_error *err)
{
    uint32_t n_bye = 0;
    return take_frame(context, frame, &n_bye, err);
}

static void *run_stage(void *context)
{
    struct pipeline *pipeline = context;
    const struct stage_loop_config config = {.worker = pipeline->config.worker,
                                             .next = next_frame,
                                             .give = give_frame,
                                             .context = pipeline};
    struct lm_error err;
    if (stage_loop_run(&config, &err) != LM_OK) give_up(pipeline, &err);
    return NULL;
}

/* ---- the runner --------------------------------------------------------------------------- */

static enum lm_status note_op(struct pipeline *pipeline, Lean__SlotOp__Kind kind,
                              const struct seq_op *op, struct lm_error *err)
{
    if (pipeline->n_op == pipeline->op_size) {
        const size_t size = 2 * pipeline->op_size + 16;
        Lean__SlotOp *grown = realloc(pipeline->op, size * sizeof(*grown));
        if (!grown)
            return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for %zu operations", size);
        pipeline->op = grown;
        pipeline->op_size = size;
    }
    Lean__SlotOp *const noted = &pipeline->op[pipeline->n_op++];
    lean__slot_op__init(noted);
    noted->kind = kind;
    noted->slot = op->slot;
    noted->has_to = noted->has_n = kind != LEAN__SLOT_OP__KIND__CLEAR;
    noted->to = op->to;
    noted->n = op->n;
    return LM_OK;
}

static enum lm_status run_op(void *context, const struct seq_op *op, struct lm_error *err)
{
    struct pipeline *pipeline = context;
    struct seq_state *state = ledger_state(pipeline->ledger);
    enum lm_status status = LM_OK;
    if (op->kind == SEQ_CLEAR) {
        seq_state_clear(state, op->slot);
        return note_op(pipeline, LEAN__SLOT_OP__KIND__CLEAR, op, err);
    }
    if (op->kind == SEQ_CUT) {
        seq_state_cut(state, op->slot, op->n);
        return note_op(pipeline, LEAN__SLOT_OP__KIND__CUT, op, err);
    }
    status = seq_state_fork(state, op->slot, op->to, op->n, err);
    return status == LM_OK ? note_op(pipeline, LEAN__SLOT_OP__KIND__FORK, op, err) : status;
}

/* Books the positions of a step. If there is no room, the stages repeat the attempt before the next
 * step, since it may have moved blocks. */
static enum lm_status reserve(struct pipeline *pipeline, const struct step_plan *plan,
                              struct lm_error *err)
{
    struct seq_state *state = ledger_state(pipeline->ledger);
    uint32_t n_tried = 0;
    enum lm_status status = LM_OK;
    while (n_tried < plan->n_seq && status == LM_OK) {
        const struct step_seq *seq = &plan->seq[n_tried];
        pipeline->position[n_tried++] = seq_state_length(state, seq->slot);
        status = seq_state_reserve(state, seq->slot, seq->n_token, seq->n_draft, err);
    }
    for (uint32_t i = 0; status != LM_OK && i < n_tried; i++) {
        const struct seq_op op = {.slot = plan->seq[i].slot, .n = plan->seq[i].n_token};
        const enum lm_status noted = note_op(pipeline, LEAN__SLOT_OP__KIND__RESERVE, &op, err);
        if (noted != LM_OK) return noted;
    }
    for (uint32_t i = 0; status == LM_OK && i < plan->n_seq; i++)
        seq_state_advance(state, plan->seq[i].slot, plan->seq[i].n_token);
    return status;
}

static enum lm_status send_to_all(struct pipeline *pipeline, struct frame *frame,
                                  struct lm_error *err)
{
    struct world *world = pipeline->config.world;
    enum lm_status status = LM_OK;
    for (uint32_t rank = 1; rank < world->n_rank && status == LM_OK; rank++)
        status = world->ops->send(world, rank, frame->type, frame->payload, frame->n_bytes, err);
    if (status == LM_OK) return frame_queue_push(&pipeline->to_stage, frame, err);
    free(frame);
    return status;
}

static enum lm_status begin(void *context, const struct step_plan *plan,
                            struct sampled_token *sampled, struct lm_error *err)
{
    struct pipeline *pipeline = context;
    struct frame *frame;
    const uint64_t number = pipeline->n_begun;
    assert(number - pipeline->n_ended < pipeline->depth && plan->n_seq > 0);
    enum lm_status status = check(pipeline, err);
    if (status == LM_OK) status = reserve(pipeline, plan, err);
    for (uint32_t i = 0; i < plan->n_seq && status == LM_OK; i++)
        assert(plan->seq[i].n_history == pipeline->position[i] + plan->seq[i].n_token);
    if (status == LM_OK)
        status = wire_pack_plan(&frame, number, plan, pipeline->position, pipeline->op,
                                pipeline->n_op, pipeline->worker->hp->n_vocab, err);
    if (status != LM_OK) return status;
    pipeline->n_op = 0;
    pthread_mutex_lock(&pipeline->lock);
    struct step *const step = &pipeline->step[number % pipeline->depth];
    memcpy(step->seq, plan->seq, plan->n_seq * sizeof(*step->seq));
    step->n_seq = plan->n_seq;
    step->sampled = sampled;
    step->logits = NULL;
    step->logits_end = &step->logits;
    pipeline->n_begun++;
    count_open_locked(pipeline, 1);
    pthread_mutex_unlock(&pipeline->lock);
    /* it has begun, whatever happens now: end tells of it */
    struct lm_error lost;
    if (send_to_all(pipeline, frame, &lost) != LM_OK) give_up(pipeline, &lost);
    return LM_OK;
}

/* Hands out rows of logits until the step's tokens are there. */
static enum lm_status wait_for(struct pipeline *pipeline, struct step *step, struct lm_error *err)
{
    pthread_mutex_lock(&pipeline->lock);
    for (;;) {
        struct logits_row *const row = step->logits;
        if (row) {
            step->logits = row->next;
            if (!step->logits) step->logits_end = &step->logits;
            pthread_mutex_unlock(&pipeline->lock);
            const struct step_seq *seq = &step->seq[row->message->seq];
            seq->on_logits(seq->context, row->message->position,
                           (const float *)(const void *)row->message->row.data,
                           pipeline->worker->hp->n_vocab);
            free_row(row);
            pthread_mutex_lock(&pipeline->lock);
        } else if (step->tokens || pipeline->failed.status != LM_OK) {
            break;
        } else {
            pthread_cond_wait(&pipeline->changed, &pipeline->lock);
        }
    }
    const enum lm_status status = step->tokens ? LM_OK : pipeline->failed.status;
    if (status != LM_OK && err) *err = pipeline->failed;
    pthread_mutex_unlock(&pipeline->lock);
    return status;
}

static enum lm_status read_token(struct sampled_token *out, const Lean__Token *token,
                                 uint32_t n_vocab, struct lm_error *err)
{
    const enum lm_status status = wire_unpack_token(out, token, err);
    bool known = status != LM_OK || (uint32_t)out->id < n_vocab;
    for (int32_t i = 0; status == LM_OK && i < out->n_top; i++)
        known &= (uint32_t)out->top_id[i] < n_vocab;
    return known ? status : lm_fail(err, LM_E_FORMAT, "a token came that there is not");
}

static enum lm_status deliver_seq(const struct step_seq *seq, const Lean__SeqResult *result,
                                  uint32_t n_vocab, struct sampled_token *sampled,
                                  struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < result->n_target && status == LM_OK; i++) {
        struct sampled_token token;
        status = read_token(&token, result->target[i]->token, n_vocab, err);
        if (status == LM_OK && !is_position(seq, result->target[i]->position - 1))
            status = lm_fail(err, LM_E_FORMAT, "a log-probability came that nobody asked for");
        if (status == LM_OK && seq->on_target)
            seq->on_target(seq->context, result->target[i]->position, &token);
    }
    if (status == LM_OK && result->n_accepted > seq->n_draft)
        return lm_fail(err, LM_E_FORMAT, "%zu drafts accepted of %u", result->n_accepted,
                       seq->n_draft);
    for (size_t i = 0; i < result->n_accepted && status == LM_OK; i++)
        status = read_token(&seq->accepted[i], result->accepted[i], n_vocab, err);
    if (seq->n_draft) *seq->n_accepted = (uint32_t)result->n_accepted;
    if (status == LM_OK && result->n_draft > seq->n_wanted)
        return lm_fail(err, LM_E_FORMAT, "%zu drafts came, %u are wanted", result->n_draft,
                       seq->n_wanted);
    for (size_t i = 0; i < result->n_draft && status == LM_OK; i++) {
        if ((uint32_t)result->draft[i] >= n_vocab)
            return lm_fail(err, LM_E_FORMAT, "a draft came that there is not");
        seq->drafts[i] = result->draft[i];
    }
    if (seq->n_wanted) *seq->n_drafted = (uint32_t)result->n_draft;
    if (result->failure)
        wire_unpack_failure(seq->error, result->failure);
    else if (status == LM_OK && result->token)
        status = read_token(sampled, result->token, n_vocab, err);
    else if (status == LM_OK && seq->output != STEP_OUTPUT_NONE)
        status = lm_fail(err, LM_E_FORMAT, "no token came of a sequence that samples");
    return status;
}

static enum lm_status deliver(const struct step *step, uint32_t n_vocab, struct lm_error *err)
{
    const Lean__Tokens *tokens = step->tokens;
    struct lm_error failed = {.status = LM_OK};
    for (uint32_t i = 0; i < step->n_seq; i++) {
        if (!step->seq[i].experts || !tokens->seq[i]->experts) continue;
        const struct expert_usage usage = wire_unpack_usage(tokens->seq[i]->experts);
        expert_usage_add(step->seq[i].experts, &usage);
    }
    if (tokens->failure) wire_unpack_failure(&failed, tokens->failure);
    for (uint32_t i = 0; i < step->n_seq && failed.status == LM_OK; i++)
        failed.status =
            deliver_seq(&step->seq[i], tokens->seq[i], n_vocab, &step->sampled[i], &failed);
    if (failed.status != LM_OK && err) *err = failed;
    return failed.status;
}

static void clear_step(struct step *step)
{
    while (step->logits) {
        struct logits_row *const row = step->logits;
        step->logits = row->next;
        free_row(row);
    }
    if (step->tokens) lean__tokens__free_unpacked(step->tokens, NULL);
    step->tokens = NULL;
}

static enum lm_status end(void *context, struct lm_error *err)
{
    struct pipeline *pipeline = context;
    struct step *const step = &pipeline->step[pipeline->n_ended % pipeline->depth];
    assert(pipeline->n_ended < pipeline->n_begun);
    enum lm_status status = wait_for(pipeline, step, err);
    if (status == LM_OK) status = deliver(step, pipeline->worker->hp->n_vocab, err);
    pthread_mutex_lock(&pipeline->lock);
    clear_step(step);
    pipeline->n_ended++;
    pthread_mutex_unlock(&pipeline->lock);
    return status;
}

static struct seq_usage usage(void *context)
{
    const struct pipeline *pipeline = context;
    return seq_state_usage(ledger_state(pipeline->ledger));
}

struct step_runner pipeline_runner(struct pipeline *pipeline)
{
    return (struct step_runner){.context = pipeline,
                                .n_stage = pipeline->config.world->n_rank,
                                .depth = pipeline->depth,
                                .begin = begin,
                                .end = end,
                                .seq = run_op,
                                .usage = usage};
}

/* ---- counters ----------------------------------------------------------------------------- */

static bool wants_map(struct pipeline *pipeline)
{
    const double now_s = log_now_s();
    pthread_mutex_lock(&pipeline->lock);
    const bool wanted = pipeline->config.with_map && now_s - pipeline->map_asked_s >= MAP_S;
    if (wanted) pipeline->map_asked_s = now_s;
    pthread_mutex_unlock(&pipeline->lock);
    return wanted;
}

static enum lm_status put_question(struct pipeline *pipeline, bool with_uses, struct lm_error *err)
{
    struct frame *frame;
    Lean__StatsRequest request = LEAN__STATS_REQUEST__INIT;
    request.has_with_uses = request.with_uses = with_uses;
    request.has_with_map = request.with_map = wants_map(pipeline);
    enum lm_status status = wire_pack(&frame, LEAN__FRAME_TYPE__STATS_REQUEST, &request.base, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&pipeline->lock);
    pipeline->n_asked++;
    pipeline->n_awaited = pipeline->config.world->n_rank;
    pthread_mutex_unlock(&pipeline->lock);
    return send_to_all(pipeline, frame, err);
}

/* Waits until a number of questions have been answered. */
static enum lm_status wait_answered(struct pipeline *pipeline, uint64_t n, struct lm_error *err)
{
    pthread_mutex_lock(&pipeline->lock);
    while (pipeline->n_answered < n && pipeline->failed.status == LM_OK)
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    const enum lm_status status = pipeline->failed.status;
    if (status != LM_OK && err) *err = pipeline->failed;
    pthread_mutex_unlock(&pipeline->lock);
    return status;
}

enum lm_status pipeline_ask_stats(struct pipeline *pipeline, bool wait, struct lm_error *err)
{
    enum lm_status status = check(pipeline, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&pipeline->lock);
    const bool open = pipeline->n_awaited > 0;
    const uint64_t n = pipeline->n_asked + 1; /* the next question: this one, or the one after */
    if (open) pipeline->asks_again = true;
    pthread_mutex_unlock(&pipeline->lock);
    if (!open) status = put_question(pipeline, false, err);
    return status == LM_OK && wait ? wait_answered(pipeline, n, err) : status;
}

void pipeline_read_stats(struct pipeline *pipeline, struct pager_snapshot *out)
{
    struct pager_snapshot *const of_rank = malloc(sizeof(*of_rank));
    bool first = true;
    out->total = (struct expert_pager_stats){.n_slot = 0};
    if (!of_rank) return;
    pthread_mutex_lock(&pipeline->lock);
    for (uint32_t rank = 0; rank < pipeline->config.world->n_rank; rank++) {
        if (!pipeline->stats[rank]) continue;
        wire_read_stats(first ? out : of_rank, pipeline->stats[rank]);
        if (!first) pager_snapshot_add(out, of_rank);
        first = false;
    }
    pthread_mutex_unlock(&pipeline->lock);
    free(of_rank);
}

void pipeline_read_rank(struct pipeline *pipeline, uint32_t rank, struct pager_snapshot *out,
                        struct edges_stats *edges)
{
    out->total = (struct expert_pager_stats){.n_slot = 0};
    *edges = (struct edges_stats){.sent_bytes = 0};
    pthread_mutex_lock(&pipeline->lock);
    const Lean__Stats *const stats = pipeline->stats[rank];
    if (stats) {
        wire_read_stats(out, stats);
        *edges = (struct edges_stats){.sent_bytes = stats->sent_bytes,
                                      .received_bytes = stats->received_bytes,
                                      .sent_device_bytes = stats->sent_device_bytes,
                                      .received_device_bytes = stats->received_device_bytes,
                                      .send_wait_s = stats->send_wait_s,
                                      .receive_wait_s = stats->receive_wait_s};
    }
    pthread_mutex_unlock(&pipeline->lock);
}

void pipeline_read_map(struct pipeline *pipeline,
                       void (*draw)(void *context, uint32_t layer, const uint8_t *resident,
                                    const float *heat, uint64_t n_hit, uint64_t n_lookup),
                       void *context)
{
    pthread_mutex_lock(&pipeline->lock);
    for (uint32_t rank = 0; rank < pipeline->config.world->n_rank; rank++) {
        const Lean__Stats *const stats = pipeline->map[rank];
        for (size_t i = 0; stats && i < stats->n_layer; i++) {
            const Lean__ExpertLayer *layer = stats->layer[i];
            if (!layer->has_resident || !layer->n_heat) continue;
            draw(context, layer->layer, layer->resident.data, layer->heat,
                 layer->decode->n_hit + layer->prefill->n_hit,
                 layer->decode->n_lookup + layer->prefill->n_lookup);
        }
    }
    pthread_mutex_unlock(&pipeline->lock);
}

enum lm_status pipeline_read_uses(struct pipeline *pipeline, double *n_token, double *uses,
                                  struct lm_error *err)
{
    const uint32_t n_expert = pipeline->worker->hp->n_expert;
    enum lm_status status = pipeline_ask_stats(pipeline, true, err); /* none is open then */
    if (status == LM_OK) status = put_question(pipeline, true, err);
    if (status == LM_OK) status = wait_answered(pipeline, pipeline->n_asked, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&pipeline->lock);
    *n_token = (double)pipeline->stats[0]->n_token;
    for (uint32_t rank = 0; rank < pipeline->config.world->n_rank; rank++) {
        const Lean__Stats *stats = pipeline->stats[rank];
        for (size_t i = 0; i < stats->n_layer; i++)
            for (size_t ie = 0; ie < stats->layer[i]->n_uses; ie++)
                uses[(size_t)stats->layer[i]->layer * n_expert + ie] =
                    (double)stats->layer[i]->uses[ie];
    }
    pthread_mutex_unlock(&pipeline->lock);
    return LM_OK;
}

/* ---- life --------------------------------------------------------------------------------- */

static enum lm_status create_parts(struct pipeline *pipeline, struct lm_error *err)
{
    const struct worker_config *config = pipeline->worker;
    const struct seq_state_config state = {.layer_end = config->hp->n_layer,
                                           .n_slot = config->n_slot,
                                           .n_ctx = config->n_ctx,
                                           .n_position = config->n_position,
                                           .n_batch = config->n_batch,
                                           .n_draft = config->n_draft,
                                           .kv_type = config->kv_type};
    pipeline->stats = calloc(pipeline->config.world->n_rank, sizeof(Lean__Stats *));
    pipeline->map = calloc(pipeline->config.world->n_rank, sizeof(Lean__Stats *));
    pipeline->map_asked_s = -MAP_S;
    pipeline->position = calloc(config->n_slot, sizeof(*pipeline->position));
    pipeline->step = calloc(pipeline->depth, sizeof(*pipeline->step));
    pipeline->trace = calloc(pipeline->config.world->n_rank, sizeof(*pipeline->trace));
    bool complete =
        pipeline->position && pipeline->step && pipeline->stats && pipeline->map && pipeline->trace;
    for (uint32_t i = 0; pipeline->trace && i < pipeline->config.world->n_rank; i++)
        pipeline->trace[i].last = &pipeline->trace[i].first;
    for (uint32_t i = 0; complete && i < pipeline->depth; i++) {
        pipeline->step[i].seq = calloc(config->n_slot, sizeof(struct step_seq));
        complete = pipeline->step[i].seq != NULL;
    }
    if (!complete)
        return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for %u steps of %u sequences",
                       pipeline->depth, config->n_slot);
    return ledger_create(&pipeline->ledger, config->hp, &state, err);
}

static enum lm_status start_threads(struct pipeline *pipeline, struct lm_error *err)
{
    pipeline->runs_stage = pthread_create(&pipeline->stage, NULL, run_stage, pipeline) == 0;
    if (pipeline->runs_stage)
        pipeline->runs_receiver = pthread_create(&pipeline->receiver, NULL, receive, pipeline) == 0;
    if (pipeline->runs_receiver) return LM_OK;
    return lm_fail(err, LM_E_FAIL, "pipeline: cannot start its threads");
}

/* The threads end by themselves: what they wait for has come, or has failed. */
static void destroy(struct pipeline *pipeline)
{
    if (pipeline->runs_stage) pthread_join(pipeline->stage, NULL);
    if (pipeline->runs_receiver) pthread_join(pipeline->receiver, NULL);
    ledger_destroy(pipeline->ledger);
    for (uint32_t i = 0; pipeline->step && i < pipeline->depth; i++) {
        clear_step(&pipeline->step[i]);
        free(pipeline->step[i].seq);
    }
    const uint32_t n_told = pipeline->stats && pipeline->map ? pipeline->config.world->n_rank : 0;
    for (uint32_t i = 0; i < n_told; i++) {
        Lean__Stats *const stats = pipeline->stats[i], *const map = pipeline->map[i];
        if (map && map != stats) lean__stats__free_unpacked(map, NULL);
        if (stats) lean__stats__free_unpacked(stats, NULL);
    }
    for (uint32_t i = 0; pipeline->trace && i < pipeline->config.world->n_rank; i++)
        while (pipeline->trace[i].first)
            drop_first(&pipeline->trace[i]);
    free(pipeline->trace);
    free(pipeline->map);
    free(pipeline->stats);
    free(pipeline->step);
    free(pipeline->position);
    free(pipeline->op);
    pthread_cond_destroy(&pipeline->changed);
    pthread_mutex_destroy(&pipeline->lock);
    frame_queue_fini(&pipeline->to_stage);
    free(pipeline);
}

enum lm_status pipeline_create(struct pipeline **out, const struct pipeline_config *config,
                               struct lm_error *err)
{
    assert(config->world->n_rank >= 2);
    struct lm_error own;
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    if (!pipeline) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory");
    if (!err) err = &own;
    pipeline->config = *config;
    pipeline->worker = worker_settings(config->worker);
    pipeline->depth = config->world->n_rank + config->slack;
    frame_queue_init(&pipeline->to_stage);
    pthread_mutex_init(&pipeline->lock, NULL);
    pthread_cond_init(&pipeline->changed, NULL);
    enum lm_status status = create_parts(pipeline, err);
    if (status == LM_OK) status = start_threads(pipeline, err);
    if (status != LM_OK) {
        pipeline->config.on_lost = NULL; /* nothing is: it never was */
        lose(pipeline, err);
        destroy(pipeline);
        return status;
    }
    *out = pipeline;
    return LM_OK;
}

void pipeline_close(struct pipeline *pipeline)
{
    if (!pipeline) return;
    struct lm_error err;
    struct frame *drain = frame_create(0, LEAN__FRAME_TYPE__DRAIN, 0);
    if (drain)
        err.status = send_to_all(pipeline, drain, &err);
    else
        lm_fail(&err, LM_E_NO_MEM, "pipeline: no memory to end");
    if (err.status != LM_OK) give_up(pipeline, &err);
    destroy(pipeline);
}
