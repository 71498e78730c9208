/* The GGUF writer: the header is collected in memory, tensor data goes straight to the file. */
#include "proto/gguf/gguf_write.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/log.h"
#include "proto/base/write_behind.h"

enum { HEAD_BYTES = 24, NAME_BYTES_MAX = 63, BUFFER_BYTES = 1 << 20 };

struct bytes {
    uint8_t *data;
    size_t n, capacity;
};

struct declared_tensor {
    uint64_t n_bytes;
    uint64_t n_padded; /* n_bytes rounded up to the alignment */
};

struct gguf_writer {
    char *path, *partial_path;
    int fd;
    struct bytes kvs, infos;
    uint64_t n_kv;
    uint32_t alignment;
    struct declared_tensor *tensors;
    size_t n_tensor, tensors_capacity;
    uint64_t n_data; /* padded bytes of all tensors: where the next one will be */

    bool header_written;
    size_t tensor_at;     /* the tensor being written */
    uint64_t tensor_done; /* bytes of it that have been given */
    uint8_t *buffer;      /* [BUFFER_BYTES], gathers small pieces */
    size_t n_buffered;
    uint64_t n_written;
    struct write_behind behind;
    XXH3_state_t *checksum;
    struct lm_error error; /* the first failure; status LM_OK: none */
};

static enum lm_status report(const struct gguf_writer *writer, struct lm_error *err)
{
    if (err && writer->error.status != LM_OK) *err = writer->error;
    return writer->error.status;
}

/* Header */

static void append(struct gguf_writer *writer, struct bytes *to, const void *data, size_t n)
{
    if (writer->error.status != LM_OK || !n) return;
    if (n > to->capacity - to->n) {
        const size_t capacity = 2 * to->capacity + n + 256;
        uint8_t *grown = realloc(to->data, capacity);
        if (!grown) {
            lm_fail(&writer->error, LM_E_NO_MEM, "%s: no memory for a header of %zu bytes",
                    writer->path, capacity);
            return;
        }
        to->data = grown;
        to->capacity = capacity;
    }
    memcpy(to->data + to->n, data, n);
    to->n += n;
}

static void append_u32(struct gguf_writer *writer, struct bytes *to, uint32_t value)
{
    append(writer, to, &value, sizeof(value));
}

static void append_u64(struct gguf_writer *writer, struct bytes *to, uint64_t value)
{
    append(writer, to, &value, sizeof(value));
}

static void append_string(struct gguf_writer *writer, struct bytes *to, const char *text, size_t n)
{
    append_u64(writer, to, n);
    append(writer, to, text, n);
}

/* Begins an entry. */
static void append_key(struct gguf_writer *writer, const char *key, size_t n, enum gguf_type type)
{
    assert(!writer->n_tensor); /* keys come before tensors: the alignment is one of them */
    append_string(writer, &writer->kvs, key, n);
    append_u32(writer, &writer->kvs, type);
    writer->n_kv++;
}

static uint64_t round_up(const struct gguf_writer *writer, uint64_t n)
{
    return (n + writer->alignment - 1) / writer->alignment * writer->alignment;
}

/* Opens and locks the partial file. Not truncated before: another writer may own it, which the
 * lock tells. */
static enum lm_status open_partial(struct gguf_writer *writer, struct lm_error *err)
{
    struct stat info;
    if (!stat(writer->path, &info) && !S_ISREG(info.st_mode))
        return lm_fail(err, LM_E_USAGE, "%s: exists and is not a regular file", writer->path);
    const int fd = open(writer->partial_path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return lm_fail_errno(err, "%s: create", writer->partial_path);
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        close(fd);
        return lm_fail(err, LM_E_BUSY, "%s: being written by another process",
                       writer->partial_path);
    }
    writer->fd = fd; /* from here on the file is ours to remove */
    if (ftruncate(fd, 0)) return lm_fail_errno(err, "%s: truncate", writer->partial_path);
    return LM_OK;
}

enum lm_status gguf_writer_create(struct gguf_writer **out, const char *path, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    struct gguf_writer *writer = calloc(1, sizeof(*writer));
    if (!writer) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path ? path : "GGUF header");
    writer->fd = -1;
    writer->alignment = 32;
    writer->path = strdup(path ? path : "GGUF header");
    writer->buffer = malloc(BUFFER_BYTES);
    writer->checksum = XXH3_createState();
    if (writer->checksum) XXH3_64bits_reset(writer->checksum);
    if (!writer->path || !writer->buffer || !writer->checksum ||
        asprintf(&writer->partial_path, "%s.partial", writer->path) < 0) {
        writer->partial_path = NULL;
        status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", path ? path : "GGUF header");
    }
    if (status == LM_OK && path) status = open_partial(writer, err);
    if (status != LM_OK) {
        gguf_writer_destroy(writer);
        return status;
    }
    *out = writer;
    return LM_OK;
}

