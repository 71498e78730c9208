/* What all variants share. */
#include "kernels/kernels.h"
size_t act_row_bytes(enum act_type type, uint32_t n_col)
{
    if (type == ACT_F32) return ((size_t)n_col * sizeof(float) + 63) / 64 * 64;
    return ((size_t)n_col + QK - 1) / QK * sizeof(struct act_q8_k);
}
