#include "proto/model/weights_sample.h"

#include <stdbool.h>
#include <xxhash.h>

#include "proto/gguf/gguf.h"
#include "proto/model/tensor_names.h"

static bool is_sampled(const struct gguf_tensor *tensor)
{
    enum tensor_role role;
    uint32_t il, ie;
    return tensor->n_bytes &&
           !(tensor_name_parse(tensor->name.data, tensor->name.n, &role, &il, &ie) &&
             tensor_role_is_experts(role));
}

enum lm_status weights_sample(const struct gguf_file *file, uint64_t *out, struct lm_error *err)
{
    char bytes[WEIGHTS_SAMPLE_TENSORS * WEIGHTS_SAMPLE_BYTES];
    size_t n_bytes = 0;
    uint64_t n_all = 0, index = 0;
    for (size_t i = 0; i < gguf_n_tensor(file); i++)
        n_all += is_sampled(gguf_tensor_at(file, i));
    const uint64_t n_part = n_all < WEIGHTS_SAMPLE_TENSORS ? n_all : WEIGHTS_SAMPLE_TENSORS;
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        if (!is_sampled(tensor)) continue;
        const uint64_t part = index * n_part / n_all, next_part = ++index * n_part / n_all;
        if (part == next_part) continue; /* the last one of each part is taken */
        const size_t n =
            tensor->n_bytes < WEIGHTS_SAMPLE_BYTES ? tensor->n_bytes : WEIGHTS_SAMPLE_BYTES;
        const enum lm_status status = gguf_copy(file, bytes + n_bytes, tensor->data, n, false, err);
        if (status != LM_OK) return status;
        n_bytes += n;
    }
    const uint64_t sample = XXH3_64bits(bytes, n_bytes);
    *out = sample ? sample : 1;
    return LM_OK;
}
