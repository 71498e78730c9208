/* How near the GPU's operations come to what the device can do.
 *
 *   bench_kernels_gpu [--plugin FILE] [--device N] [--quick 1]
 *
 * First the roofs, measured: bytes per second of a copy (read and written) and of plain reads,
 * multiply-adds per second of 8-bit products in the tensor cores by the instruction that the matrix
 * products use. Then the operations at the shapes of the 35B and 122B models, over so many weights
 * that none is still in a cache when it is read again. Bytes are those of weights, keys, values and
 * states, each counted once; the share is of plain reads. The operations of a line run as one list,
 * the third time it is a replayed graph; each figure is the best of several.
 *
 * Then the link to the host's memory: copies of pieces as large as experts are, from pinned and
 * from other memory, and in the background; copies beside reads of the device's memory, and the
 * kernels of gather_experts.
 *
 * Lines that end in "fast" are of the FAST mode, where there is cuBLAS; its products are of 16
 * bits, of which the tensor cores do half as many, so 50% is the roof.
 *
 * --quick: tiny shapes, once each, for a dry run on the emulator, whose times mean nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench_arguments.h"
#include "kernels/backend_cuda.h"
#include "tests/kernels/random_case.h"

enum { N_EXPERT = 256, N_USED = 8, N_RUN_MAX = 7 };

static struct {
    struct backend *backend;
    const struct backend_ops *ops;
    bool quick, fast;
    void *lent[64];
    size_t n_lent;
    double read_bytes_s, multiply_s;
    struct lm_error error; /* of the last line that failed */
} bench;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(enum lm_status status, const struct lm_error *err)
{
    if (status == LM_OK) return;
    printf("bench_kernels_gpu: %s\n", err->message);
    exit(lm_exit_code(status));
}

static void sync_device(void)
{
    struct lm_error err;
    check(bench.ops->sync(bench.backend, &err), &err);
}

/* Device memory until the end of a line. */
static void *give(size_t n_bytes)
{
    struct lm_error err = {0};
    void *memory = bench.ops->alloc(bench.backend, n_bytes, &err);
    if (!memory) check(err.status, &err);
    return bench.lent[bench.n_lent++] = memory;
}

static void end_line(void)
{
    while (bench.n_lent)
        bench.ops->free(bench.backend, bench.lent[--bench.n_lent]);
    put_back_all();
}

/* n_bytes of device memory, the host's n_pattern over and over. */
static uint8_t *give_repeated(const void *pattern, size_t n_pattern, size_t n_bytes)
{
    uint8_t *memory = give(n_bytes);
    for (size_t at = 0; at < n_bytes; at += n_pattern)
        bench.ops->upload(bench.backend, memory + at, pattern,
                          n_bytes - at < n_pattern ? n_bytes - at : n_pattern);
    sync_device();
    return memory;
}

static float *give_floats(size_t n)
{
    const float *host = random_floats(n);
    return (float *)give_repeated(host, n * sizeof(float), n * sizeof(float));
}

/* n_matrix matrices of random blocks. */
static struct weight give_weights(enum tensor_type type, uint32_t n_row, uint32_t n_col,
                                  uint32_t n_matrix)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    const size_t row_bytes = tensor_row_bytes(type, n_col), n_bytes = n_row * row_bytes;
    uint8_t *host = take(n_bytes);
    for (size_t at = 0; at < n_bytes; at += info->block_bytes)
        random_block(type, info->block_bytes, host + at);
    return (struct weight){give_repeated(host, n_bytes, n_matrix * n_bytes), type, n_col, n_row,
                           row_bytes};
}

/* Seconds of a list of work, the best of several runs; the first two make it a graph. 0: it failed,
 * and why is in bench.error. */
static double time_list(void (*put)(void *context), void *context)
{
    double best = 1e9;
    const int n_run = bench.quick ? 3 : N_RUN_MAX;
    for (int run = 0; run < n_run; run++) {
        const double begin = now_s();
        put(context);
        if (bench.ops->sync(bench.backend, &bench.error) != LM_OK) return 0;
        const double seconds = now_s() - begin;
        if (run >= 2 && seconds < best) best = seconds;
    }
    return best;
}

