/* Weight blocks with their rows in lanes: one byte per weight, scales as integers.
 *
 * A file stores a row's codes one after the other; a dot product that runs along the row ends in
 * a sum across lanes. Here it is turned round: lane r belongs to row r, four consecutive columns of
 * a row are the four bytes of its lane, and one activation quadruple, broadcast, meets LANES rows
 * at once. No sum ever crosses lanes, and the float accumulators of LANES rows are one vector.
 * Transposing the packed bytes (dwords, 16 bytes of a row at a time) before unpacking them halves
 * the cost of it, and even for a single token the detour is cheaper than horizontal sums.
 *
 * A decoder reads one block of LANES rows, stride bytes apart, and hands what it finds to a sink:
 * to a tile, unpacked once for many tokens, or for a single token straight into its sums. It reads
 * the blocks' bytes and no others. Layouts: kernels/quant_blocks.h. */
#ifndef LEAN_KERNELS_X86_MATMUL_TILE_H
#define LEAN_KERNELS_X86_MATMUL_TILE_H

#include <stdbool.h>

#include "kernels/quant_blocks.h"
#include "kernels/x86/vec.h"
#ifdef __AVX2__

/* What the inner loops must know of a type; a constant wherever they are compiled. */
struct code_class {
    unsigned code_max; /* codes are 0..code_max, or -code_max..code_max */
    bool is_signed;    /* for vec_dot_signed */
    bool has_min;      /* minimums times the sums of activations make a second float term */
    unsigned n_sub;    /* k-quants: sub-blocks in a superblock, 8 or 16; 32-blocks: 0 */
    bool has_offset;   /* k-quants: corr is added to the integer sum */
    unsigned offset;   /* 32-blocks: what the codes have too much */
};

/* How many dots one sum takes before it must be added to a total: a power of two. */
ALWAYS_INLINE unsigned steps_per_sum(struct code_class c)
{
    unsigned n_step = c.n_sub ? QK / 4 / c.n_sub : QK32 / 4;
    while (n_step > DOT_STEPS(c.code_max))
        n_step /= 2;
    return n_step;
}

ALWAYS_INLINE vint dot_codes(struct code_class c, vint sum, vint codes, vint x)
{
    return c.is_signed ? vec_dot_signed(sum, codes, x) : vec_dot_codes(sum, codes, x);
}

/* 256 columns of TILE_ROWS rows.
 *   codes[k][g]  lane r: columns 4k..4k+3 of row g * LANES + r
 *   scale[s][g]  k-quants: integer scale of sub-block s, in vec_scale's form
 *   corr[j][g]   k-quants: two 16-bit factors for the sums of activations 32j..32j+15 and
 *                32j+16..32j+31: the minimums, or minus what unsigned codes have too much
 *   d, m[b][g]   float scale and minimum of the superblock (b = 0) or of 32-block b */
enum { TILE_GROUPS = 2, TILE_ROWS = TILE_GROUPS * LANES };
struct tile {
    vint codes[QK / 4][TILE_GROUPS];
    vint scale[16][TILE_GROUPS];
    vint corr[8][TILE_GROUPS];
    vfloat d[8][TILE_GROUPS];
    vfloat m[8][TILE_GROUPS];
};

/* Where a decoder's output goes. To a tile: to group g of it, 32-blocks to block b. Otherwise
 * codes are multiplied by x and summed as they come, a decoder puts all scales before any codes,
 * and what remains to be done with the totals is left to the caller. */
struct sink {
    struct code_class c;
    bool to_tile;         /* a constant wherever a decoder is compiled */
    const char *prefetch; /* prefetch_bytes from here on are what will be decoded later */
    size_t prefetch_bytes;
    unsigned n_put; /* calls of put_codes so far */
    struct tile *tile;
    unsigned g, b;
    const int8_t *x;      /* activations of the block */
    const int16_t *bsums; /* k-quants: their sums by 16 */
    vint sum[QK / 4];     /* not yet in total, by dot / steps_per_sum */
    vint total, corr;
    vint scale[16];
    vfloat d, m;
};

ALWAYS_INLINE void put_d(struct sink *o, vfloat d)
{
    if (o->to_tile)
        o->tile->d[o->b][o->g] = d;
    else
        o->d = d;
}

