/* ffn: routed experts and the shared (or dense) network, in five launches:
 *
 *   plan       the pairs of a row and an expert, sorted by expert and cut into tiles
 *   hidden     rows of gate and up for a tile of pairs, SwiGLU
 *   quantize   the hidden rows; the gates of the shared expert
 *   down       output rows for a tile of pairs
 *   combine    a row's experts in rank order, the shared one, the epilogue
 *
 * In the FAST mode the shared network's many rows go through fast_linear.cu instead.
 *
 * Routed experts and the shared network are two `parts` of the same form; where their weights have
 * one type they share a launch. Who computes a pair, and beside which others, cannot change it, so
 * tiles and their order are free. Nothing here asks the host: ids, table and plan stay on the
 * device, and a grid is sized for the most tiles that there can be. */
#include "kernels/cuda/fast_linear.cuh"
#include "kernels/cuda/ffn.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/linear.cuh"

enum { PLAN_THREADS = 512 };

/* ---- plan ---- */

struct plan_args {
    const int32_t *ids;      /* [n_pair] */
    const uint8_t *selected; /* [n_expert] or NULL: all */
    uint32_t *pair;          /* out, [n_pair] */
    struct tile *tile;       /* out, [*n_tile] */
    uint32_t *n_tile;
    uint32_t n_pair, n_expert, tile_pairs, unused;
};

/* Inclusive sum over the lanes. */
DEVICE uint32_t warp_scan(uint32_t value)
{
    for (uint32_t by = 1; by < WARP; by *= 2) {
        const uint32_t before = __shfl_up_sync(ALL_LANES, value, by);
        if (threadIdx.x % WARP >= by) value += before;
    }
    return value;
}

/* One block: a counting sort by expert. */
KERNEL(PLAN_THREADS) plan_kernel(const struct plan_args a)
{
    DYNAMIC_SHARED(uint32_t, count); /* [n_expert], then where the expert's next pair goes */
    uint32_t *const first = count + a.n_expert, *const first_tile = first + a.n_expert;
    for (uint32_t ie = threadIdx.x; ie < a.n_expert; ie += blockDim.x)
        count[ie] = 0;
    __syncthreads();
    for (uint32_t p = threadIdx.x; p < a.n_pair; p += blockDim.x)
        if (!a.selected || a.selected[a.ids[p]]) atomicAdd(&count[a.ids[p]], 1u);
    __syncthreads();
    if (threadIdx.x < WARP) {
        uint32_t n_pair = 0, n_tile = 0;
        for (uint32_t begin = 0; begin < a.n_expert; begin += WARP) {
            const uint32_t ie = begin + threadIdx.x, n = ie < a.n_expert ? count[ie] : 0;
            const uint32_t tiles = (n + a.tile_pairs - 1) / a.tile_pairs;
            const uint32_t pair_end = n_pair + warp_scan(n), tile_end = n_tile + warp_scan(tiles);
            if (ie < a.n_expert) {
                first[ie] = pair_end - n;
                first_tile[ie] = tile_end - tiles;
            }
            n_pair = __shfl_sync(ALL_LANES, pair_end, WARP - 1);
            n_tile = __shfl_sync(ALL_LANES, tile_end, WARP - 1);
        }
        if (threadIdx.x == 0) *a.n_tile = n_tile;
    }
    __syncthreads();
    for (uint32_t ie = threadIdx.x; ie < a.n_expert; ie += blockDim.x) {
        const uint32_t n = count[ie];
        struct tile *tile = a.tile + first_tile[ie];
        for (uint32_t begin = 0; begin < n; begin += a.tile_pairs)
            *tile++ = {ie, first[ie] + begin, min(n - begin, a.tile_pairs)};
    }
    __syncthreads();
    for (uint32_t ie = threadIdx.x; ie < a.n_expert; ie += blockDim.x)
        count[ie] = first[ie];
    __syncthreads();
    for (uint32_t p = threadIdx.x; p < a.n_pair; p += blockDim.x)
        if (!a.selected || a.selected[a.ids[p]]) a.pair[atomicAdd(&count[a.ids[p]], 1u)] = p;
}

