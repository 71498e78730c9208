/* Arcee's AFMoE (Trinity): window attention with rotation, every fourth layer global without, all
 * gated; norms before and after each block; the first layers dense, then sigmoid-routed experts.
 *
 *   x = token_embd[id] * sqrt(n_embd)
 *   x += RMSNorm(W_o (attention(...) * sigmoid(W_g a)))                  a = RMSNorm(x)
 *   x += RMSNorm(SwiGLU(b))  or  RMSNorm(sum of w_e expert_e(b) + shared(b))  b = RMSNorm(x)
 *
 * Experts are chosen by sigmoid(router b) + bias and weighted by the sigmoid alone, normalised and
 * scaled. The embedding scale is not in the file: all checkpoints set it (mup_enabled). */
#include <math.h>

#include "worker/graph/graph.h"

enum lm_status arch_afmoe_forward(struct graph *graph, struct lm_error *err)
{
    const uint32_t begin = graph->model->layer_begin, end = graph->model->layer_end;
    graph_embed(graph, sqrtf((float)graph->hp->n_embd));
    enum lm_status status = graph_foresee(graph, begin, err);
    for (uint32_t il = begin; il < end && status == LM_OK; il++) {
        graph_attention(graph, il, ROPE_NEOX);
        graph_narrow(graph, il);
        if (graph->hp->layer[il].moe) {
            status = graph_moe(graph, il, err);
        } else {
            graph_ffn(graph, il);
            status = graph_foresee(graph, il + 1, err);
        }
    }
    return status;
}
