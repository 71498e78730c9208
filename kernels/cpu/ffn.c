/* ffn: two regions for all experts and the shared expert together.
 *
 * A unit is an expert with the rows routed to it, or the shared (or dense) network with all rows.
 * Region 1 takes (unit, block of hidden rows): gate and up, SwiGLU. Hidden values are quantized
 * 256 at a time, so tasks do not cross such a group, and whoever completes a group quantizes it.
 * Region 2 takes blocks of output rows through all units, so that a row's experts are combined in
 * rank order on the spot; nothing is ever added in order of arrival. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"

enum { GROUP = 256, TILE_PAIRS = 256 };

/* Items are pairs of a token and a unit. Pair p < n_token * n_expert_used is rank p %
 * n_expert_used of token p / n_expert_used; after them, the tokens' pairs with the shared unit. */
struct unit {
    const uint8_t *gate, *up, *down;
    enum tensor_type gate_type, up_type, down_type;
    size_t gate_row_bytes, up_row_bytes, down_row_bytes;
    uint32_t n_ff;
    uint32_t n_pair, first_pair; /* into ffn.pair, ffn.gate_x ... */
    uint32_t first_task, rows_per_task;
    uint32_t first_group;          /* into ffn.group_left */
    size_t h_offset, h_act_offset; /* of pair 0 of the unit; floats, bytes */
};

enum pass {
    PASS_WHOLE,   /* routed and shared, combined as soon as rows are there */
    PASS_EXPERTS, /* some routed ones, into expert_out */
    PASS_FINISH   /* the shared one, combined with expert_out */
};

struct ffn {
    struct cpu_backend *cpu;
    const struct ffn_args *args;
    enum pass pass;
    const bool *selected; /* [n_expert] experts that PASS_EXPERTS computes */
    uint32_t n_unit;
    struct unit *unit;
    uint32_t n_pair, pair_begin; /* pairs of this call, and the lowest pair id among them */
    uint32_t *pair;              /* [n_pair] pair ids, unit after unit */
    const void **gate_x, **up_x; /* [n_pair] activation rows, in the order of pair */
    const void **h_x;            /* [n_pair] quantized hidden rows */
    float *h;
    uint8_t *h_act;
    _Atomic uint32_t *group_left; /* tasks that still write into a group */
    float *shared_gate;           /* [n_token] or NULL */
    uint32_t rows_per_output_task;
    float *y; /* [n_token][n_embd]; NULL: rows are added to the residual */
};

static uint32_t token_of(const struct ffn *f, uint32_t pair)
{
    const uint32_t n_routed = f->args->n_token * f->args->n_expert_used;
    return pair < n_routed ? pair / f->args->n_expert_used : pair - n_routed;
}

