/* The program `lean`: finds the command, parses its options, runs it, and turns its status into
 * the message and exit code of the command-line contract. Only this file prints errors and exits.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/cluster.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/host_plan.h"
#include "launch/job.h"
#include "launch/supervisor.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"
#include "proto/transport/world.h"

/* A standard descriptor that is closed would be given to the next file opened, and what is meant
 * for the terminal would end there. Reading and writing /dev/null's wrong end fails instead. */
static void hold_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
            open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR) != fd)
            _exit(1);
}

static void configure_log(const struct options *options)
{
    static const enum log_level levels[] = {LOG_INFO, LOG_VERBOSE, LOG_DEBUG};
    const char *progress = options_string(options, "progress");
    const char *color = options_string(options, "color");
    const char *term = config_environment("TERM");
    const size_t n_verbose = options_count(options, "verbose");

    struct log_config config = {.level = levels[n_verbose < 2 ? n_verbose : 2]};
    if (options_flag(options, "quiet")) config.level = LOG_ERROR;
    config.progress = !strcmp(progress, "tty")     ? LOG_PROGRESS_TTY
                      : !strcmp(progress, "plain") ? LOG_PROGRESS_PLAIN
                      : !strcmp(progress, "none")  ? LOG_PROGRESS_NONE
                                                   : LOG_PROGRESS_AUTO;
    if (config.level == LOG_ERROR) config.progress = LOG_PROGRESS_NONE;
    config.color = !strcmp(color, "always") ||
                   (!strcmp(color, "auto") && isatty(STDERR_FILENO) &&
                    !config_environment("NO_COLOR") && !(term && !strcmp(term, "dumb")));
    log_configure(&config);
}

/* The status's, but what SIGTERM ended is told from what SIGINT ended. */
static int exit_code(enum lm_status status)
{
    return status == LM_E_INTERRUPTED && interrupt_end_signal() ? 128 + interrupt_end_signal()
                                                                : lm_exit_code(status);
}

/* The last event of a command that was asked for JSON. */
static void print_error_event(const struct lm_error *err, const char *message, const char *hint)
{
    struct json_object *event = json_object_new_object();
    json_object_object_add(event, "event", json_object_new_string("error"));
    json_object_object_add(event, "time", json_object_new_int64(time(NULL)));
    json_object_object_add(event, "message", json_object_new_string(message));
    if (*hint) json_object_object_add(event, "hint", json_object_new_string(hint));
    json_object_object_add(event, "status", json_object_new_string(lm_status_name(err->status)));
    json_object_object_add(event, "exit_code", json_object_new_int(exit_code(err->status)));
    puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
    json_object_put(event);
}

/* A name with a line break in it could pass for a line of ours. */
static void keep_on_one_line(char *text)
{
    for (; *text; text++)
        if (*text == '\n') *text = ' ';
}

static void report(const struct lm_error *err, bool json)
{
    /* Names of files and tensors in a message may hold anything. */
    char message[4 * sizeof(err->message)], hint[4 * sizeof(err->hint)];
    log_printable(err->message, strlen(err->message), message, sizeof(message));
    log_printable(err->hint, strlen(err->hint), hint, sizeof(hint));
    keep_on_one_line(message);
    keep_on_one_line(hint);
    log_line(LOG_ERROR, "%s", message);
    if (*hint) fprintf(stderr, "hint: %s\n", hint);
    /* What did not hold has been printed as the command's own document. */
    if (json && err->status != LM_E_MISMATCH) print_error_event(err, message, hint);
}

/* Whether --json is among the words, for errors found before they are parsed. */
static bool wants_json(int argc, char *const *argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
        if (!strcmp(argv[i], "--json")) return true;
    return false;
}

enum { ENDING_BY_STATUS = INT32_MIN };

/* What the program was called with, and how the job ended that it supervised, if it did. */
struct call {
    int argc;
    char **argv;
    int32_t ending; /* an exit status, or minus a signal */
};

