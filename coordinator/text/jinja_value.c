#include "coordinator/text/jinja_value.h"

#include <math.h>
#include <string.h>

#include "coordinator/text/jinja_unicode.h"

/* ---- undefined */

static struct jinja_value undefined(struct jinja_run *run, const char *hint, const char *owner_type,
                                    struct jinja_value name)
{
    struct jinja_undefined *what = jinja_alloc(run, sizeof(*what));
    *what = (struct jinja_undefined){hint, owner_type, name};
    return (struct jinja_value){.type = JINJA_UNDEFINED, .undefined = what};
}

struct jinja_value jinja_undefined_name(struct jinja_run *run, struct jinja_value name)
{
    return undefined(run, NULL, NULL, name);
}

struct jinja_value jinja_undefined_member(struct jinja_run *run, struct jinja_value owner,
                                          struct jinja_value name)
{
    return undefined(run, NULL, jinja_type_name(owner), name);
}

struct jinja_value jinja_undefined_hint(struct jinja_run *run, const char *hint)
{
    return undefined(run, hint, NULL, jinja_none());
}

_Noreturn void jinja_fail_undefined(struct jinja_run *run, struct jinja_value value)
{
    const struct jinja_undefined *what = value.undefined;
    if (what->hint) jinja_fail(run, "%s", what->hint);
    if (what->name.type == JINJA_INT)
        jinja_fail(run, "%s object has no element %lld", what->owner_type ? what->owner_type : "?",
                   (long long)what->name.integer);
    if (what->name.type != JINJA_STRING)
        jinja_fail(run, "%s object has no element of that %s",
                   what->owner_type ? what->owner_type : "?", jinja_type_name(what->name));
    const struct jinja_string *name = what->name.string;
    if (!what->owner_type)
        jinja_fail(run, "'%.*s' is undefined", (int)(name->n_bytes & 1023), name->bytes);
    jinja_fail(run, "'%s object' has no attribute '%.*s'", what->owner_type,
               (int)(name->n_bytes & 1023), name->bytes);
}

/* ---- strings */

static struct jinja_value make_string(struct jinja_run *run, const char *bytes, size_t n_bytes,
                                      size_t n_chars)
{
    struct jinja_string *string = jinja_alloc(run, sizeof(*string));
    *string = (struct jinja_string){bytes, n_bytes, n_chars};
    return (struct jinja_value){.type = JINJA_STRING, .string = string};
}

struct jinja_value jinja_string_view(struct jinja_run *run, const char *bytes, size_t n_bytes)
{
    jinja_spend_bytes(run, n_bytes);
    return make_string(run, bytes, n_bytes, jinja_utf8_count(bytes, n_bytes));
}

struct jinja_value jinja_string_copy(struct jinja_run *run, const char *bytes, size_t n_bytes)
{
    char *copy = jinja_alloc(run, n_bytes);
    if (n_bytes) memcpy(copy, bytes, n_bytes);
    return jinja_string_view(run, copy, n_bytes);
}

struct jinja_value jinja_text(struct jinja_run *run, const char *text)
{
    return jinja_string_view(run, text, strlen(text));
}

struct jinja_value jinja_string_from(struct jinja_run *run, const struct jinja_buffer *buffer)
{
    return jinja_string_view(run, buffer->n ? buffer->bytes : "", buffer->n);
}

bool jinja_string_is(const struct jinja_string *string, const char *text)
{
    return strlen(text) == string->n_bytes && !memcmp(text, string->bytes, string->n_bytes);
}

bool jinja_string_equal(const struct jinja_string *a, const struct jinja_string *b)
{
    return a == b || (a->n_bytes == b->n_bytes && !memcmp(a->bytes, b->bytes, a->n_bytes));
}

/* ---- lists and tuples */

static struct jinja_value make_list(struct jinja_run *run, enum jinja_type type, size_t n_expected)
{
    struct jinja_list *list = jinja_alloc_zero(run, sizeof(*list));
    if (n_expected)
        list->items =
            jinja_reserve(run, NULL, 0, n_expected, &list->cap, sizeof(struct jinja_value));
    return (struct jinja_value){.type = type, .list = list};
}

