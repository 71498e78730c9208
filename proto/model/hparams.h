/* Hyperparameters: the sizes of a model, read from GGUF metadata and checked.
 *
 * hparams_read is the gate between a well-formed file and a model that can run: after it, every
 * size is in a sane range, every tensor that the architecture needs is present, once, in the shape
 * that follows from the sizes, and of a type the kernels compute with. What is missing is named
 * all at once. Names follow GGUF: n_embd is "<arch>.embedding_length" and so on.
 *
 * Layers: il < n_layer are the decoder; the n_layer_mtp layers behind them (multi-token-prediction
 * heads, for drafting) are counted by block_count too and are described in the same array.
 * Threads: a plain value, immutable after hparams_read. */
#ifndef LEAN_PROTO_MODEL_HPARAMS_H
#define LEAN_PROTO_MODEL_HPARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/model/arch.h"

struct gguf_file;

enum {
    HPARAMS_MAX_LAYER = 512,
    HPARAMS_MAX_EXPERT = 4096,
    HPARAMS_MAX_HEAD_DIM = 1024,
    HPARAMS_MAX_HEAD_GROUP = 64 /* query heads that share a key head */
};

struct layer_hparams {
    bool recurrent;  /* gated delta net; else attention */
    bool moe;        /* routed experts; else a dense FFN */
    bool rope;       /* positions are rotated in */
    uint32_t window; /* attention reaches back over this many positions, itself included; 0: all */
    uint32_t n_head, n_head_kv;
    uint32_t n_ff; /* of the dense FFN, 0 if there is none */
};

enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN };

struct rope_hparams {
    uint32_t n_rot; /* rotated dimensions of a head, even */
    float freq_base, freq_base_swa;
    enum rope_scaling scaling;
    float factor; /* the context is stretched by it; 1: not. Window layers use it with NONE too */
    uint32_t n_ctx_orig;
    float attn_factor, ext_factor, yarn_attn_factor, beta_fast, beta_slow;
    /* pairs per position stream (time, height, width, extra), by interleaving; all 0: one stream */
    uint32_t sections[4];
};

struct hparams {
    const struct arch_info *arch;
    uint32_t n_layer, n_layer_mtp;
    uint32_t n_vocab, n_embd, n_ctx_train;
    uint32_t head_dim; /* of attention, for keys and values */
    float rms_eps;
    bool tied; /* no output.weight: token_embd serves at both ends */
    struct rope_hparams rope;

    /* routed experts; n_expert 0: none */
    uint32_t n_expert, n_expert_used, n_ff_exp;
    uint32_t n_ff_shexp; /* shared expert, 0: none */
    bool expert_sigmoid; /* router probabilities by sigmoid; else softmax */
    bool expert_norm;    /* weights of the chosen are normalised to sum 1 */
    float expert_scale;  /* then scaled, unless 0 or 1 */

    /* gated delta net; n_conv 0: none */
    uint32_t n_conv;       /* taps of the causal convolution */
    uint32_t dim_k, dim_v; /* of a head: the state is [dim_v][dim_k] per value head */
    uint32_t n_head_k, n_head_v;

    struct layer_hparams layer[HPARAMS_MAX_LAYER]; /* [n_layer + n_layer_mtp] */
};

/* Channels of the convolution: q, k and v of all heads. */
static inline uint32_t hparams_conv_dim(const struct hparams *hp)
{
    return 2 * hp->n_head_k * hp->dim_k + hp->n_head_v * hp->dim_v;
}

/* Routed experts of some layers, of all decoder layers. */
static inline uint32_t hparams_n_expert_of(const struct hparams *hp, uint32_t layer_begin,
                                           uint32_t layer_end)
{
    uint32_t n = 0;
    for (uint32_t il = layer_begin; il < layer_end; il++)
        n += hp->layer[il].moe ? hp->n_expert : 0;
    return n;
}
static inline uint32_t hparams_n_expert_total(const struct hparams *hp)
{
    return hparams_n_expert_of(hp, 0, hp->n_layer);
}

/* Whether what a sequence leaves behind can be cut back to any of its positions: there are neither
 * recurrent layers nor windows. */
static inline bool hparams_can_cut_state(const struct hparams *hp)
{
    for (uint32_t il = 0; il < hp->n_layer; il++)
        if (hp->layer[il].recurrent || hp->layer[il].window) return false;
    return true;
}

/* The routed experts of a pack are not looked for: whoever opens its files checks them.
 * LM_E_UNSUPPORTED: an architecture or a variant of it that the engine does not run, with the ones
 * it does; LM_E_FORMAT: missing keys and tensors (all named), values out of range, wrong shapes.
 * Tensors that nothing will use are named in a warning. */
enum lm_status hparams_read(struct hparams *out, const struct gguf_file *file,
                            struct lm_error *err);

#endif
