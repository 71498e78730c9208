/* Quantizes a GGUF file of F32, F16 or BF16 weights by a recipe.
 *
 * Tensors are read through the mapping and written row by row in the order of the source, so
 * memory stays at some tens of MB for any model. Metadata is copied, except general.file_type,
 * general.quantization_version and split.*: the result is one file.
 *
 * The output depends on source and recipe only, not on threads or machine. */
#ifndef LEAN_WORKER_PACK_QUANTIZER_H
#define LEAN_WORKER_PACK_QUANTIZER_H

#include <signal.h>

#include "proto/gguf/gguf.h"
#include "worker/pack/recipe.h"

struct quantize_config {
    const struct recipe *recipe;
    uint32_t n_thread;                           /* 0: physical cores */
    const volatile sig_atomic_t *is_interrupted; /* checked now and then; may be NULL */
};

/* The size of the file that quantize_file would write. Errors as there, as far as the header
 * tells. */
enum lm_status quantize_plan(const struct gguf_file *source, const struct recipe *recipe,
                             uint64_t *n_bytes, struct lm_error *err);

/* Writes path. LM_E_UNSUPPORTED: a tensor to be quantized is quantized already; LM_E_FORMAT: a
 * weight is not finite or beyond F16; LM_E_NO_SPACE, LM_E_IO: writing; LM_E_INTERRUPTED. On
 * failure nothing is left at path. */
enum lm_status quantize_file(const struct gguf_file *source, const char *path,
                             const struct quantize_config *config, struct lm_error *err);

#endif