static void print_line(const char *name, const char *shape, uint32_t n_token, double seconds,
                       double n_bytes, double n_multiply)
{
    char full_name[48];
    snprintf(full_name, sizeof(full_name), "%s%s", name, bench.fast ? " fast" : "");
    if (seconds == 0) {
        printf("%-18s %-24s %4u tokens: %s\n", full_name, shape, n_token, bench.error.message);
        end_line();
        return;
    }
    printf("%-18s %-24s %4u token%s %10.1f us %8.1f GB/s %4.0f%%", full_name, shape, n_token,
           n_token == 1 ? " " : "s", seconds * 1e6, n_bytes / seconds * 1e-9,
           n_bytes / seconds / bench.read_bytes_s * 100);
    if (n_multiply > 0)
        printf(" %8.2f TOP/s %4.0f%%", 2 * n_multiply / seconds * 1e-12,
               n_multiply / seconds / bench.multiply_s * 100);
    printf("\n");
    fflush(stdout);
    end_line();
}

/* ---- the roofs ---- */

struct roof {
    uint8_t *memory;
    size_t n_bytes;
    void *sink;
    uint32_t n_round;
    uint64_t n_multiply;
};

static void put_copy(void *context)
{
    const struct roof *r = context;
    bench.ops->copy(bench.backend, r->memory, r->memory + r->n_bytes / 2, r->n_bytes / 2);
}

static void put_read(void *context)
{
    const struct roof *r = context;
    backend_cuda_read(bench.backend, r->memory, r->n_bytes, r->sink);
}

static void put_multiply(void *context)
{
    struct roof *r = context;
    r->n_multiply = backend_cuda_multiply(bench.backend, r->n_round, r->sink);
}

static void measure_roofs(void)
{
    struct roof roof = {.n_bytes = bench.quick ? 1 << 16 : (size_t)2 << 30,
                        .n_round = bench.quick ? 1 : 20000};
    roof.memory = give(roof.n_bytes);
    roof.sink = give(4);
    const double copy_s = time_list(put_copy, &roof), read_s = time_list(put_read, &roof);
    bench.read_bytes_s = (double)roof.n_bytes / read_s;
    const double multiply_s = time_list(put_multiply, &roof);
    bench.multiply_s = (double)roof.n_multiply / multiply_s;
    printf("%-18s %-36s %20.1f GB/s\n", "copy", "read and written",
           (double)roof.n_bytes / copy_s * 1e-9);
    printf("%-18s %-36s %20.1f GB/s\n", "read", "", bench.read_bytes_s * 1e-9);
    printf("%-18s %-36s %34.2f TOP/s\n", "int8", "mma.m16n8k32", 2 * bench.multiply_s * 1e-12);
    end_line();
}

/* ---- products ---- */

struct products {
    struct linear_args args;
    struct weight *w; /* [n_matrix] */
    uint32_t n_matrix;
};

static void put_products(void *context)
{
    struct products *p = context;
    for (uint32_t i = 0; i < p->n_matrix; i++) {
        p->args.out[0].w = &p->w[i];
        bench.ops->linear(bench.backend, &p->args);
    }
}

static void measure_product(enum tensor_type type, uint32_t n_row, uint32_t n_col, uint32_t n_token)
{
    if (bench.quick) n_row /= 64, n_col = 512, n_token = n_token > 64 ? 64 : n_token;
    const size_t n_bytes = n_row * tensor_row_bytes(type, n_col);
    const size_t wanted = bench.quick ? 2 * n_bytes : (size_t)768 << 20;
    struct products p = {.n_matrix = (uint32_t)(wanted / n_bytes)};
    if (n_token > 64 && p.n_matrix > 16) p.n_matrix = 16;
    const struct weight all = give_weights(type, n_row, n_col, p.n_matrix);
    p.w = take(p.n_matrix * sizeof(*p.w));
    for (uint32_t i = 0; i < p.n_matrix; i++) {
        p.w[i] = all;
        p.w[i].data = (const uint8_t *)all.data + i * n_bytes;
    }
    p.args = (struct linear_args){
        .n_token = n_token, .x = give_floats((size_t)n_token * n_col), .n_col = n_col, .n_out = 1};
    p.args.out[0].y = give((size_t)n_token * n_row * sizeof(float));
    p.args.out[0].y_stride = n_row;
    const double seconds = time_list(put_products, &p) / p.n_matrix;
    char name[32], shape[32];
    snprintf(name, sizeof(name), "linear %s", tensor_type_info(type)->name);
    snprintf(shape, sizeof(shape), "%u x %u", n_row, n_col);
    print_line(name, shape, n_token, seconds, (double)n_bytes, (double)n_row * n_col * n_token);
}

/* ---- a layer of experts ---- */

struct layers {
    struct ffn_args args;
    const int32_t *ids; /* [n][n_token][N_USED] */
    uint32_t n;
};

