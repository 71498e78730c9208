/* How fast this machine's processors compute with weights in memory, by the very operations of the
 * engine: a matrix times a vector, with the threads and kernels that a run would have, where no
 * cache holds the weights. Plain reads of memory give more than most kernels take.
 *
 * Rates are kept for a week in the user's cache folder (message lean.Kernels). */
#ifndef LEAN_LAUNCH_BENCH_KERNEL_PROBE_H
#define LEAN_LAUNCH_BENCH_KERNEL_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

struct kernel_rates {
    double bytes_s[TENSOR_TYPE_COUNT]; /* of weights of a type; 0: not measured */
    double op_s;                       /* of an operation on next to nothing: threads that meet */
};

/* Kernels beside a thread that copies, as experts are when they come from a disk: bytes/s of the
 * type that most weights have, without and with it, and its own. */
struct kernel_overlap {
    double alone_bytes_s, beside_bytes_s, copy_bytes_s;
};

struct kernel_probe_config {
    uint32_t n_thread;   /* 0: one for each physical core */
    const char *kernels; /* "auto" */
    bool afresh;         /* what was kept does not count */
    /* How much of each type the model has: types with next to nothing of all are not measured. */
    const uint64_t *bytes;          /* [TENSOR_TYPE_COUNT] */
    struct kernel_overlap *overlap; /* to be measured, too, if something is; or NULL */
};

/* 0.1 s for each type that is not known yet, and about a second before the first. LM_E_NO_MEM;
 * LM_E_USAGE: no such kernels. */
enum lm_status kernel_probe_run(struct kernel_rates *out, const struct kernel_probe_config *config,
                                struct lm_error *err);

/* Seconds to compute with these bytes. Types that were not measured are taken for the slowest. */
double kernel_rates_seconds(const struct kernel_rates *rates,
                            const uint64_t bytes[TENSOR_TYPE_COUNT]);

#endif
