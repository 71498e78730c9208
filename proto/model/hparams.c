/* Reads hyperparameters from metadata, and holds the tensors of a file against them. */
#include "proto/model/hparams.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/tensor_names.h"

/* Names that are collected for one message, cut where the message would overflow. */
struct name_list {
    char text[380];
    size_t used;
    uint32_t n;
};

static void list_add(struct name_list *list, const char *name)
{
    const size_t n = strlen(name);
    if (list->used + n + 3 < sizeof(list->text) - 24) {
        list->used += (size_t)snprintf(list->text + list->used, sizeof(list->text) - list->used,
                                       "%s%s", list->n ? ", " : "", name);
    } else if (list->used < sizeof(list->text) - 24) {
        memset(list->text + list->used, 0, sizeof(list->text) - list->used);
        list->used = sizeof(list->text); /* full: from here on names are only counted */
    }
    list->n++;
}

static bool is_cut(const struct name_list *list)
{
    return list->used == sizeof(list->text);
}

/* Reading keys. The first value that is wrong sticks; missing keys are collected. */
struct key_reader {
    const struct gguf_file *file;
    const char *arch;
    struct name_list *missing;
    enum lm_status status;
    struct lm_error *err;
};

enum need { OPTIONAL, REQUIRED };

static const char *full_key(const struct key_reader *reader, const char *key, char out[96])
{
    snprintf(out, 96, "%s.%s", reader->arch, key);
    return out;
}

static void list_missing(struct key_reader *reader, const char *key)
{
    char name[96];
    if (reader->status == LM_OK) list_add(reader->missing, full_key(reader, key, name));
}

static enum lm_status fail_range(struct key_reader *reader, const char *key, double value,
                                 double min, double max)
{
    return lm_fail(reader->err, LM_E_FORMAT, "%s: %s.%s is %.9g, must be from %.9g to %.9g",
                   gguf_path(reader->file), reader->arch, key, value, min, max);
}

static void read_u32(struct key_reader *reader, enum need need, const char *key, uint32_t min,
                     uint32_t max, uint32_t *out)
{
    char name[96];
    bool found = false;
    uint32_t value = 0;
    if (reader->status != LM_OK) return;
    reader->status =
        gguf_get_u32(reader->file, full_key(reader, key, name), &value, &found, reader->err);
    if (reader->status != LM_OK) return;
    if (found && (value < min || value > max))
        reader->status = fail_range(reader, key, value, min, max);
    else if (found)
        *out = value; /* nothing out of range gets further: sizes of arrays follow from it */
    if (!found && need == REQUIRED) list_missing(reader, key);
}

static void read_f32(struct key_reader *reader, enum need need, const char *key, float min,
                     float max, float *out)
{
    char name[96];
    bool found = false;
    float value = 0;
    if (reader->status != LM_OK) return;
    reader->status =
        gguf_get_f32(reader->file, full_key(reader, key, name), &value, &found, reader->err);
    if (reader->status != LM_OK) return;
    if (found && !(value >= min && value <= max))
        reader->status = fail_range(reader, key, (double)value, (double)min, (double)max);
    else if (found)
        *out = value;
    if (!found && need == REQUIRED) list_missing(reader, key);
}

static void read_bool(struct key_reader *reader, const char *key, bool *out)
{
    char name[96];
    if (reader->status != LM_OK) return;
    reader->status =
        gguf_get_bool(reader->file, full_key(reader, key, name), out, NULL, reader->err);
}

/* A key that is one number for all layers or an array with one for each. Returns whether it is
 * there; out: [n_layer], written only then. */
static bool read_per_layer(struct key_reader *reader, const char *key, uint32_t n_layer,
                           uint32_t max, uint32_t *out)
{
    char name[96];
    if (reader->status != LM_OK) return false;
    const struct gguf_kv *kv = gguf_find_kv(reader->file, full_key(reader, key, name));
    if (!kv) return false;
    if (kv->type != GGUF_ARRAY) {
        uint32_t value = 0;
        read_u32(reader, OPTIONAL, key, 0, max, &value);
        for (uint32_t il = 0; il < n_layer; il++)
            out[il] = value;
        return true;
    }
    const bool integers = kv->element != GGUF_STRING && kv->element != GGUF_ARRAY &&
                          kv->element != GGUF_F32 && kv->element != GGUF_F64;
    if (!integers || kv->n != n_layer) {
        reader->status = lm_fail(reader->err, LM_E_FORMAT,
                                 "%s: %s must be a number or %u integers, one for each layer",
                                 gguf_path(reader->file), name, n_layer);
        return false;
    }
    for (uint32_t il = 0; il < n_layer; il++) {
        const int64_t value = gguf_array_int(kv, il);
        if (value < 0 || value > max) {
            reader->status = fail_range(reader, key, (double)value, 0, max);
            return false;
        }
        out[il] = (uint32_t)value;
    }
    return true;
}

