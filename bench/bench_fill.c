/* How fast a model that is larger than its memory starts, with nothing in the page cache.
 *
 *   bench_fill MODEL --ram-mib N [--prompt 8] [--rounds 2] [--memory warm|cold] [--threads N]
 *
 * Each round, in turn and as far as possible in the same minute:
 *
 *   raw          what the disk gives: 8 threads in loops of pread with O_DIRECT, 1.9 MB each,
 *                before and behind the two others
 *   fill         opens the model with a profile that names every expert and waits until the slots
 *                are full: bytes that the reader brought, from the end of opening on
 *   first token  opens the model without a profile and asks for one token. Needed bytes: weights
 *                that are no experts, and the experts read until then
 *   touch        fresh memory, touched by a thread for each processor. Where this is below raw it
 *                bounds the two others: bytes must be put somewhere
 *
 * Memory is warm where it was used and freed a moment before, as on a machine of its own. It is
 * cold where a hypervisor has taken it back, as it may with what was free for some seconds: every
 * page that is touched must then be asked for. Dropping the page cache takes root. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench_arguments.h"
#include "coordinator/text/tokenizer.h"
#include "launch/engine.h"
#include "launch/pager_report.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "worker/pager/heat_profile.h"

enum {
    RAW_THREADS = 8,
    RAW_READ_BYTES = 464 * 4096,
    TOUCH_BYTES = 1 << 30,
    TOUCH_THREADS_MAX = 64,
    COLD_S = 10
};
#define RAW_S 1.5

static void fail(const char *what, const struct lm_error *err)
{
    fprintf(stderr, "bench_fill: %s\n", err ? err->message : what);
    exit(1);
}

static void wait_s(double seconds)
{
    const struct timespec pause = {(time_t)seconds,
                                   (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

static void drop_page_cache(void)
{
    const int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd < 0 || write(fd, "3", 1) != 1)
        fail("the page cache cannot be dropped: root is needed", NULL);
    close(fd);
}

/* ---- the disk ----------------------------------------------------------------------------- */

static struct {
    int fd;
    uint64_t n_place;
    _Atomic uint64_t next, n_bytes;
    double until_s;
} raw;

static void *read_raw(void *to)
{
    while (log_now_s() < raw.until_s) {
        const uint64_t place = atomic_fetch_add(&raw.next, 1) % raw.n_place;
        if (pread(raw.fd, to, RAW_READ_BYTES, (off_t)(place * RAW_READ_BYTES)) != RAW_READ_BYTES)
            fail("a raw read failed", NULL);
        atomic_fetch_add(&raw.n_bytes, RAW_READ_BYTES);
    }
    return NULL;
}

/* Bytes per second. Goes on in the file where the last call ended. */
static double raw_rate(const char *path)
{
    static char *memory;
    pthread_t thread[RAW_THREADS];
    struct stat info;
    const size_t n_memory = (size_t)RAW_THREADS * (2 << 20);
    if (!memory) {
        if (posix_memalign((void **)&memory, 2 << 20, n_memory)) fail("no memory", NULL);
        madvise(memory, n_memory, MADV_HUGEPAGE);
        memset(memory, 0, n_memory);
    }
    raw.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (raw.fd < 0 || fstat(raw.fd, &info)) fail(path, NULL);
    raw.n_place = (uint64_t)info.st_size / RAW_READ_BYTES;
    atomic_store(&raw.n_bytes, 0);
    const double start_s = log_now_s();
    raw.until_s = start_s + RAW_S;
    for (size_t i = 0; i < RAW_THREADS; i++)
        if (pthread_create(&thread[i], NULL, read_raw, memory + i * (2 << 20)))
            fail("no thread", NULL);
    for (size_t i = 0; i < RAW_THREADS; i++)
        pthread_join(thread[i], NULL);
    close(raw.fd);
    return (double)atomic_load(&raw.n_bytes) / (log_now_s() - start_s);
}

/* ---- memory ------------------------------------------------------------------------------- */

struct touch {
    char *at;
    size_t n_bytes;
};

