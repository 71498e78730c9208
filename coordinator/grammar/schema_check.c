/* One pass over a schema before it is compiled, so that nothing in it is ever ignored silently. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/grammar/grow.h"
#include "coordinator/grammar/number_pattern.h"
#include "coordinator/grammar/schema.h"
#include "coordinator/grammar/string_format.h"

enum { N_DEPTH_MAX = 200, N_POINTER_MAX = 800, N_PARTS_MAX = 1 << 20 };

enum keyword_kind {
    KIND_ANNOTATION,
    KIND_VALUE, /* whatever */
    KIND_VALUES,
    KIND_TYPE,
    KIND_BOOLEAN,
    KIND_STRING,
    KIND_STRINGS,
    KIND_COUNT,
    KIND_NUMBER,
    KIND_POWER_OF_TEN,
    KIND_REFERENCE,
    KIND_SCHEMA,
    KIND_SCHEMAS,      /* an array of at least one */
    KIND_NAMED_SCHEMAS /* an object of them */
};

static const struct keyword {
    const char *name;
    enum keyword_kind kind;
    unsigned types; /* that it speaks of */
} keywords[] = {
    {"type", KIND_TYPE, 0},
    {"enum", KIND_VALUES, 0},
    {"const", KIND_VALUE, 0},
    {"properties", KIND_NAMED_SCHEMAS, SCHEMA_OBJECT},
    {"required", KIND_STRINGS, SCHEMA_OBJECT},
    {"additionalProperties", KIND_SCHEMA, SCHEMA_OBJECT},
    {"items", KIND_SCHEMA, SCHEMA_ARRAY},
    {"prefixItems", KIND_SCHEMAS, SCHEMA_ARRAY},
    {"minItems", KIND_COUNT, SCHEMA_ARRAY},
    {"maxItems", KIND_COUNT, SCHEMA_ARRAY},
    {"minLength", KIND_COUNT, SCHEMA_STRING},
    {"maxLength", KIND_COUNT, SCHEMA_STRING},
    {"pattern", KIND_STRING, SCHEMA_STRING},
    {"format", KIND_STRING, SCHEMA_STRING},
    {"minimum", KIND_NUMBER, SCHEMA_NUMBER},
    {"maximum", KIND_NUMBER, SCHEMA_NUMBER},
    {"exclusiveMinimum", KIND_NUMBER, SCHEMA_NUMBER},
    {"exclusiveMaximum", KIND_NUMBER, SCHEMA_NUMBER},
    {"multipleOf", KIND_POWER_OF_TEN, SCHEMA_NUMBER},
    {"anyOf", KIND_SCHEMAS, 0},
    {"oneOf", KIND_SCHEMAS, 0},
    {"allOf", KIND_SCHEMAS, 0},
    {"$ref", KIND_REFERENCE, 0},
    {"$defs", KIND_NAMED_SCHEMAS, 0},
    {"definitions", KIND_NAMED_SCHEMAS, 0},
    {"nullable", KIND_BOOLEAN, 0},
    {"title", KIND_ANNOTATION, 0},
    {"description", KIND_ANNOTATION, 0},
    {"default", KIND_ANNOTATION, 0},
    {"examples", KIND_ANNOTATION, 0},
    {"$schema", KIND_ANNOTATION, 0},
    {"$id", KIND_ANNOTATION, 0},
    {"$comment", KIND_ANNOTATION, 0},
    {"deprecated", KIND_ANNOTATION, 0},
    {"readOnly", KIND_ANNOTATION, 0},
    {"writeOnly", KIND_ANNOTATION, 0},
};

static const struct {
    const char *name;
    unsigned bit;
} types[] = {
    {"null", SCHEMA_NULL},     {"boolean", SCHEMA_BOOLEAN}, {"integer", SCHEMA_INTEGER},
    {"number", SCHEMA_NUMBER}, {"string", SCHEMA_STRING},   {"array", SCHEMA_ARRAY},
    {"object", SCHEMA_OBJECT},
};

