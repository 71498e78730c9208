/* Makes a grammar from expressions, in C: what the compilers of GBNF, regular expressions and JSON
 * schemas use, and what composes them (a literal, then the arguments of a schema, then a literal).
 *
 *   expression = literal | one character of a class | sequence | choice | repetition | call of a
 * rule
 *
 * An expression is a number of its builder and may stand in any number of others. Recursion goes
 * through rules: declare, use, define. Expressions that match nothing are legal and vanish where
 * there is a way around them (an optional part, another alternative).
 *
 * Running out of memory or of the bounds below is remembered: the functions then return
 * GRAMMAR_NOTHING and finish fails, so that only finish needs a check.
 *
 * Limits: the finished automaton has at most GRAMMAR_STATES_MAX states.
 * Threads: a builder belongs to one thread. */
#ifndef LEAN_COORDINATOR_GRAMMAR_GRAMMAR_BUILDER_H
#define LEAN_COORDINATOR_GRAMMAR_GRAMMAR_BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct grammar;
struct grammar_builder;
struct json_object; /* json-c */

typedef uint32_t grammar_expr;
typedef uint32_t grammar_rule;

#define GRAMMAR_NOTHING ((grammar_expr)0) /* no text matches */
#define GRAMMAR_EMPTY ((grammar_expr)1)   /* the empty text matches */

#define GRAMMAR_UNBOUNDED UINT32_MAX

enum { GRAMMAR_STATES_MAX = 1 << 20 };

struct code_range { /* code points, both ends included; surrogates among them do not count */
    uint32_t low, high;
};

enum lm_status grammar_builder_create(struct grammar_builder **out, struct lm_error *err);
void grammar_builder_destroy(struct grammar_builder *builder); /* NULL is legal */

/* The bytes themselves; they are copied. */
grammar_expr grammar_build_literal(struct grammar_builder *builder, const char *bytes, size_t n);
grammar_expr grammar_build_string(struct grammar_builder *builder, const char *text); /* to its 0 */
/* One of n literals; common beginnings are shared, so thousands are cheap. */
grammar_expr grammar_build_one_of(struct grammar_builder *builder, const char *const *literals,
                                  const size_t *n_bytes, size_t n);
/* One character, in UTF-8, of n ranges. */
grammar_expr grammar_build_class(struct grammar_builder *builder, const struct code_range *ranges,
                                 size_t n);
grammar_expr grammar_build_sequence(struct grammar_builder *builder, const grammar_expr *parts,
                                    size_t n);
grammar_expr grammar_build_choice(struct grammar_builder *builder, const grammar_expr *parts,
                                  size_t n);
/* least to most times, GRAMMAR_UNBOUNDED allowed. */
grammar_expr grammar_build_repeat(struct grammar_builder *builder, grammar_expr part,
                                  uint32_t least, uint32_t most);
grammar_expr grammar_build_optional(struct grammar_builder *builder, grammar_expr part);
/* Any characters up to the first occurrence of marker, and the marker: UTF-8, 1 to 64 characters.
 */
grammar_expr grammar_build_text_until(struct grammar_builder *builder, const char *marker,
                                      size_t n);

/* name: for messages, copied; NULL: none. A rule that is never defined matches nothing. */
grammar_rule grammar_build_rule(struct grammar_builder *builder, const char *name);
void grammar_build_define(struct grammar_builder *builder, grammar_rule rule, grammar_expr body);
grammar_expr grammar_build_call(struct grammar_builder *builder, grammar_rule rule);

/* JSON texts without white space but one space after ':' and ','. */
grammar_expr grammar_build_json_value(struct grammar_builder *builder);
grammar_expr grammar_build_json_object(struct grammar_builder *builder);
/* From now on line breaks with bounded indentation may stand in JSON texts too. */
void grammar_build_pretty(struct grammar_builder *builder);
/* What a schema describes (grammar_from_schema tells the errors). */
enum lm_status grammar_build_schema(struct grammar_builder *builder, struct json_object *schema,
                                    grammar_expr *out, struct lm_error *err);
/* A string by the pattern, format and lengths of its schema, without quotes and escapes, for text
 * between tags: it has no '<' and ends in no line break. LM_E_UNSUPPORTED, LM_E_FORMAT: the message
 * begins with the keyword. */
enum lm_status grammar_build_raw_string(struct grammar_builder *builder, struct json_object *schema,
                                        grammar_expr *out, struct lm_error *err);
/* A string constant with its quotes, escaped where it must be. text: UTF-8. */
grammar_expr grammar_build_json_string(struct grammar_builder *builder, const char *text, size_t n);

/* Matches what start matches, from beginning to end. The builder stays usable; rules that are
 * unreachable do no harm. LM_E_FORMAT: a rule calls itself before it has taken a byte (the message
 * names it), or no text at all matches; LM_E_LIMIT: too large. */
enum lm_status grammar_builder_finish(struct grammar **out, struct grammar_builder *builder,
                                      grammar_expr start, struct lm_error *err);

#endif
