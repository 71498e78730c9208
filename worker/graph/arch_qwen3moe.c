/* Qwen3 with routed experts in place of the dense FFN: softmax over all experts, the k best,
 * weights normalised to sum 1, no shared expert. */
#include "worker/graph/graph.h"

enum lm_status arch_qwen3moe_forward(struct graph *graph, struct lm_error *err)
{
    graph_embed(graph, 1);
    for (uint32_t il = graph->model->layer_begin; il < graph->model->layer_end; il++) {
        graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        const enum lm_status status = graph_moe(graph, il, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}
