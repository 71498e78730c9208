/* Any bytes as generated text with tool calls: whatever they are, no division of them changes what
 * is read, and the arguments of a complete call are a JSON object.
 *
 * The first byte chooses the settings, the second how the text is divided. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/text/tool_parser.h"
#include "proto/base/byte_buffer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char tools_json[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{"
    "\"s\":{\"type\":\"string\"},\"i\":{\"type\":\"integer\"},\"o\":{\"type\":[\"object\","
    "\"null\"]}}}}}]";

struct record {
    struct byte_buffer all, arguments;
};

static void on_text(void *context, const char *bytes, size_t n)
{
    struct record *record = context;
    byte_buffer_put(&record->all, bytes, n);
}

static void on_call(void *context, const char *name, size_t n)
{
    struct record *record = context;
    byte_buffer_printf(&record->all, "[%.*s ", (int)n, name);
    byte_buffer_clear(&record->arguments);
}

static void on_arguments(void *context, const char *bytes, size_t n)
{
    struct record *record = context;
    byte_buffer_put(&record->all, bytes, n);
    byte_buffer_put(&record->arguments, bytes, n);
}

static void on_call_end(void *context)
{
    struct record *record = context;
    struct json_tokener *reader = json_tokener_new_ex(256);
    struct json_object *object =
        json_tokener_parse_ex(reader, record->arguments.data, (int)record->arguments.n);
    if (!json_object_is_type(object, json_type_object)) abort();
    json_object_put(object);
    json_tokener_free(reader);
    byte_buffer_put_text(&record->all, "]");
}

static struct record read_calls(const uint8_t *text, size_t n, uint8_t settings, size_t n_piece)
{
    struct record record = {0};
    struct json_object *tools = json_tokener_parse(tools_json);
    const struct tool_sink sink = {on_text, on_call, on_arguments, on_call_end, &record};
    struct tool_parser *parser;
    const int i_format = (settings >> 5) * 2 + !(settings & 1);
    const enum tool_format format =
        (enum tool_format)(TOOL_FORMAT_AUTO + 1 + i_format % (TOOL_FORMAT_N - 1));
    if (tool_parser_create(&parser, format, tools, settings >> 1 & 3, &sink, NULL) != LM_OK)
        abort();
    if (settings & 8) tool_parser_trust(parser, true);
    for (size_t at = 0; at < n; at += n_piece)
        tool_parser_push(parser, (const char *)text + at, n_piece < n - at ? n_piece : n - at);
    tool_parser_finish(parser, settings & 16);
    tool_parser_destroy(parser);
    json_object_put(tools);
    byte_buffer_free(&record.arguments);
    return record;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    const uint8_t settings = data[0];
    const size_t n_piece = 1 + data[1] % 32;
    data += 2;
    size -= 2;
    struct record whole = read_calls(data, size, settings, size + 1);
    struct record pieces = read_calls(data, size, settings, n_piece);
    if (whole.all.n != pieces.all.n ||
        (whole.all.n && memcmp(whole.all.data, pieces.all.data, whole.all.n) != 0))
        abort();
    byte_buffer_free(&whole.all);
    byte_buffer_free(&pieces.all);
    return 0;
}
