/* Drafts out of what a sequence has already: what followed the last time its last tokens occurred.
 *
 * Answers repeat their prompts (code that is edited, documents that are quoted) and themselves. The
 * longest earlier occurrence of the sequence's end decides, of those as long the latest; its
 * continuation is the draft. Drafts are guesses, verified by whoever asked for them.
 *
 *   ids:   ... a b c d e f ... a b c          found: a b c; drafts: d e f ...
 *
 * An occurrence has at least PROMPT_LOOKUP_MIN tokens. They are found by a hash of so many, each
 * linked to the one before it.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_SCHED_PROMPT_LOOKUP_H
#define LEAN_COORDINATOR_SCHED_PROMPT_LOOKUP_H

#include <stdint.h>

#include "proto/base/error.h"

enum { PROMPT_LOOKUP_MIN = 3 };

struct prompt_lookup;

/* Of one sequence at a time, of n_ctx tokens at most. */
enum lm_status prompt_lookup_create(struct prompt_lookup **out, uint32_t n_ctx,
                                    struct lm_error *err);
void prompt_lookup_destroy(struct prompt_lookup *lookup); /* NULL is legal */

/* Another sequence follows. */
void prompt_lookup_reset(struct prompt_lookup *lookup);

/* drafts: [n_max], what may follow ids [n]; returns how many there are. ids begin with those of the
 * calls since the last reset; n <= n_ctx. */
uint32_t prompt_lookup_find(struct prompt_lookup *lookup, const int32_t *ids, uint32_t n,
                            int32_t *drafts, uint32_t n_max);

#endif
