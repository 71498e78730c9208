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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_fixed_samples),
        cmocka_unit_test(of_one_and_none),
        cmocka_unit_test(percentiles_lie_between_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
