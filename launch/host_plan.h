/* Which ranks of a job run on which host: from --ranks, --hosts and --hostfile.
 *
 * A host without a number of slots has one. Ranks are given out host after host, so that
 * neighbours in the pipeline share a host where they can; more ranks than slots are spread evenly
 * if no host says how many it takes. */
#ifndef LEAN_LAUNCH_HOST_PLAN_H
#define LEAN_LAUNCH_HOST_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct host_plan {
    uint32_t n_rank;
    char *hosts;        /* of each rank, "a,a,b"; NULL: none were named */
    bool rank0_is_here; /* rank 0 runs on this host */
};

/* n_rank: 0: as many as there are slots. hosts, hostfile: NULL where not given. LM_E_USAGE: both
 * given, a name that is none, fewer slots than ranks, a line that is not understood. */
enum lm_status host_plan_init(struct host_plan *plan, uint32_t n_rank, const char *hosts,
                              const char *hostfile, struct lm_error *err);
void host_plan_fini(struct host_plan *plan);

/* The first host whose name this one does not know, and why: for a job that could not be started,
 * since what starts ranks may know it by another way. False: there is none. */
bool host_plan_unknown(const struct host_plan *plan, char *text, size_t size);

#endif
