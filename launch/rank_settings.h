/* How one rank runs its layers, as far as ranks may differ: options_engine explains the settings.
 *
 * What counts for a rank but 0 is what counts for rank 0, but for what an override block of a
 * configuration file says differently of one of them. */
#ifndef LEAN_LAUNCH_RANK_SETTINGS_H
#define LEAN_LAUNCH_RANK_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct options;

struct rank_settings {
    uint64_t ram_bytes; /* budget; 0: what is free, of several ranks on a host its share */
    uint32_t n_thread;  /* 0: physical cores, of several ranks its share */
    const char *kernels, *expert_slots, *policy, *prefetch, *io, *profile; /* or NULL */
    const char *device;  /* NULL: CUDA where there is one */
    int32_t gpu_layers;  /* the model's last N are on the device; -1: as many as fit */
    const char *devices; /* of the host, in the order of its ranks; NULL: all */
    bool share_gpu;
    uint64_t vram_bytes;  /* budget of its memory; 0: what is free */
    const char *miss;     /* what becomes of experts that it lacks; NULL: auto */
    const char *numerics; /* of the device: "fast", else exact; or NULL */
};

bool rank_settings_fast(const struct rank_settings *settings);
/* -1: not given. */
int32_t rank_settings_gpu_layers(const struct options *options);
/* The first layer of the model that so many on devices leave there. */
uint32_t rank_settings_device_begin(int32_t gpu_layers, uint32_t n_layer);
/* Those of options_engine that are the rank's. Strings are borrowed. */
struct rank_settings rank_settings_from_options(const struct options *options);

/* own: of rank 0, from options and what its caller has changed. Texts of *out are own's or live in
 * *kept, to be destroyed with options_destroy before options; NULL: nothing is the rank's alone.
 * What is set for this rank and cannot differ from rank 0's gets a warning. */
enum lm_status rank_settings_resolve(struct rank_settings *out, struct options **kept,
                                     const struct options *options, const struct rank_settings *own,
                                     uint32_t rank, const char *host, struct lm_error *err);

#endif
