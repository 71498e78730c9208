#include "coordinator/text/jinja_format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/text/jinja_operator.h"
#include "coordinator/text/jinja_print.h"
#include "coordinator/text/jinja_unicode.h"

enum { WIDTH_MAX = 1 << 20 };

/* How one value is laid out, in terms common to both ways. */
struct layout {
    uint32_t fill;
    char align; /* '<', '>', '^', or '=': the padding goes after sign and prefix */
    char sign;  /* '-', '+', ' ' */
    bool alternate;
    char grouping; /* ',', '_' or 0 */
    int64_t width;
    int64_t precision; /* -1: not given */
    uint32_t type;     /* conversion letter, 0 if none */
};

/* The parts of a number: sign and prefix, the digits that may be grouped, and what follows. */
struct number {
    char sign;
    const char *prefix;
    const char *digits;
    size_t n_digit;
    const char *rest;
};

static void put_padded(struct jinja_run *run, struct jinja_buffer *buffer, const char *bytes,
                       size_t n_bytes, const struct layout *layout)
{
    const int64_t n_chars = (int64_t)jinja_utf8_count(bytes, n_bytes);
    const size_t n = layout->width > n_chars ? (size_t)(layout->width - n_chars) : 0;
    const size_t n_left = layout->align == '<' ? 0 : layout->align == '^' ? n / 2 : n;
    jinja_put_fill(run, buffer, layout->fill, n_left);
    jinja_put(run, buffer, bytes, n_bytes);
    jinja_put_fill(run, buffer, layout->fill, n - n_left);
}

/* The digits with separators, zeros before them until they are n_min characters long. */
static void put_grouped(struct jinja_run *run, struct jinja_buffer *buffer,
                        const struct number *number, const struct layout *layout, int64_t n_min)
{
    const size_t group =
        layout->type == 'b' || layout->type == 'o' || layout->type == 'x' || layout->type == 'X'
            ? 4
            : 3;
    size_t n = number->n_digit;
    while (layout->grouping && (int64_t)(n + (n - 1) / group) < n_min)
        n++;
    while (!layout->grouping && (int64_t)n < n_min)
        n++;
    jinja_spend(run, n);
    for (size_t left = n; left > 0; left--) {
        const char digit = left > number->n_digit ? '0' : number->digits[number->n_digit - left];
        jinja_put(run, buffer, &digit, 1);
        if (layout->grouping && left > 1 && (left - 1) % group == 0)
            jinja_put(run, buffer, &layout->grouping, 1);
    }
}

static void put_number(struct jinja_run *run, struct jinja_buffer *buffer,
                       const struct number *number, const struct layout *layout)
{
    struct jinja_buffer body = {0};
    const char sign = number->sign == '-' ? '-' : layout->sign == '-' ? 0 : layout->sign;
    const int64_t n_around =
        (sign != 0) + (int64_t)strlen(number->prefix) + (int64_t)strlen(number->rest);
    const bool zeros = layout->align == '=' && layout->fill == '0';
    if (sign) jinja_put(run, &body, &sign, 1);
    jinja_put_text(run, &body, number->prefix);
    if (layout->align == '=' && !zeros) {
        const size_t n_group = layout->grouping ? (number->n_digit - 1) / 3 : 0;
        const int64_t n = layout->width - n_around - (int64_t)(number->n_digit + n_group);
        jinja_put_fill(run, &body, layout->fill, n > 0 ? (size_t)n : 0);
    }
    put_grouped(run, &body, number, layout, zeros ? layout->width - n_around : 0);
    jinja_put_text(run, &body, number->rest);
    put_padded(run, buffer, body.bytes, body.n, layout);
}

