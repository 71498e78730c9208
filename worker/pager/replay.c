/* One walk over the traces serves every method: it tells a visitor of steps and, for each layer,
 * of the distinct experts by their number, as the graph asks for them. */
#include "worker/pager/replay.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "worker/pager/expert_cache.h"
#include "worker/pager/policy.h"

/* ---- the walk ----------------------------------------------------------------------------- */

/* The experts that a step needs of one layer. */
struct layer_need {
    uint32_t layer, n;      /* n experts */
    const uint32_t *expert; /* [n], distinct */
    const uint32_t *n_row;  /* [n] rows that chose it */
    bool prefill, counted;  /* counted: the warm-up is over */
};

struct visitor {
    void (*step)(void *context, uint32_t n_token, bool prefill); /* NULL: not wanted */
    enum lm_status (*layer)(void *context, const struct layer_need *need, struct lm_error *err);
    void *context;
};

struct walk {
    const struct replay_config *config;
    const struct visitor *visitor;
    uint64_t n_token;
    uint32_t *expert, *n_row; /* [n_expert] of the need */
    uint32_t *n_chosen;       /* [n_expert] all 0 but within walk_layer */
    uint64_t n_decode_token;  /* counted */
};

static enum lm_status walk_layer(struct walk *walk, const struct route_choice *choice,
                                 uint32_t row_begin, uint32_t row_end, bool prefill,
                                 struct lm_error *err)
{
    const uint32_t k = walk->config->log[0]->n_expert_used;
    struct layer_need need = {.layer = choice->layer,
                              .expert = walk->expert,
                              .n_row = walk->n_row,
                              .prefill = prefill,
                              .counted = walk->n_token > walk->config->n_warm_up};
    if (row_end > choice->n_row) row_end = choice->n_row;
    for (size_t i = (size_t)row_begin * k; i < (size_t)row_end * k; i++)
        walk->n_chosen[choice->expert[i]]++;
    for (uint32_t ie = 0; ie < walk->config->log[0]->n_expert; ie++) {
        if (!walk->n_chosen[ie]) continue;
        walk->expert[need.n] = ie;
        walk->n_row[need.n++] = walk->n_chosen[ie];
        walk->n_chosen[ie] = 0;
    }
    return need.n ? walk->visitor->layer(walk->visitor->context, &need, err) : LM_OK;
}

