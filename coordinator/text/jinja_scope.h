/* Gives every name of a parsed template its place, as jinja2's compiler does.
 *
 * Which variable a name means is settled before rendering, by rules that templates depend on:
 * a loop, macro, with, filter or set block has a scope of its own, an if has not; a scope that
 * assigns a name owns it from its start, beginning with the outer value; a name that a scope reads
 * before anyone assigns it is looked up among the template's inputs on entry; names of enclosing
 * scopes are read where they are, so a macro sees later assignments.
 *
 * Also found here: unknown filters and tests (outside of branches), break and continue out of
 * place. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_SCOPE_H
#define LEAN_COORDINATOR_TEXT_JINJA_SCOPE_H

#include "coordinator/text/jinja_ast.h"

void jinja_resolve(struct jinja_run *run, struct jinja_template *tmpl);

#endif