struct jinja_value jinja_list_new(struct jinja_run *run, size_t n_expected)
{
    return make_list(run, JINJA_LIST, n_expected);
}

struct jinja_value jinja_tuple_new(struct jinja_run *run, const struct jinja_value *items, size_t n)
{
    struct jinja_value tuple = make_list(run, JINJA_TUPLE, n);
    for (size_t i = 0; i < n; i++)
        jinja_list_append(run, tuple.list, items[i]);
    return tuple;
}

struct jinja_value jinja_tuple_2(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    return jinja_tuple_new(run, (struct jinja_value[]){a, b}, 2);
}

void jinja_list_append(struct jinja_run *run, struct jinja_list *list, struct jinja_value item)
{
    jinja_spend(run, 1);
    list->items =
        jinja_reserve(run, list->items, list->n, 1, &list->cap, sizeof(struct jinja_value));
    list->items[list->n++] = item;
}

/* ---- dicts */

enum { SMALL_DICT = 8 }; /* up to here a linear search is as quick as an index */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static uint64_t hash_string(const struct jinja_string *string)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < string->n_bytes; i++)
        hash = (hash ^ (unsigned char)string->bytes[i]) * 0x100000001B3u;
    return mix(hash);
}

/* Equal values hash alike: True, 1 and 1.0 are one key. */
static uint64_t hash_value(struct jinja_run *run, struct jinja_value key)
{
    jinja_check_stack(run);
    jinja_spend(run, 1); /* a tuple may hold one other many times over */
    switch (key.type) {
    case JINJA_STRING:
        jinja_spend_bytes(run, key.string->n_bytes);
        return hash_string(key.string);
    case JINJA_BOOL:
        return mix(key.boolean);
    case JINJA_INT:
        return mix((uint64_t)key.integer);
    case JINJA_FLOAT: {
        const double real = key.real;
        if (real >= -9.2e18 && real <= 9.2e18 && real == floor(real))
            return mix((uint64_t)(int64_t)real);
        uint64_t bits;
        memcpy(&bits, &real, sizeof(bits));
        return mix(bits);
    }
    case JINJA_TUPLE: {
        uint64_t hash = key.list->n;
        for (size_t i = 0; i < key.list->n; i++)
            hash = mix(hash * 31 + hash_value(run, key.list->items[i]));
        return hash;
    }
    case JINJA_LIST:
    case JINJA_DICT:
    case JINJA_VIEW:
        jinja_fail(run, "unhashable type: '%s'", jinja_type_name(key));
    case JINJA_NONE:
    case JINJA_UNDEFINED:
        return mix(key.type);
    case JINJA_RANGE:
        return mix((uint64_t)key.range->n);
    default:
        return mix((uint64_t)(uintptr_t)key.pointer);
    }
}

struct jinja_value jinja_dict_new(struct jinja_run *run)
{
    struct jinja_dict *dict = jinja_alloc_zero(run, sizeof(*dict));
    return (struct jinja_value){.type = JINJA_DICT, .dict = dict};
}

static void index_pair(struct jinja_run *run, struct jinja_dict *dict, size_t i)
{
    size_t at = hash_value(run, dict->pairs[i].key) & (dict->n_index - 1);
    while (dict->index[at]) {
        at = (at + 1) & (dict->n_index - 1);
        jinja_spend(run, 1); /* keys made to collide cost their maker */
    }
    dict->index[at] = (uint32_t)i + 1;
}

