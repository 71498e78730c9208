/* What the handlers of all routes share: the model, how it is served, and what is under way.
 *
 *   created (settings) --server_set_model--> loaded --> serving --> draining --> destroyed
 *
 * The context of every route's handler is the struct server. Fields below "the model" may be read
 * by handlers of routes that are not answered while loading; they do not change once set.
 *
 * Ownership: everything is borrowed from whoever starts the server (launch/cli_serve.c) but what
 *            the server makes itself. */
#ifndef LEAN_COORDINATOR_SERVER_SERVER_H
#define LEAN_COORDINATOR_SERVER_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/sched/dispatcher.h"
#include "coordinator/server/api_error.h"
#include "coordinator/server/inflight.h"
#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct chat_template;
struct expert_map;
struct gguf_file;
struct http_exchange;
struct http_server;
struct json_object; /* json-c */
struct metrics;
struct tokenizer;

enum reasoning_field { REASONING_FIELD_CONTENT, REASONING_FIELD_PLAIN, REASONING_FIELD_BOTH };

/* How requests are answered: options and configuration. */
struct server_settings {
    const char *id;             /* what the model is called */
    const char *const *aliases; /* [n_alias] */
    size_t n_alias;
    const char *repository; /* where the weights came from, "Qwen/Qwen3-30B-A3B", or NULL */
    bool strict_model;      /* other names are an error */

    uint32_t max_n, max_logprobs;   /* bounds of n, logprobs and top_logprobs */
    int64_t completions_max_tokens; /* default of /v1/completions; -1: to the context's end */
    int64_t max_tokens;             /* default of the others; -1 */
    double sse_ping_s;              /* 0: none */
    bool timings;                   /* the timings object is shown */

    enum reasoning_field reasoning_field;
    bool split_reasoning;                 /* false: markers and text stay in the content */
    int64_t reasoning_budget;             /* tokens; -1: none */
    const char *reasoning_budget_message; /* before the end marker that is forced, or NULL */
    struct json_object *template_kwargs;  /* of --chat-template-kwargs, or NULL */
    const char *tool_format;              /* "auto" or the name of one (text/tool_format.h) */
    bool tool_constraint;                 /* calls are held to their syntax */
    bool json_pretty;                     /* constrained JSON may have line breaks */
    const char *log_prompts;              /* folder, or NULL */
};

struct server {
    struct server_settings settings;
    struct metrics *metrics;
    struct inflight inflight;
    struct http_server *http;

    /* the model */
    const struct gguf_file *file;
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL: it has none */
    const char *template_source;               /* NUL-terminated; NULL: none */
    size_t n_template_source;
    struct dispatcher *dispatcher;
    struct expert_map *expert_map; /* NULL: it has no routed experts */
    uint32_t n_ctx; /* of one slot */
    uint32_t n_slot;
    /* Defaults of requests, from the options, the file and the table of the contract; the seed is
     * to be replaced by a random one where a request has none. */
    struct sampling_params sampling;
    int64_t created;             /* Unix seconds: the weights' time */
    char system_fingerprint[48]; /* "lean-0.1.0-9f2c11aa" */
};

/* Checks the name of the model in a request, NULL: none was given. Fills error for an unknown one
 * if names are strict, else counts it. */
bool server_check_model(struct server *server, const char *name, struct api_error *error);

#endif
