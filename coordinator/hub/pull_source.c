/* Ranges are looked for a few times a second: a wait is for megabytes. */
#include "coordinator/hub/pull_source.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/hub/part_file.h"

enum { WAIT_MS = 20 };

struct source_file {
    char *name, *path;
    uint64_t n_bytes;
    struct part_file *part;
};

struct pull_source {
    struct source_file *file; /* [n_file] */
    size_t n_file;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool has_ended;
    enum lm_status ending;
    struct lm_error failure; /* of the user; status LM_OK: none */
};

enum lm_status pull_source_create(struct pull_source **out, size_t n_file, struct lm_error *err)
{
    struct pull_source *source = calloc(1, sizeof(*source));
    if (source) source->file = calloc(n_file + 1, sizeof(*source->file));
    if (!source || !source->file) {
        free(source);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a stream");
    }
    source->n_file = n_file;
    pthread_mutex_init(&source->lock, NULL);
    pthread_cond_init(&source->changed, NULL);
    *out = source;
    return LM_OK;
}

void pull_source_destroy(struct pull_source *source)
{
    if (!source) return;
    for (size_t i = 0; i < source->n_file; i++) {
        free(source->file[i].name);
        free(source->file[i].path);
    }
    pthread_cond_destroy(&source->changed);
    pthread_mutex_destroy(&source->lock);
    free(source->file);
    free(source);
}

enum lm_status pull_source_set(struct pull_source *source, size_t i, const char *name,
                               const char *path, uint64_t n_bytes, struct part_file *part,
                               struct lm_error *err)
{
    struct source_file *file = &source->file[i];
    *file = (struct source_file){strdup(name), strdup(path), n_bytes, part};
    return file->name && file->path ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a stream");
}

enum lm_status pull_source_tend(struct pull_source *source, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < source->n_file && status == LM_OK; i++)
        if (source->file[i].part) status = part_file_punch(source->file[i].part, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&source->lock);
    status = source->failure.status;
    if (status != LM_OK && err) *err = source->failure;
    pthread_mutex_unlock(&source->lock);
    return status;
}

void pull_source_conclude(struct pull_source *source, enum lm_status status)
{
    pthread_mutex_lock(&source->lock);
    source->has_ended = true;
    source->ending = status;
    pthread_cond_broadcast(&source->changed);
    pthread_mutex_unlock(&source->lock);
}

size_t pull_source_n_file(const struct pull_source *source)
{
    return source->n_file;
}

const char *pull_source_name(const struct pull_source *source, size_t i)
{
    return source->file[i].name;
}

const char *pull_source_path(const struct pull_source *source, size_t i)
{
    return source->file[i].path;
}

uint64_t pull_source_size(const struct pull_source *source, size_t i)
{
    return source->file[i].n_bytes;
}

static bool is_there(const struct source_file *file, uint64_t start, uint64_t end)
{
    struct byte_range gap;
    return !file->part || !part_file_next_gap(file->part, start, &gap) || gap.start >= end;
}

/* Waits a little; false: the pull has ended, and not well. */
static bool wait_a_little(struct pull_source *source)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&source->lock);
    if (!source->has_ended) pthread_cond_timedwait(&source->changed, &source->lock, &until);
    const bool goes_on = !source->has_ended || source->ending == LM_OK;
    pthread_mutex_unlock(&source->lock);
    return goes_on;
}

enum lm_status pull_source_wait(struct pull_source *source, size_t i, uint64_t start, uint64_t end,
                                struct lm_error *err)
{
    while (!is_there(&source->file[i], start, end))
        if (!wait_a_little(source))
            return lm_fail(err, LM_E_INTERRUPTED, "%s: does not arrive", source->file[i].name);
    return LM_OK;
}

void pull_source_release(struct pull_source *source, size_t i, uint64_t start, uint64_t end)
{
    if (source->file[i].part)
        part_file_release(source->file[i].part, (struct byte_range){start, end}, NULL);
}

enum lm_status pull_source_wait_for_end(struct pull_source *source, struct lm_error *err)
{
    pthread_mutex_lock(&source->lock);
    while (!source->has_ended)
        pthread_cond_wait(&source->changed, &source->lock);
    const enum lm_status status = source->ending;
    pthread_mutex_unlock(&source->lock);
    return status == LM_OK ? LM_OK : lm_fail(err, LM_E_INTERRUPTED, "the source did not arrive");
}

void pull_source_fail(struct pull_source *source, const struct lm_error *error)
{
    pthread_mutex_lock(&source->lock);
    source->failure = *error;
    pthread_mutex_unlock(&source->lock);
}
