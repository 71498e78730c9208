#include "coordinator/server/expert_map.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "coordinator/server/http.h"
#include "coordinator/server/server.h"
#include "proto/base/byte_buffer.h"
#include "proto/base/log.h"

#define INTERVAL_S 0.25
#define N_HEAT 10 /* digits */

struct map_layer {
    bool has_experts;
    uint64_t hits, misses;
    char *tiers, *heat; /* [n_expert] digits, no NUL */
};

struct expert_map {
    uint32_t n_layer, n_expert, n_expert_used;
    double drawn_s; /* writer only */
    pthread_mutex_t lock;
    struct map_layer *layer; /* [n_layer], guarded by lock */
    char *digits;            /* what tiers and heat point into */
};

enum lm_status expert_map_create(struct expert_map **out, uint32_t n_layer, uint32_t n_expert,
                                 uint32_t n_expert_used, struct lm_error *err)
{
    struct expert_map *map = calloc(1, sizeof(*map));
    struct map_layer *layer = calloc(n_layer, sizeof(*layer));
    char *digits = calloc((size_t)n_layer * n_expert, 2);
    if (!map || !layer || !digits) {
        free(digits);
        free(layer);
        free(map);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a map of %u layers of %u experts", n_layer,
                       n_expert);
    }
    *map = (struct expert_map){.n_layer = n_layer,
                               .n_expert = n_expert,
                               .n_expert_used = n_expert_used,
                               .drawn_s = -INFINITY,
                               .layer = layer,
                               .digits = digits};
    for (uint32_t il = 0; il < n_layer; il++) {
        layer[il].tiers = digits + (size_t)il * 2 * n_expert;
        layer[il].heat = layer[il].tiers + n_expert;
    }
    pthread_mutex_init(&map->lock, NULL);
    *out = map;
    return LM_OK;
}

void expert_map_destroy(struct expert_map *map)
{
    if (!map) return;
    pthread_mutex_destroy(&map->lock);
    free(map->digits);
    free(map->layer);
    free(map);
}

bool expert_map_begin(struct expert_map *map)
{
    const double now = log_now_s();
    if (now - map->drawn_s < INTERVAL_S || pthread_mutex_trylock(&map->lock) != 0) return false;
    map->drawn_s = now;
    return true;
}

void expert_map_set(struct expert_map *map, uint32_t layer, const enum expert_tier *tier,
                    const float *heat, uint64_t hits, uint64_t misses)
{
    assert(layer < map->n_layer);
    struct map_layer *to = &map->layer[layer];
    float hottest = 0;
    for (uint32_t i = 0; i < map->n_expert; i++)
        hottest = fmaxf(hottest, heat[i]);
    for (uint32_t i = 0; i < map->n_expert; i++) {
        to->tiers[i] = (char)('0' + tier[i]);
        to->heat[i] = (char)('0' + (hottest > 0 ? lrintf(heat[i] / hottest * (N_HEAT - 1)) : 0));
    }
    to->hits = hits;
    to->misses = misses;
    to->has_experts = true;
}

void expert_map_end(struct expert_map *map)
{
    pthread_mutex_unlock(&map->lock);
}

static void put_layer(struct byte_buffer *out, const struct expert_map *map, uint32_t il)
{
    const struct map_layer *layer = &map->layer[il];
    byte_buffer_printf(
        out, "{\"layer\":%" PRIu32 ",\"hits\":%" PRIu64 ",\"misses\":%" PRIu64 ",\"tiers\":\"", il,
        layer->hits, layer->misses);
    byte_buffer_put(out, layer->tiers, map->n_expert);
    byte_buffer_put_text(out, "\",\"heat\":\"");
    byte_buffer_put(out, layer->heat, map->n_expert);
    byte_buffer_put_text(out, "\"}");
}

void expert_map_handle(void *context, struct http_exchange *exchange)
{
    struct expert_map *map = ((struct server *)context)->expert_map;
    struct api_error error;
    if (!map) {
        api_fail(&error, API_NOT_FOUND, NULL, "this model has no routed experts");
        http_reply_error(exchange, &error);
        return;
    }
    struct byte_buffer out = {0};
    byte_buffer_printf(&out, "{\"n_expert_used\":%" PRIu32 ",\"layers\":[", map->n_expert_used);
    pthread_mutex_lock(&map->lock);
    const char *separator = "";
    for (uint32_t il = 0; il < map->n_layer; il++) {
        if (!map->layer[il].has_experts) continue;
        byte_buffer_put_text(&out, separator);
        put_layer(&out, map, il);
        separator = ",";
    }
    pthread_mutex_unlock(&map->lock);
    byte_buffer_put_text(&out, "]}");
    if (out.failed) {
        api_fail(&error, API_OUT_OF_MEMORY, NULL, "no memory for the answer");
        http_reply_error(exchange, &error);
    } else {
        http_reply_json(exchange, 200, out.data, out.n);
    }
    byte_buffer_free(&out);
}
