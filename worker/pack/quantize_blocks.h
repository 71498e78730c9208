/* Rows of F32 to rows of GGUF blocks, byte for byte what ggml writes without importance matrix.
 *
 * The search for scales is ggml's: a least-squares fit over a few candidate scales per group, then
 * every code is recomputed against the rounded scales that a decoder will see. Sums run in index
 * order in binary32 without contraction, so the bytes are the same on every machine.
 *
 * Threads: pure functions.
 * Limits:  values must be finite and at most 65504, the largest F16; quantizer.c checks.
 * Source:  the algorithms of ggml's quantize_row functions, restated at each function. */
#ifndef LEAN_WORKER_PACK_QUANTIZE_BLOCKS_H
#define LEAN_WORKER_PACK_QUANTIZE_BLOCKS_H

#include <stddef.h>

#include "proto/base/tensor_type.h"

/* x: [n], n a multiple of the block; out: tensor_row_bytes(type, n) bytes, of any alignment. */
typedef void (*quantize_row_fn)(const float *x, size_t n, void *out);

/* The function for type: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL,
 * IQ4_XS, MXFP4. NULL for other types. */
quantize_row_fn quantize_row_for(enum tensor_type type);

#endif
