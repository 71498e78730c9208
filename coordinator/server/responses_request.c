#include "coordinator/server/responses_request.h"

#include <json-c/json.h>
#include <string.h>

#include "coordinator/server/chat_turn.h"
#include "coordinator/server/json_field.h"
#include "proto/base/log.h"

struct input {
    struct json_object *messages; /* the translated ones */
    struct chat_turn turn;
    struct byte_buffer system; /* instructions, and what stands at the beginning */
    bool in_system;            /* still there */
};

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

static bool no_memory(const struct field_reader *reader)
{
    return field_fail(reader, API_OUT_OF_MEMORY, "input", "does not fit in memory");
}

/* ---- texts */

static void put_string(struct byte_buffer *out, struct json_object *text)
{
    byte_buffer_put(out, json_object_get_string(text), (size_t)json_object_get_string_len(text));
}

static bool put_part(const struct field_reader *part, struct byte_buffer *out)
{
    static const char *const texts[] = {"input_text",     "output_text",  "text",
                                        "reasoning_text", "summary_text", NULL};
    static const char *const media[] = {"input_image",  "input_file",          "input_audio",
                                        "output_audio", "computer_screenshot", NULL};
    struct json_object *type, *text;
    if (!json_object_is_type(part->object, json_type_object))
        return field_refuse(part, API_INVALID_TYPE, NULL, "an object", part->object);
    if (!field_need_string(part, "type", &type)) return false;
    const char *const name = json_object_get_string(type);
    if (!strcmp(name, "refusal")) return true;
    if (field_is_one_of(name, media))
        return field_fail(part, API_UNSUPPORTED_CONTENT, "type",
                          "%s is not supported: this model reads text only", name);
    if (!field_is_one_of(name, texts))
        return field_refuse(part, API_INVALID_VALUE, "type", "the type of a text", type);
    if (!field_need_string(part, "text", &text)) return false;
    put_string(out, text);
    return true;
}

/* A string, or text parts. */
static bool put_texts(const struct field_reader *item, const char *name, struct byte_buffer *out)
{
    struct json_object *content = field_get(item, name);
    if (!content) return field_fail(item, API_MISSING_FIELD, name, "is required");
    if (json_object_is_type(content, json_type_string)) {
        put_string(out, content);
        return true;
    }
    if (!json_object_is_type(content, json_type_array))
        return field_refuse(item, API_INVALID_TYPE, name, "a string or an array of parts", content);
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        const struct field_reader part =
            field_reader_inside(item, json_object_array_get_idx(content, i), name, (long long)i);
        if (!put_part(&part, out)) return false;
    }
    return true;
}

/* ---- items */

/* Ends the turn before one of role. A turn of an assistant goes on over several items. */
static bool turn_to(struct input *input, const char *role, bool joins)
{
    struct chat_turn *turn = &input->turn;
    input->in_system = false;
    if (turn->role && (!joins || strcmp(turn->role, role) != 0)) {
        /* reasoning of an answer that is not there */
        if (!strcmp(turn->role, "assistant") && !turn->has_text && !turn->calls)
            chat_turn_fini(turn);
        else if (!chat_turn_flush(turn, input->messages))
            return false;
    }
    turn->role = role;
    return true;
}

static bool add_message(struct input *input, const struct field_reader *item)
{
    static const char *const roles[] = {"user", "assistant", "system", "developer", NULL};
    struct json_object *role;
    if (!field_need_string(item, "role", &role)) return false;
    const char *name = json_object_get_string(role);
    if (!field_is_one_of(name, roles))
        return field_refuse(item, API_INVALID_VALUE, "role", "user, assistant, system or developer",
                            role);
    const bool is_system = !strcmp(name, "system") || !strcmp(name, "developer");
    if (is_system && input->in_system) {
        if (input->system.n) byte_buffer_put_text(&input->system, "\n\n");
        return put_texts(item, "content", &input->system);
    }
    for (const char *const *own = roles; *own; own++)
        if (!strcmp(name, *own)) name = *own; /* of static life */
    if (!turn_to(input, name, !strcmp(name, "assistant"))) return no_memory(item);
    input->turn.has_text = true;
    return put_texts(item, "content", &input->turn.text);
}

