/* A step runner without a model: it remembers which tokens each slot has read, and "samples" a hash
 * of all of them, so that a state used for the wrong prefix shows in the output. */
#ifndef LEAN_TESTS_FAKE_RUNNER_H
#define LEAN_TESTS_FAKE_RUNNER_H

#include <assert.h>
#include <string.h>

#include "proto/step.h"

enum { FAKE_N_SLOT = 16, FAKE_N_CTX = 400 };

struct fake_runner {
    int32_t ids[FAKE_N_SLOT][FAKE_N_CTX];
    uint32_t length[FAKE_N_SLOT];
    uint32_t room; /* positions that all slots together may hold */
    bool can_cut;
    enum lm_status fail_with; /* the next step fails so, halfway */
    uint32_t bad_slot;        /* the sequence of this slot fails alone in the next step, if not 0 */
    /* what was asked */
    uint32_t n_fork, n_clear, n_token_max, n_reader_max, n_seq_max;
    uint64_t n_token;
};

static inline uint64_t fake_hash(const int32_t *ids, size_t n)
{
    uint64_t hash = 1;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (uint64_t)ids[i]) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

/* What is sampled behind n tokens, and how likely a token is there. */
static inline int32_t fake_token(const int32_t *ids, size_t n)
{
    return (int32_t)(fake_hash(ids, n) % 100000);
}

static inline float fake_logprob(const int32_t *ids, size_t n, int32_t id)
{
    return -(float)((fake_hash(ids, n) + (uint64_t)id) % 1000);
}

static inline void fake_targets(const struct fake_runner *runner, const struct step_seq *seq)
{
    const uint32_t begin = runner->length[seq->slot] - seq->n_token;
    for (uint32_t i = 0; i < seq->n_target; i++) {
        const uint32_t pos = begin + i + 1;
        struct sampled_token token = {.id = seq->targets[i], .n_top = seq->n_target_top};
        token.logprob = fake_logprob(runner->ids[seq->slot], pos, token.id);
        for (int32_t k = 0; k < token.n_top; k++) {
            token.top_id[k] = k;
            token.top_logprob[k] = fake_logprob(runner->ids[seq->slot], pos, k);
        }
        seq->on_target(seq->context, pos, &token);
    }
}

static inline enum lm_status fake_step(void *context, const struct step_plan *plan,
                                       struct sampled_token *sampled, struct lm_error *err)
{
    struct fake_runner *runner = context;
    uint32_t held = 0, n_token = 0, n_reader = 0;
    for (uint32_t i = 0; i < FAKE_N_SLOT; i++)
        held += runner->length[i];
    for (uint32_t i = 0; i < plan->n_seq; i++)
        n_token += plan->seq[i].n_token;
    if (held + n_token > runner->room) return lm_fail(err, LM_E_LIMIT, "full");
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
    }
    if (runner->fail_with != LM_OK) {
        const enum lm_status status = runner->fail_with;
        runner->fail_with = LM_OK;
        return lm_fail(err, status, "the step fails");
    }
    if (n_token > runner->n_token_max) runner->n_token_max = n_token;
    if (n_reader > runner->n_reader_max) runner->n_reader_max = n_reader;
    if (plan->n_seq > runner->n_seq_max) runner->n_seq_max = plan->n_seq;
    runner->n_token += n_token;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const struct step_seq *seq = &plan->seq[i];
        fake_targets(runner, seq);
        if (runner->bad_slot && seq->slot == runner->bad_slot)
            lm_fail(seq->error, LM_E_FAIL, "no token is allowed");
        else if (seq->output == STEP_OUTPUT_SAMPLE)
            sampled[i].id = fake_token(runner->ids[seq->slot], runner->length[seq->slot]);
    }
    runner->bad_slot = 0;
    return LM_OK;
}

static inline enum lm_status fake_seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    struct fake_runner *runner = context;
    if (op->kind == SEQ_CLEAR) {
        runner->length[op->slot] = 0;
        runner->n_clear++;
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
