#include "coordinator/server/completions.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/format_fields.h"
#include "coordinator/server/generation.h"
#include "coordinator/server/logprobs.h"
#include "coordinator/server/openai_writer.h"
#include "coordinator/server/server.h"
#include "coordinator/text/char_counter.h"
#include "coordinator/text/tokenizer.h"

enum { PROMPTS_MAX = 1024 };
static const char object[] = "text_completion";

/* What a choice has that is still to be sent: since the last chunk, or all of it. */
struct pending {
    struct byte_buffer text;
    struct logprob_arrays logprobs;
    struct json_writer ids;           /* inside the brackets */
    struct char_counter prompt_chars; /* where the echoed prompt's tokens stand */
    size_t n_echo_char;               /* characters before the generated text */
    bool begun;                       /* a chunk was sent */
};

struct completions {
    struct pending *pending; /* [n_choice] */
    size_t n_pending;
    bool echo;
    bool logprobs;
    struct json_writer out; /* scratch */
};

static struct pending *pending_of(const struct generation_choice *choice)
{
    struct completions *completions = choice->generation->sink_context;
    return &completions->pending[choice->index];
}

/* ---- writing ---- */

static void put_choice(struct json_writer *out, const struct generation_choice *choice)
{
    const struct completions *completions = choice->generation->sink_context;
    const struct pending *pending = pending_of(choice);
    json_open(out, '{');
    json_put_key(out, "index");
    json_put_int(out, (int64_t)choice->index);
    json_put_key(out, "text");
    json_put_string(out, pending->text.data ? pending->text.data : "", pending->text.n);
    json_put_key(out, "logprobs");
    if (completions->logprobs)
        logprob_arrays_put(&pending->logprobs, out);
    else
        json_put_null(out);
    json_put_key(out, "finish_reason");
    json_put_text(out, choice->finish);
    json_put_key(out, "stop_reason");
    generation_put_stop_reason(choice, out);
    openai_put_token_ids(out, choice, !pending->begun, &pending->ids);
    json_close(out, '}');
    out->text.failed |= pending->text.failed;
}

/* All that is pending of a choice. last: of the last choice, and nothing follows. */
static void send_chunk(struct generation_choice *choice, bool last)
{
    struct generation *generation = choice->generation;
    struct completions *completions = generation->sink_context;
    struct pending *pending = pending_of(choice);
    openai_begin_event(&completions->out, generation, object);
    put_choice(&completions->out, choice);
    openai_send_event(&completions->out, generation, true, last);
    pending->begun = true;
    byte_buffer_clear(&pending->text);
    logprob_arrays_clear(&pending->logprobs);
    json_writer_clear(&pending->ids);
}

/* ---- events ---- */

static struct logprob_style style_of(const struct generation *generation)
{
    return (struct logprob_style){generation->server->tokenizer,
                                  generation->fields.token_ids_as_strings};
}

static void on_prompt_token(struct generation_choice *choice, uint32_t pos,
                            const struct sampled_token *token)
{
    struct generation *generation = choice->generation;
    struct pending *pending = pending_of(choice);
    const struct generation_prompt *prompt = choice->prompt;
    const struct sampled_token first = {.id = prompt->ids[pos]};
    size_t n;
    const char *bytes =
        tokenizer_token_bytes(generation->server->tokenizer, prompt->ids[pos], true, &n);
    const size_t n_shown = pos == 0 && prompt->has_added_bos ? 0 : n;
    const size_t offset = char_counter_add(&pending->prompt_chars, bytes, n_shown);
    logprob_arrays_add(&pending->logprobs, style_of(generation), token ? token : &first,
                       token != NULL, offset);
}

/* The prompt as it was given, else its tokens decoded. */
static void put_echo(struct pending *pending, const struct generation_prompt *prompt,
                     const struct tokenizer *tokenizer)
{
    if (prompt->text) {
        byte_buffer_put(&pending->text, prompt->text, prompt->n_text);
    } else {
        struct token_decoder decoder = {0};
        for (size_t i = 0; i < prompt->n; i++) {
            size_t n;
            const char *bytes = tokenizer_token_bytes(tokenizer, prompt->ids[i], true, &n);
            char *text = malloc(3 * (n + 4));
            if (!text) {
                pending->text.failed = true;
                return;
            }
            const size_t n_text = token_decoder_push(&decoder, bytes, n, i + 1 == prompt->n, text);
            byte_buffer_put(&pending->text, text, n_text);
            free(text);
        }
    }
    if (pending->text.failed) return;
    pending->n_echo_char = char_counter_count(pending->text.data, pending->text.n);
}

static void on_prefill(struct generation_choice *choice, size_t n_done, size_t n_total)
{
    struct completions *completions = choice->generation->sink_context;
    openai_send_progress(&completions->out, choice, object, n_done, n_total);
}

static void on_begin(struct generation_choice *choice)
{
    const struct completions *completions = choice->generation->sink_context;
    struct pending *pending = pending_of(choice);
    if (!completions->echo) return;
    put_echo(pending, choice->prompt, choice->generation->server->tokenizer);
    if (choice->generation->fields.stream && pending->text.n) send_chunk(choice, false);
}

