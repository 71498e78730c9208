/* Tensors go through a buffer, read by descriptor, so that neither the mapping nor the page cache
 * fills up. */
#include "worker/pack/pack_dense.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/log.h"
#include "proto/gguf/gguf_write.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"
#include "worker/pack/pack_progress.h"
#include "worker/pack/packer.h"

enum { PIECE_BYTES = 4 << 20 };

/* Whether a tensor goes into the files of the experts instead. */
static bool is_routed_expert(const struct gguf_tensor *tensor, const struct hparams *hp)
{
    enum tensor_role role;
    uint32_t il, ie;
    return tensor_name_parse(tensor->name.data, tensor->name.n, &role, &il, &ie) &&
           tensor_role_is_experts(role) && il < hp->n_layer + hp->n_layer_mtp &&
           hp->layer[il].moe && ie < hp->n_expert;
}

uint64_t pack_dense_left_out_bytes(const struct gguf_file *source, const struct hparams *hp)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < gguf_n_tensor(source); i++)
        if (is_routed_expert(gguf_tensor_at(source, i), hp))
            n_bytes += gguf_tensor_at(source, i)->n_bytes;
    return n_bytes;
}

/* All that is before the data. */
static enum lm_status declare(struct gguf_writer *writer, const struct gguf_file *source,
                              const struct hparams *hp, struct lm_error *err)
{
    uint64_t fingerprint;
    char text[17];
    const enum lm_status status = gguf_fingerprint(source, &fingerprint, err);
    if (status != LM_OK) return status;
    snprintf(text, sizeof(text), "%016llx", (unsigned long long)fingerprint);
    for (size_t i = 0; i < gguf_n_kv(source); i++)
        if (!gguf_kv_is_split(gguf_kv_at(source, i)))
            gguf_writer_copy(writer, source, gguf_kv_at(source, i));
    gguf_writer_u32(writer, GGUF_KEY_PACK_VERSION, LMPACK_VERSION);
    gguf_writer_string(writer, GGUF_KEY_PACK_FINGERPRINT, text, strlen(text));
    for (size_t i = 0; i < gguf_n_tensor(source); i++)
        if (!is_routed_expert(gguf_tensor_at(source, i), hp))
            gguf_writer_declare(writer, gguf_tensor_at(source, i));
    return LM_OK;
}

enum lm_status pack_dense_size(const struct gguf_file *source, const struct hparams *hp,
                               uint64_t *n_bytes, struct lm_error *err)
{
    struct gguf_writer *writer;
    enum lm_status status = gguf_writer_create(&writer, NULL, err);
    if (status != LM_OK) return status;
    status = declare(writer, source, hp, err);
    if (status == LM_OK) status = gguf_writer_measure(writer, n_bytes, err);
    gguf_writer_destroy(writer);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------ */

/* The next bytes of a file, which leave the page cache. */
static enum lm_status read_piece(int fd, const char *path, uint64_t offset, uint8_t *to, size_t n,
                                 struct lm_error *err)
{
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(fd, to + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return lm_fail_errno(err, "%s: read at %llu", path,
                                 (unsigned long long)(offset + done));
        if (!got)
            return lm_fail(err, LM_E_FORMAT, "%s: ends at %llu", path,
                           (unsigned long long)(offset + done));
        done += (size_t)got;
    }
    posix_fadvise(fd, (off_t)offset, (off_t)n, POSIX_FADV_DONTNEED);
    return LM_OK;
}

static enum lm_status read_tensor_piece(const struct gguf_file *file,
                                        const struct gguf_tensor *tensor, uint64_t offset,
                                        uint8_t *to, size_t n, struct lm_error *err)
{
    const struct gguf_shard *shard = gguf_shard_at(file, tensor->shard);
    return read_piece(shard->fd, shard->path, tensor->file_offset + offset, to, n, err);
}

static size_t piece_at(uint64_t offset, uint64_t n_bytes)
{
    return n_bytes - offset < PIECE_BYTES ? (size_t)(n_bytes - offset) : PIECE_BYTES;
}

/* ---- writing ------------------------------------------------------------------------------ */

static enum lm_status write_tensor(struct gguf_writer *writer, const struct gguf_file *source,
                                   const struct gguf_tensor *tensor, uint8_t *buffer,
                                   const struct pack_arrival *arrival,
                                   struct pack_progress *progress, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (arrival)
        status = arrival->wait(arrival->context, gguf_shard_at(source, tensor->shard)->path,
                               tensor->file_offset, tensor->n_bytes, err);
    for (uint64_t at = 0; at < tensor->n_bytes && status == LM_OK; at += PIECE_BYTES) {
        const size_t n = piece_at(at, tensor->n_bytes);
        status = read_tensor_piece(source, tensor, at, buffer, n, err);
        if (status == LM_OK) status = gguf_writer_data(writer, buffer, n, err);
        if (status == LM_OK) status = pack_progress_add(progress, n);
    }
    return status;
}

enum lm_status pack_dense_write(const struct gguf_file *source, const struct hparams *hp,
                                const char *path, const struct pack_arrival *arrival,
                                struct pack_progress *progress, uint64_t *n_bytes,
                                uint64_t *checksum, struct lm_error *err)
{
    struct gguf_writer *writer;
    uint8_t *buffer = malloc(PIECE_BYTES);
    if (!buffer) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    enum lm_status status = gguf_writer_create(&writer, path, err);
    if (status != LM_OK) goto free_buffer;
    status = declare(writer, source, hp, err);
    for (size_t i = 0; i < gguf_n_tensor(source) && status == LM_OK; i++)
        if (!is_routed_expert(gguf_tensor_at(source, i), hp))
            status = write_tensor(writer, source, gguf_tensor_at(source, i), buffer, arrival,
                                  progress, err);
    if (status != LM_OK) {
        gguf_writer_destroy(writer);
        goto free_buffer;
    }
    gguf_writer_measure(writer, n_bytes, NULL); /* finish reports its error */
    *checksum = gguf_writer_checksum(writer);
    status = gguf_writer_finish(writer, err);

free_buffer:
    free(buffer);
    return status;
}

/* ---- checking ----------------------------------------------------------------------------- */

static enum lm_status hash_file(int fd, const char *path, uint8_t *buffer, XXH3_state_t *state,
                                struct pack_progress *progress, struct lm_error *err)
{
    const off_t n_bytes = lseek(fd, 0, SEEK_END);
    enum lm_status status = LM_OK;
    if (n_bytes < 0) return lm_fail_errno(err, "%s: size", path);
    XXH3_64bits_reset(state);
    for (uint64_t at = 0; at < (uint64_t)n_bytes && status == LM_OK; at += PIECE_BYTES) {
        const size_t n = piece_at(at, (uint64_t)n_bytes);
        status = read_piece(fd, path, at, buffer, n, err);
        XXH3_64bits_update(state, buffer, n);
        if (status == LM_OK) status = pack_progress_add(progress, n);
    }
    return status;
}

enum lm_status pack_dense_check(const char *path, uint64_t checksum, struct pack_progress *progress,
                                struct lm_error *err)
{
    uint8_t *buffer = malloc(PIECE_BYTES);
    XXH3_state_t *state = XXH3_createState();
    enum lm_status status;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        status = lm_fail_errno(err, "%s", path);
    } else if (!buffer || !state) {
        status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    } else {
        status = hash_file(fd, path, buffer, state, progress, err);
        const uint64_t found = XXH3_64bits_digest(state);
        if (status == LM_OK && found != checksum)
            status = lm_fail(err, LM_E_FORMAT, "%s: checksum %016llx, must be %016llx", path,
                             (unsigned long long)found, (unsigned long long)checksum);
    }
    if (fd >= 0) close(fd);
    XXH3_freeState(state);
    free(buffer);
    return status;
}