static bool add_call(struct input *input, const struct field_reader *item)
{
    struct json_object *id, *name, *arguments;
    if (!field_need_string(item, "call_id", &id) || !field_need_string(item, "name", &name) ||
        !field_need_string(item, "arguments", &arguments))
        return false;
    if (!turn_to(input, "assistant", true)) return no_memory(item);
    chat_turn_add_call(&input->turn, id, name, arguments);
    return true;
}

static bool add_output(struct input *input, const struct field_reader *item)
{
    struct byte_buffer output = {0};
    struct json_object *id;
    bool good = field_need_string(item, "call_id", &id) && put_texts(item, "output", &output);
    if (good && !turn_to(input, "tool", true)) good = no_memory(item);
    if (good) chat_turn_add_result(&input->turn, id, &output);
    byte_buffer_free(&output);
    return good;
}

static bool has_parts(const struct field_reader *item, const char *name)
{
    struct json_object *parts = field_get(item, name);
    return json_object_is_type(parts, json_type_array) && json_object_array_length(parts);
}

static bool add_reasoning(struct input *input, const struct field_reader *item)
{
    const char *const name = has_parts(item, "content") ? "content" : "summary";
    if (!turn_to(input, "assistant", true)) return no_memory(item);
    return !has_parts(item, name) || put_texts(item, name, &input->turn.reasoning);
}

static bool add_item(struct input *input, const struct field_reader *item)
{
    const char *type = "message";
    if (!json_object_is_type(item->object, json_type_object))
        return field_refuse(item, API_INVALID_TYPE, NULL, "an object", item->object);
    if (!field_string(item, "type", &type, NULL)) return false;
    if (!strcmp(type, "message")) return add_message(input, item);
    if (!strcmp(type, "function_call")) return add_call(input, item);
    if (!strcmp(type, "function_call_output")) return add_output(input, item);
    if (!strcmp(type, "reasoning")) return add_reasoning(input, item);
    if (ends_in(type, "_call") || ends_in(type, "_call_output")) return true; /* of dropped tools */
    return field_refuse(item, API_INVALID_VALUE, "type", "a type that this server knows",
                        field_get(item, "type"));
}

static bool add_input(struct input *input, const struct field_reader *body)
{
    struct json_object *value = field_get(body, "input");
    if (!value) return field_fail(body, API_MISSING_FIELD, "input", "is required");
    if (json_object_is_type(value, json_type_string)) {
        turn_to(input, "user", false);
        chat_turn_add_text(&input->turn, value);
    } else if (!json_object_is_type(value, json_type_array)) {
        return field_refuse(body, API_INVALID_TYPE, "input", "a string or an array of items",
                            value);
    } else if (!json_object_array_length(value)) {
        return field_fail(body, API_INVALID_VALUE, "input", "must not be empty");
    }
    for (size_t i = 0;
         json_object_is_type(value, json_type_array) && i < json_object_array_length(value); i++) {
        const struct field_reader item =
            field_reader_inside(body, json_object_array_get_idx(value, i), "input", (long long)i);
        if (!add_item(input, &item)) return false;
    }
    return turn_to(input, NULL, false) || no_memory(body);
}

/* The system message goes in front of the others. */
static bool put_messages(struct json_object *chat, const struct field_reader *body)
{
    struct input input = {.messages = json_object_new_array(), .in_system = true};
    struct json_object *all = json_object_new_array();
    const char *instructions = "";
    size_t n = 0;
    bool good = field_string(body, "instructions", &instructions, &n);
    byte_buffer_put(&input.system, instructions, n);
    good = good && add_input(&input, body);
    if (good && input.system.failed) good = no_memory(body);
    if (good && input.system.n) json_object_array_add(all, chat_message("system", &input.system));
    for (size_t i = 0; good && i < json_object_array_length(input.messages); i++)
        json_object_array_add(all, json_object_get(json_object_array_get_idx(input.messages, i)));
    json_object_object_add(chat, "messages", all);
    chat_turn_fini(&input.turn);
    byte_buffer_free(&input.system);
    json_object_put(input.messages);
    return good;
}

