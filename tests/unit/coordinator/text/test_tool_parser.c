/* What tool calls in generated text become: each text as a whole, byte by byte and cut at random
 * must give the same record of text, calls and arguments.
 *
 * A record: text as it is; a call as [NAME ARGUMENTS], or [NAME ARGUMENTS... when it did not end.
 */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/tool_parser.h"
#include "proto/base/byte_buffer.h"
#include "tests/unit/cmocka_all.h"

static const char tools_json[] =
    "[{'type':'function','function':{'name':'f','parameters':{'type':'object','properties':{"
    "'s':{'type':'string'},'i':{'type':'integer'},'n':{'type':'number'},'b':{'type':'boolean'},"
    "'o':{'type':'object'},'a':{'type':'array'},'u':{'type':['integer','null']},"
    "'e':{'enum':['x',1]},'y':{'anyOf':[{'type':'string'},{'type':'null'}]},"
    "'r':{'$ref':'#/$defs/t'},'loop':{'anyOf':[{'$ref':'#/properties/loop'},"
    "{'$ref':'#/properties/loop'}]}},'$defs':{'t':{'type':'boolean'}}}}},"
    "{'type':'function','function':{'name':'get_weather.v-2'}}]";

static struct json_object *read_tools(void)
{
    char text[sizeof(tools_json)];
    memcpy(text, tools_json, sizeof(text));
    for (char *c = text; *c; c++)
        if (*c == '\'') *c = '"';
    struct json_object *tools = json_tokener_parse(text);
    assert_non_null(tools);
    return tools;
}

struct record {
    struct byte_buffer text, arguments;
    bool in_call;
    size_t n_call;
};

static void end_arguments(struct record *record, const char *closing)
{
    if (!record->in_call) return;
    byte_buffer_put(&record->text, record->arguments.data, record->arguments.n);
    byte_buffer_put_text(&record->text, closing);
    byte_buffer_clear(&record->arguments);
    record->in_call = false;
}

static void on_text(void *context, const char *bytes, size_t n)
{
    struct record *record = context;
    assert_true(n > 0);
    end_arguments(record, "...");
    byte_buffer_put(&record->text, bytes, n);
}

static void on_call(void *context, const char *name, size_t n)
{
    struct record *record = context;
    end_arguments(record, "...");
    byte_buffer_printf(&record->text, "[%.*s ", (int)n, name);
    record->in_call = true;
}

static void on_arguments(void *context, const char *bytes, size_t n)
{
    struct record *record = context;
    assert_true(record->in_call && n > 0);
    byte_buffer_put(&record->arguments, bytes, n);
}

