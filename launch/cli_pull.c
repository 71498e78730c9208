/* lean pull REF...: models from the hub. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/command.h"
#include "launch/hub_names.h"
#include "launch/hub_settings.h"
#include "launch/pull_job.h"
#include "launch/pull_report.h"

static const struct option_spec pull_options[] = {
    {"variant", 0, OPTION_STRING, "V",
     .help = "which quantization, as Q4_K_M; REF:V does the same"},
    {"revision", 0, OPTION_STRING, "R", .help = "branch, tag or commit; REF@R does the same"},
    {"file", 0, OPTION_STRING, "GLOB", .help = "these files instead of a variant", .repeat = true},
    {"include", 0, OPTION_STRING, "GLOB", .help = "as if there were no others", .repeat = true},
    {"exclude", 0, OPTION_STRING, "GLOB", .help = "as if these were not there", .repeat = true},
    {"layers", 0, OPTION_STRING, "A-B",
     .help = "of a pack only the experts of these layers, for a rank that holds no others"},
    {"pack", 0, OPTION_FLAG,
     .help =
         "make a pack (lean pack) of a GGUF model while it arrives, and keep only that; after an "
         "interruption what was packed is fetched again"},
    {"cache-dir", 0, OPTION_PATH, "DIR",
     .help = "default: LEAN_CACHE, HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub"},
    {"dest", 0, OPTION_PATH, "DIR", .help = "plain files in DIR instead of the cache"},
    {"endpoint", 0, OPTION_STRING, "URL", .help = "another hub or a mirror; or HF_ENDPOINT"},
    {"token-file", 0, OPTION_PATH, "F",
     .help = "token for gated models; default: HF_TOKEN, or the file `token` in HF_HOME"},
    {"jobs", 'j', OPTION_INT, "N", .def = "8", .min = 1, .max = 64, .help = "connections"},
    {"segment", 0, OPTION_SIZE, "SIZE", .def = "64M", .help = "largest piece asked for at a time"},
    {"limit-rate", 0, OPTION_SIZE, "RATE", .help = "bytes per second of all connections"},
    {"retry-wait", 0, OPTION_TIME, "T", .def = "1s",
     .help = "before the first retry; doubles up to 60 times that"},
    {"stall-timeout", 0, OPTION_TIME, "T", .def = "30s",
     .help = "a connection under 1 KiB/s for so long is made again"},
    {"verify", 0, OPTION_ENUM, "full|size", .def = "full",
     .help = "full: hash what is fetched, and, where it is asked for, what is there already"},
    {"force", 'f', OPTION_FLAG, .help = "fetch what is there, too"},
    {"check", 0, OPTION_FLAG, .def = "on",
     .help = "fetch also what this machine has too little memory for"},
    {"dry-run", 0, OPTION_FLAG, .help = "print the plan, fetch nothing"},
    {"offline", 0, OPTION_FLAG, .help = "only look into the cache; or HF_HUB_OFFLINE"},
    {"wait", 0, OPTION_FLAG, .def = "on",
     .help = "if another process downloads the same file, end with 8"},
    {0},
};

/* The values of a repeated option; *n of them, malloc'ed. */
static const char **values_of(const struct options *options, const char *name, size_t *n)
{
    *n = options_count(options, name);
    const char **values = calloc(*n + 1, sizeof(*values));
    for (size_t i = 0; values && i < *n; i++)
        values[i] = options_string_at(options, name, i);
    return values;
}

static enum lm_status read_layers(const struct options *options, struct hub_wish *wish,
                                  struct lm_error *err)
{
    const char *text = options_string(options, "layers");
    int used = 0;
    if (!text) return LM_OK;
    wish->has_layers = true;
    if (sscanf(text, "%u-%u%n", &wish->first_layer, &wish->last_layer, &used) == 2 && !text[used] &&
        wish->first_layer <= wish->last_layer)
        return LM_OK;
    if (sscanf(text, "%u%n", &wish->first_layer, &used) == 1 && !text[used]) {
        wish->last_layer = wish->first_layer;
        return LM_OK;
    }
    return lm_fail(err, LM_E_USAGE, "--layers must be as 0-11 or 7, got '%.80s'", text);
}

