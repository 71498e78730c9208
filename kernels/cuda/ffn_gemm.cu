/* ffn's products for tiles of many pairs: gemm.cuh, with the rows of a tile's pairs as columns. */
#include "kernels/cuda/ffn.cuh"
#include "kernels/cuda/gemm.cuh"

/* A matrix of a tile, its input and its output. */
struct tile_product {
    struct gemm_weight w;
    const uint8_t *x;
    size_t x_bytes;
    float *out;
};

DEVICE struct tile_product product_of(const struct part &part, const struct expert_view &view,
                                      bool down, bool up)
{
    const uint8_t *const gate = (const uint8_t *)view.gate;
    if (down)
        return {{(const uint8_t *)view.down, part.down_bytes, part.n_embd, part.n_ff},
                part.h_act,
                part.h_act_bytes,
                part.out};
    if (!up)
        return {{gate, part.gate_bytes, part.n_ff, part.n_embd},
                part.gate_x,
                part.gate_x_bytes,
                part.h};
    return {{view.up ? (const uint8_t *)view.up : gate + part.n_ff * part.gate_bytes, part.up_bytes,
             part.n_ff, part.n_embd},
            part.up_x,
            part.up_x_bytes,
            part.h};
}

/* The columns of a tile from `first` on, for gemm_tile; what it points to is in shared memory, so
 * that the multiplying loop keeps none of it in registers. */
struct pair_columns {
    const struct tile_product *product;
    const uint32_t *row, *pair; /* of x, of out */
    uint32_t first;
    bool swiglu;

    MEMBER const uint8_t *act(uint32_t column) const
    {
        return product->x + row[first + column] * product->x_bytes;
    }
    MEMBER void store(uint32_t column, uint32_t r, float value) const
    {
        float *const to = product->out + (size_t)pair[first + column] * product->w.n_row + r;
        *to = swiglu ? exact_silu(*to) * value : value;
    }
};

/* GEMM_ROWS rows of a tile, as many pairs at a time as the type has room for. Gate and up go one
 * after the other through h, where each thread finds its own values again. */
template <int TYPE, int NT> KERNEL(GEMM_THREADS, 2) rows_gemm_kernel(const struct rows_args a)
{
    __shared__ __align__(16) struct gemm_shared<NT> shared;
    __shared__ uint32_t rows[TILE_WIDE], pairs[TILE_WIDE];
    __shared__ struct tile_product product;
    const bool first = blockIdx.x < a.n_tile_first, down = a.rows == ROWS_DOWN;
    const struct part &part = first ? a.part[0] : a.part[1];
    const uint32_t n_row = down ? part.n_embd : part.n_ff, first_row = blockIdx.y * GEMM_ROWS;
    struct tile tile;
    if (first_row >= n_row) return;
    if (!find_tile(part, first ? blockIdx.x : blockIdx.x - a.n_tile_first, &tile)) return;
    if (threadIdx.x < tile.n) {
        const uint32_t pair = pair_of(part, tile.first + threadIdx.x);
        pairs[threadIdx.x] = pair;
        rows[threadIdx.x] = down ? pair : pair / part.n_used;
    }
    for (uint32_t i = 0; i < (a.rows == ROWS_GATE_UP ? 2u : 1u); i++) {
        const bool up = a.rows == ROWS_UP || i == 1;
        __syncthreads(); /* nobody needs the product before */
        if (threadIdx.x == 0)
            product = product_of(part, part.table ? part.table[tile.expert] : part.view, down, up);
        __syncthreads();
        for (uint32_t c = 0; c < tile.n; c += gemm_columns(NT)) {
            const struct pair_columns columns = {&product, rows, pairs, c, up};
            gemm_tile<TYPE, NT>(product.w, first_row, min(tile.n - c, gemm_columns(NT)), columns,
                                &shared);
        }
    }
}

/* A tile of a float type multiplies 8 columns at a time whatever its width. */
template <int TYPE> static rows_kernel kernel_of(enum tile_pairs tile_pairs)
{
    enum { NT = act_of(TYPE) == ACT_F32 ? 1 : gemm_nt_max(TYPE) };
    return tile_pairs == TILE_NARROW ? rows_gemm_kernel<TYPE, 1> : rows_gemm_kernel<TYPE, NT>;
}

rows_kernel rows_gemm_kernel_of(enum tensor_type type, enum tile_pairs tile_pairs)
{
    switch ((int)type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        return kernel_of<TYPE>(tile_pairs);
        FOR_EACH_WEIGHT(CASE)
#undef CASE
    }
    return NULL;
}
