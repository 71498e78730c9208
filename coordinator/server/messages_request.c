#include "coordinator/server/messages_request.h"

#include <json-c/json.h>
#include <limits.h>
#include <string.h>

#include "coordinator/server/chat_turn.h"
#include "coordinator/server/json_field.h"

static bool no_memory(const struct field_reader *reader)
{
    return field_fail(reader, API_OUT_OF_MEMORY, NULL, "does not fit in memory");
}

/* ---- blocks */

static bool refuse_block(const struct field_reader *block, const char *type)
{
    static const char *const media[] = {"image", "document", "search_result", "container_upload",
                                        NULL};
    if (field_is_one_of(type, media))
        return field_fail(block, API_UNSUPPORTED_CONTENT, "type",
                          "%s is not supported: this model reads text only", type);
    return field_refuse(block, API_INVALID_VALUE, "type", "a block that may stand here",
                        field_get(block, "type"));
}

/* A string, or blocks of text; absent is empty. */
static bool read_texts(const struct field_reader *reader, const char *name, bool is_system,
                       struct byte_buffer *out)
{
    static const char billing[] = "x-anthropic-billing-header:";
    struct json_object *content = field_get(reader, name);
    if (json_object_is_type(content, json_type_string)) {
        byte_buffer_put(out, json_object_get_string(content),
                        (size_t)json_object_get_string_len(content));
        return true;
    }
    if (content && !json_object_is_type(content, json_type_array))
        return field_refuse(reader, API_INVALID_TYPE, name, "a string or an array of blocks",
                            content);
    for (size_t i = 0; content && i < json_object_array_length(content); i++) {
        struct json_object *element = json_object_array_get_idx(content, i), *type, *text;
        const struct field_reader block = field_reader_inside(reader, element, name, (long long)i);
        if (!json_object_is_type(element, json_type_object))
            return field_refuse(&block, API_INVALID_TYPE, NULL, "an object", element);
        if (!field_need_string(&block, "type", &type)) return false;
        if (strcmp(json_object_get_string(type), "text") != 0)
            return refuse_block(&block, json_object_get_string(type));
        if (!field_need_string(&block, "text", &text)) return false;
        /* It changes with each call and would defeat the prompt cache. */
        if (is_system && !strncmp(json_object_get_string(text), billing, sizeof(billing) - 1))
            continue;
        byte_buffer_put(out, json_object_get_string(text),
                        (size_t)json_object_get_string_len(text));
    }
    return true;
}

static bool add_result(struct chat_turn *turn, const struct field_reader *block)
{
    struct byte_buffer content = {0};
    struct json_object *id;
    bool is_error;
    const bool good = field_need_string(block, "tool_use_id", &id) &&
                      field_bool(block, "is_error", &is_error) &&
                      read_texts(block, "content", false, &content);
    if (good) chat_turn_add_result(turn, id, &content);
    byte_buffer_free(&content);
    return good;
}

static bool add_use(struct chat_turn *turn, const struct field_reader *block)
{
    struct json_object *id, *name, *input = NULL;
    if (!field_need_string(block, "id", &id) || !field_need_string(block, "name", &name) ||
        !field_object(block, "input", &input))
        return false;
    if (!input) return field_fail(block, API_MISSING_FIELD, "input", "is required");
    chat_turn_add_call(turn, id, name, input);
    return true;
}

static bool add_block(struct chat_turn *turn, const struct field_reader *block)
{
    const bool of_assistant = !strcmp(turn->role, "assistant");
    struct json_object *type, *text;
    if (!field_need_string(block, "type", &type)) return false;
    const char *const name = json_object_get_string(type);
    if (!strcmp(name, "text")) {
        if (!field_need_string(block, "text", &text)) return false;
        chat_turn_add_text(turn, text);
        return true;
    }
    if (!of_assistant && !strcmp(name, "tool_result")) return add_result(turn, block);
    if (of_assistant && !strcmp(name, "tool_use")) return add_use(turn, block);
    if (of_assistant && !strcmp(name, "redacted_thinking")) return true;
    if (!of_assistant || strcmp(name, "thinking") != 0) return refuse_block(block, name);
    if (!field_need_string(block, "thinking", &text)) return false;
    chat_turn_add_reasoning(turn, text);
    return true;
}

