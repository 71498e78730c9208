/* A pushdown automaton: the state of the innermost value, and a bit for each open bracket. */
#include "coordinator/text/json_automaton.h"

#include <string.h>

enum { N_DIGIT_MAX = 17, EXPONENT_MAX = 308 };

enum state {
    BEGIN,       /* { */
    VALUE,       /* any value */
    FIRST_VALUE, /* any value, or ] */
    FIRST_KEY,   /* " or } */
    KEY,         /* " */
    COLON,       /* : */
    AFTER_VALUE, /* , or the closing bracket */
    TEXT,        /* in a string, between characters */
    CHARACTER,   /* in a string, n_left more bytes of a character */
    ESCAPE,      /* behind a backslash */
    HEX,         /* n_left digits of \u */
    LOW_ESCAPE,  /* the backslash of the second half of a surrogate pair */
    LOW_U,       /* its u */
    LOW_HEX,     /* its digits */
    MINUS,       /* a digit */
    ZERO,        /* the integer part is 0 */
    INTEGER,     /* digits */
    POINT,       /* a digit */
    FRACTION,    /* digits */
    E,           /* a sign or a digit */
    E_SIGN,      /* a digit */
    EXPONENT,    /* digits */
    WORD,        /* the rest of true, false or null */
    COMPLETE
};

void json_automaton_init(struct json_automaton *json)
{
    *json = (struct json_automaton){.state = BEGIN};
}

bool json_automaton_complete(const struct json_automaton *json)
{
    return json->state == COMPLETE;
}

bool json_automaton_in_text(const struct json_automaton *json)
{
    return json->state == TEXT;
}

static bool go(struct json_automaton *json, enum state state)
{
    json->state = (uint8_t)state;
    return true;
}

static bool go_spaced(struct json_automaton *json, enum state state)
{
    json->space_allowed = true;
    return go(json, state);
}

static bool open_bracket(struct json_automaton *json, bool object)
{
    if (json->depth == JSON_AUTOMATON_DEPTH_MAX) return false;
    const uint64_t bit = UINT64_C(1) << json->depth++;
    json->objects = object ? json->objects | bit : json->objects & ~bit;
    return go(json, object ? FIRST_KEY : FIRST_VALUE);
}

static bool in_object(const struct json_automaton *json)
{
    return json->objects >> (json->depth - 1) & 1;
}

static bool close_bracket(struct json_automaton *json, bool object)
{
    if (in_object(json) != object) return false;
    json->depth--;
    return go(json, json->depth ? AFTER_VALUE : COMPLETE);
}

static bool begin_string(struct json_automaton *json, bool key)
{
    json->in_key = key;
    return go(json, TEXT);
}

static bool begin_word(struct json_automaton *json, const char *rest)
{
    json->word = rest;
    return go(json, WORD);
}

/* A digit of the number's mantissa. */
static bool digit(struct json_automaton *json, enum state state)
{
    return ++json->n_digit <= N_DIGIT_MAX && go(json, state);
}

static bool begin_value(struct json_automaton *json, char c)
{
    json->n_digit = 0;
    switch (c) {
    case '{':
        return open_bracket(json, true);
    case '[':
        return open_bracket(json, false);
    case '"':
        return begin_string(json, false);
    case 't':
        return begin_word(json, "rue");
    case 'f':
        return begin_word(json, "alse");
    case 'n':
        return begin_word(json, "ull");
    case '-':
        return go(json, MINUS);
    case '0':
        return digit(json, ZERO);
    default:
        return c >= '1' && c <= '9' && digit(json, INTEGER);
    }
}

static bool after_value(struct json_automaton *json, char c)
{
    if (c == ',') return go_spaced(json, in_object(json) ? KEY : VALUE);
    return (c == '}' || c == ']') && close_bracket(json, c == '}');
}

/* The first byte of a character of several; the bounds of its second byte are those of RFC 3629. */
static bool begin_character(struct json_automaton *json, uint8_t lead)
{
    if (lead < 0xc2 || lead > 0xf4) return false;
    json->n_left = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    json->low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    json->high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return go(json, CHARACTER);
}

static bool take_character(struct json_automaton *json, uint8_t byte)
{
    if (byte < json->low || byte > json->high) return false;
    json->low = 0x80;
    json->high = 0xbf;
    return --json->n_left || go(json, TEXT);
}

static bool take_text(struct json_automaton *json, char c)
{
    if (c == '"') return go(json, json->in_key ? COLON : AFTER_VALUE);
    if (c == '\\') return go(json, ESCAPE);
    if ((uint8_t)c >= 0x80) return begin_character(json, (uint8_t)c);
    return (uint8_t)c >= 0x20;
}

