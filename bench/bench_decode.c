/* Prefill and decode speed of one model on this machine, without tokenizer or sampler options.
 *
 *   bench_decode MODEL [--prompt 512] [--tokens 128] [--repeat 3] [--threads N] [--kernels NAME]
 *                      [--ram-mib N] [--expert-slots N|P%|min] [--prefetch on|off]
 *
 * Prints one JSON line per repetition: what ran and the two rates. The prompt is a fixed sequence
 * of ids that differs between repetitions, so that no prefix is found in the cache; the answer is
 * greedy. bench/compare_llamacpp.py alternates this program with a peer and prints ratios. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_arguments.h"
#include "coordinator/text/tokenizer.h"
#include "launch/engine.h"

/* Where decoding begins: behind the prompt's last step. */
struct decode_start {
    struct engine *engine;
    bool begun;
    struct expert_pager_stats pager;
};

static uint64_t read_bytes(const struct expert_pager_stats *pager)
{
    uint64_t n_bytes = 0;
    for (int i = 0; i < READ_PRIORITY_COUNT; i++)
        n_bytes += pager->disk.read_bytes[i];
    return n_bytes;
}

static bool keep_going(void *context, const struct sampled_token *token)
{
    struct decode_start *start = context;
    (void)token;
    if (!start->begun) start->pager = engine_stats(start->engine).pager;
    start->begun = true;
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_decode MODEL [--prompt N] [--tokens N] [--repeat N] "
                        "[--threads N] [--kernels NAME] [--ram-mib N] "
                        "[--expert-slots N|P%%|min] [--prefetch on|off]\n");
        return 2;
    }
    const uint32_t n_prompt = number_argument(argc, argv, "--prompt", 512);
    const uint32_t n_token = number_argument(argc, argv, "--tokens", 128);
    const uint32_t n_repeat = number_argument(argc, argv, "--repeat", 3);
    const struct engine_config config = {
        .model_path = argv[1],
        .n_ctx = n_prompt + n_token + 1,
        .kv_type = "f16",
        .own.kernels = text_argument(argc, argv, "--kernels", "auto"),
        .own.expert_slots = text_argument(argc, argv, "--expert-slots", NULL),
        .own.prefetch = text_argument(argc, argv, "--prefetch", NULL),
        .own.n_thread = number_argument(argc, argv, "--threads", 0),
        .own.ram_bytes = (uint64_t)number_argument(argc, argv, "--ram-mib", 0) << 20,
        .own.profile = "none",
    };

    struct lm_error err;
    struct engine *engine;
    int32_t *prompt = calloc(n_prompt ? n_prompt : 1, sizeof(*prompt));
    if (!prompt || engine_open(&engine, &config, &err) != LM_OK) {
        fprintf(stderr, "bench_decode: %s\n", prompt ? err.message : "no memory");
        free(prompt);
        return 1;
    }
    const uint32_t n_vocab = tokenizer_n_vocab(engine_tokenizer(engine));
    for (uint32_t repeat = 0; repeat < n_repeat; repeat++) {
        for (uint32_t i = 0; i < n_prompt; i++)
            prompt[i] = (int32_t)(((uint64_t)i * 7919 + 104729 * (repeat + 1)) % (n_vocab - 300));
        struct decode_start start = {.engine = engine};
        struct generate_request request = {
            .prompt = prompt,
            .n_prompt = n_prompt,
            .sampling = sampling_params_default(),
            .n_max = n_token,
            .ignore_end = true,
            .on_token = keep_going,
            .context = &start,
        };
        struct generate_result result;
        if (engine_generate(engine, &request, &result, &err) != LM_OK) {
            fprintf(stderr, "bench_decode: %s\n", err.message);
            return 1;
        }
        /* The first token comes out of the prompt's last step; the others are decode steps. */
        const struct expert_pager_stats pager = engine_stats(engine).pager;
        const struct expert_pager_counts *decode = &pager.decode;
        const double expert_bytes =
            pager.n_expert ? (double)pager.bank_bytes / (double)pager.n_expert : 0;
        printf("{\"prompt\": %u, \"prefill_tok_s\": %.2f, \"tokens\": %zu, \"decode_tok_s\": %.2f, "
               "\"slots\": %u, \"decode_hit_rate\": %.4f, \"decode_miss_bytes\": %llu, "
               "\"decode_wait_s\": %.2f, \"decode_needed_bytes\": %.0f, \"decode_read_bytes\": "
               "%llu, \"decode_disk_s\": %.3f}\n",
               n_prompt, (double)n_prompt / result.prefill_s, result.n_generated,
               (double)(result.n_generated - 1) / result.decode_s, pager.n_slot,
               decode->n_lookup ? (double)decode->n_hit / (double)decode->n_lookup : 0,
               (unsigned long long)decode->miss_bytes, decode->wait_s,
               (double)(decode->n_lookup - decode->n_hit) * expert_bytes,
               (unsigned long long)(read_bytes(&pager) - read_bytes(&start.pager)),
               pager.disk.busy_s - start.pager.disk.busy_s);
        fflush(stdout);
    }
    engine_close(engine, NULL);
    free(prompt);
    return 0;
}
