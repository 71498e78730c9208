/* Readers of byte and time amounts. */
#include "proto/base/units.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Reads a plain decimal number (no sign, no hexadecimal, no "inf"); NULL if there is none. */
static const char *read_decimal(const char *text, double *out)
{
    if (!isdigit((unsigned char)*text) && *text != '.') return NULL;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) return NULL;
    char *end;
    *out = strtod(text, &end);
    return end == text || !isfinite(*out) ? NULL : end;
}

bool units_parse_bytes(const char *text, uint64_t *out)
{
    static const char letters[] = "KMGTPE";
    double value;
    const char *unit = read_decimal(text, &value);
    if (!unit) return false;
    while (*unit == ' ')
        unit++;
    const char *letter = *unit ? strchr(letters, toupper((unsigned char)*unit)) : NULL;
    if (letter) {
        value = ldexp(value, 10 * (int)(letter - letters + 1));
        unit++;
        if (*unit == 'i') unit++;
    }
    if (*unit == 'B' || *unit == 'b') unit++;
    if (*unit || value >= 0x1p64) return false;
    /* Whole byte counts beyond 2^53 must not pass through a double. */
    if (!letter && !strchr(text, '.') && !strpbrk(text, "eE"))
        *out = strtoull(text, NULL, 10);
    else
        *out = (uint64_t)value;
    return true;
}

bool units_parse_seconds(const char *text, double *out)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"ms", 1e-3}, {"us", 1e-6}, {"h", 3600}, {"m", 60}, {"s", 1}};
    double sum = 0, value;
    if (!*text) return false;
    while (*text) {
        const char *unit = read_decimal(text, &value);
        if (!unit) return false;
        if (!*unit) { /* a bare number, alone: "1h30" would be read as half a minute or an hour */
            if (sum > 0) return false;
            *out = value;
            return true;
        }
        size_t i = 0;
        while (i < 5 && strncmp(unit, units[i].name, strlen(units[i].name)))
            i++;
        if (i == 5) return false;
        sum += value * units[i].seconds;
        text = unit + strlen(units[i].name);
    }
    if (!isfinite(sum)) return false;
    *out = sum;
    return true;
}