static enum lm_status walk_rows(struct walk *walk, const struct route_step *step,
                                uint32_t row_begin, uint32_t row_end, bool prefill,
                                struct lm_error *err)
{
    const uint32_t n_token = row_end - row_begin;
    walk->n_token += n_token;
    if (!prefill && walk->n_token > walk->config->n_warm_up) walk->n_decode_token += n_token;
    if (walk->visitor->step) walk->visitor->step(walk->visitor->context, n_token, prefill);
    for (uint32_t i = 0; i < step->n_layer; i++) {
        const enum lm_status status =
            walk_layer(walk, &step->layer[i], row_begin, row_end, prefill, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

static enum lm_status walk_log(struct walk *walk, const struct route_log *log, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < log->n_step && status == LM_OK; i++) {
        const struct route_step *step = &log->step[i];
        if (!walk->config->by_token) {
            if (step->n_row) status = walk_rows(walk, step, 0, step->n_row, step->prefill, err);
            continue;
        }
        for (uint32_t row = 0; row < step->n_row && status == LM_OK; row++)
            status = walk_rows(walk, step, row, row + 1, false, err);
    }
    return status;
}

/* n_token: of decode, counted. */
static enum lm_status walk_all(const struct replay_config *config, const struct visitor *visitor,
                               uint64_t *n_token, struct lm_error *err)
{
    const uint32_t n_expert = config->log[0]->n_expert;
    uint32_t *memory = calloc(3 * (size_t)n_expert, sizeof(*memory));
    if (!memory) return lm_fail(err, LM_E_NO_MEM, "replay: no memory for %u experts", n_expert);
    struct walk walk = {.config = config,
                        .visitor = visitor,
                        .expert = memory,
                        .n_row = memory + n_expert,
                        .n_chosen = memory + 2 * n_expert};
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < config->n_log && status == LM_OK; i++)
        status = walk_log(&walk, config->log[i], err);
    free(memory);
    *n_token = walk.n_decode_token;
    return status;
}

static struct replay_counts *counts_of(struct replay_result *result, const struct layer_need *need)
{
    return need->prefill ? &result->prefill : &result->decode;
}

/* ---- policies ----------------------------------------------------------------------------- */

/* The visits of expert_pager.c to a cache of its own. Of time it knows that what is being read
 * arrives while what has arrived is computed with; where nothing has, all that is being read does.
 * What really arrives by then depends on the disk, and in prefill changes which experts happen to
 * be left over in the cache; of the hits that is a part of a point. */
struct policy_run {
    const struct replay_config *config;
    struct expert_cache *cache;
    struct replay_result result;
    uint32_t n_expert;
    /* the layer's visits: [n_expert] slots, pinned */
    int32_t *ready, *reading, *lent;
    uint32_t n_ready, n_reading, n_lent;
    uint32_t *missed; /* [n_expert] experts that wait for a slot */
    uint32_t n_missed, next_missed;
    uint32_t layer;
    bool prefill, long_step; /* long: so many tokens that nearly all experts will be needed */
    /* pinned for the layer behind */
    int32_t ahead[EXPERT_AHEAD_MAX];
    uint32_t n_ahead, next_ahead;
};

static void unpin_all(struct policy_run *run, const int32_t *slot, uint32_t *n)
{
    for (uint32_t i = 0; i < *n; i++)
        expert_cache_unpin(run->cache, slot[i]);
    *n = 0;
}

static void forget_ahead(struct policy_run *run)
{
    unpin_all(run, run->ahead, &run->n_ahead);
    run->next_ahead = 0;
}

static bool is_ahead(const struct policy_run *run, int32_t slot)
{
    for (uint32_t i = 0; i < run->n_ahead; i++)
        if (run->ahead[i] == slot) return true;
    return false;
}

static void policy_step(void *context, uint32_t n_token, bool prefill)
{
    struct policy_run *run = context;
    const struct route_log *log = run->config->log[0];
    forget_ahead(run);
    expert_cache_advance(run->cache, n_token, prefill);
    run->prefill = prefill;
    run->long_step =
        prefill && (uint64_t)n_token * log->n_expert_used >= 2 * (uint64_t)log->n_expert;
}

static uint32_t n_class_slot(const struct policy_run *run, uint32_t layer)
{
    return run->config->slot_of_class[run->config->class_of[layer]];
}

/* Looks the layer's experts up; returns how many are hits. */
static uint32_t begin_visits(struct policy_run *run, const struct layer_need *need)
{
    uint32_t n_hit = 0;
    run->n_missed = run->next_missed = 0;
    for (uint32_t i = 0; i < need->n; i++) {
        const struct expert_key key = {need->layer, need->expert[i]};
        const int32_t slot = expert_cache_find(run->cache, key);
        if (slot == EXPERT_NO_SLOT) {
            run->missed[run->n_missed++] = need->expert[i];
            continue;
        }
        n_hit += !is_ahead(run, slot);
        expert_cache_pin(run->cache, slot);
        run->ready[run->n_ready++] = slot;
    }
    return n_hit;
}

static void start_waiting(struct policy_run *run)
{
    const uint32_t limit =
        run->prefill ? expert_prefill_reads(n_class_slot(run, run->layer)) : UINT32_MAX;
    for (; run->next_missed < run->n_missed && run->n_reading < limit; run->next_missed++) {
        const struct expert_key key = {run->layer, run->missed[run->next_missed]};
        const int32_t slot = expert_cache_place(run->cache, key, PLACE_DEMAND).slot;
        if (slot == EXPERT_NO_SLOT) return;
        run->reading[run->n_reading++] = slot;
    }
}

static void look_ahead(struct policy_run *run)
{
    const uint32_t next = run->layer + 1;
    if (!run->long_step || run->next_missed < run->n_missed ||
        next >= run->config->log[0]->n_layer || run->config->class_of[next] == UINT32_MAX)
        return;
    const uint32_t limit = expert_ahead_reads(n_class_slot(run, next));
    for (; run->n_ahead < limit && run->next_ahead < run->n_expert; run->next_ahead++) {
        const struct expert_key key = {next, run->next_ahead};
        if (expert_cache_find(run->cache, key) != EXPERT_NO_SLOT) continue;
        const int32_t slot = expert_cache_place(run->cache, key, PLACE_DEMAND).slot;
        if (slot == EXPERT_NO_SLOT) return;
        run->ahead[run->n_ahead++] = slot;
    }
}

static void arrive(struct policy_run *run)
{
    memcpy(run->ready + run->n_ready, run->reading, run->n_reading * sizeof(*run->ready));
    run->n_ready += run->n_reading;
    run->n_reading = 0;
}

/* One acquire, and the computing behind it; false: everything has been lent before. */
static bool acquire(struct policy_run *run)
{
    unpin_all(run, run->lent, &run->n_lent);
    start_waiting(run);
    if (!run->n_ready) {
        arrive(run);
        start_waiting(run);
    }
    look_ahead(run);
    if (!run->n_ready) return false;
    memcpy(run->lent, run->ready, run->n_ready * sizeof(*run->lent));
    run->n_lent = run->n_ready;
    run->n_ready = 0;
    arrive(run);
    return true;
}

static enum lm_status policy_layer(void *context, const struct layer_need *need,
                                   struct lm_error *err)
{
    struct policy_run *run = context;
    (void)err;
    run->layer = need->layer;
    for (uint32_t i = 0; i < need->n; i++)
        expert_cache_use(run->cache, (struct expert_key){need->layer, need->expert[i]},
                         need->n_row[i]);
    const uint32_t n_hit = begin_visits(run, need);
    forget_ahead(run);
    const struct expert_cache_stats before = expert_cache_stats(run->cache);
    start_waiting(run);
    while (acquire(run))
        ;
    assert(run->next_missed == run->n_missed);
    if (!need->counted) return LM_OK;
    counts_of(&run->result, need)->n_lookup += need->n;
    counts_of(&run->result, need)->n_hit += n_hit;
    if (need->prefill) return LM_OK;
    const struct expert_cache_stats after = expert_cache_stats(run->cache);
    run->result.n_evicted += after.n_evicted - before.n_evicted;
    run->result.n_remiss += after.n_remiss - before.n_remiss;
    run->result.n_admitted += after.n_admitted - before.n_admitted;
    return LM_OK;
}

struct heated {
    float heat;
    struct expert_key key;
};

static int compare_heat(const void *a, const void *b)
{
    const struct heated *x = a, *y = b;
    if (x->heat != y->heat) return x->heat < y->heat ? 1 : -1;
    return x->key.layer != y->key.layer
               ? (x->key.layer > y->key.layer) - (x->key.layer < y->key.layer)
               : (x->key.expert > y->key.expert) - (x->key.expert < y->key.expert);
}

/* Fills the cache with the hottest of a profile. */
static enum lm_status preload(const struct replay_config *config, struct expert_cache *cache,
                              struct lm_error *err)
{
    const uint32_t n_layer = config->log[0]->n_layer, n_expert = config->log[0]->n_expert;
    size_t n = 0;
    struct heated *list = malloc((size_t)n_layer * n_expert * sizeof(*list));
    if (!list) return lm_fail(err, LM_E_NO_MEM, "replay: no memory for a profile");
    for (uint32_t il = 0; il < n_layer; il++)
        for (uint32_t ie = 0; ie < n_expert && config->class_of[il] != UINT32_MAX; ie++) {
            const struct expert_key key = {il, ie};
            list[n++] = (struct heated){config->rate[(size_t)il * n_expert + ie], key};
            expert_cache_seed(cache, key, list[n - 1].heat);
        }
    qsort(list, n, sizeof(*list), compare_heat);
    for (size_t i = 0; i < n; i++) {
        const struct cache_placement at = expert_cache_place(cache, list[i].key, PLACE_BACKGROUND);
        if (at.slot != EXPERT_NO_SLOT) expert_cache_unpin(cache, at.slot);
    }
    free(list);
    return LM_OK;
}

enum lm_status replay_policy(const struct replay_config *config, const struct cache_policy *policy,
                             struct replay_result *out, struct lm_error *err)
{
    const uint32_t n_expert = config->log[0]->n_expert;
    const struct expert_cache_config cache_config = {.n_layer = config->log[0]->n_layer,
                                                     .n_expert = n_expert,
                                                     .class_of = config->class_of,
                                                     .slot_of_class = config->slot_of_class,
                                                     .n_class = config->n_class,
                                                     .floor = config->floor,
                                                     .half_life = config->half_life,
                                                     .policy = policy};
    struct policy_run run = {.config = config, .n_expert = n_expert};
    const struct visitor visitor = {policy_step, policy_layer, &run};
    enum lm_status status = expert_cache_create(&run.cache, &cache_config, err);
    if (status != LM_OK) return status;
    run.ready = calloc(n_expert, sizeof(*run.ready));
    run.reading = calloc(n_expert, sizeof(*run.reading));
    run.lent = calloc(n_expert, sizeof(*run.lent));
    run.missed = calloc(n_expert, sizeof(*run.missed));
    if (!run.ready || !run.reading || !run.lent || !run.missed)
        status = lm_fail(err, LM_E_NO_MEM, "replay: no memory for %u experts", n_expert);
    if (status == LM_OK && config->rate) status = preload(config, run.cache, err);
    if (status == LM_OK) status = walk_all(config, &visitor, &run.result.n_token, err);
    free(run.missed);
    free(run.lent);
    free(run.reading);
    free(run.ready);
    expert_cache_destroy(run.cache);
    if (status == LM_OK) *out = run.result;
    return status;
}

/* ---- plain LRU ---------------------------------------------------------------------------- */

/* A ring of experts through each class's head, the most recent after it. */
struct lru_link {
    uint32_t previous, next;
    bool resident;
};

struct lru_run {
    const struct replay_config *config;
    uint32_t n_expert;
    struct lru_link *link; /* [n_layer * n_expert + n_class] the last are the heads */
    uint32_t first_head;
    uint32_t *n_resident; /* [n_class] */
    struct replay_result result;
};

static void lru_unlink(struct lru_run *run, uint32_t at)
{
    struct lru_link *link = &run->link[at];
    run->link[link->previous].next = link->next;
    run->link[link->next].previous = link->previous;
}

static void lru_push(struct lru_run *run, uint32_t head, uint32_t at)
{
    run->link[at] = (struct lru_link){head, run->link[head].next, true};
    run->link[run->link[head].next].previous = at;
    run->link[head].next = at;
}

static enum lm_status lru_layer(void *context, const struct layer_need *need, struct lm_error *err)
{
    struct lru_run *run = context;
    const uint32_t class_index = run->config->class_of[need->layer];
    const uint32_t head = run->first_head + class_index;
    uint32_t n_hit = 0;
    (void)err;
    for (uint32_t i = 0; i < need->n; i++) { /* what is there is not evicted for what is not */
        const uint32_t at = need->layer * run->n_expert + need->expert[i];
        if (!run->link[at].resident) continue;
        n_hit++;
        lru_unlink(run, at);
        lru_push(run, head, at);
    }
    for (uint32_t i = 0; i < need->n; i++) {
        const uint32_t at = need->layer * run->n_expert + need->expert[i];
        if (run->link[at].resident) continue;
        if (run->n_resident[class_index] == run->config->slot_of_class[class_index]) {
            const uint32_t last = run->link[head].previous;
            lru_unlink(run, last);
            run->link[last].resident = false;
            if (need->counted && !need->prefill) run->result.n_evicted++;
        } else {
            run->n_resident[class_index]++;
        }
        lru_push(run, head, at);
        if (need->counted && !need->prefill) run->result.n_admitted++;
    }
    if (need->counted) {
        counts_of(&run->result, need)->n_lookup += need->n;
        counts_of(&run->result, need)->n_hit += n_hit;
    }
    return LM_OK;
}

enum lm_status replay_plain_lru(const struct replay_config *config, struct replay_result *out,
                                struct lm_error *err)
{
    const uint32_t n = config->log[0]->n_layer * config->log[0]->n_expert;
    struct lru_run run = {.config = config, .n_expert = config->log[0]->n_expert, .first_head = n};
    const struct visitor visitor = {NULL, lru_layer, &run};
    enum lm_status status;
    run.link = calloc((size_t)n + config->n_class, sizeof(*run.link));
    run.n_resident = calloc(config->n_class + 1, sizeof(*run.n_resident));
    if (run.link && run.n_resident) {
        for (uint32_t i = 0; i < config->n_class; i++)
            run.link[n + i] = (struct lru_link){n + i, n + i, true};
        status = walk_all(config, &visitor, &run.result.n_token, err);
    } else {
        status = lm_fail(err, LM_E_NO_MEM, "replay: no memory for %u experts", n);
    }
    free(run.n_resident);
    free(run.link);
    if (status == LM_OK) *out = run.result;
    return status;
}

/* ---- the bound ---------------------------------------------------------------------------- */

enum { NEVER = UINT32_MAX };

struct access {
    uint32_t key;  /* layer * n_expert + expert */
    uint32_t next; /* access of the same expert, if that is decode; NEVER */
};

struct group { /* the accesses of one layer and step */
    uint32_t end;
    uint32_t class_index;
    bool prefill, counted;
};

/* What is resident, by its next access, the farthest first; entries of what has left since, or has
 * another next access by now, are dropped when they come up. */
struct future_heap {
    struct access *entry; /* [n] */
    size_t n, room;
};

struct bound_run {
    const struct replay_config *config;
    uint32_t n_expert;
    struct access *access;
    struct group *group;
    size_t n_access, n_group, access_room, group_room;
};

static enum lm_status grow(void **list, size_t n, size_t *room, size_t size, struct lm_error *err)
{
    if (n < *room) return LM_OK;
    const size_t more = 2 * n + 64;
    void *grown = n < NEVER / 4 ? realloc(*list, more * size) : NULL;
    if (!grown) return lm_fail(err, LM_E_NO_MEM, "replay: no memory for %zu lookups", more);
    *list = grown;
    *room = more;
    return LM_OK;
}

static enum lm_status bound_layer(void *context, const struct layer_need *need,
                                  struct lm_error *err)
{
    struct bound_run *run = context;
    enum lm_status status;
    for (uint32_t i = 0; i < need->n; i++) {
        status = grow((void **)&run->access, run->n_access, &run->access_room, sizeof(*run->access),
                      err);
        if (status != LM_OK) return status;
        run->access[run->n_access++].key = need->layer * run->n_expert + need->expert[i];
    }
    status = grow((void **)&run->group, run->n_group, &run->group_room, sizeof(*run->group), err);
    if (status != LM_OK) return status;
    run->group[run->n_group++] = (struct group){
        (uint32_t)run->n_access, run->config->class_of[need->layer], need->prefill, need->counted};
    return LM_OK;
}

/* next: [n_key] memory. */
static void find_next(struct bound_run *run, uint32_t *next, size_t n_key)
{
    memset(next, 0xff, n_key * sizeof(*next));
    for (size_t ig = run->n_group; ig-- > 0;) {
        const struct group *group = &run->group[ig];
        for (size_t i = group->end; i-- > (ig ? group[-1].end : 0);) {
            struct access *access = &run->access[i];
            access->next = next[access->key];
            /* Prefill reads the expert anyway: to keep it until then is worth nothing. */
            next[access->key] = group->prefill ? NEVER : (uint32_t)i;
        }
    }
}

static enum lm_status future_push(struct future_heap *heap, struct access entry,
                                  struct lm_error *err)
{
    const enum lm_status status =
        grow((void **)&heap->entry, heap->n, &heap->room, sizeof(*heap->entry), err);
    if (status != LM_OK) return status;
    size_t at = heap->n++;
    for (; at && heap->entry[(at - 1) / 2].next < entry.next; at = (at - 1) / 2)
        heap->entry[at] = heap->entry[(at - 1) / 2];
    heap->entry[at] = entry;
    return LM_OK;
}

static void future_pop(struct future_heap *heap)
{
    const struct access last = heap->entry[--heap->n];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < heap->n; at = child) {
        if (child + 1 < heap->n && heap->entry[child + 1].next > heap->entry[child].next) child++;
        if (heap->entry[child].next <= last.next) break;
        heap->entry[at] = heap->entry[child];
    }
    if (heap->n) heap->entry[at] = last;
}

