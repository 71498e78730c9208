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
