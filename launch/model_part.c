/* From a file to a worker. */
#include "launch/model_part.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/device_plan.h"
#include "launch/pager_report.h"
#include "launch/routing_profile.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/policy.h"

enum lm_status model_part_open(struct model_part *part, const char *path, struct lm_error *err)
{
    const enum lm_status status = gguf_open(&part->file, path, err);
    return status == LM_OK ? hparams_read(&part->hp, part->file, err) : status;
}

bool model_part_may_draft(const struct model_part *part, uint32_t layer_end, enum drafting mtp)
{
    return mtp != DRAFTING_OFF && part->hp.n_layer_mtp > 0 && layer_end == part->hp.n_layer;
}

enum lm_status model_part_find_experts(struct model_part *part, uint32_t layer_begin,
                                       uint32_t layer_end, enum drafting mtp, struct lm_error *err)
{
    layer_end += model_part_may_draft(part, layer_end, mtp);
    return expert_store_create(&part->store, part->file, &part->hp, layer_begin, layer_end, err);
}

/* ---- memory ------------------------------------------------------------------------------- */

/* "N", "P%" or "min" of n_expert experts. */
static enum lm_status parse_expert_slots(uint32_t *out, const char *text, uint32_t n_expert,
                                         struct lm_error *err)
{
    char *end;
    if (!strcmp(text, "min")) {
        *out = 1; /* the pager raises it to the least that works */
        return LM_OK;
    }
    const double value = strtod(text, &end);
    const bool percent = *end == '%';
    if (end == text || end[percent] || !(value > 0) || (percent && value > 100) ||
        (!percent && (value > UINT32_MAX || value != (uint32_t)value)))
        return lm_fail(
            err, LM_E_USAGE,
            "--expert-slots: '%s' is not a number of experts, a share such as 50%%, or min", text);
    const double n_slot = percent ? ceil(value / 100 * n_expert) : value;
    *out = n_slot < n_expert ? (uint32_t)n_slot : n_expert;
    return LM_OK;
}

enum lm_status model_part_request_slots(const struct model_part *part,
                                        struct memory_request *request, const char *expert_slots,
                                        uint32_t *n_slot, struct lm_error *err)
{
    const struct hparams *hp = &part->hp;
    const uint32_t begin = request->layer_begin;
    const uint32_t end = request->layer_end ? request->layer_end : hp->n_layer;
    const uint32_t n_total = hparams_n_expert_of(hp, begin, end);
    *n_slot = 0;
    if (!n_total) return LM_OK;
    request->slot_bytes_min = expert_pager_slot_bytes(part->store, begin, end, hp->n_expert, 1);
    if (!expert_slots) return LM_OK;
    const enum lm_status status = parse_expert_slots(n_slot, expert_slots, n_total, err);
    request->slot_bytes = expert_pager_slot_bytes(part->store, begin, end, hp->n_expert, *n_slot);
    return status;
}

static uint64_t room_bytes(const struct model_part *part, uint32_t begin, uint32_t end)
{
    return device_tier_room_bytes(part->store, begin, end, part->hp.n_expert,
                                  part->hp.n_expert_used);
}

static uint64_t device_slot_bytes_min(const void *context, uint32_t begin, uint32_t end)
{
    const struct model_part *const part = context;
    if (!hparams_n_expert_of(&part->hp, begin, end)) return 0;
    return device_tier_slot_bytes(part->store, begin, end, part->hp.n_expert, 1) +
           room_bytes(part, begin, end);
}

struct device_limits model_part_device_limits(const struct model_part *part,
                                              const struct rank_settings *settings)
{
    return (struct device_limits){.n_layer = settings->gpu_layers,
                                  .fast = rank_settings_fast(settings),
                                  .budget_bytes = part->device.budget_bytes,
                                  .slot_bytes_min = device_slot_bytes_min,
                                  .context = part};
}

