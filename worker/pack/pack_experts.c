/* Batches of experts: gathered with preadv, written with pwrite. */
#include "worker/pack/pack_experts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/write_behind.h"
#include "proto/lmpack/lmpack.h"
#include "worker/pack/pack_progress.h"
#include "worker/pack/packer.h"
#include "worker/pager/expert_store.h"

enum { BATCH_EXPERTS_MAX = 128, PIECES_MAX = BATCH_EXPERTS_MAX * LMPACK_MATRIX_COUNT };
_Static_assert(PIECES_MAX <= 1024, "one preadv can take them all");

/* A matrix of an expert: where it lies in the source, and where it goes. */
struct piece {
    struct expert_extent from;
    uint8_t *to;
};

enum lm_status pack_buffer_create(struct pack_buffer *out, uint64_t extent_bytes,
                                  struct lm_error *err)
{
    const uint64_t batch_bytes =
        extent_bytes > PACK_BATCH_BYTES ? extent_bytes : (uint64_t)PACK_BATCH_BYTES;
    *out = (struct pack_buffer){.batch = malloc(batch_bytes), .extent = malloc(extent_bytes + 1)};
    if (out->batch && out->extent) return LM_OK;
    pack_buffer_destroy(out);
    return lm_fail(err, LM_E_NO_MEM, "no memory for experts of %llu bytes",
                   (unsigned long long)extent_bytes);
}

void pack_buffer_destroy(struct pack_buffer *buffer)
{
    free(buffer->batch);
    free(buffer->extent);
}

void pack_lay_out(struct lmpack_layer *out, const struct expert_layer *source)
{
    const struct weight *const weight[] = {&source->gate, &source->up, &source->down};
    for (int i = 0; i < LMPACK_MATRIX_COUNT; i++)
        out->matrix[i] = (struct lmpack_matrix){
            .type = weight[i]->type, .n_col = weight[i]->n_col, .n_row = weight[i]->n_row};
    lmpack_lay_out(out);
}

static uint32_t batch_experts(const struct lmpack_layer *layer)
{
    const uint64_t n = PACK_BATCH_BYTES / layer->extent_bytes;
    return n < 1 ? 1 : n < BATCH_EXPERTS_MAX ? (uint32_t)n : BATCH_EXPERTS_MAX;
}

/* ---- reading ------------------------------------------------------------------------------ */

