/* Expert bank: all routed experts of some layers in the memory of a device, and for each layer a
 * table there by which kernels find them, so that no step has to ask the host.
 *
 * Experts are read once, layer after layer in the order of the files, and stay.
 *
 * Ownership: owns the memory; borrows the store and the backend.
 * Threads:   one caller; immutable after create. */
#ifndef LEAN_WORKER_PAGER_EXPERT_BANK_H
#define LEAN_WORKER_PAGER_EXPERT_BANK_H

#include "worker/pager/expert_store.h"

struct expert_bank;

struct expert_bank_config {
    struct backend *backend;
    const struct expert_store *store;
    uint32_t layer_begin, layer_end;
    uint32_t n_expert;
    size_t piece_bytes; /* read at once: of two pieces one is read while one is copied; 0: 16 MiB */
    /* Called as bytes arrive; NULL: nobody. */
    void (*on_progress)(void *context, uint64_t n_done, uint64_t n_total);
    void *context;
};

/* Bytes that the experts of these layers take in such a bank. */
uint64_t expert_bank_bytes(const struct expert_store *store, uint32_t layer_begin,
                           uint32_t layer_end, uint32_t n_expert);

/* LM_E_NO_MEM: of the device or the host; LM_E_IO: an expert could not be read; LM_E_FAIL: the
 * device failed. */
enum lm_status expert_bank_create(struct expert_bank **out, const struct expert_bank_config *config,
                                  struct lm_error *err);
void expert_bank_destroy(struct expert_bank *bank); /* NULL is legal */

const struct expert_layer *expert_bank_layer(const struct expert_bank *bank, uint32_t il);
/* [n_expert] in the device's memory, for ffn_args.table. */
const struct expert_view *expert_bank_table(const struct expert_bank *bank, uint32_t il);

#endif
