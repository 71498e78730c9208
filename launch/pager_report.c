/* The expected hit rate, the plan in a line, and the counters. */
#include "launch/pager_report.h"

#include <assert.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/hit_rate.h"
#include "coordinator/plan/memory_plan.h"
#include "coordinator/server/metrics.h"
#include "proto/base/log.h"
#include "proto/model/hparams.h"
#include "worker/pager/pager_snapshot.h"

static double used_share(const struct hparams *hp)
{
    return (double)hp->n_expert_used / hp->n_expert;
}

const char *pager_report_expectation(char out[PAGER_EXPECTATION_BYTES],
                                     const struct memory_plan *plan, const struct hparams *hp,
                                     uint32_t n_expert, uint32_t n_slot)
{
    char bytes[24];
    const double hit = hit_rate_expected(n_slot, n_expert, used_share(hp));
    const double read_bytes = (1 - hit) * used_share(hp) * (double)plan->expert_bytes;
    const int n =
        snprintf(out, PAGER_EXPECTATION_BYTES,
                 "in published models a warm cache of that share has about %.0f%% hits", 100 * hit);
    if (read_bytes >= 1)
        snprintf(out + n, PAGER_EXPECTATION_BYTES - (size_t)n,
                 ", here %s to read per token: at most %.*f tok/s at 1 GB/s of disk",
                 log_format_bytes((uint64_t)read_bytes, bytes), read_bytes > 1e8 ? 2 : 0,
                 1e9 / read_bytes);
    return out;
}

const char *pager_report_device(char out[PAGER_DEVICE_BYTES], const struct hparams *hp,
                                uint32_t n_expert, uint32_t n_slot, uint32_t n_slot_first,
                                const char *miss)
{
    const double n_of_token = used_share(hp) * n_expert;
    char first[40] = "";
    if (n_slot_first > n_slot)
        snprintf(first, sizeof(first), ", %u until contexts grow", n_slot_first);
    snprintf(out, PAGER_DEVICE_BYTES,
             ", %u of %u experts (%.0f%%) there%s, for about %.0f%% of the lookups; misses: %s%s",
             n_slot, n_expert, 100.0 * n_slot / n_expert, first,
             100 * hit_rate_expected(n_slot, n_expert, used_share(hp)), miss ? miss : "auto",
             n_slot < 1.3 * n_of_token ? " (hardly more than a token uses)" : "");
    return out;
}

