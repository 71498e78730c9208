/* One block with an entry of its own, run over what a step has brought, then row by row. */
#include "worker/graph/mtp.h"

#include <stdlib.h>
#include <string.h>

#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"
#include "worker/graph/blocks.h"
#include "worker/graph/rope_table.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/expert_store.h"
#include "worker/state/seq_state.h"

struct mtp {
    struct mtp_config config;
    struct hparams hp; /* the file's, but the layer for prediction is the last of the decoder */
    uint32_t il;       /* that layer */
    struct model *model;
    struct weight eh_proj; /* (d, 2d) */
    const float *enorm, *hnorm;
    struct expert_store *store;
    struct expert_pager *pager;
    struct seq_state *state;
    struct graph graph;
    bool *lost; /* [n_slot] some position is missing */

    /* a pass */
    struct token_ref *token;     /* [n_batch] */
    int32_t *ids;                /* [n_batch] */
    uint32_t *out_rows;          /* [n_batch] */
    struct expert_usage **usage; /* [n_batch] NULL: nobody's */
    uint32_t *gather;            /* [2 n_batch] */
    uint32_t *drafting;          /* [n_batch] whose last row each wanted one is, in the plan */
    float *input;                /* [n_batch][n_embd] h of each row */
    float *halves;               /* [2][n_batch][n_embd] normed: embeddings, then hidden states */
    float *joined;               /* [n_batch][2 n_embd] */
    float *logits;               /* [n_slot][n_vocab] */
    uint32_t n_row, n_out;
};

/* ---- life --------------------------------------------------------------------------------- */

static void bind_entry(struct mtp *mtp)
{
    const struct mtp_config *config = &mtp->config;
    struct model *model = mtp->model;
    struct weight own;
    mtp->eh_proj = model_find_weight(config->file, config->hp, ROLE_NEXTN_EH_PROJ, mtp->il);
    mtp->enorm = model_find_weight(config->file, config->hp, ROLE_NEXTN_ENORM, mtp->il).data;
    mtp->hnorm = model_find_weight(config->file, config->hp, ROLE_NEXTN_HNORM, mtp->il).data;
    own = model_find_weight(config->file, config->hp, ROLE_NEXTN_SHARED_HEAD_NORM, mtp->il);
    if (own.data) model->output_norm = own.data;
    own = model_find_weight(config->file, config->hp, ROLE_NEXTN_SHARED_HEAD_HEAD, mtp->il);
    if (own.data) model->output = own;
    own = model_find_weight(config->file, config->hp, ROLE_NEXTN_EMBED_TOKENS, mtp->il);
    if (own.data) model->token_embd = own;
}

static enum lm_status create_experts(struct mtp *mtp, struct lm_error *err)
{
    const struct hparams *hp = &mtp->hp;
    enum lm_status status = expert_store_create(&mtp->store, mtp->config.file, mtp->config.hp,
                                                mtp->il, mtp->il + 1, err);
    const struct expert_pager_config pager = {.store = mtp->store,
                                              .layer_begin = mtp->il,
                                              .layer_end = mtp->il + 1,
                                              .n_expert = hp->n_expert,
                                              .n_expert_used = hp->n_expert_used};
    if (status == LM_OK) status = expert_pager_create(&mtp->pager, &pager, err);
    return status;
}

static enum lm_status create_graph(struct mtp *mtp, struct lm_error *err)
{
    const struct mtp_config *config = &mtp->config;
    const struct seq_state_config state = {.layer_begin = mtp->il,
                                           .layer_end = mtp->il + 1,
                                           .n_slot = config->n_slot,
                                           .n_ctx = config->n_ctx,
                                           .n_position = config->n_position,
                                           .n_batch = config->n_batch,
                                           .kv_type = config->kv_type};
    const struct graph_config graph = {
        .n_batch = config->n_batch, .n_ctx = config->n_ctx, .kv_type = config->kv_type};
    const struct graph_experts experts = {.pager = mtp->pager, .cpu = config->backend};
    enum lm_status status = model_create(&mtp->model, config->file, &mtp->hp, config->backend,
                                         mtp->il, mtp->il + 1, MODEL_MAPPED, err);
    if (status != LM_OK) return status;
    bind_entry(mtp);
    status = seq_state_create(&mtp->state, config->backend, &mtp->hp, &state, err);
    if (status == LM_OK)
        status = graph_init(&mtp->graph, &graph, mtp->model, mtp->state, &experts, NULL, err);
    return status;
}

