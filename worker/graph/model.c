/* Binding by tables of roles and struct fields, then the forms that need more than a pointer. */
#include "worker/graph/model.h"

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gguf/gguf.h"
#include "proto/model/tensor_names.h"
#include "worker/pager/toucher.h"

static const struct {
    enum tensor_role role;
    size_t offset;
} vector_fields[] =
    {
        {ROLE_ATTN_NORM, offsetof(struct layer, attn_norm)},
        {ROLE_ATTN_Q_BIAS, offsetof(struct layer, q_bias)},
        {ROLE_ATTN_K_BIAS, offsetof(struct layer, k_bias)},
        {ROLE_ATTN_V_BIAS, offsetof(struct layer, v_bias)},
        {ROLE_ATTN_OUTPUT_BIAS, offsetof(struct layer, attn_output_bias)},
        {ROLE_ATTN_Q_NORM, offsetof(struct layer, q_norm)},
        {ROLE_ATTN_K_NORM, offsetof(struct layer, k_norm)},
        {ROLE_SSM_CONV1D, offsetof(struct layer, conv_w)},
        {ROLE_SSM_DT, offsetof(struct layer, ssm_dt)},
        {ROLE_SSM_A, offsetof(struct layer, ssm_a)},
        {ROLE_SSM_NORM, offsetof(struct layer, ssm_norm)},
        {ROLE_FFN_NORM, offsetof(struct layer, ffn_norm)},
        {ROLE_POST_ATTENTION_NORM, offsetof(struct layer, attn_post_norm)},
        {ROLE_POST_FFW_NORM, offsetof(struct layer, ffn_post_norm)},
        {ROLE_EXP_PROBS_B, offsetof(struct layer, selection_bias)},
        {ROLE_FFN_GATE_INP_SHEXP, offsetof(struct layer, shared_gate)},
},
  matrix_fields[] = {
      {ROLE_ATTN_Q, offsetof(struct layer, q)},
      {ROLE_ATTN_K, offsetof(struct layer, k)},
      {ROLE_ATTN_V, offsetof(struct layer, v)},
      {ROLE_ATTN_OUTPUT, offsetof(struct layer, attn_output)},
      {ROLE_SSM_ALPHA, offsetof(struct layer, alpha)},
      {ROLE_SSM_BETA, offsetof(struct layer, beta)},
      {ROLE_SSM_OUT, offsetof(struct layer, ssm_out)},
      {ROLE_FFN_GATE_INP, offsetof(struct layer, router)},
      /* one pair of these two forms is there, at most */
      {ROLE_FFN_GATE, offsetof(struct layer, ffn_gate)},
      {ROLE_FFN_UP, offsetof(struct layer, ffn_up)},
      {ROLE_FFN_DOWN, offsetof(struct layer, ffn_down)},
      {ROLE_FFN_GATE_SHEXP, offsetof(struct layer, ffn_gate)},
      {ROLE_FFN_UP_SHEXP, offsetof(struct layer, ffn_up)},
      {ROLE_FFN_DOWN_SHEXP, offsetof(struct layer, ffn_down)},
};

enum {
    N_MATRIX_FIELD = sizeof(matrix_fields) / sizeof(matrix_fields[0]),
    N_OTHER_MATRIX = 3, /* gate, qkv, z: bound by hand */
    MATRICES_PER_LAYER = N_MATRIX_FIELD + N_OTHER_MATRIX,
    N_VECTOR_FIELD = sizeof(vector_fields) / sizeof(vector_fields[0]),
    COPIES_PER_LAYER = MATRICES_PER_LAYER + N_VECTOR_FIELD + 1, /* the fused bias */
    N_OTHER_COPY = 6 /* token_embd, output and its norm; eh_proj and the norms before it */
};

/* Memory of the backend that is freed with the model; NULL: there is none left. */
static void *take_copy(struct model *model, size_t n_bytes, struct lm_error *err)
{
    void *copy = model->backend->ops->alloc(model->backend, n_bytes, err);
    if (copy) model->copies[model->n_copy++] = copy;
    return copy;
}

/* A vector where the graph can read it; *out stays as it is if the file has none. */
static enum lm_status find_vector(struct model *model, const struct gguf_file *file,
                                  enum tensor_role role, uint32_t il, const float **out,
                                  struct lm_error *err)
{
    const struct weight found = model_find_weight(file, model->hp, role, il);
    if (found.data && model->weights != MODEL_ON_DEVICE) *out = found.data;
    if (!found.data || model->weights != MODEL_ON_DEVICE) return LM_OK;
    const size_t n_bytes = found.n_row * found.row_bytes;
    float *const copy = take_copy(model, n_bytes, err);
    if (!copy) return LM_E_NO_MEM;
    model->backend->ops->upload(model->backend, copy, found.data, n_bytes);
    *out = copy;
    return LM_OK;
}

