/* Pictures of numbers, as SVG, drawn by gnuplot, which need not be there.
 *
 * Texts may hold anything; gnuplot takes none of it for commands. */
#ifndef LEAN_LAUNCH_BENCH_PLOT_H
#define LEAN_LAUNCH_BENCH_PLOT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct plot_point {
    double x, y, spread; /* y +- spread; 0: none */
};

struct plot_series {
    char name[160];
    struct plot_point *point; /* [n] */
    size_t n;
    bool bare;  /* points without a line between them */
    bool curve; /* a line without points */
};

struct plot {
    const char *title, *x_label, *y_label;
    bool log_x, log_y;
    bool whole_x;               /* x counts things */
    struct plot_series *series; /* [n_series] */
    size_t n_series;
    /* Instead of series: a picture of n_row by n_column values, rows upwards. */
    const double *heat;
    const char *heat_label; /* what the values are */
    size_t n_row, n_column;
};

/* Adds a point to the series of this name, which is made where there is none. LM_E_NO_MEM. */
enum lm_status plot_add(struct plot *plot, const char *name, struct plot_point point,
                        struct lm_error *err);
void plot_fini(struct plot *plot);

/* Whether there is a gnuplot. */
bool plot_available(void);

/* *svg: the element <svg>, malloc'ed. id: tells it from others of one page. LM_E_UNSUPPORTED: there
 * is no gnuplot; LM_E_FAIL: it failed. */
enum lm_status plot_draw(const struct plot *plot, const char *id, char **svg, struct lm_error *err);

#endif
