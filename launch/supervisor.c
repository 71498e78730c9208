/* A job's life: descriptors, terminal, signals, endings, and again. */
#include "launch/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "launch/host_plan.h"
#include "launch/job.h"
#include "launch/job_output.h"
#include "launch/mpirun.h"
#include "launch/port_holder.h"
#include "proto/base/log.h"

/* Once rank 0 has failed the others leave by themselves or are killed; then mpirun ends, which
 * would take two seconds to do it. */
static const double leaving_s = 0.3, ending_s = 3;
/* --restart: at most so many failures in so many seconds, and the longest pause between two. */
enum { MAX_FAILURE = 5, MAX_STOP = 100 };
/* What a start takes at least, for those who are told to come back. */
enum { START_S = 2 };
static const double failure_window_s = 600, pause_s_max = 30;

static const int watched_signals[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

/* The terminal as it was found. */
struct terminal {
    int fd; /* -1: there is none */
    struct termios modes;
    bool lent;
};

/* One start of mpirun. */
struct attempt {
    pid_t mpirun;
    int listener, channel, rank0, output_fd; /* -1: not there, or not any more */
    bool attached, ended;                    /* rank 0 asked; rank 0 said how it ends */
    bool killed_ranks;                       /* that were left on this host */
    bool forced;                             /* mpirun was killed */
    int32_t ending;
    double deadline_s; /* what is awaited until then; INFINITY: nothing */
    struct job_output output;
};

struct supervisor {
    const struct supervisor_config *config;
    int signals;
    sigset_t mask; /* as it was before */
    char socket_name[64];
    struct job_descriptors inherited;
    bool closed; /* the inherited ones were, when rank 0 had them */
    struct terminal terminal;
    int asked;                  /* the last signal that asked for the end; 0: none */
    struct port_holder *holder; /* between two jobs, or NULL */
};

/* ---- what rank 0 gets ---- */

/* The standard ones, and what else would have been inherited by a program that was started. */
static void list_descriptors(struct job_descriptors *out)
{
    DIR *folder = opendir("/proc/self/fd");
    out->n = 0;
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        out->number[out->n++] = fd;
    if (!folder) return;
    for (const struct dirent *entry; (entry = readdir(folder)) && out->n < JOB_MAX_DESCRIPTOR;) {
        const int fd = atoi(entry->d_name);
        const int flags = fd > STDERR_FILENO ? fcntl(fd, F_GETFD) : -1;
        if (flags >= 0 && !(flags & FD_CLOEXEC)) out->number[out->n++] = fd;
    }
    closedir(folder);
}

static bool send_descriptors(const struct supervisor *supervisor, int channel)
{
    struct job_descriptors names = supervisor->inherited;
    const size_t n_bytes = (size_t)names.n * sizeof(int);
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(names.number))];
    } control = {.head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    control.head.cmsg_len = CMSG_LEN(n_bytes);
    memcpy(CMSG_DATA(&control.head), names.number, n_bytes);
    struct iovec piece = {.iov_base = &names, .iov_len = sizeof(names)};
    const struct msghdr message = {.msg_iov = &piece,
                                   .msg_iovlen = 1,
                                   .msg_control = &control,
                                   .msg_controllen = CMSG_SPACE(n_bytes)};
    return sendmsg(channel, &message, MSG_NOSIGNAL) == sizeof(names);
}

/* They are rank 0's alone now, so that whoever reads from or writes to it sees when it ends. stderr
 * stays, for what is to be said. A job that may be started again needs them all. */
static void let_go(struct supervisor *supervisor)
{
    if (supervisor->config->restart || supervisor->closed) return;
    for (int i = STDERR_FILENO + 1; i < supervisor->inherited.n; i++)
        close(supervisor->inherited.number[i]);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd < STDERR_FILENO; fd++)
        dup2(null, fd);
    if (null >= 0) close(null);
    supervisor->closed = true;
}

/* ---- the terminal ---- */

static void find_terminal(struct terminal *terminal)
{
    terminal->fd = -1;
    for (int fd = 0; fd <= STDERR_FILENO && terminal->fd < 0; fd++)
        if (!tcgetattr(fd, &terminal->modes)) terminal->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    signal(SIGTTOU, SIG_IGN); /* it is taken back from the background */
}

/* As a single process would that reads in the background, this one stops until the user has brought
 * it to the foreground. False: it cannot be had. */
