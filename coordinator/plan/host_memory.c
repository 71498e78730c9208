/* host_memory_available: /proc/meminfo and the memory cgroup, version 2 or 1. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/memory_plan.h"

/* The number behind name in a file of "name number" lines; fallback if it is not there. A file
 * that holds one number only is read with name "". */
static uint64_t read_number(const char *path, const char *name, uint64_t fallback)
{
    FILE *file = fopen(path, "re");
    if (!file) return fallback;
    char line[256];
    const size_t n_name = strlen(name);
    uint64_t value = fallback;
    while (fgets(line, sizeof(line), file)) {
        unsigned long long number;
        if (strncmp(line, name, n_name) || sscanf(line + n_name, " %llu", &number) != 1) continue;
        value = number;
        break;
    }
    fclose(file);
    return value;
}

/* Where the files of a controller are, and what they are called. */
struct cgroup_version {
    const char *mount, *limit, *usage, *cache;
};
static const struct cgroup_version version_2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                                "file"};
static const struct cgroup_version version_1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                                "memory.usage_in_bytes", "total_cache"};

/* What one group leaves; page cache that it is charged for can be dropped. */
static uint64_t left_by_group(const struct cgroup_version *version, const char *group)
{
    char path[1200];
    snprintf(path, sizeof(path), "%s%s/%s", version->mount, group, version->limit);
    const uint64_t limit = read_number(path, "", UINT64_MAX); /* "max" is no number */
    if (limit == UINT64_MAX) return limit;
    snprintf(path, sizeof(path), "%s%s/%s", version->mount, group, version->usage);
    const uint64_t usage = read_number(path, "", 0);
    snprintf(path, sizeof(path), "%s%s/memory.stat", version->mount, group);
    const uint64_t cache = read_number(path, version->cache, 0);
    const uint64_t held = usage > cache ? usage - cache : 0;
    return limit > held ? limit - held : 0;
}

/* The least of what the group and those above it leave. */
static uint64_t left_by_groups(const struct cgroup_version *version, char *group)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        const uint64_t left = left_by_group(version, group);
        least = left < least ? left : least;
        char *slash = strrchr(group, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup: "0::/GROUP" in version 2, "N:...,memory,...:/GROUP" in version 1. */
static uint64_t left_by_cgroups(void)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    uint64_t least = UINT64_MAX;
    char line[1024];
    while (file && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        const bool unified = !strcmp(controllers, ":");
        if (!unified && !strstr(controllers, "memory")) continue;
        if (!strcmp(group, "/")) *group = '\0';
        const uint64_t left = left_by_groups(unified ? &version_2 : &version_1, group);
        least = left < least ? left : least;
    }
    if (file) fclose(file);
    return least;
}

uint64_t host_memory_available(void)
{
    const uint64_t free_bytes = read_number("/proc/meminfo", "MemAvailable:", 0) * 1024;
    const uint64_t allowed = left_by_cgroups();
    return free_bytes < allowed ? free_bytes : allowed;
}
