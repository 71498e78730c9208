/* Reading a pack: the manifest as protobuf-c gives it, held against everything that FORMAT.md says
 * of it before a number of it is used. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/read_all.h"
#include "proto/base/unpack_memory.h"
#include "proto/gguf/gguf_write.h"
#include "proto/lmpack.pb-c.h"
#include "proto/lmpack/lmpack.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the seal is read as the file has it");

enum {
    MANIFEST_BYTES_MAX = 32 << 20, /* 512 layers of 4096 experts take 27 MB */
    SIDE_MAX = 1 << 22,            /* rows and columns: no product of sizes overflows 64 bits */
};

struct layer_file {
    char *path;
    int fd;
    void *data; /* NULL: not opened */
    uint64_t n_bytes;
};

struct lmpack {
    char *folder;
    Lean__LmpackManifest *message; /* owns the arrays that layers point into */
    struct unpack_memory memory;   /* of the message */
    struct lmpack_manifest manifest;
    struct lmpack_layer *layer;               /* [n_moe] */
    struct layer_file file[LMPACK_MAX_LAYER]; /* by layer */
};

/* ---- the message ------------------------------------------------------------------------ */

static enum lm_status unpack(struct lmpack *pack, const uint8_t *bytes, size_t n,
                             struct lm_error *err)
{
    uint64_t checksum;
    if (n > MANIFEST_BYTES_MAX)
        return lm_fail(err, LM_E_FORMAT, "%s: manifest of %zu bytes, at most %d can be",
                       pack->folder, n, MANIFEST_BYTES_MAX);
    if (n < LMPACK_SEAL_BYTES || bytes[n - LMPACK_SEAL_BYTES] != LMPACK_SEAL_TAG)
        return lm_fail(err, LM_E_FORMAT, "%s: manifest is cut off, or is none", pack->folder);
    memcpy(&checksum, bytes + n - sizeof(checksum), sizeof(checksum));
    const uint64_t computed = XXH3_64bits(bytes, n - LMPACK_SEAL_BYTES);
    if (checksum != computed)
        return lm_fail(err, LM_E_FORMAT,
                       "%s: manifest is damaged: checksum %016llx, must be %016llx", pack->folder,
                       (unsigned long long)computed, (unsigned long long)checksum);
    /* A small message can ask for much memory: fields that repeat, nested messages. What a good one
     * takes follows from its size. */
    unpack_memory_init(&pack->memory, 12 * n + (1 << 20));
    pack->message = lean__lmpack_manifest__unpack(&pack->memory.allocator, n, bytes);
    if (pack->message) return LM_OK;
    if (pack->memory.failed)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for the manifest", pack->folder);
    return lm_fail(err, LM_E_FORMAT, "%s: manifest is malformed", pack->folder);
}

/* ---- checks ----------------------------------------------------------------------------- */

static enum lm_status read_head(struct lmpack *pack, struct lm_error *err)
{
    const Lean__LmpackManifest *message = pack->message;
    if (!message->magic || strcmp(message->magic, "lmpack"))
        return lm_fail(err, LM_E_FORMAT, "%s: manifest is not that of a pack", pack->folder);
    if (message->version != LMPACK_VERSION || message->tile_layout != LMPACK_LAYOUT_ROWS)
        return lm_fail(err, LM_E_UNSUPPORTED,
                       "%s: pack of version %u with layout %u, only version %d with layout %d is "
                       "supported",
                       pack->folder, message->version, message->tile_layout, LMPACK_VERSION,
                       LMPACK_LAYOUT_ROWS);
    if (message->block_count < 1 || message->block_count > LMPACK_MAX_LAYER ||
        message->expert_count > LMPACK_MAX_EXPERT || message->n_layer > message->block_count)
        return lm_fail(err, LM_E_FORMAT,
                       "%s: manifest: %u layers, %zu of them with %u experts, must be at most %d "
                       "and %d",
                       pack->folder, message->block_count, message->n_layer, message->expert_count,
                       LMPACK_MAX_LAYER, LMPACK_MAX_EXPERT);
    if (!message->expert_count != !message->n_layer)
        return lm_fail(err, LM_E_FORMAT, "%s: manifest: %zu layers with %u experts", pack->folder,
                       message->n_layer, message->expert_count);
    pack->manifest = (struct lmpack_manifest){
        .architecture = message->architecture ? message->architecture : "",
        .fingerprint = message->fingerprint,
        .n_layer = message->block_count,
        .n_expert = message->expert_count,
        .dense_bytes = message->dense_bytes,
        .dense_checksum = message->dense_checksum,
        .n_moe = (uint32_t)message->n_layer,
    };
    return LM_OK;
}