/* ---- keys ------------------------------------------------------------------------------- */

static enum lm_status find_arch(const struct arch_info **out, const struct gguf_file *file,
                                struct lm_error *err)
{
    struct gguf_string name = {NULL, 0};
    const enum lm_status status = gguf_get_string(file, "general.architecture", &name, NULL, err);
    if (status != LM_OK) return status;
    if (!name.data)
        return lm_fail(err, LM_E_FORMAT, "%s: key general.architecture is missing",
                       gguf_path(file));
    *out = arch_find(name.data, name.n);
    if (*out) return LM_OK;
    char shown[64], known[160] = "";
    for (int id = 0; id < ARCH_COUNT; id++) {
        strcat(known, id ? ", " : "");
        strcat(known, arch_info((enum arch)id)->name);
    }
    lm_fail(err, LM_E_UNSUPPORTED, "%s: architecture '%s' is not supported", gguf_path(file),
            log_printable(name.data, name.n, shown, sizeof(shown)));
    return lm_hint(err, "supported: %s", known);
}

static void read_attention(struct key_reader *reader, struct hparams *hp, uint32_t n_block)
{
    uint32_t n_head[HPARAMS_MAX_LAYER] = {0}, n_head_kv[HPARAMS_MAX_LAYER];
    if (!read_per_layer(reader, "attention.head_count", n_block, 4096, n_head))
        list_missing(reader, "attention.head_count");
    memcpy(n_head_kv, n_head, sizeof(n_head));
    read_per_layer(reader, "attention.head_count_kv", n_block, 4096, n_head_kv);
    uint32_t n_head_max = 1;
    for (uint32_t il = 0; il < n_block; il++) {
        hp->layer[il].n_head = n_head[il];
        hp->layer[il].n_head_kv = n_head_kv[il];
        if (n_head[il] > n_head_max) n_head_max = n_head[il];
    }
    hp->head_dim = hp->n_embd / n_head_max;
    uint32_t value_length = hp->head_dim;
    read_u32(reader, OPTIONAL, "attention.key_length", 2, HPARAMS_MAX_HEAD_DIM, &hp->head_dim);
    read_u32(reader, OPTIONAL, "attention.value_length", 2, HPARAMS_MAX_HEAD_DIM, &value_length);
    read_f32(reader, REQUIRED, "attention.layer_norm_rms_epsilon", 0, 1, &hp->rms_eps);
    if (reader->status == LM_OK && value_length != hp->head_dim)
        reader->status = lm_fail(reader->err, LM_E_UNSUPPORTED,
                                 "%s: attention.key_length %u and value_length %u differ",
                                 gguf_path(reader->file), hp->head_dim, value_length);
}

