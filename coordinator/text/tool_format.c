#include "coordinator/text/tool_format.h"

#include <ctype.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/byte_buffer.h"

/* ---- the registry */

/* DeepSeek's tokens have a full-width bar and a lower one-eighth block in their names. */
#define BAR "\xef\xbd\x9c"
#define DEEPSEEK(word) "<" BAR "tool\xe2\x96\x81" word BAR ">"
#define DSML BAR "DSML" BAR

/* What the formats with <tool_call> before either form of a call have in common. */
#define EITHER_FORM                                                                                \
    .section_open = "<tool_call>", .call_open = "<function=", .name_close = ">",                   \
    .key_open = "<parameter=", .key_close = ">", .value_close = "</parameter>",                    \
    .call_close = "</function>", .section_close = "</tool_call>", .arguments_key = "arguments",    \
    .reads_object = true, .line_breaks = true

static const struct tool_syntax syntaxes[TOOL_FORMAT_N] = {
    [TOOL_FORMAT_AUTO] = {.name = "auto"},
    [TOOL_FORMAT_QWEN_XML] = {.name = "qwen_xml",
                              .body = TOOL_BODY_PARAMETERS,
                              .is_marker = true,
                              EITHER_FORM},
    [TOOL_FORMAT_HERMES] = {.name = "hermes", .body = TOOL_BODY_OBJECT, EITHER_FORM},
    [TOOL_FORMAT_GENERIC] = {.name = "generic", .body = TOOL_BODY_OBJECT, EITHER_FORM},
    [TOOL_FORMAT_GLM] = {.name = "glm",
                         .body = TOOL_BODY_PARAMETERS,
                         .call_open = "<tool_call>",
                         .key_open = "<arg_key>",
                         .key_close = "</arg_key>",
                         .value_open = "<arg_value>",
                         .value_close = "</arg_value>",
                         .call_close = "</tool_call>",
                         .is_marker = true},
    [TOOL_FORMAT_DEEPSEEK_V3] = {.name = "deepseek_v3",
                                 .body = TOOL_BODY_ARGUMENTS,
                                 .section_open = DEEPSEEK("calls\xe2\x96\x81"
                                                          "begin"),
                                 .call_open = DEEPSEEK("call\xe2\x96\x81"
                                                       "begin") "function" DEEPSEEK("sep"),
                                 .name_close = "\n```json\n",
                                 .body_close = "\n```",
                                 .call_close = DEEPSEEK("call\xe2\x96\x81"
                                                        "end"),
                                 .section_close = DEEPSEEK("calls\xe2\x96\x81"
                                                           "end"),
                                 .is_marker = true,
                                 .many = true},
    [TOOL_FORMAT_DEEPSEEK_V31] = {.name = "deepseek_v31",
                                  .body = TOOL_BODY_ARGUMENTS,
                                  .section_open = DEEPSEEK("calls\xe2\x96\x81"
                                                           "begin"),
                                  .call_open = DEEPSEEK("call\xe2\x96\x81"
                                                        "begin"),
                                  .name_close = DEEPSEEK("sep"),
                                  .call_close = DEEPSEEK("call\xe2\x96\x81"
                                                         "end"),
                                  .section_close = DEEPSEEK("calls\xe2\x96\x81"
                                                            "end"),
                                  .is_marker = true,
                                  .many = true},
    [TOOL_FORMAT_DSML] = {.name = "dsml",
                          .body = TOOL_BODY_PARAMETERS,
                          .section_open = "<" DSML "function_calls>",
                          .call_open = "<" DSML "invoke name=\"",
                          .name_close = "\">",
                          .key_open = "<" DSML "parameter name=\"",
                          .key_close = "\" string=\"",
                          .value_close = "</" DSML "parameter>",
                          .call_close = "</" DSML "invoke>",
                          .section_close = "</" DSML "function_calls>",
                          .is_marker = true,
                          .many = true,
                          .typed = true},
    [TOOL_FORMAT_KIMI] = {.name = "kimi",
                          .body = TOOL_BODY_ARGUMENTS,
                          .section_open = "<|tool_calls_section_begin|>",
                          .call_open = "<|tool_call_begin|>",
                          .prefix = "functions.",
                          .name_close = "<|tool_call_argument_begin|>",
                          .call_close = "<|tool_call_end|>",
                          .section_close = "<|tool_calls_section_end|>",
                          .is_marker = true,
                          .many = true,
                          .numbered = true},
    [TOOL_FORMAT_INVOKE] = {.name = "invoke",
                            .body = TOOL_BODY_PARAMETERS,
                            .section_open = "<minimax:tool_call>",
                            .call_open = "<invoke name=\"",
                            .name_close = "\">",
                            .key_open = "<parameter name=\"",
                            .key_close = "\">",
                            .value_close = "</parameter>",
                            .call_close = "</invoke>",
                            .section_close = "</minimax:tool_call>",
                            .is_marker = true,
                            .many = true},
    [TOOL_FORMAT_HARMONY] = {.name = "harmony",
                             .body = TOOL_BODY_ARGUMENTS,
                             .call_open = "<|channel|>commentary to=",
                             .prefix = "functions.",
                             .name_close = "<|message|>",
                             .call_close = "<|call|>",
                             .is_marker = true,
                             .described = true},
    [TOOL_FORMAT_MISTRAL] = {.name = "mistral",
                             .body = TOOL_BODY_OBJECT,
                             .section_open = "[TOOL_CALLS]",
                             .arguments_key = "arguments",
                             .reads_object = true,
                             .many = true,
                             .list = true},
    [TOOL_FORMAT_MISTRAL_ARGS] = {.name = "mistral_args",
                                  .body = TOOL_BODY_ARGUMENTS,
                                  .call_open = "[TOOL_CALLS]",
                                  .name_close = "[ARGS]",
                                  .is_marker = true},
    [TOOL_FORMAT_LLAMA] = {.name = "llama",
                           .body = TOOL_BODY_OBJECT,
                           .section_open = "{\"name\"",
                           .arguments_key = "parameters",
                           .only_first = true},
};

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
    /* In this order: the first text that is there decides. */
    static const struct {
        const char *text;
        enum tool_format format;
    } signs[] = {
        {"<|channel|>", TOOL_FORMAT_HARMONY},
        {"\xef\xbd\x9c"
         "DSML\xef\xbd\x9c",
         TOOL_FORMAT_DSML},
        {"<minimax:tool_call>", TOOL_FORMAT_INVOKE},
        {"<|tool_call_argument_begin|>", TOOL_FORMAT_KIMI},
        {"<arg_key>", TOOL_FORMAT_GLM},
        {"[ARGS]", TOOL_FORMAT_MISTRAL_ARGS},
        {"[TOOL_CALLS]", TOOL_FORMAT_MISTRAL},
        {"<|python_tag|>", TOOL_FORMAT_LLAMA},
    };
    /* that of V3.1 writes calls, but leaves the definitions to the caller */
    if (mentions(source, n, DEEPSEEK("sep")))
        return mentions(source, n, "```json") ? TOOL_FORMAT_DEEPSEEK_V3 : TOOL_FORMAT_DEEPSEEK_V31;
    if (!reads_tools(source, n)) return TOOL_FORMAT_GENERIC;
    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++)
        if (mentions(source, n, signs[i].text)) return signs[i].format;
    if (!mentions(source, n, "<tool_call>")) return TOOL_FORMAT_GENERIC;
    return mentions(source, n, "<function=") ? TOOL_FORMAT_QWEN_XML : TOOL_FORMAT_HERMES;
}

