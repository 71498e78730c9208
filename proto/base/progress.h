/* Where a rank stands in its steps, for those who watch over it (transport/liveness.h).
 *
 *   IDLE --a plan--> WAITING for the stage before --> COMPUTING --> WAITING for a buffer --> IDLE
 *
 * n_moved grows with every group of kernels and every piece of a file that has come: a step that
 * computes while it does not grow stands still.
 *
 * Threads: written by the step thread, n_moved also by those that read files; read by any. All
 * functions that write take NULL: nobody watches. */
#ifndef LEAN_PROTO_BASE_PROGRESS_H
#define LEAN_PROTO_BASE_PROGRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum progress_state { PROGRESS_IDLE, PROGRESS_WAITING, PROGRESS_COMPUTING };

enum { PROGRESS_N_EVENT = 16 };

struct progress {
    _Atomic uint64_t n_moved, step; /* step: the last that began */
    _Atomic uint32_t state, n_open; /* n_open: of rank 0, steps whose tokens have not come */
    _Atomic uint64_t n_event;
    struct {
        _Atomic double at_s;
        _Atomic uint64_t step;
        _Atomic uint32_t state;
    } event[PROGRESS_N_EVENT]; /* ring: the last changes of state */
    pthread_mutex_t lock;
    /* guarded by lock */
    void (*log_more)(void *context);
    void *context;
};

static inline void progress_move(struct progress *progress)
{
    if (progress) atomic_fetch_add_explicit(&progress->n_moved, 1, memory_order_relaxed);
}

void progress_init(struct progress *progress);
void progress_fini(struct progress *progress);
void progress_set(struct progress *progress, enum progress_state state, uint64_t step);
const char *progress_state_name(uint32_t state);

/* What progress_log calls besides, from any thread, until it is set to NULL. */
void progress_set_log(struct progress *progress, void (*log_more)(void *context), void *context);
/* The state and how it came to it, as lines of the log. */
void progress_log(struct progress *progress);

#endif
