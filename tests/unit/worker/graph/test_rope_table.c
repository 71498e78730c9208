/* Rope tables against the C library's functions, with YaRN written down a second time. */
#include "tests/unit/cmocka_all.h"

#include <math.h>

#include "worker/graph/rope_table.h"

enum { N_CTX = 3000, N_ROT = 64 };

static struct rope_hparams plain(void)
{
    return (struct rope_hparams){.n_rot = N_ROT,
                                 .freq_base = 1e6f,
                                 .freq_base_swa = 1e4f,
                                 .scaling = ROPE_SCALING_LINEAR,
                                 .factor = 1,
                                 .n_ctx_orig = 1000,
                                 .attn_factor = 1,
                                 .yarn_attn_factor = 1,
                                 .beta_fast = 32,
                                 .beta_slow = 1};
}

/* angle(context, pair) per position; both results times magnitude. */
typedef double (*angle_fn)(const struct rope_hparams *rope, int pair);

static void check(const struct rope_hparams *rope, bool window, const float *factors,
                  angle_fn angle, double magnitude)
{
    struct lm_error err;
    struct backend *backend = NULL;
    struct rope_table *table = NULL;
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "ref"};
    assert_int_equal(backend_cpu_create(&backend, &cpu, &err), LM_OK);
    assert_int_equal(rope_table_create(&table, backend, rope, window, factors, N_CTX, &err), LM_OK);
    rope_table_fill(table, 7);
    rope_table_fill(table, 5);
    rope_table_fill(table, N_CTX + 9); /* no further than the table */
    for (int pos = 0; pos < N_CTX; pos += pos < 10 ? 1 : 97) {
        for (int pair = 0; pair < N_ROT / 2; pair++) {
            const double theta = pos * angle(rope, pair);
            const size_t at = (size_t)pos * (N_ROT / 2) + (size_t)pair;
            assert_true(fabs((double)rope_table_cos(table)[at] - cos(theta) * magnitude) < 2e-7);
            assert_true(fabs((double)rope_table_sin(table)[at] - sin(theta) * magnitude) < 2e-7);
        }
    }
    rope_table_destroy(table);
    backend->ops->destroy(backend);
}

static double plain_angle(const struct rope_hparams *rope, int pair)
{
    return pow((double)rope->freq_base, -2.0 * pair / N_ROT);
}

static double window_angle(const struct rope_hparams *rope, int pair)
{
    return pow((double)rope->freq_base_swa, -2.0 * pair / N_ROT) / (double)rope->factor;
}

static double yarn_angle(const struct rope_hparams *rope, int pair)
{
    const double base = (double)rope->freq_base, two_pi = 2 * acos(-1.0);
    const double n = rope->n_ctx_orig / two_pi;
    const double low = floor(N_ROT * log(n / (double)rope->beta_fast) / (2 * log(base)));
    const double high = ceil(N_ROT * log(n / (double)rope->beta_slow) / (2 * log(base)));
    double ramp = (pair - fmax(low, 0)) / fmax(fmin(high, N_ROT - 1) - fmax(low, 0), 0.001);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp; /* 0: keep, 1: stretch */
    const double angle = plain_angle(rope, pair);
    return angle * (1 - ramp) + angle / (double)rope->factor * ramp;
}

static double factor_angle(const struct rope_hparams *rope, int pair)
{
    return plain_angle(rope, pair) / (1 + pair % 5);
}

static void test_plain_and_linear(void **state)
{
    (void)state;
    struct rope_hparams rope = plain();
    float factors[N_ROT / 2];
    for (int i = 0; i < N_ROT / 2; i++)
        factors[i] = (float)(1 + i % 5);
    check(&rope, false, NULL, plain_angle, 1);
    check(&rope, false, factors, factor_angle, 1);
    rope.factor = 4;
    check(&rope, true, NULL, window_angle, 1);
    rope.scaling = ROPE_SCALING_NONE; /* switched off, but not for layers with a window */
    check(&rope, false, NULL, plain_angle, 1);
    check(&rope, true, NULL, window_angle, 1);
}

static void test_yarn(void **state)
{
    (void)state;
    struct rope_hparams rope = plain();
    rope.scaling = ROPE_SCALING_YARN;
    rope.factor = 8;
    rope.ext_factor = 1;
    check(&rope, false, NULL, yarn_angle, 1 + 0.1 * log(8));
    rope.attn_factor = 1.5f;
    rope.beta_fast = 8;
    check(&rope, false, NULL, yarn_angle, 1.5 * (1 + 0.1 * log(8)));
}

static void test_absurd_frequencies_are_refused(void **state)
{
    (void)state;
    static const float bad[] = {0, -0.0f, NAN, 1e-9f};
    struct lm_error err;
    struct backend *backend = NULL;
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "ref"};
    const struct rope_hparams rope = plain();
    assert_int_equal(backend_cpu_create(&backend, &cpu, &err), LM_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct rope_table *table = NULL;
        float factors[N_ROT / 2];
        for (int k = 0; k < N_ROT / 2; k++)
            factors[k] = k == 1 ? bad[i] : 1;
        assert_int_equal(rope_table_create(&table, backend, &rope, false, factors, N_CTX, &err),
                         LM_E_FORMAT);
    }
    backend->ops->destroy(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_and_linear),
        cmocka_unit_test(test_yarn),
        cmocka_unit_test(test_absurd_frequencies_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
