/* Strings outside of JSON: the automata of what bounds them, intersected. */
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/grammar/regex.h"
#include "coordinator/grammar/string_format.h"

/* What can stand between tags and is read back as it is. */
static const char between_tags[] = "([^<]*[^<\n])?";

static struct json_object *member(struct json_object *schema, const char *name)
{
    struct json_object *value = NULL;
    if (json_object_is_type(schema, json_type_object))
        json_object_object_get_ex(schema, name, &value);
    return value;
}

/* Puts the keyword in front of why it is refused. */
static enum lm_status blame(enum lm_status status, struct lm_error *err, const char *keyword)
{
    char reason[800] = "";
    if (err) snprintf(reason, sizeof(reason), "%.799s", err->message);
    if (status == LM_E_LIMIT) status = LM_E_UNSUPPORTED;
    return lm_fail(err, status, "%s: %s", keyword, reason);
}

/* Narrows *all by `one`, which is taken over. */
static enum lm_status narrow(struct char_automaton **all, struct char_automaton *one,
                             struct lm_error *err)
{
    struct char_automaton *both = NULL;
    const enum lm_status status = char_automaton_intersect(&both, *all, one, err);
    char_automaton_destroy(one);
    if (status != LM_OK) return status;
    char_automaton_destroy(*all);
    *all = both;
    return LM_OK;
}

static enum lm_status narrow_by_regex(struct char_automaton **all, const char *pattern, size_t n,
                                      bool search, struct lm_error *err)
{
    struct char_automaton *one;
    const enum lm_status status = regex_compile(&one, pattern, n, search, err);
    return status == LM_OK ? narrow(all, one, err) : status;
}

static enum lm_status narrow_by_texts(struct char_automaton **all, struct json_object *schema,
                                      struct lm_error *err)
{
    struct json_object *pattern = member(schema, "pattern"), *format = member(schema, "format");
    const struct string_format *known = json_object_is_type(format, json_type_string)
                                            ? string_format_find(json_object_get_string(format))
                                            : NULL;
    enum lm_status status = LM_OK;
    if (json_object_is_type(pattern, json_type_string))
        status = narrow_by_regex(all, json_object_get_string(pattern),
                                 (size_t)json_object_get_string_len(pattern), true, err);
    if (status != LM_OK) return blame(status, err, "pattern");
    if (known) status = narrow_by_regex(all, known->pattern, strlen(known->pattern), false, err);
    return status == LM_OK ? LM_OK : blame(status, err, "format");
}

static enum lm_status narrow_by_lengths(struct char_automaton **all, struct json_object *schema,
                                        struct lm_error *err)
{
    static const char keywords[] = "minLength, maxLength";
    struct json_object *most = member(schema, "maxLength");
    const int64_t n_least = json_object_get_int64(member(schema, "minLength"));
    const int64_t n_most = most ? json_object_get_int64(most) : GRAMMAR_UNBOUNDED;
    struct char_automaton *one;
    if (n_least < 0 || n_most < n_least || n_least >= GRAMMAR_UNBOUNDED)
        return lm_fail(err, LM_E_FORMAT, "%s: no string is so long", keywords);
    if (!n_least && n_most >= GRAMMAR_UNBOUNDED) return LM_OK;
    enum lm_status status = char_automaton_of_length(
        &one, (uint32_t)n_least, n_most < UINT32_MAX ? (uint32_t)n_most : UINT32_MAX, err);
    if (status == LM_OK) status = narrow(all, one, err);
    return status == LM_OK ? LM_OK : blame(status, err, keywords);
}

enum lm_status grammar_build_raw_string(struct grammar_builder *builder, struct json_object *schema,
                                        grammar_expr *out, struct lm_error *err)
{
    struct char_automaton *all;
    enum lm_status status = regex_compile(&all, between_tags, sizeof(between_tags) - 1, false, err);
    if (status != LM_OK) return status;
    status = narrow_by_texts(&all, schema, err);
    if (status == LM_OK) status = narrow_by_lengths(&all, schema, err);
    if (status == LM_OK)
        *out = grammar_build_automaton(builder, all, CHAR_PLAIN);
    else
        char_automaton_destroy(all);
    return status;
}
