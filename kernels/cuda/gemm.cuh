/* gemm_tile: the products of a tile of weight rows with a tile of activation rows ("columns" of the
 * result), by one block of threads. Same bits as warp_dot.
 *
 * Quantized types: a step is 256 columns of the matrices' common side. The block decodes the
 * weights of a step into signed bytes in shared memory and puts the activations beside them; then
 * each warp multiplies 16 rows by 8 * NT columns with integer tensor cores. Sums are exact: per
 * scale an mma into a fresh int32 tile, which is multiplied by the row's integer scale and added
 * up; minimums are one more product, of the minimums with the activations' sums of 16 (cut into two
 * bytes each). At the end of a superblock or block the sum enters its canonical accumulator by one
 * fmaf. K is not split. The next step's weights are on their way into registers meanwhile.
 *
 * Superblocks are taken in the order of their accumulators, 0, 4, 8, ..., then 1, 5, 9, ...: of the
 * four sums of a result only one grows at a time, and registers hold three at most. A row's bytes
 * are still read once from memory: what a sector holds of the next superblock is in the cache when
 * its turn comes, n_col / 1024 steps later.
 *
 *     a staged row, 320 bytes: part t (0-3) has word t of the groups of 16 columns, 0-15, then 16
 *     bytes beside (the scales); so what lane 4g+t needs of row g is 16 words in a row, and reads
 *     of 16 bytes by 8 lanes fall on different banks
 *
 * Float types: a warp takes 8 rows by 8 columns at a time, lane l the elements l, l + 32, ... of
 * all 64 products, in the canonical order; the tree of 32 lanes ends each.
 *
 * Which activation rows make a tile, and where results go, is the caller's: Columns has
 *   const uint8_t *act(uint32_t column) const       a row of act_of(TYPE), 64-byte aligned
 *   void store(uint32_t column, uint32_t row, float value) const
 * A tile's shape cannot change bits: rows and columns that are not there are computed, from the
 * last one's data, and not stored. */
#ifndef LEAN_KERNELS_CUDA_GEMM_CUH
#define LEAN_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/dot.cuh"
#include "kernels/cuda/ptx.cuh"

static const uint32_t GEMM_ROWS = 64;     /* of a tile */
static const uint32_t GEMM_ROW_WARPS = 4; /* 16 rows each */
static const uint32_t GEMM_WARPS = 2 * GEMM_ROW_WARPS, GEMM_THREADS = GEMM_WARPS * WARP;
/* Columns of a tile. */
HOST_DEVICE constexpr uint32_t gemm_columns(int nt)
{
    return 16 * (uint32_t)nt;
}
/* The largest NT for a type: a thread's accumulators, 4 or 8 for each of 4 * NT results, fill half
 * of its registers. */
HOST_DEVICE constexpr int gemm_nt_max(int type)
{
    return act_of(type) == ACT_Q8_0 ? 2 : 4;
}

struct staged_part {
    uint32_t word[16];
    union {
        uint32_t beside[4];
        int8_t bytes[16];
        float floats[4];
    };
};
/*                superblocks: part        blocks of 32: parts
 * weights        0 scales, 1 minimums     0-1 d of the 8 blocks
 *                2 d, dmin                2-3 m
 * activations    0, 1 bsums, low and      0-1 d
 *                high byte; 2 d           2-3 sums, as floats */
struct staged_row {
    struct staged_part part[4];
};
static_assert(sizeof(struct staged_row) == 320, "rows of 16 mod 32 banks apart");

template <int NT> struct gemm_shared {
    struct staged_row weight[GEMM_ROWS], act[gemm_columns(NT)];
};

/* ---- staging ---- */

