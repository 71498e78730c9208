/* The monitor: accepts, sees clients leave, watches the clock, and buries what is over. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coordinator/server/http_internal.h"
#include "proto/base/log.h"

enum {
    TICK_MS = 50,
    N_EVENT = 64,
    FIRST_SERIAL = 1 << 20, /* epoll's numbers below are the wake-up (0) and the listeners */
};

static const double cut_after_s = 1, linger_s = 2, accept_pause_s = 0.1;

void http_monitor_wake(struct http_server *http)
{
    const uint64_t one = 1;
    if (write(http->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warning("waking the monitor: %s", strerror(errno));
}

/* ---- what others ask for ---- */

void http_monitor_close_locked(struct http_exchange *exchange, enum http_close reason)
{
    if (exchange->has_reason) return;
    exchange->has_reason = true;
    exchange->reason = reason;
    if (reason == HTTP_TIMEOUT || reason == HTTP_SHUTDOWN)
        exchange->cut_s = log_now_s() + cut_after_s;
    http_monitor_wake(exchange->http);
}

void http_monitor_watch(struct http_server *http, const struct http_connection *connection)
{
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT,
                                .data.u64 = connection->serial};
    if (epoll_ctl(http->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event))
        log_warning("watching a client: %s", strerror(errno));
}

void http_monitor_linger(struct http_server *http, int fd)
{
    const int copy = dup(fd);
    if (copy < 0) return;
    pthread_mutex_lock(&http->lock);
    struct lingering *grown =
        realloc(http->lingering, (http->n_lingering + 1) * sizeof(*http->lingering));
    if (grown) {
        http->lingering = grown;
        grown[http->n_lingering++] = (struct lingering){copy, log_now_s() + linger_s};
    }
    pthread_mutex_unlock(&http->lock);
    if (!grown) close(copy);
    http_monitor_wake(http);
}

/* ---- connections ---- */

/* Hands a connection to libmicrohttpd. False: no more can be taken now. */
static bool accept_one(struct http_server *http, const struct http_listener *listener)
{
    struct sockaddr_storage name;
    socklen_t n = sizeof(name);
    const int fd =
        accept4(listener->fd, (struct sockaddr *)&name, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return false;
    pthread_mutex_lock(&http->lock);
    struct MHD_Daemon *daemon = http->tls && !listener->is_unix ? http->tls->daemon : http->plain;
    pthread_mutex_unlock(&http->lock);
    atomic_fetch_add(&http->n_connection, 1);
    if (MHD_add_connection(daemon, fd, (struct sockaddr *)&name, n) != MHD_YES) {
        log_warning("a connection could not be taken: %s", strerror(errno));
        atomic_fetch_sub(&http->n_connection, 1);
    }
    return true;
}

static void accept_all(struct http_server *http, size_t i, double *pause_until_s)
{
    while (atomic_load(&http->listening) &&
           atomic_load(&http->n_connection) < http->config.max_connections)
        if (!accept_one(http, &http->listeners[i])) {
            /* without descriptors or memory, trying again at once would be a busy loop */
            if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
                *pause_until_s = log_now_s() + accept_pause_s;
            break;
        }
}

/* Listens, lets new connections wait in the kernel, or closes for good. */
static void poll_listeners(struct http_server *http, bool wanted, bool *polled)
{
    for (size_t i = 0; !atomic_load(&http->listening) && i < http->config.n_listen; i++)
        http_listener_close(&http->listeners[i]);
    if (wanted == *polled) return;
    for (size_t i = 0; i < http->config.n_listen && http->listeners[i].fd >= 0; i++) {
        struct epoll_event event = {.events = wanted ? EPOLLIN : 0, .data.u64 = 1 + i};
        epoll_ctl(http->epoll_fd, EPOLL_CTL_MOD, http->listeners[i].fd, &event);
    }
    *polled = wanted;
}

/* ---- exchanges ---- */

/* The client will send no more: whoever works for it may stop. */
static void client_left(struct http_server *http, uint64_t serial)
{
    pthread_mutex_lock(&http->lock);
    struct http_connection *connection = http->connections;
    while (connection && connection->serial != serial)
        connection = connection->next;
    struct http_exchange *exchange = connection ? connection->current : NULL;
    if (connection) {
        atomic_store(&connection->half_closed, true);
        http->n_half_closed++;
    }
    if (exchange) {
        pthread_mutex_lock(&exchange->lock);
        if (exchange->held && !exchange->answered) {
            exchange_kill_locked(exchange);
            http_monitor_close_locked(exchange, HTTP_CLIENT_LEFT);
        }
        pthread_mutex_unlock(&exchange->lock);
    }
    pthread_mutex_unlock(&http->lock);
}

/* A request that has not come in full never will, but libmicrohttpd, whose epoll tells edges, may
 * have missed an end that came together with the last bytes. Closing our side, too, is an edge. */
static void nudge_half_closed(struct http_server *http)
{
    pthread_mutex_lock(&http->lock);
    struct http_connection *connection = http->n_half_closed ? http->connections : NULL;
    for (; connection; connection = connection->next) {
        struct http_exchange *exchange = connection->current;
        bool waits = true;
        if (!atomic_load(&connection->half_closed)) continue;
        if (exchange) {
            pthread_mutex_lock(&exchange->lock);
            waits = !exchange->received;
            pthread_mutex_unlock(&exchange->lock);
        }
        if (waits) shutdown(connection->fd, SHUT_RD);
    }
    pthread_mutex_unlock(&http->lock);
}

/* What the clock asks of one exchange. */
static void check_time_locked(struct http_exchange *exchange, double now_s)
{
    const struct http_config *config = &exchange->http->config;
    if (!exchange->received && exchange->connection && !exchange->dead &&
        now_s - exchange->last_s > config->body_timeout_s) {
        struct api_error error;
        api_fail(&error, API_BODY_TIMEOUT, NULL,
                 "The body did not arrive: nothing was received for %g seconds.",
                 config->body_timeout_s);
        exchange_send_raw_locked(exchange, &error);
        exchange_kill_locked(exchange);
    }
    if (exchange->held && !exchange->answered && config->request_timeout_s > 0 &&
        now_s - exchange->accepted_s > config->request_timeout_s)
        http_monitor_close_locked(exchange, HTTP_TIMEOUT);
    if (exchange->ping_s > 0 && now_s - exchange->last_s >= exchange->ping_s) {
        exchange_begin_stream_locked(exchange);
        exchange_write_locked(exchange, exchange->ping, strlen(exchange->ping));
    }
}

/* Whether whoever had to answer was told that time is up, and did not. */
static bool is_overdue_locked(const struct http_exchange *exchange, double now_s)
{
    return exchange->held && exchange->cut_s && now_s >= exchange->cut_s && !exchange->answered &&
           !exchange->dead;
}

/* Answers in place of those who are late: the step that they wait for is long. */
static void take_over_overdue(struct http_server *http, double now_s)
{
    struct http_exchange *found;
    do {
        found = NULL;
        pthread_mutex_lock(&http->lock);
        struct http_exchange *exchange = http->exchanges;
        for (; exchange && !found; exchange = exchange->next) {
            pthread_mutex_lock(&exchange->lock);
            if (is_overdue_locked(exchange, now_s)) {
                atomic_fetch_add(&exchange->n_ref, 1);
                found = exchange;
            }
            pthread_mutex_unlock(&exchange->lock);
        }
        pthread_mutex_unlock(&http->lock);
        if (found) {
            struct api_error error;
            if (found->reason == HTTP_TIMEOUT)
                api_fail(&error, API_REQUEST_TIMEOUT, NULL, "The request took too long.");
            else
                api_fail(&error, API_SHUTTING_DOWN, NULL, "The server is shutting down.");
            exchange_take_over(found, &error);
            exchange_unref(found);
        }
    } while (found);
}

/* The next exchange whose on_closed is due, referenced; NULL: none. Checks the time of all. */
static struct http_exchange *next_to_report(struct http_server *http, double now_s)
{
    struct http_exchange *found = NULL;
    pthread_mutex_lock(&http->lock);
    for (struct http_exchange *exchange = http->exchanges; exchange; exchange = exchange->next) {
        pthread_mutex_lock(&exchange->lock);
        check_time_locked(exchange, now_s);
        if (!found && exchange->held && exchange->has_reason && !exchange->reported &&
            !exchange->answered) {
            exchange->reported = exchange->in_on_closed = true;
            exchange->on_closed_thread = pthread_self();
            atomic_fetch_add(&exchange->n_ref, 1);
            found = exchange;
        }
        pthread_mutex_unlock(&exchange->lock);
    }
    pthread_mutex_unlock(&http->lock);
    return found;
}

static void report_closed(struct http_server *http, double now_s)
{
    for (struct http_exchange *exchange; (exchange = next_to_report(http, now_s));) {
        exchange->on_closed(exchange->on_closed_context, exchange->reason);
        pthread_mutex_lock(&exchange->lock);
        exchange->in_on_closed = false;
        pthread_cond_broadcast(&exchange->on_closed_ended);
        pthread_mutex_unlock(&exchange->lock);
        exchange_unref(exchange);
    }
}

static struct http_record record_of(const struct http_exchange *exchange)
{
    const bool left = exchange->has_reason && (exchange->reason == HTTP_CLIENT_LEFT ||
                                               exchange->reason == HTTP_SLOW_CLIENT);
    return (struct http_record){
        .request_id = exchange->request_id,
        .remote = exchange->remote,
        .method = exchange->method,
        .route = exchange->route ? exchange->route->path : "other",
        .status = left || !exchange->status ? 499 : exchange->status,
        .code = exchange->code,
        .accepted_s = exchange->accepted_s,
        .end_s = log_now_s(),
        .usage = exchange->usage,
    };
}

static void free_exchange(struct http_exchange *exchange)
{
    for (size_t i = 0; i < exchange->n_extra; i++) {
        free((char *)exchange->extra[i][0]);
        free((char *)exchange->extra[i][1]);
    }
    if (exchange->response) MHD_destroy_response(exchange->response);
    byte_buffer_free(&exchange->body);
    byte_buffer_free(&exchange->waiting);
    free((char *)exchange->origin);
    free(exchange->rest);
    pthread_cond_destroy(&exchange->on_closed_ended);
    pthread_mutex_destroy(&exchange->lock);
    free(exchange);
}

/* Takes an exchange that nobody has any more out of the list, tells of it and frees it. */
static void bury(struct http_server *http, struct http_exchange *exchange)
{
    const struct http_config *config = &http->config;
    if (exchange->admitted) config->unadmit(config->context);
    const struct http_record record = record_of(exchange);
    if (config->on_done) config->on_done(config->context, &record);
    pthread_mutex_lock(&http->lock);
    if (exchange->previous)
        exchange->previous->next = exchange->next;
    else
        http->exchanges = exchange->next;
    if (exchange->next) exchange->next->previous = exchange->previous;
    if (!http->exchanges) pthread_cond_broadcast(&http->is_empty);
    pthread_mutex_unlock(&http->lock);
    free_exchange(exchange);
}

static void bury_finished(struct http_server *http)
{
    pthread_mutex_lock(&http->lock);
    struct http_exchange *finished = http->finished, *in_order = NULL;
    http->finished = NULL;
    pthread_mutex_unlock(&http->lock);
    while (finished) {
        struct http_exchange *next = finished->queued;
        finished->queued = in_order;
        in_order = finished;
        finished = next;
    }
    while (in_order) {
        struct http_exchange *next = in_order->queued;
        bury(http, in_order);
        in_order = next;
    }
}

/* ---- sockets that linger ---- */

/* Drops what has arrived. False: the client has closed too. */
static bool drain(int fd)
{
    char dropped[4096];
    ssize_t n;
    do
        n = recv(fd, dropped, sizeof(dropped), MSG_DONTWAIT);
    while (n > 0);
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void drain_lingering(struct http_server *http, double now_s)
{
    pthread_mutex_lock(&http->lock);
    for (size_t i = 0; i < http->n_lingering;) {
        const struct lingering *socket = &http->lingering[i];
        if (!http->stopping && now_s < socket->until_s && drain(socket->fd)) {
            i++;
            continue;
        }
        close(socket->fd);
        http->lingering[i] = http->lingering[--http->n_lingering];
    }
    pthread_mutex_unlock(&http->lock);
}

/* ---- the thread ---- */

static int timeout_ms(struct http_server *http, double pause_until_s)
{
    pthread_mutex_lock(&http->lock);
    const bool ticks =
        http->exchanges || http->n_lingering || http->n_half_closed || pause_until_s > 0;
    pthread_mutex_unlock(&http->lock);
    return ticks ? TICK_MS : -1;
}

static void handle_event(struct http_server *http, uint64_t number, double *pause_until_s)
{
    uint64_t count;
    if (number >= FIRST_SERIAL)
        client_left(http, number);
    else if (number > 0)
        accept_all(http, (size_t)number - 1, pause_until_s);
    else if (read(http->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        log_warning("the monitor's wake-up: %s", strerror(errno));
}

static void *run_monitor(void *context)
{
    struct http_server *http = context;
    struct epoll_event events[N_EVENT];
    double pause_until_s = 0;
    bool polled = true, stopping = false;
    while (!stopping) {
        const int n = epoll_wait(http->epoll_fd, events, N_EVENT, timeout_ms(http, pause_until_s));
        const double now_s = log_now_s();
        for (int i = 0; i < n; i++)
            handle_event(http, events[i].data.u64, &pause_until_s);
        if (pause_until_s && now_s >= pause_until_s) pause_until_s = 0;
        report_closed(http, now_s);
        take_over_overdue(http, now_s);
        bury_finished(http);
        drain_lingering(http, now_s);
        nudge_half_closed(http);
        poll_listeners(http,
                       !pause_until_s && atomic_load(&http->listening) &&
                           atomic_load(&http->n_connection) < http->config.max_connections,
                       &polled);
        pthread_mutex_lock(&http->lock);
        stopping = http->stopping;
        pthread_mutex_unlock(&http->lock);
    }
    return NULL;
}

enum lm_status http_monitor_start(struct http_server *http, struct lm_error *err)
{
    http->last_serial = FIRST_SERIAL;
    http->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    http->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (http->epoll_fd < 0 || http->wake_fd < 0) return lm_fail_errno(err, "http: epoll");
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    bool added = !epoll_ctl(http->epoll_fd, EPOLL_CTL_ADD, http->wake_fd, &event);
    for (size_t i = 0; i < http->config.n_listen && added; i++) {
        event.data.u64 = 1 + i;
        added = !epoll_ctl(http->epoll_fd, EPOLL_CTL_ADD, http->listeners[i].fd, &event);
    }
    if (!added) return lm_fail_errno(err, "http: epoll");
    if (pthread_create(&http->monitor, NULL, run_monitor, http))
        return lm_fail(err, LM_E_NO_MEM, "http: no thread for the monitor");
    http->has_monitor = true;
    return LM_OK;
}
