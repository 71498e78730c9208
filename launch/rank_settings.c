/* The configuration once more for each rank, and what differs. */
#include "launch/rank_settings.h"

#include <stdbool.h>
#include <string.h>

#include "launch/config.h"
#include "launch/options.h"
#include "proto/base/log.h"

static const char *const of_a_rank[] = {"ram",       "threads",    "kernels", "expert-slots",
                                        "policy",    "prefetch",   "io",      "profile",
                                        "device",    "gpu-layers", "vram",    "devices",
                                        "share-gpu", "miss",       "numerics"};

static bool is_of_a_rank(const char *name)
{
    bool found = false;
    for (size_t i = 0; i < sizeof(of_a_rank) / sizeof(of_a_rank[0]); i++)
        found |= !strcmp(of_a_rank[i], name);
    return found;
}

bool rank_settings_fast(const struct rank_settings *settings)
{
    return settings->numerics && !strcmp(settings->numerics, "fast");
}

int32_t rank_settings_gpu_layers(const struct options *options)
{
    return options_string(options, "gpu-layers") ? (int32_t)options_int(options, "gpu-layers") : -1;
}

uint32_t rank_settings_device_begin(int32_t gpu_layers, uint32_t n_layer)
{
    return gpu_layers < 0 || (uint32_t)gpu_layers > n_layer ? 0 : n_layer - (uint32_t)gpu_layers;
}

struct rank_settings rank_settings_from_options(const struct options *options)
{
    return (struct rank_settings){
        .ram_bytes = options_size(options, "ram"),
        .n_thread = (uint32_t)options_int(options, "threads"),
        .kernels = options_string(options, "kernels"),
        .expert_slots = options_string(options, "expert-slots"),
        .policy = options_string(options, "policy"),
        .prefetch = options_string(options, "prefetch"),
        .io = options_string(options, "io"),
        .profile = options_string(options, "profile"),
        .device = options_string(options, "device"),
        .gpu_layers = rank_settings_gpu_layers(options),
        .vram_bytes = options_size(options, "vram"),
        .devices = options_string(options, "devices"),
        .share_gpu = options_flag(options, "share-gpu"),
        .miss = options_string(options, "miss"),
        .numerics = options_string(options, "numerics"),
    };
}

static bool is_same(const char *a, const char *b)
{
    return a == b || (a && b && !strcmp(a, b));
}

static const char *pick(const char *own, const char *here, const char *there)
{
    return is_same(here, there) ? own : there;
}

/* own, but for what is there otherwise than here. */
static struct rank_settings merge(const struct rank_settings *own, const struct rank_settings *here,
                                  const struct rank_settings *there)
{
    return (struct rank_settings){
        .ram_bytes = here->ram_bytes == there->ram_bytes ? own->ram_bytes : there->ram_bytes,
        .n_thread = here->n_thread == there->n_thread ? own->n_thread : there->n_thread,
        .kernels = pick(own->kernels, here->kernels, there->kernels),
        .expert_slots = pick(own->expert_slots, here->expert_slots, there->expert_slots),
        .policy = pick(own->policy, here->policy, there->policy),
        .prefetch = pick(own->prefetch, here->prefetch, there->prefetch),
        .io = pick(own->io, here->io, there->io),
        .profile = pick(own->profile, here->profile, there->profile),
        .device = pick(own->device, here->device, there->device),
        .gpu_layers = here->gpu_layers == there->gpu_layers ? own->gpu_layers : there->gpu_layers,
        .devices = pick(own->devices, here->devices, there->devices),
        .share_gpu = here->share_gpu == there->share_gpu ? own->share_gpu : there->share_gpu,
        .miss = pick(own->miss, here->miss, there->miss),
        .vram_bytes = here->vram_bytes == there->vram_bytes ? own->vram_bytes : there->vram_bytes,
        .numerics = pick(own->numerics, here->numerics, there->numerics),
    };
}

/* What all ranks have alike is rank 0's. */
static void warn_of_others(const struct options *here, const struct options *there, uint32_t rank)
{
    for (const struct option_spec *spec = options_engine; spec->name; spec++)
        if (spec->key && !is_of_a_rank(spec->name) &&
            !is_same(options_string(here, spec->name), options_string(there, spec->name)))
            log_warning("%s is the same on all ranks: that of rank %u does not count", spec->key,
                        rank);
}

enum lm_status rank_settings_resolve(struct rank_settings *out, struct options **kept,
                                     const struct options *options, const struct rank_settings *own,
                                     uint32_t rank, const char *host, struct lm_error *err)
{
    struct config *config;
    *kept = NULL;
    *out = *own;
    if (!options_config(options)) return LM_OK;
    enum lm_status status = config_load_for_rank(&config, options_config(options), rank, host, err);
    if (status != LM_OK) return status;
    status = options_refill(kept, options, config, err);
    config_destroy(config);
    if (status != LM_OK) return status;
    const struct rank_settings here = rank_settings_from_options(options);
    const struct rank_settings there = rank_settings_from_options(*kept);
    *out = merge(own, &here, &there);
    warn_of_others(options, *kept, rank);
    return LM_OK;
}
