/* However many ranks, wherever the layers are cut, however many steps are under way: the same bits
 * come out, and the same is refused. */
#include "launch/routing_profile.h"
#include "tests/unit/worker/pipeline/step_script.h"
#include "worker/pager/pager_snapshot.h"

/* One round of decoding: each group is a step. A group's next step waits for its last one only. */
static void decode(struct script *script, const uint32_t (*group)[2], uint32_t n_group,
                   uint32_t n_round)
{
    uint64_t last[4] = {0};
    for (uint32_t round = 0; round < n_round; round++) {
        for (uint32_t g = 0; g < n_group; g++) {
            struct script_part parts[2];
            while (round && script->n_ended < last[g])
                script_end_step(script);
            for (uint32_t i = 0; i < 2; i++)
                parts[i] = (struct script_part){group[g][i], 1, STEP_OUTPUT_SAMPLE, false};
            assert_int_equal(script_step(script, parts, group[g][0] == group[g][1] ? 1 : 2), LM_OK);
            last[g] = script->n_begun;
        }
    }
    script_end_all(script);
}

static void run(struct script *script)
{
    /* three prompts in chunks, all of them under way one behind the other */
    for (uint32_t slot = 0; slot < 3; slot++)
        script_prompt(script, slot, 54, slot);
    for (uint32_t chunk = 0; chunk < 6; chunk++) {
        const enum step_output output = chunk < 5 ? STEP_OUTPUT_NONE : STEP_OUTPUT_SAMPLE;
        const struct script_part parts[] = {{0, 9, output, false},
                                            {1, 9, output, true},
                                            {2, 9, chunk ? output : STEP_OUTPUT_LOGITS, false}};
        script_step(script, parts, 3);
    }
    script_end_all(script);
    decode(script, (const uint32_t[][2]){{0, 1}, {2, 2}}, 2, 10);
    /* forks: at the end, and further back, which not all states can */
    script_op(script, SEQ_FORK, 1, 3, script->n[1]);
    script_op(script, SEQ_FORK, 2, 4, script->n[2] - 20);
    script_op(script, SEQ_FORK, 2, 5, script->n[2]);
    if (!script->n[4]) script_op(script, SEQ_FORK, 5, 4, script->n[5]);
    script_prompt(script, 3, 7, 9);
    script_prompt(script, 4, 12, 8);
    script_step(script, &(struct script_part){3, 7, STEP_OUTPUT_SAMPLE, false}, 1);
    script_step(script, &(struct script_part){4, 12, STEP_OUTPUT_LOGITS, true}, 1);
    script_end_all(script);
    decode(script, (const uint32_t[][2]){{1, 3}, {2, 4}, {0, 5}}, 3, 6);
    /* a slot starts anew, longer than windows reach */
    script_op(script, SEQ_CLEAR, 0, 0, 0);
    script_op(script, SEQ_FORK, 1, 0, 0);
    script_prompt(script, 0, 150, 4);
    for (uint32_t i = 0; i < 3; i++)
        script_step(
            script,
            &(struct script_part){0, 50, i < 2 ? STEP_OUTPUT_NONE : STEP_OUTPUT_SAMPLE, false}, 1);
    script_end_all(script);
    script_prompt(script, 0, 10, 6);
    /* until there is no room, which leaves all as it was, and again when there is */
    for (uint32_t slot = 1; slot < 6; slot++) {
        script_prompt(script, slot, 120, slot);
        for (uint32_t i = 0; i < 2; i++) {
            const struct script_part parts[] = {{0, 1, STEP_OUTPUT_NONE, false},
                                                {slot, 60, STEP_OUTPUT_NONE, false}};
            if (script_step(script, parts, 2) != LM_OK) script_op(script, SEQ_CLEAR, slot, 0, 0);
        }
    }
    script_op(script, SEQ_CLEAR, 3, 0, 0);
    script_op(script, SEQ_FORK, 0, 3, script->n[0]);
    script_prompt(script, 3, 20, 77);
    script_step(script, &(struct script_part){3, 20, STEP_OUTPUT_LOGITS, true}, 1);
    script_end_all(script);
    decode(script, (const uint32_t[][2]){{3, 3}}, 1, 4);
}

