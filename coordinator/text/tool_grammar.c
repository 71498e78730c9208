#include "coordinator/text/tool_grammar.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/text/tool_schema.h"
#include "proto/base/byte_buffer.h"

enum { N_PART_MAX = 20 };

struct sequence {
    grammar_expr parts[N_PART_MAX];
    size_t n;
};

static void add(struct sequence *sequence, grammar_expr part)
{
    if (sequence->n < N_PART_MAX) sequence->parts[sequence->n++] = part;
}

static grammar_expr end_sequence(struct grammar_builder *builder, const struct sequence *sequence)
{
    return grammar_build_sequence(builder, sequence->parts, sequence->n);
}

static struct json_object *member(struct json_object *object, const char *name)
{
    return json_object_is_type(object, json_type_object) ? json_object_object_get(object, name)
                                                         : NULL;
}

static const char *name_of(struct json_object *function)
{
    const char *const name = json_object_get_string(member(function, "name"));
    return name ? name : "";
}

static grammar_expr line_break(struct grammar_builder *builder)
{
    return grammar_build_optional(builder, grammar_build_string(builder, "\n"));
}

/* Puts the tool in front of what its schema is refused for. */
static enum lm_status blame(struct lm_error *err, struct json_object *function,
                            const char *parameter)
{
    char reason[sizeof(err->message)];
    if (!err) return LM_E_UNSUPPORTED;
    memcpy(reason, err->message, sizeof(reason));
    return lm_fail(err, err->status, "tool %.128s%s%.128s: %.600s", name_of(function),
                   parameter ? ", parameter " : "", parameter ? parameter : "", reason);
}

/* ---- pieces */

grammar_expr tool_grammar_markup(struct grammar_builder *builder, const char *text)
{
    struct sequence whole = {0};
    if (!text) return GRAMMAR_EMPTY;
    while (*text) {
        const size_t n_plain = strcspn(text, "<[");
        add(&whole, grammar_build_literal(builder, text, n_plain));
        text += n_plain;
        if (!*text) break;
        static const char control[] = {GRAMMAR_CONTROL_BYTE};
        const size_t n = 1 + strcspn(text + 1, "<[");
        add(&whole, grammar_build_optional(builder, grammar_build_literal(builder, control, 1)));
        add(&whole, grammar_build_literal(builder, text, n));
        text += n;
    }
    return end_sequence(builder, &whole);
}

/* ---- objects of arguments */

static enum lm_status json_arguments(struct grammar_builder *builder, struct json_object *function,
                                     bool by_schema, grammar_expr *out, struct lm_error *err)
{
    struct json_object *parameters = member(function, "parameters");
    if (!by_schema) {
        *out = grammar_build_json_object(builder);
        return LM_OK;
    }
    if (!parameters) {
        *out = grammar_build_string(builder, "{}");
        return LM_OK;
    }
    const enum lm_status status = grammar_build_schema(builder, parameters, out, err);
    return status == LM_OK ? LM_OK : blame(err, function, NULL);
}

/* {"name": NAME, "arguments": {...}} */
static grammar_expr object_call(struct grammar_builder *builder, const struct tool_syntax *syntax,
                                struct json_object *function, grammar_expr arguments)
{
    const char *const name = name_of(function);
    struct sequence call = {0};
    const grammar_expr space = grammar_build_optional(builder, grammar_build_string(builder, " "));
    add(&call, grammar_build_string(builder, "{\"name\":"));
    add(&call, space);
    add(&call, grammar_build_json_string(builder, name, strlen(name)));
    add(&call, grammar_build_string(builder, ","));
    add(&call, space);
    add(&call,
        grammar_build_json_string(builder, syntax->arguments_key, strlen(syntax->arguments_key)));
    add(&call, grammar_build_string(builder, ":"));
    add(&call, space);
    add(&call, arguments);
    add(&call, grammar_build_string(builder, "}"));
    return end_sequence(builder, &call);
}

