/* The table of tensor types. */
#include "proto/base/tensor_type.h"

#include <stddef.h>
#include <strings.h>

static const struct tensor_type_info type_table[TENSOR_TYPE_COUNT] = {
    [TENSOR_F32] = {"F32", 1, 4, true},
    [TENSOR_F16] = {"F16", 1, 2, true},
    [TENSOR_Q4_0] = {"Q4_0", 32, 18, true},
    [TENSOR_Q4_1] = {"Q4_1", 32, 20, true},
    [TENSOR_Q5_0] = {"Q5_0", 32, 22, true},
    [TENSOR_Q5_1] = {"Q5_1", 32, 24, true},
    [TENSOR_Q8_0] = {"Q8_0", 32, 34, true},
    [9] = {"Q8_1", 32, 36, false},
    [TENSOR_Q2_K] = {"Q2_K", 256, 84, true},
    [TENSOR_Q3_K] = {"Q3_K", 256, 110, true},
    [TENSOR_Q4_K] = {"Q4_K", 256, 144, true},
    [TENSOR_Q5_K] = {"Q5_K", 256, 176, true},
    [TENSOR_Q6_K] = {"Q6_K", 256, 210, true},
    [15] = {"Q8_K", 256, 292, false},
    [16] = {"IQ2_XXS", 256, 66, false},
    [17] = {"IQ2_XS", 256, 74, false},
    [18] = {"IQ3_XXS", 256, 98, false},
    [19] = {"IQ1_S", 256, 50, false},
    [TENSOR_IQ4_NL] = {"IQ4_NL", 32, 18, true},
    [21] = {"IQ3_S", 256, 110, false},
    [22] = {"IQ2_S", 256, 82, false},
    [TENSOR_IQ4_XS] = {"IQ4_XS", 256, 136, true},
    [TENSOR_I8] = {"I8", 1, 1, false},
    [TENSOR_I16] = {"I16", 1, 2, false},
    [TENSOR_I32] = {"I32", 1, 4, false},
    [TENSOR_I64] = {"I64", 1, 8, false},
    [TENSOR_F64] = {"F64", 1, 8, false},
    [29] = {"IQ1_M", 256, 56, false},
    [TENSOR_BF16] = {"BF16", 1, 2, true},
    [34] = {"TQ1_0", 256, 54, false},
    [35] = {"TQ2_0", 256, 66, false},
    [TENSOR_MXFP4] = {"MXFP4", 32, 17, true},
    [40] = {"NVFP4", 64, 36, false},
    [41] = {"Q1_0", 0, 0, false},
    [42] = {"Q2_0", 0, 0, false},
};

const struct tensor_type_info *tensor_type_info(uint32_t id)
{
    return id < TENSOR_TYPE_COUNT && type_table[id].name ? &type_table[id] : NULL;
}

int tensor_type_from_name(const char *name)
{
    for (int id = 0; id < TENSOR_TYPE_COUNT; id++)
        if (type_table[id].name && !strcasecmp(type_table[id].name, name)) return id;
    return -1;
}
