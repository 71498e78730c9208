/* Slots, the room beside them, and the copies that fill both. */
#include "worker/pager/device_tier.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "worker/pager/expert_cache.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/mode_trial.h"
#include "worker/pager/policy.h"
#include "worker/pager/slot_class.h"

enum {
    N_HALF = 2,
    AHEAD_COPIES_MAX = 8,    /* in the background at once */
    BACK_COPIES_MAX = 8,     /* back, likewise */
    PRELOAD_COPIES_MAX = 64, /* likewise, of what a profile or a prompt names, */
    PRELOAD_BYTES_MAX = 64 << 20,
    WARM_SHARE = 4, /* of a size's slots, those that one prompt may displace */
    NO_SLOT = EXPERT_NO_SLOT
};

/* Of the misses of one layer that are admitted, and of a token's lookups, at most: what is copied
 * in the background must leave the link to what is waited for. */
enum { ADMIT_PER_LAYER = 2, ADMIT_SHARE = 16 };
/* Likewise of the experts predicted for a layer; and what they and the admitted ones take of the
 * link's time, but that a step may always have one. */
enum { PREDICTED_COPIES_MAX = 2 };
static const double BACKGROUND_SHARE = 0.25;
static const double NO_GAP_S = 1e-9; /* where the link had no time between two layers */

/* A copy under way out of the pager's memory, which is held for it. */
struct copy {
    uint64_t ticket;
    struct expert_key key;
    int32_t slot; /* it goes to; NO_SLOT: to the room */
    bool preload; /* on account of a profile */
};

/* An expert on its way back into the pager's memory. */
struct back {
    uint64_t ticket;
    struct expert_key key;
    bool landed; /* unless the next sync says otherwise */
};

struct slot {
    uint8_t *memory;
    uint64_t ticket;    /* of the copy into it; 0: it is done */
    bool in_background; /* nobody waits for it */
    bool predicted;     /* copied on a prediction, and not chosen yet; */
    size_t rank;        /* at which it was named */
};

/* What the layer behind will probably choose. */
struct prediction {
    uint32_t layer;
    uint32_t *expert; /* [n_expert] likeliest first */
    size_t n;         /* 0: there is none, or its layer has been requested */
    bool used;        /* what is worth it has been copied */
};

/* One half of the room. */
struct half {
    uint64_t mark; /* behind the operations that read it */
    size_t n;      /* experts in it */
};

/* One expert of the current request that the device has, or gets. */
struct ready {
    uint32_t expert;
    uint64_t ticket; /* of its copy; 0: it is done */
    bool in_background;
    struct expert_view view;
};

/* What it is good to have on the device: rate is uses per token, or any other measure of heat. */
struct seed {
    struct expert_key key;
    float rate;
};

struct device_tier {
    struct device_tier_config config;
    struct slot_classes classes; /* with the slots of the pool */
    int32_t *in_pool;            /* [n_in_pool_max] slots there, from its end on */
    uint32_t n_in_pool_max;
    uint32_t n_in_arena[SLOT_CLASS_MAX], n_usable[SLOT_CLASS_MAX];
    struct cache_move *moves; /* [n_slot] */
    uint32_t *class_of;       /* [layer_end] */
    struct expert_cache *cache;
    struct slot *slot;     /* [n_slot], class after class */
    uint8_t *arena, *room; /* in the device's memory */
    uint64_t unit_bytes;   /* of an expert in the room */
    size_t half_max;       /* experts in a half */
    struct half half[N_HALF];
    size_t turn; /* the half that is being filled */

    struct copy *copy; /* [copy_max], in no order */
    size_t copy_max, n_copy;

    struct back back[BACK_COPIES_MAX];
    size_t n_back;

    /* where the device finds the layers' experts: [n_table_layer][n_expert] views, then as many
     * bytes that say which are in the host's memory; then one layer's views, gathered */
    uint8_t *table;      /* in the device's memory */
    uint8_t *host_table; /* [table_bytes] what is in it, or will be when a step begins */
    size_t table_bytes;
    bool has_table, table_changed; /* it is kept up; since it was uploaded */
    bool gathers;                  /* this step does */

    /* the current request */
    uint32_t layer;
    bool streams;                   /* nearly all experts are needed */
    bool hits_lent, pager_has_more; /* how far acquire has come */
    struct expert_group group;      /* of the pager; from next on it is still to be served, */
    size_t next, n_link;            /* by copies before n_link, by the CPU behind */
    uint32_t *order;                /* [n_expert] of the group's entries, the hottest first */
    struct expert_demand *missing;  /* [n_expert] */
    int32_t *pinned;                /* [n_expert] slots that this visit reads */
    size_t n_pinned;
    struct ready *hit, *ready; /* [n_expert] */
    size_t n_hit, n_ready;
    bool lent_half; /* the group that is lent is (partly) in the half that is not being filled */
    uint32_t *lent_expert;         /* [n_expert] */
    struct expert_view *lent_view; /* [n_expert] */
    size_t n_admitted_layer, n_admitted_step, n_in_background;
    uint64_t behind_bytes; /* of this step, copied in the background */
    double step_s;         /* mean time of a step lately; 0: not known */
    /* the layer behind */
    struct prediction prediction;
    struct speculation speculation;
    int32_t *kept; /* [n_expert] slots of what was predicted, pinned until its layer is reached; */
    size_t n_kept, n_brought; /* the last ones have been brought */
    double idle_since_s;      /* the visit's copies were to end; 0: they are not all begun */
    /* copies since there was none: */
    double burst_since_s;
    uint64_t burst_bytes, n_burst;
    /* what is in the room for the layer behind */
    uint32_t ahead_layer; /* UINT32_MAX: nothing is */
    struct ready *ahead;  /* [half_max] */
    size_t n_ahead;
    /* the split between link and CPU */
    double cpu_share, carry;
    uint64_t link_ticket;    /* of the last copy while the CPU computes; 0: none */
    double cpu_since_s;      /* it began to; 0: it does not */
    uint64_t cpu_bytes;      /* of what it computes */
    struct mode_trial trial; /* of MISS_AUTO */
    double step_since_s;     /* the step began */
    /* the profile's experts, hottest first */
    struct seed *seed; /* [n_expert of all layers] */
    size_t n_seed;
    /* those of the last prompt that the device lacks, likewise; from next_warm on they are to come
     */
    struct seed *warm; /* [2 * n_expert_used of all layers] */
    size_t n_warm, next_warm;
    uint32_t n_displaced[SLOT_CLASS_MAX];
    /* copies of preload: under way; what has come, and since when, until there were no free slots
     */
    size_t n_preloading, n_preloaded;
    uint64_t preloading_bytes, preloaded_bytes;
    double preload_since_s;
    bool preload_is_told;
    uint32_t n_step_token;
    bool prefill;
    struct device_tier_stats stats;
};

/* ---- sizes -------------------------------------------------------------------------------- */

/* Bytes from one part of an expert to the next. */
static size_t part_stride(const struct expert_layer *layer, uint32_t part)
{
    return expert_room_bytes(layer->part_bytes[part], 0, 0);
}

static uint64_t slot_bytes_of(const struct expert_layer *layer)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < layer->n_part; i++)
        n_bytes += part_stride(layer, i);
    return n_bytes;
}

/* Slots with n_slot in the arena and pool_bytes beside it; n_in_arena: those there, or NULL. */
static void make_classes(struct slot_classes *out, const struct expert_store *store,
                         uint32_t layer_begin, uint32_t layer_end, uint32_t n_expert,
                         uint32_t n_slot, uint64_t pool_bytes, uint32_t *n_in_arena,
                         uint32_t *class_of)
{
    slot_classes_make(out, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      class_of);
    for (uint32_t i = 0; n_in_arena && i < out->n; i++)
        n_in_arena[i] = out->class[i].n_slot;
    if (!pool_bytes) return;
    const uint64_t n_bytes = slot_classes_bytes(out) + pool_bytes;
    const uint32_t n_more =
        slot_classes_fit(store, layer_begin, layer_end, n_expert, n_bytes, slot_bytes_of);
    if (n_more > n_slot)
        slot_classes_make(out, store, layer_begin, layer_end, n_expert, n_more, slot_bytes_of,
                          class_of);
}

uint32_t device_tier_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot,
                                uint64_t pool_bytes)
{
    struct slot_classes classes;
    make_classes(&classes, store, layer_begin, layer_end, n_expert, n_slot, pool_bytes, NULL, NULL);
    return slot_classes_n_slot(&classes);
}

uint64_t device_tier_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      NULL);
    return slot_classes_bytes(&classes);
}

uint32_t device_tier_slots_for(const struct expert_store *store, uint32_t layer_begin,
                               uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes)
{
    return slot_classes_fit(store, layer_begin, layer_end, n_expert, n_bytes, slot_bytes_of);
}

