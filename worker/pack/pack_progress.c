/* A bar and an error under one lock, taken a few hundred times a second. */
#include "worker/pack/pack_progress.h"

void pack_progress_begin(struct pack_progress *progress, const char *what, uint64_t n_bytes,
                         const volatile sig_atomic_t *is_interrupted)
{
    *progress = (struct pack_progress){.is_interrupted = is_interrupted};
    pthread_mutex_init(&progress->lock, NULL);
    log_bar_begin(&progress->bar, what, NULL, n_bytes);
}

enum lm_status pack_progress_end(struct pack_progress *progress, struct lm_error *err)
{
    log_bar_end(&progress->bar);
    pthread_mutex_destroy(&progress->lock);
    if (err && progress->error.status != LM_OK) *err = progress->error;
    return progress->error.status;
}

enum lm_status pack_progress_add(struct pack_progress *progress, uint64_t n_bytes)
{
    pthread_mutex_lock(&progress->lock);
    progress->n_done += n_bytes;
    if (progress->n_done > progress->bar.total) /* a file that had to be done again */
        progress->n_done = progress->bar.total;
    log_bar_update(&progress->bar, progress->n_done);
    if (progress->error.status == LM_OK && progress->is_interrupted && *progress->is_interrupted)
        lm_fail(&progress->error, LM_E_INTERRUPTED, "interrupted");
    const enum lm_status status = progress->error.status;
    pthread_mutex_unlock(&progress->lock);
    return status;
}

void pack_progress_fail(struct pack_progress *progress, const struct lm_error *error)
{
    pthread_mutex_lock(&progress->lock);
    if (progress->error.status == LM_OK) progress->error = *error;
    pthread_mutex_unlock(&progress->lock);
}
