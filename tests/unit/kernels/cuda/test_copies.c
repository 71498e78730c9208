/* Copies beside the operations of the CUDA backend, on the emulator: as late as possible, and in
 * simulated time, where the schedule is asserted; pinned memory; and what fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/backend_cuda.h"

/* How time passes on the emulated device (kernels/cuda/emu/schedule.h). */
static const char *const AS_LATE_AS_POSSIBLE = NULL;
static const char *const SLOW_COPIES = "1000,0.001,1";
static const char *const SLOW_KERNELS = "0,100000,1000";
static const char *const EVEN = "0,1,10"; /* 10 us for 10000 bytes, as for a kernel */

enum { PIECE = 10000, N_PIECE = 6, N_SLOT = 2, KERNELS = 12 };

static struct lm_error err;
static char trace_path[64];

static struct backend *create(const char *copy, const char *fail)
{
    const struct backend_cuda_config config = {.plugin = CUDA_EMU_PLUGIN_FILE};
    struct backend *backend;
    unsetenv("LEAN_EMU_VRAM");
    unsetenv("LEAN_EMU_DEVICES");
    setenv("LEAN_EMU_TRACE", trace_path, 1);
    if (copy)
        setenv("LEAN_EMU_COPY", copy, 1);
    else
        unsetenv("LEAN_EMU_COPY");
    if (fail)
        setenv("LEAN_EMU_FAIL", fail, 1);
    else
        unsetenv("LEAN_EMU_FAIL");
    assert_int_equal(backend_cuda_create(&backend, &config, &err), LM_OK);
    return backend;
}

/* Pieces of the host's memory that go through slots, and where they end. */
struct fixture {
    struct backend *backend;
    const struct backend_ops *ops;
    uint8_t *host, *got;         /* [N_PIECE][PIECE] */
    uint8_t *slot[N_SLOT], *out; /* [PIECE], [N_PIECE][PIECE] */
};

static void setup(struct fixture *f, const char *copy, const char *fail)
{
    f->backend = create(copy, fail);
    f->ops = f->backend->ops;
    f->host = aligned_alloc(4096, 16 * 4096);
    f->got = calloc(N_PIECE, PIECE);
    for (size_t i = 0; i < N_PIECE * PIECE; i++)
        f->host[i] = (uint8_t)(i * 2654435761u >> 24);
    assert_int_equal(f->ops->pin(f->backend, f->host, 16 * 4096, &err), LM_OK);
    for (int i = 0; i < N_SLOT; i++)
        f->slot[i] = f->ops->alloc(f->backend, PIECE, &err);
    f->out = f->ops->alloc(f->backend, N_PIECE * PIECE, &err);
    assert_int_equal(f->ops->sync(f->backend, &err), LM_OK);
}

static void teardown(struct fixture *f)
{
    for (int i = 0; i < N_SLOT; i++)
        f->ops->free(f->backend, f->slot[i]);
    f->ops->free(f->backend, f->out);
    f->ops->unpin(f->backend, f->host);
    f->ops->destroy(f->backend);
    free(f->host);
    free(f->got);
}

/* All pieces through the slots in turn, each read by an operation: the protocol of whoever streams
 * weights. Whether all arrived. */
static bool stream_pieces(struct fixture *f, bool marks, bool awaits, enum copy_lane lane)
{
    uint64_t read[N_SLOT] = {0};
    for (int i = 0; i < N_PIECE; i++) {
        uint8_t *const slot = f->slot[i % N_SLOT];
        const uint64_t ticket = f->ops->fetch(f->backend, slot, f->host + i * PIECE, PIECE,
                                              marks ? read[i % N_SLOT] : 0, lane);
        assert_true(ticket != 0);
        if (awaits) f->ops->await(f->backend, ticket);
        f->ops->copy(f->backend, f->out + i * PIECE, slot, PIECE);
        read[i % N_SLOT] = f->ops->mark(f->backend);
    }
    f->ops->download(f->backend, f->got, f->out, N_PIECE * PIECE);
    assert_int_equal(f->ops->sync(f->backend, &err), LM_OK);
    return !memcmp(f->got, f->host, N_PIECE * PIECE);
}

