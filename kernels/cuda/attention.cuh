/* What the ways to attend share: rows, tiles of queries, what they see, and the launches' argument.
 * attention.cu stages it, appends keys and values, and chooses the way; fast_attention.cu is one.
 */
#ifndef LEAN_KERNELS_CUDA_ATTENTION_CUH
#define LEAN_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/backend_cuda.cuh"

/* A row of the batch. Its sequence's blocks from number block_begin on are at block[table]. */
struct row_place {
    uint32_t pos, table, block_begin;
};

/* Consecutive queries of one sequence. Query n is query_begin + n of the sequence's, that is row
 * it_begin + n / group. */
struct query_tile {
    uint32_t it_begin, query_begin, n_query;
};

/* The argument of all kernels here. Names as in struct attention_args. */
struct attention_launch {
    const struct row_place *row;   /* [n_token] */
    const struct query_tile *tile; /* [n_tile] */
    uint8_t *const *block;
    const float *q_in, *k, *v, *gate;
    size_t q_stride, q_head_stride, gate_stride, gate_head_stride, kv_stride;
    const float *q_norm, *k_norm, *rope_cos, *rope_sin;
    float *q;       /* [n_token][n_head][head_dim], normed and rotated */
    float *out;     /* [n_token][n_head][head_dim]; attend_walk keeps its sums there */
    float *partial; /* [round_blocks][n_token][n_head][partial_stride] */
    float *joined;  /* [n_token][n_head][partial_stride]: the rounds before; NULL: only one. Behind
                       the dimensions a maximum and a sum for each CTA of join_blocks */
    float eps, scale;
    uint32_t n_token, n_head, n_head_kv, group, head_dim, row_bytes;
    uint32_t rope, n_rot, window;
    uint32_t partial_stride, round_begin, round_blocks; /* blocks from a sequence's first on */
};

struct query {
    uint32_t it, ih;
};

DEVICE struct query query_of(const struct attention_launch &a, const struct query_tile &tile,
                             uint32_t head, uint32_t n)
{
    const uint32_t at = tile.query_begin + n;
    return {tile.it_begin + at / a.group, head * a.group + at % a.group};
}

/* Positions [first, last] that a row sees. */
struct span {
    uint32_t first, last;
};

DEVICE struct span span_of(const struct attention_launch &a, uint32_t it)
{
    const uint32_t pos = a.row[it].pos;
    return {a.window && pos >= a.window ? pos - a.window + 1 : 0, pos};
}

/* ---- by tensor cores in floating point (fast_attention.cu) ---- */

/* Queries of a tile. */
constexpr uint32_t FAST_QUERIES = 64;

/* Whether the FAST mode attends so: the longest run of rows of one sequence, and how many CTAs its
 * tiles would make. */
bool fast_attends(const struct cuda_backend *cuda, uint32_t head_dim, uint32_t n_row_max,
                  uint32_t n_cta);

/* Queries are in a.q, keys and values in the cache: writes a.out. */
void launch_fast_attention(struct cuda_backend *cuda, const struct attention_launch &a,
                           enum tensor_type kv_type, uint32_t n_tile);

#endif
