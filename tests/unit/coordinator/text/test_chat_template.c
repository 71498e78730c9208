#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "coordinator/text/chat_template.h"

static const struct tm now = {
    .tm_year = 126, .tm_mday = 2, .tm_hour = 3, .tm_wday = 5, .tm_yday = 1};

/* The rendered text, or "STATUS: message"; freed by the next call. */
static const char *render(const char *source, const char *variables)
{
    static char *text;
    static char failure[1100];
    struct chat_template *tmpl = NULL;
    struct json_object *object = NULL;
    struct lm_error err = {0};
    size_t n = 0;
    free(text);
    text = NULL;
    enum lm_status status =
        chat_template_read_variables(&object, variables, strlen(variables), &err);
    if (status == LM_OK) status = chat_template_compile(&tmpl, source, strlen(source), &err);
    if (status == LM_OK) status = chat_template_render(tmpl, object, &now, &text, &n, &err);
    chat_template_destroy(tmpl);
    json_object_put(object);
    if (status == LM_OK) return text;
    assert_int_equal(status, err.status);
    snprintf(failure, sizeof(failure), "%s: %s", lm_status_name(status), err.message);
    return failure;
}

static void test_renders(void **state)
{
    (void)state;
    assert_string_equal(render("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}",
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"h\xC3\xA9\"}]}"),
                        "<user>h\xC3\xA9\n");
    assert_string_equal(render("{{ strftime_now('%d %B %Y') }}", "{}"), "02 January 2026");
    assert_string_equal(render("", "{}"), "");
}

static void test_failures_name_line_and_cause(void **state)
{
    (void)state;
    assert_string_equal(
        render("a\n{% if %}", "{}"),
        "malformed input: line 2: expected an expression, got end of statement block");
    assert_string_equal(render("\n\n{{ x.y }}", "{}"), "malformed input: line 3: 'x' is undefined");
    assert_string_equal(render("{{ raise_exception('no ' ~ 1) }}", "{}"), "usage error: no 1");
    assert_string_equal(render("\n{{ raise_exception(x) }}", "{}"),
                        "usage error: line 2: the template refuses without saying why");
    assert_string_equal(render("\xFF", "{}"), "malformed input: the template is not UTF-8");
    assert_string_equal(render("{{ '\\ud800' }}", "{}"),
                        "malformed input: the template writes a lone surrogate, which is no text");
}

static void test_variables_are_checked(void **state)
{
    (void)state;
    assert_string_equal(render("", "[]"), "malformed input: variables: a JSON object is needed");
    assert_string_equal(
        render("", "{\"a\":1"),
        "malformed input: variables: invalid JSON at byte 6: unexpected end of data");
    assert_string_equal(
        render("", "{\"a\":[1.5e400,\"-99999999999999999999\",-9223372036854775809]}"),
        "malformed input: variables: the integer -9223372036854775809 does not fit 64 bits");
    assert_string_equal(render("{{ a }}", "{\"a\":[9223372036854775807,-9223372036854775808]}"),
                        "[9223372036854775807, -9223372036854775808]");
    assert_string_equal(render("{{ a }}", "{\"a\":9223372036854775808}"),
                        "malformed input: variables: the integer 9223372036854775808 does not fit "
                        "64 bits");
}

#define TEN_BILLION_TIMES(statement)                                                               \
    "{% for i in range(100000) %}{% for k in range(100000) %}" statement "{% endfor %}{% endfor "  \
    "%}"

/* A template cannot take the machine with it: each of these would run, grow or recurse without
 * end. */
