/* Many streams through one libcurl multi handle. */
#include "launch/bench/load_client.h"

#include <curl/curl.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"

enum { CONNECT_TIMEOUT_S = 30, MAX_ERROR_BYTES = 300, MAX_LINE_BYTES = 1 << 24 };

/* Bytes that grow, a NUL behind them. */
struct text {
    char *data;
    size_t n, size;
};

static bool append(struct text *text, const char *bytes, size_t n)
{
    if (text->n + n + 1 > text->size) {
        const size_t size = 2 * text->size + n + 64;
        char *const grown = realloc(text->data, size);
        if (!grown) return false;
        text->data = grown;
        text->size = size;
    }
    memcpy(text->data + text->n, bytes, n);
    text->n += n;
    text->data[text->n] = 0;
    return true;
}

/* One request under way. */
struct stream {
    CURL *easy;
    struct load_outcome *outcome;
    char *body;
    struct text line; /* what came of the line that is not complete */
    struct text text;
    double last_s; /* event with text */
    size_t gap_size;
    bool done, failed;
    struct stream *before, *after; /* of those under way */
};

struct load {
    CURLM *multi;
    struct curl_slist *headers;
    const struct load_target *target;
    const struct load_plan *plan;
    struct load_result *result;
    char url[2100];
    struct stream *running;
    size_t n_sent, n_running;
};

/* ---- what comes --------------------------------------------------------------------------- */

static struct json_object *get(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;
    return json_object_object_get_ex(object, key, &value) ? value : NULL;
}

static const char *text_of(struct json_object *object, const char *key)
{
    struct json_object *value = get(object, key);
    return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
}

static void fail(struct stream *stream, const char *kind, const char *message)
{
    struct load_outcome *outcome = stream->outcome;
    if (stream->failed) return;
    stream->failed = true;
    snprintf(outcome->failure, sizeof(outcome->failure), "%s", kind);
    outcome->message = strndup(message, MAX_ERROR_BYTES);
}

static void take_text(struct stream *stream, const char *text, double now_s)
{
    struct load_outcome *outcome = stream->outcome;
    if (!*text) return;
    if (!append(&stream->text, text, strlen(text))) fail(stream, "memory", "no memory");
    if (outcome->first_s == 0) {
        outcome->first_s = now_s;
    } else {
        if (outcome->n_gap == stream->gap_size) {
            const size_t size = 2 * stream->gap_size + 64;
            double *const grown = realloc(outcome->gap_s, size * sizeof(*grown));
            if (!grown) return fail(stream, "memory", "no memory");
            outcome->gap_s = grown;
            stream->gap_size = size;
        }
        outcome->gap_s[outcome->n_gap++] = now_s - stream->last_s;
    }
    stream->last_s = now_s;
}

static void take_choice(struct stream *stream, struct json_object *choice, double now_s)
{
    static const char *const fields[] = {"content", "reasoning_content", "reasoning"};
    struct json_object *delta = get(choice, "delta");
    take_text(stream, text_of(choice, "text"), now_s);
    for (size_t i = 0; delta && i < sizeof(fields) / sizeof(fields[0]); i++)
        take_text(stream, text_of(delta, fields[i]), now_s);
    if (get(choice, "finish_reason")) stream->done = true;
}

static void take_usage(struct load_outcome *outcome, struct json_object *usage)
{
    struct json_object *n_input = get(usage, "prompt_tokens");
    struct json_object *n_output = get(usage, "completion_tokens");
    if (n_input) outcome->n_input = json_object_get_int64(n_input);
    if (n_output) outcome->n_output = json_object_get_int64(n_output);
}

static void take_event(struct stream *stream, const char *data, double now_s)
{
    if (!strcmp(data, "[DONE]")) {
        stream->done = true;
        return;
    }
    struct json_object *event = json_tokener_parse(data);
    struct json_object *choices = get(event, "choices"), *error = get(event, "error");
    if (!event) fail(stream, "stream", "an event is no JSON");
    if (error) fail(stream, "stream", json_object_to_json_string(error));
    if (json_object_is_type(choices, json_type_array) && json_object_array_length(choices))
        take_choice(stream, json_object_array_get_idx(choices, 0), now_s);
    if (get(event, "usage")) take_usage(stream->outcome, get(event, "usage"));
    json_object_put(event);
}

