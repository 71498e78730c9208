/* y = W x for quantized weights: tiles (matmul_tile.h) times groups of tokens.
 *
 *   for each tile of TILE_ROWS rows               weights are read from memory once
 *     for each chunk of up to TOKEN_CHUNK tokens  their float sums stay in the first-level cache
 *       for each step of 256 columns
 *         decode the tile
 *         for each group of up to TOKEN_GROUP     integer sums stay in registers
 *
 * The order of the float sums is that of kernels/NUMERICS.md whatever the groups and chunks are,
 * so any number of tokens gives the same bits. */
#ifndef LEAN_KERNELS_X86_MATMUL_QUANT_H
#define LEAN_KERNELS_X86_MATMUL_QUANT_H

#include <stdbool.h>

#include "kernels/kernels.h"
#include "kernels/x86/matmul_tile.h"
#ifdef __AVX2__

/* A sum and a total for each token of a group and each row group of a tile fill the registers. */
#ifdef __AVX512F__
#define TOKEN_GROUP 6
#define FOR_EACH_GROUP_SIZE(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define TOKEN_GROUP 2
#define FOR_EACH_GROUP_SIZE(X) X(1) X(2)
#endif
enum { TOKEN_CHUNK = 64, SLOT_MAX = 8 };

/* One float accumulator of one token for the rows of a tile. The accumulators of the canonical
 * order are slots, TOKEN_CHUNK of these apart. */
typedef vfloat token_sums[TILE_GROUPS];

/* What the inner loops must know of a type; a constant wherever they are compiled. */
struct code_class {
    unsigned code_max; /* codes are 0..code_max, or -code_max..code_max */
    bool is_signed;    /* for vec_dot_signed */
    bool has_min;      /* minimums times the sums of activations make a second float term */
    unsigned n_sub;    /* k-quants: sub-blocks in a superblock, 8 or 16 */
    bool has_offset;   /* k-quants: corr is added to the integer sum */
    unsigned offset;   /* 32-blocks: what the codes have too much */
};

ALWAYS_INLINE vint dot_codes(struct code_class c, vint sum, vint codes, vint x)
{
    return c.is_signed ? vec_dot_signed(sum, codes, x) : vec_dot_codes(sum, codes, x);
}

/* sum[t][g] = codes[0..n_step) . the activations at x[t], for as many steps as a sum may hold. */
ALWAYS_INLINE void dot_steps(struct code_class c, const vint (*codes)[TILE_GROUPS],
                             const int8_t *const *x, unsigned n_step, unsigned n_token,
                             vint (*sum)[TILE_GROUPS])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < n_step; i++) {
#pragma GCC unroll 8
        for (unsigned t = 0; t < n_token; t++) {
            const vint quad = vec_set1(load_u32(x[t] + 4 * i));
#pragma GCC unroll 2
            for (unsigned g = 0; g < TILE_GROUPS; g++)
                sum[t][g] = dot_codes(c, i ? sum[t][g] : vec_set1(0), codes[i][g], quad);
        }
    }
}

/* A divisor of n_step_max, a power of two. */
ALWAYS_INLINE unsigned steps_per_sum(struct code_class c, unsigned n_step_max)
{
    unsigned n_step = n_step_max;
    while (n_step > DOT_STEPS(c.code_max))
        n_step /= 2;
    return n_step;
}

/* One superblock of a k-quant for n_token tokens, a constant: sums[t] takes its share. */
ALWAYS_INLINE void dot_tile_k(struct code_class c, const struct tile *tile, const void *const *x,
                              uint32_t step, unsigned n_token, token_sums *sums)
{
    const unsigned n_k = QK / 4 / c.n_sub, n_step = steps_per_sum(c, n_k);
    const struct act_q8_k *act[TOKEN_GROUP];
    const int8_t *qs[TOKEN_GROUP];
    vint total[TOKEN_GROUP][TILE_GROUPS];
#pragma GCC unroll 8
    for (unsigned t = 0; t < n_token; t++) {
        act[t] = (const struct act_q8_k *)x[t] + step;
        qs[t] = act[t]->qs;
#pragma GCC unroll 2
        for (unsigned g = 0; g < TILE_GROUPS; g++)
            total[t][g] = vec_set1(0);
    }

    const vint(*codes)[TILE_GROUPS] = tile->codes;
    for (unsigned s = 0; s < c.n_sub; s++) {
        for (unsigned k = 0; k < n_k; k += n_step, codes += n_step) {
            vint sum[TOKEN_GROUP][TILE_GROUPS];
            dot_steps(c, codes, qs, n_step, n_token, sum);
#pragma GCC unroll 8
            for (unsigned t = 0; t < n_token; t++) {
                qs[t] += 4 * n_step;
#pragma GCC unroll 2
                for (unsigned g = 0; g < TILE_GROUPS; g++)
                    total[t][g] = vec_add_scaled(total[t][g], sum[t][g], tile->scale[s][g]);
            }
        }
    }

#pragma GCC unroll 8
    for (unsigned t = 0; t < n_token; t++) {
        const vfloat d_x = vec_set1_f(act[t]->d);
#pragma GCC unroll 2
        for (unsigned g = 0; g < TILE_GROUPS; g++) {
            vint isum = total[t][g], corr = c.has_offset ? isum : vec_set1(0);
            if (c.has_min || c.has_offset) {
#pragma GCC unroll 8
                for (unsigned j = 0; j < 8; j++)
                    corr = vec_dot_pairs(corr, tile->corr[j][g],
                                         vec_set1(load_u32(act[t]->bsums + 2 * j)));
            }
            if (c.has_offset) isum = corr;
            vfloat sum = vec_fma(tile->d[0][g] * d_x, vec_to_float(isum), sums[t][g]);
            if (c.has_min) sum = vec_fnma(tile->m[0][g] * d_x, vec_to_float(corr), sum);
            sums[t][g] = sum;
        }
    }
}

