/* A pack is made of items: the files of its layers, then the dense part. Threads take the items in
 * order; every file is written whole or not at all, the manifest last. */
#include "worker/pack/packer.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cpu/pool.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf_write.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"
#include "proto/model/weights_sample.h"
#include "worker/pack/pack_dense.h"
#include "worker/pack/pack_experts.h"
#include "worker/pack/pack_folder.h"
#include "worker/pack/pack_progress.h"
#include "worker/pager/expert_store.h"
#include "worker/pager/heat_profile.h"

enum { JOBS_DEFAULT = 2, PROFILE_BYTES_MAX = 64 << 20 };

/* A source, and what its pack will be. */
struct plan {
    const struct gguf_file *source;
    struct hparams hp;
    struct expert_store *store;
    struct lmpack_layer layer[LMPACK_MAX_LAYER]; /* [n_moe] */
    uint32_t n_moe;
    uint64_t dense_bytes, expert_bytes;
};

/* The work of the threads. */
struct job {
    const struct plan *plan;            /* NULL: a pack is verified without its source */
    const struct lmpack *verified;      /* NULL: a pack is written */
    const struct pack_arrival *arrival; /* NULL: the source is there */
    const char *folder;
    const struct lmpack_layer *layer; /* [n_moe] */
    uint32_t n_moe, n_expert;
    uint64_t *checksum; /* [n_moe][n_expert] written */
    uint64_t dense_bytes, dense_checksum;
    struct pack_buffer *buffer; /* one for each thread */
    struct pack_progress progress;
    atomic_uint n_kept; /* layers that an earlier run had finished */
};

/* ---- planning ----------------------------------------------------------------------------- */

static enum lm_status plan_layers(struct plan *plan, struct lm_error *err)
{
    const struct hparams *hp = &plan->hp;
    uint64_t n_source = 0;
    for (uint32_t il = 0; il < hp->n_layer + hp->n_layer_mtp; il++) {
        const struct expert_layer *experts = expert_store_layer(plan->store, il);
        if (!experts->n_part) continue;
        struct lmpack_layer *layer = &plan->layer[plan->n_moe++];
        layer->layer = il;
        pack_lay_out(layer, experts);
        plan->expert_bytes += lmpack_file_bytes(layer, hp->n_expert);
        n_source += experts->n_bytes * hp->n_expert;
    }
    /* nothing of the source may be lost */
    if (n_source != pack_dense_left_out_bytes(plan->source, hp))
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: has routed experts in two forms",
                       gguf_path(plan->source));
    return LM_OK;
}

static enum lm_status make_plan(struct plan **out, const struct gguf_file *source,
                                struct lm_error *err)
{
    if (gguf_is_pack(source))
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: is the dense part of a pack", gguf_path(source));
    struct plan *plan = calloc(1, sizeof(*plan));
    if (!plan) return lm_fail(err, LM_E_NO_MEM, "no memory for a plan");
    plan->source = source;
    struct hparams *hp = &plan->hp;
    enum lm_status status = hparams_read(hp, source, err);
    if (status == LM_OK)
        status =
            expert_store_create(&plan->store, source, hp, 0, hp->n_layer + hp->n_layer_mtp, err);
    if (status == LM_OK) status = plan_layers(plan, err);
    if (status == LM_OK) status = pack_dense_size(source, hp, &plan->dense_bytes, err);
    if (status != LM_OK) {
        expert_store_destroy(plan->store);
        free(plan);
        return status;
    }
    *out = plan;
    return LM_OK;
}

static void free_plan(struct plan *plan)
{
    if (!plan) return;
    expert_store_destroy(plan->store);
    free(plan);
}

enum lm_status pack_plan(const struct gguf_file *source, uint64_t *n_bytes, struct lm_error *err)
{
    struct plan *plan;
    const enum lm_status status = make_plan(&plan, source, err);
    if (status != LM_OK) return status;
    *n_bytes = plan->dense_bytes + plan->expert_bytes;
    free_plan(plan);
    return LM_OK;
}

/* ---- items -------------------------------------------------------------------------------- */

static struct pack_experts experts_of(struct job *job, uint32_t item, uint32_t thread)
{
    return (struct pack_experts){
        .source = job->plan ? job->plan->store : NULL,
        .layer = &job->layer[item],
        .n_expert = job->n_expert,
        .buffer = job->buffer[thread],
        .arrival = job->arrival,
        .progress = &job->progress,
    };
}