/* ---- messages */

static bool add_content(struct chat_turn *turn, const struct field_reader *message)
{
    struct json_object *content = field_get(message, "content");
    if (!content) return field_fail(message, API_MISSING_FIELD, "content", "is required");
    if (json_object_is_type(content, json_type_string)) {
        chat_turn_add_text(turn, content);
        return true;
    }
    if (!json_object_is_type(content, json_type_array))
        return field_refuse(message, API_INVALID_TYPE, "content", "a string or an array of blocks",
                            content);
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        struct json_object *element = json_object_array_get_idx(content, i);
        const struct field_reader block =
            field_reader_inside(message, element, "content", (long long)i);
        if (!json_object_is_type(element, json_type_object))
            return field_refuse(&block, API_INVALID_TYPE, NULL, "an object", element);
        if (!add_block(turn, &block)) return false;
    }
    return true;
}

static bool read_role(const struct field_reader *message, const char **role)
{
    struct json_object *value;
    if (!field_need_string(message, "role", &value)) return false;
    const char *const name = json_object_get_string(value);
    *role = !strcmp(name, "user") ? "user" : !strcmp(name, "assistant") ? "assistant" : NULL;
    return *role || field_refuse(message, API_INVALID_VALUE, "role", "user or assistant", value);
}

static bool add_messages(struct json_object *out, const struct field_reader *body,
                         struct chat_turn *turn)
{
    struct json_object *messages = NULL;
    const char *role;
    if (!field_array(body, "messages", SIZE_MAX, &messages)) return false;
    if (!messages) return field_fail(body, API_MISSING_FIELD, "messages", "is required");
    if (!json_object_array_length(messages))
        return field_fail(body, API_INVALID_VALUE, "messages", "must not be empty");
    for (size_t i = 0; i < json_object_array_length(messages); i++) {
        struct json_object *element = json_object_array_get_idx(messages, i);
        const struct field_reader message =
            field_reader_inside(body, element, "messages", (long long)i);
        if (!json_object_is_type(element, json_type_object))
            return field_refuse(&message, API_INVALID_TYPE, NULL, "an object", element);
        if (!read_role(&message, &role)) return false;
        if (turn->role && turn->role != role && !chat_turn_flush(turn, out)) return no_memory(body);
        turn->role = role;
        if (!add_content(turn, &message)) return false;
    }
    return chat_turn_flush(turn, out) || no_memory(body);
}

static bool put_messages(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *messages = json_object_new_array();
    struct byte_buffer system = {0};
    struct chat_turn turn = {0};
    json_object_object_add(chat, "messages", messages);
    bool good = read_texts(body, "system", true, &system);
    if (good && system.n) json_object_array_add(messages, chat_message("system", &system));
    if (good && system.failed) good = no_memory(body);
    good = good && add_messages(messages, body, &turn);
    chat_turn_fini(&turn);
    byte_buffer_free(&system);
    return good;
}

/* ---- tools */

/* Entries with a type of their own are tools that run on somebody else's server. */
static bool put_tools(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *tools = NULL;
    if (!field_array(body, "tools", SIZE_MAX, &tools)) return false;
    if (!tools) return true;
    struct json_object *out = json_object_new_array();
    json_object_object_add(chat, "tools", out);
    for (size_t i = 0; i < json_object_array_length(tools); i++) {
        struct json_object *tool = json_object_array_get_idx(tools, i), *schema = NULL, *name;
        const struct field_reader reader = field_reader_inside(body, tool, "tools", (long long)i);
        const char *type = "custom";
        if (!json_object_is_type(tool, json_type_object))
            return field_refuse(&reader, API_INVALID_TYPE, NULL, "an object", tool);
        if (!field_string(&reader, "type", &type, NULL)) return false;
        if (strcmp(type, "custom") != 0) continue;
        if (!field_need_string(&reader, "name", &name) ||
            !field_object(&reader, "input_schema", &schema))
            return false;
        json_object_array_add(out, chat_tool(tool, "input_schema"));
    }
    return true;
}