/* kept: [n_key] next access of what is resident, NEVER: it is not.
 * Hits end before anything begins, so that what leaves makes room for what comes. */
static enum lm_status play_bound(struct bound_run *run, struct future_heap *heap, uint32_t *kept,
                                 uint32_t *n_kept, struct replay_result *out, struct lm_error *err)
{
    for (size_t ig = 0; ig < run->n_group; ig++) {
        const struct group *group = &run->group[ig];
        const size_t begin = ig ? group[-1].end : 0;
        const uint32_t n_slot = run->config->slot_of_class[group->class_index];
        struct replay_counts *counts = group->prefill ? &out->prefill : &out->decode;
        struct future_heap *const future = &heap[group->class_index];
        uint32_t *const n = &n_kept[group->class_index];
        uint32_t n_hit = 0;
        for (size_t i = begin; i < group->end; i++) {
            const uint32_t key = run->access[i].key;
            n_hit += kept[key] != NEVER;
            *n -= kept[key] != NEVER;
            kept[key] = NEVER;
        }
        if (group->counted) {
            counts->n_lookup += group->end - begin;
            counts->n_hit += n_hit;
        }
        for (size_t i = begin; i < group->end; i++) {
            if (run->access[i].next == NEVER) continue;
            const enum lm_status status = future_push(future, run->access[i], err);
            if (status != LM_OK) return status;
            kept[run->access[i].key] = run->access[i].next;
            ++*n;
            while (*n > n_slot) {
                const struct access farthest = future->entry[0];
                future_pop(future);
                if (kept[farthest.key] != farthest.next) continue;
                kept[farthest.key] = NEVER;
                --*n;
            }
        }
    }
    return LM_OK;
}

