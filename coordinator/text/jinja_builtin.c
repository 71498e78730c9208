/* Binding of arguments, globals, and the methods of lists, tuples, dicts and cyclers. Filters and
 * tests are in jinja_filter.c, the methods of strings in jinja_string.c. */
#include "coordinator/text/jinja_builtin.h"

#include <string.h>
#include <time.h>

#include "coordinator/text/jinja_operator.h"
#include "coordinator/text/jinja_print.h"
#include "coordinator/text/jinja_string.h"

enum { PARAM_MAX = 8, RANGE_MAX = 100000 /* jinja2's sandbox has the same */ };

typedef const struct jinja_value *args;
#define BUILTIN(function)                                                                          \
    static struct jinja_value function(struct jinja_run *run, struct jinja_value self, args arg,   \
                                       const struct jinja_call *call)
#define UNUSED (void)run, (void)self, (void)arg, (void)call

/* ---- calling */

const struct jinja_builtin *jinja_find_builtin(const struct jinja_builtin *table, size_t n,
                                               const struct jinja_string *name)
{
    size_t low = 0, high = n;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const size_t n_name = strlen(table[middle].name);
        const size_t n_both = n_name < name->n_bytes ? n_name : name->n_bytes;
        int comparison = memcmp(table[middle].name, name->bytes, n_both);
        if (!comparison) comparison = n_name < name->n_bytes ? -1 : n_name > name->n_bytes;
        if (!comparison) return &table[middle];
        if (comparison < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Where in params the name is, or -1. */
static int param_index(const char *params, const struct jinja_string *name)
{
    int i = 0;
    for (const char *p = params; *p; i++) {
        const size_t n = strcspn(p, ",?");
        if (n == name->n_bytes && !memcmp(p, name->bytes, n)) return i;
        p += strcspn(p, ",");
        p += *p == ',';
    }
    return -1;
}

static int count_params(const char *params)
{
    int n = *params != '\0';
    for (const char *p = params; *p; p++)
        n += *p == ',';
    return n;
}

static void check_required(struct jinja_run *run, const struct jinja_builtin *builtin,
                           const char *params, args arg)
{
    int i = 0;
    for (const char *p = params; *p; i++) {
        const size_t n = strcspn(p, ",?");
        if (p[n] != '?' && arg[i].type == JINJA_MISSING)
            jinja_fail(run, "%s() misses its argument '%.*s'", builtin->name, (int)n, p);
        p += strcspn(p, ",");
        p += *p == ',';
    }
}

struct jinja_value jinja_call_builtin(struct jinja_run *run, const struct jinja_builtin *builtin,
                                      struct jinja_value self, const struct jinja_call *call)
{
    struct jinja_value arg[PARAM_MAX] = {{0}}; /* JINJA_MISSING */
    jinja_spend(run, 1);
    if (!builtin->params) return builtin->fn(run, self, NULL, call);
    const bool by_position = *builtin->params == '/';
    const char *const params = builtin->params + by_position;
    const size_t n_param = (size_t)count_params(params);
    if (call->n_positional > n_param)
        jinja_fail(run, "%s() takes at most %zu argument(s)", builtin->name, n_param);
    for (size_t i = 0; i < call->n_positional; i++)
        arg[i] = call->positional[i];
    for (size_t i = 0; i < call->n_named; i++) {
        const struct jinja_string *name = call->named[i].key.string;
        const int at = by_position ? -1 : param_index(params, name);
        if (at < 0)
            jinja_fail(run, "%s() got an unexpected keyword argument '%.*s'", builtin->name,
                       (int)(name->n_bytes & 255), name->bytes);
        if (arg[at].type != JINJA_MISSING)
            jinja_fail(run, "%s() got multiple values for argument '%.*s'", builtin->name,
                       (int)(name->n_bytes & 255), name->bytes);
        arg[at] = call->named[i].value;
    }
    check_required(run, builtin, params, arg);
    return builtin->fn(run, self, arg, call);
}

int64_t jinja_arg_int(struct jinja_run *run, struct jinja_value arg, int64_t if_missing)
{
    int64_t integer;
    if (arg.type == JINJA_MISSING) return if_missing;
    if (arg.type == JINJA_UNDEFINED) jinja_fail_undefined(run, arg);
    if (!jinja_as_int(arg, &integer))
        jinja_fail(run, "'%s' object cannot be interpreted as an integer", jinja_type_name(arg));
    return integer;
}

const struct jinja_string *jinja_arg_string(struct jinja_run *run, struct jinja_value arg)
{
    if (arg.type != JINJA_STRING)
        jinja_fail(run, "argument must be str, not %s", jinja_type_name(arg));
    return arg.string;
}

bool jinja_arg_truth(struct jinja_run *run, struct jinja_value arg, bool if_missing)
{
    return arg.type == JINJA_MISSING ? if_missing : jinja_truth(run, arg);
}

/* ---- sorting */

void jinja_sort(struct jinja_run *run, struct jinja_value *items, struct jinja_value *keys,
                size_t n, bool reverse)
{
    struct jinja_value *const merged_items = jinja_alloc(run, n * sizeof(*items));
    struct jinja_value *const merged_keys = jinja_alloc(run, n * sizeof(*keys));
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width) {
            const size_t middle = low + width < n ? low + width : n;
            const size_t high = low + 2 * width < n ? low + 2 * width : n;
            size_t a = low, b = middle;
            for (size_t at = low; at < high; at++) {
                bool take_b = a == middle;
                if (!take_b && b < high)
                    take_b = reverse ? jinja_order(run, ORDER_LT, keys[a], keys[b])
                                     : jinja_order(run, ORDER_LT, keys[b], keys[a]);
                const size_t from = take_b ? b++ : a++;
                merged_items[at] = items[from];
                merged_keys[at] = keys[from];
            }
        }
        memcpy(items, merged_items, n * sizeof(*items));
        memcpy(keys, merged_keys, n * sizeof(*keys));
        jinja_spend(run, n);
    }
}

