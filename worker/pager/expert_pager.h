/* Expert pager: keeps routed experts' weights where the next matmul can read them.
 *
 * The pager decides where an expert's weights are; it never computes and never changes a weight,
 * so logits cannot depend on it. Here every expert is resident: its weights are read in the mapping
 * of the file, and the operating system's page cache is the only tier.
 *
 * Ownership: views are lent by acquire until release; the mapping belongs to the gguf_file.
 * Threads:   the step thread. */
#ifndef LEAN_WORKER_PAGER_EXPERT_PAGER_H
#define LEAN_WORKER_PAGER_EXPERT_PAGER_H

#include "worker/pager/expert_store.h"

struct expert_pager;

struct expert_pager_stats {
    uint64_t n_lookup, n_miss; /* experts asked for, and of them not resident */
    uint64_t read_bytes;       /* read from storage by the pager */
};

/* For the layers [layer_begin, layer_end) of a file that hparams_read has accepted.
 * LM_E_UNSUPPORTED: experts of one layer differ in type. */
enum lm_status expert_pager_create(struct expert_pager **out, const struct gguf_file *file,
                                   const struct hparams *hp, uint32_t layer_begin,
                                   uint32_t layer_end, struct lm_error *err);
void expert_pager_destroy(struct expert_pager *pager);

/* What the experts of a layer have in common. */
const struct expert_layer *expert_pager_shape(const struct expert_pager *pager, uint32_t layer);

/* Makes n experts of one layer readable. keys: [n], distinct; out: [n] in the order of keys, valid
 * until expert_pager_release of the same keys. */
enum lm_status expert_pager_acquire(struct expert_pager *pager, const struct expert_key *keys,
                                    size_t n, struct expert_view *out, struct lm_error *err);
void expert_pager_release(struct expert_pager *pager, const struct expert_key *keys, size_t n);

struct expert_pager_stats expert_pager_stats(const struct expert_pager *pager);

#endif
