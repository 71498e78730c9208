/* lean bench serve: a load on a server, measured at this end of the wire. */
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch/bench/load_client.h"
#include "launch/bench/load_report.h"
#include "launch/bench/machine.h"
#include "launch/bench/modes.h"
#include "launch/bench/result_table.h"
#include "launch/bench/sample.h"
#include "launch/bench/write_file.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"

enum { MAX_REPORT_BYTES = 1 << 30, MAX_REQUESTS = 1000000 };

const struct option_spec options_bench_load[] = {
    {"url", 0, OPTION_STRING, "URL", .help = "the server: http://HOST:PORT"},
    {"model", 0, OPTION_STRING, "M", .help = "default: the first that the server names"},
    {"route", 0, OPTION_ENUM, "completions|chat", .def = "completions",
     .help = "which API; prompts are token ids for completions, if the server tokenizes"},
    {"num-prompts", 0, OPTION_INT, "N", .def = "100", .min = 1, .max = MAX_REQUESTS,
     .help = "requests"},
    {"input-len", 0, OPTION_STRING, "A[-B]", .def = "512", .help = "tokens of a prompt"},
    {"output-len", 0, OPTION_STRING, "A[-B]", .def = "128", .help = "tokens of an answer"},
    {"prefix-len", 0, OPTION_INT, "N", .def = "0", .min = 0, .max = 1 << 24,
     .help = "tokens that all prompts begin with, besides"},
    {"dataset", 0, OPTION_PATH, "FILE",
     .help = "prompts from JSON lines {\"prompt\": TEXT, \"output_len\": N}, in order and again"},
    {"request-rate", 0, OPTION_STRING, "R|inf", .def = "inf", .help = "requests per second"},
    {"burstiness", 0, OPTION_FLOAT, "G", .def = "1", .min = 0.001, .max = 1000,
     .help = "shape of the gamma distributed gaps; 1: Poisson arrivals, less: bursts"},
    {"max-concurrency", 0, OPTION_INT, "C", .min = 1, .max = 100000,
     .help = "requests at once; default: any number"},
    {"ramp", 0, OPTION_TIME, "T", .def = "0s",
     .help = "time in which the rate grows from nothing, or without a rate the concurrency from 1"},
    {"ignore-eos", 0, OPTION_FLAG,
     .help = "answers go on to their full length; default: unless there is a dataset"},
    {"warmup-requests", 0, OPTION_INT, "N", .def = "0", .min = 0, .max = 1000,
     .help = "requests before, which do not count"},
    {"goodput", 0, OPTION_STRING, "LIMITS",
     .help = "ttft:MS,tpot:MS,e2el:MS, any of them: requests per second that meet all"},
    {"percentiles", 0, OPTION_STRING, "P,P", .def = "50,90,95,99", .help = "which are told"},
    {"api-key", 0, OPTION_STRING, "KEY", .help = "sent as a bearer token"},
    {"header", 0, OPTION_STRING, "K:V", .repeat = true, .help = "one more header"},
    {"save", 0, OPTION_PATH, "FILE", .help = "the report as JSON"},
    {"compare", 0, OPTION_PATH, "FILE",
     .help = "with a saved report; exit code 10 if a metric is worse"},
    {"metrics", 0, OPTION_STRING, "NAMES",
     .def = "request_throughput,output_throughput,median_ttft_ms,median_tpot_ms",
     .help = "what --compare compares"},
    {"threshold", 0, OPTION_FLOAT, "PERCENT", .def = "5", .min = 0, .max = 1000000,
     .help = "how much worse is worse"},
    {"detailed", 0, OPTION_FLAG, .help = "with figures of each request"},
    {"allow-failures", 0, OPTION_FLAG, .help = "exit code 0 although requests failed"},
    {0},
};

enum load_format { LOAD_TEXT, LOAD_JSON, LOAD_CSV, LOAD_MD };

/* All that was asked for. */
struct load_call {
    struct load_target target;
    struct load_plan warmup, plan;
    struct load_limits limits;
    struct load_times times;
    struct load_lengths lengths;
    struct load_report_config report;
    struct load_goals goals;
    enum load_format format;
    size_t n_request, n_warmup;
    uint64_t seed;
    char *url, *model;
    const char **headers;
    struct load_text text;
};

/* ---- options ------------------------------------------------------------------------------ */

