/* Random text under a grammar, token by token: what the random documents of the tests and of
 * bench_grammar are made with.
 *
 * First the token's first byte is drawn, then one of the allowed tokens that begin with it; bytes
 * that end something weigh more, so that documents end. */
#ifndef LEAN_TESTS_E2E_TOKEN_SAMPLER_H
#define LEAN_TESTS_E2E_TOKEN_SAMPLER_H

#include <stdint.h>
#include <string.h>

#include "coordinator/grammar/token_trie.h"

struct token_sampler {
    uint64_t state;
    double ending; /* weight of bytes that end something; others have 1 */
};

static inline uint32_t token_sampler_random(struct token_sampler *sampler, uint32_t n)
{
    sampler->state = sampler->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((sampler->state >> 33) % n);
}

/* tokens: [n_vocab], those without bytes are not drawn. mask: their bits. -1: none is allowed. */
static inline int32_t token_sampler_draw(struct token_sampler *sampler,
                                         const struct trie_token *tokens, uint32_t n_vocab,
                                         const uint32_t *mask)
{
    uint32_t count[256] = {0};
    double weights[256], total = 0;
    for (uint32_t id = 0; id < n_vocab; id++)
        if (mask[id / 32] >> id % 32 & 1 && tokens[id].n) count[(uint8_t)tokens[id].bytes[0]]++;
    for (int byte = 0; byte < 256; byte++) {
        weights[byte] = !count[byte] ? 0 : byte && strchr("\"]}", byte) ? sampler->ending : 1;
        total += weights[byte];
    }
    if (total == 0) return -1;
    double at = total * token_sampler_random(sampler, 1 << 30) / (1 << 30);
    int first = 0;
    while (first < 255 && (!count[first] || (at -= weights[first]) >= 0))
        first++;
    while (!count[first])
        first--;
    uint32_t left = token_sampler_random(sampler, count[first]);
    for (uint32_t id = 0; id < n_vocab; id++)
        if (mask[id / 32] >> id % 32 & 1 && tokens[id].n && (uint8_t)tokens[id].bytes[0] == first &&
            !left--)
            return (int32_t)id;
    return -1;
}

#endif
