/* jinja2's filters and tests. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/jinja_builtin.h"
#include "coordinator/text/jinja_format.h"
#include "coordinator/text/jinja_operator.h"
#include "coordinator/text/jinja_print.h"
#include "coordinator/text/jinja_string.h"
#include "coordinator/text/jinja_unicode.h"

typedef const struct jinja_value *args;
#define BUILTIN(function)                                                                          \
    static struct jinja_value function(struct jinja_run *run, struct jinja_value self, args arg,   \
                                       const struct jinja_call *call)
#define UNUSED (void)run, (void)self, (void)arg, (void)call

static const struct jinja_string *text_of(struct jinja_run *run, struct jinja_value value)
{
    return jinja_to_string(run, value).string;
}

static bool given(struct jinja_value arg)
{
    return arg.type != JINJA_MISSING && arg.type != JINJA_NONE;
}

/* ---- attribute paths: "address.city", "items.0", 3 */

struct path {
    struct jinja_value *parts;
    size_t n;
    struct jinja_value if_undefined; /* JINJA_MISSING: none */
    bool fold;                       /* strings are compared in lower case */
};

static bool all_digits(const char *p, const char *end)
{
    if (p == end) return false;
    while (p < end)
        if (!(jinja_char_classes(jinja_utf8_get(&p)) & CHAR_DIGIT)) return false;
    return true;
}

static struct jinja_value path_part(struct jinja_run *run, const char *p, const char *end)
{
    if (!all_digits(p, end)) return jinja_string_view(run, p, (size_t)(end - p));
    int64_t index = 0;
    while (p < end && index < INT32_MAX)
        index = index * 10 + jinja_char_decimal(jinja_utf8_get(&p));
    return jinja_int(index);
}

static struct path make_path(struct jinja_run *run, struct jinja_value attribute)
{
    struct path path = {.if_undefined = jinja_missing()};
    if (!given(attribute)) return path;
    if (attribute.type != JINJA_STRING) {
        path.parts = jinja_alloc(run, sizeof(*path.parts));
        path.parts[path.n++] = attribute;
        return path;
    }
    size_t cap = 0;
    const char *p = attribute.string->bytes, *const end = p + attribute.string->n_bytes;
    for (;; p++) {
        const char *dot = p < end ? memchr(p, '.', (size_t)(end - p)) : NULL;
        const char *const stop = dot ? dot : end;
        path.parts = jinja_reserve(run, path.parts, path.n, 1, &cap, sizeof(*path.parts));
        path.parts[path.n++] = path_part(run, p, stop);
        if (!dot) return path;
        p = stop;
    }
}

static struct jinja_value fold(struct jinja_run *run, struct jinja_value value)
{
    return value.type == JINJA_STRING ? jinja_lower(run, value.string) : value;
}

static struct jinja_value follow(struct jinja_run *run, const struct path *path,
                                 struct jinja_value item)
{
    for (size_t i = 0; i < path->n; i++) {
        item = jinja_get_item(run, item, path->parts[i]);
        if (item.type == JINJA_UNDEFINED && given(path->if_undefined)) item = path->if_undefined;
    }
    return path->fold ? fold(run, item) : item;
}

/* ---- text */

BUILTIN(filter_upper)
{
    UNUSED;
    return jinja_upper(run, text_of(run, self));
}

BUILTIN(filter_lower)
{
    UNUSED;
    return jinja_lower(run, text_of(run, self));
}

BUILTIN(filter_capitalize)
{
    UNUSED;
    return jinja_capitalize(run, text_of(run, self));
}

BUILTIN(filter_title)
{
    UNUSED;
    return jinja_title_words(run, text_of(run, self));
}

BUILTIN(filter_center)
{
    UNUSED;
    return jinja_center(run, text_of(run, self), jinja_arg_int(run, arg[0], 80), ' ');
}

BUILTIN(filter_trim)
{
    UNUSED;
    const struct jinja_string *chars = given(arg[0]) ? jinja_arg_string(run, arg[0]) : NULL;
    return jinja_strip(run, text_of(run, self), chars, STRIP_BOTH);
}

BUILTIN(filter_replace)
{
    UNUSED;
    return jinja_replace(run, text_of(run, self), text_of(run, arg[0]), text_of(run, arg[1]),
                         given(arg[2]) ? jinja_arg_int(run, arg[2], -1) : -1);
}

BUILTIN(filter_string)
{
    UNUSED;
    return jinja_to_string(run, self);
}

BUILTIN(filter_safe)
{
    UNUSED;
    return jinja_to_string(run, self);
}

BUILTIN(filter_escape)
{
    UNUSED;
    static const char symbols[] = "&<>\"'";
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    const struct jinja_string *text = text_of(run, self);
    struct jinja_buffer out = {0};
    jinja_spend(run, text->n_bytes);
    for (const char *p = text->bytes; p < text->bytes + text->n_bytes; p++) {
        const char *found = *p ? strchr(symbols, *p) : NULL;
        if (found)
            jinja_put_text(run, &out, entities[found - symbols]);
        else
            jinja_put(run, &out, p, 1);
    }
    return jinja_string_from(run, &out);
}

BUILTIN(filter_format)
{
    UNUSED;
    struct jinja_value values;
    if (call->n_positional && call->n_named)
        jinja_fail(run, "can't handle positional and keyword arguments at the same time");
    if (call->n_named) {
        values = jinja_dict_new(run);
        for (size_t i = 0; i < call->n_named; i++)
            jinja_dict_set(run, values.dict, call->named[i].key, call->named[i].value);
    } else {
        values = jinja_tuple_new(run, call->positional, call->n_positional);
    }
    return jinja_format_percent(run, jinja_to_string(run, self), values);
}

