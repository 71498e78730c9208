/* The parts put together: file, tokenizer, this rank's layers, the other ranks, scheduler. */
#include "launch/engine.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/plan/device_plan.h"
#include "coordinator/plan/memory_plan.h"
#include "coordinator/plan/serve_plan.h"
#include "coordinator/sched/scheduler.h"
#include "coordinator/text/tokenizer.h"
#include "kernels/backend_cuda.h"
#include "launch/model_part.h"
#include "launch/options.h"
#include "launch/routing_profile.h"
#include "launch/tuned.h"
#include "proto/base/log.h"
#include "proto/transport/world.h"
#include "worker/pager/pager_snapshot.h"
#include "worker/pager/trace.h"
#include "worker/pipeline/pipeline.h"

/* Shorter ones cost more per token than a pipeline gains by them; and where experts are paged each
 * chunk needs nearly all of them. */
enum { CHUNK_MIN = 128 };

/* Where no expert is paged ranks have little to tell. */
#define ASK_MAPPED_S 1

struct engine {
    struct cluster *cluster; /* NULL: one rank */
    struct model_part part;  /* of this rank */
    struct tokenizer *tokenizer;
    struct pipeline *pipeline; /* NULL: one rank */
    struct route_trace *trace; /* of several ranks; NULL: none */
    struct scheduler *scheduler;
    struct step_runner runner;
    struct run_sizes sizes;
    uint64_t cache_bytes, state_bytes;
    uint64_t ram_bytes; /* this rank's budget */
    double asked_s;     /* when the ranks' counters were, last */
    enum drafting prompt_lookup;
    bool keeps_profile;
    struct tuned *tuned; /* or NULL */
    char tuned_text[160];
    void (*on_experts)(void *context);
    void *experts_context;
    atomic_bool cancelled;
};

enum drafting engine_drafting(const char *name)
{
    return !strcmp(name, "off") ? DRAFTING_OFF : !strcmp(name, "on") ? DRAFTING_ON : DRAFTING_AUTO;
}

enum lm_status engine_config_from_options(struct engine_config *config,
                                          const struct options *options, struct lm_error *err)
{
    (void)err; /* options checked the values */
    *config = (struct engine_config){
        .own = rank_settings_from_options(options),
        .options = options,
        .n_ctx = (uint32_t)options_int(options, "ctx"),
        .n_slot = (uint32_t)options_int(options, "parallel"),
        .kv_type = options_string(options, "kv-type"),
        .prefill_chunk = (uint32_t)options_int(options, "prefill-chunk"),
        .prompt_lookup = engine_drafting(options_string(options, "prompt-lookup")),
        .mtp = engine_drafting(options_string(options, "mtp")),
        .n_draft = (uint32_t)options_int(options, "draft-max"),
        .trace_path = options_string(options, "trace"),
        .n_snapshot = ENGINE_N_SNAPSHOT,
    };
    if (config->trace_path) /* which is of the tokens that there are, once each */
        config->prompt_lookup = config->mtp = DRAFTING_OFF;
    return LM_OK;
}

/* ---- opening ------------------------------------------------------------------------------ */

static uint32_t draft_max(const struct engine_config *config)
{
    return config->prompt_lookup || config->mtp ? config->n_draft : 0;
}

enum lm_status engine_memory_request(struct memory_request *out, const struct engine_config *config,
                                     struct lm_error *err)
{
    const int kv_type = tensor_type_from_name(config->kv_type);
    if (kv_type < 0)
        return lm_fail(err, LM_E_USAGE, "unknown type of KV cache '%s'", config->kv_type);
    const uint32_t n_slot = config->n_slot ? config->n_slot : 1;
    *out = (struct memory_request){.n_ctx = config->n_ctx,
                                   .n_slot = n_slot,
                                   .n_snapshot = config->n_snapshot,
                                   .n_draft = draft_max(config),
                                   .prefill_chunk = config->prefill_chunk,
                                   .kv_type = (enum tensor_type)kv_type,
                                   .budget_bytes = config->own.ram_bytes};
    return LM_OK;
}