/* ---- between and behind the products ---- */

struct quantize_args {
    struct part part[2];
    const uint8_t *selected;      /* by expert: which of part[0]'s pairs there are; or NULL */
    const float *x, *shared_gate; /* [n_token][n_embd], [n_embd]; or NULL */
    float *gates;                 /* out, [n_token]: sigmoid(shared_gate . x) */
    int32_t *not_finite;
    uint32_t act[2];    /* enum act_type; of ACT_F32 the hidden rows are only checked */
    uint32_t n_task[2]; /* one for each group of 256 of each pair; then one for each gate */
    uint32_t n_token, n_embd;
};

DEVICE void gate_shared(const struct quantize_args &a, uint32_t it)
{
    const uint8_t *const x = (const uint8_t *)(a.x + (size_t)it * a.n_embd);
    float g;
    warp_dot<TENSOR_F32, 1>(a.shared_gate, &x, a.n_embd, &g);
    if (lane_of() == 0) a.gates[it] = exact_sigmoid(g);
}

/* A task for each warp. */
KERNEL(FFN_THREADS) quantize_hidden_kernel(const struct quantize_args a)
{
    uint32_t task = warp_index(blockIdx.x);
    if (task >= a.n_task[0] + a.n_task[1]) {
        task -= a.n_task[0] + a.n_task[1];
        if (a.gates && task < a.n_token) gate_shared(a, task);
        return;
    }
    const bool first = task < a.n_task[0];
    const struct part &part = first ? a.part[0] : a.part[1];
    const uint32_t act = first ? a.act[0] : a.act[1];
    if (!first) task -= a.n_task[0];
    const uint32_t n_group = (part.n_ff + QK - 1) / QK, pair = task / n_group;
    if (first && a.selected && !a.selected[part.ids[pair]]) return;
    uint8_t *const row = part.h_act + pair * part.h_act_bytes;
    const struct act_rows out = {
        {NULL, act == ACT_Q8_K ? row : NULL, act == ACT_Q8_0 ? row : NULL}};
    prepare_block(part.h + (size_t)pair * part.n_ff, NULL, 1.0f, part.n_ff, task % n_group, out,
                  a.not_finite, NOT_FINITE_FFN_HIDDEN);
}

/* Grid (columns, rows). */
KERNEL(FFN_THREADS) combine_kernel(const struct combine_args a)
{
    const uint32_t i = blockIdx.x * FFN_THREADS + threadIdx.x;
    const size_t it = blockIdx.y, at = it * a.n_embd + i;
    if (i >= a.n_embd) return;
    put_combined(a, at,
                 combined(a, it, a.out + it * a.n_used * a.n_embd + i, a.n_embd,
                          a.shared ? a.shared + at : NULL));
}

/* ---- the host's side ---- */

enum pass {
    PASS_WHOLE,   /* routed and shared, combined */
    PASS_EXPERTS, /* some routed ones, into expert_out */
    PASS_FINISH   /* the shared one, combined with expert_out */
};

enum { ROUTED, SHARED };

struct ffn {
    struct cuda_backend *cuda;
    const struct ffn_args *args;
    enum pass pass;
    const uint8_t *selected; /* staged, of PASS_EXPERTS */
    bool has[2];             /* parts of this pass that go through the five launches */
    bool fast;               /* the shared one goes its own way */
    struct part part[2];
    enum tensor_type gate_type[2], up_type[2], down_type[2];
    struct act_rows x; /* quantized */
    float *gates;      /* [n_token] of the shared expert, or NULL */
};

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

/* Fused with gate, up has no type of its own. */
static const struct weight *up_exp(const struct ffn_args *args)
{
    return args->up_exp.row_bytes ? &args->up_exp : &args->gate_exp;
}

