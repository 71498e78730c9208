/* The weight types on the device: loading and decoding of their blocks, as the GGUF holds them.
 *
 * The 256 columns of a superblock are 16 groups of 16. Eight lanes share a superblock: lane s of
 * them takes two groups, those that lie in the low and the high bits of the same bytes, and of the
 * types with blocks of 32 the whole block s. group_of gives the two; which of them is first
 * differs between lanes 0-3 and 4-7, so that eight 16-byte reads of activations, in step, fall on
 * different banks of shared memory.
 *
 *   slice<TYPE> x;
 *   x.load(block, s);                     loads only: several can be under way before one is used
 *   x.codes(s, i), i = 0 or 1             16 signed bytes, of group group_of<x.PAIR>(s, i)
 *   x.scale(s, i), x.min(s, i), x.d(), x.dmin()      superblocks; min and dmin where HAS_MIN
 *   x.d(), x.m()                                     blocks of 32; m where HAS_MIN
 *
 * Alignment: a matrix begins at a multiple of 16 bytes, so its blocks are aligned as their size
 * allows. What is not aligned for its load is read as aligned pieces of 16 bytes and shifted: only
 * pieces that hold a wanted byte, so a buffer of whole ones is never left.
 * Cost of the layouts, which are those of the files, load instructions a lane and 32 weights:
 *   of 16 bytes   Q4_K 2, Q5_K 3, Q4_0, Q4_1, IQ4_NL and MXFP4 2, Q5_0 and Q8_0 3
 *   of 8 bytes    IQ4_XS 3, Q5_1 3
 *   of 16, and of one to four     Q6_K 4 and 3, Q2_K 2 and 3, Q3_K 4 and 5
 * The first-level cache answers for a line a cycle, so that it is these counts, more than bytes,
 * that bound what a multiprocessor reads of the narrow types. */
#ifndef LEAN_KERNELS_CUDA_WEIGHTS_CUH
#define LEAN_KERNELS_CUDA_WEIGHTS_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/quant_blocks.h"
#include "proto/base/tensor_type.h"

/* X(type) for every type that the kernels multiply by. */
#define FOR_EACH_FLOAT_WEIGHT(X) X(TENSOR_F32) X(TENSOR_F16) X(TENSOR_BF16)
#define FOR_EACH_QUANTIZED_WEIGHT(X)                                                               \
    X(TENSOR_Q2_K)                                                                                 \
    X(TENSOR_Q3_K)                                                                                 \
    X(TENSOR_Q4_K)                                                                                 \
    X(TENSOR_Q5_K)                                                                                 \
    X(TENSOR_Q6_K)                                                                                 \
    X(TENSOR_IQ4_XS)                                                                               \
    X(TENSOR_Q4_0)                                                                                 \
    X(TENSOR_Q4_1)                                                                                 \
    X(TENSOR_Q5_0)                                                                                 \
    X(TENSOR_Q5_1) X(TENSOR_Q8_0) X(TENSOR_IQ4_NL) X(TENSOR_MXFP4)
#define FOR_EACH_WEIGHT(X) FOR_EACH_FLOAT_WEIGHT(X) FOR_EACH_QUANTIZED_WEIGHT(X)

#define MEMBER __device__ __forceinline__

/* 16 codes, signed bytes, in column order. */
struct codes_16 {
    uint32_t word[4];
};

/* The group that lane s of eight takes as its i-th. PAIR: groups between those of the same bytes.
 */
template <int PAIR> DEVICE int group_of(int s, int i)
{
    return s / PAIR * (2 * PAIR) + s % PAIR + (i ^ s >> 2) * PAIR;
}

/* ---- loads ---- */

/* BYTES bytes from an address that is a multiple of ALIGN, of them the words from byte SKIP on, and
 * in *first those from byte 0 on. As pieces of 16 bytes, aligned, of which none is read that holds
 * no wanted byte; then they are moved by their offset: by eight bytes, by four, by what is left.
 * What two pieces or two lanes have in common comes from the first-level cache. */
