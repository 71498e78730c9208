/* y = W x for quantized weights.
 *
 * One token: LANES rows at a time, each block decoded (matmul_tile.h) straight into sums.
 *
 * More tokens: tiles times groups of tokens,
 *   for each tile of TILE_ROWS rows               weights are read from memory once
 *     for each chunk of up to TOKEN_CHUNK tokens  their float sums stay in the first-level cache
 *       for each step of 256 columns
 *         decode the tile
 *         for each group of up to TOKEN_GROUP     integer sums stay in registers
 *
 * The order of the float sums is that of kernels/NUMERICS.md on every path, so any number of
 * tokens gives the same bits. */
#ifndef LEAN_KERNELS_X86_MATMUL_QUANT_H
#define LEAN_KERNELS_X86_MATMUL_QUANT_H

#include "kernels/kernels.h"
#include "kernels/x86/matmul_tile.h"
#ifdef __AVX2__

/* A sum and a total for each token of a group and each row group of a tile fill the registers. */
#ifdef __AVX512F__
#define TOKEN_GROUP 6
#define FOR_EACH_GROUP_SIZE(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define TOKEN_GROUP 3
#define FOR_EACH_GROUP_SIZE(X) X(1) X(2) X(3)
#endif
enum { TOKEN_CHUNK = 64, SLOT_MAX = 8 };

/* One float accumulator of one token for the rows of a tile. The accumulators of the canonical
 * order are slots, TOKEN_CHUNK of these apart. */
typedef vfloat token_sums[TILE_GROUPS];

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

