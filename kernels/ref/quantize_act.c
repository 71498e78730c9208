/* Activations to the form a weight type wants. A row is quantized on its own, so its codes do not
 * depend on the batch. Where the inverse scale would overflow (largest magnitude under 3.8e-37)
 * the block is stored as zeros. */
#include <math.h>
#include <string.h>

#include "kernels/exact_math.h"
#include "kernels/ref/ref.h"
#include "proto/base/half.h"

static bool all_finite(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

bool ref_quantize_f32(const float *x, uint32_t n_col, void *out)
{
    memcpy(out, x, n_col * sizeof(float));
    return all_finite(x, n_col);
}

bool ref_quantize_q8_k(const float *x, uint32_t n_col, void *out)
{
    if (!all_finite(x, n_col)) return false;
    struct act_q8_k *block = out;
    for (uint32_t b = 0; b < n_col / QK; b++, block++, x += QK) {
        memset(block, 0, sizeof(*block));
        float largest = 0.0f; /* the first element of largest magnitude, with its sign */
        for (int i = 0; i < QK; i++)
            if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
        const float inverse = -127.0f / largest;
        if (!isfinite(inverse)) continue;
        for (int i = 0; i < QK; i++) {
            const int32_t q = exact_round(inverse * x[i]);
            block->qs[i] = (int8_t)(q < 127 ? q : 127);
            block->bsums[i / 16] = (int16_t)(block->bsums[i / 16] + block->qs[i]);
        }
        block->d = 1.0f / inverse;
    }
    return true;
}

bool ref_quantize_q8_0(const float *x, uint32_t n_col, void *out)
{
    if (!all_finite(x, n_col)) return false;
    memset(out, 0, act_row_bytes(ACT_Q8_0, n_col));
    bool finite = true;
    for (uint32_t b = 0; b < n_col / QK32; b++, x += QK32) {
        struct act_q8_0 *block = (struct act_q8_0 *)out + b / 8;
        float largest = 0.0f;
        for (int i = 0; i < QK32; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        const float inverse = 127.0f / largest;
        if (!isfinite(inverse)) continue;
        for (int i = 0; i < QK32; i++) {
            const int32_t q = exact_round(x[i] * inverse);
            block->qs[b % 8 * QK32 + i] = (int8_t)q;
            block->sums[b % 8] += q;
        }
        block->d[b % 8] = f32_from_f16(f16_from_f32(largest / 127.0f));
        finite = finite && isfinite(block->d[b % 8]);
    }
    return finite;
}
