/* cuBLAS: matrix products of the FAST mode. Opened when a backend is made, never linked to: half a
 * gigabyte that no other run needs, and that may be missing.
 *
 * It is given the stream and a workspace of its own once, so that it allocates nothing later, and
 * that equal calls in equal order have equal results. A product is one entry of the list of
 * launches (graph_cache.cuh), put onto the stream when its turn comes.
 *
 * Threads: as the backend's. */
#ifndef LEAN_KERNELS_CUDA_CUBLAS_CUH
#define LEAN_KERNELS_CUDA_CUBLAS_CUH

#include "kernels/cuda/backend_cuda.cuh"

struct cublas;

/* LM_E_UNSUPPORTED: it is not there, with a hint how to get it. LM_E_FAIL: it refused.
 * LM_E_NO_MEM. */
enum lm_status cublas_open(struct cublas **out, cudaStream_t stream, struct lm_error *err);
void cublas_close(struct cublas *cublas); /* legal of NULL */

/* y[t][r] (+)= sum over k of w[r][k] * x[t][k]: w [n_row][w_stride] and x [n_token][n_col] of BF16,
 * y [n_token][y_stride] of F32; sums in F32, of no particular order. */
struct cublas_product {
    struct cuda_backend *cuda;
    const uint16_t *w, *x;
    float *y;
    uint64_t y_stride;
    uint32_t n_row, n_col, n_token, w_stride;
    uint32_t add; /* to what y holds */
    uint32_t unused;
};
void cublas_multiply(struct cuda_backend *cuda, const struct cublas_product *product);

#endif
