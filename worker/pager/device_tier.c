/* Slots, the room beside them, and the copies that fill both. */
#include "worker/pager/device_tier.h"

#include "worker/pager/slot_class.h"

struct device_tier {
    struct device_tier_stats stats;
};

/* ---- sizes -------------------------------------------------------------------------------- */

static uint64_t slot_bytes_of(const struct expert_layer *layer)
{
    const size_t part[EXPERT_PART_MAX] = {layer->part_bytes[0], layer->part_bytes[1],
                                          layer->part_bytes[2]};
    return expert_room_bytes(part[0], layer->n_part > 1 ? part[1] : 0,
                             layer->n_part > 2 ? part[2] : 0);
}

uint32_t device_tier_slot_count(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      NULL);
    return slot_classes_n_slot(&classes);
}

uint64_t device_tier_slot_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_slot)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, n_slot, slot_bytes_of,
                      NULL);
    return slot_classes_bytes(&classes);
}

uint32_t device_tier_slots_for(const struct expert_store *store, uint32_t layer_begin,
                               uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes)
{
    return slot_classes_fit(store, layer_begin, layer_end, n_expert, n_bytes, slot_bytes_of);
}

/* Experts in the room: two halves, of which one is filled while the other is computed with; enough
 * in each that a token's misses, and what a launch costs, do not matter. */
static uint32_t n_room_of(uint32_t n_expert, uint32_t n_expert_used)
{
    const uint32_t half = n_expert_used < 8 ? 8 : n_expert_used;
    return 2 * (half < n_expert ? half : n_expert);
}

static uint64_t largest_slot(const struct slot_classes *classes)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < classes->n; i++)
        if (classes->class[i].slot_bytes > largest) largest = classes->class[i].slot_bytes;
    return largest;
}

uint64_t device_tier_room_bytes(const struct expert_store *store, uint32_t layer_begin,
                                uint32_t layer_end, uint32_t n_expert, uint32_t n_expert_used)
{
    struct slot_classes classes;
    slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, 1, slot_bytes_of, NULL);
    const uint64_t table_bytes = sizeof(struct expert_view) + sizeof(uint8_t);
    return n_room_of(n_expert, n_expert_used) * largest_slot(&classes) +
           (layer_end - layer_begin + 1) * (uint64_t)n_expert * table_bytes;
}

struct device_tier_stats device_tier_stats(const struct device_tier *tier)
{
    return tier->stats;
}
