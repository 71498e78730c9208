/* Steps of several sequences on a runner, as many at once as it takes, and all that comes of them
 * as text, in the order of the steps. */
#ifndef LEAN_TESTS_UNIT_WORKER_PIPELINE_STEP_SCRIPT_H
#define LEAN_TESTS_UNIT_WORKER_PIPELINE_STEP_SCRIPT_H

#include <math.h>

#include "tests/unit/worker/pipeline/pipeline_job.h"

enum { SCRIPT_N_VOCAB = 512, SCRIPT_DEPTH_MAX = 8 };

struct script_step {
    struct script *script;
    struct step_seq seq[JOB_N_SLOT];
    struct script_seq {
        FILE *log, *targets;
        uint32_t slot;
    } context[JOB_N_SLOT];
    struct sampled_token sampled[JOB_N_SLOT];
    struct lm_error error[JOB_N_SLOT];
    uint32_t n_seq;
    char *text, *target_text;
    size_t n_bytes, n_target_bytes;
    FILE *log, *targets; /* logits and targets may come in either order */
};

struct script {
    struct step_runner runner;
    struct script_step step[SCRIPT_DEPTH_MAX];
    uint64_t n_begun, n_ended;
    int32_t ids[JOB_N_SLOT][JOB_N_CTX + 1];
    uint32_t n[JOB_N_SLOT], n_prompt[JOB_N_SLOT];
    char *text; /* the result */
    size_t n_bytes;
    FILE *log;
    uint32_t n_under_way_max;
};

static inline void script_begin(struct script *script, struct step_runner runner)
{
    *script = (struct script){.runner = runner};
    script->log = open_memstream(&script->text, &script->n_bytes);
    assert_non_null(script->log);
}

static inline void script_token(FILE *log, const struct sampled_token *token)
{
    fprintf(log, " %d %a", token->id, (double)token->logprob);
    for (int32_t i = 0; i < token->n_top; i++)
        fprintf(log, " (%d %a)", token->top_id[i], (double)token->top_logprob[i]);
}

static inline void script_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    const struct script_seq *seq = context;
    const unsigned char *bytes = (const unsigned char *)logits;
    uint64_t hash = 14695981039346656037u;
    assert_int_equal(n_vocab, SCRIPT_N_VOCAB);
    for (size_t i = 0; i < n_vocab * sizeof(float); i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    fprintf(seq->log, "slot %u logits %u %016llx\n", seq->slot, pos, (unsigned long long)hash);
}

static inline void script_target(void *context, uint32_t pos, const struct sampled_token *token)
{
    const struct script_seq *seq = context;
    fprintf(seq->targets, "slot %u target %u", seq->slot, pos);
    script_token(seq->targets, token);
    fprintf(seq->targets, "\n");
}

/* Each slot samples in a way of its own. */
static inline const struct sampling_params *script_sampling(uint32_t slot)
{
    static struct sampling_params params[JOB_N_SLOT];
    static uint32_t odd[SCRIPT_N_VOCAB / 32], few[SCRIPT_N_VOCAB / 32];
    static const struct logit_bias bias[] = {{5, 3.5f}, {7, -INFINITY}, {9, -1.25f}};
    static const int32_t breakers[] = {3, 17};
    for (size_t i = 0; i < SCRIPT_N_VOCAB / 32; i++) {
        odd[i] = 0xaaaaaaaau;
        few[i] = 0x00010010u;
    }
    for (uint32_t i = 0; i < JOB_N_SLOT; i++)
        params[i] = sampling_params_default();
    params[0].n_logprob = 5;
    params[1].temperature = 0.8f;
    params[1].top_p = 0.9f;
    params[1].seed = 7;
    params[1].repeat_penalty = 1.3f;
    params[1].repeat_last_n = 40;
    params[1].presence_penalty = 0.4f;
    params[1].frequency_penalty = 0.3f;
    params[1].n_logprob = 0;
    params[2].temperature = 1.1f;
    params[2].seed = UINT64_MAX - 5;
    params[2].dry_multiplier = 0.8f;
    params[2].dry_base = 1.75f;
    params[2].dry_allowed_length = 2;
    params[2].dry_penalty_last_n = -1;
    params[2].dry_breakers = breakers;
    params[2].n_dry_breaker = 2;
    params[2].typical_p = 0.95f;
    params[2].min_p = 0.01f;
    params[2].top_k = 60;
    params[2].bias = bias;
    params[2].n_bias = 3;
    params[2].n_logprob = 4;
    params[2].of_processed = true;
    params[3].temperature = 1.5f;
    params[3].seed = 99;
    params[3].allowed = odd;
    params[3].n_logprob = 20;
    params[4].temperature = 0.7f;
    params[4].seed = 1;
    params[4].allowed = few;
    params[4].repeat_penalty = 1.8f;
    params[4].repeat_last_n = -1;
    return &params[slot];
}

