/* Every operation of the CPU backend gives the bits of a plain loop over the scalar kernels, for
 * every variant, 1, 2 and 4 threads, and however the rows are split into calls.
 *
 * Shapes and contents are random from a seed that a failure prints; `check_backend SEED` repeats
 * it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/kernels.h"
#include "proto/base/half.h"

enum { N_SLOT = 3, CASES = 4 };

static uint64_t random_state;

static uint64_t random_u64(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_u64() % n);
}

/* Uniform in [-1, 1). */
static float random_float(void)
{
    return (float)(int32_t)random_u64() * 0x1p-31f;
}

static void *take(size_t n_bytes)
{
    void *memory = aligned_alloc(64, (n_bytes + 63) / 64 * 64 + 64);
    if (!memory) abort();
    memset(memory, 0, (n_bytes + 63) / 64 * 64 + 64);
    return memory;
}

static float *random_floats(size_t n)
{
    float *x = take(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

static float *copy_floats(const float *x, size_t n)
{
    float *copy = take(n * sizeof(float));
    memcpy(copy, x, n * sizeof(float));
    return copy;
}

static const enum tensor_type weight_types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_Q8_0,
                                                TENSOR_Q5_0, TENSOR_Q4_K, TENSOR_Q6_K};

/* Random blocks with small finite scales. */
static struct weight random_weight(uint32_t n_row, uint32_t n_col, uint32_t n_matrix)
{
    enum tensor_type type = weight_types[random_below(6)];
    if (n_col % 256 && tensor_type_info(type)->block_elems == 256) type = TENSOR_Q8_0;
    if (n_col % 32) type = TENSOR_F32;
    const size_t row_bytes = tensor_row_bytes(type, n_col);
    const size_t n_block = (size_t)n_matrix * n_row * n_col / tensor_type_info(type)->block_elems;
    const size_t block_bytes = tensor_type_info(type)->block_bytes;
    uint8_t *data = take(n_block * block_bytes);
    for (size_t b = 0; b < n_block; b++) {
        uint8_t *block = data + b * block_bytes;
        const float value = random_float();
        const uint16_t half = f16_from_f32(value * 0.01f), min = f16_from_f32(0.02f);
        for (size_t i = 0; i < block_bytes; i++)
            block[i] = (uint8_t)random_u64();
        if (type == TENSOR_F32)
            memcpy(block, &value, 4);
        else if (type == TENSOR_Q4_K)
            memcpy(memcpy(block, &half, 2) + 2, &min, 2);
        else
            memcpy(type == TENSOR_Q6_K ? block + 208 : block, &half, 2);
    }
    return (struct weight){data, type, n_col, n_row, row_bytes};
}

/* ---- the plain loops ---- */

/* y[n_row] = W x, x quantized as the type wants. */
static void plain_product(const struct kernel_table *ref, const struct weight *w, const void *data,
                          const float *x, float *y)
{
    const enum act_type type = ref->act_type[w->type];
    const void *act = take(act_row_bytes(type, w->n_col));
    ref->quantize_act[type](x, w->n_col, (void *)act);
    const struct matmul_args args = {.w = data,
                                     .w_row_bytes = w->row_bytes,
                                     .n_col = w->n_col,
                                     .row_end = w->n_row,
                                     .n_token = 1,
                                     .x = &act,
                                     .y = &y};
    ref->matmul[w->type](&args);
    free((void *)act);
}

static void plain_epilogue(const struct kernel_table *ref, const struct epilogue *e, float *y,
                           uint32_t n, float *residual)
{
    if (e->post_norm) ref->rms_norm(y, e->post_norm, n, e->eps, y);
    if (residual) ref->add(y, n, residual);
}

static void plain_linear(const struct kernel_table *ref, const struct linear_args *a)
{
    float *normed = take(a->n_col * sizeof(float));
    for (uint32_t it = 0; it < a->n_token; it++) {
        const float *x = a->x + (size_t)it * a->n_col;
        if (a->norm) {
            ref->rms_norm(x, a->norm, a->n_col, a->eps, normed);
            x = normed;
        }
        for (uint32_t i = 0; i < a->n_out; i++) {
            const uint32_t n_row = a->out[i].w->n_row;
            float *y = take(n_row * sizeof(float));
            plain_product(ref, a->out[i].w, a->out[i].w->data, x, y);
            for (uint32_t r = 0; a->out[i].bias && r < n_row; r++)
                y[r] += a->out[i].bias[r];
            float *residual =
                a->epilogue.residual ? a->epilogue.residual + (size_t)it * n_row : NULL;
            plain_epilogue(ref, &a->epilogue, y, n_row, residual);
            if (!residual) memcpy(a->out[i].y + it * a->out[i].y_stride, y, n_row * sizeof(float));
            free(y);
        }
    }
    free(normed);
}

static void plain_route(const struct kernel_table *ref, const struct route_args *a)
{
    const uint32_t n = a->router->n_row, k = a->n_expert_used;
    float *p = take(n * sizeof(float));
    for (uint32_t it = 0; it < a->n_token; it++) {
        plain_product(ref, a->router, a->router->data, a->x + (size_t)it * a->router->n_col, p);
        if (a->gating == GATING_SOFTMAX)
            ref->softmax(p, n);
        else
            ref->sigmoid(p, n);
        bool *taken = take(n);
        float sum = 0.0f;
        for (uint32_t rank = 0; rank < k; rank++) {
            int best = -1;
            float best_score = 0.0f;
            for (uint32_t ie = 0; ie < n; ie++) {
                const float score = a->selection_bias ? p[ie] + a->selection_bias[ie] : p[ie];
                if (taken[ie] || (best >= 0 && !(score > best_score))) continue;
                best = (int)ie;
                best_score = score;
            }
            taken[best] = true;
            a->ids[it * k + rank] = best;
            a->weights[it * k + rank] = p[best];
            sum += p[best];
        }
        for (uint32_t rank = 0; rank < k; rank++) {
            float *w = &a->weights[it * k + rank];
            if (a->normalize) *w /= fmaxf(sum, 0x1p-14f);
            if (a->scale != 0.0f && a->scale != 1.0f) *w *= a->scale;
        }
        free(taken);
    }
    free(p);
}

static void plain_swiglu(const struct kernel_table *ref, const struct weight *gate,
                         const void *gate_data, const struct weight *up, const void *up_data,
                         const struct weight *down, const void *down_data, uint32_t n_ff,
                         const float *x, float *out)
{
    struct weight g = *gate, u = *up;
    g.n_row = u.n_row = n_ff;
    float *h = take(n_ff * sizeof(float)), *v = take(n_ff * sizeof(float));
    plain_product(ref, &g, gate_data, x, h);
    plain_product(ref, &u, up_data, x, v);
    ref->swiglu(h, v, n_ff, h);
    plain_product(ref, down, down_data, h, out);
    free(h);
    free(v);
}

static void plain_ffn(const struct kernel_table *ref, const struct ffn_args *a)
{
    const uint32_t n = a->n_embd, k = a->n_expert_used;
    float *y = take(n * sizeof(float)), *out = take(n * sizeof(float));
    for (uint32_t it = 0; it < a->n_token; it++) {
        const float *x = a->x + (size_t)it * n;
        memset(y, 0, n * sizeof(float));
        for (uint32_t rank = 0; rank < k; rank++) {
            const struct expert_view *e = &(a->table ? a->table : a->expert)[a->ids[it * k + rank]];
            const bool fused = !e->up;
            plain_swiglu(ref, &a->gate_exp, e->gate, fused ? &a->gate_exp : &a->up_exp,
                         fused ? (const uint8_t *)e->gate + a->n_ff_exp * a->gate_exp.row_bytes
                               : e->up,
                         &a->down_exp, e->down, a->n_ff_exp, x, out);
            for (uint32_t i = 0; i < n; i++)
                y[i] = fmaf(a->weights[it * k + rank], out[i], y[i]);
        }
        if (a->gate) {
            plain_swiglu(ref, a->gate, a->gate->data, a->up, a->up->data, a->down, a->down->data,
                         a->gate->n_row, x, out);
            float gate = 1.0f;
            if (a->shared_gate) {
                const struct weight w = {a->shared_gate, TENSOR_F32, n, 1, n * sizeof(float)};
                plain_product(ref, &w, w.data, x, &gate);
                ref->sigmoid(&gate, 1);
            }
            for (uint32_t i = 0; i < n; i++)
                y[i] = a->shared_gate ? fmaf(gate, out[i], y[i]) : y[i] + out[i];
        }
        float *residual = a->epilogue.residual ? a->epilogue.residual + (size_t)it * n : NULL;
        plain_epilogue(ref, &a->epilogue, y, n, residual);
        if (!residual) memcpy(a->y + (size_t)it * n, y, n * sizeof(float));
    }
    free(y);
    free(out);
}

static void plain_rotate(const struct kernel_table *ref, const struct attention_args *a,
                         uint32_t pos, const float *norm, float *x)
{
    const size_t angle = (size_t)pos * (a->n_rot / 2);
    if (norm) ref->rms_norm(x, norm, a->head_dim, a->eps, x);
    if (a->rope != ROPE_NONE)
        ref->rope(x, a->rope_cos + angle, a->rope_sin + angle, a->n_rot, a->rope == ROPE_NORM);
}

static void plain_attention(const struct kernel_table *ref, const struct attention_args *a)
{
    const uint32_t dim = a->head_dim, group = a->n_head / a->n_head_kv;
    const size_t row_bytes = tensor_row_bytes(a->kv_type, dim), head_bytes = KV_BLOCK * row_bytes;
    float *x = take(dim * sizeof(float)), *acc = take((dim + 2) * sizeof(float));
    float *next = take((dim + 2) * sizeof(float));
    float *scratch = take(2 * (size_t)KV_BLOCK * dim * sizeof(float));
    for (uint32_t it = 0; it < a->n_token; it++) {
        const uint32_t pos = a->token[it].pos;
        void *const *blocks = a->kv_block[a->token[it].slot];
        uint8_t *block = (uint8_t *)blocks[pos / KV_BLOCK] + pos % KV_BLOCK * row_bytes;
        for (uint32_t h = 0; h < a->n_head_kv; h++) {
            memcpy(x, a->k + it * a->kv_stride + h * dim, dim * sizeof(float));
            plain_rotate(ref, a, pos, a->k_norm, x);
            ref->encode_row[a->kv_type](x, dim, block + h * head_bytes);
            ref->encode_row[a->kv_type](a->v + it * a->kv_stride + h * dim, dim,
                                        block + (a->n_head_kv + h) * head_bytes);
        }
        for (uint32_t h = 0; h < a->n_head; h++) {
            memcpy(x, a->q + it * a->q_stride + h * a->q_head_stride, dim * sizeof(float));
            plain_rotate(ref, a, pos, a->q_norm, x);
            const uint32_t first = a->window && pos + 1 > a->window ? pos + 1 - a->window : 0;
            for (uint32_t b = first / KV_BLOCK; b <= pos / KV_BLOCK; b++) {
                const uint32_t begin = b == first / KV_BLOCK ? first % KV_BLOCK : 0;
                const uint32_t end = b == pos / KV_BLOCK ? pos % KV_BLOCK + 1 : KV_BLOCK;
                float *into = b == first / KV_BLOCK ? acc : next;
                const float *q = x;
                const struct attend_args leaf = {.kv_type = a->kv_type,
                                                 .head_dim = dim,
                                                 .k = (uint8_t *)blocks[b] + h / group * head_bytes,
                                                 .v = (uint8_t *)blocks[b] +
                                                      (a->n_head_kv + h / group) * head_bytes,
                                                 .n_query = 1,
                                                 .q = &q,
                                                 .begin = &begin,
                                                 .end = &end,
                                                 .scale = a->scale,
                                                 .partial = &into,
                                                 .scratch = scratch};
                ref->attend(&leaf);
                if (into == next) ref->attend_merge(acc, next, dim);
            }
            ref->attend_finish(
                acc, dim, a->gate ? a->gate + it * a->gate_stride + h * a->gate_head_stride : NULL,
                a->out + ((size_t)it * a->n_head + h) * dim);
        }
    }
    free(x);
    free(acc);
    free(next);
    free(scratch);
}

static void plain_delta_net(const struct kernel_table *ref, const struct delta_net_args *a)
{
    const uint32_t key_dim = a->n_head_k * a->dim_k, v_dim = a->n_head_v * a->dim_v;
    const uint32_t conv_dim = 2 * key_dim + v_dim, n_old = a->n_tap - 1;
    float *c = take(conv_dim * sizeof(float));
    const float **rows = take(a->n_tap * sizeof(*rows));
    for (uint32_t it = 0; it < a->n_token; it++) {
        const uint32_t slot = a->token[it].slot;
        float *old = a->conv_state[slot];
        for (uint32_t j = 0; j < n_old; j++)
            rows[j] = old + (size_t)j * conv_dim;
        rows[n_old] = a->qkv + (size_t)it * conv_dim;
        const struct conv_args conv = {.n_token = 1,
                                       .n_tap = a->n_tap,
                                       .channel_end = conv_dim,
                                       .w = a->conv_w,
                                       .x = rows,
                                       .y = c,
                                       .y_stride = conv_dim};
        ref->conv_silu(&conv);
        memmove(old, old + conv_dim, (n_old - 1) * (size_t)conv_dim * sizeof(float));
        memcpy(old + (size_t)(n_old - 1) * conv_dim, rows[n_old], conv_dim * sizeof(float));
        for (uint32_t h = 0; h < 2 * a->n_head_k; h++)
            ref->l2_norm(c + h * a->dim_k, a->dim_k, a->eps, c + h * a->dim_k);
        for (uint32_t h = 0; h < a->n_head_v; h++) {
            const uint32_t key_head =
                a->grouped ? h / (a->n_head_v / a->n_head_k) : h % a->n_head_k;
            const size_t at = (size_t)it * a->n_head_v + h;
            float decay, beta, *o = a->out + at * a->dim_v;
            ref->delta_gates(&a->alpha[at], &a->beta[at], a->ssm_a[h], a->ssm_dt[h], 1, &decay,
                             &beta);
            const struct delta_rule_args rule = {.n_token = 1,
                                                 .dim_k = a->dim_k,
                                                 .row_end = a->dim_v,
                                                 .q = c + key_head * a->dim_k,
                                                 .k = c + key_dim + key_head * a->dim_k,
                                                 .v = c + 2 * key_dim + h * a->dim_v,
                                                 .decay = &decay,
                                                 .beta = &beta,
                                                 .scale = 1.0f / sqrtf((float)a->dim_k),
                                                 .state = a->state[slot] +
                                                          (size_t)h * a->dim_v * a->dim_k,
                                                 .o = o};
            ref->delta_rule(&rule);
            ref->rms_norm(o, a->norm, a->dim_v, a->eps, o);
            ref->swiglu(a->z + at * a->dim_v, o, a->dim_v, o);
        }
    }
    free(c);
    free(rows);
}

/* ---- the comparison ---- */

struct subject {
    struct backend *backend;
    const struct kernel_table *ref; /* scalar; of the "reference" arithmetic for that backend */
    char name[64];
};

static const char *case_name;
static int n_failed;

static void compare(const struct subject *s, const char *what, const void *got,
                    const void *expected, size_t n_bytes)
{
    if (!memcmp(got, expected, n_bytes)) return;
    size_t i = 0;
    while (((const uint8_t *)got)[i] == ((const uint8_t *)expected)[i])
        i++;
    i /= 4;
    printf("%s, %s, %s: word %zu of %zu is %08" PRIx32 " (%g), not %08" PRIx32 " (%g)\n", s->name,
           case_name, what, i, n_bytes / 4, ((const uint32_t *)got)[i],
           (double)((const float *)got)[i], ((const uint32_t *)expected)[i],
           (double)((const float *)expected)[i]);
    n_failed++;
}

static void expect_sync(const struct subject *s)
{
    struct lm_error err;
    if (s->backend->ops->sync(s->backend, &err) == LM_OK) return;
    printf("%s, %s: %s\n", s->name, case_name, err.message);
    n_failed++;
}

/* Calls of 1 .. n rows that cover n_token. */
static uint32_t next_split(uint32_t left)
{
    return random_below(2) ? left : 1 + random_below(left);
}

static void check_linear(const struct subject *s)
{
    const uint32_t n_token = 1 + random_below(random_below(2) ? 3 : 200);
    const uint32_t n_col = random_below(2) ? 256 * (1 + random_below(3)) : 32 + random_below(100);
    struct linear_args args = {.n_token = n_token, .n_col = n_col, .eps = 1e-5f};
    struct weight w[LINEAR_MAX];
    float *expected[LINEAR_MAX], *bias[LINEAR_MAX] = {0};
    float *x = random_floats((size_t)n_token * n_col), *norm = random_floats(n_col);
    args.x = x;
    args.norm = random_below(2) ? norm : NULL;
    args.n_out = random_below(2) ? 1 : 1 + random_below(LINEAR_MAX);
    for (uint32_t i = 0; i < args.n_out; i++) {
        w[i] = random_weight(1 + random_below(200), n_col, 1);
        args.out[i].w = &w[i];
        args.out[i].y_stride = w[i].n_row + random_below(5);
        args.out[i].y = expected[i] = take(n_token * args.out[i].y_stride * sizeof(float));
        if (random_below(2)) args.out[i].bias = bias[i] = random_floats(w[i].n_row);
    }
    float *post = random_floats(w[0].n_row), *residual = NULL, *residual_expected = NULL;
    const size_t n_residual = (size_t)n_token * w[0].n_row;
    if (args.n_out == 1) {
        args.epilogue.eps = 1e-6f;
        args.epilogue.post_norm = random_below(2) ? post : NULL;
        if (random_below(2)) {
            residual = random_floats(n_residual);
            residual_expected = copy_floats(residual, n_residual);
        }
    }
    args.epilogue.residual = residual_expected;
    plain_linear(s->ref, &args);
    for (uint32_t i = 0; i < args.n_out; i++)
        args.out[i].y = take(n_token * args.out[i].y_stride * sizeof(float));
    struct linear_args part = args;
    part.epilogue.residual = residual;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = next_split(n_token - it);
        part.x = x + (size_t)it * n_col;
        for (uint32_t i = 0; i < args.n_out; i++)
            part.out[i].y = args.out[i].y + it * args.out[i].y_stride;
        if (residual) part.epilogue.residual = residual + (size_t)it * w[0].n_row;
        s->backend->ops->linear(s->backend, &part);
    }
    expect_sync(s);
    for (uint32_t i = 0; i < args.n_out; i++) {
        compare(s, "y", args.out[i].y, expected[i], n_token * args.out[i].y_stride * sizeof(float));
        free((void *)w[i].data);
        free(args.out[i].y);
        free(expected[i]);
        free(bias[i]);
    }
    if (residual) compare(s, "residual", residual, residual_expected, n_residual * sizeof(float));
    free(x);
    free(norm);
    free(post);
    free(residual);
    free(residual_expected);
}