/* ---- reading a checked schema --------------------------------------------------------------- */

struct json_object *schema_get(struct json_object *schema, const char *keyword)
{
    struct json_object *value = NULL;
    if (json_object_is_type(schema, json_type_object))
        json_object_object_get_ex(schema, keyword, &value);
    return value;
}

bool schema_has(struct json_object *schema, const char *keyword)
{
    return json_object_is_type(schema, json_type_object) &&
           json_object_object_get_ex(schema, keyword, NULL);
}

static unsigned type_bit(struct json_object *name)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (json_object_is_type(name, json_type_string) &&
            !strcmp(json_object_get_string(name), types[i].name))
            return types[i].bit;
    return 0;
}

unsigned schema_types(struct json_object *schema)
{
    struct json_object *type = schema_get(schema, "type");
    if (!json_object_is_type(type, json_type_array)) return type_bit(type);
    unsigned bits = 0;
    for (size_t i = 0; i < json_object_array_length(type); i++)
        bits |= type_bit(json_object_array_get_idx(type, i));
    return bits;
}

unsigned schema_implied_types(struct json_object *schema)
{
    unsigned bits = 0;
    for (size_t i = 0; i < sizeof(keywords) / sizeof(keywords[0]); i++)
        if (keywords[i].types && schema_has(schema, keywords[i].name) &&
            (strcmp(keywords[i].name, "format") ||
             string_format_find(json_object_get_string(schema_get(schema, "format")))))
            bits |= keywords[i].types;
    return bits;
}

/* ---- pointers ------------------------------------------------------------------------------- */

/* Appends "/name", escaped; cuts off what has no room. Returns the length. */
static size_t append_name(char *pointer, size_t n, size_t room, const char *name)
{
    if (n + 1 < room) pointer[n++] = '/';
    for (; *name && n + 2 < room; name++) {
        if (*name == '~' || *name == '/') {
            pointer[n++] = '~';
            pointer[n++] = *name == '~' ? '0' : '1';
        } else
            pointer[n++] = *name;
    }
    pointer[n] = 0;
    return n;
}

static bool find_part(struct json_object *at, const struct json_object *part, char *out, size_t n,
                      size_t room, unsigned depth)
{
    char number[24];
    if (at == part) return true;
    if (depth > N_DEPTH_MAX + 8) return false;
    if (json_object_is_type(at, json_type_object)) {
        json_object_object_foreach(at, name, value)
        {
            if (find_part(value, part, out, append_name(out, n, room, name), room, depth + 1))
                return true;
        }
    } else if (json_object_is_type(at, json_type_array))
        for (size_t i = 0; i < json_object_array_length(at); i++) {
            snprintf(number, sizeof(number), "%zu", i);
            if (find_part(json_object_array_get_idx(at, i), part, out,
                          append_name(out, n, room, number), room, depth + 1))
                return true;
        }
    out[n] = 0;
    return false;
}

void schema_write_pointer(struct json_object *root, const struct json_object *part, char *out,
                          size_t n)
{
    snprintf(out, n, "#");
    find_part(root, part, out, 1, n, 0);
}

/* "~1" and "%2F" of a part of a reference become what they stand for. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        unsigned code;
        if (*from == '%' && sscanf(from + 1, "%2x", &code) == 1 && from[1] && from[2]) {
            *to++ = (char)code;
            from += 2;
        } else
            *to++ = *from;
    }
    *to = 0;
    to = text;
    for (const char *from = text; *from; from++) {
        if (*from == '~' && (from[1] == '0' || from[1] == '1'))
            *to++ = *++from == '0' ? '~' : '/';
        else
            *to++ = *from;
    }
    *to = 0;
}

struct json_object *schema_resolve(struct json_object *root, const char *reference)
{
    char name[512];
    if (*reference++ != '#') return NULL;
    while (root && *reference) {
        if (*reference++ != '/') return NULL;
        const size_t n = strcspn(reference, "/");
        if (n >= sizeof(name)) return NULL;
        memcpy(name, reference, n);
        name[n] = 0;
        reference += n;
        unescape(name);
        if (json_object_is_type(root, json_type_array)) {
            char *end;
            const unsigned long i = strtoul(name, &end, 10);
            root = *name && !*end && i < json_object_array_length(root)
                       ? json_object_array_get_idx(root, i)
                       : NULL;
        } else
            root = schema_get(root, name);
    }
    return root;
}

/* ---- the check ------------------------------------------------------------------------------ */

