/* Plans, expectations, and the two forms in which they are told. */
#include "launch/inspect_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/plan/hit_rate.h"
#include "coordinator/plan/partition.h"
#include "coordinator/plan/weight_census.h"
#include "launch/config.h"
#include "launch/engine.h"
#include "launch/inventory.h"
#include "launch/options.h"
#include "launch/pager_report.h"
#include "launch/partition_report.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "worker/pager/device_tier.h"

/* Below this a system has little left for itself. */
static const uint64_t free_bytes_min = UINT64_C(4) << 30;

/* ---- the plan ----------------------------------------------------------------------------- */

static struct rank_settings settings_of(const struct options *options)
{
    return (struct rank_settings){.ram_bytes = options_size(options, "ram"),
                                  .expert_slots = options_string(options, "expert-slots"),
                                  .device = options_string(options, "device"),
                                  .gpu_layers = rank_settings_gpu_layers(options),
                                  .vram_bytes = options_size(options, "vram")};
}

/* One that is there, or one of the size that was given. */
static enum lm_status take_device(struct device *device, const struct rank_settings *settings,
                                  struct lm_error *err)
{
    const char *const name = settings->device ? settings->device : "cuda";
    char size[24];
    if (!settings->vram_bytes || !strcmp(name, "cpu") || settings->gpu_layers == 0)
        return device_open(device, settings, (struct local_rank){0, 1}, err);
    *device = (struct device){.budget_bytes = settings->vram_bytes};
    snprintf(device->kind, sizeof(device->kind), "%s", name);
    snprintf(device->name, sizeof(device->name), "%s of %s", device->kind,
             log_format_bytes(settings->vram_bytes, size));
    return LM_OK;
}

static enum lm_status make_plans(struct inspect_memory *out, const struct rank_settings *settings,
                                 enum drafting mtp, struct memory_request *request,
                                 struct lm_error *err)
{
    struct model_part *const part = &out->part;
    struct device_limits fit = model_part_device_limits(part, settings);
    const uint32_t n_layer = part->hp.n_layer;
    request->layer_end = n_layer;
    const enum lm_status status = model_part_place(part, settings, mtp, request, &out->plans, err);
    fit.n_layer = DEVICE_LAYERS_AUTO;
    if (status != LM_OK || part->device_begin == n_layer) return status;
    const uint32_t split = device_plan_split(part->file, &part->hp, request, &fit);
    out->n_device_fit = split < n_layer ? n_layer - split : 0;
    return status;
}

/* ---- what is expected --------------------------------------------------------------------- */

/* Where the layers whose experts are planned end. */
static uint32_t kept_end(const struct model_part *part)
{
    return part->hp.n_layer + part->mtp;
}

/* Experts on the device, as they are shared out; none is paged there: all of its layers'. */
static uint32_t n_on_device(const struct inspect_memory *memory)
{
    const struct model_part *part = &memory->part;
    const uint32_t begin = part->device_begin, end = kept_end(part);
    if (!part->n_device_slot) return hparams_n_expert_of(&part->hp, begin, end);
    return model_part_device_experts(part, end, 0);
}

/* The layers whose experts the host keeps. */
static uint32_t host_end(const struct model_part *part)
{
    const bool all = part->n_device_slot || part->device_begin == part->hp.n_layer;
    return all ? kept_end(part) : part->device_begin;
}

static uint32_t n_in_memory(const struct inspect_memory *memory)
{
    const struct model_part *part = &memory->part;
    const uint32_t end = host_end(part);
    if (!part->n_expert_slot) return hparams_n_expert_of(&part->hp, 0, end);
    return expert_pager_slot_count(part->store, 0, end, part->hp.n_expert, part->n_expert_slot);
}

/* Weights that every token reads. rows: of the embedding, which it does not. */
static double dense_bytes(const struct memory_plan *plan, uint64_t rows)
{
    return (double)(plan->weight_bytes - plan->slot_bytes - rows);
}

/* Bytes/s; 0: not given. */
static double rate_option(const struct options *options, const char *name)
{
    return options_given(options, name) ? 1e9 * options_float(options, name) : 0;
}