static enum lm_status open_model(struct engine *engine, const struct engine_config *config,
                                 struct lm_error *err)
{
    struct model_part *part = &engine->part;
    const char *const path = config->model_path;
    enum lm_status status = model_part_open(part, path, err);
    if (status == LM_OK) status = tokenizer_create(&engine->tokenizer, part->file, err);
    if (status == LM_OK)
        status = model_part_find_experts(part, 0, part->hp.n_layer, config->mtp, err);
    if (status != LM_OK) return status;
    if (tokenizer_n_vocab(engine->tokenizer) > part->hp.n_vocab)
        return lm_fail(err, LM_E_FORMAT, "%s: vocabulary of %u tokens, embeddings for %u", path,
                       tokenizer_n_vocab(engine->tokenizer), part->hp.n_vocab);
    return LM_OK;
}

/* What a server takes where nothing was said. n_slot 0 is a server's to choose. */
static void settle_serving(struct memory_request *request, struct engine *engine,
                           const struct engine_config *config)
{
    request->n_slot = config->n_slot;
    engine->cache_bytes =
        serve_plan_settle(request, config->cache_bytes, engine->part.file, &engine->part.hp);
}

/* What the ranks have together, on their devices too. */
static uint64_t total_bytes(const struct cluster *cluster)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < cluster_n_rank(cluster); i++)
        n_bytes +=
            cluster_rank(cluster, i)->settings.ram_bytes + cluster_rank(cluster, i)->vram_bytes;
    return n_bytes;
}

/* What decides about sizes of a server: the device if there are layers on it, else the host. */
static void settle_server(struct engine *engine, const struct engine_config *config,
                          struct memory_request *request, uint32_t split,
                          const struct device_limits *limits)
{
    struct memory_request deciding = *request;
    if (split < request->layer_end) deciding = device_plan_request(request, split, limits);
    settle_serving(&deciding, engine, config);
    request->n_ctx = deciding.n_ctx;
    request->n_slot = deciding.n_slot;
    request->n_snapshot = deciding.n_snapshot;
    request->n_cache_position = deciding.n_cache_position;
    request->logprob_bytes = deciding.logprob_bytes;
}

/* What the whole model takes, with the layer that drafts or without; of one rank its device has
 * some of it. */
static enum lm_status plan_whole(struct engine *engine, const struct engine_config *config,
                                 struct memory_request *request, struct device_plan *both,
                                 struct lm_error *err)
{
    const struct model_part *part = &engine->part;
    const struct device_limits limits = model_part_device_limits(part, &config->own);
    uint32_t n_expert_slot;
    enum lm_status status = engine_memory_request(request, config, err);
    if (status != LM_OK) return status;
    request->layer_end = part->hp.n_layer + part->mtp;
    if (engine->cluster) request->budget_bytes = total_bytes(engine->cluster);
    status = model_part_request_slots(part, request, config->own.expert_slots, &n_expert_slot, err);
    if (status != LM_OK) return status;
    uint32_t split = request->layer_end;
    if (!engine->cluster && part->device.backend)
        split = device_plan_split(part->file, &part->hp, request, &limits);
    if (config->serving) settle_server(engine, config, request, split, &limits);
    device_plan_make(both, part->file, &part->hp, request, split, &limits);
    return split == request->layer_end ? memory_plan_check(&both->host, err) : LM_OK;
}

/* Settles the sizes by what the whole model takes; of one rank also by its device. request: of the
 * whole. plan: of the host. */
