/* A schema becomes expressions.
 *
 * What a value has to satisfy is a set of schemas: one at first, more where allOf, a reference or
 * two parents that speak of the same member add theirs. Each set that occurs becomes a rule, once,
 * so recursion in the schema is recursion in the grammar. A set with alternatives in it becomes a
 * choice: for each alternative the set with that added, and a mark that the choice has been made.
 * Without alternatives the set is read keyword by keyword. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/grammar/grow.h"
#include "coordinator/grammar/json_parts.h"
#include "coordinator/grammar/number_pattern.h"
#include "coordinator/grammar/regex.h"
#include "coordinator/grammar/schema.h"
#include "coordinator/grammar/string_format.h"
#include "proto/base/utf8.h"

enum {
    N_SET_MAX = 1 << 16,
    N_IN_SET_MAX = 1 << 13,
    N_MEMBER_MAX = 1 << 22,  /* of all sets together */
    N_FITTING_MAX = 1 << 24, /* work on constants */
    N_NESTED_MAX = 64,       /* parts of a chain before a rule keeps it from nesting deeper */
};

/* A schema's address, and in its low bits which of its choices have been made. */
typedef uintptr_t member;

#define MADE_ANY_OF ((member)1)
#define MADE_ONE_OF ((member)2)
#define MADE_NULLABLE ((member)4)
#define MADE_PARTS ((member)8) /* what allOf and $ref bring is in the set, or was */
#define MADE_ALL ((member)15)

struct set {
    member *members; /* sorted by address */
    size_t n, room;
};

struct job { /* a set and its rule */
    struct set set;
    grammar_rule rule;
};

struct written { /* patterns that have been made, by their hash */
    uint64_t hash[2];
    grammar_expr expr;
};

struct schema_compiler {
    struct grammar_builder *builder;
    struct json_object *root;
    struct json_object *null;      /* {"type": "null"} */
    struct schema_fitting fitting; /* of constants */
    struct job *jobs;
    uint32_t *table; /* [n_slot] jobs by their sets, counted from 1 */
    struct written *patterns;
    size_t n_job, job_room, n_slot, n_pattern, pattern_room, n_member;
    struct lm_error *err;
    enum lm_status status;
};

#define SEQUENCE(compiler, ...)                                                                    \
    grammar_build_sequence((compiler)->builder, (const grammar_expr[]){__VA_ARGS__},               \
                           sizeof((const grammar_expr[]){__VA_ARGS__}) / sizeof(grammar_expr))
#define CHOICE(compiler, ...)                                                                      \
    grammar_build_choice((compiler)->builder, (const grammar_expr[]){__VA_ARGS__},                 \
                         sizeof((const grammar_expr[]){__VA_ARGS__}) / sizeof(grammar_expr))

/* ---- errors --------------------------------------------------------------------------------- */

static void fail_memory(struct schema_compiler *compiler)
{
    if (compiler->status == LM_OK)
        compiler->status = lm_fail(compiler->err, LM_E_NO_MEM, "no memory for a schema");
}

/* About a keyword of a schema. */
static void fail_at(struct schema_compiler *compiler, enum lm_status status,
                    const struct json_object *schema, const char *keyword, const char *what)
{
    char pointer[700];
    if (compiler->status != LM_OK) return;
    schema_write_pointer(compiler->root, schema, pointer, sizeof(pointer));
    compiler->status = lm_fail(compiler->err, status, "%s/%s: %.200s", pointer, keyword, what);
}

static bool have_room(struct schema_compiler *compiler, void *array, size_t *room, size_t n,
                      size_t size)
{
    if (compiler->status == LM_OK && !grow_to(array, room, n, size)) fail_memory(compiler);
    return compiler->status == LM_OK;
}

/* ---- sets ----------------------------------------------------------------------------------- */

static struct json_object *schema_of(member m)
{
    return (struct json_object *)(m & ~MADE_ALL);
}

static void set_add(struct schema_compiler *compiler, struct set *set, member m)
{
    if (set->n == N_IN_SET_MAX && compiler->status == LM_OK)
        compiler->status = lm_fail(compiler->err, LM_E_LIMIT,
                                   "#: a value has to satisfy more than %d schemas", N_IN_SET_MAX);
    if (have_room(compiler, &set->members, &set->room, set->n + 1, sizeof(*set->members)))
        set->members[set->n++] = m;
}

static void set_add_schema(struct schema_compiler *compiler, struct set *set,
                           struct json_object *schema)
{
    set_add(compiler, set, (member)schema);
}

static bool set_has(const struct set *set, const struct json_object *schema)
{
    for (size_t i = 0; i < set->n; i++)
        if (schema_of(set->members[i]) == schema) return true;
    return false;
}

static bool is_nullable(struct json_object *schema)
{
    struct json_object *nullable = schema_get(schema, "nullable");
    return nullable && json_object_get_boolean(nullable);
}

/* Only refers to another schema. */
static bool is_reference(struct json_object *schema)
{
    return schema_has(schema, "$ref") && !schema_has(schema, "type") &&
           !schema_implied_types(schema) && !schema_has(schema, "enum") &&
           !schema_has(schema, "const") && !schema_has(schema, "anyOf") &&
           !schema_has(schema, "oneOf") && !schema_has(schema, "allOf") && !is_nullable(schema);
}

