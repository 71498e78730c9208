/* What one rank needs of a model to run its layers: the file, the experts' places, a backend, the
 * worker. Of one rank the layers are all.
 *
 *   opened --take_layers--> planned by the caller --load--> ready
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_MODEL_PART_H
#define LEAN_LAUNCH_MODEL_PART_H

#include "coordinator/plan/device_plan.h"
#include "launch/device.h"
#include "launch/rank_settings.h"
#include "proto/model/hparams.h"
#include "worker/worker.h"

/* What all ranks have alike, settled by rank 0. */
struct run_sizes {
    uint32_t n_ctx, n_slot, n_snapshot, prefill_chunk;
    uint32_t n_draft; /* of a sequence in one step at most */
    enum drafting mtp;
    uint64_t n_cache_position;
    enum tensor_type kv_type;
    uint32_t n_edge_buffer; /* of several ranks */
};

/* How this rank runs. */
struct part_config {
    uint32_t layer_begin, layer_end;
    struct rank_settings settings;
    bool pin; /* threads to cores */
    struct local_rank local;
    const char *trace_path;
    bool trace_kept;                 /* as of struct worker_config */
    const char *name;                /* of the rank, or NULL */
    struct transport_edge *in, *out; /* or NULL */
    struct progress *progress;       /* or NULL */
};

struct model_part {
    struct gguf_file *file;
    struct hparams hp;
    struct expert_store *store;
    struct backend *backend; /* the CPU's */
    struct device device;
    struct worker *worker;
    uint32_t device_begin;  /* the first layer on the device, if there is one */
    uint32_t n_expert_slot; /* experts in host memory: of the other layers, and where the device has
                             * slots of its; 0: all, mapped */
    uint32_t n_device_slot; /* experts of the device's layers in its memory; 0: all */
    bool mtp;               /* the last layer's rank drafts by the layer behind it */
    uint64_t weight_bytes, kv_bytes, scratch_bytes; /* that it takes at most, anywhere */
};

/* File and hyperparameters. part: zero before. */
enum lm_status model_part_open(struct model_part *part, const char *path, struct lm_error *err);
/* Of the layers of a rank, or of all that are to be planned; with the layer that drafts behind the
 * last one unless mtp says that there are no drafts. */
enum lm_status model_part_find_experts(struct model_part *part, uint32_t layer_begin,
                                       uint32_t layer_end, enum drafting mtp, struct lm_error *err);

/* Whether a rank with these layers may draft, as far as that can be said before it is planned. */
bool model_part_may_draft(const struct model_part *part, uint32_t layer_end, enum drafting mtp);
/* Whether it may pay: nothing has to go to and fro for that, and a usual context fits, or n_ctx. */
bool model_part_is_roomy(const struct model_part *part, uint32_t n_ctx,
                         const struct device_plan *plans);

/* What the experts of the request's layers take in slots: as many as expert_slots asks for ("N",
 * "P%", "min", or NULL: as there is room), at least those that work. *n_slot: asked for; 0: not.
 * LM_E_USAGE: expert_slots is none of these. */
enum lm_status model_part_request_slots(const struct model_part *part,
                                        struct memory_request *request, const char *expert_slots,
                                        uint32_t *n_slot, struct lm_error *err);
/* What decides about the rank's device, which is open. Borrows part. */
struct device_limits model_part_device_limits(const struct model_part *part,
                                              const struct rank_settings *settings);
/* Which layers go onto the rank's device, if it has one, and what is kept where: the plans, and
 * device_begin, n_expert_slot, n_device_slot and mtp of part. Loads nothing. request: of the rank,
 * layer_end of the decoder and not 0; its slots are settled, and the layer that drafts is added.
 * LM_E_USAGE: of expert_slots. Whether it fits is for the plans' checks. */
enum lm_status model_part_place(struct model_part *part, const struct rank_settings *settings,
                                enum drafting mtp, struct memory_request *request,
                                struct device_plan *out, struct lm_error *err);
/* Experts of the layers from device_begin to layer_end that are on the device, which has slots for
 * some: with full contexts, or with so many bytes of keys and values lent to them. */
uint32_t model_part_device_experts(const struct model_part *part, uint32_t layer_end,
                                   uint64_t kv_lent_bytes);
/* The request of a rank whose sizes are settled. */
enum lm_status model_part_request(const struct model_part *part, const struct part_config *config,
                                  const struct run_sizes *sizes, struct memory_request *request,
                                  uint32_t *n_slot, struct lm_error *err);
/* Opens the rank's device, if it is to have one: before load. Errors of device_open. */
enum lm_status model_part_open_device(struct model_part *part, const struct part_config *config,
                                      struct lm_error *err);
/* "cuda:0", or "cpu" if the rank has no layer on a device. */
const char *model_part_device(const struct model_part *part);
/* Backend, worker, routing profile. LM_E_NO_MEM: the layers do not fit, found before anything is
 * loaded. */
enum lm_status model_part_load(struct model_part *part, const struct part_config *config,
                               const struct run_sizes *sizes, struct lm_error *err);
/* The error of writing the trace, if there was one; everything is released all the same. */
enum lm_status model_part_close(struct model_part *part, struct lm_error *err);

#endif
