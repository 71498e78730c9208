/* Sets of characters as sorted ranges of code points, for classes such as [^a-z\d].
 *
 * Private to coordinator/grammar. Zero-initialized. */
#ifndef LEAN_COORDINATOR_GRAMMAR_CODE_RANGES_H
#define LEAN_COORDINATOR_GRAMMAR_CODE_RANGES_H

#include "coordinator/grammar/grammar_builder.h"

struct code_ranges {
    struct code_range *ranges; /* [n] */
    size_t n, room;
    bool no_memory; /* sticky */
};

void code_ranges_fini(struct code_ranges *set);
void code_ranges_add(struct code_ranges *set, uint32_t low, uint32_t high);
void code_ranges_add_all(struct code_ranges *set, const struct code_range *ranges, size_t n);
/* Sorted, apart from each other, without surrogates. */
void code_ranges_normalize(struct code_ranges *set);
/* All other characters; normalized. */
void code_ranges_negate(struct code_ranges *set);

#endif
