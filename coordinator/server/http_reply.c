/* Answers: whole ones and streams, from any thread. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "coordinator/server/http_internal.h"
#include "proto/base/log.h"

/* ---- responses ---- */

static void add_common_headers(const struct http_exchange *exchange, struct MHD_Response *response)
{
    MHD_add_response_header(response, "X-Request-Id", exchange->request_id);
    if (exchange->origin) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", exchange->origin);
        if (strcmp(exchange->origin, "*")) MHD_add_response_header(response, "Vary", "Origin");
        MHD_add_response_header(response, "Access-Control-Expose-Headers",
                                "X-Request-Id, Retry-After");
    }
    for (size_t i = 0; i < exchange->n_extra; i++)
        MHD_add_response_header(response, exchange->extra[i][0], exchange->extra[i][1]);
    const int state = atomic_load(&exchange->http->state);
    if (state == API_SHUTTING_DOWN || state == API_RANK_LOST)
        MHD_add_response_header(response, "Connection", "close");
}

/* A response with all headers that go with every answer. body: copied. NULL: no memory. */
static struct MHD_Response *make_response(struct http_exchange *exchange, const char *content_type,
                                          const char *body, size_t n)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(n, (void *)body, MHD_RESPMEM_MUST_COPY);
    if (!response) return NULL;
    if (content_type) MHD_add_response_header(response, "Content-Type", content_type);
    add_common_headers(exchange, response);
    return response;
}

