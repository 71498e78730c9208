/* What the weights of a file are for: tensors, parameters, bytes and types by group.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_PLAN_WEIGHT_CENSUS_H
#define LEAN_COORDINATOR_PLAN_WEIGHT_CENSUS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/tensor_type.h"

struct gguf_file;
struct hparams;

enum weight_group {
    WEIGHTS_EMBEDDING,
    WEIGHTS_OUTPUT,
    WEIGHTS_ATTENTION,
    WEIGHTS_DELTA_NET,
    WEIGHTS_DENSE_FFN,
    WEIGHTS_ROUTER,
    WEIGHTS_SHARED_EXPERT,
    WEIGHTS_EXPERTS, /* routed */
    WEIGHTS_NORMS,
    WEIGHTS_MTP,   /* layers behind the decoder, for drafting; of stages without routed experts */
    WEIGHTS_OTHER, /* names that no architecture here has */
    WEIGHT_GROUP_COUNT
};

struct weight_count {
    size_t n_tensor;
    uint64_t n_param, n_bytes;
    size_t n_of_type[TENSOR_TYPE_COUNT]; /* tensors */
    uint64_t bytes_of_type[TENSOR_TYPE_COUNT];
};

struct weight_census {
    struct weight_count group[WEIGHT_GROUP_COUNT];
    uint64_t n_param;        /* of the decoder: without MTP and others */
    uint64_t n_param_active; /* used for one token: of the routed experts the share that is chosen,
                                and of the embedding nothing unless it is the output too */
    uint64_t n_bytes;        /* likewise, or with the layer of a stage that drafts */
};

/* Of the dense part of a pack: of the whole pack, unless its manifest cannot be read.
 * hp NULL: the file is of no model that runs here; groups are told by names alone. */
void weight_census_take(struct weight_census *out, const struct gguf_file *file,
                        const struct hparams *hp);
/* What a stage of a pipeline with these layers holds: the embedding is the first one's, the output
 * the last one's, and a matrix that is both is held by both. With a layer behind the decoder's
 * last the stage drafts: then its routed experts count as such. */
void weight_census_take_layers(struct weight_census *out, const struct gguf_file *file,
                               const struct hparams *hp, uint32_t layer_begin, uint32_t layer_end);

const char *weight_group_name(enum weight_group group); /* "routed experts" */

#endif
