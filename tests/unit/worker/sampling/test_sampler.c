/* The sampler against distributions worked out by hand, against a naive sampler, and against
 * itself: the same seed and position give the same token. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/sampling/philox.h"
#include "worker/sampling/sampler.h"
#include "worker/sampling/softmax.h"

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static float random_float(uint64_t *state, float min, float max)
{
    return min + (max - min) * (float)next_random(state) / 2147483648.0f;
}

static struct sampler *create(uint32_t n_vocab)
{
    struct sampler *sampler;
    assert_int_equal(sampler_create(&sampler, n_vocab, NULL), LM_OK);
    return sampler;
}

static int32_t sample(struct sampler *sampler, const float *logits,
                      const struct sampling_params *params, const struct sampler_history *history,
                      uint64_t position)
{
    static const struct sampler_history none = {0};
    struct sampled_token token;
    struct lm_error err = {0};
    if (sampler_sample(sampler, logits, params, history ? history : &none, position, &token, &err))
        fail_msg("%s", err.message);
    return token.id;
}

/* A forced token comes out, also one that a bias bans and no mask allows. */
static void test_forced(void **state)
{
    (void)state;
    const float logits[] = {5, 1, 2, 3};
    const struct logit_bias bias = {2, -INFINITY};
    const uint32_t allowed = 1;
    struct sampling_params params = sampling_params_default();
    struct sampler *sampler = create(4);
    params.bias = &bias;
    params.n_bias = 1;
    params.allowed = &allowed;
    params.is_forced = true;
    for (params.forced_id = 0; params.forced_id < 4; params.forced_id++)
        assert_int_equal(sample(sampler, logits, &params, NULL, 0), params.forced_id);
    params.is_forced = false;
    assert_int_equal(sample(sampler, logits, &params, NULL, 0), 0);
    sampler_destroy(sampler);
}

/* The tokens that are drawn at all in n tries. */
static void find_support(const float *logits, uint32_t n_vocab,
                         const struct sampling_params *params, bool *drawn)
{
    struct sampler *sampler = create(n_vocab);
    memset(drawn, 0, n_vocab * sizeof(*drawn));
    for (uint64_t position = 0; position < 3000; position++)
        drawn[sample(sampler, logits, params, NULL, position)] = true;
    sampler_destroy(sampler);
}

static void assert_support(const float *logits, uint32_t n_vocab,
                           const struct sampling_params *params, const char *expected)
{
    bool drawn[64];
    char got[65] = {0};
    find_support(logits, n_vocab, params, drawn);
    for (uint32_t i = 0; i < n_vocab; i++)
        got[i] = drawn[i] ? 'x' : '.';
    assert_string_equal(got, expected);
}