static enum lm_status read_target(struct load_call *call, const struct options *options,
                                  struct lm_error *err)
{
    const char *url = options_string(options, "url");
    const size_t n = options_count(options, "header");
    if (!url || (strncmp(url, "http://", 7) && strncmp(url, "https://", 8)))
        return lm_fail(err, LM_E_USAGE, "bench serve takes --url http://HOST:PORT");
    call->url = strdup(url);
    call->headers = calloc(n + 1, sizeof(*call->headers));
    if (!call->url || !call->headers) return lm_fail(err, LM_E_NO_MEM, "no memory for options");
    size_t length = strlen(call->url);
    if (length > 3 && !strcmp(call->url + length - 3, "/v1")) call->url[length -= 3] = 0;
    while (length && call->url[length - 1] == '/')
        call->url[--length] = 0;
    for (size_t i = 0; i < n; i++) {
        call->headers[i] = options_string_at(options, "header", i);
        if (!strchr(call->headers[i], ':') || strpbrk(call->headers[i], "\r\n"))
            return lm_fail(err, LM_E_USAGE, "--header must be NAME:VALUE, got '%.80s'",
                           call->headers[i]);
    }
    call->target = (struct load_target){.url = call->url,
                                        .chat = !strcmp(options_string(options, "route"), "chat"),
                                        .ignore_eos = options_given(options, "ignore-eos")
                                                          ? options_flag(options, "ignore-eos")
                                                          : !options_string(options, "dataset"),
                                        .api_key = options_string(options, "api-key"),
                                        .header = call->headers,
                                        .n_header = n};
    return LM_OK;
}

static enum lm_status read_rate(struct load_call *call, const struct options *options,
                                struct lm_error *err)
{
    const char *text = options_string(options, "request-rate");
    const double ramp_s = options_float(options, "ramp");
    char *end;
    const double rate = strtod(text, &end);
    if (end == text || *end || !(rate > 0))
        return lm_fail(err, LM_E_USAGE, "--request-rate must be a number or inf, got '%.80s'",
                       text);
    call->times = (struct load_times){.rate = rate,
                                      .burstiness = options_float(options, "burstiness"),
                                      .ramp_s = isinf(rate) ? 0 : ramp_s};
    call->limits =
        (struct load_limits){.n_concurrent = (uint32_t)options_int(options, "max-concurrency"),
                             .ramp_s = isinf(rate) ? ramp_s : 0};
    if (ramp_s > 0 && isinf(rate) && !call->limits.n_concurrent)
        return lm_fail(err, LM_E_USAGE, "--ramp needs --request-rate or --max-concurrency");
    return LM_OK;
}

static enum lm_status read_lengths(struct load_call *call, const struct options *options,
                                   struct lm_error *err)
{
    enum lm_status status =
        span_parse(&call->lengths.input, "--input-len", options_string(options, "input-len"), err);
    if (status == LM_OK)
        status = span_parse(&call->lengths.output, "--output-len",
                            options_string(options, "output-len"), err);
    call->lengths.n_prefix = (uint32_t)options_int(options, "prefix-len");
    call->lengths.as_text = call->target.chat;
    if (status == LM_OK &&
        (!call->lengths.output.first || !(call->lengths.input.first + call->lengths.n_prefix)))
        status = lm_fail(err, LM_E_USAGE, "prompts and answers have at least one token");
    return status;
}

static enum lm_status read_format(struct load_call *call, const struct options *options,
                                  struct lm_error *err)
{
    static const char *const names[] = {"text", "json", "csv", "md"};
    const char *text = options_string(options, "output");
    call->format = options_flag(options, "json") ? LOAD_JSON : LOAD_TEXT;
    if (!text) return LM_OK;
    for (size_t i = 0; i < 4; i++)
        if (!strcmp(text, names[i])) {
            call->format = (enum load_format)i;
            return LM_OK;
        }
    return lm_fail(err, LM_E_USAGE, "-o must be one of text|json|csv|md, got '%.80s'", text);
}

static enum lm_status read_options(struct load_call *call, const struct options *options,
                                   struct lm_error *err)
{
    const char *goals = options_string(options, "goodput");
    call->n_request = (size_t)options_int(options, "num-prompts");
    call->n_warmup = (size_t)options_int(options, "warmup-requests");
    call->seed = (uint64_t)options_int(options, "seed");
    call->report.detailed = options_flag(options, "detailed");
    enum lm_status status = read_target(call, options, err);
    if (status == LM_OK) status = read_rate(call, options, err);
    if (status == LM_OK) status = read_lengths(call, options, err);
    if (status == LM_OK) status = read_format(call, options, err);
    if (status == LM_OK)
        status = load_percentiles_parse(&call->report, options_string(options, "percentiles"), err);
    if (status == LM_OK && goals) status = load_goals_parse(&call->goals, goals, err);
    if (goals) call->report.goals = &call->goals;
    return status;
}

