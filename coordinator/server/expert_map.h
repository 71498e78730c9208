/* Where every routed expert is and how hot: a picture that the step thread draws a few times a
 * second and that GET /experts gives to whoever looks (the web page's heat map).
 *
 * Threads: one writes, between begin and end; any reads. The writer never waits for a reader: it
 *          leaves a picture out instead. */
#ifndef LEAN_COORDINATOR_SERVER_EXPERT_MAP_H
#define LEAN_COORDINATOR_SERVER_EXPERT_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct expert_map;
struct http_exchange;

enum expert_tier { EXPERT_ON_DISK, EXPERT_IN_MEMORY };

/* Layers 0 .. n_layer - 1; all begin without experts. */
enum lm_status expert_map_create(struct expert_map **out, uint32_t n_layer, uint32_t n_expert,
                                 uint32_t n_expert_used, struct lm_error *err);
void expert_map_destroy(struct expert_map *map); /* NULL is legal */

/* False: somebody reads, or the last picture is younger than a quarter of a second; try at the next
 * occasion. True: set layers, then end. */
bool expert_map_begin(struct expert_map *map);
/* tier, heat: [n_expert], heat in any unit of the layer's own. hits, misses: since the start. */
void expert_map_set(struct expert_map *map, uint32_t layer, const enum expert_tier *tier,
                    const float *heat, uint64_t hits, uint64_t misses);
void expert_map_end(struct expert_map *map);

/* GET /experts; the context is the struct server. One object: n_expert_used and layers, of which
 * each has layer, hits, misses, tiers and heat: texts of one digit an expert, tiers as in enum
 * expert_tier, heat from 0 to 9, the layer's hottest. Not found if the model has no experts. */
void expert_map_handle(void *context, struct http_exchange *exchange);

#endif