static int by_place(const void *a, const void *b)
{
    const struct expert_extent *x = &((const struct piece *)a)->from;
    const struct expert_extent *y = &((const struct piece *)b)->from;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Reads one run of bytes of a file into several places. iov is used up. */
static enum lm_status read_run(struct expert_file file, uint64_t offset, struct iovec *iov, int n,
                               struct lm_error *err)
{
    while (n > 0) {
        ssize_t got = preadv(file.fd, iov, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return lm_fail_errno(err, "%s: read at %llu", file.path, (unsigned long long)offset);
        if (!got)
            return lm_fail(err, LM_E_FORMAT, "%s: ends at %llu, inside the experts", file.path,
                           (unsigned long long)offset);
        offset += (uint64_t)got;
        for (; n > 0 && (size_t)got >= iov->iov_len; iov++, n--)
            got -= (ssize_t)iov->iov_len;
        if (n > 0) {
            iov->iov_base = (char *)iov->iov_base + got;
            iov->iov_len -= (size_t)got;
        }
    }
    return LM_OK;
}

static uint32_t list_pieces(const struct pack_experts *experts, uint32_t ie_begin, uint32_t n,
                            struct piece *out)
{
    const uint32_t il = experts->layer->layer;
    const struct expert_layer *layer = expert_store_layer(experts->source, il);
    uint32_t n_piece = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct expert_extent extent[EXPERT_PART_MAX];
        expert_store_locate(experts->source, (struct expert_key){il, ie_begin + i}, extent);
        for (int m = 0; m < LMPACK_MATRIX_COUNT; m++) {
            const struct lmpack_matrix *matrix = &experts->layer->matrix[m];
            struct piece *piece = &out[n_piece++];
            piece->from = extent[layer->matrix[m].part];
            piece->from.offset += layer->matrix[m].offset;
            piece->from.n_bytes = lmpack_matrix_bytes(matrix);
            piece->to = experts->buffer.batch + i * experts->layer->extent_bytes + matrix->offset;
        }
    }
    return n_piece;
}

/* Experts ie_begin .. ie_begin + n of the source, as extents, into the batch. */
static enum lm_status read_source(const struct pack_experts *experts, uint32_t ie_begin, uint32_t n,
                                  struct lm_error *err)
{
    struct piece piece[PIECES_MAX];
    struct iovec iov[PIECES_MAX];
    const struct pack_arrival *arrival = experts->arrival;
    const uint32_t n_piece = list_pieces(experts, ie_begin, n, piece);
    memset(experts->buffer.batch, 0, n * experts->layer->extent_bytes);
    qsort(piece, n_piece, sizeof(piece[0]), by_place);
    for (uint32_t first = 0, end; first < n_piece; first = end) {
        const struct expert_file file = expert_store_file(experts->source, piece[first].from.file);
        const uint64_t offset = piece[first].from.offset;
        uint64_t at = offset;
        for (end = first; end < n_piece && piece[end].from.file == piece[first].from.file &&
                          piece[end].from.offset == at;
             end++) {
            iov[end] = (struct iovec){piece[end].to, piece[end].from.n_bytes};
            at += piece[end].from.n_bytes;
        }
        enum lm_status status = LM_OK;
        if (arrival) status = arrival->wait(arrival->context, file.path, offset, at - offset, err);
        if (status == LM_OK) status = read_run(file, offset, iov + first, (int)(end - first), err);
        if (status != LM_OK) return status;
        posix_fadvise(file.fd, (off_t)offset, (off_t)(at - offset), POSIX_FADV_DONTNEED);
    }
    return LM_OK;
}

/* ---- writing ------------------------------------------------------------------------------ */

static enum lm_status write_batch(int fd, const char *path, const uint8_t *bytes, uint64_t n,
                                  uint64_t offset, struct lm_error *err)
{
    while (n) {
        const ssize_t done = pwrite(fd, bytes, n, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0)
            return lm_fail_errno(err, "%s: write at %llu", path, (unsigned long long)offset);
        bytes += done;
        offset += (uint64_t)done;
        n -= (uint64_t)done;
    }
    return LM_OK;
}

static enum lm_status write_extents(const struct pack_experts *experts, int fd, const char *path,
                                    uint64_t *checksum, struct lm_error *err)
{
    const uint64_t extent_bytes = experts->layer->extent_bytes;
    const uint32_t n_batch = batch_experts(experts->layer);
    struct write_behind behind = {0};
    for (uint32_t ie = 0, n; ie < experts->n_expert; ie += n) {
        n = experts->n_expert - ie < n_batch ? experts->n_expert - ie : n_batch;
        enum lm_status status = read_source(experts, ie, n, err);
        for (uint32_t i = 0; i < n && status == LM_OK; i++)
            checksum[ie + i] = XXH3_64bits(experts->buffer.batch + i * extent_bytes, extent_bytes);
        if (status == LM_OK)
            status = write_batch(fd, path, experts->buffer.batch, n * extent_bytes,
                                 ie * extent_bytes, err);
        if (status == LM_OK) status = pack_progress_add(experts->progress, n * extent_bytes);
        if (status != LM_OK) return status;
        write_behind_advance(&behind, fd, (ie + n) * extent_bytes);
    }
    if (fsync(fd)) return lm_fail_errno(err, "%s: sync", path);
    write_behind_end(fd);
    return LM_OK;
}

/* Takes the disk space first, so that a full disk is known before the work. */
static enum lm_status reserve(int fd, const char *path, uint64_t n_bytes, struct lm_error *err)
{
    if (!fallocate(fd, 0, 0, (off_t)n_bytes)) return LM_OK;
    if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG)
        return LM_OK; /* not every file system can */
    return lm_fail_errno(err, "%s: needs %llu bytes", path, (unsigned long long)n_bytes);
}

enum lm_status pack_experts_write(const struct pack_experts *experts, const char *path,
                                  uint64_t *checksum, struct lm_error *err)
{
    char *partial;
    if (asprintf(&partial, "%s.partial", path) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", path);
    enum lm_status status;
    const int fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        status = lm_fail_errno(err, "%s: create", partial);
        goto free_partial;
    }
    status = reserve(fd, partial, lmpack_file_bytes(experts->layer, experts->n_expert), err);
    if (status == LM_OK) status = write_extents(experts, fd, partial, checksum, err);
    close(fd);
    if (status == LM_OK && rename(partial, path))
        status = lm_fail_errno(err, "%s: rename to %s", partial, path);
    if (status != LM_OK) unlink(partial);

free_partial:
    free(partial);
    return status;
}

void pack_experts_release(const struct pack_experts *experts)
{
    const struct pack_arrival *arrival = experts->arrival;
    for (uint32_t ie = 0, n; arrival && ie < experts->n_expert; ie += n) {
        struct piece piece[PIECES_MAX];
        n = experts->n_expert - ie < BATCH_EXPERTS_MAX ? experts->n_expert - ie : BATCH_EXPERTS_MAX;
        const uint32_t n_piece = list_pieces(experts, ie, n, piece);
        for (uint32_t i = 0; i < n_piece; i++)
            arrival->release(arrival->context,
                             expert_store_file(experts->source, piece[i].from.file).path,
                             piece[i].from.offset, piece[i].from.n_bytes);
    }
}

/* ---- checking ----------------------------------------------------------------------------- */

static const char *const matrix_names[LMPACK_MATRIX_COUNT] = {"gate", "up", "down"};

