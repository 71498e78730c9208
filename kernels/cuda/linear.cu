/* linear: products of several matrices with the same rows.
 *
 * Up to 8 rows that fit into shared memory: one grid over the rows of all the matrices, a warp to a
 * row of weights (dot.cuh). It is bound by the weights' bytes, which are read once. The grid is
 * what the device holds at a time, and its warps stride over the rows, so that no block waits for
 * another to end. A single row of activations is normed and quantized by every block for itself: a
 * launch of its own would take longer. Several are prepared once (quantize.cu) and copied.
 *
 * Else tiles (gemm.cu), a grid for each matrix; in the FAST mode, where rows are many,
 * fast_linear.cu. */
#include "kernels/cuda/linear.cuh"

#include "kernels/cuda/fast_linear.cuh"
#include "kernels/cuda/quantize.cuh"

static const uint32_t GEMV_WARPS = 8, GEMV_TOKENS_MAX = 8;
static const size_t GEMV_SHARED_BYTES_MAX = 47 << 10; /* with static ones: 48, as any device has */

/* Blocks that a multiprocessor holds at a time, by their registers: as many accumulators and
 * addresses as rows of activations. */
static constexpr uint32_t gemv_blocks(uint32_t n_token)
{
    return n_token <= 4 ? 3 : 2;
}

struct gemv_args {
    struct {
        const uint8_t *w;
        const float *bias; /* or NULL */
        float *y;
        uint64_t row_bytes, y_stride;
        uint32_t n_row;
        int type;
    } out[LINEAR_MAX];
    struct act_rows act; /* prepared rows; all NULL: the kernel prepares x */
    const float *x, *norm;
    float *residual; /* residual[t][n_row] += y; or NULL */
    int32_t *not_finite;
    float eps;
    uint32_t n_token, n_col, n_row; /* n_row: of all outputs */
    unsigned types, pad;
};

/* Puts the activations into shared memory: the rows of each type, one type after the other. */
DEVICE void gather_activations(const struct gemv_args &a, uint8_t *shared, struct act_rows *out)
{
    const uint32_t warp = threadIdx.x / WARP;
#pragma unroll
    for (int act = 0; act < ACT_TYPE_COUNT; act++) {
        out->row[act] = a.types >> act & 1 ? shared : nullptr;
        if (out->row[act]) shared += a.n_token * act_bytes((enum act_type)act, a.n_col);
    }
    if (a.x) {
        __shared__ float scale;
        if (a.norm) {
            if (warp == 0) {
                const float value = rms_scale(a.x, a.n_col, a.eps);
                if (threadIdx.x == 0) scale = value;
            }
            __syncthreads();
        }
        for (uint32_t b = warp; b < (a.n_col + QK - 1) / QK; b += GEMV_WARPS)
            prepare_block(a.x, a.norm, a.norm ? scale : 1.0f, a.n_col, b, *out, a.not_finite,
                          NOT_FINITE_LINEAR);
    } else {
#pragma unroll
        for (int act = 0; act < ACT_TYPE_COUNT; act++) {
            if (!out->row[act]) continue;
            const uint32_t n = (uint32_t)(a.n_token * act_bytes((enum act_type)act, a.n_col) / 16);
            for (uint32_t i = threadIdx.x; i < n; i += GEMV_WARPS * WARP)
                reinterpret_cast<uint4 *>(out->row[act])[i] =
                    reinterpret_cast<const uint4 *>(a.act.row[act])[i];
        }
    }
    __syncthreads();
}

/* Lane t gets what the caller has for row t. */
template <int N> DEVICE float value_of_lane(const float *y)
{
    float value = y[0];
#pragma unroll
    for (int t = 1; t < N; t++)
        if (lane_of() == t) value = y[t];
    return value;
}

template <int TYPE, int N>
DEVICE float gemv_row(const uint8_t *row, const struct act_rows &act, uint32_t n_token,
                      uint32_t n_col)
{
    const enum act_type form = act_of(TYPE);
    const uint8_t *rows[N];
    float y[N];
#pragma unroll
    for (int t = 0; t < N; t++) /* those that are not there: the last once more */
        rows[t] = act.row[form] + min((uint32_t)t, n_token - 1) * act_bytes(form, n_col);
    warp_dot<TYPE, N>(row, rows, n_col, y);
    return value_of_lane<N>(y);
}

