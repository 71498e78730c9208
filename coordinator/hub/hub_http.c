/* libcurl behind the few things that requests to the hub need. */
#include "coordinator/hub/hub_http.h"

#include <ctype.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "proto/base/log.h"

enum { BODY_MAX = 64 << 20, WAIT_MAX_S = 3600, WAIT_SAID_S = 10 };

/* ---- heads ---- */

void hub_head_clear(struct hub_head *head)
{
    free(head->location);
    free(head->link_next);
    free(head->error_code);
    free(head->error_message);
    *head = (struct hub_head){.retry_after_s = -1,
                              .linked_bytes = -1,
                              .range_start = -1,
                              .range_end = -1,
                              .range_all = -1};
}

static void keep(char **out, const char *value, size_t n)
{
    free(*out);
    *out = strndup(value, n);
}

/* <URL>; rel="next", possibly among others. */
static void take_link(struct hub_head *head, const char *value, size_t n)
{
    const char *end = value + n;
    for (const char *open = value; (open = memchr(open, '<', (size_t)(end - open)));) {
        const char *close = memchr(open, '>', (size_t)(end - open));
        if (!close) return;
        const char *next = memchr(close, '<', (size_t)(end - close));
        const size_t n_parameters = (size_t)((next ? next : end) - close);
        if (memmem(close, n_parameters, "rel=\"next\"", 10) ||
            memmem(close, n_parameters, "rel=next", 8))
            keep(&head->link_next, open + 1, (size_t)(close - open) - 1);
        open = close;
    }
}

/* Seconds, or a date. */
static void take_retry_after(struct hub_head *head, const char *value)
{
    char *end;
    const double seconds = strtod(value, &end);
    if (end != value && seconds >= 0) {
        head->retry_after_s = seconds;
        return;
    }
    const time_t at = curl_getdate(value, NULL);
    if (at >= 0) head->retry_after_s = fmax(0, difftime(at, time(NULL)));
}

static void take_range(struct hub_head *head, const char *value)
{
    long long start, end, all;
    if (sscanf(value, "bytes %lld-%lld/%lld", &start, &end, &all) == 3 && end < INT64_MAX) {
        head->range_start = start;
        head->range_end = end + 1;
        head->range_all = all;
    } else if (sscanf(value, "bytes */%lld", &all) == 1) {
        head->range_all = all;
    }
}

static void take_header(struct hub_head *head, const char *name, const char *value, size_t n)
{
    if (!strcasecmp(name, "location"))
        keep(&head->location, value, n);
    else if (!strcasecmp(name, "link"))
        take_link(head, value, n);
    else if (!strcasecmp(name, "x-error-code"))
        keep(&head->error_code, value, n);
    else if (!strcasecmp(name, "x-error-message"))
        keep(&head->error_message, value, n);
    else if (!strcasecmp(name, "retry-after"))
        take_retry_after(head, value);
    else if (!strcasecmp(name, "content-range"))
        take_range(head, value);
    else if (!strcasecmp(name, "x-linked-size"))
        head->linked_bytes = strtoll(value, NULL, 10);
}

/* One line of the head; a status line (of a 100, a proxy, or the answer) begins a new head. */
static size_t on_header(char *bytes, size_t size, size_t n_item, void *context)
{
    struct hub_head *head = context;
    const size_t n = size * n_item;
    if (n >= 5 && !strncmp(bytes, "HTTP/", 5)) hub_head_clear(head);
    char *line = strndup(bytes, n), *colon = line ? strchr(line, ':') : NULL;
    if (!colon) {
        free(line);
        return line ? n : 0;
    }
    *colon = '\0';
    char *value = colon + 1;
    value += strspn(value, " \t");
    size_t n_value = strlen(value);
    while (n_value && isspace((unsigned char)value[n_value - 1]))
        value[--n_value] = '\0';
    take_header(head, line, value, n_value);
    free(line);
    return n;
}

/* ---- URLs ---- */

/* "https://host:443" in out: what a token belongs to. */
static bool origin_of(const char *url, char *out, size_t size)
{
    char *scheme = NULL, *host = NULL, *port = NULL;
    CURLU *parts = curl_url();
    const bool good = parts && !curl_url_set(parts, CURLUPART_URL, url, 0) &&
                      !curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) &&
                      !curl_url_get(parts, CURLUPART_HOST, &host, 0) &&
                      !curl_url_get(parts, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT);
    if (good) snprintf(out, size, "%s://%s:%s", scheme, host, port);
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(parts);
    return good;
}

bool hub_http_is_endpoint(const struct hub_http *http, const char *url)
{
    char ours[600], theirs[600];
    return origin_of(http->endpoint, ours, sizeof(ours)) &&
           origin_of(url, theirs, sizeof(theirs)) && !strcasecmp(ours, theirs);
}

