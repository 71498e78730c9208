/* lean bench report: a folder of results as one page, with pictures, and as Markdown. */
#include <ctype.h>
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "launch/bench/modes.h"
#include "launch/bench/plot.h"
#include "launch/bench/result_log.h"
#include "launch/bench/statistics.h"
#include "launch/bench/write_file.h"
#include "proto/base/log.h"
#include "worker/pager/heat_profile.h"
#include "worker/pager/policy.h"
#include "worker/pager/replay.h"

enum { LABEL_BYTES = 160, MAX_AXES = 32 };

struct report {
    const char *folder;
    struct json_object *rows; /* those that were measured, and those that failed */
    bool draws;
    uint32_t n_figure;
    FILE *html, *md;            /* in memory */
    const char *axis[MAX_AXES]; /* [n_axis] that have several values; of the rows */
    size_t n_axis;
};

/* ---- rows --------------------------------------------------------------------------------- */

static struct json_object *get(struct json_object *row, const char *object, const char *key)
{
    struct json_object *in = row, *value = NULL;
    if (object && !json_object_object_get_ex(row, object, &in)) return NULL;
    return json_object_object_get_ex(in, key, &value) ? value : NULL;
}

static double number(struct json_object *row, const char *object, const char *key)
{
    struct json_object *value = get(row, object, key);
    return value ? json_object_get_double(value) : NAN;
}

static const char *text(struct json_object *row, const char *object, const char *key)
{
    struct json_object *value = get(row, object, key);
    return value ? json_object_get_string(value) : "";
}

static bool is_ok(struct json_object *row)
{
    return !strcmp(text(row, NULL, "status"), "ok");
}

static size_t n_row(const struct report *report)
{
    return json_object_array_length(report->rows);
}

static struct json_object *row_at(const struct report *report, size_t i)
{
    return json_object_array_get_idx(report->rows, i);
}

static void find_axes(struct report *report)
{
    if (!n_row(report)) return;
    struct json_object *first = get(row_at(report, 0), NULL, "axes");
    if (!first) return;
    json_object_object_foreach(first, key, unused)
    {
        bool varies = false;
        (void)unused;
        for (size_t i = 1; i < n_row(report); i++)
            varies |= strcmp(text(row_at(report, i), "axes", key),
                             text(row_at(report, 0), "axes", key)) != 0;
        if (varies && report->n_axis < MAX_AXES) report->axis[report->n_axis++] = key;
    }
}

/* Of a path the last part. */
static const char *short_value(const char *value)
{
    const char *slash = strrchr(value, '/');
    return slash && slash[1] ? slash + 1 : value;
}

/* What tells a row from others: its test, and the axes but those that a picture shows. */
static void label_of(const struct report *report, struct json_object *row, const char *but,
                     char out[LABEL_BYTES])
{
    size_t used = (size_t)snprintf(out, LABEL_BYTES, "%s", text(row, NULL, "test"));
    for (size_t i = 0; i < report->n_axis && used < LABEL_BYTES; i++)
        if (!strstr(but, report->axis[i]))
            used += (size_t)snprintf(out + used, LABEL_BYTES - used, "%s%s", used ? ", " : "",
                                     short_value(text(row, "axes", report->axis[i])));
}

/* ---- the two documents -------------------------------------------------------------------- */

static void put_escaped(FILE *out, const char *from)
{
    for (; *from; from++) {
        const char *escape = *from == '<'   ? "&lt;"
                             : *from == '>' ? "&gt;"
                             : *from == '&' ? "&amp;"
                             : *from == '"' ? "&quot;"
                                            : NULL;
        if (escape)
            fputs(escape, out);
        else
            putc(*from, out);
    }
}

static void put_heading(struct report *report, const char *heading)
{
    fprintf(report->md, "\n## %s\n\n", heading);
    fputs("<h2>", report->html);
    put_escaped(report->html, heading);
    fputs("</h2>\n", report->html);
}

static void put_paragraph(struct report *report, const char *format, ...) LM_PRINTF(2, 3);

