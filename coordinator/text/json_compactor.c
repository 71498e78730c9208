#include "coordinator/text/json_compactor.h"

#include <string.h>

#include "proto/base/byte_buffer.h"

enum state {
    AT_VALUE,       /* a value comes */
    AT_FIRST_VALUE, /* or ']' */
    AT_FIRST_KEY,   /* a name or '}' */
    AT_KEY,
    AT_COLON,
    AT_NEXT, /* ',' or the closing bracket */
    IN_STRING,
    IN_ESCAPE,
    IN_HEX,
    IN_WORD,
    IN_MINUS, /* numbers: after '-' */
    IN_ZERO,
    IN_INTEGER,
    IN_POINT,
    IN_FRACTION,
    IN_E,
    IN_E_SIGN,
    IN_EXPONENT,
    AT_END
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_hex(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool in_object(const struct json_compactor *json)
{
    const unsigned top = json->depth - 1u;
    return json->objects[top / 64] >> top % 64 & 1;
}

static bool ends_number(enum state state)
{
    return state == IN_ZERO || state == IN_INTEGER || state == IN_FRACTION || state == IN_EXPONENT;
}

static void end_value(struct json_compactor *json)
{
    json->state = json->depth ? AT_NEXT : AT_END;
}

static bool open_bracket(struct json_compactor *json, bool is_object)
{
    if (json->depth == JSON_COMPACTOR_DEPTH_MAX) return false;
    const uint64_t bit = (uint64_t)1 << json->depth % 64;
    uint64_t *const word = &json->objects[json->depth / 64];
    *word = is_object ? *word | bit : *word & ~bit;
    json->depth++;
    json->state = is_object ? AT_FIRST_KEY : AT_FIRST_VALUE;
    return true;
}

static bool begin_string(struct json_compactor *json, bool in_key)
{
    json->in_key = in_key;
    json->state = IN_STRING;
    return true;
}

static bool begin_value(struct json_compactor *json, char c)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        if (c != words[i][0]) continue;
        json->word = words[i] + 1;
        json->state = IN_WORD;
        return true;
    }
    if (c == '{' || c == '[') return open_bracket(json, c == '{');
    if (c == '"') return begin_string(json, false);
    if (c != '-' && !is_digit(c)) return false;
    json->state = c == '-' ? IN_MINUS : c == '0' ? IN_ZERO : IN_INTEGER;
    return true;
}

static bool close_bracket(struct json_compactor *json)
{
    json->depth--;
    end_value(json);
    return true;
}

/* Between the parts of an object or array. */
static bool take_between(struct json_compactor *json, char c)
{
    switch (json->state) {
    case AT_FIRST_VALUE:
        if (c == ']') return close_bracket(json);
        return begin_value(json, c);
    case AT_VALUE:
        return begin_value(json, c);
    case AT_FIRST_KEY:
        if (c == '}') return close_bracket(json);
        return c == '"' && begin_string(json, true);
    case AT_KEY:
        return c == '"' && begin_string(json, true);
    case AT_COLON:
        json->state = c == ':' ? AT_VALUE : AT_COLON;
        return c == ':';
    default: /* AT_NEXT */
        if (c == (in_object(json) ? '}' : ']')) return close_bracket(json);
        if (c != ',') return false;
        json->state = in_object(json) ? AT_KEY : AT_VALUE;
        return true;
    }
}

static bool take_string(struct json_compactor *json, char c)
{
    if (json->state == IN_STRING) {
        if (c == '\\')
            json->state = IN_ESCAPE;
        else if (c == '"' && json->in_key)
            json->state = AT_COLON;
        else if (c == '"')
            end_value(json);
        return true;
    }
    if (json->state == IN_ESCAPE) {
        if (!c || !strchr("\"\\/bfnrtu", c)) return false;
        json->state = c == 'u' ? IN_HEX : IN_STRING;
        json->n_hex = 4;
        return true;
    }
    if (!is_hex(c)) return false;
    if (!--json->n_hex) json->state = IN_STRING;
    return true;
}

static bool take_word(struct json_compactor *json, char c)
{
    if (c != *json->word) return false;
    if (!*++json->word) end_value(json);
    return true;
}

/* The state of a number after c; AT_END: c does not belong to it. */
static enum state after_digit_or_sign(enum state state, char c)
{
    const bool digit = is_digit(c);
    switch (state) {
    case IN_MINUS:
        return !digit ? AT_END : c == '0' ? IN_ZERO : IN_INTEGER;
    case IN_ZERO:
    case IN_INTEGER:
        if (digit && state == IN_INTEGER) return IN_INTEGER;
        return c == '.' ? IN_POINT : c == 'e' || c == 'E' ? IN_E : AT_END;
    case IN_POINT:
        return digit ? IN_FRACTION : AT_END;
    case IN_FRACTION:
        return digit ? IN_FRACTION : c == 'e' || c == 'E' ? IN_E : AT_END;
    case IN_E:
        return digit ? IN_EXPONENT : c == '+' || c == '-' ? IN_E_SIGN : AT_END;
    default: /* IN_E_SIGN, IN_EXPONENT */
        return digit ? IN_EXPONENT : AT_END;
    }
}

bool json_compactor_take(struct json_compactor *json, char byte, struct byte_buffer *out)
{
    bool taken;
    if (json->state >= IN_MINUS && json->state <= IN_EXPONENT) {
        const enum state next = after_digit_or_sign(json->state, byte);
        if (next == AT_END && ends_number(json->state) && json->depth) {
            const uint8_t before = json->state;
            json->state = AT_NEXT;
            taken = json_compactor_take(json, byte, out);
            if (!taken) json->state = before;
            return taken;
        }
        taken = next != AT_END;
        if (taken) json->state = next;
    } else if (json->state == AT_END) {
        return false;
    } else if (json->state == IN_WORD) {
        taken = take_word(json, byte);
    } else if (json->state >= IN_STRING && json->state <= IN_HEX) {
        taken = take_string(json, byte);
        if (taken && (unsigned char)byte < 0x20) {
            byte_buffer_put_json(out, &byte, 1);
            return true;
        }
    } else {
        if (is_space(byte)) return true;
        taken = take_between(json, byte);
    }
    if (taken) byte_buffer_put(out, &byte, 1);
    return taken;
}

bool json_compactor_complete(const struct json_compactor *json)
{
    return json->state == AT_END || (!json->depth && ends_number(json->state));
}

bool json_compact(const char *text, size_t n, struct byte_buffer *out)
{
    struct json_compactor json = {0};
    while (n && is_space(text[n - 1]))
        n--;
    for (size_t i = 0; i < n; i++)
        if (!json_compactor_take(&json, text[i], out)) return false;
    return json_compactor_complete(&json);
}