static void read_rope_scaling(struct key_reader *reader, struct rope_hparams *rope)
{
    static const char *const names[] = {"none", "linear", "yarn"};
    char key[96], shown[64];
    struct gguf_string name = {"linear", 6};
    float factor = 0;
    if (reader->status != LM_OK) return;
    reader->status = gguf_get_string(reader->file, full_key(reader, "rope.scaling.type", key),
                                     &name, NULL, reader->err);
    if (reader->status != LM_OK) return;
    int kind = 0;
    while (kind < 3 && (strlen(names[kind]) != name.n || memcmp(names[kind], name.data, name.n)))
        kind++;
    if (kind == 3) {
        reader->status = lm_fail(
            reader->err, LM_E_UNSUPPORTED, "%s: %s '%s' is not supported (none, linear, yarn)",
            gguf_path(reader->file), key, log_printable(name.data, name.n, shown, sizeof(shown)));
        return;
    }
    rope->scaling = (enum rope_scaling)kind;
    read_f32(reader, OPTIONAL, "rope.scale_linear", 0, 1e6f, &factor); /* its name in old files */
    read_f32(reader, OPTIONAL, "rope.scaling.factor", 0, 1e6f, &factor);
    rope->factor = factor > 0 ? factor : 1;
    read_u32(reader, OPTIONAL, "rope.scaling.original_context_length", 1, 1u << 30,
             &rope->n_ctx_orig);
    rope->attn_factor = rope->yarn_attn_factor = 1;
    rope->ext_factor = rope->scaling == ROPE_SCALING_YARN ? 1 : 0;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    read_f32(reader, OPTIONAL, "rope.scaling.attn_factor", -1e6f, 1e6f, &rope->attn_factor);
    read_f32(reader, OPTIONAL, "rope.scaling.yarn_ext_factor", -1e6f, 1e6f, &rope->ext_factor);
    read_f32(reader, OPTIONAL, "rope.scaling.yarn_attn_factor", -1e6f, 1e6f,
             &rope->yarn_attn_factor);
    read_f32(reader, OPTIONAL, "rope.scaling.yarn_beta_fast", -1e6f, 1e6f, &rope->beta_fast);
    read_f32(reader, OPTIONAL, "rope.scaling.yarn_beta_slow", -1e6f, 1e6f, &rope->beta_slow);
}

static void read_rope(struct key_reader *reader, struct hparams *hp, uint32_t n_block)
{
    struct rope_hparams *rope = &hp->rope;
    rope->n_rot = hp->head_dim;
    rope->freq_base = 10000;
    rope->n_ctx_orig = hp->n_ctx_train;
    read_u32(reader, OPTIONAL, "rope.dimension_count", 0, 1024, &rope->n_rot);
    read_f32(reader, OPTIONAL, "rope.freq_base", 1, 1e12f, &rope->freq_base);
    rope->freq_base_swa = rope->freq_base;
    read_f32(reader, OPTIONAL, "rope.freq_base_swa", 1, 1e12f, &rope->freq_base_swa);
    read_rope_scaling(reader, rope);
    if (reader->status == LM_OK && (rope->n_rot > hp->head_dim || rope->n_rot % 2 ||
                                    (hp->arch->rope_full && rope->n_rot != hp->head_dim)))
        reader->status = lm_fail(
            reader->err, LM_E_FORMAT, "%s: %s.rope.dimension_count is %u, must be %s %u",
            gguf_path(reader->file), reader->arch, rope->n_rot,
            hp->arch->rope_full ? "the head's" : "even and at most the head's", hp->head_dim);
    for (uint32_t il = 0; il < n_block; il++)
        hp->layer[il].rope = rope->n_rot > 0;
    if (!hp->arch->rope_sections || reader->status != LM_OK) return;

    char key[96];
    const struct gguf_kv *kv =
        gguf_find_kv(reader->file, full_key(reader, "rope.dimension_sections", key));
    if (!kv) {
        list_missing(reader, "rope.dimension_sections");
        return;
    }
    /* a scalar stands for a first section without others; an array has three or four */
    const bool integers = kv->type == GGUF_ARRAY &&
                          (kv->element == GGUF_I32 || kv->element == GGUF_U32) && kv->n <= 4;
    if (kv->type != GGUF_ARRAY)
        read_u32(reader, OPTIONAL, "rope.dimension_sections", 0, 512, &rope->sections[0]);
    for (uint32_t i = 0; integers && i < kv->n; i++) {
        const int64_t n = gguf_array_int(kv, i);
        rope->sections[i] = n >= 0 && n <= 512 ? (uint32_t)n : 0;
    }
    if (reader->status == LM_OK &&
        !(rope->sections[0] + rope->sections[1] + rope->sections[2] + rope->sections[3]))
        reader->status = lm_fail(reader->err, LM_E_FORMAT,
                                 "%s: %s must be up to four counts of pairs, not all zero",
                                 gguf_path(reader->file), key);
}

