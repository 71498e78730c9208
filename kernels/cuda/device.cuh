/* What every kernel file sees: CUDA by nvcc, or the same words on the host by g++.
 *
 * A kernel file is compiled twice from one source: by nvcc into liblean_cuda.so, and by g++ on
 * emu/cuemu.h (a block's threads are fibers) into liblean_cuda_emu.so, where its bits are compared
 * with kernels/ref without a GPU. So a kernel body holds no #ifdef, shuffles and votes take full
 * warps (all 32 lanes arrive), inline PTX stands in ptx.cuh behind a wrapper that has a host twin,
 * and all arithmetic follows kernels/NUMERICS.md: fmaf where it is fused, otherwise no contraction
 * (-fmad=false, -ffp-contract=off).
 *
 * A kernel takes one parameter, a plain struct by value without pointers into the host:
 *
 *   struct add_args { const float *x; float *y; uint32_t n; };
 *   KERNEL(256) add_kernel(const struct add_args a)
 *   {
 *       const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
 *       if (i < a.n) a.y[i] += a.x[i];
 *   }
 *   ... launch(cuda, add_kernel, dim3(blocks), dim3(256), 0, args);      (backend_cuda.cuh)
 *
 * KERNEL(threads at most, blocks that a multiprocessor should hold: else as they fit).
 * Dynamic shared memory: DYNAMIC_SHARED(float, tile); static: __shared__ as usual, in the body. */
#ifndef LEAN_KERNELS_CUDA_DEVICE_CUH
#define LEAN_KERNELS_CUDA_DEVICE_CUH

#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define KERNEL(...) static __global__ void __launch_bounds__(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[];                               \
    type *const name = reinterpret_cast<type *>(dynamic_shared_)
template <class Args> static inline void register_kernel(void (*)(Args))
{
}
/* The library of NCCL that goes with these devices. */
static inline const char *nccl_file(void)
{
    return "libnccl.so.2";
}
#else
#include "kernels/cuda/emu/cuemu.h" /* the same words among the rest */
#endif

#define DEVICE static __device__ __forceinline__

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

/* The 16-bit formats as bits: widened exactly, rounded to nearest even. */
DEVICE float f16_to_float(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}

DEVICE uint16_t float_to_f16(float value)
{
    return __half_as_ushort(__float2half_rn(value));
}

DEVICE float bf16_to_float(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

DEVICE uint16_t float_to_bf16(float value)
{
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 64u); /* a NaN stays */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* lanes(32): the tree of NUMERICS.md over one value per lane; every lane gets the sum. Halving by
 * exchange: l and l + 16, then 8, 4, 2, 1; both sides add the same two numbers. */
DEVICE float lanes_sum(float value)
{
    for (int half = WARP / 2; half > 0; half /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, half);
    return value;
}

/* Exact in any order. */
DEVICE float warp_max(float value)
{
    for (int half = WARP / 2; half > 0; half /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, half));
    return value;
}

DEVICE int32_t warp_sum_i32(int32_t value)
{
    for (int half = WARP / 2; half > 0; half /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, half);
    return value;
}

#endif
