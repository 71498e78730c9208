/* What fails in a step ends that step and what builds on it, in words that name the rank; what
 * breaks the job ends it everywhere, and nobody waits for ever. */
#include "proto/control.pb-c.h"
#include "tests/unit/worker/pipeline/step_script.h"
#include "worker/pipeline/wire.h"

static int n_sync_left; /* until one fails; the step thread of one rank counts */
static enum lm_status (*sync_backend)(struct backend *backend, struct lm_error *err);

static enum lm_status failing_sync(struct backend *backend, struct lm_error *err)
{
    if (n_sync_left-- == 0) return lm_fail(err, LM_E_IO, "layer 2, expert 3: cannot be read");
    return sync_backend(backend, err);
}

/* Two sequences, of which one is in the step that fails; then both start anew. */
static void run_with_failure(struct script *script, bool fails)
{
    script_prompt(script, 0, 32, 1);
    script_prompt(script, 1, 32, 2);
    script_step(script, &(struct script_part){0, 8, STEP_OUTPUT_NONE, false}, 1);
    script_step(script, &(struct script_part){0, 8, STEP_OUTPUT_NONE, false}, 1); /* this one */
    const struct script_part both[] = {{0, 8, STEP_OUTPUT_SAMPLE, false},
                                       {1, 8, STEP_OUTPUT_SAMPLE, true}};
    script_step(script, both, 2);
    script_op(script, SEQ_FORK, 0, 2, script->n[0]);
    script_prompt(script, 2, 4, 3);
    script_step(script, &(struct script_part){2, 4, STEP_OUTPUT_SAMPLE, false}, 1);
    script_end_all(script);
    fflush(script->log);
    if (fails) {
        assert_non_null(
            strstr(script->text, "failed: input/output error: rank 1: layer 2, expert 3"));
        assert_non_null(
            strstr(script->text, "slot 0 error: input/output error: rank 1: layer 2, expert 3"));
        assert_non_null(
            strstr(script->text, "slot 2 error: input/output error: rank 1: layer 2, expert 3"));
        assert_non_null(strstr(script->text, "slot 1 sampled"));
    }
    fprintf(script->log, "anew\n");
    script_op(script, SEQ_CLEAR, 0, 0, 0);
    script_op(script, SEQ_CLEAR, 2, 0, 0);
    script_prompt(script, 0, 20, 5);
    script_step(script, &(struct script_part){0, 10, STEP_OUTPUT_NONE, false}, 1);
    const struct script_part again[] = {{0, 10, STEP_OUTPUT_LOGITS, false},
                                        {1, 8, STEP_OUTPUT_LOGITS, false}};
    script_step(script, again, 2);
}

static char *run(int n_sync, uint32_t n_rank, uint32_t failing)
{
    static struct job job;
    static struct script script;
    job_prepare(&job, "qwen35moe-s-q8_0", n_rank, (uint32_t[]){2, 4, 6});
    n_sync_left = n_sync;
    sync_backend = job.rank[failing].own.ops.sync;
    job.rank[failing].own.ops.sync = failing_sync;
    job_start(&job, 1);
    script_begin(&script, job.runner);
    run_with_failure(&script, n_sync >= 0);
    char *const text = script_end(&script);
    job_close(&job, LM_OK);
    return text;
}

/* A copy of what follows "anew". */
static const char *behind(const char *text)
{
    const char *at = strstr(text, "anew");
    assert_non_null(at);
    return at;
}

static void test_failed_step_leaves_the_rest(void **state)
{
    (void)state;
    char *expected = run(-1, 1, 0), *failed = run(1, 3, 1);
    assert_string_equal(behind(failed), behind(expected));
    free(failed);
    failed = run(1, 2, 1); /* the last rank fails, by a failure of its layers */
    assert_string_equal(behind(failed), behind(expected));
    free(failed);
    free(expected);
}

