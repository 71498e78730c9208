/* A step: lay the plan out as rows, run the graph, turn the wanted rows into logits and tokens. */
#include "worker/worker.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/base/log.h"
#include "proto/base/map_guard.h"
#include "proto/base/progress.h"
#include "proto/gguf/gguf.h"
#include "worker/exchange.h"
#include "worker/graph/mtp.h"
#include "worker/pager/policy.h"
#include "worker/pager/trace.h"
#include "worker/sampling/sampler.h"
#include "worker/span.h"

/* Rows of logits at a time: enough to read the output matrix seldom, few enough to stay small
 * beside a vocabulary of 250,000. */
enum { LOGIT_ROWS = 32 };

struct worker {
    struct worker_config config;
    struct expert_pager *pager; /* of the CPU's layers if it has slots, else of all */
    struct device_tier *tier;   /* NULL: the device has all experts of its layers */
    struct exchange exchange;   /* of the device's span */
    struct route_trace *trace;
    struct span span[2]; /* [n_span] in the order of their layers */
    uint32_t n_span;
    struct sampler *sampler;
    struct mtp *mtp; /* NULL: no drafts are made */
    float *hidden;   /* [n_batch][n_embd] for it, of the last span's graph */

    float *logits;      /* [LOGIT_ROWS][n_vocab], in memory of the last span's backend */
    float *host_logits; /* likewise, on the host; on the CPU the same */
    /* the batch */
    struct token_ref *token;     /* [n_batch] */
    int32_t *ids;                /* [n_batch] */
    uint32_t *out_rows;          /* [n_batch] */
    uint32_t *out_seq;           /* [n_batch] which entry of the plan a wanted row belongs to */
    struct expert_usage **usage; /* [n_batch] */
    uint32_t n_token, n_out;
    struct edges *edges;        /* NULL: one rank */
    uint64_t n_step;            /* so far */
    struct lm_error step_error; /* worker_runner: of the step that began last */
};

static bool is_first(const struct worker *worker)
{
    return worker->config.layer_begin == 0;
}

static bool is_last(const struct worker *worker)
{
    return worker->config.layer_end == worker->config.hp->n_layer;
}

/* Whether drafts are made by the layer behind the decoder. */
static bool has_mtp(const struct worker_config *config)
{
    return config->mtp && config->layer_end == config->hp->n_layer;
}

/* Where the layers whose experts are kept end: that one's are, too. */
static uint32_t expert_end(const struct worker_config *config)
{
    return config->layer_end + has_mtp(config);
}

static struct span *first_span(struct worker *worker)
{
    return &worker->span[0];
}

static struct span *last_span(struct worker *worker)
{
    return &worker->span[worker->n_span - 1];
}

static enum lm_status create_head(struct worker *worker, struct lm_error *err)
{
    struct backend *backend = last_span(worker)->backend;
    const size_t n_vocab = worker->config.hp->n_vocab;
    if (!is_last(worker)) return LM_OK;
    worker->logits = backend->ops->alloc(backend, LOGIT_ROWS * n_vocab * sizeof(float), err);
    if (!worker->logits) return LM_E_NO_MEM;
    worker->host_logits =
        last_span(worker)->is_device ? calloc(LOGIT_ROWS * n_vocab, sizeof(float)) : worker->logits;
    if (!worker->host_logits)
        return lm_fail(err, LM_E_NO_MEM, "worker: no memory for %zu logits", LOGIT_ROWS * n_vocab);
    return sampler_create(&worker->sampler, (uint32_t)n_vocab, err);
}

static enum lm_status create_mtp(struct worker *worker, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    struct span *const last = last_span(worker);
    const struct mtp_config mtp = {.file = config->file,
                                   .store = config->store,
                                   .last = last,
                                   .cpu = config->backend,
                                   .logits = worker->logits,
                                   .host_logits = worker->host_logits,
                                   .n_logit = LOGIT_ROWS};
    const size_t n_bytes = (size_t)config->n_batch * config->hp->n_embd * sizeof(float);
    if (!has_mtp(config)) return LM_OK;
    worker->hidden = last->backend->ops->alloc(last->backend, n_bytes, err);
    return worker->hidden ? mtp_create(&worker->mtp, &mtp, err) : LM_E_NO_MEM;
}

