/* Feed-forward blocks: one dense SwiGLU, or routed experts with a shared one beside them. */
#include "proto/base/progress.h"
#include "proto/step.h"
#include "worker/graph/blocks.h"
#include "worker/graph/foresight.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/expert_bank.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/trace.h"

/* normed = RMSNorm(x), the input of all matrices of the block. */
static void norm_input(struct graph *graph, const struct layer *w)
{
    graph->backend->ops->rms_norm(graph->backend, graph->x, w->ffn_norm, graph->hp->rms_eps,
                                  graph->n_row, graph->hp->n_embd, graph->normed);
}

/* The dense or shared part; the routed part is added by graph_moe. */
static struct ffn_args dense_args(const struct graph *graph, const struct layer *w)
{
    const bool dense = w->ffn_gate.data != NULL;
    return (struct ffn_args){.n_token = graph->n_row,
                             .x = graph->normed,
                             .n_embd = graph->hp->n_embd,
                             .gate = dense ? &w->ffn_gate : NULL,
                             .up = dense ? &w->ffn_up : NULL,
                             .down = dense ? &w->ffn_down : NULL,
                             .shared_gate = w->shared_gate,
                             .epilogue = {w->ffn_post_norm, graph->hp->rms_eps, graph->x}};
}

void graph_ffn(struct graph *graph, uint32_t il)
{
    const struct layer *w = &graph->model->layer[il];
    if (!graph->n_row) return;
    norm_input(graph, w);
    const struct ffn_args args = dense_args(graph, w);
    graph->backend->ops->ffn(graph->backend, &args);
}

/* Where the experts of a row are counted; behind the last mixer only wanted rows are left. */
static struct expert_usage *usage_of(const struct graph *graph, uint32_t row)
{
    return graph->usage[graph->n_row < graph->n_token ? graph->out_rows[row] : row];
}

/* Counts the rows that chose each expert. The first of them pays for the lookup (proto/step.h);
 * which rows come first changes from step to step, so that sequences pay in turn. The rows of one
 * are adjacent, so that a sequence that shares an expert is told from the one before it. */
static void count_rows(struct graph *graph, const int32_t *chosen)
{
    const uint32_t n_row = graph->n_row, k = graph->hp->n_expert_used;
    const uint32_t first = (uint32_t)(graph->n_step % n_row);
    for (uint32_t i = 0; i < n_row; i++) {
        const uint32_t row = first + i < n_row ? first + i : first + i - n_row;
        struct expert_usage *const usage = usage_of(graph, row);
        const int32_t *const ids = chosen + (size_t)row * k;
        for (uint32_t rank = 0; rank < k; rank++) {
            const int32_t ie = ids[rank];
            if (!graph->n_chosen[ie]++)
                graph->payer[ie] = usage;
            else if (usage && usage != graph->sharer[ie] && usage != graph->payer[ie])
                usage->n_shared++;
            graph->sharer[ie] = usage;
        }
    }
}

/* The distinct experts among the chosen, rising: the order in which they lie in a file.
 * chosen: [n_row][n_expert_used] on the host. */
static size_t collect_demand(struct graph *graph, const int32_t *chosen)
{
    size_t n = 0;
    count_rows(graph, chosen);
    for (uint32_t ie = 0; ie < graph->hp->n_expert; ie++) {
        if (!graph->n_chosen[ie]) continue;
        graph->demand[n++] = (struct expert_demand){ie, graph->n_chosen[ie], graph->payer[ie]};
        graph->n_chosen[ie] = 0;
    }
    return n;
}

/* A router's choice by its input. */
static void route_by(struct graph *graph, uint32_t il, const float *normed, int32_t *ids,
                     float *weights)
{
    const struct hparams *hp = graph->hp;
    const struct layer *w = &graph->model->layer[il];
    const struct route_args args = {
        .n_token = graph->n_row,
        .x = normed,
        .router = &w->router,
        .selection_bias = w->selection_bias,
        .gating = hp->expert_sigmoid ? GATING_SIGMOID : GATING_SOFTMAX,
        .normalize = hp->expert_norm,
        .scale = hp->expert_scale,
        .n_expert_used = hp->n_expert_used,
        .ids = ids,
        .weights = weights,
    };
    graph->backend->ops->route(graph->backend, &args);
}