enum lm_status replay_bound(const struct replay_config *config, struct replay_result *out,
                            struct lm_error *err)
{
    const size_t n_key = (size_t)config->log[0]->n_layer * config->log[0]->n_expert;
    struct bound_run run = {.config = config, .n_expert = config->log[0]->n_expert};
    const struct visitor visitor = {NULL, bound_layer, &run};
    struct replay_result result = {0};
    struct future_heap *heap = calloc(config->n_class + 1, sizeof(*heap));
    uint32_t *kept = malloc(n_key * sizeof(*kept));
    uint32_t *n_kept = calloc(config->n_class + 1, sizeof(*n_kept));
    enum lm_status status =
        heap && kept && n_kept
            ? walk_all(config, &visitor, &result.n_token, err)
            : lm_fail(err, LM_E_NO_MEM, "replay: no memory for %zu experts", n_key);
    if (status == LM_OK) {
        find_next(&run, kept, n_key);
        memset(kept, 0xff, n_key * sizeof(*kept));
        status = play_bound(&run, heap, kept, n_kept, &result, err);
    }
    for (uint32_t i = 0; heap && i < config->n_class; i++)
        free(heap[i].entry);
    free(heap);
    free(n_kept);
    free(kept);
    free(run.group);
    free(run.access);
    if (status == LM_OK) *out = result;
    return status;
}

