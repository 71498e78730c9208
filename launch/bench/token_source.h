/* The tokens that a benchmark feeds: the same for a seed and a place in the plan, whatever else is
 * varied, so that every arm of a comparison routes the same tokens to the same experts.
 *
 * A trace is a stretch of the text, beginning where seed and number say and going round at its end,
 * or random ids of ordinary tokens. */
#ifndef LEAN_LAUNCH_BENCH_TOKEN_SOURCE_H
#define LEAN_LAUNCH_BENCH_TOKEN_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct token_source;
struct tokenizer;

/* what: "text", an embedded sample; "random"; "@FILE", a text. tokenizer is borrowed.
 * LM_E_USAGE: none of them, or a text without tokens; LM_E_NOT_FOUND, LM_E_IO: the file. */
enum lm_status token_source_create(struct token_source **out, const struct tokenizer *tokenizer,
                                   const char *what, uint64_t seed, struct lm_error *err);
void token_source_destroy(struct token_source *source); /* NULL is legal */

/* out: [n] */
void token_source_trace(const struct token_source *source, uint64_t number, int32_t *out, size_t n);

#endif
