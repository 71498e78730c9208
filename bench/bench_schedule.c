/* The schedule of a pipeline of any length: the real scheduler over simulated stages.
 *
 *   bench_schedule [--ranks 1,2,4,8,16,64,256,1000] [--sequences 1,2,4,8,16,64,256,1000]
 *                  [--model-us 10000] [--row-us 30000] [--hop-us 20] [--return-us 50] [--slack 1]
 *                  [--jitter 0] [--tokens 64]
 *
 * A model's step takes model-us + row-us for each row, in equal parts on every stage; jitter is the
 * percentage by which a stage's time varies, evenly, up and down. hop-us is what activations take
 * from stage to stage, return-us what tokens take to rank 0: bench_hop measures both. Time is
 * counted, not waited for.
 *
 * Prints for each number of ranks and sequences: tokens/s together, relative to one rank with as
 * many sequences, the share of the lesser of ranks and sequences that this is, which is what
 * overlap alone could give, and how long a sequence waits for a token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_arguments.h"
#include "coordinator/sched/scheduler.h"

enum { LIST_MAX = 32, N_PROMPT = 4, N_CTX_BEYOND = 8 };

struct costs {
    double model_s, row_s, hop_s, return_s, jitter;
    uint32_t slack, n_token;
};

/* A pipeline in simulated time. */
struct pipeline {
    const struct costs *costs;
    uint32_t n_rank, n_held;
    double now_s;
    double *free_s; /* [n_rank] when each stage has done what it was given */
    double *ends_s; /* [depth] ring: when the tokens of a step are back */
    uint32_t depth;
    uint64_t n_begun, n_ended;
    uint32_t seed;
};

static double draw(struct pipeline *pipeline)
{
    pipeline->seed = pipeline->seed * 1664525u + 1013904223u;
    return (pipeline->seed >> 8) / (double)(1 << 24);
}

static enum lm_status begin(void *context, const struct step_plan *plan,
                            struct sampled_token *sampled, struct lm_error *err)
{
    struct pipeline *pipeline = context;
    const struct costs *costs = pipeline->costs;
    double at_s = pipeline->now_s;
    uint32_t n_row = 0;
    (void)err;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        n_row += plan->seq[i].n_token;
        sampled[i].id = 1;
    }
    for (uint32_t i = 0; i < pipeline->n_rank; i++) {
        const double varied = 1 + costs->jitter * (2 * draw(pipeline) - 1);
        if (pipeline->free_s[i] > at_s) at_s = pipeline->free_s[i];
        at_s += varied * (costs->model_s + costs->row_s * n_row) / pipeline->n_rank;
        pipeline->free_s[i] = at_s;
        at_s += i + 1 < pipeline->n_rank ? costs->hop_s : costs->return_s;
    }
    pipeline->ends_s[pipeline->n_begun++ % pipeline->depth] = at_s;
    return LM_OK;
}

static enum lm_status end(void *context, struct lm_error *err)
{
    struct pipeline *pipeline = context;
    const double at_s = pipeline->ends_s[pipeline->n_ended++ % pipeline->depth];
    (void)err;
    if (at_s > pipeline->now_s) pipeline->now_s = at_s;
    return LM_OK;
}

static enum lm_status seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    (void)context, (void)op, (void)err;
    return LM_OK;
}

static struct seq_usage usage(void *context)
{
    (void)context;
    return (struct seq_usage){.n_position = 0};
}

static bool on_token(void *context, const struct sampled_token *token)
{
    (void)token;
    ++*(uint64_t *)context;
    return true;
}

static void fail(const char *what)
{
    fprintf(stderr, "bench_schedule: %s\n", what);
    exit(1);
}

static void *need(void *memory)
{
    if (!memory) fail("no memory");
    return memory;
}

/* Tokens per second of simulated time, prompts left out: from the first token of the last sequence
 * on. */
