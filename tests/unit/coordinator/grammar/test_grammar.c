/* Choices and JSON objects: what matches, and that masks hold exactly the tokens that fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "coordinator/grammar/grammar_builder.h"
#include "tests/unit/coordinator/grammar/grammar_case.h"

static void test_choice(void **state)
{
    (void)state;
    struct json_object *choices = json_tokener_parse("[\"ab\", \"abcd\", \"the \\u00e4\", \"ab\"]");
    struct grammar *grammar;
    assert_int_equal(grammar_from_choice(&grammar, choices, NULL), LM_OK);
    json_object_put(choices);
    assert_int_equal(case_try(&vocab, grammar, "ab", 2), CASE_WHOLE);
    assert_int_equal(case_try(&vocab, grammar, "abc", 3), CASE_BEGINNING);
    assert_int_equal(case_try(&vocab, grammar, "abcd", 4), CASE_WHOLE);
    assert_int_equal(case_try(&vocab, grammar, "the \xc3\xa4", 6), CASE_WHOLE);
    assert_int_equal(case_try(&vocab, grammar, "b", 1), CASE_REFUSED);
    for (size_t i = 0; i <= 4; i++)
        assert_true(case_mask_holds(&vocab, grammar, "abcd", i));

    /* twins in the vocabulary share their bit; nothing but the end is left behind "abcd" */
    struct grammar_matcher *matcher = case_start(&vocab, grammar, "abcd", 4);
    const uint32_t *mask = grammar_matcher_mask(matcher);
    for (size_t i = 0; i < CASE_N_VOCAB / 32; i++)
        assert_int_equal(mask[i], i == CASE_END / 32 ? UINT32_C(1) << CASE_END % 32 : 0);
    grammar_matcher_destroy(matcher);
    grammar_unref(grammar);
}

static void test_choices_that_are_none(void **state)
{
    static const char *const texts[] = {"[]", "{}", "\"a\"", "[\"a\", 1]"};
    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct json_object *choices = json_tokener_parse(texts[i]);
        struct grammar *grammar;
        assert_int_equal(grammar_from_choice(&grammar, choices, NULL), LM_E_FORMAT);
        json_object_put(choices);
    }
}

static void test_json_object(void **state)
{
    static const char *const documents[] = {
        "{}",
        "{\"a\":1}",
        "{\"a\": 1, \"b\": [], \"c\": {\"d\": [true, false, null]}}",
        "{\"a\":-0.5e+308,\"b\":12345678901234567,\"c\":0}",
        "{\"\\u00e4\\n\\\"\\\\\\/\": \"\\ud83d\\ude00 \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80\"}",
        "{\"a\":[[[1],[2]],[{}]]}",
        "{\"a\":1.2345678901234567,\"b\":0.1234567890123456,\"c\":1E-308,\"d\":-0}",
    };
    static const char *const refused[] = {
        " ",
        "[",
        "{ ",
        "{,",
        "{\"a\" ",
        "{\"a\":  ",
        "{\"a\":1,}",
        "{\"a\":01",
        "{\"a\":.",
        "{\"a\":1.}",
        "{\"a\":+",
        "{\"a\":1e}",
        "{\"a\":1e309",
        "{\"a\":tru}",
        "{\"a\":[1}",
        "{\"a\"}",
        "{\"a\":[,",
        "{\"a\":\"\n",
        "{\"\\x",
        "{\"\\ud800x",
        "{\"\\udc00",
        "{\"\xff",
        "{\"\xed\xa0",
        "{\"\xc0",
        "{\"\\ud800\\u0041",
        "{\"a\":123456789012345678",
        "{\"a\":1.23456789012345678",
        "{}{",
        "{} ",
    };
    struct grammar *grammar;
    (void)state;
    assert_int_equal(grammar_from_schema(&grammar, NULL, false, NULL), LM_OK);
    for (size_t d = 0; d < sizeof(documents) / sizeof(documents[0]); d++) {
        const size_t n = strlen(documents[d]);
        if (case_try(&vocab, grammar, documents[d], n) != CASE_WHOLE)
            fail_msg("refused: %s", documents[d]);
        for (size_t i = 0; i <= n; i++)
            assert_true(case_mask_holds(&vocab, grammar, documents[d], i));
    }
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if (case_try(&vocab, grammar, refused[i], strlen(refused[i])) != CASE_REFUSED)
            fail_msg("accepted: %s", refused[i]);
    grammar_unref(grammar);
}

static void test_pretty(void **state)
{
    static const char document[] = "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}";
    struct grammar *grammar;
    (void)state;
    assert_int_equal(grammar_from_schema(&grammar, NULL, true, NULL), LM_OK);
    assert_int_equal(case_try(&vocab, grammar, document, strlen(document)), CASE_WHOLE);
    for (size_t i = 0; i <= strlen(document); i++)
        assert_true(case_mask_holds(&vocab, grammar, document, i));
    assert_int_equal(case_try(&vocab, grammar, "{\n\n", 3), CASE_REFUSED);
    char wide[] = "{\n                                 ";
    assert_int_equal(case_try(&vocab, grammar, wide, 34), CASE_BEGINNING);
    assert_int_equal(case_try(&vocab, grammar, wide, 35), CASE_REFUSED);
    grammar_unref(grammar);
}

/* What tool calls are made of: a marker, an object, a marker, and text up to one. */
static void test_builder(void **state)
{
    struct grammar_builder *builder;
    struct grammar *grammar;
    (void)state;
    assert_int_equal(grammar_builder_create(&builder, NULL), LM_OK);
    const grammar_expr call[] = {
        grammar_build_string(builder, "<call>"),
        grammar_build_json_object(builder),
        grammar_build_string(builder, "</call>"),
        grammar_build_text_until(builder, "aab", 3),
        grammar_build_json_string(builder, "\"\n\x01", 3),
    };
    const grammar_expr calls =
        grammar_build_repeat(builder, grammar_build_sequence(builder, call, 5), 1, 2);
    assert_int_equal(grammar_builder_finish(&grammar, builder, calls, NULL), LM_OK);
    grammar_builder_destroy(builder);
    static const char text[] = "<call>{\"a\":1}</call>aaaba\"\\\"\\n\\u0001\"";
    assert_int_equal(case_try(&vocab, grammar, text, strlen(text)), CASE_REFUSED);
    static const char good[] = "<call>{\"a\":1}</call>a\xc3\xa4"
                               "aaaab\"\\\"\\n\\u0001\"";
    assert_int_equal(case_try(&vocab, grammar, good, strlen(good)), CASE_WHOLE);
    for (size_t i = 0; i <= strlen(good); i++)
        assert_true(case_mask_holds(&vocab, grammar, good, i));
    grammar_unref(grammar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_choices_that_are_none),
        cmocka_unit_test(test_json_object), cmocka_unit_test(test_pretty),
        cmocka_unit_test(test_builder),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
