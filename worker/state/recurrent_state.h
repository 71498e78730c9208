/* State of the gated delta net layers: one fixed-size record per sequence, whatever its length.
 *
 *   record of a slot:   layer 0: conv | S     layer 1: conv | S     ...
 *     conv  [n_tap - 1][conv_dim]        the last inputs of the convolution, oldest first
 *     S     [n_head_v][dim_v][dim_k]     the associative memory
 *
 * A record is the sum of everything its sequence has read: it can be copied and cleared, not cut.
 * So a step with drafts leaves it as it was, and keeps what its rows would have added: the inputs
 * of the convolution and of the gates, a thousandth of the record for each. Those of the rows that
 * stay are applied by the next step, before its own.
 *
 *   rows of a slot, for each layer:   qkv [n_kept_max][conv_dim] | beta, alpha
 * [n_kept_max][n_head_v]
 *
 * Threads: the step thread. */
#ifndef LEAN_WORKER_STATE_RECURRENT_STATE_H
#define LEAN_WORKER_STATE_RECURRENT_STATE_H

#include "kernels/backend.h"

struct hparams;
struct recurrent_state;

enum lm_status recurrent_state_create(struct recurrent_state **out, struct backend *backend,
                                      const struct hparams *hp, uint32_t n_layer, uint32_t n_slot,
                                      uint32_t n_kept_max, struct lm_error *err);
void recurrent_state_destroy(struct recurrent_state *state);

/* A step is about to write the slot's record. */
void recurrent_state_touch(struct recurrent_state *state, uint32_t slot);
void recurrent_state_clear(struct recurrent_state *state, uint32_t slot);
void recurrent_state_copy(struct recurrent_state *state, uint32_t from, uint32_t to);

/* Rows whose inputs are kept and not yet in the record: the next step applies the first n of them.
 */
uint32_t recurrent_state_n_kept(const struct recurrent_state *state, uint32_t slot);
void recurrent_state_set_kept(struct recurrent_state *state, uint32_t slot, uint32_t n);
struct kept_rows {
    float *qkv, *beta, *alpha;
    float *out; /* [n_kept_max][n_head_v * dim_v] of no meaning, shared by all */
};
/* i counts the recurrent layers. */
struct kept_rows recurrent_state_kept(const struct recurrent_state *state, uint32_t i,
                                      uint32_t slot);

/* For delta_net_args; i counts the recurrent layers. */
float *const *recurrent_state_conv(const struct recurrent_state *state, uint32_t i);
float *const *recurrent_state_memory(const struct recurrent_state *state, uint32_t i);

#endif