static bool lend_terminal(struct terminal *terminal, pid_t rank0)
{
    const pid_t group = getpgid(rank0);
    if (terminal->fd < 0 || group < 0) return false;
    /* a process group that no shell looks after does not stop */
    for (int n_try = 0; tcgetpgrp(terminal->fd) != getpgrp() && !terminal->lent; n_try++) {
        if (tcgetpgrp(terminal->fd) < 0 || n_try == MAX_STOP) return false;
        kill(0, SIGTTIN);
    }
    terminal->lent = !tcsetpgrp(terminal->fd, group);
    return terminal->lent;
}

static void take_terminal_back(struct terminal *terminal)
{
    if (!terminal->lent) return;
    tcsetpgrp(terminal->fd, getpgrp());
    tcsetattr(terminal->fd, TCSADRAIN, &terminal->modes);
    terminal->lent = false;
}

/* ---- rank 0 ---- */

static enum lm_status listen_for_rank0(struct supervisor *supervisor, int *listener,
                                       struct lm_error *err)
{
    uint64_t token[2];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (getrandom(token, sizeof(token), 0) < 0) return lm_fail_errno(err, "random numbers");
    const int n = snprintf(supervisor->socket_name, sizeof(supervisor->socket_name),
                           "lean-job-%016llx%016llx", (unsigned long long)token[0],
                           (unsigned long long)token[1]);
    memcpy(address.sun_path + 1, supervisor->socket_name, (size_t)n);
    *listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    const socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    if (*listener >= 0 && !bind(*listener, (struct sockaddr *)&address, size) &&
        !listen(*listener, 1))
        return LM_OK;
    return lm_fail_errno(err, "socket for rank 0");
}

static void close_one(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void free_ports(struct supervisor *supervisor)
{
    port_holder_close(supervisor->holder);
    supervisor->holder = NULL;
}

/* Whoever knows the name of the socket is rank 0, if it is this user's. */
static void accept_rank0(struct supervisor *supervisor, struct attempt *attempt)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    const int channel = accept4(attempt->listener, NULL, NULL, SOCK_CLOEXEC);
    if (channel < 0) return;
    free_ports(supervisor); /* it will listen there */
    if (getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.uid != geteuid() ||
        (attempt->rank0 = pidfd_open(peer.pid, 0)) < 0 || !send_descriptors(supervisor, channel)) {
        close(channel);
        return;
    }
    attempt->channel = channel;
    attempt->attached = true;
    attempt->deadline_s = INFINITY;
    close_one(&attempt->listener);
    let_go(supervisor);
}

static pid_t peer_of(int channel)
{
    struct ucred peer = {.pid = 0};
    socklen_t size = sizeof(peer);
    getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    return peer.pid;
}

static void take_message(struct supervisor *supervisor, struct attempt *attempt)
{
    struct job_message message;
    const ssize_t n = recv(attempt->channel, &message, sizeof(message), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n != sizeof(message)) { /* it is gone; mpirun will say how */
        close_one(&attempt->channel);
        if (attempt->deadline_s == INFINITY) attempt->deadline_s = log_now_s() + ending_s;
    } else if (message.kind == JOB_WANTS_TERMINAL) {
        message.value = lend_terminal(&supervisor->terminal, peer_of(attempt->channel));
        send(attempt->channel, &message, sizeof(message), MSG_NOSIGNAL);
    } else if (message.kind == JOB_ENDS) {
        attempt->ended = true;
        attempt->ending = message.value;
        attempt->killed_ranks = message.value == 0; /* they leave in order */
        attempt->deadline_s = log_now_s() + (message.value ? leaving_s : ending_s);
    }
}

/* ---- the others ---- */

static bool runs_this_program(pid_t pid)
{
    char path[40], theirs[4096], ours[4096];
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    const ssize_t n = readlink(path, theirs, sizeof(theirs));
    return n > 0 && readlink("/proc/self/exe", ours, sizeof(ours)) == n &&
           !memcmp(ours, theirs, (size_t)n);
}

/* Of mpirun's children those that are ranks; the others may be on the way to other hosts. */
static void kill_ranks(pid_t mpirun)
{
    char path[60];
    int pid;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)mpirun, (int)mpirun);
    FILE *file = fopen(path, "re");
    while (file && fscanf(file, "%d", &pid) == 1)
        if (runs_this_program(pid)) kill(pid, SIGKILL);
    if (file) fclose(file);
}