static void read_experts(struct key_reader *reader, struct hparams *hp, uint32_t n_block)
{
    const struct arch_info *arch = hp->arch;
    uint32_t n_shared = 0, n_group = 0, n_dense = 0, gating = 0;
    read_u32(reader, arch->experts ? REQUIRED : OPTIONAL, "expert_count", arch->experts,
             HPARAMS_MAX_EXPERT, &hp->n_expert);
    if (reader->status == LM_OK && hp->n_expert && !arch->experts)
        reader->status =
            lm_fail(reader->err, LM_E_UNSUPPORTED, "%s: %s with %u experts is not supported",
                    gguf_path(reader->file), arch->name, hp->n_expert);
    if (!arch->experts) return;
    const uint32_t n_expert = hp->n_expert ? hp->n_expert : HPARAMS_MAX_EXPERT;
    read_u32(reader, REQUIRED, "expert_used_count", 1, n_expert, &hp->n_expert_used);
    read_u32(reader, OPTIONAL, "expert_group_count", 0, UINT32_MAX, &n_group);
    if (reader->status == LM_OK && n_group > 1)
        reader->status = lm_fail(reader->err, LM_E_UNSUPPORTED,
                                 "%s: routing in %u groups of experts is not supported",
                                 gguf_path(reader->file), n_group);
    const uint32_t n_ff = hp->layer[0].n_ff;
    hp->n_ff_exp = hp->n_expert_used ? n_ff / hp->n_expert_used : 0;
    read_u32(reader, hp->n_ff_exp ? OPTIONAL : REQUIRED, "expert_feed_forward_length", 1, 1u << 20,
             &hp->n_ff_exp);
    hp->expert_norm = true;
    if (arch->shared_gate) {
        hp->n_ff_shexp = n_ff;
        read_u32(reader, n_ff ? OPTIONAL : REQUIRED, "expert_shared_feed_forward_length", 1,
                 1u << 20, &hp->n_ff_shexp);
    }
    if (arch->sigmoid_router) {
        read_u32(reader, REQUIRED, "expert_shared_count", 1, 64, &n_shared);
        hp->n_ff_shexp = hp->n_ff_exp * n_shared;
        read_u32(reader, OPTIONAL, "expert_gating_func", 0, 2, &gating);
        hp->expert_sigmoid = gating != 1;
        hp->expert_norm = false;
        read_bool(reader, "expert_weights_norm", &hp->expert_norm);
        read_f32(reader, OPTIONAL, "expert_weights_scale", -1e6f, 1e6f, &hp->expert_scale);
        read_u32(reader, OPTIONAL, "leading_dense_block_count", 0, n_block, &n_dense);
    }
    for (uint32_t il = n_dense; il < n_block; il++)
        hp->layer[il].moe = true;
}

static void read_delta_net(struct key_reader *reader, struct hparams *hp, uint32_t n_block)
{
    uint32_t d_inner = 0, interval = 4, recurrent[HPARAMS_MAX_LAYER];
    read_u32(reader, REQUIRED, "ssm.conv_kernel", 2, 16, &hp->n_conv);
    read_u32(reader, REQUIRED, "ssm.state_size", 1, 1024, &hp->dim_k);
    read_u32(reader, REQUIRED, "ssm.group_count", 1, 4096, &hp->n_head_k);
    read_u32(reader, REQUIRED, "ssm.time_step_rank", 1, 4096, &hp->n_head_v);
    read_u32(reader, REQUIRED, "ssm.inner_size", 1, 1u << 22, &d_inner);
    read_u32(reader, OPTIONAL, "full_attention_interval", 1, HPARAMS_MAX_LAYER, &interval);
    const bool listed = read_per_layer(reader, "attention.recurrent_layers", n_block, 1, recurrent);
    if (reader->status != LM_OK) return;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        hp->layer[il].recurrent = listed ? recurrent[il] : (il + 1) % interval != 0;
    if (reader->missing->n) return;
    hp->dim_v = d_inner / hp->n_head_v;
    if (d_inner % hp->n_head_v || hp->n_head_v % hp->n_head_k || hp->dim_v != hp->dim_k)
        reader->status = lm_fail(
            reader->err, LM_E_FORMAT,
            "%s: ssm.inner_size %u, time_step_rank %u, group_count %u and state_size %u do not fit "
            "together",
            gguf_path(reader->file), d_inner, hp->n_head_v, hp->n_head_k, hp->dim_k);
}

