/* The inbox, the step thread, and the count of places. */
#include "coordinator/sched/dispatcher.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "proto/base/log.h"

struct dispatcher {
    struct dispatcher_config config;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* the step thread: something came */
    pthread_cond_t idle; /* dispatcher_drain: nothing is under way */
    /* guarded by lock */
    struct request *inbox, **inbox_end; /* submitted, not yet seen by the scheduler */
    uint32_t n_inbox;
    uint32_t n_reserved; /* places taken by requests that are still to be submitted */
    bool woken, draining, cut, stopping;
    struct lm_error failure;      /* what everything ends with; LM_OK: it does not */
    struct scheduler_stats stats; /* as of the last step */
    double release_interval_s;    /* moving average between two ends of requests; 0: none known */
    /* of the step thread */
    double released_s;
    uint64_t n_ended;
};

/* ---- the step thread ---------------------------------------------------------------------- */

static void end_unstarted(struct request *request, const struct lm_error *err)
{
    request->status = err->status;
    request->error = *err;
    request->end_s = log_now_s();
    request->done = true;
    if (request->on_end) request->on_end(request->context);
}

/* Returns how many there were. */
static uint32_t submit_all(struct dispatcher *dispatcher, struct request *request)
{
    struct lm_error err;
    uint32_t n = 0;
    while (request) {
        struct request *const next = request->next;
        if (scheduler_submit(dispatcher->config.scheduler, request, &err) != LM_OK)
            end_unstarted(request, &err);
        request = next;
        n++;
    }
    return n;
}

/* What is not wanted any more: all after a failure, everything that waits when draining, all when
 * cut, and those that have waited too long. */
static void fail_some(struct dispatcher *dispatcher, const struct lm_error *failure, bool draining,
                      bool cut)
{
    struct lm_error err;
    struct scheduler *const scheduler = dispatcher->config.scheduler;
    const double timeout_s = dispatcher->config.queue_timeout_s;
    if (failure->status != LM_OK) {
        scheduler_fail(scheduler, INFINITY, true, failure);
    } else if (draining || cut) {
        lm_fail(&err, LM_E_INTERRUPTED, "the server is shutting down");
        scheduler_fail(scheduler, INFINITY, cut, &err);
    } else if (timeout_s > 0) {
        lm_fail(&err, LM_E_BUSY, "no free slot within %g s", timeout_s);
        scheduler_fail(scheduler, log_now_s() - timeout_s, false, &err);
    }
}

/* The mean time between ends, the last ones weighing most. */
static void note_ends_locked(struct dispatcher *dispatcher, const struct scheduler_stats *stats)
{
    const uint64_t n = stats->n_ended - dispatcher->n_ended;
    if (!n) return;
    const double now_s = log_now_s(), interval_s = (now_s - dispatcher->released_s) / (double)n;
    double *const mean_s = &dispatcher->release_interval_s;
    if (dispatcher->n_ended) *mean_s = *mean_s > 0 ? 0.8 * *mean_s + 0.2 * interval_s : interval_s;
    dispatcher->n_ended = stats->n_ended;
    dispatcher->released_s = now_s;
}

static bool is_idle_locked(const struct dispatcher *dispatcher)
{
    return !dispatcher->n_inbox && !dispatcher->stats.n_waiting && !dispatcher->stats.n_running;
}

static void publish_locked(struct dispatcher *dispatcher, const struct scheduler_stats *stats)
{
    note_ends_locked(dispatcher, stats);
    dispatcher->stats = *stats;
    if (is_idle_locked(dispatcher)) pthread_cond_broadcast(&dispatcher->idle);
}

static void set_deadline(double after_s, struct timespec *until)
{
    clock_gettime(CLOCK_MONOTONIC, until);
    const double end_s = (double)until->tv_sec + (double)until->tv_nsec * 1e-9 + after_s;
    until->tv_sec = (time_t)end_s;
    until->tv_nsec = (long)((end_s - floor(end_s)) * 1e9);
}

static bool is_called_locked(const struct dispatcher *dispatcher)
{
    return dispatcher->inbox || dispatcher->woken;
}

/* Waits until something comes. Meanwhile the runner does what it can for later steps, in pieces so
 * short that who comes does not notice. */
