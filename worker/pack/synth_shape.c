/* The shapes of real and tiny models, and from a shape the keys and tensors of a file. Which
 * tensors an architecture has, and in what shape, is proto/model's knowledge; here is what to put
 * in. */
#include "worker/pack/synth_shape.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

enum { N_CONV = 4 }; /* taps of the delta net's convolution, in all models */

/* What the published models with a delta net share. */
#define DELTA_NET_MODEL                                                                            \
    .n_ctx = 262144, .n_head_kv = 2, .head_dim = 256, .n_rot = 64, .rms_eps = 1e-6f,               \
    .full_attention_interval = 4, .ssm_n_group = 16, .ssm_dim = 128
#define QWEN35_MODEL .arch = "qwen35moe", DELTA_NET_MODEL, .n_vocab = 248320, .rope_freq_base = 1e7f
/* Tiny models have rows of 256, so that every type applies, and few experts. */
#define TINY(name_) .name = name_, .arch = name_, .n_embd = 256, .n_vocab = 512, .n_ctx = 4096
#define TINY_HEADS .n_head = 4, .n_head_kv = 2, .head_dim = 64, .rms_eps = 1e-6f
#define TINY_DELTA_NET .full_attention_interval = 4, .ssm_n_group = 2, .ssm_n_v = 4, .ssm_dim = 64
#define TINY_EXPERTS .n_expert = 12, .n_expert_used = 3, .n_ff_exp = 256

/* clang-format off */
static const struct synth_shape shapes[] = {
    {.name = "qwen3.5-35b-a3b", QWEN35_MODEL, .n_layer = 40, .n_embd = 2048, .n_head = 16,
     .n_expert = 256, .n_expert_used = 8, .n_ff_exp = 512, .n_ff_shexp = 512, .ssm_n_v = 32},
    {.name = "qwen3.5-122b-a10b", QWEN35_MODEL, .n_layer = 48, .n_embd = 3072, .n_head = 32,
     .n_expert = 256, .n_expert_used = 8, .n_ff_exp = 1024, .n_ff_shexp = 1024, .ssm_n_v = 64},
    {.name = "qwen3.5-397b-a17b", QWEN35_MODEL, .n_layer = 60, .n_embd = 4096, .n_head = 32,
     .n_expert = 512, .n_expert_used = 10, .n_ff_exp = 1024, .n_ff_shexp = 1024, .ssm_n_v = 64},
    {.name = "qwen3-coder-next", .arch = "qwen3next", DELTA_NET_MODEL, .n_layer = 48,
     .n_embd = 2048, .n_vocab = 151936, .n_head = 16, .rope_freq_base = 5e6f, .n_ff = 5120,
     .n_expert = 512, .n_expert_used = 10, .n_ff_exp = 512, .n_ff_shexp = 512, .ssm_n_v = 32},
    {.name = "trinity-large-thinking", .arch = "afmoe", .n_layer = 60, .n_embd = 3072,
     .n_vocab = 200192, .n_ctx = 262144, .n_head = 48, .n_head_kv = 8, .head_dim = 128,
     .n_rot = 128, .rope_freq_base = 1e4f, .rms_eps = 1e-5f, .n_ff = 12288, .n_expert = 256,
     .n_expert_used = 4, .n_ff_exp = 3072, .n_ff_shexp = 3072, .n_layer_dense = 6,
     .expert_weights_scale = 2.448f, .n_swa = 4096},
    {.name = "llama-1b", .arch = "llama", .n_layer = 16, .n_embd = 2048, .n_vocab = 128256,
     .n_ctx = 131072, .n_head = 32, .n_head_kv = 8, .head_dim = 64, .n_rot = 64,
     .rope_freq_base = 5e5f, .rms_eps = 1e-5f, .n_ff = 8192, .tied = true},

    {TINY("qwen35moe"), TINY_HEADS, TINY_DELTA_NET, TINY_EXPERTS, .n_layer = 4, .n_rot = 16,
     .rope_freq_base = 1e7f, .n_ff_shexp = 256},
    {TINY("qwen3next"), TINY_HEADS, TINY_DELTA_NET, TINY_EXPERTS, .n_layer = 4, .n_rot = 16,
     .rope_freq_base = 5e6f, .n_ff = 512, .n_ff_shexp = 256},
    {TINY("afmoe"), TINY_HEADS, TINY_EXPERTS, .n_layer = 5, .n_rot = 64, .rope_freq_base = 1e4f,
     .n_ff = 512, .n_ff_shexp = 256, .n_layer_dense = 1, .expert_weights_scale = 2.448f,
     .n_swa = 64},
    {TINY("qwen3moe"), TINY_HEADS, TINY_EXPERTS, .n_layer = 4, .n_rot = 64,
     .rope_freq_base = 1e6f, .n_ff = 512},
    {TINY("qwen35"), TINY_HEADS, TINY_DELTA_NET, .n_layer = 4, .n_rot = 16,
     .rope_freq_base = 1e7f, .n_ff = 512, .tied = true},
    {TINY("qwen3"), TINY_HEADS, .n_layer = 4, .n_rot = 64, .rope_freq_base = 1e6f, .n_ff = 512,
     .tied = true},
    {TINY("qwen2"), TINY_HEADS, .n_layer = 4, .n_rot = 64, .rope_freq_base = 1e6f, .n_ff = 512,
     .tied = true},
    {TINY("llama"), .n_layer = 4, .n_head = 8, .n_head_kv = 2, .head_dim = 32, .n_rot = 32,
     .rope_freq_base = 5e5f, .rms_eps = 1e-5f, .n_ff = 512},
};
/* clang-format on */
enum { N_SHAPE = sizeof(shapes) / sizeof(shapes[0]) };

