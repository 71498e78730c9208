/* One hop of the pipeline: time and bandwidth of an edge under MPI, against MPI itself in the same
 * run.
 *
 *   mpirun -np 2 --bind-to none bench_hop
 *
 * Rank 0 sends, rank 1 has posted the receive before. The raw side is MPI_Isend, MPI_Irecv and
 * MPI_Test without a pause, the plugin's own. Times go from the call that sends to the end of the
 * wait that receives, by the clock of the one machine on which both ranks must be.
 *
 *   busy    the receiver has waited for 30 us
 *   idle    for 10 ms: an edge's receiver sleeps by then, the raw one still tests
 *   stream  32 messages, four under way at a time */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/transport/mpi/mpi_plugin.h"
#include "proto/transport/world.h"

enum { N_SAMPLE_MAX = 2000, N_STREAM = 32, STREAM_DEPTH = 4 };

/* What both ranks see: whose turn it is, beside MPI, so that pacing costs the measured path
 * nothing. */
struct shared {
    atomic_uint n_joined, n_posted;
    _Atomic double sent_s;
};

struct bench {
    struct world *world;
    struct transport_edge *edge;
    const struct mpi_plugin *mpi;
    struct shared *shared;
    uint8_t *buffer[STREAM_DEPTH];
    unsigned n_turn;
};

static void check(enum lm_status status, const struct lm_error *err)
{
    if (status == LM_OK) return;
    fprintf(stderr, "bench_hop: %s\n", err->message);
    exit(lm_exit_code(status));
}

/* The two ways to move a message; request is used by the raw one. */
static void begin(struct bench *b, bool raw, size_t i, size_t n, struct mpi_handle *request)
{
    struct lm_error err;
    const bool sending = b->world->rank == 0;
    uint8_t *buffer = b->buffer[i];
    enum lm_status status;
    if (raw)
        status = sending ? b->mpi->send(MPI_CHANNEL_EDGES, 1, buffer, n, request, &err)
                         : b->mpi->recv(MPI_CHANNEL_EDGES, 0, buffer, n, request, &err);
    else
        status = sending ? b->edge->ops->send_begin(b->edge, buffer, n, &err)
                         : b->edge->ops->recv_begin(b->edge, buffer, n, &err);
    check(status, &err);
}

static void end(struct bench *b, bool raw, struct mpi_handle *request)
{
    struct lm_error err;
    if (!raw) {
        check(b->world->rank == 0 ? b->edge->ops->send_end(b->edge, &err)
                                  : b->edge->ops->recv_end(b->edge, &err),
              &err);
        return;
    }
    for (bool done = false; !done;)
        check(b->mpi->test(request, &done, NULL, &err), &err);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct result {
    double p50_us, p99_us;
};

/* Rank 1's result counts. */
static struct result measure(struct bench *b, bool raw, size_t n_bytes, unsigned n, bool idle)
{
    static double us[N_SAMPLE_MAX];
    struct shared *shared = b->shared;
    for (unsigned i = 0; i < n; i++) {
        struct mpi_handle request;
        const unsigned turn = ++b->n_turn;
        if (b->world->rank == 0) {
            while (atomic_load(&shared->n_posted) < turn)
                sched_yield();
            const double go_s = log_now_s() + (idle ? 10e-3 : 30e-6);
            if (idle) usleep(10000);
            while (log_now_s() < go_s)
                ;
            atomic_store(&shared->sent_s, log_now_s());
            begin(b, raw, 0, n_bytes, &request);
            end(b, raw, &request);
        } else {
            begin(b, raw, 0, n_bytes, &request);
            atomic_store(&shared->n_posted, turn);
            end(b, raw, &request);
            us[i] = 1e6 * (log_now_s() - atomic_load(&shared->sent_s));
        }
    }
    qsort(us, n, sizeof(us[0]), ascending);
    return (struct result){us[n / 2], us[(size_t)(0.99 * (n - 1))]};
}

/* GB/s, at rank 1. */
static double stream(struct bench *b, bool raw, size_t n_bytes)
{
    struct mpi_handle request[STREAM_DEPTH];
    const unsigned turn = ++b->n_turn;
    const bool sending = b->world->rank == 0;
    if (sending)
        while (atomic_load(&b->shared->n_posted) < turn)
            sched_yield();
    double began_s = 0;
    for (unsigned i = 0; i < N_STREAM + STREAM_DEPTH; i++) {
        if (i >= STREAM_DEPTH) end(b, raw, &request[i % STREAM_DEPTH]);
        if (i == STREAM_DEPTH) began_s = log_now_s(); /* the first has come */
        if (i < N_STREAM) begin(b, raw, i % STREAM_DEPTH, n_bytes, &request[i % STREAM_DEPTH]);
        if (!sending && i == STREAM_DEPTH - 1) atomic_store(&b->shared->n_posted, turn);
    }
    return 1e-9 * (double)(n_bytes * (N_STREAM - 1)) / (log_now_s() - began_s);
}

/* Ranks of one mpirun have one parent, after which the memory is named. */
static struct shared *share(uint32_t rank)
{
    char name[64];
    snprintf(name, sizeof(name), "/lean_bench_hop.%d", getppid());
    const int fd = shm_open(name, O_CREAT | O_RDWR, 0600);
    void *memory = MAP_FAILED;
    if (fd >= 0 && !ftruncate(fd, sizeof(struct shared)))
        memory = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "bench_hop: no shared memory\n");
        exit(1);
    }
    close(fd);
    struct shared *shared = memory;
    atomic_fetch_add(&shared->n_joined, 1);
    for (int i = 0; atomic_load(&shared->n_joined) < 2; i++) {
        usleep(1000);
        if (i == 10000) {
            fprintf(stderr, "bench_hop: both ranks must be on one machine\n");
            shm_unlink(name);
            exit(2);
        }
    }
    if (rank == 1) shm_unlink(name);
    return shared;
}