/* Experts of half the room: enough that what a launch costs does not matter, and for a token. */
static uint32_t half_of_room(uint32_t n_expert, uint32_t n_expert_used)
{
    const uint32_t half = n_expert_used < 8 ? 8 : n_expert_used;
    return half < n_expert ? half : n_expert;
}

static uint64_t largest_slot(const struct slot_classes *classes)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < classes->n; i++)
        if (classes->class[i].slot_bytes > largest) largest = classes->class[i].slot_bytes;
    return largest;
}

uint64_t device_tier_room_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_expert_used)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, 1, slot_bytes_of, NULL);
    const uint64_t table_bytes = sizeof(struct expert_view) + sizeof(uint8_t);
    return N_HALF * half_of_room(n_expert, n_expert_used) * largest_slot(&classes) +
           (layer_end - layer_begin + 1) * (uint64_t)n_expert * table_bytes;
}

uint32_t device_tier_gather_pairs(uint32_t n_expert, uint32_t n_expert_used)
{
    return N_HALF * half_of_room(n_expert, n_expert_used);
}

uint32_t device_tier_cpu_rows(uint32_t n_expert, uint32_t n_expert_used)
{
    return n_expert_used ? 2 * n_expert / n_expert_used + 1 : 0;
}

/* ---- the table ---------------------------------------------------------------------------- */

static struct expert_view *views_of(const struct device_tier *tier, uint8_t *table, uint32_t layer)
{
    const size_t at = (size_t)(layer - tier->config.layer_begin) * tier->config.n_expert;
    return (struct expert_view *)(void *)table + at;
}

static uint8_t *remote_of(const struct device_tier *tier, uint8_t *table, uint32_t layer)
{
    return (uint8_t *)views_of(tier, table, tier->config.layer_end) +
           (size_t)(layer - tier->config.layer_begin) * tier->config.n_expert;
}

static struct expert_view slot_view(const struct device_tier *tier, uint32_t il, int32_t index);

/* Where an expert is from the next step on. */
static void note_place(struct device_tier *tier, struct expert_key key)
{
    const int32_t index = expert_cache_find(tier->cache, key);
    const bool resident = index != NO_SLOT && !tier->slot[index].ticket;
    struct expert_view view;
    if (!tier->has_table) return;
    if (resident) {
        view = slot_view(tier, key.layer, index);
    } else if (expert_pager_hold(tier->config.pager, key, &view)) {
        expert_pager_unhold(tier->config.pager, key); /* it will stay, as all do */
    } else {
        assert(!"an expert in pinned memory");
    }
    views_of(tier, tier->host_table, key.layer)[key.expert] = view;
    remote_of(tier, tier->host_table, key.layer)[key.expert] = !resident;
    tier->table_changed = true;
}

/* Once the pager has everything where the device can read it. */
static void make_table(struct device_tier *tier)
{
    tier->has_table = true;
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++)
        for (uint32_t ie = 0; tier->class_of[il] != UINT32_MAX && ie < tier->config.n_expert; ie++)
            note_place(tier, (struct expert_key){il, ie});
}

/* ---- what is shared out with the pager ---------------------------------------------------- */

/* What is about to go here must not go there, too. */
static void tell_pager(struct device_tier *tier, struct expert_key key)
{
    const int32_t index = expert_cache_find(tier->cache, key);
    const bool here = index != NO_SLOT && !tier->slot[index].ticket;
    if (!tier->stats.exclusive) return;
    expert_pager_set_kept(tier->config.pager, key,
                          here && expert_cache_is_admitted(tier->cache, index));
}

/* ---- copies ------------------------------------------------------------------------------- */

static const struct expert_layer *layer_of(const struct device_tier *tier, uint32_t il)
{
    return expert_store_layer(tier->config.store, il);
}

static struct device_tier_counts *counts(struct device_tier *tier)
{
    return tier->prefill ? &tier->stats.prefill : &tier->stats.decode;
}

static bool is_done(const struct device_tier *tier, uint64_t ticket)
{
    return tier->config.backend->ops->fetched(tier->config.backend, ticket);
}

/* All copies are over. That is seen late, never early, so that the fastest is nearest the truth. */
static void measure_burst(struct device_tier *tier)
{
    enum { FADE = 256 };
    const double burst_s = log_now_s() - tier->burst_since_s, best = tier->stats.copy_bytes_s;
    if (!tier->n_burst || burst_s <= 0) return;
    const double rate = (double)tier->burst_bytes / burst_s;
    tier->stats.copy_bytes_s = rate > best ? rate : best + (rate - best) / FADE;
    const double bytes = (double)tier->burst_bytes / (double)tier->n_burst;
    speculation_measure_reads(&tier->speculation, bytes / tier->stats.copy_bytes_s, 1);
    tier->burst_bytes = tier->n_burst = 0;
}

/* One of a profile's experts has come. */
static void count_preload(struct device_tier *tier, uint32_t layer)
{
    const uint64_t n_bytes = layer_of(tier, layer)->n_bytes;
    tier->n_preloading--;
    tier->preloading_bytes -= n_bytes;
    if (tier->preload_is_told) return;
    tier->n_preloaded++;
    tier->preloaded_bytes += n_bytes;
    const double elapsed_s = log_now_s() - tier->preload_since_s;
    if (elapsed_s > 0) tier->stats.preload_bytes_s = (double)tier->preloaded_bytes / elapsed_s;
}

/* A copy is over: what it read and where it went are let go. */
static void end_copy(struct device_tier *tier, size_t at)
{
    const struct copy copy = tier->copy[at];
    tier->copy[at] = tier->copy[--tier->n_copy];
    expert_pager_unhold(tier->config.pager, copy.key);
    if (copy.preload) count_preload(tier, copy.key.layer);
    if (copy.slot == NO_SLOT) return;
    tier->slot[copy.slot].ticket = 0;
    tier->n_in_background -= tier->slot[copy.slot].in_background;
    expert_cache_unpin(tier->cache, copy.slot);
    note_place(tier, copy.key);
    tell_pager(tier, copy.key);
}

static void reap(struct device_tier *tier)
{
    for (size_t i = tier->n_copy; i-- > 0;)
        if (is_done(tier, tier->copy[i].ticket)) end_copy(tier, i);
    for (size_t i = 0; i < tier->n_back; i++)
        tier->back[i].landed = is_done(tier, tier->back[i].ticket);
    if (!tier->n_copy) measure_burst(tier);
}

/* Waits for all copies. */
static enum lm_status drain(struct device_tier *tier, struct lm_error *err)
{
    struct backend *backend = tier->config.backend;
    const double start_s = log_now_s();
    for (size_t i = 0; i < tier->n_copy; i++)
        backend->ops->await(backend, tier->copy[i].ticket);
    const enum lm_status status = backend->ops->sync(backend, err);
    counts(tier)->wait_s += log_now_s() - start_s;
    if (status == LM_OK) reap(tier);
    return status;
}

enum lm_status device_tier_let_go(struct device_tier *tier, struct lm_error *err)
{
    return drain(tier, err);
}

/* Where the parts of an expert begin, as they lie in the host's memory. */
static void find_parts(const struct expert_layer *layer, const struct expert_view *view,
                       const uint8_t *part[EXPERT_PART_MAX])
{
    const void *const matrix[EXPERT_MATRIX_COUNT] = {view->gate, view->up, view->down};
    for (int i = 0; i < EXPERT_MATRIX_COUNT; i++)
        if (matrix[i])
            part[layer->matrix[i].part] = (const uint8_t *)matrix[i] - layer->matrix[i].offset;
}

/* Begins to copy an expert that is held in the host's memory. */
static struct ready copy_expert(struct device_tier *tier, struct expert_key key,
                                const struct expert_view *from, uint8_t *to, uint64_t after,
                                enum copy_lane lane)
{
    struct backend *backend = tier->config.backend;
    const struct expert_layer *layer = layer_of(tier, key.layer);
    const uint8_t *source[EXPERT_PART_MAX] = {NULL};
    const void *part[EXPERT_PART_MAX] = {NULL};
    struct copy *copy = &tier->copy[tier->n_copy];
    assert(tier->n_copy < tier->copy_max);
    find_parts(layer, from, source);
    *copy = (struct copy){.key = key, .slot = NO_SLOT};
    if (!tier->n_copy++) {
        tier->burst_since_s = log_now_s();
        tier->burst_bytes = tier->n_burst = 0;
    }
    tier->burst_bytes += layer->n_bytes;
    tier->n_burst++;
    for (uint32_t i = 0; i < layer->n_part; i++) {
        copy->ticket =
            backend->ops->fetch(backend, to, source[i], layer->part_bytes[i], after, lane);
        part[i] = to;
        to += part_stride(layer, i);
    }
    return (struct ready){key.expert, copy->ticket, lane == COPY_AHEAD,
                          expert_layer_view(layer, part)};
}

static uint32_t class_of_slot(const struct device_tier *tier, int32_t index)
{
    uint32_t i = 0;
    for (int32_t first = 0; index >= first + (int32_t)tier->classes.class[i].n_slot; i++)
        first += (int32_t)tier->classes.class[i].n_slot;
    return i;
}

