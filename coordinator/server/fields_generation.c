#include "coordinator/server/fields_generation.h"

#include <errno.h>
#include <float.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "coordinator/server/server.h"
#include "coordinator/text/tokenizer.h"

enum { BIASES_MAX = 1024, STOP_IDS_MAX = 1024, SALT_CHARS_MAX = 128, BAD_WORDS_MAX = 256 };

static bool no_memory(const struct field_reader *reader, const char *name)
{
    return field_fail(reader, API_OUT_OF_MEMORY, name, "does not fit in memory");
}

/* ---- sampling ---- */

/* A number of which 0 is no value: "above 0 and at most MAX". */
static bool positive_real(const struct field_reader *reader, const char *name, double max,
                          double *out)
{
    struct json_object *value = field_get(reader, name);
    char what[64];
    double real = *out;
    if (!field_real(reader, name, -DBL_MAX, DBL_MAX, &real)) return false;
    if (!value || (real > 0 && real <= max)) {
        *out = real;
        return true;
    }
    snprintf(what, sizeof(what), "above 0 and at most %g", max);
    return field_refuse(reader, API_INVALID_VALUE, name, what, value);
}

static bool read_numbers(struct sampling_params *sampling, const struct field_reader *reader)
{
    double temperature = sampling->temperature, top_p = sampling->top_p, min_p = sampling->min_p;
    double typical_p = sampling->typical_p, presence = sampling->presence_penalty;
    double frequency = sampling->frequency_penalty, repeat = sampling->repeat_penalty;
    int64_t top_k = sampling->top_k, last_n = sampling->repeat_last_n, seed;
    if (!field_real(reader, "temperature", 0, 100, &temperature) ||
        !field_real(reader, "top_p", 0, 1, &top_p) ||
        !field_int(reader, "top_k", -1, INT32_MAX, &top_k) ||
        !field_real(reader, "min_p", 0, 1, &min_p) ||
        !positive_real(reader, "typical_p", 1, &typical_p) ||
        !field_real(reader, "presence_penalty", -2, 2, &presence) ||
        !field_real(reader, "frequency_penalty", -2, 2, &frequency) ||
        !positive_real(reader, "repeat_penalty", 2, &repeat) ||
        !positive_real(reader, "repetition_penalty", 2, &repeat) ||
        !field_int(reader, "repeat_last_n", -1, INT32_MAX, &last_n))
        return false;
    if (field_get(reader, "seed")) {
        if (!field_int(reader, "seed", INT64_MIN, INT64_MAX, &seed)) return false;
        sampling->seed = (uint64_t)seed;
    } else if (getrandom(&sampling->seed, sizeof(sampling->seed), 0) !=
               (ssize_t)sizeof(sampling->seed)) {
        return api_fail(reader->error, API_INTERNAL_ERROR, NULL, "there is no random seed");
    }
    sampling->temperature = (float)temperature;
    sampling->top_p = (float)top_p;
    sampling->min_p = (float)min_p;
    sampling->typical_p = (float)typical_p;
    sampling->presence_penalty = (float)presence;
    sampling->frequency_penalty = (float)frequency;
    sampling->repeat_penalty = (float)repeat;
    sampling->repeat_last_n = (int32_t)last_n;
    sampling->top_k = top_k < 0 ? 0 : (int32_t)top_k;
    return true;
}

/* The steps that are named, in the order that they have here; the others are off. */
static bool read_samplers(struct sampling_params *sampling, const struct field_reader *reader)
{
    static const char *const names[] = {"penalties", "top_k", "typical_p",
                                        "top_p",     "min_p", "temperature"};
    enum { N_NAME = sizeof(names) / sizeof(*names) };
    struct json_object *array = NULL;
    bool named[N_NAME] = {false};
    size_t next = 0;
    if (!field_array(reader, "samplers", N_NAME, &array)) return false;
    for (size_t i = 0; array && i < json_object_array_length(array); i++) {
        struct json_object *value = json_object_array_get_idx(array, i);
        const char *name =
            json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
        char element[32];
        while (next < N_NAME && strcmp(names[next], name))
            next++;
        snprintf(element, sizeof(element), "samplers[%zu]", i);
        if (next == N_NAME)
            return field_refuse(reader, API_INVALID_VALUE, element,
                                "of penalties, top_k, typical_p, top_p, min_p, temperature, in "
                                "this order",
                                value);
        named[next++] = true;
    }
    if (!array) return true;
    if (!named[0]) {
        sampling->repeat_penalty = 1;
        sampling->presence_penalty = sampling->frequency_penalty = sampling->dry_multiplier = 0;
    }
    if (!named[1]) sampling->top_k = 0;
    if (!named[2]) sampling->typical_p = 1;
    if (!named[3]) sampling->top_p = 1;
    if (!named[4]) sampling->min_p = 0;
    if (!named[5]) sampling->temperature = 1;
    return true;
}