ALWAYS_INLINE void put_m(struct sink *o, vfloat m)
{
    if (o->to_tile)
        o->tile->m[o->b][o->g] = m;
    else
        o->m = m;
}

ALWAYS_INLINE void put_scale(struct sink *o, unsigned s, vint scale)
{
    if (o->to_tile)
        o->tile->scale[s][o->g] = vec_scale(scale);
    else
        o->scale[s] = vec_scale(scale);
}

ALWAYS_INLINE void put_corr(struct sink *o, unsigned j, vint pair)
{
    if (o->to_tile)
        o->tile->corr[j][o->g] = pair;
    else if (o->c.has_min || o->c.has_offset)
        o->corr = vec_dot_pairs(o->corr, pair, vec_set1(load_u32(o->bsums + 2 * j)));
}

/* Asks for the next share of the bytes at prefetch: one line at a time, evenly among the
 * arithmetic, and to the second-level cache. Four lines in a row already cost a fifth of the
 * memory's bandwidth, sixteen a third, because then the few line buffers of the first level, which
 * loads need too, are either all taken or idle. */
ALWAYS_INLINE vint prefetch_share(struct sink *o, vint codes)
{
    const unsigned n_share = o->c.n_sub ? QK / 4 : QK32 / 4;
    const size_t begin = o->prefetch_bytes * o->n_put / n_share;
    const size_t end = o->prefetch_bytes * ++o->n_put / n_share;
#pragma GCC unroll 4
    for (size_t line = (begin + 63) / 64; 64 * line < end; line++)
        codes = vec_prefetch(o->prefetch + 64 * line, codes);
    return codes;
}

ALWAYS_INLINE void put_codes(struct sink *o, unsigned k, vint codes)
{
    codes = prefetch_share(o, codes);
    if (o->to_tile) {
        o->tile->codes[o->b * (QK32 / 4) + k][o->g] = codes;
        return;
    }
    const unsigned n_step = steps_per_sum(o->c), i = k / n_step;
    const vint before = k % n_step ? o->sum[i] : vec_set1(0);
    o->sum[i] = dot_codes(o->c, before, codes, vec_set1(load_u32(o->x + 4 * k)));
    if (k % n_step < n_step - 1) return;
    o->total = o->c.n_sub ? vec_add_scaled(o->total, o->sum[i], o->scale[k / (QK / 4 / o->c.n_sub)])
                          : vec_add_sum(o->total, o->sum[i]);
}

/* The first dword of 16 bytes, and the last. */
ALWAYS_INLINE vint load_first_dword(const uint8_t *rows, size_t stride)
{
    vint v[4];
    vec_load_rows(rows, stride, v);
    return v[0];
}
ALWAYS_INLINE vint load_last_dword(const uint8_t *rows, size_t stride)
{
    vint v[4];
    vec_load_rows(rows, stride, v);
    return v[3];
}

/* Byte j of each lane, and the same sign-extended. */
ALWAYS_INLINE vint lane_byte(vint a, unsigned j)
{
    return a >> (8 * j) & 0xff;
}
ALWAYS_INLINE vint lane_signed_byte(vint a, unsigned j)
{
    return (vint)((vsigned)(a << (24 - 8 * j)) >> 24);
}

/* Two 16-bit factors in a lane. */
ALWAYS_INLINE vint pair_of(vint a, vint b)
{
    return (a & 0xffff) | b << 16;
}

/* a << n, or a >> -n. */
ALWAYS_INLINE vint shift(vint a, int n)
{
    return n >= 0 ? a << n : a >> -n;
}

/* ---- k-quants ---- */

/* head: d and dmin, then the twelve bytes that hold eight 6-bit scales and minimums. */
ALWAYS_INLINE void decode_head_q4_k(const vint head[4], struct sink *o)
{
    const vint u0 = head[1], u1 = head[2], u2 = head[3];
    const vint scale[2] = {u0 & 0x3f3f3f3f, (u2 & 0x0f0f0f0f) | (u0 >> 2 & 0x30303030)};
    const vint min[2] = {u1 & 0x3f3f3f3f, (u2 >> 4 & 0x0f0f0f0f) | (u1 >> 2 & 0x30303030)};
    put_d(o, vec_from_f16(head[0]));
    put_m(o, vec_from_f16(head[0] >> 16));
#pragma GCC unroll 8
    for (unsigned s = 0; s < 8; s++) {
        const vint m = lane_byte(min[s / 4], s % 4);
        put_scale(o, s, lane_byte(scale[s / 4], s % 4));
        put_corr(o, s, pair_of(m, m));
    }
}

