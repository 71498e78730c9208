/* Names and shapes of tensors by role. */
#include "proto/model/tensor_names.h"

#include <stdio.h>
#include <string.h>

#include "proto/model/hparams.h"

/* Global names stand alone; the others follow "blk.<layer>."; '%' stands for the expert. */
static const char *const role_names[ROLE_COUNT] = {
    [ROLE_TOKEN_EMBD] = "token_embd.weight",
    [ROLE_OUTPUT_NORM] = "output_norm.weight",
    [ROLE_OUTPUT] = "output.weight",
    [ROLE_ROPE_FREQS] = "rope_freqs.weight",
    [ROLE_ATTN_NORM] = "attn_norm.weight",
    [ROLE_ATTN_Q] = "attn_q.weight",
    [ROLE_ATTN_K] = "attn_k.weight",
    [ROLE_ATTN_V] = "attn_v.weight",
    [ROLE_ATTN_QKV] = "attn_qkv.weight",
    [ROLE_ATTN_GATE] = "attn_gate.weight",
    [ROLE_ATTN_OUTPUT] = "attn_output.weight",
    [ROLE_ATTN_Q_BIAS] = "attn_q.bias",
    [ROLE_ATTN_K_BIAS] = "attn_k.bias",
    [ROLE_ATTN_V_BIAS] = "attn_v.bias",
    [ROLE_ATTN_QKV_BIAS] = "attn_qkv.bias",
    [ROLE_ATTN_OUTPUT_BIAS] = "attn_output.bias",
    [ROLE_ATTN_Q_NORM] = "attn_q_norm.weight",
    [ROLE_ATTN_K_NORM] = "attn_k_norm.weight",
    [ROLE_SSM_IN] = "ssm_in.weight",
    [ROLE_SSM_CONV1D] = "ssm_conv1d.weight",
    [ROLE_SSM_DT] = "ssm_dt.bias",
    [ROLE_SSM_A] = "ssm_a",
    [ROLE_SSM_ALPHA] = "ssm_alpha.weight",
    [ROLE_SSM_BETA] = "ssm_beta.weight",
    [ROLE_SSM_BA] = "ssm_ba.weight",
    [ROLE_SSM_NORM] = "ssm_norm.weight",
    [ROLE_SSM_OUT] = "ssm_out.weight",
    [ROLE_POST_ATTENTION_NORM] = "post_attention_norm.weight",
    [ROLE_FFN_NORM] = "ffn_norm.weight",
    [ROLE_POST_FFW_NORM] = "post_ffw_norm.weight",
    [ROLE_FFN_GATE] = "ffn_gate.weight",
    [ROLE_FFN_UP] = "ffn_up.weight",
    [ROLE_FFN_DOWN] = "ffn_down.weight",
    [ROLE_FFN_GATE_INP] = "ffn_gate_inp.weight",
    [ROLE_EXP_PROBS_B] = "exp_probs_b.bias",
    [ROLE_FFN_GATE_EXPS] = "ffn_gate_exps.weight",
    [ROLE_FFN_UP_EXPS] = "ffn_up_exps.weight",
    [ROLE_FFN_DOWN_EXPS] = "ffn_down_exps.weight",
    [ROLE_FFN_GATE_UP_EXPS] = "ffn_gate_up_exps.weight",
    [ROLE_FFN_GATE_EXP] = "ffn_gate.%.weight",
    [ROLE_FFN_UP_EXP] = "ffn_up.%.weight",
    [ROLE_FFN_DOWN_EXP] = "ffn_down.%.weight",
    [ROLE_FFN_GATE_INP_SHEXP] = "ffn_gate_inp_shexp.weight",
    [ROLE_FFN_GATE_SHEXP] = "ffn_gate_shexp.weight",
    [ROLE_FFN_UP_SHEXP] = "ffn_up_shexp.weight",
    [ROLE_FFN_DOWN_SHEXP] = "ffn_down_shexp.weight",
    [ROLE_NEXTN_EH_PROJ] = "nextn.eh_proj.weight",
    [ROLE_NEXTN_ENORM] = "nextn.enorm.weight",
    [ROLE_NEXTN_HNORM] = "nextn.hnorm.weight",
    [ROLE_NEXTN_SHARED_HEAD_NORM] = "nextn.shared_head_norm.weight",
    [ROLE_NEXTN_EMBED_TOKENS] = "nextn.embed_tokens.weight",
    [ROLE_NEXTN_SHARED_HEAD_HEAD] = "nextn.shared_head_head.weight",
};

