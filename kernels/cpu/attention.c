/* attention: keys and values are appended, then every row attends over its sequence's blocks.
 *
 * Rows of one sequence are taken in tiles, so that a block of keys is decoded once for all
 * queries of the tile that share a key head. Enough tiles: one task walks all blocks of its tile
 * and joins them as it goes. Few tiles and a long context (decode): one task for each block, the
 * partials are joined in block order afterwards. Both do the same arithmetic. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"

_Static_assert((int)KV_BLOCK == (int)ATTEND_BLOCK, "a block of the cache is a block of the sum");

enum {
    TILE_QUERIES = ATTENTION_GROUP_MAX, /* queries of one key head in a tile, at most */
    PARTIAL_BYTES_MAX = 64 << 20,       /* above this a single task walks all blocks */
};

/* Consecutive rows of one sequence and the blocks they see. */
struct tile {
    uint32_t it_begin, n_row;
    uint32_t block_begin, block_end;
    uint32_t first_partial; /* split: partials of blocks before this tile, over all tiles */
};

struct attention {
    struct cpu_backend *cpu;
    const struct attention_args *args;
    float *q;               /* [n_token][n_head][head_dim], normed and rotated */
    struct tile *tile;      /* [n_tile] */
    uint32_t n_tile, group; /* group: query heads of a key head */
    uint32_t stride;        /* floats of a partial, padded */
    size_t kv_row_bytes;
    float *partial; /* split: [tile][block][row][n_head][stride] */
};

size_t kv_block_bytes(enum tensor_type kv_type, uint32_t n_head_kv, uint32_t head_dim)
{
    return 2 * (size_t)n_head_kv * KV_BLOCK * tensor_row_bytes(kv_type, head_dim);
}

static uint32_t first_visible(const struct attention_args *args, uint32_t it)
{
    const uint32_t pos = args->token[it].pos;
    return args->window && pos >= args->window ? pos - args->window + 1 : 0;
}

static uint8_t *kv_rows(const struct attention *a, uint32_t slot, uint32_t block, uint32_t head)
{
    uint8_t *base = a->args->kv_block[slot][block];
    return base + (size_t)head * KV_BLOCK * a->kv_row_bytes;
}

static void norm_and_rotate(const struct attention *a, uint32_t it, const float *norm, float *x)
{
    const struct attention_args *args = a->args;
    const struct kernel_table *kernels = a->cpu->kernels;
    if (norm) kernels->rms_norm(x, norm, args->head_dim, args->eps, x);
    if (args->rope == ROPE_NONE) return;
    const size_t angle = (size_t)args->token[it].pos * (args->n_rot / 2);
    kernels->rope(x, args->rope_cos + angle, args->rope_sin + angle, args->n_rot,
                  args->rope == ROPE_NORM);
}

/* Task: the keys and values of one row, and its queries. */
static void append_row(void *context, uint32_t it, uint32_t worker)
{
    const struct attention *a = context;
    const struct attention_args *args = a->args;
    const struct kernel_table *kernels = a->cpu->kernels;
    const size_t head_bytes = args->head_dim * sizeof(float);
    const struct token_ref token = args->token[it];
    const uint32_t block = token.pos / KV_BLOCK, j = token.pos % KV_BLOCK;
    float *key = a->cpu->worker[worker].data;
    for (uint32_t head = 0; head < args->n_head_kv; head++) {
        const size_t offset = it * args->kv_stride + (size_t)head * args->head_dim;
        memcpy(key, args->k + offset, head_bytes);
        norm_and_rotate(a, it, args->k_norm, key);
        kernels->encode_row[args->kv_type](
            key, args->head_dim, kv_rows(a, token.slot, block, head) + j * a->kv_row_bytes);
        kernels->encode_row[args->kv_type](args->v + offset, args->head_dim,
                                           kv_rows(a, token.slot, block, args->n_head_kv + head) +
                                               j * a->kv_row_bytes);
    }
    for (uint32_t ih = 0; ih < args->n_head; ih++) {
        float *q = a->q + ((size_t)it * args->n_head + ih) * args->head_dim;
        memcpy(q, args->q + it * args->q_stride + ih * args->q_head_stride, head_bytes);
        norm_and_rotate(a, it, args->q_norm, q);
    }
}

/* Pointers and memory for one call of the leaf kernel, in a worker's buffer. */
struct block_call {
    const float *q[TILE_QUERIES];
    uint32_t begin[TILE_QUERIES], end[TILE_QUERIES];
    float *partial[TILE_QUERIES];
    bool first[TILE_QUERIES]; /* the block is the first that the query sees */
    uint32_t n_query;
};

