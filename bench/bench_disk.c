/* How fast experts can be read from a file: the disk reader against what the disk gives.
 *
 *   bench_disk FILE [--rounds 5] [--ms 300]
 *
 * Patterns: sequential extents of 1.9 MB; the same at random places; random experts in three
 * parts of 0.63 MB, as GGUF stores them. Methods:
 *
 *   raw           as many threads as the depth, each in a loop of pread with O_DIRECT: whole
 *                 blocks into its own memory, no queue. What the disk gives at that depth
 *   io_uring      the disk reader, direct
 *   threads       the same with its other engine
 *   buffered      the disk reader through the page cache, io_uring
 *   pread         threads with pread through the page cache, the system's read-ahead
 *   mmap          threads that touch every page of a mapping
 *
 * All spread their reads over the same memory, larger than any cache: a disk that is emulated by
 * copying is faster into memory that it has just written.
 *
 * In every round all methods run for --ms each; a place is read twice only when all have been read.
 * Prints medians of the rounds in MB/s, the median ratio to the raw rate of the same depth, pattern
 * and round, the range, and the processor time that the process took per GB. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "worker/pager/disk_reader.h"

enum {
    EXPERT_BYTES = 1900000,
    SLOT_BYTES = 2 << 20,          /* of the arena */
    PART_BYTES = 169 * DISK_ALIGN, /* of a slot: a third of an expert and a block */
    DEPTHS_MAX = 32,
    N_SLOT = 2 * DEPTHS_MAX, /* reads queued */
    ROUNDS_MAX = 25
};

enum pattern { SEQUENTIAL, RANDOM, RANDOM_PARTS, PATTERN_COUNT };
static const char *const pattern_names[] = {"sequential", "random", "3 parts"};

enum method { RAW, URING, THREADS, BUFFERED, PREAD, MMAP };
static const char *const method_names[] = {"raw",      "io_uring", "threads",
                                           "buffered", "pread",    "mmap"};

struct row {
    enum method method;
    uint32_t depth;
};
/* Those of one depth run one after another: a disk whose speed wanders is shared fairly. */
static const struct row rows[] = {
    {RAW, 1},   {URING, 1},   {THREADS, 1},  {RAW, 2},    {URING, 2}, {THREADS, 2}, {RAW, 4},
    {URING, 4}, {THREADS, 4}, {RAW, 16},     {URING, 16}, {RAW, 32},  {URING, 32},  {RAW, 8},
    {URING, 8}, {THREADS, 8}, {BUFFERED, 8}, {PREAD, 8},  {MMAP, 8}};
enum { N_ROW = sizeof(rows) / sizeof(rows[0]) };

struct bench {
    struct expert_file file;
    int direct_fd;
    const char *mapping;
    uint64_t file_bytes;
    char *arena; /* [N_SLOT][SLOT_BYTES] */
    double seconds;
    uint64_t *place; /* places for experts, in random order */
    uint64_t n_place;
    _Atomic uint64_t n_random, n_sequential; /* handed out so far */
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_disk: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The extents of the next expert: 1 or 3. */
static uint32_t next_expert(struct bench *bench, enum pattern pattern, struct expert_extent *out)
{
    if (pattern == SEQUENTIAL) {
        const uint64_t i = atomic_fetch_add(&bench->n_sequential, 1) % bench->n_place;
        out[0] = (struct expert_extent){0, i * EXPERT_BYTES, EXPERT_BYTES};
        return 1;
    }
    const uint32_t n = pattern == RANDOM ? 1 : 3;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t at = atomic_fetch_add(&bench->n_random, 1) % bench->n_place;
        out[i] = (struct expert_extent){0, bench->place[at] * EXPERT_BYTES, EXPERT_BYTES / n};
    }
    return n;
}

/* Where the parts of an expert go. */
static char *place_in(char *slot, uint32_t part, const struct expert_extent *extent)
{
    return slot + part * PART_BYTES + extent->offset % DISK_ALIGN;
}

