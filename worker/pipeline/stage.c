/* The loop over frames of the world, and the farewell. */
#include "worker/pipeline/stage.h"

#include "proto/control.pb-c.h"
#include "proto/transport/world.h"
#include "worker/pipeline/stage_loop.h"

static enum lm_status next(void *context, double timeout_s, struct frame **out,
                           struct lm_error *err)
{
    struct world *world = context;
    return world->ops->recv(world, timeout_s, out, err);
}

static enum lm_status give(void *context, const struct frame *frame, struct lm_error *err)
{
    struct world *world = context;
    return world->ops->send(world, 0, frame->type, frame->payload, frame->n_bytes, err);
}

enum lm_status stage_run(struct world *world, struct worker *worker, struct lm_error *err)
{
    const struct stage_loop_config config = {
        .rank = world->rank, .worker = worker, .next = next, .give = give, .context = world};
    struct lm_error failed;
    enum lm_status status = stage_loop_run(&config, &failed);
    if (status == LM_OK)
        status = world->ops->send(world, 0, LEAN__FRAME_TYPE__BYE, NULL, 0, &failed);
    if (status == LM_OK) return status;
    if (status != LM_E_RANK_LOST) world->ops->abort(world, &failed);
    if (err) *err = failed;
    return status;
}
