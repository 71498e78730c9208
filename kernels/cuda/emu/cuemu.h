/* CUDA's words on the host: what a kernel file needs to be compiled by g++ and run without a GPU.
 *
 * The threads of a block are fibers of one OS thread; blocks run one after another. A fiber runs
 * until it waits: at a barrier, or at a warp operation until all 32 lanes are there. So a kernel's
 * bits can be compared with kernels/ref where there is no GPU, under sanitizers too. What cannot
 * be seen here: timing, coalescing, bank conflicts, most missing barriers (lanes are never in
 * lock-step, though, and LEAN_EMU_ORDER changes who is first), and wgmma, TMA, clusters.
 *
 *   a wait that cannot end, a partial warp mask     reported with kernel, block and threads; the
 *                                                   launch fails
 *   device memory touched by the host, after its    the process ends by a fault: device memory has
 *   end, or when it was freed                       its own addresses, readable only to kernels
 *   shared memory read before it was written        is garbage where it is dynamic
 *
 * Not emulated: exited lanes in a warp operation (an error here), thread block clusters.
 * Threads: kernels run under one lock; __shared__ is static.
 * The host's side, memory and streams, is emu/runtime.h. */
#ifndef LEAN_KERNELS_CUDA_EMU_CUEMU_H
#define LEAN_KERNELS_CUDA_EMU_CUEMU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "proto/base/half.h"
}

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __restrict__ __restrict
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#define KERNEL(...) static void
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(emu_dynamic_shared)

/* ---- vector types ---- */

#define EMU_VECTOR(type, element, n_bytes, fields, parameters, values)                             \
    struct __attribute__((aligned(n_bytes))) type {                                                \
        element fields;                                                                            \
    };                                                                                             \
    static inline type make_##type parameters                                                      \
    {                                                                                              \
        return type values;                                                                        \
    }
#define EMU_LIST(...) __VA_ARGS__
#define EMU_VECTOR_2(type, element, n_bytes)                                                       \
    EMU_VECTOR(type, element, n_bytes, EMU_LIST(x, y), (element x, element y), EMU_LIST({x, y}))
#define EMU_VECTOR_3(type, element, n_bytes)                                                       \
    EMU_VECTOR(type, element, n_bytes, EMU_LIST(x, y, z), (element x, element y, element z),       \
               EMU_LIST({x, y, z}))
#define EMU_VECTOR_4(type, element, n_bytes)                                                       \
    EMU_VECTOR(type, element, n_bytes, EMU_LIST(x, y, z, w),                                       \
               (element x, element y, element z, element w), EMU_LIST({x, y, z, w}))

EMU_VECTOR_2(char2, int8_t, 2)
EMU_VECTOR_4(char4, int8_t, 4)
EMU_VECTOR_2(uchar2, uint8_t, 2)
EMU_VECTOR_4(uchar4, uint8_t, 4)
EMU_VECTOR_2(short2, int16_t, 4)
EMU_VECTOR_4(short4, int16_t, 8)
EMU_VECTOR_2(ushort2, uint16_t, 4)
EMU_VECTOR_4(ushort4, uint16_t, 8)
EMU_VECTOR_2(int2, int32_t, 8)
EMU_VECTOR_3(int3, int32_t, 4)
EMU_VECTOR_4(int4, int32_t, 16)
EMU_VECTOR_2(uint2, uint32_t, 8)
EMU_VECTOR_3(uint3, uint32_t, 4)
EMU_VECTOR_4(uint4, uint32_t, 16)
EMU_VECTOR_2(float2, float, 8)
EMU_VECTOR_3(float3, float, 4)
EMU_VECTOR_4(float4, float, 16)
EMU_VECTOR_2(double2, double, 16)

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

/* ---- who a thread is; set whenever a fiber goes on ---- */

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
extern unsigned char *emu_dynamic_shared;
static const int warpSize = 32;

/* ---- waiting (fibers.cpp) ---- */

/* The kinds of waits: lanes of a warp, or threads of a block, must agree in it. */
enum emu_wait {
    EMU_RUNS,
    EMU_SYNCTHREADS,
    EMU_SYNCTHREADS_OR,
    EMU_SYNCTHREADS_AND,
    EMU_SYNCTHREADS_COUNT,
    EMU_SYNCWARP,
    EMU_SHUFFLE,
    EMU_VOTE,
    EMU_REDUCE,
    EMU_MATCH,
    EMU_MMA,
};

/* Waits for the block; returns how many threads came with true. */
uint32_t emu_block_wait(emu_wait kind, bool value);
/* Waits for the warp; returns what each of the 32 lanes brought, readable until the calling thread
 * waits for its warp again. n_bytes: at most EMU_LANE_BYTES. */
enum { EMU_LANE_BYTES = 64 };
struct emu_lanes {
    unsigned char lane[32][EMU_LANE_BYTES];
};
const emu_lanes *emu_warp_wait(emu_wait kind, uint32_t mask, const void *value, size_t n_bytes);
/* Lane of the running thread. */
uint32_t emu_lane(void);

