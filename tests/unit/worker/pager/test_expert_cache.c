/* The cache decides as a naive one does that looks at every slot, on random traces with every
 * policy and any number of slots; and it keeps its promises. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdlib.h>

#include "worker/pager/expert_cache.h"
#include "worker/pager/policy.h"

enum { MAX_LAYER = 5, MAX_EXPERT = 24, MAX_SLOT = 2 * MAX_LAYER * MAX_EXPERT, N_CLASS = 2 };

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

/* ---- the naive cache ---------------------------------------------------------------------- */

struct naive_expert {
    bool resident, admitted, spare;
    double heat;
    uint64_t last;
    int64_t arrived; /* order of transients, the spare ones below 0 */
    uint32_t n_pin;
    float profile;
};

struct naive {
    struct expert_cache_config config;
    uint32_t class_of[MAX_LAYER], slot_of_class[N_CLASS], floor[N_CLASS];
    uint32_t n_transient_max[N_CLASS], made[N_CLASS], n_layer_of[N_CLASS];
    struct naive_expert expert[MAX_LAYER][MAX_EXPERT];
    double unit[MAX_LAYER];
    uint64_t clock[MAX_LAYER], now;
    int64_t n_arrived;
    bool prefill;
    double half_life;
};

static struct naive_expert *naive_at(struct naive *naive, struct expert_key key)
{
    return &naive->expert[key.layer][key.expert];
}

enum count_of { COUNT_RESIDENT, COUNT_ADMITTED, COUNT_TRANSIENT };

static uint32_t count_layer(const struct naive *naive, uint32_t il, enum count_of what)
{
    uint32_t n = 0;
    for (uint32_t ie = 0; ie < naive->config.n_expert; ie++) {
        const struct naive_expert *expert = &naive->expert[il][ie];
        n += expert->resident &&
             (what == COUNT_RESIDENT || expert->admitted == (what == COUNT_ADMITTED));
    }
    return n;
}

static uint32_t count_class(const struct naive *naive, uint32_t class_index, enum count_of what)
{
    uint32_t n = 0;
    for (uint32_t il = 0; il < naive->config.n_layer; il++)
        if (naive->class_of[il] == class_index) n += count_layer(naive, il, what);
    return n;
}

static double naive_worth(const struct naive *naive, struct expert_key key)
{
    const struct naive_expert *expert = &naive->expert[key.layer][key.expert];
    const struct expert_use use = {.heat = expert->heat / naive->unit[key.layer],
                                   .age = expert->last ? naive->clock[key.layer] - expert->last
                                                       : EXPERT_NEVER_USED,
                                   .profile = expert->profile};
    return naive->config.policy->worth(&use);
}

static uint64_t naive_age(const struct naive *naive, struct expert_key key)
{
    const struct naive_expert *expert = &naive->expert[key.layer][key.expert];
    return expert->last ? naive->clock[key.layer] - expert->last : EXPERT_NEVER_USED;
}

static bool below_floor(const struct naive *naive, uint32_t il)
{
    return count_layer(naive, il, COUNT_ADMITTED) < naive->floor[naive->class_of[il]];
}

/* Whether key goes before what has been found so far. */
static bool naive_goes_first(const struct naive *naive, struct expert_key key, bool found,
                             struct expert_key other)
{
    if (!found) return true;
    const double worth = naive_worth(naive, key), least = naive_worth(naive, other);
    return worth < least || (worth == least && naive_age(naive, key) > naive_age(naive, other));
}

/* The admitted, unpinned expert that is to go first for an expert of layer il. */
static bool naive_least(const struct naive *naive, uint32_t il, struct expert_key *out)
{
    const uint32_t n_layer = naive->config.n_layer, class_index = naive->class_of[il];
    for (int own_too = !below_floor(naive, il); own_too < 2; own_too++) {
        bool found = false;
        for (uint32_t i = 0; i < n_layer; i++) {
            const uint32_t jl = (il + n_layer - i) % n_layer;
            if (naive->class_of[jl] != class_index || (jl == il && !own_too)) continue;
            if (jl != il && count_layer(naive, jl, COUNT_ADMITTED) <= naive->floor[class_index])
                continue;
            for (uint32_t ie = 0; ie < naive->config.n_expert; ie++) {
                const struct expert_key key = {jl, ie};
                const struct naive_expert *expert = &naive->expert[jl][ie];
                if (!expert->resident || !expert->admitted || expert->n_pin) continue;
                if (!naive_goes_first(naive, key, found, *out)) continue;
                *out = key;
                found = true;
            }
        }
        if (found) return true;
    }
    return false;
}