void gguf_writer_u32(struct gguf_writer *writer, const char *key, uint32_t value)
{
    append_key(writer, key, strlen(key), GGUF_U32);
    append_u32(writer, &writer->kvs, value);
    if (!strcmp(key, "general.alignment")) writer->alignment = value;
}

void gguf_writer_f32(struct gguf_writer *writer, const char *key, float value)
{
    append_key(writer, key, strlen(key), GGUF_F32);
    append(writer, &writer->kvs, &value, sizeof(value));
}

void gguf_writer_bool(struct gguf_writer *writer, const char *key, bool value)
{
    const uint8_t byte = value;
    append_key(writer, key, strlen(key), GGUF_BOOL);
    append(writer, &writer->kvs, &byte, sizeof(byte));
}

void gguf_writer_string(struct gguf_writer *writer, const char *key, const char *text, size_t n)
{
    append_key(writer, key, strlen(key), GGUF_STRING);
    append_string(writer, &writer->kvs, text, n);
}

static void append_array_head(struct gguf_writer *writer, enum gguf_type element, uint64_t n)
{
    append_u32(writer, &writer->kvs, element);
    append_u64(writer, &writer->kvs, n);
}

void gguf_writer_array(struct gguf_writer *writer, const char *key, enum gguf_type element,
                       const void *data, uint64_t n)
{
    assert(gguf_type_bytes(element));
    append_key(writer, key, strlen(key), GGUF_ARRAY);
    append_array_head(writer, element, n);
    append(writer, &writer->kvs, data, (size_t)n * gguf_type_bytes(element));
}

void gguf_writer_strings(struct gguf_writer *writer, const char *key,
                         const struct gguf_string *strings, uint64_t n)
{
    append_key(writer, key, strlen(key), GGUF_ARRAY);
    append_array_head(writer, GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++)
        append_string(writer, &writer->kvs, strings[i].data, strings[i].n);
}

/* Bytes of the elements of kv as the file has them. */
static size_t stored_bytes(const struct gguf_file *file, const struct gguf_kv *kv)
{
    if (kv->element != GGUF_STRING) return (size_t)kv->n * gguf_type_bytes(kv->element);
    if (!kv->n) return 0;
    if (kv->type == GGUF_STRING) {
        uint64_t n;
        memcpy(&n, kv->data, sizeof(n));
        return sizeof(n) + (size_t)n;
    }
    const struct gguf_string last = gguf_array_string(file, kv, kv->n - 1);
    return (size_t)(last.data + last.n - (const char *)kv->data);
}

void gguf_writer_copy(struct gguf_writer *writer, const struct gguf_file *file,
                      const struct gguf_kv *kv)
{
    append_key(writer, kv->key.data, kv->key.n, kv->type);
    if (kv->type == GGUF_ARRAY) append_array_head(writer, kv->element, kv->n);
    append(writer, &writer->kvs, kv->data, stored_bytes(file, kv));
    if (kv == gguf_find_kv(file, "general.alignment"))
        writer->alignment = (uint32_t)gguf_array_int(kv, 0);
}

