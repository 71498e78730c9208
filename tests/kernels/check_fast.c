/* The FAST mode of the CUDA backend, on its emulator or on a device: how far results may be from
 * those computed in double, that they are the same from run to run, that few rows keep the bits of
 * EXACT, and that cuBLAS was called at all.
 *
 *   check_fast [--backend cuda-emu|cuda] [--cases N] [SEED]
 *
 * A product's bound is of each single result, and rigorous: weights and activations are rounded to
 * BF16, each by at most 2^-8 of itself, and n products are added in F32 in an unknown order, so
 *
 *   |got - sum w x| <= ((1 + 2^-8)^2 - 1 + (n + 4) 2^-23) * sum |w x|
 *
 * where 2^-23 leaves room for cuBLAS, whose tensor cores cut off where the CPU rounds.
 *
 * Attention's is, too: see define_query. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/backend_cuda.h"
#include "kernels/kernels.h"
#include "tests/kernels/random_case.h"

enum { ROWS_FAST_MIN = 64 }; /* fewer are multiplied as in EXACT */

static struct backend *fast, *exact;
static const struct kernel_table *ref;
static int n_failed;
static void *lent[256];
static size_t n_lent;

static void check(enum lm_status status, const struct lm_error *err)
{
    if (status == LM_OK) return;
    printf("check_fast: %s\n", err->message);
    exit(1);
}

static void sync_device(struct backend *backend)
{
    struct lm_error err;
    check(backend->ops->sync(backend, &err), &err);
}

/* Memory of the device, which both backends share, until the end of a case. */
static void *give(const void *host, size_t n_bytes)
{
    struct lm_error err;
    void *memory = fast->ops->alloc(fast, n_bytes, &err);
    if (!memory) check(err.status, &err);
    if (host) fast->ops->upload(fast, memory, host, n_bytes);
    sync_device(fast);
    return lent[n_lent++] = memory;
}

static float *give_floats(const float *host, size_t n)
{
    return host ? give(host, n * sizeof(float)) : NULL;
}

static void end_case(void)
{
    while (n_lent)
        fast->ops->free(fast, lent[--n_lent]);
    put_back_all();
}

static float *fetch(const void *device, size_t n)
{
    float *host = take(n * sizeof(float));
    fast->ops->download(fast, host, device, n * sizeof(float));
    sync_device(fast);
    return host;
}

static uint64_t n_product(void)
{
    return backend_cuda_counters(fast)->n_product;
}

static void expect(bool holds, const char *what)
{
    if (holds) return;
    printf("%s\n", what);
    n_failed++;
}

/* ---- linear ---- */

struct product {
    struct weight w, device_w;
    uint32_t n_token, n_col;
    const float *x, *norm, *bias, *residual, *post_norm;
    const float *device_x, *device_norm, *device_bias, *device_post_norm;
    size_t y_stride;
};

static struct product random_product(enum tensor_type type, uint32_t n_token, uint32_t n_row,
                                     uint32_t n_col)
{
    struct product p = {.w = weight_of_type(type, n_row, (n_col + 255) / 256 * 256, 1),
                        .n_token = n_token,
                        .n_col = n_col,
                        .x = random_floats((size_t)n_token * n_col),
                        .y_stride = n_row + random_below(5)};
    if (n_col % 256) { /* plain rows, of any length and distance */
        p.w.n_col = n_col;
        if (random_below(2)) p.w.row_bytes = tensor_row_bytes(type, n_col);
    }
    if (random_below(2)) p.norm = random_floats(n_col);
    if (random_below(2)) p.bias = random_floats(n_row);
    if (random_below(2)) p.residual = random_floats((size_t)n_token * n_row);
    if (random_below(4) == 0) p.post_norm = random_floats(n_row);
    p.device_w = p.w;
    p.device_w.data = give(p.w.data, n_row * p.w.row_bytes);
    p.device_x = give_floats(p.x, (size_t)n_token * n_col);
    p.device_norm = give_floats(p.norm, n_col);
    p.device_bias = give_floats(p.bias, n_row);
    p.device_post_norm = give_floats(p.post_norm, n_row);
    return p;
}