static bool naive_used_now(const struct naive *naive, struct expert_key key)
{
    const uint64_t last = naive->expert[key.layer][key.expert].last;
    return last && last >= naive->now;
}

/* Of every layer's least, if idle is false or this token has not used it, the least. */
static bool naive_least_of_class(const struct naive *naive, uint32_t class_index, bool idle,
                                 struct expert_key *out)
{
    bool found = false;
    for (uint32_t jl = 0; jl < naive->config.n_layer; jl++) {
        struct expert_key least = {jl, 0};
        bool any = false;
        if (naive->class_of[jl] != class_index ||
            count_layer(naive, jl, COUNT_ADMITTED) <= naive->floor[class_index])
            continue;
        for (uint32_t ie = 0; ie < naive->config.n_expert; ie++) {
            const struct expert_key key = {jl, ie};
            const struct naive_expert *expert = &naive->expert[jl][ie];
            if (!expert->resident || !expert->admitted || expert->n_pin) continue;
            if (!naive_goes_first(naive, key, any, least)) continue;
            least = key;
            any = true;
        }
        if (!any || (idle && naive_used_now(naive, least))) continue;
        if (!naive_goes_first(naive, least, found, *out)) continue;
        *out = least;
        found = true;
    }
    return found;
}

static bool naive_oldest(const struct naive *naive, uint32_t class_index, struct expert_key *out)
{
    bool found = false;
    for (uint32_t il = 0; il < naive->config.n_layer; il++)
        for (uint32_t ie = 0; ie < naive->config.n_expert && naive->class_of[il] == class_index;
             ie++) {
            const struct naive_expert *expert = &naive->expert[il][ie];
            if (!expert->resident || expert->admitted || expert->n_pin) continue;
            if (found && expert->arrived > naive->expert[out->layer][out->expert].arrived) continue;
            *out = (struct expert_key){il, ie};
            found = true;
        }
    return found;
}

static bool naive_beats(const struct naive *naive, struct expert_key key, bool *found,
                        struct expert_key *least)
{
    *found = naive_least(naive, key.layer, least);
    if (!naive->prefill || below_floor(naive, key.layer)) return true;
    const double advantage = naive->config.policy->prefill_advantage;
    return *found && advantage != INFINITY &&
           naive_worth(naive, key) > advantage * naive_worth(naive, *least);
}

/* Whether an expert that need not be placed is worth more than what would go for it. */
static bool naive_deserves(const struct naive *naive, struct expert_key key,
                           const struct expert_key *least)
{
    const double advantage = naive->config.policy->prefill_advantage;
    if (naive_used_now(naive, *least)) return false;
    if (below_floor(naive, key.layer)) return true;
    return advantage == INFINITY ? naive_goes_first(naive, *least, true, key)
                                 : naive_worth(naive, key) > advantage * naive_worth(naive, *least);
}

static void naive_arrive(struct naive *naive, struct expert_key key)
{
    struct naive_expert *expert = naive_at(naive, key);
    naive->n_arrived++;
    expert->arrived = expert->spare ? -naive->n_arrived : naive->n_arrived;
}

static void naive_demote(struct naive *naive, struct expert_key key)
{
    naive_at(naive, key)->admitted = false;
    naive_arrive(naive, key);
}

