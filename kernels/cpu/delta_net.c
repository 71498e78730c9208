/* delta_net: one task takes a key head of one sequence, with value heads that use it, through all
 * rows: convolution, norms, gates, recurrence, output norm, in short tiles, so that what lies
 * between the steps stays in the cache. One region suffices: tasks share nothing that is written.
 *
 * Few threads: all value heads of a key head go together. With more threads than key heads they are
 * dealt out to several tasks, each of which convolves the key head's q and k again, a few percent
 * of the work. Those read the same past inputs, so whoever of them ends last replaces these. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"

enum { TILE_ROWS = 32, N_TAP_MAX = 16 };
/* so that a frozen state is copied once */
_Static_assert((int)DELTA_NET_FROZEN_MAX <= (int)TILE_ROWS, "a tile has the rows of a frozen run");

/* Consecutive rows of one sequence. */
struct run {
    uint32_t it_begin, n_row;
};

struct delta_net {
    struct cpu_backend *cpu;
    const struct delta_net_args *args;
    struct run *run;          /* [n_run] */
    uint32_t heads_per_key;   /* value heads of a key head */
    uint32_t n_part;          /* tasks that share them */
    _Atomic uint32_t *n_busy; /* [n_run][n_head_k] parts that still read the state of q and k */
    uint32_t conv_dim, v_dim; /* of all heads */
};

static uint32_t value_head(const struct delta_net *d, uint32_t key_head, uint32_t i)
{
    return d->args->grouped ? key_head * d->heads_per_key + i : key_head + i * d->args->n_head_k;
}

/* Convolves and activates some channels of n_row rows; rows: those before them first.
 * y: [n_row][n_channel]. */
static void convolve(const struct delta_net *d, const float *const *rows, uint32_t n_row,
                     uint32_t channel, uint32_t n_channel, float *y)
{
    const struct conv_args conv = {
        .n_token = n_row,
        .n_tap = d->args->n_tap,
        .channel_begin = channel,
        .channel_end = channel + n_channel,
        .w = d->args->conv_w,
        .x = rows,
        .y = y - channel,
        .y_stride = n_channel,
    };
    d->cpu->kernels->conv_silu(&conv);
}

/* A row's input of the convolution; it may lie before the run: n_tap - 1 of those are the state. */
static const float *input_row(const struct delta_net *d, const struct run *run, uint32_t slot,
                              uint32_t i)
{
    const uint32_t n_old = d->args->n_tap - 1;
    return i < n_old ? d->args->conv_state[slot] + (size_t)i * d->conv_dim
                     : d->args->qkv + (size_t)(run->it_begin + i - n_old) * d->conv_dim;
}

/* The state of some channels after the run: its last n_tap - 1 inputs. In rising order each source
 * lies behind its destination, so a short run may move the state within itself. */
static void keep_tail(const struct delta_net *d, const struct run *run, uint32_t slot,
                      uint32_t channel, uint32_t n_channel)
{
    for (uint32_t j = 0; j + 1 < d->args->n_tap; j++)
        memcpy(d->args->conv_state[slot] + (size_t)j * d->conv_dim + channel,
               input_row(d, run, slot, run->n_row + j) + channel, n_channel * sizeof(float));
}

struct tile_buffers {
    float *q, *k, *v;    /* [TILE_ROWS][dim] after the convolution */
    float *decay, *beta; /* [TILE_ROWS] of one value head */
    float *state;        /* [dim_v][dim_k] of one whose sequence is frozen */
};

static bool is_frozen(const struct delta_net_args *args, uint32_t slot)
{
    return args->frozen && args->frozen[slot];
}

static void value_head_tile(const struct delta_net *d, uint32_t slot, uint32_t it_begin,
                            uint32_t n_row, uint32_t ih, const struct tile_buffers *b)
{
    const struct delta_net_args *args = d->args;
    const struct kernel_table *kernels = d->cpu->kernels;
    float alpha[TILE_ROWS], beta[TILE_ROWS];
    for (uint32_t i = 0; i < n_row; i++) {
        alpha[i] = args->alpha[(size_t)(it_begin + i) * args->n_head_v + ih];
        beta[i] = args->beta[(size_t)(it_begin + i) * args->n_head_v + ih];
    }
    kernels->delta_gates(alpha, beta, args->ssm_a[ih], args->ssm_dt[ih], n_row, b->decay, b->beta);
    float *out = args->out + (size_t)it_begin * d->v_dim + (size_t)ih * args->dim_v;
    float *state = args->state[slot] + (size_t)ih * args->dim_v * args->dim_k;
    if (is_frozen(args, slot))
        state = memcpy(b->state, state, (size_t)args->dim_v * args->dim_k * sizeof(float));
    const struct delta_rule_args rule = {
        .n_token = n_row,
        .dim_k = args->dim_k,
        .row_end = args->dim_v,
        .q = b->q,
        .k = b->k,
        .qk_stride = args->dim_k,
        .v = b->v,
        .v_stride = args->dim_v,
        .decay = b->decay,
        .beta = b->beta,
        .gate_stride = 1,
        .scale = 1.0f / sqrtf((float)args->dim_k),
        .state = state,
        .o = out,
        .o_stride = d->v_dim,
    };
    kernels->delta_rule(&rule);
    for (uint32_t i = 0; i < n_row; i++, out += d->v_dim) {
        const float *z = args->z + (size_t)(it_begin + i) * d->v_dim + (size_t)ih * args->dim_v;
        kernels->rms_norm(out, args->norm, args->dim_v, args->eps, out);
        kernels->swiglu(z, out, args->dim_v, out);
    }
}

