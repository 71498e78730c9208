/* Visits, reads and slots; which expert is in which slot is the cache's decision. */
#include "worker/pager/expert_pager.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proto/base/log.h"
#include "worker/pager/expert_cache.h"
#include "worker/pager/policy.h"
#include "worker/pager/slot_class.h"
#include "worker/pager/toucher.h"

struct slot {
    struct disk_read read;
    uint8_t *memory;
    struct expert_key key;
    const void *part[EXPERT_PART_MAX];
    uint32_t n_hold;
    bool reading, ready;
    bool arriving; /* from above */
    bool preload;
    bool ahead;      /* read for the layer behind, which has not run yet */
    bool speculated; /* and not used yet: */
    enum prediction_point point;
    size_t rank; /* at which it was named */
    enum read_priority priority;
};

/* What the layer behind will probably choose. */
struct prediction {
    uint32_t layer;
    uint32_t *expert; /* [n_expert] likeliest first */
    size_t n;         /* 0: there is none, or its layer has been requested */
    bool read;        /* what is worth it */
};

struct preload {
    struct expert_key key;
    float rate;
};

enum visit_state { VISIT_WAITING /* for a slot */, VISIT_READING, VISIT_READY, VISIT_OVER };

/* One expert of the current request. */
struct visit {
    uint32_t expert;
    int32_t slot; /* pinned for the visit unless WAITING or OVER */
    enum visit_state state;
    bool joined; /* a read that was not begun for it */
};

struct expert_pager {
    struct expert_pager_config config;
    struct slot_classes classes;
    uint32_t *class_of; /* [layer_end] */
    uint8_t *arena;
    uint64_t arena_bytes;
    struct toucher *toucher;
    struct slot *slot; /* [n_slot], class after class */
    struct expert_cache *cache;
    struct disk_reader *reader;
    uint32_t n_read;     /* slots being read: each is pinned for it */
    uint32_t n_held;     /* slots that are held: likewise, once */
    uint32_t n_arriving; /* likewise; */
    uint32_t n_class_arriving[SLOT_CLASS_MAX];
    struct expert_pager_above above; /* zero: nothing is */

    /* the current request */
    uint32_t layer;
    struct visit *visit; /* [n_expert] */
    size_t n_visit, n_waiting, n_reading, n_left;
    uint32_t *lent; /* [n_expert] visits lent by the last acquire */
    size_t n_lent;
    uint32_t *lent_expert;         /* [n_expert] */
    struct expert_view *lent_view; /* [n_expert] */
    struct lm_error failure;       /* of a read that the request needs */

    /* slots pinned for the layer behind, and the predictions for it */
    uint32_t ahead_layer;
    int32_t ahead_slot[EXPERT_AHEAD_MAX];
    size_t n_ahead;
    uint32_t ahead_next; /* expert to look at next */
    struct prediction prediction[PREDICT_POINT_COUNT];
    struct speculation speculation;
    double idle_since_s; /* nothing that the request needs was left to be read; 0: there is */
    double late_since_s; /* the late prediction was made */
    struct disk_reader_stats disk_before; /* the step */

    /* the profile's experts, hottest first */
    struct preload *preload;
    size_t n_preload, next_preload;
    size_t give_way[SLOT_CLASS_MAX]; /* preloads from here on have no read to take back */

    uint64_t n_token; /* so far */
    bool prefill;
    uint32_t n_step_token;
    double step_wait_s;
    struct expert_pager_counts (*counts)[2]; /* [layer_end] in decode, in prefill */
    struct expert_pager_stats stats;         /* but what is summed from the above */
    uint64_t *other_uses; /* [layer_end][n_expert] that the cache does not count: mapped, steps that
                           * chose it; else rows that did elsewhere */
    void (*on_change)(void *context); /* NULL: nobody watches */
    void *watcher;
};

static uint64_t align_up(uint64_t n)
{
    return (n + DISK_ALIGN - 1) / DISK_ALIGN * DISK_ALIGN;
}

/* A part of a GGUF file may begin anywhere in a disk block, so it gets one more. */
static uint64_t region_bytes(const struct expert_layer *layer, uint32_t part)
{
    static_assert(EXPERT_ALIGN % DISK_ALIGN == 0, "an aligned part is whole blocks");
    return align_up(layer->part_bytes[part]) + (layer->aligned ? 0 : DISK_ALIGN);
}

static uint64_t slot_bytes_of(const struct expert_layer *layer)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < layer->n_part; i++)
        n_bytes += region_bytes(layer, i);
    return n_bytes;
}

/* ---- classes ------------------------------------------------------------------------------ */

uint32_t expert_pager_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                 uint32_t layer_end, uint32_t n_expert, uint32_t n_slot)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      NULL);
    return slot_classes_n_slot(&classes);
}

uint64_t expert_pager_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                 uint32_t layer_end, uint32_t n_expert, uint32_t n_slot)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      NULL);
    return slot_classes_bytes(&classes);
}

uint32_t expert_pager_slots_for(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes)
{
    return slot_classes_fit(store, layer_begin, layer_end, n_expert, n_bytes, slot_bytes_of);
}

/* ---- reads -------------------------------------------------------------------------------- */

const struct expert_layer *expert_pager_layer(const struct expert_pager *pager, uint32_t il)
{
    return expert_store_layer(pager->config.store, il);
}

static struct expert_pager_counts *counts(struct expert_pager *pager)
{
    return &pager->counts[pager->layer][pager->prefill];
}

static void tell_watcher(const struct expert_pager *pager)
{
    if (pager->on_change) pager->on_change(pager->watcher);
}

/* Where the parts of an expert go in its slot. Nothing is there yet. */
static void lay_out(struct expert_pager *pager, int32_t index, struct expert_key key)
{
    struct slot *slot = &pager->slot[index];
    const struct expert_layer *layer = expert_pager_layer(pager, key.layer);
    uint8_t *region = slot->memory;
    assert(!slot->reading);
    slot->key = key;
    slot->ready = slot->preload = slot->speculated = slot->ahead = false;
    slot->read = (struct disk_read){.n_extent = layer->n_part, .owner = slot};
    expert_store_locate(pager->config.store, key, slot->read.extent);
    for (uint32_t i = 0; i < layer->n_part; i++) {
        slot->part[i] = region + slot->read.extent[i].offset % DISK_ALIGN;
        slot->read.to[i] = region + slot->read.extent[i].offset % DISK_ALIGN;
        region += region_bytes(layer, i);
    }
}

