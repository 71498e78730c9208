/* What liblean_cuda.so exports: plugin.h's table for CUDA, seen by kernels/backend_cuda.c. */
#ifndef LEAN_KERNELS_CUDA_CUDA_PLUGIN_H
#define LEAN_KERNELS_CUDA_CUDA_PLUGIN_H

#include "kernels/backend_cuda.h"
#include "proto/base/plugin.h"

struct cuda_plugin {
    struct plugin_head head;
    enum lm_status (*create)(struct backend **out, const struct backend_cuda_config *config,
                             struct lm_error *err);
    enum lm_status (*devices)(struct cuda_device_info *out, uint32_t n_max, uint32_t *n,
                              struct lm_error *err);
    enum lm_status (*free_bytes)(uint32_t device, uint64_t *out, struct lm_error *err);
    void (*read)(struct backend *backend, const void *memory, size_t n_bytes, void *sink);
    uint64_t (*multiply)(struct backend *backend, uint32_t n_round, void *sink);
    enum lm_status (*open_stream)(struct backend *backend, struct device_stream **out,
                                  struct lm_error *err);
    const char *(*nccl_file)(void);
};

/* How every backend of the plugin begins. */
struct cuda_backend_head {
    struct backend base;
    const struct cuda_plugin *plugin;
    struct backend_cuda_counters counters;
};

#endif
