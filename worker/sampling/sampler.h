/* Samples one token from one row of logits, deterministically.
 *
 * Candidates are ranked by (logit descending, id ascending), cumulative sums of probabilities run
 * in that order in double, and the random number comes from a counter-based generator keyed by
 * (seed, position): kernels/NUMERICS.md. Only functions of our own are used for exp and log, so
 * that hosts agree.
 *
 * Order: bias, repetition, presence and frequency penalties, DRY, top-k, typical, top-p, min-p,
 *        temperature. Each filter keeps the smallest set that it allows, never less than one.
 * Threads: a sampler holds scratch for one vocabulary; one caller at a time.
 * Memory: all of it at create, except that DRY's scratch grows with the history. */
#ifndef LEAN_WORKER_SAMPLING_SAMPLER_H
#define LEAN_WORKER_SAMPLING_SAMPLER_H

#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct sampler;

enum lm_status sampler_create(struct sampler **out, uint32_t n_vocab, struct lm_error *err);
void sampler_destroy(struct sampler *sampler); /* NULL is legal */

/* The sequence so far. */
struct sampler_history {
    const int32_t *ids; /* [n], prompt included; ids in the vocabulary */
    size_t n;
    size_t n_prompt; /* <= n; presence and frequency penalties count the rest */
};

/* logits: [n_vocab], not changed. position: of the token to be sampled.
 * LM_E_FAIL: a logit is NaN or +inf, or all are -inf, before or after bias and penalties.
 * LM_E_USAGE: a bias names a token outside the vocabulary. LM_E_NO_MEM: DRY's scratch. */
enum lm_status sampler_sample(struct sampler *sampler, const float *logits,
                              const struct sampling_params *params,
                              const struct sampler_history *history, uint64_t position,
                              struct sampled_token *out, struct lm_error *err);

/* The log-probability of a given token, and the n_top best, of the raw logits: what sampler_sample
 * reports, for tokens that were not sampled (echoed prompts). n_top <= SAMPLING_MAX_LOGPROB. */
enum lm_status sampler_logprob(struct sampler *sampler, const float *logits, int32_t id,
                               int32_t n_top, struct sampled_token *out, struct lm_error *err);

#endif