/* The magnitude in the base of an integer conversion. text: at least 72. */
static void integer_digits(uint64_t magnitude, uint32_t type, char *text)
{
    const unsigned base = type == 'b' ? 2 : type == 'o' ? 8 : type == 'x' || type == 'X' ? 16 : 10;
    const char *const symbols = type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    char reversed[72];
    int n = 0;
    do
        reversed[n++] = symbols[magnitude % base];
    while (magnitude /= base);
    while (n)
        *text++ = reversed[--n];
    *text = '\0';
}

static void put_integer(struct jinja_run *run, struct jinja_buffer *buffer, int64_t integer,
                        const struct layout *layout)
{
    char text[72];
    const uint32_t type = layout->type;
    integer_digits(integer < 0 ? -(uint64_t)integer : (uint64_t)integer, type, text);
    const char *prefix = "";
    if (layout->alternate)
        prefix = type == 'b'   ? "0b"
                 : type == 'o' ? "0o"
                 : type == 'x' ? "0x"
                 : type == 'X' ? "0X"
                               : "";
    const struct number number = {integer < 0 ? '-' : '+', prefix, text, strlen(text), ""};
    put_number(run, buffer, &number, layout);
}

/* Digits of a float by a printf conversion, in the arena. */
static char *float_digits(struct jinja_run *run, double magnitude, int64_t precision, char type,
                          bool alternate)
{
    char conversion[8];
    if (precision > WIDTH_MAX) jinja_fail(run, "the precision is too large");
    snprintf(conversion, sizeof(conversion), alternate ? "%%#.*%c" : "%%.*%c", type);
    const size_t n_text = (size_t)precision + 400; /* 309 digits before the point */
    char *text = jinja_alloc(run, n_text);
    jinja_spend(run, n_text);
    snprintf(text, n_text, conversion, (int)precision, magnitude);
    return text;
}

/* format()'s default for floats: the shortest digits, or %g with a digit after the point. */
static const char *plain_float(struct jinja_run *run, double magnitude, int64_t precision)
{
    char *text;
    if (precision < 0) {
        text = jinja_alloc(run, 32);
        jinja_float_text(magnitude, text);
        return text;
    }
    text = float_digits(run, magnitude, precision ? precision : 1, 'g', false);
    if (!isfinite(magnitude) || strchr(text, '.') || strchr(text, 'e')) return text;
    if ((int64_t)strlen(text) < (precision ? precision : 1)) return strcat(text, ".0");
    /* As many digits as the precision: the point needs one more, so the exponent form it is. */
    char *scientific = float_digits(run, magnitude, (precision ? precision : 1) - 1, 'e', false);
    char *e = strchr(scientific, 'e'), *last = e;
    if (strchr(scientific, '.'))
        while (last[-1] == '0' || last[-1] == '.')
            if (*--last == '.') break;
    memmove(last, e, strlen(e) + 1);
    return scientific;
}

static void put_float(struct jinja_run *run, struct jinja_buffer *buffer, double real,
                      const struct layout *layout)
{
    char type = layout->type == 'n' ? 'g' : (char)layout->type;
    const bool percent = type == '%';
    const double magnitude = fabs(percent ? real * 100 : real);
    const int64_t precision = layout->precision < 0 ? 6 : layout->precision;
    const char *text;
    if (!type)
        text = plain_float(run, magnitude, layout->precision);
    else
        text = float_digits(run, magnitude, precision, percent ? 'f' : type, layout->alternate);
    struct number number = {signbit(real) && !isnan(real) ? '-' : '+', "", text, 0, ""};
    while (text[number.n_digit] >= '0' && text[number.n_digit] <= '9')
        number.n_digit++;
    if (!number.n_digit) number.n_digit = strlen(text); /* inf, nan */
    struct jinja_buffer rest = {0};
    jinja_put_text(run, &rest, text + number.n_digit);
    if (percent) jinja_put_text(run, &rest, "%");
    jinja_put(run, &rest, "", 1);
    number.rest = rest.bytes;
    put_number(run, buffer, &number, layout);
}