/* Schemas, in the order in which they were met; found again by their address. */
struct part {
    struct json_object *schema;
    enum { PART_NEW, PART_OPEN, PART_DONE } state; /* of the search for cycles */
};

struct check {
    struct json_object *root;
    struct part *parts;
    uint32_t *table; /* [n_slot] parts by address, counted from 1 */
    size_t n_part, part_room, n_slot;
    char pointer[N_POINTER_MAX];
    size_t n_pointer;
    struct lm_error *err;
    enum lm_status status;
};

static void fail(struct check *check, enum lm_status status, const char *what)
{
    if (check->status == LM_OK)
        check->status = lm_fail(check->err, status, "%s: %s", check->pointer, what);
}

static void malformed(struct check *check, const char *what)
{
    fail(check, LM_E_FORMAT, what);
}

static void check_schema(struct check *check, struct json_object *schema, unsigned depth);

/* A step down the document and back. */
static size_t enter(struct check *check, const char *name)
{
    const size_t before = check->n_pointer;
    check->n_pointer = append_name(check->pointer, before, N_POINTER_MAX, name);
    return before;
}

static void leave(struct check *check, size_t before)
{
    check->n_pointer = before;
    check->pointer[before] = 0;
}

static void check_named(struct check *check, const char *name, struct json_object *schema,
                        unsigned depth)
{
    const size_t before = enter(check, name);
    check_schema(check, schema, depth);
    leave(check, before);
}

static void check_schemas(struct check *check, struct json_object *value, unsigned depth)
{
    char number[24];
    if (!json_object_is_type(value, json_type_array) || !json_object_array_length(value)) {
        malformed(check, "must be an array with at least one schema");
        return;
    }
    for (size_t i = 0; i < json_object_array_length(value); i++) {
        snprintf(number, sizeof(number), "%zu", i);
        check_named(check, number, json_object_array_get_idx(value, i), depth);
    }
}

static void check_named_schemas(struct check *check, struct json_object *value, unsigned depth)
{
    if (!json_object_is_type(value, json_type_object)) {
        malformed(check, "must be an object of schemas");
        return;
    }
    json_object_object_foreach(value, name, schema)
    {
        check_named(check, name, schema, depth);
    }
}

static void check_types(struct check *check, struct json_object *value)
{
    static const char what[] = "must be one of null, boolean, integer, number, string, array, "
                               "object, or a list of them";
    const bool is_list = json_object_is_type(value, json_type_array);
    const size_t n = is_list ? json_object_array_length(value) : 1;
    if (!n) malformed(check, what);
    for (size_t i = 0; i < n; i++)
        if (!type_bit(is_list ? json_object_array_get_idx(value, i) : value))
            malformed(check, what);
}

static void check_strings(struct check *check, struct json_object *value)
{
    bool good = json_object_is_type(value, json_type_array);
    for (size_t i = 0; good && i < json_object_array_length(value); i++)
        good = json_object_is_type(json_object_array_get_idx(value, i), json_type_string);
    if (!good) malformed(check, "must be an array of strings");
}

static bool is_number(struct json_object *value)
{
    return json_object_is_type(value, json_type_int) ||
           (json_object_is_type(value, json_type_double) &&
            isfinite(json_object_get_double(value)));
}

static void check_count(struct check *check, struct json_object *value)
{
    const double count = is_number(value) ? json_object_get_double(value) : -1;
    if (count < 0 || count != floor(count)) malformed(check, "must be a whole number from 0");
}