static enum lm_status create_pass(struct mtp *mtp, struct lm_error *err)
{
    const struct backend_ops *ops = mtp->config.backend->ops;
    const size_t n = mtp->config.n_batch, row_bytes = mtp->hp.n_embd * sizeof(float);
    mtp->lost = calloc(mtp->config.n_slot, sizeof(*mtp->lost));
    mtp->token = calloc(n, sizeof(*mtp->token));
    mtp->ids = calloc(n, sizeof(*mtp->ids));
    mtp->out_rows = calloc(n, sizeof(*mtp->out_rows));
    mtp->usage = calloc(n, sizeof(*mtp->usage));
    mtp->gather = calloc(2 * n, sizeof(*mtp->gather));
    mtp->drafting = calloc(n, sizeof(*mtp->drafting));
    if (!mtp->lost || !mtp->token || !mtp->ids || !mtp->out_rows || !mtp->usage || !mtp->gather ||
        !mtp->drafting)
        return lm_fail(err, LM_E_NO_MEM, "MTP: no memory for steps of %zu tokens", n);
    mtp->input = ops->alloc(mtp->config.backend, n * row_bytes, err);
    if (mtp->input) mtp->halves = ops->alloc(mtp->config.backend, 2 * n * row_bytes, err);
    if (mtp->halves) mtp->joined = ops->alloc(mtp->config.backend, 2 * n * row_bytes, err);
    if (mtp->joined)
        mtp->logits = ops->alloc(mtp->config.backend,
                                 (size_t)mtp->config.n_slot * mtp->hp.n_vocab * sizeof(float), err);
    return mtp->logits ? LM_OK : LM_E_NO_MEM;
}

enum lm_status mtp_create(struct mtp **out, const struct mtp_config *config, struct lm_error *err)
{
    struct mtp *mtp = calloc(1, sizeof(*mtp));
    if (!mtp) return lm_fail(err, LM_E_NO_MEM, "MTP: no memory");
    mtp->config = *config;
    mtp->hp = *config->hp;
    mtp->il = config->hp->n_layer;
    mtp->hp.n_layer = mtp->il + 1;
    mtp->hp.n_layer_mtp = 0;
    enum lm_status status = create_experts(mtp, err);
    if (status == LM_OK) status = create_graph(mtp, err);
    if (status == LM_OK) status = create_pass(mtp, err);
    if (status != LM_OK) {
        mtp_destroy(mtp);
        return status;
    }
    *out = mtp;
    return LM_OK;
}

void mtp_destroy(struct mtp *mtp)
{
    if (!mtp) return;
    struct backend *backend = mtp->config.backend;
    float *const memory[] = {mtp->logits, mtp->joined, mtp->halves, mtp->input};
    for (size_t i = 0; i < sizeof(memory) / sizeof(memory[0]); i++)
        if (memory[i]) backend->ops->free(backend, memory[i]);
    free(mtp->drafting);
    free(mtp->gather);
    free(mtp->usage);
    free(mtp->out_rows);
    free(mtp->ids);
    free(mtp->token);
    free(mtp->lost);
    graph_fini(&mtp->graph);
    seq_state_destroy(mtp->state);
    model_destroy(mtp->model);
    expert_pager_destroy(mtp->pager);
    expert_store_destroy(mtp->store);
    free(mtp);
}

