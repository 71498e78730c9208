/* Edit distance over short names. */
#include "proto/base/nearest.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { NAME_MAX_LENGTH = 64 }; /* longer names are never near anything */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Optimal string alignment: three rows of the usual table, row[i % 3][j] = distance of the first i
 * bytes of a to the first j of b. */
static size_t edit_distance(const char *a, const char *b)
{
    const size_t n = strlen(a), m = strlen(b);
    size_t row[3][NAME_MAX_LENGTH + 1];
    if (n > NAME_MAX_LENGTH || m > NAME_MAX_LENGTH) return SIZE_MAX;
    for (size_t j = 0; j <= m; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const int ai = tolower((unsigned char)a[i - 1]), bj = tolower((unsigned char)b[j - 1]);
            now[j] = least(least(now[j - 1], up[j]) + 1, up[j - 1] + (ai != bj));
            const bool swapped = i > 1 && j > 1 && ai == tolower((unsigned char)b[j - 2]) &&
                                 bj == tolower((unsigned char)a[i - 2]);
            if (swapped) now[j] = least(now[j], up2[j - 2] + 1);
        }
    }
    return row[n % 3][m];
}

void nearest_offer(struct nearest *nearest, const char *candidate)
{
    size_t distance = edit_distance(nearest->word, candidate);
    /* A cut-off name ("--temp") is far by edits but plainly meant. */
    const size_t n = strlen(nearest->word);
    if (n >= 3 && !strncmp(candidate, nearest->word, n)) distance = least(distance, 1);
    if (nearest->best && distance >= nearest->distance) return;
    nearest->best = candidate;
    nearest->distance = distance;
}

const char *nearest_name(const struct nearest *nearest)
{
    const size_t allowed = 1 + strlen(nearest->word) / 4;
    return nearest->best && nearest->distance <= allowed ? nearest->best : NULL;
}