static enum lm_status settle_sizes(struct engine *engine, const struct engine_config *config,
                                   struct memory_request *request, struct memory_plan *plan,
                                   struct lm_error *err)
{
    struct model_part *part = &engine->part;
    struct run_sizes *sizes = &engine->sizes;
    struct device_plan both;
    char cache[24];
    part->mtp = model_part_may_draft(part, part->hp.n_layer, config->mtp);
    enum lm_status status = plan_whole(engine, config, request, &both, err);
    if (part->mtp && config->mtp == DRAFTING_AUTO &&
        (status == LM_E_NO_MEM || !model_part_is_roomy(part, config->n_ctx, &both))) {
        part->mtp = false;
        status = plan_whole(engine, config, request, &both, err);
    }
    if (status != LM_OK && status != LM_E_NO_MEM) return status;
    *plan = both.host;
    if (config->serving)
        log_info("prefix cache: %s, up to %u states", log_format_bytes(engine->cache_bytes, cache),
                 request->n_snapshot);
    engine->state_bytes = memory_plan_state_bytes(request, &part->hp);
    *sizes =
        (struct run_sizes){.n_ctx = plan->n_ctx < ENGINE_N_CTX_MAX ? plan->n_ctx : ENGINE_N_CTX_MAX,
                           .n_slot = request->n_slot,
                           .n_snapshot = request->n_snapshot,
                           .prefill_chunk = plan->prefill_chunk,
                           .mtp = part->mtp ? config->mtp : DRAFTING_OFF,
                           .n_cache_position = request->n_cache_position,
                           .kv_type = request->kv_type,
                           .n_edge_buffer = config->cluster.edge_depth};
    sizes->n_draft = draft_max(config);
    if (sizes->prefill_chunk > sizes->n_ctx) sizes->prefill_chunk = sizes->n_ctx;
    if (status == LM_OK && config->mtp == DRAFTING_ON && !sizes->mtp)
        return lm_fail(err, LM_E_UNSUPPORTED,
                       "%s: no layer for multi-token prediction, which --mtp on asks for",
                       config->model_path);
    return status;
}

/* ---- several ranks ------------------------------------------------------------------------ */

static struct rank_settings own_settings(const struct engine_config *config)
{
    struct rank_settings own = config->own;
    if (config->reference) own.kernels = "reference";
    return own;
}

/* What a rank runs by; all there is of one that is alone. */
static struct part_config part_config(const struct engine *engine,
                                      const struct engine_config *config, uint32_t i)
{
    struct part_config part = {.layer_end = engine->part.hp.n_layer,
                               .settings = own_settings(config),
                               .pin = config->own.n_thread == 0,
                               .local = {0, 1},
                               .trace_path = config->trace_path};
    if (engine->cluster) {
        const struct cluster_rank *rank = cluster_rank(engine->cluster, i);
        part.layer_begin = rank->layer_begin;
        part.layer_end = rank->layer_end;
        part.settings = rank->settings;
        part.pin = rank->pin;
        part.settings.vram_bytes = rank->vram_bytes;
        part.local = (struct local_rank){rank->local_rank, rank->n_local};
        part.name = rank->name;
        part.trace_kept = config->trace_path;
        part.trace_path = NULL;
        if (i == 0) part.out = cluster_edge(engine->cluster);
        if (i == 0) part.progress = cluster_world(engine->cluster)->progress;
    }
    return part;
}

/* Tells the others the model, and settles how each of them runs. */
static enum lm_status share_model(struct engine *engine, const struct engine_config *config,
                                  struct lm_error *err)
{
    const struct rank_settings own = own_settings(config);
    const enum lm_status status = cluster_settle(engine->cluster, &own, config->options, err);
    if (status != LM_OK) return status;
    return cluster_share_model(engine->cluster, &engine->part, config->model_path, err);
}

static enum lm_status plan_rank(const struct engine *engine, const struct engine_config *config,
                                uint32_t i, struct device_plan *plans, struct lm_error *err)
{
    const struct model_part *const whole = &engine->part;
    struct part_config part = part_config(engine, config, i);
    struct device_limits limits = model_part_device_limits(whole, &part.settings);
    struct memory_request request;
    part.layer_end += whole->mtp && part.layer_end == whole->hp.n_layer;
    uint32_t n_expert_slot, split = part.layer_end;
    const enum lm_status status =
        model_part_request(whole, &part, &engine->sizes, &request, &n_expert_slot, err);
    if (status != LM_OK) return status;
    limits.budget_bytes = cluster_rank(engine->cluster, i)->vram_bytes;
    if (limits.budget_bytes) split = device_plan_split(whole->file, &whole->hp, &request, &limits);
    device_plan_make(plans, whole->file, &whole->hp, &request, split, &limits);
    return LM_OK;
}

