/* Writes the routing trace of proto/trace.proto: what every token chose in every layer. Of a stage
 * among several the records of each step are taken to where the file is.
 *
 * Errors stick and are reported by close, so that recording never stops a step.
 * Threads: the step thread. */
#ifndef LEAN_WORKER_PAGER_TRACE_H
#define LEAN_WORKER_PAGER_TRACE_H

#include "kernels/backend.h"

struct hparams;
struct route_trace;

/* path NULL: records are kept to be taken. n_batch: rows of a step at most. */
enum lm_status route_trace_create(struct route_trace **out, const char *path,
                                  const struct hparams *hp, uint32_t n_batch, struct lm_error *err);
/* NULL is legal. The first write that failed, if any. */
enum lm_status route_trace_close(struct route_trace *trace, struct lm_error *err);

/* What was recorded since the last time, valid until the next record. */
void route_trace_take(struct route_trace *trace, const uint8_t **records, size_t *n_bytes);
/* Writes records that were taken elsewhere. */
void route_trace_append(struct route_trace *trace, const uint8_t *records, size_t n_bytes);

void route_trace_step(struct route_trace *trace, const struct token_ref *token, const int32_t *ids,
                      uint32_t n_token);
/* expert, weight: [n_token][n_expert_used] of the rows of the last route_trace_step. */
void route_trace_layer(struct route_trace *trace, uint32_t layer, const int32_t *expert,
                       const float *weight, uint32_t n_token);

#endif