BUILTIN(filter_indent)
{
    UNUSED;
    const struct jinja_string *text = jinja_arg_string(run, self);
    struct jinja_buffer indentation = {0}, out = {0}, padded = {0};
    if (arg[0].type == JINJA_STRING) {
        jinja_put(run, &indentation, arg[0].string->bytes, arg[0].string->n_bytes);
    } else {
        const int64_t width = jinja_arg_int(run, arg[0], 4);
        jinja_put_fill(run, &indentation, ' ', width > 0 ? (size_t)width : 0);
    }
    const bool first = jinja_arg_truth(run, arg[1], false);
    const bool blank = jinja_arg_truth(run, arg[2], false);
    jinja_put(run, &padded, text->bytes, text->n_bytes);
    jinja_put(run, &padded, "\n", 1); /* so that a text that ends with a newline keeps it */
    const struct jinja_value whole = jinja_string_from(run, &padded);
    const struct jinja_list *lines = jinja_split_lines(run, whole.string, false).list;
    for (size_t i = 0; i < lines->n; i++) {
        const struct jinja_string *line = lines->items[i].string;
        if (i) jinja_put(run, &out, "\n", 1);
        if (i ? blank || line->n_bytes : first)
            jinja_put(run, &out, indentation.bytes, indentation.n);
        jinja_put(run, &out, line->bytes, line->n_bytes);
    }
    return jinja_string_from(run, &out);
}

BUILTIN(filter_truncate)
{
    UNUSED;
    const int64_t length = jinja_arg_int(run, arg[0], 255);
    const bool killwords = jinja_arg_truth(run, arg[1], false);
    const struct jinja_value end = arg[2].type == JINJA_MISSING ? jinja_text(run, "...") : arg[2];
    const int64_t leeway = given(arg[3]) ? jinja_arg_int(run, arg[3], 5) : 5;
    const int64_t n_end = (int64_t)jinja_arg_string(run, end)->n_chars;
    if (length < n_end) jinja_fail(run, "truncate: expected length >= %lld", (long long)n_end);
    if (leeway < 0) jinja_fail(run, "truncate: expected leeway >= 0");
    if (jinja_length(run, self) - leeway <= length) return self;
    jinja_arg_string(run, self);
    struct jinja_value kept =
        jinja_slice(run, self, jinja_none(), jinja_int(length - n_end), jinja_none(), false);
    if (!killwords) {
        const struct jinja_string *words = kept.string;
        const char *space = memrchr(words->bytes, ' ', words->n_bytes);
        if (space) kept = jinja_string_view(run, words->bytes, (size_t)(space - words->bytes));
    }
    return jinja_binary(run, BINARY_ADD, kept, end);
}

BUILTIN(filter_wordcount)
{
    UNUSED;
    const struct jinja_string *text = text_of(run, self);
    const char *p = text->bytes, *const end = p + text->n_bytes;
    int64_t n = 0;
    bool in_word = false;
    jinja_spend(run, text->n_chars);
    while (p < end) {
        const uint32_t c = jinja_utf8_get(&p);
        const bool part = c == '_' || jinja_char_classes(c) & CHAR_ALNUM;
        n += part && !in_word;
        in_word = part;
    }
    return jinja_int(n);
}