static void test_lost_rank_ends_everything(void **state)
{
    (void)state;
    static struct job job;
    static struct script script;
    struct lm_error err;
    job_prepare(&job, "llama-s-f32", 3, (uint32_t[]){1, 2});
    job_start(&job, 1);
    script_begin(&script, job.runner);
    script_prompt(&script, 0, 32, 1);
    script_step(&script, &(struct script_part){0, 8, STEP_OUTPUT_SAMPLE, false}, 1);
    script_end_all(&script);
    lm_fail(&err, LM_E_FAIL, "cut off by the test");
    job.rank[1].world->ops->abort(job.rank[1].world, &err);
    for (uint32_t i = 0; i < 3; i++)
        script_step(&script, &(struct script_part){0, 8, STEP_OUTPUT_SAMPLE, false}, 1);
    char *const text = script_end(&script);
    assert_non_null(strstr(text, "not begun: rank lost: "));
    assert_non_null(strstr(text, "cut off by the test"));
    free(text);
    job_close(&job, LM_E_RANK_LOST);
}

/* Gives rank 1 of 2 a plan as rank 0 would not make one, and lets it end. */
static void send_plan(const struct step_seq *seq, uint32_t position, enum lm_status status,
                      const char *expected)
{
    static struct job job;
    struct lm_error err = {.status = LM_OK};
    struct frame *frame;
    const struct step_plan plan = {.seq = seq, .n_seq = 1};
    job_prepare(&job, "llama-s-f32", 2, (uint32_t[]){2});
    struct world *world = job.rank[0].world;
    assert_int_equal(pthread_create(&job.rank[1].thread, NULL, job_run_stage, &job.rank[1]), 0);
    assert_int_equal(wire_pack_plan(&frame, 0, &plan, &position, NULL, 0, SCRIPT_N_VOCAB, &err),
                     LM_OK);
    assert_int_equal(world->ops->send(world, 1, frame->type, frame->payload, frame->n_bytes, &err),
                     LM_OK);
    free(frame);
    /* rank 0 learns why */
    assert_int_equal(world->ops->recv(world, 10, &frame, &err), LM_E_RANK_LOST);
    assert_non_null(strstr(err.message, expected));
    job_close(&job, status);
}

static void test_wrong_plans_are_not_run(void **state)
{
    (void)state;
    int32_t ids[JOB_N_BATCH + 1] = {1, 2, 3};
    const struct sampling_params sampling = sampling_params_default();
    const struct step_seq good = {
        .ids = ids, .n_token = 3, .output = STEP_OUTPUT_SAMPLE, .sampling = &sampling};
    struct step_seq seq = good;
    send_plan(&seq, 2, LM_E_FAIL, "slot 0 holds 0 tokens, the plan says 2");
    seq.slot = JOB_N_SLOT;
    send_plan(&seq, 0, LM_E_FORMAT, "a slot that there is not");
    seq = good;
    seq.n_token = JOB_N_BATCH + 1;
    send_plan(&seq, 0, LM_E_FORMAT, "the number of tokens");
    seq = good;
    ids[1] = SCRIPT_N_VOCAB;
    send_plan(&seq, 0, LM_E_FORMAT, "a token that there is not");
    ids[1] = -1;
    send_plan(&seq, 0, LM_E_FORMAT, "a token that there is not");
    ids[1] = 1;
    seq.n_target = 4;
    seq.targets = ids;
    send_plan(&seq, 0, LM_E_FORMAT, "the number of targets");
    seq = good;
    seq.n_prompt = 4;
    send_plan(&seq, 0, LM_E_FORMAT, "the length of a prompt");
}

static void test_malformed_frames(void **state)
{
    (void)state;
    static const uint8_t garbage[] = {0xff, 0xff, 0xff, 0x07, 1, 2, 3};
    static const uint16_t types[] = {LEAN__FRAME_TYPE__PLAN, LEAN__FRAME_TYPE__TOKENS, 999};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        static struct job job;
        struct lm_error err;
        struct frame *frame;
        job_prepare(&job, "llama-s-f32", 2, (uint32_t[]){1});
        struct world *world = job.rank[0].world;
        assert_int_equal(pthread_create(&job.rank[1].thread, NULL, job_run_stage, &job.rank[1]), 0);
        assert_int_equal(world->ops->send(world, 1, types[i], garbage, sizeof(garbage), &err),
                         LM_OK);
        assert_int_equal(world->ops->recv(world, 10, &frame, &err), LM_E_RANK_LOST);
        job_close(&job, LM_E_FORMAT);
    }
}