const struct synth_shape *synth_shape_at(size_t index)
{
    return index < N_SHAPE ? &shapes[index] : NULL;
}

enum lm_status synth_shape_find(const char *name, struct synth_shape *out, struct lm_error *err)
{
    char names[400] = "";
    for (size_t i = 0; i < N_SHAPE; i++) {
        if (!strcasecmp(shapes[i].name, name)) {
            *out = shapes[i];
            return LM_OK;
        }
        const size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "", shapes[i].name);
    }
    return lm_fail(err, LM_E_USAGE, "no model or architecture \"%s\"; there are %s", name, names);
}

static const struct arch_info *arch_of(const struct synth_shape *shape)
{
    return arch_find(shape->arch, strlen(shape->arch));
}

enum lm_status synth_check(const struct synth_shape *shape, bool mtp, struct lm_error *err)
{
    if (shape->n_vocab < SYNTH_VOCAB_MIN)
        return lm_fail(err, LM_E_USAGE, "a vocabulary of %u is too small, the least is %d",
                       shape->n_vocab, SYNTH_VOCAB_MIN);
    if (shape->n_layer >= HPARAMS_MAX_LAYER)
        return lm_fail(err, LM_E_USAGE, "%u layers are too many, the most is %d", shape->n_layer,
                       HPARAMS_MAX_LAYER - 1);
    if (shape->n_expert && shape->n_expert_used > shape->n_expert)
        return lm_fail(err, LM_E_USAGE, "%u experts, but %u are used per token", shape->n_expert,
                       shape->n_expert_used);
    if (mtp && !arch_of(shape)->rope_sections)
        return lm_fail(err, LM_E_USAGE, "%s has no MTP layer; qwen35 and qwen35moe have",
                       shape->arch);
    return LM_OK;
}

/* Tensors */

void synth_hparams(struct hparams *hp, const struct synth_shape *shape, bool mtp)
{
    memset(hp, 0, sizeof(*hp));
    hp->arch = arch_of(shape);
    hp->n_layer = shape->n_layer;
    hp->n_layer_mtp = mtp;
    hp->n_vocab = shape->n_vocab;
    hp->n_embd = shape->n_embd;
    hp->n_ctx_train = shape->n_ctx;
    hp->head_dim = shape->head_dim;
    hp->tied = shape->tied;
    hp->rope.n_rot = shape->n_rot;
    hp->n_expert = shape->n_expert;
    hp->n_expert_used = shape->n_expert_used;
    hp->n_ff_exp = shape->n_ff_exp;
    hp->n_ff_shexp = shape->n_ff_shexp;
    hp->n_conv = hp->arch->delta_net ? N_CONV : 0;
    hp->dim_k = hp->dim_v = shape->ssm_dim;
    hp->n_head_k = shape->ssm_n_group;
    hp->n_head_v = shape->ssm_n_v;
    for (uint32_t il = 0; il < shape->n_layer + mtp; il++)
        hp->layer[il] = (struct layer_hparams){
            .recurrent = hp->arch->delta_net && il < shape->n_layer &&
                         (il + 1) % shape->full_attention_interval != 0,
            .moe = shape->n_expert && il >= shape->n_layer_dense,
            .rope = !shape->n_swa || (il + 1) % 4 != 0,
            .window = (il + 1) % 4 ? shape->n_swa : 0,
            .n_head = shape->n_head,
            .n_head_kv = shape->n_head_kv,
            .n_ff = shape->n_ff,
        };
}

