/* The attention block: norm, projections, attention over the sequence, output projection. */
#include <math.h>

#include "worker/graph/blocks.h"
#include "worker/graph/rope_table.h"
#include "worker/state/seq_state.h"

_Static_assert((int)HPARAMS_MAX_HEAD_GROUP <= (int)ATTENTION_GROUP_MAX, "what hparams_read admits");

void graph_attention(struct graph *graph, uint32_t il, enum rope_kind rope)
{
    const struct hparams *hp = graph->hp;
    const struct layer *w = &graph->model->layer[il];
    const struct layer_hparams *layer = &hp->layer[il];
    const uint32_t n = graph->n_row, n_q = w->q.n_row, n_kv = w->k.n_row;
    const uint32_t n_out = layer->n_head * hp->head_dim;
    float *at = graph->mixer;
    float *const q = take_buffer(&at, (size_t)n * n_q);
    float *const k = take_buffer(&at, (size_t)n * n_kv);
    float *const v = take_buffer(&at, (size_t)n * n_kv);
    float *const own_gate = w->gate.data ? take_buffer(&at, (size_t)n * n_out) : NULL;
    float *const out = take_buffer(&at, (size_t)n * n_out);

    struct linear_args in = {
        .n_token = n, .x = graph->x, .n_col = hp->n_embd, .norm = w->attn_norm, .eps = hp->rms_eps};
    add_output(&in, &w->q, w->q_bias, q);
    add_output(&in, &w->k, w->k_bias, k);
    add_output(&in, &w->v, w->v_bias, v);
    if (own_gate) add_output(&in, &w->gate, NULL, own_gate);
    graph->backend->ops->linear(graph->backend, &in);

    struct attention_args args = {
        .n_token = n,
        .token = graph->token,
        .q = q,
        .q_stride = n_q,
        .q_head_stride = hp->arch->q_gate ? 2 * hp->head_dim : hp->head_dim,
        .gate = own_gate,
        .gate_stride = n_out,
        .gate_head_stride = hp->head_dim,
        .k = k,
        .v = v,
        .kv_stride = n_kv,
        .q_norm = w->q_norm,
        .k_norm = w->k_norm,
        .eps = hp->rms_eps,
        .rope = ROPE_NONE,
        .n_head = layer->n_head,
        .n_head_kv = layer->n_head_kv,
        .head_dim = hp->head_dim,
        .scale = 1.0f / sqrtf((float)hp->head_dim),
        .window = layer->window,
        .kv_type = graph->kv_type,
        .kv_block = seq_state_kv_blocks(graph->state, il),
        .out = out,
    };
    if (hp->arch->q_gate) { /* rows of attn_q: query of a head, then its gate */
        args.gate = q + hp->head_dim;
        args.gate_stride = args.q_stride;
        args.gate_head_stride = args.q_head_stride;
    }
    if (layer->rope) {
        const struct rope_table *table = layer->window ? graph->rope_window : graph->rope;
        args.rope = rope;
        args.n_rot = hp->rope.n_rot;
        args.rope_cos = rope_table_cos(table);
        args.rope_sin = rope_table_sin(table);
    }
    graph->backend->ops->attention(graph->backend, &args);
    project_back(graph, &w->attn_output, w->attn_output_bias, out, w->attn_post_norm);
}
