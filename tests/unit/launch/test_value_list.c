/* Lists and ranges of an option's values, and the options that take them. */
#include "tests/unit/cmocka_all.h"

#include <string.h>

#include "launch/options.h"
#include "launch/value_list.h"

static const struct option_spec numbers[] = {
    {"count", 'n', OPTION_INT, "N|auto", .min = 0, .max = 5000, .help = "numbers"},
    {"size", 0, OPTION_SIZE, "SIZE", .help = "sizes"},
    {"share", 0, OPTION_STRING, "N|P%|min", .help = "shares"},
    {"hosts", 0, OPTION_STRING, "LIST", .help = "no list of values"},
    {"pg", 0, OPTION_STRING, "P,N", .help = "a name of two letters"},
    {0},
};

static void assert_values(const struct option_spec *spec, const char *text, const char *expected)
{
    struct value_list list;
    struct lm_error err = {0};
    char got[200] = "";
    if (value_list_parse(&list, spec, "--x", text, &err) != LM_OK) fail_msg("%s", err.message);
    for (size_t i = 0; i < list.n; i++) {
        strcat(got, i ? " " : "");
        strcat(got, list.text[i]);
    }
    assert_string_equal(got, expected);
    value_list_fini(&list);
}

static void expands_lists_and_ranges(void **state)
{
    (void)state;
    assert_values(&numbers[0], "7", "7");
    assert_values(&numbers[0], "1,2,auto", "1 2 auto");
    assert_values(&numbers[0], "2-5", "2 3 4 5");
    assert_values(&numbers[0], "2-9+3,64-512*2", "2 5 8 64 128 256 512");
    assert_values(&numbers[0], "3-20*2", "3 6 12");
    assert_values(&numbers[1], "8G-32G*2", "8G 16G 32G");
    assert_values(&numbers[1], "1MiB-3MiB+1MiB", "1MiB 2MiB 3MiB");
    assert_values(&numbers[2], "min,0%-100%+50,12", "min 0% 50% 100% 12");
}

static void assert_refused(const struct option_spec *spec, const char *text)
{
    struct value_list list;
    struct lm_error err = {0};
    assert_int_equal(value_list_parse(&list, spec, "--x", text, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "--x"));
}

static void refuses_what_is_no_value(void **state)
{
    (void)state;
    assert_refused(&numbers[0], "1,,2");
    assert_refused(&numbers[0], "1,x");
    assert_refused(&numbers[0], "9-2");
    assert_refused(&numbers[0], "1-9+0");
    assert_refused(&numbers[0], "1-9*1");
    assert_refused(&numbers[0], "0-9*2");
    assert_refused(&numbers[0], "1-5000");      /* too many */
    assert_refused(&numbers[0], "4990-5001+1"); /* the last one is out of bounds */
    assert_refused(&numbers[1], "8G-16M");
}

static void only_behind_the_mark(void **state)
{
    (void)state;
    const struct option_spec *const single[] = {numbers, NULL};
    const struct option_spec *const lists[] = {options_lists, numbers, NULL};
    char *const words[] = {"-n", "1,2", "--hosts", "a,b", "-pg", "8,4"};
    struct options *options;
    struct value_list values;
    struct lm_error err;
    assert_int_equal(options_parse(&options, single, 2, words, &err), LM_E_USAGE);
    assert_int_equal(options_parse(&options, lists, 6, words, &err), LM_OK);
    assert_int_equal(options_list(options, "count", &values, &err), LM_OK);
    assert_int_equal(values.n, 2);
    value_list_fini(&values);
    assert_int_equal(options_list(options, "hosts", &values, &err), LM_OK);
    assert_int_equal(values.n, 1);
    value_list_fini(&values);
    assert_int_equal(options_list(options, "size", &values, &err), LM_OK);
    assert_int_equal(values.n, 0);
    assert_string_equal(options_string(options, "pg"), "8,4");
    assert_int_equal(options_set(options, numbers, "count", "2", &err), LM_OK);
    assert_int_equal(options_int(options, "count"), 2);
    options_destroy(options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expands_lists_and_ranges),
        cmocka_unit_test(refuses_what_is_no_value),
        cmocka_unit_test(only_behind_the_mark),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