/* What was given, else what is measured here. */
static void take_rates(struct cost_machine *rates, const struct options *options, const char *path)
{
    double memory_bytes_s = rate_option(options, "ram-gbps");
    double disk_bytes_s = rate_option(options, "disk-gbps");
    struct inventory machine;
    if (memory_bytes_s <= 0 || disk_bytes_s <= 0) {
        inventory_take(&machine, path, 0);
        if (memory_bytes_s <= 0) memory_bytes_s = machine.memory_bytes_s;
        if (disk_bytes_s <= 0) disk_bytes_s = machine.disk_bytes_s;
    }
    *rates =
        (struct cost_machine){.dense_bytes_s = memory_bytes_s,
                              .expert_bytes_s = memory_bytes_s,
                              .disk_bytes_s = disk_bytes_s,
                              .vram_bytes_s = COST_VRAM_SHARE * rate_option(options, "vram-gbps"),
                              .link_bytes_s = 1e9 * options_float(options, "link-gbps"),
                              .layer_s = COST_DEVICE_LAYER_S,
                              .token_s = COST_DEVICE_TOKEN_S};
}

/* Those in memory are others than those on the device, which nobody asks memory for. */
static void expect(struct inspect_memory *out, const struct options *options)
{
    const struct model_part *const part = &out->part;
    const struct hparams *const hp = &part->hp;
    const uint32_t split = part->device_begin, end = kept_end(part);
    const uint32_t n_expert = hparams_n_expert_of(hp, 0, end);
    const uint32_t n_device_expert = hparams_n_expert_of(hp, split, end);
    const double used_share = hp->n_expert ? (double)hp->n_expert_used / hp->n_expert : 0;
    struct inspect_expectation *const of = &out->expected;
    struct weight_census census;
    if (n_expert) {
        const double on_device = n_on_device(out), in_memory = n_in_memory(out);
        const double resident = on_device + in_memory;
        of->vram_share = on_device / n_expert;
        of->exclusive =
            part->n_device_slot && in_memory < hparams_n_expert_of(hp, 0, host_end(part));
        of->resident_share = resident < n_expert ? resident / n_expert : 1;
        of->hits.vram = n_device_expert
                            ? hit_rate_expected(on_device, n_device_expert, used_share) *
                                  n_device_expert / n_expert
                            : 0;
        of->hits.resident = hit_rate_expected(of->resident_share, 1, used_share);
        if (of->hits.resident < of->hits.vram) of->hits.resident = of->hits.vram;
    } else {
        of->hits = (struct cost_hits){1, 1};
    }
    if (!options_given(options, "vram-gbps")) return;
    take_rates(&of->rates, options, gguf_path(part->file));
    /* weights on the CPU take as long as so many more on the device would */
    weight_census_take(&census, part->file, hp);
    const uint64_t rows = hp->tied ? 0 : census.group[WEIGHTS_EMBEDDING].n_bytes;
    double dense = dense_bytes(&out->plans.device, split > 0 ? 0 : rows);
    if (split > 0)
        dense +=
            dense_bytes(&out->plans.host, rows) * of->rates.vram_bytes_s / of->rates.dense_bytes_s;
    const struct cost_weights weights = {.dense_bytes = dense,
                                         .bank_bytes =
                                             (double)census.group[WEIGHTS_EXPERTS].n_bytes,
                                         .used_share = used_share,
                                         .vram_share = of->vram_share,
                                         .resident_share = of->resident_share,
                                         .n_layer = hp->n_layer};
    of->estimate = cost_model_estimate(&of->rates, &weights, &of->hits);
}

/* ---- ranks -------------------------------------------------------------------------------- */

/* The budget of one rank, which override blocks may set; 0: none was given. */
static enum lm_status ram_of_rank(const struct options *options, uint32_t rank, const char *host,
                                  uint64_t *n_bytes, struct lm_error *err)
{
    struct config *config;
    struct options *of_rank = NULL;
    enum lm_status status = config_load_for_rank(&config, options_config(options), rank, host, err);
    if (status != LM_OK) return status;
    status = options_refill(&of_rank, options, config, err);
    if (status == LM_OK) *n_bytes = options_size(of_rank, "ram");
    options_destroy(of_rank);
    config_destroy(config);
    return status;
}

