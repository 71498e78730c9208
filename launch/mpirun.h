/* Open MPI's launcher as a child process: where it is, what it is told, how it is started. */
#ifndef LEAN_LAUNCH_MPIRUN_H
#define LEAN_LAUNCH_MPIRUN_H

#include <stdbool.h>
#include <sys/types.h>

#include "proto/base/error.h"

struct host_plan;

struct mpirun_config {
    const struct host_plan *plan;
    int argc; /* of this process: every rank gets the same */
    char *const *argv;
    const char *interface;   /* network between hosts, or NULL */
    const char *socket_name; /* of the supervisor, for rank 0; NULL: it runs elsewhere */
    bool allow_root;
    int output_fd; /* its stdout and stderr; -1: those of this process, and stdin too */
};

/* Whether it can be started at all. LM_E_UNSUPPORTED: there is no mpirun. LM_E_USAGE: as root,
 * which mpirun refuses; an argument that it would take for its own. */
enum lm_status mpirun_check(const struct mpirun_config *config, struct lm_error *err);

/* Starts it in a process group of its own, where the keyboard's signals do not reach it. It gets
 * SIGTERM when this process dies, and takes the ranks along. *pid: to be waited for. */
enum lm_status mpirun_start(const struct mpirun_config *config, pid_t *pid, struct lm_error *err);

#endif
