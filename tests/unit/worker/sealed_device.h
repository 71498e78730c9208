/* A device without hardware: the CPU backend on memory that nobody can touch but inside operations.
 *
 * The host reads or writes device memory: the process faults. An operation is given an address
 * outside of device memory: the test fails. So a worker that runs on it would also run on a device
 * whose memory is its own. */
#ifndef LEAN_TESTS_SEALED_DEVICE_H
#define LEAN_TESTS_SEALED_DEVICE_H

#include "tests/unit/cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/backend.h"

enum { SEALED_BYTES = 64 << 20, SEALED_BACK = COPY_AHEAD + 1, SEALED_LANES };

struct sealed_device {
    struct backend backend;
    struct backend *cpu;
    char *arena;
    size_t n_used;
    int n_alloc, n_live; /* pieces of memory so far, and not freed */
    int fail_alloc;      /* the piece that cannot be had; -1: none */
    int n_op, n_sync;    /* operations so far, and waits for them */
    struct {             /* downloads that the host has from the next sync on */
        void *to, *data;
        size_t n_bytes;
    } pending[64];
    int n_pending;
    struct { /* copies beside the operations; what they read is read when they are made */
        uint64_t ticket; /* % SEALED_LANES: its lane */
        void *to;
        const void *from;
        size_t n_bytes;
        int n_poll; /* that it still takes */
    } copying[512];
    int n_copying;
    uint64_t n_ticket;
    int copy_polls; /* that a copy takes, unless an operation awaits it */
    int n_fetch, n_back, n_pin, n_gathered, n_copy_rows;
    bool refuses_to_pin;
    bool busy;      /* maybe, with what it was asked since the last sync */
    int fail_fetch; /* the copy that fails, which the next sync says; -1: none */
    int fail_back;  /* the same of what is written back */
    bool copy_failed;
    int lost_op; /* with which the device is lost; -1: none */
};

static struct sealed_device *sealed(struct backend *backend)
{
    return (struct sealed_device *)backend;
}

static struct backend *unseal(struct backend *backend)
{
    assert_int_equal(mprotect(sealed(backend)->arena, SEALED_BYTES, PROT_READ | PROT_WRITE), 0);
    return sealed(backend)->cpu;
}

static void seal(struct backend *backend)
{
    assert_int_equal(mprotect(sealed(backend)->arena, SEALED_BYTES, PROT_NONE), 0);
    sealed(backend)->n_op++;
    sealed(backend)->busy = true;
}

static bool is_lost(const struct backend *backend)
{
    const struct sealed_device *device = (const struct sealed_device *)backend;
    return device->lost_op >= 0 && device->n_op >= device->lost_op;
}

static void check_inside(struct backend *backend, const void *address)
{
    const char *const arena = sealed(backend)->arena, *const at = address;
    if (at && (at < arena || at >= arena + SEALED_BYTES)) fail_msg("%p is host memory", address);
}

static void check_epilogue(struct backend *backend, const struct epilogue *epilogue)
{
    check_inside(backend, epilogue->post_norm);
    check_inside(backend, epilogue->residual);
}

static void *sealed_alloc(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    struct sealed_device *device = sealed(backend);
    const size_t n = (n_bytes + 63) / 64 * 64;
    if (device->n_alloc++ == device->fail_alloc || n > SEALED_BYTES - device->n_used) {
        lm_fail(err, LM_E_NO_MEM, "sealed device: no memory for %zu bytes", n_bytes);
        return NULL;
    }
    char *const memory = device->arena + device->n_used;
    device->n_used += n;
    device->n_live++;
    return memory;
}

static void sealed_free(struct backend *backend, void *memory)
{
    if (memory) sealed(backend)->n_live--;
}

static void sealed_upload(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    check_inside(backend, to);
    unseal(backend)->ops->upload(sealed(backend)->cpu, to, from, n_bytes);
    seal(backend);
}

static void sealed_download(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    struct sealed_device *device = sealed(backend);
    check_inside(backend, from);
    assert_true(device->n_pending < 64);
    void *const data = malloc(n_bytes + 1);
    assert_non_null(data);
    device->pending[device->n_pending].to = to;
    device->pending[device->n_pending].data = data;
    device->pending[device->n_pending++].n_bytes = n_bytes;
    memset(to, 0xff, n_bytes); /* NaNs */
    unseal(backend)->ops->download(device->cpu, data, from, n_bytes);
    seal(backend);
}