static void put_paragraph(struct report *report, const char *format, ...)
{
    char line[2000];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    fprintf(report->md, "%s\n\n", line);
    fputs("<p>", report->html);
    put_escaped(report->html, line);
    fputs("</p>\n", report->html);
}

static void begin_row(struct report *report, bool head)
{
    fputs(head ? "<table>\n<tr>" : "<tr>", report->html);
    fputs("|", report->md);
}

static void put_cell(struct report *report, bool head, const char *cell)
{
    fputs(" ", report->md);
    for (const char *at = cell; *at; at++)
        fprintf(report->md, *at == '|' ? "\\%c" : "%c", *at == '\n' ? ' ' : *at);
    fputs(" |", report->md);
    fprintf(report->html, "<%s>", head ? "th" : "td");
    put_escaped(report->html, cell);
    fprintf(report->html, "</%s>", head ? "th" : "td");
}

static void put_number(struct report *report, const char *format, double value)
{
    char cell[64] = "";
    if (isfinite(value)) sprintf(cell, format, value);
    put_cell(report, false, cell);
}

static void end_row(struct report *report, size_t n_head)
{
    fputs("</tr>\n", report->html);
    fputs("\n", report->md);
    if (!n_head) return;
    fputs("|", report->md);
    for (size_t i = 0; i < n_head; i++)
        fputs(" --- |", report->md);
    fputs("\n", report->md);
}

static void end_table(struct report *report)
{
    fputs("</table>\n", report->html);
    fputs("\n", report->md);
}

/* A picture in the page, and beside the Markdown; nothing if there is too little to show, or if
 * status, of what filled the plot, is an error, which is then returned. The plot is done with. */
static enum lm_status put_figure(struct report *report, struct plot *plot, enum lm_status status,
                                 size_t n_point_min, const char *caption, struct lm_error *err)
{
    char id[24], path[4096], *svg;
    size_t n_point = 0;
    for (size_t i = 0; i < plot->n_series; i++)
        n_point += plot->series[i].n;
    if (status == LM_OK && report->draws && (plot->heat || n_point >= n_point_min)) {
        snprintf(id, sizeof(id), "figure%u", ++report->n_figure);
        snprintf(path, sizeof(path), "%.4000s/%s.svg", report->folder, id);
        status = plot_draw(plot, id, &svg, err);
        if (status == LM_OK) {
            put_heading(report, plot->title);
            fprintf(report->html, "<figure>%s</figure>\n", svg);
            fprintf(report->md, "![%s](%s.svg)\n\n", plot->title, id);
            put_paragraph(report, "%s", caption);
            status = write_file(path, svg, strlen(svg), err);
            free(svg);
        }
    }
    plot_fini(plot);
    return status;
}

/* ---- tables ------------------------------------------------------------------------------- */

static void put_environment(struct report *report)
{
    struct json_object *row = NULL;
    for (size_t i = 0; i < n_row(report) && !row; i++)
        if (is_ok(row_at(report, i))) row = row_at(report, i);
    if (!row) return;
    put_paragraph(report, "%s with %s cores, %.1f GiB of memory, kernel %s, %s; lean %s (%s).",
                  text(row, "host", "cpu"), text(row, "host", "cores"),
                  number(row, "host", "memory_bytes") / (1 << 30), text(row, "host", "kernel"),
                  text(row, "host", "os"), text(row, "build", "version"),
                  text(row, "build", "commit"));
    put_paragraph(report, "Memory reads at %.1f GB/s, the disk at %.2f GB/s, as measured before.",
                  number(row, "machine", "memory_bytes_s") / 1e9,
                  number(row, "machine", "disk_bytes_s") / 1e9);
    put_paragraph(report, "Timed are steps of the model; neither sampling nor tokenization. Rates "
                          "are means with the standard deviation of the sample.");
}

static void put_rate(struct report *report, struct json_object *row)
{
    char cell[80];
    snprintf(cell, sizeof(cell), "%.2f ± %.2f", number(row, NULL, "mean_tok_s"),
             number(row, NULL, "stddev_tok_s"));
    put_cell(report, false, cell);
}

