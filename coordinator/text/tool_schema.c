#include "coordinator/text/tool_schema.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/json_compactor.h"
#include "proto/base/byte_buffer.h"

enum { N_VISIT_MAX = 1000 }; /* schemas looked at for one parameter: references may go in circles */

static struct json_object *member(struct json_object *object, const char *name)
{
    return json_object_is_type(object, json_type_object) ? json_object_object_get(object, name)
                                                         : NULL;
}

struct json_object *tool_schema_find(struct json_object *tools, const char *name, size_t n)
{
    const size_t n_tool =
        json_object_is_type(tools, json_type_array) ? json_object_array_length(tools) : 0;
    for (size_t i = 0; i < n_tool; i++) {
        struct json_object *function = member(json_object_array_get_idx(tools, i), "function");
        struct json_object *own = member(function, "name");
        if (json_object_is_type(own, json_type_string) &&
            (size_t)json_object_get_string_len(own) == n &&
            !memcmp(json_object_get_string(own), name, n))
            return function;
    }
    return NULL;
}

/* ---- the types that a schema allows */

static unsigned type_from_name(const char *name)
{
    static const char *const names[] = {"string", "number", "integer", "boolean",
                                        "null",   "object", "array"};
    for (unsigned i = 0; name && i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i])) return 1u << i;
    return 0;
}

static unsigned type_of_value(struct json_object *value)
{
    switch (json_object_get_type(value)) {
    case json_type_null:
        return TOOL_TYPE_NULL;
    case json_type_boolean:
        return TOOL_TYPE_BOOLEAN;
    case json_type_double:
        return TOOL_TYPE_NUMBER;
    case json_type_int:
        return TOOL_TYPE_INTEGER;
    case json_type_object:
        return TOOL_TYPE_OBJECT;
    case json_type_array:
        return TOOL_TYPE_ARRAY;
    case json_type_string:
        return TOOL_TYPE_STRING;
    }
    return 0;
}

/* "#", or "#/a/b" within root. */
static struct json_object *resolve(struct json_object *root, const char *ref)
{
    struct json_object *found = NULL;
    if (!ref || ref[0] != '#') return NULL;
    return json_pointer_get(root, ref + 1, &found) ? NULL : found;
}

static unsigned types_of(struct json_object *root, struct json_object *schema, int *n_visit);

static unsigned types_of_list(struct json_object *root, struct json_object *list, int *n_visit)
{
    unsigned types = 0;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        types |= types_of(root, json_object_array_get_idx(list, i), n_visit);
    return types;
}

static unsigned types_of(struct json_object *root, struct json_object *schema, int *n_visit)
{
    static const char *const lists[] = {"anyOf", "oneOf", "allOf"};
    struct json_object *type = member(schema, "type"), *values = member(schema, "enum"), *constant;
    unsigned types = 0;
    if (!json_object_is_type(schema, json_type_object) || ++*n_visit > N_VISIT_MAX) return 0;
    if (json_object_is_type(type, json_type_string)) {
        types = type_from_name(json_object_get_string(type));
    } else if (json_object_is_type(type, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(type); i++)
            types |= type_from_name(json_object_get_string(json_object_array_get_idx(type, i)));
    } else if (json_object_is_type(values, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(values); i++)
            types |= type_of_value(json_object_array_get_idx(values, i));
    } else if (json_object_object_get_ex(schema, "const", &constant)) {
        types = type_of_value(constant);
    } else if (json_object_is_type(member(schema, "$ref"), json_type_string)) {
        types =
            types_of(root, resolve(root, json_object_get_string(member(schema, "$ref"))), n_visit);
    }
    for (size_t i = 0; !types && i < sizeof(lists) / sizeof(lists[0]); i++)
        if (json_object_is_type(member(schema, lists[i]), json_type_array))
            types = types_of_list(root, member(schema, lists[i]), n_visit);
    if (types && json_object_get_boolean(member(schema, "nullable"))) types |= TOOL_TYPE_NULL;
    return types;
}

bool tool_schema_declares(struct json_object *function, const char *parameter)
{
    struct json_object *properties = member(member(function, "parameters"), "properties");
    return json_object_is_type(properties, json_type_object) &&
           json_object_object_get_ex(properties, parameter, NULL);
}

unsigned tool_schema_types(struct json_object *function, const char *parameter)
{
    struct json_object *root = member(function, "parameters");
    int n_visit = 0;
    return types_of(root, member(member(root, "properties"), parameter), &n_visit);
}

/* ---- values */

static bool is_integer(const char *number)
{
    const double value = strtod(number, NULL);
    return !strpbrk(number, ".eE") || value == floor(value);
}

/* The type of compact JSON text, by its first byte. */
static unsigned type_of_json(const char *json)
{
    switch (json[0]) {
    case '{':
        return TOOL_TYPE_OBJECT;
    case '[':
        return TOOL_TYPE_ARRAY;
    case '"':
        return TOOL_TYPE_STRING;
    case 't':
    case 'f':
        return TOOL_TYPE_BOOLEAN;
    case 'n':
        return TOOL_TYPE_NULL;
    default:
        return TOOL_TYPE_NUMBER | (is_integer(json) ? TOOL_TYPE_INTEGER : 0);
    }
}

static const char *python_literal(unsigned types, const char *text, size_t n)
{
    while (n && memchr(" \t\r\n", text[n - 1], 4))
        n--;
    if (types & TOOL_TYPE_STRING) return NULL;
    if (types & TOOL_TYPE_BOOLEAN && n == 4 && !memcmp(text, "True", n)) return "true";
    if (types & TOOL_TYPE_BOOLEAN && n == 5 && !memcmp(text, "False", n)) return "false";
    if (types & TOOL_TYPE_NULL && n == 4 && !memcmp(text, "None", n)) return "null";
    return NULL;
}

void tool_schema_put_value(unsigned types, const char *text, size_t n, struct byte_buffer *out)
{
    const unsigned allowed = types ? types : ~(unsigned)TOOL_TYPE_STRING;
    const char *const literal = python_literal(types, text, n);
    struct byte_buffer json = {0};
    if (literal) {
        byte_buffer_put_text(out, literal);
    } else if (types != TOOL_TYPE_STRING && json_compact(text, n, &json) && !json.failed &&
               type_of_json(json.data) & allowed) {
        byte_buffer_put(out, json.data, json.n);
    } else {
        byte_buffer_put(out, "\"", 1);
        byte_buffer_put_json(out, text, n);
        byte_buffer_put(out, "\"", 1);
    }
    out->failed |= json.failed;
    byte_buffer_free(&json);
}