/* One entry of logit_bias: a number, or false, which forbids as -100 does. */
static bool read_bias(struct logit_bias *out, const struct field_reader *reader, int64_t id,
                      bool is_id, uint32_t n_vocab, struct json_object *value, const char *path)
{
    if (!is_id) return field_fail(reader, API_INVALID_TYPE, path, "must name a token by its id");
    if (id < 0 || id >= n_vocab)
        return field_fail(reader, API_INVALID_VALUE, path, "must name a token below %u, got %lld",
                          n_vocab, (long long)id);
    *out = (struct logit_bias){(int32_t)id, -INFINITY};
    if (json_object_is_type(value, json_type_boolean) && !json_object_get_boolean(value))
        return true;
    if (!json_object_is_type(value, json_type_double) && !json_object_is_type(value, json_type_int))
        return field_refuse(reader, API_INVALID_TYPE, path, "a number or false", value);
    const double bias = json_object_get_double(value);
    if (!(bias >= -100 && bias <= 100))
        return field_refuse(reader, API_INVALID_VALUE, path, "between -100 and 100", value);
    if (bias > -100) out->bias = (float)bias;
    return true;
}

static bool read_bias_object(struct generation_fields *fields, const struct field_reader *reader,
                             uint32_t n_vocab, struct json_object *object)
{
    char path[64];
    json_object_object_foreach(object, key, value)
    {
        char *end;
        errno = 0;
        const long long id = strtoll(key, &end, 10);
        const bool is_id = *key >= '0' && *key <= '9' && !*end && !errno;
        snprintf(path, sizeof(path), "logit_bias.%.40s", key);
        if (!read_bias(&fields->bias[fields->sampling.n_bias], reader, id, is_id, n_vocab, value,
                       path))
            return false;
        fields->sampling.n_bias++;
    }
    return true;
}

static bool read_bias_pairs(struct generation_fields *fields, const struct field_reader *reader,
                            uint32_t n_vocab, struct json_object *array)
{
    char path[64];
    for (size_t i = 0; i < json_object_array_length(array); i++) {
        struct json_object *pair = json_object_array_get_idx(array, i);
        int64_t id = 0;
        snprintf(path, sizeof(path), "logit_bias[%zu]", i);
        if (!json_object_is_type(pair, json_type_array) || json_object_array_length(pair) != 2)
            return field_refuse(reader, API_INVALID_TYPE, path, "a pair of token id and bias",
                                pair);
        const bool is_id = json_to_int(json_object_array_get_idx(pair, 0), &id);
        if (!read_bias(&fields->bias[fields->sampling.n_bias], reader, id, is_id, n_vocab,
                       json_object_array_get_idx(pair, 1), path))
            return false;
        fields->sampling.n_bias++;
    }
    return true;
}

/* logit_bias, ignore_eos, and the biases that the server adds. */
static bool read_biases(struct generation_fields *fields, const struct field_reader *reader,
                        const struct server *server)
{
    const uint32_t n_vocab = tokenizer_n_vocab(server->tokenizer);
    struct json_object *given = field_get(reader, "logit_bias");
    const bool is_object = json_object_is_type(given, json_type_object);
    size_t n_given = 0, n_end = 0;
    if (given && !is_object && !json_object_is_type(given, json_type_array))
        return field_refuse(reader, API_INVALID_TYPE, "logit_bias", "an object", given);
    if (!field_bool(reader, "ignore_eos", &fields->ignore_eos)) return false;
    if (given)
        n_given =
            is_object ? (size_t)json_object_object_length(given) : json_object_array_length(given);
    if (n_given > BIASES_MAX)
        return field_fail(reader, API_INVALID_VALUE, "logit_bias",
                          "must have at most %d entries, got %zu", BIASES_MAX, n_given);
    for (uint32_t id = 0; fields->ignore_eos && id < n_vocab; id++)
        n_end += tokenizer_is_end(server->tokenizer, (int32_t)id);
    const size_t n_server = server->sampling.n_bias;
    if (!n_given && !n_end) return true; /* those of the server stay */
    fields->bias = malloc((n_server + n_given + n_end) * sizeof(*fields->bias));
    if (!fields->bias) return no_memory(reader, "logit_bias");
    if (n_server) memcpy(fields->bias, server->sampling.bias, n_server * sizeof(*fields->bias));
    fields->sampling.bias = fields->bias;
    fields->sampling.n_bias = n_server;
    if (given && !(is_object ? read_bias_object(fields, reader, n_vocab, given)
                             : read_bias_pairs(fields, reader, n_vocab, given)))
        return false;
    for (uint32_t id = 0; n_end && id < n_vocab; id++)
        if (tokenizer_is_end(server->tokenizer, (int32_t)id))
            fields->bias[fields->sampling.n_bias++] = (struct logit_bias){(int32_t)id, -INFINITY};
    return true;
}