/* Experts that fit, of layers begin .. end. */
static uint32_t device_slots(const struct model_part *part, uint64_t n_bytes, uint32_t begin,
                             uint32_t end)
{
    const uint64_t room = room_bytes(part, begin, end);
    return device_tier_slots_for(part->store, begin, end, part->hp.n_expert,
                                 n_bytes > room ? n_bytes - room : 0);
}

/* The same on the host. A device copies from slots alone: there are some for all of them then, if
 * alignment leaves so much. */
static uint32_t host_slots(const struct model_part *part, const struct memory_plan *plan,
                           uint32_t begin, uint32_t end)
{
    const uint64_t left =
        plan->budget_bytes > plan->total_bytes ? plan->budget_bytes - plan->total_bytes : 0;
    return expert_pager_slots_for(part->store, begin, end, part->hp.n_expert,
                                  plan->slot_bytes + left);
}

static bool has_room(const struct memory_plan *plan)
{
    return !plan->paged && plan->total_bytes <= plan->budget_bytes;
}

bool model_part_is_roomy(const struct model_part *part, uint32_t n_ctx,
                         const struct device_plan *plans)
{
    const uint32_t n_train = part->hp.n_ctx_train;
    const uint32_t usual = n_train < MEMORY_PLAN_CTX ? n_train : MEMORY_PLAN_CTX;
    return has_room(&plans->host) && has_room(&plans->device) &&
           (n_ctx || plans->host.n_ctx >= usual);
}

/* The layers are settled. */
static enum lm_status place(struct model_part *part, const struct rank_settings *settings,
                            struct memory_request *request, struct device_plan *out,
                            struct lm_error *err)
{
    const struct device_limits limits = model_part_device_limits(part, settings);
    const struct hparams *const hp = &part->hp;
    const uint32_t begin = request->layer_begin, end = request->layer_end;
    uint32_t n_slot, split = end;
    enum lm_status status =
        model_part_request_slots(part, request, settings->expert_slots, &n_slot, err);
    if (status != LM_OK) return status;
    if (part->device.budget_bytes) split = device_plan_split(part->file, hp, request, &limits);
    device_plan_make(out, part->file, hp, request, split, &limits);
    const bool all_there = split < end && !out->device.paged; /* none of them on the host */
    if (all_there) {
        struct memory_request own = *request;
        own.layer_end = split;
        n_slot = 0;
        if (begin < split)
            status = model_part_request_slots(part, &own, settings->expert_slots, &n_slot, err);
        request->slot_bytes_min = own.slot_bytes_min;
        request->slot_bytes = own.slot_bytes;
        device_plan_make(out, part->file, hp, request, split, &limits);
    }
    part->device_begin = split < hp->n_layer ? split : hp->n_layer;
    part->n_expert_slot = part->n_device_slot = 0;
    if (out->device.paged)
        part->n_device_slot = device_slots(part, out->device.slot_bytes, split, end);
    if (out->host.paged || out->device.paged)
        part->n_expert_slot =
            n_slot ? n_slot : host_slots(part, &out->host, begin, all_there ? split : end);
    return status;
}

enum lm_status model_part_place(struct model_part *part, const struct rank_settings *settings,
                                enum drafting mtp, struct memory_request *request,
                                struct device_plan *out, struct lm_error *err)
{
    const struct memory_request decoder = *request;
    part->mtp = model_part_may_draft(part, request->layer_end, mtp);
    request->layer_end += part->mtp;
    const enum lm_status status = place(part, settings, request, out, err);
    if (status != LM_OK || !part->mtp || mtp == DRAFTING_ON ||
        model_part_is_roomy(part, decoder.n_ctx, out))
        return status;
    *request = decoder;
    part->mtp = false;
    return place(part, settings, request, out, err);
}

uint32_t model_part_device_experts(const struct model_part *part, uint32_t layer_end,
                                   uint64_t kv_lent_bytes)
{
    return device_tier_slot_count(part->store, part->device_begin, layer_end, part->hp.n_expert,
                                  part->n_device_slot, kv_lent_bytes);
}

