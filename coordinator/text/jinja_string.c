#include "coordinator/text/jinja_string.h"

#include <string.h>

#include "coordinator/text/jinja_builtin.h"
#include "coordinator/text/jinja_format.h"
#include "coordinator/text/jinja_unicode.h"

/* ---- case */

enum { SIGMA = 0x3A3, FINAL_SIGMA = 0x3C2 };

/* A capital sigma ends its word: a cased letter before it and none after. */
static bool ends_word(const struct jinja_string *string, const char *sigma, const char *after)
{
    const char *p = sigma;
    unsigned classes = 0;
    while (p > string->bytes) {
        classes = jinja_char_classes(jinja_utf8_get_before(&p));
        if (!(classes & CHAR_CASE_IGNORABLE)) break;
        classes = 0;
    }
    if (!(classes & CHAR_CASED)) return false;
    const char *const end = string->bytes + string->n_bytes;
    while (after < end) {
        classes = jinja_char_classes(jinja_utf8_get(&after));
        if (!(classes & CHAR_CASE_IGNORABLE)) return !(classes & CHAR_CASED);
    }
    return true;
}

static void put_lower(struct jinja_run *run, struct jinja_buffer *buffer,
                      const struct jinja_string *string, const char *start, const char *after,
                      uint32_t c)
{
    uint32_t out[3];
    if (c == SIGMA && ends_word(string, start, after)) {
        jinja_put_char(run, buffer, FINAL_SIGMA);
        return;
    }
    const unsigned n = jinja_char_lower(c, out);
    for (unsigned i = 0; i < n; i++)
        jinja_put_char(run, buffer, out[i]);
}

static void put_mapped(struct jinja_run *run, struct jinja_buffer *buffer, uint32_t c,
                       unsigned (*map)(uint32_t, uint32_t *))
{
    uint32_t out[3];
    const unsigned n = map(c, out);
    for (unsigned i = 0; i < n; i++)
        jinja_put_char(run, buffer, out[i]);
}

enum case_style { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_SWAP };

static struct jinja_value change_case(struct jinja_run *run, const struct jinja_string *string,
                                      enum case_style style)
{
    struct jinja_buffer buffer = {0};
    const char *p = string->bytes, *const end = p + string->n_bytes;
    bool in_word = false; /* for titles: the character before is cased */
    jinja_spend(run, string->n_chars);
    while (p < end) {
        const char *const start = p;
        const uint32_t c = jinja_utf8_get(&p);
        const unsigned classes = jinja_char_classes(c);
        bool lower = style == CASE_LOWER || (style == CASE_CAPITALIZE && start > string->bytes) ||
                     (style == CASE_TITLE && in_word) ||
                     (style == CASE_SWAP && classes & CHAR_UPPER);
        in_word = classes & CHAR_CASED;
        if (lower)
            put_lower(run, &buffer, string, start, p, c);
        else if (style == CASE_CAPITALIZE || style == CASE_TITLE)
            put_mapped(run, &buffer, c, jinja_char_title);
        else if (style == CASE_UPPER || classes & CHAR_LOWER)
            put_mapped(run, &buffer, c, jinja_char_upper);
        else
            jinja_put(run, &buffer, start, (size_t)(p - start));
    }
    return jinja_string_from(run, &buffer);
}

struct jinja_value jinja_upper(struct jinja_run *run, const struct jinja_string *string)
{
    return change_case(run, string, CASE_UPPER);
}

struct jinja_value jinja_lower(struct jinja_run *run, const struct jinja_string *string)
{
    return change_case(run, string, CASE_LOWER);
}

struct jinja_value jinja_capitalize(struct jinja_run *run, const struct jinja_string *string)
{
    return change_case(run, string, CASE_CAPITALIZE);
}

static bool starts_word(uint32_t c)
{
    return (jinja_char_classes(c) & CHAR_SPACE) || (c < 128 && c && strchr("-({[<", (int)c));
}

