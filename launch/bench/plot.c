/* A script and its data on gnuplot's standard input, a picture from its standard output. */
#include "launch/bench/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch/find_program.h"
#include "proto/base/read_all.h"

enum { MAX_SVG_BYTES = 1 << 26, NOT_FOUND = 127 };

enum lm_status plot_add(struct plot *plot, const char *name, struct plot_point point,
                        struct lm_error *err)
{
    struct plot_series *series = NULL;
    if (!isfinite(point.x) || !isfinite(point.y)) return LM_OK;
    for (size_t i = 0; i < plot->n_series; i++)
        if (!strcmp(plot->series[i].name, name)) series = &plot->series[i];
    if (!series) {
        struct plot_series *const grown =
            realloc(plot->series, (plot->n_series + 1) * sizeof(*grown));
        if (!grown) return lm_fail(err, LM_E_NO_MEM, "no memory for a plot");
        plot->series = grown;
        series = &grown[plot->n_series++];
        *series = (struct plot_series){.n = 0};
        snprintf(series->name, sizeof(series->name), "%s", name);
    }
    struct plot_point *const grown = realloc(series->point, (series->n + 1) * sizeof(*grown));
    if (!grown) return lm_fail(err, LM_E_NO_MEM, "no memory for a plot");
    series->point = grown;
    series->point[series->n++] = point;
    return LM_OK;
}

void plot_fini(struct plot *plot)
{
    for (size_t i = 0; i < plot->n_series; i++)
        free(plot->series[i].point);
    free(plot->series);
    plot->series = NULL;
    plot->n_series = 0;
}

bool plot_available(void)
{
    return find_program("gnuplot");
}

/* ---- the script --------------------------------------------------------------------------- */

/* In single quotes, where a quote is written twice and nothing else means anything. */
static void quote(FILE *out, const char *text)
{
    putc('\'', out);
    for (; *text; text++) {
        if (*text == '\'') putc('\'', out);
        putc((unsigned char)*text < ' ' ? ' ' : *text, out);
    }
    putc('\'', out);
}

static void write_data(FILE *out, const struct plot *plot)
{
    for (size_t i = 0; i < plot->n_series; i++) {
        const struct plot_series *series = &plot->series[i];
        fprintf(out, "$data%zu << EOD\n", i);
        for (size_t k = 0; k < series->n; k++)
            fprintf(out, "%.9g %.9g %.9g\n", series->point[k].x, series->point[k].y,
                    series->point[k].spread);
        fputs("EOD\n", out);
    }
    if (!plot->heat) return;
    fputs("$heat << EOD\n", out);
    for (size_t row = 0; row < plot->n_row; row++)
        for (size_t column = 0; column < plot->n_column; column++)
            fprintf(out, "%.6g%c", plot->heat[row * plot->n_column + column],
                    column + 1 < plot->n_column ? ' ' : '\n');
    fputs("EOD\n", out);
}

/* Colours that stay apart, also for those who see fewer of them (Okabe and Ito), on white. */
static const char *const colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                     "#56b4e9", "#8b6508", "#e69f00", "#000000"};
enum { N_COLOR = sizeof(colors) / sizeof(colors[0]) };

static double coordinate(const struct plot_point *point, bool y)
{
    return y ? point->y : point->x;
}

/* A logarithmic axis as wide as the points, with ticks at round numbers. */
static void write_log_axis(FILE *out, const struct plot *plot, bool y)
{
    double least = INFINITY, most = 0;
    for (size_t i = 0; i < plot->n_series; i++)
        for (size_t k = 0; k < plot->series[i].n; k++) {
            const double at = coordinate(&plot->series[i].point[k], y);
            if (at > 0) least = fmin(least, at);
            most = fmax(most, at);
        }
    if (!(most > 0)) least = most = 1;
    least /= 1.3;
    most *= 1.3;
    const char axis = y ? 'y' : 'x';
    fprintf(out, "set logscale %c\nset %crange [%.9g:%.9g]\nset %ctics (", axis, axis, least, most,
            axis);
    /* more of them on a short axis */
    static const double few[] = {1}, some[] = {1, 2, 5}, many[] = {1, 1.5, 2, 3, 4, 5, 7};
    const double decades = log10(most / least);
    const double *const steps = decades > 2.5 ? few : decades > 0.8 ? some : many;
    const int n_step = decades > 2.5 ? 1 : decades > 0.8 ? 3 : 7;
    const char *separator = "";
    for (int decade = (int)floor(log10(least)); pow(10, decade) <= most; decade++)
        for (int i = 0; i < n_step; i++) {
            const double at = steps[i] * pow(10, decade);
            if (at < least || at > most) continue;
            fprintf(out, "%s'%g' %.9g", separator, at, at);
            separator = ", ";
        }
    fputs(")\n", out);
}

static void write_axis(FILE *out, const struct plot *plot, bool y)
{
    if (y ? plot->log_y : plot->log_x)
        write_log_axis(out, plot, y);
    else
        fprintf(out, "set %crange [0:*]\n", y ? 'y' : 'x');
}