/* Which matrix differs; the padding counts as part of the one before. */
static enum lm_status report_difference(const struct pack_experts *experts, const char *path,
                                        uint32_t ie, const uint8_t *want, struct lm_error *err)
{
    const struct lmpack_layer *layer = experts->layer;
    uint64_t at = 0;
    while (experts->buffer.extent[at] == want[at])
        at++;
    int m = LMPACK_MATRIX_COUNT - 1;
    while (at < layer->matrix[m].offset)
        m--;
    return lm_fail(
        err, LM_E_MISMATCH, "%s: layer %u, expert %u, %s: byte %llu is %u, in the source it is %u",
        path, layer->layer, ie, matrix_names[m], (unsigned long long)(at - layer->matrix[m].offset),
        experts->buffer.extent[at], want[at]);
}

/* Reads an expert's extent from the file. */
static enum lm_status read_extent(const struct pack_experts *experts, struct expert_file file,
                                  uint64_t offset, struct lm_error *err)
{
    const uint64_t n_bytes = experts->layer->extent_bytes;
    struct iovec iov = {experts->buffer.extent, n_bytes};
    const enum lm_status status = read_run(file, offset, &iov, 1, err);
    posix_fadvise(file.fd, (off_t)offset, (off_t)n_bytes, POSIX_FADV_DONTNEED);
    return status;
}

static enum lm_status compare_expert(const struct pack_experts *experts, const char *path,
                                     uint32_t ie, const uint8_t *want, struct lm_error *err)
{
    if (!memcmp(experts->buffer.extent, want, experts->layer->extent_bytes)) return LM_OK;
    return report_difference(experts, path, ie, want, err);
}

static enum lm_status verify_expert(const struct pack_experts *experts, const char *path,
                                    uint32_t ie, struct lm_error *err)
{
    const struct lmpack_layer *layer = experts->layer;
    const uint64_t checksum = XXH3_64bits(experts->buffer.extent, layer->extent_bytes);
    if (checksum == layer->checksum[ie]) return LM_OK;
    return lm_fail(err, LM_E_FORMAT, "%s: layer %u, expert %u: checksum %016llx, must be %016llx",
                   path, layer->layer, ie, (unsigned long long)checksum,
                   (unsigned long long)layer->checksum[ie]);
}

/* found NULL: verified, else compared and found is filled. want NULL: there is no source. */
static enum lm_status check_expert(const struct pack_experts *experts, struct expert_file file,
                                   uint32_t ie, const uint8_t *want, uint64_t *found,
                                   struct lm_error *err)
{
    const uint64_t extent_bytes = experts->layer->extent_bytes;
    const uint64_t offset = found ? ie * extent_bytes : experts->layer->offset[ie];
    enum lm_status status = read_extent(experts, file, offset, err);
    if (status != LM_OK) return status;
    if (found) {
        found[ie] = XXH3_64bits(experts->buffer.extent, extent_bytes);
        status = compare_expert(experts, file.path, ie, want, err);
    } else {
        struct lm_error damage;
        enum lm_status held = verify_expert(experts, file.path, ie, &damage);
        if (held == LM_OK && want) held = compare_expert(experts, file.path, ie, want, &damage);
        if (held != LM_OK) pack_progress_damage(experts->progress, &damage);
    }
    return status == LM_OK ? pack_progress_add(experts->progress, extent_bytes) : status;
}

static enum lm_status check_extents(const struct pack_experts *experts, struct expert_file file,
                                    uint64_t *found, struct lm_error *err)
{
    const uint32_t n_batch = batch_experts(experts->layer);
    enum lm_status status = LM_OK;
    for (uint32_t ie = 0, n; ie < experts->n_expert && status == LM_OK; ie += n) {
        n = experts->n_expert - ie < n_batch ? experts->n_expert - ie : n_batch;
        if (experts->source) status = read_source(experts, ie, n, err);
        for (uint32_t i = 0; i < n && status == LM_OK; i++) {
            const uint8_t *want = experts->buffer.batch + i * experts->layer->extent_bytes;
            status = check_expert(experts, file, ie + i, experts->source ? want : NULL, found, err);
        }
    }
    return status;
}

static enum lm_status check_file(const struct pack_experts *experts, const char *path,
                                 uint64_t *found, struct lm_error *err)
{
    const uint64_t n_bytes = lmpack_file_bytes(experts->layer, experts->n_expert);
    struct stat info;
    enum lm_status status = LM_OK;
    const struct expert_file file = {.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (file.fd < 0) return lm_fail_errno(err, "%s", path);
    if (fstat(file.fd, &info))
        status = lm_fail_errno(err, "%s", path);
    else if ((uint64_t)info.st_size != n_bytes)
        status = lm_fail(err, LM_E_FORMAT, "%s: has %lld bytes, must have %llu", path,
                         (long long)info.st_size, (unsigned long long)n_bytes);
    if (status == LM_OK) status = check_extents(experts, file, found, err);
    close(file.fd);
    return status;
}

enum lm_status pack_experts_compare(const struct pack_experts *experts, const char *path,
                                    uint64_t *found, struct lm_error *err)
{
    assert(experts->source && found);
    return check_file(experts, path, found, err);
}

enum lm_status pack_experts_verify(const struct pack_experts *experts, const char *path,
                                   struct lm_error *err)
{
    return check_file(experts, path, NULL, err);
}