/* Drops removed pairs and builds the index for what is left. */
static void rebuild(struct jinja_run *run, struct jinja_dict *dict)
{
    size_t n = 0;
    for (size_t i = 0; i < dict->n_pair; i++)
        if (dict->pairs[i].key.type != JINJA_MISSING) dict->pairs[n++] = dict->pairs[i];
    jinja_spend(run, dict->n_pair);
    dict->n_pair = n;
    dict->index = NULL;
    if (n < SMALL_DICT) return;
    if (n > UINT32_MAX / 8) jinja_fail_as(run, LM_E_LIMIT, "a dict grows too large");
    dict->n_index = 32;
    while (dict->n_index < 4 * n)
        dict->n_index *= 2;
    dict->index = jinja_alloc_zero(run, dict->n_index * sizeof(*dict->index));
    for (size_t i = 0; i < n; i++)
        index_pair(run, dict, i);
}

/* The pair number, or -1. */
static ptrdiff_t find_pair(struct jinja_run *run, const struct jinja_dict *dict,
                           struct jinja_value key)
{
    /* A string is hashed only where the hash is used; other keys always, to refuse lists. */
    const uint64_t hash = dict->index || key.type != JINJA_STRING ? hash_value(run, key) : 0;
    if (!dict->index) {
        for (size_t i = 0; i < dict->n_pair; i++)
            if (dict->pairs[i].key.type != JINJA_MISSING &&
                jinja_equal(run, dict->pairs[i].key, key))
                return (ptrdiff_t)i;
        return -1;
    }
    for (size_t at = hash & (dict->n_index - 1); dict->index[at];
         at = (at + 1) & (dict->n_index - 1)) {
        const size_t i = dict->index[at] - 1;
        if (dict->pairs[i].key.type != JINJA_MISSING && jinja_equal(run, dict->pairs[i].key, key))
            return (ptrdiff_t)i;
        jinja_spend(run, 1);
    }
    return -1;
}

void jinja_dict_set(struct jinja_run *run, struct jinja_dict *dict, struct jinja_value key,
                    struct jinja_value value)
{
    const ptrdiff_t found = find_pair(run, dict, key);
    if (found >= 0) {
        dict->pairs[found].value = value;
        return;
    }
    dict->pairs =
        jinja_reserve(run, dict->pairs, dict->n_pair, 1, &dict->cap, sizeof(*dict->pairs));
    dict->pairs[dict->n_pair++] = (struct jinja_pair){key, value};
    dict->n++;
    if (dict->index && dict->n_pair * 2 <= dict->n_index)
        index_pair(run, dict, dict->n_pair - 1);
    else if (dict->index || dict->n_pair >= SMALL_DICT)
        rebuild(run, dict);
}

struct jinja_value *jinja_dict_find(struct jinja_run *run, const struct jinja_dict *dict,
                                    struct jinja_value key)
{
    const ptrdiff_t found = find_pair(run, dict, key);
    return found >= 0 ? &dict->pairs[found].value : NULL;
}

struct jinja_value jinja_dict_remove(struct jinja_run *run, struct jinja_dict *dict,
                                     struct jinja_value key)
{
    const ptrdiff_t found = find_pair(run, dict, key);
    if (found < 0) return jinja_missing();
    const struct jinja_value value = dict->pairs[found].value;
    dict->pairs[found].key = jinja_missing();
    dict->n--;
    /* What walks over a dict pays for live pairs, so most of them must be. */
    if (dict->n_pair > 2 * dict->n + 32) rebuild(run, dict);
    return value;
}

const struct jinja_pair *jinja_dict_next(const struct jinja_dict *dict, size_t *i)
{
    while (*i < dict->n_pair) {
        const struct jinja_pair *pair = &dict->pairs[(*i)++];
        if (pair->key.type != JINJA_MISSING) return pair;
    }
    return NULL;
}

/* ---- what Python would say */

