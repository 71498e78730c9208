/* Folders, links and refs. */
#include "coordinator/hub/hub_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/hub/hub_files.h"
#include "coordinator/hub/hub_ref.h"
#include "coordinator/hub/part_file.h"
#include "proto/base/read_all.h"

#define FOLDER_PREFIX "models--"

/* ---- paths ---- */

/* ROOT/models--OWNER--NAME/TAIL */
static char *repo_path(const char *root, const char *repo, const char *tail)
{
    char *path;
    const char *slash = strchr(repo, '/');
    const int n_owner = slash ? (int)(slash - repo) : 0;
    if (asprintf(&path, "%s/" FOLDER_PREFIX "%.*s--%s%s%s", root, n_owner, repo,
                 slash ? slash + 1 : repo, *tail ? "/" : "", tail) < 0)
        return NULL;
    return path;
}

static char *joined(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

char *hub_cache_blob_path(const char *root, const char *repo, const char *hash)
{
    char tail[80];
    snprintf(tail, sizeof(tail), "blobs/%s", hash);
    return repo_path(root, repo, tail);
}

char *hub_cache_snapshot_path(const char *root, const char *repo, const char *commit)
{
    char tail[80];
    snprintf(tail, sizeof(tail), "snapshots/%s", commit);
    return repo_path(root, repo, tail);
}

/* The repository of a folder's name; false: it is no repository's. */
static bool repo_of_folder(const char *name, char repo[200])
{
    struct hub_ref ref;
    char text[400];
    if (strncmp(name, FOLDER_PREFIX, strlen(FOLDER_PREFIX)) != 0) return false;
    name += strlen(FOLDER_PREFIX);
    const char *dashes = strstr(name, "--");
    if (!dashes) return false;
    snprintf(text, sizeof(text), "%.*s/%s", (int)(dashes - name), name, dashes + 2);
    if (!hub_ref_parse(&ref, text)) return false;
    strcpy(repo, ref.repo);
    return true;
}

static enum lm_status no_memory(struct lm_error *err)
{
    return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
}

/* ---- making ---- */

enum lm_status hub_cache_make_parents(const char *path, struct lm_error *err)
{
    char *copy = strdup(path);
    if (!copy) return no_memory(err);
    enum lm_status status = LM_OK;
    for (char *slash = copy + 1; status == LM_OK && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (mkdir(copy, 0777) && errno != EEXIST) status = lm_fail_errno(err, "%s", copy);
        *slash = '/';
    }
    free(copy);
    return status;
}

enum lm_status hub_cache_prepare(const char *root, const char *repo, struct lm_error *err)
{
    static const char *const folders[] = {"blobs/", "snapshots/", "refs/"};
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]) && status == LM_OK; i++) {
        char *path = repo_path(root, repo, folders[i]);
        status = path ? hub_cache_make_parents(path, err) : no_memory(err);
        free(path);
    }
    return status;
}

/* A name beside path, of what will be there: who is killed before the rename leaves it to the next
 * who writes the same. */
static char *temporary_beside(const char *path, const char *hash)
{
    char *out;
    return asprintf(&out, "%s.lean-%s", path, hash) < 0 ? NULL : out;
}

/* From the folder that snapshots/COMMIT/PATH is in to the blob. */
static char *relative_target(const char *path, const char *hash)
{
    size_t depth = 2;
    for (const char *c = path; *c; c++)
        depth += *c == '/';
    char *target = malloc(3 * depth + strlen("blobs/") + strlen(hash) + 1), *at = target;
    for (; target && depth; depth--)
        at = stpcpy(at, "../");
    if (target) stpcpy(stpcpy(at, "blobs/"), hash);
    return target;
}

static bool is_link_to(const char *path, const char *target)
{
    char found[PATH_MAX];
    const ssize_t n = readlink(path, found, sizeof(found) - 1);
    if (n < 0) return false;
    found[n] = '\0';
    return !strcmp(found, target);
}