/* [n_token][n_row] */
static float *run_product(struct backend *backend, const struct product *p)
{
    const uint32_t n_row = p->w.n_row;
    float *residual = give_floats(p->residual, (size_t)p->n_token * n_row);
    float *y = give(NULL, p->n_token * p->y_stride * sizeof(float));
    struct linear_args args = {.n_token = p->n_token,
                               .x = p->device_x,
                               .n_col = p->n_col,
                               .norm = p->device_norm,
                               .eps = 1e-5f,
                               .n_out = 1,
                               .epilogue = {p->device_post_norm, 1e-6f, residual}};
    args.out[0].w = &p->device_w;
    args.out[0].bias = p->device_bias;
    args.out[0].y = y;
    args.out[0].y_stride = p->y_stride;
    backend->ops->linear(backend, &args);
    sync_device(backend);
    const size_t stride = residual ? n_row : p->y_stride;
    const float *got = fetch(residual ? residual : y, p->n_token * stride);
    float *rows = take((size_t)p->n_token * n_row * sizeof(float));
    for (uint32_t it = 0; it < p->n_token; it++)
        memcpy(rows + (size_t)it * n_row, got + it * stride, n_row * sizeof(float));
    return rows;
}

/* A row's results in double, and how far each may be off. */
static void define_row(const struct product *p, const float *w, uint32_t it, double *y,
                       double *bound)
{
    const uint32_t n_row = p->w.n_row, n_col = p->n_col;
    const double of_product = (1 + 0x1p-8) * (1 + 0x1p-8) - 1 + (n_col + 4) * 0x1p-23;
    float *x = take(n_col * sizeof(float));
    memcpy(x, p->x + (size_t)it * n_col, n_col * sizeof(float));
    if (p->norm) ref->rms_norm(p->x + (size_t)it * n_col, p->norm, n_col, 1e-5f, x);
    double squares = 0, error_squares = 0;
    for (uint32_t r = 0; r < n_row; r++) {
        double sum = 0, sum_abs = 0;
        for (uint32_t k = 0; k < n_col; k++) {
            const double term = (double)w[(size_t)r * n_col + k] * (double)x[k];
            sum += term;
            sum_abs += fabs(term);
        }
        const double bias = p->bias ? (double)p->bias[r] : 0;
        y[r] = sum + bias;
        bound[r] = of_product * sum_abs + 0x1p-22 * (fabs(bias) + fabs(y[r])) + 0x1p-120;
        squares += y[r] * y[r];
        error_squares += bound[r] * bound[r];
    }
    /* RMSNorm: its scale is off by what the root of the sum of squares is */
    const double rms = sqrt(squares / n_row + 1e-6), off = sqrt(error_squares / n_row) / rms;
    if (p->post_norm) expect(off < 0.5, "too few results to bound the error of a norm");
    for (uint32_t r = 0; r < n_row; r++) {
        if (p->post_norm) {
            const double scale = (double)p->post_norm[r] / rms;
            bound[r] = fabs(scale) * (bound[r] + (fabs(y[r]) + bound[r]) * off / (1 - off)) +
                       0x1p-18 * fabs(scale * y[r]);
            y[r] *= scale;
        }
        if (p->residual) {
            const double before = (double)p->residual[(size_t)it * n_row + r];
            y[r] += before;
            bound[r] += 0x1p-22 * (fabs(before) + fabs(y[r]));
        }
    }
    put_back(x);
}

