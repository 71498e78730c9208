/* The tables "ref" and "reference". */
#include "kernels/ref/ref.h"

void kernels_init_ref(struct kernel_table *table)
{
#define ENTER_DEQUANT(type, TYPE) table->dequant_row[TYPE] = ref_dequant_##type;
#define ENTER_FLOAT(type, TYPE)                                                                    \
    table->act_type[TYPE] = ACT_F32;                                                               \
    table->matmul[TYPE] = ref_matmul_decoded_##type;
#define ENTER_256(type, TYPE)                                                                      \
    table->act_type[TYPE] = ACT_Q8_K;                                                              \
    table->matmul[TYPE] = ref_matmul_##type;
#define ENTER_32(type, TYPE)                                                                       \
    table->act_type[TYPE] = ACT_Q8_0;                                                              \
    table->matmul[TYPE] = ref_matmul_##type;
    REF_FOR_EACH_TYPE(ENTER_DEQUANT)
    REF_FOR_EACH_FLOAT_TYPE(ENTER_FLOAT)
    REF_FOR_EACH_256_TYPE(ENTER_256)
    REF_FOR_EACH_32_TYPE(ENTER_32)
    table->quantize_act[ACT_F32] = ref_quantize_f32;
    table->quantize_act[ACT_Q8_K] = ref_quantize_q8_k;
    table->quantize_act[ACT_Q8_0] = ref_quantize_q8_0;
    table->rms_norm = ref_rms_norm;
    table->l2_norm = ref_l2_norm;
    table->swiglu = ref_swiglu;
    table->add_scaled = ref_add_scaled;
    table->add = ref_add;
    table->softmax = ref_softmax;
    table->sigmoid = ref_sigmoid;
    table->rope = ref_rope;
    table->encode_row[TENSOR_F32] = ref_encode_f32;
    table->encode_row[TENSOR_F16] = ref_encode_f16;
    table->encode_row[TENSOR_BF16] = ref_encode_bf16;
    table->encode_row[TENSOR_Q8_0] = ref_encode_q8_0;
    table->attend = ref_attend;
    table->attend_merge = ref_attend_merge;
    table->attend_finish = ref_attend_finish;
    table->conv_silu = ref_conv_silu;
    table->delta_gates = ref_delta_gates;
    table->delta_rule = ref_delta_rule;
}

void kernels_init_reference(struct kernel_table *table)
{
#define ENTER_DECODED(type, TYPE)                                                                  \
    table->act_type[TYPE] = ACT_F32;                                                               \
    table->matmul[TYPE] = ref_matmul_decoded_##type;
    REF_FOR_EACH_TYPE(ENTER_DECODED)
}