/* A string cut to the precision and padded. */
static void put_string(struct jinja_run *run, struct jinja_buffer *buffer,
                       const struct jinja_string *string, const struct layout *layout)
{
    size_t n_bytes = string->n_bytes;
    if (layout->precision >= 0 && layout->precision < (int64_t)string->n_chars)
        n_bytes = (size_t)(jinja_utf8_at(string->bytes, (size_t)layout->precision) - string->bytes);
    put_padded(run, buffer, string->bytes, n_bytes, layout);
}

static struct jinja_value repr_of(struct jinja_run *run, struct jinja_value value)
{
    struct jinja_buffer buffer = {0};
    jinja_print_repr(run, &buffer, value);
    return jinja_string_from(run, &buffer);
}

/* repr with everything beyond ASCII escaped. */
static struct jinja_value ascii_of(struct jinja_run *run, struct jinja_value value)
{
    const struct jinja_string *text = repr_of(run, value).string;
    struct jinja_buffer buffer = {0};
    const char *p = text->bytes, *const end = p + text->n_bytes;
    while (p < end) {
        const uint32_t c = jinja_utf8_get(&p);
        char escape[16];
        snprintf(escape, sizeof(escape),
                 c < 128       ? "%c"
                 : c < 0x100   ? "\\x%02x"
                 : c < 0x10000 ? "\\u%04x"
                               : "\\U%08x",
                 c);
        jinja_put(run, &buffer, escape, c ? strlen(escape) : 1);
    }
    return jinja_string_from(run, &buffer);
}

static void put_code_point(struct jinja_run *run, struct jinja_buffer *buffer, int64_t c,
                           const struct layout *layout)
{
    char bytes[4];
    if (c < 0 || c > 0x10FFFF) jinja_fail(run, "%%c requires a code point below 0x110000");
    put_padded(run, buffer, bytes, jinja_utf8_put((uint32_t)c, bytes), layout);
}

/* ---- text % values */

struct percent {
    struct jinja_run *run;
    const char *p, *end;
    struct jinja_value values;
    bool is_tuple;
    size_t n_used;
};

static struct jinja_value next_value(struct percent *at)
{
    const size_t n = at->is_tuple ? at->values.list->n : 1;
    if (at->n_used >= n) jinja_fail(at->run, "not enough arguments for format string");
    return at->is_tuple ? at->values.list->items[at->n_used++] : (at->n_used++, at->values);
}

static bool is_mapping(struct jinja_value value) /* for `%`: whatever has subscripts */
{
    return value.type == JINJA_DICT || value.type == JINJA_LIST || value.type == JINJA_UNDEFINED ||
           value.type == JINJA_RANGE;
}

/* A number, or `*`: the next value. */
static int64_t read_count(struct percent *at)
{
    int64_t n = 0;
    if (at->p < at->end && *at->p == '*') {
        at->p++;
        if (!jinja_as_int(next_value(at), &n)) jinja_fail(at->run, "* wants int");
        if (n > WIDTH_MAX || n < -WIDTH_MAX) jinja_fail(at->run, "the width is too large");
        return n;
    }
    for (; at->p < at->end && *at->p >= '0' && *at->p <= '9'; at->p++)
        if ((n = n * 10 + (*at->p - '0')) > WIDTH_MAX)
            jinja_fail(at->run, "the width is too large");
    return n;
}

/* "(key)": values becomes the mapping's element for this conversion. */
static struct jinja_value read_key(struct percent *at)
{
    if (at->values.type != JINJA_DICT) jinja_fail(at->run, "format requires a mapping");
    const char *const start = ++at->p;
    for (int depth = 1; at->p < at->end; at->p++) {
        if (*at->p == '(') depth++;
        if (*at->p == ')' && --depth == 0) break;
    }
    if (at->p >= at->end) jinja_fail(at->run, "incomplete format key");
    const struct jinja_value key = jinja_string_view(at->run, start, (size_t)(at->p - start));
    at->p++;
    const struct jinja_value *found = jinja_dict_find(at->run, at->values.dict, key);
    if (!found) jinja_fail(at->run, "the mapping to format has no such key");
    return *found;
}

