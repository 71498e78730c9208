/* attention: keys and values are appended, then every row attends over its sequence's blocks.
 *
 *   append          a warp for each head of a row: norm, rotation, and the row of the cache
 *   attend_walk     many queries: a CTA takes 64 of one key head through all blocks and joins
 *                   these as it goes
 *   attend_split    few queries: a CTA for every block, so that a long context fills the GPU;
 *   join_blocks     then joins their partials in block order. In rounds of as many blocks as
 *                   PARTIAL_BYTES hold, so that memory does not grow with the context.
 *
 * Both ways do the same arithmetic; the FAST mode has another for many queries, fast_attention.cu.
 * A query is a row and a query head; those of one sequence and key head are numbered row by row and
 * cut into tiles, whatever the size of the group, and a tile reads each key and value once. */
#include <assert.h>

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/copy_async.cuh"

constexpr uint32_t CTA_WARPS = 8, CTA_THREADS = CTA_WARPS * WARP;
constexpr uint32_t APPEND_WARPS = 4, JOIN_THREADS = 64;
constexpr uint32_t WALK_QUERIES = CTA_WARPS * WARP_QUERIES, SPLIT_QUERIES = 2 * WARP_QUERIES;
static_assert(WALK_QUERIES == FAST_QUERIES, "tiles serve both ways");
constexpr uint32_t BLOCK_WEIGHTS = KV_BLOCK * WARP_QUERIES; /* floats */
constexpr uint32_t SPLIT_CHUNKS = 2;                        /* of the values, for each warp */
/* Rows of the cache in a stage; two stages lie in shared memory. */
constexpr uint32_t WALK_STAGE_KEYS = 16, SPLIT_STAGE_KEYS = 32;
constexpr size_t PARTIAL_BYTES = 256 << 10; /* for each multiprocessor */

/* ---- what queries see ---- */

/* The keys [begin, end) of a block that lie in a span; begin >= end: none. */
struct keys {
    uint32_t begin, end;
};

DEVICE struct keys keys_of(const struct span &span, uint32_t block)
{
    const uint32_t first = block * KV_BLOCK;
    if (span.last < first || span.first >= first + KV_BLOCK) return {KV_BLOCK, 0};
    return {span.first > first ? span.first - first : 0,
            min(span.last - first + 1, uint32_t{KV_BLOCK})};
}

/* A lane's dimensions of a warp's queries; zeros where there is no query. */
template <class Shape>
DEVICE void load_queries(const struct attention_launch &a, const struct query_tile &tile,
                         uint32_t head, uint32_t first, uint32_t lane,
                         float (&q)[WARP_QUERIES][Shape::CHUNKS])
{
#pragma unroll
    for (uint32_t n = 0; n < WARP_QUERIES; n++) {
        const bool used = first + n < tile.n_query;
        const struct query query = query_of(a, tile, head, used ? first + n : 0);
        const float *from = a.q + ((size_t)query.it * a.n_head + query.ih) * a.head_dim;
#pragma unroll
        for (uint32_t c = 0; c < Shape::CHUNKS; c++)
            q[n][c] = used && Shape::has(c, lane, a.head_dim) ? from[c * WARP + lane] : 0.0f;
    }
}

/* ---- append ---- */

/* x: [n] in shared memory, of this warp. */
DEVICE void norm_and_rotate(const struct attention_launch &a, const float *norm, uint32_t pos,
                            uint32_t lane, float *x)
{
    const uint32_t n = a.head_dim;
    if (norm) {
        float sum = 0.0f;
        for (uint32_t i = lane; i < n; i += WARP)
            sum = fmaf(x[i], x[i], sum);
        const float scale = 1.0f / sqrtf(lanes_sum(sum) / (float)n + a.eps);
        for (uint32_t i = lane; i < n; i += WARP)
            x[i] = x[i] * scale * norm[i];
    }
    if (a.rope == ROPE_NONE) return;
    __syncwarp();
    const uint32_t half = a.n_rot / 2;
    for (uint32_t i = lane; i < half; i += WARP) {
        float *const first = a.rope == ROPE_NORM ? &x[2 * i] : &x[i];
        float *const second = a.rope == ROPE_NORM ? &x[2 * i + 1] : &x[i + half];
        const float c = a.rope_cos[(size_t)pos * half + i], s = a.rope_sin[(size_t)pos * half + i];
        const float rotated = fmaf(*first, c, -(*second * s));
        *second = fmaf(*first, s, *second * c);
        *first = rotated;
    }
    __syncwarp();
}