/* What was awaited has not come. */
static void force(struct attempt *attempt)
{
    if (attempt->ended && !attempt->killed_ranks) {
        kill_ranks(attempt->mpirun);
        attempt->killed_ranks = true;
    } else {
        kill(-attempt->mpirun, SIGKILL);
        attempt->forced = true;
    }
    attempt->deadline_s = log_now_s() + ending_s;
}

/* ---- signals ---- */

/* To rank 0 as the user sent it. mpirun would end all within a second at a SIGTERM, which is right
 * where nothing has begun; SIGUSR1 it forwards. */
static void pass_on(struct supervisor *supervisor, struct attempt *attempt, int number)
{
    const bool ends = number == SIGINT || number == SIGTERM;
    const bool again = ends && supervisor->asked;
    if (ends || (number == SIGUSR1 && supervisor->config->drains)) supervisor->asked = number;
    if (attempt->rank0 >= 0) {
        pidfd_send_signal(attempt->rank0, number, NULL, 0);
    } else if (supervisor->config->plan->rank0_is_here || again || !supervisor->config->drains) {
        if (ends || number == SIGHUP) kill(attempt->mpirun, SIGTERM);
    } else if (ends || number == SIGUSR1) {
        kill(attempt->mpirun, SIGUSR1);
    }
}

/* Whether a signal came that is not SIGCHLD, and which. */
static bool take_signal(const struct supervisor *supervisor, int *number)
{
    struct signalfd_siginfo info;
    if (read(supervisor->signals, &info, sizeof(info)) != sizeof(info)) return false;
    *number = (int)info.ssi_signo;
    return *number != SIGCHLD;
}

static enum lm_status open_signals(struct supervisor *supervisor, struct lm_error *err)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(watched_signals) / sizeof(watched_signals[0]); i++)
        sigaddset(&set, watched_signals[i]);
    sigprocmask(SIG_BLOCK, &set, &supervisor->mask);
    supervisor->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return supervisor->signals < 0 ? lm_fail_errno(err, "signalfd") : LM_OK;
}

/* ---- one start ---- */

static int milliseconds_to(double deadline_s)
{
    const double left_s = deadline_s - log_now_s();
    return isinf(deadline_s) ? -1 : left_s > 0 ? (int)(left_s * 1e3) + 1 : 0;
}

/* Returns mpirun's status as of waitpid. */
static int watch(struct supervisor *supervisor, struct attempt *attempt)
{
    int status, number;
    for (;;) {
        struct pollfd fds[] = {
            {.fd = supervisor->signals, .events = POLLIN},
            {.fd = attempt->output_fd, .events = POLLIN},
            {.fd = attempt->listener, .events = POLLIN},
            {.fd = attempt->channel, .events = POLLIN},
            {.fd = port_holder_fd(supervisor->holder), .events = POLLIN},
        };
        if (poll(fds, 5, milliseconds_to(attempt->deadline_s)) == 0) force(attempt);
        if (fds[1].revents && !job_output_read(&attempt->output, attempt->output_fd))
            close_one(&attempt->output_fd);
        if (fds[4].revents) port_holder_serve(supervisor->holder);
        if (fds[2].revents) accept_rank0(supervisor, attempt);
        if (fds[3].revents) take_message(supervisor, attempt);
        if (fds[0].revents && take_signal(supervisor, &number))
            pass_on(supervisor, attempt, number);
        if (waitpid(attempt->mpirun, &status, WNOHANG) == attempt->mpirun) return status;
    }
}

/* What is left in the pipe, now that nobody writes to it, or only what should not be there. */
static void read_rest(struct attempt *attempt)
{
    if (attempt->output_fd < 0) return;
    fcntl(attempt->output_fd, F_SETFL, O_NONBLOCK);
    for (struct pollfd fd = {.fd = attempt->output_fd, .events = POLLIN};
         poll(&fd, 1, 0) == 1 && job_output_read(&attempt->output, attempt->output_fd);)
        ;
}

static void note_last_message(struct supervisor *supervisor, struct attempt *attempt)
{
    while (attempt->channel >= 0 && !attempt->ended) {
        struct pollfd fd = {.fd = attempt->channel, .events = POLLIN};
        if (poll(&fd, 1, 0) != 1) break;
        take_message(supervisor, attempt);
    }
}

static bool ends_a_process(int number)
{
    return number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGPIPE ||
           number == SIGQUIT;
}

