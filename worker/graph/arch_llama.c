/* Llama: attention with rotated queries and keys, then SwiGLU.
 *
 *   x = token_embd[id]
 *   x += W_o attention(rope(W_q a), rope(W_k a), W_v a)     a = RMSNorm(x)
 *   x += W_down (silu(W_gate b) * W_up b)                   b = RMSNorm(x)
 *
 * Rotated pairs are neighbours (2i, 2i+1): the converter permutes the rows of W_q and W_k so. */
#include "worker/graph/graph.h"

enum lm_status arch_llama_forward(struct graph *graph, struct lm_error *err)
{
    (void)err;
    graph_embed(graph, 1);
    for (uint32_t il = graph->model->layer_begin; il < graph->model->layer_end; il++) {
        graph_attention(graph, il, ROPE_NORM);
        graph_narrow(graph, il);
        graph_ffn(graph, il);
    }
    return LM_OK;
}