void pager_report_plan(const struct memory_plan *plan, const struct hparams *hp, uint32_t n_expert,
                       uint32_t n_slot)
{
    char slots[24], rest[24], bank[24], budget[24], expectation[PAGER_EXPECTATION_BYTES];
    const double n_of_token = used_share(hp) * n_expert;
    log_info("%u of %u experts in memory (%.0f%%): slots of %s for %s; all else %s; budget %s; %s",
             n_slot, n_expert, 100.0 * n_slot / n_expert, log_format_bytes(plan->slot_bytes, slots),
             log_format_bytes(plan->expert_bytes, bank),
             log_format_bytes(plan->total_bytes - plan->slot_bytes, rest),
             log_format_bytes(plan->budget_bytes, budget),
             pager_report_expectation(expectation, plan, hp, n_expert, n_slot));
    if (n_slot < 1.3 * n_of_token)
        log_warning("a token uses %.0f experts, %u fit: nearly all are read anew for every token; "
                    "a larger --ram helps most",
                    n_of_token, n_slot);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

uint64_t pager_report_read_bytes(const struct expert_pager_stats *stats)
{
    uint64_t n_bytes = 0;
    for (int i = 0; i < READ_PRIORITY_COUNT; i++)
        n_bytes += stats->disk.read_bytes[i];
    return n_bytes;
}

struct layer_rate {
    uint32_t layer;
    double hit_percent;
};

static int fewer_hits_first(const void *left, const void *right)
{
    const struct layer_rate *a = left, *b = right;
    if (a->hit_percent != b->hit_percent) return a->hit_percent < b->hit_percent ? -1 : 1;
    return a->layer < b->layer ? -1 : a->layer > b->layer;
}

/* The spread over the layers, and the layers at its lower end; of prefill if nothing was decoded.
 */
static void print_layers(FILE *out, const struct pager_snapshot *experts)
{
    const struct expert_pager_stats *stats = &experts->total;
    enum { WORST_MAX = 3 };
    struct layer_rate rate[HPARAMS_MAX_LAYER];
    const bool decode = stats->decode.n_lookup > 0;
    size_t n = 0;
    for (uint32_t il = stats->layer_begin; il < stats->layer_end; il++) {
        const struct expert_pager_layer_stats layer = experts->layer[il];
        const struct expert_pager_counts *counts = decode ? &layer.decode : &layer.prefill;
        if (counts->n_lookup)
            rate[n++] = (struct layer_rate){il, percent(counts->n_hit, counts->n_lookup)};
    }
    if (n < 2) return;
    qsort(rate, n, sizeof(*rate), fewer_hits_first);
    fprintf(out, "layers  hits %.1f%% to %.1f%% in %s, median %.1f%%; least", rate[0].hit_percent,
            rate[n - 1].hit_percent, decode ? "decode" : "prefill", rate[n / 2].hit_percent);
    for (size_t i = 0; i < n && i < WORST_MAX; i++)
        fprintf(out, "%s layer %u %.1f%%", i ? "," : "", rate[i].layer, rate[i].hit_percent);
    fputc('\n', out);
}

static void print_usage(FILE *out, const struct expert_usage *usage)
{
    char bytes[24];
    fprintf(out,
            "lookups %5" PRIu64 " for this answer   hits %.1f%%, %" PRIu64 " on their way, %" PRIu64
            " missed (%s)   waited %.2fs\n",
            usage->n_lookup, percent(usage->n_hit, usage->n_lookup), usage->n_joined, usage->n_miss,
            log_format_bytes(usage->miss_bytes, bytes), usage->wait_s);
}

static const char *const point_names[PREDICT_POINT_COUNT] = {
    [PREDICT_EARLY] = "early", [PREDICT_LATE] = "late"};

static void print_predictions(FILE *out, const struct expert_pager_stats *stats)
{
    const char *separator = "predict";
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) {
        const struct expert_pager_prediction *prediction = &stats->prediction[point];
        if (!prediction->n_chosen) continue;
        fprintf(
            out, "%s %s %.1f%%, %" PRIu64 " read, %" PRIu64 " used, %" PRIu64 " of them in time",
            separator, point_names[point], percent(prediction->n_recalled, prediction->n_chosen),
            prediction->n_read, prediction->n_used, prediction->n_in_time);
        separator = "  ";
    }
    if (*separator == ' ') fprintf(out, "   %" PRIu64 " wasted\n", stats->n_wasted);
}

static void print_device(FILE *out, const struct device_tier_stats *stats)
{
    const struct device_tier_counts *of = stats->decode.n_lookup ? &stats->decode : &stats->prefill;
    char copied[24];
    fprintf(out,
            "device  %5u of %u on it   hits %.1f%% in decode, %.1f%% in prefill   misses: %.0f%% "
            "copied (%s), the others on the CPU\n",
            stats->n_resident, stats->n_expert,
            percent(stats->decode.n_hit, stats->decode.n_lookup),
            percent(stats->prefill.n_hit, stats->prefill.n_lookup),
            percent(of->n_copied, of->n_copied + of->n_cpu),
            log_format_bytes(stats->decode.copied_bytes + stats->prefill.copied_bytes, copied));
    if (stats->exclusive)
        fprintf(out,
                "device  shares experts out with memory   %" PRIu64 " left, %" PRIu64
                " written back before (%s), %" PRIu64 " to the disk\n",
                stats->n_evicted, stats->n_written_back,
                log_format_bytes(stats->written_back_bytes, copied), stats->n_lost);
    if (stats->prediction.n_chosen)
        fprintf(out,
                "device  predicted %.1f%%, %" PRIu64 " copied, %" PRIu64 " used, %" PRIu64
                " of them in time   %" PRIu64 " wasted\n",
                percent(stats->prediction.n_recalled, stats->prediction.n_chosen),
                stats->prediction.n_read, stats->prediction.n_used, stats->prediction.n_in_time,
                stats->n_wasted);
}

