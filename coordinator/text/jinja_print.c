#include "coordinator/text/jinja_print.h"

#include <float.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/jinja_builtin.h"
#include "coordinator/text/jinja_eval.h"
#include "coordinator/text/jinja_unicode.h"

/* ---- floats */

/* Writes real with n_digit significant digits in exponent form; true if that reads back as real. */
static bool try_digits(double real, int n_digit, char *text)
{
    snprintf(text, 32, "%.*e", n_digit - 1, real);
    return strtod(text, NULL) == real;
}

/* Adds one unit to the last digit of "d.ddde+XX"; false if that carries out of the digits. */
static bool bump_last_digit(char *text)
{
    for (char *p = strchr(text, 'e') - 1; p >= text; p--) {
        if (*p == '.' || *p == '-') continue;
        if (*p != '9') {
            ++*p;
            return true;
        }
        *p = '0';
    }
    return false;
}

/* The shortest digits: 15 are enough for every number that was written with as many, 17 for any;
 * near zero the values are so few that less can do. With 16, the digits nearest below may miss
 * where the one above hits: just above a power of two the values are spaced twice as wide as below.
 */
static void shortest_digits(double real, char *text)
{
    int n_digit = fabs(real) < DBL_MIN * 16 ? 1 : 15;
    while (n_digit < 15 && !try_digits(real, n_digit, text))
        n_digit++;
    if (n_digit < 15) return;
    if (try_digits(real, 15, text) || try_digits(real, 16, text)) return;
    if (bump_last_digit(text) && strtod(text, NULL) == real) return;
    try_digits(real, 17, text);
}

void jinja_float_text(double real, char *text)
{
    if (isnan(real) || isinf(real)) {
        strcpy(text, isnan(real) ? "nan" : real < 0 ? "-inf" : "inf");
        return;
    }
    char scientific[32], digits[20];
    shortest_digits(real, scientific);
    char *const e = strchr(scientific, 'e');
    const int exponent = atoi(e + 1);
    int n = 0;
    for (const char *p = scientific; p < e; p++)
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    while (n > 1 && digits[n - 1] == '0')
        n--;
    digits[n] = '\0';
    if (signbit(real)) *text++ = '-';
    if (exponent < -4 || exponent >= 16)
        sprintf(text, "%c%s%se%c%02d", digits[0], n > 1 ? "." : "", digits + 1,
                exponent < 0 ? '-' : '+', abs(exponent));
    else if (exponent < 0)
        sprintf(text, "0.%.*s%s", -exponent - 1, "000", digits);
    else if (n <= exponent + 1)
        sprintf(text, "%s%.*s.0", digits, exponent + 1 - n, "0000000000000000");
    else
        sprintf(text, "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
}

/* ---- str and repr */

static void print_quoted(struct jinja_run *run, struct jinja_buffer *buffer,
                         const struct jinja_string *string)
{
    const bool has_single = memchr(string->bytes, '\'', string->n_bytes) != NULL;
    const bool has_double = memchr(string->bytes, '"', string->n_bytes) != NULL;
    const uint32_t quote = has_single && !has_double ? '"' : '\'';
    jinja_spend(run, string->n_chars);
    jinja_put_char(run, buffer, quote);
    const char *p = string->bytes, *const end = p + string->n_bytes;
    while (p < end) {
        const char *const start = p;
        const uint32_t c = jinja_utf8_get(&p);
        char escape[16];
        if (c == quote || c == '\\')
            snprintf(escape, sizeof(escape), "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof(escape), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (jinja_char_classes(c) & CHAR_PRINTABLE) {
            jinja_put(run, buffer, start, (size_t)(p - start));
            continue;
        } else if (c < 0x100)
            snprintf(escape, sizeof(escape), "\\x%02x", c);
        else if (c < 0x10000)
            snprintf(escape, sizeof(escape), "\\u%04x", c);
        else
            snprintf(escape, sizeof(escape), "\\U%08x", c);
        jinja_put_text(run, buffer, escape);
    }
    jinja_put_char(run, buffer, quote);
}

static void print_items(struct jinja_run *run, struct jinja_buffer *buffer,
                        const struct jinja_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        if (i) jinja_put_text(run, buffer, ", ");
        jinja_print_repr(run, buffer, list->items[i]);
    }
}