static struct tensor_shape vector(enum tensor_need need, uint64_t n)
{
    return (struct tensor_shape){need, 1, {n, 1, 1}};
}

static struct tensor_shape matrix(enum tensor_need need, uint64_t n_col, uint64_t n_row)
{
    return (struct tensor_shape){need, 2, {n_col, n_row, 1}};
}

static struct tensor_shape stack(enum tensor_need need, uint64_t n_col, uint64_t n_row, uint64_t n)
{
    return (struct tensor_shape){need, 3, {n_col, n_row, n}};
}

static const struct tensor_shape absent = {TENSOR_ABSENT, 0, {1, 1, 1}};

static enum tensor_need required_if(bool condition)
{
    return condition ? TENSOR_REQUIRED : TENSOR_ABSENT;
}

static struct tensor_shape attention_shape(const struct hparams *hp, enum tensor_role role,
                                           const struct layer_hparams *layer)
{
    const struct arch_info *arch = hp->arch;
    const uint64_t d = hp->n_embd, n_kv = (uint64_t)layer->n_head_kv * hp->head_dim;
    const uint64_t n_out = (uint64_t)layer->n_head * hp->head_dim;
    const uint64_t n_q = n_out * (arch->q_gate ? 2 : 1);
    const enum tensor_need bias = arch->attn_bias ? TENSOR_OPTIONAL : TENSOR_ABSENT;
    switch (role) {
    case ROLE_ATTN_Q:
        return matrix(TENSOR_REQUIRED, d, n_q);
    case ROLE_ATTN_K:
    case ROLE_ATTN_V:
        return matrix(TENSOR_REQUIRED, d, n_kv);
    case ROLE_ATTN_QKV:
        return matrix(TENSOR_ALTERNATIVE, d, n_q + 2 * n_kv);
    case ROLE_ATTN_GATE:
        return matrix(required_if(arch->attn_gate), d, n_out);
    case ROLE_ATTN_OUTPUT:
        return matrix(TENSOR_REQUIRED, n_out, d);
    case ROLE_ATTN_Q_BIAS:
        return vector(bias, n_q);
    case ROLE_ATTN_K_BIAS:
    case ROLE_ATTN_V_BIAS:
        return vector(bias, n_kv);
    case ROLE_ATTN_QKV_BIAS:
        return vector(bias, n_q + 2 * n_kv);
    case ROLE_ATTN_OUTPUT_BIAS:
        return vector(bias, d);
    case ROLE_ATTN_Q_NORM:
    case ROLE_ATTN_K_NORM:
        return vector(required_if(arch->qk_norm), hp->head_dim);
    default:
        return absent;
    }
}

static struct tensor_shape delta_net_shape(const struct hparams *hp, enum tensor_role role)
{
    const uint64_t d = hp->n_embd, n_conv = hparams_conv_dim(hp), n_head = hp->n_head_v;
    const uint64_t n_val = n_head * hp->dim_v;
    const bool ba = hp->arch->ssm_ba;
    switch (role) {
    case ROLE_ATTN_QKV:
        return matrix(TENSOR_REQUIRED, d, n_conv);
    case ROLE_ATTN_GATE:
        return matrix(TENSOR_REQUIRED, d, n_val);
    case ROLE_SSM_IN:
        return matrix(ba ? TENSOR_ALTERNATIVE : TENSOR_ABSENT, d, n_conv + n_val);
    case ROLE_SSM_CONV1D:
        return matrix(TENSOR_REQUIRED, hp->n_conv, n_conv);
    case ROLE_SSM_DT:
    case ROLE_SSM_A:
        return vector(TENSOR_REQUIRED, n_head);
    case ROLE_SSM_ALPHA:
    case ROLE_SSM_BETA:
        return matrix(required_if(!ba), d, n_head);
    case ROLE_SSM_BA:
        return matrix(required_if(ba), d, 2 * n_head);
    case ROLE_SSM_NORM:
        return vector(TENSOR_REQUIRED, hp->dim_v);
    case ROLE_SSM_OUT:
        return matrix(TENSOR_REQUIRED, n_val, d);
    default:
        return absent;
    }
}

