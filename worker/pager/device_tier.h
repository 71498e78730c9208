/* Device tier: slots for routed experts in a device's memory, above the pager of the host's.
 *
 *   device slots   some experts; read by the device at once
 *   host memory    what the pager lends: slots of its own, or the mapping of the files
 *   files          the rest
 *
 * Which expert is in which slot is decided by an expert_cache, as in the pager. The tier moves
 * bytes and never computes, so logits cannot depend on it.
 *
 *   ABSENT --begin to copy--> COPYING --done--> RESIDENT --unpinned and evicted--> ABSENT
 *                                                   +--coldest--> LEAVING --evicted--> ABSENT
 *                                                   +---used---------+
 *
 * Where the pager has slots for some experts only, the two share them out (exclusive): what the
 * device keeps goes first there. So that memory does not lose what the device gives up, the coldest
 * few are written back before anything takes their slots, beside the operations: then nobody waits
 * for it, and what goes, goes for nothing. Who must go sooner is lost to memory, not to the disk.
 *
 * A layer's visit: request names the experts that the layer needs; acquire lends them in groups:
 * first what is resident; then, as the pager has them, some to be computed on the CPU; then those
 * that have been copied meanwhile. Beside the slots there is the room, a ring of two halves, for
 * experts that are copied and find no slot. Steps that need nearly all experts of a layer (prefill)
 * stream them through the room, one half being filled while the other is computed with, and leave
 * the slots as they are, but for free ones; the first half of the next layer is filled while this
 * one ends.
 *
 * What was computed on the CPU and is worth a slot is copied in the background, a few in each step.
 * So are experts that the layer behind will probably choose, at most two, if that pays
 * (speculation.h): behind all copies that the visit asked for, while the link would have nothing to
 * do until that layer asks, and never beside other copies in the background. Those of them that are
 * there keep their slots until then. All that is copied in the background takes a quarter of the
 * link's time at most.
 *
 * A prompt is streamed past the slots. What it chose most is copied when it is over, in the
 * background of the steps that follow, into free slots and into those of experts that are worth
 * clearly less; of each size it gets a quarter of the slots at most, so that one prompt does not
 * displace what many have brought. A profile's experts come in the background of the first steps,
 * and while there is nothing to do.
 *
 * More slots lie in the end of the pool of keys and values, where no sequence needs it yet: the
 * pool grows from its beginning, slots from its end. Between steps resize gives slots up, those
 * experts that are worth least, or adds some, which are then filled in the background, the hottest
 * first.
 *
 * Where the pager has all experts in pinned memory the device brings what it misses itself
 * (gather), by a table in its memory that says where each expert is: no layer asks the host, which
 * counts the choices when the step is over, and then changes slots and table for the steps to come.
 * Nothing is predicted then: a copy on a prediction is begun by the host, which would have to hear
 * of the prediction between two layers, and that is what such steps do without.
 *
 * Ownership: owns the device's memory; borrows store, backend and pager.
 * Threads:   one caller, the step thread.
 * Order:     the device's operations so far are done (sync) whenever request or step is called. So
 *            what a slot held may be overwritten, but what this visit reads. */
#ifndef LEAN_WORKER_PAGER_DEVICE_TIER_H
#define LEAN_WORKER_PAGER_DEVICE_TIER_H

#include "worker/pager/expert_pager.h"
#include "worker/pager/expert_store.h"

struct cache_policy;
struct device_tier;

/* What becomes of a chosen expert that is not in the device's memory. None changes a bit. */
enum miss_mode {
    MISS_AUTO,  /* what is measured to be faster */
    MISS_GPU,   /* it is copied there, and computed there */
    MISS_CPU,   /* it is computed on the CPU, beside the others on the device */
    MISS_HYBRID /* some are copied, some computed on the CPU, so that both end together */
};

