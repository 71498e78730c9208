/* The parts of one process, put together: file, tokenizer, backend, worker, scheduler. */
#include "launch/engine.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/memory_plan.h"
#include "coordinator/plan/serve_plan.h"
#include "coordinator/sched/scheduler.h"
#include "coordinator/text/tokenizer.h"
#include "launch/options.h"
#include "launch/pager_report.h"
#include "launch/routing_profile.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/policy.h"
#include "worker/worker.h"

/* Shorter ones cost more per token than a pipeline gains by them; and where experts are paged each
 * chunk needs nearly all of them. */
enum { CHUNK_MIN = 128 };

struct engine {
    struct gguf_file *file;
    struct hparams hp;
    struct tokenizer *tokenizer;
    struct backend *backend;
    struct expert_store *store;
    struct worker *worker;
    struct scheduler *scheduler;
    struct step_runner runner;
    uint32_t n_ctx, n_slot, n_snapshot, prefill_chunk;
    uint64_t cache_bytes, n_cache_position, state_bytes;
    uint32_t n_expert_slot; /* experts in memory; 0: all, mapped */
    bool keeps_profile;
    enum tensor_type kv_type;
    atomic_bool cancelled;
};

enum lm_status engine_config_from_options(struct engine_config *config,
                                          const struct options *options, struct lm_error *err)
{
    (void)err; /* options checked the values */
    *config = (struct engine_config){
        .n_ctx = (uint32_t)options_int(options, "ctx"),
        .n_slot = (uint32_t)options_int(options, "parallel"),
        .kv_type = options_string(options, "kv-type"),
        .n_thread = (uint32_t)options_int(options, "threads"),
        .kernels = options_string(options, "kernels"),
        .prefill_chunk = (uint32_t)options_int(options, "prefill-chunk"),
        .ram_bytes = options_size(options, "ram"),
        .trace_path = options_string(options, "trace"),
        .expert_slots = options_string(options, "expert-slots"),
        .policy = options_string(options, "policy"),
        .prefetch = options_string(options, "prefetch"),
        .io = options_string(options, "io"),
        .profile = options_string(options, "profile"),
        .n_snapshot = ENGINE_N_SNAPSHOT,
    };
    return LM_OK;
}

/* ---- opening ------------------------------------------------------------------------------ */

enum lm_status engine_memory_request(struct memory_request *out, const struct engine_config *config,
                                     struct lm_error *err)
{
    const int kv_type = tensor_type_from_name(config->kv_type);
    if (kv_type < 0)
        return lm_fail(err, LM_E_USAGE, "unknown type of KV cache '%s'", config->kv_type);
    const uint32_t n_slot = config->n_slot ? config->n_slot : 1;
    *out = (struct memory_request){.n_ctx = config->n_ctx,
                                   .n_slot = n_slot,
                                   .n_snapshot = config->n_snapshot,
                                   .prefill_chunk = config->prefill_chunk,
                                   .kv_type = (enum tensor_type)kv_type,
                                   .budget_bytes = config->ram_bytes};
    return LM_OK;
}

static enum lm_status open_model(struct engine *engine, const char *path, struct lm_error *err)
{
    enum lm_status status = gguf_open(&engine->file, path, err);
    if (status == LM_OK) status = hparams_read(&engine->hp, engine->file, err);
    if (status == LM_OK) status = tokenizer_create(&engine->tokenizer, engine->file, err);
    if (status == LM_OK)
        status = expert_store_create(&engine->store, engine->file, &engine->hp, 0,
                                     engine->hp.n_layer, err);
    if (status != LM_OK) return status;
    if (tokenizer_n_vocab(engine->tokenizer) > engine->hp.n_vocab)
        return lm_fail(err, LM_E_FORMAT, "%s: vocabulary of %u tokens, embeddings for %u", path,
                       tokenizer_n_vocab(engine->tokenizer), engine->hp.n_vocab);
    return LM_OK;
}

/* "N", "P%" or "min" of n_expert experts. */
static enum lm_status parse_expert_slots(uint32_t *out, const char *text, uint32_t n_expert,
                                         struct lm_error *err)
{
    char *end;
    if (!strcmp(text, "min")) {
        *out = 1; /* the pager raises it to the least that works */
        return LM_OK;
    }
    const double value = strtod(text, &end);
    const bool percent = *end == '%';
    if (end == text || end[percent] || !(value > 0) || (percent && value > 100) ||
        (!percent && (value > UINT32_MAX || value != (uint32_t)value)))
        return lm_fail(
            err, LM_E_USAGE,
            "--expert-slots: '%s' is not a number of experts, a share such as 50%%, or min", text);
    const double n_slot = percent ? ceil(value / 100 * n_expert) : value;
    *out = n_slot < n_expert ? (uint32_t)n_slot : n_expert;
    return LM_OK;
}

