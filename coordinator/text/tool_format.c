#include "coordinator/text/tool_format.h"

#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#include "proto/base/byte_buffer.h"

/* ---- which one */

static bool mentions(const char *source, size_t n, const char *text)
{
    return memmem(source, n, text, strlen(text)) != NULL;
}

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* The variable, not a part of another name such as xml_tools. */
static bool reads_tools(const char *source, size_t n)
{
    static const char name[] = "tools";
    const size_t n_name = sizeof(name) - 1;
    const char *at = source;
    while ((at = memmem(at, n - (size_t)(at - source), name, n_name))) {
        const char *const after = at + n_name;
        if ((at == source || !is_word(at[-1])) && (after == source + n || !is_word(*after)))
            return true;
        at = after;
    }
    return false;
}

enum tool_format tool_format_of_template(const char *source, size_t n)
{
    if (!reads_tools(source, n) || !mentions(source, n, "<tool_call>")) return TOOL_FORMAT_GENERIC;
    if (mentions(source, n, "<function=")) return TOOL_FORMAT_QWEN_XML;
    return mentions(source, n, "<arg_key>") ? TOOL_FORMAT_GENERIC : TOOL_FORMAT_HERMES;
}

static const char *const names[] = {"auto", "qwen_xml", "hermes", "generic"};

bool tool_format_from_name(enum tool_format *out, const char *name)
{
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum tool_format)i;
        return true;
    }
    return false;
}

const char *tool_format_name(enum tool_format format)
{
    return names[format];
}

/* ---- generic */

static const char instruction_before[] =
    "# Tools\n\nYou can call functions. These are their definitions, one on each line:\n<tools>\n";
static const char instruction_after[] =
    "</tools>\n\nTo call a function, write a JSON object with its name and its arguments between "
    "<tool_call> and </tool_call>, and nothing after it:\n<tool_call>\n"
    "{\"name\": \"NAME\", \"arguments\": {\"PARAMETER\": \"VALUE\"}}\n</tool_call>\n"
    "Several calls may follow one another. The results come back between <tool_response> and "
    "</tool_response>. Call a function only where it helps; else answer directly.";

static const char *role_of(struct json_object *message)
{
    const char *const role = json_object_get_string(json_object_object_get(message, "role"));
    return role ? role : "";
}

static void put_string(struct byte_buffer *text, struct json_object *string)
{
    if (json_object_is_type(string, json_type_string))
        byte_buffer_put(text, json_object_get_string(string),
                        (size_t)json_object_get_string_len(string));
}

static const char *json_of(struct json_object *value)
{
    return json_object_to_json_string_ext(value,
                                          JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE);
}

static void set_content(struct json_object *message, const struct byte_buffer *text)
{
    json_object_object_add(message, "content",
                           json_object_new_string_len(text->data ? text->data : "", (int)text->n));
}

static void put_instruction(struct byte_buffer *text, struct json_object *tools)
{
    byte_buffer_put_text(text, instruction_before);
    for (size_t i = 0; i < json_object_array_length(tools); i++) {
        byte_buffer_put_text(text, json_of(json_object_array_get_idx(tools, i)));
        byte_buffer_put_text(text, "\n");
    }
    byte_buffer_put_text(text, instruction_after);
}

/* The system message, with what messages[0] says if it is one. */
static struct json_object *system_message(struct json_object *first, struct json_object *tools,
                                          struct byte_buffer *text)
{
    byte_buffer_clear(text);
    if (first) put_string(text, json_object_object_get(first, "content"));
    if (text->n) byte_buffer_put_text(text, "\n\n");
    put_instruction(text, tools);
    struct json_object *message = json_object_new_object();
    json_object_object_add(message, "role", json_object_new_string("system"));
    set_content(message, text);
    return message;
}

/* Calls follow the content in the syntax of the instruction. */
static void write_calls(struct json_object *message, struct byte_buffer *text)
{
    struct json_object *calls = json_object_object_get(message, "tool_calls");
    if (!json_object_is_type(calls, json_type_array)) return;
    byte_buffer_clear(text);
    put_string(text, json_object_object_get(message, "content"));
    for (size_t i = 0; i < json_object_array_length(calls); i++) {
        struct json_object *call = json_object_array_get_idx(calls, i), *function;
        if (!json_object_is_type(call, json_type_object)) continue;
        if (!json_object_object_get_ex(call, "function", &function)) function = call;
        if (!json_object_is_type(function, json_type_object)) continue;
        struct json_object *written = json_object_new_object();
        json_object_object_add(written, "name",
                               json_object_get(json_object_object_get(function, "name")));
        json_object_object_add(written, "arguments",
                               json_object_get(json_object_object_get(function, "arguments")));
        byte_buffer_printf(text, "%s<tool_call>\n%s\n</tool_call>", text->n ? "\n" : "",
                           json_of(written));
        json_object_put(written);
    }
    set_content(message, text);
    json_object_object_del(message, "tool_calls");
}

static bool is_result(struct json_object *messages, size_t i)
{
    return i < json_object_array_length(messages) &&
           !strcmp(role_of(json_object_array_get_idx(messages, i)), "tool");
}

/* Results in a row become one message of the user, the first of them. Returns the index behind. */
static size_t write_results(struct json_object *messages, size_t i, struct byte_buffer *text)
{
    struct json_object *first = json_object_array_get_idx(messages, i);
    byte_buffer_clear(text);
    for (; is_result(messages, i); i++) {
        struct json_object *message = json_object_array_get_idx(messages, i);
        byte_buffer_put_text(text, message == first ? "<tool_response>\n" : "\n<tool_response>\n");
        put_string(text, json_object_object_get(message, "content"));
        byte_buffer_put_text(text, "\n</tool_response>");
    }
    set_content(first, text);
    json_object_object_add(first, "role", json_object_new_string("user"));
    return i;
}

enum lm_status tool_format_generic_messages(struct json_object **out, struct json_object *messages,
                                            struct json_object *tools, struct lm_error *err)
{
    const size_t n = json_object_array_length(messages);
    struct json_object *first = n ? json_object_array_get_idx(messages, 0) : NULL;
    struct json_object *written = json_object_new_array();
    struct byte_buffer text = {0};
    if (first && strcmp(role_of(first), "system") != 0) first = NULL;
    const bool has_tools = tools && json_object_array_length(tools) > 0;
    if (has_tools) json_object_array_add(written, system_message(first, tools, &text));
    for (size_t i = has_tools && first; i < n;) {
        struct json_object *message = json_object_array_get_idx(messages, i);
        json_object_array_add(written, json_object_get(message));
        if (is_result(messages, i)) {
            i = write_results(messages, i, &text);
        } else {
            write_calls(message, &text);
            i++;
        }
    }
    const bool failed = text.failed;
    byte_buffer_free(&text);
    if (failed) {
        json_object_put(written);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the messages");
    }
    *out = written;
    return LM_OK;
}
