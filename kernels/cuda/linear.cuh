/* What the operations around matrix products share on the host. */
#ifndef LEAN_KERNELS_CUDA_LINEAR_CUH
#define LEAN_KERNELS_CUDA_LINEAR_CUH

#include "kernels/cuda/backend_cuda.cuh"

/* y[t] = w . act[t] (+ bias) for more rows than a GEMV takes; act: [n_token] rows of the type's
 * form, in device memory. residual: [n_token][n_row], which is added to, and y unused; or NULL. */
void launch_gemm(struct cuda_backend *cuda, const struct weight *w, const uint8_t *act,
                 uint32_t n_token, const float *bias, float *y, size_t y_stride, float *residual);

/* The epilogue over whole rows, in place: y[n_token][y_stride] is RMSNormed if post_norm, then
 * added to the residual if there is one. Nothing is launched where there is neither. */
void finish_rows(struct cuda_backend *cuda, const struct epilogue *epilogue, uint32_t n_token,
                 uint32_t n, float *y, size_t y_stride);

#endif
