/* One vector vocabulary for AVX2 and AVX-512: what the matmul kernels are written in.
 *
 * A file that includes this is compiled once per instruction set (its name ends in _avx2.c or
 * _avx512.c), and LANES is then 8 or 16; elsewhere the header is empty. Arithmetic on vint and
 * vfloat is written with C's operators, lane by lane; here is what C has no operator for. */
#ifndef LEAN_KERNELS_X86_VEC_H
#define LEAN_KERNELS_X86_VEC_H
#ifdef __AVX2__

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

/* Integer lanes are unsigned so that sums wrap and right shifts are logical; where a lane holds a
 * signed number it is two's complement. */
typedef uint32_t vint __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t vsigned __attribute__((vector_size(4 * LANES), may_alias));
typedef float vfloat __attribute__((vector_size(4 * LANES), may_alias));

ALWAYS_INLINE uint32_t load_u32(const void *p)
{
    uint32_t value;
    memcpy(&value, p, sizeof(value));
    return value;
}

/* Asks for a line, to the second-level cache. Compilers move prefetches together, which costs half
 * of what they gain (matmul_tile.h); being told that this one changes a, they leave it where a is
 * computed. */
ALWAYS_INLINE vint vec_prefetch(const char *p, vint a)
{
    __asm__ volatile("prefetcht1 %1" : "+v"(a) : "m"(*p));
    return a;
}

/* Signed lanes to float, rounded to nearest even. */
ALWAYS_INLINE vfloat vec_to_float(vint a)
{
    return __builtin_convertvector((vsigned)a, vfloat);
}

#ifdef __AVX512F__

ALWAYS_INLINE vint vec_set1(uint32_t value)
{
    return (vint)_mm512_set1_epi32((int32_t)value);
}
ALWAYS_INLINE vfloat vec_set1_f(float value)
{
    return (vfloat)_mm512_set1_ps(value);
}
/* a * b + c and c - a * b, rounded once. */
ALWAYS_INLINE vfloat vec_fma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
ALWAYS_INLINE vfloat vec_fnma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
/* Stores the first n lanes, n <= LANES. */
ALWAYS_INLINE void vec_store_n(float *p, vfloat a, unsigned n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a);
}
/* The f16 in the low half of each lane; the high half is ignored. */
ALWAYS_INLINE vfloat vec_from_f16(vint a)
{
    return (vfloat)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)a));
}
/* LANES values of a type at p, as floats. */
ALWAYS_INLINE vfloat vec_load_f32(const void *p)
{
    return (vfloat)_mm512_loadu_ps(p);
}
ALWAYS_INLINE vfloat vec_load_f16(const void *p)
{
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256(p));
}
ALWAYS_INLINE vfloat vec_load_bf16(const void *p)
{
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
}
/* The halves of a vector of 16, added; with LANES 8 the vector itself. */
ALWAYS_INLINE __m256 vec_fold_to_8(vfloat a)
{
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
}
/* A table of 16 bytes for vec_lookup. */
ALWAYS_INLINE vint vec_table(const int8_t table[16])
{
    return (vint)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}
/* Each byte of index, 0..15, becomes table[index]. */
ALWAYS_INLINE vint vec_lookup(vint table, vint index)
{
    return (vint)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}

/* 16 bytes at p, p + stride, ... become the 128-bit parts of a vector. */
ALWAYS_INLINE vint vec_load_parts(const uint8_t *p, size_t stride)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + stride)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 2 * stride)), 2);
    return (vint)_mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 3 * stride)), 3);
}
/* From each 128-bit part of a and b: a0 b0 a1 b1, and a2 b2 a3 b3. */
ALWAYS_INLINE vint vec_zip_lo32(vint a, vint b)
{
    return (vint)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
}
ALWAYS_INLINE vint vec_zip_hi32(vint a, vint b)
{
    return (vint)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
}
/* The same with 64-bit elements: a0 b0, and a1 b1. */
ALWAYS_INLINE vint vec_zip_lo64(vint a, vint b)
{
    return (vint)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
}
ALWAYS_INLINE vint vec_zip_hi64(vint a, vint b)
{
    return (vint)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
}

/* Dot products of weight codes with activations: each lane multiplies its four bytes of codes by
 * the same four activations (-127..127) and adds the products to its sum.
 *
 * VNNI multiplies unsigned codes and has room for every sum of a block. Codes that are signed by
 * nature are kept plus CODE_BIAS; who uses them adds -CODE_BIAS * sum(x) elsewhere. */