/* What the experts need of memory in slots: as many as asked for, or the fewest that work. */
static enum lm_status request_slots(struct memory_request *request, struct engine *engine,
                                    const char *expert_slots, struct lm_error *err)
{
    const struct hparams *hp = &engine->hp;
    const uint32_t n_total = hparams_n_expert_total(hp);
    if (!n_total) return LM_OK;
    request->slot_bytes_min =
        expert_pager_slot_bytes(engine->store, 0, hp->n_layer, hp->n_expert, 1);
    if (!expert_slots) return LM_OK;
    const enum lm_status status =
        parse_expert_slots(&engine->n_expert_slot, expert_slots, n_total, err);
    request->slot_bytes =
        expert_pager_slot_bytes(engine->store, 0, hp->n_layer, hp->n_expert, engine->n_expert_slot);
    return status;
}

/* What a server takes where nothing was said. n_slot 0 is a server's to choose. */
static void settle_serving(struct memory_request *request, struct engine *engine,
                           const struct engine_config *config)
{
    char cache[24];
    request->n_slot = config->n_slot;
    engine->cache_bytes =
        serve_plan_settle(request, config->cache_bytes, engine->file, &engine->hp);
    log_info("prefix cache: %s, up to %u states", log_format_bytes(engine->cache_bytes, cache),
             request->n_snapshot);
}

/* Settles the sizes, and that they fit. */
static enum lm_status plan_memory(struct engine *engine, const struct engine_config *config,
                                  struct memory_plan *plan, struct lm_error *err)
{
    struct memory_request request;
    const struct hparams *hp = &engine->hp;
    enum lm_status status = engine_memory_request(&request, config, err);
    if (status == LM_OK) status = request_slots(&request, engine, config->expert_slots, err);
    if (status != LM_OK) return status;
    if (config->serving) settle_serving(&request, engine, config);
    memory_plan_make(plan, engine->file, hp, &request);
    status = memory_plan_check(plan, err);
    if (plan->paged && !engine->n_expert_slot)
        engine->n_expert_slot =
            expert_pager_slots_for(engine->store, 0, hp->n_layer, hp->n_expert, plan->slot_bytes);
    if (plan->paged && status == LM_OK)
        pager_report_plan(plan, hp,
                          expert_pager_slot_count(engine->store, 0, hp->n_layer, hp->n_expert,
                                                  engine->n_expert_slot));
    engine->n_ctx = plan->n_ctx < ENGINE_N_CTX_MAX ? plan->n_ctx : ENGINE_N_CTX_MAX;
    engine->n_slot = request.n_slot;
    engine->n_snapshot = request.n_snapshot;
    engine->n_cache_position = request.n_cache_position;
    engine->state_bytes = memory_plan_state_bytes(&request, hp);
    engine->kv_type = request.kv_type;
    engine->prefill_chunk = plan->prefill_chunk;
    if (engine->prefill_chunk > engine->n_ctx) engine->prefill_chunk = engine->n_ctx;
    return status;
}

static struct pager_options pager_options(const struct engine_config *config)
{
    const char *const io = config->io ? config->io : "auto";
    const char *const prefetch = config->prefetch ? config->prefetch : "auto";
    return (struct pager_options){
        .policy = policy_find(config->policy ? config->policy : "lfru"),
        .prefetch = !strcmp(prefetch, "off")  ? PREFETCH_OFF
                    : !strcmp(prefetch, "on") ? PREFETCH_ON
                                              : PREFETCH_AUTO,
        .engine = !strcmp(io, "uring")   ? DISK_ENGINE_URING
                  : !strcmp(io, "pread") ? DISK_ENGINE_THREADS
                                         : DISK_ENGINE_AUTO,
        .access = !strcmp(io, "buffered") ? DISK_ACCESS_BUFFERED : DISK_ACCESS_AUTO,
    };
}

static enum lm_status create_worker(struct engine *engine, const struct engine_config *asked,
                                    struct lm_error *err)
{
    struct pager_options pager = pager_options(asked);
    pager.n_slot = engine->n_expert_slot;
    const struct worker_config config = {.file = engine->file,
                                         .hp = &engine->hp,
                                         .store = engine->store,
                                         .pager = pager,
                                         .backend = engine->backend,
                                         .layer_end = engine->hp.n_layer,
                                         .n_slot = engine->n_slot + engine->n_snapshot,
                                         .n_ctx = engine->n_ctx,
                                         .n_position = (uint64_t)engine->n_slot * engine->n_ctx +
                                                       engine->n_cache_position,
                                         .n_batch = engine->prefill_chunk + engine->n_slot,
                                         .kv_type = engine->kv_type,
                                         .trace_path = asked->trace_path};
    return worker_create(&engine->worker, &config, err);
}