/* Of a prediction, or nothing. */
static void put_range(struct report *report, struct json_object *predicted)
{
    char cell[80] = "";
    if (predicted)
        snprintf(cell, sizeof(cell), "%.3g to %.3g", number(predicted, NULL, "serial_tok_s"),
                 number(predicted, NULL, "ideal_tok_s"));
    put_cell(report, false, cell);
}

static void put_results(struct report *report)
{
    static const char *const heads[] = {
        "test",       "t/s",       "predicted t/s", "by reads, t/s",   "in memory",
        "hits",       "recall",    "precision",     "waiting",         "disk GB/s",
        "load, s",    "J per run", "device J",      "first token, ms", "itl p50, ms",
        "itl p99, ms"};
    const size_t n_head = sizeof(heads) / sizeof(heads[0]);
    put_heading(report, "Results");
    begin_row(report, true);
    for (size_t i = 0; i < report->n_axis; i++)
        put_cell(report, true, report->axis[i]);
    for (size_t i = 0; i < n_head; i++)
        put_cell(report, true, heads[i]);
    end_row(report, report->n_axis + n_head);
    for (size_t i = 0; i < n_row(report); i++) {
        struct json_object *row = row_at(report, i);
        if (!is_ok(row)) continue;
        begin_row(report, false);
        for (size_t k = 0; k < report->n_axis; k++)
            put_cell(report, false, short_value(text(row, "axes", report->axis[k])));
        put_cell(report, false, text(row, NULL, "test"));
        put_rate(report, row);
        put_range(report, get(row, NULL, "predicted"));
        put_range(report, get(row, "predicted", "with_counted_reads"));
        put_number(report, "%.1f%%", 100 * number(row, "experts", "resident_share"));
        put_number(report, "%.1f%%", 100 * number(row, "experts", "hit_rate"));
        put_number(report, "%.1f%%", 100 * number(row, "experts", "prefetch_recall"));
        put_number(report, "%.1f%%", 100 * number(row, "experts", "prefetch_precision"));
        put_number(report, "%.1f%%", 100 * number(row, "experts", "wait_share"));
        put_number(report, "%.2f", number(row, "experts", "disk_bytes_s") / 1e9);
        put_number(report, "%.2f", number(row, NULL, "load_s"));
        put_number(report, "%.1f", number(row, NULL, "energy_j"));
        put_number(report, "%.1f", number(row, NULL, "accelerator_energy_j"));
        put_number(report, "%.2f", number(row, "ttft_ms", "p50"));
        put_number(report, "%.2f", number(row, "itl_ms", "p50"));
        put_number(report, "%.2f", number(row, "itl_ms", "p99"));
        end_row(report, 0);
    }
    end_table(report);
}

static void put_failures(struct report *report)
{
    bool any = false;
    for (size_t i = 0; i < n_row(report); i++) {
        struct json_object *row = row_at(report, i);
        if (is_ok(row)) continue;
        if (!any) {
            put_heading(report, "Not measured");
            begin_row(report, true);
            put_cell(report, true, "case");
            put_cell(report, true, "exit code");
            put_cell(report, true, "why");
            end_row(report, 3);
        }
        any = true;
        begin_row(report, false);
        put_cell(
            report, false,
            json_object_to_json_string_ext(get(row, NULL, "axes"), JSON_C_TO_STRING_NOSLASHESCAPE));
        put_cell(report, false, text(row, NULL, "exit_code"));
        put_cell(report, false, text(row, NULL, "message"));
        end_row(report, 0);
    }
    if (any) end_table(report);
}

/* ---- pictures ----------------------------------------------------------------------------- */

static const char residency_axes[] = "tiers.expert_slots tiers.ram.size";

static int by_x(const void *left, const void *right)
{
    const struct plot_point *a = left, *b = right;
    return a->x < b->x ? -1 : a->x > b->x;
}

static void sort_points(struct plot *plot)
{
    for (size_t i = 0; i < plot->n_series; i++)
        qsort(plot->series[i].point, plot->series[i].n, sizeof(*plot->series[i].point), by_x);
}

