/* Qwen3: as Qwen2, with queries and keys normalised per head instead of biases. */
#include "worker/graph/graph.h"

enum lm_status arch_qwen3_forward(struct graph *graph, struct lm_error *err)
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
