/* Two threads, one hashes and one syncs, each taking the files in their order. */
#include "coordinator/hub/part_keeper.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "coordinator/hub/content_hash.h"
#include "coordinator/hub/part_file.h"
#include "proto/base/log.h"

enum { HASH_BYTES = 1 << 20, SYNC_BYTES = 256 << 20, SYNC_S = 5, SYNC_SHARE = 20 };
static const double SYNC_MIN_S = 0.25;

enum role { HASHES, SYNCS, ROLE_COUNT };

struct kept {
    struct part_file *part; /* NULL: not there, or done with */
    const char *expected;
    struct content_hash *hash;
    uint64_t n_hashed;
    double synced_s, sync_took_s;
    enum part_verdict verdict;
};

/* A thread and its own. */
struct part_worker {
    struct part_keeper *keeper;
    pthread_t thread;
    pthread_mutex_t work; /* held while it is at a file; HASHES before SYNCS before keeper->lock */
    bool awake;           /* under keeper->lock */
};

struct part_keeper {
    struct part_worker worker[ROLE_COUNT];
    uint8_t *buffer; /* [HASH_BYTES], of the thread that hashes */
    size_t n_file, n_started;

    pthread_mutex_t lock; /* guards what follows; a part is used under work */
    pthread_cond_t changed;
    struct kept *file; /* [n_file] */
    bool stops;
    struct lm_error error; /* the first; status LM_OK: none */
};

/* ---- the threads ---- */

/* Whether there was something to do. */
static bool hash_some(struct part_keeper *keeper, struct kept *kept, enum lm_status *status,
                      struct lm_error *err)
{
    const uint64_t n_there = part_file_prefix(kept->part) - kept->n_hashed;
    const size_t n = n_there < HASH_BYTES ? (size_t)n_there : HASH_BYTES;
    /* small pieces would cost more system calls than they are worth */
    const bool is_rest = kept->n_hashed + n == part_file_size(kept->part);
    if (!n || (n < HASH_BYTES && !is_rest)) return false;
    if (!kept->hash)
        *status = content_hash_begin(&kept->hash, kept->expected, part_file_size(kept->part), err);
    if (*status == LM_OK)
        *status = part_file_read(kept->part, kept->n_hashed, keeper->buffer, n, err);
    if (*status == LM_OK) content_hash_add(kept->hash, keeper->buffer, n);
    kept->n_hashed += n;
    part_file_set_hashed(kept->part, kept->n_hashed);
    return true;
}

static enum lm_status sync_if_due(struct kept *kept, struct lm_error *err)
{
    const uint64_t n = part_file_unsynced(kept->part);
    const double now_s = log_now_s();
    if (!n) kept->synced_s = now_s;
    const double wait_s = fmin(SYNC_S, fmax(SYNC_MIN_S, SYNC_SHARE * kept->sync_took_s));
    if (n < SYNC_BYTES && now_s - kept->synced_s < wait_s) return LM_OK;
    const enum lm_status status = part_file_sync(kept->part, err);
    kept->synced_s = log_now_s();
    kept->sync_took_s = kept->synced_s - now_s;
    return status;
}

/* A file whose last byte has come and was hashed. The other thread must be off it when it is
 * handed back. */
static enum lm_status conclude(struct part_keeper *keeper, struct kept *kept, struct lm_error *err)
{
    enum part_verdict verdict = PART_GOOD;
    enum lm_status status = LM_OK;
    if (kept->expected && !kept->hash) /* an empty file */
        status = content_hash_begin(&kept->hash, kept->expected, 0, err);
    if (status == LM_OK && kept->hash) {
        if (!content_hash_end(kept->hash)) verdict = PART_BAD;
        kept->hash = NULL;
    }
    pthread_mutex_lock(&keeper->worker[SYNCS].work);
    if (status == LM_OK && verdict == PART_GOOD) status = part_file_sync(kept->part, err);
    pthread_mutex_lock(&keeper->lock);
    kept->verdict = verdict;
    kept->part = NULL;
    pthread_mutex_unlock(&keeper->lock);
    pthread_mutex_unlock(&keeper->worker[SYNCS].work);
    return status;
}

/* A step for a file; whether there may be more to do. */
static bool hash_step(struct part_keeper *keeper, struct kept *kept, enum lm_status *status,
                      struct lm_error *err)
{
    const uint64_t n_bytes = part_file_size(kept->part);
    if (kept->expected && hash_some(keeper, kept, status, err)) return true;
    if (!kept->expected) part_file_set_hashed(kept->part, part_file_prefix(kept->part));
    if (*status == LM_OK && part_file_prefix(kept->part) == n_bytes &&
        (!kept->expected || kept->n_hashed == n_bytes))
        *status = conclude(keeper, kept, err);
    return false;
}

static bool step(struct part_worker *worker, size_t i, enum lm_status *status, struct lm_error *err)
{
    struct part_keeper *keeper = worker->keeper;
    struct kept *kept = &keeper->file[i];
    bool busy = false;
    pthread_mutex_lock(&worker->work);
    pthread_mutex_lock(&keeper->lock);
    const bool is_there = kept->part != NULL && !keeper->stops;
    pthread_mutex_unlock(&keeper->lock);
    if (is_there && worker == &keeper->worker[HASHES])
        busy = hash_step(keeper, kept, status, err);
    else if (is_there)
        *status = sync_if_due(kept, err);
    pthread_mutex_unlock(&worker->work);
    return busy;
}