template <enum tensor_type TYPE> KERNEL(APPEND_WARPS *WARP) append(const struct attention_launch a)
{
    __shared__ float rows[APPEND_WARPS][HEAD_DIM_MAX];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t n_head_all = a.n_head + 2 * a.n_head_kv; /* of queries, keys, values */
    const uint32_t task = blockIdx.x * APPEND_WARPS + warp;
    const uint32_t it = task / n_head_all, head = task % n_head_all;
    if (it >= a.n_token) return;
    const struct row_place row = a.row[it];
    const bool is_query = head < a.n_head, is_key = !is_query && head < a.n_head + a.n_head_kv;
    const uint32_t kv = head - a.n_head; /* keys, then values */
    const float *from = a.v + it * a.kv_stride + (size_t)(kv - a.n_head_kv) * a.head_dim;
    if (is_query) from = a.q_in + it * a.q_stride + head * a.q_head_stride;
    if (is_key) from = a.k + it * a.kv_stride + (size_t)kv * a.head_dim;

    float *const x = rows[warp];
    for (uint32_t i = lane; i < a.head_dim; i += WARP)
        x[i] = from[i];
    if (is_query || is_key) norm_and_rotate(a, is_query ? a.q_norm : a.k_norm, row.pos, lane, x);
    if (is_query) {
        float *const to = a.q + ((size_t)it * a.n_head + head) * a.head_dim;
        for (uint32_t i = lane; i < a.head_dim; i += WARP)
            to[i] = x[i];
        return;
    }
    uint8_t *const to = a.block[row.table + row.pos / KV_BLOCK - row.block_begin] +
                        ((size_t)kv * KV_BLOCK + row.pos % KV_BLOCK) * a.row_bytes;
    for (uint32_t c = 0; c * WARP < a.head_dim; c++) {
        const uint32_t i = c * WARP + lane;
        kv_row<TYPE>::write(to, c, lane, a.head_dim, i < a.head_dim ? x[i] : 0.0f);
    }
}

/* ---- the stream of keys and values ---- */

/* Hands a CTA the rows that its queries see: of each block the keys, then the values, in stages of
 * KEYS rows. While one stage is in use the next is on its way. */
template <uint32_t KEYS> struct kv_stream {
    uint8_t *buffer; /* [2][stage_bytes], shared */
    uint8_t *const *block;
    struct span span;
    uint32_t block_begin, block_end; /* of the stream */
    size_t keys_offset, values_offset;
    uint32_t stage_bytes;
    uint32_t at_block, at_values, at_stage, turn; /* the stage to fetch next */

    DEVICE uint32_t first_stage(const struct kv_stream &s, uint32_t b)
    {
        return keys_of(s.span, b).begin / KEYS;
    }

    /* span: what any of the queries sees. */
    DEVICE void open(struct kv_stream &s, const struct attention_launch &a,
                     const struct row_place &row, uint32_t head, const struct span &span,
                     uint32_t block_begin, uint32_t block_end, uint8_t *buffer)
    {
        s.buffer = buffer;
        s.block = a.block + row.table - row.block_begin;
        s.span = span;
        s.block_begin = block_begin;
        s.block_end = block_end;
        s.keys_offset = (size_t)head * KV_BLOCK * a.row_bytes;
        s.values_offset = (size_t)(a.n_head_kv + head) * KV_BLOCK * a.row_bytes;
        s.stage_bytes = KEYS * a.row_bytes;
        s.at_block = block_begin;
        s.at_values = 0;
        s.at_stage = first_stage(s, block_begin);
        s.turn = 0;
        fetch(s);
    }

    DEVICE void fetch(struct kv_stream &s)
    {
        if (s.at_block < s.block_end) {
            const uint8_t *const from = s.block[s.at_block] +
                                        (s.at_values ? s.values_offset : s.keys_offset) +
                                        (size_t)s.at_stage * s.stage_bytes;
            uint8_t *const to = s.buffer + s.turn * s.stage_bytes;
            for (uint32_t i = threadIdx.x * 16; i < s.stage_bytes; i += CTA_THREADS * 16)
                copy_async_16(to + i, from + i);
            if (++s.at_stage * KEYS >= keys_of(s.span, s.at_block).end) {
                s.at_block += s.at_values;
                s.at_values ^= 1;
                s.at_stage = first_stage(s, s.at_block);
            }
        }
        copy_async_commit();
        s.turn ^= 1;
    }

    /* The next stage's rows. All threads of the CTA come here. */
    DEVICE const uint8_t *next(struct kv_stream &s)
    {
        copy_async_wait<0>();
        __syncthreads(); /* the stage is here for all, and nobody reads the one before it */
        const uint8_t *const ready = s.buffer + (s.turn ^ 1) * s.stage_bytes;
        fetch(s);
        return ready;
    }
};