static void check_number(struct check *check, struct json_object *value)
{
    struct decimal decimal;
    if (!is_number(value))
        malformed(check, "must be a number");
    else if (!decimal_read(&decimal, json_object_to_json_string(value)))
        fail(check, LM_E_UNSUPPORTED, "has too many digits");
}

static void check_power(struct check *check, struct json_object *value)
{
    struct decimal decimal;
    int exponent;
    check_number(check, value);
    if (check->status != LM_OK) return;
    decimal_read(&decimal, json_object_to_json_string(value));
    if (json_object_get_double(value) <= 0)
        malformed(check, "must be above 0");
    else if (!decimal_power_of_ten(&decimal, &exponent))
        fail(check, LM_E_UNSUPPORTED, "only powers of ten are supported");
}

static void check_reference(struct check *check, struct json_object *value)
{
    if (!json_object_is_type(value, json_type_string)) {
        malformed(check, "must be a string");
        return;
    }
    const char *reference = json_object_get_string(value);
    if (strcmp(reference, "#") && strncmp(reference, "#/$defs/", 8) &&
        strncmp(reference, "#/definitions/", 14))
        fail(check, LM_E_UNSUPPORTED,
             "only references to #, #/$defs/... and #/definitions/... are supported");
    else if (!schema_resolve(check->root, reference))
        malformed(check, "refers to nothing");
}

static void check_keyword(struct check *check, const struct keyword *keyword,
                          struct json_object *value, unsigned depth)
{
    switch (keyword->kind) {
    case KIND_ANNOTATION:
    case KIND_VALUE:
        break;
    case KIND_VALUES:
        if (!json_object_is_type(value, json_type_array) || !json_object_array_length(value))
            malformed(check, "must be an array with at least one value");
        break;
    case KIND_TYPE:
        check_types(check, value);
        break;
    case KIND_BOOLEAN:
        if (!json_object_is_type(value, json_type_boolean)) malformed(check, "must be a boolean");
        break;
    case KIND_STRING:
        if (!json_object_is_type(value, json_type_string)) malformed(check, "must be a string");
        break;
    case KIND_STRINGS:
        check_strings(check, value);
        break;
    case KIND_COUNT:
        check_count(check, value);
        break;
    case KIND_NUMBER:
        check_number(check, value);
        break;
    case KIND_POWER_OF_TEN:
        check_power(check, value);
        break;
    case KIND_REFERENCE:
        check_reference(check, value);
        break;
    case KIND_SCHEMA:
        check_schema(check, value, depth);
        break;
    case KIND_SCHEMAS:
        check_schemas(check, value, depth);
        break;
    case KIND_NAMED_SCHEMAS:
        check_named_schemas(check, value, depth);
        break;
    }
}

/* ---- schemas by address --------------------------------------------------------------------- */

static uint32_t *find_slot(const struct check *check, const struct json_object *schema)
{
    size_t slot = (size_t)((uintptr_t)schema * UINT64_C(0x9e3779b97f4a7c15) >> 20);
    for (slot &= check->n_slot - 1; check->table[slot]; slot = (slot + 1) & (check->n_slot - 1))
        if (check->parts[check->table[slot] - 1].schema == schema) break;
    return &check->table[slot];
}

static bool rebuild(struct check *check, size_t n_slot)
{
    uint32_t *table = calloc(n_slot, sizeof(*table));
    if (!table) return false;
    free(check->table);
    check->table = table;
    check->n_slot = n_slot;
    for (size_t i = 0; i < check->n_part; i++)
        *find_slot(check, check->parts[i].schema) = (uint32_t)i + 1;
    return true;
}

static void add_part(struct check *check, struct json_object *schema)
{
    if (check->n_part >= N_PARTS_MAX)
        fail(check, LM_E_LIMIT, "the schema has too many parts");
    else if ((2 * check->n_part >= check->n_slot && !rebuild(check, 2 * check->n_slot)) ||
             !grow_to(&check->parts, &check->part_room, check->n_part + 1, sizeof(*check->parts)))
        fail(check, LM_E_NO_MEM, "no memory for a schema");
    else {
        check->parts[check->n_part++] = (struct part){schema, PART_NEW};
        *find_slot(check, schema) = (uint32_t)check->n_part;
    }
}