static void read_window(struct key_reader *reader, struct hparams *hp, uint32_t n_block)
{
    enum { NOPE_PERIOD = 4 }; /* not in the file: every fourth layer has no positions */
    uint32_t window = 0, period = 4;
    read_u32(reader, REQUIRED, "attention.sliding_window", 1, 1u << 30, &window);
    read_u32(reader, OPTIONAL, "attention.sliding_window_pattern", 1, HPARAMS_MAX_LAYER, &period);
    if (reader->status != LM_OK) return;
    for (uint32_t il = 0; il < n_block; il++) {
        hp->layer[il].window = il % period < period - 1 ? window : 0;
        hp->layer[il].rope = (il + 1) % NOPE_PERIOD != 0;
    }
}

static void read_vocab_size(struct key_reader *reader, struct hparams *hp)
{
    const struct gguf_tensor *embd = gguf_find_tensor(reader->file, "token_embd.weight");
    const struct gguf_kv *tokens = gguf_find_kv(reader->file, "tokenizer.ggml.tokens");
    if (reader->status != LM_OK) return;
    if (embd)
        hp->n_vocab = embd->ne[1] <= 1u << 24 ? (uint32_t)embd->ne[1] : 0;
    else if (tokens && tokens->type == GGUF_ARRAY)
        hp->n_vocab = tokens->n <= 1u << 24 ? (uint32_t)tokens->n : 0;
    else
        read_u32(reader, OPTIONAL, "vocab_size", 1, 1u << 24, &hp->n_vocab);
    if (reader->status == LM_OK && !hp->n_vocab)
        reader->status = lm_fail(reader->err, LM_E_FORMAT,
                                 "%s: no vocabulary of 1 to 16777216 tokens (token_embd.weight)",
                                 gguf_path(reader->file));
}

static void check_heads(struct key_reader *reader, const struct hparams *hp, uint32_t n_block)
{
    /* the default is bounded by nothing else */
    if (reader->status == LM_OK && (hp->head_dim < 2 || hp->head_dim > HPARAMS_MAX_HEAD_DIM))
        reader->status =
            fail_range(reader, "attention.key_length", hp->head_dim, 2, HPARAMS_MAX_HEAD_DIM);
    for (uint32_t il = 0; il < n_block && reader->status == LM_OK; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        const bool fits =
            layer->n_head_kv && layer->n_head && layer->n_head % layer->n_head_kv == 0;
        if (layer->recurrent) continue;
        if (!fits)
            reader->status =
                lm_fail(reader->err, LM_E_FORMAT,
                        "%s: layer %u: %u heads do not share %u key-value heads evenly",
                        gguf_path(reader->file), il, layer->n_head, layer->n_head_kv);
        else if (layer->n_head / layer->n_head_kv > HPARAMS_MAX_HEAD_GROUP)
            reader->status = lm_fail(
                reader->err, LM_E_UNSUPPORTED,
                "%s: layer %u: %u heads to each key-value head are not supported, at most %d",
                gguf_path(reader->file), il, layer->n_head / layer->n_head_kv,
                HPARAMS_MAX_HEAD_GROUP);
    }
}

static void read_sizes(struct key_reader *reader, struct hparams *hp)
{
    const struct arch_info *arch = hp->arch;
    uint32_t n_block = 0, n_mtp = 0, n_ff[HPARAMS_MAX_LAYER] = {0};
    read_u32(reader, REQUIRED, "block_count", 1, HPARAMS_MAX_LAYER, &n_block);
    read_u32(reader, REQUIRED, "embedding_length", 1, 1u << 20, &hp->n_embd);
    read_u32(reader, REQUIRED, "context_length", 1, 1u << 30, &hp->n_ctx_train);
    if (arch->delta_net) read_u32(reader, OPTIONAL, "nextn_predict_layers", 0, 16, &n_mtp);
    if (reader->status == LM_OK && n_block && n_mtp >= n_block)
        reader->status = fail_range(reader, "nextn_predict_layers", n_mtp, 0, n_block - 1);
    hp->n_layer = n_block > n_mtp ? n_block - n_mtp : 0;
    hp->n_layer_mtp = n_mtp;
    if (!read_per_layer(reader, "feed_forward_length", n_block, 1u << 22, n_ff) &&
        (!arch->experts || arch->sigmoid_router))
        list_missing(reader, "feed_forward_length");
    for (uint32_t il = 0; il < n_block; il++)
        hp->layer[il].n_ff = n_ff[il];
    read_attention(reader, hp, n_block);
    read_rope(reader, hp, n_block);
    read_experts(reader, hp, n_block);
    if (arch->delta_net) read_delta_net(reader, hp, n_block);
    if (arch->window) read_window(reader, hp, n_block);
    read_vocab_size(reader, hp);
    if (!reader->missing->n) check_heads(reader, hp, n_block);
}

