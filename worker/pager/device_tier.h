/* Device tier: slots for routed experts in a device's memory, above the pager of the host's.
 *
 *   device slots   some experts; read by the device at once
 *   host memory    what the pager lends: slots of its own, or the mapping of the files
 *   files          the rest
 *
 * Which expert is in which slot is decided by an expert_cache, as in the pager. The tier moves
 * bytes and never computes, so logits cannot depend on it.
 *
 *   ABSENT --chosen to be copied--> COPYING --done--> RESIDENT --unpinned and evicted--> ABSENT
 *
 * A chosen expert that is not resident is copied first (GPU), or computed on the CPU (CPU), or one
 * of the two (HYBRID). Steps that need nearly all experts of a layer (prefill) stream those that
 * are not resident through the room, a ring beside the slots, and leave the slots as they are, but
 * for free ones.
 *
 * Ownership: owns the device's memory; borrows store, backend and pager.
 * Threads:   one caller, the step thread. */
#ifndef LEAN_WORKER_PAGER_DEVICE_TIER_H
#define LEAN_WORKER_PAGER_DEVICE_TIER_H

#include "worker/pager/expert_store.h"

struct device_tier;

/* What becomes of a chosen expert that is not in the device's memory. None changes a bit. */
enum miss_mode {
    MISS_AUTO,  /* what is measured to be faster */
    MISS_GPU,   /* it is copied there, and computed there */
    MISS_CPU,   /* it is computed on the CPU, beside the others on the device */
    MISS_HYBRID /* some are copied, some computed on the CPU, so that both end together */
};

/* Asked for n_slot slots, the tier makes device_tier_slot_count of them, since experts of each size
 * get the least that works and none that they cannot fill; these take device_tier_slot_bytes.
 * device_tier_slots_for: the most to ask for that fits into n_bytes, at most all experts; 0: not
 * even the least that works fits. */
uint32_t device_tier_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot);
uint64_t device_tier_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot);
uint32_t device_tier_slots_for(const struct expert_store *store, uint32_t layer_begin,
                               uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes);
/* What the tier takes of the device's memory besides: the room, and tables. */
uint64_t device_tier_room_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_expert_used);

/* Steps of many tokens of a sequence (prefill) and all others are counted apart. */
struct device_tier_counts {
    uint64_t n_lookup; /* distinct experts per layer and step: n_hit + n_cpu + n_copied */
    uint64_t n_hit;    /* of them in the device's memory before anything was done for the layer */
    uint64_t n_cpu;    /* computed on the CPU */
    uint64_t n_copied; /* copied to the device for the layer */
    uint64_t hit_bytes, cpu_bytes, copied_bytes;
    double wait_s; /* the step thread waited for the device to have chosen, or copied */
    double cpu_s;  /* the CPU computed experts */
};

struct device_tier_stats {
    struct device_tier_counts decode, prefill;
    uint32_t n_slot, n_expert;
    uint32_t n_resident;                         /* and readable */
    uint64_t slot_bytes, room_bytes, bank_bytes; /* bank: all experts of the tier's layers */
    uint64_t n_admitted;       /* copied in the background, since they were worth it */
    uint64_t n_preloaded;      /* likewise, on account of a profile, or into free slots */
    uint64_t background_bytes; /* of both */
    uint64_t n_evicted;
    enum miss_mode asked; /* for */
    enum miss_mode mode;  /* in use: as asked, or with MISS_AUTO what that has chosen so far */
    bool gathers;         /* GPU: the device brings misses itself, from memory that is pinned */
    double cpu_share;     /* HYBRID: of misses, aimed at */
    double copy_bytes_s, cpu_bytes_s; /* measured while both were busy; 0: not yet */
    const char *policy;
};

struct device_tier_stats device_tier_stats(const struct device_tier *tier);

#endif
