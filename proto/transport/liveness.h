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
 * It also watches over the steps (base/progress.h), so that a process that answers and does nothing
 * else is found out: a step that computes without moving for stall_timeout_s ends the job, by the
 * rank where it stands; where none computes and tokens are awaited, by rank 0 a little later. What
 * is known of where it stands goes to the log before.
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
    struct progress *progress; /* of this rank, borrowed; NULL: its steps are not watched */
    double stall_timeout_s;    /* 0: nobody's are */
    /* Logs what the transport knows; NULL: nothing. */
    void (*log_state)(void *context);
    bool (*wants_state)(void); /* or NULL; as in world.h */
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
