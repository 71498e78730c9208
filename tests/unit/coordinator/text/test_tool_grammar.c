/* What a call may look like, and that whatever the grammar lets through is read as a call. */
#include <json-c/json.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/text/tool_grammar.h"
#include "coordinator/text/tool_parser.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/coordinator/grammar/grammar_case.h"

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"turn\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"way\":{\"type\":\"string\",\"enum\":[\"left\",\"a <b>\"]},"
    "\"fast\":{\"enum\":[true,false,null,7]},\"why\":{\"type\":\"string\"}},"
    "\"required\":[\"way\"]}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"stop.now\"}}]";

static struct grammar *build(enum tool_format format, const char *tools,
                             enum tool_grammar_scope scope, bool parallel)
{
    struct grammar *grammar = NULL;
    struct lm_error err = {0};
    struct json_object *list = json_tokener_parse(tools);
    assert_non_null(list);
    if (tool_grammar_build(&grammar, format, list, scope, parallel, &err) != LM_OK)
        fail_msg("%s", err.message);
    json_object_put(list);
    return grammar;
}

static void check(struct grammar *grammar, const char *text, enum case_result expected)
{
    const enum case_result got = case_try(&vocab, grammar, text, strlen(text));
    if (got != expected) fail_msg("%d instead of %d: %s", (int)got, (int)expected, text);
}

static void test_one_json_call(void **state)
{
    (void)state;
    struct grammar *grammar = build(TOOL_FORMAT_HERMES, tools_text, TOOL_GRAMMAR_CALL, true);
    check(grammar,
          "<tool_call>\n{\"name\": \"turn\", \"arguments\": {\"x\": [1, {}]}}\n</tool_call>",
          CASE_WHOLE);
    check(grammar, "<tool_call>{\"name\":\"stop.now\",\"arguments\":{}}</tool_call>", CASE_WHOLE);
    check(grammar, "<tool_call>{\"name\":\"stop", CASE_BEGINNING);
    check(grammar, "<tool_call>{\"name\":\"stop\"", CASE_REFUSED);
    check(grammar, "<tool_call>{\"arguments\"", CASE_REFUSED);
    check(grammar, "<tool_call>{\"name\":\"turn\",\"arguments\":[", CASE_REFUSED);
    check(grammar, "<tool_call>\n<", CASE_REFUSED);
    check(grammar, "{", CASE_REFUSED);
    check(grammar, "<tool_call>{\"name\":\"turn\",\"arguments\":{}}</tool_call>\n", CASE_REFUSED);
    grammar_unref(grammar);
}

static void test_one_xml_call(void **state)
{
    (void)state;
    struct grammar *grammar = build(TOOL_FORMAT_QWEN_XML, tools_text, TOOL_GRAMMAR_CALL, true);
    check(grammar,
          "<tool_call>\n<function=turn>\n<parameter=any thing>\na\n</param\n</parameter>\n"
          "</function>\n</tool_call>",
          CASE_WHOLE);
    check(grammar, "<tool_call><function=stop.now></function></tool_call>", CASE_WHOLE);
    check(grammar, "<function=stop.now>\n</function>", CASE_WHOLE);
    check(grammar, "<function=stop.now>\n</function>\n</tool_call>", CASE_WHOLE);
    check(grammar, "<function=go>", CASE_REFUSED);
    check(grammar, "<tool_call>\n{", CASE_REFUSED);
    check(grammar, "<function=turn>\n<parameter=a>\nx</parameter>text", CASE_REFUSED);
    grammar_unref(grammar);
}

static void test_an_answer_of_calls(void **state)
{
    (void)state;
    static const char call[] = "<tool_call>\n<function=turn>\n<parameter=way>\nleft\n</parameter>\n"
                               "</function>\n</tool_call>";
    char text[600];
    struct grammar *grammar = build(TOOL_FORMAT_QWEN_XML, tools_text, TOOL_GRAMMAR_ANSWER, true);
    check(grammar, call, CASE_WHOLE);
    snprintf(text, sizeof(text), "\n\n%s\n%s", call, call);
    check(grammar, text, CASE_WHOLE);
    check(grammar, "Text", CASE_REFUSED);
    check(grammar, "", CASE_BEGINNING);
    check(grammar, "<tool_call><function=turn></function>", CASE_REFUSED); /* way is required */
    check(grammar, "<tool_call><function=turn><parameter=way>\nup", CASE_REFUSED);
    check(grammar,
          "<tool_call><function=turn><parameter=way>\na <b></parameter><parameter=fast>\nfalse\n"
          "</parameter><parameter=why>\n\n</parameter></function></tool_call>",
          CASE_WHOLE);
    check(grammar, "<tool_call><function=turn><parameter=fast>\ntrue</parameter>", CASE_REFUSED);
    check(grammar, "<tool_call><function=stop.now><parameter", CASE_REFUSED);
    grammar_unref(grammar);
    grammar = build(TOOL_FORMAT_QWEN_XML, tools_text, TOOL_GRAMMAR_ANSWER, false);
    check(grammar, call, CASE_WHOLE);
    snprintf(text, sizeof(text), "%s\n", call);
    check(grammar, text, CASE_REFUSED);
    grammar_unref(grammar);
}

