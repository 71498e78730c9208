/* Products of one matrix with many rows: a grid of tiles. */
#include "kernels/cuda/gemm.cuh"

#include "kernels/cuda/linear.cuh"

struct gemm_args {
    struct gemm_weight w;
    const uint8_t *act; /* [n_token] rows of the type's form */
    const float *bias;  /* or NULL */
    float *residual;    /* residual[t][n_row] += y; or NULL */
    float *y;
    uint64_t y_stride;
    uint32_t n_token, pad;
};

/* The columns of a tile are neighbouring tokens. */
struct token_columns {
    const struct gemm_args *a;
    uint32_t first;
    size_t act_row_bytes;

    MEMBER const uint8_t *act(uint32_t column) const
    {
        return a->act + (first + column) * act_row_bytes;
    }
    MEMBER void store(uint32_t column, uint32_t row, float value) const
    {
        if (a->bias) value += a->bias[row];
        if (a->residual)
            a->residual[(size_t)(first + column) * a->w.n_row + row] += value;
        else
            a->y[(first + column) * a->y_stride + row] = value;
    }
};

/* Grid (tiles of columns, tiles of rows): blocks that share weights run side by side. */
template <int TYPE, int NT> KERNEL(GEMM_THREADS, 2) gemm_kernel(const struct gemm_args a)
{
    __shared__ __align__(16) struct gemm_shared<NT> shared;
    const uint32_t first = blockIdx.x * gemm_columns(NT);
    const token_columns columns = {&a, first, act_bytes(act_of(TYPE), a.w.n_col)};
    gemm_tile<TYPE, NT>(a.w, blockIdx.y * GEMM_ROWS, min(a.n_token - first, gemm_columns(NT)),
                        columns, &shared);
}

template <int TYPE>
static void launch_tiles(struct cuda_backend *cuda, const struct gemm_args &args)
{
    enum { NT = gemm_nt_max(TYPE) };
    const bool narrow = args.n_token <= gemm_columns(1);
    const uint32_t width = gemm_columns(narrow ? 1 : NT);
    const dim3 grid((args.n_token + width - 1) / width, (args.w.n_row + GEMM_ROWS - 1) / GEMM_ROWS);
    launch(cuda, narrow ? gemm_kernel<TYPE, 1> : gemm_kernel<TYPE, NT>, grid, dim3(GEMM_THREADS), 0,
           args);
}

void launch_gemm(struct cuda_backend *cuda, const struct weight *w, const uint8_t *act,
                 uint32_t n_token, const float *bias, float *y, size_t y_stride, float *residual)
{
    struct gemm_args args = {};
    args.w.data = static_cast<const uint8_t *>(w->data);
    args.w.row_bytes = w->row_bytes;
    args.w.n_row = w->n_row;
    args.w.n_col = w->n_col;
    args.act = act;
    args.bias = bias;
    args.residual = residual;
    args.y = y;
    args.y_stride = y_stride;
    args.n_token = n_token;
    switch (w->type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        launch_tiles<TYPE>(cuda, args);                                                            \
        break;
        FOR_EACH_WEIGHT(CASE)
#undef CASE
    default:
        break;
    }
}
