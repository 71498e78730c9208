/* The router's choice of experts. */
#include "kernels/kernels.h"

void kernels_select_experts(const float *probability, const float *bias, uint32_t n_expert,
                            uint32_t n_used, bool normalize, float scale, int32_t *ids,
                            float *weights)
{
    /* weights holds the scores while ids is built by insertion. Ids come in rising order, so an
     * equal score never moves ahead of an earlier one. */
    uint32_t n = 0;
    for (uint32_t ie = 0; ie < n_expert; ie++) {
        const float score = bias ? probability[ie] + bias[ie] : probability[ie];
        if (n == n_used && !(score > weights[n - 1])) continue;
        uint32_t rank = n < n_used ? n++ : n - 1;
        for (; rank && score > weights[rank - 1]; rank--) {
            weights[rank] = weights[rank - 1];
            ids[rank] = ids[rank - 1];
        }
        weights[rank] = score;
        ids[rank] = (int32_t)ie;
    }
    float sum = 0.0f;
    for (uint32_t rank = 0; rank < n_used; rank++) {
        weights[rank] = probability[ids[rank]];
        sum += weights[rank];
    }
    const float divisor = sum > 0x1p-14f ? sum : 0x1p-14f;
    for (uint32_t rank = 0; rank < n_used; rank++) {
        if (normalize) weights[rank] /= divisor;
        if (scale != 0.0f && scale != 1.0f) weights[rank] *= scale;
    }
}