/* Between the tags of parameter a of tool f, with these properties. */
static void check_value(const char *properties, const char *value, enum case_result expected)
{
    char tools[600], text[300];
    snprintf(tools, sizeof(tools),
             "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{%s},\"$defs\":"
             "{\"d\":{\"type\":\"boolean\"}}}}}]",
             properties);
    snprintf(text, sizeof(text),
             "<tool_call><function=f><parameter=a>\n%s\n</parameter></function></tool_call>",
             value);
    struct grammar *grammar = build(TOOL_FORMAT_QWEN_XML, tools, TOOL_GRAMMAR_ANSWER, false);
    check(grammar, text, expected);
    grammar_unref(grammar);
}

static void test_values_by_schema(void **state)
{
    (void)state;
    check_value("\"a\":{\"type\":\"integer\",\"maximum\":9}", "7", CASE_WHOLE);
    check_value("\"a\":{\"type\":\"integer\",\"maximum\":9}", "10", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}", "[true, false]",
                CASE_WHOLE);
    check_value("\"a\":{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}", "[1]", CASE_REFUSED);
    check_value("\"a\":{\"$ref\":\"#/$defs/d\"}", "true", CASE_WHOLE);
    check_value("\"a\":{\"$ref\":\"#/$defs/d\"}", "1", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\"}", "a\n<b>\"\\", CASE_WHOLE);
    check_value("\"a\":{\"type\":\"string\",\"maxLength\":3}", "\xC3\xA9\n\"", CASE_WHOLE);
    check_value("\"a\":{\"type\":\"string\",\"maxLength\":3}", "abcd", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\",\"maxLength\":3}", "<", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\",\"minLength\":1}", "", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\",\"pattern\":\"^a+$\",\"minLength\":2}", "aa",
                CASE_WHOLE);
    check_value("\"a\":{\"type\":\"string\",\"pattern\":\"^a+$\",\"minLength\":2}", "a",
                CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\",\"format\":\"date\"}", "2026-11-22", CASE_WHOLE);
    check_value("\"a\":{\"type\":\"string\",\"format\":\"date\"}", "today", CASE_REFUSED);
    check_value("\"a\":{\"type\":\"string\",\"format\":\"other\"}", "today", CASE_WHOLE);
}

static void test_json_arguments_by_schema(void **state)
{
    (void)state;
    struct grammar *grammar = build(
        TOOL_FORMAT_HERMES,
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":"
        "{\"type\":\"integer\"}},\"required\":[\"a\"]}}}]",
        TOOL_GRAMMAR_ANSWER, false);
    check(grammar, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>",
          CASE_WHOLE);
    check(grammar, "<tool_call>{\"name\": \"f\", \"arguments\": {}", CASE_REFUSED);
    check(grammar, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", CASE_REFUSED);
    grammar_unref(grammar);
}

static void test_schemas_that_cannot_be_held_to_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *property;
        enum lm_status status;
    } cases[] = {
        {"\"a\":{\"type\":\"string\",\"pattern\":\"(?=x)\"}", LM_E_UNSUPPORTED},
        {"\"a\":{\"type\":\"string\",\"pattern\":\"(\"}", LM_E_FORMAT},
        {"\"a\":{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", LM_E_FORMAT},
        {"\"a\":{\"type\":\"integer\",\"not\":{}}", LM_E_UNSUPPORTED},
        {"\"a<b\":{\"type\":\"string\"}", LM_E_UNSUPPORTED},
        {"\"a\":{\"not\":{}}", LM_E_UNSUPPORTED},
        {"\"a\":{}},\"anyOf\":[{}],\"x\":{", LM_E_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[300];
        struct grammar *grammar;
        struct lm_error err = {0};
        snprintf(text, sizeof(text),
                 "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{%s}}}}]",
                 cases[i].property);
        struct json_object *tools = json_tokener_parse(text);
        assert_int_equal(tool_grammar_build(&grammar, TOOL_FORMAT_QWEN_XML, tools,
                                            TOOL_GRAMMAR_ANSWER, true, &err),
                         cases[i].status);
        assert_memory_equal(err.message, "tool f", 6);
        json_object_put(tools);
    }
}

