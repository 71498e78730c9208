/* lean bench: measurements. Its modes are in launch/bench/. */
#include <string.h>

#include "launch/bench/modes.h"
#include "launch/command.h"

struct mode {
    const char *name; /* first argument; NULL: a model */
    size_t n_arg_max;
    const struct option_spec *const *options; /* NULL-terminated: of bench's own those it takes */
    enum lm_status (*run)(struct options *options, struct lm_error *err);
};

static const struct mode modes[] = {
    {"serve", 1, (const struct option_spec *const[]){options_bench_load, NULL}, bench_load},
    {"sweep", 2, (const struct option_spec *const[]){NULL}, bench_sweep},
    {"report", 3, (const struct option_spec *const[]){NULL}, bench_report},
    {"predict", 3, (const struct option_spec *const[]){options_bench_predict, NULL}, bench_predict},
    {"tune", 2, (const struct option_spec *const[]){options_bench_tune, NULL}, bench_tune},
    {NULL, 1, (const struct option_spec *const[]){options_bench, options_bench_tests, NULL},
     bench_engine},
};

/* Options that several modes take. */
static const char *const shared[] = {"output", "seed", "compare", "threshold"};

static const struct mode *find_mode(const struct options *options)
{
    const struct mode *mode = modes;
    while (mode->name && (!options_n_arg(options) || strcmp(mode->name, options_arg(options, 0))))
        mode++;
    return mode;
}

/* Only a model is for several ranks; with several arms each is a call of its own. */
static bool stays_here(const struct options *options)
{
    return find_mode(options)->name || bench_engine_has_arms(options);
}

static bool takes(const struct mode *mode, const struct option_spec *table,
                  const struct option_spec *spec)
{
    bool found = false;
    for (size_t i = 0; mode->options[i]; i++)
        found |= mode->options[i] == table;
    for (size_t i = 0; i < sizeof(shared) / sizeof(shared[0]); i++)
        found |= !strcmp(spec->name, shared[i]);
    return found;
}

/* An option of another mode is a mistake. */
static enum lm_status check_options(const struct mode *mode, const struct options *options,
                                    struct lm_error *err)
{
    static const struct option_spec *const tables[] = {options_bench,      options_bench_tests,
                                                       options_bench_load, options_bench_predict,
                                                       options_bench_tune, NULL};
    for (size_t t = 0; tables[t]; t++)
        for (const struct option_spec *spec = tables[t]; spec->name; spec++)
            if (options_given(options, spec->name) && !takes(mode, tables[t], spec))
                return lm_fail(err, LM_E_USAGE, "bench%s%s does not take --%s",
                               mode->name ? " " : "", mode->name ? mode->name : "", spec->name);
    if (options_n_arg(options) > mode->n_arg_max)
        return lm_fail(err, LM_E_USAGE, "bench%s%s takes at most %zu argument%s",
                       mode->name ? " " : "", mode->name ? mode->name : "", mode->n_arg_max,
                       mode->n_arg_max == 1 ? "" : "s");
    return LM_OK;
}

static enum lm_status run_bench(struct options *options, struct lm_error *err)
{
    const struct mode *mode = find_mode(options);
    const enum lm_status status = check_options(mode, options, err);
    return status == LM_OK ? mode->run(options, err) : status;
}

const struct command command_bench = {
    .name = "bench",
    .usage = "[MODEL] | serve | sweep FILE | report DIR | predict MODEL | tune MODEL",
    .n_arg_min = 0,
    .n_arg_max = 3,
    .words = "serve|sweep|report|predict|tune",
    .summary = "measure how fast a model or a server is",
    .details =
        "  [MODEL]          reads prompts (pp512) and generates (tg128), some tokens deep in the\n"
        "                   context (@ d4096), several sequences at once (x8)\n"
        "  serve --url URL  sends requests to a server and tells when what came back\n"
        "  sweep FILE       measures what a file describes (configs/sweeps), goes on where it was\n"
        "                   interrupted, and leaves results.jsonl and results.csv in DIR\n"
        "  report DIR       makes a page of that, and Markdown; --trace adds the best hits "
        "possible\n"
        "                   of a routing trace, --profile a picture of it, and reports of loads "
        "are\n"
        "                   DIR/load.json. With --compare OLD: what DIR differs in, exit code 10 "
        "if\n"
        "                   it is slower for certain and by more than --threshold percent\n"
        "  predict MODEL [QUANT]  how fast a model would decode on this machine, without having\n"
        "                   it, in budgets of --ram and, with a device, --vram; MODEL is a name "
        "of\n"
        "                   the registry, its end (122b), or as in lean synth\n"
        "  tune [MODEL]     measures memory, disk and link, tries engine options in alternating\n"
        "                   runs, and keeps what is more than 3% faster, for this model on this\n"
        "                   machine: a default of run, serve, eval and bench from then on\n\n"
        "Tests of a model and engine options take lists and ranges: 1,2,4 or 8-32+8 or 8G-64G*2;\n"
        "every combination is measured, on the same tokens. Timed are steps of the model; neither\n"
        "sampling nor tokenization. Given tokens are none that a draft could have guessed: drafts\n"
        "are measured with --greedy. Rates are means with the standard deviation of the sample.\n"
        "What could be measured is printed also when something else failed.\n\n"
        "Of a server: ttft is the time until the first text, itl each gap between texts, tpot\n"
        "(end - first) / (tokens - 1), e2el the time to the end, all at this end of the wire.",
    .options = (const struct option_spec *const[]){options_bench, options_bench_load,
                                                   options_bench_predict, options_bench_tune,
                                                   options_lists, options_bench_tests,
                                                   options_engine, options_cluster, NULL},
    .reads_config = true,
    .takes_ranks = true,
    .stays_here = stays_here,
    .run = run_bench,
};
