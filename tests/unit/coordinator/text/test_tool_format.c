/* Which format a template's text calls for, and messages for templates that know no tools. */
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "coordinator/text/tool_format.h"
#include "coordinator/text/tool_parser.h"
#include "tests/unit/cmocka_all.h"

static void test_formats_follow_from_the_template(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        enum tool_format format;
    } cases[] = {
        {"{% if tools %}<tool_call>\n<function=example>", TOOL_FORMAT_QWEN_XML},
        {"{{ tools }} <tool_call>\n{\"name\": <function-name>}", TOOL_FORMAT_HERMES},
        {"{{ tools }} <tool_call>name\n<arg_key>k</arg_key>", TOOL_FORMAT_GLM},
        {"{{ tools }} <|python_tag|>", TOOL_FORMAT_LLAMA},
        {"{{ tools }} <\xef\xbd\x9ctool\xe2\x96\x81sep\xef\xbd\x9c>\n```json",
         TOOL_FORMAT_DEEPSEEK_V3},
        {"{{ tools }} <\xef\xbd\x9ctool\xe2\x96\x81sep\xef\xbd\x9c>", TOOL_FORMAT_DEEPSEEK_V31},
        {"<\xef\xbd\x9ctool\xe2\x96\x81sep\xef\xbd\x9c>", TOOL_FORMAT_DEEPSEEK_V31},
        {"{{ tools }} {% set mark = '\xef\xbd\x9c"
         "DSML\xef\xbd\x9c' %}",
         TOOL_FORMAT_DSML},
        {"{{ tools }} <|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>", TOOL_FORMAT_KIMI},
        {"{{ tools }} <minimax:tool_call>", TOOL_FORMAT_INVOKE},
        {"{{ tools }} <|start|>assistant<|channel|>final", TOOL_FORMAT_HARMONY},
        {"{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS]", TOOL_FORMAT_MISTRAL},
        {"{{ tools }} [TOOL_CALLS]{{ name }}[ARGS]", TOOL_FORMAT_MISTRAL_ARGS},
        {"{{ xml_tools }} <tool_call>{\"name\": }", TOOL_FORMAT_GENERIC},
        {"{{ toolset }} <tool_call>{\"name\": }", TOOL_FORMAT_GENERIC},
        {"<tool_call>{{ toolset }} {{ tools", TOOL_FORMAT_HERMES},
        {"{{ messages }}", TOOL_FORMAT_GENERIC},
        {"", TOOL_FORMAT_GENERIC},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(tool_format_of_template(cases[i].source, strlen(cases[i].source)),
                         cases[i].format);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = TOOL_FORMAT_AUTO; i < TOOL_FORMAT_N; i++) {
        enum tool_format format;
        assert_true(tool_format_from_name(&format, tool_format_name((enum tool_format)i)));
        assert_int_equal(format, i);
    }
    enum tool_format format;
    assert_false(tool_format_from_name(&format, "xml"));
}