struct jinja_value jinja_title_words(struct jinja_run *run, const struct jinja_string *string)
{
    struct jinja_buffer buffer = {0};
    const char *p = string->bytes, *const end = p + string->n_bytes;
    jinja_spend(run, string->n_chars);
    while (p < end) {
        const char *const start = p;
        const uint32_t first = jinja_utf8_get(&p);
        if (starts_word(first)) {
            jinja_put(run, &buffer, start, (size_t)(p - start));
            continue;
        }
        put_mapped(run, &buffer, first, jinja_char_upper);
        const char *const rest = p; /* the word's other letters: lower case, on their own */
        while (p < end) {
            const char *next = p;
            if (starts_word(jinja_utf8_get(&next))) break;
            p = next;
        }
        const struct jinja_string word = {rest, (size_t)(p - rest), 0};
        for (const char *q = rest, *at = q; q < p; at = q) {
            const uint32_t c = jinja_utf8_get(&q);
            put_lower(run, &buffer, &word, at, q, c);
        }
    }
    return jinja_string_from(run, &buffer);
}

/* islower and isupper: some cased letter, none of the other kind. */
static bool all_cased(struct jinja_run *run, const struct jinja_string *string, unsigned wanted,
                      unsigned refused)
{
    jinja_spend(run, string->n_chars);
    const char *p = string->bytes, *const end = p + string->n_bytes;
    bool found = false;
    while (p < end) {
        const unsigned classes = jinja_char_classes(jinja_utf8_get(&p));
        if (classes & (refused | CHAR_TITLE)) return false;
        found |= (classes & wanted) != 0;
    }
    return found;
}

bool jinja_is_lower(struct jinja_run *run, const struct jinja_string *string)
{
    return all_cased(run, string, CHAR_LOWER, CHAR_UPPER);
}

bool jinja_is_upper(struct jinja_run *run, const struct jinja_string *string)
{
    return all_cased(run, string, CHAR_UPPER, CHAR_LOWER);
}

/* ---- stripping and padding */

static bool is_stripped(uint32_t c, const struct jinja_string *chars)
{
    if (!chars) return jinja_char_classes(c) & CHAR_SPACE;
    const char *p = chars->bytes, *const end = p + chars->n_bytes;
    while (p < end)
        if (jinja_utf8_get(&p) == c) return true;
    return false;
}

struct jinja_value jinja_strip(struct jinja_run *run, const struct jinja_string *string,
                               const struct jinja_string *chars, int sides)
{
    const char *start = string->bytes, *end = start + string->n_bytes;
    const size_t cost = 1 + (chars ? chars->n_bytes : 0);
    while (sides & STRIP_LEFT && start < end) {
        const char *next = start;
        jinja_spend(run, cost);
        if (!is_stripped(jinja_utf8_get(&next), chars)) break;
        start = next;
    }
    while (sides & STRIP_RIGHT && end > start) {
        const char *before = end;
        jinja_spend(run, cost);
        if (!is_stripped(jinja_utf8_get_before(&before), chars)) break;
        end = before;
    }
    return jinja_string_view(run, start, (size_t)(end - start));
}

static struct jinja_value pad(struct jinja_run *run, const struct jinja_string *string,
                              size_t n_left, size_t n_right, uint32_t fill)
{
    struct jinja_buffer buffer = {0};
    jinja_put_fill(run, &buffer, fill, n_left);
    jinja_put(run, &buffer, string->bytes, string->n_bytes);
    jinja_put_fill(run, &buffer, fill, n_right);
    return jinja_string_from(run, &buffer);
}

static size_t missing_chars(const struct jinja_string *string, int64_t width)
{
    return width > (int64_t)string->n_chars ? (size_t)width - string->n_chars : 0;
}

struct jinja_value jinja_center(struct jinja_run *run, const struct jinja_string *string,
                                int64_t width, uint32_t fill)
{
    const size_t n = missing_chars(string, width);
    const size_t n_left = n / 2 + (n & (size_t)width & 1); /* CPython's rounding */
    return pad(run, string, n_left, n - n_left, fill);
}

/* ---- searching */

