#include "coordinator/server/routes_text.h"

#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/server/chat_prompt.h"
#include "coordinator/server/chat_request.h"
#include "coordinator/server/json_field.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/json_write.h"
#include "coordinator/server/server.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/utf8.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"

enum { MAX_TOKENS = 1 << 24 }; /* in one request */

/* ---- requests and answers ---- */

static struct json_object *receive(struct http_exchange *exchange, struct api_error *error)
{
    struct json_object *body = NULL;
    size_t n;
    const char *text = http_body(exchange, &n);
    return json_parse_object(&body, text, n, error) ? body : NULL;
}

/* Answers with what was written, or with the error. Frees both. */
static void finish(struct http_exchange *exchange, bool good, struct json_writer *out,
                   struct api_error *error, struct json_object *body)
{
    if (good && out->text.failed)
        good = api_fail(error, API_OUT_OF_MEMORY, NULL, "The server has no memory for the answer.");
    if (good)
        http_reply_json(exchange, 200, out->text.data, out->text.n);
    else
        http_reply_error(exchange, error);
    byte_buffer_free(&out->text);
    json_object_put(body);
}

/* The prompt that a chat request would have. chat_prompt_fini afterwards, also on an error. */
static bool build_chat_prompt(struct chat_prompt *prompt, const struct field_reader *reader,
                              const struct server *server, bool add_begin)
{
    struct chat_fields fields;
    *prompt = (struct chat_prompt){0};
    const bool good = chat_fields_read(&fields, reader, server) &&
                      field_bool(reader, "add_special_tokens", &add_begin) &&
                      chat_prompt_build(prompt, &fields, server, add_begin, reader->error);
    chat_fields_fini(&fields);
    return good;
}

/* ---- tokenize ---- */

/* The piece of a token: text, or an array of bytes where it is not UTF-8 by itself. */
static void put_piece(struct json_writer *out, const char *bytes, size_t n)
{
    for (size_t i = 0, length; i < n; i += length)
        if (!(length = utf8_decode(bytes + i, n - i, NULL))) {
            json_open(out, '[');
            for (size_t b = 0; b < n; b++)
                json_put_int(out, (unsigned char)bytes[b]);
            json_close(out, ']');
            return;
        }
    json_put_string(out, bytes, n);
}

static void put_tokens(struct json_writer *out, const struct server *server, const int32_t *ids,
                       size_t n, bool with_pieces, bool with_strings)
{
    const struct tokenizer *tokenizer = server->tokenizer;
    json_open(out, '{');
    json_put_key(out, "count");
    json_put_int(out, (int64_t)n);
    json_put_key(out, "max_model_len");
    json_put_int(out, server->n_ctx);
    json_put_key(out, "tokens");
    json_open(out, '[');
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        if (!with_pieces) {
            json_put_int(out, ids[i]);
            continue;
        }
        json_open(out, '{');
        json_put_key(out, "id");
        json_put_int(out, ids[i]);
        json_put_key(out, "piece");
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], true, &n_bytes);
        put_piece(out, bytes, n_bytes);
        json_close(out, '}');
    }
    json_close(out, ']');
    json_put_key(out, "token_strs");
    if (with_strings) {
        json_open(out, '[');
        for (size_t i = 0; i < n; i++) {
            size_t n_bytes;
            const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], true, &n_bytes);
            json_put_string(out, bytes, n_bytes);
        }
        json_close(out, ']');
    } else {
        json_put_null(out);
    }
    json_close(out, '}');
}

/* Text to tokens; with add_special what the vocabulary puts around a text, but not what the text
 * has itself. */
static bool encode(const struct server *server, const char *text, size_t n, bool parse_special,
                   bool add_special, int32_t **ids, size_t *n_ids, struct api_error *error)
{
    struct lm_error err;
    const int32_t bos = tokenizer_bos(server->tokenizer);
    if (tokenizer_encode(server->tokenizer, text, n, parse_special, add_special, ids, n_ids,
                         &err) != LM_OK)
        return api_fail_status(error, &err, NULL);
    if (add_special && *n_ids > 1 && (*ids)[0] == bos && (*ids)[1] == bos)
        memmove(*ids, *ids + 1, --*n_ids * sizeof(**ids));
    return true;
}

static bool read_text(const struct field_reader *reader, const char **text, size_t *n,
                      bool *add_special)
{
    const char *prompt = NULL, *content = NULL;
    size_t n_prompt = 0, n_content = 0;
    if (!field_string(reader, "prompt", &prompt, &n_prompt) ||
        !field_string(reader, "content", &content, &n_content))
        return false;
    const bool messages = field_get(reader, "messages") != NULL;
    if ((prompt != NULL) + (content != NULL) + messages != 1)
        return field_fail(reader,
                          prompt || content || messages ? API_INVALID_VALUE : API_MISSING_FIELD,
                          NULL, "has to have exactly one of prompt, content and messages");
    *add_special = prompt != NULL;
    *text = prompt ? prompt : content;
    *n = prompt ? n_prompt : n_content;
    return field_bool(reader, "add_special", add_special) &&
           field_bool(reader, "add_special_tokens", add_special);
}

