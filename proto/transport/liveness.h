/* Who of a job is alive: a thread that exchanges heartbeats over one socket from each rank to rank
 * 0.
 *
 * - Rank 0 sees that a worker's socket closes (it died), says "abort" with a text, or is silent for
 *   timeout_s: lost() here, and every other worker is told.
 * - A worker sees the same of rank 0, or hears from it that another rank is lost: lost(), then
 *   leave(), which ends the process. Nothing else may have noticed: a thread can be inside a
 *   library that waits for the dead rank for ever.
 *
 * A rank that has said goodbye is not missed.
 *
 * Threads: lost and leave are called from the guard's thread, lost once; the functions from any. */
#ifndef LEAN_PROTO_TRANSPORT_LIVENESS_H
#define LEAN_PROTO_TRANSPORT_LIVENESS_H

#include "proto/transport/rank_sockets.h"

struct liveness;

struct liveness_config {
    uint32_t rank, n_rank;
    const int *fd;                /* [n_rank], borrowed: at rank 0 one to each other, else fd[0] */
    const struct rank_card *card; /* [n_rank], borrowed */
    double timeout_s, heartbeat_s;
    /* why: LM_E_RANK_LOST, names the rank, its host and what happened. */
    void (*lost)(void *context, const struct lm_error *why);
    void (*leave)(void *context, const struct lm_error *why); /* NULL: _exit(11) */
    void *context;
};

enum lm_status liveness_start(struct liveness **out, const struct liveness_config *config,
                              struct lm_error *err);
/* This rank cannot go on: everyone is told, lost() is called here as for the others, leave() is
 * not. */
void liveness_abort(struct liveness *liveness, const struct lm_error *why);
/* All ranks are about to leave in order: waits until all have said so. LM_E_RANK_LOST: one was
 * lost. */
enum lm_status liveness_goodbye(struct liveness *liveness, struct lm_error *err);
void liveness_stop(struct liveness *liveness); /* NULL is legal */

#endif
