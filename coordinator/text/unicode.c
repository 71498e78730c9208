#include "coordinator/text/unicode.h"

#include <string.h>

#include "coordinator/text/unicode_table.h"

enum unicode_class unicode_class(uint32_t code_point)
{
    if (code_point < 0x80) return unicode_ascii_class[code_point];
    /* The last run that begins at or before code_point; no branch depends on the data. */
    const uint32_t key = code_point << 3 | 7;
    const uint32_t *run = unicode_runs;
    for (size_t n = sizeof(unicode_runs) / sizeof(*unicode_runs); n > 1;) {
        const size_t half = n / 2;
        run += run[half] <= key ? half : 0;
        n -= half;
    }
    return 1u << (*run & 7);
}

int unicode_sequence(const char *text, size_t n)
{
    const unsigned char *byte = (const unsigned char *)text;
    const unsigned lead = byte[0];
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return -1;
    const unsigned length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    for (unsigned i = 1; i < length; i++) {
        if (i == n) return 0;
        /* Only the second byte has bounds of its own: no overlong forms, surrogates, > U+10FFFF. */
        const unsigned min = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const unsigned max = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (byte[i] < min || byte[i] > max) return -1;
    }
    return (int)length;
}

size_t unicode_well_formed(const char *text, size_t n)
{
    size_t at = 0;
    while (at < n) {
        uint64_t eight;
        if (n - at >= sizeof(eight)) {
            memcpy(&eight, text + at, sizeof(eight));
            if (!(eight & 0x8080808080808080u)) {
                at += sizeof(eight);
                continue;
            }
        }
        const int length = unicode_sequence(text + at, n - at);
        if (length <= 0) break;
        at += (size_t)length;
    }
    return at;
}
