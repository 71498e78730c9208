/* A ring of pointers that grows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/transport/frame_queue.h"

enum { FIRST_SIZE = 16 };

struct frame *frame_create(uint32_t from, uint16_t type, size_t n_bytes)
{
    struct frame *frame = malloc(sizeof(*frame) + n_bytes);
    if (!frame) return NULL;
    frame->from = from;
    frame->type = type;
    frame->n_bytes = n_bytes;
    return frame;
}

void frame_queue_init(struct frame_queue *queue)
{
    *queue = (struct frame_queue){0};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void frame_queue_fini(struct frame_queue *queue)
{
    while (queue->n_popped < queue->n_pushed)
        free(queue->ring[queue->n_popped++ & (queue->size - 1)]);
    free(queue->ring);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
}

/* The status of the queue, and its failure to err. */
static enum lm_status status_locked(const struct frame_queue *queue, struct lm_error *err)
{
    if (queue->failed.status != LM_OK && err) *err = queue->failed;
    return queue->failed.status;
}

static enum lm_status make_room_locked(struct frame_queue *queue, struct lm_error *err)
{
    if (queue->n_pushed - queue->n_popped < queue->size) return LM_OK;
    const size_t size = queue->size ? 2 * queue->size : FIRST_SIZE;
    struct frame **ring = malloc(size * sizeof(*ring));
    if (!ring) return lm_fail(err, LM_E_NO_MEM, "frame queue: no memory for %zu frames", size);
    for (size_t i = queue->n_popped; i < queue->n_pushed; i++)
        ring[i & (size - 1)] = queue->ring[i & (queue->size - 1)];
    free(queue->ring);
    queue->ring = ring;
    queue->size = size;
    return LM_OK;
}

enum lm_status frame_queue_push(struct frame_queue *queue, struct frame *frame,
                                struct lm_error *err)
{
    pthread_mutex_lock(&queue->lock);
    enum lm_status status = status_locked(queue, err);
    if (status == LM_OK) status = make_room_locked(queue, err);
    if (status == LM_OK)
        queue->ring[queue->n_pushed++ & (queue->size - 1)] = frame;
    else
        free(frame);
    pthread_cond_signal(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    return status;
}

static struct timespec deadline_after(double timeout_s)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    const double whole_s = floor(timeout_s);
    deadline.tv_sec += (time_t)whole_s;
    deadline.tv_nsec += (long)((timeout_s - whole_s) * 1e9);
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    return deadline;
}

enum lm_status frame_queue_pop(struct frame_queue *queue, double timeout_s, struct frame **out,
                               struct lm_error *err)
{
    const struct timespec deadline = deadline_after(timeout_s < 0 ? 0 : timeout_s);
    int waited = 0;
    pthread_mutex_lock(&queue->lock);
    while (queue->failed.status == LM_OK && queue->n_popped == queue->n_pushed && !waited) {
        if (timeout_s < 0)
            pthread_cond_wait(&queue->changed, &queue->lock);
        else
            waited = pthread_cond_timedwait(&queue->changed, &queue->lock, &deadline);
    }
    enum lm_status status = status_locked(queue, err);
    if (status == LM_OK && queue->n_popped == queue->n_pushed)
        status = lm_fail(err, LM_E_BUSY, "no frame in %.3f s", timeout_s);
    if (status == LM_OK) *out = queue->ring[queue->n_popped++ & (queue->size - 1)];
    pthread_mutex_unlock(&queue->lock);
    return status;
}

enum lm_status frame_queue_check(struct frame_queue *queue, struct lm_error *err)
{
    pthread_mutex_lock(&queue->lock);
    const enum lm_status status = queue->failed.status;
    if (status != LM_OK && err) *err = queue->failed;
    pthread_mutex_unlock(&queue->lock);
    return status;
}

void frame_queue_fail(struct frame_queue *queue, const struct lm_error *why)
{
    pthread_mutex_lock(&queue->lock);
    if (queue->failed.status == LM_OK) queue->failed = *why;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}
