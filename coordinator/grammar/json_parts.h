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

/* The one way in which text is written where it is given: with its quotes, escaped where it must
 * be. out: room for JSON_STRING_BYTES_MAX(n). Returns the length. */
#define JSON_STRING_BYTES_MAX(n) (6 * (size_t)(n) + 2)
size_t json_parts_write_string(char *out, const char *text, size_t n);

#endif
