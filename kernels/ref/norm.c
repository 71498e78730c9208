/* Normalization and the activation function of the feed-forward part. */
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

void ref_swiglu(const float *gate, const float *up, uint32_t n, float *h)
{
    for (uint32_t i = 0; i < n; i++)
        h[i] = exact_silu(gate[i]) * up[i];
}
