/* All tokens of a vocabulary by their bytes, as a tree in one array; and the masks that have been
 * worked out with it.
 *
 * Nodes are in depth-first order, so that a walk reads them one after the other and leaves out a
 * subtree by going on at its end.
 *
 * Threads: the tree is immutable, the cache of masks is guarded inside. */
#ifndef LEAN_COORDINATOR_GRAMMAR_TOKEN_TRIE_H
#define LEAN_COORDINATOR_GRAMMAR_TOKEN_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/mask_cache.h"

struct trie_node {
    uint32_t end;   /* the node behind its subtree */
    int32_t token;  /* whose bytes end here, -1: none */
    uint16_t depth; /* bytes; 0: the root */
    uint8_t byte;   /* the last one */
};

struct token_twins {
    int32_t first, other;
};

struct token_trie {
    struct trie_node *nodes; /* [n_node], the root first */
    uint32_t n_node;
    uint32_t n_vocab, n_word; /* words of a mask */
    uint32_t depth_max;
    struct token_twins *twins; /* [n_twin] tokens with the bytes of an earlier one */
    size_t n_twin;
    int32_t *ends; /* [n_end] tokens that end a generation */
    size_t n_end;
    struct mask_cache *masks;
};

struct trie_token {
    const char *bytes;
    size_t n; /* 0: the token is left out; at most 65535 */
};

/* From bytes instead of a tokenizer. tokens: [n_vocab], borrowed during the call. ends: [n_end]. */
enum lm_status token_trie_build(struct token_trie **out, const struct trie_token *tokens,
                                uint32_t n_vocab, const int32_t *ends, size_t n_end,
                                struct lm_error *err);

#endif
