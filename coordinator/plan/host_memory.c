/* /proc/meminfo, /proc/self/status and the memory cgroup, version 2 or 1. */
#include <stdio.h>

#include "coordinator/plan/memory_plan.h"
#include "proto/base/cgroup.h"

/* What one group leaves; page cache that it is charged for can be dropped. */
static void take_least(void *context, int version, const char *folder)
{
    uint64_t *least = context;
    char path[1500];
    snprintf(path, sizeof(path), "%s/%s", folder,
             version == 2 ? "memory.max" : "memory.limit_in_bytes");
    const uint64_t limit = cgroup_read_number(path, "", UINT64_MAX); /* "max" is no number */
    if (limit == UINT64_MAX) return;
    snprintf(path, sizeof(path), "%s/%s", folder,
             version == 2 ? "memory.current" : "memory.usage_in_bytes");
    const uint64_t usage = cgroup_read_number(path, "", 0);
    snprintf(path, sizeof(path), "%s/memory.stat", folder);
    const uint64_t cache = cgroup_read_number(path, version == 2 ? "file" : "total_cache", 0);
    const uint64_t held = usage > cache ? usage - cache : 0;
    const uint64_t left = limit > held ? limit - held : 0;
    if (left < *least) *least = left;
}

uint64_t host_memory_available(void)
{
    const uint64_t free_kib =
        cgroup_read_number("/proc/meminfo", "MemAvailable:", UINT64_MAX / 1024);
    uint64_t least = free_kib * 1024;
    cgroup_walk("", "memory", take_least, &least);
    return least;
}

uint64_t host_memory_taken(void)
{
    return cgroup_read_number("/proc/self/status", "RssAnon:", UINT64_MAX / 1024) * 1024;
}

uint64_t host_memory_resident(void)
{
    return cgroup_read_number("/proc/self/status", "VmRSS:", 0) * 1024;
}
