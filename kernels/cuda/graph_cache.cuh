/* Lists of launches as CUDA graphs: a list that comes again costs one launch.
 *
 * The first time a list runs launch by launch; the second time it becomes a graph; from then on it
 * is replayed. A list that differs from a graph's in a few launches (a grid that grew with the
 * context) takes that graph over, with those launches replaced. The graphs used least recently make
 * room for others.
 *
 * Threads: one caller at a time. */
#ifndef LEAN_KERNELS_CUDA_GRAPH_CACHE_CUH
#define LEAN_KERNELS_CUDA_GRAPH_CACHE_CUH

#include <stddef.h>

#include "kernels/cuda/device.cuh"

/* Puts a library's work onto the stream. args: as they were when it was appended. */
typedef cudaError_t library_call(cudaStream_t stream, const void *args);

/* args_offset: into the list's bytes of arguments. */
struct launch_record {
    const void *kernel; /* or NULL, and */
    library_call *call;
    dim3 grid, block;
    size_t shared_bytes, args_offset, args_bytes;
};

struct launch_list {
    struct launch_record *record;
    size_t n_record;
    uint8_t *args;
    size_t args_bytes;
    bool has_call; /* it runs one by one: what a call launches is not known here */
};

enum graph_use {
    GRAPH_NONE /* launched one by one */,
    GRAPH_CAPTURED,
    GRAPH_UPDATED,
    GRAPH_REPLAYED
};

struct graph_cache;

/* NULL: no memory. */
struct graph_cache *graph_cache_create(void);
void graph_cache_destroy(struct graph_cache *cache);

/* Puts the whole list on the stream. *use: how. */
cudaError_t graph_cache_run(struct graph_cache *cache, const struct launch_list *list,
                            cudaStream_t stream, enum graph_use *use);

#endif