/* One lane's slice, decoded: its two groups of the row's step, and what is beside. */
template <int TYPE> DEVICE void stage_slice(const slice<TYPE> &w, int s, struct staged_row *row)
{
    typedef slice<TYPE> weights;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int group = group_of<weights::PAIR>(s, i);
        const codes_16 codes = w.codes(s, i);
#pragma unroll
        for (int k = 0; k < 4; k++)
            row->part[k].word[group] = codes.word[k];
        if constexpr (act_of(TYPE) == ACT_Q8_K) {
            row->part[0].bytes[group] = (int8_t)w.scale(s, i);
            if constexpr (weights::HAS_MIN) row->part[1].bytes[group] = (int8_t)w.min(s, i);
        }
    }
    if constexpr (act_of(TYPE) == ACT_Q8_K) {
        if (s == 0) row->part[2].floats[0] = w.d();
        if constexpr (weights::HAS_MIN)
            if (s == 0) row->part[2].floats[1] = w.dmin();
    } else {
        row->part[s / 4].floats[s % 4] = w.d();
        if constexpr (weights::HAS_MIN) row->part[2 + s / 4].floats[s % 4] = w.m();
    }
}

/* Four sums of 16, two in each word, to bytes: n = high * 128 + low, 0 <= low < 128. A sum is at
 * most 16 * 127 in magnitude, so bits 7 to 14 are high with its sign. */
DEVICE uint32_t pack_sums(uint32_t first, uint32_t second, bool high)
{
    const int shift = high ? 7 : 0;
    const uint32_t mask = high ? 0x00ff00ffu : 0x007f007fu;
    return __byte_perm(first >> shift & mask, second >> shift & mask, 0x6420);
}

