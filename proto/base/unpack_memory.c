#include "proto/base/unpack_memory.h"

#include <stdlib.h>

static void *take(void *context, size_t n)
{
    struct unpack_memory *memory = context;
    if (n > memory->n_left) return NULL;
    memory->n_left -= n;
    void *taken = malloc(n);
    if (!taken) memory->failed = true;
    return taken;
}

static void release(void *context, void *taken)
{
    (void)context;
    free(taken);
}

void unpack_memory_init(struct unpack_memory *memory, size_t n_bytes_max)
{
    *memory = (struct unpack_memory){.allocator = {take, release, memory}, .n_left = n_bytes_max};
}