static struct expert_view slot_view(const struct device_tier *tier, uint32_t il, int32_t index)
{
    const struct expert_layer *layer = layer_of(tier, il);
    const void *part[EXPERT_PART_MAX] = {NULL};
    const uint8_t *at = tier->slot[index].memory;
    for (uint32_t i = 0; i < layer->n_part; i++) {
        part[i] = at;
        at += part_stride(layer, i);
    }
    return expert_layer_view(layer, part);
}

/* An expert has lost its slot. */
static void end_residence(struct device_tier *tier, struct expert_key key)
{
    note_place(tier, key);
    tell_pager(tier, key);
    tier->stats.n_lost +=
        tier->stats.exclusive && !expert_pager_is_resident(tier->config.pager, key);
}

/* The visit reads the slot. */
static void pin_slot(struct device_tier *tier, int32_t index)
{
    expert_cache_pin(tier->cache, index);
    tier->pinned[tier->n_pinned++] = index;
}

/* Whether it lies where keys and values are. */
static bool is_in_kv(const struct device_tier *tier, const struct slot *slot)
{
    return tier->config.pool && slot->memory >= tier->config.pool &&
           slot->memory < tier->config.pool + tier->stats.kv_bytes;
}

/* Whether what would leave for another expert of the class is still on its way back. */
static bool is_too_soon(const struct device_tier *tier, uint32_t class_index)
{
    uint32_t n_back = 0;
    for (size_t i = 0; i < tier->n_back; i++)
        n_back += tier->class_of[tier->back[i].key.layer] == class_index;
    return n_back && !expert_cache_n_free(tier->cache, class_index) &&
           expert_cache_n_transient(tier->cache, class_index) == n_back;
}

/* Takes a slot for an expert that the pager lends, and begins to copy it there. False: there is
 * none now, or the pager does not have it. */
static bool copy_to_slot(struct device_tier *tier, struct expert_key key, enum place_kind kind,
                         struct ready *out)
{
    struct expert_view from;
    if (tier->n_copy == tier->copy_max || is_too_soon(tier, tier->class_of[key.layer]))
        return false;
    const struct cache_placement placement = expert_cache_place(tier->cache, key, kind);
    if (placement.slot == NO_SLOT) return false;
    if (placement.evicts) end_residence(tier, placement.victim);
    struct slot *slot = &tier->slot[placement.slot];
    assert(!slot->ticket);
    assert(!is_in_kv(tier, slot));
    if (!expert_pager_hold(tier->config.pager, key, &from)) {
        expert_cache_drop(tier->cache, key);
        return false;
    }
    const bool ahead = kind == PLACE_ADMISSION || kind == PLACE_SPECULATIVE;
    *out = copy_expert(tier, key, &from, slot->memory, 0, ahead ? COPY_AHEAD : COPY_DEMAND);
    tier->copy[tier->n_copy - 1].slot = placement.slot;
    slot->ticket = out->ticket;
    slot->in_background = ahead;
    slot->predicted = kind == PLACE_SPECULATIVE;
    tier->n_in_background += ahead;
    return true;
}

/* Whether the step's share of the link has room for one more in the background. */
static bool has_background(const struct device_tier *tier, uint32_t layer)
{
    const double n_bytes = (double)(tier->behind_bytes + layer_of(tier, layer)->n_bytes);
    const double rate = tier->stats.copy_bytes_s;
    return !tier->behind_bytes || rate <= 0 || tier->step_s <= 0 ||
           n_bytes <= BACKGROUND_SHARE * tier->step_s * rate;
}

static void count_background(struct device_tier *tier, uint32_t layer)
{
    tier->behind_bytes += layer_of(tier, layer)->n_bytes;
    tier->stats.background_bytes += layer_of(tier, layer)->n_bytes;
}

/* Copies an expert that the pager lends into the room. False: the half is full. */
static bool copy_to_room(struct device_tier *tier, struct expert_key key, struct ready *out)
{
    struct half *half = &tier->half[tier->turn];
    struct expert_view from;
    if (half->n == tier->half_max || tier->n_copy == tier->copy_max) return false;
    if (!expert_pager_hold(tier->config.pager, key, &from)) return false;
    uint8_t *to = tier->room + (tier->turn * tier->half_max + half->n) * tier->unit_bytes;
    *out = copy_expert(tier, key, &from, to, half->mark, COPY_DEMAND);
    half->n++;
    return true;
}

/* ---- back --------------------------------------------------------------------------------- */

/* Begins to copy an expert into the pager's memory; its slot is held for it. */
static void begin_back(struct device_tier *tier, struct expert_key key,
                       void *const part[EXPERT_PART_MAX])
{
    struct backend *backend = tier->config.backend;
    const struct expert_layer *layer = layer_of(tier, key.layer);
    const int32_t index = expert_cache_find(tier->cache, key);
    const uint8_t *from = tier->slot[index].memory;
    struct back *back = &tier->back[tier->n_back++];
    *back = (struct back){.key = key};
    for (uint32_t i = 0; i < layer->n_part; i++) {
        back->ticket = backend->ops->write_back(backend, part[i], from, layer->part_bytes[i]);
        from += part_stride(layer, i);
    }
    expert_cache_pin(tier->cache, index);
}

static void end_back(struct device_tier *tier, size_t at, bool arrived)
{
    const struct expert_key key = tier->back[at].key;
    tier->back[at] = tier->back[--tier->n_back];
    expert_cache_unpin(tier->cache, expert_cache_find(tier->cache, key));
    expert_pager_end_offer(tier->config.pager, key, arrived);
    tell_pager(tier, key);
    tier->stats.n_written_back += arrived;
    tier->stats.written_back_bytes += arrived ? layer_of(tier, key.layer)->n_bytes : 0;
}

/* Behind a sync that went well: what had landed before it has the right bytes. Of a device that is
 * lost all copies seem to be done. */
static void reap_back(struct device_tier *tier)
{
    for (size_t i = tier->n_back; i-- > 0;)
        if (tier->back[i].landed) end_back(tier, i, true);
}

/* Sees to it that what goes next has been written back: of each class as many as a token may want
 * of a layer. */
static void write_back(struct device_tier *tier)
{
    if (!tier->stats.exclusive) return;
    for (uint32_t i = 0; i < tier->classes.n; i++) {
        const uint32_t quarter = tier->n_usable[i] / 4;
        const uint32_t n_used = tier->config.n_expert_used;
        const uint32_t n_leaving = n_used < quarter ? n_used : quarter;
        struct expert_key key;
        while (tier->n_back < BACK_COPIES_MAX &&
               expert_cache_n_free(tier->cache, i) + expert_cache_n_transient(tier->cache, i) <
                   n_leaving &&
               expert_cache_least(tier->cache, i, &key)) {
            void *part[EXPERT_PART_MAX];
            const enum expert_offer offer = expert_pager_offer(tier->config.pager, key, part);
            if (offer == OFFER_LATER) break;
            if (offer == OFFER_TAKEN) begin_back(tier, key, part);
            expert_cache_demote(tier->cache, key);
            tell_pager(tier, key);
        }
    }
}

/* ---- the layer behind --------------------------------------------------------------------- */

/* What was brought for a layer that did not come is overwritten. */
static void forget_ahead(struct device_tier *tier)
{
    if (tier->ahead_layer != UINT32_MAX) tier->half[tier->turn].n = 0;
    tier->ahead_layer = UINT32_MAX;
    tier->n_ahead = 0;
}

/* A step of many tokens needs nearly all experts of the layer behind: what fits of those that the
 * host has in memory follows the last of this one. */
static void look_ahead(struct device_tier *tier)
{
    const uint32_t next = tier->layer + 1;
    struct half *half = &tier->half[tier->turn];
    if (!tier->streams || next >= tier->config.layer_end || tier->class_of[next] == UINT32_MAX ||
        half->n)
        return;
    tier->ahead_layer = next;
    for (uint32_t ie = 0; ie < tier->config.n_expert && half->n < tier->half_max; ie++) {
        const struct expert_key key = {next, ie};
        if (expert_cache_find(tier->cache, key) != NO_SLOT) continue;
        if (tier->n_copy + tier->half_max >= tier->copy_max) return;
        if (expert_pager_hold_max(tier->config.pager, next) <= tier->n_copy) return;
        if (!expert_pager_is_resident(tier->config.pager, key)) continue;
        if (copy_to_slot(tier, key, PLACE_BACKGROUND, &tier->ahead[tier->n_ahead])) {
            tier->stats.n_preloaded++;
            tier->stats.background_bytes += layer_of(tier, next)->n_bytes;
        } else if (copy_to_room(tier, key, &tier->ahead[tier->n_ahead])) {
            tier->n_ahead++;
        }
    }
}

