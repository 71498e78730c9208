/* What the checks of kernels/ are fed: numbers and weights from a seed, in zeroed memory that is
 * all given back at the end of a case. */
#ifndef LEAN_TESTS_KERNELS_RANDOM_CASE_H
#define LEAN_TESTS_KERNELS_RANDOM_CASE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/quant_blocks.h"
#include "proto/base/half.h"

static uint64_t random_state;

static inline uint64_t random_u64(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_u64() % n);
}

/* Uniform in [-1, 1). */
static inline float random_float(void)
{
    return (float)(int32_t)random_u64() * 0x1p-31f;
}

/* Stands in the 64 bytes before what take returns. */
struct taken {
    struct taken *next, **link; /* of all that is taken; what points here */
};
static struct taken *all_taken;

/* Memory of the host: 64-byte aligned, zeroed, until put_back or put_back_all. */
static inline void *take(size_t n_bytes)
{
    const size_t n = (n_bytes + 63) / 64 * 64 + 128;
    struct taken *memory = aligned_alloc(64, n);
    if (!memory) abort();
    memset(memory, 0, n);
    *memory = (struct taken){all_taken, &all_taken};
    if (all_taken) all_taken->link = &memory->next;
    all_taken = memory;
    return (uint8_t *)memory + 64;
}

static inline void put_back(void *memory)
{
    struct taken *taken = (struct taken *)((uint8_t *)memory - 64);
    *taken->link = taken->next;
    if (taken->next) taken->next->link = taken->link;
    free(taken);
}

static inline void put_back_all(void)
{
    while (all_taken)
        put_back((uint8_t *)all_taken + 64);
}

static inline float *random_floats(size_t n)
{
    float *x = take(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

/* All that the kernels multiply by. */
static const enum tensor_type weight_types[] = {
    TENSOR_F32,  TENSOR_F16,  TENSOR_BF16,  TENSOR_Q8_0,   TENSOR_Q4_0,   TENSOR_Q4_1,
    TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_MXFP4, TENSOR_IQ4_NL, TENSOR_IQ4_XS, TENSOR_Q2_K,
    TENSOR_Q3_K, TENSOR_Q4_K, TENSOR_Q5_K,  TENSOR_Q6_K};
enum { N_WEIGHT_TYPE = sizeof(weight_types) / sizeof(weight_types[0]) };

/* A block of random codes with scales that are finite and small. */
static inline void random_block(enum tensor_type type, size_t block_bytes, uint8_t *block)
{
    const float value = random_float();
    const uint16_t half = f16_from_f32(value * 0.01f), min = f16_from_f32(0.02f);
    for (size_t i = 0; i < block_bytes; i++)
        block[i] = (uint8_t)random_u64();
    switch ((int)type) {
    case TENSOR_F32:
        memcpy(block, &value, 4);
        break;
    case TENSOR_BF16:
        memcpy(block, &(uint16_t){bf16_from_f32(value * 0.01f)}, 2);
        break;
    case TENSOR_MXFP4:
        block[0] = (uint8_t)(110 + random_below(12)); /* an exponent of two */
        break;
    case TENSOR_Q2_K:
        memcpy(block + offsetof(struct block_q2_k, d), &half, 2);
        memcpy(block + offsetof(struct block_q2_k, dmin), &min, 2);
        break;
    case TENSOR_Q3_K:
        memcpy(block + offsetof(struct block_q3_k, d), &half, 2);
        break;
    case TENSOR_Q6_K:
        memcpy(block + offsetof(struct block_q6_k, d), &half, 2);
        break;
    default: /* the scale first, behind it a minimum in some */
        memcpy(block, &half, 2);
        if (type == TENSOR_Q4_K || type == TENSOR_Q5_K || type == TENSOR_Q4_1 ||
            type == TENSOR_Q5_1)
            memcpy(block + 2, &min, 2);
    }
}

/* n_matrix matrices one after the other, of a type whose blocks fit n_col: the one asked for, else
 * Q8_0, else F32. */
static inline struct weight weight_of_type(enum tensor_type type, uint32_t n_row, uint32_t n_col,
                                           uint32_t n_matrix)
{
    if (n_col % 256 && tensor_type_info(type)->block_elems == 256) type = TENSOR_Q8_0;
    if (n_col % 32) type = TENSOR_F32;
    const size_t row_bytes = tensor_row_bytes(type, n_col);
    const size_t block_bytes = tensor_type_info(type)->block_bytes;
    const size_t n_bytes = (size_t)n_matrix * n_row * row_bytes;
    uint8_t *data = take(n_bytes);
    for (size_t at = 0; at < n_bytes; at += block_bytes)
        random_block(type, block_bytes, data + at);
    return (struct weight){data, type, n_col, n_row, row_bytes};
}

static inline enum tensor_type random_type(void)
{
    static uint32_t n_made; /* half of all in turn, so that none is left out */
    return weight_types[(n_made++ % 2 ? random_below(N_WEIGHT_TYPE) : n_made / 2) % N_WEIGHT_TYPE];
}

static inline struct weight random_weight(uint32_t n_row, uint32_t n_col, uint32_t n_matrix)
{
    return weight_of_type(random_type(), n_row, n_col, n_matrix);
}

#endif
