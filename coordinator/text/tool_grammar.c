#include "coordinator/text/tool_grammar.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/text/tool_schema.h"
#include "proto/base/byte_buffer.h"

enum { N_PART_MAX = 16 };

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

/* ---- JSON */

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

static enum lm_status json_call(struct grammar_builder *builder, struct json_object *function,
                                bool by_schema, grammar_expr *out, struct lm_error *err)
{
    const char *const name = name_of(function);
    struct sequence call = {0};
    grammar_expr arguments = GRAMMAR_NOTHING;
    const enum lm_status status = json_arguments(builder, function, by_schema, &arguments, err);
    if (status != LM_OK) return status;
    const grammar_expr space = grammar_build_optional(builder, grammar_build_string(builder, " "));
    add(&call, grammar_build_string(builder, "{\"name\":"));
    add(&call, space);
    add(&call, grammar_build_json_string(builder, name, strlen(name)));
    add(&call, grammar_build_string(builder, ","));
    add(&call, space);
    add(&call, grammar_build_string(builder, "\"arguments\":"));
    add(&call, space);
    add(&call, arguments);
    add(&call, grammar_build_string(builder, "}"));
    *out = end_sequence(builder, &call);
    return LM_OK;
}

/* ---- XML */

/* Text between the tags: of a value, or anything. */
static grammar_expr raw_value(struct grammar_builder *builder)
{
    static const char close[] = "</parameter>";
    return grammar_build_text_until(builder, close, sizeof(close) - 1);
}

static grammar_expr closed(struct grammar_builder *builder, grammar_expr value)
{
    struct sequence sequence = {0};
    add(&sequence, value);
    add(&sequence, line_break(builder));
    add(&sequence, grammar_build_string(builder, "</parameter>"));
    return end_sequence(builder, &sequence);
}

/* The strings of an enumeration stand raw, other values as JSON. */
static grammar_expr listed_values(struct grammar_builder *builder, struct json_object *values)
{
    const size_t n = json_object_array_length(values);
    grammar_expr *choices = calloc(n + 1, sizeof(*choices));
    for (size_t i = 0; choices && i < n; i++) {
        struct json_object *value = json_object_array_get_idx(values, i);
        const char *const text =
            json_object_is_type(value, json_type_string)
                ? json_object_get_string(value)
                : json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                            JSON_C_TO_STRING_NOSLASHESCAPE);
        choices[i] = grammar_build_string(builder, text);
    }
    const grammar_expr any = choices ? grammar_build_choice(builder, choices, n) : GRAMMAR_NOTHING;
    free(choices);
    return closed(builder, any);
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

static enum lm_status xml_value(struct grammar_builder *builder, struct json_object *function,
                                const char *key, struct json_object *schema, grammar_expr *out,
                                struct lm_error *err)
{
    struct json_object *values = member(schema, "enum");
    const unsigned types = tool_schema_types(function, key);
    if (json_object_is_type(values, json_type_array)) {
        *out = listed_values(builder, values);
        return LM_OK;
    }
    if (types == TOOL_TYPE_STRING && is_bounded(schema)) {
        const enum lm_status status = grammar_build_raw_string(builder, schema, out, err);
        *out = closed(builder, *out);
        return status;
    }
    if (!types || types & TOOL_TYPE_STRING) { /* any text stands for one of its values */
        *out = raw_value(builder);
        return LM_OK;
    }
    struct json_object *const own = with_definitions(member(function, "parameters"), schema);
    const enum lm_status status = grammar_build_schema(builder, own, out, err);
    json_object_put(own);
    *out = closed(builder, *out);
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

/* <parameter=KEY> VALUE </parameter> */
static grammar_expr xml_parameter(struct grammar_builder *builder, grammar_expr key,
                                  grammar_expr value)
{
    struct sequence parameter = {0};
    add(&parameter, grammar_build_string(builder, "<parameter="));
    add(&parameter, key);
    add(&parameter, grammar_build_string(builder, ">\n"));
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
            if (strpbrk(key, "<>\n")) {
                lm_fail(err, LM_E_UNSUPPORTED, "its name cannot be written by this model");
                return blame(err, function, key);
            }
            if (xml_value(builder, function, key, schema, &value, err) != LM_OK)
                return blame(err, function, key);
            grammar_expr parameter =
                xml_parameter(builder, grammar_build_string(builder, key), value);
            if (!is_required(parameters, key))
                parameter = grammar_build_optional(builder, parameter);
            all = grammar_build_sequence(builder, (grammar_expr[]){all, parameter}, 2);
        }
    }
    *out = all;
    return LM_OK;
}