static struct cache_placement naive_choose(struct naive *naive, struct expert_key key,
                                           enum place_kind kind)
{
    const uint32_t class_index = naive->class_of[key.layer];
    const uint32_t n_transient = count_class(naive, class_index, COUNT_TRANSIENT);
    const struct cache_placement none = {.slot = EXPERT_NO_SLOT};
    struct cache_placement placement = {.admitted = kind != PLACE_SPECULATIVE};
    struct expert_key least;
    bool found;
    if (count_class(naive, class_index, COUNT_RESIDENT) < naive->slot_of_class[class_index])
        return placement;
    placement.evicts = true;
    const bool has_oldest = naive_oldest(naive, class_index, &placement.victim);
    const bool is_spare = has_oldest && naive_at(naive, placement.victim)->spare;
    const bool is_idle = has_oldest && !naive_used_now(naive, placement.victim);
    if (kind == PLACE_BACKGROUND) return is_spare ? placement : none;
    if (kind == PLACE_SPECULATIVE) {
        if (is_spare || is_idle) return placement;
        if (n_transient >= naive->n_transient_max[class_index]) return none;
        return naive_least_of_class(naive, class_index, true, &placement.victim) ? placement : none;
    }
    if (kind == PLACE_ADMISSION) {
        if (is_spare) return placement;
        if (!is_idle && !naive_least(naive, key.layer, &placement.victim)) return none;
        return naive_deserves(naive, key, &placement.victim) ? placement : none;
    }
    placement.admitted = naive_beats(naive, key, &found, &least);
    if (has_oldest) {
        if (naive->prefill && placement.admitted && found) naive_demote(naive, least);
        return placement;
    }
    if (!placement.admitted && naive->prefill && n_transient >= naive->n_transient_max[class_index])
        return none;
    placement.victim = least;
    return found ? placement : none;
}

static struct cache_placement naive_place(struct naive *naive, struct expert_key key,
                                          enum place_kind kind)
{
    const struct cache_placement placement = naive_choose(naive, key, kind);
    struct naive_expert *expert = naive_at(naive, key);
    if (placement.slot == EXPERT_NO_SLOT) return placement;
    if (placement.evicts) naive_at(naive, placement.victim)->resident = false;
    expert->resident = true;
    expert->admitted = placement.admitted;
    expert->spare = false;
    expert->n_pin = 1;
    return placement;
}

static void naive_use(struct naive *naive, struct expert_key key, uint32_t n_row)
{
    struct naive_expert *expert = naive_at(naive, key);
    const uint32_t il = key.layer;
    naive->unit[il] *= exp2((double)(naive->now - naive->clock[il]) / naive->half_life);
    naive->clock[il] = naive->now;
    expert->heat += n_row * naive->unit[il];
    expert->last = naive->now;
    if (!expert->resident || expert->admitted || expert->spare) return;
    struct expert_key least;
    bool found;
    if (!naive_beats(naive, key, &found, &least)) return;
    expert->admitted = true;
    if (found && naive->prefill) naive_demote(naive, least);
}

static void naive_unpin(struct naive *naive, struct expert_key key)
{
    struct naive_expert *expert = naive_at(naive, key);
    if (--expert->n_pin == 0 && !expert->admitted) naive_arrive(naive, key);
}

/* ---- both side by side -------------------------------------------------------------------- */

struct pair {
    struct naive naive;
    struct expert_cache *cache;
    struct expert_key in_slot[MAX_SLOT];
    bool is_full[MAX_SLOT];
};

static void naive_size(struct naive *naive, uint32_t i, uint32_t n)
{
    const uint32_t n_layer = naive->n_layer_of[i] ? naive->n_layer_of[i] : 1;
    uint32_t prefill = naive->config.n_prefill_slot;
    naive->slot_of_class[i] = n;
    naive->floor[i] = n / n_layer < naive->config.floor ? n / n_layer : naive->config.floor;
    if (!naive->n_layer_of[i]) naive->floor[i] = 0;
    if (!prefill) {
        prefill = n / 8;
        if (prefill < 2 * naive->floor[i] + 1) prefill = 2 * naive->floor[i] + 1;
    }
    naive->n_transient_max[i] = prefill < n ? prefill : n;
}

