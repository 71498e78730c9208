/* ffn's products for tiles of few pairs: a warp to a row of weights. */
#include "kernels/cuda/ffn.cuh"

/* Products of one weight row with the activation rows of a tile; lane i < n gets that of pair i. */
template <int TYPE, int N>
DEVICE float tile_dots(const uint8_t *row, const uint8_t *const *x, uint32_t n, uint32_t n_col)
{
    float y[N];
    if (N > 1 && n == 1) {
        warp_dot<TYPE, 1>(row, x, n_col, y);
        return y[0];
    }
    warp_dot<TYPE, N>(row, x, n_col, y);
    float mine = y[0];
#pragma unroll
    for (int i = 1; i < N; i++)
        mine = lane_of() == i ? y[i] : mine;
    return mine;
}

/* One row of gate and up for each warp. */
template <int TYPE, int N> KERNEL(FFN_THREADS) hidden_kernel(const struct rows_args a)
{
    const bool first = blockIdx.x < a.n_tile_first;
    const struct part &part = first ? a.part[0] : a.part[1];
    const uint32_t row = warp_index(blockIdx.y), lane = threadIdx.x % WARP;
    struct tile tile;
    if (row >= part.n_ff) return;
    if (!find_tile(part, first ? blockIdx.x : blockIdx.x - a.n_tile_first, &tile)) return;
    const struct expert_view view = part.table ? part.table[tile.expert] : part.view;
    const uint8_t *const gate = (const uint8_t *)view.gate;
    const uint8_t *const up =
        view.up ? (const uint8_t *)view.up : gate + part.n_ff * part.gate_bytes;
    const uint8_t *gate_x[N], *up_x[N];
    for (uint32_t i = 0; i < N; i++) { /* beyond the tile: its first pair again */
        const uint32_t it = pair_of(part, tile.first + (i < tile.n ? i : 0)) / part.n_used;
        gate_x[i] = part.gate_x + it * part.gate_x_bytes;
        up_x[i] = part.up_x + it * part.up_x_bytes;
    }
    float g = 0.0f, u = 0.0f;
    if (a.rows != ROWS_UP)
        g = tile_dots<TYPE, N>(gate + row * part.gate_bytes, gate_x, tile.n, part.n_embd);
    if (a.rows != ROWS_GATE)
        u = tile_dots<TYPE, N>(up + row * part.up_bytes, up_x, tile.n, part.n_embd);
    if (lane >= tile.n) return;
    float *const h = part.h + (size_t)pair_of(part, tile.first + lane) * part.n_ff + row;
    if (a.rows == ROWS_UP) g = *h;
    *h = a.rows == ROWS_GATE ? g : exact_silu(g) * u;
}

/* One output row for each warp. */
template <int TYPE, int N> KERNEL(FFN_THREADS) down_kernel(const struct rows_args a)
{
    const bool first = blockIdx.x < a.n_tile_first;
    const struct part &part = first ? a.part[0] : a.part[1];
    const uint32_t row = warp_index(blockIdx.y), lane = threadIdx.x % WARP;
    struct tile tile;
    if (row >= part.n_embd) return;
    if (!find_tile(part, first ? blockIdx.x : blockIdx.x - a.n_tile_first, &tile)) return;
    const struct expert_view view = part.table ? part.table[tile.expert] : part.view;
    const uint8_t *x[N];
    for (uint32_t i = 0; i < N; i++)
        x[i] = part.h_act + pair_of(part, tile.first + (i < tile.n ? i : 0)) * part.h_act_bytes;
    const uint8_t *const down = (const uint8_t *)view.down;
    const float y = tile_dots<TYPE, N>(down + row * part.down_bytes, x, tile.n, part.n_ff);
    if (lane < tile.n) part.out[(size_t)pair_of(part, tile.first + lane) * part.n_embd + row] = y;
}

/* One row whose experts' output weights have one type: down and combine in a launch. A block takes
 * DOWN_ROWS output rows, its warps the products of these with the units one after another. */
template <int TYPE> KERNEL(FFN_THREADS) down_and_combine(const struct down_combine_args a)
{
    DYNAMIC_SHARED(float, out); /* [units][DOWN_ROWS], the shared one last */
    const uint32_t n_used = a.combine.n_used, n_embd = a.combine.n_embd;
    const uint32_t n = (n_used + (a.combine.shared != NULL)) * DOWN_ROWS;
    const uint32_t first_row = blockIdx.x * DOWN_ROWS;
    for (uint32_t i = threadIdx.x / WARP; i < n; i += FFN_WARPS) {
        const uint32_t unit = i / DOWN_ROWS, row = first_row + i % DOWN_ROWS;
        if (row >= n_embd) continue;
        const bool routed = unit < n_used;
        const struct part &part = routed ? a.part[0] : a.part[1];
        const uint8_t *const down =
            (const uint8_t *)(routed ? part.table[part.ids[unit]].down : part.view.down);
        const uint8_t *const x = part.h_act + (routed ? unit * part.h_act_bytes : 0);
        float y;
        warp_dot<TYPE, 1>(down + row * part.down_bytes, &x, part.n_ff, &y);
        if (lane_of() == 0) out[i] = y;
    }
    __syncthreads();
    const uint32_t row = first_row + threadIdx.x;
    if (threadIdx.x >= DOWN_ROWS || row >= n_embd) return;
    put_combined(a.combine, row,
                 combined(a.combine, 0, out + threadIdx.x, DOWN_ROWS,
                          a.combine.shared ? out + n_used * DOWN_ROWS + threadIdx.x : NULL));
}

template <int TYPE> static rows_kernel kernel_of(enum rows rows, enum tile_pairs tile_pairs)
{
    if (rows == ROWS_DOWN)
        return tile_pairs == TILE_ONE ? down_kernel<TYPE, TILE_ONE> : down_kernel<TYPE, TILE_FEW>;
    return tile_pairs == TILE_ONE ? hidden_kernel<TYPE, TILE_ONE> : hidden_kernel<TYPE, TILE_FEW>;
}

rows_kernel rows_gemv_kernel_of(enum tensor_type type, enum rows rows, enum tile_pairs tile_pairs)
{
    switch ((int)type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        return kernel_of<TYPE>(rows, tile_pairs);
        FOR_EACH_WEIGHT(CASE)
#undef CASE
    }
    return NULL;
}

down_combine_kernel down_combine_kernel_of(enum tensor_type type)
{
    switch ((int)type) {
#define CASE(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        return down_and_combine<TYPE>;
        FOR_EACH_WEIGHT(CASE)
#undef CASE
    }
    return NULL;
}
