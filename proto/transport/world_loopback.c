/* Ranks that are threads of one process: sending puts the frame into the queue of the receiver.
 *
 * All share one hub, which the last rank that closes frees. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "proto/transport/frame_queue.h"
#include "proto/transport/world.h"

struct hub {
    atomic_uint n_open; /* ranks not closed */
    uint32_t n_rank;
    struct loopback_rank {
        struct world world;
        struct hub *hub;
        struct frame_queue arrived;
        struct transport_edge *edge; /* to the next rank; NULL: there is none */
    } rank[];                        /* [n_rank] */
};

static enum lm_status loopback_send(struct world *world, uint32_t to, uint16_t type,
                                    const void *payload, size_t n_bytes, struct lm_error *err)
{
    struct hub *hub = ((struct loopback_rank *)world)->hub;
    assert(to < hub->n_rank && to != world->rank);
    struct frame *frame = frame_create(world->rank, type, n_bytes);
    if (!frame) return lm_fail(err, LM_E_NO_MEM, "frame: no memory for %zu bytes", n_bytes);
    if (n_bytes) memcpy(frame->payload, payload, n_bytes);
    return frame_queue_push(&hub->rank[to].arrived, frame, err);
}

static enum lm_status loopback_recv(struct world *world, double timeout_s, struct frame **out,
                                    struct lm_error *err)
{
    return frame_queue_pop(&((struct loopback_rank *)world)->arrived, timeout_s, out, err);
}

static enum lm_status loopback_check(struct world *world, struct lm_error *err)
{
    return frame_queue_check(&((struct loopback_rank *)world)->arrived, err);
}

static enum lm_status loopback_edge_open(struct world *world, bool sending,
                                         struct transport_edge **out, struct lm_error *err)
{
    (void)err;
    struct hub *hub = ((struct loopback_rank *)world)->hub;
    assert(sending ? world->rank + 1 < hub->n_rank : world->rank > 0);
    *out = transport_loopback_ref(hub->rank[sending ? world->rank : world->rank - 1].edge);
    return LM_OK;
}

static void loopback_abort(struct world *world, const struct lm_error *why)
{
    struct hub *hub = ((struct loopback_rank *)world)->hub;
    struct lm_error lost;
    lm_fail(&lost, LM_E_RANK_LOST, "rank %u (a thread of this process): %s", world->rank,
            why->message);
    for (uint32_t i = 0; i < hub->n_rank; i++) {
        frame_queue_fail(&hub->rank[i].arrived, &lost);
        if (hub->rank[i].edge) transport_loopback_fail(hub->rank[i].edge, &lost);
    }
}

static void free_hub(struct hub *hub)
{
    for (uint32_t i = 0; i < hub->n_rank; i++) {
        struct loopback_rank *rank = &hub->rank[i];
        if (rank->edge) rank->edge->ops->close(rank->edge);
        frame_queue_fini(&rank->arrived);
    }
    free(hub);
}

static void loopback_close(struct world *world)
{
    if (!world) return;
    struct hub *hub = ((struct loopback_rank *)world)->hub;
    if (atomic_fetch_sub(&hub->n_open, 1) == 1) free_hub(hub);
}

static const struct world_ops loopback_ops = {
    .name = "loopback",
    .send = loopback_send,
    .recv = loopback_recv,
    .check = loopback_check,
    .edge_open = loopback_edge_open,
    .abort = loopback_abort,
    .close = loopback_close,
};

enum lm_status world_loopback_create(struct world **out, uint32_t n_rank, struct lm_error *err)
{
    assert(n_rank >= 1);
    struct hub *hub = calloc(1, sizeof(*hub) + n_rank * sizeof(hub->rank[0]));
    if (!hub) return lm_fail(err, LM_E_NO_MEM, "loopback world: no memory for %u ranks", n_rank);
    hub->n_rank = n_rank;
    atomic_init(&hub->n_open, n_rank);
    for (uint32_t i = 0; i < n_rank; i++) {
        struct loopback_rank *rank = &hub->rank[i];
        rank->world = (struct world){.ops = &loopback_ops, .rank = i, .n_rank = n_rank};
        rank->hub = hub;
        frame_queue_init(&rank->arrived);
    }
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; status == LM_OK && i + 1 < n_rank; i++)
        status = transport_loopback_open(&hub->rank[i].edge, err);
    if (status != LM_OK) {
        free_hub(hub);
        return status;
    }
    for (uint32_t i = 0; i < n_rank; i++)
        out[i] = &hub->rank[i].world;
    return LM_OK;
}
