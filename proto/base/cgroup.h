/* The control groups that bound this process, version 2 or 1, as the kernel's files tell.
 *
 * A limit may be set on the group itself or on any group above it, so the files are looked for in
 * each of their directories. root: "" for this host; tests give a folder with proc/ and sys/.
 * Source: Linux, Documentation/admin-guide/cgroup-v2.rst. */
#ifndef LEAN_PROTO_BASE_CGROUP_H
#define LEAN_PROTO_BASE_CGROUP_H

#include <stdint.h>

/* version: 1 or 2; folder: of one group, with the files of the controller. */
typedef void (*cgroup_visit_fn)(void *context, int version, const char *folder);

/* The process's group of a controller ("memory"), then those above it. */
void cgroup_walk(const char *root, const char *controller, cgroup_visit_fn visit, void *context);

/* The number behind name in a file of "name number" lines; with name "" the first number of the
 * file. fallback: it is not there. */
uint64_t cgroup_read_number(const char *path, const char *name, uint64_t fallback);

/* Processors' worth of time that the groups allow, rounded up; UINT32_MAX: they set no limit. */
uint32_t cgroup_cpu_limit(const char *root);

#endif