/* ---- texts that the grammar lets through are calls */

struct reading {
    size_t n_begin, n_end;
};

static void on_text(void *context, const char *bytes, size_t n)
{
    (void)context;
    fail_msg("text outside of a call: %.*s", (int)n, bytes);
}

static void on_call(void *context, const char *name, size_t n)
{
    (void)name, (void)n;
    ((struct reading *)context)->n_begin++;
}

static void on_arguments(void *context, const char *bytes, size_t n)
{
    (void)context, (void)bytes, (void)n;
}

static void on_call_end(void *context)
{
    ((struct reading *)context)->n_end++;
}

/* A random walk through the masks, drawn to ends: the text of one answer. */
static size_t walk(struct grammar *grammar, uint32_t *seed, char *text, size_t size)
{
    static const char closing[] = "</function>\n</tool_call></parameter>\"}";
    size_t n = 0;
    struct grammar_matcher *matcher = case_start(&vocab, grammar, "", 0);
    while (n + 8 < size) {
        const uint32_t *mask = grammar_matcher_mask(matcher);
        size_t id = CASE_N_VOCAB;
        *seed = *seed * 1664525 + 1013904223;
        if (grammar_matcher_complete(matcher) && *seed >> 30 == 0) break;
        for (size_t i = 0; n > 40 && *seed >> 29 && i < sizeof(closing) - 1; i++) {
            const unsigned char c = (unsigned char)closing[(*seed >> 8) % (sizeof(closing) - 1)];
            *seed = *seed * 1664525 + 1013904223;
            if (mask[c / 32] >> c % 32 & 1) id = c;
        }
        for (size_t tries = 0; id == CASE_N_VOCAB && tries < 100000; tries++) {
            *seed = *seed * 1664525 + 1013904223;
            const size_t other = (*seed >> 8) % CASE_END;
            if (vocab.tokens[other].n && mask[other / 32] >> other % 32 & 1) id = other;
        }
        if (id == CASE_N_VOCAB) break;
        assert_true(grammar_matcher_take(matcher, vocab.tokens[id].bytes, vocab.tokens[id].n));
        memcpy(text + n, vocab.tokens[id].bytes, vocab.tokens[id].n);
        n += vocab.tokens[id].n;
    }
    const bool complete = grammar_matcher_complete(matcher);
    grammar_matcher_destroy(matcher);
    return complete ? n : 0;
}

static void test_what_the_grammar_lets_through_is_read_as_calls(void **state)
{
    (void)state;
    static const enum tool_grammar_scope scopes[] = {TOOL_GRAMMAR_CALL, TOOL_GRAMMAR_ANSWER};
    struct json_object *tools = json_tokener_parse(tools_text);
    uint32_t seed = 11;
    for (int round = 0; round < 2 * (TOOL_FORMAT_N - 1); round++) {
        const enum tool_format format = (enum tool_format)(1 + round / 2);
        const bool parallel = round / 2 % 2;
        struct grammar *grammar = build(format, tools_text, scopes[round % 2], parallel);
        size_t n_complete = 0;
        for (int i = 0; i < 150; i++) {
            char text[600];
            const size_t n = walk(grammar, &seed, text, sizeof(text));
            if (!n) continue;
            struct reading reading = {0};
            const struct tool_sink sink = {on_text, on_call, on_arguments, on_call_end, &reading};
            struct tool_parser *parser;
            assert_int_equal(tool_parser_create(&parser, format, tools, 0, &sink, NULL), LM_OK);
            tool_parser_push(parser, text, n);
            tool_parser_finish(parser, false);
            tool_parser_destroy(parser);
            if (reading.n_begin != reading.n_end || reading.n_end < 1 ||
                (!parallel && reading.n_end > 1))
                fail_msg("%s: %zu calls, %zu ends: %.*s", tool_format_name(format),
                         reading.n_begin, reading.n_end, (int)n, text);
            n_complete++;
        }
        if (n_complete < 5) fail_msg("%s: only %zu texts", tool_format_name(format), n_complete);
        grammar_unref(grammar);
    }
    json_object_put(tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_json_call),
        cmocka_unit_test(test_one_xml_call),
        cmocka_unit_test(test_an_answer_of_calls),
        cmocka_unit_test(test_values_by_schema),
        cmocka_unit_test(test_json_arguments_by_schema),
        cmocka_unit_test(test_schemas_that_cannot_be_held_to_are_refused),
        cmocka_unit_test(test_what_the_grammar_lets_through_is_read_as_calls),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
