/* Loads to measure a device by; contracts in kernels/backend_cuda.h. */
#ifndef LEAN_KERNELS_CUDA_LOADS_CUH
#define LEAN_KERNELS_CUDA_LOADS_CUH

#include "kernels/cuda/backend_cuda.cuh"

void cuda_read(struct backend *backend, const void *memory, size_t n_bytes, void *sink);
uint64_t cuda_multiply(struct backend *backend, uint32_t n_round, void *sink);

#endif
