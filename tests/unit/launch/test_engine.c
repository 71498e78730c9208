/* The engine over whole conversations: what it finds in its cache changes no bit. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/engine.h"

enum { N_CTX = 512, MAX_TOKENS = 64, N_TOP = 10 };

static const char *const models[] = {"llama-s-f32", "qwen35moe-s-q8_0", "qwen3next-s-q8_0",
                                     "afmoe-s-q8_0"};
enum { N_MODEL = sizeof(models) / sizeof(models[0]) };

static struct engine *open_engine(const char *model, uint32_t n_slot, uint32_t n_snapshot)
{
    char path[1000];
    struct lm_error err;
    struct engine *engine = NULL;
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             model);
    const struct engine_config config = {.model_path = path,
                                         .n_ctx = N_CTX,
                                         .n_slot = n_slot,
                                         .kv_type = "f16",
                                         .own.n_thread = 2,
                                         .own.kernels = "auto",
                                         .prefill_chunk = 64,
                                         .n_snapshot = n_snapshot};
    if (engine_open(&engine, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return engine;
}

/* An answer with the log-probabilities of the best tokens: equal bits there mean equal logits. */
struct answer {
    struct sampled_token token[MAX_TOKENS];
    size_t n;
    struct engine *cancel; /* after the third token */
};

static bool keep_token(void *context, const struct sampled_token *token)
{
    struct answer *answer = context;
    assert_true(answer->n < MAX_TOKENS);
    answer->token[answer->n++] = *token;
    if (answer->cancel && answer->n == 3) engine_cancel(answer->cancel);
    return true;
}

static struct generate_request request_of(const int32_t *prompt, size_t n, uint32_t n_max,
                                          struct answer *answer)
{
    struct generate_request request = {.prompt = prompt,
                                       .n_prompt = n,
                                       .sampling = sampling_params_default(),
                                       .n_max = n_max,
                                       .ignore_end = true,
                                       .on_token = keep_token,
                                       .context = answer};
    request.sampling.n_logprob = N_TOP;
    return request;
}

static struct generate_result generate(struct engine *engine, const int32_t *prompt, size_t n,
                                       uint32_t n_max, struct answer *answer)
{
    struct lm_error err;
    struct generate_result result;
    const struct generate_request request = request_of(prompt, n, n_max, answer);
    answer->n = 0;
    if (engine_generate(engine, &request, &result, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(result.n_generated, answer->n);
    return result;
}

static void assert_same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        assert_int_equal(a->token[i].id, b->token[i].id);
        assert_memory_equal(a->token[i].top_id, b->token[i].top_id, N_TOP * sizeof(int32_t));
        assert_memory_equal(a->token[i].top_logprob, b->token[i].top_logprob,
                            N_TOP * sizeof(float));
    }
}

static void fill_prompt(int32_t *ids, size_t n, int32_t seed)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)((i * 37 + i * i * 5 + (size_t)seed * 101 + 3) % 500);
}

/* A second turn that continues the first one exactly reads only what is new. */
static void test_next_turn_reads_only_new_tokens(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        int32_t ids[200];
        struct answer first = {.n = 0}, warm = {.n = 0}, cold = {.n = 0};
        struct engine *engine = open_engine(models[i], 1, 2), *other = open_engine(models[i], 1, 0);
        fill_prompt(ids, 200, 1);
        generate(engine, ids, 150, 12, &first);
        for (size_t k = 0; k < 12; k++)
            ids[150 + k] = first.token[k].id;
        const struct generate_result result = generate(engine, ids, 180, 12, &warm);
        assert_int_equal(result.n_cached, 150 + 11); /* the last token was never read */
        assert_int_equal(generate(other, ids, 180, 12, &cold).n_cached, 0);
        assert_same(&warm, &cold);
        engine_close(engine, NULL);
        engine_close(other, NULL);
    }
}

/* The same prompt again, and one that leaves it behind its last control token: both go back to a
 * state that was kept. */
static void test_going_back_gives_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        int32_t ids[220];
        struct answer first = {.n = 0}, again = {.n = 0}, changed = {.n = 0}, cold = {.n = 0};
        struct engine *engine = open_engine(models[i], 1, 3), *other = open_engine(models[i], 1, 0);
        fill_prompt(ids, 220, 2);
        ids[130] = 503; /* a control token of the tiny vocabulary: a turn begins */
        generate(engine, ids, 200, 10, &first);
        const struct generate_result repeated = generate(engine, ids, 200, 10, &again);
        assert_true(repeated.n_cached >= 130);
        assert_same(&again, &first);
        for (size_t k = 131; k < 210; k++)
            ids[k] = (ids[k] + 7) % 500;
        assert_int_equal(generate(engine, ids, 210, 10, &changed).n_cached >= 130, true);
        generate(other, ids, 210, 10, &cold);
        assert_same(&changed, &cold);
        engine_close(engine, NULL);
        engine_close(other, NULL);
    }
}