static struct tensor_shape ffn_shape(const struct hparams *hp, enum tensor_role role,
                                     const struct layer_hparams *layer)
{
    const struct arch_info *arch = hp->arch;
    const uint64_t d = hp->n_embd, f = hp->n_ff_exp, e = hp->n_expert, s = hp->n_ff_shexp;
    const enum tensor_need dense = required_if(!layer->moe), moe = required_if(layer->moe);
    const enum tensor_need other = layer->moe ? TENSOR_ALTERNATIVE : TENSOR_ABSENT;
    const enum tensor_need shared = required_if(layer->moe && arch->shared_expert);
    switch (role) {
    case ROLE_FFN_GATE:
    case ROLE_FFN_UP:
        return matrix(dense, d, layer->n_ff);
    case ROLE_FFN_DOWN:
        return matrix(dense, layer->n_ff, d);
    case ROLE_FFN_GATE_INP:
        return matrix(moe, d, e);
    case ROLE_EXP_PROBS_B:
        return vector(required_if(layer->moe && arch->sigmoid_router), e);
    case ROLE_FFN_GATE_EXPS:
    case ROLE_FFN_UP_EXPS:
        return stack(moe, d, f, e);
    case ROLE_FFN_DOWN_EXPS:
        return stack(moe, f, d, e);
    case ROLE_FFN_GATE_UP_EXPS:
        return stack(other, d, 2 * f, e);
    case ROLE_FFN_GATE_EXP:
    case ROLE_FFN_UP_EXP:
        return matrix(other, d, f);
    case ROLE_FFN_DOWN_EXP:
        return matrix(other, f, d);
    case ROLE_FFN_GATE_INP_SHEXP:
        return vector(required_if(layer->moe && arch->shared_gate), d);
    case ROLE_FFN_GATE_SHEXP:
    case ROLE_FFN_UP_SHEXP:
        return matrix(shared, d, s);
    case ROLE_FFN_DOWN_SHEXP:
        return matrix(shared, s, d);
    default:
        return absent;
    }
}

static struct tensor_shape nextn_shape(const struct hparams *hp, enum tensor_role role)
{
    const uint64_t d = hp->n_embd;
    switch (role) {
    case ROLE_NEXTN_EH_PROJ:
        return matrix(TENSOR_REQUIRED, 2 * d, d);
    case ROLE_NEXTN_ENORM:
    case ROLE_NEXTN_HNORM:
        return vector(TENSOR_REQUIRED, d);
    case ROLE_NEXTN_SHARED_HEAD_NORM:
        return vector(TENSOR_OPTIONAL, d);
    case ROLE_NEXTN_EMBED_TOKENS:
    case ROLE_NEXTN_SHARED_HEAD_HEAD:
        return matrix(TENSOR_OPTIONAL, d, hp->n_vocab);
    default:
        return absent;
    }
}

struct tensor_shape tensor_shape(const struct hparams *hp, enum tensor_role role, uint32_t il)
{
    const struct arch_info *arch = hp->arch;
    const struct layer_hparams *layer = &hp->layer[il];
    const uint64_t d = hp->n_embd;
    switch (role) {
    case ROLE_TOKEN_EMBD:
        return matrix(TENSOR_REQUIRED, d, hp->n_vocab);
    case ROLE_OUTPUT_NORM:
        return vector(TENSOR_REQUIRED, d);
    case ROLE_OUTPUT:
        return matrix(TENSOR_OPTIONAL, d, hp->n_vocab);
    case ROLE_ROPE_FREQS:
        return vector(arch->rope_freqs ? TENSOR_OPTIONAL : TENSOR_ABSENT, hp->rope.n_rot / 2);
    case ROLE_ATTN_NORM:
        return vector(TENSOR_REQUIRED, d);
    case ROLE_POST_ATTENTION_NORM:
        return vector(required_if(arch->delta_net || arch->sandwich), d);
    case ROLE_FFN_NORM:
        return vector(required_if(!arch->delta_net), d);
    case ROLE_POST_FFW_NORM:
        return vector(required_if(arch->sandwich), d);
    default:
        break;
    }
    if (role >= ROLE_NEXTN_EH_PROJ) return il < hp->n_layer ? absent : nextn_shape(hp, role);
    if (role >= ROLE_FFN_GATE) return ffn_shape(hp, role, layer);
    return layer->recurrent ? delta_net_shape(hp, role) : attention_shape(hp, role, layer);
}