static void wait_locked(struct dispatcher *dispatcher)
{
    struct timespec until;
    bool more = true, any = false;
    while (!is_called_locked(dispatcher) && more) {
        pthread_mutex_unlock(&dispatcher->lock);
        more = scheduler_idle(dispatcher->config.scheduler);
        if (any && !more && dispatcher->config.on_idle)
            dispatcher->config.on_idle(dispatcher->config.context);
        any = more;
        pthread_mutex_lock(&dispatcher->lock);
        set_deadline(STEP_IDLE_S, &until);
        if (more && !is_called_locked(dispatcher))
            pthread_cond_timedwait(&dispatcher->wake, &dispatcher->lock, &until);
    }
    while (!is_called_locked(dispatcher))
        pthread_cond_wait(&dispatcher->wake, &dispatcher->lock);
}

static void *run_steps(void *context)
{
    struct dispatcher *const dispatcher = context;
    bool busy = false;
    uint64_t n_step = dispatcher->stats.n_step; /* so far */
    pthread_mutex_lock(&dispatcher->lock);
    for (;;) {
        if (!busy) wait_locked(dispatcher);
        struct request *const inbox = dispatcher->inbox;
        const bool draining = dispatcher->draining, stopping = dispatcher->stopping;
        const bool cut = dispatcher->cut || stopping;
        const struct lm_error failure = dispatcher->failure;
        dispatcher->inbox = NULL;
        dispatcher->inbox_end = &dispatcher->inbox;
        dispatcher->woken = false;
        pthread_mutex_unlock(&dispatcher->lock);

        const uint32_t n_taken = submit_all(dispatcher, inbox);
        fail_some(dispatcher, &failure, draining, cut);
        busy = scheduler_step(dispatcher->config.scheduler);
        const struct scheduler_stats stats = scheduler_stats(dispatcher->config.scheduler);
        if (stats.n_step > n_step && dispatcher->config.on_step)
            dispatcher->config.on_step(dispatcher->config.context, &stats.last);

        pthread_mutex_lock(&dispatcher->lock);
        n_step = stats.n_step;
        dispatcher->n_inbox -= n_taken;
        publish_locked(dispatcher, &stats);
        if (stopping && !busy && !dispatcher->inbox) break;
    }
    pthread_mutex_unlock(&dispatcher->lock);
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------- */

static enum lm_status start_thread(struct dispatcher *dispatcher, struct lm_error *err)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&dispatcher->lock, NULL);
    pthread_cond_init(&dispatcher->wake, &monotonic);
    pthread_cond_init(&dispatcher->idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (!pthread_create(&dispatcher->thread, NULL, run_steps, dispatcher)) return LM_OK;
    pthread_cond_destroy(&dispatcher->idle);
    pthread_cond_destroy(&dispatcher->wake);
    pthread_mutex_destroy(&dispatcher->lock);
    return lm_fail(err, LM_E_NO_MEM, "dispatcher: no thread can be started");
}

enum lm_status dispatcher_create(struct dispatcher **out, const struct dispatcher_config *config,
                                 struct lm_error *err)
{
    struct dispatcher *dispatcher = calloc(1, sizeof(*dispatcher));
    if (!dispatcher) return lm_fail(err, LM_E_NO_MEM, "dispatcher: no memory");
    dispatcher->config = *config;
    dispatcher->inbox_end = &dispatcher->inbox;
    dispatcher->stats = scheduler_stats(config->scheduler);
    dispatcher->n_ended = dispatcher->stats.n_ended;
    const enum lm_status status = start_thread(dispatcher, err);
    if (status != LM_OK) {
        free(dispatcher);
        return status;
    }
    *out = dispatcher;
    return LM_OK;
}

void dispatcher_destroy(struct dispatcher *dispatcher)
{
    if (!dispatcher) return;
    pthread_mutex_lock(&dispatcher->lock);
    dispatcher->stopping = dispatcher->woken = true;
    pthread_cond_signal(&dispatcher->wake);
    pthread_mutex_unlock(&dispatcher->lock);
    pthread_join(dispatcher->thread, NULL);
    pthread_cond_destroy(&dispatcher->idle);
    pthread_cond_destroy(&dispatcher->wake);
    pthread_mutex_destroy(&dispatcher->lock);
    free(dispatcher);
}

/* ---- from other threads ------------------------------------------------------------------- */

