/* From what a user calls a model to the file that holds it. */
#ifndef LEAN_LAUNCH_MODEL_REF_H
#define LEAN_LAUNCH_MODEL_REF_H

#include <stdbool.h>

#include "proto/base/error.h"

struct gguf_file;
struct options;

/* ref: a path, file:PATH, "demo", the name or an alias of the configured model, or a model of the
 * hub (hub_names.h), which is looked for in the cache; one that is not there is pulled if somebody
 * at the terminal agrees. NULL: the configured model, else the demonstration model. *path:
 * malloc'ed. *is_demo tells that it is the demonstration model. LM_E_NOT_FOUND: there is no such
 * file or name, or it was not pulled; LM_E_USAGE: it is a device, a pipe, or a folder that is no
 * pack; what pull_run can find. */
enum lm_status model_ref_resolve(const struct options *options, const char *ref, char **path,
                                 bool *is_demo, struct lm_error *err);

/* Resolves ref and opens the file; what gguf_open can find, besides. */
enum lm_status model_ref_open(const struct options *options, const char *ref,
                              struct gguf_file **out, struct lm_error *err);

#endif
