/* launch/terminal/history.c: what survives a session. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/terminal/history.h"

static char folder[64], path[128];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/lean-history-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof(path), "%s/a/b/history", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

static struct history *open_history(void)
{
    struct history *history;
    assert_int_equal(history_open(&history, path, NULL), LM_OK);
    return history;
}

static void entries_come_back(void **state)
{
    (void)state;
    struct history *history = open_history();
    assert_int_equal(history_count(history), 0);
    history_add(history, "one");
    history_add(history, "one");
    history_add(history, "");
    history_add(history, "two\nlines \\n and a \\ backslash\\");
    assert_int_equal(history_count(history), 2);
    history_close(history);

    history = open_history();
    assert_int_equal(history_count(history), 2);
    assert_string_equal(history_at(history, 0), "one");
    assert_string_equal(history_at(history, 1), "two\nlines \\n and a \\ backslash\\");
    history_close(history);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

static void two_sessions_share_the_file(void **state)
{
    (void)state;
    struct history *first = open_history(), *second = open_history();
    history_add(first, "from the first");
    history_add(second, "from the second");
    history_close(first);
    history_close(second);
    struct history *third = open_history();
    assert_int_equal(history_count(third), 2);
    history_close(third);
}

static void only_the_newest_are_kept(void **state)
{
    (void)state;
    char text[32];
    struct history *history = open_history();
    for (int i = 0; i < HISTORY_MAX + 5; i++) {
        snprintf(text, sizeof(text), "entry %d", i);
        history_add(history, text);
    }
    assert_int_equal(history_count(history), HISTORY_MAX);
    assert_string_equal(history_at(history, 0), "entry 5");
    history_close(history);

    history_close(open_history()); /* shortens the file */
    FILE *file = fopen(path, "r");
    int n_line = 0;
    for (int c; (c = fgetc(file)) != EOF;)
        n_line += c == '\n';
    fclose(file);
    assert_int_equal(n_line, HISTORY_MAX);
}

static void without_a_file_it_forgets(void **state)
{
    (void)state;
    struct history *history;
    assert_int_equal(history_open(&history, NULL, NULL), LM_OK);
    history_add(history, "one");
    assert_int_equal(history_count(history), 1);
    history_close(history);
    assert_int_not_equal(access(path, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(entries_come_back, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(two_sessions_share_the_file, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(only_the_newest_are_kept, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(without_a_file_it_forgets, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