static void convert(struct percent *at, struct jinja_buffer *out, struct jinja_value value,
                    struct layout *layout)
{
    struct jinja_run *run = at->run;
    int64_t integer;
    const char c = (char)layout->type;
    if (strchr("sra", c)) {
        const struct jinja_value text = c == 's'   ? jinja_to_string(run, value)
                                        : c == 'r' ? repr_of(run, value)
                                                   : ascii_of(run, value);
        layout->fill = ' ';
        put_string(run, out, text.string, layout);
    } else if (c == 'c') {
        layout->fill = ' ';
        if (value.type == JINJA_STRING && value.string->n_chars == 1)
            put_padded(run, out, value.string->bytes, value.string->n_bytes, layout);
        else if (jinja_as_int(value, &integer))
            put_code_point(run, out, integer, layout);
        else
            jinja_fail(run, "%%c requires int or char");
    } else if (strchr("eEfFgG", c)) {
        if (!jinja_is_number(value))
            jinja_fail(run, "must be real number, not %s", jinja_type_name(value));
        put_float(run, out, jinja_as_float(value), layout);
    } else {
        const bool whole = c == 'd' || c == 'i' || c == 'u';
        if (whole && value.type == JINJA_FLOAT && fabs(value.real) < 9e18)
            integer = (int64_t)value.real;
        else if (!jinja_as_int(value, &integer))
            jinja_fail(run, "%%%c format: %s is required, not %s", c,
                       whole ? "a real number" : "an integer", jinja_type_name(value));
        char digits[72];
        if (whole) layout->type = 'd';
        integer_digits(integer < 0 ? -(uint64_t)integer : (uint64_t)integer, layout->type, digits);
        struct jinja_buffer padded = {0}; /* the precision is a number of digits here */
        const int64_t n_zero = layout->precision - (int64_t)strlen(digits);
        jinja_put_fill(run, &padded, '0', n_zero > 0 ? (size_t)n_zero : 0);
        jinja_put_text(run, &padded, digits);
        const char *prefix = !layout->alternate    ? ""
                             : layout->type == 'x' ? "0x"
                             : layout->type == 'X' ? "0X"
                             : layout->type == 'o' ? "0o"
                                                   : "";
        const struct number number = {integer < 0 ? '-' : '+', prefix, padded.bytes, padded.n, ""};
        put_number(run, out, &number, layout);
    }
}

static void read_conversion(struct percent *at, struct jinja_buffer *out)
{
    struct layout layout = {.fill = ' ', .align = '>', .sign = '-', .precision = -1};
    struct jinja_value value = jinja_missing();
    bool left = false, zero = false;
    jinja_spend(at->run, 1);
    if (at->p < at->end && *at->p == '(') value = read_key(at);
    for (; at->p < at->end && strchr("-+ #0", *at->p) && *at->p; at->p++) {
        left |= *at->p == '-';
        zero |= *at->p == '0';
        layout.alternate |= *at->p == '#';
        if (*at->p == '+') layout.sign = '+';
        if (*at->p == ' ' && layout.sign != '+') layout.sign = ' ';
    }
    layout.width = read_count(at);
    if (layout.width < 0) {
        left = true;
        layout.width = -layout.width;
    }
    if (at->p < at->end && *at->p == '.') {
        at->p++;
        layout.precision = read_count(at);
        if (layout.precision < 0) layout.precision = 0;
    }
    while (at->p < at->end && (*at->p == 'h' || *at->p == 'l' || *at->p == 'L'))
        at->p++;
    if (at->p >= at->end) jinja_fail(at->run, "incomplete format");
    layout.type = (unsigned char)*at->p++;
    if (layout.type == '%') {
        jinja_put(at->run, out, "%", 1);
        return;
    }
    if (layout.type >= 128 || !layout.type || !strchr("sraciduoxXeEfFgG", (int)layout.type))
        jinja_fail(at->run, "unsupported format character");
    if (left)
        layout.align = '<';
    else if (zero) {
        const bool numeric = !strchr("srac", (int)layout.type);
        layout.align = numeric ? '=' : '>';
        layout.fill = numeric ? '0' : ' ';
    }
    if (value.type == JINJA_MISSING) value = next_value(at);
    convert(at, out, value, &layout);
}

