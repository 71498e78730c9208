#include "coordinator/grammar/pushdown.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/grammar/grow.h"

enum {
    N_SEEN = 4 * PUSHDOWN_CONFIGS_MAX,
    N_CALL_MAX = PUSHDOWN_CONFIGS_MAX,
    N_LIST_MAX_FIRST = 1 << 14,
};

/* ---- lists ---------------------------------------------------------------------------------- */

static int compare_configs(const void *left, const void *right)
{
    const struct config *a = left, *b = right;
    if (a->below != b->below) return a->below < b->below ? -1 : 1;
    if (a->place.state != b->place.state) return a->place.state < b->place.state ? -1 : 1;
    if (a->place.least != b->place.least) return a->place.least < b->place.least ? -1 : 1;
    return (a->place.most > b->place.most) - (a->place.most < b->place.most);
}

static void sort_configs(struct config *configs, size_t n)
{
    if (n > 16) {
        qsort(configs, n, sizeof(*configs), compare_configs);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        const struct config config = configs[i];
        size_t at = i;
        for (; at && compare_configs(&config, &configs[at - 1]) < 0; at--)
            configs[at] = configs[at - 1];
        configs[at] = config;
    }
}

static uint32_t clamp(uint32_t counter, uint32_t n_ahead)
{
    return counter <= n_ahead ? counter : n_ahead + 1;
}

/* Its key is a sum, so that the order of configurations, which differs from run to run, does not
 * matter. */
static void describe(const struct pushdown *pushdown, struct config_list *list)
{
    for (uint32_t i = 0; i < list->n; i++) {
        const struct config *config = &pushdown->configs[list->first + i];
        const uint64_t *below = pushdown->lists[config->below].key;
        list->complete |= config->place.state == STATE_END;
        const uint64_t words[] = {(uint64_t)config->place.state << 32 |
                                      clamp(config->place.least, pushdown->n_ahead),
                                  clamp(config->place.most, pushdown->n_ahead), below[0], below[1]};
        const XXH128_hash_t hash = XXH3_128bits(words, sizeof(words));
        list->key[0] += hash.low64;
        list->key[1] += hash.high64;
    }
}

static uint64_t list_hash(const struct config *configs, size_t n)
{
    return XXH3_64bits(configs, n * sizeof(*configs));
}

static bool rebuild_table(struct pushdown *pushdown, size_t n_slot)
{
    uint32_t *table = calloc(n_slot, sizeof(*table));
    if (!table) return false;
    for (size_t i = 1; i < pushdown->n_list; i++) {
        const struct config_list *list = &pushdown->lists[i];
        size_t slot = list_hash(pushdown->configs + list->first, list->n) & (n_slot - 1);
        while (table[slot])
            slot = (slot + 1) & (n_slot - 1);
        table[slot] = (uint32_t)i;
    }
    free(pushdown->table);
    pushdown->table = table;
    pushdown->n_slot = n_slot;
    return true;
}

/* configs: sorted, distinct. */
static uint32_t intern(struct pushdown *pushdown, const struct config *configs, size_t n)
{
    if (!n) return LIST_DEAD;
    const size_t mask = pushdown->n_slot - 1;
    size_t slot = list_hash(configs, n) & mask;
    for (; pushdown->table[slot]; slot = (slot + 1) & mask) {
        const struct config_list *list = &pushdown->lists[pushdown->table[slot]];
        if (list->n == n && !memcmp(pushdown->configs + list->first, configs, n * sizeof(*configs)))
            return pushdown->table[slot];
    }
    if (!grow_to(&pushdown->configs, &pushdown->config_room, pushdown->n_config + n,
                 sizeof(*configs)) ||
        !grow_to(&pushdown->lists, &pushdown->list_room, pushdown->n_list + 1,
                 sizeof(*pushdown->lists))) {
        pushdown->no_memory = true;
        return LIST_DEAD;
    }
    struct config_list *list = &pushdown->lists[pushdown->n_list];
    *list = (struct config_list){
        .first = (uint32_t)pushdown->n_config, .n = (uint32_t)n, .first_next = NO_NEXT};
    memcpy(pushdown->configs + pushdown->n_config, configs, n * sizeof(*configs));
    pushdown->n_config += n;
    describe(pushdown, list);
    pushdown->table[slot] = (uint32_t)pushdown->n_list++;
    const uint32_t id = pushdown->table[slot];
    if (2 * pushdown->n_list > pushdown->n_slot && !rebuild_table(pushdown, 2 * pushdown->n_slot))
        pushdown->no_memory = true; /* every list is still found, until the table is full */
    if (pushdown->n_list + 1 >= pushdown->n_slot) {
        pushdown->no_memory = true;
        pushdown->n_list--;
        pushdown->n_config -= n;
        pushdown->table[slot] = 0;
        return LIST_DEAD;
    }
    return id;
}

