/* From a reference to files, step by step. */
#include "coordinator/hub/pull.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "coordinator/hub/content_hash.h"
#include "coordinator/hub/download.h"
#include "coordinator/hub/hub_api.h"
#include "coordinator/hub/hub_cache.h"
#include "coordinator/hub/hub_lock.h"
#include "coordinator/hub/part_file.h"
#include "coordinator/hub/pull_source.h"
#include "proto/base/log.h"

enum { BATCH_FILES = 200 /* open at a time, two descriptors each */ };

/* A file of the choice on its way. */
struct item {
    char *final_path; /* the blob, or below the destination */
    char *url;
    bool is_twin; /* its bytes are those of an earlier item, in the same blob */
    struct hub_lock *lock;
    struct part_file *part;
};

struct pull {
    const struct pull_config *config;
    const char *repo, *revision;
    char commit[41];
    struct hub_files files;
    struct hub_choice choice;
    struct pull_plan plan;
    struct item *item; /* [plan.n_file] */
    size_t *batch;     /* [n_batch] numbers of items that are fetched now */
    size_t n_batch;
    uint64_t n_fetched;
    struct pull_source *source; /* of config->user; NULL: there is none */
    char *made_path;            /* by it */
};

static enum lm_status no_memory(struct lm_error *err)
{
    return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
}

/* ---- resolve and choose ---- */

static void show_variants(const struct pull *pull)
{
    struct hub_variant *variants = NULL;
    size_t n = 0;
    if (hub_variants_find(&pull->files, &variants, &n, NULL) == LM_OK && n)
        pull->config->view->on_variants(pull->config->view->context, variants, n);
    hub_variants_free(variants, n);
}

static enum lm_status resolve(struct pull *pull, struct lm_error *err)
{
    const struct hub_http *http = &pull->config->http;
    enum lm_status status = LM_OK;
    if (hub_ref_is_commit(pull->revision))
        strcpy(pull->commit, pull->revision);
    else
        status = hub_api_resolve(http, pull->repo, pull->revision, pull->commit, err);
    if (status == LM_OK) status = hub_api_list(http, pull->repo, pull->commit, &pull->files, err);
    if (status != LM_OK) return status;
    status = hub_choose(&pull->files, &pull->config->wish, &pull->choice, err);
    if (status != LM_OK) show_variants(pull);
    if (status == LM_E_NOT_FOUND || status == LM_E_USAGE) {
        char message[sizeof(err->message)];
        snprintf(message, sizeof(message), "%s", err ? err->message : "");
        char hint[sizeof(err->hint)];
        snprintf(hint, sizeof(hint), "%s", err ? err->hint : "");
        lm_fail(err, status, "%s: %.700s", pull->repo, message);
        if (*hint)
            lm_hint(err, "%s", hint);
        else
            lm_hint(err, "--variant V or --file GLOB chooses");
    }
    return status;
}

/* ---- plan ---- */

static char *final_path(const struct pull *pull, const struct hub_file *file)
{
    char *path;
    if (!pull->config->dest)
        return hub_cache_blob_path(pull->config->cache, pull->repo, file->hash);
    return asprintf(&path, "%s/%s", pull->config->dest, file->path) < 0 ? NULL : path;
}

/* Whether the file at path is what it should be; a file of a destination may be any file. */
static bool is_there(const struct pull *pull, const char *path, const struct hub_file *file)
{
    const struct pull_config *config = pull->config;
    const bool hashes = config->checks_again || (config->dest && config->checks_hash);
    struct stat info;
    struct lm_error error;
    if (stat(path, &info) || !S_ISREG(info.st_mode) || (uint64_t)info.st_size != file->n_bytes)
        return false;
    if (!hashes) return true;
    const enum lm_status status = content_hash_check_file(path, file->hash, file->n_bytes,
                                                          config->http.is_interrupted, &error);
    if (status == LM_E_FORMAT && !config->dest)
        config->view->on_warning(config->view->context, error.message);
    return status == LM_OK;
}