static void *touch(void *context)
{
    const struct touch *part = context;
    for (size_t at = 0; at < part->n_bytes; at += 4096)
        ((volatile char *)part->at)[at] = 1;
    return NULL;
}

/* Touches and frees fresh memory. Returns bytes per second. */
static double touch_rate(size_t n_bytes)
{
    pthread_t thread[TOUCH_THREADS_MAX];
    struct touch part[TOUCH_THREADS_MAX];
    const long n_cpu = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t n = n_cpu < TOUCH_THREADS_MAX ? (size_t)n_cpu : TOUCH_THREADS_MAX;
    char *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory", NULL);
    madvise(memory, n_bytes, MADV_HUGEPAGE);
    const double start_s = log_now_s();
    for (size_t i = 0; i < n; i++) {
        part[i] = (struct touch){memory + n_bytes / n * i, n_bytes / n};
        if (pthread_create(&thread[i], NULL, touch, &part[i])) fail("no thread", NULL);
    }
    for (size_t i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
    const double rate = (double)n_bytes / (log_now_s() - start_s);
    munmap(memory, n_bytes);
    return rate;
}

/* Nothing in the page cache, and memory as asked for. */
static void prepare(bool cold, size_t ram_bytes)
{
    drop_page_cache();
    if (cold)
        wait_s(COLD_S);
    else
        touch_rate(ram_bytes);
}

/* ---- the engine --------------------------------------------------------------------------- */

/* A profile in which all experts are alike, and what of the model is no expert. */
static uint64_t write_profile(const char *model, const char *path)
{
    struct lm_error err;
    struct gguf_file *file;
    struct hparams hp;
    struct heat_profile *profile;
    uint64_t fingerprint, n_bytes = 0;
    if (gguf_open(&file, model, &err) != LM_OK || hparams_read(&hp, file, &err) != LM_OK ||
        gguf_fingerprint(file, &fingerprint, &err) != LM_OK ||
        heat_profile_create(&profile, fingerprint, hp.arch->name, hp.n_layer + hp.n_layer_mtp,
                            hp.n_expert, hp.n_expert_used, &err) != LM_OK)
        fail(NULL, &err);
    profile->n_token = 1;
    for (uint32_t i = 0; i < profile->n_layer * profile->n_expert; i++)
        profile->uses[i] = (double)hp.n_expert_used / hp.n_expert;
    if (heat_profile_write(profile, path, &err) != LM_OK) fail(NULL, &err);
    for (size_t i = 0; i < gguf_n_tensor(file); i++)
        if (gguf_tensor_at(file, i)->n_dims < 3) n_bytes += gguf_tensor_at(file, i)->n_bytes;
    heat_profile_destroy(profile);
    gguf_close(file);
    return n_bytes;
}

static struct engine *start(struct engine_config *config, const char *profile)
{
    struct engine *engine;
    struct lm_error err;
    config->own.profile = profile;
    if (engine_open(&engine, config, &err) != LM_OK) fail(NULL, &err);
    return engine;
}

struct fill {
    double open_s, rate;
    uint64_t n_bytes;
};

static struct fill fill_slots(struct engine_config *config, const char *profile)
{
    const double start_s = log_now_s();
    struct engine *engine = start(config, profile);
    const double opened_s = log_now_s();
    struct expert_pager_stats stats = engine_stats(engine).pager;
    if (!stats.n_slot) fail("the model fits: nothing to fill", NULL);
    uint64_t n_read = 0;
    while ((n_read = stats.disk.n_read[READ_BACKGROUND]) < stats.n_slot) {
        wait_s(0.002);
        stats = engine_stats(engine).pager;
    }
    const double seconds = log_now_s() - opened_s;
    const struct fill fill = {opened_s - start_s, (double)pager_report_read_bytes(&stats) / seconds,
                              pager_report_read_bytes(&stats)};
    engine_close(engine, NULL);
    return fill;
}

struct first_token {
    double seconds, open_s;
    uint64_t n_bytes;
};

static bool end(void *context, const struct sampled_token *token)
{
    (void)context, (void)token;
    return false;
}

static struct first_token ask(struct engine_config *config, uint32_t n_prompt)
{
    struct lm_error err;
    struct generate_result result;
    int32_t prompt[512];
    const double start_s = log_now_s();
    struct engine *engine = start(config, "none");
    const double opened_s = log_now_s();
    const uint32_t n_vocab = tokenizer_n_vocab(engine_tokenizer(engine));
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)((uint64_t)i * 7919 % (n_vocab - 300));
    const struct generate_request request = {.prompt = prompt,
                                             .n_prompt = n_prompt,
                                             .sampling = sampling_params_default(),
                                             .n_max = 1,
                                             .ignore_end = true,
                                             .on_token = end};
    if (engine_generate(engine, &request, &result, &err) != LM_OK) fail(NULL, &err);
    const double seconds = log_now_s() - start_s;
    const struct expert_pager_stats stats = engine_stats(engine).pager;
    engine_close(engine, NULL);
    return (struct first_token){seconds, opened_s - start_s, pager_report_read_bytes(&stats)};
}

