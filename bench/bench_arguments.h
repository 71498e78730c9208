/* Options of the measuring programs: --name value, behind the model. */
#ifndef LEAN_BENCH_BENCH_ARGUMENTS_H
#define LEAN_BENCH_BENCH_ARGUMENTS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The value of an option, or `otherwise`. */
static inline const char *text_argument(int argc, char **argv, const char *name,
                                        const char *otherwise)
{
    for (int i = 2; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return otherwise;
}

static inline uint32_t number_argument(int argc, char **argv, const char *name, uint32_t otherwise)
{
    const char *text = text_argument(argc, argv, name, NULL);
    return text ? (uint32_t)strtoul(text, NULL, 10) : otherwise;
}

#endif
