/* The weights of a stage: tensors of a file bound to their places in the graph.
 *
 * Weights are views into the mapping of the file, or copies of their own where the file is larger
 * than memory: the page cache may then drop a mapping's pages, and reads around them what is not
 * wanted. Vectors and the rows of token_embd stay in the mapping then. A device, which cannot read
 * a mapping, gets a copy of everything. Fused tensors (attn_qkv on
 * attention layers) are bound as row ranges of it; old layouts that interleave rows by key head
 * (ssm_in, ssm_ba) are copied once, row by row, into the order that the graph uses. The same graph
 * then serves all forms. Routed experts are not here: worker/pager has them.
 *
 * Ownership: borrows the gguf_file and the hparams, owns the copies.
 * Threads:   immutable after create. */
#ifndef LEAN_WORKER_GRAPH_MODEL_H
#define LEAN_WORKER_GRAPH_MODEL_H

#include "kernels/backend.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

struct gguf_file;

/* Shapes: d n_embd, D head_dim, H and Hkv heads; matrices are (rows, columns). */
struct layer {
    const float *attn_norm;      /* (d) before the mixer */
    const float *attn_post_norm; /* (d) after it; NULL: none */
    const float *ffn_norm;       /* (d) before the FFN */
    const float *ffn_post_norm;  /* (d) after it; NULL: none */

    /* attention */
    struct weight q;           /* (H*D, d); with a gate per head (H*2D, d) */
    struct weight k, v;        /* (Hkv*D, d) */
    struct weight gate;        /* (H*D, d) where it is a matrix of its own */
    struct weight attn_output; /* (d, H*D) */
    const float *q_bias, *k_bias, *v_bias, *attn_output_bias; /* NULL: none */
    const float *q_norm, *k_norm;                             /* (D) or NULL */

    /* gated delta net */
    struct weight qkv;           /* (conv_dim, d) */
    struct weight z;             /* (n_head_v*dim_v, d) */
    struct weight alpha, beta;   /* (n_head_v, d) */
    struct weight ssm_out;       /* (d, n_head_v*dim_v) */
    const float *conv_w;         /* (conv_dim, n_conv) */
    const float *ssm_a, *ssm_dt; /* (n_head_v) */
    const float *ssm_norm;       /* (dim_v) */

    /* dense FFN, or the shared expert; data NULL: none */
    struct weight ffn_gate, ffn_up; /* (n_ff, d) */
    struct weight ffn_down;         /* (d, n_ff) */

    /* routed experts */
    struct weight router;        /* (n_expert, d) */
    const float *selection_bias; /* (n_expert) or NULL */
    const float *shared_gate;    /* (d) or NULL */
};

enum model_weights {
    MODEL_MAPPED,
    MODEL_COPIED, /* matrices */
    MODEL_ON_DEVICE
};

struct model {
    const struct hparams *hp;
    uint32_t layer_begin, layer_end;
    struct weight token_embd; /* (n_vocab, d) */
    bool has_token_embd;      /* it is where the backend reads; else in the file's mapping */
    struct weight output;     /* (n_vocab, d), token_embd if tied */
    const float *output_norm; /* (d) */
    const float *rope_freqs;  /* (n_rot/2) or NULL; on the host, whatever the backend */
    struct layer *layer;      /* [layer_end]; those of the range are bound */
    /* of the layer for prediction alone: it enters by a product with (embedding, hidden state) */
    struct weight eh_proj;      /* (d, 2d) */
    const float *enorm, *hnorm; /* (d) of the two */
    int32_t *suppressed;        /* [n_suppressed] tokens whose logits are minus infinity */
    uint32_t n_suppressed;
    enum model_weights weights;
    struct backend *backend; /* of the copies */
    void **copies;           /* [n_copy] */
    uint32_t n_copy;
};

/* hp: of this file, accepted by hparams_read. LM_E_NO_MEM; LM_E_FORMAT: the list of suppressed
 * tokens is none; LM_E_IO: a copy could not be read. */
enum lm_status model_create(struct model **out, const struct gguf_file *file,
                            const struct hparams *hp, struct backend *backend, uint32_t layer_begin,
                            uint32_t layer_end, enum model_weights weights, struct lm_error *err);
/* The layer for multi-token prediction, behind the decoder's last, as a model of its own: it has
 * the embeddings and the head of the decoder, which outlives it, unless the file has others for it;
 * its weights are where the decoder's are, but for embeddings of its own. decoder: of the stage
 * with the last layer. */
enum lm_status model_create_draft(struct model **out, const struct gguf_file *file,
                                  const struct model *decoder, struct lm_error *err);
void model_destroy(struct model *model);

/* What the file has for a role that the layer may have; data NULL: nothing. */
struct weight model_find_weight(const struct gguf_file *file, const struct hparams *hp,
                                enum tensor_role role, uint32_t il);

#endif
