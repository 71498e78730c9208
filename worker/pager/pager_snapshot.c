/* Field by field. */
#include "worker/pager/pager_snapshot.h"

#include <assert.h>

/* Who adds a counter adds it here too, and to worker/pipeline/wire_stats.c. */
static_assert(sizeof(struct expert_pager_stats) == 456 &&
                  sizeof(struct expert_pager_layer_stats) == 128 &&
                  sizeof(struct device_tier_stats) == 408,
              "all counters are summed");

void pager_snapshot_take(struct pager_snapshot *out, const struct expert_pager *pager,
                         const struct device_tier *tier)
{
    out->device = tier ? device_tier_stats(tier) : (struct device_tier_stats){.n_slot = 0};
    out->total = expert_pager_stats(pager);
    for (uint32_t il = out->total.layer_begin; il < out->total.layer_end; il++)
        out->layer[il] = expert_pager_layer_stats(pager, il);
}

static void add_counts(struct expert_pager_counts *sum, const struct expert_pager_counts *next)
{
    sum->n_lookup += next->n_lookup;
    sum->n_hit += next->n_hit;
    sum->n_joined += next->n_joined;
    sum->n_miss += next->n_miss;
    sum->miss_bytes += next->miss_bytes;
    sum->n_in_time += next->n_in_time;
    sum->wait_s += next->wait_s;
}

static void add_prediction(struct expert_pager_prediction *sum,
                           const struct expert_pager_prediction *next)
{
    sum->n_named += next->n_named;
    sum->n_chosen += next->n_chosen;
    sum->n_recalled += next->n_recalled;
    sum->n_read += next->n_read;
    sum->n_used += next->n_used;
    sum->n_in_time += next->n_in_time;
}

static double slower(double a, double b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

static void add_disk(struct disk_reader_stats *sum, const struct disk_reader_stats *next)
{
    if (!sum->engine) {
        sum->engine = next->engine;
        sum->direct = next->direct;
    }
    sum->probe_direct_rate = slower(sum->probe_direct_rate, next->probe_direct_rate);
    sum->probe_shallow_rate = slower(sum->probe_shallow_rate, next->probe_shallow_rate);
    sum->probe_buffered_rate = slower(sum->probe_buffered_rate, next->probe_buffered_rate);
    for (int i = 0; i < READ_PRIORITY_COUNT; i++) {
        sum->n_read[i] += next->n_read[i];
        sum->read_bytes[i] += next->read_bytes[i];
    }
    sum->busy_s += next->busy_s;
}

static void add_device_counts(struct device_tier_counts *sum, const struct device_tier_counts *next)
{
    sum->n_lookup += next->n_lookup;
    sum->n_hit += next->n_hit;
    sum->n_cpu += next->n_cpu;
    sum->n_copied += next->n_copied;
    sum->hit_bytes += next->hit_bytes;
    sum->cpu_bytes += next->cpu_bytes;
    sum->copied_bytes += next->copied_bytes;
    sum->wait_s += next->wait_s;
    sum->cpu_s += next->cpu_s;
}

static void add_device(struct device_tier_stats *sum, const struct device_tier_stats *next)
{
    if (!next->n_slot) return;
    if (!sum->n_slot) {
        *sum = *next;
        return;
    }
    add_device_counts(&sum->decode, &next->decode);
    add_device_counts(&sum->prefill, &next->prefill);
    sum->pool_bytes += next->pool_bytes;
    sum->kv_bytes += next->kv_bytes;
    sum->n_to_kv += next->n_to_kv;
    sum->n_to_experts += next->n_to_experts;
    sum->n_slot += next->n_slot;
    sum->n_expert += next->n_expert;
    sum->n_resident += next->n_resident;
    sum->slot_bytes += next->slot_bytes;
    sum->room_bytes += next->room_bytes;
    sum->bank_bytes += next->bank_bytes;
    sum->n_admitted += next->n_admitted;
    sum->n_preloaded += next->n_preloaded;
    sum->n_warmed += next->n_warmed;
    sum->background_bytes += next->background_bytes;
    sum->n_evicted += next->n_evicted;
    sum->n_written_back += next->n_written_back;
    sum->written_back_bytes += next->written_back_bytes;
    sum->n_lost += next->n_lost;
    sum->exclusive |= next->exclusive;
    add_prediction(&sum->prediction, &next->prediction);
    sum->n_wasted += next->n_wasted;
    sum->predicted_bytes += next->predicted_bytes;
    sum->useful_bytes += next->useful_bytes;
    sum->preload_bytes_s = slower(sum->preload_bytes_s, next->preload_bytes_s);
    sum->copy_bytes_s = slower(sum->copy_bytes_s, next->copy_bytes_s);
    sum->cpu_bytes_s = slower(sum->cpu_bytes_s, next->cpu_bytes_s);
}

void pager_snapshot_add(struct pager_snapshot *sum, const struct pager_snapshot *next)
{
    struct expert_pager_stats *const a = &sum->total;
    const struct expert_pager_stats *const b = &next->total;
    add_counts(&a->decode, &b->decode);
    add_counts(&a->prefill, &b->prefill);
    if (!a->policy) a->policy = b->policy;
    a->n_slot += b->n_slot;
    a->n_expert += b->n_expert;
    a->slot_bytes += b->slot_bytes;
    a->bank_bytes += b->bank_bytes;
    a->n_resident += b->n_resident;
    a->n_reading += b->n_reading;
    a->n_free += b->n_free;
    a->n_evicted += b->n_evicted;
    a->n_remiss += b->n_remiss;
    for (int i = 0; i < PREDICT_POINT_COUNT; i++)
        add_prediction(&a->prediction[i], &b->prediction[i]);
    a->n_predicted += b->n_predicted;
    a->n_chosen += b->n_chosen;
    a->n_recalled += b->n_recalled;
    a->n_speculated += b->n_speculated;
    a->n_useful += b->n_useful;
    a->n_wasted += b->n_wasted;
    a->speculated_bytes += b->speculated_bytes;
    a->useful_bytes += b->useful_bytes;
    a->n_preloaded += b->n_preloaded;
    add_disk(&a->disk, &b->disk);
    add_device(&sum->device, &next->device);
    for (uint32_t il = b->layer_begin; il < b->layer_end; il++)
        sum->layer[il] = next->layer[il];
    if (b->layer_end > a->layer_end) a->layer_end = b->layer_end;
    if (b->layer_begin < a->layer_begin) a->layer_begin = b->layer_begin;
}
