/* The guard: one poll() over the sockets, woken for heartbeats and by an eventfd. It reads all that
 * has come before it judges silence, and does not count the time in which it was held up itself, so
 * that this does not look like the silence of others. */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/base/progress.h"
#include "proto/transport/liveness.h"

/* On the sockets: a kind, the length of a text, the text. */
enum message_kind {
    MESSAGE_BEAT,
    MESSAGE_ABORT, /* to rank 0, with why */
    MESSAGE_LOST,  /* from rank 0, with who and why */
    MESSAGE_BYE    /* from a worker: I am done; from rank 0: all are */
};
struct message {
    uint16_t kind, n_bytes;
    char text[1000];
};
enum { MESSAGE_HEAD = 4 };

/* What comes with a heartbeat, where steps are watched. */
struct beat {
    uint64_t n_moved, step;
    uint32_t state, unused;
};

struct peer {
    uint32_t rank;
    int fd, pid_fd; /* -1: closed; not of this machine */
    double heard_s;
    bool said_bye;
    struct beat beat; /* the last */
    size_t n_read;    /* bytes of message */
    struct message message;
};

struct liveness {
    struct liveness_config config;
    pthread_t thread;
    int wake; /* eventfd: something under lock has changed */
    /* the guard's own */
    bool lost_now;     /* lost() was called */
    struct peer *peer; /* [n_peer] */
    uint32_t n_peer;
    double judged_s;
    uint64_t n_own, n_all;           /* moves of this rank, of all, when they were seen last, */
    double own_moved_s, all_moved_s; /* and when that was */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    bool stopping, aborting, leaving, all_bye;
    struct lm_error lost;  /* LM_OK: nobody is */
    struct lm_error abort; /* why, while aborting */
};

/* struct pidfd_info of Linux 6.15, which tells how a process that is no child of ours has ended. */
struct exit_info {
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
    uint32_t unused[2];
};
#define EXIT_INFO_GET _IOWR(0xFF, 11, struct exit_info)
#define EXIT_INFO_HAS_CODE (1u << 3)

/* How the process behind pid_fd ended, or that its connection has. The kernel knows once its parent
 * has reaped it: a moment later than its sockets close. */
static void describe_end(const struct peer *peer, char *text, size_t size)
{
    snprintf(text, size, "connection closed");
    for (int i = 0; peer->pid_fd >= 0 && i < 20; i++) {
        struct exit_info info = {.mask = EXIT_INFO_HAS_CODE};
        if (ioctl(peer->pid_fd, EXIT_INFO_GET, &info) == 0 && info.mask & EXIT_INFO_HAS_CODE) {
            if (info.exit_code & 0x7F)
                snprintf(text, size, "exited by signal %d", info.exit_code & 0x7F);
            else
                snprintf(text, size, "exited with code %d", info.exit_code >> 8 & 0xFF);
            return;
        }
        usleep(5000);
    }
}

/* What does not fit now is lost: whoever does not read is silent, too. A text follows a few beats
 * only, and the socket holds thousands. */
