/* Figures of a load, in the terms that serving benchmarks share:
 *
 *   ttft   sent to first text          itl   each gap between texts
 *   tpot   (end - first) / (tokens - 1), of answers with two tokens or more
 *   e2el   sent to end
 *
 * The report is a JSON object; the other forms are made from it. */
#ifndef LEAN_LAUNCH_BENCH_LOAD_REPORT_H
#define LEAN_LAUNCH_BENCH_LOAD_REPORT_H

#include <stdbool.h>
#include <stdio.h>

#include "launch/bench/load_client.h"

enum { LOAD_MAX_PERCENTILES = 16 };

struct load_goals { /* seconds; infinite: any */
    double ttft_s, tpot_s, e2el_s;
};
/* "ttft:200,tpot:50,e2el:3000", milliseconds; any of them. LM_E_USAGE. */
enum lm_status load_goals_parse(struct load_goals *out, const char *text, struct lm_error *err);

struct load_report_config {
    double percentile[LOAD_MAX_PERCENTILES];
    size_t n_percentile;
    const struct load_goals *goals; /* NULL: none */
    bool detailed;                  /* with a value of each request */
};
/* "50,90,99". LM_E_USAGE. */
enum lm_status load_percentiles_parse(struct load_report_config *out, const char *text,
                                      struct lm_error *err);

/* Requests that were never sent do not count. The caller owns it. */
struct json_object *load_report_make(const struct load_result *result,
                                     const struct load_report_config *config);

void load_report_print_text(FILE *out, struct json_object *report);
void load_report_print_md(FILE *out, struct json_object *report);

/* Prints how far the metrics of two reports, names between commas, are apart. *worse: one is worse
 * by more than threshold percent. More is better of throughputs and goodput, less of all else.
 * LM_E_USAGE: a report has no such metric. */
enum lm_status load_report_compare(FILE *out, struct json_object *old, struct json_object *now,
                                   const char *metrics, double threshold, bool *worse,
                                   struct lm_error *err);

#endif
