/* Each layer keeps its admitted, unpinned experts in a heap with the least worth on top, so a
 * victim is the least among the tops of a class's layers: a handful of comparisons for a few dozen
 * layers, and no entry but the used one moves when time passes.
 *
 * Heat is kept in a unit that grows: a use at time t adds 2^(t / half-life), which orders experts
 * of a layer as decay would. unit is its value at the layer's clock; before it overflows, all heat
 * of the layer and its unit are divided by a power of two.
 *
 * A slot is in one of these places:
 *   free list of its class -> pinned (nowhere) <-> heap of its layer, if admitted
 *                                              <-> transient list of its class, if not: at the
 *                                                  front, if it is spare */
#include "worker/pager/expert_cache.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "worker/pager/policy.h"

enum { UNIT_LOG2_MAX = 400, NONE = EXPERT_NO_SLOT };

struct expert {
    double heat;         /* in the layer's unit */
    uint64_t last_token; /* when it was used last; 0: never */
    uint64_t evicted_at; /* 0: never */
    uint64_t n_use;
    float profile;
    int32_t slot;
};

struct slot {
    struct expert_key key;
    uint32_t n_pin;
    bool admitted, spare;   /* spare ones are not admitted */
    bool speculative;       /* and not used yet */
    uint32_t heap_index;    /* of one in a heap */
    int32_t previous, next; /* of one in a list */
};

struct layer {
    uint32_t class_index; /* UINT32_MAX: no experts */
    uint64_t clock;       /* token of its last step */
    double unit;          /* of heat, at clock */
    uint32_t n_resident, n_admitted;
    int32_t *heap; /* [n_heap] slots, the least worth first */
    uint32_t n_heap;
};

struct slot_class {
    int32_t first;           /* slot */
    uint32_t n_slot, n_made; /* that may be used, and are there */
    uint32_t n_layer, floor;
    uint32_t n_free;
    int32_t free;                          /* first of a list by next */
    uint32_t n_transient, n_transient_max; /* pinned and spare ones too; how many prefill makes */
    int32_t oldest, newest;                /* of the unpinned transients, behind the spare ones */
};

struct expert_cache {
    const struct cache_policy *policy;
    double half_life; /* of heat, in tokens */
    uint32_t n_layer, n_expert, n_class;
    uint32_t floor, n_prefill_slot; /* as configured */
    uint64_t now;                   /* tokens at this step */
    bool prefill;                   /* this step is one */
    struct layer *layer;
    struct slot_class *class;
    struct expert *expert; /* [n_layer][n_expert] */
    struct slot *slot;
    uint32_t n_pinned; /* slots */
    int32_t *heaps;    /* memory of layer[].heap */
    struct expert_cache_stats stats;
};

/* What orders victims. */
struct rank {
    double worth;
    uint64_t age;
};

static struct expert *expert_of(const struct expert_cache *cache, struct expert_key key)
{
    assert(key.layer < cache->n_layer);
    assert(key.expert < cache->n_expert);
    assert(cache->layer[key.layer].class_index != UINT32_MAX);
    return &cache->expert[(size_t)key.layer * cache->n_expert + key.expert];
}

static struct slot_class *class_of(const struct expert_cache *cache, struct expert_key key)
{
    return &cache->class[cache->layer[key.layer].class_index];
}

/* unit: that of the heat, to compare with other layers; inside a layer it may be any. */
static struct rank rank_in(const struct expert_cache *cache, struct expert_key key, double unit)
{
    const struct expert *expert = expert_of(cache, key);
    const struct expert_use use = {
        .heat = expert->heat / unit,
        .age = expert->last_token ? cache->layer[key.layer].clock - expert->last_token
                                  : EXPERT_NEVER_USED,
        .profile = expert->profile,
    };
    return (struct rank){cache->policy->worth(&use), use.age};
}

static struct rank rank_of(const struct expert_cache *cache, struct expert_key key)
{
    return rank_in(cache, key, cache->layer[key.layer].unit);
}

static bool rank_less(struct rank a, struct rank b)
{
    return a.worth < b.worth || (a.worth == b.worth && a.age > b.age);
}

/* ---- heaps -------------------------------------------------------------------------------- */