const char *jinja_type_name(struct jinja_value value)
{
    switch (value.type) {
    case JINJA_MISSING:
        return "missing";
    case JINJA_UNDEFINED:
        return "Undefined";
    case JINJA_NONE:
        return "NoneType";
    case JINJA_BOOL:
        return "bool";
    case JINJA_INT:
        return "int";
    case JINJA_FLOAT:
        return "float";
    case JINJA_STRING:
        return "str";
    case JINJA_LIST:
        return "list";
    case JINJA_TUPLE:
        return "tuple";
    case JINJA_DICT:
        return "dict";
    case JINJA_VIEW:
        return value.view->kind == VIEW_KEYS     ? "dict_keys"
               : value.view->kind == VIEW_VALUES ? "dict_values"
                                                 : "dict_items";
    case JINJA_RANGE:
        return "range";
    case JINJA_NAMESPACE:
        return "jinja2.utils.Namespace";
    case JINJA_ITERATOR:
        return "generator";
    case JINJA_MACRO:
        return "jinja2.runtime.Macro";
    case JINJA_LOOP:
        return "jinja2.runtime.LoopContext";
    case JINJA_FUNCTION:
        return "function";
    case JINJA_METHOD:
        return "builtin_function_or_method";
    case JINJA_CYCLER:
        return "jinja2.utils.Cycler";
    case JINJA_JOINER:
        return "jinja2.utils.Joiner";
    }
    return "object";
}

bool jinja_is_number(struct jinja_value value)
{
    return value.type == JINJA_INT || value.type == JINJA_FLOAT || value.type == JINJA_BOOL;
}

bool jinja_as_int(struct jinja_value value, int64_t *out)
{
    if (value.type == JINJA_INT)
        *out = value.integer;
    else if (value.type == JINJA_BOOL)
        *out = value.boolean;
    else
        return false;
    return true;
}

double jinja_as_float(struct jinja_value value)
{
    return value.type == JINJA_FLOAT  ? value.real
           : value.type == JINJA_BOOL ? (double)value.boolean
                                      : (double)value.integer;
}

bool jinja_truth(struct jinja_run *run, struct jinja_value value)
{
    switch (value.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return value.boolean;
    case JINJA_INT:
        return value.integer != 0;
    case JINJA_FLOAT:
        return value.real != 0;
    default: {
        const int64_t length = jinja_length_or_none(run, value);
        return length != 0; /* what has no length is true */
    }
    }
}

/* -1, 0, 1; 2 if one of them is NaN. Exact also where a float cannot hold the integer. */
static int compare_numbers(struct jinja_value a, struct jinja_value b)
{
    int64_t x, y = 0;
    if (jinja_as_int(a, &x) && jinja_as_int(b, &y)) return x < y ? -1 : x > y;
    if (a.type != JINJA_FLOAT) {
        const int flipped = compare_numbers(b, a);
        return flipped == 2 ? 2 : -flipped;
    }
    if (isnan(a.real)) return 2;
    if (b.type == JINJA_FLOAT) {
        if (isnan(b.real)) return 2;
        return a.real < b.real ? -1 : a.real > b.real;
    }
    jinja_as_int(b, &y);
    if (a.real >= 9223372036854775808.0) return 1;
    if (a.real < -9223372036854775808.0) return -1;
    const double whole = floor(a.real);
    x = (int64_t)whole;
    if (x != y) return x < y ? -1 : 1;
    return a.real > whole;
}

static bool equal_items(struct jinja_run *run, const struct jinja_list *a,
                        const struct jinja_list *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++)
        if (!jinja_equal(run, a->items[i], b->items[i])) return false;
    return true;
}

static bool equal_dicts(struct jinja_run *run, const struct jinja_dict *a,
                        const struct jinja_dict *b)
{
    if (a->n != b->n) return false;
    const struct jinja_pair *pair;
    for (size_t i = 0; (pair = jinja_dict_next(a, &i));) {
        const struct jinja_value *other = jinja_dict_find(run, b, pair->key);
        if (!other || !jinja_equal(run, pair->value, *other)) return false;
    }
    return true;
}

static bool equal_ranges(const struct jinja_range *a, const struct jinja_range *b)
{
    if (a->n != b->n) return false;
    if (a->n == 0) return true;
    return a->start == b->start && (a->n == 1 || a->step == b->step);
}

