/* lean bench: measurements. Its modes are in launch/bench/. */
#include <string.h>

#include "launch/bench/modes.h"
#include "launch/command.h"

static bool stays_here(const struct options *options)
{
    return bench_engine_has_arms(options);
}

static enum lm_status run_bench(struct options *options, struct lm_error *err)
{
    return bench_engine(options, err);
}

const struct command command_bench = {
    .name = "bench",
    .usage = "[MODEL]",
    .n_arg_min = 0,
    .n_arg_max = 1,
    .summary = "measure how fast a model is",
    .details =
        "  [MODEL]  reads prompts (pp512) and generates (tg128), some tokens deep in the context\n"
        "           (@ d4096), several sequences at once (x8)\n\n"
        "Tests and engine options take lists and ranges: 1,2,4 or 8-32+8 or 8G-64G*2; every\n"
        "combination is measured, on the same tokens. Timed are steps of the model; neither\n"
        "sampling nor tokenization. Rates are means with the standard deviation of the sample.\n"
        "What could be measured is printed also when something else failed.",
    .options =
        (const struct option_spec *const[]){options_bench, options_lists, options_bench_tests,
                                            options_engine, options_cluster, NULL},
    .reads_config = true,
    .takes_ranks = true,
    .stays_here = stays_here,
    .run = run_bench,
};
