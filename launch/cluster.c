/* Rank 0's side of the start, and its end. */
#include "launch/cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/plan/partition.h"
#include "launch/cluster_message.h"
#include "launch/options.h"
#include "launch/partition_report.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/weights_sample.h"

/* What the hop to the next rank takes, of a message with little in it. */
#define HOP_HOST_S 20e-6
#define HOP_NETWORK_S 200e-6

/* How long ranks may take to end when nothing runs. */
enum { END_TIMEOUT_S = 10 };

struct cluster {
    struct cluster_config config;
    struct world *world;
    struct transport_edge *edge;
    struct device_link link;   /* of this rank */
    struct cluster_rank *rank; /* [n_rank] */
    double deadline_s;         /* of the start */
    bool ended;                /* the ranks have been told to end, or the job is lost */
};

struct cluster_config cluster_config_from_options(const struct options *options)
{
    return (struct cluster_config){.enabled = true,
                                   .partition = options_string(options, "partition"),
                                   .interface = options_string(options, "interface"),
                                   .transport = options_string(options, "transport"),
                                   .objective = partition_objective_from_options(options),
                                   .slack = (uint32_t)options_int(options, "slack"),
                                   .edge_depth = (uint32_t)options_int(options, "edge-depth"),
                                   .startup_timeout_s = options_float(options, "startup-timeout"),
                                   .liveness_timeout_s = options_float(options, "liveness-timeout"),
                                   .stall_timeout_s = options_float(options, "stall-timeout"),
                                   .spin_us = (uint32_t)options_int(options, "spin-us")};
}

uint32_t cluster_n_rank(const struct cluster *cluster)
{
    return cluster->world->n_rank;
}

const struct cluster_rank *cluster_rank(const struct cluster *cluster, uint32_t rank)
{
    return &cluster->rank[rank];
}

struct world *cluster_world(const struct cluster *cluster)
{
    return cluster->world;
}

struct transport_edge *cluster_edge(const struct cluster *cluster)
{
    return cluster->edge;
}

/* ---- asking all --------------------------------------------------------------------------- */

/* What a rank failed of, in its own words behind its name. */
static enum lm_status take_failure(const struct cluster *cluster, const struct frame *frame,
                                   struct lm_error *err)
{
    Lean__Failure *failure = cluster_unpack(frame, &lean__failure__descriptor, err);
    if (!failure) return LM_E_FORMAT;
    const bool known = failure->status > LM_OK && failure->status < LM_STATUS_COUNT;
    const enum lm_status status = known ? (enum lm_status)failure->status : LM_E_FAIL;
    lm_fail(err, status, "%s: %s", cluster->rank[frame->from].name, failure->message);
    if (failure->hint) lm_hint(err, "%s", failure->hint);
    lean__failure__free_unpacked(failure, NULL);
    return status;
}

/* The next answer of that type to a question. */
static enum lm_status wait_answer(struct cluster *cluster, Lean__FrameType type, struct frame **out,
                                  struct lm_error *err)
{
    struct world *world = cluster->world;
    struct frame *frame;
    const double left_s = cluster->deadline_s - log_now_s();
    enum lm_status status = world->ops->recv(world, left_s > 0 ? left_s : 0, &frame, err);
    if (status != LM_OK) return status;
    if (frame->type == type) {
        *out = frame;
        return LM_OK;
    }
    if (frame->type == LEAN__FRAME_TYPE__SETUP_FAILED)
        status = take_failure(cluster, frame, err);
    else
        status = lm_fail(err, LM_E_FORMAT, "rank %u sent a message of type %u while it starts",
                         frame->from, frame->type);
    free(frame);
    return status;
}