static bool slot_less(const struct expert_cache *cache, int32_t a, int32_t b)
{
    const struct expert_key key_a = cache->slot[a].key, key_b = cache->slot[b].key;
    /* No rounding by the unit, so that the order does not change with the clock. */
    const struct rank rank_a = rank_in(cache, key_a, 1), rank_b = rank_in(cache, key_b, 1);
    if (rank_less(rank_a, rank_b)) return true;
    if (rank_less(rank_b, rank_a)) return false;
    return key_a.expert < key_b.expert;
}

static void heap_put(struct expert_cache *cache, struct layer *layer, uint32_t at, int32_t slot)
{
    layer->heap[at] = slot;
    cache->slot[slot].heap_index = at;
}

/* Moves the slot at a place of the heap to where it belongs. */
static void heap_settle(struct expert_cache *cache, struct layer *layer, uint32_t at)
{
    const int32_t slot = layer->heap[at];
    while (at && slot_less(cache, slot, layer->heap[(at - 1) / 2])) {
        heap_put(cache, layer, at, layer->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (uint32_t child; (child = 2 * at + 1) < layer->n_heap; at = child) {
        if (child + 1 < layer->n_heap &&
            slot_less(cache, layer->heap[child + 1], layer->heap[child]))
            child++;
        if (!slot_less(cache, layer->heap[child], slot)) break;
        heap_put(cache, layer, at, layer->heap[child]);
    }
    heap_put(cache, layer, at, slot);
}

static void heap_insert(struct expert_cache *cache, int32_t slot)
{
    struct layer *layer = &cache->layer[cache->slot[slot].key.layer];
    layer->heap[layer->n_heap] = slot;
    heap_settle(cache, layer, layer->n_heap++);
}

static void heap_remove(struct expert_cache *cache, int32_t slot)
{
    struct layer *layer = &cache->layer[cache->slot[slot].key.layer];
    const uint32_t at = cache->slot[slot].heap_index;
    assert(at < layer->n_heap);
    assert(layer->heap[at] == slot);
    const int32_t last = layer->heap[--layer->n_heap];
    if (last == slot) return;
    heap_put(cache, layer, at, last);
    heap_settle(cache, layer, at);
}

/* ---- transients --------------------------------------------------------------------------- */

static void transient_insert(struct expert_cache *cache, int32_t slot)
{
    struct slot_class *class = class_of(cache, cache->slot[slot].key);
    const bool spare = cache->slot[slot].spare;
    const int32_t previous = spare ? NONE : class->newest, next = spare ? class->oldest : NONE;
    cache->slot[slot].previous = previous;
    cache->slot[slot].next = next;
    *(previous == NONE ? &class->oldest : &cache->slot[previous].next) = slot;
    *(next == NONE ? &class->newest : &cache->slot[next].previous) = slot;
}

static void transient_remove(struct expert_cache *cache, int32_t slot)
{
    struct slot_class *class = class_of(cache, cache->slot[slot].key);
    const int32_t previous = cache->slot[slot].previous, next = cache->slot[slot].next;
    *(previous == NONE ? &class->oldest : &cache->slot[previous].next) = next;
    *(next == NONE ? &class->newest : &cache->slot[next].previous) = previous;
}

/* ---- slots -------------------------------------------------------------------------------- */

/* Into and out of the place from which an unpinned slot can be evicted. */
static void make_evictable(struct expert_cache *cache, int32_t slot)
{
    cache->slot[slot].admitted ? heap_insert(cache, slot) : transient_insert(cache, slot);
}

static void make_unevictable(struct expert_cache *cache, int32_t slot)
{
    cache->slot[slot].admitted ? heap_remove(cache, slot) : transient_remove(cache, slot);
}

static void set_admitted(struct expert_cache *cache, int32_t slot, bool admitted)
{
    struct slot *s = &cache->slot[slot];
    assert(s->admitted != admitted);
    if (!s->n_pin) make_unevictable(cache, slot);
    s->admitted = admitted;
    cache->layer[s->key.layer].n_admitted += admitted ? 1 : -1u;
    class_of(cache, s->key)->n_transient += admitted ? -1u : 1;
    if (!s->n_pin) make_evictable(cache, slot);
}

/* Takes the expert out of its slot, which is then in no list. */
static void vacate(struct expert_cache *cache, int32_t slot)
{
    struct slot *s = &cache->slot[slot];
    struct layer *layer = &cache->layer[s->key.layer];
    if (!s->n_pin) make_unevictable(cache, slot);
    layer->n_resident--;
    if (s->admitted)
        layer->n_admitted--;
    else
        class_of(cache, s->key)->n_transient--;
    expert_of(cache, s->key)->slot = NONE;
}

static void occupy(struct expert_cache *cache, int32_t slot, struct expert_key key, bool admitted)
{
    cache->slot[slot] = (struct slot){.key = key, .n_pin = 1, .admitted = admitted};
    cache->n_pinned++;
    cache->layer[key.layer].n_resident++;
    if (admitted)
        cache->layer[key.layer].n_admitted++;
    else
        class_of(cache, key)->n_transient++;
    expert_of(cache, key)->slot = slot;
}

static bool below_floor(const struct expert_cache *cache, struct expert_key key)
{
    return cache->layer[key.layer].n_admitted < class_of(cache, key)->floor;
}

/* The admitted expert that goes first when `key` needs a slot; NONE: all are pinned or within the
 * floor of their layers. Begins with the own layer, the last to run again, and goes backwards; but
 * a layer below its floor gives up its own only when nobody else can. */
static int32_t least_admitted(const struct expert_cache *cache, struct expert_key key,
                              struct rank *out)
{
    const struct layer *own = &cache->layer[key.layer];
    const uint32_t floor = cache->class[own->class_index].floor;
    int32_t least = NONE;
    for (uint32_t i = 0; i < cache->n_layer; i++) {
        const uint32_t il = key.layer >= i ? key.layer - i : key.layer + cache->n_layer - i;
        const struct layer *layer = &cache->layer[il];
        if (layer->class_index != own->class_index || !layer->n_heap) continue;
        if (layer == own ? below_floor(cache, key) : layer->n_admitted <= floor) continue;
        const struct rank rank = rank_of(cache, cache->slot[layer->heap[0]].key);
        if (least != NONE && !rank_less(rank, *out)) continue;
        least = layer->heap[0];
        *out = rank;
    }
    if (least == NONE && own->n_heap) {
        least = own->heap[0];
        *out = rank_of(cache, cache->slot[least].key);
    }
    return least;
}

static bool used_now(const struct expert_cache *cache, int32_t slot)
{
    const struct expert *expert = expert_of(cache, cache->slot[slot].key);
    return expert->last_token && expert->last_token >= cache->now;
}

/* The least of the layers' least above their floors. idle: of those that this token has not used.
 */
static int32_t least_of_class(const struct expert_cache *cache, uint32_t class_index, bool idle)
{
    const uint32_t floor = cache->class[class_index].floor;
    int32_t least = NONE;
    struct rank least_rank = {0, 0};
    for (uint32_t il = 0; il < cache->n_layer; il++) {
        const struct layer *layer = &cache->layer[il];
        if (layer->class_index != class_index || !layer->n_heap) continue;
        if (layer->n_admitted <= floor || (idle && used_now(cache, layer->heap[0]))) continue;
        const struct rank rank = rank_of(cache, cache->slot[layer->heap[0]].key);
        if (least != NONE && !rank_less(rank, least_rank)) continue;
        least = layer->heap[0];
        least_rank = rank;
    }
    return least;
}

/* In prefill: whether an expert that is not admitted should be, in the place of `least`. */
static bool beats(const struct expert_cache *cache, struct expert_key key, int32_t least,
                  struct rank rank)
{
    const double advantage = cache->policy->prefill_advantage;
    if (below_floor(cache, key)) return true;
    return least != NONE && !isinf(advantage) && rank_of(cache, key).worth > advantage * rank.worth;
}

/* ---- victims ------------------------------------------------------------------------------ */

struct choice {
    int32_t slot;   /* to be vacated */
    int32_t demote; /* becomes a transient; NONE: nothing does */
    bool admitted;
};

static const struct choice no_choice = {NONE, NONE, false};

static struct choice choose_decode(const struct expert_cache *cache, struct expert_key key)
{
    const struct slot_class *class = class_of(cache, key);
    struct rank rank = {0, 0};
    const int32_t slot = class->oldest != NONE ? class->oldest : least_admitted(cache, key, &rank);
    return (struct choice){slot, NONE, true};
}

/* Who takes an admitted one's place makes it a transient, so that there are no fewer of these. */
static struct choice choose_prefill(const struct expert_cache *cache, struct expert_key key)
{
    const struct slot_class *class = class_of(cache, key);
    struct rank rank = {0, 0};
    const int32_t least = least_admitted(cache, key, &rank);
    const bool admitted = beats(cache, key, least, rank);
    if (class->oldest != NONE)
        return (struct choice){class->oldest, admitted ? least : NONE, admitted};
    if (!admitted && class->n_transient >= class->n_transient_max) return no_choice;
    return (struct choice){least, NONE, admitted};
}

/* A transient, or NONE. */
static bool may_go(const struct expert_cache *cache, int32_t slot)
{
    return slot != NONE && (cache->slot[slot].spare || !used_now(cache, slot));
}

static struct choice choose_speculative(const struct expert_cache *cache, struct expert_key key)
{
    const struct slot_class *class = class_of(cache, key);
    struct choice choice = no_choice;
    if (may_go(cache, class->oldest))
        choice.slot = class->oldest;
    else if (class->n_transient < class->n_transient_max) /* the layers behind have theirs */
        choice.slot = least_of_class(cache, cache->layer[key.layer].class_index, true);
    return choice;
}

static struct choice choose_spare(const struct expert_cache *cache, struct expert_key key)
{
    const int32_t oldest = class_of(cache, key)->oldest;
    return oldest != NONE && cache->slot[oldest].spare ? (struct choice){oldest, NONE, true}
                                                       : no_choice;
}

/* Nothing has to go: whether the expert is worth more than what would. */
static struct choice choose_admission(const struct expert_cache *cache, struct expert_key key)
{
    const struct slot_class *class = class_of(cache, key);
    const double advantage = cache->policy->prefill_advantage;
    const struct rank own = rank_of(cache, key);
    struct rank rank = {0, 0};
    int32_t least = class->oldest;
    if (least != NONE && cache->slot[least].spare) return (struct choice){least, NONE, true};
    if (may_go(cache, least))
        rank = rank_of(cache, cache->slot[least].key);
    else
        least = least_admitted(cache, key, &rank);
    if (least == NONE || used_now(cache, least)) return no_choice;
    const bool better =
        isinf(advantage) ? rank_less(rank, own) : own.worth > advantage * rank.worth;
    return better || below_floor(cache, key) ? (struct choice){least, NONE, true} : no_choice;
}

/* ---- life --------------------------------------------------------------------------------- */

static uint32_t clamp(double wanted, uint32_t low, uint32_t high)
{
    const uint32_t n = wanted < high ? (uint32_t)wanted : high;
    return n > low ? n : low < high ? low : high;
}

/* What follows from the number of slots. */
static void size_class(const struct expert_cache *cache, struct slot_class *class)
{
    const uint32_t n = class->n_slot;
    class->floor = class->n_layer ? clamp(cache->floor, 0, n / class->n_layer) : 0;
    class->n_transient_max = cache->n_prefill_slot ? clamp(cache->n_prefill_slot, 1, n)
                                                   : clamp(n / 8.0, 2 * class->floor + 1, n);
}

static bool is_occupied(const struct expert_cache *cache, int32_t slot)
{
    const struct expert_key key = cache->slot[slot].key; /* that it has, had, or 0 */
    return cache->expert[(size_t)key.layer * cache->n_expert + key.expert].slot == slot;
}

/* The lowest first. */
static void list_free(struct expert_cache *cache, struct slot_class *class)
{
    class->free = NONE;
    class->n_free = 0;
    for (uint32_t i = class->n_slot; i-- > 0;) {
        const int32_t slot = class->first + (int32_t)i;
        if (is_occupied(cache, slot)) continue;
        cache->slot[slot].next = class->free;
        class->free = slot;
        class->n_free++;
    }
}

static enum lm_status allocate(struct expert_cache *cache, size_t n_slot, size_t n_heap)
{
    cache->layer = calloc(cache->n_layer + 1, sizeof(*cache->layer));
    cache->class = calloc(cache->n_class + 1, sizeof(*cache->class));
    cache->expert = calloc((size_t)cache->n_layer * cache->n_expert + 1, sizeof(*cache->expert));
    cache->slot = calloc(n_slot + 1, sizeof(*cache->slot));
    cache->heaps = calloc(n_heap + 1, sizeof(*cache->heaps));
    return cache->layer && cache->class && cache->expert && cache->slot && cache->heaps
               ? LM_OK
               : LM_E_NO_MEM;
}

static uint32_t heap_max(const struct expert_cache_config *config, uint32_t il)
{
    const uint32_t class_index = config->class_of[il];
    if (class_index == UINT32_MAX) return 0;
    assert(class_index < config->n_class);
    const uint32_t n_slot = config->slot_of_class[class_index];
    return n_slot < config->n_expert ? n_slot : config->n_expert;
}

enum lm_status expert_cache_create(struct expert_cache **out,
                                   const struct expert_cache_config *config, struct lm_error *err)
{
    size_t n_slot = 0, n_heap = 0;
    for (uint32_t i = 0; i < config->n_class; i++)
        n_slot += config->slot_of_class[i];
    for (uint32_t il = 0; il < config->n_layer; il++)
        n_heap += heap_max(config, il);
    assert(n_slot <= INT32_MAX);
    struct expert_cache *cache = calloc(1, sizeof(*cache));
    if (!cache) return lm_fail(err, LM_E_NO_MEM, "expert cache: no memory");
    cache->policy = config->policy;
    cache->half_life = config->half_life > 0 ? config->half_life
                                             : EXPERT_HALF_LIFE_TURNS * (double)config->n_expert /
                                                   (config->floor ? config->floor : 1);
    cache->n_layer = config->n_layer;
    cache->n_expert = config->n_expert;
    cache->n_class = config->n_class;
    cache->floor = config->floor;
    cache->n_prefill_slot = config->n_prefill_slot;
    if (allocate(cache, n_slot, n_heap) != LM_OK) {
        expert_cache_destroy(cache);
        return lm_fail(err, LM_E_NO_MEM, "expert cache: no memory for %zu slots", n_slot);
    }
    int32_t *heap = cache->heaps;
    for (uint32_t il = 0; il < config->n_layer; il++) {
        cache->layer[il].class_index = config->class_of[il];
        cache->layer[il].unit = 1;
        cache->layer[il].heap = heap;
        heap += heap_max(config, il);
        if (config->class_of[il] != UINT32_MAX) cache->class[config->class_of[il]].n_layer++;
    }
    for (size_t i = 0; i < (size_t)cache->n_layer * cache->n_expert; i++)
        cache->expert[i].slot = NONE;
    int32_t first = 0;
    for (uint32_t i = 0; i < config->n_class; i++) {
        struct slot_class *class = &cache->class[i];
        class->first = first;
        class->n_slot = class->n_made = config->slot_of_class[i];
        class->oldest = class->newest = NONE;
        size_class(cache, class);
        list_free(cache, class);
        first += (int32_t) class->n_made;
    }
    *out = cache;
    return LM_OK;
}

void expert_cache_destroy(struct expert_cache *cache)
{
    if (!cache) return;
    free(cache->heaps);
    free(cache->slot);
    free(cache->expert);
    free(cache->class);
    free(cache->layer);
    free(cache);
}

/* ---- time and use ------------------------------------------------------------------------- */

void expert_cache_advance(struct expert_cache *cache, uint32_t n_token, bool prefill)
{
    cache->prefill = prefill;
    cache->now += n_token;
}

static void advance_layer(struct expert_cache *cache, uint32_t il)
{
    struct layer *layer = &cache->layer[il];
    layer->unit *= exp2((double)(cache->now - layer->clock) / cache->half_life);
    layer->clock = cache->now;
    if (layer->unit < ldexp(1, UNIT_LOG2_MAX)) return;
    const double shrink = 1 / layer->unit;
    for (uint32_t ie = 0; ie < cache->n_expert; ie++)
        cache->expert[(size_t)il * cache->n_expert + ie].heat *= shrink;
    layer->unit = 1;
    for (uint32_t at = layer->n_heap; at-- > 0;) /* what became 0 is now ordered by age */
        heap_settle(cache, layer, at);
}

/* A transient is used. */
static void promote(struct expert_cache *cache, struct expert_key key, int32_t slot)
{
    struct rank rank = {0, 0};
    int32_t least = NONE;
    if (cache->prefill) {
        least = least_admitted(cache, key, &rank);
        if (!beats(cache, key, least, rank)) return;
    }
    set_admitted(cache, slot, true);
    if (least != NONE) set_admitted(cache, least, false);
}

void expert_cache_use(struct expert_cache *cache, struct expert_key key, uint32_t n_row)
{
    struct expert *expert = expert_of(cache, key);
    assert(cache->now > 0);
    if (cache->layer[key.layer].clock != cache->now) advance_layer(cache, key.layer);
    expert->heat += n_row * cache->layer[key.layer].unit;
    expert->last_token = cache->now;
    expert->n_use += n_row;
    if (expert->slot == NONE) return;

    struct slot *slot = &cache->slot[expert->slot];
    if (slot->speculative) cache->stats.n_speculative_used++;
    slot->speculative = false;
    if (slot->spare) return;
    if (slot->admitted) {
        if (!slot->n_pin) heap_settle(cache, &cache->layer[key.layer], slot->heap_index);
    } else {
        promote(cache, key, expert->slot);
    }
}

void expert_cache_seed(struct expert_cache *cache, struct expert_key key, float rate)
{
    struct expert *expert = expert_of(cache, key);
    assert(cache->now == 0);
    expert->profile = rate;
    /* The sum of rate * 2^(-t / half-life) over all tokens past. */
    expert->heat = (double)rate * (isinf(cache->half_life) ? 1 : cache->half_life / log(2));
    if (expert->slot == NONE) return;
    const struct slot *slot = &cache->slot[expert->slot];
    if (slot->admitted && !slot->n_pin)
        heap_settle(cache, &cache->layer[key.layer], slot->heap_index);
}

float expert_cache_heat(const struct expert_cache *cache, struct expert_key key)
{
    return (float)(expert_of(cache, key)->heat / cache->layer[key.layer].unit);
}

uint64_t expert_cache_uses(const struct expert_cache *cache, struct expert_key key)
{
    return expert_of(cache, key)->n_use;
}

/* ---- placing ------------------------------------------------------------------------------ */

int32_t expert_cache_find(const struct expert_cache *cache, struct expert_key key)
{
    return expert_of(cache, key)->slot;
}

static void evict(struct expert_cache *cache, int32_t slot)
{
    expert_of(cache, cache->slot[slot].key)->evicted_at = cache->now;
    cache->stats.n_evicted++;
    cache->stats.n_speculative_wasted += cache->slot[slot].speculative;
    vacate(cache, slot);
}

static void count_placement(struct expert_cache *cache, struct expert_key key, enum place_kind kind,
                            bool admitted)
{
    const struct expert *expert = expert_of(cache, key);
    if (kind == PLACE_SPECULATIVE) cache->stats.n_speculative++;
    if (kind != PLACE_DEMAND) return;
    cache->stats.n_placed++;
    cache->stats.n_admitted += admitted;
    cache->stats.n_remiss +=
        expert->evicted_at && cache->now - expert->evicted_at < EXPERT_REMISS_TOKENS;
}

struct cache_placement expert_cache_place(struct expert_cache *cache, struct expert_key key,
                                          enum place_kind kind)
{
    struct slot_class *class = class_of(cache, key);
    struct cache_placement placement = {.slot = NONE};
    assert(expert_of(cache, key)->slot == NONE);
    if (class->n_free) {
        placement.slot = class->free;
        placement.admitted = kind != PLACE_SPECULATIVE;
        class->free = cache->slot[placement.slot].next;
        class->n_free--;
    } else {
        const struct choice choice = kind == PLACE_SPECULATIVE  ? choose_speculative(cache, key)
                                     : kind == PLACE_BACKGROUND ? choose_spare(cache, key)
                                     : kind == PLACE_ADMISSION  ? choose_admission(cache, key)
                                     : cache->prefill           ? choose_prefill(cache, key)
                                                                : choose_decode(cache, key);
        if (choice.slot == NONE) return placement;
        placement.slot = choice.slot;
        placement.admitted = choice.admitted;
        placement.evicts = true;
        placement.victim = cache->slot[choice.slot].key;
        evict(cache, choice.slot);
        if (choice.demote != NONE) set_admitted(cache, choice.demote, false);
    }
    occupy(cache, placement.slot, key, placement.admitted);
    cache->slot[placement.slot].speculative = kind == PLACE_SPECULATIVE;
    count_placement(cache, key, kind, placement.admitted);
    return placement;
}

void expert_cache_drop(struct expert_cache *cache, struct expert_key key)
{
    struct slot_class *class = class_of(cache, key);
    const int32_t slot = expert_of(cache, key)->slot;
    assert(slot != NONE);
    vacate(cache, slot);
    if (cache->slot[slot].n_pin) cache->n_pinned--;
    cache->slot[slot].n_pin = 0;
    cache->slot[slot].next = class->free;
    class->free = slot;
    class->n_free++;
}

/* ---- how many slots there are ------------------------------------------------------------ */

/* Of transients those that were moved count as new. */
static void move(struct expert_cache *cache, int32_t from, int32_t to)
{
    make_unevictable(cache, from);
    cache->slot[to] = cache->slot[from];
    expert_of(cache, cache->slot[to].key)->slot = to;
    make_evictable(cache, to);
}

size_t expert_cache_resize(struct expert_cache *cache, uint32_t class_index, uint32_t n_slot,
                           struct cache_move *moves)
{
    struct slot_class *class = &cache->class[class_index];
    const int32_t old_end = class->first + (int32_t) class->n_slot;
    uint32_t n_occupied = class->n_slot - class->n_free;
    size_t n = 0;
    assert(n_slot <= class->n_made && !cache->n_pinned);
    class->n_slot = n_slot;
    size_class(cache, class);
    for (; n_occupied > n_slot; n_occupied--) {
        const int32_t least =
            class->oldest != NONE ? class->oldest : least_of_class(cache, class_index, false);
        assert(least != NONE); /* the floors of all layers fit */
        moves[n++] = (struct cache_move){cache->slot[least].key, least, NONE};
        evict(cache, least);
    }
    int32_t to = class->first;
    for (int32_t from = class->first + (int32_t)n_slot; from < old_end; from++) {
        if (!is_occupied(cache, from)) continue;
        while (is_occupied(cache, to))
            to++;
        moves[n++] = (struct cache_move){cache->slot[from].key, from, to};
        move(cache, from, to);
    }
    list_free(cache, class);
    return n;
}

/* ---- tiers -------------------------------------------------------------------------------- */

void expert_cache_set_spare(struct expert_cache *cache, struct expert_key key, bool spare)
{
    const int32_t index = expert_of(cache, key)->slot;
    if (index == NONE || cache->slot[index].spare == spare) return;
    struct slot *slot = &cache->slot[index];
    if (slot->admitted) set_admitted(cache, index, false);
    if (!slot->n_pin) make_unevictable(cache, index);
    slot->spare = spare;
    if (!slot->n_pin) make_evictable(cache, index);
    if (!spare) set_admitted(cache, index, true);
}

bool expert_cache_least(const struct expert_cache *cache, uint32_t class_index,
                        struct expert_key *out)
{
    const int32_t slot = least_of_class(cache, class_index, true);
    if (slot != NONE) *out = cache->slot[slot].key;
    return slot != NONE;
}

void expert_cache_demote(struct expert_cache *cache, struct expert_key key)
{
    set_admitted(cache, expert_of(cache, key)->slot, false);
}

/* ---- pins --------------------------------------------------------------------------------- */

void expert_cache_pin(struct expert_cache *cache, int32_t slot)
{
    if (cache->slot[slot].n_pin++) return;
    make_unevictable(cache, slot);
    cache->n_pinned++;
}

void expert_cache_unpin(struct expert_cache *cache, int32_t slot)
{
    assert(cache->slot[slot].n_pin > 0);
    if (--cache->slot[slot].n_pin) return;
    make_evictable(cache, slot);
    cache->n_pinned--;
}

/* ---- reports ------------------------------------------------------------------------------ */

uint32_t expert_cache_n_resident(const struct expert_cache *cache, uint32_t layer)
{
    return cache->layer[layer].n_resident;
}

uint32_t expert_cache_n_free(const struct expert_cache *cache, uint32_t class_index)
{
    return cache->class[class_index].n_free;
}

uint32_t expert_cache_n_transient(const struct expert_cache *cache, uint32_t class_index)
{
    return cache->class[class_index].n_transient;
}

bool expert_cache_is_admitted(const struct expert_cache *cache, int32_t slot)
{
    return cache->slot[slot].admitted;
}

uint32_t expert_cache_n_pinned(const struct expert_cache *cache)
{
    return cache->n_pinned;
}

struct expert_cache_stats expert_cache_stats(const struct expert_cache *cache)
{
    return cache->stats;
}
