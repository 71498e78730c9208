/* Edges by NCCL between two emulated devices of this process, each rank a thread: what is sent
 * comes, in order, also when the receiver is late; what does not match never ends, and ends with an
 * abort. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/backend_cuda.h"
#include "proto/base/device_stream.h"
#include "proto/transport/transport_nccl.h"
#include "proto/transport/world.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/proto/transport/world_exercise.h"

enum { N_BYTES_MAX = 4096 * 4, N_MEMORY = 4 };

/* A rank: its device, and its end of the edge. */
struct end {
    struct world *world;
    struct nccl_library *nccl;
    struct nccl_id id;
    bool sending;
    struct backend *device;
    struct device_stream *stream;
    struct transport_edge *edge;
    void *memory[N_MEMORY]; /* of the device */
    enum lm_status opened;
    struct lm_error err;
    pthread_t thread;
};

static double connect_timeout_s = 20;

static void settings(const char *devices, const char *network)
{
    setenv("LEAN_EMU_DEVICES", devices, 1);
    setenv("LEAN_EMU_NCCL", network, 1);
}

static void *open_end(void *context)
{
    struct end *const end = context;
    const struct transport_nccl_config config = {.nccl = end->nccl,
                                                 .id = end->id,
                                                 .sending = end->sending,
                                                 .stream = end->stream,
                                                 .world = end->world,
                                                 .timeout_s = connect_timeout_s,
                                                 .memory = end->memory[0]};
    end->opened = transport_nccl_open(&end->edge, &config, &end->err);
    return NULL;
}