static void look_at(const struct pull *pull, size_t i)
{
    const struct hub_file *file = &pull->files.file[pull->choice.index[i]];
    struct pull_file *planned = &pull->plan.file[i];
    const char *path = pull->item[i].final_path;
    uint64_t n_all = 0;
    planned->state = PULL_NEW;
    planned->n_done = 0;
    if (pull->config->force) return;
    if (is_there(pull, path, file)) {
        planned->state = PULL_CACHED;
        planned->n_done = file->n_bytes;
    } else if (part_file_peek(path, file->hash, &planned->n_done, &n_all, NULL) &&
               n_all == file->n_bytes) {
        planned->state = PULL_PARTIAL;
    } else {
        planned->n_done = 0;
    }
}

static bool is_twin(const struct pull *pull, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (!strcmp(pull->item[k].final_path, pull->item[i].final_path)) return true;
    return false;
}

static enum lm_status make_plan(struct pull *pull, struct lm_error *err)
{
    struct pull_plan *plan = &pull->plan;
    const size_t n = pull->choice.n;
    plan->repo = pull->repo;
    plan->revision = pull->revision;
    plan->commit = pull->commit;
    plan->variant = pull->choice.variant;
    plan->file = calloc(n + 1, sizeof(*plan->file));
    pull->item = calloc(n + 1, sizeof(*pull->item));
    pull->batch = calloc(BATCH_FILES, sizeof(*pull->batch));
    if (!plan->file || !pull->item || !pull->batch) return no_memory(err);
    plan->n_file = n;
    for (size_t i = 0; i < n; i++) {
        const struct hub_file *file = &pull->files.file[pull->choice.index[i]];
        plan->file[i] = (struct pull_file){file->path, file->hash, file->n_bytes, 0, PULL_NEW};
        struct item *item = &pull->item[i];
        item->final_path = final_path(pull, file);
        item->url = hub_api_file_url(&pull->config->http, pull->repo, pull->commit, file->path);
        if (!item->final_path || !item->url) return no_memory(err);
        item->is_twin = is_twin(pull, i);
        look_at(pull, i);
        if (item->is_twin) plan->file[i].n_done = file->n_bytes;
        if (file->n_bytes > UINT64_MAX - plan->n_bytes)
            return lm_fail(err, LM_E_FORMAT, "%s: the list of files names impossible sizes",
                           pull->repo);
        plan->n_bytes += file->n_bytes;
        plan->n_missing += file->n_bytes - plan->file[i].n_done;
    }
    return LM_OK;
}

/* The file system of a folder that may not be there yet. */
static enum lm_status check_space(const struct pull *pull, struct lm_error *err)
{
    const char *folder = pull->config->dest ? pull->config->dest : pull->config->cache;
    char needed[24], there[24], *copy = strdup(folder);
    struct statvfs info;
    if (!copy) return no_memory(err);
    const char *above = copy;
    while (statvfs(above, &info) && errno == ENOENT && above == copy) {
        char *slash = strrchr(copy, '/');
        if (slash && slash != copy)
            *slash = '\0';
        else
            above = slash ? "/" : ".";
    }
    const bool known = !statvfs(above, &info);
    free(copy);
    const uint64_t n_free = known ? (uint64_t)info.f_bavail * info.f_frsize : UINT64_MAX;
    if (pull->plan.n_missing <= n_free) return LM_OK;
    return lm_fail(err, LM_E_NO_SPACE, "%s: %s to fetch (%llu bytes), %s free (%llu bytes)", folder,
                   log_format_bytes(pull->plan.n_missing, needed),
                   (unsigned long long)pull->plan.n_missing, log_format_bytes(n_free, there),
                   (unsigned long long)n_free);
}

/* ---- lock ---- */