enum lm_status hub_http_redirect(const char *from, const struct hub_head *head, char **to,
                                 struct lm_error *err)
{
    char *url = NULL, *scheme = NULL;
    CURLU *parts = curl_url();
    const bool good =
        parts && head->location && !curl_url_set(parts, CURLUPART_URL, from, 0) &&
        !curl_url_set(parts, CURLUPART_URL, head->location, 0) &&
        !curl_url_get(parts, CURLUPART_URL, &url, 0) &&
        !curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) &&
        (!strcmp(scheme, "https") || (!strcmp(scheme, "http") && strncasecmp(from, "https:", 6)));
    *to = good ? strdup(url) : NULL;
    curl_free(url);
    curl_free(scheme);
    curl_url_cleanup(parts);
    if (*to) return LM_OK;
    return lm_fail(err, LM_E_NETWORK, "a redirect leads to '%.200s', where we do not go",
                   head->location ? head->location : "");
}

char *hub_http_escape_path(const char *path)
{
    char *out = malloc(3 * strlen(path) + 1), *at = out;
    for (; out && *path; path++)
        if (isalnum((unsigned char)*path) || strchr("-._~/", *path))
            *at++ = *path;
        else
            at += sprintf(at, "%%%02X", (unsigned char)*path);
    if (out) *at = '\0';
    return out;
}

/* ---- one request ---- */

enum lm_status hub_http_prepare(const struct hub_http *http, CURL *easy, const char *url,
                                struct curl_slist **headers, struct hub_head *head,
                                struct lm_error *err)
{
    char *authorization = NULL;
    hub_head_clear(head);
    curl_easy_reset(easy);
    curl_slist_free_all(*headers);
    *headers = curl_slist_append(NULL, "Accept-Encoding: identity");
    if (http->token && hub_http_is_endpoint(http, url)) {
        if (asprintf(&authorization, "Authorization: Bearer %s", http->token) < 0)
            return lm_fail(err, LM_E_NO_MEM, "no memory for a request");
        struct curl_slist *longer = curl_slist_append(*headers, authorization);
        free(authorization);
        if (longer) *headers = longer;
    }
    if (!*headers) return lm_fail(err, LM_E_NO_MEM, "no memory for a request");
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, *headers);
    curl_easy_setopt(easy, CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE); /* not for proxies */
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "lean/" LEAN_VERSION);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 30L);
#if LIBCURL_VERSION_NUM >= 0x075700 /* an interrupt does not wait for a name server either */
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
#endif
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1024L);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)ceil(http->stall_s));
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, head);
    return LM_OK;
}

bool hub_http_is_passing(CURLcode result, long code)
{
    switch (result) {
    case CURLE_OK:
        return code == 408 || code == 429 || code >= 500;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_WEIRD_SERVER_REPLY:
        return true;
    default:
        return false;
    }
}

double hub_http_wait_s(const struct hub_http *http, unsigned n_failure, const struct hub_head *head)
{
    uint16_t random = 0;
    if (head->retry_after_s >= 0) return fmin(head->retry_after_s, WAIT_MAX_S);
    if (getrandom(&random, sizeof(random), 0) != sizeof(random)) random = 0;
    const double wait_s = http->retry_wait_s * fmin(60, ldexp(1, (int)n_failure - 1));
    return wait_s * (0.75 + 0.5 * random / 65535); /* so that many do not come back at once */
}

static bool is_interrupted(const struct hub_http *http)
{
    return http->is_interrupted && *http->is_interrupted;
}

void hub_http_say_wait(const char *what, const char *why, double wait_s)
{
    if (wait_s >= WAIT_SAID_S)
        log_info("%s: %s, again in %.0f s", what, why, wait_s);
    else
        log_verbose("%s: %s, again in %.1f s", what, why, wait_s);
}

enum lm_status hub_http_sleep(const struct hub_http *http, double seconds, struct lm_error *err)
{
    const double until_s = log_now_s() + seconds;
    struct pollfd wake = {.fd = http->wake_fd, .events = POLLIN};
    for (double left_s; !is_interrupted(http) && (left_s = until_s - log_now_s()) > 0;)
        poll(&wake, 1, (int)fmin(1000, ceil(left_s * 1000)));
    return is_interrupted(http) ? lm_fail(err, LM_E_INTERRUPTED, "interrupted") : LM_OK;
}

enum lm_status hub_http_fail(const struct hub_http *http, long code, const struct hub_head *head,
                             const char *what, struct lm_error *err)
{
    const char *detail = head->error_message ? head->error_message : "";
    const char *kind = head->error_code ? head->error_code : "";
    const char *colon = *detail ? ": " : "";
    if (!strcmp(kind, "GatedRepo")) {
        lm_fail(err, LM_E_AUTH, "%s: is gated%s%.200s", what, colon, detail);
        return lm_hint(err, "ask for access at %s, then give a token: --token-file or HF_TOKEN",
                       http->endpoint);
    }
    if (!strcmp(kind, "RevisionNotFound"))
        return lm_fail(err, LM_E_NOT_FOUND, "%s: has no such revision", what);
    if (!strcmp(kind, "RepoNotFound")) { /* the hub's answer for what is private, too */
        lm_fail(err, LM_E_NOT_FOUND, "%s: no such repository at %s", what, http->endpoint);
        return http->token ? err ? err->status : LM_E_NOT_FOUND
                           : lm_hint(err, "a private one wants a token: --token-file, HF_TOKEN");
    }
    if (code == 401 || code == 403) {
        lm_fail(err, LM_E_AUTH, "%s: %s answers %ld%s%.200s", what, http->endpoint, code, colon,
                detail);
        return lm_hint(err, http->token ? "the token is wrong, or lacks the right"
                                        : "it wants a token: --token-file, HF_TOKEN");
    }
    if (code == 404 || code == 410)
        return lm_fail(err, LM_E_NOT_FOUND, "%s: not found at %s%s%.200s", what, http->endpoint,
                       colon, detail);
    return lm_fail(err, LM_E_NETWORK, "%s: %s answers %ld%s%.200s", what, http->endpoint, code,
                   colon, detail);
}

