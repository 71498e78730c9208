/* Attention of many queries by the tensor cores' floating point, in the FAST mode.
 *
 * A CTA takes 64 queries of one key head, 16 to a warp, through the keys that they see, 32 or 64 at
 * a time: S = Q K^T, weights e^(S - max) with a maximum that rises as it goes, O = O * factor + P
 * V. Scores and sums are F32 in registers; a thread's scores of S are where P is wanted as an
 * operand, so P never leaves them. While K is multiplied V is on its way, and the other way round.
 *
 *     shared   Q [64][DIM], K [keys][DIM], V [keys][DIM], each row with 16 bytes behind it, so that
 *              the eight rows that a load takes at once fall on different banks
 *
 * Operands are BF16 where the cache is, else F16: as the cache holds them, or, of F32 and Q8_0,
 * rounded to F16, whose range is that of the usual cache. Rounded are, by 2^-11 of themselves (BF16
 * 2^-8), the queries and the weights P; F16 caches lose nothing else.
 *
 * Source: online softmax in registers as in FlashAttention-2 (Dao, 2023). */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/copy_async.cuh"
#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/lanes.cuh"
#include "kernels/cuda/ptx.cuh"

extern "C" {
#include "kernels/exact_math.h"
}

constexpr uint32_t FAST_WARPS = 4, FAST_THREADS = FAST_WARPS * WARP;
constexpr uint32_t TILE_ROWS = 16; /* of an mma: the queries of a warp */
static_assert(FAST_QUERIES == FAST_WARPS * TILE_ROWS, "16 queries a warp");
/* Fewer rows of a sequence are decoding, and go the EXACT way. */
constexpr uint32_t RUN_ROWS_MIN = 16;
/* So many multiprocessors may be idle for one that works before splitting the context is faster. */
constexpr uint32_t IDLE_SHARE = 4;

/* What of shared memory is whose, for heads of at most DIM dimensions. */
template <uint32_t DIM> struct fast_shape {
    static constexpr uint32_t KEYS = DIM > 128 ? 32 : 64; /* of a stage: registers for scores */
    static constexpr uint32_t STRIDE = DIM + 8;           /* elements from row to row */
    static constexpr uint32_t BYTES = (FAST_QUERIES + 2 * KEYS) * STRIDE * 2;
    static_assert(KV_BLOCK % KEYS == 0, "a stage lies in one block");
};

template <bool BF16> DEVICE uint16_t narrow(float x)
{
    return BF16 ? float_to_bf16(x) : float_to_f16(x);
}

template <bool BF16> DEVICE uint32_t narrow_2(float low, float high)
{
    return narrow<BF16>(low) | (uint32_t)narrow<BF16>(high) << 16;
}

/* ---- to shared memory ---- */

/* The tile's queries; zeros where there is none, and behind the head's dimensions. */
template <bool BF16, uint32_t DIM>
DEVICE void load_queries(const struct attention_launch &a, const struct query_tile &tile,
                         uint32_t head, uint16_t *to)
{
    typedef fast_shape<DIM> shape;
    for (uint32_t i = threadIdx.x; i < FAST_QUERIES * DIM / 2; i += FAST_THREADS) {
        const uint32_t n = i / (DIM / 2), d = i % (DIM / 2) * 2;
        float2 x = {0.0f, 0.0f};
        if (n < tile.n_query && d < a.head_dim) {
            const struct query query = query_of(a, tile, head, n);
            x = *reinterpret_cast<const float2 *>(
                a.q + ((size_t)query.it * a.n_head + query.ih) * a.head_dim + d);
        }
        *reinterpret_cast<uint32_t *>(to + n * shape::STRIDE + d) = narrow_2<BF16>(x.x, x.y);
    }
}

/* What a CTA reads of the cache. */
struct kv_source {
    uint8_t *const *block; /* by number of the block */
    struct span seen;      /* by any of the queries */
    uint32_t head_dim, row_bytes;
};

