/* Mean, spread and order of measurements. */
#include "launch/bench/statistics.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

static int smaller_first(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

double statistics_percentile(const double *sorted, size_t n, double percent)
{
    assert(n > 0 && percent >= 0 && percent <= 100);
    const double at = percent / 100 * (double)(n - 1);
    const size_t below = (size_t)at;
    if (below + 1 >= n) return sorted[n - 1];
    return sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]);
}

struct statistics statistics_of(double *values, size_t n)
{
    struct statistics out = {.n = n};
    double squares = 0;
    if (!n) return out;
    qsort(values, n, sizeof(*values), smaller_first);
    for (size_t i = 0; i < n; i++)
        out.mean += values[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - out.mean) * (values[i] - out.mean);
    if (n > 1) out.stddev = sqrt(squares / (double)(n - 1));
    out.min = values[0];
    out.median = statistics_percentile(values, n, 50);
    out.max = values[n - 1];
    return out;
}

/* Abramowitz and Stegun 26.7.5, which is good from three degrees on. */
double statistics_t95(double freedom)
{
    const double z = 1.959963984540054, z2 = z * z, n = freedom;
    if (freedom < 1.5) return 12.7062;
    if (freedom < 2.5) return 4.3027;
    const double g1 = z * (z2 + 1) / 4;
    const double g2 = z * ((5 * z2 + 16) * z2 + 3) / 96;
    const double g3 = z * (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384;
    const double g4 = z * ((((79 * z2 + 776) * z2 + 1482) * z2 - 1920) * z2 - 945) / 92160;
    return z + (g1 + (g2 + (g3 + g4 / n) / n) / n) / n;
}

/* The squared error of a mean, as a share of it. */
static double squared_error(const struct statistics *of)
{
    const double error = of->stddev / of->mean;
    return error * error / (double)of->n;
}

struct statistics_change statistics_compare(const struct statistics *old,
                                            const struct statistics *now)
{
    const double ratio = now->mean / old->mean;
    const double a = squared_error(old), b = squared_error(now);
    struct statistics_change out = {ratio - 1, ratio - 1, ratio - 1};
    if (!(a + b > 0)) return out;
    double freedom = 0;
    if (old->n > 1) freedom += a * a / (double)(old->n - 1);
    if (now->n > 1) freedom += b * b / (double)(now->n - 1);
    freedom = (a + b) * (a + b) / freedom;
    const double half = statistics_t95(freedom) * ratio * sqrt(a + b);
    out.low -= half;
    out.high += half;
    return out;
}