struct jinja_value jinja_format_percent(struct jinja_run *run, struct jinja_value format,
                                        struct jinja_value values)
{
    struct jinja_buffer out = {0};
    struct percent at = {
        run,    format.string->bytes,       format.string->bytes + format.string->n_bytes,
        values, values.type == JINJA_TUPLE, 0};
    while (at.p < at.end) {
        const char *percent = memchr(at.p, '%', (size_t)(at.end - at.p));
        const char *stop = percent ? percent : at.end;
        jinja_put(run, &out, at.p, (size_t)(stop - at.p));
        at.p = stop;
        if (!percent) break;
        at.p++;
        read_conversion(&at, &out);
    }
    const size_t n = at.is_tuple ? values.list->n : 1;
    if (at.n_used < n && !is_mapping(values))
        jinja_fail(run, "not all arguments converted during string formatting");
    return jinja_string_from(run, &out);
}

/* ---- text.format(...) */

struct braces {
    struct jinja_run *run;
    const struct jinja_call *call; /* or */
    struct jinja_value mapping;    /* for format_map */
    int64_t n_auto;                /* next automatic field number; -1: numbered by hand */
};

static void format_text(struct braces *at, struct jinja_buffer *out, const char *p, const char *end,
                        int depth);

static int64_t all_digits(const char *p, const char *end) /* the number, or -1 */
{
    int64_t n = 0;
    if (p == end) return -1;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9' || n > WIDTH_MAX) return -1;
        n = n * 10 + (*p - '0');
    }
    return n;
}

static struct jinja_value positional(struct braces *at, int64_t i)
{
    if (!at->call || (uint64_t)i >= at->call->n_positional)
        jinja_fail(at->run, "replacement index %lld out of range", (long long)i);
    return at->call->positional[i];
}

/* whole: the field is nothing more. Only then does its number count as given by hand. */
static struct jinja_value first_value(struct braces *at, const char *p, const char *end, bool whole)
{
    int64_t number = all_digits(p, end);
    if (number >= 0 && !whole) return positional(at, number);
    if (whole && (p == end || number >= 0)) {
        const bool automatic = p == end;
        if (automatic ? at->n_auto < 0 : at->n_auto > 0)
            jinja_fail(at->run, "automatic and manual field numbers do not mix");
        if (automatic)
            number = at->n_auto++;
        else
            at->n_auto = -1;
        return positional(at, number);
    }
    const struct jinja_value name = jinja_string_view(at->run, p, (size_t)(end - p));
    if (at->call) jinja_spend(at->run, at->call->n_named);
    if (at->call)
        for (size_t i = 0; i < at->call->n_named; i++)
            if (jinja_string_equal(at->call->named[i].key.string, name.string))
                return at->call->named[i].value;
    if (!at->call && at->mapping.type == JINJA_DICT) {
        const struct jinja_value *found = jinja_dict_find(at->run, at->mapping.dict, name);
        if (found) return *found;
    }
    jinja_fail(at->run, "format has no argument '%.*s'", (int)((end - p) & 255), p);
}

