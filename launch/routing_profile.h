/* The routing profile that a model keeps from run to run: read when its experts are paged, so that
 * the hottest are read first, and brought up to date when the engine closes.
 *
 * It lies in the user's cache directory under the model's fingerprint; where there is none yet, the
 * one that came with a pack is read. A file that is named is read instead of both. Only the first
 * is ever written. */
#ifndef LEAN_LAUNCH_ROUTING_PROFILE_H
#define LEAN_LAUNCH_ROUTING_PROFILE_H

#include "proto/base/error.h"

struct expert_pager;
struct gguf_file;
struct hparams;

/* Seeds the pager and begins the preload. path: a file, "none", or NULL for the model's own, which
 * need not exist and is no reason to fail. LM_E_NOT_FOUND, LM_E_FORMAT, LM_E_MISMATCH: of the file
 * that was named. */
enum lm_status routing_profile_load(struct expert_pager *pager, const struct gguf_file *file,
                                    const struct hparams *hp, const char *path,
                                    struct lm_error *err);
/* What the pager has seen: rows that chose each expert, to uses: [n_layer][n_expert], 0 before.
 * Returns the tokens. */
double routing_profile_uses(const struct expert_pager *pager, const struct hparams *hp,
                            double *uses);
/* Adds a run to the model's own profile. What goes wrong is a warning. */
void routing_profile_save(const struct gguf_file *file, const struct hparams *hp, double n_token,
                          const double *uses);

#endif
