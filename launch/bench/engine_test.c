/* Requests with given answers through the scheduler, against the clock. */
#include "launch/bench/engine_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/sched/scheduler.h"
#include "launch/bench/accelerator.h"
#include "launch/bench/energy.h"
#include "launch/bench/token_source.h"
#include "launch/engine.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"
#include "worker/pager/pager_snapshot.h"

const char *engine_test_name(const struct engine_test *test, char out[ENGINE_TEST_NAME_BYTES])
{
    char part[24];
    *out = 0;
    if (test->n_prompt) sprintf(out, "pp%u", test->n_prompt);
    if (test->n_gen) {
        snprintf(part, sizeof(part), "%stg%u", test->n_prompt ? "+" : "", test->n_gen);
        strcat(out, part);
    }
    if (test->n_depth) {
        snprintf(part, sizeof(part), " @ d%u", test->n_depth);
        strcat(out, part);
    }
    if (test->n_seq > 1) {
        snprintf(part, sizeof(part), " x%u", test->n_seq);
        strcat(out, part);
    }
    return out;
}

/* A generation reads its first token as a prompt of one. */
static uint32_t n_read(const struct engine_test *test)
{
    return test->n_prompt ? test->n_prompt : 1;
}

uint32_t engine_test_n_ctx(const struct engine_test *test)
{
    return test->n_depth + n_read(test) + test->n_gen;
}

uint32_t engine_test_n_slot(const struct engine_test *test)
{
    /* what was read before stays in places of its own while the test goes on from it */
    return test->n_depth ? 2 * test->n_seq : test->n_seq;
}

/* What is read, generated, and given behind the last step, which nothing reads any more. */
static size_t trace_length(const struct engine_test *test)
{
    return (size_t)engine_test_n_ctx(test) + 2;
}

/* Nothing is found that an earlier run has read. */
static uint64_t cache_key(uint64_t run, uint32_t i)
{
    return (run + 1) << 16 | i;
}

/* One sequence of a test. */
struct sequence {
    struct request request;
    const int32_t *next; /* the token that is taken after this one, unless greedily */
    struct engine_sample *sample;
    double last_s; /* token, or the start */
    bool has_begun;
};

size_t engine_test_n_gap_max(const struct engine_test *test)
{
    return (size_t)test->n_seq * (test->n_gen + 1);
}

/* When a token came, for those that it is a matter of. */
static void note_time(struct sequence *sequence)
{
    struct engine_sample *sample = sequence->sample;
    const double now_s = log_now_s(), passed_s = now_s - sequence->last_s;
    sequence->last_s = now_s;
    if (sequence->has_begun)
        sample->gap_s[sample->n_gap++] = passed_s;
    else
        sample->first_s[sample->n_first++] = passed_s;
    sequence->has_begun = true;
}

static bool on_token(void *context, const struct sampled_token *token)
{
    struct sequence *sequence = context;
    (void)token;
    if (sequence->sample->first_s) note_time(sequence);
    if (sequence->request.sampling.is_forced)
        sequence->request.sampling.forced_id = *sequence->next++;
    return true;
}

static enum lm_status run_all(struct engine *engine, struct sequence *sequences, uint32_t n,
                              struct lm_error *err)
{
    struct scheduler *scheduler = engine_scheduler(engine);
    enum lm_status status = LM_OK;
    uint32_t n_submitted = 0;
    while (n_submitted < n && status == LM_OK) {
        status = scheduler_submit(scheduler, &sequences[n_submitted].request, err);
        n_submitted += status == LM_OK;
    }
    bool interrupted = false;
    do {
        interrupted |= interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END);
        for (uint32_t i = 0; (interrupted || status != LM_OK) && i < n_submitted; i++)
            atomic_store(&sequences[i].request.cancelled, true);
    } while (scheduler_step(scheduler));
    for (uint32_t i = 0; i < n_submitted && status == LM_OK; i++) {
        status = sequences[i].request.status;
        if (status != LM_OK) *err = sequences[i].request.error;
    }
    if (status == LM_OK && interrupted) status = lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    return status;
}

/* What the sequences are read up to before the clock starts. */
static void prepare_depth(const struct engine_test *test, struct sequence *sequences,
                          const int32_t *ids, uint64_t run)
{
    const size_t n_id = trace_length(test);
    for (uint32_t i = 0; i < test->n_seq; i++)
        sequences[i].request = (struct request){.prompt = ids + i * n_id,
                                                .n_prompt = test->n_depth,
                                                .sampling = sampling_params_default(),
                                                .cache_key = cache_key(run, i)};
}

