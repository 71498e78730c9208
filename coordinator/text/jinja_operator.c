#include "coordinator/text/jinja_operator.h"

#include <math.h>
#include <string.h>

#include "coordinator/text/jinja_builtin.h"
#include "coordinator/text/jinja_eval.h"
#include "coordinator/text/jinja_format.h"
#include "coordinator/text/jinja_unicode.h"

/* ---- arithmetic */

static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

static _Noreturn void fail_operands(struct jinja_run *run, enum jinja_binary operator,
                                    struct jinja_value a, struct jinja_value b)
{
    if (a.type == JINJA_UNDEFINED) jinja_fail_undefined(run, a);
    if (b.type == JINJA_UNDEFINED) jinja_fail_undefined(run, b);
    jinja_fail(run, "unsupported operand type(s) for %s: '%s' and '%s'", signs[operator],
               jinja_type_name(a), jinja_type_name(b));
}

static _Noreturn void fail_overflow(struct jinja_run *run)
{
    jinja_fail(run, "an integer result does not fit 64 bits");
}

static int64_t floor_divide(struct jinja_run *run, int64_t a, int64_t b)
{
    if (b == 0) jinja_fail(run, "integer division or modulo by zero");
    if (b == -1 && a == INT64_MIN) fail_overflow(run);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static int64_t floor_modulo(struct jinja_run *run, int64_t a, int64_t b)
{
    if (b == 0) jinja_fail(run, "integer modulo by zero");
    if (b == -1) return 0;
    const int64_t rest = a % b;
    return rest && (rest < 0) != (b < 0) ? rest + b : rest;
}

static int64_t power(struct jinja_run *run, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    while (exponent) {
        if (exponent & 1 && __builtin_mul_overflow(result, base, &result)) fail_overflow(run);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) fail_overflow(run);
    }
    return result;
}

static struct jinja_value divide_integers(struct jinja_run *run, int64_t a, int64_t b)
{
    if (b == 0) jinja_fail(run, "division by zero");
    return jinja_float((double)((long double)a / (long double)b));
}

static struct jinja_value on_integers(struct jinja_run *run, enum jinja_binary operator, int64_t a,
                                      int64_t b)
{
    int64_t result = 0;
    bool overflow = false;
    switch (operator) {
    case BINARY_ADD:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case BINARY_SUB:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case BINARY_MUL:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case BINARY_DIV:
        return divide_integers(run, a, b);
    case BINARY_FLOORDIV:
        result = floor_divide(run, a, b);
        break;
    case BINARY_MOD:
        result = floor_modulo(run, a, b);
        break;
    case BINARY_POW:
        if (b < 0 && a == 0) jinja_fail(run, "0.0 cannot be raised to a negative power");
        if (b < 0) return jinja_float(pow((double)a, (double)b));
        result = power(run, a, b);
        break;
    }
    if (overflow) fail_overflow(run);
    return jinja_int(result);
}

/* Python's float division: the remainder has the divisor's sign, the quotient is whole. */
static double float_divmod(struct jinja_run *run, double a, double b, double *quotient)
{
    if (b == 0) jinja_fail(run, "float floor division or modulo by zero");
    double rest = fmod(a, b);
    double whole = (a - rest) / b;
    if (rest != 0) {
        if ((b < 0) != (rest < 0)) {
            rest += b;
            whole -= 1;
        }
    } else {
        rest = copysign(0, b);
    }
    if (whole != 0) {
        *quotient = floor(whole);
        if (whole - *quotient > 0.5) *quotient += 1;
    } else {
        *quotient = copysign(0, a / b);
    }
    return rest;
}

static double float_power(struct jinja_run *run, double a, double b)
{
    if (a == 0 && b < 0) jinja_fail(run, "0.0 cannot be raised to a negative power");
    if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
        jinja_fail(run, "a negative number to a fractional power is complex");
    const double result = pow(a, b);
    if (isinf(result) && isfinite(a) && isfinite(b)) jinja_fail(run, "float result out of range");
    return result;
}

static struct jinja_value on_floats(struct jinja_run *run, enum jinja_binary operator, double a,
                                    double b)
{
    double quotient;
    switch (operator) {
    case BINARY_ADD:
        return jinja_float(a + b);
    case BINARY_SUB:
        return jinja_float(a - b);
    case BINARY_MUL:
        return jinja_float(a * b);
    case BINARY_DIV:
        if (b == 0) jinja_fail(run, "float division by zero");
        return jinja_float(a / b);
    case BINARY_FLOORDIV:
        float_divmod(run, a, b, &quotient);
        return jinja_float(quotient);
    case BINARY_MOD:
        return jinja_float(float_divmod(run, a, b, &quotient));
    case BINARY_POW:
        return jinja_float(float_power(run, a, b));
    }
    return jinja_none();
}