uint32_t pushdown_list(struct pushdown *pushdown, const struct config *configs, size_t n)
{
    struct config *sorted = malloc((n + 1) * sizeof(*sorted));
    if (!sorted) {
        pushdown->no_memory = true;
        return LIST_DEAD;
    }
    memcpy(sorted, configs, n * sizeof(*sorted));
    sort_configs(sorted, n);
    const uint32_t list = intern(pushdown, sorted, n);
    free(sorted);
    return list;
}

/* ---- closure -------------------------------------------------------------------------------- */

static void find(struct pushdown *pushdown, struct place place, uint32_t below)
{
    const struct config config = {place, below};
    size_t slot = list_hash(&config, 1) & (N_SEEN - 1);
    for (; pushdown->seen[slot]; slot = (slot + 1) & (N_SEEN - 1))
        if (!compare_configs(&pushdown->found[pushdown->seen[slot] - 1], &config)) return;
    if (pushdown->n_found == PUSHDOWN_CONFIGS_MAX) return;
    if (!grow_to(&pushdown->found, &pushdown->found_room, pushdown->n_found + 1,
                 sizeof(*pushdown->found))) {
        pushdown->no_memory = true;
        return;
    }
    pushdown->found[pushdown->n_found++] = config;
    pushdown->seen[slot] = (uint16_t)pushdown->n_found;
}

static void find_all(struct pushdown *pushdown, uint32_t list)
{
    const uint32_t first = pushdown->lists[list].first, n = pushdown->lists[list].n;
    for (uint32_t i = 0; i < n; i++)
        find(pushdown, pushdown->configs[first + i].place, pushdown->configs[first + i].below);
}

static void add_call(struct pushdown *pushdown, uint32_t rule, struct place after, uint32_t below)
{
    if (pushdown->n_call == N_CALL_MAX) return;
    if (!grow_to(&pushdown->calls, &pushdown->call_room, pushdown->n_call + 1,
                 sizeof(*pushdown->calls))) {
        pushdown->no_memory = true;
        return;
    }
    pushdown->calls[pushdown->n_call++] = (struct pending_call){rule, {after, below}};
}

/* A call that nothing follows in its rule returns to where the rule itself returns. */
static void call(struct pushdown *pushdown, uint32_t rule, struct place after, uint32_t below)
{
    if (after.state != STATE_RETURN) {
        add_call(pushdown, rule, after, below);
        return;
    }
    const uint32_t first = pushdown->lists[below].first, n = pushdown->lists[below].n;
    for (uint32_t i = 0; i < n; i++)
        add_call(pushdown, rule, pushdown->configs[first + i].place,
                 pushdown->configs[first + i].below);
}