/* A context that nobody asked for is no longer than fits beside the layers of every rank. */
static enum lm_status limit_context(struct engine *engine, const struct engine_config *config,
                                    struct lm_error *err)
{
    struct run_sizes *sizes = &engine->sizes;
    for (uint32_t i = 0; i < cluster_n_rank(engine->cluster); i++) {
        struct device_plan plans;
        const enum lm_status status = plan_rank(engine, config, i, &plans, err);
        if (status != LM_OK) return status;
        const struct memory_plan *const both[] = {&plans.host, &plans.device};
        for (size_t k = 0; k < sizeof(both) / sizeof(both[0]); k++)
            if (both[k]->total_bytes > both[k]->budget_bytes && both[k]->n_ctx_fit < sizes->n_ctx &&
                both[k]->n_ctx_fit > 0 && !config->n_ctx)
                sizes->n_ctx = both[k]->n_ctx_fit;
    }
    if (sizes->prefill_chunk > sizes->n_ctx) sizes->prefill_chunk = sizes->n_ctx;
    return LM_OK;
}

/* Gives the ranks their layers, so that they load while this one does. plan: of this one. */
static enum lm_status set_up_ranks(struct engine *engine, const struct engine_config *config,
                                   const struct memory_request *request, struct memory_plan *plan,
                                   struct lm_error *err)
{
    struct memory_request settled = *request;
    const struct device_limits limits = model_part_device_limits(&engine->part, &config->own);
    struct device_plan plans;
    settled.n_ctx = engine->sizes.n_ctx;
    settled.prefill_chunk = engine->sizes.prefill_chunk;
    settled.n_edge_buffer = engine->sizes.n_edge_buffer;
    enum lm_status status =
        cluster_cut(engine->cluster, engine->part.file, &engine->part.hp, &settled,
                    limits.slot_bytes_min(limits.context, 0, engine->part.hp.n_layer), err);
    if (status == LM_OK) status = limit_context(engine, config, err);
    if (status == LM_OK) status = plan_rank(engine, config, 0, &plans, err);
    if (status != LM_OK) return status;
    *plan = plans.host;
    return cluster_send_setup(engine->cluster, &engine->sizes, config->trace_path, err);
}

static void on_trace(void *context, const uint8_t *records, size_t n_bytes)
{
    route_trace_append(context, records, n_bytes);
}

static enum lm_status create_runner(struct engine *engine, const struct engine_config *asked,
                                    struct lm_error *err)
{
    if (!engine->cluster) {
        engine->runner = worker_runner(engine->part.worker);
        return LM_OK;
    }
    const struct pipeline_config config = {.world = cluster_world(engine->cluster),
                                           .worker = engine->part.worker,
                                           .slack = asked->cluster.slack,
                                           .on_lost = asked->on_lost,
                                           .lost_context = asked->lost_context,
                                           .on_trace = engine->trace ? on_trace : NULL,
                                           .trace_context = engine->trace,
                                           .with_map = asked->experts_map,
                                           .on_stats = asked->on_experts,
                                           .stats_context = asked->experts_context};
    enum lm_status status = cluster_wait_ready(engine->cluster, err);
    if (status == LM_OK) status = cluster_link(engine->cluster, &engine->part, err);
    if (status == LM_OK) status = pipeline_create(&engine->pipeline, &config, err);
    if (status == LM_OK) engine->runner = pipeline_runner(engine->pipeline);
    return status;
}

/* ---- opening ------------------------------------------------------------------------------ */

static enum lm_status create_scheduler(struct engine *engine, uint32_t checkpoint_every,
                                       struct lm_error *err)
{
    const struct run_sizes *sizes = &engine->sizes;
    const struct scheduler_config config = {.runner = &engine->runner,
                                            .n_slot = sizes->n_slot,
                                            .n_parked = sizes->n_snapshot,
                                            .n_ctx = sizes->n_ctx,
                                            .prefill_chunk = sizes->prefill_chunk,
                                            .prompt_lookup = engine->prompt_lookup,
                                            .mtp = sizes->mtp,
                                            .n_draft = sizes->n_draft,
                                            .chunk_min = engine->part.n_expert_slot ? 0 : CHUNK_MIN,
                                            .checkpoint_every = checkpoint_every,
                                            .state_bytes = engine->state_bytes,
                                            .can_cut = hparams_can_cut_state(&engine->part.hp),
                                            .logprob_bytes_max =
                                                engine->cache_bytes / SERVE_PLAN_LOGPROB_SHARE};
    return scheduler_create(&engine->scheduler, &config, err);
}

