/* lean quantize SRC DST TYPE */
#include "launch/command.h"
#include "launch/model_ref.h"
#include "launch/write_job.h"
#include "proto/base/log.h"
#include "worker/pack/quantizer.h"

static enum lm_status quantize(const struct options *options, const struct gguf_file *source,
                               const struct recipe *recipe, struct lm_error *err)
{
    const bool dry_run = options_flag(options, "dry-run");
    const char *path = options_arg(options, 1);
    const double started_s = log_now_s();
    uint64_t n_bytes = 0;
    enum lm_status status = quantize_plan(source, recipe, &n_bytes, err);
    if (status == LM_OK && !dry_run) status = write_job_check(options, path, err);
    if (status == LM_OK && !dry_run) {
        struct quantize_config config = {
            .recipe = recipe,
            .n_thread = (uint32_t)options_int(options, "threads"),
        };
        status = write_job_catch_signals(&config.is_interrupted, err);
        if (status == LM_OK) status = quantize_file(source, path, &config, err);
    }
    if (status == LM_OK)
        write_job_print(options, dry_run ? NULL : path, n_bytes, log_now_s() - started_s);
    return status;
}

static enum lm_status run_quantize(struct options *options, struct lm_error *err)
{
    const struct recipe *recipe;
    struct gguf_file *source;
    enum lm_status status = recipe_find(options_arg(options, 2), &recipe, err);
    if (status == LM_OK) status = model_ref_open(options, options_arg(options, 0), &source, err);
    if (status != LM_OK) return status;
    status = quantize(options, source, recipe, err);
    gguf_close(source);
    return status;
}

static const struct option_spec options_quantize[] = {
    {"threads", 't', OPTION_INT, "N", .key = "compute.threads", .min = 1, .max = 1024,
     .help = "threads; default: the physical cores. The result does not depend on them"},
    {"force", 'f', OPTION_FLAG, .help = "replace DST if it exists"},
    {"dry-run", 0, OPTION_FLAG, .help = "print the size, write nothing"},
    {0},
};

const struct command command_quantize = {
    .name = "quantize",
    .usage = "SRC DST TYPE",
    .n_arg_min = 3,
    .n_arg_max = 3,
    .summary = "quantize an F32, F16 or BF16 model",
    .details =
        "TYPE is a recipe, Q3_K_M, Q4_K_M or Q5_K_M, which gives sensitive tensors a better type,\n"
        "or a tensor type, Q6_K, Q8_0, ..., for every matrix. SRC may be the first of several\n"
        "split files; DST is one file. The result is the same, byte for byte, on every machine\n"
        "and with any number of threads.",
    .options = (const struct option_spec *const[]){options_quantize, NULL},
    .reads_config = true,
    .run = run_quantize,
};
