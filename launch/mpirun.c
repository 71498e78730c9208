/* The command line and environment of mpirun. */
#include "launch/mpirun.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "launch/config.h"
#include "launch/host_plan.h"
#include "launch/job.h"

extern char **environ;

static const char *const root_variables[] = {"OMPI_ALLOW_RUN_AS_ROOT",
                                             "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"};

/* ---- the command line ---- */

struct words {
    char **word; /* [n], each malloc'ed; NULL ends them */
    size_t n;
    bool failed; /* no memory */
};

static void add(struct words *words, const char *word)
{
    char **grown = realloc(words->word, (words->n + 2) * sizeof(*grown));
    if (grown) words->word = grown;
    char *copy = strdup(word);
    words->failed |= !grown || !copy;
    if (!grown || !copy) {
        free(copy);
        return;
    }
    words->word[words->n++] = copy;
    words->word[words->n] = NULL;
}

/* Several, up to NULL. */
static void add_all(struct words *words, const char *first, ...)
{
    va_list more;
    va_start(more, first);
    for (const char *word = first; word; word = va_arg(more, const char *))
        add(words, word);
    va_end(more);
}

static void free_words(struct words *words)
{
    for (size_t i = 0; i < words->n; i++)
        free(words->word[i]);
    free(words->word);
}

/* Ranks on this host have the environment anyway, those on others only what is named. */
static void add_variables(struct words *words)
{
    for (char **entry = environ; *entry; entry++) {
        char name[128];
        const size_t n = strcspn(*entry, "=");
        const bool ours = !strncmp(*entry, "LEAN_", 5) || !strncmp(*entry, "NCCL_", 5);
        if (!ours || n >= sizeof(name)) continue;
        snprintf(name, sizeof(name), "%.*s", (int)n, *entry);
        add_all(words, "-x", name, NULL);
    }
}

static enum lm_status make_words(struct words *words, const struct mpirun_config *config,
                                 struct lm_error *err)
{
    char number[16], program[4096];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (n < 0) return lm_fail_errno(err, "/proc/self/exe");
    program[n] = '\0';
    snprintf(number, sizeof(number), "%u", config->plan->n_rank);

    add(words, "mpirun");
    add_all(words, "-np", number, NULL);
    /* Threads are placed by whoever starts them, and by default all would share one core. */
    add_all(words, "--bind-to", "none", "--oversubscribe", NULL);
    if (config->plan->hosts) {
        /* one after the other as they stand there; else this host would be the first */
        add_all(words, "--map-by", "seq", "--host", config->plan->hosts, NULL);
        add_variables(words);
    }
    if (config->interface) {
        add_all(words, "--mca", "oob_tcp_if_include", config->interface, NULL);
        add_all(words, "--mca", "btl_tcp_if_include", config->interface, NULL);
    }
    add(words, program);
    for (int i = 1; i < config->argc; i++)
        add(words, config->argv[i]);
    return words->failed ? lm_fail(err, LM_E_NO_MEM, "no memory for mpirun's command line") : LM_OK;
}

/* ---- checks ---- */

/* The program in PATH, malloc'ed; NULL: there is none. */
static char *find_program(void)
{
    const char *path = config_environment("PATH");
    while (path && *path) {
        const size_t n = strcspn(path, ":");
        char *file;
        if (asprintf(&file, "%.*s/mpirun", (int)n, path) < 0) return NULL;
        if (!access(file, X_OK)) return file;
        free(file);
        path += n + (path[n] == ':');
    }
    return NULL;
}

enum lm_status mpirun_check(const struct mpirun_config *config, struct lm_error *err)
{
    char *program = find_program();
    const bool found = program;
    free(program);
    if (!found) {
        lm_fail(err, LM_E_UNSUPPORTED,
                "several ranks need Open MPI, and there is no mpirun in PATH");
        return lm_hint(err, "Debian and Ubuntu: apt install openmpi-bin");
    }
    if (!geteuid() && !config->allow_root &&
        !(config_environment(root_variables[0]) && config_environment(root_variables[1]))) {
        lm_fail(err, LM_E_USAGE, "mpirun does not start ranks as root");
        return lm_hint(err, "--allow-root lets it");
    }
    for (int i = 1; i < config->argc; i++)
        if (!strcmp(config->argv[i], ":"))
            return lm_fail(err, LM_E_USAGE,
                           "an argument that is only a colon cannot be passed on "
                           "to several ranks");
    return LM_OK;
}

/* ---- starting ---- */

static void set_environment(const struct mpirun_config *config)
{
    for (size_t i = 0; config->allow_root && i < 2; i++)
        setenv(root_variables[i], "1", 1);
    if (config->socket_name) setenv(JOB_SOCKET_VARIABLE, config->socket_name, 1);
    /* A question for a password or an unknown key would be asked of nobody, and an unreachable host
     * would take minutes to be given up. Other agents than ssh have other arguments. */
    if (config->plan->hosts && !config_environment("OMPI_MCA_plm_rsh_agent"))
        setenv("OMPI_MCA_plm_rsh_args", "-oBatchMode=yes -oConnectTimeout=10", 0);
}

/* In the child. */
static _Noreturn void become_mpirun(const struct mpirun_config *config, char *const *words,
                                    pid_t parent)
{
    sigset_t none;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    setpgid(0, 0);
    if (config->output_fd >= 0) {
        const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null < 0 || dup2(null, STDIN_FILENO) < 0 ||
            dup2(config->output_fd, STDOUT_FILENO) < 0 ||
            dup2(config->output_fd, STDERR_FILENO) < 0)
            _exit(1);
    }
    close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    execvp(words[0], words);
    fprintf(stderr, "mpirun: %s\n", strerror(errno));
    _exit(127);
}

enum lm_status mpirun_start(const struct mpirun_config *config, pid_t *pid, struct lm_error *err)
{
    struct words words = {0};
    const pid_t parent = getpid();
    set_environment(config);
    enum lm_status status = make_words(&words, config, err);
    if (status == LM_OK) {
        *pid = fork();
        if (*pid == 0) become_mpirun(config, words.word, parent);
        if (*pid < 0) status = lm_fail_errno(err, "fork");
    }
    free_words(&words);
    return status;
}
