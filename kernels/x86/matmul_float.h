/* y = W x for F32, F16 and BF16 weights: lanes along the row, a block of rows times a block of
 * tokens in registers.
 *
 * The canonical sum has 32 lanes, column i in lane i % 32, whatever the vector length: a pass takes
 * LANES of them, columns p * LANES .. of every 32, and 32 / LANES passes complete a result. Lanes
 * never meet before the tree, so the passes may follow each other, and with one accumulator for
 * each row and token a pass has the registers for a large block. */
#ifndef LEAN_KERNELS_X86_MATMUL_FLOAT_H
#define LEAN_KERNELS_X86_MATMUL_FLOAT_H

#include "kernels/kernels.h"
#include "kernels/x86/vec.h"
#ifdef __AVX2__

#ifdef __AVX512F__
#define FLOAT_GROUP 6
#define FOR_EACH_FLOAT_GROUP_SIZE(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define FLOAT_GROUP 3
#define FOR_EACH_FLOAT_GROUP_SIZE(X) X(1) X(2) X(3)
#endif
enum { FLOAT_ROWS = 4, FLOAT_CHUNK = 48, N_PASS = 32 / LANES };

typedef vfloat (*load_float_fn)(const void *p);

/* The tree over 32 lanes: l and l + 16, then 8, 4, 2, 1. */
ALWAYS_INLINE float tree_of_passes(const vfloat lane[N_PASS])
{
    const vfloat half = N_PASS == 2 ? lane[0] + lane[1]
                                    : (lane[0] + lane[2 % N_PASS]) + (lane[1] + lane[3 % N_PASS]);
    const __m256 a = vec_fold_to_8(half);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* The columns behind the last multiple of 32, padded so that the padding's products are -0, which
 * no sum notices (+0 would turn a sum of -0 into +0). */
struct float_tail {
    uint8_t w[FLOAT_ROWS][32 * sizeof(float)];
    float x[FLOAT_GROUP][32];
};

/* FLOAT_ROWS rows, the last ones possibly the same row, times n_token tokens, a constant. */
ALWAYS_INLINE void dot_float(load_float_fn load, size_t elem_bytes,
                             const uint8_t *const row[FLOAT_ROWS], const void *const *x,
                             unsigned n_token, uint32_t n_col,
                             float result[FLOAT_GROUP][FLOAT_ROWS])
{
    const uint32_t n_whole = n_col / 32 * 32, n_tail = n_col - n_whole;
    const float *act[FLOAT_GROUP];
    vfloat lane[FLOAT_GROUP][FLOAT_ROWS][N_PASS];
    struct float_tail tail;
    for (unsigned t = 0; t < n_token; t++)
        act[t] = x[t];
    if (n_tail) {
        memset(tail.w, 0, sizeof(tail.w));
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
            memcpy(tail.w[r], row[r] + n_whole * elem_bytes, n_tail * elem_bytes);
        for (unsigned t = 0; t < n_token; t++)
            for (unsigned i = 0; i < 32; i++)
                tail.x[t][i] = i < n_tail ? act[t][n_whole + i] : -1.0f;
    }

    for (unsigned p = 0; p < N_PASS; p++) {
        vfloat sum[FLOAT_GROUP][FLOAT_ROWS];
#pragma GCC unroll 8
        for (unsigned t = 0; t < n_token; t++)
#pragma GCC unroll 4
            for (unsigned r = 0; r < FLOAT_ROWS; r++)
                sum[t][r] = vec_set1_f(0.0f);

        for (uint32_t i = p * LANES; i < n_whole; i += 32) {
            vfloat a[FLOAT_GROUP];
#pragma GCC unroll 8
            for (unsigned t = 0; t < n_token; t++)
                a[t] = vec_load_f32(act[t] + i);
#pragma GCC unroll 4
            for (unsigned r = 0; r < FLOAT_ROWS; r++) {
                const vfloat w = load(row[r] + i * elem_bytes);
#pragma GCC unroll 8
                for (unsigned t = 0; t < n_token; t++)
                    sum[t][r] = vec_fma(w, a[t], sum[t][r]);
            }
        }
#pragma GCC unroll 8
        for (unsigned t = 0; t < n_token; t++)
#pragma GCC unroll 4
            for (unsigned r = 0; r < FLOAT_ROWS; r++) {
                if (n_tail)
                    sum[t][r] = vec_fma(load(tail.w[r] + p * LANES * elem_bytes),
                                        vec_load_f32(tail.x[t] + p * LANES), sum[t][r]);
                lane[t][r][p] = sum[t][r];
            }
    }
    for (unsigned t = 0; t < n_token; t++)
        for (unsigned r = 0; r < FLOAT_ROWS; r++)
            result[t][r] = tree_of_passes(lane[t][r]);
}

typedef void (*dot_float_fn)(const uint8_t *const row[FLOAT_ROWS], const void *const *x,
                             unsigned n_token, uint32_t n_col,
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
            for (uint32_t t0 = token; t0 < token_end; t0 += FLOAT_GROUP) {
                const uint32_t n = token_end - t0 < FLOAT_GROUP ? token_end - t0 : FLOAT_GROUP;
                float result[FLOAT_GROUP][FLOAT_ROWS];
                dot(row, args->x + t0, n, args->n_col, result);
                for (uint32_t t = 0; t < n; t++)
                    for (uint32_t r = 0; r < FLOAT_ROWS && r0 + r < args->row_end; r++)
                        args->y[t0 + t][r0 + r] = result[t][r];
            }
        }
    }
}

#define DOT_FLOAT(n)                                                                               \
    case n:                                                                                        \
        dot_float(load, elem_bytes, row, x, n, n_col, result);                                     \
        break;
#define MATMUL_FLOAT(type, bytes)                                                                  \
    static void dot_##type(const uint8_t *const row[FLOAT_ROWS], const void *const *x,             \
                           unsigned n_token, uint32_t n_col,                                       \
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
