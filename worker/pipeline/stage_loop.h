/* What every stage does, rank 0's too: takes frames in order and runs what they say.
 *
 *   PLAN           operations on slots, the step; on the last stage LOGITS and TOKENS to rank 0; of
 * a worker that keeps a trace TRACE STATS_REQUEST  STATS to rank 0 DRAIN          the end
 *
 * While a step is computed the input of the next one is being received, if its plan is there.
 *
 * The last stage keeps the ids of every slot, so that plans need not repeat them for penalties, and
 * knows which slots a failed step has spoiled: what such a slot would still give becomes an error
 * of its sequence, until the slot is cleared.
 *
 * Threads: the caller's is the step thread. */
#ifndef LEAN_WORKER_PIPELINE_STAGE_LOOP_H
#define LEAN_WORKER_PIPELINE_STAGE_LOOP_H

#include <stdint.h>

#include "proto/base/error.h"

struct frame;
struct worker;

struct stage_loop_config {
    uint32_t rank;
    struct worker *worker;
    /* The next frame from rank 0, as recv of world.h. */
    enum lm_status (*next)(void *context, double timeout_s, struct frame **out,
                           struct lm_error *err);
    /* Brings a frame, which stays the loop's, to rank 0. */
    enum lm_status (*give)(void *context, const struct frame *frame, struct lm_error *err);
    void *context;
};

/* LM_OK: DRAIN came. Failures of steps are results; any other failure is the end of the job. */
enum lm_status stage_loop_run(const struct stage_loop_config *config, struct lm_error *err);

#endif