/* One answer of each rank but 0, each given to take. */
static enum lm_status gather(struct cluster *cluster, Lean__FrameType type,
                             enum lm_status (*take)(struct cluster *cluster,
                                                    const struct frame *frame,
                                                    struct lm_error *err),
                             struct lm_error *err)
{
    const uint32_t n_rank = cluster->world->n_rank;
    bool *const answered = calloc(n_rank, sizeof(*answered));
    if (!answered) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n_rank);
    enum lm_status status = LM_OK;
    for (uint32_t n = 1; n < n_rank && status == LM_OK; n++) {
        struct frame *frame = NULL;
        status = wait_answer(cluster, type, &frame, err);
        if (status == LM_E_BUSY) {
            uint32_t silent = 1;
            while (answered[silent])
                silent++;
            lm_fail(err, LM_E_RANK_LOST, "%s was not ready within %g s", cluster->rank[silent].name,
                    cluster->config.startup_timeout_s);
            lm_hint(err, "--startup-timeout");
            status = LM_E_RANK_LOST;
            cluster->world->ops->abort(cluster->world, err); /* nobody may wait for its goodbye */
        }
        if (status != LM_OK) break;
        answered[frame->from] = true;
        status = take(cluster, frame, err);
        free(frame);
    }
    free(answered);
    if (status == LM_E_RANK_LOST) cluster->ended = true;
    return status;
}

static enum lm_status send_to_all(struct cluster *cluster, Lean__FrameType type,
                                  const ProtobufCMessage *message, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t rank = 1; rank < cluster->world->n_rank && status == LM_OK; rank++)
        status = cluster_send(cluster->world, rank, type, message, err);
    return status;
}

/* ---- who they are ------------------------------------------------------------------------- */

static void name_rank(struct cluster_rank *rank, uint32_t number, const char *host)
{
    snprintf(rank->inventory.host, sizeof(rank->inventory.host), "%s", host);
    snprintf(rank->name, sizeof(rank->name), "rank %u (%s)", number, rank->inventory.host);
}

static enum lm_status take_hello(struct cluster *cluster, const struct frame *frame,
                                 struct lm_error *err)
{
    Lean__Hello *hello = cluster_unpack(frame, &lean__hello__descriptor, err);
    if (!hello) return LM_E_FORMAT;
    struct cluster_rank *const rank = &cluster->rank[frame->from];
    const uint64_t build = cluster_build_id();
    enum lm_status status = LM_OK;
    name_rank(rank, frame->from, hello->host);
    rank->pid = hello->pid;
    if (strcmp(hello->version, LEAN_VERSION) || hello->build != build)
        status = lm_fail(err, LM_E_UNSUPPORTED,
                         "%s runs lean %s, build %016llx, and rank 0 lean " LEAN_VERSION
                         ", build %016llx: all ranks need the same program",
                         rank->name, hello->version, (unsigned long long)hello->build,
                         (unsigned long long)build);
    lean__hello__free_unpacked(hello, NULL);
    return status;
}

static void count_local(struct cluster *cluster)
{
    const uint32_t n = cluster->world->n_rank;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < n; j++) {
            const bool same =
                !strcmp(cluster->rank[i].inventory.host, cluster->rank[j].inventory.host);
            cluster->rank[i].n_local += same;
            cluster->rank[i].local_rank += same && j < i;
        }
    }
}

static enum lm_status join(struct cluster *cluster, struct lm_error *err)
{
    const struct cluster_config *config = &cluster->config;
    const struct world_mpi_config mpi = {.startup_timeout_s = config->startup_timeout_s,
                                         .liveness_timeout_s = config->liveness_timeout_s,
                                         .stall_timeout_s = config->stall_timeout_s,
                                         .spin_us = config->spin_us,
                                         .interface = config->interface};
    char host[65] = "";
    enum lm_status status = world_mpi_open(&cluster->world, &mpi, err);
    if (status != LM_OK) return status;
    const uint32_t n_rank = cluster->world->n_rank;
    cluster->rank = calloc(n_rank, sizeof(*cluster->rank));
    if (!cluster->rank) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n_rank);
    if (gethostname(host, sizeof(host) - 1)) strcpy(host, "localhost");
    for (uint32_t i = 0; i < n_rank; i++)
        snprintf(cluster->rank[i].name, sizeof(cluster->rank[i].name), "rank %u", i);
    name_rank(&cluster->rank[0], 0, host);
    cluster->rank[0].pid = getpid();
    status = gather(cluster, LEAN__FRAME_TYPE__HELLO, take_hello, err);
    if (status == LM_OK) count_local(cluster);
    if (status == LM_OK)
        status = cluster->world->ops->edge_open(cluster->world, true, &cluster->edge, err);
    return status;
}