enum lm_status hub_cache_link(const char *root, const char *repo, const char *commit,
                              const char *path, const char *hash, struct lm_error *err)
{
    char *snapshot = hub_cache_snapshot_path(root, repo, commit);
    char *link = snapshot ? joined(snapshot, path) : NULL;
    char *temporary = link ? temporary_beside(link, hash) : NULL;
    char *target = relative_target(path, hash);
    enum lm_status status = temporary && target ? LM_OK : no_memory(err);
    /* a cache that may only be read, and has all, will do */
    const bool is_there = status == LM_OK && is_link_to(link, target);
    if (status == LM_OK && !is_there) status = hub_cache_make_parents(link, err);
    if (status == LM_OK && !is_there) {
        const bool made = !symlink(target, temporary) || errno == EEXIST;
        if ((!made || rename(temporary, link)) && !is_link_to(link, target))
            status = lm_fail_errno(err, "%s", link);
    }
    free(snapshot);
    free(link);
    free(temporary);
    free(target);
    return status;
}

static bool read_ref(const char *path, char commit[41])
{
    char *text;
    size_t n;
    if (read_all_path(path, 4096, &text, &n, NULL) != LM_OK) return false;
    text[strcspn(text, "\r\n ")] = '\0';
    const bool good = hub_ref_is_commit(text);
    if (good) strcpy(commit, text);
    free(text);
    return good;
}

