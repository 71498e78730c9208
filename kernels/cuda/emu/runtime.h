/* The part of the CUDA runtime that the host side of kernels/cuda uses, emulated.
 *
 * Work on a stream is put off for as long as CUDA allows: until somebody waits for the stream or
 * for an event behind it. So host code that reads too early, or overwrites what a copy has yet to
 * read, gets it wrong here every time. Or time is simulated: emu/schedule.h. Only a stream that
 * calls functions of the host has a thread of its own, and begins at once: they wait for somebody
 * else, who may wait for this device.
 *
 * Kernels read the host's memory where it is pinned; a load of weights (ptx.cuh) from other memory
 * of the host is reported, and the launch fails.
 *
 * Settings for tests, read when devices are counted (cudaGetDeviceCount), which also brings lost
 * ones back:
 *
 *   LEAN_EMU_ORDER     forward, reverse or random: which fiber runs first
 *   LEAN_EMU_VRAM      bytes of a device (default 1 GiB)
 *   LEAN_EMU_DEVICES   "8.6,9.0": how many there are, and their compute capabilities (default 8.6)
 *   LEAN_EMU_FAIL      "driver" (none), "old_driver" (too old), "function" (no kernel can run),
 *                      "cublas" (that library is missing), "busy:N" (device N is another's), or
 *                      "malloc:N", "host:N", "launch:N", "lost:N": the N-th allocation of device or
 *                      host memory fails, the N-th kernel that runs fails, or the device is gone
 *                      from the N-th on
 *
 * Threads: calls from any thread; one lock.
 *
 * Included at the end of cuemu.h, never by itself. */
#ifndef LEAN_KERNELS_CUDA_EMU_RUNTIME_H
#define LEAN_KERNELS_CUDA_EMU_RUNTIME_H

#include <stddef.h>

/* CUDA's numbers. */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorHostMemoryNotRegistered = 713,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorUnknown = 999,
};
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);

struct cudaUUID_t {
    char bytes[16];
};
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, l2CacheSize, maxThreadsPerBlock;
    int pciBusID, pciDeviceID, pciDomainID;
};
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device);
/* CUDA's numbers. */
enum cudaDeviceAttr {
    cudaDevAttrCanUseHostPointerForRegisteredMem = 91,
    cudaDevAttrHostRegisterReadOnlySupported = 113,
};
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);

cudaError_t cudaMalloc(void **out, size_t n_bytes);
cudaError_t cudaFree(void *memory);
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
cudaError_t cudaHostAlloc(void **out, size_t n_bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
enum {
    cudaHostRegisterDefault = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped = 2,
    cudaHostRegisterReadOnly = 8
};
cudaError_t cudaHostRegister(void *memory, size_t n_bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *memory);
template <class T> static inline cudaError_t cudaMalloc(T **out, size_t n_bytes)
{
    return cudaMalloc((void **)out, n_bytes);
}
template <class T> static inline cudaError_t cudaHostAlloc(T **out, size_t n_bytes, unsigned flags)
{
    return cudaHostAlloc((void **)out, n_bytes, flags);
}

typedef struct emu_stream *cudaStream_t;
typedef struct emu_event *cudaEvent_t;
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end);

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream);
typedef void (*cudaHostFn_t)(void *data);
/* It may block, and runs while other streams go on. Even of a lost device it is called. */
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
    int numRegs;
};
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *kernel);
/* The kernel must be known: emu_register_kernel. */
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args,
                             size_t shared_bytes, cudaStream_t stream);

/* Graphs of kernels in a row: each node depends on the one before it, whatever is asked for. */
typedef struct emu_graph *cudaGraph_t;
typedef struct emu_graph_exec *cudaGraphExec_t;
typedef struct emu_graph_node *cudaGraphNode_t;
struct cudaKernelNodeParams {
    void *func;
    dim3 gridDim, blockDim;
    unsigned sharedMemBytes;
    void **kernelParams, **extra;
};
cudaError_t cudaGraphCreate(cudaGraph_t *out, unsigned flags);
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *out, cudaGraph_t graph,
                                   const cudaGraphNode_t *before, size_t n_before,
                                   const cudaKernelNodeParams *params);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* ---- not of CUDA ---- */

/* Reads or writes device memory at once, in a function that a stream calls. */
cudaError_t emu_copy(void *to, const void *from, size_t n_bytes);

typedef void emu_call_fn(const void *kernel, const void *args);
/* Says how a kernel is called, and with how many bytes of arguments. text: names it. */
void emu_register_kernel(const void *kernel, emu_call_fn *call, size_t args_bytes,
                         const char *text);

/* A library's work on a stream: run(args), which may touch device memory. args are copied. */
cudaError_t emu_put(cudaStream_t stream, cudaError_t (*run)(const void *args), const void *args,
                    size_t args_bytes);
/* dlopen and dlsym for the libraries that this machine has: cublas.cpp. */
void *emu_library_open(const char *file);
void *emu_library_symbol(void *library, const char *name);
/* The addresses of all devices. The thread sanitizer leaves 1.5 TiB to a process, of which random
 * placing may take 1: there are fewer devices with it. */
#ifdef __SANITIZE_THREAD__
static const size_t EMU_DEVICES_SPAN_BYTES = (size_t)1 << 38;
#else
static const size_t EMU_DEVICES_SPAN_BYTES = (size_t)1 << 40;
#endif
extern unsigned char *emu_devices;
/* A kernel reads there: it must be a device's memory, or pinned. */
void emu_check_host_read(const void *from);
static inline void emu_check_read(const void *from)
{
    if ((size_t)((const unsigned char *)from - emu_devices) >= EMU_DEVICES_SPAN_BYTES)
        emu_check_host_read(from);
}
/* The library of NCCL that goes with these devices: this one. nccl.cpp */
const char *nccl_file(void);

/* ---- between runtime.cpp and fibers.cpp ---- */

struct emu_launch {
    emu_call_fn *call;
    const void *kernel, *args;
    const char *name;
    dim3 grid, block;
    size_t shared_bytes;
};
enum emu_order { EMU_FORWARD, EMU_REVERSE, EMU_RANDOM };
/* Runs all blocks; false: a wait could not end, which has been reported on stderr. */
bool emu_run(const emu_launch *launch, emu_order order);
/* From within a kernel: reports, and the launch fails. */
[[noreturn]] void emu_give_up(const char *what);

#endif