static void on_token(struct generation_choice *choice, const struct answer_token *token)
{
    struct generation *generation = choice->generation;
    const struct completions *completions = generation->sink_context;
    struct pending *pending = pending_of(choice);
    if (generation->fields.return_token_ids) json_put_int(&pending->ids, token->sampled->id);
    if (completions->logprobs)
        logprob_arrays_add(&pending->logprobs, style_of(generation), token->sampled, true,
                           pending->n_echo_char + token->offset);
}

static void on_text(struct generation_choice *choice, enum answer_part part, const char *text,
                    size_t n)
{
    (void)part; /* all is content */
    byte_buffer_put(&pending_of(choice)->text, text, n);
    if (choice->generation->fields.stream) send_chunk(choice, false);
}

static void on_choice_end(struct generation_choice *choice)
{
    const struct generation *generation = choice->generation;
    if (generation->fields.stream)
        send_chunk(choice, generation->n_ended + 1 == generation->n_choice);
}

static void on_end(struct generation *generation)
{
    struct completions *completions = generation->sink_context;
    if (generation->fields.stream) {
        openai_end_stream(&completions->out, generation, object);
        return;
    }
    openai_begin(&completions->out, generation, object);
    for (size_t i = 0; i < generation->n_choice; i++)
        put_choice(&completions->out, &generation->choices[i]);
    openai_reply(&completions->out, generation);
}

static void destroy(void *context)
{
    struct completions *completions = context;
    for (size_t i = 0; i < completions->n_pending; i++) {
        byte_buffer_free(&completions->pending[i].text);
        logprob_arrays_fini(&completions->pending[i].logprobs);
        byte_buffer_free(&completions->pending[i].ids.text);
    }
    free(completions->pending);
    byte_buffer_free(&completions->out.text);
}

static const struct generation_sink sink = {
    .on_prefill = on_prefill,
    .on_prompt_token = on_prompt_token,
    .on_begin = on_begin,
    .on_token = on_token,
    .on_text = on_text,
    .on_choice_end = on_choice_end,
    .on_end = on_end,
    .destroy = destroy,
};

/* ---- prompts ---- */

/* A string or a list of token ids; else it is a list of prompts. */
static bool is_one_prompt(struct json_object *value)
{
    int64_t id;
    return json_object_is_type(value, json_type_string) ||
           json_to_int(json_object_array_get_idx(value, 0), &id);
}

/* How many prompts there are, before they are looked at; 0: none, the error is filled. */
static size_t count_prompts(const struct field_reader *reader)
{
    struct json_object *value = field_get(reader, "prompt");
    if (!value) {
        field_fail(reader, API_MISSING_FIELD, "prompt", "is required");
        return 0;
    }
    if (json_object_is_type(value, json_type_string)) return 1;
    if (!json_object_is_type(value, json_type_array)) {
        field_refuse(reader, API_INVALID_TYPE, "prompt",
                     "a string, a list of token ids, or a list of these", value);
        return 0;
    }
    const size_t n = json_object_array_length(value);
    if (!n) field_fail(reader, API_INVALID_VALUE, "prompt", "must not be empty");
    if (!n || is_one_prompt(value)) return n ? 1 : 0;
    if (n <= PROMPTS_MAX) return n;
    field_fail(reader, API_INVALID_VALUE, "prompt", "must have at most %d prompts, got %zu",
               PROMPTS_MAX, n);
    return 0;
}

static bool read_ids(struct generation_prompt *prompt, const struct field_reader *reader,
                     const char *path, struct json_object *array, uint32_t n_vocab)
{
    const size_t n = json_object_array_length(array);
    char element[64], what[64];
    if (!n) return field_fail(reader, API_INVALID_VALUE, path, "must not be empty");
    prompt->ids = malloc(n * sizeof(*prompt->ids));
    if (!prompt->ids) return field_fail(reader, API_OUT_OF_MEMORY, path, "does not fit in memory");
    for (size_t i = 0; i < n; i++) {
        struct json_object *value = json_object_array_get_idx(array, i);
        int64_t id = 0;
        const bool is_id = json_to_int(value, &id);
        if (!is_id || id < 0 || id >= n_vocab) {
            snprintf(element, sizeof(element), "%s[%zu]", path, i);
            snprintf(what, sizeof(what), "a token id below %u", n_vocab);
            return field_refuse(reader, is_id ? API_INVALID_VALUE : API_INVALID_TYPE, element, what,
                                value);
        }
        prompt->ids[i] = (int32_t)id;
    }
    prompt->n = n;
    return true;
}

/* A begin token in front, unless the text has one. */
static bool add_begin(struct generation_prompt *prompt, int32_t bos)
{
    if (prompt->n && prompt->ids[0] == bos) return true;
    int32_t *grown = realloc(prompt->ids, (prompt->n + 1) * sizeof(*grown));
    if (!grown) return false;
    memmove(grown + 1, grown, prompt->n++ * sizeof(*grown));
    grown[0] = bos;
    prompt->ids = grown;
    prompt->has_added_bos = true;
    return true;
}