/* Keeps the file of an earlier run if it is the source's. */
static enum lm_status write_layer(struct job *job, const struct pack_experts *experts,
                                  const char *path, uint64_t *checksum, struct lm_error *err)
{
    if (!access(path, F_OK)) {
        const enum lm_status status = pack_experts_compare(experts, path, checksum, err);
        if (status == LM_OK) atomic_fetch_add(&job->n_kept, 1);
        if (status == LM_OK) pack_experts_release(experts);
        if (status != LM_E_MISMATCH && status != LM_E_FORMAT) return status;
    }
    const enum lm_status status = pack_experts_write(experts, path, checksum, err);
    if (status == LM_OK) pack_experts_release(experts);
    return status;
}

static enum lm_status do_layer(struct job *job, uint32_t item, uint32_t thread,
                               struct lm_error *err)
{
    const struct pack_experts experts = experts_of(job, item, thread);
    char *path = lmpack_layer_path(job->folder, job->layer[item].layer);
    if (!path) return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", job->folder);
    const enum lm_status status =
        job->verified
            ? pack_experts_verify(&experts, path, err)
            : write_layer(job, &experts, path, job->checksum + (size_t)item * job->n_expert, err);
    free(path);
    return status;
}

static enum lm_status verify_dense(struct job *job, const char *path, struct lm_error *err)
{
    const struct plan *plan = job->plan;
    const enum lm_status status =
        pack_dense_check(path, lmpack_manifest(job->verified)->dense_checksum, &job->progress, err);
    if (status != LM_OK || !plan) return status;
    return pack_dense_compare(plan->source, &plan->hp, path, err);
}

static enum lm_status do_dense(struct job *job, struct lm_error *err)
{
    char *path;
    if (asprintf(&path, "%s/" LMPACK_DENSE_NAME, job->folder) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", job->folder);
    const enum lm_status status =
        job->verified
            ? verify_dense(job, path, err)
            : pack_dense_write(job->plan->source, &job->plan->hp, path, job->arrival,
                               &job->progress, &job->dense_bytes, &job->dense_checksum, err);
    free(path);
    return status;
}

static void do_item(void *context, uint32_t item, uint32_t thread)
{
    struct job *job = context;
    struct lm_error err = {0};
    if (pack_progress_add(&job->progress, 0) != LM_OK) return; /* another thread has failed */
    const enum lm_status status =
        item < job->n_moe ? do_layer(job, item, thread, &err) : do_dense(job, &err);
    err.status = status;
    const bool damaged =
        status == LM_E_FORMAT || status == LM_E_MISMATCH || status == LM_E_NOT_FOUND;
    if (job->verified && damaged)
        pack_progress_damage(&job->progress, &err);
    else if (status != LM_OK)
        pack_progress_fail(&job->progress, &err);
}

static uint64_t largest_extent(const struct job *job)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < job->n_moe; i++)
        if (job->layer[i].extent_bytes > n_bytes) n_bytes = job->layer[i].extent_bytes;
    return n_bytes;
}