/* Ends the oldest step. */
static inline void script_end_step(struct script *script)
{
    struct script_step *step = &script->step[script->n_ended++ % SCRIPT_DEPTH_MAX];
    struct lm_error err = {.message = ""};
    const enum lm_status status = script->runner.end(script->runner.context, &err);
    if (status != LM_OK)
        fprintf(step->log, "failed: %s: %s\n", lm_status_name(status), err.message);
    for (uint32_t i = 0; status == LM_OK && i < step->n_seq; i++) {
        const struct step_seq *seq = &step->seq[i];
        if (seq->error->status != LM_OK) {
            fprintf(step->log, "slot %u error: %s: %s\n", seq->slot,
                    lm_status_name(seq->error->status), seq->error->message);
        } else if (seq->output != STEP_OUTPUT_NONE) {
            fprintf(step->log, "slot %u sampled", seq->slot);
            script_token(step->log, &step->sampled[i]);
            fprintf(step->log, "\n");
            if (seq->n_history >= script->n_prompt[seq->slot])
                script->ids[seq->slot][seq->n_history] = step->sampled[i].id;
        }
    }
    fclose(step->log);
    fclose(step->targets);
    fwrite(step->text, 1, step->n_bytes, script->log);
    fwrite(step->target_text, 1, step->n_target_bytes, script->log);
    free(step->text);
    free(step->target_text);
}

static inline void script_end_all(struct script *script)
{
    while (script->n_ended < script->n_begun)
        script_end_step(script);
}

struct script_part {
    uint32_t slot, n;
    enum step_output output;
    bool targets;
};

/* Begins a step of the next tokens of some slots. Ends others where the runner is full. */
static inline enum lm_status script_step(struct script *script, const struct script_part *parts,
                                         uint32_t n_part)
{
    while (script->n_begun - script->n_ended >= script->runner.depth)
        script_end_step(script);
    struct script_step *step = &script->step[script->n_begun % SCRIPT_DEPTH_MAX];
    step->log = open_memstream(&step->text, &step->n_bytes);
    step->targets = open_memstream(&step->target_text, &step->n_target_bytes);
    assert_true(step->log && step->targets);
    fprintf(step->log, "step %llu\n", (unsigned long long)script->n_begun);
    step->n_seq = n_part;
    for (uint32_t i = 0; i < n_part; i++) {
        const struct script_part *part = &parts[i];
        const uint32_t n = script->n[part->slot];
        int32_t *ids = script->ids[part->slot];
        assert_true(n + part->n <= JOB_N_CTX);
        step->context[i] = (struct script_seq){step->log, step->targets, part->slot};
        step->error[i].status = LM_OK;
        step->seq[i] = (struct step_seq){.slot = part->slot,
                                         .ids = ids + n,
                                         .n_token = part->n,
                                         .output = part->output,
                                         .history = ids,
                                         .n_history = n + part->n,
                                         .n_prompt = script->n_prompt[part->slot] < n + part->n
                                                         ? script->n_prompt[part->slot]
                                                         : n + part->n,
                                         .sampling = script_sampling(part->slot),
                                         .on_logits = script_logits,
                                         .on_target = script_target,
                                         .targets = part->targets ? ids + n + 1 : NULL,
                                         .n_target = part->targets ? part->n - 1 : 0,
                                         .n_target_top = 3,
                                         .context = &step->context[i],
                                         .error = &step->error[i]};
    }
    const struct step_plan plan = {.seq = step->seq, .n_seq = n_part};
    struct lm_error err;
    const enum lm_status status =
        script->runner.begin(script->runner.context, &plan, step->sampled, &err);
    if (status != LM_OK) {
        fclose(step->log);
        fclose(step->targets);
        free(step->text);
        free(step->target_text);
        script_end_all(script);
        fprintf(script->log, "not begun: %s: %s\n", lm_status_name(status), err.message);
        return status;
    }
    script->n_begun++;
    if (script->n_begun - script->n_ended > script->n_under_way_max)
        script->n_under_way_max = (uint32_t)(script->n_begun - script->n_ended);
    for (uint32_t i = 0; i < n_part; i++)
        script->n[parts[i].slot] += parts[i].n;
    return LM_OK;
}

/* A prompt into the ids of a slot that holds n tokens already. */
static inline void script_prompt(struct script *script, uint32_t slot, uint32_t n, uint32_t salt)
{
    for (uint32_t i = script->n[slot]; i < script->n[slot] + n; i++)
        script->ids[slot][i] = (int32_t)((i * 57 + salt * 101 + i * i % 7) % SCRIPT_N_VOCAB);
    script->n_prompt[slot] = script->n[slot] + n;
}

static inline void script_op(struct script *script, enum seq_op_kind kind, uint32_t slot,
                             uint32_t to, uint32_t n)
{
    const struct seq_op op = {.kind = kind, .slot = slot, .to = to, .n = n};
    const enum lm_status status = script->runner.seq(script->runner.context, &op, NULL);
    script_end_all(script);
    const struct seq_usage usage = script->runner.usage(script->runner.context);
    fprintf(script->log, "op %d %u %u %u: %d, %llu of %llu positions\n", kind, slot, to, n, status,
            (unsigned long long)usage.n_position, (unsigned long long)usage.n_position_max);
    if (status != LM_OK) return;
    if (kind == SEQ_CLEAR) {
        script->n[slot] = 0;
    } else {
        memcpy(script->ids[to], script->ids[slot], sizeof(script->ids[to]));
        script->n[to] = n;
        script->n_prompt[to] = script->n_prompt[slot] < n ? script->n_prompt[slot] : n;
    }
}

/* Ends with the text, which the caller frees. */
static inline char *script_end(struct script *script)
{
    script_end_all(script);
    fclose(script->log);
    return script->text;
}

#endif