static void open_pair(struct pair *pair, const struct cache_policy *policy)
{
    struct naive *naive = &pair->naive;
    struct lm_error err;
    memset(pair, 0, sizeof(*pair));
    naive->config = (struct expert_cache_config){.n_layer = 1 + random_below(MAX_LAYER),
                                                 .n_expert = 2 + random_below(MAX_EXPERT - 1),
                                                 .class_of = naive->class_of,
                                                 .slot_of_class = naive->slot_of_class,
                                                 .n_class = N_CLASS,
                                                 .floor = random_below(5),
                                                 .n_prefill_slot = random_below(2) * 5,
                                                 .policy = policy};
    naive->half_life =
        8.0 * naive->config.n_expert / (naive->config.floor ? naive->config.floor : 1);
    for (uint32_t il = 0; il < naive->config.n_layer; il++) {
        naive->class_of[il] = random_below(N_CLASS);
        naive->n_layer_of[naive->class_of[il]]++;
        naive->unit[il] = 1;
    }
    for (uint32_t i = 0; i < N_CLASS; i++) {
        const uint32_t n_layer = naive->n_layer_of[i] ? naive->n_layer_of[i] : 1;
        naive->made[i] = 1 + random_below(random_below(2) ? 4 * n_layer : n_layer * MAX_EXPERT);
        naive_size(naive, i, naive->made[i]);
    }
    assert_int_equal(expert_cache_create(&pair->cache, &naive->config, &err), LM_OK);
    for (uint32_t il = 0; il < naive->config.n_layer; il++)
        for (uint32_t ie = 0; ie < naive->config.n_expert; ie++) {
            const float rate = (float)random_below(20) / 20;
            expert_cache_seed(pair->cache, (struct expert_key){il, ie}, rate);
            naive->expert[il][ie].heat = (double)rate * (naive->half_life / log(2));
            naive->expert[il][ie].profile = rate;
        }
}

static void place_both(struct pair *pair, struct expert_key key, enum place_kind kind, bool *placed)
{
    const uint32_t class_index = pair->naive.class_of[key.layer];
    const struct cache_placement expected = naive_place(&pair->naive, key, kind);
    const struct cache_placement got = expert_cache_place(pair->cache, key, kind);
    *placed = got.slot != EXPERT_NO_SLOT;
    assert_int_equal(*placed, expected.slot != EXPERT_NO_SLOT);
    if (!*placed) return;
    assert_int_equal(got.admitted, expected.admitted);
    assert_int_equal(got.evicts, expected.evicts);
    assert_int_equal(got.evicts, pair->is_full[got.slot]);
    if (got.evicts) {
        const struct expert_key there = pair->in_slot[got.slot];
        assert_int_equal(got.victim.layer, expected.victim.layer);
        assert_int_equal(got.victim.expert, expected.victim.expert);
        assert_memory_equal(&there, &got.victim, sizeof(there));
        assert_int_equal(expert_cache_find(pair->cache, got.victim), EXPERT_NO_SLOT);
    }
    const uint32_t first = class_index ? pair->naive.made[0] : 0;
    assert_in_range(got.slot, first, first + pair->naive.slot_of_class[class_index] - 1);
    pair->in_slot[got.slot] = key;
    pair->is_full[got.slot] = true;
}

/* Every expert is where the history of placements says, and nowhere else. */
static void check_pair(struct pair *pair)
{
    struct naive *naive = &pair->naive;
    for (uint32_t il = 0; il < naive->config.n_layer; il++) {
        assert_int_equal(expert_cache_n_resident(pair->cache, il),
                         count_layer(naive, il, COUNT_RESIDENT));
        for (uint32_t ie = 0; ie < naive->config.n_expert; ie++) {
            const struct expert_key key = {il, ie};
            const int32_t slot = expert_cache_find(pair->cache, key);
            assert_int_equal(slot != EXPERT_NO_SLOT, naive->expert[il][ie].resident);
            if (slot == EXPERT_NO_SLOT) continue;
            assert_memory_equal(&pair->in_slot[slot], &key, sizeof(key));
            assert_int_equal(expert_cache_is_admitted(pair->cache, slot),
                             naive->expert[il][ie].admitted);
        }
    }
    for (uint32_t i = 0; i < N_CLASS; i++) {
        assert_int_equal(expert_cache_n_free(pair->cache, i),
                         naive->slot_of_class[i] - count_class(naive, i, COUNT_RESIDENT));
        assert_int_equal(expert_cache_n_transient(pair->cache, i),
                         count_class(naive, i, COUNT_TRANSIENT));
    }
}

static void unpin_both(struct pair *pair, struct expert_key key)
{
    expert_cache_unpin(pair->cache, expert_cache_find(pair->cache, key));
    naive_unpin(&pair->naive, key);
}

static bool chance(uint32_t one_in)
{
    return random_below(one_in) == 0;
}

/* Computes with n experts of a layer as the pager does: what is there is pinned, what is not is
 * placed; when nothing more can be placed, what is pinned is computed with and released. */