static void route(struct graph *graph, uint32_t il, int32_t *ids, float *weights)
{
    route_by(graph, il, graph->normed, ids, weights);
}

/* Turns what routers will probably choose, by row, into the best rank of all rows first. guessed:
 * [n_row][n_expert_used] on the host. Returns how many there are. */
static size_t rank_prediction(struct graph *graph, const int32_t *guessed)
{
    const uint32_t k = graph->hp->n_expert_used, n_row = graph->n_row;
    for (uint32_t rank = 0; rank < k; rank++)
        for (uint32_t it = 0; it < n_row; it++)
            graph->predicted[(size_t)rank * n_row + it] = guessed[(size_t)it * k + rank];
    return (size_t)n_row * k;
}

/* Whether the layer is computed here, too, and a prediction for it would be used. */
static bool wants_prediction(const struct graph *graph, uint32_t il, enum prediction_point point)
{
    return il < graph->model->layer_end && expert_pager_wants_prediction(graph->pager, il, point);
}

/* Tells the pager what the router of a layer makes of its input as far as that can be guessed now.
 * Uses expert_out, changes `normed`. */
static enum lm_status predict(struct graph *graph, uint32_t il, enum prediction_point point,
                              struct lm_error *err)
{
    float *const guess = graph->expert_out; /* nothing is there between a layer's experts */
    foresight_guess(graph->foresight, graph->backend, il, point, graph->x, graph->n_row, guess);
    graph->backend->ops->rms_norm(graph->backend, guess, graph->model->layer[il].ffn_norm,
                                  graph->hp->rms_eps, graph->n_row, graph->hp->n_embd,
                                  graph->normed);
    route(graph, il, graph->next_ids, graph->next_weights);
    const enum lm_status status = graph->backend->ops->sync(graph->backend, err);
    if (status != LM_OK) return status;
    const size_t n = rank_prediction(graph, graph->next_ids);
    expert_pager_predict(graph->pager, il, point, graph->predicted, n);
    return LM_OK;
}

enum lm_status graph_foresee(struct graph *graph, uint32_t il, struct lm_error *err)
{
    if (!graph->n_row || !graph->foresight || !wants_prediction(graph, il, PREDICT_LATE))
        return LM_OK;
    return predict(graph, il, PREDICT_LATE, err);
}

/* Computes the routed experts as the pager lends them, at once if they are lent at once: then a
 * layer's results do not go through expert_out, which is 5 % of a prefill. */
static enum lm_status run_experts(struct graph *graph, const struct ffn_args *args, size_t n_demand,
                                  struct lm_error *err)
{
    const struct backend_ops *ops = graph->backend->ops;
    struct expert_group group;
    enum lm_status status;
    while ((status = expert_pager_acquire(graph->pager, &group, err)) == LM_OK && group.n) {
        for (size_t i = 0; i < group.n; i++)
            graph->views[group.expert[i]] = group.view[i];
        if (group.n == n_demand) {
            ops->ffn(graph->backend, args);
            return LM_OK;
        }
        for (size_t i = 0; i < group.n; i++)
            graph->selected[group.expert[i]] = true;
        ops->ffn_experts(graph->backend, args, graph->selected);
        for (size_t i = 0; i < group.n; i++)
            graph->selected[group.expert[i]] = false;
        progress_move(graph->progress);
    }
    if (status == LM_OK)
        ops->ffn_finish(graph->backend, args);
    else
        ops->sync(graph->backend, NULL); /* an error kept there is not the next step's */
    return status;
}

