/* Bodies of other dialects translated to those of the chat API, as text that is easy to compare. */
#ifndef LEAN_TESTS_UNIT_COORDINATOR_SERVER_TRANSLATED_H
#define LEAN_TESTS_UNIT_COORDINATOR_SERVER_TRANSLATED_H

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/api_error.h"
#include "tests/unit/cmocka_all.h"

/* The translation, or "PARAM: CODE"; quotes may be written as '. Freed by the next call. */
static inline const char *translated_by(bool (*translate)(struct json_object **chat,
                                                          struct json_object *body,
                                                          struct api_error *error),
                                        const char *body)
{
    static char *text;
    struct json_object *chat = NULL;
    struct api_error error = {0};
    char *json = strdup(body);
    for (char *c = json; *c; c++)
        if (*c == '\'') *c = '"';
    struct json_object *object = json_tokener_parse(json);
    assert_non_null(object);
    free(text);
    text = NULL;
    if (translate(&chat, object, &error))
        text = strdup(json_object_to_json_string_ext(chat, JSON_C_TO_STRING_PLAIN |
                                                               JSON_C_TO_STRING_NOSLASHESCAPE));
    else if (asprintf(&text, "%s: %s", error.param, api_code_name(error.code)) < 0)
        abort();
    for (char *c = text; *c; c++)
        if (*c == '"') *c = '\'';
    json_object_put(chat);
    json_object_put(object);
    free(json);
    return text;
}

#endif
