/* The dense part of a pack: a GGUF file of everything of a model but its routed experts.
 *
 * Threads: one owner; the progress may be shared. */
#ifndef LEAN_WORKER_PACK_PACK_DENSE_H
#define LEAN_WORKER_PACK_PACK_DENSE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct gguf_file;
struct hparams;
struct pack_arrival;
struct pack_progress;

/* Bytes of the tensors of source that are not in its dense part. */
uint64_t pack_dense_left_out_bytes(const struct gguf_file *source, const struct hparams *hp);

/* Size of the dense part of source. */
enum lm_status pack_dense_size(const struct gguf_file *source, const struct hparams *hp,
                               uint64_t *n_bytes, struct lm_error *err);

/* Writes it at path, whole or not at all; checksum: XXH3-64 of the file. arrival NULL:
 * the source is there. */
enum lm_status pack_dense_write(const struct gguf_file *source, const struct hparams *hp,
                                const char *path, const struct pack_arrival *arrival,
                                struct pack_progress *progress, uint64_t *n_bytes,
                                uint64_t *checksum, struct lm_error *err);

/* Holds the file at path against its checksum (LM_E_FORMAT). */
enum lm_status pack_dense_check(const char *path, uint64_t checksum, struct pack_progress *progress,
                                struct lm_error *err);
/* Holds it against the source (LM_E_MISMATCH). */
enum lm_status pack_dense_compare(const struct gguf_file *source, const struct hparams *hp,
                                  const char *path, struct lm_error *err);

#endif