/* What ranks on other hosts cannot read from this host's files. */
static void tell_ranks(const struct options *options)
{
    char name[80];
    for (const struct option_spec *spec = options_cluster; spec->name; spec++) {
        const char *text = options_string(options, spec->name);
        if (!spec->key || !text || !options_given(options, spec->name)) continue;
        config_variable_name(spec->key, name, sizeof(name));
        setenv(name, text, 1);
    }
}

/* What of a server the supervisor may answer at; by TLS it cannot. *out: to be freed. */
static enum lm_status list_ports(const struct command *command, const struct options *options,
                                 const char ***out, size_t *n, struct lm_error *err)
{
    *n = 0;
    *out = NULL;
    if (!command->drains || !options_flag(options, "hold-port")) return LM_OK;
    if (!options_flag(options, "restart"))
        return lm_fail(err, LM_E_USAGE, "--hold-port is for a server with --restart");
    if (options_string(options, "tls-cert"))
        return lm_fail(err, LM_E_USAGE, "--hold-port cannot answer by TLS");
    const size_t n_given = options_count(options, "listen");
    *out = calloc(n_given + 1, sizeof(**out));
    if (!*out) return lm_fail(err, LM_E_NO_MEM, "no memory for ports");
    for (size_t i = 0; i < n_given; i++)
        (*out)[(*n)++] = options_string_at(options, "listen", i);
    if (!n_given) (*out)[(*n)++] = options_string(options, "listen");
    return LM_OK;
}

/* In a job the command itself, and if one rank is asked for; else this process becomes the
 * supervisor of a job that runs it. */
static enum lm_status run_on_ranks(const struct command *command, struct options *options,
                                   struct call *call, struct lm_error *err)
{
    uint32_t rank, n_rank;
    struct host_plan plan;
    const uint32_t n_asked = (uint32_t)options_int(options, "ranks");
    if (world_mpi_launched(&rank, &n_rank)) {
        if (n_asked && n_rank > 1 && n_asked != n_rank)
            log_warning("--ranks %u: there are %u, as many as were started", n_asked, n_rank);
        return command->run(options, err);
    }
    enum lm_status status = host_plan_init(&plan, n_asked, options_string(options, "hosts"),
                                           options_string(options, "hostfile"), err);
    if (status != LM_OK) return status;
    const char **hold = NULL;
    struct supervisor_config config = {
        .plan = &plan,
        .argc = call->argc,
        .argv = call->argv,
        .interface = options_string(options, "interface"),
        .startup_timeout_s = options_float(options, "startup-timeout"),
        .allow_root = options_flag(options, "allow-root"),
        .restart = options_flag(options, "restart"),
        .verbose = options_flag(options, "verbose"),
        .drains = command->drains,
    };
    if (plan.rank0_is_here) status = list_ports(command, options, &hold, &config.n_hold, err);
    config.hold = hold;
    if (status != LM_OK) {
        host_plan_fini(&plan);
        return status;
    }
    if (plan.n_rank == 1 && plan.rank0_is_here) {
        status = command->run(options, err);
    } else {
        tell_ranks(options);
        status = supervisor_run(&config, &call->ending, err);
    }
    free(hold);
    host_plan_fini(&plan);
    return status;
}

/* Runs the command with what the command line left out filled in from files and environment. */
static enum lm_status run_configured(const struct command *command, struct options *options,
                                     struct call *call, struct lm_error *err)
{
    struct config *config;
    enum lm_status status = config_load(&config, options_string(options, "config"), err);
    if (status != LM_OK) return status;
    status = options_fill(options, config, err);
    if (status == LM_OK)
        status = command->takes_ranks && !(command->stays_here && command->stays_here(options))
                     ? run_on_ranks(command, options, call, err)
                     : command->run(options, err);
    config_destroy(config);
    return status;
}

/* A rank but 0: it holds its layers, whatever the command is. */
static enum lm_status run_worker(struct options *options, struct lm_error *err)
{
    struct config *config;
    enum lm_status status = config_load_variables(&config, err);
    if (status != LM_OK) return status;
    status = options_fill(options, config, err);
    if (status == LM_OK) {
        const struct cluster_config cluster = cluster_config_from_options(options);
        status = cluster_run_rank(&cluster, err);
    }
    config_destroy(config);
    return status;
}

