/* Prefix sums make the cost of an interval a constant number of steps. */
#include "coordinator/plan/partition.h"

#include <math.h>
#include <stdlib.h>

#include "coordinator/plan/hit_rate.h"
#include "coordinator/plan/weight_census.h"
#include "proto/base/log.h"

/* Sums over the layers before one. */
struct sums {
    uint64_t dense_bytes, expert_bytes, state_bytes;
    uint32_t n_moe;
};

static void sum_layers(struct sums *sums, const struct partition_model *model)
{
    sums[0] = (struct sums){.dense_bytes = 0};
    for (uint32_t il = 0; il < model->n_layer; il++) {
        const struct partition_layer *layer = &model->layer[il];
        sums[il + 1] = (struct sums){
            .dense_bytes = sums[il].dense_bytes + layer->dense_bytes,
            .expert_bytes = sums[il].expert_bytes + layer->expert_bytes,
            .state_bytes = sums[il].state_bytes + layer->state_bytes,
            .n_moe = sums[il].n_moe + (layer->expert_bytes > 0),
        };
    }
}

void partition_model_take(struct partition_model *out, const struct gguf_file *file,
                          const struct hparams *hp, const struct memory_request *request)
{
    struct memory_plan plan;
    struct memory_request of_layer = *request;
    struct weight_census census;
    *out = (struct partition_model){.n_layer = hp->n_layer,
                                    .slot_bytes_min = request->slot_bytes_min,
                                    .n_expert = hp->n_expert,
                                    .n_expert_used = hp->n_expert_used};
    weight_census_take(&census, file, hp);
    out->embedding_bytes = census.group[WEIGHTS_EMBEDDING].n_bytes;
    out->output_bytes = hp->tied ? out->embedding_bytes : census.group[WEIGHTS_OUTPUT].n_bytes;
    of_layer.slot_bytes_min = of_layer.slot_bytes = 0;
    of_layer.budget_bytes = UINT64_MAX;
    /* the layer that drafts counts with the last one */
    const uint32_t last_end = request->layer_end > hp->n_layer ? request->layer_end : hp->n_layer;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        struct partition_layer *const layer = &out->layer[il];
        of_layer.layer_begin = il;
        of_layer.layer_end = il + 1 < hp->n_layer ? il + 1 : last_end;
        memory_plan_make(&plan, file, hp, &of_layer);
        const uint64_t ends =
            (il == 0 ? out->embedding_bytes : 0) + (il + 1 == hp->n_layer ? out->output_bytes : 0);
        const uint64_t common = plan.angle_bytes + plan.scratch_bytes + plan.program_bytes;
        *layer =
            (struct partition_layer){.dense_bytes = plan.weight_bytes - plan.expert_bytes - ends,
                                     .expert_bytes = plan.expert_bytes,
                                     .state_bytes = plan.kv_bytes + plan.recurrent_bytes};
        if (common > out->common_bytes) out->common_bytes = common;
        out->program_bytes = plan.program_bytes;
    }
}

/* What layers begin .. end are. */
struct interval {
    uint64_t fixed_bytes;  /* in memory beside experts */
    uint64_t read_bytes;   /* of that for every token */
    uint64_t expert_bytes; /* all of them */
    double n_expert;
};

/* Nothing if it is empty. */
static struct interval interval_of(const struct partition_model *model, const struct sums *sums,
                                   uint32_t begin, uint32_t end)
{
    if (begin == end) return (struct interval){.fixed_bytes = 0};
    const uint64_t read = sums[end].dense_bytes - sums[begin].dense_bytes +
                          (end == model->n_layer ? model->output_bytes : 0);
    return (struct interval){
        .fixed_bytes = read + (begin == 0 ? model->embedding_bytes : 0) + model->common_bytes +
                       sums[end].state_bytes - sums[begin].state_bytes,
        .read_bytes = read,
        .expert_bytes = sums[end].expert_bytes - sums[begin].expert_bytes,
        .n_expert = (double)(sums[end].n_moe - sums[begin].n_moe) * model->n_expert};
}

/* The least that n_bytes of experts take. */
static uint64_t least_of(uint64_t n_bytes, uint64_t slot_bytes_min)
{
    return n_bytes < slot_bytes_min || !slot_bytes_min ? n_bytes : slot_bytes_min;
}

static bool fits_device(const struct partition_model *model, const struct sums *sums,
                        const struct partition_rank *rank, uint32_t begin, uint32_t end)
{
    const struct interval of = interval_of(model, sums, begin, end);
    return of.fixed_bytes + least_of(of.expert_bytes, model->device_slot_bytes_min) <=
           rank->vram_bytes;
}