/* Which parts there are, of what types, and rows of x for them. false: no memory, noted. */
static bool prepare_inputs(struct ffn *f)
{
    const struct ffn_args *args = f->args;
    f->has[ROUTED] = args->n_expert_used && f->pass != PASS_FINISH;
    f->has[SHARED] = args->gate && f->pass != PASS_EXPERTS;
    if (f->has[ROUTED]) {
        f->gate_type[ROUTED] = args->gate_exp.type;
        f->up_type[ROUTED] = up_exp(args)->type;
        f->down_type[ROUTED] = args->down_exp.type;
    }
    if (f->has[SHARED]) {
        f->gate_type[SHARED] = args->gate->type;
        f->up_type[SHARED] = args->up->type;
        f->down_type[SHARED] = args->down->type;
    }
    f->fast = f->has[SHARED] && fast_takes(f->cuda, f->gate_type[SHARED], args->n_token) &&
              fast_takes(f->cuda, f->up_type[SHARED], args->n_token) &&
              fast_takes(f->cuda, f->down_type[SHARED], args->n_token);
    if (f->fast) f->has[SHARED] = false;
    if (!f->has[ROUTED] && !f->has[SHARED]) return true;
    unsigned types = 0;
    for (int i = 0; i < 2; i++)
        if (f->has[i]) types |= 1u << act_of(f->gate_type[i]) | 1u << act_of(f->up_type[i]);
    return prepare_activations(f->cuda, NOT_FINITE_FFN, args->x, args->n_token, args->n_embd, NULL,
                               0.0f, types & ~(1u << ACT_F32), &f->x);
}

/* Rows of x in the form that a type of weights wants, and the bytes of one. Floats are read where
 * they are. */
static const uint8_t *x_rows(const struct ffn *f, enum tensor_type type, size_t *row_bytes)
{
    const enum act_type act = act_of(type);
    *row_bytes = act == ACT_F32 ? f->args->n_embd * sizeof(float) : act_bytes(act, f->args->n_embd);
    return act == ACT_F32 ? (const uint8_t *)f->args->x : f->x.row[act];
}

/* What both parts have alike; the types are set. false: no memory, noted. */
static bool fill_part(struct ffn *f, int i, uint32_t n_used, uint32_t n_ff)
{
    struct part *part = &f->part[i];
    const enum act_type act = act_of(f->down_type[i]);
    const uint32_t n_embd = f->args->n_embd, n_pair = f->args->n_token * n_used;
    part->n_used = n_used;
    part->n_pair = n_pair;
    part->n_ff = n_ff;
    part->n_embd = n_embd;
    part->gate_x = x_rows(f, f->gate_type[i], &part->gate_x_bytes);
    part->up_x = x_rows(f, f->up_type[i], &part->up_x_bytes);
    part->h = (float *)scratch(f->cuda, (size_t)n_pair * n_ff * sizeof(float));
    part->h_act = (uint8_t *)part->h;
    part->h_act_bytes = n_ff * sizeof(float);
    if (act != ACT_F32) {
        part->h_act_bytes = act_bytes(act, n_ff);
        part->h_act = (uint8_t *)scratch(f->cuda, n_pair * part->h_act_bytes);
    }
    if (!part->out) part->out = (float *)scratch(f->cuda, (size_t)n_pair * n_embd * sizeof(float));
    return part->h && part->h_act && part->out;
}

/* How many pairs of a part go through a matrix at a time, if n of them share it on the average. */
static enum tile_pairs tile_pairs_for(uint32_t n)
{
    return n <= 2 * TILE_FEW ? TILE_FEW : n <= TILE_NARROW ? TILE_NARROW : TILE_WIDE;
}

