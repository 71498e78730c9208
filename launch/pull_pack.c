/* A thread between a download and the packer. */
#include "launch/pull_pack.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/hub/pull_source.h"
#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"
#include "worker/pack/packer.h"

enum { HEAD_BYTES = 32 << 20 /* more than metadata and vocabulary take */ };

struct pull_pack {
    struct pull_user user;
    const volatile sig_atomic_t *is_interrupted;
    struct pull_source *source;
    char *folder; /* of the pack */
    char *links;  /* a folder in which the parts have their names */
    pthread_t thread;
    enum lm_status status; /* of the thread, once it has ended */
    struct lm_error error;
};

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* FOLDER/Model-Q4_K_M.lmpack of Model-Q4_K_M-00001-of-00002.gguf */
static char *pack_folder(const char *folder, const char *main_path)
{
    char *path;
    const char *name = base_name(main_path);
    size_t n = strlen(name);
    unsigned part, n_part;
    int used = 0;
    if (n > 5) n -= 5;
    if (n > 15 && sscanf(name + n - 15, "-%5u-of-%5u%n", &part, &n_part, &used) == 2 && used == 15)
        n -= 15;
    return asprintf(&path, "%s/%.*s.lmpack", folder, (int)n, name) < 0 ? NULL : path;
}

static char *joined(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

/* ---- the thread ---- */

/* The file of the source that the packer calls so; n_file if there is none. */
static size_t find_file(const struct pull_pack *pack, const char *path)
{
    size_t i = 0;
    const size_t n = pull_source_n_file(pack->source);
    while (i < n && strcmp(base_name(pull_source_name(pack->source, i)), base_name(path)) != 0)
        i++;
    return i;
}

static enum lm_status wait_for_bytes(void *context, const char *path, uint64_t offset, uint64_t n,
                                     struct lm_error *err)
{
    const struct pull_pack *pack = context;
    const size_t i = find_file(pack, path);
    if (i == pull_source_n_file(pack->source))
        return lm_fail(err, LM_E_FAIL, "%s: is no part of what is downloaded", path);
    return pull_source_wait(pack->source, i, offset, offset + n, err);
}

static void release_bytes(void *context, const char *path, uint64_t offset, uint64_t n)
{
    const struct pull_pack *pack = context;
    pull_source_release(pack->source, find_file(pack, path), offset, offset + n);
}

static enum lm_status wait_for_end(void *context, struct lm_error *err)
{
    const struct pull_pack *pack = context;
    return pull_source_wait_for_end(pack->source, err);
}

static void remove_links(const struct pull_pack *pack)
{
    for (size_t i = 0; pack->links && i < pull_source_n_file(pack->source); i++) {
        char *link = joined(pack->links, base_name(pull_source_name(pack->source, i)));
        if (link) unlink(link);
        free(link);
    }
    if (pack->links) rmdir(pack->links);
}

static enum lm_status make_links(const struct pull_pack *pack, struct lm_error *err)
{
    if (mkdir(pack->links, 0777) && errno != EEXIST) return lm_fail_errno(err, "%s", pack->links);
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < pull_source_n_file(pack->source) && status == LM_OK; i++) {
        char *link = joined(pack->links, base_name(pull_source_name(pack->source, i)));
        char *target = realpath(pull_source_path(pack->source, i), NULL);
        if (!link || !target)
            status = lm_fail_errno(err, "%s", pull_source_path(pack->source, i));
        else if ((unlink(link) && errno != ENOENT) || symlink(target, link))
            status = lm_fail_errno(err, "%s", link);
        free(link);
        free(target);
    }
    return status;
}

/* Waits for the start of every file. */
static enum lm_status wait_for_heads(const struct pull_pack *pack, uint64_t n_bytes,
                                     struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < pull_source_n_file(pack->source) && status == LM_OK; i++) {
        const uint64_t n_all = pull_source_size(pack->source, i);
        status = pull_source_wait(pack->source, i, 0, n_bytes < n_all ? n_bytes : n_all, err);
    }
    return status;
}

