/* Writes a GGUF version 3 file front to back, without holding tensor data.
 *
 * Order of calls: create, then all keys, then all tensors are declared, then for each tensor in
 * the order of declaration its bytes in any number of pieces, then finish. The file is written
 * under a temporary name beside path and renamed by finish, so a failed or interrupted write
 * leaves nothing that looks like a model.
 *
 * Errors stick: after a failure every call returns it; destroy removes the temporary file.
 * Threads: one owner. */
#ifndef LEAN_PROTO_GGUF_GGUF_WRITE_H
#define LEAN_PROTO_GGUF_GGUF_WRITE_H

#include "proto/gguf/gguf.h"

struct gguf_writer;

/* path NULL: nothing is written; the writer only tells what the declarations would give. */
enum lm_status gguf_writer_create(struct gguf_writer **out, const char *path, struct lm_error *err);

void gguf_writer_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_writer_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_writer_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_writer_string(struct gguf_writer *writer, const char *key, const char *text, size_t n);
/* data: n elements of a numeric element type, little endian, back to back. */
void gguf_writer_array(struct gguf_writer *writer, const char *key, enum gguf_type element,
                       const void *data, uint64_t n);
void gguf_writer_strings(struct gguf_writer *writer, const char *key,
                         const struct gguf_string *strings, uint64_t n);
/* Copies an entry of another file byte for byte. */
void gguf_writer_copy(struct gguf_writer *writer, const struct gguf_file *file,
                      const struct gguf_kv *kv);

void gguf_writer_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                        uint32_t n_dims, const uint64_t *ne);
/* The same for a tensor like that of another file. */
void gguf_writer_declare(struct gguf_writer *writer, const struct gguf_tensor *tensor);
/* Size of the file that the declarations so far will give; the error of one that failed. */
enum lm_status gguf_writer_measure(const struct gguf_writer *writer, uint64_t *n_bytes,
                                   struct lm_error *err);
/* Size and XXH3-64 of the header that the declarations so far will give, without its padding. */
uint64_t gguf_writer_header_bytes(const struct gguf_writer *writer);
uint64_t gguf_writer_header_checksum(const struct gguf_writer *writer);

/* The next bytes of tensor data; pieces are split and padded at tensor ends by the writer. */
enum lm_status gguf_writer_data(struct gguf_writer *writer, const void *data, uint64_t n_bytes,
                                struct lm_error *err);
/* XXH3-64 of the whole file, once the last tensor is complete. */
uint64_t gguf_writer_checksum(struct gguf_writer *writer);
/* Syncs, renames and destroys. LM_E_FAIL if tensors are incomplete. */
enum lm_status gguf_writer_finish(struct gguf_writer *writer, struct lm_error *err);
/* In place of all data, and finish: the file has its size, and its tensors read as zeros that take
 * no room on the disk. */
enum lm_status gguf_writer_finish_hollow(struct gguf_writer *writer, struct lm_error *err);
void gguf_writer_destroy(struct gguf_writer *writer); /* abandons; NULL is legal */

/* Whether an entry is about how the model was split into files. */
bool gguf_kv_is_split(const struct gguf_kv *kv);

/* What tells a model from another without reading its weights: XXH3-64 of the header that it has as
 * one file of version 3, without the entries about its split. The dense part of a pack says what
 * the fingerprint of the whole is, and has that. LM_E_NO_MEM. */
enum lm_status gguf_fingerprint(const struct gguf_file *file, uint64_t *out, struct lm_error *err);

#endif
