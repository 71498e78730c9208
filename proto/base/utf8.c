/* UTF-8, read and written one character at a time. */
#include "proto/base/utf8.h"

size_t utf8_decode(const char *bytes, size_t n, uint32_t *code)
{
    static const uint32_t lowest[] = {0, 0, 0x80, 0x800, 0x10000}; /* by length */
    if (!n) return 0;
    const unsigned char lead = (unsigned char)bytes[0];
    const size_t length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (!length || length > n || lead > 0xf4) return 0;
    uint32_t value = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        const unsigned char next = (unsigned char)bytes[i];
        if ((next & 0xc0) != 0x80) return 0;
        value = value << 6 | (next & 0x3f);
    }
    if (value < lowest[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
    if (code) *code = value;
    return length;
}

size_t utf8_encode(uint32_t code, char out[4])
{
    static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0}; /* by length */
    const size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    out[0] = (char)(leads[length] | code >> (6 * (length - 1)));
    for (size_t i = 1; i < length; i++)
        out[i] = (char)(0x80 | (code >> (6 * (length - 1 - i)) & 0x3f));
    return length;
}