/* ---- recall ------------------------------------------------------------------------------- */

enum { RECALL_SLOT_MAX = 256 };

struct recall_run {
    uint32_t n_layer, n_expert, n_used;
    uint64_t n_row, half; /* rows so far, and in the first half of all */
    uint32_t *last; /* [RECALL_SLOT_MAX][n_layer][n_used] what the sequence's last row chose */
    uint32_t next_position[RECALL_SLOT_MAX]; /* 0: the slot has no row yet */
    uint64_t *n_chosen;                      /* [n_layer][n_expert] in the first half */
    bool *is_hot;                            /* [n_layer][n_expert] */
    struct replay_recall result;
};

/* The n_used most chosen of each layer. */
static void pick_hot(struct recall_run *run)
{
    for (uint32_t il = 0; il < run->n_layer; il++)
        for (uint32_t k = 0; k < run->n_used; k++) {
            const uint64_t *n_chosen = &run->n_chosen[(size_t)il * run->n_expert];
            bool *is_hot = &run->is_hot[(size_t)il * run->n_expert];
            uint32_t best = UINT32_MAX;
            for (uint32_t ie = 0; ie < run->n_expert; ie++)
                if (!is_hot[ie] && (best == UINT32_MAX || n_chosen[ie] > n_chosen[best])) best = ie;
            is_hot[best] = true;
        }
}

