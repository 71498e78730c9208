/* What the slots of all stages hold, without what is in them: a seq_state over all layers in
 * address space that is reserved and never touched. It answers at once what every stage will do,
 * and takes no memory but its tables.
 *
 * Threads: one caller. */
#ifndef LEAN_WORKER_PIPELINE_LEDGER_H
#define LEAN_WORKER_PIPELINE_LEDGER_H

#include "worker/state/seq_state.h"

struct ledger;

/* config: of the stages; its layers are all. Errors: those of seq_state_create. */
enum lm_status ledger_create(struct ledger **out, const struct hparams *hp,
                             const struct seq_state_config *config, struct lm_error *err);
void ledger_destroy(struct ledger *ledger); /* NULL is legal */
struct seq_state *ledger_state(const struct ledger *ledger);

#endif
