/* API keys: which ones are known, compared so that time tells nothing about them, and how much runs
 * for each.
 *
 * Threads: all functions from any thread; loading replaces the set as a whole. */
#ifndef LEAN_COORDINATOR_SERVER_KEYS_H
#define LEAN_COORDINATOR_SERVER_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

enum { KEYS_MAX_LENGTH = 512 };

struct keys;

/* secret: of the process; what owners are called depends on it. */
enum lm_status keys_create(struct keys **out, uint64_t secret, struct lm_error *err);
void keys_destroy(struct keys *keys); /* NULL is legal */

/* Replaces what was known: list: [n] texts; path: a file of one key a line, '#' begins a comment,
 * or NULL; commas: keys separated by commas, or NULL or "". LM_E_USAGE: a key of more than
 * KEYS_MAX_LENGTH bytes, a file that cannot be read, or no key in what is given, as with a variable
 * that is not set, which must not open the server; what was known then stays. */
enum lm_status keys_load(struct keys *keys, const char *const *list, size_t n, const char *path,
                         const char *commas, struct lm_error *err);

/* Without keys everything matches, NULL too. *owner: a number that belongs to the key that matched,
 * the same as long as the process lives; 0: there are no keys. */
bool keys_match(struct keys *keys, const char *key, uint64_t *owner);
size_t keys_count(struct keys *keys);

/* n sequences more run for an owner, unless they are then more than n_most. */
bool keys_take(struct keys *keys, uint64_t owner, uint32_t n, uint32_t n_most);
/* They have ended. */
void keys_give_back(struct keys *keys, uint64_t owner, uint32_t n);

#endif
