/* From outcomes to figures. */
#include "launch/bench/load_report.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch/bench/statistics.h"

enum lm_status load_goals_parse(struct load_goals *out, const char *text, struct lm_error *err)
{
    *out = (struct load_goals){INFINITY, INFINITY, INFINITY};
    const struct {
        const char *name;
        double *to;
    } goals[] = {{"ttft:", &out->ttft_s}, {"tpot:", &out->tpot_s}, {"e2el:", &out->e2el_s}};
    for (const char *at = text; *at;) {
        char *end = NULL;
        for (size_t i = 0; i < 3; i++)
            if (!strncmp(at, goals[i].name, 5)) *goals[i].to = strtod(at + 5, &end) / 1e3;
        if (!end || end == at + 5 || (*end && *end != ','))
            return lm_fail(err, LM_E_USAGE, "--goodput must be like ttft:200,tpot:50, got '%.80s'",
                           text);
        at = end + (*end == ',');
    }
    return LM_OK;
}

enum lm_status load_percentiles_parse(struct load_report_config *out, const char *text,
                                      struct lm_error *err)
{
    out->n_percentile = 0;
    for (const char *at = text; *at;) {
        char *end;
        const double value = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(value >= 0 && value <= 100) ||
            out->n_percentile == LOAD_MAX_PERCENTILES)
            return lm_fail(err, LM_E_USAGE, "--percentiles must be like 50,90,99, got '%.80s'",
                           text);
        out->percentile[out->n_percentile++] = value;
        at = end + (*end == ',');
    }
    return LM_OK;
}

/* ---- figures ------------------------------------------------------------------------------ */

static void add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

static struct json_object *number(double value)
{
    char text[40];
    snprintf(text, sizeof(text), "%.4f", value);
    return isfinite(value) ? json_object_new_double_s(value, text) : NULL;
}

/* Seconds of one kind, of all requests that completed. */
struct series {
    double *value; /* [n] */
    size_t n;
};

struct figures {
    struct series ttft, tpot, itl, e2el;
    struct json_object *input_lens, *output_lens, *ttfts, *itls, *errors; /* one per request */
    int64_t n_input, n_output;
    size_t n_completed, n_failed, n_good;
};

static double tpot_s(const struct load_outcome *outcome)
{
    return outcome->n_output > 1
               ? (outcome->end_s - outcome->first_s) / (double)(outcome->n_output - 1)
               : 0;
}

static bool is_good(const struct load_outcome *outcome, const struct load_goals *goals)
{
    return outcome->first_s - outcome->start_s <= goals->ttft_s &&
           tpot_s(outcome) <= goals->tpot_s && outcome->end_s - outcome->start_s <= goals->e2el_s;
}

static void add_completed(struct figures *figures, const struct load_outcome *outcome)
{
    const double ttft_s = outcome->first_s - outcome->start_s;
    struct json_object *gaps = json_object_new_array();
    figures->n_completed++;
    if (outcome->n_input > 0) figures->n_input += outcome->n_input;
    if (outcome->n_output > 0) figures->n_output += outcome->n_output;
    figures->ttft.value[figures->ttft.n++] = ttft_s;
    figures->e2el.value[figures->e2el.n++] = outcome->end_s - outcome->start_s;
    if (outcome->n_output > 1) figures->tpot.value[figures->tpot.n++] = tpot_s(outcome);
    for (size_t i = 0; i < outcome->n_gap; i++) {
        figures->itl.value[figures->itl.n++] = outcome->gap_s[i];
        json_object_array_add(gaps, number(outcome->gap_s[i]));
    }
    json_object_array_add(figures->input_lens, json_object_new_int64(outcome->n_input));
    json_object_array_add(figures->output_lens, json_object_new_int64(outcome->n_output));
    json_object_array_add(figures->ttfts, number(ttft_s));
    json_object_array_add(figures->itls, gaps);
    json_object_array_add(figures->errors, json_object_new_string(""));
}

static void add_failed(struct figures *figures, const struct load_outcome *outcome)
{
    char text[400];
    figures->n_failed++;
    snprintf(text, sizeof(text), "%s: %s", outcome->failure,
             outcome->message ? outcome->message : "");
    json_object_array_add(figures->input_lens, json_object_new_int64(outcome->n_input));
    json_object_array_add(figures->output_lens, json_object_new_int(0));
    json_object_array_add(figures->ttfts, NULL);
    json_object_array_add(figures->itls, json_object_new_array());
    json_object_array_add(figures->errors, json_object_new_string(text));
}

