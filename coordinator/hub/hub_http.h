/* Requests to the hub: what those for a few kilobytes and those for a model have in common.
 *
 * A token goes to the endpoint's scheme, host and port and nowhere else: redirects are followed
 * here and not by libcurl, so that each hop decides anew. A redirect from https to http is refused.
 * Proxies come from the usual variables, which libcurl reads.
 *
 * Threads: one owner each. */
#ifndef LEAN_COORDINATOR_HUB_HUB_HTTP_H
#define LEAN_COORDINATOR_HUB_HUB_HTTP_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <curl/curl.h>

#include "proto/base/byte_buffer.h"
#include "proto/base/error.h"

enum { HUB_REDIRECTS_MAX = 10, HUB_FAILURES_MAX = 8 };

struct hub_http {
    const char *endpoint; /* "https://huggingface.co", without a slash at its end */
    const char *token;    /* NULL: none */
    double retry_wait_s;  /* before the first retry; doubles up to 60 times that */
    double stall_s;       /* this long under 1 KiB/s is a failure */
    const volatile sig_atomic_t *is_interrupted; /* or NULL */
    int wake_fd;                                 /* readable once it is interrupted; -1: none */
};

/* What is looked at in the head of an answer. Zero-initialised; strings are malloc'ed or NULL. */
struct hub_head {
    char *location, *link_next;
    char *error_code;                          /* X-Error-Code: "GatedRepo", "RepoNotFound", ... */
    char *error_message;                       /* X-Error-Message */
    double retry_after_s;                      /* -1: not given */
    int64_t linked_bytes;                      /* X-Linked-Size; -1: not given */
    int64_t range_start, range_end, range_all; /* of Content-Range; -1: not given */
};
void hub_head_clear(struct hub_head *head);

/* An easy handle for url, with all that does not depend on the purpose. *headers must live as long
 * as the request and is freed by curl_slist_free_all. head takes what comes. */
enum lm_status hub_http_prepare(const struct hub_http *http, CURL *easy, const char *url,
                                struct curl_slist **headers, struct hub_head *head,
                                struct lm_error *err);
/* Where a redirect leads, malloc'ed. LM_E_NETWORK: nowhere, or where we do not go. */
enum lm_status hub_http_redirect(const char *from, const struct hub_head *head, char **to,
                                 struct lm_error *err);
/* Whether url is at the endpoint, by scheme, host and port. */
bool hub_http_is_endpoint(const struct hub_http *http, const char *url);

/* Whether a later try may do: connection errors, time-outs, 408, 429, 5xx. */
bool hub_http_is_passing(CURLcode result, long code);
/* Seconds before the next try, after n_failure > 0 in a row: what the server asks for, up to an
 * hour, else by the number of failures. */
double hub_http_wait_s(const struct hub_http *http, unsigned n_failure,
                       const struct hub_head *head);
/* Logs it; a wait so long that one wonders also where nothing was asked to be told. */
void hub_http_say_wait(const char *what, const char *why, double wait_s);
/* Sleeps; LM_E_INTERRUPTED. */
enum lm_status hub_http_sleep(const struct hub_http *http, double seconds, struct lm_error *err);

/* The error of an answer of the endpoint that is final. what: "Qwen/Qwen3-8B", for the message. */
enum lm_status hub_http_fail(const struct hub_http *http, long code, const struct hub_head *head,
                             const char *what, struct lm_error *err);

/* GET of a small document, with redirects and retries. body: cleared first. */
enum lm_status hub_http_get(const struct hub_http *http, const char *url, const char *what,
                            struct byte_buffer *body, struct hub_head *head, struct lm_error *err);

/* Percent-encoded but for '/': malloc'ed; NULL: no memory. */
char *hub_http_escape_path(const char *path);

#endif
