/* The sums of a plan, and the longest context by bisection. */
#include "coordinator/plan/memory_plan.h"

#include "coordinator/plan/weight_census.h"
#include "proto/base/log.h"
#include "proto/model/hparams.h"

/* PROGRAM_BYTES: measured with a vocabulary of 248320, 38 MiB; the rest is for threads, which take
 * a MiB or two each. */
enum {
    KV_BLOCK = MEMORY_PLAN_BLOCK,
    LOGIT_ROWS = 32, /* of which the worker makes logits at a time */
    CHUNK_MAX = 512,
    CHUNK_STEP = 64, /* and the least */
    PAGED_CHUNK_MAX = 4096,
    PAGED_SCRATCH_SHARE = 16, /* of the slots goes to the scratch of a longer chunk */
    PAGED_DEVICE_CHUNK_MAX = 16384,
    DEVICE_CHUNK_MAX = 2048, /* where all experts are there: many rows for each of them, and */
    DEVICE_CTX_MIN = 32768,  /* so long a context before that, or the one that fits */
    PROGRAM_BYTES = 96 << 20,
    DEVICE_PROGRAM_BYTES = 32 << 20, /* recorded graphs, staged pieces */
    FAST_TILE_BYTES = 32 << 20,
};

static uint32_t layer_end(const struct memory_request *request, const struct hparams *hp)
{
    return request->layer_end ? request->layer_end : hp->n_layer;
}

/* Whether the layer behind the decoder is planned, too. */
static bool drafts(const struct memory_request *request, const struct hparams *hp)
{
    return request->layer_end > hp->n_layer;
}

static uint64_t div_up(uint64_t n, uint64_t by)
{
    return (n + by - 1) / by;
}

/* Blocks that one layer keeps for all sequences together. */
static uint64_t kv_blocks(const struct layer_hparams *layer, const struct memory_request *request,
                          uint32_t n_ctx)
{
    const uint64_t n_held = (uint64_t)request->n_slot + request->n_snapshot;
    const uint64_t everything = request->n_slot * div_up(n_ctx, KV_BLOCK) + n_held /* forks split */
                                + div_up(request->n_cache_position, KV_BLOCK);
    const uint64_t reach = (uint64_t)layer->window + request->prefill_chunk + request->n_slot;
    const uint64_t kept = n_held * (div_up(reach, KV_BLOCK) + 2);
    return layer->window && kept < everything ? kept : everything;
}

/* Keys and values of one position in a layer. */
static uint64_t layer_position_bytes(const struct memory_request *request, const struct hparams *hp,
                                     const struct layer_hparams *layer)
{
    return 2 * layer->n_head_kv * tensor_row_bytes(request->kv_type, hp->head_dim);
}

static uint64_t kv_bytes(const struct hparams *hp, const struct memory_request *request,
                         uint32_t n_ctx)
{
    uint64_t n_bytes = 0;
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp); il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent) continue;
        n_bytes +=
            kv_blocks(layer, request, n_ctx) * KV_BLOCK * layer_position_bytes(request, hp, layer);
    }
    return n_bytes;
}

/* Of the decoder's layers that see everything. */
static uint64_t kv_lent_bytes(const struct hparams *hp, const struct memory_request *request,
                              uint32_t n_ctx)
{
    const uint64_t n_ready =
        div_up((uint64_t)request->n_slot * memory_plan_ready_ctx(n_ctx), KV_BLOCK);
    uint64_t n_bytes = 0;
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp) && il < hp->n_layer;
         il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent || layer->window) continue;
        const uint64_t n_block = kv_blocks(layer, request, n_ctx);
        if (n_block > n_ready)
            n_bytes += (n_block - n_ready) * KV_BLOCK * layer_position_bytes(request, hp, layer);
    }
    return n_bytes;
}

