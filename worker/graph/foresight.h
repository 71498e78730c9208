/* What a layer's router will see, guessed before the layer has been computed that far.
 *
 * The residual stream changes from block to block, and much of what a block adds to it is the same
 * for one token as for the next. So what was added lately between the place of a guess and the
 * router, a running mean by layer, is added to the guess:
 *
 *   residual at the guess --+ mean of (residual at the router - residual at the guess) --> guess
 *
 * On the demonstration model this takes the share of experts that are foreseen from 72 to 80%.
 * Guesses are used to read ahead and for nothing else, so they need not be exact, nor the same on
 * every machine.
 *
 * Threads: the step thread. */
#ifndef LEAN_WORKER_GRAPH_FORESIGHT_H
#define LEAN_WORKER_GRAPH_FORESIGHT_H

#include "kernels/backend.h"
#include "worker/pager/speculation.h"

struct foresight;

enum lm_status foresight_create(struct foresight **out, uint32_t n_layer, uint32_t n_embd,
                                struct lm_error *err);
void foresight_destroy(struct foresight *foresight); /* NULL is legal */

/* guess: [n_row][n_embd] of what the router of layer il will see, from x of the same shape; both
 * backend memory. */
void foresight_guess(struct foresight *foresight, struct backend *backend, uint32_t il,
                     enum prediction_point point, const float *x, uint32_t n_row, float *guess);
/* x is what the router of layer il sees: learns from the guesses made for it. */
void foresight_learn(struct foresight *foresight, struct backend *backend, uint32_t il,
                     const float *x, uint32_t n_row);

#endif
