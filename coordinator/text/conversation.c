#include "coordinator/text/conversation.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/chat_template.h"

/* ---- what the model's file holds */

enum lm_status model_template_source(const struct gguf_file *file, const char *name,
                                     struct gguf_string *source, struct lm_error *err)
{
    char key[200] = "tokenizer.chat_template";
    bool found = false;
    if (name) snprintf(key, sizeof(key), "tokenizer.chat_template.%s", name);
    const enum lm_status status = gguf_get_string(file, key, source, &found, err);
    if (status != LM_OK || found) return status;
    return lm_fail(err, LM_E_NOT_FOUND, "%s: no chat template (key %s)", gguf_path(file), key);
}

static void add_token(const struct gguf_file *file, const char *id_key,
                      struct json_object *variables, const char *name)
{
    const struct gguf_kv *tokens = gguf_find_kv(file, "tokenizer.ggml.tokens");
    uint32_t id = UINT32_MAX;
    if (json_object_object_get_ex(variables, name, NULL)) return;
    if (gguf_get_u32(file, id_key, &id, NULL, NULL) != LM_OK) return;
    if (!tokens || tokens->type != GGUF_ARRAY || tokens->element != GGUF_STRING || id >= tokens->n)
        return;
    const struct gguf_string text = gguf_array_string(file, tokens, id);
    json_object_object_add(variables, name, json_object_new_string_len(text.data, (int)text.n));
}

void model_template_tokens(const struct gguf_file *file, struct json_object *variables)
{
    add_token(file, "tokenizer.ggml.bos_token_id", variables, "bos_token");
    add_token(file, "tokenizer.ggml.eos_token_id", variables, "eos_token");
}

/* ---- messages */

static const char *role_of(struct json_object *message)
{
    struct json_object *role = json_object_object_get(message, "role");
    return json_object_is_type(role, json_type_string) ? json_object_get_string(role) : NULL;
}

static bool is_text_part(struct json_object *part)
{
    struct json_object *type = json_object_object_get(part, "type");
    const char *name = json_object_get_string(type);
    return name &&
           (!strcmp(name, "text") || !strcmp(name, "input_text") || !strcmp(name, "output_text")) &&
           json_object_is_type(json_object_object_get(part, "text"), json_type_string);
}

/* Content that is a list of texts becomes their concatenation. */
static enum lm_status join_parts(struct json_object *message, size_t i_message,
                                 struct lm_error *err)
{
    struct json_object *content = json_object_object_get(message, "content");
    if (!json_object_is_type(content, json_type_array)) return LM_OK;
    size_t n = 0;
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        struct json_object *part = json_object_array_get_idx(content, i);
        if (!json_object_is_type(part, json_type_object) || !is_text_part(part))
            return lm_fail(err, LM_E_UNSUPPORTED, "messages[%zu].content[%zu] is not text",
                           i_message, i);
        n += (size_t)json_object_get_string_len(json_object_object_get(part, "text"));
    }
    char *text = malloc(n + 1);
    if (!text) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes of a message", n);
    char *end = text;
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        struct json_object *part =
            json_object_object_get(json_object_array_get_idx(content, i), "text");
        const size_t n_part = (size_t)json_object_get_string_len(part);
        memcpy(end, json_object_get_string(part), n_part);
        end += n_part;
    }
    json_object_object_add(message, "content", json_object_new_string_len(text, (int)n));
    free(text);
    return LM_OK;
}

/* function_call, the old form of a single call, becomes tool_calls. */
static void wrap_function_call(struct json_object *message)
{
    struct json_object *function;
    if (!json_object_object_get_ex(message, "function_call", &function)) return;
    if (json_object_is_type(function, json_type_object) &&
        !json_object_object_get_ex(message, "tool_calls", NULL)) {
        struct json_object *calls = json_object_new_array(), *call = json_object_new_object();
        json_object_object_add(call, "type", json_object_new_string("function"));
        json_object_object_add(call, "function", json_object_get(function));
        json_object_array_add(calls, call);
        json_object_object_add(message, "tool_calls", calls);
    }
    json_object_object_del(message, "function_call");
}

/* Arguments given as JSON text become the object that templates iterate over; text that is no
 * JSON object stays as it is. */