static void sealed_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    check_inside(backend, to);
    check_inside(backend, from);
    unseal(backend)->ops->copy(sealed(backend)->cpu, to, from, n_bytes);
    seal(backend);
}

/* Makes a copy and what goes before it: its lane's, of one ahead all to the device. Others come
 * later. */
static void make_copies(struct backend *backend, uint64_t ticket)
{
    struct sealed_device *device = sealed(backend);
    const uint64_t lane = ticket % SEALED_LANES;
    int n_left = 0;
    unseal(backend);
    for (int i = 0; i < device->n_copying; i++) {
        const uint64_t other = device->copying[i].ticket % SEALED_LANES;
        const bool before = other == lane || (lane == COPY_AHEAD && other == COPY_DEMAND);
        if (device->copying[i].ticket <= ticket && before)
            memcpy(device->copying[i].to, device->copying[i].from, device->copying[i].n_bytes);
        else
            device->copying[n_left++] = device->copying[i];
    }
    seal(backend);
    device->n_copying = n_left;
}

static enum lm_status sealed_pin(struct backend *backend, void *memory, size_t n_bytes,
                                 struct lm_error *err)
{
    (void)memory;
    (void)n_bytes;
    if (sealed(backend)->refuses_to_pin) return lm_fail(err, LM_E_NO_MEM, "sealed device: no");
    sealed(backend)->n_pin++;
    return LM_OK;
}

static void sealed_unpin(struct backend *backend, void *memory)
{
    (void)memory;
    sealed(backend)->n_pin--;
}

static void sealed_start(struct backend *backend)
{
    (void)backend;
}

static uint64_t sealed_mark(struct backend *backend)
{
    return (uint64_t)sealed(backend)->n_op;
}

/* Until it is made there is nothing of use where it goes. */
static uint64_t put_copy(struct backend *backend, void *to, const void *from, size_t n_bytes,
                         uint64_t lane)
{
    struct sealed_device *device = sealed(backend);
    const bool back = lane == SEALED_BACK;
    check_inside(backend, back ? from : to);
    assert_true(device->n_copying < 512);
    unseal(backend);
    memset(to, 0xff, n_bytes);
    seal(backend);
    device->copying[device->n_copying].to = to;
    device->copying[device->n_copying].from = from;
    device->copying[device->n_copying].n_bytes = n_bytes;
    device->copying[device->n_copying].n_poll = device->copy_polls;
    const uint64_t made = device->copying[device->n_copying++].ticket =
        SEALED_LANES * ++device->n_ticket + lane;
    if (back ? device->n_back++ == device->fail_back : device->n_fetch++ == device->fail_fetch) {
        device->copy_failed = true;
        device->n_copying--;
    }
    return made;
}

static uint64_t sealed_fetch(struct backend *backend, void *to, const void *from, size_t n_bytes,
                             uint64_t after, enum copy_lane lane)
{
    assert_true(after <= (uint64_t)sealed(backend)->n_op);
    return put_copy(backend, to, from, n_bytes, lane);
}

static uint64_t sealed_write_back(struct backend *backend, void *to_host, const void *from,
                                  size_t n_bytes)
{
    return put_copy(backend, to_host, from, n_bytes, SEALED_BACK);
}

static bool sealed_fetched(struct backend *backend, uint64_t ticket)
{
    struct sealed_device *device = sealed(backend);
    for (int i = 0; i < device->n_copying; i++)
        if (device->copying[i].ticket == ticket && device->copying[i].n_poll-- > 0) return false;
    make_copies(backend, ticket);
    return true;
}

static void sealed_await(struct backend *backend, uint64_t ticket)
{
    make_copies(backend, ticket);
}

static enum lm_status sealed_sync(struct backend *backend, struct lm_error *err)
{
    sealed(backend)->n_sync++;
    struct sealed_device *device = sealed(backend);
    for (int i = 0; i < device->n_pending; i++) {
        memcpy(device->pending[i].to, device->pending[i].data, device->pending[i].n_bytes);
        free(device->pending[i].data);
    }
    device->n_pending = 0;
    device->busy = false;
    if (is_lost(backend)) return lm_fail(err, LM_E_FAIL, "sealed device: lost");
    if (device->copy_failed) {
        device->copy_failed = false;
        sealed(backend)->cpu->ops->sync(sealed(backend)->cpu, NULL); /* of what was computed so */
        return lm_fail(err, LM_E_FAIL, "sealed device: a copy failed");
    }
    return sealed(backend)->cpu->ops->sync(sealed(backend)->cpu, err);
}

