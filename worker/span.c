/* The parts of a span, made in the order in which they need each other. */
#include "worker/span.h"

#include "worker/pager/expert_bank.h"

enum lm_status span_init(struct span *span, const struct span_config *config, struct lm_error *err)
{
    const uint32_t begin = config->state.layer_begin, end = config->state.layer_end;
    const enum model_weights weights = config->is_device ? MODEL_ON_DEVICE
                                       : config->paged   ? MODEL_COPIED
                                                         : MODEL_MAPPED;
    const struct expert_bank_config bank = {.backend = config->backend,
                                            .store = config->store,
                                            .layer_begin = begin,
                                            .layer_end = end,
                                            .n_expert = config->hp->n_expert,
                                            .on_progress = config->on_load,
                                            .context = config->load_context};
    span->backend = config->backend;
    span->is_device = config->is_device;
    span->paged = config->paged;
    span->config = config->state;
    enum lm_status status =
        config->decoder ? model_create_draft(&span->model, config->file, config->decoder, err)
                        : model_create(&span->model, config->file, config->hp, config->backend,
                                       begin, end, weights, err);
    if (status == LM_OK)
        status = seq_state_create(&span->state, config->backend, config->hp, &config->state, err);
    if (status == LM_OK && config->is_device && config->hp->n_expert && !config->paged)
        status = expert_bank_create(&span->bank, &bank, err);
    return status;
}

enum lm_status span_create_graph(struct span *span, const struct graph_experts *experts,
                                 struct route_trace *trace, size_t trailer_bytes,
                                 const struct graph *lender, struct lm_error *err)
{
    const struct graph_config config = {.n_batch = span->config.n_batch,
                                        .n_ctx = span->config.n_ctx,
                                        .kv_type = span->config.kv_type,
                                        .trailer_bytes = trailer_bytes,
                                        .lender = lender,
                                        .paged = span->paged};
    struct graph_experts all = *experts;
    all.bank = span->bank;
    return graph_init(&span->graph, &config, span->model, span->state, &all, trace, err);
}

void span_fini(struct span *span)
{
    graph_fini(&span->graph);
    seq_state_destroy(span->state);
    expert_bank_destroy(span->bank);
    model_destroy(span->model);
    *span = (struct span){.backend = NULL};
}