static double measure(const struct costs *costs, uint32_t n_rank, uint32_t n_seq)
{
    static const int32_t prompt[N_PROMPT] = {1, 2, 3, 4};
    struct pipeline pipeline = {.costs = costs, .n_rank = n_rank, .seed = 1};
    pipeline.depth = n_rank > 1 ? n_rank + costs->slack : 1;
    pipeline.free_s = need(calloc(n_rank, sizeof(double)));
    pipeline.ends_s = need(calloc(pipeline.depth, sizeof(double)));
    const struct step_runner runner = {.context = &pipeline,
                                       .n_stage = n_rank,
                                       .depth = pipeline.depth,
                                       .begin = begin,
                                       .end = end,
                                       .seq = seq,
                                       .usage = usage};
    const struct scheduler_config config = {.runner = &runner,
                                            .n_slot = n_seq,
                                            .n_ctx = N_PROMPT + costs->n_token + N_CTX_BEYOND,
                                            .prefill_chunk = N_PROMPT * n_seq,
                                            .can_cut = true};
    struct scheduler *scheduler;
    struct lm_error err;
    struct request *requests = need(calloc(n_seq, sizeof(*requests)));
    uint64_t n_token = 0;
    if (scheduler_create(&scheduler, &config, &err) != LM_OK) fail(err.message);
    for (uint32_t i = 0; i < n_seq; i++) {
        requests[i] = (struct request){.prompt = prompt,
                                       .n_prompt = N_PROMPT,
                                       .n_max = costs->n_token,
                                       .no_cache = true,
                                       .on_token = on_token,
                                       .context = &n_token};
        if (scheduler_submit(scheduler, &requests[i], &err) != LM_OK) fail(err.message);
    }
    double begin_s = -1;
    uint64_t n_before = 0;
    while (scheduler_step(scheduler)) {
        if (begin_s < 0 && n_token >= 2 * (uint64_t)n_seq) {
            begin_s = pipeline.now_s;
            n_before = n_token;
        }
        if (n_token >= (uint64_t)(costs->n_token - 2) * n_seq) break; /* before they end */
    }
    const double rate = (double)(n_token - n_before) / (pipeline.now_s - begin_s);
    for (uint32_t i = 0; i < n_seq; i++)
        atomic_store(&requests[i].cancelled, true);
    while (scheduler_step(scheduler)) {
    }
    scheduler_destroy(scheduler);
    free(requests);
    free(pipeline.ends_s);
    free(pipeline.free_s);
    return rate;
}

static uint32_t list_argument(int argc, char **argv, const char *name, const char *otherwise,
                              uint32_t *out)
{
    uint32_t n = 0;
    for (const char *at = text_argument(argc, argv, name, otherwise); *at && n < LIST_MAX;) {
        char *rest;
        out[n] = (uint32_t)strtoul(at, &rest, 10);
        if (!out[n] || rest == at) fail("a list of positive numbers is needed, as 1,2,4");
        n++;
        at = *rest == ',' ? rest + 1 : rest;
    }
    return n;
}

int main(int argc, char **argv)
{
    uint32_t ranks[LIST_MAX], sequences[LIST_MAX];
    const char *const some = "1,2,4,8,16,64,256,1000";
    /* arguments begin behind a model elsewhere: here behind the program's name */
    const uint32_t n_ranks = list_argument(argc + 1, argv - 1, "--ranks", some, ranks);
    const uint32_t n_sequences = list_argument(argc + 1, argv - 1, "--sequences", some, sequences);
    const struct costs costs = {
        .model_s = 1e-6 * number_argument(argc + 1, argv - 1, "--model-us", 10000),
        .row_s = 1e-6 * number_argument(argc + 1, argv - 1, "--row-us", 30000),
        .hop_s = 1e-6 * number_argument(argc + 1, argv - 1, "--hop-us", 20),
        .return_s = 1e-6 * number_argument(argc + 1, argv - 1, "--return-us", 50),
        .jitter = 0.01 * number_argument(argc + 1, argv - 1, "--jitter", 0),
        .slack = number_argument(argc + 1, argv - 1, "--slack", 1),
        .n_token = number_argument(argc + 1, argv - 1, "--tokens", 64)};
    if (costs.n_token < 8) fail("--tokens: 8 or more");
    printf("ranks  sequences       tok/s  x one rank  efficiency  ms between tokens\n");
    for (uint32_t k = 0; k < n_sequences; k++) {
        const double one = measure(&costs, 1, sequences[k]);
        for (uint32_t i = 0; i < n_ranks; i++) {
            const double rate = measure(&costs, ranks[i], sequences[k]);
            const uint32_t most = ranks[i] < sequences[k] ? ranks[i] : sequences[k];
            printf("%5u  %9u  %10.1f  %10.2f  %9.0f%%  %17.2f\n", ranks[i], sequences[k], rate,
                   rate / one, 100 * rate / one / most, 1e3 * sequences[k] / rate);
        }
    }
    return 0;
}
