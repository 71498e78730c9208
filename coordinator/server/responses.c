#include "coordinator/server/responses.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/server/chat_request.h"
#include "coordinator/server/generation.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/logprobs.h"
#include "coordinator/server/responses_request.h"
#include "coordinator/server/server.h"

enum item_kind { ITEM_NONE, ITEM_REASONING, ITEM_MESSAGE, ITEM_CALL };

/* The item that is being written. */
struct item {
    enum item_kind kind;
    char id[RANDOM_ID_SIZE], call_id[RANDOM_ID_SIZE];
    struct byte_buffer name;     /* of the function */
    struct byte_buffer text;     /* or the arguments */
    struct json_writer logprobs; /* inside the brackets */
};

struct responses {
    struct chat_fields fields;
    struct json_object *request; /* of what the client wrote the fields that are echoed */
    struct item item;
    size_t n_item;               /* begun ones */
    struct json_writer output;   /* complete items, inside the brackets */
    struct json_writer logprobs; /* that no delta has had yet, inside the brackets */
    size_t n_event;
    bool begun;             /* the first events are out */
    struct json_writer out; /* scratch */
};

static struct responses *responses_of(const struct generation_choice *choice)
{
    return choice->generation->sink_context;
}

static bool streams(const struct generation_choice *choice)
{
    return choice->generation->fields.stream;
}

static void put_bytes(struct json_writer *out, const char *key, const struct byte_buffer *text)
{
    json_put_key(out, key);
    json_put_string(out, text->data ? text->data : "", text->n);
    out->text.failed |= text->failed;
}

static void put_json(struct json_writer *out, const char *key, const char *json)
{
    json_put_key(out, key);
    json_put_value(out, json, strlen(json));
}

/* ---- the response object ---- */

static struct json_object *member(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;
    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, name, &value);
    return value;
}

/* A field of the request, or what stands for an absent one. */
static void put_echo(struct json_writer *out, const char *key, struct json_object *value,
                     const char *otherwise)
{
    put_json(out, key,
             value ? json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                               JSON_C_TO_STRING_NOSLASHESCAPE)
                   : otherwise);
}

static void put_request(struct json_writer *out, const struct generation *generation)
{
    const struct responses *responses = generation->sink_context;
    const struct sampling_params *sampling = &generation->fields.sampling;
    struct json_object *request = responses->request;
    struct json_object *reasoning = member(request, "reasoning");
    put_echo(out, "parallel_tool_calls", member(request, "parallel_tool_calls"), "true");
    json_put_key(out, "temperature");
    json_put_float(out, sampling->temperature);
    json_put_key(out, "top_p");
    json_put_float(out, sampling->top_p);
    put_echo(out, "tool_choice", member(request, "tool_choice"), "\"auto\"");
    put_echo(out, "tools", member(request, "tools"), "[]");
    put_echo(out, "max_output_tokens", member(request, "max_output_tokens"), "null");
    put_echo(out, "metadata", member(request, "metadata"), "{}");
    put_json(out, "previous_response_id", "null");
    json_put_key(out, "reasoning");
    json_open(out, '{');
    put_echo(out, "effort", member(reasoning, "effort"), "null");
    put_echo(out, "summary", member(reasoning, "summary"), "null");
    json_close(out, '}');
    put_echo(out, "store", member(request, "store"), "false");
    json_put_key(out, "text");
    json_open(out, '{');
    put_echo(out, "format", member(member(request, "text"), "format"), "{\"type\":\"text\"}");
    if (member(member(request, "text"), "verbosity"))
        put_echo(out, "verbosity", member(member(request, "text"), "verbosity"), "null");
    json_close(out, '}');
    put_echo(out, "truncation", member(request, "truncation"), "\"disabled\"");
}

static void put_usage(struct json_writer *out, const struct generation_choice *choice)
{
    json_put_key(out, "usage");
    json_open(out, '{');
    json_put_key_int(out, "input_tokens", choice->prompt->n);
    json_put_key(out, "input_tokens_details");
    json_open(out, '{');
    json_put_key_int(out, "cached_tokens", choice->request.n_cached);
    json_put_key_int(out, "cache_write_tokens", 0);
    json_close(out, '}');
    json_put_key_int(out, "output_tokens", choice->n_token);
    json_put_key(out, "output_tokens_details");
    json_open(out, '{');
    json_put_key_int(out, "reasoning_tokens", answer_stream_n_reasoning(choice->stream));
    json_close(out, '}');
    json_put_key_int(out, "total_tokens", choice->prompt->n + choice->n_token);
    json_close(out, '}');
}

