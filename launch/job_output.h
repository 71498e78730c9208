/* What mpirun and the ranks behind it print: a pipe's bytes, line by line.
 *
 * Log lines of ranks, "[2] lean: ...", go to stderr at once. mpirun comments on every ending in
 * boxes of dashes; these and all else are kept, the last of it, until somebody wants to know.
 *
 * Threads: one owner. */
#ifndef LEAN_LAUNCH_JOB_OUTPUT_H
#define LEAN_LAUNCH_JOB_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

enum { JOB_OUTPUT_KEPT = 16384, JOB_OUTPUT_LINE = 4096 };

struct job_output {
    char line[JOB_OUTPUT_LINE]; /* what has come of a line that is not whole */
    size_t n_line;
    char kept[JOB_OUTPUT_KEPT];
    size_t n_kept;
};

/* Zeroed before the first. Reads what is there; false: the end. */
bool job_output_read(struct job_output *output, int fd);
/* The first line outside of mpirun's boxes, cut to size; false: there is none. */
bool job_output_first(const struct job_output *output, char *text, size_t size);
/* On stderr. boxes: also what mpirun said. */
void job_output_show(const struct job_output *output, bool boxes);

#endif
