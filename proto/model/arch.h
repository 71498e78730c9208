/* The architectures: what general.architecture may say, and how their files differ.
 *
 * The table holds what decides which keys and tensors a file must have. How a model computes is in
 * worker/graph/arch_<name>.c. To add an architecture: a row here, its forward pass there. */
#ifndef LEAN_PROTO_MODEL_ARCH_H
#define LEAN_PROTO_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>

enum arch {
    ARCH_LLAMA,
    ARCH_QWEN2,
    ARCH_QWEN3,
    ARCH_QWEN3MOE,
    ARCH_QWEN35,
    ARCH_QWEN35MOE,
    ARCH_QWEN3NEXT,
    ARCH_AFMOE,
    ARCH_COUNT
};

struct arch_info {
    enum arch id;
    const char *name; /* general.architecture, and the prefix of its keys */
    bool delta_net;   /* gated delta net layers between full-attention layers */
    bool ssm_ba;      /* one tensor projects beta and alpha; value heads are grouped by key head */
    bool rope_sections;  /* rope.dimension_sections is required */
    bool rope_full;      /* rope.dimension_count must be the whole head */
    bool rope_freqs;     /* the file may hold rope_freqs.weight */
    bool experts;        /* routed experts */
    bool shared_expert;  /* beside a shared one */
    bool shared_gate;    /* which has a gate of its own */
    bool sigmoid_router; /* expert_gating_func, the selection bias and the weight keys count */
    bool q_gate;         /* attn_q holds query and gate of each head */
    bool attn_gate;      /* or the gate is a matrix of its own */
    bool qk_norm;        /* queries and keys are normalised per head */
    bool attn_bias;      /* attention matrices may have biases */
    bool sandwich;       /* norms before and after each block; else before only */
    bool window;         /* sliding-window layers */
};

/* NULL if there is none of this name (n bytes). Static storage. */
const struct arch_info *arch_find(const char *name, size_t n);
const struct arch_info *arch_info(enum arch id);

#endif