/* Rank 0 did not come up. */
static enum lm_status fail_start(const struct supervisor *supervisor, const struct attempt *attempt,
                                 struct lm_error *err)
{
    const struct supervisor_config *config = supervisor->config;
    const enum lm_status status = config->plan->hosts ? LM_E_NETWORK : LM_E_FAIL;
    char text[400];
    const bool explained = host_plan_unknown(config->plan, text, sizeof(text)) ||
                           job_output_first(&attempt->output, text, sizeof(text));
    if (config->verbose || !explained) job_output_show(&attempt->output, true);
    if (attempt->forced)
        return lm_fail(err, status, "no rank was up after %s",
                       log_format_seconds(config->startup_timeout_s, text));
    if (!explained) return lm_fail(err, status, "the ranks could not be started");
    lm_fail(err, status, "the ranks could not be started: %s", text);
    return lm_hint(err, "--verbose shows all that mpirun said");
}

/* Whether a rank may have ended with it; mpirun has others for what it could not do. */
static bool is_exit_code(int code)
{
    bool found = false;
    for (int status = 0; status < LM_STATUS_COUNT; status++)
        found |= code == lm_exit_code((enum lm_status)status);
    return found;
}

/* Rank 0 is gone, or on another host, and mpirun's code is all there is. */
static int32_t judge_by_code(const struct supervisor *supervisor, const struct attempt *attempt,
                             int code)
{
    const bool here = supervisor->config->plan->rank0_is_here;
    const int number = code > 128 && code < 128 + NSIG ? code - 128 : 0;
    if (ends_a_process(number)) return -number;
    if (!here && !number && is_exit_code(code)) return code;
    if (!here && !number) {
        char text[400];
        if (host_plan_unknown(supervisor->config->plan, text, sizeof(text)))
            log_line(LOG_ERROR, "the ranks could not be started: %s", text);
        else
            log_line(LOG_ERROR, "the ranks could not be started, mpirun ended with status %d",
                     code);
        return lm_exit_code(LM_E_NETWORK);
    }
    job_output_show(&attempt->output, false);
    if (attempt->forced)
        log_line(LOG_ERROR, "a rank was lost, and mpirun did not end");
    else if (number)
        log_line(LOG_ERROR, "a rank was ended by signal %d (%s)", number, strsignal(number));
    else
        log_line(LOG_ERROR, "rank 0 was lost, mpirun ended with status %d", code);
    return lm_exit_code(LM_E_RANK_LOST);
}

/* How the job ended, from what rank 0 said and mpirun's status; says it where rank 0 could not. */
static enum lm_status judge(const struct supervisor *supervisor, const struct attempt *attempt,
                            int status, int32_t *ending, struct lm_error *err)
{
    const bool here = supervisor->config->plan->rank0_is_here;
    /* mpirun ends a server in order, too, when a rank is gone before the others knew it: then its
     * own status tells, or it does not end by itself */
    const bool in_order = !attempt->forced && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    const bool killed =
        supervisor->config->drains && !supervisor->asked && attempt->ending == 0 && !in_order;
    if (attempt->ended && !killed) {
        *ending = attempt->ending;
        if (*ending == lm_exit_code(LM_E_RANK_LOST)) job_output_show(&attempt->output, false);
    } else if (supervisor->asked && !attempt->attached) {
        *ending = supervisor->config->drains ? 0 : -supervisor->asked;
    } else if (here && !attempt->attached && (WIFEXITED(status) || attempt->forced)) {
        return fail_start(supervisor, attempt, err);
    } else if (WIFSIGNALED(status) && !attempt->forced) {
        log_line(LOG_ERROR, "mpirun was ended by signal %d (%s), and the ranks with it",
                 WTERMSIG(status), strsignal(WTERMSIG(status)));
        *ending = lm_exit_code(LM_E_RANK_LOST);
    } else {
        *ending = judge_by_code(supervisor, attempt, WEXITSTATUS(status));
    }
    return LM_OK;
}