/* ---- globals */

BUILTIN(global_range)
{
    UNUSED;
    const int64_t first = jinja_arg_int(run, arg[0], 0);
    const bool has_stop = arg[1].type != JINJA_MISSING;
    const int64_t start = has_stop ? first : 0;
    const int64_t stop = has_stop ? jinja_arg_int(run, arg[1], 0) : first;
    const int64_t step = jinja_arg_int(run, arg[2], 1);
    if (step == 0) jinja_fail(run, "range() arg 3 must not be zero");
    const uint64_t stride = step > 0 ? (uint64_t)step : -(uint64_t)step;
    const uint64_t span =
        step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    const bool empty = step > 0 ? start >= stop : start <= stop;
    const uint64_t n = empty ? 0 : (span - 1) / stride + 1;
    if (n > RANGE_MAX) jinja_fail(run, "range too big: more than %d elements", RANGE_MAX);
    struct jinja_range *range = jinja_alloc(run, sizeof(*range));
    *range = (struct jinja_range){start, stop, step, (int64_t)n};
    return (struct jinja_value){.type = JINJA_RANGE, .range = range};
}

/* Adds what dict() and update() accept: a mapping, or pairs. */
static void update_dict(struct jinja_run *run, struct jinja_dict *dict, struct jinja_value from)
{
    if (from.type == JINJA_DICT) {
        const struct jinja_pair *pair;
        const size_t n_pair = from.dict->n_pair; /* dict may be from itself */
        for (size_t i = 0; i < n_pair && (pair = jinja_dict_next(from.dict, &i));)
            jinja_dict_set(run, dict, pair->key, pair->value);
        return;
    }
    if (from.type == JINJA_UNDEFINED) jinja_fail_undefined(run, from);
    struct jinja_iter *iter = jinja_iterate(run, from);
    for (struct jinja_value item; jinja_next(run, iter, &item);) {
        const struct jinja_list *pair = jinja_to_list(run, item).list;
        if (pair->n != 2)
            jinja_fail(run, "dictionary update sequence element has length %zu; 2 is required",
                       pair->n);
        jinja_dict_set(run, dict, pair->items[0], pair->items[1]);
    }
}

static struct jinja_value make_dict(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_value dict = jinja_dict_new(run);
    if (call->n_positional > 1) jinja_fail(run, "dict expected at most 1 argument");
    if (call->n_positional) update_dict(run, dict.dict, call->positional[0]);
    for (size_t i = 0; i < call->n_named; i++)
        jinja_dict_set(run, dict.dict, call->named[i].key, call->named[i].value);
    return dict;
}