static void prepare(const struct engine_test *test, struct sequence *sequences, const int32_t *ids,
                    uint64_t run, struct engine_sample *sample)
{
    const size_t n_id = trace_length(test);
    const uint32_t n_prompt = test->n_depth + n_read(test);
    for (uint32_t i = 0; i < test->n_seq; i++) {
        struct sequence *sequence = &sequences[i];
        *sequence = (struct sequence){.next = ids + i * n_id + n_prompt, .sample = sample};
        sequence->request =
            (struct request){.prompt = ids + i * n_id,
                             .n_prompt = n_prompt,
                             /* the last step of a prompt gives a token of its own */
                             .n_max = test->n_prompt ? test->n_gen + 1 : test->n_gen,
                             .sampling = sampling_params_default(),
                             .no_cache = !test->n_depth,
                             .cache_key = cache_key(run, i),
                             .on_token = on_token,
                             .context = sequence};
        if (test->greedy) {
            sequence->request.sampling.temperature = 0;
            continue;
        }
        sequence->request.sampling.is_forced = true;
        sequence->request.sampling.forced_id = *sequence->next++;
    }
}

/* The clock must not have run over what was to be read before. */
static enum lm_status check_depth(const struct engine_test *test, const struct sequence *sequences,
                                  struct lm_error *err)
{
    for (uint32_t i = 0; i < test->n_seq; i++)
        if (sequences[i].request.n_cached != test->n_depth)
            return lm_fail(err, LM_E_FAIL, "of %u tokens in the context %zu were kept",
                           test->n_depth, sequences[i].request.n_cached);
    return LM_OK;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static enum lm_status read_experts(const struct engine *engine, struct expert_pager_stats *out,
                                   struct device_tier_stats *device, struct lm_error *err)
{
    struct pager_snapshot *const snapshot = malloc(sizeof(*snapshot));
    if (!snapshot) return lm_fail(err, LM_E_NO_MEM, "no memory for the experts' counters");
    const enum lm_status status = engine_experts(engine, snapshot, err);
    if (status == LM_OK) *out = snapshot->total;
    if (status == LM_OK) *device = snapshot->device;
    free(snapshot);
    return status;
}

static enum lm_status run_timed(struct engine *engine, struct sequence *sequences, uint32_t n,
                                struct engine_sample *out, struct lm_error *err)
{
    enum lm_status status = read_experts(engine, &out->before, &out->device_before, err);
    if (status != LM_OK) return status;
    const double device_j = accelerator_energy_j();
    const double energy_j = energy_read_j();
    out->n_first = out->n_gap = 0;
    out->n_draft = out->n_draft_accepted = 0;
    for (uint32_t i = 0; i < n; i++)
        sequences[i].last_s = log_now_s();
    const uint64_t begin_ns = now_ns();
    status = run_all(engine, sequences, n, err);
    out->elapsed_ns = now_ns() - begin_ns;
    out->energy_j = energy_since_j(energy_j);
    for (uint32_t i = 0; i < n; i++) {
        out->n_draft += sequences[i].request.n_draft;
        out->n_draft_accepted += sequences[i].request.n_draft_accepted;
    }
    const double device_now_j = device_j < 0 ? -1 : accelerator_energy_j();
    out->accelerator_energy_j = device_now_j < 0 ? -1 : device_now_j - device_j;
    return status == LM_OK ? read_experts(engine, &out->after, &out->device_after, err) : status;
}

enum lm_status engine_test_run(const struct engine_test *test, struct engine *engine,
                               const struct token_source *tokens, uint64_t trace, uint64_t run,
                               struct engine_sample *out, struct lm_error *err)
{
    const size_t n_id = trace_length(test);
    struct sequence *const sequences = calloc(test->n_seq, sizeof(*sequences));
    int32_t *const ids = calloc(test->n_seq * n_id, sizeof(*ids));
    enum lm_status status = LM_OK;
    if (!sequences || !ids) status = lm_fail(err, LM_E_NO_MEM, "no memory for the test's tokens");
    for (uint32_t i = 0; status == LM_OK && i < test->n_seq; i++)
        token_source_trace(tokens, trace * test->n_seq + i, ids + i * n_id, n_id);
    if (status == LM_OK && test->n_depth) {
        prepare_depth(test, sequences, ids, run);
        status = run_all(engine, sequences, test->n_seq, err);
    }
    if (status == LM_OK) {
        prepare(test, sequences, ids, run, out);
        status = run_timed(engine, sequences, test->n_seq, out, err);
    }
    if (status == LM_OK) status = check_depth(test, sequences, err);
    free(ids);
    free(sequences);
    return status;
}
