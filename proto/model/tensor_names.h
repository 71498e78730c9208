/* Roles of tensors: their names in a file, and the shape each layer needs.
 *
 * A role is what a tensor is for; a name is a role, a layer and, in old files, an expert. For given
 * hyperparameters tensor_shape says whether a layer has a role and in what shape, so loops over
 * layers and roles enumerate a model: to check a file, to bind its tensors, to write one.
 *
 *   blk.7.ffn_gate_exps.weight   ROLE_FFN_GATE_EXPS, layer 7   {n_embd, n_ff_exp, n_expert}
 */
#ifndef LEAN_PROTO_MODEL_TENSOR_NAMES_H
#define LEAN_PROTO_MODEL_TENSOR_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hparams;

enum tensor_role {
    ROLE_TOKEN_EMBD,
    ROLE_OUTPUT_NORM,
    ROLE_OUTPUT,
    ROLE_ROPE_FREQS,
    ROLE_GLOBAL_COUNT, /* roles from here on belong to layers */
    ROLE_ATTN_NORM = ROLE_GLOBAL_COUNT,
    ROLE_ATTN_Q,
    ROLE_ATTN_K,
    ROLE_ATTN_V,
    ROLE_ATTN_QKV, /* delta net: input projection; attention: q, k and v in one */
    ROLE_ATTN_GATE,
    ROLE_ATTN_OUTPUT,
    ROLE_ATTN_Q_BIAS,
    ROLE_ATTN_K_BIAS,
    ROLE_ATTN_V_BIAS,
    ROLE_ATTN_QKV_BIAS,
    ROLE_ATTN_OUTPUT_BIAS,
    ROLE_ATTN_Q_NORM,
    ROLE_ATTN_K_NORM,
    ROLE_SSM_IN, /* old files: attn_qkv and attn_gate, interleaved by key head */
    ROLE_SSM_CONV1D,
    ROLE_SSM_DT,
    ROLE_SSM_A,
    ROLE_SSM_ALPHA,
    ROLE_SSM_BETA,
    ROLE_SSM_BA,
    ROLE_SSM_NORM,
    ROLE_SSM_OUT,
    ROLE_POST_ATTENTION_NORM,
    ROLE_FFN_NORM,
    ROLE_POST_FFW_NORM,
    ROLE_FFN_GATE,
    ROLE_FFN_UP,
    ROLE_FFN_DOWN,
    ROLE_FFN_GATE_INP,
    ROLE_EXP_PROBS_B,
    ROLE_FFN_GATE_EXPS,
    ROLE_FFN_UP_EXPS,
    ROLE_FFN_DOWN_EXPS,
    ROLE_FFN_GATE_UP_EXPS,
    ROLE_FFN_GATE_EXP, /* one tensor per expert, in old files */
    ROLE_FFN_UP_EXP,
    ROLE_FFN_DOWN_EXP,
    ROLE_FFN_GATE_INP_SHEXP,
    ROLE_FFN_GATE_SHEXP,
    ROLE_FFN_UP_SHEXP,
    ROLE_FFN_DOWN_SHEXP,
    ROLE_NEXTN_EH_PROJ,
    ROLE_NEXTN_ENORM,
    ROLE_NEXTN_HNORM,
    ROLE_NEXTN_SHARED_HEAD_NORM,
    ROLE_NEXTN_EMBED_TOKENS,
    ROLE_NEXTN_SHARED_HEAD_HEAD,
    ROLE_COUNT
};

enum tensor_need {
    TENSOR_ABSENT,   /* the layer has no such tensor */
    TENSOR_REQUIRED, /* it, or its alternative */
    TENSOR_OPTIONAL,
    TENSOR_ALTERNATIVE /* another form of required ones: fused, or an old layout */
};

struct tensor_shape {
    enum tensor_need need;
    uint32_t n_dims;
    uint64_t ne[3]; /* as in GGUF, ne[0] contiguous; unused ones are 1 */
};

/* Shape of a role in layer il (ignored for global roles). */
struct tensor_shape tensor_shape(const struct hparams *hp, enum tensor_role role, uint32_t il);

/* Whether tensors of the role hold routed experts, in any of the forms that files have them. */
static inline bool tensor_role_is_experts(enum tensor_role role)
{
    return role >= ROLE_FFN_GATE_EXPS && role <= ROLE_FFN_DOWN_EXP;
}

/* Roles that together replace a required one: ROLE_COUNT if there is none. attn_q, attn_k and
 * attn_v give way to attn_qkv, the expert stacks to gate_up_exps or to tensors per expert. */
struct role_alternatives {
    enum tensor_role role[2];
};
struct role_alternatives tensor_alternatives(const struct hparams *hp, enum tensor_role role,
                                             uint32_t il);

enum { TENSOR_NAME_MAX = 64 };
/* Writes the name; ie is used by the roles per expert only. Returns out. */
const char *tensor_name(char out[TENSOR_NAME_MAX], enum tensor_role role, uint32_t il, uint32_t ie);
/* The reverse. false: not a name of this kind. Numbers that a name lacks are set to 0. */
bool tensor_name_parse(const char *name, size_t n, enum tensor_role *role, uint32_t *il,
                       uint32_t *ie);

#endif