/* A header that does not end in what there is of it looks malformed; then more is waited for. */
static enum lm_status open_source(const struct pull_pack *pack, struct gguf_file **out,
                                  struct lm_error *err)
{
    uint64_t n_most = 0;
    for (size_t i = 0; i < pull_source_n_file(pack->source); i++)
        if (pull_source_size(pack->source, i) > n_most) n_most = pull_source_size(pack->source, i);
    char *first = joined(pack->links, base_name(pull_source_name(pack->source, 0)));
    if (!first) return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    enum lm_status status = LM_E_FORMAT;
    for (uint64_t n_bytes = HEAD_BYTES; status == LM_E_FORMAT; n_bytes *= 4) {
        status = wait_for_heads(pack, n_bytes, err);
        if (status == LM_OK) status = gguf_open(out, first, err);
        if (n_bytes >= n_most) break;
    }
    free(first);
    return status;
}

static enum lm_status pack_source(const struct pull_pack *pack, struct lm_error *err)
{
    struct gguf_file *file = NULL;
    const struct pack_arrival arrival = {.context = (void *)pack,
                                         .wait = wait_for_bytes,
                                         .release = release_bytes,
                                         .finish = wait_for_end};
    const struct pack_config config = {.is_interrupted = pack->is_interrupted, .arrival = &arrival};
    enum lm_status status = make_links(pack, err);
    if (status == LM_OK) status = open_source(pack, &file, err);
    if (status == LM_OK) status = pack_write(file, pack->folder, &config, err);
    gguf_close(file);
    remove_links(pack);
    return status;
}

static void *run(void *context)
{
    struct pull_pack *pack = context;
    pack->status = pack_source(pack, &pack->error);
    pack->error.status = pack->status;
    if (pack->status != LM_OK) pull_source_fail(pack->source, &pack->error);
    return NULL;
}

/* ---- the pull's side ---- */

static bool is_made(void *context, const char *folder, const char *main_path, char **path)
{
    (void)context;
    char *made = pack_folder(folder, main_path);
    char *manifest = made ? joined(made, LMPACK_MANIFEST_NAME) : NULL;
    const bool there = manifest && !access(manifest, R_OK);
    *path = there ? joined(made, LMPACK_DENSE_NAME) : NULL;
    free(made);
    free(manifest);
    return *path != NULL;
}

static enum lm_status begin(void *context, struct pull_source *source, const char *folder,
                            const char *main_path, struct lm_error *err)
{
    struct pull_pack *pack = context;
    free(pack->folder);
    free(pack->links);
    pack->source = source;
    pack->links = NULL;
    pack->folder = pack_folder(folder, main_path);
    if (!pack->folder || asprintf(&pack->links, "%s.source", pack->folder) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    const int code = pthread_create(&pack->thread, NULL, run, pack);
    return code ? lm_fail(err, LM_E_NO_MEM, "no thread to pack: %s", strerror(code)) : LM_OK;
}

static enum lm_status end(void *context, char **path, struct lm_error *err)
{
    struct pull_pack *pack = context;
    pthread_join(pack->thread, NULL);
    if (pack->status == LM_OK) *path = joined(pack->folder, LMPACK_DENSE_NAME);
    if (pack->status != LM_OK && err) *err = pack->error;
    return pack->status;
}

enum lm_status pull_pack_create(struct pull_pack **out, const volatile sig_atomic_t *is_interrupted,
                                struct lm_error *err)
{
    struct pull_pack *pack = calloc(1, sizeof(*pack));
    if (!pack) return lm_fail(err, LM_E_NO_MEM, "no memory to pack");
    pack->is_interrupted = is_interrupted;
    pack->user = (struct pull_user){
        .context = pack, .head_bytes = HEAD_BYTES, .is_made = is_made, .begin = begin, .end = end};
    *out = pack;
    return LM_OK;
}

void pull_pack_destroy(struct pull_pack *pack)
{
    if (!pack) return;
    free(pack->folder);
    free(pack->links);
    free(pack);
}

const struct pull_user *pull_pack_user(const struct pull_pack *pack)
{
    return &pack->user;
}
