/* State of the gated delta net layers: one fixed-size record per sequence, whatever its length.
 *
 *   record of a slot:   layer 0: conv | S     layer 1: conv | S     ...
 *     conv  [n_tap - 1][conv_dim]        the last inputs of the convolution, oldest first
 *     S     [n_head_v][dim_v][dim_k]     the associative memory
 *
 * A record is the sum of everything its sequence has read: it can be copied and cleared, not cut.
 * Threads: the step thread. */
#ifndef LEAN_WORKER_STATE_RECURRENT_STATE_H
#define LEAN_WORKER_STATE_RECURRENT_STATE_H

#include "kernels/backend.h"

struct hparams;
struct recurrent_state;

enum lm_status recurrent_state_create(struct recurrent_state **out, struct backend *backend,
                                      const struct hparams *hp, uint32_t n_layer, uint32_t n_slot,
                                      struct lm_error *err);
void recurrent_state_destroy(struct recurrent_state *state);

/* A step is about to write the slot's record. */
void recurrent_state_touch(struct recurrent_state *state, uint32_t slot);
void recurrent_state_clear(struct recurrent_state *state, uint32_t slot);
void recurrent_state_copy(struct recurrent_state *state, uint32_t from, uint32_t to);

/* For delta_net_args; i counts the recurrent layers. */
float *const *recurrent_state_conv(const struct recurrent_state *state, uint32_t i);
float *const *recurrent_state_memory(const struct recurrent_state *state, uint32_t i);

#endif