static void compare_product(const struct product *p, const float *got)
{
    const uint32_t n_row = p->w.n_row;
    const size_t row_bytes = p->w.row_bytes;
    float *w = take((size_t)n_row * p->n_col * sizeof(float));
    double *y = take(n_row * sizeof(double)), *bound = take(n_row * sizeof(double));
    for (uint32_t r = 0; r < n_row; r++)
        ref->dequant_row[p->w.type]((const uint8_t *)p->w.data + r * row_bytes, p->n_col,
                                    w + (size_t)r * p->n_col);
    for (uint32_t it = 0; it < p->n_token; it++) {
        define_row(p, w, it, y, bound);
        for (uint32_t r = 0; r < n_row; r++) {
            const double value = (double)got[(size_t)it * n_row + r];
            if (bound[r] >= 0 && fabs(value - y[r]) <= bound[r]) continue;
            printf("%s, %u x %u, row %u of %u, result %u: %g, not %g, off by more than %g\n",
                   tensor_type_info(p->w.type)->name, n_row, p->n_col, it, p->n_token, r, value,
                   y[r], bound[r]);
            n_failed++;
            return;
        }
    }
}

static bool same_rows(const struct product *p, const float *a, const float *b)
{
    return !memcmp(a, b, (size_t)p->n_token * p->w.n_row * sizeof(float));
}

static void check_linear(enum tensor_type type)
{
    const uint32_t n_token = ROWS_FAST_MIN + random_below(40), n_row = 24 + random_below(70);
    const bool ragged = (type == TENSOR_F16 || type == TENSOR_BF16) && random_below(2);
    const uint32_t n_col = ragged ? 32 + random_below(200) : 256 * (1 + random_below(3));
    const struct product p = random_product(type, n_token, n_row, n_col);
    const uint64_t n_before = n_product();
    const float *got = run_product(fast, &p);
    expect(n_product() - n_before == (type != TENSOR_F32), "cuBLAS was not called as it should");
    if (type == TENSOR_F32)
        expect(same_rows(&p, got, run_product(exact, &p)), "weights of F32 are not exact");
    else
        compare_product(&p, got);
    expect(same_rows(&p, got, run_product(fast, &p)), "not the same bits again");
    end_case();
}

static void check_few_rows_are_exact(void)
{
    const struct product p =
        random_product(TENSOR_Q4_K, 1 + random_below(ROWS_FAST_MIN - 1), 70, 512);
    const uint64_t n_before = n_product();
    expect(same_rows(&p, run_product(fast, &p), run_product(exact, &p)), "few rows are not exact");
    expect(n_product() == n_before, "few rows went to cuBLAS");
    end_case();
}

/* More weights than are decoded at a time: the results on both sides of the seam. */
static void check_tiles(void)
{
    enum { N_COL = 8192, SEAM = 2048, N_ROW = SEAM + 70, BEGIN = SEAM - 9, N = 20 };
    struct product p = random_product(TENSOR_Q4_0, ROWS_FAST_MIN, N_ROW, N_COL);
    p.residual = p.post_norm = NULL;
    p.device_post_norm = NULL;
    const uint64_t n_before = n_product();
    const float *const got = run_product(fast, &p);
    expect(n_product() - n_before == 2, "not a product for each of two tiles");
    struct product seam = p;
    seam.w.n_row = N;
    seam.w.data = (const uint8_t *)p.w.data + BEGIN * p.w.row_bytes;
    if (p.bias) seam.bias = p.bias + BEGIN;
    float *const of_seam = take(ROWS_FAST_MIN * N * sizeof(float));
    for (size_t it = 0; it < ROWS_FAST_MIN; it++)
        memcpy(of_seam + it * N, got + it * N_ROW + BEGIN, N * sizeof(float));
    compare_product(&seam, of_seam);
    end_case();
}

