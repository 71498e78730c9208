/* One process of a job of several ranks, from inside; supervisor.h is the outside.
 *
 * mpirun connects its ranks to pipes. So that rank 0 is for its user what a single process is, it
 * asks the supervisor, when that runs on the same host, for the descriptors it was started with:
 * terminal, pipes and whatever else was inherited.
 *
 *   user's shell --> supervisor --> mpirun --> rank 0, rank 1, ...
 *                        ^ descriptors, the terminal, the end ^
 *                        +----- socket of this header --------+
 *
 * mpirun gives each rank a process group of its own, and only the foreground group may read a
 * terminal. A rank 0 that tries to gets SIGTTIN (SIGTTOU when it sets modes), asks the supervisor
 * to make it the foreground, and the call goes on. Until then signals of the keyboard go to the
 * supervisor, which hands them on.
 *
 * State belongs to the process, as its signal handlers do. */
#ifndef LEAN_LAUNCH_JOB_H
#define LEAN_LAUNCH_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

/* In the environment of ranks: the abstract name of the supervisor's socket (SOCK_SEQPACKET). */
#define JOB_SOCKET_VARIABLE "LEAN_JOB_SOCKET"

enum { JOB_MAX_DESCRIPTOR = 64 };

/* Messages. On connecting rank 0 gets a job_descriptors, the descriptors themselves beside it. */
struct job_descriptors {
    int32_t n;
    int32_t number[JOB_MAX_DESCRIPTOR]; /* what each shall be called */
};
enum job_message_kind {
    JOB_WANTS_TERMINAL, /* rank 0 asks; the same kind comes back, value 1: it has it, 0: it cannot
                         */
    JOB_ENDS            /* rank 0: value is the exit status, or minus a signal */
};
struct job_message {
    int32_t kind, value;
};

/* First of all in main; does nothing outside of a job. Ranks but 0 ignore signals that are meant
 * for rank 0, and every rank dies with what launched it. */
enum lm_status job_enter(struct lm_error *err);

/* Whether somebody has sent this worker SIGUSR2, for its state, since the last call. */
bool job_wants_state(void);

/* Last of all: how this process ends, an exit status or minus a signal. */
void job_leave(int32_t ending);

#endif
