/* Layouts of the quantized blocks: weights as GGUF files hold them, activations as we lay them out.
 *
 * Weight blocks are packed without padding in a row, so they are only 2-byte aligned (MXFP4: 1);
 * the structs below are views for sizeof, offsetof and memcpy-style access. Element i of a block,
 * with h = i/128, s = (i%128)/32, l = i%32:
 *
 *   Q4_0   n = i<16 ? qs[i]&15 : qs[i-16]>>4; d*(n-8)          Q4_1  d*n + m
 *   Q5_0   n = nibble | (qh>>i&1)<<4; d*(n-16)                  Q5_1  d*n + m
 *   Q8_0   d*qs[i]
 *   Q2_K   q = qs[32h+l]>>2s & 3; d*(sc[i/16]&15)*q - dmin*(sc[i/16]>>4)
 *   Q3_K   q = (qs[32h+l]>>2s & 3) - (hmask[l]>>(i/32) & 1 ? 0 : 4); d*sc(i/16)*q
 *   Q4_K   byte qs[32*(i/64)+l], low nibble if i%64<32; d*sc(i/32)*q - dmin*m(i/32)
 *   Q5_K   q as Q4_K + 16*(qh[l]>>(i/32) & 1)
 *   Q6_K   byte ql[64h+32*(s&1)+l], low nibble if s<2; q = (nib | (qh[32h+l]>>2s & 3)<<4) - 32
 *   IQ4_NL as Q4_0 through a table; IQ4_XS per 32 with 6-bit scales; MXFP4 2^(e-128)*table
 *
 * Source: the formats are ggml's; the 6-bit scale packing of Q4_K/Q5_K and Q3_K is spelled out at
 * the reference decoder, kernels/ref/dequant.c. */
#ifndef LEAN_KERNELS_QUANT_BLOCKS_H
#define LEAN_KERNELS_QUANT_BLOCKS_H

#include <assert.h>
#include <stdint.h>

enum { QK = 256, QK32 = 32 };

typedef uint16_t f16_bits; /* an IEEE binary16 value, see proto/base/half.h */

struct block_q4_0 {
    f16_bits d;
    uint8_t qs[16];
};
struct block_q4_1 {
    f16_bits d, m;
    uint8_t qs[16];
};
struct block_q5_0 {
    f16_bits d;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_q5_1 {
    f16_bits d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_q8_0 {
    f16_bits d;
    int8_t qs[32];
};
struct block_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    f16_bits d, dmin;
};
struct block_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    f16_bits d;
};
struct block_q4_k {
    f16_bits d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct block_q5_k {
    f16_bits d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    f16_bits d;
};
struct block_iq4_nl {
    f16_bits d;
    uint8_t qs[16];
};
struct block_iq4_xs {
    f16_bits d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};
struct block_mxfp4 {
    uint8_t e;
    uint8_t qs[16];
};

static_assert(sizeof(struct block_q4_0) == 18, "Q4_0");
static_assert(sizeof(struct block_q4_1) == 20, "Q4_1");
static_assert(sizeof(struct block_q5_0) == 22, "Q5_0");
static_assert(sizeof(struct block_q5_1) == 24, "Q5_1");
static_assert(sizeof(struct block_q8_0) == 34, "Q8_0");
static_assert(sizeof(struct block_q2_k) == 84, "Q2_K");
static_assert(sizeof(struct block_q3_k) == 110, "Q3_K");
static_assert(sizeof(struct block_q4_k) == 144, "Q4_K");
static_assert(sizeof(struct block_q5_k) == 176, "Q5_K");
static_assert(sizeof(struct block_q6_k) == 210, "Q6_K");
static_assert(sizeof(struct block_iq4_nl) == 18, "IQ4_NL");
static_assert(sizeof(struct block_iq4_xs) == 136, "IQ4_XS");
static_assert(sizeof(struct block_mxfp4) == 17, "MXFP4");

/* A quantized activation row is an array of these, one for each 256 columns, 64-byte aligned.
 *
 * act_q8_k  for k-quants and IQ4_XS (one scale): m = the element of largest magnitude with its
 *           sign, q = min(127, rne(x * (-127/m))), d = 1/(-127/m); d may be negative.
 *           bsums[j] = sum of qs[16j..16j+15].
 * act_q8_0  for the 32-blocks: d[j] = f16(amax/127) widened, q = rne(x * (127/amax)),
 *           sums[j] = sum of qs[32j..32j+31]. If n_col is not a multiple of 256 the missing
 *           blocks of the last one are zero, and no weight exists for them.
 * A block of zeros has d, q and sums all zero. Not ggml's layout (292 and 34 bytes): the order of
 * fields is ours, the numbers are the same. */
struct act_q8_k {
    int8_t qs[256];
    int16_t bsums[16];
    float d;
    uint32_t pad[7];
};
struct act_q8_0 {
    int8_t qs[256];
    float d[8];
    int32_t sums[8];
};
static_assert(sizeof(struct act_q8_k) == 320, "act_q8_k");
static_assert(sizeof(struct act_q8_0) == 320, "act_q8_0");

#endif
