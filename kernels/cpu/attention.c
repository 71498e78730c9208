/* attention: keys and values are appended, then every row attends over its sequence's blocks.
 *
 * Rows of one sequence are taken in tiles, so that a block of keys is decoded once for all
 * queries of the tile that share a key head. Enough tiles: one task walks all blocks of its tile
 * and joins them as it goes. Few tiles and a long context (decode): one task for each block, in
 * rounds of as many blocks as keep the threads busy, so that memory does not grow with the context;
 * after each round its partials are joined in block order. Both do the same arithmetic. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"

_Static_assert((int)KV_BLOCK == (int)ATTEND_BLOCK, "a block of the cache is a block of the sum");

enum {
    TILE_QUERIES = ATTENTION_GROUP_MAX, /* queries of one key head in a tile, at most */
    ROUND_TASKS_PER_THREAD = 8,
};

/* Consecutive rows of one sequence and the blocks they see. */
struct tile {
    uint32_t it_begin, n_row;
    uint32_t block_begin, block_end;
};

struct attention {
    struct cpu_backend *cpu;
    const struct attention_args *args;
    float *q;               /* [n_token][n_head][head_dim], normed and rotated */
    struct tile *tile;      /* [n_tile] */
    uint32_t n_tile, group; /* group: query heads of a key head */
    uint32_t stride;        /* floats of a partial, padded */
    size_t kv_row_bytes;
    /* split: the joined blocks of each row, and the partials of a round */
    float *joined;  /* [n_token][n_head][stride] */
    float *partial; /* [tile][round_blocks][row][n_head][stride] */
    uint32_t round_blocks, round;
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

/* The blocks of a tile in the current round: [*begin, *end), none if it is done. */
static void round_of(const struct attention *a, const struct tile *tile, uint32_t *begin,
                     uint32_t *end)
{
    const uint32_t n = tile->block_end - tile->block_begin, done = a->round * a->round_blocks;
    *begin = tile->block_begin + (done < n ? done : n);
    *end = n - (*begin - tile->block_begin) < a->round_blocks ? tile->block_end
                                                              : *begin + a->round_blocks;
}

static float *split_partial(const struct attention *a, const struct tile *tile, uint32_t i)
{
    const size_t row_floats = (size_t)a->args->n_head * a->stride;
    return a->partial +
           ((size_t)tile->it_begin * a->round_blocks + (size_t)i * tile->n_row) * row_floats;
}

/* Task: one block of a tile and key head. Tasks of all tiles follow one another. */
static void attend_split(void *context, uint32_t task, uint32_t worker)
{
    const struct attention *a = context;
    const struct tile *tile = a->tile;
    const uint32_t head = task % a->args->n_head_kv;
    uint32_t begin, end;
    task /= a->args->n_head_kv;
    for (round_of(a, tile, &begin, &end); task >= end - begin; round_of(a, tile, &begin, &end)) {
        task -= end - begin;
        tile++;
    }
    float *into = split_partial(a, tile, task) + (size_t)head * a->group * a->stride;
    struct block_call call;
    gather_queries(a, tile, head, begin + task, into, (size_t)a->args->n_head * a->stride,
                   a->stride, &call);
    attend_block(a, tile, head, begin + task, &call, a->cpu->worker[worker].data);
}

/* Task: one query head of all rows of a tile; joins the round's blocks in order. */
static void merge_split(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct attention *a = context;
    const struct attention_args *args = a->args;
    const struct tile *tile = &a->tile[task / args->n_head];
    const uint32_t ih = task % args->n_head;
    uint32_t begin, end;
    round_of(a, tile, &begin, &end);
    for (uint32_t i = 0; i < tile->n_row; i++) {
        const uint32_t it = tile->it_begin + i;
        const size_t offset = ((size_t)i * args->n_head + ih) * a->stride;
        const uint32_t first = first_visible(args, it) / KV_BLOCK;
        const uint32_t last = args->token[it].pos / KV_BLOCK;
        float *acc = a->joined + ((size_t)it * args->n_head + ih) * a->stride;
        for (uint32_t block = first > begin ? first : begin; block < end && block <= last;
             block++) {
            const float *partial = split_partial(a, tile, block - begin) + offset;
            if (block == first)
                memcpy(acc, partial, a->stride * sizeof(float));
            else
                a->cpu->kernels->attend_merge(acc, partial, args->head_dim);
        }
        if (last >= begin && last < end) finish_head(a, it, ih, acc);
    }
}

/* One task for each block, round after round. */
static void run_split(struct attention *a)
{
    struct cpu_backend *cpu = a->cpu;
    const struct attention_args *args = a->args;
    const uint32_t n_walk = a->n_tile * args->n_head_kv;
    a->round_blocks = (ROUND_TASKS_PER_THREAD * pool_n_thread(cpu->pool) + n_walk - 1) / n_walk;
    const size_t row_floats = (size_t)args->n_head * a->stride;
    const size_t n_row = (size_t)args->n_token * (1 + a->round_blocks);
    a->joined = buffer_reserve(cpu, &cpu->partial, n_row * row_floats * sizeof(float), "attention");
    if (!a->joined) return;
    a->partial = a->joined + args->n_token * row_floats;
    for (a->round = 0;; a->round++) {
        uint32_t n_block = 0;
        for (uint32_t i = 0; i < a->n_tile; i++) {
            uint32_t begin, end;
            round_of(a, &a->tile[i], &begin, &end);
            n_block += end - begin;
        }
        if (!n_block) return;
        pool_run(cpu->pool, attend_split, a, n_block * args->n_head_kv);
        pool_run(cpu->pool, merge_split, a, a->n_tile * args->n_head);
    }
}

/* Cuts the rows into tiles. Returns the number of blocks over all tiles. */
static uint32_t make_tiles(struct attention *a)
{
    const struct attention_args *args = a->args;
    const uint32_t n_row_max = a->group < TILE_QUERIES ? TILE_QUERIES / a->group : 1;
    uint32_t n_block = 0;
    for (uint32_t it = 0; it < args->n_token;) {
        struct tile *tile = &a->tile[a->n_tile++];
        *tile = (struct tile){.it_begin = it, .block_begin = first_visible(args, it) / KV_BLOCK};
        while (it < args->n_token && tile->n_row < n_row_max &&
               args->token[it].slot == args->token[tile->it_begin].slot) {
            tile->block_end = args->token[it].pos / KV_BLOCK + 1;
            tile->n_row++;
            it++;
        }
        n_block += tile->block_end - tile->block_begin;
    }
    return n_block;
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

    const uint32_t n_block = make_tiles(&a), n_walk = a.n_tile * args->n_head_kv;
    if (n_walk < 2 * n_thread && n_thread > 1 && n_block > a.n_tile)
        run_split(&a);
    else
        pool_run(cpu->pool, walk_tile, &a, n_walk);
}
