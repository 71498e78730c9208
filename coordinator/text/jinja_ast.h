/* The parsed template: what the parser builds, the scope pass completes, the interpreter walks.
 *
 * Lists of nodes are chained by next. Names are resolved to slots by jinja_scope.c: hops
 * functions outward, then a slot of that function's variables. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_AST_H
#define LEAN_COORDINATOR_TEXT_JINJA_AST_H

#include "coordinator/text/jinja_operator.h"

enum jinja_node_type {
    /* expressions */
    NODE_CONST,     /* value */
    NODE_NAME,      /* value: the name; ref */
    NODE_NAMESPACE, /* value.attribute as a target; ref */
    NODE_TUPLE,     /* items */
    NODE_LIST,      /* items */
    NODE_DICT,      /* items: key, value, key, value, ... */
    NODE_BINARY,    /* binary; a, b */
    NODE_AND,       /* a, b */
    NODE_OR,        /* a, b */
    NODE_NOT,       /* a */
    NODE_NEGATE,    /* a */
    NODE_PLUS,      /* a */
    NODE_CONCAT,    /* items */
    NODE_COMPARE,   /* a; items: NODE_OPERANDs */
    NODE_OPERAND,   /* compare; a */
    NODE_CONDITION, /* a if b else c; c may be NULL */
    NODE_ATTRIBUTE, /* a.value */
    NODE_ITEM,      /* a[b] */
    NODE_SLICE,     /* a[b:c:d], each of b, c, d may be NULL; flag: lenient */
    NODE_CALL,      /* a(call) */
    NODE_FILTER,    /* a|value(call); a NULL: the text of the enclosing block; builtin */
    NODE_TEST,      /* a is value(call); builtin */
    NODE_KEYWORD,   /* value=a */
    /* statements */
    NODE_OUTPUT,       /* items: expressions */
    NODE_SET,          /* a = b */
    NODE_SET_BLOCK,    /* a = the text of body, through the filter b; frame */
    NODE_IF,           /* if a: body; items: NODE_IFs of elif; otherwise */
    NODE_FOR,          /* for a in b if c (test_target for c); body; otherwise; flag: recursive;
                          function: of a recursive loop; test_function: of c; three frames */
    NODE_MACRO,        /* value: the name; ref; macro */
    NODE_CALL_BLOCK,   /* a: the NODE_CALL; macro: the caller */
    NODE_FILTER_BLOCK, /* a: the NODE_FILTER; body; frame */
    NODE_WITH,         /* items: target, value, ...; body; frame */
    NODE_GENERATION,   /* macro: the body, run in place */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_NO_LOADER /* include and the like: fails when reached */
};

enum jinja_compare {
    COMPARE_EQ,
    COMPARE_NE,
    COMPARE_LT,
    COMPARE_LE,
    COMPARE_GT,
    COMPARE_GE,
    COMPARE_IN,
    COMPARE_NOT_IN
};

struct jinja_node;

struct jinja_ref {
    uint32_t hops, slot;
};

/* What is done on entering a scope: one entry per variable that it owns. */
struct jinja_load {
    enum {
        LOAD_PARAMETER, /* set by whoever enters */
        LOAD_RESOLVE,   /* from the template's variables, by name */
        LOAD_ALIAS,     /* from a scope further out */
        LOAD_UNDEFINED
    } kind;
    uint32_t slot;
    struct jinja_ref from;           /* LOAD_ALIAS */
    const struct jinja_string *name; /* LOAD_RESOLVE */
};

struct jinja_frame {
    struct jinja_load *loads;
    size_t n_load;
};

/* Code with variables of its own: the template, a macro, a recursive loop, a loop's test. */
struct jinja_function {
    struct jinja_function *parent;
    uint32_t depth, n_slot;
    struct jinja_slot_name *names; /* jinja_scope.c */
};

struct jinja_macro_node {
    const struct jinja_string *name; /* NULL: a caller */
    struct jinja_node *params;       /* NODE_NAMEs */
    struct jinja_node *defaults;     /* of the last params */
    size_t n_param, n_default;
    struct jinja_node *body;
    bool takes_caller, takes_kwargs, takes_varargs; /* beyond the params */
    struct jinja_ref caller, kwargs, varargs;
    struct jinja_function function;
    struct jinja_frame frame;
};

struct jinja_call_node {
    struct jinja_node *positional, *named; /* named: NODE_KEYWORDs */
    size_t n_positional, n_named;
    struct jinja_node *star, *star_star; /* *a, **b; or NULL */
};

struct jinja_node {
    enum jinja_node_type type;
    uint32_t line;
    bool flag;
    union {
        enum jinja_binary binary;
        enum jinja_compare compare;
    };
    struct jinja_node *next;
    struct jinja_value value;
    struct jinja_ref ref;
    struct jinja_node *a, *b, *c, *d;
    struct jinja_node *items;
    size_t n_item;
    union {
        struct { /* expressions */
            const struct jinja_string *attribute;
            const struct jinja_builtin *builtin;
            struct jinja_call_node *call;
        };
        struct { /* statements */
            struct jinja_node *body, *otherwise, *test_target;
            struct jinja_macro_node *macro;
            struct jinja_function *function, *test_function;
            struct jinja_frame frame, test_frame, else_frame;
            struct jinja_ref loop; /* the variable "loop", if has_loop */
            bool has_loop;
        };
    };
};

struct jinja_template {
    struct jinja_node *body;
    struct jinja_function function;
    struct jinja_frame frame;
};

#endif