/* mean_ttft_ms and its like. */
static void add_series(struct json_object *report, const char *name, struct series *series,
                       const struct load_report_config *config)
{
    char key[64];
    const struct statistics of = statistics_of(series->value, series->n);
    const struct {
        const char *name;
        double value;
    } parts[] = {{"mean", of.mean}, {"median", of.median}, {"std", of.stddev}};
    for (size_t i = 0; i < 3; i++) {
        snprintf(key, sizeof(key), "%s_%s_ms", parts[i].name, name);
        add(report, key, series->n ? number(1e3 * parts[i].value) : NULL);
    }
    for (size_t i = 0; i < config->n_percentile; i++) {
        const double percent = config->percentile[i];
        snprintf(key, sizeof(key), "p%g_%s_ms", percent, name);
        add(report, key,
            series->n ? number(1e3 * statistics_percentile(series->value, series->n, percent))
                      : NULL);
    }
}

/* How many failed of what. */
static struct json_object *failures_json(const struct load_result *result)
{
    struct json_object *failures = json_object_new_object(), *count;
    for (size_t i = 0; i < result->n; i++) {
        const struct load_outcome *outcome = &result->outcome[i];
        if (!outcome->sent || !*outcome->failure) continue;
        const bool known = json_object_object_get_ex(failures, outcome->failure, &count);
        const int64_t n = known ? json_object_get_int64(count) : 0;
        add(failures, outcome->failure, json_object_new_int64(n + 1));
    }
    return failures;
}

static void add_details(struct json_object *report, const struct figures *figures)
{
    add(report, "input_lens", json_object_get(figures->input_lens));
    add(report, "output_lens", json_object_get(figures->output_lens));
    add(report, "ttfts", json_object_get(figures->ttfts));
    add(report, "itls", json_object_get(figures->itls));
    add(report, "errors", json_object_get(figures->errors));
}

struct json_object *load_report_make(const struct load_result *result,
                                     const struct load_report_config *config)
{
    struct json_object *report = json_object_new_object();
    const double duration_s = result->duration_s > 0 ? result->duration_s : 1e-9;
    size_t n_gap = 0;
    for (size_t i = 0; i < result->n; i++)
        n_gap += result->outcome[i].n_gap;
    double *const values = calloc(3 * result->n + n_gap + 1, sizeof(*values));
    if (!values) {
        json_object_put(report);
        return NULL;
    }
    struct figures figures = {.ttft = {.value = values},
                              .tpot = {.value = values + result->n},
                              .e2el = {.value = values + 2 * result->n},
                              .itl = {.value = values + 3 * result->n},
                              .input_lens = json_object_new_array(),
                              .output_lens = json_object_new_array(),
                              .ttfts = json_object_new_array(),
                              .itls = json_object_new_array(),
                              .errors = json_object_new_array()};
    for (size_t i = 0; i < result->n; i++) {
        const struct load_outcome *outcome = &result->outcome[i];
        if (!outcome->sent) continue;
        (*outcome->failure ? add_failed : add_completed)(&figures, outcome);
        if (!*outcome->failure && config->goals && is_good(outcome, config->goals))
            figures.n_good++;
    }
    add(report, "completed", json_object_new_int64((int64_t)figures.n_completed));
    add(report, "failed", json_object_new_int64((int64_t)figures.n_failed));
    add(report, "failures", failures_json(result));
    add(report, "duration", number(result->duration_s));
    add(report, "total_input_tokens", json_object_new_int64(figures.n_input));
    add(report, "total_output_tokens", json_object_new_int64(figures.n_output));
    add(report, "request_throughput", number((double)figures.n_completed / duration_s));
    add(report, "request_goodput",
        config->goals ? number((double)figures.n_good / duration_s) : NULL);
    add(report, "output_throughput", number((double)figures.n_output / duration_s));
    add(report, "total_token_throughput",
        number((double)(figures.n_input + figures.n_output) / duration_s));
    add(report, "max_concurrent_requests", json_object_new_int64(result->n_concurrent_max));
    add_series(report, "ttft", &figures.ttft, config);
    add_series(report, "tpot", &figures.tpot, config);
    add_series(report, "itl", &figures.itl, config);
    add_series(report, "e2el", &figures.e2el, config);
    if (config->detailed) add_details(report, &figures);
    json_object_put(figures.input_lens);
    json_object_put(figures.output_lens);
    json_object_put(figures.ttfts);
    json_object_put(figures.itls);
    json_object_put(figures.errors);
    free(values);
    return report;
}

