/* Draws a server's map of the experts: from the pager, on the step thread; of several ranks from
 * what they have told.
 *
 * Threads: start and stop while no step runs; the drawing happens inside steps, or in
 *          expert_picture_draw, of one thread. */
#ifndef LEAN_LAUNCH_EXPERT_PICTURE_H
#define LEAN_LAUNCH_EXPERT_PICTURE_H

#include <stdint.h>

#include "proto/base/error.h"

struct expert_map;
struct engine;
struct expert_picture;

/* Of one rank: watches its pager until stop, and draws at once. engine is borrowed. */
enum lm_status expert_picture_start(struct expert_picture **out, struct engine *engine,
                                    struct lm_error *err);
/* Of several ranks: they have told more. */
void expert_picture_draw(struct expert_picture *picture);
struct expert_map *expert_picture_map(const struct expert_picture *picture);
void expert_picture_stop(struct expert_picture *picture); /* NULL is legal */

#endif
