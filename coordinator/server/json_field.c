#include "coordinator/server/json_field.h"

#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/utf8.h"

enum { SHOWN_BYTES_MAX = 80 };

struct field_reader field_reader_body(struct json_object *body, struct api_error *error)
{
    return (struct field_reader){.object = body, .error = error};
}

/* The path of a field of the reader's object. */
static void join_path(char *out, size_t size, const struct field_reader *reader, const char *name)
{
    if (!name) name = "";
    const char *dot = *reader->path && *name && *name != '[' ? "." : "";
    if (snprintf(out, size, "%s%s%s", reader->path, dot, name) >= (int)size)
        memcpy(out + size - 4, "...", 4);
}

struct field_reader field_reader_inside(const struct field_reader *reader,
                                        struct json_object *object, const char *name,
                                        long long index)
{
    struct field_reader inside = {.object = object, .error = reader->error};
    join_path(inside.path, sizeof(inside.path), reader, name);
    const size_t n = strlen(inside.path);
    if (index >= 0) snprintf(inside.path + n, sizeof(inside.path) - n, "[%lld]", index);
    return inside;
}

bool field_is_one_of(const char *text, const char *const *names)
{
    while (*names && strcmp(text, *names))
        names++;
    return *names != NULL;
}

struct json_object *field_get(const struct field_reader *reader, const char *name)
{
    struct json_object *value = NULL;
    json_object_object_get_ex(reader->object, name, &value);
    return value;
}

bool field_fail(const struct field_reader *reader, enum api_code code, const char *name,
                const char *format, ...)
{
    char path[160], text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    join_path(path, sizeof(path), reader, name);
    return api_fail(reader->error, code, path, "%s %s", *path ? path : "the body", text);
}

/* A value as JSON, cut to 80 characters. */
static void show_value(char *out, size_t size, struct json_object *value)
{
    const char *text = json_object_to_json_string_ext(value, JSON_C_TO_STRING_NOSLASHESCAPE);
    const size_t n = text ? strlen(text) : 0;
    size_t at = 0;
    for (size_t i = 0, length; i < SHOWN_BYTES_MAX && at < n; i++, at += length) {
        length = utf8_decode(text + at, n - at, NULL);
        if (!length) break;
    }
    snprintf(out, size, "%.*s%s", (int)at, text ? text : "", at < n ? "..." : "");
}

bool field_refuse(const struct field_reader *reader, enum api_code code, const char *name,
                  const char *what, struct json_object *value)
{
    char shown[4 * SHOWN_BYTES_MAX + 4];
    show_value(shown, sizeof(shown), value);
    return field_fail(reader, code, name, "must be %s, got %s", what, shown);
}

bool field_bool(const struct field_reader *reader, const char *name, bool *out)
{
    struct json_object *value = field_get(reader, name);
    if (!value) return true;
    if (!json_object_is_type(value, json_type_boolean))
        return field_refuse(reader, API_INVALID_TYPE, name, "true or false", value);
    *out = json_object_get_boolean(value);
    return true;
}

bool json_to_int(struct json_object *value, int64_t *out)
{
    if (json_object_is_type(value, json_type_int)) {
        *out = json_object_get_int64(value); /* clamped from 2^63 on */
        return *out < INT64_MAX || json_object_get_uint64(value) == INT64_MAX;
    }
    if (!json_object_is_type(value, json_type_double)) return false;
    const double real = json_object_get_double(value);
    if (!(fabs(real) < 0x1p63) || real != floor(real)) return false;
    *out = (int64_t)real;
    return true;
}

static bool is_whole(struct json_object *value)
{
    if (json_object_is_type(value, json_type_int)) return true;
    if (!json_object_is_type(value, json_type_double)) return false;
    const double real = json_object_get_double(value);
    return real == floor(real);
}

