/* Writes the states of a grammar, from the back: a state is added once those that it leads to are
 * there (or reserved).
 *
 * Private to coordinator/grammar. Failure is remembered in `status`; state numbers are then
 * meaningless but legal to pass on. */
#ifndef LEAN_COORDINATOR_GRAMMAR_AUTOMATON_WRITER_H
#define LEAN_COORDINATOR_GRAMMAR_AUTOMATON_WRITER_H

#include "coordinator/grammar/automaton.h"
#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/grammar_builder.h"

struct automaton_writer {
    enum lm_status status; /* LM_OK, LM_E_NO_MEM, LM_E_LIMIT */
    struct state *states;
    struct move *moves;
    size_t n_state, state_room, n_move, move_room;
    struct { /* states that take any continuation bytes before a target: the last ones made */
        uint32_t target, state;
    } tails[64];
};

/* Moves of a state that is being put together. Zero-initialized; freed by the state. */
struct move_list {
    struct move *moves;
    size_t n, room;
};

void automaton_writer_init(struct automaton_writer *writer); /* STATE_END, STATE_RETURN */
void automaton_writer_fini(struct automaton_writer *writer);

/* A state whose moves are set later, once. */
uint32_t automaton_reserve_state(struct automaton_writer *writer);
void automaton_set_moves(struct automaton_writer *writer, uint32_t state, struct move_list *moves);
uint32_t automaton_add_state(struct automaton_writer *writer, struct move_list *moves);
uint32_t automaton_add_byte(struct automaton_writer *writer, uint8_t byte, uint32_t target);

void automaton_list_empty(struct automaton_writer *writer, struct move_list *list, uint32_t target);
void automaton_list_bytes(struct automaton_writer *writer, struct move_list *list, uint8_t low,
                          uint8_t high, uint32_t target);
void automaton_list_call(struct automaton_writer *writer, struct move_list *list, uint32_t rule,
                         uint32_t target);
/* The characters of [low, high] but surrogates, in UTF-8. */
void automaton_list_range(struct automaton_writer *writer, struct move_list *list, uint32_t low,
                          uint32_t high, uint32_t target);

/* Returns the state for the automaton's first one; `next` follows where it accepts. */
uint32_t automaton_add_chars(struct automaton_writer *writer,
                             const struct char_automaton *automaton, enum char_writing writing,
                             uint32_t next);

#endif
