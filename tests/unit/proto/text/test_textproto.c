/* proto/text/textproto.c: reading, merging, writing, access by path, errors. */
#include "tests/unit/cmocka_all.h"

#include <stdlib.h>

#include "proto/text/textproto.h"
#include "tests/unit/proto/text/sample.pb-c.h"

static Sample__All *create(void)
{
    return (Sample__All *)textproto_create(&sample__all__descriptor);
}

static void destroy(Sample__All *all)
{
    protobuf_c_message_free_unpacked(&all->base, NULL);
}

static void merge(Sample__All *all, const char *text)
{
    struct lm_error err = {0};
    if (textproto_merge(&all->base, "sample", text, strlen(text), NULL, NULL, &err) != LM_OK)
        fail_msg("%s", err.message);
}

static void assert_fails(const char *text, const char *expected)
{
    struct lm_error err = {0};
    Sample__All *all = create();
    assert_int_equal(textproto_merge(&all->base, "f", text, strlen(text), NULL, NULL, &err),
                     LM_E_USAGE);
    assert_string_equal(err.message, expected);
    destroy(all);
}

static void assert_writes(const Sample__All *all, const char *expected)
{
    char *text = textproto_write(&all->base, NULL, NULL);
    assert_string_equal(text, expected);
    free(text);
}

static void reads_every_type(void **state)
{
    (void)state;
    Sample__All *all = create();
    merge(all, "# a comment\n"
               "i32: -2147483648 i64: 0x7fffffffffffffff, u32: 037; u64: 18446744073709551615\n"
               "s32: - 5 real: 1.5f precise: -inf yes: true color: DARK_BLUE\n"
               "text: \"caf\\303\\251 \" 'and \\u00e9\\x21'  blob: \"\\000\\377\"\n"
               "leaf { name: \"a\" child < count: 3 > } numbers: [1, 2] numbers: 3\n"
               "leaves: [{count: 1}, <count: 2>] words: [] counts { key: \"k\" value: 9 }\n"
               "by_leaf: { count: 8 } cache_size: \"1.5KiB\" wait_time: \"2m\"");
    assert_int_equal(all->i32, INT32_MIN);
    assert_int_equal(all->i64, INT64_MAX);
    assert_int_equal(all->u32, 31);
    assert_true(all->u64 == UINT64_MAX);
    assert_int_equal(all->s32, -5);
    assert_true(all->real == 1.5f && all->has_real && all->precise < -1e308 && all->yes);
    assert_int_equal(all->color, SAMPLE__COLOR__DARK_BLUE);
    assert_string_equal(all->text, "caf\xc3\xa9 and \xc3\xa9!");
    assert_int_equal(all->blob.len, 2);
    assert_memory_equal(all->blob.data, "\0\xff", 2);
    assert_int_equal(all->leaf->child->count, 3);
    assert_int_equal(all->n_numbers, 3);
    assert_int_equal(all->numbers[2], 3);
    assert_int_equal(all->n_leaves, 2);
    assert_int_equal(all->n_words, 0);
    assert_int_equal(all->counts[0]->value, 9);
    assert_int_equal(all->choice_case, SAMPLE__ALL__CHOICE_BY_LEAF);
    assert_int_equal(all->cache_size, 1536);
    assert_true(all->wait_time == 120);
    assert_false(all->has_with_default);
    assert_int_equal(all->with_default, 41);
    destroy(all);
}

static void later_texts_replace_scalars_and_lists_and_merge_messages(void **state)
{
    (void)state;
    Sample__All *all = create();
    merge(all, "i32: 1 text: 'a' numbers: [1, 2, 3] leaf { name: 'n' count: 1 } by_name: 'x'");
    merge(all, "i32: 2 text: 'b' numbers: 9 leaf { count: 2 } by_number: 5");
    assert_writes(all, "i32: 2\ntext: \"b\"\nleaf {\n  name: \"n\"\n  count: 2\n}\n"
                       "numbers: 9\nby_number: 5\n");
    merge(all, "numbers: []");
    assert_int_equal(all->n_numbers, 0);
    destroy(all);
}