/* What goes into a tensor. Of matrices spread is the gain of a product: the values' standard
 * deviation is spread / sqrt(columns). Of vectors it is the standard deviation. */
struct role_fill {
    float mean, spread;
    enum synth_fill fill;
    bool branch; /* scales what a layer adds to the residual stream */
};

static const struct role_fill role_fills[ROLE_COUNT] = {
    [ROLE_OUTPUT_NORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_OUTPUT] = {.mean = 0, .spread = 3},
    [ROLE_ATTN_NORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_ATTN_Q] = {.mean = 0, .spread = 1},
    [ROLE_ATTN_K] = {.mean = 0, .spread = 1},
    [ROLE_ATTN_V] = {.mean = 0, .spread = 1.5f},
    [ROLE_ATTN_QKV] = {.mean = 0, .spread = 1.5f},
    [ROLE_ATTN_GATE] = {.mean = 0, .spread = 1.5f},
    [ROLE_ATTN_OUTPUT] = {0, 0.9f, .branch = true},
    [ROLE_ATTN_Q_BIAS] = {.mean = 0, .spread = 0.2f},
    [ROLE_ATTN_K_BIAS] = {.mean = 0, .spread = 0.2f},
    [ROLE_ATTN_V_BIAS] = {.mean = 0, .spread = 0.2f},
    [ROLE_ATTN_Q_NORM] = {.mean = 1.5f, .spread = 0.25f},
    [ROLE_ATTN_K_NORM] = {.mean = 1.5f, .spread = 0.25f},
    [ROLE_SSM_CONV1D] = {.mean = 0, .spread = 1},
    [ROLE_SSM_DT] = {.mean = -1, .spread = 0.8f},
    [ROLE_SSM_A] = {.mean = 0, .spread = 0.6f, .fill = SYNTH_DECAY},
    [ROLE_SSM_ALPHA] = {.mean = 0, .spread = 1},
    [ROLE_SSM_BETA] = {.mean = 0, .spread = 1},
    [ROLE_SSM_BA] = {.mean = 0, .spread = 1},
    [ROLE_SSM_NORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_SSM_OUT] = {0, 0.72f, .branch = true},
    [ROLE_POST_ATTENTION_NORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_FFN_NORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_POST_FFW_NORM] = {0.6f, 0.1f, .branch = true},
    [ROLE_FFN_GATE] = {.mean = 0, .spread = 1.5f},
    [ROLE_FFN_UP] = {.mean = 0, .spread = 1.5f},
    [ROLE_FFN_DOWN] = {0, 0.6f, .branch = true},
    [ROLE_FFN_GATE_INP] = {.mean = 0, .spread = 4, .fill = SYNTH_ROUTER},
    [ROLE_EXP_PROBS_B] = {.mean = 0, .spread = 0.1f},
    [ROLE_FFN_GATE_EXPS] = {.mean = 0, .spread = 1.7f},
    [ROLE_FFN_UP_EXPS] = {.mean = 0, .spread = 1.7f},
    [ROLE_FFN_DOWN_EXPS] = {0, 0.72f, .branch = true},
    [ROLE_FFN_GATE_INP_SHEXP] = {.mean = 0, .spread = 1.5f},
    [ROLE_FFN_GATE_SHEXP] = {.mean = 0, .spread = 1.5f},
    [ROLE_FFN_UP_SHEXP] = {.mean = 0, .spread = 1.5f},
    [ROLE_FFN_DOWN_SHEXP] = {0, 0.6f, .branch = true},
    [ROLE_NEXTN_EH_PROJ] = {.mean = 0, .spread = 1},
    [ROLE_NEXTN_ENORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_NEXTN_HNORM] = {.mean = 1, .spread = 0.2f},
    [ROLE_NEXTN_SHARED_HEAD_NORM] = {.mean = 1, .spread = 0.2f},
};

