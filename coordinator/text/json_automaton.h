/* Which bytes may come next in a JSON object that is being written.
 *
 * Narrower than JSON where freedom would let an answer never end or not survive a reader: no white
 * space but one space after ':' and ','; nesting up to 64; numbers of at most 17 digits and an
 * exponent up to 308; strings of well-formed UTF-8, surrogate escapes in pairs only. What it has
 * accepted is always the beginning of a document that JSON parsers read.
 *
 * A value of a few words: copy it to try bytes without taking them. */
#ifndef LEAN_COORDINATOR_TEXT_JSON_AUTOMATON_H
#define LEAN_COORDINATOR_TEXT_JSON_AUTOMATON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_AUTOMATON_DEPTH_MAX = 64 };

struct json_automaton {
    uint64_t objects;   /* bit i: the i-th open bracket is a brace */
    const char *word;   /* what is left of true, false or null */
    uint16_t exponent;  /* so far */
    uint16_t code;      /* of the \u escape being read */
    uint8_t state;      /* private */
    uint8_t depth;      /* open brackets */
    uint8_t n_left;     /* digits of the escape, or bytes of the character, that are to come */
    uint8_t low, high;  /* bounds of the character's next byte */
    uint8_t n_digit;    /* of the number */
    bool in_key;        /* the string is a member's name */
    bool space_allowed; /* here, once */
};

void json_automaton_init(struct json_automaton *json);
/* False: the byte cannot come here; json is then as it was. */
bool json_automaton_take(struct json_automaton *json, char byte);
/* All of n bytes or none. */
bool json_automaton_take_all(struct json_automaton *json, const char *bytes, size_t n);
/* The object is closed: nothing may follow. */
bool json_automaton_complete(const struct json_automaton *json);
/* Inside a string and between characters: any text without quote, backslash, control character or
 * malformed byte may come, and leads back here. */
bool json_automaton_in_text(const struct json_automaton *json);

#endif
