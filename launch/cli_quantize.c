/* lean quantize SRC DST TYPE */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/command.h"
#include "proto/base/log.h"
#include "worker/pack/quantizer.h"

static volatile sig_atomic_t is_interrupted;

static void interrupt(int signal_number)
{
    (void)signal_number;
    is_interrupted = 1;
}

static void print_result(const struct options *options, const char *path, uint64_t n_bytes,
                         double seconds)
{
    if (options_flag(options, "json")) {
        struct json_object *event = json_object_new_object();
        json_object_object_add(event, "event", json_object_new_string("result"));
        json_object_object_add(event, "path", json_object_new_string(path));
        json_object_object_add(event, "bytes", json_object_new_uint64(n_bytes));
        json_object_object_add(event, "seconds", json_object_new_double(seconds));
        puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
        json_object_put(event);
        return;
    }
    char size[24], time[24];
    printf("%s  %s  %s\n", path, log_format_bytes(n_bytes, size),
           log_format_seconds(seconds, time));
}

static enum lm_status quantize(const struct options *options, const struct gguf_file *source,
                               const struct recipe *recipe, struct lm_error *err)
{
    const char *path = options_arg(options, 1);
    const double started_s = log_now_s();
    uint64_t n_bytes = 0;
    enum lm_status status = quantize_plan(source, recipe, &n_bytes, err);
    if (status == LM_OK && !options_flag(options, "dry-run")) {
        if (!options_flag(options, "force") && !access(path, F_OK)) {
            lm_fail(err, LM_E_USAGE, "%s: exists", path);
            return lm_hint(err, "--force replaces it");
        }
        signal(SIGINT, interrupt);
        signal(SIGTERM, interrupt);
        status = quantize_file(source, path,
                               &(struct quantize_config){
                                   .recipe = recipe,
                                   .n_thread = (uint32_t)options_int(options, "threads"),
                                   .is_interrupted = &is_interrupted,
                               },
                               err);
    }
    if (status == LM_OK) print_result(options, path, n_bytes, log_now_s() - started_s);
    return status;
}

static enum lm_status run_quantize(struct options *options, struct lm_error *err)
{
    const struct recipe *recipe;
    struct gguf_file *source;
    if (options_n_arg(options) != 3)
        return lm_fail(err, LM_E_USAGE, "quantize takes SRC, DST and TYPE, got %zu arguments",
                       options_n_arg(options));
    enum lm_status status = recipe_find(options_arg(options, 2), &recipe, err);
    if (status == LM_OK) status = gguf_open(&source, options_arg(options, 0), err);
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
    .summary = "quantize an F32, F16 or BF16 model",
    .details =
        "TYPE is a recipe, Q3_K_M, Q4_K_M or Q5_K_M, which gives sensitive tensors a better type,\n"
        "or a tensor type, Q6_K, Q8_0, ..., for every matrix. SRC may be the first of several\n"
        "split files; DST is one file. The result is the same, byte for byte, on every machine\n"
        "and with any number of threads.",
    .options = (const struct option_spec *const[]){options_quantize, NULL},
    .run = run_quantize,
};