static void destroy_mtp(struct worker *worker)
{
    mtp_destroy(worker->mtp);
    if (worker->hidden)
        last_span(worker)->backend->ops->free(last_span(worker)->backend, worker->hidden);
}

static enum lm_status create_batch(struct worker *worker, struct lm_error *err)
{
    const size_t n = worker->config.n_batch;
    worker->token = calloc(n, sizeof(*worker->token));
    worker->ids = calloc(n, sizeof(*worker->ids));
    worker->out_rows = calloc(n, sizeof(*worker->out_rows));
    worker->out_seq = calloc(n, sizeof(*worker->out_seq));
    worker->usage = calloc(n, sizeof(*worker->usage));
    if (worker->token && worker->ids && worker->out_rows && worker->out_seq && worker->usage)
        return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "worker: no memory for steps of %zu tokens", n);
}

static enum lm_status create_edges(struct worker *worker, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    const struct edges_config edges = {.backend = config->backend,
                                       .in = config->in,
                                       .out = config->out,
                                       .n_embd = config->hp->n_embd,
                                       .n_batch = config->n_batch,
                                       .n_slot = config->n_slot,
                                       .n_buffer = config->n_edge_buffer};
    if (is_first(worker) && is_last(worker)) return LM_OK;
    assert(is_first(worker) == !config->in && is_last(worker) == !config->out);
    float *const x = first_span(worker)->is_device ? NULL : first_span(worker)->graph.x;
    return edges_create(&worker->edges, &edges, x, err);
}

/* Where the CPU's layers end. */
static uint32_t host_end(const struct worker_config *config)
{
    return config->device ? config->device_begin : config->layer_end;
}

/* Whether the device keeps some of its layers' experts, and the pager lends it the others. */
static bool has_tier(const struct worker_config *config)
{
    return config->device && config->device_experts.n_slot > 0 &&
           hparams_n_expert_of(config->hp, host_end(config), config->layer_end) > 0;
}

/* Mapped, it counts what is chosen on a device, too. */
static enum lm_status create_pager(struct worker *worker, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    const bool paged = config->pager.n_slot > 0;
    const bool tiered = has_tier(config);
    const struct expert_pager_config pager = {
        .store = config->store,
        .layer_begin = config->layer_begin,
        .layer_end = paged && !tiered && config->device ? config->device_begin : expert_end(config),
        .n_expert = config->hp->n_expert,
        .n_expert_used = config->hp->n_expert_used,
        .n_slot = config->pager.n_slot,
        .policy = config->pager.policy,
        .prefetch = config->pager.prefetch,
        .engine = config->pager.engine,
        .access = config->pager.access,
        .depth = config->pager.depth,
        .progress = config->progress,
        .device = tiered ? config->device : NULL};
    return expert_pager_create(&worker->pager, &pager, err);
}

static bool is_in_tier(void *context, struct expert_key key)
{
    const struct worker *worker = context;
    return key.layer >= host_end(&worker->config) && device_tier_is_resident(worker->tier, key);
}

static void seed_tier(void *context, struct expert_key key, float rate)
{
    const struct worker *worker = context;
    if (key.layer >= host_end(&worker->config)) device_tier_seed(worker->tier, key, rate);
}

static void preload_tier(void *context)
{
    const struct worker *worker = context;
    device_tier_preload(worker->tier);
}

static enum lm_status let_tier_go(void *context, struct lm_error *err)
{
    const struct worker *worker = context;
    return device_tier_let_go(worker->tier, err);
}

static enum lm_status create_tier(struct worker *worker, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    struct seq_state *const state = last_span(worker)->state;
    const struct kv_pool pool = seq_state_pool(state);
    const struct device_tier_config tier = {.backend = config->device,
                                            .store = config->store,
                                            .pager = worker->pager,
                                            .layer_begin = host_end(config),
                                            .layer_end = expert_end(config),
                                            .n_expert = config->hp->n_expert,
                                            .n_expert_used = config->hp->n_expert_used,
                                            .n_slot = config->device_experts.n_slot,
                                            .pool = pool.memory,
                                            .pool_bytes = pool.n_group * pool.group_bytes,
                                            .kv_bytes = pool.n_ready * pool.group_bytes,
                                            .policy = config->pager.policy,
                                            .prefetch = config->pager.prefetch,
                                            .miss = config->device_experts.miss,
                                            .inclusive = config->device_experts.inclusive};
    const enum lm_status status = device_tier_create(&worker->tier, &tier, err);
    if (status != LM_OK) return status;
    const struct expert_pager_above above = {.context = worker,
                                             .has = is_in_tier,
                                             .seed = seed_tier,
                                             .preload = preload_tier,
                                             .let_go = let_tier_go,
                                             .exclusive =
                                                 device_tier_stats(worker->tier).exclusive};
    expert_pager_put_above(worker->pager, &above);
    exchange_init(&worker->exchange, state, worker->tier);
    return LM_OK;
}