static void start_read(struct expert_pager *pager, int32_t index, struct expert_key key,
                       enum read_priority priority)
{
    struct slot *slot = &pager->slot[index];
    lay_out(pager, index, key);
    slot->reading = true;
    slot->priority = priority;
    slot->read.has_checksum = expert_store_checksum(pager->config.store, key, &slot->read.checksum);
    pager->n_read++;
    disk_reader_submit(pager->reader, &slot->read, priority);
}

static void promote(struct expert_pager *pager, struct slot *slot, enum read_priority priority)
{
    if (!slot->reading || slot->priority <= priority) return;
    slot->priority = priority;
    disk_reader_promote(pager->reader, &slot->read, priority);
}

/* A preload that has not begun gives way to what is needed, the coolest of the class first. */
static void give_way(struct expert_pager *pager, uint32_t class_index)
{
    for (size_t *i = &pager->give_way[class_index]; *i > 0; (*i)--) {
        const struct expert_key key = pager->preload[*i - 1].key;
        if (pager->class_of[key.layer] != class_index) continue;
        const int32_t index = expert_cache_find(pager->cache, key);
        if (index == EXPERT_NO_SLOT) continue;
        struct slot *slot = &pager->slot[index];
        if (!slot->reading || slot->priority != READ_BACKGROUND) continue;
        if (!disk_reader_cancel(pager->reader, &slot->read)) continue;
        slot->reading = false;
        pager->n_read--;
        expert_cache_unpin(pager->cache, index);
        expert_cache_drop(pager->cache, key);
        return;
    }
}

static void describe_failure(const struct expert_pager *pager, const struct slot *slot,
                             struct lm_error *err)
{
    const struct disk_read *read = &slot->read;
    const struct expert_extent *extent = &read->extent[read->failed_extent];
    const struct expert_file file = expert_store_file(pager->config.store, extent->file);
    const unsigned layer = slot->key.layer, expert = slot->key.expert;
    switch (read->failure) {
    case READ_SHORT:
        lm_fail(
            err, LM_E_IO,
            "%s: layer %u, expert %u: the file ends before byte %llu: it was cut off or replaced "
            "while in use",
            file.path, layer, expert, (unsigned long long)(extent->offset + extent->n_bytes));
        break;
    case READ_CHANGED:
        lm_fail(err, LM_E_IO,
                "%s: layer %u, expert %u: another model was written over the file while in use",
                file.path, layer, expert);
        break;
    case READ_CHECKSUM:
        lm_fail(err, LM_E_IO, "%s: layer %u, expert %u: the checksum does not match", file.path,
                layer, expert);
        lm_hint(err, "the file is damaged: `lean pack --verify -o DIR` names all damaged experts");
        break;
    default:
        lm_fail(err, LM_E_IO, "%s: layer %u, expert %u: read of %llu bytes at %llu: %s", file.path,
                layer, expert, (unsigned long long)extent->n_bytes,
                (unsigned long long)extent->offset, strerror(read->os_error));
    }
}

/* The visit that waits for the slot, or NULL. */
static struct visit *find_visit(struct expert_pager *pager, int32_t index)
{
    for (size_t i = 0; i < pager->n_visit; i++)
        if (pager->visit[i].state == VISIT_READING && pager->visit[i].slot == index)
            return &pager->visit[i];
    return NULL;
}

static void release_ahead(struct expert_pager *pager, int32_t index)
{
    for (size_t i = 0; i < pager->n_ahead; i++) {
        if (pager->ahead_slot[i] != index) continue;
        expert_cache_unpin(pager->cache, index);
        pager->ahead_slot[i] = pager->ahead_slot[--pager->n_ahead];
        return;
    }
}

static void end_read(struct expert_pager *pager, struct slot *slot)
{
    const int32_t index = (int32_t)(slot - pager->slot);
    struct visit *visit = find_visit(pager, index);
    slot->reading = false;
    pager->n_read--;
    slot->ready = slot->read.failure == READ_OK;
    expert_cache_unpin(pager->cache, index); /* the read's own pin */
    if (visit) pager->n_reading--;
    if (slot->ready) {
        if (visit) visit->state = VISIT_READY;
        pager->stats.n_preloaded += slot->preload;
        return;
    }
    if (visit) {
        expert_cache_unpin(pager->cache, index);
        visit->state = visit->joined ? VISIT_WAITING : VISIT_OVER;
        if (visit->joined) /* what failed then may go well now */
            pager->n_waiting++;
        else if (pager->failure.status == LM_OK)
            describe_failure(pager, slot, &pager->failure);
    }
    release_ahead(pager, index);
    expert_cache_drop(pager->cache, slot->key); /* whoever needs it reads again */
}

static void count_wait(struct expert_pager *pager, double wait_s)
{
    counts(pager)->wait_s += wait_s;
    pager->step_wait_s += wait_s;
}

/* False: there was nothing to wait for. */
static bool reap(struct expert_pager *pager, bool wait)
{
    enum { REAP_MAX = 16 };
    struct disk_read *over[REAP_MAX];
    const double start_s = wait ? log_now_s() : 0;
    size_t n = disk_reader_reap(pager->reader, over, REAP_MAX, wait);
    const bool any = n > 0;
    if (wait) count_wait(pager, log_now_s() - start_s);
    while (n) {
        for (size_t i = 0; i < n; i++)
            end_read(pager, over[i]->owner);
        n = n == REAP_MAX ? disk_reader_reap(pager->reader, over, REAP_MAX, false) : 0;
    }
    return any;
}

/* ---- the layer behind --------------------------------------------------------------------- */

static bool is_named(const struct prediction *prediction, uint32_t expert)
{
    for (size_t i = 0; i < prediction->n; i++)
        if (prediction->expert[i] == expert) return true;
    return false;
}

