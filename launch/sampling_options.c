/* Sampling parameters of a request. */
#include "launch/sampling_options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "coordinator/text/tokenizer.h"
#include "launch/options.h"
#include "proto/gguf/gguf.h"

/* One parameter: its option, its key in the model file (or NULL), where it goes. */
struct parameter {
    const char *option;
    const char *file_key;
    float *real;
    int32_t *whole;
};

/* An integer key, whatever its sign and width. */
static enum lm_status file_int(const struct gguf_file *file, const char *key, int32_t *out,
                               struct lm_error *err)
{
    const struct gguf_kv *kv = gguf_find_kv(file, key);
    if (!kv) return LM_OK;
    const bool is_int = kv->type < GGUF_F32 || kv->type == GGUF_U64 || kv->type == GGUF_I64;
    const int64_t value = is_int ? gguf_array_int(kv, 0) : INT64_MAX;
    if (value < INT32_MIN || value > INT32_MAX)
        return lm_fail(err, LM_E_FORMAT, "%s: not a 32-bit integer", key);
    *out = (int32_t)value;
    return LM_OK;
}

static enum lm_status read_parameter(const struct parameter *parameter,
                                     const struct options *options, const struct gguf_file *file,
                                     struct lm_error *err)
{
    const char *text = options_string(options, parameter->option);
    if (text && *text) {
        if (parameter->real) *parameter->real = (float)options_float(options, parameter->option);
        if (parameter->whole) *parameter->whole = (int32_t)options_int(options, parameter->option);
        return LM_OK;
    }
    if (!parameter->file_key) return LM_OK;
    return parameter->real ? gguf_get_f32(file, parameter->file_key, parameter->real, NULL, err)
                           : file_int(file, parameter->file_key, parameter->whole, err);
}

static enum lm_status read_parameters(struct sampling_params *params, const struct options *options,
                                      const struct gguf_file *file, struct lm_error *err)
{
    const struct parameter parameters[] = {
        {"temperature", "general.sampling.temp", .real = &params->temperature},
        {"top-p", "general.sampling.top_p", .real = &params->top_p},
        {"top-k", "general.sampling.top_k", .whole = &params->top_k},
        {"min-p", "general.sampling.min_p", .real = &params->min_p},
        {"typical-p", NULL, .real = &params->typical_p},
        {"presence-penalty", NULL, .real = &params->presence_penalty},
        {"frequency-penalty", NULL, .real = &params->frequency_penalty},
        {"repetition-penalty", "general.sampling.penalty_repeat", .real = &params->repeat_penalty},
        {"repeat-last-n", "general.sampling.penalty_last_n", .whole = &params->repeat_last_n},
        {"dry-multiplier", NULL, .real = &params->dry_multiplier},
        {"dry-base", NULL, .real = &params->dry_base},
        {"dry-allowed-length", NULL, .whole = &params->dry_allowed_length},
        {"dry-penalty-last-n", NULL, .whole = &params->dry_penalty_last_n},
    };
    enum lm_status status = LM_OK;
    for (size_t i = 0; status == LM_OK && i < sizeof(parameters) / sizeof(parameters[0]); i++)
        status = read_parameter(&parameters[i], options, file, err);
    if (params->top_k < 0) params->top_k = 0;
    return status;
}

/* "ID=X": -100 forbids the token. */
static enum lm_status read_bias(const char *text, uint32_t n_vocab, struct logit_bias *out,
                                struct lm_error *err)
{
    char *end;
    errno = 0;
    const long token = strtol(text, &end, 10);
    if (end == text || *end != '=' || !isdigit((unsigned char)*text) || errno)
        return lm_fail(err, LM_E_USAGE, "--logit-bias must be ID=X, got '%.80s'", text);
    if ((unsigned long)token >= n_vocab)
        return lm_fail(err, LM_E_USAGE, "--logit-bias: token %ld, the vocabulary has %u", token,
                       n_vocab);
    const char *number = end + 1;
    const float bias = strtof(number, &end);
    if (end == number || *end || !(bias >= -100 && bias <= 100))
        return lm_fail(err, LM_E_USAGE, "--logit-bias: a bias is from -100 to 100, got '%.80s'",
                       number);
    *out = (struct logit_bias){(int32_t)token, bias == -100 ? -INFINITY : bias};
    return LM_OK;
}

static enum lm_status read_biases(struct sampling_request *request, const struct options *options,
                                  const struct tokenizer *tokenizer, struct lm_error *err)
{
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    const size_t n_given = options_count(options, "logit-bias");
    const bool forbid_end = options_flag(options, "ignore-eos");
    size_t n = 0;
    if (!n_given && !forbid_end) return LM_OK;
    request->bias = malloc((n_given + n_vocab) * sizeof(*request->bias));
    if (!request->bias) return lm_fail(err, LM_E_NO_MEM, "no memory for logit biases");
    for (size_t i = 0; i < n_given; i++) {
        const enum lm_status status = read_bias(options_string_at(options, "logit-bias", i),
                                                n_vocab, &request->bias[n++], err);
        if (status != LM_OK) return status;
    }
    for (uint32_t id = 0; forbid_end && id < n_vocab; id++)
        if (tokenizer_is_end(tokenizer, (int32_t)id))
            request->bias[n++] = (struct logit_bias){(int32_t)id, -INFINITY};
    request->params.bias = request->bias;
    request->params.n_bias = n;
    return LM_OK;
}

/* DRY's usual breakers are line ends, colons, quotes and asterisks: every token with one of them.
 */
static enum lm_status find_breakers(struct sampling_request *request,
                                    const struct tokenizer *tokenizer, struct lm_error *err)
{
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    size_t n_found = 0;
    if (request->params.dry_multiplier == 0) return LM_OK;
    request->dry_breakers = malloc(n_vocab * sizeof(*request->dry_breakers));
    if (!request->dry_breakers) return lm_fail(err, LM_E_NO_MEM, "no memory for DRY's breakers");
    for (uint32_t id = 0; id < n_vocab; id++) {
        size_t n;
        const char *bytes = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n);
        bool breaks = false;
        for (size_t i = 0; i < n && !breaks; i++)
            breaks = bytes[i] && strchr("\n:\"*", bytes[i]);
        if (breaks) request->dry_breakers[n_found++] = (int32_t)id;
    }
    request->params.dry_breakers = request->dry_breakers;
    request->params.n_dry_breaker = n_found;
    return LM_OK;
}

enum lm_status sampling_request_init(struct sampling_request *request,
                                     const struct options *options, const struct gguf_file *file,
                                     const struct tokenizer *tokenizer, struct lm_error *err)
{
    *request = (struct sampling_request){.params = sampling_params_default()};
    request->params.temperature = 1;
    if (options_given(options, "seed"))
        request->params.seed = (uint64_t)options_int(options, "seed");
    else if (getrandom(&request->params.seed, sizeof(request->params.seed), 0) < 0)
        return lm_fail_errno(err, "random seed");
    enum lm_status status = read_parameters(&request->params, options, file, err);
    if (status == LM_OK) status = read_biases(request, options, tokenizer, err);
    if (status == LM_OK) status = find_breakers(request, tokenizer, err);
    if (status != LM_OK) sampling_request_fini(request);
    return status;
}

void sampling_request_fini(struct sampling_request *request)
{
    free(request->bias);
    free(request->dry_breakers);
}
