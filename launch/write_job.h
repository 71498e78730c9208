/* What the commands share that write one large file: `quantize` and `synth`. */
#ifndef LEAN_LAUNCH_WRITE_JOB_H
#define LEAN_LAUNCH_WRITE_JOB_H

#include <signal.h>
#include <stdint.h>

#include "proto/base/error.h"

struct options;

/* LM_E_USAGE: path exists and --force was not given. */
enum lm_status write_job_check(const struct options *options, const char *path,
                               struct lm_error *err);

/* From now on SIGINT, SIGTERM and SIGHUP set *is_interrupted, so that the job can remove what it
 * has written and end with LM_E_INTERRUPTED. */
enum lm_status write_job_catch_signals(const volatile sig_atomic_t **is_interrupted,
                                       struct lm_error *err);

/* The result on stdout: a line, or with --json the last event. path NULL: nothing was written. */
void write_job_print(const struct options *options, const char *path, uint64_t n_bytes,
                     double seconds);

#endif