/* Of the device that it would take; each has one of the size that was given. */
static enum lm_status vram_of_rank(const struct inspect_memory *memory, uint32_t rank,
                                   const struct options *options, uint64_t *n_bytes,
                                   struct lm_error *err)
{
    struct device device;
    const struct rank_settings settings = settings_of(options);
    *n_bytes = memory->part.device.budget_bytes;
    if (rank == 0 || !memory->part.device.backend) return LM_OK;
    const enum lm_status status =
        device_open(&device, &settings, (struct local_rank){rank, memory->n_rank}, err);
    if (status != LM_OK) return status;
    *n_bytes = device.budget_bytes;
    device_close(&device);
    return LM_OK;
}

/* The ranks of a cut on this machine. They share what it has; a budget is each one's. */
static enum lm_status list_ranks(const struct inspect_memory *memory, struct partition_rank *ranks,
                                 const struct options *options, struct lm_error *err)
{
    struct inventory machine;
    const uint32_t n_rank = memory->n_rank;
    enum lm_status status = LM_OK;
    inventory_take(&machine, gguf_path(memory->part.file), 0);
    for (uint32_t i = 0; i < n_rank && status == LM_OK; i++) {
        uint64_t ram_bytes = 0;
        status = ram_of_rank(options, i, machine.host, &ram_bytes, err);
        ranks[i] = (struct partition_rank){
            .ram_bytes = ram_bytes ? ram_bytes : memory->plans.host.budget_bytes / n_rank,
            .memory_bytes_s = machine.memory_bytes_s / n_rank,
            .disk_bytes_s = machine.disk_bytes_s / n_rank,
            .vram_bytes_s = PARTITION_VRAM_RATE,
            .device_begin = rank_settings_device_begin(rank_settings_gpu_layers(options),
                                                       memory->part.hp.n_layer)};
        if (status == LM_OK) status = vram_of_rank(memory, i, options, &ranks[i].vram_bytes, err);
    }
    return status;
}

static enum lm_status make_partition(struct inspect_memory *out,
                                     const struct memory_request *request,
                                     const struct options *options, struct lm_error *err)
{
    const char *const given = options_string(options, "partition");
    const uint32_t n_rank = out->n_rank;
    uint32_t *const n_layer = calloc(n_rank, sizeof(*n_layer));
    struct partition_rank *const ranks = calloc(n_rank, sizeof(*ranks));
    struct partition_model *const model = malloc(sizeof(*model));
    const struct rank_settings settings = settings_of(options);
    const struct device_limits limits = model_part_device_limits(&out->part, &settings);
    out->stages = calloc(n_rank, sizeof(*out->stages));
    enum lm_status status = LM_OK;
    if (!n_layer || !ranks || !model || !out->stages)
        status = lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n_rank);
    if (status == LM_OK && given) status = partition_parse(n_layer, n_rank, given, err);
    if (status == LM_OK) status = list_ranks(out, ranks, options, err);
    if (status == LM_OK) {
        struct memory_request settled = *request;
        settled.n_ctx = out->plans.host.n_ctx;
        settled.prefill_chunk = out->plans.host.prefill_chunk;
        partition_model_take(model, out->part.file, &out->part.hp, &settled);
        model->device_slot_bytes_min =
            limits.slot_bytes_min(limits.context, 0, out->part.hp.n_layer);
        status = given ? partition_given(out->stages, model, ranks, n_rank, n_layer, err)
                       : partition_make(out->stages, model, ranks, n_rank,
                                        partition_objective_from_options(options), err);
    }
    free(model);
    free(ranks);
    free(n_layer);
    return status;
}

/* ---- all of it ---------------------------------------------------------------------------- */

enum lm_status inspect_memory_make(struct inspect_memory *out, struct gguf_file *file,
                                   const struct hparams *hp, const struct options *options,
                                   struct lm_error *err)
{
    struct memory_request request;
    struct model_part *const part = &out->part;
    const struct rank_settings settings = settings_of(options);
    const struct engine_config config = {
        .own = settings,
        .n_ctx = (uint32_t)options_int(options, "ctx"),
        .n_slot = (uint32_t)options_int(options, "parallel"),
        .kv_type = options_string(options, "kv-type"),
        .prefill_chunk = (uint32_t)options_int(options, "prefill-chunk"),
        .mtp = engine_drafting(options_string(options, "mtp")),
        .n_snapshot = ENGINE_N_SNAPSHOT,
    };
    *out = (struct inspect_memory){.part = {.file = file, .hp = *hp},
                                   .free_ram = !settings.ram_bytes,
                                   .n_rank = (uint32_t)options_int(options, "ranks")};
    enum lm_status status = engine_memory_request(&request, &config, err);
    if (status == LM_OK) status = take_device(&part->device, &settings, err);
    if (status == LM_OK) status = model_part_find_experts(part, 0, hp->n_layer, config.mtp, err);
    if (status == LM_OK) status = make_plans(out, &settings, config.mtp, &request, err);
    if (status == LM_OK && part->device_begin < hp->n_layer) expect(out, options);
    if (status == LM_OK && out->n_rank > 1) status = make_partition(out, &request, options, err);
    return status;
}

