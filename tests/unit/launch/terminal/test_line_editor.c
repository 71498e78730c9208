/* launch/terminal/line_editor.c: what keys make of a message. The keys come through a pipe, all at
 * once; tests/e2e/test_cli_repl.py looks at the screen of a terminal. */
#include "tests/unit/cmocka_all.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "launch/terminal/history.h"
#include "launch/terminal/line_editor.h"
#include "launch/terminal/text_width.h"

static struct history *history;

static void complete(void *context, const char *text, size_t cursor, struct completion *completion)
{
    (void)context;
    static const char *const words[] = {"/help", "/set", "/show", "/system"};
    for (size_t i = 0; i < 4; i++)
        if (cursor > 0 && !strncmp(words[i], text, cursor))
            completion_offer(completion, 0, words[i]);
}

/* The event that the keys lead to; *message is malloc'ed on LINE_MESSAGE. */
static enum line_event type_into(const char *initial, const char *keys, size_t n, char **message)
{
    int fds[2];
    enum line_event event;
    struct line_editor *editor;
    assert_int_equal(pipe(fds), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
    assert_int_equal(write(fds[1], keys, n), n);
    close(fds[1]);
    const struct line_editor_config config = {
        .in_fd = fds[0],
        .out_fd = open("/dev/null", O_WRONLY),
        .prompt = ">>> ",
        .continuation = "... ",
        .external_editor = "sed -i s/old/new/",
        .history = history,
        .complete = complete,
    };
    assert_int_equal(line_editor_create(&editor, &config, NULL), LM_OK);
    *message = NULL;
    assert_int_equal(line_editor_read(editor, initial, &event, message, NULL), LM_OK);
    line_editor_destroy(editor);
    close(config.out_fd);
    close(fds[0]);
    return event;
}

static void assert_types(const char *keys, const char *expected)
{
    char *message;
    assert_int_equal(type_into(NULL, keys, strlen(keys), &message), LINE_MESSAGE);
    assert_string_equal(message, expected);
    free(message);
}

static void assert_event(const char *keys, enum line_event expected)
{
    char *message;
    assert_int_equal(type_into(NULL, keys, strlen(keys), &message), expected);
    free(message);
}

#define LEFT "\x1b[D"
#define RIGHT "\x1b[C"
#define UP "\x1b[A"
#define DOWN "\x1bOB"

static void moves_and_deletes(void **state)
{
    (void)state;
    assert_types("abc" LEFT LEFT "x\r", "axbc");
    assert_types("abc\x01x\x05y\r", "xabcy");
    assert_types("abc\x02\x02\x06x\r", "abxc");
    assert_types("abc\x1b[Hx\x1b[Fy\x1b[1~z\x1b[4~w\r", "zxabcyw");
    assert_types("abc\x7f\x08z\r", "az");
    assert_types("abc" LEFT LEFT "\x1b[3~\x04\r", "a");
    assert_types("one two three\x1b"
                 "b\x1b"
                 "bX\x1b"
                 "fY\r",
                 "one XtwoY three");
    assert_types("one two\x1b[1;5DX\x1b[1;5CY\r", "one XtwoY");
    assert_types("one two\x01\x1b"
                 "d\r",
                 " two");
    assert_types(LEFT RIGHT "\x7f\x1b[3~a\r", "a");
}

static void kills_and_yanks(void **state)
{
    (void)state;
    assert_types("one two three\x17\x17X\x19\r", "one Xtwo ");
    assert_types("one two\x01\x0b\x19\x19\r", "one twoone two");
    assert_types("one two" LEFT LEFT LEFT "\x15X\r", "Xtwo");
    assert_types("one\ntwo" UP "\x05\x0b!\r", "one!two"); /* Ctrl-K takes the line break */
}

static void characters_are_wide_combining_or_malformed(void **state)
{
    (void)state;
    assert_types("日本" LEFT "x\r", "日x本");
    assert_types("e\xcc\x81z" LEFT LEFT "x\r", "xe\xcc\x81z"); /* over e and its accent at once */
    assert_types("ae\xcc\x81\x7f\r", "a");
    assert_types("a\xff\xc3(b\xf0\x9f\x99\x82\r", "a(b\xf0\x9f\x99\x82");
    assert_types("a\xc2\x85"
                 "b\r",
                 "ab"); /* a control character of the upper set */
}

static void unknown_sequences_do_nothing(void **state)
{
    (void)state;
    assert_types("a\x1b[17~\x1b[1;9Pb\x1b[<0;1;1Mc\x1bzd\r", "abcd");
    assert_types("a\x1c\x1d\x1f"
                 "b\r",
                 "ab");
}

static void lines_continue(void **state)
{
    (void)state;
    assert_types("one\\\rtwo\r", "one\ntwo");
    assert_types("one\ntwo\x1b\rthree\r", "one\ntwo\nthree");
    assert_types("\"\"\"\rone\rtwo\"\"\"\r", "\"\"\"\none\ntwo\"\"\"");
    assert_types("a\nbc" UP "X" DOWN "Y\r", "aX\nbcY");
    assert_types("\x1b[200~one\r\ntwo\rthree\x1b[31m\tx\x1b[201~!\r", "one\ntwo\nthree[31m\tx!");
}

static void large_pastes_end(void **state)
{
    (void)state;
    enum { N = 200000 };
    char *keys = malloc(N + 20), *message;
    memcpy(keys, "\x1b[200~", 6);
    memset(keys + 6, 'x', N);
    memcpy(keys + 6 + N, "\x1b[201~\r", 7);
    assert_int_equal(type_into(NULL, keys, N + 13, &message), LINE_MESSAGE);
    assert_int_equal(strlen(message), N);
    free(message);
    free(keys);
}

static void unquotes_blocks(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"\"\"\"\none\ntwo\n\"\"\"", "one\ntwo"},
        {"\"\"\"one\"\"\"", "one"},
        {"\"\"\"\"\"\"", ""},
        {"say \"\"\"x\"\"\"", "say \"\"\"x\"\"\""},
        {"\"\"\"a\"\"\" b", "\"\"\"a\"\"\" b"},
        {"\"\"\"\n\"\"\"\n", ""},
    };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        char text[100];
        strcpy(text, pairs[i][0]);
        line_editor_unquote(text);
        assert_string_equal(text, pairs[i][1]);
    }
}

