/* Every operation of a backend gives the bits of a plain loop over the scalar kernels, however the
 * rows are split into calls: the CPU backend for every variant and 1, 2 and 4 threads, the CUDA
 * backend on its emulator for three orders of the threads of a block, and on a device.
 *
 *   check_backend [--backend cpu|cuda-emu|cuda] [--only CHECK] [--cases N] [SEED]
 *
 * Shapes and contents are random from the seed, which a failure prints. For the CUDA backend
 * buffers are its own memory: give copies there, compare back. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/backend_cuda.h"
#include "kernels/kernels.h"
#include "tests/kernels/plain_ops.h"
#include "tests/kernels/random_case.h"

enum { N_SLOT = 3 };

/* ---- the comparison ---- */

struct subject {
    struct backend *backend;
    const struct kernel_table *ref; /* scalar; of the "reference" arithmetic for that backend */
    bool slow;                      /* an emulator: fewer rows do */
    char name[64];
};

static const char *case_name;
static int n_failed;

static void *lent[512]; /* backend memory of this case */
static size_t n_lent;

/* Zeroed backend memory until the end of the case. */
static void *give_zeros(const struct subject *s, size_t n_bytes)
{
    struct lm_error err;
    void *memory = s->backend->ops->alloc(s->backend, n_bytes + !n_bytes, &err);
    if (!memory || n_lent == sizeof(lent) / sizeof(lent[0])) {
        printf("%s, %s: no memory: %s\n", s->name, case_name, memory ? "" : err.message);
        exit(1);
    }
    return lent[n_lent++] = memory;
}

/* A copy in backend memory until the end of the case. */
static void *give(const struct subject *s, const void *host, size_t n_bytes)
{
    if (!host) return NULL;
    void *memory = give_zeros(s, n_bytes);
    s->backend->ops->upload(s->backend, memory, host, n_bytes);
    return memory;
}

static float *give_floats(const struct subject *s, const float *host, size_t n)
{
    return give(s, host, n * sizeof(float));
}

static struct weight give_weight(const struct subject *s, const struct weight *host,
                                 uint32_t n_matrix)
{
    struct weight w = *host;
    w.data = give(s, host->data, (size_t)n_matrix * w.n_row * w.row_bytes);
    return w;
}

/* The end of a case. */
static void take_back_all(const struct subject *s)
{
    while (n_lent)
        s->backend->ops->free(s->backend, lent[--n_lent]);
    put_back_all();
}

static void expect_sync(const struct subject *s)
{
    struct lm_error err;
    if (s->backend->ops->sync(s->backend, &err) == LM_OK) return;
    printf("%s, %s: %s\n", s->name, case_name, err.message);
    n_failed++;
}

/* got: backend memory. */
static void compare(const struct subject *s, const char *what, const void *got,
                    const void *expected, size_t n_bytes)
{
    uint8_t *host = take(n_bytes);
    s->backend->ops->download(s->backend, host, got, n_bytes);
    expect_sync(s);
    if (memcmp(host, expected, n_bytes) != 0) {
        size_t i = 0;
        while (host[i] == ((const uint8_t *)expected)[i])
            i++;
        i /= 4;
        const uint32_t bits = ((const uint32_t *)host)[i];
        printf("%s, %s, %s: word %zu of %zu is %08" PRIx32 " (%g), not %08" PRIx32 " (%g)\n",
               s->name, case_name, what, i, n_bytes / 4, bits, (double)f32_from_bits(bits),
               ((const uint32_t *)expected)[i], (double)((const float *)expected)[i]);
        n_failed++;
    }
    put_back(host);
}

/* 1 .. n rows, fewer on what is slow. */
static uint32_t random_rows(const struct subject *s, uint32_t n)
{
    return 1 + random_below(s->slow && n > 24 ? 24 : n);
}

/* Calls of 1 .. n rows that cover n_token. */
static uint32_t next_split(uint32_t left)
{
    return random_below(2) ? left : 1 + random_below(left);
}

/* type: of the first matrix, or -1. */
static void check_linear_of(const struct subject *s, int type, uint32_t n_token, uint32_t n_row_max,
                            uint32_t n_col)
{
    struct linear_args args = {.n_token = n_token, .n_col = n_col, .eps = 1e-5f};
    struct weight w[LINEAR_MAX], device_w[LINEAR_MAX];
    const float *x = random_floats((size_t)n_token * n_col), *norm = random_floats(n_col);
    args.x = x;
    args.norm = random_below(2) ? norm : NULL;
    args.n_out = random_below(2) ? 1 : 1 + random_below(LINEAR_MAX);
    for (uint32_t i = 0; i < args.n_out; i++) {
        const uint32_t n_row = 1 + random_below(n_row_max);
        w[i] =
            weight_of_type(i || type < 0 ? random_type() : (enum tensor_type)type, n_row, n_col, 1);
        args.out[i].w = &w[i];
        args.out[i].y_stride = w[i].n_row + random_below(5);
        args.out[i].y = take(n_token * args.out[i].y_stride * sizeof(float));
        if (random_below(2)) args.out[i].bias = random_floats(w[i].n_row);
    }
    const size_t n_residual = (size_t)n_token * w[0].n_row;
    const float *post = random_floats(w[0].n_row);
    if (args.n_out == 1) {
        args.epilogue.eps = 1e-6f;
        args.epilogue.post_norm = random_below(2) ? post : NULL;
        if (random_below(2)) args.epilogue.residual = random_floats(n_residual);
    }
    struct linear_args device = args;
    device.x = give_floats(s, x, (size_t)n_token * n_col);
    device.norm = give_floats(s, args.norm, n_col);
    device.epilogue.post_norm = give_floats(s, args.epilogue.post_norm, w[0].n_row);
    device.epilogue.residual = give_floats(s, args.epilogue.residual, n_residual);
    for (uint32_t i = 0; i < args.n_out; i++) {
        device_w[i] = give_weight(s, &w[i], 1);
        device.out[i].w = &device_w[i];
        device.out[i].y = give_zeros(s, n_token * args.out[i].y_stride * sizeof(float));
        device.out[i].bias = give_floats(s, args.out[i].bias, w[i].n_row);
    }
    plain_linear(s->ref, &args);
    struct linear_args part = device;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = next_split(n_token - it);
        part.x = device.x + (size_t)it * n_col;
        for (uint32_t i = 0; i < args.n_out; i++)
            part.out[i].y = device.out[i].y + it * args.out[i].y_stride;
        if (device.epilogue.residual)
            part.epilogue.residual = device.epilogue.residual + (size_t)it * w[0].n_row;
        s->backend->ops->linear(s->backend, &part);
    }
    expect_sync(s);
    for (uint32_t i = 0; i < args.n_out; i++)
        compare(s, tensor_type_info(w[i].type)->name, device.out[i].y, args.out[i].y,
                n_token * args.out[i].y_stride * sizeof(float));
    if (args.epilogue.residual)
        compare(s, "residual", device.epilogue.residual, args.epilogue.residual,
                n_residual * sizeof(float));
}

