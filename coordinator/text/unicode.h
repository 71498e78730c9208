/* Unicode as tokenizers see it: UTF-8 sequences and one class per code point.
 *
 * Classes come from the general categories of Unicode 15.1 and the property White_Space, which
 * wins over the category. They are bits, so that a pattern's character class is a mask.
 *
 * Threads: pure functions over constant tables. */
#ifndef LEAN_COORDINATOR_TEXT_UNICODE_H
#define LEAN_COORDINATOR_TEXT_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum unicode_class {
    UNICODE_OTHER = 1, /* control, format, private use, unassigned */
    UNICODE_LETTER = 2,
    UNICODE_MARK = 4,
    UNICODE_NUMBER = 8, /* Nd, Nl, No */
    UNICODE_PUNCT = 16,
    UNICODE_SYMBOL = 32,
    UNICODE_SPACE = 64,    /* white space but for the next */
    UNICODE_NEWLINE = 128, /* CR and LF */
};

/* Replaces what is malformed: U+FFFD in UTF-8. */
#define UNICODE_REPLACEMENT "\xEF\xBF\xBD"

enum unicode_class unicode_class(uint32_t code_point);

/* Length of the well-formed UTF-8 sequence that text begins with; 0: text is a proper beginning of
 * one; -1: neither. Overlong forms, surrogates and values above U+10FFFF are malformed. n >= 1. */
int unicode_sequence(const char *text, size_t n);

/* Length of the longest well-formed beginning of text. */
size_t unicode_well_formed(const char *text, size_t n);

extern const unsigned char unicode_ascii_class[128];

/* For text that is known to be well-formed: the code point at text, its length in *n. */
static inline uint32_t unicode_decode(const char *text, unsigned *n)
{
    const unsigned char *byte = (const unsigned char *)text;
    if (byte[0] < 0x80) {
        *n = 1;
        return byte[0];
    }
    if (byte[0] < 0xE0) {
        *n = 2;
        return (byte[0] & 0x1Fu) << 6 | (byte[1] & 0x3Fu);
    }
    if (byte[0] < 0xF0) {
        *n = 3;
        return (byte[0] & 0xFu) << 12 | (byte[1] & 0x3Fu) << 6 | (byte[2] & 0x3Fu);
    }
    *n = 4;
    return (byte[0] & 7u) << 18 | (byte[1] & 0x3Fu) << 12 | (byte[2] & 0x3Fu) << 6 |
           (byte[3] & 0x3Fu);
}

/* As unicode_decode, but the class of the code point. */
static inline unsigned unicode_class_at(const char *text, unsigned *n)
{
    if ((unsigned char)*text < 0x80) {
        *n = 1;
        return unicode_ascii_class[(unsigned char)*text];
    }
    return unicode_class(unicode_decode(text, n));
}

#endif
