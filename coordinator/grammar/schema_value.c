/* Whether a value satisfies a schema: decides which constants of an enum remain when other keywords
 * stand beside it. */
#include <math.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/number_pattern.h"
#include "coordinator/grammar/regex.h"
#include "coordinator/grammar/schema.h"
#include "coordinator/grammar/string_format.h"

enum { N_DEPTH_MAX = 1000, N_SCHEMA_COST = 4, N_NUMBER_COST = 16, N_PATTERN_COST = 4096 };

static bool is_number(struct json_object *value)
{
    return json_object_is_type(value, json_type_int) ||
           json_object_is_type(value, json_type_double);
}

static unsigned value_type(struct json_object *value)
{
    switch (json_object_get_type(value)) {
    case json_type_null:
        return SCHEMA_NULL;
    case json_type_boolean:
        return SCHEMA_BOOLEAN;
    case json_type_int:
        return SCHEMA_INTEGER | SCHEMA_NUMBER;
    case json_type_double: {
        const double number = json_object_get_double(value);
        return number == floor(number) ? SCHEMA_INTEGER | SCHEMA_NUMBER : SCHEMA_NUMBER;
    }
    case json_type_string:
        return SCHEMA_STRING;
    case json_type_array:
        return SCHEMA_ARRAY;
    case json_type_object:
        return SCHEMA_OBJECT;
    }
    return 0;
}

static void spend(struct schema_fitting *fitting, uint64_t n)
{
    fitting->n_left -= n < fitting->n_left ? n : fitting->n_left;
}

/* What it takes at most to compare something with a value. */
static void spend_on(struct schema_fitting *fitting, struct json_object *value)
{
    spend(fitting, 1);
    if (is_number(value)) {
        spend(fitting, N_NUMBER_COST);
    } else if (json_object_is_type(value, json_type_string)) {
        spend(fitting, (uint64_t)json_object_get_string_len(value) / 16);
    } else if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(value) && fitting->n_left; i++)
            spend_on(fitting, json_object_array_get_idx(value, i));
    } else if (json_object_is_type(value, json_type_object)) {
        json_object_object_foreach(value, name, member)
        {
            (void)name;
            if (fitting->n_left) spend_on(fitting, member);
        }
    }
}

static bool equal(struct schema_fitting *fitting, struct json_object *a, struct json_object *b)
{
    struct decimal x, y;
    spend_on(fitting, b);
    if (!fitting->n_left) return false;
    if (!is_number(a) || !is_number(b)) return json_object_equal(a, b);
    return decimal_read(&x, json_object_to_json_string(a)) &&
           decimal_read(&y, json_object_to_json_string(b)) && !decimal_compare(&x, &y);
}

/* What a pattern costs grows with the square of its states; one that is too large costs all. */
static bool matches(struct schema_fitting *fitting, const char *pattern, size_t n, bool search,
                    const char *text, size_t n_text)
{
    struct char_automaton *automaton;
    if (!fitting->n_left) return false;
    if (regex_compile(&automaton, pattern, n, search, NULL) != LM_OK) {
        fitting->n_left = 0;
        return false;
    }
    spend(fitting, N_PATTERN_COST + n + 4 * (uint64_t)automaton->n_state * automaton->n_state);
    const bool accepted = char_automaton_accepts(automaton, text, n_text);
    char_automaton_destroy(automaton);
    return accepted;
}

/* Which of less, equal, greater a bound allows. */
static bool bound_fits(struct json_object *schema, const char *keyword,
                       const struct decimal *number, bool above, bool equal_too)
{
    struct json_object *value = schema_get(schema, keyword);
    struct decimal bound;
    if (!value || !decimal_read(&bound, json_object_to_json_string(value))) return true;
    const int order = decimal_compare(number, &bound);
    return order ? (order > 0) == above : equal_too;
}

static bool number_fits(struct json_object *schema, struct json_object *value)
{
    struct decimal number, factor;
    int exponent;
    if (!decimal_read(&number, json_object_to_json_string(value)) ||
        !bound_fits(schema, "minimum", &number, true, true) ||
        !bound_fits(schema, "maximum", &number, false, true) ||
        !bound_fits(schema, "exclusiveMinimum", &number, true, false) ||
        !bound_fits(schema, "exclusiveMaximum", &number, false, false))
        return false;
    struct json_object *multiple = schema_get(schema, "multipleOf");
    if (!multiple || !decimal_read(&factor, json_object_to_json_string(multiple)) ||
        !decimal_power_of_ten(&factor, &exponent))
        return true;
    if (exponent < 0) return strlen(number.part) <= (size_t)-exponent;
    const size_t n = strlen(number.whole), n_zero = (size_t)exponent;
    if (*number.part) return false;
    return !strcmp(number.whole, "0") ||
           (n > n_zero && strspn(number.whole + n - n_zero, "0") == n_zero);
}

static bool count_fits(struct json_object *schema, const char *least, const char *most, size_t n)
{
    struct json_object *low = schema_get(schema, least), *high = schema_get(schema, most);
    return (!low || (double)n >= json_object_get_double(low)) &&
           (!high || (double)n <= json_object_get_double(high));
}

