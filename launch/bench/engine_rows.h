/* Opens a model as the options say, runs tests on it, and makes a row of results of each. */
#ifndef LEAN_LAUNCH_BENCH_ENGINE_ROWS_H
#define LEAN_LAUNCH_BENCH_ENGINE_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "launch/bench/engine_test.h"

struct json_object; /* json-c */
struct options;
struct option_spec;

struct engine_plan {
    const struct engine_test *test; /* [n_test] */
    size_t n_test;
    uint32_t n_repeat; /* >= 1 */
    uint32_t n_warmup; /* runs before, at most WARMUP_TOKENS tokens are generated in one */
    double delay_s;    /* before each run */
    const char *prompts;
    uint64_t seed;
    /* Whose values rows have as "settings". */
    const struct option_spec *const *tables; /* NULL-terminated */
};

/* Appends a row for each test to rows. All engine options have one value. Besides what opening and
 * running can fail with, LM_E_LIMIT: the context that was asked for is too short for a test. */
enum lm_status engine_rows_measure(struct json_object *rows, const struct options *options,
                                   const struct engine_plan *plan, struct lm_error *err);

/* An option is known in rows by its name with '_' for '-'. */
void engine_rows_key(const char *name, char *out, size_t size);

#endif
