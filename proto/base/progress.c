#include "proto/base/progress.h"

#include <stddef.h>

#include "proto/base/log.h"

void progress_init(struct progress *progress)
{
    *progress = (struct progress){.state = PROGRESS_IDLE};
    pthread_mutex_init(&progress->lock, NULL);
}

void progress_fini(struct progress *progress)
{
    pthread_mutex_destroy(&progress->lock);
}

const char *progress_state_name(uint32_t state)
{
    return state == PROGRESS_COMPUTING ? "computes step"
           : state == PROGRESS_WAITING ? "waits for another stage in step"
                                       : "is idle behind step";
}

/* An event that is overwritten while it is read is a mixture of two: it is for people. */
void progress_set(struct progress *progress, enum progress_state state, uint64_t step)
{
    if (!progress) return;
    const uint64_t n = atomic_load_explicit(&progress->n_event, memory_order_relaxed);
    const size_t i = n % PROGRESS_N_EVENT;
    atomic_store_explicit(&progress->event[i].at_s, log_now_s(), memory_order_relaxed);
    atomic_store_explicit(&progress->event[i].step, step, memory_order_relaxed);
    atomic_store_explicit(&progress->event[i].state, state, memory_order_relaxed);
    atomic_store_explicit(&progress->n_event, n + 1, memory_order_release);
    atomic_store_explicit(&progress->step, step, memory_order_relaxed);
    atomic_store_explicit(&progress->state, state, memory_order_relaxed);
    progress_move(progress);
}

void progress_set_log(struct progress *progress, void (*log_more)(void *context), void *context)
{
    if (!progress) return;
    pthread_mutex_lock(&progress->lock);
    progress->log_more = log_more;
    progress->context = context;
    pthread_mutex_unlock(&progress->lock);
}

void progress_log(struct progress *progress)
{
    const uint64_t n = atomic_load_explicit(&progress->n_event, memory_order_acquire);
    const double now_s = log_now_s();
    log_info("%s %llu; moved %llu times so far", progress_state_name(progress->state),
             (unsigned long long)progress->step, (unsigned long long)progress->n_moved);
    for (uint64_t i = n < PROGRESS_N_EVENT ? 0 : n - PROGRESS_N_EVENT; i < n; i++) {
        char age[24];
        const size_t at = i % PROGRESS_N_EVENT;
        log_info("  %s ago: %s %llu", log_format_seconds(now_s - progress->event[at].at_s, age),
                 progress_state_name(progress->event[at].state),
                 (unsigned long long)progress->event[at].step);
    }
    pthread_mutex_lock(&progress->lock);
    if (progress->log_more) progress->log_more(progress->context);
    pthread_mutex_unlock(&progress->lock);
}