static void on_call_end(void *context)
{
    struct record *record = context;
    struct json_tokener *reader = json_tokener_new_ex(200);
    assert_true(record->in_call);
    json_tokener_set_flags(reader, JSON_TOKENER_STRICT);
    struct json_object *object =
        json_tokener_parse_ex(reader, record->arguments.data, (int)record->arguments.n + 1);
    if (!json_object_is_type(object, json_type_object))
        fail_msg("arguments are no object: %s", record->arguments.data);
    json_object_put(object);
    json_tokener_free(reader);
    end_arguments(record, "]");
    record->n_call++;
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

enum { WHOLE, BYTES, RANDOM };

struct reading {
    enum tool_format format;
    size_t n_call_max;
    bool cut, trusted;
};

/* The record of text, malloc'ed. */
static char *read_calls(struct reading reading, const char *text, size_t n, int division,
                        uint32_t *seed)
{
    struct json_object *tools = read_tools();
    struct record record = {0};
    const struct tool_sink sink = {on_text, on_call, on_arguments, on_call_end, &record};
    struct tool_parser *parser;
    assert_int_equal(
        tool_parser_create(&parser, reading.format, tools, reading.n_call_max, &sink, NULL), LM_OK);
    if (reading.trusted) tool_parser_trust(parser, true);
    for (size_t at = 0; at < n;) {
        size_t n_piece = division == WHOLE ? n : division == BYTES ? 1 : next_random(seed) % 9;
        if (n_piece > n - at) n_piece = n - at;
        char *piece = malloc(n_piece + 1); /* of its own, so that reading past it is seen */
        memcpy(piece, text + at, n_piece);
        tool_parser_push(parser, piece, n_piece);
        free(piece);
        at += n_piece;
    }
    tool_parser_finish(parser, reading.cut);
    assert_false(tool_parser_failed(parser));
    tool_parser_destroy(parser);
    end_arguments(&record, "...");
    json_object_put(tools);
    byte_buffer_put_text(&record.text, "");
    byte_buffer_free(&record.arguments);
    return record.text.data;
}

static void check_reading(struct reading reading, const char *text, const char *expected)
{
    uint32_t seed = 7;
    for (int round = 0; round < 40; round++) {
        char *got = read_calls(reading, text, strlen(text), round < RANDOM ? round : RANDOM, &seed);
        assert_string_equal(got, expected);
        free(got);
    }
}

/* Trust changes when calls go out, not what they are; it does so where they are sound. */
static void check(enum tool_format format, const char *text, const char *expected)
{
    check_reading((struct reading){.format = format}, text, expected);
}

static void check_sound(enum tool_format format, const char *text, const char *expected)
{
    check(format, text, expected);
    check_reading((struct reading){.format = format, .trusted = true}, text, expected);
}

static void test_json_calls(void **state)
{
    (void)state;
    static const enum tool_format formats[] = {TOOL_FORMAT_HERMES, TOOL_FORMAT_GENERIC};
    for (int i = 0; i < 2; i++) {
        const enum tool_format f = formats[i];
        check_sound(f, "no call <tool>", "no call <tool>");
        check_sound(f,
                    "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a b\", \"i\": 1}}\n"
                    "</tool_call>",
                    "[f {\"s\":\"a b\",\"i\":1}]");
        check_sound(f,
                    "Wait.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n\n"
                    "<tool_call>{\"name\":\"get_weather.v-2\",\"arguments\":{\"x\":[{}, [1, "
                    "-2.5e+3, true , null]]}}</tool_call> \n",
                    "Wait.\n[f {}][get_weather.v-2 {\"x\":[{},[1,-2.5e+3,true,null]]}]");
        check_sound(f,
                    "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"</tool_call> \\\"} \\u00e9"
                    "\xC3\xA9\"}}</tool_call> after",
                    "[f {\"s\":\"</tool_call> \\\"} \\u00e9\xC3\xA9\"}] after");
    }
}

static void test_json_tolerance(void **state)
{
    (void)state;
    const enum tool_format f = TOOL_FORMAT_HERMES;
    check_sound(f, "<tool_call>{\"arguments\":{\"i\":1},\"id\":[7],\"name\":\"f\"}</tool_call>",
                "[f {\"i\":1}]");
    check_sound(f, "<tool_call>{\"name\":\"f\",\"parameters\":{\"i\":1}}</tool_call>",
                "[f {\"i\":1}]");
    check_sound(f, "<tool_call>{\"name\":\"f\"}</tool_call>", "[f {}]");
    check_sound(f, "<tool_call>{\"name\":\"f\",\"arguments\":null}</tool_call>", "[f {}]");
    check_sound(f,
                "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"s\\\": \\\"\\\\n\\u00e9\\\"}\"}"
                "</tool_call>",
                "[f {\"s\":\"\\n\xC3\xA9\"}]");
    check_sound(f, "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"a\nb\"}}</tool_call>",
                "[f {\"s\":\"a\\nb\"}]");
    check_sound(f, "<tool_call>{\"name\":\"f\",\"arguments\":{}, \"n\": 1 }", "[f {}]");
    check_sound(f, "<tool_call>{\"name\":\"f\"}\nHere", "[f {}]Here");
    check_sound(f, "<tool_call>{\"name\":\"f\"}<tool_call>{\"name\":\"f\"}", "[f {}][f {}]");
    check_sound(f,
                "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n</function>\n"
                "</tool_call>",
                "[f {\"i\":1}]");
}

static void test_what_is_no_call_is_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":[]}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":\"x\"}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":\"[1]\"}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"i\":1}",
        "<tool_call>{\"name\":7}</tool_call>",
        "<tool_call>{\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"name\":\"f\"}</tool_call>",
        "<tool_call>{\"name\":\"f\",}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"i\":01}}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>f()</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>",
        "  <tool_call> ",
        "<tool_cal",
        "<",
        " \n ",
        "",
        "<tool_call><function=g></function></tool_call>",
        "<tool_call><function=></function></tool_call>",
        "<tool_call><function=f",
        "<tool_call><function=f></parameter></function></tool_call>",
        "<tool_call><function=f><parameter=s",
        "<tool_call><function=f>text</function></tool_call>",
        "a << b <tool_call <<tool_call",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        check(TOOL_FORMAT_HERMES, texts[i], texts[i]);
        check(TOOL_FORMAT_QWEN_XML, texts[i], texts[i]);
    }
    check(TOOL_FORMAT_QWEN_XML, "<function=g>\n</function>", "<function=g>\n</function>");
    check(TOOL_FORMAT_HERMES, "<function=f></function>", "<function=f></function>");
    check(TOOL_FORMAT_HERMES, "\n<tool_call>\n<tool_call>{\"name\":\"f\"}",
          "\n<tool_call>\n[f {}]");
    check(TOOL_FORMAT_HERMES, "<tool_call>x<tool_call>{\"name\":\"f\"}</tool_call>y",
          "<tool_call>x[f {}]y");
    check(TOOL_FORMAT_QWEN_XML, "<<function=<function=f></function>", "<<function=[f {}]");
}