static struct weight rows_of(struct weight w, uint32_t begin, uint32_t n)
{
    assert(begin + n <= w.n_row);
    w.data = (const char *)w.data + begin * w.row_bytes;
    w.n_row = n;
    return w;
}

/* Splits attn_qkv, and its bias, of an attention layer; either may be there without the other. */
static enum lm_status bind_fused_qkv(struct model *model, struct layer *layer,
                                     const struct gguf_file *file, uint32_t il,
                                     struct lm_error *err)
{
    const struct hparams *hp = model->hp;
    const struct weight qkv = model_find_weight(file, hp, ROLE_ATTN_QKV, il);
    const uint32_t n_q = (uint32_t)tensor_shape(hp, ROLE_ATTN_Q, il).ne[1];
    const uint32_t n_kv = (uint32_t)tensor_shape(hp, ROLE_ATTN_K, il).ne[1];
    if (!layer->q.data) layer->q = rows_of(qkv, 0, n_q);
    if (!layer->k.data) layer->k = rows_of(qkv, n_q, n_kv);
    if (!layer->v.data) layer->v = rows_of(qkv, n_q + n_kv, n_kv);
    const float *bias = NULL;
    const enum lm_status status = find_vector(model, file, ROLE_ATTN_QKV_BIAS, il, &bias, err);
    if (!bias) return status;
    layer->q_bias = bias;
    layer->k_bias = bias + n_q;
    layer->v_bias = bias + n_q + n_kv;
    return LM_OK;
}

/* A matrix of some rows of another, which model owns: the parts, one after the other, and each part
 * is rows [begin, begin + n) of every key head's share.
 *
 *   from: | head 0: a b b c | head 1: a b b c |    parts {1, 2}, {0, 1}:   b b b b a a
 */
struct row_part {
    uint32_t begin, n;
};

static enum lm_status copy_rows(struct model *model, struct weight from,
                                const struct row_part *parts, size_t n_part, struct weight *out,
                                struct lm_error *err)
{
    struct backend *backend = model->backend;
    const uint32_t n_head = model->hp->n_head_k, n_share = from.n_row / n_head;
    *out = from;
    out->n_row = 0;
    for (size_t i = 0; i < n_part; i++)
        out->n_row += n_head * parts[i].n;
    char *at = take_copy(model, out->n_row * from.row_bytes, err);
    if (!at) return LM_E_NO_MEM;
    out->data = at;
    for (size_t i = 0; i < n_part; i++) {
        const size_t n_bytes = parts[i].n * from.row_bytes;
        const char *rows = (const char *)from.data + parts[i].begin * from.row_bytes;
        for (uint32_t ih = 0; ih < n_head; ih++, at += n_bytes)
            backend->ops->upload(backend, at, rows + ih * n_share * from.row_bytes, n_bytes);
    }
    return LM_OK;
}

static enum lm_status bind_delta_net(struct model *model, struct layer *layer,
                                     const struct gguf_file *file, uint32_t il,
                                     struct lm_error *err)
{
    const struct hparams *hp = model->hp;
    enum lm_status status = LM_OK;
    layer->qkv = model_find_weight(file, hp, ROLE_ATTN_QKV, il);
    layer->z = model_find_weight(file, hp, ROLE_ATTN_GATE, il);
    const uint32_t n_share = hp->n_head_v / hp->n_head_k; /* value heads of a key head */
    const uint32_t n_k = hp->dim_k, n_v = n_share * hp->dim_v;
    if (!layer->qkv.data || !layer->z.data) {
        const struct weight in = model_find_weight(file, hp, ROLE_SSM_IN, il);
        const struct row_part qkv[] = {{0, n_k}, {n_k, n_k}, {2 * n_k, n_v}};
        const struct row_part z[] = {{2 * n_k + n_v, n_v}};
        status = copy_rows(model, in, qkv, 3, &layer->qkv, err);
        if (status == LM_OK) status = copy_rows(model, in, z, 1, &layer->z, err);
    }
    const struct weight ba = model_find_weight(file, hp, ROLE_SSM_BA, il);
    if (!ba.data || status != LM_OK) return status;
    const struct row_part beta[] = {{0, n_share}}, alpha[] = {{n_share, n_share}};
    status = copy_rows(model, ba, beta, 1, &layer->beta, err);
    if (status == LM_OK) status = copy_rows(model, ba, alpha, 1, &layer->alpha, err);
    return status;
}

