/* Places for requests, the way of their prompts through the index, and the composition of steps. */
#include "coordinator/sched/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched/draft_pace.h"
#include "coordinator/sched/pace.h"
#include "coordinator/sched/prefix_index.h"
#include "coordinator/sched/prompt_lookup.h"
#include "proto/base/log.h"

/* Reading this many tokens again costs no more than a copy of the state, or a pause. */
enum { WORTH_KEEPING = 16, WORTH_WAITING = 16 };

/* Where a request runs. */
struct place {
    struct request *request; /* NULL: idle */
    bool waiting;            /* for another sequence to have read what they share; without a slot */
    uint32_t awaited;        /* tokens that it waits for */
    uint32_t slot;           /* of the runner */
    uint32_t n;              /* tokens that steps have been begun for: what the slot will hold */
    uint32_t n_read;         /* tokens whose steps have ended; n - n_read are under way */
    uint32_t n_step;         /* steps under way */
    bool held;               /* reads on when they have ended: its state there is wanted */
    bool ending;             /* leaves when they have ended */
    bool ending_keep;        /* what it has read stays for others */
    struct lm_error failure; /* LM_OK, or why it ends */
    uint32_t kept;           /* so many of them can be had again from a kept state */
    uint64_t order;          /* in which places were given */
    int32_t *ids;            /* [n_ctx + 1] the tokens known so far; drafts of steps under way */
    struct prompt_lookup *lookup;    /* NULL: no drafts of that kind */
    struct draft_record found, made; /* by the lookup, by the runner */
    int32_t *made_ids;               /* [n_made] by the runner, for what follows ids [n + 1] */
    uint32_t n_made;
    bool is_drafted;    /* the runner makes drafts */
    bool verifies_made; /* in the step under way */
    struct scheduler *owner;
};

/* A step that has begun. */
struct under_way {
    struct step_seq *seq;           /* [n_slot] */
    struct sampled_token *sampled;  /* [n_slot] */
    struct lm_error *error;         /* [n_slot] */
    struct expert_usage *experts;   /* [n_slot] */
    struct place **place;           /* [n_slot] */
    bool *keep;                     /* [n_slot] its state behind the step is to be kept */
    struct sampled_token *accepted; /* [n_slot][n_draft of the configuration] */
    uint32_t *n_accepted;           /* [n_slot] */
    uint32_t n_draft, n_wanted;     /* of all */
    uint32_t n_seq, n_token, n_prompt_token, n_generating;
    double begin_s;
};

struct scheduler {
    struct scheduler_config config;
    struct place *place; /* [n_slot] */
    uint32_t *free_slot; /* [n_free] stack of empty slots of the runner */
    uint32_t n_free;
    struct prefix_index *index;
    struct request *queue; /* by priority, then by arrival */
    uint64_t n_started;
    struct pace pace;
    struct draft_pace pace_found, pace_made; /* steps with drafts found, with drafts made */
    struct draft_trial {
        double n_token, seconds; /* of steps of one sequence */
    } trial[2];                  /* without and with drafts that the runner makes */
    struct under_way *step;      /* [depth of the runner] ring */
    uint64_t n_begun, n_ended;   /* steps */
    uint32_t n_chunk, n_part;    /* of the steps under way, those with prompts, with tokens */
    uint32_t n_awaited;          /* tokens under way */
    double last_end_s;
    struct scheduler_stats stats;
};

/* ---- life --------------------------------------------------------------------------------- */

static bool create_step(struct under_way *step, uint32_t n, uint32_t n_draft)
{
    step->accepted = calloc((size_t)n * n_draft + 1, sizeof(*step->accepted));
    step->n_accepted = calloc(n, sizeof(*step->n_accepted));
    step->seq = calloc(n, sizeof(*step->seq));
    step->sampled = calloc(n, sizeof(*step->sampled));
    step->error = calloc(n, sizeof(*step->error));
    step->experts = calloc(n, sizeof(*step->experts));
    step->place = calloc(n, sizeof(struct place *));
    step->keep = calloc(n, sizeof(*step->keep));
    return step->seq && step->sampled && step->error && step->experts && step->place &&
           step->keep && step->accepted && step->n_accepted;
}

static void destroy_step(struct under_way *step)
{
    free(step->n_accepted);
    free(step->accepted);
    free(step->keep);
    free(step->place);
    free(step->experts);
    free(step->error);
    free(step->sampled);
    free(step->seq);
}

static enum lm_status create_places(struct scheduler *scheduler, struct lm_error *err)
{
    const uint32_t n = scheduler->config.n_slot, n_all = n + scheduler->config.n_parked;
    const uint32_t depth = scheduler->config.runner->depth;
    scheduler->place = calloc(n, sizeof(*scheduler->place));
    scheduler->step = calloc(depth, sizeof(*scheduler->step));
    scheduler->free_slot = calloc(n_all, sizeof(*scheduler->free_slot));
    bool complete = scheduler->place && scheduler->step && scheduler->free_slot;
    for (uint32_t i = 0; complete && i < depth; i++)
        complete = create_step(&scheduler->step[i], n, scheduler->config.n_draft);
    for (uint32_t i = 0; complete && i < n; i++) {
        scheduler->place[i].owner = scheduler;
        scheduler->place[i].ids = calloc((size_t)scheduler->config.n_ctx + 1, sizeof(int32_t));
        scheduler->place[i].made_ids = calloc(STEP_DRAFT_MAX, sizeof(int32_t));
        complete = scheduler->place[i].ids && scheduler->place[i].made_ids;
    }
    const bool looks_up = scheduler->config.n_draft && scheduler->config.prompt_lookup;
    for (uint32_t i = 0; complete && looks_up && i < n; i++) {
        const enum lm_status status =
            prompt_lookup_create(&scheduler->place[i].lookup, scheduler->config.n_ctx + 1, err);
        if (status != LM_OK) return status;
    }
    if (!complete)
        return lm_fail(err, LM_E_NO_MEM, "scheduler: no memory for %u contexts of %u tokens", n,
                       scheduler->config.n_ctx);
    while (scheduler->n_free < n_all) {
        scheduler->free_slot[scheduler->n_free] = n_all - 1 - scheduler->n_free;
        scheduler->n_free++;
    }
    return LM_OK;
}

