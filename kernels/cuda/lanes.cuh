/* Several canonical sums over a warp at once.
 *
 * A warp that has N sums to make of 32 lanes each need not exchange every value at every halving: a
 * lane keeps one half of them and gives the other away, so N = 32 takes 31 exchanges instead of
 * 160. Each sum still adds l and l + 16, then 8, 4, 2, 1. */
#ifndef LEAN_KERNELS_CUDA_LANES_CUH
#define LEAN_KERNELS_CUDA_LANES_CUH

#include "kernels/cuda/device.cuh"

template <uint32_t HALF, uint32_t N> DEVICE void lanes_halve(float *value, uint32_t lane)
{
    const bool upper = (lane & HALF) != 0;
#pragma unroll
    for (uint32_t i = 0; i < N / 2; i++) {
        const float keep = upper ? value[i + N / 2] : value[i];
        const float give = upper ? value[i] : value[i + N / 2];
        value[i] = keep + __shfl_xor_sync(ALL_LANES, give, HALF);
    }
    if (N < 2) value[0] += __shfl_xor_sync(ALL_LANES, value[0], HALF);
}

/* Lane l gets lanes_sum of value[l / (32 / N)]; the values are used up. N: a power of two. */
template <uint32_t N> DEVICE float lanes_sums(float (&value)[N], uint32_t lane)
{
    lanes_halve<16, N>(value, lane);
    lanes_halve<8, (N > 2 ? N / 2 : 1)>(value, lane);
    lanes_halve<4, (N > 4 ? N / 4 : 1)>(value, lane);
    lanes_halve<2, (N > 8 ? N / 8 : 1)>(value, lane);
    lanes_halve<1, (N > 16 ? N / 16 : 1)>(value, lane);
    return value[0];
}

/* A head's dimensions in a lane: l, l + 32, ... , CHUNKS of them, or (RAGGED) those of its CHUNKS
 * that lie below the head's size. */
template <uint32_t CHUNKS_, bool RAGGED> struct head_shape {
    static constexpr uint32_t CHUNKS = CHUNKS_;
    DEVICE bool has(uint32_t chunk, uint32_t lane, uint32_t size)
    {
        return !RAGGED || chunk * WARP + lane < size;
    }
};
constexpr uint32_t HEAD_DIM_MAX = 256;

#endif
