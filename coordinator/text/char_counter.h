/* Where tokens stand in a text, in characters: code points, each malformed sequence being the one
 * U+FFFD that a decoder makes of it. Zero-initialized. */
#ifndef LEAN_COORDINATOR_TEXT_CHAR_COUNTER_H
#define LEAN_COORDINATOR_TEXT_CHAR_COUNTER_H

#include <stddef.h>

#include "coordinator/text/tokenizer.h"

struct char_counter {
    struct token_decoder decoder;
    size_t n_char; /* that are complete */
};

/* Adds a token's bytes; returns the number of characters before its first one. A character that
 * the token begins inside of does not count. */
size_t char_counter_add(struct char_counter *counter, const char *bytes, size_t n);

/* In n bytes of whole characters. */
size_t char_counter_count(const char *text, size_t n);

#endif