static void send_message(int fd, enum message_kind kind, const void *bytes, size_t n_bytes)
{
    struct message message = {.kind = (uint16_t)kind};
    if (fd < 0) return;
    message.n_bytes = (uint16_t)(n_bytes < sizeof(message.text) ? n_bytes : sizeof(message.text));
    if (n_bytes) memcpy(message.text, bytes, message.n_bytes);
    if (send(fd, &message, MESSAGE_HEAD + message.n_bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) return;
}

static void send_to_all(struct liveness *live, enum message_kind kind, const char *text)
{
    for (uint32_t i = 0; i < live->n_peer; i++)
        send_message(live->peer[i].fd, kind, text, text ? strlen(text) : 0);
}

/* A page of a mapped file that came from disk is a move, too. */
static struct beat own_beat(const struct liveness *live)
{
    const struct progress *progress = live->config.progress;
    struct rusage usage = {.ru_majflt = 0};
    if (!progress) return (struct beat){.step = 0};
    getrusage(RUSAGE_SELF, &usage);
    return (struct beat){.n_moved = progress->n_moved + (uint64_t)usage.ru_majflt,
                         .step = progress->step,
                         .state = progress->state};
}

static void send_beats(struct liveness *live)
{
    const struct beat beat = own_beat(live);
    for (uint32_t i = 0; i < live->n_peer; i++)
        send_message(live->peer[i].fd, MESSAGE_BEAT, &beat, sizeof(beat));
}

static void default_leave(void *context, const struct lm_error *why)
{
    (void)context;
    (void)why;
    _exit(11);
}

/* The job is over, for this reason. */
static void lose(struct liveness *live, const char *text, bool leave)
{
    if (live->lost_now) return;
    live->lost_now = true;
    struct lm_error why;
    lm_fail(&why, LM_E_RANK_LOST, "%s", text);
    if (live->config.rank == 0) send_to_all(live, MESSAGE_LOST, text);
    live->config.lost(live->config.context, &why);
    pthread_mutex_lock(&live->lock);
    live->lost = why;
    pthread_cond_broadcast(&live->changed);
    pthread_mutex_unlock(&live->lock);
    if (leave && live->config.rank != 0) live->config.leave(live->config.context, &why);
}

__attribute__((format(printf, 3, 4))) static void
lose_peer(struct liveness *live, const struct peer *peer, const char *format, ...)
{
    char what[600], text[900];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    snprintf(text, sizeof(text), "rank %u (host %s): %s", peer->rank,
             live->config.card[peer->rank].host, what);
    lose(live, text, true);
}

static void take_message(struct liveness *live, struct peer *peer)
{
    const struct message *message = &peer->message;
    const int n = message->n_bytes;
    switch (message->kind) {
    case MESSAGE_BEAT:
        if (n == sizeof(peer->beat)) memcpy(&peer->beat, message->text, sizeof(peer->beat));
        break;
    case MESSAGE_BYE:
        peer->said_bye = true;
        break;
    case MESSAGE_ABORT:
        lose_peer(live, peer, "%.*s", n, message->text);
        break;
    case MESSAGE_LOST: {
        char text[sizeof(message->text) + 1];
        snprintf(text, sizeof(text), "%.*s", n, message->text);
        lose(live, text, true);
        break;
    }
    default:
        lose_peer(live, peer, "sends malformed heartbeats");
        break;
    }
}

static void close_peer(struct liveness *live, struct peer *peer)
{
    peer->fd = -1;
    if (peer->said_bye) return;
    char end[100];
    describe_end(peer, end, sizeof(end));
    lose_peer(live, peer, "%s", end);
}

/* Takes all messages that have come whole. */
static void read_peer(struct liveness *live, struct peer *peer)
{
    while (peer->fd >= 0) {
        struct message *message = &peer->message;
        const size_t n_whole =
            peer->n_read < MESSAGE_HEAD ? MESSAGE_HEAD : MESSAGE_HEAD + message->n_bytes;
        if (n_whole > sizeof(*message)) {
            lose_peer(live, peer, "sends malformed heartbeats");
            return;
        }
        if (peer->n_read >= MESSAGE_HEAD && peer->n_read == n_whole) {
            take_message(live, peer);
            peer->n_read = 0;
            continue;
        }
        const ssize_t n =
            recv(peer->fd, (char *)message + peer->n_read, n_whole - peer->n_read, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            close_peer(live, peer);
            return;
        }
        peer->n_read += (size_t)n;
        peer->heard_s = log_now_s();
    }
}

/* Time in which this guard did not run is nobody's silence: all ranks may have been stopped, with
 * their terminal or their machine. */
static void judge_silence(struct liveness *live, double now_s, double held_s)
{
    for (uint32_t i = 0; i < live->n_peer; i++) {
        struct peer *peer = &live->peer[i];
        peer->heard_s = fmin(peer->heard_s + held_s, now_s);
        const double silent_s = now_s - peer->heard_s;
        if (peer->fd >= 0 && !peer->said_bye && silent_s > live->config.timeout_s)
            lose_peer(live, peer, "silent for %.1f s", silent_s);
    }
}

/* Where everyone stands, as far as it is known here. */
static void log_state(struct liveness *live)
{
    for (uint32_t i = 0; i < live->n_peer; i++) {
        const struct peer *peer = &live->peer[i];
        log_info("rank %u %s %llu; moved %llu times so far", peer->rank,
                 progress_state_name(peer->beat.state), (unsigned long long)peer->beat.step,
                 (unsigned long long)peer->beat.n_moved);
    }
    if (live->config.progress) progress_log(live->config.progress);
    if (live->config.log_state) live->config.log_state(live->config.context);
}

static void abort_job(struct liveness *live, const struct lm_error *why)
{
    if (live->lost_now) return;
    const uint32_t rank = live->config.rank;
    if (rank != 0) send_to_all(live, MESSAGE_ABORT, why->message);
    char text[900];
    snprintf(text, sizeof(text), "rank %u (host %s): %.600s", rank, live->config.card[rank].host,
             why->message);
    lose(live, text, false);
}

/* The step thread does not come back: this rank leaves by itself. */
static void stall(struct liveness *live, const struct lm_error *why)
{
    log_line(LOG_ERROR, "%s", why->message);
    log_state(live);
    abort_job(live, why);
    if (live->config.rank != 0) live->config.leave(live->config.context, why);
}

/* held_s: in which this process did not run. */
static void judge_steps(struct liveness *live, double now_s, double held_s)
{
    const double limit_s = live->config.stall_timeout_s;
    if (!live->config.progress || !limit_s || live->lost_now) return;
    struct lm_error why;
    const struct beat own = own_beat(live);
    uint64_t n_all = own.n_moved;
    for (uint32_t i = 0; i < live->n_peer; i++)
        n_all += live->peer[i].beat.n_moved;
    live->own_moved_s = own.n_moved != live->n_own || own.state != PROGRESS_COMPUTING
                            ? now_s
                            : fmin(live->own_moved_s + held_s, now_s);
    live->all_moved_s = n_all != live->n_all || !live->config.progress->n_open
                            ? now_s
                            : fmin(live->all_moved_s + held_s, now_s);
    live->n_own = own.n_moved;
    live->n_all = n_all;
    if (now_s - live->own_moved_s > limit_s) {
        lm_fail(&why, LM_E_RANK_LOST, "step %llu has not moved for %.1f s",
                (unsigned long long)own.step, now_s - live->own_moved_s);
        stall(live, &why);
    } else if (now_s - live->all_moved_s > limit_s + 4 * live->config.heartbeat_s) {
        lm_fail(&why, LM_E_RANK_LOST, "no rank has moved for %.1f s, and tokens are awaited",
                now_s - live->all_moved_s);
        stall(live, &why);
    }
}

/* Rank 0 says goodbye when everybody has; a worker when it is told to. */
static void say_goodbye(struct liveness *live, bool *said)
{
    bool all = true;
    for (uint32_t i = 0; i < live->n_peer; i++)
        all &= live->peer[i].said_bye;
    if (!*said && (all || live->config.rank != 0)) {
        send_to_all(live, MESSAGE_BYE, NULL);
        *said = true;
    }
    if (!all) return;
    pthread_mutex_lock(&live->lock);
    live->all_bye = true;
    pthread_cond_broadcast(&live->changed);
    pthread_mutex_unlock(&live->lock);
}

/* One look at the clock, so that no moment in which this process was stopped is left out. */
static void judge(struct liveness *live)
{
    const double now_s = log_now_s(), since_s = now_s - live->judged_s;
    const double held_s = since_s < 2 * live->config.heartbeat_s ? 0 : since_s;
    live->judged_s = now_s;
    judge_silence(live, now_s, held_s);
    judge_steps(live, now_s, held_s);
}

static void *guard(void *context)
{
    struct liveness *live = context;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    struct pollfd *ready = calloc(live->n_peer + 1, sizeof(*ready));
    double beat_s = 0;
    bool stopping = !ready, said_bye = false;
    while (!stopping) {
        double now_s = log_now_s();
        if (now_s >= beat_s) {
            send_beats(live);
            beat_s = now_s + live->config.heartbeat_s;
            if (live->config.wants_state && live->config.wants_state()) log_state(live);
        }
        for (uint32_t i = 0; i < live->n_peer; i++)
            ready[i] = (struct pollfd){.fd = live->peer[i].fd, .events = POLLIN};
        ready[live->n_peer] = (struct pollfd){.fd = live->wake, .events = POLLIN};
        poll(ready, live->n_peer + 1, (int)((beat_s - now_s) * 1e3) + 1);
        for (uint32_t i = 0; i < live->n_peer; i++)
            if (ready[i].revents) read_peer(live, &live->peer[i]);
        judge(live);
        uint64_t drained;
        if (read(live->wake, &drained, sizeof(drained)) < 0) drained = 0;
        pthread_mutex_lock(&live->lock);
        stopping = live->stopping;
        const bool aborting = live->aborting, leaving = live->leaving;
        const struct lm_error why = live->abort;
        pthread_mutex_unlock(&live->lock);
        if (aborting) abort_job(live, &why);
        if (leaving && !live->lost_now) say_goodbye(live, &said_bye);
    }
    free(ready);
    return NULL;
}

static void wake_guard(struct liveness *live)
{
    const uint64_t one = 1;
    if (write(live->wake, &one, sizeof(one)) < 0) return; /* it is awake */
}

static void open_peers(struct liveness *live)
{
    const struct liveness_config *config = &live->config;
    const double now_s = live->judged_s = log_now_s();
    live->own_moved_s = live->all_moved_s = now_s;
    for (uint32_t i = 0; i < config->n_rank; i++) {
        if (config->fd[i] < 0 || i == config->rank) continue;
        struct peer *peer = &live->peer[live->n_peer++];
        *peer = (struct peer){.rank = i, .fd = config->fd[i], .pid_fd = -1, .heard_s = now_s};
        if (config->card[i].pid_space == config->card[config->rank].pid_space)
            peer->pid_fd = (int)syscall(SYS_pidfd_open, config->card[i].pid, 0);
    }
}

enum lm_status liveness_start(struct liveness **out, const struct liveness_config *config,
                              struct lm_error *err)
{
    enum lm_status status;
    struct liveness *live = calloc(1, sizeof(*live));
    if (!live) return lm_fail(err, LM_E_NO_MEM, "liveness: no memory");
    live->config = *config;
    if (!live->config.leave) live->config.leave = default_leave;
    live->peer = calloc(config->n_rank, sizeof(*live->peer));
    live->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!live->peer || live->wake < 0) {
        status = lm_fail_errno(err, "liveness");
        goto free_live;
    }
    open_peers(live);
    pthread_mutex_init(&live->lock, NULL);
    pthread_cond_init(&live->changed, NULL);
    const int failure = pthread_create(&live->thread, NULL, guard, live);
    if (failure) {
        errno = failure;
        status = lm_fail_errno(err, "liveness: thread");
        goto close_peers;
    }
    *out = live;
    return LM_OK;

close_peers:
    pthread_cond_destroy(&live->changed);
    pthread_mutex_destroy(&live->lock);
    for (uint32_t i = 0; i < live->n_peer; i++)
        if (live->peer[i].pid_fd >= 0) close(live->peer[i].pid_fd);
free_live:
    if (live->wake >= 0) close(live->wake);
    free(live->peer);
    free(live);
    return status;
}

