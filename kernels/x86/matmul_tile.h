/* Weight blocks become tiles: rows in lanes, one byte per weight, scales as integers.
 *
 * A file stores a row's codes one after the other; a dot product that runs along the row ends in
 * a sum across lanes. A tile turns this round: lane r belongs to row r, four consecutive columns
 * of a row are the four bytes of its lane, and one activation quadruple, broadcast, meets LANES
 * rows at once. No sum ever crosses lanes, the float accumulators of LANES rows are one vector,
 * and the unpacking is paid once for all tokens. Transposing the packed bytes (dwords, 16 bytes of
 * a row at a time) before unpacking halves its cost, and for a single token the whole detour still
 * costs less than the usual kernel's horizontal sums.
 *
 *   codes[k][g]   lane r: columns 4k..4k+3 of row g * LANES + r
 *   scale[s][g]   k-quants: integer scale of sub-block s, in vec_scale's form
 *   corr[j][g]    k-quants: two 16-bit factors for the sums of activations 32j..32j+15 and
 *                 32j+16..32j+31: the minimums, or minus what unsigned codes have too much
 *   d[b][g], m[b][g]  float scale and minimum: of the superblock (b = 0), or of 32-block b
 *
 * A decoder fills group g from LANES rows that lie stride bytes apart. It reads the blocks' bytes
 * and no others. Layouts: kernels/quant_blocks.h. */
#ifndef LEAN_KERNELS_X86_MATMUL_TILE_H
#define LEAN_KERNELS_X86_MATMUL_TILE_H

#include "kernels/quant_blocks.h"
#include "kernels/x86/vec.h"
#ifdef __AVX2__

enum { TILE_GROUPS = 2, TILE_ROWS = TILE_GROUPS * LANES };

struct tile {
    vint codes[QK / 4][TILE_GROUPS];
    vint scale[16][TILE_GROUPS];
    vint corr[8][TILE_GROUPS];
    vfloat d[8][TILE_GROUPS];
    vfloat m[8][TILE_GROUPS];
};

typedef void (*tile_decode_fn)(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g);

/* Byte j of each lane, and the same sign-extended. */
ALWAYS_INLINE vint lane_byte(vint a, unsigned j)
{
    return a >> (8 * j) & 0xff;
}
ALWAYS_INLINE vint lane_signed_byte(vint a, unsigned j)
{
    return (vint)((vsigned)(a << (24 - 8 * j)) >> 24);
}

/* The same 16-bit factor for both activation sums of a pair; two different ones. */
ALWAYS_INLINE vint pair_same(vint a)
{
    return (a & 0xffff) | a << 16;
}
ALWAYS_INLINE vint pair_of(vint a, vint b)
{
    return (a & 0xffff) | b << 16;
}

/* The dword at p of LANES rows; 12 bytes before p are read too. */
ALWAYS_INLINE vint load_last_dword(const uint8_t *p, size_t stride)
{
    vint v[4];
    vec_load_rows(p - 12, stride, v);
    return v[3];
}
/* The dword at p of LANES rows; 12 bytes behind it are read too. */
ALWAYS_INLINE vint load_first_dword(const uint8_t *p, size_t stride)
{
    vint v[4];
    vec_load_rows(p, stride, v);
    return v[0];
}

/* ---- k-quants ---- */

/* head: d and dmin, then the twelve bytes that hold eight 6-bit scales and minimums. */
ALWAYS_INLINE void decode_head_q4_k(const vint head[4], struct tile *tile, unsigned g)
{
    const vint u0 = head[1], u1 = head[2], u2 = head[3];
    const vint scale[2] = {u0 & 0x3f3f3f3f, (u2 & 0x0f0f0f0f) | (u0 >> 2 & 0x30303030)};
    const vint min[2] = {u1 & 0x3f3f3f3f, (u2 >> 4 & 0x0f0f0f0f) | (u1 >> 2 & 0x30303030)};
    tile->d[0][g] = vec_from_f16(head[0]);
    tile->m[0][g] = vec_from_f16(head[0] >> 16);
#pragma GCC unroll 8
    for (unsigned s = 0; s < 8; s++) {
        tile->scale[s][g] = vec_scale(lane_byte(scale[s / 4], s % 4));
        tile->corr[s][g] = pair_same(lane_byte(min[s / 4], s % 4));
    }
}