/* Takes back a read on a prediction that has not begun; its slot becomes free. */
static bool take_back(struct expert_pager *pager, int32_t index)
{
    struct slot *slot = &pager->slot[index];
    if (!slot->speculated || !slot->reading || slot->priority != READ_SPECULATIVE ||
        !disk_reader_cancel(pager->reader, &slot->read))
        return false;
    slot->reading = slot->speculated = slot->ahead = false;
    pager->n_read--;
    expert_cache_drop(pager->cache, slot->key);
    return true;
}

/* Takes back what is not named again. Returns how many reads on predictions are under way. */
static size_t take_back_unnamed(struct expert_pager *pager, const struct prediction *prediction)
{
    size_t n_reading = 0;
    for (size_t i = pager->n_ahead; i-- > 0;) {
        const struct slot *slot = &pager->slot[pager->ahead_slot[i]];
        if (!is_named(prediction, slot->key.expert) && take_back(pager, pager->ahead_slot[i]))
            pager->ahead_slot[i] = pager->ahead_slot[--pager->n_ahead];
        else
            n_reading += slot->reading;
    }
    return n_reading;
}

/* The router has run, and a read on a prediction is not taken back any more. */
static void settle(struct expert_pager *pager, const struct slot *slot, bool chosen)
{
    pager->stats.prediction[slot->point].n_read++;
    pager->stats.speculated_bytes += expert_pager_layer(pager, slot->key.layer)->n_bytes;
    speculation_count(&pager->speculation, slot->point, slot->rank, chosen);
}

/* What was read ahead is no longer held; what was not chosen of it and has not begun is taken back.
 */
static void forget_ahead(struct expert_pager *pager)
{
    for (size_t i = 0; i < pager->n_ahead; i++) {
        struct slot *slot = &pager->slot[pager->ahead_slot[i]];
        slot->ahead = false;
        if (take_back(pager, pager->ahead_slot[i])) continue;
        if (slot->speculated) settle(pager, slot, false);
        expert_cache_unpin(pager->cache, pager->ahead_slot[i]);
    }
    pager->n_ahead = 0;
    pager->ahead_next = 0;
}

/* Reads an expert of the layer behind and holds it until that layer is reached. */
static bool read_ahead(struct expert_pager *pager, uint32_t expert, enum place_kind kind)
{
    const struct expert_key key = {pager->ahead_layer, expert};
    const int32_t index = expert_cache_place(pager->cache, key, kind).slot;
    if (index == EXPERT_NO_SLOT) return false;
    start_read(pager, index, key, READ_SPECULATIVE);
    pager->slot[index].speculated = kind == PLACE_SPECULATIVE;
    pager->slot[index].ahead = true;
    expert_cache_pin(pager->cache, index);
    pager->ahead_slot[pager->n_ahead++] = index;
    return true;
}

static uint32_t n_class_slot(const struct expert_pager *pager, uint32_t il)
{
    return pager->classes.class[pager->class_of[il]].n_slot;
}

static bool is_elsewhere(const struct expert_pager *pager, struct expert_key key)
{
    return pager->above.has && pager->above.has(pager->above.context, key);
}

/* A step of many tokens will need nearly all experts of every layer. */
static void read_layer_ahead(struct expert_pager *pager)
{
    const uint32_t il = pager->ahead_layer;
    const size_t limit = expert_ahead_reads(n_class_slot(pager, il));
    while (pager->n_ahead < limit && pager->ahead_next < pager->config.n_expert) {
        const struct expert_key key = {il, pager->ahead_next};
        if (expert_cache_find(pager->cache, key) == EXPERT_NO_SLOT && !is_elsewhere(pager, key) &&
            !read_ahead(pager, key.expert, PLACE_DEMAND))
            return;
        pager->ahead_next++;
    }
}

static bool is_worth_reading(const struct expert_pager *pager, enum prediction_point point,
                             size_t rank, size_t n_before)
{
    static const size_t fixed[PREDICT_POINT_COUNT] = {[PREDICT_EARLY] = 1, [PREDICT_LATE] = 4};
    return pager->config.prefetch == PREFETCH_ON
               ? n_before < fixed[point]
               : speculation_pays(&pager->speculation, point, rank, n_before);
}

/* n_before: reads on predictions that are under way. */
static void read_predicted(struct expert_pager *pager, enum prediction_point point, size_t n_before)
{
    struct prediction *prediction = &pager->prediction[point];
    const size_t limit = expert_ahead_reads(n_class_slot(pager, pager->ahead_layer));
    prediction->read = true;
    for (size_t i = 0; i < prediction->n; i++) {
        const struct expert_key key = {pager->ahead_layer, prediction->expert[i]};
        const size_t rank = i / pager->n_step_token;
        if (expert_cache_find(pager->cache, key) != EXPERT_NO_SLOT || is_elsewhere(pager, key))
            continue;
        if (!is_worth_reading(pager, point, rank, n_before)) continue;
        if (pager->n_ahead >= limit || !read_ahead(pager, key.expert, PLACE_SPECULATIVE)) return;
        struct slot *slot = &pager->slot[pager->ahead_slot[pager->n_ahead - 1]];
        slot->point = point;
        slot->rank = rank;
        n_before++;
    }
}

/* When all that this request needs has been given to the disk, the layer behind may follow. */
static void look_ahead(struct expert_pager *pager)
{
    const uint32_t next = pager->layer + 1;
    const struct prediction *early = &pager->prediction[PREDICT_EARLY];
    if (pager->n_waiting || next >= pager->config.layer_end || pager->class_of[next] == UINT32_MAX)
        return;
    pager->ahead_layer = next;
    const uint64_t n_choice = (uint64_t)pager->n_step_token * pager->config.n_expert_used;
    if (pager->prefill && n_choice >= 2 * (uint64_t)pager->config.n_expert)
        read_layer_ahead(pager);
    else if (early->layer == next && !early->read)
        read_predicted(pager, PREDICT_EARLY, 0);
}

/* More is known than when the prediction was made. */
static void end_gap(struct expert_pager *pager, enum prediction_point point, double since_s)
{
    if (pager->prediction[point].n && since_s > 0)
        speculation_measure_gap(&pager->speculation, point, log_now_s() - since_s);
}

