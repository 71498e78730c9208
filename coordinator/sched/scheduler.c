/* Slots with their tokens, the choice of a slot for a prompt, and the composition of steps. */
#include "coordinator/sched/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"

/* Reading this many tokens again costs no more than a copy of the state. */
enum { SNAPSHOT_DISTANCE = 64 };

struct slot {
    int32_t *ids;            /* [n_ctx] tokens whose state the slot holds, and the next one */
    uint32_t n;              /* of which the first n are computed */
    uint64_t used;           /* clock of the last use */
    struct request *request; /* NULL: idle. Parked slots never have one */
};

struct scheduler {
    struct scheduler_config config;
    struct slot *slot; /* [n_slot + n_parked] */
    uint64_t clock;
    struct request *queue;         /* by priority, then by arrival */
    struct step_seq *seq;          /* [n_slot] of the step being made */
    struct sampled_token *sampled; /* [n_slot] */
    uint32_t *seq_slot;            /* [n_slot] */
    struct scheduler_stats stats;
};

static uint32_t n_all_slots(const struct scheduler *scheduler)
{
    return scheduler->config.n_slot + scheduler->config.n_parked;
}

enum lm_status scheduler_create(struct scheduler **out, const struct scheduler_config *config,
                                struct lm_error *err)
{
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (!scheduler) return lm_fail(err, LM_E_NO_MEM, "scheduler: no memory");
    scheduler->config = *config;
    scheduler->stats.n_slot = config->n_slot;
    const uint32_t n = n_all_slots(scheduler);
    scheduler->slot = calloc(n, sizeof(*scheduler->slot));
    scheduler->seq = calloc(config->n_slot, sizeof(*scheduler->seq));
    scheduler->sampled = calloc(config->n_slot, sizeof(*scheduler->sampled));
    scheduler->seq_slot = calloc(config->n_slot, sizeof(*scheduler->seq_slot));
    bool complete = scheduler->slot && scheduler->seq && scheduler->sampled && scheduler->seq_slot;
    for (uint32_t i = 0; complete && i < n; i++) {
        scheduler->slot[i].ids = calloc((size_t)config->n_ctx + 1, sizeof(int32_t));
        complete = scheduler->slot[i].ids != NULL;
    }
    if (!complete) {
        scheduler_destroy(scheduler);
        return lm_fail(err, LM_E_NO_MEM, "scheduler: no memory for %u contexts of %u tokens", n,
                       config->n_ctx);
    }
    *out = scheduler;
    return LM_OK;
}

void scheduler_destroy(struct scheduler *scheduler)
{
    if (!scheduler) return;
    for (uint32_t i = 0; scheduler->slot && i < n_all_slots(scheduler); i++)
        free(scheduler->slot[i].ids);
    free(scheduler->seq_slot);
    free(scheduler->sampled);
    free(scheduler->seq);
    free(scheduler->slot);
    free(scheduler);
}

static enum lm_status seq_op(struct scheduler *scheduler, enum seq_op_kind kind, uint32_t slot,
                             uint32_t to, uint32_t n, struct lm_error *err)
{
    const struct seq_op op = {.kind = kind, .slot = slot, .to = to, .n = n};
    const struct step_runner *runner = scheduler->config.runner;
    return runner->seq(runner->context, &op, err);
}

static void clear_slot(struct scheduler *scheduler, uint32_t slot)
{
    seq_op(scheduler, SEQ_CLEAR, slot, 0, 0, NULL);
    scheduler->slot[slot].n = 0;
}

static void fork_slot(struct scheduler *scheduler, uint32_t from, uint32_t to)
{
    struct slot *source = &scheduler->slot[from], *target = &scheduler->slot[to];
    seq_op(scheduler, SEQ_FORK, from, to, 0, NULL);
    memcpy(target->ids, source->ids, source->n * sizeof(*source->ids));
    target->n = source->n;
    target->used = source->used = ++scheduler->clock;
}

/* ---- requests ----------------------------------------------------------------------------- */

