/* linear and route: products of several matrices with the same rows, in one region. */
#include <assert.h>
#include <math.h>

#include "kernels/cpu/backend_cpu.h"

/* One matrix of the region. Its tasks are blocks of rows times tiles of tokens. */
struct product {
    matmul_fn matmul;
    enum act_type act_type;
    struct matmul_args args; /* all rows, all tokens */
    const float *bias;
    uint32_t rows_per_task, tokens_per_task;
    uint32_t n_row_task, n_token_task;
};

struct region {
    const struct kernel_table *kernels;
    uint32_t n_product;
    struct product product[LINEAR_MAX];
};

static void product_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct region *region = context;
    const struct product *p = region->product;
    while (task >= p->n_row_task * p->n_token_task) {
        task -= p->n_row_task * p->n_token_task;
        p++;
    }
    const uint32_t row_task = task / p->n_token_task, token_task = task % p->n_token_task;
    const uint32_t it_begin = token_task * p->tokens_per_task;
    struct matmul_args args = p->args;
    args.row_begin = row_task * p->rows_per_task;
    if (args.row_end - args.row_begin > p->rows_per_task)
        args.row_end = args.row_begin + p->rows_per_task;
    args.x += it_begin;
    args.y += it_begin;
    args.n_token -= it_begin;
    if (args.n_token > p->tokens_per_task) args.n_token = p->tokens_per_task;
    p->matmul(&args);
    if (!p->bias) return;
    for (uint32_t it = 0; it < args.n_token; it++)
        region->kernels->add(p->bias + args.row_begin, args.row_end - args.row_begin,
                             args.y[it] + args.row_begin);
}

/* Cuts a product into about n_task tasks. Rows alone are cut as long as that is cheap: a block of
 * rows reads all activations again, a tile of tokens all weights, and the cut with the least of
 * both is near the square root of their proportion. */
static void cut_product(struct product *p, size_t act_row_bytes, uint32_t n_task)
{
    enum { TOKENS_PER_TASK_STEP = 64 };
    const double act_bytes = (double)p->args.n_token * (double)act_row_bytes;
    const double weight_bytes = (double)p->args.row_end * (double)p->args.w_row_bytes;
    const uint32_t n_tile_max = (p->args.n_token + TOKENS_PER_TASK_STEP - 1) / TOKENS_PER_TASK_STEP;
    uint32_t n_tile = (uint32_t)sqrt(n_task * act_bytes / weight_bytes);
    n_tile = n_tile < 1 ? 1 : n_tile > n_tile_max ? n_tile_max : n_tile;
    p->tokens_per_task = (p->args.n_token + n_tile - 1) / n_tile;
    p->tokens_per_task = (p->tokens_per_task + TOKENS_PER_TASK_STEP - 1) / TOKENS_PER_TASK_STEP *
                         TOKENS_PER_TASK_STEP;
    const uint32_t n_row_task = (n_task + n_tile - 1) / n_tile;
    p->rows_per_task = (p->args.row_end / n_row_task + ROWS_PER_TASK_STEP - 1) /
                       ROWS_PER_TASK_STEP * ROWS_PER_TASK_STEP;
    if (!p->rows_per_task) p->rows_per_task = ROWS_PER_TASK_STEP;
}

static void run_region(struct cpu_backend *cpu, struct region *region)
{
    enum { FEW_TOKENS = 64, TASKS_PER_THREAD = 8 };
    uint64_t total_bytes = 0;
    for (uint32_t i = 0; i < region->n_product; i++)
        total_bytes +=
            (uint64_t)region->product[i].args.row_end * region->product[i].args.w_row_bytes;
    uint32_t n_task = 0;
    for (uint32_t i = 0; i < region->n_product; i++) {
        struct product *p = &region->product[i];
        if (p->args.n_token <= FEW_TOKENS) { /* the weights' bytes are what takes time */
            p->tokens_per_task = p->args.n_token;
            p->rows_per_task = rows_per_task(cpu, total_bytes, p->args.w_row_bytes);
        } else {
            const uint64_t share = TASKS_PER_THREAD * pool_n_thread(cpu->pool) *
                                   (uint64_t)p->args.row_end * p->args.w_row_bytes / total_bytes;
            cut_product(p, act_row_bytes(p->act_type, p->args.n_col), (uint32_t)share + 1);
        }
        p->n_row_task = (p->args.row_end + p->rows_per_task - 1) / p->rows_per_task;
        p->n_token_task = (p->args.n_token + p->tokens_per_task - 1) / p->tokens_per_task;
        n_task += p->n_row_task * p->n_token_task;
    }
    pool_run(cpu->pool, product_task, region, n_task);
}

