/* Who runs what when: continuous batching of requests over the slots of a step runner.
 *
 * Each step advances every sequence that generates by one token and beside them reads prompts, in
 * order of priority and arrival, as many tokens as fit into a chunk. While others generate the
 * chunk is kept so short that the step takes at most a few times as long as one without it, so
 * that their streams do not stall. A token's bits do not depend on its companions nor on how its
 * prompt was cut, so all this is only a matter of time.
 *
 * Where the runner is a pipeline several steps are under way at once: those who generate are dealt
 * out in about a part for each stage, since the next token of a sequence needs the one before, and
 * the chunks of a prompt follow each other without a pause, but where a state is to be kept.
 *
 *   queued --free place--> [waiting for a prefix] --> reading --last chunk--> generating --> done
 *
 * A sequence that generates may have drafts of its next tokens verified in its step: those that
 * followed the last time when the same was said (prompt_lookup.h), or if there are none what the
 * runner has drafted by the model itself. What is sampled is the same without; draft_pace.h says
 * how many. Where sampling is steered from token to token (a grammar, a
 * token that is forced) there are none, and what was accepted behind the token with which that
 * begins is taken back.
 *
 * What was read is kept: a sequence's state stays in its slot when its request ends, and a request
 * goes on from the state that has most of its prompt (prefix_index.h), from that of a running
 * sequence as well; if one is reading just that, it waits for it. Where states cannot be cut back
 * (recurrent layers, windows) copies are kept on the way: where turns begin, before the last token
 * of a prompt, every so many tokens, and where sequences part. They live in the runner's other
 * slots; what was used least recently makes room, for running sequences at once.
 *
 * Threads: one owner; request.cancelled may be set from anywhere. */
#ifndef LEAN_COORDINATOR_SCHED_SCHEDULER_H
#define LEAN_COORDINATOR_SCHED_SCHEDULER_H

#include "coordinator/sched/request.h"
#include "proto/step.h"

struct scheduler;

struct scheduler_config {
    const struct step_runner *runner; /* borrowed */
    uint32_t n_slot;                  /* sequences that run at once */
    uint32_t n_parked; /* the runner has so many slots more, for kept states; with 0 and one slot
                        * nothing is reused */
    uint32_t n_ctx;
    uint32_t prefill_chunk;    /* tokens; a step has at most prefill_chunk + n_slot */
    uint32_t chunk_min;        /* where steps overlap, prompts are cut into chunks no shorter than
                                * this, so that all of them are busy; 0: not for that reason */
    uint32_t checkpoint_every; /* tokens of a prompt; 0: none for that reason */
    enum drafting prompt_lookup, mtp; /* mtp: the runner can draft, too */
    uint32_t n_draft; /* of a sequence at most, and <= STEP_DRAFT_MAX; the runner takes as many */
    bool can_cut;     /* states can be cut back anywhere: copies on the way are not needed */
    uint64_t state_bytes;     /* of one kept state, shared blocks not counted; for stats */
    size_t logprob_bytes_max; /* for log-probabilities of kept prompts */
};

enum step_phase { STEP_PREFILL, STEP_DECODE, STEP_MIXED, N_STEP_PHASE };

struct step_record {
    enum step_phase phase;
    uint32_t n_token;
    double seconds;
};

struct scheduler_stats {
    uint32_t n_slot, n_running, n_waiting; /* sequences now */
    uint32_t n_seq_max;                    /* sequences in one step, at most so far */
    uint32_t n_under_way_max;              /* steps at once, likewise */
    uint64_t n_step, n_token;
    uint64_t n_ended;                                 /* requests that had a place */
    uint64_t n_draft_step, n_draft, n_draft_accepted; /* sequences' steps with drafts, these, and
                                                       * those passed on */
    struct {
        uint64_t n_step, n_token;
        double seconds;
    } phase[N_STEP_PHASE];
    struct step_record last;              /* step */
    uint64_t n_prompt_token, n_hit_token; /* of started requests: asked for, found */
    uint32_t n_state;                     /* kept now */
    uint64_t state_bytes;
    uint64_t n_evicted_state, n_evicted_kv; /* states given up for another one; for room */
    struct seq_usage kv;
};

enum lm_status scheduler_create(struct scheduler **out, const struct scheduler_config *config,
                                struct lm_error *err);
void scheduler_destroy(struct scheduler *scheduler); /* no request may be under way */

/* LM_E_LIMIT: the prompt leaves no room in the context. LM_E_NO_MEM. */
enum lm_status scheduler_submit(struct scheduler *scheduler, struct request *request,
                                struct lm_error *err);
/* Ends requests with an error: those that wait since before_s (log_now_s) or longer and, if asked,
 * those that run. */
void scheduler_fail(struct scheduler *scheduler, double before_s, bool running,
                    const struct lm_error *err);
/* Begins as many steps as can be under way at once, and waits for the oldest. false: nothing was
 * left to do. Failures end the requests that they concern. */
bool scheduler_step(struct scheduler *scheduler);
/* When nothing is left to do: what the runner does meanwhile (step_runner.idle). */
bool scheduler_idle(struct scheduler *scheduler);

struct scheduler_stats scheduler_stats(const struct scheduler *scheduler);

#endif
