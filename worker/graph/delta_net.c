/* The gated delta net block: norm, projections, recurrence along the sequence, output projection.
 */
#include "worker/graph/blocks.h"
#include "worker/state/seq_state.h"

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

    const struct delta_net_args args = {
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
    graph->backend->ops->delta_net(graph->backend, &args);
    project_back(graph, &w->ssm_out, NULL, out, w->attn_post_norm);
}
