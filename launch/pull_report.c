/* Bars, lines and events. */
#include "launch/pull_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <json-c/json.h>

#include "proto/base/byte_buffer.h"
#include "proto/base/log.h"

enum { N_BAR_MAX = 10, N_CELL = 20, NAME_MAX_SHOWN = 48 };

/* Bytes per second over the last seconds. */
struct meter {
    double at_s, rate;
    uint64_t n_done;
};

/* How far a file was when it was last shown in a plain line. */
struct shown {
    double at_s;
    int percent;
};

struct pull_report {
    struct pull_report_config config;
    struct pull_view view;
    double started_s, drawn_s;
    struct meter all, *file; /* [n_file] */
    struct shown *shown;     /* [n_file] */
    size_t n_file, next_event;
    char waited_for[320];
};

/* ---- events ---- */

static struct json_object *event_of(const char *name)
{
    struct json_object *event = json_object_new_object();
    json_object_object_add(event, "event", json_object_new_string(name));
    json_object_object_add(event, "time", json_object_new_int64(time(NULL)));
    return event;
}

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

static void add_count(struct json_object *object, const char *name, uint64_t n)
{
    json_object_object_add(object, name, json_object_new_uint64(n));
}

/* Three digits behind the point are enough of a time or a rate. */
static void add_number(struct json_object *object, const char *name, double value)
{
    char text[40];
    snprintf(text, sizeof(text), "%.3f", value);
    json_object_object_add(object, name, json_object_new_double_s(value, text));
}

static void put_event(struct json_object *event)
{
    puts(json_object_to_json_string_ext(event,
                                        JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    fflush(stdout);
    json_object_put(event);
}

/* ---- texts ---- */

static const char *state_text(const struct pull_file *file, char text[32])
{
    const double share = file->n_bytes ? 100.0 * (double)file->n_done / (double)file->n_bytes : 0;
    if (file->state == PULL_PARTIAL)
        snprintf(text, 32, "partial %.0f %%", share);
    else
        snprintf(text, 32, "%s", file->state == PULL_CACHED ? "cached" : "new");
    return text;
}

/* The file's name without folders and ".gguf", as it may be written to a terminal. */
static const char *short_name(const char *path, char out[4 * NAME_MAX_SHOWN])
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 5 && !strcmp(name + n - 5, ".gguf")) n -= 5;
    if (n > NAME_MAX_SHOWN) { /* the end tells part and variant */
        name += n - NAME_MAX_SHOWN;
        n = NAME_MAX_SHOWN;
        while (n && ((unsigned char)*name & 0xc0) == 0x80) { /* not within a character */
            name++;
            n--;
        }
    }
    return log_printable(name, n, out, 4 * NAME_MAX_SHOWN);
}

static void measure(struct meter *meter, uint64_t n_done, double now_s)
{
    const double passed_s = now_s - meter->at_s;
    if (!meter->at_s || n_done < meter->n_done) {
        *meter = (struct meter){.at_s = now_s, .n_done = n_done};
    } else if (passed_s > 0.05) {
        const double rate = (double)(n_done - meter->n_done) / passed_s;
        const double weight = meter->rate ? 1 - exp(-passed_s / 3) : 1;
        *meter = (struct meter){now_s, meter->rate + weight * (rate - meter->rate), n_done};
    }
}

static double seconds_left(const struct meter *meter, uint64_t n_bytes)
{
    return meter->rate >= 1 ? (double)(n_bytes - meter->n_done) / meter->rate : -1;
}

/* "4.12/9.31 GiB  118 MiB/s  44s" */
static void format_amounts(const struct meter *meter, uint64_t n_bytes, char *out, size_t size)
{
    char done[24], all[24], rate[24], left[24] = "-";
    const double left_s = seconds_left(meter, n_bytes);
    log_format_bytes(n_bytes, all);
    log_format_bytes(meter->n_done, done);
    const char *unit = strchr(all, ' ');
    char *done_unit = strchr(done, ' ');
    if (unit && done_unit && !strcmp(unit, done_unit)) *done_unit = '\0';
    if (left_s >= 0 && left_s < 1e7) log_format_seconds(left_s, left);
    snprintf(out, size, "%8s/%-9s  %9s/s  %s", done, all,
             log_format_bytes((uint64_t)meter->rate, rate), left);
}

static int percent_of(uint64_t n_done, uint64_t n_bytes)
{
    return n_bytes ? (int)(100.0 * (double)n_done / (double)n_bytes) : 100;
}

static uint64_t done_of(const struct pull_plan *plan)
{
    uint64_t n = 0;
    for (size_t i = 0; i < plan->n_file; i++)
        n += plan->file[i].n_done;
    return n;
}

/* ---- the plan ---- */

