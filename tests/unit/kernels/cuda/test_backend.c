/* The CUDA backend around its operations, on the emulator: what it says when it cannot be made,
 * memory, lists that become graphs, and devices that fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend_cuda.h"

static struct lm_error err;

/* An emulated machine: NULL leaves a setting as it is by default. */
static void set_machine(const char *devices, const char *vram, const char *fail)
{
    const char *const names[] = {"LEAN_EMU_DEVICES", "LEAN_EMU_VRAM", "LEAN_EMU_FAIL"};
    const char *const values[] = {devices, vram, fail};
    for (int i = 0; i < 3; i++)
        if (values[i])
            setenv(names[i], values[i], 1);
        else
            unsetenv(names[i]);
}

static enum lm_status create(struct backend **out, uint32_t device)
{
    const struct backend_cuda_config config = {.plugin = CUDA_EMU_PLUGIN_FILE, .device = device};
    return backend_cuda_create(out, &config, &err);
}

static struct backend *create_ok(const char *vram, const char *fail)
{
    struct backend *backend;
    set_machine(NULL, vram, fail);
    assert_int_equal(create(&backend, 0), LM_OK);
    return backend;
}

/* ---- making one ---- */

static void test_a_plugin_that_is_not_there(void **state)
{
    (void)state;
    const struct backend_cuda_config config = {.plugin = "liblean_none.so"};
    struct backend *backend;
    assert_int_equal(backend_cuda_create(&backend, &config, &err), LM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "liblean_none.so: not in"));
}

static void test_what_is_missing_is_said(void **state)
{
    (void)state;
    static const struct {
        const char *devices, *fail;
        uint32_t device;
        enum lm_status status;
        const char *message;
    } cases[] = {
        {NULL, "driver", 0, LM_E_UNSUPPORTED, "no NVIDIA driver is loaded on this machine"},
        {NULL, "old_driver", 0, LM_E_UNSUPPORTED,
         "the NVIDIA driver is of CUDA 12.4: CUDA 13 needs NVIDIA driver R580 or newer"},
        {"", NULL, 0, LM_E_UNSUPPORTED, "no CUDA device is visible"},
        {"8.6,7.5", NULL, 1, LM_E_UNSUPPORTED,
         "gpu 1: emulated GPU 1 has compute capability 7.5; 8.0 is the least (Ampere)"},
        {"8.6,10.3", "image", 1, LM_E_UNSUPPORTED,
         "gpu 1: the plugin holds no code for emulated GPU 1, compute capability 10.3"},
        {"8.6,10.3", "function", 1, LM_E_UNSUPPORTED,
         "gpu 1: the plugin holds no code for emulated GPU 1, compute capability 10.3"},
        {"8.6,9.0", NULL, 2, LM_E_USAGE, "gpu 2: there are 2, numbered from 0"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct backend *backend;
        set_machine(cases[i].devices, NULL, cases[i].fail);
        assert_int_equal(create(&backend, cases[i].device), cases[i].status);
        assert_string_equal(err.message, cases[i].message);
    }
}

/* Only who asks for it needs cuBLAS. */
static void test_fast_without_cublas(void **state)
{
    (void)state;
    const struct backend_cuda_config fast = {.plugin = CUDA_EMU_PLUGIN_FILE, .fast = true};
    struct backend *backend = create_ok(NULL, "cublas");
    backend->ops->destroy(backend);
    assert_int_equal(backend_cuda_create(&backend, &fast, &err), LM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "numerics fast needs cuBLAS"));
    assert_non_null(strstr(err.hint, "libcublas"));
    set_machine(NULL, "1000000", NULL); /* no room for its workspace */
    assert_int_equal(backend_cuda_create(&backend, &fast, &err), LM_E_NO_MEM);
    set_machine(NULL, NULL, NULL);
    assert_int_equal(backend_cuda_create(&backend, &fast, &err), LM_OK);
    backend->ops->destroy(backend);
}