enum lm_status scheduler_create(struct scheduler **out, const struct scheduler_config *config,
                                struct lm_error *err)
{
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (!scheduler) return lm_fail(err, LM_E_NO_MEM, "scheduler: no memory");
    scheduler->config = *config;
    scheduler->stats.n_slot = config->n_slot;
    pace_init(&scheduler->pace, config->prefill_chunk);
    enum lm_status status = create_places(scheduler, err);
    if (status == LM_OK)
        status = prefix_index_create(&scheduler->index, config->n_slot + config->n_parked,
                                     config->logprob_bytes_max, err);
    if (status != LM_OK) {
        scheduler_destroy(scheduler);
        return status;
    }
    *out = scheduler;
    return LM_OK;
}

void scheduler_destroy(struct scheduler *scheduler)
{
    if (!scheduler) return;
    prefix_index_destroy(scheduler->index);
    for (uint32_t i = 0; scheduler->place && i < scheduler->config.n_slot; i++) {
        prompt_lookup_destroy(scheduler->place[i].lookup);
        free(scheduler->place[i].made_ids);
        free(scheduler->place[i].ids);
    }
    for (uint32_t i = 0; scheduler->step && i < scheduler->config.runner->depth; i++)
        destroy_step(&scheduler->step[i]);
    free(scheduler->free_slot);
    free(scheduler->step);
    free(scheduler->place);
    free(scheduler);
}

/* ---- slots of the runner ------------------------------------------------------------------ */

static enum lm_status fork_slot(struct scheduler *scheduler, uint32_t from, uint32_t to, uint32_t n)
{
    const struct seq_op op = {.kind = SEQ_FORK, .slot = from, .to = to, .n = n};
    return scheduler->config.runner->seq(scheduler->config.runner->context, &op, NULL);
}

/* Behind a step with drafts: n tokens stay. */
static void cut_slot(struct scheduler *scheduler, uint32_t slot, uint32_t n)
{
    const struct seq_op op = {.kind = SEQ_CUT, .slot = slot, .n = n};
    scheduler->config.runner->seq(scheduler->config.runner->context, &op, NULL);
}

static void clear_slot(struct scheduler *scheduler, uint32_t slot)
{
    const struct seq_op op = {.kind = SEQ_CLEAR, .slot = slot};
    scheduler->config.runner->seq(scheduler->config.runner->context, &op, NULL);
}

static void give_slot(struct scheduler *scheduler, uint32_t slot)
{
    clear_slot(scheduler, slot);
    scheduler->free_slot[scheduler->n_free++] = slot;
}

/* A slot to write to, empty or with what nobody needs any more: of the kept states the least
 * recently used one, other than `but`, gives its slot up. PREFIX_NO_SLOT: there is none. */
static uint32_t take_slot(struct scheduler *scheduler, uint32_t but)
{
    if (scheduler->n_free) return scheduler->free_slot[--scheduler->n_free];
    const uint32_t slot = prefix_index_oldest(scheduler->index, but);
    if (slot == PREFIX_NO_SLOT) return slot;
    prefix_index_drop(scheduler->index, slot);
    scheduler->stats.n_evicted_state++;
    return slot;
}

/* Gives up one kept state for the room that it takes. False: there is none. */
static bool make_room(struct scheduler *scheduler)
{
    const uint32_t slot = prefix_index_oldest(scheduler->index, PREFIX_NO_SLOT);
    if (slot == PREFIX_NO_SLOT) return false;
    prefix_index_drop(scheduler->index, slot);
    give_slot(scheduler, slot);
    scheduler->stats.n_evicted_kv++;
    return true;
}

/* Leaves the state of a sequence, n tokens, in the index for others to go on from. */
static void keep_slot(struct scheduler *scheduler, struct prefix_node *node, uint32_t n,
                      uint32_t slot)
{
    if (!n || !prefix_index_keep(scheduler->index, node, n, slot)) {
        give_slot(scheduler, slot);
        return;
    }
    uint32_t covered = PREFIX_NO_SLOT;
    while (scheduler->config.can_cut &&
           (covered = prefix_index_drop_above(scheduler->index, slot)) != PREFIX_NO_SLOT)
        give_slot(scheduler, covered);
}

/* ---- requests ----------------------------------------------------------------------------- */

enum lm_status scheduler_submit(struct scheduler *scheduler, struct request *request,
                                struct lm_error *err)
{
    assert(request->n_prompt > 0);
    if (request->n_prompt > scheduler->config.n_ctx)
        return lm_fail(err, LM_E_LIMIT, "prompt of %zu tokens does not fit the context of %u",
                       request->n_prompt, scheduler->config.n_ctx);
    request->node = NULL;
    if (!request->no_cache) {
        const enum lm_status status =
            prefix_index_hold(scheduler->index, request->cache_key, request->prompt,
                              (uint32_t)request->n_prompt, &request->node, err);
        if (status != LM_OK) return status;
    }
    request->done = request->stopped = false;
    request->status = LM_OK;
    request->n_cached = request->n_generated = 0;
    request->n_draft = request->n_draft_accepted = 0;
    request->experts = (struct expert_usage){0};
    if (request->submit_s == 0) request->submit_s = log_now_s();
    request->start_s = request->prefill_end_s = request->end_s = 0;
    struct request **link = &scheduler->queue;
    while (*link && (*link)->priority <= request->priority)
        link = &(*link)->next;
    request->next = *link;
    *link = request;
    scheduler->stats.n_waiting++;
    return LM_OK;
}

