#include "coordinator/server/messages.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/chat_request.h"
#include "coordinator/server/generation.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/messages_request.h"
#include "coordinator/server/server.h"

enum block { BLOCK_NONE, BLOCK_THINKING, BLOCK_TEXT, BLOCK_TOOL_USE };

struct messages {
    struct chat_fields fields;
    enum block block;           /* the one that is open */
    size_t n_block;             /* begun ones */
    struct json_writer content; /* of a whole answer: the blocks, inside the brackets */
    struct byte_buffer input;   /* of a whole answer: what the open tool_use has so far */
    bool input_complete;        /* it is a JSON object */
    struct json_writer out;     /* scratch */
};

static struct messages *messages_of(const struct generation_choice *choice)
{
    return choice->generation->sink_context;
}

static bool streams(const struct generation_choice *choice)
{
    return choice->generation->fields.stream;
}

/* ---- pieces ---- */

/* An opaque text that clients send back; nothing is signed here. */
static const char signature[] = "bGVhbg==";

static void put_usage(struct json_writer *out, const struct generation_choice *choice,
                      size_t n_output)
{
    const size_t n_cached = choice->request.n_cached;
    json_put_key(out, "usage");
    json_open(out, '{');
    json_put_key_int(out, "input_tokens", choice->prompt->n - n_cached);
    json_put_key_int(out, "cache_creation_input_tokens", 0);
    json_put_key_int(out, "cache_read_input_tokens", n_cached);
    json_put_key_int(out, "output_tokens", n_output);
    json_close(out, '}');
}

static void put_stop(struct json_writer *out, const struct generation_choice *choice)
{
    const char *reason = NULL, *sequence = NULL;
    if (choice->finish) {
        reason = "end_turn";
        if (!strcmp(choice->finish, "length")) reason = "max_tokens";
        if (!strcmp(choice->finish, "tool_calls")) reason = "tool_use";
        if (!strcmp(choice->finish, "stop") && choice->stop_string) {
            reason = "stop_sequence";
            sequence = choice->stop_string;
        }
    }
    json_put_key_text(out, "stop_reason", reason);
    json_put_key_text(out, "stop_sequence", sequence);
}

/* content: the inside of its brackets; NULL: of a message that begins. */
static void put_message(struct json_writer *out, const struct generation_choice *choice,
                        const struct json_writer *content)
{
    const struct generation *generation = choice->generation;
    json_open(out, '{');
    json_put_key_text(out, "id", generation->id);
    json_put_key_text(out, "type", "message");
    json_put_key_text(out, "role", "assistant");
    json_put_key_text(out, "model", generation->server->settings.id);
    json_put_key(out, "content");
    json_open(out, '[');
    if (content) byte_buffer_put(&out->text, content->text.data, content->text.n);
    if (content) out->text.failed |= content->text.failed;
    json_close(out, ']');
    put_stop(out, choice);
    put_usage(out, choice, content ? choice->n_token : 0);
    json_close(out, '}');
}

/* ---- events ---- */

/* An event of that type, open for further members. */
static struct json_writer *begin_event(struct messages *messages, const char *type)
{
    struct json_writer *out = &messages->out;
    json_writer_clear(out);
    byte_buffer_printf(&out->text, "event: %s\ndata: ", type);
    json_open(out, '{');
    json_put_key_text(out, "type", type);
    return out;
}

static void send_event(struct generation_choice *choice)
{
    struct json_writer *out = &messages_of(choice)->out;
    json_close(out, '}');
    byte_buffer_put(&out->text, "\n\n", 2);
    generation_send(choice->generation, &out->text);
}

static struct json_writer *begin_block_event(struct messages *messages, const char *type)
{
    struct json_writer *out = begin_event(messages, type);
    json_put_key_int(out, "index", messages->n_block - 1);
    return out;
}

static void send_delta(struct generation_choice *choice, const char *type, const char *key,
                       const char *text, size_t n)
{
    struct json_writer *out = begin_block_event(messages_of(choice), "content_block_delta");
    json_put_key(out, "delta");
    json_open(out, '{');
    json_put_key_text(out, "type", type);
    json_put_key(out, key);
    json_put_string(out, text, n);
    json_close(out, '}');
    send_event(choice);
}

/* ---- blocks ----
 *
 * In a stream a block is the events of its beginning, its deltas and its end. In a whole answer it
 * is written piece by piece into `content`. */

static const char *const block_types[] = {"", "thinking", "text", "tool_use"};

static void open_block(struct generation_choice *choice, enum block block, const char *id,
                       const char *name, size_t n_name)
{
    struct messages *messages = messages_of(choice);
    struct json_writer *out = &messages->content;
    messages->block = block;
    messages->n_block++;
    if (streams(choice)) {
        out = begin_block_event(messages, "content_block_start");
        json_put_key(out, "content_block");
    }
    json_open(out, '{');
    json_put_key_text(out, "type", block_types[block]);
    if (block == BLOCK_TOOL_USE) {
        json_put_key_text(out, "id", id);
        json_put_key(out, "name");
        json_put_string(out, name, n_name);
        json_put_key(out, "input");
    } else {
        json_put_key(out, block_types[block]);
    }
    if (!streams(choice)) {
        if (block != BLOCK_TOOL_USE) byte_buffer_put_text(&out->text, "\"");
        byte_buffer_clear(&messages->input);
        messages->input_complete = false;
        return;
    }
    byte_buffer_put_text(&out->text, block == BLOCK_TOOL_USE ? "{}" : "\"\"");
    out->comma = true;
    if (block == BLOCK_THINKING) json_put_key_text(out, "signature", "");
    json_close(out, '}');
    send_event(choice);
}

