/* The shapes of real and tiny models, and from a shape the keys and tensors of a file. */
#include "worker/pack/synth_shape.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct synth_shape shapes[] = {
    {.name = "qwen3.5-35b-a3b",
     .arch = "qwen35moe",
     .n_layer = 40,
     .n_embd = 2048,
     .n_vocab = 248320,
     .n_ctx = 262144,
     .n_head = 16,
     .n_head_kv = 2,
     .head_dim = 256,
     .n_rot = 64,
     .rope_freq_base = 1e7f,
     .rms_eps = 1e-6f,
     .n_expert = 256,
     .n_expert_used = 8,
     .n_ff_exp = 512,
     .n_ff_shexp = 512,
     .full_attention_interval = 4,
     .ssm_n_group = 16,
     .ssm_n_v = 32,
     .ssm_dim = 128},
    {.name = "qwen3.5-122b-a10b",
     .arch = "qwen35moe",
     .n_layer = 48,
     .n_embd = 3072,
     .n_vocab = 248320,
     .n_ctx = 262144,
     .n_head = 32,
     .n_head_kv = 2,
     .head_dim = 256,
     .n_rot = 64,
     .rope_freq_base = 1e7f,
     .rms_eps = 1e-6f,
     .n_expert = 256,
     .n_expert_used = 8,
     .n_ff_exp = 1024,
     .n_ff_shexp = 1024,
     .full_attention_interval = 4,
     .ssm_n_group = 16,
     .ssm_n_v = 64,
     .ssm_dim = 128},
    {.name = "qwen3.5-397b-a17b",
     .arch = "qwen35moe",
     .n_layer = 60,
     .n_embd = 4096,
     .n_vocab = 248320,
     .n_ctx = 262144,
     .n_head = 32,
     .n_head_kv = 2,
     .head_dim = 256,
     .n_rot = 64,
     .rope_freq_base = 1e7f,
     .rms_eps = 1e-6f,
     .n_expert = 512,
     .n_expert_used = 10,
     .n_ff_exp = 1024,
     .n_ff_shexp = 1024,
     .full_attention_interval = 4,
     .ssm_n_group = 16,
     .ssm_n_v = 64,
     .ssm_dim = 128},
    {.name = "qwen3-coder-next",
     .arch = "qwen3next",
     .n_layer = 48,
     .n_embd = 2048,
     .n_vocab = 151936,
     .n_ctx = 262144,
     .n_head = 16,
     .n_head_kv = 2,
     .head_dim = 256,
     .n_rot = 64,
     .rope_freq_base = 5e6f,
     .rms_eps = 1e-6f,
     .n_ff = 5120,
     .n_expert = 512,
     .n_expert_used = 10,
     .n_ff_exp = 512,
     .n_ff_shexp = 512,
     .full_attention_interval = 4,
     .ssm_n_group = 16,
     .ssm_n_v = 32,
     .ssm_dim = 128},
    {.name = "trinity-large-thinking",
     .arch = "afmoe",
     .n_layer = 60,
     .n_embd = 3072,
     .n_vocab = 200192,
     .n_ctx = 262144,
     .n_head = 48,
     .n_head_kv = 8,
     .head_dim = 128,
     .n_rot = 128,
     .rope_freq_base = 1e4f,
     .rms_eps = 1e-5f,
     .n_ff = 12288,
     .n_expert = 256,
     .n_expert_used = 4,
     .n_ff_exp = 3072,
     .n_ff_shexp = 3072,
     .n_layer_dense = 6,
     .expert_weights_scale = 2.448f,
     .n_swa = 4096},
    {.name = "llama-1b",
     .arch = "llama",
     .n_layer = 16,
     .n_embd = 2048,
     .n_vocab = 128256,
     .n_ctx = 131072,
     .n_head = 32,
     .n_head_kv = 8,
     .head_dim = 64,
     .n_rot = 64,
     .rope_freq_base = 5e5f,
     .rms_eps = 1e-5f,
     .n_ff = 8192,
     .tied = true},
    /* Tiny: rows of 256, so that every type applies; odd counts where an architecture allows. */
    {.name = "qwen35moe",
     .arch = "qwen35moe",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 16,
     .rope_freq_base = 1e7f,
     .rms_eps = 1e-6f,
     .n_expert = 12,
     .n_expert_used = 3,
     .n_ff_exp = 256,
     .n_ff_shexp = 256,
     .full_attention_interval = 4,
     .ssm_n_group = 2,
     .ssm_n_v = 4,
     .ssm_dim = 64},
    {.name = "qwen3next",
     .arch = "qwen3next",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 16,
     .rope_freq_base = 5e6f,
     .rms_eps = 1e-6f,
     .n_ff = 512,
     .n_expert = 12,
     .n_expert_used = 3,
     .n_ff_exp = 256,
     .n_ff_shexp = 256,
     .full_attention_interval = 4,
     .ssm_n_group = 2,
     .ssm_n_v = 4,
     .ssm_dim = 64},
    {.name = "afmoe",
     .arch = "afmoe",
     .n_layer = 5,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 64,
     .rope_freq_base = 1e4f,
     .rms_eps = 1e-5f,
     .n_ff = 512,
     .n_expert = 12,
     .n_expert_used = 3,
     .n_ff_exp = 256,
     .n_ff_shexp = 256,
     .n_layer_dense = 1,
     .expert_weights_scale = 2.448f,
     .n_swa = 64},
    {.name = "qwen3moe",
     .arch = "qwen3moe",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 64,
     .rope_freq_base = 1e6f,
     .rms_eps = 1e-6f,
     .n_ff = 512,
     .n_expert = 12,
     .n_expert_used = 3,
     .n_ff_exp = 256},
    {.name = "qwen35",
     .arch = "qwen35",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 16,
     .rope_freq_base = 1e7f,
     .rms_eps = 1e-6f,
     .n_ff = 512,
     .full_attention_interval = 4,
     .ssm_n_group = 2,
     .ssm_n_v = 4,
     .ssm_dim = 64,
     .tied = true},
    {.name = "qwen3",
     .arch = "qwen3",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 64,
     .rope_freq_base = 1e6f,
     .rms_eps = 1e-6f,
     .n_ff = 512,
     .tied = true},
    {.name = "qwen2",
     .arch = "qwen2",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 4,
     .n_head_kv = 2,
     .head_dim = 64,
     .n_rot = 64,
     .rope_freq_base = 1e6f,
     .rms_eps = 1e-6f,
     .n_ff = 512,
     .tied = true},
    {.name = "llama",
     .arch = "llama",
     .n_layer = 4,
     .n_embd = 256,
     .n_vocab = 512,
     .n_ctx = 4096,
     .n_head = 8,
     .n_head_kv = 2,
     .head_dim = 32,
     .n_rot = 32,
     .rope_freq_base = 5e5f,
     .rms_eps = 1e-5f,
     .n_ff = 512},
};
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