/* The last that is done to a request. */
static void end_request(struct scheduler *scheduler, struct request *request,
                        const struct lm_error *err)
{
    if (request->node) prefix_index_release(scheduler->index, request->node);
    request->node = NULL;
    if (err) {
        request->status = err->status;
        request->error = *err;
    }
    request->end_s = log_now_s();
    request->done = true;
    if (request->on_end) request->on_end(request->context);
}

static struct request *leave_queue(struct scheduler *scheduler, struct request **link)
{
    struct request *const request = *link;
    *link = request->next;
    scheduler->stats.n_waiting--;
    return request;
}

/* The node behind what a sequence has read, held. NULL: no memory, or it is not to be kept. */
static struct prefix_node *hold_sequence(struct scheduler *scheduler, const struct place *place)
{
    struct prefix_node *node = NULL;
    const struct request *request = place->request;
    if (request->node)
        prefix_index_hold(scheduler->index, request->cache_key, place->ids, place->n, &node, NULL);
    return node;
}

/* Ends the request of a place. What its sequence has read stays for others, unless it failed with
 * the step. While steps of it are under way it only takes part in nothing more; the first reason
 * to end counts. */
static void leave_place(struct scheduler *scheduler, struct place *place, bool keep,
                        const struct lm_error *err)
{
    struct request *const request = place->request;
    if (place->n_step) {
        if (!place->ending && err) place->failure = *err;
        place->ending_keep = keep && (place->ending_keep || !place->ending);
        place->ending = true;
        return;
    }
    if (!place->waiting) {
        struct prefix_node *node = keep ? hold_sequence(scheduler, place) : NULL;
        if (node) {
            keep_slot(scheduler, node, place->n, place->slot);
            prefix_index_release(scheduler->index, node);
        } else {
            give_slot(scheduler, place->slot);
        }
    }
    place->request = NULL;
    place->waiting = place->held = place->ending = false;
    scheduler->stats.n_running--;
    scheduler->stats.n_ended++;
    end_request(scheduler, request, err);
}

void scheduler_fail(struct scheduler *scheduler, double before_s, bool running,
                    const struct lm_error *err)
{
    for (struct request **link = &scheduler->queue; *link;) {
        if ((*link)->submit_s <= before_s)
            end_request(scheduler, leave_queue(scheduler, link), err);
        else
            link = &(*link)->next;
    }
    for (uint32_t i = 0; running && i < scheduler->config.n_slot; i++)
        if (scheduler->place[i].request) leave_place(scheduler, &scheduler->place[i], true, err);
}

/* ---- where a prompt can go on from -------------------------------------------------------- */

static bool is_running(const struct place *place)
{
    return place->request && !place->waiting && !place->ending;
}

static bool is_reading(const struct place *place)
{
    return is_running(place) && place->n < place->request->n_prompt;
}

/* Its next token need not be known yet. */
static bool is_generating(const struct place *place)
{
    return is_running(place) && place->n >= place->request->n_prompt;
}

static bool wants_logprobs(const struct request *request)
{
    return request->on_prompt_token != NULL;
}

/* Prompt tokens that need not be read: all but the last, whose logits are wanted, and where
 * log-probabilities are, all but the one before the first that is not known. */
static uint32_t skippable(const struct request *request)
{
    const uint32_t n = (uint32_t)request->n_prompt - 1;
    if (request->on_logits || !request->node) return 0;
    if (!wants_logprobs(request)) return n;
    if (request->n_prompt_logprob > PREFIX_N_TOP) return 0;
    const uint32_t known = prefix_index_first_without_logprob(request->node);
    return known ? known - 1 : 0;
}

/* What a request can take over from one that is reading, when that has come so far. */
static uint32_t shareable(const struct request *request, const struct request *reader)
{
    const uint32_t last = (uint32_t)request->n_prompt - 1;
    if (!request->node || !reader->node || request->on_logits) return 0;
    const uint32_t common = prefix_index_common(request->node, reader->node);
    if (!wants_logprobs(request)) return common < last ? common : last;
    if (request->n_prompt_logprob > PREFIX_N_TOP || !wants_logprobs(reader)) return 0;
    /* what follows the common part has its log-probability behind the part's last token */
    const uint32_t before = common ? common - 1 : 0;
    return before < last ? before : last;
}

/* Whether waiting for n tokens is better than going on from `now` of them. Who has waited so long
 * waits for all: the reader stops there. */
static bool is_worth_waiting(const struct place *place, uint32_t n, uint32_t now)
{
    return n >= now + WORTH_WAITING ||
           (n > now && (n + 1 == place->request->n_prompt || n == place->awaited));
}

/* A beginning of a prompt, and the slot that has it; perhaps more than that. */
struct source {
    uint32_t slot, n;
};

/* The best running sequence. *coming: what one that is reading will have; one of a lower priority
 * may be kept from reading for long, and is not waited for. */
static struct source find_running(const struct scheduler *scheduler, const struct request *request,
                                  uint32_t *coming)
{
    struct source best = {.slot = PREFIX_NO_SLOT};
    const uint32_t limit = skippable(request);
    *coming = 0;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        const struct place *other = &scheduler->place[i];
        if (!is_running(other) || !other->request->node || !request->node) continue;
        const uint32_t share = shareable(request, other->request);
        const bool may_lag = other->request->priority > request->priority;
        const uint32_t at = scheduler->config.can_cut ? other->n_read : other->n;
        if (other->n_read < other->request->n_prompt && at < share && !may_lag && share > *coming)
            *coming = share;
        uint32_t n = prefix_index_common(request->node, other->request->node);
        if (n > other->n_read) n = other->n_read; /* a step under way may fail */
        if (n > limit) n = limit;
        if (n > best.n && (scheduler->config.can_cut || n == other->n))
            best = (struct source){.slot = other->slot, .n = n};
    }
    return best;
}

