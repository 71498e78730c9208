#include "coordinator/server/chat.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/chat_request.h"
#include "coordinator/server/generation.h"
#include "coordinator/server/logprobs.h"
#include "coordinator/server/openai_writer.h"
#include "coordinator/server/server.h"

/* What a choice has that is still to be sent: since the last chunk, or all of it. */
struct pending {
    struct byte_buffer text[2];     /* by enum answer_part: reasoning, content */
    struct json_writer logprobs[2]; /* likewise; inside the brackets */
    struct json_writer ids;         /* inside the brackets */
    struct json_writer calls;       /* inside the brackets */
    bool in_call;                   /* the last of them is not closed */
    bool begun;                     /* a chunk was sent */
};

struct chat {
    struct chat_fields fields;
    struct pending *pending; /* [n_pending] by choice */
    size_t n_pending;
    struct json_writer out; /* scratch */
};

static const char chunk_object[] = "chat.completion.chunk", object[] = "chat.completion";

static struct pending *pending_of(const struct generation_choice *choice)
{
    struct chat *chat = choice->generation->sink_context;
    return &chat->pending[choice->index];
}

/* ---- writing ---- */

static void put_text(struct json_writer *out, const char *key, const struct byte_buffer *text)
{
    json_put_key(out, key);
    json_put_string(out, text->data ? text->data : "", text->n);
    out->text.failed |= text->failed;
}

static void put_reasoning(struct json_writer *out, const struct generation *generation,
                          const struct byte_buffer *text)
{
    const enum reasoning_field field = generation->server->settings.reasoning_field;
    if (!text->n) return;
    if (field != REASONING_FIELD_PLAIN) put_text(out, "reasoning_content", text);
    if (field != REASONING_FIELD_CONTENT) put_text(out, "reasoning", text);
}

/* has_content: whether the message has any; the tokens of a content that became empty do not
 * count. */
static void put_logprobs(struct json_writer *out, const struct generation_choice *choice)
{
    static const struct json_writer none;
    const struct chat *chat = choice->generation->sink_context;
    const struct pending *pending = pending_of(choice);
    json_put_key(out, "logprobs");
    if (!chat->fields.logprobs) {
        json_put_null(out);
        return;
    }
    json_open(out, '{');
    json_put_key_list(out, "content",
                      choice->has_text[ANSWER_CONTENT] ? &pending->logprobs[ANSWER_CONTENT]
                                                       : &none);
    json_put_key(out, "refusal");
    json_put_null(out);
    if (choice->has_text[ANSWER_REASONING] && pending->logprobs[ANSWER_REASONING].text.n)
        json_put_key_list(out, "reasoning_content", &pending->logprobs[ANSWER_REASONING]);
    json_close(out, '}');
}

/* ---- tool calls ----
 *
 * In a stream an element of "tool_calls" is the beginning of a call or a fragment of its arguments;
 * otherwise it is the whole call, which is put together as it comes. */

static void begin_call(struct generation_choice *choice, const char *id, const char *name, size_t n)
{
    struct json_writer *calls = &pending_of(choice)->calls;
    json_open(calls, '{');
    if (choice->generation->fields.stream) {
        json_put_key(calls, "index");
        json_put_int(calls, (int64_t)choice->n_call_begun - 1);
    }
    json_put_key(calls, "id");
    json_put_text(calls, id);
    json_put_key(calls, "type");
    json_put_text(calls, "function");
    json_put_key(calls, "function");
    json_open(calls, '{');
    json_put_key(calls, "name");
    json_put_string(calls, name, n);
    json_put_key(calls, "arguments");
    byte_buffer_put_text(&calls->text, "\"");
}

static void end_call(struct json_writer *calls)
{
    byte_buffer_put_text(&calls->text, "\"");
    json_close(calls, '}');
    json_close(calls, '}');
}

static void put_fragment(struct generation_choice *choice, const char *text, size_t n)
{
    struct json_writer *calls = &pending_of(choice)->calls;
    json_open(calls, '{');
    json_put_key(calls, "index");
    json_put_int(calls, (int64_t)choice->n_call_begun - 1);
    json_put_key(calls, "function");
    json_open(calls, '{');
    json_put_key(calls, "arguments");
    json_put_string(calls, text, n);
    json_close(calls, '}');
    json_close(calls, '}');
}

