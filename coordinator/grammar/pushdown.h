/* A grammar at work: where in it a text may be, and what a byte does to that.
 *
 * A configuration is a place in a rule and what comes after the rule: the list of configurations
 * that returning from it leads to. A text's position is a list too, of all configurations it may be
 * in. Lists are interned: equal lists are the same number, so positions are compared by number, and
 * where a byte leads from a list is worked out once.
 *
 *   position  [ (inside string, *) ]
 *                               +--> [ (behind the member's value, *) ]
 *                                                                 +--> LIST_BOTTOM: [ (END) ]
 *
 * All calls of one rule at one position share the list that it returns to, as in Earley's
 * algorithm, so an ambiguous grammar does not multiply stacks.
 *
 * Limits: a list holds at most PUSHDOWN_CONFIGS_MAX configurations and what exceeds that is left
 *         out, which narrows what is accepted but never widens it.
 * Threads: one owner. Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_PUSHDOWN_H
#define LEAN_COORDINATOR_GRAMMAR_PUSHDOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/grammar/automaton.h"

enum { LIST_DEAD, LIST_BOTTOM };
enum { PUSHDOWN_CONFIGS_MAX = 1 << 14 };

struct config {
    struct place place;
    uint32_t below; /* list: where a return goes */
};

struct config_list {
    uint32_t first, n;   /* configs, sorted by what is below, then by place */
    uint32_t first_next; /* in next, NO_NEXT: none yet */
    bool complete;       /* has STATE_END: the whole text may end here */
    uint64_t key[2];     /* of what it may accept, the same in all runs of the grammar */
};

struct pending_call {
    uint32_t rule;
    struct config after;
};

struct pushdown {
    const struct grammar *grammar;
    uint32_t n_ahead; /* counters above this are not told apart by keys */
    struct config *configs;
    struct config_list *lists;
    uint32_t *next;  /* (lists that have been left, n_class) lists, LIST_UNKNOWN: not worked out */
    uint32_t *table; /* lists by hash, 0: free */
    size_t n_config, config_room, n_list, list_room, n_next, next_room, n_slot;
    size_t n_list_max; /* collect when there are more */
    bool no_memory;    /* something is lost: lists may be LIST_DEAD that should not */
    /* of the position that is being worked out */
    struct config *found;
    size_t n_found, found_room;
    struct pending_call *calls;
    size_t n_call, call_room;
    uint16_t *seen; /* [N_SEEN] found by hash, 0: free */
};

#define LIST_UNKNOWN UINT32_MAX
#define NO_NEXT UINT32_MAX

/* grammar: borrowed. False: no memory, and nothing to free. */
bool pushdown_init(struct pushdown *pushdown, const struct grammar *grammar, uint32_t n_ahead);
void pushdown_fini(struct pushdown *pushdown);

/* Before the first byte. */
uint32_t pushdown_start(struct pushdown *pushdown);
/* LIST_DEAD: the byte cannot come. */
uint32_t pushdown_work_out(struct pushdown *pushdown, uint32_t list, uint32_t byte_class);
static inline uint32_t pushdown_step(struct pushdown *pushdown, uint32_t list, uint8_t byte)
{
    const uint32_t class = pushdown->grammar->byte_class[byte];
    const uint32_t first = pushdown->lists[list].first_next;
    const uint32_t next = first == NO_NEXT ? LIST_UNKNOWN : pushdown->next[first + class];
    return next == LIST_UNKNOWN ? pushdown_work_out(pushdown, list, class) : next;
}
/* The position after a return to a list. */
uint32_t pushdown_return(struct pushdown *pushdown, uint32_t list);
/* The list of the given configurations as they are; they need not be sorted. */
uint32_t pushdown_list(struct pushdown *pushdown, const struct config *configs, size_t n);
/* Whether collect is due. */
static inline bool pushdown_is_full(const struct pushdown *pushdown)
{
    return pushdown->n_list > pushdown->n_list_max;
}
/* Forgets all lists but those of roots, which are renumbered, and what they stand on. */
void pushdown_collect(struct pushdown *pushdown, uint32_t *roots, size_t n);

#endif
