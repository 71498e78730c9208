/* Qwen2: as Llama, with biases on queries, keys and values, and pairs (i, i + n_rot/2). */
#include "worker/graph/graph.h"

enum lm_status arch_qwen2_forward(struct graph *graph, struct lm_error *err)
{
    (void)err;
    graph_embed(graph, 1);
    for (uint32_t il = graph->model->layer_begin; il < graph->model->layer_end; il++) {
        graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        graph_ffn(graph, il);
    }
    return LM_OK;
}
