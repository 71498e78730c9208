/* Ranks of a pipeline as threads of a test: each runs a prompt in one step, then single tokens or,
 * if it is told so, some with drafts, right and wrong ones; and keeps all logits. */
#ifndef LEAN_TESTS_STAGE_RANKS_H
#define LEAN_TESTS_STAGE_RANKS_H

#include "tests/unit/cmocka_all.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "proto/transport/transport.h"
#include "worker/worker.h"

enum { N_PROMPT = 40, N_STEP = 12, N_STEP_MAX = 256, N_VOCAB = 512, N_TOP = 10, N_DRAFT = 3 };

/* One rank of the pipeline: its worker, and the steps it is given, all known beforehand. */
struct rank {
    struct expert_store *store;
    struct backend *backend;
    struct worker *worker;
    int32_t ids[N_PROMPT + N_STEP_MAX];
    uint32_t n_step;  /* tokens behind the prompt; 0: N_STEP */
    uint32_t n_draft; /* of a step behind it, of ids and wrong ones */
    bool greedy;      /* each token is what the logits before it are greatest for */
    float *logits;    /* [N_PROMPT + N_STEP_MAX + N_DRAFT][N_VOCAB], last rank only */
    size_t n_row;
    bool mtp;                               /* after each step, as many drafts as there are */
    int32_t drafts[(N_STEP + 1) * N_DRAFT]; /* [n_drafted] */
    size_t n_drafted;
    enum lm_status status;
    struct lm_error err;
};

static void keep_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    struct rank *rank = context;
    (void)pos;
    assert_int_equal(n_vocab, N_VOCAB);
    memcpy(rank->logits + rank->n_row++ * N_VOCAB, logits, N_VOCAB * sizeof(float));
}

/* What a rank is opened with. */
struct rank_layers {
    uint32_t begin, end;
    struct transport_edge *in, *out;
    struct backend *device; /* of the layers from device_begin on; NULL: none */
    uint32_t device_begin;
    struct device_options device_experts;
    struct pager_options pager;
    bool mtp;
};

static enum lm_status try_open_rank(struct rank *rank, const struct gguf_file *file,
                                    const struct hparams *hp, const struct rank_layers *layers,
                                    struct lm_error *err)
{
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    assert_int_equal(backend_cpu_create(&rank->backend, &cpu, err), LM_OK);
    assert_int_equal(
        expert_store_create(&rank->store, file, hp, layers->begin, layers->end + layers->mtp, err),
        LM_OK);
    rank->mtp = layers->mtp;
    const struct worker_config config = {.file = file,
                                         .hp = hp,
                                         .store = rank->store,
                                         .backend = rank->backend,
                                         .device = layers->device,
                                         .device_begin = layers->device_begin,
                                         .device_experts = layers->device_experts,
                                         .pager = layers->pager,
                                         .layer_begin = layers->begin,
                                         .layer_end = layers->end,
                                         .in = layers->in,
                                         .out = layers->out,
                                         .n_slot = 1,
                                         .n_ctx = N_PROMPT + N_STEP_MAX + N_DRAFT,
                                         .n_position = 512,
                                         .n_batch = N_PROMPT,
                                         .n_draft = N_DRAFT,
                                         .mtp = layers->mtp,
                                         .kv_type = TENSOR_F16};
    for (int32_t i = 0; i < N_PROMPT + N_STEP; i++)
        rank->ids[i] = (i * 57 + 11) % N_VOCAB;
    rank->logits = calloc((N_PROMPT + N_STEP_MAX + N_DRAFT) * N_VOCAB, sizeof(float));
    assert_non_null(rank->logits);
    return worker_create(&rank->worker, &config, err);
}

static inline void open_rank(struct rank *rank, const struct gguf_file *file,
                             const struct hparams *hp, const struct rank_layers *layers)
{
    struct lm_error err;
    if (try_open_rank(rank, file, hp, layers, &err) != LM_OK) fail_msg("%s", err.message);
}

