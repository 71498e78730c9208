/* Who runs what when: continuous batching of requests over the slots of a step runner.
 *
 * Each step advances every sequence that generates by one token, and beside them at most one prompt
 * by one chunk, in order of priority and arrival. A token's bits do not depend on its companions,
 * so batching is only a matter of speed.
 *
 *   queued --free slot--> reading its prompt --last chunk--> generating --> done
 *
 * Slots keep what they have read when a request ends, and a request whose prompt begins like one of
 * them goes on from there. Where a state cannot be cut back (recurrent layers, windows) the
 * scheduler forks snapshots into parked slots on the way: at the beginning of the last turn and
 * before the last prompt token. What was used least recently makes room.
 *
 * Threads: one owner; request.cancelled may be set from anywhere. */
#ifndef LEAN_COORDINATOR_SCHED_SCHEDULER_H
#define LEAN_COORDINATOR_SCHED_SCHEDULER_H

#include "coordinator/sched/request.h"
#include "proto/step.h"

struct scheduler;

struct scheduler_config {
    const struct step_runner *runner; /* borrowed */
    uint32_t n_slot;                  /* sequences that run at once: slots 0 .. n_slot - 1 */
    uint32_t n_parked;                /* snapshots: the slots behind them; 0: states can be cut */
    uint32_t n_ctx;
    uint32_t prefill_chunk; /* tokens; a step has at most prefill_chunk + n_slot */
};

struct scheduler_stats {
    uint32_t n_slot, n_running, n_waiting; /* sequences now */
    uint32_t n_seq_max;                    /* sequences in one step, at most so far */
    uint64_t n_step, n_token;
    uint64_t n_ended; /* requests that had a slot */
};

enum lm_status scheduler_create(struct scheduler **out, const struct scheduler_config *config,
                                struct lm_error *err);
void scheduler_destroy(struct scheduler *scheduler); /* no request may be under way */

/* LM_E_LIMIT: the prompt leaves no room in the context. */
enum lm_status scheduler_submit(struct scheduler *scheduler, struct request *request,
                                struct lm_error *err);
/* Ends requests with an error: those that wait since before_s (log_now_s) or longer and, if asked,
 * those that run. */
void scheduler_fail(struct scheduler *scheduler, double before_s, bool running,
                    const struct lm_error *err);
/* Runs one step. false: nothing was left to do. Failures end the requests that they concern. */
bool scheduler_step(struct scheduler *scheduler);

struct scheduler_stats scheduler_stats(const struct scheduler *scheduler);

#endif