enum lm_status cluster_open(struct cluster **out, const struct cluster_config *config,
                            struct lm_error *err)
{
    uint32_t rank, n_rank;
    *out = NULL;
    if (!config->enabled || !world_mpi_launched(&rank, &n_rank) || n_rank < 2) return LM_OK;
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    if (!cluster) return lm_fail(err, LM_E_NO_MEM, "no memory for a cluster");
    cluster->config = *config;
    if (!config->transport) cluster->config.transport = "auto";
    cluster->deadline_s = log_now_s() + config->startup_timeout_s;
    const enum lm_status status = join(cluster, err);
    if (status != LM_OK) {
        cluster_close(cluster);
        return status;
    }
    *out = cluster;
    return LM_OK;
}

/* ---- what they have, and get -------------------------------------------------------------- */

static void note_device(struct cluster_rank *rank, const char *name, const char *uuid,
                        uint64_t vram_bytes)
{
    snprintf(rank->device_name, sizeof(rank->device_name), "%s", name);
    snprintf(rank->device_uuid, sizeof(rank->device_uuid), "%s", uuid);
    rank->vram_bytes = vram_bytes;
}

static enum lm_status take_inventory(struct cluster *cluster, const struct frame *frame,
                                     struct lm_error *err)
{
    Lean__Inventory *message = cluster_unpack(frame, &lean__inventory__descriptor, err);
    if (!message) return LM_E_FORMAT;
    struct inventory *const inventory = &cluster->rank[frame->from].inventory;
    inventory->n_thread = message->n_thread;
    inventory->ram_bytes = message->ram_bytes;
    inventory->memory_bytes_s = message->memory_bytes_s;
    inventory->disk_bytes_s = message->disk_bytes_s;
    if (message->device)
        note_device(&cluster->rank[frame->from], message->device->name, message->device->uuid,
                    message->device->vram_bytes);
    lean__inventory__free_unpacked(message, NULL);
    return LM_OK;
}

static uint64_t without_reserve(uint64_t n_bytes)
{
    const uint64_t reserve = n_bytes / 8;
    return n_bytes - (reserve < MEMORY_PLAN_RESERVE_MAX ? reserve : MEMORY_PLAN_RESERVE_MAX);
}

enum lm_status cluster_settle(struct cluster *cluster, const struct rank_settings *own,
                              const struct options *options, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    cluster->rank[0].settings = *own;
    for (uint32_t i = 1; i < cluster->world->n_rank && status == LM_OK; i++) {
        struct cluster_rank *const rank = &cluster->rank[i];
        rank->settings = *own;
        if (options)
            status = rank_settings_resolve(&rank->settings, &rank->kept, options, own, i,
                                           rank->inventory.host, err);
    }
    return status;
}

static bool is_same_host(const struct cluster *cluster, uint32_t i, uint32_t j)
{
    return !strcmp(cluster->rank[i].inventory.host, cluster->rank[j].inventory.host);
}

/* What ranks of one host were not given they have in equal parts of what is left, if it is a byte.
 * given: [n_rank] */