static void take_line(struct stream *stream, double now_s)
{
    char *line = stream->line.data;
    size_t n = stream->line.n;
    if (n && line[n - 1] == '\r') line[n - 1] = 0;
    if (!strncmp(line, "data:", 5)) take_event(stream, line + 5 + (line[5] == ' '), now_s);
    stream->line.n = 0;
}

/* For libcurl. */
static size_t on_bytes(char *bytes, size_t size, size_t n_item, void *context)
{
    struct stream *stream = context;
    const double now_s = log_now_s();
    const size_t n = size * n_item;
    long http = 0;
    curl_easy_getinfo(stream->easy, CURLINFO_RESPONSE_CODE, &http);
    for (size_t at = 0; at < n;) {
        const char *end = http == 200 ? memchr(bytes + at, '\n', n - at) : NULL;
        const size_t length = end ? (size_t)(end - bytes) - at : n - at;
        if (stream->line.n + length > MAX_LINE_BYTES) return 0;
        if (!append(&stream->line, bytes + at, length)) return 0;
        if (end) take_line(stream, now_s);
        at += length + (end != NULL);
    }
    return n;
}

/* ---- requests ----------------------------------------------------------------------------- */

static char *body_of(const struct load_target *target, const struct load_request *request)
{
    struct json_object *body = json_object_new_object(), *usage = json_object_new_object();
    json_object_object_add(body, "model", json_object_new_string(target->model));
    if (target->chat) {
        struct json_object *messages = json_object_new_array(), *turn = json_object_new_object();
        json_object_object_add(turn, "role", json_object_new_string("user"));
        json_object_object_add(turn, "content", json_object_new_string(request->text));
        json_object_array_add(messages, turn);
        json_object_object_add(body, "messages", messages);
    } else if (request->ids) {
        struct json_object *ids = json_object_new_array();
        for (uint32_t i = 0; i < request->n_input; i++)
            json_object_array_add(ids, json_object_new_int(request->ids[i]));
        json_object_object_add(body, "prompt", ids);
    } else {
        json_object_object_add(body, "prompt", json_object_new_string(request->text));
    }
    json_object_object_add(body, "max_tokens", json_object_new_int64(request->n_output));
    json_object_object_add(body, "temperature", json_object_new_int(0));
    json_object_object_add(body, "stream", json_object_new_boolean(true));
    json_object_object_add(usage, "include_usage", json_object_new_boolean(true));
    json_object_object_add(body, "stream_options", usage);
    if (target->ignore_eos)
        json_object_object_add(body, "ignore_eos", json_object_new_boolean(true));
    char *const text = strdup(json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN));
    json_object_put(body);
    return text;
}

static void set_options(CURL *easy, const char *url, const struct curl_slist *headers)
{
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
}

/* Headers that all requests have. */
static struct curl_slist *make_headers(const struct load_target *target)
{
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    char line[4096];
    headers = curl_slist_append(headers, "Expect:"); /* no round trip of its own for long bodies */
    if (target->api_key) {
        snprintf(line, sizeof(line), "Authorization: Bearer %s", target->api_key);
        headers = curl_slist_append(headers, line);
    }
    for (size_t i = 0; i < target->n_header; i++)
        headers = curl_slist_append(headers, target->header[i]);
    return headers;
}

static void free_stream(struct load *load, struct stream *stream)
{
    if (stream->before) stream->before->after = stream->after;
    if (stream->after) stream->after->before = stream->before;
    if (load->running == stream) load->running = stream->after;
    if (stream->easy) {
        curl_multi_remove_handle(load->multi, stream->easy);
        curl_easy_cleanup(stream->easy);
    }
    free(stream->line.data);
    free(stream->body);
    free(stream);
}

