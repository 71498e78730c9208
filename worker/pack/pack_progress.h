/* What the threads of a packing job share: how far it is, and whether to go on.
 *
 * The first failure, of whichever thread, ends the work of all and is the job's. Damage that a
 * verification finds is reported, and the work goes on.
 * Threads: any, but begin and end. */
#ifndef LEAN_WORKER_PACK_PACK_PROGRESS_H
#define LEAN_WORKER_PACK_PACK_PROGRESS_H

#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/log.h"

struct pack_progress {
    const volatile sig_atomic_t *is_interrupted; /* or NULL */
    pthread_mutex_t lock;                        /* guards what follows */
    struct log_bar bar;
    uint64_t n_done;       /* bytes */
    struct lm_error error; /* the first failure; status LM_OK: none */
    uint32_t n_damage;
    struct lm_error damage; /* the first */
};

void pack_progress_begin(struct pack_progress *progress, const char *what, uint64_t n_bytes,
                         const volatile sig_atomic_t *is_interrupted);
/* The status of the job: of its failure, else of the damage that was found. */
enum lm_status pack_progress_end(struct pack_progress *progress, struct lm_error *err);

/* n_bytes more are done. Not LM_OK: the thread must end its work; there is nothing to report. */
enum lm_status pack_progress_add(struct pack_progress *progress, uint64_t n_bytes);
void pack_progress_fail(struct pack_progress *progress, const struct lm_error *error);
void pack_progress_damage(struct pack_progress *progress, const struct lm_error *damage);

#endif