static bool is_sequence(struct jinja_value value)
{
    return value.type == JINJA_STRING || value.type == JINJA_LIST || value.type == JINJA_TUPLE;
}

static struct jinja_value join_sequences(struct jinja_run *run, struct jinja_value a,
                                         struct jinja_value b)
{
    if (a.type == JINJA_STRING) {
        struct jinja_buffer buffer = {0};
        jinja_put(run, &buffer, a.string->bytes, a.string->n_bytes);
        jinja_put(run, &buffer, b.string->bytes, b.string->n_bytes);
        return jinja_string_from(run, &buffer);
    }
    struct jinja_value joined = jinja_list_new(run, a.list->n + b.list->n);
    joined.type = a.type;
    for (size_t i = 0; i < a.list->n; i++)
        jinja_list_append(run, joined.list, a.list->items[i]);
    for (size_t i = 0; i < b.list->n; i++)
        jinja_list_append(run, joined.list, b.list->items[i]);
    return joined;
}

static struct jinja_value repeat(struct jinja_run *run, struct jinja_value sequence, int64_t times)
{
    if (times < 0) times = 0;
    if (sequence.type == JINJA_STRING) {
        struct jinja_buffer buffer = {0};
        for (int64_t i = 0; sequence.string->n_bytes && i < times; i++) {
            jinja_spend(run, 1);
            jinja_put(run, &buffer, sequence.string->bytes, sequence.string->n_bytes);
        }
        return jinja_string_from(run, &buffer);
    }
    struct jinja_value repeated = jinja_list_new(run, 0);
    repeated.type = sequence.type;
    const size_t n = sequence.list->n;
    for (int64_t t = 0; n && t < times; t++)
        for (size_t i = 0; i < n; i++)
            jinja_list_append(run, repeated.list, sequence.list->items[i]);
    return repeated;
}

struct jinja_value jinja_binary(struct jinja_run *run, enum jinja_binary operator,
                                struct jinja_value a, struct jinja_value b)
{
    int64_t x, y;
    if (operator== BINARY_MOD && a.type == JINJA_STRING) return jinja_format_percent(run, a, b);
    if (jinja_as_int(a, &x) && jinja_as_int(b, &y)) return on_integers(run, operator, x, y);
    if (jinja_is_number(a) && jinja_is_number(b))
        return on_floats(run, operator, jinja_as_float(a), jinja_as_float(b));
    if (operator== BINARY_ADD && is_sequence(a) && a.type == b.type)
        return join_sequences(run, a, b);
    if (operator== BINARY_MUL && is_sequence(a) && jinja_as_int(b, &y)) return repeat(run, a, y);
    if (operator== BINARY_MUL && is_sequence(b) && jinja_as_int(a, &x)) return repeat(run, b, x);
    fail_operands(run, operator, a, b);
}

struct jinja_value jinja_sign(struct jinja_run *run, bool negate, struct jinja_value value)
{
    int64_t integer;
    if (value.type == JINJA_FLOAT) return jinja_float(negate ? -value.real : value.real);
    if (value.type == JINJA_UNDEFINED) jinja_fail_undefined(run, value);
    if (!jinja_as_int(value, &integer))
        jinja_fail(run, "bad operand type for unary %c: '%s'", negate ? '-' : '+',
                   jinja_type_name(value));
    if (negate && integer == INT64_MIN) fail_overflow(run);
    return jinja_int(negate ? -integer : integer);
}

/* ---- membership */

static bool contains_text(struct jinja_run *run, struct jinja_value container,
                          struct jinja_value item)
{
    if (item.type != JINJA_STRING)
        jinja_fail(run, "'in <string>' requires string as left operand, not %s",
                   jinja_type_name(item));
    jinja_spend_bytes(run, container.string->n_bytes);
    return memmem(container.string->bytes, container.string->n_bytes, item.string->bytes,
                  item.string->n_bytes) != NULL;
}

static bool in_range(const struct jinja_range *range, struct jinja_value item)
{
    int64_t integer;
    if (item.type == JINJA_FLOAT && item.real == floor(item.real) && fabs(item.real) < 1e18)
        integer = (int64_t)item.real;
    else if (!jinja_as_int(item, &integer))
        return false;
    if (!range->n) return false;
    const int64_t last = range->start + (range->n - 1) * range->step;
    const int64_t low = range->step > 0 ? range->start : last;
    const int64_t high = range->step > 0 ? last : range->start;
    const uint64_t offset = (uint64_t)integer - (uint64_t)low; /* the span may exceed int64 */
    const uint64_t stride = range->step > 0 ? (uint64_t)range->step : -(uint64_t)range->step;
    return integer >= low && integer <= high && offset % stride == 0;
}