bool field_int(const struct field_reader *reader, const char *name, int64_t min, int64_t max,
               int64_t *out)
{
    struct json_object *value = field_get(reader, name);
    int64_t whole;
    char what[80];
    if (!value) return true;
    if (!json_to_int(value, &whole)) {
        const bool whole_number = is_whole(value);
        return field_refuse(reader, whole_number ? API_INVALID_VALUE : API_INVALID_TYPE, name,
                            whole_number ? "an integer of 64 bits" : "an integer", value);
    }
    if (whole < min || whole > max) {
        if (max == INT64_MAX || max == INT32_MAX)
            snprintf(what, sizeof(what), "at %s %lld", whole < min ? "least" : "most",
                     (long long)(whole < min ? min : max));
        else
            snprintf(what, sizeof(what), "between %lld and %lld", (long long)min, (long long)max);
        return field_refuse(reader, API_INVALID_VALUE, name, what, value);
    }
    *out = whole;
    return true;
}

bool field_real(const struct field_reader *reader, const char *name, double min, double max,
                double *out)
{
    struct json_object *value = field_get(reader, name);
    char what[80];
    if (!value) return true;
    if (!json_object_is_type(value, json_type_double) && !json_object_is_type(value, json_type_int))
        return field_refuse(reader, API_INVALID_TYPE, name, "a number", value);
    const double real = json_object_get_double(value);
    if (!(real >= min && real <= max)) {
        snprintf(what, sizeof(what), "between %g and %g", min, max);
        return field_refuse(reader, API_INVALID_VALUE, name, what, value);
    }
    *out = real;
    return true;
}

bool field_string(const struct field_reader *reader, const char *name, const char **out, size_t *n)
{
    struct json_object *value = field_get(reader, name);
    if (!value) return true;
    if (!json_object_is_type(value, json_type_string))
        return field_refuse(reader, API_INVALID_TYPE, name, "a string", value);
    const size_t n_text = (size_t)json_object_get_string_len(value);
    if (!n && memchr(json_object_get_string(value), 0, n_text))
        return field_refuse(reader, API_INVALID_VALUE, name, "a string without U+0000", value);
    *out = json_object_get_string(value);
    if (n) *n = n_text;
    return true;
}

bool field_need_string(const struct field_reader *reader, const char *name,
                       struct json_object **out)
{
    *out = field_get(reader, name);
    if (!*out) return field_fail(reader, API_MISSING_FIELD, name, "is required");
    return json_object_is_type(*out, json_type_string) ||
           field_refuse(reader, API_INVALID_TYPE, name, "a string", *out);
}

bool field_object(const struct field_reader *reader, const char *name, struct json_object **out)
{
    struct json_object *value = field_get(reader, name);
    if (!value) return true;
    if (!json_object_is_type(value, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, name, "an object", value);
    *out = value;
    return true;
}

bool field_array(const struct field_reader *reader, const char *name, size_t n_max,
                 struct json_object **out)
{
    struct json_object *value = field_get(reader, name);
    if (!value) return true;
    if (!json_object_is_type(value, json_type_array))
        return field_refuse(reader, API_INVALID_TYPE, name, "an array", value);
    if (json_object_array_length(value) > n_max)
        return field_fail(reader, API_INVALID_VALUE, name,
                          "must have at most %zu elements, got %zu", n_max,
                          json_object_array_length(value));
    *out = value;
    return true;
}

bool field_ints(const struct field_reader *reader, const char *name, int64_t min, int64_t max,
                size_t n_max, int32_t **out, size_t *n)
{
    struct json_object *array = NULL;
    char element[64], what[80];
    if (!field_array(reader, name, n_max, &array)) return false;
    if (!array) return true;
    const size_t n_element = json_object_array_length(array);
    int32_t *list = malloc((n_element + 1) * sizeof(*list));
    if (!list) return field_fail(reader, API_OUT_OF_MEMORY, name, "does not fit in memory");
    for (size_t i = 0; i < n_element; i++) {
        struct json_object *value = json_object_array_get_idx(array, i);
        int64_t whole = 0;
        const bool is_int = json_to_int(value, &whole);
        if (is_int && whole >= min && whole <= max) {
            list[i] = (int32_t)whole;
            continue;
        }
        free(list);
        snprintf(element, sizeof(element), "%s[%zu]", name, i);
        snprintf(what, sizeof(what), "an integer between %lld and %lld", (long long)min,
                 (long long)max);
        return field_refuse(reader, is_int ? API_INVALID_VALUE : API_INVALID_TYPE, element, what,
                            value);
    }
    *out = list;
    *n = n_element;
    return true;
}