/* ---- for people --------------------------------------------------------------------------- */

static const char *value_text(struct json_object *value, char text[40])
{
    if (!value) return "-";
    if (!json_object_is_type(value, json_type_double)) return json_object_get_string(value);
    snprintf(text, 40, "%.2f", json_object_get_double(value));
    return text;
}

static bool is_figure(struct json_object *value)
{
    return !json_object_is_type(value, json_type_array) &&
           !json_object_is_type(value, json_type_object);
}

void load_report_print_text(FILE *out, struct json_object *report)
{
    char text[40];
    json_object_object_foreach(report, key, value)
    {
        if (!is_figure(value)) continue;
        fprintf(out, "%-26s %s\n", key, value_text(value, text));
        if (strcmp(key, "failed")) continue;
        struct json_object *failures = json_object_object_get(report, "failures");
        json_object_object_foreach(failures, kind, count)
        {
            fprintf(out, "  %-24s %s\n", kind, json_object_get_string(count));
        }
    }
}

void load_report_print_md(FILE *out, struct json_object *report)
{
    char text[40];
    fprintf(out, "| %-26s | %14s |\n| -------------------------- | -------------: |\n", "figure",
            "value");
    json_object_object_foreach(report, key, value)
    {
        if (is_figure(value)) fprintf(out, "| %-26s | %14s |\n", key, value_text(value, text));
    }
}

/* ---- comparison --------------------------------------------------------------------------- */

static bool more_is_better(const char *metric)
{
    return strstr(metric, "throughput") || strstr(metric, "goodput") ||
           !strcmp(metric, "completed");
}

static enum lm_status read_metric(struct json_object *report, const char *which, const char *metric,
                                  double *out, struct lm_error *err)
{
    struct json_object *value = NULL;
    const bool found = json_object_object_get_ex(report, metric, &value);
    *out = NAN;
    if (found && !value) return LM_OK; /* no request had it */
    if (!json_object_is_type(value, json_type_double) && !json_object_is_type(value, json_type_int))
        return lm_fail(err, LM_E_USAGE, "%s has no figure '%.60s'", which, metric);
    *out = json_object_get_double(value);
    return LM_OK;
}

static enum lm_status compare_metric(FILE *out, struct json_object *old, struct json_object *now,
                                     const char *metric, double threshold, bool *worse,
                                     struct lm_error *err)
{
    double before = 0, after = 0;
    enum lm_status status = read_metric(old, "the report to compare with", metric, &before, err);
    if (status == LM_OK) status = read_metric(now, "this report", metric, &after, err);
    if (status != LM_OK || isnan(before) || isnan(after)) return status;
    const double change = before != 0  ? 100 * (after - before) / fabs(before)
                          : after == 0 ? 0
                                       : INFINITY;
    const bool is_worse = (more_is_better(metric) ? -change : change) > threshold;
    fprintf(out, "%-26s %12.2f -> %12.2f  %+7.1f%%%s\n", metric, before, after, change,
            is_worse ? "  worse" : "");
    *worse |= is_worse;
    return LM_OK;
}

enum lm_status load_report_compare(FILE *out, struct json_object *old, struct json_object *now,
                                   const char *metrics, double threshold, bool *worse,
                                   struct lm_error *err)
{
    enum lm_status status = LM_OK;
    *worse = false;
    for (const char *at = metrics; *at && status == LM_OK;) {
        char metric[64];
        const size_t n = strcspn(at, ",");
        snprintf(metric, sizeof(metric), "%.*s", (int)(n < 63 ? n : 63), at);
        status = compare_metric(out, old, now, metric, threshold, worse, err);
        at += n + (at[n] == ',');
    }
    return status;
}
