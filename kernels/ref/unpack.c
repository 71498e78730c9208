/* Bit layouts of the weight blocks: the table of quant_blocks.h as code. Blocks have no
 * alignment, so they are copied out before fields are read. */
#include "kernels/ref/unpack.h"

#include <string.h>

#include "proto/base/half.h"

/* The non-linear code book of IQ4_NL and IQ4_XS. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
/* E2M1 values, doubled; the block's scale is halved in turn. */
static const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void unpack_q2_k(const uint8_t *block, struct codes_256 *out)
{
    struct block_q2_k b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    out->dmin = f32_from_f16(b.dmin);
    for (int i = 0; i < 256; i++) {
        const int h = i / 128, s = i % 128 / 32, l = i % 32;
        out->q[i] = (int8_t)(b.qs[32 * h + l] >> 2 * s & 3);
    }
    for (int j = 0; j < 16; j++) {
        out->scale[j] = b.scales[j] & 15;
        out->min[j] = b.scales[j] >> 4;
    }
}

void unpack_q3_k(const uint8_t *block, struct codes_256 *out)
{
    struct block_q3_k b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 256; i++) {
        const int h = i / 128, s = i % 128 / 32, l = i % 32;
        const int low = b.qs[32 * h + l] >> 2 * s & 3;
        out->q[i] = (int8_t)(low - (b.hmask[l] >> i / 32 & 1 ? 0 : 4));
    }
    /* 16 scales of 6 bits in 12 bytes: low nibbles in bytes 0-7, then pairs of high bits. */
    for (int j = 0; j < 16; j++) {
        const int low = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4;
        const int high = b.scales[8 + j % 4] >> 2 * (j / 4) & 3;
        out->scale[j] = (low | high << 4) - 32;
    }
}

/* Q4_K and Q5_K: 8 scales and 8 minimums of 6 bits in 12 bytes, each for 32 elements. Bytes 0-3
 * hold scales 0-3, bytes 4-7 minimums 0-3; bytes 8-11 the low nibbles of scales and minimums 4-7,
 * whose two high bits sit on top of bytes 0-3 and 4-7. */
static void unpack_scales_6(const uint8_t packed[12], struct codes_256 *out)
{
    for (int j = 0; j < 8; j++) {
        int scale, min;
        if (j < 4) {
            scale = packed[j] & 63;
            min = packed[j + 4] & 63;
        } else {
            scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
            min = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
        }
        out->scale[2 * j] = out->scale[2 * j + 1] = scale;
        out->min[2 * j] = out->min[2 * j + 1] = min;
    }
}

void unpack_q4_k(const uint8_t *block, struct codes_256 *out)
{
    struct block_q4_k b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    out->dmin = f32_from_f16(b.dmin);
    for (int i = 0; i < 256; i++) {
        const uint8_t byte = b.qs[32 * (i / 64) + i % 32];
        out->q[i] = (int8_t)(i % 64 < 32 ? byte & 15 : byte >> 4);
    }
    unpack_scales_6(b.scales, out);
}

void unpack_q5_k(const uint8_t *block, struct codes_256 *out)
{
    struct block_q5_k b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    out->dmin = f32_from_f16(b.dmin);
    for (int i = 0; i < 256; i++) {
        const uint8_t byte = b.qs[32 * (i / 64) + i % 32];
        const int low = i % 64 < 32 ? byte & 15 : byte >> 4;
        out->q[i] = (int8_t)(low + 16 * (b.qh[i % 32] >> i / 32 & 1));
    }
    unpack_scales_6(b.scales, out);
}

void unpack_q6_k(const uint8_t *block, struct codes_256 *out)
{
    struct block_q6_k b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 256; i++) {
        const int h = i / 128, s = i % 128 / 32, l = i % 32;
        const uint8_t byte = b.ql[64 * h + 32 * (s & 1) + l];
        const int low = s < 2 ? byte & 15 : byte >> 4;
        out->q[i] = (int8_t)((low | (b.qh[32 * h + l] >> 2 * s & 3) << 4) - 32);
    }
    for (int j = 0; j < 16; j++)
        out->scale[j] = b.scales[j];
}

void unpack_iq4_xs(const uint8_t *block, struct codes_256 *out)
{
    struct block_iq4_xs b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 256; i++) {
        const uint8_t byte = b.qs[16 * (i / 32) + i % 16];
        out->q[i] = iq4_values[i % 32 < 16 ? byte & 15 : byte >> 4];
    }
    for (int j = 0; j < 16; j++) {
        const int ib = j / 2;
        const int low = b.scales_l[ib / 2] >> 4 * (ib & 1) & 15;
        out->scale[j] = (low | (b.scales_h >> 2 * ib & 3) << 4) - 32;
    }
}

static inline int nibble_32(const uint8_t qs[16], int i)
{
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

static inline int bit_32(const uint8_t qh[4], int i)
{
    return qh[i / 8] >> i % 8 & 1;
}

void unpack_q4_0(const uint8_t *block, struct codes_32 *out)
{
    struct block_q4_0 b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 32; i++)
        out->q[i] = (int8_t)(nibble_32(b.qs, i) - 8);
}

void unpack_q4_1(const uint8_t *block, struct codes_32 *out)
{
    struct block_q4_1 b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    out->m = f32_from_f16(b.m);
    for (int i = 0; i < 32; i++)
        out->q[i] = (int8_t)nibble_32(b.qs, i);
}

void unpack_q5_0(const uint8_t *block, struct codes_32 *out)
{
    struct block_q5_0 b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 32; i++)
        out->q[i] = (int8_t)((nibble_32(b.qs, i) | bit_32(b.qh, i) << 4) - 16);
}

void unpack_q5_1(const uint8_t *block, struct codes_32 *out)
{
    struct block_q5_1 b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    out->m = f32_from_f16(b.m);
    for (int i = 0; i < 32; i++)
        out->q[i] = (int8_t)(nibble_32(b.qs, i) | bit_32(b.qh, i) << 4);
}

void unpack_q8_0(const uint8_t *block, struct codes_32 *out)
{
    struct block_q8_0 b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    memcpy(out->q, b.qs, sizeof(out->q));
}

void unpack_iq4_nl(const uint8_t *block, struct codes_32 *out)
{
    struct block_iq4_nl b;
    memcpy(&b, block, sizeof(b));
    out->d = f32_from_f16(b.d);
    for (int i = 0; i < 32; i++)
        out->q[i] = iq4_values[nibble_32(b.qs, i)];
}

void unpack_mxfp4(const uint8_t *block, struct codes_32 *out)
{
    struct block_mxfp4 b;
    memcpy(&b, block, sizeof(b));
    /* 2^(e-128), which is subnormal for e = 0 and 1. */
    out->d = f32_from_bits(b.e >= 2 ? (uint32_t)(b.e - 1) << 23 : 0x200000u << b.e);
    for (int i = 0; i < 32; i++)
        out->q[i] = mxfp4_values[nibble_32(b.qs, i)];
}
