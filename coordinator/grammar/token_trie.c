#include "coordinator/grammar/token_trie.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/text/tokenizer.h"

enum { N_MASK_BYTES_MAX = 128 << 20 };

static int compare_tokens(const void *left, const void *right, void *context)
{
    const int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    const struct trie_token *tokens = context, *x = &tokens[a], *y = &tokens[b];
    const int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (order) return order;
    return x->n != y->n ? (x->n > y->n) - (x->n < y->n) : (a > b) - (a < b);
}

static size_t shared_bytes(const struct trie_token *a, const struct trie_token *b)
{
    size_t n = 0;
    while (n < a->n && n < b->n && a->bytes[n] == b->bytes[n])
        n++;
    return n;
}

/* order: [n] tokens, sorted. A node's end is known when a token leaves its subtree. */
static void fill_nodes(struct token_trie *trie, const struct trie_token *tokens,
                       const int32_t *order, size_t n, uint32_t *open)
{
    static const struct trie_token none = {0};
    const struct trie_token *before = &none;
    uint32_t depth = 0;
    trie->nodes[0] = (struct trie_node){.token = -1};
    trie->n_node = 1;
    open[0] = 0;
    for (size_t i = 0; i < n; i++) {
        const struct trie_token *token = &tokens[order[i]];
        const size_t shared = shared_bytes(before, token);
        if (shared == token->n && i && shared == before->n) {
            trie->twins[trie->n_twin++] =
                (struct token_twins){trie->nodes[trie->n_node - 1].token, order[i]};
            continue;
        }
        for (; depth > shared; depth--)
            trie->nodes[open[depth]].end = trie->n_node;
        while (depth < token->n) {
            const uint8_t byte = (uint8_t)token->bytes[depth++];
            open[depth] = trie->n_node;
            trie->nodes[trie->n_node++] =
                (struct trie_node){.token = -1, .depth = (uint16_t)depth, .byte = byte};
        }
        trie->nodes[trie->n_node - 1].token = order[i];
        if (depth > trie->depth_max) trie->depth_max = depth;
        before = token;
    }
    for (uint32_t d = 0; d <= depth; d++)
        trie->nodes[open[d]].end = trie->n_node;
}

enum lm_status token_trie_build(struct token_trie **out, const struct trie_token *tokens,
                                uint32_t n_vocab, const int32_t *ends, size_t n_end,
                                struct lm_error *err)
{
    struct token_trie *trie = calloc(1, sizeof(*trie));
    int32_t *order = malloc((n_vocab + (size_t)1) * sizeof(*order));
    uint32_t *open = NULL;
    size_t n = 0, n_byte = 0, n_longest = 0;
    if (!trie || !order) goto no_memory;
    for (uint32_t id = 0; id < n_vocab; id++) {
        if (!tokens[id].n || tokens[id].n > UINT16_MAX) continue;
        if (tokens[id].n == 1 && tokens[id].bytes[0] == GRAMMAR_CONTROL_BYTE) continue;
        order[n++] = (int32_t)id;
        n_byte += tokens[id].n;
        if (tokens[id].n > n_longest) n_longest = tokens[id].n;
    }
    qsort_r(order, n, sizeof(*order), compare_tokens, (void *)(uintptr_t)tokens);
    trie->n_vocab = n_vocab;
    trie->n_word = (n_vocab + 31) / 32;
    trie->nodes = malloc((n_byte + 1) * sizeof(*trie->nodes));
    trie->twins = malloc((n + 1) * sizeof(*trie->twins));
    trie->ends = malloc((n_end + 1) * sizeof(*trie->ends));
    trie->masks = mask_cache_create(N_MASK_BYTES_MAX);
    open = malloc((n_longest + 1) * sizeof(*open));
    if (!trie->nodes || !trie->twins || !trie->ends || !trie->masks || !open) goto no_memory;
    if (n_end) memcpy(trie->ends, ends, n_end * sizeof(*ends));
    trie->n_end = n_end;
    fill_nodes(trie, tokens, order, n, open);
    struct trie_node *nodes = realloc(trie->nodes, trie->n_node * sizeof(*nodes));
    if (nodes) trie->nodes = nodes;
    free(open);
    free(order);
    *out = trie;
    return LM_OK;

no_memory:
    free(open);
    free(order);
    token_trie_destroy(trie);
    return lm_fail(err, LM_E_NO_MEM, "no memory for the tree of %u tokens", n_vocab);
}

static bool is_control(const struct tokenizer *tokenizer, uint32_t id)
{
    return tokenizer_token_kind(tokenizer, (int32_t)id) == TOKEN_CONTROL &&
           !tokenizer_is_end(tokenizer, (int32_t)id);
}

/* The texts of control tokens, each behind its byte, one after another; NULL: no memory. */
static char *control_texts(const struct tokenizer *tokenizer)
{
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    size_t n, n_all = 0;
    for (uint32_t id = 0; id < n_vocab; id++) {
        if (!is_control(tokenizer, id)) continue;
        tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n);
        n_all += n + 1;
    }
    char *const texts = malloc(n_all + 1);
    char *at = texts;
    for (uint32_t id = 0; texts && id < n_vocab; id++) {
        if (!is_control(tokenizer, id)) continue;
        const char *const text = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n);
        *at++ = GRAMMAR_CONTROL_BYTE;
        memcpy(at, text, n);
        at += n;
    }
    return texts;
}

enum lm_status token_trie_create(struct token_trie **out, const struct tokenizer *tokenizer,
                                 struct lm_error *err)
{
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    struct trie_token *tokens = calloc(n_vocab + (size_t)1, sizeof(*tokens));
    int32_t *ends = malloc((n_vocab + (size_t)1) * sizeof(*ends));
    char *const texts = control_texts(tokenizer);
    const char *text = texts;
    size_t n_end = 0;
    enum lm_status status = LM_E_NO_MEM;
    if (!tokens || !ends || !texts)
        lm_fail(err, status, "no memory for the tree of %u tokens", n_vocab);
    else {
        for (uint32_t id = 0; id < n_vocab; id++) {
            struct trie_token *const token = &tokens[id];
            if (tokenizer_is_end(tokenizer, (int32_t)id)) {
                ends[n_end++] = (int32_t)id;
            } else if (is_control(tokenizer, id)) {
                tokenizer_token_bytes(tokenizer, (int32_t)id, true, &token->n);
                token->bytes = text;
                text += ++token->n;
            } else {
                token->bytes = tokenizer_token_bytes(tokenizer, (int32_t)id, false, &token->n);
                /* none of it is text */
                if (token->n && memchr(token->bytes, 0xff, token->n)) token->n = 0;
            }
        }
        status = token_trie_build(out, tokens, n_vocab, ends, n_end, err);
    }
    free(texts);
    free(ends);
    free(tokens);
    return status;
}

void token_trie_destroy(struct token_trie *trie)
{
    if (!trie) return;
    mask_cache_destroy(trie->masks);
    free(trie->ends);
    free(trie->twins);
    free(trie->nodes);
    free(trie);
}
