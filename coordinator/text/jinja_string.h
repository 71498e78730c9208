/* Python's str methods, and the pieces of them that filters use.
 *
 * Positions and lengths count code points. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_STRING_H
#define LEAN_COORDINATOR_TEXT_JINJA_STRING_H

#include "coordinator/text/jinja_value.h"

/* The method of that name, or NULL. */
const struct jinja_builtin *jinja_find_string_method(const struct jinja_string *name);

struct jinja_value jinja_upper(struct jinja_run *run, const struct jinja_string *string);
struct jinja_value jinja_lower(struct jinja_run *run, const struct jinja_string *string);
struct jinja_value jinja_capitalize(struct jinja_run *run, const struct jinja_string *string);
/* The title filter, which differs from str.title. */
struct jinja_value jinja_title_words(struct jinja_run *run, const struct jinja_string *string);
bool jinja_is_lower(struct jinja_run *run, const struct jinja_string *string);
bool jinja_is_upper(struct jinja_run *run, const struct jinja_string *string);

enum { STRIP_LEFT = 1, STRIP_RIGHT = 2, STRIP_BOTH = 3 };
/* chars: the code points to remove, NULL for white space. */
struct jinja_value jinja_strip(struct jinja_run *run, const struct jinja_string *string,
                               const struct jinja_string *chars, int sides);
/* n_max < 0: all. */
struct jinja_value jinja_replace(struct jinja_run *run, const struct jinja_string *string,
                                 const struct jinja_string *old, const struct jinja_string *new,
                                 int64_t n_max);
struct jinja_value jinja_center(struct jinja_run *run, const struct jinja_string *string,
                                int64_t width, uint32_t fill);
struct jinja_value jinja_join(struct jinja_run *run, const struct jinja_string *separator,
                              struct jinja_value items);
struct jinja_value jinja_split_lines(struct jinja_run *run, const struct jinja_string *string,
                                     bool keep_ends);

#endif
