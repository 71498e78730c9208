/* A backend runs the operations of a model on one device: memory, copies, and compute.
 *
 * The operations are as coarse as both a thread pool and a GPU like them: each is one parallel
 * region on the CPU, one or two launches on a GPU. All activations are F32, row-major
 * [n_token][n], in backend memory. Operations run in the order of the calls; nothing has
 * happened for certain until sync. Each operation's arithmetic is fixed by kernels/NUMERICS.md,
 * so its bits depend neither on the backend, the threads, nor on the other rows of the call.
 *
 * Errors:    operations do not return one. A NaN or infinity in an activation, or a device
 *            failure, is kept by the backend and reported by the next sync (LM_E_FAIL), which
 *            clears it.
 * Memory:    weights, activations, norms, tables of angles, caches and states, route's ids and
 *            weights are backend memory (alloc). Host memory, read before a call returns, are the
 *            arguments themselves, what says where rows belong (token, embed's ids, gather's rows,
 *            selected), and the tables of pointers (kv_block, conv_state, state, expert); the
 *            pointers in them are to backend memory. On the CPU all is one.
 * Ownership: the caller owns all memory it passes; the backend owns its scratch.
 * Threads:   one caller at a time; the CPU backend's pool is internal. */
#ifndef LEAN_KERNELS_BACKEND_H
#define LEAN_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

/* A matrix of weights, y = W x: n_row results from n_col inputs. A 1-D tensor has n_row 1. */
struct weight {
    const void *data; /* backend-readable; NULL: the tensor is absent */
    enum tensor_type type;
    uint32_t n_col, n_row;
    size_t row_bytes;
};

/* Where a row of a batch belongs. */
struct token_ref {
    uint32_t slot; /* sequence slot, indexes the per-sequence state tables */
    uint32_t pos;  /* position in its sequence, 0-based */
};

/* What happens to the rows that linear and ffn produce. */
struct epilogue {
    const float *post_norm; /* [n] RMSNorm weight applied to the result, or NULL */
    float eps;
    float *residual; /* [n_token][n]: residual += result, and y is not written; or NULL */
};

enum { LINEAR_MAX = 6 };

/* y_i = W_i x (+ bias_i) for up to LINEAR_MAX matrices that share an input. */
struct linear_args {
    uint32_t n_token;
    const float *x; /* [n_token][n_col] */
    uint32_t n_col;
    const float *norm; /* [n_col]: x is RMSNormed by it first; or NULL */
    float eps;
    uint32_t n_out; /* matrices */
    struct {
        const struct weight *w;
        const float *bias; /* [n_row] or NULL */
        float *y;          /* [n_token][y_stride]; unused with epilogue.residual */
        size_t y_stride;   /* floats */
    } out[LINEAR_MAX];
    struct epilogue epilogue; /* only with n_out == 1 */
};

enum rope_kind { ROPE_NONE, ROPE_NORM /* pairs 2i, 2i+1 */, ROPE_NEOX /* pairs i, i+n_rot/2 */ };

/* Positions per block of the KV cache; also the block of the canonical attention sum. */
enum { KV_BLOCK = 128 };
/* Query heads of one key head, at most. */
enum { ATTENTION_GROUP_MAX = 64 };

/* Bytes of one block: K [n_head_kv][KV_BLOCK][head_dim], then V in the same shape, rows of
 * kv_type (F16, BF16, F32 or Q8_0). */
size_t kv_block_bytes(enum tensor_type kv_type, uint32_t n_head_kv, uint32_t head_dim);

/* Appends the rows' k and v to their sequences' caches, then attends causally, each row over the
 * positions [max(0, pos - window + 1), pos] of its own sequence (window 0: from 0). Rows of one
 * sequence are adjacent and at consecutive positions. Q and K are RMSNormed per head and rotated
 * first; the result is gated: out = attention * sigmoid(gate). */
struct attention_args {
    uint32_t n_token;
    const struct token_ref *token; /* [n_token] */
    const float *q;                /* head ih of row it: q + it * q_stride + ih * q_head_stride */
    size_t q_stride, q_head_stride;
    const float *gate; /* as q, with gate_stride and gate_head_stride; or NULL */
    size_t gate_stride, gate_head_stride;
    const float *k, *v; /* [n_token][kv_stride], heads of head_dim one after the other */
    size_t kv_stride;
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    float eps;
    enum rope_kind rope;
    const float *rope_cos, *rope_sin; /* [n_ctx][n_rot / 2] */
    uint32_t n_rot;
    uint32_t n_head, n_head_kv, head_dim;
    float scale;
    uint32_t window;
    enum tensor_type kv_type;
    void *const *const *kv_block; /* [slot][pos / KV_BLOCK] -> block; held where it is needed */
    float *out;                   /* [n_token][n_head * head_dim] */
};

/* Gated delta net: causal convolution and SiLU over qkv, L2 norm of q and k per head, gates
 * beta = sigmoid(b), g = a * softplus(alpha + dt), the step-by-step recurrence, then
 * out = RMSNorm(o; norm) * SiLU(z) per value head. Rows of one sequence are adjacent, in order.
 * Rows that may have to be taken back leave the states of their sequence as they were. */
