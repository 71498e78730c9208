/* The process that a user starts for a job of several ranks, seen from outside of the job.
 *
 * It starts mpirun with itself as the program, hands rank 0 what it was started with (job.h),
 * passes signals on to rank 0, lends it the terminal, and ends as rank 0 ended. It never touches
 * MPI.
 *
 *   starting --rank 0 asks--> attached --rank 0 says how it ends--> ending --mpirun ends--> over
 *      +----- mpirun ends -------+--------- mpirun ends: a rank was lost ----------> over
 *   over --restart, and a rank was lost--> waiting 1, 2, 4 .. 30 s --> starting
 *
 * While it waits and starts it may hold the server's ports, until rank 0 has asked.
 *
 * A rank 0 on another host does not ask: then mpirun forwards stdin, stdout and stderr through
 * pipes, the first SIGTERM or SIGINT becomes SIGUSR1, which mpirun forwards and which ends a server
 * in order, and a second one ends all.
 *
 * What mpirun prints is kept back but for the log lines of other ranks, and shown if the job ended
 * in a way that nothing else explains.
 *
 * Death: of the supervisor ends mpirun, which takes the ranks along (PR_SET_PDEATHSIG); of mpirun
 * ends the ranks of its host by the same means, and those of others by its daemons. */
#ifndef LEAN_LAUNCH_SUPERVISOR_H
#define LEAN_LAUNCH_SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct host_plan;

struct supervisor_config {
    const struct host_plan *plan;
    int argc; /* of this process */
    char *const *argv;
    const char *interface;    /* network between hosts, or NULL */
    double startup_timeout_s; /* until rank 0 asks */
    bool allow_root;
    bool restart;
    const char *const *hold; /* [n_hold] what the server listens at, answered between two jobs */
    size_t n_hold;
    bool verbose; /* show what mpirun says about a job that did not start */
    bool drains;  /* the command is a server: a signal ends it in order, with status 0 */
};

/* Runs the job to its end. *ending: how this process is to end, an exit status or minus a signal;
 * what was to be said about it has been said. The error is of a job that could not begin. */
enum lm_status supervisor_run(const struct supervisor_config *config, int32_t *ending,
                              struct lm_error *err);

#endif
