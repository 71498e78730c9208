/* How busy a pipeline keeps its stages, on few cores.
 *
 *   mpirun -np N build/bench/bench_pipeline MODEL [--model-us 20000] [--tokens 64]
 *          [--sequences 1,2,4,8] [--slack 1]
 *
 * Everything is real, processes, messages, scheduler, a small model's arithmetic, but that for each
 * row of a step every stage waits besides, model-us / N in all: a processor that waits leaves the
 * core to other ranks, as a machine of its own would. So what is measured is what scheduling and
 * transport leave of S stages' speed.
 *
 * Prints tokens/s of all sequences together, and the efficiency: the share of min(N, sequences)
 * times 1 / model-us, to which the small model's own time counts as a loss. bench_schedule predicts
 * the same. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench_arguments.h"
#include "coordinator/sched/scheduler.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "proto/transport/world.h"
#include "worker/pipeline/pipeline.h"
#include "worker/pipeline/stage.h"

enum { N_SLOT = 16, N_CTX = 256, N_PROMPT = 4, CHUNK = 64 };

/* ---- a backend that waits ----------------------------------------------------------------- */

static struct {
    struct backend_ops ops;
    void (*ffn)(struct backend *backend, const struct ffn_args *args);
    double row_s; /* of one layer */
} slow;

static void wait_ffn(struct backend *backend, const struct ffn_args *args)
{
    const double seconds = slow.row_s * args->n_token;
    const struct timespec time = {(time_t)seconds,
                                  (long)((seconds - (double)(time_t)seconds) * 1e9)};
    slow.ffn(backend, args);
    nanosleep(&time, NULL);
}

/* ---- a rank ------------------------------------------------------------------------------- */

struct rank {
    struct world *world; /* NULL: one rank */
    uint32_t index, n_rank;
    struct gguf_file *file;
    struct hparams hp;
    struct backend *backend;
    struct expert_store *store;
    struct transport_edge *in, *out;
    struct worker *worker;
};

static void check(enum lm_status status, const struct lm_error *err)
{
    if (status == LM_OK) return;
    fprintf(stderr, "bench_pipeline: %s\n", err->message);
    exit(1);
}

static void open_rank(struct rank *rank, const char *path, double model_s)
{
    struct lm_error err = {.message = ""};
    const struct world_mpi_config mpi = {
        .startup_timeout_s = 60, .liveness_timeout_s = 5, .spin_us = 200};
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    rank->n_rank = 1;
    if (world_mpi_launched(&rank->index, &rank->n_rank) && rank->n_rank > 1)
        check(world_mpi_open(&rank->world, &mpi, &err), &err);
    check(gguf_open(&rank->file, path, &err), &err);
    check(hparams_read(&rank->hp, rank->file, &err), &err);
    const uint32_t n_layer = rank->hp.n_layer, n = rank->n_rank, i = rank->index;
    const uint32_t begin = i * n_layer / n, end = (i + 1) * n_layer / n;
    if (begin == end) check(lm_fail(&err, LM_E_USAGE, "%u ranks, %u layers", n, n_layer), &err);
    if (i > 0) check(rank->world->ops->edge_open(rank->world, false, &rank->in, &err), &err);
    if (i + 1 < n) check(rank->world->ops->edge_open(rank->world, true, &rank->out, &err), &err);
    check(backend_cpu_create(&rank->backend, &cpu, &err), &err);
    slow.ops = *rank->backend->ops;
    slow.ffn = slow.ops.ffn;
    slow.ops.ffn = wait_ffn;
    slow.row_s = model_s / n / (end - begin);
    rank->backend->ops = &slow.ops;
    check(expert_store_create(&rank->store, rank->file, &rank->hp, begin, end, &err), &err);
    const struct worker_config config = {.file = rank->file,
                                         .hp = &rank->hp,
                                         .store = rank->store,
                                         .backend = rank->backend,
                                         .layer_begin = begin,
                                         .layer_end = end,
                                         .in = rank->in,
                                         .out = rank->out,
                                         .n_slot = N_SLOT,
                                         .n_ctx = N_CTX,
                                         .n_position = N_SLOT * N_CTX,
                                         .n_batch = CHUNK + N_SLOT,
                                         .kv_type = TENSOR_F16};
    check(worker_create(&rank->worker, &config, &err), &err);
}

