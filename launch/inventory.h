/* What this host has for a rank: threads, memory, and how fast memory and disk are.
 *
 * The rates are measured once, 0.2 s each, and kept for a week in the user's cache folder (message
 * lean.Machine); ranks of one host that start at once take turns, so that one measures and the
 * others read. They steer the cut into stages (coordinator/plan/partition.h) and predictions; no
 * result depends on them. */
#ifndef LEAN_LAUNCH_INVENTORY_H
#define LEAN_LAUNCH_INVENTORY_H

#include <stdint.h>

struct inventory {
    char host[65];
    uint32_t n_thread;
    uint64_t ram_bytes;    /* that can be had without swapping, by all ranks of the host */
    double memory_bytes_s; /* reading, with n_thread threads */
    double disk_bytes_s;   /* of the file's disk, past the page cache */
};

/* n_thread 0: one for each physical core. What cannot be measured (no direct reads, no memory)
 * gets a usual value, with a warning. */
void inventory_take(struct inventory *out, const char *model_path, uint32_t n_thread);
/* The same, but the rates are measured now, for those who ask about the machine itself: what was
 * kept may be of a moment when it was busy. */
void inventory_measure(struct inventory *out, const char *model_path, uint32_t n_thread);

#endif
