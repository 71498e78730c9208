/* Exchange: memory that keys and values share with experts.
 *
 *   pool of keys and values:   [ sequences | ready |  slots of experts ]
 *                                                  ^ moves, between steps only
 *
 * A context that was asked for is seldom full. So of the pool keys and values have at first what a
 * modest context takes, and experts the rest. A sequence that needs more takes it from the experts
 * that are worth least; when sequences have ended, and those behind them did with less, experts get
 * it back. The memory is the process's all along: that other programs want some changes nothing.
 *
 * Both ways there is slack: what is taken is an eighth more than is needed, so that a growing
 * sequence seldom takes any; and what the last few sequences needed at most stays, so that long and
 * short ones in turn do not move it. Less than an eighth is not given back.
 *
 * Neither placement changes a bit of what is computed.
 *
 * Ownership: borrows both.
 * Threads:   the step thread. */
#ifndef LEAN_WORKER_EXCHANGE_H
#define LEAN_WORKER_EXCHANGE_H

#include "worker/pager/device_tier.h"
#include "worker/state/seq_state.h"

enum {
    EXCHANGE_EPOCHS = 4,        /* a sequence each, or if one is longer, */
    EXCHANGE_EPOCH_STEPS = 1024 /* so many steps of it */
};

struct exchange {
    struct seq_state *state;
    struct device_tier *tier;       /* NULL: there is nothing to exchange */
    uint32_t n_least;               /* groups of the pool that are not experts' ever */
    uint32_t peak[EXCHANGE_EPOCHS]; /* groups in use at most */
    uint32_t n_epoch, n_step;       /* epochs so far; steps of the last one */
    bool is_due;                    /* an epoch has ended */
};

/* tier: its pool is that of state. */
void exchange_init(struct exchange *exchange, struct seq_state *state, struct device_tier *tier);
/* A sequence is about to be cleared. */
void exchange_end_sequence(struct exchange *exchange);
/* Between steps: experts get what is theirs, if a sequence has ended. Errors, here and below, are
 * of the device: memory has changed hands all the same, as device_tier_resize says. */
enum lm_status exchange_settle(struct exchange *exchange, struct lm_error *err);
/* Before a step: the same. */
enum lm_status exchange_begin_step(struct exchange *exchange, struct lm_error *err);
/* Before room for n more positions of a slot is reserved: takes what that lacks, as far as there is
 * any. */
enum lm_status exchange_make_room(struct exchange *exchange, uint32_t slot, uint32_t n,
                                  struct lm_error *err);

#endif
