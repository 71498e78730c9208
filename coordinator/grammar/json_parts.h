/* The pieces of JSON texts, made once per builder and shared.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_JSON_PARTS_H
#define LEAN_COORDINATOR_GRAMMAR_JSON_PARTS_H

#include "coordinator/grammar/grammar_builder.h"

enum { JSON_DIGITS_MAX = 17, JSON_EXPONENT_MAX = 308 };

/* Strings with any escapes. */
grammar_expr json_parts_string(struct grammar_builder *builder); /* any, with its quotes */
/* Of least to most code points. */
grammar_expr json_parts_string_of(struct grammar_builder *builder, uint32_t least, uint32_t most);
grammar_expr json_parts_number(struct grammar_builder *builder);
grammar_expr json_parts_colon(struct grammar_builder *builder); /* with white space */
grammar_expr json_parts_comma(struct grammar_builder *builder);
/* A bracket with the white space inside it. */
grammar_expr json_parts_open(struct grammar_builder *builder, char bracket);
grammar_expr json_parts_close(struct grammar_builder *builder, char bracket);

#endif
