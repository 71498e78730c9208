/* Qwen3-Next: the design that Qwen3.5 took over. It differs in the files, not in the sequence of
 * blocks: one matrix for beta and alpha, value heads in groups (head h uses key head
 * h / (n_head_v / n_head_k)), plain rotation. */
#include "worker/graph/graph.h"

enum lm_status arch_qwen3next_forward(struct graph *graph, struct lm_error *err)
{
    const uint32_t begin = graph->model->layer_begin, end = graph->model->layer_end;
    graph_embed(graph, 1);
    enum lm_status status = graph_foresee(graph, begin, err);
    for (uint32_t il = begin; il < end && status == LM_OK; il++) {
        if (graph->hp->layer[il].recurrent)
            graph_delta_net(graph, il);
        else
            graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        status = graph_moe(graph, il, err);
    }
    return status;
}
