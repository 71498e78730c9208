/* What the parts of the HTTP server share.
 *
 *   http.c          the server: set-up, libmicrohttpd's callbacks, requests until their handler
 *   http_reply.c    answers and streams
 *   http_monitor.c  one thread that accepts, sees clients leave, and watches the clock
 *   http_gather.c   one thread that sends what quick streams have written, each millisecond
 *
 * Threads: libmicrohttpd has one thread for the bytes of all connections. While a handler or the
 * engine works on a request, its connection is suspended there and the monitor watches the socket.
 * Handlers run on a few threads of their own, so that reading a long prompt stops no stream.
 *
 * Lifetime: an exchange is counted: one reference is the connection's, one belongs to whoever
 * answers. The last one to leave passes it to the monitor, which reports and frees it.
 *
 * Lock order: http->lock, then exchange->lock, then http->gather_lock. No lock is held while a
 * callback runs. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_INTERNAL_H
#define LEAN_COORDINATOR_SERVER_HTTP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <microhttpd.h>

#include "coordinator/server/http.h"
#include "coordinator/server/http_listen.h"
#include "proto/base/byte_buffer.h"

enum {
    HTTP_MAX_HEADER_BYTES = 64 << 10,
    HTTP_MAX_WAITING_BYTES = 4 << 20, /* output that a client has not taken */
    HTTP_BEHIND_BYTES = 64 << 10,     /* from here on it is spared */
    HTTP_MAX_DISCARD_BYTES =
        1 << 20, /* a refused body is read this far, so that the answer arrives */
    HTTP_N_HANDLER_THREAD = 4,
    HTTP_GATHER_US = 1000, /* events of one stream that are closer leave together */
    HTTP_MAX_EXTRA_HEADER = 12,
};

/* A socket, from libmicrohttpd's first sight of it to its last. */
struct http_connection {
    struct http_connection *next, *previous; /* in http->connections, guarded by http->lock */
    struct http_exchange *current;           /* guarded by http->lock */
    uint64_t serial;
    int fd;
    atomic_bool half_closed; /* the client will send no more */
};

struct http_exchange {
    struct http_server *http;
    struct http_exchange *next, *previous; /* in http->exchanges, guarded by http->lock */
    struct http_exchange *queued;          /* in the handlers' queue or among the finished */
    struct http_exchange *gathered;        /* in http->gathered, guarded by http->gather_lock */
    atomic_int n_ref;

    /* The request: set on libmicrohttpd's thread before the handler runs, then constant. */
    const struct http_route *route; /* NULL: none */
    char request_id[132], remote[64];
    const char *method; /* static */
    char *rest;         /* what {id} matched, or NULL */
    const char *origin; /* for Access-Control-Allow-Origin: malloc'ed, or NULL */
    double accepted_s;
    uint64_t owner;         /* of the API key */
    struct api_error early; /* found before the body; API_OK: nothing */
    char allow[64];         /* with a method that is not allowed */
    struct byte_buffer body;
    size_t n_received; /* of the body, kept or not */
    bool admitted;     /* holds a place in the queue until the handler runs */
    bool is_preflight, is_tls;
    bool lingers; /* the connection closes before the client has sent everything */

    /* Guarded by lock. */
    pthread_mutex_t lock;
    pthread_cond_t on_closed_ended;
    struct MHD_Connection *connection; /* NULL: it is over */
    struct http_connection *peer;      /* valid as long as connection is */
    int fd;
    bool suspended;
    bool received;                 /* the body is complete */
    struct MHD_Response *response; /* the answer, not yet with libmicrohttpd */
    int status;
    bool answered, streaming, ended;
    bool taken_over;            /* the monitor answered, because whoever had to did not in time */
    bool dead;                  /* nothing goes out any more */
    struct byte_buffer waiting; /* output of a stream, from n_taken on */
    size_t n_taken;
    bool is_gathered; /* in http->gathered */
    double last_s;    /* the last byte received, or written by a stream */
    double ping_s;    /* 0: none */
    const char *ping;
    const char *extra[HTTP_MAX_EXTRA_HEADER][2]; /* malloc'ed names and values */
    size_t n_extra;
    struct http_usage usage;
    enum api_code code;