ALWAYS_INLINE void decode_q4_k(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint v[4];
    vec_load_rows(rows, stride, v);
    decode_head_q4_k(v, o);
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) { /* columns 64 (c / 2) + 16 (c % 2), and 32 behind them */
        const unsigned k = 16 * (c / 2) + 4 * (c % 2);
        vec_load_rows(rows + offsetof(struct block_q4_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            put_codes(o, k + i, v[i] & 0x0f0f0f0f);
            put_codes(o, k + 8 + i, v[i] >> 4 & 0x0f0f0f0f);
        }
    }
}

ALWAYS_INLINE void decode_q5_k(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint v[4], high[2][4];
    vec_load_rows(rows, stride, v);
    decode_head_q4_k(v, o);
    vec_load_rows(rows + offsetof(struct block_q5_k, qh), stride, high[0]);
    vec_load_rows(rows + offsetof(struct block_q5_k, qh) + 16, stride, high[1]);
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) {
        const unsigned k = 16 * (c / 2) + 4 * (c % 2);
        const int bit = 2 * (int)(c / 2); /* of qh, for the low nibbles; the next for the high */
        vec_load_rows(rows + offsetof(struct block_q5_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            const vint h = high[c % 2][i];
            put_codes(o, k + i, (v[i] & 0x0f0f0f0f) | (shift(h, 4 - bit) & 0x10101010));
            put_codes(o, k + 8 + i, (v[i] >> 4 & 0x0f0f0f0f) | (shift(h, 3 - bit) & 0x10101010));
        }
    }
}

/* Scales of sub-blocks of 16, two at a time, and their corrections for codes that have
 * too_much more than their value. */
ALWAYS_INLINE void put_scale_pair(struct sink *o, unsigned j, vint a, vint b, unsigned too_much)
{
    put_scale(o, 2 * j, a);
    put_scale(o, 2 * j + 1, b);
    put_corr(o, j, pair_of(a * -too_much, b * -too_much));
}

ALWAYS_INLINE void decode_q6_k(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint v[4], high[4];
    vec_load_rows(rows + offsetof(struct block_q6_k, scales), stride, v);
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++)
        put_scale_pair(o, j, lane_signed_byte(v[j / 2], 2 * (j % 2)),
                       lane_signed_byte(v[j / 2], 2 * (j % 2) + 1), 32);
    const vint last = load_last_dword(rows + sizeof(struct block_q6_k) - 16, stride);
    put_d(o, vec_from_f16(last >> 16));
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) { /* columns 128 h + 16 e + (0, 32, 64, 96) */
        const unsigned h = c / 2, e = c % 2, k = 32 * h + 4 * e;
        vec_load_rows(rows + offsetof(struct block_q6_k, qh) + 16 * c, stride, high);
#pragma GCC unroll 2
        for (unsigned s = 0; s < 2; s++) {
            const int up = 4 - 2 * (int)s; /* brings the two high bits to bit 4 */
            vec_load_rows(rows + 64 * h + 32 * s + 16 * e, stride, v);
#pragma GCC unroll 4
            for (unsigned i = 0; i < 4; i++) {
                put_codes(o, k + 8 * s + i,
                          (v[i] & 0x0f0f0f0f) | (shift(high[i], up) & 0x30303030));
                put_codes(o, k + 8 * s + 16 + i,
                          (v[i] >> 4 & 0x0f0f0f0f) | (shift(high[i], up - 4) & 0x30303030));
            }
        }
    }
}

