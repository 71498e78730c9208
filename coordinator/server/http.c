#include "coordinator/server/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coordinator/server/http_body.h"
#include "coordinator/server/http_internal.h"
#include "coordinator/server/http_policy.h"
#include "coordinator/server/http_route.h"
#include "coordinator/server/random_id.h"
#include "proto/base/log.h"

enum {
    POOL_BYTES = 80 << 10, /* of a connection: headers of the size we allow, and their index */
    IDLE_TIMEOUT_S = 900,  /* of a connection that says nothing */
    RESERVED_FILES = 64    /* descriptors that are not connections */
};

static const double flush_s = 3;

/* ---- the request's parts ---- */

/* On libmicrohttpd's thread only. */
static const char *header(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

const char *http_body(const struct http_exchange *exchange, size_t *n)
{
    *n = exchange->body.n;
    return exchange->body.data ? exchange->body.data : "";
}

/* Values are the connection's, which can end while a handler runs, so they are copied. */
static bool copy_value(struct http_exchange *exchange, enum MHD_ValueKind kind, const char *name,
                       char *out, size_t size)
{
    pthread_mutex_lock(&exchange->lock);
    const char *value =
        exchange->connection ? MHD_lookup_connection_value(exchange->connection, kind, name) : NULL;
    if (value) snprintf(out, size, "%s", value);
    pthread_mutex_unlock(&exchange->lock);
    return value != NULL;
}

bool http_header(struct http_exchange *exchange, const char *name, char *out, size_t size)
{
    return copy_value(exchange, MHD_HEADER_KIND, name, out, size);
}

bool http_query(struct http_exchange *exchange, const char *name, char *out, size_t size)
{
    return copy_value(exchange, MHD_GET_ARGUMENT_KIND, name, out, size);
}

const char *http_path_rest(const struct http_exchange *exchange)
{
    return exchange->rest ? exchange->rest : "";
}

const char *http_request_id(const struct http_exchange *exchange)
{
    return exchange->request_id;
}

double http_accepted_s(const struct http_exchange *exchange)
{
    return exchange->accepted_s;
}

uint64_t http_owner(const struct http_exchange *exchange)
{
    return exchange->owner;
}

/* ---- lifetime ---- */

void exchange_unref(struct http_exchange *exchange)
{
    struct http_server *http = exchange->http;
    if (atomic_fetch_sub(&exchange->n_ref, 1) > 1) return;
    pthread_mutex_lock(&http->lock);
    exchange->queued = http->finished;
    http->finished = exchange;
    pthread_mutex_unlock(&http->lock);
    http_monitor_wake(http);
}

static void describe_client(struct http_exchange *exchange)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *name = info ? info->client_addr : NULL;
    char number[INET6_ADDRSTRLEN];
    strcpy(exchange->remote, "unix");
    if (name && name->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)name;
        inet_ntop(AF_INET, &in->sin_addr, number, sizeof(number));
        snprintf(exchange->remote, sizeof(exchange->remote), "%s:%u", number, ntohs(in->sin_port));
    } else if (name && name->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)name;
        inet_ntop(AF_INET6, &in->sin6_addr, number, sizeof(number));
        snprintf(exchange->remote, sizeof(exchange->remote), "[%s]:%u", number,
                 ntohs(in->sin6_port));
    }
}