/* Matrices of several types that share their rows, one of them F32: each into its own place. */
static void check_mixed_types(void)
{
    enum { N = 3, N_TOKEN = ROWS_FAST_MIN, N_COL = 256 };
    static const enum tensor_type types[N] = {TENSOR_Q6_K, TENSOR_F32, TENSOR_BF16};
    struct linear_args args = {.n_token = N_TOKEN, .n_col = N_COL, .n_out = N};
    struct product p[N];
    for (int i = 0; i < N; i++) {
        p[i] = random_product(types[i], N_TOKEN, 20 + (uint32_t)i, N_COL);
        p[i].norm = p[i].residual = p[i].post_norm = NULL;
        p[i].x = p[0].x;
        args.out[i].w = &p[i].device_w;
        args.out[i].bias = p[i].device_bias;
        args.out[i].y_stride = p[i].w.n_row;
        args.out[i].y = give(NULL, (size_t)N_TOKEN * p[i].w.n_row * sizeof(float));
    }
    args.x = p[0].device_x;
    fast->ops->linear(fast, &args);
    sync_device(fast);
    for (int i = 0; i < N; i++)
        compare_product(&p[i], fetch(args.out[i].y, (size_t)N_TOKEN * p[i].w.n_row));
    end_case();
}

static void check_nan_is_reported(void)
{
    enum { N_COL = 256 };
    float *x = random_floats(ROWS_FAST_MIN * N_COL);
    x[random_below(ROWS_FAST_MIN * N_COL)] = random_below(2) ? NAN : INFINITY;
    struct product p = random_product(TENSOR_Q8_0, ROWS_FAST_MIN, 32, N_COL);
    struct linear_args args = {.n_token = ROWS_FAST_MIN,
                               .x = give_floats(x, ROWS_FAST_MIN * N_COL),
                               .n_col = N_COL,
                               .n_out = 1};
    args.out[0].w = &p.device_w;
    args.out[0].y = give(NULL, ROWS_FAST_MIN * 32 * sizeof(float));
    args.out[0].y_stride = 32;
    struct lm_error err = {0};
    fast->ops->linear(fast, &args);
    expect(fast->ops->sync(fast, &err) == LM_E_FAIL && strstr(err.message, "linear"),
           "an input that is not finite passed");
    end_case();
}

/* ---- ffn ---- */

enum { N_EMBD = 256, N_FF = 256 };

struct network {
    struct weight w[3], device_w[3]; /* gate, up, down */
    float *decoded[3];
};

static void make_network(struct network *n)
{
    for (int i = 0; i < 3; i++) {
        enum tensor_type type = TENSOR_F32;
        while (type == TENSOR_F32)
            type = weight_types[random_below(N_WEIGHT_TYPE)];
        n->w[i] = weight_of_type(type, N_FF, N_EMBD, 1); /* of one shape: both sides are 256 */
        n->device_w[i] = n->w[i];
        n->device_w[i].data = give(n->w[i].data, N_FF * n->w[i].row_bytes);
        n->decoded[i] = take(N_FF * N_EMBD * sizeof(float));
        for (uint32_t r = 0; r < N_FF; r++)
            ref->dequant_row[type]((const uint8_t *)n->w[i].data + r * n->w[i].row_bytes, N_EMBD,
                                   n->decoded[i] + r * N_EMBD);
    }
}

/* A row's products in double, and how far each may be off where x may be by off_x. */
static void define_products(const float *w, const double *x, const double *off_x, double *y,
                            double *off)
{
    const double of_product = (1 + 0x1p-8) * (1 + 0x1p-8) - 1 + (N_EMBD + 4) * 0x1p-23;
    for (uint32_t r = 0; r < N_FF; r++) {
        y[r] = off[r] = 0;
        for (uint32_t k = 0; k < N_EMBD; k++) {
            const double of_w = (double)w[r * N_EMBD + k];
            y[r] += of_w * x[k];
            off[r] += fabs(of_w) * (of_product * (fabs(x[k]) + off_x[k]) + off_x[k]);
        }
    }
}