#define CALL(parameters) "<tool_call>\n<function=f>\n" parameters "</function>\n</tool_call>"
#define P(name, value) "<parameter=" name ">\n" value "\n</parameter>\n"

static void test_xml_calls(void **state)
{
    (void)state;
    const enum tool_format f = TOOL_FORMAT_QWEN_XML;
    check_sound(f, CALL(""), "[f {}]");
    check_sound(f, "I look.\n\n" CALL(P("s", "two\n\nlines") P("i", "1")) "\n" CALL("") "\n",
                "I look.\n\n[f {\"s\":\"two\\n\\nlines\",\"i\":1}][f {}]");
    check_sound(f, CALL(P("s", "")), "[f {\"s\":\"\"}]");
    check_sound(f, CALL("<parameter=s>\n</parameter>\n"), "[f {\"s\":\"\"}]");
    check_sound(f, CALL("<parameter=s>a</parameter>"), "[f {\"s\":\"a\"}]");
    check_sound(f, CALL(P("s", "\n a \n")), "[f {\"s\":\"\\n a \\n\"}]");
    check_sound(f, CALL(P("a\"b", "\"")), "[f {\"a\\\"b\":\"\\\"\"}]");
    check_sound(f, "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", "[f {}]");
}

/* Section 11.4: by the schema of the parameter. */
static void test_xml_values_are_typed(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *json;
    } cases[] = {
        {"s", "5", "\"5\""},
        {"s", "\"5\"", "\"\\\"5\\\"\""},
        {"s", "{\"a\": 1}", "\"{\\\"a\\\": 1}\""},
        {"i", "5", "5"},
        {"i", " -5 ", "-5"},
        {"i", "5.0", "5.0"},
        {"i", "5.5", "\"5.5\""},
        {"i", "five", "\"five\""},
        {"i", "true", "\"true\""},
        {"i", "null", "\"null\""},
        {"i", "", "\"\""},
        {"n", "5.5e3", "5.5e3"},
        {"n", ".5", "\".5\""},
        {"b", "true", "true"},
        {"b", "False", "false"},
        {"b", "yes", "\"yes\""},
        {"o", "{ \"a\" : [1, 2] }", "{\"a\":[1,2]}"},
        {"o", "[1]", "\"[1]\""},
        {"o", "{'a': 1}", "\"{'a': 1}\""},
        {"a", "[\n  1,\n  \"b c\"\n]", "[1,\"b c\"]"},
        {"u", "null", "null"},
        {"u", "None", "null"},
        {"u", "7", "7"},
        {"e", "1", "1"},
        {"e", "x", "\"x\""},
        {"y", "null", "null"},
        {"y", "None", "\"None\""},
        {"y", "1", "\"1\""},
        {"r", "true", "true"},
        {"loop", "1", "1"},
        {"loop", "\"q\"", "\"\\\"q\\\"\""},
        {"other", "1", "1"},
        {"other", "true", "true"},
        {"other", "True", "\"True\""},
        {"other", "null", "null"},
        {"other", "[1, 2]", "[1,2]"},
        {"other", "\"q\"", "\"\\\"q\\\"\""},
        {"other", "text", "\"text\""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[400], expected[400];
        snprintf(text, sizeof(text), CALL("<parameter=%s>\n%s\n</parameter>\n"), cases[i].key,
                 cases[i].value);
        snprintf(expected, sizeof(expected), "[f {\"%s\":%s}]", cases[i].key, cases[i].json);
        check_sound(TOOL_FORMAT_QWEN_XML, text, expected);
    }
}