static bool string_fits(struct schema_fitting *fitting, struct json_object *schema,
                        struct json_object *value)
{
    const char *text = json_object_get_string(value);
    const size_t n = (size_t)json_object_get_string_len(value);
    size_t n_code = 0;
    for (size_t i = 0; i < n; i++)
        n_code += ((unsigned char)text[i] & 0xc0) != 0x80;
    if (!count_fits(schema, "minLength", "maxLength", n_code)) return false;
    struct json_object *pattern = schema_get(schema, "pattern");
    if (pattern && !matches(fitting, json_object_get_string(pattern),
                            (size_t)json_object_get_string_len(pattern), true, text, n))
        return false;
    struct json_object *name = schema_get(schema, "format");
    const struct string_format *format =
        name ? string_format_find(json_object_get_string(name)) : NULL;
    return !format || (n_code <= format->n_char_max &&
                       matches(fitting, format->pattern, strlen(format->pattern), false, text, n));
}

static bool array_fits(struct schema_fitting *fitting, struct json_object *schema,
                       struct json_object *value)
{
    struct json_object *first = schema_get(schema, "prefixItems");
    const size_t n = json_object_array_length(value);
    const size_t n_first = first ? json_object_array_length(first) : 0;
    if (!count_fits(schema, "minItems", "maxItems", n)) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_object *item =
            i < n_first ? json_object_array_get_idx(first, i) : schema_get(schema, "items");
        if (item && !schema_fits(fitting, item, json_object_array_get_idx(value, i))) return false;
    }
    return true;
}

static bool object_fits(struct schema_fitting *fitting, struct json_object *schema,
                        struct json_object *value)
{
    struct json_object *required = schema_get(schema, "required");
    struct json_object *properties = schema_get(schema, "properties");
    struct json_object *others = schema_get(schema, "additionalProperties");
    if (required) spend(fitting, json_object_array_length(required));
    for (size_t i = 0; required && i < json_object_array_length(required); i++)
        if (!schema_has(value, json_object_get_string(json_object_array_get_idx(required, i))))
            return false;
    json_object_object_foreach(value, name, member)
    {
        struct json_object *property = properties ? schema_get(properties, name) : NULL;
        if (!property) property = others;
        if (property && !schema_fits(fitting, property, member)) return false;
    }
    return true;
}

static bool constants_fit(struct schema_fitting *fitting, struct json_object *schema,
                          struct json_object *value)
{
    struct json_object *values = schema_get(schema, "enum");
    bool found = !values || (fitting->owner == schema && fitting->value == value);
    for (size_t i = 0; !found && fitting->n_left && i < json_object_array_length(values); i++)
        found = equal(fitting, json_object_array_get_idx(values, i), value);
    return found &&
           (!schema_has(schema, "const") || equal(fitting, schema_get(schema, "const"), value));
}

static bool combinations_fit(struct schema_fitting *fitting, struct json_object *schema,
                             struct json_object *value)
{
    static const char *const choices[] = {"anyOf", "oneOf"};
    struct json_object *reference = schema_get(schema, "$ref");
    struct json_object *all = schema_get(schema, "allOf");
    if (reference &&
        !schema_fits(fitting, schema_resolve(fitting->root, json_object_get_string(reference)),
                     value))
        return false;
    for (size_t i = 0; all && i < json_object_array_length(all); i++)
        if (!schema_fits(fitting, json_object_array_get_idx(all, i), value)) return false;
    for (size_t c = 0; c < 2; c++) {
        struct json_object *choice = schema_get(schema, choices[c]);
        bool found = !choice;
        for (size_t i = 0; choice && !found && i < json_object_array_length(choice); i++)
            found = schema_fits(fitting, json_object_array_get_idx(choice, i), value);
        if (!found) return false;
    }
    return true;
}

static bool fits_within(struct schema_fitting *fitting, struct json_object *schema,
                        struct json_object *value)
{
    if (json_object_is_type(schema, json_type_boolean)) return json_object_get_boolean(schema);
    const unsigned type = value_type(value), types = schema_types(schema);
    struct json_object *nullable = schema_get(schema, "nullable");
    if (type == SCHEMA_NULL && nullable && json_object_get_boolean(nullable)) return true;
    if (types && !(types & type)) return false;
    if (!constants_fit(fitting, schema, value) || !combinations_fit(fitting, schema, value))
        return false;
    if (type & SCHEMA_NUMBER) return number_fits(schema, value);
    if (type == SCHEMA_STRING) return string_fits(fitting, schema, value);
    if (type == SCHEMA_ARRAY) return array_fits(fitting, schema, value);
    return type != SCHEMA_OBJECT || object_fits(fitting, schema, value);
}

bool schema_fits(struct schema_fitting *fitting, struct json_object *schema,
                 struct json_object *value)
{
    spend(fitting, N_SCHEMA_COST);
    if (fitting->depth == N_DEPTH_MAX) fitting->n_left = 0; /* a long chain of references */
    if (!fitting->n_left) return false;
    fitting->depth++;
    const bool fits = fits_within(fitting, schema, value);
    fitting->depth--;
    return fits;
}