/* ---- a CTA for all blocks of a tile ---- */

template <enum tensor_type TYPE, class Shape>
KERNEL(CTA_THREADS, 2)
attend_walk(const struct attention_launch a)
{
    DYNAMIC_SHARED(float, weights); /* [CTA_WARPS][BLOCK_WEIGHTS], then the stages */
    uint8_t *const buffer = reinterpret_cast<uint8_t *>(weights + CTA_WARPS * BLOCK_WEIGHTS);
    typedef kv_stream<WALK_STAGE_KEYS> stream;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.y;
    const struct query_tile tile = a.tile[gridDim.x - 1 - blockIdx.x]; /* the longest first */
    const uint32_t it_last = query_of(a, tile, head, tile.n_query - 1).it;
    const struct span all = {span_of(a, query_of(a, tile, head, 0).it).first,
                             span_of(a, it_last).last};
    const uint32_t block_begin = all.first / KV_BLOCK, block_end = all.last / KV_BLOCK + 1;

    /* Lane n knows query n of the warp: what it sees, and its maximum and sum so far. */
    const uint32_t first_query = warp * WARP_QUERIES;
    const uint32_t n_query =
        first_query < tile.n_query ? min(tile.n_query - first_query, WARP_QUERIES) : 0;
    struct span mine = {1, 0};
    if (lane < n_query) mine = span_of(a, query_of(a, tile, head, first_query + lane).it);
    float max_so_far = -INFINITY, sum_so_far = 0.0f;
    float *const weight = weights + warp * BLOCK_WEIGHTS;

    stream s;
    stream::open(s, a, a.row[tile.it_begin], head, all, block_begin, block_end, buffer);
    for (uint32_t block = block_begin; block < block_end; block++) {
        const struct keys cta = keys_of(all, block);
        const struct keys own = lane < n_query ? keys_of(mine, block) : keys{KV_BLOCK, 0};
        const uint32_t begin = __reduce_min_sync(ALL_LANES, own.begin);
        const uint32_t end = __reduce_max_sync(ALL_LANES, own.end);
        const bool alike =
            __all_sync(ALL_LANES, lane >= n_query || (own.begin == begin && own.end == end));

        /* scores */
        float q[WARP_QUERIES][Shape::CHUNKS];
        load_queries<Shape>(a, tile, head, first_query, lane, q);
        for (uint32_t j = cta.begin / WALK_STAGE_KEYS * WALK_STAGE_KEYS; j < cta.end;
             j += WALK_STAGE_KEYS) {
            const uint8_t *const k = stream::next(s);
            for (uint32_t i = 0; i < WALK_STAGE_KEYS; i += STEP_KEYS)
                if (j + i < end && j + i + STEP_KEYS > begin)
                    score_keys<TYPE, Shape>(q, k + i * a.row_bytes, a.row_bytes, a.head_dim,
                                            a.scale, lane, weight + (j + i) * WARP_QUERIES);
        }

        /* weights */
        __syncwarp();
        float max_block = -INFINITY, sum_block = 0.0f;
        for (uint32_t n = 0; n < n_query; n++) {
            float max, sum;
            softmax_block(weight + n, __shfl_sync(ALL_LANES, own.begin, n),
                          __shfl_sync(ALL_LANES, own.end, n), lane, &max, &sum);
            if (lane == n) max_block = max;
            if (lane == n) sum_block = sum;
        }
        __syncwarp();

        /* weighted sum of the values */
        float o[WARP_QUERIES][Shape::CHUNKS];
#pragma unroll
        for (uint32_t n = 0; n < WARP_QUERIES; n++)
#pragma unroll
            for (uint32_t c = 0; c < Shape::CHUNKS; c++)
                o[n][c] = 0.0f;
        for (uint32_t j = cta.begin / WALK_STAGE_KEYS * WALK_STAGE_KEYS; j < cta.end;
             j += WALK_STAGE_KEYS) {
            const uint8_t *const v = stream::next(s);
            const uint32_t from = max(begin, j), to = min(end, j + WALK_STAGE_KEYS);
            if (from >= to) continue;
            const uint8_t *const rows = v + (from - j) * a.row_bytes;
            if (alike)
                add_values<TYPE, Shape, false>(weight + from * WARP_QUERIES, rows, a.row_bytes,
                                               a.head_dim, to - from, 0, 1, lane, o);
            else
                add_values<TYPE, Shape, true>(weight + from * WARP_QUERIES, rows, a.row_bytes,
                                              a.head_dim, to - from, 0, 1, lane, o);
        }

        /* join the block to those before */
        const bool sees = own.begin < own.end, is_first = sees && mine.first / KV_BLOCK == block;
        const float max_joined = max_so_far > max_block ? max_so_far : max_block;
        const float factor_old = exact_exp(max_so_far - max_joined);
        const float factor_new = exact_exp(max_block - max_joined);
        if (sees) {
            sum_so_far =
                is_first ? sum_block : fmaf(sum_block, factor_new, sum_so_far * factor_old);
            max_so_far = is_first ? max_block : max_joined;
        }
        const uint32_t sees_mask = __ballot_sync(ALL_LANES, sees);
        const uint32_t first_mask = __ballot_sync(ALL_LANES, is_first);
#pragma unroll
        for (uint32_t n = 0; n < WARP_QUERIES; n++) {
            const float old = __shfl_sync(ALL_LANES, factor_old, n);
            const float fresh = __shfl_sync(ALL_LANES, factor_new, n);
            if (!(sees_mask >> n & 1)) continue;
            const struct query query = query_of(a, tile, head, first_query + n);
            float *const out = a.out + ((size_t)query.it * a.n_head + query.ih) * a.head_dim;
#pragma unroll
            for (uint32_t c = 0; c < Shape::CHUNKS; c++)
                if (Shape::has(c, lane, a.head_dim)) {
                    float *const acc = &out[c * WARP + lane];
                    *acc = first_mask >> n & 1 ? o[n][c] : fmaf(o[n][c], fresh, *acc * old);
                }
        }
    }

    /* normalize and gate */
    for (uint32_t n = 0; n < n_query; n++) {
        const float inverse = 1.0f / __shfl_sync(ALL_LANES, sum_so_far, n);
        const struct query query = query_of(a, tile, head, first_query + n);
        float *const out = a.out + ((size_t)query.it * a.n_head + query.ih) * a.head_dim;
        const float *const gate =
            a.gate ? a.gate + query.it * a.gate_stride + query.ih * a.gate_head_stride : NULL;
        for (uint32_t i = lane; i < a.head_dim; i += WARP) {
            const float value = out[i] * inverse;
            out[i] = gate ? value * exact_sigmoid(gate[i]) : value;
        }
    }
}