static void philox_gives_published_numbers(void **state)
{
    (void)state; /* Random123's known answers */
    static const struct {
        uint32_t counter[4], key[2], result[4];
    } answers[] = {
        {{0}, {0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{-1u, -1u, -1u, -1u}, {-1u, -1u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++) {
        uint32_t counter[4];
        memcpy(counter, answers[i].counter, sizeof(counter));
        philox4x32(counter, answers[i].key[0], answers[i].key[1]);
        assert_memory_equal(counter, answers[i].result, sizeof(counter));
    }
}

static void softmax_exp_is_accurate(void **state)
{
    (void)state;
    uint64_t random = 1;
    double worst = 0;
    for (int i = 0; i < 200000; i++) {
        const double x = -(double)next_random(&random) / 2147483648.0 * (i % 2 ? 707 : 2);
        const double error = fabs(softmax_exp(x) / exp(x) - 1);
        if (error > worst) worst = error;
    }
    assert_true(worst < 0x1p-51);
    assert_true(softmax_exp(0) == 1);
    assert_true(softmax_exp(-INFINITY) == 0);
    assert_true(softmax_exp(-709) == 0);
}

/* Whatever instruction set the sum is compiled for: eight accumulators and their tree. */
static void softmax_sum_has_one_order(void **state)
{
    (void)state;
    uint64_t random = 2;
    float x[1001];
    for (size_t n = 1; n <= 1001; n += 1 + n / 9) {
        for (size_t i = 0; i < n; i++)
            x[i] = i % 97 == 96 ? -INFINITY : random_float(&random, -30, 5);
        double lane[8] = {0};
        for (size_t i = 0; i < n; i++)
            lane[i % 8] += softmax_exp(((double)x[i] - 5.0) * 0.75);
        const double expected = ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
                                ((lane[1] + lane[5]) + (lane[3] + lane[7]));
        const double got = softmax_sum(x, n, 5, 0.75);
        assert_memory_equal(&got, &expected, sizeof(got));
    }
}

static void greedy_takes_the_first_of_the_largest(void **state)
{
    (void)state;
    float logits[37];
    struct sampler *sampler = create(37);
    struct sampling_params params = sampling_params_default();
    for (int best = 0; best < 37; best++) {
        for (int i = 0; i < 37; i++)
            logits[i] = i < best ? -1.0f : i % 3 == best % 3 ? 2.5f : 2.0f;
        assert_int_equal(sample(sampler, logits, &params, NULL, 0), best);
    }
    params.temperature = 1;
    params.top_p = 0; /* greedy too */
    assert_int_equal(sample(sampler, logits, &params, NULL, 0), 36);
    const float zeros[3] = {-1, -0.0f, 0.0f};
    sampler_destroy(sampler);
    sampler = create(3);
    assert_int_equal(sample(sampler, zeros, &params, NULL, 0), 1);
    sampler_destroy(sampler);
}

static void bad_logits_are_errors(void **state)
{
    (void)state;
    float logits[40] = {0};
    struct sampler *sampler = create(40);
    struct sampling_params params = sampling_params_default();
    const struct sampler_history none = {0};
    struct sampled_token token;
    struct lm_error err;
    for (int sampled = 0; sampled < 2; sampled++) {
        params.temperature = (float)sampled;
        for (int i = 0; i < 40; i++) {
            logits[i] = NAN;
            assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &token, &err),
                             LM_E_FAIL);
            char expected[64];
            snprintf(expected, sizeof(expected), "logit of token %d is not a number", i);
            assert_string_equal(err.message, expected);
            logits[i] = INFINITY;
            assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &token, &err),
                             LM_E_FAIL);
            snprintf(expected, sizeof(expected), "logit of token %d is infinite", i);
            assert_string_equal(err.message, expected);
            logits[i] = 0;
        }
    }
    for (int i = 0; i < 40; i++)
        logits[i] = -INFINITY;
    assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &token, &err), LM_E_FAIL);
    assert_string_equal(err.message, "no token is allowed: all 40 logits are minus infinity");
    logits[7] = -3;
    assert_int_equal(sample(sampler, logits, &params, NULL, 5), 7);
    const struct logit_bias outside = {.token = 40, .bias = 1};
    params.bias = &outside;
    params.n_bias = 1;
    assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &token, &err), LM_E_USAGE);
    sampler_destroy(sampler);
}

/* In every word of the mask, with filters and without; the mask may change between two calls. */
static void only_allowed_tokens_are_drawn(void **state)
{
    (void)state;
    enum { N = 70 };
    static const struct sampler_history none = {0};
    float logits[N];
    uint32_t allowed[3] = {UINT32_C(1) << 5 | UINT32_C(1) << 31, 0xffffffff, UINT32_C(1) << 2};
    uint64_t random = 9;
    for (int i = 0; i < N; i++)
        logits[i] = random_float(&random, -1, 1);
    logits[0] = logits[69] = 20; /* forbidden, and better than all others */
    logits[5] = 3;
    struct sampler *sampler = create(N);
    struct sampling_params params = sampling_params_default();
    params.allowed = allowed;
    assert_int_equal(sample(sampler, logits, &params, NULL, 0), 5);

    params.temperature = 3;
    for (int filtered = 0; filtered < 2; filtered++) {
        bool drawn[N] = {0};
        params.top_k = filtered ? 60 : 0;
        params.top_p = filtered ? 0.99f : 1;
        for (uint64_t position = 0; position < 20000; position++)
            drawn[sample(sampler, logits, &params, NULL, position)] = true;
        for (int i = 0; i < N; i++)
            if (!(allowed[i / 32] >> i % 32 & 1)) assert_false(drawn[i]);
        assert_true(filtered || (drawn[5] && drawn[31] && drawn[66]));
    }

    /* log-probabilities are those of all tokens */
    struct sampled_token free_token, held_token;
    struct lm_error err = {0};
    params = sampling_params_default();
    params.n_logprob = 2;
    assert_int_equal(sampler_logprob(sampler, logits, 66, 2, &free_token, &err), LM_OK);
    allowed[0] = allowed[1] = 0;
    params.allowed = allowed;
    assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &held_token, &err), LM_OK);
    assert_int_equal(held_token.id, 66);
    assert_true(held_token.logprob == free_token.logprob);
    assert_int_equal(held_token.top_id[0], 0);
    assert_int_equal(held_token.top_id[1], 69);

    /* the mask is stronger than biases that ban all that it leaves, not than others */
    const struct logit_bias ban = {.token = 66, .bias = -INFINITY};
    params.bias = &ban;
    params.n_bias = 1;
    assert_int_equal(sample(sampler, logits, &params, NULL, 0), 66);
    allowed[2] |= UINT32_C(1) << 3;
    assert_int_equal(sample(sampler, logits, &params, NULL, 0), 67);

    allowed[2] = 0;
    assert_int_equal(sampler_sample(sampler, logits, &params, &none, 0, &held_token, &err),
                     LM_E_FAIL);
    sampler_destroy(sampler);
}