enum lm_status scheduler_submit(struct scheduler *scheduler, struct request *request,
                                struct lm_error *err)
{
    assert(request->n_prompt > 0);
    if (request->n_prompt > scheduler->config.n_ctx)
        return lm_fail(err, LM_E_LIMIT, "prompt of %zu tokens does not fit the context of %u",
                       request->n_prompt, scheduler->config.n_ctx);
    request->done = request->stopped = false;
    request->status = LM_OK;
    request->n_cached = request->n_generated = 0;
    if (request->submit_s == 0) request->submit_s = log_now_s();
    request->start_s = request->prefill_end_s = request->end_s = 0;
    struct request **place = &scheduler->queue;
    while (*place && (*place)->priority <= request->priority)
        place = &(*place)->next;
    request->next = *place;
    *place = request;
    scheduler->stats.n_waiting++;
    return LM_OK;
}

/* The last that is done to a request. */
static void end_request(struct request *request)
{
    request->end_s = log_now_s();
    request->done = true;
    if (request->on_end) request->on_end(request->context);
}

static void end_with_error(struct request *request, const struct lm_error *err)
{
    request->status = err->status;
    request->error = *err;
    end_request(request);
}

/* The request leaves its slot; the caller ends it. */
static struct request *leave_slot(struct scheduler *scheduler, struct slot *slot)
{
    struct request *const request = slot->request;
    slot->request = NULL;
    scheduler->stats.n_running--;
    scheduler->stats.n_ended++;
    return request;
}

static struct request *leave_queue(struct scheduler *scheduler, struct request **place)
{
    struct request *const request = *place;
    *place = request->next;
    scheduler->stats.n_waiting--;
    return request;
}

static void finish(struct scheduler *scheduler, struct slot *slot)
{
    end_request(leave_slot(scheduler, slot));
}

static void fail_slot(struct scheduler *scheduler, uint32_t index, const struct lm_error *err)
{
    end_with_error(leave_slot(scheduler, &scheduler->slot[index]), err);
    clear_slot(scheduler, index); /* even if n is 0: the step may have come halfway */
}

void scheduler_fail(struct scheduler *scheduler, double before_s, bool running,
                    const struct lm_error *err)
{
    for (struct request **place = &scheduler->queue; *place;) {
        if ((*place)->submit_s <= before_s)
            end_with_error(leave_queue(scheduler, place), err);
        else
            place = &(*place)->next;
    }
    for (uint32_t i = 0; running && i < scheduler->config.n_slot; i++)
        if (scheduler->slot[i].request)
            end_with_error(leave_slot(scheduler, &scheduler->slot[i]), err);
}

/* ---- choice of a slot --------------------------------------------------------------------- */

static uint32_t common_prefix(const struct slot *slot, const struct request *request)
{
    const size_t n = slot->n < request->n_prompt - 1 ? slot->n : request->n_prompt - 1;
    uint32_t i = 0;
    while (i < n && slot->ids[i] == request->prompt[i])
        i++;
    return i;
}

/* The idle slot that is missed least: an empty one, else the least recently used. n_slot: none. */
static uint32_t least_used(const struct scheduler *scheduler, uint32_t begin, uint32_t end)
{
    uint32_t best = end;
    for (uint32_t i = begin; i < end; i++) {
        const struct slot *slot = &scheduler->slot[i];
        if (slot->request) continue;
        if (best == end) best = i;
        const struct slot *other = &scheduler->slot[best];
        if ((slot->n ? slot->used : 0) < (other->n ? other->used : 0)) best = i;
    }
    return best;
}

/* Cuts an idle slot back to its first n tokens, if its state allows. */
static bool cut_slot(struct scheduler *scheduler, uint32_t index, uint32_t n)
{
    struct slot *slot = &scheduler->slot[index];
    if (slot->request || seq_op(scheduler, SEQ_TRUNCATE, index, 0, n, NULL) != LM_OK) return false;
    slot->n = n;
    return true;
}

/* Finds the slot from which most of the prompt can be continued and brings it into a running slot.
 * Returns that slot, which now holds a prefix of the prompt, perhaps an empty one. */