/* ---- order ---- */

static void test_pieces_go_through_slots(void **state)
{
    (void)state;
    const char *const times[] = {AS_LATE_AS_POSSIBLE, SLOW_COPIES, SLOW_KERNELS, EVEN};
    for (int i = 0; i < 4; i++)
        for (int lane = COPY_DEMAND; lane <= COPY_AHEAD; lane++) {
            struct fixture f;
            setup(&f, times[i], NULL);
            for (int round = 0; round < 3; round++)
                assert_true(stream_pieces(&f, true, true, lane));
            teardown(&f);
        }
}

/* The emulator is no friend of who forgets one of the two: so a test of anything that streams sees
 * it. */
static void test_a_missing_await_or_mark_is_seen(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, AS_LATE_AS_POSSIBLE, NULL);
    assert_false(stream_pieces(&f, true, false, COPY_DEMAND));
    teardown(&f);
    setup(&f, SLOW_COPIES, NULL);
    assert_false(stream_pieces(&f, true, false, COPY_DEMAND));
    teardown(&f);
    setup(&f, SLOW_KERNELS, NULL);
    assert_false(stream_pieces(&f, false, true, COPY_DEMAND));
    teardown(&f);
}

/* More copies and marks than there are events: later ones are waited for, and all is well. */
static void test_events_are_used_again(void **state)
{
    (void)state;
    enum { MANY = 700 };
    for (int lane = COPY_DEMAND; lane <= COPY_AHEAD; lane++) {
        struct fixture f;
        uint64_t ticket[MANY], first_mark = 0;
        setup(&f, EVEN, NULL);
        const uint64_t n_alloc = backend_cuda_counters(f.backend)->n_alloc;
        for (int i = 0; i < MANY; i++) {
            const uint64_t mark = f.ops->mark(f.backend);
            if (!i) first_mark = mark;
            ticket[i] =
                f.ops->fetch(f.backend, f.slot[0] + i % 97, f.host + i, 1, first_mark, lane);
        }
        for (int i = 0; i < MANY; i += 50)
            f.ops->await(f.backend, ticket[i]);
        for (int i = 0; i < MANY; i++)
            while (!f.ops->fetched(f.backend, ticket[i]))
                ;
        f.ops->download(f.backend, f.got, f.slot[0], 97);
        assert_int_equal(f.ops->sync(f.backend, &err), LM_OK);
        for (int i = MANY - 97; i < MANY; i++)
            assert_int_equal(f.got[i % 97], f.host[i]);
        assert_int_equal(backend_cuda_counters(f.backend)->n_alloc, n_alloc);
        assert_int_equal(backend_cuda_counters(f.backend)->n_fetch, MANY);
        assert_int_equal(backend_cuda_counters(f.backend)->staged_bytes, 0);
        teardown(&f);
    }
}

/* Who asks again and again learns that a copy is done, whoever waits for what else. */
static void test_asking_is_enough(void **state)
{
    (void)state;
    const char *const times[] = {AS_LATE_AS_POSSIBLE, SLOW_COPIES};
    for (int i = 0; i < 2; i++)
        for (int lane = COPY_DEMAND; lane <= COPY_AHEAD; lane++) {
            struct fixture f;
            setup(&f, times[i], NULL);
            for (int k = 0; k < KERNELS; k++)
                f.ops->copy(f.backend, f.out, f.slot[0], PIECE);
            const uint64_t mark = f.ops->mark(f.backend);
            const uint64_t ticket = f.ops->fetch(f.backend, f.slot[0], f.host, PIECE, mark, lane);
            assert_false(f.ops->fetched(f.backend, ticket));
            for (int n = 0; !f.ops->fetched(f.backend, ticket); n++)
                assert_true(n < 1000000);
            assert_true(f.ops->fetched(f.backend, 0)); /* of nothing */
            memset(f.host, 0, PIECE);
            f.ops->download(f.backend, f.got, f.slot[0], PIECE);
            assert_int_equal(f.ops->sync(f.backend, &err), LM_OK);
            assert_int_equal(f.got[1], (uint8_t)(2654435761u >> 24));
            teardown(&f);
        }
}

