/* The energy that the processors' packages took, where the kernel shows it (RAPL) and lets us read
 * it, which newer ones do for root only. */
#ifndef LEAN_LAUNCH_BENCH_ENERGY_H
#define LEAN_LAUNCH_BENCH_ENERGY_H

/* Sum of the packages' counters, in joules; negative: not to be read. */
double energy_read_j(void);
/* Since a reading; negative: not to be read, or a counter stands or has begun anew. */
double energy_since_j(double reading_j);

#endif