static void share_host(struct cluster *cluster, uint32_t i, const struct rank_settings *given)
{
    struct cluster_rank *const rank = &cluster->rank[i];
    uint64_t ram_bytes = without_reserve(rank->inventory.ram_bytes);
    uint32_t n_thread = rank->inventory.n_thread, n_without_ram = 0, n_without_thread = 0;
    for (uint32_t j = 0; j < cluster->world->n_rank; j++) {
        if (!is_same_host(cluster, i, j)) continue;
        ram_bytes -= given[j].ram_bytes < ram_bytes ? given[j].ram_bytes : ram_bytes;
        n_thread -= given[j].n_thread < n_thread ? given[j].n_thread : n_thread;
        n_without_ram += !given[j].ram_bytes;
        n_without_thread += !given[j].n_thread;
    }
    rank->pin = !given[i].n_thread && rank->n_local == 1;
    if (!given[i].ram_bytes)
        rank->settings.ram_bytes = ram_bytes < n_without_ram ? 1 : ram_bytes / n_without_ram;
    if (!given[i].n_thread)
        rank->settings.n_thread = n_thread < n_without_thread ? 1 : n_thread / n_without_thread;
}

static enum lm_status share_hosts(struct cluster *cluster, struct lm_error *err)
{
    const uint32_t n = cluster->world->n_rank;
    struct rank_settings *const given = calloc(n, sizeof(*given));
    if (!given) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n);
    for (uint32_t i = 0; i < n; i++)
        given[i] = cluster->rank[i].settings;
    for (uint32_t i = 0; i < n; i++)
        share_host(cluster, i, given);
    free(given);
    return LM_OK;
}

/* Ranks that have one device in common. */
static enum lm_status share_devices(struct cluster *cluster, struct lm_error *err)
{
    const uint32_t n = cluster->world->n_rank;
    struct device_claim *const claims = calloc(n, sizeof(*claims));
    if (!claims) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n);
    for (uint32_t i = 0; i < n; i++) {
        const struct cluster_rank *rank = &cluster->rank[i];
        claims[i] = (struct device_claim){.host = rank->inventory.host,
                                          .uuid = rank->device_uuid,
                                          .rank = rank->name,
                                          .name = rank->device_name,
                                          .share = rank->settings.share_gpu,
                                          .asked_bytes = rank->settings.vram_bytes,
                                          .budget_bytes = rank->vram_bytes};
    }
    const enum lm_status status = device_share(claims, n, err);
    for (uint32_t i = 0; i < n && status == LM_OK; i++)
        cluster->rank[i].vram_bytes = claims[i].budget_bytes;
    free(claims);
    return status;
}

static enum lm_status ask_inventory(struct cluster *cluster, Lean__ModelFile *model,
                                    struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t i = 1; i < cluster->world->n_rank && status == LM_OK; i++) {
        const struct cluster_rank *rank = &cluster->rank[i];
        const struct rank_settings *settings = &rank->settings;
        Lean__DeviceChoice choice = LEAN__DEVICE_CHOICE__INIT;
        choice.kernels = (char *)settings->kernels;
        choice.device = (char *)settings->device;
        choice.gpu_layers = settings->gpu_layers;
        choice.vram_bytes = settings->vram_bytes;
        choice.devices = (char *)settings->devices;
        choice.numerics = (char *)settings->numerics;
        choice.local_rank = rank->local_rank;
        choice.n_local = rank->n_local;
        model->n_thread = settings->n_thread;
        model->has_n_thread = model->n_thread > 0;
        model->choice = &choice;
        status = cluster_send(cluster->world, i, LEAN__FRAME_TYPE__MODEL, &model->base, err);
    }
    return status;
}

/* While the others take theirs. */
static enum lm_status take_own_inventory(struct cluster *cluster, struct model_part *part,
                                         const char *path, struct lm_error *err)
{
    struct cluster_rank *const own = &cluster->rank[0];
    const struct part_config config = {.settings = own->settings,
                                       .local = {own->local_rank, own->n_local}};
    inventory_take(&own->inventory, path, own->settings.n_thread);
    const enum lm_status status = model_part_open_device(part, &config, err);
    const struct device *const device = &part->device;
    if (status == LM_OK && device->backend)
        note_device(own, device->name, device->uuid, device->budget_bytes);
    return status;
}

