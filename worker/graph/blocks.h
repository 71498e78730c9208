/* What the files of blocks share. */
#ifndef LEAN_WORKER_GRAPH_BLOCKS_H
#define LEAN_WORKER_GRAPH_BLOCKS_H

#include "worker/graph/graph.h"

/* Space of a buffer of n floats: whole cache lines. */
static inline size_t buffer_floats(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* Cuts a buffer of n floats off a workspace. */
static inline float *take_buffer(float **at, size_t n)
{
    float *const buffer = *at;
    *at += buffer_floats(n);
    return buffer;
}

/* A matrix's share of a linear: y[t] = W x[t] (+ bias), rows of y packed. */
static inline void add_output(struct linear_args *args, const struct weight *w, const float *bias,
                              float *y)
{
    args->out[args->n_out].w = w;
    args->out[args->n_out].bias = bias;
    args->out[args->n_out].y = y;
    args->out[args->n_out].y_stride = w->n_row;
    args->n_out++;
}

/* A block's projection back to the residual stream: x += (post-norm of) W in (+ bias). */
static inline void project_back(struct graph *graph, const struct weight *w, const float *bias,
                                const float *in, const float *post_norm)
{
    struct linear_args args = {.n_token = graph->n_row, .x = in, .n_col = w->n_col};
    add_output(&args, w, bias, NULL);
    args.epilogue = (struct epilogue){post_norm, graph->hp->rms_eps, graph->x};
    graph->backend->ops->linear(graph->backend, &args);
}

/* The tables of angles reach as far as the batch. */
void graph_fill_rope(struct graph *graph);

/* Whether behind the last layer's mixer only the wanted rows go on. */
static inline bool graph_narrows(const struct graph *graph)
{
    return !graph->trace && !graph->hidden;
}

/* With a bank, at the end of a step: brings what all routers chose to the host, and when it has
 * come tells the trace and the pager. */
void graph_fetch_choices(struct graph *graph);
void graph_count_choices(struct graph *graph);

#endif