void pager_report_print(FILE *out, const struct pager_snapshot *experts,
                        const struct expert_usage *usage)
{
    const struct expert_pager_stats stats = experts->total;
    const struct expert_pager_counts *decode = &stats.decode, *prefill = &stats.prefill;
    const uint64_t n_bytes = pager_report_read_bytes(&stats);
    char bytes[24], rate[24];
    if (!stats.n_slot && !experts->device.n_slot) return;
    print_usage(out, usage);
    if (experts->device.n_slot) print_device(out, &experts->device);
    if (!stats.n_slot) return;
    fprintf(out,
            "experts %5u of %u in memory   hits %.1f%% in decode, %.1f%% in prefill   "
            "waited %.2fs + %.2fs\n",
            stats.n_resident, stats.n_expert, percent(decode->n_hit, decode->n_lookup),
            percent(prefill->n_hit, prefill->n_lookup), decode->wait_s, prefill->wait_s);
    print_layers(out, experts);
    fprintf(out, "read    %s by %s%s", log_format_bytes(n_bytes, bytes), stats.disk.engine,
            stats.disk.direct ? ", direct" : ", buffered");
    if (stats.disk.busy_s > 0)
        fprintf(out, ", %s/s while busy",
                log_format_bytes((uint64_t)((double)n_bytes / stats.disk.busy_s), rate));
    fputc('\n', out);
    print_predictions(out, &stats);
}

static struct metrics_lookups lookups_of(const struct expert_pager_counts *counts)
{
    return (struct metrics_lookups){.n_hit = counts->n_hit,
                                    .n_joined = counts->n_joined,
                                    .n_miss = counts->n_miss,
                                    .miss_bytes = counts->miss_bytes,
                                    .wait_s = counts->wait_s};
}

static struct metrics_device_lookups device_lookups_of(const struct device_tier_counts *counts)
{
    return (struct metrics_device_lookups){.n_hit = counts->n_hit,
                                           .n_cpu = counts->n_cpu,
                                           .n_copied = counts->n_copied,
                                           .hit_bytes = counts->hit_bytes,
                                           .cpu_bytes = counts->cpu_bytes,
                                           .copied_bytes = counts->copied_bytes,
                                           .wait_s = counts->wait_s,
                                           .cpu_s = counts->cpu_s};
}

static struct metrics_device device_of(const struct device_tier_stats *stats)
{
    return (struct metrics_device){.decode = device_lookups_of(&stats->decode),
                                   .prefill = device_lookups_of(&stats->prefill),
                                   .n_resident = stats->n_resident,
                                   .n_free = stats->n_slot - stats->n_resident,
                                   .n_evicted = stats->n_evicted,
                                   .n_written_back = stats->n_written_back,
                                   .written_back_bytes = stats->written_back_bytes,
                                   .n_lost = stats->n_lost,
                                   .background_bytes = stats->background_bytes,
                                   .n_admitted = stats->n_admitted,
                                   .n_preloaded = stats->n_preloaded,
                                   .n_warmed = stats->n_warmed,
                                   .n_named = stats->prediction.n_named,
                                   .n_chosen = stats->prediction.n_chosen,
                                   .n_recalled = stats->prediction.n_recalled,
                                   .n_predicted = stats->prediction.n_read,
                                   .n_predicted_used = stats->prediction.n_used,
                                   .n_predicted_wasted = stats->n_wasted,
                                   .predicted_bytes = stats->predicted_bytes,
                                   .predicted_used_bytes = stats->useful_bytes,
                                   .slot_bytes = stats->slot_bytes,
                                   .kv_bytes = stats->kv_bytes,
                                   .n_to_kv = stats->n_to_kv,
                                   .n_to_experts = stats->n_to_experts};
}