static inline void close_rank(struct rank *rank)
{
    worker_close(rank->worker, NULL);
    expert_store_destroy(rank->store);
    rank->backend->ops->destroy(rank->backend);
    free(rank->logits);
}

static uint32_t n_token_of(const struct rank *rank)
{
    return N_PROMPT + (rank->n_step ? rank->n_step : N_STEP);
}

static int32_t greatest(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < N_VOCAB; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Runs n tokens from `at` on, the last n_draft of them drafts, of which n_wrong are not what comes
 * there, and are taken back. */
static enum lm_status run_tokens(struct rank *rank, uint32_t at, uint32_t n, uint32_t n_draft,
                                 uint32_t n_wrong)
{
    const struct sampling_params sampling = sampling_params_default();
    struct sampled_token sampled, accepted[N_DRAFT];
    struct lm_error seq_err = {.status = LM_OK};
    int32_t ids[N_PROMPT];
    uint32_t n_accepted, n_drafted = 0;
    memcpy(ids, rank->ids + at, n * sizeof(*ids));
    for (uint32_t i = n - n_wrong; i < n; i++)
        ids[i] = (ids[i] + 1) % N_VOCAB;
    const struct step_seq seq = {.ids = ids,
                                 .n_token = n,
                                 .n_draft = n_draft,
                                 .accepted = accepted,
                                 .n_accepted = &n_accepted,
                                 .output = STEP_OUTPUT_LOGITS,
                                 .history = rank->ids,
                                 .n_history = at + n,
                                 .sampling = &sampling,
                                 .is_drafted = rank->mtp,
                                 .n_wanted = rank->mtp ? N_DRAFT : 0,
                                 .drafts = rank->drafts + rank->n_drafted,
                                 .n_drafted = &n_drafted,
                                 .next = at + n < n_token_of(rank) ? rank->ids[at + n] : -1,
                                 .on_logits = keep_logits,
                                 .context = rank,
                                 .error = &seq_err};
    const struct step_plan plan = {.seq = &seq, .n_seq = 1};
    const enum lm_status status = worker_step(rank->worker, &plan, &sampled, &rank->err);
    assert_int_equal(seq_err.status, LM_OK);
    rank->n_drafted += n_drafted;
    if (status != LM_OK || !n_draft) return status;
    const struct seq_op cut = {.kind = SEQ_CUT, .n = at + n - n_wrong};
    if (rank->n_row) rank->n_row -= n_wrong;
    return worker_seq(rank->worker, &cut, &rank->err);
}

/* The prompt in one step, then a token each, or some with drafts. */
static void *run_rank(void *context)
{
    struct rank *rank = context;
    const uint32_t n_all = n_token_of(rank);
    rank->status = LM_OK;
    for (uint32_t at = 0, n, n_wrong; at < n_all && rank->status == LM_OK; at += n - n_wrong) {
        const uint32_t n_left = n_all - at - 1;
        const uint32_t n_draft = !at ? 0 : n_left < rank->n_draft ? n_left : rank->n_draft;
        n = at ? 1 + n_draft : N_PROMPT;
        n_wrong = at % (n_draft + 1);
        rank->status = run_tokens(rank, at, n, n_draft, n_wrong);
        if (rank->greedy && at + n < n_all)
            rank->ids[at + n] = greatest(rank->logits + (rank->n_row - 1) * N_VOCAB);
    }
    return NULL;
}

static inline void run_ranks(struct rank *ranks, int n)
{
    pthread_t threads[3];
    for (int i = 0; i < n; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

static inline void open_golden(struct gguf_file **file, struct hparams *hp, const char *name)
{
    char path[1000];
    struct lm_error err;
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             name);
    assert_int_equal(gguf_open(file, path, &err), LM_OK);
    assert_int_equal(hparams_read(hp, *file, &err), LM_OK);
}

#endif