static enum lm_status beat(struct pull *pull, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t k = 0; k < pull->n_batch && status == LM_OK; k++) {
        struct item *item = &pull->item[pull->batch[k]];
        if (item->lock) status = hub_lock_beat(item->lock, err);
    }
    return status;
}

static enum lm_status wait_for_holder(void *context, const char *path, const char *holder,
                                      struct lm_error *err)
{
    struct pull *pull = context;
    const struct pull_config *config = pull->config;
    if (!config->waits)
        return lm_fail(err, LM_E_BUSY, "%s is being downloaded by %s", path, holder);
    config->view->on_wait(config->view->context, path, holder);
    const enum lm_status status = beat(pull, err);
    return status == LM_OK ? hub_http_sleep(&config->http, 0.5, err) : status;
}

static int compare_by_path(const void *a, const void *b, void *items)
{
    const struct item *item = items;
    return strcmp(item[*(const size_t *)a].final_path, item[*(const size_t *)b].final_path);
}

static int compare_numbers(const void *a, const void *b)
{
    const size_t one = *(const size_t *)a, other = *(const size_t *)b;
    return one < other ? -1 : one > other;
}

static enum lm_status lock_item(struct pull *pull, struct item *item, struct lm_error *err)
{
    char *path;
    enum lm_status status = hub_cache_make_parents(item->final_path, err);
    if (status != LM_OK) return status;
    if (asprintf(&path, "%s.lean-lock", item->final_path) < 0) return no_memory(err);
    status = hub_lock_acquire(&item->lock, path, wait_for_holder, pull, err);
    free(path);
    return status;
}

/* ---- fetch ---- */

static void close_item(struct item *item)
{
    part_file_close(item->part);
    item->part = NULL;
    hub_lock_release(item->lock);
    item->lock = NULL;
}

static enum lm_status on_tick(void *context, struct lm_error *err)
{
    struct pull *pull = context;
    for (size_t k = 0; k < pull->n_batch; k++) {
        const size_t i = pull->batch[k];
        if (pull->item[i].part) pull->plan.file[i].n_done = part_file_done(pull->item[i].part);
    }
    pull->config->view->on_progress(pull->config->view->context, &pull->plan);
    const enum lm_status status = pull->source ? pull_source_tend(pull->source, err) : LM_OK;
    return status == LM_OK ? beat(pull, err) : status;
}

static enum lm_status link_item(const struct pull *pull, size_t i, struct lm_error *err)
{
    const struct pull_file *file = &pull->plan.file[i];
    if (pull->config->dest) return LM_OK;
    return hub_cache_link(pull->config->cache, pull->repo, pull->commit, file->path, file->hash,
                          err);
}

static enum lm_status on_done(void *context, size_t k, struct lm_error *err)
{
    struct pull *pull = context;
    const size_t i = pull->batch[k];
    if (!pull->source) { /* else the part is still used */
        enum lm_status status = part_file_publish(pull->item[i].part, err);
        if (status == LM_OK) status = link_item(pull, i, err);
        if (status != LM_OK) return status;
        close_item(&pull->item[i]);
    }
    pull->plan.file[i].n_done = pull->plan.file[i].n_bytes;
    pull->plan.file[i].state = PULL_CACHED;
    pull->config->view->on_file_done(pull->config->view->context, &pull->plan, i);
    return LM_OK;
}

static void on_restart(void *context, size_t k, const char *why)
{
    const struct pull *pull = context;
    const size_t i = pull->batch[k];
    char text[1200];
    snprintf(text, sizeof(text), "%.1000s: %s; fetching it again", pull->plan.file[i].path, why);
    pull->config->view->on_warning(pull->config->view->context, text);
}