/* role_fills with what depends on the model. */
static struct role_fill fill_of(const struct hparams *hp, enum tensor_role role)
{
    struct role_fill fill = role_fills[role];
    const struct arch_info *arch = hp->arch;
    /* As an output matrix the embedding has a gain of 3; afmoe scales its rows by sqrt(n_embd). */
    if (role == ROLE_TOKEN_EMBD)
        fill.spread = hp->tied ? 3 : arch->id == ARCH_AFMOE ? 1 : sqrtf((float)hp->n_embd);
    if ((role == ROLE_ATTN_Q || role == ROLE_ATTN_K) && !arch->qk_norm) fill.spread = 1.5f;
    if (role == ROLE_FFN_GATE_INP && arch->sigmoid_router) fill.spread = 1.2f;
    if (role == ROLE_POST_ATTENTION_NORM && arch->sandwich) fill = role_fills[ROLE_POST_FFW_NORM];
    /* Deep models add less per layer: the sum stays like that of eight layers, and the hidden
     * state changes little from one layer to the next, as in trained models. */
    const float damping = fill.branch && hp->n_layer > 8 ? sqrtf(8.0f / (float)hp->n_layer) : 1.0f;
    if (fill.mean == 0)
        fill.spread *= damping;
    else
        fill.mean *= damping;
    return fill;
}

/* Whether our files have the tensor. */
static bool is_written(const struct hparams *hp, enum tensor_role role, enum tensor_need need)
{
    if (role == ROLE_OUTPUT) return !hp->tied;
    if (role >= ROLE_ATTN_Q_BIAS && role <= ROLE_ATTN_V_BIAS)
        return hp->arch->id == ARCH_QWEN2 && need != TENSOR_ABSENT;
    return need == TENSOR_REQUIRED ||
           (role == ROLE_NEXTN_SHARED_HEAD_NORM && need == TENSOR_OPTIONAL);
}

/* Sets *tensor if the layer has the role. */
static bool make_tensor(const struct hparams *hp, enum tensor_role role, uint32_t il,
                        struct synth_tensor *tensor)
{
    const struct tensor_shape shape = tensor_shape(hp, role, il);
    if (!is_written(hp, role, shape.need)) return false;
    const struct role_fill fill = fill_of(hp, role);
    const bool is_product = shape.n_dims > 1 || role == ROLE_FFN_GATE_INP_SHEXP;
    *tensor = (struct synth_tensor){
        .info = {.n_dims = shape.n_dims, .ne = {shape.ne[0], shape.ne[1], shape.ne[2], 1}},
        .fill = fill.fill,
        .mean = fill.mean,
        .std = is_product ? fill.spread / sqrtf((float)shape.ne[0]) : fill.spread,
    };
    tensor_name(tensor->info.name, role, il, 0);
    return true;
}

enum lm_status synth_tensors(const struct synth_shape *shape, bool mtp, struct synth_tensor **out,
                             size_t *n, struct lm_error *err)
{
    const uint32_t n_block = shape->n_layer + mtp;
    struct hparams hp;
    struct synth_tensor *tensors = calloc((size_t)ROLE_COUNT * (n_block + 1), sizeof(*tensors));
    if (!tensors)
        return lm_fail(err, LM_E_NO_MEM, "no memory for the tensors of %u layers", n_block);
    synth_hparams(&hp, shape, mtp);
    *n = 0;
    for (int role = 0; role < ROLE_GLOBAL_COUNT; role++)
        *n += make_tensor(&hp, (enum tensor_role)role, 0, &tensors[*n]);
    for (uint32_t il = 0; il < n_block; il++)
        for (int role = ROLE_GLOBAL_COUNT; role < ROLE_COUNT; role++)
            *n += make_tensor(&hp, (enum tensor_role)role, il, &tensors[*n]);
    *out = tensors;
    return LM_OK;
}

/* Metadata */

static void put_u32(struct gguf_writer *writer, const struct synth_shape *shape, const char *name,
                    uint32_t value)
{
    char key[128];
    if (!value) return; /* the architecture does not have it */
    snprintf(key, sizeof(key), "%s.%s", shape->arch, name);
    gguf_writer_u32(writer, key, value);
}