static void run_layer(struct pair *pair, uint32_t il, const uint32_t *experts, uint32_t n)
{
    struct expert_key pinned[MAX_EXPERT];
    bool is_done[MAX_EXPERT] = {false};
    uint32_t n_pinned = 0, n_done = 0;
    bool placed;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t n_row = 1 + random_below(pair->naive.prefill ? 9 : 1);
        naive_use(&pair->naive, (struct expert_key){il, experts[i]}, n_row);
        expert_cache_use(pair->cache, (struct expert_key){il, experts[i]}, n_row);
    }
    while (n_done < n) {
        const uint32_t n_before = n_done;
        for (uint32_t i = 0; i < n; i++) { /* what is there */
            const struct expert_key key = {il, experts[i]};
            const int32_t slot = expert_cache_find(pair->cache, key);
            if (is_done[i] || slot == EXPERT_NO_SLOT) continue;
            expert_cache_pin(pair->cache, slot);
            naive_at(&pair->naive, key)->n_pin++;
            pinned[n_pinned++] = key;
            is_done[i] = true;
            n_done++;
        }
        for (uint32_t i = 0; i < n; i++) {
            const struct expert_key key = {il, experts[i]};
            if (is_done[i]) continue;
            place_both(pair, key, PLACE_DEMAND, &placed);
            if (!placed) break;
            pinned[n_pinned++] = key;
            is_done[i] = true;
            n_done++;
            if (chance(40)) { /* its read failed */
                pair->is_full[expert_cache_find(pair->cache, key)] = false;
                expert_cache_drop(pair->cache, key);
                naive_at(&pair->naive, key)->resident = false;
                n_pinned--;
            }
        }
        assert_true(n_done > n_before); /* nothing is pinned, so something can be placed */
        while (n_pinned)
            unpin_both(pair, pinned[--n_pinned]);
    }
}

static void guess(struct pair *pair, enum place_kind kind)
{
    const struct expert_key key = {random_below(pair->naive.config.n_layer),
                                   random_below(pair->naive.config.n_expert)};
    bool placed;
    if (expert_cache_find(pair->cache, key) != EXPERT_NO_SLOT) return;
    place_both(pair, key, kind, &placed);
    if (placed) unpin_both(pair, key);
}

/* Another tier gets an expert, or gives it up; or wants to know which goes next. */
static void share(struct pair *pair)
{
    struct naive *naive = &pair->naive;
    const struct expert_key key = {random_below(naive->config.n_layer),
                                   random_below(naive->config.n_expert)};
    struct naive_expert *expert = naive_at(naive, key);
    const bool spare = chance(2);
    expert_cache_set_spare(pair->cache, key, spare);
    if (!expert->resident || expert->spare == spare) return;
    expert->spare = spare;
    expert->admitted = !spare;
    if (spare) naive_arrive(naive, key);
}

static void demote(struct pair *pair)
{
    const uint32_t class_index = random_below(N_CLASS);
    struct expert_key expected = {0, 0}, got;
    const bool any = naive_least_of_class(&pair->naive, class_index, true, &expected);
    assert_int_equal(expert_cache_least(pair->cache, class_index, &got), any);
    if (!any) return;
    assert_memory_equal(&got, &expected, sizeof(got));
    expert_cache_demote(pair->cache, got);
    naive_demote(&pair->naive, got);
}

static void run_step(struct pair *pair, uint32_t n_used)
{
    struct naive *naive = &pair->naive;
    const uint32_t n_expert = naive->config.n_expert;
    const bool prefill = chance(6);
    const uint32_t n_token = prefill ? 2 + random_below(300) : 1;
    const uint32_t n = prefill ? 1 + random_below(n_expert) : n_used < n_expert ? n_used : n_expert;
    expert_cache_advance(pair->cache, n_token, prefill);
    naive->now += n_token;
    naive->prefill = prefill;
    for (uint32_t il = 0; il < naive->config.n_layer; il++) {
        uint32_t experts[MAX_EXPERT];
        for (uint32_t i = 0; i < n_expert; i++)
            experts[i] = i;
        for (uint32_t i = 0; i < n; i++) { /* low numbers more often */
            const uint32_t left = n_expert - i;
            const uint32_t at = random_below(1 + random_below(left));
            const uint32_t taken = experts[i + at];
            experts[i + at] = experts[i];
            experts[i] = taken;
        }
        run_layer(pair, il, experts, n);
        if (chance(4)) guess(pair, PLACE_SPECULATIVE);
        if (chance(4)) guess(pair, PLACE_ADMISSION);
        if (chance(8)) guess(pair, PLACE_BACKGROUND);
        if (chance(3)) share(pair);
        if (chance(4)) demote(pair);
    }
}