void inspect_memory_fini(struct inspect_memory *memory)
{
    memory->part.file = NULL; /* borrowed */
    model_part_close(&memory->part, NULL);
    free(memory->stages);
}

enum lm_status inspect_memory_check(const struct inspect_memory *memory, struct lm_error *err)
{
    const uint32_t n_on = memory->part.hp.n_layer - memory->part.device_begin;
    enum lm_status status = memory_plan_check(&memory->plans.host, err);
    if (status == LM_OK && n_on)
        status = device_plan_check(&memory->plans.device, memory->part.device.name, n_on,
                                   memory->n_device_fit, err);
    return status;
}

/* ---- telling ------------------------------------------------------------------------------ */

/* Everywhere. */
static uint32_t n_ctx_that_fits(const struct inspect_memory *memory)
{
    const struct device_plan *plans = &memory->plans;
    const bool on_device = memory->part.device_begin < memory->part.hp.n_layer;
    return on_device && plans->device.n_ctx_fit < plans->host.n_ctx_fit ? plans->device.n_ctx_fit
                                                                        : plans->host.n_ctx_fit;
}

enum { NOTE_MAX = 4, NOTE_BYTES = 200 };

/* What the plan makes of this machine, where that is little. Returns how many. */
static size_t take_notes(const struct inspect_memory *memory, char out[NOTE_MAX][NOTE_BYTES])
{
    const struct model_part *part = &memory->part;
    const struct hparams *hp = &part->hp;
    const uint32_t n_device = part->device_begin < hp->n_layer ? n_on_device(memory) : 0;
    const uint64_t available = host_memory_available(), used = memory->plans.host.total_bytes;
    size_t n = 0;
    const double of_token = (double)hp->n_expert_used / (hp->n_expert ? hp->n_expert : 1);
    const double of_device = of_token * hparams_n_expert_of(hp, part->device_begin, hp->n_layer);
    const double of_all = of_token * hparams_n_expert_total(hp);
    if (part->n_device_slot && n_device < 1.3 * of_device)
        snprintf(out[n++], NOTE_BYTES,
                 "a token uses %.0f experts of the device's layers, %u fit there: few are found",
                 of_device, n_device);
    if (part->n_expert_slot && n_device + n_in_memory(memory) < 1.3 * of_all)
        snprintf(out[n++], NOTE_BYTES,
                 "a token uses %.0f experts, %u fit into memory: nearly all are read from the disk "
                 "for every token",
                 of_all, n_device + n_in_memory(memory));
    if (memory->free_ram && used + free_bytes_min > available) {
        char left[24];
        snprintf(out[n++], NOTE_BYTES, "%s of memory would be left for everything else",
                 log_format_bytes(available > used ? available - used : 0, left));
    }
    return n;
}

static void print_paging(const struct inspect_memory *memory)
{
    const struct model_part *part = &memory->part;
    const uint32_t n_expert = hparams_n_expert_of(&part->hp, 0, host_end(part));
    const uint32_t n = n_in_memory(memory);
    char bank[24], expectation[PAGER_EXPECTATION_BYTES];
    if (n == n_expert) {
        printf("experts in memory  all %u\n", n);
        return;
    }
    printf("experts in memory  %u of %u (%.0f%%) of %s, the others are read when needed%s%s\n", n,
           n_expert, 100.0 * n / n_expert, log_format_bytes(memory->plans.host.expert_bytes, bank),
           part->n_device_slot ? "" : "; ",
           part->n_device_slot ? ""
                               : pager_report_expectation(expectation, &memory->plans.host,
                                                          &part->hp, n_expert, n));
}