static void test_xml_values_may_hold_tags(void **state)
{
    (void)state;
    const enum tool_format f = TOOL_FORMAT_QWEN_XML;
    check_sound(f, CALL(P("s", "<b>\n</b>")), "[f {\"s\":\"<b>\\n</b>\"}]");
    check_sound(f, CALL(P("s", "a</parameter>b")), "[f {\"s\":\"a</parameter>b\"}]");
    check_sound(f, CALL(P("s", "a\n</parameter>\nb\n")), "[f {\"s\":\"a\\n</parameter>\\nb\\n\"}]");
    check_sound(f, CALL(P("s", "</function>")), "[f {\"s\":\"</function>\"}]");
    check_sound(f, CALL(P("s", "<tool_call> </tool_call>")),
                "[f {\"s\":\"<tool_call> </tool_call>\"}]");
    check_sound(f, CALL(P("s", "<parameter=zz>\n<parameter=s>\n1")),
                "[f {\"s\":\"<parameter=zz>\\n<parameter=s>\\n1\"}]");
}

static void test_xml_tolerance(void **state)
{
    (void)state;
    const enum tool_format f = TOOL_FORMAT_QWEN_XML;
    check_sound(f, "Now:\n<function=f>\n" P("i", "1") "</function>\n</tool_call>",
                "Now:\n[f {\"i\":1}]");
    check_sound(f, "<function=f>\n" P("i", "1") "</function>\nDone", "[f {\"i\":1}]Done");
    check_sound(f, CALL("<parameter=s>\na\n<parameter=i>\n1\n"), "[f {\"s\":\"a\",\"i\":1}]");
    check_sound(f, "<tool_call><function=f>\n" P("i", "1"), "[f {\"i\":1}]");
    check_sound(f, "<tool_call><function=f>\n" P("i", "1") "</function>", "[f {\"i\":1}]");
    check_sound(f, "<tool_call><function=f>\n" P("i", "1") "</tool_call>", "[f {\"i\":1}]");
    check_sound(f, "<tool_call><function=f>\n" P("i", "1") CALL(""), "[f {\"i\":1}][f {}]");
    check_sound(f, "<tool_call><function=f>\n<parameter=s>\nab\n", "[f {\"s\":\"ab\"}]");
    check_sound(f, "<tool_call><function=f>\n<parameter=s>\nab\n</param", "[f {\"s\":\"ab\"}]");
    check_sound(f, "<tool_call><function=f>\n<parameter=i>\n12", "[f {\"i\":12}]");
    check_sound(f, "<tool_call><function=f>\n<parameter=i>", "[f {\"i\":\"\"}]");
}

static void test_a_call_that_was_cut_off_stands_as_it_is(void **state)
{
    (void)state;
    for (int trusted = 0; trusted < 2; trusted++) {
        struct reading reading = {.format = TOOL_FORMAT_HERMES, .cut = true, .trusted = trusted};
        check_reading(reading, "a <tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"ab",
                      "a [f {\"s\":\"ab...");
        check_reading(reading, "<tool_call>{\"name\": \"f\"", "[f ...");
        check_reading(reading, "<tool_call>{\"name\": \"", "<tool_call>{\"name\": \"");
        check_reading(reading, "<tool_call>{\"name\": \"f\"}", "[f {}]");
        reading.format = TOOL_FORMAT_QWEN_XML;
        check_reading(reading, "<tool_call>\n<function=f>\n<parameter=s>\nab\n</par",
                      "[f {\"s\":\"ab...");
        check_reading(reading, "<tool_call>\n<function=f>\n<parameter=i>\n12", "[f {\"i\":...");
        check_reading(reading, "<tool_call>\n<function=f>\n", "[f ...");
        check_reading(reading, "<tool_call>\n<function=f>\n</function>\n</tool", "[f {}]");
        check_reading(reading, "<tool_call>\n<func", "<tool_call>\n<func");
    }
}