/* A new request, whose head has been read. NULL: the server is ending, or there is no memory. */
static struct http_exchange *create_exchange(struct http_server *http,
                                             struct MHD_Connection *connection, const char *method)
{
    static const char *const methods[] = {"GET", "POST",   "HEAD", "OPTIONS",
                                          "PUT", "DELETE", "PATCH"};
    struct http_connection *peer =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    struct http_exchange *exchange =
        peer && !atomic_load(&http->refusing) ? calloc(1, sizeof(*exchange)) : NULL;
    if (!exchange) return NULL;
    exchange->http = http;
    exchange->connection = connection;
    exchange->peer = peer;
    exchange->fd = peer->fd;
    exchange->is_tls =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION) != NULL;
    exchange->accepted_s = exchange->last_s = log_now_s();
    exchange->method = "other";
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
        if (!strcmp(method, methods[i])) exchange->method = methods[i];
    atomic_init(&exchange->n_ref, 1); /* the connection's */
    pthread_mutex_init(&exchange->lock, NULL);
    pthread_cond_init(&exchange->on_closed_ended, NULL);
    describe_client(exchange);
    const char *id = header(connection, "X-Request-Id");
    if (id && http_policy_request_id(id))
        snprintf(exchange->request_id, sizeof(exchange->request_id), "%s", id);
    else
        random_id_make(exchange->request_id, "req-");

    pthread_mutex_lock(&http->lock);
    peer->current = exchange;
    exchange->next = http->exchanges;
    if (exchange->next) exchange->next->previous = exchange;
    http->exchanges = exchange;
    const bool is_first = !exchange->next;
    pthread_mutex_unlock(&http->lock);
    if (is_first) http_monitor_wake(http); /* its clock runs while there are requests */
    return exchange;
}

/* The connection's end of an exchange: answered in full, or broken off. */
static void on_completed(void *context, struct MHD_Connection *connection, void **slot,
                         enum MHD_RequestTerminationCode code)
{
    struct http_exchange *exchange = *slot;
    (void)context;
    (void)connection;
    (void)code;
    if (!exchange) return;
    *slot = NULL;
    if (exchange->lingers) http_monitor_linger(exchange->http, exchange->fd);
    pthread_mutex_lock(&exchange->http->lock);
    exchange->peer->current = NULL;
    pthread_mutex_unlock(&exchange->http->lock);
    pthread_mutex_lock(&exchange->lock);
    exchange->connection = NULL;
    exchange->fd = -1;
    exchange->dead = true;
    exchange->ping_s = 0;
    if (!exchange->answered) http_monitor_close_locked(exchange, HTTP_CLIENT_LEFT);
    pthread_mutex_unlock(&exchange->lock);
    exchange_unref(exchange);
}

static void open_connection(struct http_server *http, struct MHD_Connection *connection,
                            void **slot)
{
    struct http_connection *opened = calloc(1, sizeof(*opened));
    *slot = opened;
    if (!opened) return;
    opened->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    pthread_mutex_lock(&http->lock);
    opened->serial = ++http->last_serial;
    opened->next = http->connections;
    if (opened->next) opened->next->previous = opened;
    http->connections = opened;
    pthread_mutex_unlock(&http->lock);
    http_monitor_watch(http, opened);
}

/* Before its descriptor is. */
static void close_connection(struct http_server *http, struct http_connection *connection)
{
    if (!connection) return;
    pthread_mutex_lock(&http->lock);
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        http->connections = connection->next;
    if (connection->next) connection->next->previous = connection->previous;
    http->n_half_closed -= atomic_load(&connection->half_closed);
    pthread_mutex_unlock(&http->lock);
    free(connection);
}

static void on_connection(void *context, struct MHD_Connection *connection, void **slot,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *http = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        open_connection(http, connection, slot);
        return;
    }
    close_connection(http, *slot);
    if (atomic_fetch_sub(&http->n_connection, 1) == http->config.max_connections)
        http_monitor_wake(http);
}

/* ---- checks before the body ---- */

static bool check_host(struct http_exchange *exchange)
{
    const struct http_config *config = &exchange->http->config;
    const char *host = header(exchange->connection, "Host");
    if (!exchange->http->all_loopback || !host || !strcmp(exchange->remote, "unix")) return true;
    if (http_policy_host(host, config->allow_hosts, config->n_allow_host)) return true;
    return api_fail(&exchange->early, API_HOST_NOT_ALLOWED, NULL,
                    "The host '%.80s' is not allowed; --allow-host adds names.", host);
}