static uint64_t recurrent_bytes(const struct hparams *hp, const struct memory_request *request,
                                uint64_t n_held)
{
    const uint64_t n_conv = hp->n_conv ? (uint64_t)(hp->n_conv - 1) * hparams_conv_dim(hp) : 0;
    const uint64_t n_state = (uint64_t)hp->n_head_v * hp->dim_v * hp->dim_k;
    const uint64_t n_row = request->n_draft ? request->n_draft + 1 : 0;
    const uint64_t n_kept = n_row * (hparams_conv_dim(hp) + 2 * (uint64_t)hp->n_head_v);
    uint64_t n_layer = 0;
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp); il++)
        n_layer += hp->layer[il].recurrent;
    return n_held * n_layer * (n_conv + n_state + n_kept) * sizeof(float);
}

uint64_t memory_plan_position_bytes(const struct memory_request *request, const struct hparams *hp)
{
    uint64_t n_bytes = 0;
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp); il++)
        if (!hp->layer[il].recurrent && !hp->layer[il].window)
            n_bytes += layer_position_bytes(request, hp, &hp->layer[il]);
    return n_bytes;
}

uint64_t memory_plan_state_bytes(const struct memory_request *request, const struct hparams *hp)
{
    const uint64_t chunk = request->prefill_chunk ? request->prefill_chunk : CHUNK_MAX;
    const uint64_t n_entry = div_up(request->n_ctx, KV_BLOCK);
    uint64_t n_bytes = recurrent_bytes(hp, request, 1) + n_entry * sizeof(uint32_t);
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp); il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent) continue;
        const uint64_t reach = layer->window ? layer->window + chunk : 0;
        const uint64_t n_block = layer->window ? div_up(reach, KV_BLOCK) + 2 : 1;
        n_bytes += n_block * KV_BLOCK * layer_position_bytes(request, hp, layer);
        n_bytes += n_entry * sizeof(void *);
    }
    return n_bytes;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* An activation is kept as F32 and, for the products with weights, once more as that or quantized,
 * which takes 9.1 bits at most (a Q8_K block: 292 bytes for 256). */
static uint64_t act_bytes(uint64_t n, bool quantized)
{
    return quantized ? n / 256 * 292 + 292 : n * sizeof(float);
}

/* Bytes of one token in flight: the residual stream, the norm of it and what the widest mixer
 * needs (worker/graph/graph.h); beside them the backend's: inputs of products, queries, results
 * before they are added, and of the experts and the shared or dense network the hidden rows, their
 * quantized form, and the results where experts come in groups. */
static uint64_t bytes_per_token(const struct hparams *hp, bool quantized)
{
    enum { LISTS = 256 }; /* of pointers and indices */
    const uint64_t n_embd = hp->n_embd, n_value = (uint64_t)hp->n_head_v * hp->dim_v;
    uint64_t mixer = 0, query = 0, input = n_embd, hidden = 0, n_used = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        const uint64_t n_q = (uint64_t)layer->n_head * hp->head_dim;
        const uint64_t n_kv = (uint64_t)layer->n_head_kv * hp->head_dim;
        if (layer->recurrent) {
            mixer = most(mixer, hparams_conv_dim(hp) + 2 * n_value + 2 * (uint64_t)hp->n_head_v);
            input = most(input, n_value);
        } else {
            mixer = most(mixer, 3 * n_q + 2 * n_kv);
            input = most(input, n_q);
            query = most(query, n_q);
        }
        n_used = layer->moe ? hp->n_expert_used : n_used;
        hidden =
            most(hidden, layer->moe ? (uint64_t)hp->n_expert_used * hp->n_ff_exp : layer->n_ff);
    }
    const uint64_t shared = hp->n_ff_shexp; /* may be of floats where the experts are not */
    const uint64_t n_float = 2 * n_embd + mixer + query + most(n_embd, hp->n_expert) + hidden +
                             2 * shared + n_used * n_embd;
    return n_float * sizeof(float) + act_bytes(input, false) + act_bytes(input, quantized) +
           act_bytes(hidden, quantized) + 32 * n_used + LISTS;
}

