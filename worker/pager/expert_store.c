/* Finds the experts of a model once, at create; afterwards everything is a table look-up.
 *
 * Three forms in GGUF become the same parts: a stack per matrix {.., n_expert}; gate and up fused
 * in one stack, gate rows first; one tensor per expert and matrix. In a pack an expert is one part.
 */
#include "worker/pager/expert_store.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

struct store_layer {
    struct expert_layer alike;
    struct expert_extent *extent; /* [n_expert][alike.n_part]; NULL: no experts */
    const uint64_t *checksum;     /* [n_expert]; NULL: there are none */
};

struct expert_store {
    struct lmpack *pack; /* NULL: the experts are in a GGUF file */
    uint32_t n_expert;
    struct expert_file *file; /* [n_file] */
    size_t n_file;
    struct store_layer layer[HPARAMS_MAX_LAYER];
};

struct part {
    enum tensor_type type;
    struct expert_extent extent;
};

/* False: the file has no such tensor. */
static bool find_part(const struct gguf_file *file, const struct hparams *hp, enum tensor_role role,
                      uint32_t il, uint32_t ie, struct part *out)
{
    char name[TENSOR_NAME_MAX];
    const struct gguf_tensor *tensor = gguf_find_tensor(file, tensor_name(name, role, il, ie));
    if (!tensor) return false;
    const bool stacked = tensor_shape(hp, role, il).n_dims == 3;
    const uint64_t n_bytes = stacked ? tensor->n_bytes / hp->n_expert : tensor->n_bytes;
    *out = (struct part){tensor->type,
                         {.file = tensor->shard,
                          .offset = tensor->file_offset + (stacked ? ie * n_bytes : 0),
                          .n_bytes = n_bytes}};
    return true;
}

/* Finds expert ie of a layer in whatever form the file has it. Returns the number of parts: 3, or 2
 * where gate and up are fused. */
static uint32_t find_parts(const struct gguf_file *file, const struct hparams *hp, uint32_t il,
                           uint32_t ie, struct part out[EXPERT_PART_MAX])
{
    static const enum tensor_role stacks[] = {ROLE_FFN_GATE_EXPS, ROLE_FFN_UP_EXPS,
                                              ROLE_FFN_DOWN_EXPS};
    static const enum tensor_role singles[] = {ROLE_FFN_GATE_EXP, ROLE_FFN_UP_EXP,
                                               ROLE_FFN_DOWN_EXP};
    bool found[EXPERT_MATRIX_COUNT];
    for (int i = 0; i < EXPERT_MATRIX_COUNT; i++)
        found[i] = find_part(file, hp, stacks[i], il, ie, &out[i]) ||
                   find_part(file, hp, singles[i], il, ie, &out[i]);
    assert(found[2]); /* hparams_read saw one of the forms */
    if (found[0] && found[1]) return 3;
    out[1] = out[2];
    found[0] = find_part(file, hp, ROLE_FFN_GATE_UP_EXPS, il, ie, &out[0]);
    assert(found[0]);
    return 2;
}

static struct weight weight_of(enum tensor_type type, uint32_t n_col, uint32_t n_row)
{
    return (struct weight){
        .type = type, .n_col = n_col, .n_row = n_row, .row_bytes = tensor_row_bytes(type, n_col)};
}

static struct expert_layer layer_of(const struct hparams *hp, const struct part *part,
                                    uint32_t n_part)
{
    const bool fused = n_part == 2;
    const struct weight gate = weight_of(part[0].type, hp->n_embd, hp->n_ff_exp);
    struct expert_layer layer = {
        .gate = gate,
        .up = weight_of(part[fused ? 0 : 1].type, hp->n_embd, hp->n_ff_exp),
        .down = weight_of(part[n_part - 1].type, hp->n_ff_exp, hp->n_embd),
        .n_part = n_part,
    };
    layer.matrix[1].part = fused ? 0 : 1;
    layer.matrix[1].offset = fused ? gate.n_row * gate.row_bytes : 0;
    layer.matrix[2].part = n_part - 1;
    for (uint32_t i = 0; i < n_part; i++) {
        layer.part_bytes[i] = part[i].extent.n_bytes;
        layer.n_bytes += part[i].extent.n_bytes;
    }
    return layer;
}

