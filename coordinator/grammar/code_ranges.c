#include "coordinator/grammar/code_ranges.h"

#include <stdlib.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/grow.h"

void code_ranges_fini(struct code_ranges *set)
{
    free(set->ranges);
    *set = (struct code_ranges){0};
}

void code_ranges_add(struct code_ranges *set, uint32_t low, uint32_t high)
{
    if (!grow_to(&set->ranges, &set->room, set->n + 1, sizeof(*set->ranges)))
        set->no_memory = true;
    else
        set->ranges[set->n++] = (struct code_range){low, high};
}

void code_ranges_add_all(struct code_ranges *set, const struct code_range *ranges, size_t n)
{
    for (size_t i = 0; i < n; i++)
        code_ranges_add(set, ranges[i].low, ranges[i].high);
}

static int compare_ranges(const void *left, const void *right)
{
    const struct code_range *a = left, *b = right;
    return (a->low > b->low) - (a->low < b->low);
}

void code_ranges_negate(struct code_ranges *set)
{
    struct code_ranges gaps = {0};
    uint32_t from = 0;
    code_ranges_add(set, 0xd800, 0xdfff);
    qsort(set->ranges, set->n, sizeof(*set->ranges), compare_ranges);
    for (size_t i = 0; i < set->n; i++) {
        const struct code_range range = set->ranges[i];
        if (range.low > from) code_ranges_add(&gaps, from, range.low - 1);
        if (range.high + 1 > from) from = range.high + 1;
    }
    if (from <= CHAR_LAST) code_ranges_add(&gaps, from, CHAR_LAST);
    gaps.no_memory |= set->no_memory;
    free(set->ranges);
    *set = gaps;
}

/* Whatever is negated lacks surrogates, so twice negated is the set itself without them. */
void code_ranges_normalize(struct code_ranges *set)
{
    code_ranges_negate(set);
    code_ranges_negate(set);
}