static void errors_name_the_place_and_the_nearest_name(void **state)
{
    (void)state;
    assert_fails("i32: 1\n  leaf {\n    nmae: 'x' }",
                 "f:3:5: unknown field nmae in sample.Leaf, did you mean name?");
    assert_fails("xyzzy: 1", "f:1:1: unknown field xyzzy in sample.All");
    assert_fails("text: '\xc3\xa9\xc3\xa9' i32: x", "f:1:17: i32 must be an integer, got x");
    assert_fails("color: GREN", "f:1:8: color has no value GREN, did you mean GREEN?");
    assert_fails("color: 3", "f:1:8: color has no value 3");
    assert_fails("i32: 1 i32: 2", "f:1:8: i32 is given twice");
    assert_fails("leaf {} leaf {}", "f:1:9: leaf is given twice");
    assert_fails("by_name: 'a' by_number: 1", "f:1:14: by_name and by_number exclude each other");
    assert_fails("i32: 2147483648", "f:1:6: i32 must be an integer, got 2147483648");
    assert_fails("u32: -1", "f:1:6: u32 must be a non-negative integer, got -1");
    assert_fails("i32: 1.5", "f:1:6: i32 must be an integer, got 1.5");
    assert_fails("i32: 08", "f:1:6: i32 must be an integer, got 08");
    assert_fails("i32: '5'", "f:1:6: i32 must be an integer, got 5");
    assert_fails("yes: maybe", "f:1:6: yes must be true or false, got maybe");
    assert_fails("real: 1e39", "f:1:7: real must be a number, got 1e39");
    assert_fails("real: 0x1e3", "f:1:7: real must be a number, got 0x1e3");
    assert_fails("text: 5", "f:1:7: text must be a string, got 5");
    assert_fails("text: '\\377'", "f:1:7: text is not UTF-8 text");
    assert_fails("text: 'a\\0'", "f:1:7: text is not UTF-8 text");
    assert_fails("text: 'a\nb'", "f:1:7: string without its closing '");
    assert_fails("text: 'a\\", "f:1:7: string without its closing '");
    assert_fails("text: '\\q'", "f:1:7: unknown escape in string");
    assert_fails("cache_size: '5 apples'",
                 "f:1:13: cache_size must be a size such as 4096 or \"1.5GiB\", got 5 apples");
    assert_fails("i32 5", "f:1:5: expected ':' after i32, got '5'");
    assert_fails("i32:", "f:1:5: expected a value of i32, got the end");
    assert_fails("i32: [1]", "f:1:6: a list for i32, which takes one value");
    assert_fails("numbers: [1 2]", "f:1:13: expected ',' or ']' in the list of numbers, got '2'");
    assert_fails("numbers: [1,]", "f:1:13: expected a value of numbers, got ']'");
    assert_fails("leaf { count: 1", "f:1:16: the text ends before '}'");
    assert_fails("leaf: 5", "f:1:7: expected '{' after leaf, got '5'");
    assert_fails("leaf { count: 1 >", "f:1:17: expected a field name, got '>'");
    assert_fails("}", "f:1:1: expected a field name, got '}'");
    assert_fails("[a.b]: 1", "f:1:1: extensions are not supported");
    assert_fails("i32: \x01", "f:1:6: unexpected byte 0x01");
}

static void bounds_nesting(void **state)
{
    (void)state;
    char text[4000] = "leaf {";
    for (int i = 0; i < 300; i++)
        strcat(text, "child {");
    struct lm_error err = {0};
    Sample__All *all = create();
    assert_int_equal(textproto_merge(&all->base, "f", text, strlen(text), NULL, NULL, &err),
                     LM_E_USAGE);
    assert_non_null(strstr(err.message, "nested deeper"));
    destroy(all);
}