/* end[0] sends. devices: of the two. */
static void connect_both(struct end end[2], const uint32_t devices[2])
{
    struct lm_error err;
    struct world *world[2];
    memset(end, 0, 2 * sizeof(*end));
    assert_int_equal(world_loopback_create(world, 2, &err), LM_OK);
    for (int i = 0; i < 2; i++) {
        const struct backend_cuda_config config = {.plugin = CUDA_EMU_PLUGIN_FILE,
                                                   .device = devices[i]};
        end[i].world = world[i];
        end[i].sending = i == 0;
        assert_int_equal(backend_cuda_create(&end[i].device, &config, &err), LM_OK);
        assert_int_equal(backend_cuda_stream(end[i].device, &end[i].stream, &err), LM_OK);
        const char *const file = backend_cuda_nccl_file(end[i].device);
        assert_int_equal(nccl_library_open(&end[i].nccl, file, &err), LM_OK);
        for (int k = 0; k < N_MEMORY; k++)
            end[i].memory[k] = end[i].device->ops->alloc(end[i].device, N_BYTES_MAX, &err);
    }
    assert_int_equal(nccl_library_make_id(end[0].nccl, &end[0].id, &err), LM_OK);
    end[1].id = end[0].id;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&end[i].thread, NULL, open_end, &end[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(end[i].thread, NULL);
}

static void close_both(struct end end[2])
{
    for (int i = 0; i < 2; i++) {
        if (end[i].edge) end[i].edge->ops->close(end[i].edge);
        for (int k = 0; k < N_MEMORY; k++)
            end[i].device->ops->free(end[i].device, end[i].memory[k]);
        end[i].device->ops->destroy(end[i].device);
        nccl_library_close(end[i].nccl);
        end[i].world->ops->close(end[i].world);
    }
    settings("8.6", "");
}

static size_t size_of(int message)
{
    return message == 0 ? 16 : (size_t)(message * 977 % N_BYTES_MAX) / 16 * 16 + 16;
}

static void fill(uint8_t *bytes, int message)
{
    for (size_t i = 0; i < size_of(message); i++)
        bytes[i] = (uint8_t)(i * 31 + (size_t)message * 7);
}

enum { N_MESSAGE = 12 };

/* Two buffers take turns, each filled again as soon as it is free, by an operation that the
 * transfer has to wait for. */
static void *send_all(void *context)
{
    struct end *const end = context;
    const struct backend_ops *const ops = end->device->ops;
    uint8_t *const bytes = malloc(N_BYTES_MAX);
    for (int i = 0; i < N_MESSAGE; i++) {
        if (i >= 2) CHECK_OK(end->edge->ops->send_end(end->edge, &end->err), end->err);
        fill(bytes, i);
        ops->upload(end->device, end->memory[2], bytes, size_of(i));
        ops->copy(end->device, end->memory[i % 2], end->memory[2], size_of(i));
        CHECK_OK(end->edge->ops->send_begin(end->edge, end->memory[i % 2], size_of(i), &end->err),
                 end->err);
    }
    free(bytes);
    return NULL;
}

/* Two at a time through two buffers, each begun again when what was copied from it has been seen.
 */
static void *receive_all(void *context)
{
    struct end *const end = context;
    const struct backend_ops *const ops = end->device->ops;
    uint8_t *const wanted = malloc(N_BYTES_MAX), *const got[] = {malloc(N_BYTES_MAX),
                                                                 malloc(N_BYTES_MAX)};
    for (int i = 0; i < N_MESSAGE; i++) {
        void *const come = end->memory[i % 2], *const kept = end->memory[2 + i % 2];
        if (i % 3 == 0) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        CHECK_OK(end->edge->ops->recv_begin(end->edge, come, size_of(i), &end->err), end->err);
        CHECK_OK(end->edge->ops->recv_end(end->edge, &end->err), end->err);
        ops->copy(end->device, kept, come, size_of(i)); /* waits on the device */
        ops->download(end->device, got[i % 2], kept, size_of(i));
        if (i % 2 == 0) continue;
        CHECK_OK(ops->sync(end->device, &end->err), end->err);
        for (int k = i - 1; k <= i; k++) {
            fill(wanted, k);
            CHECK(!memcmp(got[k % 2], wanted, size_of(k)), "message %d", k);
        }
    }
    free(wanted);
    free(got[0]);
    free(got[1]);
    return NULL;
}

static void test_all_arrives_in_order(void **state)
{
    (void)state;
    static const char *const networks[] = {"", "delay:2,rate:1000000"};
    for (int i = 0; i < 2; i++) {
        struct end end[2];
        settings("8.6,9.0", networks[i]);
        connect_both(end, (uint32_t[]){0, 1});
        for (int k = 0; k < 2; k++)
            assert_int_equal(end[k].opened, LM_OK);
        pthread_create(&end[0].thread, NULL, send_all, &end[0]);
        pthread_create(&end[1].thread, NULL, receive_all, &end[1]);
        for (int k = 0; k < 2; k++)
            pthread_join(end[k].thread, NULL);
        close_both(end);
    }
}

/* Pieces of work of a kind that the emulated devices have done. */
static uint32_t n_done(const char *trace_path, const char *kind)
{
    char line[256];
    uint32_t n = 0;
    FILE *const trace = fopen(trace_path, "r");
    assert_non_null(trace);
    while (fgets(line, sizeof(line), trace))
        n += strstr(line, kind) != NULL;
    fclose(trace);
    return n;
}

/* A receive does not wait for operations that were called before it, nor they for it. */
static void test_the_next_arrives_beside_operations(void **state)
{
    (void)state;
    struct end end[2];
    struct lm_error err;
    char path[] = "/tmp/test_nccl_XXXXXX";
    const struct timespec a_while = {.tv_nsec = 1000000};
    const int fd = mkstemp(path);
    bool reached = false;
    settings("8.6,8.6", "delay:2");
    setenv("LEAN_EMU_TRACE", path, 1);
    connect_both(end, (uint32_t[]){0, 1});
    struct transport_edge *const out = end[0].edge, *const in = end[1].edge;
    struct backend *const device = end[1].device;
    for (int i = 0; i < 2; i++)
        assert_int_equal(out->ops->send_begin(out, end[0].memory[i], 64, &err), LM_OK);
    assert_int_equal(in->ops->recv_begin(in, end[1].memory[0], 64, &err), LM_OK);
    assert_int_equal(in->ops->recv_end(in, &err), LM_OK);
    device->ops->rms_norm(device, end[1].memory[0], end[1].memory[2], 1, 1, 16, end[1].memory[3]);
    device->ops->start(device);
    assert_int_equal(in->ops->recv_begin(in, end[1].memory[1], 64, &err), LM_OK);
    const uint64_t point = end[1].stream->ops->mark(end[1].stream);
    alarm(20);
    while (!reached) {
        nanosleep(&a_while, NULL);
        assert_int_equal(end[1].stream->ops->reached(end[1].stream, point, &reached, &err), LM_OK);
    }
    alarm(0);
    assert_int_equal(n_done(path, " kernel "), 0);
    assert_int_equal(device->ops->sync(device, &err), LM_OK);
    assert_int_equal(n_done(path, " kernel "), 1);
    close_both(end);
    unsetenv("LEAN_EMU_TRACE");
    close(fd);
    unlink(path);
}

/* Of what is under way when one end is aborted nothing comes; both go on to their ends. */
static void check_stuck(struct end end[2], size_t n_sent, size_t n_expected)
{
    struct transport_edge *const out = end[0].edge, *const in = end[1].edge;
    const struct timespec a_while = {.tv_nsec = 50000000};
    struct lm_error err;
    bool reached = true;
    assert_int_equal(out->ops->send_begin(out, end[0].memory[0], n_sent, &err), LM_OK);
    const uint64_t point = end[0].stream->ops->mark(end[0].stream);
    if (n_expected)
        assert_int_equal(in->ops->recv_begin(in, end[1].memory[0], n_expected, &err), LM_OK);
    nanosleep(&a_while, NULL);
    assert_int_equal(end[0].stream->ops->reached(end[0].stream, point, &reached, &err), LM_OK);
    assert_false(reached);
    out->ops->abort(out);
    assert_int_equal(out->ops->send_end(out, &err), LM_E_RANK_LOST);
    assert_int_equal(out->ops->send_begin(out, end[0].memory[0], n_sent, &err), LM_E_RANK_LOST);
    assert_string_equal(err.message, "edge was aborted");
    in->ops->abort(in); /* as the guard does on the other rank */
    assert_int_equal(end[1].device->ops->sync(end[1].device, &err), LM_OK);
}

static void test_what_does_not_match_never_ends(void **state)
{
    (void)state;
    static const size_t n_bytes[][2] = {{64, 128}, {64, 0}};
    for (int i = 0; i < 2; i++) {
        struct end end[2];
        settings("8.6,8.6", "");
        connect_both(end, (uint32_t[]){0, 1});
        assert_int_equal(end[0].opened, LM_OK);
        check_stuck(end, n_bytes[i][0], n_bytes[i][1]);
        close_both(end);
    }
}

/* A job that is lost ends the wait for a partner. */
static void test_a_lost_job(void **state)
{
    (void)state;
    struct end end[2];
    struct lm_error err, why;
    settings("8.6,8.6", "lose:3"); /* the first two connect */
    connect_both(end, (uint32_t[]){0, 1});
    struct transport_edge *const out = end[0].edge;
    assert_int_equal(out->ops->send_begin(out, end[0].memory[0], 64, &err), LM_OK);
    lm_fail(&why, LM_E_FAIL, "out of luck");
    end[1].world->ops->abort(end[1].world, &why);
    assert_int_equal(out->ops->send_end(out, &err), LM_E_RANK_LOST);
    assert_non_null(strstr(err.message, "rank 1 (a thread of this process): out of luck"));
    close_both(end);
}

/* What NCCL finds out by itself ends the wait, when nobody else has found it. */
static void test_an_error_of_nccl(void **state)
{
    (void)state;
    struct end end[2];
    struct lm_error err;
    settings("8.6,8.6", "error:3"); /* the first two connect */
    connect_both(end, (uint32_t[]){0, 1});
    struct transport_edge *const out = end[0].edge;
    alarm(20); /* it waits for ever */
    assert_int_equal(out->ops->send_begin(out, end[0].memory[0], 64, &err), LM_OK);
    assert_int_equal(out->ops->send_end(out, &err), LM_E_FAIL);
    alarm(0);
    assert_string_equal(err.message, "NCCL: remote process exited or there was a network error: "
                                     "the other rank is gone");
    assert_int_equal(out->ops->send_begin(out, end[0].memory[0], 64, &err), LM_E_FAIL);
    close_both(end);
}

static void test_what_cannot_be_connected(void **state)
{
    (void)state;
    static const struct {
        uint32_t devices[2];
        const char *network, *text;
    } cases[] = {{{0, 0}, "", "the two ranks are on the same device"},
                 {{0, 1}, "refuse", "the other rank does not answer"}};
    for (int i = 0; i < 2; i++) {
        struct end end[2];
        settings("8.6,8.6", cases[i].network);
        connect_both(end, cases[i].devices);
        for (int k = 0; k < 2; k++) {
            assert_int_equal(end[k].opened, LM_E_FAIL);
            assert_non_null(strstr(end[k].err.message, cases[i].text));
        }
        close_both(end);
    }
}

/* The first message never arrives. */
static void test_connecting_takes_no_longer_than_it_may(void **state)
{
    (void)state;
    struct end end[2];
    settings("8.6,8.6", "lose:1");
    connect_timeout_s = 0.5;
    alarm(20);
    connect_both(end, (uint32_t[]){0, 1});
    for (int k = 0; k < 2; k++) {
        assert_int_equal(end[k].opened, LM_E_RANK_LOST);
        assert_string_equal(end[k].err.message, "NCCL did not come to an end within 0.5 s");
    }
    close_both(end);
    alarm(0);
    connect_timeout_s = 20;
}

static void test_no_library(void **state)
{
    (void)state;
    struct nccl_library *nccl;
    struct lm_error err;
    assert_int_equal(nccl_library_open(&nccl, "libnccl-none.so.2", &err), LM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "libnccl-none.so.2: cannot open shared object file"));
    assert_int_equal(nccl_library_open(&nccl, "libm.so.6", &err), LM_E_UNSUPPORTED);
    assert_string_equal(err.message, "NCCL: libm.so.6 has no ncclGetVersion");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_arrives_in_order),
        cmocka_unit_test(test_the_next_arrives_beside_operations),
        cmocka_unit_test(test_what_does_not_match_never_ends),
        cmocka_unit_test(test_a_lost_job),
        cmocka_unit_test(test_an_error_of_nccl),
        cmocka_unit_test(test_what_cannot_be_connected),
        cmocka_unit_test(test_connecting_takes_no_longer_than_it_may),
        cmocka_unit_test(test_no_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
