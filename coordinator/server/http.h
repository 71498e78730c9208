/* The HTTP server: connections, routing and everything about a request that does not depend on
 * what is asked. Built on libmicrohttpd.
 *
 *   accept -> headers (host, key, limits, admission) -> body -> handler -> reply | stream -> closed
 *
 * A handler runs on an HTTP thread with the whole body and must not block on the engine: it
 * answers at once, or keeps the exchange and lets another thread answer. Each exchange is
 * answered exactly once: by http_reply*, or by http_stream_begin ... http_stream_end.
 *
 * A client that goes away is noticed within 250 ms even when no bytes flow, by a thread that polls
 * the sockets of the exchanges under way; on_closed then runs there, once.
 *
 * What is no HTTP never becomes an exchange: a head or a chunk that cannot be parsed, a length that
 * is no number, an unknown version, a head of more than some 80 KiB. libmicrohttpd answers that
 * itself with 400, 413, 414, 431 or 505 and a page of HTML, not with the contract's JSON, and
 * closes. There is no way to replace the page: no option sets it, and the only callback before it
 * is sent, the logger, is not told for which connection.
 *
 * Ownership: an exchange belongs to the server; it is valid until it is answered and, if
 *            http_on_closed was called, until http_release.
 * Threads:   replies and stream writes from any thread, one at a time per exchange. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_H
#define LEAN_COORDINATOR_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/server/api_error.h"
#include "proto/base/error.h"
#include "proto/step.h"

struct http_server;
struct http_exchange;

enum http_dialect { HTTP_OPENAI, HTTP_ANTHROPIC /* error bodies of the Messages API */ };

struct http_route {
    const char *method; /* "GET", "POST"; HEAD follows GET */
    const char *path;   /* "/v1/models/{id}": {id} matches the rest */
    void (*handle)(void *context, struct http_exchange *exchange);
    enum http_dialect dialect;
    bool is_public;     /* answered without a key */
    bool has_alias;     /* also without /v1, or below it */
    bool while_loading; /* answered in every state, see http_set_state */
    bool generates;     /* needs a place in the queue: http_config.admit */
};

/* What is known of an exchange when it is over. */
struct http_usage {
    size_t n_prompt, n_cached, n_generated;
    size_t n_draft, n_draft_accepted; /* verified; of those, passed on */
    double queue_s, first_token_s, tokens_per_s;
    struct expert_usage experts;
    const char *finish; /* static text; NULL: nothing was generated */
};
struct http_record {
    const char *request_id, *remote, *method, *route; /* route: the table's path, or "other" */
    int status;                                       /* 499: the client left */
    enum api_code code;                               /* of the error, or API_OK */
    double accepted_s, end_s;                         /* by log_now_s */
    struct http_usage usage;
};

struct http_config {
    const char *const *listen; /* [n_listen] "HOST:PORT", "[::1]:0", "unix:PATH" */
    size_t n_listen;
    const struct http_route *routes; /* the last one has no method; borrowed */
    void *context;                   /* of handlers and of the functions below */
    const char *api_prefix;          /* "/x", below which everything is; NULL or "": none */
    size_t max_body;                 /* bytes, also after decompression */
    uint32_t max_connections;
    double body_timeout_s;    /* without a byte */
    double request_timeout_s; /* from acceptance to the last byte; 0: none */
    const char *const
        *cors_origins; /* [n_cors_origin] exact, or "*"; none: those of this machine */
    size_t n_cors_origin;
    const char *const *allow_hosts; /* [n_allow_host] further names that Host may have */
    size_t n_allow_host;
    const char *tls_cert, *tls_key; /* PEM texts; NULL: no TLS on TCP */

    /* Whether this API key, NULL: none, opens a route. *owner: whose it is, see http_owner. */
    bool (*authorize)(void *context, const char *key, uint64_t *owner);
    /* A place in the queue for a route that generates. When its handler runs, the place is the
     * handler's. False: the queue is full. */
    bool (*admit)(void *context);
    void (*unadmit)(void *context); /* the handler will not run */
    uint32_t (*retry_after_s)(void *context);
    /* Before the handler of a route that generates, on its thread; or NULL. */
    void (*on_request)(void *context, const struct http_exchange *exchange);
    /* Each request, once it is over; on the server's own thread, so it must not block. */
    void (*on_done)(void *context, const struct http_record *record);
};