/* Quarter q of an activation block: 64 columns, and part q of what is beside. */
template <int TYPE> DEVICE void stage_act(const uint8_t *act, uint32_t b, int q, staged_row *row)
{
    const struct act_q8_k *x = reinterpret_cast<const struct act_q8_k *>(act) + b;
    uint4 group[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        group[i] = *reinterpret_cast<const uint4 *>(x->qs + 64 * q + 16 * i);
    uint4 *const to[4] = {
        reinterpret_cast<uint4 *>(row->part[0].word) + q,
        reinterpret_cast<uint4 *>(row->part[1].word) + q,
        reinterpret_cast<uint4 *>(row->part[2].word) + q,
        reinterpret_cast<uint4 *>(row->part[3].word) + q,
    };
    *to[0] = make_uint4(group[0].x, group[1].x, group[2].x, group[3].x);
    *to[1] = make_uint4(group[0].y, group[1].y, group[2].y, group[3].y);
    *to[2] = make_uint4(group[0].z, group[1].z, group[2].z, group[3].z);
    *to[3] = make_uint4(group[0].w, group[1].w, group[2].w, group[3].w);
    if constexpr (act_of(TYPE) == ACT_Q8_K) {
        if (slice<TYPE>::HAS_MIN && q < 2) {
            const uint4 *const sums = reinterpret_cast<const uint4 *>(x->bsums);
            const uint4 first = sums[0], second = sums[1];
            const bool high = q == 1;
            *reinterpret_cast<uint4 *>(row->part[q].beside) = make_uint4(
                pack_sums(first.x, first.y, high), pack_sums(first.z, first.w, high),
                pack_sums(second.x, second.y, high), pack_sums(second.z, second.w, high));
        }
        if (q == 2) row->part[2].floats[0] = x->d;
    } else {
        const struct act_q8_0 *x32 = reinterpret_cast<const struct act_q8_0 *>(x);
        float4 beside;
        if (q < 2) {
            beside = reinterpret_cast<const float4 *>(x32->d)[q];
        } else {
            const int4 sums = reinterpret_cast<const int4 *>(x32->sums)[q - 2];
            beside = make_float4((float)sums.x, (float)sums.y, (float)sums.z, (float)sums.w);
        }
        *reinterpret_cast<float4 *>(row->part[q].floats) = beside;
    }
}

/* ---- one step of one warp ---- */

/* A warp's view of a step: rows g and g + 8 of its 16, column g of its n-th 8, word t. */
struct gemm_view {
    const struct staged_row *row[2];
    const struct staged_row *act; /* the first of the warp's columns */
    int g, t;
};

DEVICE uint4 four_words(const struct staged_part &part, int q)
{
    return reinterpret_cast<const uint4 *>(part.word)[q];
}
DEVICE float4 floats_beside(const struct staged_part &part)
{
    return *reinterpret_cast<const float4 *>(part.floats);
}
template <int I> DEVICE uint32_t word_of(const uint4 &four)
{
    return I == 0 ? four.x : I == 1 ? four.y : I == 2 ? four.z : four.w;
}
template <int I> DEVICE float float_of(const float4 &four)
{
    return I == 0 ? four.x : I == 1 ? four.y : I == 2 ? four.z : four.w;
}

/* isum += scale * (16 columns of the groups 4q + I), and of I + 1 where they share a scale. */
template <int SCALE_COLUMNS, int I>
DEVICE void mma_group(const uint4 &a0, const uint4 &a1, const uint4 &x, uint32_t scale0,
                      uint32_t scale1, int32_t *isum)
{
    int32_t c[4] = {0, 0, 0, 0};
    if constexpr (SCALE_COLUMNS == 32) {
        const uint32_t a[4] = {word_of<I>(a0), word_of<I>(a1), word_of<I + 1>(a0),
                               word_of<I + 1>(a1)};
        const uint32_t b[2] = {word_of<I>(x), word_of<I + 1>(x)};
        mma_s8_16x8x32(c, a, b);
    } else {
        const uint32_t a[2] = {word_of<I>(a0), word_of<I>(a1)};
        mma_s8_16x8x16(c, a, word_of<I>(x));
    }
    const int of_row0 = (int8_t)(scale0 >> 8 * I), of_row1 = (int8_t)(scale1 >> 8 * I);
    isum[0] += of_row0 * c[0];
    isum[1] += of_row0 * c[1];
    isum[2] += of_row1 * c[2];
    isum[3] += of_row1 * c[3];
}

template <int TYPE, int NT> struct gemm_superblocks {
    /* One superblock into its accumulator acc[n][i]. */
    static MEMBER void step(const gemm_view &v, float (&acc)[NT][4])
    {
        typedef slice<TYPE> weights;
        enum { WIDTH = weights::SCALE_COLUMNS };
        int32_t isum[NT][4] = {};
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint4 a0 = four_words(v.row[0]->part[v.t], q);
            const uint4 a1 = four_words(v.row[1]->part[v.t], q);
            const uint32_t scale0 = v.row[0]->part[0].beside[q],
                           scale1 = v.row[1]->part[0].beside[q];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const uint4 x = four_words(v.act[8 * n + v.g].part[v.t], q);
                mma_group<WIDTH, 0>(a0, a1, x, scale0, scale1, isum[n]);
                if constexpr (WIDTH == 16) mma_group<WIDTH, 1>(a0, a1, x, scale0, scale1, isum[n]);
                mma_group<WIDTH, 2>(a0, a1, x, scale0, scale1, isum[n]);
                if constexpr (WIDTH == 16) mma_group<WIDTH, 3>(a0, a1, x, scale0, scale1, isum[n]);
            }
        }
        const float d[2] = {v.row[0]->part[2].floats[0], v.row[1]->part[2].floats[0]};
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const struct staged_row *columns = v.act + 8 * n + 2 * v.t;
            const float d_x[2] = {columns[0].part[2].floats[0], columns[1].part[2].floats[0]};
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[n][i] = fmaf(d[i / 2] * d_x[i % 2], (float)isum[n][i], acc[n][i]);
            if constexpr (weights::HAS_MIN) {
                const uint32_t mins[2] = {v.row[0]->part[1].beside[v.t],
                                          v.row[1]->part[1].beside[v.t]};
                const float dmin[2] = {v.row[0]->part[2].floats[1], v.row[1]->part[2].floats[1]};
                const struct staged_row *column = v.act + 8 * n + v.g;
                int32_t low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
                mma_s8_16x8x16(low, mins, column->part[0].beside[v.t]);
                mma_s8_16x8x16(high, mins, column->part[1].beside[v.t]);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    acc[n][i] = fmaf(-(dmin[i / 2] * d_x[i % 2]), (float)(low[i] + 128 * high[i]),
                                     acc[n][i]);
            }
        }
    }
};