/* "name.attribute[key]..." */
static struct jinja_value read_field(struct braces *at, const char *p, const char *end)
{
    const char *stop = p;
    while (stop < end && *stop != '.' && *stop != '[')
        stop++;
    struct jinja_value value = first_value(at, p, stop, stop == end);
    while (stop < end) {
        const bool attribute = *stop == '.';
        p = ++stop;
        while (stop < end && (attribute ? *stop != '.' && *stop != '[' : *stop != ']'))
            stop++;
        if (p == stop || (!attribute && stop == end))
            jinja_fail(at->run, "malformed field in a format string");
        const int64_t number = attribute ? -1 : all_digits(p, stop);
        const struct jinja_value name = jinja_string_view(at->run, p, (size_t)(stop - p));
        if (attribute)
            value = jinja_get_attribute(at->run, value, name);
        else
            value = jinja_get_item(at->run, value, number >= 0 ? jinja_int(number) : name);
        if (!attribute && ++stop < end && *stop != '.' && *stop != '[')
            jinja_fail(at->run, "malformed field in a format string");
    }
    return value;
}

static int64_t read_number(struct jinja_run *run, const char **p, const char *end)
{
    int64_t n = 0;
    for (; *p < end && **p >= '0' && **p <= '9'; ++*p)
        if ((n = n * 10 + (**p - '0')) > WIDTH_MAX) jinja_fail(run, "the width is too large");
    return n;
}

/* [[fill]align][sign][#][0][width][grouping][.precision][type] */
static struct layout read_layout(struct jinja_run *run, const char *p, const char *end)
{
    struct layout layout = {.fill = ' ', .sign = 0, .precision = -1};
    const char *after_fill = p;
    bool fill_given = false;
    if (p < end) jinja_utf8_get(&after_fill);
    if (after_fill < end && strchr("<>^=", *after_fill) && *after_fill) {
        fill_given = true;
        layout.fill = jinja_utf8_get(&p);
        layout.align = *p++;
    } else if (p < end && *p && strchr("<>^=", *p)) {
        layout.align = *p++;
    }
    if (p < end && *p && strchr("+- ", *p)) layout.sign = *p++;
    if (p < end && *p == '#') {
        layout.alternate = true;
        p++;
    }
    if (p < end && *p == '0') {
        p++;
        if (!fill_given) layout.fill = '0';
        if (!layout.align) layout.align = '0'; /* '=' for numbers, '<' for text */
    }
    layout.width = read_number(run, &p, end);
    if (p < end && (*p == ',' || *p == '_')) layout.grouping = *p++;
    if (p < end && *p == '.') {
        p++;
        if (p == end || *p < '0' || *p > '9') jinja_fail(run, "format specifier missing precision");
        layout.precision = read_number(run, &p, end);
    }
    if (p < end) layout.type = jinja_utf8_get(&p);
    if (p < end) jinja_fail(run, "invalid format specifier");
    return layout;
}

static void format_number(struct jinja_run *run, struct jinja_buffer *out, struct jinja_value value,
                          struct layout *layout)
{
    int64_t integer;
    const uint32_t type = layout->type;
    if (layout->align == '0') layout->align = '=';
    if (!layout->align) layout->align = '>';
    if (!layout->sign) layout->sign = '-';
    if (type >= 128 || (type && !strchr("bcdoxXneEfFgG%", (int)type)))
        jinja_fail(run, "unknown format code for object of type '%s'", jinja_type_name(value));
    if (jinja_as_int(value, &integer) && (!type || strchr("bcdoxXn", (int)type))) {
        if (layout->precision >= 0)
            jinja_fail(run, "precision not allowed in integer format specifier");
        if (type == 'c')
            put_code_point(run, out, integer, layout);
        else
            put_integer(run, out, integer, layout);
        return;
    }
    if (type && strchr("bcdoxX", (int)type))
        jinja_fail(run, "unknown format code '%c' for object of type 'float'", (char)type);
    put_float(run, out, jinja_as_float(value), layout);
}