static void print_plan(FILE *file, const struct pull_plan *plan)
{
    char size[24], state[32], missing[24];
    int width = 4;
    for (size_t i = 0; i < plan->n_file; i++)
        if ((int)strlen(plan->file[i].path) > width) width = (int)strlen(plan->file[i].path);
    fprintf(file, "%s @ %.7s", plan->repo, plan->commit);
    if (*plan->variant) fprintf(file, "  variant %s", plan->variant);
    fprintf(file, "  %zu file%s, %s\n", plan->n_file, plan->n_file == 1 ? "" : "s",
            log_format_bytes(plan->n_bytes, size));
    for (size_t i = 0; i < plan->n_file; i++) {
        char path[4 * 1024];
        log_printable(plan->file[i].path, strlen(plan->file[i].path), path, sizeof(path));
        fprintf(file, "%-*s  %9s  %s\n", width, path, log_format_bytes(plan->file[i].n_bytes, size),
                state_text(&plan->file[i], state));
    }
    fprintf(file, "to fetch: %s\n", log_format_bytes(plan->n_missing, missing));
}

static void put_plan(const struct pull_plan *plan)
{
    static const char *const states[] = {"new", "partial", "cached"};
    struct json_object *event = event_of("plan"), *files = json_object_new_array();
    add_text(event, "repo", plan->repo);
    add_text(event, "revision", plan->revision);
    add_text(event, "commit", plan->commit);
    if (*plan->variant) add_text(event, "variant", plan->variant);
    for (size_t i = 0; i < plan->n_file; i++) {
        struct json_object *file = json_object_new_object();
        add_text(file, "path", plan->file[i].path);
        add_count(file, "size", plan->file[i].n_bytes);
        add_count(file, "done", plan->file[i].n_done);
        add_text(file, "state", states[plan->file[i].state]);
        json_object_array_add(files, file);
    }
    json_object_object_add(event, "files", files);
    add_count(event, "bytes", plan->n_bytes);
    add_count(event, "bytes_to_fetch", plan->n_missing);
    put_event(event);
}

static enum lm_status on_plan(void *context, const struct pull_plan *plan, struct lm_error *err)
{
    struct pull_report *report = context;
    report->started_s = log_now_s();
    free(report->file);
    free(report->shown);
    report->all = (struct meter){0};
    report->n_file = plan->n_file;
    report->file = calloc(plan->n_file + 1, sizeof(*report->file));
    report->shown = calloc(plan->n_file + 1, sizeof(*report->shown));
    if (!report->file || !report->shown)
        return lm_fail(err, LM_E_NO_MEM, "no memory for %zu files", plan->n_file);
    for (size_t i = 0; i < plan->n_file; i++) {
        report->shown[i].at_s = report->started_s;
        report->shown[i].percent = percent_of(plan->file[i].n_done, plan->file[i].n_bytes);
    }
    if (report->config.json)
        put_plan(plan);
    else if (report->config.dry_run)
        print_plan(stdout, plan);
    else if (!report->config.quiet)
        print_plan(stderr, plan);
    return LM_OK;
}

static void on_variants(void *context, const struct hub_variant *variants, size_t n)
{
    struct pull_report *report = context;
    char size[24];
    int width = 7;
    if (report->config.quiet) return;
    for (size_t i = 0; i < n; i++)
        if ((int)strlen(variants[i].label) > width) width = (int)strlen(variants[i].label);
    fprintf(stderr, "%-*s  %9s  FILES\n", width, "VARIANT", "SIZE");
    for (size_t i = 0; i < n; i++)
        fprintf(stderr, "%-*s  %9s  %s\n", width, variants[i].label,
                log_format_bytes(variants[i].n_bytes, size), variants[i].key);
}

/* ---- progress ---- */

static void put_bar(struct byte_buffer *out, const char *name, int width, const struct meter *meter,
                    uint64_t n_bytes)
{
    char amounts[160];
    const int percent = percent_of(meter->n_done, n_bytes);
    format_amounts(meter, n_bytes, amounts, sizeof(amounts));
    byte_buffer_printf(out, "%s%-*s %3d%% ", out->n ? "\n" : "", width, name, percent);
    for (int cell = 0; cell < N_CELL; cell++)
        byte_buffer_put_text(out, cell < percent * N_CELL / 100 ? "█" : " ");
    byte_buffer_printf(out, " %s", amounts);
}

static bool is_under_way(const struct pull_file *file)
{
    return file->state != PULL_CACHED && file->n_done > 0;
}

static void draw(struct pull_report *report, const struct pull_plan *plan)
{
    struct byte_buffer text = {0};
    char name[4 * NAME_MAX_SHOWN];
    size_t n_shown = 0;
    int width = 5;
    for (size_t i = 0; i < plan->n_file; i++) {
        const int n = (int)strlen(short_name(plan->file[i].path, name));
        if (is_under_way(&plan->file[i]) && n > width) width = n;
    }
    for (size_t i = 0; i < plan->n_file && n_shown < N_BAR_MAX; i++) {
        if (!is_under_way(&plan->file[i])) continue;
        short_name(plan->file[i].path, name);
        put_bar(&text, name, width, &report->file[i], plan->file[i].n_bytes);
        n_shown++;
    }
    put_bar(&text, "total", width, &report->all, plan->n_bytes);
    if (!text.failed) log_redraw(text.data);
    byte_buffer_free(&text);
}

