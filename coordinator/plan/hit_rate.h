/* How many lookups of experts find theirs in memory, before anything has run. */
#ifndef LEAN_COORDINATOR_PLAN_HIT_RATE_H
#define LEAN_COORDINATOR_PLAN_HIT_RATE_H

/* When n of n_expert experts are in memory: a fit to published measurements of warm caches, good to
 * some six points. Experts chosen evenly give n / n_expert. used_share: experts of a token over
 * those of a layer. */
double hit_rate_expected(double n, double n_expert, double used_share);

#endif
