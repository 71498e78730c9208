/* One weight of a row as F32: kernels/ref/dequant.c's roundings, one element at a time.
 *
 * For rows that are read once, as those of an embedding; products decode whole blocks. Blocks have
 * no alignment, so they are read by bytes. */
#ifndef LEAN_KERNELS_CUDA_DECODE_CUH
#define LEAN_KERNELS_CUDA_DECODE_CUH

extern "C" {
#include "kernels/quant_blocks.h"
#include "proto/base/tensor_type.h"
}
#include "kernels/cuda/device.cuh"

DEVICE uint16_t load_u16(const void *at)
{
    const uint8_t *bytes = (const uint8_t *)at;
    return (uint16_t)(bytes[0] | bytes[1] << 8);
}

DEVICE float load_f16(const void *at)
{
    return f16_to_float(load_u16(at));
}

/* Element i of 32 nibbles: the low ones first. */
DEVICE int nibble_of_32(const uint8_t *qs, uint32_t i)
{
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

DEVICE int bit_of_32(const uint8_t *qh, uint32_t i)
{
    return qh[i / 8] >> i % 8 & 1;
}

DEVICE int iq4_value(int code)
{
    /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, four bytes a word */
    const uint32_t word = code < 8    ? code < 4 ? 0xbfad9881u : 0xf6eaddcfu
                          : code < 12 ? 0x26190d01u
                                      : 0x71594535u;
    return (int8_t)(word >> code % 4 * 8);
}

DEVICE int mxfp4_value(int code)
{
    const uint32_t word = (code & 7) < 4 ? 0x03020100u : 0x0c080604u;
    const int magnitude = (int)(word >> code % 4 * 8 & 255);
    return code & 8 ? -magnitude : magnitude;
}

/* 2^(e-128), which is subnormal for e = 0 and 1. */
DEVICE float mxfp4_scale(uint8_t e)
{
    return __uint_as_float(e >= 2 ? (uint32_t)(e - 1) << 23 : 0x200000u << e);
}

/* Scale and minimum of group j of 32 in Q4_K's and Q5_K's 12 bytes (kernels/ref/unpack.c). */
DEVICE void scale_min_k4(const uint8_t *packed, uint32_t j, int *scale, int *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
        *min = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
}

DEVICE float decode_k(float d, int scale, int q)
{
    return d * (float)scale * (float)q;
}

DEVICE float decode_k_min(float d, int scale, int q, float dmin, int min)
{
    return decode_k(d, scale, q) - dmin * (float)min;
}

DEVICE float decode_256(enum tensor_type type, const uint8_t *block, uint32_t i)
{
    const uint32_t h = i / 128, s = i % 128 / 32, l = i % 32;
    switch (type) {
    case TENSOR_Q2_K: {
        const struct block_q2_k *b = (const struct block_q2_k *)block;
        const int sc = b->scales[i / 16], q = b->qs[32 * h + l] >> 2 * s & 3;
        return decode_k_min(load_f16(&b->d), sc & 15, q, load_f16(&b->dmin), sc >> 4);
    }
    case TENSOR_Q3_K: {
        const struct block_q3_k *b = (const struct block_q3_k *)block;
        const uint32_t j = i / 16;
        const int low = j < 8 ? b->scales[j] & 15 : b->scales[j - 8] >> 4;
        const int high = b->scales[8 + j % 4] >> 2 * (j / 4) & 3;
        const int q = (b->qs[32 * h + l] >> 2 * s & 3) - (b->hmask[l] >> i / 32 & 1 ? 0 : 4);
        return decode_k(load_f16(&b->d), (low | high << 4) - 32, q);
    }
    case TENSOR_Q4_K: {
        const struct block_q4_k *b = (const struct block_q4_k *)block;
        const uint8_t byte = b->qs[32 * (i / 64) + l];
        int scale, min;
        scale_min_k4(b->scales, i / 32, &scale, &min);
        return decode_k_min(load_f16(&b->d), scale, i % 64 < 32 ? byte & 15 : byte >> 4,
                            load_f16(&b->dmin), min);
    }
    case TENSOR_Q5_K: {
        const struct block_q5_k *b = (const struct block_q5_k *)block;
        const uint8_t byte = b->qs[32 * (i / 64) + l];
        const int low = i % 64 < 32 ? byte & 15 : byte >> 4;
        int scale, min;
        scale_min_k4(b->scales, i / 32, &scale, &min);
        return decode_k_min(load_f16(&b->d), scale, low + 16 * (b->qh[l] >> i / 32 & 1),
                            load_f16(&b->dmin), min);
    }
    case TENSOR_Q6_K: {
        const struct block_q6_k *b = (const struct block_q6_k *)block;
        const uint8_t byte = b->ql[64 * h + 32 * (s & 1) + l];
        const int low = s < 2 ? byte & 15 : byte >> 4;
        const int q = (low | (b->qh[32 * h + l] >> 2 * s & 3) << 4) - 32;
        return decode_k(load_f16(&b->d), b->scales[i / 16], q);
    }
    default: { /* TENSOR_IQ4_XS */
        const struct block_iq4_xs *b = (const struct block_iq4_xs *)block;
        const uint32_t j = i / 32;
        const int low = b->scales_l[j / 2] >> 4 * (j & 1) & 15;
        const int scale = (low | (load_u16(&b->scales_h) >> 2 * j & 3) << 4) - 32;
        return decode_k(load_f16(&b->d), scale, iq4_value(nibble_of_32(b->qs + 16 * j, l)));
    }
    }
}

DEVICE float decode_32(enum tensor_type type, const uint8_t *block, uint32_t i)
{
    switch (type) {
    case TENSOR_Q4_0: {
        const struct block_q4_0 *b = (const struct block_q4_0 *)block;
        return load_f16(&b->d) * (float)(nibble_of_32(b->qs, i) - 8);
    }
    case TENSOR_Q4_1: {
        const struct block_q4_1 *b = (const struct block_q4_1 *)block;
        return load_f16(&b->d) * (float)nibble_of_32(b->qs, i) + load_f16(&b->m);
    }
    case TENSOR_Q5_0: {
        const struct block_q5_0 *b = (const struct block_q5_0 *)block;
        const int q = nibble_of_32(b->qs, i) | bit_of_32(b->qh, i) << 4;
        return load_f16(&b->d) * (float)(q - 16);
    }
    case TENSOR_Q5_1: {
        const struct block_q5_1 *b = (const struct block_q5_1 *)block;
        const int q = nibble_of_32(b->qs, i) | bit_of_32(b->qh, i) << 4;
        return load_f16(&b->d) * (float)q + load_f16(&b->m);
    }
    case TENSOR_Q8_0: {
        const struct block_q8_0 *b = (const struct block_q8_0 *)block;
        return load_f16(&b->d) * (float)b->qs[i];
    }
    case TENSOR_IQ4_NL: {
        const struct block_iq4_nl *b = (const struct block_iq4_nl *)block;
        return load_f16(&b->d) * (float)iq4_value(nibble_of_32(b->qs, i));
    }
    default: { /* TENSOR_MXFP4 */
        const struct block_mxfp4 *b = (const struct block_mxfp4 *)block;
        return mxfp4_scale(b->e) * (float)mxfp4_value(nibble_of_32(b->qs, i));
    }
    }
}

/* Element i of a row of blocks of block_elems and block_bytes. */
DEVICE float decode_weight(enum tensor_type type, uint32_t block_elems, uint32_t block_bytes,
                           const uint8_t *row, uint32_t i)
{
    const uint8_t *block = row + (size_t)(i / block_elems) * block_bytes;
    if (type == TENSOR_F32) return *(const float *)block;
    if (type == TENSOR_F16) return load_f16(block);
    if (type == TENSOR_BF16) return bf16_to_float(load_u16(block));
    if (block_elems == QK32) return decode_32(type, block, i % QK32);
    return decode_256(type, block, i % QK);
}

#endif
