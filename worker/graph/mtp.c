/* One block with an entry of its own, run over what a step has brought, then row by row. */
#include "worker/graph/mtp.h"

#include <stdlib.h>
#include <string.h>

#include "worker/graph/blocks.h"
#include "worker/pager/device_tier.h"
#include "worker/span.h"

enum { EMBED_ROWS = 64 }; /* embeddings on their way to a device at a time */

struct mtp {
    struct mtp_config config;
    const struct hparams *hp;
    uint32_t il; /* the layer */
    struct span span;
    bool *lost; /* [n_slot] some position is missing */

    /* a pass */
    struct token_ref *token;     /* [n_batch] */
    int32_t *ids;                /* [n_batch] */
    uint32_t *from;              /* [n_batch] the row of hidden states that each has read */
    uint32_t *out_rows;          /* [n_batch] */
    struct expert_usage **usage; /* [n_batch] */
    uint32_t *gather;            /* [2 n_batch] */
    uint32_t *drafting;          /* [n_batch] whose last row each wanted one is, in the plan */
    int32_t *best;               /* [n_batch] the likeliest token behind each wanted row */
    float *halves;               /* [2][n_batch][n_embd] normed: embeddings, then hidden states */
    float *joined;               /* [n_batch][2 n_embd] */
    float *embedded; /* [EMBED_ROWS][n_embd] on the host; NULL: the span is there, too */
    uint32_t n_row, n_out;
};

/* ---- life --------------------------------------------------------------------------------- */

static enum lm_status create_span(struct mtp *mtp, struct lm_error *err)
{
    const struct span *const last = mtp->config.last;
    const struct graph_experts experts = {
        .tier = last->graph.tier, .cpu = last->graph.cpu, .pager = last->graph.pager};
    struct span_config config = {.file = mtp->config.file,
                                 .hp = mtp->hp,
                                 .store = mtp->config.store,
                                 .backend = last->backend,
                                 .is_device = last->is_device,
                                 .paged = last->paged,
                                 .state = last->config,
                                 .decoder = last->model};
    config.state.layer_begin = mtp->il;
    config.state.layer_end = mtp->il + 1;
    config.state.n_position_ready = 0; /* experts have none of it */
    config.state.n_draft = 0;          /* they are cut off by being written over */
    enum lm_status status = span_init(&mtp->span, &config, err);
    if (status == LM_OK)
        status = span_create_graph(&mtp->span, &experts, NULL, 0, &last->graph, err);
    mtp->span.graph.progress = last->graph.progress;
    return status;
}

static enum lm_status create_pass(struct mtp *mtp, struct lm_error *err)
{
    struct backend *const backend = mtp->span.backend, *const cpu = mtp->config.cpu;
    const size_t n = mtp->span.config.n_batch, row_bytes = mtp->hp->n_embd * sizeof(float);
    mtp->lost = calloc(mtp->span.config.n_slot, sizeof(*mtp->lost));
    mtp->token = calloc(n, sizeof(*mtp->token));
    mtp->ids = calloc(n, sizeof(*mtp->ids));
    mtp->from = calloc(n, sizeof(*mtp->from));
    mtp->out_rows = calloc(n, sizeof(*mtp->out_rows));
    mtp->usage = calloc(n, sizeof(*mtp->usage));
    mtp->gather = calloc(2 * n, sizeof(*mtp->gather));
    mtp->drafting = calloc(n, sizeof(*mtp->drafting));
    mtp->best = calloc(n, sizeof(*mtp->best));
    if (!mtp->lost || !mtp->token || !mtp->ids || !mtp->from || !mtp->out_rows || !mtp->usage ||
        !mtp->gather || !mtp->drafting || !mtp->best)
        return lm_fail(err, LM_E_NO_MEM, "MTP: no memory for steps of %zu tokens", n);
    mtp->halves = backend->ops->alloc(backend, 2 * n * row_bytes, err);
    if (!mtp->halves) return LM_E_NO_MEM;
    mtp->joined = backend->ops->alloc(backend, 2 * n * row_bytes, err);
    if (!mtp->joined) return LM_E_NO_MEM;
    if (mtp->span.model->has_token_embd) return LM_OK;
    mtp->embedded = cpu->ops->alloc(cpu, EMBED_ROWS * row_bytes, err);
    return mtp->embedded ? LM_OK : LM_E_NO_MEM;
}

