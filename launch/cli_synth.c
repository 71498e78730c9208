/* lean synth ARCH|MODEL QUANT -o FILE */
#include "launch/command.h"
#include "launch/write_job.h"
#include "proto/base/log.h"
#include "worker/pack/synth.h"

/* A number that the shape has and an option may change. */
static void override(const struct options *options, const char *name, uint32_t *value)
{
    if (options_given(options, name)) *value = (uint32_t)options_int(options, name);
}

static enum lm_status read_config(const struct options *options, struct synth_config *config,
                                  struct lm_error *err)
{
    struct synth_shape *shape = &config->shape;
    enum lm_status status = synth_shape_find(options_arg(options, 0), shape, err);
    if (status == LM_OK) status = recipe_find(options_arg(options, 1), &config->recipe, err);
    if (status != LM_OK) return status;
    if (!shape->n_expert &&
        (options_given(options, "experts") || options_given(options, "experts-used")))
        return lm_fail(err, LM_E_USAGE, "%s has no experts", shape->name);
    override(options, "layers", &shape->n_layer);
    override(options, "experts", &shape->n_expert);
    override(options, "experts-used", &shape->n_expert_used);
    override(options, "vocab", &shape->n_vocab);
    config->seed = (uint64_t)options_int(options, "seed");
    config->skew = (float)options_float(options, "skew");
    config->similarity = (float)options_float(options, "similarity");
    config->hollow = options_flag(options, "hollow");
    config->mtp = options_flag(options, "mtp");
    return LM_OK;
}

static enum lm_status run_synth(struct options *options, struct lm_error *err)
{
    struct synth_config config = {0};
    const bool dry_run = options_flag(options, "dry-run");
    const char *path = dry_run ? NULL : options_string(options, "output");
    const double started_s = log_now_s();
    uint64_t n_bytes = 0;
    enum lm_status status = read_config(options, &config, err);
    if (status != LM_OK) return status;
    if (!path && !dry_run) return lm_fail(err, LM_E_USAGE, "no output file given, use -o FILE");
    if (path) status = write_job_check(options, path, err);
    if (status == LM_OK) status = write_job_catch_signals(&config.is_interrupted, err);
    if (status == LM_OK) status = synth_write(path, &config, &n_bytes, err);
    if (status == LM_OK) write_job_print(options, path, n_bytes, log_now_s() - started_s);
    return status;
}

static const struct option_spec options_synth[] = {
    {"output", 'o', OPTION_PATH, "FILE", .help = "the file to write"},
    {"force", 'f', OPTION_FLAG, .help = "replace FILE if it exists"},
    {"dry-run", 0, OPTION_FLAG, .help = "print the size, write nothing"},
    {"hollow", 0, OPTION_FLAG,
     .help = "weights are holes, which take no room: a file for lean inspect --memory"},
    {"seed", 0, OPTION_INT, "N", .def = "0", .help = "same seed and arguments: same bytes"},
    {"skew", 0, OPTION_FLOAT, "S", .def = "0", .min = 0, .max = 4,
     .help = "how unevenly experts are chosen; 0: evenly, 1: a tenth of them get most"},
    {"similarity", 0, OPTION_FLOAT, "R", .def = "0", .min = 0, .max = 1,
     .help = "correlation of a layer's router with that of the layer before"},
    {"layers", 0, OPTION_INT, "N", .min = 1, .max = 1000, .help = "layers, instead of the model's"},
    {"experts", 0, OPTION_INT, "N", .min = 1, .max = 65536, .help = "experts of a layer"},
    {"experts-used", 0, OPTION_INT, "N", .min = 1, .max = 1024, .help = "experts per token"},
    {"vocab", 0, OPTION_INT, "N", .min = 1, .max = 16777216, .help = "entries of the vocabulary"},
    {"mtp", 0, OPTION_FLAG, .help = "add a layer for multi-token prediction"},
    {0},
};

const struct command command_synth = {
    .name = "synth",
    .usage = "ARCH|MODEL QUANT -o FILE",
    .n_arg_min = 2,
    .n_arg_max = 2,
    .summary = "write a model of random weights, for tests and measurements",
    .details =
        "ARCH makes a tiny model: qwen35moe, qwen3next, afmoe, qwen3moe, qwen35, qwen3, qwen2 or\n"
        "llama. MODEL has the true shape of one: qwen3.5-35b-a3b, qwen3.5-122b-a10b,\n"
        "qwen3.5-397b-a17b, qwen3-coder-next, trinity-large-thinking or llama-1b. QUANT is a type\n"
        "of lean quantize. Its answers are noise; its speed and memory are those of the model.",
    .options = (const struct option_spec *const[]){options_synth, NULL},
    .run = run_synth,
};
