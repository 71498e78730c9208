/* miss(f) = 0.55 exp(-4.15 f) from a tenth on; below that a straight line from no hits when only
 * the experts of one token fit. */
#include "coordinator/plan/hit_rate.h"

#include <math.h>

double hit_rate_expected(double n, double n_expert, double used_share)
{
    const double f = n / n_expert, knee = 0.1;
    if (f >= 1) return 1;
    if (f >= knee) return 1 - 0.55 * exp(-4.15 * f);
    if (f <= used_share || used_share >= knee) return 0;
    return (1 - 0.55 * exp(-4.15 * knee)) * (f - used_share) / (knee - used_share);
}