enum lm_status mtp_create(struct mtp **out, const struct mtp_config *config, struct lm_error *err)
{
    struct mtp *mtp = calloc(1, sizeof(*mtp));
    if (!mtp) return lm_fail(err, LM_E_NO_MEM, "MTP: no memory");
    mtp->config = *config;
    mtp->hp = config->last->model->hp;
    mtp->il = mtp->hp->n_layer;
    enum lm_status status = create_span(mtp, err);
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
    struct backend *const backend = mtp->config.last->backend, *const cpu = mtp->config.cpu;
    if (mtp->embedded) cpu->ops->free(cpu, mtp->embedded);
    if (mtp->joined) backend->ops->free(backend, mtp->joined);
    if (mtp->halves) backend->ops->free(backend, mtp->halves);
    free(mtp->best);
    free(mtp->drafting);
    free(mtp->gather);
    free(mtp->usage);
    free(mtp->out_rows);
    free(mtp->from);
    free(mtp->ids);
    free(mtp->token);
    free(mtp->lost);
    span_fini(&mtp->span);
    free(mtp);
}

/* ---- sequences ---------------------------------------------------------------------------- */

void mtp_seq(struct mtp *mtp, const struct seq_op *op)
{
    if (op->kind == SEQ_CLEAR) {
        seq_state_clear(mtp->span.state, op->slot);
        mtp->lost[op->slot] = false;
    } else if (op->kind == SEQ_FORK) {
        const uint32_t length = seq_state_length(mtp->span.state, op->slot);
        mtp->lost[op->to] = mtp->lost[op->slot] || length < op->n;
        seq_state_fork(mtp->span.state, op->slot, op->to, op->n < length ? op->n : length, NULL);
    }
}

static void lose(struct mtp *mtp, uint32_t slot)
{
    seq_state_clear(mtp->span.state, slot);
    mtp->lost[slot] = true;
}

/* ---- passes ------------------------------------------------------------------------------- */

/* Adds a row: the token that follows position pos of a slot, beside a row of hidden states. */
static void add_row(struct mtp *mtp, const struct step_seq *seq, uint32_t pos, int32_t id,
                    uint32_t from)
{
    const uint32_t row = mtp->n_row++;
    mtp->token[row] = (struct token_ref){.slot = seq->slot, .pos = pos};
    mtp->ids[row] = id;
    mtp->from[row] = from;
    mtp->usage[row] = mtp->span.paged ? seq->experts : NULL;
}

/* x = embeddings of the rows' tokens. */
static enum lm_status embed(struct mtp *mtp, struct lm_error *err)
{
    struct backend *const backend = mtp->span.backend, *const cpu = mtp->config.cpu;
    const struct weight *const table = &mtp->span.model->token_embd;
    const size_t d = mtp->hp->n_embd;
    float *const x = mtp->span.graph.x;
    enum lm_status status = LM_OK;
    if (!mtp->embedded) backend->ops->embed(backend, table, mtp->ids, mtp->n_row, 1, x);
    for (uint32_t at = 0; mtp->embedded && at < mtp->n_row && status == LM_OK; at += EMBED_ROWS) {
        const uint32_t left = mtp->n_row - at, n = left < EMBED_ROWS ? left : EMBED_ROWS;
        cpu->ops->embed(cpu, table, mtp->ids + at, n, 1, mtp->embedded);
        status = cpu->ops->sync(cpu, err);
        backend->ops->upload(backend, x + at * d, mtp->embedded, n * d * sizeof(float));
    }
    return status;
}

