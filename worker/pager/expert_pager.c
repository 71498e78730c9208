/* All experts resident: views into the mapping, found once at create. */
#include "worker/pager/expert_pager.h"

#include <assert.h>
#include <stdlib.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

struct layer_experts {
    struct expert_shape shape;
    struct expert_view *view; /* [n_expert], NULL: a layer without experts */
};

struct expert_pager {
    uint32_t n_expert;
    struct layer_experts layer[HPARAMS_MAX_LAYER];
    struct expert_pager_stats stats;
};

/* Where a matrix of one expert lies. data NULL: the file has no such tensor. */
struct location {
    const char *data;
    enum tensor_type type;
};

static struct location locate(const struct gguf_file *file, const struct hparams *hp,
                              enum tensor_role role, uint32_t il, uint32_t ie)
{
    char name[TENSOR_NAME_MAX];
    const struct gguf_tensor *tensor = gguf_find_tensor(file, tensor_name(name, role, il, ie));
    if (!tensor) return (struct location){NULL, TENSOR_F32};
    const bool stacked = tensor_shape(hp, role, il).n_dims == 3;
    const uint64_t expert_bytes = stacked ? tensor->n_bytes / hp->n_expert : 0;
    return (struct location){(const char *)tensor->data + ie * expert_bytes, tensor->type};
}

/* Finds expert ie of a layer in whatever form the file has it. */
static void find_expert(const struct gguf_file *file, const struct hparams *hp, uint32_t il,
                        uint32_t ie, struct location out[3])
{
    static const enum tensor_role stacks[3] = {ROLE_FFN_GATE_EXPS, ROLE_FFN_UP_EXPS,
                                               ROLE_FFN_DOWN_EXPS};
    static const enum tensor_role singles[3] = {ROLE_FFN_GATE_EXP, ROLE_FFN_UP_EXP,
                                                ROLE_FFN_DOWN_EXP};
    for (int i = 0; i < 3; i++) {
        out[i] = locate(file, hp, stacks[i], il, ie);
        if (!out[i].data) out[i] = locate(file, hp, singles[i], il, ie);
    }
    if (out[0].data && out[1].data) return;
    out[0] = out[1] = locate(file, hp, ROLE_FFN_GATE_UP_EXPS, il, ie);
    assert(out[0].data); /* hparams_read saw one of the forms */
    out[1].data += hp->n_ff_exp * tensor_row_bytes(out[0].type, hp->n_embd);
}

static struct weight shape_of(enum tensor_type type, uint32_t n_col, uint32_t n_row)
{
    return (struct weight){
        .type = type, .n_col = n_col, .n_row = n_row, .row_bytes = tensor_row_bytes(type, n_col)};
}

static enum lm_status find_layer(struct layer_experts *layer, const struct gguf_file *file,
                                 const struct hparams *hp, uint32_t il, struct lm_error *err)
{
    layer->view = calloc(hp->n_expert, sizeof(*layer->view));
    if (!layer->view)
        return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory for %u experts", hp->n_expert);
    struct location first[3];
    find_expert(file, hp, il, 0, first);
    layer->shape = (struct expert_shape){
        .gate = shape_of(first[0].type, hp->n_embd, hp->n_ff_exp),
        .up = shape_of(first[1].type, hp->n_embd, hp->n_ff_exp),
        .down = shape_of(first[2].type, hp->n_ff_exp, hp->n_embd),
    };
    for (uint32_t ie = 0; ie < hp->n_expert; ie++) {
        struct location at[3];
        find_expert(file, hp, il, ie, at);
        if (at[0].type != first[0].type || at[1].type != first[1].type ||
            at[2].type != first[2].type)
            return lm_fail(err, LM_E_UNSUPPORTED,
                           "%s: layer %u: experts 0 and %u are of different types", gguf_path(file),
                           il, ie);
        layer->view[ie] = (struct expert_view){at[0].data, at[1].data, at[2].data};
    }
    return LM_OK;
}

enum lm_status expert_pager_create(struct expert_pager **out, const struct gguf_file *file,
                                   const struct hparams *hp, uint32_t layer_begin,
                                   uint32_t layer_end, struct lm_error *err)
{
    struct expert_pager *pager = calloc(1, sizeof(*pager));
    if (!pager) return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory");
    pager->n_expert = hp->n_expert;
    for (uint32_t il = layer_begin; il < layer_end; il++) {
        if (!hp->layer[il].moe) continue;
        const enum lm_status status = find_layer(&pager->layer[il], file, hp, il, err);
        if (status == LM_OK) continue;
        expert_pager_destroy(pager);
        return status;
    }
    *out = pager;
    return LM_OK;
}

void expert_pager_destroy(struct expert_pager *pager)
{
    if (!pager) return;
    for (uint32_t il = 0; il < HPARAMS_MAX_LAYER; il++)
        free(pager->layer[il].view);
    free(pager);
}

const struct expert_shape *expert_pager_shape(const struct expert_pager *pager, uint32_t layer)
{
    return &pager->layer[layer].shape;
}

enum lm_status expert_pager_acquire(struct expert_pager *pager, const struct expert_key *keys,
                                    size_t n, struct expert_view *out, struct lm_error *err)
{
    (void)err; /* nothing can fail while everything is resident */
    for (size_t i = 0; i < n; i++) {
        assert(keys[i].expert < pager->n_expert);
        out[i] = pager->layer[keys[i].layer].view[keys[i].expert];
    }
    pager->stats.n_lookup += n;
    return LM_OK;
}

void expert_pager_release(struct expert_pager *pager, const struct expert_key *keys, size_t n)
{
    (void)pager, (void)keys, (void)n; /* nothing is ever evicted */
}

struct expert_pager_stats expert_pager_stats(const struct expert_pager *pager)
{
    return pager->stats;
}
