#include "launch/expert_picture.h"

#include <stdlib.h>

#include "coordinator/server/expert_map.h"
#include "launch/engine.h"
#include "proto/model/hparams.h"
#include "worker/pager/expert_pager.h"

struct expert_picture {
    struct engine *engine;
    struct expert_pager *pager; /* NULL: there are several ranks */
    struct expert_map *map;
    uint32_t n_layer, n_expert;
    enum expert_tier *tier; /* [n_expert] of one layer */
    float *heat;            /* [n_expert] */
};

static void draw_layer(struct expert_picture *picture, uint32_t layer)
{
    const struct expert_pager_layer_stats stats = expert_pager_layer_stats(picture->pager, layer);
    if (!stats.n_expert) return;
    for (uint32_t i = 0; i < picture->n_expert; i++) {
        const struct expert_key key = {layer, i};
        picture->tier[i] =
            expert_pager_is_resident(picture->pager, key) ? EXPERT_IN_MEMORY : EXPERT_ON_DISK;
        picture->heat[i] = expert_pager_heat(picture->pager, key);
    }
    const uint64_t n_lookup = stats.decode.n_lookup + stats.prefill.n_lookup;
    const uint64_t n_hit = stats.decode.n_hit + stats.prefill.n_hit;
    expert_map_set(picture->map, layer, picture->tier, picture->heat, n_hit, n_lookup - n_hit);
}

static void draw(void *context)
{
    struct expert_picture *picture = context;
    if (!expert_map_begin(picture->map)) return;
    const struct expert_pager_stats stats = expert_pager_stats(picture->pager);
    for (uint32_t il = stats.layer_begin; il < stats.layer_end && il < picture->n_layer; il++)
        draw_layer(picture, il);
    expert_map_end(picture->map);
}

static void draw_told(void *context, uint32_t layer, const uint8_t *resident, const float *heat,
                      uint64_t n_hit, uint64_t n_lookup)
{
    struct expert_picture *picture = context;
    if (layer >= picture->n_layer) return;
    for (uint32_t i = 0; i < picture->n_expert; i++)
        picture->tier[i] = resident[i] ? EXPERT_IN_MEMORY : EXPERT_ON_DISK;
    expert_map_set(picture->map, layer, picture->tier, heat, n_hit, n_lookup - n_hit);
}

void expert_picture_draw(struct expert_picture *picture)
{
    if (!expert_map_begin(picture->map)) return;
    engine_draw_told(picture->engine, draw_told, picture);
    expert_map_end(picture->map);
}

enum lm_status expert_picture_start(struct expert_picture **out, struct engine *engine,
                                    struct lm_error *err)
{
    const struct hparams *hp = engine_hparams(engine);
    const uint32_t n_expert = hp->n_expert;
    struct expert_picture *picture = calloc(1, sizeof(*picture));
    if (!picture) return lm_fail(err, LM_E_NO_MEM, "no memory for a picture of the experts");
    picture->engine = engine;
    picture->pager = engine_n_rank(engine) == 1 ? engine_pager(engine) : NULL;
    picture->n_layer = hp->n_layer; /* of the decoder */
    picture->n_expert = n_expert;
    picture->tier = calloc(n_expert, sizeof(*picture->tier));
    picture->heat = calloc(n_expert, sizeof(*picture->heat));
    const enum lm_status status =
        picture->tier && picture->heat
            ? expert_map_create(&picture->map, hp->n_layer, n_expert, hp->n_expert_used, err)
            : lm_fail(err, LM_E_NO_MEM, "no memory for a picture of %u experts", n_expert);
    if (status != LM_OK) {
        expert_picture_stop(picture);
        return status;
    }
    if (picture->pager) {
        draw(picture);
        expert_pager_watch(picture->pager, draw, picture);
    }
    *out = picture;
    return LM_OK;
}

struct expert_map *expert_picture_map(const struct expert_picture *picture)
{
    return picture->map;
}

void expert_picture_stop(struct expert_picture *picture)
{
    if (!picture) return;
    if (picture->map && picture->pager) expert_pager_watch(picture->pager, NULL, NULL);
    expert_map_destroy(picture->map);
    free(picture->heat);
    free(picture->tier);
    free(picture);
}