/* ---- a CTA for one block of a tile ---- */

/* With more than eight queries the warps split in two halves, one for each eight; among those the
 * keys are dealt out for the scores and the dimensions for the values. */
template <enum tensor_type TYPE, class Shape>
KERNEL(CTA_THREADS, 2)
attend_split(const struct attention_launch a)
{
    DYNAMIC_SHARED(float, weights); /* [2][BLOCK_WEIGHTS], then the stages */
    uint8_t *const buffer = reinterpret_cast<uint8_t *>(weights + 2 * BLOCK_WEIGHTS);
    typedef kv_stream<SPLIT_STAGE_KEYS> stream;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head = blockIdx.y;
    const struct query_tile tile = a.tile[blockIdx.z];
    const struct row_place row = a.row[tile.it_begin];
    const uint32_t block = row.block_begin + a.round_begin + blockIdx.x;
    const struct span first = span_of(a, query_of(a, tile, head, 0).it);
    const struct span last = span_of(a, query_of(a, tile, head, tile.n_query - 1).it);
    const struct span all = {first.first, last.last};
    const struct keys cta = keys_of(all, block);
    if (cta.begin >= cta.end) return; /* the grid is rounded up */
    const struct keys of_first = keys_of(first, block), of_last = keys_of(last, block);
    const bool alike = of_first.begin == of_last.begin && of_first.end == of_last.end;

    const uint32_t n_eight = tile.n_query > WARP_QUERIES ? 2 : 1;
    const uint32_t eight = warp % n_eight, part = warp / n_eight, n_part = CTA_WARPS / n_eight;
    float *const weight = weights + eight * BLOCK_WEIGHTS;
    stream s;
    stream::open(s, a, row, head, all, block, block + 1, buffer);

    /* scores */
    float q[WARP_QUERIES][Shape::CHUNKS];
    load_queries<Shape>(a, tile, head, eight * WARP_QUERIES, lane, q);
    for (uint32_t j = cta.begin / SPLIT_STAGE_KEYS * SPLIT_STAGE_KEYS; j < cta.end;
         j += SPLIT_STAGE_KEYS) {
        const uint8_t *const k = stream::next(s);
        for (uint32_t i = part * STEP_KEYS; i < SPLIT_STAGE_KEYS; i += n_part * STEP_KEYS)
            if (j + i < cta.end && j + i + STEP_KEYS > cta.begin)
                score_keys<TYPE, Shape>(q, k + i * a.row_bytes, a.row_bytes, a.head_dim, a.scale,
                                        lane, weight + (j + i) * WARP_QUERIES);
    }

    /* weights */
    __syncthreads();
    const size_t partial_row = (size_t)blockIdx.x * a.n_token * a.n_head;
    for (uint32_t n = warp; n < tile.n_query; n += CTA_WARPS) {
        const struct query query = query_of(a, tile, head, n);
        const struct keys own = keys_of(span_of(a, query.it), block);
        float max, sum;
        softmax_block(weights + n / WARP_QUERIES * BLOCK_WEIGHTS + n % WARP_QUERIES, own.begin,
                      own.end, lane, &max, &sum);
        float *const partial =
            a.partial + (partial_row + query.it * a.n_head + query.ih) * a.partial_stride;
        if (lane == 0) partial[a.head_dim] = max;
        if (lane == 0) partial[a.head_dim + 1] = sum;
    }

    /* weighted sum of the values */
    float o[WARP_QUERIES][SPLIT_CHUNKS];
#pragma unroll
    for (uint32_t n = 0; n < WARP_QUERIES; n++)
#pragma unroll
        for (uint32_t c = 0; c < SPLIT_CHUNKS; c++)
            o[n][c] = 0.0f;
    typedef head_shape<SPLIT_CHUNKS, true> chunks;
    for (uint32_t j = cta.begin / SPLIT_STAGE_KEYS * SPLIT_STAGE_KEYS; j < cta.end;
         j += SPLIT_STAGE_KEYS) {
        const uint8_t *const v = stream::next(s);
        const uint32_t from = max(cta.begin, j), to = min(cta.end, j + SPLIT_STAGE_KEYS);
        const uint8_t *const rows = v + (from - j) * a.row_bytes;
        if (alike)
            add_values<TYPE, chunks, false>(weight + from * WARP_QUERIES, rows, a.row_bytes,
                                            a.head_dim, to - from, part, n_part, lane, o);
        else
            add_values<TYPE, chunks, true>(weight + from * WARP_QUERIES, rows, a.row_bytes,
                                           a.head_dim, to - from, part, n_part, lane, o);
    }
#pragma unroll
    for (uint32_t n = 0; n < WARP_QUERIES; n++) {
        if (eight * WARP_QUERIES + n >= tile.n_query) continue;
        const struct query query = query_of(a, tile, head, eight * WARP_QUERIES + n);
        float *const partial =
            a.partial + (partial_row + query.it * a.n_head + query.ih) * a.partial_stride;
#pragma unroll
        for (uint32_t c = 0; c < SPLIT_CHUNKS; c++) {
            const uint32_t i = (part + c * n_part) * WARP + lane;
            if (i < a.head_dim) partial[i] = o[n][c];
        }
    }
}

