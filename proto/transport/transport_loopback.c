/* One message at a time changes hands under a lock: the receiver copies it out of the sender's
 * buffer. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proto/transport/transport.h"

struct loopback {
    struct transport_edge edge;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    const void *offered; /* the message on its way; NULL: none */
    size_t offered_bytes;
    bool aborted;
};

static enum lm_status fail_aborted(struct lm_error *err)
{
    return lm_fail(err, LM_E_RANK_LOST, "loopback edge was aborted");
}

/* Waits until there is a message, or none. */
static bool wait_offer_locked(struct loopback *loop, bool present)
{
    while (!loop->aborted && (loop->offered != NULL) != present)
        pthread_cond_wait(&loop->changed, &loop->lock);
    return !loop->aborted;
}

static enum lm_status loopback_send(struct transport_edge *edge, const void *buffer, size_t n_bytes,
                                    struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    pthread_mutex_lock(&loop->lock);
    bool alive = wait_offer_locked(loop, false);
    if (alive) {
        loop->offered = buffer;
        loop->offered_bytes = n_bytes;
        pthread_cond_broadcast(&loop->changed);
        alive = wait_offer_locked(loop, false);
    }
    pthread_mutex_unlock(&loop->lock);
    return alive ? LM_OK : fail_aborted(err);
}

static enum lm_status loopback_recv(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                    struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    enum lm_status status = LM_OK;
    pthread_mutex_lock(&loop->lock);
    if (!wait_offer_locked(loop, true)) {
        status = fail_aborted(err);
    } else if (loop->offered_bytes != n_bytes) {
        status = lm_fail(err, LM_E_FAIL, "loopback edge: %zu bytes sent, %zu expected",
                         loop->offered_bytes, n_bytes);
    } else {
        memcpy(buffer, loop->offered, n_bytes);
        loop->offered = NULL;
        pthread_cond_broadcast(&loop->changed);
    }
    pthread_mutex_unlock(&loop->lock);
    return status;
}

static void loopback_abort(struct transport_edge *edge)
{
    struct loopback *loop = (struct loopback *)edge;
    pthread_mutex_lock(&loop->lock);
    loop->aborted = true;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->lock);
}

static void loopback_close(struct transport_edge *edge)
{
    struct loopback *loop = (struct loopback *)edge;
    if (!loop) return;
    pthread_cond_destroy(&loop->changed);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static const struct transport_ops loopback_ops = {
    .name = "loopback",
    .send = loopback_send,
    .recv = loopback_recv,
    .abort = loopback_abort,
    .close = loopback_close,
};

enum lm_status transport_loopback_open(struct transport_edge **out, struct lm_error *err)
{
    struct loopback *loop = calloc(1, sizeof(*loop));
    if (!loop) return lm_fail(err, LM_E_NO_MEM, "loopback edge: no memory");
    loop->edge.ops = &loopback_ops;
    pthread_mutex_init(&loop->lock, NULL);
    pthread_cond_init(&loop->changed, NULL);
    *out = &loop->edge;
    return LM_OK;
}
