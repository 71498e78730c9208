/* Nodes, their splitting and pruning, and the counts that lead a search to a state. */
#include "coordinator/sched/prefix_index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Log-probabilities of one token; n_top is -1 where nothing was noted. */
struct kept_logprob {
    float logprob;
    int32_t n_top;
    int32_t top_id[PREFIX_N_TOP];
    float top_logprob[PREFIX_N_TOP];
};

struct prefix_node {
    struct prefix_node *parent, *child, *next; /* the first child, the next one of the parent */
    uint64_t key;                              /* tells the children of the root apart */
    int32_t *ids;                              /* [n] the edge from the parent */
    struct kept_logprob *logprob;              /* [n] or NULL */
    uint32_t n, end;                           /* end: tokens from the root to here */
    uint32_t n_hold;
    uint32_t n_state; /* states here and below */
    uint32_t slot;    /* of the state here, or PREFIX_NO_SLOT */
    uint64_t used;    /* clock of the last use */
};

struct prefix_index {
    struct prefix_node root;
    struct prefix_node **node_of; /* [n_slot] where a slot's state is kept, or NULL */
    uint32_t n_slot;
    uint64_t clock;
    size_t logprob_bytes, logprob_bytes_max;
};

enum lm_status prefix_index_create(struct prefix_index **out, uint32_t n_slot,
                                   size_t logprob_bytes_max, struct lm_error *err)
{
    struct prefix_index *index = calloc(1, sizeof(*index));
    if (index) index->node_of = calloc(n_slot, sizeof(*index->node_of));
    if (!index || !index->node_of) {
        free(index);
        return lm_fail(err, LM_E_NO_MEM, "prefix index: no memory for %u states", n_slot);
    }
    index->root.slot = PREFIX_NO_SLOT;
    index->n_slot = n_slot;
    index->logprob_bytes_max = logprob_bytes_max;
    *out = index;
    return LM_OK;
}

static void free_node(struct prefix_index *index, struct prefix_node *node)
{
    if (node->logprob) index->logprob_bytes -= node->n * sizeof(*node->logprob);
    free(node->logprob);
    free(node->ids);
    free(node);
}

void prefix_index_destroy(struct prefix_index *index)
{
    if (!index) return;
    /* depth first without recursion: a sequence may have many nodes */
    for (struct prefix_node *node = &index->root; node;) {
        if (node->child) {
            node = node->child;
            continue;
        }
        struct prefix_node *const parent = node->parent;
        if (parent) {
            parent->child = node->next;
            free_node(index, node);
        }
        node = parent;
    }
    free(index->node_of);
    free(index);
}

/* ---- the shape of the tree ---------------------------------------------------------------- */

static struct prefix_node *new_node(struct prefix_node *parent, uint64_t key, const int32_t *ids,
                                    uint32_t n)
{
    struct prefix_node *node = calloc(1, sizeof(*node));
    if (node) node->ids = malloc(n * sizeof(*node->ids));
    if (!node || !node->ids) {
        free(node);
        return NULL;
    }
    memcpy(node->ids, ids, n * sizeof(*ids));
    node->key = key;
    node->n = n;
    node->end = parent->end + n;
    node->parent = parent;
    node->slot = PREFIX_NO_SLOT;
    return node;
}

/* The link by which a node hangs on its parent. */
static struct prefix_node **link_of(struct prefix_node *node)
{
    struct prefix_node **link = &node->parent->child;
    while (*link != node)
        link = &(*link)->next;
    return link;
}

/* Moves the log-probabilities of a node's first n tokens to the new node above it. False: no
 * memory, and nothing has changed. */
static bool split_logprobs(struct prefix_node *node, struct prefix_node *upper, uint32_t n)
{
    if (!node->logprob) return true;
    upper->logprob = malloc(n * sizeof(*upper->logprob));
    if (!upper->logprob) return false;
    memcpy(upper->logprob, node->logprob, n * sizeof(*node->logprob));
    memmove(node->logprob, node->logprob + n, (node->n - n) * sizeof(*node->logprob));
    return true;
}

/* Cuts the edge to a node behind its first n tokens and returns the node made there; NULL: no
 * memory. */