static grammar_expr any_parameters(struct grammar_builder *builder)
{
    static const struct code_range key[] = {{' ', ';'}, {'=', '='}, {'?', '~'}};
    const grammar_expr name =
        grammar_build_repeat(builder, grammar_build_class(builder, key, 3), 1, 128);
    return grammar_build_repeat(builder, xml_parameter(builder, name, raw_value(builder)), 0,
                                GRAMMAR_UNBOUNDED);
}

static enum lm_status xml_call(struct grammar_builder *builder, struct json_object *function,
                               bool by_schema, grammar_expr *out, struct lm_error *err)
{
    struct sequence call = {0};
    grammar_expr parameters = GRAMMAR_NOTHING;
    if (by_schema) {
        const enum lm_status status = declared_parameters(builder, function, &parameters, err);
        if (status != LM_OK) return status;
    } else {
        parameters = any_parameters(builder);
    }
    add(&call, grammar_build_string(builder, "<function="));
    add(&call, grammar_build_string(builder, name_of(function)));
    add(&call, grammar_build_string(builder, ">"));
    add(&call, line_break(builder));
    add(&call, parameters);
    add(&call, grammar_build_string(builder, "</function>"));
    *out = end_sequence(builder, &call);
    return LM_OK;
}

/* ---- both */

/* One of the tools, without the marks around it. */
static enum lm_status any_call(struct grammar_builder *builder, enum tool_format format,
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
        status = format == TOOL_FORMAT_QWEN_XML
                     ? xml_call(builder, function, by_schema, &calls[i], err)
                     : json_call(builder, function, by_schema, &calls[i], err);
    }
    if (status == LM_OK) *out = grammar_build_choice(builder, calls, n);
    free(calls);
    return status;
}

static grammar_expr start_of(struct grammar_builder *builder, enum tool_format format,
                             grammar_expr call, enum tool_grammar_scope scope, bool parallel)
{
    const grammar_expr gap = line_break(builder);
    const grammar_expr close = grammar_build_sequence(
        builder, (grammar_expr[]){gap, grammar_build_string(builder, "</tool_call>")}, 2);
    struct sequence marked = {0};
    add(&marked, grammar_build_string(builder, "<tool_call>"));
    add(&marked, gap);
    add(&marked, call);
    add(&marked, close);
    const grammar_expr whole = end_sequence(builder, &marked);
    if (scope == TOOL_GRAMMAR_CALL) {
        /* some models leave the first mark out */
        const grammar_expr bare = grammar_build_sequence(
            builder, (grammar_expr[]){call, grammar_build_optional(builder, close)}, 2);
        return format == TOOL_FORMAT_QWEN_XML
                   ? grammar_build_choice(builder, (grammar_expr[]){whole, bare}, 2)
                   : whole;
    }
    /* line breaks stand behind a reasoning block */
    const grammar_expr lead =
        grammar_build_repeat(builder, grammar_build_string(builder, "\n"), 0, 2);
    const grammar_expr next = grammar_build_sequence(builder, (grammar_expr[]){gap, whole}, 2);
    struct sequence answer = {0};
    add(&answer, lead);
    add(&answer, whole);
    if (parallel) add(&answer, grammar_build_repeat(builder, next, 0, GRAMMAR_UNBOUNDED));
    return end_sequence(builder, &answer);
}

enum lm_status tool_grammar_build(struct grammar **out, enum tool_format format,
                                  struct json_object *tools, enum tool_grammar_scope scope,
                                  bool parallel, struct lm_error *err)
{
    struct grammar_builder *builder;
    enum lm_status status = grammar_builder_create(&builder, err);
    if (status != LM_OK) return status;
    grammar_expr call = GRAMMAR_NOTHING;
    status = any_call(builder, format, tools, scope, &call, err);
    if (status == LM_OK)
        status = grammar_builder_finish(out, builder,
                                        start_of(builder, format, call, scope, parallel), err);
    grammar_builder_destroy(builder);
    return status;
}