bool exchange_send_raw_locked(struct http_exchange *exchange, const struct api_error *error)
{
    struct byte_buffer body = {0}, head = {0};
    const int status = api_code_status(error->code);
    if (exchange->fd < 0 || exchange->is_tls) return false; /* TLS is the library's to write */
    api_error_write(&body, error, exchange->route && exchange->route->dialect == HTTP_ANTHROPIC,
                    exchange->request_id);
    byte_buffer_printf(&head,
                       "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\nConnection: close\r\nX-Request-Id: %s\r\n%s\r\n",
                       status, MHD_get_reason_phrase_for((unsigned)status), body.n,
                       exchange->request_id,
                       api_code_retry(error->code) ? "" : "x-should-retry: false\r\n");
    byte_buffer_put(&head, body.data, body.n);
    const bool sent = !head.failed && !body.failed &&
                      send(exchange->fd, head.data, head.n, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
    byte_buffer_free(&head);
    byte_buffer_free(&body);
    exchange->answered = true;
    exchange->status = status;
    exchange->code = error->code;
    return sent;
}

/* ---- connections that wait ---- */

void exchange_resume_locked(struct http_exchange *exchange)
{
    if (!exchange->suspended || !exchange->connection) return;
    exchange->suspended = false;
    MHD_resume_connection(exchange->connection);
}

void exchange_kill_locked(struct http_exchange *exchange)
{
    exchange->dead = true;
    byte_buffer_free(&exchange->waiting);
    exchange->n_taken = 0;
    if (exchange->suspended)
        exchange_resume_locked(exchange); /* the library asks for the answer, and closes */
    else if (exchange->fd >= 0)
        shutdown(exchange->fd, SHUT_RDWR);
}

/* Whoever answers is done, unless it holds the exchange. */
static void drop_answerer(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    const bool held = exchange->held;
    pthread_mutex_unlock(&exchange->lock);
    if (!held) exchange_unref(exchange);
}

/* ---- whole answers ---- */

void http_add_header(struct http_exchange *exchange, const char *name, const char *value)
{
    char *names = strdup(name), *values = strdup(value);
    pthread_mutex_lock(&exchange->lock);
    assert(exchange->n_extra < HTTP_MAX_EXTRA_HEADER);
    if (names && values) {
        exchange->extra[exchange->n_extra][0] = names;
        exchange->extra[exchange->n_extra++][1] = values;
    } else {
        free(names);
        free(values);
    }
    pthread_mutex_unlock(&exchange->lock);
}

/* Gives the answer to the connection, or back if it cannot be given. */
static struct MHD_Response *answer_locked(struct http_exchange *exchange, int status,
                                          enum api_code code, struct MHD_Response *response)
{
    exchange->answered = true;
    exchange->ping_s = 0;
    exchange->status = status;
    exchange->code = code;
    if (response && exchange->connection && !exchange->dead) {
        exchange->response = response;
        exchange_resume_locked(exchange);
        return NULL;
    }
    if (!exchange->dead) exchange_kill_locked(exchange);
    return response;
}

/* Takes the response over. False: the answer has begun already, as a stream. */
static bool reply(struct http_exchange *exchange, int status, enum api_code code,
                  struct MHD_Response *response)
{
    pthread_mutex_lock(&exchange->lock);
    const bool begun = exchange->streaming && !exchange->taken_over;
    if (!begun && !exchange->taken_over) {
        assert(!exchange->answered);
        response = answer_locked(exchange, status, code, response);
    }
    pthread_mutex_unlock(&exchange->lock);
    if (response) MHD_destroy_response(response);
    if (!begun) drop_answerer(exchange);
    return !begun;
}

void http_reply(struct http_exchange *exchange, int status, const char *content_type,
                const char *body, size_t n)
{
    const bool replied =
        reply(exchange, status, API_OK, make_response(exchange, content_type, body, n));
    assert(replied && "no stream has begun");
    (void)replied;
}

void http_reply_json(struct http_exchange *exchange, int status, const char *json, size_t n)
{
    http_reply(exchange, status, "application/json", json, n);
}

static void add_error_headers(const struct http_server *http, enum api_code code,
                              struct MHD_Response *response)
{
    const int status = api_code_status(code);
    if (status == 429 || status == 503) {
        char seconds[16];
        snprintf(seconds, sizeof(seconds), "%u", http->config.retry_after_s(http->config.context));
        MHD_add_response_header(response, "Retry-After", seconds);
        MHD_add_response_header(response, "x-should-retry", "true");
    } else if (!api_code_retry(code)) {
        MHD_add_response_header(response, "x-should-retry", "false");
    }
    if (code == API_INVALID_API_KEY)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
}

static bool is_anthropic(const struct http_exchange *exchange)
{
    return exchange->route && exchange->route->dialect == HTTP_ANTHROPIC;
}

static int error_status(const struct http_exchange *exchange, enum api_code code)
{
    return is_anthropic(exchange) ? api_code_anthropic_status(code) : api_code_status(code);
}

/* NULL: no memory. */
static struct MHD_Response *make_error_response(struct http_exchange *exchange,
                                                const struct api_error *error)
{
    struct byte_buffer body = {0};
    api_error_write(&body, error, is_anthropic(exchange), exchange->request_id);
    struct MHD_Response *response = make_response(exchange, "application/json", body.data, body.n);
    byte_buffer_free(&body);
    if (response) add_error_headers(exchange->http, error->code, response);
    return response;
}

bool http_reply_error(struct http_exchange *exchange, const struct api_error *error)
{
    return reply(exchange, error_status(exchange, error->code), error->code,
                 make_error_response(exchange, error));
}

void exchange_take_over(struct http_exchange *exchange, const struct api_error *error)
{
    struct byte_buffer event = {0};
    struct MHD_Response *response = make_error_response(exchange, error);
    byte_buffer_put_text(&event, is_anthropic(exchange) ? "event: error\ndata: " : "data: ");
    api_error_write(&event, error, is_anthropic(exchange), NULL);
    byte_buffer_put_text(&event, "\n\n");
    pthread_mutex_lock(&exchange->lock);
    if (exchange->streaming && !exchange->ended) {
        exchange_write_locked(exchange, event.data, event.n);
        exchange->ended = exchange->answered = exchange->taken_over = true;
        exchange->ping_s = 0;
        exchange_resume_locked(exchange);
    } else if (!exchange->answered) {
        exchange->taken_over = true;
        response =
            answer_locked(exchange, error_status(exchange, error->code), error->code, response);
    }
    pthread_mutex_unlock(&exchange->lock);
    if (response) MHD_destroy_response(response);
    byte_buffer_free(&event);
}

/* ---- streams ---- */

/* Called by the library where it can send: the next bytes, or 0 and the connection waits. */
static ssize_t read_stream(void *context, uint64_t pos, char *out, size_t max)
{
    struct http_exchange *exchange = context;
    (void)pos;
    pthread_mutex_lock(&exchange->lock);
    const size_t n_waiting = exchange->waiting.n - exchange->n_taken;
    ssize_t n = (ssize_t)(n_waiting < max ? n_waiting : max);
    if (exchange->dead) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (n > 0) {
        memcpy(out, exchange->waiting.data + exchange->n_taken, (size_t)n);
        exchange->n_taken += (size_t)n;
        if (exchange->n_taken == exchange->waiting.n) {
            byte_buffer_clear(&exchange->waiting);
            exchange->n_taken = 0;
        }
    } else if (exchange->ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        exchange->suspended = true;
        MHD_suspend_connection(exchange->connection);
    }
    pthread_mutex_unlock(&exchange->lock);
    return n;
}

void exchange_begin_stream_locked(struct http_exchange *exchange)
{
    enum { BLOCK_BYTES = 16 << 10 };
    if (exchange->streaming) return;
    exchange->streaming = true;
    exchange->status = 200;
    exchange->last_s = log_now_s();
    if (exchange->dead || !exchange->connection) return;
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES,
                                                                      read_stream, exchange, NULL);
    if (!response) {
        exchange_kill_locked(exchange);
        return;
    }
    MHD_set_response_options(response, MHD_RF_SEND_KEEP_ALIVE_HEADER, MHD_RO_END);
    MHD_add_response_header(response, "Content-Type", "text/event-stream");
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    add_common_headers(exchange, response);
    exchange->response = response;
    exchange_resume_locked(exchange);
}

