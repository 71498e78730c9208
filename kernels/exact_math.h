/* Elementary functions with one result on every machine, for C and CUDA alike.
 *
 * A C library may round exp or tanh as it likes, so none is used: each function here is a fixed
 * sequence of IEEE operations, with fmaf where a fused multiply-add is meant. The binary32 ones
 * are branch-free, so that a compiler turns a loop over them into SIMD code with the same bits;
 * there is no second, hand-vectorized copy. Errors are a few units in the last place.
 *
 * The f64 functions make tables on the host (RoPE, log-softmax); their speed does not matter.
 *
 * Limits: results for NaN are NaN of some payload. exact_sin_f64 and exact_cos_f64: |x| < 2^26.
 * Source: minimax coefficients by our own Remez iteration, Taylor coefficients in double. */
#ifndef LEAN_KERNELS_EXACT_MATH_H
#define LEAN_KERNELS_EXACT_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define EXACT_FN static __host__ __device__ __forceinline__
#else
#define EXACT_FN static inline
#endif

EXACT_FN float exact_f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

EXACT_FN uint32_t exact_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

EXACT_FN double exact_f64_from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

EXACT_FN uint64_t exact_f64_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* The nearest integer, ties to even, for |x| <= 2^22: the sum's last bit is worth one. */
EXACT_FN int32_t exact_round(float x)
{
    return (int32_t)(exact_f32_bits(x + 0x1.8p23f) - 0x4b400000u);
}

/* e^x. Overflows to infinity above 88.73, to subnormals below -87.34, to zero below -103.98.
 * x = n ln2 + r, |r| <= ln2/2; e^r = 1 + r + r^2 Q(r); 2^n in two factors, since n runs from -151
 * to 129. */
EXACT_FN float exact_exp(float x)
{
    x = x > 89.0f ? 89.0f : x; /* a NaN passes both */
    x = x < -104.5f ? -104.5f : x;
    const float shifted = fmaf(x, 0x1.715476p+0f, 0x1.8p23f);
    const int32_t n = (int32_t)(exact_f32_bits(shifted) - 0x4b400000u);
    const float nf = shifted - 0x1.8p23f;
    float r = fmaf(nf, -0x1.62e4p-1f, x);
    r = fmaf(nf, -0x1.7f7d1cp-20f, r);
    float q = 0x1.6a2434p-10f;
    q = fmaf(q, r, 0x1.1239e2p-7f);
    q = fmaf(q, r, 0x1.5558f2p-5f);
    q = fmaf(q, r, 0x1.555492p-3f);
    q = fmaf(q, r, 0x1.fffffcp-2f);
    const float p = fmaf(r * r, q, r) + 1.0f;
    const int32_t half = n >> 1, rest = n - half; /* for a NaN arbitrary, and harmless */
    return p * exact_f32_from_bits((uint32_t)(half + 127) << 23) *
           exact_f32_from_bits((uint32_t)(rest + 127) << 23);
}

/* log(1 + x) for x > -1. 1 + x = 2^n (1 + f), 1/sqrt2 <= 1 + f < sqrt2; with s = f / (2 + f),
 * log(1 + f) = 2 atanh(s); what rounding 1 + x lost is given back relative to 1 + x. */
EXACT_FN float exact_log1p(float x)
{
    const float u = 1.0f + x;
    const float lost = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);
    const uint32_t bits = exact_f32_bits(u) + (0x3f800000u - 0x3f3504f3u);
    const int32_t n = (int32_t)(bits >> 23) - 127;
    const float m = exact_f32_from_bits((bits & 0x7fffffu) + 0x3f3504f3u);
    const float f = n ? m - 1.0f : x; /* n == 0: x itself, unrounded */
    const float correction = n ? lost / u : 0.0f;
    const float s = f / (2.0f + f), z = s * s;
    float q = 0x1.e2fdd2p-3f;
    q = fmaf(q, z, 0x1.2438a8p-2f);
    q = fmaf(q, z, 0x1.999a7cp-2f);
    q = fmaf(q, z, 0x1.555554p-1f);
    /* 2 atanh(s) = f - s f + s z q: the last two are small beside f. */
    const float log_f = f - s * fmaf(-z, q, f);
    return fmaf((float)n, 0x1.62e4p-1f, log_f + fmaf((float)n, 0x1.7f7d1cp-20f, correction));
}

