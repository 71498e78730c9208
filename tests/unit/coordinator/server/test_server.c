/* The server before its model is loaded, and the small parts beside it: errors, metrics, the access
 * log, the table of answers under way. */
#include "tests/unit/cmocka_all.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/server/access_log.h"
#include "coordinator/server/api_error.h"
#include "coordinator/server/inflight.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"
#include "proto/base/log.h"

/* ---- a server without a model ---- */

static char *ask(int port, const char *method, const char *path)
{
    char request[256], *text = calloc(1, 1 << 20);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    const int n = snprintf(request, sizeof(request),
                           "%s %s HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", method, path);
    assert_int_equal(send(fd, request, (size_t)n, 0), n);
    size_t n_text = 0;
    for (ssize_t got; (got = recv(fd, text + n_text, (1 << 20) - n_text - 1, 0)) > 0;)
        n_text += (size_t)got;
    close(fd);
    return text;
}

static void assert_answer(int port, const char *method, const char *path, const char *status,
                          const char *part)
{
    char *text = ask(port, method, path);
    if (strncmp(text + strlen("HTTP/1.1 "), status, 3) || !strstr(text, part))
        fail_msg("%s %s: expected %s and '%s' in: %s", method, path, status, part, text);
    free(text);
}

static void it_answers_while_it_loads(void **state)
{
    (void)state;
    static const char *const listen[] = {"127.0.0.1:0"};
    const struct server_config config = {
        .settings = {.id = "a \"name\""},
        .http = {.listen = listen,
                 .n_listen = 1,
                 .max_body = 1 << 20,
                 .max_connections = 10,
                 .body_timeout_s = 10},
        .page = true,
        .slots = true,
        .log_file = "/dev/null",
    };
    struct server *server;
    struct lm_error err;
    assert_int_equal(server_create(&server, &config, &err), LM_OK);
    const int port = atoi(strrchr(http_url(server->http, 0), ':') + 1);
    server_set_stage(server, "reading weights");
    assert_answer(port, "GET", "/health", "503", "\"code\":\"loading_model\"");
    assert_answer(port, "GET", "/health", "503",
                  "\"progress\":{\"stage\":\"reading weights\",\"fraction\":0.0,");
    server_expect_weights(server, UINT64_C(1) << 30);
    void *weights = mmap(NULL, 256 << 20, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    assert_ptr_not_equal(weights, MAP_FAILED);
    assert_answer(port, "GET", "/health", "503", "\"fraction\":0.25");
    munmap(weights, 256 << 20);
    assert_answer(port, "GET", "/health", "503", "x-should-retry: true");
    assert_answer(port, "GET", "/ping", "200", "{\"status\":\"alive\"}");
    assert_answer(port, "GET", "/v1/models", "200", "\"meta\":null,\"status\":\"loading\"");
    assert_answer(port, "GET", "/v1/models", "200", "\"id\":\"a \\\"name\\\"\"");
    assert_answer(port, "GET", "/metrics", "200",
                  "lean_requests_running{model=\"a \\\"name\\\"\"} 0");
    assert_answer(port, "GET", "/version", "200", "\"compiler\"");
    assert_answer(port, "GET", "/", "200", "<!");
    static const char *const closed[] = {"/v1/completions", "/v1/chat/completions", "/tokenize",
                                         "/v1/messages"};
    for (size_t i = 0; i < sizeof(closed) / sizeof(closed[0]); i++)
        assert_answer(port, "POST", closed[i], i < 3 ? "503" : "529", "is being loaded");
    assert_int_equal(strcmp(server_status(server).state, "loading"), 0);
    server_drain(server, 1);
    server_destroy(server);
}

/* ---- errors ---- */

static void errors_are_whole(void **state)
{
    (void)state;
    struct api_error error;
    struct byte_buffer out = {0};
    char long_text[2000];
    for (int code = API_OK + 1; code < API_N_CODE; code++) {
        assert_true(*api_code_name(code) && *api_code_type(code));
        assert_in_range(api_code_status(code), 400, 504);
        assert_int_not_equal(api_code_status(code), 422);
    }
    /* 640 bytes end within a character of two */
    memset(long_text, 'a', sizeof(long_text));
    for (size_t i = 1; i + 1 < sizeof(long_text); i += 2)
        memcpy(long_text + i, "\xc3\xa4", 2);
    long_text[sizeof(long_text) - 1] = '\0';
    assert_false(api_fail(&error, API_INVALID_VALUE, "a\"b", "%s", long_text));
    api_error_write(&out, &error, false, "req-1");
    struct json_object *parsed = json_tokener_parse(out.data), *inner, *value;
    assert_non_null(parsed);
    assert_true(json_object_object_get_ex(parsed, "error", &inner));
    assert_int_equal(json_object_object_length(inner), 4);
    assert_true(json_object_object_get_ex(inner, "param", &value));
    assert_string_equal(json_object_get_string(value), "a\"b");
    assert_true(json_object_object_get_ex(inner, "message", &value));
    const char *message = json_object_get_string(value);
    assert_int_equal(strlen(message) % 2, 1);
    json_object_put(parsed);
    byte_buffer_clear(&out);

    api_fail(&error, API_CONTEXT_LENGTH_EXCEEDED, NULL, "too long");
    error.n_prompt_tokens = 40112;
    error.n_ctx = 32768;
    api_error_write(&out, &error, true, NULL);
    assert_string_equal(out.data,
                        "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\","
                        "\"message\":\"prompt is too long: 40112 tokens > 32768 maximum. "
                        "too long\"}}");
    byte_buffer_free(&out);

    /* what broke inside names no files */
    const struct lm_error inside = {LM_E_IO, "/secret/path: gone", ""};
    api_fail_status(&error, &inside, NULL);
    assert_int_equal(error.code, API_INTERNAL_ERROR);
    assert_null(strstr(error.message, "/secret"));
}

/* ---- metrics ---- */

static double value_of(const char *text, const char *series)
{
    const char *at = strstr(text, series);
    if (!at) fail_msg("no %s", series);
    return strtod(at + strlen(series), NULL);
}

static void metrics_count(void **state)
{
    (void)state;
    struct metrics *metrics;
    struct byte_buffer out = {0};
    const struct metrics_state now = {.model = "m", .quantization = "q", .n_running = 3};
    assert_int_equal(metrics_create(&metrics, NULL), LM_OK);
    metrics_add(NULL, METRICS_PROMPT_TOKENS, 5);
    metrics_add(metrics, METRICS_PROMPT_TOKENS, 5);
    metrics_add(metrics, METRICS_PROMPT_TOKENS, 2);
    metrics_count_http(metrics, "/a", 0);
    metrics_count_http(metrics, "/b", 404);
    metrics_count_http(metrics, "/b", 404);
    metrics_observe(metrics, METRICS_TIME_TO_FIRST_TOKEN, 0.01); /* a bound belongs to its bucket */
    metrics_observe(metrics, METRICS_TIME_TO_FIRST_TOKEN, 0.011);
    metrics_observe(metrics, METRICS_TIME_TO_FIRST_TOKEN, 1e9);
    metrics_write(metrics, &now, true, true, &out);
    assert_false(out.failed);
    const char *text = out.data;
    assert_true(value_of(text, "lean_prompt_tokens_total{model=\"m\"} ") == 7);
    assert_true(value_of(text, "vllm:prompt_tokens_total{model_name=\"m\",engine=\"0\"} ") == 7);
    assert_true(value_of(text, "llamacpp:prompt_tokens_total{model=\"m\"} ") == 7);
    assert_true(value_of(text, "{model=\"m\",route=\"/a\",status=\"200\"} ") == 0);
    assert_true(value_of(text, "{model=\"m\",route=\"/b\",status=\"404\"} ") == 2);
    assert_true(value_of(text, "lean_requests_running{model=\"m\"} ") == 3);
    static const char *const name = "lean_time_to_first_token_seconds";
    char series[200];
    snprintf(series, sizeof(series), "%s_bucket{model=\"m\",le=\"0.01\"} ", name);
    assert_true(value_of(text, series) == 1);
    snprintf(series, sizeof(series), "%s_bucket{model=\"m\",le=\"0.025\"} ", name);
    assert_true(value_of(text, series) == 2);
    snprintf(series, sizeof(series), "%s_bucket{model=\"m\",le=\"640\"} ", name);
    assert_true(value_of(text, series) == 2);
    snprintf(series, sizeof(series), "%s_bucket{model=\"m\",le=\"+Inf\"} ", name);
    assert_true(value_of(text, series) == 3);
    snprintf(series, sizeof(series), "%s_count{model=\"m\"} ", name);
    assert_true(value_of(text, series) == 3);
    assert_true(value_of(text, "process_resident_memory_bytes{model=\"m\"} ") > 1 << 20);
    byte_buffer_free(&out);
    metrics_destroy(metrics);
}

/* ---- the access log ---- */

static const struct http_record record = {
    .request_id = "req-1",
    .remote = "127.0.0.1:5",
    .method = "POST",
    .route = "/v1/completions",
    .status = 200,
    .end_s = 1,
    .usage = {.n_prompt = 5,
              .n_cached = 3,
              .n_generated = 7,
              .experts = {.n_lookup = 9, .n_hit = 4, .n_joined = 2, .n_miss = 3, .n_shared = 1},
              .finish = "stop"},
};

static void log_lines_that_do_not_fit_are_counted(void **state)
{
    (void)state;
    struct access_log *log;
    int pipe_fds[2];
    char path[64], text[8192];
    assert_int_equal(pipe(pipe_fds), 0);
    fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
    snprintf(path, sizeof(path), "/dev/fd/%d", pipe_fds[1]);
    assert_int_equal(access_log_open(&log, path, true, NULL), LM_OK);
    for (int i = 0; i < 2000; i++)
        access_log_write(log, &record); /* more than a pipe takes */
    ssize_t n = 0;
    for (ssize_t got; (got = read(pipe_fds[0], text, sizeof(text))) > 0;)
        n += got;
    assert_true(n > 4096);
    access_log_write(log, &record);
    n = read(pipe_fds[0], text, sizeof(text) - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_non_null(strstr(text, "\"dropped_lines\":1"));
    const char *line = strchr(text, '\n') + 1;
    struct json_object *parsed = json_tokener_parse(line), *value;
    assert_true(json_object_object_get_ex(parsed, "generated_tokens", &value));
    assert_int_equal(json_object_get_int(value), 7);
    assert_true(json_object_object_get_ex(parsed, "experts", &value));
    assert_string_equal(json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN),
                        "{\"lookups\":9,\"hits\":4,\"joined\":2,\"misses\":3,\"shared\":1,"
                        "\"miss_bytes\":0,\"wait_ms\":0.0}");
    json_object_put(parsed);
    access_log_close(log);
    assert_int_equal(access_log_open(&log, "/dev/full", false, NULL), LM_OK);
    access_log_write(log, &record);
    access_log_close(log);
    assert_int_not_equal(access_log_open(&log, "/no/such/folder/log", false, NULL), LM_OK);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* ---- answers under way ---- */

static void cancel(void *context)
{
    ++*(int *)context;
}

static void answers_are_found_by_either_name(void **state)
{
    (void)state;
    struct inflight inflight;
    int n_cancelled = 0;
    char id[64];
    struct inflight_entry one = {.id = "cmpl-1",
                                 .request_id = "req-1",
                                 .cancel = cancel,
                                 .context = &n_cancelled},
                          two = one;
    two.id = "cmpl-2";
    two.request_id = "req-2";
    inflight_init(&inflight);
    inflight_add(&inflight, &one);
    inflight_add(&inflight, &two);
    assert_true(inflight_cancel(&inflight, "req-2", id, sizeof(id)));
    assert_string_equal(id, "cmpl-2");
    assert_true(inflight_cancel(&inflight, "cmpl-2", id, sizeof(id)));
    assert_int_equal(n_cancelled, 1); /* once */
    assert_false(inflight_cancel(&inflight, "cmpl-3", id, sizeof(id)));
    inflight_remove(&inflight, &one);
    assert_false(inflight_cancel(&inflight, "req-1", id, sizeof(id)));
    inflight_remove(&inflight, &two);
    inflight_fini(&inflight);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_answers_while_it_loads),
        cmocka_unit_test(errors_are_whole),
        cmocka_unit_test(metrics_count),
        cmocka_unit_test(log_lines_that_do_not_fit_are_counted),
        cmocka_unit_test(answers_are_found_by_either_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