static void print_pairs(struct jinja_run *run, struct jinja_buffer *buffer,
                        const struct jinja_dict *dict)
{
    const char *separator = "{";
    const struct jinja_pair *pair;
    for (size_t i = 0; (pair = jinja_dict_next(dict, &i)); separator = ", ") {
        jinja_put_text(run, buffer, separator);
        jinja_print_repr(run, buffer, pair->key);
        jinja_put_text(run, buffer, ": ");
        jinja_print_repr(run, buffer, pair->value);
    }
    jinja_put_text(run, buffer, dict->n ? "}" : "{}");
}

static void print_view(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value view)
{
    jinja_put_text(run, buffer, jinja_type_name(view));
    jinja_put_text(run, buffer, "([");
    print_items(run, buffer, jinja_to_list(run, view).list);
    jinja_put_text(run, buffer, "])");
}

static void print_range(struct jinja_run *run, struct jinja_buffer *buffer,
                        const struct jinja_range *range)
{
    char text[80];
    int n = snprintf(text, sizeof(text), "range(%lld, %lld", (long long)range->start,
                     (long long)range->stop);
    if (range->step != 1)
        n += snprintf(text + n, sizeof(text) - (size_t)n, ", %lld", (long long)range->step);
    snprintf(text + n, sizeof(text) - (size_t)n, ")");
    jinja_put_text(run, buffer, text);
}

void jinja_print_repr(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value)
{
    char text[32];
    jinja_check_stack(run);
    jinja_spend(run, 1);
    switch (value.type) {
    case JINJA_UNDEFINED:
        jinja_put_text(run, buffer, "Undefined");
        break;
    case JINJA_NONE:
        jinja_put_text(run, buffer, "None");
        break;
    case JINJA_BOOL:
        jinja_put_text(run, buffer, value.boolean ? "True" : "False");
        break;
    case JINJA_INT:
        snprintf(text, sizeof(text), "%lld", (long long)value.integer);
        jinja_put_text(run, buffer, text);
        break;
    case JINJA_FLOAT:
        jinja_float_text(value.real, text);
        jinja_put_text(run, buffer, text);
        break;
    case JINJA_STRING:
        print_quoted(run, buffer, value.string);
        break;
    case JINJA_LIST:
        jinja_put_char(run, buffer, '[');
        print_items(run, buffer, value.list);
        jinja_put_char(run, buffer, ']');
        break;
    case JINJA_TUPLE:
        jinja_put_char(run, buffer, '(');
        print_items(run, buffer, value.list);
        jinja_put_text(run, buffer, value.list->n == 1 ? ",)" : ")");
        break;
    case JINJA_DICT:
        print_pairs(run, buffer, value.dict);
        break;
    case JINJA_NAMESPACE:
        jinja_put_text(run, buffer, "<Namespace ");
        print_pairs(run, buffer, value.dict);
        jinja_put_char(run, buffer, '>');
        break;
    case JINJA_VIEW:
        print_view(run, buffer, value);
        break;
    case JINJA_RANGE:
        print_range(run, buffer, value.range);
        break;
    case JINJA_MACRO:
    case JINJA_LOOP:
        jinja_print_object(run, buffer, value);
        break;
    default: /* Python shows an address here, so no template depends on it */
        jinja_put_char(run, buffer, '<');
        jinja_put_text(run, buffer, jinja_type_name(value));
        jinja_put_char(run, buffer, '>');
    }
}

void jinja_print(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value)
{
    if (value.type == JINJA_STRING)
        jinja_put(run, buffer, value.string->bytes, value.string->n_bytes);
    else if (value.type != JINJA_UNDEFINED)
        jinja_print_repr(run, buffer, value);
}

struct jinja_value jinja_to_string(struct jinja_run *run, struct jinja_value value)
{
    if (value.type == JINJA_STRING) return value;
    struct jinja_buffer buffer = {0};
    jinja_print(run, &buffer, value);
    return jinja_string_from(run, &buffer);
}

/* ---- JSON out */

