/* Dividing, and asking hwloc. */
#include "launch/binding.h"

#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proto/base/log.h"

void binding_nodes(struct local_rank rank, uint32_t n_node, uint32_t *begin, uint32_t *end)
{
    *begin = (uint32_t)((uint64_t)rank.index * n_node / rank.n);
    *end = (uint32_t)((uint64_t)(rank.index + 1) * n_node / rank.n);
    if (*end == *begin) ++*end; /* more ranks than nodes: it has part of one */
}

/* ---- devices ---- */

/* A device of a list: its number, or its UUID as "GPU-..." or without that. */
static bool find_device(const char *name, size_t n, const char *const *uuids, uint32_t n_device,
                        uint32_t *out)
{
    static const char prefix[] = "GPU-";
    char *end;
    if (*name >= '0' && *name <= '9') {
        const unsigned long number = strtoul(name, &end, 10);
        *out = number < n_device ? (uint32_t)number : n_device;
        if (end == name + n) return *out < n_device;
    }
    if (n > 4 && !strncmp(name, prefix, 4)) {
        name += 4;
        n -= 4;
    }
    for (*out = 0; uuids && *out < n_device; ++*out)
        if (strlen(uuids[*out]) == n && !strncasecmp(uuids[*out], name, n)) return true;
    return false;
}

/* devices: [n_device], those of the list, *n of them. */
static enum lm_status read_devices(const char *list, const char *const *uuids, uint32_t n_device,
                                   uint32_t *devices, uint32_t *n, struct lm_error *err)
{
    *n = 0;
    for (const char *at = list;; at++) {
        const size_t length = strcspn(at, ",");
        uint32_t device;
        if (!length)
            return lm_fail(err, LM_E_USAGE, "--devices: '%.80s' is no list of devices, as 0,1,2",
                           list);
        if (!find_device(at, length, uuids, n_device, &device))
            return lm_fail(err, LM_E_USAGE, "--devices: there is no device %.*s, but %u in all",
                           length < 80 ? (int)length : 80, at, n_device);
        for (uint32_t i = 0; i < *n; i++)
            if (devices[i] == device)
                return lm_fail(err, LM_E_USAGE, "--devices %.80s: device %u twice", list, device);
        devices[(*n)++] = device;
        at += length;
        if (!*at) return LM_OK;
    }
}

enum lm_status binding_device(struct local_rank rank, const char *list, const char *const *uuids,
                              uint32_t n_device, uint32_t *out, struct lm_error *err)
{
    uint32_t n = n_device;
    uint32_t *const devices = calloc(n_device, sizeof(*devices));
    if (!devices) return lm_fail(err, LM_E_NO_MEM, "no memory for %u devices", n_device);
    for (uint32_t i = 0; i < n_device; i++)
        devices[i] = i;
    enum lm_status status = LM_OK;
    if (list) status = read_devices(list, uuids, n_device, devices, &n, err);
    if (status == LM_OK) *out = devices[rank.index % n];
    free(devices);
    return status;
}

/* ---- nodes ---- */

struct binding {
    hwloc_topology_t topology;
    hwloc_bitmap_t before;
};

static void say(const struct local_rank *rank, uint32_t begin, uint32_t end, hwloc_bitmap_t units)
{
    char text[200];
    hwloc_bitmap_list_snprintf(text, sizeof(text), units);
    if (end == begin + 1)
        log_info("rank %u of %u on this host: bound to NUMA node %u, processors %s", rank->index,
                 rank->n, begin, text);
    else
        log_info("rank %u of %u on this host: bound to NUMA nodes %u to %u, processors %s",
                 rank->index, rank->n, begin, end - 1, text);
}

/* The processors of the rank's nodes that it may use. False: it need not be bound, or cannot. */
static bool find_units(hwloc_topology_t topology, const struct local_rank *rank,
                       hwloc_bitmap_t units, uint32_t *begin, uint32_t *end)
{
    const int n_node = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
    if (n_node < 2) return false;
    binding_nodes(*rank, (uint32_t)n_node, begin, end);
    for (uint32_t i = *begin; i < *end; i++)
        hwloc_bitmap_or(units, units,
                        hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, i)->cpuset);
    hwloc_bitmap_and(units, units, hwloc_topology_get_allowed_cpuset(topology));
    return !hwloc_bitmap_iszero(units);
}

struct binding *binding_begin(struct local_rank rank)
{
    struct binding *binding = rank.n > 1 ? calloc(1, sizeof(*binding)) : NULL;
    hwloc_bitmap_t units = NULL;
    uint32_t begin, end;
    if (!binding) return NULL;
    if (hwloc_topology_init(&binding->topology)) goto free_binding;
    if (hwloc_topology_load(binding->topology)) goto destroy_topology;
    units = hwloc_bitmap_alloc();
    binding->before = hwloc_bitmap_alloc();
    if (!units || !binding->before || !find_units(binding->topology, &rank, units, &begin, &end) ||
        hwloc_get_cpubind(binding->topology, binding->before, HWLOC_CPUBIND_THREAD))
        goto free_sets;
    if (hwloc_set_cpubind(binding->topology, units, HWLOC_CPUBIND_THREAD)) {
        log_verbose("rank %u of %u on this host could not be bound to its NUMA nodes", rank.index,
                    rank.n);
        goto free_sets;
    }
    say(&rank, begin, end, units);
    hwloc_bitmap_free(units);
    return binding;

free_sets:
    hwloc_bitmap_free(units);
    hwloc_bitmap_free(binding->before);
destroy_topology:
    hwloc_topology_destroy(binding->topology);
free_binding:
    free(binding);
    return NULL;
}

void binding_end(struct binding *binding)
{
    if (!binding) return;
    hwloc_set_cpubind(binding->topology, binding->before, HWLOC_CPUBIND_THREAD);
    hwloc_bitmap_free(binding->before);
    hwloc_topology_destroy(binding->topology);
    free(binding);
}