static void put_quoted(struct jinja_run *run, struct jinja_buffer *out, struct jinja_value value,
                       bool for_query)
{
    const struct jinja_string *text = text_of(run, value);
    jinja_spend(run, text->n_bytes);
    for (const char *p = text->bytes; p < text->bytes + text->n_bytes; p++) {
        const unsigned char c = (unsigned char)*p;
        char escape[4];
        const bool letter =
            (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (letter || (c && strchr(for_query ? "_.-~" : "_.-~/", c)))
            snprintf(escape, sizeof(escape), "%c", c);
        else if (for_query && c == ' ')
            strcpy(escape, "+");
        else
            snprintf(escape, sizeof(escape), "%%%02X", c);
        jinja_put_text(run, out, escape);
    }
}

BUILTIN(filter_urlencode)
{
    UNUSED;
    struct jinja_buffer out = {0};
    if (self.type == JINJA_STRING || !jinja_is_iterable(self)) {
        put_quoted(run, &out, self, false);
        return jinja_string_from(run, &out);
    }
    struct jinja_value pairs = self;
    if (self.type == JINJA_DICT) {
        const struct jinja_view view = {self.dict, VIEW_ITEMS};
        pairs = jinja_to_list(run, (struct jinja_value){.type = JINJA_VIEW, .view = &view});
    }
    struct jinja_iter *iter = jinja_iterate(run, pairs);
    for (struct jinja_value item; jinja_next(run, iter, &item);) {
        const struct jinja_list *pair = jinja_to_list(run, item).list;
        if (pair->n != 2) jinja_fail(run, "urlencode: expected pairs");
        if (out.n) jinja_put(run, &out, "&", 1);
        put_quoted(run, &out, pair->items[0], true);
        jinja_put(run, &out, "=", 1);
        put_quoted(run, &out, pair->items[1], true);
    }
    return jinja_string_from(run, &out);
}

/* Text without what is between open and close. */
static struct jinja_value drop_between(struct jinja_run *run, const struct jinja_string *text,
                                       const char *open, const char *close)
{
    struct jinja_buffer out = {0};
    const char *p = text->bytes, *const end = p + text->n_bytes;
    for (const char *start; (start = memmem(p, (size_t)(end - p), open, strlen(open)));) {
        const char *stop = memmem(start, (size_t)(end - start), close, strlen(close));
        if (!stop) break;
        jinja_put(run, &out, p, (size_t)(start - p));
        p = stop + strlen(close);
    }
    jinja_put(run, &out, p, (size_t)(end - p));
    jinja_spend_bytes(run, text->n_bytes);
    return jinja_string_from(run, &out);
}

/* The code point of an entity "&name;" at p, moving past it; 0: it is none that is known. */
static uint32_t read_entity(const char **p, const char *end)
{
    static const struct {
        const char *text;
        uint32_t c;
    } named[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&nbsp;", 0xA0}};
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++) {
        const size_t n = strlen(named[i].text);
        if ((size_t)(end - *p) < n || memcmp(*p, named[i].text, n)) continue;
        *p += n;
        return named[i].c;
    }
    const char *q = *p + 1;
    if (q >= end || *q++ != '#') return 0;
    const bool hex = q < end && (*q == 'x' || *q == 'X');
    uint32_t c = 0;
    const char *const digits = q += hex;
    for (; q < end && c < 0x110000; q++) {
        const char lower = (char)(*q | 32);
        if (*q >= '0' && *q <= '9')
            c = c * (hex ? 16 : 10) + (uint32_t)(*q - '0');
        else if (hex && lower >= 'a' && lower <= 'f')
            c = c * 16 + (uint32_t)(lower - 'a' + 10);
        else
            break;
    }
    if (q == digits || q >= end || *q != ';' || c == 0 || c > 0x10FFFF) return 0;
    *p = q + 1;
    return c;
}

BUILTIN(filter_striptags)
{
    UNUSED;
    struct jinja_value text = drop_between(run, text_of(run, self), "<!--", "-->");
    text = drop_between(run, text.string, "<", ">");
    const struct jinja_builtin *split =
        jinja_find_method(JINJA_STRING, jinja_text(run, "split").string);
    const struct jinja_value words = jinja_call_builtin(run, split, text, &(struct jinja_call){0});
    text = jinja_join(run, jinja_text(run, " ").string, words);
    struct jinja_buffer out = {0};
    const char *p = text.string->bytes, *const end = p + text.string->n_bytes;
    jinja_spend(run, text.string->n_bytes);
    while (p < end) {
        const uint32_t c = *p == '&' ? read_entity(&p, end) : 0;
        if (c)
            jinja_put_char(run, &out, c);
        else
            jinja_put(run, &out, p++, 1);
    }
    return jinja_string_from(run, &out);
}

BUILTIN(filter_filesizeformat)
{
    UNUSED;
    static const char units[] = "kMGTPEZY";
    const bool binary = jinja_arg_truth(run, arg[0], false);
    if (!jinja_is_number(self)) jinja_fail(run, "filesizeformat: a number is required");
    const double bytes = jinja_as_float(self), base = binary ? 1024 : 1000;
    char text[400];
    if (bytes == 1) return jinja_text(run, "1 Byte");
    if (bytes < base) {
        snprintf(text, sizeof(text), "%.0f Bytes", trunc(bytes));
    } else {
        double unit = base * base;
        size_t i = 0;
        for (; i < 7 && bytes >= unit; i++)
            unit *= base;
        snprintf(text, sizeof(text), binary ? "%.1f %ciB" : "%.1f %cB", base * bytes / unit,
                 binary && i == 0 ? 'K' : units[i]);
    }
    return jinja_string_copy(run, text, strlen(text));
}

BUILTIN(filter_tojson)
{
    UNUSED;
    struct jinja_json_style style = {.ensure_ascii = jinja_arg_truth(run, arg[0], false),
                                     .sort_keys = jinja_arg_truth(run, arg[3], false)};
    struct jinja_buffer out = {0}, indent = {0};
    if (given(arg[1])) {
        if (arg[1].type == JINJA_STRING) {
            jinja_put(run, &indent, arg[1].string->bytes, arg[1].string->n_bytes);
        } else {
            const int64_t width = jinja_arg_int(run, arg[1], 0);
            jinja_put_fill(run, &indent, ' ', width > 0 ? (size_t)width : 0);
        }
        style.indent = indent.n ? indent.bytes : "";
        style.n_indent = indent.n;
    }
    if (given(arg[2])) {
        const struct jinja_list *pair = jinja_to_list(run, arg[2]).list;
        if (pair->n != 2) jinja_fail(run, "tojson: separators are a pair");
        style.item_separator = jinja_arg_string(run, pair->items[0]);
        style.key_separator = jinja_arg_string(run, pair->items[1]);
    }
    jinja_print_json(run, &out, self, &style);
    return jinja_string_from(run, &out);
}

/* ---- numbers */

/* int(text, base): white space around, a sign, a prefix of the base, underscores. */
static bool parse_int(struct jinja_run *run, const struct jinja_string *text, int64_t base,
                      int64_t *out)
{
    const struct jinja_string *bare = jinja_strip(run, text, NULL, STRIP_BOTH).string;
    const char *p = bare->bytes, *const end = p + bare->n_bytes;
    bool negative = false, digit_before = false, any = false;
    if (base != 0 && (base < 2 || base > 36)) return false;
    if (p < end && (*p == '-' || *p == '+')) negative = *p++ == '-';
    if (end - p > 2 && *p == '0') {
        const char letter = (char)(p[1] | 32);
        const int64_t prefixed = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
        if (prefixed && (base == 0 || base == prefixed)) {
            base = prefixed;
            p += 2;
            digit_before = true; /* an underscore may follow the prefix */
        }
    }
    const bool plain_zero_only = base == 0 && p < end && *p == '0';
    if (base == 0) base = 10;
    int64_t value = 0;
    while (p < end) {
        const uint32_t c = jinja_utf8_get(&p);
        int64_t digit = 99;
        if (c == '_') {
            if (!digit_before || p == end) return false;
            digit_before = false;
            continue;
        }
        if (jinja_char_classes(c) & CHAR_DECIMAL)
            digit = jinja_char_decimal(c);
        else if ((c | 32) >= 'a' && (c | 32) <= 'z' && c < 128)
            digit = (int64_t)(c | 32) - 'a' + 10;
        if (digit >= base) return false;
        digit_before = any = true;
        if (plain_zero_only && digit) return false;
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_sub_overflow(value, digit, &value)) /* negative reaches INT64_MIN */
            jinja_fail(run, "an integer does not fit 64 bits");
    }
    if (!any || !digit_before) return false;
    if (!negative && value == INT64_MIN) jinja_fail(run, "an integer does not fit 64 bits");
    *out = negative ? value : -value;
    return true;
}

static bool is_special_float(const char *p)
{
    p += *p == '-' || *p == '+';
    return !strcasecmp(p, "inf") || !strcasecmp(p, "infinity") || !strcasecmp(p, "nan");
}

/* float(text), after the same preparation. */
static bool parse_float(struct jinja_run *run, const struct jinja_string *text, double *out)
{
    const struct jinja_string *bare = jinja_strip(run, text, NULL, STRIP_BOTH).string;
    const char *p = bare->bytes, *const end = p + bare->n_bytes;
    char *const ascii = jinja_alloc(run, bare->n_bytes + 1), *q = ascii;
    char before = 0;
    while (p < end) {
        const uint32_t c = jinja_utf8_get(&p);
        const bool digit = jinja_char_classes(c) & CHAR_DECIMAL;
        if (c == '_') {
            const char *next = p;
            if (before < '0' || before > '9' || p == end ||
                !(jinja_char_classes(jinja_utf8_get(&next)) & CHAR_DECIMAL))
                return false;
            before = '_';
            continue;
        }
        if (c >= 128 && !digit) return false;
        before = *q++ = digit ? (char)('0' + jinja_char_decimal(c)) : (char)c;
    }
    *q = '\0';
    if (q == ascii || strlen(ascii) != (size_t)(q - ascii)) return false;
    if (!is_special_float(ascii) && strspn(ascii, "0123456789+-.eE") != (size_t)(q - ascii))
        return false; /* no hexadecimal floats and the like */
    char *stop;
    *out = strtod(ascii, &stop);
    return stop == q;
}