static void check_linear(const struct subject *s)
{
    const uint32_t some_columns[4] = {32 + random_below(100), 256 * (1 + random_below(3)),
                                      256 * (4 + random_below(9)), 32 * (1 + random_below(100))};
    const uint32_t n_token = 1 + random_below(random_below(2) ? 8 : s->slow ? 100 : 200);
    check_linear_of(s, -1, n_token, 200, some_columns[random_below(4)]);
}

/* No type is left to chance, neither with few rows of activations nor with many: all in four turns.
 */
static void check_linear_types(const struct subject *s)
{
    static int turn;
    turn++;
    for (int i = 0; i < 2 * N_WEIGHT_TYPE; i++) {
        if (i / 2 % 4 != turn % 4) continue;
        const uint32_t n_token = i % 2 ? 1 + random_below(8) : 9 + random_below(60);
        check_linear_of(s, weight_types[i / 2], n_token, 80, 256 * (1 + random_below(6)));
        take_back_all(s);
    }
}

static void check_route(const struct subject *s)
{
    const uint32_t n_token = random_rows(s, 40), n_expert = 2 + random_below(510);
    const uint32_t n_col = 32 * (1 + random_below(20));
    const uint32_t k = 1 + random_below(random_below(4) && n_expert > 32 ? 16u : n_expert / 2);
    const struct weight router = random_weight(n_expert, n_col, 1);
    float *x = random_floats((size_t)n_token * n_col), *bias = random_floats(n_expert);
    if (random_below(2)) memset(x, 0, n_col * sizeof(float)); /* all scores tie */
    const size_t n = (size_t)n_token * k;
    struct route_args args = {
        .n_token = n_token,
        .x = x,
        .router = &router,
        .selection_bias = random_below(2) ? bias : NULL,
        .gating = random_below(2) ? GATING_SIGMOID : GATING_SOFTMAX,
        .normalize = random_below(2),
        .scale = (float)random_below(3),
        .n_expert_used = k,
        .ids = take(n * sizeof(int32_t)),
        .weights = take(n * sizeof(float)),
    };
    const struct weight device_router = give_weight(s, &router, 1);
    struct route_args device = args;
    device.x = give_floats(s, x, (size_t)n_token * n_col);
    device.router = &device_router;
    device.selection_bias = give_floats(s, args.selection_bias, n_expert);
    device.ids = give_zeros(s, n * sizeof(int32_t));
    device.weights = give_zeros(s, n * sizeof(float));
    plain_route(s->ref, &args);
    struct route_args part = device;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = next_split(n_token - it);
        part.x = device.x + (size_t)it * n_col;
        part.ids = device.ids + (size_t)it * k;
        part.weights = device.weights + (size_t)it * k;
        s->backend->ops->route(s->backend, &part);
    }
    expect_sync(s);
    compare(s, "ids", device.ids, args.ids, n * sizeof(int32_t));
    compare(s, "weights", device.weights, args.weights, n * sizeof(float));
}

/* ffn, or the same in steps with the experts in random groups. */
static void run_ffn(const struct subject *s, struct ffn_args *args, uint32_t n_expert, bool steps)
{
    const struct backend_ops *ops = s->backend->ops;
    const size_t n_out = (size_t)args->n_token * args->n_expert_used * args->n_embd;
    args->expert_out = steps || random_below(2) ? give_zeros(s, n_out * sizeof(float)) : NULL;
    if (!steps) {
        ops->ffn(s->backend, args);
        return;
    }
    const uint32_t n_group = 1 + random_below(4);
    uint32_t *group = take(n_expert * sizeof(*group));
    bool *selected = take(n_expert * sizeof(*selected));
    for (uint32_t ie = 0; ie < n_expert; ie++)
        group[ie] = random_below(n_group);
    for (uint32_t ig = 0; ig < n_group; ig++) {
        for (uint32_t ie = 0; ie < n_expert; ie++)
            selected[ie] = group[ie] == ig;
        ops->ffn_experts(s->backend, args, selected);
    }
    ops->ffn_finish(s->backend, args);
}

