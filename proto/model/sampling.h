/* What a request says about sampling: filled by the coordinator, applied on the last stage.
 *
 * Names and defaults are those of the HTTP and command-line contract. The sampler is a pure
 * function of (logits row, these parameters, the tokens seen so far, seed, position), so where it
 * runs cannot change the result. Steps apply in the order of the fields: temperature comes last,
 * so that the filters before it see the model's own probabilities. */
#ifndef LEAN_PROTO_MODEL_SAMPLING_H
#define LEAN_PROTO_MODEL_SAMPLING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct logit_bias {
    int32_t token;
    float bias; /* -INFINITY bans the token */
};

struct sampling_params {
    const struct logit_bias *bias; /* [n_bias], borrowed */
    size_t n_bias;
    /* Bits of the tokens that may be sampled, ceil(n_vocab / 32) words; NULL: all. Borrowed; it may
     * be rewritten between two steps. It is stronger than the biases: where these ban all that it
     * leaves, they do not count. Log-probabilities do not see it. */
    const uint32_t *allowed;
    float repeat_penalty;    /* 1: off; over prompt and generated tokens */
    int32_t repeat_last_n;   /* tokens that it looks back on; 0: off, -1: all */
    float presence_penalty;  /* 0: off; over generated tokens */
    float frequency_penalty; /* 0: off; over generated tokens */
    float dry_multiplier;    /* 0: off; over prompt and generated tokens */
    float dry_base;
    int32_t dry_allowed_length;
    int32_t dry_penalty_last_n;  /* -1: all */
    const int32_t *dry_breakers; /* [n_dry_breaker] tokens that end a repeated run, borrowed */
    size_t n_dry_breaker;
    int32_t top_k;     /* 0: off */
    float typical_p;   /* 1: off */
    float top_p;       /* 1: off; 0: greedy */
    float min_p;       /* 0: off */
    float temperature; /* 0: greedy; what precedes the filters still applies */
    uint64_t seed;
    int32_t n_logprob; /* -1: none; 0: of the chosen token; N: and of the N best */
    bool is_forced;    /* forced_id is taken, whatever the logits; nothing else counts, and the
                        * log-probability is not computed. May be rewritten between two steps */
    int32_t forced_id;
    bool of_processed; /* log-probabilities of what is sampled from; false: of the raw logits */
};

/* Greedy defaults with everything off; seed 0. */
struct sampling_params sampling_params_default(void);

enum { SAMPLING_MAX_LOGPROB = 20 };

/* One sampled token. Log-probabilities are natural logarithms, of the raw logits' softmax unless
 * of_processed: then of the distribution that all steps leave, -INFINITY for what they forbid. */
struct sampled_token {
    int32_t id;
    float logprob;
    int32_t n_top;
    int32_t top_id[SAMPLING_MAX_LOGPROB];
    float top_logprob[SAMPLING_MAX_LOGPROB];
};

#endif