static struct prefix_node *split(struct prefix_node *node, uint32_t n)
{
    assert(n > 0 && n < node->n);
    struct prefix_node *const upper = new_node(node->parent, node->key, node->ids, n);
    if (!upper) return NULL;
    if (!split_logprobs(node, upper, n)) {
        free(upper->ids);
        free(upper);
        return NULL;
    }
    *link_of(node) = upper;
    upper->next = node->next;
    upper->child = node;
    upper->n_state = node->n_state;
    upper->used = node->used;
    memmove(node->ids, node->ids + n, (node->n - n) * sizeof(*node->ids));
    node->next = NULL;
    node->parent = upper;
    node->n -= n;
    return upper;
}

/* Removes what nothing needs any more, from a node upwards. */
static void prune(struct prefix_index *index, struct prefix_node *node)
{
    while (node->parent && !node->child && !node->n_hold && node->slot == PREFIX_NO_SLOT) {
        struct prefix_node *const parent = node->parent;
        *link_of(node) = node->next;
        free_node(index, node);
        node = parent;
    }
}

static struct prefix_node *find_child(const struct prefix_node *node, uint64_t key, int32_t id)
{
    struct prefix_node *child = node->child;
    while (child && (child->ids[0] != id || child->key != key))
        child = child->next;
    return child;
}