static enum lm_status create_span(struct worker *worker, struct backend *backend, uint32_t begin,
                                  uint32_t end, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    const bool is_device = backend == config->device;
    const bool lends = is_device && has_tier(config);
    const struct span_config span = {
        .file = config->file,
        .hp = config->hp,
        .store = config->store,
        .backend = backend,
        .is_device = is_device,
        .paged = is_device ? has_tier(config) : config->pager.n_slot > 0,
        .state = {.layer_begin = begin,
                  .layer_end = end,
                  .n_slot = config->n_slot,
                  .n_ctx = config->n_ctx,
                  .n_position = config->n_position,
                  .n_position_ready = lends ? config->n_position_ready : 0,
                  .n_batch = config->n_batch,
                  .n_draft = config->n_draft,
                  .kv_type = config->kv_type},
        .on_load = config->on_load,
        .load_context = config->load_context};
    if (begin == end) return LM_OK;
    return span_init(&worker->span[worker->n_span++], &span, err);
}

static enum lm_status create_graphs(struct worker *worker, struct lm_error *err)
{
    const bool paged = worker->config.pager.n_slot > 0;
    const size_t trailer_bytes = edges_trailer_bytes(worker->config.n_slot);
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < worker->n_span && status == LM_OK; i++) {
        struct span *span = &worker->span[i];
        const bool lent = span->is_device && worker->tier; /* the pager's experts are */
        const struct graph_experts experts = {
            .tier = lent ? worker->tier : NULL,
            .cpu = lent ? worker->config.backend : NULL,
            .pager = paged && span->is_device && !lent ? NULL : worker->pager};
        status = span_create_graph(span, &experts, worker->trace, trailer_bytes, NULL, err);
        span->graph.progress = worker->config.progress;
    }
    return status;
}

static enum lm_status create_parts(struct worker *worker, struct lm_error *err)
{
    const struct worker_config *config = &worker->config;
    const uint32_t middle = host_end(config);
    enum lm_status status = create_span(worker, config->backend, config->layer_begin, middle, err);
    if (status == LM_OK)
        status = create_span(worker, config->device, middle, config->layer_end, err);
    if (status == LM_OK) status = create_pager(worker, err);
    if (status == LM_OK && has_tier(config)) status = create_tier(worker, err);
    if (status == LM_OK && (config->trace_path || config->trace_kept))
        status = route_trace_create(&worker->trace, config->trace_kept ? NULL : config->trace_path,
                                    config->hp, config->n_batch, err);
    if (status == LM_OK) status = create_graphs(worker, err);
    if (status == LM_OK) status = create_edges(worker, err);
    if (status == LM_OK) status = create_batch(worker, err);
    if (status == LM_OK) status = create_head(worker, err);
    if (status == LM_OK) status = create_mtp(worker, err);
    return status;
}

/* Everything that steps read in mappings. The files of a GGUF model's experts are its own, those of
 * a pack are read by the pager if it has slots. */
static void guard_files(struct worker *worker)
{
    const struct gguf_file *file = worker->config.file;
    const struct expert_store *store = worker->config.store;
    for (size_t i = 0; i < gguf_n_shard(file); i++) {
        const struct gguf_shard *shard = gguf_shard_at(file, i);
        map_guard_add(worker, shard->data, shard->n_bytes, shard->fd, shard->path);
    }
    const bool packed_mapped = store && gguf_is_pack(file) && !worker->config.pager.n_slot;
    for (size_t i = 0; packed_mapped && i < expert_store_n_file(store); i++) {
        const struct expert_file packed = expert_store_file(store, i);
        map_guard_add(worker, packed.data, packed.n_bytes, packed.fd, packed.path);
    }
}