/* The slope of x sigmoid(x) is 1.1 at most. */
static void define_network(const struct network *n, const float *x, double *y, double *off)
{
    double in[N_EMBD], none[N_EMBD] = {0}, gate[N_FF], up[N_FF], off_gate[N_FF], off_up[N_FF];
    for (uint32_t k = 0; k < N_EMBD; k++)
        in[k] = (double)x[k];
    define_products(n->decoded[0], in, none, gate, off_gate);
    define_products(n->decoded[1], in, none, up, off_up);
    for (uint32_t i = 0; i < N_FF; i++) {
        const double silu = gate[i] / (1 + exp(-gate[i]));
        const double off_silu = 1.1 * off_gate[i] + 0x1p-20 * fabs(silu);
        off_gate[i] = off_silu * (fabs(up[i]) + off_up[i]) + fabs(silu) * off_up[i];
        gate[i] = silu * up[i];
    }
    define_products(n->decoded[2], gate, off_gate, y, off);
}

/* A shared network beside routed experts, which stay exact: what they give alone is added. */
static void check_ffn(bool routed)
{
    enum { N_EXPERT = 3, N_USED = 2 };
    const uint32_t n_token = ROWS_FAST_MIN + random_below(20);
    const size_t n = (size_t)n_token * N_EMBD;
    struct network shared, expert;
    struct expert_view view[N_EXPERT];
    const float *x = random_floats(n), *shared_gate = random_floats(N_EMBD);
    int32_t *ids = take(n_token * N_USED * sizeof(*ids));
    make_network(&shared);
    struct ffn_args args = {.n_token = n_token,
                            .x = give_floats(x, n),
                            .n_embd = N_EMBD,
                            .gate = &shared.device_w[0],
                            .up = &shared.device_w[1],
                            .down = &shared.device_w[2],
                            .shared_gate = routed ? give_floats(shared_gate, N_EMBD) : NULL,
                            .y = give(NULL, n * sizeof(float))};
    if (routed) {
        make_network(&expert);
        for (int ie = 0; ie < N_EXPERT; ie++) /* all alike: only their sum matters here */
            view[ie] = (struct expert_view){expert.device_w[0].data, expert.device_w[1].data,
                                            expert.device_w[2].data};
        for (uint32_t i = 0; i < n_token * N_USED; i++)
            ids[i] = (int32_t)((i + i / N_USED) % N_EXPERT);
        args.n_expert = N_EXPERT;
        args.n_expert_used = N_USED;
        args.n_ff_exp = N_FF;
        args.ids = give(ids, n_token * N_USED * sizeof(*ids));
        args.weights = give_floats(random_floats(n_token * N_USED), n_token * N_USED);
        args.expert = view;
        args.gate_exp = expert.device_w[0];
        args.up_exp = expert.device_w[1];
        args.down_exp = expert.device_w[2];
    }
    const uint64_t n_before = n_product();
    fast->ops->ffn(fast, &args);
    sync_device(fast);
    expect(n_product() - n_before == 3, "ffn: not three products by cuBLAS");
    const float *got = fetch(args.y, n), *others = take(n * sizeof(float));
    if (routed) {
        struct ffn_args alone = args;
        alone.gate = alone.up = alone.down = NULL;
        alone.shared_gate = NULL;
        exact->ops->ffn(exact, &alone);
        sync_device(exact);
        others = fetch(args.y, n);
    }
    for (uint32_t it = 0; it < n_token; it++) {
        double y[N_EMBD], off[N_EMBD], open = 0;
        define_network(&shared, x + (size_t)it * N_EMBD, y, off);
        for (uint32_t k = 0; k < N_EMBD; k++)
            open += (double)shared_gate[k] * (double)x[(size_t)it * N_EMBD + k];
        open = routed ? 1 / (1 + exp(-open)) : 1;
        for (uint32_t i = 0; i < N_EMBD; i++) {
            const double other = (double)others[(size_t)it * N_EMBD + i];
            const double want = open * y[i] + other, value = (double)got[(size_t)it * N_EMBD + i];
            const double bound =
                open * off[i] + 0x1p-18 * (fabs(open * y[i]) + fabs(other)) + 0x1p-120;
            if (fabs(value - want) <= bound) continue;
            printf("ffn, row %u of %u, %u: %g, not %g, off by more than %g\n", it, n_token, i,
                   value, want, bound);
            n_failed++;
            return;
        }
    }
}