static enum lm_status compare_tensor(const struct gguf_file *source, const struct gguf_file *dense,
                                     const struct gguf_tensor *want, uint8_t *buffer,
                                     struct lm_error *err)
{
    char name[TENSOR_NAME_MAX] = "", shown[256];
    memcpy(name, want->name.data, want->name.n);
    log_printable(name, want->name.n, shown, sizeof(shown));
    const struct gguf_tensor *got = gguf_find_tensor(dense, name);
    if (!got || got->type != want->type || memcmp(got->ne, want->ne, sizeof(got->ne)))
        return lm_fail(err, LM_E_MISMATCH, "%s: tensor %s: missing, or not as in the source",
                       gguf_path(dense), shown);
    for (uint64_t at = 0; at < want->n_bytes; at += PIECE_BYTES) {
        const size_t n = piece_at(at, want->n_bytes);
        uint8_t *const other = buffer + PIECE_BYTES;
        enum lm_status status = read_tensor_piece(source, want, at, buffer, n, err);
        if (status == LM_OK) status = read_tensor_piece(dense, got, at, other, n, err);
        if (status != LM_OK) return status;
        if (memcmp(buffer, other, n))
            return lm_fail(err, LM_E_MISMATCH, "%s: tensor %s: not the source's bytes",
                           gguf_path(dense), shown);
    }
    return LM_OK;
}

/* The header is compared as a whole: by the checksum of what it must be. */
static enum lm_status compare_header(const struct gguf_file *source, const struct hparams *hp,
                                     const struct gguf_file *dense, struct lm_error *err)
{
    const struct gguf_shard *shard = gguf_shard_at(dense, 0);
    struct gguf_writer *writer;
    enum lm_status status = gguf_writer_create(&writer, NULL, err);
    if (status != LM_OK) return status;
    status = declare(writer, source, hp, err);
    if (status == LM_OK) {
        const uint64_t n = gguf_writer_header_bytes(writer);
        if (n > shard->n_bytes ||
            XXH3_64bits(shard->data, n) != gguf_writer_header_checksum(writer))
            status = lm_fail(err, LM_E_MISMATCH, "%s: metadata or tensors are not the source's",
                             gguf_path(dense));
    }
    gguf_writer_destroy(writer);
    return status;
}

enum lm_status pack_dense_compare(const struct gguf_file *source, const struct hparams *hp,
                                  const char *path, struct lm_error *err)
{
    struct gguf_file *dense;
    enum lm_status status = gguf_open(&dense, path, err);
    if (status != LM_OK) return status;
    uint8_t *buffer = malloc(2 * PIECE_BYTES);
    if (!buffer) status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    if (status == LM_OK) status = compare_header(source, hp, dense, err);
    for (size_t i = 0; i < gguf_n_tensor(source) && status == LM_OK; i++)
        if (!is_routed_expert(gguf_tensor_at(source, i), hp))
            status = compare_tensor(source, dense, gguf_tensor_at(source, i), buffer, err);
    free(buffer);
    gguf_close(dense);
    return status;
}