/* Routed experts and what stands beside them, but for where the experts are. */
static struct ffn_args moe_args(const struct graph *graph, uint32_t il,
                                const struct expert_layer *experts)
{
    const struct hparams *hp = graph->hp;
    struct ffn_args args = dense_args(graph, &graph->model->layer[il]);
    args.n_expert = hp->n_expert;
    args.n_expert_used = hp->n_expert_used;
    args.n_ff_exp = hp->n_ff_exp;
    args.ids = graph->expert_ids;
    args.weights = graph->expert_weights;
    args.gate_exp = experts->gate;
    args.up_exp = experts->up;
    args.down_exp = experts->down;
    return args;
}

/* Where a layer's choices begin among those of a step. Behind the last mixer there are fewer rows
 * than tokens, so the last layer's share is not full. */
static size_t choices_of(const struct graph *graph, uint32_t il)
{
    return (size_t)(il - graph->model->layer_begin) * graph->n_token * graph->hp->n_expert_used;
}

/* The host learns what was chosen when the step is over, and only to count it. layer_args: of the
 * layer, but for ids, weights and table. */
static void run_unasked(struct graph *graph, uint32_t il, struct ffn_args *layer_args)
{
    struct backend *backend = graph->backend;
    const size_t at = choices_of(graph, il);
    layer_args->ids = graph->expert_ids + at;
    layer_args->weights = graph->expert_weights + at;
    route(graph, il, graph->expert_ids + at, graph->expert_weights + at);
    if (graph->bank) {
        layer_args->table = expert_bank_table(graph->bank, il);
    } else {
        struct expert_gather_args gather = device_tier_gather(graph->tier, il);
        gather.ids = layer_args->ids;
        gather.n_pair = graph->n_row * graph->hp->n_expert_used;
        backend->ops->gather_experts(backend, &gather);
        layer_args->table = gather.view;
    }
    backend->ops->ffn(backend, layer_args);
}

static void run_bank(struct graph *graph, uint32_t il)
{
    struct ffn_args args = moe_args(graph, il, expert_bank_layer(graph->bank, il));
    run_unasked(graph, il, &args);
}

/* Whether somebody wants to know, behind the step, what was chosen. */
static bool is_counted(const struct graph *graph)
{
    return graph->bank ? graph->trace || graph->pager
                       : graph->tier && device_tier_gathers(graph->tier);
}

void graph_fetch_choices(struct graph *graph)
{
    struct backend *backend = graph->backend;
    const size_t n = choices_of(graph, graph->model->layer_end);
    if (!is_counted(graph) || !n) return;
    backend->ops->download(backend, graph->chosen_ids, graph->expert_ids, n * sizeof(int32_t));
    if (graph->trace)
        backend->ops->download(backend, graph->chosen_weights, graph->expert_weights,
                               n * sizeof(float));
}

void graph_count_choices(struct graph *graph)
{
    const struct model *model = graph->model;
    const uint32_t n_row = graph->n_row;
    if (!is_counted(graph)) return;
    for (uint32_t il = model->layer_begin; il < model->layer_end; il++) {
        const int32_t *const ids = graph->chosen_ids + choices_of(graph, il);
        const bool narrowed = il + 1 >= graph->hp->n_layer && graph_narrows(graph);
        graph->n_row = narrowed ? n_row : graph->n_token;
        if (!graph->hp->layer[il].moe || !graph->n_row) continue;
        if (graph->trace)
            route_trace_layer(graph->trace, il, ids, graph->chosen_weights + choices_of(graph, il),
                              graph->n_row);
        if (!graph->pager) continue;
        const size_t n_demand = collect_demand(graph, ids);
        if (graph->tier)
            device_tier_count(graph->tier, il, graph->demand, n_demand);
        else
            expert_pager_request(graph->pager, il, graph->demand, n_demand);
    }
    graph->n_row = n_row;
}

