#include "coordinator/server/json_parse.h"

#include <json-c/json.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>

#include "coordinator/server/api_error.h"
#include "proto/base/byte_buffer.h"
#include "proto/base/utf8.h"

/* What json-c makes of a byte or two of text is a hundred times larger; this is at most 2 GiB. */
enum { CONTAINERS_MAX = 1 << 20, VALUES_MAX = 1 << 24 };

struct checker {
    const char *text;
    size_t n, at;
    size_t n_container, n_value; /* containers are values, too */
    const char *why;             /* NULL: no fault so far */
    /* The text up to n_copied with a fraction behind each integer that 64 bits do not hold: json-c
     * would take it for the nearest one that they do. Empty: there is none. */
    struct byte_buffer widened;
    size_t n_copied;
};

static bool fault(struct checker *checker, const char *why)
{
    if (!checker->why) checker->why = why;
    return false;
}

/* The byte at hand, 0 at the end: a NUL is no part of JSON either. */
static char peek(const struct checker *checker)
{
    return checker->at < checker->n ? checker->text[checker->at] : '\0';
}

static bool fault_here(struct checker *checker, const char *why)
{
    return fault(checker, checker->at >= checker->n ? "the text ends too early" : why);
}

static void skip_space(struct checker *checker)
{
    while (peek(checker) && strchr(" \t\n\r", peek(checker)))
        checker->at++;
}

static bool check_escape(struct checker *checker)
{
    checker->at++;
    if (peek(checker) == 'u') {
        for (int i = 0; i < 4; i++) {
            checker->at++;
            if (!peek(checker) || !strchr("0123456789abcdefABCDEF", peek(checker)))
                return fault_here(checker, "a hexadecimal digit is needed");
        }
    } else if (!peek(checker) || !strchr("\"\\/bfnrt", peek(checker))) {
        return fault_here(checker, "there is no such escape");
    }
    checker->at++;
    return true;
}

static bool check_string(struct checker *checker)
{
    if (peek(checker) != '"') return fault_here(checker, "a string is needed");
    checker->at++;
    for (;;) {
        if (checker->at >= checker->n) return fault(checker, "a string does not end");
        const unsigned char c = (unsigned char)checker->text[checker->at];
        if (c == '"') break;
        if (c < 0x20) return fault(checker, "a control character in a string");
        if (c == '\\') {
            if (!check_escape(checker)) return false;
        } else {
            const size_t length =
                utf8_decode(checker->text + checker->at, checker->n - checker->at, NULL);
            if (!length) return fault(checker, "not UTF-8");
            checker->at += length;
        }
    }
    checker->at++;
    return true;
}

static bool check_digits(struct checker *checker)
{
    const size_t first = checker->at;
    while (peek(checker) >= '0' && peek(checker) <= '9')
        checker->at++;
    return checker->at > first || fault_here(checker, "a digit is needed");
}

static bool fits_64_bits(const char *digits, size_t n, bool negative)
{
    const char *most = negative ? "9223372036854775808" : "18446744073709551615";
    const size_t n_most = strlen(most);
    return n < n_most || (n == n_most && memcmp(digits, most, n) <= 0);
}

static void widen(struct checker *checker)
{
    byte_buffer_put(&checker->widened, checker->text + checker->n_copied,
                    checker->at - checker->n_copied);
    byte_buffer_put_text(&checker->widened, ".0");
    checker->n_copied = checker->at;
}

static bool check_number(struct checker *checker)
{
    const bool negative = peek(checker) == '-';
    checker->at += negative;
    const size_t first = checker->at;
    if (peek(checker) == '0')
        checker->at++;
    else if (!check_digits(checker))
        return false;
    const char next = peek(checker);
    if (next != '.' && next != 'e' && next != 'E' &&
        !fits_64_bits(checker->text + first, checker->at - first, negative))
        widen(checker);
    if (peek(checker) == '.') {
        checker->at++;
        if (!check_digits(checker)) return false;
    }
    if (peek(checker) == 'e' || peek(checker) == 'E') {
        checker->at++;
        if (peek(checker) == '+' || peek(checker) == '-') checker->at++;
        if (!check_digits(checker)) return false;
    }
    return true;
}

static bool check_word(struct checker *checker, const char *word)
{
    const size_t n = strlen(word);
    if (checker->n - checker->at < n || memcmp(checker->text + checker->at, word, n))
        return fault_here(checker, "no JSON value begins like this");
    checker->at += n;
    return true;
}