enum { DELTA_NET_FROZEN_MAX = 32 }; /* rows of a frozen sequence */
struct delta_net_args {
    uint32_t n_token;
    const struct token_ref *token;
    const float *qkv; /* [n_token][conv_dim]: q, k (n_head_k * dim_k each), v (n_head_v * dim_v) */
    const float *z;   /* [n_token][n_head_v * dim_v] */
    const float *beta, *alpha; /* [n_token][n_head_v], before their activations */
    const float *conv_w;       /* [conv_dim][n_tap], tap 0 the oldest */
    uint32_t n_tap;
    const float *ssm_a, *ssm_dt; /* [n_head_v] */
    const float *norm;           /* [dim_v] */
    float eps;
    uint32_t n_head_k, n_head_v, dim_k, dim_v;
    bool grouped; /* value head h uses key head h / (n_head_v / n_head_k), else h % n_head_k */
    float *const *conv_state; /* [slot] -> [n_tap - 1][conv_dim], oldest first */
    float *const *state;      /* [slot] -> [n_head_v][dim_v][dim_k] */
    const bool *frozen;       /* [slot] neither of the two is written; NULL: of no slot */
    float *out;               /* [n_token][n_head_v * dim_v] */
};

enum gating { GATING_SOFTMAX, GATING_SIGMOID };

/* Router: logits, probabilities, top-k in rank order (ties to the lower id), weights. */
struct route_args {
    uint32_t n_token;
    const float *x; /* [n_token][n_col] */
    const struct weight *router;
    const float *selection_bias; /* [n_expert], added for the choice only; or NULL */
    enum gating gating;
    bool normalize; /* weights /= max(sum, 2^-14) */
    float scale;    /* weights *= scale unless 0 or 1 */
    uint32_t n_expert_used;
    int32_t *ids;   /* [n_token][n_expert_used] in backend memory; hosts read what they download */
    float *weights; /* likewise */
};

/* Weights of one routed expert, lent by the pager. gate_up fused: up is NULL, gate holds both. */
struct expert_view {
    const void *gate, *up, *down;
};

/* Feed-forward: routed experts (n_expert_used > 0) combined in rank order from +0 by fmaf, then
 * the shared or dense SwiGLU: fmaf(sigmoid(shared_gate . x), shared, y), or + shared. */
struct ffn_args {
    uint32_t n_token;
    const float *x; /* [n_token][n_embd] */
    uint32_t n_embd;
    uint32_t n_expert, n_expert_used, n_ff_exp;
    const int32_t *ids;   /* [n_token][n_expert_used], each < n_expert */
    const float *weights; /* [n_token][n_expert_used] */
    /* [n_expert], filled for the ids that occur: table in backend memory, read when the operation
     * runs; or, if that is NULL, expert in host memory, read by the call. */
    const struct expert_view *table, *expert;
    struct weight gate_exp, up_exp, down_exp; /* shape and type of one expert's, data unused */
    const struct weight *gate, *up, *down;    /* shared expert or dense FFN; NULL: none */
    const float *shared_gate;                 /* [n_embd] or NULL: not gated */
    float *expert_out; /* [n_token * n_expert_used][n_embd] between steps; NULL will do for ffn */
    float *y;          /* [n_token][n_embd]; unused with a residual */
    struct epilogue epilogue;
};

/* Brings experts that are in pinned host memory alone into the device's before ffn, in work for the
 * device that never asks the host. Experts beyond the room are left where they are, and read there
 * by ffn. */
struct expert_gather_args {
    const int32_t *ids; /* [n_pair] in backend memory, as route left them; n_pair: rows * top-k */
    uint32_t n_pair, n_expert;
    const struct expert_view *table; /* [n_expert] in backend memory: where each expert is */
    const uint8_t *remote;           /* [n_expert] in backend memory: not 0: in host memory */
    size_t gate_bytes, up_bytes, down_bytes; /* of one expert; up_bytes 0: fused with gate */
    void *room;                              /* [n_room] experts, expert_room_bytes each */
    uint32_t n_room;
    struct expert_view *view; /* out, [n_expert] for the ids that occur: for ffn_args.table */
};

/* Engines that copy beside the operations; what is wanted now does not wait for what may be. */
enum copy_lane { COPY_DEMAND, COPY_AHEAD };

struct backend {
    const struct backend_ops *ops;
};

struct backend_ops {
    const char *name;
    void (*destroy)(struct backend *backend);

    /* Device memory, 64-byte aligned, zeroed. NULL: LM_E_NO_MEM. */
    void *(*alloc)(struct backend *backend, size_t n_bytes, struct lm_error *err);
    void (*free)(struct backend *backend, void *memory);
    /* from_host may change after the call; to_host holds the bytes after the next sync. */
    void (*upload)(struct backend *backend, void *to, const void *from_host, size_t n_bytes);
    void (*download)(struct backend *backend, void *to_host, const void *from, size_t n_bytes);
    void (*copy)(struct backend *backend, void *to, const void *from, size_t n_bytes);
    /* Waits for all operations so far, and of copies beside them for those that they await; reports
     * and clears a kept error. */
    enum lm_status (*sync)(struct backend *backend, struct lm_error *err);

