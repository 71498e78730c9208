/* Deterministic automata over characters: regular expressions, formats and number ranges live here
 * until they are written into a grammar, because here they can be intersected.
 *
 * Code points fall into classes that no transition tells apart. State 0 is the first one; every
 * state can be reached and leads to an accepting one. No states: nothing is accepted.
 *
 * Private to coordinator/grammar. Immutable once made. */
#ifndef LEAN_COORDINATOR_GRAMMAR_CHAR_AUTOMATON_H
#define LEAN_COORDINATOR_GRAMMAR_CHAR_AUTOMATON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

#define CHAR_NO_STATE UINT32_MAX
#define CHAR_LAST ((uint32_t)0x10ffff)

struct char_automaton {
    uint32_t n_state, n_class;
    uint32_t
        *class_low; /* [n_class + 1] rising from 0; class c is [class_low[c], class_low[c + 1]) */
    uint32_t *next; /* (n_state, n_class), CHAR_NO_STATE: not accepted */
    bool *accepts;  /* [n_state] */
};

/* How characters are written into a grammar's bytes. */
enum char_writing {
    CHAR_PLAIN, /* UTF-8 */
    CHAR_JSON /* the same inside a JSON string: one way for each character, escapes where needed */
};

/* Uninitialized tables. NULL: no memory. */
struct char_automaton *char_automaton_create(uint32_t n_state, uint32_t n_class);
void char_automaton_destroy(struct char_automaton *automaton); /* NULL is legal */

/* A nondeterministic automaton, written from the back: a state is added once those that it leads
 * to are there (or reserved). Anchors are moves that take nothing and pass at one end of the text
 * only. State 0 accepts; state 1 accepts whatever follows. */
enum { CHAR_NFA_ACCEPT, CHAR_NFA_ACCEPT_ALL };

enum char_move_kind { CHAR_MOVE_RANGE, CHAR_MOVE_EMPTY, CHAR_MOVE_BEGIN, CHAR_MOVE_END };

struct char_move {
    enum char_move_kind kind;
    uint32_t target;
    uint32_t low, high; /* CHAR_MOVE_RANGE; no surrogates */
};

struct char_nfa {
    enum lm_status status; /* sticky: LM_OK, LM_E_NO_MEM, LM_E_LIMIT */
    struct char_nfa_state {
        uint32_t first, n; /* moves */
    } * states;
    struct char_move *moves;
    size_t n_state, state_room, n_move, move_room;
};

void char_nfa_init(struct char_nfa *nfa);
void char_nfa_fini(struct char_nfa *nfa);
uint32_t char_nfa_reserve(struct char_nfa *nfa);
void char_nfa_set_moves(struct char_nfa *nfa, uint32_t state, const struct char_move *moves,
                        size_t n);

/* What the automaton accepts from state `start`, with as few states as can be. LM_E_LIMIT: too
 * many states, or too much work to find them. */
enum lm_status char_automaton_from_nfa(struct char_automaton **out, const struct char_nfa *nfa,
                                       uint32_t start, struct lm_error *err);
/* What both accept. */
enum lm_status char_automaton_intersect(struct char_automaton **out, const struct char_automaton *a,
                                        const struct char_automaton *b, struct lm_error *err);
/* Any text of least to most characters (UINT32_MAX: unbounded). */
enum lm_status char_automaton_of_length(struct char_automaton **out, uint32_t least, uint32_t most,
                                        struct lm_error *err);
/* text: n bytes. Malformed UTF-8 is not accepted. */
bool char_automaton_accepts(const struct char_automaton *automaton, const char *text, size_t n);

#endif