static uint32_t common_run(const int32_t *a, const int32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* The node at the end of ids, made if need be; NULL: no memory. */
static struct prefix_node *walk(struct prefix_index *index, uint64_t key, const int32_t *ids,
                                uint32_t n)
{
    struct prefix_node *node = &index->root;
    uint32_t at = 0;
    while (at < n) {
        struct prefix_node *child = find_child(node, key, ids[at]);
        if (!child) {
            child = new_node(node, key, ids + at, n - at);
            if (!child) break;
            child->next = node->child;
            node->child = child;
        }
        const uint32_t n_most = child->n < n - at ? child->n : n - at;
        const uint32_t n_equal = common_run(child->ids, ids + at, n_most);
        if (n_equal < child->n) child = split(child, n_equal);
        if (!child) break;
        at += n_equal;
        node = child;
    }
    if (at == n) return node;
    prune(index, node);
    return NULL;
}

enum lm_status prefix_index_hold(struct prefix_index *index, uint64_t key, const int32_t *ids,
                                 uint32_t n, struct prefix_node **out, struct lm_error *err)
{
    struct prefix_node *const node = walk(index, key, ids, n);
    if (!node) return lm_fail(err, LM_E_NO_MEM, "prefix index: no memory for %u tokens", n);
    node->n_hold++;
    *out = node;
    return LM_OK;
}

void prefix_index_release(struct prefix_index *index, struct prefix_node *node)
{
    assert(node->n_hold > 0);
    node->n_hold--;
    prune(index, node);
}

/* The node at or above this one on whose edge position n ends. */
static const struct prefix_node *containing(const struct prefix_node *node, uint32_t n)
{
    assert(n <= node->end);
    while (node->parent && node->end - node->n >= n)
        node = node->parent;
    return node;
}

uint32_t prefix_index_common(const struct prefix_node *a, const struct prefix_node *b)
{
    while (a != b) {
        if (a->end >= b->end)
            a = a->parent;
        else
            b = b->parent;
    }
    return a->end;
}

uint32_t prefix_index_next_branch(const struct prefix_node *node, uint32_t after)
{
    uint32_t first = UINT32_MAX;
    for (node = node->parent; node && node->end > after; node = node->parent)
        if (node->child->next) first = node->end;
    return first;
}

/* ---- states ------------------------------------------------------------------------------- */

static void count_states(struct prefix_node *node, int n)
{
    for (; node; node = node->parent)
        node->n_state += (uint32_t)n;
}

bool prefix_index_keep(struct prefix_index *index, struct prefix_node *node, uint32_t n,
                       uint32_t slot)
{
    assert(!index->node_of[slot] && n > 0);
    struct prefix_node *at = (struct prefix_node *)containing(node, n);
    if (at->end != n) at = split(at, n - (at->end - at->n));
    if (!at || at->slot != PREFIX_NO_SLOT) return false;
    at->slot = slot;
    index->node_of[slot] = at;
    count_states(at, 1);
    prefix_index_touch(index, slot);
    return true;
}

void prefix_index_drop(struct prefix_index *index, uint32_t slot)
{
    struct prefix_node *const node = index->node_of[slot];
    index->node_of[slot] = NULL;
    node->slot = PREFIX_NO_SLOT;
    count_states(node, -1);
    prune(index, node);
}

void prefix_index_touch(struct prefix_index *index, uint32_t slot)
{
    struct prefix_node *node = index->node_of[slot];
    node->used = ++index->clock;
    while ((node = node->parent))
        if (node->child->next) node->used = index->clock;
}

uint32_t prefix_index_drop_above(struct prefix_index *index, uint32_t slot)
{
    struct prefix_node *node = index->node_of[slot]->parent;
    while (node && node->slot == PREFIX_NO_SLOT)
        node = node->parent;
    if (!node) return PREFIX_NO_SLOT;
    const uint32_t found = node->slot;
    prefix_index_drop(index, found);
    return found;
}

uint32_t prefix_index_oldest(const struct prefix_index *index, uint32_t but)
{
    uint32_t best = PREFIX_NO_SLOT;
    for (uint32_t slot = 0; slot < index->n_slot; slot++) {
        const struct prefix_node *node = index->node_of[slot];
        if (!node || slot == but) continue;
        if (best == PREFIX_NO_SLOT || node->used < index->node_of[best]->used) best = slot;
    }
    return best;
}

uint32_t prefix_index_n_state(const struct prefix_index *index)
{
    return index->root.n_state;
}

uint32_t prefix_index_find(const struct prefix_node *node, uint32_t limit, uint32_t *n)
{
    node = containing(node, limit < node->end ? limit : node->end);
    while (node->parent && !node->n_state)
        node = node->parent;
    *n = node->end < limit ? node->end : limit;
    if (!*n) return PREFIX_NO_SLOT;
    while (node->slot == PREFIX_NO_SLOT)
        for (node = node->child; !node->n_state;)
            node = node->next;
    return node->slot;
}

uint32_t prefix_index_find_exact(const struct prefix_node *node, uint32_t limit, uint32_t *n)
{
    while (node->parent && (node->end > limit || node->slot == PREFIX_NO_SLOT))
        node = node->parent;
    *n = node->end;
    return node->slot;
}

/* ---- log-probabilities -------------------------------------------------------------------- */

static bool make_logprobs(struct prefix_index *index, struct prefix_node *node)
{
    const size_t n_bytes = node->n * sizeof(*node->logprob);
    if (node->logprob) return true;
    if (n_bytes > index->logprob_bytes_max - index->logprob_bytes) return false;
    node->logprob = malloc(n_bytes);
    if (!node->logprob) return false;
    index->logprob_bytes += n_bytes;
    for (uint32_t i = 0; i < node->n; i++)
        node->logprob[i].n_top = -1;
    return true;
}

void prefix_index_keep_logprob(struct prefix_index *index, struct prefix_node *node, uint32_t pos,
                               const struct sampled_token *token)
{
    struct prefix_node *const at = (struct prefix_node *)containing(node, pos + 1);
    if (!make_logprobs(index, at)) return;
    struct kept_logprob *const kept = &at->logprob[pos - (at->end - at->n)];
    kept->logprob = token->logprob;
    kept->n_top = token->n_top < PREFIX_N_TOP ? token->n_top : PREFIX_N_TOP;
    for (int32_t i = 0; i < kept->n_top; i++) {
        kept->top_id[i] = token->top_id[i];
        kept->top_logprob[i] = token->top_logprob[i];
    }
}

uint32_t prefix_index_first_without_logprob(const struct prefix_node *node)
{
    uint32_t first = node->end;
    for (; node->parent; node = node->parent) {
        const uint32_t begin = node->end - node->n;
        for (uint32_t pos = begin ? begin : 1; pos < node->end; pos++) {
            if (node->logprob && node->logprob[pos - begin].n_top >= 0) continue;
            first = pos;
            break;
        }
    }
    return first;
}

void prefix_index_logprob(const struct prefix_node *node, uint32_t pos, int32_t n_top,
                          struct sampled_token *out)
{
    const struct prefix_node *const at = containing(node, pos + 1);
    const uint32_t i = pos - (at->end - at->n);
    const struct kept_logprob *const kept = &at->logprob[i];
    assert(kept->n_top >= 0 && n_top <= PREFIX_N_TOP);
    *out = (struct sampled_token){.id = at->ids[i], .logprob = kept->logprob};
    out->n_top = n_top < kept->n_top ? n_top : kept->n_top;
    for (int32_t k = 0; k < out->n_top; k++) {
        out->top_id[k] = kept->top_id[k];
        out->top_logprob[k] = kept->top_logprob[k];
    }
}