/* *out: as asked, and where nothing was said as was measured to be faster. */
static void tune(struct engine *engine, const struct engine_config *asked,
                 struct engine_config *out)
{
    *out = *asked;
    engine->tuned = engine->cluster ? NULL : tuned_find(engine->part.file);
    if (!engine->tuned) return;
    tuned_apply(engine->tuned, out, engine->tuned_text, sizeof(engine->tuned_text));
    if (*engine->tuned_text) log_verbose("tuned: %s", engine->tuned_text);
}

static enum lm_status open_parts(struct engine *engine, const struct engine_config *asked,
                                 struct lm_error *err)
{
    struct memory_request request;
    struct memory_plan plan;
    struct engine_config tuned = *asked;
    const struct engine_config *const config = &tuned;
    engine->on_experts = config->on_experts;
    engine->prompt_lookup = config->prompt_lookup;
    engine->experts_context = config->experts_context;
    enum lm_status status = cluster_open(&engine->cluster, &config->cluster, err);
    if (status == LM_OK) status = open_model(engine, config, err);
    if (status == LM_OK) tune(engine, asked, &tuned);
    if (status == LM_OK && engine->cluster) {
        status = share_model(engine, config, err);
    } else if (status == LM_OK) {
        const struct part_config own = part_config(engine, config, 0);
        status = model_part_open_device(&engine->part, &own, err);
    }
    if (status == LM_OK) status = settle_sizes(engine, config, &request, &plan, err);
    if (status == LM_OK && engine->cluster)
        status = set_up_ranks(engine, config, &request, &plan, err);
    if (status != LM_OK) return status;
    struct part_config part = part_config(engine, config, 0);
    if (!engine->cluster) part.settings.ram_bytes = plan.budget_bytes; /* as it was measured */
    engine->ram_bytes = part.settings.ram_bytes;
    if (engine->cluster && config->trace_path)
        status = route_trace_create(&engine->trace, config->trace_path, &engine->part.hp, 1, err);
    if (status != LM_OK) return status;
    if (config->on_plan) config->on_plan(config->plan_context, &plan);
    struct binding *const binding = binding_begin(part.local); /* of the threads that now start */
    status = model_part_load(&engine->part, &part, &engine->sizes, err);
    engine->keeps_profile = status == LM_OK && !config->own.profile;
    if (status == LM_OK) status = create_runner(engine, config, err);
    binding_end(binding);
    if (status == LM_OK) status = create_scheduler(engine, config->checkpoint_every, err);
    return status;
}

enum lm_status engine_open(struct engine **out, const struct engine_config *config,
                           struct lm_error *err)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    if (!engine) return lm_fail(err, LM_E_NO_MEM, "engine: no memory");
    const enum lm_status status = open_parts(engine, config, err);
    if (status != LM_OK) {
        engine_close(engine, NULL);
        return status;
    }
    *out = engine;
    return LM_OK;
}

/* What this run has seen of all layers. */
static void save_profile(const struct engine *engine)
{
    const struct model_part *part = &engine->part;
    const struct hparams *hp = &part->hp;
    double n_token = 0;
    const size_t n_layer = hp->n_layer + hp->n_layer_mtp;
    double *const uses = calloc(n_layer * hp->n_expert + 1, sizeof(*uses));
    if (!uses) return;
    if (!engine->pipeline)
        n_token = routing_profile_uses(worker_pager(part->worker), hp, uses);
    else if (pipeline_read_uses(engine->pipeline, &n_token, uses, NULL) != LM_OK)
        n_token = 0;
    if (n_token > 0) routing_profile_save(part->file, hp, n_token, uses);
    free(uses);
}