/* Whether anything since the last call was computed with what a file no longer holds: that is the
 * error then, whatever came of it. Else status, with err as it is. */
static enum lm_status check_files(struct worker *worker, enum lm_status status,
                                  struct lm_error *err)
{
    struct map_loss loss;
    struct expert_key key;
    struct stat info;
    char place[64] = "";
    if (!map_guard_check(worker, &loss)) return status;
    if (loss.replaced && status != LM_OK) return status; /* which knows the place */
    if (loss.replaced)
        return lm_fail(err, LM_E_IO, "%s: another model was written over the file while in use",
                       loss.path);
    if (worker->config.store &&
        expert_store_find(worker->config.store, loss.fd, loss.offset, DISK_ALIGN, &key))
        snprintf(place, sizeof(place), " layer %u, expert %u:", key.layer, key.expert);
    if (fstat(loss.fd, &info) == 0 && (uint64_t)info.st_size > loss.offset)
        return lm_fail(err, LM_E_IO, "%s:%s read at %llu: Input/output error", loss.path, place,
                       (unsigned long long)loss.offset);
    return lm_fail(err, LM_E_IO,
                   "%s:%s the file ends before byte %llu: it was cut off or replaced while in use",
                   loss.path, place, (unsigned long long)loss.offset + 1);
}

/* What a device copies from is best pinned, and a mapping is not: where all experts are to be in
 * memory, they get slots there. */
static void choose_slots(struct worker_config *config)
{
    struct pager_options *const pager = &config->pager;
    if (!has_tier(config)) return;
    if (!pager->n_slot)
        pager->n_slot = hparams_n_expert_of(config->hp, config->layer_begin, expert_end(config));
    if (!pager->policy) pager->policy = &policy_lfru;
}

static void log_reads(void *context)
{
    const struct worker *worker = context;
    expert_pager_log_reads(worker->pager);
}

enum lm_status worker_create(struct worker **out, const struct worker_config *config,
                             struct lm_error *err)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    if (!worker) return lm_fail(err, LM_E_NO_MEM, "worker: no memory");
    worker->config = *config;
    choose_slots(&worker->config);
    guard_files(worker);
    const enum lm_status status = check_files(worker, create_parts(worker, err), err);
    if (status != LM_OK) {
        worker_close(worker, NULL);
        return status;
    }
    progress_set_log(config->progress, log_reads, worker);
    *out = worker;
    return LM_OK;
}

enum lm_status worker_close(struct worker *worker, struct lm_error *err)
{
    if (!worker) return LM_OK;
    progress_set_log(worker->config.progress, NULL, NULL);
    destroy_mtp(worker);
    sampler_destroy(worker->sampler);
    if (worker->host_logits != worker->logits) free(worker->host_logits);
    if (worker->logits)
        last_span(worker)->backend->ops->free(last_span(worker)->backend, worker->logits);
    free(worker->usage);
    free(worker->out_seq);
    free(worker->out_rows);
    free(worker->ids);
    free(worker->token);
    edges_destroy(worker->edges);
    for (uint32_t i = worker->n_span; i-- > 0;)
        span_fini(&worker->span[i]);
    const enum lm_status status = route_trace_close(worker->trace, err);
    device_tier_destroy(worker->tier);
    expert_pager_destroy(worker->pager);
    map_guard_remove(worker);
    free(worker);
    return status;
}

/* The first row of a sequence behind which a token is sampled. */
static uint32_t first_sampled(const struct step_seq *seq)
{
    return seq->n_token - 1 - seq->n_draft;
}

static enum lm_status reserve(struct worker *worker, uint32_t slot, uint32_t n_token,
                              uint32_t n_draft, struct lm_error *err)
{
    /* each is tried whatever comes of the first, as in seq_state_reserve */
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < worker->n_span; i++) {
        struct lm_error *const first = status == LM_OK ? err : NULL;
        const enum lm_status tried =
            seq_state_reserve(worker->span[i].state, slot, n_token, n_draft, first);
        if (status == LM_OK) status = tried;
    }
    return status;
}