/* A copy into memory that has just been taken comes behind the zeros. */
static void test_new_memory_is_zeroed_first(void **state)
{
    (void)state;
    uint8_t host[PIECE], got[PIECE];
    memset(host, 5, sizeof(host));
    for (int lane = COPY_DEMAND; lane <= COPY_AHEAD; lane++) {
        struct backend *backend = create(AS_LATE_AS_POSSIBLE, NULL);
        const struct backend_ops *const ops = backend->ops;
        for (int i = 0; i < 2; i++) {
            void *const to = ops->alloc(backend, PIECE, &err);
            const uint64_t ticket = ops->fetch(backend, to, host, PIECE, 0, lane);
            while (!ops->fetched(backend, ticket))
                ;
            ops->download(backend, got, to, PIECE);
            assert_int_equal(ops->sync(backend, &err), LM_OK);
            assert_memory_equal(got, host, PIECE);
            ops->free(backend, to);
        }
        ops->destroy(backend);
    }
}

/* ---- the schedule ---- */

struct span {
    int stream;
    double begin_us, end_us;
    char kind[16], what[64];
};

/* Copies to the device, or kernels, of a stream in the order in which they ended. */
static int read_trace(struct span *out, int n_max, int stream, const char *kind)
{
    struct span s;
    int n = 0;
    FILE *file = fopen(trace_path, "r");
    assert_non_null(file);
    while (n < n_max && fscanf(file, "%d %lf %lf %15s %63s", &s.stream, &s.begin_us, &s.end_us,
                               s.kind, s.what) == 5)
        if (s.stream == stream && !strcmp(s.kind, kind)) out[n++] = s;
    fclose(file);
    return n;
}

/* The order in which the backend makes its streams. */
enum { STREAM_OPERATIONS, STREAM_DEMAND, STREAM_AHEAD, STREAM_BACK };

/* With two slots, a piece is on its way while the one before it is computed on: after the first,
 * pieces of equal length cost nothing more than their kernels. */
static void test_copies_run_beside_kernels(void **state)
{
    (void)state;
    struct fixture f;
    struct span copy[N_PIECE], kernel[N_PIECE];
    setup(&f, EVEN, NULL);
    uint64_t read[N_SLOT] = {0}, ticket[N_PIECE];
    ticket[0] = f.ops->fetch(f.backend, f.slot[0], f.host, PIECE, 0, COPY_DEMAND);
    for (int i = 0; i < N_PIECE; i++) { /* the next one is asked for before this one is used */
        if (i + 1 < N_PIECE)
            ticket[i + 1] =
                f.ops->fetch(f.backend, f.slot[(i + 1) % N_SLOT], f.host + (i + 1) * PIECE, PIECE,
                             read[(i + 1) % N_SLOT], COPY_DEMAND);
        f.ops->await(f.backend, ticket[i]);
        f.ops->copy(f.backend, f.out + i * PIECE, f.slot[i % N_SLOT], PIECE);
        read[i % N_SLOT] = f.ops->mark(f.backend);
    }
    f.ops->download(f.backend, f.got, f.out, N_PIECE * PIECE);
    assert_int_equal(f.ops->sync(f.backend, &err), LM_OK);
    assert_memory_equal(f.got, f.host, N_PIECE * PIECE);
    assert_int_equal(read_trace(copy, N_PIECE, STREAM_DEMAND, "copy_in"), N_PIECE);
    assert_int_equal(read_trace(kernel, N_PIECE, STREAM_OPERATIONS, "kernel"), N_PIECE);
    for (int i = 0; i < N_PIECE; i++) {
        assert_true(kernel[i].begin_us >= copy[i].end_us);                      /* await */
        if (i >= N_SLOT) assert_true(copy[i].begin_us >= kernel[i - 2].end_us); /* mark */
    }
    assert_true(kernel[N_PIECE - 1].end_us - copy[0].begin_us <= 10.0 * (N_PIECE + 1) + 0.01);
    teardown(&f);
}

