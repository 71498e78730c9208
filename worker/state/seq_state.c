/* One KV cache for the layers that see everything, one for those with a window, and the recurrent
 * records: moved together. */
#include "worker/state/seq_state.h"

#include <assert.h>
#include <stdlib.h>

#include "proto/model/hparams.h"
#include "worker/state/kv_cache.h"
#include "worker/state/recurrent_state.h"

enum { GLOBAL, WINDOW, N_CACHE };

struct seq_state {
    struct seq_state_config config;
    struct kv_cache *cache[N_CACHE]; /* NULL where no layer needs one */
    struct recurrent_state *recurrent;
    uint32_t *length;  /* [n_slot] */
    uint32_t *n_draft; /* [n_slot] of the last step that was reserved, not cut since */
    bool *frozen;      /* [n_slot] n_draft > 0 */
    /* which table of which cache, or which recurrent layer: [n_layer] */
    struct {
        uint8_t cache;
        uint16_t index;
    } place[HPARAMS_MAX_LAYER];
};

/* Groups such that n_position positions in n_slot pieces always fit: each piece may end inside a
 * block. A window keeps at most itself and one batch of each sequence. */
static uint32_t n_group(const struct seq_state_config *config, uint32_t window)
{
    const uint64_t everything = config->n_position / KV_BLOCK + config->n_slot;
    if (!window) return (uint32_t)everything;
    const uint64_t reach = (uint64_t)window + config->n_batch + 2 * KV_BLOCK;
    const uint64_t kept = config->n_slot * (reach / KV_BLOCK + 1);
    return (uint32_t)(kept < everything ? kept : everything);
}

static enum lm_status create_cache(struct seq_state *state, int which, struct backend *backend,
                                   const struct hparams *hp, struct lm_error *err)
{
    const struct seq_state_config *config = &state->config;
    struct kv_cache_config cache = {.n_slot = config->n_slot, .n_ctx = config->n_ctx};
    for (uint32_t il = config->layer_begin; il < config->layer_end; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent || (layer->window != 0) != (which == WINDOW)) continue;
        const size_t n_bytes = kv_block_bytes(config->kv_type, layer->n_head_kv, hp->head_dim);
        state->place[il].cache = (uint8_t)which;
        state->place[il].index = (uint16_t)cache.n_layer++;
        cache.window = layer->window;
        if (n_bytes > cache.block_bytes) cache.block_bytes = n_bytes;
    }
    if (!cache.n_layer) return LM_OK;
    cache.n_group = cache.n_ready = n_group(config, cache.window);
    const uint64_t n_ready = (config->n_position_ready + KV_BLOCK - 1) / KV_BLOCK;
    if (which == GLOBAL && n_ready && n_ready < cache.n_group) cache.n_ready = (uint32_t)n_ready;
    return kv_cache_create(&state->cache[which], backend, &cache, err);
}

static enum lm_status create_recurrent(struct seq_state *state, struct backend *backend,
                                       const struct hparams *hp, struct lm_error *err)
{
    uint16_t n = 0;
    for (uint32_t il = state->config.layer_begin; il < state->config.layer_end; il++)
        if (hp->layer[il].recurrent) state->place[il].index = n++;
    if (!n) return LM_OK;
    const uint32_t n_kept = state->config.n_draft ? state->config.n_draft + 1 : 0;
    return recurrent_state_create(&state->recurrent, backend, hp, n, state->config.n_slot, n_kept,
                                  err);
}

enum lm_status seq_state_create(struct seq_state **out, struct backend *backend,
                                const struct hparams *hp, const struct seq_state_config *config,
                                struct lm_error *err)
{
    const struct tensor_type_info *type = tensor_type_info(config->kv_type);
    if (hp->head_dim % type->block_elems)
        return lm_fail(err, LM_E_UNSUPPORTED, "KV cache of %s: heads of %u are not blocks of %u",
                       type->name, hp->head_dim, type->block_elems);
    struct seq_state *state = calloc(1, sizeof(*state));
    if (!state) return lm_fail(err, LM_E_NO_MEM, "sequence state: no memory");
    state->config = *config;
    enum lm_status status = LM_OK;
    state->length = calloc(config->n_slot, sizeof(*state->length));
    state->n_draft = calloc(config->n_slot, sizeof(*state->n_draft));
    state->frozen = calloc(config->n_slot, sizeof(*state->frozen));
    if (!state->length || !state->n_draft || !state->frozen)
        status =
            lm_fail(err, LM_E_NO_MEM, "sequence state: no memory for %u slots", config->n_slot);
    for (int which = 0; which < N_CACHE && status == LM_OK; which++)
        status = create_cache(state, which, backend, hp, err);
    if (status == LM_OK) status = create_recurrent(state, backend, hp, err);
    if (status != LM_OK) {
        seq_state_destroy(state);
        return status;
    }
    *out = state;
    return LM_OK;
}

void seq_state_destroy(struct seq_state *state)
{
    if (!state) return;
    recurrent_state_destroy(state->recurrent);
    for (int which = 0; which < N_CACHE; which++)
        kv_cache_destroy(state->cache[which]);
    free(state->frozen);
    free(state->n_draft);
    free(state->length);
    free(state);
}

uint32_t seq_state_length(const struct seq_state *state, uint32_t slot)
{
    return state->length[slot];
}

static void set_drafts(struct seq_state *state, uint32_t slot, uint32_t n)
{
    state->n_draft[slot] = n;
    state->frozen[slot] = n > 0;
}

