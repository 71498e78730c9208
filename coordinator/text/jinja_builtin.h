/* The functions that templates can call: filters, tests, methods of values, globals.
 *
 * Each is a struct jinja_builtin; the tables are static and sorted by name. What jinja2 has and
 * this lacks: pprint, random, urlize, wordwrap, xmlattr, lipsum, methods of numbers. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_BUILTIN_H
#define LEAN_COORDINATOR_TEXT_JINJA_BUILTIN_H

#include "coordinator/text/jinja_value.h"

/* By name, or NULL. */
const struct jinja_builtin *jinja_find_filter(const struct jinja_string *name);
const struct jinja_builtin *jinja_find_test(const struct jinja_string *name);
const struct jinja_builtin *jinja_find_global(const struct jinja_string *name);
const struct jinja_builtin *jinja_find_method(enum jinja_type type,
                                              const struct jinja_string *name);
/* Searches any sorted table. */
const struct jinja_builtin *jinja_find_builtin(const struct jinja_builtin *table, size_t n,
                                               const struct jinja_string *name);
#define JINJA_FIND(table, name) jinja_find_builtin(table, sizeof(table) / sizeof((table)[0]), name)

/* Binds the arguments to the parameters and calls. Fails on a missing or unknown argument. */
struct jinja_value jinja_call_builtin(struct jinja_run *run, const struct jinja_builtin *builtin,
                                      struct jinja_value self, const struct jinja_call *call);

/* An argument of a kind, or the default if it was not given; fails on another kind. */
int64_t jinja_arg_int(struct jinja_run *run, struct jinja_value arg, int64_t if_missing);
const struct jinja_string *jinja_arg_string(struct jinja_run *run, struct jinja_value arg);
bool jinja_arg_truth(struct jinja_run *run, struct jinja_value arg, bool if_missing);

struct jinja_value jinja_cycler_current(struct jinja_value cycler);
/* Calls a cycler or joiner. */
struct jinja_value jinja_call_joiner(struct jinja_run *run, struct jinja_value joiner);

/* Sorts items by keys (both [n]), stably; the order is Python's `<`, reversed on demand. */
void jinja_sort(struct jinja_run *run, struct jinja_value *items, struct jinja_value *keys,
                size_t n, bool reverse);

#endif