/* The copy of an expert that was brought ahead, or NULL. */
static const struct ready *find_ahead(const struct device_tier *tier, uint32_t il, uint32_t expert)
{
    for (size_t i = 0; il == tier->ahead_layer && i < tier->n_ahead; i++)
        if (tier->ahead[i].expert == expert) return &tier->ahead[i];
    return NULL;
}

/* ---- predictions -------------------------------------------------------------------------- */

static uint32_t n_class_slot(const struct device_tier *tier, uint32_t il)
{
    return tier->n_usable[tier->class_of[il]];
}

static bool is_worth_copying(const struct device_tier *tier, size_t rank, size_t n_before)
{
    return tier->config.prefetch == PREFETCH_ON ||
           speculation_pays(&tier->speculation, PREDICT_EARLY, rank, n_before);
}

bool device_tier_wants_prediction(const struct device_tier *tier, uint32_t layer)
{
    return tier->config.prefetch != PREFETCH_OFF && !tier->prefill && !tier->gathers &&
           layer >= tier->config.layer_begin && layer < tier->config.layer_end &&
           tier->class_of[layer] != UINT32_MAX &&
           expert_cache_n_resident(tier->cache, layer) < tier->config.n_expert &&
           is_worth_copying(tier, 0, 0);
}

static bool is_named(const struct prediction *prediction, uint32_t expert)
{
    for (size_t i = 0; i < prediction->n; i++)
        if (prediction->expert[i] == expert) return true;
    return false;
}

static void keep(struct device_tier *tier, int32_t index)
{
    expert_cache_pin(tier->cache, index);
    tier->kept[tier->n_kept++] = index;
}

/* What was predicted may go; what of it was brought and not chosen was brought in vain. */
static void end_prediction(struct device_tier *tier)
{
    const size_t first_brought = tier->n_kept - tier->n_brought;
    for (size_t i = 0; i < tier->n_kept; i++) {
        const struct slot *slot = &tier->slot[tier->kept[i]];
        expert_cache_unpin(tier->cache, tier->kept[i]);
        if (i >= first_brought)
            speculation_count(&tier->speculation, PREDICT_EARLY, slot->rank, !slot->predicted);
    }
    tier->n_kept = tier->n_brought = 0;
    tier->prediction.n = 0;
    tier->idle_since_s = 0;
}

/* The likeliest keep their slots until then, but enough are left for what this layer needs. */
void device_tier_predict(struct device_tier *tier, uint32_t layer, const int32_t *expert, size_t n)
{
    struct prediction *const prediction = &tier->prediction;
    const size_t n_kept_max = expert_ahead_reads(n_class_slot(tier, layer));
    end_prediction(tier);
    prediction->layer = layer;
    prediction->used = false;
    for (size_t i = 0; i < n; i++)
        if (!is_named(prediction, (uint32_t)expert[i]))
            prediction->expert[prediction->n++] = (uint32_t)expert[i];
    for (size_t i = 0; i < prediction->n && tier->n_kept < n_kept_max; i++) {
        const struct expert_key key = {layer, prediction->expert[i]};
        const int32_t index = expert_cache_find(tier->cache, key);
        if (index != NO_SLOT) keep(tier, index);
    }
}

/* How long the link will be busy with the copies under way; 0: not known. */
static double copies_s(const struct device_tier *tier)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < tier->n_copy; i++)
        n_bytes += layer_of(tier, tier->copy[i].key.layer)->n_bytes;
    return tier->stats.copy_bytes_s > 0 ? (double)n_bytes / tier->stats.copy_bytes_s : 0;
}

/* The visit's copies have been asked for, and the link may have time until the next. Nothing in the
 * background is waiting for it. */
static void bring_predicted(struct device_tier *tier)
{
    struct prediction *const prediction = &tier->prediction;
    struct expert_pager *const pager = tier->config.pager;
    struct ready unused;
    if (!prediction->n || prediction->used) return;
    prediction->used = true;
    reap(tier);
    tier->idle_since_s = log_now_s() + copies_s(tier);
    if (tier->n_in_background) return;
    for (size_t i = 0; i < prediction->n && tier->n_brought < PREDICTED_COPIES_MAX; i++) {
        const struct expert_key key = {prediction->layer, prediction->expert[i]};
        const size_t rank = i / tier->n_step_token;
        if (expert_cache_find(tier->cache, key) != NO_SLOT ||
            !expert_pager_is_resident(pager, key) || !is_worth_copying(tier, rank, tier->n_brought))
            continue;
        if (tier->n_copy >= expert_pager_hold_max(pager, key.layer) ||
            !has_background(tier, key.layer) ||
            !copy_to_slot(tier, key, PLACE_SPECULATIVE, &unused))
            return;
        const int32_t index = tier->copy[tier->n_copy - 1].slot;
        tier->slot[index].rank = rank;
        keep(tier, index);
        tier->n_brought++;
        tier->stats.prediction.n_read++;
        tier->stats.predicted_bytes += layer_of(tier, key.layer)->n_bytes;
        count_background(tier, key.layer);
    }
}

/* How well the layer that is requested was predicted. */
static void count_recall(struct device_tier *tier, const struct expert_demand *demand, size_t n)
{
    struct expert_pager_prediction *const stats = &tier->stats.prediction;
    const struct prediction *const prediction = &tier->prediction;
    if (!prediction->n || prediction->layer != tier->layer) return;
    stats->n_named += prediction->n;
    stats->n_chosen += n;
    for (size_t i = 0; i < n; i++)
        stats->n_recalled += is_named(prediction, demand[i].expert);
    if (tier->idle_since_s <= 0) return;
    const double gap_s = log_now_s() - tier->idle_since_s;
    speculation_measure_gap(&tier->speculation, PREDICT_EARLY, gap_s > 0 ? gap_s : NO_GAP_S);
}

static void count_use(struct device_tier *tier, struct slot *slot)
{
    if (!slot->predicted) return;
    slot->predicted = false;
    tier->stats.prediction.n_used++;
    tier->stats.prediction.n_in_time += !slot->ticket;
    tier->stats.useful_bytes += layer_of(tier, tier->layer)->n_bytes;
}

/* ---- requests ----------------------------------------------------------------------------- */

/* The end of a visit whose operations are done. */
static void end_visit(struct device_tier *tier)
{
    for (size_t i = 0; i < tier->n_pinned; i++)
        expert_cache_unpin(tier->cache, tier->pinned[i]);
    tier->n_pinned = tier->n_hit = tier->n_ready = 0;
    tier->group.n = tier->next = tier->n_link = 0;
    tier->pager_has_more = tier->lent_half = false;
    tier->cpu_since_s = 0;
    tier->link_ticket = 0;
    reap(tier);
}

/* Two rows for each expert, in the mean: the fewer there are, the more pays what decoding does. */
static bool needs_streaming(const struct device_tier *tier, uint32_t n_row)
{
    return (uint64_t)n_row * tier->config.n_expert_used >= 2 * (uint64_t)tier->config.n_expert;
}

/* ---- what is fastest ---------------------------------------------------------------------- */

void device_tier_end_step(struct device_tier *tier)
{
    const double step_s = log_now_s() - tier->step_since_s;
    if (!tier->prefill) tier->step_s += (step_s - tier->step_s) * (tier->step_s > 0 ? 1 / 16. : 1);
    mode_trial_end_step(&tier->trial, step_s);
}

/* ---- preload ------------------------------------------------------------------------------ */

static int hotter_first(const void *left, const void *right)
{
    const struct seed *a = left, *b = right;
    if (a->rate != b->rate) return a->rate > b->rate ? -1 : 1;
    if (a->key.layer != b->key.layer) return a->key.layer < b->key.layer ? -1 : 1;
    return a->key.expert < b->key.expert ? -1 : a->key.expert > b->key.expert;
}

static bool has_free_slots(const struct device_tier *tier)
{
    for (uint32_t i = 0; i < tier->classes.n; i++)
        if (expert_cache_n_free(tier->cache, i)) return true;
    return false;
}

/* Whether one more may be on its way on account of a profile or a prompt. */
static bool can_preload(const struct device_tier *tier, uint32_t layer)
{
    return tier->n_copy < PRELOAD_COPIES_MAX && tier->preloading_bytes < PRELOAD_BYTES_MAX &&
           tier->n_copy < expert_pager_hold_max(tier->config.pager, layer);
}

static void tell_preloaded(struct device_tier *tier)
{
    char bytes[24], rate[24];
    if (!tier->n_preloaded || tier->preload_is_told) return;
    tier->preload_is_told = true;
    log_info("%zu of the profile's experts, %s, copied to the device at %s/s", tier->n_preloaded,
             log_format_bytes(tier->preloaded_bytes, bytes),
             log_format_bytes((uint64_t)tier->stats.preload_bytes_s, rate));
}

/* What the device has of the profile makes room in memory for what follows. */
static void share_profile(struct device_tier *tier)
{
    if (tier->stats.exclusive && !tier->preload_is_told)
        expert_pager_preload_more(tier->config.pager);
}

