/* matmul: y[t][r] = W[r] . x[t], the definition.
 *
 * W  [n_row][n_col]  packed blocks, row-major, any alignment
 * x  [n_token]       rows as quantize_act made them for the type
 * y  [n_token]       f32, overwritten; aliases no input
 *
 * Order, type with superblocks of 256: in superblock b the products are summed in int32, exactly,
 *   with the integer scales applied; acc[b % 4] = fmaf(d_w * d_x, (float)isum, acc[b % 4]), then,
 *   if the type has minimums, acc[b % 4] = fmaf(-(dmin_w * d_x), (float)msum, acc[b % 4]);
 *   result (a0 + a1) + (a2 + a3).
 * Blocks of 32: acc[b % 8] = fmaf(d_w * d_x, (float)isum, acc[b % 8]), then, with a minimum,
 *   fmaf(m_w * d_x, (float)sum_q, ...); result ((a0+a4)+(a2+a6))+((a1+a5)+(a3+a7)).
 * Floats: lane i % 32 = fmaf(w[i], x[i], lane), in index order; halving tree.
 *
 * The "reference" arithmetic decodes weights of any type to F32 and uses the rule for floats. */
#include <math.h>

#include "kernels/ref/ref.h"
#include "kernels/ref/unpack.h"

static float dot_256(const uint8_t *row, const struct act_q8_k *x, uint32_t n_block,
                     size_t block_bytes, unpack_256_fn unpack, bool has_min)
{
    float acc[4] = {0};
    for (uint32_t b = 0; b < n_block; b++) {
        struct codes_256 c;
        unpack(row + b * block_bytes, &c);
        int32_t isum = 0, msum = 0;
        for (int i = 0; i < 256; i++)
            isum += c.scale[i / 16] * (c.q[i] * x[b].qs[i]);
        acc[b % 4] = fmaf(c.d * x[b].d, (float)isum, acc[b % 4]);
        if (!has_min) continue;
        for (int j = 0; j < 16; j++)
            msum += c.min[j] * x[b].bsums[j];
        acc[b % 4] = fmaf(-(c.dmin * x[b].d), (float)msum, acc[b % 4]);
    }
    return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}

static float dot_32(const uint8_t *row, const struct act_q8_0 *x, uint32_t n_block,
                    size_t block_bytes, unpack_32_fn unpack, bool has_min)
{
    float acc[8] = {0};
    for (uint32_t b = 0; b < n_block; b++) {
        struct codes_32 c;
        unpack(row + b * block_bytes, &c);
        const uint32_t j = b % 8; /* block within the activations' group of 256 */
        int32_t isum = 0;
        for (int i = 0; i < 32; i++)
            isum += c.q[i] * x[b / 8].qs[32 * j + i];
        acc[j] = fmaf(c.d * x[b / 8].d[j], (float)isum, acc[j]);
        if (has_min) acc[j] = fmaf(c.m * x[b / 8].d[j], (float)x[b / 8].sums[j], acc[j]);
    }
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
}

/* The rule for floats, over weights decoded 256 at a time. */
static float dot_decoded(const uint8_t *row, const float *x, uint32_t n_col, enum tensor_type type,
                         dequant_row_fn dequant)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    const size_t chunk_bytes = (size_t)256 / info->block_elems * info->block_bytes;
    float lane[32] = {0}, w[256];
    for (uint32_t begin = 0; begin < n_col; begin += 256, row += chunk_bytes) {
        const uint32_t n = n_col - begin < 256 ? n_col - begin : 256;
        dequant(row, n, w);
        for (uint32_t i = 0; i < n; i++)
            lane[i % 32] = fmaf(w[i], x[begin + i], lane[i % 32]);
    }
    return tree_32(lane);
}

#define FOR_EACH_RESULT(args, dot)                                                                 \
    for (uint32_t r = (args)->row_begin; r < (args)->row_end; r++) {                               \
        const uint8_t *row = (const uint8_t *)(args)->w + r * (args)->w_row_bytes;                 \
        for (uint32_t t = 0; t < (args)->n_token; t++)                                             \
            (args)->y[t][r] = dot;                                                                 \
    }

#define MATMUL(shape, type, has_min)                                                               \
    void ref_matmul_##type(const struct matmul_args *args)                                         \
    {                                                                                              \
        FOR_EACH_RESULT(args, dot_##shape(row, args->x[t], args->n_col / shape,                    \
                                          sizeof(struct block_##type), unpack_##type, has_min))    \
    }
MATMUL(256, q2_k, true)
MATMUL(256, q3_k, false)
MATMUL(256, q4_k, true)
MATMUL(256, q5_k, true)
MATMUL(256, q6_k, false)
MATMUL(256, iq4_xs, false)
MATMUL(32, q4_0, false)
MATMUL(32, q4_1, true)
MATMUL(32, q5_0, false)
MATMUL(32, q5_1, true)
MATMUL(32, q8_0, false)
MATMUL(32, iq4_nl, false)
MATMUL(32, mxfp4, false)

#define MATMUL_DECODED(type, TYPE)                                                                 \
    void ref_matmul_decoded_##type(const struct matmul_args *args)                                 \
    {                                                                                              \
        FOR_EACH_RESULT(args, dot_decoded(row, args->x[t], args->n_col, TYPE, ref_dequant_##type)) \
    }
REF_FOR_EACH_TYPE(MATMUL_DECODED)