/* n_block 32-blocks for n_token tokens, a constant: slot b of sums[t] takes the share of block b.
 */
ALWAYS_INLINE void dot_tile_32(struct code_class c, const struct tile *tile, const void *const *x,
                               uint32_t step, unsigned n_token, unsigned n_block, token_sums *sums)
{
    const unsigned n_step = steps_per_sum(c, 8);
    const struct act_q8_0 *act[TOKEN_GROUP];
#pragma GCC unroll 8
    for (unsigned t = 0; t < n_token; t++)
        act[t] = (const struct act_q8_0 *)x[t] + step;

    for (unsigned b = 0; b < n_block; b++) {
        const int8_t *qs[TOKEN_GROUP];
        vint total[TOKEN_GROUP][TILE_GROUPS];
#pragma GCC unroll 8
        for (unsigned t = 0; t < n_token; t++) {
            qs[t] = act[t]->qs + 32 * b;
#pragma GCC unroll 2
            for (unsigned g = 0; g < TILE_GROUPS; g++)
                total[t][g] = vec_set1(-c.offset * (uint32_t)act[t]->sums[b]);
        }
#pragma GCC unroll 8
        for (unsigned k = 0; k < 8; k += n_step) {
            vint sum[TOKEN_GROUP][TILE_GROUPS];
            dot_steps(c, tile->codes + 8 * b + k, qs, n_step, n_token, sum);
#pragma GCC unroll 8
            for (unsigned t = 0; t < n_token; t++) {
                qs[t] += 4 * n_step;
#pragma GCC unroll 2
                for (unsigned g = 0; g < TILE_GROUPS; g++)
                    total[t][g] = vec_add_sum(total[t][g], sum[t][g]);
            }
        }
#pragma GCC unroll 8
        for (unsigned t = 0; t < n_token; t++) {
            const vfloat d_x = vec_set1_f(act[t]->d[b]);
            const vfloat sum_x = vec_set1_f((float)act[t]->sums[b]);
            vfloat *to = sums[b * TOKEN_CHUNK + t];
#pragma GCC unroll 2
            for (unsigned g = 0; g < TILE_GROUPS; g++) {
                vfloat sum = vec_fma(tile->d[b][g] * d_x, vec_to_float(total[t][g]), to[g]);
                if (c.has_min) sum = vec_fma(tile->m[b][g] * d_x, sum_x, sum);
                to[g] = sum;
            }
        }
    }
}

/* What matmul_tiles needs of a type. A step is 256 columns: one superblock, or eight 32-blocks of
 * which the last step of a row may have fewer, n_block. n_token <= TOKEN_GROUP. */
struct tile_kernel {
    size_t block_bytes;
    unsigned n_block_step;
    void (*decode)(const uint8_t *rows, size_t stride, unsigned n_block, struct tile *tile);
    void (*dot)(const struct tile *tile, const void *const *x, uint32_t step, unsigned n_token,
                unsigned n_block, token_sums *sums);
};

/* Adds the slots of a token in the canonical order. */
static inline void store_results(const token_sums *sums, unsigned n_slot, unsigned n_row, float *y)
{
    for (unsigned g = 0; g < TILE_GROUPS && g * LANES < n_row; g++) {
        vfloat a[SLOT_MAX];
        for (unsigned s = 0; s < n_slot; s++)
            a[s] = sums[s * TOKEN_CHUNK][g];
        if (n_slot == 8) { /* ((a0+a4) + (a2+a6)) + ((a1+a5) + (a3+a7)) */
            a[0] = (a[0] + a[4]) + (a[2] + a[6]);
            a[1] = (a[1] + a[5]) + (a[3] + a[7]);
        } else {
            a[0] = a[0] + a[1];
            a[1] = a[2] + a[3];
        }
        const unsigned n = n_row - g * LANES;
        vec_store_n(y + g * LANES, a[0] + a[1], n < LANES ? n : LANES);
    }
}