/* N: rows of activations at most. */
template <int N> KERNEL(GEMV_WARPS *WARP, gemv_blocks(N)) gemv_kernel(const struct gemv_args a)
{
    DYNAMIC_SHARED(uint8_t, shared);
    struct act_rows act;
    gather_activations(a, shared, &act);
    const uint32_t n_warp = gridDim.x * GEMV_WARPS, lane = (uint32_t)lane_of();
    for (uint32_t i = blockIdx.x * GEMV_WARPS + threadIdx.x / WARP; i < a.n_row; i += n_warp) {
        uint32_t r = i, k = 0;
        while (r >= a.out[k].n_row)
            r -= a.out[k++].n_row;
        const uint8_t *row = a.out[k].w + r * a.out[k].row_bytes;
        float value = 0.0f;
        switch (a.out[k].type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        value = gemv_row<TYPE, N>(row, act, a.n_token, a.n_col);                                   \
        break;
            FOR_EACH_WEIGHT(CASE)
#undef CASE
        default:
            break;
        }
        if (lane >= a.n_token) continue;
        if (a.out[k].bias) value += a.out[k].bias[r];
        if (a.residual)
            a.residual[(size_t)lane * a.out[k].n_row + r] += value;
        else
            a.out[k].y[lane * a.out[k].y_stride + r] = value;
    }
}

typedef void (*gemv_fn)(const struct gemv_args);

static gemv_fn gemv_kernel_for(uint32_t n_token)
{
    if (n_token == 1) return gemv_kernel<1>;
    if (n_token == 2) return gemv_kernel<2>;
    return n_token <= 4 ? gemv_kernel<4> : gemv_kernel<8>;
}

/* Bytes of shared memory that hold the activations of a call in each type. */
static size_t gemv_shared_bytes(const struct linear_args *linear, unsigned types)
{
    size_t n_bytes = 0;
    for (int act = 0; act < ACT_TYPE_COUNT; act++)
        if (types >> act & 1)
            n_bytes += linear->n_token * act_bytes((enum act_type)act, linear->n_col);
    return n_bytes;
}

static void launch_gemv(struct cuda_backend *cuda, const struct linear_args *linear, float *y,
                        size_t y_stride, float *residual, unsigned types)
{
    struct gemv_args args = {};
    for (uint32_t i = 0; i < linear->n_out; i++) {
        const struct weight *w = linear->out[i].w;
        args.out[i].w = static_cast<const uint8_t *>(w->data);
        args.out[i].bias = linear->out[i].bias;
        args.out[i].y = i ? linear->out[i].y : y;
        args.out[i].row_bytes = w->row_bytes;
        args.out[i].y_stride = i ? linear->out[i].y_stride : y_stride;
        args.out[i].n_row = w->n_row;
        args.out[i].type = w->type;
        args.n_row += w->n_row;
    }
    args.residual = residual;
    args.not_finite = not_finite_flag(cuda);
    args.n_token = linear->n_token;
    args.n_col = linear->n_col;
    args.types = types;
    /* Where the rows are also what is added to, a block must not read what another has written. */
    if (linear->n_token == 1 && linear->x != residual) {
        args.x = linear->x;
        args.norm = linear->norm;
        args.eps = linear->eps;
    } else if (!prepare_activations(cuda, NOT_FINITE_LINEAR, linear->x, linear->n_token,
                                    linear->n_col, linear->norm, linear->eps, types, &args.act)) {
        return;
    }
    const uint32_t n_block = (args.n_row + GEMV_WARPS - 1) / GEMV_WARPS;
    const uint32_t n_resident = gemv_blocks(linear->n_token) * n_multiprocessor(cuda);
    launch(cuda, gemv_kernel_for(linear->n_token),
           dim3(n_block < n_resident ? n_block : n_resident), dim3(GEMV_WARPS * WARP),
           gemv_shared_bytes(linear, types), args);
}