static void put_layers(void *context)
{
    struct layers *l = context;
    for (uint32_t i = 0; i < l->n; i++) {
        l->args.ids = l->ids + (size_t)i * l->args.n_token * N_USED;
        bench.ops->ffn(bench.backend, &l->args);
    }
}

static void measure_experts(uint32_t n_embd, uint32_t n_ff, uint32_t n_token)
{
    const enum tensor_type type = TENSOR_Q4_K, down_type = TENSOR_Q6_K;
    const uint32_t n_expert = bench.quick ? 16 : N_EXPERT;
    if (bench.quick) n_embd = 256, n_ff = 256;
    const struct weight gate = give_weights(type, n_ff, n_embd, n_expert);
    const struct weight up = give_weights(type, n_ff, n_embd, n_expert);
    const struct weight down = give_weights(down_type, n_embd, n_ff, n_expert);
    const size_t gate_bytes = n_ff * gate.row_bytes, down_bytes = n_embd * down.row_bytes;
    struct expert_view *table = take(n_expert * sizeof(*table));
    for (uint32_t ie = 0; ie < n_expert; ie++)
        table[ie] = (struct expert_view){(const uint8_t *)gate.data + ie * gate_bytes,
                                         (const uint8_t *)up.data + ie * gate_bytes,
                                         (const uint8_t *)down.data + ie * down_bytes};
    struct layers l = {.n = bench.quick ? 2 : N_EXPERT / N_USED};
    const size_t n_id = (size_t)l.n * n_token * N_USED;
    int32_t *ids = take(n_id * sizeof(*ids));
    for (size_t i = 0; i < n_id; i++) /* each row others, all in turn */
        ids[i] = (int32_t)(i % n_expert);
    l.ids = (const int32_t *)give_repeated(ids, n_id * sizeof(*ids), n_id * sizeof(*ids));
    l.args = (struct ffn_args){
        .n_token = n_token,
        .x = give_floats((size_t)n_token * n_embd),
        .n_embd = n_embd,
        .n_expert = n_expert,
        .n_expert_used = N_USED,
        .n_ff_exp = n_ff,
        .weights = give_floats((size_t)n_token * N_USED),
        .table = (const struct expert_view *)give_repeated(table, n_expert * sizeof(*table),
                                                           n_expert * sizeof(*table)),
        .gate_exp = gate,
        .up_exp = up,
        .down_exp = down,
        .gate = &gate, /* the shared expert: one of the same size */
        .up = &up,
        .down = &down,
        .shared_gate = give_floats(n_embd),
        .y = give((size_t)n_token * n_embd * sizeof(float)),
    };
    const double seconds = time_list(put_layers, &l) / l.n;
    uint32_t n_read = n_token * N_USED;
    if (n_read > n_expert) n_read = n_expert;
    char shape[48];
    snprintf(shape, sizeof(shape), "%u of %u, %u x %u", N_USED, n_expert, n_ff, n_embd);
    print_line("experts Q4_K Q6_K", shape, n_token, seconds,
               (double)(n_read + 1) * (double)(2 * gate_bytes + down_bytes),
               3.0 * n_ff * n_embd * n_token * (N_USED + 1));
}

/* ---- attention and the delta rule ---- */

static void put_attention(void *context)
{
    for (int i = 0; i < 16; i++)
        bench.ops->attention(bench.backend, context);
}