/* 1 / (1 + e^-x) */
EXACT_FN float exact_sigmoid(float x)
{
    return 1.0f / (1.0f + exact_exp(-x));
}

/* x / (1 + e^-x) */
EXACT_FN float exact_silu(float x)
{
    return x / (1.0f + exact_exp(-x));
}

/* log(1 + e^x), and x itself above 20. */
EXACT_FN float exact_softplus(float x)
{
    return x > 20.0f ? x : exact_log1p(exact_exp(x));
}

/* tanh(x): odd polynomial up to 0.625, 1 - 2 / (e^2|x| + 1) beyond. */
EXACT_FN float exact_tanh(float x)
{
    const float z = x * x;
    float q = -0x1.76ac1cp-8f;
    q = fmaf(q, z, 0x1.5256d8p-6f);
    q = fmaf(q, z, -0x1.b84448p-5f);
    q = fmaf(q, z, 0x1.110768p-3f);
    q = fmaf(q, z, -0x1.555534p-2f);
    const float small = fmaf(x * z, q, x);
    const float magnitude = fabsf(x);
    const float large = 1.0f - 2.0f / (exact_exp(2.0f * magnitude) + 1.0f);
    return magnitude < 0.625f ? small : copysignf(large, x);
}

/* e^x in double, Taylor to degree 13. */
EXACT_FN double exact_exp_f64(double x)
{
    if (!(x == x)) return x;
    if (x > 710.0) x = 710.0;
    if (x < -746.0) x = -746.0;
    const double nf = fma(x, 0x1.71547652b82fep+0, 0x1.8p52) - 0x1.8p52;
    double r = fma(nf, -0x1.62e42feep-1, x);
    r = fma(nf, -0x1.a39ef35793c76p-33, r);
    double p = 1.0;
    for (int k = 13; k >= 1; k--)
        p = fma(p, r / k, 1.0);
    const int32_t n = (int32_t)nf, half = n >> 1;
    return p * exact_f64_from_bits((uint64_t)(half + 1023) << 52) *
           exact_f64_from_bits((uint64_t)(n - half + 1023) << 52);
}

/* log(x) in double for x > 0; minus infinity for 0, NaN below. */
EXACT_FN double exact_log_f64(double x)
{
    if (!(x > 0.0)) return x == 0.0 ? -INFINITY : NAN;
    if (x == INFINITY) return x;
    int32_t n = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        n = -54;
    }
    const uint64_t bits = exact_f64_bits(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    n += (int32_t)(bits >> 52) - 1023;
    const double f = exact_f64_from_bits((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
    const double s = f / (2.0 + f), z = s * s;
    double q = 0.0; /* 2 (z/3 + z^2/5 + ...) */
    for (int k = 25; k >= 3; k -= 2)
        q = fma(q, z, 2.0 / k);
    const double log_f = f - s * fma(-z, q, f);
    return fma((double)n, 0x1.62e42feep-1, fma((double)n, 0x1.a39ef35793c76p-33, log_f));
}

/* sin of quadrant * pi/2 + r for the reduced argument of x. */
EXACT_FN double exact_sin_quadrant(double x, int32_t quadrant)
{
    const double nf = fma(x, 0x1.45f306dc9c883p-1, 0x1.8p52) - 0x1.8p52;
    double r = fma(nf, -0x1.921fb5p+0, x);
    r = fma(nf, -0x1.110b46p-26, r);
    r = fma(nf, -0x1.1a62633145c07p-54, r);
    quadrant += (int32_t)((int64_t)nf & 3);
    const double z = r * r;
    double p = 1.0; /* sin: r (1 - z/(2*3) (1 - z/(4*5) ...)), cos: 1 - z/(1*2) (1 - z/(3*4) ...) */
    const int odd = quadrant & 1;
    for (int k = odd ? 17 : 18; k >= 2; k -= 2)
        p = fma(p, -z / (double)(k * (k + 1)), 1.0);
    if (odd) p = fma(p, -z / 2.0, 1.0);
    const double value = odd ? p : r * p;
    return quadrant & 2 ? -value : value;
}

EXACT_FN double exact_sin_f64(double x)
{
    return exact_sin_quadrant(x, 0);
}

EXACT_FN double exact_cos_f64(double x)
{
    return exact_sin_quadrant(x, 1);
}

#endif
