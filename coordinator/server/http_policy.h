/* Who may ask: origins of browsers, names in Host, texts that become header values.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_POLICY_H
#define LEAN_COORDINATOR_SERVER_HTTP_POLICY_H

#include <stdbool.h>
#include <stddef.h>

/* What Access-Control-Allow-Origin answers to an Origin: the origin, "*", or NULL for nothing.
 * origins: [n], or none: pages of this machine. */
const char *http_policy_origin(const char *origin, const char *const *origins, size_t n);

/* Whether a Host header (any port) names this machine or one of names: [n]. */
bool http_policy_host(const char *host, const char *const *names, size_t n);

/* 1 to 128 characters of [A-Za-z0-9._:-]. */
bool http_policy_request_id(const char *text);

/* A list of header names: token characters, commas and spaces, at most 4 KiB. */
bool http_policy_header_list(const char *text);

/* The key in an Authorization header's value, "Bearer KEY"; NULL: it has none. */
const char *http_policy_bearer(const char *authorization);

#endif
