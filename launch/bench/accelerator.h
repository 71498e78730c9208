/* What accelerators there are and what energy they took, by NVIDIA's management library where there
 * is one. It is loaded for each question: nothing is asked in the time of a run. */
#ifndef LEAN_LAUNCH_BENCH_ACCELERATOR_H
#define LEAN_LAUNCH_BENCH_ACCELERATOR_H

struct json_object; /* json-c */

/* [{"name", "driver", "power_w"}], null where it cannot be told; the caller owns it. NULL: there is
 * no library, or no device. */
struct json_object *accelerator_list(void);

/* Sum of the devices' counters, in joules; negative: not to be read. */
double accelerator_energy_j(void);

#endif