/* Copies what the pager has by now of the profile's experts into free slots, the hottest first. */
static void go_on_preloading(struct device_tier *tier)
{
    struct ready unused;
    if (tier->n_seed && !tier->n_preloading && !has_free_slots(tier)) {
        share_profile(tier);
        tier->n_seed = 0; /* from here on it is use that counts */
        tell_preloaded(tier);
    }
    for (size_t i = 0; i < tier->n_seed; i++) {
        const struct expert_key key = tier->seed[i].key;
        if (!expert_cache_n_free(tier->cache, tier->class_of[key.layer]) ||
            expert_cache_find(tier->cache, key) != NO_SLOT ||
            !expert_pager_is_resident(tier->config.pager, key))
            continue;
        if (!can_preload(tier, key.layer)) return;
        if (!copy_to_slot(tier, key, PLACE_ADMISSION, &unused)) continue;
        if (tier->preload_since_s <= 0) tier->preload_since_s = log_now_s();
        tier->copy[tier->n_copy - 1].preload = true;
        tier->n_preloading++;
        tier->preloading_bytes += layer_of(tier, key.layer)->n_bytes;
        tier->stats.n_preloaded++;
        tier->stats.background_bytes += layer_of(tier, key.layer)->n_bytes;
    }
    if (tier->n_seed && !tier->n_preloading) share_profile(tier);
}

/* The layer's hottest experts that the device lacks, after those that are listed. */
static void list_hottest(struct device_tier *tier, uint32_t il)
{
    const size_t first = tier->n_warm, n_max = 2 * (size_t)tier->config.n_expert_used;
    for (uint32_t ie = 0; ie < tier->config.n_expert; ie++) {
        const struct expert_key key = {il, ie};
        const struct seed seed = {key, expert_cache_heat(tier->cache, key)};
        if (seed.rate <= 0 || expert_cache_find(tier->cache, key) != NO_SLOT) continue;
        size_t at = tier->n_warm;
        if (at == first + n_max && tier->warm[at - 1].rate >= seed.rate) continue;
        if (at < first + n_max)
            tier->n_warm++;
        else
            at--;
        for (; at > first && tier->warm[at - 1].rate < seed.rate; at--)
            tier->warm[at] = tier->warm[at - 1];
        tier->warm[at] = seed;
    }
}

/* A prompt is over. */
static void begin_warming(struct device_tier *tier)
{
    tier->n_warm = tier->next_warm = 0;
    for (uint32_t i = 0; i < tier->classes.n; i++)
        tier->n_displaced[i] = 0;
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++)
        if (tier->class_of[il] != UINT32_MAX) list_hottest(tier, il);
    qsort(tier->warm, tier->n_warm, sizeof(*tier->warm), hotter_first);
}

/* Copies what is worth more than what it displaces. budget: within the step's share of the link. */
static void go_on_warming(struct device_tier *tier, bool budget)
{
    struct ready unused;
    write_back(tier);
    for (; tier->next_warm < tier->n_warm; tier->next_warm++) {
        const struct expert_key key = tier->warm[tier->next_warm].key;
        const uint32_t class_index = tier->class_of[key.layer];
        if (is_too_soon(tier, class_index)) return;
        const bool free = expert_cache_n_free(tier->cache, class_index);
        if (expert_cache_find(tier->cache, key) != NO_SLOT ||
            !expert_pager_is_resident(tier->config.pager, key) ||
            (!free && tier->n_displaced[class_index] >= n_class_slot(tier, key.layer) / WARM_SHARE))
            continue;
        if (!can_preload(tier, key.layer) || (budget && !has_background(tier, key.layer))) return;
        if (!copy_to_slot(tier, key, PLACE_ADMISSION, &unused)) continue;
        tier->n_displaced[class_index] += !free;
        tier->stats.n_warmed++;
        count_background(tier, key.layer);
    }
}

void device_tier_seed(struct device_tier *tier, struct expert_key key, float rate)
{
    if (tier->class_of[key.layer] == UINT32_MAX || tier->n_seed == tier->stats.n_expert) return;
    expert_cache_seed(tier->cache, key, rate);
    tier->seed[tier->n_seed++] = (struct seed){key, rate};
}

void device_tier_preload(struct device_tier *tier)
{
    qsort(tier->seed, tier->n_seed, sizeof(*tier->seed), hotter_first);
    go_on_preloading(tier);
}

bool device_tier_idle(struct device_tier *tier)
{
    reap(tier);
    go_on_preloading(tier);
    go_on_warming(tier, false);
    return tier->n_copy > 0;
}

/* ---- what keys and values leave ------------------------------------------------------------ */

/* The hottest of what is not there, for slots that are free now. */
static void seed_by_use(struct device_tier *tier)
{
    tier->n_seed = 0;
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++)
        for (uint32_t ie = 0; tier->class_of[il] != UINT32_MAX && ie < tier->config.n_expert;
             ie++) {
            const struct expert_key key = {il, ie};
            const float heat = expert_cache_heat(tier->cache, key);
            if (heat > 0 && expert_cache_find(tier->cache, key) == NO_SLOT)
                tier->seed[tier->n_seed++] = (struct seed){key, heat};
        }
    qsort(tier->seed, tier->n_seed, sizeof(*tier->seed), hotter_first);
}

/* Slots that the pool has room for from kv_bytes on: a number of the first of in_pool. */
static uint32_t slots_in_pool(const struct device_tier *tier, uint64_t kv_bytes)
{
    uint32_t n = 0;
    while (n < tier->n_in_pool_max &&
           tier->slot[tier->in_pool[n]].memory >= tier->config.pool + kv_bytes)
        n++;
    return n;
}

static void resize_class(struct device_tier *tier, uint32_t class_index, uint32_t n_slot)
{
    struct backend *backend = tier->config.backend;
    const size_t n_move = expert_cache_resize(tier->cache, class_index, n_slot, tier->moves);
    for (size_t i = 0; i < n_move; i++) {
        const struct cache_move *const move = &tier->moves[i];
        if (move->to == NO_SLOT) {
            end_residence(tier, move->key);
            continue;
        }
        note_place(tier, move->key);
        struct slot *const to = &tier->slot[move->to];
        const struct slot *const from = &tier->slot[move->from];
        to->predicted = from->predicted;
        to->rank = from->rank;
        backend->ops->copy(backend, to->memory, from->memory,
                           tier->classes.class[class_index].slot_bytes);
    }
}

enum lm_status device_tier_resize(struct device_tier *tier, uint64_t kv_bytes, struct lm_error *err)
{
    struct backend *backend = tier->config.backend;
    const uint32_t n_in_pool = slots_in_pool(tier, kv_bytes);
    uint32_t *const n_slot = tier->n_usable;
    assert(kv_bytes >= tier->config.kv_bytes);
    end_visit(tier);
    end_prediction(tier);
    forget_ahead(tier);
    for (size_t i = 0; i < tier->n_back; i++)
        backend->ops->await(backend, tier->back[i].ticket);
    enum lm_status status = drain(tier, err);
    if (status == LM_OK)
        reap_back(tier);
    else
        device_tier_abandon(tier);
    tell_preloaded(tier);
    tier->preload_is_told = true; /* what comes from here on is not the profile's */
    assert(!tier->n_copy && !tier->n_back);
    memcpy(n_slot, tier->n_in_arena, sizeof(tier->n_usable));
    for (uint32_t i = 0; i < n_in_pool; i++)
        n_slot[class_of_slot(tier, tier->in_pool[i])]++;
    tier->stats.n_slot = 0;
    tier->stats.slot_bytes = 0;
    for (uint32_t i = 0; i < tier->classes.n; i++) {
        resize_class(tier, i, n_slot[i]);
        tier->stats.n_slot += n_slot[i];
        tier->stats.slot_bytes += n_slot[i] * tier->classes.class[i].slot_bytes;
    }
    if (kv_bytes > tier->stats.kv_bytes)
        tier->stats.n_to_kv++;
    else
        tier->stats.n_to_experts++;
    tier->stats.kv_bytes = kv_bytes;
    seed_by_use(tier);
    if (status != LM_OK) return status;
    status = backend->ops->sync(backend, err);
    if (status != LM_OK) device_tier_abandon(tier);
    return status;
}

/* ---- steps -------------------------------------------------------------------------------- */

static size_t matrix_bytes(const struct weight *w)
{
    return w->n_row * w->row_bytes;
}

/* Bytes that gather_experts takes for an expert. */
static size_t gathered_bytes(const struct expert_layer *layer)
{
    return expert_room_bytes(matrix_bytes(&layer->gate), matrix_bytes(&layer->up),
                             matrix_bytes(&layer->down));
}

/* What the table says is what the device finds, and nothing else is on its way to the room. */
static void upload_table(struct device_tier *tier)
{
    struct backend *backend = tier->config.backend;
    for (size_t i = 0; i < tier->n_copy; i++)
        if (tier->copy[i].slot == NO_SLOT) backend->ops->await(backend, tier->copy[i].ticket);
    if (!tier->has_table) make_table(tier);
    if (tier->table_changed)
        backend->ops->upload(backend, tier->table, tier->host_table, tier->table_bytes);
    tier->table_changed = false;
}

