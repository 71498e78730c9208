/* Expert cache: decides which expert is in which slot; holds no bytes and reads no files.
 *
 * The pager follows its decisions with reads, and bench_pager replays routing traces through it, so
 * what the simulator reports is what the engine does.
 *
 *   ABSENT --needed--> ADMITTED                in decode, or while there are free slots
 *   ABSENT --needed--> ADMITTED or TRANSIENT   in prefill: admitted if worth clearly more than the
 *                                              least of the admitted, which becomes transient
 *   ABSENT --predicted--> TRANSIENT --used--> ADMITTED
 *   any --kept elsewhere, too--> SPARE --no longer--> ADMITTED
 *
 * Slots come in classes, one per size of expert; a layer belongs to one class, and experts compete
 * for slots inside their class. Every expert has a worth under the policy, higher is kept longer.
 * What goes when a slot is needed:
 *   - pinned slots never (they are being read or computed with),
 *   - spare ones first, the last that became so before the others,
 *   - transients, in the order in which they came: experts that had to be somewhere while they were
 *     computed with, but were not found worth keeping, predicted ones, and demoted ones,
 *   - then the admitted expert of least worth, but a layer keeps `floor` of them (its top-k), as
 *     far as the slots reach, so that a budget below one token's cycle does not turn LRU into a
 *     cache that always misses. Of equals the older goes first, then the one whose layer will run
 *     last.
 *
 * Time is counted in tokens: heat decays by a half-life. It is given in turns, the n_expert /
 * n_expert_used tokens in which every expert is used once if all are used alike: what counts is how
 * often an expert was used lately, not how long that took.
 * Threads: none of its own; one caller at a time.
 * Cost:    use, find, place, pin and unpin allocate nothing; place looks at one candidate a layer.
 * Source:  the order among equals resembles Least-Stale (arXiv 2602.03921). */
#ifndef LEAN_WORKER_PAGER_EXPERT_CACHE_H
#define LEAN_WORKER_PAGER_EXPERT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "worker/pager/expert_store.h"

struct expert_cache;
struct cache_policy; /* policy.h */

enum {
    EXPERT_NO_SLOT = -1,
    EXPERT_REMISS_TOKENS = 64,
    EXPERT_HALF_LIFE_TURNS = 8,
    EXPERT_AHEAD_MAX = 32
};

struct expert_cache_config {
    uint32_t n_layer, n_expert;    /* keys: layer < n_layer, expert < n_expert */
    const uint32_t *class_of;      /* [n_layer] < n_class; UINT32_MAX: the layer has no experts */
    const uint32_t *slot_of_class; /* [n_class] slots of the class */
    uint32_t n_class;
    uint32_t floor;          /* slots a layer keeps: n_expert_used */
    uint32_t n_prefill_slot; /* slots of a class that prefill may make transients; 0: default */
    const struct cache_policy *policy; /* static */
    double half_life; /* tokens; 0: EXPERT_HALF_LIFE_TURNS turns; INFINITY: no decay */
};

enum place_kind {
    PLACE_DEMAND,      /* needed now */
    PLACE_SPECULATIVE, /* predicted: a transient until it is used; takes a free slot, a transient
                          or an admitted one, but neither that was used in this token */
    PLACE_BACKGROUND,  /* preload: takes free slots and spare ones only */
    PLACE_ADMISSION    /* was needed and found elsewhere: takes a free slot or a spare one, or that
                          of another expert which it beats as in prefill and this token has not used
                          */
};

struct cache_placement {
    int32_t slot; /* pinned once; EXPERT_NO_SLOT: nothing may go until something is unpinned */
    bool admitted;
    bool evicts; /* then victim is what was in the slot */
    struct expert_key victim;
};

/* Since create. */
struct expert_cache_stats {
    uint64_t n_placed, n_admitted; /* on demand; of them admitted at once */
    uint64_t n_evicted;
    uint64_t n_remiss;      /* placed on demand less than EXPERT_REMISS_TOKENS after eviction */
    uint64_t n_speculative; /* placed */
    uint64_t n_speculative_used, n_speculative_wasted; /* of them used before eviction, or not */
};

