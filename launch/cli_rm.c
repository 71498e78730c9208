/* lean rm REF...: removes what was downloaded. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/hub/hub_lock.h"
#include "coordinator/hub/part_file.h"
#include "launch/cached_models.h"
#include "launch/command.h"
#include "launch/hub_names.h"
#include "launch/hub_settings.h"
#include "launch/registry.h"
#include "proto/base/log.h"

static const struct option_spec rm_options[] = {
    {"yes", 'y', OPTION_FLAG, .help = "do not ask"},
    {"dry-run", 0, OPTION_FLAG, .help = "only print what would be removed"},
    {"cache-dir", 0, OPTION_PATH, "DIR", .help = "the cache, as lean pull finds it"},
    {0},
};

struct removal {
    const struct options *options;
    const char *root;
    const struct hub_registry *names;
    struct registry_entry *servers; /* [n_server] */
    size_t n_server;
    uint64_t n_bytes;
};

/* ---- what is in use ---- */

/* The server that runs a file, or NULL. */
static const struct registry_entry *server_of(const struct removal *removal, const char *path)
{
    char real[PATH_MAX];
    struct json_object *used;
    if (!realpath(path, real)) return NULL;
    for (size_t i = 0; i < removal->n_server; i++)
        if (json_object_object_get_ex(removal->servers[i].facts, "path", &used) &&
            !strcmp(json_object_get_string(used), real))
            return &removal->servers[i];
    return NULL;
}

static enum lm_status check_unused(const struct removal *removal, const struct cached_model *model,
                                   struct lm_error *err)
{
    enum lm_status status = LM_OK;
    char *folder =
        hub_cache_snapshot_path(removal->root, model->snapshot.repo, model->snapshot.commit);
    if (!folder) return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    for (size_t i = 0; i < model->n_path && status == LM_OK; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", folder, model->path[i]) < 0) break;
        const struct registry_entry *server = server_of(removal, path);
        if (server) {
            status = lm_fail(err, LM_E_BUSY, "%s: the server with process %d runs it", path,
                             (int)server->pid);
            lm_hint(err, "lean stop %d ends it", (int)server->pid);
        }
        free(path);
    }
    free(folder);
    return status;
}

/* ---- removing ---- */

static bool is_meant(const struct cached_model *model, const struct hub_ref *ref, bool any_variant)
{
    if (strcmp(model->snapshot.repo, ref->repo) != 0) return false;
    if (*ref->revision && strcmp(ref->revision, model->snapshot.revision) != 0 &&
        strcmp(ref->revision, model->snapshot.commit) != 0)
        return false;
    return any_variant || !strcasecmp(model->variant, ref->variant);
}