/* Asked for n_slot slots, the tier makes device_tier_slot_count of them, since experts of each size
 * get the least that works and none that they cannot fill; these take device_tier_slot_bytes. With
 * pool_bytes (0: none) there are as many more as that has room for.
 * device_tier_slots_for: the most to ask for that fits into n_bytes, at most all experts; 0: not
 * even the least that works fits. */
uint32_t device_tier_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot,
                                uint64_t pool_bytes);
uint64_t device_tier_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot);
uint32_t device_tier_slots_for(const struct expert_store *store, uint32_t layer_begin,
                               uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes);
/* What the tier takes of the device's memory besides: the room, and tables. */
uint64_t device_tier_room_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_expert_used);
/* The most rows of a step that the CPU ever computes with: with more, experts are streamed. */
uint32_t device_tier_cpu_rows(uint32_t n_expert, uint32_t n_expert_used);

/* Steps of many tokens of a sequence, which are streamed (prefill), and all others are counted
 * apart. */
struct device_tier_counts {
    uint64_t n_lookup; /* distinct experts per layer and step: n_hit + n_cpu + n_copied */
    uint64_t n_hit;    /* of them in the device's memory before anything was done for the layer */
    uint64_t n_cpu;    /* computed on the CPU */
    uint64_t n_copied; /* copied to the device for the layer, or on their way already */
    uint64_t hit_bytes, cpu_bytes, copied_bytes;
    double wait_s; /* the step thread waited for copies, to have memory to copy from */
    double cpu_s;  /* the CPU computed experts */
};

struct device_tier_stats {
    struct device_tier_counts decode, prefill;
    uint64_t pool_bytes, kv_bytes;  /* of keys and values; of them no slot's now */
    uint64_t n_to_kv, n_to_experts; /* so often memory of it went that way */
    uint32_t n_slot, n_expert;
    uint32_t n_resident;                         /* or being copied */
    uint64_t slot_bytes, room_bytes, bank_bytes; /* bank: all experts of the tier's layers */
    uint64_t n_admitted;  /* copied in the background, since they were worth it */
    uint64_t n_preloaded; /* likewise, on account of a profile, or by a prefill into free slots */
    uint64_t n_warmed;    /* likewise, since a prompt chose them most */
    uint64_t background_bytes; /* copied before they were chosen */
    double preload_bytes_s;    /* at which a profile's experts came, while some did; 0: not yet */
    uint64_t n_evicted;
    uint64_t n_written_back, written_back_bytes; /* before they were evicted */
    uint64_t n_lost;                             /* evicted, and no longer in memory */
    struct expert_pager_prediction prediction;   /* of layers behind; read: copied */
    uint64_t n_wasted;                           /* of these evicted before they were chosen */
    uint64_t predicted_bytes, useful_bytes;      /* copied on predictions, and of them chosen */
    enum miss_mode asked;                        /* for */
    enum miss_mode mode; /* in use: as asked, or with MISS_AUTO what that has chosen so far */
    bool gathers;        /* GPU: the device brings misses itself, from memory that is pinned */
    bool exclusive;      /* what the device keeps need not be in memory, too */
    double cpu_share;    /* HYBRID: of misses, aimed at */
    double copy_bytes_s; /* lately at best, since the host hears of the end of a copy late */
    double cpu_bytes_s;  /* measured beside copies; 0, as the other: not yet */
    const char *policy;
};

struct device_tier_config {
    struct backend *backend;
    const struct expert_store *store;
    struct expert_pager *pager; /* has the same layers, and maybe some before */
    uint32_t layer_begin, layer_end;
    uint32_t n_expert, n_expert_used;
    uint32_t n_slot; /* over all layers; raised to the least that works */
    /* For more slots, from kv_bytes on and never before; or NULL. */
    uint8_t *pool;
    uint64_t pool_bytes, kv_bytes;
    const struct cache_policy *policy;
    enum miss_mode miss;
    enum prefetch prefetch; /* of predicted experts */
    bool inclusive; /* what the device has is kept in memory, too, if it lacks room for others */
};