/* string[start:end] as bytes, for methods that take such bounds; false: start is past the end. */
static bool window(struct jinja_run *run, const struct jinja_string *string,
                   struct jinja_value start, struct jinja_value end, const char **from,
                   const char **to)
{
    const int64_t n = (int64_t)string->n_chars;
    int64_t low = start.type == JINJA_NONE ? 0 : jinja_arg_int(run, start, 0);
    int64_t high = end.type == JINJA_NONE ? n : jinja_arg_int(run, end, n);
    if (low < 0) low = low + n < 0 ? 0 : low + n;
    if (high < 0) high = high + n < 0 ? 0 : high + n;
    if (high > n) high = n;
    if (low > high) return false;
    if (string->n_bytes != string->n_chars) jinja_spend_bytes(run, string->n_bytes * 4);
    const bool ascii = string->n_bytes == string->n_chars;
    *from = ascii ? string->bytes + low : jinja_utf8_at(string->bytes, (size_t)low);
    *to = ascii ? string->bytes + high : jinja_utf8_at(*from, (size_t)(high - low));
    return true;
}

static const char *search(struct jinja_run *run, const char *from, const char *to,
                          const struct jinja_string *what)
{
    const char *found = memmem(from, (size_t)(to - from), what->bytes, what->n_bytes);
    jinja_spend(run, 1 + (size_t)((found ? found : to) - from) / 16);
    return found;
}

static const char *search_back(struct jinja_run *run, const char *from, const char *to,
                               const struct jinja_string *what)
{
    if ((size_t)(to - from) < what->n_bytes) return NULL;
    for (const char *p = to - what->n_bytes; p >= from; p--) {
        jinja_spend(run, 1 + what->n_bytes / 16);
        if (!memcmp(p, what->bytes, what->n_bytes)) return p;
    }
    return NULL;
}

struct jinja_value jinja_replace(struct jinja_run *run, const struct jinja_string *string,
                                 const struct jinja_string *old, const struct jinja_string *new,
                                 int64_t n_max)
{
    struct jinja_buffer buffer = {0};
    const char *p = string->bytes, *const end = p + string->n_bytes;
    const bool between = old->n_bytes == 0; /* then new goes between all characters */
    for (; n_max != 0; n_max -= n_max > 0) {
        const char *found = between ? p : search(run, p, end, old);
        if (!found) break;
        jinja_put(run, &buffer, p, (size_t)(found - p));
        jinja_put(run, &buffer, new->bytes, new->n_bytes);
        p = found + old->n_bytes;
        if (!between) continue;
        jinja_spend(run, 1);
        if (p == end) break;
        const char *next = p;
        jinja_utf8_get(&next);
        jinja_put(run, &buffer, p, (size_t)(next - p));
        p = next;
    }
    if (p == string->bytes && !buffer.n) return jinja_string_view(run, p, string->n_bytes);
    jinja_put(run, &buffer, p, (size_t)(end - p));
    return jinja_string_from(run, &buffer);
}

struct jinja_value jinja_join(struct jinja_run *run, const struct jinja_string *separator,
                              struct jinja_value items)
{
    struct jinja_buffer buffer = {0};
    struct jinja_iter *iter = jinja_iterate(run, items);
    struct jinja_value item;
    for (size_t i = 0; jinja_next(run, iter, &item); i++) {
        if (item.type != JINJA_STRING)
            jinja_fail(run, "sequence item %zu: expected str instance, %s found", i,
                       jinja_type_name(item));
        if (i) jinja_put(run, &buffer, separator->bytes, separator->n_bytes);
        jinja_put(run, &buffer, item.string->bytes, item.string->n_bytes);
    }
    return jinja_string_from(run, &buffer);
}

/* ---- splitting */

static void append_part(struct jinja_run *run, struct jinja_value list, const char *from,
                        const char *to)
{
    jinja_list_append(run, list.list, jinja_string_view(run, from, (size_t)(to - from)));
}

static void reverse_items(struct jinja_list *list)
{
    for (size_t i = 0; i < list->n / 2; i++) {
        const struct jinja_value swap = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = swap;
    }
}