void exchange_write_locked(struct http_exchange *exchange, const char *bytes, size_t n)
{
    struct byte_buffer *waiting = &exchange->waiting;
    if (exchange->dead) return;
    /* what was taken makes room before the buffer grows */
    if (exchange->n_taken > waiting->n / 2) {
        memmove(waiting->data, waiting->data + exchange->n_taken, waiting->n - exchange->n_taken);
        waiting->n -= exchange->n_taken;
        exchange->n_taken = 0;
    }
    byte_buffer_put(waiting, bytes, n);
    const double before_s = exchange->last_s;
    exchange->last_s = log_now_s();
    if (waiting->failed || waiting->n - exchange->n_taken > HTTP_MAX_WAITING_BYTES) {
        exchange_kill_locked(exchange);
        http_monitor_close_locked(exchange, HTTP_SLOW_CLIENT);
    } else if (exchange->last_s - before_s < HTTP_GATHER_US * 1e-6) {
        http_gather_locked(exchange);
    } else {
        exchange_resume_locked(exchange);
    }
}

void http_stream_ping(struct http_exchange *exchange, double interval_s, const char *text)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->last_s = log_now_s();
    exchange->ping_s = interval_s;
    exchange->ping = text;
    pthread_mutex_unlock(&exchange->lock);
}

void http_stream_begin(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    if (!exchange->taken_over) exchange_begin_stream_locked(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

bool http_stream_write(struct http_exchange *exchange, const char *bytes, size_t n)
{
    pthread_mutex_lock(&exchange->lock);
    const bool taken_over = exchange->taken_over;
    assert(taken_over || (exchange->streaming && !exchange->ended));
    if (!taken_over) exchange_write_locked(exchange, bytes, n);
    const bool alive = !exchange->dead && !taken_over;
    pthread_mutex_unlock(&exchange->lock);
    return alive;
}

bool http_stream_is_behind(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    const bool behind = exchange->waiting.n - exchange->n_taken > HTTP_BEHIND_BYTES;
    pthread_mutex_unlock(&exchange->lock);
    return behind;
}

void http_stream_end(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    assert(exchange->taken_over || (exchange->streaming && !exchange->ended));
    if (!exchange->taken_over) {
        exchange->ended = exchange->answered = true;
        exchange->ping_s = 0;
        exchange_resume_locked(exchange);
    }
    pthread_mutex_unlock(&exchange->lock);
    drop_answerer(exchange);
}

/* ---- whoever answers ---- */

void http_on_closed(struct http_exchange *exchange,
                    void (*on_closed)(void *context, enum http_close reason), void *context)
{
    pthread_mutex_lock(&exchange->lock);
    assert(!exchange->held && !exchange->answered);
    exchange->held = true;
    exchange->on_closed = on_closed;
    exchange->on_closed_context = context;
    if (exchange->connection && atomic_load(&exchange->peer->half_closed))
        exchange_kill_locked(exchange);
    if (exchange->dead) http_monitor_close_locked(exchange, HTTP_CLIENT_LEFT);
    if (exchange->has_reason) http_monitor_wake(exchange->http);
    pthread_mutex_unlock(&exchange->lock);
}

void http_release(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    assert(exchange->held);
    while (exchange->in_on_closed && !pthread_equal(exchange->on_closed_thread, pthread_self()))
        pthread_cond_wait(&exchange->on_closed_ended, &exchange->lock);
    exchange->held = false;
    if (!exchange->answered && !exchange->dead) exchange_kill_locked(exchange);
    pthread_mutex_unlock(&exchange->lock);
    exchange_unref(exchange);
}

void http_set_usage(struct http_exchange *exchange, const struct http_usage *usage)
{
    pthread_mutex_lock(&exchange->lock);
    exchange->usage = *usage;
    pthread_mutex_unlock(&exchange->lock);
}
