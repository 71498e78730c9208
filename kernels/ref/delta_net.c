/* The two sequential parts of a gated delta net: the causal convolution and the recurrence. Both
 * are always computed token by token, in prefill too. */
#include <math.h>

#include "kernels/exact_math.h"
#include "kernels/ref/ref.h"

void ref_conv_silu(const struct conv_args *args)
{
    for (uint32_t t = 0; t < args->n_token; t++)
        for (uint32_t c = args->channel_begin; c < args->channel_end; c++) {
            float sum = 0.0f;
            for (uint32_t j = 0; j < args->n_tap; j++)
                sum = fmaf(args->w[(size_t)c * args->n_tap + j], args->x[t + j][c], sum);
            args->y[t * args->y_stride + c] = exact_silu(sum);
        }
}

void ref_delta_gates(const float *alpha, const float *b, float a, float dt, uint32_t n,
                     float *decay, float *beta)
{
    for (uint32_t t = 0; t < n; t++) {
        decay[t] = exact_exp(a * exact_softplus(alpha[t] + dt));
        beta[t] = exact_sigmoid(b[t]);
    }
}

/* One row of the state, s [dim_k], through one token; returns the row's output. The decay is
 * applied to the row's inner product with k and again to each element, so that the two need not
 * wait for one another. */
static float delta_step(float *s, const float *q, const float *k, uint32_t dim_k, float v,
                        float decay, float beta, float scale)
{
    float lane[32] = {0};
    for (uint32_t i = 0; i < dim_k; i++)
        lane[i % 32] = fmaf(s[i], k[i], lane[i % 32]);
    const float u = beta * fmaf(-decay, tree_32(lane), v);
    for (uint32_t l = 0; l < 32; l++)
        lane[l] = 0.0f;
    for (uint32_t i = 0; i < dim_k; i++) {
        s[i] = fmaf(k[i], u, decay * s[i]);
        lane[i % 32] = fmaf(s[i], q[i], lane[i % 32]);
    }
    return tree_32(lane) * scale;
}

void ref_delta_rule(const struct delta_rule_args *args)
{
    for (uint32_t t = 0; t < args->n_token; t++)
        for (uint32_t r = args->row_begin; r < args->row_end; r++)
            args->o[t * args->o_stride + r] = delta_step(
                args->state + (size_t)r * args->dim_k, args->q + t * args->qk_stride,
                args->k + t * args->qk_stride, args->dim_k, args->v[t * args->v_stride + r],
                args->decay[t * args->gate_stride], args->beta[t * args->gate_stride], args->scale);
}