bool jinja_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    jinja_spend(run, 1);
    if (jinja_is_number(a) && jinja_is_number(b)) return compare_numbers(a, b) == 0;
    if (a.type != b.type) return false;
    switch (a.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return true;
    case JINJA_STRING:
        jinja_spend_bytes(run, a.string->n_bytes);
        return jinja_string_equal(a.string, b.string);
    case JINJA_LIST:
    case JINJA_TUPLE:
        jinja_check_stack(run);
        return a.list == b.list || equal_items(run, a.list, b.list);
    case JINJA_DICT:
        jinja_check_stack(run);
        return a.dict == b.dict || equal_dicts(run, a.dict, b.dict);
    case JINJA_RANGE:
        return equal_ranges(a.range, b.range);
    case JINJA_METHOD:
        return jinja_same(a.method->self, b.method->self) && a.method->builtin == b.method->builtin;
    default:
        return a.pointer == b.pointer;
    }
}

bool jinja_same(struct jinja_value a, struct jinja_value b)
{
    if (a.type != b.type) return false;
    switch (a.type) {
    case JINJA_MISSING:
    case JINJA_NONE:
        return true;
    case JINJA_BOOL:
        return a.boolean == b.boolean;
    case JINJA_INT:
        return a.integer == b.integer;
    case JINJA_FLOAT:
        return a.real == b.real;
    case JINJA_STRING:
        return jinja_string_equal(a.string, b.string);
    default:
        return a.pointer == b.pointer;
    }
}

static bool holds(enum jinja_order order, int comparison)
{
    switch (order) {
    case ORDER_LT:
        return comparison < 0;
    case ORDER_LE:
        return comparison <= 0;
    case ORDER_GT:
        return comparison == 1;
    case ORDER_GE:
        return comparison == 0 || comparison == 1;
    }
    return false;
}

bool jinja_order(struct jinja_run *run, enum jinja_order order, struct jinja_value a,
                 struct jinja_value b)
{
    static const char *const signs[] = {"<", "<=", ">", ">="};
    jinja_spend(run, 1);
    if (a.type == JINJA_UNDEFINED) jinja_fail_undefined(run, a);
    if (b.type == JINJA_UNDEFINED) jinja_fail_undefined(run, b);
    if (jinja_is_number(a) && jinja_is_number(b)) {
        const int comparison = compare_numbers(a, b);
        return comparison != 2 && holds(order, comparison);
    }
    if (a.type == JINJA_STRING && b.type == JINJA_STRING) {
        const struct jinja_string *x = a.string, *y = b.string;
        const size_t n = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
        jinja_spend_bytes(run, n);
        int comparison = memcmp(x->bytes, y->bytes, n); /* UTF-8 sorts as its code points do */
        if (!comparison) comparison = x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
        return holds(order, comparison < 0 ? -1 : comparison > 0);
    }
    if ((a.type == JINJA_LIST || a.type == JINJA_TUPLE) && a.type == b.type) {
        jinja_check_stack(run);
        for (size_t i = 0; i < a.list->n && i < b.list->n; i++)
            if (!jinja_equal(run, a.list->items[i], b.list->items[i]))
                return jinja_order(run, order, a.list->items[i], b.list->items[i]);
        return holds(order, a.list->n < b.list->n ? -1 : a.list->n > b.list->n);
    }
    jinja_fail(run, "'%s' not supported between instances of '%s' and '%s'", signs[order],
               jinja_type_name(a), jinja_type_name(b));
}

int64_t jinja_length_or_none(struct jinja_run *run, struct jinja_value value)
{
    switch (value.type) {
    case JINJA_UNDEFINED:
        return 0;
    case JINJA_STRING:
        return (int64_t)value.string->n_chars;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return (int64_t)value.list->n;
    case JINJA_DICT:
        return (int64_t)value.dict->n;
    case JINJA_VIEW:
        return (int64_t)value.view->dict->n;
    case JINJA_RANGE:
        return value.range->n;
    case JINJA_LOOP:
        return jinja_loop_length(run, value.loop);
    default:
        return -1;
    }
}