/* ---- sequences ---------------------------------------------------------------------------- */

void mtp_seq(struct mtp *mtp, const struct seq_op *op)
{
    if (op->kind == SEQ_CLEAR) {
        seq_state_clear(mtp->state, op->slot);
        mtp->lost[op->slot] = false;
    } else if (op->kind == SEQ_FORK) {
        const uint32_t length = seq_state_length(mtp->state, op->slot);
        mtp->lost[op->to] = mtp->lost[op->slot] || length < op->n;
        seq_state_fork(mtp->state, op->slot, op->to, op->n < length ? op->n : length, NULL);
    }
}

static void lose(struct mtp *mtp, uint32_t slot)
{
    seq_state_clear(mtp->state, slot);
    mtp->lost[slot] = true;
}

/* ---- passes ------------------------------------------------------------------------------- */

/* Adds a row: the token that follows position pos of a slot. */
static void add_row(struct mtp *mtp, uint32_t slot, uint32_t pos, int32_t id)
{
    mtp->token[mtp->n_row] = (struct token_ref){.slot = slot, .pos = pos};
    mtp->ids[mtp->n_row++] = id;
}

/* x = eh_proj . [norm of the embeddings | norm of input]. */
static void enter(struct mtp *mtp)
{
    struct graph *graph = &mtp->graph;
    struct backend *backend = graph->backend;
    const uint32_t n = mtp->n_row, d = mtp->hp.n_embd;
    const float eps = mtp->hp.rms_eps;
    backend->ops->embed(backend, &mtp->model->token_embd, mtp->ids, n, 1, graph->x);
    backend->ops->rms_norm(backend, graph->x, mtp->enorm, eps, n, d, mtp->halves);
    backend->ops->rms_norm(backend, mtp->input, mtp->hnorm, eps, n, d, mtp->halves + (size_t)n * d);
    for (uint32_t i = 0; i < n; i++) {
        mtp->gather[2 * i] = i;
        mtp->gather[2 * i + 1] = n + i;
    }
    backend->ops->gather(backend, mtp->halves, mtp->gather, 2 * n, d, mtp->joined);
    struct linear_args in = {.n_token = n, .x = mtp->joined, .n_col = 2 * d};
    add_output(&in, &mtp->eh_proj, NULL, graph->x);
    backend->ops->linear(backend, &in);
}

/* Runs the layer over the rows; x then holds the wanted ones, and logits their logits. */
static enum lm_status run_rows(struct mtp *mtp, struct lm_error *err)
{
    struct graph *graph = &mtp->graph;
    enum lm_status status = LM_OK;
    graph->n_token = graph->n_row = mtp->n_row;
    graph->token = mtp->token;
    graph->ids = mtp->ids;
    graph->out_rows = mtp->out_rows;
    graph->n_out = mtp->n_out;
    graph->usage = mtp->usage;
    graph->n_step++;
    expert_pager_step(mtp->pager, mtp->n_row, mtp->n_row > mtp->n_out);
    graph_fill_rope(graph);
    enter(mtp);
    graph_attention(graph, mtp->il, ROPE_NEOX);
    graph_narrow(graph, mtp->il);
    if (mtp->hp.layer[mtp->il].moe)
        status = graph_moe(graph, mtp->il, err);
    else
        graph_ffn(graph, mtp->il);
    if (status == LM_OK && mtp->n_out) graph_head(graph, 0, mtp->n_out, mtp->logits);
    const enum lm_status ended = graph->backend->ops->sync(graph->backend, err);
    return status == LM_OK ? ended : status;
}

