/* Feed-forward blocks: one dense SwiGLU, or routed experts with a shared one beside them. */
#include "worker/graph/blocks.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/trace.h"

/* normed = RMSNorm(x), the input of all matrices of the block. */
static void norm_input(struct graph *graph, const struct layer *w)
{
    graph->backend->ops->rms_norm(graph->backend, graph->x, w->ffn_norm, graph->hp->rms_eps,
                                  graph->n_row, graph->hp->n_embd, graph->normed);
}

/* The dense or shared part; the routed part is added by graph_moe. */
static struct ffn_args dense_args(const struct graph *graph, const struct layer *w)
{
    const bool dense = w->ffn_gate.data != NULL;
    return (struct ffn_args){.n_token = graph->n_row,
                             .x = graph->normed,
                             .n_embd = graph->hp->n_embd,
                             .gate = dense ? &w->ffn_gate : NULL,
                             .up = dense ? &w->ffn_up : NULL,
                             .down = dense ? &w->ffn_down : NULL,
                             .shared_gate = w->shared_gate,
                             .epilogue = {w->ffn_post_norm, graph->hp->rms_eps, graph->x}};
}

void graph_ffn(struct graph *graph, uint32_t il)
{
    const struct layer *w = &graph->model->layer[il];
    if (!graph->n_row) return;
    norm_input(graph, w);
    const struct ffn_args args = dense_args(graph, w);
    graph->backend->ops->ffn(graph->backend, &args);
}

/* The distinct experts among the chosen, in the order of their first row. Returns how many. */
static size_t collect_keys(struct graph *graph, uint32_t il)
{
    const size_t n_choice = (size_t)graph->n_row * graph->hp->n_expert_used;
    size_t n_key = 0;
    graph->stamp++;
    for (size_t i = 0; i < n_choice; i++) {
        const uint32_t ie = (uint32_t)graph->expert_ids[i];
        if (graph->asked[ie] == graph->stamp) continue;
        graph->asked[ie] = graph->stamp;
        graph->keys[n_key++] = (struct expert_key){.layer = il, .expert = ie};
    }
    return n_key;
}

enum lm_status graph_moe(struct graph *graph, uint32_t il, struct lm_error *err)
{
    const struct hparams *hp = graph->hp;
    const struct layer *w = &graph->model->layer[il];
    struct backend *backend = graph->backend;
    if (!graph->n_row) return LM_OK;
    norm_input(graph, w);

    const struct route_args route = {
        .n_token = graph->n_row,
        .x = graph->normed,
        .router = &w->router,
        .selection_bias = w->selection_bias,
        .gating = hp->expert_sigmoid ? GATING_SIGMOID : GATING_SOFTMAX,
        .normalize = hp->expert_norm,
        .scale = hp->expert_scale,
        .n_expert_used = hp->n_expert_used,
        .ids = graph->expert_ids,
        .weights = graph->expert_weights,
    };
    backend->ops->route(backend, &route);
    enum lm_status status = backend->ops->sync(backend, err); /* the pager reads the choice */
    if (status != LM_OK) return status;
    if (graph->trace)
        route_trace_layer(graph->trace, il, graph->expert_ids, graph->expert_weights, graph->n_row);

    const size_t n_key = collect_keys(graph, il);
    status = expert_pager_acquire(graph->pager, graph->keys, n_key, graph->acquired, err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < n_key; i++)
        graph->views[graph->keys[i].expert] = graph->acquired[i];

    const struct expert_layer *shape = expert_pager_shape(graph->pager, il);
    struct ffn_args args = dense_args(graph, w);
    args.n_expert_used = hp->n_expert_used;
    args.n_ff_exp = hp->n_ff_exp;
    args.ids = graph->expert_ids;
    args.weights = graph->expert_weights;
    args.expert = graph->views;
    args.gate_exp = shape->gate;
    args.up_exp = shape->up;
    args.down_exp = shape->down;
    backend->ops->ffn(backend, &args);
    expert_pager_release(graph->pager, graph->keys, n_key);
    return LM_OK;
}
