/* y = W x for F32, F16 and BF16 weights: lanes along the row, a block of rows times a block of
 * tokens in registers.
 *
 * The canonical sum has 32 lanes, column i in lane i % 32: N_PASS vectors. Lanes do not meet before
 * the tree, so a pass over the row may take some of the parts only, and then a larger block of
 * tokens fits into the registers. */
#ifndef LEAN_KERNELS_X86_MATMUL_FLOAT_H
#define LEAN_KERNELS_X86_MATMUL_FLOAT_H

#include "kernels/kernels.h"
#include "kernels/x86/vec.h"
#ifdef __AVX2__

#ifdef __AVX512F__
enum { FLOAT_GROUP = 6 };
#define FOR_EACH_FLOAT_GROUP_SIZE(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
enum { FLOAT_GROUP = 3 };
#define FOR_EACH_FLOAT_GROUP_SIZE(X) X(1) X(2) X(3)
#endif
enum { FLOAT_ROWS = 4, FLOAT_CHUNK = 48, N_PASS = 32 / LANES };

typedef vfloat (*load_float_fn)(const void *p);

/* The tree over 32 lanes: l and l + 16, then 8, 4, 2, 1. */
ALWAYS_INLINE float tree_of_passes(const vfloat part[N_PASS])
{
    const vfloat half = N_PASS == 2 ? part[0] + part[1]
                                    : (part[0] + part[2 % N_PASS]) + (part[1] + part[3 % N_PASS]);
    const __m256 a = vec_fold_to_8(half);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* sum[t][r][p] of parts [p_begin, p_begin + n_part) over n_whole columns; the numbers of tokens
 * and parts are constants. One or two tokens wait for memory: there each line read asks for the one
 * that lies `ahead` bytes behind it. */
ALWAYS_INLINE void float_pass(load_float_fn load, size_t elem_bytes,
                              const uint8_t *const row[FLOAT_ROWS], const float *const *act,
                              unsigned n_token, uint32_t n_whole, unsigned p_begin, unsigned n_part,
                              ptrdiff_t ahead, vfloat sum[FLOAT_GROUP][FLOAT_ROWS][N_PASS])
{
    vfloat s[FLOAT_GROUP][FLOAT_ROWS][N_PASS];
#pragma GCC unroll 8
    for (unsigned t = 0; t < n_token; t++)
#pragma GCC unroll 4
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
#pragma GCC unroll 4
            for (unsigned p = 0; p < n_part; p++)
                s[t][r][p] = vec_set1_f(0.0f);

    for (uint32_t i = p_begin * LANES; i < n_whole; i += 32) {
#pragma GCC unroll 4
        for (unsigned p = 0; p < n_part; p++) {
            vfloat a[FLOAT_GROUP];
#pragma GCC unroll 8
            for (unsigned t = 0; t < n_token; t++)
                a[t] = vec_load_f32(act[t] + i + p * LANES);
#pragma GCC unroll 4
            for (unsigned r = 0; r < FLOAT_ROWS; r++) {
                const uint8_t *from = row[r] + (i + p * LANES) * elem_bytes;
                vfloat w = load(from);
                if (n_token <= 2 && (p_begin + p) * LANES * elem_bytes % 64 == 0)
                    w = (vfloat)vec_prefetch((const char *)from + ahead, (vint)w);
#pragma GCC unroll 8
                for (unsigned t = 0; t < n_token; t++)
                    s[t][r][p] = vec_fma(w, a[t], s[t][r][p]);
            }
        }
    }
#pragma GCC unroll 8
    for (unsigned t = 0; t < n_token; t++)
#pragma GCC unroll 4
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
#pragma GCC unroll 4
            for (unsigned p = 0; p < n_part; p++)
                sum[t][r][p_begin + p] = s[t][r][p];
}

/* FLOAT_ROWS rows, the last ones possibly the same row, times n_token tokens, a constant. */
ALWAYS_INLINE void dot_float(load_float_fn load, size_t elem_bytes,
                             const uint8_t *const row[FLOAT_ROWS], const void *const *x,
                             unsigned n_token, uint32_t n_col, ptrdiff_t ahead,
                             float result[FLOAT_GROUP][FLOAT_ROWS])
{
    unsigned n_part = N_PASS;
    while (n_part > 1 && n_token * n_part > FLOAT_GROUP)
        n_part /= 2;
    const uint32_t n_whole = n_col / 32 * 32, n_tail = n_col - n_whole;
    const float *act[FLOAT_GROUP];
    vfloat sum[FLOAT_GROUP][FLOAT_ROWS][N_PASS];
    for (unsigned t = 0; t < n_token; t++)
        act[t] = x[t];
    for (unsigned p = 0; p < N_PASS; p += n_part)
        float_pass(load, elem_bytes, row, act, n_token, n_whole, p, n_part, ahead, sum);

    if (n_tail) {
        /* Padded so that the padding's products are -0, which no sum notices; +0 would turn a sum
         * of -0 into +0. */
        uint8_t w[FLOAT_ROWS][32 * sizeof(float)] = {{0}};
        float a[32];
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
            memcpy(w[r], row[r] + n_whole * elem_bytes, n_tail * elem_bytes);
        for (unsigned i = n_tail; i < 32; i++)
            a[i] = -1.0f;
        for (unsigned t = 0; t < n_token; t++) {
            memcpy(a, act[t] + n_whole, n_tail * sizeof(float));
            for (unsigned r = 0; r < FLOAT_ROWS; r++)
                for (unsigned p = 0; p < N_PASS; p++)
                    sum[t][r][p] = vec_fma(load(w[r] + p * LANES * elem_bytes),
                                           vec_load_f32(a + p * LANES), sum[t][r][p]);
        }
    }
    for (unsigned t = 0; t < n_token; t++)
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
            result[t][r] = tree_of_passes(sum[t][r]);
}

typedef void (*dot_float_fn)(const uint8_t *const row[FLOAT_ROWS], const void *const *x,
                             unsigned n_token, uint32_t n_col, ptrdiff_t ahead,
                             float result[FLOAT_GROUP][FLOAT_ROWS]);

/* Chunks of tokens outside, rows inside: a chunk's activations stay in the second-level cache. */
static void matmul_float(const struct matmul_args *args, dot_float_fn dot)
{
    for (uint32_t token = 0; token < args->n_token; token += FLOAT_CHUNK) {
        const uint32_t n_left = args->n_token - token;
        const uint32_t token_end = token + (n_left < FLOAT_CHUNK ? n_left : FLOAT_CHUNK);
        for (uint32_t r0 = args->row_begin; r0 < args->row_end; r0 += FLOAT_ROWS) {
            const uint8_t *row[FLOAT_ROWS];
            for (uint32_t r = 0; r < FLOAT_ROWS; r++) {
                const uint32_t last = args->row_end - 1;
                row[r] =
                    (const uint8_t *)args->w + (r0 + r < last ? r0 + r : last) * args->w_row_bytes;
            }
            const bool is_last = args->row_end - r0 <= FLOAT_ROWS;
            const ptrdiff_t ahead = is_last ? 0 : (ptrdiff_t)(FLOAT_ROWS * args->w_row_bytes);
            for (uint32_t t0 = token; t0 < token_end; t0 += FLOAT_GROUP) {
                const uint32_t n = token_end - t0 < FLOAT_GROUP ? token_end - t0 : FLOAT_GROUP;
                float result[FLOAT_GROUP][FLOAT_ROWS];
                dot(row, args->x + t0, n, args->n_col, ahead, result);
                for (uint32_t t = 0; t < n; t++)
                    for (uint32_t r = 0; r < FLOAT_ROWS && r0 + r < args->row_end; r++)
                        args->y[t0 + t][r0 + r] = result[t][r];
            }
        }
    }
}

#define DOT_FLOAT(n)                                                                               \
    case n:                                                                                        \
        dot_float(load, elem_bytes, row, x, n, n_col, ahead, result);                              \
        break;
#define MATMUL_FLOAT(type, bytes)                                                                  \
    static void dot_##type(const uint8_t *const row[FLOAT_ROWS], const void *const *x,             \
                           unsigned n_token, uint32_t n_col, ptrdiff_t ahead,                      \
                           float result[FLOAT_GROUP][FLOAT_ROWS])                                  \
    {                                                                                              \
        const load_float_fn load = vec_load_##type;                                                \
        const size_t elem_bytes = bytes;                                                           \
        switch (n_token) {                                                                         \
            FOR_EACH_FLOAT_GROUP_SIZE(DOT_FLOAT)                                                   \
        }                                                                                          \
    }                                                                                              \
    static void matmul_##type(const struct matmul_args *args)                                      \
    {                                                                                              \
        matmul_float(args, dot_##type);                                                            \
    }
MATMUL_FLOAT(f32, 4)
MATMUL_FLOAT(f16, 2)
MATMUL_FLOAT(bf16, 2)

static inline void init_matmul_float(struct kernel_table *table)
{
    table->matmul[TENSOR_F32] = matmul_f32;
    table->matmul[TENSOR_F16] = matmul_f16;
    table->matmul[TENSOR_BF16] = matmul_bf16;
}

#endif
#endif
