/* Log-probabilities as clients read them, in the two shapes of the API.
 *
 * A value below -9999 is printed as -9999.0. The same value has the same text wherever it stands.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_SERVER_LOGPROBS_H
#define LEAN_COORDINATOR_SERVER_LOGPROBS_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/server/json_write.h"
#include "proto/model/sampling.h"

struct tokenizer;

/* How tokens are shown. */
struct logprob_style {
    const struct tokenizer *tokenizer;
    bool ids; /* as "token_id:N" */
};

/* Four parallel arrays of /v1/completions, being written. Zero-initialized is empty. */
struct logprob_arrays {
    struct json_writer tokens, token_logprobs, top_logprobs, text_offset; /* inside the brackets */
};

/* sampled: with the best n_top. logprob_known: false for the first token of a prompt. */
void logprob_arrays_add(struct logprob_arrays *arrays, struct logprob_style style,
                        const struct sampled_token *sampled, bool logprob_known, size_t offset);
/* The object with the four arrays. */
void logprob_arrays_put(const struct logprob_arrays *arrays, struct json_writer *writer);
void logprob_arrays_clear(struct logprob_arrays *arrays);
void logprob_arrays_fini(struct logprob_arrays *arrays);

/* One element of "content" of the chat shape. */
void logprob_put_entry(struct json_writer *writer, struct logprob_style style,
                       const struct sampled_token *sampled);

#endif
