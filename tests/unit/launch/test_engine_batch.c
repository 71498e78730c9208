/* Many requests at once through the real engine: what each gets, its tokens and log-probabilities,
 * is bit for bit what it gets alone, from an engine that reuses nothing, cuts prompts elsewhere and
 * has another number of threads. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched/scheduler.h"
#include "launch/engine.h"
#include "proto/model/hparams.h"

enum { N_CTX = 512, N_REQUEST = 16, N_SLOT = 4, N_MAX = 12, N_PROMPT_MAX = 300, N_TOP = 4 };

static const char *const models[] = {"llama-s-f32", "qwen35moe-s-q8_0", "qwen3next-s-q8_0",
                                     "afmoe-s-q8_0"};
enum { N_MODEL = sizeof(models) / sizeof(models[0]) };

/* cache_bytes 0: room for n_snapshot states, none for log-probabilities. */
static struct engine *open_engine(const char *model, uint32_t n_slot, uint32_t n_snapshot,
                                  uint64_t cache_bytes, uint32_t chunk, uint32_t n_thread)
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
                                         .own.n_thread = n_thread,
                                         .own.kernels = "auto",
                                         .prefill_chunk = chunk,
                                         .n_snapshot = n_snapshot,
                                         .serving = cache_bytes > 0,
                                         .cache_bytes = cache_bytes,
                                         .checkpoint_every = 100};
    if (engine_open(&engine, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return engine;
}

struct call {
    struct request request;
    int32_t ids[N_PROMPT_MAX];
    size_t turn;
    struct sampled_token token[N_MAX], prompt_token[N_PROMPT_MAX];
    uint32_t n_token, n_prompt_token;
    float *expected; /* [n_prompt] log-probabilities by float64 log-softmax; or NULL */
};

static bool on_token(void *context, const struct sampled_token *token)
{
    struct call *call = context;
    call->token[call->n_token++] = *token;
    return true;
}

static void on_prompt_token(void *context, uint32_t pos, const struct sampled_token *token)
{
    struct call *call = context;
    assert_int_equal(pos, call->n_prompt_token + 1);
    assert_int_equal(token->id, call->ids[pos]);
    call->prompt_token[call->n_prompt_token++] = *token;
}

static void on_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    const struct call *call = context;
    double max = -INFINITY, sum = 0;
    if (pos + 1 >= call->request.n_prompt) return;
    for (uint32_t i = 0; i < n_vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += exp(logits[i] - max);
    call->expected[pos + 1] = (float)(logits[call->ids[pos + 1]] - max - log(sum));
}

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Prompts over two beginnings, which they leave anywhere; greedy and seeded; with and without
 * log-probabilities of the prompt. */
static void make_call(struct call *call, uint32_t *seed)
{
    const uint32_t shared = draw(seed) % 200, n = shared + 2 + draw(seed) % 90;
    const uint32_t beginning = draw(seed) % 2;
    memset(call, 0, sizeof(*call));
    for (uint32_t i = 0; i < n; i++)
        call->ids[i] =
            (int32_t)(i < shared ? (i * 37 + i * i * 5 + beginning * 101) % 500 : draw(seed) % 500);
    call->turn = shared;
    call->request = (struct request){.prompt = call->ids,
                                     .n_prompt = n,
                                     .n_max = 1 + draw(seed) % N_MAX,
                                     .sampling = sampling_params_default(),
                                     .on_token = on_token,
                                     .context = call};
    call->request.sampling.n_logprob = N_TOP;
    if (draw(seed) % 2) {
        call->request.sampling.temperature = 1;
        call->request.sampling.seed = draw(seed);
        call->request.sampling.repeat_penalty = 1.2f;
        call->request.sampling.repeat_last_n = 64;
    }
    if (draw(seed) % 3 == 0) {
        call->request.turns = &call->turn;
        call->request.n_turn = 1;
    }
    if (draw(seed) % 2) {
        call->request.on_prompt_token = on_prompt_token;
        call->request.n_prompt_logprob = (int32_t)(draw(seed) % 8);
    }
}

static void submit(struct engine *engine, struct call *call)
{
    struct lm_error err;
    call->n_token = call->n_prompt_token = 0;
    call->request.submit_s = 0;
    assert_int_equal(scheduler_submit(engine_scheduler(engine), &call->request, &err), LM_OK);
}

static void run_all(struct engine *engine)
{
    while (scheduler_step(engine_scheduler(engine))) {
    }
}

static void assert_same_token(const struct sampled_token *a, const struct sampled_token *b)
{
    assert_int_equal(a->id, b->id);
    assert_memory_equal(&a->logprob, &b->logprob, sizeof(float));
    assert_int_equal(a->n_top, b->n_top);
    assert_memory_equal(a->top_id, b->top_id, (size_t)a->n_top * sizeof(int32_t));
    assert_memory_equal(a->top_logprob, b->top_logprob, (size_t)a->n_top * sizeof(float));
}

static void assert_same(const struct call *a, const struct call *b)
{
    assert_int_equal(a->request.status, LM_OK);
    assert_int_equal(a->n_token, a->request.n_max);
    assert_int_equal(b->n_token, a->n_token);
    assert_int_equal(b->n_prompt_token, a->n_prompt_token);
    for (uint32_t i = 0; i < a->n_token; i++)
        assert_same_token(&a->token[i], &b->token[i]);
    for (uint32_t i = 0; i < a->n_prompt_token; i++)
        assert_same_token(&a->prompt_token[i], &b->prompt_token[i]);
}

static void check_model(const char *model, uint64_t cache_bytes, uint32_t seed)
{
    static struct call beside[N_REQUEST], again[N_REQUEST], alone;
    struct engine *engine = open_engine(model, N_SLOT, 6, cache_bytes, 64, 2);
    struct engine *other = open_engine(model, 1, 0, 0, 29, 1);
    for (int i = 0; i < N_REQUEST; i++) {
        make_call(&beside[i], &seed);
        submit(engine, &beside[i]);
        if (draw(&seed) % 4 == 0) scheduler_step(engine_scheduler(engine));
    }
    run_all(engine);
    for (int i = N_REQUEST - 1; i >= 0; i--) { /* and the other way round, with more cached */
        again[i] = beside[i];
        again[i].request.context = &again[i];
        submit(engine, &again[i]);
    }
    run_all(engine);
    for (int i = 0; i < N_REQUEST; i++) {
        alone = beside[i];
        alone.request.context = &alone;
        alone.request.no_cache = true;
        submit(other, &alone);
        run_all(other);
        assert_int_equal(alone.request.n_cached, 0);
        assert_same(&alone, &beside[i]);
        assert_same(&alone, &again[i]);
    }
    const struct scheduler_stats stats = scheduler_stats(engine_scheduler(engine));
    assert_in_range(stats.n_seq_max, 2, N_SLOT);
    assert_true(stats.n_hit_token > stats.n_prompt_token / (cache_bytes ? 2 : 8));
    assert_true(cache_bytes || stats.n_evicted_state > 0);
    assert_true(stats.phase[STEP_MIXED].n_step > 0);
    engine_close(engine, NULL);
    engine_close(other, NULL);
}

static void test_output_does_not_depend_on_company_or_cache(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODEL; i++)
        for (uint32_t seed = 1; seed <= 4; seed++)
            check_model(models[i], seed % 2 ? 0 : 64 << 20, seed);
}