/* The first layer on the rank's device: fewer layers take less. */
static uint32_t find_device_begin(const struct partition_model *model, const struct sums *sums,
                                  const struct partition_rank *rank, uint32_t begin, uint32_t end)
{
    uint32_t split = begin > rank->device_begin ? begin : rank->device_begin, none = end;
    if (!rank->vram_bytes || split > end) return end;
    while (split < none) {
        const uint32_t middle = split + (none - split) / 2;
        if (fits_device(model, sums, rank, middle, end))
            none = middle;
        else
            split = middle + 1;
    }
    return split;
}

/* The share of lookups that find theirs when n_bytes of the experts are there. */
static double hit_rate(const struct interval *of, uint64_t n_bytes, double used_share)
{
    if (n_bytes >= of->expert_bytes) return 1;
    return hit_rate_expected(of->n_expert * (double)n_bytes / (double)of->expert_bytes,
                             of->n_expert, used_share);
}

/* The stage of a rank with layers begin .. end. token_s INFINITY: it does not fit. */
static struct partition_stage stage_of(const struct partition_model *model, const struct sums *sums,
                                       const struct partition_rank *rank, uint32_t begin,
                                       uint32_t end)
{
    const double used_share = model->n_expert ? (double)model->n_expert_used / model->n_expert : 0;
    const uint32_t split = find_device_begin(model, sums, rank, begin, end);
    const struct interval all = interval_of(model, sums, begin, end);
    const struct interval host = interval_of(model, sums, begin, split);
    const struct interval device = interval_of(model, sums, split, end);
    struct partition_stage stage = {.layer_begin = begin,
                                    .layer_end = end,
                                    .fixed_bytes =
                                        split > begin ? host.fixed_bytes : model->program_bytes,
                                    .expert_bytes = host.expert_bytes,
                                    .hit_rate = 1,
                                    .device_begin = split,
                                    .device_fixed_bytes = device.fixed_bytes,
                                    .device_expert_bytes = device.expert_bytes,
                                    .device_hit_rate = 1};
    if (split < end) {
        const uint64_t left = rank->vram_bytes - device.fixed_bytes;
        stage.device_slot_bytes = device.expert_bytes < left ? device.expert_bytes : left;
        stage.device_hit_rate = hit_rate(&device, stage.device_slot_bytes, used_share);
        if (stage.device_slot_bytes < device.expert_bytes) stage.expert_bytes = all.expert_bytes;
    }
    const uint64_t left =
        rank->ram_bytes > stage.fixed_bytes ? rank->ram_bytes - stage.fixed_bytes : 0;
    stage.slot_bytes = stage.expert_bytes < left ? stage.expert_bytes : left;
    if (rank->ram_bytes < stage.fixed_bytes ||
        stage.slot_bytes < least_of(stage.expert_bytes, model->slot_bytes_min)) {
        stage.token_s = INFINITY;
        return stage;
    }
    if (stage.slot_bytes < stage.expert_bytes)
        stage.hit_rate = hit_rate(&all, stage.slot_bytes + stage.device_slot_bytes, used_share);
    const double used = used_share * (double)all.expert_bytes;
    const double found = stage.device_hit_rate * used_share * (double)device.expert_bytes;
    stage.token_s = ((double)host.read_bytes + used - found) / rank->memory_bytes_s +
                    (1 - stage.hit_rate) * used / rank->disk_bytes_s + rank->hop_s;
    if (split < end) stage.token_s += ((double)device.read_bytes + found) / rank->vram_bytes_s;
    return stage;
}

/* ---- the best cuts ------------------------------------------------------------------------ */

/* The best way to give layers .. b to the ranks up to one. */
struct best {
    double slowest_s, sum_s;
    uint32_t begin; /* of the last of these ranks */
};

static bool is_better(const struct best *a, const struct best *b,
                      enum partition_objective objective)
{
    const bool by_sum = objective == PARTITION_LATENCY;
    const double a1 = by_sum ? a->sum_s : a->slowest_s, b1 = by_sum ? b->sum_s : b->slowest_s;
    const double a2 = by_sum ? a->slowest_s : a->sum_s, b2 = by_sum ? b->slowest_s : b->sum_s;
    return a1 != b1 ? a1 < b1 : a2 < b2;
}

