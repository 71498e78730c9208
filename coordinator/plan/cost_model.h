/* How fast a token can be decoded, from the rates of a machine and the bytes of a model, before
 * anything has run. Each token takes
 *
 *   dense   the weights that all tokens use, where they are
 *   hit     of the experts that it chose those in a device's memory
 *   miss    those in host memory, computed there; or link: moved to the device, which computes
 *   disk    those in neither, read into memory first
 *   fixed   what each layer takes besides: kernels started, threads met, the router; and sampling
 *
 * From these come, of a device and its host,
 *
 *   serial  dense + max(hit, miss) + disk + fixed     misses begin behind their layer's router
 *   link    dense + hit + link + disk + fixed         the device computes all, one after the other
 *   ideal   max(dense + hit, miss, disk) + fixed      all is foreseen, all works at once
 *
 * and of processors alone, where dense and misses share the memory and hit and link are nothing,
 *
 *   serial  dense + miss + disk + fixed               nothing is read ahead
 *   ideal   max(dense + miss + fixed, disk)           the disk works all the time beside them
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_PLAN_COST_MODEL_H
#define LEAN_COORDINATOR_PLAN_COST_MODEL_H

#include <stdint.h>

struct cost_machine {
    double dense_bytes_s, expert_bytes_s; /* that processors compute with, from memory */
    double disk_bytes_s;                  /* experts from the disk into memory */
    double vram_bytes_s;                  /* that a device computes with; 0: there is none */
    double link_bytes_s;                  /* experts from memory to the device */
    double layer_s, token_s;              /* fixed, of each layer and of a token */
};
/* What a device's kernels take of its memory's nominal rate, and what starting them and sampling
 * take: measured on published engines with graphs. */
#define COST_VRAM_SHARE 0.8
#define COST_DEVICE_LAYER_S 10e-6
#define COST_DEVICE_TOKEN_S 0.3e-3
/* Of processors: operations of a layer, each of which takes what its threads need to meet. */
#define COST_OPS_PER_LAYER 8

struct cost_weights {
    double dense_bytes;    /* that every token reads */
    double bank_bytes;     /* of all routed experts; 0: there are none */
    double used_share;     /* experts of a token over those of a layer */
    double vram_share;     /* of the bank in a device's memory */
    double resident_share; /* of the bank in memory, the device's too; 0 to 1 */
    uint32_t n_layer;
};

/* Shares of lookups. */
struct cost_hits {
    double vram;     /* found in a device's memory */
    double resident; /* found in memory, the device's too */
};
/* What is expected of warm caches (coordinator/plan/hit_rate.h). */
struct cost_hits cost_model_hits(const struct cost_weights *weights);

struct cost_estimate {
    double dense_s, hit_s, miss_s, link_s, disk_s, fixed_s; /* of one token */
    double serial_tok_s, link_tok_s, ideal_tok_s;           /* link_tok_s 0: no device */
};

struct cost_estimate cost_model_estimate(const struct cost_machine *machine,
                                         const struct cost_weights *weights,
                                         const struct cost_hits *hits);

#endif