static const char *generic(const char *messages, const char *tools)
{
    static char text[4000];
    struct json_object *in = json_tokener_parse(messages), *out = NULL;
    struct json_object *definitions = tools ? json_tokener_parse(tools) : NULL;
    assert_int_equal(tool_format_generic_messages(&out, in, definitions, NULL), LM_OK);
    strcpy(text, json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN |
                                                         JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(in);
    json_object_put(out);
    json_object_put(definitions);
    return text;
}

static void test_definitions_join_the_system_message(void **state)
{
    (void)state;
    static const char tools[] = "[{\"name\":\"f\"},{\"name\":\"g\"}]";
    const char *text = generic("[{\"role\":\"user\",\"content\":\"q\"}]", tools);
    static const char begin[] = "[{\"role\":\"system\",\"content\":\"# Tools\\n\\n";
    assert_memory_equal(text, begin, sizeof(begin) - 1);
    assert_non_null(strstr(text,
                           "<tools>\\n{ \\\"name\\\": \\\"f\\\" }\\n{ \\\"name\\\": \\\"g\\\" }"
                           "\\n</tools>"));
    assert_non_null(strstr(text, "\"},{\"role\":\"user\",\"content\":\"q\"}]"));
    text = generic("[{\"role\":\"system\",\"content\":\"Be brief.\"}]", tools);
    static const char joined[] = "[{\"role\":\"system\",\"content\":\"Be brief.\\n\\n# Tools";
    assert_memory_equal(text, joined, sizeof(joined) - 1);
    assert_string_equal(generic("[{\"role\":\"user\",\"content\":\"q\"}]", "[]"),
                        "[{\"role\":\"user\",\"content\":\"q\"}]");
}

static void test_history_is_written_as_text(void **state)
{
    (void)state;
    assert_string_equal(
        generic("[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\","
                "\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1}}}]},"
                "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"a\"},"
                "{\"role\":\"tool\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"c\"},"
                "{\"role\":\"tool\",\"content\":\"d\"}]",
                NULL),
        "[{\"role\":\"assistant\",\"content\":\"<tool_call>\\n{ \\\"name\\\": \\\"f\\\", "
        "\\\"arguments\\\": { \\\"x\\\": 1 } }\\n</tool_call>\"},"
        "{\"role\":\"user\",\"tool_call_id\":\"1\",\"content\":\"<tool_response>\\na\\n"
        "</tool_response>\\n<tool_response>\\nb\\n</tool_response>\"},"
        "{\"role\":\"user\",\"content\":\"c\"},"
        "{\"role\":\"user\",\"content\":\"<tool_response>\\nd\\n</tool_response>\"}]");
    assert_string_equal(generic("[{\"role\":\"assistant\",\"content\":\"t\",\"tool_calls\":[7,"
                                "{\"name\":\"f\"}]}]",
                                NULL),
                        "[{\"role\":\"assistant\",\"content\":\"t\\n<tool_call>\\n{ \\\"name\\\": "
                        "\\\"f\\\", \\\"arguments\\\": null }\\n</tool_call>\"}]");
    assert_string_equal(generic("[]", NULL), "[]");
}

/* When each result copied those before it, this took half a minute. */
static void test_many_results_cost_what_they_weigh(void **state)
{
    (void)state;
    enum { N_RESULT = 60000 };
    struct json_object *messages = json_object_new_array(), *out = NULL;
    for (int i = 0; i < N_RESULT; i++)
        json_object_array_add(messages,
                              json_tokener_parse("{\"role\":\"tool\",\"content\":\"x\"}"));
    const clock_t begin = clock();
    assert_int_equal(tool_format_generic_messages(&out, messages, NULL, NULL), LM_OK);
    assert_true(clock() - begin < 5 * CLOCKS_PER_SEC);
    assert_int_equal(json_object_array_length(out), 1);
    struct json_object *content =
        json_object_object_get(json_object_array_get_idx(out, 0), "content");
    assert_int_equal(json_object_get_string_len(content),
                     N_RESULT * strlen("<tool_response>\nx\n</tool_response>\n") - 1);
    json_object_put(out);
    json_object_put(messages);
}

static void adapt(enum tool_format format, const char *messages, const char *expected)
{
    struct json_object *list = json_tokener_parse(messages);
    tool_format_adapt_history(format, list);
    assert_string_equal(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN), expected);
    json_object_put(list);
}

struct reading {
    char name[40], arguments[80];
    size_t n_end;
};

static void on_text(void *context, const char *bytes, size_t n)
{
    (void)context;
    fail_msg("no call: %.*s", (int)n, bytes);
}

static void on_call(void *context, const char *name, size_t n)
{
    snprintf(((struct reading *)context)->name, 40, "%.*s", (int)n, name);
}

static void on_arguments(void *context, const char *bytes, size_t n)
{
    strncat(((struct reading *)context)->arguments, bytes, n);
}

static void on_call_end(void *context)
{
    ((struct reading *)context)->n_end++;
}