static enum lm_status send_next(struct load *load, struct lm_error *err)
{
    const size_t i = load->n_sent;
    struct load_outcome *outcome = &load->result->outcome[i];
    struct stream *stream = calloc(1, sizeof(*stream));
    if (stream) {
        stream->outcome = outcome;
        stream->easy = curl_easy_init();
        stream->body = body_of(load->target, &load->plan->request[i]);
    }
    if (!stream || !stream->easy || !stream->body) {
        if (stream) free_stream(load, stream);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a request");
    }
    set_options(stream->easy, load->url, load->headers);
    curl_easy_setopt(stream->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(stream->body));
    curl_easy_setopt(stream->easy, CURLOPT_POSTFIELDS, stream->body);
    curl_easy_setopt(stream->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(stream->easy, CURLOPT_WRITEDATA, stream);
    curl_easy_setopt(stream->easy, CURLOPT_PRIVATE, stream);
    *outcome = (struct load_outcome){.sent = true, .n_input = -1, .n_output = -1};
    outcome->start_s = log_now_s();
    curl_multi_add_handle(load->multi, stream->easy);
    stream->after = load->running;
    if (stream->after) stream->after->before = stream;
    load->running = stream;
    load->n_sent++;
    load->n_running++;
    if (load->n_running > load->result->n_concurrent_max)
        load->result->n_concurrent_max = (uint32_t)load->n_running;
    return LM_OK;
}

static void end_stream(struct load *load, struct stream *stream, CURLcode code)
{
    struct load_outcome *outcome = stream->outcome;
    long http = 0;
    char status[16];
    outcome->end_s = log_now_s();
    curl_easy_getinfo(stream->easy, CURLINFO_RESPONSE_CODE, &http);
    if (http && http != 200) {
        snprintf(status, sizeof(status), "%ld", http);
        fail(stream, status, stream->line.data ? stream->line.data : "");
    } else if (code != CURLE_OK) {
        fail(stream, http ? "cut off" : "connect", curl_easy_strerror(code));
    } else if (!stream->done) {
        fail(stream, "cut off", "the stream ended before its last event");
    } else if (outcome->first_s == 0) {
        fail(stream, "empty", "no text came");
    }
    outcome->text = stream->text.data;
    outcome->n_text = stream->text.n;
    load->n_running--;
    free_stream(load, stream);
}

/* ---- the run ------------------------------------------------------------------------------ */

/* How many may run now. */
static double allowed(const struct load_limits *limits, double elapsed_s)
{
    if (!limits->n_concurrent) return INFINITY;
    if (elapsed_s >= limits->ramp_s) return limits->n_concurrent;
    return 1 + (limits->n_concurrent - 1) * elapsed_s / limits->ramp_s;
}

/* Sends what is due. Returns the milliseconds until there may be more to send. */
static enum lm_status send_due(struct load *load, const struct load_limits *limits, double begin_s,
                               int *wait_ms, struct lm_error *err)
{
    enum { RAMP_MS = 10, LONG_MS = 1000 };
    enum lm_status status = LM_OK;
    *wait_ms = LONG_MS;
    while (load->n_sent < load->plan->n && status == LM_OK) {
        const double elapsed_s = log_now_s() - begin_s;
        const double left_s = load->plan->request[load->n_sent].start_s - elapsed_s;
        if (left_s > 0) {
            if (left_s < LONG_MS / 1e3) *wait_ms = (int)(left_s * 1e3);
            break;
        }
        if ((double)load->n_running + 1 > allowed(limits, elapsed_s)) {
            if (elapsed_s < limits->ramp_s) *wait_ms = RAMP_MS;
            break;
        }
        status = send_next(load, err);
    }
    return status;
}

/* Returns whether a request ended, so that others may be sent. */
static bool reap(struct load *load, struct log_bar *bar)
{
    CURLMsg *message;
    bool ended = false;
    int left;
    while ((message = curl_multi_info_read(load->multi, &left))) {
        struct stream *stream;
        if (message->msg != CURLMSG_DONE) continue;
        const CURLcode code = message->data.result;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&stream);
        end_stream(load, stream, code);
        log_bar_update(bar, load->n_sent - load->n_running);
        ended = true;
    }
    return ended;
}

static bool is_interrupted(void)
{
    return interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END);
}

