/* Random numbers that are the same everywhere: SplitMix64 and what is drawn by it. */
#ifndef LEAN_LAUNCH_BENCH_RANDOM_H
#define LEAN_LAUNCH_BENCH_RANDOM_H

#include <stdint.h>

/* The state moves by a constant, the output mixes it. */
uint64_t random_next(uint64_t *state);
double random_unit(uint64_t *state); /* in (0, 1) */
/* Gamma distributed with this shape and mean 1, by Marsaglia and Tsang (2000). shape > 0. */
double random_gamma(uint64_t *state, double shape);

#endif