static void check_route(const struct subject *s)
{
    const uint32_t n_token = 1 + random_below(40), n_expert = 2 + random_below(200);
    const uint32_t n_col = 32 * (1 + random_below(20)), k = 1 + random_below(n_expert / 2);
    const struct weight router = random_weight(n_expert, n_col, 1);
    float *x = random_floats((size_t)n_token * n_col), *bias = random_floats(n_expert);
    if (random_below(2)) memset(x, 0, n_col * sizeof(float)); /* all scores tie */
    struct route_args args = {
        .n_token = n_token,
        .x = x,
        .router = &router,
        .selection_bias = random_below(2) ? bias : NULL,
        .gating = random_below(2) ? GATING_SIGMOID : GATING_SOFTMAX,
        .normalize = random_below(2),
        .scale = (float)random_below(3),
        .n_expert_used = k,
    };
    const size_t n = (size_t)n_token * k;
    int32_t *ids = args.ids = take(n * sizeof(int32_t));
    float *weights = args.weights = take(n * sizeof(float));
    plain_route(s->ref, &args);
    args.ids = take(n * sizeof(int32_t));
    args.weights = take(n * sizeof(float));
    struct route_args part = args;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = next_split(n_token - it);
        part.x = x + (size_t)it * n_col;
        part.ids = args.ids + (size_t)it * k;
        part.weights = args.weights + (size_t)it * k;
        s->backend->ops->route(s->backend, &part);
    }
    expect_sync(s);
    compare(s, "ids", args.ids, ids, n * sizeof(int32_t));
    compare(s, "weights", args.weights, weights, n * sizeof(float));
    void *const all[] = {(void *)router.data, x, bias, ids, weights, args.ids, args.weights};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