static bool is_decode(struct json_object *row)
{
    return number(row, NULL, "n_gen") > 0 && !(number(row, NULL, "n_prompt") > 0);
}

static enum lm_status put_speed_by_residency(struct report *report, struct lm_error *err)
{
    struct plot plot = {.title = "Speed by the part of the experts in memory",
                        .x_label = "experts in memory, %",
                        .y_label = "tokens per second",
                        .log_y = true};
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < n_row(report) && status == LM_OK; i++) {
        struct json_object *row = row_at(report, i);
        char label[LABEL_BYTES];
        if (!is_ok(row) || !get(row, NULL, "experts")) continue;
        label_of(report, row, residency_axes, label);
        status = plot_add(&plot, label,
                          (struct plot_point){100 * number(row, "experts", "resident_share"),
                                              number(row, NULL, "mean_tok_s"),
                                              number(row, NULL, "stddev_tok_s")},
                          err);
    }
    sort_points(&plot);
    return put_figure(report, &plot, status, 2,
                      "Bars are one standard deviation. What is mapped whole, with all experts "
                      "in the page cache, is not shown.",
                      err);
}

/* Curves of a routing trace over shares of the experts: what a policy has, and what the best choice
 * with knowledge of the future would have. */
static enum lm_status add_replay(struct plot *plot, const struct route_log *log,
                                 struct lm_error *err)
{
    uint32_t *const class_of = calloc(log->n_layer, sizeof(*class_of));
    uint32_t n_layer = 0, n_slot = 0;
    enum lm_status status = class_of ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a trace");
    bool *const seen = calloc(log->n_layer, sizeof(*seen));
    for (size_t i = 0; seen && i < log->n_step; i++)
        for (uint32_t k = 0; k < log->step[i].n_layer; k++)
            seen[log->step[i].layer[k].layer] = true;
    for (uint32_t il = 0; seen && status == LM_OK && il < log->n_layer; il++) {
        class_of[il] = seen[il] ? 0 : UINT32_MAX;
        n_layer += seen[il];
    }
    const struct replay_config config = {.log = &log,
                                         .n_log = 1,
                                         .class_of = class_of,
                                         .slot_of_class = &n_slot,
                                         .n_class = 1,
                                         .floor = log->n_expert_used,
                                         .half_life = 700,
                                         .by_token = true};
    for (int percent = 10; percent <= 90 && status == LM_OK; percent += 10) {
        struct replay_result bound, lfru, lru;
        n_slot = (uint32_t)(n_layer * log->n_expert * (uint64_t)percent / 100);
        if (n_slot < n_layer * log->n_expert_used) continue; /* a token does not fit */
        status = replay_bound(&config, &bound, err);
        if (status == LM_OK) status = replay_policy(&config, policy_find("lfru"), &lfru, err);
        if (status == LM_OK) status = replay_plain_lru(&config, &lru, err);
        const struct {
            const char *name;
            const struct replay_result *result;
        } curves[] = {
            {"trace: bound (Belady)", &bound}, {"trace: lfru", &lfru}, {"trace: plain lru", &lru}};
        for (size_t i = 0; i < 3 && status == LM_OK; i++)
            status = plot_add(plot, curves[i].name,
                              (struct plot_point){percent,
                                                  100.0 * (double)curves[i].result->decode.n_hit /
                                                      (double)curves[i].result->decode.n_lookup,
                                                  0},
                              err);
    }
    for (size_t i = 0; i < plot->n_series; i++)
        plot->series[i].curve |= !strncmp(plot->series[i].name, "trace: ", 7);
    free(seen);
    free(class_of);
    return status;
}

