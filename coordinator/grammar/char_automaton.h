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

#endif
