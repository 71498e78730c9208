/* Exponentials for probabilities: fast over a whole vocabulary, the same bits everywhere.
 *
 * exact_math.h has e^x in double too, for tables made once. A sampler needs it for 250 thousand
 * logits per token, so this one has no branch, no division and no fused multiply-add (a library
 * call where the instruction is missing): a compiler turns a loop over it into SIMD code.
 *
 * Relative error under 2^-51. Source: Taylor to degree 13 after reduction by ln2. */
#ifndef LEAN_WORKER_SAMPLING_SOFTMAX_H
#define LEAN_WORKER_SAMPLING_SOFTMAX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* e^x for x <= 0; from -708 down zero, minus infinity included. */
static inline double softmax_exp(double x)
{
    const double shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52; /* low bits: n */
    const double n = shifted - 0x1.8p52;
    const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t scale, bits;
    memcpy(&scale, &shifted, sizeof(scale));
    memcpy(&bits, &p, sizeof(bits));
    /* A mask and no choice: a choice between floats would stay a branch. */
    bits = (bits + (scale << 52)) & -(uint64_t)(x > -708.0);
    memcpy(&p, &bits, sizeof(p));
    return p;
}

/* Sum over i of e^((x[i] - max) * scale): element i into accumulator i % 8 in rising order, then
 * the tree over 8 of kernels/NUMERICS.md. max is the largest x, scale > 0. */
double softmax_sum(const float *x, size_t n, float max, double scale);

#endif