static bool tokenize(struct json_writer *out, struct server *server, struct json_object *body,
                     struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    bool with_pieces = false, with_strings = false, parse_special = true, add_special = false;
    const char *text = NULL;
    size_t n_text = 0, n_ids = 0;
    int32_t *ids = NULL;
    if (!read_text(&reader, &text, &n_text, &add_special) ||
        !field_bool(&reader, "with_pieces", &with_pieces) ||
        !field_bool(&reader, "return_token_strs", &with_strings) ||
        !field_bool(&reader, "parse_special", &parse_special))
        return false;
    if (text) {
        const bool good =
            encode(server, text, n_text, parse_special, add_special, &ids, &n_ids, error);
        if (good) put_tokens(out, server, ids, n_ids, with_pieces, with_strings);
        free(ids);
        return good;
    }
    struct chat_prompt prompt;
    const bool good = build_chat_prompt(&prompt, &reader, server, false);
    if (good) put_tokens(out, server, prompt.ids, prompt.n, with_pieces, with_strings);
    chat_prompt_fini(&prompt);
    return good;
}

void tokenize_handle(void *context, struct http_exchange *exchange)
{
    struct api_error error;
    struct json_writer out = {0};
    struct json_object *body = receive(exchange, &error);
    finish(exchange, body && tokenize(&out, context, body, &error), &out, &error, body);
}

/* ---- detokenize ---- */

/* The text of the tokens: whole characters, U+FFFD for what is none. */
static void put_text(struct json_writer *out, const struct tokenizer *tokenizer, const int32_t *ids,
                     size_t n, bool show_special)
{
    struct byte_buffer text = {0};
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], show_special, &n_bytes);
        byte_buffer_put(&text, bytes, n_bytes);
    }
    json_open(out, '{');
    json_put_key(out, "prompt");
    json_put_string(out, text.data ? text.data : "", text.n);
    json_put_key(out, "content");
    json_put_string(out, text.data ? text.data : "", text.n);
    json_close(out, '}');
    out->text.failed |= text.failed;
    byte_buffer_free(&text);
}

static bool detokenize(struct json_writer *out, const struct server *server,
                       struct json_object *body, struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    const uint32_t n_vocab = tokenizer_n_vocab(server->tokenizer);
    bool skip_special = false;
    int32_t *ids = NULL;
    size_t n = 0;
    if (!field_bool(&reader, "skip_special_tokens", &skip_special) ||
        !field_ints(&reader, "tokens", 0, (int64_t)n_vocab - 1, MAX_TOKENS, &ids, &n))
        return false;
    if (!ids) return field_fail(&reader, API_MISSING_FIELD, "tokens", "is required");
    put_text(out, server->tokenizer, ids, n, !skip_special);
    free(ids);
    return true;
}

void detokenize_handle(void *context, struct http_exchange *exchange)
{
    struct api_error error;
    struct json_writer out = {0};
    struct json_object *body = receive(exchange, &error);
    finish(exchange, body && detokenize(&out, context, body, &error), &out, &error, body);
}

/* ---- tokenizer info ---- */

static void put_token_text(struct json_writer *out, const char *name,
                           const struct tokenizer *tokenizer, int32_t id)
{
    size_t n = 0;
    const char *text = id >= 0 ? tokenizer_token_bytes(tokenizer, id, true, &n) : NULL;
    json_put_key(out, name);
    if (text)
        json_put_string(out, text, n);
    else
        json_put_null(out);
}

/* A token id among the file's keys; -1: there is none. */
static int32_t file_token(const struct gguf_file *file, const char *key)
{
    uint32_t id = UINT32_MAX;
    if (gguf_get_u32(file, key, &id, NULL, NULL) != LM_OK || id > INT32_MAX) return -1;
    return (int32_t)id;
}

void tokenizer_info_handle(void *context, struct http_exchange *exchange)
{
    const struct server *server = context;
    const struct tokenizer *tokenizer = server->tokenizer;
    struct json_writer out = {0};
    struct api_error error;
    bool add_bos = false;
    gguf_get_bool(server->file, "tokenizer.ggml.add_bos_token", &add_bos, NULL, NULL);
    json_open(&out, '{');
    json_put_key(&out, "tokenizer_class");
    json_put_text(&out, tokenizer_pre_name(tokenizer));
    put_token_text(&out, "bos_token", tokenizer, tokenizer_bos(tokenizer));
    put_token_text(&out, "eos_token", tokenizer, tokenizer_eos(tokenizer));
    put_token_text(&out, "pad_token", tokenizer,
                   file_token(server->file, "tokenizer.ggml.padding_token_id"));
    put_token_text(&out, "unk_token", tokenizer,
                   file_token(server->file, "tokenizer.ggml.unknown_token_id"));
    json_put_key(&out, "add_bos_token");
    json_put_bool(&out, add_bos);
    json_put_key(&out, "chat_template");
    if (server->template_source)
        json_put_string(&out, server->template_source, server->n_template_source);
    else
        json_put_null(&out);
    json_put_key(&out, "vocab_size");
    json_put_int(&out, tokenizer_n_vocab(tokenizer));
    json_put_key(&out, "model_max_length");
    json_put_int(&out, server->hp->n_ctx_train);
    json_close(&out, '}');
    finish(exchange, true, &out, &error, NULL);
}

/* ---- prompts ---- */

static bool apply_template(struct json_writer *out, const struct server *server,
                           struct json_object *body, struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    struct chat_prompt prompt;
    const bool good = build_chat_prompt(&prompt, &reader, server, false);
    if (good) {
        json_open(out, '{');
        json_put_key(out, "prompt");
        json_put_string(out, prompt.text, prompt.n_text);
        json_close(out, '}');
    }
    chat_prompt_fini(&prompt);
    return good;
}

void apply_template_handle(void *context, struct http_exchange *exchange)
{
    struct api_error error;
    struct json_writer out = {0};
    struct json_object *body = receive(exchange, &error);
    finish(exchange, body && apply_template(&out, context, body, &error), &out, &error, body);
}

void input_tokens_handle(void *context, struct http_exchange *exchange)
{
    chat_request_answer_count(context, exchange, NULL, "response.input_tokens");
}