static void test_prompt_logprobs_are_those_of_the_logits(void **state)
{
    (void)state;
    static struct call scored, read;
    static float expected[N_PROMPT_MAX];
    for (int i = 0; i < N_MODEL; i++) {
        uint32_t seed = 7;
        struct engine *engine = open_engine(models[i], 2, 2, 0, 64, 2);
        make_call(&scored, &seed);
        scored.request.on_prompt_token = on_prompt_token;
        scored.request.n_prompt_logprob = 1;
        read = scored;
        read.request.context = &read;
        read.request.on_prompt_token = NULL;
        read.request.on_logits = on_logits;
        read.expected = expected;
        submit(engine, &scored), run_all(engine);
        submit(engine, &read), run_all(engine);
        assert_int_equal(scored.n_prompt_token, scored.request.n_prompt - 1);
        for (uint32_t pos = 1; pos < scored.request.n_prompt; pos++) {
            const struct sampled_token *token = &scored.prompt_token[pos - 1];
            assert_true(fabsf(token->logprob - expected[pos]) <= 1e-6f * fabsf(expected[pos]));
            assert_int_equal(token->n_top, 1);
            assert_true(token->top_logprob[0] >= token->logprob);
        }
        engine_close(engine, NULL);
    }
}

/* Samples of one prompt: it is read once, and seeds tell them apart. */
static void test_samples_of_a_prompt_share_its_reading(void **state)
{
    (void)state;
    static struct call calls[N_SLOT];
    for (int i = 0; i < N_MODEL; i++) {
        struct engine *engine = open_engine(models[i], N_SLOT, 2, 0, 64, 2);
        for (uint32_t k = 0; k < N_SLOT; k++) {
            uint32_t seed = 3;
            make_call(&calls[k], &seed);
            calls[k].request.n_max = N_MAX;
            calls[k].request.sampling.temperature = 1;
            calls[k].request.sampling.seed = k / 2;
            calls[k].request.on_prompt_token = NULL;
            submit(engine, &calls[k]);
        }
        run_all(engine);
        for (uint32_t k = 1; k < N_SLOT; k++)
            assert_int_equal(calls[k].request.n_cached, calls[k].request.n_prompt - 1);
        assert_same(&calls[0], &calls[1]);
        assert_same(&calls[2], &calls[3]);
        bool equal = true;
        for (uint32_t t = 0; t < N_MAX; t++)
            equal &= calls[0].token[t].id == calls[2].token[t].id;
        assert_false(equal);
        engine_close(engine, NULL);
    }
}

/* One whose sampling fails ends alone. */
static void test_a_sequence_that_cannot_be_sampled_ends_alone(void **state)
{
    (void)state;
    static struct call calls[3], alone;
    static const uint32_t nothing[64];
    struct engine *engine = open_engine("qwen35moe-s-q8_0", 3, 2, 0, 64, 2);
    uint32_t seed = 11;
    for (int i = 0; i < 3; i++) {
        make_call(&calls[i], &seed);
        calls[i].request.on_prompt_token = NULL;
        if (i == 1) calls[i].request.sampling.allowed = nothing;
        submit(engine, &calls[i]);
    }
    run_all(engine);
    assert_int_equal(calls[1].request.status, LM_E_FAIL);
    assert_non_null(strstr(calls[1].request.error.message, "no token is allowed"));
    for (int i = 0; i < 3; i += 2) {
        alone = calls[i];
        alone.request.context = &alone;
        alone.request.no_cache = true;
        submit(engine, &alone), run_all(engine);
        assert_same(&alone, &calls[i]);
    }
    engine_close(engine, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_does_not_depend_on_company_or_cache),
        cmocka_unit_test(test_prompt_logprobs_are_those_of_the_logits),
        cmocka_unit_test(test_samples_of_a_prompt_share_its_reading),
        cmocka_unit_test(test_a_sequence_that_cannot_be_sampled_ends_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