static void test_devices_are_listed(void **state)
{
    (void)state;
    struct cuda_device_info info[2];
    uint32_t n;
    set_machine("8.6,12.0,7.0", "123456789", NULL);
    assert_int_equal(backend_cuda_devices(CUDA_EMU_PLUGIN_FILE, info, 2, &n, &err), LM_OK);
    assert_int_equal(n, 3);
    assert_string_equal(info[1].name, "emulated GPU 1");
    assert_int_equal(info[1].major, 12);
    assert_int_equal(info[0].minor, 6);
    assert_int_equal(info[0].total_bytes, 123456789);
    assert_int_equal(strlen(info[0].uuid), 36);
    assert_string_not_equal(info[0].uuid, info[1].uuid);
    set_machine(NULL, NULL, "driver");
    assert_int_equal(backend_cuda_devices(CUDA_EMU_PLUGIN_FILE, info, 2, &n, &err),
                     LM_E_UNSUPPORTED);
}

/* One that another process has for itself is in nobody's way. */
static void test_a_busy_device_is_left_alone(void **state)
{
    (void)state;
    struct cuda_device_info info[2];
    struct backend *backend;
    uint64_t free_bytes = 0;
    uint32_t n;
    set_machine("8.6,9.0", "1000000", "busy:1");
    assert_int_equal(backend_cuda_devices(CUDA_EMU_PLUGIN_FILE, info, 2, &n, &err), LM_OK);
    assert_int_equal(n, 2);
    assert_int_equal(info[1].total_bytes, 1000000);
    assert_int_equal(create(&backend, 0), LM_OK);
    backend->ops->destroy(backend);
    assert_int_equal(backend_cuda_free_bytes(CUDA_EMU_PLUGIN_FILE, 0, &free_bytes, &err), LM_OK);
    assert_int_equal(free_bytes, 1000000);
    assert_int_equal(create(&backend, 1), LM_E_FAIL);
    assert_string_equal(err.message, "gpu 1: CUDA-capable device(s) is/are busy or unavailable");
    assert_int_equal(backend_cuda_free_bytes(CUDA_EMU_PLUGIN_FILE, 1, &free_bytes, &err),
                     LM_E_FAIL);
    assert_int_equal(backend_cuda_free_bytes(CUDA_EMU_PLUGIN_FILE, 2, &free_bytes, &err),
                     LM_E_USAGE);
}

/* Two backends, on two devices, keep apart. */
static void test_each_device_has_its_memory(void **state)
{
    (void)state;
    struct backend *backend[2];
    set_machine("8.6,9.0", "1000000", NULL);
    assert_int_equal(create(&backend[0], 0), LM_OK);
    assert_int_equal(create(&backend[1], 1), LM_OK);
    void *memory[2];
    for (int i = 0; i < 2; i++) {
        memory[i] = backend[i]->ops->alloc(backend[i], 900000, &err);
        assert_non_null(memory[i]);
    }
    for (int i = 0; i < 2; i++) {
        backend[i]->ops->free(backend[i], memory[i]);
        backend[i]->ops->destroy(backend[i]);
    }
}

/* ---- memory ---- */

static void test_out_of_memory_says_how_much(void **state)
{
    (void)state;
    struct backend *backend = create_ok("1000000", NULL);
    void *memory = backend->ops->alloc(backend, 600000, &err);
    assert_non_null(memory);
    assert_null(backend->ops->alloc(backend, 600000, &err));
    assert_int_equal(err.status, LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "gpu 0: no memory for 600000 bytes: 399936 of 1000000 "));
    assert_null(backend->ops->alloc(backend, SIZE_MAX - 100, &err));
    assert_int_equal(err.status, LM_E_NO_MEM);
    backend->ops->free(backend, memory); /* and then there is room again */
    memory = backend->ops->alloc(backend, 600000, &err);
    assert_non_null(memory);
    assert_int_equal(backend->ops->sync(backend, &err), LM_OK);
    backend->ops->free(backend, memory);
    backend->ops->destroy(backend);
}

/* What alloc gives is zero, what is uploaded is what was there at the call. */
static void test_uploads_take_the_data_at_once(void **state)
{
    (void)state;
    struct backend *backend = create_ok(NULL, NULL);
    uint32_t host[64], got[2][64];
    void *a = backend->ops->alloc(backend, sizeof(host), &err);
    void *b = backend->ops->alloc(backend, sizeof(host), &err);
    for (uint32_t i = 0; i < 64; i++)
        host[i] = i * 77;
    backend->ops->upload(backend, a, host, sizeof(host));
    memset(host, 1, sizeof(host));
    backend->ops->download(backend, got[0], a, sizeof(host));
    backend->ops->download(backend, got[1], b, sizeof(host));
    assert_int_equal(backend->ops->sync(backend, &err), LM_OK);
    for (uint32_t i = 0; i < 64; i++) {
        assert_int_equal(got[0][i], i * 77);
        assert_int_equal(got[1][i], 0);
    }
    backend->ops->free(backend, a);
    backend->ops->free(backend, b);
    backend->ops->destroy(backend);
}