enum lm_status hub_cache_write_ref(const char *root, const char *repo, const char *revision,
                                   const char *commit, struct lm_error *err)
{
    char tail[220], found[41];
    snprintf(tail, sizeof(tail), "refs/%s", revision);
    char *path = repo_path(root, repo, tail);
    if (path && read_ref(path, found) && !strcmp(found, commit)) {
        free(path);
        return LM_OK;
    }
    char *temporary = path ? temporary_beside(path, commit) : NULL;
    enum lm_status status = temporary ? hub_cache_make_parents(path, err) : no_memory(err);
    if (status == LM_OK) {
        const int fd = open(temporary, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        const bool written = fd >= 0 && write(fd, commit, 40) == 40 && !fsync(fd);
        if (fd >= 0) close(fd);
        /* the name is gone if another has written the same */
        const bool done = written && (!rename(temporary, path) ||
                                      (read_ref(path, found) && !strcmp(found, commit)));
        if (!done) {
            status = lm_fail_errno(err, "%s", path);
            unlink(temporary);
        }
    }
    free(path);
    free(temporary);
    return status;
}

/* ---- finding ---- */

static bool is_folder(const char *path)
{
    struct stat info;
    return path && !stat(path, &info) && S_ISDIR(info.st_mode);
}

bool hub_cache_find_commit(const char *root, const char *repo, const char *revision,
                           char commit[41])
{
    char tail[220];
    if (hub_ref_is_commit(revision)) {
        strcpy(commit, revision);
    } else {
        snprintf(tail, sizeof(tail), "refs/%s", revision);
        char *path = repo_path(root, repo, tail);
        const bool found = path && read_ref(path, commit);
        free(path);
        if (!found) return false;
    }
    char *snapshot = hub_cache_snapshot_path(root, repo, commit);
    const bool there = is_folder(snapshot);
    free(snapshot);
    return there;
}

/* Calls for every entry of a folder but "." and ".."; a folder that is not there has none. */
typedef enum lm_status (*entry_fn)(void *context, const char *folder, const char *name,
                                   struct lm_error *err);
static enum lm_status for_each_entry(const char *folder, entry_fn call, void *context,
                                     struct lm_error *err)
{
    enum lm_status status = LM_OK;
    DIR *stream = folder ? opendir(folder) : NULL;
    if (!stream)
        return !folder                               ? no_memory(err)
               : errno == ENOENT || errno == ENOTDIR ? LM_OK
                                                     : lm_fail_errno(err, "%s", folder);
    for (const struct dirent *entry; status == LM_OK && (entry = readdir(stream));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = call(context, folder, entry->d_name, err);
    closedir(stream);
    return status;
}

struct file_list {
    struct hub_files *files;
    const char *prefix; /* path in the snapshot of the folder, with a slash, or "" */
    unsigned depth;
};

static enum lm_status add_file(void *context, const char *folder, const char *name,
                               struct lm_error *err)
{
    struct file_list *list = context;
    struct stat info;
    char target[PATH_MAX] = "";
    char *path = joined(folder, name), *inside = NULL;
    if (!path || asprintf(&inside, "%s%s", list->prefix, name) < 0) {
        free(path);
        return no_memory(err);
    }
    enum lm_status status = LM_OK;
    const ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n > 0) target[n] = '\0';
    const char *slash = strrchr(target, '/'), *hash = slash ? slash + 1 : "";
    if (stat(path, &info)) {
        /* a link whose blob is gone */
    } else if (S_ISDIR(info.st_mode) && n <= 0 && list->depth < 32) {
        char *prefix = joined(inside, "");
        struct file_list below = {list->files, prefix, list->depth + 1};
        status = prefix ? for_each_entry(path, add_file, &below, err) : no_memory(err);
        free(prefix);
    } else if (S_ISREG(info.st_mode)) {
        status = hub_files_add(list->files, inside, (uint64_t)info.st_size,
                               strlen(hash) < HUB_HASH_SIZE ? hash : "", err);
        if (status == LM_E_FORMAT) status = LM_OK; /* whoever named it so, it is none of ours */
    }
    free(path);
    free(inside);
    return status;
}

enum lm_status hub_cache_list_files(const char *root, const char *repo, const char *commit,
                                    struct hub_files *files, struct lm_error *err)
{
    struct file_list list = {.files = files, .prefix = ""};
    char *snapshot = hub_cache_snapshot_path(root, repo, commit);
    const enum lm_status status = for_each_entry(snapshot, add_file, &list, err);
    free(snapshot);
    hub_files_sort(files);
    return status;
}

/* ---- all that there is ---- */

struct snapshot_list {
    struct hub_snapshot *at;
    size_t n;
    char repo[200];
    const char *ref_prefix; /* "" or "pr/" of refs in folders */
};

static enum lm_status add_snapshot(void *context, const char *folder, const char *name,
                                   struct lm_error *err)
{
    struct snapshot_list *list = context;
    (void)folder;
    if (!hub_ref_is_commit(name)) return LM_OK;
    struct hub_snapshot *grown = realloc(list->at, (list->n + 1) * sizeof(*grown));
    if (!grown) return lm_fail(err, LM_E_NO_MEM, "no memory for a list of models");
    list->at = grown;
    grown[list->n] = (struct hub_snapshot){0};
    strcpy(grown[list->n].repo, list->repo);
    strcpy(grown[list->n].commit, name);
    list->n++;
    return LM_OK;
}

static enum lm_status add_ref(void *context, const char *folder, const char *name,
                              struct lm_error *err)
{
    struct snapshot_list *list = context;
    char commit[41], *path = joined(folder, name), *inside = NULL;
    if (!path || asprintf(&inside, "%s%s", list->ref_prefix, name) < 0) {
        free(path);
        return no_memory(err);
    }
    enum lm_status status = LM_OK;
    if (is_folder(path)) {
        char *prefix = joined(inside, "");
        const char *outer = list->ref_prefix;
        list->ref_prefix = prefix;
        if (strlen(inside) < 150) status = for_each_entry(path, add_ref, list, err);
        list->ref_prefix = outer;
        free(prefix);
    } else if (hub_ref_is_revision(inside) && read_ref(path, commit)) {
        for (size_t i = 0; i < list->n; i++)
            if (!strcmp(list->at[i].repo, list->repo) && !strcmp(list->at[i].commit, commit) &&
                (!*list->at[i].revision || !strcmp(inside, "main")))
                strcpy(list->at[i].revision, inside);
    }
    free(path);
    free(inside);
    return status;
}

static enum lm_status add_repo(void *context, const char *folder, const char *name,
                               struct lm_error *err)
{
    struct snapshot_list *list = context;
    (void)folder;
    if (!repo_of_folder(name, list->repo)) return LM_OK;
    char *snapshots = joined(folder, name), *refs = snapshots ? joined(snapshots, "refs") : NULL;
    char *below = snapshots ? joined(snapshots, "snapshots") : NULL;
    list->ref_prefix = "";
    enum lm_status status = for_each_entry(below, add_snapshot, list, err);
    if (status == LM_OK) status = for_each_entry(refs, add_ref, list, err);
    free(snapshots);
    free(refs);
    free(below);
    return status;
}

static int compare_snapshots(const void *a, const void *b)
{
    const struct hub_snapshot *one = a, *other = b;
    const int order = strcmp(one->repo, other->repo);
    return order ? order : strcmp(one->commit, other->commit);
}

enum lm_status hub_cache_list_snapshots(const char *root, struct hub_snapshot **out, size_t *n,
                                        struct lm_error *err)
{
    struct snapshot_list list = {0};
    const enum lm_status status = for_each_entry(root, add_repo, &list, err);
    if (status != LM_OK) {
        free(list.at);
        return status;
    }
    if (list.n) qsort(list.at, list.n, sizeof(*list.at), compare_snapshots);
    *out = list.at;
    *n = list.n;
    return LM_OK;
}

struct partial_list {
    struct hub_partial *at;
    size_t n;
    char repo[200];
};

static enum lm_status add_partial(void *context, const char *folder, const char *name,
                                  struct lm_error *err)
{
    static const char suffix[] = ".lean-part.j";
    struct partial_list *list = context;
    const size_t n = strlen(name);
    if (n <= strlen(suffix) || strcmp(name + n - strlen(suffix), suffix) != 0) return LM_OK;
    struct hub_partial partial = {0};
    if (asprintf(&partial.path, "%s/%.*s", folder, (int)(n - strlen(suffix)), name) < 0)
        return no_memory(err);
    strcpy(partial.repo, list->repo);
    struct hub_partial *grown = NULL;
    if (part_file_peek(partial.path, NULL, &partial.n_done, &partial.n_bytes, &partial.name))
        grown = realloc(list->at, (list->n + 1) * sizeof(*grown));
    if (!grown) {
        free(partial.path);
        free(partial.name);
        return LM_OK;
    }
    list->at = grown;
    grown[list->n++] = partial;
    return LM_OK;
}

static enum lm_status add_partials(void *context, const char *folder, const char *name,
                                   struct lm_error *err)
{
    struct partial_list *list = context;
    if (!repo_of_folder(name, list->repo)) return LM_OK;
    char *path = joined(folder, name), *blobs = path ? joined(path, "blobs") : NULL;
    const enum lm_status status = for_each_entry(blobs, add_partial, list, err);
    free(path);
    free(blobs);
    return status;
}

enum lm_status hub_cache_list_partials(const char *root, struct hub_partial **out, size_t *n,
                                       struct lm_error *err)
{
    struct partial_list list = {0};
    const enum lm_status status = for_each_entry(root, add_partials, &list, err);
    if (status != LM_OK) {
        hub_cache_free_partials(list.at, list.n);
        return status;
    }
    *out = list.at;
    *n = list.n;
    return LM_OK;
}

void hub_cache_free_partials(struct hub_partial *partials, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(partials[i].path);
        free(partials[i].name);
    }
    free(partials);
}