/* What clients know as the code of a response that failed. */
static const char *failure_code(const struct api_error *error)
{
    if (error->code == API_CONTEXT_LENGTH_EXCEEDED) return "context_length_exceeded";
    return api_code_status(error->code) == 429 ? "rate_limit_exceeded" : "server_error";
}

static bool is_cut(const struct generation_choice *choice)
{
    return !strcmp(choice->finish, "length") || !strcmp(choice->finish, "abort");
}

static const char *status_of(const struct generation_choice *choice, const struct api_error *error)
{
    if (error) return "failed";
    return !choice->finish ? "in_progress" : is_cut(choice) ? "incomplete" : "completed";
}

/* error: it failed; NULL otherwise. */
static void put_response(struct json_writer *out, const struct generation_choice *choice,
                         const struct api_error *error)
{
    const struct generation *generation = choice->generation;
    const struct responses *responses = generation->sink_context;
    const char *const status = status_of(choice, error);
    json_open(out, '{');
    json_put_key_text(out, "id", generation->id);
    json_put_key_text(out, "object", "response");
    json_put_key(out, "created_at");
    json_put_int(out, generation->created);
    if (!strcmp(status, "completed")) {
        json_put_key(out, "completed_at");
        json_put_int(out, (int64_t)time(NULL));
    }
    json_put_key_text(out, "status", status);
    json_put_key(out, "error");
    if (error) {
        json_open(out, '{');
        json_put_key_text(out, "code", failure_code(error));
        json_put_key_text(out, "message", error->message);
        json_close(out, '}');
    } else {
        json_put_null(out);
    }
    json_put_key(out, "incomplete_details");
    if (!strcmp(status, "incomplete")) {
        json_open(out, '{');
        json_put_key_text(out, "reason",
                          !strcmp(choice->finish, "length") ? "max_output_tokens" : choice->finish);
        json_close(out, '}');
    } else {
        json_put_null(out);
    }
    put_echo(out, "instructions", member(responses->request, "instructions"), "null");
    json_put_key_text(out, "model", generation->server->settings.id);
    json_put_key_list(out, "output", &responses->output);
    put_request(out, generation);
    if (choice->finish && !error) put_usage(out, choice);
    json_close(out, '}');
}

/* ---- events ---- */

static struct json_writer *begin_event(struct responses *responses, const char *type)
{
    struct json_writer *out = &responses->out;
    json_writer_clear(out);
    byte_buffer_printf(&out->text, "event: %s\ndata: ", type);
    json_open(out, '{');
    json_put_key_text(out, "type", type);
    json_put_key_int(out, "sequence_number", responses->n_event++);
    return out;
}

static void send_event(struct generation_choice *choice)
{
    struct json_writer *out = &responses_of(choice)->out;
    json_close(out, '}');
    byte_buffer_put(&out->text, "\n\n", 2);
    generation_send(choice->generation, &out->text);
}

/* An event about the item, or with has_part about its only part. */
static struct json_writer *begin_item_event(struct responses *responses, const char *type,
                                            bool has_part)
{
    struct json_writer *out = begin_event(responses, type);
    json_put_key_text(out, "item_id", responses->item.id);
    json_put_key_int(out, "output_index", responses->n_item - 1);
    if (has_part) json_put_key_int(out, "content_index", 0);
    return out;
}

static void send_response(struct generation_choice *choice, const char *type,
                          const struct api_error *error)
{
    struct json_writer *out = begin_event(responses_of(choice), type);
    json_put_key(out, "response");
    put_response(out, choice, error);
    send_event(choice);
}

/* ---- items ---- */

static void put_text_part(struct json_writer *out, const struct item *item)
{
    json_open(out, '{');
    json_put_key_text(out, "type", "output_text");
    put_bytes(out, "text", &item->text);
    put_json(out, "annotations", "[]");
    json_put_key_list(out, "logprobs", &item->logprobs);
    json_close(out, '}');
}

/* begins: the item as it is announced, empty. */
static void put_item(struct json_writer *out, const struct item *item, const char *status,
                     bool begins)
{
    static const char *const types[] = {"", "reasoning", "message", "function_call"};
    json_open(out, '{');
    json_put_key_text(out, "id", item->id);
    json_put_key_text(out, "type", types[item->kind]);
    json_put_key_text(out, "status", status);
    switch (item->kind) {
    case ITEM_REASONING:
        put_json(out, "summary", "[]");
        json_put_key(out, "content");
        json_open(out, '[');
        if (!begins) {
            json_open(out, '{');
            json_put_key_text(out, "type", "reasoning_text");
            put_bytes(out, "text", &item->text);
            json_close(out, '}');
        }
        json_close(out, ']');
        break;
    case ITEM_MESSAGE:
        json_put_key_text(out, "role", "assistant");
        json_put_key(out, "content");
        json_open(out, '[');
        if (!begins) put_text_part(out, item);
        json_close(out, ']');
        break;
    default:
        json_put_key_text(out, "call_id", item->call_id);
        put_bytes(out, "name", &item->name);
        put_bytes(out, "arguments", &item->text);
        break;
    }
    json_close(out, '}');
}

