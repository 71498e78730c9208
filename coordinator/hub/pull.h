/* `lean pull` without its display: a reference becomes files in the cache.
 *
 *   resolve   the revision to a commit, the commit to a list of files
 *   choose    which of them (hub_files.h)
 *   plan      what of those is there; is there room for the rest
 *   lock      every file that is to be fetched, in one order for all processes
 *   fetch     and verify (download.h)
 *   publish   each as it is done; in the end the ref (hub_cache.h)
 *
 * What happened up to a failure is kept, and the next call goes on from there.
 *
 * Threads: the caller's; callbacks are called on it. */
#ifndef LEAN_COORDINATOR_HUB_PULL_H
#define LEAN_COORDINATOR_HUB_PULL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/hub/hub_files.h"
#include "coordinator/hub/hub_http.h"
#include "coordinator/hub/hub_ref.h"
#include "proto/base/error.h"

enum pull_state { PULL_NEW, PULL_PARTIAL, PULL_CACHED };

struct pull_file {
    const char *path; /* in the repository */
    const char *hash;
    uint64_t n_bytes, n_done; /* n_done: of them on this disk */
    enum pull_state state;
};

/* What callbacks see; grows from resolve to publish. */
struct pull_plan {
    const char *repo, *revision, *commit, *variant;
    struct pull_file *file; /* [n_file] */
    size_t n_file;
    uint64_t n_bytes, n_missing; /* of all files; of them not on this disk */
};

struct pull_view {
    void *context;
    /* The hub has these, and none is chosen. */
    void (*on_variants)(void *context, const struct hub_variant *variants, size_t n);
    /* Not LM_OK: nothing is fetched. */
    enum lm_status (*on_plan)(void *context, const struct pull_plan *plan, struct lm_error *err);
    void (*on_progress)(void *context, const struct pull_plan *plan);
    void (*on_file_done)(void *context, const struct pull_plan *plan, size_t i);
    void (*on_warning)(void *context, const char *text);
    void (*on_wait)(void *context, const char *path, const char *holder); /* twice a second */
};

struct pull_source;

/* Whoever makes something else of the files while they arrive, after which they are not kept. */
struct pull_user {
    void *context;
    uint64_t head_bytes; /* of each file, fetched before anything else */
    /* Whether what would be made in folder of the file main_path (in the repository) is there;
     * *path: malloc'ed, to be given as the result. */
    bool (*is_made)(void *context, const char *folder, const char *main_path, char **path);
    /* The files are open; the user may start a thread. */
    enum lm_status (*begin)(void *context, struct pull_source *source, const char *folder,
                            const char *main_path, struct lm_error *err);
    /* The source has been concluded; returns when it is not used any more. *path: of what was made,
     * malloc'ed. Called if begin was, and did not fail. */
    enum lm_status (*end)(void *context, char **path, struct lm_error *err);
};

struct pull_config {
    struct hub_http http;
    const char *cache; /* root of the cache */
    const char *dest;  /* plain files below this folder instead; NULL: the cache */
    struct hub_wish wish;
    uint32_t n_connection;
    uint64_t segment_bytes, rate_bytes;
    bool checks_hash;  /* of what is fetched */
    bool checks_again; /* also of what is there */
    bool force;        /* fetch what is there, too */
    bool dry_run, offline, waits;
    const struct pull_view *view;
    const struct pull_user *user; /* or NULL */
};

struct pull_result {
    char *folder;    /* the snapshot, or the destination */
    char *main_path; /* the file to open; NULL: nothing here opens it */
    char commit[41];
    uint64_t n_fetched;
};

/* LM_E_NOT_FOUND, LM_E_AUTH, LM_E_NETWORK, LM_E_FORMAT, LM_E_NO_SPACE, LM_E_BUSY, LM_E_INTERRUPTED:
 * as exit codes say. */
enum lm_status pull_run(const struct hub_ref *ref, const struct pull_config *config,
                        struct pull_result *out, struct lm_error *err);
void pull_result_free(struct pull_result *result);

/* The same from the cache alone. LM_E_NOT_FOUND: it is not there, or not all of it. */
enum lm_status pull_find(const struct hub_ref *ref, const char *cache, const struct hub_wish *wish,
                         struct pull_result *out, struct lm_error *err);

#endif