static void same_seed_and_position_same_token(void **state)
{
    (void)state;
    enum { N = 1000 };
    float logits[N];
    uint64_t random = 3;
    for (int i = 0; i < N; i++)
        logits[i] = random_float(&random, -4, 4);
    struct sampling_params params = sampling_params_default();
    params.temperature = 1;
    params.seed = 42;
    struct sampler *a = create(N), *b = create(N);
    int32_t forward[200];
    int n_distinct = 0;
    for (uint64_t position = 0; position < 200; position++) {
        forward[position] = sample(a, logits, &params, NULL, position);
        n_distinct += position && forward[position] != forward[position - 1];
    }
    for (uint64_t position = 200; position-- > 0;)
        assert_int_equal(sample(b, logits, &params, NULL, position), forward[position]);
    assert_true(n_distinct > 150);
    params.seed = 43;
    int n_equal = 0;
    for (uint64_t position = 0; position < 200; position++)
        n_equal += sample(a, logits, &params, NULL, position) == forward[position];
    assert_true(n_equal < 50);
    sampler_destroy(a);
    sampler_destroy(b);
}

/* Draws follow the distribution: chi-square with 7 degrees of freedom, 0.999 quantile 24.3. */
static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    enum { N = 8, N_DRAW = 40000 };
    const float logits[N] = {0, 1, 2, -1, 0.5f, 1.5f, -2, 1};
    for (int round = 0; round < 4; round++) {
        struct sampling_params params = sampling_params_default();
        params.temperature = round % 2 ? 2.0f : 0.7f;
        params.seed = (uint64_t)round * 1000003;
        struct sampler *sampler = create(N);
        int count[N] = {0};
        for (uint64_t position = 0; position < N_DRAW; position++)
            count[sample(sampler, logits, &params, NULL, position)]++;
        double total = 0, chi_square = 0;
        for (int i = 0; i < N; i++)
            total += exp(logits[i] / params.temperature);
        for (int i = 0; i < N; i++) {
            const double expected = N_DRAW * exp(logits[i] / params.temperature) / total;
            chi_square += (count[i] - expected) * (count[i] - expected) / expected;
        }
        assert_true(chi_square < 24.3);
        sampler_destroy(sampler);
    }
}

/* Probabilities 0.4, 0.3, 0.2, 0.1 in the order 2, 0, 3, 1. */
static const float four[4] = {-1.20397280f, -2.30258509f, -0.91629073f, -1.60943791f};