static void sealed_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                         uint32_t n_token, float scale, float *x)
{
    check_inside(backend, table->data);
    check_inside(backend, x);
    unseal(backend)->ops->embed(sealed(backend)->cpu, table, ids, n_token, scale, x);
    seal(backend);
}

static void sealed_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                            uint32_t n_token, uint32_t n, float *y)
{
    check_inside(backend, x);
    check_inside(backend, norm);
    check_inside(backend, y);
    unseal(backend)->ops->rms_norm(sealed(backend)->cpu, x, norm, eps, n_token, n, y);
    seal(backend);
}

static void sealed_gather(struct backend *backend, const float *x, const uint32_t *rows,
                          uint32_t n_row, uint32_t n, float *y)
{
    check_inside(backend, x);
    check_inside(backend, y);
    unseal(backend)->ops->gather(sealed(backend)->cpu, x, rows, n_row, n, y);
    seal(backend);
}

/* From where the host may write, too: it must be pinned. */
static void sealed_copy_rows(struct backend *backend, const float *x, const uint32_t *rows,
                             uint32_t n_row, uint32_t n, float *y)
{
    assert_true(sealed(backend)->n_pin > 0);
    check_inside(backend, y);
    unseal(backend)->ops->copy_rows(sealed(backend)->cpu, x, rows, n_row, n, y);
    seal(backend);
    sealed(backend)->n_copy_rows++;
}

static void sealed_linear(struct backend *backend, const struct linear_args *args)
{
    check_inside(backend, args->x);
    check_inside(backend, args->norm);
    check_epilogue(backend, &args->epilogue);
    for (uint32_t i = 0; i < args->n_out; i++) {
        check_inside(backend, args->out[i].w->data);
        check_inside(backend, args->out[i].bias);
        check_inside(backend, args->out[i].y);
    }
    unseal(backend)->ops->linear(sealed(backend)->cpu, args);
    seal(backend);
}

static void sealed_attention(struct backend *backend, const struct attention_args *args)
{
    const void *const inside[] = {args->q,        args->gate,     args->k,
                                  args->v,        args->q_norm,   args->k_norm,
                                  args->rope_cos, args->rope_sin, args->out};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        check_inside(backend, inside[i]);
    for (uint32_t it = 0; it < args->n_token; it++)
        check_inside(backend, args->kv_block[args->token[it].slot][args->token[it].pos / KV_BLOCK]);
    unseal(backend)->ops->attention(sealed(backend)->cpu, args);
    seal(backend);
}

static void sealed_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    const void *const inside[] = {args->qkv,   args->z,      args->beta, args->alpha, args->conv_w,
                                  args->ssm_a, args->ssm_dt, args->norm, args->out};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        check_inside(backend, inside[i]);
    for (uint32_t it = 0; it < args->n_token; it++) {
        check_inside(backend, args->conv_state[args->token[it].slot]);
        check_inside(backend, args->state[args->token[it].slot]);
    }
    unseal(backend)->ops->delta_net(sealed(backend)->cpu, args);
    seal(backend);
}

static void sealed_route(struct backend *backend, const struct route_args *args)
{
    const void *const inside[] = {args->x, args->router->data, args->selection_bias, args->ids,
                                  args->weights};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        check_inside(backend, inside[i]);
    unseal(backend)->ops->route(sealed(backend)->cpu, args);
    seal(backend);
}

/* Unseals for a feed-forward part. selected: NULL: all. */
static struct backend *unseal_ffn(struct backend *backend, const struct ffn_args *args,
                                  const bool *selected)
{
    const struct weight *const weights[] = {args->gate, args->up, args->down};
    const void *const inside[] = {args->x,           args->ids, args->weights,   args->table,
                                  args->shared_gate, args->y,   args->expert_out};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        check_inside(backend, inside[i]);
    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++)
        if (weights[i]) check_inside(backend, weights[i]->data);
    check_epilogue(backend, &args->epilogue);
    struct backend *cpu = unseal(backend);
    const struct expert_view *const views = args->table ? args->table : args->expert;
    for (uint32_t ie = 0; args->n_expert_used && ie < args->n_expert; ie++) {
        if (selected && !selected[ie]) continue;
        check_inside(backend, views[ie].gate);
        check_inside(backend, views[ie].up);
        check_inside(backend, views[ie].down);
    }
    return cpu;
}

