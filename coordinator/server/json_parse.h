/* A request's body as a tree: strict JSON only, with the place of the first fault.
 *
 * json-c builds the tree but is generous (NaN, raw control characters) and does not say where a
 * text goes wrong, so a checker of our own comes first. Duplicate keys: the last value wins, at
 * the place of the first. Key order is kept. An integer that 64 bits do not hold is a float.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_SERVER_JSON_PARSE_H
#define LEAN_COORDINATOR_SERVER_JSON_PARSE_H

#include <stdbool.h>
#include <stddef.h>

struct api_error;
struct json_object; /* json-c */

enum { JSON_DEPTH_MAX = 128 };

/* The byte at which n bytes stop being one JSON value in UTF-8, and why; SIZE_MAX: they are one. */
size_t json_find_fault(const char *text, size_t n, const char **why);

/* One JSON object; *out is the caller's to put. API_INVALID_JSON names the byte.
 * API_REQUEST_TOO_LARGE: so many values that their tree would take gigabytes. */
bool json_parse_object(struct json_object **out, const char *text, size_t n,
                       struct api_error *error);

#endif