static void filters_keep_the_smallest_set(void **state)
{
    (void)state;
    static const struct {
        int32_t top_k;
        float typical_p, top_p, min_p;
        const char *kept;
    } cases[] = {
        {0, 1, 1, 0, "xxxx"},
        {1, 1, 1, 0, "..x."},
        {3, 1, 1, 0, "x.xx"},
        {4, 1, 1, 0, "xxxx"},
        {9, 1, 1, 0, "xxxx"},
        {0, 1, 0.39f, 0, "..x."},
        {0, 1, 0.41f, 0, "x.x."},
        {0, 1, 0.69f, 0, "x.x."},
        {0, 1, 0.71f, 0, "x.xx"},
        {0, 1, 0.91f, 0, "xxxx"},
        {0, 1, 1, 0.6f, "x.x."},
        {0, 1, 1, 0.49f, "x.xx"},
        {0, 1, 1, 1, "..x."},
        /* Entropy 1.2799; surprises 1.204, 2.303, 0.916, 1.609: nearest are 0, then 3, 2, 1. */
        {0, 0.29f, 1, 0, "x..."},
        {0, 0.49f, 1, 0, "x..x"},
        {0, 0.51f, 1, 0, "x.xx"},
        {0, 0.91f, 1, 0, "xxxx"},
        /* Of the three best 0.4, 0.3, 0.2 top-p sees 0.444, 0.333, 0.222. */
        {3, 1, 0.43f, 0, "..x."},
        {3, 1, 0.45f, 0, "x.x."},
        /* Typical leaves 0 and 3, of which 0 has 0.6: its share is what min-p refers to. */
        {0, 0.49f, 1, 0.6f, "x..x"},
        {0, 0.49f, 1, 0.7f, "x..."},
        {0, 0.49f, 0.59f, 0, "x..."},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct sampling_params params = sampling_params_default();
        params.temperature = 1.5f; /* after the filters: must not change what they keep */
        params.top_k = cases[i].top_k;
        params.typical_p = cases[i].typical_p;
        params.top_p = cases[i].top_p;
        params.min_p = cases[i].min_p;
        assert_support(four, 4, &params, cases[i].kept);
    }
}

static void equal_logits_keep_the_lower_ids(void **state)
{
    (void)state;
    const float logits[6] = {1, 2, 2, 2, 2, 1};
    struct sampling_params params = sampling_params_default();
    params.temperature = 1;
    params.top_k = 2;
    assert_support(logits, 6, &params, ".xx...");
    params.top_k = 5;
    assert_support(logits, 6, &params, "xxxxx.");
    params.top_k = 0;
    params.top_p = 0.3f; /* each of the four has 0.206 */
    assert_support(logits, 6, &params, ".xx...");
    assert_support((const float[3]){-1, -0.0f, 0.0f}, 3, &params, ".x.");
}

/* What reaches a bound exactly is enough, and what equals it stays. */
static void bounds_are_inclusive(void **state)
{
    (void)state;
    const float equal[4] = {0, 0, 0, 0};
    struct sampling_params params = sampling_params_default();
    params.temperature = 1;
    params.top_p = 0.5f;
    assert_support(equal, 4, &params, "xx..");
    params.top_p = 1;
    params.typical_p = 0.5f;
    assert_support(equal, 4, &params, "xx..");
    params.typical_p = 1;
    params.min_p = 1;
    assert_support(equal, 4, &params, "xxxx");
}

static float adjusted_logit_of(const struct sampling_params *params,
                               const struct sampler_history *history, int32_t token, int32_t rival)
{
    /* Greedy prefers token exactly while the rival's logit is lower: bisect the rival's. */
    struct sampler *sampler = create(8);
    float low = -50, high = 50;
    for (int step = 0; step < 60; step++) {
        const float middle = (low + high) / 2;
        float logits[8];
        for (int i = 0; i < 8; i++)
            logits[i] = -1000;
        logits[token] = 2;
        logits[rival] = middle;
        *(sample(sampler, logits, params, history, 0) == token ? &low : &high) = middle;
    }
    sampler_destroy(sampler);
    return low;
}

static void penalties_change_the_logits(void **state)
{
    (void)state;
    const int32_t ids[] = {3, 1, 3, 5, 3, 2, 5};
    const struct sampler_history history = {.ids = ids, .n = 7, .n_prompt = 3};
    struct sampling_params params = sampling_params_default();
    params.repeat_penalty = 1.25f;
    params.repeat_last_n = -1;
    assert_float_equal(adjusted_logit_of(&params, &history, 3, 7), 1.6, 1e-5); /* 2 / 1.25, once */
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2, 1e-5);
    params.repeat_last_n = 2; /* 2 and 5 */
    assert_float_equal(adjusted_logit_of(&params, &history, 3, 7), 2, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 2, 7), 1.6, 1e-5);
    params = sampling_params_default();
    params.presence_penalty = 0.5f;
    params.frequency_penalty = 0.25f; /* of the generated tokens 5, 3, 2, 5 */
    assert_float_equal(adjusted_logit_of(&params, &history, 5, 7), 1.0, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 3, 7), 1.25, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 1, 7), 2, 1e-5); /* prompt only */
    const struct logit_bias bias[] = {{1, 1.5f}, {4, -INFINITY}};
    params = sampling_params_default();
    params.bias = bias;
    params.n_bias = 2;
    assert_float_equal(adjusted_logit_of(&params, &history, 1, 7), 3.5, 1e-5);
    params.temperature = 1;
    assert_support((const float[6]){0, 0, 0, 0, 9, 0}, 6, &params, "xxxx.x");
    /* A negative logit is multiplied. */
    struct sampler *sampler = create(2);
    params = sampling_params_default();
    params.repeat_penalty = 2;
    const struct sampler_history zero = {.ids = (const int32_t[]){0}, .n = 1};
    assert_int_equal(sample(sampler, (const float[]){-1, -1.9f}, &params, &zero, 0), 1);
    assert_int_equal(sample(sampler, (const float[]){-1, -2.1f}, &params, &zero, 0), 0);
    sampler_destroy(sampler);
}