/* Asks for nothing (more). */
static bool is_open(member m)
{
    struct json_object *schema = schema_of(m);
    if (json_object_is_type(schema, json_type_boolean)) return json_object_get_boolean(schema);
    return !schema_has(schema, "type") && !schema_implied_types(schema) &&
           !schema_has(schema, "enum") && !schema_has(schema, "const") &&
           (m & MADE_PARTS || (!schema_has(schema, "allOf") && !schema_has(schema, "$ref"))) &&
           (m & MADE_ANY_OF || !schema_has(schema, "anyOf")) &&
           (m & MADE_ONE_OF || !schema_has(schema, "oneOf")) &&
           (m & MADE_NULLABLE || !is_nullable(schema));
}

static bool is_false(member m)
{
    struct json_object *schema = schema_of(m);
    return json_object_is_type(schema, json_type_boolean) && !json_object_get_boolean(schema);
}

static int compare_members(const void *left, const void *right)
{
    const member a = *(const member *)left, b = *(const member *)right;
    return (a > b) - (a < b);
}

/* The simplest set of the same meaning. False: no value satisfies it. */
static bool normalize(struct schema_compiler *compiler, struct set *set)
{
    size_t n = 0;
    for (size_t i = 0; i < set->n; i++) {
        member m = set->members[i];
        while (!(m & MADE_ALL) && is_reference(schema_of(m)))
            m = (member)schema_resolve(compiler->root,
                                       json_object_get_string(schema_get(schema_of(m), "$ref")));
        if (is_false(m)) return false;
        if (!is_open(m)) set->members[n++] = m;
    }
    if (n) qsort(set->members, n, sizeof(*set->members), compare_members);
    set->n = 0;
    for (size_t i = 0; i < n; i++)
        if (set->n && schema_of(set->members[set->n - 1]) == schema_of(set->members[i]))
            set->members[set->n - 1] |= set->members[i]; /* a choice made is made */
        else
            set->members[set->n++] = set->members[i];
    return true;
}

static uint32_t *find_slot(const struct schema_compiler *compiler, const struct set *set)
{
    const size_t mask = compiler->n_slot - 1, n_byte = set->n * sizeof(member);
    size_t slot = XXH3_64bits(set->members, n_byte) & mask;
    for (; compiler->table[slot]; slot = (slot + 1) & mask) {
        const struct set *found = &compiler->jobs[compiler->table[slot] - 1].set;
        if (found->n == set->n && !memcmp(found->members, set->members, n_byte)) break;
    }
    return &compiler->table[slot];
}

static bool rebuild(struct schema_compiler *compiler, size_t n_slot)
{
    uint32_t *table = calloc(n_slot, sizeof(*table));
    if (!table) {
        fail_memory(compiler);
        return false;
    }
    free(compiler->table);
    compiler->table = table;
    compiler->n_slot = n_slot;
    for (size_t i = 0; i < compiler->n_job; i++)
        *find_slot(compiler, &compiler->jobs[i].set) = (uint32_t)i + 1;
    return true;
}

/* The rule of a set, which is taken over; its body is made later. */
static grammar_expr refer(struct schema_compiler *compiler, struct set set)
{
    grammar_expr expr = GRAMMAR_NOTHING;
    if (compiler->status != LM_OK || !normalize(compiler, &set)) goto out;
    if (!set.n) {
        expr = grammar_build_json_value(compiler->builder);
        goto out;
    }
    uint32_t *slot = find_slot(compiler, &set);
    if (*slot) {
        expr = grammar_build_call(compiler->builder, compiler->jobs[*slot - 1].rule);
        goto out;
    }
    if (compiler->n_job == N_SET_MAX || compiler->n_member + set.n > N_MEMBER_MAX) {
        compiler->status =
            lm_fail(compiler->err, LM_E_LIMIT, "#: the schema has too many combinations");
        goto out;
    }
    if (!have_room(compiler, &compiler->jobs, &compiler->job_room, compiler->n_job + 1,
                   sizeof(*compiler->jobs)))
        goto out;
    const grammar_rule rule = grammar_build_rule(compiler->builder, NULL);
    compiler->jobs[compiler->n_job++] = (struct job){set, rule};
    compiler->n_member += set.n;
    *slot = (uint32_t)compiler->n_job;
    if (2 * compiler->n_job > compiler->n_slot) rebuild(compiler, 2 * compiler->n_slot);
    return grammar_build_call(compiler->builder, rule);
out:
    free(set.members);
    return expr;
}

/* ---- patterns ------------------------------------------------------------------------------- */

/* Texts that have to match all of several patterns, each with where it stands. */
struct pattern_list {
    struct pattern {
        const char *text;
        size_t n;
        bool search;
        uint32_t least, most; /* characters; the text is then not used */
        const struct json_object *schema;
        const char *keyword;
    } * patterns;
    size_t n, room;
};