static bool find_route(struct http_exchange *exchange, const char *method, const char *path)
{
    const struct http_config *config = &exchange->http->config;
    const char *below = http_route_below(path, config->api_prefix);
    const struct http_match match =
        below ? http_route_match(config->routes, method, below) : (struct http_match){0};
    exchange->route = match.route;
    if (match.rest) exchange->rest = strndup(match.rest, match.n_rest);
    if (match.route) return true;
    if (!*match.allow)
        return api_fail(&exchange->early, API_NOT_FOUND, NULL, "There is nothing at '%.80s'.",
                        path);
    strcpy(exchange->allow, match.allow);
    return api_fail(&exchange->early, API_METHOD_NOT_ALLOWED, NULL,
                    "The method %.20s is not allowed here, only %s.", method, match.allow);
}

static bool check_key(struct http_exchange *exchange)
{
    const struct http_config *config = &exchange->http->config;
    const char *bearer = http_policy_bearer(header(exchange->connection, "Authorization"));
    const char *other = header(exchange->connection, "x-api-key");
    if (exchange->route->is_public || !config->authorize) return true;
    if (config->authorize(config->context, bearer, &exchange->owner)) return true;
    if (other && config->authorize(config->context, other, &exchange->owner)) return true;
    return api_fail(&exchange->early, API_INVALID_API_KEY, NULL,
                    bearer || other ? "The API key is not valid."
                                    : "An API key is needed: Authorization: Bearer KEY.");
}

static bool check_state(struct http_exchange *exchange)
{
    const enum api_code state = (enum api_code)atomic_load(&exchange->http->state);
    const char *why = state == API_LOADING_MODEL   ? "The model is being loaded."
                      : state == API_SHUTTING_DOWN ? "The server is shutting down."
                      : state == API_RANK_LOST     ? "A worker rank was lost."
                                                   : "The server cannot answer now.";
    if (state == API_OK || exchange->route->while_loading) return true;
    return api_fail(&exchange->early, state, NULL, "%s", why);
}

/* Bytes of the body as announced; 0: none or not known. */
static uint64_t announced_bytes(struct http_exchange *exchange)
{
    const char *length = header(exchange->connection, "Content-Length");
    return length ? strtoull(length, NULL, 10) : 0;
}

static bool check_sizes(struct http_exchange *exchange)
{
    const struct http_config *config = &exchange->http->config;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    if (info && info->header_size > HTTP_MAX_HEADER_BYTES)
        return api_fail(&exchange->early, API_HEADERS_TOO_LARGE, NULL,
                        "The headers have %zu bytes, at most %d are taken.", info->header_size,
                        HTTP_MAX_HEADER_BYTES);
    if (announced_bytes(exchange) > config->max_body)
        return api_fail(&exchange->early, API_REQUEST_TOO_LARGE, NULL,
                        "The body has %llu bytes, at most %zu are taken.",
                        (unsigned long long)announced_bytes(exchange), config->max_body);
    return true;
}

static bool admit(struct http_exchange *exchange)
{
    const struct http_config *config = &exchange->http->config;
    if (!exchange->route->generates) return true;
    exchange->admitted = config->admit(config->context);
    if (exchange->admitted) return true;
    return api_fail(&exchange->early, API_QUEUE_FULL, NULL,
                    "The server is busy and its queue is full. Try again later.");
}

static void check_head(struct http_exchange *exchange, const char *method, const char *path)
{
    const struct http_config *config = &exchange->http->config;
    const char *origin = header(exchange->connection, "Origin");
    origin =
        origin ? http_policy_origin(origin, config->cors_origins, config->n_cors_origin) : NULL;
    if (origin) exchange->origin = strdup(origin);
    if (!check_host(exchange)) return;
    exchange->is_preflight = !strcmp(method, "OPTIONS");
    if (exchange->is_preflight) return;
    if (find_route(exchange, method, path) && check_key(exchange) && check_state(exchange) &&
        check_sizes(exchange))
        admit(exchange);
}

/* ---- answers that need no handler ---- */

