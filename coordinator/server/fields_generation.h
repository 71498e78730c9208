/* The fields that all requests for text share: sampling, length, stopping, streaming, caching.
 *
 * Read once, checked against the table of the contract; defaults are the server's. What a route
 * has of its own (prompts, messages, log-probabilities) it reads itself.
 *
 * Ownership: strings are borrowed from the body, the rest belongs to the struct until _fini. */
#ifndef LEAN_COORDINATOR_SERVER_FIELDS_GENERATION_H
#define LEAN_COORDINATOR_SERVER_FIELDS_GENERATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/server/json_field.h"
#include "proto/model/sampling.h"

struct server;

enum {
    FIELDS_STOPS_MAX = 64,
    FIELDS_STOP_BYTES_MAX = 1024,
    FIELDS_TRUNCATE_TO_FIT = -1, /* truncate */
};

struct generation_fields {
    struct sampling_params sampling; /* seed: of the first sample, the next ones follow */
    struct logit_bias *bias;         /* sampling.bias */
    uint32_t *allowed;               /* sampling.allowed, or NULL */

    int32_t *bad_ids; /* bad_words as tokens, each word as it is and behind a space */
    size_t *bad_ends; /* [n_bad] where each ends in bad_ids */
    size_t n_bad;

    bool ignore_eos; /* end tokens are among the biases */

    int64_t max_tokens; /* -1: to the end of the context */
    int64_t min_tokens;
    const char **stops; /* [n_stop], none empty */
    size_t n_stop;
    int32_t *stop_ids; /* [n_stop_id] */
    size_t n_stop_id;
    bool include_stop, show_special;

    int64_t n; /* samples of each prompt */
    bool stream, include_usage, continuous_usage;
    double sse_ping_s; /* 0: none */
    bool return_progress, timings_per_token, return_token_ids, token_ids_as_strings;

    bool add_special_tokens;
    int64_t truncate; /* tokens to keep, FIELDS_TRUNCATE_TO_FIT; 0: the prompt is not shortened */
    bool cache_prompt;
    uint64_t cache_key; /* of cache_salt; 0: none */
    int64_t priority;
};

/* completions: whether the defaults are those of /v1/completions, and max_tokens may be 0. False:
 * the error is filled; _fini is called for all the same. */
bool generation_fields_read(struct generation_fields *fields, const struct field_reader *reader,
                            const struct server *server, bool completions);
void generation_fields_fini(struct generation_fields *fields);

/* truncate_prompt_tokens alone, for those who count only; *truncate: left as it is when absent. */
bool fields_read_truncate(int64_t *truncate, const struct field_reader *reader);

#endif
