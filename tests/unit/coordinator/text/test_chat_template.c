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
        cmocka_unit_test(test_a_template_serves_many_renders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