static enum lm_status bind_layer(struct model *model, const struct gguf_file *file, uint32_t il,
                                 struct lm_error *err)
{
    const struct hparams *hp = model->hp;
    struct layer *layer = &model->layer[il];
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < N_VECTOR_FIELD && status == LM_OK; i++)
        status = find_vector(model, file, vector_fields[i].role, il,
                             (const float **)((char *)layer + vector_fields[i].offset), err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < N_MATRIX_FIELD; i++) {
        const struct weight found = model_find_weight(file, hp, matrix_fields[i].role, il);
        if (found.data) memcpy((char *)layer + matrix_fields[i].offset, &found, sizeof(found));
    }
    if (!hp->arch->sandwich && layer->attn_post_norm) {
        /* these architectures call the norm before the FFN by what it comes after */
        layer->ffn_norm = layer->attn_post_norm;
        layer->attn_post_norm = NULL;
    }
    if (hp->layer[il].recurrent) return bind_delta_net(model, layer, file, il, err);
    layer->gate = model_find_weight(file, hp, ROLE_ATTN_GATE, il);
    return bind_fused_qkv(model, layer, file, il, err);
}

static enum lm_status read_suppressed(struct model *model, const struct gguf_file *file,
                                      struct lm_error *err)
{
    static const char key[] = "tokenizer.ggml.suppress_tokens";
    const struct gguf_kv *kv = gguf_find_kv(file, key);
    const uint32_t n_vocab = model->hp->n_vocab;
    if (!kv) return LM_OK;
    if (kv->type != GGUF_ARRAY || (kv->element != GGUF_I32 && kv->element != GGUF_U32) ||
        kv->n > n_vocab)
        return lm_fail(err, LM_E_FORMAT, "%s: key %s: must be a list of at most %u token ids",
                       gguf_path(file), key, n_vocab);
    model->suppressed = calloc(kv->n + 1, sizeof(*model->suppressed));
    if (!model->suppressed) return lm_fail(err, LM_E_NO_MEM, "model: no memory for token ids");
    for (uint64_t i = 0; i < kv->n; i++) {
        const int64_t id = gguf_array_int(kv, i);
        if (id < 0 || id >= n_vocab)
            return lm_fail(err, LM_E_FORMAT, "%s: key %s: %lld, the vocabulary has %u tokens",
                           gguf_path(file), key, (long long)id, n_vocab);
        model->suppressed[model->n_suppressed++] = (int32_t)id;
    }
    return LM_OK;
}

/* Matrix i of a layer: those of matrix_fields, then the others; i < MATRICES_PER_LAYER. */
static struct weight *matrix_at(struct layer *layer, size_t i)
{
    struct weight *const others[N_OTHER_MATRIX] = {&layer->gate, &layer->qkv, &layer->z};
    if (i >= N_MATRIX_FIELD) return others[i - N_MATRIX_FIELD];
    return (struct weight *)((char *)layer + matrix_fields[i].offset);
}

static bool is_copy(const struct model *model, const void *data)
{
    for (uint32_t i = 0; i < model->n_copy; i++)
        if (model->copies[i] == data) return true;
    return false;
}

/* A matrix of the file that is to become a copy of its own. */
struct pending {
    struct weight *w;
    const void *from;
    char *to;
    size_t n_bytes;
    bool cached; /* the page cache has it, and keeps it */
};

/* Lets the disk begin. */
static void announce_copy(const struct model *model, const struct gguf_file *file, struct weight *w,
                          struct pending *pending, size_t *n)
{
    const size_t n_bytes = (size_t)w->n_row * w->row_bytes;
    if (!w->data || is_copy(model, w->data)) return;
    for (size_t i = *n; i-- > 0;)
        if (pending[i].w == w) return; /* two roles have the field */
    pending[(*n)++] = (struct pending){.w = w,
                                       .from = w->data,
                                       .n_bytes = n_bytes,
                                       .cached = gguf_will_copy(file, w->data, n_bytes)};
}

/* Gives the matrices memory of their own, not yet filled. On a device, which gives memory out in
 * units of up to 2 MiB, it is one piece. */