static bool read_allowed(struct generation_fields *fields, const struct field_reader *reader,
                         uint32_t n_vocab)
{
    int32_t *ids = NULL;
    size_t n = 0;
    if (!field_ints(reader, "allowed_token_ids", 0, (int64_t)n_vocab - 1, n_vocab, &ids, &n))
        return false;
    if (!ids) return true;
    if (!n) {
        free(ids);
        return field_fail(reader, API_INVALID_VALUE, "allowed_token_ids", "must not be empty");
    }
    fields->allowed = calloc((n_vocab + 31) / 32, sizeof(*fields->allowed));
    for (size_t i = 0; fields->allowed && i < n; i++)
        fields->allowed[ids[i] / 32] |= 1u << ids[i] % 32;
    free(ids);
    fields->sampling.allowed = fields->allowed;
    return fields->allowed || no_memory(reader, "allowed_token_ids");
}

/* One spelling of a bad word joins the others. *n_id: tokens so far. */
static bool add_bad(struct generation_fields *fields, const struct field_reader *reader,
                    const struct tokenizer *tokenizer, const char *text, size_t n, size_t *n_id)
{
    int32_t *ids, *grown;
    size_t n_more;
    struct lm_error err;
    if (tokenizer_encode(tokenizer, text, n, true, false, &ids, &n_more, &err) != LM_OK)
        return api_fail_status(reader->error, &err, "bad_words");
    grown = realloc(fields->bad_ids, (*n_id + n_more + 1) * sizeof(*grown));
    if (grown) {
        fields->bad_ids = grown;
        if (n_more) memcpy(grown + *n_id, ids, n_more * sizeof(*ids));
        *n_id += n_more;
        if (n_more) fields->bad_ends[fields->n_bad++] = *n_id;
    }
    free(ids);
    return grown || no_memory(reader, "bad_words");
}

static bool read_bad_words(struct generation_fields *fields, const struct field_reader *reader,
                           const struct tokenizer *tokenizer)
{
    struct json_object *array = NULL;
    size_t n_id = 0;
    if (!field_array(reader, "bad_words", BAD_WORDS_MAX, &array)) return false;
    const size_t n_word = array ? json_object_array_length(array) : 0;
    if (!n_word) return true;
    fields->bad_ends = calloc(2 * n_word, sizeof(*fields->bad_ends));
    if (!fields->bad_ends) return no_memory(reader, "bad_words");
    for (size_t i = 0; i < n_word; i++) {
        struct json_object *value = json_object_array_get_idx(array, i);
        char path[32], spaced[FIELDS_STOP_BYTES_MAX + 1] = " ";
        snprintf(path, sizeof(path), "bad_words[%zu]", i);
        if (!json_object_is_type(value, json_type_string))
            return field_refuse(reader, API_INVALID_TYPE, path, "a string", value);
        const char *const text = json_object_get_string(value);
        const size_t n = (size_t)json_object_get_string_len(value);
        if (!n || n > FIELDS_STOP_BYTES_MAX)
            return field_fail(reader, API_INVALID_VALUE, path, "must have 1 to %d bytes, got %zu",
                              FIELDS_STOP_BYTES_MAX, n);
        memcpy(spaced + 1, text, n);
        if (!add_bad(fields, reader, tokenizer, text, n, &n_id) ||
            !add_bad(fields, reader, tokenizer, spaced, n + 1, &n_id))
            return false;
    }
    return true;
}

