/* The pool of groups, the slots' tables, and sharing by count. */
#include "worker/state/kv_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "worker/state/zero_memory.h"

enum { NO_GROUP = UINT32_MAX };

struct kv_cache {
    struct backend *backend;
    struct kv_cache_config config;
    uint32_t n_entry;   /* of a slot's table: blocks of n_ctx positions */
    uint32_t n_ready;   /* groups that are not lent out */
    size_t group_bytes; /* n_layer * block_bytes */
    char *memory;       /* [n_group][n_layer] blocks, in backend memory */
    uint32_t *n_user;   /* [n_group] slots that hold the group; 0: free, or lent out */
    uint32_t *free;     /* [n_free] stack of free groups */
    uint32_t n_free;
    uint32_t *group; /* [n_slot][n_entry] or NO_GROUP */
    void **block;    /* [n_layer][n_slot][n_entry]: the same as addresses */
    void ***slots;   /* [n_layer][n_slot] -> row of block */
};

static uint32_t *entry_of(struct kv_cache *cache, uint32_t slot, uint32_t i)
{
    return &cache->group[(size_t)slot * cache->n_entry + i];
}

static void *block_at(const struct kv_cache *cache, uint32_t group, uint32_t layer)
{
    return cache->memory + group * cache->group_bytes + layer * cache->config.block_bytes;
}

static void set_entry(struct kv_cache *cache, uint32_t slot, uint32_t i, uint32_t group)
{
    *entry_of(cache, slot, i) = group;
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        void **const row =
            cache->block + ((size_t)layer * cache->config.n_slot + slot) * cache->n_entry;
        row[i] = group == NO_GROUP ? NULL : block_at(cache, group, layer);
    }
}

static void drop_entry(struct kv_cache *cache, uint32_t slot, uint32_t i)
{
    const uint32_t group = *entry_of(cache, slot, i);
    if (group == NO_GROUP) return;
    assert(cache->n_user[group] > 0);
    if (--cache->n_user[group] == 0) cache->free[cache->n_free++] = group;
    set_entry(cache, slot, i, NO_GROUP);
}

/* All that nobody holds, the lowest on top, so that a short run touches the front of the pool. */
static void list_free(struct kv_cache *cache)
{
    cache->n_free = 0;
    for (uint32_t group = cache->n_ready; group-- > 0;)
        if (!cache->n_user[group]) cache->free[cache->n_free++] = group;
}

enum lm_status kv_cache_create(struct kv_cache **out, struct backend *backend,
                               const struct kv_cache_config *config, struct lm_error *err)
{
    struct kv_cache *cache = calloc(1, sizeof(*cache));
    if (!cache) return lm_fail(err, LM_E_NO_MEM, "KV cache: no memory");
    cache->backend = backend;
    cache->config = *config;
    cache->n_ready = config->n_ready;
    cache->n_entry = (config->n_ctx + KV_BLOCK - 1) / KV_BLOCK;
    cache->group_bytes = config->n_layer * config->block_bytes;
    const size_t n_table = (size_t)config->n_slot * cache->n_entry;
    cache->n_user = calloc(config->n_group, sizeof(*cache->n_user));
    cache->free = calloc(config->n_group, sizeof(*cache->free));
    cache->group = calloc(n_table, sizeof(*cache->group));
    cache->block = calloc(config->n_layer * n_table, sizeof(*cache->block));
    cache->slots = calloc((size_t)config->n_layer * config->n_slot, sizeof(*cache->slots));
    if (!cache->n_user || !cache->free || !cache->group || !cache->block || !cache->slots) {
        kv_cache_destroy(cache);
        return lm_fail(err, LM_E_NO_MEM, "KV cache: no memory for %zu table entries", n_table);
    }
    cache->memory = backend->ops->alloc(backend, config->n_group * cache->group_bytes, err);
    if (!cache->memory) {
        kv_cache_destroy(cache);
        return LM_E_NO_MEM;
    }
    for (uint32_t i = 0; i < config->n_layer * config->n_slot; i++)
        cache->slots[i] = cache->block + (size_t)i * cache->n_entry;
    for (size_t i = 0; i < n_table; i++)
        cache->group[i] = NO_GROUP;
    list_free(cache);
    *out = cache;
    return LM_OK;
}

void kv_cache_destroy(struct kv_cache *cache)
{
    if (!cache) return;
    if (cache->memory) cache->backend->ops->free(cache->backend, cache->memory);
    free(cache->slots);
    free(cache->block);
    free(cache->group);
    free(cache->free);
    free(cache->n_user);
    free(cache);
}

/* The first position that a row at pos looks at. */
static uint32_t window_begin(const struct kv_cache *cache, uint32_t pos)
{
    const uint32_t window = cache->config.window;
    return window && pos + 1 > window ? pos + 1 - window : 0;
}