/* What the system message shows is what the parser reads. */
static void test_the_example_of_each_format_is_a_call(void **state)
{
    (void)state;
    struct json_object *tools = json_tokener_parse("[{\"function\":{\"name\":\"NAME\"}}]");
    for (int format = TOOL_FORMAT_AUTO + 1; format < TOOL_FORMAT_N; format++) {
        struct json_object *messages =
            json_tokener_parse("[{\"role\":\"system\",\"content\":\"S.\"},{\"role\":\"user\"}]");
        struct json_object *out;
        struct reading reading = {0};
        struct tool_parser *parser;
        const struct tool_sink sink = {on_text, on_call, on_arguments, on_call_end, &reading};
        if (format == TOOL_FORMAT_GENERIC) {
            json_object_put(messages);
            continue;
        }
        assert_int_equal(
            tool_format_add_definitions(&out, (enum tool_format)format, messages, tools, NULL),
            LM_OK);
        assert_int_equal(json_object_array_length(out), 2);
        const char *text = json_object_get_string(
            json_object_object_get(json_object_array_get_idx(out, 0), "content"));
        assert_memory_equal(text, "S.\n\n# Tools", 11);
        const char *const begin = strstr(text, "nothing after it:\n") + 18;
        const char *const end = strstr(begin, "\nCall a function only");
        assert_int_equal(
            tool_parser_create(&parser, (enum tool_format)format, tools, 0, &sink, NULL), LM_OK);
        tool_parser_push(parser, begin, (size_t)(end - begin));
        tool_parser_finish(parser, false);
        tool_parser_destroy(parser);
        assert_string_equal(reading.name, "NAME");
        assert_string_equal(reading.arguments, "{\"PARAMETER\":\"VALUE\"}");
        assert_int_equal(reading.n_end, 1);
        json_object_put(out);
        json_object_put(messages);
    }
    json_object_put(tools);
}

static void test_history_has_the_ids_of_the_syntax(void **state)
{
    (void)state;
    static const char messages[] =
        "[{\"tool_calls\":[{\"id\":\"call_a\",\"function\":{\"name\":\"f\"}},"
        "{\"id\":\"call_b\",\"function\":{\"name\":\"g\"}}]},"
        "{\"tool_call_id\":\"call_b\"},{\"tool_call_id\":\"call_a\"},{\"tool_call_id\":\"x\"},"
        "{\"tool_calls\":[7,{\"name\":\"f\"}]}]";
    adapt(TOOL_FORMAT_HERMES, messages, messages);
    adapt(TOOL_FORMAT_KIMI, messages,
          "[{\"tool_calls\":[{\"id\":\"functions.f:0\",\"function\":{\"name\":\"f\"}},"
          "{\"id\":\"functions.g:1\",\"function\":{\"name\":\"g\"}}]},"
          "{\"tool_call_id\":\"functions.g:1\"},{\"tool_call_id\":\"functions.f:0\"},"
          "{\"tool_call_id\":\"functions.:2\"},"
          "{\"tool_calls\":[7,{\"name\":\"f\",\"id\":\"functions.f:3\"}]}]");
    adapt(TOOL_FORMAT_MISTRAL,
          "[{\"tool_calls\":[{\"id\":\"call_a\",\"function\":{\"name\":\"f\"}}]},"
          "{\"tool_call_id\":\"call_a\"}]",
          "[{\"tool_calls\":[{\"id\":\"000000000\",\"function\":{\"name\":\"f\"}}]},"
          "{\"tool_call_id\":\"000000000\"}]");
    adapt(TOOL_FORMAT_HARMONY,
          "[{\"content\":\"a\",\"reasoning_content\":\"r\"},{\"content\":\"a\","
          "\"reasoning_content\":\"r\",\"tool_calls\":[]},{\"content\":null,"
          "\"reasoning_content\":\"r\",\"tool_calls\":[]},{\"content\":\"b\"}]",
          "[{\"content\":\"a\",\"reasoning_content\":\"r\",\"thinking\":\"r\"},{\"content\":"
          "\"\",\"reasoning_content\":\"r\",\"tool_calls\":[],\"thinking\":\"r\\n\\na\"},"
          "{\"content\":\"\",\"reasoning_content\":\"r\",\"tool_calls\":[],\"thinking\":\"r\"},"
          "{\"content\":\"b\"}]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats_follow_from_the_template),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_definitions_join_the_system_message),
        cmocka_unit_test(test_history_is_written_as_text),
        cmocka_unit_test(test_many_results_cost_what_they_weigh),
        cmocka_unit_test(test_the_example_of_each_format_is_a_call),
        cmocka_unit_test(test_history_has_the_ids_of_the_syntax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
