/* What a grammar_builder holds, for the parts that read it: expressions in pools, a part always
 * before the expression it is part of.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_EXPRESSION_H
#define LEAN_COORDINATOR_GRAMMAR_EXPRESSION_H

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/grammar_builder.h"

#define NO_EXPR UINT32_MAX
#define NO_RULE UINT32_MAX

enum expr_kind {
    EXPR_NOTHING,
    EXPR_EMPTY,
    EXPR_LITERAL,  /* bytes [first, first + n) */
    EXPR_ONE_OF,   /* spans [first, first + n), sorted, distinct */
    EXPR_CLASS,    /* ranges [first, first + n) */
    EXPR_SEQUENCE, /* parts [first, first + n) */
    EXPR_CHOICE,   /* the same */
    EXPR_STAR,     /* parts [first, first + 1) */
    EXPR_CALL,     /* rule `first` */
    EXPR_AUTOMATON /* automata[first], written as `n` (enum char_writing) says */
};

struct expr {
    enum expr_kind kind;
    uint32_t first, n;
    uint32_t n_state;   /* about so many states; saturates */
    uint32_t body_rule; /* the rule that has it as its body in counted repetitions, or NO_RULE */
};

struct span {
    uint32_t first, n; /* bytes */
};

struct rule_text {
    char *name;           /* or NULL */
    grammar_expr body;    /* NO_EXPR: not defined */
    grammar_rule loop;    /* a counted repetition of this rule's body; NO_RULE: it is none */
    uint32_t least, most; /* of the repetition */
};

/* The parts of JSON that all of a builder's expressions share; 0: not made yet. */
struct json_parts {
    bool pretty;
    grammar_expr value, object, string, character, number, line_break;
};

struct grammar_builder {
    enum lm_status status; /* sticky: LM_OK, LM_E_NO_MEM or LM_E_LIMIT */
    struct expr *exprs;
    char *bytes;
    struct span *spans;
    struct code_range *ranges;
    grammar_expr *parts;
    struct rule_text *rules;
    struct char_automaton **automata;
    size_t n_expr, n_byte, n_span, n_range, n_part, n_rule, n_automaton;
    size_t expr_room, byte_room, span_room, range_room, part_room, rule_room, automaton_room;
    struct json_parts json;
};

/* Takes the automaton over, also where it fails. */
grammar_expr grammar_build_automaton(struct grammar_builder *builder,
                                     struct char_automaton *automaton, enum char_writing writing);

/* A property of each expression and rule. */
struct expression_facts {
    bool *of_expr; /* [n_expr] */
    bool *of_rule; /* [n_rule] */
};

/* Whether some text matches; whether the empty text does. Linear in the expressions. False: no
 * memory, and nothing to free. */
bool expression_find_productive(const struct grammar_builder *builder,
                                struct expression_facts *facts);
bool expression_find_nullable(const struct grammar_builder *builder,
                              struct expression_facts *facts);
void expression_facts_fini(struct expression_facts *facts);

/* The rules that `start` can reach, each before those that it may call without having taken a
 * byte. *order: [*n_order], the caller frees it. LM_E_FORMAT: there is no such order. */
enum lm_status expression_order_rules(const struct grammar_builder *builder,
                                      const struct expression_facts *nullable, grammar_rule start,
                                      uint32_t **order, size_t *n_order, struct lm_error *err);

#endif