/* A thread for each dimension of a query: the blocks of a round in order, after those of earlier
 * rounds. Grid: heads, rows, dimensions. */
KERNEL(JOIN_THREADS) join_blocks(const struct attention_launch a)
{
    __shared__ float block_max[JOIN_THREADS], block_sum[JOIN_THREADS];
    __shared__ float factor_old[JOIN_THREADS], factor_new[JOIN_THREADS];
    const uint32_t it = blockIdx.y, ih = blockIdx.x, t = threadIdx.x;
    const uint32_t i = blockIdx.z * JOIN_THREADS + t;
    const bool used = i < a.head_dim;
    const struct span span = span_of(a, it);
    const uint32_t base = a.row[it].block_begin + a.round_begin;
    const uint32_t first = span.first / KV_BLOCK, last = span.last / KV_BLOCK;
    const uint32_t begin = max(first, base), end = min(last + 1, base + a.round_blocks);
    if (begin >= end) return;

    const size_t at = ((size_t)it * a.n_head + ih) * a.partial_stride;
    const size_t block_stride = (size_t)a.n_token * a.n_head * a.partial_stride;
    /* Not one for all: a CTA of this query may start when another has ended. */
    float *const own = a.joined + at + a.head_dim + 2 * blockIdx.z;
    float acc = 0.0f, max_so_far = -INFINITY, sum = 0.0f;
    if (begin > first) {
        if (used) acc = a.joined[at + i];
        max_so_far = own[0];
        sum = own[1];
    }
    for (uint32_t some = begin; some < end; some += JOIN_THREADS) {
        const uint32_t n = min(end - some, JOIN_THREADS);
        const float *const partial = a.partial + (some - base) * block_stride + at;
        if (t < n) {
            block_max[t] = partial[t * block_stride + a.head_dim];
            block_sum[t] = partial[t * block_stride + a.head_dim + 1];
        }
        __syncthreads();
        float max_before = max_so_far;
        for (uint32_t b = 0; b < n; b++) {
            if (b == t) max_before = max_so_far;
            max_so_far = max_so_far > block_max[b] ? max_so_far : block_max[b];
            if (b == t) {
                factor_old[t] = exact_exp(max_before - max_so_far);
                factor_new[t] = exact_exp(block_max[t] - max_so_far);
            }
        }
        __syncthreads();
#pragma unroll 8
        for (uint32_t b = 0; b < n; b++) {
            const float value = used ? partial[b * block_stride + i] : 0.0f;
            const bool is_first = some + b == first;
            acc = is_first ? value : fmaf(value, factor_new[b], acc * factor_old[b]);
            sum = is_first ? block_sum[b] : fmaf(block_sum[b], factor_new[b], sum * factor_old[b]);
        }
        __syncthreads();
    }
    if (!used) return;
    if (end == last + 1) {
        const float value = acc * (1.0f / sum);
        const float *const gate =
            a.gate ? a.gate + it * a.gate_stride + ih * a.gate_head_stride : NULL;
        a.out[((size_t)it * a.n_head + ih) * a.head_dim + i] =
            gate ? value * exact_sigmoid(gate[i]) : value;
        return;
    }
    a.joined[at + i] = acc;
    if (t == 0) own[0] = max_so_far;
    if (t == 0) own[1] = sum;
}

