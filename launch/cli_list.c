/* lean list: the models in the cache, and the names of those that can be pulled. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <json-c/json.h>

#include "launch/cached_models.h"
#include "launch/command.h"
#include "launch/hub_names.h"
#include "launch/hub_settings.h"
#include "proto/base/log.h"

static const struct option_spec list_options[] = {
    {"available", 0, OPTION_FLAG, .help = "the names that lean pull knows, instead"},
    {"cache-dir", 0, OPTION_PATH, "DIR", .help = "the cache, as lean pull finds it"},
    {0},
};

static void put_json(struct json_object *value)
{
    puts(json_object_to_json_string_ext(value,
                                        JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(value);
}

/* ---- what is there ---- */

/* OWNER/NAME, with the revision where that is not main. */
static const char *name_of(const struct cached_model *model, char out[420])
{
    const char *revision = model->snapshot.revision;
    if (!*model->snapshot.commit || !strcmp(revision, "main"))
        snprintf(out, 420, "%s", model->snapshot.repo);
    else
        snprintf(out, 420, "%s@%s", model->snapshot.repo,
                 *revision ? revision : model->snapshot.commit);
    return out;
}

static const char *size_of(const struct cached_model *model, char out[80])
{
    char there[24], all[24];
    log_format_bytes(model->n_bytes, there);
    if (!model->is_partial)
        snprintf(out, 80, "%s", there);
    else
        snprintf(out, 80, "%s of %s, partial", there, log_format_bytes(model->n_bytes_all, all));
    return out;
}

static const char *time_of(const struct cached_model *model, char out[32])
{
    struct tm local;
    const time_t at = (time_t)model->modified;
    if (!at || !localtime_r(&at, &local) || !strftime(out, 32, "%F %H:%M", &local))
        strcpy(out, "-");
    return out;
}

static void print_models(const struct cached_model *models, size_t n)
{
    char name[420], size[80], when[32];
    int width[3] = {4, 7, 4};
    for (size_t i = 0; i < n; i++) {
        const int lengths[] = {(int)strlen(name_of(&models[i], name)),
                               (int)strlen(models[i].variant),
                               (int)strlen(size_of(&models[i], size))};
        for (size_t c = 0; c < 3; c++)
            if (lengths[c] > width[c]) width[c] = lengths[c];
    }
    printf("%-*s  %-*s  %-*s  %-11s  %s\n", width[0], "NAME", width[1], "VARIANT", width[2], "SIZE",
           "FORMAT", "MODIFIED");
    for (size_t i = 0; i < n; i++)
        printf("%-*s  %-*s  %-*s  %-11s  %s\n", width[0], name_of(&models[i], name), width[1],
               *models[i].variant ? models[i].variant : "-", width[2], size_of(&models[i], size),
               models[i].format, time_of(&models[i], when));
}

static void put_models(const char *root, const struct cached_model *models, size_t n)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < n; i++) {
        const struct cached_model *model = &models[i];
        struct json_object *entry = json_object_new_object();
        char *path = hub_cache_snapshot_path(root, model->snapshot.repo, model->snapshot.commit);
        json_object_object_add(entry, "name", json_object_new_string(model->snapshot.repo));
        json_object_object_add(entry, "revision", json_object_new_string(model->snapshot.revision));
        json_object_object_add(entry, "commit", json_object_new_string(model->snapshot.commit));
        json_object_object_add(entry, "variant", json_object_new_string(model->variant));
        json_object_object_add(entry, "format", json_object_new_string(model->format));
        json_object_object_add(entry, "size", json_object_new_uint64(model->n_bytes));
        json_object_object_add(entry, "size_all", json_object_new_uint64(model->n_bytes_all));
        json_object_object_add(entry, "partial", json_object_new_boolean(model->is_partial));
        json_object_object_add(entry, "modified", json_object_new_int64(model->modified));
        if (*model->snapshot.commit && path)
            json_object_object_add(entry, "path", json_object_new_string(path));
        json_object_array_add(list, entry);
        free(path);
    }
    put_json(list);
}

static enum lm_status list_cached(const struct options *options, struct lm_error *err)
{
    struct hub_settings settings;
    struct cached_model *models;
    size_t n;
    enum lm_status status =
        hub_settings_read(&settings, options_string(options, "cache-dir"), NULL, NULL, err);
    if (status != LM_OK) return status;
    status = cached_models_list(settings.cache, &models, &n, err);
    if (status == LM_OK) {
        if (options_flag(options, "json"))
            put_models(settings.cache, models, n);
        else
            print_models(models, n);
        cached_models_free(models, n);
    }
    hub_settings_free(&settings);
    return status;
}

/* ---- what there could be ---- */

static enum lm_status list_available(const struct options *options, struct lm_error *err)
{
    struct hub_registry *names;
    struct json_object *list = json_object_new_array();
    const enum lm_status status = hub_names_open(&names, err);
    const char *name, *summary;
    if (status != LM_OK) {
        json_object_put(list);
        return status;
    }
    const bool json = options_flag(options, "json");
    if (!json) printf("%-20s  %-9s  %-9s  %s\n", "NAME", "SIZE", "MEMORY", "WHAT IT IS");
    for (size_t i = 0; (name = hub_registry_name(names, i, &summary)); i++) {
        struct hub_ref ref;
        struct hub_need need;
        char disk[24], ram[24];
        hub_registry_find(names, name, &ref, &need);
        struct json_object *entry = json_object_new_object();
        json_object_object_add(entry, "name", json_object_new_string(name));
        json_object_object_add(entry, "repository", json_object_new_string(ref.repo));
        json_object_object_add(entry, "variant", json_object_new_string(ref.variant));
        json_object_object_add(entry, "disk_bytes", json_object_new_uint64(need.disk_bytes));
        json_object_object_add(entry, "ram_bytes", json_object_new_uint64(need.ram_bytes));
        json_object_object_add(entry, "vram_bytes", json_object_new_uint64(need.vram_bytes));
        json_object_object_add(entry, "summary", json_object_new_string(summary));
        json_object_array_add(list, entry);
        if (!json)
            printf("%-20s  %-9s  %-9s  %s\n", name, log_format_bytes(need.disk_bytes, disk),
                   log_format_bytes(need.ram_bytes, ram), summary);
    }
    hub_registry_destroy(names);
    if (json)
        put_json(list);
    else
        json_object_put(list);
    return LM_OK;
}

static enum lm_status run_list(struct options *options, struct lm_error *err)
{
    return options_flag(options, "available") ? list_available(options, err)
                                              : list_cached(options, err);
}

const struct command command_list = {
    .name = "list",
    .alias = "ls",
    .usage = "",
    .summary = "list the models that were downloaded",
    .details =
        "Downloads that are not finished are marked partial. --available lists the names of\n"
        "the registry with the size and the least memory of the variant that is taken when\n"
        "none is named; ~/.config/lean/registry.textproto adds to them.",
    .options = (const struct option_spec *const[]){list_options, NULL},
    .run = run_list,
};
