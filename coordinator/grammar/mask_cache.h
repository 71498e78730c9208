/* Masks that have been worked out, by a key of 128 bits; the least recently used ones go when the
 * cache is over its size.
 *
 * A mask is all bits, or a list of tokens where they are few. It is immutable and counted: what get
 * returns stays whole until it is released, whatever the cache does.
 *
 * Threads: any; a lock inside. Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_MASK_CACHE_H
#define LEAN_COORDINATOR_GRAMMAR_MASK_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mask_cache;

struct mask {
    uint64_t key[2];
    const uint32_t *words;  /* [n_word] bits, or NULL: */
    const uint32_t *tokens; /* [n_token] */
    const uint32_t *exits;  /* [n_exit] trie nodes at which the text may leave what it was in */
    uint32_t n_token, n_exit;
};

/* NULL: no memory. */
struct mask_cache *mask_cache_create(size_t n_bytes_max);
void mask_cache_destroy(struct mask_cache *cache); /* NULL is legal; all masks are released */

/* NULL: not there. */
const struct mask *mask_cache_get(struct mask_cache *cache, const uint64_t key[2]);
/* A mask of the bits of words [n_word] and the exits, which are copied; it is kept under the key
 * unless there is one already. NULL: no memory. */
const struct mask *mask_cache_add(struct mask_cache *cache, const uint64_t key[2],
                                  const uint32_t *words, uint32_t n_word, const uint32_t *exits,
                                  uint32_t n_exit);
void mask_cache_release(const struct mask *mask);

/* into |= mask */
void mask_merge(const struct mask *mask, uint32_t *into, uint32_t n_word);

#endif