static uint32_t place_prompt(struct scheduler *scheduler, const struct request *request)
{
    const uint32_t n_slot = scheduler->config.n_slot, n = n_all_slots(scheduler);
    uint32_t limit = UINT32_MAX; /* prefixes of this length and more were tried, in vain */
    while (limit > 0 && !request->on_logits) {
        uint32_t best = n, best_length = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t length = common_prefix(&scheduler->slot[i], request);
            const bool whole = length == scheduler->slot[i].n;
            const bool usable = !scheduler->slot[i].request || whole;
            /* of equals a whole slot, which needs no cut */
            if (usable && length < limit &&
                (length > best_length || (length && length == best_length && whole)))
                best = i, best_length = length;
        }
        if (!best_length) break;
        const bool running = scheduler->slot[best].request != NULL;
        if (best < n_slot && !running && cut_slot(scheduler, best, best_length)) return best;
        if (best_length == scheduler->slot[best].n) {
            const uint32_t to = least_used(scheduler, 0, n_slot);
            fork_slot(scheduler, best, to);
            return to;
        }
        limit = best_length;
    }
    const uint32_t fresh = least_used(scheduler, 0, n_slot);
    if (scheduler->slot[fresh].n) clear_slot(scheduler, fresh);
    return fresh;
}

static void start_queued(struct scheduler *scheduler)
{
    while (scheduler->queue) {
        const uint32_t n_slot = scheduler->config.n_slot;
        if (least_used(scheduler, 0, n_slot) == n_slot) return;
        struct request *request = leave_queue(scheduler, &scheduler->queue);
        scheduler->stats.n_running++;
        request->start_s = log_now_s();
        const uint32_t index = place_prompt(scheduler, request);
        struct slot *slot = &scheduler->slot[index];
        request->n_cached = slot->n;
        slot->request = request;
        slot->used = ++scheduler->clock;
        memcpy(slot->ids, request->prompt, request->n_prompt * sizeof(*slot->ids));
    }
}

/* ---- steps -------------------------------------------------------------------------------- */

static bool is_reading(const struct slot *slot)
{
    return slot->n < slot->request->n_prompt;
}

/* Positions of the prompt before which the state is kept: where the last turn begins, and at the
 * end unless that is near. */
static bool is_checkpoint(const struct scheduler *scheduler, const struct request *request,
                          uint32_t n)
{
    if (!scheduler->config.n_parked || request->on_logits || n == 0) return false;
    const size_t last = request->n_turn ? request->turns[request->n_turn - 1] : 0;
    const bool at_end = n + 1 == request->n_prompt && n - last >= SNAPSHOT_DISTANCE;
    for (size_t i = 0; i < request->n_turn; i++)
        if (n == request->turns[i]) return true;
    return at_end;
}

/* Tokens of the next chunk of a prompt: up to a checkpoint at most. */
static uint32_t chunk_length(const struct scheduler *scheduler, const struct slot *slot)
{
    const struct request *request = slot->request;
    uint32_t n = 1;
    while (n < scheduler->config.prefill_chunk && slot->n + n < request->n_prompt &&
           !is_checkpoint(scheduler, request, slot->n + n))
        n++;
    return n;
}

static void add_to_step(struct scheduler *scheduler, struct step_plan *plan, uint32_t index)
{
    const struct slot *slot = &scheduler->slot[index];
    const struct request *request = slot->request;
    struct step_seq *seq = &scheduler->seq[plan->n_seq];
    const uint32_t n = is_reading(slot) ? chunk_length(scheduler, slot) : 1;
    const bool sample = slot->n + n >= request->n_prompt && request->n_max > 0;
    *seq = (struct step_seq){.slot = index,
                             .ids = slot->ids + slot->n,
                             .n_token = n,
                             .output = sample ? STEP_OUTPUT_SAMPLE : STEP_OUTPUT_NONE,
                             .history = slot->ids,
                             .n_history = slot->n + n,
                             .n_prompt = request->n_prompt,
                             .sampling = &request->sampling,
                             .on_logits = request->on_logits,
                             .context = request->context};
    if (request->on_logits && is_reading(slot)) seq->output = STEP_OUTPUT_LOGITS;
    if (seq->n_history < request->n_prompt) seq->n_prompt = seq->n_history;
    scheduler->seq_slot[plan->n_seq++] = index;
}

static bool comes_first(const struct request *a, const struct request *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->submit_s < b->submit_s;
}