template <enum tensor_type TYPE> DEVICE uint4 eight_of_row(const uint8_t *row, uint32_t d)
{
    uint32_t word[4];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
        const uint32_t i = d + 2 * k;
        word[k] = narrow_2<false>(kv_row<TYPE>::read(row, i / WARP, i % WARP),
                                  kv_row<TYPE>::read(row, (i + 1) / WARP, (i + 1) % WARP));
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* A stage of keys or values, offset into their blocks, from position first on. What nobody sees
 * becomes zeros: memory behind a sequence's end may hold anything, and a weight of zero would not
 * hide an infinity. */
template <enum tensor_type TYPE, uint32_t DIM>
DEVICE void load_stage(const struct kv_source &source, uint32_t first, size_t offset, uint16_t *to)
{
    typedef fast_shape<DIM> shape;
    const uint8_t *const rows =
        source.block[first / KV_BLOCK] + offset + (size_t)(first % KV_BLOCK) * source.row_bytes;
    for (uint32_t i = threadIdx.x; i < shape::KEYS * (DIM / 8); i += FAST_THREADS) {
        const uint32_t row = i / (DIM / 8), d = i % (DIM / 8) * 8, pos = first + row;
        uint16_t *const at = to + row * shape::STRIDE + d;
        const uint8_t *const from = rows + (size_t)row * source.row_bytes;
        if (pos < source.seen.first || pos > source.seen.last || d >= source.head_dim)
            *reinterpret_cast<uint4 *>(at) = make_uint4(0, 0, 0, 0);
        else if constexpr (TYPE == TENSOR_F16 || TYPE == TENSOR_BF16)
            copy_async_16(at, from + d * 2);
        else
            *reinterpret_cast<uint4 *>(at) = eight_of_row<TYPE>(from, d);
    }
    copy_async_commit();
}

/* ---- one stage of one warp ---- */

/* Where lane l's address for load_matrices points: four matrices of 8 x 8, 0 and 1 below each other
 * and 2 and 3 beside them, or (ACROSS) 0 and 1 beside each other and 2 and 3 below. */
template <uint32_t STRIDE, bool ACROSS> DEVICE uint32_t matrices_offset(uint32_t lane)
{
    const uint32_t below = ACROSS ? lane / 16 : lane / 8 % 2;
    const uint32_t beside = ACROSS ? lane / 8 % 2 : lane / 16;
    return (below * 8 + lane % 8) * STRIDE + beside * 8;
}

/* What a thread holds of 16 queries: rows g = lane / 4 and g + 8. */
template <uint32_t DIM> struct fast_sums {
    float o[DIM / 8][4];  /* columns 8 n + 2 (lane % 4), + 1 of row g, then of row g + 8 */
    float max[2], sum[2]; /* so far; sum: of this thread's columns */
};

/* S of KEYS keys: s[n] are keys 8 n + 2 (lane % 4), + 1, as fast_sums::o. */
template <bool BF16, uint32_t DIM>
DEVICE void score_stage(const uint16_t *q, const uint16_t *k, uint32_t lane,
                        float (&s)[fast_shape<DIM>::KEYS / 8][4])
{
    typedef fast_shape<DIM> shape;
    const uint16_t *const from_q = q + matrices_offset<shape::STRIDE, false>(lane);
    const uint16_t *const from_k = k + matrices_offset<shape::STRIDE, true>(lane);
#pragma unroll
    for (uint32_t n = 0; n < shape::KEYS / 8; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            s[n][i] = 0.0f;
#pragma unroll
    for (uint32_t d = 0; d < DIM; d += 16) {
        uint32_t of_q[4];
        load_matrices<false>(of_q, from_q + d);
#pragma unroll
        for (uint32_t n = 0; n < shape::KEYS / 8; n += 2) {
            uint32_t of_k[4];
            load_matrices<false>(of_k, from_k + n * 8 * shape::STRIDE + d);
            mma_16x8x16<BF16>(s[n], of_q, of_k);
            mma_16x8x16<BF16>(s[n + 1], of_q, of_k + 2);
        }
    }
}

/* Scores to weights, and the sums so far made relative to a maximum that may have risen. own: what
 * rows g and g + 8 see. */
template <uint32_t DIM>
DEVICE void weigh_stage(const struct span (&own)[2], uint32_t first, float scale, bool all_seen,
                        uint32_t lane, float (&s)[fast_shape<DIM>::KEYS / 8][4],
                        fast_sums<DIM> &sums)
{
    constexpr uint32_t N = fast_shape<DIM>::KEYS / 8;
    float factor[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float max = sums.max[h];
#pragma unroll
        for (uint32_t n = 0; n < N; n++)
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t pos = first + 8 * n + 2 * (lane % 4) + i;
                const bool seen = all_seen || (pos >= own[h].first && pos <= own[h].last);
                float &score = s[n][2 * h + i];
                score = seen ? score * scale : -INFINITY;
                max = fmaxf(max, score);
            }
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
        const float base = max == -INFINITY ? 0.0f : max; /* nothing seen yet: all weights are 0 */
        factor[h] = exact_exp(sums.max[h] - base);
        sums.max[h] = max;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t n = 0; n < N; n++)
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                float &weight = s[n][2 * h + i];
                weight = exact_exp(weight - base);
                sum += weight;
            }
        sums.sum[h] = fmaf(sums.sum[h], factor[h], sum);
    }
