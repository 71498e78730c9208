/* Lines of /proc/self/cgroup: "0::/GROUP" in version 2, "N:...,memory,...:/GROUP" in version 1. */
#include "proto/base/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 1400 };

uint64_t cgroup_read_number(const char *path, const char *name, uint64_t fallback)
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

/* Whether list, "cpu,cpuacct", holds the name. */
static bool lists(const char *list, const char *name)
{
    const size_t n = strlen(name);
    for (const char *at = list; *at;) {
        const size_t length = strcspn(at, ",");
        if (length == n && !memcmp(at, name, n)) return true;
        at += length + (at[length] == ',');
    }
    return false;
}

/* group: as the kernel names it; is cut. */
static void walk_up(const char *mount, int version, char *group, cgroup_visit_fn visit,
                    void *context)
{
    for (;;) {
        char folder[PATH_BYTES];
        snprintf(folder, sizeof(folder), "%s%s", mount, group);
        visit(context, version, folder);
        char *slash = strrchr(group, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

void cgroup_walk(const char *root, const char *controller, cgroup_visit_fn visit, void *context)
{
    char path[PATH_BYTES], mount[256], line[1024];
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    if (!file) return;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(++controllers, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        const bool unified = !*controllers;
        if (!unified && !lists(controllers, controller)) continue;
        if (!strcmp(group, "/")) *group = '\0';
        snprintf(mount, sizeof(mount), "%s/sys/fs/cgroup%s%s", root, unified ? "" : "/",
                 unified ? "" : controller);
        walk_up(mount, unified ? 2 : 1, group, visit, context);
    }
    fclose(file);
}

/* cpu.max is "QUOTA PERIOD", or "max PERIOD" without a limit; version 1 has -1 in a file of its
 * own. */
static void take_least_cpu(void *context, int version, const char *folder)
{
    uint32_t *least = context;
    char path[PATH_BYTES + 32];
    unsigned long long quota = 0, period = 0;
    if (version == 2) {
        snprintf(path, sizeof(path), "%s/cpu.max", folder);
        FILE *file = fopen(path, "re");
        const bool limited = file && fscanf(file, "%llu %llu", &quota, &period) == 2;
        if (file) fclose(file);
        if (!limited) return;
    } else {
        snprintf(path, sizeof(path), "%s/cpu.cfs_quota_us", folder);
        quota = cgroup_read_number(path, "", 0);
        snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", folder);
        period = cgroup_read_number(path, "", 0);
        if (quota > INT64_MAX) return; /* -1: no limit */
    }
    if (!quota || !period) return;
    const uint64_t n = quota / period + (quota % period != 0);
    if (n < *least) *least = (uint32_t)n;
}

uint32_t cgroup_cpu_limit(const char *root)
{
    uint32_t least = UINT32_MAX;
    cgroup_walk(root, "cpu", take_least_cpu, &least);
    return least;
}