static void check_ffn(const struct subject *s)
{
    const bool many = !random_below(4); /* rows: more for each expert than go into one tile */
    const uint32_t n_token = many              ? 65 + random_below(32)
                             : random_below(2) ? 1 + random_below(8)
                                               : random_rows(s, 40);
    const uint32_t n_embd = random_below(2) ? 256 : 32 * (1 + random_below(many ? 2 : 9));
    const uint32_t n_ff = random_below(2) ? 256 * (1 + random_below(many ? 1 : 3))
                                          : 32 * (1 + random_below(many ? 2 : 20));
    const uint32_t n_ff_shared =
        random_below(2) ? 256 * (many ? 1u : 2u) : 32 * (1 + random_below(20));
    const uint32_t n_expert = 1 + random_below(many ? 3 : 12);
    const bool routed = many || random_below(4), shared = !routed || random_below(2),
               fused = random_below(2), as_table = random_below(2);
    const uint32_t k = many ? n_expert : routed ? 1 + random_below(n_expert) : 0;
    const float *shared_gate = random_floats(n_embd), *post = random_floats(n_embd);
    const uint32_t n_matrix[6] = {n_expert * (1 + fused), n_expert, n_expert, 1, 1, 1};
    const uint32_t n_row[6] = {n_ff, n_ff, n_embd, n_ff_shared, n_ff_shared, n_embd};
    const uint32_t n_col[6] = {n_embd, n_embd, n_ff, n_embd, n_embd, n_ff_shared};
    /* Types as files have them: gate and up alike, down at times another, the shared expert's the
     * same or not; or any. */
    const bool any = !random_below(3), shared_alike = random_below(2);
    const enum tensor_type gate_type = random_type(),
                           down_type = random_below(2) ? gate_type : random_type();
    struct weight w[6], device_w[6];
    for (int i = 0; i < 6; i++) {
        const enum tensor_type type = any || (i >= 3 && !shared_alike) ? random_type()
                                      : i % 3 == 2                     ? down_type
                                                                       : gate_type;
        w[i] = weight_of_type(type, n_row[i], n_col[i], n_matrix[i]);
        if (fused && i == 1) w[1] = w[0];
        device_w[i] = give_weight(s, &w[i], n_matrix[i]);
    }
    struct expert_view *expert[2]; /* the host's, the backend's */
    for (int side = 0; side < 2; side++) {
        const struct weight *of = side ? device_w : w;
        expert[side] = take(n_expert * sizeof(*expert[side]));
        for (uint32_t ie = 0; ie < n_expert; ie++)
            expert[side][ie] = (struct expert_view){
                (const uint8_t *)of[0].data + (size_t)ie * (1u + fused) * n_ff * w[0].row_bytes,
                fused ? NULL : (const uint8_t *)of[1].data + (size_t)ie * n_ff * w[1].row_bytes,
                (const uint8_t *)of[2].data + (size_t)ie * n_embd * w[2].row_bytes};
    }
    int32_t *ids = take((size_t)n_token * k * sizeof(int32_t));
    for (uint32_t it = 0; it < n_token; it++) /* distinct ids in each row */
        for (uint32_t rank = 0, first = random_below(n_expert); rank < k; rank++)
            ids[it * k + rank] = (int32_t)((first + rank * 1u) % n_expert);
    const size_t n = (size_t)n_token * n_embd, n_pair = (size_t)n_token * k;
    struct ffn_args args = {
        .n_token = n_token,
        .x = random_floats(n),
        .n_embd = n_embd,
        .n_expert = n_expert,
        .n_expert_used = k,
        .n_ff_exp = n_ff,
        .ids = ids,
        .weights = random_floats(n_pair),
        .expert = expert[0],
        .gate_exp = w[0],
        .up_exp = w[1],
        .down_exp = w[2],
        .gate = shared ? &w[3] : NULL,
        .up = shared ? &w[4] : NULL,
        .down = shared ? &w[5] : NULL,
        .shared_gate = random_below(2) ? shared_gate : NULL,
        .y = take(n * sizeof(float)),
        .epilogue = {random_below(2) ? post : NULL, 1e-6f,
                     random_below(2) ? random_floats(n) : NULL},
    };
    struct ffn_args device = args;
    device.x = give_floats(s, args.x, n);
    device.ids = give(s, ids, n_pair * sizeof(int32_t));
    device.weights = give_floats(s, args.weights, n_pair);
    if (as_table) {
        device.table = give(s, expert[1], n_expert * sizeof(*expert[1]));
        device.expert = NULL;
    } else {
        device.expert = expert[1];
    }
    device.gate_exp.data = device.up_exp.data = device.down_exp.data = NULL;
    device.gate = shared ? &device_w[3] : NULL;
    device.up = shared ? &device_w[4] : NULL;
    device.down = shared ? &device_w[5] : NULL;
    device.shared_gate = give_floats(s, args.shared_gate, n_embd);
    device.y = give_zeros(s, n * sizeof(float));
    device.epilogue.post_norm = give_floats(s, args.epilogue.post_norm, n_embd);
    device.epilogue.residual = give_floats(s, args.epilogue.residual, n);
    plain_ffn(s->ref, &args);
    struct ffn_args part = device;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = many ? n_token : next_split(n_token - it);
        part.x = device.x + (size_t)it * n_embd;
        part.ids = device.ids + (size_t)it * k;
        part.weights = device.weights + (size_t)it * k;
        part.y = device.y + (size_t)it * n_embd;
        if (device.epilogue.residual)
            part.epilogue.residual = device.epilogue.residual + (size_t)it * n_embd;
        run_ffn(s, &part, n_expert, k && random_below(2));
    }
    expect_sync(s);
    if (args.epilogue.residual)
        compare(s, "residual", device.epilogue.residual, args.epilogue.residual, n * sizeof(float));
    else
        compare(s, "y", device.y, args.y, n * sizeof(float));
}

/* Rows of a batch: runs of consecutive positions, each of another slot. Returns the rows taken. */
static uint32_t make_batch(uint32_t n_max, uint32_t next_pos[N_SLOT], uint32_t n_ctx,
                           struct token_ref *token)
{
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < N_SLOT; slot++) {
        uint32_t run = random_below(n_max / N_SLOT + 1);
        for (; run && n < n_max && next_pos[slot] < n_ctx; run--)
            token[n++] = (struct token_ref){slot, next_pos[slot]++};
    }
    return n;
}

/* A cache that holds random rows: what a long past left there, or else what its blocks held before
 * they were reused, NaNs too. */
static void fill_cache(const struct subject *s, enum tensor_type kv_type, uint32_t dim, bool far,
                       uint8_t *cache, size_t n_bytes)
{
    /* Behind a long past so many that maxima of scores still rise late. */
    const uint32_t n_row = far ? 2039 : 61;
    const size_t row_bytes = tensor_row_bytes(kv_type, dim);
    float *x = random_floats((size_t)n_row * dim);
    for (uint32_t i = 0; i < 4 * dim && !far; i++)
        x[i] = NAN;
    uint8_t *rows = take(n_row * row_bytes);
    for (uint32_t i = 0; i < n_row; i++)
        s->ref->encode_row[kv_type](x + (size_t)i * dim, dim, rows + i * row_bytes);
    for (size_t i = 0; i < n_bytes / row_bytes; i++)
        memcpy(cache + i * row_bytes, rows + random_below(n_row) * row_bytes, row_bytes);
}

/* Enters into block [N_SLOT][n_block] where the blocks are that the rows of a call see, and no
 * others. cache: [N_SLOT][n_block][block_bytes]. */
static void lend_blocks(const struct attention_args *args, uint8_t *cache, size_t block_bytes,
                        uint32_t n_block, void **block)
{
    memset(block, 0, N_SLOT * n_block * sizeof(*block));
    for (uint32_t it = 0; it < args->n_token; it++) {
        const uint32_t pos = args->token[it].pos, at = args->token[it].slot * n_block;
        uint32_t b = args->window && pos >= args->window ? pos - args->window + 1 : 0;
        for (b /= KV_BLOCK; b <= pos / KV_BLOCK; b++)
            block[at + b] = cache + (at + b) * block_bytes;
    }
}