/* Everyone who generates, then the prompt that came first. */
static void compose(struct scheduler *scheduler, struct step_plan *plan)
{
    const uint32_t n_slot = scheduler->config.n_slot;
    uint32_t reader = n_slot;
    *plan = (struct step_plan){.seq = scheduler->seq};
    for (uint32_t i = 0; i < n_slot; i++) {
        const struct slot *slot = &scheduler->slot[i];
        if (!slot->request) continue;
        if (!is_reading(slot))
            add_to_step(scheduler, plan, i);
        else if (reader == n_slot || comes_first(slot->request, scheduler->slot[reader].request))
            reader = i;
    }
    if (reader < n_slot) add_to_step(scheduler, plan, reader);
}

/* Requests that were cancelled leave, those that wait get slots. */
static void settle_slots(struct scheduler *scheduler)
{
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        struct slot *slot = &scheduler->slot[i];
        if (slot->request && atomic_load(&slot->request->cancelled)) finish(scheduler, slot);
    }
    for (struct request **place = &scheduler->queue; *place;) {
        if (atomic_load(&(*place)->cancelled))
            end_request(leave_queue(scheduler, place));
        else
            place = &(*place)->next;
    }
    start_queued(scheduler);
}

/* Runs the step. If there is no room for it, what idle and parked slots hold is given up, and with
 * that the running sequences always fit. */
static enum lm_status run(struct scheduler *scheduler, const struct step_plan *plan,
                          struct lm_error *err)
{
    const struct step_runner *runner = scheduler->config.runner;
    for (;;) {
        const enum lm_status status = runner->step(runner->context, plan, scheduler->sampled, err);
        if (status != LM_E_LIMIT) return status;
        uint32_t victim = n_all_slots(scheduler);
        for (uint32_t i = 0; i < n_all_slots(scheduler); i++) {
            const struct slot *slot = &scheduler->slot[i];
            const bool older =
                victim == n_all_slots(scheduler) || slot->used < scheduler->slot[victim].used;
            if (!slot->request && slot->n && older) victim = i;
        }
        if (victim == n_all_slots(scheduler)) return status;
        clear_slot(scheduler, victim);
    }
}

/* Counts the tokens in, keeps a snapshot where one is due. */
static void advance(struct scheduler *scheduler, uint32_t index, uint32_t n_token)
{
    struct slot *slot = &scheduler->slot[index];
    struct request *request = slot->request;
    const bool reading = is_reading(slot);
    slot->n += n_token;
    slot->used = ++scheduler->clock;
    if (!reading) return;
    if (request->on_prefill) request->on_prefill(request->context, slot->n, request->n_prompt);
    if (is_checkpoint(scheduler, request, slot->n))
        fork_slot(scheduler, index,
                  least_used(scheduler, scheduler->config.n_slot, n_all_slots(scheduler)));
    if (slot->n == request->n_prompt) request->prefill_end_s = log_now_s();
}

/* Passes the sampled token on, and ends the request if it was the last one. */
static void take_token(struct scheduler *scheduler, uint32_t index,
                       const struct sampled_token *token)
{
    struct slot *slot = &scheduler->slot[index];
    struct request *request = slot->request;
    if (is_reading(slot)) return;
    if (request->n_max == 0) {
        finish(scheduler, slot);
        return;
    }
    slot->ids[slot->n] = token->id;
    request->n_generated++;
    request->stopped = !request->on_token(request->context, token);
    if (request->stopped || request->n_generated >= request->n_max ||
        slot->n >= scheduler->config.n_ctx)
        finish(scheduler, slot);
}

bool scheduler_step(struct scheduler *scheduler)
{
    struct step_plan plan;
    struct lm_error err = {.status = LM_OK};
    settle_slots(scheduler);
    compose(scheduler, &plan);
    if (!plan.n_seq) return false;
    err.status = run(scheduler, &plan, &err);
    if (plan.n_seq > scheduler->stats.n_seq_max) scheduler->stats.n_seq_max = plan.n_seq;
    scheduler->stats.n_step++;
    for (uint32_t i = 0; i < plan.n_seq; i++) {
        const uint32_t index = scheduler->seq_slot[i];
        scheduler->stats.n_token += plan.seq[i].n_token;
        if (err.status != LM_OK) {
            fail_slot(scheduler, index, &err);
        } else {
            advance(scheduler, index, plan.seq[i].n_token);
            take_token(scheduler, index, &scheduler->sampled[i]);
        }
    }
    return true;
}

struct scheduler_stats scheduler_stats(const struct scheduler *scheduler)
{
    return scheduler->stats;
}
