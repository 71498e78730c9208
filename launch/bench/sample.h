/* A text in the program, for benchmarks that nobody gives another: the beginning of Alice's
 * Adventures in Wonderland, by Lewis Carroll (1865; in the public domain). */
#ifndef LEAN_LAUNCH_BENCH_SAMPLE_H
#define LEAN_LAUNCH_BENCH_SAMPLE_H

#include <stddef.h>

const char *sample_text(size_t *n); /* [*n], ASCII */

#endif