/* int(value) of a float that has one. */
static bool float_to_int(struct jinja_run *run, double real, int64_t *out)
{
    if (isnan(real) || isinf(real)) return false;
    if (fabs(real) >= 9223372036854775808.0) jinja_fail(run, "an integer does not fit 64 bits");
    *out = (int64_t)real;
    return true;
}

BUILTIN(filter_int)
{
    UNUSED;
    int64_t integer;
    double real;
    const struct jinja_value otherwise = arg[0].type == JINJA_MISSING ? jinja_int(0) : arg[0];
    const int64_t base = jinja_arg_int(run, arg[1], 10);
    if (jinja_as_int(self, &integer)) return jinja_int(integer);
    if (self.type == JINJA_UNDEFINED) jinja_fail_undefined(run, self);
    if (self.type == JINJA_FLOAT) {
        if (isinf(self.real)) jinja_fail(run, "cannot convert float infinity to integer");
        return float_to_int(run, self.real, &integer) ? jinja_int(integer) : otherwise;
    }
    if (self.type != JINJA_STRING) return otherwise;
    if (parse_int(run, self.string, base, &integer)) return jinja_int(integer);
    if (parse_float(run, self.string, &real) && float_to_int(run, real, &integer))
        return jinja_int(integer);
    return otherwise;
}

BUILTIN(filter_float)
{
    UNUSED;
    double real;
    if (self.type == JINJA_UNDEFINED) jinja_fail_undefined(run, self);
    if (jinja_is_number(self)) return jinja_float(jinja_as_float(self));
    if (self.type == JINJA_STRING && parse_float(run, self.string, &real)) return jinja_float(real);
    return arg[0].type == JINJA_MISSING ? jinja_float(0) : arg[0];
}

BUILTIN(filter_abs)
{
    UNUSED;
    int64_t integer;
    if (self.type == JINJA_FLOAT) return jinja_float(fabs(self.real));
    if (!jinja_as_int(self, &integer))
        jinja_fail(run, "bad operand type for abs(): '%s'", jinja_type_name(self));
    return integer < 0 ? jinja_sign(run, true, self) : jinja_int(integer);
}

/* round(integer, n) for n < 0: to a multiple of a power of ten, half to even. */
static struct jinja_value round_integer(struct jinja_run *run, int64_t integer, int64_t n)
{
    if (n >= 0) return jinja_int(integer);
    if (n < -18) return jinja_int(0);
    int64_t unit = 1;
    for (; n < 0; n++)
        unit *= 10;
    const int64_t rest = ((integer % unit) + unit) % unit, low = integer - rest;
    const bool up = rest > unit - rest || (rest == unit - rest && (low / unit) % 2 != 0);
    return up ? jinja_binary(run, BINARY_ADD, jinja_int(low), jinja_int(unit)) : jinja_int(low);
}

/* round(real, n), correctly: the decimal expansion decides, as in Python. */
static double round_float(double real, int64_t n)
{
    char text[800];
    if (!isfinite(real) || n > 323) return real;
    if (n < -308) return real * 0.0;
    if (n >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)n, real);
        return strtod(text, NULL);
    }
    /* Digits left of the point: cut the exact integer part, with what follows deciding halves. */
    snprintf(text, sizeof(text), "%.0f", trunc(fabs(real)));
    const int64_t n_digit = (int64_t)strlen(text), n_kept = n_digit + n;
    if (n_kept < 0) return copysign(0, real);
    char *const rest = text + n_kept;
    bool exact_half = *rest == '5' && fabs(real) == trunc(fabs(real));
    for (const char *p = rest + 1; *p; p++)
        exact_half = exact_half && *p == '0';
    const bool odd = n_kept > 0 && (rest[-1] - '0') % 2;
    const bool up = exact_half ? odd : *rest >= '5';
    *rest = '\0';
    char scaled[820];
    snprintf(scaled, sizeof(scaled), "%se%lld", n_kept ? text : "0", (long long)-n);
    double result = strtod(scaled, NULL);
    if (up) {
        /* Carry in decimal: the digits as an integer plus one. */
        char *p = rest;
        while (p > text && p[-1] == '9')
            *--p = '0';
        if (p > text) p[-1]++;
        snprintf(scaled, sizeof(scaled), "%s%se%lld", p > text ? "" : "1", text, (long long)-n);
        result = strtod(scaled, NULL);
    }
    return copysign(result, real);
}

BUILTIN(filter_round)
{
    UNUSED;
    int64_t integer;
    const int64_t precision = jinja_arg_int(run, arg[0], 0);
    const char *method = "common";
    if (arg[1].type != JINJA_MISSING) {
        const struct jinja_string *name = jinja_arg_string(run, arg[1]);
        method = jinja_string_is(name, "ceil")    ? "ceil"
                 : jinja_string_is(name, "floor") ? "floor"
                                                  : "common";
        if (*method == 'c' && method[1] == 'o' && !jinja_string_is(name, "common"))
            jinja_fail(run, "method must be common, ceil or floor");
    }
    if (!jinja_is_number(self))
        jinja_fail(run, "type %s doesn't define __round__ method", jinja_type_name(self));
    if (method[1] == 'o' && jinja_as_int(self, &integer))
        return round_integer(run, integer, precision);
    if (method[1] == 'o') return jinja_float(round_float(self.real, precision));
    const struct jinja_value unit =
        jinja_binary(run, BINARY_POW, jinja_int(10), jinja_int(precision));
    const double scaled = jinja_as_float(jinja_binary(run, BINARY_MUL, self, unit));
    if (!isfinite(scaled)) jinja_fail(run, "cannot round infinity or NaN");
    const double whole = *method == 'c' ? ceil(scaled) : floor(scaled);
    return jinja_float((whole == 0 ? 0.0 : whole) /
                       jinja_as_float(unit)); /* an integer has no -0 */
}