static enum lm_status put_hits(struct report *report, const char *trace, struct lm_error *err)
{
    struct plot plot = {.title = "Hits in decode by the part of the experts in memory",
                        .x_label = "experts in memory, %",
                        .y_label = "hits, %"};
    struct route_log *log = NULL;
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < n_row(report) && status == LM_OK; i++) {
        struct json_object *row = row_at(report, i);
        char label[LABEL_BYTES];
        if (!is_ok(row) || !get(row, NULL, "experts") || !is_decode(row)) continue;
        label_of(report, row, residency_axes, label);
        status = plot_add(&plot, label,
                          (struct plot_point){100 * number(row, "experts", "resident_share"),
                                              100 * number(row, "experts", "hit_rate"), 0},
                          err);
    }
    sort_points(&plot);
    if (status == LM_OK && trace) status = route_log_read(&log, trace, err);
    if (status == LM_OK && log) status = add_replay(&plot, log, err);
    route_log_destroy(log);
    return put_figure(report, &plot, status, 2,
                      trace ? "Dashed: a routing trace replayed, and the bound that no policy "
                              "can pass (Belady). Slots are shared by all layers."
                            : "With --trace FILE, a routing trace, also the bound that no "
                              "policy can pass (Belady).",
                      err);
}

static enum lm_status put_scaling(struct report *report, struct lm_error *err)
{
    struct plot plot = {.title = "Ranks",
                        .x_label = "ranks",
                        .whole_x = true,
                        .y_label = "tokens per second, all sequences together"};
    enum lm_status status = LM_OK;
    bool varies = false;
    for (size_t i = 0; i < report->n_axis; i++)
        varies |= !strcmp(report->axis[i], "cluster.ranks");
    for (size_t i = 0; i < n_row(report) && varies && status == LM_OK; i++) {
        struct json_object *row = row_at(report, i);
        char label[LABEL_BYTES];
        if (!is_ok(row)) continue;
        label_of(report, row, "cluster.ranks", label);
        status = plot_add(&plot, label,
                          (struct plot_point){number(row, "settings", "ranks"),
                                              number(row, NULL, "mean_tok_s"),
                                              number(row, NULL, "stddev_tok_s")},
                          err);
    }
    sort_points(&plot);
    return put_figure(report, &plot, status, 2,
                      "A pipeline over layers: one sequence gains nothing by more ranks of one "
                      "machine, several keep its stages busy.",
                      err);
}

/* Decoding under the roof that memory's rate sets. */
static enum lm_status put_roofline(struct report *report, struct lm_error *err)
{
    struct plot plot = {.title = "Decoding under the roof of memory",
                        .x_label = "weights read per token, GB",
                        .y_label = "tokens per second",
                        .log_x = true,
                        .log_y = true};
    enum lm_status status = LM_OK;
    double least = INFINITY, most = 0, memory = NAN, kernels = NAN, disk = NAN;
    for (size_t i = 0; i < n_row(report) && status == LM_OK; i++) {
        struct json_object *row = row_at(report, i);
        const double n_byte = number(row, NULL, "token_bytes");
        char label[LABEL_BYTES];
        if (!is_ok(row) || !get(row, NULL, "weights_bytes_s")) continue;
        label_of(report, row, "", label);
        least = fmin(least, n_byte);
        most = fmax(most, n_byte);
        memory = number(row, "machine", "memory_bytes_s");
        kernels = number(row, "machine", "dense_bytes_s");
        disk = number(row, "machine", "disk_bytes_s");
        status =
            plot_add(&plot, report->n_axis > 2 ? text(row, NULL, "test") : label,
                     (struct plot_point){n_byte / 1e9, number(row, NULL, "mean_tok_s"), 0}, err);
    }
    for (size_t i = 0; i < plot.n_series; i++)
        plot.series[i].bare = true;
    const size_t n_measured = plot.n_series;
    for (int end = 0; end < 2 && n_measured && status == LM_OK; end++) {
        const double n_byte = end ? most * 2 : least / 2;
        status = plot_add(&plot, "memory, read",
                          (struct plot_point){n_byte / 1e9, memory / n_byte, 0}, err);
        if (status == LM_OK)
            status = plot_add(&plot, "memory, by the kernels",
                              (struct plot_point){n_byte / 1e9, kernels / n_byte, 0}, err);
        if (status == LM_OK)
            status = plot_add(&plot, "disk, nothing in memory",
                              (struct plot_point){n_byte / 1e9, disk / n_byte, 0}, err);
    }
    for (size_t i = n_measured; i < plot.n_series; i++)
        plot.series[i].curve = true;
    return put_figure(report, &plot, status, 5,
                      "Each token reads the weights that it uses once. What is in the "
                      "processor's cache can pass the roof.",
                      err);
}