BUILTIN(global_dict)
{
    UNUSED;
    return make_dict(run, call);
}

BUILTIN(global_namespace)
{
    UNUSED;
    struct jinja_value space = make_dict(run, call);
    space.type = JINJA_NAMESPACE;
    return space;
}

BUILTIN(global_raise_exception)
{
    UNUSED;
    const struct jinja_string *message = jinja_to_string(run, arg[0]).string;
    if (!message->n_bytes)
        jinja_fail_as(run, LM_E_USAGE, "line %u: the template refuses without saying why",
                      run->line);
    jinja_fail_as(run, LM_E_USAGE, "%.*s", (int)(message->n_bytes < 4096 ? message->n_bytes : 4096),
                  message->bytes);
}

/* A format for C: a naive datetime has no zone and the clock no fraction of a second. */
static char *c_time_format(struct jinja_run *run, const struct jinja_string *format)
{
    struct jinja_buffer out = {0};
    for (size_t i = 0; i < format->n_bytes; i++) {
        const char *p = format->bytes + i;
        if (*p == '%' && i + 1 < format->n_bytes && strchr("fzZ", p[1])) {
            if (p[1] == 'f') jinja_put_text(run, &out, "000000");
            i++;
        } else {
            const bool pair = *p == '%' && i + 1 < format->n_bytes;
            jinja_put(run, &out, p, pair ? 2 : 1);
            i += pair;
        }
    }
    jinja_put(run, &out, "", 1);
    return out.bytes;
}

BUILTIN(global_strftime_now)
{
    UNUSED;
    const struct jinja_string *format = jinja_arg_string(run, arg[0]);
    const char *const c_format = c_time_format(run, format);
    const size_t n_text = 64 + 64 * format->n_bytes; /* no conversion is longer than 32 each */
    char *text = jinja_alloc(run, n_text);
    struct tm now = *run->now;
    now.tm_gmtoff = 0;
    now.tm_zone = "";
    jinja_spend_bytes(run, n_text);
    return jinja_string_view(run, text, strftime(text, n_text, c_format, &now));
}

/* cycler(a, b, ...) and joiner(separator) are objects with a position. */
struct jinja_cycler {
    const struct jinja_value *items;
    size_t n, position;
};

BUILTIN(global_cycler)
{
    UNUSED;
    if (!call->n_positional || call->n_named)
        jinja_fail(run, "at least one item has to be provided");
    struct jinja_cycler *cycler = jinja_alloc(run, sizeof(*cycler));
    *cycler = (struct jinja_cycler){call->positional, call->n_positional, 0};
    return (struct jinja_value){.type = JINJA_CYCLER, .cycler = cycler};
}

BUILTIN(global_joiner)
{
    UNUSED;
    struct jinja_cycler *joiner = jinja_alloc(run, sizeof(*joiner));
    struct jinja_value *separator = jinja_alloc(run, sizeof(*separator));
    *separator = arg[0].type == JINJA_MISSING ? jinja_text(run, ", ") : arg[0];
    *joiner = (struct jinja_cycler){separator, 1, 0};
    return (struct jinja_value){.type = JINJA_JOINER, .cycler = joiner};
}

struct jinja_value jinja_call_joiner(struct jinja_run *run, struct jinja_value joiner)
{
    if (joiner.cycler->position++) return joiner.cycler->items[0];
    return jinja_text(run, "");
}

struct jinja_value jinja_cycler_current(struct jinja_value cycler)
{
    return cycler.cycler->items[cycler.cycler->position];
}

static const struct jinja_builtin globals[] = {
    {"cycler", NULL, global_cycler},
    {"dict", NULL, global_dict},
    {"joiner", "sep?", global_joiner},
    {"namespace", NULL, global_namespace},
    {"raise_exception", "message", global_raise_exception},
    {"range", "/start,stop?,step?", global_range},
    {"strftime_now", "format", global_strftime_now},
};

const struct jinja_builtin *jinja_find_global(const struct jinja_string *name)
{
    return JINJA_FIND(globals, name);
}

