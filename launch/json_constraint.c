/* Masks over the vocabulary. */
#include "launch/json_constraint.h"

#include <math.h>
#include <stdlib.h>

#include "coordinator/text/json_automaton.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/utf8.h"
#include "proto/model/sampling.h"

struct json_constraint {
    const struct tokenizer *tokenizer;
    uint32_t n_vocab;
    struct json_automaton json;
    struct logit_bias *bias; /* [n_vocab], what the engine reads */
    float *base;             /* [n_vocab] without the constraint; end tokens are forbidden */
    bool *plain;             /* [n_vocab] whole characters that any string may hold */
};

/* Most of a vocabulary, which need not be tried byte by byte inside a string. */
static bool is_plain(const char *bytes, size_t n)
{
    for (size_t i = 0, length; i < n; i += length) {
        length = utf8_decode(bytes + i, n - i, NULL);
        if (!length || (uint8_t)bytes[i] < 0x20 || bytes[i] == '"' || bytes[i] == '\\')
            return false;
    }
    return n > 0;
}

enum lm_status json_constraint_create(struct json_constraint **out,
                                      const struct tokenizer *tokenizer,
                                      struct sampling_params *params, struct lm_error *err)
{
    struct json_constraint *constraint = calloc(1, sizeof(*constraint));
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    if (constraint) {
        constraint->bias = malloc(n_vocab * sizeof(*constraint->bias));
        constraint->base = calloc(n_vocab, sizeof(*constraint->base));
        constraint->plain = malloc(n_vocab * sizeof(*constraint->plain));
    }
    if (!constraint || !constraint->bias || !constraint->base || !constraint->plain) {
        json_constraint_destroy(constraint);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the format of the answer");
    }
    constraint->tokenizer = tokenizer;
    constraint->n_vocab = n_vocab;
    json_automaton_init(&constraint->json);
    for (size_t i = 0; i < params->n_bias; i++)
        constraint->base[params->bias[i].token] += params->bias[i].bias;
    for (uint32_t id = 0; id < n_vocab; id++) {
        size_t n;
        const char *bytes = tokenizer_token_bytes(tokenizer, (int32_t)id, false, &n);
        constraint->plain[id] = is_plain(bytes, n);
        if (tokenizer_is_end(tokenizer, (int32_t)id)) constraint->base[id] = -INFINITY;
        constraint->bias[id].token = (int32_t)id;
    }
    json_constraint_widen(constraint);
    params->bias = constraint->bias;
    params->n_bias = n_vocab;
    *out = constraint;
    return LM_OK;
}

void json_constraint_destroy(struct json_constraint *constraint)
{
    if (!constraint) return;
    free(constraint->bias);
    free(constraint->base);
    free(constraint->plain);
    free(constraint);
}

void json_constraint_widen(struct json_constraint *constraint)
{
    for (uint32_t id = 0; id < constraint->n_vocab; id++)
        constraint->bias[id].bias = constraint->base[id];
}

void json_constraint_narrow(struct json_constraint *constraint, int32_t also)
{
    bool first[256];
    const bool in_text = json_automaton_in_text(&constraint->json);
    for (int byte = 0; byte < 256; byte++) {
        struct json_automaton json = constraint->json;
        first[byte] = json_automaton_take(&json, (char)byte);
    }
    for (uint32_t id = 0; id < constraint->n_vocab; id++) {
        size_t n;
        const char *bytes = tokenizer_token_bytes(constraint->tokenizer, (int32_t)id, false, &n);
        bool allowed = (in_text && constraint->plain[id]) || (int32_t)id == also;
        if (!allowed && n && first[(uint8_t)bytes[0]]) {
            struct json_automaton json = constraint->json;
            allowed = json_automaton_take_all(&json, bytes, n);
        }
        constraint->bias[id].bias = allowed ? constraint->base[id] : -INFINITY;
    }
}

bool json_constraint_take(struct json_constraint *constraint, const char *bytes, size_t n)
{
    return json_automaton_take_all(&constraint->json, bytes, n);
}

bool json_constraint_complete(const struct json_constraint *constraint)
{
    return json_automaton_complete(&constraint->json);
}