/* What a method did in its time. */
struct result {
    double seconds, cpu_s;
    uint64_t n_bytes;
};

static double cpu_now_s(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

/* raw, pread and mmap: threads that do one thing until time is up. */

struct loop {
    struct bench *bench;
    enum method method;
    enum pattern pattern;
    uint32_t slot, n_slot; /* the thread's, used in turn */
    double until_s;
    uint64_t n_bytes, sum;
};

static void read_plainly(struct loop *loop, uint32_t part, const struct expert_extent *extent)
{
    const struct bench *bench = loop->bench;
    const uint64_t end = extent->offset + extent->n_bytes;
    uint64_t at = extent->offset;
    if (loop->method == MMAP) {
        for (; at < end; at += 4096)
            loop->sum += (uint8_t)bench->mapping[at];
        return;
    }
    const bool direct = loop->method == RAW;
    char *to = place_in(bench->arena + (size_t)loop->slot * SLOT_BYTES, part, extent);
    const uint64_t before = direct ? at % DISK_ALIGN : 0;
    uint64_t left = end - at + before;
    if (direct) left = (left + DISK_ALIGN - 1) / DISK_ALIGN * DISK_ALIGN;
    const ssize_t n =
        pread(direct ? bench->direct_fd : bench->file.fd, to - before, left, (off_t)(at - before));
    if (n < (ssize_t)(end - at)) fail("pread");
}

static void *run_loop(void *context)
{
    struct loop *loop = context;
    const uint32_t first_slot = loop->slot;
    while (log_now_s() < loop->until_s) {
        struct expert_extent extent[EXPERT_PART_MAX];
        const uint32_t n = next_expert(loop->bench, loop->pattern, extent);
        for (uint32_t i = 0; i < n; i++) {
            read_plainly(loop, i, &extent[i]);
            loop->n_bytes += extent[i].n_bytes;
        }
        loop->slot = first_slot + (loop->slot - first_slot + 1) % loop->n_slot;
    }
    return NULL;
}

static struct result run_loops(struct bench *bench, const struct row *row, enum pattern pattern)
{
    struct loop loop[DEPTHS_MAX];
    pthread_t thread[DEPTHS_MAX];
    uint64_t n_bytes = 0;
    const double start_s = log_now_s(), start_cpu_s = cpu_now_s();
    for (uint32_t i = 0; i < row->depth; i++) {
        loop[i] = (struct loop){.bench = bench,
                                .method = row->method,
                                .pattern = pattern,
                                .slot = i * (N_SLOT / row->depth),
                                .n_slot = N_SLOT / row->depth,
                                .until_s = start_s + bench->seconds};
        if (pthread_create(&thread[i], NULL, run_loop, &loop[i])) fail("thread");
    }
    for (uint32_t i = 0; i < row->depth; i++) {
        pthread_join(thread[i], NULL);
        n_bytes += loop[i].n_bytes;
    }
    return (struct result){log_now_s() - start_s, cpu_now_s() - start_cpu_s, n_bytes};
}

/* The disk reader. */

static void submit_next(struct bench *bench, struct disk_reader *reader, enum pattern pattern,
                        struct disk_read *read, char *slot)
{
    read->n_extent = next_expert(bench, pattern, read->extent);
    for (uint32_t i = 0; i < read->n_extent; i++)
        read->to[i] = place_in(slot, i, &read->extent[i]);
    disk_reader_submit(reader, read, READ_DEMAND);
}

/* Every slot is read to once before time is taken, so that the ring has registered its memory. */
static void warm_up(struct bench *bench, struct disk_reader *reader, struct disk_read *read)
{
    struct disk_read *ended;
    for (uint32_t i = 0; i < N_SLOT; i++) {
        read[i].n_extent = 1;
        read[i].extent[0] = (struct expert_extent){0, 0, DISK_ALIGN};
        read[i].to[0] = bench->arena + (size_t)i * SLOT_BYTES;
        disk_reader_submit(reader, &read[i], READ_DEMAND);
    }
    while (disk_reader_reap(reader, &ended, 1, true))
        if (ended->failure) fail("a read failed");
}

/* Keeps N_SLOT reads queued until time is up. */
static struct result read_through(struct bench *bench, struct disk_reader *reader,
                                  enum pattern pattern)
{
    static struct disk_read read[N_SLOT];
    struct disk_read *ended[N_SLOT];
    uint64_t n_bytes = 0;
    warm_up(bench, reader, read);
    const double start_s = log_now_s(), start_cpu_s = cpu_now_s();
    for (uint32_t i = 0; i < N_SLOT; i++)
        submit_next(bench, reader, pattern, &read[i], bench->arena + (size_t)i * SLOT_BYTES);
    size_t n;
    while ((n = disk_reader_reap(reader, ended, N_SLOT, true)) > 0) {
        for (size_t i = 0; i < n; i++) {
            if (ended[i]->failure) fail("a read failed");
            for (uint32_t part = 0; part < ended[i]->n_extent; part++)
                n_bytes += ended[i]->extent[part].n_bytes;
            char *slot = bench->arena + (size_t)(ended[i] - read) * SLOT_BYTES;
            if (log_now_s() < start_s + bench->seconds)
                submit_next(bench, reader, pattern, ended[i], slot);
        }
    }
    return (struct result){log_now_s() - start_s, cpu_now_s() - start_cpu_s, n_bytes};
}

static struct result run_reader(struct bench *bench, const struct row *row, enum pattern pattern)
{
    struct disk_reader *reader;
    struct lm_error err;
    const struct disk_reader_config config = {
        .file = &bench->file,
        .n_file = 1,
        .arena = bench->arena,
        .arena_bytes = (size_t)N_SLOT * SLOT_BYTES,
        .depth = row->depth,
        .engine = row->method == THREADS ? DISK_ENGINE_THREADS : DISK_ENGINE_URING,
        .access = row->method == BUFFERED ? DISK_ACCESS_BUFFERED : DISK_ACCESS_DIRECT,
        .drop_cached = true};
    if (disk_reader_create(&reader, &config, &err) != LM_OK) {
        fprintf(stderr, "bench_disk: %s\n", err.message);
        exit(1);
    }
    const struct result result = read_through(bench, reader, pattern);
    disk_reader_destroy(reader);
    return result;
}

/* Results. */
static double rate[N_ROW][PATTERN_COUNT][ROUNDS_MAX]; /* bytes/s */
static double cpu_s[N_ROW], n_gb[N_ROW];              /* in total */

static void measure(struct bench *bench, size_t row, enum pattern pattern, uint32_t round)
{
    const bool reader = rows[row].method >= URING && rows[row].method <= BUFFERED;
    posix_fadvise(bench->file.fd, 0, 0, POSIX_FADV_DONTNEED);
    const struct result result = (reader ? run_reader : run_loops)(bench, &rows[row], pattern);
    rate[row][pattern][round] = (double)result.n_bytes / result.seconds;
    cpu_s[row] += result.cpu_s;
    n_gb[row] += (double)result.n_bytes * 1e-9;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, uint32_t n)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, values, n * sizeof(*values));
    qsort(sorted, n, sizeof(*sorted), compare);
    return (sorted[n / 2] + sorted[(n - 1) / 2]) / 2;
}