    bool held; /* by http_on_closed, until http_release */
    bool has_reason, reported;
    enum http_close reason;
    void (*on_closed)(void *context, enum http_close reason);
    void *on_closed_context;
    bool in_on_closed;
    pthread_t on_closed_thread;
    double cut_s; /* when the monitor answers instead; 0: not at all */
};

struct lingering {
    int fd;
    double until_s;
};

struct tls_daemon {
    struct MHD_Daemon *daemon;
    char *cert, *key;
    struct tls_daemon *next;
};

struct http_server {
    struct http_config config;
    struct http_listener *listeners; /* [config.n_listen] */
    char (*urls)[160];
    bool all_loopback;
    struct MHD_Daemon *plain;
    /* guarded by lock: the newest certificate first; the older ones serve who came before */
    struct tls_daemon *tls;

    pthread_t monitor, handlers[HTTP_N_HANDLER_THREAD];
    size_t n_handler;
    bool has_monitor;
    int epoll_fd, wake_fd;
    atomic_int state; /* enum api_code */
    atomic_uint n_connection;
    atomic_bool listening, refusing; /* refusing: no new requests on open connections either */

    pthread_t gatherer;
    bool has_gatherer;
    pthread_mutex_t gather_lock;
    pthread_cond_t has_gathered;
    struct http_exchange *gathered; /* guarded by gather_lock like the next */
    bool gather_stops;

    pthread_mutex_t lock;
    pthread_cond_t has_work, is_empty;
    bool stopping;                   /* handlers and monitor end */
    struct http_exchange *exchanges; /* all */
    struct http_connection *connections;
    size_t n_half_closed; /* of them */
    uint64_t last_serial;
    struct http_exchange *work, *work_last; /* for the handlers */
    struct http_exchange *finished;         /* for the monitor */
    struct lingering *lingering;            /* [n_lingering] */
    size_t n_lingering;
};

/* ---- http.c ---- */

void exchange_unref(struct http_exchange *exchange);

/* ---- http_reply.c ---- */

/* With the lock held. What waits goes out, if the connection waits for it. */
void exchange_resume_locked(struct http_exchange *exchange);
/* With the lock held. Nothing goes out any more; the connection closes. */
void exchange_kill_locked(struct http_exchange *exchange);
void exchange_begin_stream_locked(struct http_exchange *exchange);
/* Ends the answer with an error: as a whole, or as the last event of a stream. Whatever is answered
 * later goes nowhere. */
void exchange_take_over(struct http_exchange *exchange, const struct api_error *error);
/* To a stream's output. */
void exchange_write_locked(struct http_exchange *exchange, const char *bytes, size_t n);
/* An error as a whole response with its head, for a connection that libmicrohttpd will not answer
 * on; false: that is not possible. Called with the lock held. */
bool exchange_send_raw_locked(struct http_exchange *exchange, const struct api_error *error);

/* ---- http_monitor.c ---- */

enum lm_status http_monitor_start(struct http_server *http, struct lm_error *err);
void http_monitor_wake(struct http_server *http);
/* The exchange has to end: on_closed is to run. With the exchange's lock held. */
void http_monitor_close_locked(struct http_exchange *exchange, enum http_close reason);
/* Sees when the client closes its side; ends with the socket. */
void http_monitor_watch(struct http_server *http, const struct http_connection *connection);
/* Keeps a copy of the socket for a moment and drops what the client still sends, so that the
 * answer is not lost with it. */
void http_monitor_linger(struct http_server *http, int fd);

/* ---- http_gather.c ---- */

enum lm_status http_gather_start(struct http_server *http, struct lm_error *err);
void http_gather_stop(struct http_server *http); /* what is gathered is sent before */
/* With the exchange's lock held: it is resumed within a millisecond or so. */
void http_gather_locked(struct http_exchange *exchange);

#endif