/* ---- sequences */

BUILTIN(filter_length)
{
    UNUSED;
    return jinja_int(jinja_length(run, self));
}

BUILTIN(filter_list)
{
    UNUSED;
    return jinja_to_list(run, self);
}

BUILTIN(filter_first)
{
    UNUSED;
    struct jinja_value item;
    if (jinja_next(run, jinja_iterate(run, self), &item)) return item;
    return jinja_undefined_hint(run, "no first item, sequence was empty");
}

BUILTIN(filter_last)
{
    UNUSED;
    if (self.type == JINJA_ITERATOR || self.type == JINJA_LOOP)
        jinja_fail(run, "'%s' object is not reversible", jinja_type_name(self));
    if (self.type == JINJA_STRING || self.type == JINJA_LIST || self.type == JINJA_TUPLE) {
        if (jinja_length(run, self)) return jinja_get_item(run, self, jinja_int(-1));
    } else {
        const struct jinja_list *list = jinja_to_list(run, self).list;
        if (list->n) return list->items[list->n - 1];
    }
    return jinja_undefined_hint(run, "no last item, sequence was empty");
}

static bool next_of_list(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    (void)run;
    if (iter->i >= iter->source.list->n) return false;
    *out = iter->source.list->items[iter->i++];
    return true;
}

/* A list as a one-pass sequence. */
static struct jinja_value once(struct jinja_run *run, struct jinja_value list)
{
    return jinja_iterator(run, next_of_list, list, NULL);
}

BUILTIN(filter_reverse)
{
    UNUSED;
    if (self.type == JINJA_STRING)
        return jinja_slice(run, self, jinja_none(), jinja_none(), jinja_int(-1), false);
    const struct jinja_value list = jinja_to_list(run, self);
    const struct jinja_value reversed =
        jinja_slice(run, list, jinja_none(), jinja_none(), jinja_int(-1), false);
    return self.type == JINJA_ITERATOR ? reversed : once(run, reversed);
}

BUILTIN(filter_join)
{
    UNUSED;
    const struct path path = make_path(run, arg[1]);
    const struct jinja_value separator =
        arg[0].type == JINJA_MISSING ? jinja_text(run, "") : jinja_to_string(run, arg[0]);
    struct jinja_buffer out = {0};
    struct jinja_iter *iter = jinja_iterate(run, self);
    bool first = true;
    for (struct jinja_value item; jinja_next(run, iter, &item); first = false) {
        if (!first) jinja_print(run, &out, separator);
        jinja_print(run, &out, follow(run, &path, item));
    }
    return jinja_string_from(run, &out);
}

BUILTIN(filter_sum)
{
    UNUSED;
    const struct path path = make_path(run, arg[0]);
    struct jinja_value total = arg[1].type == JINJA_MISSING ? jinja_int(0) : arg[1];
    if (total.type == JINJA_STRING) jinja_fail(run, "sum() can't sum strings");
    struct jinja_iter *iter = jinja_iterate(run, self);
    for (struct jinja_value item; jinja_next(run, iter, &item);)
        total = jinja_binary(run, BINARY_ADD, total, follow(run, &path, item));
    return total;
}

static struct jinja_value extreme(struct jinja_run *run, struct jinja_value self, args arg,
                                  enum jinja_order order)
{
    struct path path = make_path(run, arg[1]);
    path.fold = !jinja_arg_truth(run, arg[0], false);
    struct jinja_iter *iter = jinja_iterate(run, self);
    struct jinja_value best, item;
    if (!jinja_next(run, iter, &best))
        return jinja_undefined_hint(run, "no aggregated item, sequence was empty");
    struct jinja_value best_key = follow(run, &path, best);
    while (jinja_next(run, iter, &item)) {
        const struct jinja_value key = follow(run, &path, item);
        if (!jinja_order(run, order, key, best_key)) continue;
        best = item;
        best_key = key;
    }
    return best;
}

BUILTIN(filter_min)
{
    UNUSED;
    return extreme(run, self, arg, ORDER_LT);
}

BUILTIN(filter_max)
{
    UNUSED;
    return extreme(run, self, arg, ORDER_GT);
}

/* The paths of "a,b.c" as one key: a list, so that equal parts compare by what follows. */
static struct jinja_value sort_key(struct jinja_run *run, const struct path *paths, size_t n_path,
                                   struct jinja_value item)
{
    struct jinja_value key = jinja_list_new(run, n_path);
    for (size_t i = 0; i < n_path; i++)
        jinja_list_append(run, key.list, follow(run, &paths[i], item));
    return key;
}

BUILTIN(filter_sort)
{
    UNUSED;
    const struct jinja_value list = jinja_to_list(run, self);
    struct path *paths = NULL;
    size_t n_path = 0, cap = 0;
    struct jinja_value attributes = jinja_list_new(run, 1);
    if (arg[2].type == JINJA_STRING) {
        const struct jinja_string *split_name = jinja_text(run, "split").string;
        const struct jinja_value comma = jinja_text(run, ",");
        attributes = jinja_call_builtin(run, jinja_find_method(JINJA_STRING, split_name), arg[2],
                                        &(struct jinja_call){&comma, 1, NULL, 0});
    } else {
        jinja_list_append(run, attributes.list, arg[2]);
    }
    for (size_t i = 0; i < attributes.list->n; i++) {
        paths = jinja_reserve(run, paths, n_path, 1, &cap, sizeof(*paths));
        paths[n_path] = make_path(run, attributes.list->items[i]);
        paths[n_path++].fold = !jinja_arg_truth(run, arg[1], false);
    }
    struct jinja_value *keys = jinja_alloc(run, list.list->n * sizeof(*keys));
    for (size_t i = 0; i < list.list->n; i++)
        keys[i] = sort_key(run, paths, n_path, list.list->items[i]);
    jinja_sort(run, list.list->items, keys, list.list->n, jinja_arg_truth(run, arg[0], false));
    return list;
}