/* The best of what is kept and what runs. try_cut: kept states that go further count too. */
static struct source find_best(const struct request *request, struct source running, bool try_cut)
{
    struct source best = {.slot = PREFIX_NO_SLOT}, cut;
    const uint32_t limit = skippable(request);
    if (limit) best.slot = prefix_index_find_exact(request->node, limit, &best.n);
    if (limit && try_cut) {
        cut.slot = prefix_index_find(request->node, limit, &cut.n);
        if (cut.n > best.n) best = cut;
    }
    return running.n > best.n ? running : best;
}

/* Brings as much of the prompt as can be had into a slot, perhaps nothing. Returns how much. */
static uint32_t fork_best(struct scheduler *scheduler, const struct request *request,
                          struct source running, uint32_t *slot)
{
    *slot = PREFIX_NO_SLOT;
    for (int attempt = 0; attempt < 2; attempt++) { /* a window may have passed where one cuts */
        const struct source from = find_best(request, running, attempt == 0);
        if (!from.n) break;
        if (*slot == PREFIX_NO_SLOT) *slot = take_slot(scheduler, from.slot);
        if (*slot == PREFIX_NO_SLOT) break;
        if (fork_slot(scheduler, from.slot, *slot, from.n) != LM_OK) continue;
        if (from.slot != running.slot) prefix_index_touch(scheduler->index, from.slot);
        return from.n;
    }
    if (*slot == PREFIX_NO_SLOT) *slot = take_slot(scheduler, PREFIX_NO_SLOT);
    assert(*slot != PREFIX_NO_SLOT); /* there are more slots than places in use */
    clear_slot(scheduler, *slot);
    return 0;
}

/* Hands out the log-probabilities of the skipped prompt tokens, and of the one behind them. */
static void give_known_logprobs(const struct request *request, uint32_t n_skipped)
{
    struct sampled_token token;
    for (uint32_t pos = 1; wants_logprobs(request) && n_skipped && pos <= n_skipped; pos++) {
        prefix_index_logprob(request->node, pos, request->n_prompt_logprob, &token);
        request->on_prompt_token(request->context, pos, &token);
    }
}

/* Starts reading, or waits for a sequence that is about to have much more of the prompt. */
static void start_reading(struct scheduler *scheduler, struct place *place)
{
    struct request *const request = place->request;
    uint32_t coming;
    const struct source running = find_running(scheduler, request, &coming);
    const uint32_t now = find_best(request, running, scheduler->config.can_cut).n;
    place->waiting = is_worth_waiting(place, coming, now);
    place->awaited = coming;
    if (place->waiting) return;
    place->n = place->n_read = place->kept = fork_best(scheduler, request, running, &place->slot);
    request->n_cached = place->n;
    scheduler->stats.n_prompt_token += request->n_prompt;
    scheduler->stats.n_hit_token += place->n;
    give_known_logprobs(request, place->n);
}

static struct place *idle_place(struct scheduler *scheduler)
{
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++)
        if (!scheduler->place[i].request) return &scheduler->place[i];
    return NULL;
}

/* Whether the runner shall make drafts for the next sequence. To be able to costs time in every
 * step, so automatically it shall once some sequence went faster with them than others without. */
static bool is_to_be_drafted(const struct scheduler *scheduler)
{
    enum { TRIAL = 64 };
    const struct draft_trial *plain = &scheduler->trial[0], *drafted = &scheduler->trial[1];
    if (!scheduler->config.n_draft || scheduler->config.mtp != DRAFTING_AUTO)
        return scheduler->config.n_draft && scheduler->config.mtp == DRAFTING_ON;
    if (plain->n_token < TRIAL || drafted->n_token < TRIAL) return plain->n_token >= TRIAL;
    return drafted->n_token * plain->seconds > DRAFT_PACE_GAIN * plain->n_token * drafted->seconds;
}

/* Requests that were cancelled leave, those that wait get places, and go on as far as others have
 * come. */
static void settle_places(struct scheduler *scheduler)
{
    struct place *place;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        place = &scheduler->place[i];
        if (place->request && atomic_load(&place->request->cancelled))
            leave_place(scheduler, place, true, NULL);
    }
    for (struct request **link = &scheduler->queue; *link;) {
        if (atomic_load(&(*link)->cancelled))
            end_request(scheduler, leave_queue(scheduler, link), NULL);
        else
            link = &(*link)->next;
    }
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++)
        if (scheduler->place[i].waiting) start_reading(scheduler, &scheduler->place[i]);
    while (scheduler->queue && (place = idle_place(scheduler))) {
        struct request *const request = leave_queue(scheduler, &scheduler->queue);
        scheduler->stats.n_running++;
        request->start_s = log_now_s();
        memcpy(place->ids, request->prompt, request->n_prompt * sizeof(*place->ids));
        if (place->lookup) prompt_lookup_reset(place->lookup);
        place->found = place->made = (struct draft_record){.n_tried = 0};
        place->n_made = 0;
        place->is_drafted = is_to_be_drafted(scheduler);
        place->request = request;
        place->waiting = true;
        place->awaited = 0;
        place->failure.status = LM_OK;
        place->order = scheduler->n_started++;
        start_reading(scheduler, place);
    }
}

/* ---- checkpoints -------------------------------------------------------------------------- */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The next position that a turn begins at and that is not near a kept state, or is the last. */
static uint32_t next_turn(const struct place *place)
{
    const struct request *request = place->request;
    for (size_t i = 0; i < request->n_turn; i++) {
        const bool wanted =
            i + 1 == request->n_turn || request->turns[i] >= place->kept + WORTH_KEEPING;
        if (request->turns[i] > place->n && wanted) return (uint32_t)request->turns[i];
    }
    return UINT32_MAX;
}

