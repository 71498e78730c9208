/* fork, exec and a pipe. */
#include "launch/bench/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch/options.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/read_all.h"
#include "proto/transport/world.h"

enum { MAX_OUT_BYTES = 1 << 30 };

enum lm_status child_words_add(struct child_words *words, struct lm_error *err, const char *format,
                               ...)
{
    va_list args;
    char *text = NULL;
    char **const grown = realloc(words->word, (words->n + 2) * sizeof(*grown));
    if (grown) words->word = grown;
    va_start(args, format);
    const bool complete = grown && vasprintf(&text, format, args) >= 0;
    va_end(args);
    if (!complete) return lm_fail(err, LM_E_NO_MEM, "no memory for a command line");
    words->word[words->n++] = text;
    words->word[words->n] = NULL;
    return LM_OK;
}

enum lm_status child_words_add_option(struct child_words *words, const struct options *options,
                                      const struct option_spec *spec, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (!options_said(options, spec->name)) return LM_OK;
    for (size_t i = 0; i < options_count(options, spec->name) && status == LM_OK; i++) {
        const char *text = options_string_at(options, spec->name, i);
        status =
            spec->kind == OPTION_FLAG
                ? child_words_add(words, err, "--%s%s", strcmp(text, "on") ? "no-" : "", spec->name)
                : child_words_add(words, err, "--%s=%s", spec->name, text);
    }
    return status;
}

void child_words_fini(struct child_words *words)
{
    for (size_t i = 0; i < words->n; i++)
        free(words->word[i]);
    free(words->word);
    *words = (struct child_words){0};
}

/* In the child; does not return. */
static void become(char *const *argv, int out, const char *log_path, unsigned limit_s, pid_t parent)
{
    alarm(limit_s);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1); /* it died before that took effect */
    const int in = open("/dev/null", O_RDONLY);
    const int log = log_path ? open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
    if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || (log_path && dup2(log, 2) < 0)) _exit(1);
    signal(SIGPIPE, SIG_DFL);
    execv("/proc/self/exe", argv);
    _exit(1);
}

static void forward(void *context)
{
    const pid_t pid = atomic_load((atomic_int *)context);
    if (pid > 0) kill(pid, SIGTERM);
}

static int wait_for(pid_t pid)
{
    int state = 0;
    while (waitpid(pid, &state, 0) < 0 && errno == EINTR)
        ;
    return WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
}

static enum lm_status start(const struct child_words *words, const char *log_path, unsigned limit_s,
                            atomic_int *pid, int *out, struct lm_error *err)
{
    int ends[2];
    char **argv = calloc(words->n + 2, sizeof(*argv));
    if (!argv) return lm_fail(err, LM_E_NO_MEM, "no memory for a command line");
    argv[0] = (char *)"lean";
    memcpy(argv + 1, words->word, words->n * sizeof(*argv));
    if (pipe2(ends, O_CLOEXEC) != 0) {
        free(argv);
        return lm_fail_errno(err, "pipe");
    }
    const pid_t parent = getpid(), child = fork();
    if (child == 0) become(argv, ends[1], log_path, limit_s, parent);
    close(ends[1]);
    free(argv);
    if (child < 0) {
        close(ends[0]);
        return lm_fail_errno(err, "fork");
    }
    atomic_store(pid, child);
    *out = ends[0];
    return LM_OK;
}

enum lm_status child_check_alone(struct lm_error *err)
{
    uint32_t rank, n_rank;
    if (!world_mpi_launched(&rank, &n_rank) || n_rank < 2) return LM_OK;
    lm_fail(err, LM_E_USAGE, "several combinations cannot run inside one call of mpirun");
    return lm_hint(err, "without mpirun, --ranks N starts the ranks of each");
}

enum lm_status child_run(const struct child_words *words, const char *log_path, unsigned limit_s,
                         struct child_result *result, struct lm_error *err)
{
    atomic_int pid = 0;
    int out = -1;
    *result = (struct child_result){.exit_code = 1};
    enum lm_status status = interrupt_begin(forward, &pid, err);
    if (status != LM_OK) return status;
    status = start(words, log_path, limit_s, &pid, &out, err);
    if (status == LM_OK) {
        status =
            read_all(out, "the output of lean", MAX_OUT_BYTES, &result->out, &result->n_out, err);
        close(out);
        result->exit_code = wait_for(atomic_load(&pid));
    }
    if (status == LM_OK && (interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END)))
        status = lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    interrupt_end();
    if (status != LM_OK) child_result_fini(result);
    return status;
}

void child_result_fini(struct child_result *result)
{
    free(result->out);
    result->out = NULL;
}

enum lm_status child_status(int exit_code)
{
    for (int status = LM_OK; status < LM_STATUS_COUNT; status++)
        if (status != LM_E_FAIL && lm_exit_code((enum lm_status)status) == exit_code)
            return (enum lm_status)status;
    return LM_E_FAIL;
}
