/* Sizes of experts, and what each gets of a budget of slots. */
#include "worker/pager/slot_class.h"

/* The class of a size, which is made if there is none. */
static uint32_t find_class(struct slot_classes *classes, uint64_t n_bytes)
{
    struct slot_class *const last = &classes->class[SLOT_CLASS_MAX - 1];
    for (uint32_t i = 0; i < classes->n; i++)
        if (classes->class[i].slot_bytes == n_bytes) return i;
    if (classes->n < SLOT_CLASS_MAX) {
        classes->class[classes->n] = (struct slot_class){.slot_bytes = n_bytes};
        return classes->n++;
    }
    if (last->slot_bytes < n_bytes) last->slot_bytes = n_bytes;
    return SLOT_CLASS_MAX - 1;
}

void slot_classes_make(struct slot_classes *out, const struct expert_store *store,
                       uint32_t layer_begin, uint32_t layer_end, uint32_t n_expert, uint32_t n_slot,
                       slot_bytes_fn bytes_of, uint32_t *class_of)
{
    *out = (struct slot_classes){.n = 0};
    for (uint32_t il = 0; class_of && il < layer_end; il++)
        class_of[il] = UINT32_MAX;
    for (uint32_t il = layer_begin; il < layer_end; il++) {
        const struct expert_layer *layer = expert_store_layer(store, il);
        if (!layer->n_part) continue;
        const uint32_t found = find_class(out, bytes_of(layer));
        if (class_of) class_of[il] = found;
        out->class[found].n_expert += n_expert;
        out->n_expert += n_expert;
    }
    for (uint32_t i = 0; i < out->n; i++) {
        struct slot_class *class = &out->class[i];
        const uint64_t share = (uint64_t)n_slot * class->n_expert / out->n_expert;
        class->n_slot = share < SLOT_CLASS_SLOTS_MIN ? SLOT_CLASS_SLOTS_MIN : (uint32_t)share;
        if (class->n_slot > class->n_expert) class->n_slot = class->n_expert;
    }
}

uint32_t slot_classes_n_slot(const struct slot_classes *classes)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < classes->n; i++)
        n += classes->class[i].n_slot;
    return n;
}

uint64_t slot_classes_bytes(const struct slot_classes *classes)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < classes->n; i++)
        n_bytes += classes->class[i].n_slot * classes->class[i].slot_bytes;
    return n_bytes;
}

uint32_t slot_classes_fit(const struct expert_store *store, uint32_t layer_begin,
                          uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes,
                          slot_bytes_fn bytes_of)
{
    uint32_t fits = 0, end = (layer_end - layer_begin) * n_expert + 1;
    while (end - fits > 1) {
        const uint32_t middle = fits + (end - fits) / 2;
        struct slot_classes classes;
        slot_classes_make(&classes, store, layer_begin, layer_end, n_expert, middle, bytes_of,
                          NULL);
        if (slot_classes_bytes(&classes) <= n_bytes)
            fits = middle;
        else
            end = middle;
    }
    return fits;
}