static enum lm_status read_matrix(struct lmpack_matrix *out, const Lean__LmpackMatrix *message,
                                  const char *folder, uint32_t il, struct lm_error *err)
{
    if (!message) return lm_fail(err, LM_E_FORMAT, "%s: layer %u: a matrix is missing", folder, il);
    const struct tensor_type_info *type = tensor_type_info(message->type);
    if (!type || !type->block_elems)
        return lm_fail(err, LM_E_FORMAT, "%s: layer %u: type %u is unknown", folder, il,
                       message->type);
    if (!message->n_row || message->n_row > SIDE_MAX || !message->n_col ||
        message->n_col > SIDE_MAX || message->n_col % type->block_elems)
        return lm_fail(err, LM_E_FORMAT, "%s: layer %u: no matrix of %s can have %u rows of %u",
                       folder, il, type->name, message->n_row, message->n_col);
    *out = (struct lmpack_matrix){
        .type = (enum tensor_type)message->type, .n_col = message->n_col, .n_row = message->n_row};
    return LM_OK;
}

/* The layout follows from types and sizes; the manifest must say the same. */
static enum lm_status check_layout(const struct lmpack_layer *layer,
                                   const Lean__LmpackLayer *message, const char *folder,
                                   struct lm_error *err)
{
    const uint64_t given[] = {message->gate->offset, message->up->offset, message->down->offset,
                              message->extent_bytes};
    const uint64_t want[] = {layer->matrix[0].offset, layer->matrix[1].offset,
                             layer->matrix[2].offset, layer->extent_bytes};
    static const char *const names[] = {"offset of gate", "offset of up", "offset of down",
                                        "size of an extent"};
    for (int i = 0; i < 4; i++)
        if (given[i] != want[i])
            return lm_fail(err, LM_E_FORMAT, "%s: layer %u: %s is %llu, must be %llu", folder,
                           layer->layer, names[i], (unsigned long long)given[i],
                           (unsigned long long)want[i]);
    return LM_OK;
}

/* Every extent has a place of its own: with n of one size in a file of n, they fill it. */
static enum lm_status check_extents(const struct lmpack_layer *layer, uint32_t n_expert,
                                    const char *folder, struct lm_error *err)
{
    bool taken[LMPACK_MAX_EXPERT] = {false};
    for (uint32_t ie = 0; ie < n_expert; ie++) {
        const uint64_t place = layer->offset[ie] / layer->extent_bytes;
        if (layer->offset[ie] % layer->extent_bytes || place >= n_expert || taken[place])
            return lm_fail(err, LM_E_FORMAT,
                           "%s: layer %u, expert %u: offset %llu is not a free multiple of %llu "
                           "below %llu",
                           folder, layer->layer, ie, (unsigned long long)layer->offset[ie],
                           (unsigned long long)layer->extent_bytes,
                           (unsigned long long)lmpack_file_bytes(layer, n_expert));
        taken[place] = true;
    }
    return LM_OK;
}

