/* Bytes over rates. */
#include "launch/bench/cost_model.h"

#include <math.h>

#include "coordinator/plan/hit_rate.h"

struct cost_estimate cost_model_estimate(const struct cost_machine *machine,
                                         const struct cost_weights *weights)
{
    struct cost_estimate out = {.hit_rate = 1};
    const double chosen_bytes = weights->used_share * weights->bank_bytes;
    if (weights->bank_bytes > 0 && weights->resident_share < 1)
        out.hit_rate = hit_rate_expected(weights->resident_share, 1, weights->used_share);
    out.memory_s = (weights->dense_bytes + chosen_bytes) / machine->memory_bytes_s;
    out.disk_s = (1 - out.hit_rate) * chosen_bytes / machine->disk_bytes_s;
    out.serial_tok_s = 1 / (out.memory_s + out.disk_s);
    out.ideal_tok_s = 1 / fmax(out.memory_s, out.disk_s);
    return out;
}
