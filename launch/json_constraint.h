/* Holds an answer to one JSON object (coordinator/text/json_automaton.h): of all tokens, those that
 * could not come next get a bias of -infinity before each one is sampled.
 *
 * The bias array is the sampling parameters' own and is rewritten in place between two tokens,
 * which the engine's contract allows: it reads it when it samples.
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_JSON_CONSTRAINT_H
#define LEAN_LAUNCH_JSON_CONSTRAINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct json_constraint;
struct sampling_params;
struct tokenizer;

/* Takes the place of params->bias, whose values it keeps for the tokens that are allowed; params
 * and tokenizer are borrowed. Everything is allowed at first, but for end tokens: the caller stops
 * when the object is complete. */
enum lm_status json_constraint_create(struct json_constraint **out,
                                      const struct tokenizer *tokenizer,
                                      struct sampling_params *params, struct lm_error *err);
void json_constraint_destroy(struct json_constraint *constraint);

/* From now on only what continues the object, and the token `also` (-1: none). */
void json_constraint_narrow(struct json_constraint *constraint, int32_t also);
void json_constraint_widen(struct json_constraint *constraint); /* as at first */

/* What was added to the answer. False: it is not what the object could go on with. */
bool json_constraint_take(struct json_constraint *constraint, const char *bytes, size_t n);
bool json_constraint_complete(const struct json_constraint *constraint);

#endif