/* The middle of a range of rates; NAN if there is none. */
static double middle_of(struct json_object *predicted)
{
    return sqrt(number(predicted, NULL, "serial_tok_s") * number(predicted, NULL, "ideal_tok_s"));
}

static enum lm_status put_prediction(struct report *report, struct lm_error *err)
{
    static const struct {
        const char *name;
        double factor;
    } lines[] = {{"as predicted", 1}, {"a quarter more", 1.25}, {"a quarter less", 0.75}};
    struct plot plot = {.title = "Prediction and measurement",
                        .x_label = "predicted, tokens per second",
                        .y_label = "measured, tokens per second",
                        .log_x = true,
                        .log_y = true};
    enum lm_status status = LM_OK;
    double least = INFINITY, most = 0;
    for (size_t i = 0; i < n_row(report) && status == LM_OK; i++) {
        struct json_object *row = row_at(report, i), *predicted = get(row, NULL, "predicted");
        if (!is_ok(row) || !predicted) continue;
        struct json_object *counted = get(predicted, NULL, "with_counted_reads");
        const double measured = number(row, NULL, "mean_tok_s"), expected = middle_of(predicted);
        const struct plot_point by_reads = {counted ? middle_of(counted) : expected, measured, 0};
        least = fmin(least, fmin(measured, fmin(expected, by_reads.x)));
        most = fmax(most, fmax(measured, fmax(expected, by_reads.x)));
        status =
            plot_add(&plot, "by expected hits", (struct plot_point){expected, measured, 0}, err);
        if (status == LM_OK) status = plot_add(&plot, "by the reads there were", by_reads, err);
    }
    const size_t n_measured = plot.n_series;
    for (size_t i = 0; i < 6 && n_measured && status == LM_OK; i++) {
        const double at = i % 2 ? most : least;
        status = plot_add(&plot, lines[i / 2].name,
                          (struct plot_point){at, lines[i / 2].factor * at, 0}, err);
    }
    for (size_t i = 0; i < plot.n_series; i++)
        *(i < n_measured ? &plot.series[i].bare : &plot.series[i].curve) = true;
    return put_figure(
        report, &plot, status, 8,
        "From the rates of this machine's kernels and disk and the model's bytes: the "
        "middle between reading one after the other and a disk that works all the "
        "time. Hits are expected as those of published models with warm caches, which "
        "synthetic routing does not have; reads are those that were counted.",
        err);
}

static enum lm_status put_heat(struct report *report, const char *path, struct lm_error *err)
{
    struct heat_profile *profile;
    enum lm_status status = heat_profile_read(&profile, path, err);
    if (status != LM_OK) return status;
    double *const rate = calloc((size_t)profile->n_layer * profile->n_expert, sizeof(*rate));
    if (!rate) {
        heat_profile_destroy(profile);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a profile");
    }
    uint32_t n_layer = 1;
    for (uint32_t il = 0; il < profile->n_layer; il++) {
        double *const own = rate + (size_t)il * profile->n_expert;
        if (!(heat_profile_rows(profile, il) > 0)) continue;
        heat_profile_rates(profile, il, own);
        n_layer = il + 1; /* those for drafts may never have run */
    }
    struct plot plot = {.title = "Which experts are used",
                        .x_label = "expert",
                        .y_label = "layer",
                        .heat = rate,
                        .heat_label = "uses per token",
                        .n_row = n_layer,
                        .n_column = profile->n_expert};
    status = put_figure(report, &plot, status, 0,
                        "Uses per row of a layer, from a routing profile.", err);
    free(rate);
    heat_profile_destroy(profile);
    return status;
}

/* ---- load reports ------------------------------------------------------------------------- */

