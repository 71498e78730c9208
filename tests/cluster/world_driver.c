/* One rank of a job that test_world_mpi.py starts under mpirun. What it has to say goes behind the
 * file $SAID: mpirun passes on no output for a second while it ends a job.
 *
 *   world_driver exercise SEED N_FRAME N_MESSAGE   world_exercise.h on every rank
 *   world_driver wait [RANK TEXT]     one thread waits for a frame and, where there is a rank
 * before, another for a message; both print why they were told not to. After 300 ms RANK aborts
 * with TEXT world_driver idle SECONDS         sleeps in recv, then prints the CPU time of those
 * seconds */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "tests/unit/proto/transport/world_exercise.h"

static int exercise(struct world *world, char **argv)
{
    struct exercise all = {.world = world,
                           .seed = (uint32_t)atoi(argv[2]),
                           .n_frame = (uint32_t)atoi(argv[3]),
                           .n_message = (uint32_t)atoi(argv[4])};
    exercise_run(&all);
    world->ops->close(world);
    return 0;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    FILE *file = fopen(getenv("SAID"), "a");
    CHECK(file, "SAID");
    va_list args;
    va_start(args, format);
    vfprintf(file, format, args);
    va_end(args);
    fclose(file); /* one write */
}

static void say_loss(const struct world *world, const char *who, const struct lm_error *err)
{
    say("rank %u %s: %s: %s at %.6f\n", world->rank, who, lm_status_name(err->status), err->message,
        log_now_s());
}

static void *wait_for_message(void *context)
{
    struct world *world = context;
    struct lm_error err;
    struct transport_edge *edge;
    char byte;
    CHECK_OK(world->ops->edge_open(world, false, &edge, &err), err);
    enum lm_status status = edge->ops->recv_begin(edge, &byte, 1, &err);
    if (status == LM_OK) status = edge->ops->recv_end(edge, &err);
    CHECK(status != LM_OK, "a message");
    say_loss(world, "edge", &err);
    edge->ops->close(edge);
    return NULL;
}

static int wait_for_loss(struct world *world, int argc, char **argv)
{
    struct lm_error err;
    struct frame *frame;
    pthread_t thread;
    signal(SIGTERM,
           SIG_IGN); /* mpirun's, when it has noticed itself: kill follows a second later */
    say("rank %u ready %d\n", world->rank, getpid());
    if (world->rank > 0) pthread_create(&thread, NULL, wait_for_message, world);
    if (argc > 3 && world->rank == (uint32_t)atoi(argv[2])) {
        usleep(300000);
        struct lm_error why;
        lm_fail(&why, LM_E_IO, "%s", argv[3]);
        world->ops->abort(world, &why);
    }
    CHECK(world->ops->recv(world, -1, &frame, &err) != LM_OK, "a frame");
    say_loss(world, "frames", &err);
    if (world->rank > 0) pthread_join(thread, NULL);
    world->ops->close(world);
    return 11;
}

/* Gives to the rank behind what it takes from the one before, and rank 0 and the last do half of
 * it. */
static void *storm_over_edges(void *context)
{
    struct world *world = context;
    struct lm_error err;
    struct transport_edge *in = NULL, *out = NULL;
    uint8_t *buffer = malloc(1 << 20);
    if (world->rank > 0) CHECK_OK(world->ops->edge_open(world, false, &in, &err), err);
    if (world->rank + 1 < world->n_rank)
        CHECK_OK(world->ops->edge_open(world, true, &out, &err), err);
    enum lm_status status = LM_OK;
    for (size_t n = 1; status == LM_OK; n = n % (1 << 20) * 3 + 1) {
        const size_t n_bytes = n < 1 << 20 ? n : 1 << 20;
        if (in && status == LM_OK) status = in->ops->recv_begin(in, buffer, n_bytes, &err);
        if (in && status == LM_OK) status = in->ops->recv_end(in, &err);
        if (out && status == LM_OK) status = out->ops->send_begin(out, buffer, n_bytes, &err);
        if (out && status == LM_OK) status = out->ops->send_end(out, &err);
    }
    say_loss(world, "edge", &err);
    return NULL; /* the buffer may still be written into */
}

static int storm(struct world *world)
{
    struct lm_error err;
    pthread_t thread;
    static uint8_t payload[200000];
    signal(SIGTERM, SIG_IGN);
    CHECK(!pthread_create(&thread, NULL, storm_over_edges, world), "no thread");
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; status == LM_OK; i++) {
        struct frame *frame;
        const uint32_t to = (world->rank + 1 + i % (world->n_rank - 1)) % world->n_rank;
        status = world->ops->send(world, to, 1, payload, i * 7919 % sizeof(payload), &err);
        /* As many come as go, but for what is under way. */
        while (status == LM_OK &&
               (status = world->ops->recv(world, i > 50 ? 10 : 0, &frame, &err)) == LM_OK) {
            free(frame);
            if (i > 50) break;
        }
        if (status == LM_E_BUSY) status = LM_OK;
        if (i == 100) say("rank %u ready %d\n", world->rank, getpid());
    }
    say_loss(world, "frames", &err);
    pthread_join(thread, NULL);
    world->ops->close(world);
    return 11;
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static int idle(struct world *world, double seconds)
{
    struct lm_error err;
    struct frame *frame;
    /* Something has gone everywhere before. */
    struct exercise all = {.world = world, .seed = 1, .n_frame = 20, .n_message = 20};
    exercise_run(&all);
    const double before_s = cpu_s();
    CHECK(world->ops->recv(world, seconds, &frame, &err) == LM_E_BUSY, "a frame");
    say("rank %u idle %.6f\n", world->rank, cpu_s() - before_s);
    world->ops->close(world);
    return 0;
}

int main(int argc, char **argv)
{
    struct lm_error err;
    struct world *world;
    const struct world_mpi_config config = {
        .startup_timeout_s = 60, .liveness_timeout_s = 5, .spin_us = 200};
    if (world_mpi_open(&world, &config, &err) != LM_OK) {
        fprintf(stderr, "world_driver: %s: %s (%s)\n", lm_status_name(err.status), err.message,
                err.hint);
        return lm_exit_code(err.status);
    }
    if (argc == 5 && !strcmp(argv[1], "exercise")) return exercise(world, argv);
    if (argc >= 2 && !strcmp(argv[1], "wait")) return wait_for_loss(world, argc, argv);
    if (argc == 2 && !strcmp(argv[1], "storm")) return storm(world);
    if (argc == 3 && !strcmp(argv[1], "idle")) return idle(world, atof(argv[2]));
    return 2;
}