enum lm_status cluster_share_model(struct cluster *cluster, struct model_part *own,
                                   const char *path, struct lm_error *err)
{
    const struct gguf_file *const file = own->file;
    Lean__ModelFile model = LEAN__MODEL_FILE__INIT;
    char *const absolute = realpath(path, NULL);
    model.path = absolute ? absolute : (char *)path;
    enum lm_status status = gguf_fingerprint(file, &model.fingerprint, err);
    if (status == LM_OK) status = weights_sample(file, &model.weights, err);
    if (status == LM_OK) status = ask_inventory(cluster, &model, err);
    if (status == LM_OK) status = take_own_inventory(cluster, own, model.path, err);
    if (status == LM_OK) status = gather(cluster, LEAN__FRAME_TYPE__INVENTORY, take_inventory, err);
    if (status == LM_OK) status = share_hosts(cluster, err);
    if (status == LM_OK) status = share_devices(cluster, err);
    free(absolute);
    return status;
}

static enum lm_status cut(struct cluster *cluster, const struct partition_model *model,
                          struct partition_rank *ranks, struct partition_stage *stages,
                          uint32_t *n_layer, struct lm_error *err)
{
    const uint32_t n = cluster->world->n_rank;
    const char *given = cluster->config.partition;
    for (uint32_t i = 0; i < n; i++) {
        const struct cluster_rank *rank = &cluster->rank[i];
        const bool far = i + 1 < n && strcmp(rank->inventory.host, rank[1].inventory.host);
        ranks[i] = (struct partition_rank){
            .ram_bytes = rank->settings.ram_bytes,
            .memory_bytes_s = rank->inventory.memory_bytes_s / rank->n_local,
            .disk_bytes_s = rank->inventory.disk_bytes_s / rank->n_local,
            .hop_s = far ? HOP_NETWORK_S : HOP_HOST_S,
            .vram_bytes = rank->vram_bytes,
            .vram_bytes_s = PARTITION_VRAM_RATE,
            .device_begin = rank_settings_device_begin(rank->settings.gpu_layers, model->n_layer)};
    }
    if (!given) return partition_make(stages, model, ranks, n, cluster->config.objective, err);
    const enum lm_status status = partition_parse(n_layer, n, given, err);
    return status == LM_OK ? partition_given(stages, model, ranks, n, n_layer, err) : status;
}

/* The plan of a rank, in a line. */
static void report_stage(const struct cluster_rank *rank, const struct partition_stage *stage)
{
    const char *const name = rank->name;
    const uint32_t n_thread = rank->settings.n_thread;
    char fixed[24], slots[24], experts[24], budget[24], expected[80] = "", device[240] = "";
    char on_device[24], there[24];
    if (stage->hit_rate < 1)
        snprintf(expected, sizeof(expected), " (about %.0f%% of the lookups) of %s",
                 100 * stage->hit_rate, log_format_bytes(stage->expert_bytes, experts));
    if (stage->device_begin < stage->layer_end)
        snprintf(device, sizeof(device), "; layers %u to %u on %s: %s, and %s of experts",
                 stage->device_begin, stage->layer_end - 1, rank->device_name,
                 log_format_bytes(stage->device_fixed_bytes, on_device),
                 log_format_bytes(stage->device_slot_bytes, there));
    log_info("%s: layers %u to %u: %s, and %s%s of experts in memory; may use %s and %u thread%s%s",
             name, stage->layer_begin, stage->layer_end - 1,
             log_format_bytes(stage->fixed_bytes, fixed),
             log_format_bytes(stage->slot_bytes, slots), expected,
             log_format_bytes(rank->settings.ram_bytes, budget), n_thread, n_thread == 1 ? "" : "s",
             device);
    log_verbose("%s: predicted from measured rates: %.3g ms a token", name, 1e3 * stage->token_s);
}