/* What is wanted now goes before what may be wanted, asked for later or not; of the latter the
 * device has little at a time. */
static void test_demand_goes_before_ahead(void **state)
{
    (void)state;
    enum { MIB = 1 << 20, N_AHEAD = 40 };
    struct span demand[2], ahead[N_AHEAD];
    uint64_t ticket[N_AHEAD];
    uint8_t *const host = aligned_alloc(4096, MIB);
    struct backend *backend = create("0,1", NULL);
    const struct backend_ops *const ops = backend->ops;
    uint8_t *const to = ops->alloc(backend, 2 * MIB, &err);
    assert_int_equal(ops->pin(backend, host, MIB, &err), LM_OK);
    ops->fetch(backend, to, host, MIB, 0, COPY_DEMAND);
    for (int i = 0; i < N_AHEAD; i++)
        ticket[i] = ops->fetch(backend, to + MIB, host, MIB, 0, COPY_AHEAD);
    const uint64_t late = ops->fetch(backend, to, host, MIB, 0, COPY_DEMAND);
    while (!ops->fetched(backend, late))
        ;
    assert_false(ops->fetched(backend, ticket[N_AHEAD - 1]));
    for (int i = 0; i < N_AHEAD; i++)
        while (!ops->fetched(backend, ticket[i]))
            ;
    assert_int_equal(read_trace(demand, 2, STREAM_DEMAND, "copy_in"), 2);
    assert_int_equal(read_trace(ahead, N_AHEAD, STREAM_AHEAD, "copy_in"), N_AHEAD);
    assert_true(demand[0].end_us <= ahead[0].begin_us);
    int n_before = 0;
    for (int i = 0; i < N_AHEAD; i++)
        n_before += ahead[i].begin_us < demand[1].begin_us;
    assert_true(n_before <= 16); /* MiB under way */
    /* and the link does not idle between those who are asked about */
    assert_true(ahead[N_AHEAD - 1].end_us - demand[0].begin_us <
                (N_AHEAD + 2) * (double)MIB * 1e-3 * 1.01);
    ops->unpin(backend, host);
    ops->free(backend, to);
    ops->destroy(backend);
    free(host);
}

/* An operation may wait for what is held back. */
static void test_what_is_awaited_is_sent(void **state)
{
    (void)state;
    enum { MIB = 1 << 20, N_AHEAD = 40 };
    uint64_t ticket = 0;
    uint8_t *const host = aligned_alloc(4096, MIB), *const got = malloc(MIB);
    memset(host, 0, MIB);
    struct backend *backend = create(SLOW_KERNELS, NULL);
    const struct backend_ops *const ops = backend->ops;
    uint8_t *const to = ops->alloc(backend, MIB, &err);
    assert_int_equal(ops->pin(backend, host, MIB, &err), LM_OK);
    for (int i = 0; i < N_AHEAD; i++)
        ticket = ops->fetch(backend, to, host, MIB, 0, COPY_AHEAD);
    memset(host, 7, MIB);
    ops->await(backend, ticket);
    ops->download(backend, got, to, MIB);
    assert_int_equal(ops->sync(backend, &err), LM_OK);
    assert_memory_equal(got, host, MIB);
    assert_int_equal(backend_cuda_counters(backend)->n_fetch, N_AHEAD);
    ops->unpin(backend, host);
    ops->free(backend, to);
    ops->destroy(backend);
    free(host);
    free(got);
}

/* ---- back ---- */

/* Slots go back to where their pieces came from. asks: whether the host asks before it reads, and
 * before a slot is used again. Whether all arrived. */