static int32_t most_likely(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Positions of the step that stay: without drafts that were not sampled. */
static uint32_t n_valid(const struct step_seq *seq)
{
    return seq->n_draft ? seq->n_token - seq->n_draft + *seq->n_accepted : seq->n_token;
}

/* Adds the rows of a sequence whose next tokens are known. first: its first row of hidden. */
static void follow_seq(struct mtp *mtp, const struct step_seq *seq, uint32_t index,
                       const struct sampled_token *sampled, const float *hidden)
{
    const uint32_t slot = seq->slot, begin = (uint32_t)seq->n_history - seq->n_token;
    const bool samples = seq->output != STEP_OUTPUT_NONE;
    const int32_t next = seq->next < 0 && samples ? sampled->id : seq->next;
    const size_t d = mtp->hp.n_embd;
    uint32_t n = n_valid(seq);
    if (next < 0) n--;
    if (!seq->is_drafted) return;
    if (seq_state_length(mtp->state, slot) > begin) seq_state_cut(mtp->state, slot, begin);
    if (seq_state_length(mtp->state, slot) < begin || seq->error->status != LM_OK) lose(mtp, slot);
    if (mtp->lost[slot] || !n) return;
    if (seq_state_reserve(mtp->state, slot, n, 0, NULL) != LM_OK) {
        lose(mtp, slot);
        return;
    }
    memcpy(mtp->input + mtp->n_row * d, hidden, n * d * sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        const bool inside = i + 1 < n_valid(seq);
        add_row(mtp, slot, begin + i, inside ? seq->ids[i + 1] : next);
    }
    seq_state_advance(mtp->state, slot, n);
    if (!samples || !seq->n_wanted) return;
    mtp->out_rows[mtp->n_out] = mtp->n_row - 1;
    mtp->drafting[mtp->n_out++] = index;
}

/* Takes a draft for each wanted row, and makes these the rows of the next pass, as far as more are
 * wanted: positions behind what the sequences hold, in the room that there is. */
static void go_on(struct mtp *mtp, const struct step_plan *plan)
{
    struct graph *graph = &mtp->graph;
    const size_t d = mtp->hp.n_embd, n_vocab = mtp->hp.n_vocab;
    const uint32_t n = mtp->n_out;
    graph->backend->ops->rms_norm(graph->backend, graph->x, mtp->model->output_norm,
                                  mtp->hp.rms_eps, n, (uint32_t)d, mtp->halves);
    mtp->n_row = mtp->n_out = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t index = mtp->drafting[i];
        const struct step_seq *seq = &plan->seq[index];
        const uint32_t length = seq_state_length(mtp->state, seq->slot);
        const int32_t id = most_likely(mtp->logits + i * n_vocab, (uint32_t)n_vocab);
        const uint32_t n_drafted = ++*seq->n_drafted;
        seq->drafts[n_drafted - 1] = id;
        if (n_drafted == seq->n_wanted || length >= mtp->config.n_ctx) continue;
        if (seq_state_reserve(mtp->state, seq->slot, 1, 0, NULL) != LM_OK) continue;
        memcpy(mtp->input + mtp->n_row * d, mtp->halves + i * d, d * sizeof(float));
        add_row(mtp, seq->slot, length, id);
        seq_state_advance(mtp->state, seq->slot, 1);
        mtp->out_rows[mtp->n_out] = mtp->n_row - 1;
        mtp->drafting[mtp->n_out++] = index;
    }
}

enum lm_status mtp_follow(struct mtp *mtp, const struct step_plan *plan,
                          const struct sampled_token *sampled, const float *hidden,
                          struct lm_error *err)
{
    enum lm_status status = LM_OK;
    mtp->n_row = mtp->n_out = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const struct step_seq *seq = &plan->seq[i];
        follow_seq(mtp, seq, i, &sampled[i], hidden);
        hidden += (size_t)seq->n_token * mtp->hp.n_embd;
    }
    while (mtp->n_row && status == LM_OK) {
        status = run_rows(mtp, err);
        if (status == LM_OK) go_on(mtp, plan);
    }
    for (uint32_t i = 0; status != LM_OK && i < plan->n_seq; i++)
        lose(mtp, plan->seq[i].slot);
    return status;
}