static void measure_reads(struct expert_pager *pager)
{
    const struct disk_reader_stats before = pager->disk_before;
    uint64_t n_read = 0;
    pager->disk_before = disk_reader_stats(pager->reader);
    for (int i = 0; i < READ_PRIORITY_COUNT; i++)
        n_read += pager->disk_before.n_read[i] - before.n_read[i];
    if (!pager->prefill)
        speculation_measure_reads(&pager->speculation, pager->disk_before.busy_s - before.busy_s,
                                  n_read);
}

/* How well the request was predicted. */
static void count_recall(struct expert_pager *pager, const struct expert_demand *demand, size_t n)
{
    struct expert_pager_stats *stats = &pager->stats;
    bool last = true; /* of the predictions that there are */
    for (int point = PREDICT_POINT_COUNT; point-- > 0;) {
        struct prediction *prediction = &pager->prediction[point];
        uint64_t n_recalled = 0;
        if (prediction->layer != pager->layer || !prediction->n) continue;
        for (size_t i = 0; i < n; i++)
            n_recalled += is_named(prediction, demand[i].expert);
        stats->prediction[point].n_named += prediction->n;
        stats->prediction[point].n_chosen += n;
        stats->prediction[point].n_recalled += n_recalled;
        stats->n_predicted += last ? prediction->n : 0;
        stats->n_chosen += last ? n : 0;
        stats->n_recalled += last ? n_recalled : 0;
        prediction->n = 0;
        last = false;
    }
}

/* ---- preload ------------------------------------------------------------------------------ */

/* Queues the profile's experts while there are free slots. */
static void go_on_preloading(struct expert_pager *pager)
{
    while (pager->next_preload < pager->n_preload) {
        const struct expert_key key = pager->preload[pager->next_preload++].key;
        if (expert_cache_find(pager->cache, key) != EXPERT_NO_SLOT) continue;
        if (pager->above.exclusive && is_elsewhere(pager, key)) continue;
        const int32_t index = expert_cache_place(pager->cache, key, PLACE_BACKGROUND).slot;
        if (index == EXPERT_NO_SLOT) continue; /* its class is full */
        start_read(pager, index, key, READ_BACKGROUND);
        pager->slot[index].preload = true;
    }
}

/* Where there is a slot for every expert that a device copies, all of them are read some day: then
 * it is better done at once, behind what is needed and what a profile names. */
static void preload_rest(struct expert_pager *pager)
{
    if (!pager->cache || !pager->config.device || pager->stats.n_slot < pager->stats.n_expert)
        return;
    pager->n_preload = pager->next_preload = 0;
    for (uint32_t il = pager->config.layer_begin; il < pager->config.layer_end; il++)
        for (uint32_t ie = 0; pager->class_of[il] != UINT32_MAX && ie < pager->config.n_expert;
             ie++)
            pager->preload[pager->n_preload++] = (struct preload){.key = {il, ie}};
    for (uint32_t i = 0; i < pager->classes.n; i++)
        pager->give_way[i] = pager->n_preload;
    go_on_preloading(pager);
}

static int hotter_first(const void *left, const void *right)
{
    const struct preload *a = left, *b = right;
    if (a->rate != b->rate) return a->rate > b->rate ? -1 : 1;
    if (a->key.layer != b->key.layer) return a->key.layer < b->key.layer ? -1 : 1;
    return a->key.expert < b->key.expert ? -1 : a->key.expert > b->key.expert;
}

void expert_pager_seed(struct expert_pager *pager, struct expert_key key, float rate)
{
    if (key.layer >= pager->config.layer_end || !expert_pager_layer(pager, key.layer)->n_part)
        return;
    if (pager->above.seed) pager->above.seed(pager->above.context, key, rate);
    if (!pager->cache) return;
    expert_cache_seed(pager->cache, key, rate);
    pager->preload[pager->n_preload++] = (struct preload){key, rate};
}

void expert_pager_preload(struct expert_pager *pager)
{
    if (pager->cache) {
        qsort(pager->preload, pager->n_preload, sizeof(*pager->preload), hotter_first);
        for (uint32_t i = 0; i < pager->classes.n; i++)
            pager->give_way[i] = pager->n_preload;
        go_on_preloading(pager);
        preload_rest(pager);
    }
    if (pager->above.preload) pager->above.preload(pager->above.context);
}

bool expert_pager_idle(struct expert_pager *pager)
{
    if (!pager->cache) return false;
    reap(pager, false);
    if (!pager->n_token && !pager->n_preload) preload_rest(pager); /* there is no profile */
    go_on_preloading(pager);
    return pager->n_read > 0;
}

static uint64_t *other_uses(const struct expert_pager *pager, struct expert_key key)
{
    return &pager->other_uses[key.layer * (size_t)pager->config.n_expert + key.expert];
}

void expert_pager_count_use(struct expert_pager *pager, struct expert_key key, uint32_t n_row)
{
    if (pager->above.exclusive)
        expert_cache_use(pager->cache, key, n_row);
    else
        *other_uses(pager, key) += pager->cache ? n_row : 1;
}

uint64_t expert_pager_n_token(const struct expert_pager *pager)
{
    return pager->n_token;
}

uint64_t expert_pager_uses(const struct expert_pager *pager, struct expert_key key)
{
    return pager->cache ? expert_cache_uses(pager->cache, key) + *other_uses(pager, key) : 0;
}

/* ---- requests ----------------------------------------------------------------------------- */

static void release_lent(struct expert_pager *pager)
{
    for (size_t i = 0; i < pager->n_lent && pager->cache; i++)
        expert_cache_unpin(pager->cache, pager->visit[pager->lent[i]].slot);
    pager->n_lent = 0;
}

/* Ends the request: whatever is still being read stays, and nobody waits for it. */
static void end_request(struct expert_pager *pager)
{
    release_lent(pager);
    for (size_t i = 0; i < pager->n_visit && pager->cache; i++)
        if (pager->visit[i].state == VISIT_READING || pager->visit[i].state == VISIT_READY)
            expert_cache_unpin(pager->cache, pager->visit[i].slot);
    pager->n_visit = pager->n_waiting = pager->n_reading = pager->n_left = 0;
    pager->failure.status = LM_OK;
}