static void close_rank(struct rank *rank)
{
    worker_close(rank->worker, NULL);
    expert_store_destroy(rank->store);
    rank->backend->ops->destroy(rank->backend);
    if (rank->in) rank->in->ops->close(rank->in);
    if (rank->out) rank->out->ops->close(rank->out);
    if (rank->world) rank->world->ops->close(rank->world);
    gguf_close(rank->file);
}

/* ---- the measurement ---------------------------------------------------------------------- */

static bool on_token(void *context, const struct sampled_token *token)
{
    (void)token;
    ++*(uint64_t *)context;
    return true;
}

/* Tokens/s from the second token of each sequence to the last but one. */
static double measure(const struct step_runner *runner, uint32_t n_seq, uint32_t n_token)
{
    static const int32_t prompt[N_PROMPT] = {11, 22, 33, 44};
    struct request requests[N_SLOT];
    struct scheduler *scheduler;
    struct lm_error err = {.message = ""};
    uint64_t n_made = 0, n_before = 0;
    double begin_s = 0, end_s = 0;
    const struct scheduler_config config = {.runner = runner,
                                            .n_slot = N_SLOT,
                                            .n_ctx = N_CTX,
                                            .prefill_chunk = CHUNK,
                                            .can_cut = true};
    check(scheduler_create(&scheduler, &config, &err), &err);
    for (uint32_t i = 0; i < n_seq; i++) {
        requests[i] = (struct request){.prompt = prompt,
                                       .n_prompt = N_PROMPT,
                                       .n_max = n_token,
                                       .sampling = sampling_params_default(),
                                       .no_cache = true,
                                       .on_token = on_token,
                                       .context = &n_made};
        check(scheduler_submit(scheduler, &requests[i], &err), &err);
    }
    while (scheduler_step(scheduler)) {
        if (begin_s == 0 && n_made >= 2 * (uint64_t)n_seq) {
            begin_s = log_now_s();
            n_before = n_made;
        }
        if (end_s == 0 && n_made >= (uint64_t)(n_token - 1) * n_seq) {
            end_s = log_now_s();
            n_before = n_made - n_before;
        }
    }
    for (uint32_t i = 0; i < n_seq; i++)
        check(requests[i].status, &requests[i].error);
    scheduler_destroy(scheduler);
    return (double)n_before / (end_s - begin_s);
}

int main(int argc, char **argv)
{
    struct rank rank = {.n_rank = 1};
    struct lm_error err = {.message = ""};
    if (argc < 2) check(lm_fail(&err, LM_E_USAGE, "the model is missing"), &err);
    const double model_s = 1e-6 * number_argument(argc, argv, "--model-us", 20000);
    const uint32_t n_token = number_argument(argc, argv, "--tokens", 64);
    const char *at = text_argument(argc, argv, "--sequences", "1,2,4,8");
    if (n_token < 8 || n_token + N_PROMPT > N_CTX)
        check(lm_fail(&err, LM_E_USAGE, "--tokens: 8 to %d", N_CTX - N_PROMPT), &err);
    open_rank(&rank, argv[1], model_s);
    if (rank.index > 0) {
        check(stage_run(rank.world, rank.worker, &err), &err);
        close_rank(&rank);
        return 0;
    }
    struct pipeline *pipeline = NULL;
    const struct pipeline_config config = {.world = rank.world,
                                           .worker = rank.worker,
                                           .slack = number_argument(argc, argv, "--slack", 1)};
    if (rank.world) check(pipeline_create(&pipeline, &config, &err), &err);
    const struct step_runner runner =
        pipeline ? pipeline_runner(pipeline) : worker_runner(rank.worker);
    printf("ranks  sequences       tok/s  efficiency\n");
    while (*at) {
        char *rest;
        const uint32_t n_seq = (uint32_t)strtoul(at, &rest, 10);
        if (!n_seq || n_seq > N_SLOT || rest == at)
            check(lm_fail(&err, LM_E_USAGE, "--sequences: a list of 1 to %d", N_SLOT), &err);
        const double rate = measure(&runner, n_seq, n_token);
        const uint32_t most = rank.n_rank < n_seq ? rank.n_rank : n_seq;
        printf("%5u  %9u  %10.1f  %9.1f%%\n", rank.n_rank, n_seq, rate,
               100 * rate * model_s / most);
        fflush(stdout);
        at = *rest == ',' ? rest + 1 : rest;
    }
    pipeline_close(pipeline);
    close_rank(&rank);
    return 0;
}
