/* All experts resident: views into the mapping. */
#include "worker/pager/expert_pager.h"

#include <stdlib.h>

struct expert_pager {
    struct expert_store *store;
    struct expert_pager_stats stats;
};

enum lm_status expert_pager_create(struct expert_pager **out, const struct gguf_file *file,
                                   const struct hparams *hp, uint32_t layer_begin,
                                   uint32_t layer_end, struct lm_error *err)
{
    struct expert_pager *pager = calloc(1, sizeof(*pager));
    if (!pager) return lm_fail(err, LM_E_NO_MEM, "expert pager: no memory");
    const enum lm_status status =
        expert_store_create(&pager->store, file, hp, layer_begin, layer_end, err);
    if (status != LM_OK) {
        free(pager);
        return status;
    }
    *out = pager;
    return LM_OK;
}

void expert_pager_destroy(struct expert_pager *pager)
{
    if (!pager) return;
    expert_store_destroy(pager->store);
    free(pager);
}

const struct expert_layer *expert_pager_shape(const struct expert_pager *pager, uint32_t layer)
{
    return expert_store_layer(pager->store, layer);
}

enum lm_status expert_pager_acquire(struct expert_pager *pager, const struct expert_key *keys,
                                    size_t n, struct expert_view *out, struct lm_error *err)
{
    (void)err; /* nothing can fail while everything is resident */
    for (size_t i = 0; i < n; i++)
        out[i] = expert_store_mapped(pager->store, keys[i]);
    pager->stats.n_lookup += n;
    return LM_OK;
}

void expert_pager_release(struct expert_pager *pager, const struct expert_key *keys, size_t n)
{
    (void)pager, (void)keys, (void)n; /* nothing is ever evicted */
}

struct expert_pager_stats expert_pager_stats(const struct expert_pager *pager)
{
    return pager->stats;
}