/* What has gone out is never taken back. */
static void test_a_trusted_call_that_breaks_stays_without_its_end(void **state)
{
    (void)state;
    const struct reading reading = {.format = TOOL_FORMAT_HERMES, .trusted = true};
    check_reading(reading, "<tool_call>{\"name\":\"f\",\"arguments\":{\"i\":x}} y",
                  "[f {\"i\":...x}} y");
    check_reading(reading, "<tool_call>{\"name\":\"g\"} y", "<tool_call>{\"name\":\"g\"} y");
}

static void test_calls_beyond_the_bound_are_dropped(void **state)
{
    (void)state;
    struct reading reading = {.format = TOOL_FORMAT_QWEN_XML, .n_call_max = 1};
    check_reading(reading, "a " CALL("") CALL("") " b", "a [f {}]");
    reading.n_call_max = 2;
    check_reading(reading, CALL("") CALL("") CALL(""), "[f {}][f {}]");
}

/* Arguments go out while they are written: of a string all but what may be its end. */
static void test_trusted_arguments_do_not_wait(void **state)
{
    (void)state;
    struct json_object *tools = read_tools();
    struct record record = {0};
    const struct tool_sink sink = {on_text, on_call, on_arguments, on_call_end, &record};
    struct tool_parser *parser;
    size_t n;
    assert_int_equal(tool_parser_create(&parser, TOOL_FORMAT_QWEN_XML, tools, 0, &sink, NULL),
                     LM_OK);
    assert_null(tool_parser_untrusted(parser, &n));
    static const char begin[] = "<tool_call>\n<function=f>\n<parameter=s>\n";
    tool_parser_push(parser, "x<tool_call>\n<func", 18);
    const char *const untrusted = tool_parser_untrusted(parser, &n);
    assert_int_equal(n, 17);
    assert_memory_equal(untrusted, begin, n);
    tool_parser_push(parser, begin + n, sizeof(begin) - 1 - n);
    assert_false(record.in_call);
    tool_parser_trust(parser, false);
    assert_null(tool_parser_untrusted(parser, &n));
    assert_string_equal(record.arguments.data, "{\"s\":\"");
    static const char value[] = "a long text <b> of\nlines ";
    for (size_t i = 0; i + 1 < sizeof(value); i++) {
        tool_parser_push(parser, value + i, 1);
        assert_true(record.arguments.n + 2 >= 6 + i);
    }
    assert_true(tool_parser_in_call(parser));
    tool_parser_finish(parser, false);
    assert_int_equal(record.n_call, 1);
    tool_parser_destroy(parser);
    json_object_put(tools);
    byte_buffer_free(&record.text);
    byte_buffer_free(&record.arguments);
}

/* ---- the other formats */

#define BAR "\xef\xbd\x9c"
#define DS(word) "<" BAR "tool\xe2\x96\x81" word BAR ">"
#define DS_BEGIN                                                                                   \
    DS("calls\xe2\x96\x81"                                                                         \
       "begin")
#define DS_END                                                                                     \
    DS("calls\xe2\x96\x81"                                                                         \
       "end")
#define DS_CALL(text)                                                                              \
    DS("call\xe2\x96\x81"                                                                          \
       "begin")                                                                                    \
    text DS("call\xe2\x96\x81"                                                                     \
            "end")
#define DSML(tag) "<" BAR "DSML" BAR tag
#define DSML_CLOSE(tag) "</" BAR "DSML" BAR tag ">"
#define DSML_P(key, type, value)                                                                   \
    DSML("parameter name=\"" key "\" string=\"" type "\">") value DSML_CLOSE("parameter") "\n"
#define ARG(key, value) "<arg_key>" key "</arg_key>\n<arg_value>" value "</arg_value>\n"
#define KIMI(id, arguments)                                                                        \
    "<|tool_call_begin|>" id "<|tool_call_argument_begin|>" arguments "<|tool_call_end|>"
#define INVOKE(parameters) "<invoke name=\"f\">\n" parameters "</invoke>\n"
#define INVOKE_P(key, value) "<parameter name=\"" key "\">" value "</parameter>\n"

