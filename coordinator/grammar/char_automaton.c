/* Subset construction, products, and the smallest automaton (partition refinement after Moore). */
#include "coordinator/grammar/char_automaton.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/grammar/grow.h"
#include "proto/base/utf8.h"

enum {
    N_NFA_MAX = 1 << 17,     /* states */
    N_STATE_MAX = 1 << 15,   /* of a deterministic automaton */
    N_WORK_MAX = 1 << 26,    /* moves looked at */
    N_CELL_MAX = 1 << 23,    /* of a table */
    N_REFINED_MAX = 1 << 21, /* cells looked at for the smallest automaton before it is given up */
};

struct char_automaton *char_automaton_create(uint32_t n_state, uint32_t n_class)
{
    struct char_automaton *automaton = calloc(1, sizeof(*automaton));
    if (!automaton) return NULL;
    automaton->n_state = n_state;
    automaton->n_class = n_class;
    automaton->class_low = malloc((n_class + (size_t)1) * sizeof(*automaton->class_low));
    automaton->next = malloc(((size_t)n_state * n_class + 1) * sizeof(*automaton->next));
    automaton->accepts = calloc(n_state + (size_t)1, sizeof(*automaton->accepts));
    if (automaton->class_low && automaton->next && automaton->accepts) return automaton;
    char_automaton_destroy(automaton);
    return NULL;
}

void char_automaton_destroy(struct char_automaton *automaton)
{
    if (!automaton) return;
    free(automaton->class_low);
    free(automaton->next);
    free(automaton->accepts);
    free(automaton);
}

static enum lm_status fail_memory(struct lm_error *err)
{
    return lm_fail(err, LM_E_NO_MEM, "no memory for a pattern");
}

static enum lm_status fail_limit(struct lm_error *err)
{
    return lm_fail(err, LM_E_LIMIT,
                   "a pattern that needs more than %d states, or too long to find "
                   "them",
                   N_STATE_MAX);
}

static uint32_t class_of(const struct char_automaton *automaton, uint32_t code)
{
    uint32_t low = 0, high = automaton->n_class;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (automaton->class_low[middle] <= code)
            low = middle;
        else
            high = middle;
    }
    return low;
}

bool char_automaton_accepts(const struct char_automaton *automaton, const char *text, size_t n)
{
    uint32_t state = 0;
    if (!automaton->n_state) return false;
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t code;
        length = utf8_decode(text + i, n - i, &code);
        if (!length) return false;
        state = automaton->next[(size_t)state * automaton->n_class + class_of(automaton, code)];
        if (state == CHAR_NO_STATE) return false;
    }
    return automaton->accepts[state];
}

/* ---- nondeterministic ones ------------------------------------------------------------------ */

void char_nfa_init(struct char_nfa *nfa)
{
    *nfa = (struct char_nfa){0};
    char_nfa_reserve(nfa); /* CHAR_NFA_ACCEPT */
    char_nfa_reserve(nfa); /* CHAR_NFA_ACCEPT_ALL */
}

void char_nfa_fini(struct char_nfa *nfa)
{
    free(nfa->states);
    free(nfa->moves);
}

uint32_t char_nfa_reserve(struct char_nfa *nfa)
{
    if (nfa->n_state >= N_NFA_MAX && nfa->status == LM_OK) nfa->status = LM_E_LIMIT;
    if (nfa->status == LM_OK &&
        !grow_to(&nfa->states, &nfa->state_room, nfa->n_state + 1, sizeof(*nfa->states)))
        nfa->status = LM_E_NO_MEM;
    if (nfa->status != LM_OK) return CHAR_NFA_ACCEPT;
    nfa->states[nfa->n_state] = (struct char_nfa_state){0};
    return (uint32_t)nfa->n_state++;
}

void char_nfa_set_moves(struct char_nfa *nfa, uint32_t state, const struct char_move *moves,
                        size_t n)
{
    if (nfa->status == LM_OK && nfa->n_move + n > 16 * (size_t)N_NFA_MAX) nfa->status = LM_E_LIMIT;
    if (nfa->status == LM_OK &&
        !grow_to(&nfa->moves, &nfa->move_room, nfa->n_move + n, sizeof(*nfa->moves)))
        nfa->status = LM_E_NO_MEM;
    if (nfa->status != LM_OK || !n) return;
    nfa->states[state] = (struct char_nfa_state){(uint32_t)nfa->n_move, (uint32_t)n};
    memcpy(nfa->moves + nfa->n_move, moves, n * sizeof(*moves));
    nfa->n_move += n;
}