/* ---- lists and graphs ---- */

enum { N = 8, N_ROW = 16, STEPS = 12 };

/* A table of N_ROW rows, and room for results. */
struct fixture {
    struct backend *backend;
    float *table, *picked;
    float host[N_ROW * N];
};

static void setup(struct fixture *f, const char *fail)
{
    f->backend = create_ok(NULL, fail);
    const struct backend_ops *ops = f->backend->ops;
    for (int i = 0; i < N_ROW * N; i++)
        f->host[i] = (float)i;
    f->table = ops->alloc(f->backend, sizeof(f->host), &err);
    f->picked = ops->alloc(f->backend, STEPS * N * sizeof(float), &err);
    if (f->table) ops->upload(f->backend, f->table, f->host, sizeof(f->host));
}

static void teardown(struct fixture *f)
{
    f->backend->ops->free(f->backend, f->table);
    f->backend->ops->free(f->backend, f->picked);
    f->backend->ops->destroy(f->backend);
}

/* A step of n_launch gathers of one row each, rows seed, seed + 1, ...; false: it failed. */
static bool run_step(struct fixture *f, uint32_t n_launch, uint32_t seed)
{
    float got[STEPS * N];
    for (uint32_t i = 0; i < n_launch; i++) {
        const uint32_t row = (seed + i) % N_ROW;
        f->backend->ops->gather(f->backend, f->table, &row, 1, N, f->picked + i * N);
    }
    f->backend->ops->download(f->backend, got, f->picked, n_launch * N * sizeof(float));
    if (f->backend->ops->sync(f->backend, &err) != LM_OK) return false;
    for (uint32_t i = 0; i < n_launch; i++)
        assert_memory_equal(got + i * N, f->host + (seed + i) % N_ROW * N, N * sizeof(float));
    return true;
}

/* The same step with other rows is the same list: recorded the second time, replayed from then on,
 * and nothing is allocated. */
static void test_a_list_that_comes_again_is_a_graph(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, NULL);
    const struct backend_cuda_counters *c = backend_cuda_counters(f.backend);
    assert_true(run_step(&f, STEPS, 0));
    assert_int_equal(c->n_capture, 0);
    assert_true(run_step(&f, STEPS, 1));
    assert_int_equal(c->n_capture, 1);
    const uint64_t n_alloc = c->n_alloc;
    for (uint32_t step = 2; step < 40; step++)
        assert_true(run_step(&f, STEPS, step));
    assert_int_equal(c->n_capture, 1);
    assert_int_equal(c->n_replay, 38);
    assert_int_equal(c->n_alloc, n_alloc);
    assert_int_equal(c->n_launch, 40 * STEPS);
    teardown(&f);
}

/* One launch that changed is replaced in the graph; lists in turn keep a graph each. */
static void test_a_graph_is_updated(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, NULL);
    const struct backend_cuda_counters *c = backend_cuda_counters(f.backend);
    float *other = f.backend->ops->alloc(f.backend, sizeof(f.host), &err), *const table = f.table;
    for (int i = 0; i < N_ROW * N; i++)
        f.host[i] = -f.host[i];
    f.backend->ops->upload(f.backend, other, f.host, sizeof(f.host));
    for (int i = 0; i < N_ROW * N; i++)
        f.host[i] = -f.host[i];
    assert_true(run_step(&f, STEPS, 0));
    assert_true(run_step(&f, STEPS, 0));
    for (int round = 0; round < 3; round++) {
        float got[STEPS * N];
        for (uint32_t i = 0; i < STEPS; i++) {
            f.table = i == 5 ? other : table;
            f.backend->ops->gather(f.backend, f.table, &i, 1, N, f.picked + i * N);
        }
        f.backend->ops->download(f.backend, got, f.picked, sizeof(got));
        assert_int_equal(f.backend->ops->sync(f.backend, &err), LM_OK);
        for (int i = 0; i < STEPS * N; i++)
            assert_true(got[i] == (i / N == 5 ? -f.host[i] : f.host[i]));
        f.table = table;
        assert_true(run_step(&f, STEPS, (uint32_t)round));
    }
    assert_int_equal(c->n_update, 1);
    assert_int_equal(c->n_capture, 2);
    assert_int_equal(c->n_replay, 4);
    f.backend->ops->free(f.backend, other);
    teardown(&f);
}

