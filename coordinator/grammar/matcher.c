/* A text against a grammar, and the mask of the tokens that may continue it.
 *
 * A position is a few configurations, each a place in a rule above a stack. Most of a mask does not
 * depend on the stack: tokens that stay in the rule, as nearly all do inside a string. So the mask
 * of the places above an unknown stack is worked out by one walk of the token tree and kept, with
 * the tree's nodes at which the rule may be left ("exits"). For a real stack only the subtrees
 * below the exits are walked, from what the stack holds; few bytes are possible there. The result
 * is kept too, for the next time that the same position comes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/grow.h"
#include "coordinator/grammar/pushdown.h"
#include "coordinator/grammar/token_trie.h"

/* Configurations that a mask's walks may go through before they look at tokens of one byte only:
 * bounds the time of absurdly ambiguous grammars. Independent of what is cached, so that a mask
 * never depends on what ran before. */
enum { N_WORK_MAX = 1 << 25 };

struct grammar_matcher {
    struct grammar *grammar;
    const struct token_trie *trie;
    struct pushdown pushdown;
    uint32_t *lists; /* [depth_max + 3] what must outlive a collection: the position, then a walk's
                        positions by depth */
    uint32_t *mask;  /* [n_word] */
    uint32_t *local; /* [n_word] scratch */
    uint32_t *exits;
    size_t n_exit, exit_room;
    uint64_t n_work;
    bool mask_valid;
};

enum { POSITION, PATH }; /* in lists */

enum lm_status grammar_matcher_create(struct grammar_matcher **out, struct grammar *grammar,
                                      const struct token_trie *trie, struct lm_error *err)
{
    struct grammar_matcher *matcher = calloc(1, sizeof(*matcher));
    if (!matcher) goto no_memory;
    if (!pushdown_init(&matcher->pushdown, grammar, trie->depth_max)) {
        free(matcher);
        goto no_memory;
    }
    matcher->grammar = grammar_ref(grammar);
    matcher->trie = trie;
    matcher->lists = calloc(trie->depth_max + (size_t)3, sizeof(*matcher->lists));
    matcher->mask = malloc((trie->n_word + (size_t)1) * sizeof(*matcher->mask));
    matcher->local = malloc((trie->n_word + (size_t)1) * sizeof(*matcher->local));
    if (!matcher->lists || !matcher->mask || !matcher->local) {
        grammar_matcher_destroy(matcher);
        goto no_memory;
    }
    matcher->lists[POSITION] = pushdown_start(&matcher->pushdown);
    *out = matcher;
    return LM_OK;

no_memory:
    return lm_fail(err, LM_E_NO_MEM, "no memory for a grammar's state");
}

void grammar_matcher_destroy(struct grammar_matcher *matcher)
{
    if (!matcher) return;
    pushdown_fini(&matcher->pushdown);
    grammar_unref(matcher->grammar);
    free(matcher->lists);
    free(matcher->mask);
    free(matcher->local);
    free(matcher->exits);
    free(matcher);
}

bool grammar_matcher_take(struct grammar_matcher *matcher, const char *bytes, size_t n)
{
    matcher->lists[PATH] = matcher->lists[POSITION];
    for (size_t i = 0; i < n && matcher->lists[PATH] != LIST_DEAD; i++) {
        if (pushdown_is_full(&matcher->pushdown))
            pushdown_collect(&matcher->pushdown, matcher->lists, 2);
        matcher->lists[PATH] =
            pushdown_step(&matcher->pushdown, matcher->lists[PATH], (uint8_t)bytes[i]);
    }
    if (matcher->lists[PATH] == LIST_DEAD) return false;
    matcher->lists[POSITION] = matcher->lists[PATH];
    if (n) matcher->mask_valid = false;
    return true;
}

bool grammar_matcher_complete(const struct grammar_matcher *matcher)
{
    return matcher->pushdown.lists[matcher->lists[POSITION]].complete;
}

bool grammar_matcher_finished(const struct grammar_matcher *matcher)
{
    const struct pushdown *pushdown = &matcher->pushdown;
    return grammar_matcher_complete(matcher) && pushdown->lists[matcher->lists[POSITION]].n == 1;
}

/* ---- walks ---------------------------------------------------------------------------------- */

static void set_bit(uint32_t *words, int32_t token)
{
    words[token / 32] |= UINT32_C(1) << token % 32;
}

static void add_exit(struct grammar_matcher *matcher, uint32_t node)
{
    if (!grow_to(&matcher->exits, &matcher->exit_room, matcher->n_exit + 1,
                 sizeof(*matcher->exits)))
        matcher->pushdown.no_memory = true;
    else
        matcher->exits[matcher->n_exit++] = node;
}

/* The tokens below a node that may follow the position lists[PATH + the node's depth].
 * with_exits: nodes at which that position may end are noted. */
static void walk(struct grammar_matcher *matcher, uint32_t root, bool with_exits, uint32_t *words)
{
    const struct trie_node *const nodes = matcher->trie->nodes;
    struct pushdown *const pushdown = &matcher->pushdown;
    uint32_t *const path = matcher->lists + PATH;
    const uint32_t end = nodes[root].end;
    for (uint32_t i = root + 1; i < end;) {
        const struct trie_node *const node = &nodes[i];
        const uint32_t before = path[node->depth - 1];
        matcher->n_work += pushdown->lists[before].n;
        uint32_t list = LIST_DEAD;
        if (matcher->n_work <= N_WORK_MAX || node->depth == 1)
            list = pushdown_step(pushdown, before, node->byte);
        if (list == LIST_DEAD) {
            i = node->end;
            continue;
        }
        path[node->depth] = list;
        if (node->token >= 0) set_bit(words, node->token);
        if (pushdown_is_full(pushdown))
            pushdown_collect(pushdown, matcher->lists, PATH + node->depth + (size_t)1);
        if (with_exits && node->end > i + 1 && pushdown->lists[path[node->depth]].complete)
            add_exit(matcher, i);
        i++;
    }
}

