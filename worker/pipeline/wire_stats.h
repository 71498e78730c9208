/* Counters of a rank's pager and edges as messages of proto/control.proto. */
#ifndef LEAN_WORKER_PIPELINE_WIRE_STATS_H
#define LEAN_WORKER_PIPELINE_WIRE_STATS_H

#include "proto/control.pb-c.h"
#include "worker/pager/pager_snapshot.h"

struct frame;
struct hparams;

struct worker;

/* A frame of type STATS, which free() frees. Between steps. */
enum lm_status wire_pack_stats(struct frame **out, const struct worker *worker, bool with_uses,
                               bool with_map, struct lm_error *err);
/* Held to the model: what does not fit it is LM_E_FORMAT. Freed by lean__stats__free_unpacked. */
enum lm_status wire_unpack_stats(Lean__Stats **out, const struct frame *frame,
                                 const struct hparams *hp, struct lm_error *err);
void wire_read_stats(struct pager_snapshot *out, const Lean__Stats *stats);

#endif
