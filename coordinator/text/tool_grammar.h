/* What generation is held to where tools are called.
 *
 * A call is written as the model's template shows it, line breaks optional. Where parameters stand
 * in tags, strings are raw: one whose schema bounds it has no '<', any other ends at the first
 * value_close.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_GRAMMAR_H
#define LEAN_COORDINATOR_TEXT_TOOL_GRAMMAR_H

#include <stdbool.h>

#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"

struct grammar;
struct json_object; /* json-c */

/* A text of a syntax. Where it has control tokens of its own, these may be taken for it
 * (GRAMMAR_CONTROL_BYTE). NULL: nothing. */
grammar_expr tool_grammar_markup(struct grammar_builder *builder, const char *text);

enum tool_grammar_scope {
    TOOL_GRAMMAR_CALL,  /* a call, or a section of them, from its marker on; arguments by schema
                         * where a tool is strict
                         */
    TOOL_GRAMMAR_ANSWER /* the whole answer: calls, with arguments by schema */
};

/* tools: the array of the chat API, those that may be called; not empty. parallel: an ANSWER,
 * or a section, may hold several calls. LM_E_UNSUPPORTED, LM_E_FORMAT: a schema, with the tool and
 * the pointer. */
enum lm_status tool_grammar_build(struct grammar **out, enum tool_format format,
                                  struct json_object *tools, enum tool_grammar_scope scope,
                                  bool parallel, struct lm_error *err);

#endif
