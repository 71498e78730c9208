/* Lock files with a heartbeat. */
#include "coordinator/hub/hub_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/log.h"

/* The text of a lock: numbers are of fixed width, so that each heartbeat has the same length and
 * a reader never sees half of it. */
#define LOCK_FORMAT "lean-lock 1 %016llx %020lld %010ld %020llu %020llu %s\n"
enum { TEXT_MAX = 512 };

struct holder {
    unsigned long long id; /* random */
    long long beat;        /* seconds since 1970 */
    long pid;
    unsigned long long started, space; /* of the process, and its space of process numbers */
    char host[256];
};

struct hub_lock {
    char *path, *aside;
    struct holder self;
    double beat_s; /* monotonic */
};

/* ---- processes ---- */

/* Field 22 of /proc/PID/stat: with it a process is told from a later one of the same number. */
static unsigned long long start_of(long pid)
{
    char path[64], text[1024];
    unsigned long long started = 0;
    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    const size_t n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *at = strrchr(text, ')'); /* the name before may hold anything */
    if (at && sscanf(at + 1,
                     " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                     "%*d %llu",
                     &started) != 1)
        started = 0;
    return started;
}

static struct holder describe_self(void)
{
    struct stat space;
    struct holder self = {.pid = getpid(), .started = start_of(getpid())};
    if (getrandom(&self.id, sizeof(self.id), 0) != sizeof(self.id))
        self.id = (unsigned long long)time(NULL) << 20 ^ (unsigned long long)self.pid;
    if (!stat("/proc/self/ns/pid", &space)) self.space = space.st_ino;
    if (gethostname(self.host, sizeof(self.host) - 1) || !*self.host) strcpy(self.host, "unknown");
    return self;
}

/* Whether the holder was a process of this host, and is no more. */
static bool is_gone(const struct holder *holder, const struct holder *self)
{
    if (strcmp(holder->host, self->host) || holder->space != self->space || holder->pid <= 0)
        return false;
    return (kill((pid_t)holder->pid, 0) && errno == ESRCH) ||
           (holder->started && start_of(holder->pid) != holder->started);
}

/* ---- the file ---- */

static int format_lock(const struct holder *holder, char text[TEXT_MAX])
{
    return snprintf(text, TEXT_MAX, LOCK_FORMAT, holder->id, holder->beat, holder->pid,
                    holder->started, holder->space, holder->host);
}

/* False: there is no lock. One that cannot be read, being of another user, no file, or created and
 * not yet written, counts as held by nobody known, since it changed. */
static bool read_lock(const char *path, struct holder *out)
{
    char text[TEXT_MAX];
    struct stat info;
    if (lstat(path, &info)) return false;
    *out = (struct holder){.host = "unknown", .beat = info.st_mtime};
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* may be a pipe */
    if (fd < 0) return true;
    const ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    if (sscanf(text, "lean-lock 1 %llx %lld %ld %llu %llu %255s", &out->id, &out->beat, &out->pid,
               &out->started, &out->space, out->host) != 6)
        *out = (struct holder){.host = "unknown", .beat = info.st_mtime};
    for (char *c = out->host; *c; c++) /* it is shown */
        if ((unsigned char)*c < 33 || (unsigned char)*c > 126) *c = '?';
    return true;
}

/* LM_E_BUSY: it is there. */
static enum lm_status create_lock(struct hub_lock *lock, struct lm_error *err)
{
    char text[TEXT_MAX];
    const int fd = open(lock->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST) return LM_E_BUSY;
    if (fd < 0) return lm_fail_errno(err, "%s", lock->path);
    lock->self.beat = time(NULL);
    lock->beat_s = log_now_s();
    const int n = format_lock(&lock->self, text);
    enum lm_status status = LM_OK;
    if (write(fd, text, (size_t)n) != n) {
        status = lm_fail_errno(err, "%s", lock->path);
        unlink(lock->path);
    }
    close(fd);
    return status;
}