static void check_attention(const struct subject *s)
{
    enum { N_CTX = 4100, N_BLOCK = (N_CTX + KV_BLOCK - 1) / KV_BLOCK, N_ROW_MAX = 300 };
    static const uint32_t dims[] = {32, 64, 80, 96, 128, 192, 256};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 20};
    static const enum tensor_type kv_types[] = {TENSOR_F16, TENSOR_F32, TENSOR_BF16, TENSOR_Q8_0};
    static uint32_t n_made; /* every type of every size in turn */
    /* Large heads, many to a key head, all rows of one sequence: more than fits at a time. */
    const bool deep = n_made % 7 == 6;
    const bool far = deep || !random_below(3); /* few rows behind a long past */
    const uint32_t dim = dims[n_made % 7], group = deep ? 16 : groups[random_below(10)];
    const enum tensor_type kv_type = kv_types[n_made++ % (dim % 32 ? 3 : 4)];
    const uint32_t n_head_kv = group > 5 ? 1 : 1 + random_below(3), n_head = n_head_kv * group;
    const uint32_t n_rot = random_below(2) ? dim : dim / 4 / 2 * 2;
    const size_t block_bytes = kv_block_bytes(kv_type, n_head_kv, dim);
    const size_t n_cache_bytes = N_SLOT * N_BLOCK * block_bytes;
    const size_t n_angle = (size_t)N_CTX * n_rot / 2;
    const float *q_norm = random_floats(dim), *k_norm = random_floats(dim);
    uint8_t *const cache[2] = {take(n_cache_bytes), give_zeros(s, n_cache_bytes)};
    fill_cache(s, kv_type, dim, far, cache[0], n_cache_bytes);
    s->backend->ops->upload(s->backend, cache[1], cache[0], n_cache_bytes);
    void *block[2][N_SLOT][N_BLOCK]; /* of the device: only those that a call needs */
    void *const *table[2][N_SLOT];
    for (int side = 0; side < 2; side++)
        for (int slot = 0; slot < N_SLOT; slot++) {
            for (int b = 0; b < N_BLOCK; b++)
                block[side][slot][b] = cache[side] + (size_t)(slot * N_BLOCK + b) * block_bytes;
            table[side][slot] = block[side][slot];
        }
    struct attention_args args = {
        .q_head_stride = random_below(2) ? dim : 2 * dim,
        .q_norm = random_below(2) ? q_norm : NULL,
        .k_norm = random_below(2) ? k_norm : NULL,
        .eps = 1e-6f,
        .rope = random_below(3),
        .rope_cos = random_floats(n_angle),
        .rope_sin = random_floats(n_angle),
        .n_rot = n_rot,
        .n_head = n_head,
        .n_head_kv = n_head_kv,
        .head_dim = dim,
        .scale = 1.0f / sqrtf((float)dim),
        .window = deep || random_below(2) ? 0 : 1 + random_below(300),
        .kv_type = kv_type,
        .kv_block = table[0],
    };
    args.q_stride = args.gate_stride = n_head * args.q_head_stride;
    args.gate_head_stride = args.q_head_stride;
    args.kv_stride = n_head_kv * dim + random_below(3);
    struct attention_args device = args;
    device.q_norm = give_floats(s, args.q_norm, dim);
    device.k_norm = give_floats(s, args.k_norm, dim);
    device.rope_cos = give_floats(s, args.rope_cos, n_angle);
    device.rope_sin = give_floats(s, args.rope_sin, n_angle);
    device.kv_block = table[1];
    uint32_t next_pos[N_SLOT] = {0};
    const bool gated = random_below(2);
    for (int slot = 0; far && slot < N_SLOT; slot++)
        next_pos[slot] =
            N_CTX - N_ROW_MAX - random_below(deep || random_below(2) ? 200 : N_CTX - N_ROW_MAX);
    for (int round = 0; round < 5; round++) {
        struct token_ref token[N_ROW_MAX];
        uint32_t n = make_batch(far || round % 2 ? 6 : s->slow ? 30 : 150, next_pos, N_CTX, token);
        if (!far && round == 2 && n_head <= 5) { /* one long chunk instead, over blocks */
            const uint32_t n_long = N_ROW_MAX - random_below(100);
            for (n = 0; n < n_long; n++)
                token[n] = (struct token_ref){0, next_pos[0]++};
        }
        if (deep && round == 0)
            for (n = 0; n < 6; n++)
                token[n] = (struct token_ref){0, next_pos[0]++};
        const size_t n_out = (size_t)n * n_head * dim;
        const float *gate = random_floats(n * args.q_stride);
        args.n_token = n;
        args.token = token;
        args.q = random_floats(n * args.q_stride);
        args.gate = gated ? gate : NULL;
        args.k = random_floats(n * args.kv_stride);
        args.v = random_floats(n * args.kv_stride);
        args.out = take(n_out * sizeof(float));
        plain_attention(s->ref, &args);
        device.q = give_floats(s, args.q, n * args.q_stride);
        device.gate = give_floats(s, args.gate, n * args.q_stride);
        device.k = give_floats(s, args.k, n * args.kv_stride);
        device.v = give_floats(s, args.v, n * args.kv_stride);
        device.out = give_zeros(s, n_out * sizeof(float));
        struct attention_args part = device;
        for (uint32_t it = 0; it < n; it += part.n_token) {
            part.n_token = deep && round == 0 ? n : next_split(n - it);
            part.token = token + it;
            part.q = device.q + it * args.q_stride;
            part.gate = gated ? device.gate + it * args.q_stride : NULL;
            part.k = device.k + it * args.kv_stride;
            part.v = device.v + it * args.kv_stride;
            part.out = device.out + (size_t)it * n_head * dim;
            lend_blocks(&part, cache[1], block_bytes, N_BLOCK, block[1][0]);
            s->backend->ops->attention(s->backend, &part);
            memset(block[1], 0, sizeof(block[1])); /* was read before the call returned */
        }
        expect_sync(s);
        compare(s, "out", device.out, args.out, n_out * sizeof(float));
    }
    compare(s, "cache", cache[1], cache[0], n_cache_bytes);
}