/* Requests that run beside each other, and more of them than slots, answer as if alone. */
static void test_companions_change_nothing(void **state)
{
    (void)state;
    enum { N_REQUEST = 5 };
    for (int i = 0; i < N_MODEL; i++) {
        int32_t ids[N_REQUEST][120];
        struct answer beside[N_REQUEST] = {{.n = 0}}, alone = {.n = 0};
        struct generate_request requests[N_REQUEST];
        struct generate_result results[N_REQUEST];
        struct lm_error err;
        struct engine *engine = open_engine(models[i], 3, 1);
        for (int32_t k = 0; k < N_REQUEST; k++) {
            fill_prompt(ids[k], 120, k < 3 ? 3 : k); /* three begin alike */
            requests[k] = request_of(ids[k], 50 + (size_t)k * 17, 20, &beside[k]);
        }
        assert_int_equal(engine_generate_many(engine, requests, results, N_REQUEST, &err), LM_OK);
        assert_int_equal(engine_stats(engine).n_seq_max, 3);
        struct engine *other = open_engine(models[i], 1, 0);
        for (int k = 0; k < N_REQUEST; k++) {
            generate(other, ids[k], 50 + (size_t)k * 17, 20, &alone);
            assert_same(&alone, &beside[k]);
        }
        engine_close(engine, NULL);
        engine_close(other, NULL);
    }
}

/* Long enough for windows and blocks to pass, in a pool that holds one context. */
static void test_context_runs_to_its_end(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODEL; i++) {
        int32_t ids[N_CTX + 1] = {0};
        struct answer answer = {.n = 0};
        struct lm_error err;
        struct engine *engine = open_engine(models[i], 1, 2);
        fill_prompt(ids, N_CTX, 4);
        for (int32_t turn = 0; turn < 3; turn++) {
            fill_prompt(ids, 100, turn);
            const struct generate_result full = generate(engine, ids, N_CTX - 20, 0, &answer);
            assert_int_equal(full.finish, FINISH_LENGTH);
            assert_int_equal(full.n_generated, 21); /* the last one is not read any more */
        }
        const struct generate_request longer = request_of(ids, N_CTX + 1, 1, &answer);
        struct generate_result result;
        assert_int_equal(engine_generate(engine, &longer, &result, &err), LM_E_LIMIT);
        assert_non_null(strstr(err.message, "513"));
        engine_close(engine, NULL);
    }
}

static void test_cancel_stops_at_the_next_token(void **state)
{
    (void)state;
    int32_t ids[30];
    struct engine *engine = open_engine("llama-s-f32", 1, 0);
    struct answer answer = {.n = 0, .cancel = engine};
    fill_prompt(ids, 30, 5);
    const struct generate_result result = generate(engine, ids, 30, 40, &answer);
    assert_int_equal(result.finish, FINISH_CANCELLED);
    assert_int_equal(result.n_generated, 3);
    answer.cancel = NULL;
    assert_int_equal(generate(engine, ids, 30, 4, &answer).finish, FINISH_LENGTH);
    engine_close(engine, NULL);
}

static void test_bad_requests_are_refused(void **state)
{
    (void)state;
    const int32_t ids[3] = {1, 512, 2};
    struct answer answer = {.n = 0};
    struct generate_result result;
    struct lm_error err;
    struct engine *engine = open_engine("llama-s-f32", 1, 0);
    struct generate_request request = request_of(ids, 3, 4, &answer);
    assert_int_equal(engine_generate(engine, &request, &result, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "token 1 is 512"));
    request.n_prompt = 0;
    assert_int_equal(engine_generate(engine, &request, &result, &err), LM_E_USAGE);
    engine_close(engine, NULL);

    const struct engine_config config = {.model_path = "/nowhere.gguf", .kv_type = "f16"};
    assert_int_equal(engine_open(&engine, &config, &err), LM_E_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_turn_reads_only_new_tokens),
        cmocka_unit_test(test_going_back_gives_the_same_bits),
        cmocka_unit_test(test_companions_change_nothing),
        cmocka_unit_test(test_context_runs_to_its_end),
        cmocka_unit_test(test_cancel_stops_at_the_next_token),
        cmocka_unit_test(test_bad_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
