/* The forward pass of a run of layers on one backend over one batch of rows.
 *
 * arch_<name>.c writes a model down as a sequence of blocks; the blocks here are what the
 * architectures share, and everything they compute goes through backend_ops. Rows are independent
 * but for the state of their own sequence, so a row's bits do not depend on the batch.
 *
 *   x   [n_row][n_embd]   the residual stream: blocks read it and add to it
 *
 * The workspace is allocated once for the largest batch; a step allocates nothing.
 * Threads: the step thread. */
#ifndef LEAN_WORKER_GRAPH_GRAPH_H
#define LEAN_WORKER_GRAPH_GRAPH_H

#include "kernels/backend.h"
#include "worker/graph/model.h"

struct device_tier;
struct expert_bank;
struct expert_demand;
struct expert_pager;
struct expert_usage;
struct foresight;
struct progress;
struct rope_table;
struct route_trace;
struct seq_state;

struct graph {
    const struct hparams *hp;
    const struct model *model;
    struct backend *backend;
    struct seq_state *state;
    struct expert_bank *bank;   /* experts in the backend's memory; NULL: the pager has them */
    struct device_tier *tier;   /* and some are in the backend's memory; NULL: none */
    struct backend *cpu;        /* with a tier: computes with experts that are not */
    struct expert_pager *pager; /* with a bank it counts only, and may be NULL */
    struct route_trace *trace;  /* NULL: not recorded */
    struct progress *progress;  /* moved by every block; NULL: nobody watches */
    enum tensor_type kv_type;
    struct rope_table *rope, *rope_window; /* NULL where no layer needs one */

    /* Workspace for n_batch rows; up to expert_out in backend memory. */
    float *memory;
    float *x;              /* may be replaced between steps by a buffer of the same size */
    float *normed;         /* [n_batch][n_embd] input of router and experts */
    float *mixer;          /* parts of it as the mixer of the layer needs them */
    int32_t *expert_ids;   /* [n_batch][n_expert_used]; with a bank for each layer, il first */
    float *expert_weights; /* likewise */
    int32_t *next_ids;     /* right behind them, as the router behind would choose; if paged: */
    float *next_weights;
    float *hidden;                /* [n_batch][n_embd] set by who wants all rows of x behind the
                                   * last layer, normed, in backend memory; or NULL */
    float *expert_out;            /* rows of ffn_experts */
    struct expert_view *views;    /* [n_expert] */
    struct expert_demand *demand; /* [n_expert] */
    uint32_t *n_chosen;           /* [n_expert] rows that chose the expert, 0 between uses */
    struct expert_usage **payer;  /* [n_expert] of the chosen: for whom they are looked up */
    struct expert_usage **sharer; /* [n_expert] and who chose them last */
    int32_t *chosen_ids;          /* with a bank: expert_ids and */
    float *chosen_weights;        /* expert_weights on the host */
    bool *selected;               /* [n_expert] false between uses */
    int32_t *predicted;           /* [n_batch][n_expert_used] */
    struct foresight *foresight;  /* NULL unless paged, and on the CPU */
    float *host_memory;           /* with a tier: pinned if it can be: */
    bool host_pinned;
    float *host_normed; /* [n_cpu_row][n_embd] what the CPU computes with */
    /* [n_cpu_row * n_expert_used][n_embd] and what it makes of it. Besides there are chosen_ids,
     * with room for as many behind them, and chosen_weights. */
    float *host_out;
    uint32_t *sent_row; /* [n_cpu_row * n_expert_used] of host_out */

    /* The batch, set by the worker for each step. */
    uint32_t n_token;
    const struct token_ref *token; /* [n_token] */
    const int32_t *ids;            /* [n_token] */
    const uint32_t *out_rows;      /* [n_out] rows that are wanted, rising */
    uint32_t n_out;
    struct expert_usage *const *usage; /* [n_token] of the row's sequence; NULL: not counted */
    uint64_t n_step;                   /* so far */
    uint32_t n_row;                    /* rows in x: n_token, behind the last mixer n_out */
};

struct graph_config {
    uint32_t n_batch, n_ctx;
    enum tensor_type kv_type;
    bool paged;           /* experts may come in groups */
    size_t trailer_bytes; /* room behind x, and behind normed that changes places with it */
    /* Has the same backend and n_batch, keeps its experts alike, and has more layers: its workspace
     * but x and normed is used, too, between its steps; NULL: nobody's. Outlives the graph. */
    const struct graph *lender;
};

/* Where routed experts are. */
struct graph_experts {
    struct expert_bank *bank;
    struct device_tier *tier;
    struct backend *cpu;
    struct expert_pager *pager;
};

/* model, state, what experts names, and trace are borrowed until fini. */
enum lm_status graph_init(struct graph *graph, const struct graph_config *config,
                          const struct model *model, struct seq_state *state,
                          const struct graph_experts *experts, struct route_trace *trace,
                          struct lm_error *err);
void graph_fini(struct graph *graph); /* legal after a failed init, and of zeros */

/* Begins to run the layers over the batch; x will hold the result: the wanted rows behind the
 * model's last layer, all rows otherwise. Positions must be reserved. Errors of the pager. */
enum lm_status graph_forward(struct graph *graph, struct lm_error *err);
/* Ends that, and what else was asked of the backend since: errors of the backend (a NaN). */
enum lm_status graph_finish(struct graph *graph, struct lm_error *err);
/* logits = output . RMSNorm(x[first .. first + n)). logits: [n][n_vocab], backend memory. */
void graph_head(struct graph *graph, uint32_t first, uint32_t n, float *logits);

/* ---- for arch_<name>.c ---- */

/* x = scale * token_embd[ids], on the first stage; later ones have received x. */
void graph_embed(struct graph *graph, float scale);
/* x += (post-norm of) attention of RMSNorm(x). */
void graph_attention(struct graph *graph, uint32_t il, enum rope_kind rope);
/* x += gated delta net of RMSNorm(x). */
void graph_delta_net(struct graph *graph, uint32_t il);
/* Behind the last layer's mixer only the rows whose logits are wanted go on. */
void graph_narrow(struct graph *graph, uint32_t il);
/* x += (post-norm of) SwiGLU of RMSNorm(x). */
void graph_ffn(struct graph *graph, uint32_t il);
/* x += (post-norm of) routed experts plus shared expert of RMSNorm(x). */
enum lm_status graph_moe(struct graph *graph, uint32_t il, struct lm_error *err);

/* In front of a layer's mixer: tells the pager which experts the layer will probably choose, where
 * that is of use. graph_moe does so for the layer behind it. Changes `normed`. */
enum lm_status graph_foresee(struct graph *graph, uint32_t il, struct lm_error *err);

typedef enum lm_status (*arch_forward_fn)(struct graph *graph, struct lm_error *err);
enum lm_status arch_llama_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen2_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen3_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen3moe_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen35_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen35moe_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_qwen3next_forward(struct graph *graph, struct lm_error *err);
enum lm_status arch_afmoe_forward(struct graph *graph, struct lm_error *err);

#endif