/* Locks the batch; what another process has finished meanwhile needs no fetching. */
static enum lm_status open_batch(struct pull *pull, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    qsort_r(pull->batch, pull->n_batch, sizeof(*pull->batch), compare_by_path, pull->item);
    for (size_t k = 0; k < pull->n_batch && status == LM_OK; k++)
        status = lock_item(pull, &pull->item[pull->batch[k]], err);
    if (pull->n_batch) qsort(pull->batch, pull->n_batch, sizeof(*pull->batch), compare_numbers);
    for (size_t k = 0; k < pull->n_batch && status == LM_OK; k++) {
        const size_t i = pull->batch[k];
        const struct pull_file *file = &pull->plan.file[i];
        if (pull->config->force) part_file_remove(pull->item[i].final_path);
        look_at(pull, i);
        if (file->state != PULL_CACHED)
            status = part_file_open(&pull->item[i].part, pull->item[i].final_path, file->path,
                                    file->n_bytes, file->hash, err);
        if (status == LM_OK) status = beat(pull, err);
    }
    return status;
}

/* The folder of the result: the snapshot, or the destination. */
static char *result_folder(const struct pull *pull)
{
    const struct pull_config *config = pull->config;
    return config->dest ? strdup(config->dest)
                        : hub_cache_snapshot_path(config->cache, pull->repo, pull->commit);
}

/* ---- a user of the files ---- */

static enum lm_status show_source(struct pull *pull, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < pull->plan.n_file && status == LM_OK; i++) {
        const struct pull_file *file = &pull->plan.file[i];
        const struct item *item = &pull->item[i];
        char *path;
        if (asprintf(&path, "%s%s", item->final_path, item->part ? ".lean-part" : "") < 0)
            return no_memory(err);
        status = pull_source_set(pull->source, i, file->path, path, file->n_bytes, item->part, err);
        free(path);
    }
    return status;
}

static enum lm_status begin_user(struct pull *pull, struct lm_error *err)
{
    const struct pull_user *user = pull->config->user;
    char *folder = result_folder(pull), *inside = NULL;
    if (!folder || asprintf(&inside, "%s/", folder) < 0) {
        free(folder);
        return no_memory(err);
    }
    enum lm_status status = hub_cache_make_parents(inside, err);
    if (status == LM_OK) status = show_source(pull, err);
    if (status == LM_OK)
        status = user->begin(user->context, pull->source, folder, pull->choice.main_path, err);
    free(folder);
    free(inside);
    return status;
}

/* What the user has made takes the place of the files. */
static enum lm_status end_user(struct pull *pull, enum lm_status status, struct lm_error *err)
{
    const struct pull_user *user = pull->config->user;
    struct lm_error error = {0};
    pull_source_conclude(pull->source, status);
    const enum lm_status ended = user->end(user->context, &pull->made_path, &error);
    if (status == LM_OK && ended != LM_OK) {
        if (err) *err = error;
        return ended;
    }
    for (size_t i = 0; status == LM_OK && i < pull->plan.n_file; i++)
        if (pull->item[i].part) part_file_remove(pull->item[i].final_path);
    return status;
}

/* ---- a batch ---- */

static enum lm_status download_batch(struct pull *pull, struct download_file *files, size_t n,
                                     struct lm_error *err)
{
    const struct pull_config *config = pull->config;
    const struct download_config download = {
        .http = &config->http,
        .n_connection = config->n_connection,
        .segment_bytes = config->segment_bytes,
        .rate_bytes = config->rate_bytes,
        .restarts = !config->user,
        .on_tick = on_tick,
        .on_done = on_done,
        .on_restart = on_restart,
        .context = pull,
    };
    enum lm_status status = pull->source ? begin_user(pull, err) : LM_OK;
    if (status != LM_OK) return status;
    status = download_run(files, n, &download, err);
    on_tick(pull, NULL);
    return pull->source ? end_user(pull, status, err) : status;
}