bool pager_report_metrics(struct metrics_experts *out, const struct pager_snapshot *experts)
{
    static_assert((int)METRICS_N_READ == (int)READ_PRIORITY_COUNT, "priorities have names");
    const struct expert_pager_stats stats = experts->total;
    if (!stats.n_slot && !experts->device.n_slot) return false;
    out->device = device_of(&experts->device);
    out->n_layer = 0;
    out->n_resident = stats.n_resident;
    out->n_reading = stats.n_reading;
    out->n_free = stats.n_free;
    out->decode = lookups_of(&stats.decode);
    out->prefill = lookups_of(&stats.prefill);
    out->n_evicted = stats.n_evicted;
    out->n_remiss = stats.n_remiss;
    out->n_preloaded = stats.n_preloaded;
    out->n_predicted = stats.n_predicted;
    out->n_chosen = stats.n_chosen;
    out->n_recalled = stats.n_recalled;
    out->n_prefetched = stats.n_speculated;
    out->n_prefetch_used = stats.n_useful;
    out->n_prefetch_wasted = stats.n_wasted;
    out->prefetched_bytes = stats.speculated_bytes;
    out->prefetch_used_bytes = stats.useful_bytes;
    memcpy(out->n_read, stats.disk.n_read, sizeof(out->n_read));
    memcpy(out->read_bytes, stats.disk.read_bytes, sizeof(out->read_bytes));
    out->busy_s = stats.disk.busy_s;
    out->direct_rate = stats.disk.probe_direct_rate;
    out->buffered_rate = stats.disk.probe_buffered_rate;
    for (uint32_t il = stats.layer_begin; il < stats.layer_end; il++) {
        const struct expert_pager_layer_stats layer = experts->layer[il];
        if (!layer.n_expert) continue;
        out->layer[out->n_layer++] = (struct metrics_expert_layer){
            .layer = il,
            .n_hit = layer.decode.n_hit + layer.prefill.n_hit,
            .n_joined = layer.decode.n_joined + layer.prefill.n_joined,
            .n_miss = layer.decode.n_miss + layer.prefill.n_miss};
    }
    return true;
}

static void add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

static struct json_object *counts_json(const struct expert_pager_counts *counts)
{
    struct json_object *json = json_object_new_object();
    add(json, "lookups", json_object_new_int64((int64_t)counts->n_lookup));
    add(json, "hits", json_object_new_int64((int64_t)counts->n_hit));
    add(json, "joined", json_object_new_int64((int64_t)counts->n_joined));
    add(json, "in_time", json_object_new_int64((int64_t)counts->n_in_time));
    add(json, "misses", json_object_new_int64((int64_t)counts->n_miss));
    add(json, "miss_bytes", json_object_new_int64((int64_t)counts->miss_bytes));
    add(json, "wait_s", json_object_new_double(counts->wait_s));
    return json;
}

static const char *const miss_names[] = {
    [MISS_AUTO] = "auto", [MISS_GPU] = "gpu", [MISS_CPU] = "cpu", [MISS_HYBRID] = "hybrid"};

static struct json_object *device_counts_json(const struct device_tier_counts *counts)
{
    struct json_object *json = json_object_new_object();
    add(json, "lookups", json_object_new_uint64(counts->n_lookup));
    add(json, "hits", json_object_new_uint64(counts->n_hit));
    add(json, "on_cpu", json_object_new_uint64(counts->n_cpu));
    add(json, "copied", json_object_new_uint64(counts->n_copied));
    add(json, "hit_bytes", json_object_new_uint64(counts->hit_bytes));
    add(json, "cpu_bytes", json_object_new_uint64(counts->cpu_bytes));
    add(json, "copied_bytes", json_object_new_uint64(counts->copied_bytes));
    add(json, "wait_s", json_object_new_double(counts->wait_s));
    add(json, "cpu_s", json_object_new_double(counts->cpu_s));
    return json;
}