static enum lm_status pull_one(const struct options *options, const struct hub_registry *names,
                               const char *text, struct pull_config config,
                               struct pull_report *report, struct lm_error *err)
{
    struct pull_job job = {.checks_need = options_flag(options, "check"),
                           .packs = options_flag(options, "pack")};
    struct pull_result result = {0};
    const char *revision = options_string(options, "revision");
    const char *variant = options_string(options, "variant");
    char name[400];
    /* the registry says what a variant of a name needs */
    snprintf(name, sizeof(name), "%.300s:%.80s", text, variant ? variant : "");
    enum lm_status status = hub_names_resolve(names, variant && !strpbrk(text, ":/") ? name : text,
                                              &job.ref, &job.need, err);
    if (status != LM_OK) return status;
    if (revision && !hub_ref_is_revision(revision))
        return lm_fail(err, LM_E_USAGE, "--revision '%.200s': is no name of a revision", revision);
    if (revision) strcpy(job.ref.revision, revision);
    config.wish.variant = variant;
    status = pull_job_run(&job, &config, report, &result, err);
    if (status == LM_OK) pull_report_result(report, &result);
    pull_result_free(&result);
    return status;
}

static enum lm_status pull_all(const struct options *options, struct pull_config *config,
                               struct lm_error *err)
{
    struct hub_registry *names;
    struct pull_report *report = pull_report_create(&(struct pull_report_config){
        .json = options_flag(options, "json"),
        .quiet = options_flag(options, "quiet"),
        .dry_run = options_flag(options, "dry-run"),
    });
    if (!report) return lm_fail(err, LM_E_NO_MEM, "no memory to report progress");
    enum lm_status status = read_layers(options, &config->wish, err);
    if (status == LM_OK) status = hub_names_open(&names, err);
    if (status == LM_OK) {
        for (size_t i = 0; i < options_n_arg(options) && status == LM_OK; i++)
            status = pull_one(options, names, options_arg(options, i), *config, report, err);
        hub_registry_destroy(names);
    }
    pull_report_destroy(report);
    return status;
}

static enum lm_status run_pull(struct options *options, struct lm_error *err)
{
    struct hub_settings hub;
    enum lm_status status = hub_settings_read(&hub, options_string(options, "cache-dir"),
                                              options_string(options, "endpoint"),
                                              options_string(options, "token-file"), err);
    if (status != LM_OK) return status;
    struct pull_config config = pull_job_config(&hub);
    const bool full = !strcmp(options_string(options, "verify"), "full");
    config.http.retry_wait_s = options_float(options, "retry-wait");
    config.http.stall_s = options_float(options, "stall-timeout");
    config.dest = options_string(options, "dest");
    config.n_connection = (uint32_t)options_int(options, "jobs");
    config.segment_bytes = options_size(options, "segment");
    config.rate_bytes = options_size(options, "limit-rate");
    config.checks_hash = full;
    config.checks_again = full && options_given(options, "verify");
    config.force = options_flag(options, "force");
    config.dry_run = options_flag(options, "dry-run");
    config.offline |= options_flag(options, "offline");
    config.waits = options_flag(options, "wait");
    struct hub_wish *wish = &config.wish;
    const char **only = values_of(options, "file", &wish->n_only);
    const char **includes = values_of(options, "include", &wish->n_include);
    const char **excludes = values_of(options, "exclude", &wish->n_exclude);
    wish->only = only;
    wish->includes = includes;
    wish->excludes = excludes;
    if (config.offline && config.dest)
        status =
            lm_fail(err, LM_E_USAGE,
                    "--dest: nothing is fetched offline, and what is in the cache stays there");
    else if (config.segment_bytes < 65536)
        status = lm_fail(err, LM_E_USAGE, "--segment must be at least 64K");
    else if (only && includes && excludes)
        status = pull_all(options, &config, err);
    else
        status = lm_fail(err, LM_E_NO_MEM, "no memory for options");
    free(only);
    free(includes);
    free(excludes);
    hub_settings_free(&hub);
    return status;
}

const struct command command_pull = {
    .name = "pull",
    .usage = "REF...",
    .n_arg_min = 1,
    .n_arg_max = 100,
    .summary = "download a model",
    .details =
        "REF is a NAME[:VARIANT] of the registry, which `lean list` prints when asked for what is\n"
        "available, as lean-agent-35b:Q6_K, or OWNER/NAME[@REVISION][:VARIANT] of the hub. Files\n"
        "go to the cache that the hub's other programs use, and are shared with them. What was\n"
        "interrupted goes on when the same command is given again; every file is checked against\n"
        "the hub's hash of it. The folder of the model is printed on stdout.",
    .options = (const struct option_spec *const[]){pull_options, NULL},
    .reads_config = true,
    .run = run_pull,
};
