/* Every operation of a backend as a plain loop over the scalar kernels: what its results are
 * compared with. All pointers are the host's. */
#ifndef LEAN_TESTS_KERNELS_PLAIN_OPS_H
#define LEAN_TESTS_KERNELS_PLAIN_OPS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/kernels.h"
#include "tests/kernels/random_case.h"

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
    put_back((void *)act);
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
            put_back(y);
        }
    }
    put_back(normed);
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
        put_back(taken);
    }
    put_back(p);
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
    put_back(h);
    put_back(v);
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
    put_back(y);
    put_back(out);
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
    put_back(x);
    put_back(acc);
    put_back(next);
    put_back(scratch);
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
    put_back(c);
    put_back(rows);
}

#endif