/* x = eh_proj . [norm of the embeddings | norm of the hidden states]. */
static enum lm_status enter(struct mtp *mtp, const float *hidden, struct lm_error *err)
{
    struct graph *graph = &mtp->span.graph;
    struct backend *backend = graph->backend;
    const struct model *model = mtp->span.model;
    const uint32_t n = mtp->n_row, d = mtp->hp->n_embd;
    const float eps = mtp->hp->rms_eps;
    const enum lm_status status =
        embed(mtp, err); /* first: an upload ends what was called before */
    backend->ops->gather(backend, hidden, mtp->from, n, d, graph->normed);
    backend->ops->rms_norm(backend, graph->x, model->enorm, eps, n, d, mtp->halves);
    backend->ops->rms_norm(backend, graph->normed, model->hnorm, eps, n, d,
                           mtp->halves + (size_t)n * d);
    for (uint32_t i = 0; i < n; i++) {
        mtp->gather[2 * i] = i;
        mtp->gather[2 * i + 1] = n + i;
    }
    backend->ops->gather(backend, mtp->halves, mtp->gather, 2 * n, d, mtp->joined);
    struct linear_args in = {.n_token = n, .x = mtp->joined, .n_col = 2 * d};
    add_output(&in, &model->eh_proj, NULL, graph->x);
    backend->ops->linear(backend, &in);
    return status;
}