/* failed: of the step, here or before. */
static void make_room(struct worker *worker, uint32_t slot, uint32_t n_token,
                      struct lm_error *failed)
{
    struct lm_error *const first = failed->status == LM_OK ? failed : NULL;
    const enum lm_status status = exchange_make_room(&worker->exchange, slot, n_token, first);
    if (first) failed->status = status;
}

/* Appends the rows of one sequence to the batch. failed: of the step, here or before. */
static enum lm_status add_rows(struct worker *worker, const struct step_seq *seq, uint32_t index,
                               struct lm_error *failed, struct lm_error *err)
{
    const uint32_t pos = worker_length(worker, seq->slot);
    assert(seq->n_token > 0 && worker->n_token + seq->n_token <= worker->config.n_batch);
    for (uint32_t i = 0; i < seq->n_token; i++) {
        const uint32_t row = worker->n_token++;
        const bool wanted = seq->output == STEP_OUTPUT_LOGITS || i < seq->n_target ||
                            (seq->output == STEP_OUTPUT_SAMPLE && i >= first_sampled(seq));
        assert(seq->ids[i] >= 0 && (uint32_t)seq->ids[i] < worker->config.hp->n_vocab);
        worker->token[row] = (struct token_ref){.slot = seq->slot, .pos = pos + i};
        worker->ids[row] = seq->ids[i];
        worker->usage[row] = worker->config.pager.n_slot ? seq->experts : NULL;
        if (wanted) {
            worker->out_rows[worker->n_out] = row;
            worker->out_seq[worker->n_out++] = index;
        }
    }
    if (seq->n_draft) *seq->n_accepted = 0;
    if (seq->n_wanted) *seq->n_drafted = 0;
    make_room(worker, seq->slot, seq->n_token, failed);
    return reserve(worker, seq->slot, seq->n_token, seq->n_draft, err);
}

static void count_wait(const struct step_plan *plan, double wait_s)
{
    for (uint32_t i = 0; i < plan->n_seq; i++)
        if (plan->seq[i].experts) plan->seq[i].experts->wait_s += wait_s;
}

/* A failure of this rank, by name. */
static void name_failure(const struct worker *worker, struct lm_error *failed)
{
    if (failed->status == LM_OK || !worker->config.name) return;
    const struct lm_error unnamed = *failed;
    lm_fail(failed, unnamed.status, "%s: %s", worker->config.name, unnamed.message);
    memcpy(failed->hint, unnamed.hint, sizeof(failed->hint));
}

/* Whether a sequence has more than one row, drafts apart. */
static bool is_prefill(const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_seq; i++)
        if (plan->seq[i].n_token > 1 + plan->seq[i].n_draft) return true;
    return false;
}

/* Runs the layers of a span. Where logits of the model follow on a device, both are one piece of
 * work for it, which run_head ends. */
static enum lm_status run_span(struct worker *worker, struct span *span, struct lm_error *err)
{
    struct graph *graph = &span->graph;
    graph->n_token = worker->n_token;
    graph->token = worker->token;
    graph->ids = worker->ids;
    graph->out_rows = worker->out_rows;
    graph->n_out = worker->n_out;
    graph->usage = worker->usage;
    const bool goes_on =
        span->is_device && span == last_span(worker) && is_last(worker) && worker->n_out;
    enum lm_status status = graph_forward(graph, err);
    if (status == LM_OK && worker->edges) status = edges_take_ahead(worker->edges, err);
    return status == LM_OK && !goes_on ? graph_finish(graph, err) : status;
}

static size_t x_bytes(const struct worker *worker)
{
    return (size_t)worker->n_token * worker->config.hp->n_embd * sizeof(float);
}

static void run_layers(struct worker *worker, const struct step_plan *plan, struct lm_error *failed)
{
    if (worker->trace && is_first(worker))
        route_trace_step(worker->trace, worker->token, worker->ids, worker->n_token);
    expert_pager_step(worker->pager, worker->n_token, is_prefill(plan));
    if (worker->tier) device_tier_step(worker->tier, worker->n_token, is_prefill(plan));
    for (uint32_t i = 0; i < worker->n_span && failed->status == LM_OK; i++) {
        struct span *span = &worker->span[i];
        if (i > 0)
            span->backend->ops->upload(span->backend, span->graph.x, worker->span[i - 1].graph.x,
                                       x_bytes(worker));
        failed->status = run_span(worker, span, failed);
    }
    count_wait(plan, expert_pager_step_wait_s(worker->pager));
    failed->status = check_files(worker, failed->status, failed);
    name_failure(worker, failed);
    /* what the head would have waited for: the next step may overwrite what it reads */
    struct span *const last = last_span(worker);
    if (failed->status != LM_OK && last->is_device) last->backend->ops->sync(last->backend, NULL);
}

