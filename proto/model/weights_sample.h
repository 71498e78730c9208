/* What tells two models of one shape and one header apart, such as fine-tunes, without reading
 * their weights: gguf_fingerprint sees the header only. */
#ifndef LEAN_PROTO_MODEL_WEIGHTS_SAMPLE_H
#define LEAN_PROTO_MODEL_WEIGHTS_SAMPLE_H

#include <stdint.h>

#include "proto/base/error.h"

struct gguf_file;

enum { WEIGHTS_SAMPLE_TENSORS = 64, WEIGHTS_SAMPLE_BYTES = 256 };

/* XXH3-64 of the beginnings of WEIGHTS_SAMPLE_TENSORS tensors at most, at even distances among
 * those that are no routed experts, so that a model and its pack have the same one; never 0.
 * LM_E_IO. */
enum lm_status weights_sample(const struct gguf_file *file, uint64_t *out, struct lm_error *err);

#endif
