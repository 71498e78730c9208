/* launch/bench/statistics.c on samples worked out by hand. */
#include "tests/unit/cmocka_all.h"

#include "launch/bench/statistics.h"

static void assert_near(double got, double expected)
{
    if (got < expected - 1e-12 || got > expected + 1e-12)
        fail_msg("%.17g, expected %.17g", got, expected);
}

static void of_fixed_samples(void **state)
{
    (void)state;
    double values[] = {9, 2, 5, 4, 12, 7, 8, 11, 9, 3}; /* mean 7, squares 104 */
    const struct statistics of = statistics_of(values, 10);
    assert_int_equal(of.n, 10);
    assert_near(of.mean, 7);
    assert_near(of.stddev * of.stddev, 104.0 / 9); /* of the sample, not of the population */
    assert_near(of.min, 2);
    assert_near(of.median, 7.5);
    assert_near(of.max, 12);
}

static void of_one_and_none(void **state)
{
    (void)state;
    double value = 3;
    struct statistics of = statistics_of(&value, 1);
    assert_near(of.mean, 3);
    assert_near(of.stddev, 0);
    assert_near(of.median, 3);
    of = statistics_of(NULL, 0);
    assert_near(of.mean, 0);
    assert_near(of.max, 0);
}

static void percentiles_lie_between_neighbours(void **state)
{
    (void)state;
    const double sorted[] = {10, 20, 30, 40, 50};
    assert_near(statistics_percentile(sorted, 5, 0), 10);
    assert_near(statistics_percentile(sorted, 5, 25), 20);
    assert_near(statistics_percentile(sorted, 5, 90), 46);
    assert_near(statistics_percentile(sorted, 5, 100), 50);
    assert_near(statistics_percentile(sorted, 1, 99), 10);
}

/* Tables of the distribution. */
static void quantiles_of_t(void **state)
{
    (void)state;
    const double known[][2] = {{1, 12.706}, {2, 4.303},  {3, 3.182},  {4, 2.776},   {5, 2.571},
                               {8, 2.306},  {10, 2.228}, {30, 2.042}, {1000, 1.962}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        const double got = statistics_t95(known[i][0]);
        if (got < known[i][1] * 0.996 || got > known[i][1] * 1.004)
            fail_msg("%g degrees: %g, expected %g", known[i][0], got, known[i][1]);
    }
}

static void changes_have_intervals(void **state)
{
    (void)state;
    const struct statistics old = {.n = 5, .mean = 100, .stddev = 2};
    struct statistics now = {.n = 5, .mean = 90, .stddev = 2};
    struct statistics_change change = statistics_compare(&old, &now);
    assert_near(change.change, -0.1);
    /* 2 / sqrt(5) for each mean, eight degrees of freedom: about 2.9 of 100 */
    assert_true(change.low < -0.125 && change.low > -0.135);
    assert_true(change.high > -0.075 && change.high < -0.065);
    now = (struct statistics){.n = 1, .mean = 101};
    const struct statistics once = {.n = 1, .mean = 100};
    change = statistics_compare(&once, &now);
    assert_near(change.low, change.high);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_fixed_samples),
        cmocka_unit_test(of_one_and_none),
        cmocka_unit_test(quantiles_of_t),
        cmocka_unit_test(changes_have_intervals),
        cmocka_unit_test(percentiles_lie_between_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
