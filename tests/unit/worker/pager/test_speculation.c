/* Reads on a prediction are as many as gain more than they cost, by what was measured. */
#include "tests/unit/cmocka_all.h"

#include "worker/pager/speculation.h"

/* A disk that takes a millisecond for an expert. gap_ms: of both predictions. */
static struct speculation measured(double gap_ms)
{
    struct speculation s = {.read_s = 0};
    speculation_measure_reads(&s, 0.01, 10);
    for (int point = 0; point < PREDICT_POINT_COUNT; point++)
        speculation_measure_gap(&s, point, gap_ms * 1e-3);
    return s;
}

/* Of 1000 reads of every rank, as many in a thousand were chosen. */
static void learn(struct speculation *s, int n_chosen)
{
    for (int point = 0; point < PREDICT_POINT_COUNT; point++)
        for (size_t rank = 0; rank < SPECULATION_RANKS; rank++)
            for (int i = 0; i < 1000; i++)
                speculation_count(s, point, rank, i < n_chosen);
}

static size_t n_that_pay(const struct speculation *s, enum prediction_point point)
{
    size_t n = 0;
    while (n < 20 && speculation_pays(s, point, n, n))
        n++;
    return n;
}

static void test_trusted_until_known_better(void **state)
{
    (void)state;
    const struct speculation nothing = {.read_s = 0};
    for (int point = 0; point < PREDICT_POINT_COUNT; point++)
        assert_true(speculation_pays(&nothing, point, 0, 0));
    assert_int_equal(n_that_pay(&nothing, PREDICT_EARLY), 1);
}

static void test_more_where_the_disk_idles_longer(void **state)
{
    (void)state;
    size_t before = 0;
    for (int gap_ms = 1; gap_ms < 10; gap_ms++) {
        struct speculation s = measured(gap_ms);
        learn(&s, 400); /* too rarely for what is not read in the gap */
        assert_int_equal(n_that_pay(&s, PREDICT_EARLY), gap_ms);
        assert_int_equal(n_that_pay(&s, PREDICT_LATE), gap_ms);
        assert_true(n_that_pay(&s, PREDICT_LATE) > before);
        before = n_that_pay(&s, PREDICT_LATE);
    }
}

/* With three quarters of a read outside of the gap, it must be right three times in four. */
static void test_break_even(void **state)
{
    (void)state;
    struct speculation s = measured(0.25), right = s;
    learn(&s, 700);
    learn(&right, 800);
    assert_false(speculation_pays(&s, PREDICT_EARLY, 0, 0));
    assert_true(speculation_pays(&right, PREDICT_EARLY, 0, 0));
    assert_true(speculation_pays(&s, PREDICT_LATE, 0, 1));       /* behind the gap: half suffices */
    assert_false(speculation_pays(&right, PREDICT_EARLY, 0, 1)); /* the late prediction's */
}

/* Also where reads cost no time, wrong ones displace something. */
static void test_guesses_never_pay(void **state)
{
    (void)state;
    struct speculation s = measured(100);
    learn(&s, 100);
    assert_int_equal(n_that_pay(&s, PREDICT_EARLY) + n_that_pay(&s, PREDICT_LATE), 0);
}

static void test_ranks_are_judged_apart(void **state)
{
    (void)state;
    struct speculation s = measured(1);
    learn(&s, 900);
    for (int i = 0; i < 9000; i++)
        speculation_count(&s, PREDICT_LATE, 3, false);
    assert_true(speculation_pays(&s, PREDICT_LATE, 2, 0));
    assert_false(speculation_pays(&s, PREDICT_LATE, 3, 0));
    assert_true(speculation_pays(&s, PREDICT_EARLY, 3, 0));
}

static void test_the_past_is_forgotten(void **state)
{
    (void)state;
    struct speculation s = measured(1);
    learn(&s, 0);
    int n_token = 0;
    for (; !speculation_pays(&s, PREDICT_LATE, 0, 0) && n_token < 100000; n_token++)
        speculation_fade(&s);
    assert_in_range(n_token, 100, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trusted_until_known_better),
                                       cmocka_unit_test(test_more_where_the_disk_idles_longer),
                                       cmocka_unit_test(test_break_even),
                                       cmocka_unit_test(test_guesses_never_pay),
                                       cmocka_unit_test(test_ranks_are_judged_apart),
                                       cmocka_unit_test(test_the_past_is_forgotten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