/* Fills in the queries of a tile and key head that see a block; into names each query's place. */
static void gather_queries(const struct attention *a, const struct tile *tile, uint32_t head,
                           uint32_t block, float *into, size_t row_stride, size_t head_stride,
                           struct block_call *call)
{
    const struct attention_args *args = a->args;
    call->n_query = 0;
    for (uint32_t i = 0; i < tile->n_row; i++) {
        const uint32_t it = tile->it_begin + i;
        const uint32_t first = first_visible(args, it), last = args->token[it].pos;
        const uint32_t block_first = block * KV_BLOCK, block_last = block_first + KV_BLOCK - 1;
        if (last < block_first || first > block_last) continue;
        for (uint32_t g = 0; g < a->group; g++) {
            const uint32_t ih = head * a->group + g, n = call->n_query++;
            call->q[n] = a->q + ((size_t)it * args->n_head + ih) * args->head_dim;
            call->begin[n] = first > block_first ? first - block_first : 0;
            call->end[n] = (last < block_last ? last : block_last) - block_first + 1;
            call->first[n] = first / KV_BLOCK == block;
            call->partial[n] = into + i * row_stride + g * head_stride;
        }
    }
}

static void attend_block(const struct attention *a, const struct tile *tile, uint32_t head,
                         uint32_t block, const struct block_call *call, float *scratch)
{
    const struct attention_args *args = a->args;
    const uint32_t slot = args->token[tile->it_begin].slot;
    const struct attend_args leaf = {
        .kv_type = args->kv_type,
        .head_dim = args->head_dim,
        .k = kv_rows(a, slot, block, head),
        .v = kv_rows(a, slot, block, args->n_head_kv + head),
        .n_query = call->n_query,
        .q = call->q,
        .begin = call->begin,
        .end = call->end,
        .scale = args->scale,
        .partial = call->partial,
        .scratch = scratch,
    };
    if (call->n_query) a->cpu->kernels->attend(&leaf);
}

static void finish_head(const struct attention *a, uint32_t it, uint32_t ih, const float *acc)
{
    const struct attention_args *args = a->args;
    const float *gate =
        args->gate ? args->gate + it * args->gate_stride + ih * args->gate_head_stride : NULL;
    a->cpu->kernels->attend_finish(acc, args->head_dim, gate,
                                   args->out + ((size_t)it * args->n_head + ih) * args->head_dim);
}

/* Task: one tile and key head, all blocks. The first block a query sees is written in place, the
 * later ones are joined to it. */
static void walk_tile(void *context, uint32_t task, uint32_t worker)
{
    const struct attention *a = context;
    const struct attention_args *args = a->args;
    const struct tile *tile = &a->tile[task / args->n_head_kv];
    const uint32_t head = task % args->n_head_kv;
    float *acc = a->cpu->worker[worker].data;
    float *next = acc + (size_t)TILE_QUERIES * a->stride;
    float *scratch = next + (size_t)TILE_QUERIES * a->stride;
    const size_t row_stride = (size_t)a->group * a->stride;
    struct block_call call;
    for (uint32_t block = tile->block_begin; block < tile->block_end; block++) {
        gather_queries(a, tile, head, block, next, row_stride, a->stride, &call);
        for (uint32_t n = 0; n < call.n_query; n++)
            if (call.first[n]) call.partial[n] = acc + (call.partial[n] - next);
        attend_block(a, tile, head, block, &call, scratch);
        for (uint32_t n = 0; n < call.n_query; n++)
            if (!call.first[n])
                a->cpu->kernels->attend_merge(acc + (call.partial[n] - next), call.partial[n],
                                              args->head_dim);
    }
    for (uint32_t i = 0; i < tile->n_row; i++)
        for (uint32_t g = 0; g < a->group; g++)
            finish_head(a, tile->it_begin + i, head * a->group + g,
                        acc + i * row_stride + g * a->stride);
}

static float *split_partial(const struct attention *a, const struct tile *tile, uint32_t block)
{
    const size_t block_floats = (size_t)a->args->n_head * a->stride;
    return a->partial +
           (tile->first_partial + (size_t)(block - tile->block_begin) * tile->n_row) * block_floats;
}