ALWAYS_INLINE void decode_q4_k(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    vint v[4];
    vec_load_rows(rows, stride, v);
    decode_head_q4_k(v, tile, g);
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) { /* 16 bytes: columns 64 (c / 2) + 16 (c % 2), and + 32 */
        vec_load_rows(rows + offsetof(struct block_q4_k, qs) + 16 * c, stride, v);
        vint(*codes)[TILE_GROUPS] = tile->codes + 16 * (c / 2) + 4 * (c % 2);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            codes[i][g] = v[i] & 0x0f0f0f0f;
            codes[8 + i][g] = v[i] >> 4 & 0x0f0f0f0f;
        }
    }
}

/* b << n, or b >> -n. */
ALWAYS_INLINE vint shift(vint b, int n)
{
    return n >= 0 ? b << n : b >> -n;
}

ALWAYS_INLINE void decode_q5_k(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    vint v[4], high[2][4];
    vec_load_rows(rows, stride, v);
    decode_head_q4_k(v, tile, g);
    vec_load_rows(rows + offsetof(struct block_q5_k, qh), stride, high[0]);
    vec_load_rows(rows + offsetof(struct block_q5_k, qh) + 16, stride, high[1]);
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) {
        vec_load_rows(rows + offsetof(struct block_q5_k, qs) + 16 * c, stride, v);
        vint(*codes)[TILE_GROUPS] = tile->codes + 16 * (c / 2) + 4 * (c % 2);
        const int bit = 2 * (int)(c / 2); /* of qh, for the low nibbles; the next for the high */
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            const vint h = high[c % 2][i];
            codes[i][g] = (v[i] & 0x0f0f0f0f) | (shift(h, 4 - bit) & 0x10101010);
            codes[8 + i][g] = (v[i] >> 4 & 0x0f0f0f0f) | (shift(h, 3 - bit) & 0x10101010);
        }
    }
}

ALWAYS_INLINE void decode_q6_k(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    vint v[4], high[4];
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) { /* 128 h + 16 e + (0, 32, 64, 96) */
        const unsigned h = c / 2, e = c % 2;
        vint(*codes)[TILE_GROUPS] = tile->codes + 32 * h + 4 * e;
        vec_load_rows(rows + offsetof(struct block_q6_k, qh) + 32 * h + 16 * e, stride, high);
#pragma GCC unroll 2
        for (unsigned s = 0; s < 2; s++) {
            vec_load_rows(rows + 64 * h + 32 * s + 16 * e, stride, v);
#pragma GCC unroll 4
            for (unsigned i = 0; i < 4; i++) {
                codes[8 * s + i][g] =
                    (v[i] & 0x0f0f0f0f) | (shift(high[i], 4 - 2 * (int)s) & 0x30303030);
                codes[16 + 8 * s + i][g] =
                    (v[i] >> 4 & 0x0f0f0f0f) | (shift(high[i], -2 * (int)s) & 0x30303030);
            }
        }
    }
    vec_load_rows(rows + offsetof(struct block_q6_k, scales), stride, v);
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++) {
        const vint a = lane_signed_byte(v[j / 2], 2 * (j % 2));
        const vint b = lane_signed_byte(v[j / 2], 2 * (j % 2) + 1);
        tile->scale[2 * j][g] = vec_scale(a);
        tile->scale[2 * j + 1][g] = vec_scale(b);
        tile->corr[j][g] = pair_of(a * -32u, b * -32u);
    }
    const vint last = load_last_dword(rows + offsetof(struct block_q6_k, d) - 2, stride);
    tile->d[0][g] = vec_from_f16(last >> 16);
}

