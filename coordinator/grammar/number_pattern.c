#include "coordinator/grammar/number_pattern.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/json_parts.h"

/* ---- decimals ------------------------------------------------------------------------------- */

bool decimal_read(struct decimal *out, const char *text)
{
    char digits[1024];
    size_t n_digit = 0, n_whole = 0;
    bool seen_point = false;
    long exponent = 0;
    *out = (struct decimal){.negative = *text == '-'};
    for (text += *text == '-'; *text; text++) {
        if (*text == '.')
            seen_point = true;
        else if (*text == 'e' || *text == 'E') {
            exponent = strtol(text + 1, NULL, 10);
            break;
        } else {
            if (n_digit == sizeof(digits)) return false;
            n_whole += !seen_point;
            digits[n_digit++] = *text;
        }
    }
    if (exponent > 2000 || exponent < -2000) return false;
    const long point = (long)n_whole + exponent; /* digits before the point */
    size_t n_out[2] = {0};
    char *const parts[2] = {out->whole, out->part};
    const long begin = point < 0 ? point : 0;
    const long end = point > (long)n_digit ? point : (long)n_digit;
    for (long i = begin; i < end; i++) {
        const char digit = i >= 0 && i < (long)n_digit ? digits[i] : '0';
        const size_t side = i >= point;
        if (!side && !n_out[0] && digit == '0') continue;
        if (n_out[side] == (side ? DECIMAL_PART_MAX : DECIMAL_WHOLE_MAX)) {
            if (side && digit == '0') continue;
            return false;
        }
        parts[side][n_out[side]++] = digit;
    }
    while (n_out[1] && out->part[n_out[1] - 1] == '0')
        out->part[--n_out[1]] = 0;
    if (!n_out[0]) out->whole[0] = '0';
    if (!n_out[0] && !n_out[1]) out->negative = false;
    return true;
}

static int compare_magnitudes(const struct decimal *a, const struct decimal *b)
{
    const size_t n_a = strlen(a->whole), n_b = strlen(b->whole);
    if (n_a != n_b) return n_a < n_b ? -1 : 1;
    const int order = strcmp(a->whole, b->whole);
    return order ? order : strcmp(a->part, b->part); /* no zeros at the end: shorter is less */
}

int decimal_compare(const struct decimal *a, const struct decimal *b)
{
    if (a->negative != b->negative) return a->negative ? -1 : 1;
    return a->negative ? compare_magnitudes(b, a) : compare_magnitudes(a, b);
}

bool decimal_power_of_ten(const struct decimal *decimal, int *exponent)
{
    if (decimal->negative) return false;
    if (!*decimal->part) {
        *exponent = (int)strlen(decimal->whole) - 1;
        return decimal->whole[0] == '1' && strspn(decimal->whole + 1, "0") == (size_t)*exponent;
    }
    const size_t n_zero = strspn(decimal->part, "0");
    *exponent = -(int)n_zero - 1;
    return !strcmp(decimal->whole, "0") && !strcmp(decimal->part + n_zero, "1");
}

/* ---- patterns ------------------------------------------------------------------------------- */

struct text {
    char *out;
    size_t n;
};

static void put(struct text *text, const char *format, ...) LM_PRINTF(2, 3);

static void put(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const size_t room = NUMBER_PATTERN_MAX - text->n;
    const int n = vsnprintf(text->out + text->n, room, format, arguments);
    va_end(arguments);
    assert(n >= 0 && (size_t)n < room);
    text->n += (size_t)n;
}

/* The alternatives begin with "|", so that none is special: "(?:[]|a|b)". */
static const char open_choice[] = "(?:[]";

#define ANY_PART "(?:\\.[0-9]+)?"

/* Digits above or below digits[i], where all before are equal; nothing if there are none. */
static bool put_other(struct text *text, const char *digits, size_t i, bool above, bool first)
{
    const char low = above ? (char)(digits[i] + 1) : first ? '1' : '0';
    const char high = above ? '9' : (char)(digits[i] - 1);
    if (low > high) return false;
    put(text, "|%.*s[%c-%c]", (int)i, digits, low, high);
    return true;
}

