/* Keys and values of the attention layers that share one window: blocks of KV_BLOCK positions.
 *
 *   table of slot 2:   [ 0..127 | 128..255 | 256..383 |   -   ]
 *                          |         |          |
 *   groups of the pool:    7         3          9          each: one block per layer, side by side
 *
 * One allocation, a group, holds the blocks of all layers for the same positions, so a sequence
 * grows by one group every KV_BLOCK tokens. Sequences that share a prefix share its groups, which
 * are counted; a shared group is copied before it is written. Groups that the window has passed go
 * back to the pool.
 *
 *   memory of the pool:   [ group 0 | 1 | ... | n_ready - 1 | ...  lent out  ... | n_group - 1 ]
 *
 * What no sequence needs yet may serve somebody else: groups from n_ready on are not the cache's
 * until they are taken back.
 *
 * Memory: the pool is reserved at create; on the CPU a page is real once it is written.
 * Threads: the step thread. */
#ifndef LEAN_WORKER_STATE_KV_CACHE_H
#define LEAN_WORKER_STATE_KV_CACHE_H

#include "kernels/backend.h"
#include "proto/step.h"

struct kv_cache;

struct kv_cache_config {
    uint32_t n_layer;
    size_t block_bytes; /* the largest of the layers' */
    uint32_t window;    /* 0: none */
    uint32_t n_slot, n_ctx;
    uint32_t n_group; /* of the pool */
    uint32_t n_ready; /* of them at the beginning; the others are lent out */
};

enum lm_status kv_cache_create(struct kv_cache **out, struct backend *backend,
                               const struct kv_cache_config *config, struct lm_error *err);
void kv_cache_destroy(struct kv_cache *cache);

/* Makes positions [pos, pos + n) of a slot writable, gives back what the window of pos has passed.
 * Repeating it is harmless. LM_E_LIMIT: no group is free; what was obtained stays with the slot.
 */
enum lm_status kv_cache_reserve(struct kv_cache *cache, uint32_t slot, uint32_t pos, uint32_t n,
                                struct lm_error *err);
/* Whether the first n positions can be continued from, or the window has dropped some. */
bool kv_cache_can_truncate(const struct kv_cache *cache, uint32_t slot, uint32_t n);
void kv_cache_clear(struct kv_cache *cache, uint32_t slot);
/* Gives back the blocks behind the first n positions. */
void kv_cache_cut(struct kv_cache *cache, uint32_t slot, uint32_t n);
/* Shares the first n positions of `from` with `to`, which is empty. */
void kv_cache_share(struct kv_cache *cache, uint32_t from, uint32_t to, uint32_t n);

/* Groups that a reserve of the same positions would lack. */
uint32_t kv_cache_n_lacking(const struct kv_cache *cache, uint32_t slot, uint32_t pos, uint32_t n);

struct kv_pool {
    uint8_t *memory; /* of group 0; that of group i begins i * group_bytes behind */
    size_t group_bytes;
    uint32_t n_group, n_ready, n_used;
};
struct kv_pool kv_cache_pool(const struct kv_cache *cache);
/* Takes memory back up to group n_ready, or lends from there on; n_ready >= n_used. Groups in use
 * behind it are moved. All that read or wrote the pool is done, and what this does is when the
 * next sync is. */
void kv_cache_resize(struct kv_cache *cache, uint32_t n_ready);

struct seq_usage kv_cache_usage(const struct kv_cache *cache);

/* For attention_args.kv_block; i counts the layers of this cache. */
void *const *const *kv_cache_blocks(const struct kv_cache *cache, uint32_t i);

#endif
