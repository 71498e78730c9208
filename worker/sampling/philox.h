/* Philox4x32-10, a counter-based random number generator: the number at a place does not depend on
 * how many were drawn before it, so a token can be sampled again, elsewhere or speculatively.
 *
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#ifndef LEAN_WORKER_SAMPLING_PHILOX_H
#define LEAN_WORKER_SAMPLING_PHILOX_H

#include <stdint.h>

static inline void philox4x32(uint32_t counter[4], uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)counter[0] * 0xD2511F53u;
        const uint64_t b = (uint64_t)counter[2] * 0xCD9E8D57u;
        counter[0] = (uint32_t)(b >> 32) ^ counter[1] ^ key0;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ counter[3] ^ key1;
        counter[3] = (uint32_t)a;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* Uniform in [0, 1), a multiple of 2^-53. */
static inline double philox_uniform(uint64_t seed, uint64_t position)
{
    uint32_t word[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    philox4x32(word, (uint32_t)seed, (uint32_t)(seed >> 32));
    return (double)(((uint64_t)word[1] << 32 | word[0]) >> 11) * 0x1p-53;
}

#endif