/* More lists than graphs are kept. */
static void test_graphs_make_room(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, NULL);
    const struct backend_cuda_counters *c = backend_cuda_counters(f.backend);
    float *x = f.backend->ops->alloc(f.backend, 100 * N * sizeof(float), &err);
    float *norm = f.backend->ops->alloc(f.backend, N * sizeof(float), &err);
    for (int round = 0; round < 3; round++)
        for (uint32_t shape = 1; shape <= 40; shape++) {
            for (uint32_t i = 0; i < 6; i++) /* every launch differs from those of other shapes */
                f.backend->ops->rms_norm(f.backend, x, norm, 1.0f, shape, N, x);
            assert_int_equal(f.backend->ops->sync(f.backend, &err), LM_OK);
        }
    assert_int_equal(c->n_capture, 80); /* each had to make room for others */
    assert_int_equal(c->n_replay, 0);
    f.backend->ops->free(f.backend, x);
    f.backend->ops->free(f.backend, norm);
    teardown(&f);
}

/* More is staged than a chunk holds: memory grows once. */
static void test_staging_grows(void **state)
{
    (void)state;
    enum { MANY = 270000 };
    struct fixture f;
    setup(&f, NULL);
    uint32_t *rows = malloc(MANY * sizeof(*rows));
    float *got = malloc(MANY * sizeof(*got));
    float *y = f.backend->ops->alloc(f.backend, MANY * sizeof(float), &err);
    uint64_t n_alloc = 0;
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < MANY; i++)
            rows[i] = (i + round) % (N_ROW * N);
        f.backend->ops->gather(f.backend, f.table, rows, MANY, 1, y);
        memset(rows, 0, MANY * sizeof(*rows));
        f.backend->ops->download(f.backend, got, y, MANY * sizeof(float));
        assert_int_equal(f.backend->ops->sync(f.backend, &err), LM_OK);
        for (uint32_t i = 0; i < MANY; i += 997)
            assert_true(got[i] == f.host[(i + round) % (N_ROW * N)]);
        if (round == 0) n_alloc = backend_cuda_counters(f.backend)->n_alloc;
    }
    assert_int_equal(backend_cuda_counters(f.backend)->n_alloc, n_alloc);
    f.backend->ops->free(f.backend, y);
    free(rows);
    free(got);
    teardown(&f);
}

/* Prompts of rising length: scratch is what the longest takes, and no length is one too many. */
static void test_scratch_grows(void **state)
{
    (void)state;
    enum { N_EMBD = 32, N_FF = 1024, LONGEST = 18000, STEP = 600 };
    struct fixture f;
    setup(&f, NULL);
    const struct backend_ops *ops = f.backend->ops;
    const bool selected[2] = {false, false}; /* what would take long is not computed */
    struct weight matrix = {.type = TENSOR_F32, .n_col = N_EMBD, .n_row = N_FF};
    matrix.row_bytes = N_EMBD * sizeof(float);
    struct weight down = {.type = TENSOR_F32, .n_col = N_FF, .n_row = N_EMBD};
    down.row_bytes = N_FF * sizeof(float);
    struct ffn_args args = {.n_embd = N_EMBD,
                            .n_expert = 2,
                            .n_expert_used = 1,
                            .n_ff_exp = N_FF,
                            .gate_exp = matrix,
                            .up_exp = matrix,
                            .down_exp = down};
    void *const ids = ops->alloc(f.backend, LONGEST * sizeof(int32_t), &err);
    void *const table = ops->alloc(f.backend, 2 * sizeof(struct expert_view), &err);
    float *const x = ops->alloc(f.backend, LONGEST * N_EMBD * sizeof(float), &err);
    float *const out = ops->alloc(f.backend, LONGEST * N_EMBD * sizeof(float), &err);
    args.ids = ids;
    args.table = table;
    args.x = x;
    args.expert_out = out;
    for (args.n_token = STEP; args.n_token <= LONGEST; args.n_token += STEP) {
        ops->ffn_experts(f.backend, &args, selected);
        assert_int_equal(ops->sync(f.backend, &err), LM_OK);
    }
    const size_t hidden_bytes = (size_t)LONGEST * N_FF * sizeof(float);
    assert_true(run_step(&f, STEPS, 0));
    assert_in_range(backend_cuda_counters(f.backend)->inner_bytes, hidden_bytes,
                    hidden_bytes + (8 << 20));
    ops->free(f.backend, ids);
    ops->free(f.backend, table);
    ops->free(f.backend, x);
    ops->free(f.backend, out);
    teardown(&f);
}

