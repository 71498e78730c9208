/* Trial plans, largest first. */
#include "coordinator/plan/serve_plan.h"

#include "proto/model/hparams.h"

enum { CTX_UNIT = 1024, CACHE_SHARE = 8, PAGED_SHARE = 16 };

struct limits {
    bool paged;           /* experts do not all fit in any case */
    uint64_t other_bytes; /* all but the experts in memory may take so much */
};

static uint64_t other_bytes(const struct memory_plan *plan)
{
    return plan->total_bytes - plan->slot_bytes;
}

static bool fits(const struct memory_request *request, const struct limits *limits,
                 const struct gguf_file *file, const struct hparams *hp)
{
    struct memory_plan plan;
    memory_plan_make(&plan, file, hp, request);
    return plan.total_bytes <= plan.budget_bytes && plan.paged == limits->paged &&
           other_bytes(&plan) <= limits->other_bytes;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Of what log-probabilities leave half of the cache is for what a state takes by itself, half for
 * the keys and values of its sequence; where states are nothing but those, all for them. */
static void settle_cache(struct memory_request *request, uint64_t cache_bytes,
                         const struct hparams *hp)
{
    request->logprob_bytes = cache_bytes / SERVE_PLAN_LOGPROB_SHARE;
    cache_bytes -= request->logprob_bytes;
    const uint64_t state_bytes = memory_plan_state_bytes(request, hp);
    const uint64_t position_bytes = memory_plan_position_bytes(request, hp);
    const uint64_t for_states = position_bytes ? cache_bytes / 2 : cache_bytes;
    const uint64_t n_state = for_states / state_bytes;
    request->n_snapshot = n_state < SERVE_PLAN_STATE_MAX ? (uint32_t)n_state : SERVE_PLAN_STATE_MAX;
    if (position_bytes)
        request->n_cache_position = (cache_bytes - request->n_snapshot * state_bytes) /
                                    position_bytes / MEMORY_PLAN_BLOCK * MEMORY_PLAN_BLOCK;
}

/* The largest power of two times the unit up to the trained context that fits, or the least. */
static uint32_t longest_context(struct memory_request request, const struct limits *limits,
                                const struct gguf_file *file, const struct hparams *hp)
{
    if (hp->n_ctx_train <= CTX_UNIT) return hp->n_ctx_train;
    request.n_ctx = CTX_UNIT;
    while (request.n_ctx <= hp->n_ctx_train / 2)
        request.n_ctx *= 2;
    while (request.n_ctx > CTX_UNIT && !fits(&request, limits, file, hp))
        request.n_ctx /= 2;
    return request.n_ctx;
}

uint64_t serve_plan_settle(struct memory_request *request, uint64_t cache_bytes,
                           const struct gguf_file *file, const struct hparams *hp)
{
    struct memory_plan plan;
    struct memory_request trial = *request;
    if (!trial.n_slot) trial.n_slot = 1;
    if (!trial.n_ctx) trial.n_ctx = least(hp->n_ctx_train, MEMORY_PLAN_CTX);
    trial.n_snapshot = 0;
    trial.n_cache_position = 0;
    trial.logprob_bytes = 0;
    memory_plan_make(&plan, file, hp, &trial);
    const bool chosen = plan.paged && !request->slot_bytes; /* by what the rest leaves */
    const uint64_t slot_min = chosen ? request->slot_bytes_min : plan.slot_bytes;
    const uint64_t least_bytes = other_bytes(&plan) + slot_min;
    const uint64_t left = plan.budget_bytes > least_bytes ? plan.budget_bytes - least_bytes : 0;
    if (cache_bytes == SERVE_PLAN_CACHE_AUTO) {
        cache_bytes = left / (plan.paged ? PAGED_SHARE : CACHE_SHARE);
        if (cache_bytes > SERVE_PLAN_CACHE_MAX) cache_bytes = SERVE_PLAN_CACHE_MAX;
    }
    trial.n_ctx = request->n_ctx ? request->n_ctx : least(hp->n_ctx_train, SERVE_PLAN_CTX);
    settle_cache(&trial, cache_bytes, hp);
    const uint64_t for_slots = left / PAGED_SHARE;
    const struct limits limits = {
        .paged = plan.paged,
        .other_bytes = plan.paged ? other_bytes(&plan) + cache_bytes + for_slots : UINT64_MAX};
    if (!request->n_slot) {
        trial.n_slot = SERVE_PLAN_SLOT_MAX;
        while (trial.n_slot > 1 && !fits(&trial, &limits, file, hp))
            trial.n_slot /= 2;
    }
    if (!request->n_ctx) trial.n_ctx = longest_context(trial, &limits, file, hp);
    *request = trial;
    return cache_bytes;
}
