#include "launch/job_output.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* "[12] lean: ", as ranks begin their lines. */
static bool is_log_line(const char *line, size_t n)
{
    size_t at = 1;
    if (n < 9 || line[0] != '[') return false;
    while (at < n && isdigit((unsigned char)line[at]))
        at++;
    return at > 1 && n - at >= 8 && !memcmp(line + at, "] lean: ", 8);
}

/* A ruler is a line of dashes; mpirun's other lines begin with "[host:pid]". */
static bool is_ruler(const char *line, size_t n)
{
    size_t n_dash = 0;
    while (n_dash < n && line[n_dash] == '-')
        n_dash++;
    return n_dash >= 40 && n_dash == n;
}

static bool is_remark(const char *line, size_t n)
{
    const char *colon = n && *line == '[' ? memchr(line, ':', n) : NULL;
    return colon && colon + 1 < line + n && isdigit((unsigned char)colon[1]);
}

/* Makes room by dropping the oldest lines. */
static void keep(struct job_output *output, const char *line, size_t n)
{
    if (n + 1 > sizeof(output->kept)) return;
    while (output->n_kept + n + 1 > sizeof(output->kept)) {
        const char *end = memchr(output->kept, '\n', output->n_kept);
        const size_t n_gone = (size_t)(end - output->kept) + 1;
        memmove(output->kept, output->kept + n_gone, output->n_kept - n_gone);
        output->n_kept -= n_gone;
    }
    memcpy(output->kept + output->n_kept, line, n);
    output->n_kept += n;
    output->kept[output->n_kept++] = '\n';
}

static void take_line(struct job_output *output, const char *line, size_t n)
{
    if (n && line[n - 1] == '\r') n--;
    if (is_log_line(line, n))
        fprintf(stderr, "%.*s\n", (int)n, line);
    else
        keep(output, line, n);
}

bool job_output_read(struct job_output *output, int fd)
{
    char bytes[4096];
    const ssize_t n = read(fd, bytes, sizeof(bytes));
    if (n < 0) return errno == EINTR || errno == EAGAIN;
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') output->line[output->n_line++] = bytes[i];
        if (bytes[i] != '\n' && output->n_line < sizeof(output->line)) continue;
        take_line(output, output->line, output->n_line);
        output->n_line = 0;
    }
    if (n == 0 && output->n_line) {
        take_line(output, output->line, output->n_line);
        output->n_line = 0;
    }
    return n > 0;
}

/* The next line at *at; false behind the last. in_box: whether it is between rulers, or one. */
static bool next_line(const struct job_output *output, size_t *at, const char **line, size_t *n,
                      bool *in_box)
{
    if (*at == output->n_kept) return false;
    *line = output->kept + *at;
    *n = (size_t)((const char *)memchr(*line, '\n', output->n_kept - *at) - *line);
    *at += *n + 1;
    if (is_ruler(*line, *n)) *in_box = !*in_box;
    return true;
}

/* A line that mpirun did not write. */
static bool is_plain(const char *line, size_t n, bool in_box)
{
    return n && !in_box && !is_ruler(line, n) && !is_remark(line, n);
}

bool job_output_first(const struct job_output *output, char *text, size_t size)
{
    const char *line;
    size_t at = 0, n;
    bool in_box = false;
    while (next_line(output, &at, &line, &n, &in_box)) {
        if (!is_plain(line, n, in_box)) continue;
        snprintf(text, size, "%.*s", (int)n, line);
        return true;
    }
    return false;
}

void job_output_show(const struct job_output *output, bool boxes)
{
    const char *line;
    size_t at = 0, n;
    bool in_box = false;
    while (next_line(output, &at, &line, &n, &in_box))
        if (boxes || is_plain(line, n, in_box)) fprintf(stderr, "%.*s\n", (int)n, line);
}