/* ---- length and stopping ---- */

/* The name of highest rank that is given decides. */
static bool read_max_tokens(struct generation_fields *fields, const struct field_reader *reader,
                            bool completions)
{
    static const char *const names[] = {"max_completion_tokens", "max_tokens", "n_predict"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct json_object *value = field_get(reader, names[i]);
        if (!value) continue;
        int64_t n = 0;
        if (!field_int(reader, names[i], -1, INT64_MAX, &n)) return false;
        if (!n && !completions)
            return field_refuse(reader, API_INVALID_VALUE, names[i], "at least 1, or -1", value);
        fields->max_tokens = n;
        break;
    }
    const int64_t most = fields->max_tokens < 0 ? INT32_MAX : fields->max_tokens;
    return field_int(reader, "min_tokens", 0, most, &fields->min_tokens);
}

/* An element of `stop`; nulls and empty strings do not count. */
static bool add_stop(struct generation_fields *fields, const struct field_reader *reader,
                     struct json_object *value, const char *path)
{
    if (!value) return true;
    if (!json_object_is_type(value, json_type_string))
        return field_refuse(reader, API_INVALID_TYPE, path, "a string", value);
    const char *text = json_object_get_string(value);
    const size_t n = (size_t)json_object_get_string_len(value);
    if (!n) return true;
    if (n > FIELDS_STOP_BYTES_MAX)
        return field_fail(reader, API_INVALID_VALUE, path, "must have at most %d bytes, got %zu",
                          FIELDS_STOP_BYTES_MAX, n);
    if (memchr(text, 0, n))
        return field_fail(reader, API_INVALID_VALUE, path, "must not hold the character U+0000");
    if (fields->n_stop == FIELDS_STOPS_MAX)
        return field_fail(reader, API_INVALID_VALUE, "stop", "must have at most %d strings",
                          FIELDS_STOPS_MAX);
    fields->stops[fields->n_stop++] = text;
    return true;
}

static bool read_stops(struct generation_fields *fields, const struct field_reader *reader,
                       uint32_t n_vocab)
{
    struct json_object *stop = field_get(reader, "stop");
    char path[32];
    if (!field_ints(reader, "stop_token_ids", 0, (int64_t)n_vocab - 1, STOP_IDS_MAX,
                    &fields->stop_ids, &fields->n_stop_id))
        return false;
    if (!stop) return true;
    fields->stops = calloc(FIELDS_STOPS_MAX, sizeof(*fields->stops));
    if (!fields->stops) return no_memory(reader, "stop");
    if (!json_object_is_type(stop, json_type_array)) {
        if (json_object_is_type(stop, json_type_string))
            return add_stop(fields, reader, stop, "stop");
        return field_refuse(reader, API_INVALID_TYPE, "stop", "a string or an array of strings",
                            stop);
    }
    for (size_t i = 0; i < json_object_array_length(stop); i++) {
        snprintf(path, sizeof(path), "stop[%zu]", i);
        if (!add_stop(fields, reader, json_object_array_get_idx(stop, i), path)) return false;
    }
    return true;
}

/* ---- the rest ---- */

static bool read_counts(struct generation_fields *fields, const struct field_reader *reader,
                        const struct server *server)
{
    int64_t best_of;
    if (!field_int(reader, "n", 1, server->settings.max_n, &fields->n)) return false;
    best_of = fields->n;
    if (!field_int(reader, "best_of", 1, INT64_MAX, &best_of)) return false;
    return best_of == fields->n ||
           field_fail(reader, API_INVALID_VALUE, "best_of", "must equal n, which is %lld, got %lld",
                      (long long)fields->n, (long long)best_of);
}

static bool read_stream(struct generation_fields *fields, const struct field_reader *reader)
{
    struct json_object *options = NULL;
    if (!field_bool(reader, "stream", &fields->stream)) return false;
    if (!field_real(reader, "sse_ping_interval", 0, 86400, &fields->sse_ping_s)) return false;
    if (!fields->stream) return true;
    if (!field_object(reader, "stream_options", &options)) return false;
    if (!options) return true;
    const struct field_reader inside = field_reader_inside(reader, options, "stream_options", -1);
    return field_bool(&inside, "include_usage", &fields->include_usage) &&
           field_bool(&inside, "continuous_usage_stats", &fields->continuous_usage);
}