/* Tables of cos and sin: one for layers that see everything, one for those with a window. */
static uint64_t n_angle_table(const struct hparams *hp, const struct memory_request *request)
{
    bool full = false, window = false;
    for (uint32_t il = request->layer_begin; il < layer_end(request, hp); il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent || !layer->rope) continue;
        full |= !layer->window;
        window |= layer->window != 0;
    }
    return (uint64_t)full + window + drafts(request, hp); /* which has its own */
}

/* What a step keeps for the layer that drafts, beside what it uses of the decoder's: the hidden
 * states that it is given, its own residual stream and the norm of it, and its entry. */
static uint64_t mtp_scratch_bytes(const struct hparams *hp, const struct memory_request *request)
{
    enum { N_ROW = 7, LISTS = 64 };
    const uint64_t n_batch = (uint64_t)request->prefill_chunk + request->n_slot;
    return drafts(request, hp) ? n_batch * (N_ROW * hp->n_embd * sizeof(float) + LISTS) : 0;
}

/* What the FAST mode has beside: rows of BF16, dense gates and ups whole, and a tile of decoded
 * weights (kernels/cuda/fast_linear.cu). */
static uint64_t fast_bytes(const struct hparams *hp, uint64_t n_batch)
{
    uint64_t input = most(hp->n_embd, (uint64_t)hp->n_head_v * hp->dim_v), n_ff = hp->n_ff_shexp;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (!layer->recurrent) input = most(input, (uint64_t)layer->n_head * hp->head_dim);
        if (!layer->moe) n_ff = most(n_ff, layer->n_ff);
    }
    const uint64_t n_float = 2 * n_ff + hp->n_embd, n_short = input + n_ff;
    return FAST_TILE_BYTES + n_batch * (n_float * sizeof(float) + n_short * sizeof(uint16_t));
}

static uint64_t scratch_bytes(const struct hparams *hp, const struct memory_request *request,
                              const struct weight_census *census)
{
    const struct weight_count *dense = &census->group[WEIGHTS_DENSE_FFN];
    const struct weight_count *experts = &census->group[WEIGHTS_EXPERTS];
    static const enum tensor_type floats[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16};
    bool quantized = true;
    for (size_t i = 0; i < sizeof(floats) / sizeof(floats[0]); i++)
        quantized &= !dense->n_of_type[floats[i]] && !experts->n_of_type[floats[i]];
    const uint64_t n_batch = (uint64_t)request->prefill_chunk + request->n_slot;
    /* logits, and what the sampler keeps of a row of them */
    const bool is_last = layer_end(request, hp) >= hp->n_layer;
    const uint64_t vocabulary = is_last ? (uint64_t)(LOGIT_ROWS + 8) * hp->n_vocab : 0;
    /* a stage of several receives the next batch and sends the last one beside its own */
    const bool is_all = is_last && request->layer_begin == 0;
    const uint32_t n_buffer = request->n_edge_buffer ? request->n_edge_buffer : 3;
    const uint32_t n_more = request->on_device ? n_buffer + 1 : n_buffer - 1; /* two to receive */
    const uint64_t edges = is_all ? 0 : n_more * n_batch * hp->n_embd;
    return n_batch * bytes_per_token(hp, quantized) + (vocabulary + edges) * sizeof(float) +
           mtp_scratch_bytes(hp, request) + (request->fast ? fast_bytes(hp, n_batch) : 0);
}

/* Fills what depends on the context, and the total. */
static void set_context(struct memory_plan *plan, const struct hparams *hp,
                        const struct memory_request *request, uint32_t n_ctx)
{
    plan->n_ctx = n_ctx;
    plan->kv_bytes = kv_bytes(hp, request, n_ctx);
    plan->kv_lent_bytes = plan->paged && request->on_device ? kv_lent_bytes(hp, request, n_ctx) : 0;
    plan->angle_bytes = n_angle_table(hp, request) * n_ctx * hp->rope.n_rot * sizeof(float);
    plan->total_bytes = plan->weight_bytes + plan->kv_bytes + plan->recurrent_bytes +
                        plan->angle_bytes + plan->scratch_bytes + plan->program_bytes +
                        plan->logprob_bytes;
}

