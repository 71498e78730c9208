/* What the launches of ffn share: a tile of pairs of a row and an expert, and where its matrices,
 * inputs and outputs are. ffn.cu makes the plan and sets the pieces in order, ffn_gemv.cu and
 * ffn_gemm.cu multiply. */
#ifndef LEAN_KERNELS_CUDA_FFN_CUH
#define LEAN_KERNELS_CUDA_FFN_CUH

#include "kernels/cuda/quantize.cuh"

enum { FFN_WARPS = 8, FFN_THREADS = FFN_WARPS * WARP };

/* Pairs of a tile, at most. Up to FEW a warp goes through a row of weights once for all of them,
 * more are multiplied by tiles of gemm.cuh. */
enum tile_pairs { TILE_ONE = 1, TILE_FEW = 4, TILE_NARROW = 16, TILE_WIDE = 64 };

/* Pairs that go through one expert. */
struct tile {
    uint32_t expert;
    uint32_t first, n; /* into the part's list of pairs */
};

/* The routed experts, or the shared network for all rows. Pair p is of row p / n_used. */
struct part {
    const struct expert_view *table; /* by expert; NULL: the one `view` */
    struct expert_view view;
    size_t gate_bytes, up_bytes, down_bytes; /* from weight row to weight row */
    const uint8_t *gate_x, *up_x;            /* rows of activations */
    size_t gate_x_bytes, up_x_bytes;
    float *h; /* [n_pair][n_ff] */
    uint8_t *h_act;
    size_t h_act_bytes;
    float *out; /* [n_pair][n_embd] */

    const struct tile *tile; /* [*n_tile], with pair; NULL: tile_pairs consecutive pairs each, */
    const uint32_t *n_tile;  /* all of expert ids[tile] */
    const uint32_t *pair;
    const int32_t *ids;
    uint32_t n_tile_max, tile_pairs;
    uint32_t n_pair, n_used;
    uint32_t n_ff, n_embd;
};

/* false: there is no such tile. */
DEVICE bool find_tile(const struct part &part, uint32_t index, struct tile *tile)
{
    if (part.tile) {
        if (index >= *part.n_tile) return false;
        *tile = part.tile[index];
        return true;
    }
    tile->expert = part.ids ? (uint32_t)part.ids[index] : 0;
    tile->first = index * part.tile_pairs;
    tile->n = min(part.n_pair - tile->first, part.tile_pairs);
    return true;
}

DEVICE uint32_t pair_of(const struct part &part, uint32_t place)
{
    return part.pair ? part.pair[place] : place;
}

enum rows {
    ROWS_GATE_UP, /* h = silu(gate) * up */
    ROWS_GATE,    /* h = gate: the types of gate and up differ */
    ROWS_UP,      /* h = silu(h) * up */
    ROWS_DOWN     /* out = down */
};

/* Rows of up to two parts whose weights have one type. */
struct rows_args {
    struct part part[2];
    uint32_t n_tile_first; /* tiles of part[0]; the rest of the grid is part[1]'s */
    uint32_t rows;         /* enum rows */
};

/* Work along one side of the grid, one piece for each warp. */
DEVICE uint32_t warp_index(uint32_t block)
{
    return block * FFN_WARPS + threadIdx.x / WARP;
}

struct combine_args {
    const float *weights, *out;  /* [n_token][n_used], [n_token * n_used][n_embd] */
    const float *gates, *shared; /* [n_token] or NULL: not gated; [n_token][n_embd] or NULL */
    float *y;                    /* [n_token][n_embd]; or NULL and */
    float *residual;             /* added to this */
    uint32_t n_used, n_embd;
};

/* One value of a row: its experts' products, `step` floats apart, then the shared network's. */
DEVICE float combined(const struct combine_args &a, size_t it, const float *out, size_t step,
                      const float *shared)
{
    float y = 0.0f;
    for (uint32_t rank = 0; rank < a.n_used; rank++)
        y = fmaf(a.weights[it * a.n_used + rank], out[rank * step], y);
    if (!shared) return y;
    return a.gates ? fmaf(a.gates[it], *shared, y) : y + *shared;
}

DEVICE void put_combined(const struct combine_args &a, size_t at, float value)
{
    if (a.y)
        a.y[at] = value;
    else
        a.residual[at] += value;
}

/* One row whose experts' output weights have one type: down and combine in a launch. */
struct down_combine_args {
    struct part part[2];
    struct combine_args combine;
};

/* ---- the kernels, by type of weights ---- */

typedef void (*rows_kernel)(struct rows_args);
typedef void (*down_combine_kernel)(struct down_combine_args);

/* For tiles up to TILE_FEW: grid (tiles, rows / FFN_WARPS), blocks of FFN_THREADS. */
rows_kernel rows_gemv_kernel_of(enum tensor_type type, enum rows rows, enum tile_pairs tile_pairs);
/* For larger ones: grid (tiles, rows / GEMM_ROWS), blocks of GEMM_THREADS. */
rows_kernel rows_gemm_kernel_of(enum tensor_type type, enum tile_pairs tile_pairs);
/* Grid (rows / DOWN_ROWS), blocks of FFN_THREADS, shared memory for the products: DOWN_ROWS floats
 * for each unit. */
enum { DOWN_ROWS = 4 };
down_combine_kernel down_combine_kernel_of(enum tensor_type type);

#endif
