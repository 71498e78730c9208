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

struct kernel_table {
    const char *name;
    enum act_type act_type[TENSOR_TYPE_COUNT];
    quantize_act_fn quantize_act[ACT_TYPE_COUNT];
    matmul_fn matmul[TENSOR_TYPE_COUNT]; /* NULL: the type is not computable */
    dequant_row_fn dequant_row[TENSOR_TYPE_COUNT];

    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]; x and y may be the same. */
    void (*rms_norm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    /* h[i] = silu(gate[i]) * up[i]; h may be gate. */
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *h);
    /* The others (rope, attention block, delta rule, conv, softmax, ...) follow as the owner of
     * kernels/ref writes them. */
};

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