static enum lm_status place_copies(struct model *model, struct pending *pending, size_t n,
                                   struct lm_error *err)
{
    enum { ALIGN = 256 };
    const bool device = model->weights == MODEL_ON_DEVICE;
    size_t n_all = 0;
    for (size_t i = 0; i < n; i++)
        n_all += (pending[i].n_bytes + ALIGN - 1) / ALIGN * ALIGN;
    char *at = device && n ? take_copy(model, n_all, err) : NULL;
    if (device && n && !at) return LM_E_NO_MEM;
    for (size_t i = 0; i < n; i++) {
        pending[i].to = device ? at : take_copy(model, pending[i].n_bytes, err);
        if (!pending[i].to) return LM_E_NO_MEM;
        pending[i].w->data = pending[i].to;
        if (device) at += (pending[i].n_bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    return LM_OK;
}

static enum lm_status fill_copies(const struct gguf_file *file, const struct pending *pending,
                                  size_t n, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    struct touch_range *range = calloc(n + 1, sizeof(*range));
    for (size_t i = 0; i < n && range; i++)
        range[i] = (struct touch_range){pending[i].to, pending[i].n_bytes};
    struct toucher *toucher = range ? toucher_start(range, n) : NULL;
    for (size_t i = 0; i < n && status == LM_OK; i++)
        status = gguf_copy(file, pending[i].to, pending[i].from, pending[i].n_bytes,
                           !pending[i].cached, err);
    toucher_stop(toucher);
    free(range);
    return status;
}

/* The same into a device's memory, in pieces through memory of the host. */
static enum lm_status upload_copies(struct backend *backend, const struct gguf_file *file,
                                    const struct pending *pending, size_t n, struct lm_error *err)
{
    enum { PIECE_BYTES = 16 << 20 };
    enum lm_status status = LM_OK;
    char *const piece = malloc(PIECE_BYTES);
    if (!piece) return lm_fail(err, LM_E_NO_MEM, "model: no memory to copy through");
    for (size_t i = 0; i < n; i++) {
        const size_t n_all = pending[i].n_bytes;
        for (size_t at = 0; at < n_all && status == LM_OK; at += PIECE_BYTES) {
            const size_t n_bytes = n_all - at < PIECE_BYTES ? n_all - at : PIECE_BYTES;
            status = gguf_copy(file, piece, (const char *)pending[i].from + at, n_bytes,
                               !pending[i].cached, err);
            if (status == LM_OK) backend->ops->upload(backend, pending[i].to + at, piece, n_bytes);
        }
    }
    free(piece);
    return status == LM_OK ? backend->ops->sync(backend, err) : status;
}

/* Copies the matrices of the layers. All are announced first, so that the disk is never idle. */
static enum lm_status copy_matrices(struct model *model, const struct gguf_file *file,
                                    struct lm_error *err)
{
    const uint32_t begin = model->layer_begin, end = model->layer_end;
    const bool last = end >= model->hp->n_layer, device = model->weights == MODEL_ON_DEVICE;
    struct pending *pending =
        calloc((size_t)end * MATRICES_PER_LAYER + N_OTHER_COPY, sizeof(*pending));
    size_t n = 0;
    if (!pending) return lm_fail(err, LM_E_NO_MEM, "model: no memory");
    if (!device) gguf_scatter(file); /* beside a device other layers may be mapped */
    for (uint32_t il = begin; il < end; il++)
        for (size_t i = 0; i < MATRICES_PER_LAYER; i++)
            announce_copy(model, file, matrix_at(&model->layer[il], i), pending, &n);
    const bool tied_here = model->hp->tied && end == model->hp->n_layer;
    if (last) announce_copy(model, file, &model->output, pending, &n);
    announce_copy(model, file, &model->eh_proj, pending, &n);
    if (device && begin == 0 && !tied_here)
        announce_copy(model, file, &model->token_embd, pending, &n);
    enum lm_status status = place_copies(model, pending, n, err);
    if (tied_here) model->token_embd = model->output;
    if (status == LM_OK)
        status = device ? upload_copies(model->backend, file, pending, n, err)
                        : fill_copies(file, pending, n, err);
    free(pending);
    return status;
}

/* The layers of the range. */
static enum lm_status bind_layers(struct model *model, const struct gguf_file *file,
                                  struct lm_error *err)
{
    enum lm_status status = LM_OK;
    const uint32_t end = model->layer_end;
    model->rope_freqs = model_find_weight(file, model->hp, ROLE_ROPE_FREQS, 0).data;
    model->layer = calloc(end, sizeof(*model->layer));
    model->copies = calloc((size_t)end * COPIES_PER_LAYER + N_OTHER_COPY, sizeof(*model->copies));
    if (!model->layer || !model->copies)
        status = lm_fail(err, LM_E_NO_MEM, "model: no memory for %u layers", end);
    for (uint32_t il = model->layer_begin; il < end && status == LM_OK; il++)
        status = bind_layer(model, file, il, err);
    return status;
}

enum lm_status model_create(struct model **out, const struct gguf_file *file,
                            const struct hparams *hp, struct backend *backend, uint32_t layer_begin,
                            uint32_t layer_end, enum model_weights weights, struct lm_error *err)
{
    struct model *model = calloc(1, sizeof(*model));
    if (!model) return lm_fail(err, LM_E_NO_MEM, "model: no memory");
    *model = (struct model){.hp = hp,
                            .layer_begin = layer_begin,
                            .layer_end = layer_end,
                            .token_embd = model_find_weight(file, hp, ROLE_TOKEN_EMBD, 0),
                            .output = model_find_weight(file, hp, ROLE_OUTPUT, 0),
                            .weights = weights,
                            .backend = backend};
    model->has_token_embd =
        weights != MODEL_ON_DEVICE || layer_begin == 0 || (hp->tied && layer_end == hp->n_layer);
    if (hp->tied) model->output = model->token_embd;
    enum lm_status status = read_suppressed(model, file, err);
    if (status == LM_OK) status = bind_layers(model, file, err);
    if (status == LM_OK && layer_end == hp->n_layer)
        status = find_vector(model, file, ROLE_OUTPUT_NORM, 0, &model->output_norm, err);
    if (status == LM_OK && weights != MODEL_MAPPED) status = copy_matrices(model, file, err);
    if (status != LM_OK) {
        model_destroy(model);
        return status;
    }
    *out = model;
    return LM_OK;
}

/* The entry, and what of the head is the layer's own. */
static enum lm_status bind_draft(struct model *model, const struct gguf_file *file,
                                 struct lm_error *err)
{
    const uint32_t il = model->layer_begin;
    const struct weight own = model_find_weight(file, model->hp, ROLE_NEXTN_EMBED_TOKENS, il);
    if (own.data) model->token_embd = own;
    if (own.data) model->has_token_embd = model->weights != MODEL_ON_DEVICE;
    model->output = model_find_weight(file, model->hp, ROLE_NEXTN_SHARED_HEAD_HEAD, il);
    model->eh_proj = model_find_weight(file, model->hp, ROLE_NEXTN_EH_PROJ, il);
    enum lm_status status = find_vector(model, file, ROLE_NEXTN_ENORM, il, &model->enorm, err);
    if (status == LM_OK)
        status = find_vector(model, file, ROLE_NEXTN_HNORM, il, &model->hnorm, err);
    if (status == LM_OK)
        status =
            find_vector(model, file, ROLE_NEXTN_SHARED_HEAD_NORM, il, &model->output_norm, err);
    return status;
}

enum lm_status model_create_draft(struct model **out, const struct gguf_file *file,
                                  const struct model *decoder, struct lm_error *err)
{
    const struct hparams *hp = decoder->hp;
    struct model *model = calloc(1, sizeof(*model));
    if (!model) return lm_fail(err, LM_E_NO_MEM, "model: no memory");
    *model = (struct model){.hp = hp,
                            .layer_begin = hp->n_layer,
                            .layer_end = hp->n_layer + 1,
                            .token_embd = decoder->token_embd,
                            .has_token_embd = decoder->has_token_embd,
                            .weights = decoder->weights,
                            .backend = decoder->backend};
    enum lm_status status = bind_layers(model, file, err);
    if (status == LM_OK) status = bind_draft(model, file, err);
    if (status == LM_OK && model->weights != MODEL_MAPPED) status = copy_matrices(model, file, err);
    if (!model->output.data) model->output = decoder->output;
    if (!model->output_norm) model->output_norm = decoder->output_norm;
    if (status != LM_OK) {
        model_destroy(model);
        return status;
    }
    *out = model;
    return LM_OK;
}

void model_destroy(struct model *model)
{
    if (!model) return;
    for (uint32_t i = 0; i < model->n_copy; i++)
        model->backend->ops->free(model->backend, model->copies[i]);
    free(model->copies);
    free(model->suppressed);
    free(model->layer);
    free(model);
}

struct weight model_find_weight(const struct gguf_file *file, const struct hparams *hp,
                                enum tensor_role role, uint32_t il)
{
    char name[TENSOR_NAME_MAX];
    if (tensor_shape(hp, role, il).need == TENSOR_ABSENT) return (struct weight){.data = NULL};
    const struct gguf_tensor *tensor = gguf_find_tensor(file, tensor_name(name, role, il, 0));
    if (!tensor) return (struct weight){.data = NULL};
    return (struct weight){.data = tensor->data,
                           .type = tensor->type,
                           .n_col = (uint32_t)tensor->ne[0],
                           .n_row = (uint32_t)tensor->ne[1],
                           .row_bytes = tensor_row_bytes(tensor->type, tensor->ne[0])};
}