/* Where part i of n things in n_part nearly equal parts begins. */
static inline size_t part_begin(size_t n, size_t n_part, size_t i)
{
    return n * i / n_part;
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void matmul_tiles(const struct matmul_args *args, const struct tile_kernel *kernel)
{
    const unsigned n_block_step = kernel->n_block_step, n_slot = n_block_step == 1 ? 4 : 8;
    const uint32_t n_block = args->n_col / (QK / n_block_step);
    const uint32_t n_step = (n_block + n_block_step - 1) / n_block_step;
    const uint32_t n_chunk = (args->n_token + TOKEN_CHUNK - 1) / TOKEN_CHUNK;
    struct tile tile;
    token_sums sums[SLOT_MAX * TOKEN_CHUNK];
    /* The last tile of the range is copied here if it is not full: nothing behind row_end is read.
     * Lanes without a row compute zeros. */
    uint8_t last[TILE_ROWS * 8 * sizeof(struct block_q8_0)];
    if ((args->row_end - args->row_begin) % TILE_ROWS) memset(last, 0, sizeof(last));

    for (uint32_t row = args->row_begin; row < args->row_end; row += TILE_ROWS) {
        const uint8_t *rows = (const uint8_t *)args->w + row * args->w_row_bytes;
        const uint8_t *next = rows + TILE_ROWS * args->w_row_bytes;
        const unsigned n_row = min_u32(args->row_end - row, TILE_ROWS);
        const unsigned n_row_next = min_u32(args->row_end - row - n_row, TILE_ROWS);
        const size_t n_line_next = n_row_next * args->w_row_bytes / 64;

        for (uint32_t chunk = 0; chunk < n_chunk; chunk++) {
            const uint32_t token = (uint32_t)part_begin(args->n_token, n_chunk, chunk);
            const uint32_t n_token =
                (uint32_t)part_begin(args->n_token, n_chunk, chunk + 1) - token;
            const uint32_t n_group = (n_token + TOKEN_GROUP - 1) / TOKEN_GROUP;
            for (unsigned s = 0; s < n_slot; s++)
                memset(sums + s * TOKEN_CHUNK, 0, n_token * sizeof(sums[0]));

            for (uint32_t step = 0; step < n_step; step++) {
                const unsigned n_block_now = min_u32(n_block - step * n_block_step, n_block_step);
                const uint8_t *from = rows + (size_t)step * n_block_step * kernel->block_bytes;
                size_t stride = args->w_row_bytes;
                if (n_row < TILE_ROWS) {
                    stride = n_block_now * kernel->block_bytes;
                    for (unsigned r = 0; r < n_row; r++)
                        memcpy(last + r * stride, from + r * args->w_row_bytes, stride);
                    from = last;
                }
                kernel->decode(from, stride, n_block_now, &tile);

                if (!chunk) { /* the next tile's lines in the order of addresses, each once */
                    const size_t end = part_begin(n_line_next, n_step, step + 1);
                    for (size_t i = part_begin(n_line_next, n_step, step); i < end; i++)
                        _mm_prefetch((const char *)next + 64 * i, _MM_HINT_T1);
                }

                token_sums *to = n_slot == 4 ? sums + step % 4 * TOKEN_CHUNK : sums;
                for (uint32_t i = 0; i < n_group; i++) {
                    const size_t t = part_begin(n_token, n_group, i);
                    const size_t t_end = part_begin(n_token, n_group, i + 1);
                    kernel->dot(&tile, args->x + token + t, step, (unsigned)(t_end - t),
                                n_block_now, to + t);
                }
            }
            for (uint32_t t = 0; t < n_token; t++)
                store_results(sums + t, n_slot, n_row, args->y[token + t] + row);
        }
    }
}

/* Defines matmul_TYPE from decode_TYPE; the rest initializes its code_class. */
#define DOT_K(n)                                                                                   \
    case n:                                                                                        \
        dot_tile_k(c, tile, x, step, n, sums);                                                     \
        break;
#define MATMUL_K(type, ...)                                                                        \
    static void decode_tile_##type(const uint8_t *rows, size_t stride, unsigned n_block,           \
                                   struct tile *tile)                                              \
    {                                                                                              \
        (void)n_block;                                                                             \
        for (unsigned g = 0; g < TILE_GROUPS; g++)                                                 \
            decode_##type(rows + g * LANES * stride, stride, tile, g);                             \
    }                                                                                              \
    static void dot_##type(const struct tile *tile, const void *const *x, uint32_t step,           \
                           unsigned n_token, unsigned n_block, token_sums *sums)                   \
    {                                                                                              \
        (void)n_block;                                                                             \
        const struct code_class c = {__VA_ARGS__};                                                 \
        switch (n_token) {                                                                         \
            FOR_EACH_GROUP_SIZE(DOT_K)                                                             \
        }                                                                                          \
    }                                                                                              \
    static void matmul_##type(const struct matmul_args *args)                                      \
    {                                                                                              \
        static const struct tile_kernel kernel = {sizeof(struct block_##type), 1,                  \
                                                  decode_tile_##type, dot_##type};                 \
        matmul_tiles(args, &kernel);                                                               \
    }

#define DOT_32(n)                                                                                  \
    case n:                                                                                        \
        dot_tile_32(c, tile, x, step, n, n_block, sums);                                           \
        break;
#define MATMUL_32(type, ...)                                                                       \
    static void decode_tile_##type(const uint8_t *rows, size_t stride, unsigned n_block,           \
                                   struct tile *tile)                                              \
    {                                                                                              \
        for (unsigned b = 0; b < n_block; b++)                                                     \
            for (unsigned g = 0; g < TILE_GROUPS; g++)                                             \
                decode_##type(rows + g * LANES * stride + b * sizeof(struct block_##type), stride, \
                              tile, b, g);                                                         \
    }                                                                                              \
    static void dot_##type(const struct tile *tile, const void *const *x, uint32_t step,           \
                           unsigned n_token, unsigned n_block, token_sums *sums)                   \
    {                                                                                              \
        const struct code_class c = {__VA_ARGS__};                                                 \
        switch (n_token) {                                                                         \
            FOR_EACH_GROUP_SIZE(DOT_32)                                                            \
        }                                                                                          \
    }                                                                                              \
    static void matmul_##type(const struct matmul_args *args)                                      \
    {                                                                                              \
        static const struct tile_kernel kernel = {sizeof(struct block_##type), 8,                  \
                                                  decode_tile_##type, dot_##type};                 \
        matmul_tiles(args, &kernel);                                                               \
    }

MATMUL_K(q2_k, .code_max = 3, .n_sub = 16, .has_min = true)
MATMUL_K(q3_k, .code_max = 7, .n_sub = 16, .has_offset = true)
MATMUL_K(q4_k, .code_max = 15, .n_sub = 8, .has_min = true)
MATMUL_K(q5_k, .code_max = 31, .n_sub = 8, .has_min = true)
MATMUL_K(q6_k, .code_max = 63, .n_sub = 16, .has_offset = true)
MATMUL_K(iq4_xs, .code_max = 127, .is_signed = true, .n_sub = 8, .has_offset = CODE_BIAS != 0)
MATMUL_32(q4_0, .code_max = 15, .offset = 8)
MATMUL_32(q4_1, .code_max = 15, .has_min = true)
MATMUL_32(q5_0, .code_max = 31, .offset = 16)
MATMUL_32(q5_1, .code_max = 31, .has_min = true)
MATMUL_32(q8_0, .code_max = 128, .is_signed = true, .offset = CODE_BIAS)
MATMUL_32(iq4_nl, .code_max = 127, .is_signed = true, .offset = CODE_BIAS)
MATMUL_32(mxfp4, .code_max = 24, .offset = MXFP4_BIAS)

static inline void init_matmul_quant(struct kernel_table *table)
{
    table->matmul[TENSOR_Q2_K] = matmul_q2_k;
    table->matmul[TENSOR_Q3_K] = matmul_q3_k;
    table->matmul[TENSOR_Q4_K] = matmul_q4_k;
    table->matmul[TENSOR_Q5_K] = matmul_q5_k;
    table->matmul[TENSOR_Q6_K] = matmul_q6_k;
    table->matmul[TENSOR_IQ4_XS] = matmul_iq4_xs;
    table->matmul[TENSOR_Q4_0] = matmul_q4_0;
    table->matmul[TENSOR_Q4_1] = matmul_q4_1;
    table->matmul[TENSOR_Q5_0] = matmul_q5_0;
    table->matmul[TENSOR_Q5_1] = matmul_q5_1;
    table->matmul[TENSOR_Q8_0] = matmul_q8_0;
    table->matmul[TENSOR_IQ4_NL] = matmul_iq4_nl;
    table->matmul[TENSOR_MXFP4] = matmul_mxfp4;
}

#endif
#endif