void liveness_abort(struct liveness *live, const struct lm_error *why)
{
    pthread_mutex_lock(&live->lock);
    if (!live->aborting) live->abort = *why;
    live->aborting = true;
    pthread_mutex_unlock(&live->lock);
    wake_guard(live);
}

enum lm_status liveness_goodbye(struct liveness *live, struct lm_error *err)
{
    pthread_mutex_lock(&live->lock);
    live->leaving = true;
    wake_guard(live);
    while (!live->all_bye && live->lost.status == LM_OK)
        pthread_cond_wait(&live->changed, &live->lock);
    const enum lm_status status = live->lost.status;
    if (status != LM_OK && err) *err = live->lost;
    pthread_mutex_unlock(&live->lock);
    return status;
}

void liveness_stop(struct liveness *live)
{
    if (!live) return;
    pthread_mutex_lock(&live->lock);
    live->stopping = true;
    pthread_mutex_unlock(&live->lock);
    wake_guard(live);
    pthread_join(live->thread, NULL);
    for (uint32_t i = 0; i < live->n_peer; i++)
        if (live->peer[i].pid_fd >= 0) close(live->peer[i].pid_fd);
    close(live->wake);
    pthread_cond_destroy(&live->changed);
    pthread_mutex_destroy(&live->lock);
    free(live->peer);
    free(live);
}