template <int TYPE, int NT> struct gemm_blocks {
    enum { N_ACC = 8 };

    /* Block J of the step; a0, a1: the words of its quarter, of the two rows. */
    template <int J>
    static MEMBER void block(const gemm_view &v, const uint4 &a0, const uint4 &a1,
                             float (&acc)[N_ACC][NT][4])
    {
        enum { I = J % 2 * 2 };
        const uint32_t a[4] = {word_of<I>(a0), word_of<I>(a1), word_of<I + 1>(a0),
                               word_of<I + 1>(a1)};
        const float d[2] = {v.row[0]->part[J / 4].floats[J % 4],
                            v.row[1]->part[J / 4].floats[J % 4]};
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint4 x = four_words(v.act[8 * n + v.g].part[v.t], J / 2);
            const uint32_t b[2] = {word_of<I>(x), word_of<I + 1>(x)};
            int32_t isum[4] = {0, 0, 0, 0};
            mma_s8_16x8x32(isum, a, b);
            const struct staged_row *columns = v.act + 8 * n + 2 * v.t;
            const float d_x[2] = {columns[0].part[J / 4].floats[J % 4],
                                  columns[1].part[J / 4].floats[J % 4]};
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[J][n][i] = fmaf(d[i / 2] * d_x[i % 2], (float)isum[i], acc[J][n][i]);
            if constexpr (slice<TYPE>::HAS_MIN) {
                const float m[2] = {v.row[0]->part[2 + J / 4].floats[J % 4],
                                    v.row[1]->part[2 + J / 4].floats[J % 4]};
                const float sum[2] = {columns[0].part[2 + J / 4].floats[J % 4],
                                      columns[1].part[2 + J / 4].floats[J % 4]};
#pragma unroll
                for (int i = 0; i < 4; i++)
                    acc[J][n][i] = fmaf(m[i / 2] * d_x[i % 2], sum[i % 2], acc[J][n][i]);
            }
        }
    }

    /* n_block: how many of the step's 8 exist. */
    static MEMBER void step(const gemm_view &v, uint32_t n_block, float (&acc)[N_ACC][NT][4])
    {
        const uint4 a00 = four_words(v.row[0]->part[v.t], 0);
        const uint4 a01 = four_words(v.row[1]->part[v.t], 0);
        block<0>(v, a00, a01, acc);
        if (n_block > 1) block<1>(v, a00, a01, acc);
        const uint4 a10 = four_words(v.row[0]->part[v.t], 1);
        const uint4 a11 = four_words(v.row[1]->part[v.t], 1);
        if (n_block > 2) block<2>(v, a10, a11, acc);
        if (n_block > 3) block<3>(v, a10, a11, acc);
        const uint4 a20 = four_words(v.row[0]->part[v.t], 2);
        const uint4 a21 = four_words(v.row[1]->part[v.t], 2);
        if (n_block > 4) block<4>(v, a20, a21, acc);
        if (n_block > 5) block<5>(v, a20, a21, acc);
        const uint4 a30 = four_words(v.row[0]->part[v.t], 3);
        const uint4 a31 = four_words(v.row[1]->part[v.t], 3);
        if (n_block > 6) block<6>(v, a30, a31, acc);
        if (n_block > 7) block<7>(v, a30, a31, acc);
    }

    static MEMBER float sum(const float (&acc)[N_ACC][NT][4], int n, int i)
    {
        return ((acc[0][n][i] + acc[4][n][i]) + (acc[2][n][i] + acc[6][n][i])) +
               ((acc[1][n][i] + acc[5][n][i]) + (acc[3][n][i] + acc[7][n][i]));
    }
};

/* ---- tiles ---- */

/* The matrix of a tile: W [n_row][n_col], row 0 aligned as weights.cuh says. */
struct gemm_weight {
    const uint8_t *data;
    uint64_t row_bytes;
    uint32_t n_row, n_col;
};