static enum lm_status create_scheduler(struct engine *engine, uint32_t checkpoint_every,
                                       struct lm_error *err)
{
    engine->runner = worker_runner(engine->worker);
    const struct scheduler_config config = {.runner = &engine->runner,
                                            .n_slot = engine->n_slot,
                                            .n_parked = engine->n_snapshot,
                                            .n_ctx = engine->n_ctx,
                                            .prefill_chunk = engine->prefill_chunk,
                                            .chunk_min = engine->n_expert_slot ? 0 : CHUNK_MIN,
                                            .checkpoint_every = checkpoint_every,
                                            .state_bytes = engine->state_bytes,
                                            .can_cut = hparams_can_cut_state(&engine->hp),
                                            .logprob_bytes_max =
                                                engine->cache_bytes / SERVE_PLAN_LOGPROB_SHARE};
    return scheduler_create(&engine->scheduler, &config, err);
}

static enum lm_status open_parts(struct engine *engine, const struct engine_config *config,
                                 struct lm_error *err)
{
    const struct backend_cpu_config backend = {.n_thread = config->n_thread,
                                               .kernels = config->reference ? "reference"
                                                                            : config->kernels,
                                               .pin = config->n_thread == 0};
    struct memory_plan plan;
    enum lm_status status = open_model(engine, config->model_path, err);
    if (status == LM_OK) status = plan_memory(engine, config, &plan, err);
    if (status == LM_OK && config->on_plan) config->on_plan(config->plan_context, &plan);
    if (status == LM_OK) status = backend_cpu_create(&engine->backend, &backend, err);
    if (status == LM_OK) status = create_worker(engine, config, err);
    if (status == LM_OK && (engine->n_expert_slot || config->profile))
        status = routing_profile_load(worker_pager(engine->worker), engine->file, &engine->hp,
                                      config->profile, err);
    engine->keeps_profile = status == LM_OK && engine->n_expert_slot && !config->profile;
    if (status == LM_OK) status = create_scheduler(engine, config->checkpoint_every, err);
    if (status == LM_OK) memory_plan_recheck(&plan, host_memory_taken(), host_memory_available());
    return status;
}

enum lm_status engine_open(struct engine **out, const struct engine_config *config,
                           struct lm_error *err)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    if (!engine) return lm_fail(err, LM_E_NO_MEM, "engine: no memory");
    const enum lm_status status = open_parts(engine, config, err);
    if (status != LM_OK) {
        engine_close(engine, NULL);
        return status;
    }
    *out = engine;
    return LM_OK;
}

enum lm_status engine_close(struct engine *engine, struct lm_error *err)
{
    if (!engine) return LM_OK;
    scheduler_destroy(engine->scheduler);
    if (engine->keeps_profile)
        routing_profile_save(worker_pager(engine->worker), engine->file, &engine->hp);
    const enum lm_status status = worker_close(engine->worker, err);
    expert_store_destroy(engine->store);
    if (engine->backend) engine->backend->ops->destroy(engine->backend);
    tokenizer_destroy(engine->tokenizer);
    gguf_close(engine->file);
    free(engine);
    return status;
}

const struct gguf_file *engine_file(const struct engine *engine)
{
    return engine->file;
}

const struct hparams *engine_hparams(const struct engine *engine)
{
    return &engine->hp;
}

const struct tokenizer *engine_tokenizer(const struct engine *engine)
{
    return engine->tokenizer;
}

uint32_t engine_n_ctx(const struct engine *engine)
{
    return engine->n_ctx;
}

struct expert_pager *engine_pager(const struct engine *engine)
{
    return worker_pager(engine->worker);
}

struct scheduler *engine_scheduler(const struct engine *engine)
{
    return engine->scheduler;
}

uint32_t engine_n_slot(const struct engine *engine)
{
    return engine->n_slot;
}

struct engine_stats engine_stats(const struct engine *engine)
{
    return (struct engine_stats){.n_thread = backend_cpu_n_thread(engine->backend),
                                 .prefill_chunk = engine->prefill_chunk,
                                 .kernels = backend_cpu_kernels(engine->backend),
                                 .n_layer = engine->hp.n_layer,
                                 .pager = expert_pager_stats(engine_pager(engine)),
                                 .n_seq_max = scheduler_stats(engine->scheduler).n_seq_max};
}

/* ---- generating --------------------------------------------------------------------------- */

/* A request on its way, between the caller's form and the scheduler's. */
struct job {
    struct request request;
    const struct generate_request *asked;
    const struct tokenizer *tokenizer;
    size_t turn; /* where the last one of the prompt begins */
    double first_token_s;
};

