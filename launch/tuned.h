/* Settings that `lean bench tune` has measured to be faster with a model on this machine: defaults
 * where nobody has said anything. None of them changes a bit of what is computed.
 *
 * They lie in the user's cache folder under the host's name and the model's fingerprint (message
 * lean.Tuned), and count for engines of one rank. What another processor measured is nothing.
 *
 * Threads: one owner. */
#ifndef LEAN_LAUNCH_TUNED_H
#define LEAN_LAUNCH_TUNED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct engine_config;
struct gguf_file;
struct option_spec;
struct tuned;

/* The options that may be tuned. */
enum {
    TUNED_THREADS,
    TUNED_IO,
    TUNED_PREFETCH,
    TUNED_POLICY,
    TUNED_MISS,
    TUNED_PREFILL_CHUNK,
    TUNED_COUNT
};
const struct option_spec *tuned_option(size_t i); /* NULL after the last */

/* NULL: nothing was kept, or it is not to be read. */
struct tuned *tuned_find(const struct gguf_file *file);
/* Nothing yet, to be kept for the file's model. NULL: no memory. */
struct tuned *tuned_create(void);
void tuned_destroy(struct tuned *tuned); /* NULL is legal */

/* Of the i-th option. value: NULL if it is not tuned; belongs to tuned. */
const char *tuned_value(const struct tuned *tuned, size_t i);
double tuned_gain(const struct tuned *tuned, size_t i);
enum lm_status tuned_set(struct tuned *tuned, size_t i, const char *value, double gain,
                         struct lm_error *err);

/* Replaces what was kept. LM_E_NOT_FOUND: there is no home directory; LM_E_NO_SPACE, LM_E_IO: what
 * was kept before is as it was. */
enum lm_status tuned_keep(const struct tuned *tuned, const struct gguf_file *file,
                          struct lm_error *err);
/* *found: something was kept. */
enum lm_status tuned_forget(const struct gguf_file *file, bool *found, struct lm_error *err);

/* Gives config what its options leave open, unless they say --no-tuned. Its texts may then be
 * tuned's. *text: what was given, "threads 1, io pread", or "". */
void tuned_apply(const struct tuned *tuned, struct engine_config *config, char *text, size_t size);

#endif