static bool read_cache(struct generation_fields *fields, const struct field_reader *reader,
                       uint64_t secret)
{
    const char *salt = NULL, *hint = NULL;
    size_t n = 0;
    if (!field_bool(reader, "cache_prompt", &fields->cache_prompt) ||
        !field_string(reader, "cache_salt", &salt, &n) ||
        !field_string(reader, "prompt_cache_key", &hint, NULL) ||
        !field_string(reader, "session_id", &hint, NULL))
        return false;
    size_t n_char = 0;
    for (size_t i = 0; i < n; i++)
        n_char += ((unsigned char)salt[i] & 0xC0) != 0x80;
    if (n_char > SALT_CHARS_MAX)
        return field_fail(reader, API_INVALID_VALUE, "cache_salt",
                          "must have at most %d characters, got %zu", SALT_CHARS_MAX, n_char);
    if (n) fields->cache_key = XXH3_64bits_withSeed(salt, n, secret) | 1;
    return true;
}

bool fields_read_truncate(int64_t *truncate, const struct field_reader *reader)
{
    struct json_object *value = field_get(reader, "truncate_prompt_tokens");
    if (!field_int(reader, "truncate_prompt_tokens", -1, INT64_MAX, truncate)) return false;
    return !value || *truncate != 0 ||
           field_refuse(reader, API_INVALID_VALUE, "truncate_prompt_tokens", "at least 1, or -1",
                        value);
}

static bool check_modalities(const struct field_reader *reader)
{
    struct json_object *list = NULL;
    if (field_get(reader, "audio"))
        return field_fail(reader, API_UNSUPPORTED_CONTENT, "audio",
                          "is not supported by this model");
    if (!field_array(reader, "modalities", 16, &list)) return false;
    for (size_t i = 0; list && i < json_object_array_length(list); i++) {
        const char *name = json_object_get_string(json_object_array_get_idx(list, i));
        if (!name || strcmp(name, "text"))
            return field_fail(reader, API_UNSUPPORTED_CONTENT, "modalities",
                              "must be [\"text\"]: this model has no others");
    }
    return true;
}

bool generation_fields_read(struct generation_fields *fields, const struct field_reader *reader,
                            const struct server *server, bool completions)
{
    const struct server_settings *settings = &server->settings;
    const uint32_t n_vocab = tokenizer_n_vocab(server->tokenizer);
    *fields = (struct generation_fields){
        .sampling = server->sampling,
        .max_tokens = completions ? settings->completions_max_tokens : settings->max_tokens,
        .n = 1,
        .sse_ping_s = settings->sse_ping_s,
        .add_special_tokens = completions,
        .cache_prompt = true,
    };
    fields->sampling.of_processed = settings->processed_logprobs;
    bool skip_special = true;
    if (!read_numbers(&fields->sampling, reader) || !read_samplers(&fields->sampling, reader) ||
        !read_biases(fields, reader, server) || !read_allowed(fields, reader, n_vocab) ||
        !read_bad_words(fields, reader, server->tokenizer) ||
        !read_max_tokens(fields, reader, completions) || !read_stops(fields, reader, n_vocab) ||
        !field_bool(reader, "include_stop_str_in_output", &fields->include_stop) ||
        !field_bool(reader, "skip_special_tokens", &skip_special) ||
        !read_counts(fields, reader, server) || !read_stream(fields, reader) ||
        !field_bool(reader, "return_progress", &fields->return_progress) ||
        !field_bool(reader, "timings_per_token", &fields->timings_per_token) ||
        !field_bool(reader, "return_token_ids", &fields->return_token_ids) ||
        !field_bool(reader, "return_tokens_as_token_ids", &fields->token_ids_as_strings) ||
        !field_bool(reader, "add_special_tokens", &fields->add_special_tokens) ||
        !fields_read_truncate(&fields->truncate, reader) ||
        !read_cache(fields, reader, server->cache_secret) ||
        !field_int(reader, "priority", INT32_MIN, INT32_MAX, &fields->priority) ||
        !check_modalities(reader))
        return false;
    fields->show_special = !skip_special;
    return true;
}

void generation_fields_fini(struct generation_fields *fields)
{
    free(fields->bias);
    free(fields->allowed);
    free(fields->bad_ids);
    free(fields->bad_ends);
    free(fields->stops);
    free(fields->stop_ids);
}
