/* lean profile: how often a model's experts are chosen: recorded from text, shown, summed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/text/tokenizer.h"
#include "launch/command.h"
#include "launch/engine.h"
#include "launch/model_ref.h"
#include "launch/terminal/interrupt.h"
#include "launch/write_job.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "proto/model/weights_sample.h"
#include "worker/pager/heat_profile.h"
#include "worker/pager/route_log.h"

enum { TEXT_BYTES_MAX = 1 << 30 };

static const struct option_spec profile_options[] = {
    {"output", 'o', OPTION_PATH, "FILE", .help = "the profile to write"},
    {"text", 0, OPTION_PATH, "FILE", .help = "with `record`: the text; default: standard input"},
    {"force", 'f', OPTION_FLAG, .help = "replace FILE if it exists"},
    {0},
};

/* ---- record ------------------------------------------------------------------------------- */

static void cancel(void *engine)
{
    engine_cancel(engine);
}

/* Asked for so that the last layer, too, is computed for every token. */
static void ignore_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    (void)context, (void)pos, (void)logits, (void)n_vocab;
}

static enum lm_status run_ids(struct engine *engine, const int32_t *ids, size_t n,
                              struct lm_error *err)
{
    const size_t n_ctx = engine_n_ctx(engine);
    struct log_bar bar;
    enum lm_status status = LM_OK;
    log_bar_begin(&bar, "recording", "tok", n);
    for (size_t at = 0; at < n && status == LM_OK; at += n_ctx) {
        struct generate_result result;
        const struct generate_request request = {.prompt = ids + at,
                                                 .n_prompt = n - at < n_ctx ? n - at : n_ctx,
                                                 .sampling = sampling_params_default(),
                                                 .on_logits = ignore_logits};
        status = engine_generate(engine, &request, &result, err);
        if (interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END))
            status = lm_fail(err, LM_E_INTERRUPTED, "interrupted");
        log_bar_update(&bar, at + request.n_prompt);
    }
    log_bar_end(&bar);
    return status;
}

static enum lm_status run_text(struct engine *engine, const char *path, struct lm_error *err)
{
    const char *name = path ? path : "standard input";
    char *text;
    size_t n_text, n_ids;
    int32_t *ids;
    enum lm_status status = path
                                ? read_all_path(path, TEXT_BYTES_MAX, &text, &n_text, err)
                                : read_all(STDIN_FILENO, name, TEXT_BYTES_MAX, &text, &n_text, err);
    if (status != LM_OK) return status;
    status =
        tokenizer_encode(engine_tokenizer(engine), text, n_text, false, true, &ids, &n_ids, err);
    free(text);
    if (status != LM_OK) return status;
    if (!n_ids)
        status = lm_fail(err, LM_E_USAGE, "%s: no text to record from", name);
    else
        status = interrupt_begin(cancel, engine, err);
    if (status == LM_OK) {
        status = run_ids(engine, ids, n_ids, err);
        interrupt_end();
    }
    free(ids);
    return status;
}

static void count_uses(struct heat_profile *profile, const struct route_log *log)
{
    for (size_t i = 0; i < log->n_step; i++) {
        profile->n_token += log->step[i].n_row;
        for (uint32_t k = 0; k < log->step[i].n_layer; k++) {
            const struct route_choice *choice = &log->step[i].layer[k];
            double *uses = profile->uses + (size_t)choice->layer * profile->n_expert;
            for (size_t c = 0; c < (size_t)choice->n_row * log->n_expert_used; c++)
                uses[choice->expert[c]]++;
        }
    }
}

/* Runs the text with a routing trace, and returns the profile of the model with its uses. */
static enum lm_status record_traced(struct heat_profile **out, const struct options *options,
                                    struct engine_config *config, struct lm_error *err)
{
    struct engine *engine;
    struct route_log *log;
    uint64_t fingerprint, weights;
    enum lm_status status = engine_open(&engine, config, err);
    if (status != LM_OK) return status;
    const struct hparams *hp = engine_hparams(engine);
    status = gguf_fingerprint(engine_file(engine), &fingerprint, err);
    if (status == LM_OK) status = weights_sample(engine_file(engine), &weights, err);
    if (status == LM_OK)
        status =
            heat_profile_create(out, fingerprint, hp->arch->name, hp->n_layer + hp->n_layer_mtp,
                                hp->n_expert, hp->n_expert_used, err);
    if (status != LM_OK) {
        engine_close(engine, NULL);
        return status;
    }
    (*out)->weights = weights;
    status = run_text(engine, options_string(options, "text"), err);
    /* the trace is whole only now */
    const enum lm_status closed = engine_close(engine, status == LM_OK ? err : NULL);
    if (status == LM_OK) status = closed;
    if (status == LM_OK) status = route_log_read(&log, config->trace_path, err);
    if (status == LM_OK) {
        count_uses(*out, log);
        route_log_destroy(log);
    } else {
        heat_profile_destroy(*out);
    }
    return status;
}