/* Whether some rank has not all experts where they are computed. */
static bool is_paged(const struct engine *engine)
{
    bool paged = engine->part.n_expert_slot > 0 || engine->part.n_device_slot > 0;
    for (uint32_t i = 1; i < engine_n_rank(engine); i++) {
        const struct cluster_rank *rank = cluster_rank(engine->cluster, i);
        paged |= rank->n_expert_slot > 0 || rank->n_device_slot > 0;
    }
    return paged;
}

enum lm_status engine_close(struct engine *engine, struct lm_error *err)
{
    if (!engine) return LM_OK;
    scheduler_destroy(engine->scheduler);
    if (engine->keeps_profile && is_paged(engine)) save_profile(engine);
    if (engine->pipeline) cluster_drained(engine->cluster);
    pipeline_close(engine->pipeline);
    enum lm_status status = model_part_close(&engine->part, err);
    const enum lm_status traced = route_trace_close(engine->trace, status == LM_OK ? err : NULL);
    if (status == LM_OK) status = traced;
    cluster_close(engine->cluster);
    tokenizer_destroy(engine->tokenizer);
    tuned_destroy(engine->tuned);
    free(engine);
    return status;
}

const struct gguf_file *engine_file(const struct engine *engine)
{
    return engine->part.file;
}

const struct hparams *engine_hparams(const struct engine *engine)
{
    return &engine->part.hp;
}

const struct tokenizer *engine_tokenizer(const struct engine *engine)
{
    return engine->tokenizer;
}

uint32_t engine_n_ctx(const struct engine *engine)
{
    return engine->sizes.n_ctx;
}

struct expert_pager *engine_pager(const struct engine *engine)
{
    return worker_pager(engine->part.worker);
}

struct scheduler *engine_scheduler(const struct engine *engine)
{
    return engine->scheduler;
}

uint32_t engine_n_slot(const struct engine *engine)
{
    return engine->sizes.n_slot;
}

uint32_t engine_n_rank(const struct engine *engine)
{
    return engine->cluster ? cluster_n_rank(engine->cluster) : 1;
}

bool engine_is_fast(const struct engine *engine)
{
    bool fast = false;
    for (uint32_t i = 0; i < engine_n_rank(engine); i++)
        fast |= !strcmp(engine_rank(engine, i).numerics, "fast");
    return fast;
}

struct engine_rank engine_rank(const struct engine *engine, uint32_t rank)
{
    struct engine_rank own = {.pid = getpid(),
                              .layer_end = engine->part.hp.n_layer,
                              .ram_bytes = engine->ram_bytes,
                              .weight_bytes = engine->part.weight_bytes,
                              .kv_bytes = engine->part.kv_bytes,
                              .scratch_bytes = engine->part.scratch_bytes,
                              .n_thread = backend_cpu_n_thread(engine->part.backend),
                              .n_expert_slot = engine->part.n_expert_slot,
                              .kernels = backend_cpu_kernels(engine->part.backend),
                              .device = model_part_device(&engine->part),
                              .numerics = engine->part.device.fast ? "fast" : "exact",
                              .device_begin = engine->part.device_begin,
                              .n_device_slot = engine->part.n_device_slot};
    if (!engine->cluster) return own;
    const struct cluster_rank *of = cluster_rank(engine->cluster, rank);
    own.host = of->inventory.host;
    own.layer_end = of->layer_end;
    if (rank == 0) return own;
    return (struct engine_rank){.pid = of->pid,
                                .host = of->inventory.host,
                                .layer_begin = of->layer_begin,
                                .layer_end = of->layer_end,
                                .ram_bytes = of->settings.ram_bytes,
                                .weight_bytes = of->weight_bytes,
                                .kv_bytes = of->kv_bytes,
                                .scratch_bytes = of->scratch_bytes,
                                .n_thread = of->n_thread,
                                .n_expert_slot = of->n_expert_slot,
                                .kernels = of->kernels,
                                .device = of->device,
                                .numerics = of->fast ? "fast" : "exact",
                                .device_begin = of->device_begin,
                                .n_device_slot = of->n_device_slot,
                                .transport = of->nccl ? "nccl" : "mpi"};
}