/* LM_OK if nothing but missing keys stands in the way. */
static enum lm_status read_keys(struct hparams *hp, const struct gguf_file *file,
                                struct name_list *missing, struct lm_error *err)
{
    memset(hp, 0, sizeof(*hp));
    const enum lm_status status = find_arch(&hp->arch, file, err);
    if (status != LM_OK) return status;
    struct key_reader reader = {
        .file = file, .arch = hp->arch->name, .missing = missing, .status = LM_OK, .err = err};
    read_sizes(&reader, hp);
    hp->tied = !gguf_find_tensor(file, "output.weight");
    return reader.status;
}

/* ---- tensors ---------------------------------------------------------------------------- */

static bool exists(const struct gguf_file *file, enum tensor_role role, uint32_t il, uint32_t ie)
{
    char name[TENSOR_NAME_MAX];
    return gguf_find_tensor(file, tensor_name(name, role, il, ie)) != NULL;
}

static bool per_expert(enum tensor_role role)
{
    return role >= ROLE_FFN_GATE_EXP && role <= ROLE_FFN_DOWN_EXP;
}

/* One tensor that is there: its shape and type. */
static enum lm_status check_tensor(const struct gguf_tensor *tensor, struct tensor_shape want,
                                   const struct gguf_file *file, bool plain_floats,
                                   struct lm_error *err)
{
    const int n = (int)tensor->name.n;
    const struct tensor_type_info *type = tensor_type_info(tensor->type);
    if (tensor->ne[0] != want.ne[0] || tensor->ne[1] != want.ne[1] || tensor->ne[2] != want.ne[2] ||
        tensor->ne[3] != 1)
        return lm_fail(err, LM_E_FORMAT,
                       "%s: tensor %.*s has shape {%llu, %llu, %llu}, must have {%llu, %llu, %llu}",
                       gguf_path(file), n, tensor->name.data, (unsigned long long)tensor->ne[0],
                       (unsigned long long)tensor->ne[1], (unsigned long long)tensor->ne[2],
                       (unsigned long long)want.ne[0], (unsigned long long)want.ne[1],
                       (unsigned long long)want.ne[2]);
    if (!type->computable)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: tensor %.*s: type %s is not supported",
                       gguf_path(file), n, tensor->name.data, type->name);
    if (plain_floats && tensor->type != TENSOR_F32)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: tensor %.*s: type %s, must be F32",
                       gguf_path(file), n, tensor->name.data, type->name);
    return LM_OK;
}

struct tensor_check {
    const struct gguf_file *file;
    const struct hparams *hp;
    bool sizes_known;   /* no key is missing: shapes can be checked too */
    bool experts_apart; /* they are in the files of a pack */
    struct name_list missing;
    enum lm_status status;
    struct lm_error *err;
};

/* Checks a role of a layer, all experts if it is per expert. Returns whether it is complete. */
static bool check_role(struct tensor_check *check, enum tensor_role role, uint32_t il)
{
    const struct tensor_shape shape = tensor_shape(check->hp, role, il);
    const uint32_t n = per_expert(role) ? check->hp->n_expert : 1;
    uint32_t n_found = 0;
    if (shape.need == TENSOR_ABSENT) return false;
    for (uint32_t ie = 0; ie < n && check->status == LM_OK; ie++) {
        char name[TENSOR_NAME_MAX];
        const struct gguf_tensor *tensor =
            gguf_find_tensor(check->file, tensor_name(name, role, il, ie));
        if (!tensor) continue;
        n_found++;
        /* vectors and the convolution are read as floats, without conversion */
        const bool plain_floats = shape.n_dims == 1 || role == ROLE_SSM_CONV1D;
        if (check->sizes_known)
            check->status = check_tensor(tensor, shape, check->file, plain_floats, check->err);
    }
    return n_found == n;
}