static void measure_attention(uint32_t n_ctx, uint32_t n_token)
{
    enum { N_HEAD = 16, N_HEAD_KV = 2, DIM = 256 };
    if (bench.quick) n_ctx = 256;
    const uint32_t n_block = (n_ctx + KV_BLOCK - 1) / KV_BLOCK;
    const size_t block_bytes = kv_block_bytes(TENSOR_F16, N_HEAD_KV, DIM);
    const float *const row = random_floats(4096);
    uint16_t *halves = take(4096 * sizeof(*halves));
    for (int i = 0; i < 4096; i++)
        halves[i] = f16_from_f32(row[i]);
    uint8_t *cache = give_repeated(halves, 4096 * sizeof(*halves), n_block * block_bytes);
    void **block = take(n_block * sizeof(*block));
    void *const *const table[] = {block};
    for (uint32_t b = 0; b < n_block; b++)
        block[b] = cache + b * block_bytes;
    struct token_ref *token = take(n_token * sizeof(*token));
    for (uint32_t it = 0; it < n_token; it++)
        token[it].pos = n_ctx - n_token + it;
    struct attention_args args = {.n_token = n_token,
                                  .token = token,
                                  .q = give_floats((size_t)n_token * N_HEAD * DIM),
                                  .q_stride = N_HEAD * DIM,
                                  .q_head_stride = DIM,
                                  .k = give_floats((size_t)n_token * N_HEAD_KV * DIM),
                                  .v = give_floats((size_t)n_token * N_HEAD_KV * DIM),
                                  .kv_stride = N_HEAD_KV * DIM,
                                  .n_head = N_HEAD,
                                  .n_head_kv = N_HEAD_KV,
                                  .head_dim = DIM,
                                  .scale = 0.0625f,
                                  .kv_type = TENSOR_F16,
                                  .kv_block = table,
                                  .out = give((size_t)n_token * N_HEAD * DIM * sizeof(float))};
    const double seconds = time_list(put_attention, &args) / 16;
    char shape[32];
    snprintf(shape, sizeof(shape), "%u behind, 16:2 x 256", n_ctx - n_token);
    print_line("attention F16", shape, n_token, seconds, (double)n_block * (double)block_bytes, 0);
}

static void put_delta_net(void *context)
{
    for (int i = 0; i < 16; i++)
        bench.ops->delta_net(bench.backend, context);
}

static void measure_delta_net(uint32_t n_token)
{
    enum { N_HEAD_K = 16, N_HEAD_V = 32, DIM = 128, N_TAP = 4 };
    const uint32_t n_head_v = bench.quick ? 4 : N_HEAD_V, n_head_k = bench.quick ? 2 : N_HEAD_K;
    const uint32_t v_dim = n_head_v * DIM, conv_dim = 2 * n_head_k * DIM + v_dim;
    float *const conv_state[] = {give(3 * conv_dim * sizeof(float))};
    float *const state[] = {give((size_t)v_dim * DIM * sizeof(float))};
    float *ssm_a = take(n_head_v * sizeof(float));
    for (uint32_t h = 0; h < n_head_v; h++)
        ssm_a[h] = -1.0f;
    struct token_ref *token = take(n_token * sizeof(*token));
    for (uint32_t it = 0; it < n_token; it++)
        token[it].pos = it;
    struct delta_net_args args = {
        .n_token = n_token,
        .token = token,
        .qkv = give_floats((size_t)n_token * conv_dim),
        .z = give_floats((size_t)n_token * v_dim),
        .beta = give_floats((size_t)n_token * n_head_v),
        .alpha = give_floats((size_t)n_token * n_head_v),
        .conv_w = give_floats((size_t)conv_dim * N_TAP),
        .n_tap = N_TAP,
        .ssm_a = (const float *)give_repeated(ssm_a, n_head_v * 4, n_head_v * 4),
        .ssm_dt = give_floats(n_head_v),
        .norm = give_floats(DIM),
        .eps = 1e-6f,
        .n_head_k = n_head_k,
        .n_head_v = n_head_v,
        .dim_k = DIM,
        .dim_v = DIM,
        .conv_state = conv_state,
        .state = state,
        .out = give((size_t)n_token * v_dim * sizeof(float))};
    const double seconds = time_list(put_delta_net, &args) / 16;
    char shape[32];
    snprintf(shape, sizeof(shape), "%u heads x 128 x 128", n_head_v);
    print_line("delta_net", shape, n_token, seconds, 2.0 * v_dim * DIM * sizeof(float), 0);
}

/* ---- the link ---- */

struct link_load {
    uint8_t *host, *device; /* [n_bytes] */
    size_t n_bytes, piece_bytes;
    const struct roof *beside; /* reads of it, n_round times, beside the copies; or NULL */
    struct expert_gather_args gather;
    uint32_t n_gather;
};

static void put_fetches(void *context)
{
    const struct link_load *l = context;
    uint64_t ticket = 0;
    for (size_t at = 0; at + l->piece_bytes <= l->n_bytes; at += l->piece_bytes)
        ticket = bench.ops->fetch(bench.backend, l->device + at, l->host + at, l->piece_bytes, 0,
                                  COPY_DEMAND);
    for (uint32_t i = 0; l->beside && i < l->beside->n_round; i++)
        backend_cuda_read(bench.backend, l->beside->memory, l->beside->n_bytes, l->beside->sink);
    bench.ops->start(bench.backend);
    bench.ops->await(bench.backend, ticket);
}