struct role_alternatives tensor_alternatives(const struct hparams *hp, enum tensor_role role,
                                             uint32_t il)
{
    struct role_alternatives none = {{ROLE_COUNT, ROLE_COUNT}};
    const bool recurrent = role >= ROLE_GLOBAL_COUNT && hp->layer[il].recurrent;
    switch (role) {
    case ROLE_ATTN_Q:
    case ROLE_ATTN_K:
    case ROLE_ATTN_V:
        none.role[0] = ROLE_ATTN_QKV;
        break;
    case ROLE_ATTN_QKV:
    case ROLE_ATTN_GATE:
        if (recurrent) none.role[0] = ROLE_SSM_IN;
        break;
    case ROLE_FFN_GATE_EXPS:
    case ROLE_FFN_UP_EXPS:
        none.role[0] = ROLE_FFN_GATE_UP_EXPS;
        none.role[1] = role == ROLE_FFN_UP_EXPS ? ROLE_FFN_UP_EXP : ROLE_FFN_GATE_EXP;
        break;
    case ROLE_FFN_DOWN_EXPS:
        none.role[0] = ROLE_FFN_DOWN_EXP;
        break;
    default:
        break;
    }
    return none;
}

const char *tensor_name(char out[TENSOR_NAME_MAX], enum tensor_role role, uint32_t il, uint32_t ie)
{
    const char *name = role_names[role], *expert = strchr(name, '%');
    if (role < ROLE_GLOBAL_COUNT)
        snprintf(out, TENSOR_NAME_MAX, "%s", name);
    else if (!expert)
        snprintf(out, TENSOR_NAME_MAX, "blk.%u.%s", il, name);
    else
        snprintf(out, TENSOR_NAME_MAX, "blk.%u.%.*s%u%s", il, (int)(expert - name), name, ie,
                 expert + 1);
    return out;
}

/* Reads a decimal number without leading zeros; advances *at. */
static bool parse_number(const char **at, uint32_t *out)
{
    const char *digit = *at;
    uint64_t value = 0;
    for (; *digit >= '0' && *digit <= '9' && digit - *at < 9; digit++)
        value = value * 10 + (uint64_t)(*digit - '0');
    const bool ok = digit > *at && (**at != '0' || digit == *at + 1);
    *out = (uint32_t)value;
    *at = digit;
    return ok;
}

/* Does text match pattern, in which '%' stands for a number? */
static bool matches(const char *text, const char *pattern, uint32_t *number)
{
    for (; *pattern && *pattern != '%'; pattern++, text++)
        if (*text != *pattern) return false;
    if (*pattern == '\0') return *text == '\0';
    return parse_number(&text, number) && !strcmp(text, pattern + 1);
}

bool tensor_name_parse(const char *name, size_t n, enum tensor_role *role, uint32_t *il,
                       uint32_t *ie)
{
    char text[TENSOR_NAME_MAX];
    if (n >= sizeof(text) || memchr(name, '\0', n)) return false;
    memcpy(text, name, n);
    text[n] = '\0';
    *il = *ie = 0;
    const char *rest = text;
    int first = 0, end = ROLE_GLOBAL_COUNT;
    if (!strncmp(text, "blk.", 4)) {
        rest += 4;
        if (!parse_number(&rest, il) || *rest++ != '.') return false;
        first = ROLE_GLOBAL_COUNT;
        end = ROLE_COUNT;
    }
    for (int i = first; i < end; i++) {
        if (!matches(rest, role_names[i], ie)) continue;
        *role = (enum tensor_role)i;
        return true;
    }
    return false;
}
