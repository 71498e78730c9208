#include "coordinator/server/chat_prompt.h"

#include <json-c/json.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/server/replay.h"
#include "coordinator/server/server.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/fence.h"
#include "coordinator/text/reasoning.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/byte_buffer.h"

/* ---- messages ---- */

static const char *string_of(struct json_object *value)
{
    return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

static bool check_part(const struct field_reader *reader)
{
    static const char *const texts[] = {"text", "input_text", "output_text", NULL};
    static const char *const others[] = {"image_url", "image", "input_image", "input_audio",
                                         "audio_url", "audio", "file",        "input_file",
                                         "video_url", "video", "input_video", NULL};
    const char *type = NULL, *text = NULL;
    size_t n;
    if (!json_object_is_type(reader->object, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, NULL, "an object", reader->object);
    if (!field_string(reader, "type", &type, NULL)) return false;
    if (!type) return field_fail(reader, API_MISSING_FIELD, "type", "is required");
    if (field_is_one_of(type, others))
        return field_fail(reader, API_UNSUPPORTED_CONTENT, NULL,
                          "is of type %s: this model reads text only", type);
    if (!field_is_one_of(type, texts))
        return field_refuse(reader, API_INVALID_VALUE, "type", "\"text\"",
                            field_get(reader, "type"));
    if (!field_string(reader, "text", &text, &n)) return false;
    return text || field_fail(reader, API_MISSING_FIELD, "text", "is required");
}

/* A string, or text parts. required: neither absent nor null. */
static bool check_content(const struct field_reader *reader, bool required)
{
    struct json_object *content = field_get(reader, "content");
    if (!content)
        return !required || field_fail(reader, API_MISSING_FIELD, "content", "is required");
    if (json_object_is_type(content, json_type_string)) return true;
    if (!json_object_is_type(content, json_type_array))
        return field_refuse(reader, API_INVALID_TYPE, "content", "a string or an array of parts",
                            content);
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        const struct field_reader part = field_reader_inside(
            reader, json_object_array_get_idx(content, i), "content", (long long)i);
        if (!check_part(&part)) return false;
    }
    return true;
}

/* A call's name and arguments. */
static bool check_function(const struct field_reader *reader)
{
    const char *name = NULL;
    if (!field_string(reader, "name", &name, NULL)) return false;
    if (!name) return field_fail(reader, API_MISSING_FIELD, "name", "is required");
    struct json_object *arguments = field_get(reader, "arguments");
    return !arguments || json_object_is_type(arguments, json_type_object) ||
           json_object_is_type(arguments, json_type_string) ||
           field_refuse(reader, API_INVALID_TYPE, "arguments", "a JSON text or an object",
                        arguments);
}

static bool check_call(const struct field_reader *reader)
{
    struct json_object *function = NULL;
    if (!json_object_is_type(reader->object, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, NULL, "an object", reader->object);
    if (!field_object(reader, "function", &function)) return false;
    if (!function) return field_fail(reader, API_MISSING_FIELD, "function", "is required");
    const struct field_reader inside = field_reader_inside(reader, function, "function", -1);
    return check_function(&inside);
}

static bool check_assistant(const struct field_reader *reader)
{
    struct json_object *calls = NULL;
    const char *reasoning;
    size_t n;
    if (!field_array(reader, "tool_calls", SIZE_MAX, &calls) ||
        !field_string(reader, "reasoning_content", &reasoning, &n) ||
        !field_string(reader, "reasoning", &reasoning, &n))
        return false;
    const size_t n_call = calls ? json_object_array_length(calls) : 0;
    struct json_object *old_call = NULL; /* {"name", "arguments"}: the old form of one call */
    if (!n_call && !field_object(reader, "function_call", &old_call)) return false;
    if (old_call) {
        const struct field_reader inside =
            field_reader_inside(reader, old_call, "function_call", -1);
        if (!check_function(&inside)) return false;
    }
    for (size_t i = 0; i < n_call; i++) {
        const struct field_reader call = field_reader_inside(
            reader, json_object_array_get_idx(calls, i), "tool_calls", (long long)i);
        if (!check_call(&call)) return false;
    }
    return check_content(reader, n_call == 0 && !old_call);
}

static bool check_message(const struct field_reader *reader)
{
    static const char *const roles[] = {"system", "developer", "user", "tool", "function", NULL};
    const char *role = NULL, *text;
    if (!json_object_is_type(reader->object, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, NULL, "an object", reader->object);
    if (!field_string(reader, "role", &role, NULL)) return false;
    if (!role) return field_fail(reader, API_MISSING_FIELD, "role", "is required");
    if (!strcmp(role, "assistant")) return check_assistant(reader);
    if (!field_is_one_of(role, roles))
        return field_refuse(reader, API_INVALID_VALUE, "role",
                            "system, developer, user, assistant or tool",
                            field_get(reader, "role"));
    return field_string(reader, "tool_call_id", &text, NULL) && check_content(reader, true);
}

static const char *role_at(struct json_object *messages, size_t i)
{
    return string_of(json_object_object_get(json_object_array_get_idx(messages, i), "role"));
}

static bool check_messages(const struct field_reader *reader, struct json_object *messages)
{
    const size_t n = json_object_array_length(messages);
    if (!n) return field_fail(reader, API_INVALID_VALUE, "messages", "must not be empty");
    for (size_t i = 0; i < n; i++) {
        const struct field_reader message = field_reader_inside(
            reader, json_object_array_get_idx(messages, i), "messages", (long long)i);
        if (!check_message(&message)) return false;
    }
    if (n >= 2 && !strcmp(role_at(messages, n - 1), "assistant") &&
        !strcmp(role_at(messages, n - 2), "assistant"))
        return field_fail(reader, API_INVALID_VALUE, "messages",
                          "must not end with more than one assistant message");
    return true;
}

/* ---- reasoning ---- */

static bool read_effort(struct chat_fields *fields, const struct field_reader *reader)
{
    static const char *const efforts[] = {"none", "minimal", "low", "medium",
                                          "high", "xhigh",   "max", NULL};
    const char *effort = NULL;
    if (!field_string(reader, "reasoning_effort", &effort, NULL)) return false;
    if (!effort) return true;
    if (!field_is_one_of(effort, efforts))
        return field_refuse(reader, API_INVALID_VALUE, "reasoning_effort",
                            "none, minimal, low, medium, high, xhigh or max",
                            field_get(reader, "reasoning_effort"));
    fields->thinking = strcmp(effort, "none") ? THINKING_ON : THINKING_OFF;
    if (fields->thinking == THINKING_ON) fields->effort = effort;
    return true;
}

/* thinking: {"type": ..., "budget_tokens": N} or a boolean; think: a boolean. */
static bool read_switch(struct chat_fields *fields, const struct field_reader *reader)
{
    struct json_object *value = field_get(reader, "thinking");
    bool on = fields->thinking != THINKING_OFF;
    if (json_object_is_type(value, json_type_object)) {
        static const char *const types[] = {"enabled", "disabled", "adaptive", NULL};
        const struct field_reader inside = field_reader_inside(reader, value, "thinking", -1);
        const char *type = "adaptive";
        if (!field_string(&inside, "type", &type, NULL) ||
            !field_int(&inside, "budget_tokens", 0, INT32_MAX, &fields->reasoning_budget))
            return false;
        if (!field_is_one_of(type, types))
            return field_refuse(&inside, API_INVALID_VALUE, "type", "enabled, disabled or adaptive",
                                field_get(&inside, "type"));
        if (strcmp(type, "adaptive"))
            fields->thinking = strcmp(type, "disabled") ? THINKING_ON : THINKING_OFF;
    } else if (value) {
        if (!field_bool(reader, "thinking", &on)) return false;
        fields->thinking = on ? THINKING_ON : THINKING_OFF;
    }
    if (!field_get(reader, "think")) return true;
    if (!field_bool(reader, "think", &on)) return false;
    fields->thinking = on ? THINKING_ON : THINKING_OFF;
    return true;
}

static bool read_format(struct chat_fields *fields, const struct field_reader *reader)
{
    const char *format = NULL;
    if (!field_string(reader, "reasoning_format", &format, NULL)) return false;
    if (!format) return true;
    fields->split_reasoning = !strcmp(format, "auto");
    return fields->split_reasoning || !strcmp(format, "none") ||
           field_refuse(reader, API_INVALID_VALUE, "reasoning_format", "auto or none",
                        field_get(reader, "reasoning_format"));
}

/* The server's variables, then the request's. A switch of the request's own is stronger than the
 * server's. */
static bool read_kwargs(struct chat_fields *fields, const struct field_reader *reader,
                        const struct server *server)
{
    struct json_object *given = NULL, *defaults = server->settings.template_kwargs;
    if (!field_object(reader, "chat_template_kwargs", &given)) return false;
    if (!given && !defaults && !fields->effort) return true;
    /* a copy: counts of references are not shared between threads */
    if (defaults ? json_object_deep_copy(defaults, &fields->kwargs, NULL) != 0
                 : !(fields->kwargs = json_object_new_object()))
        return field_fail(reader, API_OUT_OF_MEMORY, "chat_template_kwargs",
                          "does not fit in memory");
    if (fields->thinking != THINKING_DEFAULT) {
        json_object_object_del(fields->kwargs, "enable_thinking");
        json_object_object_del(fields->kwargs, "thinking");
    }
    if (fields->effort)
        json_object_object_add(fields->kwargs, "reasoning_effort",
                               json_object_new_string(fields->effort));
    if (given) {
        json_object_object_foreach(given, key, value)
        {
            json_object_object_add(fields->kwargs, key, json_object_get(value));
        }
    }
    return true;
}

static bool read_reasoning(struct chat_fields *fields, const struct field_reader *reader,
                           const struct server *server)
{
    return read_effort(fields, reader) && read_switch(fields, reader) &&
           read_kwargs(fields, reader, server) && read_format(fields, reader) &&
           field_bool(reader, "include_reasoning", &fields->include_reasoning) &&
           field_int(reader, "reasoning_budget", -1, INT32_MAX, &fields->reasoning_budget) &&
           field_int(reader, "thinking_token_budget", -1, INT32_MAX, &fields->reasoning_budget);
}

/* ---- the rest of the fields ---- */

/* An assistant message at the end that the answer can go on with. */
static bool can_continue(struct json_object *messages)
{
    const size_t n = json_object_array_length(messages);
    struct json_object *last = json_object_array_get_idx(messages, n - 1), *calls;
    const char *content = string_of(json_object_object_get(last, "content"));
    const bool has_calls = json_object_object_get_ex(last, "tool_calls", &calls) &&
                           json_object_is_type(calls, json_type_array) &&
                           json_object_array_length(calls);
    const bool has_old_call = json_object_object_get(last, "function_call") != NULL;
    return !strcmp(role_at(messages, n - 1), "assistant") && content && *content && !has_calls &&
           !has_old_call;
}

static bool read_continuation(struct chat_fields *fields, const struct field_reader *reader)
{
    const bool can = can_continue(fields->messages);
    const bool adds = field_get(reader, "add_generation_prompt") != NULL;
    bool continues = can;
    fields->add_generation_prompt = true;
    if (!field_bool(reader, "add_generation_prompt", &fields->add_generation_prompt) ||
        !field_bool(reader, "continue_final_message", &continues))
        return false;
    if (field_get(reader, "continue_final_message") && continues) {
        if (!can)
            return field_fail(reader, API_INVALID_VALUE, "continue_final_message",
                              "needs an assistant message with text at the end");
        if (adds && fields->add_generation_prompt)
            return field_fail(reader, API_INVALID_VALUE, "continue_final_message",
                              "and add_generation_prompt must not both be true");
    }
    fields->continues = continues;
    return true;
}

static bool read_template(struct chat_fields *fields, const struct field_reader *reader,
                          const struct server *server)
{
    const char *source = NULL;
    size_t n;
    struct lm_error err;
    if (!field_get(reader, "chat_template")) return true;
    if (!server->settings.request_template)
        return field_fail(reader, API_INVALID_VALUE, "chat_template",
                          "is not taken from requests by this server");
    if (!field_string(reader, "chat_template", &source, &n)) return false;
    const enum lm_status status = chat_template_compile(&fields->chat_template, source, n, &err);
    if (status == LM_OK) return true;
    if (status == LM_E_NO_MEM) return api_fail_status(reader->error, &err, "chat_template");
    return api_fail(reader->error, API_TEMPLATE_ERROR, "chat_template", "%.600s", err.message);
}

bool chat_fields_read(struct chat_fields *fields, const struct field_reader *reader,
                      const struct server *server)
{
    *fields = (struct chat_fields){
        .reasoning_budget = server->settings.reasoning_budget,
        .include_reasoning = true,
        .split_reasoning = server->settings.split_reasoning,
    };
    if (!field_get(reader, "messages"))
        return field_fail(reader, API_MISSING_FIELD, "messages", "is required");
    return field_array(reader, "messages", SIZE_MAX, &fields->messages) &&
           check_messages(reader, fields->messages) && read_template(fields, reader, server) &&
           tool_fields_read(&fields->tool, reader, server) &&
           field_array(reader, "documents", SIZE_MAX, &fields->documents) &&
           read_reasoning(fields, reader, server) && read_continuation(fields, reader);
}

void chat_fields_fini(struct chat_fields *fields)
{
    json_object_put(fields->kwargs);
    chat_template_destroy(fields->chat_template);
    tool_fields_fini(&fields->tool);
}

/* ---- the prompt ---- */

static bool no_memory(struct api_error *error)
{
    return api_fail(error, API_OUT_OF_MEMORY, NULL, "The server has no memory for the prompt.");
}

/* The messages as the template is to see them: marked, and with the end mark behind the last one if
 * the answer goes on with it. The caller's to put. */
static struct json_object *mark_messages(const struct fence *fence,
                                         const struct chat_fields *fields, bool marks_end)
{
    const size_t n = json_object_array_length(fields->messages);
    struct json_object *marked = json_object_new_array();
    for (size_t i = 0; marked && i < n; i++) {
        struct json_object *message = json_object_array_get_idx(fields->messages, i);
        const bool is_assistant = !strcmp(role_at(fields->messages, i), "assistant");
        struct json_object *copy = fence_mark(fence, message, is_assistant);
        if (!copy || json_object_array_add(marked, copy)) {
            json_object_put(copy);
            json_object_put(marked);
            return NULL;
        }
        if (i + 1 < n || !marks_end) continue;
        struct json_object *content = json_object_object_get(copy, "content");
        struct byte_buffer text = {0};
        byte_buffer_put(&text, json_object_get_string(content),
                        (size_t)json_object_get_string_len(content));
        byte_buffer_put(&text, fence->end_mark, FENCE_MARK_BYTES);
        if (!text.failed)
            json_object_object_add(copy, "content",
                                   json_object_new_string_len(text.data, (int)text.n));
        byte_buffer_free(&text);
    }
    return marked;
}

static const struct chat_template *template_of(const struct chat_fields *fields,
                                               const struct server *server)
{
    return fields->chat_template ? fields->chat_template : server->chat_template;
}

static bool render(char **text, size_t *n, const struct chat_template *chat_template,
                   const struct conversation *conversation, const struct server *server,
                   struct api_error *error)
{
    struct json_object *variables = NULL;
    struct lm_error err;
    const time_t now = time(NULL);
    struct tm clock;
    localtime_r(&now, &clock);
    if (conversation_variables(&variables, conversation, server->file, &err) != LM_OK)
        return api_fail_status(error, &err, "messages");
    const enum lm_status status =
        chat_template_render(chat_template, variables, &clock, text, n, &err);
    json_object_put(variables);
    if (status == LM_OK) return true;
    if (status == LM_E_NO_MEM) return no_memory(error);
    return api_fail(error, API_TEMPLATE_ERROR, "messages", "%.600s", err.message);
}

/* Renders with the marks and takes them out again. continues: up to the end of the last message;
 * *found: whether the template wrote it at all. */
static bool render_fenced(struct chat_prompt *prompt, struct fence *fence,
                          const struct chat_fields *fields, const struct server *server,
                          bool continues, bool *found, struct api_error *error)
{
    struct lm_error err;
    struct conversation conversation = {
        .messages = mark_messages(fence, fields, continues),
        .tools = fields->tool.tools ? fence_mark(fence, fields->tool.tools, false) : NULL,
        .documents = fields->documents ? fence_mark(fence, fields->documents, false) : NULL,
        .extra = fields->kwargs,
        .thinking = fields->thinking,
        .tool_format = fields->tool.format,
        .tools_in_system = fields->tool.in_system,
        .add_generation_prompt = !continues && fields->add_generation_prompt,
    };
    size_t end = SIZE_MAX;
    bool good = conversation.messages && !conversation.tools == !fields->tool.tools &&
                !conversation.documents == !fields->documents;
    if (!good) no_memory(error);
    good = good && render(&prompt->text, &prompt->n_text, template_of(fields, server),
                          &conversation, server, error);
    if (good && fence_strip(fence, prompt->text, &prompt->n_text, &end, &err) != LM_OK)
        good = api_fail_status(error, &err, NULL);
    json_object_put(conversation.messages);
    json_object_put(conversation.tools);
    json_object_put(conversation.documents);
    *found = end != SIZE_MAX;
    if (good && *found) prompt->n_text = end;
    return good;
}

/* A reasoning block that is open at the end of the prompt: by the template, or in the beginning of
 * the answer that the request gave. */
static bool opens_reasoning(const struct chat_prompt *prompt, const struct chat_fields *fields)
{
    if (!fields->continues) return reasoning_prompt_opens(prompt->text, prompt->n_text);
    const size_t n = json_object_array_length(fields->messages);
    const char *content = string_of(
        json_object_object_get(json_object_array_get_idx(fields->messages, n - 1), "content"));
    const char *begin = strstr(content, "<think>");
    return begin && !strstr(begin, "</think>");
}

/* The tokens that begin messages: those like the first control token that is no begin or end of
 * text. */
static bool find_turns(struct chat_prompt *prompt, const struct tokenizer *tokenizer)
{
    int32_t begins = -1;
    size_t n = 0;
    for (size_t i = 0; i < prompt->n; i++) {
        const int32_t id = prompt->ids[i];
        if (begins < 0 && tokenizer_token_kind(tokenizer, id) == TOKEN_CONTROL &&
            id != tokenizer_bos(tokenizer) && !tokenizer_is_end(tokenizer, id))
            begins = id;
        n += begins >= 0 && id == begins;
    }
    if (!n) return true;
    prompt->turns = malloc(n * sizeof(*prompt->turns));
    if (!prompt->turns) return false;
    for (size_t i = 1; i < prompt->n; i++)
        if (prompt->ids[i] == begins) prompt->turns[prompt->n_turn++] = i;
    return true;
}

static bool tokenize(struct chat_prompt *prompt, const struct fence *fence,
                     const struct replay *replay, const struct tokenizer *tokenizer, bool add_begin,
                     struct api_error *error)
{
    struct lm_error err;
    size_t n_fence = fence->n_place;
    while (n_fence && fence->places[n_fence - 1] >= prompt->n_text)
        n_fence--; /* behind the end of a message that is continued */
    if (replay_encode(replay, tokenizer, prompt->text, prompt->n_text, fence->places, n_fence,
                      &prompt->ids, &prompt->n, &err) != LM_OK)
        return api_fail_status(error, &err, "messages");
    const int32_t bos = tokenizer_bos(tokenizer);
    if (add_begin && tokenizer_adds_bos(tokenizer) && (!prompt->n || prompt->ids[0] != bos)) {
        int32_t *grown = realloc(prompt->ids, (prompt->n + 1) * sizeof(*grown));
        if (!grown) return no_memory(error);
        memmove(grown + 1, grown, prompt->n++ * sizeof(*grown));
        grown[0] = bos;
        prompt->ids = grown;
        prompt->has_added_bos = true;
    }
    if (!prompt->n)
        return api_fail(error, API_TEMPLATE_ERROR, "messages",
                        "The chat template writes nothing for these messages.");
    return find_turns(prompt, tokenizer) || no_memory(error);
}

/* Where a template leaves out the message to go on with, its text goes behind the prompt for an
 * answer to the others. */
static bool render_behind(struct chat_prompt *prompt, struct fence *fence,
                          const struct chat_fields *fields, const struct server *server,
                          struct api_error *error)
{
    struct chat_fields others = *fields;
    const size_t n = json_object_array_length(fields->messages);
    struct json_object *content =
        json_object_object_get(json_object_array_get_idx(fields->messages, n - 1), "content");
    bool found;
    others.messages = json_object_new_array();
    others.add_generation_prompt = true;
    for (size_t i = 0; i + 1 < n; i++)
        json_object_array_add(others.messages,
                              json_object_get(json_object_array_get_idx(fields->messages, i)));
    free(prompt->text);
    prompt->text = NULL;
    fence->n_place = 0;
    const bool good = render_fenced(prompt, fence, &others, server, false, &found, error);
    json_object_put(others.messages);
    if (!good) return false;
    struct byte_buffer joined = {0};
    byte_buffer_put(&joined, prompt->text, prompt->n_text);
    byte_buffer_put(&joined, json_object_get_string(content),
                    (size_t)json_object_get_string_len(content));
    if (joined.failed) {
        byte_buffer_free(&joined);
        return no_memory(error);
    }
    free(prompt->text);
    prompt->text = joined.data;
    prompt->n_text = joined.n;
    return true;
}

/* As the messages are written. */
static bool render_plain(struct chat_prompt *prompt, struct fence *fence,
                         const struct chat_fields *fields, const struct server *server,
                         struct api_error *error)
{
    bool found;
    return render_fenced(prompt, fence, fields, server, fields->continues, &found, error) &&
           (!fields->continues || found || render_behind(prompt, fence, fields, server, error));
}

/* With marks for the answers that are remembered. False: the template has no use for them. */
static bool render_replayed(struct chat_prompt *prompt, struct fence *fence, struct replay *replay,
                            const struct chat_fields *fields, const struct server *server)
{
    struct chat_fields marked = *fields;
    struct api_error unused;
    marked.messages = replay->messages;
    if (render_plain(prompt, fence, &marked, server, &unused) &&
        replay_locate(replay, prompt->text, prompt->n_text))
        return true;
    free(prompt->text);
    prompt->text = NULL;
    fence->n_place = 0;
    replay_fini(replay);
    *replay = (struct replay){0};
    return false;
}

/* Tokens, and the text that they are the tokens of. */
static bool end_prompt(struct chat_prompt *prompt, const struct fence *fence,
                       const struct replay *replay, const struct chat_fields *fields,
                       const struct server *server, bool add_begin, struct api_error *error)
{
    size_t n;
    prompt->opens_reasoning = opens_reasoning(prompt, fields);
    prompt->closes_reasoning =
        fields->continues || reasoning_prompt_closes(prompt->text, prompt->n_text);
    if (!tokenize(prompt, fence, replay, server->tokenizer, add_begin, error)) return false;
    char *text = replay_text(replay, server->tokenizer, prompt->text, prompt->n_text, &n);
    if (!text) return no_memory(error);
    free(prompt->text);
    prompt->text = text;
    prompt->n_text = n;
    return true;
}

bool chat_prompt_build(struct chat_prompt *prompt, const struct chat_fields *fields,
                       const struct server *server, bool add_begin, struct api_error *error)
{
    struct json_object *const values[] = {fields->messages, fields->tool.tools, fields->documents,
                                          fields->kwargs};
    const struct tokenizer *untrusted =
        server->settings.trust_message_specials ? NULL : server->tokenizer;
    struct fence fence;
    struct replay replay;
    struct lm_error err;
    *prompt = (struct chat_prompt){0};
    if (!template_of(fields, server))
        return api_fail(error, API_NOT_SUPPORTED, "messages",
                        "The model has no chat template; /v1/completions continues plain text.");
    if (fence_init(&fence, untrusted, values, sizeof(values) / sizeof(*values), &err) != LM_OK)
        return api_fail_status(error, &err, "messages");
    bool good = replay_init(&replay, server->calls, fields->messages) || no_memory(error);
    good = good && ((replay.n_answer && render_replayed(prompt, &fence, &replay, fields, server)) ||
                    render_plain(prompt, &fence, fields, server, error));
    good = good && end_prompt(prompt, &fence, &replay, fields, server, add_begin, error);
    replay_fini(&replay);
    fence_fini(&fence);
    return good;
}

void chat_prompt_fini(struct chat_prompt *prompt)
{
    free(prompt->text);
    free(prompt->ids);
    free(prompt->turns);
}