static void send_item(struct generation_choice *choice, const char *type, const char *status,
                      bool begins)
{
    struct responses *responses = responses_of(choice);
    struct json_writer *out = begin_event(responses, type);
    json_put_key_int(out, "output_index", responses->n_item - 1);
    json_put_key(out, "item");
    put_item(out, &responses->item, status, begins);
    send_event(choice);
}

static void send_part(struct generation_choice *choice, const char *type)
{
    struct responses *responses = responses_of(choice);
    struct json_writer *out = begin_item_event(responses, type, true);
    json_put_key(out, "part");
    put_text_part(out, &responses->item);
    send_event(choice);
}

static void open_item(struct generation_choice *choice, enum item_kind kind, const char *call_id,
                      const char *name, size_t n_name)
{
    static const char *const prefixes[] = {"", "rs_", "msg_", "fc_"};
    struct responses *responses = responses_of(choice);
    struct item *item = &responses->item;
    item->kind = kind;
    random_id_make(item->id, prefixes[kind]);
    snprintf(item->call_id, sizeof(item->call_id), "%s", call_id);
    byte_buffer_clear(&item->name);
    byte_buffer_put(&item->name, name, n_name);
    byte_buffer_clear(&item->text);
    json_writer_clear(&item->logprobs);
    responses->n_item++;
    if (!streams(choice)) return;
    send_item(choice, "response.output_item.added", "in_progress", true);
    if (kind == ITEM_MESSAGE) send_part(choice, "response.content_part.added");
}

/* The events that repeat what an item has become. */
static void send_done(struct generation_choice *choice)
{
    struct responses *responses = responses_of(choice);
    const struct item *item = &responses->item;
    struct json_writer *out;
    if (item->kind == ITEM_CALL) {
        out = begin_item_event(responses, "response.function_call_arguments.done", false);
        put_bytes(out, "name", &item->name);
        put_bytes(out, "arguments", &item->text);
    } else if (item->kind == ITEM_REASONING) {
        out = begin_item_event(responses, "response.reasoning_text.done", true);
        put_bytes(out, "text", &item->text);
    } else {
        out = begin_item_event(responses, "response.output_text.done", true);
        put_bytes(out, "text", &item->text);
        json_put_key_list(out, "logprobs", &item->logprobs);
    }
    send_event(choice);
    if (item->kind == ITEM_MESSAGE) send_part(choice, "response.content_part.done");
}

static void close_item(struct generation_choice *choice, const char *status)
{
    struct responses *responses = responses_of(choice);
    if (responses->item.kind == ITEM_NONE) return;
    if (streams(choice)) {
        send_done(choice);
        send_item(choice, "response.output_item.done", status, false);
    }
    put_item(&responses->output, &responses->item, status, false);
    responses->item.kind = ITEM_NONE;
}

/* ---- what generation tells ---- */

static void on_begin(struct generation_choice *choice)
{
    struct responses *responses = responses_of(choice);
    if (!streams(choice)) return;
    responses->begun = true;
    send_response(choice, "response.created", NULL);
    send_response(choice, "response.in_progress", NULL);
}

static void on_token(struct generation_choice *choice, const struct answer_token *token)
{
    const struct generation *generation = choice->generation;
    struct responses *responses = responses_of(choice);
    const struct logprob_style style = {generation->server->tokenizer,
                                        generation->fields.token_ids_as_strings};
    if (responses->fields.logprobs && token->part == ANSWER_CONTENT)
        logprob_put_entry(&responses->logprobs, style, token->sampled);
}

/* The log-probabilities that have come go out with the text, and into the item. */
static void move_logprobs(struct responses *responses, struct json_writer *out)
{
    struct json_writer *from = &responses->logprobs, *to = &responses->item.logprobs;
    if (out) json_put_key_list(out, "logprobs", from);
    if (from->text.n && to->text.n) byte_buffer_put_text(&to->text, ",");
    byte_buffer_put(&to->text, from->text.data, from->text.n);
    to->text.failed |= from->text.failed;
    json_writer_clear(from);
}

