/* Stop strings in a stream of generated text.
 *
 * Matching is on bytes and across token boundaries. The earliest match wins, of those that start
 * at the same byte the longest; the text ends just before it. What could still become a match is
 * held back until it is decided, so no part of a stop string is ever passed on.
 *
 * Threads: one matcher, one caller. */
#ifndef LEAN_COORDINATOR_TEXT_STOP_STRINGS_H
#define LEAN_COORDINATOR_TEXT_STOP_STRINGS_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct stop_strings;

/* Copies the n strings; empty ones are left out. LM_E_USAGE: more than 64, or one over 1024 bytes.
 */
enum lm_status stop_strings_create(struct stop_strings **out, const char *const *strings, size_t n,
                                   struct lm_error *err);
void stop_strings_destroy(struct stop_strings *stops);

/* Adds n bytes. *text, *n_text: what is decided to be text, valid until the next call. Returns
 * true when a stop string was found; the text up to it has then been passed on and the stream is
 * over. last: nothing follows, so nothing is held back. */
bool stop_strings_push(struct stop_strings *stops, const char *bytes, size_t n, bool last,
                       const char **text, size_t *n_text);

/* Bytes that are held back. */
size_t stop_strings_held(const struct stop_strings *stops);
/* The one of the strings that is these n bytes, or NULL. */
const char *stop_strings_find(const struct stop_strings *stops, const char *text, size_t n);
/* The string that was found, NULL before. */
const char *stop_strings_found(const struct stop_strings *stops);

#endif
