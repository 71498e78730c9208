/* The operations beside the matrix products, in the vocabulary of vec.h; compiled once for each
 * instruction set.
 *
 * Sums follow the canonical 32 lanes: N_PASS vectors of LANES. Element-wise functions are plain
 * loops over exact_math.h, which the compiler turns into vectors of the same bits; a result may
 * overwrite an operand element by element, so those loops are marked ivdep. */
#ifndef LEAN_KERNELS_X86_OPS_H
#define LEAN_KERNELS_X86_OPS_H

#include <math.h>

#include "kernels/exact_math.h"
#include "kernels/ref/ref.h"
#include "kernels/x86/matmul_float.h"
#include "proto/base/half.h"
#ifdef __AVX2__

ALWAYS_INLINE void store_f(float *p, vfloat a)
{
    memcpy(p, &a, sizeof(a));
}

#ifdef __AVX512F__
ALWAYS_INLINE vfloat vec_max(vfloat a, vfloat b)
{
    return (vfloat)_mm512_max_ps((__m512)a, (__m512)b);
}
/* One bit for each lane where a and b are equal. */
ALWAYS_INLINE unsigned vec_equal_mask(vfloat a, vfloat b)
{
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
}
/* 32 signed integers, saturated to bytes. */
ALWAYS_INLINE __m256i vec_pack_32(const vint a[N_PASS])
{
    return _mm256_set_m128i(_mm512_cvtsepi32_epi8((__m512i)a[1]),
                            _mm512_cvtsepi32_epi8((__m512i)a[0]));
}
#else
ALWAYS_INLINE vfloat vec_max(vfloat a, vfloat b)
{
    return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
}
ALWAYS_INLINE unsigned vec_equal_mask(vfloat a, vfloat b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ));
}
ALWAYS_INLINE __m256i vec_pack_32(const vint a[N_PASS])
{
    const __m256i low = _mm256_packs_epi32((__m256i)a[0], (__m256i)a[1]);
    const __m256i high = _mm256_packs_epi32((__m256i)a[2 % N_PASS], (__m256i)a[3 % N_PASS]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packs works in halves */
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
}
#endif

ALWAYS_INLINE vfloat vec_abs(vfloat a)
{
    return (vfloat)((vint)a & 0x7fffffffu);
}

/* ---- sums ---- */

/* The n < 32 values at x, padded with +0. */
ALWAYS_INLINE const float *pad_32(const float *x, uint32_t n, float padded[32])
{
    memset(padded, 0, 32 * sizeof(float));
    memcpy(padded, x, n * sizeof(float));
    return padded;
}

/* Padding with +0 is exact here: no lane is ever -0. */
static float sum_of_squares(const float *x, uint32_t n)
{
    vfloat lane[N_PASS] = {0};
    float padded[32];
    for (uint32_t i = 0; i < n; i += 32) {
        const float *at = n - i < 32 ? pad_32(x + i, n - i, padded) : x + i;
        for (int p = 0; p < N_PASS; p++) {
            const vfloat v = vec_load_f32(at + p * LANES);
            lane[p] = vec_fma(v, v, lane[p]);
        }
    }
    return tree_of_passes(lane);
}

/* The sum of n values of at least +0. */
static float sum_of_values(const float *x, uint32_t n)
{
    vfloat lane[N_PASS] = {0};
    float padded[32];
    for (uint32_t i = 0; i < n; i += 32) {
        const float *at = n - i < 32 ? pad_32(x + i, n - i, padded) : x + i;
        for (int p = 0; p < N_PASS; p++)
            lane[p] += vec_load_f32(at + p * LANES);
    }
    return tree_of_passes(lane);
}

static float max_of(const float *x, uint32_t n)
{
    float max = x[0];
    uint32_t i = 0;
    if (n >= LANES) {
        vfloat lane = vec_load_f32(x);
        for (i = LANES; i + LANES <= n; i += LANES)
            lane = vec_max(vec_load_f32(x + i), lane);
        for (int l = 0; l < LANES; l++)
            max = lane[l] > max ? lane[l] : max;
    }
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* Sums of LANES canonical vectors at once: out lane r = halving tree of row r. The steps of the
 * trees are shared by transposing on the way: 3 instructions for a row instead of 8. The shuffles
 * leave row b + (LANES / 4) * j in lane 4 * b + j, so rows enter in that order. */
ALWAYS_INLINE int row_of_slot(int slot)
{
    return slot % (LANES / 4) * 4 + slot / (LANES / 4);
}

#ifdef __AVX512F__
ALWAYS_INLINE vfloat sum_rows(vfloat row[LANES][N_PASS])
{
    __m512 a[16], b[8], c[4], d[2];
    for (int s = 0; s < 16; s++)
        a[s] = (__m512)(row[row_of_slot(s)][0] + row[row_of_slot(s)][1]);
    for (int s = 0; s < 8; s++)
        b[s] = _mm512_shuffle_f32x4(a[2 * s], a[2 * s + 1], 0x44) +
               _mm512_shuffle_f32x4(a[2 * s], a[2 * s + 1], 0xee);
    for (int s = 0; s < 4; s++)
        c[s] = _mm512_shuffle_f32x4(b[2 * s], b[2 * s + 1], 0x88) +
               _mm512_shuffle_f32x4(b[2 * s], b[2 * s + 1], 0xdd);
    for (int s = 0; s < 2; s++)
        d[s] = (__m512)_mm512_unpacklo_pd((__m512d)c[2 * s], (__m512d)c[2 * s + 1]) +
               (__m512)_mm512_unpackhi_pd((__m512d)c[2 * s], (__m512d)c[2 * s + 1]);
    return (vfloat)(_mm512_shuffle_ps(d[0], d[1], 0x88) + _mm512_shuffle_ps(d[0], d[1], 0xdd));
}
#else
ALWAYS_INLINE vfloat sum_rows(vfloat row[LANES][N_PASS])
{
    __m256 a[8], b[4], c[2];
    for (int s = 0; s < 8; s++) {
        const vfloat *r = row[row_of_slot(s)];
        a[s] = (__m256)((r[0] + r[2 % N_PASS]) + (r[1] + r[3 % N_PASS]));
    }
    for (int s = 0; s < 4; s++)
        b[s] = _mm256_permute2f128_ps(a[2 * s], a[2 * s + 1], 0x20) +
               _mm256_permute2f128_ps(a[2 * s], a[2 * s + 1], 0x31);
    for (int s = 0; s < 2; s++)
        c[s] = (__m256)_mm256_unpacklo_pd((__m256d)b[2 * s], (__m256d)b[2 * s + 1]) +
               (__m256)_mm256_unpackhi_pd((__m256d)b[2 * s], (__m256d)b[2 * s + 1]);
    return (vfloat)(_mm256_shuffle_ps(c[0], c[1], 0x88) + _mm256_shuffle_ps(c[0], c[1], 0xdd));
}
#endif

/* ---- norms and element-wise operations ---- */

static void rms_norm(const float *x, const float *w, uint32_t n, float eps, float *y)
{
    const float scale = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

static void l2_norm(const float *x, uint32_t n, float eps, float *y)
{
    const float scale = 1.0f / sqrtf(sum_of_squares(x, n) + eps);
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale;
}

static void swiglu(const float *gate, const float *up, uint32_t n, float *h)
{
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; i++)
        h[i] = exact_silu(gate[i]) * up[i];
}

static void add_scaled(float a, const float *x, uint32_t n, float *y)
{
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

static void add(const float *x, uint32_t n, float *y)
{
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* x[i] = e^(x[i] - max); returns the canonical sum. */
static float exponentials(float *x, uint32_t n, float max)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = exact_exp(x[i] - max);
    return sum_of_values(x, n);
}

static void softmax(float *x, uint32_t n)
{
    const float sum = exponentials(x, n, max_of(x, n));
    for (uint32_t i = 0; i < n; i++)
        x[i] /= sum;
}

static void sigmoid(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = exact_sigmoid(x[i]);
}

static void rope(float *x, const float *cos, const float *sin, uint32_t n_rot, bool adjacent)
{
    if (adjacent) {
        ref_rope(x, cos, sin, n_rot, adjacent);
        return;
    }
    const uint32_t half = n_rot / 2;
#pragma GCC ivdep
    for (uint32_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cos[i], -(b * sin[i]));
        x[i + half] = fmaf(a, sin[i], b * cos[i]);
    }
}

/* ---- activations ---- */

/* Magnitudes compare as integers; those of infinities and NaNs are the largest. */
static float largest_magnitude(const float *x, uint32_t n)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t magnitude = exact_f32_bits(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return exact_f32_from_bits(largest);
}

/* The first of n elements whose magnitude is the largest of them; n is a multiple of 32. */
static float first_of_magnitude(const float *x, float magnitude)
{
    const vfloat wanted = vec_set1_f(magnitude);
    for (;; x += LANES) {
        const unsigned mask = vec_equal_mask(vec_abs(vec_load_f32(x)), wanted);
        if (mask) return x[__builtin_ctz(mask)];
    }
}

/* The sum of 16 codes: sum of (code + 128) as unsigned bytes, less 16 * 128. */
ALWAYS_INLINE int32_t sum_16_codes(const int8_t *q)
{
    const __m128i biased = _mm_xor_si128(_mm_loadu_si128((const __m128i *)q), _mm_set1_epi8(-128));
    const __m128i sad = _mm_sad_epu8(biased, _mm_setzero_si128());
    return _mm_cvtsi128_si32(sad) + _mm_extract_epi16(sad, 4) - 16 * 128;
}

/* q[i] = round(inverse * x[i]) for 32 elements; 128, which rounding may reach, becomes 127. */
ALWAYS_INLINE void round_32_codes(const float *x, float inverse, int8_t *q)
{
    vint code[N_PASS];
    for (int p = 0; p < N_PASS; p++) {
        const vfloat scaled = vec_load_f32(x + p * LANES) * vec_set1_f(inverse);
        code[p] = (vint)(scaled + vec_set1_f(0x1.8p23f)) - 0x4b400000u; /* as exact_round */
    }
    _mm256_storeu_si256((__m256i *)q, vec_pack_32(code));
}

static bool quantize_f32(const float *x, uint32_t n_col, void *out)
{
    memcpy(out, x, n_col * sizeof(float));
    return isfinite(largest_magnitude(x, n_col));
}

static bool quantize_q8_k(const float *x, uint32_t n_col, void *out)
{
    struct act_q8_k *block = out;
    for (uint32_t b = 0; b < n_col / QK; b++, block++, x += QK) {
        const float magnitude = largest_magnitude(x, QK);
        if (!isfinite(magnitude)) return false;
        memset(block, 0, sizeof(*block));
        if (!isfinite(127.0f / magnitude)) continue;
        const float inverse = -127.0f / first_of_magnitude(x, magnitude);
        for (int i = 0; i < QK; i += 32)
            round_32_codes(x + i, inverse, block->qs + i);
        for (int j = 0; j < 16; j++)
            block->bsums[j] = (int16_t)sum_16_codes(block->qs + 16 * j);
        block->d = 1.0f / inverse;
    }
    return true;
}

static bool quantize_q8_0(const float *x, uint32_t n_col, void *out)
{
    memset(out, 0, act_row_bytes(ACT_Q8_0, n_col));
    bool finite = true;
    for (uint32_t b = 0; b < n_col / QK32; b++, x += QK32) {
        struct act_q8_0 *block = (struct act_q8_0 *)out + b / 8;
        int8_t *q = block->qs + b % 8 * QK32;
        const float magnitude = largest_magnitude(x, QK32), inverse = 127.0f / magnitude;
        finite = finite && isfinite(magnitude);
        if (!isfinite(inverse)) continue;
        round_32_codes(x, inverse, q);
        block->sums[b % 8] = sum_16_codes(q) + sum_16_codes(q + 16);
        block->d[b % 8] = _cvtsh_ss(_cvtss_sh(magnitude / 127.0f, 0));
        finite = finite && isfinite(block->d[b % 8]);
    }
    return finite;
}

/* ---- attention ---- */

static void encode_f16(const float *x, uint32_t n, void *row)
{
    uint16_t *half = row;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(half + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
    for (; i < n; i++)
        half[i] = f16_from_f32(x[i]);
}

static void dequant_f16(const void *row, uint32_t n, float *out)
{
    const uint16_t *half = row;
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store_f(out + i, vec_load_f16(half + i));
    ref_dequant_f16(half + i, n - i, out + i);
}

static void dequant_q8_0(const void *row, uint32_t n, float *out)
{
    const struct block_q8_0 *block = row;
    for (uint32_t b = 0; b < n / QK32; b++) {
        const float d = f32_from_f16(block[b].d);
        for (int i = 0; i < QK32; i++)
            out[b * QK32 + i] = d * (float)block[b].qs[i];
    }
}

enum { WEIGH_QUERIES = 4, WEIGH_VECTORS = LANES == 16 ? 4 : 2 };

/* partial[n][i] = fma(weight[n][j], v[j][i], partial[n][i]) for keys j in order, for a block of
 * dimensions (n_vector vectors from i) held in registers. */
ALWAYS_INLINE void weigh_dims(load_float_fn load, size_t elem_bytes, const uint8_t *v,
                              size_t row_bytes, uint32_t begin, uint32_t end, int n_query,
                              const float (*weight)[ATTEND_BLOCK], float *const *partial,
                              uint32_t i, int n_vector)
{
    vfloat sum[WEIGH_QUERIES][WEIGH_VECTORS];
#pragma GCC unroll 4
    for (int n = 0; n < n_query; n++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vector; c++)
            sum[n][c] = vec_load_f32(partial[n] + i + c * LANES);
    for (uint32_t j = begin; j < end; j++) {
        const uint8_t *row = v + j * row_bytes + i * elem_bytes;
        vfloat value[WEIGH_VECTORS];
#pragma GCC unroll 4
        for (int c = 0; c < n_vector; c++)
            value[c] = load(row + (size_t)c * LANES * elem_bytes);
#pragma GCC unroll 4
        for (int n = 0; n < n_query; n++) {
            const vfloat w = vec_set1_f(weight[n][j]);
#pragma GCC unroll 4
            for (int c = 0; c < n_vector; c++)
                sum[n][c] = vec_fma(w, value[c], sum[n][c]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < n_query; n++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vector; c++)
            store_f(partial[n] + i + c * LANES, sum[n][c]);
}

/* head_dim is a multiple of LANES. */
ALWAYS_INLINE void weigh(load_float_fn load, size_t elem_bytes, const uint8_t *v, uint32_t head_dim,
                         uint32_t begin, uint32_t end, int n_query,
                         const float (*weight)[ATTEND_BLOCK], float *const *partial)
{
    const size_t row_bytes = head_dim * elem_bytes;
    uint32_t i = 0;
    if (begin >= end) return;
    for (; i + WEIGH_VECTORS * LANES <= head_dim; i += WEIGH_VECTORS * LANES)
        weigh_dims(load, elem_bytes, v, row_bytes, begin, end, n_query, weight, partial, i,
                   WEIGH_VECTORS);
    for (; i < head_dim; i += LANES)
        weigh_dims(load, elem_bytes, v, row_bytes, begin, end, n_query, weight, partial, i, 1);
}

/* Queries that see the same keys go together; where a few see more at either end (a causal or
 * window edge runs through the block), those keys are added alone, before or after. */
#define WEIGH_GROUP(type, bytes)                                                                   \
    static void weigh_group_##type(const struct attend_args *args, const void *v, uint32_t first,  \
                                   const float(*weight)[ATTEND_BLOCK])                             \
    {                                                                                              \
        const uint32_t *begin = args->begin + first, *end = args->end + first;                     \
        float *const *partial = args->partial + first;                                             \
        uint32_t common_begin = 0, common_end = ATTEND_BLOCK;                                      \
        for (int n = 0; n < WEIGH_QUERIES; n++) {                                                  \
            common_begin = begin[n] > common_begin ? begin[n] : common_begin;                      \
            common_end = end[n] < common_end ? end[n] : common_end;                                \
        }                                                                                          \
        if (common_begin > common_end) common_begin = common_end = 0;                              \
        for (int n = 0; n < WEIGH_QUERIES; n++)                                                    \
            weigh(vec_load_##type, bytes, v, args->head_dim, begin[n],                             \
                  common_end ? common_begin : end[n], 1, weight + n, partial + n);                 \
        if (!common_end) return;                                                                   \
        weigh(vec_load_##type, bytes, v, args->head_dim, common_begin, common_end, WEIGH_QUERIES,  \
              weight, partial);                                                                    \
        for (int n = 0; n < WEIGH_QUERIES; n++)                                                    \
            weigh(vec_load_##type, bytes, v, args->head_dim, common_end, end[n], 1, weight + n,    \
                  partial + n);                                                                    \
    }                                                                                              \
    static void weigh_one_##type(const struct attend_args *args, const void *v, uint32_t n,        \
                                 const float(*weight)[ATTEND_BLOCK])                               \
    {                                                                                              \
        weigh(vec_load_##type, bytes, v, args->head_dim, args->begin[n], args->end[n], 1, weight,  \
              args->partial + n);                                                                  \
    }
WEIGH_GROUP(f32, 4)
WEIGH_GROUP(f16, 2)
WEIGH_GROUP(bf16, 2)

typedef void (*weigh_fn)(const struct attend_args *args, const void *v, uint32_t n,
                         const float (*weight)[ATTEND_BLOCK]);

enum { ATTEND_QUERIES = 32 };

/* Scores of up to ATTEND_QUERIES queries are a matrix product with the block of keys, by the same
 * rule. Keys out of a query's sight get a score of minus infinity, thus a weight of +0, which
 * leaves the maximum and the sum as they are; the weighted sum skips them. */
static void attend_queries(const struct attend_args *args, matmul_fn product, const void *k,
                           size_t k_row_bytes, const void *v, weigh_fn weigh_group,
                           weigh_fn weigh_one)
{
    _Alignas(64) float score[ATTEND_QUERIES][ATTEND_BLOCK];
    float *rows[ATTEND_QUERIES];
    uint32_t begin = ATTEND_BLOCK, end = 0;
    for (uint32_t n = 0; n < args->n_query; n++) {
        rows[n] = score[n];
        begin = args->begin[n] < begin ? args->begin[n] : begin;
        end = args->end[n] > end ? args->end[n] : end;
    }
    const struct matmul_args scores = {
        .w = k,
        .w_row_bytes = k_row_bytes,
        .n_col = args->head_dim,
        .row_begin = begin,
        .row_end = end,
        .n_token = args->n_query,
        .x = (const void *const *)args->q,
        .y = rows,
    };
    product(&scores);
    for (uint32_t n = 0; n < args->n_query; n++) {
        float *s = score[n], *partial = args->partial[n];
        for (uint32_t j = 0; j < args->begin[n]; j++)
            s[j] = -INFINITY;
        for (uint32_t j = args->begin[n]; j < args->end[n]; j++)
            s[j] *= args->scale;
        for (uint32_t j = args->end[n]; j < ATTEND_BLOCK; j++)
            s[j] = -INFINITY;
        const float max = max_of(s, ATTEND_BLOCK);
        memset(partial, 0, args->head_dim * sizeof(float));
        partial[args->head_dim] = max + 0.0f;
        partial[args->head_dim + 1] = exponentials(s, ATTEND_BLOCK, max);
    }
    uint32_t n = 0;
    for (; n + WEIGH_QUERIES <= args->n_query; n += WEIGH_QUERIES)
        weigh_group(args, v, n, (const float(*)[ATTEND_BLOCK])(score + n));
    for (; n < args->n_query; n++)
        weigh_one(args, v, n, (const float(*)[ATTEND_BLOCK])(score + n));
}

/* Q8_0 rows are decoded first. Returns the keys (or values) as floats. */
static const float *decode_block(const void *rows, uint32_t head_dim, float *out)
{
    const size_t row_bytes = tensor_row_bytes(TENSOR_Q8_0, head_dim);
    for (uint32_t j = 0; j < ATTEND_BLOCK; j++)
        dequant_q8_0((const uint8_t *)rows + j * row_bytes, head_dim, out + j * head_dim);
    return out;
}

static void attend(const struct attend_args *args)
{
    const uint32_t dim = args->head_dim;
    if (dim % LANES) {
        ref_attend(args);
        return;
    }
    struct attend_args part = *args;
    const void *k = args->k, *v = args->v;
    if (args->kv_type == TENSOR_Q8_0) {
        k = decode_block(k, dim, args->scratch);
        v = decode_block(v, dim, args->scratch + ATTEND_BLOCK * (size_t)dim);
    }
    for (uint32_t n = 0; n < args->n_query; n += ATTEND_QUERIES) {
        part.n_query = args->n_query - n < ATTEND_QUERIES ? args->n_query - n : ATTEND_QUERIES;
        part.q = args->q + n;
        part.begin = args->begin + n;
        part.end = args->end + n;
        part.partial = args->partial + n;
        switch (args->kv_type) {
        case TENSOR_F16:
            attend_queries(&part, matmul_f16, k, dim * 2, v, weigh_group_f16, weigh_one_f16);
            break;
        case TENSOR_BF16:
            attend_queries(&part, matmul_bf16, k, dim * 2, v, weigh_group_bf16, weigh_one_bf16);
            break;
        default: /* F32, and Q8_0 decoded */
            attend_queries(&part, matmul_f32, k, dim * 4, v, weigh_group_f32, weigh_one_f32);
        }
    }
}

static void attend_merge(float *acc, const float *partial, uint32_t head_dim)
{
    const float max_acc = acc[head_dim], max_partial = partial[head_dim];
    const float max = max_acc > max_partial ? max_acc : max_partial;
    const float a = exact_exp(max_acc - max), b = exact_exp(max_partial - max);
#pragma GCC ivdep
    for (uint32_t i = 0; i < head_dim; i++)
        acc[i] = fmaf(partial[i], b, acc[i] * a);
    acc[head_dim] = max;
    acc[head_dim + 1] = fmaf(partial[head_dim + 1], b, acc[head_dim + 1] * a);
}

static void attend_finish(const float *acc, uint32_t head_dim, const float *gate, float *out)
{
    const float inverse = 1.0f / acc[head_dim + 1];
    if (gate) {
#pragma GCC ivdep
        for (uint32_t i = 0; i < head_dim; i++)
            out[i] = acc[i] * inverse * exact_sigmoid(gate[i]);
    } else {
#pragma GCC ivdep
        for (uint32_t i = 0; i < head_dim; i++)
            out[i] = acc[i] * inverse;
    }
}

/* ---- gated delta net ---- */

/* Four taps: LANES channels at a time, their weights transposed once for all tokens. */
static void conv_silu(const struct conv_args *args)
{
    const uint32_t n_channel = args->channel_end - args->channel_begin;
    if (args->n_tap != 4 || n_channel % LANES) {
        ref_conv_silu(args);
        return;
    }
    for (uint32_t c = args->channel_begin; c < args->channel_end; c += LANES) {
        vint w[4];
        vec_load_rows((const uint8_t *)(args->w + (size_t)c * 4), 16, w);
        for (uint32_t t = 0; t < args->n_token; t++) {
            vfloat sum = {0};
            for (int j = 0; j < 4; j++)
                sum = vec_fma((vfloat)w[j], vec_load_f32(args->x[t + j] + c), sum);
            store_f(args->y + t * args->y_stride + c, sum);
        }
    }
    for (uint32_t t = 0; t < args->n_token; t++) {
        float *y = args->y + t * args->y_stride;
        for (uint32_t c = args->channel_begin; c < args->channel_end; c++)
            y[c] = exact_silu(y[c]);
    }
}

static void delta_gates(const float *alpha, const float *b, float a, float dt, uint32_t n,
                        float *decay, float *beta)
{
#pragma GCC ivdep
    for (uint32_t t = 0; t < n; t++) {
        decay[t] = exact_exp(a * exact_softplus(alpha[t] + dt));
        beta[t] = exact_sigmoid(b[t]);
    }
}

/* LANES rows of the state through one token; n_vector = dim_k / LANES, a constant. */
ALWAYS_INLINE void delta_rows(float *state, const float *q, const float *k, int n_vector,
                              const float *v, float decay, float beta, float scale, float *o)
{
    enum { N_VECTOR_MAX = 128 / LANES };
    vfloat lane[LANES][N_PASS], key[N_VECTOR_MAX], query[N_VECTOR_MAX];
    const int dim_k = n_vector * LANES;
#pragma GCC unroll 16
    for (int i = 0; i < n_vector; i++)
        key[i] = vec_load_f32(k + i * LANES);
    for (int r = 0; r < LANES; r++) {
        const float *s = state + r * dim_k;
        vfloat sum[N_PASS] = {0};
#pragma GCC unroll 16
        for (int i = 0; i < n_vector; i++)
            sum[i % N_PASS] = vec_fma(vec_load_f32(s + i * LANES), key[i], sum[i % N_PASS]);
#pragma GCC unroll 4
        for (int p = 0; p < N_PASS; p++)
            lane[r][p] = sum[p];
    }
    float u[LANES];
    store_f(u, vec_set1_f(beta) * vec_fma(vec_set1_f(-decay), sum_rows(lane), vec_load_f32(v)));
    const vfloat d = vec_set1_f(decay);
#pragma GCC unroll 16
    for (int i = 0; i < n_vector; i++)
        query[i] = vec_load_f32(q + i * LANES);
    for (int r = 0; r < LANES; r++) {
        float *s = state + r * dim_k;
        const vfloat u_row = vec_set1_f(u[r]);
        vfloat sum[N_PASS] = {0};
#pragma GCC unroll 16
        for (int i = 0; i < n_vector; i++) {
            const vfloat updated = vec_fma(key[i], u_row, d * vec_load_f32(s + i * LANES));
            store_f(s + i * LANES, updated);
            sum[i % N_PASS] = vec_fma(updated, query[i], sum[i % N_PASS]);
        }
#pragma GCC unroll 4
        for (int p = 0; p < N_PASS; p++)
            lane[r][p] = sum[p];
    }
    store_f(o, sum_rows(lane) * vec_set1_f(scale));
}

/* Rows outside, tokens inside: LANES rows of state stay in the first-level cache. */
ALWAYS_INLINE void delta_rule_dim(const struct delta_rule_args *args, int n_vector)
{
    for (uint32_t r = args->row_begin; r < args->row_end; r += LANES)
        for (uint32_t t = 0; t < args->n_token; t++)
            delta_rows(args->state + (size_t)r * args->dim_k, args->q + t * args->qk_stride,
                       args->k + t * args->qk_stride, n_vector, args->v + t * args->v_stride + r,
                       args->decay[t * args->gate_stride], args->beta[t * args->gate_stride],
                       args->scale, args->o + t * args->o_stride + r);
}

static void delta_rule(const struct delta_rule_args *args)
{
    const bool whole = (args->row_end - args->row_begin) % LANES == 0;
    if (whole && args->dim_k == 128)
        delta_rule_dim(args, 128 / LANES);
    else if (whole && args->dim_k == 64)
        delta_rule_dim(args, 64 / LANES);
    else if (whole && args->dim_k == 32)
        delta_rule_dim(args, 32 / LANES);
    else
        ref_delta_rule(args);
}

static inline void init_ops(struct kernel_table *table)
{
    table->quantize_act[ACT_F32] = quantize_f32;
    table->quantize_act[ACT_Q8_K] = quantize_q8_k;
    table->quantize_act[ACT_Q8_0] = quantize_q8_0;
    table->dequant_row[TENSOR_F16] = dequant_f16;
    table->dequant_row[TENSOR_Q8_0] = dequant_q8_0;
    table->rms_norm = rms_norm;
    table->l2_norm = l2_norm;
    table->swiglu = swiglu;
    table->add_scaled = add_scaled;
    table->add = add;
    table->softmax = softmax;
    table->sigmoid = sigmoid;
    table->rope = rope;
    table->encode_row[TENSOR_F16] = encode_f16;
    table->attend = attend;
    table->attend_merge = attend_merge;
    table->attend_finish = attend_finish;
    table->conv_silu = conv_silu;
    table->delta_gates = delta_gates;
    table->delta_rule = delta_rule;
}

#endif
#endif