static void check_schema(struct check *check, struct json_object *schema, unsigned depth)
{
    if (check->status != LM_OK) return;
    if (depth > N_DEPTH_MAX) {
        fail(check, LM_E_LIMIT, "nested more than 200 deep");
        return;
    }
    add_part(check, schema);
    if (json_object_is_type(schema, json_type_boolean)) return;
    if (!json_object_is_type(schema, json_type_object)) {
        malformed(check, "is no schema: neither an object nor a boolean");
        return;
    }
    json_object_object_foreach(schema, name, value)
    {
        const size_t before = enter(check, name);
        size_t i = 0;
        while (i < sizeof(keywords) / sizeof(keywords[0]) && strcmp(keywords[i].name, name))
            i++;
        if (i == sizeof(keywords) / sizeof(keywords[0]))
            fail(check, LM_E_UNSUPPORTED, "this keyword is not supported");
        else
            check_keyword(check, &keywords[i], value, depth + 1);
        leave(check, before);
    }
}

/* ---- cycles --------------------------------------------------------------------------------- */

/* The i-th schema that the same value must, or may have to, satisfy as well. */
static struct json_object *next_for_value(const struct check *check, struct json_object *schema,
                                          size_t i)
{
    static const char *const lists[] = {"allOf", "anyOf", "oneOf"};
    struct json_object *reference = schema_get(schema, "$ref");
    if (reference && !i--) return schema_resolve(check->root, json_object_get_string(reference));
    for (size_t l = 0; l < 3; l++) {
        struct json_object *list = schema_get(schema, lists[l]);
        const size_t n = list ? json_object_array_length(list) : 0;
        if (i < n) return json_object_array_get_idx(list, i);
        i -= n;
    }
    return NULL;
}

struct step {
    uint32_t part;
    size_t next;
};

static void find_cycle(struct check *check, uint32_t from)
{
    struct step *path = NULL;
    size_t n = 0, room = 0;
    uint32_t part = from;
    while (check->status == LM_OK) {
        if (part != UINT32_MAX) { /* go down */
            if (!grow_to(&path, &room, n + 1, sizeof(*path))) {
                fail(check, LM_E_NO_MEM, "no memory for a schema");
                break;
            }
            path[n++] = (struct step){part, 0};
            check->parts[part].state = PART_OPEN;
        }
        struct step *top = &path[n - 1];
        struct json_object *schema = check->parts[top->part].schema;
        struct json_object *next = next_for_value(check, schema, top->next++);
        part = UINT32_MAX;
        if (!next) {
            check->parts[top->part].state = PART_DONE;
            if (!--n) break;
            continue;
        }
        const uint32_t found = *find_slot(check, next);
        const bool is_new = found && check->parts[found - 1].state == PART_NEW;
        if (!found || check->parts[found - 1].state == PART_OPEN) {
            schema_write_pointer(check->root, schema, check->pointer, N_POINTER_MAX);
            malformed(check, found ? "refers back to itself without a value in between"
                                   : "refers to something that is no schema");
        } else if (is_new)
            part = found - 1;
    }
    free(path);
}

enum lm_status schema_check(struct json_object *schema, struct lm_error *err)
{
    struct check check = {.root = schema, .pointer = "#", .n_pointer = 1, .err = err};
    if (!rebuild(&check, 256)) fail(&check, LM_E_NO_MEM, "no memory for a schema");
    check_schema(&check, schema, 0);
    for (size_t i = 0; i < check.n_part && check.status == LM_OK; i++)
        if (check.parts[i].state == PART_NEW) find_cycle(&check, (uint32_t)i);
    free(check.table);
    free(check.parts);
    return check.status;
}
