/* NCCL's calls without waiting in any: a communicator that does not block is asked until it has
 * done what was begun, or the time is up, or the job is lost. */
#include "proto/transport/transport_nccl.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "proto/base/device_stream.h"
#include "proto/base/log.h"
#include "proto/transport/world.h"

/* CTAS_MAX: of a transfer, so that it takes few multiprocessors from operations. */
enum { CTAS_MAX = 2, STEP_NS = 50 * 1000 };
#define SPIN_S 200e-6
#define CLOSE_TIMEOUT_S 2

struct nccl_edge {
    struct transport_edge edge;
    struct transport_nccl_config config;
    const struct nccl_library *nccl;
    int peer;
    atomic_bool aborted;
    uint64_t point[TRANSPORT_DEPTH]; /* ring */
    uint64_t n_begun, n_ended;
    bool failed; /* a transfer may be half begun */
    pthread_mutex_t lock;
    struct nccl_comm *comm; /* guarded by lock; NULL: ended */
};

/* ---- waiting ------------------------------------------------------------------------------ */

struct wait {
    double begin_s, deadline_s;
};

static struct wait wait_for(double timeout_s)
{
    const double now_s = log_now_s();
    return (struct wait){now_s, now_s + timeout_s};
}

/* Whether it is worth to go on waiting; rests a little if so. */
static enum lm_status wait_more(const struct nccl_edge *edge, const struct wait *wait,
                                struct lm_error *err)
{
    struct world *const world = edge->config.world;
    const struct timespec step = {.tv_nsec = STEP_NS};
    const double now_s = log_now_s();
    if (atomic_load(&edge->aborted)) return lm_fail(err, LM_E_RANK_LOST, "edge was aborted");
    if (now_s - wait->begin_s < SPIN_S) {
        sched_yield();
        return LM_OK;
    }
    const enum lm_status status = world->ops->check(world, err);
    if (status != LM_OK) return status;
    if (now_s > wait->deadline_s)
        return lm_fail(err, LM_E_RANK_LOST, "NCCL did not come to an end within %g s",
                       wait->deadline_s - wait->begin_s);
    nanosleep(&step, NULL);
    return LM_OK;
}

/* Until the communicator has done what a call that returned result has begun. */
static enum lm_status settle_locked(struct nccl_edge *edge, int result, const char *call,
                                    const struct wait *wait, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    while (result == NCCL_IN_PROGRESS && status == LM_OK) {
        int state = NCCL_SUCCESS;
        result = edge->nccl->comm_get_async_error(edge->comm, &state);
        if (result == NCCL_SUCCESS) result = state;
        if (result == NCCL_IN_PROGRESS) status = wait_more(edge, wait, err);
    }
    if (status != LM_OK || result == NCCL_SUCCESS) return status;
    return nccl_library_fail(edge->nccl, result, call, edge->comm, err);
}

/* What NCCL has found out by itself since the last call: that the other end is gone. */
static enum lm_status check_comm(struct nccl_edge *edge, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    int state = NCCL_SUCCESS;
    pthread_mutex_lock(&edge->lock);
    if (edge->comm) {
        const int result = edge->nccl->comm_get_async_error(edge->comm, &state);
        if (result != NCCL_SUCCESS) state = result;
        if (state != NCCL_SUCCESS && state != NCCL_IN_PROGRESS)
            status = nccl_library_fail(edge->nccl, state, "NCCL", edge->comm, err);
    }
    pthread_mutex_unlock(&edge->lock);
    return status;
}

static enum lm_status wait_point(struct nccl_edge *edge, uint64_t point, struct wait wait,
                                 struct lm_error *err)
{
    struct device_stream *const stream = edge->config.stream;
    for (;;) {
        bool reached;
        enum lm_status status = stream->ops->reached(stream, point, &reached, err);
        /* of an aborted edge it means nothing */
        if (status == LM_OK && reached && !atomic_load(&edge->aborted)) return LM_OK;
        if (status == LM_OK) status = check_comm(edge, err);
        if (status == LM_OK) status = wait_more(edge, &wait, err);
        if (status != LM_OK) return status;
    }
}

/* ---- transfers ---------------------------------------------------------------------------- */

static enum lm_status put_locked(struct nccl_edge *edge, void *buffer, size_t n_bytes,
                                 const struct wait *wait, struct lm_error *err)
{
    struct device_stream *const stream = edge->config.stream;
    const struct nccl_library *const nccl = edge->nccl;
    if (!edge->comm) return lm_fail(err, LM_E_RANK_LOST, "edge was aborted");
    if (edge->config.sending) stream->ops->after_operations(stream);
    const int result =
        edge->config.sending
            ? nccl->send(buffer, n_bytes, NCCL_INT8, edge->peer, edge->comm, stream->handle)
            : nccl->recv(buffer, n_bytes, NCCL_INT8, edge->peer, edge->comm, stream->handle);
    return settle_locked(edge, result, edge->config.sending ? "ncclSend" : "ncclRecv", wait, err);
}