static bool begin_hex(struct json_automaton *json, enum state state)
{
    json->n_left = 4;
    json->code = 0;
    return go(json, state);
}

static bool take_hex(struct json_automaton *json, char c)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    const char *found = c ? strchr(digits, c) : NULL;
    if (!found) return false;
    const int value = (int)(found - digits);
    json->code = (uint16_t)(json->code << 4 | (value < 16 ? value : value - 6));
    json->n_left--;
    /* D800 to DBFF is the first half of a pair, DC00 to DFFF the second. Decided at the digit that
     * tells, so that there is always a way on. */
    const bool low = json->state == LOW_HEX;
    if (low && json->n_left == 3 && json->code != 0xd) return false;
    if (json->n_left == 2 && low != (json->code >= 0xdc && json->code <= 0xdf)) return false;
    if (json->n_left) return true;
    return go(json, json->code >= 0xd800 && json->code <= 0xdbff ? LOW_ESCAPE : TEXT);
}

static bool take_exponent(struct json_automaton *json, char c)
{
    if (c < '0' || c > '9') return false;
    json->exponent = (uint16_t)(10 * json->exponent + (c - '0'));
    return json->exponent <= EXPONENT_MAX && ++json->n_digit <= 3 && go(json, EXPONENT);
}

/* What may follow a number that could end here. */
static bool end_number(struct json_automaton *json, char c)
{
    const bool whole = json->state == ZERO || json->state == INTEGER;
    if (whole && c == '.') return json->n_digit < N_DIGIT_MAX && go(json, POINT);
    if (json->state != EXPONENT && (c == 'e' || c == 'E')) {
        json->exponent = 0;
        json->n_digit = 0;
        return go(json, E);
    }
    return after_value(json, c);
}

static bool step(struct json_automaton *json, char c)
{
    const bool is_digit = c >= '0' && c <= '9';
    if (c == ' ' && json->space_allowed) {
        json->space_allowed = false;
        return true;
    }
    json->space_allowed = false;
    switch ((enum state)json->state) {
    case BEGIN:
        return c == '{' && open_bracket(json, true);
    case VALUE:
        return begin_value(json, c);
    case FIRST_VALUE:
        return c == ']' ? close_bracket(json, false) : begin_value(json, c);
    case FIRST_KEY:
        return c == '}' ? close_bracket(json, true) : c == '"' && begin_string(json, true);
    case KEY:
        return c == '"' && begin_string(json, true);
    case COLON:
        return c == ':' && go_spaced(json, VALUE);
    case AFTER_VALUE:
        return after_value(json, c);
    case TEXT:
        return take_text(json, c);
    case CHARACTER:
        return take_character(json, (uint8_t)c);
    case ESCAPE:
        if (c == 'u') return begin_hex(json, HEX);
        return c && strchr("\"\\/bfnrt", c) && go(json, TEXT);
    case HEX:
    case LOW_HEX:
        return take_hex(json, c);
    case LOW_ESCAPE:
        return c == '\\' && go(json, LOW_U);
    case LOW_U:
        return c == 'u' && begin_hex(json, LOW_HEX);
    case MINUS:
        return is_digit && digit(json, c == '0' ? ZERO : INTEGER);
    case ZERO:
        return end_number(json, c);
    case INTEGER:
        return is_digit ? digit(json, INTEGER) : end_number(json, c);
    case POINT:
        return is_digit && digit(json, FRACTION);
    case FRACTION:
        return is_digit ? digit(json, FRACTION) : end_number(json, c);
    case E:
        if (c == '+' || c == '-') return go(json, E_SIGN);
        return take_exponent(json, c);
    case E_SIGN:
        return take_exponent(json, c);
    case EXPONENT:
        return is_digit ? take_exponent(json, c) : end_number(json, c);
    case WORD:
        return c == *json->word && (*++json->word || go(json, AFTER_VALUE));
    case COMPLETE:
        return false;
    }
    return false;
}

bool json_automaton_take(struct json_automaton *json, char byte)
{
    struct json_automaton next = *json;
    if (!step(&next, byte)) return false;
    *json = next;
    return true;
}

bool json_automaton_take_all(struct json_automaton *json, const char *bytes, size_t n)
{
    struct json_automaton next = *json;
    for (size_t i = 0; i < n; i++)
        if (!step(&next, bytes[i])) return false;
    *json = next;
    return true;
}
