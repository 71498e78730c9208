/* What a grammar is when it runs: rules whose bodies are automata over bytes that may call rules.
 *
 *   state --byte range--> state          takes a byte
 *   state --empty-------> state
 *   state --call of rule--> state        goes on there when the rule has been matched
 *   final state                          the rule it stands in has been matched
 *
 * Counted repetition is a state of its own kind: a loop state at (least, most) may take its body
 * once more if most > 0, and counts as final if least is 0; the two counters travel with the
 * position, not with the state, so that {0,100000} costs one state.
 *
 * Every final state without a way on is STATE_RETURN, which makes tail calls visible. Every state
 * has a way to a final one, and every rule matches some text: what has been accepted can always be
 * brought to an end.
 *
 * Private to coordinator/grammar. Immutable once built. */
#ifndef LEAN_COORDINATOR_GRAMMAR_AUTOMATON_H
#define LEAN_COORDINATOR_GRAMMAR_AUTOMATON_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    STATE_END,    /* the whole text has been matched; no way on */
    STATE_RETURN, /* final, no way on */
    STATE_FIRST   /* of those that rules are made of */
};

#define LOOP_NONE UINT32_MAX

enum move_kind { MOVE_BYTES, MOVE_EMPTY, MOVE_CALL };

struct move {
    uint32_t target;
    uint32_t rule;     /* MOVE_CALL */
    uint8_t kind;      /* enum move_kind */
    uint8_t low, high; /* MOVE_BYTES */
};

struct state {
    uint32_t first_move, n_move;
    uint32_t loop_rule; /* body of a loop state, else LOOP_NONE */
    bool final;
    bool takes_bytes; /* has a MOVE_BYTES */
};

/* A position in the text of a rule: its counters are 0 unless the state is a loop. */
struct place {
    uint32_t state;
    uint32_t least, most; /* iterations that must, may follow */
};

/* Rules are numbered so that one comes before those that it may call without taking a byte. */
struct rule {
    struct place start;
};

struct grammar {
    atomic_uint n_ref;
    struct state *states; /* [n_state] */
    struct move *moves;   /* [n_move], by state */
    struct rule *rules;   /* [n_rule] */
    uint32_t n_state, n_move, n_rule;
    uint32_t start_rule;
    uint8_t byte_class[256]; /* bytes that no move tells apart have the same class */
    uint32_t n_class;
    uint8_t class_byte[256]; /* [n_class] one byte of each */
    uint64_t id[2];          /* hash of the above: equal grammars share masks */
};

#endif