static void add_pattern(struct schema_compiler *compiler, struct pattern_list *list,
                        struct pattern pattern)
{
    if (have_room(compiler, &list->patterns, &list->room, list->n + 1, sizeof(*list->patterns)))
        list->patterns[list->n++] = pattern;
}

static void hash_patterns(const struct pattern_list *list, enum char_writing writing,
                          uint64_t hash[2])
{
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, &writing, sizeof(writing));
    for (size_t i = 0; i < list->n; i++) {
        const struct pattern *pattern = &list->patterns[i];
        const uint64_t head[] = {pattern->n, pattern->search, pattern->least, pattern->most,
                                 pattern->text != NULL};
        XXH3_128bits_update(&state, head, sizeof(head));
        if (pattern->text) XXH3_128bits_update(&state, pattern->text, pattern->n);
    }
    const XXH128_hash_t found = XXH3_128bits_digest(&state);
    hash[0] = found.low64;
    hash[1] = found.high64;
}

static enum lm_status compile_pattern(const struct pattern *pattern, struct char_automaton **out,
                                      struct lm_error *err)
{
    return pattern->text ? regex_compile(out, pattern->text, pattern->n, pattern->search, err)
                         : char_automaton_of_length(out, pattern->least, pattern->most, err);
}

static struct char_automaton *intersect_all(struct schema_compiler *compiler,
                                            const struct pattern_list *list)
{
    struct char_automaton *all = NULL;
    for (size_t i = 0; i < list->n && compiler->status == LM_OK; i++) {
        const struct pattern *pattern = &list->patterns[i];
        struct char_automaton *one = NULL, *both = NULL;
        struct lm_error err;
        enum lm_status status = compile_pattern(pattern, &one, &err);
        if (status == LM_OK && all) {
            status = char_automaton_intersect(&both, all, one, &err);
            char_automaton_destroy(one);
            one = both;
        }
        if (status == LM_OK) {
            char_automaton_destroy(all);
            all = one;
        } else if (status == LM_E_NO_MEM)
            fail_memory(compiler);
        else
            fail_at(compiler, status == LM_E_LIMIT ? LM_E_UNSUPPORTED : status, pattern->schema,
                    pattern->keyword, err.message);
    }
    return all;
}

/* Frees the list. */
static grammar_expr build_patterns(struct schema_compiler *compiler, struct pattern_list *list,
                                   enum char_writing writing)
{
    grammar_expr expr = GRAMMAR_NOTHING;
    uint64_t hash[2];
    size_t found = 0;
    hash_patterns(list, writing, hash);
    while (found < compiler->n_pattern &&
           memcmp(compiler->patterns[found].hash, hash, sizeof(hash)))
        found++;
    if (found < compiler->n_pattern)
        expr = compiler->patterns[found].expr;
    else if (have_room(compiler, &compiler->patterns, &compiler->pattern_room,
                       compiler->n_pattern + 1, sizeof(*compiler->patterns))) {
        struct char_automaton *all = intersect_all(compiler, list);
        if (compiler->status == LM_OK) {
            /* a rule, so that all uses share their states */
            const grammar_rule rule = grammar_build_rule(compiler->builder, NULL);
            grammar_build_define(compiler->builder, rule,
                                 grammar_build_automaton(compiler->builder, all, writing));
            expr = grammar_build_call(compiler->builder, rule);
            struct written *written = &compiler->patterns[compiler->n_pattern++];
            *written = (struct written){{hash[0], hash[1]}, expr};
        } else
            char_automaton_destroy(all);
    }
    free(list->patterns);
    return expr;
}

/* ---- numbers -------------------------------------------------------------------------------- */

/* A bound with more digits than numbers may have either asks for nothing or for the impossible. */
static bool is_beyond(const struct decimal *bound)
{
    return strlen(bound->whole) > JSON_DIGITS_MAX;
}

static void add_bounds(struct schema_compiler *compiler, struct json_object *schema,
                       struct pattern_list *list, char **texts, size_t *n_text)
{
    static const struct {
        const char *keyword;
        enum number_bound kind;
        bool above;
    } bounds[] = {{"minimum", NUMBER_AT_LEAST, true},
                  {"maximum", NUMBER_AT_MOST, false},
                  {"exclusiveMinimum", NUMBER_MORE_THAN, true},
                  {"exclusiveMaximum", NUMBER_LESS_THAN, false},
                  {"multipleOf", NUMBER_AT_LEAST, false}};
    char pattern[NUMBER_PATTERN_MAX];
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        struct json_object *value = schema_get(schema, bounds[i].keyword);
        struct decimal decimal;
        int exponent;
        if (!value || !decimal_read(&decimal, json_object_to_json_string(value))) continue;
        if (!strcmp(bounds[i].keyword, "multipleOf")) {
            if (!decimal_power_of_ten(&decimal, &exponent)) continue;
            number_pattern_multiple(exponent, pattern);
        } else if (is_beyond(&decimal)) {
            if (bounds[i].above != decimal.negative)
                fail_at(compiler, LM_E_UNSUPPORTED, schema, bounds[i].keyword,
                        "numbers have at most 17 digits");
            continue;
        } else
            number_pattern_bound(bounds[i].kind, &decimal, pattern);
        char *text = strdup(pattern);
        if (!text) {
            fail_memory(compiler);
            return;
        }
        texts[(*n_text)++] = text;
        add_pattern(
            compiler, list,
            (struct pattern){
                .text = text, .n = strlen(text), .schema = schema, .keyword = bounds[i].keyword});
    }
}