/* What may stand between a name and name_close. */
static grammar_expr behind_name(struct grammar_builder *builder, const struct tool_syntax *syntax)
{
    static const struct code_range digits = {'0', '9'};
    static const char *const words[] = {"", " <|constrain|>json", " json",
                                        "<|channel|>commentary <|constrain|>json",
                                        "<|channel|>commentary json"};
    enum { N_WORDS = sizeof(words) / sizeof(words[0]) };
    grammar_expr choices[N_WORDS];
    if (syntax->numbered)
        return grammar_build_sequence(
            builder,
            (grammar_expr[]){
                grammar_build_string(builder, ":"),
                grammar_build_repeat(builder, grammar_build_class(builder, &digits, 1), 1, 4)},
            2);
    if (!syntax->described) return GRAMMAR_EMPTY;
    for (size_t i = 0; i < N_WORDS; i++)
        choices[i] = tool_grammar_markup(builder, words[i]);
    return grammar_build_choice(builder, choices, N_WORDS);
}

/* From call_open to name_close. */
static grammar_expr call_head(struct grammar_builder *builder, const struct tool_syntax *syntax,
                              struct json_object *function)
{
    struct sequence head = {0};
    add(&head, tool_grammar_markup(builder, syntax->call_open));
    if (syntax->prefix) add(&head, grammar_build_string(builder, syntax->prefix));
    add(&head, grammar_build_string(builder, name_of(function)));
    add(&head, behind_name(builder, syntax));
    add(&head, tool_grammar_markup(builder, syntax->name_close));
    return end_sequence(builder, &head);
}

static grammar_expr arguments_call(struct grammar_builder *builder,
                                   const struct tool_syntax *syntax, struct json_object *function,
                                   grammar_expr arguments)
{
    struct sequence call = {0};
    add(&call, call_head(builder, syntax, function));
    add(&call, arguments);
    add(&call, tool_grammar_markup(builder, syntax->body_close));
    /* the end of a channel's message is the end of the answer */
    if (!syntax->described) add(&call, tool_grammar_markup(builder, syntax->call_close));
    return end_sequence(builder, &call);
}

/* ---- parameters in tags */

/* Text up to value_close: of a value, or anything. */
static grammar_expr raw_value(struct grammar_builder *builder, const struct tool_syntax *syntax)
{
    return grammar_build_text_until(builder, syntax->value_close, strlen(syntax->value_close));
}

static grammar_expr closed(struct grammar_builder *builder, const struct tool_syntax *syntax,
                           grammar_expr value)
{
    struct sequence sequence = {0};
    add(&sequence, value);
    if (syntax->line_breaks) add(&sequence, line_break(builder));
    add(&sequence, tool_grammar_markup(builder, syntax->value_close));
    return end_sequence(builder, &sequence);
}

/* A value with what is said of its type before it. */
static grammar_expr typed(struct grammar_builder *builder, const struct tool_syntax *syntax,
                          bool is_string, grammar_expr value)
{
    if (!syntax->typed) return value;
    const char *const type = is_string ? "true\">" : "false\">";
    return grammar_build_sequence(builder,
                                  (grammar_expr[]){grammar_build_string(builder, type), value}, 2);
}

/* The strings of an enumeration stand raw, other values as JSON. */
static grammar_expr listed_values(struct grammar_builder *builder, const struct tool_syntax *syntax,
                                  struct json_object *values)
{
    const size_t n = json_object_array_length(values);
    grammar_expr *choices = calloc(n + 1, sizeof(*choices));
    for (size_t i = 0; choices && i < n; i++) {
        struct json_object *value = json_object_array_get_idx(values, i);
        const bool is_string = json_object_is_type(value, json_type_string);
        const char *const text =
            is_string ? json_object_get_string(value)
                      : json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                                  JSON_C_TO_STRING_NOSLASHESCAPE);
        choices[i] = typed(builder, syntax, is_string,
                           closed(builder, syntax, grammar_build_string(builder, text)));
    }
    const grammar_expr any = choices ? grammar_build_choice(builder, choices, n) : GRAMMAR_NOTHING;
    free(choices);
    return any;
}

