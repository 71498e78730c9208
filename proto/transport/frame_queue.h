/* Frames that have arrived at one rank and wait for its recv, and the end of the job.
 *
 * Threads: any. */
#ifndef LEAN_PROTO_TRANSPORT_FRAME_QUEUE_H
#define LEAN_PROTO_TRANSPORT_FRAME_QUEUE_H

#include <pthread.h>

#include "proto/transport/world.h"

struct frame_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    struct frame **ring; /* [size], a power of two */
    size_t size, n_pushed, n_popped;
    struct lm_error failed; /* LM_OK: not so far */
};

/* A frame to be filled, or NULL: no memory. free() frees it. */
struct frame *frame_create(uint32_t from, uint16_t type, size_t n_bytes);

void frame_queue_init(struct frame_queue *queue);
void frame_queue_fini(struct frame_queue *queue); /* and the frames in it */
/* Takes frame over, also on failure. */
enum lm_status frame_queue_push(struct frame_queue *queue, struct frame *frame,
                                struct lm_error *err);
/* As recv of world.h. What has arrived before the queue failed is lost: the job is. */
enum lm_status frame_queue_pop(struct frame_queue *queue, double timeout_s, struct frame **out,
                               struct lm_error *err);
/* LM_OK, or what it failed with. */
enum lm_status frame_queue_check(struct frame_queue *queue, struct lm_error *err);
/* From now on everything fails with why; the first failure counts. */
void frame_queue_fail(struct frame_queue *queue, const struct lm_error *why);

#endif
