/* Normalizations and the element-wise operations between the matrix products. */
#include <math.h>

#include "kernels/exact_math.h"
#include "kernels/ref/ref.h"

static float sum_of_squares(const float *x, uint32_t n)
{
    float lane[32] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % 32] = fmaf(x[i], x[i], lane[i % 32]);
    return tree_32(lane);
}

void ref_rms_norm(const float *x, const float *w, uint32_t n, float eps, float *y)
{
    const float scale = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

void ref_l2_norm(const float *x, uint32_t n, float eps, float *y)
{
    const float scale = 1.0f / sqrtf(sum_of_squares(x, n) + eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale;
}

void ref_swiglu(const float *gate, const float *up, uint32_t n, float *h)
{
    for (uint32_t i = 0; i < n; i++)
        h[i] = exact_silu(gate[i]) * up[i];
}

void ref_add_scaled(float a, const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

void ref_add(const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

void ref_softmax(float *x, uint32_t n)
{
    float max = x[0], lane[32] = {0};
    for (uint32_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = exact_exp(x[i] - max);
        lane[i % 32] += x[i];
    }
    const float sum = tree_32(lane);
    for (uint32_t i = 0; i < n; i++)
        x[i] /= sum;
}

void ref_sigmoid(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = exact_sigmoid(x[i]);
}