enum lm_status seq_state_reserve(struct seq_state *state, uint32_t slot, uint32_t n,
                                 uint32_t n_draft, struct lm_error *err)
{
    const uint32_t length = state->length[slot];
    assert(n_draft < n && n_draft <= state->config.n_draft);
    set_drafts(state, slot, n_draft);
    if (n > state->config.n_ctx - length)
        return lm_fail(err, LM_E_LIMIT, "context of %u tokens is full", state->config.n_ctx);
    /* Both are tried whatever comes of the first, so that stages which have but one of them do what
     * one with both does. */
    enum lm_status status = LM_OK;
    for (int which = 0; which < N_CACHE; which++) {
        if (!state->cache[which]) continue;
        struct lm_error *const first = status == LM_OK ? err : NULL;
        const enum lm_status tried = kv_cache_reserve(state->cache[which], slot, length, n, first);
        if (status == LM_OK) status = tried;
    }
    if (state->recurrent) recurrent_state_touch(state->recurrent, slot);
    return status;
}

void seq_state_advance(struct seq_state *state, uint32_t slot, uint32_t n)
{
    assert(n <= state->config.n_ctx - state->length[slot]);
    state->length[slot] += n;
    if (state->recurrent)
        recurrent_state_set_kept(state->recurrent, slot, state->n_draft[slot] ? n : 0);
}

void seq_state_cut(struct seq_state *state, uint32_t slot, uint32_t n)
{
    const uint32_t n_cut = state->length[slot] - n;
    const bool anywhere = !state->recurrent && !state->cache[WINDOW];
    assert(n <= state->length[slot] && (anywhere || n_cut <= state->n_draft[slot]));
    (void)anywhere;
    if (state->recurrent && state->n_draft[slot])
        recurrent_state_set_kept(state->recurrent, slot,
                                 recurrent_state_n_kept(state->recurrent, slot) - n_cut);
    for (int which = 0; which < N_CACHE; which++)
        if (state->cache[which]) kv_cache_cut(state->cache[which], slot, n);
    state->length[slot] = n;
    set_drafts(state, slot, 0);
}

void seq_state_clear(struct seq_state *state, uint32_t slot)
{
    for (int which = 0; which < N_CACHE; which++)
        if (state->cache[which]) kv_cache_clear(state->cache[which], slot);
    if (state->recurrent) recurrent_state_clear(state->recurrent, slot);
    state->length[slot] = 0;
    set_drafts(state, slot, 0);
}

enum lm_status seq_state_can_fork(const struct seq_state *state, uint32_t from, uint32_t n,
                                  struct lm_error *err)
{
    const uint32_t length = state->length[from];
    assert(n <= length);
    if (state->recurrent && n < length)
        return lm_fail(err, LM_E_UNSUPPORTED, "a recurrent state of %u tokens cannot be cut to %u",
                       length, n);
    for (int which = 0; which < N_CACHE; which++)
        if (state->cache[which] && !kv_cache_can_truncate(state->cache[which], from, n))
            return lm_fail(err, LM_E_UNSUPPORTED, "%u tokens back from %u the window is gone", n,
                           length);
    return LM_OK;
}

enum lm_status seq_state_fork(struct seq_state *state, uint32_t from, uint32_t to, uint32_t n,
                              struct lm_error *err)
{
    assert(from != to);
    const enum lm_status status = seq_state_can_fork(state, from, n, err);
    if (status != LM_OK) return status;
    for (int which = 0; which < N_CACHE; which++) {
        if (!state->cache[which]) continue;
        kv_cache_clear(state->cache[which], to);
        kv_cache_share(state->cache[which], from, to, n);
    }
    if (state->recurrent) recurrent_state_copy(state->recurrent, from, to);
    state->length[to] = n;
    set_drafts(state, to, 0);
    return LM_OK;
}

struct kv_pool seq_state_pool(const struct seq_state *state)
{
    if (!state->cache[GLOBAL]) return (struct kv_pool){.memory = NULL};
    return kv_cache_pool(state->cache[GLOBAL]);
}

void seq_state_resize_pool(struct seq_state *state, uint32_t n_ready)
{
    kv_cache_resize(state->cache[GLOBAL], n_ready);
}

uint32_t seq_state_n_lacking(const struct seq_state *state, uint32_t slot, uint32_t n)
{
    const uint32_t length = state->length[slot];
    if (!state->cache[GLOBAL] || n > state->config.n_ctx - length) return 0;
    return kv_cache_n_lacking(state->cache[GLOBAL], slot, length, n);
}

/* Of the layers that see everything, or if there are none of those with a window. */
struct seq_usage seq_state_usage(const struct seq_state *state)
{
    const int which = state->cache[GLOBAL] ? GLOBAL : WINDOW;
    if (!state->cache[which]) return (struct seq_usage){.n_position = 0};
    return kv_cache_usage(state->cache[which]);
}

void *const *const *seq_state_kv_blocks(const struct seq_state *state, uint32_t il)
{
    return kv_cache_blocks(state->cache[state->place[il].cache], state->place[il].index);
}

float *const *seq_state_conv(const struct seq_state *state, uint32_t il)
{
    return recurrent_state_conv(state->recurrent, state->place[il].index);
}

float *const *seq_state_memory(const struct seq_state *state, uint32_t il)
{
    return recurrent_state_memory(state->recurrent, state->place[il].index);
}

const bool *seq_state_frozen(const struct seq_state *state)
{
    return state->frozen;
}

uint32_t seq_state_n_kept(const struct seq_state *state, uint32_t slot)
{
    return recurrent_state_n_kept(state->recurrent, slot);
}

struct kept_rows seq_state_kept(const struct seq_state *state, uint32_t il, uint32_t slot)
{
    return recurrent_state_kept(state->recurrent, state->place[il].index, slot);
}
