/* launch/bench/random.c and the times of launch/bench/load_plan.c: gaps have the mean and the
 * spread that their shape says. */
#include "tests/unit/cmocka_all.h"

#include <math.h>

#include "launch/bench/load_plan.h"
#include "launch/bench/random.h"

enum { N = 200000 };

static void gamma_has_mean_and_variance(void **state)
{
    (void)state;
    const double shapes[] = {0.3, 1, 1.5, 20};
    for (size_t i = 0; i < 4; i++) {
        uint64_t random = 7;
        double sum = 0, squares = 0;
        for (int k = 0; k < N; k++) {
            const double x = random_gamma(&random, shapes[i]);
            assert_true(x >= 0);
            sum += x;
            squares += x * x;
        }
        const double mean = sum / N, variance = squares / N - mean * mean;
        if (fabs(mean - 1) > 0.03 || fabs(variance * shapes[i] - 1) > 0.05)
            fail_msg("shape %g: mean %g, variance %g", shapes[i], mean, variance);
    }
}

/* Half a ramp's requests come in it, then the rate is what it is. */
static void ramp_takes_half(void **state)
{
    (void)state;
    struct load_request requests[300] = {0};
    struct load_plan plan = {.request = requests, .n = 300};
    const struct load_times times = {.rate = 10, .burstiness = 1e6, .ramp_s = 20};
    load_plan_set_times(&plan, &times, 1);
    assert_true(requests[0].start_s == 0);
    assert_true(fabs(requests[25].start_s - 10) < 0.1);  /* a quarter at half of the time */
    assert_true(fabs(requests[100].start_s - 20) < 0.1); /* half of 10/s in 20 s */
    assert_true(fabs(requests[200].start_s - 30) < 0.1);
    load_plan_set_times(&plan, &(struct load_times){.rate = INFINITY, .burstiness = 1}, 1);
    assert_true(requests[299].start_s == 0);
}

static void spans(void **state)
{
    (void)state;
    struct span span;
    assert_int_equal(span_parse(&span, "--x", "64-256", NULL), LM_OK);
    assert_int_equal(span.first, 64);
    assert_int_equal(span.last, 256);
    assert_int_equal(span_parse(&span, "--x", "9", NULL), LM_OK);
    assert_int_equal(span.last, 9);
    assert_int_equal(span_parse(&span, "--x", "9-3", NULL), LM_E_USAGE);
    assert_int_equal(span_parse(&span, "--x", "9-", NULL), LM_E_USAGE);
    assert_int_equal(span_parse(&span, "--x", "many", NULL), LM_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gamma_has_mean_and_variance),
        cmocka_unit_test(ramp_takes_half),
        cmocka_unit_test(spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