/* Which part of the plan is the layer's that drafts. */
static uint64_t mtp_bytes(const struct memory_plan *plan, const struct gguf_file *file,
                          const struct hparams *hp, const struct memory_request *request)
{
    struct memory_request own = *request;
    struct weight_census census;
    if (!drafts(request, hp)) return 0;
    own.layer_begin = hp->n_layer;
    own.prefill_chunk = plan->prefill_chunk;
    weight_census_take_layers(&census, file, hp, own.layer_begin, own.layer_end);
    return census.group[WEIGHTS_MTP].n_bytes +
           (plan->paged ? 0 : census.group[WEIGHTS_EXPERTS].n_bytes) +
           kv_bytes(hp, &own, plan->n_ctx) +
           (uint64_t)plan->n_ctx * hp->rope.n_rot * sizeof(float) + mtp_scratch_bytes(hp, &own);
}

/* The largest multiple of a block up to the trained context (or that itself) that fits; 0: none. */
static uint32_t longest_context(struct memory_plan *plan, const struct hparams *hp,
                                const struct memory_request *request)
{
    uint32_t fits = 0, end = (uint32_t)div_up(hp->n_ctx_train, KV_BLOCK) + 1; /* blocks */
    while (end - fits > 1) {
        const uint32_t middle = fits + (end - fits) / 2;
        set_context(plan, hp, request, middle * KV_BLOCK);
        if (plan->total_bytes <= plan->budget_bytes)
            fits = middle;
        else
            end = middle;
    }
    const uint32_t n_ctx = fits * KV_BLOCK;
    return n_ctx < hp->n_ctx_train ? n_ctx : hp->n_ctx_train;
}

/* Whether everything fits with the context asked for, or with one that is long enough. */
static bool fits_resident(struct memory_plan *plan, const struct hparams *hp,
                          const struct memory_request *request)
{
    const uint32_t enough = hp->n_ctx_train < MEMORY_PLAN_CTX ? hp->n_ctx_train : MEMORY_PLAN_CTX;
    if (!request->n_ctx) return plan->n_ctx_fit >= enough;
    set_context(plan, hp, request, request->n_ctx);
    return plan->total_bytes <= plan->budget_bytes;
}

/* Experts get what the rest leaves of the budget; the context is the one asked for, or the usual
 * one as far as it fits. */
static void page_experts(struct memory_plan *plan, const struct hparams *hp,
                         const struct memory_request *request)
{
    const uint64_t dense_bytes = plan->weight_bytes - plan->expert_bytes;
    plan->paged = true;
    plan->slot_bytes = request->slot_bytes ? request->slot_bytes : request->slot_bytes_min;
    plan->weight_bytes = dense_bytes + plan->slot_bytes;
    plan->n_ctx_fit = longest_context(plan, hp, request);
    uint32_t n_ctx = plan->n_ctx_fit < MEMORY_PLAN_CTX ? plan->n_ctx_fit : MEMORY_PLAN_CTX;
    if (!n_ctx) n_ctx = hp->n_ctx_train < KV_BLOCK ? hp->n_ctx_train : KV_BLOCK;
    set_context(plan, hp, request, request->n_ctx ? request->n_ctx : n_ctx);
    if (request->slot_bytes || plan->total_bytes >= plan->budget_bytes) return;
    const uint64_t n_left = plan->budget_bytes - plan->total_bytes;
    plan->slot_bytes += n_left;
    plan->weight_bytes += n_left;
    plan->total_bytes += n_left;
}