/* Sorts the pairs of the routed experts on the device; one row's need no sorting. */
static bool plan_routed(struct ffn *f)
{
    struct part *part = &f->part[ROUTED];
    const uint32_t n_pair = part->n_pair, n_expert = f->args->n_expert;
    part->tile_pairs = TILE_ONE;
    part->n_tile_max = n_pair;
    if (f->args->n_token == 1 && !f->selected) return true;
    part->tile_pairs = tile_pairs_for(n_pair / n_expert);
    part->n_tile_max = min(n_pair, n_pair / part->tile_pairs + n_expert);
    uint32_t *pair = (uint32_t *)scratch(f->cuda, n_pair * sizeof(*pair));
    struct tile *tile = (struct tile *)scratch(f->cuda, part->n_tile_max * sizeof(*tile));
    uint32_t *n_tile = (uint32_t *)scratch(f->cuda, sizeof(*n_tile));
    if (!pair || !tile || !n_tile) return false;
    const struct plan_args plan = {part->ids, f->selected,      pair, tile, n_tile, n_pair,
                                   n_expert,  part->tile_pairs, 0};
    launch(f->cuda, plan_kernel, dim3(1), dim3(PLAN_THREADS), 3 * n_expert * sizeof(uint32_t),
           plan);
    part->pair = pair;
    part->tile = tile;
    part->n_tile = n_tile;
    return true;
}

static bool make_routed(struct ffn *f)
{
    const struct ffn_args *args = f->args;
    struct part *part = &f->part[ROUTED];
    part->gate_bytes = args->gate_exp.row_bytes;
    part->up_bytes = up_exp(args)->row_bytes;
    part->down_bytes = args->down_exp.row_bytes;
    part->ids = args->ids;
    part->table = args->table ? args->table
                              : (const struct expert_view *)stage(
                                    f->cuda, args->expert, args->n_expert * sizeof(*args->expert));
    part->out = args->expert_out;
    return part->table && fill_part(f, ROUTED, args->n_expert_used, args->n_ff_exp) &&
           plan_routed(f);
}

/* Room for the gates of the shared expert, if it has any. */
static bool make_gates(struct ffn *f)
{
    if (!f->args->shared_gate) return true;
    f->gates = (float *)scratch(f->cuda, f->args->n_token * sizeof(*f->gates));
    return f->gates;
}

static bool make_shared(struct ffn *f)
{
    const struct ffn_args *args = f->args;
    struct part *part = &f->part[SHARED];
    part->gate_bytes = args->gate->row_bytes;
    part->up_bytes = args->up->row_bytes;
    part->down_bytes = args->down->row_bytes;
    part->view = {args->gate->data, args->up->data, args->down->data};
    part->tile_pairs = args->n_token == 1 ? TILE_ONE : tile_pairs_for(args->n_token);
    part->n_tile_max = ceil_div(args->n_token, part->tile_pairs);
    return fill_part(f, SHARED, 1, args->gate->n_row) && make_gates(f);
}

/* The shared network's rows to its part's out, by the products of the FAST mode. */
static bool run_fast_shared(struct ffn *f)
{
    struct cuda_backend *const cuda = f->cuda;
    const struct ffn_args *args = f->args;
    const uint32_t n_token = args->n_token, n_embd = args->n_embd, n_ff = args->gate->n_row;
    const size_t hidden_bytes = (size_t)n_token * n_ff * sizeof(float);
    float *const gate = (float *)scratch(cuda, hidden_bytes);
    float *const up = (float *)scratch(cuda, hidden_bytes);
    float *const out = (float *)scratch(cuda, (size_t)n_token * n_embd * sizeof(float));
    struct fast_rows x, h;
    if (!gate || !up || !out || !make_gates(f) ||
        !fast_prepare(cuda, NOT_FINITE_FFN, args->x, n_token, n_embd, NULL, 0.0f, &x))
        return false;
    fast_multiply(cuda, args->gate, &x, NULL, gate, n_ff, NULL);
    fast_multiply(cuda, args->up, &x, NULL, up, n_ff, NULL);
    if (!fast_swiglu(cuda, gate, up, n_token, n_ff, x.tile, &h)) return false;
    fast_multiply(cuda, args->down, &h, NULL, out, n_embd, NULL);
    f->part[SHARED].out = out;
    return true;
}

