/* The HTTP layer by itself: exchanges answered from other threads, clients that leave, limits. */
#include "tests/unit/cmocka_all.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/server/http.h"
#include "proto/base/log.h"

/* What a test's handlers and the server's questions share. */
struct fixture {
    struct http_server *http;
    int port;
    atomic_int n_place, n_done, last_status, reason; /* reason: enum http_close + 1 */
    atomic_bool stream_goes_on;
    _Atomic(struct http_exchange *) held;
};

static struct fixture *fixture;

/* ---- handlers ---- */

static void echo(void *context, struct http_exchange *exchange)
{
    size_t n;
    (void)context;
    const char *body = http_body(exchange, &n);
    http_reply(exchange, 200, "text/plain", body, n);
}

static void on_closed(void *context, enum http_close reason)
{
    struct fixture *f = context;
    atomic_store(&f->reason, (int)reason + 1);
}

/* Keeps the exchange; the test answers, or finds that nobody is there to be answered. */
static void hold(void *context, struct http_exchange *exchange)
{
    struct fixture *f = context;
    http_on_closed(exchange, on_closed, f);
    atomic_store(&f->held, exchange);
}

static void *run_stream(void *context)
{
    struct http_exchange *exchange = context;
    char line[64];
    bool alive = true;
    http_stream_begin(exchange);
    for (int i = 0; i < 1000 && alive; i++) {
        const int n = snprintf(line, sizeof(line), "data: %d\n\n", i);
        alive = http_stream_write(exchange, line, (size_t)n);
    }
    http_stream_end(exchange);
    http_release(exchange);
    return NULL;
}

/* A thousand events from another thread. */
static void stream(void *context, struct http_exchange *exchange)
{
    pthread_t thread;
    http_on_closed(exchange, on_closed, context);
    assert_int_equal(pthread_create(&thread, NULL, run_stream, exchange), 0);
    pthread_detach(thread);
}

/* The place is the handler's from here on. */
static void counted(void *context, struct http_exchange *exchange)
{
    struct fixture *f = context;
    atomic_fetch_add(&f->n_place, 1);
    echo(context, exchange);
}

static bool admit(void *context)
{
    struct fixture *f = context;
    if (atomic_fetch_sub(&f->n_place, 1) > 0) return true;
    atomic_fetch_add(&f->n_place, 1);
    return false;
}

static void unadmit(void *context)
{
    struct fixture *f = context;
    atomic_fetch_add(&f->n_place, 1);
}

static uint32_t retry_after_s(void *context)
{
    (void)context;
    return 7;
}

static void on_done(void *context, const struct http_record *record)
{
    struct fixture *f = context;
    atomic_store(&f->last_status, record->status);
    atomic_fetch_add(&f->n_done, 1);
}

/* ---- set-up ---- */

static const struct http_route routes[] = {
    {.method = "POST", .path = "/echo", .handle = echo},
    {.method = "POST", .path = "/hold", .handle = hold},
    {.method = "POST", .path = "/hold-messages", .handle = hold, .dialect = HTTP_ANTHROPIC},
    {.method = "POST", .path = "/stream", .handle = stream},
    {.method = "POST", .path = "/counted", .handle = counted, .generates = true},
    {.method = "GET", .path = "/always", .handle = echo, .while_loading = true},
    {0},
};

static int set_up(void **state)
{
    static const char *const listen[] = {"127.0.0.1:0"};
    struct lm_error err;
    fixture = calloc(1, sizeof(*fixture));
    const struct http_config config = {
        .listen = listen,
        .n_listen = 1,
        .routes = routes,
        .context = fixture,
        .max_body = 1 << 20,
        .max_connections = 200,
        .body_timeout_s = 0.3,
        .request_timeout_s = *state ? 0.3 : 0,
        .admit = admit,
        .unadmit = unadmit,
        .retry_after_s = retry_after_s,
        .on_done = on_done,
    };
    if (http_server_create(&fixture->http, &config, &err) != LM_OK) return -1;
    http_set_state(fixture->http, API_OK);
    fixture->port = atoi(strrchr(http_url(fixture->http, 0), ':') + 1);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    http_server_destroy(fixture->http);
    free(fixture);
    return 0;
}

/* ---- a client ---- */

static int dial(void)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)fixture->port)};
    const struct timeval patience = {.tv_sec = 10};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    return fd;
}

static void say(int fd, const char *method, const char *path, const char *body)
{
    char text[1024];
    const int n = snprintf(text, sizeof(text),
                           "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                           "Content-Length: %zu\r\n\r\n%s",
                           method, path, strlen(body), body);
    assert_int_equal(send(fd, text, (size_t)n, MSG_NOSIGNAL), n);
}