/* Fills everything that depends on the request, whose chunk is settled. */
static void plan_request(struct memory_plan *plan, const struct hparams *hp,
                         const struct memory_request *request, const struct weight_census *census)
{
    plan->prefill_chunk = request->prefill_chunk;
    plan->scratch_bytes = scratch_bytes(hp, request, census);
    plan->paged = false;
    plan->slot_bytes = plan->expert_bytes;
    plan->weight_bytes = census->n_bytes;
    plan->n_ctx_fit = longest_context(plan, hp, request);
    if (request->slot_bytes || (request->slot_bytes_min && !fits_resident(plan, hp, request))) {
        page_experts(plan, hp, request);
        return;
    }
    const uint32_t smallest = hp->n_ctx_train < KV_BLOCK ? hp->n_ctx_train : KV_BLOCK;
    const uint32_t best = plan->n_ctx_fit ? plan->n_ctx_fit : smallest;
    set_context(plan, hp, request, request->n_ctx ? request->n_ctx : best);
}

/* Every chunk reads the experts that are not in memory once, so that a longer one pays for what its
 * scratch takes from the slots, as long as that is little. */
static void lengthen_chunk(struct memory_plan *plan, const struct memory_plan *shorter,
                           const struct hparams *hp, struct memory_request *request,
                           const struct weight_census *census)
{
    const uint32_t max = request->on_device ? PAGED_DEVICE_CHUNK_MAX : PAGED_CHUNK_MAX;
    for (uint32_t chunk = max; chunk > shorter->prefill_chunk; chunk /= 2) {
        if (chunk / 2 >= shorter->n_ctx) continue;
        request->prefill_chunk = chunk;
        plan_request(plan, hp, request, census);
        if (plan->paged && plan->n_ctx >= shorter->n_ctx &&
            plan->total_bytes <= plan->budget_bytes &&
            plan->scratch_bytes - shorter->scratch_bytes <=
                shorter->slot_bytes / PAGED_SCRATCH_SHARE)
            return;
    }
    *plan = *shorter;
}

/* A device wants more rows at once than processors do. */
static void lengthen_device_chunk(struct memory_plan *plan, const struct hparams *hp,
                                  struct memory_request *request,
                                  const struct weight_census *census)
{
    const struct memory_plan shorter = *plan;
    const uint32_t enough = shorter.n_ctx < DEVICE_CTX_MIN ? shorter.n_ctx : DEVICE_CTX_MIN;
    for (uint32_t chunk = DEVICE_CHUNK_MAX; chunk > shorter.prefill_chunk; chunk /= 2) {
        if (chunk / 2 >= shorter.n_ctx) continue;
        request->prefill_chunk = chunk;
        plan_request(plan, hp, request, census);
        if (!plan->paged && plan->n_ctx >= enough && plan->total_bytes <= plan->budget_bytes)
            return;
    }
    *plan = shorter;
}

/* What is available but the reserve. */
static uint64_t spare_memory(void)
{
    const uint64_t n_bytes = host_memory_available();
    return n_bytes -
           (n_bytes / 8 < MEMORY_PLAN_RESERVE_MAX ? n_bytes / 8 : MEMORY_PLAN_RESERVE_MAX);
}

static void make_plan(struct memory_plan *plan, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request)
{
    struct weight_census census;
    struct memory_request with_chunk = *request;
    weight_census_take_layers(&census, file, hp, request->layer_begin, layer_end(request, hp));
    census.group[WEIGHTS_EXPERTS].n_bytes += request->lacking_bytes;
    census.n_bytes += request->lacking_bytes;
    *plan = (struct memory_plan){
        .n_slot = request->n_slot,
        .budget_bytes = request->budget_bytes ? request->budget_bytes : spare_memory(),
        .expert_bytes = census.group[WEIGHTS_EXPERTS].n_bytes,
        .slot_bytes = census.group[WEIGHTS_EXPERTS].n_bytes,
        .weight_bytes = census.n_bytes,
        .recurrent_bytes =
            recurrent_bytes(hp, request, (uint64_t)request->n_slot + request->n_snapshot),
        .program_bytes = request->on_device ? DEVICE_PROGRAM_BYTES : PROGRAM_BYTES,
        .logprob_bytes = request->logprob_bytes,
    };
    if (request->prefill_chunk) {
        plan_request(plan, hp, request, &census);
        return;
    }
    struct memory_plan paged = {.paged = false};
    for (uint32_t chunk = CHUNK_MAX; chunk >= CHUNK_STEP; chunk -= CHUNK_STEP) {
        with_chunk.prefill_chunk = chunk;
        plan_request(plan, hp, &with_chunk, &census);
        const bool fits = plan->scratch_bytes + plan->program_bytes <= MEMORY_PLAN_OVERHEAD_MAX &&
                          plan->total_bytes <= plan->budget_bytes;
        if (fits && !plan->paged) {
            if (request->on_device) lengthen_device_chunk(plan, hp, &with_chunk, &census);
            return;
        }
        if (fits && !paged.paged) paged = *plan; /* all may fit yet with a shorter chunk */
    }
    if (paged.paged) lengthen_chunk(plan, &paged, hp, &with_chunk, &census);
}

