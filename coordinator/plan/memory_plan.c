/* The sums of a plan, and the longest context by bisection. */
#include "coordinator/plan/memory_plan.h"

#include "coordinator/plan/weight_census.h"
#include "proto/base/log.h"
#include "proto/model/hparams.h"

/* PROGRAM_BYTES: measured with a vocabulary of 248320, 38 MiB; the rest is for threads. */
enum { KV_BLOCK = 128, PROGRAM_BYTES = 96 << 20 };

static uint64_t div_up(uint64_t n, uint64_t by)
{
    return (n + by - 1) / by;
}

/* Blocks that one layer keeps for all sequences together. */
static uint64_t kv_blocks(const struct layer_hparams *layer, const struct memory_request *request,
                          uint32_t n_ctx)
{
    const uint64_t n_held = (uint64_t)request->n_slot + request->n_snapshot;
    const uint64_t everything =
        request->n_slot * div_up(n_ctx, KV_BLOCK) + n_held; /* forks split */
    const uint64_t reach = (uint64_t)layer->window + request->n_batch;
    const uint64_t kept = n_held * (div_up(reach, KV_BLOCK) + 2);
    return layer->window && kept < everything ? kept : everything;
}

static uint64_t kv_bytes(const struct hparams *hp, const struct memory_request *request,
                         uint32_t n_ctx)
{
    uint64_t n_bytes = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent) continue;
        const uint64_t head_bytes = tensor_row_bytes(request->kv_type, hp->head_dim);
        n_bytes += kv_blocks(layer, request, n_ctx) * KV_BLOCK * 2 * layer->n_head_kv * head_bytes;
    }
    return n_bytes;
}

static uint64_t recurrent_bytes(const struct hparams *hp, uint64_t n_held)
{
    const uint64_t n_conv = hp->n_conv ? (uint64_t)(hp->n_conv - 1) * hparams_conv_dim(hp) : 0;
    const uint64_t n_state = (uint64_t)hp->n_head_v * hp->dim_v * hp->dim_k;
    uint64_t n_layer = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        n_layer += hp->layer[il].recurrent;
    return n_held * n_layer * (n_conv + n_state) * sizeof(float);
}

/* Floats of one token in flight: the residual stream three times, the widest mixer, the widest
 * FFN with its inputs quantized. */
static uint64_t floats_per_token(const struct hparams *hp)
{
    uint64_t mixer = 0, ffn = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        const uint64_t n_attention =
            (3 * (uint64_t)layer->n_head + 2 * (uint64_t)layer->n_head_kv) * hp->head_dim;
        const uint64_t n_value = (uint64_t)hp->n_head_v * hp->dim_v;
        const uint64_t n_mixer =
            layer->recurrent ? hparams_conv_dim(hp) + 2 * n_value : n_attention;
        const uint64_t n_ffn =
            layer->moe ? (uint64_t)hp->n_expert_used * (2 * (uint64_t)hp->n_ff_exp + hp->n_embd) +
                             2 * (uint64_t)hp->n_ff_shexp
                       : 2 * (uint64_t)layer->n_ff;
        mixer = n_mixer > mixer ? n_mixer : mixer;
        ffn = n_ffn > ffn ? n_ffn : ffn;
    }
    return 3 * (uint64_t)hp->n_embd + mixer + ffn + ffn / 2;
}

/* Tables of cos and sin: one for layers that see everything, one for those with a window. */
static uint64_t n_angle_table(const struct hparams *hp)
{
    bool full = false, window = false;
    for (uint32_t il = 0; il < hp->n_layer; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        if (layer->recurrent || !layer->rope) continue;
        full |= !layer->window;
        window |= layer->window != 0;
    }
    return (uint64_t)full + window;
}

static uint64_t scratch_bytes(const struct hparams *hp, const struct memory_request *request,
                              uint32_t n_ctx)
{
    const uint64_t angles = n_angle_table(hp) * n_ctx * hp->rope.n_rot;
    const uint64_t logits = (uint64_t)request->n_slot * hp->n_vocab;
    return (request->n_batch * floats_per_token(hp) + angles + logits) * sizeof(float);
}

/* Fills what depends on the context, and the total. */
static void set_context(struct memory_plan *plan, const struct hparams *hp,
                        const struct memory_request *request, uint32_t n_ctx)
{
    plan->n_ctx = n_ctx;
    plan->kv_bytes = kv_bytes(hp, request, n_ctx);
    plan->scratch_bytes = scratch_bytes(hp, request, n_ctx);
    plan->total_bytes = plan->weight_bytes + plan->kv_bytes + plan->recurrent_bytes +
                        plan->scratch_bytes + plan->program_bytes;
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

void memory_plan_make(struct memory_plan *plan, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request)
{
    struct weight_census census;
    weight_census_take(&census, file, hp);
    *plan = (struct memory_plan){
        .n_slot = request->n_slot,
        .budget_bytes = request->budget_bytes ? request->budget_bytes : host_memory_available(),
        .expert_bytes = census.group[WEIGHTS_EXPERTS].n_bytes,
        .weight_bytes = census.n_bytes,
        .recurrent_bytes = recurrent_bytes(hp, (uint64_t)request->n_slot + request->n_snapshot),
        .program_bytes = PROGRAM_BYTES,
    };
    plan->n_ctx_fit = longest_context(plan, hp, request);
    const uint32_t smallest = hp->n_ctx_train < KV_BLOCK ? hp->n_ctx_train : KV_BLOCK;
    const uint32_t best = plan->n_ctx_fit ? plan->n_ctx_fit : smallest;
    set_context(plan, hp, request, request->n_ctx ? request->n_ctx : best);
}

enum lm_status memory_plan_check(const struct memory_plan *plan, struct lm_error *err)
{
    char total[24], budget[24], weights[24], kv[24], rest[24];
    if (plan->total_bytes <= plan->budget_bytes) return LM_OK;
    lm_fail(err, LM_E_NO_MEM,
            "the model needs %s of memory (weights %s, KV cache %s for %u x %u tokens, other %s), "
            "%s may be used",
            log_format_bytes(plan->total_bytes, total),
            log_format_bytes(plan->weight_bytes, weights), log_format_bytes(plan->kv_bytes, kv),
            plan->n_slot, plan->n_ctx,
            log_format_bytes(plan->total_bytes - plan->weight_bytes - plan->kv_bytes, rest),
            log_format_bytes(plan->budget_bytes, budget));
    if (plan->n_ctx_fit)
        lm_hint(err, "a context of %u tokens fits: --ctx %u", plan->n_ctx_fit, plan->n_ctx_fit);
    else
        lm_hint(err, "use a smaller quantization or a host with more memory");
    return LM_E_NO_MEM;
}
