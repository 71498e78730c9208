/* Preparing the activations of an operation: a block of threads per row and eight 256-blocks. */
#include "kernels/cuda/quantize.cuh"

struct prepare_args {
    const float *x, *norm;
    struct act_rows out;
    int32_t *not_finite;
    uint32_t n_token, n_col;
    float eps;
    int where;
};

static const uint32_t PREPARE_WARPS = 8;

/* Grid (n_token, 256-blocks / 8). */
KERNEL(PREPARE_WARPS *WARP) prepare_kernel(const struct prepare_args a)
{
    __shared__ float scale;
    const uint32_t it = blockIdx.x, warp = threadIdx.x / WARP;
    const float *x = a.x + (size_t)it * a.n_col;
    if (a.norm) {
        if (warp == 0) {
            const float value = rms_scale(x, a.n_col, a.eps);
            if (threadIdx.x == 0) scale = value;
        }
        __syncthreads();
    }
    const uint32_t b = blockIdx.y * PREPARE_WARPS + warp;
    if (b >= (a.n_col + QK - 1) / QK) return;
    struct act_rows out = a.out;
#pragma unroll
    for (int act = 0; act < ACT_TYPE_COUNT; act++)
        if (out.row[act]) out.row[act] += it * act_bytes((enum act_type)act, a.n_col);
    prepare_block(x, a.norm, a.norm ? scale : 1.0f, a.n_col, b, out, a.not_finite, a.where);
}

bool prepare_activations(struct cuda_backend *cuda, enum not_finite_where where, const float *x,
                         uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                         unsigned types, struct act_rows *out)
{
    struct prepare_args args = {};
    for (int act = 0; act < ACT_TYPE_COUNT; act++) {
        if (!(types >> act & 1)) continue;
        args.out.row[act] =
            static_cast<uint8_t *>(scratch(cuda, n_token * act_bytes((enum act_type)act, n_col)));
        if (!args.out.row[act]) return false;
    }
    args.x = x;
    args.norm = norm;
    args.not_finite = not_finite_flag(cuda);
    args.n_token = n_token;
    args.n_col = n_col;
    args.eps = eps;
    args.where = where;
    const uint32_t n_block = (n_col + QK - 1) / QK;
    launch(cuda, prepare_kernel, dim3(n_token, (n_block + PREPARE_WARPS - 1) / PREPARE_WARPS),
           dim3(PREPARE_WARPS * WARP), 0, args);
    *out = args.out;
    return true;
}