/* Runs the layers of this stage between its edges. failed: of this step, here or before. What the
 * edges carry is on the host, on the CPU x is the message itself; but for links between devices. */
static enum lm_status run_stage(struct worker *worker, const struct step_plan *plan,
                                struct lm_error *failed, struct lm_error *err)
{
    struct edges *edges = worker->edges;
    struct span *const first = first_span(worker), *const last = last_span(worker);
    float *x = NULL;
    struct progress *const progress = worker->config.progress;
    enum lm_status status = LM_OK;
    progress_set(progress, PROGRESS_WAITING, worker->n_step);
    if (edges)
        status = edges_receive(edges, plan, worker->n_token, first->graph.x, &x, failed, err);
    progress_set(progress, PROGRESS_COMPUTING, worker->n_step);
    if (edges && !first->is_device) first->graph.x = x;
    if (status == LM_OK && failed->status == LM_OK && first->is_device && !is_first(worker) &&
        !edges_link_in(edges))
        first->backend->ops->upload(first->backend, first->graph.x, x, x_bytes(worker));
    if (status == LM_OK && failed->status == LM_OK) run_layers(worker, plan, failed);
    if (status != LM_OK || !edges) return status;
    if (!first->is_device) x = first->graph.x;
    if (failed->status == LM_OK && last->is_device && !is_last(worker) && !edges_link_out(edges)) {
        last->backend->ops->download(last->backend, x, last->graph.x, x_bytes(worker));
        failed->status = last->backend->ops->sync(last->backend, failed);
        name_failure(worker, failed);
    }
    return edges_send(edges, plan, worker->n_token, x, last->graph.x, failed, err);
}

/* Samples behind row i of a sequence, if what was sampled before is what this row has read. */
static enum lm_status sample(struct worker *worker, const struct step_seq *seq, uint32_t i,
                             const float *logits, struct sampled_token *sampled,
                             struct lm_error *err)
{
    const uint32_t at = i - first_sampled(seq), n_left = seq->n_draft - at;
    const size_t n = seq->n_history - n_left;
    const struct sampler_history history = {
        .ids = seq->history, .n = n, .n_prompt = n < seq->n_prompt ? n : seq->n_prompt};
    if (at > 0 && *seq->n_accepted != at) return LM_OK;
    const enum lm_status status =
        sampler_sample(worker->sampler, logits, seq->sampling, &history, n, sampled, err);
    if (status == LM_OK && n_left && sampled->id == seq->ids[i + 1])
        seq->accepted[(*seq->n_accepted)++] = *sampled;
    return status;
}

/* What a sequence wants of one row of logits, that behind its token i: the logits themselves, the
 * log-probability of the token that follows, a new token. */
static enum lm_status use_logits(struct worker *worker, const struct step_seq *seq, uint32_t i,
                                 uint32_t pos, const float *logits, struct sampled_token *sampled,
                                 struct lm_error *err)
{
    if (seq->output == STEP_OUTPUT_LOGITS)
        seq->on_logits(seq->context, pos, logits, worker->config.hp->n_vocab);
    if (i < seq->n_target) {
        struct sampled_token token;
        const enum lm_status status = sampler_logprob(worker->sampler, logits, seq->targets[i],
                                                      seq->n_target_top, &token, err);
        if (status != LM_OK) return status;
        seq->on_target(seq->context, pos + 1, &token);
    }
    if (seq->output == STEP_OUTPUT_NONE || i < first_sampled(seq)) return LM_OK;
    return sample(worker, seq, i, logits, sampled, err);
}

