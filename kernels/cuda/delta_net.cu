/* delta_net, in three launches:
 *
 *   convolve   a warp for each head of a row: convolution and SiLU, the L2 norm of q and k, gates
 *   recur      a warp for four rows of a value head's state, through all tokens of a sequence; the
 *              state is read and written once. The convolution's state moves on here, when nobody
 *              reads the old one any more.
 *   finish     a warp for each value head of a row: RMSNorm, times SiLU(z)
 *
 * Lane l has elements l, l + 32, ... of a row of the state, as the canonical sums want them. */
#include <assert.h>

#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/cuda/lanes.cuh"
#include "kernels/exact_math.h"

constexpr uint32_t ROW_WARPS = 4;                   /* of a CTA that works on rows of the batch */
constexpr uint32_t STATE_WARPS = 2, STATE_ROWS = 4; /* of a CTA, of a warp */
constexpr uint32_t LANES_PER_ROW = WARP / STATE_ROWS;

/* Consecutive rows of one sequence. */
struct delta_run {
    uint32_t it_begin, n_row;
    float *conv_state, *state;
    uint64_t frozen; /* not 0: both stay as they are */
};

/* The argument of all kernels here. Names as in struct delta_net_args. */
struct delta_launch {
    const struct delta_run *run; /* [n_run], staged as is run_of */
    const uint32_t *run_of;      /* [n_token] */
    const float *qkv, *z, *beta, *alpha, *conv_w, *ssm_a, *ssm_dt, *norm;
    float *convolved;           /* [n_token][conv_dim], q and k normed */
    float *decay, *update_rate; /* [n_token][n_head_v] */
    float *out;
    float eps, scale;
    uint32_t n_token, n_tap, n_head_k, n_head_v, dim_k, dim_v, conv_dim, grouped;
};

/* Input i of a run's convolution, one channel of it; the first n_tap - 1 are the state. */
DEVICE float conv_input(const struct delta_launch &a, const struct delta_run &run, uint32_t i,
                        uint32_t channel)
{
    const uint32_t n_old = a.n_tap - 1;
    const float *const row = i < n_old ? run.conv_state + (size_t)i * a.conv_dim
                                       : a.qkv + (size_t)(run.it_begin + i - n_old) * a.conv_dim;
    return row[channel];
}

KERNEL(ROW_WARPS *WARP) convolve(const struct delta_launch a)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t task = blockIdx.x * ROW_WARPS + threadIdx.x / WARP;
    const uint32_t n_head_all = 2 * a.n_head_k + a.n_head_v; /* of q, k, v */
    const uint32_t it = task / n_head_all, head = task % n_head_all;
    if (it >= a.n_token) return;
    const struct delta_run run = a.run[a.run_of[it]];
    const bool is_value = head >= 2 * a.n_head_k;
    const uint32_t ih = head - 2 * a.n_head_k; /* of a value */
    const uint32_t dim = is_value ? a.dim_v : a.dim_k;
    const uint32_t channel = is_value ? 2 * a.n_head_k * a.dim_k + ih * a.dim_v : head * a.dim_k;
    float *const y = a.convolved + (size_t)it * a.conv_dim + channel;

    float sum_of_squares = 0.0f;
    for (uint32_t i = lane; i < dim; i += WARP) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < a.n_tap; j++)
            sum = fmaf(a.conv_w[(size_t)(channel + i) * a.n_tap + j],
                       conv_input(a, run, it - run.it_begin + j, channel + i), sum);
        y[i] = exact_silu(sum);
        sum_of_squares = fmaf(y[i], y[i], sum_of_squares);
    }
    if (!is_value) {
        const float scale = 1.0f / sqrtf(lanes_sum(sum_of_squares) + a.eps);
        for (uint32_t i = lane; i < dim; i += WARP)
            y[i] *= scale;
    } else if (lane == 0) {
        const size_t at = (size_t)it * a.n_head_v + ih;
        a.decay[at] = exact_exp(a.ssm_a[ih] * exact_softplus(a.alpha[at] + a.ssm_dt[ih]));
        a.update_rate[at] = exact_sigmoid(a.beta[at]);
    }
}

/* What a warp needs of a token; v: of the state row that the lane sums up. */
template <class Shape> struct delta_token {
    float q[Shape::CHUNKS], k[Shape::CHUNKS];
    float v, decay, update_rate;
};