/* LM_E_NO_MEM. */
enum lm_status expert_cache_create(struct expert_cache **out,
                                   const struct expert_cache_config *config, struct lm_error *err);
void expert_cache_destroy(struct expert_cache *cache); /* NULL is legal */

/* A step of n_token tokens begins. prefill: it has more than one token of a sequence; such steps
 * need nearly every expert once, and do not displace what decoding wants but by the policy. */
void expert_cache_advance(struct expert_cache *cache, uint32_t n_token, bool prefill);
/* n_row rows of this step chose the expert, resident or not. For all experts that the step needs of
 * a layer before any of them is placed. */
void expert_cache_use(struct expert_cache *cache, struct expert_key key, uint32_t n_row);
/* Uses per token from a profile, before the first step: the heat that such use would have led to.
 */
void expert_cache_seed(struct expert_cache *cache, struct expert_key key, float rate);
/* Decayed to the layer's last step. */
float expert_cache_heat(const struct expert_cache *cache, struct expert_key key);
/* Rows that chose it since create, for a profile. */
uint64_t expert_cache_uses(const struct expert_cache *cache, struct expert_key key);

/* Slots of class 0 are numbered from 0, those of the next class follow. EXPERT_NO_SLOT: absent. */
int32_t expert_cache_find(const struct expert_cache *cache, struct expert_key key);
/* For an expert without a slot. As long as nothing of its class is pinned, PLACE_DEMAND finds a
 * slot; a step that needs more experts than it is given slots goes in groups. */
struct cache_placement expert_cache_place(struct expert_cache *cache, struct expert_key key,
                                          enum place_kind kind);
/* The expert leaves its slot, which becomes free, and its pins end: its bytes could not be read. */
void expert_cache_drop(struct expert_cache *cache, struct expert_key key);

/* From now on a class has the first n_slot of the slots that it was made with. Nothing is pinned.
 * Of experts for which no slot is left those go that are worth least, and what is in slots that are
 * no more moves to others: the caller copies it. moves: [slots it had]; returns how many. Those
 * that leave come first. */
struct cache_move {
    struct expert_key key;
    int32_t from, to; /* EXPERT_NO_SLOT: it leaves */
};
size_t expert_cache_resize(struct expert_cache *cache, uint32_t class_index, uint32_t n_slot,
                           struct cache_move *moves);
/* It is kept elsewhere, too, or no longer: nothing if it has no slot. What uses a spare expert is
 * counted and changes nothing else: it is used where it is kept. */
void expert_cache_set_spare(struct expert_cache *cache, struct expert_key key, bool spare);
/* Of a class, the admitted expert that nothing but its worth keeps from going next. False: none, or
 * this token has used it. Demoted, it goes before all admitted ones, unless it is used before. */
bool expert_cache_least(const struct expert_cache *cache, uint32_t class_index,
                        struct expert_key *out);
void expert_cache_demote(struct expert_cache *cache, struct expert_key key);

void expert_cache_pin(struct expert_cache *cache, int32_t slot);
void expert_cache_unpin(struct expert_cache *cache, int32_t slot);

uint32_t expert_cache_n_resident(const struct expert_cache *cache, uint32_t layer);
uint32_t expert_cache_n_free(const struct expert_cache *cache, uint32_t class_index);
uint32_t expert_cache_n_transient(const struct expert_cache *cache, uint32_t class_index);
bool expert_cache_is_admitted(const struct expert_cache *cache, int32_t slot);
uint32_t expert_cache_n_pinned(const struct expert_cache *cache); /* slots, of all classes */
struct expert_cache_stats expert_cache_stats(const struct expert_cache *cache);

/* What the pager asks of a class with so many slots at once, so that a step of many tokens passes
 * through it without emptying it: experts of the layer behind, and of the layer itself. */
static inline uint32_t expert_ahead_reads(uint32_t n_class_slot)
{
    return n_class_slot / 4 < EXPERT_AHEAD_MAX ? n_class_slot / 4 : EXPERT_AHEAD_MAX;
}

static inline uint32_t expert_prefill_reads(uint32_t n_class_slot)
{
    return n_class_slot < 4 ? 1 : expert_ahead_reads(n_class_slot);
}

#endif