void memory_plan_make(struct memory_plan *plan, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request)
{
    make_plan(plan, file, hp, request);
    plan->mtp_bytes = mtp_bytes(plan, file, hp, request);
}

void memory_plan_make_empty(struct memory_plan *plan, const struct hparams *hp,
                            const struct memory_request *request)
{
    const uint64_t fixed = PROGRAM_BYTES + request->logprob_bytes, bank = request->lacking_bytes;
    const uint64_t budget = request->budget_bytes ? request->budget_bytes : spare_memory();
    const uint64_t left = budget > fixed ? budget - fixed : 0;
    const bool paged = bank && (request->slot_bytes || (request->slot_bytes_min && bank > left));
    uint64_t slot_bytes = bank;
    if (paged)
        slot_bytes =
            request->slot_bytes ? request->slot_bytes : most(left, request->slot_bytes_min);
    *plan = (struct memory_plan){
        .n_ctx = request->n_ctx,
        .n_slot = request->n_slot,
        .prefill_chunk = request->prefill_chunk,
        .n_ctx_fit = hp->n_ctx_train,
        .budget_bytes = budget,
        .paged = paged,
        .expert_bytes = bank,
        .slot_bytes = slot_bytes,
        .weight_bytes = slot_bytes,
        .program_bytes = PROGRAM_BYTES,
        .logprob_bytes = request->logprob_bytes,
        .total_bytes = fixed + slot_bytes,
    };
}

enum lm_status memory_plan_check(const struct memory_plan *plan, struct lm_error *err)
{
    char total[24], budget[24], weights[24], kv[24], rest[24];
    if (plan->total_bytes <= plan->budget_bytes) return LM_OK;
    lm_fail(
        err, LM_E_NO_MEM,
        "the model needs %s of memory (weights %s%s, KV cache %s for %u x %u tokens, other %s), "
        "%s may be used",
        log_format_bytes(plan->total_bytes, total), log_format_bytes(plan->weight_bytes, weights),
        plan->paged ? " with the fewest experts that work" : "",
        log_format_bytes(plan->kv_bytes, kv), plan->n_slot, plan->n_ctx,
        log_format_bytes(plan->total_bytes - plan->weight_bytes - plan->kv_bytes, rest),
        log_format_bytes(plan->budget_bytes, budget));
    if (plan->n_ctx_fit)
        lm_hint(err, "a context of %u tokens fits: --ctx %u", plan->n_ctx_fit, plan->n_ctx_fit);
    else
        lm_hint(err,
                "use a smaller quantization, a larger --ram if one is set, or a host with more "
                "memory");
    return LM_E_NO_MEM;
}

bool memory_plan_recheck(const struct memory_plan *plan, uint64_t taken_bytes,
                         uint64_t available_bytes)
{
    char total[24], now[24];
    if (plan->total_bytes <= taken_bytes || plan->total_bytes - taken_bytes <= available_bytes)
        return true;
    log_warning("the model needs %s of memory, by now only %s can be had: something else took the "
                "rest; a smaller --ram keeps the system from swapping",
                log_format_bytes(plan->total_bytes, total),
                log_format_bytes(taken_bytes + available_bytes, now));
    return false;
}