/* A call that was cut off stands as it is. */
static void put_calls(struct json_writer *out, struct pending *pending)
{
    if (pending->in_call) end_call(&pending->calls);
    pending->in_call = false;
    if (pending->calls.text.n || pending->calls.text.failed)
        json_put_key_list(out, "tool_calls", &pending->calls);
}

static void put_finish(struct json_writer *out, const struct generation_choice *choice)
{
    json_put_key(out, "finish_reason");
    json_put_text(out, choice->finish);
    if (!choice->finish) return;
    json_put_key(out, "stop_reason");
    generation_put_stop_reason(choice, out);
}

/* A chunk with what is pending. begins: it names the role, with empty content. */
static void send_chunk(struct generation_choice *choice, bool begins, bool last)
{
    struct generation *generation = choice->generation;
    struct chat *chat = generation->sink_context;
    struct pending *pending = pending_of(choice);
    struct json_writer *out = &chat->out;
    openai_begin_event(out, generation, chunk_object);
    json_open(out, '{');
    json_put_key(out, "index");
    json_put_int(out, (int64_t)choice->index);
    json_put_key(out, "delta");
    json_open(out, '{');
    if (begins) {
        json_put_key(out, "role");
        json_put_text(out, "assistant");
    }
    put_reasoning(out, generation, &pending->text[ANSWER_REASONING]);
    if (begins || pending->text[ANSWER_CONTENT].n)
        put_text(out, "content", &pending->text[ANSWER_CONTENT]);
    put_calls(out, pending);
    json_close(out, '}');
    put_logprobs(out, choice);
    put_finish(out, choice);
    openai_put_token_ids(out, choice, !pending->begun, &pending->ids);
    json_close(out, '}');
    openai_send_event(out, generation, false, last);
    pending->begun = true;
    json_writer_clear(&pending->ids);
    json_writer_clear(&pending->calls);
    for (int part = ANSWER_REASONING; part <= ANSWER_CONTENT; part++) {
        byte_buffer_clear(&pending->text[part]);
        if (choice->has_text[part]) json_writer_clear(&pending->logprobs[part]);
    }
}

static void put_choice(struct json_writer *out, const struct generation_choice *choice)
{
    struct pending *pending = pending_of(choice);
    json_open(out, '{');
    json_put_key(out, "index");
    json_put_int(out, (int64_t)choice->index);
    json_put_key(out, "message");
    json_open(out, '{');
    json_put_key(out, "role");
    json_put_text(out, "assistant");
    if (choice->n_call_begun && !pending->text[ANSWER_CONTENT].n) {
        json_put_key(out, "content");
        json_put_null(out);
    } else {
        put_text(out, "content", &pending->text[ANSWER_CONTENT]);
    }
    put_reasoning(out, choice->generation, &pending->text[ANSWER_REASONING]);
    json_put_key(out, "refusal");
    json_put_null(out);
    put_calls(out, pending);
    json_close(out, '}');
    put_logprobs(out, choice);
    put_finish(out, choice);
    openai_put_token_ids(out, choice, true, &pending->ids);
    json_close(out, '}');
}

/* ---- events ---- */

static void on_prefill(struct generation_choice *choice, size_t n_done, size_t n_total)
{
    struct chat *chat = choice->generation->sink_context;
    openai_send_progress(&chat->out, choice, chunk_object, n_done, n_total);
}

static void on_begin(struct generation_choice *choice)
{
    if (choice->generation->fields.stream) send_chunk(choice, true, false);
}

static bool is_shown(const struct chat *chat, enum answer_part part)
{
    return part == ANSWER_CONTENT || (part == ANSWER_REASONING && chat->fields.include_reasoning);
}