static grammar_expr build_number(struct schema_compiler *compiler, const struct set *set,
                                 bool whole)
{
    struct pattern_list list = {0};
    char all[NUMBER_PATTERN_MAX];
    char **texts = malloc((5 * set->n + 1) * sizeof(*texts));
    size_t n_text = 0;
    if (!texts) {
        fail_memory(compiler);
        return GRAMMAR_NOTHING;
    }
    number_pattern_all(whole, all);
    add_pattern(compiler, &list,
                (struct pattern){.text = all, .n = strlen(all), .schema = compiler->root});
    for (size_t i = 0; i < set->n; i++)
        add_bounds(compiler, schema_of(set->members[i]), &list, texts, &n_text);
    grammar_expr expr = GRAMMAR_NOTHING;
    if (!n_text && !whole) {
        expr = json_parts_number(compiler->builder);
        free(list.patterns);
    } else
        expr = build_patterns(compiler, &list, CHAR_PLAIN);
    while (n_text)
        free(texts[--n_text]);
    free(texts);
    return expr;
}

/* ---- strings -------------------------------------------------------------------------------- */

/* A count of the schema, saturated. */
static uint32_t read_count(struct json_object *schema, const char *keyword, uint32_t otherwise)
{
    struct json_object *value = schema_get(schema, keyword);
    const double count = value ? json_object_get_double(value) : otherwise;
    return count < GRAMMAR_UNBOUNDED ? (uint32_t)count : GRAMMAR_UNBOUNDED;
}

/* The narrowest bounds of all. */
static void read_counts(const struct set *set, const char *low, const char *high, uint32_t *least,
                        uint32_t *most)
{
    *least = 0;
    *most = GRAMMAR_UNBOUNDED;
    for (size_t i = 0; i < set->n; i++) {
        const uint32_t from = read_count(schema_of(set->members[i]), low, 0);
        const uint32_t to = read_count(schema_of(set->members[i]), high, GRAMMAR_UNBOUNDED);
        if (from > *least) *least = from;
        if (to < *most) *most = to;
    }
    if (*least == GRAMMAR_UNBOUNDED) *least = GRAMMAR_UNBOUNDED - 1;
}

static grammar_expr build_string(struct schema_compiler *compiler, const struct set *set)
{
    struct pattern_list list = {0};
    uint32_t least, most;
    read_counts(set, "minLength", "maxLength", &least, &most);
    if (least > most) return GRAMMAR_NOTHING;
    struct json_object *of = NULL; /* a schema that asks for a pattern */
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *schema = schema_of(set->members[i]);
        struct json_object *pattern = schema_get(schema, "pattern");
        struct json_object *name = schema_get(schema, "format");
        const struct string_format *format =
            name ? string_format_find(json_object_get_string(name)) : NULL;
        if (pattern)
            add_pattern(compiler, &list,
                        (struct pattern){.text = json_object_get_string(pattern),
                                         .n = (size_t)json_object_get_string_len(pattern),
                                         .search = true,
                                         .schema = of = schema,
                                         .keyword = "pattern"});
        if (format) {
            if (format->n_char_max < most) most = format->n_char_max;
            add_pattern(compiler, &list,
                        (struct pattern){.text = format->pattern,
                                         .n = strlen(format->pattern),
                                         .schema = of = schema,
                                         .keyword = "format"});
        }
    }
    if (!list.n)
        return !least && most == GRAMMAR_UNBOUNDED
                   ? json_parts_string(compiler->builder)
                   : json_parts_string_of(compiler->builder, least, most);
    if (least || most != GRAMMAR_UNBOUNDED)
        add_pattern(compiler, &list,
                    (struct pattern){.least = least,
                                     .most = most,
                                     .schema = of,
                                     .keyword = schema_has(of, "pattern") ? "pattern" : "format"});
    const grammar_expr quote = grammar_build_string(compiler->builder, "\"");
    return SEQUENCE(compiler, quote, build_patterns(compiler, &list, CHAR_JSON), quote);
}

/* ---- chains --------------------------------------------------------------------------------- */

/* Links of a chain contain each other; every so often one is a rule, which bounds the nesting.
 * shared: the link is used more than once. */
static grammar_expr link_chain(struct schema_compiler *compiler, grammar_expr link, size_t i,
                               bool shared)
{
    if (!shared && i % N_NESTED_MAX) return link;
    if (link == GRAMMAR_EMPTY || link == GRAMMAR_NOTHING) return link;
    const grammar_rule rule = grammar_build_rule(compiler->builder, NULL);
    grammar_build_define(compiler->builder, rule, link);
    return grammar_build_call(compiler->builder, rule);
}

/* ---- arrays --------------------------------------------------------------------------------- */

