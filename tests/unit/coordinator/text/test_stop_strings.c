/* coordinator/text/stop_strings.c against its definition: any chunking of the text gives what a
 * search in the whole text gives, and no push passes on a part of a stop string. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/text/stop_strings.h"

/* The text before the earliest match in the whole text; *found: the longest string there. */
static size_t find_in_whole(const char *text, const char *const *strings, size_t n,
                            const char **found)
{
    *found = NULL;
    for (size_t at = 0; text[at]; at++) {
        for (size_t i = 0; i < n; i++)
            if (*strings[i] && !strncmp(text + at, strings[i], strlen(strings[i])) &&
                (!*found || strlen(strings[i]) > strlen(*found)))
                *found = strings[i];
        if (*found) return at;
    }
    return strlen(text);
}

/* Pushes text in pieces of random lengths up to n_piece. */
static void assert_stops(const char *text, const char *const *strings, size_t n, size_t n_piece)
{
    char out[1000] = "";
    const char *expected, *piece;
    size_t length = strlen(text), n_out;
    struct stop_strings *stops;
    const size_t n_before = find_in_whole(text, strings, n, &expected);
    assert_int_equal(stop_strings_create(&stops, strings, n, NULL), LM_OK);
    bool stopped = false;
    for (size_t i = 0; i < length && !stopped;) {
        size_t take = 1 + (size_t)random() % n_piece;
        if (take > length - i) take = length - i;
        stopped = stop_strings_push(stops, text + i, take, i + take == length, &piece, &n_out);
        strncat(out, piece, n_out);
        assert_true(strlen(out) <= n_before);
        i += take;
    }
    assert_int_equal(strlen(out), n_before);
    assert_memory_equal(out, text, n_before);
    assert_int_equal(stopped, expected != NULL);
    if (expected) assert_string_equal(stop_strings_found(stops), expected);
    stop_strings_destroy(stops);
}

static void the_earliest_and_then_the_longest_wins(void **state)
{
    (void)state;
    static const char *const strings[] = {"bc", "abcd", "", "abcde", "\xe6\x97\xa5"};
    static const char *const texts[] = {
        "xabc", "xabcd", "xabcde", "xabcx", "abab\xe6\x97\xa5 z", "nothing", "xab", "\xe6\x97"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        for (size_t n_piece = 1; n_piece < 8; n_piece++)
            assert_stops(texts[i], strings, 5, n_piece);
}

static void random_texts_agree_with_the_definition(void **state)
{
    (void)state;
    srandom(11);
    for (int round = 0; round < 20000; round++) {
        char text[40], words[4][8];
        const char *strings[4];
        const size_t n = (size_t)random() % 5, length = (size_t)random() % 30;
        for (size_t i = 0; i < length; i++)
            text[i] = (char)('a' + random() % 2);
        text[length] = '\0';
        for (size_t s = 0; s < n; s++) {
            const size_t m = (size_t)random() % 7;
            for (size_t i = 0; i < m; i++)
                words[s][i] = (char)('a' + random() % 2);
            words[s][m] = '\0';
            strings[s] = words[s];
        }
        assert_stops(text, strings, n, 1 + (size_t)random() % 6);
    }
}

static void too_much_is_refused(void **state)
{
    (void)state;
    struct stop_strings *stops;
    const char *strings[65];
    char endless[1026];
    for (size_t i = 0; i < 65; i++)
        strings[i] = "x";
    memset(endless, 'x', 1025);
    endless[1025] = '\0';
    assert_int_equal(stop_strings_create(&stops, strings, 65, NULL), LM_E_USAGE);
    strings[0] = endless;
    assert_int_equal(stop_strings_create(&stops, strings, 1, NULL), LM_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_earliest_and_then_the_longest_wins),
        cmocka_unit_test(random_texts_agree_with_the_definition),
        cmocka_unit_test(too_much_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