static void sealed_ffn(struct backend *backend, const struct ffn_args *args)
{
    struct backend *cpu = unseal_ffn(backend, args, NULL);
    assert_true(!args->n_expert_used || args->table);
    cpu->ops->ffn(cpu, args);
    seal(backend);
}

/* The distinct remote experts go to the room in the order of the ids, as long as there is some. */
static void sealed_gather_experts(struct backend *backend, const struct expert_gather_args *args)
{
    const void *const inside[] = {args->ids, args->table, args->remote, args->room, args->view};
    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        check_inside(backend, inside[i]);
    unseal(backend);
    uint32_t n_used = 0;
    for (uint32_t p = 0; p < args->n_pair; p++) {
        const uint32_t ie = (uint32_t)args->ids[p];
        bool seen = false;
        for (uint32_t before = 0; before < p; before++)
            seen |= args->ids[before] == args->ids[p];
        if (seen) continue;
        args->view[ie] = args->table[ie];
        if (!args->remote[ie]) continue;
        assert_true(n_used < args->n_room);
        const size_t up = (args->gate_bytes + 255) / 256 * 256;
        const size_t down = up + (args->up_bytes + 255) / 256 * 256;
        char *at = (char *)args->room +
                   n_used++ * expert_room_bytes(args->gate_bytes, args->up_bytes, args->down_bytes);
        memcpy(at, args->table[ie].gate, args->gate_bytes);
        memcpy(at + up, args->table[ie].up, args->up_bytes);
        memcpy(at + down, args->table[ie].down, args->down_bytes);
        args->view[ie] = (struct expert_view){at, args->up_bytes ? at + up : NULL, at + down};
    }
    sealed(backend)->n_gathered += (int)n_used;
    seal(backend);
}

static void sealed_ffn_experts(struct backend *backend, const struct ffn_args *args,
                               const bool *selected)
{
    struct backend *cpu = unseal_ffn(backend, args, selected);
    cpu->ops->ffn_experts(cpu, args, selected);
    seal(backend);
}

static void sealed_ffn_finish(struct backend *backend, const struct ffn_args *args)
{
    static const bool none[1024];
    struct backend *cpu = unseal_ffn(backend, args, none);
    cpu->ops->ffn_finish(cpu, args);
    seal(backend);
}

static const struct backend_ops sealed_ops = {.name = "sealed",
                                              .alloc = sealed_alloc,
                                              .free = sealed_free,
                                              .upload = sealed_upload,
                                              .download = sealed_download,
                                              .copy = sealed_copy,
                                              .sync = sealed_sync,
                                              .embed = sealed_embed,
                                              .rms_norm = sealed_rms_norm,
                                              .gather = sealed_gather,
                                              .copy_rows = sealed_copy_rows,
                                              .linear = sealed_linear,
                                              .attention = sealed_attention,
                                              .delta_net = sealed_delta_net,
                                              .route = sealed_route,
                                              .ffn = sealed_ffn,
                                              .ffn_experts = sealed_ffn_experts,
                                              .ffn_finish = sealed_ffn_finish,
                                              .gather_experts = sealed_gather_experts,
                                              .pin = sealed_pin,
                                              .unpin = sealed_unpin,
                                              .start = sealed_start,
                                              .mark = sealed_mark,
                                              .fetch = sealed_fetch,
                                              .write_back = sealed_write_back,
                                              .fetched = sealed_fetched,
                                              .await = sealed_await};

static void sealed_device_init(struct sealed_device *device)
{
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    *device = (struct sealed_device){.backend.ops = &sealed_ops,
                                     .fail_alloc = -1,
                                     .fail_fetch = -1,
                                     .fail_back = -1,
                                     .lost_op = -1};
    assert_int_equal(backend_cpu_create(&device->cpu, &cpu, NULL), LM_OK);
    device->arena =
        mmap(NULL, SEALED_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(device->arena != MAP_FAILED);
}

/* Nothing may be left there. */
static void sealed_device_fini(struct sealed_device *device)
{
    assert_int_equal(device->n_live, 0);
    assert_int_equal(device->n_pin, 0);
    munmap(device->arena, SEALED_BYTES);
    device->cpu->ops->destroy(device->cpu);
}

#endif