/* What the item at a place has to satisfy; the places behind all prefixItems are alike. */
static grammar_expr build_item(struct schema_compiler *compiler, const struct set *set, size_t at)
{
    struct set items = {0};
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *schema = schema_of(set->members[i]);
        struct json_object *first = schema_get(schema, "prefixItems");
        struct json_object *item = first && at < json_object_array_length(first)
                                       ? json_object_array_get_idx(first, at)
                                       : schema_get(schema, "items");
        if (item) set_add_schema(compiler, &items, item);
    }
    return refer(compiler, items);
}

static grammar_expr build_array(struct schema_compiler *compiler, const struct set *set)
{
    struct grammar_builder *const builder = compiler->builder;
    uint32_t least, most;
    size_t n_first = 0;
    read_counts(set, "minItems", "maxItems", &least, &most);
    if (least > most) return GRAMMAR_NOTHING;
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *first = schema_get(schema_of(set->members[i]), "prefixItems");
        const size_t n = first ? json_object_array_length(first) : 0;
        if (n > n_first) n_first = n;
    }
    const grammar_expr none = least ? GRAMMAR_NOTHING : grammar_build_string(builder, "[]");
    if (!most) return none;
    /* behind `at` items, from the last place of its own on down to the first */
    size_t at = n_first > 1 ? n_first : 1;
    grammar_expr after = GRAMMAR_EMPTY;
    if (at < most) {
        const grammar_expr more =
            SEQUENCE(compiler, json_parts_comma(builder), build_item(compiler, set, n_first));
        after = grammar_build_repeat(builder, more, at < least ? least - (uint32_t)at : 0,
                                     most == GRAMMAR_UNBOUNDED ? most : most - (uint32_t)at);
    }
    for (; at > 1; at--) {
        if (at - 1 >= most) continue;
        after = SEQUENCE(compiler, json_parts_comma(builder), build_item(compiler, set, at - 1),
                         at < most ? after : GRAMMAR_EMPTY);
        if (at - 1 >= least) after = grammar_build_optional(builder, after);
        after = link_chain(compiler, after, at, false);
    }
    const grammar_expr some =
        SEQUENCE(compiler, json_parts_open(builder, '['), build_item(compiler, set, 0), after,
                 json_parts_close(builder, ']'));
    return CHOICE(compiler, none, some);
}

/* ---- objects -------------------------------------------------------------------------------- */

struct property {
    const char *name;
    size_t n;
    bool required;
};

struct object {
    struct property *properties; /* [n] in order */
    size_t n, room;
    struct json_object *index; /* name to place */
};

static struct property *find_property(struct schema_compiler *compiler, struct object *object,
                                      const char *name)
{
    struct json_object *place;
    if (json_object_object_get_ex(object->index, name, &place))
        return &object->properties[json_object_get_int64(place)];
    if (!have_room(compiler, &object->properties, &object->room, object->n + 1,
                   sizeof(*object->properties)))
        return NULL;
    place = json_object_new_int64((int64_t)object->n);
    if (!place || json_object_object_add(object->index, name, place)) {
        json_object_put(place);
        fail_memory(compiler);
        return NULL;
    }
    object->properties[object->n] = (struct property){.name = name, .n = strlen(name)};
    return &object->properties[object->n++];
}

static void collect_properties(struct schema_compiler *compiler, const struct set *set,
                               struct object *object)
{
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *properties = schema_get(schema_of(set->members[i]), "properties");
        if (!properties) continue;
        json_object_object_foreach(properties, name, schema)
        {
            (void)schema;
            find_property(compiler, object, name);
        }
    }
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *required = schema_get(schema_of(set->members[i]), "required");
        for (size_t r = 0; required && r < json_object_array_length(required); r++) {
            struct property *property = find_property(
                compiler, object, json_object_get_string(json_object_array_get_idx(required, r)));
            if (property) property->required = true;
        }
    }
}

/* The value of a member: declared by the schemas that name it, an additional one for the others.
 * name: NULL: of members that no schema names. */
static grammar_expr build_member_value(struct schema_compiler *compiler, const struct set *set,
                                       const char *name)
{
    struct set values = {0};
    bool declared = false;
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *schema = schema_of(set->members[i]);
        struct json_object *properties = schema_get(schema, "properties");
        struct json_object *value = name && properties ? schema_get(properties, name) : NULL;
        if (!value) value = schema_get(schema, "additionalProperties");
        if (!value) continue;
        declared = true;
        set_add_schema(compiler, &values, value);
    }
    if (declared) return refer(compiler, values);
    return GRAMMAR_NOTHING; /* without additionalProperties there are none */
}

/* ---- members that are not declared ---------------------------------------------------------- */

enum { N_NAME_MAX = 200 }; /* what begins like a longer name is left out altogether */

static int compare_names(const void *left, const void *right)
{
    return strcmp(((const struct property *)left)->name, ((const struct property *)right)->name);
}

static void add_move(struct char_nfa *nfa, struct char_move **moves, size_t *n, size_t *room,
                     uint32_t low, uint32_t high, uint32_t target)
{
    if (low > high) return;
    if (!grow_to(moves, room, *n + 1, sizeof(**moves)))
        nfa->status = LM_E_NO_MEM;
    else
        (*moves)[(*n)++] = (struct char_move){CHAR_MOVE_RANGE, target, low, high};
}

