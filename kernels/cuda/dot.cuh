/* warp_dot: y[t] = a row of weights . activation row t, by one warp, in the order of NUMERICS.md.
 *
 * Activation rows are those of kernels_table.quantize_act, byte for byte (quant_blocks.h):
 *
 *   act_of(type)            the form a weight type wants, as the CPU's tables have it
 *   act_bytes(act, n_col)   bytes of one row; rows lie at multiples of 64 (ACT_F32: 4) bytes, in
 *                           shared or device memory
 *
 * Superblocks. Eight lanes take a superblock, and superblock b belongs to lane group b % 4: so the
 *   group's running sum is the canonical accumulator b % 4. A lane's integer sum covers 32 columns,
 *   three exchanges add those of a group, and all its lanes do the same fmaf.
 * Blocks of 32. A lane takes a whole block, lane l of the groups block l % 8 of its superblock; the
 *   four groups' sums then enter accumulator l % 8 in block order, in every lane of that residue.
 * Floats. Lane l is lane l.
 *
 * A weight is decoded once for all N rows of activations. For a type that is known only at run
 * time, on either side:
 *
 *   switch (type) {
 *   #define CASE(TYPE) case TYPE: warp_dot<TYPE, N>(...); break;
 *       FOR_EACH_WEIGHT(CASE)
 *   #undef CASE
 *   default: break;
 *   } */
#ifndef LEAN_KERNELS_CUDA_DOT_CUH
#define LEAN_KERNELS_CUDA_DOT_CUH

extern "C" {
#include "kernels/kernels.h"
}
#include "kernels/cuda/weights.cuh"

#define HOST_DEVICE static __host__ __device__ __forceinline__

HOST_DEVICE constexpr enum act_type act_of(int type)
{
    return type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16         ? ACT_F32
           : (type >= TENSOR_Q2_K && type <= TENSOR_Q6_K) || type == TENSOR_IQ4_XS ? ACT_Q8_K
                                                                                   : ACT_Q8_0;
}

/* act_row_bytes, on the device too. */
HOST_DEVICE constexpr size_t act_bytes(enum act_type act, uint32_t n_col)
{
    return act == ACT_F32 ? ((size_t)n_col * sizeof(float) + 63) / 64 * 64
                          : ((size_t)n_col + QK - 1) / QK * sizeof(struct act_q8_k);
}

DEVICE int lane_of(void)
{
    return (int)(threadIdx.x % WARP);
}

/* 16 codes . 16 activations. */
DEVICE int dot_16(const codes_16 &codes, const int8_t *x)
{
    const int4 four = *reinterpret_cast<const int4 *>(x);
    int sum = __dp4a((int)codes.word[0], four.x, 0);
    sum = __dp4a((int)codes.word[1], four.y, sum);
    sum = __dp4a((int)codes.word[2], four.z, sum);
    return __dp4a((int)codes.word[3], four.w, sum);
}

/* The sum over a group of eight lanes, in each of them. */
DEVICE int sum_of_eight(int value)
{
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    value += __shfl_xor_sync(ALL_LANES, value, 2);
    return value + __shfl_xor_sync(ALL_LANES, value, 4);
}

/* Superblocks that a lane has under way before the first is used. */
enum { DOT_DEPTH = 2 };

template <int TYPE, int N> struct dot_superblocks {
    typedef slice<TYPE> weights;

    static MEMBER void step(const weights &w, const uint8_t *const *act, uint32_t b, bool valid,
                            float *acc)
    {
        const int s = lane_of() % 8;
        const int g0 = group_of<weights::PAIR>(s, 0), g1 = group_of<weights::PAIR>(s, 1);
        const codes_16 codes0 = w.codes(s, 0), codes1 = w.codes(s, 1);
        const int scale0 = w.scale(s, 0), scale1 = w.scale(s, 1);
        int min0 = 0, min1 = 0;
        float dmin = 0.0f;
        if constexpr (weights::HAS_MIN) {
            min0 = w.min(s, 0);
            min1 = w.min(s, 1);
            dmin = w.dmin();
        }
#pragma unroll
        for (int t = 0; t < N; t++) {
            const struct act_q8_k *x = reinterpret_cast<const struct act_q8_k *>(act[t]) + b;
            const int isum = sum_of_eight(scale0 * dot_16(codes0, x->qs + 16 * g0) +
                                          scale1 * dot_16(codes1, x->qs + 16 * g1));
            const float d_x = x->d;
            float sum = fmaf(w.d() * d_x, (float)isum, acc[t]);
            if constexpr (weights::HAS_MIN) {
                const int msum = sum_of_eight(min0 * x->bsums[g0] + min1 * x->bsums[g1]);
                sum = fmaf(-(dmin * d_x), (float)msum, sum);
            }
            acc[t] = valid ? sum : acc[t];
        }
    }

    static MEMBER void run(const uint8_t *row, const uint8_t *const *act, uint32_t n_col, float *y)
    {
        const int s = lane_of() % 8;
        const uint32_t n_block = n_col / QK, g = (uint32_t)lane_of() / 8;
        float acc[N] = {};
        for (uint32_t first = 0; first < n_block; first += 4 * DOT_DEPTH) {
            weights w[DOT_DEPTH];
#pragma unroll
            for (int i = 0; i < DOT_DEPTH; i++)
                w[i].load(row + (size_t)min(first + 4 * i + g, n_block - 1) * weights::BYTES, s);
#pragma unroll
            for (int i = 0; i < DOT_DEPTH; i++) {
                const uint32_t b = first + 4 * i + g;
                if (first + 4 * i < n_block) /* all lanes alike */
                    step(w[i], act, min(b, n_block - 1), b < n_block, acc);
            }
        }
#pragma unroll
        for (int t = 0; t < N; t++) {
            acc[t] += __shfl_xor_sync(ALL_LANES, acc[t], 8);
            y[t] = acc[t] + __shfl_xor_sync(ALL_LANES, acc[t], 16);
        }
    }
};

