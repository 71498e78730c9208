/* A rank but 0: answers, loads its layers, runs steps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/cluster.h"
#include "launch/cluster_message.h"
#include "launch/job.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/weights_sample.h"
#include "worker/pipeline/stage.h"

struct member {
    struct world *world;
    struct model_part part;
    struct transport_edge *in, *out;
    char host[65], name[96];
    struct binding *binding;
    struct device_link link;
    bool drained; /* rank 0 said that all is done */
};

static enum lm_status say_hello(struct member *member, struct lm_error *err)
{
    Lean__Hello hello = LEAN__HELLO__INIT;
    if (gethostname(member->host, sizeof(member->host) - 1)) strcpy(member->host, "localhost");
    snprintf(member->name, sizeof(member->name), "rank %u (%s)", member->world->rank, member->host);
    hello.version = LEAN_VERSION;
    hello.build = cluster_build_id();
    hello.host = member->host;
    hello.pid = getpid();
    return cluster_send(member->world, 0, LEAN__FRAME_TYPE__HELLO, &hello.base, err);
}

/* The next question of rank 0. NULL without an error: it is over instead. */
static void *wait_for(struct member *member, Lean__FrameType type,
                      const ProtobufCMessageDescriptor *descriptor, struct lm_error *err)
{
    struct world *world = member->world;
    struct frame *frame;
    void *message = NULL;
    err->status = world->ops->recv(world, -1, &frame, err);
    if (err->status != LM_OK) return NULL;
    if (frame->type == type)
        message = cluster_unpack(frame, descriptor, err);
    else if (frame->type == LEAN__FRAME_TYPE__DRAIN)
        member->drained = true;
    else
        lm_fail(err, LM_E_FORMAT, "rank 0 sent a message of type %u, not %u", frame->type, type);
    free(frame);
    return message;
}

static enum lm_status open_model(struct member *member, const Lean__ModelFile *message,
                                 struct lm_error *err)
{
    uint64_t fingerprint, weights;
    const struct gguf_file *file;
    enum lm_status status = model_part_open(&member->part, message->path, err);
    if (status != LM_OK) return status;
    file = member->part.file;
    status = gguf_fingerprint(file, &fingerprint, err);
    if (status == LM_OK) status = weights_sample(file, &weights, err);
    if (status != LM_OK) return status;
    if (fingerprint == message->fingerprint && weights == message->weights) return LM_OK;
    return lm_fail(err, LM_E_FORMAT,
                   "%s is another model here: fingerprint %016llx, weights %016llx; on rank 0 "
                   "%016llx, %016llx",
                   message->path, (unsigned long long)fingerprint, (unsigned long long)weights,
                   (unsigned long long)message->fingerprint, (unsigned long long)message->weights);
}

static enum lm_status open_device(struct member *member, const Lean__DeviceChoice *choice,
                                  struct lm_error *err)
{
    const struct part_config config = {.settings = {.kernels = choice->kernels,
                                                    .device = choice->device,
                                                    .gpu_layers = choice->gpu_layers,
                                                    .vram_bytes = choice->vram_bytes,
                                                    .devices = choice->devices,
                                                    .numerics = choice->numerics},
                                       .local = {choice->local_rank, choice->n_local}};
    if (choice->local_rank >= choice->n_local)
        return lm_fail(err, LM_E_FORMAT, "rank 0 says that this is rank %u of %u on its host",
                       choice->local_rank, choice->n_local);
    return model_part_open_device(&member->part, &config, err);
}

static enum lm_status send_inventory(const struct member *member, const Lean__ModelFile *message,
                                     struct lm_error *err)
{
    struct inventory inventory;
    const struct device *const own = &member->part.device;
    Lean__Inventory answer = LEAN__INVENTORY__INIT;
    Lean__Device device = LEAN__DEVICE__INIT;
    inventory_take(&inventory, message->path, message->n_thread);
    answer.n_thread = inventory.n_thread;
    answer.ram_bytes = inventory.ram_bytes;
    answer.memory_bytes_s = inventory.memory_bytes_s;
    answer.disk_bytes_s = inventory.disk_bytes_s;
    device.name = (char *)own->name;
    device.uuid = (char *)own->uuid;
    device.vram_bytes = own->budget_bytes;
    if (own->backend) answer.device = &device;
    return cluster_send(member->world, 0, LEAN__FRAME_TYPE__INVENTORY, &answer.base, err);
}

static enum lm_status answer_model(struct member *member, struct lm_error *err)
{
    Lean__ModelFile *message =
        wait_for(member, LEAN__FRAME_TYPE__MODEL, &lean__model_file__descriptor, err);
    if (!message) return err->status;
    enum lm_status status = open_model(member, message, err);
    if (status == LM_OK) status = open_device(member, message->choice, err);
    if (status == LM_OK) status = send_inventory(member, message, err);
    lean__model_file__free_unpacked(message, NULL);
    return status;
}