static bool read_text(struct generation_prompt *prompt, const struct generation *generation,
                      const struct field_reader *reader, const char *path,
                      struct json_object *value)
{
    const struct tokenizer *tokenizer = generation->server->tokenizer;
    const int32_t bos = tokenizer_bos(tokenizer);
    struct lm_error err;
    prompt->source = json_object_get(value);
    prompt->text = json_object_get_string(value);
    prompt->n_text = (size_t)json_object_get_string_len(value);
    if (!prompt->n_text && bos < 0)
        return field_fail(reader, API_INVALID_VALUE, path,
                          "must not be empty: the model has no begin token");
    if (tokenizer_encode(tokenizer, prompt->text, prompt->n_text, true, false, &prompt->ids,
                         &prompt->n, &err) != LM_OK)
        return api_fail_status(reader->error, &err, path);
    const bool adds = generation->fields.add_special_tokens && tokenizer_adds_bos(tokenizer);
    if ((adds || !prompt->n) && !add_begin(prompt, bos))
        return field_fail(reader, API_OUT_OF_MEMORY, path, "does not fit in memory");
    return true;
}

static bool read_prompt(struct generation_prompt *prompt, const struct generation *generation,
                        const struct field_reader *reader, const char *path,
                        struct json_object *value)
{
    const uint32_t n_vocab = tokenizer_n_vocab(generation->server->tokenizer);
    if (json_object_is_type(value, json_type_string))
        return read_text(prompt, generation, reader, path, value);
    if (json_object_is_type(value, json_type_array))
        return read_ids(prompt, reader, path, value, n_vocab);
    return field_refuse(reader, API_INVALID_TYPE, path, "a string or a list of token ids", value);
}

static bool read_prompts(struct generation *generation, const struct field_reader *reader)
{
    struct json_object *value = field_get(reader, "prompt");
    char path[32];
    if (is_one_prompt(value))
        return read_prompt(&generation->prompts[0], generation, reader, "prompt", value);
    for (size_t i = 0; i < generation->n_prompt; i++) {
        snprintf(path, sizeof(path), "prompt[%zu]", i);
        if (!read_prompt(&generation->prompts[i], generation, reader, path,
                         json_object_array_get_idx(value, i)))
            return false;
    }
    return true;
}

/* ---- requests ---- */

static bool read_logprobs(struct generation *generation, const struct field_reader *reader)
{
    struct completions *completions = generation->sink_context;
    const uint32_t n_most = generation->server->settings.max_logprobs;
    struct json_object *value = field_get(reader, "logprobs");
    int64_t n = 0;
    if (!field_bool(reader, "echo", &completions->echo)) return false;
    if (json_object_is_type(value, json_type_boolean))
        n = json_object_get_boolean(value) ? 1 : -1;
    else if (!value)
        n = -1;
    else if (!field_int(reader, "logprobs", 0, n_most, &n))
        return false;
    completions->logprobs = n >= 0;
    generation->fields.sampling.n_logprob = (int32_t)n;
    generation->wants_prompt_tokens = completions->echo && completions->logprobs;
    return true;
}

static bool check_suffix(const struct field_reader *reader)
{
    const char *suffix = "";
    return field_string(reader, "suffix", &suffix, NULL) &&
           (!*suffix || field_fail(reader, API_INVALID_VALUE, "suffix",
                                   "is not supported: the model has no infill tokens"));
}

/* Space for what is pending, once the number of choices is known. */
static bool alloc_pending(struct generation *generation, struct api_error *error)
{
    struct completions *completions = generation->sink_context;
    const size_t n = generation->n_prompt * (size_t)generation->fields.n;
    completions->pending = calloc(n, sizeof(*completions->pending));
    if (!completions->pending)
        return api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for %zu answers", n);
    completions->n_pending = n;
    return true;
}

static bool read_request(struct generation *generation, struct api_error *error)
{
    const struct field_reader reader = field_reader_body(generation->body, error);
    const char *model = NULL;
    if (!field_string(&reader, "model", &model, NULL) ||
        !server_check_model(generation->server, model, error) ||
        !generation_fields_read(&generation->fields, &reader, generation->server, true) ||
        !read_logprobs(generation, &reader) || !check_suffix(&reader) ||
        !format_fields_read(&generation->grammar, &reader, generation->server))
        return false;
    const size_t n_prompt = count_prompts(&reader);
    return n_prompt && generation_alloc_prompts(generation, n_prompt, error) &&
           generation_reserve(generation, error) && read_prompts(generation, &reader) &&
           generation_fit_prompts(generation, "prompt", error) && alloc_pending(generation, error);
}

void completions_handle(void *context, struct http_exchange *exchange)
{
    generation_serve(context, exchange, "cmpl-", &sink, sizeof(struct completions), read_request);
}