/* ---- removing ---- */

/* How many files of all snapshots of the repository are this blob. */
static enum lm_status count_uses(const char *root, const char *repo, const char *hash, size_t *n,
                                 struct lm_error *err)
{
    struct hub_snapshot *snapshots = NULL;
    size_t n_snapshot = 0;
    enum lm_status status = hub_cache_list_snapshots(root, &snapshots, &n_snapshot, err);
    *n = 0;
    for (size_t i = 0; i < n_snapshot && status == LM_OK; i++) {
        struct hub_files files = {0};
        if (strcmp(snapshots[i].repo, repo) != 0) continue;
        status = hub_cache_list_files(root, repo, snapshots[i].commit, &files, err);
        for (size_t k = 0; k < files.n; k++)
            *n += !strcmp(files.file[k].hash, hash);
        hub_files_free(&files);
    }
    free(snapshots);
    return status;
}

/* Removes the folder of path and those above it that are empty, up to and without `top`. */
static void remove_empty_parents(const char *path, const char *top)
{
    char *copy = strdup(path);
    for (char *slash; copy && (slash = strrchr(copy, '/')) && strlen(copy) > strlen(top);) {
        *slash = '\0';
        if (strlen(copy) <= strlen(top) || rmdir(copy)) break;
    }
    free(copy);
}

