/* Tiles of weights to BF16, rows of activations to BF16, and the calls that multiply them. */
#include "kernels/cuda/fast_linear.cuh"

#include "kernels/cuda/cublas.cuh"
#include "kernels/cuda/quantize.cuh"

enum { DECODE_THREADS = 256, ROUND_WARPS = 8, BIAS_THREADS = 256, SWIGLU_THREADS = 256 };
/* Weights of a tile: 32 MiB, of which a large second-level cache keeps much until they are read. */
static const size_t TILE_ELEMENTS = (size_t)16 << 20;
/* A tile's rows are a multiple of this, if it has as many: what the next ones give is as aligned as
 * what the first do, and no piece that cuBLAS multiplies at a time is cut. */
enum { TILE_ROWS = 128 };

/* ---- weights ---- */

struct decode_args {
    const uint8_t *w; /* [n_row] rows, row_bytes apart */
    uint64_t row_bytes;
    uint16_t *out; /* [n_row][n_col] */
    uint32_t n_row, n_col;
};

DEVICE uint32_t pack_bf16(float low, float high)
{
    return float_to_bf16(low) | (uint32_t)float_to_bf16(high) << 16;
}

/* 16 values, 32-byte aligned. */
DEVICE void store_16(uint16_t *to, const float *value)
{
    uint32_t word[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        word[i] = pack_bf16(value[2 * i], value[2 * i + 1]);
    reinterpret_cast<uint4 *>(to)[0] = make_uint4(word[0], word[1], word[2], word[3]);
    reinterpret_cast<uint4 *>(to)[1] = make_uint4(word[4], word[5], word[6], word[7]);
}

/* Eight threads take 256 columns of a row as the lanes of a product do (weights.cuh): two groups of
 * 16 each. */
template <int TYPE> KERNEL(DECODE_THREADS) decode_blocks(const struct decode_args a)
{
    typedef slice<TYPE> weights;
    enum { K_QUANT = act_of(TYPE) == ACT_Q8_K };
    const uint32_t n_step = (a.n_col + QK - 1) / QK, task = blockIdx.x * DECODE_THREADS / 8;
    const uint32_t at = task + threadIdx.x / 8, row = at / n_step, step = at % n_step;
    const int s = (int)(threadIdx.x % 8);
    const uint32_t block = K_QUANT ? step : 8 * step + (uint32_t)s;
    if (row >= a.n_row || block >= a.n_col / weights::COLUMNS) return;
    weights w;
    w.load(a.w + row * a.row_bytes + (size_t)block * weights::BYTES, s);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const codes_16 codes = w.codes(s, i);
        float scale = w.d(), min = 0.0f, value[16];
        if constexpr (K_QUANT) {
            scale *= (float)w.scale(s, i);
            if constexpr (weights::HAS_MIN) min = -(w.dmin() * (float)w.min(s, i));
        } else if constexpr (weights::HAS_MIN) {
            min = w.m();
        }
#pragma unroll
        for (int k = 0; k < 16; k++)
            value[k] = fmaf(scale, (float)(int8_t)byte_of(codes.word[k / 4], k % 4), min);
        store_16(a.out + (size_t)row * a.n_col + QK * step + 16 * group_of<weights::PAIR>(s, i),
                 value);
    }
}

KERNEL(DECODE_THREADS) decode_f16(const struct decode_args a)
{
    const size_t at = (size_t)blockIdx.x * DECODE_THREADS + threadIdx.x;
    const uint32_t row = (uint32_t)(at / a.n_col), column = (uint32_t)(at % a.n_col);
    if (row >= a.n_row) return;
    a.out[at] = float_to_bf16(float_weight<TENSOR_F16>::at(a.w + row * a.row_bytes, column));
}

static void launch_decode(struct cuda_backend *cuda, enum tensor_type type,
                          const struct decode_args &args)
{
    const uint32_t n_step = (args.n_col + QK - 1) / QK;
    const dim3 threads(DECODE_THREADS);
    const dim3 blocks((args.n_row * n_step * 8 + DECODE_THREADS - 1) / DECODE_THREADS);
    switch ((int)type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        launch(cuda, decode_blocks<TYPE>, blocks, threads, 0, args);                               \
        break;
        FOR_EACH_QUANTIZED_WEIGHT(CASE)
#undef CASE
    default: /* TENSOR_F16 */
        launch(cuda, decode_f16,
               dim3((uint32_t)(((size_t)args.n_row * args.n_col + DECODE_THREADS - 1) /
                               DECODE_THREADS)),
               threads, 0, args);
        break;
    }
}

/* ---- activations ---- */

struct round_args {
    const float *x, *norm;
    uint16_t *out; /* [n_token][n_col] */
    int32_t *not_finite;
    uint32_t n_token, n_col;
    float eps;
    int where;
};

