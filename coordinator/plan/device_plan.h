/* Device plan: which layers of a rank are computed on a device, by what its memory holds.
 *
 *   layers   begin ... split    on the CPU, their experts paged where they do not fit
 *            split ... end      on the device, with everything that every token needs: dense
 *                               weights, keys and values, recurrent state, scratch, logits
 *
 * They are the last layers, as with other programs: then the output, the largest matrix that every
 * token reads, is on the device with them.
 *
 * Their routed experts are there, too, if all of them fit beside that. Otherwise as many as fit are
 * (the plan of the device is then paged), and the host keeps all of these layers' in memory, or
 * pages them in turn. A layer whose dense weights are on the device is worth more there without its
 * experts than with them on the CPU: so the split gives room to experts last.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_PLAN_DEVICE_PLAN_H
#define LEAN_COORDINATOR_PLAN_DEVICE_PLAN_H

#include "coordinator/plan/memory_plan.h"

enum { DEVICE_LAYERS_AUTO = -1 };

struct device_limits {
    int32_t n_layer;       /* the model's last N are on the device; or DEVICE_LAYERS_AUTO */
    uint64_t budget_bytes; /* of its memory */
    bool fast;             /* numerics there */
    /* The least that experts of some layers take there when not all of them fit. NULL: they must.
     */
    uint64_t (*slot_bytes_min)(const void *context, uint32_t layer_begin, uint32_t layer_end);
    const void *context;
};

/* The request of what is on the device if that is the layers from split on. request: of the rank.
 */
struct memory_request device_plan_request(const struct memory_request *request, uint32_t split,
                                          const struct device_limits *limits);

/* The first layer of the rank that is on the device; its end if none is. AUTO: as many as fit
 * beside the context of the request, or beside a usual one; otherwise those that were asked for,
 * whether they fit or not. request: of the rank; its layer_end is not 0. */
uint32_t device_plan_split(const struct gguf_file *file, const struct hparams *hp,
                           const struct memory_request *request,
                           const struct device_limits *limits);

struct device_plan {
    struct memory_plan device; /* all 0 if no layer is there */
    struct memory_plan host;   /* of the other layers; the sizes of both are alike */
};

/* A context that the request leaves open is the longest that fits both. request, split: of the
 * rank; the slots of the request are of all layers whose experts the host keeps. */
void device_plan_make(struct device_plan *out, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request,
                      uint32_t split, const struct device_limits *limits);

/* LM_E_NO_MEM if a plan of what is on the device exceeds its memory, with the numbers and what to
 * do. name: of the device; n_fit: layers that would fit. */
enum lm_status device_plan_check(const struct memory_plan *plan, const char *name, uint32_t n_layer,
                                 uint32_t n_fit, struct lm_error *err);

#endif
