/* What the handlers of all routes share: the model, how it is served, and what is under way.
 *
 *   server_create --> loading --server_begin--> serving --server_drain--> draining --> destroyed
 *
 * The context of every route's handler is the struct server. The model and its template may be read
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
#include "coordinator/server/http.h"
#include "coordinator/server/inflight.h"
#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct chat_template;
struct expert_map;
struct gguf_file;
struct grammar_cache;
struct hparams;
struct json_object; /* json-c */
struct keys;
struct metrics;
struct metrics_rank;
struct token_trie;
struct tokenizer;

enum reasoning_field { REASONING_FIELD_CONTENT, REASONING_FIELD_PLAIN, REASONING_FIELD_BOTH };

/* How requests are answered: options and configuration. */
struct server_settings {
    const char *id;             /* what the model is called */
    const char *const *aliases; /* [n_alias] */
    size_t n_alias;
    const char *repository; /* where the weights came from, "Qwen/Qwen3-30B-A3B", or NULL */
    bool strict_model;      /* other names are an error */

    bool by_priority;               /* requests with a lower `priority` wait less */
    uint32_t max_n, max_logprobs;   /* bounds of n, logprobs and top_logprobs */
    int64_t completions_max_tokens; /* default of /v1/completions; -1: to the context's end */
    int64_t max_tokens;             /* default of the others; -1 */
    double sse_ping_s;              /* 0: none */
    bool timings;                   /* the timings object is shown */
    bool processed_logprobs;        /* log-probabilities of what is sampled from */

    enum reasoning_field reasoning_field;
    bool split_reasoning;                 /* false: markers and text stay in the content */
    int64_t reasoning_budget;             /* tokens; -1: none */
    const char *reasoning_budget_message; /* before the end marker that is forced, or NULL */
    struct json_object *template_kwargs;  /* of --chat-template-kwargs, or NULL */
    bool trust_message_specials;          /* control tokens written in messages are that */
    bool request_template;                /* a request may bring its own chat template */
    uint32_t key_concurrency;             /* sequences of one API key; 0: any number */
    bool cache_per_key;                   /* what is cached for a key is for it alone */
    enum tool_format tool_format;         /* AUTO: the template's */
    bool tool_constraint;                 /* calls are held to their syntax */
    bool json_pretty;                     /* constrained JSON may have line breaks */
    const char *log_prompts;              /* folder for the bodies of requests, or NULL */
};

struct call_memory;
struct server_state; /* what only server.c touches */

struct server {
    struct server_settings settings;
    struct metrics *metrics;
    struct inflight inflight;
    struct http_server *http;
    struct server_state *state;
    struct keys *keys;
    struct call_memory *calls;
    int64_t created; /* Unix seconds: the weights' time */
    uint32_t n_rank;
    uint64_t cache_secret; /* of this process: what separates cached prefixes depends on it */

    /* the model: set by whoever loads it, before server_begin */
    const struct gguf_file *file;
    const struct hparams *hp;
    const struct tokenizer *tokenizer;
    struct dispatcher *dispatcher;
    struct expert_map *expert_map; /* NULL: it has no routed experts */
    uint32_t n_ctx;                /* of one slot */
    uint32_t n_slot;
    /* Defaults of requests, from the options, the file and the table of the contract; the seed is
     * to be replaced by a random one where a request has none. */
    struct sampling_params sampling;
    char system_fingerprint[64]; /* "lean-0.1.0-9f2c11aa" */
    double load_s;

    /* set by server_begin */
    struct token_trie *trie;
    struct grammar_cache *grammars;
    struct chat_template *chat_template; /* NULL: it has none */
    char *template_source;               /* NUL-terminated; NULL: none */
    size_t n_template_source;
};

struct server_config {
    struct server_settings settings;
    uint32_t n_rank;         /* processes that hold the model's layers; 0: 1 */
    struct http_config http; /* without routes, functions and TLS, which are the server's */
    int64_t created;

    const char *const *api_keys; /* [n_api_key] */
    size_t n_api_key;
    const char *api_key_file;   /* or NULL */
    const char *api_key_commas; /* keys separated by commas, or NULL */
    bool metrics_public, metrics_vllm, metrics_llamacpp;
    const char *tls_cert_file, *tls_key_file; /* PEM; NULL: no TLS */
    bool page, slots;                         /* / and /slots are answered */
    const char *log_file;                     /* NULL: stderr */
    bool log_json;
};

/* Listens; requests that need the model are refused until server_begin. What http_server_create and
 * keys_load can find. config: its strings are borrowed until server_destroy. */
enum lm_status server_create(struct server **out, const struct server_config *config,
                             struct lm_error *err);
/* While loading: what is done. stage: static text. */
void server_set_stage(struct server *server, const char *stage);
/* From now on n bytes of weights come into memory: how many have is how far loading is. */
void server_expect_weights(struct server *server, uint64_t n);
/* Requests are answered from now on. template_source: of the chat template in place of the
 * model's own, or NULL. LM_E_FORMAT: a template that does not compile. */
enum lm_status server_begin(struct server *server, const char *template_source,
                            struct lm_error *err);
/* What /metrics says of a rank from now on. From any thread, which never waits for more than a
 * copy. */
void server_set_rank(struct server *server, uint32_t rank, const struct metrics_rank *what);
/* What was said, [n_rank], for the caller to free; NULL: nothing yet, or no memory. */
struct metrics_rank *server_ranks(struct server *server);

struct server_status {
    const char *state; /* "loading", "ready", "draining" */
    uint32_t n_running, n_waiting;
    double tokens_per_s; /* of all that runs */
};
struct server_status server_status(struct server *server);
/* Keys and TLS files are read again; what cannot be read stays as it is and is warned of. */
void server_reload(struct server *server);
/* What is going on, in the log. */
void server_log_state(struct server *server);
/* No new requests; those that run may go on for timeout_s, then they are cut. */
void server_drain(struct server *server, double timeout_s);
/* A rank was lost, as err says: that is what every request is told from now on, those under way
 * too. They may take timeout_s to end. */
void server_lose(struct server *server, const struct lm_error *err, double timeout_s);
/* After server_drain or server_lose, or without server_begin. NULL is legal. */
void server_destroy(struct server *server);

/* Checks the name of the model in a request, NULL: none was given. Fills error for an unknown one
 * if names are strict, else counts it. */
bool server_check_model(struct server *server, const char *name, struct api_error *error);

#endif