static void on_text(struct generation_choice *choice, enum answer_part part, const char *text,
                    size_t n)
{
    struct responses *responses = responses_of(choice);
    const enum item_kind kind = part == ANSWER_REASONING ? ITEM_REASONING : ITEM_MESSAGE;
    struct json_writer *out = NULL;
    if (kind == ITEM_REASONING && !responses->fields.include_reasoning) return;
    if (responses->item.kind != kind) {
        close_item(choice, "completed");
        open_item(choice, kind, "", "", 0);
    }
    byte_buffer_put(&responses->item.text, text, n);
    if (streams(choice)) {
        out = begin_item_event(responses,
                               kind == ITEM_MESSAGE ? "response.output_text.delta"
                                                    : "response.reasoning_text.delta",
                               true);
        json_put_key(out, "delta");
        json_put_string(out, text, n);
    }
    if (kind == ITEM_MESSAGE) move_logprobs(responses, out);
    if (out) send_event(choice);
}

static void on_call(struct generation_choice *choice, const char *id, const char *name, size_t n)
{
    close_item(choice, "completed");
    open_item(choice, ITEM_CALL, id, name, n);
}

static void on_arguments(struct generation_choice *choice, const char *text, size_t n)
{
    struct responses *responses = responses_of(choice);
    byte_buffer_put(&responses->item.text, text, n);
    if (!streams(choice)) return;
    struct json_writer *out =
        begin_item_event(responses, "response.function_call_arguments.delta", false);
    json_put_key(out, "delta");
    json_put_string(out, text, n);
    send_event(choice);
}

static void on_call_end(struct generation_choice *choice)
{
    close_item(choice, "completed");
}

static void on_choice_end(struct generation_choice *choice)
{
    const bool cut = is_cut(choice);
    close_item(choice, cut ? "incomplete" : "completed");
    if (streams(choice))
        send_response(choice, cut ? "response.incomplete" : "response.completed", NULL);
}

static void on_end(struct generation *generation)
{
    struct responses *responses = generation->sink_context;
    if (generation->fields.stream) {
        generation_end_stream(generation, "");
        return;
    }
    put_response(&responses->out, &generation->choices[0], NULL);
    generation_reply(generation, &responses->out);
}

static void on_stream_error(struct generation *generation, const struct api_error *error)
{
    struct responses *responses = generation->sink_context;
    byte_buffer_free(&responses->out.text); /* there may be memory again */
    if (!responses->begun) on_begin(&generation->choices[0]);
    send_response(&generation->choices[0], "response.failed", error);
}

static void destroy(void *context)
{
    struct responses *responses = context;
    byte_buffer_free(&responses->item.name);
    byte_buffer_free(&responses->item.text);
    byte_buffer_free(&responses->item.logprobs.text);
    byte_buffer_free(&responses->output.text);
    byte_buffer_free(&responses->logprobs.text);
    byte_buffer_free(&responses->out.text);
    json_object_put(responses->request);
    chat_fields_fini(&responses->fields);
}

static const struct generation_sink sink = {
    .call_prefix = "call_",
    .on_begin = on_begin,
    .on_token = on_token,
    .on_text = on_text,
    .on_call = on_call,
    .on_arguments = on_arguments,
    .on_call_end = on_call_end,
    .on_choice_end = on_choice_end,
    .on_end = on_end,
    .on_stream_error = on_stream_error,
    .destroy = destroy,
};

/* ---- requests ---- */

static bool keep_echoed(struct responses *responses, struct json_object *body,
                        struct api_error *error)
{
    static const char *const names[] = {"parallel_tool_calls", "tool_choice", "tools",
                                        "max_output_tokens",   "metadata",    "instructions",
                                        "reasoning",           "store",       "text",
                                        "truncation"};
    responses->request = json_object_new_object();
    for (size_t i = 0; responses->request && i < sizeof(names) / sizeof(*names); i++)
        if (json_object_object_add(responses->request, names[i],
                                   json_object_get(member(body, names[i]))))
            return api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for the request");
    return responses->request ||
           api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for the request");
}

static bool read_request(struct generation *generation, struct api_error *error)
{
    struct responses *responses = generation->sink_context;
    struct json_object *chat;
    if (!keep_echoed(responses, generation->body, error) ||
        !responses_request_translate(&chat, generation->body, error))
        return false;
    json_object_put(generation->body);
    generation->body = chat;
    return chat_request_read(generation, &responses->fields, error);
}

void responses_handle(void *context, struct http_exchange *exchange)
{
    generation_serve(context, exchange, "resp_", &sink, sizeof(struct responses), read_request);
}

void responses_count_handle(void *context, struct http_exchange *exchange)
{
    chat_request_answer_count(context, exchange, responses_request_translate,
                              "response.input_tokens");
}