static inline void __syncthreads(void)
{
    emu_block_wait(EMU_SYNCTHREADS, false);
}
static inline int __syncthreads_or(int value)
{
    return emu_block_wait(EMU_SYNCTHREADS_OR, value != 0) != 0;
}
static inline int __syncthreads_and(int value)
{
    return emu_block_wait(EMU_SYNCTHREADS_AND, value == 0) == 0;
}
static inline int __syncthreads_count(int value)
{
    return (int)emu_block_wait(EMU_SYNCTHREADS_COUNT, value != 0);
}
static inline void __syncwarp(uint32_t mask = 0xffffffffu)
{
    emu_warp_wait(EMU_SYNCWARP, mask, nullptr, 0);
}

template <class T> static inline T emu_shuffle(uint32_t mask, T value, uint32_t from)
{
    T result;
    memcpy(&result, emu_warp_wait(EMU_SHUFFLE, mask, &value, sizeof(value))->lane[from % 32],
           sizeof(result));
    return result;
}
template <class T> static inline T __shfl_sync(uint32_t mask, T value, int from, int width = 32)
{
    const uint32_t lane = emu_lane(), segment = lane & ~(uint32_t)(width - 1);
    return emu_shuffle(mask, value, segment + ((uint32_t)from & (uint32_t)(width - 1)));
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32)
{
    const uint32_t lane = emu_lane(), from = lane ^ (uint32_t)bits;
    const uint32_t end = (lane & ~(uint32_t)(width - 1)) + (uint32_t)width;
    return emu_shuffle(mask, value, from < end ? from : lane);
}
template <class T>
static inline T __shfl_up_sync(uint32_t mask, T value, uint32_t by, int width = 32)
{
    const uint32_t lane = emu_lane(), within = lane & (uint32_t)(width - 1);
    return emu_shuffle(mask, value, within >= by ? lane - by : lane);
}
template <class T>
static inline T __shfl_down_sync(uint32_t mask, T value, uint32_t by, int width = 32)
{
    const uint32_t lane = emu_lane(), within = lane & (uint32_t)(width - 1);
    return emu_shuffle(mask, value, within + by < (uint32_t)width ? lane + by : lane);
}

static inline uint32_t __ballot_sync(uint32_t mask, int value)
{
    const unsigned char mine = value != 0;
    const emu_lanes *lanes = emu_warp_wait(EMU_VOTE, mask, &mine, 1);
    uint32_t votes = 0;
    for (uint32_t i = 0; i < 32; i++)
        votes |= (uint32_t)lanes->lane[i][0] << i;
    return votes;
}
static inline int __any_sync(uint32_t mask, int value)
{
    return __ballot_sync(mask, value) != 0;
}
static inline int __all_sync(uint32_t mask, int value)
{
    return __ballot_sync(mask, value) == 0xffffffffu;
}
template <class T> static inline uint32_t __match_any_sync(uint32_t mask, T value)
{
    const emu_lanes *lanes = emu_warp_wait(EMU_MATCH, mask, &value, sizeof(value));
    uint32_t same = 0;
    for (uint32_t i = 0; i < 32; i++)
        same |= (uint32_t)!memcmp(lanes->lane[i], &value, sizeof(value)) << i;
    return same;
}