static void find_best(struct best *row, const struct best *before, const struct sums *sums,
                      const struct partition_model *model, const struct partition_rank *rank,
                      uint32_t i_rank, enum partition_objective objective)
{
    for (uint32_t end = 0; end <= model->n_layer; end++) {
        row[end] = (struct best){.slowest_s = INFINITY, .sum_s = INFINITY};
        for (uint32_t begin = i_rank; begin < end; begin++) {
            if (isinf(before[begin].sum_s)) continue;
            const double token_s = stage_of(model, sums, rank, begin, end).token_s;
            const struct best with = {.slowest_s = fmax(before[begin].slowest_s, token_s),
                                      .sum_s = before[begin].sum_s + token_s,
                                      .begin = begin};
            if (is_better(&with, &row[end], objective)) row[end] = with;
        }
    }
}

static enum lm_status check_rank_count(const struct partition_model *model, uint32_t n_rank,
                                       struct lm_error *err)
{
    if (n_rank <= model->n_layer) return LM_OK;
    lm_fail(err, LM_E_USAGE, "%u ranks, but the model has %u layers to give them", n_rank,
            model->n_layer);
    return lm_hint(err, "--ranks %u or fewer", model->n_layer);
}

/* What an even cut lacks, where none fits. */
static enum lm_status fail_memory(const struct partition_model *model, const struct sums *sums,
                                  const struct partition_rank *ranks, uint32_t n_rank,
                                  struct lm_error *err)
{
    uint64_t needed = 0, available = 0;
    char need[24], have[24];
    for (uint32_t i = 0; i < n_rank; i++)
        available += ranks[i].ram_bytes + ranks[i].vram_bytes;
    const struct sums *all = &sums[model->n_layer];
    needed = all->dense_bytes + all->state_bytes + model->embedding_bytes + model->output_bytes +
             n_rank * model->common_bytes +
             (model->slot_bytes_min ? n_rank * model->slot_bytes_min : all->expert_bytes);
    lm_fail(err, LM_E_NO_MEM,
            "no cut into %u ranks fits: with the fewest experts in memory that work the model "
            "needs about %s, the ranks have %s together",
            n_rank, log_format_bytes(needed, need), log_format_bytes(available, have));
    return lm_hint(err, "more ranks, a larger --ram, a shorter --ctx or a smaller quantization");
}

enum lm_status partition_make(struct partition_stage *stages, const struct partition_model *model,
                              const struct partition_rank *ranks, uint32_t n_rank,
                              enum partition_objective objective, struct lm_error *err)
{
    struct sums sums[HPARAMS_MAX_LAYER + 1];
    const size_t n_end = (size_t)model->n_layer + 1;
    enum lm_status status = check_rank_count(model, n_rank, err);
    if (status != LM_OK) return status;
    struct best *const rows = calloc((n_rank + 1) * n_end, sizeof(*rows));
    if (!rows) return lm_fail(err, LM_E_NO_MEM, "partition: no memory for %u ranks", n_rank);
    sum_layers(sums, model);
    for (uint32_t end = 1; end <= model->n_layer; end++)
        rows[end] = (struct best){.slowest_s = INFINITY, .sum_s = INFINITY};
    for (uint32_t i = 0; i < n_rank; i++)
        find_best(rows + (i + 1) * n_end, rows + i * n_end, sums, model, &ranks[i], i, objective);
    uint32_t end = model->n_layer;
    if (isinf(rows[n_rank * n_end + end].sum_s))
        status = fail_memory(model, sums, ranks, n_rank, err);
    for (uint32_t i = n_rank; i-- > 0 && status == LM_OK;) {
        const uint32_t begin = rows[(i + 1) * n_end + end].begin;
        stages[i] = stage_of(model, sums, &ranks[i], begin, end);
        end = begin;
    }
    free(rows);
    return status;
}

enum lm_status partition_given(struct partition_stage *stages, const struct partition_model *model,
                               const struct partition_rank *ranks, uint32_t n_rank,
                               const uint32_t *n_layer, struct lm_error *err)
{
    struct sums sums[HPARAMS_MAX_LAYER + 1];
    uint64_t n_given = 0;
    const enum lm_status status = check_rank_count(model, n_rank, err);
    if (status != LM_OK) return status;
    for (uint32_t i = 0; i < n_rank; i++) {
        if (!n_layer[i]) return lm_fail(err, LM_E_USAGE, "the partition gives rank %u no layer", i);
        n_given += n_layer[i];
    }
    if (n_given != model->n_layer)
        return lm_fail(err, LM_E_USAGE, "the partition has %llu layers, the model %u",
                       (unsigned long long)n_given, model->n_layer);
    sum_layers(sums, model);
    for (uint32_t i = 0, begin = 0; i < n_rank; begin += n_layer[i++])
        stages[i] = stage_of(model, sums, &ranks[i], begin, begin + n_layer[i]);
    return LM_OK;
}
