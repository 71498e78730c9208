/* proto/base/nearest.c: the name that was probably meant. */
#include "tests/unit/cmocka_all.h"

#include "proto/base/nearest.h"

static const char *nearest_of(const char *word)
{
    static const char *const names[] = {"threads", "temperature", "top-p", "top-k", "trace"};
    struct nearest nearest = {.word = word};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        nearest_offer(&nearest, names[i]);
    return nearest_name(&nearest);
}

static void finds_small_slips(void **state)
{
    (void)state;
    assert_string_equal(nearest_of("thread"), "threads");
    assert_string_equal(nearest_of("therads"), "threads");
    assert_string_equal(nearest_of("TOP_K"), "top-k");
    assert_string_equal(nearest_of("temp"), "temperature");
    assert_string_equal(nearest_of("tmeperatuer"), "temperature");
}

static void stays_silent_when_nothing_is_near(void **state)
{
    (void)state;
    char endless[300];
    memset(endless, 'x', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = '\0';
    assert_null(nearest_of("quantize"));
    assert_null(nearest_of("xyzzy"));
    assert_null(nearest_of(endless));
    const struct nearest none = {.word = "a"};
    assert_null(nearest_name(&none));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_small_slips),
        cmocka_unit_test(stays_silent_when_nothing_is_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