void gguf_writer_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                        uint32_t n_dims, const uint64_t *ne)
{
    const size_t n_name = strlen(name);
    uint64_t n_row = 1;
    assert(!writer->header_written && n_name && n_name <= NAME_BYTES_MAX);
    assert(n_dims >= 1 && n_dims <= 4 && ne[0] % tensor_type_info(type)->block_elems == 0);
    if (writer->n_tensor == writer->tensors_capacity) {
        const size_t capacity = 2 * writer->tensors_capacity + 64;
        struct declared_tensor *grown = realloc(writer->tensors, capacity * sizeof(*grown));
        if (!grown) {
            lm_fail(&writer->error, LM_E_NO_MEM, "%s: no memory for %zu tensors", writer->path,
                    capacity);
            return;
        }
        writer->tensors = grown;
        writer->tensors_capacity = capacity;
    }
    append_string(writer, &writer->infos, name, n_name);
    append_u32(writer, &writer->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        append_u64(writer, &writer->infos, ne[i]);
    append_u32(writer, &writer->infos, type);
    append_u64(writer, &writer->infos, writer->n_data);
    for (uint32_t i = 1; i < n_dims; i++)
        n_row *= ne[i];
    const uint64_t n_bytes = n_row * tensor_row_bytes(type, ne[0]);
    writer->tensors[writer->n_tensor++] =
        (struct declared_tensor){n_bytes, round_up(writer, n_bytes)};
    writer->n_data += round_up(writer, n_bytes);
}

void gguf_writer_declare(struct gguf_writer *writer, const struct gguf_tensor *tensor)
{
    char name[NAME_BYTES_MAX + 1] = "";
    memcpy(name, tensor->name.data, tensor->name.n); /* < 64 by gguf_open */
    gguf_writer_tensor(writer, name, tensor->type, tensor->n_dims, tensor->ne);
}

uint64_t gguf_writer_header_bytes(const struct gguf_writer *writer)
{
    return HEAD_BYTES + writer->kvs.n + writer->infos.n;
}

static uint64_t padded_header_bytes(const struct gguf_writer *writer)
{
    return round_up(writer, gguf_writer_header_bytes(writer));
}

enum lm_status gguf_writer_measure(const struct gguf_writer *writer, uint64_t *n_bytes,
                                   struct lm_error *err)
{
    *n_bytes = padded_header_bytes(writer) + writer->n_data;
    return report(writer, err);
}

/* The first bytes of the file. */
static void file_head(const struct gguf_writer *writer, uint8_t head[HEAD_BYTES])
{
    const uint32_t version = 3;
    const uint64_t n_tensor = writer->n_tensor;
    memcpy(head, "GGUF", 4);
    memcpy(head + 4, &version, sizeof(version));
    memcpy(head + 8, &n_tensor, sizeof(n_tensor));
    memcpy(head + 16, &writer->n_kv, sizeof(writer->n_kv));
}

uint64_t gguf_writer_header_checksum(const struct gguf_writer *writer)
{
    uint8_t head[HEAD_BYTES];
    assert(!writer->header_written);
    file_head(writer, head);
    XXH3_64bits_reset(writer->checksum);
    XXH3_64bits_update(writer->checksum, head, sizeof(head));
    XXH3_64bits_update(writer->checksum, writer->kvs.data, writer->kvs.n);
    XXH3_64bits_update(writer->checksum, writer->infos.data, writer->infos.n);
    const uint64_t checksum = XXH3_64bits_digest(writer->checksum);
    XXH3_64bits_reset(writer->checksum);
    return checksum;
}

/* Data */

static void write_all(struct gguf_writer *writer, const void *data, size_t n)
{
    const char *at = data;
    XXH3_64bits_update(writer->checksum, data, n);
    while (n && writer->error.status == LM_OK) {
        const ssize_t done = write(writer->fd, at, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) {
            lm_fail_errno(&writer->error, "%s: write", writer->partial_path);
            return;
        }
        at += done;
        n -= (size_t)done;
        writer->n_written += (uint64_t)done;
    }
    write_behind_advance(&writer->behind, writer->fd, writer->n_written);
}

static void flush(struct gguf_writer *writer)
{
    write_all(writer, writer->buffer, writer->n_buffered);
    writer->n_buffered = 0;
}

/* data NULL: zeros. */
static void put(struct gguf_writer *writer, const void *data, size_t n)
{
    if (data && n >= BUFFER_BYTES) {
        flush(writer);
        write_all(writer, data, n);
        return;
    }
    for (size_t done = 0; done < n;) {
        if (writer->n_buffered == BUFFER_BYTES) flush(writer);
        const size_t room = BUFFER_BYTES - writer->n_buffered;
        const size_t piece = n - done < room ? n - done : room;
        if (data)
            memcpy(writer->buffer + writer->n_buffered, (const char *)data + done, piece);
        else
            memset(writer->buffer + writer->n_buffered, 0, piece);
        writer->n_buffered += piece;
        done += piece;
    }
}

/* Takes the disk space before hours of work go into a file that cannot be completed. */
static void reserve_space(struct gguf_writer *writer)
{
    const uint64_t n_bytes = padded_header_bytes(writer) + writer->n_data;
    if (!fallocate(writer->fd, 0, 0, (off_t)n_bytes)) return;
    if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG)
        return; /* not every file system can */
    char text[24];
    lm_fail_errno(&writer->error, "%s: needs %s", writer->path, log_format_bytes(n_bytes, text));
}

static void write_header(struct gguf_writer *writer)
{
    uint8_t head[HEAD_BYTES];
    file_head(writer, head);
    writer->header_written = true;
    put(writer, head, sizeof(head));
    put(writer, writer->kvs.data, writer->kvs.n);
    put(writer, writer->infos.data, writer->infos.n);
    put(writer, NULL, padded_header_bytes(writer) - gguf_writer_header_bytes(writer));
}