/* A member's name and the colon. json-c would end the name at a NUL, and take it for another. */
static bool check_name(struct checker *checker)
{
    static const char nul[] = "\\u0000";
    skip_space(checker);
    const char *name = checker->text + checker->at;
    if (!check_string(checker)) return false;
    const size_t n = (size_t)(checker->text + checker->at - name);
    for (const char *at = name; (at = memchr(at, '\\', n - (size_t)(at - name))); at += 2) {
        if (strncmp(at, nul, sizeof(nul) - 1)) continue;
        checker->at = (size_t)(at - checker->text);
        return fault(checker, "U+0000 in a name");
    }
    skip_space(checker);
    if (peek(checker) != ':') return fault_here(checker, "a colon is needed");
    checker->at++;
    return true;
}

/* A value that is no container, or the opening of one. *opened: the closing bracket to come, 0 if
 * the value is whole. */
static bool check_value(struct checker *checker, char *opened)
{
    *opened = 0;
    skip_space(checker);
    checker->n_value++;
    switch (peek(checker)) {
    case '{':
    case '[':
        checker->n_container++;
        *opened = peek(checker) == '{' ? '}' : ']';
        checker->at++;
        return true;
    case '"':
        return check_string(checker);
    case 't':
        return check_word(checker, "true");
    case 'f':
        return check_word(checker, "false");
    case 'n':
        return check_word(checker, "null");
    default:
        if (peek(checker) != '-' && (peek(checker) < '0' || peek(checker) > '9'))
            return fault_here(checker, "no JSON value begins like this");
        return check_number(checker);
    }
}

static bool check_document(struct checker *checker)
{
    char closing[JSON_DEPTH_MAX], opened;
    size_t depth = 0;
    if (!check_value(checker, &opened)) return false;
    for (;;) {
        bool first = opened != 0;
        if (opened) {
            if (depth == JSON_DEPTH_MAX) {
                checker->at--;
                return fault(checker, "nested deeper than 128");
            }
            closing[depth++] = opened;
        }
        /* close what ends here */
        for (skip_space(checker); depth && peek(checker) == closing[depth - 1];
             skip_space(checker)) {
            checker->at++;
            depth--;
            first = false;
        }
        if (!depth) break;
        if (!first) {
            if (peek(checker) != ',')
                return fault_here(checker, "a comma or a closing bracket is needed");
            checker->at++;
        }
        if (closing[depth - 1] == '}' && !check_name(checker)) return false;
        if (!check_value(checker, &opened)) return false;
    }
    return checker->at == checker->n || fault(checker, "something follows the JSON value");
}

size_t json_find_fault(const char *text, size_t n, const char **why)
{
    struct checker checker = {.text = text, .n = n};
    const bool good = check_document(&checker);
    byte_buffer_free(&checker.widened);
    if (good) return SIZE_MAX;
    *why = checker.why;
    return checker.at;
}

static bool check_body(struct checker *checker, struct api_error *error)
{
    if (checker->n > INT_MAX)
        return api_fail(error, API_REQUEST_TOO_LARGE, NULL, "the body of %zu bytes is too long",
                        checker->n);
    if (!check_document(checker))
        return api_fail(error, API_INVALID_JSON, NULL, "invalid JSON at byte %zu: %s", checker->at,
                        checker->why);
    if (checker->n_container > CONTAINERS_MAX || checker->n_value > VALUES_MAX)
        return api_fail(error, API_REQUEST_TOO_LARGE, NULL,
                        "the body has %zu values, %zu of them objects and arrays, at most %d and "
                        "%d are allowed",
                        checker->n_value, checker->n_container, VALUES_MAX, CONTAINERS_MAX);
    return true;
}

/* NULL: the error is filled. */
static struct json_object *build(struct checker *checker, struct api_error *error)
{
    struct byte_buffer *widened = &checker->widened;
    if (widened->n)
        byte_buffer_put(widened, checker->text + checker->n_copied, checker->n - checker->n_copied);
    const char *text = widened->n ? widened->data : checker->text;
    const size_t n = widened->n ? widened->n : checker->n;
    struct json_tokener *tokener =
        widened->failed || n > INT_MAX ? NULL : json_tokener_new_ex(JSON_DEPTH_MAX + 1);
    if (!tokener) {
        api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for the body");
        return NULL;
    }
    struct json_object *object = json_tokener_parse_ex(tokener, text, (int)n);
    json_tokener_free(tokener);
    if (json_object_is_type(object, json_type_object)) return object;
    json_object_put(object);
    api_fail(error, API_INVALID_JSON, NULL, "invalid JSON at byte 0: the body must be an object");
    return NULL;
}

bool json_parse_object(struct json_object **out, const char *text, size_t n,
                       struct api_error *error)
{
    struct checker checker = {.text = text, .n = n};
    struct json_object *object = check_body(&checker, error) ? build(&checker, error) : NULL;
    byte_buffer_free(&checker.widened);
    if (object) *out = object;
    return object != NULL;
}
