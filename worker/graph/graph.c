/* Workspace, entry and exit of the forward pass. */
#include "worker/graph/graph.h"

#include <assert.h>
#include <stdlib.h>

#include "proto/base/progress.h"
#include "worker/graph/blocks.h"
#include "worker/graph/foresight.h"
#include "worker/graph/rope_table.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/expert_pager.h"

static const arch_forward_fn forward_table[ARCH_COUNT] = {
    [ARCH_LLAMA] = arch_llama_forward,         [ARCH_QWEN2] = arch_qwen2_forward,
    [ARCH_QWEN3] = arch_qwen3_forward,         [ARCH_QWEN3MOE] = arch_qwen3moe_forward,
    [ARCH_QWEN35] = arch_qwen35_forward,       [ARCH_QWEN35MOE] = arch_qwen35moe_forward,
    [ARCH_QWEN3NEXT] = arch_qwen3next_forward, [ARCH_AFMOE] = arch_afmoe_forward,
};

/* Floats of one row in the mixer's part of the workspace: the widest layer decides. Each buffer is
 * rounded up to 64 bytes once, whatever n_batch. */
static size_t mixer_floats(const struct hparams *hp)
{
    size_t widest = 0;
    for (uint32_t il = 0; il < hp->n_layer + hp->n_layer_mtp; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        const size_t n_head = (size_t)layer->n_head * hp->head_dim; /* of q, the gate, the result */
        const size_t n_kv = (size_t)layer->n_head_kv * hp->head_dim;
        const size_t n_val = (size_t)hp->n_head_v * hp->dim_v;
        const size_t n = layer->recurrent
                             ? hparams_conv_dim(hp) + 2 * n_val + 2 * (size_t)hp->n_head_v
                             : 3 * n_head + 2 * n_kv;
        if (n > widest) widest = n;
    }
    return widest;
}

enum { N_MIXER_BUFFER = 6 };

/* x, and normed: they change places. */
static size_t stream_floats(const struct hparams *hp, const struct graph_config *config)
{
    return (size_t)config->n_batch * hp->n_embd +
           (config->trailer_bytes + sizeof(float) - 1) / sizeof(float);
}

/* Choices of experts that are kept until the end of a step: with a bank, or a tier that gathers,
 * those of all layers, so that no layer must wait for the host to have read the last one's. */
static size_t n_choice(const struct graph *graph, const struct graph_config *config)
{
    const struct hparams *hp = graph->hp;
    const size_t n_layer = graph->model->layer_end - graph->model->layer_begin;
    const size_t n_pair = (size_t)config->n_batch * hp->n_expert_used;
    if (graph->bank) return n_layer * n_pair;
    if (!graph->tier) return n_pair;
    const size_t n_gather = n_layer * device_tier_gather_pairs(hp->n_expert, hp->n_expert_used);
    return n_gather > n_pair ? n_gather : n_pair; /* in steps of few tokens */
}

static size_t workspace_floats(const struct graph *graph, const struct graph_config *config)
{
    const struct hparams *hp = graph->hp;
    const size_t n_batch = config->n_batch, n_pair = n_batch * hp->n_expert_used;
    const size_t n_stream = 2 * buffer_floats(stream_floats(hp, config));
    if (config->lender) return n_stream;
    return n_stream + n_batch * mixer_floats(hp) + N_MIXER_BUFFER * buffer_floats(1) +
           2 * buffer_floats(n_choice(graph, config)) +
           (config->paged ? 2 * buffer_floats(n_pair) + buffer_floats(n_pair * hp->n_embd) : 0);
}

static void borrow_workspace(struct graph *graph, const struct graph *lender)
{
    graph->expert_weights = lender->expert_weights;
    graph->expert_ids = lender->expert_ids;
    graph->next_weights = lender->next_weights;
    graph->next_ids = lender->next_ids;
    graph->expert_out = lender->expert_out;
    graph->mixer = lender->mixer;
}

static void divide_workspace(struct graph *graph, const struct graph_config *config)
{
    const struct hparams *hp = graph->hp;
    const size_t n_batch = config->n_batch;
    float *at = graph->memory;
    graph->x = take_buffer(&at, stream_floats(hp, config));
    graph->normed = take_buffer(&at, stream_floats(hp, config));
    if (config->lender) {
        borrow_workspace(graph, config->lender);
        return;
    }
    graph->expert_weights = take_buffer(&at, n_choice(graph, config));
    graph->expert_ids = (int32_t *)take_buffer(&at, n_choice(graph, config));
    if (config->paged) {
        graph->next_ids = (int32_t *)take_buffer(&at, n_batch * hp->n_expert_used);
        graph->next_weights = take_buffer(&at, n_batch * hp->n_expert_used);
        graph->expert_out = take_buffer(&at, n_batch * hp->n_expert_used * hp->n_embd);
    }
    graph->mixer = at;
}