/* A report that `lean bench serve --save` left in the folder as load*.json. */
static enum lm_status put_loads(struct report *report, struct lm_error *err)
{
    static const char *const names[] = {"ttft", "tpot", "itl", "e2el"};
    struct plot plot = {
        .title = "Latencies of a server", .x_label = "percentile", .y_label = "ms", .log_y = true};
    enum lm_status status = LM_OK;
    for (int file = 0; file < 32 && status == LM_OK; file++) {
        char path[4096], key[64], label[LABEL_BYTES];
        snprintf(path, sizeof(path), "%.4000s/load%.0d.json", report->folder, file);
        struct json_object *load = json_object_from_file(path);
        for (size_t i = 0; i < 4 && load && status == LM_OK; i++)
            for (int percent = 0; percent <= 100 && status == LM_OK; percent++) {
                snprintf(key, sizeof(key), "p%d_%s_ms", percent, names[i]);
                if (!get(load, NULL, key)) continue;
                snprintf(label, sizeof(label), "%s%s%.0d", names[i], file ? " of load" : "", file);
                status = plot_add(&plot, label,
                                  (struct plot_point){percent, number(load, NULL, key), 0}, err);
            }
        json_object_put(load);
    }
    return put_figure(report, &plot, status, 2,
                      "From load.json, load1.json, ...: what lean bench serve --save wrote.", err);
}

/* ---- the whole ---------------------------------------------------------------------------- */

