/* The values that a template computes with: Python's, as far as templates can tell.
 *
 * A value is 16 bytes, copied freely; what it points to lives in the run's arena and is shared
 * the way Python shares objects (a list that changes, changes for all who hold it). Strings are
 * immutable UTF-8 and may point into other strings or into the caller's JSON. Integers have 64
 * bits: an operation whose result does not fit fails.
 *
 * Every function that takes a run may fail (jinja_run.h). */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_VALUE_H
#define LEAN_COORDINATOR_TEXT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/text/jinja_run.h"

enum jinja_type {
    JINJA_MISSING, /* no value at all: an argument not given, a variable not set */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_VIEW, /* dict.keys(), values(), items() */
    JINJA_RANGE,
    JINJA_NAMESPACE,
    JINJA_ITERATOR, /* what lazy filters return: one pass */
    JINJA_MACRO,
    JINJA_LOOP,
    JINJA_FUNCTION,
    JINJA_METHOD, /* a function with its object */
    JINJA_CYCLER,
    JINJA_JOINER
};

struct jinja_value {
    enum jinja_type type;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const struct jinja_undefined *undefined;
        const struct jinja_string *string;
        struct jinja_list *list; /* of a tuple too */
        struct jinja_dict *dict; /* of a namespace too */
        const struct jinja_view *view;
        const struct jinja_range *range;
        struct jinja_iter *iter;
        const struct jinja_macro *macro; /* jinja_eval.c */
        struct jinja_loop *loop;         /* jinja_eval.c */
        const struct jinja_builtin *function;
        const struct jinja_method *method;
        struct jinja_cycler *cycler; /* joiner too; jinja_builtin.c */
        const void *pointer;         /* identity of any of them */
    };
};

struct jinja_undefined {     /* why, for the message when it is used */
    const char *hint;        /* the whole message, or NULL */
    const char *owner_type;  /* what lacks it: "dict", or NULL for a variable */
    struct jinja_value name; /* attribute, element or variable */
};

struct jinja_string {
    const char *bytes;
    size_t n_bytes, n_chars; /* equal when ASCII */
};

struct jinja_list {
    struct jinja_value *items;
    size_t n, cap;
    bool is_group; /* a tuple of groupby, whose parts have names */
};

struct jinja_pair {
    struct jinja_value key, value; /* key JINJA_MISSING: removed */
};

struct jinja_dict { /* in order of insertion */
    struct jinja_pair *pairs;
    size_t n_pair, cap; /* removed ones included */
    size_t n;           /* live ones */
    uint32_t *index;    /* open addressing, pair number + 1; NULL while the dict is small */
    size_t n_index;     /* a power of two */
};

struct jinja_view {
    struct jinja_dict *dict;
    enum { VIEW_KEYS, VIEW_VALUES, VIEW_ITEMS } kind;
};

struct jinja_range {
    int64_t start, stop, step, n;
};

/* Something being walked over. next writes *out and returns true, or returns false at the end. */
struct jinja_iter {
    bool (*next)(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out);
    struct jinja_value source;
    size_t i, n; /* meaning by kind */
    void *state;
};

/* A function that templates can call: filter, test, method or global.
 * params: names by commas, `?` after optional ones, "/" first if they cannot be given by name;
 * NULL: fn reads call itself. arg: one value for each name, JINJA_MISSING if not given. self: the
 * filtered or tested value, or the method's object. */
struct jinja_call;
struct jinja_builtin {
    const char *name;
    const char *params;
    struct jinja_value (*fn)(struct jinja_run *run, struct jinja_value self,
                             const struct jinja_value *arg, const struct jinja_call *call);
};

struct jinja_method {
    struct jinja_value self;
    const struct jinja_builtin *builtin;
};

/* The arguments of a call as written. */
struct jinja_call {
    const struct jinja_value *positional;
    size_t n_positional;
    const struct jinja_pair *named; /* keys are strings */
    size_t n_named;
};

static inline struct jinja_value jinja_missing(void)
{
    return (struct jinja_value){.type = JINJA_MISSING};
}
static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.type = JINJA_NONE};
}
static inline struct jinja_value jinja_bool(bool boolean)
{
    return (struct jinja_value){.type = JINJA_BOOL, .boolean = boolean};
}
static inline struct jinja_value jinja_int(int64_t integer)
{
    return (struct jinja_value){.type = JINJA_INT, .integer = integer};
}
static inline struct jinja_value jinja_float(double real)
{
    return (struct jinja_value){.type = JINJA_FLOAT, .real = real};
}