static void put_f32(struct gguf_writer *writer, const struct synth_shape *shape, const char *name,
                    float value)
{
    char key[128];
    if (value == 0) return;
    snprintf(key, sizeof(key), "%s.%s", shape->arch, name);
    gguf_writer_f32(writer, key, value);
}

static void put_bool(struct gguf_writer *writer, const struct synth_shape *shape, const char *name,
                     bool value)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", shape->arch, name);
    gguf_writer_bool(writer, key, value);
}

static void put_text(struct gguf_writer *writer, const char *key, const char *text)
{
    gguf_writer_string(writer, key, text, strlen(text));
}

/* The rotary pairs shared out to time, height and width, as in the family: 11, 11, 10 of 32. */
static void put_rope_sections(struct gguf_writer *writer, const struct synth_shape *shape)
{
    char key[128];
    const int32_t n_pair = (int32_t)shape->n_rot / 2, third = (n_pair + 2) / 3;
    snprintf(key, sizeof(key), "%s.rope.dimension_sections", shape->arch);
    gguf_writer_array(writer, key, GGUF_I32, (int32_t[]){third, third, n_pair - 2 * third, 0}, 4);
}

void synth_put_hparams(struct gguf_writer *writer, const struct synth_shape *s, bool mtp,
                       const struct recipe *recipe)
{
    const struct arch_info *arch = arch_of(s);
    char name[100];
    snprintf(name, sizeof(name), "synthetic %s", s->name);
    put_text(writer, "general.architecture", s->arch);
    put_text(writer, "general.type", "model");
    put_text(writer, "general.name", name);
    gguf_writer_u32(writer, "general.file_type", recipe_file_type(recipe));
    gguf_writer_u32(writer, "general.quantization_version", 2);
    put_u32(writer, s, "block_count", s->n_layer + mtp);
    put_u32(writer, s, "context_length", s->n_ctx);
    put_u32(writer, s, "embedding_length", s->n_embd);
    put_u32(writer, s, "vocab_size", s->n_vocab);
    put_u32(writer, s, "feed_forward_length", s->n_ff);
    put_u32(writer, s, "attention.head_count", s->n_head);
    put_u32(writer, s, "attention.head_count_kv", s->n_head_kv);
    put_u32(writer, s, "attention.key_length", s->head_dim);
    put_u32(writer, s, "attention.value_length", s->head_dim);
    put_f32(writer, s, "attention.layer_norm_rms_epsilon", s->rms_eps);
    put_u32(writer, s, "attention.sliding_window", s->n_swa);
    put_u32(writer, s, "rope.dimension_count", s->n_rot);
    put_f32(writer, s, "rope.freq_base", s->rope_freq_base);
    if (arch->rope_sections) put_rope_sections(writer, s);
    put_u32(writer, s, "expert_count", s->n_expert);
    put_u32(writer, s, "expert_used_count", s->n_expert_used);
    put_u32(writer, s, "expert_feed_forward_length", s->n_ff_exp);
    if (arch->sigmoid_router) {
        put_u32(writer, s, "expert_shared_count", s->n_ff_shexp / s->n_ff_exp);
        put_u32(writer, s, "expert_gating_func", 2);
        put_bool(writer, s, "expert_weights_norm", true);
    } else {
        put_u32(writer, s, "expert_shared_feed_forward_length", s->n_ff_shexp);
    }
    put_f32(writer, s, "expert_weights_scale", s->expert_weights_scale);
    put_u32(writer, s, "leading_dense_block_count", s->n_layer_dense);
    if (arch->delta_net) put_u32(writer, s, "ssm.conv_kernel", N_CONV);
    put_u32(writer, s, "ssm.state_size", s->ssm_dim);
    put_u32(writer, s, "ssm.group_count", s->ssm_n_group);
    put_u32(writer, s, "ssm.time_step_rank", s->ssm_n_v);
    put_u32(writer, s, "ssm.inner_size", s->ssm_n_v * s->ssm_dim);
    put_u32(writer, s, "full_attention_interval", s->full_attention_interval);
    put_u32(writer, s, "nextn_predict_layers", mtp);
}