/* Texts that equal none of the sorted names, all alike up to byte `at`, from there on. */
static uint32_t write_others(struct char_nfa *nfa, const struct property *names, size_t n,
                             size_t at)
{
    struct char_move *moves = NULL;
    size_t n_move = 0, room = 0;
    uint32_t from = 0;
    bool is_name = false;
    const uint32_t state = char_nfa_reserve(nfa);
    for (size_t i = 0, end; i < n && nfa->status == LM_OK; i = end) {
        uint32_t code;
        end = i + 1;
        if (names[i].n == at) {
            is_name = true;
            continue;
        }
        const size_t length = utf8_decode(names[i].name + at, names[i].n - at, &code);
        if (!length) break; /* no text that is well-formed equals it */
        while (end < n && names[end].n >= at + length &&
               !memcmp(names[end].name + at, names[i].name + at, length))
            end++;
        add_move(nfa, &moves, &n_move, &room, from, code - 1, CHAR_NFA_ACCEPT_ALL);
        from = code + 1;
        if (at < N_NAME_MAX)
            add_move(nfa, &moves, &n_move, &room, code, code,
                     write_others(nfa, names + i, end - i, at + length));
    }
    add_move(nfa, &moves, &n_move, &room, from, CHAR_LAST, CHAR_NFA_ACCEPT_ALL);
    if (!is_name && nfa->status == LM_OK && grow_to(&moves, &room, n_move + 1, sizeof(*moves)))
        moves[n_move++] = (struct char_move){.kind = CHAR_MOVE_EMPTY, .target = CHAR_NFA_ACCEPT};
    char_nfa_set_moves(nfa, state, moves, n_move);
    free(moves);
    return state;
}

/* The name of a member that is not declared, with its quotes. */
static grammar_expr build_other_name(struct schema_compiler *compiler, const struct object *object)
{
    if (!object->n) return json_parts_string(compiler->builder);
    struct property *names = malloc(object->n * sizeof(*names));
    struct char_automaton *automaton = NULL;
    struct char_nfa nfa;
    char_nfa_init(&nfa);
    enum lm_status status = LM_E_NO_MEM;
    if (names) {
        memcpy(names, object->properties, object->n * sizeof(*names));
        qsort(names, object->n, sizeof(*names), compare_names);
        const uint32_t start = write_others(&nfa, names, object->n, 0);
        status = char_automaton_from_nfa(&automaton, &nfa, start, NULL);
    }
    char_nfa_fini(&nfa);
    free(names);
    if (status == LM_E_LIMIT && compiler->status == LM_OK)
        compiler->status = lm_fail(compiler->err, LM_E_LIMIT,
                                   "#: too many property names beside additionalProperties");
    else if (status != LM_OK)
        fail_memory(compiler);
    if (compiler->status != LM_OK) return GRAMMAR_NOTHING;
    const grammar_expr quote = grammar_build_string(compiler->builder, "\"");
    return SEQUENCE(compiler, quote,
                    grammar_build_automaton(compiler->builder, automaton, CHAR_JSON), quote);
}

/* ---- objects -------------------------------------------------------------------------------- */

static grammar_expr build_member(struct schema_compiler *compiler, const struct set *set,
                                 const struct property *property)
{
    struct grammar_builder *const builder = compiler->builder;
    return SEQUENCE(compiler, grammar_build_json_string(builder, property->name, property->n),
                    json_parts_colon(builder), build_member_value(compiler, set, property->name));
}

/* Members in the order of their declaration, then others; optional ones may be left out.
 *
 *   head[i]: nothing has been written yet, and properties from i on may come
 *   tail[i]: something has been written: a comma comes before what follows
 *
 * Both are made from the last property to the first. */
static grammar_expr build_members(struct schema_compiler *compiler, const struct set *set,
                                  const struct object *object)
{
    struct grammar_builder *const builder = compiler->builder;
    const grammar_expr comma = json_parts_comma(builder);
    const grammar_expr other_value = build_member_value(compiler, set, NULL);
    grammar_expr head = GRAMMAR_NOTHING, tail = GRAMMAR_EMPTY;
    bool is_optional = true;
    if (other_value != GRAMMAR_NOTHING) {
        const grammar_expr other = SEQUENCE(compiler, build_other_name(compiler, object),
                                            json_parts_colon(builder), other_value);
        tail =
            grammar_build_repeat(builder, SEQUENCE(compiler, comma, other), 0, GRAMMAR_UNBOUNDED);
        tail = link_chain(compiler, tail, 0, true);
        head = SEQUENCE(compiler, other, tail);
    }
    for (size_t i = object->n; i-- > 0 && compiler->status == LM_OK;) {
        const struct property *property = &object->properties[i];
        const bool before_optional = i && !object->properties[i - 1].required;
        const grammar_expr pair = build_member(compiler, set, property);
        const grammar_expr first = SEQUENCE(compiler, pair, tail);
        const grammar_expr next = SEQUENCE(compiler, comma, pair, tail);
        head = property->required ? first : CHOICE(compiler, first, head);
        head = link_chain(compiler, head, i, false);
        tail = property->required ? next : CHOICE(compiler, next, tail);
        tail = link_chain(compiler, tail, i, !property->required || before_optional);
        is_optional = is_optional && !property->required;
    }
    const grammar_expr some =
        SEQUENCE(compiler, json_parts_open(builder, '{'), head, json_parts_close(builder, '}'));
    return is_optional ? CHOICE(compiler, grammar_build_string(builder, "{}"), some) : some;
}

