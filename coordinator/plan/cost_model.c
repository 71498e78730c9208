/* Bytes over rates. */
#include "coordinator/plan/cost_model.h"

#include <math.h>

#include "coordinator/plan/hit_rate.h"

struct cost_hits cost_model_hits(const struct cost_weights *weights)
{
    if (weights->bank_bytes <= 0) return (struct cost_hits){.vram = 1, .resident = 1};
    return (struct cost_hits){
        .vram = hit_rate_expected(weights->vram_share, 1, weights->used_share),
        .resident = hit_rate_expected(weights->resident_share, 1, weights->used_share)};
}

static void estimate_host(struct cost_estimate *out, const struct cost_machine *machine,
                          const struct cost_weights *weights, double chosen_bytes)
{
    out->dense_s = weights->dense_bytes / machine->dense_bytes_s;
    out->miss_s = chosen_bytes > 0 ? chosen_bytes / machine->expert_bytes_s : 0;
    const double compute_s = out->dense_s + out->miss_s + out->fixed_s;
    out->serial_tok_s = 1 / (compute_s + out->disk_s);
    out->ideal_tok_s = 1 / fmax(compute_s, out->disk_s);
}

static void estimate_device(struct cost_estimate *out, const struct cost_machine *machine,
                            const struct cost_weights *weights, double chosen_bytes,
                            double hit_rate)
{
    const double missed_bytes = (1 - hit_rate) * chosen_bytes;
    out->dense_s = weights->dense_bytes / machine->vram_bytes_s;
    out->hit_s = hit_rate * chosen_bytes / machine->vram_bytes_s;
    out->miss_s = missed_bytes > 0 ? missed_bytes / machine->expert_bytes_s : 0;
    out->link_s = missed_bytes > 0 ? missed_bytes / machine->link_bytes_s : 0;
    const double device_s = out->dense_s + out->hit_s, late_s = out->disk_s + out->fixed_s;
    out->serial_tok_s = 1 / (out->dense_s + fmax(out->hit_s, out->miss_s) + late_s);
    out->link_tok_s = 1 / (device_s + out->link_s + late_s);
    out->ideal_tok_s = 1 / (fmax(fmax(device_s, out->miss_s), out->disk_s) + out->fixed_s);
}

struct cost_estimate cost_model_estimate(const struct cost_machine *machine,
                                         const struct cost_weights *weights,
                                         const struct cost_hits *hits)
{
    const double chosen_bytes = weights->used_share * weights->bank_bytes;
    const double disk_bytes = (1 - hits->resident) * chosen_bytes;
    struct cost_estimate out = {.disk_s = disk_bytes > 0 ? disk_bytes / machine->disk_bytes_s : 0,
                                .fixed_s = weights->n_layer * machine->layer_s + machine->token_s};
    if (machine->vram_bytes_s > 0)
        estimate_device(&out, machine, weights, chosen_bytes, hits->vram);
    else
        estimate_host(&out, machine, weights, chosen_bytes);
    return out;
}