BUILTIN(filter_dictsort)
{
    UNUSED;
    const bool case_sensitive = jinja_arg_truth(run, arg[0], false);
    size_t which = 0;
    if (arg[1].type != JINJA_MISSING) {
        const struct jinja_string *by = jinja_arg_string(run, arg[1]);
        which = jinja_string_is(by, "value");
        if (!which && !jinja_string_is(by, "key"))
            jinja_fail(run, "you can only sort by either \"key\" or \"value\"");
    }
    if (self.type != JINJA_DICT)
        jinja_fail(run, "'%s' object has no attribute 'items'", jinja_type_name(self));
    const struct jinja_view view = {self.dict, VIEW_ITEMS};
    const struct jinja_value list =
        jinja_to_list(run, (struct jinja_value){.type = JINJA_VIEW, .view = &view});
    struct jinja_value *keys = jinja_alloc(run, list.list->n * sizeof(*keys));
    for (size_t i = 0; i < list.list->n; i++) {
        keys[i] = list.list->items[i].list->items[which];
        if (!case_sensitive) keys[i] = fold(run, keys[i]);
    }
    jinja_sort(run, list.list->items, keys, list.list->n, jinja_arg_truth(run, arg[2], false));
    return list;
}

BUILTIN(filter_groupby)
{
    UNUSED;
    struct path path = make_path(run, arg[0]);
    path.if_undefined = arg[1];
    const struct path plain = path;
    path.fold = !jinja_arg_truth(run, arg[2], false);
    const struct jinja_value list = jinja_to_list(run, self);
    const size_t n = list.list->n;
    struct jinja_value *keys = jinja_alloc(run, n * sizeof(*keys));
    for (size_t i = 0; i < n; i++)
        keys[i] = follow(run, &path, list.list->items[i]);
    jinja_sort(run, list.list->items, keys, n, false);
    struct jinja_value groups = jinja_list_new(run, 0), members = jinja_list_new(run, 0);
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || !jinja_equal(run, keys[i - 1], keys[i])) {
            const struct jinja_value grouper =
                path.fold ? follow(run, &plain, list.list->items[i]) : keys[i];
            members = jinja_list_new(run, 0);
            struct jinja_value group = jinja_tuple_2(run, grouper, members);
            group.list->is_group = true;
            jinja_list_append(run, groups.list, group);
        }
        jinja_list_append(run, members.list, list.list->items[i]);
    }
    return groups;
}

BUILTIN(filter_batch)
{
    UNUSED;
    const int64_t n_max = jinja_arg_int(run, arg[0], 0);
    struct jinja_value batches = jinja_list_new(run, 0), batch = jinja_list_new(run, 0);
    struct jinja_iter *iter = jinja_iterate(run, self);
    for (struct jinja_value item; jinja_next(run, iter, &item);) {
        if ((int64_t)batch.list->n == n_max) {
            jinja_list_append(run, batches.list, batch);
            batch = jinja_list_new(run, 0);
        }
        jinja_list_append(run, batch.list, item);
    }
    if (batch.list->n) {
        while (given(arg[1]) && (int64_t)batch.list->n < n_max)
            jinja_list_append(run, batch.list, arg[1]);
        jinja_list_append(run, batches.list, batch);
    }
    return once(run, batches);
}

BUILTIN(filter_slice)
{
    UNUSED;
    const int64_t n_slice = jinja_arg_int(run, arg[0], 0);
    const struct jinja_value list = jinja_to_list(run, self);
    const int64_t n = (int64_t)list.list->n;
    if (n_slice == 0) jinja_fail(run, "integer division or modulo by zero");
    const int64_t each = n_slice > 0 ? n / n_slice : 0, n_longer = n_slice > 0 ? n % n_slice : 0;
    struct jinja_value slices = jinja_list_new(run, 0);
    int64_t at = 0;
    for (int64_t i = 0; i < n_slice; i++) {
        struct jinja_value slice = jinja_list_new(run, 0);
        for (int64_t k = each + (i < n_longer); k > 0; k--)
            jinja_list_append(run, slice.list, list.list->items[at++]);
        if (given(arg[1]) && i >= n_longer) jinja_list_append(run, slice.list, arg[1]);
        jinja_list_append(run, slices.list, slice);
    }
    return once(run, slices);
}

/* ---- lazy sequences */

struct lazy {
    struct jinja_iter *iter; /* NULL: not begun */
    struct path path;
    const struct jinja_builtin *function; /* applied to each item; NULL: none */
    struct jinja_call call;               /* its further arguments */
    struct jinja_value name;              /* of an unknown function: fails when used */
    bool by_attribute, keep;              /* select: what to test, which result to keep */
    struct jinja_dict *seen;              /* unique */
};

/* Begins on the first item, as generators do; what is false has no items, whatever it is. */
static bool lazy_next(struct jinja_run *run, struct jinja_iter *iter, struct lazy *lazy,
                      struct jinja_value *out)
{
    if (!lazy->iter) {
        if (!jinja_truth(run, iter->source)) return false;
        lazy->iter = jinja_iterate(run, iter->source);
    }
    return jinja_next(run, lazy->iter, out);
}

static struct jinja_value apply_function(struct jinja_run *run, const struct lazy *lazy,
                                         struct jinja_value item)
{
    if (!lazy->function) {
        const struct jinja_string *name = lazy->name.string;
        jinja_fail(run, "no filter or test named '%.*s'", (int)(name->n_bytes & 255), name->bytes);
    }
    jinja_check_stack(run);
    return jinja_call_builtin(run, lazy->function, item, &lazy->call);
}

static bool next_mapped(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    struct lazy *lazy = iter->state;
    if (!lazy_next(run, iter, lazy, out)) return false;
    *out = lazy->by_attribute ? follow(run, &lazy->path, *out) : apply_function(run, lazy, *out);
    return true;
}

static const struct jinja_value *named_arg(const struct jinja_call *call, const char *name)
{
    for (size_t i = 0; i < call->n_named; i++)
        if (jinja_string_is(call->named[i].key.string, name)) return &call->named[i].value;
    return NULL;
}

static void take_function(struct jinja_run *run, struct lazy *lazy, const struct jinja_call *call,
                          size_t n_before, bool filter)
{
    lazy->name = call->positional[n_before];
    const struct jinja_string *name = jinja_arg_string(run, lazy->name);
    lazy->function = filter ? jinja_find_filter(name) : jinja_find_test(name);
    lazy->call = *call;
    lazy->call.positional += n_before + 1;
    lazy->call.n_positional -= n_before + 1;
}

