/* The part of `lean inspect` about memory: the plan that `run` would make, on this machine or
 * within budgets that were given, and what can be expected of it. Loads nothing.
 *
 * With --vram the plan is for a device of that size, whether there is one or not.
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_INSPECT_MEMORY_H
#define LEAN_LAUNCH_INSPECT_MEMORY_H

#include "coordinator/plan/cost_model.h"
#include "launch/model_part.h"

struct json_object;
struct options;

/* What warm caches find, and how fast a token is then decoded. */
struct inspect_expectation {
    double vram_share,
        resident_share; /* of all experts, in a device's memory; there or in memory */
    bool exclusive;     /* what the device keeps need not be in memory, too */
    struct cost_hits hits;
    struct cost_machine rates;
    struct cost_estimate estimate; /* if rates.vram_bytes_s */
};

struct inspect_memory {
    struct model_part part;              /* device_begin n_layer: none is on a device */
    struct device_plan plans;            /* what `run` would make */
    uint32_t n_device_fit;               /* layers that would fit on the device */
    struct inspect_expectation expected; /* if the device lacks experts, or its rate is known */
    struct partition_stage *stages;      /* [n_rank], if n_rank > 1 */
    uint32_t n_rank;
    bool free_ram; /* the host's budget is what is free, not what was given */
};

/* Of options_inspect. file, hp: of the model, borrowed. LM_E_NO_MEM: no cut into ranks fits; and
 * what opening a device and reading the options can find. */
enum lm_status inspect_memory_make(struct inspect_memory *out, struct gguf_file *file,
                                   const struct hparams *hp, const struct options *options,
                                   struct lm_error *err);
void inspect_memory_fini(struct inspect_memory *memory); /* legal of zeros */

void inspect_memory_print(const struct inspect_memory *memory);
struct json_object *inspect_memory_json(const struct inspect_memory *memory);
/* LM_E_NO_MEM: a plan exceeds what may be used. */
enum lm_status inspect_memory_check(const struct inspect_memory *memory, struct lm_error *err);

#endif
