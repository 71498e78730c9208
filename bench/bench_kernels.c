/* How fast the matmul kernels read weights and multiply, against what the machine can do.
 *
 *   bench_kernels [--type NAME] [--kernels NAME] [--threads N] [--columns N] [--mib N]
 *
 * One line for each type and variant. For one token what counts is weight bytes per second: from
 * the second-level cache (the kernel's own speed) and from memory, there beside the share of the
 * roof, which is plain 64-byte reads of the same buffer by as many threads. For more tokens it is
 * multiply-adds per second, with matrices that come from memory; 16 tokens is what an expert sees
 * of a prefill chunk. Each figure is the best of several runs. */
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "proto/base/half.h"

enum { N_THREAD_MAX = 256, N_TOKEN_MAX = 512, N_RUN = 3, ROWS_PER_CALL = 256 };
static const double RUN_SECONDS = 0.03;

/* Time that this thread has run: a neighbour that takes the core away does not count. */
static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- one measurement: threads that call a kernel over their part of a buffer ---- */

struct load {
    const uint8_t *buffer;
    size_t n_byte;
    size_t row_bytes; /* 0: plain reads instead of a kernel */
    matmul_fn fn;
    uint32_t n_col, n_token;
    const void *const *x;
};

struct worker {
    const struct load *load;
    pthread_barrier_t *start;
    unsigned index, n_worker;
    double seconds;
    size_t n_byte; /* of weights, read in seconds */
    float *y;      /* [N_TOKEN_MAX][ROWS_PER_CALL] */
    uint64_t sum;
};

__attribute__((target("avx2"))) static uint64_t read_bytes(const uint8_t *p, size_t n)
{
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                      _mm256_setzero_si256()};
    for (size_t i = 0; i + 256 <= n; i += 256) {
        for (size_t j = 0; j < 256; j += 64)
            _mm_prefetch((const char *)p + i + j + 16384, _MM_HINT_T1);
        for (size_t j = 0; j < 8; j++) {
            const __m256i v = _mm256_loadu_si256((const __m256i *)(p + i + 32 * j));
            sum[j % 4] = _mm256_add_epi32(sum[j % 4], v);
        }
    }
    sum[0] = _mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3]));
    return (uint64_t)_mm256_extract_epi64(sum[0], 0) + (uint64_t)_mm256_extract_epi64(sum[0], 2);
}

/* Reads the next part of this thread's share of the buffer, from the start again at its end. */
static size_t work_once(struct worker *w, size_t *at)
{
    const struct load *load = w->load;
    const size_t share = load->n_byte / w->n_worker;
    const uint8_t *begin = load->buffer + share * w->index;
    const size_t unit = load->row_bytes ? load->row_bytes : 4096;
    size_t n_row = ROWS_PER_CALL * 4;
    if (load->row_bytes) n_row = ROWS_PER_CALL;
    if (n_row > share / unit) n_row = share / unit;
    if (*at + n_row * unit > share) *at = 0;
    if (load->row_bytes) {
        float *y[N_TOKEN_MAX];
        for (uint32_t t = 0; t < load->n_token; t++)
            y[t] = w->y + (size_t)t * ROWS_PER_CALL;
        const struct matmul_args args = {.w = begin + *at,
                                         .w_row_bytes = load->row_bytes,
                                         .n_col = load->n_col,
                                         .row_end = (uint32_t)n_row,
                                         .n_token = load->n_token,
                                         .x = load->x,
                                         .y = y};
        load->fn(&args);
    } else {
        w->sum += read_bytes(begin + *at, n_row * unit);
    }
    *at += n_row * unit;
    return n_row * unit;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(w->index, &cpus);
    pthread_setaffinity_np(pthread_self(), sizeof(cpus), &cpus);
    size_t at = 0;
    for (size_t n = 0; n < 2u << 20;) /* warm up; a small buffer is then in the cache */
        n += work_once(w, &at);
    pthread_barrier_wait(w->start);
    const double begin = now_s();
    do {
        w->n_byte += work_once(w, &at);
        w->seconds = now_s() - begin;
    } while (w->seconds < RUN_SECONDS);
    return NULL;
}

/* Bytes of weights per second. */
static double measure(const struct load *load, unsigned n_thread)
{
    static struct worker worker[N_THREAD_MAX];
    double best = 0;
    for (int run = 0; run < N_RUN; run++) {
        pthread_t thread[N_THREAD_MAX];
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, n_thread);
        for (unsigned i = 0; i < n_thread; i++) {
            float *y = worker[i].y;
            if (!y) y = malloc(sizeof(float) * N_TOKEN_MAX * ROWS_PER_CALL);
            worker[i] = (struct worker){load, &start, i, n_thread, 0, 0, y, 0};
            if (!y || pthread_create(&thread[i], NULL, worker_main, &worker[i])) {
                perror("bench_kernels");
                exit(1);
            }
        }
        double rate = 0;
        for (unsigned i = 0; i < n_thread; i++) {
            pthread_join(thread[i], NULL);
            rate += (double)worker[i].n_byte / worker[i].seconds;
        }
        pthread_barrier_destroy(&start);
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- contents that keep the arithmetic out of slow corners ---- */

static void fill(enum tensor_type type, uint8_t *buffer, size_t n_byte)
{
    uint64_t state = 1;
    for (size_t i = 0; i + 8 <= n_byte; i += 8) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t value = state ^ state >> 33;
        /* As floats: between 2^-15 or so and 2, of either sign. */
        if (type == TENSOR_F32) value = (value & 0x87ffffff87ffffffu) | 0x3800000038000000u;
        if (type == TENSOR_F16) value = (value & 0x8fff8fff8fff8fffu) | 0x2000200020002000u;
        if (type == TENSOR_BF16) value = (value & 0x87ff87ff87ff87ffu) | 0x3800380038003800u;
        if (type == TENSOR_MXFP4) value = (value & 0x7f7f7f7f7f7f7f7fu) | 0x4040404040404040u;
        memcpy(buffer + i, &value, 8);
    }
}

