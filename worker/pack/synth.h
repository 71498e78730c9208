/* Synthetic models: GGUF files with the shapes and metadata of real ones and random weights.
 *
 * They are for what depends on shape and not on meaning: tests, speed, memory, paging. Weights are
 * scaled so that activations neither vanish nor grow and logits have a standard deviation of about
 * 3. Routing can be made uneven and alike from layer to layer:
 *
 *   skew        expert e's router row is scaled by e^(skew * n_e), n_e normal. 0: all experts are
 *               equally likely. Of 256 experts with 8 used, the busiest tenth then gets 0.11 of the
 *               choices, at 0.3 0.34, at 0.5 0.47, at 1 0.67
 *   similarity  correlation of a layer's router with that of the layer before, 0 to 1: with 1, a
 *               hidden state that changes little from layer to layer chooses the same experts.
 *
 * Large matrices are composed of blocks drawn from a pool that is quantized once per type and
 * scale, so that writing is bound by the disk. The tokenizer section is a byte-level BPE
 * vocabulary of the full size: the 256 bytes, entries over lower-case letters and a leading space,
 * and the ChatML and tool-call tokens.
 *
 * The bytes depend on the arguments only. Files that differ in the recipe hold the same model: the
 * tensors of one at Q4_K_M are those of the F32 one behind `lean quantize`. */
#ifndef LEAN_WORKER_PACK_SYNTH_H
#define LEAN_WORKER_PACK_SYNTH_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "worker/pack/recipe.h"

/* Hyperparameters in the words of GGUF; 0 where an architecture has no such thing. */
struct synth_shape {
    const char *name; /* "qwen3.5-35b-a3b"; of a tiny model the architecture */
    const char *arch;
    uint32_t n_layer; /* without the MTP layer */
    uint32_t n_embd, n_vocab, n_ctx;
    uint32_t n_head, n_head_kv, head_dim, n_rot;
    float rope_freq_base, rms_eps;
    uint32_t n_ff; /* of dense layers */
    uint32_t n_expert, n_expert_used, n_ff_exp, n_ff_shexp;
    uint32_t n_layer_dense; /* leading layers without experts */
    float expert_weights_scale;
    uint32_t n_swa;                         /* sliding window */
    uint32_t full_attention_interval;       /* every so many layers is not recurrent */
    uint32_t ssm_n_group, ssm_n_v, ssm_dim; /* key heads, value heads, state size */
    bool tied;                              /* the output matrix is the embedding */
};

/* Every known shape, those of real models first; NULL beyond the last. */
const struct synth_shape *synth_shape_at(size_t index);
/* By name, without regard to case. LM_E_USAGE: unknown; the message lists the names. */
enum lm_status synth_shape_find(const char *name, struct synth_shape *out, struct lm_error *err);

struct synth_config {
    struct synth_shape shape; /* may have been changed: layers, experts, vocabulary */
    const struct recipe *recipe;
    uint64_t seed;
    float skew, similarity;
    bool hollow;                                 /* weights are holes in the file, read as zeros */
    bool mtp;                                    /* adds an MTP layer; qwen35 and qwen35moe */
    const volatile sig_atomic_t *is_interrupted; /* checked now and then; may be NULL */
};

/* Writes path; NULL: only measures. *n_bytes (may be NULL) is the size of the file. LM_E_USAGE: the
 * shape is impossible; LM_E_NO_MEM, LM_E_NO_SPACE, LM_E_IO, LM_E_INTERRUPTED. */
enum lm_status synth_write(const char *path, const struct synth_config *config, uint64_t *n_bytes,
                           struct lm_error *err);

#endif