static void recall_choice(struct recall_run *run, uint32_t slot, uint32_t layer, bool has_last,
                          const uint32_t *expert)
{
    uint32_t *last = &run->last[((size_t)slot * run->n_layer + layer) * run->n_used];
    for (uint32_t k = 0; k < run->n_used; k++) {
        const size_t key = (size_t)layer * run->n_expert + expert[k];
        if (run->n_row < run->half) {
            run->n_chosen[key]++;
        } else {
            run->result.n_hot_choice++;
            run->result.n_hot += run->is_hot[key];
        }
        if (!has_last) continue;
        run->result.n_choice++;
        for (uint32_t i = 0; i < run->n_used; i++)
            run->result.n_previous += last[i] == expert[k];
    }
    memcpy(last, expert, run->n_used * sizeof(*last));
}

static void recall_step(struct recall_run *run, const struct route_step *step)
{
    for (uint32_t row = 0; row < step->n_row; row++) {
        const uint32_t slot = step->slot[row], position = step->position[row];
        if (slot >= RECALL_SLOT_MAX) continue;
        const bool has_last = position && run->next_position[slot] == position;
        for (uint32_t i = 0; i < step->n_layer; i++) {
            const struct route_choice *choice = &step->layer[i];
            if (choice->n_row == step->n_row)
                recall_choice(run, slot, choice->layer, has_last,
                              choice->expert + (size_t)row * run->n_used);
        }
        run->next_position[slot] = position + 1;
        if (++run->n_row == run->half) pick_hot(run);
    }
}