#pragma unroll
    for (uint32_t n = 0; n < DIM / 8; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            sums.o[n][i] *= factor[i / 2];
}

/* O += P V */
template <bool BF16, uint32_t DIM>
DEVICE void add_stage(const float (&p)[fast_shape<DIM>::KEYS / 8][4], const uint16_t *v,
                      uint32_t lane, fast_sums<DIM> &sums)
{
    typedef fast_shape<DIM> shape;
    const uint16_t *const from_v = v + matrices_offset<shape::STRIDE, false>(lane);
#pragma unroll
    for (uint32_t k = 0; k < shape::KEYS / 16; k++) {
        const float *const low = p[2 * k], *const high = p[2 * k + 1];
        const uint32_t of_p[4] = {narrow_2<BF16>(low[0], low[1]), narrow_2<BF16>(low[2], low[3]),
                                  narrow_2<BF16>(high[0], high[1]),
                                  narrow_2<BF16>(high[2], high[3])};
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n += 2) {
            uint32_t of_v[4];
            load_matrices<true>(of_v, from_v + k * 16 * shape::STRIDE + n * 8);
            mma_16x8x16<BF16>(sums.o[n], of_p, of_v);
            mma_16x8x16<BF16>(sums.o[n + 1], of_p, of_v + 2);
        }
    }
}

/* Divided by the sum of weights, and gated. */
template <uint32_t DIM>
DEVICE void write_out(const struct attention_launch &a, const struct query_tile &tile,
                      uint32_t head, uint32_t first_query, uint32_t lane,
                      const fast_sums<DIM> &sums)
{
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float sum = sums.sum[h];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        const uint32_t n_query = first_query + lane / 4 + 8 * h;
        if (n_query >= tile.n_query) continue; /* its four lanes alike */
        const float inverse = 1.0f / sum;
        const struct query query = query_of(a, tile, head, n_query);
        float *const out = a.out + ((size_t)query.it * a.n_head + query.ih) * a.head_dim;
        const float *const gate =
            a.gate ? a.gate + query.it * a.gate_stride + query.ih * a.gate_head_stride : NULL;
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++)
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t d = 8 * n + 2 * (lane % 4) + i;
                if (d >= a.head_dim) continue;
                const float value = sums.o[n][2 * h + i] * inverse;
                out[d] = gate ? value * exact_sigmoid(gate[d]) : value;
            }
    }
}

/* ---- a CTA ---- */

