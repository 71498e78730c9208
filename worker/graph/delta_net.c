/* The gated delta net block: norm, projections, recurrence along the sequence, output projection.
 */
#include "proto/step.h"
#include "worker/graph/blocks.h"
#include "worker/state/recurrent_state.h"
#include "worker/state/seq_state.h"

/* Rows of the batch from `it` on that are of one sequence. */
static uint32_t run_length(const struct graph *graph, uint32_t it)
{
    uint32_t n = 1;
    while (it + n < graph->n_row && graph->token[it + n].slot == graph->token[it].slot)
        n++;
    return n;
}

/* Brings the states to where the sequences are: rows that the step before read behind them, and
 * that stayed. args: of the step. */
static void apply_kept_rows(struct graph *graph, uint32_t il, struct delta_net_args args)
{
    struct token_ref token[STEP_DRAFT_MAX + 1];
    args.token = token;
    args.frozen = NULL;
    for (uint32_t it = 0; it < graph->n_row; it += run_length(graph, it)) {
        const uint32_t slot = graph->token[it].slot;
        args.n_token = seq_state_n_kept(graph->state, slot);
        if (!args.n_token) continue;
        const struct kept_rows kept = seq_state_kept(graph->state, il, slot);
        for (uint32_t i = 0; i < args.n_token; i++)
            token[i] = (struct token_ref){.slot = slot};
        args.qkv = kept.qkv;
        args.beta = kept.beta;
        args.alpha = kept.alpha;
        args.z = args.out = kept.out;
        graph->backend->ops->delta_net(graph->backend, &args);
    }
}

/* Keeps the inputs of the sequences with drafts. False: there are none. */
static bool keep_rows(struct graph *graph, uint32_t il, const struct delta_net_args *args,
                      uint32_t conv_dim)
{
    const struct backend_ops *ops = graph->backend->ops;
    const bool *frozen = seq_state_frozen(graph->state);
    bool any = false;
    for (uint32_t it = 0, n; it < graph->n_row; it += n) {
        n = run_length(graph, it);
        if (!frozen[graph->token[it].slot]) continue;
        const struct kept_rows kept = seq_state_kept(graph->state, il, graph->token[it].slot);
        const size_t n_gate = args->n_head_v;
        ops->copy(graph->backend, kept.qkv, args->qkv + (size_t)it * conv_dim,
                  (size_t)n * conv_dim * sizeof(float));
        ops->copy(graph->backend, kept.beta, args->beta + it * n_gate, n * n_gate * sizeof(float));
        ops->copy(graph->backend, kept.alpha, args->alpha + it * n_gate,
                  n * n_gate * sizeof(float));
        any = true;
    }
    return any;
}

void graph_delta_net(struct graph *graph, uint32_t il)
{
    const struct hparams *hp = graph->hp;
    const struct layer *w = &graph->model->layer[il];
    const uint32_t n = graph->n_row;
    float *at = graph->mixer;
    float *const qkv = take_buffer(&at, (size_t)n * w->qkv.n_row);
    float *const z = take_buffer(&at, (size_t)n * w->z.n_row);
    float *const beta = take_buffer(&at, (size_t)n * hp->n_head_v);
    float *const alpha = take_buffer(&at, (size_t)n * hp->n_head_v);
    float *const out = take_buffer(&at, (size_t)n * w->z.n_row);

    struct linear_args in = {
        .n_token = n, .x = graph->x, .n_col = hp->n_embd, .norm = w->attn_norm, .eps = hp->rms_eps};
    add_output(&in, &w->qkv, NULL, qkv);
    add_output(&in, &w->z, NULL, z);
    add_output(&in, &w->beta, NULL, beta);
    add_output(&in, &w->alpha, NULL, alpha);
    graph->backend->ops->linear(graph->backend, &in);

    struct delta_net_args args = {
        .n_token = n,
        .token = graph->token,
        .qkv = qkv,
        .z = z,
        .beta = beta,
        .alpha = alpha,
        .conv_w = w->conv_w,
        .n_tap = hp->n_conv,
        .ssm_a = w->ssm_a,
        .ssm_dt = w->ssm_dt,
        .norm = w->ssm_norm,
        .eps = hp->rms_eps,
        .n_head_k = hp->n_head_k,
        .n_head_v = hp->n_head_v,
        .dim_k = hp->dim_k,
        .dim_v = hp->dim_v,
        .grouped = hp->arch->ssm_ba,
        .conv_state = seq_state_conv(graph->state, il),
        .state = seq_state_memory(graph->state, il),
        .out = out,
    };
    apply_kept_rows(graph, il, args);
    if (keep_rows(graph, il, &args, w->qkv.n_row)) args.frozen = seq_state_frozen(graph->state);
    graph->backend->ops->delta_net(graph->backend, &args);
    project_back(graph, &w->ssm_out, NULL, out, w->attn_post_norm);
}
