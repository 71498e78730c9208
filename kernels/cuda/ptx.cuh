/* Instructions that CUDA has no words for, each with its host twin of the same bits.
 *
 * All 32 lanes of a warp call mma_* and load_matrices, none of them ahead of the others (.aligned);
 * the others are a thread's own. Registers hold what the PTX ISA lays down, section "Matrix
 * Fragments for" each shape; tests/kernels/check_emulator.cpp holds the host twins to its formulas.
 */
#ifndef LEAN_KERNELS_CUDA_PTX_CUH
#define LEAN_KERNELS_CUDA_PTX_CUH

#include "kernels/cuda/device.cuh"

/* d += A B with A [16][32] row-major and B [32][8] of int8, d [16][8] int32; exact.
 * With g = lane / 4, t = lane % 4, a register holds 4 elements in rising k:
 *   a[0] row g,   k 4t..4t+3     a[2] row g,   k 16+4t..     b[0] column g, k 4t..
 *   a[1] row g+8, k 4t..4t+3     a[3] row g+8, k 16+4t..     b[1] column g, k 16+4t..
 *   d[0], d[1] row g, columns 2t, 2t+1     d[2], d[3] row g+8 */
DEVICE void mma_s8_16x8x32(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const emu_lanes *lanes = emu_warp_wait(EMU_MMA, ALL_LANES, mine, sizeof(mine));
    const uint32_t row = emu_lane() / 4, column = emu_lane() % 4 * 2;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t t = 0; t < 8; t++) { /* four k each */
            const uint32_t *of_a = (const uint32_t *)lanes->lane[row * 4 + t % 4];
            const uint32_t *of_b = (const uint32_t *)lanes->lane[(column + i % 2) * 4 + t % 4];
            d[i] = __dp4a((int32_t)of_a[i / 2 + t / 4 * 2], (int32_t)of_b[4 + t / 4], d[i]);
        }
#endif
}

/* The same with 16 k: a[0] row g, a[1] row g+8, b column g, each k 4t..4t+3. */
DEVICE void mma_s8_16x8x16(int32_t d[4], const uint32_t a[2], uint32_t b)
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
#else
    const uint32_t mine[3] = {a[0], a[1], b};
    const emu_lanes *lanes = emu_warp_wait(EMU_MMA, ALL_LANES, mine, sizeof(mine));
    const uint32_t row = emu_lane() / 4, column = emu_lane() % 4 * 2;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t t = 0; t < 4; t++) { /* four k each */
            const uint32_t *of_a = (const uint32_t *)lanes->lane[row * 4 + t];
            const uint32_t *of_b = (const uint32_t *)lanes->lane[(column + i % 2) * 4 + t];
            d[i] = __dp4a((int32_t)of_a[i / 2], (int32_t)of_b[2], d[i]);
        }
#endif
}

/* d += A B with A [16][16] row-major and B [16][8] of F16 or BF16, d [16][8] F32; what the
 * products' sum is rounded to is the device's own. A register holds 2 elements in rising k: a[0]
 * row g,   k 2t, 2t+1     a[2] row g,   k 8+2t..     b[0] column g, k 2t, 2t+1 a[1] row g+8, k 2t,
 * 2t+1     a[3] row g+8, k 8+2t..     b[1] column g, k 8+2t.. d as above */
template <bool BF16> DEVICE void mma_16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    if constexpr (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    float mine[12]; /* widened once, not by each lane that needs them */
    for (uint32_t i = 0; i < 12; i++) {
        const uint16_t bits = (uint16_t)((i < 8 ? a[i / 2] : b[i / 2 - 4]) >> 16 * (i % 2));
        mine[i] = BF16 ? bf16_to_float(bits) : f16_to_float(bits);
    }
    const emu_lanes *lanes = emu_warp_wait(EMU_MMA, ALL_LANES, mine, sizeof(mine));
    const uint32_t row = emu_lane() / 4, column = emu_lane() % 4 * 2;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t k = 0; k < 16; k++) { /* of lane t, the upper or lower eight's pair */
            const uint32_t t = k % 8 / 2, upper = k / 8;
            const float *of_a = (const float *)lanes->lane[row * 4 + t];
            const float *of_b = (const float *)lanes->lane[(column + i % 2) * 4 + t];
            d[i] = fmaf(of_a[(2 * upper + i / 2) * 2 + k % 2], of_b[8 + 2 * upper + k % 2], d[i]);
        }
#endif
}

/* Four matrices [8][8] of 16-bit elements from shared memory. Lane 8 i + r has the address of row r
 * of matrix i, 16-byte aligned. out[i] of lane 4 g + t: row g, elements 2t and 2t+1, or
 * (TRANSPOSED) column g, rows 2t and 2t+1. */
template <bool TRANSPOSED> DEVICE void load_matrices(uint32_t out[4], const uint16_t *shared)
{
#ifdef __CUDACC__
    const uint32_t from = (uint32_t)__cvta_generic_to_shared(shared);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(from)
                     : "memory");
#else
    const emu_lanes *lanes = emu_warp_wait(EMU_MMA, ALL_LANES, __builtin_assume_aligned(shared, 16),
                                           8 * sizeof(*shared));
    const uint32_t g = emu_lane() / 4, t = emu_lane() % 4;
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t row = TRANSPOSED ? 2 * t + k : g, column = TRANSPOSED ? g : 2 * t + k;
            pair[k] = ((const uint16_t *)lanes->lane[8 * i + row])[column];
        }
        out[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
#endif
}

/* 16 bytes that nobody reads again: past the first-level cache. from: 16-byte aligned. */
DEVICE uint4 load_once_128(const void *from)
{
#ifdef __CUDACC__
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
#else
    emu_check_read(from);
    return *(const uint4 *)from;
#endif
}

/* As load_once_128, 8 and 4 bytes. */
DEVICE uint2 load_once_64(const void *from)
{
#ifdef __CUDACC__
    uint2 value;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(value.x), "=r"(value.y)
                 : "l"(from));
    return value;
#else
    emu_check_read(from);
    return *(const uint2 *)from;
#endif
}

DEVICE uint32_t load_once_32(const void *from)
{
#ifdef __CUDACC__
    uint32_t value;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
#else
    emu_check_read(from);
    return *(const uint32_t *)from;
#endif
}

#endif