    /* x[t] = scale * table[ids[t]]. */
    void (*embed)(struct backend *backend, const struct weight *table, const int32_t *ids,
                  uint32_t n_token, float scale, float *x);
    /* y[t] = RMSNorm(x[t]; norm). */
    void (*rms_norm)(struct backend *backend, const float *x, const float *norm, float eps,
                     uint32_t n_token, uint32_t n, float *y);
    /* y[i] = x[rows[i]]. */
    void (*gather)(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                   uint32_t n, float *y);
    /* y[rows[i]] = x[rows[i]]. x: backend memory, or pinned and left alone until sync. */
    void (*copy_rows)(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                      uint32_t n, float *y);
    void (*linear)(struct backend *backend, const struct linear_args *args);
    void (*attention)(struct backend *backend, const struct attention_args *args);
    void (*delta_net)(struct backend *backend, const struct delta_net_args *args);
    void (*route)(struct backend *backend, const struct route_args *args);
    void (*ffn)(struct backend *backend, const struct ffn_args *args);
    /* The same in steps, for experts that become readable one group after another. ffn_experts
     * leaves in expert_out what the experts with selected[id] give for the rows that chose them;
     * when all have had their turn, ffn_finish combines the rows as ffn does, with the same bits.
     * selected: [n_expert]. */
    void (*ffn_experts)(struct backend *backend, const struct ffn_args *args, const bool *selected);
    void (*ffn_finish)(struct backend *backend, const struct ffn_args *args);
    void (*gather_experts)(struct backend *backend, const struct expert_gather_args *args);

    /* ---- copies beside the operations; on the CPU, where all is one, they are done at once ----
     *
     * Weights stream through a slot like this; with two slots in turn, one is filled while the
     * other is read:
     *
     *   ticket = fetch(slot, from_host, n_bytes, read[slot], lane);   as early as is known what
     *   await(ticket);
     *   ffn_experts(those in the slot);
     *   read[slot] = mark();
     *
     * A lane copies in the order of the calls. What is fetched ahead goes behind what is demanded,
     * and is given to the device little by little, as is what is written back: calls of fetched,
     * await, mark, start and sync see to it. mark and await begin what has been called so far,
     * which ends a list that could be replayed as one: call them for a group of experts, not for
     * each. free and unpin wait for all copies; after the loss of a device each copy counts as
     * done, and sync reports it.
     *
     * Page-locks host memory, whole pages of it that are not page-locked yet, which fetch then
     * reads at the link's speed and operations may read, too, by the same address; other memory is
     * fetched through page-locked pieces, which the caller's thread fills. LM_E_NO_MEM: the system
     * refuses. */
    enum lm_status (*pin)(struct backend *backend, void *memory, size_t n_bytes,
                          struct lm_error *err);
    void (*unpin)(struct backend *backend, void *memory); /* as it was pinned */
    /* Begins all operations called so far, without waiting for them. */
    void (*start)(struct backend *backend);
    /* A point behind the operations called so far. */
    uint64_t (*mark)(struct backend *backend);
    /* Copies when the operations before a mark are done (0: at once), behind earlier copies of the
     * lane. from_host is left alone until fetched says so. Returns the copy's ticket, never 0. */
    uint64_t (*fetch)(struct backend *backend, void *to, const void *from_host, size_t n_bytes,
                      uint64_t after, enum copy_lane lane);
    /* The other way, on a lane of its own, in pieces between which downloads pass: to_host, which
     * is page-locked, holds the bytes when fetched says so, unless the next sync reports an error.
     * Both are left alone until then; no operation that is not done yet writes from. */
    uint64_t (*write_back)(struct backend *backend, void *to_host, const void *from,
                           size_t n_bytes);
    /* Asking again and again is enough for it to become true. Ticket 0: true. */
    bool (*fetched)(struct backend *backend, uint64_t ticket);
    /* Operations called from here on run when the copy is done. */
    void (*await)(struct backend *backend, uint64_t ticket);
};

/* Bytes that an expert takes in the room of gather_experts. */
static inline size_t expert_room_bytes(size_t gate_bytes, size_t up_bytes, size_t down_bytes)
{
    return (gate_bytes + 255) / 256 * 256 + (up_bytes + 255) / 256 * 256 +
           (down_bytes + 255) / 256 * 256;
}

struct backend_cpu_config {
    uint32_t n_thread;   /* 0: as many as pool_create finds useful */
    const char *kernels; /* kernels_select's name */
    bool pin;            /* bind each worker thread to a core */
};
enum lm_status backend_cpu_create(struct backend **out, const struct backend_cpu_config *config,
                                  struct lm_error *err);
uint32_t backend_cpu_n_thread(const struct backend *backend);
const char *backend_cpu_kernels(const struct backend *backend);

#endif