static grammar_expr build_object(struct schema_compiler *compiler, const struct set *set)
{
    struct object object = {.index = json_object_new_object()};
    grammar_expr expr = GRAMMAR_NOTHING;
    if (!object.index)
        fail_memory(compiler);
    else
        collect_properties(compiler, set, &object);
    if (compiler->status == LM_OK) expr = build_members(compiler, set, &object);
    json_object_put(object.index);
    free(object.properties);
    return expr;
}

/* ---- values --------------------------------------------------------------------------------- */

/* The types that all members of the set allow; where none names any, those that they speak of. */
static unsigned find_types(const struct set *set)
{
    unsigned types = SCHEMA_ANY | SCHEMA_INTEGER, implied = 0;
    bool named = false;
    for (size_t i = 0; i < set->n; i++) {
        const unsigned of_schema = schema_types(schema_of(set->members[i]));
        implied |= schema_implied_types(schema_of(set->members[i]));
        if (!of_schema) continue;
        named = true;
        types &= of_schema & SCHEMA_NUMBER ? of_schema | SCHEMA_INTEGER : of_schema;
    }
    return named || !implied ? types : implied;
}

/* The constants of enum and const that all members of the set allow; NULL: there are none. */
static struct json_object *find_constants(struct schema_compiler *compiler, const struct set *set,
                                          bool *found)
{
    struct json_object *constants = json_object_new_array(), *values = NULL, *constant = NULL;
    *found = false;
    for (size_t i = 0; i < set->n && !*found; i++) {
        values = schema_get(schema_of(set->members[i]), "enum");
        constant = schema_get(schema_of(set->members[i]), "const");
        *found = values || schema_has(schema_of(set->members[i]), "const");
        compiler->fitting.owner = schema_of(set->members[i]);
    }
    const size_t n = values ? json_object_array_length(values) : *found;
    for (size_t i = 0; constants && i < n; i++) {
        struct json_object *value = values ? json_object_array_get_idx(values, i) : constant;
        bool fits = true;
        compiler->fitting.value = value;
        for (size_t m = 0; m < set->n && fits; m++)
            fits = schema_fits(&compiler->fitting, schema_of(set->members[m]), value);
        if (fits && json_object_array_add(constants, json_object_get(value))) {
            json_object_put(value);
            fail_memory(compiler);
        }
    }
    if (!constants) fail_memory(compiler);
    if (!compiler->fitting.n_left)
        fail_at(compiler, LM_E_LIMIT, compiler->fitting.owner, values ? "enum" : "const",
                "too much work to hold it against the rest of the schema");
    return constants;
}

static grammar_expr build_constants(struct schema_compiler *compiler, struct json_object *constants)
{
    const size_t n = json_object_array_length(constants);
    const char **texts = malloc((n + 1) * sizeof(*texts));
    size_t *lengths = malloc((n + 1) * sizeof(*lengths));
    grammar_expr expr = GRAMMAR_NOTHING;
    for (size_t i = 0; texts && lengths && i < n; i++) {
        /* the text belongs to the value, so each value needs one of its own */
        struct json_object *value = json_object_array_get_idx(constants, i);
        texts[i] = value ? json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                                     JSON_C_TO_STRING_NOSLASHESCAPE)
                         : "null";
        lengths[i] = texts[i] ? strlen(texts[i]) : 0;
        if (!texts[i]) fail_memory(compiler);
    }
    if (!texts || !lengths) fail_memory(compiler);
    if (compiler->status == LM_OK)
        expr = grammar_build_one_of(compiler->builder, texts, lengths, n);
    free(lengths);
    free(texts);
    return expr;
}

static grammar_expr build_value(struct schema_compiler *compiler, const struct set *set)
{
    struct grammar_builder *const builder = compiler->builder;
    bool constant;
    struct json_object *constants = find_constants(compiler, set, &constant);
    grammar_expr choices[7];
    size_t n = 0;
    if (constant && constants) choices[n++] = build_constants(compiler, constants);
    json_object_put(constants);
    const unsigned types = constant ? 0 : find_types(set);
    if (types & SCHEMA_OBJECT) choices[n++] = build_object(compiler, set);
    if (types & SCHEMA_ARRAY) choices[n++] = build_array(compiler, set);
    if (types & SCHEMA_STRING) choices[n++] = build_string(compiler, set);
    if (types & (SCHEMA_NUMBER | SCHEMA_INTEGER))
        choices[n++] = build_number(compiler, set, !(types & SCHEMA_NUMBER));
    if (types & SCHEMA_BOOLEAN)
        choices[n++] = CHOICE(compiler, grammar_build_string(builder, "true"),
                              grammar_build_string(builder, "false"));
    if (types & SCHEMA_NULL) choices[n++] = grammar_build_string(builder, "null");
    return grammar_build_choice(builder, choices, n);
}