/* ---- what the server tells ---------------------------------------------------------------- */

static enum lm_status find_model(struct load_call *call, const struct options *options,
                                 struct lm_error *err)
{
    struct json_object *answer, *data = NULL, *id = NULL;
    const char *name = options_string(options, "model");
    if (!name) {
        const enum lm_status status = load_ask(&call->target, "/v1/models", NULL, &answer, err);
        if (status != LM_OK) return status;
        if (json_object_object_get_ex(answer, "data", &data) &&
            json_object_is_type(data, json_type_array) && json_object_array_length(data))
            json_object_object_get_ex(json_object_array_get_idx(data, 0), "id", &id);
        if (id) call->model = strdup(json_object_get_string(id));
        json_object_put(answer);
    } else {
        call->model = strdup(name);
    }
    if (!call->model)
        return lm_fail(err, LM_E_NOT_FOUND, "%s names no model: give --model", call->url);
    call->target.model = call->model;
    return LM_OK;
}

/* Tokens as the server counts them; NULL: it does not tell. */
static int32_t *tokenize(const struct load_target *target, const char *text, size_t n_text,
                         size_t *n)
{
    struct json_object *body = json_object_new_object(), *answer = NULL, *tokens = NULL;
    int32_t *ids = NULL;
    json_object_object_add(body, "content", json_object_new_string_len(text, (int)n_text));
    if (load_ask(target, "/tokenize", body, &answer, NULL) == LM_OK &&
        json_object_object_get_ex(answer, "tokens", &tokens) &&
        json_object_is_type(tokens, json_type_array)) {
        *n = json_object_array_length(tokens);
        ids = malloc((*n + 1) * sizeof(*ids));
        for (size_t i = 0; ids && i < *n; i++)
            ids[i] = json_object_get_int(json_object_array_get_idx(tokens, i));
    }
    json_object_put(answer);
    json_object_put(body);
    return ids;
}

static enum lm_status make_plans(struct load_call *call, const struct options *options,
                                 struct lm_error *err)
{
    const char *dataset = options_string(options, "dataset");
    enum lm_status status;
    call->text.text = sample_text(&call->text.n_text);
    if (!dataset)
        call->text.ids =
            tokenize(&call->target, call->text.text, call->text.n_text, &call->text.n_id);
    if (call->text.ids && !call->text.n_id) {
        free(call->text.ids);
        call->text.ids = NULL;
    }
    status = dataset ? load_plan_read(&call->plan, call->n_request, dataset, &call->lengths.output,
                                      call->seed, err)
                     : load_plan_random(&call->plan, call->n_request, &call->text, &call->lengths,
                                        call->seed, err);
    if (status == LM_OK)
        status = load_plan_random(&call->warmup, call->n_warmup, &call->text, &call->lengths,
                                  ~call->seed, err);
    load_plan_set_times(&call->plan, &call->times, call->seed);
    return status;
}

/* Where the server told no usage: what /tokenize says, else a token for each event. */
static void settle_lengths(const struct load_call *call, struct load_result *result)
{
    for (size_t i = 0; i < result->n; i++) {
        struct load_outcome *outcome = &result->outcome[i];
        size_t n;
        if (!outcome->sent || *outcome->failure) continue;
        if (outcome->n_input < 0) outcome->n_input = call->plan.request[i].n_input;
        if (outcome->n_output >= 0) continue;
        int32_t *ids = tokenize(&call->target, outcome->text, outcome->n_text, &n);
        outcome->n_output = ids ? (int64_t)n : (int64_t)outcome->n_gap + 1;
        free(ids);
    }
}

/* ---- the report --------------------------------------------------------------------------- */

static void add_settings(struct json_object *report, const struct load_call *call,
                         const struct options *options)
{
    struct json_object *settings = json_object_new_object();
    for (const struct option_spec *spec = options_bench_load; spec->name; spec++) {
        const char *text = options_string(options, spec->name);
        if (!strcmp(spec->name, "api-key") || !strcmp(spec->name, "header")) continue;
        json_object_object_add(settings, spec->name, text ? json_object_new_string(text) : NULL);
    }
    json_object_object_add(settings, "model", json_object_new_string(call->target.model));
    json_object_object_add(settings, "seed", json_object_new_int64((int64_t)call->seed));
    json_object_object_add(report, "settings", settings);
    json_object_object_add(report, "client", machine_host());
    json_object_object_add(report, "build", machine_build());
    json_object_object_add(report, "time", machine_time());
}