static enum lm_status output_path(const struct options *options, const char **out,
                                  struct lm_error *err)
{
    *out = options_string(options, "output");
    if (!*out) return lm_fail(err, LM_E_USAGE, "profile: -o names the file to write");
    return write_job_check(options, *out, err);
}

static enum lm_status run_record(struct options *options, struct lm_error *err)
{
    struct engine_config config;
    struct heat_profile *profile;
    const char *path;
    char *model_path, *trace_path;
    bool is_demo;
    enum lm_status status = output_path(options, &path, err);
    if (status == LM_OK) status = engine_config_from_options(&config, options, err);
    if (status != LM_OK) return status;
    const char *ref = options_n_arg(options) > 1 ? options_arg(options, 1) : NULL;
    status = model_ref_resolve(options, ref, &model_path, &is_demo, err);
    if (status != LM_OK) return status;
    if (asprintf(&trace_path, "%s.trace.XXXXXX", path) < 0) {
        free(model_path);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    }
    const int fd = mkstemp(trace_path);
    if (fd < 0) {
        status = lm_fail_errno(err, "%s: create", trace_path);
        goto free_paths;
    }
    close(fd);
    config.model_path = model_path;
    config.trace_path = trace_path;
    config.n_snapshot = 0;
    status = record_traced(&profile, options, &config, err);
    unlink(trace_path);
    if (status == LM_OK) {
        status = heat_profile_write(profile, path, err);
        if (status == LM_OK) log_info("%s: %.0f tokens", path, profile->n_token);
        heat_profile_destroy(profile);
    }

free_paths:
    free(trace_path);
    free(model_path);
    return status;
}

/* ---- show --------------------------------------------------------------------------------- */

struct layer_summary {
    double n_row;   /* that the layer was computed for */
    double entropy; /* bits; log2(n_expert): all are used alike */
    double busiest; /* share of the layer's uses that the most used expert has */
    uint32_t busiest_expert, n_used, n_half; /* n_half: experts that have half of the uses */
};

