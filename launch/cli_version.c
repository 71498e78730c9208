/* lean version */
#include <stdio.h>

#include <json-c/json.h>

#include "launch/command.h"

static enum lm_status run_version(struct options *options, struct lm_error *err)
{
    if (!options_flag(options, "json")) {
        printf("lean %s\n", LEAN_VERSION);
        return LM_OK;
    }
    struct json_object *object = json_object_new_object();
    if (!object) return lm_fail(err, LM_E_NO_MEM, "no memory for JSON");
    json_object_object_add(object, "version", json_object_new_string(LEAN_VERSION));
    json_object_object_add(object, "compiler", json_object_new_string(__VERSION__));
    puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
    json_object_put(object);
    return LM_OK;
}

const struct command command_version = {
    .name = "version",
    .usage = "",
    .summary = "print the version",
    .run = run_version,
};
