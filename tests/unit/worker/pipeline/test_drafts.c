/* Sequences whose steps have drafts say what they say without, with the same log-probabilities:
 * right and wrong drafts, any number of them, several sequences, ranks, cuts of the layers. */
#include "tests/unit/worker/pipeline/step_script.h"

enum { N_SEQ = 3, N_PROMPT = 20, N_ANSWER = 60 };

struct answer {
    struct sampled_token token[N_ANSWER];
};

/* Tokens of all sequences, drafted as asked for: the truth with mistakes here and there. */
static void run(struct job *job, const struct answer *truth, uint32_t n_draft_max,
                struct answer *out)
{
    static int32_t ids[N_SEQ][JOB_N_CTX + 1];
    uint32_t n[N_SEQ] = {0}, n_answer[N_SEQ] = {0}, random = n_draft_max + 1, n_accepted_sum = 0;
    for (uint32_t slot = 0; slot < N_SEQ; slot++)
        for (uint32_t i = 0; i < N_PROMPT; i++)
            ids[slot][i] = (int32_t)((i * 57 + slot * 101) % SCRIPT_N_VOCAB);
    for (;;) {
        struct step_seq seq[N_SEQ];
        struct sampled_token sampled[N_SEQ], accepted[N_SEQ][STEP_DRAFT_MAX];
        struct lm_error error[N_SEQ], err;
        uint32_t n_accepted[N_SEQ] = {0}, index[N_SEQ];
        struct step_plan plan = {.seq = seq};
        for (uint32_t slot = 0; slot < N_SEQ; slot++) {
            if (n_answer[slot] == N_ANSWER) continue;
            uint32_t n_draft = 0;
            random = random * 1664525 + 1013904223;
            if (n[slot] && truth) n_draft = (random >> 16) % (n_draft_max + 1);
            if (n_draft >= N_ANSWER - n_answer[slot]) n_draft = N_ANSWER - n_answer[slot] - 1;
            for (uint32_t i = 0; i < n_draft; i++) {
                random = random * 1664525 + 1013904223;
                const int32_t id = truth[slot].token[n_answer[slot] + i].id;
                ids[slot][n[slot] + 1 + i] = (random >> 16) % 6 ? id : (id + 1) % SCRIPT_N_VOCAB;
            }
            error[slot].status = LM_OK;
            const uint32_t n_token = n[slot] ? 1 + n_draft : N_PROMPT;
            index[plan.n_seq] = slot;
            seq[plan.n_seq++] = (struct step_seq){.slot = slot,
                                                  .ids = ids[slot] + n[slot],
                                                  .n_token = n_token,
                                                  .n_draft = n_draft,
                                                  .accepted = accepted[slot],
                                                  .n_accepted = &n_accepted[slot],
                                                  .output = STEP_OUTPUT_SAMPLE,
                                                  .history = ids[slot],
                                                  .n_history = n[slot] + n_token,
                                                  .n_prompt = N_PROMPT,
                                                  .sampling = script_sampling(slot),
                                                  .error = &error[slot]};
        }
        if (!plan.n_seq) break;
        if (job->runner.begin(job->runner.context, &plan, sampled, &err) != LM_OK)
            fail_msg("%s", err.message);
        assert_int_equal(job->runner.end(job->runner.context, &err), LM_OK);
        for (uint32_t i = 0; i < plan.n_seq; i++) {
            const uint32_t slot = index[i];
            assert_int_equal(error[slot].status, LM_OK);
            n[slot] += seq[i].n_token - seq[i].n_draft;
            for (uint32_t k = 0; k <= n_accepted[slot]; k++) {
                const bool last = k == n_accepted[slot];
                const struct sampled_token *token = last ? &sampled[i] : &accepted[slot][k];
                ids[slot][n[slot]] = token->id;
                out[slot].token[n_answer[slot]++] = *token;
                n[slot] += !last;
            }
            n_accepted_sum += n_accepted[slot];
            const struct seq_op cut = {.kind = SEQ_CUT, .slot = slot, .n = n[slot]};
            if (seq[i].n_draft)
                assert_int_equal(job->runner.seq(job->runner.context, &cut, &err), LM_OK);
            /* a sequence goes on in another slot, and comes back */
            const struct seq_op there = {.kind = SEQ_FORK, .slot = slot, .to = 4, .n = n[slot]};
            const struct seq_op back = {.kind = SEQ_FORK, .slot = 4, .to = slot, .n = n[slot]};
            if (n[slot] % 5) continue;
            assert_int_equal(job->runner.seq(job->runner.context, &there, &err), LM_OK);
            assert_int_equal(job->runner.seq(job->runner.context, &back, &err), LM_OK);
        }
    }
    assert_true(!truth || n_accepted_sum > N_SEQ * N_ANSWER / 8);
    for (uint32_t slot = 0; slot < JOB_N_SLOT; slot++) {
        const struct seq_op clear = {.kind = SEQ_CLEAR, .slot = slot};
        assert_int_equal(job->runner.seq(job->runner.context, &clear, NULL), LM_OK);
    }
    assert_int_equal(job->runner.usage(job->runner.context).n_position, 0);
}

static void check_same(const struct answer *a, const struct answer *b)
{
    for (uint32_t slot = 0; slot < N_SEQ; slot++) {
        for (uint32_t i = 0; i < N_ANSWER; i++) {
            const struct sampled_token *x = &a[slot].token[i], *y = &b[slot].token[i];
            if (x->id != y->id) fail_msg("slot %u, token %u: %d, not %d", slot, i, y->id, x->id);
            assert_int_equal(x->n_top, y->n_top);
            assert_memory_equal(&x->logprob, &y->logprob, sizeof(x->logprob));
            assert_memory_equal(x->top_id, y->top_id, (size_t)x->n_top * sizeof(x->top_id[0]));
            assert_memory_equal(x->top_logprob, y->top_logprob,
                                (size_t)x->n_top * sizeof(x->top_logprob[0]));
        }
    }
}

static void check_model(const char *model, uint32_t n_rank, const uint32_t *cut)
{
    static struct answer plain[N_SEQ], drafted[N_SEQ];
    struct job job;
    job_prepare(&job, model, n_rank, cut);
    job_start(&job, n_rank > 1);
    run(&job, NULL, 0, plain);
    for (uint32_t n_draft_max = 1; n_draft_max <= STEP_DRAFT_MAX; n_draft_max += 7) {
        run(&job, plain, n_draft_max, drafted);
        check_same(plain, drafted);
    }
    job_close(&job, LM_OK);
}

static void test_attention(void **state)
{
    (void)state;
    check_model("llama-k-q3_k", 1, NULL);
}

static void test_recurrent(void **state)
{
    (void)state;
    check_model("qwen35moe-k-q4km", 1, NULL);
    check_model("qwen3next-s-q8_0", 1, NULL);
}

static void test_windows(void **state)
{
    (void)state;
    check_model("afmoe-s-q8_0", 1, NULL);
}

static void test_ranks(void **state)
{
    (void)state;
    check_model("qwen35moe-k-q4km", 3, (const uint32_t[]){1, 2});
    check_model("afmoe-s-q8_0", 2, (const uint32_t[]){2});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_recurrent),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