BUILTIN(filter_map)
{
    UNUSED;
    struct lazy *lazy = jinja_alloc_zero(run, sizeof(*lazy));
    const struct jinja_value *attribute = named_arg(call, "attribute");
    if (!call->n_positional && attribute) {
        const struct jinja_value *if_undefined = named_arg(call, "default");
        if (call->n_named != (if_undefined ? 2u : 1u))
            jinja_fail(run, "map: unexpected keyword argument");
        lazy->path = make_path(run, *attribute);
        if (if_undefined) lazy->path.if_undefined = *if_undefined;
        lazy->by_attribute = true;
    } else {
        if (!call->n_positional) jinja_fail(run, "map requires a filter argument");
        take_function(run, lazy, call, 0, true);
    }
    return jinja_iterator(run, next_mapped, self, lazy);
}

static bool next_selected(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    struct lazy *lazy = iter->state;
    while (lazy_next(run, iter, lazy, out)) {
        struct jinja_value tested = lazy->by_attribute ? follow(run, &lazy->path, *out) : *out;
        if (lazy->name.type != JINJA_MISSING) tested = apply_function(run, lazy, tested);
        if (jinja_truth(run, tested) == lazy->keep) return true;
    }
    return false;
}

static struct jinja_value make_selection(struct jinja_run *run, struct jinja_value self,
                                         const struct jinja_call *call, bool by_attribute,
                                         bool keep)
{
    struct lazy *lazy = jinja_alloc_zero(run, sizeof(*lazy));
    lazy->by_attribute = by_attribute;
    lazy->keep = keep;
    if (by_attribute) {
        if (!call->n_positional) jinja_fail(run, "missing parameter for attribute name");
        lazy->path = make_path(run, call->positional[0]);
    }
    if (call->n_positional > by_attribute) take_function(run, lazy, call, by_attribute, false);
    return jinja_iterator(run, next_selected, self, lazy);
}

BUILTIN(filter_select)
{
    UNUSED;
    return make_selection(run, self, call, false, true);
}

BUILTIN(filter_reject)
{
    UNUSED;
    return make_selection(run, self, call, false, false);
}

BUILTIN(filter_selectattr)
{
    UNUSED;
    return make_selection(run, self, call, true, true);
}

BUILTIN(filter_rejectattr)
{
    UNUSED;
    return make_selection(run, self, call, true, false);
}

static bool next_unique(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    struct lazy *lazy = iter->state;
    if (!lazy->iter) lazy->iter = jinja_iterate(run, iter->source);
    while (jinja_next(run, lazy->iter, out)) {
        const struct jinja_value key = follow(run, &lazy->path, *out);
        if (jinja_dict_find(run, lazy->seen, key)) continue;
        jinja_dict_set(run, lazy->seen, key, jinja_none());
        return true;
    }
    return false;
}

BUILTIN(filter_unique)
{
    UNUSED;
    struct lazy *lazy = jinja_alloc_zero(run, sizeof(*lazy));
    lazy->path = make_path(run, arg[1]);
    lazy->path.fold = !jinja_arg_truth(run, arg[0], false);
    lazy->seen = jinja_dict_new(run).dict;
    return jinja_iterator(run, next_unique, self, lazy);
}

static bool next_of_mapping(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    if (iter->source.type == JINJA_UNDEFINED) return false;
    if (iter->source.type != JINJA_DICT) jinja_fail(run, "can only get item pairs from a mapping");
    const struct jinja_pair *pair = jinja_dict_next(iter->source.dict, &iter->i);
    if (!pair) return false;
    *out = jinja_tuple_2(run, pair->key, pair->value);
    return true;
}

BUILTIN(filter_items)
{
    UNUSED;
    return jinja_iterator(run, next_of_mapping, self, NULL);
}

/* ---- others */

BUILTIN(filter_default)
{
    UNUSED;
    const struct jinja_value otherwise =
        arg[0].type == JINJA_MISSING ? jinja_text(run, "") : arg[0];
    if (self.type == JINJA_UNDEFINED) return otherwise;
    return jinja_arg_truth(run, arg[1], false) && !jinja_truth(run, self) ? otherwise : self;
}

BUILTIN(filter_attr)
{
    UNUSED;
    struct jinja_value found;
    const struct jinja_string *name = jinja_arg_string(run, arg[0]);
    if (self.type == JINJA_UNDEFINED) jinja_fail_undefined(run, self);
    if (jinja_find_attribute(run, self, name, &found)) return found;
    return jinja_undefined_member(run, self, arg[0]);
}

static const struct jinja_builtin filters[] = {
    {"abs", "", filter_abs},
    {"attr", "name", filter_attr},
    {"batch", "linecount,fill_with?", filter_batch},
    {"capitalize", "", filter_capitalize},
    {"center", "width?", filter_center},
    {"count", "", filter_length},
    {"d", "default_value?,boolean?", filter_default},
    {"default", "default_value?,boolean?", filter_default},
    {"dictsort", "case_sensitive?,by?,reverse?", filter_dictsort},
    {"e", "", filter_escape},
    {"escape", "", filter_escape},
    {"filesizeformat", "binary?", filter_filesizeformat},
    {"first", "", filter_first},
    {"float", "default?", filter_float},
    {"forceescape", "", filter_escape},
    {"format", NULL, filter_format},
    {"groupby", "attribute,default?,case_sensitive?", filter_groupby},
    {"indent", "width?,first?,blank?", filter_indent},
    {"int", "default?,base?", filter_int},
    {"items", "", filter_items},
    {"join", "d?,attribute?", filter_join},
    {"last", "", filter_last},
    {"length", "", filter_length},
    {"list", "", filter_list},
    {"lower", "", filter_lower},
    {"map", NULL, filter_map},
    {"max", "case_sensitive?,attribute?", filter_max},
    {"min", "case_sensitive?,attribute?", filter_min},
    {"reject", NULL, filter_reject},
    {"rejectattr", NULL, filter_rejectattr},
    {"replace", "old,new,count?", filter_replace},
    {"reverse", "", filter_reverse},
    {"round", "precision?,method?", filter_round},
    {"safe", "", filter_safe},
    {"select", NULL, filter_select},
    {"selectattr", NULL, filter_selectattr},
    {"slice", "slices,fill_with?", filter_slice},
    {"sort", "reverse?,case_sensitive?,attribute?", filter_sort},
    {"string", "", filter_string},
    {"striptags", "", filter_striptags},
    {"sum", "attribute?,start?", filter_sum},
    {"title", "", filter_title},
    {"tojson", "ensure_ascii?,indent?,separators?,sort_keys?", filter_tojson},
    {"trim", "chars?", filter_trim},
    {"truncate", "length?,killwords?,end?,leeway?", filter_truncate},
    {"unique", "case_sensitive?,attribute?", filter_unique},
    {"upper", "", filter_upper},
    {"urlencode", "", filter_urlencode},
    {"wordcount", "", filter_wordcount},
};

