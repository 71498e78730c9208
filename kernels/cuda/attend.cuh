/* Attention of eight queries over one block of keys and values: what one warp does of it.
 *
 * A lane holds dimensions l, l + 32, ... of the queries, so that its sums over them are the
 * canonical lanes. Four keys give 8 x 4 sums per lane, which 31 exchanges turn into one finished
 * score per lane. Weights lie in shared memory as [key][query], so that the weighted sum reads
 * eight of them at once, and a lane's value serves all eight. */
#ifndef LEAN_KERNELS_CUDA_ATTEND_CUH
#define LEAN_KERNELS_CUDA_ATTEND_CUH

extern "C" {
#include "kernels/backend.h"
}
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/lanes.cuh"

constexpr uint32_t WARP_QUERIES = 8, STEP_KEYS = 4;
constexpr uint32_t LANE_KEYS = KV_BLOCK / uint32_t{WARP}; /* of a block, in a lane */
static_assert(WARP_QUERIES * STEP_KEYS == WARP, "a score for each lane");

/* The weight of a key that its query does not see; e^x is never negative. */
constexpr float HIDDEN_WEIGHT = -1.0f;

/* Scores of four keys, to weight[key][query]. k: their rows. */
template <enum tensor_type TYPE, class Shape>
DEVICE void score_keys(const float (&q)[WARP_QUERIES][Shape::CHUNKS], const uint8_t *k,
                       uint32_t row_bytes, uint32_t head_dim, float scale, uint32_t lane,
                       float *weight)
{
    float sum[WARP];
#pragma unroll
    for (uint32_t i = 0; i < WARP; i++)
        sum[i] = 0.0f;
#pragma unroll
    for (uint32_t key = 0; key < STEP_KEYS; key++)
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            if (Shape::has(c, lane, head_dim)) {
                const float x = kv_row<TYPE>::read(k + key * row_bytes, c, lane);
#pragma unroll
                for (uint32_t n = 0; n < WARP_QUERIES; n++)
                    sum[key * WARP_QUERIES + n] = fmaf(q[n][c], x, sum[key * WARP_QUERIES + n]);
            }
    weight[lane] = lanes_sums(sum, lane) * scale;
}

/* One query's scores of a block to weights e^(score - max). weight: [KV_BLOCK][WARP_QUERIES], from
 * the query's column on. All lanes get max and sum. */
DEVICE void softmax_block(float *weight, uint32_t begin, uint32_t end, uint32_t lane, float *max,
                          float *sum)
{
    float score[LANE_KEYS];
    float largest = -INFINITY;
#pragma unroll
    for (uint32_t i = 0; i < LANE_KEYS; i++) {
        const uint32_t j = i * WARP + lane;
        score[i] = j >= begin && j < end ? weight[j * WARP_QUERIES] : -INFINITY;
        largest = fmaxf(largest, score[i]); /* drops a NaN, as the definition's > does */
    }
    largest = warp_max(largest);
    float total = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < LANE_KEYS; i++) {
        const uint32_t j = i * WARP + lane;
        const bool visible = j >= begin && j < end;
        const float e = exact_exp(score[i] - largest);
        if (visible) total += e;
        weight[j * WARP_QUERIES] = visible ? e : HIDDEN_WEIGHT;
    }
    *max = largest + 0.0f; /* never -0 */
    *sum = lanes_sum(total);
}

/* o[n][i] = fma(weight of query n, v, o[n][i]) for n_key keys in order, in a lane's chunks
 * first, first + step, ... HIDDEN: some of the weights may be HIDDEN_WEIGHT. */
template <enum tensor_type TYPE, class Shape, bool HIDDEN, uint32_t N_CHUNK>
DEVICE void add_values(const float *weight, const uint8_t *v, uint32_t row_bytes, uint32_t head_dim,
                       uint32_t n_key, uint32_t first, uint32_t step, uint32_t lane,
                       float (&o)[WARP_QUERIES][N_CHUNK])
{
#pragma unroll 2
    for (uint32_t j = 0; j < n_key; j++) {
        const float4 low = *reinterpret_cast<const float4 *>(weight + j * WARP_QUERIES);
        const float4 high = *reinterpret_cast<const float4 *>(weight + j * WARP_QUERIES + 4);
        const float w[WARP_QUERIES] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (uint32_t i = 0; i < N_CHUNK; i++)
            if (Shape::has(first + i * step, lane, head_dim)) {
                const float x = kv_row<TYPE>::read(v + j * row_bytes, first + i * step, lane);
#pragma unroll
                for (uint32_t n = 0; n < WARP_QUERIES; n++)
                    if (!HIDDEN || !(w[n] < 0.0f)) o[n][i] = fmaf(w[n], x, o[n][i]);
            }
    }
}

#endif