static enum lm_status run_once(struct supervisor *supervisor, int32_t *ending, struct lm_error *err)
{
    const struct supervisor_config *config = supervisor->config;
    const bool here = config->plan->rank0_is_here;
    struct attempt attempt = {
        .listener = -1, .channel = -1, .rank0 = -1, .output_fd = -1, .deadline_s = INFINITY};
    int pipe_fds[2] = {-1, -1};
    enum lm_status status = here ? listen_for_rank0(supervisor, &attempt.listener, err) : LM_OK;
    if (status == LM_OK && here && pipe2(pipe_fds, O_CLOEXEC)) status = lm_fail_errno(err, "pipe");
    const struct mpirun_config mpirun = {
        .plan = config->plan,
        .argc = config->argc,
        .argv = config->argv,
        .interface = config->interface,
        .socket_name = here ? supervisor->socket_name : NULL,
        .allow_root = config->allow_root,
        .output_fd = pipe_fds[1],
    };
    attempt.output_fd = pipe_fds[0];
    if (here) attempt.deadline_s = log_now_s() + config->startup_timeout_s;
    if (status == LM_OK) status = mpirun_start(&mpirun, &attempt.mpirun, err);
    close_one(&pipe_fds[1]);
    if (status == LM_OK) {
        const int mpirun_status = watch(supervisor, &attempt);
        read_rest(&attempt);
        note_last_message(supervisor, &attempt);
        take_terminal_back(&supervisor->terminal);
        status = judge(supervisor, &attempt, mpirun_status, ending, err);
    }
    close_one(&attempt.listener);
    close_one(&attempt.channel);
    close_one(&attempt.rank0);
    close_one(&attempt.output_fd);
    return status;
}

/* ---- again ---- */

/* False: a signal asked for the end meanwhile. */
static bool pause_between(struct supervisor *supervisor, double seconds)
{
    const double end_s = log_now_s() + seconds;
    for (int number; log_now_s() < end_s;) {
        struct pollfd fds[] = {{.fd = supervisor->signals, .events = POLLIN},
                               {.fd = port_holder_fd(supervisor->holder), .events = POLLIN}};
        poll(fds, 2, milliseconds_to(end_s));
        if (fds[1].revents) port_holder_serve(supervisor->holder);
        if (fds[0].revents && take_signal(supervisor, &number) &&
            (number == SIGINT || number == SIGTERM || number == SIGUSR1)) {
            supervisor->asked = number;
            return false;
        }
    }
    return true;
}

/* Whether to start again after a lost rank, having waited. failures: times of the last ones. */
static bool goes_on(struct supervisor *supervisor, double failures[MAX_FAILURE], unsigned *n)
{
    const double now_s = log_now_s();
    char seconds[24];
    if (*n && now_s - failures[(*n - 1) % MAX_FAILURE] > failure_window_s) *n = 0;
    failures[(*n)++ % MAX_FAILURE] = now_s;
    if (*n >= MAX_FAILURE && now_s - failures[*n % MAX_FAILURE] < failure_window_s) {
        log_line(LOG_ERROR, "the job failed %d times within %s and is not started again",
                 MAX_FAILURE, log_format_seconds(failure_window_s, seconds));
        return false;
    }
    const double pause_s = fmin(pause_s_max, exp2(*n - 1));
    log_warning("starting again in %s", log_format_seconds(pause_s, seconds));
    if (supervisor->config->n_hold)
        supervisor->holder = port_holder_open(supervisor->config->hold, supervisor->config->n_hold,
                                              pause_s + START_S);
    return pause_between(supervisor, pause_s);
}

static enum lm_status run_again(struct supervisor *supervisor, int32_t *ending,
                                struct lm_error *err)
{
    double failures[MAX_FAILURE];
    unsigned n_failure = 0;
    for (;;) {
        const enum lm_status status = run_once(supervisor, ending, err);
        if (status != LM_OK || *ending != lm_exit_code(LM_E_RANK_LOST) || supervisor->asked ||
            !supervisor->config->restart || !goes_on(supervisor, failures, &n_failure))
            return status;
    }
}

enum lm_status supervisor_run(const struct supervisor_config *config, int32_t *ending,
                              struct lm_error *err)
{
    struct supervisor supervisor = {.config = config, .signals = -1};
    const struct mpirun_config mpirun = {.plan = config->plan,
                                         .argc = config->argc,
                                         .argv = config->argv,
                                         .allow_root = config->allow_root};
    enum lm_status status = mpirun_check(&mpirun, err);
    if (status != LM_OK) return status;
    list_descriptors(&supervisor.inherited);
    find_terminal(&supervisor.terminal);
    status = open_signals(&supervisor, err);
    if (status == LM_OK) status = run_again(&supervisor, ending, err);
    free_ports(&supervisor);
    sigprocmask(SIG_SETMASK, &supervisor.mask, NULL); /* this process may have to end by one */
    close_one(&supervisor.signals);
    close_one(&supervisor.terminal.fd);
    return status;
}