/* Until bytes come, or a sync may be due; false: the work ends. */
static bool wait_for_bytes(struct part_worker *worker)
{
    struct part_keeper *keeper = worker->keeper;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    pthread_mutex_lock(&keeper->lock);
    while (!worker->awake && !keeper->stops &&
           !pthread_cond_timedwait(&keeper->changed, &keeper->lock, &until))
        ;
    worker->awake = false;
    const bool goes_on = !keeper->stops && keeper->error.status == LM_OK;
    pthread_mutex_unlock(&keeper->lock);
    return goes_on;
}

static void *keep_all(void *context)
{
    struct part_worker *worker = context;
    struct part_keeper *keeper = worker->keeper;
    struct lm_error error = {0};
    enum lm_status status = LM_OK;
    while (status == LM_OK && wait_for_bytes(worker))
        for (size_t i = 0; i < keeper->n_file; i++)
            while (status == LM_OK && step(worker, i, &status, &error))
                ;
    error.status = status;
    pthread_mutex_lock(&keeper->lock);
    if (status != LM_OK && keeper->error.status == LM_OK) keeper->error = error;
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

/* ---- the downloader's side ---- */

static void join(struct part_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->stops = true;
    pthread_cond_broadcast(&keeper->changed);
    pthread_mutex_unlock(&keeper->lock);
    while (keeper->n_started)
        pthread_join(keeper->worker[--keeper->n_started].thread, NULL);
}

static void destroy(struct part_keeper *keeper)
{
    for (size_t i = 0; keeper->file && i < keeper->n_file; i++)
        content_hash_destroy(keeper->file[i].hash);
    pthread_cond_destroy(&keeper->changed);
    pthread_mutex_destroy(&keeper->lock);
    for (int role = 0; role < ROLE_COUNT; role++)
        pthread_mutex_destroy(&keeper->worker[role].work);
    free(keeper->file);
    free(keeper->buffer);
    free(keeper);
}

enum lm_status part_keeper_start(struct part_keeper **out, size_t n_file, struct lm_error *err)
{
    struct part_keeper *keeper = calloc(1, sizeof(*keeper));
    if (!keeper) return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    pthread_mutex_init(&keeper->lock, NULL);
    pthread_cond_init(&keeper->changed, NULL);
    for (int role = 0; role < ROLE_COUNT; role++) {
        pthread_mutex_init(&keeper->worker[role].work, NULL);
        keeper->worker[role].keeper = keeper;
    }
    keeper->n_file = n_file;
    keeper->buffer = malloc(HASH_BYTES);
    keeper->file = calloc(n_file + 1, sizeof(*keeper->file));
    while (keeper->buffer && keeper->file && keeper->n_started < ROLE_COUNT) {
        struct part_worker *worker = &keeper->worker[keeper->n_started];
        if (pthread_create(&worker->thread, NULL, keep_all, worker)) break;
        keeper->n_started++;
    }
    if (keeper->n_started < ROLE_COUNT) {
        join(keeper);
        destroy(keeper);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    }
    *out = keeper;
    return LM_OK;
}

void part_keeper_add(struct part_keeper *keeper, size_t i, struct part_file *part, const char *hash)
{
    pthread_mutex_lock(&keeper->worker[HASHES].work);
    pthread_mutex_lock(&keeper->worker[SYNCS].work);
    pthread_mutex_lock(&keeper->lock);
    content_hash_destroy(keeper->file[i].hash);
    keeper->file[i] = (struct kept){.part = part, .expected = hash, .synced_s = log_now_s()};
    pthread_mutex_unlock(&keeper->lock);
    pthread_mutex_unlock(&keeper->worker[SYNCS].work);
    pthread_mutex_unlock(&keeper->worker[HASHES].work);
    part_keeper_wake(keeper);
}

void part_keeper_wake(struct part_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    for (int role = 0; role < ROLE_COUNT; role++)
        keeper->worker[role].awake = true;
    pthread_cond_broadcast(&keeper->changed);
    pthread_mutex_unlock(&keeper->lock);
}

enum lm_status part_keeper_verdict(struct part_keeper *keeper, size_t i, enum part_verdict *out,
                                   struct lm_error *err)
{
    pthread_mutex_lock(&keeper->lock);
    const enum lm_status status = keeper->error.status;
    if (status != LM_OK && err) *err = keeper->error;
    *out = keeper->file[i].verdict;
    pthread_mutex_unlock(&keeper->lock);
    return status;
}

enum lm_status part_keeper_stop(struct part_keeper *keeper, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (!keeper) return LM_OK;
    join(keeper);
    for (size_t i = 0; i < keeper->n_file; i++)
        if (keeper->file[i].part && status == LM_OK)
            status = part_file_sync(keeper->file[i].part, err);
    destroy(keeper);
    return status;
}
