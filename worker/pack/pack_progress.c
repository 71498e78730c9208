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
    const bool failed = progress->error.status != LM_OK;
    if (!failed && progress->n_damage > 1)
        return lm_fail(err, progress->damage.status,
                       "%u places are not as they must be, the first: %s", progress->n_damage,
                       progress->damage.message);
    const struct lm_error *error = failed ? &progress->error : &progress->damage;
    if (err && error->status != LM_OK) *err = *error;
    return error->status;
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

/* The first is told by the job's own error. */
void pack_progress_damage(struct pack_progress *progress, const struct lm_error *damage)
{
    pthread_mutex_lock(&progress->lock);
    const bool first = !progress->n_damage++;
    if (first) progress->damage = *damage;
    pthread_mutex_unlock(&progress->lock);
    if (!first) log_warning("%s", damage->message);
}
