/* Which layers each rank of a pipeline gets.
 *
 *   fixed   of layers a .. b: weights but the routed experts, state, scratch, at the ends embedding
 *           and output
 *   slots   = memory of the rank - fixed, up to the experts of these layers
 *   hits    share of the lookups that find their expert in the slots
 *   t       = (dense + used experts) / memory rate + (1 - hits) used experts / disk rate + hop
 *
 * A rank with a device computes there as many of its last layers as fit with all that every token
 * needs; their experts have the rest of its memory, and where that is not enough those of the host
 * besides (coordinator/plan/device_plan.h). What the device computes it reads at its own rate, what
 * it lacks is computed on the host.
 *
 * The slots are shared by the layers of a stage, so t is no sum over layers, but it is a function
 * of the interval, and a dynamic programme over intervals finds the best cuts:
 *
 *   best[s][b] = min over a of  worse(best[s - 1][a], t(rank s, a .. b))      S L^2 steps
 *
 * with worse = the larger, for throughput: the slowest stage sets the pace when all are busy; or
 * = the sum, for the latency of one sequence. Equal ones are told apart by the other.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_PLAN_PARTITION_H
#define LEAN_COORDINATOR_PLAN_PARTITION_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/plan/memory_plan.h"
#include "proto/base/error.h"
#include "proto/model/hparams.h"

enum { PARTITION_MAX_RANK = 1024 };
/* Of a device whose own rate nobody knows: with processors at a tenth of it the cut is right
 * enough.
 */
#define PARTITION_VRAM_RATE 500e9

enum partition_objective { PARTITION_THROUGHPUT, PARTITION_LATENCY };

/* What a layer weighs. */
struct partition_layer {
    uint64_t dense_bytes;  /* read for every token */
    uint64_t expert_bytes; /* routed experts, all of them */
    uint64_t state_bytes;  /* keys and values, recurrent records */
};

struct partition_model {
    struct partition_layer layer[HPARAMS_MAX_LAYER];
    uint32_t n_layer;
    uint64_t embedding_bytes, output_bytes; /* of the first stage; of the last, read every token */
    uint64_t common_bytes;                  /* of every stage: scratch, angles, program */
    uint64_t program_bytes;                 /* of that, where a device has all of the layers */
    uint64_t slot_bytes_min;                /* that paging needs */
    uint64_t device_slot_bytes_min;         /* the same on a device; 0: all experts must fit */
    uint32_t n_expert, n_expert_used;
};

/* What a rank has, for itself. */
struct partition_rank {
    uint64_t ram_bytes;
    double memory_bytes_s, disk_bytes_s;
    double hop_s;          /* to the next stage */
    uint64_t vram_bytes;   /* of its device; 0: it has none */
    double vram_bytes_s;   /* that this computes with */
    uint32_t device_begin; /* first layer of the model that may be there */
};

struct partition_stage {
    uint32_t layer_begin, layer_end;
    uint64_t fixed_bytes, expert_bytes, slot_bytes; /* on the host; slots: experts in memory */
    double hit_rate;                                /* in memory, the device's too */
    /* The layers from device_begin on are on a device; layer_end: none. Its slots: experts there */
    uint32_t device_begin;
    uint64_t device_fixed_bytes, device_expert_bytes, device_slot_bytes;
    double device_hit_rate; /* of their lookups */
    double token_s;         /* t: of one token of one sequence */
};

/* From the request's context, slots, chunk and slot_bytes_min. device_slot_bytes_min is the
 * caller's to set. */
void partition_model_take(struct partition_model *out, const struct gguf_file *file,
                          const struct hparams *hp, const struct memory_request *request);

/* stages, ranks: [n_rank]. LM_E_USAGE: more ranks than layers. LM_E_NO_MEM: no cut fits; says how
 * much is missing. */
enum lm_status partition_make(struct partition_stage *stages, const struct partition_model *model,
                              const struct partition_rank *ranks, uint32_t n_rank,
                              enum partition_objective objective, struct lm_error *err);

/* The cut that the user gave: n_layer: [n_rank] layers of each. LM_E_USAGE: they are not the
 * model's layers. What does not fit is memory_plan's to say. */
enum lm_status partition_given(struct partition_stage *stages, const struct partition_model *model,
                               const struct partition_rank *ranks, uint32_t n_rank,
                               const uint32_t *n_layer, struct lm_error *err);

#endif