static void dry_penalises_what_would_repeat(void **state)
{
    (void)state;
    /* The last three tokens 1 2 3 stood before a 4, the last two before a 5. */
    const int32_t ids[] = {1, 2, 3, 4, 6, 2, 3, 5, 1, 2, 3};
    struct sampler_history history = {.ids = ids, .n = 11};
    struct sampling_params params = sampling_params_default();
    params.dry_multiplier = 0.5f;
    params.dry_base = 2;
    params.dry_allowed_length = 2;
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2 - 0.5 * 2, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 5, 7), 2 - 0.5 * 1, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 6, 7), 2, 1e-5);
    params.dry_allowed_length = 3;
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2 - 0.5, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 5, 7), 2, 1e-5);
    params.dry_allowed_length = 1;
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2 - 0.5 * 4, 1e-5);
    const int32_t breaker = 2; /* the run is only the 3 now */
    params.dry_breakers = &breaker;
    params.n_dry_breaker = 1;
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2 - 0.5, 1e-5);
    const int32_t next_breaker = 4; /* itself never penalised */
    params.dry_breakers = &next_breaker;
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2, 1e-5);
    params.n_dry_breaker = 0;
    params.dry_penalty_last_n = 7; /* 6 2 3 5 1 2 3 */
    assert_float_equal(adjusted_logit_of(&params, &history, 4, 7), 2, 1e-5);
    assert_float_equal(adjusted_logit_of(&params, &history, 5, 7), 2 - 0.5 * 2, 1e-5);
}

/* The Z function against comparing every pair of positions. */
static void dry_matches_naive(void **state)
{
    (void)state;
    uint64_t random = 11;
    for (int round = 0; round < 300; round++) {
        int32_t ids[40];
        const size_t n = 1 + next_random(&random) % 40;
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)(next_random(&random) % 3);
        size_t longest[3] = {0};
        for (size_t end = 0; end + 1 < n; end++) {
            size_t length = 0;
            while (length <= end && ids[end - length] == ids[n - 1 - length])
                length++;
            if (length > longest[ids[end + 1]]) longest[ids[end + 1]] = length;
        }
        struct sampling_params params = sampling_params_default();
        params.dry_multiplier = 1;
        params.dry_base = 1.5f;
        const struct sampler_history history = {.ids = ids, .n = n};
        for (int32_t token = 0; token < 3; token++) {
            double expected = 2;
            if (longest[token] >= 2) expected -= pow(1.5, (double)longest[token] - 2);
            if (expected < -49) continue;
            assert_float_equal(adjusted_logit_of(&params, &history, token, 7), expected, 1e-4);
        }
    }
}

static void dry_takes_linear_time(void **state)
{
    (void)state; /* quadratic would be minutes */
    enum { N = 1000000 };
    int32_t *ids = calloc(N, sizeof(*ids));
    const struct sampler_history history = {.ids = ids, .n = N};
    struct sampling_params params = sampling_params_default();
    params.dry_multiplier = 1;
    params.dry_base = 1.75f;
    struct sampler *sampler = create(2);
    assert_int_equal(sample(sampler, (const float[]){9, 0}, &params, &history, 0), 1);
    sampler_destroy(sampler);
    free(ids);
}

/* A sampler as one would write it first: everything sorted, libm, no shortcuts. */

struct naive_candidate {
    int32_t id;
    double logit, p, key;
};