/* With a bank: what was chosen, on the host. */
static enum lm_status create_choices(struct graph *graph, const struct graph_config *config,
                                     struct lm_error *err)
{
    const size_t n = n_choice(graph, config);
    graph->chosen_ids = calloc(n + 1, sizeof(*graph->chosen_ids));
    graph->chosen_weights = calloc(n + 1, sizeof(*graph->chosen_weights));
    if (graph->chosen_ids && graph->chosen_weights) return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "graph: no memory for %zu choices", n);
}

/* What crosses between a device and the CPU in every layer: choices, and where both compute, rows.
 * Not pinned, it is only slower. */
static enum lm_status create_host_buffers(struct graph *graph, const struct graph_config *config,
                                          struct lm_error *err)
{
    enum { PAGE_BYTES = 4096 };
    const struct hparams *hp = graph->hp;
    const uint32_t n_max = device_tier_cpu_rows(hp->n_expert, hp->n_expert_used);
    const size_t n_row = config->n_batch < n_max ? config->n_batch : n_max;
    const size_t n_normed = n_row * hp->n_embd, n_out = n_normed * hp->n_expert_used;
    const size_t n_next = (size_t)config->n_batch * hp->n_expert_used;
    const size_t n_kept = n_choice(graph, config);
    const size_t n = buffer_floats(n_normed) + buffer_floats(n_out) + buffer_floats(n_next) +
                     2 * buffer_floats(n_kept);
    const size_t n_bytes = (n * sizeof(float) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    void *memory;
    if (posix_memalign(&memory, PAGE_BYTES, n_bytes))
        return lm_fail(err, LM_E_NO_MEM, "graph: no memory for %zu bytes", n_bytes);
    float *at = graph->host_memory = memory;
    graph->host_normed = take_buffer(&at, n_normed);
    graph->host_out = take_buffer(&at, n_out);
    graph->chosen_ids = (int32_t *)take_buffer(&at, n_kept);
    take_buffer(&at, n_next); /* follows chosen_ids */
    graph->chosen_weights = take_buffer(&at, n_kept);
    graph->sent_row = calloc(n_row * hp->n_expert_used + 1, sizeof(*graph->sent_row));
    if (!graph->sent_row) return lm_fail(err, LM_E_NO_MEM, "graph: no memory for %zu rows", n_row);
    graph->host_pinned =
        graph->backend->ops->pin(graph->backend, graph->host_memory, n_bytes, NULL) == LM_OK;
    return LM_OK;
}

static enum lm_status create_rope(struct graph *graph, uint32_t n_ctx, struct lm_error *err)
{
    const struct hparams *hp = graph->hp;
    enum lm_status status = LM_OK;
    for (uint32_t il = graph->model->layer_begin; il < graph->model->layer_end; il++) {
        const struct layer_hparams *layer = &hp->layer[il];
        struct rope_table **table = layer->window ? &graph->rope_window : &graph->rope;
        if (layer->recurrent || !layer->rope || *table) continue;
        status = rope_table_create(table, graph->backend, &hp->rope, layer->window != 0,
                                   graph->model->rope_freqs, n_ctx, err);
        if (status != LM_OK) break;
    }
    return status;
}

enum lm_status graph_init(struct graph *graph, const struct graph_config *config,
                          const struct model *model, struct seq_state *state,
                          const struct graph_experts *experts, struct route_trace *trace,
                          struct lm_error *err)
{
    const struct hparams *hp = model->hp;
    struct backend *backend = model->backend;
    *graph = (struct graph){.hp = hp,
                            .model = model,
                            .backend = backend,
                            .state = state,
                            .bank = experts->bank,
                            .tier = experts->tier,
                            .cpu = experts->cpu,
                            .pager = experts->pager,
                            .trace = trace,
                            .kv_type = config->kv_type};
    enum lm_status status = LM_OK;
    const size_t n_expert = hp->n_expert;
    graph->memory =
        backend->ops->alloc(backend, workspace_floats(graph, config) * sizeof(float), err);
    if (!graph->memory) return LM_E_NO_MEM;
    divide_workspace(graph, config);
    const size_t n_pair = (size_t)config->n_batch * hp->n_expert_used;
    graph->views = calloc(n_expert + 1, sizeof(*graph->views));
    graph->demand = calloc(n_expert + 1, sizeof(*graph->demand));
    graph->n_chosen = calloc(n_expert + 1, sizeof(*graph->n_chosen));
    graph->payer = calloc(n_expert + 1, sizeof(*graph->payer));
    graph->sharer = calloc(n_expert + 1, sizeof(*graph->sharer));
    graph->selected = calloc(n_expert + 1, sizeof(*graph->selected));
    graph->predicted = calloc(n_pair + 1, sizeof(*graph->predicted));
    if (!graph->views || !graph->demand || !graph->n_chosen || !graph->payer || !graph->sharer ||
        !graph->selected || !graph->predicted)
        status = lm_fail(err, LM_E_NO_MEM, "graph: no memory for %zu experts", n_expert);
    if (status == LM_OK && graph->bank) status = create_choices(graph, config, err);
    if (status == LM_OK && graph->tier) status = create_host_buffers(graph, config, err);
    if (status == LM_OK && config->paged && !graph->tier && !config->lender)
        status = foresight_create(&graph->foresight, hp->n_layer, hp->n_embd, err);
    if (status == LM_OK) status = create_rope(graph, config->n_ctx, err);
    if (status != LM_OK) graph_fini(graph);
    return status;
}

void graph_fini(struct graph *graph)
{
    rope_table_destroy(graph->rope_window);
    rope_table_destroy(graph->rope);
    foresight_destroy(graph->foresight);
    if (graph->host_pinned) graph->backend->ops->unpin(graph->backend, graph->host_memory);
    free(graph->sent_row);
    free(graph->host_memory);
    free(graph->tier ? NULL : graph->chosen_weights);
    free(graph->tier ? NULL : graph->chosen_ids);
    free(graph->predicted);
    free(graph->selected);
    free(graph->sharer);
    free(graph->payer);
    free(graph->n_chosen);
    free(graph->demand);
    free(graph->views);
    if (graph->memory) graph->backend->ops->free(graph->backend, graph->memory);
    *graph = (struct graph){.memory = NULL};
}

void graph_fill_rope(struct graph *graph)
{
    uint32_t n_position = 0;
    for (uint32_t it = 0; it < graph->n_token; it++)
        if (graph->token[it].pos >= n_position) n_position = graph->token[it].pos + 1;
    if (graph->rope) rope_table_fill(graph->rope, n_position);
    if (graph->rope_window) rope_table_fill(graph->rope_window, n_position);
}

/* Keeps the wanted rows of x. They are gathered beside it, and the two buffers change places. */
static void keep_wanted(struct graph *graph)
{
    if (graph->n_out == graph->n_row) return;
    graph->backend->ops->gather(graph->backend, graph->x, graph->out_rows, graph->n_out,
                                graph->hp->n_embd, graph->normed);
    float *const gathered = graph->normed;
    graph->normed = graph->x;
    graph->x = gathered;
    graph->n_row = graph->n_out;
}

enum lm_status graph_forward(struct graph *graph, struct lm_error *err)
{
    graph->n_row = graph->n_token;
    graph->n_step++;
    graph_fill_rope(graph);
    const enum lm_status status = forward_table[graph->hp->arch->id](graph, err);
    if (status != LM_OK && graph->tier) device_tier_abandon(graph->tier);
    if (status != LM_OK || graph->model->layer_end != graph->hp->n_layer) return status;
    if (graph->hidden)
        graph->backend->ops->rms_norm(graph->backend, graph->x, graph->model->output_norm,
                                      graph->hp->rms_eps, graph->n_row, graph->hp->n_embd,
                                      graph->hidden);
    keep_wanted(graph);
    return status;
}

enum lm_status graph_finish(struct graph *graph, struct lm_error *err)
{
    graph_fetch_choices(graph);
    const enum lm_status status = graph->backend->ops->sync(graph->backend, err);
    if (status == LM_OK)
        graph_count_choices(graph);
    else if (graph->tier)
        device_tier_abandon(graph->tier);
    if (graph->tier) device_tier_end_step(graph->tier);
    return status;
}

void graph_embed(struct graph *graph, float scale)
{
    if (graph->model->layer_begin > 0) return;
    graph->backend->ops->embed(graph->backend, &graph->model->token_embd, graph->ids,
                               graph->n_token, scale, graph->x);
}

void graph_narrow(struct graph *graph, uint32_t il)
{
    progress_move(graph->progress);
    /* a trace is of all tokens: then the rows are dropped at the end */
    if (il + 1 >= graph->hp->n_layer && graph_narrows(graph)) keep_wanted(graph);
}

void graph_head(struct graph *graph, uint32_t first, uint32_t n, float *logits)
{
    const struct model *model = graph->model;
    assert(first + n <= graph->n_row);
    struct linear_args args = {.n_token = n,
                               .x = graph->x + (size_t)first * graph->hp->n_embd,
                               .n_col = graph->hp->n_embd,
                               .norm = model->output_norm,
                               .eps = graph->hp->rms_eps,
                               .n_out = 1};
    args.out[0].w = &model->output;
    args.out[0].y = logits;
    args.out[0].y_stride = graph->hp->n_vocab;
    graph->backend->ops->linear(graph->backend, &args);
}