static void check_delta_net(const struct subject *s)
{
    static const uint32_t dims[] = {32, 64, 128, 48, 256};
    const uint32_t dim_k = dims[random_below(5)], dim_v = dims[random_below(5)];
    const uint32_t n_head_k = 1 + random_below(3), n_head_v = n_head_k * (1 + random_below(3));
    const uint32_t v_dim = n_head_v * dim_v, conv_dim = 2 * n_head_k * dim_k + v_dim;
    const uint32_t n_tap = 2 + random_below(4);
    const size_t n_conv = (size_t)(n_tap - 1) * conv_dim, n_state = (size_t)v_dim * dim_k;
    float *ssm_a = random_floats(n_head_v);
    for (uint32_t h = 0; h < n_head_v; h++)
        ssm_a[h] = -fabsf(ssm_a[h]);
    float *conv_state[2][N_SLOT], *state[2][N_SLOT];
    for (int slot = 0; slot < N_SLOT; slot++) {
        conv_state[0][slot] = take(n_conv * sizeof(float));
        state[0][slot] = take(n_state * sizeof(float));
        conv_state[1][slot] = give_zeros(s, n_conv * sizeof(float));
        state[1][slot] = give_zeros(s, n_state * sizeof(float));
    }
    struct delta_net_args args = {.conv_w = random_floats((size_t)conv_dim * n_tap),
                                  .n_tap = n_tap,
                                  .ssm_a = ssm_a,
                                  .ssm_dt = random_floats(n_head_v),
                                  .norm = random_floats(dim_v),
                                  .eps = 1e-6f,
                                  .n_head_k = n_head_k,
                                  .n_head_v = n_head_v,
                                  .dim_k = dim_k,
                                  .dim_v = dim_v,
                                  .grouped = random_below(2),
                                  .conv_state = conv_state[0],
                                  .state = state[0]};
    struct delta_net_args device = args;
    device.conv_w = give_floats(s, args.conv_w, (size_t)conv_dim * n_tap);
    device.ssm_a = give_floats(s, args.ssm_a, n_head_v);
    device.ssm_dt = give_floats(s, args.ssm_dt, n_head_v);
    device.norm = give_floats(s, args.norm, dim_v);
    device.conv_state = conv_state[1];
    device.state = state[1];
    uint32_t next_pos[N_SLOT] = {0};
    for (int round = 0; round < 4; round++) {
        struct token_ref token[120];
        const uint32_t n = make_batch(round % 2 ? 5
                                      : s->slow ? 40
                                                : 120,
                                      next_pos, UINT32_MAX, token);
        const size_t n_head = (size_t)n * n_head_v, n_out = (size_t)n * v_dim;
        args.n_token = n;
        args.token = token;
        args.qkv = random_floats((size_t)n * conv_dim);
        args.z = random_floats(n_out);
        args.beta = random_floats(n_head);
        args.alpha = random_floats(n_head);
        args.out = take(n_out * sizeof(float));
        plain_delta_net(s->ref, &args);
        device.qkv = give_floats(s, args.qkv, (size_t)n * conv_dim);
        device.z = give_floats(s, args.z, n_out);
        device.beta = give_floats(s, args.beta, n_head);
        device.alpha = give_floats(s, args.alpha, n_head);
        device.out = give_zeros(s, n_out * sizeof(float));
        struct delta_net_args part = device;
        const bool frozen[N_SLOT] = {true, true, true};
        part.frozen = frozen; /* the same result, and what follows must find the states untouched */
        part.token = token;
        part.n_token = n < DELTA_NET_FROZEN_MAX ? n : DELTA_NET_FROZEN_MAX;
        s->backend->ops->delta_net(s->backend, &part);
        expect_sync(s);
        compare(s, "frozen out", device.out, args.out,
                (size_t)part.n_token * v_dim * sizeof(float));
        part.frozen = NULL;
        for (uint32_t it = 0; it < n; it += part.n_token) {
            part.n_token = next_split(n - it);
            part.token = token + it;
            part.qkv = device.qkv + (size_t)it * conv_dim;
            part.z = device.z + (size_t)it * v_dim;
            part.beta = device.beta + (size_t)it * n_head_v;
            part.alpha = device.alpha + (size_t)it * n_head_v;
            part.out = device.out + (size_t)it * v_dim;
            s->backend->ops->delta_net(s->backend, &part);
        }
        expect_sync(s);
        compare(s, "out", device.out, args.out, n_out * sizeof(float));
    }
    for (int slot = 0; slot < N_SLOT; slot++) {
        compare(s, "conv state", conv_state[1][slot], conv_state[0][slot], n_conv * sizeof(float));
        compare(s, "state", state[1][slot], state[0][slot], n_state * sizeof(float));
    }
}

