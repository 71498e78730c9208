/* Classes of slots: layers whose experts take the same memory share slots.
 *
 * How much memory an expert takes is the caller's to say: one that reads files must align, one that
 * copies need not. */
#ifndef LEAN_WORKER_PAGER_SLOT_CLASS_H
#define LEAN_WORKER_PAGER_SLOT_CLASS_H

#include "worker/pager/expert_store.h"

enum {
    SLOT_CLASS_MAX = 16,     /* sizes of experts in one model */
    SLOT_CLASS_SLOTS_MIN = 2 /* one to compute with, one to fill */
};

struct slot_class {
    uint64_t slot_bytes;
    uint32_t n_expert, n_slot;
};

struct slot_classes {
    struct slot_class class[SLOT_CLASS_MAX];
    uint32_t n;
    uint32_t n_expert; /* in all classes */
};

/* Bytes of a slot for an expert of a layer that has some. */
typedef uint64_t (*slot_bytes_fn)(const struct expert_layer *layer);

/* With more sizes than classes the last one takes them, in slots of the largest. n_slot is shared
 * out by experts: a class gets at least what works, and none more than it has experts.
 * class_of: [layer_end], UINT32_MAX for layers without experts; or NULL. */
void slot_classes_make(struct slot_classes *out, const struct expert_store *store,
                       uint32_t layer_begin, uint32_t layer_end, uint32_t n_expert, uint32_t n_slot,
                       slot_bytes_fn bytes_of, uint32_t *class_of);
uint32_t slot_classes_n_slot(const struct slot_classes *classes);
uint64_t slot_classes_bytes(const struct slot_classes *classes);
/* The most slots to ask for that take no more than n_bytes, at most all experts; 0: not even the
 * least that works fits. */
uint32_t slot_classes_fit(const struct expert_store *store, uint32_t layer_begin,
                          uint32_t layer_end, uint32_t n_expert, uint64_t n_bytes,
                          slot_bytes_fn bytes_of);

#endif