static void key_head_task(void *context, uint32_t task, uint32_t worker)
{
    const struct delta_net *d = context;
    const struct delta_net_args *args = d->args;
    const struct kernel_table *kernels = d->cpu->kernels;
    const uint32_t part = task % d->n_part, pair = task / d->n_part;
    const struct run *run = &d->run[pair / args->n_head_k];
    const uint32_t head = pair % args->n_head_k;
    const uint32_t slot = args->token[run->it_begin].slot;
    const uint32_t q_channel = head * args->dim_k;
    const uint32_t k_channel = (args->n_head_k + head) * args->dim_k;
    const uint32_t v_channel = 2 * args->n_head_k * args->dim_k;
    struct tile_buffers b;
    b.q = d->cpu->worker[worker].data;
    b.k = b.q + (size_t)TILE_ROWS * args->dim_k;
    b.v = b.k + (size_t)TILE_ROWS * args->dim_k;
    b.decay = b.v + (size_t)TILE_ROWS * args->dim_v;
    b.beta = b.decay + TILE_ROWS;
    b.state = b.beta + TILE_ROWS;
    assert(!is_frozen(args, slot) || run->n_row <= DELTA_NET_FROZEN_MAX);
    const float *rows[TILE_ROWS + N_TAP_MAX - 1];
    for (uint32_t begin = 0; begin < run->n_row; begin += TILE_ROWS) {
        const uint32_t n_row = run->n_row - begin < TILE_ROWS ? run->n_row - begin : TILE_ROWS;
        for (uint32_t i = 0; i < n_row + args->n_tap - 1; i++)
            rows[i] = input_row(d, run, slot, begin + i);
        convolve(d, rows, n_row, q_channel, args->dim_k, b.q);
        convolve(d, rows, n_row, k_channel, args->dim_k, b.k);
        for (uint32_t i = 0; i < n_row; i++) {
            float *q = b.q + (size_t)i * args->dim_k, *k = b.k + (size_t)i * args->dim_k;
            kernels->l2_norm(q, args->dim_k, args->eps, q);
            kernels->l2_norm(k, args->dim_k, args->eps, k);
        }
        for (uint32_t i = part; i < d->heads_per_key; i += d->n_part) {
            const uint32_t ih = value_head(d, head, i);
            convolve(d, rows, n_row, v_channel + ih * args->dim_v, args->dim_v, b.v);
            value_head_tile(d, slot, run->it_begin + begin, n_row, ih, &b);
        }
    }
    if (is_frozen(args, slot)) return;
    for (uint32_t i = part; i < d->heads_per_key; i += d->n_part)
        keep_tail(d, run, slot, v_channel + value_head(d, head, i) * args->dim_v, args->dim_v);
    /* acq_rel: what the others have read is read before it changes. */
    if (atomic_fetch_sub_explicit(&d->n_busy[pair], 1, memory_order_acq_rel) != 1) return;
    keep_tail(d, run, slot, q_channel, args->dim_k);
    keep_tail(d, run, slot, k_channel, args->dim_k);
}

/* As many tasks for a key head as give every thread one, if there are value heads for them. */
static uint32_t count_parts(const struct delta_net *d, uint32_t n_run)
{
    const uint32_t n_pair = n_run * d->args->n_head_k, n_thread = pool_n_thread(d->cpu->pool);
    const uint32_t n_wanted = (n_thread + n_pair - 1) / n_pair;
    return n_wanted < d->heads_per_key ? n_wanted : d->heads_per_key;
}

void cpu_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    struct delta_net d = {
        .cpu = cpu,
        .args = args,
        .heads_per_key = args->n_head_v / args->n_head_k,
        .conv_dim = 2 * args->n_head_k * args->dim_k + args->n_head_v * args->dim_v,
        .v_dim = args->n_head_v * args->dim_v,
    };
    assert(args->n_head_v % args->n_head_k == 0);
    assert(args->n_tap >= 1 && args->n_tap <= N_TAP_MAX);
    const size_t worker_floats = (size_t)TILE_ROWS * (2 * args->dim_k + args->dim_v) +
                                 2 * TILE_ROWS +
                                 (args->frozen ? (size_t)args->dim_v * args->dim_k : 0);
    const size_t run_bytes = round_up_64(args->n_token * sizeof(*d.run));
    uint8_t *plan = buffer_reserve(
        cpu, &cpu->plan, run_bytes + (size_t)args->n_token * args->n_head_k * sizeof(*d.n_busy),
        "delta net");
    if (!plan || !reserve_workers(cpu, worker_floats * sizeof(float), "delta net")) return;
    d.run = (struct run *)plan;
    d.n_busy = (_Atomic uint32_t *)(plan + run_bytes);
    uint32_t n_run = 0;
    for (uint32_t it = 0; it < args->n_token; it++) {
        if (!it || args->token[it].slot != args->token[it - 1].slot)
            d.run[n_run++] = (struct run){.it_begin = it};
        d.run[n_run - 1].n_row++;
    }
    if (!n_run) return;
    d.n_part = count_parts(&d, n_run);
    for (uint32_t i = 0; i < n_run * args->n_head_k; i++)
        atomic_store_explicit(&d.n_busy[i], d.n_part, memory_order_relaxed);
    pool_run(cpu->pool, key_head_task, &d, n_run * args->n_head_k * d.n_part);
}