static enum lm_status begin(struct nccl_edge *edge, void *buffer, size_t n_bytes,
                            struct lm_error *err)
{
    struct device_stream *const stream = edge->config.stream;
    const struct wait wait = wait_for(edge->config.timeout_s);
    assert(edge->n_begun - edge->n_ended < TRANSPORT_DEPTH);
    pthread_mutex_lock(&edge->lock);
    const enum lm_status status = put_locked(edge, buffer, n_bytes, &wait, err);
    pthread_mutex_unlock(&edge->lock);
    edge->failed |= status != LM_OK;
    if (status != LM_OK) return status;
    edge->point[edge->n_begun++ % TRANSPORT_DEPTH] = stream->ops->mark(stream);
    return LM_OK;
}

static enum lm_status nccl_send_begin(struct transport_edge *edge, const void *buffer,
                                      size_t n_bytes, struct lm_error *err)
{
    return begin((struct nccl_edge *)edge, (void *)buffer, n_bytes, err);
}

static enum lm_status nccl_recv_begin(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                      struct lm_error *err)
{
    return begin((struct nccl_edge *)edge, buffer, n_bytes, err);
}

static enum lm_status nccl_send_end(struct transport_edge *base, struct lm_error *err)
{
    struct nccl_edge *const edge = (struct nccl_edge *)base;
    assert(edge->n_ended < edge->n_begun);
    return wait_point(edge, edge->point[edge->n_ended++ % TRANSPORT_DEPTH], wait_for(INFINITY),
                      err);
}

static enum lm_status nccl_recv_end(struct transport_edge *base, struct lm_error *err)
{
    struct nccl_edge *const edge = (struct nccl_edge *)base;
    struct device_stream *const stream = edge->config.stream;
    assert(edge->n_ended < edge->n_begun);
    stream->ops->before_operations(stream, edge->point[edge->n_ended++ % TRANSPORT_DEPTH]);
    if (atomic_load(&edge->aborted)) return lm_fail(err, LM_E_RANK_LOST, "edge was aborted");
    return LM_OK;
}

/* ---- the end ------------------------------------------------------------------------------ */

/* What is on the stream ends with the communicator, too. */
static void end_locked(struct nccl_edge *edge, int (*end)(struct nccl_comm *comm))
{
    if (edge->comm) end(edge->comm);
    edge->comm = NULL;
}

/* Whoever holds the lock sees the flag, and lets go. */
static void nccl_abort(struct transport_edge *base)
{
    struct nccl_edge *const edge = (struct nccl_edge *)base;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec++;
    atomic_store(&edge->aborted, true);
    if (pthread_mutex_timedlock(&edge->lock, &deadline)) return;
    end_locked(edge, edge->nccl->comm_abort);
    pthread_mutex_unlock(&edge->lock);
}

static void nccl_close(struct transport_edge *base)
{
    struct nccl_edge *const edge = (struct nccl_edge *)base;
    if (!edge) return;
    const uint64_t last = edge->n_begun - 1;
    bool done = !edge->failed && check_comm(edge, NULL) == LM_OK;
    if (done && edge->n_begun)
        done = wait_point(edge, edge->point[last % TRANSPORT_DEPTH], wait_for(CLOSE_TIMEOUT_S),
                          NULL) == LM_OK;
    pthread_mutex_lock(&edge->lock);
    end_locked(edge, done ? edge->nccl->comm_destroy : edge->nccl->comm_abort);
    pthread_mutex_unlock(&edge->lock);
    pthread_mutex_destroy(&edge->lock);
    free(edge);
}

static const struct transport_ops nccl_ops = {
    .name = "nccl",
    .send_begin = nccl_send_begin,
    .send_end = nccl_send_end,
    .recv_begin = nccl_recv_begin,
    .recv_end = nccl_recv_end,
    .abort = nccl_abort,
    .close = nccl_close,
};

/* ---- the start ---------------------------------------------------------------------------- */

static enum lm_status connect(struct nccl_edge *edge, struct lm_error *err)
{
    struct device_stream *const stream = edge->config.stream;
    const struct wait wait = wait_for(edge->config.timeout_s);
    struct nccl_config config = NCCL_CONFIG_NONE;
    config.blocking = 0;
    config.max_ctas = CTAS_MAX;
    stream->ops->after_operations(stream); /* the device, which NCCL takes from the thread */
    const int rank = edge->config.sending ? 0 : 1;
    const int result =
        edge->nccl->comm_init_rank_config(&edge->comm, 2, edge->config.id, rank, &config);
    enum lm_status status = settle_locked(edge, result, "ncclCommInitRankConfig", &wait, err);
    /* The path between two is made when it is first used; both are here now. */
    if (status == LM_OK)
        status = put_locked(edge, edge->config.memory, TRANSPORT_NCCL_WARM_BYTES, &wait, err);
    if (status != LM_OK) return status;
    return wait_point(edge, stream->ops->mark(stream), wait, err);
}

enum lm_status transport_nccl_open(struct transport_edge **out,
                                   const struct transport_nccl_config *config, struct lm_error *err)
{
    struct nccl_edge *const edge = calloc(1, sizeof(*edge));
    if (!edge) return lm_fail(err, LM_E_NO_MEM, "NCCL edge: no memory");
    edge->edge.ops = &nccl_ops;
    edge->config = *config;
    edge->nccl = config->nccl;
    edge->peer = config->sending ? 1 : 0;
    pthread_mutex_init(&edge->lock, NULL);
    const enum lm_status status = connect(edge, err);
    if (status != LM_OK) {
        nccl_abort(&edge->edge);
        nccl_close(&edge->edge);
        return status;
    }
    *out = &edge->edge;
    return LM_OK;
}
