/* Field by field, both ways. */
#include "worker/pipeline/wire_stats.h"

#include <stdlib.h>
#include <string.h>

#include "worker/pager/policy.h"
#include "worker/pipeline/wire.h"
#include "worker/worker.h"

/* Numbers that the message and struct expert_pager_stats have under the same name. */
#define FOR_EACH_NUMBER(DO)                                                                        \
    DO(n_slot)                                                                                     \
    DO(n_expert)                                                                                   \
    DO(slot_bytes)                                                                                 \
    DO(bank_bytes)                                                                                 \
    DO(n_resident)                                                                                 \
    DO(n_reading)                                                                                  \
    DO(n_free)                                                                                     \
    DO(n_evicted)                                                                                  \
    DO(n_remiss)                                                                                   \
    DO(n_predicted)                                                                                \
    DO(n_chosen)                                                                                   \
    DO(n_recalled)                                                                                 \
    DO(n_speculated)                                                                               \
    DO(n_useful)                                                                                   \
    DO(n_wasted)                                                                                   \
    DO(speculated_bytes)                                                                           \
    DO(useful_bytes)                                                                               \
    DO(n_preloaded)

/* The same of struct device_tier_counts, and of struct device_tier_stats. */
#define FOR_EACH_DEVICE_COUNT(DO)                                                                  \
    DO(n_lookup)                                                                                   \
    DO(n_hit)                                                                                      \
    DO(n_cpu)                                                                                      \
    DO(n_copied)                                                                                   \
    DO(hit_bytes)                                                                                  \
    DO(cpu_bytes)                                                                                  \
    DO(copied_bytes)                                                                               \
    DO(wait_s)                                                                                     \
    DO(cpu_s)
#define FOR_EACH_DEVICE_NUMBER(DO)                                                                 \
    DO(pool_bytes)                                                                                 \
    DO(kv_bytes)                                                                                   \
    DO(n_to_kv)                                                                                    \
    DO(n_to_experts)                                                                               \
    DO(n_slot)                                                                                     \
    DO(n_expert)                                                                                   \
    DO(n_resident)                                                                                 \
    DO(slot_bytes)                                                                                 \
    DO(room_bytes)                                                                                 \
    DO(bank_bytes)                                                                                 \
    DO(n_admitted)                                                                                 \
    DO(n_preloaded)                                                                                \
    DO(background_bytes)                                                                           \
    DO(n_evicted)                                                                                  \
    DO(n_written_back)                                                                             \
    DO(written_back_bytes)                                                                         \
    DO(n_lost)                                                                                     \
    DO(exclusive)                                                                                  \
    DO(asked)                                                                                      \
    DO(mode)                                                                                       \
    DO(gathers)                                                                                    \
    DO(cpu_share)                                                                                  \
    DO(copy_bytes_s)                                                                               \
    DO(cpu_bytes_s)                                                                                \
    DO(n_wasted)                                                                                   \
    DO(predicted_bytes)                                                                            \
    DO(useful_bytes)                                                                               \
    DO(n_warmed)                                                                                   \
    DO(preload_bytes_s)

/* ---- packing ------------------------------------------------------------------------------ */

static void fill_counts(Lean__ExpertCounts *out, const struct expert_pager_counts *counts)
{
    lean__expert_counts__init(out);
    out->has_n_lookup = out->has_n_hit = out->has_n_joined = out->has_n_miss = out->has_miss_bytes =
        out->has_wait_s = true;
    out->n_lookup = counts->n_lookup;
    out->n_hit = counts->n_hit;
    out->n_joined = counts->n_joined;
    out->n_miss = counts->n_miss;
    out->n_in_time = counts->n_in_time;
    out->miss_bytes = counts->miss_bytes;
    out->wait_s = counts->wait_s;
}

/* A layer's messages. */
struct layer_message {
    Lean__ExpertLayer layer;
    Lean__ExpertCounts decode, prefill;
};

static void fill_layer(struct layer_message *out, uint32_t il,
                       const struct expert_pager_layer_stats *stats)
{
    Lean__ExpertLayer *const layer = &out->layer;
    lean__expert_layer__init(layer);
    layer->layer = il;
    fill_counts(layer->decode = &out->decode, &stats->decode);
    fill_counts(layer->prefill = &out->prefill, &stats->prefill);
    layer->has_n_resident = layer->has_slot_class = layer->has_n_class_slot = true;
    layer->n_expert = stats->n_expert;
    layer->n_resident = stats->n_resident;
    layer->slot_class = stats->slot_class;
    layer->n_class_slot = stats->n_class_slot;
}