static void print_plan(const struct memory_plan *plan)
{
    const struct {
        const char *what;
        uint64_t n_bytes;
    } rows[] = {
        {"weights", plan->weight_bytes},   {"  routed experts", plan->slot_bytes},
        {"KV cache", plan->kv_bytes},      {"recurrent state", plan->recurrent_bytes},
        {"angles", plan->angle_bytes},     {"scratch", plan->scratch_bytes},
        {"program", plan->program_bytes},  {"total", plan->total_bytes},
        {"  for drafts", plan->mtp_bytes}, {"may be used", plan->budget_bytes},
    };
    char size[24];
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (rows[i].n_bytes || *rows[i].what != ' ')
            printf("%-18s %10s\n", rows[i].what, log_format_bytes(rows[i].n_bytes, size));
}

/* Of the lookups that a device's memory does not answer. */
static double ram_hit_rate(const struct cost_hits *hits)
{
    return hits->vram < 1 ? (hits->resident - hits->vram) / (1 - hits->vram) : 1;
}

/* What experts have besides until contexts grow. */
static void print_exchange(const struct inspect_memory *memory)
{
    const struct model_part *const part = &memory->part;
    const struct memory_plan *const plan = &memory->plans.device;
    char first[24], full[24];
    if (!plan->kv_lent_bytes) return;
    printf("at first           %u there, while the KV cache needs %s of its %s\n",
           model_part_device_experts(part, kept_end(part), plan->kv_lent_bytes),
           log_format_bytes(plan->kv_bytes - plan->kv_lent_bytes, first),
           log_format_bytes(plan->kv_bytes, full));
}

static void print_expectation(const struct inspect_memory *memory)
{
    const struct inspect_expectation *of = &memory->expected;
    const struct cost_estimate *tok = &of->estimate;
    if (memory->part.n_device_slot)
        printf(
            "\nexperts on device  %u of %u; of all experts %.1f%% are there, %.1f%% there or in "
            "memory\n"
            "expected           about %.0f%% of the lookups found there, %.0f%% of the others in "
            "memory\n",
            n_on_device(memory),
            hparams_n_expert_of(&memory->part.hp, memory->part.device_begin,
                                kept_end(&memory->part)),
            100 * of->vram_share, 100 * of->resident_share, 100 * of->hits.vram,
            100 * ram_hit_rate(&of->hits));
    print_exchange(memory);
    if (memory->part.n_device_slot)
        printf("memory and device  %s\n", of->exclusive
                                              ? "exclusive: memory is for what the device lacks"
                                              : "inclusive: memory has what the device has, too");
    if (of->rates.vram_bytes_s <= 0) return;
    printf("decode, tok/s      %.3g with misses computed on the CPU, %.3g with misses copied, at "
           "most %.3g\n",
           tok->serial_tok_s, tok->link_tok_s, tok->ideal_tok_s);
    printf(
        "                   at GB/s of: device %.4g (%.0f%% of nominal), link %.4g, memory %.3g, "
        "disk %.3g\n",
        of->rates.vram_bytes_s / 1e9, 100 * COST_VRAM_SHARE, of->rates.link_bytes_s / 1e9,
        of->rates.dense_bytes_s / 1e9, of->rates.disk_bytes_s / 1e9);
}

void inspect_memory_print(const struct inspect_memory *memory)
{
    const struct model_part *part = &memory->part;
    const struct memory_plan *host = &memory->plans.host;
    char notes[NOTE_MAX][NOTE_BYTES];
    printf("\nmemory for %u sequence%s of %u tokens, prompts %u at a time\n", host->n_slot,
           host->n_slot == 1 ? "" : "s", host->n_ctx, host->prefill_chunk);
    print_plan(host);
    if (part->n_expert_slot) print_paging(memory);
    if (part->device_begin < part->hp.n_layer) {
        printf("\nof these layers %u to %u on %s\n", part->device_begin, part->hp.n_layer - 1,
               part->device.name);
        print_plan(&memory->plans.device);
        print_expectation(memory);
    }
    const size_t n_note = take_notes(memory, notes);
    for (size_t i = 0; i < n_note; i++)
        printf("note: %s\n", notes[i]);
    const uint32_t n_ctx_fit = n_ctx_that_fits(memory);
    if (n_ctx_fit)
        printf("longest context that fits: %u tokens\n", n_ctx_fit);
    else
        printf("no context fits\n");
    if (!memory->stages) return;
    printf("\ncut into %u ranks on this machine\n", memory->n_rank);
    partition_print(stdout, memory->stages, NULL, memory->n_rank);
}