static struct product make_product(const struct cpu_backend *cpu, const struct weight *w,
                                   uint32_t n_token, float **y_rows, float *y, size_t y_stride)
{
    for (uint32_t it = 0; it < n_token; it++)
        y_rows[it] = y + it * y_stride;
    const struct kernel_table *kernels = cpu->kernels;
    return (struct product){
        .matmul = kernels->matmul[w->type],
        .act_type = kernels->act_type[w->type],
        .args = {.w = w->data,
                 .w_row_bytes = w->row_bytes,
                 .n_col = w->n_col,
                 .row_end = w->n_row,
                 .n_token = n_token,
                 .x = activation_rows(cpu, kernels->act_type[w->type]),
                 .y = y_rows},
    };
}

void cpu_linear(struct backend *backend, const struct linear_args *args)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    const uint32_t n_token = args->n_token;
    assert(args->n_out >= 1 && args->n_out <= LINEAR_MAX);
    assert(args->n_out == 1 || (!args->epilogue.residual && !args->epilogue.post_norm));
    if (!n_token) return;
    unsigned types = 0;
    for (uint32_t i = 0; i < args->n_out; i++)
        types |= act_bit(cpu, args->out[i].w->type);
    if (!prepare_activations(cpu, "linear", args->x, n_token, args->n_col, args->norm, args->eps,
                             types))
        return;
    float **y_rows = buffer_reserve(cpu, &cpu->y_rows,
                                    (size_t)args->n_out * n_token * sizeof(*y_rows), "linear");
    if (!y_rows) return;
    float *y = args->out[0].y;
    size_t y_stride = args->out[0].y_stride;
    if (args->epilogue.residual) {
        y_stride = args->out[0].w->n_row;
        y = buffer_reserve(cpu, &cpu->y, n_token * y_stride * sizeof(float), "linear");
        if (!y) return;
    }
    struct region region = {.kernels = cpu->kernels, .n_product = args->n_out};
    for (uint32_t i = 0; i < args->n_out; i++) {
        assert(args->out[i].w->n_col == args->n_col);
        region.product[i] =
            make_product(cpu, args->out[i].w, n_token, y_rows + (size_t)i * n_token,
                         i ? args->out[i].y : y, i ? args->out[i].y_stride : y_stride);
        region.product[i].bias = args->out[i].bias;
    }
    run_region(cpu, &region);
    if (args->n_out == 1)
        finish_rows(cpu, &args->epilogue, n_token, args->out[0].w->n_row, y, y_stride);
}

struct choose_context {
    struct cpu_backend *cpu;
    const struct route_args *args;
    float *logits; /* [n_token][n_expert] */
};

static void choose_row(void *context, uint32_t it, uint32_t worker)
{
    (void)worker;
    const struct choose_context *c = context;
    const struct route_args *args = c->args;
    const uint32_t n_expert = args->router->n_row;
    float *probability = c->logits + (size_t)it * n_expert;
    for (uint32_t ie = 0; ie < n_expert; ie++) /* a comparison of scores would lose a NaN */
        if (!isfinite(probability[ie])) atomic_store(&c->cpu->not_finite_in, "route");
    if (args->gating == GATING_SOFTMAX)
        c->cpu->kernels->softmax(probability, n_expert);
    else
        c->cpu->kernels->sigmoid(probability, n_expert);
    float *weights = args->weights + (size_t)it * args->n_expert_used;
    kernels_select_experts(probability, args->selection_bias, n_expert, args->n_expert_used,
                           args->normalize, args->scale, args->ids + it * args->n_expert_used,
                           weights);
    for (uint32_t i = 0; i < args->n_expert_used; i++)
        if (!isfinite(weights[i])) atomic_store(&c->cpu->not_finite_in, "route");
}

void cpu_route(struct backend *backend, const struct route_args *args)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    const struct weight *router = args->router;
    const uint32_t n_token = args->n_token;
    assert(args->n_expert_used >= 1 && args->n_expert_used <= router->n_row);
    if (!n_token) return;
    if (!prepare_activations(cpu, "route", args->x, n_token, router->n_col, NULL, 0.0f,
                             act_bit(cpu, router->type)))
        return;
    float **y_rows = buffer_reserve(cpu, &cpu->y_rows, n_token * sizeof(*y_rows), "route");
    float *logits =
        buffer_reserve(cpu, &cpu->y, (size_t)n_token * router->n_row * sizeof(float), "route");
    if (!y_rows || !logits) return;
    struct region region = {.kernels = cpu->kernels, .n_product = 1};
    region.product[0] = make_product(cpu, router, n_token, y_rows, logits, router->n_row);
    run_region(cpu, &region);
    struct choose_context context = {cpu, args, logits};
    pool_run(cpu->pool, choose_row, &context, n_token);
}
