/* Integer codes and scales of one weight block, decoded from its packed form.
 *
 * Every quantized type is one of two shapes. A superblock of 256 has integer scales for its 16
 * groups of 16: value = (d * scale[j]) * q - (dmin * min[j]), where min only exists for some
 * types. A block of 32: value = d * q (+ m). Decoding to floats (dequant.c) and the integer dot
 * products (matmul.c) both start from here. */
#ifndef LEAN_KERNELS_REF_UNPACK_H
#define LEAN_KERNELS_REF_UNPACK_H

#include "kernels/quant_blocks.h"

struct codes_256 {
    int8_t q[256];
    int32_t scale[16], min[16]; /* of elements 16j .. 16j+15 */
    float d, dmin;
};
struct codes_32 {
    int8_t q[32];
    float d, m;
};

typedef void (*unpack_256_fn)(const uint8_t *block, struct codes_256 *out);
typedef void (*unpack_32_fn)(const uint8_t *block, struct codes_32 *out);

/* Types with a minimum (min, dmin or m) are marked; the others leave those fields unset. */
void unpack_q2_k(const uint8_t *block, struct codes_256 *out); /* minimum */
void unpack_q3_k(const uint8_t *block, struct codes_256 *out);
void unpack_q4_k(const uint8_t *block, struct codes_256 *out); /* minimum */
void unpack_q5_k(const uint8_t *block, struct codes_256 *out); /* minimum */
void unpack_q6_k(const uint8_t *block, struct codes_256 *out);
void unpack_iq4_xs(const uint8_t *block, struct codes_256 *out);
void unpack_q4_0(const uint8_t *block, struct codes_32 *out);
void unpack_q4_1(const uint8_t *block, struct codes_32 *out); /* minimum */
void unpack_q5_0(const uint8_t *block, struct codes_32 *out);
void unpack_q5_1(const uint8_t *block, struct codes_32 *out); /* minimum */
void unpack_q8_0(const uint8_t *block, struct codes_32 *out);
void unpack_iq4_nl(const uint8_t *block, struct codes_32 *out);
void unpack_mxfp4(const uint8_t *block, struct codes_32 *out);

#endif