static bool write_pieces_back(struct fixture *f, bool asks)
{
    uint64_t ticket[N_SLOT] = {0};
    uint8_t *const back = f->host + N_PIECE * PIECE / 2; /* pinned, too */
    memcpy(f->got, f->host, N_PIECE / 2 * PIECE);
    memset(back, 0, N_PIECE / 2 * PIECE);
    for (int i = 0; i < N_PIECE / 2; i++) {
        while (asks && !f->ops->fetched(f->backend, ticket[i % N_SLOT]))
            ;
        f->ops->upload(f->backend, f->slot[i % N_SLOT], f->host + i * PIECE, PIECE);
        ticket[i % N_SLOT] =
            f->ops->write_back(f->backend, back + i * PIECE, f->slot[i % N_SLOT], PIECE);
        assert_true(ticket[i % N_SLOT] != 0);
    }
    for (int i = 0; i < N_SLOT; i++)
        while (asks && !f->ops->fetched(f->backend, ticket[i]))
            ;
    const bool same = !memcmp(back, f->got, N_PIECE / 2 * PIECE);
    assert_int_equal(f->ops->sync(f->backend, &err), LM_OK);
    return same;
}

static void test_slots_are_written_back(void **state)
{
    (void)state;
    const char *const times[] = {AS_LATE_AS_POSSIBLE, SLOW_COPIES, SLOW_KERNELS, EVEN};
    for (int i = 0; i < 4; i++) {
        struct fixture f;
        setup(&f, times[i], NULL);
        const uint64_t n_alloc = backend_cuda_counters(f.backend)->n_alloc;
        for (int round = 0; round < 3; round++)
            assert_true(write_pieces_back(&f, true));
        assert_int_equal(backend_cuda_counters(f.backend)->back_bytes, 3 * N_PIECE / 2 * PIECE);
        assert_int_equal(backend_cuda_counters(f.backend)->n_alloc, n_alloc);
        teardown(&f);
    }
}

static void test_who_does_not_ask_is_seen(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, AS_LATE_AS_POSSIBLE, NULL);
    assert_false(write_pieces_back(&f, false));
    teardown(&f);
    setup(&f, SLOW_COPIES, NULL);
    assert_false(write_pieces_back(&f, false));
    teardown(&f);
}

/* What an operation waits for by await is seen by the next sync, and copies go both ways at once.
 */
static void test_back_runs_beside_fetches(void **state)
{
    (void)state;
    struct fixture f;
    struct span in[1], out[1];
    setup(&f, EVEN, NULL);
    const uint64_t back = f.ops->write_back(f.backend, f.host + PIECE, f.slot[0], PIECE);
    f.ops->await(f.backend, f.ops->fetch(f.backend, f.slot[1], f.host, PIECE, 0, COPY_DEMAND));
    f.ops->await(f.backend, back);
    assert_int_equal(f.ops->sync(f.backend, &err), LM_OK);
    for (int i = 0; i < PIECE; i++)
        assert_int_equal(f.host[PIECE + i], 0);
    assert_int_equal(read_trace(in, 1, STREAM_DEMAND, "copy_in"), 1);
    assert_int_equal(read_trace(out, 1, STREAM_BACK, "copy_out"), 1);
    assert_true(in[0].begin_us < out[0].end_us && out[0].begin_us < in[0].end_us);
    teardown(&f);
}

/* A download, as of a router's choice, does not wait for all that is written back. */
static void test_downloads_pass_between(void **state)
{
    (void)state;
    enum { MIB = 1 << 20, N_MIB = 40 };
    struct span back[N_MIB], download[1];
    uint8_t choice[64];
    uint8_t *const host = aligned_alloc(4096, N_MIB * MIB);
    struct backend *backend = create("0,1", NULL);
    const struct backend_ops *const ops = backend->ops;
    uint8_t *const from = ops->alloc(backend, N_MIB * MIB, &err);
    assert_int_equal(ops->pin(backend, host, N_MIB * MIB, &err), LM_OK);
    memset(host, 1, N_MIB * MIB);
    const uint64_t ticket = ops->write_back(backend, host, from, N_MIB * MIB);
    ops->download(backend, choice, from, sizeof(choice));
    assert_int_equal(ops->sync(backend, &err), LM_OK);
    assert_false(ops->fetched(backend, ticket));
    while (!ops->fetched(backend, ticket))
        ;
    assert_int_equal(host[0] | host[N_MIB * MIB - 1], 0);
    assert_int_equal(read_trace(back, N_MIB, STREAM_BACK, "copy_out"), N_MIB);
    assert_int_equal(read_trace(download, 1, STREAM_OPERATIONS, "copy_out"), 1);
    int n_before = 0;
    for (int i = 0; i < N_MIB; i++)
        n_before += back[i].begin_us < download[0].begin_us;
    assert_true(n_before <= 2);
    ops->unpin(backend, host);
    ops->free(backend, from);
    ops->destroy(backend);
    free(host);
}

