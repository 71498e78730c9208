/* Groups by tensor role. */
#include "coordinator/plan/weight_census.h"

#include <string.h>

#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

const char *weight_group_name(enum weight_group group)
{
    static const char *const names[WEIGHT_GROUP_COUNT] = {
        [WEIGHTS_EMBEDDING] = "embedding",
        [WEIGHTS_OUTPUT] = "output",
        [WEIGHTS_ATTENTION] = "attention",
        [WEIGHTS_DELTA_NET] = "delta net",
        [WEIGHTS_DENSE_FFN] = "dense ffn",
        [WEIGHTS_ROUTER] = "router",
        [WEIGHTS_SHARED_EXPERT] = "shared expert",
        [WEIGHTS_EXPERTS] = "routed experts",
        [WEIGHTS_NORMS] = "norms",
        [WEIGHTS_MTP] = "mtp layer",
        [WEIGHTS_OTHER] = "other",
    };
    return names[group];
}

/* Roles stand together by group in enum tensor_role, but for the norms among them. */
static enum weight_group group_of_role(enum tensor_role role, bool recurrent)
{
    switch (role) {
    case ROLE_TOKEN_EMBD:
        return WEIGHTS_EMBEDDING;
    case ROLE_OUTPUT:
        return WEIGHTS_OUTPUT;
    case ROLE_OUTPUT_NORM:
    case ROLE_ATTN_NORM:
    case ROLE_ATTN_Q_NORM:
    case ROLE_ATTN_K_NORM:
    case ROLE_SSM_NORM:
    case ROLE_POST_ATTENTION_NORM:
    case ROLE_FFN_NORM:
    case ROLE_POST_FFW_NORM:
        return WEIGHTS_NORMS;
    case ROLE_FFN_GATE_INP:
    case ROLE_EXP_PROBS_B:
        return WEIGHTS_ROUTER;
    default:
        break;
    }
    if (role >= ROLE_NEXTN_EH_PROJ) return WEIGHTS_MTP;
    if (role >= ROLE_FFN_GATE_INP_SHEXP) return WEIGHTS_SHARED_EXPERT;
    if (role >= ROLE_FFN_GATE_EXPS) return WEIGHTS_EXPERTS;
    if (role >= ROLE_FFN_GATE) return WEIGHTS_DENSE_FFN;
    if (role >= ROLE_SSM_IN || recurrent) return WEIGHTS_DELTA_NET;
    return WEIGHTS_ATTENTION; /* with rope_freqs */
}

/* Layers whose tensors count; with hp NULL all. */
struct layer_range {
    uint32_t begin, end;
};

static const struct layer_range whole = {0, UINT32_MAX};

/* Whether the range has the layer that drafts, not as what the file has besides. */
static bool drafts(const struct hparams *hp, struct layer_range layers)
{
    return hp && layers.end > hp->n_layer && layers.end < whole.end;
}

static enum weight_group group_of(const struct gguf_tensor *tensor, const struct hparams *hp,
                                  struct layer_range layers)
{
    enum tensor_role role;
    uint32_t il, ie;
    if (!tensor_name_parse(tensor->name.data, tensor->name.n, &role, &il, &ie))
        return WEIGHTS_OTHER;
    const bool is_behind = hp && role >= ROLE_GLOBAL_COUNT && il >= hp->n_layer;
    if (!is_behind)
        return group_of_role(role, hp && role >= ROLE_GLOBAL_COUNT && hp->layer[il].recurrent);
    if (!drafts(hp, layers)) return WEIGHTS_MTP;
    if (il >= layers.end) return WEIGHTS_OTHER; /* one layer is used */
    return group_of_role(role, false) == WEIGHTS_EXPERTS ? WEIGHTS_EXPERTS : WEIGHTS_MTP;
}

static void count(struct weight_census *out, enum weight_group group, enum tensor_type type,
                  uint64_t n_param, uint64_t n_bytes, const struct hparams *hp,
                  struct layer_range layers)
{
    struct weight_count *of_group = &out->group[group];
    of_group->n_tensor++;
    of_group->n_param += n_param;
    of_group->n_bytes += n_bytes;
    of_group->n_of_type[type]++;
    of_group->bytes_of_type[type] += n_bytes;
    if (group == WEIGHTS_MTP && drafts(hp, layers)) out->n_bytes += n_bytes;
    if (group == WEIGHTS_MTP || group == WEIGHTS_OTHER) return;
    out->n_param += n_param;
    out->n_bytes += n_bytes;
    if (group == WEIGHTS_EXPERTS)
        out->n_param_active += hp && hp->n_expert ? n_param * hp->n_expert_used / hp->n_expert : 0;
    else if (group != WEIGHTS_EMBEDDING || (hp && hp->tied))
        out->n_param_active += n_param;
}

static bool is_held(const struct gguf_tensor *tensor, const struct hparams *hp,
                    struct layer_range layers)
{
    enum tensor_role role;
    uint32_t il, ie;
    if (!hp || (layers.begin == 0 && layers.end >= hp->n_layer)) return true;
    if (!tensor_name_parse(tensor->name.data, tensor->name.n, &role, &il, &ie)) return false;
    if (role >= ROLE_GLOBAL_COUNT) return il >= layers.begin && il < layers.end;
    const bool is_input = role == ROLE_TOKEN_EMBD;
    return (layers.begin == 0 && is_input) ||
           (layers.end >= hp->n_layer && (!is_input || hp->tied));
}

/* Each matrix of a packed layer counts as the stack that it was. */
static void count_pack(struct weight_census *out, const struct lmpack *pack,
                       const struct hparams *hp, struct layer_range layers)
{
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    for (uint32_t i = 0; i < manifest->n_moe; i++) {
        const struct lmpack_layer *layer = &manifest->layer[i];
        if (hp && (layer->layer < layers.begin || layer->layer >= layers.end)) continue;
        const enum weight_group group = hp && layer->layer >= hp->n_layer && !drafts(hp, layers)
                                            ? WEIGHTS_MTP
                                            : WEIGHTS_EXPERTS;
        for (int m = 0; m < LMPACK_MATRIX_COUNT; m++) {
            const struct lmpack_matrix *matrix = &layer->matrix[m];
            const uint64_t n_param = (uint64_t)matrix->n_row * matrix->n_col * manifest->n_expert;
            count(out, group, matrix->type, n_param,
                  lmpack_matrix_bytes(matrix) * manifest->n_expert, hp, layers);
        }
    }
}

static void take(struct weight_census *out, const struct gguf_file *file, const struct hparams *hp,
                 struct layer_range layers)
{
    struct lmpack *pack;
    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        if (!is_held(tensor, hp, layers)) continue;
        const uint64_t n_param = tensor->ne[0] * tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
        count(out, group_of(tensor, hp, layers), tensor->type, n_param, tensor->n_bytes, hp,
              layers);
    }
    if (lmpack_open_around(&pack, file, NULL) == LM_OK && pack) count_pack(out, pack, hp, layers);
    lmpack_close(pack);
}

void weight_census_take(struct weight_census *out, const struct gguf_file *file,
                        const struct hparams *hp)
{
    take(out, file, hp, whole);
}

void weight_census_take_layers(struct weight_census *out, const struct gguf_file *file,
                               const struct hparams *hp, uint32_t layer_begin, uint32_t layer_end)
{
    take(out, file, hp, (struct layer_range){layer_begin, layer_end});
}
