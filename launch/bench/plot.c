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

static void write_series(FILE *out, const struct plot *plot)
{
    for (size_t i = 0; i < plot->n_series; i++) {
        const struct plot_series *series = &plot->series[i];
        bool spreads = false;
        for (size_t k = 0; k < series->n; k++)
            spreads |= series->point[k].spread > 0;
        fprintf(out, "%s $data%zu using 1:2 with %s lc %zu pt 7 ps 0.5 title ", i ? "," : "plot", i,
                series->curve  ? "lines dt 2"
                : series->bare ? "points"
                               : "linespoints",
                i + 1);
        quote(out, series->name);
        if (spreads)
            fprintf(out, ", $data%zu using 1:2:3 with yerrorbars lc %zu pt 7 ps 0.5 notitle", i,
                    i + 1);
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
                "plot $heat matrix with image\n",
                plot->n_column - 1, plot->n_row - 1);
        return;
    }
    fputs("set key outside right top font ',10'\n", out);
    fprintf(out, "set %s\n", plot->log_x ? "logscale x" : "xrange [0:*]");
    fprintf(out, "set %s\n", plot->log_y ? "logscale y" : "yrange [0:*]");
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