bool jinja_contains(struct jinja_run *run, struct jinja_value container, struct jinja_value item)
{
    switch (container.type) {
    case JINJA_STRING:
        return contains_text(run, container, item);
    case JINJA_DICT:
        return jinja_dict_find(run, container.dict, item) != NULL;
    case JINJA_VIEW:
        if (container.view->kind == VIEW_KEYS)
            return jinja_dict_find(run, container.view->dict, item) != NULL;
        break;
    case JINJA_RANGE:
        return in_range(container.range, item);
    default:
        if (!jinja_is_iterable(container))
            jinja_fail(run, "argument of type '%s' is not iterable", jinja_type_name(container));
    }
    struct jinja_iter *iter = jinja_iterate(run, container);
    for (struct jinja_value element; jinja_next(run, iter, &element);)
        if (jinja_equal(run, element, item)) return true;
    return false;
}

/* ---- subscripts */

static bool element_at(struct jinja_run *run, struct jinja_value object, int64_t index,
                       struct jinja_value *out)
{
    const int64_t n = jinja_length(run, object);
    if (index < 0) index += n;
    if (index < 0 || index >= n) return false;
    if (object.type == JINJA_RANGE) {
        *out = jinja_int(object.range->start + index * object.range->step);
    } else if (object.type == JINJA_STRING) {
        const struct jinja_string *string = object.string;
        const char *start = string->bytes + index;
        if (string->n_bytes != string->n_chars) {
            jinja_spend_bytes(run, (size_t)index * 4);
            start = jinja_utf8_at(string->bytes, (size_t)index);
        }
        const char *end = start;
        jinja_utf8_get(&end);
        *out = jinja_string_view(run, start, (size_t)(end - start));
    } else {
        *out = object.list->items[index];
    }
    return true;
}

/* object[key] alone, where Python has it; false: it raises TypeError or LookupError. */
static bool find_element(struct jinja_run *run, struct jinja_value object, struct jinja_value key,
                         struct jinja_value *out)
{
    int64_t index;
    switch (object.type) {
    case JINJA_DICT: {
        if (key.type == JINJA_LIST || key.type == JINJA_DICT) return false;
        const struct jinja_value *found = jinja_dict_find(run, object.dict, key);
        if (found) *out = *found;
        return found != NULL;
    }
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return jinja_as_int(key, &index) && element_at(run, object, index, out);
    default:
        return false;
    }
}

bool jinja_find_attribute(struct jinja_run *run, struct jinja_value object,
                          const struct jinja_string *name, struct jinja_value *out)
{
    if (name->n_bytes && name->bytes[0] == '_') return false; /* private: the sandbox hides it */
    switch (object.type) {
    case JINJA_NAMESPACE: {
        const struct jinja_value *found = jinja_dict_find(
            run, object.dict, (struct jinja_value){.type = JINJA_STRING, .string = name});
        if (found) *out = *found;
        return found != NULL;
    }
    case JINJA_MACRO:
    case JINJA_LOOP:
        return jinja_object_attribute(run, object, name, out);
    case JINJA_TUPLE:
        if (object.list->is_group && jinja_string_is(name, "grouper")) {
            *out = object.list->items[0];
            return true;
        }
        if (object.list->is_group && jinja_string_is(name, "list")) {
            *out = object.list->items[1];
            return true;
        }
        break;
    case JINJA_CYCLER:
        if (jinja_string_is(name, "current")) {
            *out = jinja_cycler_current(object);
            return true;
        }
        break;
    default:
        break;
    }
    const struct jinja_builtin *builtin = jinja_find_method(object.type, name);
    if (!builtin) return false;
    struct jinja_method *method = jinja_alloc(run, sizeof(*method));
    *method = (struct jinja_method){object, builtin};
    *out = (struct jinja_value){.type = JINJA_METHOD, .method = method};
    return true;
}

struct jinja_value jinja_get_item(struct jinja_run *run, struct jinja_value object,
                                  struct jinja_value key)
{
    struct jinja_value found;
    if (object.type == JINJA_UNDEFINED) jinja_fail_undefined(run, object);
    if (find_element(run, object, key, &found)) return found;
    if (key.type == JINJA_STRING && jinja_find_attribute(run, object, key.string, &found))
        return found;
    return jinja_undefined_member(run, object, key);
}

struct jinja_value jinja_get_attribute(struct jinja_run *run, struct jinja_value object,
                                       struct jinja_value name)
{
    struct jinja_value found;
    if (object.type == JINJA_UNDEFINED) jinja_fail_undefined(run, object);
    if (jinja_find_attribute(run, object, name.string, &found)) return found;
    if (find_element(run, object, name, &found)) return found;
    return jinja_undefined_member(run, object, name);
}

