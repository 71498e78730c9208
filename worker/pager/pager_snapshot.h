/* All counters of a pager at one time, or the sums of several: each of a rank's own layers.
 *
 * Ownership: plain values; texts are static. */
#ifndef LEAN_WORKER_PAGER_PAGER_SNAPSHOT_H
#define LEAN_WORKER_PAGER_PAGER_SNAPSHOT_H

#include "proto/model/hparams.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/expert_pager.h"

struct pager_snapshot {
    struct expert_pager_stats total;
    struct expert_pager_layer_stats layer[HPARAMS_MAX_LAYER]; /* those of total's range */
    struct device_tier_stats device;                          /* n_slot 0: no device has slots */
};

/* Where the pager's counters may be read. tier: or NULL. */
void pager_snapshot_take(struct pager_snapshot *out, const struct expert_pager *pager,
                         const struct device_tier *tier);
/* Adds the next layers. What is no number (policy, engine) is the first's that has it; rates are
 * the slower ones. */
void pager_snapshot_add(struct pager_snapshot *sum, const struct pager_snapshot *next);

#endif
