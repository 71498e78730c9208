/* Policies of the expert cache: how much an expert is worth, and when it may take another's place.
 *
 *   lru     recency alone
 *   lfru    decayed use count (half-life 700 tokens), recency breaks ties; another's place only for
 *           1.3 times its worth, so that two experts do not take turns in one slot
 *   static  heat of the profile alone; nothing moves while running
 *
 * Source: expert caches compared in public measurements favour decayed frequency with hysteresis.
 */
#ifndef LEAN_WORKER_PAGER_POLICY_H
#define LEAN_WORKER_PAGER_POLICY_H

#include <stdbool.h>
#include <stdint.h>

/* What is known of an expert, at the time of its layer's last step: so a layer that has yet to run
 * in this step compares fairly with one that has run. */
struct expert_use {
    double heat;   /* uses, decayed */
    uint64_t age;  /* tokens since it was used; EXPERT_NEVER_USED */
    float profile; /* heat that it was seeded with */
};

#define EXPERT_NEVER_USED UINT64_MAX

struct cache_policy {
    const char *name;
    double half_life; /* of heat, in tokens; INFINITY: it does not decay */
    /* Higher is kept longer; of equals the older goes. The order of two experts of one layer must
     * stay as it is until one of them is used. */
    double (*worth)(const struct expert_use *use);
    /* A newcomer takes another's place for this many times its worth. 0: always; INFINITY: never.
     */
    double advantage;
    bool admits_prefill; /* whether steps of many tokens may displace what is resident */
    /* Share of the slots that experts which were not admitted pass through, least first. */
    double window;
};

extern const struct cache_policy policy_lru, policy_lfru, policy_static;
/* NULL: there is none of that name. */
const struct cache_policy *policy_find(const char *name);

#endif
