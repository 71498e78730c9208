/* The scalar definitions, named: what kernels_init_ref and kernels_init_reference enter into a
 * table. Contracts are those of struct kernel_table (kernels.h). */
#ifndef LEAN_KERNELS_REF_REF_H
#define LEAN_KERNELS_REF_REF_H

#include "kernels/kernels.h"

/* X(name in lower case, enum tensor_type) */
#define REF_FOR_EACH_FLOAT_TYPE(X) X(f32, TENSOR_F32) X(f16, TENSOR_F16) X(bf16, TENSOR_BF16)
#define REF_FOR_EACH_256_TYPE(X)                                                                   \
    X(q2_k, TENSOR_Q2_K)                                                                           \
    X(q3_k, TENSOR_Q3_K)                                                                           \
    X(q4_k, TENSOR_Q4_K) X(q5_k, TENSOR_Q5_K) X(q6_k, TENSOR_Q6_K) X(iq4_xs, TENSOR_IQ4_XS)
#define REF_FOR_EACH_32_TYPE(X)                                                                    \
    X(q4_0, TENSOR_Q4_0)                                                                           \
    X(q4_1, TENSOR_Q4_1)                                                                           \
    X(q5_0, TENSOR_Q5_0)                                                                           \
    X(q5_1, TENSOR_Q5_1) X(q8_0, TENSOR_Q8_0) X(iq4_nl, TENSOR_IQ4_NL) X(mxfp4, TENSOR_MXFP4)
#define REF_FOR_EACH_TYPE(X)                                                                       \
    REF_FOR_EACH_FLOAT_TYPE(X) REF_FOR_EACH_256_TYPE(X) REF_FOR_EACH_32_TYPE(X)

#define REF_DECLARE_DEQUANT(type, TYPE)                                                            \
    void ref_dequant_##type(const void *row, uint32_t n_col, float *out);
REF_FOR_EACH_TYPE(REF_DECLARE_DEQUANT)

/* ref_matmul_decoded_TYPE for every type; the integer ref_matmul_TYPE for quantized ones. */
#define REF_DECLARE_DECODED(type, TYPE)                                                            \
    void ref_matmul_decoded_##type(const struct matmul_args *args);
REF_FOR_EACH_TYPE(REF_DECLARE_DECODED)
#define REF_DECLARE_MATMUL(type, TYPE) void ref_matmul_##type(const struct matmul_args *args);
REF_FOR_EACH_256_TYPE(REF_DECLARE_MATMUL)
REF_FOR_EACH_32_TYPE(REF_DECLARE_MATMUL)

bool ref_quantize_f32(const float *x, uint32_t n_col, void *out);
bool ref_quantize_q8_k(const float *x, uint32_t n_col, void *out);
bool ref_quantize_q8_0(const float *x, uint32_t n_col, void *out);

void ref_rms_norm(const float *x, const float *w, uint32_t n, float eps, float *y);
void ref_l2_norm(const float *x, uint32_t n, float eps, float *y);
void ref_swiglu(const float *gate, const float *up, uint32_t n, float *h);
void ref_add_scaled(float a, const float *x, uint32_t n, float *y);
void ref_add(const float *x, uint32_t n, float *y);
void ref_softmax(float *x, uint32_t n);
void ref_sigmoid(float *x, uint32_t n);

void ref_rope(float *x, const float *cos, const float *sin, uint32_t n_rot, bool adjacent);
void ref_encode_f32(const float *x, uint32_t n, void *row);
void ref_encode_f16(const float *x, uint32_t n, void *row);
void ref_encode_bf16(const float *x, uint32_t n, void *row);
void ref_encode_q8_0(const float *x, uint32_t n, void *row);
void ref_attend(const struct attend_args *args);
void ref_attend_merge(float *acc, const float *partial, uint32_t head_dim);
void ref_attend_finish(const float *acc, uint32_t head_dim, const float *gate, float *out);

void ref_conv_silu(const struct conv_args *args);
void ref_delta_gates(const float *alpha, const float *b, float a, float dt, uint32_t n,
                     float *decay, float *beta);
void ref_delta_rule(const struct delta_rule_args *args);

/* Sum of 32 lanes by halving: l and l + 16, then 8, 4, 2, 1. Destroys the lanes. */
static inline float tree_32(float lane[32])
{
    for (int half = 16; half; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

#endif