/* What the architectures differ in. */
static bool is_arch(const struct synth_shape *shape, const char *arch)
{
    return !strcmp(shape->arch, arch);
}
static bool is_qwen35(const struct synth_shape *shape) /* and its kin with a delta net */
{
    return shape->full_attention_interval > 0;
}
static bool has_qk_norm(const struct synth_shape *shape)
{
    return !is_arch(shape, "llama") && !is_arch(shape, "qwen2");
}
static bool is_recurrent(const struct synth_shape *shape, uint32_t il)
{
    return is_qwen35(shape) && il < shape->n_layer && (il + 1) % shape->full_attention_interval;
}
static bool has_experts(const struct synth_shape *shape, uint32_t il)
{
    return shape->n_expert && il >= shape->n_layer_dense;
}

enum lm_status synth_check(const struct synth_shape *shape, bool mtp, struct lm_error *err)
{
    if (shape->n_vocab < SYNTH_VOCAB_MIN)
        return lm_fail(err, LM_E_USAGE, "a vocabulary of %u is too small, the least is %d",
                       shape->n_vocab, SYNTH_VOCAB_MIN);
    if (shape->n_expert && shape->n_expert_used > shape->n_expert)
        return lm_fail(err, LM_E_USAGE, "%u experts, but %u are used per token", shape->n_expert,
                       shape->n_expert_used);
    if (mtp && !is_arch(shape, "qwen35") && !is_arch(shape, "qwen35moe"))
        return lm_fail(err, LM_E_USAGE, "%s has no MTP layer; qwen35 and qwen35moe have",
                       shape->arch);
    return LM_OK;
}

