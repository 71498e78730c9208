/* Policies of the expert cache: how much an expert is worth, and when it may take another's place.
 *
 *   lru     recency alone
 *   lfru    decayed use count (half-life 700 tokens), recency breaks ties; another's place only for
 *           1.3 times its worth, so that two experts do not take turns in one slot
 *   static  heat of the profile alone; nothing moves while running
 *
 * Source: expert caches compared in public measurements favour decayed frequency with hysteresis;
 * Least-Stale (arXiv 2602.03921) is the order inside one token. */
#ifndef LEAN_WORKER_PAGER_POLICY_H
#define LEAN_WORKER_PAGER_POLICY_H

#include <stdbool.h>
#include <stdint.h>

/* What is known of an expert. */
struct expert_use {
    double heat;         /* uses, decayed to `now` of the call */
    float profile;       /* heat that it was seeded with */
    uint64_t last_token; /* when it was used last; 0: never */
};

struct cache_policy {
    const char *name;
    /* Higher is kept longer; compared inside a class only. now: tokens so far. */
    double (*worth)(const struct expert_use *use, uint64_t now);
    /* May the candidate take the place of the victim? */
    bool (*admits)(double candidate, double victim);
    bool admits_prefill; /* whether steps of many tokens may displace what is resident */
};

extern const struct cache_policy policy_lru, policy_lfru, policy_static;
/* NULL: there is none of that name. */
const struct cache_policy *policy_find(const char *name);

#endif