/* ---- alternatives --------------------------------------------------------------------------- */

/* The set without its i-th member, and with another. */
static struct set replaced(struct schema_compiler *compiler, const struct set *set, size_t i,
                           member with)
{
    struct set copy = {0};
    for (size_t m = 0; m < set->n; m++)
        if (m != i) set_add(compiler, &copy, set->members[m]);
    set_add(compiler, &copy, with);
    return copy;
}

/* One of the alternatives of the i-th member's keyword. */
static grammar_expr build_alternatives(struct schema_compiler *compiler, const struct set *set,
                                       size_t i, const char *keyword, member made)
{
    struct json_object *list = schema_get(schema_of(set->members[i]), keyword);
    const size_t n = json_object_array_length(list);
    grammar_expr *parts = malloc(n * sizeof(*parts));
    if (!parts) {
        fail_memory(compiler);
        return GRAMMAR_NOTHING;
    }
    for (size_t p = 0; p < n; p++) {
        struct set with = replaced(compiler, set, i, set->members[i] | made);
        struct json_object *part = json_object_array_get_idx(list, p);
        if (!set_has(&with, part)) set_add_schema(compiler, &with, part);
        parts[p] = refer(compiler, with);
    }
    const grammar_expr choice = grammar_build_choice(compiler->builder, parts, n);
    free(parts);
    return choice;
}

/* A value that satisfies all members of the set, to which those are added that they bring. */
static grammar_expr build_set(struct schema_compiler *compiler, struct set *set)
{
    for (size_t i = 0; i < set->n && compiler->status == LM_OK; i++) {
        struct json_object *schema = schema_of(set->members[i]);
        if (is_false(set->members[i])) return GRAMMAR_NOTHING;
        if (is_nullable(schema) && !(set->members[i] & MADE_NULLABLE)) {
            const grammar_expr other =
                refer(compiler, replaced(compiler, set, i, set->members[i] | MADE_NULLABLE));
            return CHOICE(compiler, other,
                          refer(compiler, replaced(compiler, set, i, (member)compiler->null)));
        }
        if (set->members[i] & MADE_PARTS) continue;
        struct json_object *all = schema_get(schema, "allOf");
        struct json_object *reference = schema_get(schema, "$ref");
        if (all || reference) set->members[i] |= MADE_PARTS;
        struct json_object *target =
            reference ? schema_resolve(compiler->root, json_object_get_string(reference)) : NULL;
        if (target && !set_has(set, target)) set_add_schema(compiler, set, target);
        for (size_t p = 0; all && p < json_object_array_length(all) && compiler->status == LM_OK;
             p++) {
            struct json_object *part = json_object_array_get_idx(all, p);
            if (!set_has(set, part)) set_add_schema(compiler, set, part);
        }
    }
    for (size_t i = 0; i < set->n; i++) {
        struct json_object *schema = schema_of(set->members[i]);
        if (schema_has(schema, "anyOf") && !(set->members[i] & MADE_ANY_OF))
            return build_alternatives(compiler, set, i, "anyOf", MADE_ANY_OF);
        if (schema_has(schema, "oneOf") && !(set->members[i] & MADE_ONE_OF))
            return build_alternatives(compiler, set, i, "oneOf", MADE_ONE_OF);
    }
    return build_value(compiler, set);
}

static grammar_expr compile_all(struct schema_compiler *compiler)
{
    struct set root = {0};
    set_add_schema(compiler, &root, compiler->root);
    const grammar_expr start = refer(compiler, root);
    for (size_t i = 0; i < compiler->n_job && compiler->status == LM_OK; i++) {
        struct set set = {0}; /* the job's own stays the key of its rule */
        for (size_t m = 0; m < compiler->jobs[i].set.n; m++)
            set_add(compiler, &set, compiler->jobs[i].set.members[m]);
        const grammar_expr body = build_set(compiler, &set);
        grammar_build_define(compiler->builder, compiler->jobs[i].rule, body);
        free(set.members);
    }
    return start;
}

enum lm_status grammar_build_schema(struct grammar_builder *builder, struct json_object *schema,
                                    grammar_expr *out, struct lm_error *err)
{
    struct lm_error unused;
    struct schema_compiler compiler = {.builder = builder,
                                       .root = schema,
                                       .fitting = {.root = schema, .n_left = N_FITTING_MAX},
                                       .err = err ? err : &unused};
    const enum lm_status status = schema_check(schema, err);
    if (status != LM_OK) return status;
    compiler.null = json_object_new_object();
    if (!compiler.null ||
        json_object_object_add(compiler.null, "type", json_object_new_string("null")))
        fail_memory(&compiler);
    rebuild(&compiler, 256);
    if (compiler.status == LM_OK) *out = compile_all(&compiler);
    for (size_t i = 0; i < compiler.n_job; i++)
        free(compiler.jobs[i].set.members);
    free(compiler.jobs);
    free(compiler.table);
    free(compiler.patterns);
    json_object_put(compiler.null);
    return compiler.status;
}