template <int ALIGN, int BYTES, int SKIP, int N>
DEVICE void load_shifted(const uint8_t *from, uint32_t (&word)[N], uint32_t *first)
{
    enum { PIECES = (16 - ALIGN + BYTES + 15) / 16, WINDOW = 4 * PIECES };
    const uint32_t offset = (uint32_t) reinterpret_cast<uintptr_t>(from) & 15;
    const uint4 *const piece = reinterpret_cast<const uint4 *>(from - offset);
    uint32_t window[WINDOW];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const uint4 four = piece[min((uint32_t)i, (offset + BYTES - 1) / 16)];
        window[4 * i] = four.x, window[4 * i + 1] = four.y;
        window[4 * i + 2] = four.z, window[4 * i + 3] = four.w;
    }
    if (ALIGN <= 8)
#pragma unroll
        for (int i = 0; i + 2 < WINDOW; i++)
            window[i] = offset & 8 ? window[i + 2] : window[i];
    if (ALIGN <= 4)
#pragma unroll
        for (int i = 0; i + 1 < WINDOW; i++)
            window[i] = offset & 4 ? window[i + 1] : window[i];
    const uint32_t bytes = ALIGN < 4 ? offset & 3 : 0; /* bytes + SKIP <= 4 */
    *first = __byte_perm(window[0], window[1], 0x3210u + 0x1111u * bytes);
#pragma unroll
    for (int i = 0; i < N; i++)
        word[i] = ALIGN < 4 || SKIP > 0
                      ? __byte_perm(window[i], window[i + 1], 0x3210u + 0x1111u * (bytes + SKIP))
                      : window[i];
}

/* n words from an address that is a multiple of ALIGN bytes. */
template <int ALIGN, int N> DEVICE void load_words(const uint8_t *from, uint32_t (&word)[N])
{
    if constexpr (ALIGN >= 16 && N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint4 four = load_once_128(from + 4 * i);
            word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
        }
    } else if constexpr (ALIGN >= 8 && N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const uint2 two = *reinterpret_cast<const uint2 *>(from + 4 * i);
            word[i] = two.x, word[i + 1] = two.y;
        }
    } else if constexpr (ALIGN >= 4 && N == 1) {
        word[0] = *reinterpret_cast<const uint32_t *>(from);
    } else {
        uint32_t first;
        load_shifted<ALIGN, 4 * N, 0>(from, word, &first);
    }
}

DEVICE uint16_t aligned_u16(const uint8_t *from)
{
    return *reinterpret_cast<const uint16_t *>(from);
}

/* ---- codes ---- */

/* Each byte minus n, as signed bytes; bytes below 128, n at most 128. */
DEVICE uint32_t subtract_bytes(uint32_t bytes, uint32_t n)
{
    return ((bytes | 0x80808080u) - n * 0x01010101u) ^ 0x80808080u;
}

/* Four bits to the lowest bit of four bytes. */
DEVICE uint32_t spread_bits(uint32_t bits)
{
    return ((bits & 15u) * 0x00204081u) & 0x01010101u;
}

/* A table of 16 signed bytes, looked up for the four bytes (0-15) of a word. */
struct code_table {
    uint32_t word[4];
};
DEVICE uint32_t look_up(const code_table &table, uint32_t indices)
{
    const uint32_t nibbles = __byte_perm(indices | indices >> 4, 0, 0x4420);
    const uint32_t low = __byte_perm(table.word[0], table.word[1], nibbles & 0x7777u);
    const uint32_t high = __byte_perm(table.word[2], table.word[3], nibbles & 0x7777u);
    return __byte_perm(low, high, 0x3210u | (nibbles & 0x8888u) >> 1);
}
DEVICE code_table iq4_table(void)
{
    return {{0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}};
}
DEVICE code_table mxfp4_table(void)
{
    return {{0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}};
}

DEVICE uint32_t byte_of(uint32_t word, int i)
{
    return word >> 8 * i & 255u;
}

/* ---- superblocks of 256 ---- */

template <int TYPE> struct slice;

/* Q4_K and Q5_K: scales (part 0) and minimums (part 1) of blocks 4h .. 4h+3 as bytes, from the
 * twelve bytes after d and dmin; the packing is spelled out in kernels/ref/unpack.c. */
DEVICE uint32_t scales_of_half(const uint32_t (&head)[4], int part, int h)
{
    const uint32_t first = part ? head[2] : head[1], last = part ? head[3] >> 4 : head[3];
    const uint32_t upper = h ? 0xffffffffu : 0; /* masks: lanes of a warp differ in h */
    return (first & 0x3f3f3f3fu & ~upper) |
           (((last & 0x0f0f0f0fu) | (first >> 2 & 0x30303030u)) & upper);
}