enum lm_status replay_recall(const struct replay_config *config, struct replay_recall *out,
                             struct lm_error *err)
{
    const struct route_log *first = config->log[0];
    const size_t n_key = (size_t)first->n_layer * first->n_expert;
    struct recall_run run = {
        .n_layer = first->n_layer, .n_expert = first->n_expert, .n_used = first->n_expert_used};
    uint64_t n_row = 0;
    for (size_t i = 0; i < config->n_log; i++)
        for (size_t k = 0; k < config->log[i]->n_step; k++)
            n_row += config->log[i]->step[k].n_row;
    run.half = n_row / 2;
    run.last = calloc((size_t)RECALL_SLOT_MAX * run.n_layer * run.n_used, sizeof(*run.last));
    run.n_chosen = calloc(n_key, sizeof(*run.n_chosen));
    run.is_hot = calloc(n_key, sizeof(*run.is_hot));
    const bool has_memory = run.last && run.n_chosen && run.is_hot;
    for (size_t i = 0; i < config->n_log && has_memory; i++) {
        memset(run.next_position, 0, sizeof(run.next_position));
        for (size_t k = 0; k < config->log[i]->n_step; k++)
            recall_step(&run, &config->log[i]->step[k]);
    }
    free(run.is_hot);
    free(run.n_chosen);
    free(run.last);
    if (!has_memory) return lm_fail(err, LM_E_NO_MEM, "replay: no memory for %zu experts", n_key);
    *out = run.result;
    return LM_OK;
}
