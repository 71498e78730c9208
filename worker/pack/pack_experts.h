/* The experts of one layer, on their way from a source to the file of a pack, or held against it.
 *
 * Experts are taken in batches: the pieces of a batch are read from the source in the order in
 * which they lie there, neighbours at once, to the places that they have in the pack.
 *
 * Threads: one owner each; the store and the progress may be shared. */
#ifndef LEAN_WORKER_PACK_PACK_EXPERTS_H
#define LEAN_WORKER_PACK_PACK_EXPERTS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct expert_layer;
struct expert_store;
struct lmpack_layer;
struct pack_arrival;
struct pack_progress;

enum { PACK_BATCH_BYTES = 16 << 20 /* of one batch, but at least one expert */ };

/* Memory of one thread. */
struct pack_buffer {
    uint8_t *batch;  /* [batch_bytes] extents */
    uint8_t *extent; /* [extent_bytes] */
};

struct pack_experts {
    const struct expert_store *source; /* NULL: there is none to compare with */
    const struct lmpack_layer *layer;
    uint32_t n_expert;
    struct pack_buffer buffer;
    const struct pack_arrival *arrival; /* of the source; NULL: it is there */
    struct pack_progress *progress;
};

/* What a buffer must hold for layers of extents up to extent_bytes. LM_E_NO_MEM. */
enum lm_status pack_buffer_create(struct pack_buffer *out, uint64_t extent_bytes,
                                  struct lm_error *err);
void pack_buffer_destroy(struct pack_buffer *buffer);

/* Types and sizes of the matrices in the pack, and with them the layout. */
void pack_lay_out(struct lmpack_layer *out, const struct expert_layer *source);

/* Writes the file at path, whole or not at all. checksum: [n_expert] of the extents. Experts lie in
 * the order of their numbers. */
enum lm_status pack_experts_write(const struct pack_experts *experts, const char *path,
                                  uint64_t *checksum, struct lm_error *err);

/* What the layer's experts are in the source is no longer needed. */
void pack_experts_release(const struct pack_experts *experts);

/* Holds the file at path against the source: LM_E_MISMATCH, or LM_E_FORMAT if it is of another
 * size. found: [n_expert] checksums of what the file holds. */
enum lm_status pack_experts_compare(const struct pack_experts *experts, const char *path,
                                    uint64_t *found, struct lm_error *err);
/* Holds it against the checksums of the layer (LM_E_FORMAT) and the source, if there is one. What
 * is wrong with experts is reported to the progress as damage, one by one. */
enum lm_status pack_experts_verify(const struct pack_experts *experts, const char *path,
                                   struct lm_error *err);

#endif