static enum lm_status read_layer(struct lmpack_layer *out, const Lean__LmpackLayer *message,
                                 uint32_t n_expert, const char *folder, struct lm_error *err)
{
    const Lean__LmpackMatrix *const matrix[] = {message->gate, message->up, message->down};
    enum lm_status status = LM_OK;
    out->layer = message->layer;
    for (int i = 0; i < LMPACK_MATRIX_COUNT && status == LM_OK; i++)
        status = read_matrix(&out->matrix[i], matrix[i], folder, out->layer, err);
    if (status != LM_OK) return status;
    if (message->n_offset != n_expert || message->n_checksum != n_expert)
        return lm_fail(err, LM_E_FORMAT,
                       "%s: layer %u: %zu offsets and %zu checksums, must be %u of each", folder,
                       out->layer, message->n_offset, message->n_checksum, n_expert);
    lmpack_lay_out(out);
    status = check_layout(out, message, folder, err);
    out->offset = message->offset;
    out->checksum = message->checksum;
    return status == LM_OK ? check_extents(out, n_expert, folder, err) : status;
}

static enum lm_status read_layers(struct lmpack *pack, struct lm_error *err)
{
    const Lean__LmpackManifest *message = pack->message;
    pack->layer = calloc(message->n_layer + 1, sizeof(*pack->layer));
    if (!pack->layer)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for %zu layers", pack->folder,
                       message->n_layer);
    pack->manifest.layer = pack->layer;
    uint32_t il_next = 0;
    for (size_t i = 0; i < message->n_layer; i++) {
        const uint32_t il = message->layer[i]->layer;
        if (il < il_next || il >= message->block_count)
            return lm_fail(err, LM_E_FORMAT, "%s: manifest: layer %u is out of order, or beyond %u",
                           pack->folder, il, message->block_count);
        il_next = il + 1;
        const enum lm_status status = read_layer(&pack->layer[i], message->layer[i],
                                                 message->expert_count, pack->folder, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

/* ---- opening ---------------------------------------------------------------------------- */

enum lm_status lmpack_parse(struct lmpack **out, const void *bytes, size_t n, const char *folder,
                            struct lm_error *err)
{
    struct lmpack *pack = calloc(1, sizeof(*pack));
    if (pack) pack->folder = strdup(folder);
    if (!pack || !pack->folder) {
        free(pack);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", folder);
    }
    enum lm_status status = unpack(pack, bytes, n, err);
    if (status == LM_OK) status = read_head(pack, err);
    if (status == LM_OK) status = read_layers(pack, err);
    if (status != LM_OK) {
        lmpack_close(pack);
        return status;
    }
    *out = pack;
    return LM_OK;
}

static enum lm_status check_dense(const struct lmpack *pack, struct lm_error *err)
{
    struct stat info;
    char *path;
    enum lm_status status = LM_OK;
    if (asprintf(&path, "%s/" LMPACK_DENSE_NAME, pack->folder) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", pack->folder);
    if (stat(path, &info))
        status = lm_fail_errno(err, "%s", path);
    else if ((uint64_t)info.st_size != pack->manifest.dense_bytes)
        status =
            lm_fail(err, LM_E_FORMAT, "%s: has %lld bytes, must have %llu by the manifest", path,
                    (long long)info.st_size, (unsigned long long)pack->manifest.dense_bytes);
    free(path);
    return status;
}

enum lm_status lmpack_open(struct lmpack **out, const char *folder, struct lm_error *err)
{
    char *path, *bytes;
    size_t n;
    struct lmpack *pack = NULL;
    if (asprintf(&path, "%s/" LMPACK_MANIFEST_NAME, folder) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", folder);
    enum lm_status status = read_all_path(path, MANIFEST_BYTES_MAX, &bytes, &n, err);
    free(path);
    if (status != LM_OK) return status;
    status = lmpack_parse(&pack, bytes, n, folder, err);
    free(bytes);
    if (status == LM_OK) status = check_dense(pack, err);
    if (status != LM_OK) {
        lmpack_close(pack);
        return status;
    }
    *out = pack;
    return LM_OK;
}

/* Both name the model they are of. */
static enum lm_status check_fingerprint(const struct lmpack *pack, const struct gguf_file *dense,
                                        struct lm_error *err)
{
    uint64_t fingerprint;
    const enum lm_status status = gguf_fingerprint(dense, &fingerprint, err);
    if (status != LM_OK || fingerprint == pack->manifest.fingerprint) return status;
    return lm_fail(err, LM_E_FORMAT, "%s: is not of the same model as the manifest beside it",
                   gguf_path(dense));
}

enum lm_status lmpack_open_around(struct lmpack **out, const struct gguf_file *dense,
                                  struct lm_error *err)
{
    struct lmpack *pack = NULL;
    *out = NULL;
    if (!gguf_is_pack(dense)) return LM_OK;
    const char *path = gguf_path(dense), *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    if (!folder) return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", path);
    enum lm_status status = lmpack_open(&pack, folder, err);
    free(folder);
    if (status == LM_OK) status = check_fingerprint(pack, dense, err);
    if (status != LM_OK) {
        lmpack_close(pack);
        return status;
    }
    *out = pack;
    return LM_OK;
}

void lmpack_close(struct lmpack *pack)
{
    if (!pack) return;
    for (uint32_t il = 0; il < LMPACK_MAX_LAYER; il++) {
        struct layer_file *file = &pack->file[il];
        if (!file->data) continue;
        munmap(file->data, file->n_bytes);
        close(file->fd);
        free(file->path);
    }
    if (pack->message) lean__lmpack_manifest__free_unpacked(pack->message, NULL);
    free(pack->layer);
    free(pack->folder);
    free(pack);
}

const char *lmpack_folder(const struct lmpack *pack)
{
    return pack->folder;
}

const struct lmpack_manifest *lmpack_manifest(const struct lmpack *pack)
{
    return &pack->manifest;
}

const struct lmpack_layer *lmpack_find_layer(const struct lmpack *pack, uint32_t il)
{
    for (uint32_t i = 0; i < pack->manifest.n_moe; i++)
        if (pack->layer[i].layer == il) return &pack->layer[i];
    return NULL;
}

static enum lm_status open_file(struct layer_file *file, uint64_t n_bytes, struct lm_error *err)
{
    struct stat info;
    enum lm_status status;
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0) return lm_fail_errno(err, "%s", file->path);
    if (fstat(file->fd, &info)) {
        status = lm_fail_errno(err, "%s", file->path);
    } else if ((uint64_t)info.st_size != n_bytes) {
        status = lm_fail(err, LM_E_FORMAT, "%s: has %lld bytes, must have %llu by the manifest",
                         file->path, (long long)info.st_size, (unsigned long long)n_bytes);
    } else {
        void *data = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, file->fd, 0);
        if (data != MAP_FAILED) {
            file->data = data;
            file->n_bytes = n_bytes;
            return LM_OK;
        }
        status = lm_fail_errno(err, "%s: map", file->path);
    }
    close(file->fd);
    return status;
}

enum lm_status lmpack_open_layer(struct lmpack *pack, uint32_t il, struct lm_error *err)
{
    const struct lmpack_layer *layer = lmpack_find_layer(pack, il);
    if (!layer) return lm_fail(err, LM_E_FORMAT, "%s: layer %u has no experts", pack->folder, il);
    struct layer_file *file = &pack->file[il];
    if (file->data) return LM_OK;
    file->path = lmpack_layer_path(pack->folder, il);
    if (!file->path) return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", pack->folder);
    const enum lm_status status =
        open_file(file, lmpack_file_bytes(layer, pack->manifest.n_expert), err);
    if (status != LM_OK) {
        free(file->path);
        file->path = NULL;
    }
    return status;
}

struct lmpack_file lmpack_layer_file(const struct lmpack *pack, uint32_t il)
{
    const struct layer_file *file = &pack->file[il];
    return (struct lmpack_file){.path = file->path,
                                .fd = file->data ? file->fd : -1,
                                .data = file->data,
                                .n_bytes = file->n_bytes};
}
