/* Another run of this program, for a measurement that wants a process of its own: other numbers of
 * ranks, other budgets, memory as it was before. */
#ifndef LEAN_LAUNCH_BENCH_CHILD_H
#define LEAN_LAUNCH_BENCH_CHILD_H

#include <stddef.h>

#include "proto/base/error.h"

struct child_result {
    int exit_code; /* as of a shell: 128 and the signal that ended it */
    char *out;     /* what it printed, NUL behind it; malloc'ed */
    size_t n_out;
};

/* Words of a command line that grows; each is copied. */
struct child_words {
    char **word; /* [n], and a NULL behind them */
    size_t n;
};
/* LM_E_NO_MEM */
enum lm_status child_words_add(struct child_words *words, struct lm_error *err, const char *format,
                               ...) LM_PRINTF(3, 4);
void child_words_fini(struct child_words *words);
struct options;
struct option_spec;
/* The option as it was said on this command line, if it was. LM_E_NO_MEM */
enum lm_status child_words_add_option(struct child_words *words, const struct options *options,
                                      const struct option_spec *spec, struct lm_error *err);

/* LM_E_USAGE: this process is a rank of a job, and another run would take itself for one, too. */
enum lm_status child_check_alone(struct lm_error *err);

/* Runs `lean WORDS` to its end. log_path: where its stderr goes; NULL: to ours. limit_s: seconds
 * after which SIGALRM ends it; 0: none. Signals that would
 * end this process end the child, and nothing else (terminal/interrupt.h tells). When this process
 * dies the child gets SIGTERM. LM_E_FAIL, LM_E_IO: it could not be started or read;
 * LM_E_INTERRUPTED: by a signal. */
enum lm_status child_run(const struct child_words *words, const char *log_path, unsigned limit_s,
                         struct child_result *out, struct lm_error *err);
void child_result_fini(struct child_result *result);

/* The status that a process of ours ended with. LM_E_FAIL: it has no better name. */
enum lm_status child_status(int exit_code);

#endif
