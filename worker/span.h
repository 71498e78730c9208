/* A span: adjacent layers of a stage on one backend, with their weights, the state of sequences
 * that they keep, and the graph that runs them.
 *
 *   stage    layers on the CPU -- x --> layers on a device          one of the two may be missing
 *            \____ span ____/           \____ span ____/
 *
 * x crosses on the host. All spans of a stage hold the same sequences at the same lengths. The
 * layer for multi-token prediction is a span of its own beside the last of them (graph/mtp.h).
 *
 * Ownership: borrows what its configuration names, owns the rest.
 * Threads:   the step thread. */
#ifndef LEAN_WORKER_SPAN_H
#define LEAN_WORKER_SPAN_H

#include "worker/graph/graph.h"
#include "worker/state/seq_state.h"

struct expert_store;
struct gguf_file;

struct span_config {
    const struct gguf_file *file;
    const struct hparams *hp;
    const struct expert_store *store;
    struct backend *backend;
    bool is_device; /* the host cannot read the backend's memory: everything is copied there */
    bool paged;     /* experts come and go; on a device: it has slots for some */
    struct seq_state_config state; /* the layers, too */
    /* The layer is the one for prediction behind this model, not one of the decoder; or NULL. */
    const struct model *decoder;
    /* Called while a device gets its experts; NULL: nobody. */
    void (*on_load)(void *context, uint64_t n_done, uint64_t n_total);
    void *load_context;
};

struct span {
    struct backend *backend;
    bool is_device, paged;
    struct seq_state_config config;
    struct model *model;
    struct expert_bank *bank;
    struct seq_state *state;
    struct graph graph;
};

/* Weights and state. span: zero before. */
enum lm_status span_init(struct span *span, const struct span_config *config, struct lm_error *err);
/* The graph, with which the span can run. experts: its bank is the span's. trace: or NULL.
 * trailer_bytes, lender: see graph_config. */
enum lm_status span_create_graph(struct span *span, const struct graph_experts *experts,
                                 struct route_trace *trace, size_t trailer_bytes,
                                 const struct graph *lender, struct lm_error *err);
void span_fini(struct span *span); /* legal after a failed init, and of zeros */

#endif