static void format_value(struct jinja_run *run, struct jinja_buffer *out, struct jinja_value value,
                         const char *spec, const char *end)
{
    if (spec == end) {
        jinja_print(run, out, value);
        return;
    }
    struct layout layout = read_layout(run, spec, end);
    if (jinja_is_number(value)) {
        format_number(run, out, value, &layout);
        return;
    }
    if (value.type != JINJA_STRING)
        jinja_fail(run, "unsupported format string passed to %s.__format__",
                   jinja_type_name(value));
    if ((layout.type && layout.type != 's') || layout.sign || layout.alternate || layout.grouping ||
        layout.align == '=')
        jinja_fail(run, "the format specifier is not one for strings");
    if (!layout.align || layout.align == '0') layout.align = '<';
    put_string(run, out, value.string, &layout);
}

/* The closing brace of a field that starts at p. */
static const char *field_end(struct jinja_run *run, const char *p, const char *end)
{
    for (int depth = 1; p < end; p++) {
        if (*p == '{') depth++;
        if (*p == '}' && --depth == 0) return p;
    }
    jinja_fail(run, "expected '}' before end of string");
}

static void format_field(struct braces *at, struct jinja_buffer *out, const char *p,
                         const char *end, int depth)
{
    const char *name_end = p;
    jinja_spend(at->run, 1);
    for (bool bracket = false; name_end < end; name_end++) {
        if (*name_end == '[') bracket = true;
        if (*name_end == ']') bracket = false;
        if (!bracket && (*name_end == ':' || *name_end == '!')) break;
    }
    struct jinja_value value = read_field(at, p, name_end);
    const char *spec = name_end;
    if (spec < end && *spec == '!') {
        const char conversion = end - spec >= 2 ? spec[1] : '\0';
        spec += 2;
        if (conversion == 'r')
            value = repr_of(at->run, value);
        else if (conversion == 'a')
            value = ascii_of(at->run, value);
        else if (conversion == 's')
            value = jinja_to_string(at->run, value);
        else
            jinja_fail(at->run, "unknown conversion in a format string");
        if (spec < end && *spec != ':') jinja_fail(at->run, "expected ':' after the conversion");
    }
    if (spec < end) spec++;
    if (spec > end) spec = end;
    struct jinja_buffer nested = {0}; /* the specifier may itself hold fields */
    format_text(at, &nested, spec, end, depth + 1);
    format_value(at->run, out, value, nested.bytes, nested.bytes ? nested.bytes + nested.n : NULL);
}

static void format_text(struct braces *at, struct jinja_buffer *out, const char *p, const char *end,
                        int depth)
{
    while (p < end) {
        const char *brace = p;
        while (brace < end && *brace != '{' && *brace != '}')
            brace++;
        jinja_put(at->run, out, p, (size_t)(brace - p));
        if (brace == end) break;
        if (brace + 1 < end && brace[1] == *brace) {
            jinja_put(at->run, out, brace, 1);
            p = brace + 2;
            continue;
        }
        if (*brace == '}') jinja_fail(at->run, "single '}' encountered in format string");
        if (brace + 1 == end) jinja_fail(at->run, "single '{' encountered in format string");
        if (depth > 1) jinja_fail(at->run, "max string recursion exceeded");
        const char *const close = field_end(at->run, brace + 1, end);
        format_field(at, out, brace + 1, close, depth);
        p = close + 1;
    }
}

struct jinja_value jinja_format_braces(struct jinja_run *run, const struct jinja_string *format,
                                       const struct jinja_call *call)
{
    struct braces at = {.run = run, .call = call};
    struct jinja_buffer out = {0};
    format_text(&at, &out, format->bytes, format->bytes + format->n_bytes, 0);
    return jinja_string_from(run, &out);
}

struct jinja_value jinja_format_map(struct jinja_run *run, const struct jinja_string *format,
                                    struct jinja_value mapping)
{
    struct braces at = {.run = run, .mapping = mapping};
    struct jinja_buffer out = {0};
    format_text(&at, &out, format->bytes, format->bytes + format->n_bytes, 0);
    return jinja_string_from(run, &out);
}