static void answer_preflight(struct http_exchange *exchange)
{
    const char *wanted = header(exchange->connection, "Access-Control-Request-Headers");
    if (exchange->origin) {
        http_add_header(exchange, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        if (wanted && http_policy_header_list(wanted))
            http_add_header(exchange, "Access-Control-Allow-Headers", wanted);
        http_add_header(exchange, "Access-Control-Max-Age", "600");
    }
    http_reply(exchange, 204, NULL, "", 0);
}

/* Whoever answers takes a reference along. */
static void answer_early(struct http_exchange *exchange)
{
    atomic_fetch_add(&exchange->n_ref, 1);
    if (*exchange->allow) http_add_header(exchange, "Allow", exchange->allow);
    if (exchange->is_preflight)
        answer_preflight(exchange);
    else
        http_reply_error(exchange, &exchange->early);
}

/* ---- handlers ---- */

static bool is_gzip(struct http_exchange *exchange, struct api_error *error)
{
    char encoding[96];
    if (!http_header(exchange, "Content-Encoding", encoding, sizeof(encoding)) ||
        !strcasecmp(encoding, "identity"))
        return false;
    if (!strcasecmp(encoding, "gzip") || !strcasecmp(encoding, "x-gzip")) return true;
    api_fail(error, API_INVALID_JSON, NULL, "The content encoding '%.80s' is not known, only gzip.",
             encoding);
    return false;
}

static void run_handler(struct http_exchange *exchange)
{
    const struct http_config *config = &exchange->http->config;
    struct api_error error = {.code = API_OK};
    if (is_gzip(exchange, &error)) http_body_gunzip(&exchange->body, config->max_body, &error);
    if (error.code == API_OK && exchange->body.failed)
        api_fail(&error, API_OUT_OF_MEMORY, NULL, "There is no memory for the body.");
    if (error.code != API_OK) {
        http_reply_error(exchange, &error);
        return;
    }
    if (config->on_request && exchange->route->generates)
        config->on_request(config->context, exchange);
    exchange->admitted = false; /* the place is the handler's */
    exchange->route->handle(config->context, exchange);
}

static void *run_handlers(void *context)
{
    struct http_server *http = context;
    pthread_mutex_lock(&http->lock);
    for (;;) {
        while (!http->work && !http->stopping)
            pthread_cond_wait(&http->has_work, &http->lock);
        struct http_exchange *exchange = http->work;
        if (!exchange) break;
        http->work = exchange->queued;
        pthread_mutex_unlock(&http->lock);
        run_handler(exchange);
        pthread_mutex_lock(&http->lock);
    }
    pthread_mutex_unlock(&http->lock);
    return NULL;
}

static void enqueue(struct http_exchange *exchange)
{
    struct http_server *http = exchange->http;
    atomic_fetch_add(&exchange->n_ref, 1); /* whoever answers */
    pthread_mutex_lock(&http->lock);
    exchange->queued = NULL;
    if (http->work)
        http->work_last->queued = exchange;
    else
        http->work = exchange;
    http->work_last = exchange;
    pthread_cond_signal(&http->has_work);
    pthread_mutex_unlock(&http->lock);
}

/* ---- libmicrohttpd's calls ---- */

/* Gives the answer to the library if there is one, else lets the connection wait for it. The
 * library locks a response while it reads a stream from us, so it gets none with our lock held. */
static enum MHD_Result give_answer(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    struct MHD_Response *response = exchange->response;
    const bool dead = exchange->dead;
    const unsigned status = (unsigned)exchange->status;
    exchange->response = NULL;
    if (!dead && !response) {
        exchange->suspended = true;
        MHD_suspend_connection(exchange->connection);
    }
    pthread_mutex_unlock(&exchange->lock);
    enum MHD_Result result = dead ? MHD_NO : MHD_YES;
    if (!dead && response) result = MHD_queue_response(exchange->connection, status, response);
    if (response) MHD_destroy_response(response);
    return result;
}

static enum MHD_Result take_head(struct http_server *http, struct MHD_Connection *connection,
                                 const char *path, const char *method, void **slot)
{
    struct http_exchange *exchange = create_exchange(http, connection, method);
    if (!exchange) return MHD_NO;
    *slot = exchange;
    check_head(exchange, method, path);
    /* A body that is no use is read nevertheless, so that the connection goes on, if it is short.
     */
    if (exchange->early.code == API_OK || announced_bytes(exchange) <= HTTP_MAX_DISCARD_BYTES)
        return MHD_YES;
    exchange->lingers = true;
    answer_early(exchange);
    return give_answer(exchange);
}

/* A body without an announced length went over the limit: the library cannot answer before its
 * end, so the answer goes to the socket directly. */
static enum MHD_Result refuse_body(struct http_exchange *exchange)
{
    const size_t max = exchange->http->config.max_body;
    pthread_mutex_lock(&exchange->lock);
    if (exchange->early.code == API_OK)
        api_fail(&exchange->early, API_REQUEST_TOO_LARGE, NULL, "The body has more than %zu bytes.",
                 max);
    exchange->lingers = exchange_send_raw_locked(exchange, &exchange->early);
    exchange->dead = true;
    pthread_mutex_unlock(&exchange->lock);
    return MHD_NO;
}

static enum MHD_Result take_body(struct http_exchange *exchange, const char *bytes, size_t n)
{
    const bool refused = exchange->early.code != API_OK || exchange->is_preflight;
    const size_t max = refused ? HTTP_MAX_DISCARD_BYTES : exchange->http->config.max_body;
    exchange->n_received += n;
    pthread_mutex_lock(&exchange->lock);
    exchange->last_s = log_now_s();
    const bool dead = exchange->dead;
    pthread_mutex_unlock(&exchange->lock);
    if (dead) return MHD_NO;
    if (exchange->n_received > max) return refuse_body(exchange);
    if (!refused) byte_buffer_put(&exchange->body, bytes, n);
    return MHD_YES;
}

static enum MHD_Result finish_body(struct http_exchange *exchange)
{
    pthread_mutex_lock(&exchange->lock);
    const bool first = !exchange->received;
    exchange->received = true;
    pthread_mutex_unlock(&exchange->lock);
    const bool has_handler = exchange->early.code == API_OK && !exchange->is_preflight;
    if (first && !has_handler) answer_early(exchange);
    const enum MHD_Result result = give_answer(exchange);
    if (first && has_handler) {
        if (result == MHD_YES) enqueue(exchange);
    }
    return result;
}

static enum MHD_Result on_access(void *context, struct MHD_Connection *connection, const char *url,
                                 const char *method, const char *version, const char *upload,
                                 size_t *n_upload, void **slot)
{
    (void)version;
    if (!*slot) return take_head(context, connection, url, method, slot);
    if (!*n_upload) return finish_body(*slot);
    const size_t n = *n_upload;
    *n_upload = 0;
    return take_body(*slot, upload, n);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place. %00 stays, so that nothing hides behind the end of a string. */
static size_t unescape(void *context, struct MHD_Connection *connection, char *text)
{
    char *out = text;
    (void)context;
    (void)connection;
    for (const char *in = text; *in; in++) {
        const int high = *in == '%' ? hex_digit(in[1]) : -1;
        const int low = high >= 0 ? hex_digit(in[2]) : -1;
        const bool decodes = low >= 0 && high * 16 + low != 0;
        *out++ = decodes ? (char)(high * 16 + low) : *in;
        if (decodes) in += 2;
    }
    *out = '\0';
    return (size_t)(out - text);
}

static void on_log(void *context, const char *format, va_list arguments)
{
    char text[512];
    (void)context;
    vsnprintf(text, sizeof(text), format, arguments);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http: %s", text);
}

/* ---- the server ---- */

static struct MHD_Daemon *start_daemon(struct http_server *http, const char *cert, const char *key)
{
    const unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL |
                           MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                           (cert ? MHD_USE_TLS : 0);
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)cert},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)"NORMAL:-VERS-ALL:+VERS-TLS1.2:+VERS-TLS1.3"},
        {MHD_OPTION_END, 0, NULL},
    };
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_access, http, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)POOL_BYTES, MHD_OPTION_CONNECTION_MEMORY_INCREMENT, (size_t)4096,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)http->config.max_connections + 1, MHD_OPTION_ARRAY, cert ? tls : tls + 3,
        MHD_OPTION_END);
}