static void print_report(enum load_format format, struct json_object *report)
{
    struct json_object *rows;
    switch (format) {
    case LOAD_TEXT:
        load_report_print_text(stdout, report);
        break;
    case LOAD_MD:
        load_report_print_md(stdout, report);
        break;
    case LOAD_JSON:
        puts(json_object_to_json_string_ext(report, JSON_C_TO_STRING_PRETTY |
                                                        JSON_C_TO_STRING_SPACED |
                                                        JSON_C_TO_STRING_NOSLASHESCAPE));
        break;
    case LOAD_CSV:
        rows = json_object_new_array();
        json_object_array_add(rows, json_object_get(report));
        result_print_csv(stdout, rows);
        json_object_put(rows);
        break;
    }
}

static enum lm_status save_report(const char *path, struct json_object *report,
                                  struct lm_error *err)
{
    const char *text = json_object_to_json_string_ext(report, JSON_C_TO_STRING_PRETTY |
                                                                  JSON_C_TO_STRING_NOSLASHESCAPE);
    return write_file(path, text, strlen(text), err);
}

static enum lm_status read_report(const char *path, struct json_object **out, struct lm_error *err)
{
    char *bytes;
    size_t n;
    const enum lm_status status = read_all_path(path, MAX_REPORT_BYTES, &bytes, &n, err);
    if (status != LM_OK) return status;
    *out = json_tokener_parse(bytes);
    free(bytes);
    return json_object_is_type(*out, json_type_object)
               ? LM_OK
               : lm_fail(err, LM_E_FORMAT, "%s: is no report", path);
}

/* Against an older one. The comparison goes to stderr where stdout is for machines. */
static enum lm_status compare(const struct load_call *call, const struct options *options,
                              struct json_object *old, struct json_object *report,
                              struct lm_error *err)
{
    bool worse;
    FILE *out = call->format == LOAD_TEXT ? stdout : stderr;
    const enum lm_status status =
        load_report_compare(out, old, report, options_string(options, "metrics"),
                            options_float(options, "threshold"), &worse, err);
    if (status != LM_OK || !worse) return status;
    return lm_fail(err, LM_E_MISMATCH, "worse than %s by more than %g%%",
                   options_string(options, "compare"), options_float(options, "threshold"));
}

static enum lm_status conclude(const struct load_call *call, const struct options *options,
                               struct load_result *result, struct json_object *old,
                               struct lm_error *err)
{
    const char *save = options_string(options, "save");
    size_t n_failed = 0;
    for (size_t i = 0; i < result->n; i++)
        n_failed += *result->outcome[i].failure != 0;
    settle_lengths(call, result);
    struct json_object *report = load_report_make(result, &call->report);
    if (!report) return lm_fail(err, LM_E_NO_MEM, "no memory for the report");
    add_settings(report, call, options);
    print_report(call->format, report);
    enum lm_status status = save ? save_report(save, report, err) : LM_OK;
    if (status == LM_OK && old) status = compare(call, options, old, report, err);
    if (status == LM_OK && n_failed && !options_flag(options, "allow-failures"))
        status = lm_fail(err, LM_E_FAIL, "%zu of %zu requests failed", n_failed, result->n);
    json_object_put(report);
    return status;
}

static enum lm_status run_load(struct load_call *call, const struct options *options,
                               struct json_object *old, struct lm_error *err)
{
    const struct load_limits one = {.n_concurrent = 1};
    struct load_result result = {0};
    struct lm_error interrupted;
    enum lm_status status = load_run(&result, &call->warmup, &call->target, &one, err);
    load_result_fini(&result);
    if (status != LM_OK) return status;
    status = load_run(&result, &call->plan, &call->target, &call->limits, err);
    if (status == LM_OK) {
        status = conclude(call, options, &result, old, err);
    } else if (status == LM_E_INTERRUPTED) {
        conclude(call, options, &result, NULL, &interrupted); /* of what came until then */
    }
    load_result_fini(&result);
    return status;
}

static void fini(struct load_call *call)
{
    load_plan_fini(&call->plan);
    load_plan_fini(&call->warmup);
    free(call->text.ids);
    free(call->headers);
    free(call->model);
    free(call->url);
}

enum lm_status bench_load(struct options *options, struct lm_error *err)
{
    struct load_call call = {.n_request = 0};
    struct json_object *old = NULL;
    const char *other = options_string(options, "compare");
    enum lm_status status = read_options(&call, options, err);
    if (status == LM_OK && other) status = read_report(other, &old, err);
    if (status == LM_OK) status = find_model(&call, options, err);
    if (status == LM_OK) status = make_plans(&call, options, err);
    if (status == LM_OK) status = run_load(&call, options, old, err);
    json_object_put(old);
    fini(&call);
    return status;
}
