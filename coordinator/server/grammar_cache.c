/* A small array is searched from end to end: a lookup costs less than reading the request did. */
#include "coordinator/server/grammar_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <xxhash.h>

#include "coordinator/grammar/grammar.h"

struct entry {
    struct grammar_key key;
    struct grammar *grammar;
    uint64_t used; /* clock of the last use */
};

struct grammar_cache {
    uint64_t secret;
    size_t n_max;
    pthread_mutex_t lock;
    /* guarded by lock */
    struct entry *entries; /* [n] of n_max */
    size_t n;
    uint64_t clock;
};

enum lm_status grammar_cache_create(struct grammar_cache **out, size_t n_max, uint64_t secret,
                                    struct lm_error *err)
{
    struct grammar_cache *cache = calloc(1, sizeof(*cache));
    struct entry *entries = calloc(n_max, sizeof(*entries));
    if (!cache || !entries) {
        free(cache);
        free(entries);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a cache of grammars");
    }
    cache->secret = secret;
    cache->n_max = n_max;
    cache->entries = entries;
    pthread_mutex_init(&cache->lock, NULL);
    *out = cache;
    return LM_OK;
}

void grammar_cache_destroy(struct grammar_cache *cache)
{
    if (!cache) return;
    for (size_t i = 0; i < cache->n; i++)
        grammar_unref(cache->entries[i].grammar);
    pthread_mutex_destroy(&cache->lock);
    free(cache->entries);
    free(cache);
}

struct grammar_key grammar_cache_key(const struct grammar_cache *cache, uint64_t kind,
                                     const char *source, size_t n)
{
    const XXH128_hash_t inner = XXH3_128bits_withSeed(source, n, cache->secret);
    const uint64_t parts[] = {kind, inner.low64, inner.high64};
    const XXH128_hash_t hash = XXH3_128bits_withSeed(parts, sizeof(parts), cache->secret);
    return (struct grammar_key){hash.low64, hash.high64};
}

static struct entry *find_locked(struct grammar_cache *cache, struct grammar_key key)
{
    for (size_t i = 0; i < cache->n; i++)
        if (cache->entries[i].key.low == key.low && cache->entries[i].key.high == key.high)
            return &cache->entries[i];
    return NULL;
}

struct grammar *grammar_cache_find(struct grammar_cache *cache, struct grammar_key key)
{
    struct grammar *grammar = NULL;
    pthread_mutex_lock(&cache->lock);
    struct entry *entry = find_locked(cache, key);
    if (entry) {
        entry->used = ++cache->clock;
        grammar = grammar_ref(entry->grammar);
    }
    pthread_mutex_unlock(&cache->lock);
    return grammar;
}

/* An empty place, or that of the grammar that is missed least. */
static struct entry *make_room_locked(struct grammar_cache *cache)
{
    if (cache->n < cache->n_max) return &cache->entries[cache->n++];
    struct entry *oldest = &cache->entries[0];
    for (size_t i = 1; i < cache->n; i++)
        if (cache->entries[i].used < oldest->used) oldest = &cache->entries[i];
    grammar_unref(oldest->grammar);
    return oldest;
}

void grammar_cache_add(struct grammar_cache *cache, struct grammar_key key, struct grammar *grammar)
{
    pthread_mutex_lock(&cache->lock);
    if (!find_locked(cache, key)) /* two requests may have compiled the same */
        *make_room_locked(cache) = (struct entry){key, grammar_ref(grammar), ++cache->clock};
    pthread_mutex_unlock(&cache->lock);
}
