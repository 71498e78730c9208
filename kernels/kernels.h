/* The table of leaf kernels: one pointer per operation, one table per variant.
 *
 * A leaf kernel runs on one thread, on memory it is handed; it allocates nothing, fails never and
 * keeps no state. kernels/ref defines each operation; every other variant gives the same bits
 * (kernels/NUMERICS.md is the law, tests/kernels compares by memcmp). kernels/cpu spreads them
 * over threads.
 *
 * Variants: "ref", "avx2" (AVX2 + FMA + F16C), "avx512" (F, BW, DQ, VL, VBMI, VNNI), and
 * "reference", not an ISA but another arithmetic: weights decoded to F32, activations F32, for
 * comparison with other programs (`lean eval --reference`). */
#ifndef LEAN_KERNELS_KERNELS_H
#define LEAN_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/quant_blocks.h"
#include "proto/base/tensor_type.h"

/* How a weight type wants its activations. */
enum act_type { ACT_F32, ACT_Q8_K, ACT_Q8_0, ACT_TYPE_COUNT };

/* Bytes of one activation row of n_col columns in a type, a multiple of 64. */
size_t act_row_bytes(enum act_type type, uint32_t n_col);

/* y[t][r] = W[r] . x[t] for r in [row_begin, row_end) and t in [0, n_token).
 *
 * Rows of activations and results are reached through pointers, so that a caller gathers and
 * scatters for free. Any n_token gives the same bits; large ones are tiled inside. */
struct matmul_args {
    const void *w;      /* row 0 of the matrix, packed blocks, any alignment */
    size_t w_row_bytes; /* distance between rows */
    uint32_t n_col;     /* a multiple of the type's block */
    uint32_t row_begin, row_end;
    uint32_t n_token;     /* >= 1 */
    const void *const *x; /* [n_token] rows of act_type[type], 64-byte aligned */
    float *const *y;      /* [n_token] results, indexed by the absolute row r */
};
typedef void (*matmul_fn)(const struct matmul_args *args);

/* Quantizes (ACT_F32: copies) one row. x: [n_col]; out: act_row_bytes, 64-byte aligned.
 * false: the row holds a NaN or an infinity; out is then undefined. */
typedef bool (*quantize_act_fn)(const float *x, uint32_t n_col, void *out);

/* Decodes one row of n_col weights. */
typedef void (*dequant_row_fn)(const void *row, uint32_t n_col, float *out);

/* Attention of queries over one block of one head's keys and values, not yet normalized.
 *
 * A partial is [head_dim + 2] floats: sum of e^(score - max) * v, then max, then the sum of
 * e^(score - max). score = (q . k) * scale. */
enum { ATTEND_BLOCK = 128 };
struct attend_args {
    enum tensor_type kv_type;
    uint32_t head_dim;
    const void *k, *v; /* [ATTEND_BLOCK][head_dim], packed rows of kv_type */
    uint32_t n_query;
    const float *const *q;       /* [n_query] -> [head_dim], normed and rotated */
    const uint32_t *begin, *end; /* [n_query]: the visible keys; begin < end <= ATTEND_BLOCK */
    float scale;
    float *const *partial; /* [n_query] -> [head_dim + 2], overwritten */
    float *scratch;        /* [2 * ATTEND_BLOCK * head_dim], 64-byte aligned */
};

/* Causal convolution along the tokens of one sequence, then SiLU:
 * y[t][c] = silu(sum over j of w[c][j] * x[t + j][c]). */
struct conv_args {
    uint32_t n_token, n_tap;
    uint32_t channel_begin, channel_end;
    const float *w;        /* [channel][n_tap], tap 0 the oldest */
    const float *const *x; /* [n_token + n_tap - 1] rows, oldest first, indexed by channel */
    float *y;              /* [n_token][y_stride], indexed by channel */
    size_t y_stride;
};

/* Gated delta rule for one value head, token after token:
 * u = beta[t] * (v[t] - decay[t] * S k[t]); S = decay[t] * S + u k[t]^T; o[t] = scale * S q[t]. */
