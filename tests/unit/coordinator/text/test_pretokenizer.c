/* Each pre-tokenizer's words for short texts; bars stand between the words. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>

#include "coordinator/text/pretokenizer.h"

static void assert_words(const char *pre, const char *text, const char *expected)
{
    const struct pretokenizer *pretokenizer = pretokenizer_find(pre, strlen(pre));
    assert_non_null(pretokenizer);
    struct pretokenizer_cursor cursor;
    char got[1000] = "";
    const char *word, *end = text;
    size_t n;
    pretokenizer_begin(&cursor, pretokenizer, text, strlen(text));
    while ((n = pretokenizer_next(&cursor, &word))) {
        assert_ptr_equal(word, end); /* words are the text, nothing is left out */
        snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%.*s", word > text ? "|" : "",
                 (int)n, word);
        end = word + n;
    }
    assert_int_equal(end - text, strlen(text));
    assert_string_equal(got, expected);
}

#define E_ACUTE "e\xCC\x81"       /* a letter and a mark */
#define HAN "\xE4\xBD\xA0"        /* U+4F60 */
#define THAI_LOW "\xE0\xB8\x81"   /* U+0E01, outside afmoe's range */
#define THAI_HIGH "\xE0\xB9\x80"  /* U+0E40, inside it */
#define HANGUL "\xEA\xB0\x80"     /* U+AC00 */
#define ARABIC_3 "\xD9\xA3"       /* a digit */
#define WIDE_SPACE "\xE3\x80\x80" /* U+3000 */
#define NEXT_LINE "\xC2\x85"      /* U+0085 */
#define CONTROL_A "\x01"

static void qwen2_cuts_by_its_pattern(void **state)
{
    (void)state;
    static const char *const pres[] = {"qwen2", "lean", "deepseek-r1-qwen"};
    for (size_t i = 0; i < 3; i++) {
        const char *const pre = pres[i];
        assert_words(pre, "", "");
        assert_words(pre, "Hello world", "Hello| world");
        assert_words(pre, "I'm WE'VE 'tis x'", "I|'m| WE|'VE| '|tis| x|'");
        assert_words(pre, "123 45", "1|2|3| |4|5");
        assert_words(pre, "a  b", "a| | b");
        assert_words(pre, "a   ", "a|   ");
        assert_words(pre, "a \t1", "a| |\t|1");
        assert_words(pre, "a \n\n  b", "a| \n\n| | b");
        assert_words(pre, "x!?\r\n\ny", "x|!?\r\n\n|y");
        assert_words(pre, "#foo .bar", "#foo| .|bar");
        assert_words(pre, E_ACUTE "x", "e|\xCC\x81x");
        assert_words(pre, "a" WIDE_SPACE "b" NEXT_LINE, "a|" WIDE_SPACE "b|" NEXT_LINE);
        assert_words(pre, ARABIC_3 ARABIC_3, ARABIC_3 "|" ARABIC_3);
        assert_words(pre, CONTROL_A CONTROL_A "z", CONTROL_A CONTROL_A "|z");
    }
}

static void qwen35_joins_marks_to_letters(void **state)
{
    (void)state;
    assert_words("qwen35", E_ACUTE "x", E_ACUTE "x");
    assert_words("qwen35", "\xCC\x81\xCC\x81 1", "\xCC\x81\xCC\x81| |1");
    assert_words("qwen35", "!\xCC\x81!", "!\xCC\x81|!");
    assert_words("qwen35", "it'S 12", "it|'S| |1|2");
}

static void llama3_takes_digits_in_threes(void **state)
{
    (void)state;
    static const char *const pres[] = {"llama-bpe", "llama3", "llama-v3"};
    for (size_t i = 0; i < 3; i++) {
        assert_words(pres[i], "1 12 123 1234 1234567", "1| |12| |123| |123|4| |123|456|7");
        assert_words(pres[i], "I'LL go\n", "I|'LL| go|\n");
    }
}

static void gpt2_keeps_runs_together(void **state)
{
    (void)state;
    assert_words("gpt-2", "I'm WE'VE 1234 5", "I|'m| WE|'|VE| 1234| 5");
    assert_words("gpt-2", "a  \n b\t\tc", "a|  \n| b|\t|\t|c");
    assert_words("gpt-2", "x!?\n\n", "x|!?|\n\n");
    assert_words("gpt-2", "#foo", "#|foo");
    assert_words("gpt-2", E_ACUTE, "e|\xCC\x81");
}

static void smollm_takes_digits_out_first(void **state)
{
    (void)state;
    assert_words("smollm", "a  12 3", "a|  |1|2| |3"); /* gpt-2 would give a, " ", " 12", " 3" */
    assert_words("smollm", "it's 5's", "it|'s| |5|'s");
}

static void afmoe_groups_digits_from_the_right(void **state)
{
    (void)state;
    assert_words("afmoe", "1", "1");
    assert_words("afmoe", "1234567", "1|234|567");
    assert_words("afmoe", "123456", "123|456");
    assert_words("afmoe", "12345,678x", "12|345|,|678|x");
    assert_words("afmoe", "a1234b", "a|1|234|b");
    assert_words("afmoe", ARABIC_3 "12345" ARABIC_3, ARABIC_3 "|123|45" ARABIC_3);
    /* The first group stays in the piece of the text before it. */
    assert_words("afmoe", "a  12", "a| | |12");
    assert_words("afmoe", "a  1234", "a| | |1|234");
    assert_words("afmoe", "1  1", "1| | |1");
}

static void afmoe_takes_scripts_out(void **state)
{
    (void)state;
    assert_words("afmoe", "ab" HAN HAN "cd", "ab|" HAN HAN "|cd");
    assert_words("afmoe", HAN HANGUL, HAN HANGUL); /* one class from 4E00 to FAFF */
    assert_words("afmoe", THAI_LOW THAI_HIGH, THAI_LOW "|" THAI_HIGH);
    assert_words("afmoe", "x " HAN, "x| |" HAN);
}

static void afmoe_cuts_by_its_pattern(void **state)
{
    (void)state;
    assert_words("afmoe", "it's", "it|'s");
    assert_words("afmoe", "foo_bar__baz", "foo|_bar|__|baz");
    assert_words("afmoe", "#caf\xC3\xA9 \xC3\xA9", "#caf|\xC3\xA9| \xC3\xA9");
    assert_words("afmoe", " !!\n\nx", " !!\n\n|x");
    assert_words("afmoe", E_ACUTE "x", E_ACUTE "x");
    assert_words("afmoe", CONTROL_A CONTROL_A "x", CONTROL_A "|" CONTROL_A "x");
    assert_words("afmoe", "a \n b", "a| \n| b");
    assert_words("afmoe", CONTROL_A "12", CONTROL_A "12"); /* what no alternative takes stays */
}

static void unknown_names_are_unknown(void **state)
{
    (void)state;
    assert_null(pretokenizer_find("", 0));
    assert_null(pretokenizer_find("qwen", 4));
    assert_null(pretokenizer_find("qwen22", 6));
    assert_non_null(pretokenizer_find("qwen22", 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qwen2_cuts_by_its_pattern),
        cmocka_unit_test(qwen35_joins_marks_to_letters),
        cmocka_unit_test(llama3_takes_digits_in_threes),
        cmocka_unit_test(gpt2_keeps_runs_together),
        cmocka_unit_test(smollm_takes_digits_out_first),
        cmocka_unit_test(afmoe_groups_digits_from_the_right),
        cmocka_unit_test(afmoe_takes_scripts_out),
        cmocka_unit_test(afmoe_cuts_by_its_pattern),
        cmocka_unit_test(unknown_names_are_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