enum lm_status cluster_cut(struct cluster *cluster, const struct gguf_file *file,
                           const struct hparams *hp, const struct memory_request *request,
                           uint64_t device_slot_bytes_min, struct lm_error *err)
{
    const uint32_t n = cluster->world->n_rank;
    struct partition_model *const model = malloc(sizeof(*model));
    struct partition_rank *const ranks = calloc(n, sizeof(*ranks));
    struct partition_stage *const stages = calloc(n, sizeof(*stages));
    uint32_t *const n_layer = calloc(n, sizeof(*n_layer));
    enum lm_status status;
    if (model && ranks && stages && n_layer) {
        partition_model_take(model, file, hp, request);
        model->device_slot_bytes_min = device_slot_bytes_min;
        status = cut(cluster, model, ranks, stages, n_layer, err);
    } else {
        status = lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n);
    }
    for (uint32_t i = 0; i < n && status == LM_OK; i++) {
        struct cluster_rank *const rank = &cluster->rank[i];
        rank->layer_begin = stages[i].layer_begin;
        rank->layer_end = stages[i].layer_end;
        report_stage(rank, &stages[i]);
    }
    free(n_layer);
    free(stages);
    free(ranks);
    free(model);
    return status;
}

static bool may_link(const struct cluster *cluster)
{
    return strcmp(cluster->config.transport, "mpi");
}

static void put_settings(Lean__Setup *setup, const struct rank_settings *settings)
{
    setup->ram_bytes = settings->ram_bytes;
    setup->n_thread = settings->n_thread;
    setup->kernels = (char *)settings->kernels;
    setup->expert_slots = (char *)settings->expert_slots;
    setup->policy = (char *)settings->policy;
    setup->prefetch = (char *)settings->prefetch;
    setup->io = (char *)settings->io;
    setup->profile = (char *)settings->profile;
    setup->gpu_layers = settings->gpu_layers;
    setup->miss = (char *)settings->miss;
}

enum lm_status cluster_send_setup(struct cluster *cluster, const struct run_sizes *sizes,
                                  bool trace, struct lm_error *err)
{
    Lean__Setup setup = LEAN__SETUP__INIT;
    enum lm_status status = LM_OK;
    setup.n_ctx = sizes->n_ctx;
    setup.n_slot = sizes->n_slot;
    setup.n_snapshot = sizes->n_snapshot;
    setup.n_cache_position = sizes->n_cache_position;
    setup.prefill_chunk = sizes->prefill_chunk;
    setup.n_draft = sizes->n_draft;
    setup.mtp = (int32_t)sizes->mtp;
    setup.kv_type = (int32_t)sizes->kv_type;
    setup.edge_depth = sizes->n_edge_buffer;
    setup.nccl = may_link(cluster);
    for (uint32_t i = 1; i < cluster->world->n_rank && status == LM_OK; i++) {
        const struct cluster_rank *rank = &cluster->rank[i];
        setup.layer_begin = rank->layer_begin;
        setup.layer_end = rank->layer_end;
        setup.pin = rank->pin;
        setup.has_trace = setup.trace = trace;
        setup.local_rank = rank->local_rank;
        setup.n_local = rank->n_local;
        put_settings(&setup, &rank->settings);
        setup.vram_bytes = rank->vram_bytes;
        status = cluster_send(cluster->world, i, LEAN__FRAME_TYPE__SETUP, &setup.base, err);
    }
    return status;
}

static enum lm_status take_ready(struct cluster *cluster, const struct frame *frame,
                                 struct lm_error *err)
{
    Lean__Ready *ready = cluster_unpack(frame, &lean__ready__descriptor, err);
    if (!ready) return LM_E_FORMAT;
    struct cluster_rank *const rank = &cluster->rank[frame->from];
    rank->n_expert_slot = ready->n_expert_slot;
    rank->n_thread = ready->n_thread;
    rank->weight_bytes = ready->weight_bytes;
    rank->kv_bytes = ready->kv_bytes;
    rank->scratch_bytes = ready->scratch_bytes;
    snprintf(rank->kernels, sizeof(rank->kernels), "%s", ready->kernels);
    snprintf(rank->device, sizeof(rank->device), "%s", ready->device);
    rank->device_begin = ready->device_begin;
    rank->fast = rank_settings_fast(&rank->settings) && strcmp(rank->device, "cpu") != 0;
    rank->n_device_slot = ready->n_device_slot;
    cluster_read_offer(&rank->offer, ready);
    lean__ready__free_unpacked(ready, NULL);
    return LM_OK;
}