static bool put_tool_choice(struct json_object *chat, const struct field_reader *body)
{
    static const char *const simple[][2] = {
        {"auto", "auto"}, {"any", "required"}, {"none", "none"}};
    struct json_object *choice = NULL, *type, *name;
    bool single = false;
    if (!field_object(body, "tool_choice", &choice)) return false;
    if (!choice) return true;
    const struct field_reader reader = field_reader_inside(body, choice, "tool_choice", -1);
    if (!field_need_string(&reader, "type", &type) ||
        !field_bool(&reader, "disable_parallel_tool_use", &single))
        return false;
    if (single) json_object_object_add(chat, "parallel_tool_calls", json_object_new_boolean(false));
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(json_object_get_string(type), simple[i][0]) != 0) continue;
        json_object_object_add(chat, "tool_choice", json_object_new_string(simple[i][1]));
        return true;
    }
    if (strcmp(json_object_get_string(type), "tool") != 0)
        return field_refuse(&reader, API_INVALID_VALUE, "type", "auto, any, tool or none", type);
    if (!field_need_string(&reader, "name", &name)) return false;
    struct json_object *named = json_object_new_object(), *function = json_object_new_object();
    json_object_object_add(function, "name", json_object_get(name));
    json_object_object_add(named, "type", json_object_new_string("function"));
    json_object_object_add(named, "function", function);
    json_object_object_add(chat, "tool_choice", named);
    return true;
}

/* ---- the rest */

/* Fields that mean the same, as they are. */
static void hand_on(struct json_object *chat, struct json_object *body)
{
    static const char *const left_out[] = {
        "messages", "system", "tools", "tool_choice", "stop_sequences", "stop", "metadata",
        /* of the chat API only */
        "n", "best_of", "logprobs", "top_logprobs", "stream_options", "functions", "function_call",
        "parallel_tool_calls", "max_completion_tokens", "n_predict", "return_progress",
        "include_reasoning", NULL};
    json_object_object_foreach(body, key, value)
    {
        if (!field_is_one_of(key, left_out))
            json_object_object_add(chat, key, json_object_get(value));
    }
}

static bool put_limits(struct json_object *chat, const struct field_reader *body, bool counting)
{
    struct json_object *stops = NULL;
    int64_t max_tokens = 0;
    double temperature = 1;
    if (!field_real(body, "temperature", 0, 2, &temperature)) return false;
    if (!field_array(body, "stop_sequences", SIZE_MAX, &stops)) return false;
    if (stops) json_object_object_add(chat, "stop", json_object_get(stops));
    if (counting) {
        json_object_object_del(chat, "max_tokens");
        return true;
    }
    if (!field_get(body, "max_tokens"))
        return field_fail(body, API_MISSING_FIELD, "max_tokens", "is required");
    return field_int(body, "max_tokens", 1, INT64_MAX, &max_tokens);
}

/* The answer has thinking blocks only where thinking was not switched off. */
static bool put_thinking(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *thinking = NULL;
    const char *type = "";
    if (!field_object(body, "thinking", &thinking)) return false;
    if (!thinking) return true;
    const struct field_reader reader = field_reader_inside(body, thinking, "thinking", -1);
    if (!field_string(&reader, "type", &type, NULL)) return false;
    if (!strcmp(type, "disabled"))
        json_object_object_add(chat, "include_reasoning", json_object_new_boolean(false));
    return true;
}

bool messages_request_translate(struct json_object **out, struct json_object *body, bool counting,
                                struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    struct json_object *chat = json_object_new_object();
    hand_on(chat, body);
    if (put_messages(chat, &reader) && put_tools(chat, &reader) && put_tool_choice(chat, &reader) &&
        put_limits(chat, &reader, counting) && put_thinking(chat, &reader)) {
        *out = chat;
        return true;
    }
    json_object_put(chat);
    return false;
}
