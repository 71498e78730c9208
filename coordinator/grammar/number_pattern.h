/* Bounds of numbers as regular expressions of their decimal texts, exact to the last digit.
 *
 * Texts are -?(0|[1-9][0-9]*)(\.[0-9]+)? without an exponent and without a negative zero.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_NUMBER_PATTERN_H
#define LEAN_COORDINATOR_GRAMMAR_NUMBER_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

enum { DECIMAL_WHOLE_MAX = 320, DECIMAL_PART_MAX = 40, NUMBER_PATTERN_MAX = 8192 };

/* A number that has been written out: whole.part, no leading or trailing zeros but one in whole. */
struct decimal {
    bool negative; /* never of zero */
    char whole[DECIMAL_WHOLE_MAX + 1], part[DECIMAL_PART_MAX + 1];
};

/* text: a JSON number. False: more digits than fit, before or behind the point. */
bool decimal_read(struct decimal *out, const char *text);
int decimal_compare(const struct decimal *a, const struct decimal *b); /* as strcmp */

enum number_bound { NUMBER_AT_LEAST, NUMBER_MORE_THAN, NUMBER_AT_MOST, NUMBER_LESS_THAN };

/* Numbers of any length within a bound, which has at most JSON_DIGITS_MAX whole digits. out: room
 * for NUMBER_PATTERN_MAX bytes, in all of these. */
void number_pattern_bound(enum number_bound kind, const struct decimal *bound, char *out);
/* Numbers of at most JSON_DIGITS_MAX digits; whole ones only, or any. */
void number_pattern_all(bool whole, char *out);
/* Multiples of 10^exponent. */
void number_pattern_multiple(int exponent, char *out);
/* Whether the number is 10^*exponent. */
bool decimal_power_of_ten(const struct decimal *decimal, int *exponent);

#endif