/* Tensors */

struct list {
    struct synth_tensor *tensors;
    size_t n, capacity;
    const struct synth_shape *shape;
    bool failed;
};

static struct synth_tensor *add(struct list *list, const char *format, va_list args)
{
    if (list->n == list->capacity) {
        const size_t capacity = 2 * list->capacity + 64;
        struct synth_tensor *grown = realloc(list->tensors, capacity * sizeof(*grown));
        if (!grown) {
            list->failed = true;
            return NULL;
        }
        list->tensors = grown;
        list->capacity = capacity;
    }
    struct synth_tensor *tensor = &list->tensors[list->n++];
    memset(tensor, 0, sizeof(*tensor));
    vsnprintf(tensor->info.name, sizeof(tensor->info.name), format, args);
    for (int i = 0; i < 4; i++)
        tensor->info.ne[i] = 1;
    return tensor;
}

/* A matrix whose products have the given gain: std = gain / sqrt(n_in). */
static void add_matrix(struct list *list, uint64_t n_in, uint64_t n_out, uint64_t n_expert,
                       float gain, const char *format, ...) __attribute__((format(printf, 6, 7)));
static void add_matrix(struct list *list, uint64_t n_in, uint64_t n_out, uint64_t n_expert,
                       float gain, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    struct synth_tensor *tensor = add(list, format, args);
    va_end(args);
    if (!tensor) return;
    tensor->info.n_dims = n_expert ? 3 : 2;
    tensor->info.ne[0] = n_in;
    tensor->info.ne[1] = n_out;
    if (n_expert) tensor->info.ne[2] = n_expert;
    tensor->std = gain / sqrtf((float)n_in);
}

static void add_vector(struct list *list, uint64_t n, float mean, float std, const char *format,
                       ...) __attribute__((format(printf, 5, 6)));
static void add_vector(struct list *list, uint64_t n, float mean, float std, const char *format,
                       ...)
{
    va_list args;
    va_start(args, format);
    struct synth_tensor *tensor = add(list, format, args);
    va_end(args);
    if (!tensor) return;
    tensor->info.n_dims = 1;
    tensor->info.ne[0] = n;
    tensor->mean = mean;
    tensor->std = std;
}

/* The last one added is filled in this way. */
static void set_fill(struct list *list, enum synth_fill fill)
{
    if (!list->failed) list->tensors[list->n - 1].fill = fill;
}

/* Deep models get smaller contributions per layer: the sum stays like that of eight layers, and
 * the hidden state changes little from one layer to the next, as in trained models. */
static float branch_gain(const struct synth_shape *shape, float gain)
{
    return shape->n_layer > 8 ? gain * sqrtf(8.0f / (float)shape->n_layer) : gain;
}

static void add_attention(struct list *list, uint32_t il)
{
    const struct synth_shape *s = list->shape;
    const uint64_t n_q = (uint64_t)s->n_head * s->head_dim;
    const uint64_t n_kv = (uint64_t)s->n_head_kv * s->head_dim;
    const float qk_gain = has_qk_norm(s) ? 1.0f : 1.5f;
    add_matrix(list, s->n_embd, is_qwen35(s) ? 2 * n_q : n_q, 0, qk_gain, "blk.%u.attn_q.weight",
               il);
    add_matrix(list, s->n_embd, n_kv, 0, qk_gain, "blk.%u.attn_k.weight", il);
    add_matrix(list, s->n_embd, n_kv, 0, 1.5f, "blk.%u.attn_v.weight", il);
    if (is_arch(s, "qwen2")) {
        add_vector(list, n_q, 0, 0.2f, "blk.%u.attn_q.bias", il);
        add_vector(list, n_kv, 0, 0.2f, "blk.%u.attn_k.bias", il);
        add_vector(list, n_kv, 0, 0.2f, "blk.%u.attn_v.bias", il);
    }
    if (is_arch(s, "afmoe"))
        add_matrix(list, s->n_embd, n_q, 0, 1.5f, "blk.%u.attn_gate.weight", il);
    add_matrix(list, n_q, s->n_embd, 0, branch_gain(s, 0.9f), "blk.%u.attn_output.weight", il);
    if (has_qk_norm(s)) {
        add_vector(list, s->head_dim, 1.5f, 0.25f, "blk.%u.attn_q_norm.weight", il);
        add_vector(list, s->head_dim, 1.5f, 0.25f, "blk.%u.attn_k_norm.weight", il);
    }
}