bool dispatcher_reserve(struct dispatcher *dispatcher, uint32_t n)
{
    pthread_mutex_lock(&dispatcher->lock);
    const struct scheduler_stats *stats = &dispatcher->stats;
    const uint64_t n_place =
        (uint64_t)dispatcher->config.max_queue + stats->n_slot - stats->n_running;
    const uint64_t n_taken =
        (uint64_t)dispatcher->n_reserved + dispatcher->n_inbox + stats->n_waiting;
    /* one sequence is never too large */
    const bool is_large = n > 1 && n >= dispatcher->config.max_queue;
    const bool free = n_taken + n <= n_place || (is_large && n_taken <= 1);
    if (free) dispatcher->n_reserved += n;
    pthread_mutex_unlock(&dispatcher->lock);
    return free;
}

void dispatcher_unreserve(struct dispatcher *dispatcher, uint32_t n)
{
    pthread_mutex_lock(&dispatcher->lock);
    assert(n <= dispatcher->n_reserved);
    dispatcher->n_reserved -= n;
    pthread_mutex_unlock(&dispatcher->lock);
}

uint32_t dispatcher_retry_after_s(struct dispatcher *dispatcher)
{
    pthread_mutex_lock(&dispatcher->lock);
    const double interval_s = ceil(dispatcher->release_interval_s);
    pthread_mutex_unlock(&dispatcher->lock);
    return interval_s < 1 ? 1 : interval_s > 60 ? 60 : (uint32_t)interval_s;
}

void dispatcher_submit(struct dispatcher *dispatcher, struct request *const *requests, uint32_t n)
{
    const double now_s = log_now_s();
    for (uint32_t i = 0; i < n; i++) {
        requests[i]->submit_s = now_s;
        requests[i]->next = i + 1 < n ? requests[i + 1] : NULL;
    }
    if (!n) return;
    pthread_mutex_lock(&dispatcher->lock);
    assert(n <= dispatcher->n_reserved);
    *dispatcher->inbox_end = requests[0];
    dispatcher->inbox_end = &requests[n - 1]->next;
    dispatcher->n_reserved -= n;
    dispatcher->n_inbox += n;
    pthread_cond_signal(&dispatcher->wake);
    pthread_mutex_unlock(&dispatcher->lock);
}

void dispatcher_cancel(struct dispatcher *dispatcher, struct request *request)
{
    (void)dispatcher; /* while a request is under way the step thread does not sleep */
    atomic_store(&request->cancelled, true);
}

/* Waits until nothing is under way. False: that took longer than timeout_s. */
static bool wait_idle_locked(struct dispatcher *dispatcher, double timeout_s)
{
    struct timespec until;
    int status = 0;
    set_deadline(timeout_s, &until);
    while (!is_idle_locked(dispatcher) && status != ETIMEDOUT)
        status = pthread_cond_timedwait(&dispatcher->idle, &dispatcher->lock, &until);
    return is_idle_locked(dispatcher);
}

bool dispatcher_drain(struct dispatcher *dispatcher, double timeout_s)
{
    pthread_mutex_lock(&dispatcher->lock);
    dispatcher->draining = dispatcher->woken = true;
    pthread_cond_signal(&dispatcher->wake);
    const bool all_ended = wait_idle_locked(dispatcher, timeout_s);
    dispatcher->cut = dispatcher->woken = true;
    pthread_cond_signal(&dispatcher->wake);
    while (!is_idle_locked(dispatcher))
        pthread_cond_wait(&dispatcher->idle, &dispatcher->lock);
    pthread_mutex_unlock(&dispatcher->lock);
    return all_ended;
}

bool dispatcher_fail(struct dispatcher *dispatcher, const struct lm_error *err, double timeout_s)
{
    pthread_mutex_lock(&dispatcher->lock);
    dispatcher->failure = *err;
    dispatcher->woken = true;
    pthread_cond_signal(&dispatcher->wake);
    const bool all_ended = wait_idle_locked(dispatcher, timeout_s);
    pthread_mutex_unlock(&dispatcher->lock);
    return all_ended;
}

struct dispatcher_stats dispatcher_stats(struct dispatcher *dispatcher)
{
    pthread_mutex_lock(&dispatcher->lock);
    const struct dispatcher_stats stats = {
        .n_running = dispatcher->stats.n_running,
        .n_waiting = dispatcher->n_reserved + dispatcher->n_inbox + dispatcher->stats.n_waiting,
        .scheduler = dispatcher->stats};
    pthread_mutex_unlock(&dispatcher->lock);
    return stats;
}