static void follow(struct pushdown *pushdown, struct config config)
{
    const struct grammar *const grammar = pushdown->grammar;
    const struct state *const state = &grammar->states[config.place.state];
    if (config.place.state == STATE_RETURN) {
        find_all(pushdown, config.below);
        return;
    }
    if (state->loop_rule != LOOP_NONE) {
        const uint32_t least = config.place.least, most = config.place.most;
        const struct place again = {config.place.state, least ? least - 1 : 0,
                                    most == UINT32_MAX ? most : most - 1};
        const struct place over = {.state = STATE_RETURN};
        if (most) call(pushdown, state->loop_rule, again.most ? again : over, config.below);
        if (!least) find_all(pushdown, config.below);
        return;
    }
    for (uint32_t i = 0; i < state->n_move; i++) {
        const struct move *move = &grammar->moves[state->first_move + i];
        const struct place target = {.state = move->target};
        if (move->kind == MOVE_EMPTY)
            find(pushdown, target, config.below);
        else if (move->kind == MOVE_CALL)
            call(pushdown, move->rule, target, config.below);
    }
}

/* Enters the first rule that is called: later ones may call none before it, so all its callers are
 * known. */
static void enter_rule(struct pushdown *pushdown)
{
    uint32_t rule = UINT32_MAX;
    for (size_t i = 0; i < pushdown->n_call; i++)
        if (pushdown->calls[i].rule < rule) rule = pushdown->calls[i].rule;
    size_t n_after = 0, n_rest = 0;
    struct config *after = malloc(pushdown->n_call * sizeof(*after));
    if (!after) {
        pushdown->no_memory = true;
        pushdown->n_call = 0;
        return;
    }
    for (size_t i = 0; i < pushdown->n_call; i++)
        if (pushdown->calls[i].rule == rule)
            after[n_after++] = pushdown->calls[i].after;
        else
            pushdown->calls[n_rest++] = pushdown->calls[i];
    pushdown->n_call = n_rest;
    sort_configs(after, n_after);
    size_t n_distinct = 1;
    for (size_t i = 1; i < n_after; i++)
        if (compare_configs(&after[i], &after[n_distinct - 1])) after[n_distinct++] = after[i];
    const uint32_t below = intern(pushdown, after, n_distinct);
    free(after);
    if (below != LIST_DEAD) find(pushdown, pushdown->grammar->rules[rule].start, below);
}

/* From what has been found to the list of the configurations that wait for a byte or the end. */
static uint32_t close_found(struct pushdown *pushdown)
{
    for (size_t i = 0; i < pushdown->n_found || pushdown->n_call;)
        if (i < pushdown->n_found)
            follow(pushdown, pushdown->found[i++]);
        else
            enter_rule(pushdown);
    size_t n_kept = 0;
    for (size_t i = 0; i < pushdown->n_found; i++) {
        const struct config config = pushdown->found[i];
        size_t slot = list_hash(&config, 1) & (N_SEEN - 1);
        for (; pushdown->seen[slot]; slot = (slot + 1) & (N_SEEN - 1))
            pushdown->seen[slot] = 0;
        if (config.place.state == STATE_END ||
            pushdown->grammar->states[config.place.state].takes_bytes)
            pushdown->found[n_kept++] = config;
    }
    pushdown->n_found = 0;
    sort_configs(pushdown->found, n_kept);
    return intern(pushdown, pushdown->found, n_kept);
}

uint32_t pushdown_start(struct pushdown *pushdown)
{
    find(pushdown, pushdown->grammar->rules[pushdown->grammar->start_rule].start, LIST_BOTTOM);
    return close_found(pushdown);
}

uint32_t pushdown_return(struct pushdown *pushdown, uint32_t list)
{
    find_all(pushdown, list);
    return close_found(pushdown);
}

