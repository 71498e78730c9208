/* Regular expressions: the regular part of the syntax of ECMAScript, as JSON Schema uses it.
 *
 *   . [a-z] [^a-z] \d \w \s \D \W \S \t \n \xHH \uHHHH \u{H} (x) (?:x) (?<name>x) x|y
 *   x* x+ x? x{2} x{2,} x{2,3}, each also lazy (the same texts match)   ^ $
 *
 * Not regular, or not here: look-around, back-references, \b, flags, \p.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_REGEX_H
#define LEAN_COORDINATOR_GRAMMAR_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct char_automaton;

/* search: the texts in which some part matches, else those that match as a whole. LM_E_FORMAT: a
 * malformed pattern, with the offset; LM_E_UNSUPPORTED; LM_E_LIMIT: too large an automaton. */
enum lm_status regex_compile(struct char_automaton **out, const char *pattern, size_t n,
                             bool search, struct lm_error *err);

#endif
