/* Chunks beside streams: bounded by what was measured, never longer nor much shorter than allowed.
 */
#include "tests/unit/cmocka_all.h"

#include "coordinator/sched/pace.h"

static void test_a_chunk_takes_a_few_times_a_step(void **state)
{
    (void)state;
    struct pace pace;
    pace_init(&pace, 512);
    assert_int_equal(pace_chunk(&pace, 0), 512);
    assert_int_equal(pace_chunk(&pace, 1), 32); /* nothing is known yet */
    pace_note(&pace, 0, 512, 1.536);            /* 3 ms a token */
    assert_int_equal(pace_chunk(&pace, 1), 32);
    pace_note(&pace, 4, 0, 0.050);
    assert_int_equal(pace_chunk(&pace, 4), 50); /* 3 x 50 ms */
    assert_int_equal(pace_chunk(&pace, 0), 512);
    for (int i = 0; i < 100; i++)
        pace_note(&pace, 4, 50, 0.050 + 50 * 0.0003);
    assert_in_range(pace_chunk(&pace, 4), 495, 505);
    for (int i = 0; i < 100; i++)
        pace_note(&pace, 4, 50, 5); /* tokens that are dear: the shortest chunk */
    assert_int_equal(pace_chunk(&pace, 4), 32);
    for (int i = 0; i < 100; i++)
        pace_note(&pace, 4, 0, 100);
    assert_int_equal(pace_chunk(&pace, 4), 512);
}

static void test_short_chunks_are_still_chunks(void **state)
{
    (void)state;
    struct pace pace;
    pace_init(&pace, 4);
    assert_int_equal(pace_chunk(&pace, 1), 1);
    pace_note(&pace, 1, 4, 0); /* says nothing */
    pace_note(&pace, 1, 0, 1);
    assert_int_equal(pace_chunk(&pace, 1), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_chunk_takes_a_few_times_a_step),
        cmocka_unit_test(test_short_chunks_are_still_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