enum lm_status gguf_writer_data(struct gguf_writer *writer, const void *data, uint64_t n_bytes,
                                struct lm_error *err)
{
    const char *at = data;
    assert(writer->fd >= 0); /* not a writer that only measures */
    if (writer->error.status == LM_OK && !writer->header_written) {
        reserve_space(writer);
        write_header(writer);
    }
    while (n_bytes && writer->error.status == LM_OK) {
        if (writer->tensor_at == writer->n_tensor) {
            lm_fail(&writer->error, LM_E_FAIL, "%s: %llu bytes more than the tensors have",
                    writer->path, (unsigned long long)n_bytes);
            break;
        }
        const struct declared_tensor *tensor = &writer->tensors[writer->tensor_at];
        const uint64_t missing = tensor->n_bytes - writer->tensor_done;
        const uint64_t piece = n_bytes < missing ? n_bytes : missing;
        put(writer, at, piece);
        at += piece;
        n_bytes -= piece;
        writer->tensor_done += piece;
        if (writer->tensor_done == tensor->n_bytes) {
            put(writer, NULL, tensor->n_padded - tensor->n_bytes);
            writer->tensor_at++;
            writer->tensor_done = 0;
        }
    }
    return report(writer, err);
}

uint64_t gguf_writer_checksum(struct gguf_writer *writer)
{
    gguf_writer_data(writer, NULL, 0, NULL); /* there may be no tensor that wrote the header */
    flush(writer);
    return XXH3_64bits_digest(writer->checksum);
}

enum lm_status gguf_writer_finish(struct gguf_writer *writer, struct lm_error *err)
{
    gguf_writer_data(writer, NULL, 0, NULL);
    if (writer->error.status == LM_OK && writer->tensor_at < writer->n_tensor)
        lm_fail(&writer->error, LM_E_FAIL, "%s: tensor %zu of %zu is incomplete", writer->path,
                writer->tensor_at, writer->n_tensor);
    flush(writer);
    if (writer->error.status == LM_OK && fsync(writer->fd))
        lm_fail_errno(&writer->error, "%s: sync", writer->partial_path);
    if (writer->error.status == LM_OK && rename(writer->partial_path, writer->path))
        lm_fail_errno(&writer->error, "%s: rename to %s", writer->partial_path, writer->path);
    const enum lm_status status = report(writer, err);
    if (status == LM_OK) {
        write_behind_end(writer->fd);
        close(writer->fd);
        writer->fd = -1; /* nothing left to remove */
    }
    gguf_writer_destroy(writer);
    return status;
}

enum lm_status gguf_writer_finish_hollow(struct gguf_writer *writer, struct lm_error *err)
{
    assert(!writer->header_written);
    if (writer->error.status == LM_OK) write_header(writer);
    flush(writer);
    const uint64_t n_bytes = padded_header_bytes(writer) + writer->n_data;
    if (writer->error.status == LM_OK && ftruncate(writer->fd, (off_t)n_bytes))
        lm_fail_errno(&writer->error, "%s: truncate", writer->partial_path);
    writer->tensor_at = writer->n_tensor;
    return gguf_writer_finish(writer, err);
}

void gguf_writer_destroy(struct gguf_writer *writer)
{
    if (!writer) return;
    if (writer->fd >= 0) {
        unlink(writer->partial_path);
        close(writer->fd);
    }
    XXH3_freeState(writer->checksum);
    free(writer->path);
    free(writer->partial_path);
    free(writer->kvs.data);
    free(writer->infos.data);
    free(writer->tensors);
    free(writer->buffer);
    free(writer);
}

/* Fingerprint */

bool gguf_kv_is_split(const struct gguf_kv *kv)
{
    return kv->key.n > 6 && !memcmp(kv->key.data, "split.", 6);
}

/* 16 hexadecimal digits. */
static bool parse_fingerprint(struct gguf_string text, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < text.n; i++) {
        const char c = text.data[i];
        const bool letter = c >= 'a' && c <= 'f';
        if (!letter && !(c >= '0' && c <= '9')) return false;
        value = value << 4 | (uint64_t)(letter ? c - 'a' + 10 : c - '0');
    }
    *out = value;
    return text.n == 16;
}

enum lm_status gguf_fingerprint(const struct gguf_file *file, uint64_t *out, struct lm_error *err)
{
    struct gguf_writer *writer;
    struct gguf_string packed = {NULL, 0};
    enum lm_status status = gguf_get_string(file, GGUF_KEY_PACK_FINGERPRINT, &packed, NULL, err);
    if (status != LM_OK) return status;
    if (packed.data && parse_fingerprint(packed, out)) return LM_OK;
    if (packed.data)
        return lm_fail(err, LM_E_FORMAT, "%s: key " GGUF_KEY_PACK_FINGERPRINT " is malformed",
                       gguf_path(file));

    status = gguf_writer_create(&writer, NULL, err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < gguf_n_kv(file); i++)
        if (!gguf_kv_is_split(gguf_kv_at(file, i)))
            gguf_writer_copy(writer, file, gguf_kv_at(file, i));
    for (size_t i = 0; i < gguf_n_tensor(file); i++)
        gguf_writer_declare(writer, gguf_tensor_at(file, i));
    status = report(writer, err);
    if (status == LM_OK) *out = gguf_writer_header_checksum(writer);
    gguf_writer_destroy(writer);
    return status;
}
