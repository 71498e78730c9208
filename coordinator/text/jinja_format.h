/* Python's two ways to format: `text % values` and text.format(...). */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_FORMAT_H
#define LEAN_COORDINATOR_TEXT_JINJA_FORMAT_H

#include "coordinator/text/jinja_value.h"

struct jinja_value jinja_format_percent(struct jinja_run *run, struct jinja_value format,
                                        struct jinja_value values);
struct jinja_value jinja_format_braces(struct jinja_run *run, const struct jinja_string *format,
                                       const struct jinja_call *call);
struct jinja_value jinja_format_map(struct jinja_run *run, const struct jinja_string *format,
                                    struct jinja_value mapping);

#endif
