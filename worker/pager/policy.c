/* The policies and the list of them. */
#include "worker/pager/policy.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static double worth_recency(const struct expert_use *use)
{
    return -(double)use->age;
}

const struct cache_policy policy_lru = {
    .name = "lru", .half_life = INFINITY, .worth = worth_recency, .advantage = 0};

static double worth_heat(const struct expert_use *use)
{
    return use->heat;
}

const struct cache_policy policy_lfru = {.name = "lfru",
                                         .half_life = 700,
                                         .worth = worth_heat,
                                         .advantage = 1.3,
                                         .admits_prefill = true,
                                         .window = 1.0 / 64};

static double worth_profile(const struct expert_use *use)
{
    return use->profile;
}

const struct cache_policy policy_static = {.name = "static",
                                           .half_life = 700, /* for the profile that is kept */
                                           .worth = worth_profile,
                                           .advantage = INFINITY,
                                           .window = 1.0 / 64};

const struct cache_policy *policy_find(const char *name)
{
    static const struct cache_policy *const policies[] = {&policy_lru, &policy_lfru,
                                                          &policy_static};
    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
        if (!strcmp(policies[i]->name, name)) return policies[i];
    return NULL;
}