/* What the pagers of all ranks have counted. */
static void log_counters(struct script *script, struct job *job)
{
    static struct pager_snapshot all;
    struct lm_error err;
    if (job->pipeline) {
        assert_int_equal(pipeline_ask_stats(job->pipeline, false, &err), LM_OK);
        assert_int_equal(pipeline_ask_stats(job->pipeline, true, &err), LM_OK);
        pipeline_read_stats(job->pipeline, &all);
    } else {
        pager_snapshot_take(&all, worker_pager(job->rank[0].worker), NULL);
    }
    fprintf(script->log, "layers %u to %u, %u experts, %llu and %llu lookups\n",
            all.total.layer_begin, all.total.layer_end, all.total.n_expert,
            (unsigned long long)all.total.decode.n_lookup,
            (unsigned long long)all.total.prefill.n_lookup);
    for (uint32_t il = 0; il < job->hp.n_layer; il++)
        fprintf(script->log, "layer %u: %u experts, %llu and %llu lookups\n", il,
                all.layer[il].n_expert, (unsigned long long)all.layer[il].decode.n_lookup,
                (unsigned long long)all.layer[il].prefill.n_lookup);
    double n_token, *uses = calloc((size_t)job->hp.n_layer * job->hp.n_expert + 1, sizeof(double));
    assert_non_null(uses);
    if (job->pipeline)
        assert_int_equal(pipeline_read_uses(job->pipeline, &n_token, uses, &err), LM_OK);
    else
        n_token = routing_profile_uses(worker_pager(job->rank[0].worker), &job->hp, uses);
    fprintf(script->log, "uses in %g tokens:", n_token);
    for (size_t i = 0; i < (size_t)job->hp.n_layer * job->hp.n_expert; i++)
        fprintf(script->log, " %g", uses[i]);
    fprintf(script->log, "\n");
    free(uses);
}

static char *run_job(const char *model, uint32_t n_rank, const uint32_t *cut, uint32_t slack)
{
    static struct job job;
    static struct script script;
    job_prepare(&job, model, n_rank, cut);
    job_start(&job, slack);
    script_begin(&script, job.runner);
    run(&script);
    script_end_all(&script);
    log_counters(&script, &job);
    char *const text = script_end(&script);
    assert_int_equal(script.n_under_way_max, n_rank == 1 ? 1 : n_rank + slack);
    job_close(&job, LM_OK);
    return text;
}

static void check(const char *model, uint32_t n_rank, const uint32_t *cut, const char *expected)
{
    for (uint32_t slack = 0; slack < 2; slack++) {
        char *text = run_job(model, n_rank, cut, slack);
        if (strcmp(text, expected)) {
            size_t at = 0;
            while (text[at] == expected[at])
                at++;
            while (at && text[at - 1] != '\n')
                at--;
            fail_msg("%s: %u ranks cut at %u, %u steps:\n%.200s\nand not\n%.200s", model, n_rank,
                     cut[0], n_rank + slack, text + at, expected + at);
        }
        free(text);
    }
}

static void check_model(const char *model, uint32_t n_layer)
{
    char *expected = run_job(model, 1, NULL, 0);
    assert_non_null(strstr(expected, "not begun"));
    for (uint32_t cut = 1; cut < n_layer; cut++)
        check(model, 2, &cut, expected);
    for (uint32_t cut = 1; cut + 1 < n_layer; cut++)
        check(model, 3, (uint32_t[]){cut, cut + 1}, expected);
    if (n_layer >= 4) check(model, 4, (uint32_t[]){1, 2, n_layer - 1}, expected);
    if (n_layer >= 4)
        check(model, 4, (uint32_t[]){n_layer - 3, n_layer - 2, n_layer - 1}, expected);
    free(expected);
}

static void test_recurrent_experts(void **state)
{
    (void)state;
    check_model("qwen35moe-k-q4km", 3);
    check_model("qwen35moe-s-q8_0", 8);
    check_model("qwen3next-s-q8_0", 6);
}

static void test_attention_experts(void **state)
{
    (void)state;
    check_model("qwen3moe-s-q8_0", 4);
    check_model("afmoe-s-q8_0", 6);
}

static void test_dense(void **state)
{
    (void)state;
    check_model("llama-s-bf16", 4);
    check_model("llama-k-q3_k", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recurrent_experts),
        cmocka_unit_test(test_attention_experts),
        cmocka_unit_test(test_dense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
