/* Weights to F32, one row. Order of roundings: (d * scale) * q - (dmin * min) with each product
 * and the difference rounded; d * q + m likewise. The same values as ggml's decoder gives. */
#include <string.h>

#include "kernels/ref/ref.h"
#include "kernels/ref/unpack.h"
#include "proto/base/half.h"

static void dequant_256(const uint8_t *row, uint32_t n_col, size_t block_bytes,
                        unpack_256_fn unpack, bool has_min, float *out)
{
    for (uint32_t b = 0; b < n_col / 256; b++) {
        struct codes_256 c;
        unpack(row + b * block_bytes, &c);
        for (int i = 0; i < 256; i++) {
            const float value = c.d * (float)c.scale[i / 16] * (float)c.q[i];
            out[b * 256 + i] = has_min ? value - c.dmin * (float)c.min[i / 16] : value;
        }
    }
}

static void dequant_32(const uint8_t *row, uint32_t n_col, size_t block_bytes, unpack_32_fn unpack,
                       bool has_min, float *out)
{
    for (uint32_t b = 0; b < n_col / 32; b++) {
        struct codes_32 c;
        unpack(row + b * block_bytes, &c);
        for (int i = 0; i < 32; i++) {
            const float value = c.d * (float)c.q[i];
            out[b * 32 + i] = has_min ? value + c.m : value;
        }
    }
}

void ref_dequant_f32(const void *row, uint32_t n_col, float *out)
{
    memcpy(out, row, n_col * sizeof(float));
}

void ref_dequant_f16(const void *row, uint32_t n_col, float *out)
{
    const uint8_t *bytes = row;
    for (uint32_t i = 0; i < n_col; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, 2);
        out[i] = f32_from_f16(half);
    }
}

void ref_dequant_bf16(const void *row, uint32_t n_col, float *out)
{
    const uint8_t *bytes = row;
    for (uint32_t i = 0; i < n_col; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, 2);
        out[i] = f32_from_bf16(half);
    }
}

#define DEQUANT(shape, type, has_min)                                                              \
    void ref_dequant_##type(const void *row, uint32_t n_col, float *out)                           \
    {                                                                                              \
        dequant_##shape(row, n_col, sizeof(struct block_##type), unpack_##type, has_min, out);     \
    }
DEQUANT(256, q2_k, true)
DEQUANT(256, q3_k, false)
DEQUANT(256, q4_k, true)
DEQUANT(256, q5_k, true)
DEQUANT(256, q6_k, false)
DEQUANT(256, iq4_xs, false)
DEQUANT(32, q4_0, false)
DEQUANT(32, q4_1, true)
DEQUANT(32, q5_0, false)
DEQUANT(32, q5_1, true)
DEQUANT(32, q8_0, false)
DEQUANT(32, iq4_nl, false)
DEQUANT(32, mxfp4, false)
