#include "coordinator/grammar/mask_cache.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { N_BUCKET = 1 << 12 };

struct entry {
    struct mask mask; /* first: a mask is its entry */
    atomic_uint n_ref;
    size_t n_bytes;
    struct entry *chain;         /* in its bucket */
    struct entry *newer, *older; /* by use */
};

struct mask_cache {
    pthread_mutex_t lock;
    /* under lock */
    struct entry *buckets[N_BUCKET];
    struct entry *newest, *oldest;
    size_t n_bytes, n_bytes_max;
};

struct mask_cache *mask_cache_create(size_t n_bytes_max)
{
    struct mask_cache *cache = calloc(1, sizeof(*cache));
    if (!cache) return NULL;
    cache->n_bytes_max = n_bytes_max;
    pthread_mutex_init(&cache->lock, NULL);
    return cache;
}

void mask_cache_release(const struct mask *mask)
{
    struct entry *entry = (struct entry *)(uintptr_t)mask;
    if (entry && atomic_fetch_sub(&entry->n_ref, 1) == 1) free(entry);
}

void mask_cache_destroy(struct mask_cache *cache)
{
    if (!cache) return;
    for (struct entry *entry = cache->newest, *older; entry; entry = older) {
        older = entry->older;
        mask_cache_release(&entry->mask);
    }
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

static struct entry **bucket_of(struct mask_cache *cache, const uint64_t key[2])
{
    return &cache->buckets[key[0] % N_BUCKET];
}

static void unlink_locked(struct mask_cache *cache, struct entry *entry)
{
    *(entry->newer ? &entry->newer->older : &cache->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &cache->oldest) = entry->newer;
}

static void link_newest_locked(struct mask_cache *cache, struct entry *entry)
{
    entry->newer = NULL;
    entry->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = entry;
    cache->newest = entry;
}

static struct entry *find_locked(struct mask_cache *cache, const uint64_t key[2])
{
    for (struct entry *entry = *bucket_of(cache, key); entry; entry = entry->chain)
        if (entry->mask.key[0] == key[0] && entry->mask.key[1] == key[1]) return entry;
    return NULL;
}

static void drop_oldest_locked(struct mask_cache *cache)
{
    struct entry *const entry = cache->oldest;
    struct entry **at = bucket_of(cache, entry->mask.key);
    while (*at != entry)
        at = &(*at)->chain;
    *at = entry->chain;
    unlink_locked(cache, entry);
    cache->n_bytes -= entry->n_bytes;
    mask_cache_release(&entry->mask);
}

const struct mask *mask_cache_get(struct mask_cache *cache, const uint64_t key[2])
{
    pthread_mutex_lock(&cache->lock);
    struct entry *entry = find_locked(cache, key);
    if (entry) {
        unlink_locked(cache, entry);
        link_newest_locked(cache, entry);
        atomic_fetch_add(&entry->n_ref, 1);
    }
    pthread_mutex_unlock(&cache->lock);
    return entry ? &entry->mask : NULL;
}

/* Entry, tokens or words, and exits are one piece of memory. */
static struct entry *make_entry(const uint64_t key[2], const uint32_t *words, uint32_t n_word,
                                const uint32_t *exits, uint32_t n_exit)
{
    uint32_t n_token = 0;
    for (uint32_t i = 0; i < n_word; i++)
        n_token += (uint32_t)__builtin_popcount(words[i]);
    const bool dense = n_token > n_word;
    const uint32_t n_bits = dense ? n_word : n_token;
    const size_t n_bytes = sizeof(struct entry) + ((size_t)n_bits + n_exit) * sizeof(uint32_t);
    struct entry *entry = malloc(n_bytes);
    if (!entry) return NULL;
    uint32_t *const bits = (uint32_t *)(entry + 1);
    *entry = (struct entry){
        .mask = {.key = {key[0], key[1]},
                 .words = dense ? bits : NULL,
                 .tokens = dense ? NULL : bits,
                 .exits = bits + n_bits,
                 .n_token = dense ? 0 : n_token,
                 .n_exit = n_exit},
        .n_bytes = n_bytes,
    };
    atomic_init(&entry->n_ref, 1);
    if (n_exit) memcpy(bits + n_bits, exits, n_exit * sizeof(*exits));
    if (dense) {
        memcpy(bits, words, n_word * sizeof(*words));
        return entry;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_word; i++)
        for (uint32_t word = words[i]; word; word &= word - 1)
            bits[n++] = 32 * i + (uint32_t)__builtin_ctz(word);
    return entry;
}

const struct mask *mask_cache_add(struct mask_cache *cache, const uint64_t key[2],
                                  const uint32_t *words, uint32_t n_word, const uint32_t *exits,
                                  uint32_t n_exit)
{
    struct entry *entry = make_entry(key, words, n_word, exits, n_exit);
    if (!entry) return NULL;
    pthread_mutex_lock(&cache->lock);
    if (!find_locked(cache, key)) {
        struct entry **const bucket = bucket_of(cache, key);
        entry->chain = *bucket;
        *bucket = entry;
        link_newest_locked(cache, entry);
        atomic_fetch_add(&entry->n_ref, 1);
        cache->n_bytes += entry->n_bytes;
        while (cache->n_bytes > cache->n_bytes_max)
            drop_oldest_locked(cache);
    }
    pthread_mutex_unlock(&cache->lock);
    return &entry->mask;
}

void mask_merge(const struct mask *mask, uint32_t *into, uint32_t n_word)
{
    if (mask->words)
        for (uint32_t i = 0; i < n_word; i++)
            into[i] |= mask->words[i];
    else
        for (uint32_t i = 0; i < mask->n_token; i++)
            into[mask->tokens[i] / 32] |= UINT32_C(1) << mask->tokens[i] % 32;
}
