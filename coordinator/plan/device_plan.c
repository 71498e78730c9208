/* Trial plans, most layers first. */
#include "coordinator/plan/device_plan.h"

#include "coordinator/plan/weight_census.h"
#include "proto/base/log.h"
#include "proto/model/hparams.h"

enum { CHUNK_MIN = 512 };

struct memory_request device_plan_request(const struct memory_request *request, uint32_t split,
                                          const struct device_limits *limits)
{
    struct memory_request on_device = *request;
    on_device.layer_begin = split;
    on_device.budget_bytes = limits->budget_bytes;
    on_device.slot_bytes_min = on_device.slot_bytes = 0;
    if (limits->slot_bytes_min)
        on_device.slot_bytes_min =
            limits->slot_bytes_min(limits->context, split, request->layer_end);
    on_device.logprob_bytes = 0; /* the host keeps them */
    on_device.on_device = true;
    on_device.fast = limits->fast;
    return on_device;
}

static bool fits(const struct gguf_file *file, const struct hparams *hp,
                 const struct memory_request *request, uint32_t split,
                 const struct device_limits *limits)
{
    struct memory_plan plan;
    struct memory_request on_device = device_plan_request(request, split, limits);
    const uint32_t usual = hp->n_ctx_train < MEMORY_PLAN_CTX ? hp->n_ctx_train : MEMORY_PLAN_CTX;
    if (!on_device.n_ctx) on_device.n_ctx = usual;
    if (!on_device.n_slot) on_device.n_slot = 1;
    /* every chunk brings the experts that are not there: better fewer layers than short chunks */
    if (!on_device.prefill_chunk && on_device.slot_bytes_min)
        on_device.prefill_chunk = on_device.n_ctx < CHUNK_MIN ? on_device.n_ctx : CHUNK_MIN;
    memory_plan_make(&plan, file, hp, &on_device);
    return plan.total_bytes <= limits->budget_bytes;
}

uint32_t device_plan_split(const struct gguf_file *file, const struct hparams *hp,
                           const struct memory_request *request, const struct device_limits *limits)
{
    const uint32_t begin = request->layer_begin, end = request->layer_end;
    uint32_t split = begin, none = end;
    if (limits->n_layer != DEVICE_LAYERS_AUTO) {
        const uint32_t n = (uint32_t)limits->n_layer;
        const uint32_t first = n < hp->n_layer ? hp->n_layer - n : 0;
        return first < begin ? begin : first >= hp->n_layer || first > end ? end : first;
    }
    /* fewer layers take less: the first split that fits, by bisection */
    while (split < none) {
        const uint32_t middle = split + (none - split) / 2;
        if (fits(file, hp, request, middle, limits))
            none = middle;
        else
            split = middle + 1;
    }
    return split < hp->n_layer ? split : end; /* what drafts is nowhere without a layer before it */
}

/* lacks: the device lacks some of its layers' experts. */
static void plan_host(struct memory_plan *plan, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request,
                      uint32_t split, bool lacks)
{
    struct memory_request on_host = *request;
    struct weight_census census;
    on_host.layer_end = split;
    if (lacks) {
        weight_census_take_layers(&census, file, hp, split, request->layer_end);
        on_host.lacking_bytes = census.group[WEIGHTS_EXPERTS].n_bytes;
    }
    if (split > request->layer_begin)
        memory_plan_make(plan, file, hp, &on_host);
    else
        memory_plan_make_empty(plan, hp, &on_host);
}

void device_plan_make(struct device_plan *out, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request,
                      uint32_t split, const struct device_limits *limits)
{
    struct memory_request settled = *request;
    *out = (struct device_plan){.device.n_ctx = 0};
    if (split == request->layer_end) {
        plan_host(&out->host, file, hp, request, split, false);
        return;
    }
    for (;;) {
        const struct memory_request on_device = device_plan_request(&settled, split, limits);
        memory_plan_make(&out->device, file, hp, &on_device);
        struct memory_request on_host = settled;
        on_host.n_ctx = out->device.n_ctx;
        on_host.prefill_chunk = out->device.prefill_chunk;
        plan_host(&out->host, file, hp, &on_host, split, out->device.paged);
        const uint32_t n_fit = out->host.n_ctx_fit;
        if (out->host.total_bytes <= out->host.budget_bytes || settled.n_ctx || !n_fit ||
            n_fit >= out->device.n_ctx)
            return;
        settled.n_ctx = n_fit;
    }
}

enum lm_status device_plan_check(const struct memory_plan *plan, const char *name, uint32_t n_layer,
                                 uint32_t n_fit, struct lm_error *err)
{
    char total[24], budget[24], weights[24], kv[24], rest[24];
    if (plan->total_bytes <= plan->budget_bytes) return LM_OK;
    lm_fail(err, LM_E_NO_MEM,
            "%s: %u layer%s need%s %s of its memory (weights %s%s, KV cache %s for %u x %u tokens, "
            "other %s), %s may be used",
            name, n_layer, n_layer == 1 ? "" : "s", n_layer == 1 ? "s" : "",
            log_format_bytes(plan->total_bytes, total),
            log_format_bytes(plan->weight_bytes, weights),
            plan->paged ? " with the fewest experts that work" : "",
            log_format_bytes(plan->kv_bytes, kv), plan->n_slot, plan->n_ctx,
            log_format_bytes(plan->total_bytes - plan->weight_bytes - plan->kv_bytes, rest),
            log_format_bytes(plan->budget_bytes, budget));
    if (n_fit)
        lm_hint(err, "--gpu-layers %u fits; so may a shorter context: --ctx", n_fit);
    else
        lm_hint(err, "not one layer fits: --gpu-layers 0 computes on the CPU");
    return LM_E_NO_MEM;
}