bool tool_format_template_shows_tools(const char *source, size_t n)
{
    return reads_tools(source, n);
}

bool tool_format_from_name(enum tool_format *out, const char *name)
{
    for (unsigned i = 0; i < TOOL_FORMAT_N; i++) {
        if (strcmp(name, syntaxes[i].name) != 0) continue;
        *out = (enum tool_format)i;
        return true;
    }
    return false;
}

const char *tool_format_name(enum tool_format format)
{
    return syntaxes[format].name;
}

const struct tool_syntax *tool_format_syntax(enum tool_format format)
{
    return &syntaxes[format];
}

bool tool_format_mentions(enum tool_format format, const char *text, size_t n)
{
    const struct tool_syntax *const syntax = &syntaxes[format];
    const char *const texts[] = {syntax->section_open, syntax->call_open,  syntax->name_close,
                                 syntax->key_open,     syntax->key_close,  syntax->value_open,
                                 syntax->value_close,  syntax->body_close, syntax->call_close,
                                 syntax->section_close};
    for (size_t i = 0; n && i < sizeof(texts) / sizeof(texts[0]); i++)
        if (texts[i] && memmem(texts[i], strlen(texts[i]), text, n)) return true;
    return false;
}

/* ---- history */

static void put_string(struct byte_buffer *text, struct json_object *string)
{
    if (json_object_is_type(string, json_type_string))
        byte_buffer_put(text, json_object_get_string(string),
                        (size_t)json_object_get_string_len(string));
}

