/* What a file's disk gives to the engine's own reader, by engine and by how many reads are under
 * way at once. */
#ifndef LEAN_LAUNCH_BENCH_DISK_PROBE_H
#define LEAN_LAUNCH_BENCH_DISK_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct disk_rate {
    const char *io; /* as --io has it: "uring", "pread", "buffered" */
    uint32_t depth;
    double bytes_s;
};
enum { DISK_RATE_MAX = 16 };

/* Reads of 1 MiB at places far apart, 0.1 s for each of out: [*n]. What the system refuses is left
 * out. LM_E_NOT_FOUND, LM_E_IO: the file; LM_E_NO_MEM. */
enum lm_status disk_probe_run(struct disk_rate out[DISK_RATE_MAX], size_t *n, const char *path,
                              struct lm_error *err);

#endif