static void events(void **state)
{
    (void)state;
    assert_event("\x04", LINE_END);
    assert_event("abc", LINE_END); /* the input ended */
    assert_event("\x03", LINE_INTERRUPT);
    assert_types("abc\x03"
                 "d\r",
                 "d"); /* clears */
}

static void history_is_walked_and_searched(void **state)
{
    (void)state;
    assert_int_equal(history_open(&history, NULL, NULL), LM_OK);
    history_add(history, "first apple");
    history_add(history, "second\nline");
    history_add(history, "third apple");
    assert_types(UP UP UP UP UP "!\r", "first apple!"); /* the second UP moves between lines */
    assert_types("draft" UP DOWN "!\r", "draft!");
    assert_types("\x10\x10\x0e!\r", "third apple!");
    assert_types("\x12"
                 "app\r",
                 "third apple");
    assert_types("\x12"
                 "app\x12\r",
                 "first apple");
    assert_types("\x12"
                 "apx\x7fp\x12" LEFT "!\r",
                 "first! apple");
    assert_types("mine\x12"
                 "app\x03!\r",
                 "mine!");
    assert_types("\x12qq\r", "");
    history_close(history);
    history = NULL;
}

static void completes(void **state)
{
    (void)state;
    assert_types("/h\t1\r", "/help 1");
    assert_types("/s\t\t\ty\tx\r", "/system x");
    assert_types("/sh\tx\r", "/show x");
    assert_types("/q\t\r", "/q");
}

static void edits_externally(void **state)
{
    (void)state;
    assert_types("an old text\x07!\r", "an new text!");
    char *message;
    assert_int_equal(type_into("an old", "\x07\r", 2, &message), LINE_MESSAGE);
    assert_string_equal(message, "an new");
    free(message);
}

/* Every byte sequence leads to an event, and nothing is read or written out of bounds. */
static void random_keys_end(void **state)
{
    (void)state;
    static const char *const pieces[] = {
        "a",    "é",   "日",   "\x1b", "[",    "A",    "\x1b[200~", "\x1b[201~", "\x12",
        "\x7f", "\t",  "\n",   "\x0b", "\x15", "\x17", "\x19",      UP,          DOWN,
        LEFT,   RIGHT, "\xff", "\xe6", "\x03", "\\\r", "\"\"\""};
    srandom(7);
    for (int round = 0; round < 3000; round++) {
        char keys[400] = "", *message;
        for (int i = 0; i < 40; i++)
            strcat(keys, pieces[(size_t)random() % (sizeof(pieces) / sizeof(pieces[0]))]);
        type_into(NULL, keys, strlen(keys), &message);
        free(message);
    }
}

int main(void)
{
    text_width_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moves_and_deletes),
        cmocka_unit_test(kills_and_yanks),
        cmocka_unit_test(characters_are_wide_combining_or_malformed),
        cmocka_unit_test(unknown_sequences_do_nothing),
        cmocka_unit_test(lines_continue),
        cmocka_unit_test(large_pastes_end),
        cmocka_unit_test(unquotes_blocks),
        cmocka_unit_test(events),
        cmocka_unit_test(history_is_walked_and_searched),
        cmocka_unit_test(completes),
        cmocka_unit_test(edits_externally),
        cmocka_unit_test(random_keys_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