/* As experts are loaded before anybody chose them: behind what is demanded, a little at a time. */
static void put_preload(void *context)
{
    const struct link_load *l = context;
    uint64_t ticket = 0;
    for (size_t at = 0; at + l->piece_bytes <= l->n_bytes; at += l->piece_bytes)
        ticket = bench.ops->fetch(bench.backend, l->device + at, l->host + at, l->piece_bytes, 0,
                                  COPY_AHEAD);
    while (!bench.ops->fetched(bench.backend, ticket))
        continue;
}

static void put_gathers(void *context)
{
    struct link_load *l = context;
    const int32_t *const ids = l->gather.ids;
    for (uint32_t i = 0; i < l->n_gather; i++) {
        bench.ops->gather_experts(bench.backend, &l->gather);
        l->gather.ids += l->gather.n_pair;
    }
    l->gather.ids = ids;
}

static void print_link(const char *name, const char *shape, double seconds, double n_bytes,
                       const char *remark)
{
    if (seconds == 0)
        printf("%-18s %-24s %s\n", name, shape, bench.error.message);
    else
        printf("%-18s %-24s             %10.1f us %8.1f GB/s%s\n", name, shape, seconds * 1e6,
               n_bytes / seconds * 1e-9, remark);
    fflush(stdout);
}

static void measure_pieces(struct link_load *l, const char *name, void (*put)(void *context))
{
    char shape[48];
    snprintf(shape, sizeof(shape), "%zu x %zu KiB", l->n_bytes / l->piece_bytes,
             l->piece_bytes >> 10);
    print_link(name, shape, time_list(put, l), (double)l->n_bytes, "");
}

static void measure_fetches(struct link_load *l, const char *name)
{
    for (l->piece_bytes = l->n_bytes; l->piece_bytes >= 1 << 17; l->piece_bytes /= 8)
        measure_pieces(l, name, put_fetches);
}

/* Copies of 2 MiB beside as many reads as take about as long: what each of the two loses. */
static void measure_beside(struct link_load *l)
{
    struct roof roof = {.n_bytes = bench.quick ? 1 << 16 : (size_t)1 << 30};
    char remark[80];
    roof.memory = give(roof.n_bytes);
    roof.sink = give(4);
    l->piece_bytes = bench.quick ? 1 << 17 : 2 << 20;
    const double copy_s = time_list(put_fetches, l);
    const double read_s = (double)roof.n_bytes / bench.read_bytes_s;
    roof.n_round = bench.quick || copy_s < read_s ? 1 : (uint32_t)(copy_s / read_s + 0.5);
    l->beside = &roof;
    const double both_s = time_list(put_fetches, l);
    l->beside = NULL;
    snprintf(remark, sizeof(remark), "  copies alone %.1f us, reads alone %.1f us", copy_s * 1e6,
             roof.n_round * read_s * 1e6);
    print_link("fetch beside reads", "", both_s, (double)l->n_bytes, remark);
}

/* N_USED experts for each token, all remote, none twice. */
static void measure_gathers(struct link_load *l, size_t expert_bytes)
{
    const size_t part_bytes = expert_bytes / 3 / 16 * 16;
    const uint32_t n_expert = (uint32_t)(l->n_bytes / (3 * part_bytes)) / N_USED * N_USED;
    struct expert_view *table = take(n_expert * sizeof(*table));
    uint8_t *remote = take(n_expert);
    int32_t *ids = take(n_expert * sizeof(*ids));
    for (uint32_t ie = 0; ie < n_expert; ie++) {
        const uint8_t *const at = l->host + ie * 3 * part_bytes;
        table[ie] = (struct expert_view){at, at + part_bytes, at + 2 * part_bytes};
        ids[ie] = (int32_t)ie;
        remote[ie] = 1;
    }
    l->n_gather = n_expert / N_USED;
    l->gather = (struct expert_gather_args){
        .ids = (int32_t *)give_repeated(ids, n_expert * sizeof(*ids), n_expert * sizeof(*ids)),
        .n_pair = N_USED,
        .n_expert = n_expert,
        .table = (struct expert_view *)give_repeated(table, n_expert * sizeof(*table),
                                                     n_expert * sizeof(*table)),
        .remote = give_repeated(remote, n_expert, n_expert),
        .gate_bytes = part_bytes,
        .up_bytes = part_bytes,
        .down_bytes = part_bytes,
        .room = give(N_USED * expert_room_bytes(part_bytes, part_bytes, part_bytes)),
        .n_room = N_USED,
        .view = give(n_expert * sizeof(*table)),
    };
    const double seconds = time_list(put_gathers, l) / l->n_gather;
    char shape[48];
    snprintf(shape, sizeof(shape), "%d x %zu KiB", N_USED, 3 * part_bytes >> 10);
    print_link("gather_experts", shape, seconds, (double)N_USED * 3 * (double)part_bytes, "");
}