/* The head of a superblock of Q4_K and Q5_K: d, dmin, and six bits for each scale and minimum. */
struct packed_head {
    enum { PAIR = 2 };
    uint32_t head[4];
    MEMBER int scale(int s, int i) const
    {
        return (int)byte_of(scales_of_half(head, 0, s >> 2), group_of<PAIR>(s, i) / 2 & 3);
    }
    MEMBER int min(int s, int i) const
    {
        return (int)byte_of(scales_of_half(head, 1, s >> 2), group_of<PAIR>(s, i) / 2 & 3);
    }
    MEMBER float d(void) const
    {
        return f16_to_float((uint16_t)head[0]);
    }
    MEMBER float dmin(void) const
    {
        return f16_to_float((uint16_t)(head[0] >> 16));
    }
};

template <> struct slice<TENSOR_Q4_K> : packed_head {
    enum { COLUMNS = 256, BYTES = 144, SCALE_COLUMNS = 32, HAS_MIN = 1 };
    uint32_t qs[4];
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<16>(block, head);
        load_words<16>(block + 16 + 16 * s, qs);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int shift = 4 * (i ^ s >> 2);
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = qs[k] >> shift & 0x0f0f0f0fu;
        return out;
    }
};

template <> struct slice<TENSOR_Q5_K> : packed_head {
    enum { COLUMNS = 256, BYTES = 176, SCALE_COLUMNS = 32, HAS_MIN = 1 };
    uint32_t qh[4], qs[4];
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<16>(block, head);
        load_words<16>(block + 16 + 16 * (s & 1), qh);
        load_words<16>(block + 48 + 16 * s, qs);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int shift = 4 * (i ^ s >> 2), bit = group_of<PAIR>(s, i) / 2;
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = (qs[k] >> shift & 0x0f0f0f0fu) | (qh[k] >> bit & 0x01010101u) << 4;
        return out;
    }
};

template <> struct slice<TENSOR_Q6_K> {
    enum { COLUMNS = 256, BYTES = 210, PAIR = 4, SCALE_COLUMNS = 16, HAS_MIN = 0 };
    uint32_t ql[4], qh[4];
    int8_t scales[2];
    uint16_t d_bits;
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<2>(block + 16 * s, ql);
        load_words<2>(block + 128 + 32 * (s >> 2) + 16 * (s & 1), qh);
        scales[0] = (int8_t)block[192 + group_of<PAIR>(s, 0)];
        scales[1] = (int8_t)block[192 + group_of<PAIR>(s, 1)];
        d_bits = aligned_u16(block + 208);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int which = i ^ s >> 2, shift_high = (s & 2) + 4 * which;
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t low = ql[k] >> 4 * which & 0x0f0f0f0fu;
            out.word[k] = subtract_bytes(low | (qh[k] >> shift_high & 0x03030303u) << 4, 32);
        }
        return out;
    }
    MEMBER int scale(int, int i) const
    {
        return scales[i];
    }
    MEMBER float d(void) const
    {
        return f16_to_float(d_bits);
    }
};

template <> struct slice<TENSOR_Q2_K> {
    enum { COLUMNS = 256, BYTES = 84, PAIR = 4, SCALE_COLUMNS = 16, HAS_MIN = 1 };
    uint32_t qs[4], d_dmin[1];
    uint8_t scales[2];
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<4>(block + 16 + 32 * (s >> 2) + 16 * (s & 1), qs);
        scales[0] = block[group_of<PAIR>(s, 0)];
        scales[1] = block[group_of<PAIR>(s, 1)];
        load_words<4>(block + 80, d_dmin);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int shift = (s & 2) + 4 * (i ^ s >> 2);
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = qs[k] >> shift & 0x03030303u;
        return out;
    }
    MEMBER int scale(int, int i) const
    {
        return scales[i] & 15;
    }
    MEMBER int min(int, int i) const
    {
        return scales[i] >> 4;
    }
    MEMBER float d(void) const
    {
        return f16_to_float((uint16_t)d_dmin[0]);
    }
    MEMBER float dmin(void) const
    {
        return f16_to_float((uint16_t)(d_dmin[0] >> 16));
    }
};

