/* Values as text: Python's str and repr, json.dumps, and JSON read into values. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_PRINT_H
#define LEAN_COORDINATOR_TEXT_JINJA_PRINT_H

#include "coordinator/text/jinja_value.h"

struct json_object; /* json-c */

/* str(value) and repr(value), appended. */
void jinja_print(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value);
void jinja_print_repr(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value);
/* str(value) as a value; a string is returned as it is. */
struct jinja_value jinja_to_string(struct jinja_run *run, struct jinja_value value);

/* repr of a float: the shortest digits that read back as the same value. text: at least 32. */
void jinja_float_text(double real, char *text);

struct jinja_json_style { /* the arguments of json.dumps */
    bool ensure_ascii, sort_keys;
    const char *indent; /* NULL: one line */
    size_t n_indent;
    const struct jinja_string *item_separator, *key_separator; /* NULL: the default */
};
void jinja_print_json(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value,
                      const struct jinja_json_style *style);

/* A json-c value; strings stay in it, so it must outlive the run. Fails on text that is not UTF-8
 * and on integers beyond 64 bits. */
struct jinja_value jinja_from_json(struct jinja_run *run, struct json_object *json);

#endif
