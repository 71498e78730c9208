/* Code points as Python's str sees them: classes, case mappings, UTF-8.
 *
 * Text inside the template engine is UTF-8 of any code point up to U+10FFFF, lone surrogates
 * included (Python has them in strings; the finished text must not). Decoding assumes that the
 * bytes were checked by jinja_utf8_check or written by jinja_utf8_put.
 *
 * The tables are jinja_unicode_data.h, written by jinja_unicode_gen.py. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_UNICODE_H
#define LEAN_COORDINATOR_TEXT_JINJA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum jinja_char_class { /* str.isalpha and so on; bits */
                        CHAR_ALPHA = 1 << 0,
                        CHAR_DECIMAL = 1 << 1,
                        CHAR_DIGIT = 1 << 2,
                        CHAR_NUMERIC = 1 << 3,
                        CHAR_LOWER = 1 << 4,
                        CHAR_UPPER = 1 << 5,
                        CHAR_TITLE = 1 << 6,
                        CHAR_SPACE = 1 << 7,
                        CHAR_PRINTABLE = 1 << 8,
                        CHAR_CASED = 1 << 9,
                        CHAR_CASE_IGNORABLE = 1 << 10,
                        CHAR_ID_START = 1 << 11,
                        CHAR_ID_CONTINUE = 1 << 12
};
enum { CHAR_ALNUM = CHAR_ALPHA | CHAR_DECIMAL | CHAR_DIGIT | CHAR_NUMERIC };

unsigned jinja_char_classes(uint32_t c);
/* 0 to 9 of a CHAR_DECIMAL. */
unsigned jinja_char_decimal(uint32_t c);

/* Full case mappings, without regard to neighbours: 1 to 3 code points. */
unsigned jinja_char_lower(uint32_t c, uint32_t out[3]);
unsigned jinja_char_upper(uint32_t c, uint32_t out[3]);
unsigned jinja_char_title(uint32_t c, uint32_t out[3]);

/* Writes c (at most 4 bytes) and returns the length. */
unsigned jinja_utf8_put(uint32_t c, char *out);
/* The code point at *p, which moves on past it. */
uint32_t jinja_utf8_get(const char **p);
/* The code point that ends before *p, which moves back to its start. */
uint32_t jinja_utf8_get_before(const char **p);
size_t jinja_utf8_count(const char *bytes, size_t n_bytes);
/* Where the code point with that index starts, index <= count. */
const char *jinja_utf8_at(const char *bytes, size_t index);
/* Well-formed UTF-8; surrogates only where they are allowed. */
bool jinja_utf8_check(const char *bytes, size_t n_bytes, bool surrogates);

#endif