enum lm_status http_set_tls(struct http_server *http, const char *cert, const char *key,
                            struct lm_error *err)
{
    struct tls_daemon *tls = calloc(1, sizeof(*tls));
    if (!tls) return lm_fail(err, LM_E_NO_MEM, "http: no memory for TLS");
    tls->cert = strdup(cert);
    tls->key = strdup(key);
    if (tls->cert && tls->key) tls->daemon = start_daemon(http, tls->cert, tls->key);
    if (!tls->daemon) {
        free(tls->cert);
        free(tls->key);
        free(tls);
        return lm_fail(err, LM_E_USAGE, "the certificate and its key cannot be used for TLS");
    }
    pthread_mutex_lock(&http->lock);
    tls->next = http->tls;
    http->tls = tls;
    pthread_mutex_unlock(&http->lock);
    return LM_OK;
}

static enum lm_status listen_all(struct http_server *http, struct lm_error *err)
{
    const struct http_config *config = &http->config;
    http->listeners = calloc(config->n_listen, sizeof(*http->listeners));
    http->urls = calloc(config->n_listen, sizeof(*http->urls));
    if (!http->listeners || !http->urls) return lm_fail(err, LM_E_NO_MEM, "http: no memory");
    for (size_t i = 0; i < config->n_listen; i++)
        http->listeners[i].fd = -1;
    http->all_loopback = true;
    for (size_t i = 0; i < config->n_listen; i++) {
        struct http_listener *listener = &http->listeners[i];
        const enum lm_status status = http_listen(listener, config->listen[i], err);
        if (status != LM_OK) return status;
        http->all_loopback &= listener->loopback;
        snprintf(http->urls[i], sizeof(http->urls[i]), "%s%s%s",
                 listener->is_unix  ? ""
                 : config->tls_cert ? "https://"
                                    : "http://",
                 listener->address,
                 listener->is_unix || !config->api_prefix ? "" : config->api_prefix);
    }
    return LM_OK;
}

