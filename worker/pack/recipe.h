/* Quantization recipes: which type each tensor of a model gets.
 *
 * A recipe is named by a file type of llama.cpp with a mix (Q3_K_M, Q4_K_M, Q5_K_M) or by a tensor
 * type, which then every matrix gets. Norms, the router, the delta net's convolution and other
 * small tensors keep their type. Where a row is no whole number of blocks, the next type of 32
 * wide blocks is taken, and F16 where that does not fit either.
 *
 * Threads: pure functions.
 * Source:  llama.cpp's llama-quant, restated; checked against it by tests/e2e/test_quantize.py. */
#ifndef LEAN_WORKER_PACK_RECIPE_H
#define LEAN_WORKER_PACK_RECIPE_H

#include <stddef.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

struct recipe;

/* The recipe of a name, without regard to case. LM_E_USAGE: unknown; the message lists the names.
 * Static storage. */
enum lm_status recipe_find(const char *name, const struct recipe **out, struct lm_error *err);

const char *recipe_name(const struct recipe *recipe);
uint32_t recipe_file_type(const struct recipe *recipe); /* general.file_type */

struct recipe_tensor {
    char name[64];
    uint32_t n_dims;
    uint64_t ne[4];        /* unused dimensions are 1 */
    enum tensor_type type; /* in: of the source; out: to be written */
};

/* Sets the type of each tensor of a whole model, in any order. n_layer: block_count, MTP layers
 * included; n_expert: of a layer, 0 for dense models. LM_E_NO_MEM. */
enum lm_status recipe_assign(const struct recipe *recipe, struct recipe_tensor *tensors,
                             size_t n_tensor, uint32_t n_layer, uint32_t n_expert,
                             struct lm_error *err);

#endif
