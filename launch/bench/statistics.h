/* What a report says of several measurements of one thing. */
#ifndef LEAN_LAUNCH_BENCH_STATISTICS_H
#define LEAN_LAUNCH_BENCH_STATISTICS_H

#include <stddef.h>

struct statistics {
    size_t n;
    double mean, stddev; /* of the sample: over n - 1; 0 for fewer than two */
    double min, median, max;
};

/* values: [n], are sorted. n 0: all is 0. */
struct statistics statistics_of(double *values, size_t n);

/* sorted: [n], rising, n >= 1. percent: 0 to 100; between two values along the line through them.
 */
double statistics_percentile(const double *sorted, size_t n, double percent);

/* The two-sided 95% quantile of Student's t distribution. freedom > 0. */
double statistics_t95(double freedom);

/* How far `now` is from `old`, as a share of old's mean, with the 95% interval around it, by the
 * errors of both means (Welch). Without a spread in either the interval is empty. */
struct statistics_change {
    double change, low, high;
};
struct statistics_change statistics_compare(const struct statistics *old,
                                            const struct statistics *now);

#endif
