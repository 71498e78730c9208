#include "coordinator/server/logprobs.h"

#include <stdio.h>
#include <string.h>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/unicode.h"

static void put_value(struct json_writer *writer, float logprob)
{
    json_put_float(writer, logprob > -9999 ? logprob : -9999);
}

static const char *token_bytes(struct logprob_style style, int32_t id, size_t *n)
{
    return tokenizer_token_bytes(style.tokenizer, id, true, n);
}

static void put_id(struct json_writer *writer, int32_t id)
{
    char text[24];
    snprintf(text, sizeof(text), "token_id:%d", id);
    json_put_text(writer, text);
}

/* "bytes:\xe2\x80" for what is no text of its own. */
static void put_string(struct json_writer *writer, struct logprob_style style, int32_t id)
{
    size_t n;
    const char *bytes = token_bytes(style, id, &n);
    if (style.ids) {
        put_id(writer, id);
    } else if (unicode_well_formed(bytes, n) == n) {
        json_put_string(writer, bytes, n);
    } else {
        struct byte_buffer text = {0};
        byte_buffer_put_text(&text, "bytes:");
        for (size_t i = 0; i < n; i++)
            byte_buffer_printf(&text, "\\x%02x", (unsigned char)bytes[i]);
        if (text.failed)
            writer->text.failed = true;
        else
            json_put_string(writer, text.data, text.n);
        byte_buffer_free(&text);
    }
}

static void put_member(struct json_writer *writer, struct logprob_style style, int32_t id,
                       float logprob)
{
    put_string(writer, style, id);
    byte_buffer_put(&writer->text, ":", 1);
    writer->comma = false;
    put_value(writer, logprob);
}

/* Whether one of the first n candidates is shown as id would be. */
static bool is_shown(struct logprob_style style, const struct sampled_token *sampled, int32_t n,
                     int32_t id)
{
    size_t n_bytes, n_other;
    const char *bytes = token_bytes(style, id, &n_bytes);
    for (int32_t i = 0; i < n; i++) {
        const char *other = token_bytes(style, sampled->top_id[i], &n_other);
        if (sampled->top_id[i] == id) return true;
        if (!style.ids && n_other == n_bytes && !memcmp(other, bytes, n_bytes)) return true;
    }
    return false;
}

/* The best candidates and the token itself; of two with one name the likelier one. */
static void put_top(struct json_writer *writer, struct logprob_style style,
                    const struct sampled_token *sampled)
{
    json_open(writer, '{');
    for (int32_t i = 0; i < sampled->n_top; i++)
        if (!is_shown(style, sampled, i, sampled->top_id[i]))
            put_member(writer, style, sampled->top_id[i], sampled->top_logprob[i]);
    if (!is_shown(style, sampled, sampled->n_top, sampled->id))
        put_member(writer, style, sampled->id, sampled->logprob);
    json_close(writer, '}');
}

void logprob_arrays_add(struct logprob_arrays *arrays, struct logprob_style style,
                        const struct sampled_token *sampled, bool logprob_known, size_t offset)
{
    put_string(&arrays->tokens, style, sampled->id);
    json_put_int(&arrays->text_offset, (int64_t)offset);
    if (logprob_known) {
        put_value(&arrays->token_logprobs, sampled->logprob);
        put_top(&arrays->top_logprobs, style, sampled);
    } else {
        json_put_null(&arrays->token_logprobs);
        json_put_null(&arrays->top_logprobs);
    }
}

void logprob_arrays_put(const struct logprob_arrays *arrays, struct json_writer *writer)
{
    json_open(writer, '{');
    json_put_key_list(writer, "tokens", &arrays->tokens);
    json_put_key_list(writer, "token_logprobs", &arrays->token_logprobs);
    json_put_key_list(writer, "top_logprobs", &arrays->top_logprobs);
    json_put_key_list(writer, "text_offset", &arrays->text_offset);
    json_close(writer, '}');
}

void logprob_arrays_clear(struct logprob_arrays *arrays)
{
    json_writer_clear(&arrays->tokens);
    json_writer_clear(&arrays->token_logprobs);
    json_writer_clear(&arrays->top_logprobs);
    json_writer_clear(&arrays->text_offset);
}

void logprob_arrays_fini(struct logprob_arrays *arrays)
{
    byte_buffer_free(&arrays->tokens.text);
    byte_buffer_free(&arrays->token_logprobs.text);
    byte_buffer_free(&arrays->top_logprobs.text);
    byte_buffer_free(&arrays->text_offset.text);
}

/* {"token":...,"logprob":...,"bytes":[...] without the closing brace. */
static void put_candidate(struct json_writer *writer, struct logprob_style style, int32_t id,
                          float logprob)
{
    size_t n;
    const char *bytes = token_bytes(style, id, &n);
    json_open(writer, '{');
    json_put_key(writer, "token");
    if (style.ids)
        put_id(writer, id);
    else
        json_put_string(writer, bytes, n);
    json_put_key(writer, "logprob");
    put_value(writer, logprob);
    json_put_key(writer, "bytes");
    json_open(writer, '[');
    for (size_t i = 0; i < n; i++)
        json_put_int(writer, (unsigned char)bytes[i]);
    json_close(writer, ']');
}

void logprob_put_entry(struct json_writer *writer, struct logprob_style style,
                       const struct sampled_token *sampled)
{
    put_candidate(writer, style, sampled->id, sampled->logprob);
    json_put_key(writer, "top_logprobs");
    json_open(writer, '[');
    for (int32_t i = 0; i < sampled->n_top; i++) {
        put_candidate(writer, style, sampled->top_id[i], sampled->top_logprob[i]);
        json_close(writer, '}');
    }
    json_close(writer, ']');
    json_close(writer, '}');
}
