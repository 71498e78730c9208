/* "did you mean": the candidate closest to a mistyped name.
 *
 *   struct nearest nearest = {.word = "--thread"};
 *   for each known name: nearest_offer(&nearest, name);
 *   nearest_name(&nearest)   the best, or NULL when nothing is close enough to be what was meant
 *
 * Distance: insertions, deletions, substitutions and swaps of neighbours, without regard to case.
 */
#ifndef LEAN_PROTO_BASE_NEAREST_H
#define LEAN_PROTO_BASE_NEAREST_H

#include <stddef.h>

struct nearest {
    const char *word;
    const char *best; /* borrowed from the caller of nearest_offer */
    size_t distance;  /* of best */
};

void nearest_offer(struct nearest *nearest, const char *candidate);
const char *nearest_name(const struct nearest *nearest);

#endif