/* Connections need descriptors; the soft limit is often 1024. */
static void raise_file_limit(uint32_t n_connection)
{
    struct rlimit limit;
    const rlim_t wanted = (rlim_t)n_connection + RESERVED_FILES;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= wanted) return;
    limit.rlim_cur =
        limit.rlim_max == RLIM_INFINITY || limit.rlim_max >= wanted ? wanted : limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static enum lm_status start_threads(struct http_server *http, struct lm_error *err)
{
    for (; http->n_handler < HTTP_N_HANDLER_THREAD; http->n_handler++)
        if (pthread_create(&http->handlers[http->n_handler], NULL, run_handlers, http))
            return lm_fail(err, LM_E_NO_MEM, "http: no thread for handlers");
    const enum lm_status status = http_gather_start(http, err);
    return status == LM_OK ? http_monitor_start(http, err) : status;
}

enum lm_status http_server_create(struct http_server **out, const struct http_config *config,
                                  struct lm_error *err)
{
    struct http_server *http = calloc(1, sizeof(*http));
    if (!http) return lm_fail(err, LM_E_NO_MEM, "http: no memory");
    http->config = *config;
    http->epoll_fd = http->wake_fd = -1;
    atomic_init(&http->state, API_LOADING_MODEL);
    atomic_init(&http->listening, true);
    pthread_mutex_init(&http->lock, NULL);
    pthread_mutex_init(&http->gather_lock, NULL);
    pthread_cond_init(&http->has_gathered, NULL);
    pthread_cond_init(&http->has_work, NULL);
    pthread_cond_init(&http->is_empty, NULL);
    raise_file_limit(config->max_connections);
    enum lm_status status = listen_all(http, err);
    if (status == LM_OK && !(http->plain = start_daemon(http, NULL, NULL)))
        status = lm_fail(err, LM_E_FAIL, "http: libmicrohttpd does not start");
    if (status == LM_OK && config->tls_cert)
        status = http_set_tls(http, config->tls_cert, config->tls_key, err);
    if (status == LM_OK) status = start_threads(http, err);
    if (status != LM_OK) {
        http_server_destroy(http);
        return status;
    }
    *out = http;
    return LM_OK;
}

