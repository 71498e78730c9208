/* Copies from device memory to shared memory that go on while the thread computes (cp.async). On
 * the host they happen at once.
 *
 *   copy_async_16(to, from); ...; copy_async_commit();   one group
 *   copy_async_wait<N>();                                all groups but the newest N have arrived,
 *                                                        this thread's; a barrier makes it all */
#ifndef LEAN_KERNELS_CUDA_COPY_ASYNC_CUH
#define LEAN_KERNELS_CUDA_COPY_ASYNC_CUH

#include "kernels/cuda/device.cuh"

#ifdef __CUDACC__
#include <cuda_pipeline_primitives.h>
#endif

/* 16 bytes, both sides aligned to them. */
DEVICE void copy_async_16(void *shared, const void *global)
{
#ifdef __CUDACC__
    __pipeline_memcpy_async(shared, global, 16);
#else
    *(uint4 *)shared = *(const uint4 *)global; /* and faults as the device, if not aligned */
#endif
}

DEVICE void copy_async_commit(void)
{
#ifdef __CUDACC__
    __pipeline_commit();
#endif
}

template <unsigned N_PENDING> DEVICE void copy_async_wait(void)
{
#ifdef __CUDACC__
    __pipeline_wait_prior(N_PENDING);
#endif
}

#endif