static void launch_gemms(struct cuda_backend *cuda, const struct linear_args *linear, float *y,
                         size_t y_stride, float *residual)
{
    struct act_rows act;
    struct fast_rows fast;
    unsigned types = 0;
    bool any_fast = false;
    for (uint32_t i = 0; i < linear->n_out; i++) {
        const enum tensor_type type = linear->out[i].w->type;
        if (fast_takes(cuda, type, linear->n_token))
            any_fast = true;
        else
            types |= 1u << act_of(type);
    }
    if (types && !prepare_activations(cuda, NOT_FINITE_LINEAR, linear->x, linear->n_token,
                                      linear->n_col, linear->norm, linear->eps, types, &act))
        return;
    if (any_fast && !fast_prepare(cuda, NOT_FINITE_LINEAR, linear->x, linear->n_token,
                                  linear->n_col, linear->norm, linear->eps, &fast))
        return;
    for (uint32_t i = 0; i < linear->n_out; i++) {
        const struct weight *w = linear->out[i].w;
        float *const to = i ? linear->out[i].y : y;
        const size_t to_stride = i ? linear->out[i].y_stride : y_stride;
        if (fast_takes(cuda, w->type, linear->n_token))
            fast_multiply(cuda, w, &fast, linear->out[i].bias, to, to_stride, residual);
        else
            launch_gemm(cuda, w, act.row[act_of(w->type)], linear->n_token, linear->out[i].bias, to,
                        to_stride, residual);
    }
}

/* ---- whole rows ---- */

struct finish_args {
    const float *post_norm;
    float *residual; /* [n_token][n] or NULL: y is overwritten */
    float *y;        /* [n_token][y_stride] */
    uint64_t y_stride;
    uint32_t n;
    float eps;
};

/* Grid (n_token). */
KERNEL(256) finish_kernel(const struct finish_args a)
{
    __shared__ float scale;
    float *y = a.y + blockIdx.x * a.y_stride;
    float *to = a.residual ? a.residual + (size_t)blockIdx.x * a.n : y;
    if (a.post_norm) {
        if (threadIdx.x < WARP) {
            const float value = rms_scale(y, a.n, a.eps);
            if (threadIdx.x == 0) scale = value;
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        float value = y[i];
        if (a.post_norm) value = value * scale * a.post_norm[i];
        to[i] = a.residual ? to[i] + value : value;
    }
}

void finish_rows(struct cuda_backend *cuda, const struct epilogue *epilogue, uint32_t n_token,
                 uint32_t n, float *y, size_t y_stride)
{
    if (!epilogue->post_norm && !epilogue->residual) return;
    struct finish_args args = {};
    args.post_norm = epilogue->post_norm;
    args.residual = epilogue->residual;
    args.y = y;
    args.y_stride = y_stride;
    args.n = n;
    args.eps = epilogue->eps;
    launch(cuda, finish_kernel, dim3(n_token), dim3(256), 0, args);
}

/* ---- the operation ---- */

void cuda_linear(struct backend *backend, const struct linear_args *args)
{
    struct cuda_backend *cuda = reinterpret_cast<struct cuda_backend *>(backend);
    const uint32_t n_token = args->n_token;
    if (!n_token) return;
    unsigned types = 0;
    for (uint32_t i = 0; i < args->n_out; i++)
        types |= 1u << act_of(args->out[i].w->type);
    const struct epilogue *epilogue = &args->epilogue;
    float *y = args->out[0].y;
    size_t y_stride = args->out[0].y_stride;
    if (epilogue->residual && epilogue->post_norm) { /* the row must be whole before it is added */
        y_stride = args->out[0].w->n_row;
        y = static_cast<float *>(scratch(cuda, n_token * y_stride * sizeof(float)));
        if (!y) return;
    }
    float *residual = epilogue->post_norm ? NULL : epilogue->residual;
    if (n_token <= GEMV_TOKENS_MAX && gemv_shared_bytes(args, types) <= GEMV_SHARED_BYTES_MAX)
        launch_gemv(cuda, args, y, y_stride, residual, types);
    else
        launch_gemms(cuda, args, y, y_stride, residual);
    if (epilogue->post_norm)
        finish_rows(cuda, epilogue, n_token, args->out[0].w->n_row, y, y_stride);
}
