/* Drafts are made where they pay, as many as pay, and not for ever where they do not. */
#include "tests/unit/cmocka_all.h"

#include "coordinator/sched/draft_pace.h"

/* Steps that take 1 s and row_s for each row but the first. */
static struct draft_pace pace_of(double row_s)
{
    struct draft_pace pace = {.n_declined = 0};
    for (uint32_t n = 1; n <= 16; n++)
        draft_pace_note(&pace, n, 1 + row_s * (n - 1));
    return pace;
}

static struct draft_record record_of(uint32_t n_draft, uint32_t n_accepted)
{
    struct draft_record record = {.n_tried = 0};
    for (int i = 0; i < 100; i++)
        draft_record_note(&record, n_draft, n_accepted);
    return record;
}

static void test_as_many_as_pay(void **state)
{
    (void)state;
    struct draft_pace cheap = pace_of(0.01), dear = pace_of(0.7), useless = pace_of(1);
    const struct draft_record good = record_of(8, 8), bad = record_of(8, 0);
    assert_int_equal(draft_pace_choose(&cheap, &good, true, 1, 8), 8);
    assert_in_range(draft_pace_choose(&cheap, &bad, true, 1, 8), 1, 2);
    assert_in_range(draft_pace_choose(&dear, &good, true, 1, 8), 1, 8);
    assert_int_equal(draft_pace_choose(&dear, &bad, true, 1, 8), 0);
    assert_int_equal(draft_pace_choose(&useless, &good, true, 1, 8), 0);
    assert_int_equal(draft_pace_choose(&useless, &good, false, 1, 8), 8);
    assert_int_equal(draft_pace_choose(&useless, &bad, false, 1, 8), 1);
    assert_int_equal(draft_pace_choose(&useless, &bad, false, 1, 0), 0);
}

static void test_tries_again(void **state)
{
    (void)state;
    struct draft_pace pace = pace_of(1);
    const struct draft_record good = record_of(8, 8);
    uint32_t n = 0;
    for (int i = 0; i < 10 * (DRAFT_PACE_RETRY + 1); i++)
        n += draft_pace_choose(&pace, &good, true, 1, 8) > 0;
    assert_int_equal(n, 10);
    for (int i = 0; i < 30; i++) /* it has become cheap */
        for (uint32_t rows = 2; rows <= 16; rows++)
            draft_pace_note(&pace, rows, 1.01);
    assert_int_equal(draft_pace_choose(&pace, &good, true, 1, 8), 8);
}

/* Nothing is known of steps at first; then of those without drafts. */
static void test_measures_before_it_trusts(void **state)
{
    (void)state;
    struct draft_pace pace = {.n_declined = 0};
    const struct draft_record none = {.n_tried = 0};
    assert_int_equal(draft_pace_choose(&pace, &none, true, 1, 8), 0);
    draft_pace_note(&pace, 1, 1);
    const uint32_t n = draft_pace_choose(&pace, &none, true, 1, 8);
    assert_in_range(n, 1, 8);
    draft_pace_note(&pace, 1 + n, 1 + n);
    assert_int_equal(draft_pace_choose(&pace, &none, true, 1, 8), 0);
    assert_int_equal(draft_pace_choose(&pace, &none, true, 200, 8), 0); /* not measured at all */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_many_as_pay),
        cmocka_unit_test(test_tries_again),
        cmocka_unit_test(test_measures_before_it_trusts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