/* Median over the rounds of a row's rate to that of raw at its depth. */
static double ratio_to_raw(size_t row, int pattern, uint32_t n_round)
{
    double ratio[ROUNDS_MAX];
    size_t raw = 0;
    while (rows[raw].method != RAW || rows[raw].depth != rows[row].depth)
        raw++;
    for (uint32_t round = 0; round < n_round; round++)
        ratio[round] = rate[row][pattern][round] / rate[raw][pattern][round];
    return median(ratio, n_round);
}

static void print_table(uint32_t n_round)
{
    printf("%-10s %5s", "method", "depth");
    for (int pattern = 0; pattern < PATTERN_COUNT; pattern++)
        printf("  %10s %7s %15s", pattern_names[pattern], "of raw", "lowest-highest");
    printf("  %9s\n", "cpu ms/GB");
    for (size_t i = 0; i < N_ROW; i++) {
        printf("%-10s %5u", method_names[rows[i].method], rows[i].depth);
        for (int pattern = 0; pattern < PATTERN_COUNT; pattern++) {
            double low = 1e99, high = 0;
            for (uint32_t round = 0; round < n_round; round++) {
                const double r = rate[i][pattern][round];
                low = r < low ? r : low;
                high = r > high ? r : high;
            }
            printf("  %10.0f %6.0f%% %7.0f-%-7.0f", median(rate[i][pattern], n_round) * 1e-6,
                   ratio_to_raw(i, pattern, n_round) * 100, low * 1e-6, high * 1e-6);
        }
        printf("  %9.0f\n", cpu_s[i] / n_gb[i] * 1e3);
    }
}