/* Keys of masks: of a position, and of places above an unknown stack. */
static void position_key(const struct grammar_matcher *matcher, uint32_t list, uint64_t salt,
                         uint64_t key[2])
{
    const uint64_t *of_list = matcher->pushdown.lists[list].key;
    const uint64_t words[] = {matcher->grammar->id[0], matcher->grammar->id[1], of_list[0],
                              of_list[1], salt};
    const XXH128_hash_t hash = XXH3_128bits(words, sizeof(words));
    key[0] = hash.low64;
    key[1] = hash.high64;
}

/* The mask of the position in lists[PATH], which stands above an unknown stack. */
static const struct mask *local_mask(struct grammar_matcher *matcher)
{
    struct mask_cache *const masks = matcher->trie->masks;
    uint64_t key[2];
    position_key(matcher, matcher->lists[PATH], 1, key);
    const struct mask *mask = mask_cache_get(masks, key);
    if (mask) return mask;
    memset(matcher->local, 0, matcher->trie->n_word * sizeof(*matcher->local));
    matcher->n_exit = 0;
    matcher->n_work = 0;
    walk(matcher, 0, true, matcher->local);
    if (matcher->pushdown.no_memory) return NULL;
    return mask_cache_add(masks, key, matcher->local, matcher->trie->n_word, matcher->exits,
                          (uint32_t)matcher->n_exit);
}

/* The configurations [at, end) of the position stand on the same stack. */
static void add_group(struct grammar_matcher *matcher, uint32_t at, uint32_t end)
{
    struct pushdown *const pushdown = &matcher->pushdown;
    const uint32_t n = end - at;
    struct config *const places = malloc(n * sizeof(*places));
    if (!places) {
        pushdown->no_memory = true;
        return;
    }
    const uint32_t first = pushdown->lists[matcher->lists[POSITION]].first;
    memcpy(places, pushdown->configs + first + at, n * sizeof(*places));
    for (uint32_t i = 0; i < n; i++)
        places[i].below = LIST_BOTTOM;
    matcher->lists[PATH] = pushdown_list(pushdown, places, n);
    free(places);
    const struct mask *mask = local_mask(matcher);
    if (!mask) {
        pushdown->no_memory = true;
        return;
    }
    mask_merge(mask, matcher->mask, matcher->trie->n_word);
    /* the walk may have renumbered the lists, not what the position holds */
    const struct config_list *position = &pushdown->lists[matcher->lists[POSITION]];
    const uint32_t below = pushdown->configs[position->first + at].below;
    if (mask->n_exit && below != LIST_BOTTOM) {
        uint32_t *const path = matcher->lists + PATH;
        path[0] = pushdown_return(pushdown, below);
        matcher->n_work = 0;
        for (uint32_t i = 0; i < mask->n_exit; i++) {
            const uint32_t depth = matcher->trie->nodes[mask->exits[i]].depth;
            for (uint32_t d = 1; d <= depth; d++)
                path[d] = path[0];
            walk(matcher, mask->exits[i], false, matcher->mask);
        }
    }
    mask_cache_release(mask);
}

static void work_out_mask(struct grammar_matcher *matcher)
{
    const struct token_trie *const trie = matcher->trie;
    struct pushdown *const pushdown = &matcher->pushdown;
    memset(matcher->mask, 0, trie->n_word * sizeof(*matcher->mask));
    for (uint32_t at = 0, end;; at = end) {
        const struct config_list list = pushdown->lists[matcher->lists[POSITION]];
        const struct config *configs = pushdown->configs + list.first;
        if (at == list.n) break;
        for (end = at + 1; end < list.n && configs[end].below == configs[at].below;)
            end++;
        if (configs[at].place.state != STATE_END) add_group(matcher, at, end);
    }
    for (size_t i = 0; i < trie->n_twin; i++)
        if (matcher->mask[trie->twins[i].first / 32] >> trie->twins[i].first % 32 & 1)
            set_bit(matcher->mask, trie->twins[i].other);
    if (grammar_matcher_complete(matcher))
        for (size_t i = 0; i < trie->n_end; i++)
            set_bit(matcher->mask, trie->ends[i]);
}

const uint32_t *grammar_matcher_mask(struct grammar_matcher *matcher)
{
    const struct token_trie *const trie = matcher->trie;
    if (matcher->mask_valid) return matcher->mask;
    uint64_t key[2];
    position_key(matcher, matcher->lists[POSITION], 0, key);
    const struct mask *mask = mask_cache_get(trie->masks, key);
    if (mask) {
        memset(matcher->mask, 0, trie->n_word * sizeof(*matcher->mask));
        mask_merge(mask, matcher->mask, trie->n_word);
    } else {
        work_out_mask(matcher);
        if (!matcher->pushdown.no_memory)
            mask = mask_cache_add(trie->masks, key, matcher->mask, trie->n_word, NULL, 0);
    }
    mask_cache_release(mask);
    matcher->mask_valid = true;
    return matcher->mask;
}
