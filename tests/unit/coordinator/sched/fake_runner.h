/* A step runner without a model: it remembers which tokens each slot has read, and "samples" a hash
 * of all of them, so that a state used for the wrong prefix shows in the output. */
#ifndef LEAN_TESTS_FAKE_RUNNER_H
#define LEAN_TESTS_FAKE_RUNNER_H

#include <assert.h>
#include <string.h>

#include "proto/step.h"

enum { FAKE_N_SLOT = 16, FAKE_N_CTX = 400, FAKE_DEPTH = 4 };

/* A step that has begun: what each sequence has read by then, and what is to be told at the end. */
struct fake_under_way {
    struct step_seq seq[FAKE_N_SLOT];
    uint32_t n_seq, length[FAKE_N_SLOT];
    int32_t ids[FAKE_N_SLOT][FAKE_N_CTX];
    struct sampled_token *sampled;
    enum lm_status fails_with;
    uint32_t bad_slot;
};

struct fake_runner {
    int32_t ids[FAKE_N_SLOT][FAKE_N_CTX];
    uint32_t length[FAKE_N_SLOT];
    uint32_t n_draft[FAKE_N_SLOT]; /* of the last step, if it was not cut since */
    uint32_t room;                 /* positions that all slots together may hold */
    bool can_cut;
    enum lm_status fail_with; /* the next step fails so, halfway */
    uint32_t bad_slot;        /* the sequence of this slot fails alone in the next step, if not 0 */
    /* what was asked */
    uint32_t n_fork, n_clear, n_token_max, n_reader_max, n_seq_max;
    uint32_t n_begun_max; /* steps under way at once */
    uint64_t n_token;
    struct fake_under_way begun[FAKE_DEPTH];
    uint32_t n_begun, n_ended; /* so far */
};

static inline uint64_t fake_hash(const int32_t *ids, size_t n)
{
    uint64_t hash = 1;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (uint64_t)ids[i]) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

/* What is sampled behind n tokens, and how likely a token is there. Sequences that begin with
 * FAKE_REPEATS say mostly what they have said FAKE_PERIOD tokens before. */
enum { FAKE_REPEATS = 123456, FAKE_PERIOD = 10 };
static inline int32_t fake_token(const int32_t *ids, size_t n)
{
    const uint64_t hash = fake_hash(ids, n);
    if (ids[0] == FAKE_REPEATS && n > FAKE_PERIOD && hash / 8 % 12) return ids[n - FAKE_PERIOD];
    return (int32_t)(hash % 100000);
}

static inline float fake_logprob(const int32_t *ids, size_t n, int32_t id)
{
    return -(float)((fake_hash(ids, n) + (uint64_t)id) % 1000);
}

static inline void fake_targets(const struct fake_under_way *step, uint32_t i)
{
    const struct step_seq *seq = &step->seq[i];
    const uint32_t begin = step->length[i] - seq->n_token;
    for (uint32_t k = 0; k < seq->n_target; k++) {
        const uint32_t pos = begin + k + 1;
        struct sampled_token token = {.id = step->ids[i][pos], .n_top = seq->n_target_top};
        token.logprob = fake_logprob(step->ids[i], pos, token.id);
        for (int32_t top = 0; top < token.n_top; top++) {
            token.top_id[top] = top;
            token.top_logprob[top] = fake_logprob(step->ids[i], pos, top);
        }
        seq->on_target(seq->context, pos, &token);
    }
}

