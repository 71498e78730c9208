/* GGUF files, versions 2 and 3, single or split, read through a read-only mapping.
 *
 *   "GGUF" | u32 version | i64 n_tensors | i64 n_kv | KV[n_kv] | TensorInfo[n_tensors] | pad | data
 *   string     = u64 length + bytes          KV   = string key | i32 type | value
 *   TensorInfo = string name | u32 n_dims | i64 ne[n_dims] | i32 ggml type | u64 offset
 *
 * gguf_open checks everything that a reader could trip over before it returns: counts against the
 * bytes left, every length, unique keys and tensor names, types, shapes, alignment, offsets inside
 * the file, no overlap. A file that fails gives LM_E_FORMAT and one line that names the file, the
 * key or tensor and the numbers. What an architecture needs of it is proto/model's business.
 *
 * Split files (NAME-00001-of-00005.gguf): name the first one; the others are found beside it, and
 * metadata comes from the first.
 *
 * Ownership: everything returned belongs to the gguf_file and lives until gguf_close. Strings are
 *            views into the mapping, not NUL-terminated.
 * Threads:   immutable after open; may be read from any thread.
 * Limits:    a file truncated by another process after open raises SIGBUS on access, as with any
 *            mapping; a worker outlives that (proto/base/map_guard.h).
 * Source:    ggml docs/gguf.md; the checks are listed in tests/unit/proto/gguf. */
#ifndef LEAN_PROTO_GGUF_GGUF_H
#define LEAN_PROTO_GGUF_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPE_COUNT
};

const char *gguf_type_name(enum gguf_type type); /* "u32" */
/* Bytes of a value; 0 for strings and arrays. */
size_t gguf_type_bytes(enum gguf_type type);

struct gguf_string {
    const char *data;
    size_t n;
};

/* One metadata entry. Scalars other than strings are read through the getters below. */
struct gguf_kv {
    struct gguf_string key;
    enum gguf_type type;
    enum gguf_type element; /* of an array */
    uint64_t n;             /* elements of an array, 1 for a scalar */
    const void *data;       /* first byte of the value (of the first element) in the mapping */
    uint32_t string_index;  /* private: where the strings of an array are indexed */
};

struct gguf_tensor {
    struct gguf_string name; /* unique over all shards, under 64 bytes */
    enum tensor_type type;
    uint32_t n_dims;
    uint64_t ne[4]; /* unused dimensions are 1; ne[0] is contiguous */
    uint64_t n_bytes;
    uint32_t shard;       /* index of the file that holds it */
    uint64_t file_offset; /* of its first byte in that file */
    const void *data;     /* the same in the mapping */
};

struct gguf_shard {
    const char *path;
    int fd; /* open for reading; for pread */
    uint64_t n_bytes;
    const void *data; /* the whole file, mapped */
    uint32_t alignment;
};

struct gguf_file;

/* Opens path and, for a split file, its siblings. LM_E_NOT_FOUND, LM_E_IO: a file cannot be read;
 * LM_E_FORMAT: it is malformed; LM_E_UNSUPPORTED: version 1, other byte order, or a tensor type
 * whose size we do not know. *out is set on success only. */
enum lm_status gguf_open(struct gguf_file **out, const char *path, struct lm_error *err);
void gguf_close(struct gguf_file *file); /* NULL is legal */

const char *gguf_path(const struct gguf_file *file);
uint32_t gguf_version(const struct gguf_file *file);
size_t gguf_n_shard(const struct gguf_file *file);
const struct gguf_shard *gguf_shard_at(const struct gguf_file *file, size_t index);

size_t gguf_n_kv(const struct gguf_file *file);
const struct gguf_kv *gguf_kv_at(const struct gguf_file *file, size_t index);
const struct gguf_kv *gguf_find_kv(const struct gguf_file *file, const char *key); /* or NULL */

/* Keys of the dense part of a pack (proto/lmpack/FORMAT.md): the version of the pack, and the
 * fingerprint of the model that was packed, 16 hexadecimal digits. */
#define GGUF_KEY_PACK_VERSION "lean.pack.version"
#define GGUF_KEY_PACK_FINGERPRINT "lean.pack.fingerprint"
/* Whether the file is the dense part of a pack: its routed experts are in files beside it. */
bool gguf_is_pack(const struct gguf_file *file);

size_t gguf_n_tensor(const struct gguf_file *file);
const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *file, size_t index);
const struct gguf_tensor *gguf_find_tensor(const struct gguf_file *file, const char *name);

/* For a reader that wants its own copy in memory and no other. from, n_bytes: in a tensor's data.
 * scatter: what is still read through the mapping no longer brings its neighbours along. will_copy
 * starts to read in the background and tells whether the page cache had the range, by its first
 * byte; copy does not touch the mapping. drop: afterwards the range leaves the page cache, for what
 * was not there before. LM_E_IO, also when the file was cut off. */
void gguf_scatter(const struct gguf_file *file);
bool gguf_will_copy(const struct gguf_file *file, const void *from, size_t n_bytes);
enum lm_status gguf_copy(const struct gguf_file *file, void *to, const void *from, size_t n_bytes,
                         bool drop, struct lm_error *err);

/* Typed getters. An absent key leaves *out as it is and is LM_OK, so that *out holds the default;
 * *found (may be NULL) tells. A value of another kind, or one that does not fit (any integer width
 * is accepted when the value fits), is LM_E_FORMAT. */
enum lm_status gguf_get_u32(const struct gguf_file *file, const char *key, uint32_t *out,
                            bool *found, struct lm_error *err);
enum lm_status gguf_get_f32(const struct gguf_file *file, const char *key, float *out, bool *found,
                            struct lm_error *err);
enum lm_status gguf_get_bool(const struct gguf_file *file, const char *key, bool *out, bool *found,
                             struct lm_error *err);
enum lm_status gguf_get_string(const struct gguf_file *file, const char *key,
                               struct gguf_string *out, bool *found, struct lm_error *err);

/* Elements of an array, i < kv->n, already checked by open. The caller has checked kv->element:
 * strings with the first, any integer or bool with the second, F32 or F64 with the third. */
struct gguf_string gguf_array_string(const struct gguf_file *file, const struct gguf_kv *kv,
                                     uint64_t i);
int64_t gguf_array_int(const struct gguf_kv *kv, uint64_t i);
double gguf_array_float(const struct gguf_kv *kv, uint64_t i);

#endif
