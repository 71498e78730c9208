/* Two queues, of buffers offered and of buffers to be filled: who begins second copies, under a
 * lock. */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/transport/transport.h"

/* What one end has begun. */
struct side {
    struct {
        void *buffer;
        size_t n_bytes;
    } begun[TRANSPORT_DEPTH]; /* ring */
    uint64_t n_begun, n_ended;
};

struct loopback {
    struct transport_edge edge;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_uint n_ref;
    /* guarded by lock */
    struct side sender, receiver;
    uint64_t n_copied;
    struct lm_error failed; /* LM_OK: not so far */
};

/* Copies what both ends have begun. */
static void copy_locked(struct loopback *loop)
{
    while (loop->failed.status == LM_OK && loop->n_copied < loop->sender.n_begun &&
           loop->n_copied < loop->receiver.n_begun) {
        const size_t i = loop->n_copied++ % TRANSPORT_DEPTH;
        const size_t n_sent = loop->sender.begun[i].n_bytes;
        const size_t n_expected = loop->receiver.begun[i].n_bytes;
        if (n_sent != n_expected)
            lm_fail(&loop->failed, LM_E_FAIL, "loopback edge: %zu bytes sent, %zu expected", n_sent,
                    n_expected);
        else
            memcpy(loop->receiver.begun[i].buffer, loop->sender.begun[i].buffer, n_sent);
    }
    pthread_cond_broadcast(&loop->changed);
}

/* The failure of the edge, if there was one. */
static enum lm_status unlock(struct loopback *loop, struct lm_error *err)
{
    const enum lm_status status = loop->failed.status;
    if (status != LM_OK && err) *err = loop->failed;
    pthread_mutex_unlock(&loop->lock);
    return status;
}

static enum lm_status begin(struct loopback *loop, struct side *side, void *buffer, size_t n_bytes,
                            struct lm_error *err)
{
    pthread_mutex_lock(&loop->lock);
    assert(side->n_begun - side->n_ended < TRANSPORT_DEPTH);
    const size_t i = side->n_begun++ % TRANSPORT_DEPTH;
    side->begun[i].buffer = buffer;
    side->begun[i].n_bytes = n_bytes;
    copy_locked(loop);
    return unlock(loop, err);
}

static enum lm_status end(struct loopback *loop, struct side *side, struct lm_error *err)
{
    pthread_mutex_lock(&loop->lock);
    assert(side->n_ended < side->n_begun);
    while (loop->failed.status == LM_OK && loop->n_copied <= side->n_ended)
        pthread_cond_wait(&loop->changed, &loop->lock);
    side->n_ended++;
    return unlock(loop, err);
}

static enum lm_status loopback_send_begin(struct transport_edge *edge, const void *buffer,
                                          size_t n_bytes, struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    return begin(loop, &loop->sender, (void *)buffer, n_bytes, err);
}

static enum lm_status loopback_send_end(struct transport_edge *edge, struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    return end(loop, &loop->sender, err);
}

static enum lm_status loopback_recv_begin(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                          struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    return begin(loop, &loop->receiver, buffer, n_bytes, err);
}

static enum lm_status loopback_recv_end(struct transport_edge *edge, struct lm_error *err)
{
    struct loopback *loop = (struct loopback *)edge;
    return end(loop, &loop->receiver, err);
}

static bool loopback_recv_ready(struct transport_edge *edge)
{
    struct loopback *loop = (struct loopback *)edge;
    pthread_mutex_lock(&loop->lock);
    assert(loop->receiver.n_ended < loop->receiver.n_begun);
    const bool ready = loop->failed.status != LM_OK || loop->n_copied > loop->receiver.n_ended;
    pthread_mutex_unlock(&loop->lock);
    return ready;
}

static void loopback_abort(struct transport_edge *edge)
{
    struct lm_error why;
    lm_fail(&why, LM_E_RANK_LOST, "loopback edge was aborted");
    transport_loopback_fail(edge, &why);
}

static void loopback_close(struct transport_edge *edge)
{
    struct loopback *loop = (struct loopback *)edge;
    if (!loop || atomic_fetch_sub(&loop->n_ref, 1) > 1) return;
    pthread_cond_destroy(&loop->changed);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static const struct transport_ops loopback_ops = {
    .name = "loopback",
    .send_begin = loopback_send_begin,
    .send_end = loopback_send_end,
    .recv_begin = loopback_recv_begin,
    .recv_end = loopback_recv_end,
    .recv_ready = loopback_recv_ready,
    .abort = loopback_abort,
    .close = loopback_close,
};

enum lm_status transport_loopback_open(struct transport_edge **out, struct lm_error *err)
{
    struct loopback *loop = calloc(1, sizeof(*loop));
    if (!loop) return lm_fail(err, LM_E_NO_MEM, "loopback edge: no memory");
    loop->edge.ops = &loopback_ops;
    atomic_init(&loop->n_ref, 1);
    pthread_mutex_init(&loop->lock, NULL);
    pthread_cond_init(&loop->changed, NULL);
    *out = &loop->edge;
    return LM_OK;
}

struct transport_edge *transport_loopback_ref(struct transport_edge *edge)
{
    atomic_fetch_add(&((struct loopback *)edge)->n_ref, 1);
    return edge;
}

void transport_loopback_fail(struct transport_edge *edge, const struct lm_error *why)
{
    struct loopback *loop = (struct loopback *)edge;
    pthread_mutex_lock(&loop->lock);
    if (loop->failed.status == LM_OK) loop->failed = *why;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->lock);
}