enum { CODE_BIAS = 128 };
ALWAYS_INLINE vint vec_dot_codes(vint sum, vint codes, vint x)
{
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}
ALWAYS_INLINE vint vec_dot_signed(vint sum, vint codes, vint x)
{
    return vec_dot_codes(sum, codes, x);
}
/* How many dots a sum holds for |codes| <= code_max before it must be added to a total. */
#define DOT_STEPS(code_max) ((void)(code_max), 8u)
/* total + sum * scale; the scale in the form vec_scale gave it. */
ALWAYS_INLINE vint vec_scale(vint scale)
{
    return scale;
}
ALWAYS_INLINE vint vec_add_scaled(vint total, vint sum, vint scale)
{
    return total + sum * scale;
}
ALWAYS_INLINE vint vec_add_sum(vint total, vint sum)
{
    return total + sum;
}
/* sum + a0 * b0 + a1 * b1 of the signed 16-bit halves of each lane. */
ALWAYS_INLINE vint vec_dot_pairs(vint sum, vint a, vint b)
{
    return (vint)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

#else /* AVX2 */

ALWAYS_INLINE vint vec_set1(uint32_t value)
{
    return (vint)_mm256_set1_epi32((int32_t)value);
}
ALWAYS_INLINE vfloat vec_set1_f(float value)
{
    return (vfloat)_mm256_set1_ps(value);
}
ALWAYS_INLINE vfloat vec_fma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
ALWAYS_INLINE vfloat vec_fnma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
ALWAYS_INLINE void vec_store_n(float *p, vfloat a, unsigned n)
{
    const vint index = {0, 1, 2, 3, 4, 5, 6, 7};
    _mm256_maskstore_ps(p, (__m256i)(index < vec_set1(n)), (__m256)a);
}
ALWAYS_INLINE vfloat vec_from_f16(vint a)
{
    const __m256i low = (__m256i)(a & 0xffff);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return (vfloat)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
ALWAYS_INLINE vfloat vec_load_f32(const void *p)
{
    return (vfloat)_mm256_loadu_ps(p);
}
ALWAYS_INLINE vfloat vec_load_f16(const void *p)
{
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(p));
}
ALWAYS_INLINE vfloat vec_load_bf16(const void *p)
{
    return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16);
}
ALWAYS_INLINE __m256 vec_fold_to_8(vfloat a)
{
    return (__m256)a;
}
ALWAYS_INLINE vint vec_table(const int8_t table[16])
{
    return (vint)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}
ALWAYS_INLINE vint vec_lookup(vint table, vint index)
{
    return (vint)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
}

ALWAYS_INLINE vint vec_load_parts(const uint8_t *p, size_t stride)
{
    const __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return (vint)_mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(p + stride)), 1);
}
ALWAYS_INLINE vint vec_zip_lo32(vint a, vint b)
{
    return (vint)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
}
ALWAYS_INLINE vint vec_zip_hi32(vint a, vint b)
{
    return (vint)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
}
ALWAYS_INLINE vint vec_zip_lo64(vint a, vint b)
{
    return (vint)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
}
ALWAYS_INLINE vint vec_zip_hi64(vint a, vint b)
{
    return (vint)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
}

/* A sum that is to be computed here: GCC turns chains of integer additions into trees otherwise,
 * whose operands do not fit into 16 registers; that cost a third of a product of many tokens. */
ALWAYS_INLINE vint in_order(vint sum)
{
    __asm__("" : "+x"(sum));
    return sum;
}

/* Without VNNI: vpmaddubsw adds products in 16 bits, where a few of them fit before one vpmaddwd
 * widens the sum and applies the scale, which is therefore held twice, in both halves of its lane.
 * Signed codes keep their sign: |code| times the activation with the sign of the code. */
enum { CODE_BIAS = 0 };
ALWAYS_INLINE vint vec_dot_codes(vint sum, vint codes, vint x)
{
    const __m256i products = _mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
    return in_order((vint)_mm256_add_epi16((__m256i)sum, products));
}
ALWAYS_INLINE vint vec_dot_signed(vint sum, vint codes, vint x)
{
    return vec_dot_codes(sum, (vint)_mm256_abs_epi8((__m256i)codes),
                         (vint)_mm256_sign_epi8((__m256i)x, (__m256i)codes));
}
#define DOT_STEPS(code_max) (32767u / (2u * 127u * (code_max)))
ALWAYS_INLINE vint vec_scale(vint scale)
{
    return (scale & 0xffff) | scale << 16;
}
ALWAYS_INLINE vint vec_add_scaled(vint total, vint sum, vint scale)
{
    return in_order(total + (vint)_mm256_madd_epi16((__m256i)sum, (__m256i)scale));
}
ALWAYS_INLINE vint vec_add_sum(vint total, vint sum)
{
    return vec_add_scaled(total, sum, (vint)_mm256_set1_epi16(1));
}
ALWAYS_INLINE vint vec_dot_pairs(vint sum, vint a, vint b)
{
    return sum + (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#endif

/* LANES rows of 16 bytes, stride apart, as four vectors: out[i] lane r = bytes 4i..4i+3 of row r.
 */
ALWAYS_INLINE void vec_load_rows(const uint8_t *p, size_t stride, vint out[4])
{
    const vint r0 = vec_load_parts(p, 4 * stride);
    const vint r1 = vec_load_parts(p + stride, 4 * stride);
    const vint r2 = vec_load_parts(p + 2 * stride, 4 * stride);
    const vint r3 = vec_load_parts(p + 3 * stride, 4 * stride);
    const vint lo01 = vec_zip_lo32(r0, r1), hi01 = vec_zip_hi32(r0, r1);
    const vint lo23 = vec_zip_lo32(r2, r3), hi23 = vec_zip_hi32(r2, r3);
    out[0] = vec_zip_lo64(lo01, lo23);
    out[1] = vec_zip_hi64(lo01, lo23);
    out[2] = vec_zip_lo64(hi01, hi23);
    out[3] = vec_zip_hi64(hi01, hi23);
}

#endif
#endif
