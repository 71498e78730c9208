/* A job of some ranks in this process: a thread each for all but rank 0, whose runner the test
 * drives. One rank is a worker alone. */
#ifndef LEAN_TESTS_UNIT_WORKER_PIPELINE_JOB_H
#define LEAN_TESTS_UNIT_WORKER_PIPELINE_JOB_H

#include "tests/unit/cmocka_all.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "proto/transport/world.h"
#include "worker/pipeline/pipeline.h"
#include "worker/pipeline/stage.h"
#include "worker/worker.h"

enum { JOB_RANK_MAX = 4, JOB_N_SLOT = 6, JOB_N_CTX = 256, JOB_N_BATCH = 64, JOB_N_POSITION = 256 };

/* A backend whose operations a test has changed. */
struct job_backend {
    struct backend_ops ops;
    struct backend *backend;
};

struct job_rank {
    struct world *world;
    struct transport_edge *in, *out;
    struct expert_store *store;
    struct job_backend own;
    struct worker *worker;
    char name[32];
    pthread_t thread;
    enum lm_status status;
    struct lm_error err;
};

struct job {
    struct gguf_file *file;
    struct hparams hp;
    uint32_t n_rank;
    struct job_rank rank[JOB_RANK_MAX];
    struct pipeline *pipeline;
    struct step_runner runner;
    atomic_int n_lost; /* calls of on_lost */
};

static inline void *job_run_stage(void *context)
{
    struct job_rank *rank = context;
    rank->status = stage_run(rank->world, rank->worker, &rank->err);
    return NULL;
}

static inline void job_open_rank(struct job *job, uint32_t i, uint32_t begin, uint32_t end)
{
    struct lm_error err;
    struct job_rank *rank = &job->rank[i];
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    struct world *world = rank->world;
    if (i > 0) assert_int_equal(world->ops->edge_open(world, false, &rank->in, &err), LM_OK);
    if (i + 1 < job->n_rank)
        assert_int_equal(world->ops->edge_open(world, true, &rank->out, &err), LM_OK);
    assert_int_equal(backend_cpu_create(&rank->own.backend, &cpu, &err), LM_OK);
    rank->own.ops = *rank->own.backend->ops;
    rank->own.backend->ops = &rank->own.ops;
    assert_int_equal(expert_store_create(&rank->store, job->file, &job->hp, begin, end, &err),
                     LM_OK);
    snprintf(rank->name, sizeof(rank->name), "rank %u", i);
    const struct worker_config config = {.file = job->file,
                                         .hp = &job->hp,
                                         .store = rank->store,
                                         .backend = rank->own.backend,
                                         .layer_begin = begin,
                                         .layer_end = end,
                                         .in = rank->in,
                                         .out = rank->out,
                                         .n_slot = JOB_N_SLOT,
                                         .n_ctx = JOB_N_CTX,
                                         .n_position = JOB_N_POSITION,
                                         .n_batch = JOB_N_BATCH,
                                         .n_draft = STEP_DRAFT_MAX,
                                         .kv_type = TENSOR_F16,
                                         .name = job->n_rank > 1 ? rank->name : NULL};
    if (worker_create(&rank->worker, &config, &err) != LM_OK) fail_msg("%s", err.message);
}

/* Everything but the threads. cut: [n_rank - 1], the first layers of the ranks behind the first. */
static inline void job_prepare(struct job *job, const char *model, uint32_t n_rank,
                               const uint32_t *cut)
{
    char path[1000];
    struct lm_error err;
    struct world *world[JOB_RANK_MAX];
    *job = (struct job){.n_rank = n_rank};
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             model);
    assert_int_equal(gguf_open(&job->file, path, &err), LM_OK);
    assert_int_equal(hparams_read(&job->hp, job->file, &err), LM_OK);
    assert_int_equal(world_loopback_create(world, n_rank, &err), LM_OK);
    for (uint32_t i = 0; i < n_rank; i++) {
        job->rank[i].world = world[i];
        job_open_rank(job, i, i ? cut[i - 1] : 0, i + 1 < n_rank ? cut[i] : job->hp.n_layer);
    }
}

static inline void job_on_lost(void *context, const struct lm_error *err)
{
    struct job *job = context;
    assert_int_equal(err->status, LM_E_RANK_LOST);
    atomic_fetch_add(&job->n_lost, 1);
}

static inline void job_start(struct job *job, uint32_t slack)
{
    struct lm_error err;
    for (uint32_t i = 1; i < job->n_rank; i++)
        assert_int_equal(pthread_create(&job->rank[i].thread, NULL, job_run_stage, &job->rank[i]),
                         0);
    if (job->n_rank == 1) {
        job->runner = worker_runner(job->rank[0].worker);
        return;
    }
    const struct pipeline_config config = {.world = job->rank[0].world,
                                           .worker = job->rank[0].worker,
                                           .slack = slack,
                                           .on_lost = job_on_lost,
                                           .lost_context = job};
    assert_int_equal(pipeline_create(&job->pipeline, &config, &err), LM_OK);
    job->runner = pipeline_runner(job->pipeline);
    assert_int_equal(job->runner.depth, job->n_rank + slack);
}

/* status: with which every stage shall have ended. */
static inline void job_close(struct job *job, enum lm_status status)
{
    pipeline_close(job->pipeline);
    if (job->pipeline) assert_int_equal(atomic_load(&job->n_lost), status != LM_OK);
    for (uint32_t i = 1; i < job->n_rank; i++) {
        pthread_join(job->rank[i].thread, NULL);
        assert_int_equal(job->rank[i].status, status);
    }
    for (uint32_t i = 0; i < job->n_rank; i++) {
        struct job_rank *rank = &job->rank[i];
        worker_close(rank->worker, NULL);
        expert_store_destroy(rank->store);
        rank->own.backend->ops->destroy(rank->own.backend);
        if (rank->in) rank->in->ops->close(rank->in);
        if (rank->out) rank->out->ops->close(rank->out);
        rank->world->ops->close(rank->world);
    }
    gguf_close(job->file);
}

#endif
