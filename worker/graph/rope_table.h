/* Sine and cosine of every position and rotated pair, computed on the host in double and rounded
 * once (kernels/NUMERICS.md), stored in backend memory.
 *
 * angle of pair i at position p:  p * freq_base^(-2i / n_rot) / freq_factor[i], then
 *   linear:  divided by the factor
 *   YaRN:    divided by it for slow pairs, not for fast ones, and mixed between; both results are
 *            scaled by an attention factor
 * A pair that belongs to a position stream which text does not have is not rotated.
 *
 * Memory: address space for n_ctx positions is taken at create, rows are filled as needed, ahead of
 * that. Source: YaRN, arXiv 2309.00071; constants and their composition as the reference applies
 * them. */
#ifndef LEAN_WORKER_GRAPH_ROPE_TABLE_H
#define LEAN_WORKER_GRAPH_ROPE_TABLE_H

#include "kernels/backend.h"
#include "proto/model/hparams.h"

struct rope_table;

/* window: for the layers with a window, which have a base of their own. freq_factors: [n_rot/2] on
 * the host, or NULL. LM_E_FORMAT: a frequency that is no number or absurdly high. */
enum lm_status rope_table_create(struct rope_table **out, struct backend *backend,
                                 const struct rope_hparams *rope, bool window,
                                 const float *freq_factors, uint32_t n_ctx, struct lm_error *err);
void rope_table_destroy(struct rope_table *table);

/* Fills the rows of positions below n, at least. */
void rope_table_fill(struct rope_table *table, uint32_t n);

const float *rope_table_cos(const struct rope_table *table); /* [n_ctx][n_rot/2] */
const float *rope_table_sin(const struct rope_table *table);

#endif