ALWAYS_INLINE void decode_q3_k(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint v[4], high[2][4];
    /* The last 16 bytes: two of qs, twelve of scales, d. Shifted by two they are u0, u1, u2. */
    vec_load_rows(rows + sizeof(struct block_q3_k) - 16, stride, v);
    const vint u0 = v[0] >> 16 | v[1] << 16, u1 = v[1] >> 16 | v[2] << 16;
    const vint u2 = v[2] >> 16 | v[3] << 16;
    const vint scale[4] = {(u0 & 0x0f0f0f0f) | (u2 << 4 & 0x30303030),
                           (u1 & 0x0f0f0f0f) | (u2 << 2 & 0x30303030),
                           (u0 >> 4 & 0x0f0f0f0f) | (u2 & 0x30303030),
                           (u1 >> 4 & 0x0f0f0f0f) | (u2 >> 2 & 0x30303030)};
    put_d(o, vec_from_f16(v[3] >> 16));
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++)
        put_scale_pair(o, j, lane_byte(scale[j / 2], 2 * (j % 2)) - 32,
                       lane_byte(scale[j / 2], 2 * (j % 2) + 1) - 32, 4);
    vec_load_rows(rows + offsetof(struct block_q3_k, hmask), stride, high[0]);
    vec_load_rows(rows + offsetof(struct block_q3_k, hmask) + 16, stride, high[1]);
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) { /* columns 128 h + 16 e + (0, 32, 64, 96) */
        const unsigned h = c / 2, e = c % 2;
        vec_load_rows(rows + offsetof(struct block_q3_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 16
        for (unsigned n = 0; n < 16; n++) {
            const unsigned s = n / 4, i = n % 4;
            const int bit = 4 * (int)h + (int)s; /* of hmask: worth 4 */
            put_codes(o, 32 * h + 4 * e + 8 * s + i,
                      (v[i] >> (2 * s) & 0x03030303) | (shift(high[e][i], 2 - bit) & 0x04040404));
        }
    }
}

ALWAYS_INLINE void decode_q2_k(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint v[4];
    const vint last = load_last_dword(rows + sizeof(struct block_q2_k) - 16, stride);
    put_d(o, vec_from_f16(last));
    put_m(o, vec_from_f16(last >> 16));
    vec_load_rows(rows, stride, v);
#pragma GCC unroll 8
    for (unsigned j = 0; j < 8; j++) {
        const vint a = lane_byte(v[j / 2], 2 * (j % 2)), b = lane_byte(v[j / 2], 2 * (j % 2) + 1);
        put_scale(o, 2 * j, a & 15);
        put_scale(o, 2 * j + 1, b & 15);
        put_corr(o, j, pair_of(a >> 4, b >> 4));
    }
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) { /* columns 128 (c / 2) + 16 (c % 2) + (0, 32, 64, 96) */
        vec_load_rows(rows + offsetof(struct block_q2_k, qs) + 16 * c, stride, v);
#pragma GCC unroll 16
        for (unsigned n = 0; n < 16; n++)
            put_codes(o, 32 * (c / 2) + 4 * (c % 2) + 8 * (n / 4) + n % 4,
                      v[n % 4] >> (2 * (n / 4)) & 0x03030303);
    }
}

static const int8_t TABLE_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

/* TABLE_IQ4 plus CODE_BIAS, as signed codes are kept. */
ALWAYS_INLINE vint biased_table_iq4(void)
{
    return vec_table(TABLE_IQ4) ^ (CODE_BIAS * 0x01010101u);
}

ALWAYS_INLINE void decode_iq4_xs(const uint8_t *rows, size_t stride, struct sink *o)
{
    const vint table = biased_table_iq4();
    vint v[4];
    vec_load_rows(rows, stride, v); /* d, the scales' high bits, low bits, eight bytes of qs */
    put_d(o, vec_from_f16(v[0]));
#pragma GCC unroll 8
    for (unsigned s = 0; s < 8; s++) {
        const vint scale = ((v[1] >> (4 * s) & 15) | (v[0] >> (16 + 2 * s) & 3) << 4) - 32;
        const vint corr = scale * -(unsigned)CODE_BIAS;
        put_scale(o, s, scale);
        put_corr(o, s, pair_of(corr, corr));
    }
#pragma GCC unroll 8
    for (unsigned c = 0; c < 8; c++) { /* one sub-block of 32: low nibbles, then high */
        vec_load_rows(rows + offsetof(struct block_iq4_xs, qs) + 16 * c, stride, v);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++) {
            put_codes(o, 8 * c + i, vec_lookup(table, v[i] & 0x0f0f0f0f));
            put_codes(o, 8 * c + 4 + i, vec_lookup(table, v[i] >> 4 & 0x0f0f0f0f));
        }
    }
}