static void print_size(size_t n_bytes)
{
    char text[24];
    printf("| %s ", log_format_bytes(n_bytes, text));
}

int main(void)
{
    struct lm_error err;
    struct bench bench = {0};
    const struct world_mpi_config config = {
        .startup_timeout_s = 60, .liveness_timeout_s = 60, .spin_us = 200};
    check(world_mpi_open(&bench.world, &config, &err), &err);
    if (bench.world->n_rank != 2) {
        fprintf(stderr, "bench_hop: wants 2 ranks: mpirun -np 2 bench_hop\n");
        return 2;
    }
    const struct plugin_head *head; /* the table that the world uses, too */
    check(plugin_open(&head, MPI_PLUGIN_FILE, sizeof(*bench.mpi), &err), &err);
    bench.mpi = (const struct mpi_plugin *)head;
    const bool printing = bench.world->rank == 1;
    check(bench.world->ops->edge_open(bench.world, !printing, &bench.edge, &err), &err);
    bench.shared = share(bench.world->rank);
    static const size_t sizes[] = {8,        4 << 10, 8 << 10, 16 << 10,
                                   64 << 10, 1 << 20, 4 << 20, 32 << 20};
    for (int i = 0; i < STREAM_DEPTH; i++) {
        bench.buffer[i] = malloc(32 << 20);
        if (!bench.buffer[i]) return 1;
        memset(bench.buffer[i], i, 32 << 20);
    }
    if (printing)
        printf("| size | busy p50 us, raw | edge | busy p99 us, raw | edge | idle p50 us, raw | "
               "edge | "
               "idle p99 us, raw | edge | stream GB/s, raw | edge |\n"
               "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const size_t n = sizes[i];
        const unsigned n_sample = n < 1 << 20 ? N_SAMPLE_MAX : n < 32 << 20 ? 300 : 40;
        struct result busy[2], idle[2];
        double rate[2] = {0};
        for (int raw = 1; raw >= 0; raw--) {
            measure(&bench, raw, n, 20, false);
            busy[raw] = measure(&bench, raw, n, n_sample, false);
            idle[raw] =
                measure(&bench, raw, n, n_sample / 10 < 30 ? n_sample / 10 + 10 : 100, true);
            for (int round = 0; round < 3; round++) {
                const double r = stream(&bench, raw, n);
                if (r > rate[raw]) rate[raw] = r;
            }
        }
        if (!printing) continue;
        print_size(n);
        printf("| %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.2f | %.2f |\n",
               busy[1].p50_us, busy[0].p50_us, busy[1].p99_us, busy[0].p99_us, idle[1].p50_us,
               idle[0].p50_us, idle[1].p99_us, idle[0].p99_us, rate[1], rate[0]);
        fflush(stdout);
    }
    for (int i = 0; i < STREAM_DEPTH; i++)
        free(bench.buffer[i]);
    bench.edge->ops->close(bench.edge);
    bench.world->ops->close(bench.world);
    return 0;
}