static bool on_token(void *context, const struct sampled_token *token)
{
    struct job *job = context;
    if (job->request.n_generated == 1) job->first_token_s = log_now_s();
    const bool end = !job->asked->ignore_end && tokenizer_is_end(job->tokenizer, token->id);
    const bool go_on = job->asked->on_token(job->asked->context, token);
    return go_on && !end;
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    const struct job *job = context;
    job->asked->on_prefill(job->asked->context, n_done, n_total);
}

static void on_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    const struct job *job = context;
    job->asked->on_logits(job->asked->context, pos, logits, n_vocab);
}

/* Where the last turn of a prompt begins: at its last control token, such as <|im_start|>. A next
 * turn shares the prompt up to there even if a template drops the reasoning behind it. */
static size_t find_turn(const struct tokenizer *tokenizer, const struct generate_request *asked)
{
    size_t i = asked->n_prompt - 1;
    while (i > 0 && tokenizer_token_kind(tokenizer, asked->prompt[i]) != TOKEN_CONTROL)
        i--;
    return i;
}

static enum lm_status submit(struct engine *engine, struct job *job,
                             const struct generate_request *asked, struct lm_error *err)
{
    for (size_t i = 0; i < asked->n_prompt; i++)
        if (asked->prompt[i] < 0 || (uint32_t)asked->prompt[i] >= engine->hp.n_vocab)
            return lm_fail(err, LM_E_USAGE, "token %zu is %d, the vocabulary has %u", i,
                           asked->prompt[i], engine->hp.n_vocab);
    if (!asked->n_prompt) return lm_fail(err, LM_E_USAGE, "the prompt has no tokens");
    job->asked = asked;
    job->tokenizer = engine->tokenizer;
    struct request *request = &job->request;
    request->prompt = asked->prompt;
    request->n_prompt = asked->n_prompt;
    request->n_max = asked->n_max || asked->on_logits ? asked->n_max : UINT32_MAX;
    request->sampling = asked->sampling;
    job->turn = find_turn(engine->tokenizer, asked);
    request->turns = &job->turn;
    request->n_turn = 1;
    request->on_logits = asked->on_logits ? on_logits : NULL;
    request->on_token = on_token;
    request->on_prefill = asked->on_prefill ? on_prefill : NULL;
    request->context = job;
    atomic_init(&request->cancelled, false);
    return scheduler_submit(engine->scheduler, request, err);
}

static struct generate_result result_of(const struct job *job)
{
    const struct request *request = &job->request;
    const bool cancelled = atomic_load(&request->cancelled) && !request->stopped;
    const double read_s = request->prefill_end_s ? request->prefill_end_s : request->end_s;
    return (struct generate_result){
        .finish = request->stopped ? FINISH_STOP
                  : cancelled      ? FINISH_CANCELLED
                                   : FINISH_LENGTH,
        .n_prompt = request->n_prompt,
        .n_cached = request->n_cached,
        .n_generated = request->n_generated,
        .experts = request->experts,
        .prefill_s = read_s - request->submit_s,
        .decode_s = request->end_s - read_s,
        .first_token_s = job->first_token_s ? job->first_token_s - request->submit_s : 0,
    };
}

enum lm_status engine_generate_many(struct engine *engine, const struct generate_request *requests,
                                    struct generate_result *results, size_t n, struct lm_error *err)
{
    struct job *jobs = calloc(n, sizeof(*jobs));
    size_t n_submitted = 0;
    enum lm_status status = LM_OK;
    if (!jobs) return lm_fail(err, LM_E_NO_MEM, "engine: no memory for %zu requests", n);
    atomic_store(&engine->cancelled, false);
    while (n_submitted < n && status == LM_OK) {
        status = submit(engine, &jobs[n_submitted], &requests[n_submitted], err);
        if (status == LM_OK) n_submitted++;
    }
    /* what was submitted runs to its end, or to nothing if one could not be */
    bool cancel = status != LM_OK;
    do {
        cancel |= atomic_load(&engine->cancelled);
        for (size_t i = 0; cancel && i < n_submitted; i++)
            atomic_store(&jobs[i].request.cancelled, true);
    } while (scheduler_step(engine->scheduler));
    for (size_t i = 0; i < n_submitted; i++) {
        results[i] = result_of(&jobs[i]);
        if (status != LM_OK || jobs[i].request.status == LM_OK) continue;
        status = jobs[i].request.status;
        if (err) *err = jobs[i].request.error;
    }
    free(jobs);
    return status;
}

enum lm_status engine_generate(struct engine *engine, const struct generate_request *request,
                               struct generate_result *result, struct lm_error *err)
{
    return engine_generate_many(engine, request, result, 1, err);
}

void engine_cancel(struct engine *engine)
{
    atomic_store(&engine->cancelled, true);
}