/* Hands a row of logits out. A failure is the sequence's own. */
static void use_row(struct worker *worker, const struct step_plan *plan, uint32_t out, float *row,
                    struct sampled_token *sampled)
{
    const struct model *model = last_span(worker)->model;
    const uint32_t index = worker->out_seq[out], at = worker->out_rows[out];
    const struct step_seq *seq = &plan->seq[index];
    if (seq->error->status != LM_OK) return;
    for (uint32_t i = 0; i < model->n_suppressed; i++)
        row[model->suppressed[i]] = -INFINITY;
    const uint32_t pos = worker->token[at].pos;
    const uint32_t first_pos = worker_length(worker, seq->slot) - seq->n_token;
    use_logits(worker, seq, pos - first_pos, pos, row, &sampled[index], seq->error);
}

static enum lm_status run_head(struct worker *worker, const struct step_plan *plan,
                               struct sampled_token *sampled, struct lm_error *err)
{
    struct graph *graph = &last_span(worker)->graph;
    struct backend *backend = graph->backend;
    const bool is_device = last_span(worker)->is_device;
    const size_t n_vocab = worker->config.hp->n_vocab;
    for (uint32_t first = 0; first < worker->n_out; first += LOGIT_ROWS) {
        const uint32_t left = worker->n_out - first, n = left < LOGIT_ROWS ? left : LOGIT_ROWS;
        graph_head(graph, first, n, worker->logits);
        if (is_device)
            backend->ops->download(backend, worker->host_logits, worker->logits,
                                   n * n_vocab * sizeof(float));
        enum lm_status status =
            first || !is_device ? backend->ops->sync(backend, err) : graph_finish(graph, err);
        status = check_files(worker, status, err);
        if (status != LM_OK) return status;
        progress_move(worker->config.progress);
        for (uint32_t i = 0; i < n; i++)
            use_row(worker, plan, first + i, worker->host_logits + i * n_vocab, sampled);
    }
    return LM_OK;
}

static void advance(struct worker *worker, const struct step_seq *seq)
{
    for (uint32_t i = 0; i < worker->n_span; i++)
        seq_state_advance(worker->span[i].state, seq->slot, seq->n_token);
}

static bool is_drafted(const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_seq; i++)
        if (plan->seq[i].is_drafted) return true;
    return false;
}

/* Drafts for what follows. Without them the step is as good. */
static void run_mtp(struct worker *worker, const struct step_plan *plan,
                    const struct sampled_token *sampled)
{
    struct lm_error err;
    if (!last_span(worker)->graph.hidden) return;
    const double wait_s = expert_pager_step_wait_s(worker->pager);
    if (mtp_follow(worker->mtp, plan, sampled, worker->hidden, &err) != LM_OK)
        log_debug("no drafts: %s", err.message);
    count_wait(plan, expert_pager_step_wait_s(worker->pager) - wait_s);
}

enum lm_status worker_step(struct worker *worker, const struct step_plan *plan,
                           struct sampled_token *sampled, struct lm_error *err)
{
    worker->n_token = worker->n_out = 0;
    struct lm_error failed = {.status = LM_OK};
    failed.status = exchange_begin_step(&worker->exchange, &failed);
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const enum lm_status status = add_rows(worker, &plan->seq[i], i, &failed, err);
        if (status != LM_OK) return status;
    }
    if (worker->mtp) last_span(worker)->graph.hidden = is_drafted(plan) ? worker->hidden : NULL;
    name_failure(worker, &failed);
    const enum lm_status status = run_stage(worker, plan, &failed, err);
    if (status != LM_OK) return status;
    for (uint32_t i = 0; i < plan->n_seq; i++)
        advance(worker, &plan->seq[i]);
    if (failed.status == LM_OK && is_last(worker)) {
        failed.status = run_head(worker, plan, sampled, &failed);
        if (failed.status == LM_OK) run_mtp(worker, plan, sampled);
        name_failure(worker, &failed);
    }
    progress_set(worker->config.progress, PROGRESS_IDLE, worker->n_step++);
    if (failed.status != LM_OK && err) *err = failed;
    return failed.status;
}

/* In all spans or none. */
static enum lm_status fork_slot(struct worker *worker, const struct seq_op *op,
                                struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < worker->n_span && status == LM_OK; i++)
        status = seq_state_can_fork(worker->span[i].state, op->slot, op->n, err);
    for (uint32_t i = 0; i < worker->n_span && status == LM_OK; i++)
        status = seq_state_fork(worker->span[i].state, op->slot, op->to, op->n, err);
    return status;
}

