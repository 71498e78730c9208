/* What a worker remembers of sequences: KV caches and recurrent states, by slot.
 *
 * A slot holds one sequence of `length` positions. Slots are alike: running sequences use some,
 * snapshots are sequences forked into others. A fork shares KV blocks and copies recurrent states,
 * so taking a snapshot and going back to it are the same operation in two directions.
 *
 *   empty --reserve, step, advance--> length n --reserve, ...--> longer
 *                                       +--fork--> the same in another slot, or the beginning of
 *                                                  it: attention only, inside the window
 *                                 A step whose last rows are drafts is followed by a cut, to any
 *                                 length that it had in between: that is always possible.
 *
 * Threads: the step thread. */
#ifndef LEAN_WORKER_STATE_SEQ_STATE_H
#define LEAN_WORKER_STATE_SEQ_STATE_H

#include "worker/state/kv_cache.h"

struct hparams;
struct kept_rows;
struct seq_state;

struct seq_state_config {
    uint32_t layer_begin, layer_end;
    uint32_t n_slot;
    uint32_t n_ctx;      /* positions of one sequence at most */
    uint64_t n_position; /* positions of all sequences together that must fit */
    /* Of those, room at the beginning where layers see everything, the rest is lent out: see
     * seq_state_pool. 0: all. */
    uint64_t n_position_ready;
    uint32_t n_batch; /* positions added to one sequence by one step at most */
    uint32_t n_draft; /* of those, drafts at most */
    enum tensor_type kv_type;
};

/* LM_E_UNSUPPORTED: the head size is no whole number of kv_type's blocks. */
enum lm_status seq_state_create(struct seq_state **out, struct backend *backend,
                                const struct hparams *hp, const struct seq_state_config *config,
                                struct lm_error *err);
void seq_state_destroy(struct seq_state *state);

uint32_t seq_state_length(const struct seq_state *state, uint32_t slot);

/* Makes room for n more positions of a slot, the last n_draft of them drafts; the step then writes
 * them and advance counts them. LM_E_LIMIT: the context or the pool is full. Nothing the sequence
 * holds is lost by that. */
enum lm_status seq_state_reserve(struct seq_state *state, uint32_t slot, uint32_t n,
                                 uint32_t n_draft, struct lm_error *err);
void seq_state_advance(struct seq_state *state, uint32_t slot, uint32_t n);
/* Takes drafts of the last step back: the slot holds n positions then. Behind each step with
 * drafts, n the length if all of them stay. Where all layers see everything
 * it may be any length. */
void seq_state_cut(struct seq_state *state, uint32_t slot, uint32_t n);

void seq_state_clear(struct seq_state *state, uint32_t slot);
/* Whether the first n positions of a slot can be forked. LM_E_UNSUPPORTED: a recurrent state or a
 * passed window cannot go back. */
enum lm_status seq_state_can_fork(const struct seq_state *state, uint32_t from, uint32_t n,
                                  struct lm_error *err);
/* `to` becomes the first n positions of `from`, another slot. What it held is dropped. Errors of
 * seq_state_can_fork, and nothing changes then. */
enum lm_status seq_state_fork(struct seq_state *state, uint32_t from, uint32_t to, uint32_t n,
                              struct lm_error *err);

/* The pool of the layers that see everything; zeros where there are none. What is lent of it is
 * taken back before a reserve that would lack groups: kv_cache.h. */
struct kv_pool seq_state_pool(const struct seq_state *state);
void seq_state_resize_pool(struct seq_state *state, uint32_t n_ready);
uint32_t seq_state_n_lacking(const struct seq_state *state, uint32_t slot, uint32_t n);

struct seq_usage seq_state_usage(const struct seq_state *state);

/* Tables for attention_args and delta_net_args of layer il. */
void *const *const *seq_state_kv_blocks(const struct seq_state *state, uint32_t il);
float *const *seq_state_conv(const struct seq_state *state, uint32_t il);
float *const *seq_state_memory(const struct seq_state *state, uint32_t il);

/* For a step of the recurrent layers, once its rows are reserved. Whether the slot has drafts: its
 * state is then left as it is, [slot]; and the inputs of its rows are kept in `kept`. Before that,
 * n rows which are there from the step before are to be applied. */
const bool *seq_state_frozen(const struct seq_state *state);
uint32_t seq_state_n_kept(const struct seq_state *state, uint32_t slot);
struct kept_rows seq_state_kept(const struct seq_state *state, uint32_t il, uint32_t slot);

#endif