static void measure_link(void)
{
    struct link_load l = {.n_bytes = bench.quick ? 1 << 20 : (size_t)512 << 20};
    struct lm_error err;
    l.host = aligned_alloc(4096, l.n_bytes);
    if (!l.host) exit(lm_exit_code(LM_E_NO_MEM));
    memset(l.host, 1, l.n_bytes);
    l.device = give(l.n_bytes);
    measure_fetches(&l, "fetch, not pinned");
    if (bench.ops->pin(bench.backend, l.host, l.n_bytes, &err) == LM_OK) {
        measure_fetches(&l, "fetch, pinned");
        l.piece_bytes = bench.quick ? 1 << 17 : 2 << 20;
        measure_pieces(&l, "preload, pinned", put_preload);
        measure_beside(&l);
        measure_gathers(&l, bench.quick ? 30000 : 1900 << 10); /* of the 35B */
        if (!bench.quick) measure_gathers(&l, 5700 << 10);     /* of the 122B */
        bench.ops->unpin(bench.backend, l.host);
    } else {
        printf("fetch, pinned: %s\n", err.message);
    }
    free(l.host);
    end_line();
}

static const enum tensor_type product_types[] = {TENSOR_Q4_K, TENSOR_Q6_K, TENSOR_Q8_0};
static const uint32_t product_shapes[][2] = {
    {8192, 2048}, {2048, 4096}, {12288, 3072}, {3072, 8192}};

static void measure_products(uint32_t n_token)
{
    for (int t = 0; t < 3; t++)
        for (int s = 0; s < (bench.quick ? 1 : 4); s++)
            measure_product(product_types[t], product_shapes[s][0], product_shapes[s][1], n_token);
}

/* What goes other ways in the FAST mode, on a backend of its own. */
static void measure_fast(struct backend_cuda_config config)
{
    struct backend *const exact = bench.backend;
    struct lm_error err;
    config.fast = true;
    const enum lm_status status = backend_cuda_create(&bench.backend, &config, &err);
    if (status != LM_OK) {
        printf("fast: %s\n", err.message);
        bench.backend = exact;
        return;
    }
    bench.fast = true;
    measure_products(512);
    if (!bench.quick) {
        measure_product(TENSOR_Q4_K, 8192, 2048, 64);
        measure_product(TENSOR_Q4_K, 8192, 2048, 128);
        measure_experts(2048, 512, 512);
        measure_attention(32768, 512);
    }
    measure_attention(4096, bench.quick ? 16 : 512);
    bench.backend->ops->destroy(bench.backend);
    bench.backend = exact;
    bench.fast = false;
}

int main(int argc, char **argv)
{
    const struct backend_cuda_config config = {
        .plugin = text_argument(argc + 1, argv - 1, "--plugin", NULL),
        .device = number_argument(argc + 1, argv - 1, "--device", 0),
    };
    bench.quick = number_argument(argc + 1, argv - 1, "--quick", 0);
    struct lm_error err;
    check(backend_cuda_create(&bench.backend, &config, &err), &err);
    bench.ops = bench.backend->ops;
    random_state = 1;
    measure_roofs();
    measure_link();
    measure_products(1);
    if (!bench.quick) {
        measure_product(TENSOR_Q6_K, 248320, 2048, 1);
        for (uint32_t n_token = 2; n_token <= 8; n_token *= 2)
            measure_product(TENSOR_Q4_K, 8192, 2048, n_token);
    }
    measure_products(512);
    measure_experts(2048, 512, 1);
    if (!bench.quick) {
        measure_experts(3072, 1024, 1);
        measure_experts(2048, 512, 8);
        measure_experts(2048, 512, 512);
    }
    measure_attention(4096, 1);
    if (!bench.quick) {
        measure_attention(32768, 1);
        measure_product(TENSOR_Q4_K, 8192, 2048, 64);
        measure_product(TENSOR_Q4_K, 8192, 2048, 128);
        measure_attention(4096, 512);
        measure_attention(32768, 512);
    }
    measure_delta_net(1);
    if (!bench.quick) measure_delta_net(512);
    measure_fast(config);
    bench.ops->destroy(bench.backend);
    return lm_exit_code(bench.error.status);
}
