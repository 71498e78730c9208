/* The CUDA backend's inside: what its operations share. Each operation is a file of this folder
 * and implements one member of struct backend_ops for arguments in device memory.
 *
 * Work is not started call by call. An operation appends launches to the step's list; `flush` (by
 * sync, download, start, mark, await, and when the list is full) hands the whole list to the GPU. A
 * list that equals an earlier one, launch by launch and argument by argument, replays that one's
 * CUDA graph; so what changes from token to token must not be in a kernel's arguments but in staged
 * memory:
 *
 *   args        sizes, device pointers, scales: constant for a shape of the batch
 *   staged      token positions, rows to gather, block tables: copied to the device in one piece
 *               before the list runs; the n-th staged piece of equal lists has the same address
 *   scratch     between the launches of one operation; the next operation reuses it
 *
 * Growth of a sequence may change a grid (blocks of the context): then the list differs, and is
 * recorded anew; keep such sizes rounded up so that this is rare.
 *
 * Errors:  an operation that cannot get scratch, or meets a NaN or an infinity where the CPU
 * backend reports one, notes it: fail(), or NOT_FINITE in the kernel. sync reports and clears it.
 * Threads: one caller at a time. */
#ifndef LEAN_KERNELS_CUDA_BACKEND_CUDA_CUH
#define LEAN_KERNELS_CUDA_BACKEND_CUDA_CUH

#include <stddef.h>
#include <string.h>
#include <type_traits>

extern "C" {
#include "kernels/backend.h"
#include "kernels/kernels.h"
}
#include "kernels/cuda/device.cuh"

struct cuda_backend; /* backend_cuda.cu; begins with struct backend */

/* Device memory for this operation alone, 256-byte aligned, not cleared; several calls give
 * several pieces. NULL: no memory, noted. */
void *scratch(struct cuda_backend *cuda, size_t n_bytes);
/* Host memory to be filled in before the operation ends; *device is where its copy will be, valid
 * for this operation. NULL: no memory, noted. */
void *stage_room(struct cuda_backend *cuda, size_t n_bytes, const void **device);
/* The device's copy of host data, which may change after the call. Otherwise as stage_room. */
const void *stage(struct cuda_backend *cuda, const void *host, size_t n_bytes);
/* Where kernels note a value that is not finite: *flag = where + 1 (any one of them wins). where:
 * index of a name of not_finite_names. */
int32_t *not_finite_flag(struct cuda_backend *cuda);
enum not_finite_where {
    NOT_FINITE_LINEAR,
    NOT_FINITE_ATTENTION,
    NOT_FINITE_DELTA_NET,
    NOT_FINITE_ROUTE,
    NOT_FINITE_FFN,
    NOT_FINITE_FFN_HIDDEN
};
/* Notes an error of the host's side for sync. */
void fail(struct cuda_backend *cuda, const char *what);
/* The first error of a call of CUDA is kept for sync. false: it was one. */
bool check(struct cuda_backend *cuda, cudaError_t code, const char *call);
#define CUDA_CHECK(cuda, call) check(cuda, call, #call)
/* The stream of the operations; all that were called so far are begun. The device becomes that of
 * the calling thread. */
cudaStream_t operations_stream(struct cuda_backend *cuda);
/* Multiprocessors of the device, for persistent grids. */
uint32_t n_multiprocessor(const struct cuda_backend *cuda);

/* Appends a launch. args: [args_bytes], plain and without padding that is not zeroed. */
void launch_raw(struct cuda_backend *cuda, const void *kernel, dim3 grid, dim3 block,
                size_t shared_bytes, const void *args, size_t args_bytes);

template <class Args>
static inline void launch(struct cuda_backend *cuda, void (*kernel)(Args), dim3 grid, dim3 block,
                          size_t shared_bytes, const Args &args)
{
    static_assert(std::is_trivially_copyable<Args>::value, "arguments are compared as bytes");
    register_kernel(kernel);
    launch_raw(cuda, reinterpret_cast<const void *>(kernel), grid, block, shared_bytes, &args,
               sizeof(args));
}

/* Appends a call of a library, which puts its work onto the stream when its turn comes. Lists with
 * such calls are not made graphs: those of prompts, long enough to hide what a launch takes. */
void call_later(struct cuda_backend *cuda, cudaError_t (*call)(cudaStream_t, const void *args),
                const void *args, size_t args_bytes);

/* Of the FAST mode (fast_linear.cuh); NULL: EXACT. */
struct cublas *cublas_of(const struct cuda_backend *cuda);

/* Whether the device can run what this plugin holds: cudaErrorNoKernelImageForDevice or
 * cudaErrorInvalidDeviceFunction if it was compiled for others only. rows.cu */
cudaError_t cuda_probe_rows(void);

/* A stream beside the operations: proto/base/device_stream.h. device_stream.cu */
struct device_stream;
enum lm_status side_stream_create(struct device_stream **out, struct cuda_backend *cuda,
                                  struct lm_error *err);
void side_stream_destroy(struct device_stream *stream); /* NULL is legal */

/* ---- the operations; contracts in kernels/backend.h ---- */

void cuda_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                uint32_t n_token, float scale, float *x); /* rows.cu */
void cuda_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                   uint32_t n_token, uint32_t n, float *y); /* rows.cu */
void cuda_gather(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                 uint32_t n, float *y); /* rows.cu */
void cuda_copy_rows(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                    uint32_t n, float *y);                                           /* rows.cu */
void cuda_copy(struct backend *backend, void *to, const void *from, size_t n_bytes); /* rows.cu */
void cuda_linear(struct backend *backend, const struct linear_args *args);           /* linear.cu */
void cuda_attention(struct backend *backend, const struct attention_args *args); /* attention.cu */
void cuda_delta_net(struct backend *backend, const struct delta_net_args *args); /* delta_net.cu */
void cuda_route(struct backend *backend, const struct route_args *args);         /* route.cu */
void cuda_ffn(struct backend *backend, const struct ffn_args *args);             /* ffn.cu */
void cuda_ffn_experts(struct backend *backend, const struct ffn_args *args, const bool *selected);
void cuda_ffn_finish(struct backend *backend, const struct ffn_args *args);
void cuda_gather_experts(struct backend *backend,
                         const struct expert_gather_args *args); /* gather_experts.cu */

#endif