template <> struct slice<TENSOR_Q3_K> {
    enum { COLUMNS = 256, BYTES = 110, PAIR = 4, SCALE_COLUMNS = 16, HAS_MIN = 0 };
    uint32_t hmask[4], qs[4];
    uint8_t low[2], high[2]; /* the bytes that hold the scales' bits */
    uint16_t d_bits;
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<2>(block + 16 * (s & 1), hmask);
        load_words<2>(block + 32 + 32 * (s >> 2) + 16 * (s & 1), qs);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int group = group_of<PAIR>(s, i);
            low[i] = block[96 + (group & 7)];
            high[i] = block[104 + (group & 3)];
        }
        d_bits = aligned_u16(block + 108);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int shift = (s & 2) + 4 * (i ^ s >> 2), bit = group_of<PAIR>(s, i) / 2;
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t high_bit = (hmask[k] >> bit & 0x01010101u) << 2;
            out.word[k] = subtract_bytes((qs[k] >> shift & 0x03030303u) | high_bit, 4);
        }
        return out;
    }
    MEMBER int scale(int s, int i) const
    {
        const int group = group_of<PAIR>(s, i);
        const int four = low[i] >> (group & 8) / 2 & 15, two = high[i] >> 2 * (group / 4) & 3;
        return (four | two << 4) - 32;
    }
    MEMBER float d(void) const
    {
        return f16_to_float(d_bits);
    }
};

template <> struct slice<TENSOR_IQ4_XS> {
    enum { COLUMNS = 256, BYTES = 136, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 0 };
    uint32_t head[2], qs[4];
    MEMBER void load(const uint8_t *block, int s)
    {
        load_words<8>(block, head);
        load_words<8>(block + 8 + 16 * s, qs);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        const int shift = 4 * (i ^ s >> 2);
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = look_up(iq4_table(), qs[k] >> shift & 0x0f0f0f0fu);
        return out;
    }
    MEMBER int scale(int s, int) const
    {
        return (int)((head[1] >> 4 * s & 15u) | (head[0] >> (16 + 2 * s) & 3u) << 4) - 32;
    }
    MEMBER float d(void) const
    {
        return f16_to_float((uint16_t)head[0]);
    }
};

/* ---- blocks of 32; i = 0 is the high half of the columns in lanes 4-7 ---- */

enum nibble_codes { NIBBLE_MINUS_8, NIBBLE_PLAIN, NIBBLE_IQ4, NIBBLE_MXFP4 };

/* The half of the columns that a lane takes as its i-th lies in the low or the high nibbles. */
template <int CODES> DEVICE codes_16 nibble_half(const uint32_t *qs, int s, int i)
{
    const int shift = 4 * (i ^ s >> 2);
    codes_16 out;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t nibbles = qs[k] >> shift & 0x0f0f0f0fu;
        if (CODES == NIBBLE_MINUS_8) out.word[k] = subtract_bytes(nibbles, 8);
        if (CODES == NIBBLE_PLAIN) out.word[k] = nibbles;
        if (CODES == NIBBLE_IQ4) out.word[k] = look_up(iq4_table(), nibbles);
        if (CODES == NIBBLE_MXFP4) out.word[k] = look_up(mxfp4_table(), nibbles);
    }
    return out;
}

/* The same with a fifth bit from qh, unsigned. */
DEVICE codes_16 five_bit_half(const uint32_t *qs, uint32_t qh, int s, int i)
{
    const int which = i ^ s >> 2;
    codes_16 out;
#pragma unroll
    for (int k = 0; k < 4; k++)
        out.word[k] = (qs[k] >> 4 * which & 0x0f0f0f0fu) | spread_bits(qh >> (16 * which + 4 * k))
                                                               << 4;
    return out;
}

/* d and 16 bytes of nibbles. */
template <int CODES> struct slice_nibbles {
    enum { COLUMNS = 32, BYTES = 18, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 0 };
    uint32_t qs[4];
    uint16_t d_bits;
    MEMBER void load(const uint8_t *block, int)
    {
        uint32_t first;
        load_shifted<2, BYTES, 2>(block, qs, &first);
        d_bits = (uint16_t)first;
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        return nibble_half<CODES>(qs, s, i);
    }
    MEMBER float d(void) const
    {
        return f16_to_float(d_bits);
    }
};
template <> struct slice<TENSOR_Q4_0> : slice_nibbles<NIBBLE_MINUS_8> {
};
template <> struct slice<TENSOR_IQ4_NL> : slice_nibbles<NIBBLE_IQ4> {
};

