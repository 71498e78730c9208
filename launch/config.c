/* Layers of configuration merged, weakest first, onto one lean.Config message. */
#include "launch/config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/job.h"
#include "launch/options.h"
#include "proto/base/log.h"
#include "proto/base/nearest.h"
#include "proto/base/read_all.h"
#include "proto/config.pb-c.h"
#include "proto/text/textproto.h"

extern char **environ;

enum { MAX_SETTINGS = 128, MAX_FILE_BYTES = 1 << 20 };

static const char system_path[] = LEAN_CONFIG_DIR "/config.textproto";

/* Variables of ours that are no settings; those behind LEAN_PLUGIN_DIR belong to the test suite. */
static const char *const other_variables[] = {
    "LEAN_CONFIG",     "LEAN_CACHE",       "LEAN_NOHISTORY",  "LEAN_API_KEY",   JOB_SOCKET_VARIABLE,
    "LEAN_PLUGIN_DIR", "LEAN_GOLDEN_DIR",  "LEAN_SOURCE_DIR", "LEAN_BUILD_DIR", "LEAN_EMU_FAIL",
    "LEAN_EMU_VRAM",   "LEAN_EMU_DEVICES", "LEAN_EMU_ORDER"};

/* Settings that no command-line option sets. */
static const struct option_spec config_only[] = {
    {"ref", 0, OPTION_STRING, "REF", .key = "model.ref",
     .help = "the model used when a command is given none: a path"},
    {0},
};

static const struct option_spec *const setting_tables[] = {
    config_only, options_engine, options_cluster, options_sampling, options_serve};

struct config {
    Lean__Config *values;
    char *origins[MAX_SETTINGS]; /* by index of the setting, owned */
    const char *layer;           /* while loading: what sets values now */
    char *path;                  /* of --config, or NULL */
    uint32_t rank;               /* whose override blocks count */
    char host[256];
};

/* ---- settings ---- */

const struct option_spec *config_setting_at(size_t i)
{
    for (size_t t = 0; t < sizeof(setting_tables) / sizeof(setting_tables[0]); t++)
        for (const struct option_spec *spec = setting_tables[t]; spec->name; spec++)
            if (spec->key && i-- == 0) return spec;
    return NULL;
}

/* Index of a key among the settings, -1 if it is none. */
static int setting_index(const char *key)
{
    const struct option_spec *spec;
    for (size_t i = 0; (spec = config_setting_at(i)); i++)
        if (!strcmp(spec->key, key)) return (int)i;
    return -1;
}

enum lm_status config_find_setting(const struct option_spec **out, const char *key,
                                   struct lm_error *err)
{
    const int index = setting_index(key);
    if (index >= 0) {
        *out = config_setting_at((size_t)index);
        return LM_OK;
    }
    struct nearest nearest = {.word = key};
    const struct option_spec *spec;
    for (size_t i = 0; (spec = config_setting_at(i)); i++)
        nearest_offer(&nearest, spec->key);
    const char *near = nearest_name(&nearest);
    lm_fail(err, LM_E_USAGE, "unknown setting '%.80s'%s%s%s", key, near ? ", did you mean " : "",
            near ? near : "", near ? "?" : "");
    return lm_hint(err, "lean config show lists the settings that have a value");
}

/* ---- environment ---- */

