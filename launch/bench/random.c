/* SplitMix64, Box-Muller, Marsaglia-Tsang. */
#include "launch/bench/random.h"

#include <math.h>
#include <stdbool.h>

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double random_unit(uint64_t *state)
{
    return ((double)(random_next(state) >> 11) + 0.5) * 0x1p-53;
}

static double random_normal(uint64_t *state)
{
    const double radius = sqrt(-2 * log(random_unit(state)));
    return radius * cos(2 * 3.14159265358979323846 * random_unit(state));
}

double random_gamma(uint64_t *state, double shape)
{
    if (shape == 1) return -log(random_unit(state));
    /* below 1: from one above it, and a power of a uniform number */
    const double raised = shape < 1 ? shape + 1 : shape;
    const double d = raised - 1.0 / 3, c = 1 / sqrt(9 * d);
    double v;
    bool accepted;
    do {
        const double x = random_normal(state);
        v = 1 + c * x;
        v = v * v * v;
        accepted = v > 0 && log(random_unit(state)) < x * x / 2 + d - d * v + d * log(v);
    } while (!accepted);
    const double gamma = d * v * (shape < 1 ? pow(random_unit(state), 1 / shape) : 1);
    return gamma / shape;
}