static struct jinja_value split_at(struct jinja_run *run, const struct jinja_string *string,
                                   const struct jinja_string *separator, int64_t n_max)
{
    struct jinja_value parts = jinja_list_new(run, 0);
    const char *p = string->bytes, *const end = p + string->n_bytes;
    for (const char *found; n_max != 0 && (found = search(run, p, end, separator));
         n_max -= n_max > 0) {
        append_part(run, parts, p, found);
        p = found + separator->n_bytes;
    }
    append_part(run, parts, p, end);
    return parts;
}

static struct jinja_value split_at_back(struct jinja_run *run, const struct jinja_string *string,
                                        const struct jinja_string *separator, int64_t n_max)
{
    struct jinja_value parts = jinja_list_new(run, 0);
    const char *end = string->bytes + string->n_bytes;
    for (const char *found; n_max != 0 && (found = search_back(run, string->bytes, end, separator));
         n_max -= n_max > 0) {
        append_part(run, parts, found + separator->n_bytes, end);
        end = found;
    }
    append_part(run, parts, string->bytes, end);
    reverse_items(parts.list);
    return parts;
}

/* Moves p over characters that are white space (or are not), up to end. */
static const char *skip_forward(struct jinja_run *run, const char *p, const char *end, bool space)
{
    while (p < end) {
        const char *next = p;
        jinja_spend(run, 1);
        if (((jinja_char_classes(jinja_utf8_get(&next)) & CHAR_SPACE) != 0) != space) break;
        p = next;
    }
    return p;
}

static const char *skip_back(struct jinja_run *run, const char *start, const char *p, bool space)
{
    while (p > start) {
        const char *before = p;
        jinja_spend(run, 1);
        if (((jinja_char_classes(jinja_utf8_get_before(&before)) & CHAR_SPACE) != 0) != space)
            break;
        p = before;
    }
    return p;
}

static struct jinja_value split_words(struct jinja_run *run, const struct jinja_string *string,
                                      int64_t n_max)
{
    struct jinja_value parts = jinja_list_new(run, 0);
    const char *const end = string->bytes + string->n_bytes;
    const char *p = skip_forward(run, string->bytes, end, true);
    for (; p < end && n_max != 0; n_max -= n_max > 0) {
        const char *const word_end = skip_forward(run, p, end, false);
        append_part(run, parts, p, word_end);
        p = skip_forward(run, word_end, end, true);
    }
    if (p < end) append_part(run, parts, p, end);
    return parts;
}

static struct jinja_value split_words_back(struct jinja_run *run, const struct jinja_string *string,
                                           int64_t n_max)
{
    struct jinja_value parts = jinja_list_new(run, 0);
    const char *const start = string->bytes;
    const char *p = skip_back(run, start, start + string->n_bytes, true);
    for (; p > start && n_max != 0; n_max -= n_max > 0) {
        const char *const word = skip_back(run, start, p, false);
        append_part(run, parts, word, p);
        p = skip_back(run, start, word, true);
    }
    if (p > start) append_part(run, parts, start, p);
    reverse_items(parts.list);
    return parts;
}