static enum lm_status run_all(struct load *load, const struct load_limits *limits,
                              struct lm_error *err)
{
    const double begin_s = log_now_s();
    struct log_bar bar;
    enum lm_status status = LM_OK;
    log_bar_begin(&bar, "requests", "done", load->plan->n);
    while (status == LM_OK && (load->n_sent < load->plan->n || load->n_running)) {
        struct curl_waitfd signal = {.fd = interrupt_fd(), .events = CURL_WAIT_POLLIN};
        int n_running, wait_ms;
        status = send_due(load, limits, begin_s, &wait_ms, err);
        curl_multi_perform(load->multi, &n_running);
        const bool ended = reap(load, &bar);
        if (is_interrupted()) status = lm_fail(err, LM_E_INTERRUPTED, "interrupted");
        if (status == LM_OK && !ended) curl_multi_poll(load->multi, &signal, 1, wait_ms, NULL);
    }
    log_bar_end(&bar);
    load->result->duration_s = log_now_s() - begin_s;
    return status;
}

/* Streams that a failure or a signal left. */
static void drop_all(struct load *load)
{
    while (load->running) {
        fail(load->running, "interrupted", "");
        end_stream(load, load->running, CURLE_OK);
    }
}

enum lm_status load_run(struct load_result *out, const struct load_plan *plan,
                        const struct load_target *target, const struct load_limits *limits,
                        struct lm_error *err)
{
    struct load load = {.target = target, .plan = plan, .result = out};
    *out = (struct load_result){.n = plan->n};
    snprintf(load.url, sizeof(load.url), "%.2000s%s", target->url,
             target->chat ? "/v1/chat/completions" : "/v1/completions");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    out->outcome = calloc(plan->n ? plan->n : 1, sizeof(*out->outcome));
    load.multi = curl_multi_init();
    load.headers = make_headers(target);
    enum lm_status status = out->outcome && load.multi && load.headers
                                ? interrupt_begin(NULL, NULL, err)
                                : lm_fail(err, LM_E_NO_MEM, "no memory for requests");
    if (status == LM_OK) {
        status = run_all(&load, limits, err);
        drop_all(&load);
        interrupt_end();
    }
    if (load.multi) curl_multi_cleanup(load.multi);
    curl_slist_free_all(load.headers);
    return status;
}

void load_result_fini(struct load_result *result)
{
    for (size_t i = 0; result->outcome && i < result->n; i++) {
        free(result->outcome[i].message);
        free(result->outcome[i].gap_s);
        free(result->outcome[i].text);
    }
    free(result->outcome);
    *result = (struct load_result){0};
}

/* ---- one question ------------------------------------------------------------------------- */

static size_t keep_bytes(char *bytes, size_t size, size_t n_item, void *context)
{
    return append(context, bytes, size * n_item) ? size * n_item : 0;
}

static enum lm_status read_answer(const char *url, CURLcode code, long http,
                                  const struct text *answer, struct json_object **out,
                                  struct lm_error *err)
{
    if (code != CURLE_OK)
        return lm_fail(err, LM_E_NETWORK, "%s: %s", url, curl_easy_strerror(code));
    if (http != 200)
        return lm_fail(err,
                       http == 404                  ? LM_E_NOT_FOUND
                       : http == 401 || http == 403 ? LM_E_AUTH
                                                    : LM_E_FAIL,
                       "%s: status %ld: %.200s", url, http, answer->data ? answer->data : "");
    *out = answer->data ? json_tokener_parse(answer->data) : NULL;
    return *out ? LM_OK : lm_fail(err, LM_E_FORMAT, "%s: the answer is no JSON", url);
}

enum lm_status load_ask(const struct load_target *target, const char *path,
                        struct json_object *body, struct json_object **out, struct lm_error *err)
{
    char url[2100];
    struct text answer = {0};
    long http = 0;
    snprintf(url, sizeof(url), "%.2000s%s", target->url, path);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURL *easy = curl_easy_init();
    struct curl_slist *headers = make_headers(target);
    if (!easy || !headers) {
        curl_slist_free_all(headers);
        if (easy) curl_easy_cleanup(easy);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a request");
    }
    set_options(easy, url, headers);
    if (body)
        curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS,
                         json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN));
    curl_easy_setopt(easy, CURLOPT_TIMEOUT, 2L * CONNECT_TIMEOUT_S);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, keep_bytes);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &answer);
    const CURLcode code = curl_easy_perform(easy);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &http);
    const enum lm_status status = read_answer(url, code, http, &answer, out, err);
    curl_slist_free_all(headers);
    curl_easy_cleanup(easy);
    free(answer.data);
    return status;
}
