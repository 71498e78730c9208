/* Qwen3.5 mixture of experts: the layers of Qwen3.5, with routed experts and a gated shared one.
 *
 *   x += delta_net(a)  or  W_o (attention(...) * sigmoid(gate))        a = RMSNorm(x)
 *   x += sum of w_e expert_e(b) + sigmoid(g . b) shared(b)             b = RMSNorm(x)
 *
 * w: the k best of softmax(router b), normalised. Value head h uses key head h mod n_head_k. */
#include "worker/graph/graph.h"

enum lm_status arch_qwen35moe_forward(struct graph *graph, struct lm_error *err)
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