static void open_bench(struct bench *bench, const char *path)
{
    struct stat info;
    bench->file = (struct expert_file){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    bench->direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (bench->file.fd < 0 || bench->direct_fd < 0 || fstat(bench->file.fd, &info)) fail(path);
    bench->file_bytes = (uint64_t)info.st_size;
    bench->n_place = bench->file_bytes / EXPERT_BYTES;
    bench->mapping = mmap(NULL, bench->file_bytes, PROT_READ, MAP_SHARED, bench->file.fd, 0);
    bench->place = calloc(bench->n_place + 1, sizeof(*bench->place));
    if (bench->n_place < N_SLOT || bench->mapping == MAP_FAILED || !bench->place) fail(path);
    if (posix_memalign((void **)&bench->arena, SLOT_BYTES, (size_t)N_SLOT * SLOT_BYTES))
        fail("memory");
    madvise(bench->arena, (size_t)N_SLOT * SLOT_BYTES, MADV_HUGEPAGE); /* as the engine's */
    memset(bench->arena, 0, (size_t)N_SLOT * SLOT_BYTES);
    srand48((long)getpid());
    for (uint64_t i = 0; i < bench->n_place; i++) { /* shuffle while filling */
        const uint64_t j = (uint64_t)(drand48() * (double)(i + 1));
        bench->place[i] = bench->place[j];
        bench->place[j] = i;
    }
    atomic_store(&bench->n_sequential, bench->place[0]);
}

static uint32_t argument(int argc, char **argv, const char *name, uint32_t otherwise)
{
    for (int i = 2; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return (uint32_t)strtoul(argv[i + 1], NULL, 10);
    return otherwise;
}

int main(int argc, char **argv)
{
    static struct bench bench;
    const uint32_t n_round = argc < 2 ? 0 : argument(argc, argv, "--rounds", 5);
    if (!n_round || n_round > ROUNDS_MAX) {
        fprintf(stderr, "usage: bench_disk FILE [--rounds N] [--ms N]\n");
        return 2;
    }
    open_bench(&bench, argv[1]);
    bench.seconds = argument(argc, argv, "--ms", 300) * 1e-3;
    for (uint32_t round = 0; round < n_round; round++) {
        for (size_t i = 0; i < N_ROW; i++) {
            for (int pattern = 0; pattern < PATTERN_COUNT; pattern++)
                measure(&bench, i, (enum pattern)pattern, round);
        }
    }
    printf("%s, %.1f GB, %u rounds of %.0f ms, MB/s\n", argv[1], (double)bench.file_bytes * 1e-9,
           n_round, bench.seconds * 1e3);
    print_table(n_round);
    return 0;
}