/* The position before the last prompt token, unless that is near another checkpoint. */
static uint32_t end_of_prompt(const struct place *place)
{
    const struct request *request = place->request;
    const uint32_t last = (uint32_t)request->n_prompt - 1;
    const size_t turn = request->n_turn ? request->turns[request->n_turn - 1] : 0;
    const uint32_t kept = turn > place->kept ? (uint32_t)turn : place->kept;
    return last > place->n && last >= kept + WORTH_KEEPING ? last : UINT32_MAX;
}

/* Where the sequence of another request parts from this one's. Log-probabilities behind the last
 * common token differ, so that one who wants them reads it again. */
static uint32_t next_branch(const struct place *place)
{
    const uint32_t back = wants_logprobs(place->request), after = place->kept + WORTH_KEEPING;
    const uint32_t from = (after > place->n + 1 ? after : place->n + 1) + back - 1;
    const uint32_t branch = prefix_index_next_branch(place->request->node, from);
    return branch == UINT32_MAX ? branch : branch - back;
}

/* The next position of a prompt at which its state is to be kept. UINT32_MAX: none. */
static uint32_t next_checkpoint(const struct scheduler *scheduler, const struct place *place)
{
    const uint32_t every = scheduler->config.checkpoint_every;
    if (scheduler->config.can_cut || !scheduler->config.n_parked || !place->request->node ||
        place->request->on_logits)
        return UINT32_MAX;
    const uint32_t by_turn = least(next_turn(place), end_of_prompt(place));
    const uint32_t next = least(by_turn, next_branch(place));
    return every ? least(next, (place->n / every + 1) * every) : next;
}

/* The next position that a sequence waits for. */
static uint32_t next_awaited(const struct scheduler *scheduler, const struct place *place)
{
    uint32_t next = UINT32_MAX;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        const struct place *other = &scheduler->place[i];
        if (!other->waiting) continue;
        const uint32_t share = shareable(other->request, place->request);
        if (share > place->n) next = least(next, share);
    }
    return next;
}

/* Copies the state of a sequence that goes on, if there is none like it yet. */
static void keep_checkpoint(struct scheduler *scheduler, struct place *place)
{
    uint32_t n;
    prefix_index_find_exact(place->request->node, place->n, &n);
    if (n == place->n) {
        place->kept = n;
        return;
    }
    const uint32_t slot = take_slot(scheduler, PREFIX_NO_SLOT);
    place->kept = place->n;
    if (slot == PREFIX_NO_SLOT) return;
    if (fork_slot(scheduler, place->slot, slot, place->n) == LM_OK)
        keep_slot(scheduler, place->request->node, place->n, slot);
    else
        give_slot(scheduler, slot);
}

/* ---- steps -------------------------------------------------------------------------------- */

static void take_target(void *context, uint32_t pos, const struct sampled_token *token)
{
    const struct place *place = context;
    struct request *const request = place->request;
    struct sampled_token given = *token;
    if (place->ending) return; /* a step before may have failed */
    if (request->node) prefix_index_keep_logprob(place->owner->index, request->node, pos, token);
    if (given.n_top > request->n_prompt_logprob) given.n_top = request->n_prompt_logprob;
    request->on_prompt_token(request->context, pos, &given);
}

static struct sampled_token *accepted_of(const struct under_way *step,
                                         const struct scheduler *scheduler, uint32_t i)
{
    return step->accepted + (size_t)i * scheduler->config.n_draft;
}

/* Adds the next n tokens of a sequence to the step, the last n_draft of them drafts. */
static void add_to_step(struct under_way *step, struct place *place, uint32_t n, uint32_t n_draft)
{
    const struct request *request = place->request;
    const uint32_t end = place->n + n, i = step->n_seq++;
    const uint32_t n_prompt = (uint32_t)request->n_prompt;
    const bool sample = end >= n_prompt && request->n_max > 0;
    step->error[i].status = LM_OK;
    step->experts[i] = (struct expert_usage){0};
    step->place[i] = place;
    step->keep[i] = false;
    step->n_token += n;
    step->n_draft += n_draft;
    step->n_accepted[i] = 0;
    step->seq[i] = (struct step_seq){.slot = place->slot,
                                     .ids = place->ids + place->n,
                                     .n_token = n,
                                     .n_draft = n_draft,
                                     .accepted = accepted_of(step, place->owner, i),
                                     .n_accepted = &step->n_accepted[i],
                                     .drafts = place->made_ids,
                                     .n_drafted = &place->n_made,
                                     .is_drafted = place->is_drafted,
                                     .next = end < n_prompt ? place->ids[end] : -1,
                                     .output = sample ? STEP_OUTPUT_SAMPLE : STEP_OUTPUT_NONE,
                                     .history = place->ids,
                                     .n_history = end,
                                     .n_prompt = least(end, n_prompt),
                                     .sampling = &request->sampling,
                                     .context = request->context,
                                     .experts = &step->experts[i],
                                     .error = &step->error[i]};
    struct step_seq *const seq = &step->seq[i];
    if (is_reading(place) && request->on_logits) {
        seq->output = STEP_OUTPUT_LOGITS;
        seq->on_logits = request->on_logits;
    } else if (is_reading(place) && wants_logprobs(request)) {
        const int32_t n_top = request->n_prompt_logprob;
        seq->targets = seq->ids + 1;
        seq->n_target = end < n_prompt ? n : n - 1;
        seq->n_target_top = n_top > PREFIX_N_TOP ? n_top : PREFIX_N_TOP;
        seq->on_target = take_target;
        seq->context = place;
    }
}

/* In order of priority, then of places given. */
static bool is_behind(const struct place *a, const struct place *b)
{
    const int32_t pa = a->request->priority, pb = b->request->priority;
    return pa != pb ? pa > pb : a->order > b->order;
}

/* Of those that can read on the first one behind the one given, or of all. */
static struct place *next_reader(struct scheduler *scheduler, const struct place *last)
{
    struct place *first = NULL;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        struct place *place = &scheduler->place[i];
        if (!is_reading(place) || (place->held && place->n_step)) continue;
        if (last && !is_behind(place, last)) continue;
        if (!first || is_behind(first, place)) first = place;
    }
    return first;
}

