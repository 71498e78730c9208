/* The CUDA backend as the host sees it: a plugin (proto/base/plugin.h), so that the program links
 * to no CUDA library and starts where there is no driver.
 *
 * plugin: NULL for liblean_cuda.so, which nvcc built; tests name liblean_cuda_emu.so, the same
 * sources as host code. */
#ifndef LEAN_KERNELS_BACKEND_CUDA_H
#define LEAN_KERNELS_BACKEND_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"

#define CUDA_PLUGIN_FILE "liblean_cuda.so"
#define CUDA_EMU_PLUGIN_FILE "liblean_cuda_emu.so"

struct device_stream;

struct backend_cuda_config {
    const char *plugin;
    uint32_t device; /* index among the visible ones */
    /* The FAST mode of kernels/NUMERICS.md: many rows at once by cuBLAS, which is opened now, and
     * by tensor cores in floating point. */
    bool fast;
    /* As many as launches are made for; 0: as the device has. Few let small shapes go the ways that
     * large ones take, for tests. */
    uint32_t n_multiprocessor;
};

/* LM_E_UNSUPPORTED: no plugin, no driver or one too old, no device, one before compute capability
 * 8.0, or fast and no cuBLAS. LM_E_USAGE: there is no such device. LM_E_NO_MEM, LM_E_FAIL: the
 * device refused.
 */
enum lm_status backend_cuda_create(struct backend **out, const struct backend_cuda_config *config,
                                   struct lm_error *err);

struct cuda_device_info {
    char name[64];
    char uuid[40]; /* "8-4-4-4-12" hexadecimal digits */
    uint32_t major, minor, n_multiprocessor;
    uint64_t total_bytes;
};

/* What devices there are, without taking anything of them: who only asks for names leaves no trace
 * in the memory of those that others use, and one that is busy hides none. out: [n_max]; *n: how
 * many there are, of which n_max at most are told. Errors as of backend_cuda_create, but a device
 * that is too old is told like the others. */
enum lm_status backend_cuda_devices(const char *plugin, struct cuda_device_info *out,
                                    uint32_t n_max, uint32_t *n, struct lm_error *err);
/* What is left of one's memory, after the driver's own part for this process. */
enum lm_status backend_cuda_free_bytes(const char *plugin, uint32_t device, uint64_t *out,
                                       struct lm_error *err);

/* What a CUDA backend has done since it was made. */
struct backend_cuda_counters {
    uint64_t n_launch;     /* kernels */
    uint64_t n_flush;      /* lists of launches given to the device */
    uint64_t n_capture;    /* of these, recorded as a graph */
    uint64_t n_update;     /* run by a graph of which some launches were replaced */
    uint64_t n_replay;     /* run by a graph as it was */
    uint64_t n_alloc;      /* allocations of device and pinned memory */
    uint64_t inner_bytes;  /* device memory for scratch and staging */
    uint64_t n_fetch;      /* copies of fetch given to the device */
    uint64_t fetch_bytes;  /* their bytes */
    uint64_t staged_bytes; /* of these, from memory that was not pinned */
    uint64_t back_bytes;   /* of write_back, given to the device */
    uint64_t n_product;    /* matrix products by cuBLAS: 0 unless fast */
    bool lost;             /* the device is gone: every sync fails from here on */
};
const struct backend_cuda_counters *backend_cuda_counters(const struct backend *backend);

/* The backend's stream beside its operations: proto/base/device_stream.h. */
enum lm_status backend_cuda_stream(struct backend *backend, struct device_stream **out,
                                   struct lm_error *err);
/* The library by which it reaches other devices. */
const char *backend_cuda_nccl_file(const struct backend *backend);

/* Loads to measure a device by, put off like operations. read: reads memory once, n_bytes a
 * multiple of 16. multiply: products of bytes in the tensor cores, by the instruction that the
 * matrix products use; returns how many multiply-adds. sink: 4 bytes of backend memory. */
void backend_cuda_read(struct backend *backend, const void *memory, size_t n_bytes, void *sink);
uint64_t backend_cuda_multiply(struct backend *backend, uint32_t n_round, void *sink);

#endif