ALWAYS_INLINE void decode_q3_k(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    vint v[4], high[2][4];
    vec_load_rows(rows, stride, high[0]);
    vec_load_rows(rows + 16, stride, high[1]);
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) { /* 128 h + 16 e + (0, 32, 64, 96) */
        const unsigned h = c / 2, e = c % 2;
        vint(*codes)[TILE_GROUPS] = tile->codes + 32 * h + 4 * e;
        vec_load_rows(rows + offsetof(struct block_q3_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 16
        for (unsigned n = 0; n < 16; n++) {
            const unsigned s = n / 4, i = n % 4;
            const int bit = 4 * (int)h + (int)s; /* of hmask: becomes 4, which is 0 after -4 */
            codes[8 * s + i][g] =
                (v[i] >> (2 * s) & 0x03030303) | (shift(high[e][i], 2 - bit) & 0x04040404);
        }
    }
    /* The last 16 bytes: two of qs, twelve of scales, d. Shifted by two they are u0, u1, u2. */
    vec_load_rows(rows + sizeof(struct block_q3_k) - 16, stride, v);
    const vint u0 = v[0] >> 16 | v[1] << 16, u1 = v[1] >> 16 | v[2] << 16;
    const vint u2 = v[2] >> 16 | v[3] << 16;
    tile->d[0][g] = vec_from_f16(v[3] >> 16);
    const vint scale[4] = {(u0 & 0x0f0f0f0f) | (u2 << 4 & 0x30303030),
                           (u1 & 0x0f0f0f0f) | (u2 << 2 & 0x30303030),
                           (u0 >> 4 & 0x0f0f0f0f) | (u2 & 0x30303030),
                           (u1 >> 4 & 0x0f0f0f0f) | (u2 >> 2 & 0x30303030)};
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++) {
        const vint a = lane_byte(scale[j / 2], 2 * (j % 2)) - 32;
        const vint b = lane_byte(scale[j / 2], 2 * (j % 2) + 1) - 32;
        tile->scale[2 * j][g] = vec_scale(a);
        tile->scale[2 * j + 1][g] = vec_scale(b);
        tile->corr[j][g] = pair_of(a * -4u, b * -4u);
    }
}

ALWAYS_INLINE void decode_q2_k(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    vint v[4];
    vec_load_rows(rows, stride, v);
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++) {
        const vint a = lane_byte(v[j / 2], 2 * (j % 2)), b = lane_byte(v[j / 2], 2 * (j % 2) + 1);
        tile->scale[2 * j][g] = vec_scale(a & 15);
        tile->scale[2 * j + 1][g] = vec_scale(b & 15);
        tile->corr[j][g] = pair_of(a >> 4, b >> 4);
    }
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        vint(*codes)[TILE_GROUPS] = tile->codes + 32 * (c / 2) + 4 * (c % 2);
        vec_load_rows(rows + offsetof(struct block_q2_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 16
        for (unsigned n = 0; n < 16; n++) {
            codes[8 * (n / 4) + n % 4][g] = v[n % 4] >> (2 * (n / 4)) & 0x03030303;
        }
    }
    const vint last = load_last_dword(rows + offsetof(struct block_q2_k, d), stride);
    tile->d[0][g] = vec_from_f16(last);
    tile->m[0][g] = vec_from_f16(last >> 16);
}

static const int8_t TABLE_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

/* TABLE_IQ4 plus CODE_BIAS, as the codes of signed types are kept. */
ALWAYS_INLINE vint biased_table_iq4(void)
{
    return vec_table(TABLE_IQ4) ^ (CODE_BIAS * 0x01010101u);
}

ALWAYS_INLINE void decode_iq4_xs(const uint8_t *rows, size_t stride, struct tile *tile, unsigned g)
{
    const vint table = biased_table_iq4();
    vint v[4];
    vec_load_rows(rows, stride, v);
    tile->d[0][g] = vec_from_f16(v[0]);
#pragma GCC unroll 8
    for (unsigned s = 0; s < 8; s++) {
        const vint scale = ((v[1] >> (4 * s) & 15) | (v[0] >> (16 + 2 * s) & 3) << 4) - 32;
        tile->scale[s][g] = vec_scale(scale);
        tile->corr[s][g] = pair_same(scale * -(uint32_t)CODE_BIAS);
    }
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) { /* one sub-block of 32: low nibbles, then high */
        vec_load_rows(rows + offsetof(struct block_iq4_xs, qs) + 16 * c, stride, v);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            tile->codes[8 * c + i][g] = vec_lookup(table, v[i] & 0x0f0f0f0f);
            tile->codes[8 * c + 4 + i][g] = vec_lookup(table, v[i] >> 4 & 0x0f0f0f0f);
        }
    }
}

/* ---- 32-blocks: b counts the blocks of a superblock ---- */

/* The nibbles of 16 bytes: low ones are columns 0..15, high ones 16..31. */
ALWAYS_INLINE void unpack_nibbles(const uint8_t *qs, size_t stride, vint codes[8])
{
    vint v[4];
    vec_load_rows(qs, stride, v);
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++) {
        codes[i] = v[i] & 0x0f0f0f0f;
        codes[4 + i] = v[i] >> 4 & 0x0f0f0f0f;
    }
}

