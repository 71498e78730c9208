/* Ranks 1 .. n_rank - 1: runs what rank 0 sends, in order, until it says that all is done.
 *
 *   frames --> worker: receive x, layers, send x | head, sampler --> tokens to rank 0
 *
 * The next batch's receive is posted while this one is computed, and its sending goes on behind it.
 *
 * Ownership: borrows worker and world. Threads: the caller's runs steps. */
#ifndef LEAN_WORKER_PIPELINE_STAGE_H
#define LEAN_WORKER_PIPELINE_STAGE_H

#include "proto/base/error.h"

struct worker;
struct world;

/* LM_OK: rank 0 ended the job. A step that fails (a file cannot be read) is reported to rank 0, and
 * the stage goes on. LM_E_RANK_LOST: the job is lost. Anything else: this rank could not go on, and
 * the others know. */
enum lm_status stage_run(struct world *world, struct worker *worker, struct lm_error *err);

#endif