static enum lm_status open_edges(struct member *member, struct lm_error *err)
{
    struct world *world = member->world;
    const enum lm_status status = world->ops->edge_open(world, false, &member->in, err);
    if (status != LM_OK || world->rank + 1 == world->n_rank) return status;
    return world->ops->edge_open(world, true, &member->out, err);
}

static enum lm_status check_setup(const struct member *member, const Lean__Setup *setup,
                                  struct lm_error *err)
{
    const struct hparams *hp = &member->part.hp;
    const bool is_last = member->world->rank + 1 == member->world->n_rank;
    const bool valid = setup->layer_begin > 0 && setup->layer_begin < setup->layer_end &&
                       setup->layer_end <= hp->n_layer &&
                       (setup->layer_end == hp->n_layer) == is_last && setup->n_ctx &&
                       setup->n_slot && setup->prefill_chunk && setup->n_draft <= STEP_DRAFT_MAX &&
                       setup->mtp >= DRAFTING_OFF &&
                       setup->mtp <= (hp->n_layer_mtp ? DRAFTING_AUTO : DRAFTING_OFF) &&
                       setup->local_rank < setup->n_local && setup->edge_depth >= 2 &&
                       setup->edge_depth < TRANSPORT_DEPTH && setup->kv_type >= 0 &&
                       setup->kv_type < TENSOR_TYPE_COUNT;
    if (valid) return LM_OK;
    return lm_fail(err, LM_E_FORMAT, "rank 0 gave layers %u to %u of %u", setup->layer_begin,
                   setup->layer_end, hp->n_layer);
}

static enum lm_status load(struct member *member, const Lean__Setup *setup, struct lm_error *err)
{
    const struct run_sizes sizes = {.n_ctx = setup->n_ctx,
                                    .n_slot = setup->n_slot,
                                    .n_snapshot = setup->n_snapshot,
                                    .prefill_chunk = setup->prefill_chunk,
                                    .n_draft = setup->n_draft,
                                    .mtp = (enum drafting)setup->mtp,
                                    .n_cache_position = setup->n_cache_position,
                                    .kv_type = (enum tensor_type)setup->kv_type,
                                    .n_edge_buffer = setup->edge_depth};
    const struct part_config config = {.layer_begin = setup->layer_begin,
                                       .layer_end = setup->layer_end,
                                       .settings = {.ram_bytes = setup->ram_bytes,
                                                    .n_thread = setup->n_thread,
                                                    .kernels = setup->kernels,
                                                    .expert_slots = setup->expert_slots,
                                                    .policy = setup->policy,
                                                    .prefetch = setup->prefetch,
                                                    .io = setup->io,
                                                    .profile = setup->profile,
                                                    .gpu_layers = setup->gpu_layers,
                                                    .vram_bytes = setup->vram_bytes,
                                                    .miss = setup->miss},
                                       .local = {setup->local_rank, setup->n_local},
                                       .pin = setup->pin,
                                       .trace_kept = setup->trace,
                                       .name = member->name,
                                       .progress = member->world->progress,
                                       .in = member->in,
                                       .out = member->out};
    enum lm_status status = check_setup(member, setup, err);
    if (status == LM_OK) member->binding = binding_begin(config.local); /* for good */
    if (status == LM_OK)
        status = model_part_find_experts(&member->part, config.layer_begin, config.layer_end,
                                         sizes.mtp, err);
    return status == LM_OK ? model_part_load(&member->part, &config, &sizes, err) : status;
}

static enum lm_status answer_setup(struct member *member, struct lm_error *err)
{
    enum lm_status status = open_edges(member, err);
    if (status != LM_OK) return status;
    Lean__Setup *setup = wait_for(member, LEAN__FRAME_TYPE__SETUP, &lean__setup__descriptor, err);
    if (!setup) return err->status;
    status = load(member, setup, err);
    if (status == LM_OK && setup->nccl)
        device_link_offer(&member->link, &member->part, member->world);
    lean__setup__free_unpacked(setup, NULL);
    if (status != LM_OK) return status;
    Lean__Ready ready = LEAN__READY__INIT;
    cluster_put_offer(&ready, &member->link.offer);
    ready.n_expert_slot = member->part.n_expert_slot;
    ready.n_thread = backend_cpu_n_thread(member->part.backend);
    ready.weight_bytes = member->part.weight_bytes;
    ready.kv_bytes = member->part.kv_bytes;
    ready.scratch_bytes = member->part.scratch_bytes;
    ready.kernels = (char *)backend_cpu_kernels(member->part.backend);
    ready.device = (char *)model_part_device(&member->part);
    ready.device_begin = member->part.device_begin;
    ready.n_device_slot = member->part.n_device_slot;
    return cluster_send(member->world, 0, LEAN__FRAME_TYPE__READY, &ready.base, err);
}

