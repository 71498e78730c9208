/* Sampling parameters of a request, from the options, the model file and the defaults.
 *
 * Precedence: options (command line, environment, files), general.sampling.* of the model file,
 * the table of the command-line contract. */
#ifndef LEAN_LAUNCH_SAMPLING_OPTIONS_H
#define LEAN_LAUNCH_SAMPLING_OPTIONS_H

#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct gguf_file;
struct options;
struct tokenizer;

struct sampling_request {
    struct sampling_params params; /* points into the arrays below */
    struct logit_bias *bias;
    int32_t *dry_breakers;
};

/* With --ignore-eos the end tokens are forbidden. Without --seed the seed is random. LM_E_USAGE: a
 * --logit-bias that is not ID=X, or an id outside the vocabulary; LM_E_FORMAT: a key of the file.
 * On success sampling_request_fini releases what it holds. */
enum lm_status sampling_request_init(struct sampling_request *request,
                                     const struct options *options, const struct gguf_file *file,
                                     const struct tokenizer *tokenizer, struct lm_error *err);
void sampling_request_fini(struct sampling_request *request);

#endif