int64_t jinja_length(struct jinja_run *run, struct jinja_value value)
{
    const int64_t length = jinja_length_or_none(run, value);
    if (length < 0) jinja_fail(run, "object of type '%s' has no len()", jinja_type_name(value));
    return length;
}

/* ---- iteration */

static bool next_nothing(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    (void)run, (void)iter, (void)out;
    return false;
}

static bool next_char(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    const struct jinja_string *string = iter->source.string;
    if (iter->i >= string->n_bytes) return false;
    const char *start = string->bytes + iter->i, *end = start;
    jinja_utf8_get(&end);
    iter->i += (size_t)(end - start);
    *out = make_string(run, start, (size_t)(end - start), 1);
    return true;
}

static bool next_item(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    (void)run;
    const struct jinja_list *list = iter->source.list; /* may have grown or shrunk meanwhile */
    if (iter->i >= list->n) return false;
    *out = list->items[iter->i++];
    return true;
}

static bool next_pair(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    const bool view = iter->source.type == JINJA_VIEW;
    const struct jinja_dict *dict = view ? iter->source.view->dict : iter->source.dict;
    if (iter->n != dict->n) jinja_fail(run, "dictionary changed size during iteration");
    const struct jinja_pair *pair = jinja_dict_next(dict, &iter->i);
    if (!pair) return false;
    if (!view || iter->source.view->kind == VIEW_KEYS)
        *out = pair->key;
    else if (iter->source.view->kind == VIEW_VALUES)
        *out = pair->value;
    else
        *out = jinja_tuple_2(run, pair->key, pair->value);
    return true;
}

static bool next_number(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    (void)run;
    const struct jinja_range *range = iter->source.range;
    if ((int64_t)iter->i >= range->n) return false;
    *out = jinja_int(range->start + (int64_t)iter->i++ * range->step);
    return true;
}

static bool next_of_loop(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    return jinja_loop_next(run, iter->source.loop, out);
}

bool jinja_is_iterable(struct jinja_value value)
{
    switch (value.type) {
    case JINJA_UNDEFINED:
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_VIEW:
    case JINJA_RANGE:
    case JINJA_ITERATOR:
    case JINJA_LOOP:
        return true;
    default:
        return false;
    }
}

struct jinja_iter *jinja_iterate(struct jinja_run *run, struct jinja_value value)
{
    if (value.type == JINJA_ITERATOR) return value.iter;
    if (!jinja_is_iterable(value))
        jinja_fail(run, "'%s' object is not iterable", jinja_type_name(value));
    struct jinja_iter *iter = jinja_alloc_zero(run, sizeof(*iter));
    iter->source = value;
    switch (value.type) {
    case JINJA_STRING:
        iter->next = next_char;
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        iter->next = next_item;
        break;
    case JINJA_DICT:
    case JINJA_VIEW:
        iter->next = next_pair;
        iter->n = value.type == JINJA_VIEW ? value.view->dict->n : value.dict->n;
        break;
    case JINJA_RANGE:
        iter->next = next_number;
        break;
    case JINJA_LOOP:
        iter->next = next_of_loop;
        break;
    default:
        iter->next = next_nothing;
    }
    return iter;
}

struct jinja_value jinja_iterator(struct jinja_run *run,
                                  bool (*next)(struct jinja_run *, struct jinja_iter *,
                                               struct jinja_value *),
                                  struct jinja_value source, void *state)
{
    struct jinja_iter *iter = jinja_alloc_zero(run, sizeof(*iter));
    iter->next = next;
    iter->source = source;
    iter->state = state;
    return (struct jinja_value){.type = JINJA_ITERATOR, .iter = iter};
}

struct jinja_value jinja_to_list(struct jinja_run *run, struct jinja_value value)
{
    const size_t n_known =
        value.type == JINJA_LIST || value.type == JINJA_TUPLE ? value.list->n : 0;
    struct jinja_value list = jinja_list_new(run, n_known);
    struct jinja_iter *iter = jinja_iterate(run, value);
    for (struct jinja_value item; jinja_next(run, iter, &item);)
        jinja_list_append(run, list.list, item);
    return list;
}