enum lm_status cluster_wait_ready(struct cluster *cluster, struct lm_error *err)
{
    return gather(cluster, LEAN__FRAME_TYPE__READY, take_ready, err);
}

/* ---- edges between devices ---------------------------------------------------------------- */

static enum lm_status take_linked(struct cluster *cluster, const struct frame *frame,
                                  struct lm_error *err)
{
    Lean__Linked *linked = cluster_unpack(frame, &lean__linked__descriptor, err);
    if (!linked) return LM_E_FORMAT;
    struct cluster_rank *const rank = &cluster->rank[frame->from];
    snprintf(rank->offer.why_not, sizeof(rank->offer.why_not), "%s",
             linked->error ? linked->error : "");
    lean__linked__free_unpacked(linked, NULL);
    return LM_OK;
}

/* The id of the edge behind a rank; NULL: it is MPI's. */
static const struct nccl_id *id_behind(const struct cluster *cluster, uint32_t rank)
{
    const bool nccl = rank + 1 < cluster->world->n_rank && cluster->rank[rank + 1].nccl;
    return nccl ? &cluster->rank[rank].offer.id : NULL;
}

static enum lm_status send_link(struct cluster *cluster, uint32_t rank, struct lm_error *err)
{
    Lean__Link link = LEAN__LINK__INIT;
    const struct nccl_id *const in = id_behind(cluster, rank - 1);
    const struct nccl_id *const out = id_behind(cluster, rank);
    link.has_in_id = in != NULL;
    link.has_out_id = out != NULL;
    if (in) link.in_id = (ProtobufCBinaryData){sizeof(*in), (uint8_t *)in->bytes};
    if (out) link.out_id = (ProtobufCBinaryData){sizeof(*out), (uint8_t *)out->bytes};
    return cluster_send(cluster->world, rank, LEAN__FRAME_TYPE__LINK, &link.base, err);
}

/* On all ranks at once. Why one could not is kept with its offer. */
static enum lm_status open_links(struct cluster *cluster, struct model_part *own,
                                 struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t i = 1; i < cluster->world->n_rank && status == LM_OK; i++)
        status = send_link(cluster, i, err);
    if (status != LM_OK) return status;
    struct lm_error why = {.status = LM_OK};
    struct link_offer *const offer = &cluster->rank[0].offer;
    device_link_open(&cluster->link, own, cluster->world, NULL, id_behind(cluster, 0), &why);
    snprintf(offer->why_not, sizeof(offer->why_not), "%.255s", why.message);
    if (why.status == LM_OK) *offer->why_not = '\0';
    return gather(cluster, LEAN__FRAME_TYPE__LINKED, take_linked, err);
}

/* Why not all could be opened, of the first rank that says; LM_OK: they all are. */
static enum lm_status check_links(const struct cluster *cluster, struct lm_error *err)
{
    for (uint32_t i = 0; i < cluster->world->n_rank; i++) {
        const struct cluster_rank *const rank = &cluster->rank[i];
        if (*rank->offer.why_not)
            return lm_fail(err, LM_E_FAIL, "%s: %s", rank->name, rank->offer.why_not);
    }
    return LM_OK;
}

static enum lm_status settle_links(struct cluster *cluster, struct model_part *own, bool kept,
                                   struct lm_error *err)
{
    Lean__Link link = LEAN__LINK__INIT;
    link.settled = true;
    link.kept = kept;
    enum lm_status status = send_to_all(cluster, LEAN__FRAME_TYPE__LINK, &link.base, err);
    if (status == LM_OK) status = device_link_settle(&cluster->link, own, kept, err);
    for (uint32_t i = 0; i < cluster->world->n_rank; i++)
        cluster->rank[i].nccl &= kept;
    return status == LM_OK ? gather(cluster, LEAN__FRAME_TYPE__LINKED, take_linked, err) : status;
}

