#include "worker/pager/toucher.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { THREADS_MAX = 4, PAGE_BYTES = 4096 };

struct toucher {
    struct touch_range *range; /* [n] */
    size_t n;
    atomic_size_t next; /* range to touch */
    atomic_bool stop;
    pthread_t thread[THREADS_MAX];
    uint32_t n_thread;
};

static void *run(void *context)
{
    struct toucher *toucher = context;
    size_t i;
    while ((i = atomic_fetch_add(&toucher->next, 1)) < toucher->n && !atomic_load(&toucher->stop)) {
        const uintptr_t begin = (uintptr_t)toucher->range[i].begin / PAGE_BYTES * PAGE_BYTES;
        const uintptr_t end = (uintptr_t)toucher->range[i].begin + toucher->range[i].n_bytes;
        if (madvise((void *)begin, end - begin, MADV_POPULATE_WRITE))
            break; /* a kernel before 5.14: whoever writes touches what he needs */
    }
    return NULL;
}

struct toucher *toucher_start(const struct touch_range *range, size_t n)
{
    const long n_cpu = sysconf(_SC_NPROCESSORS_ONLN);
    struct toucher *toucher = calloc(1, sizeof(*toucher));
    if (toucher) toucher->range = calloc(n + 1, sizeof(*range));
    if (!toucher || !toucher->range) {
        free(toucher);
        return NULL;
    }
    memcpy(toucher->range, range, n * sizeof(*range));
    toucher->n = n;
    while (toucher->n_thread < THREADS_MAX && toucher->n_thread < n_cpu &&
           !pthread_create(&toucher->thread[toucher->n_thread], NULL, run, toucher))
        toucher->n_thread++;
    return toucher;
}

void toucher_stop(struct toucher *toucher)
{
    if (!toucher) return;
    atomic_store(&toucher->stop, true);
    for (uint32_t i = 0; i < toucher->n_thread; i++)
        pthread_join(toucher->thread[i], NULL);
    free(toucher->range);
    free(toucher);
}
