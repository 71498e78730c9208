/* A routing trace (proto/trace.proto) read whole: the reading side of trace.h.
 *
 * Ownership: everything that the log points to is its own.
 * Threads:   immutable after read. */
#ifndef LEAN_WORKER_PAGER_ROUTE_LOG_H
#define LEAN_WORKER_PAGER_ROUTE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

/* What the rows of a step chose in one layer. */
struct route_choice {
    uint32_t layer, n_row;  /* a layer may be computed for the first or last rows only */
    const uint32_t *expert; /* [n_row][n_expert_used] of the log, each < n_expert */
};

struct route_step {
    uint32_t n_row;
    const uint32_t *slot;     /* [n_row] sequence of the row */
    const uint32_t *position; /* [n_row] in its sequence */
    bool prefill;             /* more than one row of a sequence */
    uint32_t n_layer;
    const struct route_choice *layer; /* [n_layer] */
};

struct route_log {
    uint32_t n_layer, n_expert, n_expert_used; /* of the model */
    char architecture[64];
    bool cut_off; /* the file ends inside a record */
    size_t n_step;
    const struct route_step *step; /* [n_step] */
};

/* LM_E_FORMAT: not a trace, or one that contradicts itself. LM_E_NOT_FOUND, LM_E_IO, LM_E_LIMIT,
 * LM_E_NO_MEM. */
enum lm_status route_log_read(struct route_log **out, const char *path, struct lm_error *err);
void route_log_destroy(struct route_log *log); /* NULL is legal */

#endif