void expert_pager_step(struct expert_pager *pager, uint32_t n_token, bool prefill)
{
    end_request(pager);
    if (pager->cache) reap(pager, false);
    if (pager->cache) measure_reads(pager);
    pager->prefill = prefill;
    pager->n_step_token = n_token;
    pager->step_wait_s = 0;
    if (!pager->n_token) preload_rest(pager); /* if there is no profile */
    pager->n_token += n_token;
    if (!pager->cache) return;
    forget_ahead(pager);
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) /* of a step that failed */
        pager->prediction[point].n = 0;
    pager->idle_since_s = 0;
    /* Between steps, also behind one that failed, only what is on its way and who asked for it hold
     * slots. */
    assert(expert_cache_n_pinned(pager->cache) ==
           pager->n_read + pager->n_held + pager->n_arriving);
    expert_cache_advance(pager->cache, n_token, prefill);
    speculation_fade(&pager->speculation);
    disk_reader_set_shallow(pager->reader, !prefill);
}

double expert_pager_step_wait_s(const struct expert_pager *pager)
{
    return pager->step_wait_s;
}

enum found { FOUND_RESIDENT, FOUND_IN_TIME, FOUND_COMING, FOUND_NOT };

/* How an expert was found, in the layer's counts and in those of the sequence that pays for it. */
static void count_lookup(struct expert_pager *pager, enum found found, struct expert_usage *usage)
{
    struct expert_pager_counts *layer = counts(pager);
    const uint64_t n_bytes =
        found == FOUND_NOT ? expert_pager_layer(pager, pager->layer)->n_bytes : 0;
    layer->n_hit += found == FOUND_RESIDENT;
    layer->n_joined += found == FOUND_IN_TIME || found == FOUND_COMING;
    layer->n_in_time += found == FOUND_IN_TIME;
    layer->n_miss += found == FOUND_NOT;
    layer->miss_bytes += n_bytes;
    if (!usage) return;
    usage->n_lookup++;
    usage->n_hit += found == FOUND_RESIDENT;
    usage->n_joined += found == FOUND_IN_TIME || found == FOUND_COMING;
    usage->n_miss += found == FOUND_NOT;
    usage->miss_bytes += n_bytes;
}

/* An expert that was read on a prediction is chosen. */
static void count_use(struct expert_pager *pager, struct slot *slot)
{
    struct expert_pager_prediction *prediction = &pager->stats.prediction[slot->point];
    slot->speculated = false;
    prediction->n_used++;
    prediction->n_in_time += slot->ready;
    pager->stats.useful_bytes += expert_pager_layer(pager, slot->key.layer)->n_bytes;
    if (slot->ahead) settle(pager, slot, true);
}

/* Looks one expert up. What is there, or on its way, is held for the visit. */
static void begin_visit(struct expert_pager *pager, struct visit *visit, struct expert_usage *usage)
{
    const struct expert_key key = {pager->layer, visit->expert};
    const int32_t index = expert_cache_find(pager->cache, key);
    if (index == EXPERT_NO_SLOT) {
        visit->state = VISIT_WAITING;
        pager->n_waiting++;
        count_lookup(pager, FOUND_NOT, usage);
        return;
    }
    struct slot *slot = &pager->slot[index];
    assert(!slot->arriving);
    expert_cache_pin(pager->cache, index);
    visit->slot = index;
    if (slot->speculated) count_use(pager, slot);
    count_lookup(pager,
                 !slot->ready  ? FOUND_COMING
                 : slot->ahead ? FOUND_IN_TIME
                               : FOUND_RESIDENT,
                 usage);
    if (slot->ready) {
        visit->state = VISIT_READY;
    } else {
        visit->state = VISIT_READING;
        visit->joined = true;
        pager->n_reading++;
        promote(pager, slot, READ_DEMAND);
    }
}

/* Gives slots to what waits for one, and reads. */
static void start_waiting(struct expert_pager *pager)
{
    const uint32_t class_index = pager->class_of[pager->layer];
    const size_t limit =
        pager->prefill ? expert_prefill_reads(n_class_slot(pager, pager->layer)) : SIZE_MAX;
    for (size_t i = 0; i < pager->n_visit && pager->n_waiting; i++) {
        struct visit *visit = &pager->visit[i];
        const struct expert_key key = {pager->layer, visit->expert};
        if (visit->state != VISIT_WAITING) continue;
        if (pager->n_reading >= limit) return;
        if (!expert_cache_n_free(pager->cache, class_index)) give_way(pager, class_index);
        const int32_t index = expert_cache_place(pager->cache, key, PLACE_DEMAND).slot;
        if (index == EXPERT_NO_SLOT) return;
        start_read(pager, index, key, READ_DEMAND);
        expert_cache_pin(pager->cache, index);
        visit->slot = index;
        visit->state = VISIT_READING;
        visit->joined = false;
        pager->n_waiting--;
        pager->n_reading++;
    }
}

void expert_pager_request(struct expert_pager *pager, uint32_t layer,
                          const struct expert_demand *demand, size_t n)
{
    end_request(pager);
    pager->layer = layer;
    pager->n_visit = pager->n_left = n;
    counts(pager)->n_lookup += n;
    for (size_t i = 0; i < n; i++) {
        assert(demand[i].expert < pager->config.n_expert);
        pager->visit[i] = (struct visit){.expert = demand[i].expert, .state = VISIT_READY};
    }
    if (!pager->cache) {
        counts(pager)->n_hit += n;
        for (size_t i = 0; i < n; i++)
            ++*other_uses(pager, (struct expert_key){layer, demand[i].expert});
        tell_watcher(pager);
        return;
    }
    reap(pager, false);
    if (pager->prediction[PREDICT_LATE].n)
        end_gap(pager, PREDICT_LATE, pager->late_since_s);
    else
        end_gap(pager, PREDICT_EARLY, pager->idle_since_s);
    pager->idle_since_s = 0;
    count_recall(pager, demand, n);
    for (size_t i = 0; i < n; i++)
        expert_cache_use(pager->cache, (struct expert_key){layer, demand[i].expert},
                         demand[i].n_row);
    for (size_t i = 0; i < n; i++)
        begin_visit(pager, &pager->visit[i], demand[i].usage);
    forget_ahead(pager); /* what was chosen of it is held by its visit now */
    start_waiting(pager);
    tell_watcher(pager);
}

