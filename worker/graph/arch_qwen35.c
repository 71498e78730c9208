/* Qwen3.5, dense: three gated delta net layers, then one of gated attention, each with SwiGLU.
 *
 *   x += delta_net(RMSNorm(x))  or  x += W_o (attention(...) * sigmoid(gate))
 *   x += SwiGLU(RMSNorm(x))           the norm is called post_attention_norm in the file
 *
 * Rotation is interleaved over the position streams of text, height and width; for text all are the
 * token's position, so it is the plain one with pairs (i, i + n_rot/2). */
#include "worker/graph/graph.h"

enum lm_status arch_qwen35_forward(struct graph *graph, struct lm_error *err)
{
    (void)err;
    graph_embed(graph, 1);
    for (uint32_t il = graph->model->layer_begin; il < graph->model->layer_end; il++) {
        if (graph->hp->layer[il].recurrent)
            graph_delta_net(graph, il);
        else
            graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        graph_ffn(graph, il);
    }
    return LM_OK;
}