/* Non-negative numbers of at least (or more than) bound. */
static void put_above(struct text *text, const struct decimal *bound, bool strict)
{
    const char *const whole = bound->whole, *const part = bound->part;
    const size_t n = strlen(whole);
    put(text, "%s|[1-9][0-9]{%zu,}" ANY_PART, open_choice, n);
    for (size_t i = 0; i < n; i++)
        if (put_other(text, whole, i, true, false)) put(text, "[0-9]{%zu}" ANY_PART, n - i - 1);
    if (!*part) {
        put(text, "|%s%s)", whole, strict ? "\\.[0-9]*[1-9][0-9]*" : ANY_PART);
        return;
    }
    put(text, "|%s\\.%s", whole, open_choice);
    for (size_t i = 0; part[i]; i++)
        if (put_other(text, part, i, true, false)) put(text, "[0-9]*");
    put(text, "|%s%s))", part, strict ? "[0-9]*[1-9][0-9]*" : "[0-9]*");
}

/* Non-negative numbers of at most (or less than) bound. */
static void put_below(struct text *text, const struct decimal *bound, bool strict)
{
    const char *const whole = bound->whole, *const part = bound->part;
    const size_t n = strlen(whole);
    put(text, "%s", open_choice);
    if (n > 1) put(text, "|(?:0|[1-9][0-9]{0,%zu})" ANY_PART, n - 2);
    for (size_t i = 0; i < n; i++)
        if (put_other(text, whole, i, false, !i && n > 1))
            put(text, "[0-9]{%zu}" ANY_PART, n - i - 1);
    if (!*part) {
        if (!strict) put(text, "|%s(?:\\.0+)?", whole);
        put(text, ")");
        return;
    }
    put(text, "|%s(?:\\.%s", whole, open_choice);
    for (size_t i = 0; part[i]; i++) {
        if (put_other(text, part, i, false, false)) put(text, "[0-9]*");
        if (i) put(text, "|%.*s", (int)i, part); /* a beginning of it is less */
    }
    if (!strict) put(text, "|%s0*", part);
    put(text, "))?)");
}

static const char any_positive[] = "(?:0|[1-9][0-9]*)" ANY_PART;

void number_pattern_bound(enum number_bound kind, const struct decimal *bound, char *out)
{
    const bool above = kind == NUMBER_AT_LEAST || kind == NUMBER_MORE_THAN;
    const bool strict = kind == NUMBER_MORE_THAN || kind == NUMBER_LESS_THAN;
    struct text text = {out, 0};
    if (above && bound->negative) {
        put(&text, "%s|-", any_positive);
        put_below(&text, bound, strict);
    } else if (above)
        put_above(&text, bound, strict);
    else if (bound->negative) {
        put(&text, "-");
        put_above(&text, bound, strict);
    } else {
        put(&text, "-%s|", any_positive);
        put_below(&text, bound, strict);
    }
}

void number_pattern_all(bool whole, char *out)
{
    struct text text = {out, 0};
    if (whole) {
        put(&text, "0|-?[1-9][0-9]{0,%d}", JSON_DIGITS_MAX - 1);
        return;
    }
    /* (zero below the point) | (digits before it, and as many behind it as are left) */
    put(&text, "0(?:\\.[0-9]{1,%d})?|-0\\.%s", JSON_DIGITS_MAX - 1, open_choice);
    for (int i = 0; i < JSON_DIGITS_MAX - 1; i++) /* the first digit that is not zero */
        put(&text, "|0{%d}[1-9][0-9]{0,%d}", i, JSON_DIGITS_MAX - 2 - i);
    put(&text, ")|-?[1-9]");
    for (int n = 1; n < JSON_DIGITS_MAX; n++)
        put(&text, "(?:(?:\\.[0-9]{1,%d})?|[0-9]", JSON_DIGITS_MAX - n);
    for (int n = 1; n < JSON_DIGITS_MAX; n++)
        put(&text, ")");
}

void number_pattern_multiple(int exponent, char *out)
{
    struct text text = {out, 0};
    if (exponent >= 0)
        put(&text, "0|-?[1-9][0-9]*0{%d}", exponent);
    else
        put(&text, "-?[0-9]+(?:\\.[0-9]{1,%d})?", -exponent);
}
