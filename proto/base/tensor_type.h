/* The element types of GGUF tensors: ids as the format writes them, names, block sizes.
 *
 * A row of a tensor is a whole number of blocks, packed without padding. Block layouts are in
 * kernels/quant_blocks.h; here is only what a reader of files needs. */
#ifndef LEAN_PROTO_BASE_TENSOR_TYPE_H
#define LEAN_PROTO_BASE_TENSOR_TYPE_H

#include <stdbool.h>
#include <stdint.h>

enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q2_K = 10,
    TENSOR_Q3_K = 11,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_IQ4_NL = 20,
    TENSOR_IQ4_XS = 23,
    TENSOR_I8 = 24,
    TENSOR_I16 = 25,
    TENSOR_I32 = 26,
    TENSOR_I64 = 27,
    TENSOR_F64 = 28,
    TENSOR_BF16 = 30,
    TENSOR_MXFP4 = 39,
    TENSOR_TYPE_COUNT = 43 /* ids from here on, and those without a name, are invalid */
};

struct tensor_type_info {
    const char *name;     /* "Q4_K"; NULL: the id is unused or was removed from the format */
    uint16_t block_elems; /* elements per block; 0: known by name, size not known to us */
    uint16_t block_bytes;
    bool computable; /* the kernels multiply by weights of this type */
};

/* NULL if id is not a type of the format. Static storage. */
const struct tensor_type_info *tensor_type_info(uint32_t id);

/* The id of a name, without regard to case; -1 if there is none. */
int tensor_type_from_name(const char *name);

/* Bytes of a row of n_elem elements. n_elem must be a multiple of the block. */
static inline uint64_t tensor_row_bytes(enum tensor_type type, uint64_t n_elem)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    return n_elem / info->block_elems * info->block_bytes;
}

#endif