/* Some rows of the parts of a bit set, whose weights have one type and whose tiles one size. */
static void launch_rows(const struct ffn *f, unsigned parts, enum rows rows, enum tensor_type type)
{
    struct rows_args args;
    memset(&args, 0, sizeof(args));
    args.rows = rows;
    uint32_t n = 0, n_tile = 0, n_row = 0;
    for (int i = 0; i < 2; i++) {
        if (!(parts >> i & 1)) continue;
        const struct part *part = &f->part[i];
        if (n == 0) args.n_tile_first = part->n_tile_max;
        n_tile += part->n_tile_max;
        n_row = max(n_row, rows == ROWS_DOWN ? part->n_embd : part->n_ff);
        args.part[n++] = *part;
    }
    const enum tile_pairs tile_pairs = (enum tile_pairs)args.part[0].tile_pairs;
    if (tile_pairs <= TILE_FEW)
        launch(f->cuda, rows_gemv_kernel_of(type, rows, tile_pairs),
               dim3(n_tile, ceil_div(n_row, FFN_WARPS)), dim3(FFN_THREADS), 0, args);
    else
        launch(f->cuda, rows_gemm_kernel_of(type, tile_pairs),
               dim3(n_tile, ceil_div(n_row, GEMM_ROWS)), dim3(GEMM_THREADS), 0, args);
}

/* Both parts fit into one launch with weights of these types. */
static bool go_together(const struct ffn *f, const enum tensor_type *type)
{
    return f->has[ROUTED] && f->has[SHARED] && type[ROUTED] == type[SHARED] &&
           f->part[ROUTED].tile_pairs == f->part[SHARED].tile_pairs;
}

static void launch_hidden(const struct ffn *f)
{
    const enum tensor_type *gate = f->gate_type, *up = f->up_type;
    if (go_together(f, gate) && go_together(f, up) && gate[ROUTED] == up[ROUTED]) {
        launch_rows(f, 1u << ROUTED | 1u << SHARED, ROWS_GATE_UP, gate[ROUTED]);
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (!f->has[i]) continue;
        if (gate[i] == up[i]) {
            launch_rows(f, 1u << i, ROWS_GATE_UP, gate[i]);
        } else {
            launch_rows(f, 1u << i, ROWS_GATE, gate[i]);
            launch_rows(f, 1u << i, ROWS_UP, up[i]);
        }
    }
}

static void launch_down(const struct ffn *f)
{
    const enum tensor_type *type = f->down_type;
    if (go_together(f, type)) {
        launch_rows(f, 1u << ROUTED | 1u << SHARED, ROWS_DOWN, type[ROUTED]);
        return;
    }
    for (int i = 0; i < 2; i++)
        if (f->has[i]) launch_rows(f, 1u << i, ROWS_DOWN, type[i]);
}

static void launch_quantize(const struct ffn *f)
{
    const struct ffn_args *args = f->args;
    struct quantize_args q;
    memset(&q, 0, sizeof(q));
    for (int i = 0; i < 2; i++) {
        if (!f->has[i]) continue;
        q.part[i] = f->part[i];
        q.act[i] = act_of(f->down_type[i]);
        q.n_task[i] = f->part[i].n_pair * ceil_div(f->part[i].n_ff, QK);
    }
    q.selected = f->selected;
    q.x = args->x;
    q.shared_gate = f->gates ? args->shared_gate : NULL;
    q.gates = f->gates;
    q.not_finite = not_finite_flag(f->cuda);
    q.n_token = args->n_token;
    q.n_embd = args->n_embd;
    const uint32_t n_task = q.n_task[0] + q.n_task[1] + (f->gates ? args->n_token : 0);
    launch(f->cuda, quantize_hidden_kernel, dim3(ceil_div(n_task, FFN_WARPS)), dim3(FFN_THREADS), 0,
           q);
}

