/* kernels/exact_math.h: close to the true functions, and the same bits from every compiler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

#include "kernels/exact_math.h"

static double softplus(double x)
{
    return log1p(exp(x));
}
static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}
static double silu(double x)
{
    return x / (1.0 + exp(-x));
}

/* Largest error over an even grid, in units of the last place of the true value. */
static double max_error_ulp(float (*fn)(float), double (*truth)(double), float low, float high)
{
    const int n = 200000;
    double worst = 0.0;
    for (int i = 0; i <= n; i++) {
        const float x = low + (high - low) * ((float)i / (float)n);
        const float expected = (float)truth(x);
        const double ulp = (double)nextafterf(fabsf(expected), INFINITY) - fabsf(expected);
        worst = fmax(worst, fabs(fn(x) - truth(x)) / ulp);
    }
    return worst;
}

static void f32_functions_are_within_a_few_ulp(void **state)
{
    (void)state;
    assert_true(max_error_ulp(exact_exp, exp, -103.0f, 88.7f) < 1.1);
    assert_true(max_error_ulp(exact_exp, exp, -1.0f, 1.0f) < 1.0);
    assert_true(max_error_ulp(exact_log1p, log1p, -0.99f, 3.0f) < 1.5);
    assert_true(max_error_ulp(exact_log1p, log1p, 0.0f, 5e8f) < 1.5);
    assert_true(max_error_ulp(exact_sigmoid, sigmoid, -80.0f, 80.0f) < 3.0);
    assert_true(max_error_ulp(exact_silu, silu, -80.0f, 80.0f) < 3.0);
    assert_true(max_error_ulp(exact_softplus, softplus, -80.0f, 20.0f) < 2.0);
    assert_true(max_error_ulp(exact_tanh, tanh, -10.0f, 10.0f) < 2.0);
}

static void f64_functions_are_within_a_few_ulp(void **state)
{
    (void)state;
    for (int i = -50000; i <= 50000; i++) {
        const double x = i * 0.013717, y = fabs(x) * 400.0 + 1e-300, position = i * 20.0 + 0.37;
        assert_true(fabs(exact_exp_f64(x) - exp(x)) <= exp(x) * 5e-16);
        assert_true(fabs(exact_log_f64(y) - log(y)) <= fabs(log(y)) * 5e-16);
        assert_true(fabs(exact_sin_f64(position) - sin(position)) <= 5e-16);
        assert_true(fabs(exact_cos_f64(position) - cos(position)) <= 5e-16);
    }
}

static void edges_have_their_limits(void **state)
{
    (void)state;
    assert_true(exact_exp(0.0f) == 1.0f && exact_exp(1e30f) == INFINITY);
    assert_true(exact_exp(-1e30f) == 0.0f && exact_exp(-103.9f) == 0x1p-149f);
    assert_true(isnan(exact_exp(NAN)) && isnan(exact_silu(NAN)) && isnan(exact_tanh(NAN)));
    assert_true(exact_sigmoid(-200.0f) == 0.0f && exact_sigmoid(200.0f) == 1.0f);
    assert_true(exact_silu(-1e30f) == 0.0f && exact_silu(1e30f) == 1e30f);
    assert_true(exact_softplus(30.0f) == 30.0f && exact_softplus(-200.0f) == 0.0f);
    assert_true(exact_tanh(-100.0f) == -1.0f && exact_tanh(1e-30f) == 1e-30f);
    assert_true(exact_round(2.5f) == 2 && exact_round(3.5f) == 4 && exact_round(-0.5f) == 0);
    assert_true(exact_exp_f64(0.0) == 1.0 && exact_log_f64(1.0) == 0.0);
    assert_true(exact_exp_f64(800.0) == INFINITY && exact_log_f64(0.0) == -INFINITY);
}

/* A sweep of all functions folded into one number. It changes with any rounding of any function,
 * so two builds that agree here run the same arithmetic. */
static void bits_are_the_projects_own(void **state)
{
    (void)state;
    uint64_t hash = 14695981039346656037u;
    for (int i = -100000; i <= 100000; i++) {
        const float x = (float)i * 0.00107f;
        const float values[] = {exact_exp(x),  exact_log1p(fabsf(x)), exact_sigmoid(x),
                                exact_silu(x), exact_softplus(x),     exact_tanh(x)};
        for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++)
            hash = (hash ^ exact_f32_bits(values[k])) * 1099511628211u;
        const double wide[] = {exact_exp_f64(x), exact_log_f64(fabsf(x)), exact_sin_f64(x),
                               exact_cos_f64(x)};
        for (size_t k = 0; k < sizeof(wide) / sizeof(wide[0]); k++)
            hash = (hash ^ exact_f64_bits(wide[k])) * 1099511628211u;
    }
    assert_int_equal(hash, 0x543e1d2b91cee5b8u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_functions_are_within_a_few_ulp),
        cmocka_unit_test(f64_functions_are_within_a_few_ulp),
        cmocka_unit_test(edges_have_their_limits),
        cmocka_unit_test(bits_are_the_projects_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
