/* Expert pager: keeps routed experts' weights where the next matmul can read them.
 *
 * The pager decides where an expert's weights are; it never computes and never changes a weight,
 * so logits cannot depend on it. It works in one of two ways:
 *
 *   mapped  every expert is read in the mapping of its file, for models that fit into memory
 *   slots   a fixed number of experts in memory of our own, the rest in the files:
 *
 *     in the file --place--> READING --read done--> RESIDENT --unpinned and evicted--> in the file
 *                               +--read failed--> in the file; whom it was begun for gets the error
 *
 * A layer's visit: request names the experts that the layer needs and starts to read what is
 * missing; acquire lends them in groups, first all that are resident, then the others as they
 * arrive, so that the caller computes with some while others are still being read. Reads that are
 * under way are joined, never repeated, unless they fail: that was not this request's own read.
 *
 * What is read when, beside demand: a step of many tokens reads the next layer's experts ahead; of
 * a prediction is read what pays (speculation.h), behind all that is needed; a profile's experts
 * fill free slots.
 *
 * A device's tier may be above it, and either copy out of its slots or share the experts out with
 * it: then what the device keeps is the first to go here, and what it gives up comes back from
 * there, without the disk (offer). All that is lost if it does not come back is a read.
 *
 * Ownership: borrows the store; slots belong to the pager; views are lent by acquire until the
 *            next acquire, request or step.
 * Threads:   one caller, the step thread; the disk reader's threads are internal.
 * Errors:    LM_E_IO names file, layer and expert; nothing is lent then, and the next request
 *            starts afresh.
 * Source:    states and pins follow SQLite's page cache. */
#ifndef LEAN_WORKER_PAGER_EXPERT_PAGER_H
#define LEAN_WORKER_PAGER_EXPERT_PAGER_H

#include "proto/step.h"
#include "worker/pager/disk_reader.h"
#include "worker/pager/expert_store.h"
#include "worker/pager/speculation.h"

struct cache_policy;
struct expert_pager;

enum prefetch {
    PREFETCH_OFF,
    PREFETCH_ON,  /* a fixed number of experts, whatever comes of it */
    PREFETCH_AUTO /* as many as pay */
};

struct expert_pager_config {
    const struct expert_store *store;
    uint32_t layer_begin, layer_end;
    uint32_t n_expert, n_expert_used;
    uint32_t n_slot; /* over all layers; 0: mapped. Raised to the least that works */
    const struct cache_policy *policy;
    enum prefetch prefetch; /* of predicted experts */
    enum disk_engine engine;
    enum disk_access access;
    uint32_t depth;
    struct progress *progress; /* as of disk_reader.h, or NULL */
    struct backend *device;    /* copies out of the slots: they are pinned; NULL: no device does */
};

/* Steps of many tokens of a sequence (prefill) and all others are counted apart. */
struct expert_pager_counts {
    uint64_t n_lookup;  /* distinct experts per layer and step */
    uint64_t n_hit;     /* of them resident before anything was read for that layer and step */
    uint64_t n_joined;  /* of the others read ahead, or on their way; */
    uint64_t n_in_time; /* of these readable already */
    uint64_t n_miss;    /* neither */
    uint64_t miss_bytes;
    double wait_s; /* the step thread waited for reads */
};

struct expert_pager_layer_stats {
    struct expert_pager_counts decode, prefill;
    uint32_t n_expert;                 /* 0: the layer has no routed experts */
    uint32_t n_resident;               /* or being read */
    uint32_t slot_class, n_class_slot; /* layers whose experts are of one size share slots */
};

/* What came of the predictions of one kind. */
struct expert_pager_prediction {
    uint64_t n_named;    /* experts */
    uint64_t n_chosen;   /* experts chosen where there was such a prediction */
    uint64_t n_recalled; /* of them named */
    uint64_t n_read;     /* named, not resident, and read; but what was taken back */
    uint64_t n_used;     /* of them chosen before they were evicted; */
    uint64_t n_in_time;  /* readable by then */
};