/* ---- 32-blocks ---- */

/* The nibbles of 16 bytes: the low ones are columns 0..15, the high ones 16..31. */
ALWAYS_INLINE void load_nibbles(const uint8_t *qs, size_t stride, vint codes[8])
{
    vint v[4];
    vec_load_rows(qs, stride, v);
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++) {
        codes[i] = v[i] & 0x0f0f0f0f;
        codes[4 + i] = v[i] >> 4 & 0x0f0f0f0f;
    }
}

ALWAYS_INLINE void put_block_codes(struct sink *o, const vint codes[8])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        put_codes(o, i, codes[i]);
}

ALWAYS_INLINE void decode_q4_0(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8];
    put_d(o, vec_from_f16(load_first_dword(rows, stride)));
    load_nibbles(rows + offsetof(struct block_q4_0, qs), stride, codes);
    put_block_codes(o, codes);
}

ALWAYS_INLINE void decode_q4_1(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8];
    const vint head = load_first_dword(rows, stride);
    put_d(o, vec_from_f16(head));
    put_m(o, vec_from_f16(head >> 16));
    load_nibbles(rows + offsetof(struct block_q4_1, qs), stride, codes);
    put_block_codes(o, codes);
}

/* Bits 4i..4i+3 of high become bit 4 of the bytes of codes[i]. */
ALWAYS_INLINE void add_high_bits(vint high, vint codes[8])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        /* The product holds the four bits at 0, 7, 14 and 21: bit j is at 8j. */
        const vint spread = (high >> (4 * i) & 15) * 0x00204081u & 0x01010101;
        codes[i] |= spread << 4;
    }
}

ALWAYS_INLINE void decode_q5_0(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8], head[4];
    vec_load_rows(rows, stride, head); /* d, qh, ten bytes of qs */
    put_d(o, vec_from_f16(head[0]));
    load_nibbles(rows + offsetof(struct block_q5_0, qs), stride, codes);
    add_high_bits(head[0] >> 16 | head[1] << 16, codes);
    put_block_codes(o, codes);
}

ALWAYS_INLINE void decode_q5_1(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8], head[4];
    vec_load_rows(rows, stride, head); /* d, m, qh, eight bytes of qs */
    put_d(o, vec_from_f16(head[0]));
    put_m(o, vec_from_f16(head[0] >> 16));
    load_nibbles(rows + offsetof(struct block_q5_1, qs), stride, codes);
    add_high_bits(head[1], codes);
    put_block_codes(o, codes);
}

ALWAYS_INLINE void decode_q8_0(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8];
    put_d(o, vec_from_f16(load_first_dword(rows, stride)));
    vec_load_rows(rows + offsetof(struct block_q8_0, qs), stride, codes);
    vec_load_rows(rows + offsetof(struct block_q8_0, qs) + 16, stride, codes + 4);
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        codes[i] ^= CODE_BIAS * 0x01010101u;
    put_block_codes(o, codes);
}

ALWAYS_INLINE void lookup_codes(vint table, vint codes[8])
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        codes[i] = vec_lookup(table, codes[i]);
}

ALWAYS_INLINE void decode_iq4_nl(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8];
    put_d(o, vec_from_f16(load_first_dword(rows, stride)));
    load_nibbles(rows + offsetof(struct block_iq4_nl, qs), stride, codes);
    lookup_codes(biased_table_iq4(), codes);
    put_block_codes(o, codes);
}

enum { MXFP4_BIAS = 12 }; /* makes the doubled FP4 values -12..12 unsigned */
static const int8_t TABLE_MXFP4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

ALWAYS_INLINE void decode_mxfp4(const uint8_t *rows, size_t stride, struct sink *o)
{
    vint codes[8];
    /* 2^(e - 128); the two smallest are subnormal. */
    const vint e = load_first_dword(rows, stride) & 0xff;
    const vint subnormal = (vint)(e < 2);
    const vint bits = ((e + 1) * 0x00200000u & subnormal) | ((e - 1) << 23 & ~subnormal);
    put_d(o, (vfloat)bits);
    load_nibbles(rows + offsetof(struct block_mxfp4, qs), stride, codes);
    lookup_codes(vec_table(TABLE_MXFP4), codes);
    put_block_codes(o, codes);
}

#endif
#endif