enum lm_status worker_seq(struct worker *worker, const struct seq_op *op, struct lm_error *err)
{
    if (worker->mtp) mtp_seq(worker->mtp, op);
    switch (op->kind) {
    case SEQ_CLEAR:
        if (worker_length(worker, op->slot)) exchange_end_sequence(&worker->exchange);
        for (uint32_t i = 0; i < worker->n_span; i++)
            seq_state_clear(worker->span[i].state, op->slot);
        return LM_OK;
    case SEQ_FORK:
        return fork_slot(worker, op, err);
    case SEQ_CUT:
        for (uint32_t i = 0; i < worker->n_span; i++)
            seq_state_cut(worker->span[i].state, op->slot, op->n);
        return LM_OK;
    }
    return lm_fail(err, LM_E_FAIL, "unknown operation on a sequence");
}

bool worker_idle(struct worker *worker)
{
    exchange_settle(&worker->exchange, NULL); /* a lost device tells the next step, too */
    const bool reads = expert_pager_idle(worker->pager);
    const bool copies = worker->tier && device_tier_idle(worker->tier);
    return reads || copies;
}

enum lm_status worker_expect(struct worker *worker, const struct step_plan *plan,
                             struct lm_error *err)
{
    uint32_t n_token = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++)
        n_token += plan->seq[i].n_token;
    return edges_expect(worker->edges, n_token, plan->n_seq, err);
}

enum lm_status worker_reserve(struct worker *worker, uint32_t slot, uint32_t n_token,
                              struct lm_error *err)
{
    struct lm_error failed = {.status = LM_OK}; /* so will the next step */
    make_room(worker, slot, n_token, &failed);
    return reserve(worker, slot, n_token, 0, err);
}

uint32_t worker_length(const struct worker *worker, uint32_t slot)
{
    return seq_state_length(worker->span[0].state, slot);
}

const struct worker_config *worker_settings(const struct worker *worker)
{
    return &worker->config;
}

struct seq_usage worker_usage(const struct worker *worker)
{
    /* that of the layers that see everything, which have the larger pool, wherever they are */
    struct seq_usage usage = seq_state_usage(worker->span[0].state);
    for (uint32_t i = 1; i < worker->n_span; i++) {
        const struct seq_usage other = seq_state_usage(worker->span[i].state);
        if (other.n_position_max > usage.n_position_max) usage = other;
    }
    return usage;
}

/* ---- one rank ----------------------------------------------------------------------------- */

static enum lm_status runner_begin(void *context, const struct step_plan *plan,
                                   struct sampled_token *sampled, struct lm_error *err)
{
    struct worker *worker = context;
    struct lm_error *const failed = &worker->step_error;
    failed->status = worker_step(worker, plan, sampled, failed);
    if (failed->status != LM_E_LIMIT) return LM_OK;
    if (err) *err = *failed;
    return LM_E_LIMIT;
}

static enum lm_status runner_end(void *context, struct lm_error *err)
{
    const struct worker *worker = context;
    if (worker->step_error.status != LM_OK && err) *err = worker->step_error;
    return worker->step_error.status;
}

static enum lm_status runner_seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    return worker_seq(context, op, err);
}

static struct seq_usage runner_usage(void *context)
{
    return worker_usage(context);
}

static bool runner_idle(void *context)
{
    return worker_idle(context);
}

struct step_runner worker_runner(struct worker *worker)
{
    return (struct step_runner){.context = worker,
                                .n_stage = 1,
                                .depth = 1,
                                .begin = runner_begin,
                                .end = runner_end,
                                .seq = runner_seq,
                                .usage = runner_usage,
                                .idle = runner_idle};
}

bool worker_take_trace(struct worker *worker, const uint8_t **records, size_t *n_bytes)
{
    if (worker->config.trace_kept) route_trace_take(worker->trace, records, n_bytes);
    return worker->config.trace_kept;
}

enum lm_status worker_link(struct worker *worker, struct transport_edge *in,
                           struct transport_edge *out, struct lm_error *err)
{
    return edges_link(worker->edges, worker->config.device, in, out, err);
}

struct edges_stats worker_edges(const struct worker *worker)
{
    return edges_stats(worker->edges);
}

struct expert_pager *worker_pager(const struct worker *worker)
{
    return worker->pager;
}

struct device_tier *worker_tier(const struct worker *worker)
{
    return worker->tier;
}