/* What the batch lacks; the others are done with. Returns how many. */
static size_t list_missing(struct pull *pull, struct download_file *files)
{
    const struct pull_config *config = pull->config;
    size_t n = 0;
    for (size_t k = 0; k < pull->n_batch; k++) {
        const size_t i = pull->batch[k];
        if (!pull->item[i].part) {
            close_item(&pull->item[i]);
            continue;
        }
        const struct pull_file *file = &pull->plan.file[i];
        pull->batch[n] = i;
        files[n++] =
            (struct download_file){.name = file->path,
                                   .url = pull->item[i].url,
                                   .hash = config->checks_hash ? file->hash : NULL,
                                   .head_bytes = config->user ? config->user->head_bytes : 0,
                                   .part = pull->item[i].part};
    }
    return pull->n_batch = n;
}

static enum lm_status fetch_batch(struct pull *pull, struct lm_error *err)
{
    struct download_file *files = calloc(pull->n_batch + 1, sizeof(*files));
    if (!files) return no_memory(err);
    enum lm_status status = open_batch(pull, err);
    if (status == LM_OK) {
        const size_t n = list_missing(pull, files);
        status = download_batch(pull, files, n, err);
        for (size_t k = 0; k < n; k++)
            pull->n_fetched += files[k].n_fetched;
    }
    free(files);
    return status;
}

/* What is bad in the end is not kept. */
static void close_batch(struct pull *pull, enum lm_status status)
{
    for (size_t k = 0; k < pull->n_batch; k++) {
        struct item *item = &pull->item[pull->batch[k]];
        const bool is_bad =
            status == LM_E_FORMAT && item->part && (pull->source || !part_file_done(item->part));
        if (is_bad) part_file_remove(item->final_path);
        close_item(item);
    }
    pull->n_batch = 0;
}

static enum lm_status fetch_all(struct pull *pull, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; status == LM_OK && i < pull->plan.n_file;) {
        for (; i < pull->plan.n_file && pull->n_batch < BATCH_FILES; i++)
            if (pull->plan.file[i].state != PULL_CACHED && !pull->item[i].is_twin)
                pull->batch[pull->n_batch++] = i;
        if (pull->n_batch || pull->source) status = fetch_batch(pull, err);
        close_batch(pull, status);
    }
    if (pull->source) return status;
    /* what was there before has its names now, too */
    for (size_t i = 0; status == LM_OK && i < pull->plan.n_file; i++)
        status = link_item(pull, i, err);
    return status;
}

/* ---- all of it ---- */

