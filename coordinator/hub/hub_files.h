/* The files of a repository, and which of them a model is.
 *
 * A repository holds weights in one of three ways: GGUF files, of which each quantization is a
 * variant, whole or split into parts NAME-00001-of-00005.gguf; packs, folders that `lean pack`
 * wrote, a variant each; or safetensors. The same choice is made of a listing that the hub sent and
 * of a snapshot in the cache.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_HUB_HUB_FILES_H
#define LEAN_COORDINATOR_HUB_HUB_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

enum { HUB_HASH_SIZE = 65 };

struct hub_file {
    char *path; /* in the repository */
    uint64_t n_bytes;
    char hash[HUB_HASH_SIZE]; /* 64 digits: SHA-256; 40: SHA-1 of the git blob; "": not known */
};

struct hub_files {
    struct hub_file *file; /* [n] */
    size_t n, n_max;
};

/* LM_E_FORMAT: the path could lead out of the folder it is put in, or is no text. */
enum lm_status hub_files_add(struct hub_files *files, const char *path, uint64_t n_bytes,
                             const char *hash, struct lm_error *err);
void hub_files_sort(struct hub_files *files); /* by path */
void hub_files_free(struct hub_files *files); /* and empty again */

struct hub_variant {
    char *label; /* "Q4_K_M" */
    char *key;   /* path without part number and ".gguf"; the folder of a pack */
    uint64_t n_bytes;
    bool is_pack;
    uint32_t n_part, n_part_all; /* found, and how many there should be */
};

/* Of sorted files, in their order. *out: malloc'ed, for hub_variants_free. */
enum lm_status hub_variants_find(const struct hub_files *files, struct hub_variant **out, size_t *n,
                                 struct lm_error *err);
/* Whether the file is of the variant. */
bool hub_variant_has(const struct hub_files *files, const struct hub_variant *variant,
                     const char *path);
void hub_variants_free(struct hub_variant *variants, size_t n);

struct hub_wish {
    const char *variant;         /* NULL or "": the preferred one */
    const char *const *only;     /* [n_only] globs: these files instead of a variant */
    const char *const *includes; /* [n_include] globs: as if there were no others; none: all */
    const char *const *excludes; /* [n_exclude] globs: as if these were not there */
    size_t n_only, n_include, n_exclude;
    bool has_layers; /* of a pack only the experts of these layers */
    uint32_t first_layer, last_layer;
};

struct hub_choice {
    size_t *index; /* [n] of files, ascending */
    size_t n;
    uint64_t n_bytes;
    char variant[80]; /* label; "" where there are no variants */
    char
        *main_path; /* what to open: the first part, dense.gguf of a pack; NULL: nothing opens it */
};

/* LM_E_NOT_FOUND: nothing is what was wished for; hub_variants_find tells what there is.
 * LM_E_USAGE: the wish fits several variants. */
enum lm_status hub_choose(const struct hub_files *files, const struct hub_wish *wish,
                          struct hub_choice *out, struct lm_error *err);
void hub_choice_free(struct hub_choice *choice);

#endif
