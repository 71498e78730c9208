/* Mode trial: which way of serving the experts that a device lacks is the fastest here and now.
 *
 * The modes take turns for some steps of equally many tokens, and the fastest is kept for a while.
 * Steps of other sizes between them, as drafts make them, go by the mode chosen last; after many of
 * these in a row the trial begins again with steps of the new size. Prompts are no part of it.
 *
 * Threads: the step thread. */
#ifndef LEAN_WORKER_PAGER_MODE_TRIAL_H
#define LEAN_WORKER_PAGER_MODE_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/pager/device_tier.h"

enum { MODE_TRIAL_MODES = 3, MODE_TRIAL_ROUNDS = 11 };

struct mode_trial {
    double step_s[MODE_TRIAL_MODES][MODE_TRIAL_ROUNDS];
    uint32_t n_step;  /* of the trial, so far */
    uint32_t n_token; /* of each */
    uint32_t n_other; /* steps of other sizes since the last */
    uint32_t n_pause; /* steps until it begins */
    bool runs;        /* the step under way is one of them */
    uint32_t chosen;
};

void mode_trial_init(struct mode_trial *trial);
/* The mode of the step that begins, of n_token tokens. */
enum miss_mode mode_trial_begin_step(struct mode_trial *trial, uint32_t n_token, bool prefill);
/* It took step_s. */
void mode_trial_end_step(struct mode_trial *trial, double step_s);

#endif