const struct jinja_builtin *jinja_find_filter(const struct jinja_string *name)
{
    return JINJA_FIND(filters, name);
}

/* ---- tests */

BUILTIN(test_defined)
{
    UNUSED;
    return jinja_bool(self.type != JINJA_UNDEFINED);
}

BUILTIN(test_undefined)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_UNDEFINED);
}

BUILTIN(test_none)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_NONE);
}

BUILTIN(test_boolean)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_BOOL);
}

BUILTIN(test_true)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_BOOL && self.boolean);
}

BUILTIN(test_false)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_BOOL && !self.boolean);
}

BUILTIN(test_integer)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_INT);
}

BUILTIN(test_float)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_FLOAT);
}

BUILTIN(test_number)
{
    UNUSED;
    return jinja_bool(jinja_is_number(self));
}

BUILTIN(test_string)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_STRING);
}

BUILTIN(test_mapping)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_DICT);
}

BUILTIN(test_iterable)
{
    UNUSED;
    return jinja_bool(jinja_is_iterable(self));
}

BUILTIN(test_sequence)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_UNDEFINED || self.type == JINJA_STRING ||
                      self.type == JINJA_LIST || self.type == JINJA_TUPLE ||
                      self.type == JINJA_DICT || self.type == JINJA_RANGE);
}

BUILTIN(test_callable)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_FUNCTION || self.type == JINJA_METHOD ||
                      self.type == JINJA_MACRO || self.type == JINJA_LOOP ||
                      self.type == JINJA_JOINER || self.type == JINJA_UNDEFINED);
}

BUILTIN(test_lower)
{
    UNUSED;
    return jinja_bool(jinja_is_lower(run, text_of(run, self)));
}

BUILTIN(test_upper)
{
    UNUSED;
    return jinja_bool(jinja_is_upper(run, text_of(run, self)));
}

static bool remainder_is(struct jinja_run *run, struct jinja_value value, struct jinja_value by,
                         int64_t wanted)
{
    return jinja_equal(run, jinja_binary(run, BINARY_MOD, value, by), jinja_int(wanted));
}

BUILTIN(test_odd)
{
    UNUSED;
    return jinja_bool(remainder_is(run, self, jinja_int(2), 1));
}

BUILTIN(test_even)
{
    UNUSED;
    return jinja_bool(remainder_is(run, self, jinja_int(2), 0));
}

BUILTIN(test_divisibleby)
{
    UNUSED;
    return jinja_bool(remainder_is(run, self, arg[0], 0));
}

BUILTIN(test_sameas)
{
    UNUSED;
    return jinja_bool(jinja_same(self, arg[0]));
}

BUILTIN(test_escaped)
{
    UNUSED;
    return jinja_bool(false);
}

BUILTIN(test_filter)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_STRING && jinja_find_filter(self.string));
}

BUILTIN(test_test)
{
    UNUSED;
    return jinja_bool(self.type == JINJA_STRING && jinja_find_test(self.string));
}

BUILTIN(test_in)
{
    UNUSED;
    return jinja_bool(jinja_contains(run, arg[0], self));
}

BUILTIN(test_eq)
{
    UNUSED;
    return jinja_bool(jinja_equal(run, self, arg[0]));
}

BUILTIN(test_ne)
{
    UNUSED;
    return jinja_bool(!jinja_equal(run, self, arg[0]));
}

BUILTIN(test_lt)
{
    UNUSED;
    return jinja_bool(jinja_order(run, ORDER_LT, self, arg[0]));
}

BUILTIN(test_le)
{
    UNUSED;
    return jinja_bool(jinja_order(run, ORDER_LE, self, arg[0]));
}

BUILTIN(test_gt)
{
    UNUSED;
    return jinja_bool(jinja_order(run, ORDER_GT, self, arg[0]));
}

BUILTIN(test_ge)
{
    UNUSED;
    return jinja_bool(jinja_order(run, ORDER_GE, self, arg[0]));
}

static const struct jinja_builtin tests[] = {
    {"!=", "/b", test_ne},
    {"<", "/b", test_lt},
    {"<=", "/b", test_le},
    {"==", "/b", test_eq},
    {">", "/b", test_gt},
    {">=", "/b", test_ge},
    {"boolean", "", test_boolean},
    {"callable", "", test_callable},
    {"defined", "", test_defined},
    {"divisibleby", "num", test_divisibleby},
    {"eq", "/b", test_eq},
    {"equalto", "/b", test_eq},
    {"escaped", "", test_escaped},
    {"even", "", test_even},
    {"false", "", test_false},
    {"filter", "", test_filter},
    {"float", "", test_float},
    {"ge", "/b", test_ge},
    {"greaterthan", "/b", test_gt},
    {"gt", "/b", test_gt},
    {"in", "seq", test_in},
    {"integer", "", test_integer},
    {"iterable", "", test_iterable},
    {"le", "/b", test_le},
    {"lessthan", "/b", test_lt},
    {"lower", "", test_lower},
    {"lt", "/b", test_lt},
    {"mapping", "", test_mapping},
    {"ne", "/b", test_ne},
    {"none", "", test_none},
    {"number", "", test_number},
    {"odd", "", test_odd},
    {"sameas", "other", test_sameas},
    {"sequence", "", test_sequence},
    {"string", "", test_string},
    {"test", "", test_test},
    {"true", "", test_true},
    {"undefined", "", test_undefined},
    {"upper", "", test_upper},
};

const struct jinja_builtin *jinja_find_test(const struct jinja_string *name)
{
    return JINJA_FIND(tests, name);
}