/* A parameter's schema with the definitions that it may refer to; the caller's to put. */
static struct json_object *with_definitions(struct json_object *parameters,
                                            struct json_object *schema)
{
    static const char *const names[] = {"$defs", "definitions"};
    struct json_object *own = json_object_new_object(), *definitions;
    if (!json_object_is_type(schema, json_type_object)) {
        json_object_put(own);
        return json_object_get(schema);
    }
    json_object_object_foreach(schema, key, value)
    {
        json_object_object_add(own, key, json_object_get(value));
    }
    for (size_t i = 0; i < 2; i++)
        if (json_object_object_get_ex(parameters, names[i], &definitions))
            json_object_object_add(own, names[i], json_object_get(definitions));
    return own;
}

static bool is_bounded(struct json_object *schema)
{
    static const char *const names[] = {"pattern", "format", "minLength", "maxLength"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (member(schema, names[i])) return true;
    return false;
}

/* Any value, where the schema says nothing or strings are among others. */
static grammar_expr any_value(struct grammar_builder *builder, const struct tool_syntax *syntax)
{
    const grammar_expr raw = raw_value(builder, syntax);
    if (!syntax->typed) return raw; /* any text stands for one */
    const grammar_expr json = closed(builder, syntax, grammar_build_json_value(builder));
    return grammar_build_choice(
        builder,
        (grammar_expr[]){typed(builder, syntax, true, raw), typed(builder, syntax, false, json)},
        2);
}

static enum lm_status tagged_value(struct grammar_builder *builder,
                                   const struct tool_syntax *syntax, struct json_object *function,
                                   const char *key, struct json_object *schema, grammar_expr *out,
                                   struct lm_error *err)
{
    struct json_object *values = member(schema, "enum");
    const unsigned types = tool_schema_types(function, key);
    enum lm_status status = LM_OK;
    if (json_object_is_type(values, json_type_array)) {
        *out = listed_values(builder, syntax, values);
    } else if (types == TOOL_TYPE_STRING && is_bounded(schema)) {
        status = grammar_build_raw_string(builder, schema, out, err);
        *out = typed(builder, syntax, true, closed(builder, syntax, *out));
    } else if (types == TOOL_TYPE_STRING) {
        *out = typed(builder, syntax, true, raw_value(builder, syntax));
    } else if (!types || types & TOOL_TYPE_STRING) {
        *out = any_value(builder, syntax);
    } else {
        struct json_object *const own = with_definitions(member(function, "parameters"), schema);
        status = grammar_build_schema(builder, own, out, err);
        json_object_put(own);
        *out = typed(builder, syntax, false, closed(builder, syntax, *out));
    }
    return status;
}

static bool is_required(struct json_object *parameters, const char *key)
{
    struct json_object *required = member(parameters, "required");
    const size_t n =
        json_object_is_type(required, json_type_array) ? json_object_array_length(required) : 0;
    for (size_t i = 0; i < n; i++) {
        const char *const name = json_object_get_string(json_object_array_get_idx(required, i));
        if (name && !strcmp(name, key)) return true;
    }
    return false;
}

/* value: with value_close. */
static grammar_expr tagged_parameter(struct grammar_builder *builder,
                                     const struct tool_syntax *syntax, grammar_expr key,
                                     grammar_expr value)
{
    struct sequence parameter = {0};
    add(&parameter, tool_grammar_markup(builder, syntax->key_open));
    add(&parameter, key);
    add(&parameter, tool_grammar_markup(builder, syntax->key_close));
    if (syntax->value_open) add(&parameter, line_break(builder));
    add(&parameter, tool_grammar_markup(builder, syntax->value_open));
    if (syntax->line_breaks) add(&parameter, grammar_build_string(builder, "\n"));
    add(&parameter, value);
    add(&parameter, line_break(builder));
    return end_sequence(builder, &parameter);
}

/* A schema that speaks of more than its properties cannot be held to one parameter at a time. What
 * is wrong inside of it is found by the schemas' own compiler, whose result is not used. */
static enum lm_status check_parameters(struct grammar_builder *builder,
                                       struct json_object *function, struct lm_error *err)
{
    static const char *const names[] = {"anyOf", "oneOf", "allOf", "$ref", "enum", "const"};
    struct json_object *parameters = member(function, "parameters");
    grammar_expr unused;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!member(parameters, names[i])) continue;
        lm_fail(err, LM_E_UNSUPPORTED, "#/%s: parameters are written one by one", names[i]);
        return blame(err, function, NULL);
    }
    if (!parameters || grammar_build_schema(builder, parameters, &unused, err) == LM_OK)
        return LM_OK;
    return blame(err, function, NULL);
}

