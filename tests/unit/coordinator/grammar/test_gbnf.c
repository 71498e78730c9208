/* GBNF: what each construct matches, what is refused and where, and that masks hold exactly the
 * tokens that fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/coordinator/grammar/grammar_case.h"

static struct grammar *compile(const char *text)
{
    struct grammar *grammar;
    struct lm_error err = {0};
    if (grammar_from_gbnf(&grammar, text, strlen(text), &err) == LM_OK) return grammar;
    printf("%s\n", err.message);
    return NULL;
}

/* matches, refuses: texts behind each other, ended by an empty one. Every mask on the way of a
 * match is checked. */
static void check(const char *text, const char *matches, const char *refuses)
{
    struct grammar *grammar = compile(text);
    assert_non_null(grammar);
    for (; *matches; matches += strlen(matches) + 1) {
        const size_t n = strlen(matches);
        if (case_try(&vocab, grammar, matches, n) != CASE_WHOLE)
            fail_msg("%s does not match %s", text, matches);
        for (size_t i = 0; i <= n; i++)
            assert_true(case_mask_holds(&vocab, grammar, matches, i));
    }
    for (; *refuses; refuses += strlen(refuses) + 1)
        if (case_try(&vocab, grammar, refuses, strlen(refuses)) == CASE_WHOLE)
            fail_msg("%s matches %s", text, refuses);
    grammar_unref(grammar);
}

static void test_constructs(void **state)
{
    (void)state;
    check("root ::= \"abc\"", "abc\0", "ab\0abcd\0b\0");
    check("root ::= \"ab\" | \"abcd\" | \"the\"", "ab\0abcd\0the\0", "abc\0a\0theab\0");
    check("root ::= [a-c]+ [^a-c\\n]?", "a\0abcab\0abcd\0a\xc3\xa4\0", "d\0abcdd\0a\n\0");
    check("root ::= . .", "ab\0\xe2\x82\xac\xf0\x9f\x98\x80\0", "a\0abc\0\xff\xfe\0");
    check("root ::= \"a\"{3} b{2,3} c{1,}\nb ::= \"b\"\nc ::= \"c\"", "aaabbc\0aaabbbccc\0",
          "aabbc\0aaabc\0aaabbbbc\0aaabb\0");
    check("root ::= \"\\x41\\u00e4\\U0001F600\\n\\\"\\\\\"", "A\xc3\xa4\xf0\x9f\x98\x80\n\"\\\0",
          "A\0");
    check("root ::= (\"a\" | # note\n \"b\")* \"1\"\n", "1\0abba1\0", "ab\0");
    check("root ::=\n  item\n  | item \",\" root\nitem ::= [0-9]{1,3}",
          "1\0"
          "12,123,1\0",
          "1234\0,\0"
          "1,\0");
    check("root ::= \"a\" \"\" | ", "a\0", "b\0");
    check("root ::= [\\u00e4-\\u20ac]", "\xc3\xa4\0\xe2\x82\xac\0\xdf\xbf\0\xe0\xa0\x80\0",
          "a\0\xc3\xa3\0\xe2\x82\xad\0\xed\xa0\x80\0");
}

static void test_recursion(void **state)
{
    (void)state;
    check("root ::= \"[\" root* \"]\"", "[]\0[[][[]]]\0", "[\0[]]\0][\0");
    check("root ::= \"a\" root \"b\" | \"\"", "ab\0aaabbb\0", "aab\0abb\0ba\0");
    /* ambiguous: the same text in many ways */
    check("root ::= s\ns ::= \"a\" s s | \"a\"", "a\0aaa\0aaaaaaaaaaaaa\0", "aa\0aaaa\0");
    check("root ::= x{0,2000} y\nx ::= [a-z] | \"1\"\ny ::= \"2\"?", "2\0abcthe12\0abc\0",
          "22\0"
          "2a\0");
}

static void test_counted(void **state)
{
    (void)state;
    struct grammar *grammar = compile("root ::= (\"ab\" | \"c\"){100,200} \"!\"");
    char text[1000];
    assert_non_null(grammar);
    for (size_t n_time = 98; n_time < 204; n_time++) {
        size_t n = 0;
        for (size_t i = 0; i < n_time; i++) {
            memcpy(text + n, i % 3 ? "ab" : "c", 2);
            n += i % 3 ? 2 : 1;
        }
        if (n_time <= 200 && n_time % 20 > 17)
            assert_true(case_mask_holds(&vocab, grammar, text, n));
        text[n++] = '!';
        assert_int_equal(case_try(&vocab, grammar, text, n) == CASE_WHOLE,
                         n_time >= 100 && n_time <= 200);
    }
    grammar_unref(grammar);
}

static void test_what_is_refused(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "no rule root"},
        {"a ::= \"a\"", "no rule root"},
        {"root ::= a", "line 1 column 10: a rule that is not defined"},
        {"root ::= \"a\"\nroot ::= \"b\"", "line 2 column 1: a rule that is defined already"},
        {"root ::= root \"a\" | \"b\"", "rule root may call itself"},
        {"root ::= a \"x\"\na ::= b? a | \"c\"\nb ::= \"b\"", "rule a may call itself"},
        {"root ::= \"a\" root", "no text at all"},
        {"root ::= \"a", "line 1 column 10: a literal without its end"},
        {"root ::= [a", "a class without its end"},
        {"root ::= [b-a]", "a range whose end comes first"},
        {"root ::= (\"a\"", "a group without its end"},
        {"root ::= \"a\")", "expected a rule"},
        {"root ::= \"\\q\"", "an unknown escape"},
        {"root ::= \"\\ud800\"", "an escape that is no character"},
        {"root ::= \"\\u12\"", "hexadecimal"},
        {"root ::= \"a\"{3,2}", "a repetition whose end comes first"},
        {"root ::= \"a\"{", "a number is missing"},
        {"root ::= \"a\"{99999999999}", "too large"},
        {"root ::= (\"a\"?){0,1000}", "may be empty"},
        {"root ::= <[1]>", "expected a literal"},
        {"root ::= \"\xff\"", "not UTF-8"},
        {"root \"a\"", "expected a rule"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct grammar *grammar;
        struct lm_error err = {0};
        assert_int_not_equal(
            grammar_from_gbnf(&grammar, cases[i].text, strlen(cases[i].text), &err), LM_OK);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: %s", cases[i].text, err.message);
    }
}

/* Deep nesting of the text itself: the stack's lists are collected on the way. */
static void test_long_texts(void **state)
{
    (void)state;
    struct grammar *grammar = compile("root ::= \"[\" root? \"]\" | \"(\" root? \")\"");
    struct grammar_matcher *matcher;
    enum { N = 100000 };
    assert_non_null(grammar);
    assert_int_equal(grammar_matcher_create(&matcher, grammar, vocab.trie, NULL), LM_OK);
    for (size_t i = 0; i < N; i++)
        assert_true(grammar_matcher_take(matcher, i % 3 ? "[" : "(", 1));
    for (size_t i = N; i-- > 0;) {
        assert_false(grammar_matcher_complete(matcher));
        assert_false(grammar_matcher_take(matcher, i % 3 ? ")" : "]", 1));
        assert_true(grammar_matcher_take(matcher, i % 3 ? "]" : ")", 1));
    }
    assert_true(grammar_matcher_complete(matcher));
    grammar_matcher_destroy(matcher);
    grammar_unref(grammar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constructs), cmocka_unit_test(test_recursion),
        cmocka_unit_test(test_counted),    cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_long_texts),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