/* ---- the host's side ---- */

typedef void (*attention_kernel)(const struct attention_launch);

struct attention_kernels {
    attention_kernel append, walk, split;
};

template <enum tensor_type TYPE> static struct attention_kernels kernels_of(uint32_t head_dim)
{
#define WITH_SHAPE(...)                                                                            \
    return                                                                                         \
    {                                                                                              \
        append<TYPE>, attend_walk<TYPE, head_shape<__VA_ARGS__>>,                                  \
            attend_split<TYPE, head_shape<__VA_ARGS__>>                                            \
    }
    if (head_dim == 64) WITH_SHAPE(2, false);
    if (head_dim == 128) WITH_SHAPE(4, false);
    if (head_dim == 256) WITH_SHAPE(8, false);
    WITH_SHAPE(HEAD_DIM_MAX / WARP, true);
#undef WITH_SHAPE
}

static struct attention_kernels choose_kernels(const struct attention_args *args)
{
    switch (args->kv_type) {
    case TENSOR_F32:
        return kernels_of<TENSOR_F32>(args->head_dim);
    case TENSOR_F16:
        return kernels_of<TENSOR_F16>(args->head_dim);
    case TENSOR_BF16:
        return kernels_of<TENSOR_BF16>(args->head_dim);
    default:
        assert(args->kv_type == TENSOR_Q8_0);
        return kernels_of<TENSOR_Q8_0>(args->head_dim);
    }
}