static void close_block(struct generation_choice *choice)
{
    struct messages *messages = messages_of(choice);
    struct json_writer *out = &messages->content;
    const enum block block = messages->block;
    messages->block = BLOCK_NONE;
    if (block == BLOCK_NONE) return;
    if (streams(choice)) {
        if (block == BLOCK_THINKING)
            send_delta(choice, "signature_delta", "signature", signature, sizeof(signature) - 1);
        begin_block_event(messages, "content_block_stop");
        send_event(choice);
        return;
    }
    if (block != BLOCK_TOOL_USE) {
        byte_buffer_put_text(&out->text, "\"");
        out->comma = true;
    } else if (messages->input_complete) {
        json_put_value(out, messages->input.data, messages->input.n);
        out->text.failed |= messages->input.failed;
    } else { /* cut off: no object yet */
        json_put_value(out, "{}", 2);
    }
    if (block == BLOCK_THINKING) json_put_key_text(out, "signature", signature);
    json_close(out, '}');
}

/* ---- what generation tells ---- */

static void on_begin(struct generation_choice *choice)
{
    if (!streams(choice)) return;
    struct json_writer *out = begin_event(messages_of(choice), "message_start");
    json_put_key(out, "message");
    put_message(out, choice, NULL);
    send_event(choice);
}

static void on_text(struct generation_choice *choice, enum answer_part part, const char *text,
                    size_t n)
{
    struct messages *messages = messages_of(choice);
    const enum block block = part == ANSWER_REASONING ? BLOCK_THINKING : BLOCK_TEXT;
    if (block == BLOCK_THINKING && !messages->fields.include_reasoning) return;
    if (messages->block != block) {
        close_block(choice);
        open_block(choice, block, NULL, NULL, 0);
    }
    if (!streams(choice))
        byte_buffer_put_json(&messages->content.text, text, n);
    else if (block == BLOCK_THINKING)
        send_delta(choice, "thinking_delta", "thinking", text, n);
    else
        send_delta(choice, "text_delta", "text", text, n);
}

static void on_call(struct generation_choice *choice, const char *id, const char *name, size_t n)
{
    close_block(choice);
    open_block(choice, BLOCK_TOOL_USE, id, name, n);
}

static void on_arguments(struct generation_choice *choice, const char *text, size_t n)
{
    if (streams(choice))
        send_delta(choice, "input_json_delta", "partial_json", text, n);
    else
        byte_buffer_put(&messages_of(choice)->input, text, n);
}

static void on_call_end(struct generation_choice *choice)
{
    messages_of(choice)->input_complete = true;
    close_block(choice);
}

static void on_choice_end(struct generation_choice *choice)
{
    close_block(choice);
    if (!streams(choice)) return;
    struct json_writer *out = begin_event(messages_of(choice), "message_delta");
    json_put_key(out, "delta");
    json_open(out, '{');
    put_stop(out, choice);
    json_close(out, '}');
    put_usage(out, choice, choice->n_token);
    send_event(choice);
    begin_event(messages_of(choice), "message_stop");
    send_event(choice);
}

static void on_end(struct generation *generation)
{
    struct messages *messages = generation->sink_context;
    if (generation->fields.stream) {
        generation_end_stream(generation, "");
        return;
    }
    put_message(&messages->out, &generation->choices[0], &messages->content);
    generation_reply(generation, &messages->out);
}

static void on_stream_error(struct generation *generation, const struct api_error *error)
{
    struct byte_buffer event = {0};
    byte_buffer_put_text(&event, "event: error\ndata: ");
    api_error_write(&event, error, true, NULL);
    byte_buffer_put_text(&event, "\n\n");
    generation_send(generation, &event);
    byte_buffer_free(&event);
}

static void destroy(void *context)
{
    struct messages *messages = context;
    byte_buffer_free(&messages->content.text);
    byte_buffer_free(&messages->input);
    byte_buffer_free(&messages->out.text);
    chat_fields_fini(&messages->fields);
}

static const struct generation_sink sink = {
    .call_prefix = "toolu_",
    .ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n",
    .on_begin = on_begin,
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

static bool read_request(struct generation *generation, struct api_error *error)
{
    struct messages *messages = generation->sink_context;
    struct json_object *chat;
    if (!messages_request_translate(&chat, generation->body, false, error)) return false;
    json_object_put(generation->body);
    generation->body = chat;
    return chat_request_read(generation, &messages->fields, error);
}

void messages_handle(void *context, struct http_exchange *exchange)
{
    generation_serve(context, exchange, "msg_", &sink, sizeof(struct messages), read_request);
}

static bool translate_to_count(struct json_object **chat, struct json_object *body,
                               struct api_error *error)
{
    return messages_request_translate(chat, body, true, error);
}

void messages_count_handle(void *context, struct http_exchange *exchange)
{
    chat_request_answer_count(context, exchange, translate_to_count, NULL);
}
