/* Products with many rows in the FAST mode: weights decoded to BF16 a tile at a time, activations
 * rounded to BF16, cuBLAS with sums in F32.
 *
 * BF16, not F16, since nothing can overflow: a scale times a code may exceed 65504, and so do
 * activations of real models between gate and down. What it costs: each product is off by at most
 * 2^-7 of itself (two roundings of 2^-8), while EXACT rounds activations to eight bits, off by up
 * to 2^-8 of the largest of their block. Weights of F32 stay EXACT: they are few, and were kept in
 * F32 for a reason. */
#ifndef LEAN_KERNELS_CUDA_FAST_LINEAR_CUH
#define LEAN_KERNELS_CUDA_FAST_LINEAR_CUH

#include "kernels/cuda/backend_cuda.cuh"

/* Fewer rows go the EXACT way: decoding writes and reads two bytes for each weight, which only many
 * rows repay. */
enum { FAST_ROWS_MIN = 64 };

/* Whether n_token rows times such weights go this way. Routed experts never do: how many rows an
 * expert gets is known to the device alone, and few get as many as decoding takes to pay. */
bool fast_takes(const struct cuda_backend *cuda, enum tensor_type type, uint32_t n_token);

/* Rows of activations, ready to be multiplied, and room for a tile of weights. */
struct fast_rows {
    uint16_t *x;    /* [n_token][n_col] of BF16 */
    uint16_t *tile; /* room for weights, of any rows: used by one product after the other */
    uint32_t n_token, n_col;
};

/* x[n_token][n_col], RMSNormed first unless norm is NULL, to scratch. false: no memory, noted. */
bool fast_prepare(struct cuda_backend *cuda, enum not_finite_where where, const float *x,
                  uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                  struct fast_rows *out);

/* The rows between gate and up, [n_token][n_ff] each, and down: silu(gate) * up. tile: of rows that
 * are multiplied no more. As fast_prepare. */
bool fast_swiglu(struct cuda_backend *cuda, const float *gate, const float *up, uint32_t n_token,
                 uint32_t n_ff, uint16_t *tile, struct fast_rows *out);

/* y[t] = w . x[t] (+ bias). residual: [n_token][n_row], which is added to, and y unused; or NULL.
 */
void fast_multiply(struct cuda_backend *cuda, const struct weight *w, const struct fast_rows *rows,
                   const float *bias, float *y, size_t y_stride, float *residual);

#endif
