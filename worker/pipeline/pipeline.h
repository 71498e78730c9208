/* Rank 0's side of a pipeline: its own stage, and steps handed to the others.
 *
 *   step_runner.begin --> ledger: room? --> plan to every stage at once --> queue of stage 0
 *                                                  stage 0 computes, sends, takes the next
 *   step_runner.end   <-- tokens of the last stage
 *
 * What sequences hold is decided here before anyone runs: the ledger is a seq_state over all layers
 * whose memory is never touched, so it says what every stage would say, at once, while steps are
 * still under way. The stages repeat its decisions in the same order (stage.h).
 *
 * Ownership: borrows worker and world. Threads: the functions of the runner from one thread; inside
 * there are two, one that runs stage 0 and one that receives. */
#ifndef LEAN_WORKER_PIPELINE_PIPELINE_H
#define LEAN_WORKER_PIPELINE_PIPELINE_H

#include "proto/step.h"
#include "worker/worker.h"

struct pager_snapshot;
struct pipeline;
struct world;

struct pipeline_config {
    struct world *world;   /* at least two ranks */
    struct worker *worker; /* stage 0, which has the sizes that all others have */
    uint32_t slack;        /* steps under way beyond the number of stages */
    /* Called once when a rank is lost, also while no step is under way, from any thread; may be
     * NULL. */
    void (*on_lost)(void *context, const struct lm_error *err);
    void *lost_context;
    /* Called with the records of the routing trace, step by step, of each stage after the other, if
     * the workers keep them; from any thread. */
    void (*on_trace)(void *context, const uint8_t *records, size_t n_bytes);
    void *trace_context;
    bool with_map; /* counters come with what is known of each expert, a few times a second */
    /* Called when all ranks have told their counters, from any thread; may be NULL. */
    void (*on_stats)(void *context);
    void *stats_context;
};

enum lm_status pipeline_create(struct pipeline **out, const struct pipeline_config *config,
                               struct lm_error *err);
/* Ends the other stages in order unless the job is lost. NULL is legal. */
void pipeline_close(struct pipeline *pipeline);

/* depth: ranks + slack. A lost rank fails what is under way and all that comes with LM_E_RANK_LOST.
 */
struct step_runner pipeline_runner(struct pipeline *pipeline);

/* The counters of all ranks' pagers. Asking makes them tell in their own time, between steps, once
 * more if they are about to: what is read later is at least as new. wait: until they have.
 * LM_E_RANK_LOST. */
enum lm_status pipeline_ask_stats(struct pipeline *pipeline, bool wait, struct lm_error *err);
/* The sums of what was told last; of nothing before. From any thread. */
void pipeline_read_stats(struct pipeline *pipeline, struct pager_snapshot *out);
/* Those of one rank. */
void pipeline_read_rank(struct pipeline *pipeline, uint32_t rank, struct pager_snapshot *out,
                        struct edges_stats *edges);
/* Calls draw for every layer with experts that was told of with its map. resident, heat:
 * [n_expert], as is_resident and heat of expert_pager.h. draw must not call the pipeline. */
void pipeline_read_map(struct pipeline *pipeline,
                       void (*draw)(void *context, uint32_t layer, const uint8_t *resident,
                                    const float *heat, uint64_t n_hit, uint64_t n_lookup),
                       void *context);
/* For a profile: tokens so far, and the rows that chose each expert, [n_layer][n_expert]. Asks and
 * waits. */
enum lm_status pipeline_read_uses(struct pipeline *pipeline, double *n_token, double *uses,
                                  struct lm_error *err);

#endif
