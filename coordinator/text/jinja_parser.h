/* From a template's text to its syntax tree, names not yet resolved. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_PARSER_H
#define LEAN_COORDINATOR_TEXT_JINJA_PARSER_H

#include "coordinator/text/jinja_ast.h"

/* The statements of the template. Everything lives in the run's arena. Fails, with the line, on
 * whatever jinja2 calls a syntax error, except for unknown filters and tests and for break and
 * continue out of place, which the scope pass finds. */
struct jinja_node *jinja_parse(struct jinja_run *run, const char *source, size_t n_bytes);

#endif
