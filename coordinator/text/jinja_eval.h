/* Runs a resolved template. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_EVAL_H
#define LEAN_COORDINATOR_TEXT_JINJA_EVAL_H

#include "coordinator/text/jinja_ast.h"

/* Renders into *out. inputs: a dict of the template's variables. run->now is set. */
void jinja_render(struct jinja_run *run, const struct jinja_template *tmpl,
                  struct jinja_value inputs, struct jinja_buffer *out);

/* Attributes of a macro or a loop; false: no such attribute. */
bool jinja_object_attribute(struct jinja_run *run, struct jinja_value object,
                            const struct jinja_string *name, struct jinja_value *out);

/* repr of a macro or a loop, appended. */
void jinja_print_object(struct jinja_run *run, struct jinja_buffer *buffer,
                        struct jinja_value object);

#endif