static bool agrees(const struct removal *removal, const struct cached_model *model)
{
    char answer[16] = "", size[24];
    if (options_flag(removal->options, "yes") || options_flag(removal->options, "dry-run") ||
        !isatty(STDIN_FILENO))
        return true;
    fprintf(stderr, "remove %s%s%s, %s? [y/N] ", model->snapshot.repo, *model->variant ? ":" : "",
            model->variant, log_format_bytes(model->n_bytes, size));
    return fgets(answer, sizeof(answer), stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

/* Whether a file of this name is of the variant. */
static bool is_of_variant(const char *name, const char *label)
{
    struct hub_files files = {0};
    struct hub_variant *variants = NULL;
    size_t n = 0;
    const bool is = hub_files_add(&files, name, 0, "", NULL) == LM_OK &&
                    hub_variants_find(&files, &variants, &n, NULL) == LM_OK && n &&
                    !strcasecmp(variants[0].label, label);
    hub_variants_free(variants, n);
    hub_files_free(&files);
    return is;
}

static enum lm_status do_not_wait(void *context, const char *path, const char *holder,
                                  struct lm_error *err)
{
    (void)path;
    return lm_fail(err, LM_E_BUSY, "%s: is being downloaded by %s", (const char *)context, holder);
}

/* Not from under a process that downloads it. */
static enum lm_status remove_partial(const struct hub_partial *partial, struct lm_error *err)
{
    struct hub_lock *lock;
    char *path;
    if (asprintf(&path, "%s.lean-lock", partial->path) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    const enum lm_status status = hub_lock_acquire(&lock, path, do_not_wait, partial->name, err);
    free(path);
    if (status != LM_OK) return status;
    part_file_remove(partial->path);
    hub_lock_release(lock);
    return LM_OK;
}

/* Parts of files of the repository, and of the variant if one was named. */
static enum lm_status remove_partials(const struct removal *removal, const struct hub_ref *ref,
                                      bool any_variant, struct lm_error *err)
{
    struct hub_partial *partials;
    size_t n;
    enum lm_status status = hub_cache_list_partials(removal->root, &partials, &n, err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < n && status == LM_OK; i++)
        if (!strcmp(partials[i].repo, ref->repo) &&
            (any_variant || is_of_variant(partials[i].name, ref->variant)))
            status = remove_partial(&partials[i], err);
    hub_cache_free_partials(partials, n);
    return status;
}

static enum lm_status remove_model(struct removal *removal, const struct cached_model *model,
                                   struct lm_error *err)
{
    const bool dry_run = options_flag(removal->options, "dry-run");
    char size[24];
    uint64_t n_bytes = model->is_partial ? model->n_bytes : 0;
    enum lm_status status = LM_OK;
    if (*model->snapshot.commit) {
        n_bytes = 0;
        status = hub_cache_remove(removal->root, &model->snapshot, (const char *const *)model->path,
                                  model->n_path, dry_run, &n_bytes, err);
    }
    removal->n_bytes += n_bytes;
    if (status == LM_OK && !options_flag(removal->options, "json"))
        printf("%s%s%s  %s\n", model->snapshot.repo, *model->variant ? ":" : "", model->variant,
               log_format_bytes(n_bytes, size));
    return status;
}

static enum lm_status remove_ref(struct removal *removal, const char *text, struct lm_error *err)
{
    struct hub_ref ref;
    struct hub_need need;
    struct cached_model *models;
    size_t n, n_found = 0;
    enum lm_status status = hub_names_resolve(removal->names, text, &ref, &need, err);
    if (status != LM_OK) return status;
    const bool any_variant = !*ref.variant;
    status = cached_models_list(removal->root, &models, &n, err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < n && status == LM_OK; i++)
        if (is_meant(&models[i], &ref, any_variant))
            status = check_unused(removal, &models[i], err);
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        if (!is_meant(&models[i], &ref, any_variant)) continue;
        n_found++;
        if (!agrees(removal, &models[i])) continue;
        if (!options_flag(removal->options, "dry-run"))
            status = remove_partials(removal, &ref, any_variant, err);
        if (status == LM_OK) status = remove_model(removal, &models[i], err);
    }
    cached_models_free(models, n);
    if (status == LM_OK && !n_found)
        status = lm_fail(err, LM_E_NOT_FOUND, "%s: is not in the cache %s", text, removal->root);
    return status;
}

static enum lm_status run_rm(struct options *options, struct lm_error *err)
{
    struct removal removal = {.options = options};
    struct hub_settings settings;
    struct hub_registry *names = NULL;
    enum lm_status status =
        hub_settings_read(&settings, options_string(options, "cache-dir"), NULL, NULL, err);
    if (status != LM_OK) return status;
    removal.root = settings.cache;
    status = hub_names_open(&names, err);
    removal.names = names;
    if (status == LM_OK) status = registry_list(&removal.servers, &removal.n_server, err);
    for (size_t i = 0; i < options_n_arg(options) && status == LM_OK; i++)
        status = remove_ref(&removal, options_arg(options, i), err);
    if (status == LM_OK && options_flag(options, "json"))
        printf("{\"bytes\":%llu}\n", (unsigned long long)removal.n_bytes);
    if (removal.servers) registry_free_list(removal.servers, removal.n_server);
    hub_registry_destroy(names);
    hub_settings_free(&settings);
    return status;
}

const struct command command_rm = {
    .name = "rm",
    .usage = "REF...",
    .n_arg_min = 1,
    .n_arg_max = 100,
    .summary = "remove downloaded models",
    .details =
        "REF is as for lean pull; without a variant all of them are removed, of a NAME of the\n"
        "registry the variant that it stands for. Bytes that another snapshot uses stay.\n"
        "What a running server uses, or another process downloads, is left alone.",
    .options = (const struct option_spec *const[]){rm_options, NULL},
    .run = run_rm,
};
