/* Regular expressions: each construct, what is refused, and agreement of the automaton with the
 * grammar made of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/regex.h"
#include "tests/unit/coordinator/grammar/grammar_case.h"

static struct char_automaton *compile(const char *pattern, bool search)
{
    struct char_automaton *automaton;
    struct lm_error err = {0};
    if (regex_compile(&automaton, pattern, strlen(pattern), search, &err) == LM_OK)
        return automaton;
    printf("%s: %s\n", pattern, err.message);
    return NULL;
}

static void check(const char *pattern, bool search, const char *matches, const char *refuses)
{
    struct char_automaton *automaton = compile(pattern, search);
    assert_non_null(automaton);
    for (; *matches; matches += strlen(matches) + 1)
        if (!char_automaton_accepts(automaton, matches, strlen(matches)))
            fail_msg("%s does not match %s", pattern, matches);
    for (; *refuses; refuses += strlen(refuses) + 1)
        if (char_automaton_accepts(automaton, refuses, strlen(refuses)))
            fail_msg("%s matches %s", pattern, refuses);
    char_automaton_destroy(automaton);
}

static void test_constructs(void **state)
{
    (void)state;
    check("abc", false, "abc\0", "ab\0abcd\0");
    check("a|bc|", false, "a\0bc\0", "abc\0b\0");
    check("a*b+c?", false, "b\0aabbc\0", "a\0bcc\0");
    check("(ab){2}", false, "abab\0", "ab\0ababab\0");
    check("a{2,}", false, "aa\0aaaaa\0", "a\0");
    check("a{2,3}?", false, "aa\0aaa\0", "a\0aaaa\0");
    check("(){4000000000}a(b{0}){0,4000000000}", false, "a\0", "aa\0");
    check("a{,3}", false, "a{,3}\0", "a\0");
    check("(?:a|(?<x>b)|(?P<y>c))*", false, "abcab\0", "d\0");
    check("[a-c\\d_-]+", false, "a1_-c\0", "d\0A\0");
    check("[^a-c]", false, "d\0\xc3\xa4\0\n\0", "a\0dd\0");
    check(".", false, "a\0\xf0\x9f\x98\x80\0", "\n\0ab\0\r\0");
    check("\\w\\s\\D", false, "a x\0_\tb\0", "- x\0a 1\0");
    check("\\W\\S\\d", false, "-x1\0", "ax1\0");
    check("\\x41\\u00e4\\u{1F600}\\ud83d\\ude00\\t\\/\\.", false,
          "A\xc3\xa4\xf0\x9f\x98\x80\xf0\x9f\x98\x80\t/.\0", "A\0");
    check("[\\]\\\\^]", false, "]\0\\\0^\0", "[\0");
    check("]}", false, "]}\0", "]\0");
    check("\xc3\xa4[\xc3\xa0-\xc3\xbf]", false, "\xc3\xa4\xc3\xb6\0", "\xc3\xa4o\0");
}

static void test_search_and_anchors(void **state)
{
    (void)state;
    check("b+", true, "b\0abc\0bbb\0ab\0", "a\0ac\0");
    check("^b", true, "b\0bc\0", "ab\0");
    check("b$", true, "b\0ab\0", "bc\0");
    check("^b$", true, "b\0", "ab\0bc\0bb\0");
    check("^a|b$", true, "a\0ax\0xb\0b\0", "xa\0bx\0x\0");
    check("(^|,)a(,|$)", true, "a\0a,b\0b,a\0b,a,c\0", "ba\0ab\0");
    check("^$", false, "", "a\0");
    check("a^b", true, "", "ab\0a\0");
    check("^abc$", false, "abc\0", "abcd\0");
    check("\\Aa\\Z", true, "a\0", "ab\0");
    check("^[a-z]{2,4}$", true, "ab\0abcd\0", "a\0abcde\0ab1\0");
    struct char_automaton *all = compile("", true);
    assert_int_equal(all->n_state, 1);
    char_automaton_destroy(all);
}

static void test_small_automata(void **state)
{
    static const struct {
        const char *pattern;
        uint32_t n_state;
    } cases[] = {{"(a|b)*abb", 4}, {"a|b|c|d", 2}, {"(ab|cb)*", 2},
                 {"[]", 0},        {"a[]b|c", 2},  {"(a|b)*a(a|b){9}", 1024}};
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct char_automaton *automaton = compile(cases[i].pattern, false);
        assert_non_null(automaton);
        assert_int_equal(automaton->n_state, cases[i].n_state);
        char_automaton_destroy(automaton);
    }
}

static void test_what_is_refused(void **state)
{
    static const struct {
        const char *pattern, *message;
        enum lm_status status;
    } cases[] = {
        {"(a", "offset 0: a group without its end", LM_E_FORMAT},
        {"a)", "offset 1: a parenthesis", LM_E_FORMAT},
        {"ab[c", "offset 2: a class without its end", LM_E_FORMAT},
        {"[b-a]", "end comes first", LM_E_FORMAT},
        {"a{3,2}", "end comes first", LM_E_FORMAT},
        {"*a", "nothing to repeat", LM_E_FORMAT},
        {"a**", "nothing to repeat", LM_E_FORMAT},
        {"^*", "anchor", LM_E_FORMAT},
        {"\\q", "unknown escape", LM_E_FORMAT},
        {"a\\", "backslash at the end", LM_E_FORMAT},
        {"\\xg0", "hexadecimal", LM_E_FORMAT},
        {"\\ud800", "no character", LM_E_FORMAT},
        {"\\u{110000}", "no character", LM_E_FORMAT},
        {"\xff", "not UTF-8", LM_E_FORMAT},
        {"(?=a)", "look-around", LM_E_UNSUPPORTED},
        {"(?!a)b", "look-around", LM_E_UNSUPPORTED},
        {"(?<=a)b", "look-around", LM_E_UNSUPPORTED},
        {"(?i)a", "flags", LM_E_UNSUPPORTED},
        {"(a)\\1", "back-references", LM_E_UNSUPPORTED},
        {"\\k<x>", "back-references", LM_E_UNSUPPORTED},
        {"\\bword", "word boundaries", LM_E_UNSUPPORTED},
        {"\\p{L}", "Unicode properties", LM_E_UNSUPPORTED},
        {"a++", "possessive", LM_E_UNSUPPORTED},
        {"(a|b)*a(a|b){30}", "states", LM_E_LIMIT},
        {"a{1000000000}", "states", LM_E_LIMIT},
        {"((((a{99}){99}){99}){99}){99}", "states", LM_E_LIMIT},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct char_automaton *automaton;
        struct lm_error err = {0};
        const enum lm_status status =
            regex_compile(&automaton, cases[i].pattern, strlen(cases[i].pattern), false, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].message))
            fail_msg("%s: %s", cases[i].pattern, err.message);
    }
}

static void test_products(void **state)
{
    struct char_automaton *letters = compile("^[a-z]+$", true), *length, *both, *none;
    (void)state;
    assert_int_equal(char_automaton_of_length(&length, 2, 3, NULL), LM_OK);
    assert_int_equal(char_automaton_intersect(&both, letters, length, NULL), LM_OK);
    assert_int_equal(both->n_state, 4);
    assert_true(char_automaton_accepts(both, "abc", 3));
    assert_false(char_automaton_accepts(both, "a", 1));
    assert_false(char_automaton_accepts(both, "abcd", 4));
    assert_false(char_automaton_accepts(both, "a1", 2));
    char_automaton_destroy(length);
    assert_int_equal(char_automaton_of_length(&length, 4, UINT32_MAX, NULL), LM_OK);
    assert_int_equal(char_automaton_intersect(&none, both, length, NULL), LM_OK);
    assert_int_equal(none->n_state, 0);
    char_automaton_destroy(none);
    char_automaton_destroy(both);
    char_automaton_destroy(length);
    char_automaton_destroy(letters);
}

static void test_grammar(void **state)
{
    static const char pattern[] = "(ab|[0-9]{2,4}|\xe2\x82\xac)+!";
    static const char text[] = "ab123\xe2\x82\xac"
                               "2026!";
    struct grammar *grammar;
    (void)state;
    assert_int_equal(grammar_from_regex(&grammar, pattern, strlen(pattern), NULL), LM_OK);
    assert_int_equal(case_try(&vocab, grammar, text, strlen(text)), CASE_WHOLE);
    assert_int_equal(case_try(&vocab, grammar, "ab1!", 4), CASE_REFUSED);
    for (size_t i = 0; i <= strlen(text); i++)
        assert_true(case_mask_holds(&vocab, grammar, text, i));
    grammar_unref(grammar);
    struct lm_error err = {0};
    assert_int_equal(grammar_from_regex(&grammar, "a[]", 3, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "no text"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constructs),     cmocka_unit_test(test_search_and_anchors),
        cmocka_unit_test(test_small_automata), cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_products),       cmocka_unit_test(test_grammar),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