static void record_path(void *context, const char *path)
{
    strcat(context, path);
    strcat(context, " ");
}

static const char *comment_on_count(void *context, const char *path)
{
    return strcmp(path, "leaf.count") ? NULL : context;
}

static void reports_paths_and_writes_comments(void **state)
{
    (void)state;
    const char *text = "i32: 1 leaf { child { count: 1 } count: 2 } numbers: [4, 5]";
    char paths[200] = "", origin[] = "from a test";
    Sample__All *all = create();
    assert_int_equal(textproto_merge(&all->base, "f", text, strlen(text), record_path, paths, NULL),
                     LM_OK);
    assert_string_equal(paths, "i32 leaf.child.count leaf.child leaf.count leaf numbers ");
    char *written = textproto_write(&all->base, comment_on_count, origin);
    assert_string_equal(written, "i32: 1\nleaf {\n  count: 2  # from a test\n  child {\n"
                                 "    count: 1\n  }\n}\nnumbers: 4\nnumbers: 5\n");
    free(written);
    destroy(all);
}

static void assert_plain(Sample__All *all, const char *path, const char *text, const char *again)
{
    struct lm_error err = {0};
    char *got = NULL;
    if (textproto_set_plain(&all->base, path, text, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(textproto_get_plain(&all->base, path, 0, &got, NULL), LM_OK);
    assert_string_equal(got, again);
    free(got);
}

static void plain_values_are_spelled_as_on_the_command_line(void **state)
{
    (void)state;
    struct lm_error err = {0};
    char *got = "";
    Sample__All *all = create();
    assert_plain(all, "leaf.child.count", "-5", "-5");
    assert_plain(all, "color", "dark-blue", "dark_blue");
    assert_plain(all, "color", "RED", "red");
    assert_plain(all, "yes", "on", "on");
    assert_plain(all, "text", "it's \"x\"", "it's \"x\"");
    assert_plain(all, "cache_size", "24GiB", "25769803776");
    assert_plain(all, "wait_time", "150ms", "0.15");
    assert_plain(all, "precise", "-0.1", "-0.1");
    assert_plain(all, "words", "one", "one");
    assert_int_equal(textproto_set_plain(&all->base, "words", "two", NULL), LM_OK);
    assert_int_equal(all->n_words, 2);

    assert_int_equal(textproto_set_plain(&all->base, "leaf.count", "much", &err), LM_E_USAGE);
    assert_string_equal(err.message, "count must be an integer, got much");
    textproto_clear(&all->base, "leaf.child.count");
    textproto_clear(&all->base, "by_leaf.count");
    assert_int_equal(textproto_get_plain(&all->base, "leaf.child.count", 0, &got, NULL), LM_OK);
    assert_null(got);
    assert_null(textproto_find(&sample__all__descriptor, "leaf.nothing"));
    assert_null(textproto_find(&sample__all__descriptor, "i32.x"));
    assert_null(textproto_find(&sample__all__descriptor, ""));
    destroy(all);
}

static void clearing_restores_defaults(void **state)
{
    (void)state;
    Sample__All *all = create();
    merge(all, "with_default: 3 text_default: 'x' color: RED");
    textproto_clear(&all->base, "with_default");
    textproto_clear(&all->base, "text_default");
    textproto_clear(&all->base, "color");
    assert_int_equal(all->with_default, 41);
    assert_string_equal(all->text_default, "preset");
    assert_int_equal(all->color, SAMPLE__COLOR__GREEN);
    assert_writes(all, "");
    destroy(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_type),
        cmocka_unit_test(later_texts_replace_scalars_and_lists_and_merge_messages),
        cmocka_unit_test(errors_name_the_place_and_the_nearest_name),
        cmocka_unit_test(bounds_nesting),
        cmocka_unit_test(reports_paths_and_writes_comments),
        cmocka_unit_test(plain_values_are_spelled_as_on_the_command_line),
        cmocka_unit_test(clearing_restores_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