static struct json_object *prediction_json(const struct expert_pager_prediction *prediction)
{
    struct json_object *json = json_object_new_object();
    add(json, "named", json_object_new_uint64(prediction->n_named));
    add(json, "chosen", json_object_new_uint64(prediction->n_chosen));
    add(json, "recalled", json_object_new_uint64(prediction->n_recalled));
    add(json, "read", json_object_new_uint64(prediction->n_read));
    add(json, "used", json_object_new_uint64(prediction->n_used));
    add(json, "in_time", json_object_new_uint64(prediction->n_in_time));
    return json;
}

static struct json_object *device_json(const struct device_tier_stats *stats)
{
    struct json_object *json = json_object_new_object();
    add(json, "slots", json_object_new_int64(stats->n_slot));
    add(json, "experts", json_object_new_int64(stats->n_expert));
    add(json, "resident", json_object_new_int64(stats->n_resident));
    add(json, "slot_bytes", json_object_new_uint64(stats->slot_bytes));
    add(json, "room_bytes", json_object_new_uint64(stats->room_bytes));
    add(json, "bank_bytes", json_object_new_uint64(stats->bank_bytes));
    add(json, "kv_pool_bytes", json_object_new_uint64(stats->pool_bytes));
    add(json, "kv_bytes", json_object_new_uint64(stats->kv_bytes));
    add(json, "exchanges_to_kv", json_object_new_uint64(stats->n_to_kv));
    add(json, "exchanges_to_experts", json_object_new_uint64(stats->n_to_experts));
    add(json, "miss", json_object_new_string(miss_names[stats->asked]));
    add(json, "mode", json_object_new_string(miss_names[stats->mode]));
    add(json, "gathers", json_object_new_boolean(stats->gathers));
    add(json, "cpu_share", json_object_new_double(stats->cpu_share));
    add(json, "copy_bytes_s", json_object_new_double(stats->copy_bytes_s));
    add(json, "cpu_bytes_s", json_object_new_double(stats->cpu_bytes_s));
    add(json, "admitted", json_object_new_uint64(stats->n_admitted));
    add(json, "preloaded", json_object_new_uint64(stats->n_preloaded));
    add(json, "warmed", json_object_new_uint64(stats->n_warmed));
    add(json, "background_bytes", json_object_new_uint64(stats->background_bytes));
    add(json, "preload_bytes_s", json_object_new_double(stats->preload_bytes_s));
    add(json, "evicted", json_object_new_uint64(stats->n_evicted));
    add(json, "exclusive", json_object_new_boolean(stats->exclusive));
    add(json, "written_back", json_object_new_uint64(stats->n_written_back));
    add(json, "written_back_bytes", json_object_new_uint64(stats->written_back_bytes));
    add(json, "lost", json_object_new_uint64(stats->n_lost));
    add(json, "prediction", prediction_json(&stats->prediction));
    add(json, "wasted", json_object_new_uint64(stats->n_wasted));
    add(json, "predicted_bytes", json_object_new_uint64(stats->predicted_bytes));
    add(json, "useful_bytes", json_object_new_uint64(stats->useful_bytes));
    add(json, "decode", device_counts_json(&stats->decode));
    add(json, "prefill", device_counts_json(&stats->prefill));
    return json;
}