struct engine_stats engine_stats(const struct engine *engine)
{
    struct backend *const device = engine->part.device.backend;
    return (struct engine_stats){
        .device = device ? backend_cuda_counters(device) : NULL,
        .paged = is_paged(engine),
        .n_thread = backend_cpu_n_thread(engine->part.backend),
        .prefill_chunk = engine->sizes.prefill_chunk,
        .kernels = backend_cpu_kernels(engine->part.backend),
        .n_layer = engine->part.hp.n_layer,
        .pager = expert_pager_stats(engine_pager(engine)),
        .tuned = *engine->tuned_text ? engine->tuned_text : NULL,
        .n_ahead = engine->runner.depth,
        .transport = engine->cluster ? cluster_transport(engine->cluster) : NULL,
        .n_draft_accepted = scheduler_stats(engine->scheduler).n_draft_accepted,
        .n_seq_max = scheduler_stats(engine->scheduler).n_seq_max};
}

enum lm_status engine_experts(const struct engine *engine, struct pager_snapshot *out,
                              struct lm_error *err)
{
    if (!engine->pipeline) {
        pager_snapshot_take(out, worker_pager(engine->part.worker),
                            worker_tier(engine->part.worker));
        return LM_OK;
    }
    const enum lm_status status = pipeline_ask_stats(engine->pipeline, true, err);
    if (status == LM_OK) pipeline_read_stats(engine->pipeline, out);
    return status;
}

void engine_ask_experts(struct engine *engine)
{
    const double now_s = log_now_s();
    if (!engine->pipeline && engine->on_experts) engine->on_experts(engine->experts_context);
    if (!engine->pipeline || (!is_paged(engine) && now_s - engine->asked_s < ASK_MAPPED_S)) return;
    engine->asked_s = now_s;
    pipeline_ask_stats(engine->pipeline, false, NULL); /* who is lost has told */
}

void engine_rank_told(const struct engine *engine, uint32_t rank, struct pager_snapshot *out,
                      struct edges_stats *edges)
{
    *edges = (struct edges_stats){.sent_bytes = 0};
    if (engine->pipeline)
        pipeline_read_rank(engine->pipeline, rank, out, edges);
    else
        pager_snapshot_take(out, worker_pager(engine->part.worker),
                            worker_tier(engine->part.worker));
}

void engine_draw_told(const struct engine *engine,
                      void (*draw)(void *context, uint32_t layer, const uint8_t *resident,
                                   const float *heat, uint64_t n_hit, uint64_t n_lookup),
                      void *context)
{
    if (engine->pipeline) pipeline_read_map(engine->pipeline, draw, context);
}

void engine_experts_told(const struct engine *engine, struct pager_snapshot *out)
{
    if (engine->pipeline)
        pipeline_read_stats(engine->pipeline, out);
    else
        pager_snapshot_take(out, worker_pager(engine->part.worker),
                            worker_tier(engine->part.worker));
}

/* ---- generating --------------------------------------------------------------------------- */

/* A request on its way, between the caller's form and the scheduler's. */
struct job {
    struct request request;
    const struct generate_request *asked;
    const struct tokenizer *tokenizer;
    size_t turn; /* where the last one of the prompt begins */
    double first_token_s;
};

static bool on_token(void *context, const struct sampled_token *token)
{
    struct job *job = context;
    if (job->request.n_generated == 1) job->first_token_s = log_now_s();
    const bool end = !job->asked->ignore_end && tokenizer_is_end(job->tokenizer, token->id);
    const bool go_on = job->asked->on_token(job->asked->context, token);
    return go_on && !end;
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    const struct job *job = context;
    job->asked->on_prefill(job->asked->context, n_done, n_total);
}

static void on_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    const struct job *job = context;
    job->asked->on_logits(job->asked->context, pos, logits, n_vocab);
}

/* Where the last turn of a prompt begins: at its last control token, such as <|im_start|>. A next
 * turn shares the prompt up to there even if a template drops the reasoning behind it. */