template <int TYPE, int NT, class Columns> struct gemm_quantized {
    typedef slice<TYPE> weights;
    enum {
        K_QUANT = act_of(TYPE) == ACT_Q8_K,
        SLICES = GEMM_ROWS * 8 / GEMM_THREADS, /* a thread's, of a step */
    };

    /* This thread's slices of step b: rows first_row + thread / 8, + 32, ... */
    static MEMBER void load(const gemm_weight &w, uint32_t first_row, uint32_t b,
                            weights (&raw)[SLICES])
    {
        const int s = (int)(threadIdx.x % 8);
        const uint32_t n_block = w.n_col / weights::COLUMNS;
        const uint32_t block = K_QUANT ? b : min(8 * b + (uint32_t)s, n_block - 1);
#pragma unroll
        for (int i = 0; i < SLICES; i++) {
            const uint32_t r = first_row + threadIdx.x / 8 + GEMM_THREADS / 8 * i;
            const uint8_t *row = w.data + min(r, w.n_row - 1) * w.row_bytes;
            raw[i].load(row + (size_t)block * weights::BYTES, s);
        }
    }

    static MEMBER void stage(const weights (&raw)[SLICES], uint32_t b, uint32_t n_column,
                             const Columns &columns, gemm_shared<NT> *shared)
    {
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            stage_slice<TYPE>(raw[i], (int)(threadIdx.x % 8),
                              &shared->weight[threadIdx.x / 8 + GEMM_THREADS / 8 * i]);
        for (uint32_t i = threadIdx.x; i < 4 * gemm_columns(NT); i += GEMM_THREADS)
            stage_act<TYPE>(columns.act(min(i / 4, n_column - 1)), b, (int)(i % 4),
                            &shared->act[i / 4]);
    }

    /* One step: the weights of b, which are in raw, and the activations go to shared memory, and
     * those of `next` come into raw, if it is a step. The caller multiplies. */
    static MEMBER void turn(const gemm_weight &w, uint32_t first_row, uint32_t b, uint32_t next,
                            uint32_t n_column, const Columns &columns, weights (&raw)[SLICES],
                            gemm_shared<NT> *shared)
    {
        __syncthreads(); /* the last step has been read */
        stage(raw, b, n_column, columns, shared);
        __syncthreads();
        if (next < n_step(w)) load(w, first_row, next, raw);
    }

    static MEMBER uint32_t n_step(const gemm_weight &w)
    {
        return (w.n_col + QK - 1) / QK;
    }

    static MEMBER void superblocks(const gemm_weight &w, uint32_t first_row, uint32_t n_column,
                                   const Columns &columns, const gemm_view &view,
                                   weights (&raw)[SLICES], gemm_shared<NT> *shared,
                                   float (&sum)[NT][4])
    {
        float even[NT][4] = {}; /* the accumulator before an odd one */
#pragma unroll 1
        for (uint32_t j = 0; j < 4; j++) {
            float acc[NT][4] = {};
#pragma unroll 1
            for (uint32_t b = j; b < n_step(w); b += 4) {
                const uint32_t after = b + 4 < n_step(w) ? b + 4 : j < 3 ? j + 1 : n_step(w);
                turn(w, first_row, b, after, n_column, columns, raw, shared);
                gemm_superblocks<TYPE, NT>::step(view, acc);
            }
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float pair = even[n][i] + acc[n][i];
                    if (j == 1) sum[n][i] = pair;
                    if (j == 3) sum[n][i] += pair;
                    even[n][i] = acc[n][i];
                }
        }
    }

    static MEMBER void run(const gemm_weight &w, uint32_t first_row, uint32_t n_column,
                           const Columns &columns, gemm_shared<NT> *shared)
    {
        const uint32_t warp = threadIdx.x / WARP, lane = (uint32_t)lane_of();
        const uint32_t row = warp % GEMM_ROW_WARPS * 16 + lane / 4;
        const uint32_t column = warp / GEMM_ROW_WARPS * 8 * NT;
        const gemm_view view = {{&shared->weight[row], &shared->weight[row + 8]},
                                &shared->act[column],
                                (int)(lane / 4),
                                (int)(lane % 4)};
        float sum[NT][4] = {};
        weights raw[SLICES];
        load(w, first_row, 0, raw);
        if constexpr (K_QUANT) {
            superblocks(w, first_row, n_column, columns, view, raw, shared, sum);
        } else {
            typedef gemm_blocks<TYPE, NT> blocks;
            float acc[blocks::N_ACC][NT][4] = {};
            for (uint32_t b = 0; b < n_step(w); b++) {
                turn(w, first_row, b, b + 1, n_column, columns, raw, shared);
                blocks::step(view, min(w.n_col / QK32 - 8 * b, 8u), acc);
            }
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[n][i] = blocks::sum(acc, n, i);
        }
        __syncthreads(); /* the caller may use shared again */
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t c = column + 8 * n + 2 * (lane % 4) + i % 2;
                const uint32_t r = first_row + row + 8 * (i / 2);
                if (c < n_column && r < w.n_row) columns.store(c, r, sum[n][i]);
            }
    }
};