static struct json_object *new_id(enum tool_format format, const char *name, unsigned i_call)
{
    char id[300];
    if (format == TOOL_FORMAT_KIMI)
        snprintf(id, sizeof(id), "functions.%.200s:%u", name, i_call);
    else
        snprintf(id, sizeof(id), "%09u", i_call); /* nine letters or digits, says the template */
    return json_object_new_string(id);
}

/* Ids by their order; results follow the calls that they had the id of. */
static void renumber(enum tool_format format, struct json_object *messages)
{
    struct json_object *ids = json_object_new_object();
    unsigned n_call = 0;
    for (size_t i = 0; i < json_object_array_length(messages); i++) {
        struct json_object *message = json_object_array_get_idx(messages, i), *known;
        struct json_object *calls = json_object_object_get(message, "tool_calls");
        const size_t n =
            json_object_is_type(calls, json_type_array) ? json_object_array_length(calls) : 0;
        for (size_t k = 0; k < n; k++) {
            struct json_object *call = json_object_array_get_idx(calls, k), *function;
            if (!json_object_is_type(call, json_type_object)) continue;
            if (!json_object_object_get_ex(call, "function", &function)) function = call;
            const char *const name =
                json_object_is_type(function, json_type_object)
                    ? json_object_get_string(json_object_object_get(function, "name"))
                    : NULL;
            const char *const old = json_object_get_string(json_object_object_get(call, "id"));
            struct json_object *id = new_id(format, name ? name : "", n_call++);
            if (old) json_object_object_add(ids, old, json_object_get(id));
            json_object_object_add(call, "id", id);
        }
        const char *const answered =
            json_object_get_string(json_object_object_get(message, "tool_call_id"));
        if (answered && json_object_object_get_ex(ids, answered, &known))
            json_object_object_add(message, "tool_call_id", json_object_get(known));
        else if (answered)
            json_object_object_add(message, "tool_call_id", new_id(format, "", n_call++));
    }
    json_object_put(ids);
}

/* Reasoning is called thinking. Beside a call the template takes no other text. */
static void name_thinking(struct json_object *message)
{
    struct json_object *reasoning = json_object_object_get(message, "reasoning_content");
    struct json_object *content = json_object_object_get(message, "content");
    struct json_object *calls = json_object_object_get(message, "tool_calls");
    const bool has_content =
        json_object_is_type(content, json_type_string) && json_object_get_string_len(content);
    struct byte_buffer text = {0};
    if (calls && !content) json_object_object_add(message, "content", json_object_new_string(""));
    if (!json_object_is_type(reasoning, json_type_string)) return;
    put_string(&text, reasoning);
    if (calls && has_content) {
        byte_buffer_put_text(&text, "\n\n");
        put_string(&text, content);
        json_object_object_add(message, "content", json_object_new_string(""));
    }
    json_object_object_add(message, "thinking",
                           json_object_new_string_len(text.data ? text.data : "", (int)text.n));
    byte_buffer_free(&text);
}

void tool_format_adapt_history(enum tool_format format, struct json_object *messages)
{
    if (format == TOOL_FORMAT_KIMI || format == TOOL_FORMAT_MISTRAL ||
        format == TOOL_FORMAT_MISTRAL_ARGS)
        renumber(format, messages);
    if (format != TOOL_FORMAT_HARMONY) return;
    for (size_t i = 0; i < json_object_array_length(messages); i++)
        name_thinking(json_object_array_get_idx(messages, i));
}

/* ---- definitions in the system message */

static const char instruction_before[] =
    "# Tools\n\nYou can call functions. These are their definitions, one on each line:\n<tools>\n";
static const char instruction_of_syntax[] = "</tools>\n\nTo call a function, write its name and "
                                            "its arguments in this way, and nothing after "
                                            "it:\n";
static const char instruction_of_generic[] =
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

static void put_parts(struct byte_buffer *text, const char *const *parts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (parts[i]) byte_buffer_put_text(text, parts[i]);
}