/* Grid (n_token, 256-blocks / ROUND_WARPS). */
KERNEL(ROUND_WARPS *WARP) round_rows(const struct round_args a)
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
    const uint32_t b = blockIdx.y * ROUND_WARPS + warp;
    if (b >= (a.n_col + QK - 1) / QK) return;
    eight_columns c = load_columns(x, a.n_col, b);
    if (a.norm) {
        const eight_columns weight = load_columns(a.norm, a.n_col, b);
#pragma unroll
        for (int i = 0; i < 8; i++)
            c.x[i] = c.x[i] * scale * weight.x[i];
    }
    note_not_finite(c, a.not_finite, a.where);
    const uint32_t first = QK * b + 8 * (uint32_t)lane_of();
    uint16_t *const out = a.out + (size_t)it * a.n_col + first;
    if (a.n_col % 8 == 0) { /* then rows are 16-byte aligned */
        if (first >= a.n_col) return;
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            word[i] = pack_bf16(c.x[2 * i], c.x[2 * i + 1]);
        *reinterpret_cast<uint4 *>(out) = make_uint4(word[0], word[1], word[2], word[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (first + i < a.n_col) out[i] = float_to_bf16(c.x[i]);
}

bool fast_prepare(struct cuda_backend *cuda, enum not_finite_where where, const float *x,
                  uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                  struct fast_rows *out)
{
    const size_t tile_elements = n_col < TILE_ELEMENTS ? TILE_ELEMENTS : n_col;
    out->n_token = n_token;
    out->n_col = n_col;
    out->x = (uint16_t *)scratch(cuda, (size_t)n_token * n_col * sizeof(uint16_t));
    out->tile = (uint16_t *)scratch(cuda, tile_elements * sizeof(uint16_t));
    if (!out->x || !out->tile) return false;
    struct round_args args = {};
    args.x = x;
    args.norm = norm;
    args.out = out->x;
    args.not_finite = not_finite_flag(cuda);
    args.n_token = n_token;
    args.n_col = n_col;
    args.eps = eps;
    args.where = where;
    const uint32_t n_block = (n_col + QK - 1) / QK;
    launch(cuda, round_rows, dim3(n_token, (n_block + ROUND_WARPS - 1) / ROUND_WARPS),
           dim3((uint32_t)ROUND_WARPS * WARP), 0, args);
    return true;
}

struct swiglu_args {
    const float *gate, *up; /* [n] */
    uint16_t *out;
    int32_t *not_finite;
    uint64_t n;
};

KERNEL(SWIGLU_THREADS) swiglu_rows(const struct swiglu_args a)
{
    const uint64_t i = (uint64_t)blockIdx.x * SWIGLU_THREADS + threadIdx.x;
    if (i >= a.n) return;
    const float h = exact_silu(a.gate[i]) * a.up[i];
    if (!is_finite(h)) *a.not_finite = NOT_FINITE_FFN_HIDDEN + 1;
    a.out[i] = float_to_bf16(h);
}

bool fast_swiglu(struct cuda_backend *cuda, const float *gate, const float *up, uint32_t n_token,
                 uint32_t n_ff, uint16_t *tile, struct fast_rows *out)
{
    const size_t n = (size_t)n_token * n_ff;
    out->n_token = n_token;
    out->n_col = n_ff;
    out->tile = tile;
    out->x = (uint16_t *)scratch(cuda, n * sizeof(uint16_t));
    if (!out->x) return false;
    const struct swiglu_args args = {gate, up, out->x, not_finite_flag(cuda), n};
    launch(cuda, swiglu_rows, dim3((uint32_t)((n + SWIGLU_THREADS - 1) / SWIGLU_THREADS)),
           dim3(SWIGLU_THREADS), 0, args);
    return true;
}

/* ---- products ---- */

struct bias_args {
    const float *bias; /* [n_row] */
    float *y;          /* [n_token][y_stride] */
    uint64_t y_stride;
    uint32_t n_row, unused;
};

/* Grid (n_token, rows / BIAS_THREADS). */
KERNEL(BIAS_THREADS) add_bias(const struct bias_args a)
{
    const uint32_t row = blockIdx.y * BIAS_THREADS + threadIdx.x;
    if (row < a.n_row) a.y[blockIdx.x * a.y_stride + row] += a.bias[row];
}

/* Rows of a tile. */
static uint32_t tile_rows(uint32_t n_col)
{
    const uint32_t n_fit = n_col > TILE_ELEMENTS ? 1 : (uint32_t)(TILE_ELEMENTS / n_col);
    return n_fit < TILE_ROWS ? n_fit : n_fit / TILE_ROWS * TILE_ROWS;
}

bool fast_takes(const struct cuda_backend *cuda, enum tensor_type type, uint32_t n_token)
{
    return cublas_of(cuda) && n_token >= FAST_ROWS_MIN && type != TENSOR_F32;
}

void fast_multiply(struct cuda_backend *cuda, const struct weight *w, const struct fast_rows *rows,
                   const float *bias, float *y, size_t y_stride, float *residual)
{
    struct cublas_product product = {};
    product.cuda = cuda;
    product.x = rows->x;
    product.y_stride = residual ? w->n_row : y_stride;
    product.n_col = w->n_col;
    product.n_token = rows->n_token;
    product.add = residual != NULL;
    float *const to = residual ? residual : y;
    const bool ready = w->type == TENSOR_BF16;
    const uint32_t step = ready ? w->n_row : tile_rows(w->n_col);
    product.w_stride = ready ? (uint32_t)(w->row_bytes / sizeof(uint16_t)) : w->n_col;
    for (uint32_t row = 0; row < w->n_row; row += step) {
        const uint8_t *const from = (const uint8_t *)w->data + row * w->row_bytes;
        product.n_row = w->n_row - row < step ? w->n_row - row : step;
        product.w = ready ? (const uint16_t *)from : rows->tile;
        product.y = to + row;
        if (!ready)
            launch_decode(cuda, w->type,
                          decode_args{from, w->row_bytes, rows->tile, product.n_row, w->n_col});
        cublas_multiply(cuda, &product);
    }
    if (!bias) return;
    const struct bias_args args = {bias, to, product.y_stride, w->n_row, 0};
    launch(cuda, add_bias, dim3(rows->n_token, (w->n_row + BIAS_THREADS - 1) / BIAS_THREADS),
           dim3(BIAS_THREADS), 0, args);
}