static int by_key(const void *a, const void *b)
{
    const struct naive_candidate *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static void set_probabilities(struct naive_candidate *list, size_t n, double temperature)
{
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += list[i].p = exp((list[i].logit - list[0].logit) / temperature);
    for (size_t i = 0; i < n; i++)
        list[i].p /= total;
}

static size_t cut_at(const struct naive_candidate *list, size_t n, double p)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if ((sum += list[i].p) >= p) return i + 1;
    return n;
}

static int32_t naive_sample(const float *logits, size_t n, const struct sampling_params *params,
                            uint64_t position)
{
    struct naive_candidate *list = calloc(n, sizeof(*list));
    for (size_t i = 0; i < n; i++)
        list[i] = (struct naive_candidate){.id = (int32_t)i, .logit = logits[i]};
    qsort(list, n, sizeof(*list), by_key);
    if (params->top_k > 0 && (size_t)params->top_k < n) n = (size_t)params->top_k;
    if (params->typical_p < 1) {
        set_probabilities(list, n, 1);
        double entropy = 0;
        for (size_t i = 0; i < n; i++)
            if (list[i].p > 0) entropy -= list[i].p * log(list[i].p);
        for (size_t i = 0; i < n; i++)
            list[i].key = fabs(-log(list[i].p) - entropy);
        qsort(list, n, sizeof(*list), by_key);
        n = cut_at(list, n, params->typical_p);
        for (size_t i = 0; i < n; i++)
            list[i].key = 0;
        qsort(list, n, sizeof(*list), by_key);
    }
    set_probabilities(list, n, 1);
    if (params->top_p < 1) n = cut_at(list, n, params->top_p);
    size_t n_kept = 1;
    while (n_kept < n && list[n_kept].p >= params->min_p * list[0].p)
        n_kept++;
    set_probabilities(list, n_kept, params->temperature);
    const double u = philox_uniform(params->seed, position);
    double sum = 0;
    size_t i = 0;
    while (i < n_kept && (sum += list[i].p) <= u)
        i++;
    const int32_t id = list[i < n_kept ? i : n_kept - 1].id;
    free(list);
    return id;
}

static void matches_naive_sampler(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 17, 255, 256, 257, 1500, 5000};
    uint64_t random = 5;
    float logits[5000];
    for (int round = 0; round < 1200; round++) {
        const uint32_t n = sizes[round % 8];
        const float spread = random_float(&random, 0.1f, 6);
        for (uint32_t i = 0; i < n; i++)
            logits[i] =
                next_random(&random) % 20 ? random_float(&random, -spread, spread) : -INFINITY;
        logits[next_random(&random) % n] = spread;
        struct sampling_params params = sampling_params_default();
        params.temperature = random_float(&random, 0.2f, 2);
        const uint32_t filters = next_random(&random);
        if (filters & 1) params.top_k = 1 + (int32_t)(next_random(&random) % 2000);
        if (filters & 2) params.typical_p = random_float(&random, 0.1f, 0.99f);
        if (filters & 4) params.top_p = random_float(&random, 0.05f, 0.999f);
        if (filters & 8) params.min_p = random_float(&random, 0, 0.5f);
        params.seed = next_random(&random);
        struct sampler *sampler = create(n);
        for (uint64_t position = 0; position < 4; position++) {
            const int32_t expected = naive_sample(logits, n, &params, position);
            const int32_t got = sample(sampler, logits, &params, NULL, position);
            if (got != expected)
                fail_msg("round %d, %u tokens: drew %d, naively %d", round, n, got, expected);
        }
        sampler_destroy(sampler);
    }
}

static void logprobs_are_the_raw_softmax(void **state)
{
    (void)state;
    const int32_t none = 0;
    struct sampler *sampler = create(4);
    struct sampling_params params = sampling_params_default();
    struct sampled_token token;
    params.temperature = 0.3f; /* neither temperature nor bias shows in them */
    params.bias = &(const struct logit_bias){.token = 2, .bias = -INFINITY};
    params.n_bias = 1;
    params.n_logprob = 3;
    const struct sampler_history history = {.ids = &none, .n = 0};
    assert_int_equal(sampler_sample(sampler, four, &params, &history, 0, &token, NULL), LM_OK);
    assert_int_not_equal(token.id, 2);
    assert_float_equal(token.logprob, four[token.id], 1e-6);
    assert_int_equal(token.n_top, 3);
    const int32_t order[] = {2, 0, 3};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(token.top_id[i], order[i]);
        assert_float_equal(token.top_logprob[i], four[order[i]], 1e-6);
    }
    assert_int_equal(sampler_logprob(sampler, four, 1, 20, &token, NULL), LM_OK);
    assert_int_equal(token.id, 1);
    assert_int_equal(token.n_top, 4);
    assert_float_equal(token.logprob, log(0.1), 1e-6);
    const float banned[4] = {0, -INFINITY, 0, -INFINITY};
    assert_int_equal(sampler_logprob(sampler, banned, 3, 0, &token, NULL), LM_OK);
    assert_true(token.logprob == -INFINITY);
    params.n_logprob = -1;
    assert_int_equal(sampler_sample(sampler, four, &params, &history, 0, &token, NULL), LM_OK);
    assert_int_equal(token.n_top, 0);
    sampler_destroy(sampler);
}

