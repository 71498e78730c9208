/* What one device can show of NCCL: the library opens, a communicator of one rank comes about
 * without blocking, a grouped send and receive of the rank to itself goes between operations of the
 * backend, and an aborted communicator leaves nothing behind on its stream.
 *
 *   check_nccl [--backend cuda|cuda-emu]     default: the emulator, which has the interface, too
 *
 * Without a device of NCCL's it still opens NCCL itself where that is installed, and takes an id.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend_cuda.h"
#include "proto/base/device_stream.h"
#include "proto/base/log.h"
#include "proto/transport/nccl_library.h"

enum { N_FLOAT = 1 << 18, TIMEOUT_S = 60 };

static void expect(bool true_, const char *what)
{
    if (true_) return;
    printf("FAILED: %s\n", what);
    exit(1);
}

static void expect_ok(enum lm_status status, const struct lm_error *err)
{
    expect(status == LM_OK, status == LM_OK ? "" : err->message);
}

static void pause_1ms(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* NCCL itself; whatever device there is or is not. */
static void open_library(void)
{
    struct nccl_library *nccl;
    struct nccl_id id = {{0}}, zero = {{0}};
    struct lm_error err;
    if (nccl_library_open(&nccl, "libnccl.so.2", &err) != LM_OK) {
        printf("NCCL is not opened: %s\n", err.message);
        return;
    }
    expect_ok(nccl_library_make_id(nccl, &id, &err), &err);
    expect(memcmp(&id, &zero, sizeof(id)), "an id of NCCL is not empty");
    printf("NCCL %d opens, and makes an id\n", nccl->version);
    nccl_library_close(nccl);
}

/* Until what was begun is done. */
static void settle(const struct nccl_library *nccl, struct nccl_comm *comm, int result)
{
    struct lm_error err;
    const double end_s = log_now_s() + TIMEOUT_S;
    while (result == NCCL_IN_PROGRESS && log_now_s() < end_s) {
        pause_1ms();
        if (nccl->comm_get_async_error(comm, &result) != NCCL_SUCCESS) break;
    }
    expect_ok(result == NCCL_SUCCESS ? LM_OK : nccl_library_fail(nccl, result, "NCCL", comm, &err),
              &err);
}

static void wait_stream(struct device_stream *stream)
{
    struct lm_error err;
    bool reached = false;
    const uint64_t point = stream->ops->mark(stream);
    const double end_s = log_now_s() + TIMEOUT_S;
    while (!reached && log_now_s() < end_s) {
        expect_ok(stream->ops->reached(stream, point, &reached, &err), &err);
        if (!reached) pause_1ms();
    }
    expect(reached, "the stream comes to its end");
}

static struct nccl_comm *connect_alone(const struct nccl_library *nccl,
                                       struct device_stream *stream)
{
    struct lm_error err;
    struct nccl_id id;
    struct nccl_comm *comm = NULL;
    struct nccl_config config = NCCL_CONFIG_NONE;
    config.blocking = 0;
    config.max_ctas = 2;
    expect_ok(nccl_library_make_id(nccl, &id, &err), &err);
    stream->ops->after_operations(stream);
    const int result = nccl->comm_init_rank_config(&comm, 1, id, 0, &config);
    settle(nccl, comm, result);
    return comm;
}

/* Operations before and behind a transfer see what they should. */
static void send_to_self(struct backend *backend, const struct nccl_library *nccl,
                         struct nccl_comm *comm, struct device_stream *stream)
{
    const struct backend_ops *const ops = backend->ops;
    struct lm_error err;
    float *const host = malloc(N_FLOAT * sizeof(*host)), *const back =
                                                             calloc(N_FLOAT, sizeof(*back));
    float *const x = ops->alloc(backend, N_FLOAT * sizeof(*x), &err);
    float *const y = ops->alloc(backend, N_FLOAT * sizeof(*y), &err);
    float *const z = ops->alloc(backend, N_FLOAT * sizeof(*z), &err);
    expect(host && back && x && y && z, "memory");
    for (int round = 0; round < 4; round++) {
        const size_t n = round ? (size_t)N_FLOAT >> (2 * round) : 1, n_bytes = n * sizeof(*x);
        for (size_t i = 0; i < n; i++)
            host[i] = (float)(i * 7 + (size_t)round) * 0.25f;
        ops->upload(backend, z, host, n_bytes);
        ops->copy(backend, x, z, n_bytes);
        stream->ops->after_operations(stream);
        expect(nccl->group_start() == NCCL_SUCCESS, "ncclGroupStart");
        settle(nccl, comm, nccl->send(x, n_bytes, NCCL_INT8, 0, comm, stream->handle));
        settle(nccl, comm, nccl->recv(y, n_bytes, NCCL_INT8, 0, comm, stream->handle));
        settle(nccl, comm, nccl->group_end());
        stream->ops->before_operations(stream, stream->ops->mark(stream));
        ops->copy(backend, z, y, n_bytes);
        ops->download(backend, back, z, n_bytes);
        expect_ok(ops->sync(backend, &err), &err);
        expect(!memcmp(host, back, n_bytes), "what was received is what was sent");
    }
    ops->free(backend, x);
    ops->free(backend, y);
    ops->free(backend, z);
    free(host);
    free(back);
}

int main(int argc, char **argv)
{
    const bool real = argc == 3 && !strcmp(argv[1], "--backend") && !strcmp(argv[2], "cuda");
    const struct backend_cuda_config config = {.plugin = real ? NULL : CUDA_EMU_PLUGIN_FILE};
    struct backend *backend;
    struct device_stream *stream;
    struct nccl_library *nccl;
    struct lm_error err;
    open_library();
    expect_ok(backend_cuda_create(&backend, &config, &err), &err);
    expect_ok(backend_cuda_stream(backend, &stream, &err), &err);
    if (nccl_library_open(&nccl, backend_cuda_nccl_file(backend), &err) != LM_OK) {
        printf("not run: %s\n", err.message);
        backend->ops->destroy(backend);
        return !real;
    }
    struct nccl_comm *comm = connect_alone(nccl, stream);
    send_to_self(backend, nccl, comm, stream);
    expect(nccl->comm_abort(comm) == NCCL_SUCCESS, "ncclCommAbort");
    wait_stream(stream);
    comm = connect_alone(nccl, stream);
    send_to_self(backend, nccl, comm, stream);
    wait_stream(stream);
    expect(nccl->comm_destroy(comm) == NCCL_SUCCESS, "ncclCommDestroy");
    backend->ops->destroy(backend);
    printf("NCCL %d: one rank, sends to itself, abort\n", nccl->version);
    nccl_library_close(nccl);
    return 0;
}
