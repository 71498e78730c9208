/* The step thread of a server: requests come in from any thread, tokens go out on this one.
 *
 *   reserve -> submit -> (scheduler) -> callbacks of struct request -> on_end
 *
 * The number of waiting sequences is bounded: places are reserved before any work is done for a
 * request, as many as it has sequences, and given back when they start to run or are dropped. The
 * thread sleeps when there is nothing to do.
 *
 * Threads: all functions from any thread; the callbacks of requests run on the step thread. */
#ifndef LEAN_COORDINATOR_SCHED_DISPATCHER_H
#define LEAN_COORDINATOR_SCHED_DISPATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/sched/request.h"
#include "coordinator/sched/scheduler.h"
#include "proto/base/error.h"

struct dispatcher;

struct dispatcher_config {
    struct scheduler *scheduler; /* lent until dispatcher_destroy */
    uint32_t max_queue;          /* waiting sequences */
    double queue_timeout_s;      /* 0: none */
};

enum lm_status dispatcher_create(struct dispatcher **out, const struct dispatcher_config *config,
                                 struct lm_error *err);
/* Cancels what is left, waits for it, ends the thread. NULL is legal. */
void dispatcher_destroy(struct dispatcher *dispatcher);

/* Places in the queue. False: it is full and nothing was reserved. */
bool dispatcher_reserve(struct dispatcher *dispatcher, uint32_t n);
void dispatcher_unreserve(struct dispatcher *dispatcher, uint32_t n);
/* Seconds until a place is likely to be free, 1 .. 60: for Retry-After. */
uint32_t dispatcher_retry_after_s(const struct dispatcher *dispatcher);

/* requests: [n] with n reserved places; borrowed until the on_end of each. A request that cannot
 * run (context, memory) ends with its status like one that failed; one that waited longer than
 * queue_timeout_s with LM_E_BUSY. */
void dispatcher_submit(struct dispatcher *dispatcher, struct request *const *requests, uint32_t n);
/* Sets request->cancelled and sees to it at the next step, or at once if it waits. */
void dispatcher_cancel(struct dispatcher *dispatcher, struct request *request);

/* No new requests start; those that wait end with LM_E_INTERRUPTED. True when all that ran have
 * ended within timeout_s; the rest is then cancelled. */
bool dispatcher_drain(struct dispatcher *dispatcher, double timeout_s);

struct dispatcher_stats {
    uint32_t n_running, n_waiting;
    struct scheduler_stats scheduler;
};
/* A copy that the step thread publishes after each step: no lock of the engine is taken. */
struct dispatcher_stats dispatcher_stats(const struct dispatcher *dispatcher);

#endif
