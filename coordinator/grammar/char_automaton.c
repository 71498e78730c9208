#include "coordinator/grammar/char_automaton.h"

#include <stdlib.h>

struct char_automaton *char_automaton_create(uint32_t n_state, uint32_t n_class)
{
    struct char_automaton *automaton = calloc(1, sizeof(*automaton));
    if (!automaton) return NULL;
    automaton->n_state = n_state;
    automaton->n_class = n_class;
    automaton->class_low = malloc((n_class + (size_t)1) * sizeof(*automaton->class_low));
    automaton->next = malloc(((size_t)n_state * n_class + 1) * sizeof(*automaton->next));
    automaton->accepts = calloc(n_state + (size_t)1, sizeof(*automaton->accepts));
    if (automaton->class_low && automaton->next && automaton->accepts) return automaton;
    char_automaton_destroy(automaton);
    return NULL;
}

void char_automaton_destroy(struct char_automaton *automaton)
{
    if (!automaton) return;
    free(automaton->class_low);
    free(automaton->next);
    free(automaton->accepts);
    free(automaton);
}