struct expert_pager_stats {
    struct expert_pager_counts decode, prefill; /* of all layers */
    uint32_t layer_begin, layer_end;
    uint32_t layer;            /* of the last request */
    const char *policy;        /* NULL: mapped */
    uint32_t n_slot, n_expert; /* n_slot 0: mapped */
    uint64_t slot_bytes, bank_bytes;
    uint32_t n_resident; /* and readable; the other slots: */
    uint32_t n_reading, n_free;
    uint64_t n_evicted;
    uint64_t n_remiss; /* read again less than 64 tokens after the eviction */
    struct expert_pager_prediction prediction[PREDICT_POINT_COUNT];
    /* The same of the last prediction before each router ran, and of the reads on any. */
    uint64_t n_predicted, n_chosen, n_recalled;
    uint64_t n_speculated, n_useful;
    uint64_t n_wasted; /* of them evicted before they were */
    uint64_t speculated_bytes, useful_bytes;
    uint32_t n_preloaded; /* read on account of a profile */
    bool pinned;          /* slots: a device reads them at the speed of its link */
    struct disk_reader_stats disk;
};

enum lm_status expert_pager_create(struct expert_pager **out,
                                   const struct expert_pager_config *config, struct lm_error *err);
void expert_pager_destroy(struct expert_pager *pager); /* NULL is legal */

const struct expert_layer *expert_pager_layer(const struct expert_pager *pager, uint32_t il);

/* Asked for n_slot slots, the pager makes expert_pager_slot_count of them, since experts of each
 * size get the least that works and none that they cannot fill; these take expert_pager_slot_bytes.
 * expert_pager_slots_for: the most to ask for that fits into n_bytes, at most all experts; 0: not
 * even the least that works fits. */
uint32_t expert_pager_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                 uint32_t layer_end, uint32_t n_expert, uint32_t n_slot);
uint64_t expert_pager_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                 uint32_t layer_end, uint32_t n_expert, uint32_t n_slot);
uint32_t expert_pager_slots_for(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes);

/* Uses per token of an expert from a profile, before the first step; then the preload begins. */
void expert_pager_seed(struct expert_pager *pager, struct expert_key key, float rate);
void expert_pager_preload(struct expert_pager *pager);
/* Between steps, when there is nothing to do: goes on with the preload. True: there is more, so
 * that it should be called again soon. */
bool expert_pager_idle(struct expert_pager *pager);
/* For a profile: tokens so far, and rows of them that chose the expert. */
uint64_t expert_pager_n_token(const struct expert_pager *pager);
uint64_t expert_pager_uses(const struct expert_pager *pager, struct expert_key key);

/* A step of n_token tokens; prefill: a sequence has more than one of them. */
void expert_pager_step(struct expert_pager *pager, uint32_t n_token, bool prefill);
/* The time of the step so far that its thread waited for reads. */
double expert_pager_step_wait_s(const struct expert_pager *pager);

struct expert_demand {
    uint32_t expert;
    uint32_t n_row;             /* rows that chose it */
    struct expert_usage *usage; /* where the lookup is counted, too, unless all experts are mapped;
                                 * NULL: nowhere. Borrowed for the request */
};

/* Experts lent by acquire. */
struct expert_group {
    size_t n;
    const uint32_t *expert;         /* [n] */
    const struct expert_view *view; /* [n] */
};

/* demand: [n], distinct. */
void expert_pager_request(struct expert_pager *pager, uint32_t layer,
                          const struct expert_demand *demand, size_t n);
/* The next experts of the request that are readable, at least one; n 0: all have been lent. */
enum lm_status expert_pager_acquire(struct expert_pager *pager, struct expert_group *out,
                                    struct lm_error *err);

