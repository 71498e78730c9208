/* Renders many templates in one process, for the tests that compare with jinja2.
 *
 * stdin: one JSON object a line, {"template": TEXT, "inputs": {...}}. stdout: for each one line,
 * {"text": TEXT}, or {"error": MESSAGE, "kind": "syntax" | "runtime" | "raise" | "limit"}; kind
 * "input" where the line itself cannot be read. The clock stands at 2026-01-02 03:04:05. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/text/chat_template.h"

static void add_text(struct json_object *answer, const char *key, const char *text, size_t n)
{
    json_object_object_add(answer, key, json_object_new_string_len(text, (int)n));
}

static void add_error(struct json_object *answer, const struct lm_error *err, const char *kind)
{
    add_text(answer, "error", err->message, strlen(err->message));
    add_text(answer, "kind", kind, strlen(kind));
}

static void run_case(struct json_object *request, struct json_object *answer)
{
    struct tm now = {.tm_year = 126, .tm_mday = 2, .tm_hour = 3, .tm_min = 4, .tm_sec = 5};
    struct json_object *source = json_object_object_get(request, "template");
    struct json_object *inputs = json_object_object_get(request, "inputs");
    struct chat_template *tmpl = NULL;
    struct lm_error err;
    char *text;
    size_t n;
    mktime(&now);
    enum lm_status status = chat_template_compile(&tmpl, json_object_get_string(source),
                                                  (size_t)json_object_get_string_len(source), &err);
    if (status != LM_OK) {
        add_error(answer, &err, status == LM_E_LIMIT ? "limit" : "syntax");
        return;
    }
    status = chat_template_render(tmpl, inputs, &now, &text, &n, &err);
    chat_template_destroy(tmpl);
    if (status != LM_OK) {
        add_error(answer, &err,
                  status == LM_E_USAGE   ? "raise"
                  : status == LM_E_LIMIT ? "limit"
                                         : "runtime");
        return;
    }
    add_text(answer, "text", text, n);
    free(text);
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) {
        struct json_object *answer = json_object_new_object(), *request = NULL;
        struct lm_error err;
        if (chat_template_read_variables(&request, line, (size_t)n, &err) == LM_OK)
            run_case(request, answer);
        else
            add_error(answer, &err, "input");
        puts(json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN));
        json_object_put(answer);
        json_object_put(request);
    }
    free(line);
    return 0;
}