static void add_delta_net(struct list *list, uint32_t il)
{
    enum { N_TAP = 4 };
    const struct synth_shape *s = list->shape;
    const uint64_t n_value = (uint64_t)s->ssm_n_v * s->ssm_dim;
    const uint64_t n_conv = 2 * (uint64_t)s->ssm_n_group * s->ssm_dim + n_value;
    add_matrix(list, s->n_embd, n_conv, 0, 1.5f, "blk.%u.attn_qkv.weight", il);
    add_matrix(list, s->n_embd, n_value, 0, 1.5f, "blk.%u.attn_gate.weight", il);
    add_matrix(list, N_TAP, n_conv, 0, 1.0f, "blk.%u.ssm_conv1d.weight", il);
    add_vector(list, s->ssm_n_v, -1.0f, 0.8f, "blk.%u.ssm_dt.bias", il);
    add_vector(list, s->ssm_n_v, 0, 0.6f, "blk.%u.ssm_a", il);
    set_fill(list, SYNTH_DECAY);
    if (is_arch(s, "qwen3next")) {
        add_matrix(list, s->n_embd, 2 * s->ssm_n_v, 0, 1.0f, "blk.%u.ssm_ba.weight", il);
    } else {
        add_matrix(list, s->n_embd, s->ssm_n_v, 0, 1.0f, "blk.%u.ssm_alpha.weight", il);
        add_matrix(list, s->n_embd, s->ssm_n_v, 0, 1.0f, "blk.%u.ssm_beta.weight", il);
    }
    add_vector(list, s->ssm_dim, 1.0f, 0.2f, "blk.%u.ssm_norm.weight", il);
    add_matrix(list, n_value, s->n_embd, 0, branch_gain(s, 0.72f), "blk.%u.ssm_out.weight", il);
}

static void add_experts(struct list *list, uint32_t il)
{
    const struct synth_shape *s = list->shape;
    const bool is_sigmoid = is_arch(s, "afmoe");
    add_matrix(list, s->n_embd, s->n_expert, 0, is_sigmoid ? 1.2f : 4.0f,
               "blk.%u.ffn_gate_inp.weight", il);
    set_fill(list, SYNTH_ROUTER);
    if (is_sigmoid) add_vector(list, s->n_expert, 0, 0.1f, "blk.%u.exp_probs_b.bias", il);
    add_matrix(list, s->n_embd, s->n_ff_exp, s->n_expert, 1.7f, "blk.%u.ffn_gate_exps.weight", il);
    add_matrix(list, s->n_embd, s->n_ff_exp, s->n_expert, 1.7f, "blk.%u.ffn_up_exps.weight", il);
    add_matrix(list, s->n_ff_exp, s->n_embd, s->n_expert, branch_gain(s, 0.72f),
               "blk.%u.ffn_down_exps.weight", il);
    if (!s->n_ff_shexp) return;
    if (!is_sigmoid)
        add_vector(list, s->n_embd, 0, 1.5f / sqrtf((float)s->n_embd),
                   "blk.%u.ffn_gate_inp_shexp.weight", il);
    add_matrix(list, s->n_embd, s->n_ff_shexp, 0, 1.5f, "blk.%u.ffn_gate_shexp.weight", il);
    add_matrix(list, s->n_embd, s->n_ff_shexp, 0, 1.5f, "blk.%u.ffn_up_shexp.weight", il);
    add_matrix(list, s->n_ff_shexp, s->n_embd, 0, branch_gain(s, 0.6f),
               "blk.%u.ffn_down_shexp.weight", il);
}

static void add_dense_ffn(struct list *list, uint32_t il)
{
    const struct synth_shape *s = list->shape;
    add_matrix(list, s->n_embd, s->n_ff, 0, 1.5f, "blk.%u.ffn_gate.weight", il);
    add_matrix(list, s->n_embd, s->n_ff, 0, 1.5f, "blk.%u.ffn_up.weight", il);
    add_matrix(list, s->n_ff, s->n_embd, 0, branch_gain(s, 0.6f), "blk.%u.ffn_down.weight", il);
}