/* ---- subset construction -------------------------------------------------------------------- */

struct subsets {
    const struct char_nfa *nfa;
    struct char_automaton *automaton;   /* its classes; states are added below */
    uint32_t *first_class, *last_class; /* [n_move] classes of a range */
    uint32_t *members;                  /* of all sets: nfa states, sorted */
    struct subset {
        size_t first;
        uint32_t n;
        bool accepts;
    } * sets;
    uint32_t *next;  /* (sets, n_class) */
    uint32_t *table; /* [n_slot] sets by hash, counted from 1 */
    size_t n_member, member_room, n_set, set_room, next_room, n_slot;
    uint32_t *stack, *marked; /* [n_state of the nfa] */
    uint32_t *mark;           /* [n_state of the nfa] round in which it was found */
    uint32_t round;
    uint64_t n_work;
    enum lm_status status;
};

static int compare_u32(const void *left, const void *right)
{
    const uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* Finds all that is reached from the first n of `marked` without a character; returns how many. */
static size_t close_set(struct subsets *subsets, size_t n, bool at_begin, bool at_end)
{
    size_t n_stack = 0;
    for (size_t i = 0; i < n; i++)
        subsets->stack[n_stack++] = subsets->marked[i];
    while (n_stack) {
        const struct char_nfa_state *state = &subsets->nfa->states[subsets->stack[--n_stack]];
        subsets->n_work += state->n;
        for (uint32_t i = 0; i < state->n; i++) {
            const struct char_move *move = &subsets->nfa->moves[state->first + i];
            if (move->kind == CHAR_MOVE_RANGE || (move->kind == CHAR_MOVE_BEGIN && !at_begin) ||
                (move->kind == CHAR_MOVE_END && !at_end) ||
                subsets->mark[move->target] == subsets->round)
                continue;
            subsets->mark[move->target] = subsets->round;
            subsets->marked[n++] = subsets->stack[n_stack++] = move->target;
        }
    }
    return n;
}

static bool is_marked(const struct subsets *subsets, uint32_t state)
{
    return subsets->mark[state] == subsets->round;
}

/* The set of the first n of `marked`, which are marked, and what they reach. */
static uint32_t find_set(struct subsets *subsets, size_t n, bool at_begin)
{
    n = close_set(subsets, n, at_begin, false);
    if (is_marked(subsets, CHAR_NFA_ACCEPT_ALL)) {
        subsets->marked[0] = CHAR_NFA_ACCEPT_ALL; /* the others add nothing */
        n = 1;
    }
    if (!n) return CHAR_NO_STATE;
    qsort(subsets->marked, n, sizeof(*subsets->marked), compare_u32);
    subsets->n_work += n;
    size_t slot =
        XXH3_64bits(subsets->marked, n * sizeof(*subsets->marked)) & (subsets->n_slot - 1);
    for (; subsets->table[slot]; slot = (slot + 1) & (subsets->n_slot - 1)) {
        const struct subset *set = &subsets->sets[subsets->table[slot] - 1];
        if (set->n == n &&
            !memcmp(subsets->members + set->first, subsets->marked, n * sizeof(*subsets->marked)))
            return subsets->table[slot] - 1;
    }
    const size_t n_class = subsets->automaton->n_class;
    if (subsets->n_set == N_STATE_MAX || subsets->n_work > N_WORK_MAX ||
        (subsets->n_set + 1) * n_class > N_CELL_MAX) {
        subsets->status = LM_E_LIMIT;
        return CHAR_NO_STATE;
    }
    if (!grow_to(&subsets->members, &subsets->member_room, subsets->n_member + n,
                 sizeof(*subsets->members)) ||
        !grow_to(&subsets->sets, &subsets->set_room, subsets->n_set + 1, sizeof(*subsets->sets)) ||
        !grow_to(&subsets->next, &subsets->next_room, (subsets->n_set + 1) * n_class,
                 sizeof(*subsets->next))) {
        subsets->status = LM_E_NO_MEM;
        return CHAR_NO_STATE;
    }
    struct subset *set = &subsets->sets[subsets->n_set];
    *set = (struct subset){.first = subsets->n_member, .n = (uint32_t)n};
    memcpy(subsets->members + subsets->n_member, subsets->marked, n * sizeof(*subsets->marked));
    subsets->n_member += n;
    subsets->table[slot] = (uint32_t)++subsets->n_set;
    close_set(subsets, n, at_begin, true);
    set->accepts = is_marked(subsets, CHAR_NFA_ACCEPT) || is_marked(subsets, CHAR_NFA_ACCEPT_ALL);
    return (uint32_t)subsets->n_set - 1;
}

static uint32_t leave_set(struct subsets *subsets, uint32_t from, uint32_t class)
{
    const struct subset set = subsets->sets[from];
    size_t n = 0;
    subsets->round++;
    for (uint32_t m = 0; m < set.n; m++) {
        const uint32_t member = subsets->members[set.first + m];
        if (member == CHAR_NFA_ACCEPT_ALL) return from;
        const struct char_nfa_state *state = &subsets->nfa->states[member];
        subsets->n_work += state->n;
        for (uint32_t i = 0; i < state->n; i++) {
            const struct char_move *move = &subsets->nfa->moves[state->first + i];
            if (move->kind != CHAR_MOVE_RANGE || class < subsets->first_class[state->first + i] ||
                class > subsets->last_class[state->first + i] || is_marked(subsets, move->target))
                continue;
            subsets->mark[move->target] = subsets->round;
            subsets->marked[n++] = move->target;
        }
    }
    if (subsets->n_work > N_WORK_MAX) subsets->status = LM_E_LIMIT;
    return subsets->status == LM_OK ? find_set(subsets, n, false) : CHAR_NO_STATE;
}

/* Sorts the ends of ranges into classes; returns how many. */
static uint32_t sort_classes(uint32_t *lows, size_t n)
{
    uint32_t n_class = 0;
    qsort(lows, n, sizeof(*lows), compare_u32);
    for (size_t i = 0; i < n; i++)
        if (lows[i] <= CHAR_LAST && (!n_class || lows[i] != lows[n_class - 1]))
            lows[n_class++] = lows[i];
    return n_class;
}

static bool find_classes(struct subsets *subsets)
{
    const struct char_nfa *nfa = subsets->nfa;
    uint32_t *lows = malloc((2 * nfa->n_move + 1) * sizeof(*lows));
    size_t n = 0;
    if (!lows) return false;
    lows[n++] = 0;
    for (size_t i = 0; i < nfa->n_move; i++)
        if (nfa->moves[i].kind == CHAR_MOVE_RANGE) {
            lows[n++] = nfa->moves[i].low;
            lows[n++] = nfa->moves[i].high + 1;
        }
    const uint32_t n_class = sort_classes(lows, n);
    struct char_automaton *automaton = char_automaton_create(0, n_class);
    subsets->automaton = automaton;
    if (automaton) {
        memcpy(automaton->class_low, lows, n_class * sizeof(*lows));
        automaton->class_low[n_class] = CHAR_LAST + 1;
        for (size_t i = 0; i < nfa->n_move; i++)
            if (nfa->moves[i].kind == CHAR_MOVE_RANGE) {
                subsets->first_class[i] = class_of(automaton, nfa->moves[i].low);
                subsets->last_class[i] = class_of(automaton, nfa->moves[i].high);
            }
    }
    free(lows);
    return automaton;
}

static void build_subsets(struct subsets *subsets, uint32_t start)
{
    const size_t n_state = subsets->nfa->n_state, n_move = subsets->nfa->n_move;
    subsets->n_slot = 2 * N_STATE_MAX;
    subsets->first_class = malloc((n_move + 1) * sizeof(uint32_t));
    subsets->last_class = malloc((n_move + 1) * sizeof(uint32_t));
    subsets->table = calloc(subsets->n_slot, sizeof(uint32_t));
    subsets->stack = malloc(n_state * sizeof(uint32_t));
    subsets->marked = malloc(n_state * sizeof(uint32_t));
    subsets->mark = calloc(n_state, sizeof(uint32_t));
    if (!subsets->first_class || !subsets->last_class || !subsets->table || !subsets->stack ||
        !subsets->marked || !subsets->mark || !find_classes(subsets)) {
        subsets->status = LM_E_NO_MEM;
        return;
    }
    subsets->marked[0] = start;
    subsets->mark[start] = ++subsets->round;
    find_set(subsets, 1, true);
    const uint32_t n_class = subsets->automaton->n_class;
    for (uint32_t from = 0; from < subsets->n_set && subsets->status == LM_OK; from++)
        for (uint32_t class = 0; class < n_class && subsets->status == LM_OK; class ++) {
            const uint32_t to = leave_set(subsets, from, class);
            subsets->next[(size_t)from * n_class + class] = to;
        }
}

static void fini_subsets(struct subsets *subsets)
{
    free(subsets->first_class);
    free(subsets->last_class);
    free(subsets->members);
    free(subsets->sets);
    free(subsets->next);
    free(subsets->table);
    free(subsets->stack);
    free(subsets->marked);
    free(subsets->mark);
    char_automaton_destroy(subsets->automaton);
}

/* ---- the smallest automaton ----------------------------------------------------------------- */

/* Marks the states that lead to an accepting one. */
static bool find_live(const struct char_automaton *automaton, bool *live)
{
    const size_t n_state = automaton->n_state, n_class = automaton->n_class;
    uint32_t *head = malloc((n_state + 1) * sizeof(*head));
    uint32_t *link = malloc((n_state * n_class + 1) * sizeof(*link));
    uint32_t *queue = malloc((n_state + 1) * sizeof(*queue));
    const bool ok = head && link && queue;
    size_t n_queue = 0;
    if (ok) {
        /* edges by their target: edge e = (state e / n_class, class e % n_class) */
        memset(head, 0xff, (n_state + 1) * sizeof(*head));
        for (size_t e = 0; e < n_state * n_class; e++)
            if (automaton->next[e] != CHAR_NO_STATE) {
                link[e] = head[automaton->next[e]];
                head[automaton->next[e]] = (uint32_t)e;
            }
        for (size_t i = 0; i < n_state; i++)
            if ((live[i] = automaton->accepts[i])) queue[n_queue++] = (uint32_t)i;
        for (size_t i = 0; i < n_queue; i++)
            for (uint32_t e = head[queue[i]]; e != UINT32_MAX; e = link[e]) {
                const uint32_t from = (uint32_t)(e / n_class);
                if (!live[from]) queue[n_queue++] = from;
                live[from] = true;
            }
    }
    free(queue);
    free(link);
    free(head);
    return ok;
}

/* Refines block [n_state], which tells accepting, other live and dead (CHAR_NO_STATE) states
 * apart, until states of a block agree on the blocks that they lead to; or each state is a block of
 * its own, where that takes too long. Returns how many blocks there are, 0: no memory. Blocks are
 * numbered in the order of their first states. */
static uint32_t refine(const struct char_automaton *automaton, uint32_t *block)
{
    const size_t n_state = automaton->n_state, n_class = automaton->n_class;
    size_t n_slot = 16;
    while (n_slot < 2 * n_state)
        n_slot *= 2;
    uint32_t *row = malloc((n_class + 1) * sizeof(*row));
    uint32_t *finer = malloc(n_state * sizeof(*finer));
    struct {
        uint64_t hash;
        uint32_t block;
    } *table = malloc(n_slot * sizeof(*table));
    uint32_t n_block = 0, n_before;
    size_t n_looked = 0;
    if (!row || !finer || !table) goto out;
    do {
        n_before = n_block;
        n_block = 0;
        memset(table, 0xff, n_slot * sizeof(*table));
        for (size_t i = 0; i < n_state; i++) {
            finer[i] = CHAR_NO_STATE;
            if (block[i] == CHAR_NO_STATE) continue;
            row[n_class] = block[i];
            for (size_t c = 0; c < n_class; c++) {
                const uint32_t to = automaton->next[i * n_class + c];
                row[c] = to == CHAR_NO_STATE ? to : block[to];
            }
            /* 64 bits of hash stand for the row: of 32768 states two differ alike once in 10^10 */
            const uint64_t hash = XXH3_64bits(row, (n_class + 1) * sizeof(*row));
            size_t slot = hash & (n_slot - 1);
            while (table[slot].block != UINT32_MAX && table[slot].hash != hash)
                slot = (slot + 1) & (n_slot - 1);
            if (table[slot].block == UINT32_MAX) {
                table[slot].hash = hash;
                table[slot].block = n_block++;
            }
            finer[i] = table[slot].block;
        }
        memcpy(block, finer, n_state * sizeof(*finer));
        n_looked += n_state * n_class;
    } while (n_block != n_before && n_looked < N_REFINED_MAX);
    if (n_block != n_before) { /* long chains need a round per state, and are small already */
        n_block = 0;
        for (size_t i = 0; i < n_state; i++)
            if (block[i] != CHAR_NO_STATE) block[i] = n_block++;
    }
out:
    free(table);
    free(finer);
    free(row);
    return n_block;
}

/* The automaton of the blocks, with classes that it does not tell apart made one. */
static struct char_automaton *merge_states(const struct char_automaton *automaton,
                                           const uint32_t *block, uint32_t n_block)
{
    const size_t n_class = automaton->n_class;
    struct char_automaton *merged = char_automaton_create(n_block, automaton->n_class);
    uint32_t *first = malloc((n_block + (size_t)1) * sizeof(*first)); /* a state of each block */
    if (!merged || !first) {
        char_automaton_destroy(merged);
        free(first);
        return NULL;
    }
    for (size_t i = automaton->n_state; i-- > 0;)
        if (block[i] != CHAR_NO_STATE) first[block[i]] = (uint32_t)i;
    uint32_t n_kept = 0;
    for (size_t c = 0; c < n_class; c++) {
        bool same = c > 0;
        for (uint32_t b = 0; b < n_block; b++) {
            const uint32_t to = automaton->next[first[b] * n_class + c];
            const uint32_t target = to == CHAR_NO_STATE ? to : block[to];
            merged->next[(size_t)b * n_class + n_kept] = target;
            same = same && target == merged->next[(size_t)b * n_class + n_kept - 1];
        }
        if (!same) merged->class_low[n_kept++] = automaton->class_low[c];
    }
    for (uint32_t b = 0; b < n_block; b++) {
        memmove(merged->next + (size_t)b * n_kept, merged->next + (size_t)b * n_class,
                n_kept * sizeof(*merged->next));
        merged->accepts[b] = automaton->accepts[first[b]];
    }
    merged->n_class = n_kept;
    merged->class_low[n_kept] = CHAR_LAST + 1;
    free(first);
    return merged;
}

/* automaton: state 0 is the first one; all can be reached. */
static enum lm_status minimize(struct char_automaton **out, const struct char_automaton *automaton,
                               struct lm_error *err)
{
    const size_t n_state = automaton->n_state;
    bool *live = calloc(n_state + 1, sizeof(*live));
    uint32_t *block = malloc((n_state + 1) * sizeof(*block));
    struct char_automaton *merged = NULL;
    if (live && block && find_live(automaton, live)) {
        for (size_t i = 0; i < n_state; i++)
            block[i] = live[i] ? automaton->accepts[i] : CHAR_NO_STATE;
        const bool none = !n_state || !live[0];
        const uint32_t n_block = none ? 0 : refine(automaton, block);
        if (none || n_block) merged = merge_states(automaton, block, n_block);
    }
    free(block);
    free(live);
    if (!merged) return fail_memory(err);
    *out = merged;
    return LM_OK;
}

enum lm_status char_automaton_from_nfa(struct char_automaton **out, const struct char_nfa *nfa,
                                       uint32_t start, struct lm_error *err)
{
    struct subsets subsets = {.nfa = nfa, .status = nfa->status};
    enum lm_status status;
    if (subsets.status == LM_OK) build_subsets(&subsets, start);
    if (subsets.status == LM_E_LIMIT)
        status = fail_limit(err);
    else if (subsets.status != LM_OK)
        status = fail_memory(err);
    else {
        struct char_automaton *automaton = subsets.automaton;
        bool *accepts = realloc(automaton->accepts, (subsets.n_set + 1) * sizeof(*accepts));
        if (accepts) {
            for (size_t i = 0; i < subsets.n_set; i++)
                accepts[i] = subsets.sets[i].accepts;
            automaton->accepts = accepts;
            free(automaton->next);
            automaton->next = subsets.next;
            subsets.next = NULL;
            automaton->n_state = (uint32_t)subsets.n_set;
            status = minimize(out, automaton, err);
        } else
            status = fail_memory(err);
    }
    fini_subsets(&subsets);
    return status;
}

/* ---- products ------------------------------------------------------------------------------- */

struct product {
    const struct char_automaton *a, *b;
    struct char_automaton *automaton;
    uint32_t *pairs; /* [n_pair][2] states of a and b */
    uint32_t *table; /* [n_slot] pairs by hash, counted from 1 */
    size_t n_pair, pair_room, next_room, accepts_room, n_slot;
};

static uint32_t find_pair(struct product *product, uint32_t a, uint32_t b)
{
    const uint32_t pair[2] = {a, b};
    size_t slot = XXH3_64bits(pair, sizeof(pair)) & (product->n_slot - 1);
    for (; product->table[slot]; slot = (slot + 1) & (product->n_slot - 1))
        if (!memcmp(product->pairs + 2 * (product->table[slot] - 1), pair, sizeof(pair)))
            return product->table[slot] - 1;
    if (product->n_pair == N_STATE_MAX) return CHAR_NO_STATE;
    memcpy(product->pairs + 2 * product->n_pair, pair, sizeof(pair));
    product->table[slot] = (uint32_t)++product->n_pair;
    return (uint32_t)product->n_pair - 1;
}

static enum lm_status build_product(struct product *product, struct lm_error *err)
{
    const struct char_automaton *a = product->a, *b = product->b;
    struct char_automaton *const automaton = product->automaton;
    find_pair(product, 0, 0);
    for (size_t from = 0; from < product->n_pair; from++) {
        const uint32_t at_a = product->pairs[2 * from], at_b = product->pairs[2 * from + 1];
        if (product->n_pair == N_STATE_MAX || (from + 1) * automaton->n_class > N_CELL_MAX)
            return fail_limit(err);
        if (!grow_to(&automaton->next, &product->next_room, (from + 1) * automaton->n_class,
                     sizeof(*automaton->next)) ||
            !grow_to(&automaton->accepts, &product->accepts_room, from + 1,
                     sizeof(*automaton->accepts)))
            return fail_memory(err);
        automaton->accepts[from] = a->accepts[at_a] && b->accepts[at_b];
        for (uint32_t c = 0; c < automaton->n_class; c++) {
            const uint32_t low = automaton->class_low[c];
            const uint32_t to_a = a->next[(size_t)at_a * a->n_class + class_of(a, low)];
            const uint32_t to_b = b->next[(size_t)at_b * b->n_class + class_of(b, low)];
            automaton->next[from * automaton->n_class + c] =
                to_a == CHAR_NO_STATE || to_b == CHAR_NO_STATE ? CHAR_NO_STATE
                                                               : find_pair(product, to_a, to_b);
        }
    }
    automaton->n_state = (uint32_t)product->n_pair;
    return LM_OK;
}

enum lm_status char_automaton_intersect(struct char_automaton **out, const struct char_automaton *a,
                                        const struct char_automaton *b, struct lm_error *err)
{
    struct product product = {.a = a, .b = b, .n_slot = 2 * N_STATE_MAX};
    enum lm_status status = LM_E_NO_MEM;
    if (!a->n_state || !b->n_state) { /* nothing */
        struct char_automaton *nothing = char_automaton_create(0, 1);
        if (!nothing) return fail_memory(err);
        nothing->class_low[0] = 0;
        nothing->class_low[1] = CHAR_LAST + 1;
        *out = nothing;
        return LM_OK;
    }
    product.automaton = char_automaton_create(0, a->n_class + b->n_class);
    product.pairs = malloc(2 * (size_t)N_STATE_MAX * sizeof(*product.pairs));
    product.table = calloc(product.n_slot, sizeof(*product.table));
    if (!product.automaton || !product.pairs || !product.table)
        fail_memory(err);
    else {
        struct char_automaton *automaton = product.automaton;
        memcpy(automaton->class_low, a->class_low, a->n_class * sizeof(*a->class_low));
        memcpy(automaton->class_low + a->n_class, b->class_low, b->n_class * sizeof(*b->class_low));
        automaton->n_class = sort_classes(automaton->class_low, a->n_class + (size_t)b->n_class);
        automaton->class_low[automaton->n_class] = CHAR_LAST + 1;
        status = build_product(&product, err);
        if (status == LM_OK) status = minimize(out, automaton, err);
    }
    char_automaton_destroy(product.automaton);
    free(product.pairs);
    free(product.table);
    return status;
}

enum lm_status char_automaton_of_length(struct char_automaton **out, uint32_t least, uint32_t most,
                                        struct lm_error *err)
{
    const uint32_t last = most == UINT32_MAX ? least : most;
    if (last >= N_STATE_MAX || least > most) return fail_limit(err);
    struct char_automaton *automaton = char_automaton_create(last + 1, 1);
    if (!automaton) return fail_memory(err);
    automaton->class_low[0] = 0;
    automaton->class_low[1] = CHAR_LAST + 1;
    for (uint32_t i = 0; i <= last; i++) {
        automaton->next[i] = i < last ? i + 1 : most == UINT32_MAX ? i : CHAR_NO_STATE;
        automaton->accepts[i] = i >= least;
    }
    *out = automaton;
    return LM_OK;
}