static void add_number(struct json_object *object, const char *key, uint64_t value)
{
    json_object_object_add(object, key, json_object_new_uint64(value));
}

static void add_real(struct json_object *object, const char *key, double value)
{
    json_object_object_add(object, key, json_object_new_double(value));
}

static void add_plan(struct json_object *object, const struct memory_plan *plan)
{
    add_number(object, "weights", plan->weight_bytes);
    add_number(object, "routed_experts", plan->slot_bytes);
    add_number(object, "kv_cache", plan->kv_bytes);
    add_number(object, "recurrent_state", plan->recurrent_bytes);
    add_number(object, "angles", plan->angle_bytes);
    add_number(object, "scratch", plan->scratch_bytes);
    add_number(object, "program", plan->program_bytes);
    add_number(object, "total", plan->total_bytes);
    add_number(object, "mtp", plan->mtp_bytes);
    add_number(object, "budget", plan->budget_bytes);
    json_object_object_add(object, "paged", json_object_new_boolean(plan->paged));
    json_object_object_add(object, "fits",
                           json_object_new_boolean(plan->total_bytes <= plan->budget_bytes));
}

static struct json_object *device_json(const struct inspect_memory *memory)
{
    const struct model_part *part = &memory->part;
    struct json_object *device = json_object_new_object();
    json_object_object_add(device, "device", json_object_new_string(part->device.kind));
    add_number(device, "layer_begin", part->device_begin);
    add_number(device, "layer_end", part->hp.n_layer);
    add_plan(device, &memory->plans.device);
    if (!part->n_device_slot) return device;
    add_number(device, "experts_in_memory", n_on_device(memory));
    add_number(device, "experts_at_first",
               model_part_device_experts(part, kept_end(part), memory->plans.device.kv_lent_bytes));
    add_number(device, "kv_cache_at_first",
               memory->plans.device.kv_bytes - memory->plans.device.kv_lent_bytes);
    return device;
}

static struct json_object *expectation_json(const struct inspect_expectation *of)
{
    struct json_object *json = json_object_new_object();
    add_real(json, "vram_share", of->vram_share);
    add_real(json, "resident_share", of->resident_share);
    json_object_object_add(json, "exclusive", json_object_new_boolean(of->exclusive));
    add_real(json, "vram_hit_rate", of->hits.vram);
    add_real(json, "ram_hit_rate", ram_hit_rate(&of->hits));
    if (of->rates.vram_bytes_s <= 0) return json;
    add_real(json, "serial_tok_s", of->estimate.serial_tok_s);
    add_real(json, "link_tok_s", of->estimate.link_tok_s);
    add_real(json, "ideal_tok_s", of->estimate.ideal_tok_s);
    return json;
}

struct json_object *inspect_memory_json(const struct inspect_memory *memory)
{
    const struct memory_plan *plan = &memory->plans.host;
    char notes[NOTE_MAX][NOTE_BYTES];
    struct json_object *object = json_object_new_object(), *list = json_object_new_array();
    add_number(object, "n_ctx", plan->n_ctx);
    add_number(object, "n_slot", plan->n_slot);
    add_number(object, "prefill_chunk", plan->prefill_chunk);
    add_number(object, "n_ctx_fit", n_ctx_that_fits(memory));
    if (plan->paged) add_number(object, "experts_in_memory", n_in_memory(memory));
    add_plan(object, plan);
    if (memory->part.device_begin < memory->part.hp.n_layer) {
        json_object_object_add(object, "device", device_json(memory));
        json_object_object_add(object, "expected", expectation_json(&memory->expected));
    }
    const size_t n_note = take_notes(memory, notes);
    for (size_t i = 0; i < n_note; i++)
        json_object_array_add(list, json_object_new_string(notes[i]));
    json_object_object_add(object, "notes", list);
    if (memory->stages)
        json_object_object_add(object, "ranks", partition_json(memory->stages, memory->n_rank));
    return object;
}