template <> struct slice<TENSOR_Q4_1> {
    enum { COLUMNS = 32, BYTES = 20, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 1 };
    uint32_t word[5]; /* d and m, nibbles */
    MEMBER void load(const uint8_t *block, int)
    {
        load_words<4>(block, word);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        return nibble_half<NIBBLE_PLAIN>(word + 1, s, i);
    }
    MEMBER float d(void) const
    {
        return f16_to_float((uint16_t)word[0]);
    }
    MEMBER float m(void) const
    {
        return f16_to_float((uint16_t)(word[0] >> 16));
    }
};

template <> struct slice<TENSOR_Q5_0> {
    enum { COLUMNS = 32, BYTES = 22, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 0 };
    uint32_t word[5]; /* high bits, nibbles */
    uint16_t d_bits;
    MEMBER void load(const uint8_t *block, int)
    {
        uint32_t first;
        load_shifted<2, BYTES, 2>(block, word, &first);
        d_bits = (uint16_t)first;
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        codes_16 out = five_bit_half(word + 1, word[0], s, i);
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = subtract_bytes(out.word[k], 16);
        return out;
    }
    MEMBER float d(void) const
    {
        return f16_to_float(d_bits);
    }
};

template <> struct slice<TENSOR_Q5_1> {
    enum { COLUMNS = 32, BYTES = 24, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 1 };
    uint32_t word[6]; /* d and m, high bits, nibbles */
    MEMBER void load(const uint8_t *block, int)
    {
        load_words<8>(block, word);
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        return five_bit_half(word + 2, word[1], s, i);
    }
    MEMBER float d(void) const
    {
        return f16_to_float((uint16_t)word[0]);
    }
    MEMBER float m(void) const
    {
        return f16_to_float((uint16_t)(word[0] >> 16));
    }
};

template <> struct slice<TENSOR_Q8_0> {
    enum { COLUMNS = 32, BYTES = 34, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 0 };
    uint32_t qs[8];
    uint16_t d_bits;
    MEMBER void load(const uint8_t *block, int)
    {
        uint32_t first;
        load_shifted<2, BYTES, 2>(block, qs, &first);
        d_bits = (uint16_t)first;
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        codes_16 out;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out.word[k] = i ^ s >> 2 ? qs[4 + k] : qs[k];
        return out;
    }
    MEMBER float d(void) const
    {
        return f16_to_float(d_bits);
    }
};

template <> struct slice<TENSOR_MXFP4> {
    enum { COLUMNS = 32, BYTES = 17, PAIR = 1, SCALE_COLUMNS = 32, HAS_MIN = 0 };
    uint32_t qs[4];
    uint8_t e;
    MEMBER void load(const uint8_t *block, int)
    {
        uint32_t first;
        load_shifted<1, BYTES, 1>(block, qs, &first);
        e = (uint8_t)first;
    }
    MEMBER codes_16 codes(int s, int i) const
    {
        return nibble_half<NIBBLE_MXFP4>(qs, s, i);
    }
    MEMBER float d(void) const /* 2^(e - 128), subnormal for e = 0 and 1 */
    {
        return __uint_as_float(e >= 2 ? (uint32_t)(e - 1) << 23 : 0x200000u << e);
    }
};

/* ---- floats ---- */

template <int TYPE> struct float_weight;
template <> struct float_weight<TENSOR_F32> {
    enum { BYTES = 4 };
    static MEMBER float at(const uint8_t *row, uint32_t i)
    {
        return reinterpret_cast<const float *>(row)[i];
    }
};
template <> struct float_weight<TENSOR_F16> {
    enum { BYTES = 2 };
    static MEMBER float at(const uint8_t *row, uint32_t i)
    {
        return f16_to_float(reinterpret_cast<const uint16_t *>(row)[i]);
    }
};
template <> struct float_weight<TENSOR_BF16> {
    enum { BYTES = 2 };
    static MEMBER float at(const uint8_t *row, uint32_t i)
    {
        return bf16_to_float(reinterpret_cast<const uint16_t *>(row)[i]);
    }
};

#endif
