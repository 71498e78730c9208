/* The .lmpack container: a model as a directory in which every routed expert is one aligned extent.
 *
 *   NAME.lmpack/manifest.pb       what the other files hold (proto/lmpack.proto)
 *              /dense.gguf        metadata, tokenizer and all other tensors
 *              /experts-007.bin   the routed experts of layer 7
 *              /profile.pb        optional: a routing profile (not described by the manifest)
 *
 * FORMAT.md defines every byte. Here the container is opened and its manifest written; what an
 * expert means to a model is for others to know, and nothing here reads weights.
 *
 * lmpack_open checks everything a reader could trip over: sizes, shapes, types, layout, offsets,
 * and that the extents of a layer fill its file without overlap. The files of layers are opened one
 * by one, because a rank of a pipeline has only those of its own layers.
 *
 * Ownership: everything returned belongs to the lmpack and lives until lmpack_close.
 * Threads:   open_layer from one thread at a time; the rest is immutable after open.
 * Limits:    a file truncated by another process after it was opened raises SIGBUS where its
 *            mapping is read; a worker outlives that (proto/base/map_guard.h). */
#ifndef LEAN_PROTO_LMPACK_LMPACK_H
#define LEAN_PROTO_LMPACK_LMPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

enum {
    LMPACK_VERSION = 1,
    LMPACK_LAYOUT_ROWS = 1,
    LMPACK_EXTENT_ALIGN = 4096, /* of the start and the size of an extent */
    LMPACK_MATRIX_ALIGN = 256,  /* of the start of a matrix in its extent */
    LMPACK_MATRIX_COUNT = 3,    /* gate, up, down */
    LMPACK_MAX_LAYER = 512,
    LMPACK_MAX_EXPERT = 4096
};

#define LMPACK_MANIFEST_NAME "manifest.pb"
#define LMPACK_DENSE_NAME "dense.gguf"
#define LMPACK_PROFILE_NAME "profile.pb"

/* One matrix of an expert: n_row rows of n_col elements. */
struct lmpack_matrix {
    enum tensor_type type;
    uint32_t n_col, n_row;
    uint64_t offset; /* in the extent */
};

/* The experts of one layer; all are alike. */
struct lmpack_layer {
    uint32_t layer;
    struct lmpack_matrix matrix[LMPACK_MATRIX_COUNT]; /* gate, up, down */
    uint64_t extent_bytes;                            /* of one expert */
    const uint64_t *offset;                           /* [n_expert] of the extent in the file */
    const uint64_t *checksum;                         /* [n_expert] XXH3-64 of the extent */
};

struct lmpack_manifest {
    const char *architecture;
    uint64_t fingerprint; /* of the model that was packed: gguf_fingerprint */
    uint32_t n_layer;     /* decoder and prediction layers */
    uint32_t n_expert;    /* of a layer; 0: the model has no routed experts */
    uint64_t dense_bytes, dense_checksum;
    const struct lmpack_layer *layer; /* [n_moe] those with routed experts, ascending */
    uint32_t n_moe;
};

struct gguf_file;
struct lmpack;

/* Opens the pack in a folder: reads its manifest, and looks at the size of its dense part.
 * LM_E_NOT_FOUND, LM_E_IO: a file cannot be read; LM_E_FORMAT: the manifest is malformed, damaged,
 * or does not fit the dense part; LM_E_UNSUPPORTED: another version or layout. */
enum lm_status lmpack_open(struct lmpack **out, const char *folder, struct lm_error *err);
/* Opens the pack of which a file is the dense part, and checks that it is. *out NULL: it is a file
 * of its own. */
enum lm_status lmpack_open_around(struct lmpack **out, const struct gguf_file *dense,
                                  struct lm_error *err);
/* What lmpack_open reads, from the bytes of a manifest. folder names it in messages. */
enum lm_status lmpack_parse(struct lmpack **out, const void *bytes, size_t n, const char *folder,
                            struct lm_error *err);
void lmpack_close(struct lmpack *pack); /* NULL is legal */

const char *lmpack_folder(const struct lmpack *pack);
const struct lmpack_manifest *lmpack_manifest(const struct lmpack *pack);
/* NULL: the layer has no routed experts. */
const struct lmpack_layer *lmpack_find_layer(const struct lmpack *pack, uint32_t il);

/* Opens and maps the file of a layer that has routed experts. Once opened it stays so. */
enum lm_status lmpack_open_layer(struct lmpack *pack, uint32_t il, struct lm_error *err);

struct lmpack_file {
    const char *path; /* NULL: not opened */
    int fd;           /* for reading */
    const void *data; /* the whole file, mapped */
    uint64_t n_bytes;
};
struct lmpack_file lmpack_layer_file(const struct lmpack *pack, uint32_t il);

/* ---- writing ------------------------------------------------------------------------------ */

/* Bytes of the matrix, without padding. */
uint64_t lmpack_matrix_bytes(const struct lmpack_matrix *matrix);
uint64_t lmpack_file_bytes(const struct lmpack_layer *layer, uint32_t n_expert);
/* Fills the offsets of the matrices, whose types and sizes are set, and extent_bytes. */
void lmpack_lay_out(struct lmpack_layer *layer);

/* FOLDER/experts-007.bin, malloc'ed; NULL: no memory. */
char *lmpack_layer_path(const char *folder, uint32_t il);

/* The last field of a manifest: its tag, and XXH3-64 of the n bytes before. bytes: room for both.
 */
enum { LMPACK_SEAL_TAG = 15 << 3 | 1, LMPACK_SEAL_BYTES = 9 };
void lmpack_seal(uint8_t *bytes, size_t n);

/* Writes FOLDER/manifest.pb, whole or not at all. */
enum lm_status lmpack_write_manifest(const char *folder, const struct lmpack_manifest *manifest,
                                     struct lm_error *err);

#endif
