/* Arrays that grow by doubling. */
#ifndef LEAN_COORDINATOR_GRAMMAR_GROW_H
#define LEAN_COORDINATOR_GRAMMAR_GROW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Makes room for n elements of `size` bytes in *array, which has room for *room. False: no memory,
 * nothing has changed. */
static inline bool grow_to(void *array, size_t *room, size_t n, size_t size)
{
    if (n <= *room) return true;
    size_t more = *room < 16 ? 16 : *room;
    while (more < n)
        more *= 2;
    void **const at = array;
    void *grown = realloc(*at, more * size);
    if (!grown) return false;
    *at = grown;
    *room = more;
    return true;
}

#endif
