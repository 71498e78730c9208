/* Expert store: where the routed experts of a model lie in its files.
 *
 * An expert is one to three runs of bytes (parts) that hold its matrices. A GGUF file has one part
 * per matrix, or one for gate and up where they are fused; a .lmpack has a single part, aligned for
 * direct reads. All experts of a layer are alike: same types, same parts, other offsets.
 *
 * Ownership: borrows the file it was made from, which must outlive it.
 * Threads:   immutable after create. */
#ifndef LEAN_WORKER_PAGER_EXPERT_STORE_H
#define LEAN_WORKER_PAGER_EXPERT_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

struct gguf_file;
struct hparams;
struct expert_store;

struct expert_key {
    uint32_t layer, expert;
};

enum {
    EXPERT_PART_MAX = 3,
    EXPERT_MATRIX_COUNT = 3, /* gate, up, down */
    EXPERT_ALIGN = 4096
};

/* What the experts of one layer have in common. */
struct expert_layer {
    struct weight gate, up, down; /* shape and type of one expert's, data NULL */
    uint32_t n_part;              /* 0: the layer has no routed experts */
    uint64_t part_bytes[EXPERT_PART_MAX];
    struct {
        uint32_t part;
        uint64_t offset; /* in the part */
    } matrix[EXPERT_MATRIX_COUNT];
    uint64_t n_bytes; /* of one expert: the sum of its parts */
    bool aligned;     /* parts begin and end at multiples of EXPERT_ALIGN in the file */
};

/* A run of bytes of a file. */
struct expert_extent {
    uint32_t file; /* index for expert_store_file */
    uint64_t offset, n_bytes;
};

struct expert_file {
    const char *path;
    int fd;           /* open for reading, buffered */
    const void *data; /* the whole file, mapped; NULL: not known here */
    uint64_t n_bytes;
};

/* For the layers [layer_begin, layer_end) of a file that hparams_read has accepted. Of a pack, of
 * which the file is the dense part, only the files of these layers are opened.
 * LM_E_UNSUPPORTED: experts of one layer differ in type; LM_E_NOT_FOUND, LM_E_IO, LM_E_FORMAT: a
 * file of the pack is missing, cannot be read, or is not what the model needs. */
enum lm_status expert_store_create(struct expert_store **out, const struct gguf_file *file,
                                   const struct hparams *hp, uint32_t layer_begin,
                                   uint32_t layer_end, struct lm_error *err);
void expert_store_destroy(struct expert_store *store); /* NULL is legal */

size_t expert_store_n_file(const struct expert_store *store);
struct expert_file expert_store_file(const struct expert_store *store, size_t index);

const struct expert_layer *expert_store_layer(const struct expert_store *store, uint32_t il);

/* out: [n_part] of the layer. */
void expert_store_locate(const struct expert_store *store, struct expert_key key,
                         struct expert_extent out[EXPERT_PART_MAX]);
/* The expert that has the first of the n_bytes at an offset of a file, or else one behind it among
 * them. False: there is none. */
bool expert_store_find(const struct expert_store *store, int fd, uint64_t offset, uint64_t n_bytes,
                       struct expert_key *out);
/* XXH3-64 over the parts in order. False: the file carries no checksums. */
bool expert_store_checksum(const struct expert_store *store, struct expert_key key, uint64_t *out);

/* The expert's matrices where its file is mapped. gate NULL: it is not. */
struct expert_view expert_store_mapped(const struct expert_store *store, struct expert_key key);
/* The same where its parts have been read to. part: [n_part]. */
struct expert_view expert_layer_view(const struct expert_layer *layer, const void *const *part);

#endif