/* Moves a stale lock out of the way. Should it have been another's new one, that is put back. What
 * a process that was killed here leaves aside goes when the lock is taken. */
static void remove_stale(const struct hub_lock *lock, const struct holder *stale)
{
    struct holder moved;
    if (rename(lock->path, lock->aside)) return;
    if (read_lock(lock->aside, &moved) && moved.id != stale->id && link(lock->aside, lock->path))
        log_debug("%s: taken over by another meanwhile", lock->path);
    unlink(lock->aside);
}

/* ---- waiting ---- */

struct watch {
    unsigned long long id;
    long long beat;
    double since_s; /* this beat was first seen */
};

static bool is_stale(const struct holder *holder, const struct holder *self, struct watch *watch)
{
    const double now_s = log_now_s();
    if (holder->id != watch->id || holder->beat != watch->beat)
        *watch = (struct watch){holder->id, holder->beat, now_s};
    return time(NULL) - holder->beat > HUB_LOCK_STALE_S ||
           now_s - watch->since_s > HUB_LOCK_STALE_S || is_gone(holder, self);
}

static enum lm_status wait_for_lock(struct hub_lock *lock, hub_lock_wait_fn wait, void *context,
                                    struct lm_error *err)
{
    struct watch watch = {.since_s = log_now_s()};
    struct holder holder;
    char text[320];
    enum lm_status status;
    while ((status = create_lock(lock, err)) == LM_E_BUSY) {
        if (!read_lock(lock->path, &holder)) continue;
        if (is_stale(&holder, &lock->self, &watch)) {
            log_verbose("%s: left behind by process %ld on %s, taken over", lock->path, holder.pid,
                        holder.host);
            remove_stale(lock, &holder);
            continue;
        }
        snprintf(text, sizeof(text), "process %ld on %s", holder.pid, holder.host);
        status = wait(context, lock->path, text, err);
        if (status != LM_OK) return status;
    }
    return status;
}

static void free_lock(struct hub_lock *lock)
{
    free(lock->path);
    free(lock->aside);
    free(lock);
}

enum lm_status hub_lock_acquire(struct hub_lock **out, const char *path, hub_lock_wait_fn wait,
                                void *context, struct lm_error *err)
{
    struct hub_lock *lock = calloc(1, sizeof(*lock));
    if (!lock) return lm_fail(err, LM_E_NO_MEM, "no memory for a lock");
    lock->path = strdup(path);
    if (asprintf(&lock->aside, "%s.stale", path) < 0) lock->aside = NULL;
    lock->self = describe_self();
    const enum lm_status status = lock->path && lock->aside
                                      ? wait_for_lock(lock, wait, context, err)
                                      : lm_fail(err, LM_E_NO_MEM, "no memory for a lock");
    if (status != LM_OK) {
        free_lock(lock);
        return status;
    }
    unlink(lock->aside);
    *out = lock;
    return LM_OK;
}

enum lm_status hub_lock_beat(struct hub_lock *lock, struct lm_error *err)
{
    struct holder found;
    char text[TEXT_MAX];
    if (log_now_s() - lock->beat_s < HUB_LOCK_BEAT_S) return LM_OK;
    if (!read_lock(lock->path, &found) || found.id != lock->self.id)
        return lm_fail(err, LM_E_BUSY, "%s: another process has taken it over", lock->path);
    lock->self.beat = time(NULL);
    lock->beat_s = log_now_s();
    const int n = format_lock(&lock->self, text);
    const int fd = open(lock->path, O_WRONLY | O_CLOEXEC);
    const bool good = fd >= 0 && pwrite(fd, text, (size_t)n, 0) == n;
    if (fd >= 0) close(fd);
    return good ? LM_OK : lm_fail_errno(err, "%s", lock->path);
}

void hub_lock_release(struct hub_lock *lock)
{
    struct holder found;
    if (!lock) return;
    if (read_lock(lock->path, &found) && found.id == lock->self.id) unlink(lock->path);
    free_lock(lock);
}
