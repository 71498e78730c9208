/* Activations to the forms that weights want: kernels/ref/quantize_act.c on the device, with its
 * bytes.
 *
 * A warp takes 256 columns, lane l the eight from 8 l on. RMSNorm before it needs the whole row
 * once more: rms_scale, by one warp, since the order of the sum is that of 32 lanes. */
#ifndef LEAN_KERNELS_CUDA_QUANTIZE_CUH
#define LEAN_KERNELS_CUDA_QUANTIZE_CUH

#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/cuda/dot.cuh"
#include "kernels/exact_math.h"

/* Lane l's eight of 256 columns. */
struct eight_columns {
    float x[8];
};

DEVICE bool is_finite(float x)
{
    return (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u;
}

/* 1 / sqrt(mean of squares + eps) of x[n], in all lanes. */
DEVICE float rms_scale(const float *x, uint32_t n, float eps)
{
    constexpr uint32_t DEPTH = 16;
    const uint32_t lane = (uint32_t)lane_of();
    float sum = 0.0f;
    uint32_t i = lane;
    for (; i - lane + DEPTH * WARP <= n; i += DEPTH * WARP) {
        float value[DEPTH];
#pragma unroll
        for (uint32_t k = 0; k < DEPTH; k++)
            value[k] = x[i + WARP * k];
#pragma unroll
        for (uint32_t k = 0; k < DEPTH; k++)
            sum = fmaf(value[k], value[k], sum);
    }
    for (; i < n; i += WARP)
        sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(lanes_sum(sum) / (float)n + eps);
}

/* This lane's columns of 256-block b of x[n], n > 0; zeros behind the end. */
DEVICE eight_columns load_columns(const float *x, uint32_t n, uint32_t b)
{
    const uint32_t first = QK * b + 8 * (uint32_t)lane_of();
    eight_columns out;
    const bool aligned = n % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    if (aligned && first < n) {
        const float4 low = *reinterpret_cast<const float4 *>(x + first);
        const float4 high = *reinterpret_cast<const float4 *>(x + first + 4);
        out.x[0] = low.x, out.x[1] = low.y, out.x[2] = low.z, out.x[3] = low.w;
        out.x[4] = high.x, out.x[5] = high.y, out.x[6] = high.z, out.x[7] = high.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.x[i] = first + i < n ? x[first + i] : 0.0f;
    }
    return out;
}

DEVICE uint32_t pack_bytes(const int32_t *q)
{
    return ((uint32_t)q[0] & 255u) | ((uint32_t)q[1] & 255u) << 8 | ((uint32_t)q[2] & 255u) << 16 |
           (uint32_t)q[3] << 24;
}

/* Whether the lane's columns are finite, and where they are not, notes it. */
DEVICE void note_not_finite(const eight_columns &c, int32_t *flag, int where)
{
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 8; i++)
        finite = finite && is_finite(c.x[i]);
    if (!finite) *flag = where + 1;
}

/* 256 columns by a warp; block: 64-byte aligned. */
DEVICE void quantize_q8_k(const eight_columns &c, struct act_q8_k *block)
{
    float largest = 0.0f; /* the first of largest magnitude, with its sign */
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (fabsf(c.x[i]) > fabsf(largest)) largest = c.x[i];
    const float magnitude = warp_max(fabsf(largest));
    const uint32_t holders = __ballot_sync(ALL_LANES, fabsf(largest) == magnitude);
    largest = __shfl_sync(ALL_LANES, largest, holders ? __ffs((int)holders) - 1 : 0);
    const float inverse = -127.0f / largest;
    const bool zero = !is_finite(inverse);
    int32_t q[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        q[i] = zero ? 0 : min(exact_round(inverse * c.x[i]), 127);
        sum += q[i];
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    const int lane = lane_of();
    *reinterpret_cast<uint2 *>(block->qs + 8 * lane) = make_uint2(pack_bytes(q), pack_bytes(q + 4));
    if (lane % 2 == 0) block->bsums[lane / 2] = (int16_t)sum;
    if (lane < 8)
        reinterpret_cast<uint32_t *>(&block->d)[lane] =
            lane || zero ? 0 : __float_as_uint(1.0f / inverse); /* and the padding */
}

/* The same for blocks of 32. false, in all lanes of a block, if its scale is not finite. */
DEVICE bool quantize_q8_0(const eight_columns &c, struct act_q8_0 *block)
{
    float magnitude = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        magnitude = fmaxf(magnitude, fabsf(c.x[i]));
    magnitude = fmaxf(magnitude, __shfl_xor_sync(ALL_LANES, magnitude, 1));
    magnitude = fmaxf(magnitude, __shfl_xor_sync(ALL_LANES, magnitude, 2));
    const float inverse = 127.0f / magnitude;
    const bool zero = !is_finite(inverse);
    int32_t q[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        q[i] = zero ? 0 : exact_round(c.x[i] * inverse);
        sum += q[i];
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    const float d = zero ? 0.0f : f16_to_float(float_to_f16(magnitude / 127.0f));
    const int lane = lane_of();
    *reinterpret_cast<uint2 *>(block->qs + 8 * lane) = make_uint2(pack_bytes(q), pack_bytes(q + 4));
    if (lane % 4 == 0) {
        block->d[lane / 4] = d;
        block->sums[lane / 4] = sum;
    }
    return is_finite(d);
}

/* ---- rows ---- */

/* What a row becomes: one row, of act_bytes, for each act_type that is wanted; the others NULL. */
struct act_rows {
    uint8_t *row[ACT_TYPE_COUNT];
};

/* 256-block b of the row x[n_col], scaled by `scale` and norm[n_col] unless norm is NULL. By a
 * warp. */
DEVICE void prepare_block(const float *x, const float *norm, float scale, uint32_t n_col,
                          uint32_t b, const act_rows &out, int32_t *not_finite, int where)
{
    eight_columns c = load_columns(x, n_col, b);
    if (norm) {
        const eight_columns weight = load_columns(norm, n_col, b);
#pragma unroll
        for (int i = 0; i < 8; i++)
            c.x[i] = c.x[i] * scale * weight.x[i];
    }
    note_not_finite(c, not_finite, where);
    if (out.row[ACT_Q8_K])
        quantize_q8_k(c, reinterpret_cast<struct act_q8_k *>(out.row[ACT_Q8_K]) + b);
    if (out.row[ACT_Q8_0] &&
        !quantize_q8_0(c, reinterpret_cast<struct act_q8_0 *>(out.row[ACT_Q8_0]) + b))
        *not_finite = where + 1;
    if (out.row[ACT_F32]) {
        float *row = reinterpret_cast<float *>(out.row[ACT_F32]);
        const uint32_t first = QK * b + 8 * (uint32_t)lane_of();
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (first + i < n_col) row[first + i] = c.x[i];
    }
}

/* ---- the host's side (quantize.cu) ---- */

/* Rows x[n_token][n_col], RMSNormed first unless norm is NULL, to scratch: out->row[act] is
 * [n_token] rows, for the acts of which `types` has the bit 1u << act. false: no memory, noted. */
bool prepare_activations(struct cuda_backend *cuda, enum not_finite_where where, const float *x,
                         uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                         unsigned types, struct act_rows *out);

#endif
