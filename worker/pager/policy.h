/* Policies of the expert cache: how much an expert is worth.
 *
 *   lru     recency alone
 *   lfru    decayed use count, recency breaks ties
 *   static  heat of the profile alone: what it names stays, the rest share what is left
 *
 * A miss in decode must be read and put somewhere whatever it is worth, so it is always admitted in
 * the place of the least; its own worth decides how soon it goes. To refuse it below 1.3 times the
 * worth of what is there lost 0.1 points of hits, and to keep slots for the refused another 0.7 to
 * 2.3: bench/results/pager-policies-2026-11-22.md. */
#ifndef LEAN_WORKER_PAGER_POLICY_H
#define LEAN_WORKER_PAGER_POLICY_H

#include <stdint.h>

/* What is known of an expert, at the time of its layer's last step: so a layer that has yet to run
 * in this step compares fairly with one that has run. */
struct expert_use {
    double heat;   /* uses, decayed */
    uint64_t age;  /* tokens since it was used; EXPERT_NEVER_USED */
    float profile; /* uses per token that it was seeded with */
};

#define EXPERT_NEVER_USED UINT64_MAX

struct cache_policy {
    const char *name;
    /* Higher is kept longer; of equals the older goes. The order of two experts of one layer must
     * stay as it is until one of them is used. */
    double (*worth)(const struct expert_use *use);
    /* Prefill needs nearly every expert once: there, to be admitted in another's place takes more
     * than this many times its worth. INFINITY: prefill displaces nothing. */
    double prefill_advantage;
};

extern const struct cache_policy policy_lru, policy_lfru, policy_static;
/* NULL: there is none of that name. */
const struct cache_policy *policy_find(const char *name);

#endif
