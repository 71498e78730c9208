/* Where the golden data lies that is not committed: $LEAN_GOLDEN_DIR, else ../shared/golden beside
 * the source. A test that needs it and gets false ends with GOLDEN_SKIP. */
#ifndef LEAN_TESTS_UNIT_GOLDEN_DIR_H
#define LEAN_TESTS_UNIT_GOLDEN_DIR_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { GOLDEN_SKIP = 77 };

static inline bool golden_dir(char *path, size_t size)
{
    const char *given = getenv("LEAN_GOLDEN_DIR"), *source = getenv("LEAN_SOURCE_DIR");
    if (given)
        snprintf(path, size, "%s", given);
    else
        snprintf(path, size, "%s/../shared/golden", source ? source : ".");
    if (!access(path, R_OK)) return true;
    printf("SKIPPED: no golden data at %s (LEAN_GOLDEN_DIR)\n", path);
    return false;
}

#endif