/* ---- attention ---- */

enum { N_POS_MAX = 260, N_BLOCK = (N_POS_MAX + KV_BLOCK - 1) / KV_BLOCK, N_SEQ = 2 };

struct heads {
    enum tensor_type kv_type;
    uint32_t n_head, n_head_kv, dim, window;
    float scale;
    size_t block_bytes;
    uint32_t n_pos[N_SEQ];
    float *k[N_SEQ], *v[N_SEQ]; /* [n_pos][n_head_kv][dim], as the cache holds them */
    void *block[2][N_SEQ][N_BLOCK];
    void *const *table[2][N_SEQ]; /* of fast and of exact */
};

/* Blocks hold NaNs where nothing has been appended: what nobody sees must not matter. */
static void make_heads(struct heads *h, enum tensor_type kv_type, uint32_t dim, uint32_t group)
{
    *h = (struct heads){.kv_type = kv_type,
                        .n_head = 2 * group,
                        .n_head_kv = 2,
                        .dim = dim,
                        .window = random_below(2) ? 0 : 2 + random_below(150),
                        .scale = 1.0f / sqrtf((float)dim),
                        .block_bytes = kv_block_bytes(kv_type, 2, dim)};
    void *fill = take(h->block_bytes);
    memset(fill, 0xff, h->block_bytes);
    for (int s = 0; s < N_SEQ; s++) {
        h->k[s] = take((size_t)N_POS_MAX * 2 * dim * sizeof(float));
        h->v[s] = take((size_t)N_POS_MAX * 2 * dim * sizeof(float));
        for (int side = 0; side < 2; side++) {
            for (int b = 0; b < N_BLOCK; b++)
                h->block[side][s][b] = give(fill, h->block_bytes);
            h->table[side][s] = h->block[side][s];
        }
    }
}

/* Keys or values of a row to what the cache holds of them. */
static void round_rows(const struct heads *h, const float *from, float *to)
{
    uint8_t row[4 * 256];
    for (uint32_t i = 0; i < h->n_head_kv; i++) {
        ref->encode_row[h->kv_type](from + i * h->dim, h->dim, row);
        ref->dequant_row[h->kv_type](row, h->dim, to + i * h->dim);
    }
}

/* One query's result in double, and how far each may be off. Queries (and keys and values of F32
 * and Q8_0) are rounded, by u of themselves; so each score is off by some e at most, the weights by
 * a factor between exp(-2 e) and exp(2 e) after their sum is divided by; they are rounded once
 * more. Of F16, weights under 2^-14 are off by up to 2^-25. */
static void define_query(const struct heads *h, const float *q, const float *gate, uint32_t seq,
                         uint32_t pos, uint32_t head, double *y, double *bound)
{
    const uint32_t dim = h->dim, first = h->window && pos + 1 > h->window ? pos + 1 - h->window : 0;
    const bool rounded = h->kv_type == TENSOR_F32 || h->kv_type == TENSOR_Q8_0;
    const double u = h->kv_type == TENSOR_BF16 ? 0x1p-8 : 0x1p-11;
    const double of_score = (1 + u) * (1 + (rounded ? u : 0)) - 1 + (dim + 4) * 0x1p-23;
    const size_t stride = (size_t)h->n_head_kv * dim;
    const float *k = h->k[seq] + head * dim, *v = h->v[seq] + head * dim;
    double *weight = take((pos + 1) * sizeof(double)), largest = -INFINITY, off = 0, sum = 0;
    for (uint32_t j = first; j <= pos; j++) {
        double score = 0, score_abs = 0;
        for (uint32_t d = 0; d < dim; d++) {
            const double term = (double)q[d] * (double)k[j * stride + d] * (double)h->scale;
            score += term;
            score_abs += fabs(term);
        }
        weight[j] = score;
        largest = fmax(largest, score);
        off = fmax(off, of_score * score_abs);
    }
    for (uint32_t j = first; j <= pos; j++)
        sum += weight[j] = exp(weight[j] - largest);
    const double n = pos + 1 - first;
    const double of_sum = exp(2 * off) * (1 + u) * (1 + (rounded ? u : 0)) - 1 + (n + 10) * 0x1p-22;
    for (uint32_t d = 0; d < dim; d++) {
        double value = 0, value_abs = 0, value_max = 0;
        for (uint32_t j = first; j <= pos; j++) {
            const double of_v = (double)v[j * stride + d];
            value += weight[j] * of_v / sum;
            value_abs += weight[j] * fabs(of_v) / sum;
            value_max = fmax(value_max, fabs(of_v));
        }
        const double open = gate ? 1 / (1 + exp(-(double)gate[d])) : 1;
        y[d] = value * open;
        bound[d] = (of_sum * value_abs + n * value_max * 0x1p-24) * open + 0x1p-20 * fabs(y[d]);
    }
    put_back(weight);
}