enum lm_status model_part_request(const struct model_part *part, const struct part_config *config,
                                  const struct run_sizes *sizes, struct memory_request *request,
                                  uint32_t *n_slot, struct lm_error *err)
{
    *request = (struct memory_request){.layer_begin = config->layer_begin,
                                       .layer_end = config->layer_end,
                                       .n_ctx = sizes->n_ctx,
                                       .n_slot = sizes->n_slot,
                                       .n_snapshot = sizes->n_snapshot,
                                       .n_draft = sizes->n_draft,
                                       .n_cache_position = sizes->n_cache_position,
                                       .prefill_chunk = sizes->prefill_chunk,
                                       .kv_type = sizes->kv_type,
                                       .n_edge_buffer = sizes->n_edge_buffer,
                                       .budget_bytes = config->settings.ram_bytes};
    return model_part_request_slots(part, request, config->settings.expert_slots, n_slot, err);
}

enum lm_status model_part_open_device(struct model_part *part, const struct part_config *config,
                                      struct lm_error *err)
{
    return device_open(&part->device, &config->settings, config->local, err);
}

const char *model_part_device(const struct model_part *part)
{
    return part->device.backend ? part->device.kind : "cpu";
}

static void report_device(const struct model_part *part, const struct device_plan *plans,
                          const struct rank_settings *settings, uint32_t begin, uint32_t end)
{
    const uint32_t split = part->device_begin, kept_end = end + part->mtp;
    const uint32_t n_expert = hparams_n_expert_of(&part->hp, split, kept_end);
    char total[24], budget[24], experts[PAGER_DEVICE_BYTES] = "";
    if (part->n_device_slot)
        pager_report_device(
            experts, &part->hp, n_expert, model_part_device_experts(part, kept_end, 0),
            model_part_device_experts(part, kept_end, plans->device.kv_lent_bytes), settings->miss);
    log_info("layers %u to %u on %s: %s of %s%s%s%s%s", split, end - 1, part->device.name,
             log_format_bytes(plans->device.total_bytes, total),
             log_format_bytes(plans->device.budget_bytes, budget),
             part->mtp ? " with the layer that drafts" : "", experts,
             split > begin ? ", the others on the CPU" : "",
             part->device.fast ? "; numerics fast" : "");
    if (part->device.fast)
        log_warning("numerics fast: the output depends on how prompts are cut into steps, and on "
                    "what runs beside them");
}

static enum lm_status check_device(const struct model_part *part, const struct part_config *config,
                                   const struct memory_request *request,
                                   const struct device_plan *plans, struct lm_error *err)
{
    const uint32_t begin = config->layer_begin, end = config->layer_end;
    struct device_limits fit = model_part_device_limits(part, &config->settings);
    fit.n_layer = DEVICE_LAYERS_AUTO;
    if (!part->device.backend) return LM_OK;
    const uint32_t split = device_plan_split(part->file, &part->hp, request, &fit);
    const uint32_t n_fit = split < end ? end - split : 0;
    const enum lm_status status =
        device_plan_check(&plans->device, part->device.name, end - part->device_begin, n_fit, err);
    if (status == LM_OK) report_device(part, plans, &config->settings, begin, end);
    return status;
}

static uint64_t state_bytes(const struct memory_plan *plan)
{
    return plan->kv_bytes + plan->recurrent_bytes;
}

static uint64_t scratch_bytes(const struct memory_plan *plan)
{
    return plan->scratch_bytes + plan->angle_bytes;
}

/* Without any layer a device is not needed. */
static void leave_device(struct model_part *part, const struct rank_settings *settings)
{
    if (settings->gpu_layers == DEVICE_LAYERS_AUTO)
        log_info("computes on the CPU: no layer fits into the memory of %s", part->device.name);
    device_close(&part->device);
}

static void report_experts(const struct model_part *part, const struct memory_plan *host,
                           uint32_t begin, uint32_t end)
{
    const uint32_t n_expert = part->hp.n_expert;
    pager_report_plan(
        host, &part->hp, hparams_n_expert_of(&part->hp, begin, end),
        expert_pager_slot_count(part->store, begin, end, n_expert, part->n_expert_slot));
}

