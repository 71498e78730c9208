/* Routing profile of a model (proto/profile.proto): how often its experts were chosen, kept from
 * run to run, so that a start knows what to read first.
 *
 *   at start   read; the pager preloads by heat_profile_rates
 *   at exit    fade what is there by the tokens of this run, add the run's own uses, write
 *
 * What is counted are rows that were really routed. The last layer of a model is computed only for
 * rows whose logits are wanted, of a prompt the last one: it has fewer rows than the others, and
 * its rates are of these.
 *
 * A profile belongs to one model, told by its fingerprint and a sample of its weights, and is of no
 * use to another. One without a sample is taken for that of any model with the fingerprint.
 * Ownership: a profile is the caller's; its fields may be changed between calls.
 * Threads:   none of its own. */
#ifndef LEAN_WORKER_PAGER_HEAT_PROFILE_H
#define LEAN_WORKER_PAGER_HEAT_PROFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

enum { HEAT_PROFILE_HALF_LIFE = 1 << 18 /* tokens */ };

struct heat_profile {
    uint64_t fingerprint; /* gguf_fingerprint */
    uint64_t weights;     /* weights_sample; 0: not known, in profiles of earlier versions */
    char architecture[64];
    uint32_t n_layer, n_expert, n_expert_used;
    double n_token;
    double *uses; /* [n_layer][n_expert] rows; all 0: the layer has no routed experts, or no rows */
};

/* Without uses or a sample of the weights. LM_E_LIMIT: no model has that size. LM_E_NO_MEM. */
enum lm_status heat_profile_create(struct heat_profile **out, uint64_t fingerprint,
                                   const char *architecture, uint32_t n_layer, uint32_t n_expert,
                                   uint32_t n_expert_used, struct lm_error *err);
void heat_profile_destroy(struct heat_profile *profile); /* NULL is legal */

/* LM_E_FORMAT: malformed, or contradicts itself. LM_E_UNSUPPORTED: of another version.
 * LM_E_NOT_FOUND, LM_E_IO, LM_E_LIMIT: the file is too large to be one. LM_E_NO_MEM. */
enum lm_status heat_profile_read(struct heat_profile **out, const char *path, struct lm_error *err);
/* Into a file beside it that then takes its name, so that a reader sees the old or the new one. */
enum lm_status heat_profile_write(const struct heat_profile *profile, const char *path,
                                  struct lm_error *err);

/* LM_E_MISMATCH: the profile is of another model than that of the fingerprint and the sample of its
 * weights, 0: not known. name: of the file. */
enum lm_status heat_profile_check(const struct heat_profile *profile, const char *name,
                                  uint64_t fingerprint, uint64_t weights, struct lm_error *err);

/* n_token more tokens will be added: what is there counts half as much each HEAT_PROFILE_HALF_LIFE.
 */
void heat_profile_fade(struct heat_profile *profile, double n_token);
/* Adds uses and tokens. LM_E_MISMATCH: of another model; nothing is added. name: of from. */
enum lm_status heat_profile_add(struct heat_profile *profile, const struct heat_profile *from,
                                const char *name, struct lm_error *err);

/* Adds a run to what the file at path holds of earlier ones, faded by the run's tokens. A file that
 * is not there, is damaged or of another model is replaced. Processes that do so at once take
 * turns, by a lock on `path`.lock, which stays; LM_E_BUSY: in ten seconds there was none. */
enum lm_status heat_profile_update(const char *path, const struct heat_profile *run,
                                   struct lm_error *err);

/* Rows that a layer was computed for. */
double heat_profile_rows(const struct heat_profile *profile, uint32_t layer);
/* Uses of each expert per row of its layer, 0 to 1, to out: [n_expert]. */
void heat_profile_rates(const struct heat_profile *profile, uint32_t layer, double *out);

#endif