/* One line of a file every 10 s or 5 %. */
static void print_progress(struct pull_report *report, const struct pull_plan *plan, double now_s)
{
    char name[4 * NAME_MAX_SHOWN], amounts[160];
    for (size_t i = 0; i < plan->n_file; i++) {
        const struct pull_file *file = &plan->file[i];
        struct shown *shown = &report->shown[i];
        const int percent = percent_of(file->n_done, file->n_bytes);
        if (!is_under_way(file) || percent == 100 || now_s - shown->at_s < 1 ||
            (now_s - shown->at_s < 10 && percent < shown->percent + 5))
            continue;
        *shown = (struct shown){now_s, percent};
        format_amounts(&report->file[i], file->n_bytes, amounts, sizeof(amounts));
        fprintf(stderr, "%s %3d%% %s\n", short_name(file->path, name), percent, amounts);
    }
}

/* Two events a second at most, of one file after the other. */
static void put_progress(struct pull_report *report, const struct pull_plan *plan)
{
    for (size_t k = 0; k < plan->n_file; k++) {
        const size_t i = (report->next_event + k) % plan->n_file;
        const struct pull_file *file = &plan->file[i];
        if (!is_under_way(file)) continue;
        struct json_object *event = event_of("progress");
        const double left_s = seconds_left(&report->file[i], file->n_bytes);
        add_text(event, "file", file->path);
        add_count(event, "done", file->n_done);
        add_count(event, "total", file->n_bytes);
        add_number(event, "rate", report->file[i].rate);
        if (left_s >= 0)
            add_number(event, "eta_s", left_s);
        else
            json_object_object_add(event, "eta_s", NULL);
        put_event(event);
        report->next_event = i + 1;
        return;
    }
}

static void on_progress(void *context, const struct pull_plan *plan)
{
    struct pull_report *report = context;
    const double now_s = log_now_s();
    const bool redraws = !report->config.json && log_progress() == LOG_PROGRESS_TTY;
    if (now_s - report->drawn_s < (redraws ? 0.1 : 0.5)) return;
    report->drawn_s = now_s;
    report->waited_for[0] = '\0';
    for (size_t i = 0; i < plan->n_file; i++)
        measure(&report->file[i], plan->file[i].n_done, now_s);
    measure(&report->all, done_of(plan), now_s);
    if (report->config.json)
        put_progress(report, plan);
    else if (redraws)
        draw(report, plan);
    else if (log_progress() == LOG_PROGRESS_PLAIN)
        print_progress(report, plan, now_s);
}

static void on_file_done(void *context, const struct pull_plan *plan, size_t i)
{
    struct pull_report *report = context;
    const struct pull_file *file = &plan->file[i];
    char name[4 * NAME_MAX_SHOWN], size[24];
    if (report->config.json) {
        struct json_object *event = event_of("file_done");
        add_text(event, "path", file->path);
        add_text(event, strlen(file->hash) == 64 ? "sha256" : "git_sha1", file->hash);
        put_event(event);
    } else if (log_progress() == LOG_PROGRESS_PLAIN) {
        fprintf(stderr, "%s 100%% %s\n", short_name(file->path, name),
                log_format_bytes(file->n_bytes, size));
    }
}

static void on_warning(void *context, const char *text)
{
    struct pull_report *report = context;
    char shown[4096];
    log_printable(text, strlen(text), shown, sizeof(shown));
    if (report->config.json) {
        struct json_object *event = event_of("warning");
        add_text(event, "message", text);
        put_event(event);
    }
    log_warning("%s", shown);
}

static void on_wait(void *context, const char *path, const char *holder)
{
    struct pull_report *report = context;
    if (!strcmp(report->waited_for, holder)) return;
    snprintf(report->waited_for, sizeof(report->waited_for), "%s", holder);
    const char *slash = strrchr(path, '/');
    log_info("waiting for %s, which downloads %s", holder, slash ? slash + 1 : path);
}

/* ---- */

struct pull_report *pull_report_create(const struct pull_report_config *config)
{
    struct pull_report *report = calloc(1, sizeof(*report));
    if (!report) return NULL;
    report->config = *config;
    report->started_s = log_now_s();
    report->view = (struct pull_view){
        .context = report,
        .on_variants = on_variants,
        .on_plan = on_plan,
        .on_progress = on_progress,
        .on_file_done = on_file_done,
        .on_warning = on_warning,
        .on_wait = on_wait,
    };
    return report;
}

void pull_report_destroy(struct pull_report *report)
{
    if (!report) return;
    log_redraw("");
    free(report->file);
    free(report->shown);
    free(report);
}

const struct pull_view *pull_report_view(struct pull_report *report)
{
    return &report->view;
}

void pull_report_result(struct pull_report *report, const struct pull_result *result)
{
    log_redraw("");
    if (!report->config.json) {
        if (!report->config.dry_run) puts(result->folder);
        return;
    }
    struct json_object *event = event_of("result");
    add_text(event, "path", result->folder);
    add_text(event, "commit", result->commit);
    add_count(event, "bytes_fetched", result->n_fetched);
    add_number(event, "seconds", log_now_s() - report->started_s);
    put_event(event);
}