/* ---- memory that is not pinned ---- */

static void test_any_memory_can_be_fetched(void **state)
{
    (void)state;
    enum { N_BYTES = 37 << 20 };
    const char *const times[] = {AS_LATE_AS_POSSIBLE, SLOW_KERNELS};
    uint8_t *const host = malloc(N_BYTES), *const got = malloc(N_BYTES);
    for (int i = 0; i < 2; i++) {
        struct backend *backend = create(times[i], NULL);
        const struct backend_ops *const ops = backend->ops;
        uint8_t *const to = ops->alloc(backend, N_BYTES, &err);
        uint64_t n_alloc = 0;
        for (int round = 0; round < 3; round++) {
            for (size_t k = 0; k < N_BYTES; k++)
                host[k] = (uint8_t)(k * 2654435761u >> (9 + round));
            const uint64_t ticket =
                ops->fetch(backend, to, host, N_BYTES, ops->mark(backend), COPY_DEMAND);
            while (!ops->fetched(backend, ticket))
                ;
            host[5]++; /* from here on it may change */
            ops->download(backend, got, to, N_BYTES);
            assert_int_equal(ops->sync(backend, &err), LM_OK);
            host[5]--;
            assert_memory_equal(got, host, N_BYTES);
            if (!round) n_alloc = backend_cuda_counters(backend)->n_alloc;
        }
        assert_int_equal(backend_cuda_counters(backend)->n_alloc, n_alloc);
        assert_int_equal(backend_cuda_counters(backend)->staged_bytes, 3ull * N_BYTES);
        ops->free(backend, to);
        ops->destroy(backend);
    }
    free(host);
    free(got);
}

/* Pieces that the system does not give: CUDA copies by itself. */
static void test_fetching_without_pinned_pieces(void **state)
{
    (void)state;
    uint8_t host[1000], got[1000];
    memset(host, 3, sizeof(host));
    struct backend *backend = create(AS_LATE_AS_POSSIBLE, "host:2"); /* the first is its own */
    uint8_t *const to = backend->ops->alloc(backend, sizeof(host), &err);
    backend->ops->await(backend,
                        backend->ops->fetch(backend, to, host, sizeof(host), 0, COPY_AHEAD));
    backend->ops->download(backend, got, to, sizeof(got));
    assert_int_equal(backend->ops->sync(backend, &err), LM_OK);
    assert_memory_equal(got, host, sizeof(host));
    backend->ops->free(backend, to);
    backend->ops->destroy(backend);
}

/* ---- pins ---- */

static void test_what_cannot_be_pinned_is_said(void **state)
{
    (void)state;
    enum { N_BYTES = 64 << 10 };
    struct rlimit limit, low;
    struct backend *backend = create(AS_LATE_AS_POSSIBLE, "host:2");
    uint8_t *const host = aligned_alloc(4096, N_BYTES);
    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
    low = limit;
    low.rlim_cur = 4096;
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &low), 0);
    assert_int_equal(backend->ops->pin(backend, host, N_BYTES, &err), LM_E_NO_MEM);
    assert_string_equal(err.message, "gpu 0: 65536 bytes of host memory cannot be page-locked: out "
                                     "of memory");
    assert_string_equal(err.hint,
                        "RLIMIT_MEMLOCK allows 4096 bytes: \"ulimit -l unlimited\" lifts it");
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    assert_int_equal(backend->ops->pin(backend, host, N_BYTES, &err), LM_OK);
    assert_int_equal(backend->ops->pin(backend, host + 4096, 4096, &err), LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "is already mapped"));
    backend->ops->unpin(backend, host);
    assert_int_equal(backend->ops->pin(backend, host + 4096, 4096, &err), LM_OK);
    backend->ops->destroy(backend); /* which unpins */
    backend = create(AS_LATE_AS_POSSIBLE, NULL);
    assert_int_equal(backend->ops->pin(backend, host, N_BYTES, &err), LM_OK);
    backend->ops->unpin(backend, host);
    assert_int_equal(backend->ops->sync(backend, &err), LM_OK);
    backend->ops->unpin(backend, host); /* twice */
    assert_int_equal(backend->ops->sync(backend, &err), LM_E_FAIL);
    backend->ops->destroy(backend);
    free(host);
}