static enum lm_status find_layer(struct store_layer *layer, const struct gguf_file *file,
                                 const struct hparams *hp, uint32_t il, struct lm_error *err)
{
    struct part first[EXPERT_PART_MAX], part[EXPERT_PART_MAX];
    const uint32_t n_part = find_parts(file, hp, il, 0, first);
    layer->alike = layer_of(hp, first, n_part);
    layer->extent = calloc((size_t)hp->n_expert * n_part, sizeof(*layer->extent));
    if (!layer->extent)
        return lm_fail(err, LM_E_NO_MEM, "expert store: no memory for %u experts", hp->n_expert);
    for (uint32_t ie = 0; ie < hp->n_expert; ie++) {
        bool alike = find_parts(file, hp, il, ie, part) == n_part;
        for (uint32_t i = 0; i < n_part && alike; i++) {
            alike = part[i].type == first[i].type;
            layer->extent[ie * n_part + i] = part[i].extent;
        }
        if (!alike)
            return lm_fail(err, LM_E_UNSUPPORTED,
                           "%s: layer %u: experts 0 and %u are of different types", gguf_path(file),
                           il, ie);
    }
    return LM_OK;
}

/* ---- in a pack ---------------------------------------------------------------------------- */

static bool is_like(const struct lmpack_matrix *matrix, uint32_t n_col, uint32_t n_row)
{
    return matrix->n_col == n_col && matrix->n_row == n_row &&
           tensor_type_info(matrix->type)->computable;
}

/* Whether the pack is one of this model. Of its layers only those that are asked for are checked.
 */
static enum lm_status check_pack(const struct lmpack *pack, const struct hparams *hp,
                                 struct lm_error *err)
{
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    const uint32_t n_layer = hp->n_layer + hp->n_layer_mtp;
    if (!strcmp(manifest->architecture, hp->arch->name) && manifest->n_layer == n_layer &&
        (!manifest->n_moe || manifest->n_expert == hp->n_expert))
        return LM_OK;
    return lm_fail(
        err, LM_E_FORMAT, "%s: manifest: %u layers and %u experts, the model has %u and %u",
        lmpack_folder(pack), manifest->n_layer, manifest->n_expert, n_layer, hp->n_expert);
}

static struct expert_layer packed_layer_of(const struct lmpack_layer *packed)
{
    const struct lmpack_matrix *matrix = packed->matrix;
    struct expert_layer layer = {
        .gate = weight_of(matrix[0].type, matrix[0].n_col, matrix[0].n_row),
        .up = weight_of(matrix[1].type, matrix[1].n_col, matrix[1].n_row),
        .down = weight_of(matrix[2].type, matrix[2].n_col, matrix[2].n_row),
        .n_part = 1,
        .part_bytes = {packed->extent_bytes},
        .n_bytes = packed->extent_bytes,
        .aligned = true, /* the format says so, and its reader has looked */
    };
    for (int i = 0; i < EXPERT_MATRIX_COUNT; i++)
        layer.matrix[i].offset = matrix[i].offset;
    return layer;
}

static enum lm_status find_packed_layer(struct expert_store *store, const struct hparams *hp,
                                        uint32_t il, struct lm_error *err)
{
    const struct lmpack_layer *packed = lmpack_find_layer(store->pack, il);
    struct store_layer *layer = &store->layer[il];
    if (!packed || !is_like(&packed->matrix[0], hp->n_embd, hp->n_ff_exp) ||
        !is_like(&packed->matrix[1], hp->n_embd, hp->n_ff_exp) ||
        !is_like(&packed->matrix[2], hp->n_ff_exp, hp->n_embd))
        return lm_fail(err, LM_E_FORMAT, "%s: layer %u: no experts of %u x %u that can be run",
                       lmpack_folder(store->pack), il, hp->n_embd, hp->n_ff_exp);
    const enum lm_status status = lmpack_open_layer(store->pack, il, err);
    if (status != LM_OK) return status;
    const struct lmpack_file file = lmpack_layer_file(store->pack, il);
    layer->alike = packed_layer_of(packed);
    layer->checksum = packed->checksum;
    layer->extent = calloc(hp->n_expert, sizeof(*layer->extent));
    if (!layer->extent)
        return lm_fail(err, LM_E_NO_MEM, "expert store: no memory for %u experts", hp->n_expert);
    for (uint32_t ie = 0; ie < hp->n_expert; ie++)
        layer->extent[ie] = (struct expert_extent){(uint32_t)store->n_file, packed->offset[ie],
                                                   packed->extent_bytes};
    store->file[store->n_file++] =
        (struct expert_file){file.path, file.fd, file.data, file.n_bytes};
    return LM_OK;
}

/* ---- opening ------------------------------------------------------------------------------ */

/* Opens the pack if there is one, and lists the files that are known before the layers are. */
static enum lm_status open_files(struct expert_store *store, const struct gguf_file *file,
                                 const struct hparams *hp, struct lm_error *err)
{
    enum lm_status status = lmpack_open_around(&store->pack, file, err);
    if (status == LM_OK && store->pack) status = check_pack(store->pack, hp, err);
    if (status != LM_OK) return status;
    const size_t n_max = store->pack ? hp->n_layer + hp->n_layer_mtp : gguf_n_shard(file);
    store->file = calloc(n_max, sizeof(*store->file));
    if (!store->file) return lm_fail(err, LM_E_NO_MEM, "expert store: no memory");
    if (store->pack) return LM_OK;
    for (size_t i = 0; i < n_max; i++) {
        const struct gguf_shard *shard = gguf_shard_at(file, i);
        store->file[store->n_file++] =
            (struct expert_file){shard->path, shard->fd, shard->data, shard->n_bytes};
    }
    return LM_OK;
}