/* What each format's models write, beside text, with what the parsers have to watch for. */
static const char *const written[TOOL_FORMAT_N][3] = {
    [TOOL_FORMAT_QWEN_XML] =
        {"Text.\n\n" CALL(P("s", "a\n</parameter>\n b") P("i", "1")
                              P("o", "{\"a\": \"<b>\"}")) "\n" CALL(P("a", "[1, 2]")) "\nmore",
         "<function=f><parameter=s>x<parameter=i>2</function></tool_call><tool_call>{\"arguments\":"
         "\"{\\\"i\\\":1}\",\"name\":\"f\"}</tool_call>",
         CALL(P("s", "<tool_call>\xF0\x9F\x98\x80</tool_call>"))},
    [TOOL_FORMAT_HERMES] =
        {"<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a \\\"b\\\" \xC3\xA9\", \"o\": "
         "{\"x\": [1.5, null]}}}\n</tool_call>\n<tool_call>{\"name\": \"get_weather.v-2\"}",
         "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"<tool_call></tool_call>\"}}"
         "</tool_call> x <tool_call>{\"name\": \"f\", \"arguments\": {\"s\": [}}</tool_call>",
         "<tool_call>{\"name\": \"f\", \"parameters\": {\"s\": \"\\ud83d\\ude00\"}}"},
    [TOOL_FORMAT_GENERIC] = {"a <tool_call>{\"name\": \"f\"}</tool_call>",
                             "<tool_call>{\"name\": \"g\"}</tool_call>", "<tool_call> <tool_call>"},
    [TOOL_FORMAT_GLM] =
        {"Well.\n<tool_call>f\n" ARG("s", "two\nlines ")
             ARG("i", "7") "</tool_call>\n<tool_call>"
                           "get_weather.v-2\n</tool_call>",
         "<tool_call>f<arg_key>s</arg_key><arg_value>a</arg_value>b <arg_key></arg_value>"
         "<arg_key>o</arg_key><arg_value>{\"x\": \"</arg_value>\"}</arg_value></tool_call> end",
         "<tool_call>f" ARG("s", "\xE2\x82\xAC")},
    [TOOL_FORMAT_DEEPSEEK_V3] =
        {"So: " DS_BEGIN
             DS_CALL("function" DS("sep") "f\n```json\n{\"s\": \"```\"}\n```") "\n" DS_CALL(
                 "function" DS("sep") "get_weather.v-2\n```json\n{}\n```") DS_END,
         DS_BEGIN DS_CALL("function" DS("sep") "g\n```json\n{}\n```") DS_END,
         DS_CALL("function" DS_CALL("function" DS("sep") "f\n```json\n{\"i\":1}"))},
    [TOOL_FORMAT_DEEPSEEK_V31] = {"So: " DS_BEGIN DS_CALL(
                                      "f" DS("sep") "{\"s\": \"\xE6\x97\xA5\", \"i\": 1}")
                                      DS_CALL("get_weather.v-2" DS("sep") "{}") DS_END,
                                  DS_BEGIN DS_CALL("f" DS("sep") "{\"s\": \"" DS_END "\"}") DS_END
                                  " x",
                                  DS_BEGIN DS_CALL("f" DS("sep") "{\"s\": 1,}")},
    [TOOL_FORMAT_DSML] = {"Now\n\n" DSML("function_calls>\n") DSML("invoke name=\"f\">\n")
                              DSML_P("s", "true", " a\n<b>") DSML_P("i", "false", "12")
                                  DSML_P("y", "true", "null") DSML_CLOSE("invoke") "\n" DSML(
                                      "invoke name=\"f\">\n") DSML_P("y", "false", "null")
                                      DSML_P("new", "true", "1") DSML_P("newer", "false", "1")
                                          DSML_CLOSE("invoke") "\n" DSML_CLOSE("function_calls"),
                          DSML("function_calls>") DSML("invoke name=\"f\">")
                              DSML_P("s", "true", DSML_CLOSE("parameter") "x") DSML_CLOSE("invoke"),
                          DSML("invoke name=\"f\">") DSML_P("s", "maybe", "1")},
    [TOOL_FORMAT_KIMI] = {"I look.<|tool_calls_section_begin|>" KIMI(
                              "functions.f:0", "{\"s\": \"<|tool_call_end|>\"}")
                              KIMI("functions.get_weather.v-2:12",
                                   "{}") "<|tool_calls_section_end|>",
                          KIMI("f", "{\"i\": 1}") " " KIMI("functions.g:1",
                                                           "{}") "<|tool_calls_section_end|>",
                          "<|tool_calls_section_begin|>" KIMI("functions.f:0", "[]")},
    [TOOL_FORMAT_INVOKE] = {"Look\n<minimax:tool_call>\n" INVOKE(
                                INVOKE_P("s", "\n a </parameter> b\n") INVOKE_P("i", "3"))
                                INVOKE("") "</minimax:tool_call>",
                            INVOKE(INVOKE_P("o", "{\"a\": 1}") INVOKE_P("b", "true")) "x",
                            "<minimax:tool_call><invoke name=\"f\"><parameter name=\"s\">\xC3\xA9"},
    [TOOL_FORMAT_HARMONY] =
        {"Hm <|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"s\": \"<|call|>\"}"
         "<|call|>",
         "<|channel|>commentary to=f<|channel|>commentary json<|message|>{\"i\": 2} rest",
         "<|channel|>commentary to=functions.f<|message|>[]<|channel|>commentary to="},
    [TOOL_FORMAT_MISTRAL] =
        {"See [1] [TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"s\": \"],[\"}, \"id\": "
         "\"abcdefghi\"}, {\"name\": \"get_weather.v-2\", \"arguments\": {}}] end",
         "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"i\": 1}}, {\"name\": \"g\"}]",
         "[TOOL_CALLS]{\"name\": \"f\", \"arguments\": {\"i\": 1}}[TOOL_CALLS][7]"},
    [TOOL_FORMAT_MISTRAL_ARGS] =
        {"a [TOOL_CALLS]f[ARGS]{\"s\": \"[ARGS]\"}[TOOL_CALLS]get_weather.v-2[ARGS]{}",
         "[TOOL_CALLS]g[ARGS]{} [TOOL_CALLS]f[ARGS]{\"i\": 1", "[TOOL_CALLS][TOOL_CALLS]f[ARGS]{}"},
    [TOOL_FORMAT_LLAMA] =
        {"{\"name\": \"f\", \"parameters\": {\"s\": \"{\\\"name\\\"\"}}",
         " {\"name\": \"f\", \"parameters\": {\"i\": 1}}\n{\"name\": \"f\"} then {\"name\": \"f\"}",
         "{\"name\": \"g\", \"parameters\": {}} {\"names\": 1}"},
};