uint32_t pushdown_work_out(struct pushdown *pushdown, uint32_t list, uint32_t byte_class)
{
    const struct grammar *const grammar = pushdown->grammar;
    const uint8_t byte = grammar->class_byte[byte_class];
    if (list == LIST_DEAD) return LIST_DEAD;
    if (pushdown->lists[list].first_next == NO_NEXT) {
        if (!grow_to(&pushdown->next, &pushdown->next_room, pushdown->n_next + grammar->n_class,
                     sizeof(*pushdown->next))) {
            pushdown->no_memory = true;
            return LIST_DEAD;
        }
        pushdown->lists[list].first_next = (uint32_t)pushdown->n_next;
        memset(pushdown->next + pushdown->n_next, 0xff, grammar->n_class * sizeof(*pushdown->next));
        pushdown->n_next += grammar->n_class;
    }
    const struct config_list at = pushdown->lists[list];
    for (uint32_t i = 0; i < at.n; i++) {
        const struct config config = pushdown->configs[at.first + i];
        const struct state *state = &grammar->states[config.place.state];
        for (uint32_t m = 0; m < state->n_move; m++) {
            const struct move *move = &grammar->moves[state->first_move + m];
            if (move->kind == MOVE_BYTES && move->low <= byte && byte <= move->high)
                find(pushdown, (struct place){.state = move->target}, config.below);
        }
    }
    const uint32_t next = close_found(pushdown);
    pushdown->next[at.first_next + byte_class] = next;
    return next;
}

/* ---- life ----------------------------------------------------------------------------------- */

bool pushdown_init(struct pushdown *pushdown, const struct grammar *grammar, uint32_t n_ahead)
{
    const struct config end = {.place.state = STATE_END, .below = LIST_DEAD};
    *pushdown =
        (struct pushdown){.grammar = grammar, .n_ahead = n_ahead, .n_list_max = N_LIST_MAX_FIRST};
    pushdown->seen = calloc(N_SEEN, sizeof(*pushdown->seen));
    if (!pushdown->seen || !rebuild_table(pushdown, 1024) ||
        !grow_to(&pushdown->lists, &pushdown->list_room, 2, sizeof(*pushdown->lists)))
        goto no_memory;
    pushdown->lists[LIST_DEAD] = (struct config_list){.first_next = NO_NEXT};
    pushdown->n_list = 1;
    if (intern(pushdown, &end, 1) == LIST_BOTTOM) return true;
no_memory:
    pushdown_fini(pushdown);
    return false;
}

void pushdown_fini(struct pushdown *pushdown)
{
    free(pushdown->configs);
    free(pushdown->lists);
    free(pushdown->next);
    free(pushdown->table);
    free(pushdown->found);
    free(pushdown->calls);
    free(pushdown->seen);
}

/* A list stands on lists with lower numbers only, and renumbering keeps their order: one pass down
 * marks what is needed, one up moves it together, and sorted lists stay sorted. */
void pushdown_collect(struct pushdown *pushdown, uint32_t *roots, size_t n)
{
    uint32_t *number = calloc(pushdown->n_list, sizeof(*number));
    if (!number) return; /* then later */
    number[LIST_BOTTOM] = 1;
    for (size_t i = 0; i < n; i++)
        number[roots[i]] = 1;
    for (size_t i = pushdown->n_list; i-- > 1;)
        for (uint32_t c = 0; number[i] && c < pushdown->lists[i].n; c++)
            number[pushdown->configs[pushdown->lists[i].first + c].below] = 1;
    size_t n_list = 1, n_config = 0;
    number[LIST_DEAD] = LIST_DEAD;
    for (size_t i = 1; i < pushdown->n_list; i++) {
        if (!number[i]) continue;
        struct config_list list = pushdown->lists[i];
        for (uint32_t c = 0; c < list.n; c++) {
            struct config config = pushdown->configs[list.first + c];
            config.below = number[config.below];
            pushdown->configs[n_config + c] = config;
        }
        list.first = (uint32_t)n_config;
        list.first_next = NO_NEXT;
        n_config += list.n;
        number[i] = (uint32_t)n_list;
        pushdown->lists[n_list++] = list;
    }
    pushdown->n_list = n_list;
    pushdown->n_config = n_config;
    pushdown->n_next = 0;
    for (size_t i = 0; i < n; i++)
        roots[i] = number[roots[i]];
    free(number);
    if (!rebuild_table(pushdown, pushdown->n_slot)) {
        /* the old table holds old numbers: without one, lists are found anew */
        memset(pushdown->table, 0, pushdown->n_slot * sizeof(*pushdown->table));
    }
    if (2 * n_list > pushdown->n_list_max) pushdown->n_list_max = 4 * n_list;
}