static void fill_prediction(Lean__ExpertPrediction *out,
                            const struct expert_pager_prediction *prediction)
{
    lean__expert_prediction__init(out);
    out->has_n_named = out->has_n_chosen = out->has_n_recalled = out->has_n_read = out->has_n_used =
        out->has_n_in_time = true;
    out->n_named = prediction->n_named;
    out->n_chosen = prediction->n_chosen;
    out->n_recalled = prediction->n_recalled;
    out->n_read = prediction->n_read;
    out->n_used = prediction->n_used;
    out->n_in_time = prediction->n_in_time;
}

static void fill_total(Lean__Stats *out, const struct expert_pager_stats *stats)
{
    out->layer_begin = stats->layer_begin;
    out->layer_end = stats->layer_end;
    out->policy = (char *)stats->policy;
#define FILL(name)                                                                                 \
    out->has_##name = true;                                                                        \
    out->name = stats->name;
    FOR_EACH_NUMBER(FILL)
#undef FILL
    out->disk_engine = (char *)stats->disk.engine;
    out->has_disk_direct = out->has_probe_shallow_rate = out->has_probe_direct_rate =
        out->has_probe_buffered_rate = out->has_busy_s = true;
    out->disk_direct = stats->disk.direct;
    out->probe_direct_rate = stats->disk.probe_direct_rate;
    out->probe_shallow_rate = stats->disk.probe_shallow_rate;
    out->probe_buffered_rate = stats->disk.probe_buffered_rate;
    out->n_n_read = out->n_read_bytes = READ_PRIORITY_COUNT;
    out->n_read = (uint64_t *)stats->disk.n_read;
    out->read_bytes = (uint64_t *)stats->disk.read_bytes;
    out->busy_s = stats->disk.busy_s;
}

/* What is told of every expert, if it was asked for. */
struct details {
    uint64_t *uses; /* [all experts of the rank], or NULL */
    uint8_t *resident;
    float *heat;
};

static void fill_details(Lean__ExpertLayer *out, const struct expert_pager *pager,
                         const struct details *details, size_t at)
{
    const uint32_t n = out->n_expert;
    for (uint32_t ie = 0; ie < n; ie++) {
        const struct expert_key key = {out->layer, ie};
        if (details->uses) details->uses[at + ie] = expert_pager_uses(pager, key);
        if (details->resident) details->resident[at + ie] = expert_pager_is_resident(pager, key);
        if (details->heat) details->heat[at + ie] = expert_pager_heat(pager, key);
    }
    out->n_uses = details->uses ? n : 0;
    if (details->uses) out->uses = details->uses + at;
    out->has_resident = details->resident != NULL;
    if (details->resident) out->resident = (ProtobufCBinaryData){n, details->resident + at};
    out->n_heat = details->heat ? n : 0;
    if (details->heat) out->heat = details->heat + at;
}

static void fill_edges(Lean__Stats *out, const struct edges_stats *edges)
{
    out->has_sent_bytes = out->has_received_bytes = out->has_send_wait_s = out->has_receive_wait_s =
        true;
    out->has_sent_device_bytes = out->has_received_device_bytes = true;
    out->sent_device_bytes = edges->sent_device_bytes;
    out->received_device_bytes = edges->received_device_bytes;
    out->sent_bytes = edges->sent_bytes;
    out->received_bytes = edges->received_bytes;
    out->send_wait_s = edges->send_wait_s;
    out->receive_wait_s = edges->receive_wait_s;
}

static void fill_device_counts(Lean__DeviceCounts *out, const struct device_tier_counts *counts)
{
    lean__device_counts__init(out);
#define FILL(name) out->name = counts->name;
    FOR_EACH_DEVICE_COUNT(FILL)
#undef FILL
}

static void fill_device(Lean__DeviceExperts *out, const struct device_tier_stats *stats)
{
#define FILL(name) out->name = stats->name;
    FOR_EACH_DEVICE_NUMBER(FILL)
#undef FILL
}

