/* lean config: what is set, by whom, and whether a file is right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/command.h"
#include "launch/config.h"
#include "launch/model_ref.h"
#include "launch/tuned.h"
#include "proto/base/units.h"
#include "proto/gguf/gguf.h"

static const struct option_spec config_options[] = {
    {"origin", 0, OPTION_FLAG, .help = "with `show`: also where each value comes from"},
    {0},
};
static const struct option_spec *const config_tables[] = {config_options, NULL};

/* A value as the JSON type of its kind. */
static struct json_object *to_json(const struct option_spec *spec, const char *text)
{
    double seconds;
    uint64_t n_bytes;
    if (spec->kind == OPTION_FLAG) return json_object_new_boolean(!strcmp(text, "on"));
    if (spec->kind == OPTION_FLOAT) return json_object_new_double_s(strtod(text, NULL), text);
    if (spec->kind == OPTION_TIME && units_parse_seconds(text, &seconds))
        return json_object_new_double(seconds);
    if (spec->kind == OPTION_SIZE && units_parse_bytes(text, &n_bytes))
        return json_object_new_int64((int64_t)n_bytes);
    if (spec->kind == OPTION_INT && strcmp(text, "auto"))
        return json_object_new_int64(strtoll(text, NULL, 10));
    return json_object_new_string(text);
}

/* The effective value or values of a setting; *out stays NULL when there is none. */
static enum lm_status setting_json(const struct config *config, const struct option_spec *spec,
                                   struct json_object **out, struct lm_error *err)
{
    struct json_object *list = spec->repeat ? json_object_new_array() : NULL;
    char *text = NULL;
    *out = NULL;
    for (size_t i = 0; i == 0 || (spec->repeat && text); i++) {
        const enum lm_status status = config_get(config, spec->key, i, &text, err);
        if (status != LM_OK) {
            json_object_put(list);
            return status;
        }
        const char *value = text || i > 0 ? text : spec->def;
        struct json_object *json = value ? to_json(spec, value) : NULL;
        free(text);
        if (!json) break;
        if (list)
            json_object_array_add(list, json);
        else
            *out = json;
    }
    if (list && json_object_array_length(list))
        *out = list;
    else
        json_object_put(list);
    return LM_OK;
}

/* Puts value into the object of nested sections that a dotted key names. */
static void put_nested(struct json_object *root, const char *key, struct json_object *value)
{
    for (const char *dot; (dot = strchr(key, '.')); key = dot + 1) {
        char section[64];
        struct json_object *child;
        snprintf(section, sizeof(section), "%.*s", (int)(dot - key), key);
        if (!json_object_object_get_ex(root, section, &child)) {
            child = json_object_new_object();
            json_object_object_add(root, section, child);
        }
        root = child;
    }
    json_object_object_add(root, key, value);
}

static enum lm_status show_json(const struct config *config, bool with_origins,
                                struct lm_error *err)
{
    struct json_object *root = json_object_new_object();
    const struct option_spec *spec;
    enum lm_status status = LM_OK;
    for (size_t i = 0; status == LM_OK && (spec = config_setting_at(i)); i++) {
        struct json_object *value;
        status = setting_json(config, spec, &value, err);
        if (status != LM_OK || !value) continue;
        if (with_origins) {
            struct json_object *pair = json_object_new_object();
            json_object_object_add(pair, "value", value);
            json_object_object_add(pair, "origin",
                                   json_object_new_string(config_origin(config, spec->key)));
            value = pair;
        }
        put_nested(root, spec->key, value);
    }
    if (status == LM_OK) puts(json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY));
    json_object_put(root);
    return status;
}

/* With what counts for a model on this machine where nothing else is set. */
static enum lm_status add_tuned(struct config *config, const struct options *options,
                                struct lm_error *err)
{
    struct gguf_file *file;
    char *off = NULL;
    bool used;
    const struct option_spec *spec;
    enum lm_status status = config_get(config, "compute.tuned", 0, &off, err);
    const bool is_off = status == LM_OK && off && strcmp(off, "on");
    free(off);
    if (status != LM_OK || is_off) return status;
    status = model_ref_open(options, options_arg(options, 1), &file, err);
    if (status != LM_OK) return status;
    struct tuned *tuned = tuned_find(file);
    for (size_t i = 0; tuned && status == LM_OK && (spec = tuned_option(i)); i++)
        if (tuned_value(tuned, i))
            status = config_suggest(config, spec->key, tuned_value(tuned, i), "tuned", &used, err);
    tuned_destroy(tuned);
    gguf_close(file);
    return status;
}

