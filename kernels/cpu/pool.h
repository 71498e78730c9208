/* Thread pool: runs the tasks of one region on all threads, the caller's included.
 *
 * A region is n_task independent calls of one function. Threads claim tasks in rising order, one
 * at a time, so uneven tasks balance themselves; nothing may depend on who ran what. The pool
 * decides when, never what: results must not depend on n_thread.
 *
 *   pool_run: publish the region, open its epoch -> every awake thread claims tasks
 *             -> all tasks done -> pool_run returns
 *
 * A thread that is asleep or late simply takes no part: a small region is over before it wakes.
 * Between regions a worker spins for some 50 us, then sleeps in the kernel; an idle pool uses no
 * processor time.
 *
 * Threads:   pool_run from one thread at a time. Ownership: the pool owns its n_thread - 1 threads.
 * Floats:    each thread checks that its floating-point mode is IEEE's default (another library
 *            may have changed it); pool_float_mode_ok tells. */
#ifndef LEAN_KERNELS_CPU_POOL_H
#define LEAN_KERNELS_CPU_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct pool;

/* worker: 0 .. n_thread - 1, constant during the call; picks per-thread scratch. */
typedef void (*pool_task_fn)(void *context, uint32_t task, uint32_t worker);

/* n_thread 0: one for each physical core this process may run on, but no more than a quota of its
 * control group lets run at once. pin: binds each of the pool's
 * own threads to a core of its own (the caller's thread is left alone, since threads it creates
 * would inherit the binding). LM_E_NO_MEM, LM_E_FAIL: a thread could not be created. */
enum lm_status pool_create(struct pool **out, uint32_t n_thread, bool pin, struct lm_error *err);
void pool_destroy(struct pool *pool);

uint32_t pool_n_thread(const struct pool *pool);

/* Calls task(context, 0 .. n_task - 1, worker) and returns when all have returned. */
void pool_run(struct pool *pool, pool_task_fn task, void *context, uint32_t n_task);

/* false once any thread ran a task with another rounding mode, or with denormals flushed. */
bool pool_float_mode_ok(const struct pool *pool);

#endif