/* Lends every visit that is ready. */
static void lend(struct expert_pager *pager, struct expert_group *out)
{
    const struct expert_layer *layer = expert_pager_layer(pager, pager->layer);
    for (size_t i = 0; i < pager->n_visit; i++) {
        struct visit *visit = &pager->visit[i];
        if (visit->state != VISIT_READY) continue;
        visit->state = VISIT_OVER;
        pager->lent[pager->n_lent] = (uint32_t)i;
        pager->lent_expert[pager->n_lent] = visit->expert;
        pager->lent_view[pager->n_lent++] =
            pager->cache ? expert_layer_view(layer, pager->slot[visit->slot].part)
                         : expert_store_mapped(pager->config.store,
                                               (struct expert_key){pager->layer, visit->expert});
    }
    pager->n_left -= pager->n_lent;
    *out = (struct expert_group){
        .n = pager->n_lent, .expert = pager->lent_expert, .view = pager->lent_view};
}

/* Nothing is being read, and all slots that could go are held. False: nothing can be done. */
static bool let_go(struct expert_pager *pager)
{
    struct lm_error *const failure = &pager->failure;
    const size_t n_held = pager->n_held;
    if (n_held && pager->above.let_go)
        failure->status = pager->above.let_go(pager->above.context, failure);
    if (failure->status == LM_OK && pager->n_held == n_held)
        lm_fail(failure, LM_E_FAIL, "layer %u: no slot is free for an expert", pager->layer);
    return failure->status == LM_OK;
}

enum lm_status expert_pager_acquire(struct expert_pager *pager, struct expert_group *out,
                                    struct lm_error *err)
{
    release_lent(pager);
    while (pager->cache && pager->failure.status == LM_OK) {
        reap(pager, false);
        start_waiting(pager);
        if (!pager->n_waiting && !pager->n_reading && pager->idle_since_s <= 0)
            pager->idle_since_s = log_now_s();
        go_on_preloading(pager);
        look_ahead(pager);
        if (!pager->n_left || pager->n_waiting + pager->n_reading < pager->n_left) break;
        if (!reap(pager, true) && !let_go(pager)) break;
        tell_watcher(pager);
    }
    if (pager->failure.status != LM_OK) {
        const enum lm_status status = pager->failure.status;
        if (err) *err = pager->failure;
        end_request(pager);
        return status;
    }
    lend(pager, out);
    return LM_OK;
}

bool expert_pager_hold(struct expert_pager *pager, struct expert_key key, struct expert_view *out)
{
    if (!pager->cache) {
        *out = expert_store_mapped(pager->config.store, key);
        return true;
    }
    const int32_t index = expert_cache_find(pager->cache, key);
    if (index == EXPERT_NO_SLOT || !pager->slot[index].ready) return false;
    *out = expert_layer_view(expert_pager_layer(pager, key.layer), pager->slot[index].part);
    if (!pager->slot[index].n_hold++) {
        expert_cache_pin(pager->cache, index);
        pager->n_held++;
    }
    return true;
}

void expert_pager_unhold(struct expert_pager *pager, struct expert_key key)
{
    if (!pager->cache) return;
    const int32_t index = expert_cache_find(pager->cache, key);
    assert(index != EXPERT_NO_SLOT && pager->slot[index].n_hold > 0);
    if (--pager->slot[index].n_hold) return;
    expert_cache_unpin(pager->cache, index);
    pager->n_held--;
}

bool expert_pager_has_all_pinned(const struct expert_pager *pager)
{
    uint32_t n_free = 0;
    if (!pager->stats.pinned || pager->stats.n_slot < pager->stats.n_expert || pager->n_read)
        return false;
    for (uint32_t i = 0; i < pager->classes.n; i++)
        n_free += expert_cache_n_free(pager->cache, i);
    return !n_free;
}

size_t expert_pager_hold_max(const struct expert_pager *pager, uint32_t layer)
{
    return pager->cache ? n_class_slot(pager, layer) / 2 : SIZE_MAX;
}

void expert_pager_put_above(struct expert_pager *pager, const struct expert_pager_above *above)
{
    pager->above = *above;
}

void expert_pager_set_kept(struct expert_pager *pager, struct expert_key key, bool kept)
{
    expert_cache_set_spare(pager->cache, key, kept);
}

void expert_pager_preload_more(struct expert_pager *pager)
{
    pager->next_preload = 0;
    go_on_preloading(pager);
}

/* As many of a class as leave something to whom visits, holds and what is read ahead pin. */
static uint32_t n_arriving_max(const struct expert_pager *pager, uint32_t class_index)
{
    return pager->classes.class[class_index].n_slot / 8;
}

enum expert_offer expert_pager_offer(struct expert_pager *pager, struct expert_key key,
                                     void *part[EXPERT_PART_MAX])
{
    const uint32_t class_index = pager->class_of[key.layer];
    if (expert_cache_find(pager->cache, key) != EXPERT_NO_SLOT) return OFFER_HERE;
    if (pager->n_class_arriving[class_index] >= n_arriving_max(pager, class_index))
        return OFFER_LATER;
    const int32_t index = expert_cache_place(pager->cache, key, PLACE_ADMISSION).slot;
    if (index == EXPERT_NO_SLOT) return OFFER_REFUSED;
    struct slot *slot = &pager->slot[index];
    lay_out(pager, index, key);
    slot->arriving = true;
    pager->n_arriving++;
    pager->n_class_arriving[class_index]++;
    for (uint32_t i = 0; i < slot->read.n_extent; i++)
        part[i] = slot->read.to[i];
    return OFFER_TAKEN;
}

void expert_pager_end_offer(struct expert_pager *pager, struct expert_key key, bool arrived)
{
    const int32_t index = expert_cache_find(pager->cache, key);
    struct slot *slot = &pager->slot[index];
    assert(slot->arriving);
    slot->arriving = false;
    slot->ready = arrived;
    pager->n_arriving--;
    pager->n_class_arriving[pager->class_of[key.layer]]--;
    expert_cache_unpin(pager->cache, index);
    if (!arrived) expert_cache_drop(pager->cache, key);
}

bool expert_pager_wants_prediction(const struct expert_pager *pager, uint32_t layer,
                                   enum prediction_point point)
{
    return pager->cache && pager->config.prefetch != PREFETCH_OFF && !pager->prefill &&
           layer < pager->config.layer_end && pager->class_of[layer] != UINT32_MAX &&
           expert_cache_n_resident(pager->cache, layer) < pager->config.n_expert &&
           is_worth_reading(pager, point, 0, 0);
}

