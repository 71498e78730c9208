/* The cache of downloads, in the public layout of the hub's own programs, so that files are shared
 * with them in both directions:
 *
 *   ROOT/models--OWNER--NAME/blobs/HASH               the bytes, by their hash
 *                           /snapshots/COMMIT/PATH    a relative symbolic link to a blob
 *                           /refs/REVISION            the commit that a branch or tag was
 *
 * Ours alone are, beside a blob: HASH.lean-part, HASH.lean-part.j (part_file.h) and HASH.lean-lock
 * (hub_lock.h). A blob, a link and a ref appear whole or not at all, in this order, so whoever
 * finds a name finds what it stands for.
 *
 * Paths that are returned are malloc'ed; NULL: no memory. Threads: functions of their arguments. */
#ifndef LEAN_COORDINATOR_HUB_HUB_CACHE_H
#define LEAN_COORDINATOR_HUB_HUB_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct hub_files;

char *hub_cache_blob_path(const char *root, const char *repo, const char *hash);
char *hub_cache_snapshot_path(const char *root, const char *repo, const char *commit);

/* Makes the folders of a repository. */
enum lm_status hub_cache_prepare(const char *root, const char *repo, struct lm_error *err);
/* Makes the folders above path. */
enum lm_status hub_cache_make_parents(const char *path, struct lm_error *err);

/* snapshots/COMMIT/PATH becomes a link to the blob, whatever was there. */
enum lm_status hub_cache_link(const char *root, const char *repo, const char *commit,
                              const char *path, const char *hash, struct lm_error *err);
enum lm_status hub_cache_write_ref(const char *root, const char *repo, const char *revision,
                                   const char *commit, struct lm_error *err);

/* The commit of a revision of which there is a snapshot; revision: a branch, tag or commit. */
bool hub_cache_find_commit(const char *root, const char *repo, const char *revision,
                           char commit[41]);
/* The files of a snapshot that are there, sorted; hash is that of the blob where it is known. */
enum lm_status hub_cache_list_files(const char *root, const char *repo, const char *commit,
                                    struct hub_files *files, struct lm_error *err);

struct hub_snapshot {
    char repo[200], commit[41];
    char revision[200]; /* a branch or tag that points here, or "" */
};
/* All snapshots, sorted by repository; *out: malloc'ed. A cache that is not there is empty. */
enum lm_status hub_cache_list_snapshots(const char *root, struct hub_snapshot **out, size_t *n,
                                        struct lm_error *err);

struct hub_partial {
    char repo[200];
    char *name; /* in the repository */
    char *path; /* of the blob that it will be */
    uint64_t n_done, n_bytes;
};
/* All files that were begun and not finished; *out: for hub_cache_free_partials. */
enum lm_status hub_cache_list_partials(const char *root, struct hub_partial **out, size_t *n,
                                       struct lm_error *err);
void hub_cache_free_partials(struct hub_partial *partials, size_t n);

/* Removes files [n_path] from a snapshot; the snapshot, refs to it and the repository's folder,
 * once they are empty; and blobs that no snapshot of the repository uses. n_bytes: added to.
 * dry_run: only counts. */
enum lm_status hub_cache_remove(const char *root, const struct hub_snapshot *snapshot,
                                const char *const *paths, size_t n_path, bool dry_run,
                                uint64_t *n_bytes, struct lm_error *err);

#endif