/* ---- methods of cyclers */

BUILTIN(cycler_next)
{
    UNUSED;
    const struct jinja_value current = jinja_cycler_current(self);
    self.cycler->position = (self.cycler->position + 1) % self.cycler->n;
    return current;
}

BUILTIN(cycler_reset)
{
    UNUSED;
    self.cycler->position = 0;
    return jinja_none();
}

static const struct jinja_builtin cycler_methods[] = {
    {"next", "", cycler_next},
    {"reset", "", cycler_reset},
};

/* ---- methods of lists and tuples */

BUILTIN(list_append)
{
    UNUSED;
    jinja_list_append(run, self.list, arg[0]);
    return jinja_none();
}

BUILTIN(list_clear)
{
    UNUSED;
    self.list->n = 0;
    return jinja_none();
}

BUILTIN(list_copy)
{
    UNUSED;
    return jinja_to_list(run, self);
}

BUILTIN(list_count)
{
    UNUSED;
    int64_t n = 0;
    for (size_t i = 0; i < self.list->n; i++)
        n += jinja_equal(run, self.list->items[i], arg[0]);
    return jinja_int(n);
}

BUILTIN(list_extend)
{
    UNUSED;
    const struct jinja_list *more = jinja_to_list(run, arg[0]).list;
    for (size_t i = 0; i < more->n; i++)
        jinja_list_append(run, self.list, more->items[i]);
    return jinja_none();
}

static size_t find_item(struct jinja_run *run, const struct jinja_list *list,
                        struct jinja_value item)
{
    for (size_t i = 0; i < list->n; i++)
        if (jinja_equal(run, list->items[i], item)) return i;
    jinja_fail(run, "the value is not in the list");
}

BUILTIN(list_index)
{
    UNUSED;
    return jinja_int((int64_t)find_item(run, self.list, arg[0]));
}

BUILTIN(list_insert)
{
    UNUSED;
    struct jinja_list *list = self.list;
    int64_t at = jinja_arg_int(run, arg[0], 0);
    if (at < 0) at = at + (int64_t)list->n < 0 ? 0 : at + (int64_t)list->n;
    if (at > (int64_t)list->n) at = (int64_t)list->n;
    jinja_spend(run, list->n);
    jinja_list_append(run, list, arg[1]);
    memmove(list->items + at + 1, list->items + at,
            (list->n - 1 - (size_t)at) * sizeof(*list->items));
    list->items[at] = arg[1];
    return jinja_none();
}

static struct jinja_value remove_at(struct jinja_run *run, struct jinja_list *list, size_t at)
{
    const struct jinja_value item = list->items[at];
    jinja_spend(run, list->n - at);
    memmove(list->items + at, list->items + at + 1, (list->n - 1 - at) * sizeof(*list->items));
    list->n--;
    return item;
}

BUILTIN(list_pop)
{
    UNUSED;
    int64_t at = jinja_arg_int(run, arg[0], -1);
    if (at < 0) at += (int64_t)self.list->n;
    if (!self.list->n) jinja_fail(run, "pop from empty list");
    if (at < 0 || at >= (int64_t)self.list->n) jinja_fail(run, "pop index out of range");
    return remove_at(run, self.list, (size_t)at);
}

BUILTIN(list_remove)
{
    UNUSED;
    remove_at(run, self.list, find_item(run, self.list, arg[0]));
    return jinja_none();
}