int main(int argc, char **argv)
{
    const uint32_t n_prompt = number_argument(argc, argv, "--prompt", 8);
    const uint32_t ram_mib = number_argument(argc, argv, "--ram-mib", 0);
    if (argc < 2 || !ram_mib || !n_prompt || n_prompt > 512) {
        fprintf(stderr, "usage: bench_fill MODEL --ram-mib N [--prompt N] [--rounds N] "
                        "[--memory warm|cold] [--threads N]\n");
        return 2;
    }
    struct engine_config config = {.model_path = argv[1],
                                   .n_ctx = 1024,
                                   .kv_type = "f16",
                                   .own.kernels = "auto",
                                   .own.n_thread = number_argument(argc, argv, "--threads", 0),
                                   .own.ram_bytes = (uint64_t)ram_mib << 20};
    char profile[] = "/tmp/bench-fill-XXXXXX";
    const int fd = mkstemp(profile);
    if (fd < 0) fail("no temporary file", NULL);
    close(fd);
    const uint64_t dense_bytes = write_profile(argv[1], profile);
    const uint32_t n_round = number_argument(argc, argv, "--rounds", 2);
    const bool cold = !strcmp(text_argument(argc, argv, "--memory", "warm"), "cold");
    for (uint32_t round = 0; round < n_round; round++) {
        const double raw_before = raw_rate(argv[1]);
        prepare(cold, config.own.ram_bytes);
        const struct fill fill = fill_slots(&config, profile);
        const double raw_between = raw_rate(argv[1]);
        prepare(cold, config.own.ram_bytes);
        const struct first_token token = ask(&config, n_prompt);
        const double raw_behind = raw_rate(argv[1]);
        prepare(cold, config.own.ram_bytes);
        const double touched = touch_rate(TOUCH_BYTES);
        const double fill_raw = (raw_before + raw_between) / 2;
        const double token_raw = (raw_between + raw_behind) / 2;
        const double n_bytes = (double)(dense_bytes + token.n_bytes);
        const double bound = token_raw < touched ? token_raw : touched;
        printf("raw %.2f, %.2f, %.2f GB/s; touch %.2f GB/s\n"
               "fill: open %.2f s, then %.2f GB at %.2f GB/s: %.0f%% of raw, %.0f%% of touch\n"
               "first token of %u: %.2f s (open %.2f s); %.2f GB of experts and %.2f GB of others "
               "take %.2f s at raw, %.2f s at the lesser of raw and touch\n",
               raw_before * 1e-9, raw_between * 1e-9, raw_behind * 1e-9, touched * 1e-9,
               fill.open_s, (double)fill.n_bytes * 1e-9, fill.rate * 1e-9,
               fill.rate / fill_raw * 100, fill.rate / touched * 100, n_prompt, token.seconds,
               token.open_s, (double)token.n_bytes * 1e-9, (double)dense_bytes * 1e-9,
               n_bytes / token_raw, n_bytes / bound);
        fflush(stdout);
    }
    unlink(profile);
    return 0;
}