/* Another number of slots: those that leave are the least, nothing else does, and what stays is
 * where there are slots. */
static void resize_both(struct pair *pair)
{
    struct naive *naive = &pair->naive;
    struct cache_move moves[MAX_SLOT];
    const uint32_t i = random_below(N_CLASS), n_slot = 1 + random_below(naive->made[i]);
    const size_t n = expert_cache_resize(pair->cache, i, n_slot, moves);
    size_t at = 0;
    naive_size(naive, i, n_slot);
    for (; count_class(naive, i, COUNT_RESIDENT) > n_slot; at++) {
        struct expert_key victim;
        if (!naive_oldest(naive, i, &victim))
            assert_true(naive_least_of_class(naive, i, false, &victim));
        assert_true(at < n);
        assert_memory_equal(&moves[at].key, &victim, sizeof(victim));
        assert_int_equal(moves[at].to, EXPERT_NO_SLOT);
        assert_memory_equal(&pair->in_slot[moves[at].from], &victim, sizeof(victim));
        naive_at(naive, victim)->resident = false;
        pair->is_full[moves[at].from] = false;
    }
    const int32_t end = (int32_t)((i ? naive->made[0] : 0) + n_slot);
    for (; at < n; at++) {
        const struct cache_move *move = &moves[at];
        assert_true(move->from >= end && move->to < end && !pair->is_full[move->to]);
        assert_memory_equal(&pair->in_slot[move->from], &move->key, sizeof(move->key));
        pair->in_slot[move->to] = move->key;
        pair->is_full[move->to] = true;
        pair->is_full[move->from] = false;
        if (!naive_at(naive, move->key)->admitted) naive_arrive(naive, move->key);
    }
    for (uint32_t slot = (uint32_t)end; slot < naive->made[0] + (i ? naive->made[1] : 0); slot++)
        assert_false(pair->is_full[slot]);
}

static void run_trace(const struct cache_policy *policy, uint64_t seed)
{
    struct pair *pair = malloc(sizeof(*pair));
    assert_non_null(pair);
    random_state = seed;
    open_pair(pair, policy);
    const uint32_t n_used = 1 + random_below(5);
    for (uint32_t i = random_below(30); i > 0; i--)
        guess(pair, PLACE_BACKGROUND);
    for (uint32_t i = 0; i < 60; i++) {
        run_step(pair, n_used);
        check_pair(pair);
        if (!chance(8)) continue;
        resize_both(pair);
        check_pair(pair);
    }
    expert_cache_destroy(pair->cache);
    free(pair);
}

static void decides_like_the_naive_cache(void **state)
{
    static const struct cache_policy *const policies[] = {&policy_lru, &policy_lfru,
                                                          &policy_static};
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++)
        for (size_t i = 0; i < 3; i++) {
            run_trace(policies[i], seed * 0x9e3779b97f4a7c15u + i);
        }
}

/* ---- single properties -------------------------------------------------------------------- */

static struct expert_cache *small_cache(const struct cache_policy *policy, uint32_t n_layer,
                                        uint32_t n_expert, uint32_t n_slot, uint32_t floor)
{
    static const uint32_t class_of[64] = {0};
    struct lm_error err;
    struct expert_cache *cache;
    const struct expert_cache_config config = {.n_layer = n_layer,
                                               .n_expert = n_expert,
                                               .class_of = class_of,
                                               .slot_of_class = &n_slot,
                                               .n_class = 1,
                                               .floor = floor,
                                               .policy = policy};
    assert_int_equal(expert_cache_create(&cache, &config, &err), LM_OK);
    return cache;
}

/* True: it was there. */
static bool look_up(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    const struct expert_key key = {layer, expert};
    expert_cache_use(cache, key, 1);
    if (expert_cache_find(cache, key) != EXPERT_NO_SLOT) return true;
    const struct cache_placement placement = expert_cache_place(cache, key, PLACE_DEMAND);
    assert_int_not_equal(placement.slot, EXPERT_NO_SLOT);
    expert_cache_unpin(cache, placement.slot);
    return false;
}