/* Those that the schema declares, in its order. */
static enum lm_status declared_parameters(struct grammar_builder *builder,
                                          const struct tool_syntax *syntax,
                                          struct json_object *function, grammar_expr *out,
                                          struct lm_error *err)
{
    struct json_object *parameters = member(function, "parameters");
    struct json_object *properties = member(parameters, "properties");
    grammar_expr all = GRAMMAR_EMPTY;
    const enum lm_status status = check_parameters(builder, function, err);
    if (status != LM_OK) return status;
    if (json_object_is_type(properties, json_type_object)) {
        json_object_object_foreach(properties, key, schema)
        {
            grammar_expr value = GRAMMAR_NOTHING;
            if (!*key || strpbrk(key, "<>\n") || strchr(key, syntax->key_close[0])) {
                lm_fail(err, LM_E_UNSUPPORTED, "its name cannot be written by this model");
                return blame(err, function, key);
            }
            if (tagged_value(builder, syntax, function, key, schema, &value, err) != LM_OK)
                return blame(err, function, key);
            grammar_expr parameter =
                tagged_parameter(builder, syntax, grammar_build_string(builder, key), value);
            if (!is_required(parameters, key))
                parameter = grammar_build_optional(builder, parameter);
            all = grammar_build_sequence(builder, (grammar_expr[]){all, parameter}, 2);
        }
    }
    *out = all;
    return LM_OK;
}

static grammar_expr any_parameters(struct grammar_builder *builder,
                                   const struct tool_syntax *syntax)
{
    static const struct code_range key[] = {{' ', '!'}, {'#', ';'}, {'=', '='}, {'?', '~'}};
    const grammar_expr name =
        grammar_build_repeat(builder, grammar_build_class(builder, key, 4), 1, 128);
    return grammar_build_repeat(builder,
                                tagged_parameter(builder, syntax, name, any_value(builder, syntax)),
                                0, GRAMMAR_UNBOUNDED);
}

static enum lm_status tagged_call(struct grammar_builder *builder, const struct tool_syntax *syntax,
                                  struct json_object *function, bool by_schema, grammar_expr *out,
                                  struct lm_error *err)
{
    struct sequence call = {0};
    grammar_expr parameters = GRAMMAR_NOTHING;
    if (by_schema) {
        const enum lm_status status =
            declared_parameters(builder, syntax, function, &parameters, err);
        if (status != LM_OK) return status;
    } else {
        parameters = any_parameters(builder, syntax);
    }
    add(&call, call_head(builder, syntax, function));
    add(&call, line_break(builder));
    add(&call, parameters);
    add(&call, tool_grammar_markup(builder, syntax->call_close));
    *out = end_sequence(builder, &call);
    return LM_OK;
}

/* ---- calls */

static enum lm_status one_call(struct grammar_builder *builder, const struct tool_syntax *syntax,
                               struct json_object *function, bool by_schema, grammar_expr *out,
                               struct lm_error *err)
{
    grammar_expr arguments = GRAMMAR_NOTHING;
    if (syntax->body == TOOL_BODY_PARAMETERS)
        return tagged_call(builder, syntax, function, by_schema, out, err);
    const enum lm_status status = json_arguments(builder, function, by_schema, &arguments, err);
    if (status != LM_OK) return status;
    *out = syntax->body == TOOL_BODY_OBJECT ? object_call(builder, syntax, function, arguments)
                                            : arguments_call(builder, syntax, function, arguments);
    return LM_OK;
}

