/* Compiled grammars by what they were made from: requests that ask for the same form share one.
 *
 * A key is a hash of 128 bits that depends on a secret of the process; two sources with one hash
 * are not told apart. The least recently used grammar makes room.
 *
 * Threads: all functions from any thread. */
#ifndef LEAN_COORDINATOR_SERVER_GRAMMAR_CACHE_H
#define LEAN_COORDINATOR_SERVER_GRAMMAR_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct grammar;
struct grammar_cache;

struct grammar_key {
    uint64_t low, high;
};

enum lm_status grammar_cache_create(struct grammar_cache **out, size_t n_max, uint64_t secret,
                                    struct lm_error *err);
void grammar_cache_destroy(struct grammar_cache *cache); /* NULL is legal */

/* kind: what sort of source the n bytes are. */
struct grammar_key grammar_cache_key(const struct grammar_cache *cache, uint64_t kind,
                                     const char *source, size_t n);
/* A reference, or NULL. */
struct grammar *grammar_cache_find(struct grammar_cache *cache, struct grammar_key key);
/* Keeps a reference of its own. */
void grammar_cache_add(struct grammar_cache *cache, struct grammar_key key,
                       struct grammar *grammar);

#endif
