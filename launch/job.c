/* The end of a job's socket that is inside rank 0. */
#include "launch/job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "launch/config.h"
#include "proto/base/log.h"
#include "proto/transport/world.h"

/* The process's, for handlers and for whoever ends it; set before either. -1: no supervisor here.
 */
static int channel = -1;
static bool is_worker; /* a rank, and not 0 */
static atomic_bool state_wanted;

static const int terminal_signals[] = {SIGTTIN, SIGTTOU};

/* ---- the terminal ---- */

static void ignore_terminal_signals(void)
{
    for (size_t i = 0; i < sizeof(terminal_signals) / sizeof(terminal_signals[0]); i++)
        signal(terminal_signals[i], SIG_IGN);
}

/* What was interrupted is tried again afterwards, by whichever thread. Without the terminal reading
 * fails with EIO from now on, and writing is not stopped. */
static void ask_for_terminal(int number)
{
    const int saved_errno = errno;
    struct job_message message = {.kind = JOB_WANTS_TERMINAL};
    (void)number;
    if (send(channel, &message, sizeof(message), MSG_NOSIGNAL) < 0 ||
        recv(channel, &message, sizeof(message), 0) != sizeof(message) || !message.value)
        ignore_terminal_signals();
    errno = saved_errno;
}

static void watch_terminal_signals(void)
{
    struct sigaction action = {.sa_handler = ask_for_terminal, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < sizeof(terminal_signals) / sizeof(terminal_signals[0]); i++)
        sigaction(terminal_signals[i], &action, NULL);
    signal(SIGTSTP, SIG_IGN); /* the others would take a stopped rank for a lost one */
}

/* ---- descriptors ---- */

static enum lm_status connect_to(const char *name, struct lm_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t n = strlen(name);
    if (n >= sizeof(address.sun_path))
        return lm_fail(err, LM_E_USAGE, JOB_SOCKET_VARIABLE " is too long");
    memcpy(address.sun_path + 1, name, n);
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel < 0) return lm_fail_errno(err, "socket");
    const socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
    if (!connect(channel, (struct sockaddr *)&address, size)) return LM_OK;
    return lm_fail_errno(err, "rank 0 cannot reach the process that started it");
}

/* descriptors: [n], received; names: what they shall be called. Both may overlap, and so may the
 * channel's own number: first all go where no name is. */
static enum lm_status rename_all(const struct job_descriptors *names, int *descriptors,
                                 struct lm_error *err)
{
    int above = STDERR_FILENO;
    for (int i = 0; i < names->n; i++)
        if (names->number[i] > above) above = names->number[i];
    for (int i = -1; i < names->n; i++) {
        int *const fd = i < 0 ? &channel : &descriptors[i];
        const int moved = fcntl(*fd, F_DUPFD_CLOEXEC, above + 1);
        if (moved < 0) return lm_fail_errno(err, "descriptors of the terminal");
        close(*fd);
        *fd = moved;
    }
    for (int i = 0; i < names->n; i++) {
        if (dup2(descriptors[i], names->number[i]) < 0)
            return lm_fail_errno(err, "descriptor %d", names->number[i]);
        close(descriptors[i]);
    }
    return LM_OK;
}

static enum lm_status receive_descriptors(struct lm_error *err)
{
    struct job_descriptors names;
    int descriptors[JOB_MAX_DESCRIPTOR];
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(descriptors))];
    } control;
    struct iovec piece = {.iov_base = &names, .iov_len = sizeof(names)};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n;
    do
        n = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    const struct cmsghdr *head = n == sizeof(names) ? CMSG_FIRSTHDR(&message) : NULL;
    if (!head || head->cmsg_type != SCM_RIGHTS || names.n < 0 || names.n > JOB_MAX_DESCRIPTOR ||
        head->cmsg_len != CMSG_LEN((size_t)names.n * sizeof(int)))
        return lm_fail(err, LM_E_FAIL, "rank 0 got no terminal from the process that started it");
    memcpy(descriptors, CMSG_DATA(head), (size_t)names.n * sizeof(int));
    return rename_all(&names, descriptors, err);
}

/* ---- the life of a rank ---- */

static void want_state(int number)
{
    (void)number;
    atomic_store(&state_wanted, true);
}

/* Rank 0 ends the job in order; until it has, a worker that left would be a loss. */
static void leave_signals_to_rank0(void)
{
    const struct sigaction want = {.sa_handler = want_state, .sa_flags = SA_RESTART};
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        signal(signals[i], SIG_IGN);
    sigaction(SIGUSR2, &want, NULL);
}

bool job_wants_state(void)
{
    return atomic_exchange(&state_wanted, false);
}

enum lm_status job_enter(struct lm_error *err)
{
    uint32_t rank, n_rank;
    char prefix[24];
    const char *name = config_environment(JOB_SOCKET_VARIABLE);
    if (!world_mpi_launched(&rank, &n_rank)) return LM_OK;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (rank > 0) {
        snprintf(prefix, sizeof(prefix), "[%u] ", rank);
        log_set_prefix(prefix);
        is_worker = true;
        leave_signals_to_rank0();
        return LM_OK;
    }
    if (!name) return LM_OK;
    enum lm_status status = connect_to(name, err);
    if (status == LM_OK) status = receive_descriptors(err);
    if (status == LM_OK) watch_terminal_signals();
    unsetenv(JOB_SOCKET_VARIABLE);
    return status;
}

/* What started the ranks of this host waits for mpirun, for many minutes if the link is cut. */
static void end_daemon(void)
{
    static const char daemon[] = "orted\n";
    char path[40], name[sizeof(daemon)];
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)getppid());
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    const ssize_t n = read(fd, name, sizeof(name));
    close(fd);
    if (n == sizeof(daemon) - 1 && !memcmp(name, daemon, (size_t)n)) kill(getppid(), SIGTERM);
}

void job_leave(int32_t ending)
{
    if (is_worker && ending == lm_exit_code(LM_E_RANK_LOST)) end_daemon();
    const struct job_message message = {.kind = JOB_ENDS, .value = ending};
    if (channel >= 0) send(channel, &message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT);
}