/* One of the tools, without a section around it. */
static enum lm_status any_call(struct grammar_builder *builder, const struct tool_syntax *syntax,
                               struct json_object *tools, enum tool_grammar_scope scope,
                               grammar_expr *out, struct lm_error *err)
{
    const size_t n = json_object_array_length(tools);
    grammar_expr *calls = calloc(n + 1, sizeof(*calls));
    enum lm_status status = calls ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for %zu tools", n);
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        struct json_object *function = member(json_object_array_get_idx(tools, i), "function");
        const bool by_schema =
            scope == TOOL_GRAMMAR_ANSWER || json_object_get_boolean(member(function, "strict"));
        status = one_call(builder, syntax, function, by_schema, &calls[i], err);
    }
    if (status == LM_OK) *out = grammar_build_choice(builder, calls, n);
    free(calls);
    return status;
}

/* The call, and further ones with the separator in front of each. */
static grammar_expr repeated(struct grammar_builder *builder, grammar_expr call,
                             grammar_expr separator)
{
    const grammar_expr next = grammar_build_sequence(builder, (grammar_expr[]){separator, call}, 2);
    return grammar_build_sequence(
        builder, (grammar_expr[]){call, grammar_build_repeat(builder, next, 0, GRAMMAR_UNBOUNDED)},
        2);
}

/* Calls in their section: one, or as many as may stand in it. */
static grammar_expr section_of(struct grammar_builder *builder, const struct tool_syntax *syntax,
                               grammar_expr call, grammar_expr gap, bool parallel)
{
    struct sequence section = {0};
    grammar_expr separator = gap;
    if (syntax->list)
        separator = grammar_build_sequence(
            builder,
            (grammar_expr[]){grammar_build_string(builder, ","),
                             grammar_build_optional(builder, grammar_build_string(builder, " "))},
            2);
    if (parallel && syntax->many) call = repeated(builder, call, separator);
    if (!syntax->section_open || syntax->only_first) return call;
    add(&section, tool_grammar_markup(builder, syntax->section_open));
    add(&section, syntax->list ? grammar_build_string(builder, "[") : gap);
    add(&section, call);
    add(&section, syntax->list ? grammar_build_string(builder, "]") : gap);
    add(&section, tool_grammar_markup(builder, syntax->section_close));
    return end_sequence(builder, &section);
}

static grammar_expr start_of(struct grammar_builder *builder, const struct tool_syntax *syntax,
                             grammar_expr call, enum tool_grammar_scope scope, bool parallel)
{
    const grammar_expr gap = line_break(builder);
    const grammar_expr section = section_of(builder, syntax, call, gap, parallel);
    if (scope == TOOL_GRAMMAR_CALL) {
        if (!syntax->is_marker || !syntax->section_open) return section;
        /* some models leave the section's mark out, or it came with an earlier call */
        const grammar_expr close = grammar_build_sequence(
            builder, (grammar_expr[]){gap, tool_grammar_markup(builder, syntax->section_close)}, 2);
        const grammar_expr calls = parallel && syntax->many ? repeated(builder, call, gap) : call;
        const grammar_expr bare = grammar_build_sequence(
            builder, (grammar_expr[]){calls, grammar_build_optional(builder, close)}, 2);
        return grammar_build_choice(builder, (grammar_expr[]){section, bare}, 2);
    }
    /* line breaks stand behind a reasoning block */
    const grammar_expr lead =
        grammar_build_repeat(builder, grammar_build_string(builder, "\n"), 0, 2);
    const bool repeats = parallel && !syntax->many && !syntax->described;
    return grammar_build_sequence(
        builder, (grammar_expr[]){lead, repeats ? repeated(builder, section, gap) : section}, 2);
}

enum lm_status tool_grammar_build(struct grammar **out, enum tool_format format,
                                  struct json_object *tools, enum tool_grammar_scope scope,
                                  bool parallel, struct lm_error *err)
{
    const struct tool_syntax *const syntax = tool_format_syntax(format);
    struct grammar_builder *builder;
    enum lm_status status = grammar_builder_create(&builder, err);
    if (status != LM_OK) return status;
    grammar_expr call = GRAMMAR_NOTHING;
    status = any_call(builder, syntax, tools, scope, &call, err);
    if (status == LM_OK)
        status = grammar_builder_finish(out, builder,
                                        start_of(builder, syntax, call, scope, parallel), err);
    grammar_builder_destroy(builder);
    return status;
}