/* Rows [it_begin, it_end) of one sequence, and the blocks that any of them sees. */
struct run {
    uint32_t it_begin, it_end, block_begin, block_end;
};

static struct run run_from(const struct attention_args *args, uint32_t it)
{
    const uint32_t slot = args->token[it].slot, pos = args->token[it].pos;
    struct run run = {it, it, 0, 0};
    if (args->window && pos >= args->window) run.block_begin = (pos - args->window + 1) / KV_BLOCK;
    while (run.it_end < args->n_token && args->token[run.it_end].slot == slot)
        run.it_end++;
    run.block_end = args->token[run.it_end - 1].pos / KV_BLOCK + 1;
    return run;
}

/* Blocks to make room for: rounded up by at most a quarter (or to 8), so that a growing context
 * changes the launches rarely. */
static uint32_t round_up_blocks(uint32_t n_block)
{
    uint32_t step = 8;
    while (step * 8 <= n_block)
        step *= 2;
    return (n_block + step - 1) / step * step;
}

struct batch_shape {
    uint32_t n_run, n_block;  /* n_block: room for the blocks of each run */
    uint32_t n_walk, n_split; /* tiles of either way */
    uint32_t n_row_max;       /* of a run */
};

static uint32_t count_tiles(const struct run *run, uint32_t group, uint32_t tile_queries)
{
    return ((run->it_end - run->it_begin) * group + tile_queries - 1) / tile_queries;
}

static struct batch_shape measure_batch(const struct attention_args *args, uint32_t group)
{
    struct batch_shape shape = {0, 0, 0, 0, 0};
    for (uint32_t it = 0; it < args->n_token;) {
        const struct run run = run_from(args, it);
        const uint32_t n_block = round_up_blocks(run.block_end - run.block_begin);
        shape.n_run++;
        shape.n_block = n_block > shape.n_block ? n_block : shape.n_block;
        shape.n_walk += count_tiles(&run, group, WALK_QUERIES);
        shape.n_split += count_tiles(&run, group, SPLIT_QUERIES);
        shape.n_row_max = max(shape.n_row_max, run.it_end - run.it_begin);
        it = run.it_end;
    }
    return shape;
}

/* Tells the kernels where rows, tiles and blocks are. false: no memory, noted. */
static bool stage_batch(struct cuda_backend *cuda, const struct attention_args *args,
                        const struct batch_shape *shape, uint32_t tile_queries, uint32_t n_tile,
                        struct attention_launch *launch)
{
    const size_t block_bytes = (size_t)shape->n_run * shape->n_block * sizeof(uint8_t *);
    const size_t row_bytes = args->n_token * sizeof(struct row_place);
    const void *device;
    uint8_t *const host = (uint8_t *)stage_room(
        cuda, block_bytes + row_bytes + n_tile * sizeof(struct query_tile), &device);
    if (!host) return false;
    uint8_t **block = (uint8_t **)host;
    struct row_place *row = (struct row_place *)(host + block_bytes);
    struct query_tile *tile = (struct query_tile *)(host + block_bytes + row_bytes);
    launch->block = (uint8_t *const *)device;
    launch->row = (const struct row_place *)((const uint8_t *)device + block_bytes);
    launch->tile = (const struct query_tile *)((const uint8_t *)device + block_bytes + row_bytes);

    memset(block, 0, block_bytes);
    uint32_t table = 0;
    for (uint32_t it = 0; it < args->n_token;) {
        const struct run run = run_from(args, it);
        for (uint32_t b = run.block_begin; b < run.block_end; b++)
            block[table + b - run.block_begin] = (uint8_t *)args->kv_block[args->token[it].slot][b];
        const uint32_t n_query = (run.it_end - run.it_begin) * launch->group;
        for (uint32_t query = 0; query < n_query; query += tile_queries)
            *tile++ = {run.it_begin, query,
                       n_query - query < tile_queries ? n_query - query : tile_queries};
        for (; it < run.it_end; it++)
            *row++ = {args->token[it].pos, table, run.block_begin};
        table += shape->n_block;
    }
    return true;
}