/* The same expert of each of 8 layers, over and over, with slots for 7: LRU over all would miss
 * every time. */
static void a_cycle_larger_than_the_cache_still_hits(void **state)
{
    static const struct cache_policy *const policies[] = {&policy_lru, &policy_lfru};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct expert_cache *cache = small_cache(policies[i], 8, 4, 7, 1);
        uint32_t n_hit = 0;
        for (uint32_t step = 0; step < 100; step++) {
            expert_cache_advance(cache, 1, false);
            for (uint32_t il = 0; il < 8; il++)
                n_hit += look_up(cache, il, 0);
        }
        assert_in_range(n_hit, 99 * 5, 99 * 7);
        expert_cache_destroy(cache);
    }
}

static void prefill_does_not_flood(void **state)
{
    static const struct cache_policy *const policies[] = {&policy_lru, &policy_lfru};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct expert_cache *cache = small_cache(policies[i], 1, 256, 64, 8);
        for (uint32_t step = 0; step < 200; step++) { /* 60 hot experts */
            expert_cache_advance(cache, 1, false);
            for (uint32_t k = 0; k < 8; k++)
                look_up(cache, 0, (step * 8 + k) % 60);
        }
        expert_cache_advance(cache, 250, true);
        for (uint32_t ie = 0; ie < 256; ie++)
            expert_cache_use(cache, (struct expert_key){0, ie}, 1);
        for (uint32_t ie = 0; ie < 256; ie++) {
            const struct expert_key key = {0, ie};
            if (expert_cache_find(cache, key) != EXPERT_NO_SLOT) continue;
            const struct cache_placement placement = expert_cache_place(cache, key, PLACE_DEMAND);
            expert_cache_unpin(cache, placement.slot);
        }
        uint32_t n_left = 0;
        for (uint32_t ie = 0; ie < 60; ie++)
            n_left += expert_cache_find(cache, (struct expert_key){0, ie}) != EXPERT_NO_SLOT;
        assert_true(n_left >= 64 - 17 - 4); /* all but what transients took */
        expert_cache_destroy(cache);
    }
}

/* A prompt that uses other experts than what is resident warms the cache for what follows. */
static void a_prompt_warms_the_cache(void **state)
{
    (void)state;
    struct expert_cache *cache = small_cache(&policy_lfru, 1, 64, 16, 2);
    for (uint32_t step = 0; step < 50; step++) {
        expert_cache_advance(cache, 1, false);
        look_up(cache, 0, step % 16);
    }
    expert_cache_advance(cache, 500, true);
    for (uint32_t ie = 0; ie < 64; ie++)
        expert_cache_use(cache, (struct expert_key){0, ie}, ie >= 48 ? 100 : 1);
    for (uint32_t ie = 0; ie < 64; ie++) {
        const struct expert_key key = {0, ie};
        if (expert_cache_find(cache, key) != EXPERT_NO_SLOT) continue;
        expert_cache_unpin(cache, expert_cache_place(cache, key, PLACE_DEMAND).slot);
    }
    uint32_t n_warm = 0;
    for (uint32_t ie = 48; ie < 64; ie++)
        n_warm += expert_cache_find(cache, (struct expert_key){0, ie}) != EXPERT_NO_SLOT;
    assert_true(n_warm >= 14);
    expert_cache_destroy(cache);
}

static void nothing_goes_while_all_is_pinned(void **state)
{
    (void)state;
    struct expert_cache *cache = small_cache(&policy_lfru, 1, 8, 3, 2);
    int32_t slot[3];
    expert_cache_advance(cache, 1, false);
    for (uint32_t ie = 0; ie < 4; ie++)
        expert_cache_use(cache, (struct expert_key){0, ie}, 1);
    for (uint32_t ie = 0; ie < 3; ie++)
        slot[ie] = expert_cache_place(cache, (struct expert_key){0, ie}, PLACE_DEMAND).slot;
    assert_int_equal(expert_cache_place(cache, (struct expert_key){0, 3}, PLACE_DEMAND).slot,
                     EXPERT_NO_SLOT);
    expert_cache_pin(cache, slot[1]);
    expert_cache_unpin(cache, slot[1]); /* pinned once still */
    assert_int_equal(expert_cache_place(cache, (struct expert_key){0, 3}, PLACE_DEMAND).slot,
                     EXPERT_NO_SLOT);
    expert_cache_unpin(cache, slot[1]);
    assert_int_equal(expert_cache_place(cache, (struct expert_key){0, 3}, PLACE_DEMAND).slot,
                     slot[1]);
    expert_cache_destroy(cache);
}

