/* The engine as the commands see it: a model opened and ready to generate, by this process or as
 * rank 0 of the job that it was launched into.
 *
 * One call builds the whole line: the other ranks, GGUF, tokenizer, memory plan, worker, pipeline,
 * scheduler. `run`, `eval` and `serve` are its users.
 *
 * Threads: engine_generate from one thread at a time; engine_cancel from any thread or signal
 *          handler. */
#ifndef LEAN_LAUNCH_ENGINE_H
#define LEAN_LAUNCH_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/sched/scheduler.h"
#include "launch/cluster.h"
#include "launch/rank_settings.h"
#include "proto/base/error.h"
#include "proto/model/sampling.h"
#include "worker/edges.h"
#include "worker/pager/expert_pager.h"

struct backend_cuda_counters;
struct options;
struct gguf_file;
struct hparams;
struct memory_plan;
struct memory_request;
struct pager_snapshot;
struct scheduler;
struct tokenizer;
struct engine;

enum {
    ENGINE_N_SNAPSHOT = 2,      /* of a conversation: its last turns */
    ENGINE_N_CTX_MAX = 1 << 25, /* no longer context, whatever the model says */
};

struct engine_config {
    struct cluster_config cluster;
    struct rank_settings own;      /* of this rank, and of the others but for what options say */
    const struct options *options; /* what ranks but 0 have differently; NULL: nothing */
    const char *model_path;
    uint32_t n_ctx;         /* 0: what fits, at most the trained context */
    uint32_t n_slot;        /* sequences held at once; 0: 1 */
    const char *kv_type;    /* "f16" */
    uint32_t prefill_chunk; /* tokens; 0: auto */
    enum drafting prompt_lookup, mtp;
    uint32_t n_draft;       /* of a sequence at most; <= STEP_DRAFT_MAX */
    bool reference;         /* weights decoded to F32, activations not quantized */
    const char *trace_path; /* routing trace, or NULL */
    uint32_t n_snapshot;    /* states kept to go back to where they cannot be cut (recurrent layers,
                             * windows), so that the next turn of a conversation starts there; costs
                             * one copy of the state each; 0: none */
    /* For a server: what is not given is settled by coordinator/plan/serve_plan.h, n_snapshot too.
     */
    bool serving;
    uint64_t cache_bytes;      /* of kept states; UINT64_MAX: auto */
    uint32_t checkpoint_every; /* tokens of a prompt between kept states; 0: none for that reason */
    /* Of several ranks: called once when one is lost, also while nothing runs, from any thread; may
     * be NULL. What is generated then fails with LM_E_RANK_LOST. */
    void (*on_lost)(void *context, const struct lm_error *err);
    void *lost_context;
    /* Called when the ranks have told what engine_ask_experts asked, from any thread; may be NULL.
     */
    void (*on_experts)(void *context);
    void *experts_context;
    bool experts_map; /* ranks also tell what they know of each expert: engine_draw_told */
    /* Called once the sizes are settled and before weights are read; may be NULL. */
    void (*on_plan)(void *context, const struct memory_plan *plan);
    void *plan_context;
};

/* Of a value of --prompt-lookup and --mtp. */
enum drafting engine_drafting(const char *name);

/* Fills config from options_engine. Strings are borrowed from options. n_snapshot:
 * ENGINE_N_SNAPSHOT. */
enum lm_status engine_config_from_options(struct engine_config *config,
                                          const struct options *options, struct lm_error *err);

/* What the engine would ask of a memory plan. LM_E_USAGE: no such kv_type. */
enum lm_status engine_memory_request(struct memory_request *out, const struct engine_config *config,
                                     struct lm_error *err);

/* LM_E_NO_MEM: the plan does not fit, found before anything is loaded; and whatever opening the
 * file, reading the hyperparameters and the vocabulary can find. */
enum lm_status engine_open(struct engine **out, const struct engine_config *config,
                           struct lm_error *err);
/* The error of writing the trace, if there was one; everything is released all the same. NULL is
 * legal. */
enum lm_status engine_close(struct engine *engine, struct lm_error *err);

const struct gguf_file *engine_file(const struct engine *engine);
const struct hparams *engine_hparams(const struct engine *engine);
const struct tokenizer *engine_tokenizer(const struct engine *engine);
uint32_t engine_n_ctx(const struct engine *engine);
uint32_t engine_n_slot(const struct engine *engine);
/* Of this rank's layers. Not while something is generated, but as expert_pager_watch allows. */
struct expert_pager *engine_pager(const struct engine *engine);
/* Belongs to the engine. Whoever drives it must be the only one: not beside engine_generate. */
struct scheduler *engine_scheduler(const struct engine *engine);