static void test_read_only_mappings_can_be_pinned(void **state)
{
    (void)state;
    struct backend *backend = create(AS_LATE_AS_POSSIBLE, NULL);
    void *const memory = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_int_equal(backend->ops->pin(backend, memory, 8192, &err), LM_OK);
    backend->ops->unpin(backend, memory);
    assert_int_equal(backend->ops->sync(backend, &err), LM_OK);
    backend->ops->destroy(backend);
    munmap(memory, 8192);
}

/* Copies out of several pins, some half outside: pinned or not, the bytes are right. */
static void test_pins_in_any_order(void **state)
{
    (void)state;
    enum { PAGE = 4096, PAGES = 200 };
    uint8_t *const host = aligned_alloc(PAGE, PAGES * PAGE), *const got = malloc(2 * PAGE);
    for (int i = 0; i < PAGES * PAGE; i++)
        host[i] = (uint8_t)(i / PAGE * 31 + i);
    struct backend *backend = create(AS_LATE_AS_POSSIBLE, NULL);
    const struct backend_ops *const ops = backend->ops;
    const struct backend_cuda_counters *const c = backend_cuda_counters(backend);
    uint8_t *const to = ops->alloc(backend, 2 * PAGE, &err);
    for (int i = 0; i < PAGES; i++) /* every second page, from anywhere to anywhere */
        if (i * 77 % PAGES % 2)
            assert_int_equal(ops->pin(backend, host + i * 77 % PAGES * PAGE, PAGE, &err), LM_OK);
    for (int i = 0; i < PAGES - 2; i++) {
        const uint64_t staged_bytes = c->staged_bytes;
        const size_t n_bytes = i % 3 ? PAGE : PAGE + 1;
        const bool pinned = i % 2 && n_bytes == PAGE;
        ops->await(backend, ops->fetch(backend, to, host + i * PAGE, n_bytes, 0, COPY_DEMAND));
        assert_int_equal(c->staged_bytes - staged_bytes, pinned ? 0 : n_bytes);
        ops->download(backend, got, to, n_bytes);
        assert_int_equal(ops->sync(backend, &err), LM_OK);
        assert_memory_equal(got, host + i * PAGE, n_bytes);
    }
    ops->free(backend, to);
    ops->destroy(backend);
    free(host);
    free(got);
}

/* ---- failures ---- */

/* A device that is gone: copies are over, nothing hangs, sync says what happened. */
static void test_a_lost_device_hangs_nobody(void **state)
{
    (void)state;
    const char *const times[] = {AS_LATE_AS_POSSIBLE, SLOW_COPIES};
    for (int i = 0; i < 2; i++) {
        struct fixture f;
        uint64_t ticket[3 * N_PIECE];
        setup(&f, times[i], "lost:4");
        for (int k = 0; k < 3 * N_PIECE; k++) {
            ticket[k] = f.ops->fetch(f.backend, f.slot[k % N_SLOT], f.host, PIECE,
                                     f.ops->mark(f.backend), k % 2 ? COPY_AHEAD : COPY_DEMAND);
            if (k % 3 == 2)
                ticket[k] = f.ops->write_back(f.backend, f.host, f.slot[k % N_SLOT], PIECE);
            f.ops->await(f.backend, ticket[k]);
            f.ops->copy(f.backend, f.out, f.slot[k % N_SLOT], PIECE);
            assert_true(ticket[k] != 0);
        }
        for (int k = 0; k < 3 * N_PIECE; k++)
            for (int n = 0; !f.ops->fetched(f.backend, ticket[k]); n++)
                assert_true(n < 1000000);
        for (int n = 0; n < 2; n++) {
            assert_int_equal(f.ops->sync(f.backend, &err), LM_E_DEVICE_LOST);
            assert_non_null(strstr(err.message, "the device is lost"));
        }
        f.ops->start(f.backend);
        teardown(&f);
    }
}

