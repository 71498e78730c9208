/* What liblean_cuda.so exports: plugin.h's table for CUDA, seen by kernels/backend_cuda.c. */
#ifndef LEAN_KERNELS_CUDA_CUDA_PLUGIN_H
#define LEAN_KERNELS_CUDA_CUDA_PLUGIN_H

#include "kernels/backend_cuda.h"
#include "proto/base/plugin.h"

struct cuda_plugin {
    struct plugin_head head;
    enum lm_status (*create)(struct backend **out, uint32_t device, struct lm_error *err);
    enum lm_status (*devices)(struct cuda_device_info *out, uint32_t n_max, uint32_t *n,
                              struct lm_error *err);
};

/* How every backend of the plugin begins. */
struct cuda_backend_head {
    struct backend base;
    struct backend_cuda_counters counters;
};

#endif