/* Rows that change their memory and not their place, out of pinned memory. y: as old. */
static void check_copied_rows(const struct subject *s, float *old, uint32_t n_row, uint32_t n,
                              float *y)
{
    enum { PAGE_BYTES = 4096 };
    const size_t n_floats = (size_t)n_row * n;
    const size_t n_bytes = (n_floats * sizeof(float) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    uint32_t rows[20], n_copied = 0;
    void *memory;
    if (posix_memalign(&memory, PAGE_BYTES, n_bytes)) abort();
    float *const x = memory;
    for (size_t i = 0; i < n_floats; i++)
        x[i] = (float)i;
    for (uint32_t it = 0; it < n_row; it++) {
        if (random_below(3)) continue;
        rows[n_copied++] = it;
        memcpy(old + (size_t)it * n, x + (size_t)it * n, n * sizeof(float));
    }
    if (s->backend->ops->pin(s->backend, memory, n_bytes, NULL) != LM_OK) abort();
    s->backend->ops->copy_rows(s->backend, x, rows, n_copied, n, y);
    memset(rows, 0, sizeof(rows));
    expect_sync(s);
    s->backend->ops->unpin(s->backend, memory);
    free(memory);
    compare(s, "copied rows", y, old, n_floats * sizeof(float));
}

static void check_rows(const struct subject *s)
{
    const struct backend_ops *ops = s->backend->ops;
    const uint32_t n_token = 1 + random_below(20), n = 32 * (1 + random_below(20));
    const struct weight table = random_weight(30, n, 1), device_table = give_weight(s, &table, 1);
    const size_t n_floats = (size_t)n_token * n, n_bytes = n_floats * sizeof(float);
    const float *norm = random_floats(n), *device_norm = give_floats(s, norm, n);
    float *row = take(n_bytes), *normed = take(n_bytes), *picked = take(n_bytes);
    float *x = give_zeros(s, n_bytes), *y = give_zeros(s, n_bytes), *z = give_zeros(s, n_bytes);
    int32_t ids[20];
    uint32_t rows[20];
    for (uint32_t it = 0; it < n_token; it++) {
        ids[it] = (int32_t)random_below(30);
        rows[it] = random_below(n_token);
    }
    const float scale = random_below(2) ? 1.0f : 7.3f;
    for (uint32_t it = 0; it < n_token; it++) {
        float *out = row + (size_t)it * n;
        s->ref->dequant_row[table.type](
            (const uint8_t *)table.data + (size_t)ids[it] * table.row_bytes, n, out);
        for (uint32_t i = 0; i < n; i++)
            out[i] *= scale;
        s->ref->rms_norm(out, norm, n, 1e-5f, normed + (size_t)it * n);
    }
    for (uint32_t it = 0; it < n_token; it++)
        memcpy(picked + (size_t)it * n, normed + (size_t)rows[it] * n, n * sizeof(float));
    ops->embed(s->backend, &device_table, ids, n_token, scale, x);
    memset(ids, 0, sizeof(ids)); /* what is the host's has been read */
    ops->rms_norm(s->backend, x, device_norm, 1e-5f, n_token, n, y);
    ops->gather(s->backend, y, rows, n_token, n, z);
    ops->gather(s->backend, y, rows, 0, n, z); /* no rows are no error */
    memset(rows, 0, sizeof(rows));
    expect_sync(s);
    check_copied_rows(s, picked, n_token, n, z);
    compare(s, tensor_type_info(table.type)->name, x, row, n_bytes);
    compare(s, "norm", y, normed, n_bytes);
    compare(s, "gathered rows", z, picked, n_bytes);
    const uint32_t skipped = random_below(8); /* copies of any alignment and length */
    const size_t n_copied = random_below((uint32_t)n_bytes - skipped);
    memcpy((uint8_t *)normed + skipped, row, n_copied);
    ops->copy(s->backend, (uint8_t *)y + skipped, x, n_copied);
    compare(s, "copy", y, normed, n_bytes);
}

/* Bytes of an expert as they are read at a view, from backend or pinned memory. */
static void compare_expert(const struct subject *s, const struct expert_view *view,
                           const uint8_t *expected, const size_t n_bytes[3])
{
    static const char *const names[] = {"gate", "up", "down"};
    const void *const from[] = {view->gate, view->up, view->down};
    for (int i = 0; i < 3; expected += n_bytes[i++]) {
        if (!n_bytes[i]) continue;
        uint8_t *const copy = give_zeros(s, n_bytes[i]);
        s->backend->ops->copy(s->backend, copy, from[i], n_bytes[i]);
        compare(s, names[i], copy, expected, n_bytes[i]);
    }
}

/* Experts in pinned memory, at any alignment, and in backend memory, are readable where the views
 * say; those that a device lacks are in its room, in the order in which rows chose them. */
static void check_gather_experts(const struct subject *s)
{
    const struct backend_ops *const ops = s->backend->ops;
    const bool is_device = strcmp(ops->name, "cpu") != 0, fused = random_below(2);
    const uint32_t n_expert = 1 + random_below(random_below(4) ? 40 : 512);
    const uint32_t n_pair = 1 + random_below(random_below(4) ? 32 : 700);
    const uint32_t n_room = random_below(12), unit = random_below(2) ? 16 : 1 + random_below(4);
    const size_t n_bytes[3] = {unit * (1 + random_below(500)),
                               fused ? 0 : unit * (1 + random_below(500)),
                               unit * (1 + random_below(500))};
    const size_t expert_bytes = n_bytes[0] + n_bytes[1] + n_bytes[2];
    const size_t room_bytes = expert_room_bytes(n_bytes[0], n_bytes[1], n_bytes[2]);
    uint8_t *const host = take(n_expert * expert_bytes + 64);
    uint8_t *const remote = take(n_expert), *const seen = take(n_expert);
    int32_t *const ids = take(n_pair * sizeof(*ids));
    struct expert_view *const table = take(n_expert * sizeof(*table));
    struct expert_view *const view = take(n_expert * sizeof(*view));
    const size_t begin = random_below(2) ? 0 : random_below(64);
    struct lm_error err;
    for (size_t i = 0; i < n_expert * expert_bytes + 64; i++)
        host[i] = (uint8_t)random_u64();
    if (ops->pin(s->backend, host, n_expert * expert_bytes + 64, &err) != LM_OK) {
        printf("%s: %s\n", s->name, err.message);
        exit(1);
    }
    const uint8_t *const local = give(s, host + begin, n_expert * expert_bytes);
    for (uint32_t ie = 0; ie < n_expert; ie++) {
        remote[ie] = random_below(3) ? (uint8_t)(1 + random_below(255)) : 0;
        const uint8_t *const at = (remote[ie] ? host + begin : local) + ie * expert_bytes;
        table[ie] =
            (struct expert_view){at, fused ? NULL : at + n_bytes[0], at + n_bytes[0] + n_bytes[1]};
    }
    for (uint32_t p = 0; p < n_pair; p++)
        ids[p] = (int32_t)random_below(n_expert);
    uint8_t *const room = give_zeros(s, n_room * room_bytes);
    const struct expert_gather_args args = {
        .ids = give(s, ids, n_pair * sizeof(*ids)),
        .n_pair = n_pair,
        .n_expert = n_expert,
        .table = give(s, table, n_expert * sizeof(*table)),
        .remote = give(s, remote, n_expert),
        .gate_bytes = n_bytes[0],
        .up_bytes = n_bytes[1],
        .down_bytes = n_bytes[2],
        .room = room,
        .n_room = n_room,
        .view = give_zeros(s, n_expert * sizeof(*view)),
    };
    for (int round = 0; round < 3; round++) { /* by launches, and as a graph */
        ops->gather_experts(s->backend, &args);
        expect_sync(s);
    }
    ops->download(s->backend, view, args.view, n_expert * sizeof(*view));
    expect_sync(s);
    uint32_t n_placed = 0, n_compared = 0;
    for (uint32_t p = 0; p < n_pair; p++) {
        const uint32_t ie = (uint32_t)ids[p];
        if (seen[ie]++) continue;
        const bool placed = is_device && remote[ie] && n_placed < n_room;
        const void *const expected = placed ? room + n_placed++ * room_bytes : table[ie].gate;
        if (view[ie].gate != expected || !view[ie].up != fused) {
            printf("%s: expert %u of %u is not where it should be\n", s->name, ie, n_expert);
            n_failed++;
        }
        if (placed || n_compared++ < 8)
            compare_expert(s, &view[ie], host + begin + ie * expert_bytes, n_bytes);
    }
    ops->unpin(s->backend, host);
}

/* Pieces of the host's memory, pinned or not, through two slots that an operation reads. */
static void check_streaming(const struct subject *s)
{
    enum { N_SLOTS = 2 };
    const struct backend_ops *const ops = s->backend->ops;
    const size_t n_bytes = 1 + random_below(s->slow ? 9000 : 200000), n_piece = 2 + random_below(9);
    const bool pinned = random_below(2);
    const enum copy_lane lane = random_below(2) ? COPY_AHEAD : COPY_DEMAND;
    const size_t host_bytes = (n_piece * n_bytes + 4095) / 4096 * 4096;
    uint8_t *const host = aligned_alloc(4096, host_bytes), *const out = give_zeros(s, host_bytes);
    uint8_t *const slot[N_SLOTS] = {give_zeros(s, n_bytes), give_zeros(s, n_bytes)};
    uint64_t read[N_SLOTS] = {0}, ticket = 0;
    struct lm_error err;
    if (!host) exit(1);
    for (size_t i = 0; i < host_bytes; i++)
        host[i] = (uint8_t)(i * 2654435761u >> 23);
    if (pinned && ops->pin(s->backend, host, host_bytes, &err) != LM_OK) {
        printf("%s: %s\n", s->name, err.message);
        exit(1);
    }
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < n_piece; i++) {
            const size_t k = i % N_SLOTS;
            ticket = ops->fetch(s->backend, slot[k], host + i * n_bytes, n_bytes, read[k], lane);
            ops->await(s->backend, ticket);
            ops->copy(s->backend, out + i * n_bytes, slot[k], n_bytes);
            read[k] = ops->mark(s->backend);
        }
        while (!ops->fetched(s->backend, ticket))
            ;
        compare(s, "pieces", out, host, n_piece * n_bytes);
    }
    if (pinned) ops->unpin(s->backend, host);
    free(host);
}