/* Whether this step gathers: what it may need at once must fit into the room, and nothing else may
 * be on its way there. */
static void choose_gathering(struct device_tier *tier, uint32_t n_token)
{
    const uint64_t n_pair = (uint64_t)n_token * tier->config.n_expert_used;
    tier->gathers = tier->stats.mode == MISS_GPU && n_pair <= N_HALF * tier->half_max &&
                    expert_pager_has_all_pinned(tier->config.pager);
    tier->stats.gathers |= tier->gathers;
    if (tier->gathers) upload_table(tier);
}

void device_tier_go_on(struct device_tier *tier)
{
    if (tier->gathers) upload_table(tier); /* the step's counts have moved experts */
}

void device_tier_step(struct device_tier *tier, uint32_t n_token, bool prefill)
{
    end_visit(tier);
    end_prediction(tier); /* of a step that failed */
    speculation_fade(&tier->speculation);
    forget_ahead(tier);
    for (size_t i = 0; i < N_HALF; i++)
        tier->half[i] = (struct half){.n = 0};
    const bool prompt_is_over = tier->prefill && !(prefill && needs_streaming(tier, n_token));
    tier->prefill = prefill && needs_streaming(tier, n_token);
    tier->n_step_token = n_token;
    tier->n_admitted_step = 0;
    tier->behind_bytes = 0;
    expert_cache_advance(tier->cache, n_token, tier->prefill);
    go_on_preloading(tier);
    if (prompt_is_over) begin_warming(tier);
    if (!tier->prefill) go_on_warming(tier, true);
    if (tier->stats.asked == MISS_AUTO)
        tier->stats.mode = mode_trial_begin_step(&tier->trial, n_token, tier->prefill);
    choose_gathering(tier, n_token);
    tier->step_since_s = log_now_s();
}

bool device_tier_gathers(const struct device_tier *tier)
{
    return tier->gathers;
}

struct expert_gather_args device_tier_gather(const struct device_tier *tier, uint32_t layer)
{
    const struct expert_layer *experts = layer_of(tier, layer);
    uint8_t *const views_end = remote_of(tier, tier->table, tier->config.layer_end);
    return (struct expert_gather_args){
        .n_expert = tier->config.n_expert,
        .table = views_of(tier, tier->table, layer),
        .remote = remote_of(tier, tier->table, layer),
        .gate_bytes = matrix_bytes(&experts->gate),
        .up_bytes = matrix_bytes(&experts->up),
        .down_bytes = matrix_bytes(&experts->down),
        .room = tier->room,
        .n_room = (uint32_t)(N_HALF * tier->half_max * tier->unit_bytes / gathered_bytes(experts)),
        .view = (struct expert_view *)(void *)(views_end + (64 - (uintptr_t)views_end % 64)),
    };
}

bool device_tier_wants_cpu(const struct device_tier *tier, uint32_t n_row)
{
    return !needs_streaming(tier, n_row) && tier->stats.mode != MISS_GPU;
}

static void count_hit(struct device_tier *tier, struct expert_usage *usage)
{
    counts(tier)->n_hit++;
    counts(tier)->hit_bytes += layer_of(tier, tier->layer)->n_bytes;
    if (!usage) return;
    usage->n_lookup++;
    usage->n_hit++;
}

static void count_copy(struct device_tier *tier, bool begun)
{
    counts(tier)->n_copied++;
    counts(tier)->copied_bytes += begun ? layer_of(tier, tier->layer)->n_bytes : 0;
}

/* Looks an expert up. False: it is the pager's to lend. */
static bool look_up(struct device_tier *tier, const struct expert_demand *demand)
{
    const struct expert_key key = {tier->layer, demand->expert};
    const int32_t index = expert_cache_find(tier->cache, key);
    const struct ready *ahead = find_ahead(tier, tier->layer, demand->expert);
    if (ahead || index != NO_SLOT) expert_pager_count_use(tier->config.pager, key, demand->n_row);
    if (ahead) {
        tier->ready[tier->n_ready++] = *ahead;
        count_copy(tier, true);
        return true;
    }
    if (index == NO_SLOT) return false;
    struct slot *slot = &tier->slot[index];
    count_use(tier, slot);
    const struct ready found = {demand->expert, slot->ticket, slot->in_background,
                                slot_view(tier, tier->layer, index)};
    pin_slot(tier, index);
    tell_pager(tier, key); /* it may have been about to go */
    if (found.ticket) {
        tier->ready[tier->n_ready++] = found;
        count_copy(tier, false);
    } else {
        tier->hit[tier->n_hit++] = found;
        count_hit(tier, demand->usage);
    }
    return true;
}

void device_tier_request(struct device_tier *tier, uint32_t layer,
                         const struct expert_demand *demand, size_t n, uint32_t n_row)
{
    size_t n_missing = 0;
    reap_back(tier);
    end_visit(tier);
    if (tier->ahead_layer != layer) forget_ahead(tier);
    tier->layer = layer;
    tier->streams = needs_streaming(tier, n_row);
    tier->hits_lent = false;
    tier->n_admitted_layer = 0;
    counts(tier)->n_lookup += n;
    count_recall(tier, demand, n);
    for (size_t i = 0; i < n; i++)
        expert_cache_use(tier->cache, (struct expert_key){layer, demand[i].expert},
                         demand[i].n_row);
    for (size_t i = 0; i < n; i++)
        if (!look_up(tier, &demand[i])) tier->missing[n_missing++] = demand[i];
    end_prediction(tier);
    tier->ahead_layer = UINT32_MAX; /* what was chosen of it is ready, and keeps its place */
    tier->n_ahead = 0;
    tier->pager_has_more = true; /* at least it reads for the layer behind */
    expert_pager_request(tier->config.pager, layer, tier->missing, n_missing);
    if (!tier->streams) write_back(tier);
}

/* ---- lending ------------------------------------------------------------------------------ */

/* How many of n misses are copied rather than computed on the CPU. What rounding leaves is carried
 * to the next layers. */
static size_t share_of_link(struct device_tier *tier, size_t n)
{
    if (tier->streams || tier->stats.mode == MISS_GPU) return n;
    if (tier->stats.mode == MISS_CPU) return 0;
    tier->carry += (1 - tier->cpu_share) * (double)n;
    const size_t n_link = tier->carry < (double)n ? (size_t)tier->carry : n;
    tier->carry -= (double)n_link;
    return n_link;
}

/* The CPU is done with its share: if the copies are not, its share was too small. */
static void end_cpu(struct device_tier *tier)
{
    enum { SHARE_STEP = 64 };
    if (tier->cpu_since_s <= 0) return;
    const double cpu_s = log_now_s() - tier->cpu_since_s;
    counts(tier)->cpu_s += cpu_s;
    if (cpu_s > 0) {
        const double rate = (double)tier->cpu_bytes / cpu_s, old = tier->stats.cpu_bytes_s;
        tier->stats.cpu_bytes_s = old > 0 ? old + (rate - old) / 16 : rate;
    }
    if (tier->link_ticket && tier->stats.mode == MISS_HYBRID) {
        tier->cpu_share += (is_done(tier, tier->link_ticket) ? -1.0 : 1.0) / SHARE_STEP;
        if (tier->cpu_share < 0.05) tier->cpu_share = 0.05;
        if (tier->cpu_share > 0.95) tier->cpu_share = 0.95;
    }
    tier->cpu_since_s = 0;
    tier->link_ticket = 0;
}

/* The next experts that the pager can lend, the hottest first: those are copied. */
static enum lm_status next_group(struct device_tier *tier, struct lm_error *err)
{
    struct expert_pager *pager = tier->config.pager;
    enum lm_status status = LM_OK;
    reap(tier);
    if (tier->n_copy >= expert_pager_hold_max(pager, tier->layer) ||
        tier->n_copy + tier->config.n_expert > tier->copy_max)
        status = drain(tier, err);
    if (status == LM_OK) status = expert_pager_acquire(pager, &tier->group, err);
    if (status != LM_OK) return status;
    const size_t n = tier->group.n;
    tier->pager_has_more = n > 0;
    tier->next = 0;
    tier->n_link = share_of_link(tier, n);
    for (size_t i = 0; i < n; i++) {
        size_t at = i;
        const float heat =
            expert_cache_heat(tier->cache, (struct expert_key){tier->layer, tier->group.expert[i]});
        for (; at && !tier->streams; at--) {
            const struct expert_key before = {tier->layer, tier->group.expert[tier->order[at - 1]]};
            if (expert_cache_heat(tier->cache, before) >= heat) break;
            tier->order[at] = tier->order[at - 1];
        }
        tier->order[at] = (uint32_t)i;
    }
    return LM_OK;
}