/* ---- small documents ---- */

static size_t on_body(char *bytes, size_t size, size_t n_item, void *context)
{
    struct byte_buffer *body = context;
    const size_t n = size * n_item;
    if (body->n + n > BODY_MAX) return 0;
    byte_buffer_put(body, bytes, n);
    return body->failed ? 0 : n;
}

/* As curl_easy_perform, but an interrupt ends it at once. */
static enum lm_status perform(const struct hub_http *http, CURLM *multi, CURL *easy,
                              CURLcode *result, struct lm_error *err)
{
    struct curl_waitfd wake = {.fd = http->wake_fd, .events = CURL_WAIT_POLLIN};
    int n_running = 1, n_left;
    curl_multi_add_handle(multi, easy);
    while (n_running && !is_interrupted(http)) {
        curl_multi_perform(multi, &n_running);
        if (n_running) curl_multi_poll(multi, &wake, http->wake_fd >= 0, 1000, NULL);
    }
    const CURLMsg *message = curl_multi_info_read(multi, &n_left);
    if (message) *result = message->data.result;
    curl_multi_remove_handle(multi, easy);
    return message ? LM_OK : lm_fail(err, LM_E_INTERRUPTED, "interrupted");
}

struct get {
    const struct hub_http *http;
    CURLM *multi;
    CURL *easy;
    struct curl_slist *headers;
    char *url;
    const char *what;
};

/* One hop. *code 0: there was no answer, result tells why. */
static enum lm_status get_once(struct get *get, struct byte_buffer *body, struct hub_head *head,
                               CURLcode *result, long *code, struct lm_error *err)
{
    *code = 0;
    byte_buffer_clear(body);
    enum lm_status status =
        hub_http_prepare(get->http, get->easy, get->url, &get->headers, head, err);
    curl_easy_setopt(get->easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(get->easy, CURLOPT_WRITEDATA, body);
    if (status == LM_OK) status = perform(get->http, get->multi, get->easy, result, err);
    if (status == LM_OK && *result == CURLE_OK)
        curl_easy_getinfo(get->easy, CURLINFO_RESPONSE_CODE, code);
    return status;
}

static enum lm_status get_with_retries(struct get *get, struct byte_buffer *body,
                                       struct hub_head *head, struct lm_error *err)
{
    unsigned n_failure = 0, n_redirect = 0;
    for (;;) {
        CURLcode result = CURLE_OK;
        long code;
        enum lm_status status = get_once(get, body, head, &result, &code, err);
        if (status != LM_OK) return status;
        if (code >= 200 && code < 300) return LM_OK;
        if (code >= 300 && code < 400 && n_redirect++ < HUB_REDIRECTS_MAX) {
            char *next;
            status = hub_http_redirect(get->url, head, &next, err);
            if (status != LM_OK) return status;
            free(get->url);
            get->url = next;
            continue;
        }
        if (!hub_http_is_passing(result, code) || ++n_failure >= HUB_FAILURES_MAX) {
            if (code) return hub_http_fail(get->http, code, head, get->what, err);
            return lm_fail(err, LM_E_NETWORK, "%s: %s: %s", get->what, get->http->endpoint,
                           curl_easy_strerror(result));
        }
        const double wait_s = hub_http_wait_s(get->http, n_failure, head);
        hub_http_say_wait(get->what, code ? "the hub is busy" : curl_easy_strerror(result), wait_s);
        status = hub_http_sleep(get->http, wait_s, err);
        if (status != LM_OK) return status;
    }
}

enum lm_status hub_http_get(const struct hub_http *http, const char *url, const char *what,
                            struct byte_buffer *body, struct hub_head *head, struct lm_error *err)
{
    struct get get = {.http = http,
                      .multi = curl_multi_init(),
                      .easy = curl_easy_init(),
                      .url = strdup(url),
                      .what = what};
    const enum lm_status status = get.multi && get.easy && get.url
                                      ? get_with_retries(&get, body, head, err)
                                      : lm_fail(err, LM_E_NO_MEM, "no memory for a request");
    curl_slist_free_all(get.headers);
    curl_easy_cleanup(get.easy);
    curl_multi_cleanup(get.multi);
    free(get.url);
    return status;
}