enum finish_reason { FINISH_STOP /* end token */, FINISH_LENGTH, FINISH_CANCELLED };

struct generate_request {
    const int32_t *prompt; /* [n_prompt] */
    size_t n_prompt;
    struct sampling_params sampling;
    uint32_t n_max;  /* tokens to generate at most; 0: until the context is full, or with on_logits
                      * none */
    bool ignore_end; /* end tokens do not stop */
    /* Called for each generated token, end tokens too, in order; false stops. */
    bool (*on_token)(void *context, const struct sampled_token *token);
    /* Called while the prompt is read; may be NULL. */
    void (*on_prefill)(void *context, size_t n_done, size_t n_total);
    /* The logits behind each prompt token, in order; the cache is then not used. May be NULL. */
    void (*on_logits)(void *context, uint32_t pos, const float *logits, uint32_t n_vocab);
    void *context;
};

struct generate_result {
    enum finish_reason finish;
    size_t n_prompt, n_cached, n_generated; /* n_cached: prompt tokens found in the cache */
    size_t n_draft, n_draft_accepted;
    double prefill_s, decode_s, first_token_s;
    struct expert_usage experts;
};

/* A prompt that shares a prefix with what the engine holds re-processes only the rest, and gives
 * bitwise what a cold run gives. LM_E_LIMIT: the prompt does not fit the context. */
enum lm_status engine_generate(struct engine *engine, const struct generate_request *request,
                               struct generate_result *result, struct lm_error *err);

/* Several requests at once, at most n_slot run beside each other; results: [n]. One token's bits do
 * not depend on the others. The error is of the first request that failed; all others complete. */
enum lm_status engine_generate_many(struct engine *engine, const struct generate_request *requests,
                                    struct generate_result *results, size_t n,
                                    struct lm_error *err);

/* What really runs, for reports. */
struct engine_rank {
    int64_t pid;
    const char *host; /* NULL: this one */
    uint32_t layer_begin, layer_end;
    uint64_t ram_bytes;                             /* budget */
    uint64_t weight_bytes, kv_bytes, scratch_bytes; /* that it takes at most */
    uint32_t n_thread, n_expert_slot;               /* n_expert_slot: in memory; 0: all */
    const char *kernels;
    const char *device;     /* "cuda:0", or "cpu" */
    uint32_t device_begin;  /* the layers from there on are on it; layer_end: none */
    uint32_t n_device_slot; /* experts of them on it; 0: all */
    const char *numerics;   /* "exact" or "fast"; on the CPU always "exact" */
    const char *transport;  /* by which activations come; NULL: none do */
};
uint32_t engine_n_rank(const struct engine *engine);
/* Whether any rank's device computes with fast numerics. */
bool engine_is_fast(const struct engine *engine);
struct engine_rank engine_rank(const struct engine *engine, uint32_t rank);

struct engine_stats {
    uint32_t n_thread, prefill_chunk;
    uint64_t n_draft_accepted;
    const char *kernels;
    uint32_t n_layer;
    bool paged;                                 /* some rank reads experts when they are needed */
    struct expert_pager_stats pager;            /* of this rank's layers */
    uint32_t n_seq_max;                         /* sequences in one step, at most so far */
    uint32_t n_ahead;                           /* steps under way at once, at most */
    const char *transport;                      /* NULL: one rank */
    const struct backend_cuda_counters *device; /* of this rank's device, or NULL */
    const char *tuned;                          /* settings of launch/tuned.h, or NULL */
};
struct engine_stats engine_stats(const struct engine *engine);

/* What the pagers of all ranks have counted. Not while something is generated. LM_E_RANK_LOST. */
enum lm_status engine_experts(const struct engine *engine, struct pager_snapshot *out,
                              struct lm_error *err);
/* The same while something is generated. Asking, in the step thread, makes config.on_experts be
 * called when there is something to tell: of one rank at once, of several when they have answered.
 * There engine_experts_told may be called. */
void engine_ask_experts(struct engine *engine);
void engine_experts_told(const struct engine *engine, struct pager_snapshot *out);
/* What one rank has told, and what has passed its ends. */
void engine_rank_told(const struct engine *engine, uint32_t rank, struct pager_snapshot *out,
                      struct edges_stats *edges);
/* Of several ranks: as pipeline_read_map. */
void engine_draw_told(const struct engine *engine,
                      void (*draw)(void *context, uint32_t layer, const uint8_t *resident,
                                   const float *heat, uint64_t n_hit, uint64_t n_lookup),
                      void *context);

/* Stops the running generation at its next token. Async-signal-safe. */
void engine_cancel(struct engine *engine);

#endif
