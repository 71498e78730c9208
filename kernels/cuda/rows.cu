/* Operations on rows that hold no product: embedding, RMSNorm, gathering, copies. All are bound by
 * memory; each reads and writes its rows once. */
#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/cuda/decode.cuh"

struct embed_args {
    const uint8_t *table;
    size_t row_bytes;
    const int32_t *ids; /* [n_token] */
    float *x;           /* [n_token][n] */
    uint32_t n, block_elems, block_bytes;
    enum tensor_type type;
    float scale;
};

/* Grid (n_token, columns / threads). */
KERNEL(256) embed_kernel(const struct embed_args a)
{
    const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x, it = blockIdx.x;
    if (i >= a.n) return;
    const uint8_t *row = a.table + (size_t)a.ids[it] * a.row_bytes;
    a.x[(size_t)it * a.n + i] =
        decode_weight(a.type, a.block_elems, a.block_bytes, row, i) * a.scale;
}

struct rms_norm_args {
    const float *x, *norm;
    float *y; /* [n_row][n]; may be x */
    uint32_t n;
    float eps;
};

/* A warp per row, since the order of the sum is that of 32 lanes. Grid (n_row). */
KERNEL(32) rms_norm_kernel(const struct rms_norm_args a)
{
    const float *x = a.x + (size_t)blockIdx.x * a.n;
    float *y = a.y + (size_t)blockIdx.x * a.n;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.n; i += WARP)
        sum = fmaf(x[i], x[i], sum);
    const float scale = 1.0f / sqrtf(lanes_sum(sum) / (float)a.n + a.eps);
    for (uint32_t i = threadIdx.x; i < a.n; i += WARP)
        y[i] = x[i] * scale * a.norm[i];
}

struct gather_args {
    const float *x;
    const uint32_t *rows; /* [n_row] */
    float *y;             /* [n_row][n]; of copy_rows as x */
    uint32_t n;
};

/* Grid (n_row, columns / threads). */
KERNEL(256) gather_kernel(const struct gather_args a)
{
    const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < a.n) a.y[(size_t)blockIdx.x * a.n + i] = a.x[(size_t)a.rows[blockIdx.x] * a.n + i];
}

/* Likewise. x may be in the host's memory: a warp reads 128 bytes of it at once. */
KERNEL(256) copy_rows_kernel(const struct gather_args a)
{
    const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    const size_t row = (size_t)a.rows[blockIdx.x] * a.n;
    if (i < a.n) a.y[row + i] = a.x[row + i];
}

struct copy_args {
    uint8_t *to;
    const uint8_t *from;
    size_t n_bytes;
};

/* 16 bytes a thread where both sides are aligned, else one. */
template <class T> KERNEL(256) copy_kernel(const struct copy_args a)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    const size_t self = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t n_whole = a.n_bytes / sizeof(T);
    for (size_t i = self; i < n_whole; i += step)
        ((T *)a.to)[i] = ((const T *)a.from)[i];
    for (size_t i = n_whole * sizeof(T) + self; i < a.n_bytes; i += step)
        a.to[i] = a.from[i];
}

static uint32_t ceil_div(size_t n, uint32_t by)
{
    return (uint32_t)((n + by - 1) / by);
}

cudaError_t cuda_probe_rows(void)
{
    struct cudaFuncAttributes attributes;
    register_kernel(embed_kernel);
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(embed_kernel));
}

/* A thread per column, up to 256. */
static dim3 threads_for(uint32_t n)
{
    return dim3(n < 256 ? ceil_div(n, WARP) * WARP : 256);
}

void cuda_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                uint32_t n_token, float scale, float *x)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    const struct tensor_type_info *info = tensor_type_info(table->type);
    struct embed_args args = {};
    args.table = (const uint8_t *)table->data;
    args.row_bytes = table->row_bytes;
    args.ids = (const int32_t *)stage(cuda, ids, n_token * sizeof(*ids));
    args.x = x;
    args.n = table->n_col;
    args.block_elems = info->block_elems;
    args.block_bytes = info->block_bytes;
    args.type = table->type;
    args.scale = scale;
    if (args.ids)
        launch(cuda, embed_kernel, dim3(n_token, ceil_div(args.n, 256)), threads_for(args.n), 0,
               args);
}

void cuda_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                   uint32_t n_token, uint32_t n, float *y)
{
    struct rms_norm_args args = {};
    args.x = x;
    args.norm = norm;
    args.y = y;
    args.n = n;
    args.eps = eps;
    launch((struct cuda_backend *)backend, rms_norm_kernel, dim3(n_token), dim3(WARP), 0, args);
}

static void launch_rows(struct backend *backend, void (*kernel)(struct gather_args), const float *x,
                        const uint32_t *rows, uint32_t n_row, uint32_t n, float *y)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    struct gather_args args = {};
    args.x = x;
    args.rows = (const uint32_t *)stage(cuda, rows, n_row * sizeof(*rows));
    args.y = y;
    args.n = n;
    if (args.rows) launch(cuda, kernel, dim3(n_row, ceil_div(n, 256)), threads_for(n), 0, args);
}

void cuda_gather(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                 uint32_t n, float *y)
{
    launch_rows(backend, gather_kernel, x, rows, n_row, n, y);
}

void cuda_copy_rows(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                    uint32_t n, float *y)
{
    launch_rows(backend, copy_rows_kernel, x, rows, n_row, n, y);
}

void cuda_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    const struct copy_args args = {(uint8_t *)to, (const uint8_t *)from, n_bytes};
    const bool aligned = !((uintptr_t)to % 16) && !((uintptr_t)from % 16);
    const uint32_t n_block_max = 4 * n_multiprocessor(cuda);
    const uint32_t n_block = ceil_div(n_bytes, 256 * 16);
    const dim3 grid(n_block < n_block_max ? n_block : n_block_max);
    if (n_bytes)
        launch(cuda, aligned ? copy_kernel<uint4> : copy_kernel<uint8_t>, grid, dim3(256), 0, args);
}