/* A block's partials for all queries, in rounds of as many blocks as there is memory for. */
static void launch_split(struct cuda_backend *cuda, const struct attention_args *args,
                         const struct batch_shape *shape, attention_kernel kernel,
                         struct attention_launch *a)
{
    const dim3 join_grid(args->n_head, args->n_token,
                         (args->head_dim + JOIN_THREADS - 1) / JOIN_THREADS);
    a->partial_stride = (args->head_dim + 2 * join_grid.z + 7) / 8 * 8; /* whole sectors */
    const size_t bytes = (size_t)args->n_token * args->n_head * a->partial_stride * sizeof(float);
    const size_t n_fit = n_multiprocessor(cuda) * PARTIAL_BYTES / bytes;
    a->round_blocks = n_fit >= shape->n_block ? shape->n_block : n_fit ? (uint32_t)n_fit : 1;
    a->partial = (float *)scratch(cuda, a->round_blocks * bytes);
    if (!a->partial) return;
    if (a->round_blocks < shape->n_block) {
        a->joined = (float *)scratch(cuda, bytes);
        if (!a->joined) return;
    }
    for (; a->round_begin < shape->n_block; a->round_begin += a->round_blocks) {
        launch(cuda, kernel, dim3(a->round_blocks, args->n_head_kv, shape->n_split),
               dim3(CTA_THREADS),
               2 * (BLOCK_WEIGHTS * sizeof(float) + SPLIT_STAGE_KEYS * a->row_bytes), *a);
        launch(cuda, join_blocks, join_grid, dim3(JOIN_THREADS), 0, *a);
    }
}

void cuda_attention(struct backend *backend, const struct attention_args *args)
{
    struct cuda_backend *const cuda = (struct cuda_backend *)backend;
    if (!args->n_token) return;
    if (args->head_dim > HEAD_DIM_MAX) {
        fail(cuda, "attention: heads of more than 256 dimensions");
        return;
    }
    assert(args->n_head % args->n_head_kv == 0);
    struct attention_launch a;
    memset(&a, 0, sizeof(a));
    a.q_in = args->q;
    a.k = args->k;
    a.v = args->v;
    a.gate = args->gate;
    a.q_stride = args->q_stride;
    a.q_head_stride = args->q_head_stride;
    a.gate_stride = args->gate_stride;
    a.gate_head_stride = args->gate_head_stride;
    a.kv_stride = args->kv_stride;
    a.q_norm = args->q_norm;
    a.k_norm = args->k_norm;
    a.rope_cos = args->rope_cos;
    a.rope_sin = args->rope_sin;
    a.out = args->out;
    a.eps = args->eps;
    a.scale = args->scale;
    a.n_token = args->n_token;
    a.n_head = args->n_head;
    a.n_head_kv = args->n_head_kv;
    a.group = args->n_head / args->n_head_kv;
    a.head_dim = args->head_dim;
    a.row_bytes = (uint32_t)tensor_row_bytes(args->kv_type, args->head_dim);
    a.rope = args->rope;
    a.n_rot = args->n_rot;
    a.window = args->window;

    const struct batch_shape shape = measure_batch(args, a.group);
    const uint32_t n_walk_cta = shape.n_walk * args->n_head_kv;
    const bool fast = fast_attends(cuda, args->head_dim, shape.n_row_max, n_walk_cta);
    const bool walk = fast || n_walk_cta >= n_multiprocessor(cuda);
    const uint32_t tile_queries = walk ? WALK_QUERIES : SPLIT_QUERIES;
    const uint32_t n_tile = walk ? shape.n_walk : shape.n_split;
    if (!stage_batch(cuda, args, &shape, tile_queries, n_tile, &a)) return;
    a.q = (float *)scratch(cuda,
                           (size_t)args->n_token * args->n_head * args->head_dim * sizeof(float));
    if (!a.q) return;

    const struct attention_kernels kernels = choose_kernels(args);
    const uint32_t n_append = args->n_token * (args->n_head + 2 * args->n_head_kv);
    launch(cuda, kernels.append, dim3((n_append + APPEND_WARPS - 1) / APPEND_WARPS),
           dim3(APPEND_WARPS * WARP), 0, a);
    if (fast)
        launch_fast_attention(cuda, a, args->kv_type, n_tile);
    else if (walk)
        launch(cuda, kernels.walk, dim3(n_tile, args->n_head_kv), dim3(CTA_THREADS),
               CTA_WARPS * BLOCK_WEIGHTS * sizeof(float) + 2 * WALK_STAGE_KEYS * a.row_bytes, a);
    else
        launch_split(cuda, args, &shape, kernels.split, &a);
}
