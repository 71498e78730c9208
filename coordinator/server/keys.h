/* API keys: which ones are known, compared so that time tells nothing about them.
 *
 * Threads: all functions from any thread; loading replaces the set as a whole. */
#ifndef LEAN_COORDINATOR_SERVER_KEYS_H
#define LEAN_COORDINATOR_SERVER_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

enum { KEYS_MAX_LENGTH = 512 };

struct keys;

enum lm_status keys_create(struct keys **out, struct lm_error *err);
void keys_destroy(struct keys *keys); /* NULL is legal */

/* Replaces what was known: list: [n] texts; path: a file of one key a line, '#' begins a comment,
 * or NULL; commas: keys separated by commas, or NULL or "". LM_E_USAGE: a key of more than
 * KEYS_MAX_LENGTH bytes, a file that cannot be read, or no key in what is given, as with a variable
 * that is not set, which must not open the server; what was known then stays. */
enum lm_status keys_load(struct keys *keys, const char *const *list, size_t n, const char *path,
                         const char *commas, struct lm_error *err);

/* Without keys everything matches, NULL too. */
bool keys_match(struct keys *keys, const char *key);
size_t keys_count(struct keys *keys);

#endif
