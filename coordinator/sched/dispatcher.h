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
    /* After each step, on the step thread; or NULL. */
    void (*on_step)(void *context, const struct step_record *step);
    /* Likewise, when there was nothing to do and what could be done for later steps has been. */
    void (*on_idle)(void *context);
    void *context;
};

enum lm_status dispatcher_create(struct dispatcher **out, const struct dispatcher_config *config,
                                 struct lm_error *err);
/* Ends what is left with LM_E_INTERRUPTED, then the thread. NULL is legal. */
void dispatcher_destroy(struct dispatcher *dispatcher);

/* Places in the queue and in idle slots. False: it is full and nothing was reserved. A request with
 * more sequences than the queue has places gets in while nothing else waits, so that each can run
 * at some time; it may have reserved one of them before. */
bool dispatcher_reserve(struct dispatcher *dispatcher, uint32_t n);
void dispatcher_unreserve(struct dispatcher *dispatcher, uint32_t n);
/* Seconds until a place is likely to be free, 1 .. 60: for Retry-After. */
uint32_t dispatcher_retry_after_s(struct dispatcher *dispatcher);

/* requests: [n] with n reserved places; borrowed until the on_end of each. A request that cannot
 * run (context, memory) ends with its status like one that failed; one that waited longer than
 * queue_timeout_s with LM_E_BUSY. */
void dispatcher_submit(struct dispatcher *dispatcher, struct request *const *requests, uint32_t n);
/* The request ends at the next step boundary, with what it has; on_end must not have run. */
void dispatcher_cancel(struct dispatcher *dispatcher, struct request *request);

/* No new requests start; those that wait, and those that run for longer than timeout_s from now,
 * end with LM_E_INTERRUPTED. Returns when all have ended; true: none had to be cut. Other threads
 * may go on submitting, to no avail. */
bool dispatcher_drain(struct dispatcher *dispatcher, double timeout_s);

/* The steps cannot go on: everything under way, and all that is submitted from now on, ends with
 * err, which is of a failure. Returns when that is so, or after timeout_s: false, some step does
 * not end. */
bool dispatcher_fail(struct dispatcher *dispatcher, const struct lm_error *err, double timeout_s);

struct dispatcher_stats {
    uint32_t n_running, n_waiting; /* sequences; reserved places wait */
    struct scheduler_stats scheduler;
};
/* A copy that the step thread publishes after each step: no lock of the engine is taken. */
struct dispatcher_stats dispatcher_stats(struct dispatcher *dispatcher);

#endif