struct delta_rule_args {
    uint32_t n_token, dim_k;
    uint32_t row_begin, row_end; /* of dim_v: rows are independent of each other */
    const float *q, *k;          /* [n_token][qk_stride], dim_k of each used, normed */
    size_t qk_stride;
    const float *v; /* [n_token][v_stride], indexed by row */
    size_t v_stride;
    const float *decay, *beta; /* [n_token][gate_stride] */
    size_t gate_stride;
    float scale;
    float *state; /* [dim_v][dim_k], updated */
    float *o;     /* [n_token][o_stride], indexed by row */
    size_t o_stride;
};

struct kernel_table {
    const char *name;
    enum act_type act_type[TENSOR_TYPE_COUNT];
    quantize_act_fn quantize_act[ACT_TYPE_COUNT];
    matmul_fn matmul[TENSOR_TYPE_COUNT]; /* NULL: the type is not computable */
    dequant_row_fn dequant_row[TENSOR_TYPE_COUNT];

    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]; x and y may be the same. */
    void (*rms_norm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    /* y[i] = x[i] / sqrt(sum(x^2) + eps); x and y may be the same. */
    void (*l2_norm)(const float *x, uint32_t n, float eps, float *y);
    /* h[i] = silu(gate[i]) * up[i]; h may be gate or up. */
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *h);
    /* y[i] = fmaf(a, x[i], y[i]) */
    void (*add_scaled)(float a, const float *x, uint32_t n, float *y);
    /* y[i] += x[i] */
    void (*add)(const float *x, uint32_t n, float *y);
    /* x[i] = e^(x[i] - max) / sum */
    void (*softmax)(float *x, uint32_t n);
    /* x[i] = 1 / (1 + e^-x[i]) */
    void (*sigmoid)(float *x, uint32_t n);
    /* Rotates the first n_rot of a head's dimensions by the angles of one position; pairs are
     * (2i, 2i+1) if adjacent, else (i, i + n_rot/2). cos, sin: [n_rot / 2]. */
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t n_rot, bool adjacent);

    /* One row of a KV cache; the way back is dequant_row. NULL: the type holds no cache. */
    void (*encode_row[TENSOR_TYPE_COUNT])(const float *x, uint32_t n, void *row);
    void (*attend)(const struct attend_args *args);
    /* Joins the partial of the next block to those before it; acc is in the form of a partial. */
    void (*attend_merge)(float *acc, const float *partial, uint32_t head_dim);
    /* out[i] = acc[i] / sum (* sigmoid(gate[i]) unless gate is NULL); out is not acc. */
    void (*attend_finish)(const float *acc, uint32_t head_dim, const float *gate, float *out);

    void (*conv_silu)(const struct conv_args *args);
    /* One head, n tokens: decay[t] = e^(a * softplus(alpha[t] + dt)), beta[t] = sigmoid(b[t]). */
    void (*delta_gates)(const float *alpha, const float *b, float a, float dt, uint32_t n,
                        float *decay, float *beta);
    void (*delta_rule)(const struct delta_rule_args *args);
};

/* Router's choice: the n_used experts of highest score (probability + bias, bias may be NULL) in
 * falling order, ties to the lower id; weights are their probabilities, if normalize divided by
 * max(sum, 2^-14), then multiplied by scale unless that is 0 or 1. */
void kernels_select_experts(const float *probability, const float *bias, uint32_t n_expert,
                            uint32_t n_used, bool normalize, float scale, int32_t *ids,
                            float *weights);

/* The best table for this CPU, or the named one ("auto", "ref", "avx2", "avx512", "reference").
 * NULL: unknown name, or the CPU lacks what the variant needs. Static storage. */
const struct kernel_table *kernels_select(const char *name);

/* Names of all variants that this CPU runs, best last; NULL-terminated. */
const char *const *kernels_available(void);

/* Each variant starts as a copy of the weaker one and overwrites what it does better.
 * Called once by kernels_select. */
void kernels_init_ref(struct kernel_table *table);
void kernels_init_reference(struct kernel_table *table);
void kernels_init_matmul_avx2(struct kernel_table *table);
void kernels_init_matmul_avx512(struct kernel_table *table);
void kernels_init_ops_avx2(struct kernel_table *table);
void kernels_init_ops_avx512(struct kernel_table *table);

#endif