static void write_series(FILE *out, const struct plot *plot)
{
    static const size_t shapes[] = {7, 5, 9, 11, 13};
    static const int dashes[] = {2, 4, 5};
    enum { N_SHAPE = sizeof(shapes) / sizeof(shapes[0]) };
    enum { N_DASH = sizeof(dashes) / sizeof(dashes[0]) };
    size_t n_curve = 0;
    for (size_t i = 0; i < plot->n_series; i++) {
        const struct plot_series *series = &plot->series[i];
        bool spreads = false;
        for (size_t k = 0; k < series->n; k++)
            spreads |= series->point[k].spread > 0;
        const char *color = colors[i % N_COLOR];
        char style[24];
        snprintf(style, sizeof(style), "lines lw 1.5 dt %d", dashes[n_curve % N_DASH]);
        n_curve += series->curve;
        fprintf(out, "%s $data%zu using 1:2 with %s lc rgb '%s' pt %zu ps 0.6 title ",
                i ? "," : "plot", i,
                series->curve  ? style
                : series->bare ? "points"
                               : "linespoints",
                color, series->bare ? shapes[i % N_SHAPE] : shapes[0]);
        quote(out, series->name);
        if (spreads)
            fprintf(out, ", $data%zu using 1:2:3 with yerrorbars lc rgb '%s' pt 7 ps 0.6 notitle",
                    i, color);
    }
    putc('\n', out);
}

static void write_script(FILE *out, const struct plot *plot, const char *id)
{
    fprintf(out,
            "set terminal svg size 760,420 dynamic noenhanced font 'sans-serif,13' name '%s' "
            "background '#ffffff'\n",
            id);
    write_data(out, plot);
    fputs("set xlabel ", out);
    quote(out, plot->x_label);
    fputs("\nset ylabel ", out);
    quote(out, plot->y_label);
    fputs("\nset border 3\nset tics nomirror\nset grid lc '#dddddd'\n", out);
    if (plot->heat) {
        fprintf(out,
                "set palette defined (0 '#f7fbff', 0.5 '#6baed6', 1 '#08306b')\nunset key\n"
                "set xrange [-0.5:%zu.5]\nset yrange [-0.5:%zu.5]\n"
                "set ytics 0,%zu\nset cblabel ",
                plot->n_column - 1, plot->n_row - 1, plot->n_row / 12 + 1);
        quote(out, plot->heat_label);
        /* rectangles: a picture would be smoothed by whoever shows it */
        fputs("\nplot $heat matrix with image pixels\n", out);
        return;
    }
    fputs("set key outside right top font ',10'\n", out);
    write_axis(out, plot, false);
    write_axis(out, plot, true);
    if (plot->whole_x) fputs("set xtics 1\n", out);
    write_series(out, plot);
}

/* ---- gnuplot ------------------------------------------------------------------------------ */

/* In the child; does not return. */
static void become(int in, int out)
{
    const int null = open("/dev/null", O_WRONLY);
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(null, 2) < 0) _exit(1);
    execlp("gnuplot", "gnuplot", "-", (char *)NULL);
    _exit(errno == ENOENT ? NOT_FOUND : 1);
}

static enum lm_status run(int in, char **text, size_t *n, struct lm_error *err)
{
    int ends[2], state = 0;
    if (pipe2(ends, O_CLOEXEC) != 0) return lm_fail_errno(err, "pipe");
    const pid_t child = fork();
    if (child == 0) become(in, ends[1]);
    close(ends[1]);
    enum lm_status status = child < 0 ? lm_fail_errno(err, "fork")
                                      : read_all(ends[0], "gnuplot", MAX_SVG_BYTES, text, n, err);
    close(ends[0]);
    while (child > 0 && waitpid(child, &state, 0) < 0 && errno == EINTR)
        ;
    if (status != LM_OK || !state) return status;
    free(*text);
    if (WIFEXITED(state) && WEXITSTATUS(state) == NOT_FOUND)
        return lm_fail(err, LM_E_UNSUPPORTED, "there is no gnuplot");
    return lm_fail(err, LM_E_FAIL, "gnuplot failed");
}

/* The element alone: what precedes it belongs to a file of its own. */
static enum lm_status cut_element(char *text, char **svg, struct lm_error *err)
{
    const char *element = strstr(text, "<svg");
    *svg = element ? strdup(element) : NULL;
    free(text);
    return *svg ? LM_OK : lm_fail(err, LM_E_FAIL, "gnuplot drew nothing");
}

enum lm_status plot_draw(const struct plot *plot, const char *id, char **svg, struct lm_error *err)
{
    char *text;
    size_t n;
    const int fd = memfd_create("plot", MFD_CLOEXEC);
    FILE *script = fd < 0 ? NULL : fdopen(fd, "w");
    if (!script) {
        if (fd >= 0) close(fd);
        return lm_fail_errno(err, "plot");
    }
    write_script(script, plot, id);
    enum lm_status status = fflush(script) ? lm_fail_errno(err, "plot") : LM_OK;
    if (status == LM_OK && lseek(fd, 0, SEEK_SET) < 0) status = lm_fail_errno(err, "plot");
    if (status == LM_OK) status = run(fd, &text, &n, err);
    fclose(script);
    return status == LM_OK ? cut_element(text, svg, err) : status;
}