const char *config_environment(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

char *config_user_path(const char *variable, const char *fallback, const char *suffix)
{
    const char *folder = config_environment(variable), *home = config_environment("HOME");
    char *path = NULL;
    if (folder && *folder == '/') {
        if (asprintf(&path, "%s/%s", folder, suffix) < 0) return NULL;
    } else if (!home || asprintf(&path, "%s/%s/%s", home, fallback, suffix) < 0) {
        return NULL;
    }
    return path;
}

/* "compute.kv_type" is set by LEAN_COMPUTE_KV_TYPE. */
void config_variable_name(const char *key, char *name, size_t size)
{
    snprintf(name, size, "LEAN_%s", key);
    for (char *c = name; *c; c++)
        *c = *c == '.' ? '_' : (char)toupper((unsigned char)*c);
}

/* ---- layers ---- */

static enum lm_status remember_origin(struct config *config, int index, struct lm_error *err)
{
    char *origin = strdup(config->layer);
    if (!origin) return lm_fail(err, LM_E_NO_MEM, "no memory for the configuration");
    free(config->origins[index]);
    config->origins[index] = origin;
    return LM_OK;
}

static void on_set(void *context, const char *path)
{
    struct config *config = context;
    const int index = setting_index(path);
    if (index >= 0) remember_origin(config, index, NULL);
}

/* Whether an override block speaks of the rank. A host may be named without its domain. */
static bool override_applies(const struct config *config, const Lean__Override *override)
{
    const char *host = config->host;
    const size_t short_length = strcspn(host, ".");
    if (override->has_rank && override->rank != config->rank) return false;
    if (!override->host) return true;
    return !strcmp(override->host, host) ||
           (strlen(override->host) == short_length && !strncmp(override->host, host, short_length));
}

/* Merges the blocks that apply, then removes them all: they belong to their file. */
static enum lm_status merge_overrides(struct config *config, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    Lean__Config *values = config->values;
    const char *file = config->layer;
    char *layer = NULL;
    if (asprintf(&layer, "override in %s", file) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for the configuration");
    config->layer = layer;
    for (size_t i = 0; i < values->n_override && status == LM_OK; i++) {
        const Lean__Override *override = values->override[i];
        if (!override->set || !override_applies(config, override)) continue;
        if (override->set->n_override) {
            status = lm_fail(err, LM_E_USAGE, "%s: an override inside an override", file);
            break;
        }
        char *text = textproto_write(&override->set->base, NULL, NULL);
        status =
            text ? textproto_merge(&values->base, layer, text, strlen(text), on_set, config, err)
                 : lm_fail(err, LM_E_NO_MEM, "no memory for the configuration");
        free(text);
    }
    textproto_clear(&values->base, "override");
    config->layer = file;
    free(layer);
    return status;
}

/* Values against the bounds of their options. */
static enum lm_status check_values(const struct config *config, struct lm_error *err)
{
    const struct option_spec *spec;
    enum lm_status status = LM_OK;
    for (size_t s = 0; status == LM_OK && (spec = config_setting_at(s)); s++) {
        char *text = NULL;
        for (size_t i = 0; status == LM_OK; i++) {
            status = config_get(config, spec->key, i, &text, err);
            if (status != LM_OK || !text) break;
            char name[1200];
            snprintf(name, sizeof(name), "%s: %s", config->layer, spec->key);
            status = option_check(spec, name, text, err);
            free(text);
        }
    }
    return status;
}

static enum lm_status merge_file(struct config *config, const char *path, struct lm_error *err)
{
    char *text = NULL;
    size_t n = 0;
    enum lm_status status = read_all_path(path, MAX_FILE_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    config->layer = path;
    status = textproto_merge(&config->values->base, path, text, n, on_set, config, err);
    free(text);
    if (status == LM_OK) status = merge_overrides(config, err);
    return status == LM_OK ? check_values(config, err) : status;
}

static enum lm_status merge_environment(struct config *config, struct lm_error *err)
{
    const struct option_spec *spec;
    enum lm_status status = LM_OK;
    for (size_t i = 0; status == LM_OK && (spec = config_setting_at(i)); i++) {
        char name[128];
        config_variable_name(spec->key, name, sizeof(name));
        const char *value = config_environment(name);
        if (!value) continue;
        struct lm_error reason = {0};
        config->layer = name;
        status = option_check(spec, name, value, err);
        if (status != LM_OK) break;
        textproto_clear(&config->values->base, spec->key);
        status = textproto_set_plain(&config->values->base, spec->key, value, &reason);
        if (status != LM_OK) lm_fail(err, status, "%s: %s", name, reason.message);
        if (status == LM_OK) status = remember_origin(config, (int)i, err);
    }
    return status;
}

static bool is_known_variable(const char *name, size_t n)
{
    const struct option_spec *spec;
    for (size_t i = 0; i < sizeof(other_variables) / sizeof(other_variables[0]); i++)
        if (strlen(other_variables[i]) == n && !strncmp(other_variables[i], name, n)) return true;
    for (size_t i = 0; (spec = config_setting_at(i)); i++) {
        char known[128];
        config_variable_name(spec->key, known, sizeof(known));
        if (strlen(known) == n && !strncmp(known, name, n)) return true;
    }
    return false;
}

static void warn_of_unknown_variables(void)
{
    for (char **entry = environ; *entry; entry++) {
        const size_t n = strcspn(*entry, "=");
        if (!strncmp(*entry, "LEAN_", 5) && (*entry)[n] && (*entry)[n + 1] &&
            !is_known_variable(*entry, n))
            log_warning("unknown environment variable %.*s", (int)(n < 80 ? n : 80), *entry);
    }
}

char *config_file_at(const char *path, size_t i)
{
    if (!path) path = config_environment("LEAN_CONFIG");
    if (path && i-- == 0) return strdup(path);
    char *user = config_user_path("XDG_CONFIG_HOME", ".config", "lean/config.textproto");
    if (user && i-- == 0) return user;
    free(user);
    return i == 0 ? strdup(system_path) : NULL;
}

static enum lm_status create(struct config **out, struct lm_error *err)
{
    struct config *config = calloc(1, sizeof(*config));
    if (config) config->values = (Lean__Config *)textproto_create(&lean__config__descriptor);
    if (!config || !config->values) {
        config_destroy(config);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the configuration");
    }
    *out = config;
    return LM_OK;
}

void config_destroy(struct config *config)
{
    if (!config) return;
    for (size_t i = 0; i < MAX_SETTINGS; i++)
        free(config->origins[i]);
    free(config->path);
    if (config->values) protobuf_c_message_free_unpacked(&config->values->base, NULL);
    free(config);
}

/* All layers as they count for the rank on that host. */
static enum lm_status load(struct config **out, const char *path, uint32_t rank, const char *host,
                           struct lm_error *err)
{
    assert(!config_setting_at(MAX_SETTINGS));
    struct config *config = NULL;
    enum lm_status status = create(&config, err);
    if (status != LM_OK) return status;
    const bool named = path || config_environment("LEAN_CONFIG");
    config->rank = rank;
    snprintf(config->host, sizeof(config->host), "%s", host);
    config->path = path ? strdup(path) : NULL;
    if (path && !config->path) status = lm_fail(err, LM_E_NO_MEM, "no memory for a path");

    size_t n_file = 0;
    for (char *file; (file = config_file_at(path, n_file)); n_file++)
        free(file);
    for (size_t i = n_file; i-- > 0 && status == LM_OK;) {
        char *file = config_file_at(path, i);
        if (file && ((named && i == 0) || access(file, F_OK) == 0))
            status = merge_file(config, file, err);
        free(file);
    }
    if (status == LM_OK) status = merge_environment(config, err);
    config->layer = NULL;
    if (status != LM_OK) {
        config_destroy(config);
        return status;
    }
    *out = config;
    return LM_OK;
}

enum lm_status config_load(struct config **out, const char *path, struct lm_error *err)
{
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    const enum lm_status status = load(out, path, 0, host, err);
    if (status == LM_OK) warn_of_unknown_variables();
    return status;
}

enum lm_status config_load_for_rank(struct config **out, const struct config *config, uint32_t rank,
                                    const char *host, struct lm_error *err)
{
    return load(out, config->path, rank, host, err);
}

enum lm_status config_load_variables(struct config **out, struct lm_error *err)
{
    struct config *config = NULL;
    enum lm_status status = create(&config, err);
    if (status != LM_OK) return status;
    status = merge_environment(config, err);
    config->layer = NULL;
    if (status == LM_OK)
        *out = config;
    else
        config_destroy(config);
    return status;
}

enum lm_status config_check_file(const char *path, struct lm_error *err)
{
    struct config *config = NULL;
    enum lm_status status = create(&config, err);
    if (status == LM_OK) {
        status = merge_file(config, path, err);
        config_destroy(config);
    }
    return status;
}

enum lm_status config_suggest(struct config *config, const char *key, const char *text,
                              const char *origin, bool *used, struct lm_error *err)
{
    const int index = setting_index(key);
    assert(index >= 0);
    *used = !config->origins[index];
    if (!*used) return LM_OK;
    config->layer = origin;
    enum lm_status status = textproto_set_plain(&config->values->base, key, text, err);
    if (status == LM_OK) status = remember_origin(config, index, err);
    config->layer = NULL;
    return status;
}

/* ---- reading ---- */

enum lm_status config_get(const struct config *config, const char *key, size_t i, char **text,
                          struct lm_error *err)
{
    return textproto_get_plain(&config->values->base, key, i, text, err);
}

const char *config_origin(const struct config *config, const char *key)
{
    const int index = setting_index(key);
    assert(index >= 0);
    if (config->origins[index]) return config->origins[index];
    return config_setting_at((size_t)index)->def ? "built-in default" : NULL;
}

static const char *origin_comment(void *context, const char *path)
{
    return config_origin(context, path);
}

char *config_write(const struct config *config, bool with_origins)
{
    char *set = textproto_write(&config->values->base, NULL, NULL);
    ProtobufCMessage *full = textproto_create(&lean__config__descriptor);
    char *text = NULL;
    enum lm_status status = set && full ? LM_OK : LM_E_NO_MEM;
    const struct option_spec *spec;
    for (size_t i = 0; status == LM_OK && (spec = config_setting_at(i)); i++)
        if (spec->def) status = textproto_set_plain(full, spec->key, spec->def, NULL);
    if (status == LM_OK)
        status = textproto_merge(full, "configuration", set, strlen(set), NULL, NULL, NULL);
    if (status == LM_OK)
        text = textproto_write(full, with_origins ? origin_comment : NULL, (void *)config);
    if (full) protobuf_c_message_free_unpacked(full, NULL);
    free(set);
    return text;
}

void config_make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700); /* one that cannot be made shows when the file is written */
        *slash = '/';
    }
}