/* Whether each next token is sampled like the one before. */
static bool is_steered(const struct request *request)
{
    return request->sampling.allowed || request->sampling.is_forced;
}

/* Puts drafts behind the last token of a sequence; returns how many. n_row: rows of the step
 * without drafts; n_left: so many more may it have. */
static uint32_t draft(struct scheduler *scheduler, struct place *place, uint32_t n_row,
                      uint32_t n_left)
{
    const struct request *request = place->request;
    const size_t n_wanted = request->n_max - request->n_generated - 1;
    const uint32_t n_known = place->n + 1, n_room = scheduler->config.n_ctx - n_known;
    uint32_t n = least(least(scheduler->config.n_draft, n_left), n_room);
    if (n_wanted < n) n = (uint32_t)n_wanted;
    if (!n || is_steered(request)) return 0;
    uint32_t n_found = 0;
    place->verifies_made = false;
    if (place->lookup)
        n_found = prompt_lookup_find(place->lookup, place->ids, n_known, place->ids + n_known, n);
    n_found = draft_pace_choose(&scheduler->pace_found, &place->found,
                                scheduler->config.prompt_lookup == DRAFTING_AUTO, n_row, n_found);
    if (n_found || !place->n_made) return n_found;
    place->verifies_made = true;
    n = least(n, place->n_made);
    memcpy(place->ids + n_known, place->made_ids, n * sizeof(*place->ids));
    return n;
}

/* How many drafts the runner shall make of what follows the token that is sampled now. */
static uint32_t want_drafts(struct scheduler *scheduler, const struct place *place, uint32_t n_row)
{
    const struct request *request = place->request;
    const size_t n_behind = request->n_max - request->n_generated;
    uint32_t n = scheduler->config.n_draft;
    if (!place->is_drafted || is_steered(request) || n_behind < 3) return 0;
    if (n_behind - 2 < n) n = (uint32_t)n_behind - 2;
    return draft_pace_choose(&scheduler->pace_made, &place->made,
                             scheduler->config.mtp == DRAFTING_AUTO, n_row, n);
}

/* Adds prompts, n_left tokens at most. */
static void add_prompts(struct scheduler *scheduler, struct under_way *step, uint32_t n_left)
{
    for (struct place *place = NULL; n_left && (place = next_reader(scheduler, place));) {
        const uint32_t n_prompt = (uint32_t)place->request->n_prompt;
        const uint32_t checkpoint = next_checkpoint(scheduler, place);
        const uint32_t awaited = next_awaited(scheduler, place);
        const uint32_t n = least(n_left, least(n_prompt, least(checkpoint, awaited)) - place->n);
        const uint32_t end = place->n + n;
        add_to_step(step, place, n, 0);
        step->keep[step->n_seq - 1] = end == checkpoint;
        place->held = end == checkpoint || end == awaited;
        step->n_prompt_token += n;
        if (end == n_prompt && place->request->n_max)
            step->seq[step->n_seq - 1].n_wanted = want_drafts(scheduler, place, 1);
        n_left -= n;
    }
}

/* Tokens of prompts in the next step. Where there are several stages and nobody generates, what
 * there is to read is cut into as many pieces, and a few more. */
static uint32_t chunk_size(const struct scheduler *scheduler, uint32_t n_generating)
{
    const uint32_t depth = scheduler->config.runner->depth, shortest = scheduler->config.chunk_min;
    uint32_t chunk = pace_chunk(&scheduler->pace, n_generating);
    uint64_t n_left = 0;
    if (depth == 1 || !shortest || n_generating) return chunk;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++) {
        const struct place *place = &scheduler->place[i];
        if (is_reading(place)) n_left += place->request->n_prompt - place->n_read;
    }
    const uint64_t piece = (n_left + depth - 1) / depth;
    if (piece < chunk) chunk = piece > shortest ? (uint32_t)piece : least(shortest, chunk);
    return chunk;
}

/* How many parts n_generating are dealt out in: one for each stage, or as many more as the runner
 * takes where that makes them shorter by more than it costs. Each stage then works on each part
 * once a round; a part is taken to cost a row more than it has, for the weights that all rows
 * share. */
static uint32_t part_count(const struct scheduler *scheduler, uint32_t n_generating)
{
    const struct step_runner *runner = scheduler->config.runner;
    uint32_t best = runner->n_stage;
    uint64_t least_cost = UINT64_MAX;
    if (n_generating <= runner->n_stage) return n_generating;
    for (uint32_t n_part = runner->n_stage; n_part <= runner->depth; n_part++) {
        const uint64_t cost = n_part * (1 + (uint64_t)(n_generating + n_part - 1) / n_part);
        if (cost < least_cost) best = n_part, least_cost = cost;
    }
    return best;
}

/* Sequences in the next part, so that all become as alike as can be. */
static uint32_t part_size(const struct scheduler *scheduler, uint32_t n_generating)
{
    const uint32_t n_part = part_count(scheduler, n_generating);
    if (scheduler->n_part >= n_part) return 0;
    const uint32_t n_left = n_generating - scheduler->n_awaited;
    const uint32_t n_part_left = n_part - scheduler->n_part;
    return least((n_left + n_part_left - 1) / n_part_left, (n_generating + n_part - 1) / n_part);
}

/* Drafts in the next step. They leave half of the chunk to prompts that can be read. */
static uint32_t draft_room(struct scheduler *scheduler)
{
    const uint32_t chunk = scheduler->config.prefill_chunk;
    return next_reader(scheduler, NULL) ? chunk / 2 : chunk;
}

/* A part of those who generate, then prompts as far as the chunk goes. Beside those who generate
 * one chunk is under way at a time, so that it does not hold up every part of them. */
