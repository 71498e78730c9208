/* One test of an engine: prompts read, tokens generated, or both, with the clock on the steps
 * alone.
 *
 * The tokens that are fed are those of a trace, also in place of what would be sampled: so neither
 * sampling nor tokenization is in the time, and every arm computes the same. The requests go
 * through the engine's own scheduler, over all of its ranks.
 *
 * Greedy, a generation goes on by the model's own likeliest tokens instead: then drafts can be
 * right, and choosing the tokens is timed, too.
 *
 *   pp512          a prompt of 512 tokens, up to the logits behind its last one
 *   tg128          128 steps of one token
 *   pp512+tg128    both, one after the other
 *   ... @ d4096    behind 4096 tokens that were read before the clock starts
 *   ... x8         of 8 sequences at once */
#ifndef LEAN_LAUNCH_BENCH_ENGINE_TEST_H
#define LEAN_LAUNCH_BENCH_ENGINE_TEST_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/pager/device_tier.h"
#include "worker/pager/expert_pager.h"

struct engine;
struct token_source;

struct engine_test {
    uint32_t n_prompt, n_gen; /* one may be 0 */
    uint32_t n_depth;
    uint32_t n_seq;
    bool greedy;
};

enum { ENGINE_TEST_NAME_BYTES = 80 };
/* Returns out. */
const char *engine_test_name(const struct engine_test *test, char out[ENGINE_TEST_NAME_BYTES]);

/* Context of each sequence, and places for sequences, that an engine must have. */
uint32_t engine_test_n_ctx(const struct engine_test *test);
uint32_t engine_test_n_slot(const struct engine_test *test);

/* Most gaps between two tokens of a sequence that a run can have, of all sequences together. */
size_t engine_test_n_gap_max(const struct engine_test *test);

struct engine_sample {
    /* The caller's, or NULL: seconds from the start to the first token of each sequence, [n_seq];
     * between two tokens, [engine_test_n_gap_max]. */
    double *first_s, *gap_s;
    size_t n_first, n_gap;
    uint64_t elapsed_ns;
    uint64_t n_draft, n_draft_accepted;
    double energy_j;             /* of the processors' packages; negative: not to be read here */
    double accelerator_energy_j; /* likewise */
    struct expert_pager_stats before, after; /* of all ranks, when the clock started and stopped */
    struct device_tier_stats device_before, device_after; /* n_slot 0: no device has slots */
};

/* trace: which tokens; another one for each repetition. run: no other run of this engine has the
 * same. LM_E_INTERRUPTED: by a signal
 * (terminal/interrupt.h); and what steps can fail with. */
enum lm_status engine_test_run(const struct engine_test *test, struct engine *engine,
                               const struct token_source *tokens, uint64_t trace, uint64_t run,
                               struct engine_sample *out, struct lm_error *err);

#endif
