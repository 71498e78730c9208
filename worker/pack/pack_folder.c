/* A lock on the folder itself, a rename, and the removal of an older pack. */
#include "worker/pack/pack_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/lmpack/lmpack.h"

static bool is_wanted_never(const void *context, uint32_t il)
{
    (void)context, (void)il;
    return false;
}

/* Whether a file belongs to a pack; il: the layer of a finished file of experts, else UINT32_MAX.
 */
static bool is_pack_file(const char *name, uint32_t *il)
{
    static const char *const names[] = {LMPACK_MANIFEST_NAME, LMPACK_DENSE_NAME,
                                        LMPACK_PROFILE_NAME};
    char stem[32];
    const size_t n = strlen(name), n_suffix = strlen(".partial");
    const bool partial = n > n_suffix && !strcmp(name + n - n_suffix, ".partial");
    *il = UINT32_MAX;
    if (n >= sizeof(stem)) return false;
    memcpy(stem, name, n + 1);
    if (partial) stem[n - n_suffix] = '\0';
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(stem, names[i])) return true;
    uint32_t layer;
    char again[32];
    if (sscanf(stem, "experts-%3u.bin", &layer) != 1) return false;
    snprintf(again, sizeof(again), "experts-%03u.bin", layer);
    if (strcmp(stem, again)) return false;
    if (!partial) *il = layer;
    return true;
}

/* Removes the files of a pack from a folder, but experts that are wanted. */
static enum lm_status clear(const char *path, bool (*is_wanted)(const void *context, uint32_t il),
                            const void *context, struct lm_error *err)
{
    DIR *folder = opendir(path);
    enum lm_status status = LM_OK;
    if (!folder) return lm_fail_errno(err, "%s: open", path);
    for (struct dirent *entry; status == LM_OK && (entry = readdir(folder));) {
        uint32_t il;
        if (!is_pack_file(entry->d_name, &il)) continue;
        if (il != UINT32_MAX && is_wanted(context, il)) continue;
        if (unlinkat(dirfd(folder), entry->d_name, 0))
            status = lm_fail_errno(err, "%s/%s: remove", path, entry->d_name);
    }
    closedir(folder);
    return status;
}

/* What may be replaced: nothing, an empty folder, a pack. */
static enum lm_status check_target(const char *path, struct lm_error *err)
{
    struct stat info;
    char *manifest;
    if (lstat(path, &info)) return LM_OK;
    if (asprintf(&manifest, "%s/" LMPACK_MANIFEST_NAME, path) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", path);
    const bool is_pack = S_ISDIR(info.st_mode) && !access(manifest, F_OK);
    free(manifest);
    if (is_pack) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "%s: exists and is not a pack", path);
}

static enum lm_status open_partial(struct pack_folder *folder, struct lm_error *err)
{
    if (mkdir(folder->partial, 0777) && errno != EEXIST)
        return lm_fail_errno(err, "%s: create", folder->partial);
    folder->fd = open(folder->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (folder->fd < 0) return lm_fail_errno(err, "%s: open", folder->partial);
    if (flock(folder->fd, LOCK_EX | LOCK_NB))
        return lm_fail(err, LM_E_BUSY, "%s: being written by another process", folder->partial);
    return LM_OK;
}

enum lm_status pack_folder_open(struct pack_folder *folder, const char *path,
                                bool (*is_wanted)(const void *context, uint32_t il),
                                const void *context, struct lm_error *err)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    *folder = (struct pack_folder){.path = strndup(path, n), .fd = -1};
    if (!folder->path || asprintf(&folder->partial, "%s.partial", folder->path) < 0) {
        folder->partial = NULL;
        pack_folder_close(folder);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", path);
    }
    enum lm_status status = check_target(folder->path, err);
    if (status == LM_OK) status = open_partial(folder, err);
    if (status == LM_OK) status = clear(folder->partial, is_wanted, context, err);
    if (status != LM_OK) pack_folder_close(folder);
    return status;
}

void pack_folder_close(struct pack_folder *folder)
{
    if (folder->fd >= 0) close(folder->fd);
    free(folder->partial);
    free(folder->path);
}

enum lm_status pack_folder_check_space(const struct pack_folder *folder, uint64_t n_bytes,
                                       struct lm_error *err)
{
    struct statvfs info;
    char needed[24], left[24];
    if (fstatvfs(folder->fd, &info)) return LM_OK; /* then it shows when it happens */
    const uint64_t n_left = (uint64_t)info.f_bavail * info.f_frsize;
    if (n_bytes <= n_left) return LM_OK;
    return lm_fail(err, LM_E_NO_SPACE, "%s: needs %s, the disk has %s left", folder->path,
                   log_format_bytes(n_bytes, needed), log_format_bytes(n_left, left));
}

/* Renames partial to path; a pack that is there goes. */
static enum lm_status take_name(const struct pack_folder *folder, struct lm_error *err)
{
    const char *path = folder->path, *partial = folder->partial;
    if (access(path, F_OK)) {
        if (!rename(partial, path)) return LM_OK;
    } else if (!renameat2(AT_FDCWD, partial, AT_FDCWD, path, RENAME_EXCHANGE)) {
        const enum lm_status status = clear(partial, is_wanted_never, NULL, err);
        if (status == LM_OK && rmdir(partial))
            log_warning("%s: what is left of the pack that was replaced: %s", partial,
                        strerror(errno));
        return status;
    }
    return lm_fail_errno(err, "%s: rename to %s", partial, path);
}

/* So that the name survives a crash. */
static void sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *parent = !slash          ? strdup(".")
                   : slash == path ? strdup("/")
                                   : strndup(path, (size_t)(slash - path));
    const int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(parent);
}

enum lm_status pack_folder_publish(struct pack_folder *folder, struct lm_error *err)
{
    if (fsync(folder->fd)) return lm_fail_errno(err, "%s: sync", folder->partial);
    const enum lm_status status = take_name(folder, err);
    if (status == LM_OK) sync_parent(folder->path);
    return status;
}