/* ffn, or the same in steps with the experts in random groups. */
static void run_ffn(const struct subject *s, struct ffn_args *args, uint32_t n_expert, bool steps)
{
    const struct backend_ops *ops = s->backend->ops;
    if (!steps) {
        ops->ffn(s->backend, args);
        return;
    }
    const uint32_t n_group = 1 + random_below(4);
    uint32_t *group = take(n_expert * sizeof(*group));
    bool *selected = take(n_expert * sizeof(*selected));
    args->expert_out = take((size_t)args->n_token * args->n_expert_used * args->n_embd * 4 + 4);
    for (uint32_t ie = 0; ie < n_expert; ie++)
        group[ie] = random_below(n_group);
    for (uint32_t ig = 0; ig < n_group; ig++) {
        for (uint32_t ie = 0; ie < n_expert; ie++)
            selected[ie] = group[ie] == ig;
        ops->ffn_experts(s->backend, args, selected);
    }
    ops->ffn_finish(s->backend, args);
    free(args->expert_out);
    free(selected);
    free(group);
}

static void check_ffn(const struct subject *s)
{
    const uint32_t n_token = 1 + random_below(random_below(2) ? 4 : 40);
    const uint32_t n_embd = random_below(2) ? 256 : 32 * (1 + random_below(9));
    const uint32_t n_ff =
        random_below(2) ? 256 * (1 + random_below(3)) : 32 * (1 + random_below(20));
    const uint32_t n_ff_shared = random_below(2) ? 512 : 32 * (1 + random_below(20));
    const uint32_t n_expert = 1 + random_below(12);
    const bool routed = random_below(4), shared = !routed || random_below(2),
               fused = random_below(2), as_table = random_below(2);
    const uint32_t k = routed ? 1 + random_below(n_expert) : 0;
    float *x = random_floats((size_t)n_token * n_embd), *shared_gate = random_floats(n_embd);
    float *post = random_floats(n_embd), *weights = random_floats((size_t)n_token * k);
    struct weight w[6] = {random_weight(n_ff, n_embd, n_expert * (1 + fused)),
                          random_weight(n_ff, n_embd, n_expert),
                          random_weight(n_embd, n_ff, n_expert),
                          random_weight(n_ff_shared, n_embd, 1),
                          random_weight(n_ff_shared, n_embd, 1),
                          random_weight(n_embd, n_ff_shared, 1)};
    if (fused) w[1].type = w[0].type, w[1].row_bytes = w[0].row_bytes;
    struct expert_view *expert = take(n_expert * sizeof(*expert));
    for (uint32_t ie = 0; ie < n_expert; ie++)
        expert[ie] = (struct expert_view){
            (const uint8_t *)w[0].data + ie * (1u + fused) * n_ff * w[0].row_bytes,
            fused ? NULL : (const uint8_t *)w[1].data + (size_t)ie * n_ff * w[1].row_bytes,
            (const uint8_t *)w[2].data + (size_t)ie * n_embd * w[2].row_bytes};
    int32_t *ids = take(((size_t)n_token * k + 1) * sizeof(int32_t));
    for (uint32_t it = 0; it < n_token; it++) /* distinct ids in each row */
        for (uint32_t rank = 0, first = random_below(n_expert); rank < k; rank++)
            ids[it * k + rank] = (int32_t)((first + rank * 1u) % n_expert);
    const size_t n = (size_t)n_token * n_embd;
    float *residual = random_below(2) ? random_floats(n) : NULL;
    float *residual_expected = residual ? copy_floats(residual, n) : NULL;
    float *expected = take(n * sizeof(float)), *y = take(n * sizeof(float));
    struct ffn_args args = {
        .n_token = n_token,
        .x = x,
        .n_embd = n_embd,
        .n_expert = n_expert,
        .n_expert_used = k,
        .n_ff_exp = n_ff,
        .ids = ids,
        .weights = weights,
        .expert = as_table ? NULL : expert,
        .table = as_table ? expert : NULL,
        .gate_exp = w[0],
        .up_exp = w[1],
        .down_exp = w[2],
        .gate = shared ? &w[3] : NULL,
        .up = shared ? &w[4] : NULL,
        .down = shared ? &w[5] : NULL,
        .shared_gate = random_below(2) ? shared_gate : NULL,
        .y = expected,
        .epilogue = {random_below(2) ? post : NULL, 1e-6f, residual_expected},
    };
    plain_ffn(s->ref, &args);
    struct ffn_args part = args;
    for (uint32_t it = 0; it < n_token; it += part.n_token) {
        part.n_token = next_split(n_token - it);
        part.x = x + (size_t)it * n_embd;
        part.ids = ids + (size_t)it * k;
        part.weights = weights + (size_t)it * k;
        part.y = y + (size_t)it * n_embd;
        if (residual) part.epilogue.residual = residual + (size_t)it * n_embd;
        run_ffn(s, &part, n_expert, k && random_below(2));
    }
    expect_sync(s);
    compare(s, "y", y, expected, n * sizeof(float));
    if (residual) compare(s, "residual", residual, residual_expected, n * sizeof(float));
    for (int i = 0; i < 6; i++)
        free((void *)w[i].data);
    void *const all[] = {x,        shared_gate,       post,     weights, expert, ids,
                         residual, residual_expected, expected, y};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
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

static void check_attention(const struct subject *s)
{
    enum { N_CTX = 4100, N_BLOCK = (N_CTX + KV_BLOCK - 1) / KV_BLOCK };
    static const uint32_t dims[] = {32, 64, 128, 256, 96};
    static const enum tensor_type kv_types[] = {TENSOR_F16, TENSOR_F32, TENSOR_BF16, TENSOR_Q8_0};
    const uint32_t dim = dims[random_below(5)], n_head_kv = 1 + random_below(3);
    const uint32_t n_head = n_head_kv * (1 + random_below(4));
    const enum tensor_type kv_type = kv_types[random_below(4)];
    const uint32_t n_rot = random_below(2) ? dim : dim / 4 / 2 * 2;
    const size_t block_bytes = kv_block_bytes(kv_type, n_head_kv, dim);
    float *cos_table = random_floats((size_t)N_CTX * n_rot / 2);
    float *sin_table = random_floats((size_t)N_CTX * n_rot / 2);
    float *q_norm = random_floats(dim), *k_norm = random_floats(dim);
    void *block[2][N_SLOT][N_BLOCK];
    void *const *table[2][N_SLOT];
    for (int side = 0; side < 2; side++)
        for (int slot = 0; slot < N_SLOT; slot++) {
            for (int b = 0; b < N_BLOCK; b++)
                block[side][slot][b] = take(block_bytes);
            table[side][slot] = block[side][slot];
        }
    struct attention_args args = {
        .q_head_stride = random_below(2) ? dim : 2 * dim,
        .q_norm = random_below(2) ? q_norm : NULL,
        .k_norm = random_below(2) ? k_norm : NULL,
        .eps = 1e-6f,
        .rope = random_below(3),
        .rope_cos = cos_table,
        .rope_sin = sin_table,
        .n_rot = n_rot,
        .n_head = n_head,
        .n_head_kv = n_head_kv,
        .head_dim = dim,
        .scale = 1.0f / sqrtf((float)dim),
        .window = random_below(2) ? 0 : 1 + random_below(300),
        .kv_type = kv_type,
    };
    args.q_stride = args.gate_stride = n_head * args.q_head_stride;
    args.gate_head_stride = args.q_head_stride;
    args.kv_stride = n_head_kv * dim + random_below(3);
    uint32_t next_pos[N_SLOT] = {0};
    const bool gated = random_below(2);
    const bool far = random_below(2); /* few rows behind a long past, all of it zeros */
    for (int slot = 0; far && slot < N_SLOT; slot++)
        next_pos[slot] = random_below(N_CTX - 100);
    for (int round = 0; round < 5; round++) {
        struct token_ref token[150];
        const uint32_t n = make_batch(far || round % 2 ? 6 : 150, next_pos, N_CTX, token);
        float *q = random_floats(n * args.q_stride), *gate = random_floats(n * args.q_stride);
        float *k = random_floats(n * args.kv_stride), *v = random_floats(n * args.kv_stride);
        const size_t n_out = (size_t)n * n_head * dim;
        float *expected = take(n_out * sizeof(float)), *out = take(n_out * sizeof(float));
        args.n_token = n;
        args.token = token;
        args.q = q;
        args.gate = gated ? gate : NULL;
        args.k = k;
        args.v = v;
        args.kv_block = table[0];
        args.out = expected;
        plain_attention(s->ref, &args);
        struct attention_args part = args;
        part.kv_block = table[1];
        for (uint32_t it = 0; it < n; it += part.n_token) {
            part.n_token = next_split(n - it);
            part.token = token + it;
            part.q = q + it * args.q_stride;
            part.gate = gated ? gate + it * args.q_stride : NULL;
            part.k = k + it * args.kv_stride;
            part.v = v + it * args.kv_stride;
            part.out = out + (size_t)it * n_head * dim;
            s->backend->ops->attention(s->backend, &part);
        }
        expect_sync(s);
        compare(s, "out", out, expected, n_out * sizeof(float));
        void *const all[] = {q, gate, k, v, expected, out};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            free(all[i]);
    }
    for (int slot = 0; slot < N_SLOT; slot++)
        for (int b = 0; b < N_BLOCK; b++) {
            compare(s, "cache", block[1][slot][b], block[0][slot][b], block_bytes);
            free(block[0][slot][b]);
            free(block[1][slot][b]);
        }
    void *const all[] = {cos_table, sin_table, q_norm, k_norm};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

static void check_delta_net(const struct subject *s)
{
    static const uint32_t dims[] = {32, 64, 128, 48};
    const uint32_t dim_k = dims[random_below(4)], dim_v = dims[random_below(4)];
    const uint32_t n_head_k = 1 + random_below(3), n_head_v = n_head_k * (1 + random_below(3));
    const uint32_t v_dim = n_head_v * dim_v, conv_dim = 2 * n_head_k * dim_k + v_dim;
    const uint32_t n_tap = 2 + random_below(4);
    const size_t n_conv = (size_t)(n_tap - 1) * conv_dim, n_state = (size_t)v_dim * dim_k;
    float *conv_w = random_floats((size_t)conv_dim * n_tap), *norm = random_floats(dim_v);
    float *ssm_a = random_floats(n_head_v), *ssm_dt = random_floats(n_head_v);
    for (uint32_t h = 0; h < n_head_v; h++)
        ssm_a[h] = -fabsf(ssm_a[h]);
    float *conv_state[2][N_SLOT], *state[2][N_SLOT];
    for (int slot = 0; slot < N_SLOT; slot++)
        for (int side = 0; side < 2; side++) {
            conv_state[side][slot] = take(n_conv * sizeof(float));
            state[side][slot] = take(n_state * sizeof(float));
        }
    struct delta_net_args args = {.conv_w = conv_w,
                                  .n_tap = n_tap,
                                  .ssm_a = ssm_a,
                                  .ssm_dt = ssm_dt,
                                  .norm = norm,
                                  .eps = 1e-6f,
                                  .n_head_k = n_head_k,
                                  .n_head_v = n_head_v,
                                  .dim_k = dim_k,
                                  .dim_v = dim_v,
                                  .grouped = random_below(2)};
    uint32_t next_pos[N_SLOT] = {0};
    for (int round = 0; round < 4; round++) {
        struct token_ref token[120];
        const uint32_t n = make_batch(round % 2 ? 5 : 120, next_pos, UINT32_MAX, token);
        float *qkv = random_floats((size_t)n * conv_dim), *z = random_floats((size_t)n * v_dim);
        float *beta = random_floats((size_t)n * n_head_v), *alpha = random_floats(n * n_head_v);
        float *expected = take((size_t)n * v_dim * sizeof(float));
        float *out = take((size_t)n * v_dim * sizeof(float));
        args.n_token = n;
        args.token = token;
        args.qkv = qkv;
        args.z = z;
        args.beta = beta;
        args.alpha = alpha;
        args.conv_state = conv_state[0];
        args.state = state[0];
        args.out = expected;
        plain_delta_net(s->ref, &args);
        struct delta_net_args part = args;
        part.conv_state = conv_state[1];
        part.state = state[1];
        for (uint32_t it = 0; it < n; it += part.n_token) {
            part.n_token = next_split(n - it);
            part.token = token + it;
            part.qkv = qkv + (size_t)it * conv_dim;
            part.z = z + (size_t)it * v_dim;
            part.beta = beta + (size_t)it * n_head_v;
            part.alpha = alpha + (size_t)it * n_head_v;
            part.out = out + (size_t)it * v_dim;
            s->backend->ops->delta_net(s->backend, &part);
        }
        expect_sync(s);
        compare(s, "out", out, expected, (size_t)n * v_dim * sizeof(float));
        void *const all[] = {qkv, z, beta, alpha, expected, out};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            free(all[i]);
    }
    for (int slot = 0; slot < N_SLOT; slot++) {
        compare(s, "conv state", conv_state[1][slot], conv_state[0][slot], n_conv * sizeof(float));
        compare(s, "state", state[1][slot], state[0][slot], n_state * sizeof(float));
        for (int side = 0; side < 2; side++) {
            free(conv_state[side][slot]);
            free(state[side][slot]);
        }
    }
    void *const all[] = {conv_w, norm, ssm_a, ssm_dt};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

static void check_rows(const struct subject *s)
{
    const struct backend_ops *ops = s->backend->ops;
    const uint32_t n_token = 1 + random_below(20), n = 32 * (1 + random_below(20));
    const struct weight table = random_weight(30, n, 1);
    const size_t n_floats = (size_t)n_token * n;
    float *norm = random_floats(n), *x = take(n_floats * sizeof(float));
    float *y = take(n_floats * sizeof(float)), *row = take(n * sizeof(float));
    float *gathered = take(n_floats * sizeof(float));
    int32_t ids[20];
    uint32_t rows[20];
    for (uint32_t it = 0; it < n_token; it++) {
        ids[it] = (int32_t)random_below(30);
        rows[it] = random_below(n_token);
    }
    const float scale = random_below(2) ? 1.0f : 7.3f;
    ops->embed(s->backend, &table, ids, n_token, scale, x);
    ops->rms_norm(s->backend, x, norm, 1e-5f, n_token, n, y);
    ops->gather(s->backend, y, rows, n_token, n, gathered);
    expect_sync(s);
    for (uint32_t it = 0; it < n_token; it++) {
        s->ref->dequant_row[table.type](
            (const uint8_t *)table.data + (size_t)ids[it] * table.row_bytes, n, row);
        for (uint32_t i = 0; i < n; i++)
            row[i] *= scale;
        compare(s, "embedding", x + (size_t)it * n, row, n * sizeof(float));
        s->ref->rms_norm(row, norm, n, 1e-5f, row);
        compare(s, "norm", y + (size_t)it * n, row, n * sizeof(float));
        compare(s, "gathered row", gathered + (size_t)it * n, y + (size_t)rows[it] * n,
                n * sizeof(float));
    }
    void *const all[] = {(void *)table.data, norm, x, y, row, gathered};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

/* A NaN is kept, reported once by sync with the operation's name, and then forgotten. */
static void check_nan_is_reported(const struct subject *s)
{
    const struct weight w = random_weight(8, 256, 1);
    float *x = random_floats(3 * 256), y[24];
    struct linear_args args = {.n_token = 3, .x = x, .n_col = 256, .n_out = 1};
    args.out[0].w = &w;
    args.out[0].y = y;
    args.out[0].y_stride = 8;
    x[random_below(3 * 256)] = random_below(2) ? NAN : -INFINITY;
    struct lm_error err = {0};
    s->backend->ops->linear(s->backend, &args);
    if (s->backend->ops->sync(s->backend, &err) != LM_E_FAIL || !strstr(err.message, "linear")) {
        printf("%s: a NaN passed linear: \"%s\"\n", s->name, err.message);
        n_failed++;
    }
    expect_sync(s);
    free((void *)w.data);
    free(x);
}

/* So is a router's, even of an expert that nobody would choose. */
static void check_router_nan_is_reported(const struct subject *s)
{
    enum { N_EXPERT = 9, N_COL = 32 };
    const float broken = random_below(2) ? NAN : -INFINITY;
    float *rows = random_floats((size_t)N_EXPERT * N_COL), *x = random_floats(N_COL), weights[2];
    rows[(2 + random_below(N_EXPERT - 2)) * N_COL] = broken;
    x[0] = 1.0f;
    const struct weight router = {rows, TENSOR_F32, N_COL, N_EXPERT, N_COL * sizeof(float)};
    int32_t ids[2];
    const struct route_args args = {.n_token = 1,
                                    .x = x,
                                    .router = &router,
                                    .gating = GATING_SIGMOID,
                                    .n_expert_used = 2,
                                    .ids = ids,
                                    .weights = weights};
    struct lm_error err = {0};
    s->backend->ops->route(s->backend, &args);
    if (s->backend->ops->sync(s->backend, &err) != LM_E_FAIL || !strstr(err.message, "route")) {
        printf("%s: a router's %f passed: \"%s\"\n", s->name, (double)broken, err.message);
        n_failed++;
    }
    expect_sync(s);
    free(rows);
    free(x);
}

static const struct {
    const char *name;
    void (*check)(const struct subject *s);
} checks[] = {
    {"rows", check_rows},           {"linear", check_linear},
    {"route", check_route},         {"ffn", check_ffn},
    {"attention", check_attention}, {"delta_net", check_delta_net},
    {"nan", check_nan_is_reported}, {"router's nan", check_router_nan_is_reported},
};

static void check_subject(struct subject *s, uint64_t seed)
{
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++)
        for (int n = 0; n < CASES; n++) {
            random_state = seed + (uint64_t)n * 1000003u; /* the same cases for every subject */
            case_name = checks[i].name;
            const int n_failed_before = n_failed;
            checks[i].check(s);
            if (n_failed != n_failed_before)
                printf("  repeat with: check_backend %" PRIu64 " (case %d)\n", seed, n);
        }
}

int main(int argc, char **argv)
{
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20260901u;
    const char *names[8];
    size_t n_name = 0;
    for (const char *const *name = kernels_available(); *name; name++)
        names[n_name++] = *name;
    names[n_name++] = "reference";
    for (size_t i = 0; i < n_name; i++)
        for (uint32_t n_thread = 1; n_thread <= 4; n_thread *= 2) {
            const struct backend_cpu_config config = {n_thread, names[i], n_thread % 2};
            struct subject s;
            struct lm_error err;
            if (backend_cpu_create(&s.backend, &config, &err) != LM_OK) {
                printf("%s, %u threads: %s\n", names[i], n_thread, err.message);
                return 1;
            }
            /* the settings took effect */
            if (backend_cpu_n_thread(s.backend) != n_thread ||
                strcmp(backend_cpu_kernels(s.backend), names[i])) {
                printf("%s, %u threads: not what runs\n", names[i], n_thread);
                return 1;
            }
            struct kernel_table ref = *kernels_select("ref");
            if (!strcmp(names[i], "reference")) kernels_init_reference(&ref);
            s.ref = &ref;
            snprintf(s.name, sizeof(s.name), "%s, %u threads", names[i], n_thread);
            check_subject(&s, seed);
            s.backend->ops->destroy(s.backend);
        }
    const struct backend_cpu_config unknown = {1, "sse9", false};
    struct backend *none;
    if (backend_cpu_create(&none, &unknown, NULL) != LM_E_USAGE) n_failed++;
    printf("%s\n", n_failed ? "FAILED" : "all operations agree");
    return n_failed != 0;
}
