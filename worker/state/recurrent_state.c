/* Records and the tables that point into them. */
#include "worker/state/recurrent_state.h"

#include <assert.h>
#include <stdlib.h>

#include "proto/model/hparams.h"
#include "worker/state/zero_memory.h"

struct recurrent_state {
    struct backend *backend;
    uint32_t n_layer, n_slot;
    size_t record_floats;
    float *memory;    /* [n_slot] records, in backend memory */
    float **conv;     /* [n_layer][n_slot] */
    float **state;    /* [n_layer][n_slot] */
    bool *zero;       /* [n_slot]: the record is all zero already */
    float *kept;      /* [n_slot][n_layer] rows, then out, in backend memory; NULL: none ever are */
    uint32_t *n_kept; /* [n_slot] */
    uint32_t n_kept_max;
    size_t conv_dim, n_head_v;
};

static size_t layer_kept_floats(const struct recurrent_state *state)
{
    return (state->n_kept_max * (state->conv_dim + 2 * state->n_head_v) + 15) / 16 * 16;
}

static size_t slot_kept_floats(const struct recurrent_state *state)
{
    return state->n_layer * layer_kept_floats(state);
}

enum lm_status recurrent_state_create(struct recurrent_state **out, struct backend *backend,
                                      const struct hparams *hp, uint32_t n_layer, uint32_t n_slot,
                                      uint32_t n_kept_max, struct lm_error *err)
{
    struct recurrent_state *state = calloc(1, sizeof(*state));
    if (!state) return lm_fail(err, LM_E_NO_MEM, "recurrent state: no memory");
    const size_t n_table = (size_t)n_layer * n_slot;
    const size_t conv_floats = (size_t)(hp->n_conv - 1) * hparams_conv_dim(hp);
    const size_t state_floats = (size_t)hp->n_head_v * hp->dim_v * hp->dim_k;
    const size_t layer_floats = (conv_floats + 15) / 16 * 16 + (state_floats + 15) / 16 * 16;
    state->backend = backend;
    state->n_layer = n_layer;
    state->n_slot = n_slot;
    state->record_floats = n_layer * layer_floats;
    state->conv = calloc(n_table, sizeof(*state->conv));
    state->state = calloc(n_table, sizeof(*state->state));
    state->zero = calloc(n_slot, sizeof(*state->zero));
    state->n_kept = calloc(n_slot, sizeof(*state->n_kept));
    state->n_kept_max = n_kept_max;
    state->conv_dim = hparams_conv_dim(hp);
    state->n_head_v = hp->n_head_v;
    if (!state->conv || !state->state || !state->zero || !state->n_kept) {
        recurrent_state_destroy(state);
        return lm_fail(err, LM_E_NO_MEM, "recurrent state: no memory for %u slots", n_slot);
    }
    state->memory =
        backend->ops->alloc(backend, n_slot * state->record_floats * sizeof(float), err);
    const size_t out_floats = (size_t)n_kept_max * hp->n_head_v * hp->dim_v;
    const size_t kept_floats = n_slot * slot_kept_floats(state) + out_floats;
    if (state->memory && kept_floats)
        state->kept = backend->ops->alloc(backend, kept_floats * sizeof(float), err);
    if (!state->memory || (kept_floats && !state->kept)) {
        recurrent_state_destroy(state);
        return LM_E_NO_MEM;
    }
    for (uint32_t i = 0; i < n_layer; i++) {
        for (uint32_t slot = 0; slot < n_slot; slot++) {
            float *const record = state->memory + slot * state->record_floats + i * layer_floats;
            state->conv[(size_t)i * n_slot + slot] = record;
            state->state[(size_t)i * n_slot + slot] = record + (conv_floats + 15) / 16 * 16;
        }
    }
    for (uint32_t slot = 0; slot < n_slot; slot++)
        state->zero[slot] = true;
    *out = state;
    return LM_OK;
}

void recurrent_state_destroy(struct recurrent_state *state)
{
    if (!state) return;
    if (state->kept) state->backend->ops->free(state->backend, state->kept);
    if (state->memory) state->backend->ops->free(state->backend, state->memory);
    free(state->n_kept);
    free(state->zero);
    free(state->state);
    free(state->conv);
    free(state);
}

float *const *recurrent_state_conv(const struct recurrent_state *state, uint32_t i)
{
    return state->conv + (size_t)i * state->n_slot;
}

float *const *recurrent_state_memory(const struct recurrent_state *state, uint32_t i)
{
    return state->state + (size_t)i * state->n_slot;
}

void recurrent_state_touch(struct recurrent_state *state, uint32_t slot)
{
    state->zero[slot] = false;
}

void recurrent_state_clear(struct recurrent_state *state, uint32_t slot)
{
    state->n_kept[slot] = 0;
    if (state->zero[slot]) return;
    zero_memory(state->backend, state->memory + slot * state->record_floats,
                state->record_floats * sizeof(float));
    state->zero[slot] = true;
}

void recurrent_state_copy(struct recurrent_state *state, uint32_t from, uint32_t to)
{
    state->backend->ops->copy(state->backend, state->memory + to * state->record_floats,
                              state->memory + from * state->record_floats,
                              state->record_floats * sizeof(float));
    state->zero[to] = state->zero[from];
    state->n_kept[to] = state->n_kept[from];
    if (!state->n_kept[from]) return;
    const size_t n_floats = slot_kept_floats(state);
    state->backend->ops->copy(state->backend, state->kept + to * n_floats,
                              state->kept + from * n_floats, n_floats * sizeof(float));
}

uint32_t recurrent_state_n_kept(const struct recurrent_state *state, uint32_t slot)
{
    return state->n_kept[slot];
}

void recurrent_state_set_kept(struct recurrent_state *state, uint32_t slot, uint32_t n)
{
    assert(n <= state->n_kept_max);
    state->n_kept[slot] = n;
}

struct kept_rows recurrent_state_kept(const struct recurrent_state *state, uint32_t i,
                                      uint32_t slot)
{
    float *const qkv = state->kept + slot * slot_kept_floats(state) + i * layer_kept_floats(state);
    float *const beta = qkv + state->n_kept_max * state->conv_dim;
    return (struct kept_rows){.qkv = qkv,
                              .beta = beta,
                              .alpha = beta + state->n_kept_max * state->n_head_v,
                              .out = state->kept + state->n_slot * slot_kept_floats(state)};
}