template <class Shape>
DEVICE void load_token(const struct delta_launch &a, uint32_t it, uint32_t key_head, uint32_t ih,
                       uint32_t v_row, uint32_t lane, struct delta_token<Shape> &token)
{
    const float *const q = a.convolved + (size_t)it * a.conv_dim + key_head * a.dim_k;
    const float *const k = q + a.n_head_k * a.dim_k;
    const float *const v =
        a.convolved + (size_t)it * a.conv_dim + 2 * a.n_head_k * a.dim_k + ih * a.dim_v;
#pragma unroll
    for (uint32_t c = 0; c < Shape::CHUNKS; c++) {
        const bool has = Shape::has(c, lane, a.dim_k);
        token.q[c] = has ? q[c * WARP + lane] : 0.0f;
        token.k[c] = has ? k[c * WARP + lane] : 0.0f;
    }
    token.v = v_row < a.dim_v ? v[v_row] : 0.0f;
    token.decay = a.decay[(size_t)it * a.n_head_v + ih];
    token.update_rate = a.update_rate[(size_t)it * a.n_head_v + ih];
}

/* Four rows of the state, s, through one token; lane l gets the output of row l / LANES_PER_ROW. */
template <class Shape>
DEVICE float delta_step(const struct delta_token<Shape> &token, uint32_t dim_k, uint32_t lane,
                        float (&s)[STATE_ROWS][Shape::CHUNKS])
{
    float sum[STATE_ROWS];
#pragma unroll
    for (uint32_t r = 0; r < STATE_ROWS; r++) {
        sum[r] = 0.0f;
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            if (Shape::has(c, lane, dim_k)) sum[r] = fmaf(s[r][c], token.k[c], sum[r]);
    }
    const float u = token.update_rate * fmaf(-token.decay, lanes_sums(sum, lane), token.v);
#pragma unroll
    for (uint32_t r = 0; r < STATE_ROWS; r++) {
        const float u_row = __shfl_sync(ALL_LANES, u, r * LANES_PER_ROW);
        sum[r] = 0.0f;
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            if (Shape::has(c, lane, dim_k)) {
                s[r][c] = fmaf(token.k[c], u_row, token.decay * s[r][c]);
                sum[r] = fmaf(s[r][c], token.q[c], sum[r]);
            }
    }
    return lanes_sums(sum, lane);
}

/* The last n_tap - 1 inputs of the run become the state. In rising order each source lies behind
 * its destination, so a short run may move the state within itself. */
DEVICE void keep_tail(const struct delta_launch &a, const struct delta_run &run)
{
    const uint32_t cta = blockIdx.y * gridDim.x + blockIdx.x;
    const uint32_t n_thread = gridDim.y * gridDim.x * blockDim.x;
    for (uint32_t c = cta * blockDim.x + threadIdx.x; c < a.conv_dim; c += n_thread)
        for (uint32_t j = 0; j + 1 < a.n_tap; j++)
            run.conv_state[(size_t)j * a.conv_dim + c] = conv_input(a, run, run.n_row + j, c);
}

/* Grid: rows of the state, value heads, runs. */
template <class Shape> KERNEL(STATE_WARPS *WARP) recur(const struct delta_launch a)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t ih = blockIdx.y;
    const struct delta_run run = a.run[blockIdx.z];
    const uint32_t key_head = a.grouped ? ih / (a.n_head_v / a.n_head_k) : ih % a.n_head_k;
    const uint32_t row_begin = (blockIdx.x * STATE_WARPS + warp) * STATE_ROWS;
    const uint32_t v_row = row_begin + lane / LANES_PER_ROW;
    float *const state = run.state + ((size_t)ih * a.dim_v + row_begin) * a.dim_k;
    if (!run.frozen) keep_tail(a, run);

    float s[STATE_ROWS][Shape::CHUNKS];
#pragma unroll
    for (uint32_t r = 0; r < STATE_ROWS; r++)
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            s[r][c] = row_begin + r < a.dim_v && Shape::has(c, lane, a.dim_k)
                          ? state[r * a.dim_k + c * WARP + lane]
                          : 0.0f;
    struct delta_token<Shape> token, next;
    load_token(a, run.it_begin, key_head, ih, v_row, lane, token);
    for (uint32_t i = 0; i < run.n_row; i++) {
        const uint32_t it = run.it_begin + i;
        if (i + 1 < run.n_row) load_token(a, it + 1, key_head, ih, v_row, lane, next);
        const float o = delta_step<Shape>(token, a.dim_k, lane, s) * a.scale;
        if (lane % LANES_PER_ROW == 0 && v_row < a.dim_v)
            a.out[((size_t)it * a.n_head_v + ih) * a.dim_v + v_row] = o;
        token = next;
    }
    if (run.frozen) return;
#pragma unroll
    for (uint32_t r = 0; r < STATE_ROWS; r++)
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            if (row_begin + r < a.dim_v && Shape::has(c, lane, a.dim_k))
                state[r * a.dim_k + c * WARP + lane] = s[r][c];
}