/* ---- failures ---- */

/* A launch that is refused is reported once; the next step is none the worse. */
static void test_a_launch_that_fails(void **state)
{
    (void)state;
    for (int nth = 1; nth <= 3; nth++) { /* launched one by one, recorded, replayed */
        struct fixture f;
        char fail[16];
        snprintf(fail, sizeof(fail), "launch:%d", (int[]){3, STEPS + 1, STEPS + 2}[nth - 1]);
        setup(&f, fail);
        for (int step = 1; step < nth; step++)
            assert_true(run_step(&f, STEPS, 0));
        assert_false(run_step(&f, STEPS, 0));
        assert_int_equal(err.status, LM_E_FAIL);
        assert_string_equal(err.message, "gpu 0: launch: too many resources requested for launch");
        assert_true(run_step(&f, STEPS, 0));
        assert_true(run_step(&f, STEPS, 3));
        assert_false(backend_cuda_counters(f.backend)->lost);
        teardown(&f);
    }
}

/* A device that is gone stays gone: every sync says so, nothing hangs, and all is given back. */
static void test_a_device_that_is_lost(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, "lost:30");
    assert_true(run_step(&f, STEPS, 0));
    assert_true(run_step(&f, STEPS, 0));
    for (int i = 0; i < 3; i++) {
        assert_false(run_step(&f, STEPS, 0));
        assert_int_equal(err.status, LM_E_DEVICE_LOST);
        assert_non_null(strstr(err.message, "gpu 0: cudaStreamSynchronize: unspecified launch "
                                            "failure; the device is lost"));
    }
    assert_true(backend_cuda_counters(f.backend)->lost);
    assert_null(f.backend->ops->alloc(f.backend, 100, &err));
    assert_int_equal(err.status, LM_E_DEVICE_LOST);
    teardown(&f);
}

/* The n-th allocation of the device's or of pinned memory fails, wherever that is. */
static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    static const char *const kinds[] = {"malloc", "host"};
    for (int kind = 0; kind < 2; kind++)
        for (int nth = 1; nth <= 7; nth++) {
            struct fixture f;
            char fail[16];
            snprintf(fail, sizeof(fail), "%s:%d", kinds[kind], nth);
            set_machine(NULL, NULL, fail);
            if (create(&f.backend, 0) != LM_OK) {
                assert_int_equal(err.status, LM_E_NO_MEM);
                continue;
            }
            f.backend->ops->destroy(f.backend);
            setup(&f, fail);
            bool ok = f.table && f.picked;
            if (!ok) assert_int_equal(err.status, LM_E_NO_MEM);
            for (int step = 0; ok && step < 3; step++)
                if (!run_step(&f, STEPS, 0)) {
                    assert_int_equal(err.status, LM_E_NO_MEM);
                    assert_true(run_step(&f, STEPS, 0)); /* which has been reported */
                }
            teardown(&f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_plugin_that_is_not_there),
        cmocka_unit_test(test_what_is_missing_is_said),
        cmocka_unit_test(test_fast_without_cublas),
        cmocka_unit_test(test_devices_are_listed),
        cmocka_unit_test(test_a_busy_device_is_left_alone),
        cmocka_unit_test(test_each_device_has_its_memory),
        cmocka_unit_test(test_out_of_memory_says_how_much),
        cmocka_unit_test(test_uploads_take_the_data_at_once),
        cmocka_unit_test(test_a_list_that_comes_again_is_a_graph),
        cmocka_unit_test(test_a_graph_is_updated),
        cmocka_unit_test(test_graphs_make_room),
        cmocka_unit_test(test_staging_grows),
        cmocka_unit_test(test_scratch_grows),
        cmocka_unit_test(test_a_launch_that_fails),
        cmocka_unit_test(test_a_device_that_is_lost),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