static void test_bounds(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% "
        "endfor %}",
        "{{ 'abc' * 1000000000000 }}",
        "{{ [0] * 9223372036854775807 }}",
        "{{ '%1000000s' % 'a' * 100000 }}",
        "{{ 'x'.ljust(9223372036854775807) }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% "
        "endfor %}{{ ns.l }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}",
        "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}",
        "{% set l = [1] %}{{ l|tojson(indent=1000000000) }}",
        "{% for t in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        /* Work that one operation hides: a tuple that holds itself twice over, format fields that
         * write nothing, scans of a long text, keys that are gone, sequences drawn from others. */
        "{% set ns = namespace(t=()) %}{% for i in range(60) %}{% set ns.t = (ns.t, ns.t) %}"
        "{% endfor %}{{ {}.get(ns.t) }}",
        "{% set s = '{0}' * 100000 %}" TEN_BILLION_TIMES("{% set t = s.format('') %}"),
        "{% set ns = namespace(t=('',)) %}"
        "{% for i in range(16) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{% set s = '%s' * 65536 "
        "%}" TEN_BILLION_TIMES("{% set t = s % ns.t %}"),
        "{% set s = 'A' * 8000000 %}" TEN_BILLION_TIMES("{% set t = s is upper %}"),
        "{% set s = 'A' * 8000000 %}" TEN_BILLION_TIMES("{% set t = s.startswith(s) %}"),
        "{% set s = 'A' * 8000000 %}" TEN_BILLION_TIMES("{% set t = s.find('A', 7999999) %}"),
        "{% set d = {} %}{% for i in range(90000) %}{% set _ = d.update({i: 1}) %}{% endfor %}"
        "{% for i in range(89999) %}{% set _ = d.pop(i) %}{% endfor %}" TEN_BILLION_TIMES(
            "{% set t = d|first %}"),
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x|unique %}"
        "{% endfor %}{{ ns.x|list }}",
    };
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        const char *answer = render(sources[i], "{}");
        if (strncmp(answer, "limit exceeded: ", 16))
            fail_msg("%s gives %.200s", sources[i], answer);
    }
}

static void test_deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { DEPTH = 200000 };
    static char source[2 * DEPTH + 64];
    static const char *const pieces[] = {"(", "[", "{a:", "-", "not "};
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        const size_t n = strlen(pieces[i]);
        strcpy(source, "{{ ");
        size_t at = 3;
        for (size_t k = 0; at + n < 2 * DEPTH; k++, at += n)
            memcpy(source + at, pieces[i], n);
        strcpy(source + at, "a");
        assert_true(!strncmp(render(source, "{}"), "limit exceeded: ", 16));
    }
    memcpy(source, "{{ 1", 4);
    for (size_t k = 0; k < DEPTH; k++)
        memcpy(source + 4 + 2 * k, "+1", 2);
    strcpy(source + 4 + 2 * DEPTH, " }}");
    assert_true(!strncmp(render(source, "{}"), "limit exceeded: ", 16));
}

/* Entering a scope costs its variables, and a variable of a far outer loop the way to it. */
static void test_wide_and_deep_scopes_are_bounded(void **state)
{
    (void)state;
    static char source[200000];
    size_t at = (size_t)sprintf(source, "{%% for i in range(100000) %%}{%% for k in range(100000) "
                                        "%%}{%% if false %%}");
    for (int i = 0; i < 2500; i++)
        at += (size_t)sprintf(source + at, "{%% set a%d = 1 %%}", i);
    strcpy(source + at, "{% endif %}{% endfor %}{% endfor %}");
    assert_true(!strncmp(render(source, "{}"), "limit exceeded: ", 16));

    at = 0;
    for (int i = 0; i < 1000; i++)
        at += (size_t)sprintf(source + at, "{%% for a%d in [1] recursive %%}", i);
    at += (size_t)sprintf(source + at, "%s", TEN_BILLION_TIMES("{% if a0 %}{% endif %}"));
    for (int i = 0; i < 1000; i++)
        at += (size_t)sprintf(source + at, "{%% endfor %%}");
    assert_true(!strncmp(render(source, "{}"), "limit exceeded: ", 16));
}

static void test_a_template_serves_many_renders(void **state)
{
    (void)state;
    static const char source[] =
        "{% set l = [1] %}{% set _ = l.append(d.k) %}{% set _ = d.update(k=3) %}{{ l }}{{ d }}";
    struct chat_template *tmpl;
    struct json_object *variables;
    assert_int_equal(chat_template_compile(&tmpl, source, strlen(source), NULL), LM_OK);
    assert_int_equal(chat_template_read_variables(&variables, "{\"d\":{\"k\":2}}", 13, NULL),
                     LM_OK);
    for (int i = 0; i < 2; i++) {
        char *text;
        size_t n;
        assert_int_equal(chat_template_render(tmpl, variables, &now, &text, &n, NULL), LM_OK);
        assert_string_equal(text, "[1, 2]{'k': 3}");
        assert_int_equal(n, strlen(text));
        free(text);
    }
    json_object_put(variables);
    chat_template_destroy(tmpl);
    chat_template_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renders),
        cmocka_unit_test(test_failures_name_line_and_cause),
        cmocka_unit_test(test_variables_are_checked),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_wide_and_deep_scopes_are_bounded),
        cmocka_unit_test(test_a_template_serves_many_renders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
