/* Expert cache: decides which expert is in which slot; holds no bytes and reads no files.
 *
 * The pager follows its decisions with reads, and bench_pager replays routing traces through it, so
 * what the simulator reports is what the engine does.
 *
 * Slots come in classes, one per size of expert; a layer belongs to one class, and experts compete
 * for slots inside their class. Every expert has a value under the policy, higher is kept longer;
 * a victim is the expert of least value among those that may go:
 *   - pinned slots never go (they are being read or computed with),
 *   - a layer keeps `floor` slots (its top-k), as far as the slots reach, so that a budget below
 *     one token's cycle does not turn LRU into a cache that always misses,
 *   - transients go first: experts that were read but not admitted.
 * An expert is admitted into a free slot always; in another's place if the policy finds it worth
 * more. Not admitted, it is placed as a transient: it must be somewhere while it is computed with.
 *
 * Time is counted in tokens: heat decays by the half-life, recency breaks ties.
 * Threads: none of its own; one caller at a time. */
#ifndef LEAN_WORKER_PAGER_EXPERT_CACHE_H
#define LEAN_WORKER_PAGER_EXPERT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "worker/pager/expert_store.h"

struct expert_cache;
struct cache_policy; /* policy.h */

enum { EXPERT_NO_SLOT = -1 };

struct expert_cache_config {
    uint32_t n_layer, n_expert;    /* keys: layer < n_layer, expert < n_expert */
    const uint32_t *class_of;      /* [n_layer] < n_class; UINT32_MAX: the layer has no experts */
    const uint32_t *slot_of_class; /* [n_class] slots of the class */
    uint32_t n_class;
    uint32_t floor;                    /* slots a layer keeps */
    const struct cache_policy *policy; /* static */
};

enum place_kind {
    PLACE_DEMAND,      /* needed now */
    PLACE_PREFILL,     /* needed now, by a step of many tokens */
    PLACE_SPECULATIVE, /* predicted: takes a free slot, a transient, or one not used in this token
                        */
    PLACE_BACKGROUND   /* preload: takes free slots only */
};

struct cache_placement {
    int32_t slot; /* pinned once; EXPERT_NO_SLOT: nothing may go */
    bool admitted;
    bool evicts; /* then victim is what was in the slot */
    struct expert_key victim;
};

enum lm_status expert_cache_create(struct expert_cache **out,
                                   const struct expert_cache_config *config, struct lm_error *err);
void expert_cache_destroy(struct expert_cache *cache); /* NULL is legal */

/* A step of n_token tokens begins. */
void expert_cache_advance(struct expert_cache *cache, uint32_t n_token);
/* n_row rows of this step chose the expert. Before find and place, resident or not. */
void expert_cache_use(struct expert_cache *cache, struct expert_key key, uint32_t n_row);
/* Heat from a profile, in uses, before the first step. */
void expert_cache_seed(struct expert_cache *cache, struct expert_key key, float heat);
float expert_cache_heat(const struct expert_cache *cache, struct expert_key key);

int32_t expert_cache_find(const struct expert_cache *cache, struct expert_key key);
/* For an expert without a slot. */
struct cache_placement expert_cache_place(struct expert_cache *cache, struct expert_key key,
                                          enum place_kind kind);
/* The expert leaves its slot, which becomes free: its bytes could not be read. */
void expert_cache_drop(struct expert_cache *cache, struct expert_key key);

void expert_cache_pin(struct expert_cache *cache, int32_t slot);
void expert_cache_unpin(struct expert_cache *cache, int32_t slot);

uint32_t expert_cache_n_resident(const struct expert_cache *cache, uint32_t layer);
uint32_t expert_cache_n_free(const struct expert_cache *cache, uint32_t class_index);

#endif