static enum lm_status pack(struct frame **out, const struct worker *worker,
                           const struct pager_snapshot *snapshot, const struct details *details,
                           struct lm_error *err)
{
    const struct expert_pager *const pager = worker_pager(worker);
    const struct edges_stats edges = worker_edges(worker);
    Lean__Stats message = LEAN__STATS__INIT;
    Lean__ExpertCounts decode, prefill;
    Lean__DeviceExperts device = LEAN__DEVICE_EXPERTS__INIT;
    Lean__DeviceCounts device_decode, device_prefill;
    Lean__ExpertPrediction device_prediction;
    Lean__ExpertPrediction prediction[PREDICT_POINT_COUNT];
    Lean__ExpertPrediction *predictions[PREDICT_POINT_COUNT];
    const struct expert_pager_stats *total = &snapshot->total;
    const size_t n = total->layer_end - total->layer_begin;
    struct layer_message *const layers = calloc(n, sizeof(*layers));
    Lean__ExpertLayer **const list = calloc(n, sizeof(Lean__ExpertLayer *));
    enum lm_status status = LM_OK;
    if (!layers || !list) status = lm_fail(err, LM_E_NO_MEM, "no memory for counters");
    size_t n_expert = 0;
    fill_total(&message, total);
    fill_edges(&message, &edges);
    fill_counts(message.decode = &decode, &total->decode);
    fill_counts(message.prefill = &prefill, &total->prefill);
    fill_device(&device, &snapshot->device);
    fill_device_counts(device.decode = &device_decode, &snapshot->device.decode);
    fill_device_counts(device.prefill = &device_prefill, &snapshot->device.prefill);
    fill_prediction(device.prediction = &device_prediction, &snapshot->device.prediction);
    if (snapshot->device.n_slot) message.device = &device;
    for (int i = 0; i < PREDICT_POINT_COUNT; i++)
        fill_prediction(predictions[i] = &prediction[i], &total->prediction[i]);
    message.n_prediction = PREDICT_POINT_COUNT;
    message.prediction = predictions;
    message.n_token = expert_pager_n_token(pager);
    message.layer = list;
    for (uint32_t il = total->layer_begin; status == LM_OK && il < total->layer_end; il++) {
        const struct expert_pager_layer_stats *stats = &snapshot->layer[il];
        if (!stats->n_expert) continue;
        struct layer_message *const layer = &layers[message.n_layer];
        fill_layer(layer, il, stats);
        list[message.n_layer++] = &layer->layer;
        fill_details(&layer->layer, pager, details, n_expert);
        n_expert += stats->n_expert;
    }
    if (status == LM_OK) status = wire_pack(out, LEAN__FRAME_TYPE__STATS, &message.base, err);
    free(list);
    free(layers);
    return status;
}