void expert_pager_predict(struct expert_pager *pager, uint32_t layer, enum prediction_point point,
                          const int32_t *expert, size_t n)
{
    struct prediction *prediction = &pager->prediction[point];
    prediction->layer = layer;
    prediction->read = false;
    prediction->n = 0;
    for (size_t i = 0; i < n; i++)
        if (!is_named(prediction, (uint32_t)expert[i]))
            prediction->expert[prediction->n++] = (uint32_t)expert[i];
    if (point != PREDICT_LATE) return; /* it is read when nothing is waiting */
    reap(pager, false);
    end_gap(pager, PREDICT_EARLY, pager->idle_since_s);
    pager->late_since_s = log_now_s();
    pager->ahead_layer = layer;
    read_predicted(pager, point, take_back_unnamed(pager, prediction));
}

struct expert_pager_layer_stats expert_pager_layer_stats(const struct expert_pager *pager,
                                                         uint32_t layer)
{
    struct expert_pager_layer_stats stats = {.decode = pager->counts[layer][false],
                                             .prefill = pager->counts[layer][true]};
    if (!expert_pager_layer(pager, layer)->n_part) return stats;
    stats.n_expert = stats.n_resident = pager->config.n_expert;
    if (!pager->cache) return stats;
    stats.n_resident = expert_cache_n_resident(pager->cache, layer);
    stats.slot_class = pager->class_of[layer];
    stats.n_class_slot = pager->classes.class[stats.slot_class].n_slot;
    return stats;
}

static void add_counts(struct expert_pager_counts *sum, const struct expert_pager_counts *counts)
{
    sum->n_lookup += counts->n_lookup;
    sum->n_hit += counts->n_hit;
    sum->n_joined += counts->n_joined;
    sum->n_in_time += counts->n_in_time;
    sum->n_miss += counts->n_miss;
    sum->miss_bytes += counts->miss_bytes;
    sum->wait_s += counts->wait_s;
}

struct expert_pager_stats expert_pager_stats(const struct expert_pager *pager)
{
    struct expert_pager_stats stats = pager->stats;
    stats.layer = pager->layer;
    for (uint32_t il = pager->config.layer_begin; il < pager->config.layer_end; il++) {
        add_counts(&stats.decode, &pager->counts[il][false]);
        add_counts(&stats.prefill, &pager->counts[il][true]);
    }
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) {
        stats.n_speculated += stats.prediction[point].n_read;
        stats.n_useful += stats.prediction[point].n_used;
    }
    if (!pager->cache) {
        stats.n_resident = stats.n_expert;
        return stats;
    }
    /* A slot is free, being filled, or readable. */
    for (uint32_t i = 0; i < pager->classes.n; i++)
        stats.n_free += expert_cache_n_free(pager->cache, i);
    stats.n_reading = pager->n_read + pager->n_arriving;
    stats.n_resident = stats.n_slot - stats.n_free - stats.n_reading;
    stats.policy = pager->config.policy->name;
    const struct expert_cache_stats cache = expert_cache_stats(pager->cache);
    stats.n_evicted = cache.n_evicted;
    stats.n_remiss = cache.n_remiss;
    stats.n_wasted = cache.n_speculative_wasted;
    stats.disk = disk_reader_stats(pager->reader);
    return stats;
}

bool expert_pager_is_resident(const struct expert_pager *pager, struct expert_key key)
{
    if (!pager->cache) return true;
    const int32_t slot = expert_cache_find(pager->cache, key);
    return slot != EXPERT_NO_SLOT && pager->slot[slot].ready;
}

float expert_pager_heat(const struct expert_pager *pager, struct expert_key key)
{
    if (pager->cache) return expert_cache_heat(pager->cache, key);
    return (float)*other_uses(pager, key);
}

void expert_pager_log_reads(const struct expert_pager *pager)
{
    if (pager->reader) disk_reader_log(pager->reader);
}

void expert_pager_watch(struct expert_pager *pager, void (*on_change)(void *context), void *context)
{
    pager->on_change = on_change;
    pager->watcher = context;
}

/* ---- creation ----------------------------------------------------------------------------- */

static enum lm_status create_tables(struct expert_pager *pager, struct lm_error *err)
{
    const size_t n = pager->config.n_expert, n_layer = pager->config.layer_end;
    bool predicted = true;
    pager->class_of = calloc(n_layer, sizeof(*pager->class_of));
    pager->visit = calloc(n, sizeof(*pager->visit));
    pager->lent = calloc(n, sizeof(*pager->lent));
    pager->lent_expert = calloc(n, sizeof(*pager->lent_expert));
    pager->lent_view = calloc(n, sizeof(*pager->lent_view));
    for (int i = 0; i < PREDICT_POINT_COUNT; i++) {
        pager->prediction[i].expert = calloc(n, sizeof(*pager->prediction[i].expert));
        predicted = predicted && pager->prediction[i].expert;
    }
    pager->preload = calloc(n * n_layer, sizeof(*pager->preload));
    pager->counts = calloc(n_layer, sizeof(*pager->counts));
    pager->other_uses = calloc(n * n_layer, sizeof(*pager->other_uses));
    if (pager->class_of && pager->visit && pager->lent && pager->lent_expert && pager->lent_view &&
        predicted && pager->preload && pager->counts && pager->other_uses)
        return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory for %zu experts", n * n_layer);
}

/* Starts to touch the arena in the order in which slots will be used: those of all classes in turn,
 * each class by its share of the memory. */
