#include "coordinator/server/chat_turn.h"

#include <json-c/json.h>

static void put_string(struct byte_buffer *out, struct json_object *text)
{
    byte_buffer_put(out, json_object_get_string(text), (size_t)json_object_get_string_len(text));
}

void chat_turn_add_text(struct chat_turn *turn, struct json_object *text)
{
    turn->has_text = true;
    put_string(&turn->text, text);
}

void chat_turn_add_reasoning(struct chat_turn *turn, struct json_object *text)
{
    put_string(&turn->reasoning, text);
}

void chat_turn_add_call(struct chat_turn *turn, struct json_object *id, struct json_object *name,
                        struct json_object *arguments)
{
    struct json_object *call = json_object_new_object(), *function = json_object_new_object();
    json_object_object_add(function, "name", json_object_get(name));
    json_object_object_add(function, "arguments", json_object_get(arguments));
    json_object_object_add(call, "id", json_object_get(id));
    json_object_object_add(call, "type", json_object_new_string("function"));
    json_object_object_add(call, "function", function);
    if (!turn->calls) turn->calls = json_object_new_array();
    json_object_array_add(turn->calls, call);
}

void chat_turn_add_result(struct chat_turn *turn, struct json_object *id,
                          const struct byte_buffer *content)
{
    struct json_object *message = chat_message("tool", content);
    json_object_object_add(message, "tool_call_id", json_object_get(id));
    if (!turn->results) turn->results = json_object_new_array();
    json_object_array_add(turn->results, message);
    turn->text.failed |= content->failed;
}

/* Results only: there is no message besides them. */
static bool is_message(const struct chat_turn *turn)
{
    return turn->has_text || turn->calls || !turn->results;
}

bool chat_turn_flush(struct chat_turn *turn, struct json_object *messages)
{
    const bool good = !turn->text.failed && !turn->reasoning.failed;
    const size_t n_result = turn->results ? json_object_array_length(turn->results) : 0;
    for (size_t i = 0; turn->role && i < n_result; i++)
        json_object_array_add(messages,
                              json_object_get(json_object_array_get_idx(turn->results, i)));
    if (turn->role && is_message(turn)) {
        struct json_object *message = chat_message(turn->role, &turn->text);
        if (turn->calls && !turn->has_text) json_object_object_add(message, "content", NULL);
        if (turn->reasoning.n)
            json_object_object_add(
                message, "reasoning_content",
                json_object_new_string_len(turn->reasoning.data, (int)turn->reasoning.n));
        if (turn->calls)
            json_object_object_add(message, "tool_calls", json_object_get(turn->calls));
        json_object_array_add(messages, message);
    }
    chat_turn_fini(turn);
    return good;
}

void chat_turn_fini(struct chat_turn *turn)
{
    byte_buffer_free(&turn->text);
    byte_buffer_free(&turn->reasoning);
    json_object_put(turn->calls);
    json_object_put(turn->results);
    *turn = (struct chat_turn){0};
}

struct json_object *chat_message(const char *role, const struct byte_buffer *text)
{
    struct json_object *message = json_object_new_object();
    json_object_object_add(message, "role", json_object_new_string(role));
    json_object_object_add(message, "content",
                           json_object_new_string_len(text->data ? text->data : "", (int)text->n));
    return message;
}

struct json_object *chat_tool(struct json_object *definition, const char *schema)
{
    static const char *const names[] = {"name", "description", "strict"};
    struct json_object *tool = json_object_new_object(), *function = json_object_new_object();
    struct json_object *value;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (json_object_object_get_ex(definition, names[i], &value) && value)
            json_object_object_add(function, names[i], json_object_get(value));
    if (json_object_object_get_ex(definition, schema, &value) && value)
        json_object_object_add(function, "parameters", json_object_get(value));
    json_object_object_add(tool, "type", json_object_new_string("function"));
    json_object_object_add(tool, "function", function);
    return tool;
}