ALWAYS_INLINE void store_codes(const vint codes[8], struct tile *tile, unsigned b, unsigned g)
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        tile->codes[8 * b + i][g] = codes[i];
    }
}

ALWAYS_INLINE void decode_q4_0(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                               unsigned g)
{
    vint codes[8];
    unpack_nibbles(rows + offsetof(struct block_q4_0, qs), stride, codes);
    store_codes(codes, tile, b, g);
    tile->d[b][g] = vec_from_f16(load_first_dword(rows, stride));
}

ALWAYS_INLINE void decode_q4_1(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                               unsigned g)
{
    vint codes[8];
    unpack_nibbles(rows + offsetof(struct block_q4_1, qs), stride, codes);
    store_codes(codes, tile, b, g);
    const vint head = load_first_dword(rows, stride);
    tile->d[b][g] = vec_from_f16(head);
    tile->m[b][g] = vec_from_f16(head >> 16);
}

/* Bits 4i..4i+3 of high become bit 4 of the bytes of codes[i]. */
ALWAYS_INLINE void add_high_bits(vint high, vint codes[8])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        /* The multiplication copies the four bits to bits 0, 7, 14, 21 and up; bit j of them is
         * then the lowest bit of byte j. */
        const vint spread = (high >> (4 * i) & 15) * 0x00204081u & 0x01010101;
        codes[i] |= spread << 4;
    }
}

ALWAYS_INLINE void decode_q5_0(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                               unsigned g)
{
    vint codes[8], head[4];
    unpack_nibbles(rows + offsetof(struct block_q5_0, qs), stride, codes);
    vec_load_rows(rows, stride, head); /* d, qh, ten bytes of qs */
    add_high_bits(head[0] >> 16 | head[1] << 16, codes);
    store_codes(codes, tile, b, g);
    tile->d[b][g] = vec_from_f16(head[0]);
}

ALWAYS_INLINE void decode_q5_1(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                               unsigned g)
{
    vint codes[8], head[4];
    unpack_nibbles(rows + offsetof(struct block_q5_1, qs), stride, codes);
    vec_load_rows(rows, stride, head); /* d, m, qh, eight bytes of qs */
    add_high_bits(head[1], codes);
    store_codes(codes, tile, b, g);
    tile->d[b][g] = vec_from_f16(head[0]);
    tile->m[b][g] = vec_from_f16(head[0] >> 16);
}

ALWAYS_INLINE void decode_q8_0(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                               unsigned g)
{
    vint codes[8];
    vec_load_rows(rows + offsetof(struct block_q8_0, qs), stride, codes);
    vec_load_rows(rows + offsetof(struct block_q8_0, qs) + 16, stride, codes + 4);
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        tile->codes[8 * b + i][g] = codes[i] ^ (CODE_BIAS * 0x01010101u);
    }
    tile->d[b][g] = vec_from_f16(load_first_dword(rows, stride));
}

ALWAYS_INLINE void lookup_codes(vint table, vint codes[8])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        codes[i] = vec_lookup(table, codes[i]);
    }
}

ALWAYS_INLINE void decode_iq4_nl(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                                 unsigned g)
{
    vint codes[8];
    unpack_nibbles(rows + offsetof(struct block_iq4_nl, qs), stride, codes);
    lookup_codes(biased_table_iq4(), codes);
    store_codes(codes, tile, b, g);
    tile->d[b][g] = vec_from_f16(load_first_dword(rows, stride));
}

enum { MXFP4_BIAS = 12 }; /* makes the doubled FP4 values -12..12 unsigned */
static const int8_t TABLE_MXFP4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

ALWAYS_INLINE void decode_mxfp4(const uint8_t *rows, size_t stride, struct tile *tile, unsigned b,
                                unsigned g)
{
    vint codes[8];
    unpack_nibbles(rows + offsetof(struct block_mxfp4, qs), stride, codes);
    lookup_codes(vec_table(TABLE_MXFP4), codes);
    store_codes(codes, tile, b, g);
    /* 2^(e - 128); the two smallest are subnormal. */
    const vint e = load_first_dword(rows, stride) & 0xff;
    const vint subnormal = (vint)(e < 2);
    const vint bits = ((e + 1) * 0x00200000u & subnormal) | ((e - 1) << 23 & ~subnormal);
    tile->d[b][g] = (vfloat)bits;
}

#endif
#endif