/* Rank 0's pipeline, and a rank 1 that a test plays itself. */
static void begin_alone(struct job *job, struct step_seq *seq, struct sampled_token *sampled)
{
    struct lm_error err;
    const struct step_plan plan = {.seq = seq, .n_seq = 1};
    const struct pipeline_config config = {.world = job->rank[0].world,
                                           .worker = job->rank[0].worker,
                                           .on_lost = job_on_lost,
                                           .lost_context = job};
    if (!job->pipeline) {
        assert_int_equal(pipeline_create(&job->pipeline, &config, &err), LM_OK);
        job->runner = pipeline_runner(job->pipeline);
    }
    if (job->runner.begin(job->runner.context, &plan, sampled, &err) != LM_OK)
        fail_msg("%s", err.message);
}

static void send_token(struct job *job, uint64_t step, int32_t id)
{
    struct lm_error err, none = {.status = LM_OK};
    struct frame *frame;
    struct world *world = job->rank[1].world;
    struct expert_usage experts = {0};
    const struct sampled_token token = {.id = id};
    const struct step_seq seq = {.output = STEP_OUTPUT_SAMPLE, .error = &none, .experts = &experts};
    const struct wire_result result = {
        .number = step, .failed = &none, .n_seq = 1, .seq = &seq, .sampled = &token};
    assert_int_equal(wire_pack_result(&frame, &result, &err), LM_OK);
    assert_int_equal(world->ops->send(world, 0, frame->type, frame->payload, frame->n_bytes, &err),
                     LM_OK);
    free(frame);
}

static void close_alone(struct job *job)
{
    job->n_rank = 1; /* rank 1 has no thread to wait for */
    struct job_rank rank1 = job->rank[1];
    job_close(job, LM_E_RANK_LOST);
    worker_close(rank1.worker, NULL);
    expert_store_destroy(rank1.store);
    rank1.own.backend->ops->destroy(rank1.own.backend);
    rank1.in->ops->close(rank1.in);
    rank1.world->ops->close(rank1.world);
}

/* Neither what comes twice nor what cannot be is anybody's result. */
static void test_results_that_nobody_asked_for(void **state)
{
    (void)state;
    int32_t ids[] = {1, 2, 3};
    const struct sampling_params sampling = sampling_params_default();
    for (int round = 0; round < 2; round++) {
        static struct job job;
        struct lm_error err, own = {.status = LM_OK};
        struct sampled_token sampled = {.id = -1};
        struct step_seq seq = {.ids = ids,
                               .n_token = 3,
                               .n_history = 3,
                               .output = STEP_OUTPUT_SAMPLE,
                               .sampling = &sampling,
                               .error = &own};
        job_prepare(&job, "llama-s-f32", 2, (uint32_t[]){2});
        begin_alone(&job, &seq, &sampled);
        send_token(&job, 0, round ? SCRIPT_N_VOCAB : 5);
        const enum lm_status status = job.runner.end(job.runner.context, &err);
        if (round) {
            assert_int_equal(status, LM_E_FORMAT);
            assert_non_null(strstr(err.message, "a token came that there is not"));
        } else {
            assert_int_equal(status, LM_OK);
            assert_int_equal(sampled.id, 5);
        }
        send_token(&job, 0, 6);
        struct frame *frame;
        struct world *const rank1 = job.rank[1].world;
        enum lm_status lost;
        while ((lost = rank1->ops->recv(rank1, 10, &frame, &err)) == LM_OK)
            free(frame);
        assert_int_equal(lost, LM_E_RANK_LOST);
        assert_non_null(strstr(err.message, "rank 1 sent tokens of 1 sequences for step 0"));
        close_alone(&job);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failed_step_leaves_the_rest),
        cmocka_unit_test(test_lost_rank_ends_everything),
        cmocka_unit_test(test_wrong_plans_are_not_run),
        cmocka_unit_test(test_malformed_frames),
        cmocka_unit_test(test_results_that_nobody_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
