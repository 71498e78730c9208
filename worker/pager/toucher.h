/* Touches fresh memory ahead of those who will write to it.
 *
 * The first touch of a page costs the system zeroing it, and on a virtual machine whose host must
 * find the page first up to ten times as much as reading its content from a disk. Whoever meets an
 * untouched page holds up what waits behind it, so threads of their own go first.
 *
 * Ownership: the memory is borrowed until toucher_stop.
 * Threads:   its own; start and stop from one. */
#ifndef LEAN_WORKER_PAGER_TOUCHER_H
#define LEAN_WORKER_PAGER_TOUCHER_H

#include <stddef.h>

struct toucher;

struct touch_range {
    void *begin;
    size_t n_bytes;
};

/* Ranges are touched in their order. Without memory (NULL) or threads nothing is, which costs
 * nothing but time. */
struct toucher *toucher_start(const struct touch_range *range, size_t n);
/* What has not been touched stays so. NULL is legal. */
void toucher_stop(struct toucher *toucher);

#endif