/* LM_E_NO_MEM: of the device or the host. */
enum lm_status device_tier_create(struct device_tier **out, const struct device_tier_config *config,
                                  struct lm_error *err);
void device_tier_destroy(struct device_tier *tier); /* NULL is legal */

/* Of the pool slots may lie from kv_bytes on, but not before what the configuration had. Between
 * steps. Errors are of the device: then it is done all the same, and nothing is resident. */
enum lm_status device_tier_resize(struct device_tier *tier, uint64_t kv_bytes,
                                  struct lm_error *err);

/* Uses per token of an expert of these layers from a profile, before the first step. Then the
 * hottest are copied into free slots, in the background and with the first steps. */
void device_tier_seed(struct device_tier *tier, struct expert_key key, float rate);
void device_tier_preload(struct device_tier *tier);

/* A step of n_token tokens; prefill: a sequence has more than one of them. If they are few (a
 * draft that is verified), it is still treated as any other. */
void device_tier_step(struct device_tier *tier, uint32_t n_token, bool prefill);
/* More layers follow in a step that has ended, of no more tokens: drafts of what comes next. */
void device_tier_go_on(struct device_tier *tier);
/* Between steps, when there is nothing to do: goes on with what is copied in the background, no
 * longer than a few ms. True: there is more, so that it should be called again soon. */
bool device_tier_idle(struct device_tier *tier);
/* The device has done what the step asked of it. */
void device_tier_end_step(struct device_tier *tier);
/* Whether the layers of this step do without request and acquire; their choices are then counted
 * behind the step's end. */
bool device_tier_gathers(const struct device_tier *tier);
/* The most pairs of a row and an expert that a layer of such a step has. */
uint32_t device_tier_gather_pairs(uint32_t n_expert, uint32_t n_expert_used);
/* What such a layer's gather_experts is given, but for ids and n_pair, and ffn finds in view. */
struct expert_gather_args device_tier_gather(const struct device_tier *tier, uint32_t layer);
void device_tier_count(struct device_tier *tier, uint32_t layer, const struct expert_demand *demand,
                       size_t n);

/* Whether the CPU may have a share in a layer of n_row rows. */
bool device_tier_wants_cpu(const struct device_tier *tier, uint32_t n_row);

/* demand: [n], distinct. n_row: rows of the layer. */
void device_tier_request(struct device_tier *tier, uint32_t layer,
                         const struct expert_demand *demand, size_t n, uint32_t n_row);

/* Whether a prediction for the layer would be used, and so is worth computing. */
bool device_tier_wants_prediction(const struct device_tier *tier, uint32_t layer);
/* The experts that a layer will probably choose for each row of the step, likeliest first, rank by
 * rank; between the request of the layer before and its first acquire. */
void device_tier_predict(struct device_tier *tier, uint32_t layer, const int32_t *expert, size_t n);

/* Experts lent by acquire until the next acquire, request or step. On the device they may be read
 * by operations called from here on; what has been called must begin to run soon (start). */
struct device_group {
    size_t n;
    bool on_cpu;                    /* the CPU computes them, and views are to the host's memory */
    const uint32_t *expert;         /* [n] */
    const struct expert_view *view; /* [n] */
};
/* n 0: all have been lent. Errors of the pager, and of the device. */
enum lm_status device_tier_acquire(struct device_tier *tier, struct device_group *out,
                                   struct lm_error *err);
/* Waits for all copies: then nothing of the pager's is held. */
enum lm_status device_tier_let_go(struct device_tier *tier, struct lm_error *err);
/* The step has failed: copies may have, too. Nothing is resident from here on. */
void device_tier_abandon(struct device_tier *tier);

struct device_tier_stats device_tier_stats(const struct device_tier *tier);
/* For displays: whether the device has it, or is getting it. */
bool device_tier_is_resident(const struct device_tier *tier, struct expert_key key);

#endif
