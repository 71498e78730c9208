/* Rotary embedding, the rows of the KV cache, and attention over one block of it.
 *
 * A cached value is what its row decodes to, exactly: F32, F16 and BF16 widen, and the product
 * d * q of Q8_0 fits a float. So every type goes through the same F32 arithmetic.
 *
 * Order in a block: the dot product of a score uses the 32 lanes over the dimension; the sum of
 * exponentials the 32 lanes over the key's index in the block; each dimension of the weighted sum
 * is fmaf in key order from +0. Keys out of sight are skipped. */
#include <math.h>
#include <string.h>

#include "kernels/exact_math.h"
#include "kernels/ref/ref.h"
#include "proto/base/half.h"

void ref_rope(float *x, const float *cos, const float *sin, uint32_t n_rot, bool adjacent)
{
    const uint32_t half = n_rot / 2;
    for (uint32_t i = 0; i < half; i++) {
        float *a = adjacent ? &x[2 * i] : &x[i];
        float *b = adjacent ? &x[2 * i + 1] : &x[i + half];
        const float rotated = fmaf(*a, cos[i], -(*b * sin[i]));
        *b = fmaf(*a, sin[i], *b * cos[i]);
        *a = rotated;
    }
}

void ref_encode_f32(const float *x, uint32_t n, void *row)
{
    memcpy(row, x, n * sizeof(float));
}

void ref_encode_f16(const float *x, uint32_t n, void *row)
{
    uint16_t *half = row;
    for (uint32_t i = 0; i < n; i++)
        half[i] = f16_from_f32(x[i]);
}

void ref_encode_bf16(const float *x, uint32_t n, void *row)
{
    uint16_t *half = row;
    for (uint32_t i = 0; i < n; i++)
        half[i] = bf16_from_f32(x[i]);
}

/* The rule of the activations (quantize_act.c) in the layout of the weights. A NaN or infinity
 * gives a block of infinite scale, so that it stays visible. */
void ref_encode_q8_0(const float *x, uint32_t n, void *row)
{
    struct block_q8_0 *block = row;
    for (uint32_t b = 0; b < n / 32; b++, block++, x += 32) {
        float largest = 0.0f;
        bool finite = true;
        for (int i = 0; i < 32; i++) {
            largest = fmaxf(largest, fabsf(x[i]));
            finite = finite && isfinite(x[i]);
        }
        const float inverse = finite ? 127.0f / largest : INFINITY;
        memset(block, 0, sizeof(*block));
        if (!finite) block->d = 0x7c00;
        if (!isfinite(inverse)) continue;
        block->d = f16_from_f32(largest / 127.0f);
        for (int i = 0; i < 32; i++)
            block->qs[i] = (int8_t)exact_round(x[i] * inverse);
    }
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float lane[32] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % 32] = fmaf(a[i], b[i], lane[i % 32]);
    return tree_32(lane);
}

static void attend_one(const float *q, const float *k, const float *v, uint32_t head_dim,
                       uint32_t begin, uint32_t end, float scale, float *partial)
{
    float score[ATTEND_BLOCK], lane[32] = {0};
    float max = -INFINITY;
    for (uint32_t j = begin; j < end; j++) {
        score[j] = dot(q, k + j * head_dim, head_dim) * scale;
        max = score[j] > max ? score[j] : max;
    }
    for (uint32_t i = 0; i < head_dim; i++)
        partial[i] = 0.0f;
    for (uint32_t j = begin; j < end; j++) {
        const float weight = exact_exp(score[j] - max);
        lane[j % 32] += weight;
        for (uint32_t i = 0; i < head_dim; i++)
            partial[i] = fmaf(weight, v[j * head_dim + i], partial[i]);
    }
    partial[head_dim] = max + 0.0f; /* never -0 */
    partial[head_dim + 1] = tree_32(lane);
}

void ref_attend(const struct attend_args *args)
{
    dequant_row_fn decode = NULL;
    if (args->kv_type == TENSOR_F32) decode = ref_dequant_f32;
    if (args->kv_type == TENSOR_F16) decode = ref_dequant_f16;
    if (args->kv_type == TENSOR_BF16) decode = ref_dequant_bf16;
    if (args->kv_type == TENSOR_Q8_0) decode = ref_dequant_q8_0;
    uint32_t begin = ATTEND_BLOCK, end = 0;
    for (uint32_t i = 0; i < args->n_query; i++) {
        begin = args->begin[i] < begin ? args->begin[i] : begin;
        end = args->end[i] > end ? args->end[i] : end;
    }
    const size_t row_bytes = tensor_row_bytes(args->kv_type, args->head_dim);
    float *k = args->scratch, *v = k + ATTEND_BLOCK * (size_t)args->head_dim;
    for (uint32_t j = begin; j < end; j++) {
        decode((const uint8_t *)args->k + j * row_bytes, args->head_dim, k + j * args->head_dim);
        decode((const uint8_t *)args->v + j * row_bytes, args->head_dim, v + j * args->head_dim);
    }
    for (uint32_t i = 0; i < args->n_query; i++)
        attend_one(args->q[i], k, v, args->head_dim, args->begin[i], args->end[i], args->scale,
                   args->partial[i]);
}

void ref_attend_merge(float *acc, const float *partial, uint32_t head_dim)
{
    const float max_acc = acc[head_dim], max_partial = partial[head_dim];
    const float max = max_acc > max_partial ? max_acc : max_partial;
    const float a = exact_exp(max_acc - max), b = exact_exp(max_partial - max);
    for (uint32_t i = 0; i < head_dim; i++)
        acc[i] = fmaf(partial[i], b, acc[i] * a);
    acc[head_dim] = max;
    acc[head_dim + 1] = fmaf(partial[head_dim + 1], b, acc[head_dim + 1] * a);
}

void ref_attend_finish(const float *acc, uint32_t head_dim, const float *gate, float *out)
{
    const float inverse = 1.0f / acc[head_dim + 1];
    for (uint32_t i = 0; i < head_dim; i++) {
        const float value = acc[i] * inverse;
        out[i] = gate ? value * exact_sigmoid(gate[i]) : value;
    }
}