/* Sends the rows that the CPU has made for the pairs that chose a selected expert. Of pinned memory
 * the device fetches them itself, all at once; else adjacent ones are copied as one. */
static void send_rows(struct graph *graph, const int32_t *chosen, float *expert_out)
{
    struct backend *backend = graph->backend;
    const size_t n_embd = graph->hp->n_embd;
    const uint32_t n_pair = graph->n_row * graph->hp->n_expert_used;
    uint32_t n = 0;
    uint64_t ticket = 0;
    for (uint32_t p = 0; p < n_pair; p++)
        if (graph->selected[chosen[p]]) graph->sent_row[n++] = p;
    if (graph->host_pinned) {
        backend->ops->copy_rows(backend, graph->host_out, graph->sent_row, n, graph->hp->n_embd,
                                expert_out);
        return;
    }
    for (uint32_t i = 0, end; i < n; i = end) {
        const uint32_t first = graph->sent_row[i];
        for (end = i + 1; end < n && graph->sent_row[end] == first + (end - i);)
            end++;
        ticket = backend->ops->fetch(backend, expert_out + first * n_embd,
                                     graph->host_out + first * n_embd,
                                     (end - i) * n_embd * sizeof(float), 0, COPY_DEMAND);
    }
    if (ticket) backend->ops->await(backend, ticket);
}

/* The CPU's share of a layer's experts, and the rows that it makes of it on their way to the
 * device. */
static enum lm_status compute_on_cpu(struct graph *graph, const struct ffn_args *device_args,
                                     const int32_t *chosen, struct lm_error *err)
{
    struct ffn_args args = *device_args;
    args.x = graph->host_normed;
    args.ids = chosen;
    args.expert_out = graph->host_out;
    args.gate = args.up = args.down = NULL; /* what stands beside is the device's */
    args.shared_gate = NULL;
    args.epilogue = (struct epilogue){.residual = NULL};
    graph->cpu->ops->ffn_experts(graph->cpu, &args, graph->selected);
    const enum lm_status status = graph->cpu->ops->sync(graph->cpu, err);
    if (status == LM_OK) send_rows(graph, chosen, device_args->expert_out);
    return status;
}

/* Computes the routed experts as the tier lends them: on the device, which is kept busy, and on the
 * CPU. */
static enum lm_status run_groups(struct graph *graph, const struct ffn_args *args,
                                 const int32_t *chosen, struct lm_error *err)
{
    struct backend *backend = graph->backend;
    struct device_group group;
    enum lm_status status;
    while ((status = device_tier_acquire(graph->tier, &group, err)) == LM_OK && group.n) {
        for (size_t i = 0; i < group.n; i++) {
            graph->views[group.expert[i]] = group.view[i];
            graph->selected[group.expert[i]] = true;
        }
        if (group.on_cpu) {
            status = compute_on_cpu(graph, args, chosen, err);
        } else {
            backend->ops->ffn_experts(backend, args, graph->selected);
            backend->ops->start(backend);
        }
        for (size_t i = 0; i < group.n; i++)
            graph->selected[group.expert[i]] = false;
        if (status != LM_OK) break;
        progress_move(graph->progress);
    }
    if (status == LM_OK)
        backend->ops->ffn_finish(backend, args);
    else
        backend->ops->sync(backend, NULL); /* an error kept there is not the next step's */
    return status;
}

/* What the router of a layer makes of the residual as it is now: right behind what was chosen of
 * this one, so that one copy brings both. */
static void guess_next(struct graph *graph, uint32_t il)
{
    struct backend *backend = graph->backend;
    const size_t n_pair = (size_t)graph->n_row * graph->hp->n_expert_used;
    float *const normed = graph->expert_out; /* nothing is there between a layer's experts */
    backend->ops->rms_norm(backend, graph->x, graph->model->layer[il].ffn_norm, graph->hp->rms_eps,
                           graph->n_row, graph->hp->n_embd, normed);
    route_by(graph, il, normed, graph->expert_ids + n_pair, graph->next_weights);
}