/* Everything until the server closes; malloc'ed, closes fd. */
static char *hear(int fd)
{
    size_t n = 0, size = 1 << 20;
    char *text = malloc(size);
    for (ssize_t got; (got = recv(fd, text + n, size - n - 1, 0)) > 0;)
        n += (size_t)got;
    text[n] = '\0';
    close(fd);
    return text;
}

static char *ask(const char *method, const char *path, const char *body)
{
    const int fd = dial();
    say(fd, method, path, body);
    return hear(fd);
}

static void nap(double seconds)
{
    const struct timespec time = {(time_t)seconds,
                                  (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        const double end_s = log_now_s() + 10;                                                     \
        while (!(condition)) {                                                                     \
            if (log_now_s() > end_s) fail_msg("waited for " #condition);                           \
            nap(0.002);                                                                            \
        }                                                                                          \
    } while (0)

static void assert_has(char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("'%s' is not in: %s", part, text);
    free(text);
}

static struct http_exchange *take_held(void)
{
    WAIT_FOR(atomic_load(&fixture->held));
    return atomic_exchange(&fixture->held, NULL);
}

/* ---- tests ---- */

static void a_handler_answers(void **state)
{
    (void)state;
    assert_has(ask("POST", "/echo", "some words"), "\r\n\r\nsome words");
    assert_has(ask("POST", "/echo", ""), "Content-Length: 0\r\n");
    WAIT_FOR(atomic_load(&fixture->n_done) == 2); /* connections report in any order */
    assert_has(ask("GET", "/echo", ""), "HTTP/1.1 405 ");
    WAIT_FOR(atomic_load(&fixture->n_done) == 3);
    assert_int_equal(atomic_load(&fixture->last_status), 405);
}

static void another_thread_answers(void **state)
{
    (void)state;
    const int fd = dial();
    say(fd, "POST", "/hold", "x");
    struct http_exchange *exchange = take_held();
    char host[4];
    assert_true(http_header(exchange, "Host", host, sizeof(host)));
    assert_int_equal(strlen(host), sizeof(host) - 1); /* cut */
    assert_false(http_query(exchange, "key", host, sizeof(host)));
    http_add_header(exchange, "X-Own", "mine");
    http_reply_json(exchange, 201, "{}", 2);
    http_release(exchange);
    char *text = hear(fd);
    assert_non_null(strstr(text, "X-Own: mine\r\n"));
    assert_has(text, "HTTP/1.1 201 ");
    WAIT_FOR(atomic_load(&fixture->n_done) == 1);
    assert_int_equal(atomic_load(&fixture->reason), 0);
}

static void a_stream_arrives_whole(void **state)
{
    (void)state;
    int fds[16];
    for (size_t i = 0; i < 16; i++)
        say(fds[i] = dial(), "POST", "/stream", "");
    for (size_t i = 0; i < 16; i++) {
        char *text = hear(fds[i]);
        int expected = 0;
        for (char *at = text; (at = strstr(at, "data: ")); at += 6)
            assert_int_equal(atoi(at + 6), expected++);
        assert_int_equal(expected, 1000);
        assert_has(text, "Content-Type: text/event-stream\r\n");
    }
    WAIT_FOR(atomic_load(&fixture->n_done) == 16);
    assert_int_equal(atomic_load(&fixture->reason), 0);
}

/* how: 0 closed, 1 half closed, 2 reset */
static void leave(int fd, int how)
{
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    if (how == 2) setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    if (how == 1)
        shutdown(fd, SHUT_WR);
    else
        close(fd);
}

static void clients_that_leave_are_noticed(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++)
        for (int streaming = 0; streaming < 2; streaming++) {
            const int fd = dial();
            say(fd, "POST", "/hold", "x");
            struct http_exchange *exchange = take_held();
            if (streaming) {
                http_stream_begin(exchange);
                assert_true(http_stream_write(exchange, "data: 1\n\n", 9));
            }
            nap(0.02);
            const double start_s = log_now_s();
            leave(fd, how);
            WAIT_FOR(atomic_exchange(&fixture->reason, 0) == HTTP_CLIENT_LEFT + 1);
            assert_true(log_now_s() - start_s < 0.25);
            if (streaming) {
                assert_false(http_stream_write(exchange, "data: 2\n\n", 9));
                http_stream_end(exchange);
            } else {
                http_reply_json(exchange, 200, "{}", 2);
            }
            http_release(exchange);
            if (how == 1) free(hear(fd));
            const int n_before = 2 * how + streaming;
            WAIT_FOR(atomic_load(&fixture->n_done) == n_before + 1);
            assert_int_equal(atomic_load(&fixture->last_status), 499);
        }
}

static void a_client_that_has_left_before_the_handler_too(void **state)
{
    (void)state;
    const int fd = dial();
    say(fd, "POST", "/hold", "x");
    leave(fd, 1);
    struct http_exchange *exchange = take_held();
    char host[4];
    WAIT_FOR(atomic_load(&fixture->reason) == HTTP_CLIENT_LEFT + 1);
    WAIT_FOR(!http_header(exchange, "Host", host, sizeof(host))); /* gone with its connection */
    http_release(exchange);                                       /* without an answer */
    free(hear(fd));
    WAIT_FOR(atomic_load(&fixture->n_done) == 1);
}

/* Reads until the text has come; fails after a second. */
static void hear_event(int fd, const char *event)
{
    const struct timeval second = {.tv_sec = 1};
    char text[4096];
    size_t n = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
    do {
        const ssize_t got = recv(fd, text + n, sizeof(text) - 1 - n, 0);
        if (got <= 0) fail_msg("'%s' does not come", event);
        n += (size_t)got;
        text[n] = '\0';
    } while (!strstr(text, event));
}

/* Nothing that comes later is needed for it to leave. */
static void each_of_quick_events_arrives(void **state)
{
    (void)state;
    const int fd = dial();
    char event[32];
    say(fd, "POST", "/hold", "x");
    struct http_exchange *exchange = take_held();
    http_stream_begin(exchange);
    for (int i = 0; i < 50; i++) {
        for (int k = 0; k <= i % 4; k++) {
            snprintf(event, sizeof(event), "data: %d.%d\n\n", i, k);
            assert_true(http_stream_write(exchange, event, strlen(event)));
        }
        hear_event(fd, event);
    }
    http_stream_end(exchange);
    http_release(exchange);
    free(hear(fd));
}

static void a_client_that_does_not_read_is_cut(void **state)
{
    (void)state;
    static char block[64 << 10];
    memset(block, 'x', sizeof(block));
    const int fd = dial();
    say(fd, "POST", "/hold", "x");
    struct http_exchange *exchange = take_held();
    http_stream_begin(exchange);
    size_t n = 0;
    while (http_stream_write(exchange, block, sizeof(block)))
        n += sizeof(block);
    assert_true(n >= 3 << 20 && n < 64 << 20); /* what the kernel takes comes on top */
    WAIT_FOR(atomic_load(&fixture->reason) == HTTP_SLOW_CLIENT + 1);
    http_stream_end(exchange);
    http_release(exchange);
    WAIT_FOR(atomic_load(&fixture->n_done) == 1);
    close(fd);
}

static void pings_keep_a_stream_alive(void **state)
{
    (void)state;
    const int fd = dial();
    struct api_error error;
    say(fd, "POST", "/hold", "x");
    struct http_exchange *exchange = take_held();
    http_stream_ping(exchange, 0.05, ": ping\n\n");
    nap(0.3);
    api_fail(&error, API_INTERNAL_ERROR, NULL, "too late for a status");
    assert_false(http_reply_error(exchange, &error));
    http_stream_begin(exchange);
    http_stream_write(exchange, "data: x\n\n", 9);
    http_stream_end(exchange);
    http_release(exchange);
    char *text = hear(fd), *ping = strstr(text, ": ping\n\n");
    assert_non_null(ping);
    assert_non_null(strstr(ping + 1, ": ping\n\n"));
    assert_has(text, "data: x\n\n");
}

static void an_error_before_the_first_ping_is_a_status(void **state)
{
    (void)state;
    const int fd = dial();
    struct api_error error;
    say(fd, "POST", "/hold-messages", "x");
    struct http_exchange *exchange = take_held();
    http_stream_ping(exchange, 5, ": ping\n\n");
    api_fail(&error, API_QUEUE_TIMEOUT, NULL, "waited too long");
    assert_true(http_reply_error(exchange, &error));
    http_release(exchange);
    char *text = hear(fd);
    assert_non_null(strstr(text, "Retry-After: 7\r\n"));
    assert_non_null(strstr(text, "HTTP/1.1 529 "));
    assert_has(text, "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",");
}

static void places_are_given_back(void **state)
{
    (void)state;
    char *text = ask("POST", "/counted", "x");
    assert_non_null(strstr(text, "Retry-After: 7\r\n"));
    assert_has(text, "HTTP/1.1 429 ");
    atomic_store(&fixture->n_place, 1);
    assert_has(ask("POST", "/counted", "x"), "HTTP/1.1 200 ");
    assert_int_equal(atomic_load(&fixture->n_place), 1);
    /* bodies that never come, or not in full */
    const int fd = dial();
    const char head[] = "POST /counted HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1";
    assert_int_equal(send(fd, head, strlen(head), 0), (ssize_t)strlen(head));
    WAIT_FOR(atomic_load(&fixture->n_place) == 0);
    assert_has(ask("POST", "/counted", "x"), "HTTP/1.1 429 ");
    assert_has(hear(fd), "HTTP/1.1 408 ");
    WAIT_FOR(atomic_load(&fixture->n_place) == 1);
    const int other = dial();
    assert_int_equal(send(other, head, strlen(head), 0), (ssize_t)strlen(head));
    WAIT_FOR(atomic_load(&fixture->n_place) == 0);
    close(other);
    WAIT_FOR(atomic_load(&fixture->n_place) == 1);
}

static void states(void **state)
{
    (void)state;
    http_set_state(fixture->http, API_LOADING_MODEL);
    char *text = ask("POST", "/echo", "x");
    assert_non_null(strstr(text, "\"code\":\"loading_model\""));
    assert_has(text, "HTTP/1.1 503 ");
    assert_has(ask("GET", "/always", ""), "HTTP/1.1 200 ");
    http_set_state(fixture->http, API_SHUTTING_DOWN);
    assert_has(ask("GET", "/always", ""), "Connection: close\r\n");
    assert_has(ask("POST", "/echo", "x"), "\"code\":\"shutting_down\"");
}

static void time_is_up(void **state)
{
    (void)state;
    const int fd = dial();
    struct api_error error;
    say(fd, "POST", "/hold", "x");
    struct http_exchange *exchange = take_held();
    WAIT_FOR(atomic_load(&fixture->reason) == HTTP_TIMEOUT + 1);
    api_fail(&error, API_REQUEST_TIMEOUT, NULL, "The request took too long.");
    assert_true(http_reply_error(exchange, &error)); /* it still can be told */
    http_release(exchange);
    assert_has(hear(fd), "HTTP/1.1 504 ");
}

static void who_is_late_is_answered_for(void **state)
{
    (void)state;
    for (int streaming = 0; streaming < 2; streaming++) {
        const int fd = dial();
        struct api_error error;
        say(fd, "POST", streaming ? "/hold-messages" : "/hold", "x");
        struct http_exchange *exchange = take_held();
        if (streaming) http_stream_begin(exchange);
        WAIT_FOR(atomic_exchange(&fixture->reason, 0) == HTTP_TIMEOUT + 1);
        char *text = hear(fd);
        if (streaming) {
            assert_has(text, "event: error\ndata: {\"type\":\"error\",");
            assert_false(http_stream_write(exchange, "data: x\n\n", 9));
            http_stream_end(exchange);
        } else {
            assert_has(text, "HTTP/1.1 504 ");
            api_fail(&error, API_REQUEST_TIMEOUT, NULL, "The request took too long.");
            assert_true(http_reply_error(exchange, &error));
        }
        http_release(exchange);
    }
    WAIT_FOR(atomic_load(&fixture->n_done) == 2);
}

/* Many clients at once that ask, stream and leave at any time: for the sanitizers. */
static void *run_client(void *context)
{
    unsigned seed = (unsigned)(size_t)context;
    for (int i = 0; i < 40; i++) {
        const int fd = dial();
        static const char *const paths[] = {"/echo", "/stream", "/stream", "/none"};
        say(fd, "POST", paths[rand_r(&seed) % 4], "some words");
        if (rand_r(&seed) % 2) {
            free(hear(fd));
        } else {
            nap((rand_r(&seed) % 3) * 0.001);
            leave(fd, (rand_r(&seed) % 2) * 2);
        }
    }
    return NULL;
}

static void a_crowd(void **state)
{
    (void)state;
    pthread_t threads[8];
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_client, (void *)(i + 1)), 0);
    for (size_t i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    assert_has(ask("POST", "/echo", "and now"), "and now");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    static int timed;
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        TEST(a_handler_answers),
        TEST(another_thread_answers),
        TEST(a_stream_arrives_whole),
        TEST(clients_that_leave_are_noticed),
        TEST(a_client_that_has_left_before_the_handler_too),
        TEST(each_of_quick_events_arrives),
        TEST(a_client_that_does_not_read_is_cut),
        TEST(pings_keep_a_stream_alive),
        TEST(an_error_before_the_first_ping_is_a_status),
        TEST(places_are_given_back),
        TEST(states),
        cmocka_unit_test_prestate_setup_teardown(time_is_up, set_up, tear_down, &timed),
        cmocka_unit_test_prestate_setup_teardown(who_is_late_is_answered_for, set_up, tear_down,
                                                 &timed),
        TEST(a_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
