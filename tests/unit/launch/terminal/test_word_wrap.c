/* launch/terminal/word_wrap.c and text_width.c: lines break between words, code stays. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

#include "launch/terminal/text_width.h"
#include "launch/terminal/word_wrap.h"

/* text wrapped at n_column, pushed in pieces of n_piece characters. */
static char *wrapped(const char *text, int n_column, size_t n_piece)
{
    struct word_wrap wrap;
    char *out = NULL;
    size_t n_out, n = strlen(text);
    FILE *file = open_memstream(&out, &n_out);
    word_wrap_init(&wrap, n_column);
    for (size_t i = 0; i < n;) {
        size_t end = i;
        int width;
        for (size_t k = 0; k < n_piece && end < n; k++)
            end += text_char(text + end, n - end, &width);
        word_wrap_push(&wrap, text + i, end - i, file);
        i = end;
    }
    word_wrap_flush(&wrap, file);
    fclose(file);
    return out;
}

static void assert_wraps(const char *text, int n_column, const char *expected)
{
    for (size_t n_piece = 1; n_piece < 20; n_piece++) {
        char *out = wrapped(text, n_column, n_piece);
        assert_string_equal(out, expected);
        free(out);
    }
}

static void lines_break_between_words(void **state)
{
    (void)state;
    assert_wraps("the quick brown fox", 10, "the quick\nbrown fox");
    assert_wraps("the quick brown fox", 0, "the quick brown fox");
    assert_wraps("12345 67890", 11, "12345 67890");
    assert_wraps("a  b   c", 80, "a  b   c");
    assert_wraps("one\n\n  two three", 8, "one\n\n  two\nthree");
    assert_wraps("a superlongwordthatdoesnotfit b", 10, "a\nsuperlongwordthatdoesnotfit\nb");
}

static void code_stays(void **state)
{
    (void)state;
    assert_wraps("ab cd ef\n```c\nint main(void) { return 0; }\n```\nab cd ef", 6,
                 "ab cd\nef\n```c\nint main(void) { return 0; }\n```\nab cd\nef");
}

static void wide_characters_break_anywhere_and_marks_stay_on_their_letter(void **state)
{
    (void)state;
    assert_wraps("日本語文", 5, "日本\n語文");
    assert_wraps("e\xcc\x81"
                 "e\xcc\x81 e\xcc\x81",
                 4,
                 "e\xcc\x81"
                 "e\xcc\x81 e\xcc\x81");
    assert_int_equal(text_columns("日本 e\xcc\x81\xff", 11), 7);
}

int main(void)
{
    text_width_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_break_between_words),
        cmocka_unit_test(code_stays),
        cmocka_unit_test(wide_characters_break_anywhere_and_marks_stay_on_their_letter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
