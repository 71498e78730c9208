/* Lists and ranges of an option's values. */
#include "launch/value_list.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/options.h"

enum { UNIT_BYTES = 8 };

struct range {
    uint64_t first, last, step;
    bool multiplies;
    char unit[UNIT_BYTES];
};

/* Digits and a unit of letters or a percent sign. Returns the end, NULL if it is no such thing. */
static const char *read_amount(const char *text, uint64_t *number, char unit[UNIT_BYTES])
{
    size_t n = 0;
    if (!isdigit((unsigned char)*text)) return NULL;
    char *end;
    *number = strtoull(text, &end, 10);
    while (isalpha((unsigned char)end[n]) || end[n] == '%')
        n++;
    if (n >= UNIT_BYTES || end - text > 18) return NULL;
    memcpy(unit, end, n);
    unit[n] = 0;
    return end + n;
}

static bool read_range(const char *text, struct range *range)
{
    char unit[UNIT_BYTES];
    const char *at = read_amount(text, &range->first, range->unit);
    if (!at || *at != '-') return false;
    at = read_amount(at + 1, &range->last, unit);
    if (!at || strcmp(unit, range->unit)) return false;
    range->step = 1;
    range->multiplies = *at == '*';
    if (!*at) return true;
    if (*at != '+' && *at != '*') return false;
    at = read_amount(at + 1, &range->step, unit);
    return at && !*at && (!*unit || (!range->multiplies && !strcmp(unit, range->unit)));
}

static enum lm_status add(struct value_list *list, const struct option_spec *spec, const char *name,
                          const char *text, struct lm_error *err)
{
    const enum lm_status status = option_check(spec, name, text, err);
    if (status != LM_OK) return status;
    if (!*text) return lm_fail(err, LM_E_USAGE, "%s: a value of the list is empty", name);
    if (list->n == VALUE_LIST_MAX)
        return lm_fail(err, LM_E_USAGE, "%s: more than %d values", name, VALUE_LIST_MAX);
    list->text[list->n] = strdup(text);
    if (!list->text[list->n]) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", name);
    list->n++;
    return LM_OK;
}

static enum lm_status add_range(struct value_list *list, const struct option_spec *spec,
                                const char *name, const char *text, const struct range *range,
                                struct lm_error *err)
{
    char value[40];
    enum lm_status status = LM_OK;
    if (range->last < range->first || range->step < 1 + (uint64_t)range->multiplies ||
        (range->multiplies && !range->first))
        return lm_fail(err, LM_E_USAGE, "%s: the range %.80s does not reach its end", name, text);
    for (uint64_t at = range->first; at <= range->last && status == LM_OK;) {
        snprintf(value, sizeof(value), "%" PRIu64 "%s", at, range->unit);
        status = add(list, spec, name, value, err);
        if (range->multiplies ? at > range->last / range->step : range->step > range->last - at)
            break;
        at = range->multiplies ? at * range->step : at + range->step;
    }
    return status;
}

enum lm_status value_list_parse(struct value_list *out, const struct option_spec *spec,
                                const char *name, const char *text, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    char *const copy = strdup(text);
    *out = (struct value_list){.text = calloc(VALUE_LIST_MAX, sizeof(char *))};
    if (!copy || !out->text) status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", name);
    for (char *at = copy; at && status == LM_OK;) {
        struct range range;
        char *const comma = strchr(at, ',');
        if (comma) *comma = 0;
        status = read_range(at, &range) ? add_range(out, spec, name, at, &range, err)
                                        : add(out, spec, name, at, err);
        at = comma ? comma + 1 : NULL;
    }
    free(copy);
    if (status != LM_OK) value_list_fini(out);
    return status;
}

void value_list_fini(struct value_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        free(list->text[i]);
    free(list->text);
    *list = (struct value_list){0};
}
