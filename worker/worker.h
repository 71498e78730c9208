/* One rank: receives a batch, runs its stage of the model, passes the result on.
 *
 *   plan --> [receive x] --> layers layer_begin .. layer_end --> [send x | head, sampler] -->
 * tokens
 *
 * The first stage embeds, the last one computes logits and samples. With one rank a worker is both
 * and has no edges.
 *
 * Ownership: borrows the file, the hparams, the store, the backends and the edges; owns the rest.
 * Threads:   one caller at a time, the step thread. */
#ifndef LEAN_WORKER_WORKER_H
#define LEAN_WORKER_WORKER_H

#include "kernels/backend.h"
#include "proto/step.h"
#include "worker/edges.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/expert_pager.h"

struct cache_policy;
struct gguf_file;
struct hparams;
struct progress;
struct transport_edge;
struct worker;

struct pager_options {
    /* Experts kept in memory of the CPU's layers, and of a device's that does not keep all itself;
     * 0: all, in the mapping or, for a device, in slots. */
    uint32_t n_slot;
    const struct cache_policy *policy;
    enum prefetch prefetch;
    enum disk_engine engine;
    enum disk_access access;
    uint32_t depth;
};

struct device_options {
    uint32_t n_slot; /* experts of the device's layers kept in its memory; 0: all */
    enum miss_mode miss;
    bool inclusive; /* as of device_tier.h */
};

struct worker_config {
    const struct gguf_file *file;
    const struct hparams *hp;
    const struct expert_store *store; /* of these layers at least, and of that for drafts */
    struct backend *backend;          /* the CPU's */
    struct backend *device;           /* of the layers from device_begin on; NULL: none */
    uint32_t layer_begin, layer_end;
    uint32_t device_begin;           /* layer_begin <= device_begin < layer_end */
    struct transport_edge *in, *out; /* NULL on the first, on the last stage */
    uint32_t n_edge_buffer;          /* 0: 3 */
    uint32_t n_slot;                 /* sequences and snapshots held */
    uint32_t n_ctx;                  /* tokens of one sequence at most */
    uint64_t n_position;             /* tokens of all together that must fit */
    /* Of them, room on a device at the beginning where it keeps some of its layers' experts, which
     * have the rest until it is needed: worker/exchange.h. 0: all. */
    uint64_t n_position_ready;
    uint32_t n_batch; /* tokens of one step at most */
    uint32_t n_draft; /* of those of one sequence, drafts at most */
    bool mtp;         /* the last stage drafts by the model's own layer for that */
    enum tensor_type kv_type;
    const char *trace_path; /* routing trace, or NULL */
    bool trace_kept;        /* instead: its records are taken by worker_take_trace */
    struct pager_options pager;
    struct device_options device_experts;
    struct progress *progress; /* told of what the steps do; NULL: nobody watches */
    const char *name; /* "rank 1 (HOST)", with which errors of its steps begin; NULL: one rank */
    /* Called while a device gets its experts; NULL: nobody. */
    void (*on_load)(void *context, uint64_t n_done, uint64_t n_total);
    void *load_context;
};

enum lm_status worker_create(struct worker **out, const struct worker_config *config,
                             struct lm_error *err);
/* Destroys; the status of closing the trace. NULL is legal. */
enum lm_status worker_close(struct worker *worker, struct lm_error *err);

/* Runs steps on this worker alone, one rank: a step is over when it has begun. */
struct step_runner worker_runner(struct worker *worker);

/* The parts of that, for a stage. LM_E_LIMIT: as there. LM_E_RANK_LOST: an edge failed, and
 * nothing more can be done. All else fails the step alone: its slots have grown, by what is nothing
 * to go on from. */
enum lm_status worker_step(struct worker *worker, const struct step_plan *plan,
                           struct sampled_token *sampled, struct lm_error *err);
enum lm_status worker_seq(struct worker *worker, const struct seq_op *op, struct lm_error *err);
/* Between steps, when there is nothing to do: as of step_runner. */
bool worker_idle(struct worker *worker);
struct seq_usage worker_usage(const struct worker *worker);

/* Not on the first stage: begins to receive what the next step needs, or the one behind that if it
 * was called before. worker_step does it where it was not done. */
enum lm_status worker_expect(struct worker *worker, const struct step_plan *plan,
                             struct lm_error *err);
/* What a step does first for a sequence, and no more. */
enum lm_status worker_reserve(struct worker *worker, uint32_t slot, uint32_t n_token,
                              struct lm_error *err);
/* Tokens that a slot holds. */
uint32_t worker_length(const struct worker *worker, uint32_t slot);

const struct worker_config *worker_settings(const struct worker *worker);

/* Edges between devices, for x alone, where the first layer or the last one is on the device; or
 * NULL. Before the first step. They are taken over. */
enum lm_status worker_link(struct worker *worker, struct transport_edge *in,
                           struct transport_edge *out, struct lm_error *err);
/* The records of the last step as of pager/trace.h; false: none are kept. */
bool worker_take_trace(struct worker *worker, const uint8_t **records, size_t *n_bytes);
/* What has passed the stage's ends; between steps only. */
struct edges_stats worker_edges(const struct worker *worker);
/* Belongs to the worker; between steps only. */
struct expert_pager *worker_pager(const struct worker *worker);
/* Likewise, and NULL where no device has slots. */
struct device_tier *worker_tier(const struct worker *worker);

#endif