static char *path_below(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

static enum lm_status give_result(const struct pull *pull, struct pull_result *out,
                                  struct lm_error *err)
{
    *out = (struct pull_result){.n_fetched = pull->n_fetched, .folder = result_folder(pull)};
    strcpy(out->commit, pull->commit);
    if (!out->folder) return no_memory(err);
    if (!pull->choice.main_path) return LM_OK;
    out->main_path =
        pull->made_path ? strdup(pull->made_path) : path_below(out->folder, pull->choice.main_path);
    return out->main_path ? LM_OK : no_memory(err);
}

/* For a user that makes something else of the files: whether that is there already. */
static enum lm_status prepare_user(struct pull *pull, bool *is_made, struct lm_error *err)
{
    const struct pull_config *config = pull->config;
    *is_made = false;
    if (!config->user || config->dry_run) return LM_OK;
    if (!pull->choice.main_path || pull->plan.n_file > BATCH_FILES)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: these files cannot be packed", pull->repo);
    char *folder = result_folder(pull);
    if (!folder) return no_memory(err);
    *is_made = !config->force && config->user->is_made(config->user->context, folder,
                                                       pull->choice.main_path, &pull->made_path);
    free(folder);
    return *is_made ? LM_OK : pull_source_create(&pull->source, pull->plan.n_file, err);
}

/* Says of an end in between what is kept, in the one line there is. */
static enum lm_status explain(const struct pull *pull, enum lm_status status, struct lm_error *err)
{
    char done_text[24], all_text[24];
    uint64_t n_done = 0;
    for (size_t i = 0; i < pull->plan.n_file; i++)
        n_done += pull->plan.file[i].n_done;
    if (status == LM_E_INTERRUPTED)
        return lm_fail(err, status, "interrupted; %s of %s are kept, the same command goes on",
                       log_format_bytes(n_done, done_text),
                       log_format_bytes(pull->plan.n_bytes, all_text));
    if (status == LM_E_NETWORK && n_done)
        return lm_hint(err, "%s of %s are kept, the same command goes on",
                       log_format_bytes(n_done, done_text),
                       log_format_bytes(pull->plan.n_bytes, all_text));
    return status;
}

static enum lm_status run(struct pull *pull, struct pull_result *out, struct lm_error *err)
{
    const struct pull_config *config = pull->config;
    bool is_made = false;
    enum lm_status status = resolve(pull, err);
    if (status == LM_OK) status = make_plan(pull, err);
    if (status == LM_OK) status = prepare_user(pull, &is_made, err);
    if (status == LM_OK && is_made) return give_result(pull, out, err);
    if (status == LM_OK) status = config->view->on_plan(config->view->context, &pull->plan, err);
    if (status == LM_OK) status = check_space(pull, err);
    if (status == LM_OK && config->dry_run) return give_result(pull, out, err);
    if (status == LM_OK && !config->dest)
        status = hub_cache_prepare(config->cache, pull->repo, err);
    if (status == LM_OK) status = fetch_all(pull, err);
    if (status == LM_OK && !config->dest && !hub_ref_is_commit(pull->revision))
        status = hub_cache_write_ref(config->cache, pull->repo, pull->revision, pull->commit, err);
    if (status == LM_OK) return give_result(pull, out, err);
    return pull->plan.n_file ? explain(pull, status, err) : status;
}

enum lm_status pull_run(const struct hub_ref *ref, const struct pull_config *config,
                        struct pull_result *out, struct lm_error *err)
{
    struct pull pull = {
        .config = config, .repo = ref->repo, .revision = *ref->revision ? ref->revision : "main"};
    if (config->offline) return pull_find(ref, config->cache, &config->wish, out, err);
    const enum lm_status status = run(&pull, out, err);
    for (size_t i = 0; pull.item && i < pull.plan.n_file; i++) {
        close_item(&pull.item[i]);
        free(pull.item[i].final_path);
        free(pull.item[i].url);
    }
    pull_source_destroy(pull.source);
    free(pull.made_path);
    free(pull.item);
    free(pull.batch);
    free(pull.plan.file);
    hub_choice_free(&pull.choice);
    hub_files_free(&pull.files);
    return status;
}

void pull_result_free(struct pull_result *result)
{
    free(result->folder);
    free(result->main_path);
    *result = (struct pull_result){0};
}

enum lm_status pull_find(const struct hub_ref *ref, const char *cache, const struct hub_wish *wish,
                         struct pull_result *out, struct lm_error *err)
{
    const char *revision = *ref->revision ? ref->revision : "main";
    struct hub_files files = {0};
    struct hub_choice choice = {0};
    char commit[41];
    if (!hub_cache_find_commit(cache, ref->repo, revision, commit))
        return lm_fail(err, LM_E_NOT_FOUND, "%s@%s: is not in the cache %s", ref->repo, revision,
                       cache);
    enum lm_status status = hub_cache_list_files(cache, ref->repo, commit, &files, err);
    if (status == LM_OK) status = hub_choose(&files, wish, &choice, err);
    if (status == LM_OK) {
        struct pull_result found = {0};
        strcpy(found.commit, commit);
        found.folder = hub_cache_snapshot_path(cache, ref->repo, commit);
        if (found.folder && choice.main_path)
            found.main_path = path_below(found.folder, choice.main_path);
        if (!found.folder || (choice.main_path && !found.main_path)) {
            pull_result_free(&found);
            status = no_memory(err);
        } else {
            *out = found;
        }
    }
    hub_choice_free(&choice);
    hub_files_free(&files);
    return status;
}