/* A NaN is kept, reported once by sync with the operation's name, and then forgotten. */
static void check_nan_is_reported(const struct subject *s)
{
    const struct weight w = random_weight(8, 256, 1), device_w = give_weight(s, &w, 1);
    float *x = random_floats(3 * 256);
    x[random_below(3 * 256)] = random_below(2) ? NAN : -INFINITY;
    struct linear_args args = {
        .n_token = 3, .x = give_floats(s, x, 3 * 256), .n_col = 256, .n_out = 1};
    args.out[0].w = &device_w;
    args.out[0].y = give_zeros(s, 24 * sizeof(float));
    args.out[0].y_stride = 8;
    struct lm_error err = {0};
    s->backend->ops->linear(s->backend, &args);
    if (s->backend->ops->sync(s->backend, &err) != LM_E_FAIL || !strstr(err.message, "linear")) {
        printf("%s: a NaN passed linear: \"%s\"\n", s->name, err.message);
        n_failed++;
    }
    expect_sync(s);
}

/* So is a router's, even of an expert that nobody would choose. */
static void check_router_nan_is_reported(const struct subject *s)
{
    enum { N_EXPERT = 9, N_COL = 32 };
    const float broken = random_below(2) ? NAN : -INFINITY;
    float *rows = random_floats((size_t)N_EXPERT * N_COL), *x = random_floats(N_COL);
    rows[(2 + random_below(N_EXPERT - 2)) * N_COL] = broken;
    x[0] = 1.0f;
    const struct weight router = {give_floats(s, rows, N_EXPERT * N_COL), TENSOR_F32, N_COL,
                                  N_EXPERT, N_COL * sizeof(float)};
    const struct route_args args = {.n_token = 1,
                                    .x = give_floats(s, x, N_COL),
                                    .router = &router,
                                    .gating = GATING_SIGMOID,
                                    .n_expert_used = 2,
                                    .ids = give_zeros(s, 2 * sizeof(int32_t)),
                                    .weights = give_zeros(s, 2 * sizeof(float))};
    struct lm_error err = {0};
    s->backend->ops->route(s->backend, &args);
    if (s->backend->ops->sync(s->backend, &err) != LM_E_FAIL || !strstr(err.message, "route")) {
        printf("%s: a router's %f passed: \"%s\"\n", s->name, (double)broken, err.message);
        n_failed++;
    }
    expect_sync(s);
}

/* A hidden value that is not finite is an error, if it is one of an expert whose turn it is. */
static void check_hidden_nan_is_reported(const struct subject *s)
{
    enum { N_EMBD = 32, N_FF = 64 };
    const float broken = random_below(2) ? NAN : INFINITY;
    float *gate = random_floats(2 * N_FF * N_EMBD);
    gate[N_FF * N_EMBD + random_below(N_FF * N_EMBD)] = broken; /* of expert 1 */
    const float *up = random_floats(N_FF * N_EMBD);
    const struct weight down = weight_of_type(random_type(), N_EMBD, N_FF, 1);
    const struct weight hidden = {
        .type = TENSOR_F32, .n_col = N_EMBD, .n_row = N_FF, .row_bytes = N_EMBD * sizeof(float)};
    const float *device_gate = give_floats(s, gate, 2 * N_FF * N_EMBD);
    const float *device_up = give_floats(s, up, N_FF * N_EMBD);
    const struct weight device_down = give_weight(s, &down, 1);
    struct expert_view expert[2];
    for (int ie = 0; ie < 2; ie++)
        expert[ie] =
            (struct expert_view){device_gate + ie * N_FF * N_EMBD, device_up, device_down.data};
    const int32_t ids[4] = {0, 1, 1, 0};
    struct ffn_args args = {
        .n_token = 2,
        .x = give_floats(s, random_floats(2 * N_EMBD), 2 * N_EMBD),
        .n_embd = N_EMBD,
        .n_expert = 2,
        .n_expert_used = 2,
        .n_ff_exp = N_FF,
        .ids = give(s, ids, sizeof(ids)),
        .weights = give_floats(s, random_floats(4), 4),
        .expert = expert,
        .gate_exp = hidden,
        .up_exp = hidden,
        .down_exp = device_down,
        .expert_out = give_zeros(s, 4 * N_EMBD * sizeof(float)),
        .y = give_zeros(s, 2 * N_EMBD * sizeof(float)),
    };
    const bool whole_expert[2] = {true, false}, broken_expert[2] = {false, true};
    struct lm_error err = {0};
    s->backend->ops->ffn_experts(s->backend, &args, whole_expert);
    expect_sync(s);
    s->backend->ops->ffn_experts(s->backend, &args, broken_expert);
    const bool passed_in_steps = s->backend->ops->sync(s->backend, &err) != LM_E_FAIL;
    s->backend->ops->ffn(s->backend, &args);
    if (passed_in_steps || s->backend->ops->sync(s->backend, &err) != LM_E_FAIL ||
        !strstr(err.message, "ffn")) {
        printf("%s: a hidden %f passed: \"%s\"\n", s->name, (double)broken, err.message);
        n_failed++;
    }
    expect_sync(s);
}

