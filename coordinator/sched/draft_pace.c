/* Moving averages, and the maximum of a ratio. */
#include "coordinator/sched/draft_pace.h"

/* Weight of what is new; and what is taken for known of a sequence that nothing is known of. */
#define STEP_SHARE 0.2
#define RECORD_DECAY 0.9
#define PRIOR_TRIED 2.0
#define PRIOR_ACCEPTED 1.4
/* A row more than was ever measured is taken to cost this much of a step, so that it is measured.
 */
#define UNKNOWN_ROW 0.05
#define EVEN_CHANCE 0.5

void draft_pace_note(struct draft_pace *pace, uint32_t n_row, double seconds)
{
    if (n_row > DRAFT_PACE_ROWS) return;
    double *const step_s = &pace->step_s[n_row];
    *step_s = *step_s > 0 ? *step_s + STEP_SHARE * (seconds - *step_s) : seconds;
}

void draft_record_note(struct draft_record *record, uint32_t n_draft, uint32_t n_accepted)
{
    /* those behind the first that was wrong were not tried */
    record->n_tried = RECORD_DECAY * record->n_tried + n_accepted + (n_accepted < n_draft);
    record->n_accepted = RECORD_DECAY * record->n_accepted + n_accepted;
}

static double accept_rate(const struct draft_record *record)
{
    return (record->n_accepted + PRIOR_ACCEPTED) / (record->n_tried + PRIOR_TRIED);
}

static bool is_known(const struct draft_pace *pace, uint32_t n_row)
{
    return n_row <= DRAFT_PACE_ROWS && pace->step_s[n_row] > 0;
}

/* Seconds of a step of n_row + n_draft rows, n_row of which are measured: on the line through those
 * and the nearest number that is measured, too. */
static double expect_s(const struct draft_pace *pace, uint32_t n_row, uint32_t n_draft)
{
    const double plain_s = pace->step_s[n_row];
    for (uint32_t off = 0; off < DRAFT_PACE_ROWS; off++) {
        const uint32_t more = n_draft + off, fewer = off < n_draft ? n_draft - off : 0;
        const uint32_t n = is_known(pace, n_row + more) ? more : fewer;
        if (n && is_known(pace, n_row + n))
            return plain_s + (pace->step_s[n_row + n] - plain_s) * n_draft / n;
    }
    return plain_s * (1 + UNKNOWN_ROW * n_draft);
}

static uint32_t choose_even_chance(double rate, uint32_t n_max)
{
    uint32_t n = 1;
    for (double chance = rate * rate; n < n_max && chance >= EVEN_CHANCE; chance *= rate)
        n++;
    return n;
}

uint32_t draft_pace_choose(struct draft_pace *pace, const struct draft_record *record, bool measure,
                           uint32_t n_row, uint32_t n_max)
{
    const double rate = accept_rate(record);
    if (!n_max) return 0;
    if (!measure) return choose_even_chance(rate, n_max);
    if (!is_known(pace, n_row)) return 0;
    if (pace->n_declined >= DRAFT_PACE_RETRY) {
        pace->n_declined = 0;
        return 1;
    }
    const double plain = n_row / pace->step_s[n_row];
    double best = DRAFT_PACE_GAIN * plain, n_token = n_row, chance = 1;
    uint32_t n_best = 0;
    for (uint32_t n = 1; n <= n_max; n++) {
        chance *= rate;
        n_token += chance;
        const double per_s = n_token / expect_s(pace, n_row, n);
        if (per_s > best) best = per_s, n_best = n;
    }
    pace->n_declined = n_best ? 0 : pace->n_declined + 1;
    return n_best;
}