enum lm_status wire_pack_stats(struct frame **out, const struct worker *worker, bool with_uses,
                               bool with_map, struct lm_error *err)
{
    struct pager_snapshot *const snapshot = malloc(sizeof(*snapshot));
    struct details details = {.uses = NULL};
    enum lm_status status = LM_OK;
    if (!snapshot) return lm_fail(err, LM_E_NO_MEM, "no memory for counters");
    pager_snapshot_take(snapshot, worker_pager(worker), worker_tier(worker));
    const size_t n = snapshot->total.n_expert + 1;
    if (with_uses) details.uses = calloc(n, sizeof(*details.uses));
    if (with_map) details.resident = calloc(n, sizeof(*details.resident));
    if (with_map) details.heat = calloc(n, sizeof(*details.heat));
    if ((with_uses && !details.uses) || (with_map && (!details.resident || !details.heat)))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for counters");
    if (status == LM_OK) status = pack(out, worker, snapshot, &details, err);
    free(details.heat);
    free(details.resident);
    free(details.uses);
    free(snapshot);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------ */

static bool is_of_model(const Lean__Stats *stats, const struct hparams *hp)
{
    if (stats->device && (stats->device->mode > MISS_HYBRID || stats->device->asked > MISS_HYBRID))
        return false;
    if (stats->layer_begin > stats->layer_end || stats->layer_end > hp->n_layer + hp->n_layer_mtp ||
        stats->n_prediction != PREDICT_POINT_COUNT || stats->n_n_read != READ_PRIORITY_COUNT ||
        stats->n_read_bytes != READ_PRIORITY_COUNT)
        return false;
    for (size_t i = 0; i < stats->n_layer; i++) {
        const Lean__ExpertLayer *layer = stats->layer[i];
        if (layer->layer < stats->layer_begin || layer->layer >= stats->layer_end ||
            layer->n_expert != hp->n_expert || (layer->n_uses && layer->n_uses != hp->n_expert) ||
            (layer->has_resident && layer->resident.len != hp->n_expert) ||
            (layer->n_heat && layer->n_heat != hp->n_expert))
            return false;
    }
    return true;
}

enum lm_status wire_unpack_stats(Lean__Stats **out, const struct frame *frame,
                                 const struct hparams *hp, struct lm_error *err)
{
    ProtobufCMessage *message;
    const enum lm_status status = wire_unpack(&message, &lean__stats__descriptor, frame, err);
    if (status != LM_OK) return status;
    *out = (Lean__Stats *)message;
    if (is_of_model(*out, hp)) return LM_OK;
    lean__stats__free_unpacked(*out, NULL);
    return lm_fail(err, LM_E_FORMAT, "counters of another model");
}

static struct expert_pager_counts read_counts(const Lean__ExpertCounts *counts)
{
    return (struct expert_pager_counts){.n_lookup = counts->n_lookup,
                                        .n_hit = counts->n_hit,
                                        .n_joined = counts->n_joined,
                                        .n_miss = counts->n_miss,
                                        .n_in_time = counts->n_in_time,
                                        .miss_bytes = counts->miss_bytes,
                                        .wait_s = counts->wait_s};
}

static struct expert_pager_prediction read_prediction(const Lean__ExpertPrediction *prediction)
{
    return (struct expert_pager_prediction){.n_named = prediction->n_named,
                                            .n_chosen = prediction->n_chosen,
                                            .n_recalled = prediction->n_recalled,
                                            .n_read = prediction->n_read,
                                            .n_used = prediction->n_used,
                                            .n_in_time = prediction->n_in_time};
}

static struct device_tier_counts read_device_counts(const Lean__DeviceCounts *counts)
{
    struct device_tier_counts out;
#define READ(name) out.name = counts->name;
    FOR_EACH_DEVICE_COUNT(READ)
#undef READ
    return out;
}

static struct device_tier_stats read_device(const Lean__DeviceExperts *device)
{
    struct device_tier_stats out = {.n_slot = 0};
    if (!device) return out;
#define READ(name) out.name = device->name;
    FOR_EACH_DEVICE_NUMBER(READ)
#undef READ
    out.decode = read_device_counts(device->decode);
    out.prefill = read_device_counts(device->prefill);
    out.prediction = read_prediction(device->prediction);
    return out;
}

/* Names outlive the message. */
static const char *engine_name(const char *name)
{
    static const char *const names[] = {"io_uring", "threads"};
    for (size_t i = 0; name && i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i])) return names[i];
    return NULL;
}

void wire_read_stats(struct pager_snapshot *out, const Lean__Stats *stats)
{
    struct expert_pager_stats *const total = &out->total;
    const struct cache_policy *policy = stats->policy ? policy_find(stats->policy) : NULL;
    *total = (struct expert_pager_stats){.layer_begin = stats->layer_begin,
                                         .layer_end = stats->layer_end,
                                         .decode = read_counts(stats->decode),
                                         .prefill = read_counts(stats->prefill),
                                         .policy = policy ? policy->name : NULL};
#define READ(name) total->name = stats->name;
    FOR_EACH_NUMBER(READ)
#undef READ
    for (int i = 0; i < PREDICT_POINT_COUNT; i++)
        total->prediction[i] = read_prediction(stats->prediction[i]);
    total->disk.engine = engine_name(stats->disk_engine);
    total->disk.direct = stats->disk_direct;
    total->disk.probe_direct_rate = stats->probe_direct_rate;
    total->disk.probe_shallow_rate = stats->probe_shallow_rate;
    total->disk.probe_buffered_rate = stats->probe_buffered_rate;
    memcpy(total->disk.n_read, stats->n_read, sizeof(total->disk.n_read));
    memcpy(total->disk.read_bytes, stats->read_bytes, sizeof(total->disk.read_bytes));
    total->disk.busy_s = stats->busy_s;
    out->device = read_device(stats->device);
    for (uint32_t il = stats->layer_begin; il < stats->layer_end; il++)
        out->layer[il] = (struct expert_pager_layer_stats){.n_expert = 0};
    for (size_t i = 0; i < stats->n_layer; i++) {
        const Lean__ExpertLayer *layer = stats->layer[i];
        out->layer[layer->layer] =
            (struct expert_pager_layer_stats){.decode = read_counts(layer->decode),
                                              .prefill = read_counts(layer->prefill),
                                              .n_expert = layer->n_expert,
                                              .n_resident = layer->n_resident,
                                              .slot_class = layer->slot_class,
                                              .n_class_slot = layer->n_class_slot};
    }
}