/* One superblock of a k-quant for n_token tokens, a constant: sums[t] takes its share. */
ALWAYS_INLINE void dot_tile_k(struct code_class c, const struct tile *tile, const void *const *x,
                              uint32_t step, unsigned n_token, token_sums *sums)
{
    const unsigned n_k = QK / 4 / c.n_sub, n_step = steps_per_sum(c);
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
    const unsigned n_step = steps_per_sum(c);
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

typedef void (*decode_fn)(const uint8_t *rows, size_t stride, struct sink *o);

/* n_block blocks of TILE_ROWS rows to a tile. prefetch: the same number of bytes, read next. */
ALWAYS_INLINE void decode_tile(struct code_class c, decode_fn decode, size_t block_bytes,
                               const uint8_t *rows, size_t stride, unsigned n_block,
                               const char *prefetch, struct tile *tile)
{
    for (unsigned b = 0; b < n_block; b++)
        for (unsigned g = 0; g < TILE_GROUPS; g++, prefetch += LANES * block_bytes) {
            struct sink o;
            o.c = c;
            o.prefetch = prefetch;
            o.prefetch_bytes = LANES * block_bytes;
            o.n_put = 0;
            o.to_tile = true;
            o.tile = tile;
            o.g = g;
            o.b = b;
            decode(rows + g * LANES * stride + b * block_bytes, stride, &o);
        }
}

/* Blocks [begin, end) of LANES rows, the first one at rows, for one token. */
ALWAYS_INLINE void dot_rows(struct code_class c, decode_fn decode, size_t block_bytes,
                            const uint8_t *rows, size_t stride, const void *x, uint32_t begin,
                            uint32_t end, const char *prefetch, vfloat *sums)
{
    for (uint32_t b = begin; b < end; b++) {
        struct sink o;
        o.c = c;
        o.prefetch = prefetch;
        o.prefetch_bytes = LANES * block_bytes;
        o.n_put = 0;
        o.to_tile = false;
        o.corr = vec_set1(0);
        if (c.n_sub) {
            const struct act_q8_k *act = (const struct act_q8_k *)x + b;
            o.x = act->qs;
            o.bsums = act->bsums;
            o.total = vec_set1(0);
            decode(rows, stride, &o);
            const vfloat d_x = vec_set1_f(act->d);
            if (c.has_offset) o.total += o.corr;
            vfloat sum = vec_fma(o.d * d_x, vec_to_float(o.total), sums[b % 4]);
            if (c.has_min) sum = vec_fnma(o.m * d_x, vec_to_float(o.corr), sum);
            sums[b % 4] = sum;
        } else {
            const struct act_q8_0 *act = (const struct act_q8_0 *)x + b / 8;
            o.x = act->qs + QK32 * (b % 8);
            o.total = vec_set1(-c.offset * (uint32_t)act->sums[b % 8]);
            decode(rows, stride, &o);
            const vfloat d_x = vec_set1_f(act->d[b % 8]);
            vfloat sum = vec_fma(o.d * d_x, vec_to_float(o.total), sums[b % 8]);
            if (c.has_min) sum = vec_fma(o.m * d_x, vec_set1_f((float)act->sums[b % 8]), sum);
            sums[b % 8] = sum;
        }
        rows += block_bytes;
        prefetch += LANES * block_bytes;
    }
}

/* A type: the functions above, compiled for it. A step is 256 columns: one superblock, or eight
 * 32-blocks of which the last step of a row may have fewer, n_block. n_token <= TOKEN_GROUP. */
struct quant_kernel {
    size_t block_bytes;
    unsigned n_block_step;
    void (*decode_tile)(const uint8_t *rows, size_t stride, unsigned n_block, const char *prefetch,
                        struct tile *tile);
    void (*dot_tile)(const struct tile *tile, const void *const *x, uint32_t step, unsigned n_token,
                     unsigned n_block, token_sums *sums);
    void (*dot_rows)(const uint8_t *rows, size_t stride, const void *x, uint32_t begin,
                     uint32_t end, const char *prefetch, vfloat *sums);
};

/* Adds the accumulators in the canonical order. */
ALWAYS_INLINE vfloat sum_of_slots(vfloat a[SLOT_MAX], unsigned n_slot)
{
    if (n_slot == 4) return (a[0] + a[1]) + (a[2] + a[3]);
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Where part i of n things in n_part nearly equal parts begins. */
static inline uint32_t part_begin(uint32_t n, uint32_t n_part, uint32_t i)
{
    return (uint32_t)((uint64_t)n * i / n_part);
}

/* Where n_row rows of n_byte bytes are when there are fewer than a kernel wants: copied to scratch,
 * n_byte apart, so that nothing behind the last row is read. What else scratch holds is zero. */
static inline const uint8_t *copy_rows(const uint8_t *rows, size_t stride, uint32_t n_row,
                                       size_t n_byte, uint8_t *scratch)
{
    for (uint32_t r = 0; r < n_row; r++)
        memcpy(scratch + r * n_byte, rows + r * stride, n_byte);
    return scratch;
}

enum { STEP_BYTES_MAX = 8 * sizeof(struct block_q8_0) };

static void matmul_one_token(const struct matmul_args *args, const struct quant_kernel *kernel)
{
    const unsigned n_block_step = kernel->n_block_step, n_slot = n_block_step == 1 ? 4 : 8;
    const uint32_t n_block = args->n_col / (QK / n_block_step);
    const size_t stride = args->w_row_bytes;

    for (uint32_t row = args->row_begin; row < args->row_end; row += LANES) {
        const uint8_t *rows = (const uint8_t *)args->w + row * stride;
        const uint32_t n_row = min_u32(args->row_end - row, LANES);
        const bool is_last = row + n_row == args->row_end;
        const char *next = (const char *)(is_last ? rows : rows + LANES * stride);
        vfloat sums[SLOT_MAX];
        memset(sums, 0, sizeof(sums));
        if (n_row == LANES) {
            kernel->dot_rows(rows, stride, args->x[0], 0, n_block, next, sums);
        } else {
            uint8_t scratch[LANES * STEP_BYTES_MAX] = {0};
            for (uint32_t b = 0; b < n_block; b += n_block_step) {
                const uint32_t end = min_u32(b + n_block_step, n_block);
                const size_t n_byte = (end - b) * kernel->block_bytes;
                const uint8_t *copy =
                    copy_rows(rows + b * kernel->block_bytes, stride, n_row, n_byte, scratch);
                kernel->dot_rows(copy, n_byte, args->x[0], b, end, next, sums);
            }
        }
        vec_store_n(args->y[0] + row, sum_of_slots(sums, n_slot), n_row);
    }
}

static void matmul_tokens(const struct matmul_args *args, const struct quant_kernel *kernel)
{
    const unsigned n_block_step = kernel->n_block_step, n_slot = n_block_step == 1 ? 4 : 8;
    const uint32_t n_block = args->n_col / (QK / n_block_step);
    const uint32_t n_step = (n_block + n_block_step - 1) / n_block_step;
    const uint32_t n_chunk = (args->n_token + TOKEN_CHUNK - 1) / TOKEN_CHUNK;
    const size_t step_bytes = n_block_step * kernel->block_bytes;
    struct tile tile;
    token_sums sums[SLOT_MAX * TOKEN_CHUNK];
    uint8_t scratch[TILE_ROWS * STEP_BYTES_MAX];
    if ((args->row_end - args->row_begin) % TILE_ROWS) memset(scratch, 0, sizeof(scratch));

    for (uint32_t row = args->row_begin; row < args->row_end; row += TILE_ROWS) {
        const uint8_t *rows = (const uint8_t *)args->w + row * args->w_row_bytes;
        const uint32_t n_row = min_u32(args->row_end - row, TILE_ROWS);
        const bool is_last = row + n_row == args->row_end;

        for (uint32_t chunk = 0; chunk < n_chunk; chunk++) {
            const uint32_t token = part_begin(args->n_token, n_chunk, chunk);
            const uint32_t n_token = part_begin(args->n_token, n_chunk, chunk + 1) - token;
            const uint32_t n_group = (n_token + TOKEN_GROUP - 1) / TOKEN_GROUP;
            const uint8_t *next = is_last || chunk ? rows : rows + TILE_ROWS * args->w_row_bytes;
            for (unsigned s = 0; s < n_slot; s++)
                memset(sums + s * TOKEN_CHUNK, 0, n_token * sizeof(sums[0]));

            for (uint32_t step = 0; step < n_step; step++) {
                const unsigned n = min_u32(n_block - step * n_block_step, n_block_step);
                const uint8_t *from = rows + step * step_bytes;
                size_t stride = args->w_row_bytes;
                if (n_row < TILE_ROWS) {
                    from = copy_rows(from, stride, n_row, n * kernel->block_bytes, scratch);
                    stride = n * kernel->block_bytes;
                }
                kernel->decode_tile(from, stride, n,
                                    (const char *)next + step * TILE_ROWS * step_bytes, &tile);
                token_sums *to = n_slot == 4 ? sums + step % 4 * TOKEN_CHUNK : sums;
                for (uint32_t i = 0; i < n_group; i++) {
                    const uint32_t t = part_begin(n_token, n_group, i);
                    const uint32_t t_end = part_begin(n_token, n_group, i + 1);
                    kernel->dot_tile(&tile, args->x + token + t, step, t_end - t, n, to + t);
                }
            }
            for (uint32_t t = 0; t < n_token; t++)
                for (uint32_t r = 0; r < n_row; r += LANES) {
                    vfloat a[SLOT_MAX];
                    for (unsigned s = 0; s < n_slot; s++)
                        a[s] = sums[s * TOKEN_CHUNK + t][r / LANES];
                    vec_store_n(args->y[token + t] + row + r, sum_of_slots(a, n_slot),
                                min_u32(n_row - r, LANES));
                }
        }
    }
}

/* Defines matmul_TYPE from decode_TYPE; the rest initializes its code_class. */
#define DOT_TILE_K(n)                                                                              \
    case n:                                                                                        \
        dot_tile_k(c, tile, x, step, n, sums);                                                     \
        break;
#define DOT_TILE_32(n)                                                                             \
    case n:                                                                                        \
        dot_tile_32(c, tile, x, step, n, n_block, sums);                                           \
        break;
#define MATMUL(type, DOT_TILE, n_block_step, ...)                                                  \
    static const struct code_class class_##type = {__VA_ARGS__};                                   \
    static void decode_tile_##type(const uint8_t *rows, size_t stride, unsigned n_block,           \
                                   const char *prefetch, struct tile *tile)                        \
    {                                                                                              \
        decode_tile(class_##type, decode_##type, sizeof(struct block_##type), rows, stride,        \
                    n_block, prefetch, tile);                                                      \
    }                                                                                              \
    static void dot_tile_##type(const struct tile *tile, const void *const *x, uint32_t step,      \
                                unsigned n_token, unsigned n_block, token_sums *sums)              \
    {                                                                                              \
        const struct code_class c = class_##type;                                                  \
        (void)n_block;                                                                             \
        switch (n_token) {                                                                         \
            FOR_EACH_GROUP_SIZE(DOT_TILE)                                                          \
        }                                                                                          \
    }                                                                                              \
    static void dot_rows_##type(const uint8_t *rows, size_t stride, const void *x, uint32_t begin, \
                                uint32_t end, const char *prefetch, vfloat *sums)                  \
    {                                                                                              \
        dot_rows(class_##type, decode_##type, sizeof(struct block_##type), rows, stride, x, begin, \
                 end, prefetch, sums);                                                             \
    }                                                                                              \
    static void matmul_##type(const struct matmul_args *args)                                      \
    {                                                                                              \
        static const struct quant_kernel kernel = {sizeof(struct block_##type), n_block_step,      \
                                                   decode_tile_##type, dot_tile_##type,            \
                                                   dot_rows_##type};                               \
        if (args->n_token == 1)                                                                    \
            matmul_one_token(args, &kernel);                                                       \
        else                                                                                       \
            matmul_tokens(args, &kernel);                                                          \
    }
#define MATMUL_K(type, ...) MATMUL(type, DOT_TILE_K, 1, __VA_ARGS__)
#define MATMUL_32(type, ...) MATMUL(type, DOT_TILE_32, 8, __VA_ARGS__)

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
