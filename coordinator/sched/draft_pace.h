/* How many drafts are worth verifying.
 *
 * A step with drafts has more rows and takes longer; it yields as many tokens as are accepted, and
 * one. Both are measured as the steps go by: how often drafts of a sequence are what is sampled,
 * and how long steps of so many rows take. A draft i steps ahead is accepted with the i-th power of
 * the rate at which one is.
 *
 * Automatically there are drafts where they pay: the number for which tokens per second are most,
 * if these are at least DRAFT_PACE_GAIN times those without. What was not worth it is tried again
 * now and then, since times change (caches fill, others use the machine). Without measuring there
 * are as many as have an even chance.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_SCHED_DRAFT_PACE_H
#define LEAN_COORDINATOR_SCHED_DRAFT_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define DRAFT_PACE_GAIN 1.03

enum { DRAFT_PACE_ROWS = 64, DRAFT_PACE_RETRY = 64 };

/* Of the steps. */
struct draft_pace {
    double step_s[DRAFT_PACE_ROWS + 1]; /* by rows, of steps without prompts; 0: none so far */
    uint32_t n_declined;                /* times that drafts were not worth it, in a row */
};

/* Of one sequence and one source of drafts: what became of the last ones. */
struct draft_record {
    double n_tried, n_accepted; /* the older the less */
};

void draft_pace_note(struct draft_pace *pace, uint32_t n_row, double seconds);
void draft_record_note(struct draft_record *record, uint32_t n_draft, uint32_t n_accepted);

/* Of n_max drafts for one sequence of a step that has n_row rows without them, how many to verify.
 */
uint32_t draft_pace_choose(struct draft_pace *pace, const struct draft_record *record, bool measure,
                           uint32_t n_row, uint32_t n_max);

#endif
