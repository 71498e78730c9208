/* Sends the requests of a plan to a server as their times come, and notes at this end of the wire
 * when what arrived. Streams of the OpenAI API, over libcurl.
 *
 *   first token  sent until the first event with text
 *   gap          between two events with text
 *   end          sent until the stream is over
 *
 * Sent is when the request is handed to the connection, which may have to be opened.
 *
 * Threads: one caller, which waits. */
#ifndef LEAN_LAUNCH_BENCH_LOAD_CLIENT_H
#define LEAN_LAUNCH_BENCH_LOAD_CLIENT_H

#include "launch/bench/load_plan.h"

struct json_object; /* json-c */

struct load_target {
    const char *url; /* "http://HOST:PORT", without a path */
    const char *model;
    bool chat;                 /* /v1/chat/completions; else /v1/completions */
    bool ignore_eos;           /* answers have the full length */
    const char *api_key;       /* or NULL */
    const char *const *header; /* [n_header] "K: V" */
    size_t n_header;
};

struct load_limits {
    uint32_t n_concurrent; /* requests at once; 0: any number */
    double ramp_s;         /* of that number, from 1; 0: none */
};

struct load_outcome {
    bool sent;
    char failure[16]; /* "": it completed; "429", "connect", "stream", "cut off", "empty" */
    char *message;    /* of the failure, or NULL */
    double start_s, first_s, end_s; /* by log_now_s */
    double *gap_s;                  /* [n_gap] */
    size_t n_gap;
    int64_t n_input, n_output; /* tokens as the server says; -1: it does not */
    char *text;                /* what came */
    size_t n_text;
};

struct load_result {
    struct load_outcome *outcome; /* [n] of the plan's requests */
    size_t n;
    double duration_s; /* from the first request to the last end */
    uint32_t n_concurrent_max;
};

/* LM_E_INTERRUPTED: by a signal, with what came until then in *out. LM_E_NO_MEM. */
enum lm_status load_run(struct load_result *out, const struct load_plan *plan,
                        const struct load_target *target, const struct load_limits *limits,
                        struct lm_error *err);
void load_result_fini(struct load_result *result);

/* One small request: body NULL is GET. *out: the answer, for the caller to release. LM_E_NETWORK:
 * no connection; LM_E_NOT_FOUND: no such path; LM_E_AUTH; LM_E_FAIL: another status; LM_E_FORMAT:
 * no JSON. */
enum lm_status load_ask(const struct load_target *target, const char *path,
                        struct json_object *body, struct json_object **out, struct lm_error *err);

#endif