static void decode_arguments(struct json_object *message)
{
    struct json_object *calls = json_object_object_get(message, "tool_calls");
    if (!json_object_is_type(calls, json_type_array)) return;
    for (size_t i = 0; i < json_object_array_length(calls); i++) {
        struct json_object *call = json_object_array_get_idx(calls, i), *function;
        if (!json_object_is_type(call, json_type_object)) continue;
        if (!json_object_object_get_ex(call, "function", &function)) function = call;
        struct json_object *arguments = json_object_object_get(function, "arguments"), *decoded;
        if (!json_object_is_type(arguments, json_type_string)) continue;
        if (chat_template_read_variables(&decoded, json_object_get_string(arguments),
                                         (size_t)json_object_get_string_len(arguments),
                                         NULL) == LM_OK)
            json_object_object_add(function, "arguments", decoded);
    }
}

/* null counts as absent, but for the content, which templates test for it. */
static void drop_nulls(struct json_object *message)
{
    json_object_object_foreach(message, key, value)
    {
        if (!value && strcmp(key, "content")) json_object_object_del(message, key);
    }
}

static enum lm_status adapt_message(struct json_object *message, size_t i, struct lm_error *err)
{
    struct json_object *reasoning;
    if (!json_object_is_type(message, json_type_object) || !role_of(message))
        return lm_fail(err, LM_E_USAGE, "messages[%zu] is not an object with a role", i);
    drop_nulls(message);
    if (!strcmp(role_of(message), "developer"))
        json_object_object_add(message, "role", json_object_new_string("system"));
    if (!strcmp(role_of(message), "function"))
        json_object_object_add(message, "role", json_object_new_string("tool"));
    if (!json_object_object_get_ex(message, "reasoning_content", NULL) &&
        json_object_object_get_ex(message, "reasoning", &reasoning))
        json_object_object_add(message, "reasoning_content", json_object_get(reasoning));
    wrap_function_call(message);
    decode_arguments(message);
    return join_parts(message, i, err);
}

static enum lm_status adapt_messages(struct json_object **out, struct json_object *messages,
                                     struct lm_error *err)
{
    struct json_object *copy = NULL;
    if (!json_object_is_type(messages, json_type_array))
        return lm_fail(err, LM_E_USAGE, "messages is not an array");
    if (json_object_deep_copy(messages, &copy, NULL))
        return lm_fail(err, LM_E_NO_MEM, "no memory for the messages");
    for (size_t i = 0; i < json_object_array_length(copy); i++) {
        const enum lm_status status = adapt_message(json_object_array_get_idx(copy, i), i, err);
        if (status == LM_OK) continue;
        json_object_put(copy);
        return status;
    }
    *out = copy;
    return LM_OK;
}

enum lm_status conversation_variables(struct json_object **out,
                                      const struct conversation *conversation,
                                      const struct gguf_file *file, struct lm_error *err)
{
    struct json_object *messages = NULL, *tools = conversation->tools;
    enum lm_status status = adapt_messages(&messages, conversation->messages, err);
    if (status != LM_OK) return status;
    tool_format_adapt_history(conversation->tool_format, messages);
    if (conversation->tool_format == TOOL_FORMAT_GENERIC) {
        struct json_object *adapted = messages;
        status = tool_format_generic_messages(&messages, adapted, tools, err);
        json_object_put(adapted);
        if (status != LM_OK) return status;
        tools = NULL;
    } else if (conversation->tools_in_system && tools) {
        struct json_object *adapted = messages;
        status =
            tool_format_add_definitions(&messages, conversation->tool_format, adapted, tools, err);
        json_object_put(adapted);
        if (status != LM_OK) return status;
    }
    struct json_object *variables = json_object_new_object();
    json_object_object_add(variables, "messages", messages);
    json_object_object_add(variables, "tools", json_object_get(tools));
    json_object_object_add(variables, "documents", json_object_get(conversation->documents));
    json_object_object_add(variables, "add_generation_prompt",
                           json_object_new_boolean(conversation->add_generation_prompt));
    if (conversation->thinking != THINKING_DEFAULT) {
        const bool on = conversation->thinking == THINKING_ON;
        json_object_object_add(variables, "enable_thinking", json_object_new_boolean(on));
        json_object_object_add(variables, "thinking", json_object_new_boolean(on));
    }
    if (conversation->extra) {
        json_object_object_foreach(conversation->extra, key, value)
        {
            json_object_object_add(variables, key, json_object_get(value));
        }
    }
    model_template_tokens(file, variables);
    *out = variables;
    return LM_OK;
}