/* Begins to copy an expert of the group. False: what has been copied must be lent first. */
static bool copy_next(struct device_tier *tier)
{
    const struct expert_key key = {tier->layer, tier->group.expert[tier->order[tier->next]]};
    const enum place_kind kind = tier->streams ? PLACE_BACKGROUND : PLACE_DEMAND;
    struct ready *ready = &tier->ready[tier->n_ready];
    if (copy_to_slot(tier, key, kind, ready)) {
        pin_slot(tier, expert_cache_find(tier->cache, key));
        tier->stats.n_preloaded += tier->streams;
    } else if (!copy_to_room(tier, key, ready)) {
        return false;
    }
    tier->link_ticket = ready->ticket;
    tier->n_ready++;
    tier->next++;
    count_copy(tier, true);
    return true;
}

/* Copies on demand end in the order in which they stand here, so that their last is awaited for
 * all; one in the background is awaited by itself. */
static struct device_group lend(struct device_tier *tier, const struct ready *from, size_t n)
{
    struct backend *backend = tier->config.backend;
    bool awaited = false;
    for (size_t i = n; i-- > 0;) {
        tier->lent_expert[i] = from[i].expert;
        tier->lent_view[i] = from[i].view;
        if (!from[i].ticket || (awaited && !from[i].in_background)) continue;
        backend->ops->await(backend, from[i].ticket);
        awaited |= !from[i].in_background;
    }
    return (struct device_group){n, false, tier->lent_expert, tier->lent_view};
}

/* Lends what has been copied. The next copies go to the other half. */
static struct device_group lend_ready(struct device_tier *tier)
{
    const struct device_group group = lend(tier, tier->ready, tier->n_ready);
    tier->n_ready = 0;
    if (tier->half[tier->turn].n) {
        tier->lent_half = true;
        tier->turn = (tier->turn + 1) % N_HALF;
        tier->half[tier->turn].n = 0;
    }
    return group;
}

/* The operations on what was lent have been called. */
static void end_lending(struct device_tier *tier)
{
    struct backend *backend = tier->config.backend;
    end_cpu(tier);
    if (tier->lent_half) tier->half[(tier->turn + 1) % N_HALF].mark = backend->ops->mark(backend);
    tier->lent_half = false;
}

/* Computed on the CPU now; and copied, if it is worth a slot, for later. */
static void admit(struct device_tier *tier, struct expert_key key)
{
    struct ready unused;
    const uint32_t n_layer = tier->config.layer_end - tier->config.layer_begin;
    const size_t step_max = (size_t)n_layer * tier->config.n_expert_used / ADMIT_SHARE + 1;
    if (tier->n_admitted_layer == ADMIT_PER_LAYER || tier->n_admitted_step >= step_max ||
        tier->n_in_background >= AHEAD_COPIES_MAX || !has_background(tier, key.layer) ||
        tier->n_copy >= expert_pager_hold_max(tier->config.pager, key.layer) ||
        !copy_to_slot(tier, key, PLACE_ADMISSION, &unused))
        return;
    tier->n_admitted_layer++;
    tier->n_admitted_step++;
    tier->stats.n_admitted++;
    count_background(tier, key.layer);
}

/* Lends what is left of the pager's group to the CPU. */
static struct device_group lend_to_cpu(struct device_tier *tier)
{
    const size_t first = tier->next, n = tier->group.n - first;
    const uint64_t expert_bytes = layer_of(tier, tier->layer)->n_bytes;
    for (size_t i = 0; i < n; i++) {
        const uint32_t at = tier->order[first + i];
        tier->lent_expert[i] = tier->group.expert[at];
        tier->lent_view[i] = tier->group.view[at];
        admit(tier, (struct expert_key){tier->layer, tier->lent_expert[i]});
    }
    tier->next = tier->group.n;
    tier->cpu_since_s = log_now_s();
    tier->cpu_bytes = n * expert_bytes;
    counts(tier)->n_cpu += n;
    counts(tier)->cpu_bytes += n * expert_bytes;
    return (struct device_group){n, true, tier->lent_expert, tier->lent_view};
}

enum lm_status device_tier_acquire(struct device_tier *tier, struct device_group *out,
                                   struct lm_error *err)
{
    end_lending(tier);
    if (!tier->hits_lent) {
        tier->hits_lent = true;
        if (tier->n_hit) {
            *out = lend(tier, tier->hit, tier->n_hit);
            return LM_OK;
        }
    }
    for (;;) {
        const bool enough = tier->streams && tier->n_ready >= tier->half_max;
        if (tier->next == tier->group.n && !enough) {
            if (!tier->pager_has_more) break;
            const enum lm_status status = next_group(tier, err);
            if (status != LM_OK) return status;
            continue;
        }
        if (enough || (tier->next < tier->n_link && !copy_next(tier))) {
            const bool full = tier->half[tier->turn].n > 0; /* maybe of what was not chosen */
            *out = lend_ready(tier);
            if (out->n) return LM_OK;
            if (full) continue;
            return lm_fail(err, LM_E_FAIL, "layer %u: no room to copy an expert to", tier->layer);
        }
        if (tier->next < tier->n_link || tier->next == tier->group.n) continue;
        *out = lend_to_cpu(tier);
        return LM_OK;
    }
    if (tier->n_ready) {
        *out = lend_ready(tier);
        return LM_OK;
    }
    look_ahead(tier);
    bring_predicted(tier);
    *out = (struct device_group){.n = 0};
    return LM_OK;
}

/* Behind a step that gathered: what it did, and what that changes. */
void device_tier_count(struct device_tier *tier, uint32_t layer, const struct expert_demand *demand,
                       size_t n)
{
    const uint64_t expert_bytes = layer_of(tier, layer)->n_bytes;
    const uint8_t *remote = remote_of(tier, tier->host_table, layer);
    tier->layer = layer;
    tier->n_admitted_layer = 0;
    counts(tier)->n_lookup += n;
    for (size_t i = 0; i < n; i++) {
        const struct expert_key key = {layer, demand[i].expert};
        const int32_t index = expert_cache_find(tier->cache, key);
        if (index != NO_SLOT) count_use(tier, &tier->slot[index]);
        expert_cache_use(tier->cache, key, demand[i].n_row);
        expert_pager_count_use(tier->config.pager, key, demand[i].n_row);
        if (!remote[key.expert]) {
            count_hit(tier, demand[i].usage);
            continue;
        }
        counts(tier)->n_copied++;
        counts(tier)->copied_bytes += expert_bytes;
        if (expert_cache_find(tier->cache, key) == NO_SLOT) admit(tier, key);
    }
}

/* ---- reports ------------------------------------------------------------------------------ */

struct device_tier_stats device_tier_stats(const struct device_tier *tier)
{
    struct device_tier_stats stats = tier->stats;
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++)
        if (tier->class_of[il] != UINT32_MAX)
            stats.n_resident += expert_cache_n_resident(tier->cache, il);
    const struct expert_cache_stats cache = expert_cache_stats(tier->cache);
    stats.n_evicted = cache.n_evicted;
    stats.n_wasted = cache.n_speculative_wasted;
    stats.cpu_share = stats.mode == MISS_HYBRID ? tier->cpu_share : stats.mode == MISS_CPU;
    return stats;
}

bool device_tier_is_resident(const struct device_tier *tier, struct expert_key key)
{
    return expert_cache_find(tier->cache, key) != NO_SLOT;
}

/* ---- life --------------------------------------------------------------------------------- */

static enum lm_status create_tables(struct device_tier *tier, struct lm_error *err)
{
    const size_t n = tier->config.n_expert;
    tier->copy_max = 4 * n;
    tier->copy = calloc(tier->copy_max, sizeof(*tier->copy));
    tier->order = calloc(n, sizeof(*tier->order));
    tier->missing = calloc(n, sizeof(*tier->missing));
    tier->pinned = calloc(n, sizeof(*tier->pinned));
    tier->hit = calloc(n, sizeof(*tier->hit));
    tier->ready = calloc(n, sizeof(*tier->ready));
    tier->ahead = calloc(tier->half_max, sizeof(*tier->ahead));
    tier->prediction.expert = calloc(n, sizeof(*tier->prediction.expert));
    tier->kept = calloc(n, sizeof(*tier->kept));
    tier->lent_expert = calloc(n, sizeof(*tier->lent_expert));
    tier->lent_view = calloc(n, sizeof(*tier->lent_view));
    tier->seed = calloc(tier->stats.n_expert + 1, sizeof(*tier->seed));
    const size_t n_layer = tier->config.layer_end - tier->config.layer_begin;
    tier->warm = calloc(2 * n_layer * tier->config.n_expert_used + 1, sizeof(*tier->warm));
    if (tier->copy && tier->order && tier->missing && tier->pinned && tier->hit && tier->ready &&
        tier->ahead && tier->prediction.expert && tier->kept && tier->lent_expert &&
        tier->lent_view && tier->seed && tier->warm)
        return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "device tier: no memory for %zu experts", n);
}