static void processed_logprobs_are_what_is_sampled_from(void **state)
{
    (void)state;
    struct sampler *sampler = create(4);
    struct sampling_params params = sampling_params_default();
    struct sampled_token token;
    const struct sampler_history history = {0};
    params.of_processed = true;
    params.n_logprob = 4;
    assert_int_equal(sampler_sample(sampler, four, &params, &history, 0, &token, NULL), LM_OK);
    assert_true(token.id == 2 && token.logprob == 0 && token.top_id[0] == 2); /* greedy */
    for (int i = 1; i < 4; i++)
        assert_true(token.top_logprob[i] == -INFINITY);
    for (int round = 0; round < 3; round++) {
        static const double power[] = {1, 2, 2};
        double total = 0;
        params.temperature = (float)(1 / power[round]);
        params.top_k = round < 2 ? 0 : 2;
        assert_int_equal(sampler_sample(sampler, four, &params, &history, 7, &token, NULL), LM_OK);
        const int n = round < 2 ? 4 : 2;
        for (int i = 0; i < n; i++)
            total += exp(power[round] * (double)four[token.top_id[i]]);
        for (int i = 0; i < 4; i++) {
            const double expected = power[round] * (double)four[token.top_id[i]] - log(total);
            if (i < n)
                assert_float_equal(token.top_logprob[i], expected, 1e-5);
            else
                assert_true(token.top_logprob[i] == -INFINITY);
            if (token.top_id[i] == token.id)
                assert_true(token.logprob == token.top_logprob[i] && i < n);
        }
    }
    sampler_destroy(sampler);
}

static void no_penalty_survives_its_call(void **state)
{
    (void)state;
    const int32_t ids[] = {0, 1, 0, 1, 0, 1};
    const struct sampler_history history = {.ids = ids, .n = 6};
    struct sampling_params params = sampling_params_default();
    struct sampler *sampler = create(3);
    const float logits[3] = {3, 2, 1};
    params.repeat_penalty = 4;
    params.presence_penalty = 2;
    params.frequency_penalty = 2;
    params.dry_multiplier = 2;
    assert_int_equal(sample(sampler, logits, &params, &history, 0), 2);
    params = sampling_params_default();
    params.presence_penalty = 0.5f; /* a count left behind would count double */
    assert_int_equal(sample(sampler, logits, &params, &history, 0), 0);
    sampler_destroy(sampler);
    sampler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forced),
        cmocka_unit_test(philox_gives_published_numbers),
        cmocka_unit_test(softmax_exp_is_accurate),
        cmocka_unit_test(softmax_sum_has_one_order),
        cmocka_unit_test(greedy_takes_the_first_of_the_largest),
        cmocka_unit_test(bad_logits_are_errors),
        cmocka_unit_test(only_allowed_tokens_are_drawn),
        cmocka_unit_test(same_seed_and_position_same_token),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(filters_keep_the_smallest_set),
        cmocka_unit_test(equal_logits_keep_the_lower_ids),
        cmocka_unit_test(bounds_are_inclusive),
        cmocka_unit_test(penalties_change_the_logits),
        cmocka_unit_test(dry_penalises_what_would_repeat),
        cmocka_unit_test(dry_matches_naive),
        cmocka_unit_test(dry_takes_linear_time),
        cmocka_unit_test(matches_naive_sampler),
        cmocka_unit_test(logprobs_are_the_raw_softmax),
        cmocka_unit_test(processed_logprobs_are_what_is_sampled_from),
        cmocka_unit_test(no_penalty_survives_its_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