/* *out: the id, or NULL if there is none. */
static enum lm_status read_id(struct nccl_id *id, const struct nccl_id **out, bool present,
                              const ProtobufCBinaryData *bytes, struct lm_error *err)
{
    *out = present ? id : NULL;
    if (!present) return LM_OK;
    if (bytes->len != sizeof(*id))
        return lm_fail(err, LM_E_FORMAT, "rank 0 gave an id of %zu bytes, not %zu", bytes->len,
                       sizeof(*id));
    memcpy(id, bytes->data, sizeof(*id));
    return LM_OK;
}

/* why: that edges cannot be opened is for rank 0 to judge. */
static enum lm_status open_links(struct member *member, const Lean__Link *link,
                                 struct lm_error *why, struct lm_error *err)
{
    struct nccl_id ids[2];
    const struct nccl_id *in, *out;
    enum lm_status status = read_id(&ids[0], &in, link->has_in_id, &link->in_id, err);
    if (status == LM_OK) status = read_id(&ids[1], &out, link->has_out_id, &link->out_id, err);
    if (status == LM_OK)
        device_link_open(&member->link, &member->part, member->world, in, out, why);
    return status;
}

/* Until all edges are settled. */
static enum lm_status answer_links(struct member *member, struct lm_error *err)
{
    for (bool settled = false; !settled;) {
        struct lm_error why = {.status = LM_OK};
        Lean__Link *link = wait_for(member, LEAN__FRAME_TYPE__LINK, &lean__link__descriptor, err);
        if (!link) return err->status;
        Lean__Linked answer = LEAN__LINKED__INIT;
        settled = link->settled;
        enum lm_status status =
            settled ? device_link_settle(&member->link, &member->part, link->kept, err)
                    : open_links(member, link, &why, err);
        lean__link__free_unpacked(link, NULL);
        if (why.status != LM_OK) answer.error = why.message;
        if (status == LM_OK)
            status = cluster_send(member->world, 0, LEAN__FRAME_TYPE__LINKED, &answer.base, err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

/* Tells rank 0, whose error it becomes, and waits to be told to end. */
static enum lm_status report(struct member *member, struct lm_error *err)
{
    Lean__Failure failure = LEAN__FAILURE__INIT;
    failure.status = (int32_t)err->status;
    failure.message = err->message;
    failure.hint = *err->hint ? err->hint : NULL;
    enum lm_status status =
        cluster_send(member->world, 0, LEAN__FRAME_TYPE__SETUP_FAILED, &failure.base, err);
    while (status == LM_OK && !member->drained) {
        struct frame *frame;
        status = member->world->ops->recv(member->world, -1, &frame, err);
        if (status != LM_OK) break;
        member->drained = frame->type == LEAN__FRAME_TYPE__DRAIN;
        free(frame);
    }
    return status;
}

static enum lm_status run(struct member *member, struct lm_error *err)
{
    struct world *world = member->world;
    enum lm_status status = say_hello(member, err);
    if (status == LM_OK) status = answer_model(member, err);
    if (status == LM_OK && !member->drained) status = answer_setup(member, err);
    if (status == LM_OK && !member->drained) status = answer_links(member, err);
    if (status == LM_OK && !member->drained) return stage_run(world, member->part.worker, err);
    if (status != LM_OK && status != LM_E_RANK_LOST) status = report(member, err);
    if (member->drained) status = cluster_send(world, 0, LEAN__FRAME_TYPE__BYE, NULL, err);
    return status;
}

static void leave_lost_job(void)
{
    job_leave(lm_exit_code(LM_E_RANK_LOST));
}

enum lm_status cluster_run_rank(const struct cluster_config *config, struct lm_error *err)
{
    const struct world_mpi_config mpi = {.startup_timeout_s = config->startup_timeout_s,
                                         .liveness_timeout_s = config->liveness_timeout_s,
                                         .stall_timeout_s = config->stall_timeout_s,
                                         .spin_us = config->spin_us,
                                         .interface = config->interface,
                                         .on_leave = leave_lost_job,
                                         .wants_state = job_wants_state};
    struct member member = {.drained = false};
    enum lm_status status = world_mpi_open(&member.world, &mpi, err);
    if (status != LM_OK) return status;
    status = run(&member, err);
    model_part_close(&member.part, NULL);
    device_link_fini(&member.link);
    binding_end(member.binding);
    if (member.in) member.in->ops->close(member.in);
    if (member.out) member.out->ops->close(member.out);
    member.world->ops->close(member.world);
    return status;
}