/* Experts on a device that has slots for some: the host learns what was chosen, and looks it up. */
static enum lm_status run_tier(struct graph *graph, uint32_t il, struct lm_error *err)
{
    const struct backend_ops *ops = graph->backend->ops;
    const size_t n_pair = (size_t)graph->n_row * graph->hp->n_expert_used;
    struct ffn_args args = moe_args(graph, il, expert_pager_layer(graph->pager, il));
    if (device_tier_gathers(graph->tier)) {
        run_unasked(graph, il, &args);
        return LM_OK;
    }
    const bool to_memory = wants_prediction(graph, il + 1, PREDICT_EARLY);
    const bool to_device =
        il + 1 < graph->model->layer_end && device_tier_wants_prediction(graph->tier, il + 1);
    const bool predicts = to_memory || to_device;
    route(graph, il, graph->expert_ids, graph->expert_weights);
    if (predicts) guess_next(graph, il + 1);
    ops->download(graph->backend, graph->chosen_ids, graph->expert_ids,
                  (predicts ? 2 : 1) * n_pair * sizeof(int32_t));
    if (graph->trace)
        ops->download(graph->backend, graph->chosen_weights, graph->expert_weights,
                      n_pair * sizeof(float));
    if (device_tier_wants_cpu(graph->tier, graph->n_row))
        ops->download(graph->backend, graph->host_normed, graph->normed,
                      (size_t)graph->n_row * graph->hp->n_embd * sizeof(float));
    const enum lm_status status = ops->sync(graph->backend, err);
    if (status != LM_OK) return status;
    if (graph->trace)
        route_trace_layer(graph->trace, il, graph->chosen_ids, graph->chosen_weights, graph->n_row);

    const size_t n_demand = collect_demand(graph, graph->chosen_ids);
    device_tier_request(graph->tier, il, graph->demand, n_demand, graph->n_row);
    if (predicts) {
        const size_t n = rank_prediction(graph, graph->chosen_ids + n_pair);
        if (to_memory)
            expert_pager_predict(graph->pager, il + 1, PREDICT_EARLY, graph->predicted, n);
        if (to_device) device_tier_predict(graph->tier, il + 1, graph->predicted, n);
    }
    args.expert = graph->views;
    args.expert_out = graph->expert_out;
    return run_groups(graph, &args, graph->chosen_ids, err);
}

enum lm_status graph_moe(struct graph *graph, uint32_t il, struct lm_error *err)
{
    const struct layer *w = &graph->model->layer[il];
    struct backend *backend = graph->backend;
    if (!graph->n_row) return LM_OK;
    if (graph->foresight) foresight_learn(graph->foresight, backend, il, graph->x, graph->n_row);
    norm_input(graph, w);
    if (graph->bank) {
        run_bank(graph, il);
        return LM_OK;
    }
    if (graph->tier) return run_tier(graph, il, err);

    route(graph, il, graph->expert_ids, graph->expert_weights);
    enum lm_status status = backend->ops->sync(backend, err); /* the pager reads the choice */
    if (status != LM_OK) return status;
    if (graph->trace)
        route_trace_layer(graph->trace, il, graph->expert_ids, graph->expert_weights, graph->n_row);

    const size_t n_demand = collect_demand(graph, graph->expert_ids);
    expert_pager_request(graph->pager, il, graph->demand, n_demand);
    if (wants_prediction(graph, il + 1, PREDICT_EARLY)) {
        status = predict(graph, il + 1, PREDICT_EARLY, err);
        if (status != LM_OK) return status;
        norm_input(graph, w); /* as it was */
    }

    struct ffn_args args = moe_args(graph, il, expert_pager_layer(graph->pager, il));
    args.expert = graph->views;
    args.expert_out = graph->expert_out;
    status = run_experts(graph, &args, n_demand, err);
    return status == LM_OK ? graph_foresee(graph, il + 1, err) : status;
}