/* The growing unit of heat is taken back many times in this run. */
static void heat_decays_by_the_half_life(void **state)
{
    const double half_life = 8 * 8 / 8; /* 8 turns of one token */
    double heat[8] = {0};
    (void)state;
    struct expert_cache *cache = small_cache(&policy_lfru, 1, 8, 8, 8);
    random_state = 7;
    for (uint32_t step = 0; step < 20000; step++) {
        const uint32_t used = random_below(8);
        expert_cache_advance(cache, 1, false);
        expert_cache_use(cache, (struct expert_key){0, used}, 1);
        for (uint32_t ie = 0; ie < 8; ie++) {
            heat[ie] = heat[ie] * exp2(-1 / half_life) + (ie == used);
            const double got = (double)expert_cache_heat(cache, (struct expert_key){0, ie});
            assert_true(fabs(got - heat[ie]) <= 1e-6 * heat[ie]);
        }
    }
    expert_cache_destroy(cache);
}

static void counts_what_it_did(void **state)
{
    (void)state;
    struct expert_cache *cache = small_cache(&policy_lru, 1, 4, 2, 1);
    for (uint32_t step = 0; step < 3; step++) { /* the third evicts 0 */
        expert_cache_advance(cache, 1, false);
        look_up(cache, 0, step);
    }
    expert_cache_advance(cache, EXPERT_REMISS_TOKENS - 1, false);
    look_up(cache, 0, 0); /* evicts 1 */
    expert_cache_advance(cache, EXPERT_REMISS_TOKENS, false);
    look_up(cache, 0, 1); /* evicts 2 */
    expert_cache_advance(cache, 3, false);
    const struct expert_key key = {0, 2};
    expert_cache_unpin(cache, expert_cache_place(cache, key, PLACE_SPECULATIVE).slot);
    look_up(cache, 0, 2);
    look_up(cache, 0, 2);
    const struct expert_cache_stats stats = expert_cache_stats(cache);
    assert_int_equal(stats.n_placed, 5);
    assert_int_equal(stats.n_admitted, 5);
    assert_int_equal(stats.n_evicted, 4);
    assert_int_equal(stats.n_remiss, 1);
    assert_int_equal(stats.n_speculative, 1);
    assert_int_equal(stats.n_speculative_used, 1);
    assert_int_equal(stats.n_speculative_wasted, 0);

    expert_cache_advance(cache, 1, false);
    const struct expert_key unused = {0, 3};
    expert_cache_unpin(cache, expert_cache_place(cache, unused, PLACE_SPECULATIVE).slot);
    assert_int_equal(expert_cache_stats(cache).n_speculative_wasted, 0);
    expert_cache_advance(cache, 1, false);
    look_up(cache, 0, 0); /* evicts it */
    assert_int_equal(expert_cache_find(cache, unused), EXPERT_NO_SLOT);
    assert_int_equal(expert_cache_stats(cache).n_speculative_used, 1);
    assert_int_equal(expert_cache_stats(cache).n_speculative_wasted, 1);
    expert_cache_destroy(cache);
}

static void policies_have_names(void **state)
{
    (void)state;
    assert_ptr_equal(policy_find("lru"), &policy_lru);
    assert_ptr_equal(policy_find("lfru"), &policy_lfru);
    assert_ptr_equal(policy_find("static"), &policy_static);
    assert_null(policy_find("fifo"));
    expert_cache_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decides_like_the_naive_cache),
        cmocka_unit_test(a_cycle_larger_than_the_cache_still_hits),
        cmocka_unit_test(prefill_does_not_flood),
        cmocka_unit_test(a_prompt_warms_the_cache),
        cmocka_unit_test(nothing_goes_while_all_is_pinned),
        cmocka_unit_test(heat_decays_by_the_half_life),
        cmocka_unit_test(counts_what_it_did),
        cmocka_unit_test(policies_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