static void on_token(struct generation_choice *choice, const struct answer_token *token)
{
    const struct generation *generation = choice->generation;
    const struct chat *chat = generation->sink_context;
    struct pending *pending = pending_of(choice);
    const struct logprob_style style = {generation->server->tokenizer,
                                        generation->fields.token_ids_as_strings};
    if (generation->fields.return_token_ids) json_put_int(&pending->ids, token->sampled->id);
    if (chat->fields.logprobs && is_shown(chat, token->part))
        logprob_put_entry(&pending->logprobs[token->part], style, token->sampled);
}

static void on_text(struct generation_choice *choice, enum answer_part part, const char *text,
                    size_t n)
{
    const struct generation *generation = choice->generation;
    if (!is_shown(generation->sink_context, part)) return;
    byte_buffer_put(&pending_of(choice)->text[part], text, n);
    if (generation->fields.stream) send_chunk(choice, false, false);
}

static void on_call(struct generation_choice *choice, const char *id, const char *name, size_t n)
{
    struct pending *pending = pending_of(choice);
    if (pending->in_call) end_call(&pending->calls);
    begin_call(choice, id, name, n);
    pending->in_call = true;
    if (choice->generation->fields.stream) send_chunk(choice, false, false);
}

static void on_arguments(struct generation_choice *choice, const char *text, size_t n)
{
    if (choice->generation->fields.stream) {
        put_fragment(choice, text, n);
        send_chunk(choice, false, false);
    } else {
        byte_buffer_put_json(&pending_of(choice)->calls.text, text, n);
    }
}

static void on_call_end(struct generation_choice *choice)
{
    struct pending *pending = pending_of(choice);
    if (pending->in_call) end_call(&pending->calls);
    pending->in_call = false;
}

static void on_choice_end(struct generation_choice *choice)
{
    const struct generation *generation = choice->generation;
    if (generation->fields.stream)
        send_chunk(choice, false, generation->n_ended + 1 == generation->n_choice);
}

static void on_end(struct generation *generation)
{
    struct chat *chat = generation->sink_context;
    if (generation->fields.stream) {
        openai_end_stream(&chat->out, generation, chunk_object);
        return;
    }
    openai_begin(&chat->out, generation, object);
    for (size_t i = 0; i < generation->n_choice; i++)
        put_choice(&chat->out, &generation->choices[i]);
    openai_reply(&chat->out, generation);
}

static void destroy(void *context)
{
    struct chat *chat = context;
    for (size_t i = 0; i < chat->n_pending; i++) {
        for (int part = ANSWER_REASONING; part <= ANSWER_CONTENT; part++) {
            byte_buffer_free(&chat->pending[i].text[part]);
            byte_buffer_free(&chat->pending[i].logprobs[part].text);
        }
        byte_buffer_free(&chat->pending[i].ids.text);
        byte_buffer_free(&chat->pending[i].calls.text);
    }
    free(chat->pending);
    byte_buffer_free(&chat->out.text);
    chat_fields_fini(&chat->fields);
}

static const struct generation_sink sink = {
    .call_prefix = "call_",
    .on_prefill = on_prefill,
    .on_begin = on_begin,
    .on_token = on_token,
    .on_text = on_text,
    .on_call = on_call,
    .on_arguments = on_arguments,
    .on_call_end = on_call_end,
    .on_choice_end = on_choice_end,
    .on_end = on_end,
    .destroy = destroy,
};

/* ---- requests ---- */

/* Space for what is pending, once the number of choices is known. */
static bool alloc_pending(struct generation *generation, struct api_error *error)
{
    struct chat *chat = generation->sink_context;
    const size_t n = (size_t)generation->fields.n;
    chat->pending = calloc(n, sizeof(*chat->pending));
    if (!chat->pending)
        return api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for %zu answers", n);
    chat->n_pending = n;
    return true;
}

static bool read_request(struct generation *generation, struct api_error *error)
{
    struct chat *chat = generation->sink_context;
    return chat_request_read(generation, &chat->fields, error) && alloc_pending(generation, error);
}

void chat_handle(void *context, struct http_exchange *exchange)
{
    generation_serve(context, exchange, "chatcmpl-", &sink, sizeof(struct chat), read_request);
}
