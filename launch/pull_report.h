/* What `lean pull` shows: the plan, a bar for each file on a terminal, plain lines elsewhere, or
 * JSON events.
 *
 * Threads: one owner. */
#ifndef LEAN_LAUNCH_PULL_REPORT_H
#define LEAN_LAUNCH_PULL_REPORT_H

#include <stdbool.h>

#include "coordinator/hub/pull.h"

struct pull_report;

struct pull_report_config {
    bool json;    /* events on stdout */
    bool quiet;   /* only errors */
    bool dry_run; /* the plan is the result */
};

/* NULL: no memory. */
struct pull_report *pull_report_create(const struct pull_report_config *config);
void pull_report_destroy(struct pull_report *report); /* NULL is legal; clears bars */
const struct pull_view *pull_report_view(struct pull_report *report);
/* The last event, or the line on stdout. */
void pull_report_result(struct pull_report *report, const struct pull_result *result);

#endif
