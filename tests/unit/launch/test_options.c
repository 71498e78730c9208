/* launch/options.c: parsing by tables, checks by kind, values by name. */
#include "tests/unit/cmocka_all.h"

#include <math.h>

#include "launch/command.h"

static const struct option_spec sample[] = {
    {"count", 'n', OPTION_INT, "N", .def = "7", .min = 1, .max = 100},
    {"chunk", 0, OPTION_INT, "N|auto", .def = "auto", .min = 1, .max = 64},
    {"ratio", 0, OPTION_FLOAT, "X", .min = 0, .max = 2},
    {"size", 0, OPTION_SIZE, "SIZE", .help = "h"},
    {"wait", 0, OPTION_TIME, "T", .help = "h"},
    {"kind", 0, OPTION_ENUM, "f16|bf16", .def = "f16"},
    {"stop", 0, OPTION_STRING, "S", .repeat = true},
    {"special", 's', OPTION_FLAG, .def = "on"},
    {0},
};
static const struct option_spec *const tables[] = {sample, NULL};

#define PARSE(options, ...)                                                                        \
    parse(options, (const char *const[]){__VA_ARGS__, NULL}, &(struct lm_error){0})
#define ASSERT_FAILS(expected_message, ...)                                                        \
    assert_fails(expected_message, (const char *const[]){__VA_ARGS__, NULL})

static enum lm_status parse(struct options **options, const char *const *words,
                            struct lm_error *err)
{
    int n = 0;
    while (words[n])
        n++;
    return options_parse(options, tables, n, (char *const *)words, err);
}

static void assert_fails(const char *expected_message, const char *const *words)
{
    struct options *options = NULL;
    struct lm_error err = {0};
    assert_int_equal(parse(&options, words, &err), LM_E_USAGE);
    assert_string_equal(err.message, expected_message);
    assert_null(options);
}

static void reads_every_kind(void **state)
{
    (void)state;
    struct options *options;
    assert_int_equal(PARSE(&options, "model", "--count=5", "--ratio", "0.5", "text", "--size",
                           "1.5K", "--wait=2m", "--kind", "bf16", "--no-special", "--stop", "a",
                           "--stop", "", "-vv", "--", "--not-an-option", "-"),
                     LM_OK);
    assert_int_equal(options_int(options, "count"), 5);
    assert_true(options_float(options, "ratio") == 0.5);
    assert_int_equal(options_size(options, "size"), 1536);
    assert_true(options_float(options, "wait") == 120);
    assert_string_equal(options_string(options, "kind"), "bf16");
    assert_false(options_flag(options, "special"));
    assert_int_equal(options_count(options, "stop"), 2);
    assert_string_equal(options_string_at(options, "stop", 0), "a");
    assert_string_equal(options_string_at(options, "stop", 1), "");
    assert_int_equal(options_count(options, "verbose"), 2);
    assert_int_equal(options_n_arg(options), 4);
    assert_string_equal(options_arg(options, 2), "--not-an-option");
    assert_string_equal(options_arg(options, 3), "-");
    options_destroy(options);
}

static void absent_values_are_defaults(void **state)
{
    (void)state;
    struct options *options;
    assert_int_equal(PARSE(&options, "-"), LM_OK);
    assert_int_equal(options_int(options, "count"), 7);
    assert_int_equal(options_int(options, "chunk"), 0);
    assert_true(isnan(options_float(options, "ratio")));
    assert_int_equal(options_size(options, "size"), 0);
    assert_true(options_flag(options, "special"));
    assert_null(options_string(options, "stop"));
    assert_false(options_given(options, "count"));
    options_destroy(options);
}

static void the_last_of_several_counts_and_empty_unsets(void **state)
{
    (void)state;
    struct options *options;
    assert_int_equal(PARSE(&options, "-n3", "-n", "4", "--ratio", "1", "--ratio="), LM_OK);
    assert_int_equal(options_int(options, "count"), 4);
    assert_int_equal(options_count(options, "count"), 1);
    assert_true(isnan(options_float(options, "ratio")));
    options_destroy(options);
}

static void refuses_what_is_wrong(void **state)
{
    (void)state;
    ASSERT_FAILS("unknown option --cuont, did you mean --count?", "--cuont=3");
    ASSERT_FAILS("unknown option --xyzzy", "--xyzzy");
    ASSERT_FAILS("unknown option -z", "-z");
    ASSERT_FAILS("unknown option --no-count, did you mean --count?", "--no-count");
    ASSERT_FAILS("--count needs a value (N)", "--count");
    ASSERT_FAILS("--count must be an integer, got '1.5'", "--count", "1.5");
    ASSERT_FAILS("--count must be an integer, got '99999999999999999999'", "-n",
                 "99999999999999999999");
    ASSERT_FAILS("--count must be at least 1, got 0", "--count", "0");
    ASSERT_FAILS("--chunk must be an integer or auto, got 'atuo'", "--chunk", "atuo");
    ASSERT_FAILS("--ratio must be at most 2, got 3.5", "--ratio", "3.5");
    ASSERT_FAILS("--ratio must be a number, got 'nan'", "--ratio", "nan");
    ASSERT_FAILS("--size must be a size such as 64M or 1.5GiB, got '1Q'", "--size", "1Q");
    ASSERT_FAILS("--kind must be one of f16|bf16, got 'f1'", "--kind", "f1");
    ASSERT_FAILS("--special takes no value; --no-special turns it off", "--special=on");
}

/* A name or letter used twice in a command would hide one of the two options. */
static void every_command_parses_and_describes_itself(void **state)
{
    (void)state;
    for (size_t i = 0; commands[i]; i++) {
        struct options *options = NULL;
        const struct command *found = NULL;
        assert_int_equal(options_parse(&options, commands[i]->options, 0, NULL, NULL), LM_OK);
        options_destroy(options);
        assert_int_equal(command_find(&found, commands[i]->name, NULL), LM_OK);
        assert_ptr_equal(found, commands[i]);
        assert_non_null(commands[i]->usage);
        for (size_t t = 0; commands[i]->options && commands[i]->options[t]; t++)
            for (const struct option_spec *spec = commands[i]->options[t]; spec->name; spec++) {
                assert_non_null(spec->help);
                assert_true(strncmp(spec->name, "no-", 3) != 0);
                assert_int_equal(option_check(spec, spec->name, spec->def ? spec->def : "", NULL),
                                 LM_OK);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_kind),
        cmocka_unit_test(absent_values_are_defaults),
        cmocka_unit_test(the_last_of_several_counts_and_empty_unsets),
        cmocka_unit_test(refuses_what_is_wrong),
        cmocka_unit_test(every_command_parses_and_describes_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