static enum lm_status choose_links(struct cluster *cluster, bool *any, struct lm_error *err)
{
    const uint32_t n = cluster->world->n_rank;
    bool *const nccl = calloc(n, sizeof(*nccl));
    if (!nccl) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n);
    const enum lm_status status =
        device_link_choose(nccl, cluster->rank, n, cluster->config.transport, err);
    for (uint32_t i = 1; i < n && status == LM_OK; i++)
        *any |= cluster->rank[i].nccl = nccl[i - 1];
    free(nccl);
    return status;
}

enum lm_status cluster_link(struct cluster *cluster, struct model_part *own, struct lm_error *err)
{
    struct cluster_rank *const first = &cluster->rank[0];
    struct lm_error why = {.status = LM_OK};
    const bool wanted = !strcmp(cluster->config.transport, "nccl");
    bool any = false;
    first->device_begin = own->device_begin;
    if (may_link(cluster)) device_link_offer(&cluster->link, own, cluster->world);
    first->offer = cluster->link.offer;
    enum lm_status status = choose_links(cluster, &any, err);
    if (status == LM_OK && any) status = open_links(cluster, own, err);
    if (status == LM_OK && any && check_links(cluster, &why) != LM_OK && !wanted)
        log_warning("activations go over the host: %s", why.message);
    if (status == LM_OK) status = settle_links(cluster, own, any && why.status == LM_OK, err);
    for (uint32_t i = 1; i < cluster->world->n_rank && status == LM_OK; i++)
        log_verbose("activations reach %s by %s", cluster->rank[i].name,
                    cluster->rank[i].nccl ? "NCCL" : "MPI");
    if (status != LM_OK || why.status == LM_OK || !wanted) return status;
    if (err) *err = why;
    return why.status;
}

const char *cluster_transport(const struct cluster *cluster)
{
    uint32_t n_nccl = 0;
    const uint32_t n_edge = cluster->world->n_rank - 1;
    for (uint32_t i = 1; i <= n_edge; i++)
        n_nccl += cluster->rank[i].nccl;
    return n_nccl == n_edge ? "nccl" : n_nccl ? "mixed" : cluster->world->ops->name;
}

/* ---- the end ------------------------------------------------------------------------------ */

void cluster_drained(struct cluster *cluster)
{
    cluster->ended = true;
}

/* Until each rank has said that it ends. What they send besides came too late. */
static enum lm_status drain(struct cluster *cluster, struct lm_error *err)
{
    struct world *world = cluster->world;
    enum lm_status status = send_to_all(cluster, LEAN__FRAME_TYPE__DRAIN, NULL, err);
    const double end_s = log_now_s() + END_TIMEOUT_S;
    for (uint32_t n_bye = 0; n_bye + 1 < world->n_rank && status == LM_OK;) {
        struct frame *frame;
        const double left_s = end_s - log_now_s();
        status = world->ops->recv(world, left_s > 0 ? left_s : 0, &frame, err);
        if (status == LM_OK) {
            n_bye += frame->type == LEAN__FRAME_TYPE__BYE;
            free(frame);
        }
    }
    return status;
}

void cluster_close(struct cluster *cluster)
{
    struct lm_error err;
    if (!cluster) return;
    struct world *world = cluster->world;
    if (world && !cluster->ended) {
        const enum lm_status status = drain(cluster, &err);
        if (status == LM_E_BUSY)
            lm_fail(&err, LM_E_FAIL, "the ranks did not end within %d s", END_TIMEOUT_S);
        if (status != LM_OK && status != LM_E_RANK_LOST) world->ops->abort(world, &err);
    }
    device_link_fini(&cluster->link);
    if (cluster->edge) cluster->edge->ops->close(cluster->edge);
    for (uint32_t i = 0; cluster->rank && i < world->n_rank; i++)
        options_destroy(cluster->rank[i].kept);
    if (world) world->ops->close(world);
    free(cluster->rank);
    free(cluster);
}