static bool compare_heads(const struct heads *h, const struct attention_args *args,
                          const float *gate, const float *got)
{
    const uint32_t dim = h->dim, group = h->n_head / h->n_head_kv;
    double y[256], bound[256];
    for (uint32_t it = 0; it < args->n_token; it++)
        for (uint32_t ih = 0; ih < h->n_head; ih++) {
            const size_t at = ((size_t)it * h->n_head + ih) * dim;
            define_query(h, args->q + at, gate ? gate + at : NULL, args->token[it].slot,
                         args->token[it].pos, ih / group, y, bound);
            for (uint32_t d = 0; d < dim; d++) {
                if (fabs((double)got[at + d] - y[d]) <= bound[d]) continue;
                printf("attention %s, heads of %u, window %u, row %u of %u at %u, head %u, "
                       "dimension %u: %g, not %g, off by more than %g\n",
                       tensor_type_info(h->kv_type)->name, dim, h->window, it, args->n_token,
                       args->token[it].pos, ih, d, (double)got[at + d], y[d], bound[d]);
                n_failed++;
                return false;
            }
        }
    return true;
}

/* n[s] more rows of each sequence, in one call. */
static void attend(struct heads *h, const uint32_t *n, bool expect_fast)
{
    struct token_ref token[N_SEQ * N_POS_MAX];
    uint32_t n_token = 0;
    for (uint32_t s = 0; s < N_SEQ; s++)
        for (uint32_t i = 0; i < n[s]; i++)
            token[n_token++] = (struct token_ref){s, h->n_pos[s] + i};
    const size_t n_q = (size_t)n_token * h->n_head * h->dim, kv_dim = h->n_head_kv * h->dim;
    const float *q = random_floats(n_q), *gate = random_below(2) ? random_floats(n_q) : NULL;
    const float *k = random_floats(n_token * kv_dim), *v = random_floats(n_token * kv_dim);
    for (uint32_t it = 0; it < n_token; it++) {
        const size_t at = token[it].pos * kv_dim;
        round_rows(h, k + it * kv_dim, h->k[token[it].slot] + at);
        round_rows(h, v + it * kv_dim, h->v[token[it].slot] + at);
        h->n_pos[token[it].slot]++;
    }
    const struct attention_args host = {.n_token = n_token, .token = token, .q = q};
    struct attention_args args = {.n_token = n_token,
                                  .token = token,
                                  .q = give_floats(q, n_q),
                                  .q_stride = h->n_head * h->dim,
                                  .q_head_stride = h->dim,
                                  .gate = give_floats(gate, n_q),
                                  .gate_stride = h->n_head * h->dim,
                                  .gate_head_stride = h->dim,
                                  .k = give_floats(k, n_token * kv_dim),
                                  .v = give_floats(v, n_token * kv_dim),
                                  .kv_stride = kv_dim,
                                  .n_head = h->n_head,
                                  .n_head_kv = h->n_head_kv,
                                  .head_dim = h->dim,
                                  .scale = h->scale,
                                  .window = h->window,
                                  .kv_type = h->kv_type};
    const float *got[3];
    for (int i = 0; i < 3; i++) { /* fast twice: the second time the same is appended again */
        struct backend *backend = i < 2 ? fast : exact;
        args.kv_block = h->table[i == 2];
        args.out = give(NULL, n_q * sizeof(float));
        backend->ops->attention(backend, &args);
        sync_device(backend);
        got[i] = fetch(args.out, n_q);
    }
    compare_heads(h, &host, gate, got[0]);
    expect(!memcmp(got[0], got[1], n_q * sizeof(float)), "attention: not the same bits again");
    const bool same = !memcmp(got[0], got[2], n_q * sizeof(float));
    expect(same != expect_fast, expect_fast ? "attention is exact" : "attention is not exact");
}

