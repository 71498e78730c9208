/* Draws a server's map of the experts from the pager, on the step thread.
 *
 * Threads: start and stop while no step runs; the drawing happens inside steps. */
#ifndef LEAN_LAUNCH_EXPERT_PICTURE_H
#define LEAN_LAUNCH_EXPERT_PICTURE_H

#include <stdint.h>

#include "proto/base/error.h"

struct expert_map;
struct expert_pager;
struct expert_picture;

/* Watches the pager until stop, and draws at once. */
enum lm_status expert_picture_start(struct expert_picture **out, struct expert_pager *pager,
                                    uint32_t n_expert, uint32_t n_expert_used,
                                    struct lm_error *err);
struct expert_map *expert_picture_map(const struct expert_picture *picture);
void expert_picture_stop(struct expert_picture *picture); /* NULL is legal */

#endif