static enum lm_status remove_file(const char *root, const struct hub_snapshot *snapshot,
                                  const struct hub_file *file, bool dry_run, uint64_t *n_bytes,
                                  struct lm_error *err)
{
    size_t n_use = 1;
    char *folder = repo_path(root, snapshot->repo, "snapshots");
    char *commit = hub_cache_snapshot_path(root, snapshot->repo, snapshot->commit);
    char *path = commit ? joined(commit, file->path) : NULL;
    char *blob = hub_cache_blob_path(root, snapshot->repo, file->hash);
    enum lm_status status = folder && path && blob ? LM_OK : no_memory(err);
    if (status == LM_OK && *file->hash)
        status = count_uses(root, snapshot->repo, file->hash, &n_use, err);
    if (status == LM_OK && n_use <= 1) *n_bytes += file->n_bytes;
    if (status == LM_OK && !dry_run) {
        /* the name first: a link to nothing is worse than a blob without a name */
        if (unlink(path) || (n_use <= 1 && *file->hash && unlink(blob) && errno != ENOENT))
            status = lm_fail_errno(err, "%s", path);
        remove_empty_parents(path, folder);
    }
    free(folder);
    free(commit);
    free(path);
    free(blob);
    return status;
}

static enum lm_status remove_ref(void *context, const char *folder, const char *name,
                                 struct lm_error *err)
{
    const char *gone = context;
    char commit[41], *path = joined(folder, name);
    enum lm_status status = path ? LM_OK : no_memory(err);
    if (path && is_folder(path)) {
        status = for_each_entry(path, remove_ref, context, err);
        rmdir(path);
    } else if (path && read_ref(path, commit) && !strcmp(commit, gone)) {
        unlink(path);
    }
    free(path);
    return status;
}

/* What is left of a repository without snapshots. */
static void remove_empty_repo(const char *root, const char *repo)
{
    static const char *const folders[] = {"blobs", "refs", "snapshots", ""};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        char *path = repo_path(root, repo, folders[i]);
        if (path) rmdir(path);
        free(path);
    }
}

enum lm_status hub_cache_remove(const char *root, const struct hub_snapshot *snapshot,
                                const char *const *paths, size_t n_path, bool dry_run,
                                uint64_t *n_bytes, struct lm_error *err)
{
    struct hub_files files = {0};
    enum lm_status status =
        hub_cache_list_files(root, snapshot->repo, snapshot->commit, &files, err);
    for (size_t i = 0; i < files.n && status == LM_OK; i++)
        for (size_t k = 0; k < n_path && status == LM_OK; k++)
            if (!strcmp(files.file[i].path, paths[k]))
                status = remove_file(root, snapshot, &files.file[i], dry_run, n_bytes, err);
    hub_files_free(&files);
    char *left = hub_cache_snapshot_path(root, snapshot->repo, snapshot->commit);
    if (status == LM_OK && !dry_run && !is_folder(left)) {
        char commit[41], *refs = repo_path(root, snapshot->repo, "refs");
        strcpy(commit, snapshot->commit);
        status = for_each_entry(refs, remove_ref, commit, err);
        free(refs);
        remove_empty_repo(root, snapshot->repo);
    }
    free(left);
    return status;
}