/* Undefined: a variable; an attribute or element of owner; anything with its own message. */
struct jinja_value jinja_undefined_name(struct jinja_run *run, struct jinja_value name);
struct jinja_value jinja_undefined_member(struct jinja_run *run, struct jinja_value owner,
                                          struct jinja_value name);
struct jinja_value jinja_undefined_hint(struct jinja_run *run, const char *hint);
_Noreturn void jinja_fail_undefined(struct jinja_run *run, struct jinja_value undefined);

/* bytes stay where they are and must outlive the run's use of them. */
struct jinja_value jinja_string_view(struct jinja_run *run, const char *bytes, size_t n_bytes);
struct jinja_value jinja_string_copy(struct jinja_run *run, const char *bytes, size_t n_bytes);
/* A constant of the program. */
struct jinja_value jinja_text(struct jinja_run *run, const char *text);
/* Takes the buffer's bytes. */
struct jinja_value jinja_string_from(struct jinja_run *run, const struct jinja_buffer *buffer);
bool jinja_string_is(const struct jinja_string *string, const char *text);
bool jinja_string_equal(const struct jinja_string *a, const struct jinja_string *b);

struct jinja_value jinja_list_new(struct jinja_run *run, size_t n_expected);
struct jinja_value jinja_tuple_new(struct jinja_run *run, const struct jinja_value *items,
                                   size_t n);
struct jinja_value jinja_tuple_2(struct jinja_run *run, struct jinja_value a, struct jinja_value b);
void jinja_list_append(struct jinja_run *run, struct jinja_list *list, struct jinja_value item);

struct jinja_value jinja_dict_new(struct jinja_run *run);
/* Sets or replaces; a replaced key keeps its place. Fails if key cannot be hashed. */
void jinja_dict_set(struct jinja_run *run, struct jinja_dict *dict, struct jinja_value key,
                    struct jinja_value value);
/* The value, or NULL. Fails if key cannot be hashed. */
struct jinja_value *jinja_dict_find(struct jinja_run *run, const struct jinja_dict *dict,
                                    struct jinja_value key);
/* Removes key and returns its value, or JINJA_MISSING. */
struct jinja_value jinja_dict_remove(struct jinja_run *run, struct jinja_dict *dict,
                                     struct jinja_value key);
/* The next live pair at or after *i, which moves on past it; NULL at the end. */
const struct jinja_pair *jinja_dict_next(const struct jinja_dict *dict, size_t *i);

/* Python's type name: "str", "NoneType". */
const char *jinja_type_name(struct jinja_value value);
bool jinja_is_number(struct jinja_value value); /* int, float, bool */
/* A bool or int as an integer. */
bool jinja_as_int(struct jinja_value value, int64_t *out);
/* Any number as a float. */
double jinja_as_float(struct jinja_value value);

bool jinja_truth(struct jinja_run *run, struct jinja_value value);
bool jinja_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b);
/* The same object, as far as a template can tell (`is` in Python). */
bool jinja_same(struct jinja_value a, struct jinja_value b);

enum jinja_order { ORDER_LT, ORDER_LE, ORDER_GT, ORDER_GE };
/* a < b and so on; fails where Python has no order. */
bool jinja_order(struct jinja_run *run, enum jinja_order order, struct jinja_value a,
                 struct jinja_value b);

/* len(value), or -1 if it has none. */
int64_t jinja_length_or_none(struct jinja_run *run, struct jinja_value value);
int64_t jinja_length(struct jinja_run *run, struct jinja_value value);

bool jinja_is_iterable(struct jinja_value value);
struct jinja_iter *jinja_iterate(struct jinja_run *run, struct jinja_value value);
static inline bool jinja_next(struct jinja_run *run, struct jinja_iter *iter,
                              struct jinja_value *out)
{
    jinja_spend(run, 1);
    jinja_check_stack(run); /* one lazy sequence may draw on another, and so on */
    return iter->next(run, iter, out);
}
/* A lazy sequence as a value; state is for next. */
struct jinja_value jinja_iterator(struct jinja_run *run,
                                  bool (*next)(struct jinja_run *, struct jinja_iter *,
                                               struct jinja_value *),
                                  struct jinja_value source, void *state);
/* A new list of all items: list(value). */
struct jinja_value jinja_to_list(struct jinja_run *run, struct jinja_value value);

/* Implemented by jinja_eval.c, which knows loops. */
int64_t jinja_loop_length(struct jinja_run *run, struct jinja_loop *loop);
bool jinja_loop_next(struct jinja_run *run, struct jinja_loop *loop, struct jinja_value *out);

#endif