/* Experts that nobody pinned are read by no kernel: it would be a fault on a device. */
static void test_kernels_read_pinned_memory_only(void **state)
{
    (void)state;
    enum { N_BYTES = 4096 };
    static const uint8_t remote[1] = {1};
    static const int32_t ids[1] = {0};
    for (int pinned = 0; pinned < 2; pinned++) {
        uint8_t *const host = aligned_alloc(4096, 3 * N_BYTES);
        memset(host, 1, 3 * N_BYTES);
        struct backend *backend = create(AS_LATE_AS_POSSIBLE, NULL);
        const struct backend_ops *const ops = backend->ops;
        const struct expert_view table[1] = {{host, host + N_BYTES, host + 2 * N_BYTES}};
        if (pinned) assert_int_equal(ops->pin(backend, host, 3 * N_BYTES, &err), LM_OK);
        struct expert_gather_args args = {.n_pair = 1,
                                          .n_expert = 1,
                                          .gate_bytes = N_BYTES,
                                          .up_bytes = N_BYTES,
                                          .down_bytes = N_BYTES,
                                          .n_room = 1};
        void *const memory[] = {args.room = ops->alloc(backend, 3 * N_BYTES, &err),
                                args.view = ops->alloc(backend, sizeof(table), &err),
                                ops->alloc(backend, sizeof(table), &err),
                                ops->alloc(backend, sizeof(remote), &err),
                                ops->alloc(backend, sizeof(ids), &err)};
        ops->upload(backend, memory[2], table, sizeof(table));
        ops->upload(backend, memory[3], remote, sizeof(remote));
        ops->upload(backend, memory[4], ids, sizeof(ids));
        args.table = memory[2];
        args.remote = memory[3];
        args.ids = memory[4];
        ops->gather_experts(backend, &args);
        const int saved = dup(STDERR_FILENO);
        FILE *const null = fopen("/dev/null", "w");
        dup2(fileno(null), STDERR_FILENO);
        const enum lm_status status = ops->sync(backend, &err);
        dup2(saved, STDERR_FILENO);
        close(saved);
        fclose(null);
        assert_int_equal(status, pinned ? LM_OK : LM_E_DEVICE_LOST);
        for (int i = 0; i < 5; i++)
            ops->free(backend, memory[i]);
        ops->destroy(backend);
        free(host);
    }
}

int main(void)
{
    snprintf(trace_path, sizeof(trace_path), "/tmp/lean-test-copies-%d", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_go_through_slots),
        cmocka_unit_test(test_a_missing_await_or_mark_is_seen),
        cmocka_unit_test(test_events_are_used_again),
        cmocka_unit_test(test_asking_is_enough),
        cmocka_unit_test(test_new_memory_is_zeroed_first),
        cmocka_unit_test(test_copies_run_beside_kernels),
        cmocka_unit_test(test_demand_goes_before_ahead),
        cmocka_unit_test(test_what_is_awaited_is_sent),
        cmocka_unit_test(test_slots_are_written_back),
        cmocka_unit_test(test_who_does_not_ask_is_seen),
        cmocka_unit_test(test_back_runs_beside_fetches),
        cmocka_unit_test(test_downloads_pass_between),
        cmocka_unit_test(test_any_memory_can_be_fetched),
        cmocka_unit_test(test_fetching_without_pinned_pieces),
        cmocka_unit_test(test_what_cannot_be_pinned_is_said),
        cmocka_unit_test(test_read_only_mappings_can_be_pinned),
        cmocka_unit_test(test_pins_in_any_order),
        cmocka_unit_test(test_a_lost_device_hangs_nobody),
        cmocka_unit_test(test_kernels_read_pinned_memory_only),
    };
    const int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(trace_path);
    return n_failed;
}