static const char *const read_back[TOOL_FORMAT_N][3] = {
    [TOOL_FORMAT_GLM] =
        {"Well.\n[f {\"s\":\"two\\nlines \",\"i\":7}][get_weather.v-2 {}]",
         "[f {\"s\":\"a</arg_value>b <arg_key>\",\"o\":{\"x\":\"</arg_value>\"}}] end",
         "[f {\"s\":\"\xE2\x82\xAC\"}]"},
    [TOOL_FORMAT_DEEPSEEK_V3] = {"So: [f {\"s\":\"```\"}][get_weather.v-2 {}]",
                                 DS_BEGIN DS_CALL("function" DS("sep") "g\n```json\n{}\n```")
                                     DS_END,
                                 DS("call\xe2\x96\x81"
                                    "begin") "function[f {\"i\":1}]" DS("call\xe2\x96\x81"
                                                                        "end")},
    [TOOL_FORMAT_DEEPSEEK_V31] = {"So: [f {\"s\":\"\xE6\x97\xA5\",\"i\":1}][get_weather.v-2 {}]",
                                  "[f {\"s\":\"" DS_END "\"}] x",
                                  DS_BEGIN DS_CALL("f" DS("sep") "{\"s\": 1,}")},
    [TOOL_FORMAT_DSML] = {"Now\n\n[f {\"s\":\" a\\n<b>\",\"i\":12,\"y\":\"null\"}]"
                          "[f {\"y\":null,\"new\":\"1\",\"newer\":1}]",
                          "[f {\"s\":\"" DSML_CLOSE("parameter") "x\"}]",
                          DSML("invoke name=\"f\">") DSML_P("s", "maybe", "1")},
    [TOOL_FORMAT_KIMI] = {"I look.[f {\"s\":\"<|tool_call_end|>\"}][get_weather.v-2 {}]",
                          "[f {\"i\":1}]" KIMI("functions.g:1", "{}") "<|tool_calls_section_end|>",
                          "<|tool_calls_section_begin|>" KIMI("functions.f:0", "[]")},
    [TOOL_FORMAT_INVOKE] = {"Look\n[f {\"s\":\"\\n a </parameter> b\\n\",\"i\":3}][f {}]",
                            "[f {\"o\":{\"a\":1},\"b\":true}]x", "[f {\"s\":\"\xC3\xA9\"}]"},
    [TOOL_FORMAT_HARMONY] = {"Hm [f {\"s\":\"<|call|>\"}]", "[f {\"i\":2}]rest",
                             "<|channel|>commentary to=functions.f<|message|>[]"
                             "<|channel|>commentary to="},
    [TOOL_FORMAT_MISTRAL] = {"See [1] [f {\"s\":\"],[\"}][get_weather.v-2 {}] end",
                             "[f {\"i\":1}] {\"name\": \"g\"}]", "[f {\"i\":1}][TOOL_CALLS][7]"},
    [TOOL_FORMAT_MISTRAL_ARGS] = {"a [f {\"s\":\"[ARGS]\"}][get_weather.v-2 {}]",
                                  "[TOOL_CALLS]g[ARGS]{} [TOOL_CALLS]f[ARGS]{\"i\": 1",
                                  "[TOOL_CALLS][f {}]"},
    [TOOL_FORMAT_LLAMA] = {"[f {\"s\":\"{\\\"name\\\"\"}]",
                           "[f {\"i\":1}][f {}] then {\"name\": \"f\"}",
                           "{\"name\": \"g\", \"parameters\": {}} {\"names\": 1}"},
};