/* Listens and answers. LM_E_USAGE: an address or a certificate that cannot be read; LM_E_BUSY: the
 * port is taken; LM_E_IO. */
enum lm_status http_server_create(struct http_server **out, const struct http_config *config,
                                  struct lm_error *err);
/* Connections are cut, after a short time for what is still on its way. Every exchange must have
 * been answered or be so soon. NULL is legal. */
void http_server_destroy(struct http_server *http);

/* Why routes without while_loading are not served: API_LOADING_MODEL at first; API_OK: they are. */
void http_set_state(struct http_server *http, enum api_code state);
enum api_code http_state(struct http_server *http);
void http_stop_listening(struct http_server *http);
/* New connections get the new certificate. LM_E_USAGE: it cannot be read; the old one stays. */
enum lm_status http_set_tls(struct http_server *http, const char *cert, const char *key,
                            struct lm_error *err);
/* The i-th address as a URL, "http://127.0.0.1:8080" or "unix:/run/x"; NULL behind the last. */
const char *http_url(const struct http_server *http, size_t i);
/* Some address is neither loopback nor a Unix socket. */
bool http_is_exposed(const struct http_server *http);

/* ---- the request ---- */

/* Valid until the answer or http_on_closed, whichever is first; the request id to the end. */

const char *http_body(const struct http_exchange *exchange, size_t *n);
/* The value of a header, or of a key of the query string, cut to size - 1 bytes. False: there is
 * none, or the connection has ended. */
bool http_header(struct http_exchange *exchange, const char *name, char *out, size_t size);
bool http_query(struct http_exchange *exchange, const char *name, char *out, size_t size);
const char *http_path_rest(const struct http_exchange *exchange); /* what {id} matched, decoded */
const char *http_request_id(const struct http_exchange *exchange);
double http_accepted_s(const struct http_exchange *exchange); /* by log_now_s */
/* What http_config.authorize said of the key that was given. */
uint64_t http_owner(const struct http_exchange *exchange);

/* ---- the answer ---- */

/* Before the answer. Copies both. */
void http_add_header(struct http_exchange *exchange, const char *name, const char *value);
/* The whole answer; body is copied. */
void http_reply(struct http_exchange *exchange, int status, const char *content_type,
                const char *body, size_t n);
void http_reply_json(struct http_exchange *exchange, int status, const char *json, size_t n);
/* In the route's dialect, with Retry-After and x-should-retry as the code asks. False: a stream has
 * begun, so the error has to be one of its events. */
bool http_reply_error(struct http_exchange *exchange, const struct api_error *error);

/* The answer will be an event stream: whenever nothing was written for interval_s, text is sent
 * (": ping\n\n"), the first time with the headers. text: static. interval_s 0: never. */
void http_stream_ping(struct http_exchange *exchange, double interval_s, const char *text);
/* An event stream: headers go out now, unless a ping has sent them. */
void http_stream_begin(struct http_exchange *exchange);
/* Appends to the output; never blocks. What follows within a millisecond may leave with it, a
 * millisecond later. False: the client is gone or so slow that more than 4 MiB
 * wait; on_closed has run or will. */
bool http_stream_write(struct http_exchange *exchange, const char *bytes, size_t n);
/* Whether so much waits for the client that text of several tokens should become one event. */
bool http_stream_is_behind(struct http_exchange *exchange);
void http_stream_end(struct http_exchange *exchange);

enum http_close { HTTP_CLIENT_LEFT, HTTP_SLOW_CLIENT, HTTP_TIMEOUT, HTTP_SHUTDOWN };
/* From now on the exchange stays valid until http_release. on_closed runs at most once, on a
 * thread of the server, if the exchange has to end before it was answered in full. After
 * HTTP_CLIENT_LEFT and HTTP_SLOW_CLIENT nothing that is written goes anywhere. After HTTP_TIMEOUT
 * and HTTP_SHUTDOWN whoever answers does so at once, with API_REQUEST_TIMEOUT or
 * API_SHUTTING_DOWN as the reply or, in a stream, as its last event; a second later the server does
 * it itself, and what is answered afterwards goes nowhere. */
void http_on_closed(struct http_exchange *exchange,
                    void (*on_closed)(void *context, enum http_close reason), void *context);
void http_release(struct http_exchange *exchange);

/* For the access log and metrics; before the end of the answer. */
void http_set_usage(struct http_exchange *exchange, const struct http_usage *usage);

#endif