static void touch_arena(struct expert_pager *pager)
{
    enum { TOUCH_BYTES = 8 << 20 };
    uint64_t begin[SLOT_CLASS_MAX + 1] = {0}, done[SLOT_CLASS_MAX] = {0};
    size_t n = 0;
    for (uint32_t i = 0; i < pager->classes.n; i++)
        begin[i + 1] =
            begin[i] + pager->classes.class[i].n_slot * pager->classes.class[i].slot_bytes;
    struct touch_range *range =
        calloc(pager->arena_bytes / TOUCH_BYTES + pager->classes.n, sizeof(*range));
    for (uint64_t at = 0; range && at < pager->arena_bytes; at += range[n++].n_bytes) {
        uint32_t next = 0;
        double least = 2;
        for (uint32_t i = 0; i < pager->classes.n; i++) {
            const double share = (double)done[i] / (double)(begin[i + 1] - begin[i]);
            if (share >= least) continue;
            least = share;
            next = i;
        }
        const uint64_t left = begin[next + 1] - begin[next] - done[next];
        range[n].begin = pager->arena + begin[next] + done[next];
        range[n].n_bytes = left < TOUCH_BYTES ? left : TOUCH_BYTES;
        done[next] += range[n].n_bytes;
    }
    if (range) pager->toucher = toucher_start(range, n);
    free(range);
}

/* What a device copies out of is pinned once, where the system allows so much. */
static void pin_arena(struct expert_pager *pager)
{
    struct backend *device = pager->config.device;
    struct lm_error err;
    if (!device) return;
    if (device->ops->pin(device, pager->arena, pager->arena_bytes, &err) == LM_OK)
        pager->stats.pinned = true;
    else
        log_info("experts in memory are not pinned, copies of them are slower: %s", err.message);
}

/* Slots are mapped once and for all: no page is ever given back or faulted in again. */
static enum lm_status create_slots(struct expert_pager *pager, struct lm_error *err)
{
    const uint32_t n_slot = slot_classes_n_slot(&pager->classes);
    pager->slot = calloc(n_slot, sizeof(*pager->slot));
    pager->arena_bytes = slot_classes_bytes(&pager->classes);
    void *arena =
        mmap(NULL, pager->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena != MAP_FAILED) pager->arena = arena;
    if (!pager->slot || !pager->arena)
        return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory for %u slots, %llu bytes", n_slot,
                       (unsigned long long)pager->arena_bytes);
    madvise(arena, pager->arena_bytes, MADV_HUGEPAGE);
    uint8_t *at = arena;
    struct slot *slot = pager->slot;
    for (uint32_t i = 0; i < pager->classes.n; i++)
        for (uint32_t k = 0; k < pager->classes.class[i].n_slot;
             k++, at += pager->classes.class[i].slot_bytes)
            (slot++)->memory = at;
    pin_arena(pager);
    if (!pager->stats.pinned) touch_arena(pager);
    pager->stats.n_slot = n_slot;
    pager->stats.slot_bytes = pager->arena_bytes;
    return LM_OK;
}

static enum lm_status create_cache(struct expert_pager *pager, struct lm_error *err)
{
    uint32_t slot_of_class[SLOT_CLASS_MAX];
    for (uint32_t i = 0; i < pager->classes.n; i++)
        slot_of_class[i] = pager->classes.class[i].n_slot;
    const struct expert_cache_config config = {.n_layer = pager->config.layer_end,
                                               .n_expert = pager->config.n_expert,
                                               .class_of = pager->class_of,
                                               .slot_of_class = slot_of_class,
                                               .n_class = pager->classes.n,
                                               .floor = pager->config.n_expert_used,
                                               .policy = pager->config.policy};
    return expert_cache_create(&pager->cache, &config, err);
}

static enum lm_status create_reader(struct expert_pager *pager, struct lm_error *err)
{
    const struct expert_store *store = pager->config.store;
    const size_t n_file = expert_store_n_file(store);
    struct expert_file *file = calloc(n_file, sizeof(*file));
    if (!file) return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory for %zu files", n_file);
    for (size_t i = 0; i < n_file; i++)
        file[i] = expert_store_file(store, i);
    const struct disk_reader_config config = {.file = file,
                                              .n_file = n_file,
                                              .arena = pager->arena,
                                              .arena_bytes = pager->arena_bytes,
                                              .depth = pager->config.depth,
                                              .engine = pager->config.engine,
                                              .access = pager->config.access,
                                              .drop_cached = true,
                                              .progress = pager->config.progress};
    const enum lm_status status = disk_reader_create(&pager->reader, &config, err);
    free(file);
    return status;
}

static void count_bank(struct expert_pager *pager)
{
    for (uint32_t il = pager->config.layer_begin; il < pager->config.layer_end; il++) {
        const struct expert_layer *layer = expert_pager_layer(pager, il);
        if (!layer->n_part) continue;
        pager->stats.n_expert += pager->config.n_expert;
        pager->stats.bank_bytes += layer->n_bytes * pager->config.n_expert;
    }
}

enum lm_status expert_pager_create(struct expert_pager **out,
                                   const struct expert_pager_config *config, struct lm_error *err)
{
    struct expert_pager *pager = calloc(1, sizeof(*pager));
    if (!pager) return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory");
    pager->config = *config;
    pager->stats.layer_begin = config->layer_begin;
    pager->stats.layer_end = config->layer_end;
    enum lm_status status = create_tables(pager, err);
    if (status == LM_OK) count_bank(pager);
    if (status == LM_OK && config->n_slot && pager->stats.n_expert) {
        slot_classes_make(&pager->classes, config->store, config->layer_begin, config->layer_end,
                          config->n_expert, config->n_slot, slot_bytes_of, pager->class_of);
        status = create_slots(pager, err);
        if (status == LM_OK) status = create_cache(pager, err);
        if (status == LM_OK) status = create_reader(pager, err);
    }
    if (status != LM_OK) {
        expert_pager_destroy(pager);
        return status;
    }
    *out = pager;
    return LM_OK;
}

void expert_pager_destroy(struct expert_pager *pager)
{
    if (!pager) return;
    toucher_stop(pager->toucher);
    disk_reader_destroy(pager->reader);
    expert_cache_destroy(pager->cache);
    if (pager->stats.pinned) pager->config.device->ops->unpin(pager->config.device, pager->arena);
    if (pager->arena) munmap(pager->arena, pager->arena_bytes);
    free(pager->slot);
    free(pager->other_uses);
    free(pager->counts);
    free(pager->preload);
    for (int i = 0; i < PREDICT_POINT_COUNT; i++)
        free(pager->prediction[i].expert);
    free(pager->lent_view);
    free(pager->lent_expert);
    free(pager->lent);
    free(pager->visit);
    free(pager->class_of);
    free(pager);
}