static bool is_worker(const struct command *command)
{
    uint32_t rank, n_rank;
    return command->takes_ranks && world_mpi_launched(&rank, &n_rank) && rank > 0;
}

static enum lm_status check_arguments(const struct command *command, const struct options *options,
                                      struct lm_error *err)
{
    const size_t n = options_n_arg(options);
    if (n >= command->n_arg_min && n <= command->n_arg_max) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "%s takes %s, got %zu argument%s", command->name,
                   *command->usage ? command->usage : "no arguments", n, n == 1 ? "" : "s");
}

static enum lm_status run_command(const struct command *command, struct call *call,
                                  struct lm_error *err)
{
    struct options *options = NULL;
    enum lm_status status =
        options_parse(&options, command->options, call->argc - 2, call->argv + 2, err);
    const bool wants_help = status == LM_OK && options_flag(options, "help");
    if (status == LM_OK && !wants_help) status = check_arguments(command, options, err);
    if (status == LM_E_USAGE) lm_hint(err, "lean help %s explains it", command->name);
    if (status == LM_OK) {
        configure_log(options);
        if (wants_help)
            help_print_command(command);
        else if (is_worker(command))
            status = run_worker(options, err);
        else
            status = command->reads_config ? run_configured(command, options, call, err)
                                           : command->run(options, err);
    }
    options_destroy(options);
    return status;
}

static enum lm_status dispatch(struct call *call, struct lm_error *err)
{
    const struct command *command;
    if (call->argc < 2) {
        lm_fail(err, LM_E_USAGE, "no command given");
        return lm_hint(err, "lean help lists the commands");
    }
    const char *name = call->argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) name = "help";
    if (!strcmp(name, "--version")) name = "version";
    const enum lm_status status = command_find(&command, name, err);
    return status == LM_OK ? run_command(command, call, err) : status;
}

/* As the signal would have ended it. */
static void end_by_signal(int number)
{
    job_leave(-number);
    signal(number, SIG_DFL);
    raise(number);
}

/* What was printed must have arrived. A reader that left (EPIPE) is no error to report: the
 * process ends as the signal would have ended it. */
static enum lm_status finish_stdout(enum lm_status status, struct lm_error *err)
{
    struct pollfd reader = {.fd = STDOUT_FILENO};
    errno = 0;
    if (!fflush(stdout) && !ferror(stdout)) return status;
    if (errno == EPIPE || (poll(&reader, 1, 0) == 1 && reader.revents & POLLERR)) {
        end_by_signal(SIGPIPE);
    }
    if (!errno) errno = EIO; /* an earlier write failed, and its reason is gone */
    return status == LM_OK ? lm_fail_errno(err, "standard output") : status;
}

int main(int argc, char **argv)
{
    hold_standard_descriptors();
    /* a vanished reader or a limit on file sizes is an error of that write, not of the process */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    /* hwloc writes to stderr where a sandbox hides /sys; the backend does without it */
    setenv("HWLOC_HIDE_ERRORS", "2", 0);

    struct call call = {.argc = argc, .argv = argv, .ending = ENDING_BY_STATUS};
    struct lm_error err = {0};
    enum lm_status status = job_enter(&err);
    if (status == LM_OK) status = dispatch(&call, &err);
    if (status != LM_OK) {
        uint32_t rank, n_rank;
        const bool is_other = world_mpi_launched(&rank, &n_rank) && rank > 0;
        err.status = status;
        /* what is wrong with the command line rank 0 says, if mpirun has not ended it before, as it
         * does when another rank has left */
        if (is_other && status == LM_E_USAGE) sleep(1);
        if (!is_other || status != LM_E_USAGE) report(&err, !is_other && wants_json(argc, argv));
        finish_stdout(status, NULL);
    } else if ((status = finish_stdout(status, &err)) != LM_OK) {
        report(&err, false);
    }
    const int32_t ending = call.ending == ENDING_BY_STATUS ? exit_code(status) : call.ending;
    if (ending < 0) end_by_signal(-ending);
    job_leave(ending);
    return ending;
}