static const struct unit *find_unit(const struct ffn *f, uint32_t task)
{
    uint32_t low = 0, high = f->n_unit; /* the last unit whose first task is not after task */
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (f->unit[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    return &f->unit[low];
}

/* Hidden rows [row_begin, row_end) of a unit for pairs [begin, begin + n). */
static void hidden_tile(const struct ffn *f, const struct unit *unit, uint32_t row_begin,
                        uint32_t row_end, uint32_t begin, uint32_t n, float *up)
{
    const struct kernel_table *kernels = f->cpu->kernels;
    const uint32_t n_row = row_end - row_begin;
    float *y[TILE_PAIRS];
    struct matmul_args args = {
        .w = unit->gate,
        .w_row_bytes = unit->gate_row_bytes,
        .n_col = f->args->n_embd,
        .row_begin = row_begin,
        .row_end = row_end,
        .n_token = n,
        .x = f->gate_x + unit->first_pair + begin,
        .y = y,
    };
    float *const h = f->h + unit->h_offset + (size_t)begin * unit->n_ff;
    for (uint32_t i = 0; i < n; i++)
        y[i] = h + (size_t)i * unit->n_ff;
    kernels->matmul[unit->gate_type](&args);
    args.w = unit->up;
    args.w_row_bytes = unit->up_row_bytes;
    args.x = f->up_x + unit->first_pair + begin;
    for (uint32_t i = 0; i < n; i++)
        y[i] = up + (size_t)i * n_row - row_begin;
    kernels->matmul[unit->up_type](&args);
    for (uint32_t i = 0; i < n; i++) {
        float *gate = h + (size_t)i * unit->n_ff + row_begin;
        kernels->swiglu(gate, up + (size_t)i * n_row, n_row, gate);
    }
}

static void quantize_group(const struct ffn *f, const struct unit *unit, uint32_t group)
{
    const struct kernel_table *kernels = f->cpu->kernels;
    const enum act_type type = kernels->act_type[unit->down_type];
    const uint32_t begin = group * GROUP;
    const uint32_t n = unit->n_ff - begin < GROUP ? unit->n_ff - begin : GROUP;
    const size_t row_bytes = act_row_bytes(type, unit->n_ff), offset = act_row_bytes(type, begin);
    for (uint32_t i = 0; i < unit->n_pair; i++) {
        const float *h = f->h + unit->h_offset + (size_t)i * unit->n_ff + begin;
        uint8_t *out = f->h_act + unit->h_act_offset + i * row_bytes + offset;
        if (!kernels->quantize_act[type](h, n, out))
            atomic_store(&f->cpu->not_finite_in, "ffn, hidden layer");
    }
}

static void hidden_task(void *context, uint32_t task, uint32_t worker)
{
    const struct ffn *f = context;
    const struct unit *unit = find_unit(f, task);
    const uint32_t row_begin = (task - unit->first_task) * unit->rows_per_task;
    const uint32_t row_end =
        row_begin + unit->rows_per_task < unit->n_ff ? row_begin + unit->rows_per_task : unit->n_ff;
    for (uint32_t begin = 0; begin < unit->n_pair; begin += TILE_PAIRS) {
        const uint32_t n = unit->n_pair - begin < TILE_PAIRS ? unit->n_pair - begin : TILE_PAIRS;
        hidden_tile(f, unit, row_begin, row_end, begin, n, f->cpu->worker[worker].data);
    }
    /* acq_rel: the last one sees what the others wrote. */
    const uint32_t group = row_begin / GROUP;
    if (atomic_fetch_sub_explicit(&f->group_left[unit->first_group + group], 1,
                                  memory_order_acq_rel) == 1)
        quantize_group(f, unit, group);
}

/* Where output rows [row_begin, row_begin + n_row) of a pair are: a task keeps them in out
 * [n_pair][n_row], or they outlive the call in expert_out. */
static float *pair_rows(const struct ffn *f, uint32_t pair, uint32_t row_begin, uint32_t n_row,
                        float *out)
{
    const struct ffn_args *args = f->args;
    if (f->pass != PASS_WHOLE && pair < args->n_token * args->n_expert_used)
        return args->expert_out + (size_t)pair * args->n_embd + row_begin;
    return out + (size_t)(pair - f->pair_begin) * n_row;
}

/* Output rows [row_begin, row_begin + n_row) of one token from those of its pairs. */
static void combine(const struct ffn *f, uint32_t it, uint32_t row_begin, uint32_t n_row,
                    float *out, float *sum)
{
    const struct kernel_table *kernels = f->cpu->kernels;
    const struct ffn_args *args = f->args;
    const uint32_t k = args->n_expert_used;
    float *y = f->y ? f->y + (size_t)it * args->n_embd + row_begin : sum;
    memset(y, 0, n_row * sizeof(float));
    for (uint32_t rank = 0; rank < k; rank++) {
        const uint32_t pair = it * k + rank;
        kernels->add_scaled(args->weights[pair], pair_rows(f, pair, row_begin, n_row, out), n_row,
                            y);
    }
    if (args->gate) {
        const float *shared = pair_rows(f, args->n_token * k + it, row_begin, n_row, out);
        if (f->shared_gate)
            kernels->add_scaled(f->shared_gate[it], shared, n_row, y);
        else
            kernels->add(shared, n_row, y);
    }
    if (!f->y)
        kernels->add(y, n_row, args->epilogue.residual + (size_t)it * args->n_embd + row_begin);
}

static void output_task(void *context, uint32_t task, uint32_t worker)
{
    const struct ffn *f = context;
    const uint32_t n_embd = f->args->n_embd;
    const uint32_t row_begin = task * f->rows_per_output_task;
    const uint32_t row_end =
        row_begin + f->rows_per_output_task < n_embd ? row_begin + f->rows_per_output_task : n_embd;
    const uint32_t n_row = row_end - row_begin;
    float *out = f->cpu->worker[worker].data; /* [n_pair][n_row] */
    float *sum = out + (size_t)f->n_pair * n_row;
    for (uint32_t u = 0; u < f->n_unit; u++) {
        const struct unit *unit = &f->unit[u];
        for (uint32_t begin = 0; begin < unit->n_pair; begin += TILE_PAIRS) {
            float *y[TILE_PAIRS];
            const uint32_t n =
                unit->n_pair - begin < TILE_PAIRS ? unit->n_pair - begin : TILE_PAIRS;
            const uint32_t first = unit->first_pair + begin;
            for (uint32_t i = 0; i < n; i++)
                y[i] = pair_rows(f, f->pair[first + i], row_begin, n_row, out) - row_begin;
            const struct matmul_args args = {
                .w = unit->down,
                .w_row_bytes = unit->down_row_bytes,
                .n_col = unit->n_ff,
                .row_begin = row_begin,
                .row_end = row_end,
                .n_token = n,
                .x = f->h_x + first,
                .y = y,
            };
            f->cpu->kernels->matmul[unit->down_type](&args);
        }
    }
    if (f->pass == PASS_EXPERTS) return;
    for (uint32_t it = 0; it < f->args->n_token; it++)
        combine(f, it, row_begin, n_row, out, sum);
}

static bool has_shared(const struct ffn *f)
{
    return f->args->gate && f->pass != PASS_EXPERTS;
}

static bool has_pair(const struct ffn *f, uint32_t routed)
{
    return f->pass == PASS_WHOLE || (f->pass == PASS_EXPERTS && f->selected[f->args->ids[routed]]);
}

/* sigmoid(shared_gate . x) of each token. */
static bool gate_shared(struct ffn *f)
{
    struct cpu_backend *cpu = f->cpu;
    const struct ffn_args *args = f->args;
    if (!has_shared(f) || !args->shared_gate) return true;
    f->shared_gate = buffer_reserve(cpu, &cpu->q, args->n_token * sizeof(*f->shared_gate), "ffn");
    float **y = buffer_reserve(cpu, &cpu->y_rows, args->n_token * sizeof(*y), "ffn");
    if (!f->shared_gate || !y) return false;
    for (uint32_t it = 0; it < args->n_token; it++)
        y[it] = f->shared_gate + it;
    const struct matmul_args product = {
        .w = args->shared_gate,
        .w_row_bytes = args->n_embd * sizeof(float),
        .n_col = args->n_embd,
        .row_end = 1,
        .n_token = args->n_token,
        .x = activation_rows(cpu, ACT_F32),
        .y = y,
    };
    cpu->kernels->matmul[TENSOR_F32](&product);
    cpu->kernels->sigmoid(f->shared_gate, args->n_token);
    return true;
}

static struct unit expert_unit(const struct ffn_args *args, int32_t id)
{
    const struct expert_view *view = args->table ? &args->table[id] : &args->expert[id];
    const bool fused = !view->up;
    const struct weight *up = fused ? &args->gate_exp : &args->up_exp;
    const uint8_t *gate = view->gate;
    return (struct unit){
        .gate = gate,
        .up = fused ? gate + args->n_ff_exp * args->gate_exp.row_bytes : view->up,
        .down = view->down,
        .gate_type = args->gate_exp.type,
        .up_type = up->type,
        .down_type = args->down_exp.type,
        .gate_row_bytes = args->gate_exp.row_bytes,
        .up_row_bytes = up->row_bytes,
        .down_row_bytes = args->down_exp.row_bytes,
        .n_ff = args->n_ff_exp,
    };
}

static struct unit shared_unit(const struct ffn_args *args)
{
    return (struct unit){
        .gate = args->gate->data,
        .up = args->up->data,
        .down = args->down->data,
        .gate_type = args->gate->type,
        .up_type = args->up->type,
        .down_type = args->down->type,
        .gate_row_bytes = args->gate->row_bytes,
        .up_row_bytes = args->up->row_bytes,
        .down_row_bytes = args->down->row_bytes,
        .n_ff = args->gate->n_row,
        .n_pair = args->n_token,
    };
}

/* Sorts the pairs by expert: one unit for each expert that occurs, in rising id, tokens in order,
 * then the shared unit. count: [n_id + 1], zeroed. */
static void make_units(struct ffn *f, uint32_t *count, uint32_t n_id)
{
    const struct ffn_args *args = f->args;
    const uint32_t n_routed = args->n_token * args->n_expert_used;
    for (uint32_t p = 0; p < n_routed; p++)
        if (has_pair(f, p)) count[args->ids[p]]++;
    uint32_t first = 0;
    for (uint32_t id = 0; id < n_id; id++) {
        if (!count[id]) continue;
        struct unit *unit = &f->unit[f->n_unit++];
        *unit = expert_unit(args, (int32_t)id);
        unit->n_pair = count[id];
        unit->first_pair = first;
        count[id] = first; /* now the place of the expert's next pair */
        first += unit->n_pair;
    }
    for (uint32_t p = 0; p < n_routed; p++)
        if (has_pair(f, p)) f->pair[count[args->ids[p]]++] = p;
    if (!has_shared(f)) return;
    struct unit *unit = &f->unit[f->n_unit++];
    *unit = shared_unit(args);
    unit->first_pair = first;
    for (uint32_t it = 0; it < args->n_token; it++)
        f->pair[first + it] = n_routed + it;
}

/* Cuts the units into tasks and lays out their hidden rows. Sets the counts of tasks and groups
 * and the sizes of h (floats) and h_act (bytes). */
static void plan_units(struct ffn *f, uint32_t *n_task, uint32_t *n_group, size_t *h_floats,
                       size_t *h_act_bytes)
{
    uint64_t gate_up_bytes = 0, down_bytes = 0;
    for (uint32_t u = 0; u < f->n_unit; u++) {
        const struct unit *unit = &f->unit[u];
        gate_up_bytes += (uint64_t)unit->n_ff * (unit->gate_row_bytes + unit->up_row_bytes);
        down_bytes += (uint64_t)f->args->n_embd * unit->down_row_bytes;
    }
    if (f->pass == PASS_FINISH)
        down_bytes +=
            (uint64_t)f->args->n_token * f->args->n_expert_used * f->args->n_embd * sizeof(float);
    f->rows_per_output_task = rows_per_task(f->cpu, down_bytes, down_bytes / f->args->n_embd);
    *n_task = *n_group = 0;
    *h_floats = *h_act_bytes = 0;
    for (uint32_t u = 0; u < f->n_unit; u++) {
        struct unit *unit = &f->unit[u];
        const enum act_type type = f->cpu->kernels->act_type[unit->down_type];
        const uint32_t n_row =
            rows_per_task(f->cpu, gate_up_bytes, unit->gate_row_bytes + unit->up_row_bytes);
        unit->rows_per_task = ROWS_PER_TASK_STEP; /* a power of two, at most a group */
        while (unit->rows_per_task < GROUP && unit->rows_per_task * 2 <= n_row)
            unit->rows_per_task *= 2;
        unit->first_task = *n_task;
        unit->first_group = *n_group;
        unit->h_offset = *h_floats;
        unit->h_act_offset = *h_act_bytes;
        *n_task += (unit->n_ff + unit->rows_per_task - 1) / unit->rows_per_task;
        *n_group += (unit->n_ff + GROUP - 1) / GROUP;
        *h_floats += (size_t)unit->n_pair * unit->n_ff;
        *h_act_bytes += unit->n_pair * act_row_bytes(type, unit->n_ff);
    }
}

static void fill_pointers(struct ffn *f)
{
    const struct cpu_backend *cpu = f->cpu;
    for (uint32_t u = 0; u < f->n_unit; u++) {
        const struct unit *unit = &f->unit[u];
        const enum act_type *act_type = cpu->kernels->act_type;
        const void *const *gate_x = activation_rows(cpu, act_type[unit->gate_type]);
        const void *const *up_x = activation_rows(cpu, act_type[unit->up_type]);
        const size_t row_bytes = act_row_bytes(act_type[unit->down_type], unit->n_ff);
        for (uint32_t i = 0; i < unit->n_pair; i++) {
            const uint32_t p = unit->first_pair + i, it = token_of(f, f->pair[p]);
            f->gate_x[p] = gate_x[it];
            f->up_x[p] = up_x[it];
            f->h_x[p] = f->h_act + unit->h_act_offset + i * row_bytes;
        }
        for (uint32_t row = 0; row < unit->n_ff; row += GROUP) {
            const uint32_t n = unit->n_ff - row < GROUP ? unit->n_ff - row : GROUP;
            atomic_store_explicit(&f->group_left[unit->first_group + row / GROUP],
                                  (n + unit->rows_per_task - 1) / unit->rows_per_task,
                                  memory_order_relaxed);
        }
    }
}

static uint32_t count_ids(const struct ffn_args *args)
{
    uint32_t n_id = 0;
    for (uint32_t p = 0; p < args->n_token * args->n_expert_used; p++) {
        assert(args->ids[p] >= 0);
        if ((uint32_t)args->ids[p] >= n_id) n_id = (uint32_t)args->ids[p] + 1;
    }
    return n_id;
}

static bool prepare_inputs(struct ffn *f)
{
    struct cpu_backend *cpu = f->cpu;
    const struct ffn_args *args = f->args;
    unsigned types = 0;
    if (f->pass != PASS_FINISH && args->n_expert_used)
        types |= act_bit(cpu, args->gate_exp.type) |
                 act_bit(cpu, args->up_exp.row_bytes ? args->up_exp.type : args->gate_exp.type);
    if (has_shared(f)) types |= act_bit(cpu, args->gate->type) | act_bit(cpu, args->up->type);
    if (has_shared(f) && args->shared_gate) types |= 1u << ACT_F32;
    return prepare_activations(cpu, "ffn", args->x, args->n_token, args->n_embd, NULL, 0.0f,
                               types) &&
           gate_shared(f);
}

/* The buffer `plan`: units, then pair ids, counts and groups, then the pointers. */
static bool make_plan(struct ffn *f)
{
    const uint32_t n_id = count_ids(f->args);
    const uint32_t n_unit_max = (n_id < f->n_pair ? n_id : f->n_pair) + 1;
    /* A unit has at most n_ff / GROUP + 1 groups. */
    const uint32_t n_group_max = n_unit_max * (f->args->n_ff_exp / GROUP + 1) +
                                 (has_shared(f) ? f->args->gate->n_row / GROUP + 1 : 0);
    const size_t unit_bytes = round_up_64(n_unit_max * sizeof(*f->unit));
    const size_t pair_bytes = round_up_64(f->n_pair * sizeof(*f->pair));
    const size_t count_bytes = round_up_64(((size_t)n_id + 1) * sizeof(uint32_t));
    const size_t group_bytes = round_up_64(n_group_max * sizeof(*f->group_left));
    const size_t pointer_bytes = round_up_64(f->n_pair * sizeof(void *));
    uint8_t *plan = buffer_reserve(
        f->cpu, &f->cpu->plan,
        unit_bytes + pair_bytes + count_bytes + group_bytes + 3 * pointer_bytes, "ffn");
    if (!plan) return false;
    f->unit = (struct unit *)plan;
    f->pair = (uint32_t *)(plan += unit_bytes);
    uint32_t *count = (uint32_t *)(plan += pair_bytes);
    f->group_left = (_Atomic uint32_t *)(plan += count_bytes);
    f->gate_x = (const void **)(plan += group_bytes);
    f->up_x = (const void **)(plan += pointer_bytes);
    f->h_x = (const void **)(plan += pointer_bytes);
    memset(count, 0, count_bytes);
    make_units(f, count, n_id);
    return true;
}

/* Pairs of the call, and the lowest of their ids. */
static void count_pairs(struct ffn *f)
{
    const struct ffn_args *args = f->args;
    const uint32_t n_routed = args->n_token * args->n_expert_used;
    for (uint32_t p = 0; p < n_routed; p++)
        f->n_pair += has_pair(f, p);
    f->pair_begin = f->pass == PASS_FINISH ? n_routed : 0;
    if (has_shared(f)) f->n_pair += args->n_token;
}

static void run(struct cpu_backend *cpu, const struct ffn_args *args, enum pass pass,
                const bool *selected)
{
    const struct epilogue *epilogue = &args->epilogue;
    struct ffn f = {.cpu = cpu, .args = args, .pass = pass, .selected = selected};
    assert(args->n_expert_used || args->gate);
    count_pairs(&f);
    if (pass == PASS_EXPERTS && !f.n_pair) return;
    if (!args->n_token || !prepare_inputs(&f) || !make_plan(&f)) return;
    uint32_t n_task, n_group;
    size_t h_floats, h_act_bytes;
    plan_units(&f, &n_task, &n_group, &h_floats, &h_act_bytes);
    f.h = buffer_reserve(cpu, &cpu->h, h_floats * sizeof(float), "ffn");
    f.h_act = buffer_reserve(cpu, &cpu->h_act, h_act_bytes, "ffn");
    if (!f.h || !f.h_act) return;
    fill_pointers(&f);
    const size_t up_floats = (size_t)TILE_PAIRS * GROUP;
    const size_t out_floats =
        pass == PASS_EXPERTS ? 0 : ((size_t)f.n_pair + 1) * f.rows_per_output_task;
    if (!reserve_workers(cpu, (up_floats > out_floats ? up_floats : out_floats) * sizeof(float),
                         "ffn"))
        return;
    if (!epilogue->residual) f.y = args->y;
    if (pass != PASS_EXPERTS && epilogue->residual && epilogue->post_norm) {
        f.y = buffer_reserve(cpu, &cpu->y, (size_t)args->n_token * args->n_embd * sizeof(float),
                             "ffn");
        if (!f.y) return;
    }
    pool_run(cpu->pool, hidden_task, &f, n_task);
    pool_run(cpu->pool, output_task, &f,
             (args->n_embd + f.rows_per_output_task - 1) / f.rows_per_output_task);
    if (f.y && pass != PASS_EXPERTS)
        finish_rows(cpu, epilogue, args->n_token, args->n_embd, f.y, args->n_embd);
}

void cpu_ffn(struct backend *backend, const struct ffn_args *args)
{
    run((struct cpu_backend *)backend, args, PASS_WHOLE, NULL);
}

void cpu_ffn_experts(struct backend *backend, const struct ffn_args *args, const bool *selected)
{
    run((struct cpu_backend *)backend, args, PASS_EXPERTS, selected);
}

void cpu_ffn_finish(struct backend *backend, const struct ffn_args *args)
{
    run((struct cpu_backend *)backend, args, PASS_FINISH, NULL);
}