template <class T, class Join> static inline T emu_reduce(uint32_t mask, T value, Join join)
{
    const emu_lanes *lanes = emu_warp_wait(EMU_REDUCE, mask, &value, sizeof(value));
    T result, next;
    memcpy(&result, lanes->lane[0], sizeof(result));
    for (int i = 1; i < 32; i++) {
        memcpy(&next, lanes->lane[i], sizeof(next));
        result = join(result, next);
    }
    return result;
}
template <class T> static inline T __reduce_add_sync(uint32_t mask, T value)
{
    return (T)emu_reduce(mask, (uint32_t)value, [](uint32_t a, uint32_t b) { return a + b; });
}
template <class T> static inline T __reduce_max_sync(uint32_t mask, T value)
{
    return emu_reduce(mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T> static inline T __reduce_min_sync(uint32_t mask, T value)
{
    return emu_reduce(mask, value, [](T a, T b) { return a < b ? a : b; });
}
static inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value)
{
    return emu_reduce(mask, value, [](uint32_t a, uint32_t b) { return a | b; });
}

static inline void __threadfence(void)
{
}
static inline void __threadfence_block(void)
{
}

/* ---- memory ---- */

template <class T> static inline T __ldg(const T *from)
{
    return *from;
}
template <class T> static inline T __ldcs(const T *from)
{
    return *from;
}
template <class T> static inline T __ldcg(const T *from)
{
    return *from;
}
template <class T> static inline void __stcs(T *to, T value)
{
    *to = value;
}
template <class T> static inline void __stcg(T *to, T value)
{
    *to = value;
}

/* Kernels run one thread at a time, so these are plain. */
template <class T> static inline T atomicAdd(T *at, T value)
{
    const T old = *at;
    *at = old + value;
    return old;
}
template <class T> static inline T atomicSub(T *at, T value)
{
    const T old = *at;
    *at = old - value;
    return old;
}
template <class T> static inline T atomicOr(T *at, T value)
{
    const T old = *at;
    *at = old | value;
    return old;
}
template <class T> static inline T atomicAnd(T *at, T value)
{
    const T old = *at;
    *at = old & value;
    return old;
}
template <class T> static inline T atomicMax(T *at, T value)
{
    const T old = *at;
    *at = old > value ? old : value;
    return old;
}
template <class T> static inline T atomicMin(T *at, T value)
{
    const T old = *at;
    *at = old < value ? old : value;
    return old;
}
template <class T> static inline T atomicExch(T *at, T value)
{
    const T old = *at;
    *at = value;
    return old;
}
template <class T> static inline T atomicCAS(T *at, T expected, T value)
{
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}
static inline uint32_t atomicInc(uint32_t *at, uint32_t last)
{
    const uint32_t old = *at;
    *at = old >= last ? 0 : old + 1;
    return old;
}

/* ---- bits and integers ---- */

template <class To, class From> static inline To emu_cast(From value)
{
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    memcpy(&result, &value, sizeof(result));
    return result;
}
static inline int32_t __float_as_int(float value)
{
    return emu_cast<int32_t>(value);
}
static inline uint32_t __float_as_uint(float value)
{
    return emu_cast<uint32_t>(value);
}
static inline float __int_as_float(int32_t value)
{
    return emu_cast<float>(value);
}
static inline float __uint_as_float(uint32_t value)
{
    return emu_cast<float>(value);
}
static inline int __popc(uint32_t value)
{
    return __builtin_popcount(value);
}
static inline int __popcll(uint64_t value)
{
    return __builtin_popcountll(value);
}
static inline int __clz(int32_t value)
{
    return value ? __builtin_clz((uint32_t)value) : 32;
}
static inline int __ffs(int32_t value)
{
    return __builtin_ffs(value);
}
/* Bit 3 of a selector's digit is ignored by CUDA's words and repeats a sign in PTX's: not here. */
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector)
{
    const uint64_t bytes = (uint64_t)y << 32 | x;
    uint32_t result = 0;
    if (selector & 0x8888u) __builtin_trap();
    for (int i = 0; i < 4; i++)
        result |= (uint32_t)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
static inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
static inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b >> 32);
}
/* Four products of bytes, added to sum; overflow wraps. */
static inline int32_t __dp4a(int32_t a, int32_t b, int32_t sum)
{
    uint32_t result = (uint32_t)sum;
    for (int i = 0; i < 4; i++)
        result += (uint32_t)((int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i));
    return (int32_t)result;
}
static inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum)
{
    for (int i = 0; i < 4; i++)
        sum += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return sum;
}
/* Byte by byte, wrapping. */
static inline uint32_t __vadd4(uint32_t a, uint32_t b)
{
    return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}
static inline uint32_t __vsub4(uint32_t a, uint32_t b)
{
    return ((a | 0x80808080u) - (b & 0x7f7f7f7fu)) ^ ((a ^ ~b) & 0x80808080u);
}

#define EMU_MIN_MAX(type)                                                                          \
    static inline type min(type a, type b)                                                         \
    {                                                                                              \
        return a < b ? a : b;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b)                                                         \
    {                                                                                              \
        return a > b ? a : b;                                                                      \
    }
EMU_MIN_MAX(int32_t)
EMU_MIN_MAX(uint32_t)
EMU_MIN_MAX(int64_t)
EMU_MIN_MAX(uint64_t)
#undef EMU_MIN_MAX

/* ---- floats ---- */

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float value)
{
    return sqrtf(value);
}
static inline int32_t __float2int_rn(float value)
{
    return (int32_t)rintf(value);
}
static inline float __int2float_rn(int32_t value)
{
    return (float)value;
}

struct __half {
    uint16_t bits;
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
};
static inline __half __ushort_as_half(uint16_t bits)
{
    return {bits};
}
static inline uint16_t __half_as_ushort(__half value)
{
    return value.bits;
}
static inline float __half2float(__half value)
{
    return f32_from_f16(value.bits);
}
static inline __half __float2half_rn(float value)
{
    return {f16_from_f32(value)};
}
static inline float2 __half22float2(__half2 value)
{
    return {__half2float(value.x), __half2float(value.y)};
}

#include "kernels/cuda/emu/runtime.h"

template <class Args> static void emu_call(const void *kernel, const void *args)
{
    reinterpret_cast<void (*)(Args)>(const_cast<void *>(kernel))(*static_cast<const Args *>(args));
}
/* A kernel is told to the runtime before its first launch; nvcc does this by itself. */
template <class Args> static inline void register_kernel(void (*kernel)(Args))
{
    emu_register_kernel(reinterpret_cast<const void *>(kernel), emu_call<Args>, sizeof(Args),
                        __PRETTY_FUNCTION__);
}

#endif