static void compose(struct scheduler *scheduler, struct under_way *step)
{
    uint32_t n_generating = 0;
    step->n_seq = step->n_token = step->n_prompt_token = 0;
    step->n_draft = step->n_wanted = 0;
    for (uint32_t i = 0; i < scheduler->config.n_slot; i++)
        n_generating += is_generating(&scheduler->place[i]);
    const uint32_t size = part_size(scheduler, n_generating), room = draft_room(scheduler);
    for (uint32_t i = 0; i < scheduler->config.n_slot && step->n_seq < size; i++) {
        struct place *const place = &scheduler->place[i];
        if (!is_generating(place) || place->n_step) continue;
        const uint32_t n_left = room - step->n_draft;
        const uint32_t n_draft = draft(scheduler, place, size + step->n_draft, n_left);
        add_to_step(step, place, 1 + n_draft, n_draft);
        step->seq[step->n_seq - 1].n_wanted = want_drafts(scheduler, place, size);
        step->n_wanted += step->seq[step->n_seq - 1].n_wanted;
        place->n_made = 0;
    }
    step->n_generating = step->n_seq;
    const uint32_t n_left = scheduler->config.prefill_chunk - step->n_draft;
    if (!n_generating || !scheduler->n_chunk)
        add_prompts(scheduler, step, least(n_left, chunk_size(scheduler, n_generating)));
}

static void drop_drafts(struct under_way *step)
{
    for (uint32_t i = 0; i < step->n_seq; i++) {
        struct step_seq *const seq = &step->seq[i];
        seq->n_token -= seq->n_draft;
        seq->n_history -= seq->n_draft;
        step->n_token -= seq->n_draft;
        seq->n_draft = 0;
    }
    step->n_draft = 0;
}

/* Hands the step over. If there is no room for it drafts are dropped, then kept states are given
 * up; with that the running sequences fit, if memory was planned for them; if it was not the last
 * one fails, unless steps are under way that may end others. */
static enum lm_status hand_over(struct scheduler *scheduler, struct under_way *step,
                                struct lm_error *err)
{
    const struct step_runner *runner = scheduler->config.runner;
    for (;;) {
        const struct step_plan plan = {.seq = step->seq, .n_seq = step->n_seq};
        const enum lm_status status = runner->begin(runner->context, &plan, step->sampled, err);
        if (status != LM_E_LIMIT) return status;
        if (step->n_draft) {
            drop_drafts(step);
            continue;
        }
        if (make_room(scheduler)) continue;
        if (step->n_seq == 1 || scheduler->n_begun > scheduler->n_ended) return status;
        const uint32_t i = --step->n_seq, n_token = step->seq[i].n_token;
        step->n_token -= n_token;
        if (is_reading(step->place[i]))
            step->n_prompt_token -= n_token;
        else
            step->n_generating--;
        leave_place(scheduler, step->place[i], false, err);
    }
}

/* False: there is nothing to begin, or no room while others are under way. */
static bool begin_step(struct scheduler *scheduler)
{
    struct lm_error err = {.status = LM_OK};
    const uint64_t n_under_way = scheduler->n_begun - scheduler->n_ended;
    struct under_way *const step =
        &scheduler->step[scheduler->n_begun % scheduler->config.runner->depth];
    compose(scheduler, step);
    if (!step->n_seq) return false;
    step->begin_s = log_now_s();
    err.status = hand_over(scheduler, step, &err);
    if (err.status == LM_E_LIMIT && n_under_way) return false;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        struct place *const place = step->place[i];
        if (err.status != LM_OK) {
            expert_usage_add(&place->request->experts, &step->experts[i]);
            leave_place(scheduler, place, false, &err);
            continue;
        }
        place->n += step->seq[i].n_token;
        place->n_step++;
        place->request->n_draft += step->seq[i].n_draft;
        scheduler->stats.n_draft += step->seq[i].n_draft;
        scheduler->stats.n_draft_step += step->seq[i].n_draft > 0;
    }
    if (err.status != LM_OK) return true;
    scheduler->n_begun++;
    scheduler->n_chunk += step->n_prompt_token > 0;
    scheduler->n_part += step->n_generating > 0;
    scheduler->n_awaited += step->n_generating;
    if (n_under_way + 1 > scheduler->stats.n_under_way_max)
        scheduler->stats.n_under_way_max = (uint32_t)n_under_way + 1;
    return true;
}

/* Counts the tokens in and keeps the state where that is due. */
static void advance(struct scheduler *scheduler, struct place *place, uint32_t n_token, bool keep)
{
    struct request *request = place->request;
    const bool was_reading = place->n_read < request->n_prompt;
    place->n_read += n_token;
    if (!was_reading || place->ending) return;
    if (request->on_prefill)
        request->on_prefill(request->context, place->n_read, request->n_prompt);
    if (keep) keep_checkpoint(scheduler, place);
    if (place->n_read == request->n_prompt) request->prefill_end_s = log_now_s();
}

/* Passes a sampled token on. False: it was the last one. */
static bool pass_token(struct scheduler *scheduler, struct place *place,
                       const struct sampled_token *token)
{
    struct request *request = place->request;
    place->ids[place->n] = token->id;
    request->n_generated++;
    request->stopped = !request->on_token(request->context, token);
    return !request->stopped && request->n_generated < request->n_max &&
           place->n < scheduler->config.n_ctx;
}

/* Passes on what was sampled in place of drafts: those are read already. *goes_on: the token behind
 * them may follow. False: the request has ended. */
static bool pass_accepted(struct scheduler *scheduler, struct place *place,
                          const struct sampled_token *accepted, uint32_t n, bool *goes_on)
{
    struct request *request = place->request;
    *goes_on = true;
    for (uint32_t i = 0; i < n && *goes_on; i++) {
        request->n_draft_accepted++;
        scheduler->stats.n_draft_accepted++;
        if (!pass_token(scheduler, place, &accepted[i])) return false;
        *goes_on = !is_steered(request);
        if (!*goes_on) break;
        place->n++;
        place->n_read++;
    }
    return true;
}