static void test_each_format_is_read(void **state)
{
    (void)state;
    for (int format = TOOL_FORMAT_GLM; format < TOOL_FORMAT_N; format++)
        for (int i = 0; i < 3; i++)
            check((enum tool_format)format, written[format][i], read_back[format][i]);
}

/* Outputs with bytes dropped, doubled, moved and cut: no division changes what is read. */
static void test_no_division_changes_a_broken_output(void **state)
{
    (void)state;
    uint32_t seed = 1;
    for (int round = 0; round < 8000; round++) {
        char text[1200];
        const enum tool_format format =
            (enum tool_format)(TOOL_FORMAT_AUTO + 1 + round % (TOOL_FORMAT_N - 1));
        const char *output = written[format][next_random(&seed) % 3];
        size_t n = strlen(output);
        memcpy(text, output, n);
        for (uint32_t edits = next_random(&seed) % 4; edits; edits--) {
            const size_t at = next_random(&seed) % n, n_span = 1 + next_random(&seed) % 12;
            const size_t span = n_span < n - at ? n_span : n - at;
            if (next_random(&seed) % 2 && n > span + 1) {
                memmove(text + at, text + at + span, n - at - span);
                n -= span;
            } else if (n + span < sizeof(text)) {
                const size_t to = next_random(&seed) % n;
                char copy[12];
                memcpy(copy, text + at, span);
                memmove(text + to + span, text + to, n - to);
                memcpy(text + to, copy, span);
                n += span;
            }
        }
        const struct reading reading = {.format = format,
                                        .n_call_max = next_random(&seed) % 3,
                                        .cut = next_random(&seed) % 3 == 0,
                                        .trusted = next_random(&seed) % 2};
        char *whole = read_calls(reading, text, n, WHOLE, &seed);
        for (int division = BYTES; division <= RANDOM + 2; division++) {
            char *got = read_calls(reading, text, n, division < RANDOM ? division : RANDOM, &seed);
            if (strcmp(got, whole) != 0)
                fail_msg("%s, round %d: %.*s\nwhole: %s\npieces: %s", tool_format_name(format),
                         round, (int)n, text, whole, got);
            free(got);
        }
        free(whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_calls),
        cmocka_unit_test(test_json_tolerance),
        cmocka_unit_test(test_what_is_no_call_is_text),
        cmocka_unit_test(test_xml_calls),
        cmocka_unit_test(test_xml_values_are_typed),
        cmocka_unit_test(test_xml_values_may_hold_tags),
        cmocka_unit_test(test_xml_tolerance),
        cmocka_unit_test(test_a_call_that_was_cut_off_stands_as_it_is),
        cmocka_unit_test(test_a_trusted_call_that_breaks_stays_without_its_end),
        cmocka_unit_test(test_calls_beyond_the_bound_are_dropped),
        cmocka_unit_test(test_trusted_arguments_do_not_wait),
        cmocka_unit_test(test_each_format_is_read),
        cmocka_unit_test(test_no_division_changes_a_broken_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