static void add_layer(struct list *list, uint32_t il)
{
    const struct synth_shape *s = list->shape;
    add_vector(list, s->n_embd, 1, 0.2f, "blk.%u.attn_norm.weight", il);
    if (is_recurrent(s, il))
        add_delta_net(list, il);
    else
        add_attention(list, il);
    if (is_arch(s, "afmoe")) {
        add_vector(list, s->n_embd, branch_gain(s, 0.6f), 0.1f, "blk.%u.post_attention_norm.weight",
                   il);
        add_vector(list, s->n_embd, 1, 0.2f, "blk.%u.ffn_norm.weight", il);
        add_vector(list, s->n_embd, branch_gain(s, 0.6f), 0.1f, "blk.%u.post_ffw_norm.weight", il);
    } else {
        add_vector(list, s->n_embd, 1, 0.2f, "blk.%u.%s.weight", il,
                   is_qwen35(s) ? "post_attention_norm" : "ffn_norm");
    }
    if (has_experts(s, il))
        add_experts(list, il);
    else
        add_dense_ffn(list, il);
}

enum lm_status synth_tensors(const struct synth_shape *shape, bool mtp, struct synth_tensor **out,
                             size_t *n, struct lm_error *err)
{
    struct list list = {.shape = shape};
    const uint32_t il = shape->n_layer; /* of the MTP layer */
    const float n_embd = (float)shape->n_embd;
    /* Tied: as an output matrix its gain is 3; afmoe multiplies embeddings by sqrt(n_embd). */
    const float embd_gain = shape->tied ? 3 : is_arch(shape, "afmoe") ? 1 : sqrtf(n_embd);
    add_matrix(&list, shape->n_embd, shape->n_vocab, 0, embd_gain, "token_embd.weight");
    for (uint32_t i = 0; i < shape->n_layer + mtp; i++)
        add_layer(&list, i);
    if (mtp) {
        add_matrix(&list, 2 * shape->n_embd, shape->n_embd, 0, 1, "blk.%u.nextn.eh_proj.weight",
                   il);
        add_vector(&list, shape->n_embd, 1, 0.2f, "blk.%u.nextn.enorm.weight", il);
        add_vector(&list, shape->n_embd, 1, 0.2f, "blk.%u.nextn.hnorm.weight", il);
        add_vector(&list, shape->n_embd, 1, 0.2f, "blk.%u.nextn.shared_head_norm.weight", il);
    }
    add_vector(&list, shape->n_embd, 1, 0.2f, "output_norm.weight");
    if (!shape->tied) add_matrix(&list, shape->n_embd, shape->n_vocab, 0, 3, "output.weight");
    if (list.failed) {
        free(list.tensors);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a list of %zu tensors", list.n);
    }
    *out = list.tensors;
    *n = list.n;
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
    if (is_arch(s, "qwen35") || is_arch(s, "qwen35moe")) put_rope_sections(writer, s);
    put_u32(writer, s, "expert_count", s->n_expert);
    put_u32(writer, s, "expert_used_count", s->n_expert_used);
    put_u32(writer, s, "expert_feed_forward_length", s->n_ff_exp);
    if (is_arch(s, "afmoe")) {
        put_u32(writer, s, "expert_shared_count", s->n_ff_shexp / s->n_ff_exp);
        put_u32(writer, s, "expert_gating_func", 2);
        gguf_writer_bool(writer, "afmoe.expert_weights_norm", true);
    } else {
        put_u32(writer, s, "expert_shared_feed_forward_length", s->n_ff_shexp);
    }
    put_f32(writer, s, "expert_weights_scale", s->expert_weights_scale);
    put_u32(writer, s, "leading_dense_block_count", s->n_layer_dense);
    if (is_qwen35(s)) put_u32(writer, s, "ssm.conv_kernel", 4);
    put_u32(writer, s, "ssm.state_size", s->ssm_dim);
    put_u32(writer, s, "ssm.group_count", s->ssm_n_group);
    put_u32(writer, s, "ssm.time_step_rank", s->ssm_n_v);
    put_u32(writer, s, "ssm.inner_size", s->ssm_n_v * s->ssm_dim);
    put_u32(writer, s, "full_attention_interval", s->full_attention_interval);
    put_u32(writer, s, "nextn_predict_layers", mtp);
}