static void check_roles(struct tensor_check *check, int first, int end, uint32_t il)
{
    bool complete[ROLE_COUNT + 1] = {false};
    for (int role = first; role < end; role++)
        complete[role] = check_role(check, (enum tensor_role)role, il);
    for (int role = first; role < end; role++) {
        if (complete[role]) continue;
        if (check->experts_apart && tensor_role_is_experts((enum tensor_role)role)) continue;
        char name[TENSOR_NAME_MAX];
        const struct role_alternatives other =
            tensor_alternatives(check->hp, (enum tensor_role)role, il);
        if (tensor_shape(check->hp, (enum tensor_role)role, il).need == TENSOR_REQUIRED &&
            !complete[other.role[0]] && !complete[other.role[1]])
            list_add(&check->missing, tensor_name(name, (enum tensor_role)role, il, 0));
    }
}

static bool ends_in(const char *name, const char *end)
{
    const size_t n = strlen(name), n_end = strlen(end);
    return n > n_end && !strcmp(name + n - n_end, end);
}

/* An unknown tensor is left alone with a warning, except a bias or a scale, which would change
 * every answer. */
static enum lm_status check_unused(const struct gguf_file *file, const struct hparams *hp,
                                   struct lm_error *err)
{
    struct name_list unused = {.n = 0};
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        enum tensor_role role;
        uint32_t il, ie;
        const bool known = tensor_name_parse(tensor->name.data, tensor->name.n, &role, &il, &ie) &&
                           il < hp->n_layer + hp->n_layer_mtp && ie < HPARAMS_MAX_EXPERT &&
                           tensor_shape(hp, role, il).need != TENSOR_ABSENT;
        char name[TENSOR_NAME_MAX];
        if (known) continue;
        log_printable(tensor->name.data, tensor->name.n, name, 64);
        if (ends_in(name, ".bias") || ends_in(name, ".scale"))
            return lm_fail(err, LM_E_UNSUPPORTED, "%s: tensor %s: no such %s in architecture %s",
                           gguf_path(file), name, strrchr(name, '.') + 1, hp->arch->name);
        list_add(&unused, name);
    }
    if (unused.n)
        log_warning("%s: %u tensors are not used: %s%s", gguf_path(file), unused.n, unused.text,
                    is_cut(&unused) ? ", ..." : "");
    return LM_OK;
}

static enum lm_status fail_missing(const struct gguf_file *file, const struct name_list *keys,
                                   const struct name_list *tensors, struct lm_error *err)
{
    return lm_fail(err, LM_E_FORMAT, "%s: missing%s%s%s%s%s%s", gguf_path(file),
                   keys->n ? " keys: " : "", keys->text, is_cut(keys) ? ", ..." : "",
                   tensors->n ? (keys->n ? "; tensors: " : " tensors: ") : "", tensors->text,
                   is_cut(tensors) ? ", ..." : "");
}

enum lm_status hparams_read(struct hparams *out, const struct gguf_file *file, struct lm_error *err)
{
    struct name_list missing_keys = {.n = 0};
    enum lm_status status = read_keys(out, file, &missing_keys, err);
    if (status != LM_OK) return status;
    if (out->n_layer_mtp && !exists(file, ROLE_NEXTN_EH_PROJ, out->n_layer, 0)) {
        log_verbose("%s: declares %u prediction layers but holds none", gguf_path(file),
                    out->n_layer_mtp);
        out->n_layer_mtp = 0;
    }
    struct tensor_check check = {.file = file,
                                 .hp = out,
                                 .sizes_known = !missing_keys.n,
                                 .experts_apart = gguf_is_pack(file),
                                 .status = LM_OK,
                                 .err = err};
    check_roles(&check, 0, ROLE_GLOBAL_COUNT, 0);
    for (uint32_t il = 0; il < out->n_layer + out->n_layer_mtp; il++)
        check_roles(&check, ROLE_GLOBAL_COUNT, ROLE_COUNT, il);
    if (check.status != LM_OK) return check.status;
    if (missing_keys.n || check.missing.n)
        return fail_missing(file, &missing_keys, &check.missing, err);
    return check_unused(file, out, err);
}
