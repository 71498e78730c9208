/* The policies and the list of them. */
#include "worker/pager/policy.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static double worth_recency(const struct expert_use *use)
{
    return -(double)use->age;
}

static double worth_heat(const struct expert_use *use)
{
    return use->heat;
}

static double worth_profile(const struct expert_use *use)
{
    return use->profile;
}

const struct cache_policy policy_lru = {"lru", worth_recency, INFINITY};
const struct cache_policy policy_lfru = {"lfru", worth_heat, 1.3};
const struct cache_policy policy_static = {"static", worth_profile, INFINITY};

const struct cache_policy *policy_find(const char *name)
{
    static const struct cache_policy *const policies[] = {&policy_lru, &policy_lfru,
                                                          &policy_static};
    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
        if (!strcmp(policies[i]->name, name)) return policies[i];
    return NULL;
}