static struct json_object *layers_json(const struct pager_snapshot *experts)
{
    const struct expert_pager_stats *stats = &experts->total;
    struct json_object *list = json_object_new_array();
    for (uint32_t il = stats->layer_begin; il < stats->layer_end; il++) {
        const struct expert_pager_layer_stats layer = experts->layer[il];
        if (!layer.n_expert) continue;
        struct json_object *json = json_object_new_object();
        add(json, "layer", json_object_new_int64(il));
        add(json, "resident", json_object_new_int64(layer.n_resident));
        add(json, "class", json_object_new_int64(layer.slot_class));
        add(json, "class_slots", json_object_new_int64(layer.n_class_slot));
        add(json, "decode", counts_json(&layer.decode));
        add(json, "prefill", counts_json(&layer.prefill));
        json_object_array_add(list, json);
    }
    return list;
}

struct json_object *pager_report_usage_json(const struct expert_usage *usage)
{
    struct json_object *json = json_object_new_object();
    add(json, "lookups", json_object_new_uint64(usage->n_lookup));
    add(json, "hits", json_object_new_uint64(usage->n_hit));
    add(json, "joined", json_object_new_uint64(usage->n_joined));
    add(json, "misses", json_object_new_uint64(usage->n_miss));
    add(json, "shared", json_object_new_uint64(usage->n_shared));
    add(json, "miss_bytes", json_object_new_uint64(usage->miss_bytes));
    add(json, "wait_ms", json_object_new_double(round(usage->wait_s * 1e6) / 1e3));
    return json;
}

static struct json_object *predictions_json(const struct expert_pager_stats *stats)
{
    struct json_object *list = json_object_new_object();
    for (int point = 0; point < PREDICT_POINT_COUNT; point++)
        add(list, point_names[point], prediction_json(&stats->prediction[point]));
    return list;
}

struct json_object *pager_report_json(const struct pager_snapshot *experts)
{
    const struct expert_pager_stats stats = experts->total;
    struct json_object *json = json_object_new_object();
    add(json, "slots", json_object_new_int64(stats.n_slot));
    add(json, "experts", json_object_new_int64(stats.n_expert));
    add(json, "resident", json_object_new_int64(stats.n_resident));
    add(json, "slot_bytes", json_object_new_int64((int64_t)stats.slot_bytes));
    add(json, "bank_bytes", json_object_new_int64((int64_t)stats.bank_bytes));
    add(json, "evicted", json_object_new_int64((int64_t)stats.n_evicted));
    add(json, "remisses", json_object_new_int64((int64_t)stats.n_remiss));
    add(json, "decode", counts_json(&stats.decode));
    add(json, "prefill", counts_json(&stats.prefill));
    add(json, "predicted", json_object_new_int64((int64_t)stats.n_predicted));
    add(json, "chosen", json_object_new_int64((int64_t)stats.n_chosen));
    add(json, "recalled", json_object_new_int64((int64_t)stats.n_recalled));
    add(json, "predictions", predictions_json(&stats));
    add(json, "speculated", json_object_new_int64((int64_t)stats.n_speculated));
    add(json, "useful", json_object_new_int64((int64_t)stats.n_useful));
    add(json, "preloaded", json_object_new_int64(stats.n_preloaded));
    add(json, "read_bytes", json_object_new_int64((int64_t)pager_report_read_bytes(&stats)));
    add(json, "wasted", json_object_new_int64((int64_t)stats.n_wasted));
    add(json, "speculated_bytes", json_object_new_int64((int64_t)stats.speculated_bytes));
    add(json, "useful_bytes", json_object_new_int64((int64_t)stats.useful_bytes));
    add(json, "disk_busy_s", json_object_new_double(stats.disk.busy_s));
    if (stats.policy) add(json, "policy", json_object_new_string(stats.policy));
    if (stats.disk.engine) add(json, "io", json_object_new_string(stats.disk.engine));
    add(json, "direct", json_object_new_boolean(stats.disk.direct));
    add(json, "layers", layers_json(experts));
    if (experts->device.n_slot) add(json, "device", device_json(&experts->device));
    return json;
}
