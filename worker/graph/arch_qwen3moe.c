/* Qwen3 with routed experts in place of the dense FFN: softmax over all experts, the k best,
 * weights normalised to sum 1, no shared expert. */
#include "worker/graph/graph.h"

enum lm_status arch_qwen3moe_forward(struct graph *graph, struct lm_error *err)
{
    const uint32_t begin = graph->model->layer_begin, end = graph->model->layer_end;
    graph_embed(graph, 1);
    enum lm_status status = graph_foresee(graph, begin, err);
    for (uint32_t il = begin; il < end && status == LM_OK; il++) {
        graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        status = graph_moe(graph, il, err);
    }
    return status;
}