/* Whether a prediction for the layer would be used, and so is worth computing. */
bool expert_pager_wants_prediction(const struct expert_pager *pager, uint32_t layer,
                                   enum prediction_point point);
/* The experts that a layer will probably choose for each row of the step, likeliest first, rank by
 * rank. Early: between the request of the layer before and its first acquire. Late: when that layer
 * has got all of its experts, or before the first request of a step; what was read on the early one
 * and has not begun is taken back if it is not named again. */
void expert_pager_predict(struct expert_pager *pager, uint32_t layer, enum prediction_point point,
                          const int32_t *expert, size_t n);

/* Holds an expert that is readable now where it is, also beyond acquire and step, until unhold; it
 * may be held several times. False: it is not readable. */
bool expert_pager_hold(struct expert_pager *pager, struct expert_key key, struct expert_view *out);
void expert_pager_unhold(struct expert_pager *pager, struct expert_key key);
/* Slots: every expert has one that is readable and pinned, and will keep it. */
bool expert_pager_has_all_pinned(const struct expert_pager *pager);
/* Rows chose an expert that was not asked for here. For expert_pager_uses, and of a tier above that
 * is exclusive for the expert's worth. */
void expert_pager_count_use(struct expert_pager *pager, struct expert_key key, uint32_t n_row);
/* Experts that may be held while a layer is visited. */
size_t expert_pager_hold_max(const struct expert_pager *pager, uint32_t layer);
/* What is above the pager and asks it for what it has not got itself. */
struct expert_pager_above {
    void *context;
    /* it has a copy, and will not ask: the expert is not read ahead */
    bool (*has)(void *context, struct expert_key key);
    /* called by expert_pager_seed and expert_pager_preload, too */
    void (*seed)(void *context, struct expert_key key, float rate);
    void (*preload)(void *context);
    /* ends what it holds, when no slot is left without */
    enum lm_status (*let_go)(void *context, struct lm_error *err);
    bool exclusive; /* what it keeps need not be here: it tells of that, and of all uses */
};
void expert_pager_put_above(struct expert_pager *pager, const struct expert_pager_above *above);
/* What is exclusive keeps the expert, or does no longer. */
void expert_pager_set_kept(struct expert_pager *pager, struct expert_key key, bool kept);
/* It has what it wanted of a profile: what it keeps of that may make room for what follows. */
void expert_pager_preload_more(struct expert_pager *pager);
/* It would give the expert up. TAKEN: its parts may be written to part[], and until end_offer it is
 * not asked for here; arrived: they are those of the file, and it is readable. */
enum expert_offer {
    OFFER_LATER,   /* enough are on their way */
    OFFER_REFUSED, /* nothing that is worth less can go for it */
    OFFER_HERE,    /* it is here, or being read */
    OFFER_TAKEN
};
enum expert_offer expert_pager_offer(struct expert_pager *pager, struct expert_key key,
                                     void *part[EXPERT_PART_MAX]);
void expert_pager_end_offer(struct expert_pager *pager, struct expert_key key, bool arrived);

struct expert_pager_stats expert_pager_stats(const struct expert_pager *pager);
/* layer_begin <= layer < layer_end */
struct expert_pager_layer_stats expert_pager_layer_stats(const struct expert_pager *pager,
                                                         uint32_t layer);
/* For displays, of an expert of a layer that has some: whether it can be read without the disk, and
 * how hot it is, in a unit of the layer's own. */
bool expert_pager_is_resident(const struct expert_pager *pager, struct expert_key key);
float expert_pager_heat(const struct expert_pager *pager, struct expert_key key);
/* The reads under way, in a line of the log. From any thread. */
void expert_pager_log_reads(const struct expert_pager *pager);
/* For displays: the step thread calls it whenever experts were asked for or have arrived, many
 * times a second; inside it the counters may be read, and nothing else done. NULL: nobody. */
void expert_pager_watch(struct expert_pager *pager, void (*on_change)(void *context),
                        void *context);

#endif