static enum lm_status create_cache(struct device_tier *tier, struct lm_error *err)
{
    uint32_t slot_of_class[SLOT_CLASS_MAX];
    for (uint32_t i = 0; i < tier->classes.n; i++)
        slot_of_class[i] = tier->classes.class[i].n_slot;
    const struct expert_cache_config config = {.n_layer = tier->config.layer_end,
                                               .n_expert = tier->config.n_expert,
                                               .class_of = tier->class_of,
                                               .slot_of_class = slot_of_class,
                                               .n_class = tier->classes.n,
                                               .floor = tier->config.n_expert_used,
                                               .policy = tier->config.policy};
    return expert_cache_create(&tier->cache, &config, err);
}

/* Where the slots are: those of the arena class after class; those of the pool from its end on,
 * each time one of the class that has got the smallest part of its own, so that wherever the pool
 * ends all classes have their share. */
static void lay_out(struct device_tier *tier)
{
    const struct slot_classes *const classes = &tier->classes;
    uint8_t *at = tier->arena;
    uint8_t *end = tier->n_in_pool_max ? tier->config.pool + tier->config.pool_bytes : NULL;
    uint32_t n_done[SLOT_CLASS_MAX], first[SLOT_CLASS_MAX];
    for (uint32_t i = 0, n = 0; i < classes->n; n += classes->class[i++].n_slot) {
        first[i] = n;
        n_done[i] = tier->n_in_arena[i];
        tier->n_usable[i] = classes->class[i].n_slot;
        for (uint32_t k = 0; k < n_done[i]; k++, at += classes->class[i].slot_bytes)
            tier->slot[n + k].memory = at;
    }
    for (uint32_t n = 0; n < tier->n_in_pool_max; n++) {
        uint32_t next = UINT32_MAX;
        double least = 1;
        for (uint32_t i = 0; i < classes->n; i++) {
            const uint32_t n_all = classes->class[i].n_slot - tier->n_in_arena[i];
            const double part = (double)(n_done[i] - tier->n_in_arena[i] + 1) / (n_all + 1);
            if (part >= least) continue;
            least = part;
            next = i;
        }
        end -= classes->class[next].slot_bytes;
        tier->in_pool[n] = (int32_t)(first[next] + n_done[next]++);
        tier->slot[tier->in_pool[n]].memory = end;
    }
}

static enum lm_status create_slots(struct device_tier *tier, struct lm_error *err)
{
    struct backend *backend = tier->config.backend;
    uint64_t arena_bytes = 0;
    tier->stats.n_slot = slot_classes_n_slot(&tier->classes);
    tier->stats.slot_bytes = slot_classes_bytes(&tier->classes);
    tier->stats.room_bytes = N_HALF * tier->half_max * tier->unit_bytes;
    tier->n_in_pool_max = tier->stats.n_slot;
    for (uint32_t i = 0; i < tier->classes.n; i++) {
        tier->n_in_pool_max -= tier->n_in_arena[i];
        arena_bytes += tier->n_in_arena[i] * tier->classes.class[i].slot_bytes;
    }
    tier->slot = calloc(tier->stats.n_slot, sizeof(*tier->slot));
    tier->moves = calloc(tier->stats.n_slot, sizeof(*tier->moves));
    tier->in_pool = calloc(tier->n_in_pool_max + 1, sizeof(*tier->in_pool));
    if (!tier->slot || !tier->moves || !tier->in_pool)
        return lm_fail(err, LM_E_NO_MEM, "device tier: no memory for %u slots", tier->stats.n_slot);
    tier->arena = backend->ops->alloc(backend, arena_bytes, err);
    if (!tier->arena) return LM_E_NO_MEM;
    tier->room = backend->ops->alloc(backend, tier->stats.room_bytes, err);
    if (!tier->room) return LM_E_NO_MEM;
    const size_t n_view =
        (tier->config.layer_end - tier->config.layer_begin) * (size_t)tier->config.n_expert;
    tier->table_bytes = n_view * (sizeof(struct expert_view) + 1);
    tier->host_table = calloc(1, tier->table_bytes);
    if (!tier->host_table)
        return lm_fail(err, LM_E_NO_MEM, "device tier: no memory for %zu bytes", tier->table_bytes);
    tier->table = backend->ops->alloc(
        backend, tier->table_bytes + tier->config.n_expert * sizeof(struct expert_view) + 64, err);
    if (!tier->table) return LM_E_NO_MEM;
    lay_out(tier);
    tier->stats.pool_bytes = tier->config.pool_bytes;
    tier->stats.kv_bytes = tier->config.kv_bytes;
    return LM_OK;
}

static void count_bank(struct device_tier *tier)
{
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++) {
        const struct expert_layer *layer = layer_of(tier, il);
        if (!layer->n_part) continue;
        tier->stats.n_expert += tier->config.n_expert;
        tier->stats.bank_bytes += layer->n_bytes * tier->config.n_expert;
    }
}

/* Memory that is not pinned would be written to with the host waiting. */
static bool shares(const struct expert_pager *pager)
{
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    return stats.pinned && stats.n_slot < stats.n_expert;
}

enum lm_status device_tier_create(struct device_tier **out, const struct device_tier_config *config,
                                  struct lm_error *err)
{
    struct device_tier *tier = calloc(1, sizeof(*tier));
    if (!tier) return lm_fail(err, LM_E_NO_MEM, "device tier: no memory");
    tier->config = *config;
    tier->stats.asked = config->miss;
    tier->stats.mode = config->miss == MISS_AUTO ? MISS_HYBRID : config->miss;
    mode_trial_init(&tier->trial);
    tier->stats.policy = config->policy->name;
    tier->cpu_share = 0.5;
    tier->stats.exclusive = !config->inclusive && shares(config->pager);
    tier->ahead_layer = UINT32_MAX;
    tier->half_max = half_of_room(config->n_expert, config->n_expert_used);
    tier->class_of = calloc(config->layer_end, sizeof(*tier->class_of));
    enum lm_status status = LM_OK;
    if (!tier->class_of) status = lm_fail(err, LM_E_NO_MEM, "device tier: no memory");
    if (status == LM_OK) {
        make_classes(&tier->classes, config->store, config->layer_begin, config->layer_end,
                     config->n_expert, config->n_slot, config->pool_bytes - config->kv_bytes,
                     tier->n_in_arena, tier->class_of);
        tier->unit_bytes = largest_slot(&tier->classes);
        count_bank(tier);
        status = create_tables(tier, err);
    }
    if (status == LM_OK) status = create_cache(tier, err);
    if (status == LM_OK) status = create_slots(tier, err);
    if (status != LM_OK) {
        device_tier_destroy(tier);
        return status;
    }
    *out = tier;
    return LM_OK;
}

static void drop(struct device_tier *tier, struct expert_key key)
{
    if (expert_cache_find(tier->cache, key) == NO_SLOT) return;
    expert_cache_drop(tier->cache, key);
    tell_pager(tier, key);
}

/* Of a device that has failed it is not known which copies it has made. Those under way end first:
 * one that came later than the next of its slot would be what is computed with. */
void device_tier_abandon(struct device_tier *tier)
{
    struct backend *backend = tier->config.backend;
    for (size_t i = 0; i < tier->n_copy; i++)
        backend->ops->await(backend, tier->copy[i].ticket);
    for (size_t i = 0; i < tier->n_back; i++)
        backend->ops->await(backend, tier->back[i].ticket);
    if (tier->n_copy + tier->n_back) backend->ops->sync(backend, NULL);
    tier->n_burst = 0;
    end_visit(tier);
    end_prediction(tier);
    forget_ahead(tier);
    while (tier->n_copy)
        end_copy(tier, tier->n_copy - 1);
    while (tier->n_back)
        end_back(tier, tier->n_back - 1, false);
    for (uint32_t il = tier->config.layer_begin; il < tier->config.layer_end; il++)
        for (uint32_t ie = 0; tier->class_of[il] != UINT32_MAX && ie < tier->config.n_expert; ie++)
            drop(tier, (struct expert_key){il, ie});
    tier->has_table = false; /* it is made anew */
}

void device_tier_destroy(struct device_tier *tier)
{
    if (!tier) return;
    struct backend *backend = tier->config.backend;
    if (tier->n_copy + tier->n_back) backend->ops->sync(backend, NULL); /* of the pager's memory */
    if (tier->table) backend->ops->free(backend, tier->table);
    if (tier->room) backend->ops->free(backend, tier->room);
    if (tier->arena) backend->ops->free(backend, tier->arena);
    expert_cache_destroy(tier->cache);
    free(tier->host_table);
    free(tier->in_pool);
    free(tier->moves);
    free(tier->slot);
    free(tier->warm);
    free(tier->seed);
    free(tier->lent_view);
    free(tier->lent_expert);
    free(tier->kept);
    free(tier->prediction.expert);
    free(tier->ahead);
    free(tier->ready);
    free(tier->hit);
    free(tier->pinned);
    free(tier->missing);
    free(tier->order);
    free(tier->copy);
    free(tier->class_of);
    free(tier);
}
