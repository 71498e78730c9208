/* The tree of the token sequences that are cached, being read or waited for, and the states that
 * are kept on it.
 *
 *   root --"You are a helpful" (412 tokens)--+--"What is" (90)--+--"the" (7)   held by a request
 *                                state: slot 5                  +--"a" (12)    state: slot 2
 *                                            +--"Write" (37)    state: slot 7
 *
 * An edge carries a run of tokens, so what sequences share is stored once, and a sequence is found
 * in time proportional to its length, however many there are. A node is a position in a sequence.
 * It stays while a request holds it, a state is kept at it, or something lies below it.
 *
 * Which state goes first: the one that was used least recently. A state at which sequences part
 * counts as used whenever one of them is, so that a common beginning outlives its branches.
 *
 * Beside tokens the tree keeps the log-probabilities that were computed for them: the token's own
 * and the PREFIX_N_TOP best in its place.
 *
 * Ownership: nodes belong to the index; a held one is valid until it is released.
 * Threads:   one owner.
 * Source:    a radix tree (Morrison 1968). */
#ifndef LEAN_COORDINATOR_SCHED_PREFIX_INDEX_H
#define LEAN_COORDINATOR_SCHED_PREFIX_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct prefix_index;
struct prefix_node;

enum { PREFIX_N_TOP = 5 };
#define PREFIX_NO_SLOT UINT32_MAX

/* States are known by slot, 0 .. n_slot - 1. Log-probabilities are kept in logprob_bytes_max. */
enum lm_status prefix_index_create(struct prefix_index **out, uint32_t n_slot,
                                   size_t logprob_bytes_max, struct lm_error *err);
void prefix_index_destroy(struct prefix_index *index); /* NULL is legal */

/* The node at the end of ids, held. Sequences with different keys share nothing. LM_E_NO_MEM. */
enum lm_status prefix_index_hold(struct prefix_index *index, uint64_t key, const int32_t *ids,
                                 uint32_t n, struct prefix_node **out, struct lm_error *err);
void prefix_index_release(struct prefix_index *index, struct prefix_node *node);

/* Tokens that two sequences have in common at their beginnings. */
uint32_t prefix_index_common(const struct prefix_node *a, const struct prefix_node *b);
/* The first position behind `after` and before the node at which others part from its sequence;
 * UINT32_MAX: none. */
uint32_t prefix_index_next_branch(const struct prefix_node *node, uint32_t after);

/* Keeps the state of slot, which has read the first n tokens of the node's sequence. False: there
 * is one already, or no memory, and nothing is kept. */
bool prefix_index_keep(struct prefix_index *index, struct prefix_node *node, uint32_t n,
                       uint32_t slot);
/* The slot is no longer that state. */
void prefix_index_drop(struct prefix_index *index, uint32_t slot);
/* The slot's sequence was used. */
void prefix_index_touch(struct prefix_index *index, uint32_t slot);
/* Forgets, as if dropped, the states on the way to a slot's; returns one at a time, then
 * PREFIX_NO_SLOT. For states that can be cut: the longer one serves for all of them. */
uint32_t prefix_index_drop_above(struct prefix_index *index, uint32_t slot);
/* The kept state that is missed least, other than `but`; PREFIX_NO_SLOT: there is none. */
uint32_t prefix_index_oldest(const struct prefix_index *index, uint32_t but);
uint32_t prefix_index_n_state(const struct prefix_index *index);

/* A kept state whose sequence begins with as many as possible of the node's first `limit` tokens:
 * *n. It may be longer than that. PREFIX_NO_SLOT and 0: none has any. */
uint32_t prefix_index_find(const struct prefix_node *node, uint32_t limit, uint32_t *n);
/* The same among states of exactly these tokens. */
uint32_t prefix_index_find_exact(const struct prefix_node *node, uint32_t limit, uint32_t *n);

/* Notes what was computed for the token at pos >= 1 of the node's sequence, with at least
 * PREFIX_N_TOP best ones or all there are. */
void prefix_index_keep_logprob(struct prefix_index *index, struct prefix_node *node, uint32_t pos,
                               const struct sampled_token *token);
/* The first position >= 1 for which nothing was noted; at most the node's length. */
uint32_t prefix_index_first_without_logprob(const struct prefix_node *node);
/* pos: one for which something was noted. n_top <= PREFIX_N_TOP. */
void prefix_index_logprob(const struct prefix_node *node, uint32_t pos, int32_t n_top,
                          struct sampled_token *out);

#endif
