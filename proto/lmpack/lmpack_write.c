/* Layout of an extent, names of the files, and the manifest's bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/lmpack.pb-c.h"
#include "proto/lmpack/lmpack.h"

static uint64_t align_up(uint64_t n, uint64_t alignment)
{
    return (n + alignment - 1) / alignment * alignment;
}

uint64_t lmpack_matrix_bytes(const struct lmpack_matrix *matrix)
{
    return matrix->n_row * tensor_row_bytes(matrix->type, matrix->n_col);
}

uint64_t lmpack_file_bytes(const struct lmpack_layer *layer, uint32_t n_expert)
{
    return layer->extent_bytes * n_expert;
}

void lmpack_lay_out(struct lmpack_layer *layer)
{
    uint64_t at = 0;
    for (int i = 0; i < LMPACK_MATRIX_COUNT; i++) {
        layer->matrix[i].offset = align_up(at, LMPACK_MATRIX_ALIGN);
        at = layer->matrix[i].offset + lmpack_matrix_bytes(&layer->matrix[i]);
    }
    layer->extent_bytes = align_up(at, LMPACK_EXTENT_ALIGN);
}

char *lmpack_layer_path(const char *folder, uint32_t il)
{
    char *path;
    return asprintf(&path, "%s/experts-%03u.bin", folder, il) < 0 ? NULL : path;
}

void lmpack_seal(uint8_t *bytes, size_t n)
{
    const uint64_t checksum = XXH3_64bits(bytes, n);
    bytes[n] = LMPACK_SEAL_TAG;
    memcpy(bytes + n + 1, &checksum, sizeof(checksum));
}

static void fill_layer(Lean__LmpackLayer *out, Lean__LmpackMatrix matrix[LMPACK_MATRIX_COUNT],
                       const struct lmpack_layer *layer, uint32_t n_expert)
{
    lean__lmpack_layer__init(out);
    out->has_layer = out->has_extent_bytes = 1;
    out->layer = layer->layer;
    out->extent_bytes = layer->extent_bytes;
    for (int i = 0; i < LMPACK_MATRIX_COUNT; i++) {
        lean__lmpack_matrix__init(&matrix[i]);
        matrix[i].has_type = matrix[i].has_n_col = matrix[i].has_n_row = matrix[i].has_offset = 1;
        matrix[i].type = layer->matrix[i].type;
        matrix[i].n_col = layer->matrix[i].n_col;
        matrix[i].n_row = layer->matrix[i].n_row;
        matrix[i].offset = layer->matrix[i].offset;
    }
    out->gate = &matrix[0];
    out->up = &matrix[1];
    out->down = &matrix[2];
    out->n_offset = out->n_checksum = n_expert;
    out->offset = (uint64_t *)layer->offset; /* packing only reads them */
    out->checksum = (uint64_t *)layer->checksum;
}

/* Packs what is in message, and the checksum behind it. *bytes: malloc'ed. */
static enum lm_status pack(const Lean__LmpackManifest *message, uint8_t **bytes, size_t *n,
                           const char *folder, struct lm_error *err)
{
    const size_t n_body = lean__lmpack_manifest__get_packed_size(message);
    uint8_t *out = malloc(n_body + LMPACK_SEAL_BYTES);
    if (!out)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a manifest of %zu bytes", folder,
                       n_body);
    lean__lmpack_manifest__pack(message, out);
    lmpack_seal(out, n_body);
    *bytes = out;
    *n = n_body + LMPACK_SEAL_BYTES;
    return LM_OK;
}

static enum lm_status serialize(const struct lmpack_manifest *manifest, uint8_t **bytes, size_t *n,
                                const char *folder, struct lm_error *err)
{
    struct entry {
        Lean__LmpackLayer layer;
        Lean__LmpackMatrix matrix[LMPACK_MATRIX_COUNT];
    } *entries = calloc(manifest->n_moe + 1, sizeof(*entries));
    Lean__LmpackLayer **layers = calloc(manifest->n_moe + 1, sizeof(*layers));
    enum lm_status status = LM_E_NO_MEM;
    if (!entries || !layers) {
        lm_fail(err, LM_E_NO_MEM, "%s: no memory for %u layers", folder, manifest->n_moe);
        goto free_entries;
    }
    for (uint32_t i = 0; i < manifest->n_moe; i++) {
        fill_layer(&entries[i].layer, entries[i].matrix, &manifest->layer[i], manifest->n_expert);
        layers[i] = &entries[i].layer;
    }
    Lean__LmpackManifest message = LEAN__LMPACK_MANIFEST__INIT;
    message.magic = "lmpack";
    message.has_version = message.has_tile_layout = message.has_fingerprint = 1;
    message.has_block_count = message.has_expert_count = 1;
    message.has_dense_bytes = message.has_dense_checksum = 1;
    message.version = LMPACK_VERSION;
    message.tile_layout = LMPACK_LAYOUT_ROWS;
    message.architecture = (char *)manifest->architecture;
    message.fingerprint = manifest->fingerprint;
    message.block_count = manifest->n_layer;
    message.expert_count = manifest->n_expert;
    message.dense_bytes = manifest->dense_bytes;
    message.dense_checksum = manifest->dense_checksum;
    message.layer = layers;
    message.n_layer = manifest->n_moe;
    status = pack(&message, bytes, n, folder, err);

free_entries:
    free(layers);
    free(entries);
    return status;
}

static enum lm_status write_file(const char *partial, const char *path, const uint8_t *bytes,
                                 size_t n, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    const int fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return lm_fail_errno(err, "%s: create", partial);
    while (n && status == LM_OK) {
        const ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) {
            status = lm_fail_errno(err, "%s: write", partial);
        } else {
            bytes += done;
            n -= (size_t)done;
        }
    }
    if (status == LM_OK && fsync(fd)) status = lm_fail_errno(err, "%s: sync", partial);
    close(fd);
    if (status == LM_OK && rename(partial, path))
        status = lm_fail_errno(err, "%s: rename to %s", partial, path);
    if (status != LM_OK) unlink(partial);
    return status;
}

enum lm_status lmpack_write_manifest(const char *folder, const struct lmpack_manifest *manifest,
                                     struct lm_error *err)
{
    uint8_t *bytes = NULL;
    size_t n = 0;
    char *path = NULL, *partial = NULL;
    enum lm_status status = serialize(manifest, &bytes, &n, folder, err);
    if (status != LM_OK) return status;
    if (asprintf(&path, "%s/" LMPACK_MANIFEST_NAME, folder) < 0) path = NULL;
    if (asprintf(&partial, "%s/" LMPACK_MANIFEST_NAME ".partial", folder) < 0) partial = NULL;
    status = path && partial ? write_file(partial, path, bytes, n, err)
                             : lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", folder);
    free(partial);
    free(path);
    free(bytes);
    return status;
}