static int compare_down(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* False: no expert of the layer was used. sorted: [n_expert] memory. */
static bool summarize(const struct heat_profile *profile, uint32_t il, double *sorted,
                      struct layer_summary *out)
{
    const double *uses = profile->uses + (size_t)il * profile->n_expert;
    double sum = 0, half = 0;
    *out = (struct layer_summary){.n_row = heat_profile_rows(profile, il)};
    for (uint32_t ie = 0; ie < profile->n_expert; ie++) {
        sum += uses[ie];
        out->n_used += uses[ie] > 0;
        if (uses[ie] > uses[out->busiest_expert]) out->busiest_expert = ie;
    }
    if (!(sum > 0)) return false;
    out->busiest = uses[out->busiest_expert] / sum;
    for (uint32_t ie = 0; ie < profile->n_expert; ie++)
        if (uses[ie] > 0) out->entropy -= uses[ie] / sum * log2(uses[ie] / sum);
    memcpy(sorted, uses, profile->n_expert * sizeof(*sorted));
    qsort(sorted, profile->n_expert, sizeof(*sorted), compare_down);
    while (half < sum / 2 && out->n_half < profile->n_expert)
        half += sorted[out->n_half++];
    return true;
}

static void show_json(const struct heat_profile *profile, double *sorted)
{
    struct json_object *root = json_object_new_object(), *layers = json_object_new_array();
    struct layer_summary summary;
    double rate[HPARAMS_MAX_EXPERT];
    char fingerprint[20], weights[20];
    snprintf(fingerprint, sizeof(fingerprint), "%016llx", (unsigned long long)profile->fingerprint);
    snprintf(weights, sizeof(weights), "%016llx", (unsigned long long)profile->weights);
    json_object_object_add(root, "architecture", json_object_new_string(profile->architecture));
    json_object_object_add(root, "fingerprint", json_object_new_string(fingerprint));
    json_object_object_add(root, "weights",
                           profile->weights ? json_object_new_string(weights) : NULL);
    json_object_object_add(root, "n_tokens", json_object_new_double(profile->n_token));
    json_object_object_add(root, "n_layer", json_object_new_int64(profile->n_layer));
    json_object_object_add(root, "n_expert", json_object_new_int64(profile->n_expert));
    json_object_object_add(root, "n_expert_used", json_object_new_int64(profile->n_expert_used));
    json_object_object_add(root, "layers", layers);
    for (uint32_t il = 0; il < profile->n_layer; il++) {
        if (!summarize(profile, il, sorted, &summary)) continue;
        struct json_object *layer = json_object_new_object();
        struct json_object *rates = json_object_new_array();
        heat_profile_rates(profile, il, rate);
        for (uint32_t ie = 0; ie < profile->n_expert; ie++)
            json_object_array_add(rates, json_object_new_double(rate[ie]));
        json_object_object_add(layer, "layer", json_object_new_int64(il));
        json_object_object_add(layer, "rows", json_object_new_double(summary.n_row));
        json_object_object_add(layer, "entropy", json_object_new_double(summary.entropy));
        json_object_object_add(layer, "busiest", json_object_new_int64(summary.busiest_expert));
        json_object_object_add(layer, "half_of_uses", json_object_new_int64(summary.n_half));
        json_object_object_add(layer, "uses_per_row", rates);
        json_object_array_add(layers, layer);
    }
    puts(json_object_to_json_string_ext(root, JSON_C_TO_STRING_PLAIN));
    json_object_put(root);
}

static void show_table(const struct heat_profile *profile, double *sorted)
{
    struct layer_summary summary;
    char architecture[4 * sizeof(profile->architecture)];
    log_printable(profile->architecture, strlen(profile->architecture), architecture,
                  sizeof(architecture));
    printf("architecture  %s\n", architecture);
    printf("fingerprint   %016llx\n", (unsigned long long)profile->fingerprint);
    if (profile->weights) printf("weights       %016llx\n", (unsigned long long)profile->weights);
    printf("experts       %u in a layer, %u per token\n", profile->n_expert,
           profile->n_expert_used);
    printf("tokens        %.0f\n\n", profile->n_token);
    printf(
        "layer      rows  entropy, bits of %.2f   busiest expert      used   half of the uses by\n",
        log2(profile->n_expert));
    for (uint32_t il = 0; il < profile->n_layer; il++)
        if (summarize(profile, il, sorted, &summary))
            printf("%5u  %8.0f  %20.2f   %5u with %5.1f%%  %8u   %u experts (%.0f%%)\n", il,
                   summary.n_row, summary.entropy, summary.busiest_expert, 100 * summary.busiest,
                   summary.n_used, summary.n_half, 100.0 * summary.n_half / profile->n_expert);
}

static enum lm_status run_show(struct options *options, struct lm_error *err)
{
    struct heat_profile *profile;
    if (options_n_arg(options) != 2) return lm_fail(err, LM_E_USAGE, "profile show takes one FILE");
    const enum lm_status status = heat_profile_read(&profile, options_arg(options, 1), err);
    if (status != LM_OK) return status;
    double *sorted = malloc(profile->n_expert * sizeof(*sorted));
    if (sorted) (options_flag(options, "json") ? show_json : show_table)(profile, sorted);
    heat_profile_destroy(profile);
    free(sorted);
    return sorted ? LM_OK : lm_fail(err, LM_E_NO_MEM, "profile: no memory");
}

/* ---- merge -------------------------------------------------------------------------------- */

static enum lm_status run_merge(struct options *options, struct lm_error *err)
{
    struct heat_profile *sum = NULL, *next;
    const char *path;
    if (options_n_arg(options) < 2)
        return lm_fail(err, LM_E_USAGE, "profile merge takes the profiles to sum");
    enum lm_status status = output_path(options, &path, err);
    for (size_t i = 1; i < options_n_arg(options) && status == LM_OK; i++) {
        status = heat_profile_read(sum ? &next : &sum, options_arg(options, i), err);
        if (status != LM_OK || i == 1) continue;
        status = heat_profile_add(sum, next, options_arg(options, i), err);
        heat_profile_destroy(next);
    }
    if (status == LM_OK) status = heat_profile_write(sum, path, err);
    if (status == LM_OK) log_info("%s: %.0f tokens", path, sum->n_token);
    heat_profile_destroy(sum);
    return status;
}

static enum lm_status run_profile(struct options *options, struct lm_error *err)
{
    static const struct {
        const char *name;
        enum lm_status (*run)(struct options *options, struct lm_error *err);
    } actions[] = {{"record", run_record}, {"show", run_show}, {"merge", run_merge}};
    const char *name = options_arg(options, 0);
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
        if (!strcmp(name, actions[i].name)) return actions[i].run(options, err);
    return lm_fail(err, LM_E_USAGE, "unknown action '%.80s': record, show or merge", name);
}

const struct command command_profile = {
    .name = "profile",
    .usage = "record [MODEL] -o FILE | show FILE | merge FILE... -o FILE",
    .n_arg_min = 1,
    .n_arg_max = 1000,
    .words = "record|show|merge",
    .summary = "routing profiles: which experts a model uses, and how often",
    .details =
        "  record [MODEL]  runs a text and counts the experts that each token chooses\n"
        "  show FILE       per layer: the rows that it was computed for (of a prompt the last\n"
        "                  layer has only the last row), the entropy of their choice, the most\n"
        "                  used expert, and how many experts have half of the uses\n"
        "  merge FILE...   the sum of several profiles of one model\n\n"
        "A profile tells the pager what to read first when a model does not fit in memory. It\n"
        "belongs to one model file; with another it is refused.",
    .options = (const struct option_spec *const[]){profile_options, options_engine, NULL},
    .reads_config = true,
    .run = run_profile,
};
