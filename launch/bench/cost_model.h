/* How fast a token can be decoded, from the rates of a machine and the bytes of a model, before
 * anything has run: each token reads the weights that all tokens use and the experts that it chose,
 * from memory; those that are not there come from the disk first.
 *
 *   serial  one after the other: nothing is read ahead
 *   ideal   the disk works all the time, beside the arithmetic
 *
 * Hits are expected by coordinator/plan/hit_rate.h. Processors alone: of the tiers in the plan's
 * cost model those that this program has on this machine. An upper bound: a dense 1B on two cores
 * decodes at 0.56 of it, whose kernels reach 0.63 of memory's roof. */
#ifndef LEAN_LAUNCH_BENCH_COST_MODEL_H
#define LEAN_LAUNCH_BENCH_COST_MODEL_H

struct cost_machine {
    double memory_bytes_s, disk_bytes_s;
};

struct cost_weights {
    double dense_bytes;    /* that every token reads */
    double bank_bytes;     /* of all routed experts; 0: there are none */
    double used_share;     /* experts of a token over those of a layer */
    double resident_share; /* of the bank in memory, 0 to 1 */
};

struct cost_estimate {
    double hit_rate;
    double memory_s, disk_s; /* of one token */
    double serial_tok_s, ideal_tok_s;
};

struct cost_estimate cost_model_estimate(const struct cost_machine *machine,
                                         const struct cost_weights *weights);

#endif