/* Waits until no exchange is left; false: some are after seconds. */
static bool wait_until_empty(struct http_server *http, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)seconds;
    pthread_mutex_lock(&http->lock);
    int result = 0;
    while (http->exchanges && result != ETIMEDOUT)
        result = pthread_cond_timedwait(&http->is_empty, &http->lock, &until);
    const bool empty = !http->exchanges;
    pthread_mutex_unlock(&http->lock);
    return empty;
}

static void kill_all(struct http_server *http)
{
    pthread_mutex_lock(&http->lock);
    for (struct http_exchange *exchange = http->exchanges; exchange; exchange = exchange->next) {
        pthread_mutex_lock(&exchange->lock);
        if (exchange->connection && !exchange->dead) {
            exchange_kill_locked(exchange);
            http_monitor_close_locked(exchange, HTTP_SHUTDOWN);
        }
        pthread_mutex_unlock(&exchange->lock);
    }
    pthread_mutex_unlock(&http->lock);
}

void http_server_destroy(struct http_server *http)
{
    if (!http) return;
    http_stop_listening(http);
    atomic_store(&http->refusing, true);
    for (bool empty = wait_until_empty(http, flush_s); !empty;) {
        kill_all(http);
        empty = wait_until_empty(http, flush_s);
    }
    pthread_mutex_lock(&http->lock);
    http->stopping = true;
    pthread_cond_broadcast(&http->has_work);
    pthread_mutex_unlock(&http->lock);
    for (size_t i = 0; i < http->n_handler; i++)
        pthread_join(http->handlers[i], NULL);
    http_gather_stop(http);
    if (http->has_monitor) {
        http_monitor_wake(http);
        pthread_join(http->monitor, NULL);
    }
    if (http->plain) MHD_stop_daemon(http->plain);
    while (http->tls) {
        struct tls_daemon *tls = http->tls;
        http->tls = tls->next;
        MHD_stop_daemon(tls->daemon);
        free(tls->cert);
        free(tls->key);
        free(tls);
    }
    for (size_t i = 0; http->listeners && i < http->config.n_listen; i++)
        http_listener_close(&http->listeners[i]);
    if (http->epoll_fd >= 0) close(http->epoll_fd);
    if (http->wake_fd >= 0) close(http->wake_fd);
    pthread_mutex_destroy(&http->lock);
    pthread_mutex_destroy(&http->gather_lock);
    pthread_cond_destroy(&http->has_gathered);
    pthread_cond_destroy(&http->has_work);
    pthread_cond_destroy(&http->is_empty);
    free(http->lingering);
    free(http->listeners);
    free(http->urls);
    free(http);
}

void http_set_state(struct http_server *http, enum api_code state)
{
    atomic_store(&http->state, (int)state);
}

enum api_code http_state(struct http_server *http)
{
    return (enum api_code)atomic_load(&http->state);
}

void http_stop_listening(struct http_server *http)
{
    atomic_store(&http->listening, false);
    if (http->has_monitor) http_monitor_wake(http);
}

const char *http_url(const struct http_server *http, size_t i)
{
    return i < http->config.n_listen ? http->urls[i] : NULL;
}

bool http_is_exposed(const struct http_server *http)
{
    return !http->all_loopback;
}
