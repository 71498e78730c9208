#include "coordinator/text/chat_template.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/jinja_eval.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/jinja_print.h"
#include "coordinator/text/jinja_scope.h"
#include "coordinator/text/jinja_unicode.h"

enum { SOURCE_BYTES_MAX = 4 << 20, JSON_DEPTH_MAX = 256 };
static const size_t compile_bytes_max = (size_t)256 << 20;
static const size_t render_bytes_max = (size_t)512 << 20;
static const int64_t step_max = 50 * 1000 * 1000;

struct chat_template {
    struct jinja_run run; /* holds the tree */
    struct jinja_template tree;
};

/* The two functions that a failure deep inside returns to. They touch their locals only before
 * setjmp, so nothing is lost by the jump. */
static enum lm_status compile(struct chat_template *tmpl, const char *source, size_t n)
{
    if (setjmp(tmpl->run.unwind)) return tmpl->run.status;
    tmpl->tree.body = jinja_parse(&tmpl->run, source, n);
    jinja_resolve(&tmpl->run, &tmpl->tree);
    return LM_OK;
}

static enum lm_status render(struct jinja_run *run, const struct jinja_template *tree,
                             struct json_object *variables, struct jinja_buffer *out)
{
    if (setjmp(run->unwind)) return run->status;
    const struct jinja_value inputs = jinja_from_json(run, variables);
    if (inputs.type != JINJA_DICT)
        jinja_fail_as(run, LM_E_USAGE, "the template's variables are not a JSON object");
    jinja_render(run, tree, inputs, out);
    if (!jinja_utf8_check(out->n ? out->bytes : "", out->n, false))
        jinja_fail_as(run, LM_E_FORMAT, "the template writes a lone surrogate, which is no text");
    return LM_OK;
}

enum lm_status chat_template_compile(struct chat_template **out, const char *source, size_t n,
                                     struct lm_error *err)
{
    if (n > SOURCE_BYTES_MAX)
        return lm_fail(err, LM_E_LIMIT, "template: %zu bytes, at most %d are allowed", n,
                       SOURCE_BYTES_MAX);
    struct chat_template *tmpl = calloc(1, sizeof(*tmpl));
    if (!tmpl) return lm_fail(err, LM_E_NO_MEM, "template: no memory for %zu bytes", sizeof(*tmpl));
    jinja_run_init(&tmpl->run, compile_bytes_max, step_max, err);
    const enum lm_status status = compile(tmpl, source, n);
    tmpl->run.err = NULL; /* the caller's, gone after this call */
    if (status != LM_OK) {
        chat_template_destroy(tmpl);
        return status;
    }
    *out = tmpl;
    return LM_OK;
}

void chat_template_destroy(struct chat_template *tmpl)
{
    if (!tmpl) return;
    jinja_run_free(&tmpl->run);
    free(tmpl);
}

enum lm_status chat_template_render(const struct chat_template *tmpl, struct json_object *variables,
                                    const struct tm *now, char **text, size_t *n,
                                    struct lm_error *err)
{
    struct jinja_run run;
    struct jinja_buffer out = {0};
    jinja_run_init(&run, render_bytes_max, step_max, err);
    run.now = now;
    enum lm_status status = render(&run, &tmpl->tree, variables, &out);
    if (status == LM_OK) {
        char *copy = malloc(out.n + 1);
        if (copy) {
            if (out.n) memcpy(copy, out.bytes, out.n);
            copy[out.n] = '\0';
            *text = copy;
            *n = out.n;
        } else {
            status = lm_fail(err, LM_E_NO_MEM, "template: no memory for %zu bytes", out.n + 1);
        }
    }
    jinja_run_free(&run);
    return status;
}

/* The end of the JSON string that starts at p, which is known to be well-formed. */
static const char *skip_string(const char *p)
{
    for (p++; *p != '"'; p++)
        if (*p == '\\') p++;
    return p + 1;
}

/* The first integer of well-formed JSON that does not fit 64 bits, or NULL. */
static const char *find_wide_integer(const char *p)
{
    while (*p) {
        if (*p == '"') {
            p = skip_string(p);
        } else if (*p == '-' || (*p >= '0' && *p <= '9')) {
            char *end;
            errno = 0;
            strtoll(p, &end, 10);
            const bool is_integer = !*end || !strchr(".eE", *end);
            if (is_integer && errno == ERANGE) return p;
            p = end + strspn(end, "0123456789.eE+-");
        } else {
            p++;
        }
    }
    return NULL;
}

enum lm_status chat_template_read_variables(struct json_object **out, const char *json, size_t n,
                                            struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (n >= INT_MAX) return lm_fail(err, LM_E_LIMIT, "variables: %zu bytes are too many", n);
    char *text = malloc(n + 1); /* NUL-terminated for the search above */
    if (!text) return lm_fail(err, LM_E_NO_MEM, "variables: no memory for %zu bytes", n);
    memcpy(text, json, n);
    text[n] = '\0';
    struct json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH_MAX);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    struct json_object *object = json_tokener_parse_ex(tokener, text, (int)n + 1);
    const char *const wide = object ? find_wide_integer(text) : NULL;
    if (!object)
        status = lm_fail(err, LM_E_FORMAT, "variables: invalid JSON at byte %zu: %s",
                         json_tokener_get_parse_end(tokener),
                         json_tokener_error_desc(json_tokener_get_error(tokener)));
    else if (!json_object_is_type(object, json_type_object))
        status = lm_fail(err, LM_E_FORMAT, "variables: a JSON object is needed");
    else if (wide)
        status = lm_fail(err, LM_E_FORMAT, "variables: the integer %.*s does not fit 64 bits",
                         (int)strspn(wide, "-0123456789") % 100, wide);
    json_tokener_free(tokener);
    free(text);
    if (status != LM_OK) {
        json_object_put(object);
        return status;
    }
    *out = object;
    return LM_OK;
}