/* A slice bound, counted from the start and clipped as Python does for this direction. */
static bool bound_of(struct jinja_value value, int64_t n, int64_t if_none, bool forward,
                     int64_t *out)
{
    if (value.type == JINJA_NONE) {
        *out = if_none;
        return true;
    }
    if (!jinja_as_int(value, out)) return false;
    if (*out < 0) {
        *out += n;
        if (*out < 0) *out = forward ? 0 : -1;
    } else if (*out >= n) {
        *out = forward ? n : n - 1;
    }
    return true;
}

static struct jinja_value slice_string(struct jinja_run *run, const struct jinja_string *string,
                                       int64_t start, int64_t step, int64_t n)
{
    const bool ascii = string->n_bytes == string->n_chars;
    if (n == 0) return jinja_text(run, "");
    if (step == 1) {
        if (!ascii) jinja_spend_bytes(run, string->n_bytes * 4);
        const char *first =
            ascii ? string->bytes + start : jinja_utf8_at(string->bytes, (size_t)start);
        const char *end = ascii ? first + n : jinja_utf8_at(first, (size_t)n);
        return jinja_string_view(run, first, (size_t)(end - first));
    }
    struct jinja_buffer buffer = {0};
    const char *p = ascii ? string->bytes + start : jinja_utf8_at(string->bytes, (size_t)start);
    for (int64_t i = 0; i < n; i++) {
        const char *end = p;
        jinja_utf8_get(&end);
        jinja_put(run, &buffer, p, (size_t)(end - p));
        if (i + 1 == n) break;
        jinja_spend(run, 1 + (ascii ? 0 : (size_t)(step < 0 ? -step : step) / 4));
        if (ascii)
            p += step;
        else
            for (int64_t moved = 0; moved != step; moved += step < 0 ? -1 : 1)
                step < 0 ? jinja_utf8_get_before(&p) : jinja_utf8_get(&p);
    }
    return jinja_string_from(run, &buffer);
}

static struct jinja_value slice_range(struct jinja_run *run, const struct jinja_range *range,
                                      int64_t start, int64_t stop, int64_t step, int64_t n)
{
    struct jinja_range *part = jinja_alloc(run, sizeof(*part));
    /* Bounds beyond the last element may wrap; only elements are ever read. */
    const uint64_t base = (uint64_t)range->start, unit = (uint64_t)range->step;
    *part = (struct jinja_range){(int64_t)(base + (uint64_t)start * unit),
                                 (int64_t)(base + (uint64_t)stop * unit),
                                 (int64_t)(unit * (uint64_t)step), n};
    return (struct jinja_value){.type = JINJA_RANGE, .range = part};
}

struct jinja_value jinja_slice(struct jinja_run *run, struct jinja_value object,
                               struct jinja_value start, struct jinja_value stop,
                               struct jinja_value step, bool lenient)
{
    int64_t first, end, stride = 1;
    if (object.type == JINJA_UNDEFINED) jinja_fail_undefined(run, object);
    const bool sliceable = is_sequence(object) || object.type == JINJA_RANGE;
    const int64_t length = sliceable ? jinja_length(run, object) : 0;
    const bool step_fits = step.type == JINJA_NONE || jinja_as_int(step, &stride);
    if (sliceable && step_fits && stride == 0) jinja_fail(run, "slice step cannot be zero");
    const bool forward = stride > 0;
    if (!sliceable || !step_fits ||
        !bound_of(start, length, forward ? 0 : length - 1, forward, &first) ||
        !bound_of(stop, length, forward ? length : -1, forward, &end)) {
        if (lenient) return jinja_undefined_hint(run, "the slice is undefined");
        if (!sliceable) jinja_fail(run, "'%s' object cannot be sliced", jinja_type_name(object));
        jinja_fail(run, "slice indices must be integers or None");
    }
    int64_t n = 0;
    if (stride < -length - 1) stride = -length - 1; /* farther than the end is the end */
    if (stride > length + 1) stride = length + 1;
    if (forward && first < end) n = (end - first - 1) / stride + 1;
    if (!forward && first > end) n = (first - end - 1) / -stride + 1;
    if (object.type == JINJA_STRING) return slice_string(run, object.string, first, stride, n);
    if (object.type == JINJA_RANGE) return slice_range(run, object.range, first, end, stride, n);
    struct jinja_value part = jinja_list_new(run, (size_t)n);
    part.type = object.type;
    for (int64_t i = 0; i < n; i++)
        jinja_list_append(run, part.list, object.list->items[first + i * stride]);
    return part;
}
