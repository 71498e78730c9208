/* Operators on values: arithmetic, membership, subscripts, attributes. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_OPERATOR_H
#define LEAN_COORDINATOR_TEXT_JINJA_OPERATOR_H

#include "coordinator/text/jinja_value.h"

enum jinja_binary {
    BINARY_ADD,
    BINARY_SUB,
    BINARY_MUL,
    BINARY_DIV,
    BINARY_FLOORDIV,
    BINARY_MOD,
    BINARY_POW
};

struct jinja_value jinja_binary(struct jinja_run *run, enum jinja_binary operator,
                                struct jinja_value a, struct jinja_value b);
/* -value, or +value. */
struct jinja_value jinja_sign(struct jinja_run *run, bool negate, struct jinja_value value);

/* item in container */
bool jinja_contains(struct jinja_run *run, struct jinja_value container, struct jinja_value item);

/* object[key]: the element, else the attribute of that name, else undefined. */
struct jinja_value jinja_get_item(struct jinja_run *run, struct jinja_value object,
                                  struct jinja_value key);
/* object.name: the other way round. */
struct jinja_value jinja_get_attribute(struct jinja_run *run, struct jinja_value object,
                                       struct jinja_value name);
/* object.name without the fallback; false: object has no such attribute. */
bool jinja_find_attribute(struct jinja_run *run, struct jinja_value object,
                          const struct jinja_string *name, struct jinja_value *out);
/* object[start:stop:step], JINJA_NONE where left out. lenient: what cannot be sliced so gives
 * undefined, not an error. */
struct jinja_value jinja_slice(struct jinja_run *run, struct jinja_value object,
                               struct jinja_value start, struct jinja_value stop,
                               struct jinja_value step, bool lenient);

#endif