/* So is one of the input, whatever the type of the weights. */
static void check_ffn_nan_is_reported(const struct subject *s)
{
    enum { N_EMBD = 256, N_FF = 32 };
    const uint32_t n_token = 1 + random_below(12);
    float *x = random_floats(n_token * N_EMBD);
    x[random_below(n_token * N_EMBD)] = random_below(2) ? NAN : -INFINITY;
    struct weight w[3];
    for (int i = 0; i < 3; i++) {
        const struct weight host =
            weight_of_type(random_type(), i < 2 ? N_FF : N_EMBD, i < 2 ? N_EMBD : N_FF, 1);
        w[i] = give_weight(s, &host, 1);
    }
    const struct ffn_args args = {.n_token = n_token,
                                  .x = give_floats(s, x, n_token * N_EMBD),
                                  .n_embd = N_EMBD,
                                  .gate = &w[0],
                                  .up = &w[1],
                                  .down = &w[2],
                                  .y = give_zeros(s, n_token * N_EMBD * sizeof(float))};
    struct lm_error err = {0};
    s->backend->ops->ffn(s->backend, &args);
    if (s->backend->ops->sync(s->backend, &err) != LM_E_FAIL || !strstr(err.message, "ffn")) {
        printf("%s: an input of ffn that is not finite passed: \"%s\"\n", s->name, err.message);
        n_failed++;
    }
    expect_sync(s);
}

static const struct {
    const char *name;
    void (*check)(const struct subject *s);
} checks[] = {
    {"rows", check_rows},
    {"linear", check_linear},
    {"linear", check_linear_types},
    {"route", check_route},
    {"ffn", check_ffn},
    {"attention", check_attention},
    {"delta_net", check_delta_net},
    {"gather_experts", check_gather_experts},
    {"streaming", check_streaming},
    {"linear", check_nan_is_reported},
    {"route", check_router_nan_is_reported},
    {"ffn", check_hidden_nan_is_reported},
    {"ffn", check_ffn_nan_is_reported},
};

struct options {
    const char *backend, *only;
    int n_case; /* 0: as many as the backend needs */
    uint64_t seed;
};

static void check_subject(const struct subject *s, const struct options *o, int n_case)
{
    if (o->n_case) n_case = o->n_case;
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        if (o->only && strcmp(o->only, checks[i].name) != 0) continue;
        for (int n = 0; n < n_case; n++) {
            random_state = o->seed + (uint64_t)n * 1000003u; /* the same for every subject */
            case_name = checks[i].name;
            const int n_failed_before = n_failed;
            checks[i].check(s);
            take_back_all(s);
            if (n_failed != n_failed_before)
                printf("  repeat with: --backend %s --only %s %" PRIu64 " (case %d)\n", o->backend,
                       case_name, o->seed, n);
        }
    }
}

/* Every variant of the scalar kernels, and the "reference" arithmetic. */
static void check_cpu(const struct options *o)
{
    enum { N_CASE = 4 };
    const char *names[8];
    size_t n_name = 0;
    for (const char *const *name = kernels_available(); *name; name++)
        names[n_name++] = *name;
    names[n_name++] = "reference";
    for (size_t i = 0; i < n_name; i++)
        for (uint32_t n_thread = 1; n_thread <= 4; n_thread *= 2) {
            const struct backend_cpu_config config = {n_thread, names[i], n_thread % 2};
            struct subject s = {0};
            struct lm_error err;
            if (backend_cpu_create(&s.backend, &config, &err) != LM_OK) {
                printf("%s, %u threads: %s\n", names[i], n_thread, err.message);
                exit(1);
            }
            /* the settings took effect */
            if (backend_cpu_n_thread(s.backend) != n_thread ||
                strcmp(backend_cpu_kernels(s.backend), names[i])) {
                printf("%s, %u threads: not what runs\n", names[i], n_thread);
                exit(1);
            }
            struct kernel_table ref = *kernels_select("ref");
            if (!strcmp(names[i], "reference")) kernels_init_reference(&ref);
            s.ref = &ref;
            snprintf(s.name, sizeof(s.name), "%s, %u threads", names[i], n_thread);
            check_subject(&s, o, N_CASE);
            s.backend->ops->destroy(s.backend);
        }
    const struct backend_cpu_config unknown = {1, "sse9", false};
    struct backend *none;
    if (backend_cpu_create(&none, &unknown, NULL) != LM_E_USAGE) n_failed++;
}

/* Multiprocessors to make launches for: few, so that small cases go the ways of large ones; or as
 * many as a large device has. */
enum { FEW = 3, MANY = 132 };

static void check_cuda(const struct options *o, const char *plugin, const char *order,
                       uint32_t n_multiprocessor, int n_case)
{
    const struct backend_cuda_config config = {.plugin = plugin,
                                               .n_multiprocessor = n_multiprocessor};
    struct subject s = {.ref = kernels_select("ref"), .slow = order};
    struct lm_error err;
    if (order) setenv("LEAN_EMU_ORDER", order, 1);
    if (backend_cuda_create(&s.backend, &config, &err) != LM_OK) {
        printf("%s: %s\n", o->backend, err.message);
        exit(1);
    }
    snprintf(s.name, sizeof(s.name), "%s, for %u%s%s", o->backend, n_multiprocessor,
             order ? ", order " : "", order ? order : "");
    check_subject(&s, o, n_case);
    s.backend->ops->destroy(s.backend);
}

int main(int argc, char **argv)
{
    struct options o = {.backend = "cpu", .seed = 20260901u};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--backend") && i + 1 < argc)
            o.backend = argv[++i];
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            o.only = argv[++i];
        else if (!strcmp(argv[i], "--cases") && i + 1 < argc)
            o.n_case = atoi(argv[++i]);
        else
            o.seed = strtoull(argv[i], NULL, 0);
    }
    if (!strcmp(o.backend, "cuda")) {
        check_cuda(&o, CUDA_PLUGIN_FILE, NULL, FEW, 20);
        check_cuda(&o, CUDA_PLUGIN_FILE, NULL, MANY, 20);
    } else if (!strcmp(o.backend, "cuda-emu")) {
        check_cuda(&o, CUDA_EMU_PLUGIN_FILE, "forward", FEW, 20);
        check_cuda(&o, CUDA_EMU_PLUGIN_FILE, "reverse", FEW, 4);
        check_cuda(&o, CUDA_EMU_PLUGIN_FILE, "random", FEW, 4);
        check_cuda(&o, CUDA_EMU_PLUGIN_FILE, "forward", MANY, 4);
    } else {
        check_cpu(&o);
    }
    printf("%s\n", n_failed ? "FAILED" : "all operations agree");
    return n_failed != 0;
}
