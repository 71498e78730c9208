#include "coordinator/server/format_fields.h"

#include <json-c/json.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/server/grammar_cache.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"
#include "proto/base/log.h"

enum { FORMAT_BYTES_MAX = 256 << 10 };

/* What was found so far. */
struct format {
    const struct field_reader *reader;
    const struct server *server;
    struct grammar *grammar;
    bool given;
};

bool format_fail(const struct field_reader *reader, const char *name, const struct lm_error *err,
                 bool is_schema)
{
    switch (err->status) {
    case LM_E_UNSUPPORTED:
        return field_fail(reader, is_schema ? API_UNSUPPORTED_SCHEMA : API_INVALID_GRAMMAR, name,
                          "is not supported: %s", err->message);
    case LM_E_FORMAT:
    case LM_E_USAGE:
    case LM_E_LIMIT:
        return field_fail(reader, is_schema ? API_INVALID_SCHEMA : API_INVALID_GRAMMAR, name,
                          "is not valid: %s", err->message);
    default:
        return api_fail_status(reader->error, err, name);
    }
}

static bool check_size(const struct field_reader *reader, const char *name, size_t n)
{
    return n <= FORMAT_BYTES_MAX ||
           field_fail(reader, API_INVALID_VALUE, name, "must have at most %d bytes, got %zu",
                      FORMAT_BYTES_MAX, n);
}

/* Only one form may be given. */
static bool note_given(struct format *format, const struct field_reader *reader, const char *name)
{
    if (format->given)
        return field_fail(reader, API_INVALID_VALUE, name,
                          "is a second format: the answer can have only one");
    format->given = true;
    return true;
}

enum form { FORM_SCHEMA, FORM_PRETTY_SCHEMA, FORM_CHOICE, FORM_REGEX, FORM_GBNF };

static enum lm_status make(struct grammar **out, enum form form, struct json_object *value,
                           const char *text, size_t n, struct lm_error *err)
{
    switch (form) {
    case FORM_CHOICE:
        return grammar_from_choice(out, value, err);
    case FORM_REGEX:
        return grammar_from_regex(out, text, n, err);
    case FORM_GBNF:
        return grammar_from_gbnf(out, text, n, err);
    default:
        return grammar_from_schema(out, value, form == FORM_PRETTY_SCHEMA, err);
    }
}

/* The grammar of a text, or of a JSON value with its text; kept from an earlier request if it can
 * be. */
static bool compile(struct format *format, const struct field_reader *reader, const char *name,
                    enum form form, struct json_object *value, const char *text, size_t n)
{
    const struct server *server = format->server;
    const struct grammar_key key = grammar_cache_key(server->grammars, form, text, n);
    const double start_s = log_now_s();
    struct lm_error err;
    if (!check_size(reader, name, n)) return false;
    format->grammar = grammar_cache_find(server->grammars, key);
    if (format->grammar) return true;
    if (make(&format->grammar, form, value, text, n, &err) != LM_OK)
        return format_fail(reader, name, &err, form <= FORM_PRETTY_SCHEMA);
    grammar_cache_add(server->grammars, key, format->grammar);
    metrics_observe(server->metrics, METRICS_GRAMMAR_COMPILE, log_now_s() - start_s);
    return true;
}

/* value: NULL is any object. */
static bool use_schema(struct format *format, const struct field_reader *reader, const char *name,
                       struct json_object *value)
{
    const bool pretty = format->server->settings.json_pretty;
    const char *text = json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN);
    if (value && !json_object_is_type(value, json_type_object) &&
        !json_object_is_type(value, json_type_boolean))
        return field_refuse(reader, API_INVALID_TYPE, name, "a JSON schema", value);
    return compile(format, reader, name, pretty ? FORM_PRETTY_SCHEMA : FORM_SCHEMA, value, text,
                   strlen(text));
}

static bool use_text(struct format *format, const struct field_reader *reader, const char *name,
                     enum form form)
{
    const char *text = NULL;
    size_t n = 0;
    return field_string(reader, name, &text, &n) &&
           compile(format, reader, name, form, NULL, text, n);
}

static bool use_choice(struct format *format, const struct field_reader *reader, const char *name)
{
    struct json_object *choices = NULL;
    if (!field_array(reader, name, FORMAT_BYTES_MAX, &choices)) return false;
    const char *text = json_object_to_json_string_ext(choices, JSON_C_TO_STRING_PLAIN);
    return compile(format, reader, name, FORM_CHOICE, choices, text, strlen(text));
}

static bool read_response_format(struct format *format)
{
    struct json_object *value = NULL, *inner = NULL;
    const char *type = NULL;
    if (!field_object(format->reader, "response_format", &value)) return false;
    if (!value) return true;
    const struct field_reader reader =
        field_reader_inside(format->reader, value, "response_format", -1);
    if (!field_string(&reader, "type", &type, NULL)) return false;
    if (!type) return field_fail(&reader, API_MISSING_FIELD, "type", "is required");
    if (!strcmp(type, "text")) return true;
    if (!note_given(format, format->reader, "response_format")) return false;
    if (!strcmp(type, "json_object"))
        return use_schema(format, &reader, "schema", field_get(&reader, "schema"));
    if (strcmp(type, "json_schema"))
        return field_refuse(&reader, API_INVALID_VALUE, "type", "text, json_object or json_schema",
                            field_get(&reader, "type"));
    if (!field_object(&reader, "json_schema", &inner)) return false;
    if (!inner) return field_fail(&reader, API_MISSING_FIELD, "json_schema", "is required");
    const struct field_reader schema = field_reader_inside(&reader, inner, "json_schema", -1);
    if (!field_get(&schema, "schema"))
        return field_fail(&schema, API_MISSING_FIELD, "schema", "is required");
    return use_schema(format, &schema, "schema", field_get(&schema, "schema"));
}

static bool read_structured(struct format *format)
{
    struct json_object *value = NULL;
    if (!field_object(format->reader, "structured_outputs", &value)) return false;
    if (!value) return true;
    const struct field_reader reader =
        field_reader_inside(format->reader, value, "structured_outputs", -1);
    static const char *const forms[] = {"json", "regex", "choice", "grammar"};
    const char *form = NULL;
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
        if (!field_get(&reader, forms[i])) continue;
        if (!note_given(format, &reader, forms[i])) return false;
        form = forms[i];
    }
    if (!form)
        return field_fail(format->reader, API_INVALID_VALUE, "structured_outputs",
                          "must have one of json, regex, choice and grammar");
    if (!strcmp(form, "json")) return use_schema(format, &reader, form, field_get(&reader, form));
    if (!strcmp(form, "choice")) return use_choice(format, &reader, form);
    return use_text(format, &reader, form, strcmp(form, "regex") ? FORM_GBNF : FORM_REGEX);
}

static bool read_top_level(struct format *format)
{
    const struct field_reader *reader = format->reader;
    struct json_object *schema = field_get(reader, "json_schema");
    if (schema && (!note_given(format, reader, "json_schema") ||
                   !use_schema(format, reader, "json_schema", schema)))
        return false;
    return !field_get(reader, "grammar") || (note_given(format, reader, "grammar") &&
                                             use_text(format, reader, "grammar", FORM_GBNF));
}

bool format_fields_read(struct grammar **out, const struct field_reader *reader,
                        const struct server *server)
{
    struct format format = {.reader = reader, .server = server};
    const bool good =
        read_response_format(&format) && read_structured(&format) && read_top_level(&format);
    if (!good) {
        grammar_unref(format.grammar);
        return false;
    }
    *out = format.grammar;
    return true;
}
