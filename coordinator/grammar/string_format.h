/* The `format`s of JSON schemas that are enforced, as regular expressions of whole texts.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_STRING_FORMAT_H
#define LEAN_COORDINATOR_GRAMMAR_STRING_FORMAT_H

#include <stdint.h>

struct string_format {
    const char *name;
    const char *pattern;
    uint32_t n_char_max; /* UINT32_MAX: unbounded */
};

/* NULL: a format that only annotates. */
const struct string_format *string_format_find(const char *name);

#endif
