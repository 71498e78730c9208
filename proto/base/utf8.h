/* UTF-8 sequences: overlong forms, surrogates and values above U+10FFFF are malformed. */
#ifndef LEAN_PROTO_BASE_UTF8_H
#define LEAN_PROTO_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the character that the n bytes begin with, its code point in *code (may be NULL);
 * 0: malformed, or cut off by the end. */
size_t utf8_decode(const char *bytes, size_t n, uint32_t *code);

/* Writes a code point that is a character; returns its length, 1 to 4. */
size_t utf8_encode(uint32_t code, char out[4]);

#endif