/* A call as the model is to write it. */
static void put_example(struct byte_buffer *text, const struct tool_syntax *syntax)
{
    static const char arguments[] = "{\"PARAMETER\": \"VALUE\"}";
    const char *const gap = syntax->body == TOOL_BODY_ARGUMENTS ? NULL : "\n";
    if (!syntax->only_first) put_parts(text, (const char *[]){syntax->section_open}, 1);
    if (syntax->body == TOOL_BODY_OBJECT) {
        byte_buffer_printf(text, "%s{\"name\": \"NAME\", \"%s\": %s}%s", syntax->list ? "[" : "",
                           syntax->arguments_key, arguments, syntax->list ? "]" : "");
    } else {
        const char *const head[] = {
            syntax->section_open ? gap : NULL, syntax->call_open, syntax->prefix, "NAME",
            syntax->numbered ? ":0" : NULL,    syntax->name_close};
        put_parts(text, head, sizeof(head) / sizeof(head[0]));
    }
    const char *const value_break = syntax->line_breaks ? "\n" : NULL;
    const char *const parameter[] = {gap,
                                     syntax->key_open,
                                     "PARAMETER",
                                     syntax->key_close,
                                     syntax->typed ? "true\">" : NULL,
                                     syntax->value_open,
                                     value_break,
                                     "VALUE",
                                     value_break,
                                     syntax->value_close,
                                     gap};
    if (syntax->body == TOOL_BODY_PARAMETERS)
        put_parts(text, parameter, sizeof(parameter) / sizeof(parameter[0]));
    if (syntax->body == TOOL_BODY_ARGUMENTS) byte_buffer_put_text(text, arguments);
    const bool is_object = syntax->body == TOOL_BODY_OBJECT;
    const char *const end[] = {syntax->body_close, is_object ? NULL : syntax->call_close,
                               syntax->section_close ? gap : NULL, syntax->section_close};
    put_parts(text, end, sizeof(end) / sizeof(end[0]));
}

static void put_instruction(struct byte_buffer *text, enum tool_format format,
                            struct json_object *tools)
{
    byte_buffer_put_text(text, instruction_before);
    for (size_t i = 0; i < json_object_array_length(tools); i++) {
        byte_buffer_put_text(text, json_of(json_object_array_get_idx(tools, i)));
        byte_buffer_put_text(text, "\n");
    }
    if (format == TOOL_FORMAT_GENERIC) {
        byte_buffer_put_text(text, instruction_of_generic);
        return;
    }
    byte_buffer_put_text(text, instruction_of_syntax);
    put_example(text, &syntaxes[format]);
    byte_buffer_put_text(text, "\nCall a function only where it helps; else answer directly.");
}

/* The system message, with what `first` says if it is one. */
static struct json_object *system_message(enum tool_format format, struct json_object *first,
                                          struct json_object *tools, struct byte_buffer *text)
{
    byte_buffer_clear(text);
    if (first) put_string(text, json_object_object_get(first, "content"));
    if (text->n) byte_buffer_put_text(text, "\n\n");
    put_instruction(text, format, tools);
    struct json_object *message = json_object_new_object();
    json_object_object_add(message, "role", json_object_new_string("system"));
    set_content(message, text);
    return message;
}

static struct json_object *first_system(struct json_object *messages)
{
    struct json_object *first =
        json_object_array_length(messages) ? json_object_array_get_idx(messages, 0) : NULL;
    return first && !strcmp(role_of(first), "system") ? first : NULL;
}

/* Frees the text that *written was made of. */
static enum lm_status end_messages(struct json_object **out, struct json_object *written,
                                   struct byte_buffer *text, struct lm_error *err)
{
    const bool failed = text->failed;
    byte_buffer_free(text);
    if (failed) {
        json_object_put(written);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the messages");
    }
    *out = written;
    return LM_OK;
}

enum lm_status tool_format_add_definitions(struct json_object **out, enum tool_format format,
                                           struct json_object *messages, struct json_object *tools,
                                           struct lm_error *err)
{
    struct json_object *const first = first_system(messages);
    struct json_object *written = json_object_new_array();
    struct byte_buffer text = {0};
    json_object_array_add(written, system_message(format, first, tools, &text));
    for (size_t i = first != NULL; i < json_object_array_length(messages); i++)
        json_object_array_add(written, json_object_get(json_object_array_get_idx(messages, i)));
    return end_messages(out, written, &text, err);
}

/* ---- generic */

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
    struct json_object *const first = first_system(messages);
    struct json_object *written = json_object_new_array();
    struct byte_buffer text = {0};
    const bool has_tools = tools && json_object_array_length(tools) > 0;
    if (has_tools)
        json_object_array_add(written, system_message(TOOL_FORMAT_GENERIC, first, tools, &text));
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
    return end_messages(out, written, &text, err);
}
