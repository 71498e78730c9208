/* The modes of `lean bench`; each gets its options parsed. */
#ifndef LEAN_LAUNCH_BENCH_MODES_H
#define LEAN_LAUNCH_BENCH_MODES_H

#include <stdbool.h>

#include "launch/options.h"

extern const struct option_spec options_bench[];       /* repetitions, output, ... */
extern const struct option_spec options_bench_tests[]; /* n-prompt, n-gen, ...: lists of values */

extern const struct option_spec options_bench_load[]; /* url, request-rate, ... */

extern const struct option_spec options_bench_predict[]; /* rates that are not measured */

/* A server: lean bench serve. LM_E_FAIL: a request failed; LM_E_MISMATCH: worse than what it was
 * compared with. */
enum lm_status bench_load(struct options *options, struct lm_error *err);

/* Combinations of a file into a folder: lean bench sweep. A case that fails is reported, and does
 * not end it. */
enum lm_status bench_sweep(struct options *options, struct lm_error *err);

/* A folder as a page and as Markdown, or two folders against each other: lean bench report.
 * LM_E_MISMATCH: the new one is slower. */
enum lm_status bench_report(struct options *options, struct lm_error *err);

/* How fast a model would be that is not here: lean bench predict. */
enum lm_status bench_predict(struct options *options, struct lm_error *err);

extern const struct option_spec options_bench_tune[]; /* time, forget */

/* Settings that make a model faster here, kept as defaults: lean bench tune. LM_E_FAIL: the model
 * does not run. */
enum lm_status bench_tune(struct options *options, struct lm_error *err);

/* A model on this machine: lean bench REF. */
enum lm_status bench_engine(struct options *options, struct lm_error *err);
/* Whether it takes several runs of the program, each with other values of the engine's options. */
bool bench_engine_has_arms(const struct options *options);

#endif
