#include "coordinator/server/random_id.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { N_RANDOM = 24 };

void random_id_make(char out[RANDOM_ID_SIZE], const char *prefix)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    unsigned char random[2 * N_RANDOM];
    size_t n = strlen(prefix), used = sizeof(random);
    assert(n + N_RANDOM < RANDOM_ID_SIZE);
    memcpy(out, prefix, n);
    for (const size_t end = n + N_RANDOM; n < end;) {
        if (used == sizeof(random)) {
            /* up to 256 bytes are never interrupted; without the kernel's source we cannot go on */
            if (getrandom(random, sizeof(random), 0) != sizeof(random)) abort();
            used = 0;
        }
        const unsigned char six_bits = random[used++] & 63;
        if (six_bits < sizeof(digits) - 1) out[n++] = digits[six_bits];
    }
    out[n] = '\0';
}
