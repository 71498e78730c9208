/* Opens the CUDA plugin. */
#include "kernels/backend_cuda.h"

#include "kernels/cuda/cuda_plugin.h"

static enum lm_status open_plugin(const struct cuda_plugin **out, const char *file,
                                  struct lm_error *err)
{
    const struct plugin_head *head;
    const enum lm_status status =
        plugin_open(&head, file ? file : CUDA_PLUGIN_FILE, sizeof(struct cuda_plugin), err);
    if (status == LM_OK) *out = (const struct cuda_plugin *)head;
    return status;
}

enum lm_status backend_cuda_create(struct backend **out, const struct backend_cuda_config *config,
                                   struct lm_error *err)
{
    const struct cuda_plugin *plugin;
    const enum lm_status status = open_plugin(&plugin, config->plugin, err);
    return status == LM_OK ? plugin->create(out, config, err) : status;
}

enum lm_status backend_cuda_devices(const char *file, struct cuda_device_info *out, uint32_t n_max,
                                    uint32_t *n, struct lm_error *err)
{
    const struct cuda_plugin *plugin;
    const enum lm_status status = open_plugin(&plugin, file, err);
    return status == LM_OK ? plugin->devices(out, n_max, n, err) : status;
}

enum lm_status backend_cuda_free_bytes(const char *file, uint32_t device, uint64_t *out,
                                       struct lm_error *err)
{
    const struct cuda_plugin *plugin;
    const enum lm_status status = open_plugin(&plugin, file, err);
    return status == LM_OK ? plugin->free_bytes(device, out, err) : status;
}

const struct backend_cuda_counters *backend_cuda_counters(const struct backend *backend)
{
    return &((const struct cuda_backend_head *)backend)->counters;
}

static const struct cuda_plugin *plugin_of(const struct backend *backend)
{
    return ((const struct cuda_backend_head *)backend)->plugin;
}

enum lm_status backend_cuda_stream(struct backend *backend, struct device_stream **out,
                                   struct lm_error *err)
{
    return plugin_of(backend)->open_stream(backend, out, err);
}

const char *backend_cuda_nccl_file(const struct backend *backend)
{
    return plugin_of(backend)->nccl_file();
}

void backend_cuda_read(struct backend *backend, const void *memory, size_t n_bytes, void *sink)
{
    plugin_of(backend)->read(backend, memory, n_bytes, sink);
}

uint64_t backend_cuda_multiply(struct backend *backend, uint32_t n_round, void *sink)
{
    return plugin_of(backend)->multiply(backend, n_round, sink);
}