BUILTIN(list_reverse)
{
    UNUSED;
    struct jinja_list *list = self.list;
    jinja_spend(run, list->n);
    for (size_t i = 0; i < list->n / 2; i++) {
        const struct jinja_value swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
    return jinja_none();
}

BUILTIN(list_sort)
{
    UNUSED;
    struct jinja_value *keys = jinja_alloc(run, self.list->n * sizeof(*keys));
    if (self.list->n) memcpy(keys, self.list->items, self.list->n * sizeof(*keys));
    jinja_sort(run, self.list->items, keys, self.list->n, jinja_arg_truth(run, arg[0], false));
    return jinja_none();
}

static const struct jinja_builtin list_methods[] = {
    {"append", "/object", list_append},
    {"clear", "", list_clear},
    {"copy", "", list_copy},
    {"count", "/value", list_count},
    {"extend", "/iterable", list_extend},
    {"index", "/value", list_index},
    {"insert", "/index,object", list_insert},
    {"pop", "/index?", list_pop},
    {"remove", "/value", list_remove},
    {"reverse", "", list_reverse},
    {"sort", "reverse?", list_sort},
};

static const struct jinja_builtin tuple_methods[] = {
    {"count", "/value", list_count},
    {"index", "/value", list_index},
};

/* ---- methods of dicts */

static struct jinja_value make_view(struct jinja_run *run, struct jinja_value dict, int kind)
{
    struct jinja_view *view = jinja_alloc(run, sizeof(*view));
    view->dict = dict.dict;
    view->kind = kind;
    return (struct jinja_value){.type = JINJA_VIEW, .view = view};
}

BUILTIN(dict_clear)
{
    UNUSED;
    *self.dict = *jinja_dict_new(run).dict;
    return jinja_none();
}

BUILTIN(dict_copy)
{
    UNUSED;
    struct jinja_value copy = jinja_dict_new(run);
    update_dict(run, copy.dict, self);
    return copy;
}

BUILTIN(dict_get)
{
    UNUSED;
    const struct jinja_value *found = jinja_dict_find(run, self.dict, arg[0]);
    if (found) return *found;
    return arg[1].type == JINJA_MISSING ? jinja_none() : arg[1];
}

BUILTIN(dict_items)
{
    UNUSED;
    return make_view(run, self, VIEW_ITEMS);
}

BUILTIN(dict_keys)
{
    UNUSED;
    return make_view(run, self, VIEW_KEYS);
}

BUILTIN(dict_pop)
{
    UNUSED;
    const struct jinja_value removed = jinja_dict_remove(run, self.dict, arg[0]);
    if (removed.type != JINJA_MISSING) return removed;
    if (arg[1].type == JINJA_MISSING) jinja_fail(run, "pop: the dict has no such key");
    return arg[1];
}

BUILTIN(dict_popitem)
{
    UNUSED;
    struct jinja_dict *dict = self.dict;
    while (dict->n_pair && dict->pairs[dict->n_pair - 1].key.type == JINJA_MISSING)
        dict->n_pair--;
    if (!dict->n) jinja_fail(run, "popitem(): dictionary is empty");
    const struct jinja_pair last = dict->pairs[dict->n_pair - 1];
    jinja_dict_remove(run, dict, last.key);
    return jinja_tuple_2(run, last.key, last.value);
}

BUILTIN(dict_setdefault)
{
    UNUSED;
    const struct jinja_value *found = jinja_dict_find(run, self.dict, arg[0]);
    if (found) return *found;
    const struct jinja_value value = arg[1].type == JINJA_MISSING ? jinja_none() : arg[1];
    jinja_dict_set(run, self.dict, arg[0], value);
    return value;
}

BUILTIN(dict_update)
{
    UNUSED;
    const struct jinja_value more = make_dict(run, call);
    update_dict(run, self.dict, more);
    return jinja_none();
}

BUILTIN(dict_values)
{
    UNUSED;
    return make_view(run, self, VIEW_VALUES);
}

static const struct jinja_builtin dict_methods[] = {
    {"clear", "", dict_clear},
    {"copy", "", dict_copy},
    {"get", "/key,default?", dict_get},
    {"items", "", dict_items},
    {"keys", "", dict_keys},
    {"pop", "/key,default?", dict_pop},
    {"popitem", "", dict_popitem},
    {"setdefault", "/key,default?", dict_setdefault},
    {"update", NULL, dict_update},
    {"values", "", dict_values},
};

const struct jinja_builtin *jinja_find_method(enum jinja_type type, const struct jinja_string *name)
{
    switch (type) {
    case JINJA_STRING:
        return jinja_find_string_method(name);
    case JINJA_LIST:
        return JINJA_FIND(list_methods, name);
    case JINJA_TUPLE:
        return JINJA_FIND(tuple_methods, name);
    case JINJA_DICT:
        return JINJA_FIND(dict_methods, name);
    case JINJA_CYCLER:
        return JINJA_FIND(cycler_methods, name);
    default:
        return NULL;
    }
}