static void print_json_string(struct jinja_run *run, struct jinja_buffer *buffer,
                              const struct jinja_string *string, bool ensure_ascii)
{
    jinja_put_char(run, buffer, '"');
    jinja_spend_bytes(run, 8 * string->n_bytes);
    const char *p = string->bytes, *const end = p + string->n_bytes;
    const char *pending = p; /* start of what is written as it is */
    while (p < end) {
        const unsigned char lead = (unsigned char)*p;
        if (lead >= 0x20 && lead != '"' && lead != '\\' && (lead < 0x7F || !ensure_ascii)) {
            p++;
            continue;
        }
        jinja_put(run, buffer, pending, (size_t)(p - pending));
        const uint32_t c = jinja_utf8_get(&p);
        pending = p;
        const char *const found = c < 0x80 ? strchr("\"\"\\\\\nn\rr\tt\bb\ff", (int)c) : NULL;
        char escape[16];
        if (c && found)
            snprintf(escape, sizeof(escape), "\\%c", found[1]);
        else if (c < 0x10000)
            snprintf(escape, sizeof(escape), "\\u%04x", c);
        else
            snprintf(escape, sizeof(escape), "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                     0xDC00 + ((c - 0x10000) & 0x3FF));
        jinja_put_text(run, buffer, escape);
    }
    jinja_put(run, buffer, pending, (size_t)(end - pending));
    jinja_put_char(run, buffer, '"');
}

static void print_json_number(struct jinja_run *run, struct jinja_buffer *buffer,
                              struct jinja_value value)
{
    char text[32];
    if (value.type == JINJA_INT)
        snprintf(text, sizeof(text), "%lld", (long long)value.integer);
    else if (isnan(value.real) || isinf(value.real))
        strcpy(text, isnan(value.real) ? "NaN" : value.real < 0 ? "-Infinity" : "Infinity");
    else
        jinja_float_text(value.real, text);
    jinja_put_text(run, buffer, text);
}

static void new_line(struct jinja_run *run, struct jinja_buffer *buffer,
                     const struct jinja_json_style *style, size_t depth)
{
    jinja_put_char(run, buffer, '\n');
    jinja_spend(run, depth);
    while (depth--)
        jinja_put(run, buffer, style->indent, style->n_indent);
}

static void separate(struct jinja_run *run, struct jinja_buffer *buffer,
                     const struct jinja_json_style *style, size_t depth, bool first)
{
    if (!first && style->item_separator)
        jinja_put(run, buffer, style->item_separator->bytes, style->item_separator->n_bytes);
    else if (!first)
        jinja_put_text(run, buffer, style->indent ? "," : ", ");
    if (style->indent) new_line(run, buffer, style, depth);
}

static void dump(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value,
                 const struct jinja_json_style *style, size_t depth);

static void dump_key(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value key,
                     const struct jinja_json_style *style)
{
    if (key.type == JINJA_STRING) {
        print_json_string(run, buffer, key.string, style->ensure_ascii);
        return;
    }
    if (key.type != JINJA_NONE && !jinja_is_number(key))
        jinja_fail(run, "keys must be str, int, float, bool or None, not %s", jinja_type_name(key));
    jinja_put_char(run, buffer, '"');
    dump(run, buffer, key, style, 0);
    jinja_put_char(run, buffer, '"');
}

/* A copy with the pairs in the order of their keys. */
static const struct jinja_dict *sort_dict(struct jinja_run *run, const struct jinja_dict *dict)
{
    struct jinja_value *keys = jinja_alloc(run, dict->n * sizeof(*keys));
    struct jinja_value *values = jinja_alloc(run, dict->n * sizeof(*values));
    const struct jinja_pair *pair;
    size_t n = 0;
    for (size_t i = 0; (pair = jinja_dict_next(dict, &i)); n++) {
        keys[n] = pair->key;
        values[n] = pair->value;
    }
    jinja_sort(run, values, keys, n, false);
    struct jinja_dict *sorted = jinja_dict_new(run).dict;
    for (size_t i = 0; i < n; i++)
        jinja_dict_set(run, sorted, keys[i], values[i]);
    return sorted;
}

static void dump_dict(struct jinja_run *run, struct jinja_buffer *buffer,
                      const struct jinja_dict *dict, const struct jinja_json_style *style,
                      size_t depth)
{
    if (!dict->n) {
        jinja_put_text(run, buffer, "{}");
        return;
    }
    if (style->sort_keys) dict = sort_dict(run, dict);
    jinja_put_char(run, buffer, '{');
    bool first = true;
    const struct jinja_pair *pair;
    for (size_t i = 0; (pair = jinja_dict_next(dict, &i)); first = false) {
        separate(run, buffer, style, depth + 1, first);
        dump_key(run, buffer, pair->key, style);
        if (style->key_separator)
            jinja_put(run, buffer, style->key_separator->bytes, style->key_separator->n_bytes);
        else
            jinja_put_text(run, buffer, ": ");
        dump(run, buffer, pair->value, style, depth + 1);
    }
    if (style->indent) new_line(run, buffer, style, depth);
    jinja_put_char(run, buffer, '}');
}

static void dump_list(struct jinja_run *run, struct jinja_buffer *buffer,
                      const struct jinja_list *list, const struct jinja_json_style *style,
                      size_t depth)
{
    if (!list->n) {
        jinja_put_text(run, buffer, "[]");
        return;
    }
    jinja_put_char(run, buffer, '[');
    for (size_t i = 0; i < list->n; i++) {
        separate(run, buffer, style, depth + 1, i == 0);
        dump(run, buffer, list->items[i], style, depth + 1);
    }
    if (style->indent) new_line(run, buffer, style, depth);
    jinja_put_char(run, buffer, ']');
}

static void dump(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value,
                 const struct jinja_json_style *style, size_t depth)
{
    jinja_check_stack(run);
    jinja_spend(run, 1);
    switch (value.type) {
    case JINJA_NONE:
        jinja_put_text(run, buffer, "null");
        break;
    case JINJA_BOOL:
        jinja_put_text(run, buffer, value.boolean ? "true" : "false");
        break;
    case JINJA_INT:
    case JINJA_FLOAT:
        print_json_number(run, buffer, value);
        break;
    case JINJA_STRING:
        print_json_string(run, buffer, value.string, style->ensure_ascii);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        dump_list(run, buffer, value.list, style, depth);
        break;
    case JINJA_DICT:
        dump_dict(run, buffer, value.dict, style, depth);
        break;
    default:
        jinja_fail(run, "object of type %s is not JSON serializable", jinja_type_name(value));
    }
}

void jinja_print_json(struct jinja_run *run, struct jinja_buffer *buffer, struct jinja_value value,
                      const struct jinja_json_style *style)
{
    dump(run, buffer, value, style, 0);
}

/* ---- JSON in */

static struct jinja_value checked_view(struct jinja_run *run, const char *bytes, size_t n_bytes)
{
    if (!jinja_utf8_check(bytes, n_bytes, false))
        jinja_fail(run, "the variables contain text that is not UTF-8");
    return jinja_string_view(run, bytes, n_bytes);
}

struct jinja_value jinja_from_json(struct jinja_run *run, struct json_object *json)
{
    jinja_check_stack(run);
    jinja_spend(run, 1);
    switch (json_object_get_type(json)) {
    case json_type_null:
        return jinja_none();
    case json_type_boolean:
        return jinja_bool(json_object_get_boolean(json));
    case json_type_double:
        return jinja_float(json_object_get_double(json));
    case json_type_int:
        /* json-c keeps what is above int64 as uint64 and shows only that way that it does. */
        if (json_object_get_uint64(json) > INT64_MAX && json_object_get_int64(json) > 0)
            jinja_fail(run, "the integer %s does not fit 64 bits", json_object_get_string(json));
        return jinja_int(json_object_get_int64(json));
    case json_type_string:
        return checked_view(run, json_object_get_string(json),
                            (size_t)json_object_get_string_len(json));
    case json_type_array: {
        const size_t n = json_object_array_length(json);
        struct jinja_value list = jinja_list_new(run, n);
        for (size_t i = 0; i < n; i++)
            jinja_list_append(run, list.list,
                              jinja_from_json(run, json_object_array_get_idx(json, i)));
        return list;
    }
    case json_type_object: {
        struct jinja_value dict = jinja_dict_new(run);
        json_object_object_foreach(json, key, member)
        {
            jinja_dict_set(run, dict.dict, checked_view(run, key, strlen(key)),
                           jinja_from_json(run, member));
        }
        return dict;
    }
    }
    return jinja_none();
}
