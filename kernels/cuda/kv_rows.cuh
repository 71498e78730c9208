/* The rows of the KV cache, as the lanes of a warp read and write them: lane l has dimensions l,
 * l + 32, l + 64, ... of a head, "chunk" c of which is 32 c + l. That is where the canonical sums
 * over a head want them, and a block of Q8_0 is one chunk.
 *
 *   read   the value as stored, widened exactly (one lane's)
 *   write  rounds as ref_encode_TYPE does; all lanes arrive, n is the row's length */
#ifndef LEAN_KERNELS_CUDA_KV_ROWS_CUH
#define LEAN_KERNELS_CUDA_KV_ROWS_CUH

extern "C" {
#include "proto/base/tensor_type.h"
}
#include "kernels/cuda/device.cuh"
#include "kernels/exact_math.h"

template <enum tensor_type TYPE> struct kv_row;

template <> struct kv_row<TENSOR_F32> {
    DEVICE float read(const uint8_t *row, uint32_t chunk, uint32_t lane)
    {
        return reinterpret_cast<const float *>(row)[chunk * WARP + lane];
    }
    DEVICE void write(uint8_t *row, uint32_t chunk, uint32_t lane, uint32_t n, float x)
    {
        if (chunk * WARP + lane < n) reinterpret_cast<float *>(row)[chunk * WARP + lane] = x;
    }
};

template <> struct kv_row<TENSOR_F16> {
    DEVICE float read(const uint8_t *row, uint32_t chunk, uint32_t lane)
    {
        return f16_to_float(reinterpret_cast<const uint16_t *>(row)[chunk * WARP + lane]);
    }
    DEVICE void write(uint8_t *row, uint32_t chunk, uint32_t lane, uint32_t n, float x)
    {
        if (chunk * WARP + lane < n)
            reinterpret_cast<uint16_t *>(row)[chunk * WARP + lane] = float_to_f16(x);
    }
};

template <> struct kv_row<TENSOR_BF16> {
    DEVICE float read(const uint8_t *row, uint32_t chunk, uint32_t lane)
    {
        return bf16_to_float(reinterpret_cast<const uint16_t *>(row)[chunk * WARP + lane]);
    }
    DEVICE void write(uint8_t *row, uint32_t chunk, uint32_t lane, uint32_t n, float x)
    {
        if (chunk * WARP + lane < n)
            reinterpret_cast<uint16_t *>(row)[chunk * WARP + lane] = float_to_bf16(x);
    }
};

template <> struct kv_row<TENSOR_Q8_0> { /* struct block_q8_0: a scale of 2 bytes, 32 codes */
    static constexpr uint32_t BLOCK_BYTES = 34;
    DEVICE float read(const uint8_t *row, uint32_t chunk, uint32_t lane)
    {
        const uint8_t *block = row + chunk * BLOCK_BYTES;
        const float d = f16_to_float(*reinterpret_cast<const uint16_t *>(block));
        return d * (float)(int8_t)block[2 + lane];
    }
    DEVICE void write(uint8_t *row, uint32_t chunk, uint32_t lane, uint32_t n, float x)
    {
        if (chunk * WARP >= n) return;
        uint8_t *block = row + chunk * BLOCK_BYTES;
        const float largest = warp_max(fabsf(x));
        const bool finite = __all_sync(ALL_LANES, isfinite(x));
        const float inverse = finite ? 127.0f / largest : INFINITY;
        const bool empty = !isfinite(inverse);
        const uint16_t d = float_to_f16(largest / 127.0f);
        block[2 + lane] = empty ? 0 : (uint8_t)exact_round(x * inverse);
        if (lane == 0) *reinterpret_cast<uint16_t *>(block) = !finite ? 0x7c00u : empty ? 0 : d;
    }
};

#endif
