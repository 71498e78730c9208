#include "worker/pager/speculation.h"

#include <assert.h>

#define TRUST 8         /* reads for which a prediction is taken to be right, before any was made */
#define FADE (1 / 256.) /* of the reads counted, in a token */
#define MEAN (1 / 64.)  /* share of the latest measurement */
/* What a wrong read has displaced would have been worth something: also a disk that is free for
 * long does not make it pay below this. */
#define LEAST_PRECISION .25
/* Behind the gap a read begins only where the disk is faster than usual, or is taken back. */
#define BEHIND_GAP_PRECISION .5
#define NEVER 1.

static size_t clamp_rank(size_t rank)
{
    return rank < SPECULATION_RANKS ? rank : SPECULATION_RANKS - 1;
}

/* The precision at which gain and cost are equal. */
static double break_even(const struct speculation *s, enum prediction_point point, size_t n_before)
{
    const double gain_s = s->gap_s[point] - (double)n_before * s->read_s;
    const bool measured = s->read_s > 0 && s->gap_s[point] > 0;
    if (!measured && !n_before) return BEHIND_GAP_PRECISION;
    /* The early prediction's gap ends with the late one, which knows better what to read then. */
    if (!measured || gain_s <= 0) return point == PREDICT_LATE ? BEHIND_GAP_PRECISION : NEVER;
    const double cost_s = s->read_s - gain_s;
    return cost_s > LEAST_PRECISION * s->read_s ? cost_s / s->read_s : LEAST_PRECISION;
}

bool speculation_pays(const struct speculation *speculation, enum prediction_point point,
                      size_t rank, size_t n_before)
{
    const size_t i = clamp_rank(rank);
    const double n_chosen = speculation->rank[point][i].n_chosen;
    const double n_read = speculation->rank[point][i].n_read;
    return (n_chosen + TRUST) / (n_read + TRUST) > break_even(speculation, point, n_before);
}

void speculation_count(struct speculation *speculation, enum prediction_point point, size_t rank,
                       bool chosen)
{
    const size_t i = clamp_rank(rank);
    speculation->rank[point][i].n_read++;
    speculation->rank[point][i].n_chosen += chosen;
}

static void add_to_mean(double *mean, double value)
{
    *mean += *mean > 0 ? (value - *mean) * MEAN : value;
}

void speculation_measure_gap(struct speculation *speculation, enum prediction_point point,
                             double gap_s)
{
    assert(gap_s >= 0);
    add_to_mean(&speculation->gap_s[point], gap_s);
}

void speculation_measure_reads(struct speculation *speculation, double busy_s, uint64_t n_read)
{
    if (n_read) add_to_mean(&speculation->read_s, busy_s / (double)n_read);
}

void speculation_fade(struct speculation *speculation)
{
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) {
        for (int i = 0; i < SPECULATION_RANKS; i++) {
            speculation->rank[point][i].n_read *= 1 - FADE;
            speculation->rank[point][i].n_chosen *= 1 - FADE;
        }
    }
}