/* out: of the host. */
static enum lm_status plan(struct model_part *part, const struct part_config *config,
                           const struct run_sizes *sizes, struct memory_plan *out,
                           struct lm_error *err)
{
    struct memory_request request;
    struct device_plan both;
    uint32_t n_slot;
    const uint32_t begin = config->layer_begin, end = config->layer_end;
    enum lm_status status = model_part_request(part, config, sizes, &request, &n_slot, err);
    if (status == LM_OK)
        status = model_part_place(part, &config->settings, sizes->mtp, &request, &both, err);
    if (status != LM_OK) return status;
    if (part->device.backend && part->device_begin == end) leave_device(part, &config->settings);
    if (rank_settings_fast(&config->settings) && !part->device.backend)
        log_info("numerics fast: there is no other way on the CPU than the exact one");
    *out = both.host;
    status = check_device(part, config, &request, &both, err);
    if (status == LM_OK) status = memory_plan_check(out, err);
    part->weight_bytes = out->weight_bytes + both.device.weight_bytes;
    part->kv_bytes = state_bytes(out) + state_bytes(&both.device);
    part->scratch_bytes = scratch_bytes(out) + scratch_bytes(&both.device);
    if (status == LM_OK && out->paged)
        report_experts(part, out, begin,
                       part->n_device_slot || !part->device.backend ? request.layer_end
                                                                    : part->device_begin);
    return status;
}

/* ---- loading ------------------------------------------------------------------------------ */

static struct pager_options pager_options(const struct rank_settings *config, uint32_t n_slot)
{
    const char *const io = config->io ? config->io : "auto";
    const char *const prefetch = config->prefetch ? config->prefetch : "auto";
    return (struct pager_options){
        .n_slot = n_slot,
        .policy = policy_find(config->policy ? config->policy : "lfru"),
        .prefetch = !strcmp(prefetch, "off")  ? PREFETCH_OFF
                    : !strcmp(prefetch, "on") ? PREFETCH_ON
                                              : PREFETCH_AUTO,
        .engine = !strcmp(io, "uring")   ? DISK_ENGINE_URING
                  : !strcmp(io, "pread") ? DISK_ENGINE_THREADS
                                         : DISK_ENGINE_AUTO,
        .access = !strcmp(io, "buffered") ? DISK_ACCESS_BUFFERED : DISK_ACCESS_AUTO,
    };
}

static enum miss_mode miss_mode(const char *name)
{
    static const char *const names[] = {
        [MISS_AUTO] = "auto", [MISS_GPU] = "gpu", [MISS_CPU] = "cpu", [MISS_HYBRID] = "hybrid"};
    enum miss_mode mode = MISS_HYBRID;
    while (mode != MISS_AUTO && strcmp(name ? name : "auto", names[mode]) != 0)
        mode--;
    return mode;
}

/* Experts on their way to the device. */
static void show_load(void *context, uint64_t n_done, uint64_t n_total)
{
    struct log_bar *const bar = context;
    if (!bar->total) log_bar_begin(bar, "loading experts", NULL, n_total);
    log_bar_update(bar, n_done);
}