static inline enum lm_status fake_begin(void *context, const struct step_plan *plan,
                                        struct sampled_token *sampled, struct lm_error *err)
{
    struct fake_runner *runner = context;
    uint32_t held = 0, n_token = 0, n_reader = 0;
    for (uint32_t i = 0; i < FAKE_N_SLOT; i++)
        held += runner->length[i];
    for (uint32_t i = 0; i < plan->n_seq; i++)
        n_token += plan->seq[i].n_token;
    if (held + n_token > runner->room) return lm_fail(err, LM_E_LIMIT, "full");
    assert(runner->n_begun - runner->n_ended < FAKE_DEPTH);
    struct fake_under_way *const step = &runner->begun[runner->n_begun++ % FAKE_DEPTH];
    *step = (struct fake_under_way){.n_seq = plan->n_seq, .sampled = sampled};
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const struct step_seq *seq = &plan->seq[i];
        uint32_t *length = &runner->length[seq->slot];
        for (uint32_t k = 0; k < i; k++)
            assert(plan->seq[k].slot != seq->slot);
        assert(seq->n_history == *length + seq->n_token && seq->ids == seq->history + *length);
        assert(!memcmp(seq->history, runner->ids[seq->slot], *length * sizeof(int32_t)));
        memcpy(runner->ids[seq->slot] + *length, seq->ids, seq->n_token * sizeof(int32_t));
        *length += seq->n_token;
        n_reader += *length <= seq->n_prompt;
        assert(!runner->n_draft[seq->slot]); /* cut behind each step with drafts */
        runner->n_draft[seq->slot] = seq->n_draft;
        step->seq[i] = *seq;
        step->length[i] = *length;
        memcpy(step->ids[i], runner->ids[seq->slot], sizeof(step->ids[i]));
        /* what is wanted behind the last token is known to the plan alone */
        if (seq->n_target == seq->n_token) step->ids[i][*length] = seq->targets[seq->n_target - 1];
    }
    step->fails_with = runner->fail_with;
    step->bad_slot = runner->bad_slot;
    runner->fail_with = LM_OK;
    runner->bad_slot = 0;
    if (n_token > runner->n_token_max) runner->n_token_max = n_token;
    if (n_reader > runner->n_reader_max) runner->n_reader_max = n_reader;
    if (plan->n_seq > runner->n_seq_max) runner->n_seq_max = plan->n_seq;
    const uint32_t n_under_way = runner->n_begun - runner->n_ended;
    if (n_under_way > runner->n_begun_max) runner->n_begun_max = n_under_way;
    runner->n_token += n_token;
    return LM_OK;
}

/* Samples behind the last token that is no draft, and behind each draft that was sampled. */
static inline void fake_sample(const struct fake_under_way *step, uint32_t i)
{
    const struct step_seq *seq = &step->seq[i];
    for (uint32_t k = 0; k <= seq->n_draft; k++) {
        const uint32_t n = step->length[i] - seq->n_draft + k;
        step->sampled[i].id = fake_token(step->ids[i], n);
        if (k == seq->n_draft || step->sampled[i].id != step->ids[i][n]) break;
        seq->accepted[k] = step->sampled[i];
        *seq->n_accepted = k + 1;
    }
}

/* Drafts of what follows the sampled token, now and then a wrong one. */
static inline void fake_draft(struct fake_under_way *step, uint32_t i)
{
    const struct step_seq *seq = &step->seq[i];
    const uint32_t n_accepted = seq->n_draft ? *seq->n_accepted : 0;
    uint32_t n = step->length[i] - seq->n_draft + n_accepted;
    for (uint32_t k = 0; k < seq->n_wanted && n + 1 < FAKE_N_CTX; k++) {
        step->ids[i][n] = k ? seq->drafts[k - 1] : step->sampled[i].id;
        n++;
        seq->drafts[k] = fake_token(step->ids[i], n) + (n % 7 == 0);
        *seq->n_drafted = k + 1;
    }
}

static inline enum lm_status fake_end(void *context, struct lm_error *err)
{
    struct fake_runner *runner = context;
    assert(runner->n_ended < runner->n_begun);
    struct fake_under_way *const step = &runner->begun[runner->n_ended++ % FAKE_DEPTH];
    if (step->fails_with != LM_OK) return lm_fail(err, step->fails_with, "the step fails");
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct step_seq *seq = &step->seq[i];
        fake_targets(step, i);
        if (step->bad_slot && seq->slot == step->bad_slot)
            lm_fail(seq->error, LM_E_FAIL, "no token is allowed");
        else if (seq->output == STEP_OUTPUT_SAMPLE)
            fake_sample(step, i), fake_draft(step, i);
    }
    return LM_OK;
}

static inline enum lm_status fake_seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    struct fake_runner *runner = context;
    if (op->kind == SEQ_CLEAR) {
        runner->length[op->slot] = runner->n_draft[op->slot] = 0;
        runner->n_clear++;
        return LM_OK;
    }
    if (op->kind == SEQ_CUT) {
        assert(op->n <= runner->length[op->slot] &&
               runner->length[op->slot] - op->n <= runner->n_draft[op->slot]);
        runner->length[op->slot] = op->n;
        runner->n_draft[op->slot] = 0;
        return LM_OK;
    }
    assert(op->slot != op->to && op->n <= runner->length[op->slot]);
    if (op->n < runner->length[op->slot] && !runner->can_cut)
        return lm_fail(err, LM_E_UNSUPPORTED, "cannot cut");
    memcpy(runner->ids[op->to], runner->ids[op->slot], op->n * sizeof(int32_t));
    runner->length[op->to] = op->n;
    runner->n_fork++;
    return LM_OK;
}

static inline struct seq_usage fake_usage(void *context)
{
    const struct fake_runner *runner = context;
    struct seq_usage usage = {.n_position_max = runner->room};
    for (uint32_t i = 0; i < FAKE_N_SLOT; i++)
        usage.n_position += runner->length[i];
    return usage;
}

#endif