/* Task: one block of a tile and key head. Tasks of all tiles follow one another. */
static void attend_split(void *context, uint32_t task, uint32_t worker)
{
    const struct attention *a = context;
    const struct tile *tile = a->tile;
    const uint32_t head = task % a->args->n_head_kv;
    task /= a->args->n_head_kv;
    while (task >= tile->block_end - tile->block_begin) {
        task -= tile->block_end - tile->block_begin;
        tile++;
    }
    const uint32_t block = tile->block_begin + task;
    float *into = split_partial(a, tile, block) + (size_t)head * a->group * a->stride;
    struct block_call call;
    gather_queries(a, tile, head, block, into, (size_t)a->args->n_head * a->stride, a->stride,
                   &call);
    attend_block(a, tile, head, block, &call, a->cpu->worker[worker].data);
}

/* Task: one query head of all rows of a tile; joins its blocks in order. */
static void merge_split(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct attention *a = context;
    const struct attention_args *args = a->args;
    const struct tile *tile = &a->tile[task / args->n_head];
    const uint32_t ih = task % args->n_head;
    for (uint32_t i = 0; i < tile->n_row; i++) {
        const uint32_t it = tile->it_begin + i;
        const size_t offset = ((size_t)i * args->n_head + ih) * a->stride;
        const uint32_t first = first_visible(args, it) / KV_BLOCK;
        const uint32_t last = args->token[it].pos / KV_BLOCK;
        float *acc = split_partial(a, tile, first) + offset;
        for (uint32_t block = first + 1; block <= last; block++)
            a->cpu->kernels->attend_merge(acc, split_partial(a, tile, block) + offset,
                                          args->head_dim);
        finish_head(a, it, ih, acc);
    }
}

/* Cuts the rows into tiles. Returns the number of (row, block) pairs over all tiles, which is
 * the number of partials of one head that a split needs. */
static uint64_t make_tiles(struct attention *a)
{
    const struct attention_args *args = a->args;
    const uint32_t n_row_max = a->group < TILE_QUERIES ? TILE_QUERIES / a->group : 1;
    uint64_t n_partial = 0;
    for (uint32_t it = 0; it < args->n_token;) {
        struct tile *tile = &a->tile[a->n_tile++];
        *tile = (struct tile){.it_begin = it, .block_begin = first_visible(args, it) / KV_BLOCK};
        while (it < args->n_token && tile->n_row < n_row_max &&
               args->token[it].slot == args->token[tile->it_begin].slot) {
            tile->block_end = args->token[it].pos / KV_BLOCK + 1;
            tile->n_row++;
            it++;
        }
        tile->first_partial = (uint32_t)n_partial;
        n_partial += (uint64_t)(tile->block_end - tile->block_begin) * tile->n_row;
    }
    return n_partial;
}

void cpu_attention(struct backend *backend, const struct attention_args *args)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    const uint32_t n_thread = pool_n_thread(cpu->pool);
    struct attention a = {
        .cpu = cpu,
        .args = args,
        .group = args->n_head / args->n_head_kv,
        .stride = (args->head_dim + 2 + 15) / 16 * 16,
        .kv_row_bytes = tensor_row_bytes(args->kv_type, args->head_dim),
    };
    assert(args->n_head % args->n_head_kv == 0 && a.group <= TILE_QUERIES);
    assert(cpu->kernels->encode_row[args->kv_type]);
    const size_t worker_floats =
        (size_t)2 * TILE_QUERIES * a.stride + (size_t)2 * ATTEND_BLOCK * args->head_dim;
    a.q = buffer_reserve(cpu, &cpu->q,
                         (size_t)args->n_token * args->n_head * args->head_dim * sizeof(float),
                         "attention");
    a.tile = buffer_reserve(cpu, &cpu->plan, args->n_token * sizeof(*a.tile), "attention");
    if (!a.q || !a.tile || !reserve_workers(cpu, worker_floats * sizeof(float), "attention"))
        return;
    pool_run(cpu->pool, append_row, &a, args->n_token);

    const uint64_t n_partial = make_tiles(&a);
    const uint64_t partial_bytes = n_partial * args->n_head * a.stride * sizeof(float);
    const uint32_t n_walk = a.n_tile * args->n_head_kv;
    uint32_t n_block = 0;
    for (uint32_t i = 0; i < a.n_tile; i++)
        n_block += a.tile[i].block_end - a.tile[i].block_begin;
    if (n_walk < 2 * n_thread && n_thread > 1 && n_block > a.n_tile &&
        partial_bytes <= PARTIAL_BYTES_MAX) {
        a.partial = buffer_reserve(cpu, &cpu->partial, partial_bytes, "attention");
        if (!a.partial) return;
        pool_run(cpu->pool, attend_split, &a, n_block * args->n_head_kv);
        pool_run(cpu->pool, merge_split, &a, a.n_tile * args->n_head);
        return;
    }
    pool_run(cpu->pool, walk_tile, &a, n_walk);
}