static enum lm_status make_writable(struct kv_cache *cache, uint32_t slot, uint32_t i,
                                    struct lm_error *err)
{
    const uint32_t old = *entry_of(cache, slot, i);
    if (old != NO_GROUP && cache->n_user[old] == 1) return LM_OK;
    if (!cache->n_free)
        return lm_fail(err, LM_E_LIMIT, "KV cache: all %u blocks of %d positions are in use",
                       cache->config.n_group, KV_BLOCK);
    const uint32_t group = cache->free[--cache->n_free];
    assert(group < cache->n_ready);
    cache->n_user[group] = 1;
    if (old != NO_GROUP) {
        cache->backend->ops->copy(cache->backend, block_at(cache, group, 0),
                                  block_at(cache, old, 0), cache->group_bytes);
        drop_entry(cache, slot, i);
    }
    set_entry(cache, slot, i, group);
    return LM_OK;
}

enum lm_status kv_cache_reserve(struct kv_cache *cache, uint32_t slot, uint32_t pos, uint32_t n,
                                struct lm_error *err)
{
    assert(n > 0 && (uint64_t)pos + n <= cache->config.n_ctx);
    const uint32_t first_kept = window_begin(cache, pos) / KV_BLOCK;
    for (uint32_t i = first_kept; i-- > 0 && *entry_of(cache, slot, i) != NO_GROUP;)
        drop_entry(cache, slot, i);
    for (uint32_t i = pos / KV_BLOCK; i <= (pos + n - 1) / KV_BLOCK; i++) {
        const enum lm_status status = make_writable(cache, slot, i, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

uint32_t kv_cache_n_lacking(const struct kv_cache *cache, uint32_t slot, uint32_t pos, uint32_t n)
{
    const uint32_t *table = cache->group + (size_t)slot * cache->n_entry;
    uint32_t n_wanted = 0;
    for (uint32_t i = pos / KV_BLOCK; i <= (pos + n - 1) / KV_BLOCK; i++)
        n_wanted += table[i] == NO_GROUP || cache->n_user[table[i]] > 1;
    return n_wanted > cache->n_free ? n_wanted - cache->n_free : 0;
}

bool kv_cache_can_truncate(const struct kv_cache *cache, uint32_t slot, uint32_t n)
{
    const uint32_t *table = cache->group + (size_t)slot * cache->n_entry;
    return n == 0 || table[window_begin(cache, n) / KV_BLOCK] != NO_GROUP ||
           window_begin(cache, n) == n;
}

void kv_cache_clear(struct kv_cache *cache, uint32_t slot)
{
    for (uint32_t i = 0; i < cache->n_entry; i++)
        drop_entry(cache, slot, i);
}

void kv_cache_cut(struct kv_cache *cache, uint32_t slot, uint32_t n)
{
    for (uint32_t i = (n + KV_BLOCK - 1) / KV_BLOCK;
         i < cache->n_entry && *entry_of(cache, slot, i) != NO_GROUP; i++)
        drop_entry(cache, slot, i);
}

void kv_cache_share(struct kv_cache *cache, uint32_t from, uint32_t to, uint32_t n)
{
    for (uint32_t i = 0; i < (n + KV_BLOCK - 1) / KV_BLOCK; i++) {
        const uint32_t group = *entry_of(cache, from, i);
        assert(*entry_of(cache, to, i) == NO_GROUP);
        if (group == NO_GROUP) continue;
        cache->n_user[group]++;
        set_entry(cache, to, i, group);
    }
}

struct kv_pool kv_cache_pool(const struct kv_cache *cache)
{
    return (struct kv_pool){.memory = (uint8_t *)cache->memory,
                            .group_bytes = cache->group_bytes,
                            .n_group = cache->config.n_group,
                            .n_ready = cache->n_ready,
                            .n_used = cache->n_ready - cache->n_free};
}

/* All that hold the group hold another one, which is free, with the same in it. */
static void move_group(struct kv_cache *cache, uint32_t from, uint32_t to)
{
    cache->backend->ops->copy(cache->backend, block_at(cache, to, 0), block_at(cache, from, 0),
                              cache->group_bytes);
    for (uint32_t slot = 0; slot < cache->config.n_slot; slot++)
        for (uint32_t i = 0; i < cache->n_entry; i++)
            if (*entry_of(cache, slot, i) == from) set_entry(cache, slot, i, to);
    cache->n_user[to] = cache->n_user[from];
    cache->n_user[from] = 0;
}

void kv_cache_resize(struct kv_cache *cache, uint32_t n_ready)
{
    const uint32_t old = cache->n_ready;
    uint32_t to = 0;
    assert(n_ready <= cache->config.n_group && n_ready >= old - cache->n_free);
    if (n_ready > old) /* whatever is in it now, keys and values were always numbers */
        zero_memory(cache->backend, block_at(cache, old, 0), (n_ready - old) * cache->group_bytes);
    for (uint32_t from = n_ready; from < old; from++) {
        if (!cache->n_user[from]) continue;
        while (cache->n_user[to])
            to++;
        move_group(cache, from, to);
    }
    cache->n_ready = n_ready;
    list_free(cache);
}

struct seq_usage kv_cache_usage(const struct kv_cache *cache)
{
    const uint64_t n_used = cache->n_ready - cache->n_free;
    return (struct seq_usage){.n_position = n_used * KV_BLOCK,
                              .n_position_max = (uint64_t)cache->config.n_group * KV_BLOCK};
}

void *const *const *kv_cache_blocks(const struct kv_cache *cache, uint32_t i)
{
    return (void *const *const *)(cache->slots + (size_t)i * cache->config.n_slot);
}
