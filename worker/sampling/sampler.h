/* Samples one token from one row of logits, deterministically.
 *
 * Probabilities are sorted by (value descending, id ascending), cumulative sums run in that order
 * in double, random numbers come from a counter-based generator keyed by (seed, position):
 * kernels/NUMERICS.md. Only functions of our own are used for exp and log, so that hosts agree.
 *
 * Threads: a sampler holds scratch for one vocabulary; one caller at a time. */
#ifndef LEAN_WORKER_SAMPLING_SAMPLER_H
#define LEAN_WORKER_SAMPLING_SAMPLER_H

#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct sampler;

enum lm_status sampler_create(struct sampler **out, uint32_t n_vocab, struct lm_error *err);
void sampler_destroy(struct sampler *sampler);

/* logits: [n_vocab], not changed. history: the sequence's tokens so far, prompt included.
 * position: of the token to be sampled. LM_E_FAIL: a NaN among the logits, or all -inf. */
enum lm_status sampler_sample(struct sampler *sampler, const float *logits,
                              const struct sampling_params *params, const int32_t *history,
                              size_t n_history, uint64_t position, struct sampled_token *out,
                              struct lm_error *err);

#endif