KERNEL(ROW_WARPS *WARP) finish(const struct delta_launch a)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t task = blockIdx.x * ROW_WARPS + threadIdx.x / WARP; /* row, value head */
    if (task >= a.n_token * a.n_head_v) return;
    float *const out = a.out + (size_t)task * a.dim_v;
    const float *const z = a.z + (size_t)task * a.dim_v;
    float sum = 0.0f;
    for (uint32_t i = lane; i < a.dim_v; i += WARP)
        sum = fmaf(out[i], out[i], sum);
    const float scale = 1.0f / sqrtf(lanes_sum(sum) / (float)a.dim_v + a.eps);
    for (uint32_t i = lane; i < a.dim_v; i += WARP) {
        const float normed = out[i] * scale * a.norm[i];
        out[i] = exact_silu(z[i]) * normed;
    }
}

/* ---- the host's side ---- */

typedef void (*delta_kernel)(const struct delta_launch);

static delta_kernel choose_recur(uint32_t dim_k)
{
    if (dim_k == 64) return recur<head_shape<2, false>>;
    if (dim_k == 128) return recur<head_shape<4, false>>;
    return recur<head_shape<HEAD_DIM_MAX / WARP, true>>;
}

static bool starts_run(const struct delta_net_args *args, uint32_t it)
{
    return !it || args->token[it].slot != args->token[it - 1].slot;
}

/* Tells the kernels which rows are whose. false: no memory, noted. */
static bool stage_runs(struct cuda_backend *cuda, const struct delta_net_args *args, uint32_t n_run,
                       struct delta_launch *a)
{
    const size_t run_bytes = n_run * sizeof(struct delta_run);
    const void *device;
    uint8_t *const host =
        (uint8_t *)stage_room(cuda, run_bytes + args->n_token * sizeof(uint32_t), &device);
    if (!host) return false;
    struct delta_run *run = (struct delta_run *)host - 1;
    uint32_t *const run_of = (uint32_t *)(host + run_bytes);
    for (uint32_t it = 0; it < args->n_token; it++) {
        const uint32_t slot = args->token[it].slot;
        if (starts_run(args, it))
            *++run = {it, 0, args->conv_state[slot], args->state[slot],
                      args->frozen && args->frozen[slot]};
        run->n_row++;
        run_of[it] = (uint32_t)(run - (struct delta_run *)host);
    }
    a->run = (const struct delta_run *)device;
    a->run_of = (const uint32_t *)((const uint8_t *)device + run_bytes);
    return true;
}

static dim3 row_grid(uint32_t n_warp)
{
    return dim3((n_warp + ROW_WARPS - 1) / ROW_WARPS);
}

void cuda_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    struct cuda_backend *const cuda = (struct cuda_backend *)backend;
    if (!args->n_token) return;
    if (args->dim_k > HEAD_DIM_MAX) {
        fail(cuda, "delta net: key heads of more than 256 dimensions");
        return;
    }
    assert(args->n_head_v % args->n_head_k == 0 && args->n_tap >= 1);
    struct delta_launch a;
    memset(&a, 0, sizeof(a));
    a.qkv = args->qkv;
    a.z = args->z;
    a.beta = args->beta;
    a.alpha = args->alpha;
    a.conv_w = args->conv_w;
    a.ssm_a = args->ssm_a;
    a.ssm_dt = args->ssm_dt;
    a.norm = args->norm;
    a.out = args->out;
    a.eps = args->eps;
    a.scale = 1.0f / sqrtf((float)args->dim_k);
    a.n_token = args->n_token;
    a.n_tap = args->n_tap;
    a.n_head_k = args->n_head_k;
    a.n_head_v = args->n_head_v;
    a.dim_k = args->dim_k;
    a.dim_v = args->dim_v;
    a.conv_dim = 2 * args->n_head_k * args->dim_k + args->n_head_v * args->dim_v;
    a.grouped = args->grouped;

    uint32_t n_run = 0;
    for (uint32_t it = 0; it < args->n_token; it++)
        n_run += starts_run(args, it);
    const size_t n_gate = (size_t)args->n_token * args->n_head_v;
    a.convolved = (float *)scratch(cuda, (size_t)args->n_token * a.conv_dim * sizeof(float));
    a.decay = (float *)scratch(cuda, 2 * n_gate * sizeof(float));
    if (!a.convolved || !a.decay || !stage_runs(cuda, args, n_run, &a)) return;
    a.update_rate = a.decay + n_gate;

    const uint32_t rows_per_cta = STATE_WARPS * STATE_ROWS;
    launch(cuda, convolve, row_grid(args->n_token * (2 * args->n_head_k + args->n_head_v)),
           dim3(ROW_WARPS * WARP), 0, a);
    launch(cuda, choose_recur(args->dim_k),
           dim3((args->dim_v + rows_per_cta - 1) / rows_per_cta, args->n_head_v, n_run),
           dim3(STATE_WARPS * WARP), 0, a);
    launch(cuda, finish, row_grid(args->n_token * args->n_head_v), dim3(ROW_WARPS * WARP), 0, a);
}