/* One row, and down weights of one type. */
static bool can_combine_at_once(const struct ffn *f)
{
    return f->args->n_token == 1 && f->pass == PASS_WHOLE &&
           (!f->has[ROUTED] || !f->has[SHARED] || f->down_type[ROUTED] == f->down_type[SHARED]);
}

/* Down, then all into y or the residual; or both at once. */
static void launch_output(const struct ffn *f, float *y, float *residual)
{
    const uint32_t n_embd = f->args->n_embd;
    struct down_combine_args d;
    memset(&d, 0, sizeof(d));
    d.combine.weights = f->args->weights;
    d.combine.out = f->pass == PASS_FINISH ? f->args->expert_out : f->part[ROUTED].out;
    d.combine.gates = f->gates;
    d.combine.shared = f->part[SHARED].out;
    d.combine.y = y;
    d.combine.residual = residual;
    d.combine.n_used = f->args->n_expert_used;
    d.combine.n_embd = n_embd;
    if (!can_combine_at_once(f)) {
        launch_down(f);
        launch(f->cuda, combine_kernel, dim3(ceil_div(n_embd, FFN_THREADS), f->args->n_token),
               dim3(FFN_THREADS), 0, d.combine);
        return;
    }
    memcpy(d.part, f->part, sizeof(d.part));
    const uint32_t n_unit = d.combine.n_used + f->has[SHARED];
    launch(f->cuda, down_combine_kernel_of(f->down_type[f->has[ROUTED] ? ROUTED : SHARED]),
           dim3(ceil_div(n_embd, DOWN_ROWS)), dim3(FFN_THREADS), n_unit * DOWN_ROWS * sizeof(float),
           d);
}

static void run(struct cuda_backend *cuda, const struct ffn_args *args, enum pass pass,
                const bool *selected)
{
    struct ffn f;
    memset(&f, 0, sizeof(f));
    f.cuda = cuda;
    f.args = args;
    f.pass = pass;
    if (!args->n_token) return;
    if (pass == PASS_EXPERTS) {
        f.selected = (const uint8_t *)stage(cuda, selected, args->n_expert);
        if (!f.selected) return;
    }
    if (!prepare_inputs(&f)) return;
    if (f.has[ROUTED] && !make_routed(&f)) return;
    if (f.has[SHARED] && !make_shared(&f)) return;
    if (f.fast && !run_fast_shared(&f)) return;
    launch_hidden(&f);
    launch_quantize(&f);
    if (pass == PASS_EXPERTS) {
        launch_down(&f);
        return;
    }
    const struct epilogue *epilogue = &args->epilogue;
    float *y = args->y;
    if (epilogue->residual && epilogue->post_norm) { /* the row must be whole before it is added */
        y = (float *)scratch(cuda, (size_t)args->n_token * args->n_embd * sizeof(float));
        if (!y) return;
    }
    const bool add = epilogue->residual && !epilogue->post_norm;
    launch_output(&f, add ? NULL : y, add ? epilogue->residual : NULL);
    if (epilogue->post_norm)
        finish_rows(cuda, epilogue, args->n_token, args->n_embd, y, args->n_embd);
}

void cuda_ffn(struct backend *backend, const struct ffn_args *args)
{
    run((struct cuda_backend *)backend, args, PASS_WHOLE, NULL);
}

void cuda_ffn_experts(struct backend *backend, const struct ffn_args *args, const bool *selected)
{
    run((struct cuda_backend *)backend, args, PASS_EXPERTS, selected);
}

void cuda_ffn_finish(struct backend *backend, const struct ffn_args *args)
{
    run((struct cuda_backend *)backend, args, PASS_FINISH, NULL);
}
