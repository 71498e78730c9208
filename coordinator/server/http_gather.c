/* Sends what quick streams have written.
 *
 * To wake the thread of a connection takes whoever wakes it some 15 us, on a virtual machine up to
 * 30, which for a small model is a tenth of a token and more. So a stream whose events come closer
 * than a millisecond is not woken for each of them: this thread, which wakes itself, looks once a
 * millisecond as long as there is something, and waits to be woken only when there was nothing. */
#include <time.h>

#include "coordinator/server/http_internal.h"

void http_gather_locked(struct http_exchange *exchange)
{
    struct http_server *http = exchange->http;
    if (exchange->is_gathered || !exchange->suspended) return;
    exchange->is_gathered = true;
    atomic_fetch_add(&exchange->n_ref, 1);
    pthread_mutex_lock(&http->gather_lock);
    exchange->gathered = http->gathered;
    http->gathered = exchange;
    pthread_cond_signal(&http->has_gathered);
    pthread_mutex_unlock(&http->gather_lock);
}

/* Resumes those in the list; false: it is empty. */
static bool resume_all(struct http_exchange *gathered)
{
    const bool any = gathered != NULL;
    while (gathered) {
        struct http_exchange *exchange = gathered;
        gathered = exchange->gathered;
        pthread_mutex_lock(&exchange->lock);
        exchange->is_gathered = false;
        exchange_resume_locked(exchange);
        pthread_mutex_unlock(&exchange->lock);
        exchange_unref(exchange);
    }
    return any;
}

static struct http_exchange *take_gathered(struct http_server *http)
{
    pthread_mutex_lock(&http->gather_lock);
    struct http_exchange *gathered = http->gathered;
    http->gathered = NULL;
    pthread_mutex_unlock(&http->gather_lock);
    return gathered;
}

static void *run_gatherer(void *context)
{
    static const struct timespec pause = {.tv_nsec = HTTP_GATHER_US * 1000};
    struct http_server *http = context;
    for (bool stops = false; !stops;) {
        pthread_mutex_lock(&http->gather_lock);
        while (!http->gathered && !http->gather_stops)
            pthread_cond_wait(&http->has_gathered, &http->gather_lock);
        stops = http->gather_stops;
        pthread_mutex_unlock(&http->gather_lock);
        do
            nanosleep(&pause, NULL);
        while (resume_all(take_gathered(http)));
    }
    return NULL;
}

enum lm_status http_gather_start(struct http_server *http, struct lm_error *err)
{
    if (pthread_create(&http->gatherer, NULL, run_gatherer, http))
        return lm_fail(err, LM_E_NO_MEM, "http: no thread for streams");
    http->has_gatherer = true;
    return LM_OK;
}

void http_gather_stop(struct http_server *http)
{
    if (!http->has_gatherer) return;
    pthread_mutex_lock(&http->gather_lock);
    http->gather_stops = true;
    pthread_cond_signal(&http->has_gathered);
    pthread_mutex_unlock(&http->gather_lock);
    pthread_join(http->gatherer, NULL);
    http->has_gatherer = false;
}
