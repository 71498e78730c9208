/* Snapshots by variant, and what was begun. */
#include "launch/cached_models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct models {
    struct cached_model *at;
    size_t n;
};

static enum lm_status no_memory(struct lm_error *err)
{
    return lm_fail(err, LM_E_NO_MEM, "no memory for a list of models");
}

static struct cached_model *add_model(struct models *models)
{
    struct cached_model *grown = realloc(models->at, (models->n + 1) * sizeof(*grown));
    if (!grown) return NULL;
    models->at = grown;
    grown[models->n] = (struct cached_model){0};
    return &grown[models->n++];
}

static enum lm_status add_path(struct cached_model *model, const char *root,
                               const struct hub_file *file, struct lm_error *err)
{
    struct stat info;
    char **grown = realloc(model->path, (model->n_path + 1) * sizeof(*grown));
    if (!grown) return no_memory(err);
    model->path = grown;
    grown[model->n_path] = strdup(file->path);
    if (!grown[model->n_path]) return no_memory(err);
    model->n_path++;
    model->n_bytes += file->n_bytes;
    char *blob = hub_cache_blob_path(root, model->snapshot.repo, file->hash);
    if (blob && !stat(blob, &info) && info.st_mtime > model->modified)
        model->modified = info.st_mtime;
    free(blob);
    return LM_OK;
}

/* The files of one variant; of none, those that belong to no variant. */
static enum lm_status add_files(struct models *models, const char *root,
                                const struct hub_snapshot *snapshot, const struct hub_files *files,
                                bool *taken, const struct hub_variant *variant,
                                struct lm_error *err)
{
    bool has_safetensors = false;
    struct cached_model *model = add_model(models);
    if (!model) return no_memory(err);
    model->snapshot = *snapshot;
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < files->n && status == LM_OK; i++) {
        const char *path = files->file[i].path;
        if (taken[i] || (variant && !hub_variant_has(files, variant, path))) continue;
        taken[i] = true;
        has_safetensors |= strstr(path, ".safetensors") != NULL;
        status = add_path(model, root, &files->file[i], err);
    }
    model->n_bytes_all = model->n_bytes;
    model->format = !variant           ? has_safetensors ? "safetensors" : "files"
                    : variant->is_pack ? "lmpack"
                                       : "gguf";
    if (variant) {
        snprintf(model->variant, sizeof(model->variant), "%s", variant->label);
        model->is_partial = !variant->is_pack && variant->n_part < variant->n_part_all;
    }
    if (!model->n_path) models->n--;
    return status;
}

static enum lm_status add_snapshot(struct models *models, const char *root,
                                   const struct hub_snapshot *snapshot, struct lm_error *err)
{
    struct hub_files files = {0};
    struct hub_variant *variants = NULL;
    size_t n = 0;
    enum lm_status status =
        hub_cache_list_files(root, snapshot->repo, snapshot->commit, &files, err);
    bool *taken = calloc(files.n + 1, sizeof(*taken));
    if (status == LM_OK && !taken) status = no_memory(err);
    if (status == LM_OK) status = hub_variants_find(&files, &variants, &n, err);
    for (size_t i = 0; i < n && status == LM_OK; i++)
        status = add_files(models, root, snapshot, &files, taken, &variants[i], err);
    if (status == LM_OK) status = add_files(models, root, snapshot, &files, taken, NULL, err);
    hub_variants_free(variants, n);
    hub_files_free(&files);
    free(taken);
    return status;
}

/* A file that was begun belongs to the variant of its name, of the snapshot whose others are there.
 */
static enum lm_status add_partial(struct models *models, const struct hub_partial *partial,
                                  struct lm_error *err)
{
    struct hub_files files = {0};
    struct hub_variant *variants = NULL;
    size_t n = 0;
    enum lm_status status = hub_files_add(&files, partial->name, partial->n_bytes, "", NULL);
    if (status != LM_OK) return LM_OK; /* a journal with a name that no file can have */
    status = hub_variants_find(&files, &variants, &n, err);
    const char *label = n ? variants[0].label : "";
    struct cached_model *model = NULL;
    for (size_t i = 0; i < models->n && !model; i++)
        if (!strcmp(models->at[i].snapshot.repo, partial->repo) &&
            !strcmp(models->at[i].variant, label) && models->at[i].is_partial)
            model = &models->at[i];
    if (!model && status == LM_OK) {
        model = add_model(models);
        if (model) {
            strcpy(model->snapshot.repo, partial->repo);
            snprintf(model->variant, sizeof(model->variant), "%s", label);
            model->format = n ? "gguf" : "files";
            model->is_partial = true;
        }
    }
    if (model) {
        model->n_bytes += partial->n_done;
        model->n_bytes_all += partial->n_bytes;
    } else if (status == LM_OK) {
        status = no_memory(err);
    }
    hub_variants_free(variants, n);
    hub_files_free(&files);
    return status;
}

static int compare_models(const void *a, const void *b)
{
    const struct cached_model *one = a, *other = b;
    const int order = strcmp(one->snapshot.repo, other->snapshot.repo);
    return order ? order : strcmp(one->variant, other->variant);
}

enum lm_status cached_models_list(const char *root, struct cached_model **out, size_t *n,
                                  struct lm_error *err)
{
    struct models models = {0};
    struct hub_snapshot *snapshots = NULL;
    struct hub_partial *partials = NULL;
    size_t n_snapshot = 0, n_partial = 0;
    enum lm_status status = hub_cache_list_snapshots(root, &snapshots, &n_snapshot, err);
    for (size_t i = 0; i < n_snapshot && status == LM_OK; i++)
        status = add_snapshot(&models, root, &snapshots[i], err);
    if (status == LM_OK) status = hub_cache_list_partials(root, &partials, &n_partial, err);
    for (size_t i = 0; i < n_partial && status == LM_OK; i++)
        status = add_partial(&models, &partials[i], err);
    free(snapshots);
    hub_cache_free_partials(partials, n_partial);
    if (status != LM_OK) {
        cached_models_free(models.at, models.n);
        return status;
    }
    if (models.n) qsort(models.at, models.n, sizeof(*models.at), compare_models);
    *out = models.at;
    *n = models.n;
    return LM_OK;
}

void cached_models_free(struct cached_model *models, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < models[i].n_path; k++)
            free(models[i].path[k]);
        free(models[i].path);
    }
    free(models);
}