static enum lm_status show(struct options *options, struct lm_error *err)
{
    struct config *config;
    enum lm_status status = config_load(&config, options_string(options, "config"), err);
    if (status != LM_OK) return status;
    if (options_n_arg(options) > 1) status = add_tuned(config, options, err);
    if (status != LM_OK) {
        config_destroy(config);
        return status;
    }
    const bool with_origins = options_flag(options, "origin");
    if (options_flag(options, "json")) {
        status = show_json(config, with_origins, err);
    } else {
        char *text = config_write(config, with_origins);
        if (text)
            fputs(text, stdout);
        else
            status = lm_fail(err, LM_E_NO_MEM, "no memory for the configuration");
        free(text);
    }
    config_destroy(config);
    return status;
}

static enum lm_status get(struct options *options, struct lm_error *err)
{
    if (options_n_arg(options) != 2) return lm_fail(err, LM_E_USAGE, "config get takes one KEY");
    const struct option_spec *spec;
    struct config *config;
    struct json_object *value = NULL;
    enum lm_status status = config_find_setting(&spec, options_arg(options, 1), err);
    if (status != LM_OK) return status;
    status = config_load(&config, options_string(options, "config"), err);
    if (status != LM_OK) return status;
    status = setting_json(config, spec, &value, err);
    if (status == LM_OK && !value)
        status = lm_fail(err, LM_E_NOT_FOUND, "%s is not set and has no fixed default", spec->key);
    if (value) {
        const bool bare = !options_flag(options, "json") && !spec->repeat;
        puts(bare ? json_object_get_string(value)
                  : json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN));
        json_object_put(value);
    }
    config_destroy(config);
    return status;
}

/* Checks FILE, or else each file that would be read. */
static enum lm_status check(struct options *options, struct lm_error *err)
{
    const bool json = options_flag(options, "json");
    const char *named = options_n_arg(options) > 1 ? options_arg(options, 1) : NULL;
    struct json_object *good = json_object_new_array();
    enum lm_status status = LM_OK;
    for (size_t i = 0; status == LM_OK; i++) {
        char *path = named ? i == 0 ? strdup(named) : NULL
                           : config_file_at(options_string(options, "config"), i);
        if (!path) break;
        if (named || access(path, F_OK) == 0) {
            status = config_check_file(path, err);
            if (status == LM_OK && !json) printf("%s: good\n", path);
            if (status == LM_OK) json_object_array_add(good, json_object_new_string(path));
        }
        free(path);
    }
    if (status == LM_OK && json) {
        struct json_object *result = json_object_new_object();
        json_object_object_add(result, "good", json_object_get(good));
        puts(json_object_to_json_string_ext(result, JSON_C_TO_STRING_PLAIN));
        json_object_put(result);
    }
    json_object_put(good);
    return status;
}

static enum lm_status path(struct options *options, struct lm_error *err)
{
    (void)err;
    struct json_object *list = json_object_new_array();
    char *file;
    for (size_t i = 0; (file = config_file_at(options_string(options, "config"), i)); i++) {
        const bool exists = access(file, R_OK) == 0;
        struct json_object *entry = json_object_new_object();
        json_object_object_add(entry, "path", json_object_new_string(file));
        json_object_object_add(entry, "exists", json_object_new_boolean(exists));
        json_object_array_add(list, entry);
        if (!options_flag(options, "json")) printf("%s%s\n", file, exists ? "" : " (absent)");
        free(file);
    }
    if (options_flag(options, "json"))
        puts(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN));
    json_object_put(list);
    return LM_OK;
}

static enum lm_status run_config(struct options *options, struct lm_error *err)
{
    static const struct {
        const char *name;
        bool takes_word;
        enum lm_status (*run)(struct options *options, struct lm_error *err);
    } actions[] = {
        {"show", true, show}, {"get", true, get}, {"check", true, check}, {"path", false, path}};
    const char *name = options_n_arg(options) ? options_arg(options, 0) : "show";
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(name, actions[i].name)) continue;
        if (options_n_arg(options) > 1 && !actions[i].takes_word)
            return lm_fail(err, LM_E_USAGE, "config %s takes no argument", name);
        return actions[i].run(options, err);
    }
    return lm_fail(err, LM_E_USAGE, "unknown action '%.80s': show, get, check or path", name);
}

const struct command command_config = {
    .name = "config",
    .usage = "[show [MODEL] | get KEY | check [FILE] | path]",
    .n_arg_max = 2,
    .words = "show|get|check|path",
    .summary = "show the settings and where they come from",
    .details =
        "  show [MODEL]  every effective value, as a configuration file (the default); with\n"
        "                MODEL also what lean bench tune has kept for it\n"
        "  get KEY       one value; exit code 3 if it is not set\n"
        "  check [FILE]  whether a file, or all that would be read, is right\n"
        "  path          the files that would be read, highest precedence first\n\n"
        "Precedence: command line, LEAN_<SECTION>_<KEY> variables, the file of --config or\n"
        "LEAN_CONFIG, the user's file, the installation's file, defaults.",
    .options = config_tables,
    .run = run_config,
};