enum lm_status expert_store_create(struct expert_store **out, const struct gguf_file *file,
                                   const struct hparams *hp, uint32_t layer_begin,
                                   uint32_t layer_end, struct lm_error *err)
{
    struct expert_store *store = calloc(1, sizeof(*store));
    if (!store) return lm_fail(err, LM_E_NO_MEM, "expert store: no memory");
    store->n_expert = hp->n_expert;
    enum lm_status status = open_files(store, file, hp, err);
    for (uint32_t il = layer_begin; il < layer_end && status == LM_OK; il++) {
        if (!hp->layer[il].moe) continue;
        status = store->pack ? find_packed_layer(store, hp, il, err)
                             : find_layer(&store->layer[il], file, hp, il, err);
    }
    if (status != LM_OK) {
        expert_store_destroy(store);
        return status;
    }
    *out = store;
    return LM_OK;
}

void expert_store_destroy(struct expert_store *store)
{
    if (!store) return;
    for (uint32_t il = 0; il < HPARAMS_MAX_LAYER; il++)
        free(store->layer[il].extent);
    free(store->file);
    lmpack_close(store->pack);
    free(store);
}

size_t expert_store_n_file(const struct expert_store *store)
{
    return store->n_file;
}

struct expert_file expert_store_file(const struct expert_store *store, size_t index)
{
    assert(index < store->n_file);
    return store->file[index];
}

const struct expert_layer *expert_store_layer(const struct expert_store *store, uint32_t il)
{
    assert(il < HPARAMS_MAX_LAYER);
    return &store->layer[il].alike;
}

/* [n_part] of the layer. */
static const struct expert_extent *extents_of(const struct expert_store *store,
                                              struct expert_key key)
{
    const struct store_layer *layer = &store->layer[key.layer];
    assert(layer->extent && key.expert < store->n_expert);
    return layer->extent + (size_t)key.expert * layer->alike.n_part;
}

void expert_store_locate(const struct expert_store *store, struct expert_key key,
                         struct expert_extent out[EXPERT_PART_MAX])
{
    const uint32_t n_part = expert_store_layer(store, key.layer)->n_part;
    memcpy(out, extents_of(store, key), n_part * sizeof(*out));
}

bool expert_store_find(const struct expert_store *store, int fd, uint64_t offset, uint64_t n_bytes,
                       struct expert_key *out)
{
    uint64_t best = UINT64_MAX; /* where the overlap begins */
    for (uint32_t il = 0; il < HPARAMS_MAX_LAYER; il++) {
        const struct store_layer *layer = &store->layer[il];
        const uint32_t n_part = layer->alike.n_part;
        for (uint32_t i = 0; i < store->n_expert * n_part; i++) {
            const struct expert_extent *extent = &layer->extent[i];
            const uint64_t end = extent->offset + extent->n_bytes;
            const uint64_t begin = extent->offset > offset ? extent->offset : offset;
            if (store->file[extent->file].fd != fd || begin >= end || begin >= offset + n_bytes ||
                begin >= best)
                continue;
            best = begin;
            *out = (struct expert_key){il, i / n_part};
        }
    }
    return best != UINT64_MAX;
}

bool expert_store_checksum(const struct expert_store *store, struct expert_key key, uint64_t *out)
{
    const uint64_t *checksum = store->layer[key.layer].checksum;
    assert(key.expert < store->n_expert);
    if (checksum) *out = checksum[key.expert];
    return checksum != NULL;
}

struct expert_view expert_store_mapped(const struct expert_store *store, struct expert_key key)
{
    const struct expert_layer *layer = expert_store_layer(store, key.layer);
    const struct expert_extent *extent = extents_of(store, key);
    const void *part[EXPERT_PART_MAX];
    for (uint32_t i = 0; i < layer->n_part; i++)
        part[i] = (const char *)store->file[extent[i].file].data + extent[i].offset;
    return expert_layer_view(layer, part);
}

struct expert_view expert_layer_view(const struct expert_layer *layer, const void *const *part)
{
    const char *matrix[EXPERT_MATRIX_COUNT];
    for (int i = 0; i < EXPERT_MATRIX_COUNT; i++)
        matrix[i] = (const char *)part[layer->matrix[i].part] + layer->matrix[i].offset;
    return (struct expert_view){.gate = matrix[0], .up = matrix[1], .down = matrix[2]};
}