static size_t find_turn(const struct tokenizer *tokenizer, const struct generate_request *asked)
{
    size_t i = asked->n_prompt - 1;
    while (i > 0 && tokenizer_token_kind(tokenizer, asked->prompt[i]) != TOKEN_CONTROL)
        i--;
    return i;
}

static enum lm_status submit(struct engine *engine, struct job *job,
                             const struct generate_request *asked, struct lm_error *err)
{
    for (size_t i = 0; i < asked->n_prompt; i++)
        if (asked->prompt[i] < 0 || (uint32_t)asked->prompt[i] >= engine->part.hp.n_vocab)
            return lm_fail(err, LM_E_USAGE, "token %zu is %d, the vocabulary has %u", i,
                           asked->prompt[i], engine->part.hp.n_vocab);
    if (!asked->n_prompt) return lm_fail(err, LM_E_USAGE, "the prompt has no tokens");
    job->asked = asked;
    job->tokenizer = engine->tokenizer;
    struct request *request = &job->request;
    request->prompt = asked->prompt;
    request->n_prompt = asked->n_prompt;
    request->n_max = asked->n_max || asked->on_logits ? asked->n_max : UINT32_MAX;
    request->sampling = asked->sampling;
    job->turn = find_turn(engine->tokenizer, asked);
    request->turns = &job->turn;
    request->n_turn = 1;
    request->on_logits = asked->on_logits ? on_logits : NULL;
    request->on_token = on_token;
    request->on_prefill = asked->on_prefill ? on_prefill : NULL;
    request->context = job;
    atomic_init(&request->cancelled, false);
    return scheduler_submit(engine->scheduler, request, err);
}

static struct generate_result result_of(const struct job *job)
{
    const struct request *request = &job->request;
    const bool cancelled = atomic_load(&request->cancelled) && !request->stopped;
    const double read_s = request->prefill_end_s ? request->prefill_end_s : request->end_s;
    return (struct generate_result){
        .finish = request->stopped ? FINISH_STOP
                  : cancelled      ? FINISH_CANCELLED
                                   : FINISH_LENGTH,
        .n_prompt = request->n_prompt,
        .n_cached = request->n_cached,
        .n_generated = request->n_generated,
        .n_draft = request->n_draft,
        .n_draft_accepted = request->n_draft_accepted,
        .experts = request->experts,
        .prefill_s = read_s - request->submit_s,
        .decode_s = request->end_s - read_s,
        .first_token_s = job->first_token_s ? job->first_token_s - request->submit_s : 0,
    };
}

enum lm_status engine_generate_many(struct engine *engine, const struct generate_request *requests,
                                    struct generate_result *results, size_t n, struct lm_error *err)
{
    struct job *jobs = calloc(n, sizeof(*jobs));
    size_t n_submitted = 0;
    enum lm_status status = LM_OK;
    if (!jobs) return lm_fail(err, LM_E_NO_MEM, "engine: no memory for %zu requests", n);
    atomic_store(&engine->cancelled, false);
    while (n_submitted < n && status == LM_OK) {
        status = submit(engine, &jobs[n_submitted], &requests[n_submitted], err);
        if (status == LM_OK) n_submitted++;
    }
    /* what was submitted runs to its end, or to nothing if one could not be */
    bool cancel = status != LM_OK;
    do {
        cancel |= atomic_load(&engine->cancelled);
        for (size_t i = 0; cancel && i < n_submitted; i++)
            atomic_store(&jobs[i].request.cancelled, true);
    } while (scheduler_step(engine->scheduler));
    for (size_t i = 0; i < n_submitted; i++) {
        results[i] = result_of(&jobs[i]);
        if (status != LM_OK || jobs[i].request.status == LM_OK) continue;
        status = jobs[i].request.status;
        if (err) *err = jobs[i].request.error;
    }
    free(jobs);
    return status;
}

enum lm_status engine_generate(struct engine *engine, const struct generate_request *request,
                               struct generate_result *result, struct lm_error *err)
{
    return engine_generate_many(engine, request, result, 1, err);
}

void engine_cancel(struct engine *engine)
{
    atomic_store(&engine->cancelled, true);
}
