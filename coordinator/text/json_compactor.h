/* Reads one JSON value byte by byte and writes it without white space.
 *
 * Numbers and strings keep their spelling; control characters that stand raw in a string are
 * escaped, so what comes out is JSON. White space may come before the value, none after it.
 * Nesting up to 128.
 *
 * Threads: a value of a few words; one owner. */
#ifndef LEAN_COORDINATOR_TEXT_JSON_COMPACTOR_H
#define LEAN_COORDINATOR_TEXT_JSON_COMPACTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct byte_buffer;

enum { JSON_COMPACTOR_DEPTH_MAX = 128 };

struct json_compactor {
    uint64_t objects[JSON_COMPACTOR_DEPTH_MAX / 64]; /* bit i: the i-th open bracket is a brace */
    const char *word;                                /* what is left of true, false or null */
    uint8_t state;                                   /* private; 0: nothing was read */
    uint8_t depth;                                   /* open brackets */
    uint8_t n_hex;                                   /* digits of an escape that are to come */
    bool in_key;                                     /* the string is a member's name */
};

/* A zero-initialised compactor is at the beginning. False: the byte cannot come here; the compactor
 * is then as it was. */
bool json_compactor_take(struct json_compactor *json, char byte, struct byte_buffer *out);
/* The value may end here; a number may also go on. */
bool json_compactor_complete(const struct json_compactor *json);
/* Appends the whole text, white space around it dropped. False: it is no JSON; out has a part. */
bool json_compact(const char *text, size_t n, struct byte_buffer *out);

#endif
