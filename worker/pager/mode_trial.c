/* Medians, since a step may be held up by anything. */
#include "worker/pager/mode_trial.h"

#include <stdlib.h>

#include "proto/base/log.h"

enum { PAUSE_STEPS = 2000, WARM_STEPS = 16, OTHERS_MAX = 32 };
static const enum miss_mode tried[MODE_TRIAL_MODES] = {MISS_HYBRID, MISS_CPU, MISS_GPU};
static const char *const names[MODE_TRIAL_MODES] = {"hybrid", "cpu", "gpu"};
/* Another mode is chosen if its steps take less than this share of the time. */
static const double clearly_faster = 0.97;

void mode_trial_init(struct mode_trial *trial)
{
    *trial = (struct mode_trial){.n_pause = WARM_STEPS};
}

static int by_value(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static double median(double *values)
{
    qsort(values, MODE_TRIAL_ROUNDS, sizeof(*values), by_value);
    return values[MODE_TRIAL_ROUNDS / 2];
}

/* All have had their turns. */
static void choose(struct mode_trial *trial)
{
    double step_s[MODE_TRIAL_MODES];
    uint32_t best = trial->chosen;
    for (uint32_t i = 0; i < MODE_TRIAL_MODES; i++)
        step_s[i] = median(trial->step_s[i]);
    for (uint32_t i = 0; i < MODE_TRIAL_MODES; i++)
        if (step_s[i] < clearly_faster * step_s[trial->chosen] && step_s[i] < step_s[best])
            best = i;
    log_info("experts that the device lacks: a step takes %.2f ms if they are copied, %.2f ms "
             "computed on the CPU, %.2f ms shared out: mode %s",
             1e3 * step_s[2], 1e3 * step_s[1], 1e3 * step_s[0], names[best]);
    trial->chosen = best;
    trial->n_step = 0;
    trial->n_pause = PAUSE_STEPS;
}

enum miss_mode mode_trial_begin_step(struct mode_trial *trial, uint32_t n_token, bool prefill)
{
    trial->runs = !prefill && !trial->n_pause;
    if (!prefill && trial->n_pause) trial->n_pause--;
    if (trial->n_token != n_token && trial->n_step && trial->n_other++ < OTHERS_MAX)
        trial->runs = false;
    if (trial->runs && trial->n_token != n_token) trial->n_step = 0;
    if (trial->runs) {
        trial->n_token = n_token;
        trial->n_other = 0;
    }
    return tried[trial->runs ? trial->n_step % MODE_TRIAL_MODES : trial->chosen];
}

void mode_trial_end_step(struct mode_trial *trial, double step_s)
{
    if (!trial->runs) return;
    trial->step_s[trial->n_step % MODE_TRIAL_MODES][trial->n_step / MODE_TRIAL_MODES] = step_s;
    if (++trial->n_step == MODE_TRIAL_MODES * MODE_TRIAL_ROUNDS) choose(trial);
    trial->runs = false;
}