static int32_t most_likely(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Ends the pass: the likeliest tokens behind the wanted rows, which x holds. */
static enum lm_status choose(struct mtp *mtp, struct lm_error *err)
{
    struct graph *graph = &mtp->span.graph;
    struct backend *backend = graph->backend;
    const struct mtp_config *config = &mtp->config;
    const size_t n_vocab = mtp->hp->n_vocab;
    enum lm_status status = LM_OK;
    uint32_t first = 0;
    do {
        const uint32_t left = mtp->n_out - first,
                       n = left < config->n_logit ? left : config->n_logit;
        if (n) graph_head(graph, first, n, config->logits);
        if (n && mtp->span.is_device)
            backend->ops->download(backend, config->host_logits, config->logits,
                                   n * n_vocab * sizeof(float));
        status = first ? backend->ops->sync(backend, err) : graph_finish(graph, err);
        for (uint32_t i = 0; i < n && status == LM_OK; i++)
            mtp->best[first + i] =
                most_likely(config->host_logits + i * n_vocab, (uint32_t)n_vocab);
        first += n;
    } while (first < mtp->n_out && status == LM_OK);
    return status;
}

static enum lm_status run_block(struct mtp *mtp, struct lm_error *err)
{
    struct graph *graph = &mtp->span.graph;
    graph_attention(graph, mtp->il, ROPE_NEOX);
    graph_narrow(graph, mtp->il);
    if (mtp->hp->layer[mtp->il].moe) return graph_moe(graph, mtp->il, err);
    graph_ffn(graph, mtp->il);
    return LM_OK;
}

/* Runs the layer over the rows; x then holds the wanted ones, and best what follows them. */
static enum lm_status run_rows(struct mtp *mtp, const float *hidden, struct lm_error *err)
{
    struct graph *graph = &mtp->span.graph;
    graph->n_token = graph->n_row = mtp->n_row;
    graph->token = mtp->token;
    graph->ids = mtp->ids;
    graph->out_rows = mtp->out_rows;
    graph->n_out = mtp->n_out;
    graph->usage = mtp->usage;
    graph->n_step++;
    graph_fill_rope(graph);
    enum lm_status status = enter(mtp, hidden, err);
    if (status == LM_OK) status = run_block(mtp, err);
    if (status == LM_OK) return choose(mtp, err);
    graph->backend->ops->sync(graph->backend,
                              NULL); /* an error kept there is not the next step's */
    if (graph->tier) device_tier_abandon(graph->tier);
    return status;
}

/* Positions of the step that stay: without drafts that were not sampled. */
static uint32_t n_valid(const struct step_seq *seq)
{
    return seq->n_draft ? seq->n_token - seq->n_draft + *seq->n_accepted : seq->n_token;
}

/* Adds the rows of a sequence, each with the token that follows. Of a prompt that ends without one
 * being sampled nobody knows it: any serves better than a gap, at which drafting would end for
 * good. first: its first row of hidden. */
static void follow_seq(struct mtp *mtp, const struct step_seq *seq, uint32_t index,
                       const struct sampled_token *sampled, uint32_t first)
{
    struct seq_state *const state = mtp->span.state;
    const uint32_t slot = seq->slot, begin = (uint32_t)seq->n_history - seq->n_token;
    const bool samples = seq->output != STEP_OUTPUT_NONE;
    const uint32_t n = n_valid(seq);
    const int32_t known = samples ? sampled->id : seq->ids[n - 1];
    const int32_t next = seq->next < 0 ? known : seq->next;
    if (!seq->is_drafted) return;
    if (seq_state_length(state, slot) > begin) seq_state_cut(state, slot, begin);
    if (seq_state_length(state, slot) < begin || seq->error->status != LM_OK) lose(mtp, slot);
    if (mtp->lost[slot]) return;
    if (seq_state_reserve(state, slot, n, 0, NULL) != LM_OK) {
        lose(mtp, slot);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const bool inside = i + 1 < n_valid(seq);
        add_row(mtp, seq, begin + i, inside ? seq->ids[i + 1] : next, first + i);
    }
    seq_state_advance(state, slot, n);
    if (!samples || !seq->n_wanted) return;
    mtp->out_rows[mtp->n_out] = mtp->n_row - 1;
    mtp->drafting[mtp->n_out++] = index;
}

/* Takes a draft for each wanted row, and makes these the rows of the next pass, as far as more are
 * wanted: positions behind what the sequences hold, in the room that there is. What the next pass
 * reads in place of hidden states is in halves. */
static void go_on(struct mtp *mtp, const struct step_plan *plan)
{
    struct graph *graph = &mtp->span.graph;
    struct seq_state *const state = mtp->span.state;
    const uint32_t n = mtp->n_out;
    mtp->n_row = mtp->n_out = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t index = mtp->drafting[i];
        const struct step_seq *seq = &plan->seq[index];
        const uint32_t length = seq_state_length(state, seq->slot);
        const uint32_t n_drafted = ++*seq->n_drafted;
        seq->drafts[n_drafted - 1] = mtp->best[i];
        if (n_drafted == seq->n_wanted || length >= mtp->span.config.n_ctx) continue;
        if (seq_state_reserve(state, seq->slot, 1, 0, NULL) != LM_OK) continue;
        add_row(mtp, seq, length, mtp->best[i], i);
        seq_state_advance(state, seq->slot, 1);
        mtp->out_rows[mtp->n_out] = mtp->n_row - 1;
        mtp->drafting[mtp->n_out++] = index;
    }
    if (mtp->n_row)
        graph->backend->ops->rms_norm(graph->backend, graph->x, mtp->span.model->output_norm,
                                      mtp->hp->rms_eps, n, mtp->hp->n_embd, mtp->halves);
}

enum lm_status mtp_follow(struct mtp *mtp, const struct step_plan *plan,
                          const struct sampled_token *sampled, const float *hidden,
                          struct lm_error *err)
{
    enum lm_status status = LM_OK;
    uint32_t first = 0;
    mtp->n_row = mtp->n_out = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        follow_seq(mtp, &plan->seq[i], i, &sampled[i], first);
        first += plan->seq[i].n_token;
    }
    for (; mtp->n_row && status == LM_OK; hidden = mtp->halves) {
        if (mtp->span.graph.tier) device_tier_go_on(mtp->span.graph.tier);
        status = run_rows(mtp, hidden, err);
        if (status == LM_OK) go_on(mtp, plan);
    }
    for (uint32_t i = 0; status != LM_OK && i < plan->n_seq; i++)
        lose(mtp, plan->seq[i].slot);
    return status;
}