static bool ends_line(uint32_t c)
{
    return (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

struct jinja_value jinja_split_lines(struct jinja_run *run, const struct jinja_string *string,
                                     bool keep_ends)
{
    struct jinja_value lines = jinja_list_new(run, 0);
    const char *p = string->bytes, *const end = p + string->n_bytes;
    jinja_spend(run, string->n_chars);
    for (const char *line = p; line < end; line = p) {
        const char *stop = end;
        while (p < end && stop == end) {
            const char *const start = p;
            const uint32_t c = jinja_utf8_get(&p);
            if (!ends_line(c)) continue;
            stop = start;
            if (c == '\r' && p < end && *p == '\n') p++;
        }
        append_part(run, lines, line, keep_ends ? p : stop);
    }
    return lines;
}

/* ---- the methods */

typedef const struct jinja_value *args;
#define METHOD(function)                                                                           \
    static struct jinja_value function(struct jinja_run *run, struct jinja_value self, args arg,   \
                                       const struct jinja_call *call)
#define UNUSED (void)arg, (void)call

METHOD(method_upper)
{
    UNUSED;
    return jinja_upper(run, self.string);
}

METHOD(method_lower)
{
    UNUSED;
    return jinja_lower(run, self.string);
}

METHOD(method_capitalize)
{
    UNUSED;
    return jinja_capitalize(run, self.string);
}

METHOD(method_title)
{
    UNUSED;
    return change_case(run, self.string, CASE_TITLE);
}

METHOD(method_swapcase)
{
    UNUSED;
    return change_case(run, self.string, CASE_SWAP);
}

/* One character to fill with, a space if not given. */
static uint32_t fill_char(struct jinja_run *run, struct jinja_value arg)
{
    if (arg.type == JINJA_MISSING) return ' ';
    const struct jinja_string *fill = jinja_arg_string(run, arg);
    if (fill->n_chars != 1)
        jinja_fail(run, "the fill character must be exactly one character long");
    const char *p = fill->bytes;
    return jinja_utf8_get(&p);
}

METHOD(method_center)
{
    UNUSED;
    return jinja_center(run, self.string, jinja_arg_int(run, arg[0], 0), fill_char(run, arg[1]));
}

METHOD(method_ljust)
{
    UNUSED;
    const size_t n = missing_chars(self.string, jinja_arg_int(run, arg[0], 0));
    return pad(run, self.string, 0, n, fill_char(run, arg[1]));
}

METHOD(method_rjust)
{
    UNUSED;
    const size_t n = missing_chars(self.string, jinja_arg_int(run, arg[0], 0));
    return pad(run, self.string, n, 0, fill_char(run, arg[1]));
}

METHOD(method_zfill)
{
    UNUSED;
    const struct jinja_string *string = self.string;
    const size_t n = missing_chars(string, jinja_arg_int(run, arg[0], 0));
    struct jinja_buffer buffer = {0};
    const size_t n_sign = string->n_bytes && (*string->bytes == '+' || *string->bytes == '-');
    jinja_put(run, &buffer, string->bytes, n_sign);
    jinja_put_fill(run, &buffer, '0', n);
    jinja_put(run, &buffer, string->bytes + n_sign, string->n_bytes - n_sign);
    return jinja_string_from(run, &buffer);
}

METHOD(method_expandtabs)
{
    UNUSED;
    const int64_t tab = jinja_arg_int(run, arg[0], 8);
    struct jinja_buffer buffer = {0};
    const char *p = self.string->bytes, *const end = p + self.string->n_bytes;
    int64_t column = 0;
    while (p < end) {
        const uint32_t c = jinja_utf8_get(&p);
        if (c == '\t') {
            const int64_t n = tab > 0 ? tab - column % tab : 0;
            jinja_put_fill(run, &buffer, ' ', (size_t)n);
            column += n;
            continue;
        }
        jinja_put_char(run, &buffer, c);
        column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    return jinja_string_from(run, &buffer);
}

static struct jinja_value strip_method(struct jinja_run *run, struct jinja_value self,
                                       struct jinja_value chars, int sides)
{
    const bool given = chars.type != JINJA_MISSING && chars.type != JINJA_NONE;
    return jinja_strip(run, self.string, given ? jinja_arg_string(run, chars) : NULL, sides);
}

METHOD(method_strip)
{
    UNUSED;
    return strip_method(run, self, arg[0], STRIP_BOTH);
}

METHOD(method_lstrip)
{
    UNUSED;
    return strip_method(run, self, arg[0], STRIP_LEFT);
}

METHOD(method_rstrip)
{
    UNUSED;
    return strip_method(run, self, arg[0], STRIP_RIGHT);
}

static const struct jinja_string *separator_of(struct jinja_run *run, struct jinja_value arg)
{
    if (arg.type == JINJA_MISSING || arg.type == JINJA_NONE) return NULL;
    const struct jinja_string *separator = jinja_arg_string(run, arg);
    if (!separator->n_bytes) jinja_fail(run, "empty separator");
    return separator;
}

METHOD(method_split)
{
    UNUSED;
    const struct jinja_string *separator = separator_of(run, arg[0]);
    const int64_t n_max = jinja_arg_int(run, arg[1], -1);
    return separator ? split_at(run, self.string, separator, n_max)
                     : split_words(run, self.string, n_max);
}

METHOD(method_rsplit)
{
    UNUSED;
    const struct jinja_string *separator = separator_of(run, arg[0]);
    const int64_t n_max = jinja_arg_int(run, arg[1], -1);
    return separator ? split_at_back(run, self.string, separator, n_max)
                     : split_words_back(run, self.string, n_max);
}

METHOD(method_splitlines)
{
    UNUSED;
    return jinja_split_lines(run, self.string, jinja_arg_truth(run, arg[0], false));
}

static struct jinja_value three_parts(struct jinja_run *run, const struct jinja_string *string,
                                      const char *at, size_t n, bool found, bool back)
{
    const char *const start = string->bytes, *const end = start + string->n_bytes;
    struct jinja_value parts[3];
    parts[0] = jinja_string_view(run, start, found ? (size_t)(at - start) : string->n_bytes);
    parts[1] = jinja_string_view(run, found ? at : end, found ? n : 0);
    parts[2] = jinja_string_view(run, found ? at + n : end, found ? (size_t)(end - at) - n : 0);
    if (!found && back) {
        const struct jinja_value whole = parts[0];
        parts[0] = parts[2];
        parts[2] = whole;
    }
    return jinja_tuple_new(run, parts, 3);
}

static struct jinja_value part_at(struct jinja_run *run, const struct jinja_string *string,
                                  struct jinja_value arg, bool back)
{
    const struct jinja_string *separator = jinja_arg_string(run, arg);
    if (!separator->n_bytes) jinja_fail(run, "empty separator");
    const char *const end = string->bytes + string->n_bytes;
    const char *found = back ? search_back(run, string->bytes, end, separator)
                             : search(run, string->bytes, end, separator);
    return three_parts(run, string, found, separator->n_bytes, found != NULL, back);
}

METHOD(method_partition)
{
    UNUSED;
    return part_at(run, self.string, arg[0], false);
}

METHOD(method_rpartition)
{
    UNUSED;
    return part_at(run, self.string, arg[0], true);
}

METHOD(method_replace)
{
    UNUSED;
    return jinja_replace(run, self.string, jinja_arg_string(run, arg[0]),
                         jinja_arg_string(run, arg[1]), jinja_arg_int(run, arg[2], -1));
}

METHOD(method_join)
{
    UNUSED;
    return jinja_join(run, self.string, arg[0]);
}

/* Position of arg[0] inside the bounds arg[1], arg[2], or -1. */
static int64_t find_in(struct jinja_run *run, const struct jinja_string *string, args arg,
                       bool back)
{
    const char *from, *to;
    const struct jinja_string *what = jinja_arg_string(run, arg[0]);
    if (!window(run, string, arg[1], arg[2], &from, &to)) return -1;
    const char *found = back ? search_back(run, from, to, what) : search(run, from, to, what);
    if (!found) return -1;
    const size_t n_before = (size_t)(found - string->bytes);
    if (string->n_bytes == string->n_chars) return (int64_t)n_before;
    return (int64_t)jinja_utf8_count(string->bytes, n_before); /* window has paid for it */
}

METHOD(method_find)
{
    UNUSED;
    return jinja_int(find_in(run, self.string, arg, false));
}

METHOD(method_rfind)
{
    UNUSED;
    return jinja_int(find_in(run, self.string, arg, true));
}

METHOD(method_index)
{
    UNUSED;
    const int64_t found = find_in(run, self.string, arg, false);
    if (found < 0) jinja_fail(run, "substring not found");
    return jinja_int(found);
}

METHOD(method_rindex)
{
    UNUSED;
    const int64_t found = find_in(run, self.string, arg, true);
    if (found < 0) jinja_fail(run, "substring not found");
    return jinja_int(found);
}

METHOD(method_count)
{
    UNUSED;
    const char *from, *to;
    const struct jinja_string *what = jinja_arg_string(run, arg[0]);
    if (!window(run, self.string, arg[1], arg[2], &from, &to)) return jinja_int(0);
    if (!what->n_bytes) return jinja_int((int64_t)jinja_utf8_count(from, (size_t)(to - from)) + 1);
    int64_t n = 0;
    for (const char *found; (found = search(run, from, to, what)); from = found + what->n_bytes)
        n++;
    return jinja_int(n);
}

static bool has_affix(struct jinja_run *run, const char *from, const char *to,
                      const struct jinja_string *affix, bool end)
{
    jinja_spend(run, 1 + affix->n_bytes / 16);
    if ((size_t)(to - from) < affix->n_bytes) return false;
    return !memcmp(end ? to - affix->n_bytes : from, affix->bytes, affix->n_bytes);
}

static struct jinja_value test_affix(struct jinja_run *run, const struct jinja_string *string,
                                     args arg, bool end)
{
    const char *from, *to;
    if (arg[0].type != JINJA_TUPLE) jinja_arg_string(run, arg[0]);
    if (!window(run, string, arg[1], arg[2], &from, &to)) return jinja_bool(false);
    if (arg[0].type != JINJA_TUPLE) return jinja_bool(has_affix(run, from, to, arg[0].string, end));
    for (size_t i = 0; i < arg[0].list->n; i++)
        if (has_affix(run, from, to, jinja_arg_string(run, arg[0].list->items[i]), end))
            return jinja_bool(true);
    return jinja_bool(false);
}

METHOD(method_startswith)
{
    UNUSED;
    return test_affix(run, self.string, arg, false);
}

METHOD(method_endswith)
{
    UNUSED;
    return test_affix(run, self.string, arg, true);
}

METHOD(method_removeprefix)
{
    UNUSED;
    const struct jinja_string *string = self.string, *prefix = jinja_arg_string(run, arg[0]);
    if (!has_affix(run, string->bytes, string->bytes + string->n_bytes, prefix, false)) return self;
    return jinja_string_view(run, string->bytes + prefix->n_bytes,
                             string->n_bytes - prefix->n_bytes);
}

METHOD(method_removesuffix)
{
    UNUSED;
    const struct jinja_string *string = self.string, *suffix = jinja_arg_string(run, arg[0]);
    if (!has_affix(run, string->bytes, string->bytes + string->n_bytes, suffix, true)) return self;
    return jinja_string_view(run, string->bytes, string->n_bytes - suffix->n_bytes);
}

METHOD(method_format)
{
    (void)arg;
    return jinja_format_braces(run, self.string, call);
}

METHOD(method_format_map)
{
    UNUSED;
    return jinja_format_map(run, self.string, arg[0]);
}

/* ---- predicates */

static struct jinja_value all_of(struct jinja_run *run, const struct jinja_string *string,
                                 unsigned classes, bool if_empty)
{
    const char *p = string->bytes, *const end = p + string->n_bytes;
    jinja_spend(run, string->n_chars);
    while (p < end)
        if (!(jinja_char_classes(jinja_utf8_get(&p)) & classes)) return jinja_bool(false);
    return jinja_bool(string->n_bytes ? true : if_empty);
}

METHOD(method_isalnum)
{
    UNUSED;
    return all_of(run, self.string, CHAR_ALNUM, false);
}

METHOD(method_isalpha)
{
    UNUSED;
    return all_of(run, self.string, CHAR_ALPHA, false);
}

METHOD(method_isascii)
{
    UNUSED;
    (void)run;
    return jinja_bool(self.string->n_bytes == self.string->n_chars);
}

METHOD(method_isdecimal)
{
    UNUSED;
    return all_of(run, self.string, CHAR_DECIMAL, false);
}

METHOD(method_isdigit)
{
    UNUSED;
    return all_of(run, self.string, CHAR_DIGIT, false);
}

METHOD(method_isidentifier)
{
    UNUSED;
    const char *p = self.string->bytes;
    if (!self.string->n_bytes || !(jinja_char_classes(jinja_utf8_get(&p)) & CHAR_ID_START))
        return jinja_bool(false);
    return all_of(run, self.string, CHAR_ID_CONTINUE, false);
}

METHOD(method_islower)
{
    UNUSED;
    return jinja_bool(jinja_is_lower(run, self.string));
}

METHOD(method_isnumeric)
{
    UNUSED;
    return all_of(run, self.string, CHAR_NUMERIC, false);
}

METHOD(method_isprintable)
{
    UNUSED;
    return all_of(run, self.string, CHAR_PRINTABLE, true);
}

METHOD(method_isspace)
{
    UNUSED;
    return all_of(run, self.string, CHAR_SPACE, false);
}

METHOD(method_istitle)
{
    UNUSED;
    const char *p = self.string->bytes, *const end = p + self.string->n_bytes;
    bool in_word = false, found = false;
    jinja_spend(run, self.string->n_chars);
    while (p < end) {
        const unsigned classes = jinja_char_classes(jinja_utf8_get(&p));
        const bool capital = classes & (CHAR_UPPER | CHAR_TITLE), small = classes & CHAR_LOWER;
        if ((capital && in_word) || (!capital && small && !in_word)) return jinja_bool(false);
        in_word = capital || small;
        found |= in_word;
    }
    return jinja_bool(found);
}

METHOD(method_isupper)
{
    UNUSED;
    return jinja_bool(jinja_is_upper(run, self.string));
}

static const struct jinja_builtin methods[] = {
    {"capitalize", "", method_capitalize},
    {"center", "/width,fillchar?", method_center},
    {"count", "/sub,start?,end?", method_count},
    {"endswith", "/suffix,start?,end?", method_endswith},
    {"expandtabs", "tabsize?", method_expandtabs},
    {"find", "/sub,start?,end?", method_find},
    {"format", NULL, method_format},
    {"format_map", "/mapping", method_format_map},
    {"index", "/sub,start?,end?", method_index},
    {"isalnum", "", method_isalnum},
    {"isalpha", "", method_isalpha},
    {"isascii", "", method_isascii},
    {"isdecimal", "", method_isdecimal},
    {"isdigit", "", method_isdigit},
    {"isidentifier", "", method_isidentifier},
    {"islower", "", method_islower},
    {"isnumeric", "", method_isnumeric},
    {"isprintable", "", method_isprintable},
    {"isspace", "", method_isspace},
    {"istitle", "", method_istitle},
    {"isupper", "", method_isupper},
    {"join", "/iterable", method_join},
    {"ljust", "/width,fillchar?", method_ljust},
    {"lower", "", method_lower},
    {"lstrip", "/chars?", method_lstrip},
    {"partition", "/sep", method_partition},
    {"removeprefix", "/prefix", method_removeprefix},
    {"removesuffix", "/suffix", method_removesuffix},
    {"replace", "/old,new,count?", method_replace},
    {"rfind", "/sub,start?,end?", method_rfind},
    {"rindex", "/sub,start?,end?", method_rindex},
    {"rjust", "/width,fillchar?", method_rjust},
    {"rpartition", "/sep", method_rpartition},
    {"rsplit", "sep?,maxsplit?", method_rsplit},
    {"rstrip", "/chars?", method_rstrip},
    {"split", "sep?,maxsplit?", method_split},
    {"splitlines", "keepends?", method_splitlines},
    {"startswith", "/prefix,start?,end?", method_startswith},
    {"strip", "/chars?", method_strip},
    {"swapcase", "", method_swapcase},
    {"title", "", method_title},
    {"upper", "", method_upper},
    {"zfill", "/width", method_zfill},
};

const struct jinja_builtin *jinja_find_string_method(const struct jinja_string *name)
{
    return JINJA_FIND(methods, name);
}