template <int TYPE, int NT, class Columns> struct gemm_floats {
    enum { EDGE = 8 }; /* rows and columns of a warp at a time */

    static MEMBER void corner(const gemm_weight &w, uint32_t first_row, uint32_t first_column,
                              uint32_t n_column, const Columns &columns)
    {
        const uint32_t lane = (uint32_t)lane_of();
        const uint8_t *const first = w.data + first_row * w.row_bytes;
        uint32_t row[EDGE]; /* bytes behind the first */
        const float *x[EDGE];
#pragma unroll
        for (int i = 0; i < EDGE; i++) {
            row[i] = (min(first_row + i, w.n_row - 1) - first_row) * (uint32_t)w.row_bytes;
            x[i] =
                reinterpret_cast<const float *>(columns.act(min(first_column + i, n_column - 1)));
        }
        float acc[EDGE][EDGE] = {};
        for (uint32_t k = lane; k < w.n_col; k += WARP) {
            float of_x[EDGE];
#pragma unroll
            for (int c = 0; c < EDGE; c++)
                of_x[c] = x[c][k];
#pragma unroll
            for (int r = 0; r < EDGE; r++) {
                const float of_w = float_weight<TYPE>::at(first + row[r], k);
#pragma unroll
                for (int c = 0; c < EDGE; c++)
                    acc[r][c] = fmaf(of_w, of_x[c], acc[r][c]);
            }
        }
#pragma unroll
        for (int r = 0; r < EDGE; r++) {
            float value = 0.0f; /* of lane c: column c */
#pragma unroll
            for (int c = 0; c < EDGE; c++) {
                const float sum = lanes_sum(acc[r][c]);
                if (lane == (uint32_t)c) value = sum;
            }
            if (lane < EDGE && first_column + lane < n_column && first_row + r < w.n_row)
                columns.store(first_column + lane, first_row + r, value);
        }
    }

    static MEMBER void run(const gemm_weight &w, uint32_t first_row, uint32_t n_column,
                           const Columns &columns, gemm_shared<NT> *)
    {
        const uint32_t warp = threadIdx.x / WARP, first = first_row + EDGE * warp;
        if (first >= w.n_row) return;
        for (uint32_t c = 0; c < n_column; c += EDGE)
            corner(w, first, c, n_column, columns);
    }
};
static_assert(GEMM_ROWS == 8 * GEMM_WARPS, "a float tile's rows: 8 a warp");

/* Rows first_row .. first_row + GEMM_ROWS - 1 of w, where they exist, times columns 0 .. n_column -
 * 1, at most gemm_columns(NT), at least 1. By a block of GEMM_THREADS, all of which arrive with the
 * same arguments; shared: static or dynamic shared memory, 16-byte aligned, free before and after.
 */
template <int TYPE, int NT, class Columns>
DEVICE void gemm_tile(const gemm_weight &w, uint32_t first_row, uint32_t n_column,
                      const Columns &columns, gemm_shared<NT> *shared)
{
    static_assert(NT <= gemm_nt_max(TYPE), "more accumulators than registers");
    if constexpr (act_of(TYPE) == ACT_F32)
        gemm_floats<TYPE, NT, Columns>::run(w, first_row, n_column, columns, shared);
    else
        gemm_quantized<TYPE, NT, Columns>::run(w, first_row, n_column, columns, shared);
}

#endif