static enum lm_status create_worker(struct model_part *part, const struct part_config *asked,
                                    const struct run_sizes *sizes, struct lm_error *err)
{
    struct log_bar bar = {.total = 0};
    const struct worker_config config = {
        .file = part->file,
        .hp = &part->hp,
        .store = part->store,
        .pager = pager_options(&asked->settings, part->n_expert_slot),
        .backend = part->backend,
        .device = part->device.backend,
        .device_begin = part->device_begin,
        .device_experts = {.n_slot = part->n_device_slot, .miss = miss_mode(asked->settings.miss)},
        .layer_begin = asked->layer_begin,
        .layer_end = asked->layer_end,
        .in = asked->in,
        .out = asked->out,
        .n_slot = sizes->n_slot + sizes->n_snapshot,
        .n_ctx = sizes->n_ctx,
        .n_position = (uint64_t)sizes->n_slot * sizes->n_ctx + sizes->n_cache_position,
        .n_position_ready = (uint64_t)sizes->n_slot * memory_plan_ready_ctx(sizes->n_ctx),
        .n_batch = sizes->prefill_chunk + sizes->n_slot,
        .n_draft = sizes->n_draft,
        .mtp = part->mtp,
        .kv_type = sizes->kv_type,
        .n_edge_buffer = sizes->n_edge_buffer,
        .trace_path = asked->trace_path,
        .trace_kept = asked->trace_kept,
        .progress = asked->progress,
        .name = asked->name,
        .on_load = show_load,
        .load_context = &bar};
    const enum lm_status status = worker_create(&part->worker, &config, err);
    if (bar.total) log_bar_end(&bar);
    return status;
}

/* Plans and loads within the device's budget. made: of the host. */
static enum lm_status load_worker(struct model_part *part, const struct part_config *config,
                                  const struct run_sizes *sizes, struct memory_plan *made,
                                  struct lm_error *err)
{
    const enum lm_status status = plan(part, config, sizes, made, err);
    return status == LM_OK ? create_worker(part, config, sizes, err) : status;
}

/* Whether experts of a device that had less memory than was planned may do with fewer slots: by
 * what is free now, and by an eighth of them at least. end: of the layers that have some. */
static bool shrink(struct model_part *part, uint32_t end, const struct lm_error *err)
{
    const uint32_t split = part->device_begin;
    char budget[24];
    if (!part->device.backend || !part->n_device_slot || err->status != LM_E_NO_MEM) return false;
    const uint64_t slot_bytes =
        device_tier_slot_bytes(part->store, split, end, part->hp.n_expert, part->n_device_slot);
    const uint64_t less = part->device.budget_bytes - slot_bytes / 8;
    const uint64_t spare = device_spare_bytes(&part->device);
    part->device.budget_bytes = spare < less ? spare : less;
    log_warning("%s; once more with %s of it", err->message,
                log_format_bytes(part->device.budget_bytes, budget));
    return true;
}

enum lm_status model_part_load(struct model_part *part, const struct part_config *config,
                               const struct run_sizes *sizes, struct lm_error *err)
{
    const struct backend_cpu_config cpu = {.n_thread = config->settings.n_thread,
                                           .kernels = config->settings.kernels,
                                           .pin = config->pin};
    struct memory_plan made;
    struct lm_error why = {.status = LM_OK};
    const uint64_t vram_bytes = config->settings.vram_bytes;
    if (vram_bytes && vram_bytes < part->device.budget_bytes)
        part->device.budget_bytes = vram_bytes; /* others have it, too */
    enum lm_status status = backend_cpu_create(&part->backend, &cpu, err);
    if (status != LM_OK) return status;
    status = load_worker(part, config, sizes, &made, &why);
    if (status != LM_OK && shrink(part, config->layer_end + part->mtp, &why))
        status = load_worker(part, config, sizes, &made, &why);
    if (status != LM_OK && err) *err = why;
    if (status == LM_OK && (part->n_expert_slot || part->n_device_slot || config->settings.profile))
        status = routing_profile_load(worker_pager(part->worker), part->file, &part->hp,
                                      config->settings.profile, err);
    if (status == LM_OK) device_recheck(&part->device);
    if (status == LM_OK) memory_plan_recheck(&made, host_memory_taken(), host_memory_available());
    return status;
}

enum lm_status model_part_close(struct model_part *part, struct lm_error *err)
{
    const enum lm_status status = worker_close(part->worker, err);
    expert_store_destroy(part->store);
    device_close(&part->device);
    if (part->backend) part->backend->ops->destroy(part->backend);
    gguf_close(part->file);
    *part = (struct model_part){.file = NULL};
    return status;
}