/* Does all items, n_job at a time. */
static enum lm_status run(struct job *job, const char *what, uint64_t n_bytes,
                          const struct pack_config *config, struct lm_error *err)
{
    struct pool *pool;
    const uint32_t n_thread = config->n_job ? config->n_job : JOBS_DEFAULT;
    enum lm_status status = pool_create(&pool, n_thread, false, err);
    if (status != LM_OK) return status;
    job->buffer = calloc(n_thread, sizeof(*job->buffer));
    if (!job->buffer) status = lm_fail(err, LM_E_NO_MEM, "no memory for %u jobs", n_thread);
    uint32_t n_buffer = 0;
    while (status == LM_OK && n_buffer < n_thread) {
        status = pack_buffer_create(&job->buffer[n_buffer], largest_extent(job), err);
        if (status == LM_OK) n_buffer++;
    }
    if (status == LM_OK) {
        /* of a source that arrives, its arrival is what is shown */
        pack_progress_begin(&job->progress, what, config->arrival ? 0 : n_bytes,
                            config->is_interrupted);
        pool_run(pool, do_item, job, job->n_moe + 1);
        status = pack_progress_end(&job->progress, err);
    }
    while (n_buffer > 0)
        pack_buffer_destroy(&job->buffer[--n_buffer]);
    free(job->buffer);
    pool_destroy(pool);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------ */

static bool is_planned(const void *context, uint32_t il)
{
    const struct plan *plan = context;
    for (uint32_t i = 0; i < plan->n_moe; i++)
        if (plan->layer[i].layer == il) return true;
    return false;
}

/* Bytes that are still to be written, if what an earlier run left is good. */
static uint64_t missing_bytes(const struct plan *plan, const char *folder)
{
    uint64_t n_bytes = plan->dense_bytes;
    for (uint32_t i = 0; i < plan->n_moe; i++) {
        const uint64_t file_bytes = lmpack_file_bytes(&plan->layer[i], plan->hp.n_expert);
        char *path = lmpack_layer_path(folder, plan->layer[i].layer);
        struct stat info;
        if (!path || stat(path, &info) || (uint64_t)info.st_size != file_bytes)
            n_bytes += file_bytes;
        free(path);
    }
    return n_bytes;
}

static enum lm_status write_bytes(const char *path, const char *bytes, size_t n,
                                  struct lm_error *err)
{
    enum lm_status status = LM_OK;
    FILE *file = fopen(path, "wbe");
    if (!file) return lm_fail_errno(err, "%s: create", path);
    if (fwrite(bytes, 1, n, file) != n || fflush(file) || fsync(fileno(file)))
        status = lm_fail_errno(err, "%s: write", path);
    if (fclose(file) && status == LM_OK) status = lm_fail_errno(err, "%s: close", path);
    return status;
}

/* A profile of another model would preload the wrong experts on every machine that gets the pack.
 */
static enum lm_status check_profile(const char *path, const struct gguf_file *source,
                                    struct lm_error *err)
{
    struct heat_profile *profile;
    uint64_t fingerprint, weights;
    enum lm_status status = heat_profile_read(&profile, path, err);
    if (status != LM_OK) return status;
    status = gguf_fingerprint(source, &fingerprint, err);
    if (status == LM_OK) status = weights_sample(source, &weights, err);
    if (status == LM_OK) status = heat_profile_check(profile, path, fingerprint, weights, err);
    heat_profile_destroy(profile);
    return status;
}

static enum lm_status copy_profile(const char *from, const char *folder, struct lm_error *err)
{
    char *bytes = NULL, *path = NULL;
    size_t n;
    enum lm_status status = read_all_path(from, PROFILE_BYTES_MAX, &bytes, &n, err);
    if (status != LM_OK) return status;
    if (asprintf(&path, "%s/" LMPACK_PROFILE_NAME, folder) < 0) {
        path = NULL;
        status = lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", folder);
    }
    if (status == LM_OK) status = write_bytes(path, bytes, n, err);
    free(path);
    free(bytes);
    return status;
}

static enum lm_status write_manifest(struct job *job, struct lm_error *err)
{
    const struct plan *plan = job->plan;
    const uint32_t n_expert = job->n_expert;
    struct lmpack_layer layer[LMPACK_MAX_LAYER];
    struct lmpack_manifest manifest = {
        .architecture = plan->hp.arch->name,
        .n_layer = plan->hp.n_layer + plan->hp.n_layer_mtp,
        .n_expert = plan->n_moe ? n_expert : 0,
        .dense_bytes = job->dense_bytes,
        .dense_checksum = job->dense_checksum,
        .layer = layer,
        .n_moe = plan->n_moe,
    };
    enum lm_status status = gguf_fingerprint(plan->source, &manifest.fingerprint, err);
    if (status != LM_OK) return status;
    uint64_t *offset = malloc(((size_t)plan->n_moe * n_expert + 1) * sizeof(*offset));
    if (!offset) return lm_fail(err, LM_E_NO_MEM, "no memory for %u offsets", n_expert);
    for (uint32_t i = 0; i < plan->n_moe; i++) {
        uint64_t *const offsets = offset + (size_t)i * n_expert;
        layer[i] = plan->layer[i];
        layer[i].offset = offsets;
        layer[i].checksum = job->checksum + (size_t)i * n_expert;
        for (uint32_t ie = 0; ie < n_expert; ie++)
            offsets[ie] = ie * layer[i].extent_bytes;
    }
    status = lmpack_write_manifest(job->folder, &manifest, err);
    free(offset);
    return status;
}

static enum lm_status write_files(struct job *job, const struct pack_config *config,
                                  struct lm_error *err)
{
    const struct plan *plan = job->plan;
    job->checksum = calloc((size_t)plan->n_moe * job->n_expert + 1, sizeof(*job->checksum));
    if (!job->checksum)
        return lm_fail(err, LM_E_NO_MEM, "no memory for %u checksums", job->n_expert);
    enum lm_status status =
        run(job, "packing", plan->dense_bytes + plan->expert_bytes, config, err);
    if (status == LM_OK && config->profile_path)
        status = copy_profile(config->profile_path, job->folder, err);
    if (status == LM_OK) status = write_manifest(job, err);
    free(job->checksum);
    return status;
}

static enum lm_status write_planned(const struct plan *plan, const char *path,
                                    const struct pack_config *config, struct lm_error *err)
{
    struct pack_folder folder;
    enum lm_status status = pack_folder_open(&folder, path, is_planned, plan, err);
    if (status != LM_OK) return status;
    struct job job = {.plan = plan,
                      .arrival = config->arrival,
                      .folder = folder.partial,
                      .layer = plan->layer,
                      .n_moe = plan->n_moe,
                      .n_expert = plan->hp.n_expert};
    status = pack_folder_check_space(&folder, missing_bytes(plan, folder.partial), err);
    if (status == LM_OK) status = write_files(&job, config, err);
    if (status == LM_E_INTERRUPTED || status == LM_E_NO_SPACE)
        lm_hint(err, "what is done is kept in %.180s; run the same command to go on",
                folder.partial);
    const uint32_t n_kept = atomic_load(&job.n_kept);
    if (n_kept) log_info("%u of %u layers were there already", n_kept, plan->n_moe);
    if (status == LM_OK && config->arrival)
        status = config->arrival->finish(config->arrival->context, err);
    if (status == LM_OK) status = pack_folder_publish(&folder, err);
    pack_folder_close(&folder);
    return status;
}

enum lm_status pack_write(const struct gguf_file *source, const char *folder,
                          const struct pack_config *config, struct lm_error *err)
{
    struct plan *plan;
    enum lm_status status = make_plan(&plan, source, err);
    if (status != LM_OK) return status;
    if (config->profile_path) status = check_profile(config->profile_path, source, err);
    if (status == LM_OK) status = write_planned(plan, folder, config, err);
    free_plan(plan);
    return status;
}

/* ---- verifying ---------------------------------------------------------------------------- */

static bool same_matrix(const struct lmpack_matrix *a, const struct lmpack_matrix *b)
{
    return a->type == b->type && a->n_col == b->n_col && a->n_row == b->n_row;
}

/* Whether layers, experts and matrices are those of the source. */
static enum lm_status compare_shape(const struct lmpack_manifest *manifest, const struct plan *plan,
                                    const char *folder, struct lm_error *err)
{
    uint64_t fingerprint;
    const enum lm_status status = gguf_fingerprint(plan->source, &fingerprint, err);
    if (status != LM_OK) return status;
    bool same = manifest->n_moe == plan->n_moe && manifest->fingerprint == fingerprint &&
                (!plan->n_moe || manifest->n_expert == plan->hp.n_expert);
    for (uint32_t i = 0; same && i < plan->n_moe; i++) {
        const struct lmpack_layer *a = &manifest->layer[i], *b = &plan->layer[i];
        same = a->layer == b->layer;
        for (int m = 0; same && m < LMPACK_MATRIX_COUNT; m++)
            same = same_matrix(&a->matrix[m], &b->matrix[m]);
    }
    if (same) return LM_OK;
    return lm_fail(err, LM_E_MISMATCH, "%s: is the pack of another model than %s", folder,
                   gguf_path(plan->source));
}

static enum lm_status verify(const struct lmpack *pack, const struct plan *plan,
                             const struct pack_config *config, uint64_t *n_bytes,
                             struct lm_error *err)
{
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    struct job job = {.plan = plan,
                      .verified = pack,
                      .folder = lmpack_folder(pack),
                      .layer = manifest->layer,
                      .n_moe = manifest->n_moe,
                      .n_expert = manifest->n_expert};
    *n_bytes = manifest->dense_bytes;
    for (uint32_t i = 0; i < manifest->n_moe; i++)
        *n_bytes += lmpack_file_bytes(&manifest->layer[i], manifest->n_expert);
    if (plan) {
        const enum lm_status status = compare_shape(manifest, plan, job.folder, err);
        if (status != LM_OK) return status;
    }
    return run(&job, "verifying", *n_bytes, config, err);
}

enum lm_status pack_verify(const char *folder, const struct gguf_file *source,
                           const struct pack_config *config, uint64_t *n_bytes,
                           struct lm_error *err)
{
    struct lmpack *pack = NULL;
    struct plan *plan = NULL;
    enum lm_status status = lmpack_open(&pack, folder, err);
    if (status == LM_OK && source) status = make_plan(&plan, source, err);
    if (status == LM_OK) status = verify(pack, plan, config, n_bytes, err);
    free_plan(plan);
    lmpack_close(pack);
    return status;
}