static const char page_head[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>lean bench</title>\n"
    "<style>body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 "
    "1em;color:#222;background:#fff}table{border-collapse:collapse;font-size:13px;display:block;"
    "overflow-x:auto;white-space:nowrap}th,td{border-"
    "bottom:1px solid #ddd;padding:3px 9px;text-align:left;font-variant-numeric:tabular-nums}"
    "th{background:#f5f5f5}figure{margin:0}h2{margin-top:1.8em}</style></head><body>\n"
    "<h1>lean bench</h1>\n";

static enum lm_status write_documents(struct report *report, const struct options *options,
                                      struct lm_error *err)
{
    const char *trace = options_said(options, "trace") ? options_string(options, "trace") : NULL;
    const char *profile =
        options_said(options, "profile") ? options_string(options, "profile") : NULL;
    fputs(page_head, report->html);
    fputs("# lean bench\n\n", report->md);
    put_environment(report);
    if (!report->draws) put_paragraph(report, "There is no gnuplot here, so there are no plots.");
    put_results(report);
    enum lm_status status = put_speed_by_residency(report, err);
    if (status == LM_OK) status = put_hits(report, trace, err);
    if (status == LM_OK) status = put_prediction(report, err);
    if (status == LM_OK) status = put_roofline(report, err);
    if (status == LM_OK) status = put_scaling(report, err);
    if (status == LM_OK) status = put_loads(report, err);
    if (status == LM_OK && profile) status = put_heat(report, profile, err);
    put_failures(report);
    fputs("</body></html>\n", report->html);
    return status;
}

static enum lm_status write_report(struct report *report, const struct options *options,
                                   struct lm_error *err)
{
    char *html = NULL, *md = NULL, path[4096];
    size_t n_html = 0, n_md = 0;
    report->html = open_memstream(&html, &n_html);
    report->md = open_memstream(&md, &n_md);
    enum lm_status status = report->html && report->md
                                ? write_documents(report, options, err)
                                : lm_fail(err, LM_E_NO_MEM, "no memory for the report");
    if (report->html) fclose(report->html);
    if (report->md) fclose(report->md);
    snprintf(path, sizeof(path), "%.4000s/report.html", report->folder);
    if (status == LM_OK) status = write_file(path, html, n_html, err);
    snprintf(path, sizeof(path), "%.4000s/report.md", report->folder);
    if (status == LM_OK) status = write_file(path, md, n_md, err);
    if (status == LM_OK) printf("%s/report.html\n%s\n", report->folder, path);
    free(html);
    free(md);
    return status;
}

/* ---- comparison --------------------------------------------------------------------------- */

static struct statistics rates_of(struct json_object *row)
{
    struct json_object *samples = get(row, NULL, "samples_tok_s");
    const size_t n = samples ? json_object_array_length(samples) : 0;
    double *const values = calloc(n + 1, sizeof(*values));
    for (size_t i = 0; values && i < n; i++)
        values[i] = json_object_get_double(json_object_array_get_idx(samples, i));
    const struct statistics of = statistics_of(values, values ? n : 0);
    free(values);
    return of;
}

static struct json_object *find_same(struct json_object *rows, struct json_object *row)
{
    for (size_t i = 0; i < json_object_array_length(rows); i++) {
        struct json_object *other = json_object_array_get_idx(rows, i);
        if (is_ok(other) && !strcmp(text(other, NULL, "test"), text(row, NULL, "test")) &&
            json_object_equal(get(other, NULL, "axes"), get(row, NULL, "axes")))
            return other;
    }
    return NULL;
}

/* Slower for certain, by the interval, and by more than the threshold. */
static bool print_change(struct json_object *old, struct json_object *now, double threshold)
{
    const struct statistics before = rates_of(old), after = rates_of(now);
    const struct statistics_change change = statistics_compare(&before, &after);
    const bool is_worse = change.high < 0 && 100 * change.change < -threshold;
    printf("| %s | %s | %.2f ± %.2f | %.2f ± %.2f | %+.1f%% (%+.1f%% to %+.1f%%)%s |\n",
           json_object_to_json_string_ext(get(now, NULL, "axes"), JSON_C_TO_STRING_NOSLASHESCAPE),
           text(now, NULL, "test"), before.mean, before.stddev, after.mean, after.stddev,
           100 * change.change, 100 * change.low, 100 * change.high, is_worse ? " worse" : "");
    return is_worse;
}

static enum lm_status compare_folders(const char *old_folder, const char *new_folder,
                                      double threshold, struct lm_error *err)
{
    struct json_object *old = NULL, *now = NULL;
    size_t n_same = 0, n_worse = 0, n_lost = 0;
    enum lm_status status = result_log_read(&old, old_folder, err);
    if (status == LM_OK) status = result_log_read(&now, new_folder, err);
    if (status == LM_OK)
        puts("| case | test | old t/s | new t/s | change (95% interval) |\n"
             "| --- | --- | --- | --- | --- |");
    for (size_t i = 0; status == LM_OK && i < json_object_array_length(old); i++) {
        struct json_object *row = json_object_array_get_idx(old, i);
        if (!is_ok(row)) continue;
        struct json_object *same = find_same(now, row);
        n_same += same != NULL;
        n_lost += same == NULL;
        n_worse += same && print_change(row, same, threshold);
    }
    if (status == LM_OK && n_lost)
        log_warning("%zu tests of %s are not in %s", n_lost, old_folder, new_folder);
    if (status == LM_OK && !n_same)
        status =
            lm_fail(err, LM_E_USAGE, "%s and %s have no test in common", old_folder, new_folder);
    if (status == LM_OK && n_worse)
        status = lm_fail(err, LM_E_MISMATCH, "%zu of %zu tests are slower by more than %g%%",
                         n_worse, n_same, threshold);
    json_object_put(old);
    json_object_put(now);
    return status;
}

enum lm_status bench_report(struct options *options, struct lm_error *err)
{
    const char *old = options_string(options, "compare");
    if (options_n_arg(options) != 2 || options_given(options, "output"))
        return lm_fail(err, LM_E_USAGE, "bench report takes one DIR, or --compare OLD NEW");
    if (old)
        return compare_folders(old, options_arg(options, 1), options_float(options, "threshold"),
                               err);
    struct report report = {.folder = options_arg(options, 1), .draws = plot_available()};
    enum lm_status status = result_log_read(&report.rows, report.folder, err);
    if (status != LM_OK) return status;
    if (!report.draws) log_warning("there is no gnuplot: the report has tables only");
    find_axes(&report);
    status = write_report(&report, options, err);
    json_object_put(report.rows);
    return status;
}