template <int TYPE, int N> struct dot_blocks {
    typedef slice<TYPE> weights;

    /* first: the superblock of lane group 0. */
    static MEMBER void step(const weights &w, const uint8_t *const *act, uint32_t first,
                            uint32_t n_block, float *acc)
    {
        const int s = lane_of() % 8;
        const int g0 = group_of<weights::PAIR>(s, 0), g1 = group_of<weights::PAIR>(s, 1);
        const uint32_t last = (n_block - 1) / 8;
        const uint32_t superblock = min(first + (uint32_t)lane_of() / 8, last);
        const codes_16 codes0 = w.codes(s, 0), codes1 = w.codes(s, 1);
#pragma unroll
        for (int t = 0; t < N; t++) {
            const struct act_q8_0 *x =
                reinterpret_cast<const struct act_q8_0 *>(act[t]) + superblock;
            const float isum =
                (float)(dot_16(codes0, x->qs + 16 * g0) + dot_16(codes1, x->qs + 16 * g1));
            const float d = w.d() * x->d[s];
            float m = 0.0f, sum = 0.0f;
            if constexpr (weights::HAS_MIN) {
                m = w.m() * x->d[s];
                sum = (float)x->sums[s];
            }
#pragma unroll
            for (int g = 0; g < 4; g++) {
                const bool valid = 8 * (first + (uint32_t)g) + (uint32_t)s < n_block;
                const float d_g = __shfl_sync(ALL_LANES, d, 8 * g + s);
                const float isum_g = __shfl_sync(ALL_LANES, isum, 8 * g + s);
                float next = fmaf(d_g, isum_g, acc[t]);
                if constexpr (weights::HAS_MIN) {
                    const float m_g = __shfl_sync(ALL_LANES, m, 8 * g + s);
                    const float sum_g = __shfl_sync(ALL_LANES, sum, 8 * g + s);
                    next = fmaf(m_g, sum_g, next);
                }
                acc[t] = valid ? next : acc[t];
            }
        }
    }

    static MEMBER void run(const uint8_t *row, const uint8_t *const *act, uint32_t n_col, float *y)
    {
        const int s = lane_of() % 8;
        const uint32_t n_block = n_col / QK32, n_superblock = (n_block + 7) / 8;
        float acc[N] = {};
        for (uint32_t first = 0; first < n_superblock; first += 4 * DOT_DEPTH) {
            weights w[DOT_DEPTH];
#pragma unroll
            for (int i = 0; i < DOT_DEPTH; i++) {
                const uint32_t b = 8 * (first + 4 * i) + (uint32_t)lane_of();
                w[i].load(row + (size_t)min(b, n_block - 1) * weights::BYTES, s);
            }
#pragma unroll
            for (int i = 0; i < DOT_DEPTH; i++)
                if (first + 4 * i < n_superblock) step(w[i], act, first + 4 * i, n_block, acc);
        }
#pragma unroll
        for (int t = 0; t < N; t++) { /* the tree over 8: a[s] + a[s+4], then 2, then 1 */
            acc[t] += __shfl_xor_sync(ALL_LANES, acc[t], 4);
            acc[t] += __shfl_xor_sync(ALL_LANES, acc[t], 2);
            y[t] = acc[t] + __shfl_xor_sync(ALL_LANES, acc[t], 1);
        }
    }
};

template <int TYPE, int N> struct dot_floats {
    static MEMBER void run(const uint8_t *row, const uint8_t *const *act, uint32_t n_col, float *y)
    {
        constexpr uint32_t DEPTH = 8;
        const uint32_t lane = (uint32_t)lane_of();
        float acc[N] = {};
        uint32_t i = lane;
        for (; i - lane + DEPTH * WARP <= n_col; i += DEPTH * WARP) {
            float w[DEPTH];
#pragma unroll
            for (uint32_t k = 0; k < DEPTH; k++)
                w[k] = float_weight<TYPE>::at(row, i + WARP * k);
#pragma unroll
            for (uint32_t k = 0; k < DEPTH; k++)
#pragma unroll
                for (int t = 0; t < N; t++)
                    acc[t] =
                        fmaf(w[k], reinterpret_cast<const float *>(act[t])[i + WARP * k], acc[t]);
        }
        for (; i < n_col; i += WARP) {
            const float w = float_weight<TYPE>::at(row, i);
#pragma unroll
            for (int t = 0; t < N; t++)
                acc[t] = fmaf(w, reinterpret_cast<const float *>(act[t])[i], acc[t]);
        }
#pragma unroll
        for (int t = 0; t < N; t++)
            y[t] = lanes_sum(acc[t]);
    }
};

/* row: as the alignment rule of weights.cuh; act: [N] rows of act_of(TYPE); n_col > 0, of whole
 * blocks; y: [N], in every lane. All lanes of the warp arrive, with the same arguments. */
template <int TYPE, int N>
DEVICE void warp_dot(const void *row, const uint8_t *const *act, uint32_t n_col, float *y)
{
    const uint8_t *bytes = static_cast<const uint8_t *>(row);
    if constexpr (act_of(TYPE) == ACT_F32)
        dot_floats<TYPE, N>::run(bytes, act, n_col, y);
    else if constexpr (act_of(TYPE) == ACT_Q8_K)
        dot_superblocks<TYPE, N>::run(bytes, act, n_col, y);
    else
        dot_blocks<TYPE, N>::run(bytes, act, n_col, y);
}

#endif