/* ---- tools */

static bool put_tools(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *tools = NULL;
    size_t n_dropped = 0;
    if (!field_array(body, "tools", SIZE_MAX, &tools)) return false;
    if (!tools) return true;
    struct json_object *out = json_object_new_array();
    json_object_object_add(chat, "tools", out);
    for (size_t i = 0; i < json_object_array_length(tools); i++) {
        struct json_object *tool = json_object_array_get_idx(tools, i), *type, *name;
        const struct field_reader reader = field_reader_inside(body, tool, "tools", (long long)i);
        if (!json_object_is_type(tool, json_type_object))
            return field_refuse(&reader, API_INVALID_TYPE, NULL, "an object", tool);
        if (!field_need_string(&reader, "type", &type)) return false;
        if (strcmp(json_object_get_string(type), "function") != 0) {
            n_dropped++;
            continue;
        }
        if (!field_need_string(&reader, "name", &name)) return false;
        json_object_array_add(out, chat_tool(tool, "parameters"));
    }
    if (n_dropped) log_verbose("a request has %zu tools that are no functions", n_dropped);
    return true;
}

/* {"type": "function", "name": N} as the chat API writes it. */
static bool named_tool(const struct field_reader *reader, struct json_object **out)
{
    struct json_object *type, *name;
    if (!json_object_is_type(reader->object, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, NULL, "an object", reader->object);
    if (!field_need_string(reader, "type", &type)) return false;
    if (strcmp(json_object_get_string(type), "function") != 0)
        return field_refuse(reader, API_INVALID_VALUE, "type", "\"function\"", type);
    if (!field_need_string(reader, "name", &name)) return false;
    *out = chat_tool(reader->object, "");
    return true;
}

static bool put_allowed_tools(struct json_object *chat, const struct field_reader *choice)
{
    struct json_object *list = NULL, *tool = NULL;
    struct json_object *out = json_object_new_object(), *allowed = json_object_new_object();
    struct json_object *tools = json_object_new_array();
    json_object_object_add(allowed, "mode", json_object_get(field_get(choice, "mode")));
    json_object_object_add(allowed, "tools", tools);
    json_object_object_add(out, "type", json_object_new_string("allowed_tools"));
    json_object_object_add(out, "allowed_tools", allowed);
    json_object_object_add(chat, "tool_choice", out);
    if (!field_array(choice, "tools", SIZE_MAX, &list)) return false;
    for (size_t i = 0; list && i < json_object_array_length(list); i++) {
        const struct field_reader one =
            field_reader_inside(choice, json_object_array_get_idx(list, i), "tools", (long long)i);
        if (!named_tool(&one, &tool)) return false;
        json_object_array_add(tools, tool);
    }
    return true;
}

static bool put_tool_choice(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *choice = field_get(body, "tool_choice"), *type, *tool = NULL;
    if (!json_object_is_type(choice, json_type_object)) {
        if (choice) json_object_object_add(chat, "tool_choice", json_object_get(choice));
        return true;
    }
    const struct field_reader reader = field_reader_inside(body, choice, "tool_choice", -1);
    if (!field_need_string(&reader, "type", &type)) return false;
    if (!strcmp(json_object_get_string(type), "allowed_tools"))
        return put_allowed_tools(chat, &reader);
    if (!named_tool(&reader, &tool)) return false;
    json_object_object_add(chat, "tool_choice", tool);
    return true;
}

/* ---- the rest */

/* text.format: its members stand in an object of their own in the chat API. */
static bool put_format(struct json_object *chat, const struct field_reader *body)
{
    static const char *const names[] = {"name", "schema", "strict", "description"};
    struct json_object *text = NULL, *format = NULL, *type, *value;
    if (!field_object(body, "text", &text)) return false;
    if (!text) return true;
    const struct field_reader inside = field_reader_inside(body, text, "text", -1);
    if (!field_object(&inside, "format", &format)) return false;
    if (!format) return true;
    const struct field_reader reader = field_reader_inside(&inside, format, "format", -1);
    if (!field_need_string(&reader, "type", &type)) return false;
    struct json_object *out = json_object_new_object();
    json_object_object_add(chat, "response_format", out);
    json_object_object_add(out, "type", json_object_get(type));
    if (strcmp(json_object_get_string(type), "json_schema") != 0) return true;
    struct json_object *schema = json_object_new_object();
    json_object_object_add(out, "json_schema", schema);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (json_object_object_get_ex(format, names[i], &value) && value)
            json_object_object_add(schema, names[i], json_object_get(value));
    return true;
}

static bool put_reasoning(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *reasoning = NULL;
    if (!field_object(body, "reasoning", &reasoning)) return false;
    if (!reasoning) return true;
    const struct field_reader inside = field_reader_inside(body, reasoning, "reasoning", -1);
    const char *effort = NULL;
    if (!field_string(&inside, "effort", &effort, NULL)) return false;
    if (effort)
        json_object_object_add(chat, "reasoning_effort",
                               json_object_get(field_get(&inside, "effort")));
    return true;
}

static bool wants_logprobs(struct json_object *include)
{
    for (size_t i = 0; include && i < json_object_array_length(include); i++) {
        struct json_object *name = json_object_array_get_idx(include, i);
        if (json_object_is_type(name, json_type_string) &&
            !strcmp(json_object_get_string(name), "message.output_text.logprobs"))
            return true;
    }
    return false;
}

static bool put_limits(struct json_object *chat, const struct field_reader *body)
{
    struct json_object *include = NULL, *value;
    int64_t n = 0;
    if (!field_int(body, "max_output_tokens", 1, INT64_MAX, &n) ||
        !field_int(body, "top_logprobs", 0, INT32_MAX, &n) ||
        !field_array(body, "include", SIZE_MAX, &include))
        return false;
    value = field_get(body, "max_output_tokens");
    if (value) json_object_object_add(chat, "max_tokens", json_object_get(value));
    value = field_get(body, "top_logprobs");
    if (value) json_object_object_add(chat, "top_logprobs", json_object_get(value));
    if (value || wants_logprobs(include))
        json_object_object_add(chat, "logprobs", json_object_new_boolean(true));
    return true;
}

/* What needs a memory between requests. */
static bool refuse_state(const struct field_reader *body)
{
    bool background = false;
    if (field_get(body, "previous_response_id"))
        return field_fail(body, API_NOT_SUPPORTED_FIELD, "previous_response_id",
                          "is not supported: send the full input again");
    if (field_get(body, "conversation"))
        return field_fail(body, API_NOT_SUPPORTED_FIELD, "conversation",
                          "is not supported: send the full input again");
    if (!field_bool(body, "background", &background)) return false;
    return !background ||
           field_fail(body, API_NOT_SUPPORTED_FIELD, "background", "is not supported");
}

static void hand_on(struct json_object *chat, struct json_object *body)
{
    static const char *const left_out[] = {
        "input", "instructions", "tools", "tool_choice", "max_output_tokens", "text", "reasoning",
        "top_logprobs", "include", "previous_response_id", "conversation", "background", "store",
        "truncation", "metadata", "client_metadata", "user", "service_tier", "stream_options",
        "prompt",
        /* of the chat API only */
        "messages", "n", "best_of", "logprobs", "functions", "function_call", "max_tokens",
        "max_completion_tokens", "n_predict", "return_progress", "response_format", NULL};
    json_object_object_foreach(body, key, value)
    {
        if (!field_is_one_of(key, left_out))
            json_object_object_add(chat, key, json_object_get(value));
    }
}

bool responses_request_translate(struct json_object **out, struct json_object *body,
                                 struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    struct json_object *chat = json_object_new_object();
    hand_on(chat, body);
    if (refuse_state(&reader) && put_messages(chat, &reader) && put_tools(chat, &reader) &&
        put_tool_choice(chat, &reader) && put_format(chat, &reader) &&
        put_reasoning(chat, &reader) && put_limits(chat, &reader)) {
        *out = chat;
        return true;
    }
    json_object_put(chat);
    return false;
}
