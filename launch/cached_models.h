/* The models in the cache, as `lean list` shows and `lean rm` removes them. */
#ifndef LEAN_LAUNCH_CACHED_MODELS_H
#define LEAN_LAUNCH_CACHED_MODELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/hub/hub_cache.h"
#include "coordinator/hub/hub_files.h"
#include "proto/base/error.h"

/* A variant of a snapshot. */
struct cached_model {
    struct hub_snapshot snapshot; /* commit "": only parts of files are there */
    char variant[80];
    const char *format; /* "gguf", "lmpack", "safetensors", "files" */
    char **path;        /* [n_path] in the snapshot */
    size_t n_path;
    uint64_t n_bytes;     /* there */
    uint64_t n_bytes_all; /* with what the parts lack */
    bool is_partial;
    int64_t modified; /* seconds since 1970 of the newest file */
};

/* Sorted by repository; *out: malloc'ed, for cached_models_free. */
enum lm_status cached_models_list(const char *root, struct cached_model **out, size_t *n,
                                  struct lm_error *err);
void cached_models_free(struct cached_model *models, size_t n);

#endif