/* Grid (tiles, key heads). */
template <enum tensor_type TYPE, uint32_t DIM>
KERNEL(FAST_THREADS)
attend_fast(const struct attention_launch a)
{
    typedef fast_shape<DIM> shape;
    constexpr bool BF16 = TYPE == TENSOR_BF16;
    DYNAMIC_SHARED(uint16_t, q);
    uint16_t *const k = q + FAST_QUERIES * shape::STRIDE, *const v =
                                                              k + shape::KEYS * shape::STRIDE;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.y;
    const struct query_tile tile = a.tile[gridDim.x - 1 - blockIdx.x]; /* the longest first */
    const struct row_place row = a.row[tile.it_begin];
    const struct span all = {span_of(a, query_of(a, tile, head, 0).it).first,
                             span_of(a, query_of(a, tile, head, tile.n_query - 1).it).last};

    /* what the rows of a thread and of its warp see */
    const uint32_t first_query = warp * TILE_ROWS;
    struct span own[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t n = first_query + lane / 4 + 8 * h;
        own[h] = {1, 0};
        if (n < tile.n_query) own[h] = span_of(a, query_of(a, tile, head, n).it);
    }
    struct span widest = {UINT32_MAX, 0}, narrowest = {UINT32_MAX, 0}; /* none */
    if (first_query < tile.n_query) {
        const uint32_t last_query = min(first_query + TILE_ROWS, tile.n_query) - 1;
        const struct span first = span_of(a, query_of(a, tile, head, first_query).it);
        const struct span last = span_of(a, query_of(a, tile, head, last_query).it);
        widest = {first.first, last.last};
        narrowest = {last.first, first.last};
    }

    fast_sums<DIM> sums;
#pragma unroll
    for (uint32_t n = 0; n < DIM / 8; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            sums.o[n][i] = 0.0f;
    sums.max[0] = sums.max[1] = -INFINITY;
    sums.sum[0] = sums.sum[1] = 0.0f;

    const size_t keys_offset = (size_t)head * KV_BLOCK * a.row_bytes;
    const size_t values_offset = (size_t)(a.n_head_kv + head) * KV_BLOCK * a.row_bytes;
    const struct kv_source source = {a.block + row.table - row.block_begin, all, a.head_dim,
                                     a.row_bytes};
    const uint32_t begin = all.first / shape::KEYS * shape::KEYS;
    load_stage<TYPE, DIM>(source, begin, keys_offset, k);
    load_stage<TYPE, DIM>(source, begin, values_offset, v);
    load_queries<BF16, DIM>(a, tile, head, q);
    for (uint32_t first = begin; first <= all.last; first += shape::KEYS) {
        const uint32_t last = first + shape::KEYS - 1;
        const bool more = last < all.last, sees = first <= widest.last && last >= widest.first;
        float s[shape::KEYS / 8][4];
        copy_async_wait<1>();
        __syncthreads(); /* the keys, and before the first stage the queries, are here */
        if (sees) score_stage<BF16, DIM>(q + first_query * shape::STRIDE, k, lane, s);
        __syncthreads(); /* nobody reads the keys any more */
        if (more)
            load_stage<TYPE, DIM>(source, last + 1, keys_offset, k);
        else
            copy_async_commit();
        if (sees)
            weigh_stage<DIM>(own, first, a.scale,
                             narrowest.first <= first && last <= narrowest.last, lane, s, sums);
        copy_async_wait<1>();
        __syncthreads(); /* the values are here */
        if (sees) add_stage<BF16, DIM>(s, v, lane, sums);
        __syncthreads(); /* nobody reads them any more */
        if (more)
            load_stage<TYPE, DIM>(source, last + 1, values_offset, v);
        else
            copy_async_commit();
    }
    write_out<DIM>(a, tile, head, first_query, lane, sums);
}

/* ---- the host's side ---- */

bool fast_attends(const struct cuda_backend *cuda, uint32_t head_dim, uint32_t n_row_max,
                  uint32_t n_cta)
{
    return cublas_of(cuda) && n_row_max >= RUN_ROWS_MIN && head_dim % 8 == 0 &&
           n_cta * IDLE_SHARE >= n_multiprocessor(cuda);
}

template <enum tensor_type TYPE, uint32_t DIM>
static void launch_shape(struct cuda_backend *cuda, const struct attention_launch &a,
                         uint32_t n_tile)
{
    launch(cuda, attend_fast<TYPE, DIM>, dim3(n_tile, a.n_head_kv), dim3(FAST_THREADS),
           fast_shape<DIM>::BYTES, a);
}

template <enum tensor_type TYPE>
static void launch_type(struct cuda_backend *cuda, const struct attention_launch &a,
                        uint32_t n_tile)
{
    if (a.head_dim <= 64)
        launch_shape<TYPE, 64>(cuda, a, n_tile);
    else if (a.head_dim <= 128)
        launch_shape<TYPE, 128>(cuda, a, n_tile);
    else
        launch_shape<TYPE, HEAD_DIM_MAX>(cuda, a, n_tile);
}

void launch_fast_attention(struct cuda_backend *cuda, const struct attention_launch &a,
                           enum tensor_type kv_type, uint32_t n_tile)
{
    switch ((int)kv_type) {
    case TENSOR_F16:
        launch_type<TENSOR_F16>(cuda, a, n_tile);
        break;
    case TENSOR_BF16:
        launch_type<TENSOR_BF16>(cuda, a, n_tile);
        break;
    case TENSOR_F32:
        launch_type<TENSOR_F32>(cuda, a, n_tile);
        break;
    default:
        launch_type<TENSOR_Q8_0>(cuda, a, n_tile);
        break;
    }
}