/* What has become of a sequence's part of a step: its tokens are passed on, drafts that were not
 * sampled taken back, and the request ends if it is over. failed: of the sequence, behind those
 * that were accepted; or LM_OK. */
static void take_tokens(struct scheduler *scheduler, const struct under_way *step, uint32_t i,
                        const struct lm_error *failed)
{
    struct place *const place = step->place[i];
    const struct request *request = place->request;
    const uint32_t n_draft = step->seq[i].n_draft, n_accepted = step->n_accepted[i];
    const bool has_tokens = !place->ending && place->n_read >= request->n_prompt;
    bool goes_on = true, lasts = !has_tokens || request->n_max > 0;
    if (has_tokens && n_draft)
        lasts =
            pass_accepted(scheduler, place, accepted_of(step, scheduler, i), n_accepted, &goes_on);
    if (n_draft) {
        draft_record_note(place->verifies_made ? &place->made : &place->found, n_draft, n_accepted);
        cut_slot(scheduler, place->slot, place->n);
    }
    if (lasts && goes_on && failed->status != LM_OK) {
        leave_place(scheduler, place, false, failed);
        return;
    }
    if (!goes_on) place->n_made = 0; /* behind another token */
    if (lasts && goes_on && has_tokens) lasts = pass_token(scheduler, place, &step->sampled[i]);
    if (!lasts) leave_place(scheduler, place, true, NULL);
}

/* A step that verifies drafts which the runner made is one of a row of such if it makes as many. */
static void note_drafts(struct scheduler *scheduler, const struct under_way *step, double seconds)
{
    const struct place *const place = step->place[0];
    struct draft_trial *const trial = &scheduler->trial[place->is_drafted];
    /* who goes on from a kept state may find that the runner cannot */
    if (step->n_seq == 1 && (!place->is_drafted || place->made.n_tried > 0)) {
        trial->n_token += 1 + step->n_accepted[0];
        trial->seconds += seconds;
    }
    if (!step->n_wanted) draft_pace_note(&scheduler->pace_found, step->n_token, seconds);
    if (step->n_wanted == step->n_draft)
        draft_pace_note(&scheduler->pace_made, step->n_token, seconds);
}

/* The time is counted from when the step could have had everything for itself. */
static void record_step(struct scheduler *scheduler, const struct under_way *step)
{
    struct scheduler_stats *stats = &scheduler->stats;
    const double now_s = log_now_s();
    const double begin_s =
        step->begin_s > scheduler->last_end_s ? step->begin_s : scheduler->last_end_s;
    const enum step_phase phase = !step->n_prompt_token ? STEP_DECODE
                                  : step->n_generating  ? STEP_MIXED
                                                        : STEP_PREFILL;
    const double seconds = now_s - begin_s;
    if (phase == STEP_DECODE) note_drafts(scheduler, step, seconds);
    pace_note(&scheduler->pace, step->n_generating, step->n_prompt_token, seconds);
    scheduler->last_end_s = now_s;
    if (step->n_seq > stats->n_seq_max) stats->n_seq_max = step->n_seq;
    stats->n_step++;
    stats->n_token += step->n_token;
    stats->phase[phase].n_step++;
    stats->phase[phase].n_token += step->n_token;
    stats->phase[phase].seconds += seconds;
    stats->last =
        (struct step_record){.phase = phase, .n_token = step->n_token, .seconds = seconds};
}

static void end_step(struct scheduler *scheduler)
{
    const struct step_runner *runner = scheduler->config.runner;
    struct under_way *const step = &scheduler->step[scheduler->n_ended % runner->depth];
    struct lm_error err = {.status = LM_OK};
    err.status = runner->end(runner->context, &err);
    scheduler->n_ended++;
    scheduler->n_chunk -= step->n_prompt_token > 0;
    scheduler->n_part -= step->n_generating > 0;
    scheduler->n_awaited -= step->n_generating;
    record_step(scheduler, step);
    for (uint32_t i = 0; i < step->n_seq; i++) {
        struct place *const place = step->place[i];
        const struct lm_error *failed = err.status != LM_OK ? &err : &step->error[i];
        place->n_step--;
        expert_usage_add(&place->request->experts, &step->experts[i]);
        place->n -= step->seq[i].n_draft;
        if (failed->status == LM_OK)
            advance(scheduler, place, step->seq[i].n_token - step->seq[i].n_draft, step->keep[i]);
        if (err.status == LM_OK)
            take_tokens(scheduler, step, i, failed);
        else
            leave_place(scheduler, place, false, failed);
        if (place->ending && !place->n_step)
            leave_place(scheduler, place, place->ending_keep,
                        place->failure.status != LM_OK ? &place->failure : NULL);
    }
}

bool scheduler_step(struct scheduler *scheduler)
{
    settle_places(scheduler);
    bool begun = false;
    while (scheduler->n_begun - scheduler->n_ended < scheduler->config.runner->depth &&
           begin_step(scheduler))
        begun = true;
    if (scheduler->n_begun == scheduler->n_ended) return begun;
    end_step(scheduler);
    return true;
}

bool scheduler_idle(struct scheduler *scheduler)
{
    const struct step_runner *runner = scheduler->config.runner;
    return scheduler->n_begun == scheduler->n_ended && runner->idle &&
           runner->idle(runner->context);
}

struct scheduler_stats scheduler_stats(const struct scheduler *scheduler)
{
    struct scheduler_stats stats = scheduler->stats;
    const struct step_runner *runner = scheduler->config.runner;
    stats.n_state = prefix_index_n_state(scheduler->index);
    stats.state_bytes = stats.n_state * scheduler->config.state_bytes;
    stats.kv = runner->usage(runner->context);
    return stats;
}