static void check_attention(enum tensor_type kv_type, uint32_t dim)
{
    static const uint32_t groups[] = {1, 3, 8};
    struct heads h;
    make_heads(&h, kv_type, dim, groups[random_below(3)]);
    attend(&h, (const uint32_t[N_SEQ]){16 + random_below(40), 3}, true);
    attend(&h, (const uint32_t[N_SEQ]){1, 15}, false);
    attend(&h, (const uint32_t[N_SEQ]){70 + random_below(50), 1}, true); /* with one decoding */
    end_case();
}

static void check_attentions(void)
{
    static const enum tensor_type kv_types[] = {TENSOR_F16, TENSOR_BF16, TENSOR_F32, TENSOR_Q8_0};
    static const uint32_t dims[] = {64, 96, 128, 256};
    for (int i = 0; i < 4; i++)
        check_attention(kv_types[i], dims[(i + (int)random_below(4)) % 4]);
    check_attention(TENSOR_F16, 80);
}

/* ---- main ---- */

static struct backend *create(const char *plugin, bool is_fast)
{
    /* few multiprocessors, which the small cases here keep busy: else they go the EXACT way */
    const struct backend_cuda_config config = {
        .plugin = plugin, .fast = is_fast, .n_multiprocessor = 3};
    struct backend *backend;
    struct lm_error err;
    check(backend_cuda_create(&backend, &config, &err), &err);
    return backend;
}

int main(int argc, char **argv)
{
    const char *plugin = CUDA_EMU_PLUGIN_FILE;
    int n_case = 2;
    uint64_t seed = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--backend") && i + 1 < argc)
            plugin = strcmp(argv[++i], "cuda") ? CUDA_EMU_PLUGIN_FILE : NULL;
        else if (!strcmp(argv[i], "--cases") && i + 1 < argc)
            n_case = atoi(argv[++i]);
        else
            seed = strtoull(argv[i], NULL, 10);
    }
    ref = kernels_select("ref");
    for (int n = 0; n < n_case; n++) {
        static const char *const orders[] = {"forward", "random", "reverse"}; /* of the emulator */
        setenv("LEAN_EMU_ORDER", orders[n % 3], 1);
        fast = create(plugin, true);
        exact = create(plugin, false);
        const int n_failed_before = n_failed;
        random_state = seed + (uint64_t)n;
        for (size_t i = 0; i < N_WEIGHT_TYPE; i++)
            check_linear(weight_types[i]);
        if (n == 0) check_tiles();
        check_few_rows_are_exact();
        check_mixed_types();
        check_nan_is_reported();
        for (int routed = 0; routed < 2; routed++) {
            check_ffn(routed);
            end_case();
        }
        check_attentions();
        expect(backend_cuda_counters(exact)->n_product == 0, "EXACT called cuBLAS");
        if (n_failed != n_failed_before)
            printf("  with seed %" PRIu64 ", threads in order \"%s\"\n", seed + (uint64_t)n,
                   orders[n % 3]);
        fast->ops->destroy(fast);
        exact->ops->destroy(exact);
    }
    printf("%s\n", n_failed ? "FAILED" : "within the bounds");
    return n_failed != 0;
}