struct options {
    const char *type, *kernels;
    unsigned n_thread;
    uint32_t n_col;
    size_t n_byte;
};

static void bench(const struct options *o, enum tensor_type type, const struct kernel_table *table,
                  uint8_t *buffer)
{
    static const uint32_t n_tokens[] = {2, 4, 8, 16, 64, 512};
    const size_t row_bytes = tensor_row_bytes(type, o->n_col);
    const size_t act_bytes = act_row_bytes(table->act_type[type], o->n_col);
    const double mac_per_byte = (double)o->n_col / (double)row_bytes;
    uint8_t *act = aligned_alloc(64, N_TOKEN_MAX * act_bytes);
    float *values = malloc(o->n_col * sizeof(float));
    const void *x[N_TOKEN_MAX];
    if (!act || !values) exit(1);
    for (uint32_t t = 0; t < N_TOKEN_MAX; t++) {
        for (uint32_t i = 0; i < o->n_col; i++)
            values[i] = (float)((i * 7 + t * 13) % 101) - 50.0f;
        table->quantize_act[table->act_type[type]](values, o->n_col, act + t * act_bytes);
        x[t] = act + t * act_bytes;
    }

    struct load load = {.buffer = buffer,
                        .row_bytes = row_bytes,
                        .fn = table->matmul[type],
                        .n_col = o->n_col,
                        .n_token = 1,
                        .x = x};
    load.n_byte = 512 << 10;
    printf("%-7s %-7s %6.1f", tensor_type_info(type)->name, table->name, measure(&load, 1) * 1e-9);
    load.n_byte = o->n_byte;
    const struct load plain = {.buffer = buffer, .n_byte = o->n_byte};
    const double roof[2] = {measure(&plain, 1), measure(&plain, o->n_thread)};
    const double one = measure(&load, 1), all = measure(&load, o->n_thread);
    printf("  %6.1f %3.0f%%  %6.1f %3.0f%%  ", one * 1e-9, 100 * one / roof[0], all * 1e-9,
           100 * all / roof[1]);
    for (size_t i = 0; i < sizeof(n_tokens) / sizeof(*n_tokens); i++) {
        load.n_token = n_tokens[i];
        const double rate = measure(&load, o->n_thread);
        printf(" %6.0f", rate * mac_per_byte * n_tokens[i] * 1e-9);
    }
    printf("\n");
    fflush(stdout);
    free(act);
    free(values);
}

static struct options parse(int argc, char **argv)
{
    struct options o = {.n_thread = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
                        .n_col = 2048,
                        .n_byte = (size_t)768 << 20};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        if (!strcmp(argv[i], "--type")) o.type = value;
        if (!strcmp(argv[i], "--kernels")) o.kernels = value;
        if (!strcmp(argv[i], "--threads")) o.n_thread = (unsigned)atoi(value);
        if (!strcmp(argv[i], "--columns")) o.n_col = (uint32_t)atoi(value);
        if (!strcmp(argv[i], "--mib")) o.n_byte = (size_t)atoi(value) << 20;
    }
    return o;
}

int main(int argc, char **argv)
{
    const struct options o = parse(argc, argv);
    uint8_t *buffer =
        mmap(NULL, o.n_byte, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED || !o.n_thread || o.n_thread > N_THREAD_MAX) {
        fprintf(stderr, "bench_kernels: no memory, or not 1..%d threads\n", N_THREAD_MAX);
        return 1;
    }
    fill(TENSOR_Q8_0, buffer, o.n_byte);
    printf("%u columns, %zu MiB\n", o.n_col, o.n_byte >> 20);
    printf("                ---- GB/s of weights, 1 token ----   GMAC/s with %u threads, tokens:\n"
           "type    kernels  cache  memory 1T   memory %2uT         2      4      8     16     64  "
           "  512\n",
           o.n_thread, o.n_thread);

    enum tensor_type filled = TENSOR_Q8_0;
    for (uint32_t id = 0; id < TENSOR_TYPE_COUNT; id++) {
        const enum tensor_type type = (enum tensor_type)id;
        if (!kernels_select("ref")->matmul[type]) continue;
        if (o.type && tensor_type_from_name(o.type) != (int)id) continue;
        const bool special =
            type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16 || type == TENSOR_MXFP4;
        if ((special ? type : TENSOR_Q8_0) != filled) {
            filled = special ? type : TENSOR_Q8_0;
            fill(filled, buffer, o.n_byte);
        }
        for (const char *const *name = kernels_available(); *name; name++) {
            if (o.kernels ? !strcmp(o.kernels, *name) : strcmp("ref", *name))
                bench(&o, type, kernels_select(*name), buffer);
        }
    }
    munmap(buffer, o.n_byte);
    return 0;
}
