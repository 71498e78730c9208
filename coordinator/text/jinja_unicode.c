#include "coordinator/text/jinja_unicode.h"

#include <string.h>

struct class_run {
    uint32_t first; /* the run ends where the next one starts */
    uint16_t classes;
};

struct case_range { /* first, first + stride, ..., last each move by delta */
    uint32_t first, last;
    uint32_t stride;
    int32_t delta;
};

struct case_special {
    uint32_t code;
    uint32_t out[3]; /* zeros at the end are unused */
};

#include "coordinator/text/jinja_unicode_data.h"

#define N_OF(table) (sizeof(table) / sizeof((table)[0]))

static const struct class_run *find_run(uint32_t c)
{
    size_t low = 0, high = N_OF(class_runs);
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (class_runs[middle].first <= c)
            low = middle;
        else
            high = middle;
    }
    return &class_runs[low];
}

unsigned jinja_char_classes(uint32_t c)
{
    return find_run(c)->classes;
}

unsigned jinja_char_decimal(uint32_t c)
{
    return (c - find_run(c)->first) % 10;
}

static unsigned map_case(const struct case_range *ranges, size_t n_range,
                         const struct case_special *special, size_t n_special, uint32_t c,
                         uint32_t out[3])
{
    for (size_t i = 0; c > 127 && i < n_special; i++) {
        if (special[i].code != c) continue;
        memcpy(out, special[i].out, sizeof(special[i].out));
        return out[2] ? 3 : 2;
    }
    out[0] = c;
    size_t low = 0, high = n_range; /* the first range that ends at c or later */
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (ranges[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < n_range && ranges[low].first <= c &&
        (c - ranges[low].first) % ranges[low].stride == 0)
        out[0] = (uint32_t)((int64_t)c + ranges[low].delta);
    return 1;
}

unsigned jinja_char_lower(uint32_t c, uint32_t out[3])
{
    return map_case(lower_ranges, N_OF(lower_ranges), lower_special, N_OF(lower_special), c, out);
}

unsigned jinja_char_upper(uint32_t c, uint32_t out[3])
{
    return map_case(upper_ranges, N_OF(upper_ranges), upper_special, N_OF(upper_special), c, out);
}

unsigned jinja_char_title(uint32_t c, uint32_t out[3])
{
    return map_case(title_ranges, N_OF(title_ranges), title_special, N_OF(title_special), c, out);
}

unsigned jinja_utf8_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

static unsigned length_of(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

uint32_t jinja_utf8_get(const char **p)
{
    const unsigned char *s = (const unsigned char *)*p;
    const unsigned n = length_of(s[0]);
    *p += n;
    switch (n) {
    case 1:
        return s[0];
    case 2:
        return (uint32_t)(s[0] & 31) << 6 | (s[1] & 63);
    case 3:
        return (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
    default:
        return (uint32_t)(s[0] & 7) << 18 | (uint32_t)(s[1] & 63) << 12 |
               (uint32_t)(s[2] & 63) << 6 | (s[3] & 63);
    }
}

uint32_t jinja_utf8_get_before(const char **p)
{
    do
        (*p)--;
    while (((unsigned char)**p & 0xC0) == 0x80);
    const char *q = *p;
    return jinja_utf8_get(&q);
}

size_t jinja_utf8_count(const char *bytes, size_t n_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return n;
}

const char *jinja_utf8_at(const char *bytes, size_t index)
{
    while (index--)
        bytes += length_of((unsigned char)*bytes);
    return bytes;
}

bool jinja_utf8_check(const char *bytes, size_t n_bytes, bool surrogates)
{
    const unsigned char *s = (const unsigned char *)bytes, *const end = s + n_bytes;
    while (s < end) {
        if (*s < 0x80) {
            s++;
            continue;
        }
        if (*s < 0xC2 || *s > 0xF4) return false;
        const unsigned n = length_of(*s);
        if ((size_t)(end - s) < n) return false;
        for (unsigned i = 1; i < n; i++)
            if ((s[i] & 0xC0) != 0x80) return false;
        if ((*s == 0xE0 && s[1] < 0xA0) || (*s == 0xF0 && s[1] < 0x90) ||
            (*s == 0xF4 && s[1] > 0x8F))
            return false;
        if (!surrogates && *s == 0xED && s[1] > 0x9F) return false;
        s += n;
    }
    return true;
}
