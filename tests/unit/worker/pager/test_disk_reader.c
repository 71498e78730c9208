/* The disk reader brings the bytes of the files, in the order that priorities ask for, and says
 * what went wrong; by every engine and access. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/unit/cmocka_all.h"
#include "worker/pager/disk_engine.h"
#include "worker/pager/disk_reader.h"

enum { N_FILE = 3, N_READ = 24, MIB = 1 << 20 };

/* Sizes: nothing about the ends is aligned. */
static const size_t file_bytes[N_FILE] = {40 * MIB + 123, 5 * MIB + 4097, 77};
static char folder[] = "/tmp/lean-test-disk-XXXXXX";
static char path[N_FILE][64];
static struct expert_file files[N_FILE];
static uint8_t *content[N_FILE];
static char *arena; /* registered with the reader */
static const size_t arena_bytes = 200u * MIB;

static const struct mode {
    enum disk_engine engine;
    enum disk_access access;
} modes[] = {{DISK_ENGINE_URING, DISK_ACCESS_DIRECT},
             {DISK_ENGINE_URING, DISK_ACCESS_BUFFERED},
             {DISK_ENGINE_THREADS, DISK_ACCESS_DIRECT},
             {DISK_ENGINE_THREADS, DISK_ACCESS_BUFFERED}};
enum { N_MODE = sizeof(modes) / sizeof(modes[0]) };

/* An engine that this system does not allow. */
static int refused_engine = -1;

static uint64_t seed = 1;

static uint64_t draw(uint64_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % below;
}

static int make_files(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    for (int i = 0; i < N_FILE; i++) {
        snprintf(path[i], sizeof(path[i]), "%s/%d", folder, i);
        content[i] = malloc(file_bytes[i]);
        for (size_t at = 0; at < file_bytes[i]; at++)
            content[i][at] = (uint8_t)((at * 0x9e3779b97f4a7c15ull) >> 51 ^ (size_t)i);
        const int fd = open(path[i], O_RDWR | O_CREAT, 0600);
        if (fd < 0 || write(fd, content[i], file_bytes[i]) != (ssize_t)file_bytes[i]) return -1;
        if (fdatasync(fd)) return -1;
        files[i] = (struct expert_file){.path = path[i], .fd = fd};
    }
    return posix_memalign((void **)&arena, DISK_ALIGN, arena_bytes);
}

static int remove_files(void **state)
{
    (void)state;
    for (int i = 0; i < N_FILE; i++) {
        close(files[i].fd);
        unlink(path[i]);
        free(content[i]);
    }
    free(arena);
    return rmdir(folder);
}

static struct disk_reader *open_reader(const struct mode *mode, uint32_t depth)
{
    struct disk_reader *reader;
    struct lm_error err;
    const struct disk_reader_config config = {.file = files,
                                              .n_file = N_FILE,
                                              .arena = arena,
                                              .arena_bytes = arena_bytes,
                                              .depth = depth,
                                              .engine = mode->engine,
                                              .access = mode->access};
    const enum lm_status status = disk_reader_create(&reader, &config, &err);
    if (status == LM_E_UNSUPPORTED && mode->engine == DISK_ENGINE_URING) {
        if (refused_engine < 0) printf("not run: %s\n", err.message);
        refused_engine = mode->engine;
        return NULL;
    }
    if (status != LM_OK) fail_msg("%s", err.message);
    const struct disk_reader_stats stats = disk_reader_stats(reader);
    assert_string_equal(stats.engine, mode->engine == DISK_ENGINE_URING ? "io_uring" : "threads");
    return reader;
}

/* Where a read of an extent may go: at or behind `at`, as aligned as the offset. *end: what follows
 * the last byte that may be written. */
static char *place(char *at, const struct expert_extent *extent, char **end)
{
    const uintptr_t block = ((uintptr_t)at + DISK_ALIGN - 1) / DISK_ALIGN * DISK_ALIGN;
    char *to = (char *)block + extent->offset % DISK_ALIGN;
    const uintptr_t last = (uintptr_t)to + extent->n_bytes + DISK_ALIGN - 1;
    *end = (char *)(last / DISK_ALIGN * DISK_ALIGN);
    return to;
}

static void plan(struct disk_read *read, uint32_t file, uint64_t offset, uint64_t n_bytes, char *at)
{
    char *end;
    *read = (struct disk_read){.n_extent = 1};
    read->extent[0] = (struct expert_extent){file, offset, n_bytes};
    read->to[0] = place(at, &read->extent[0], &end);
    assert_true(end <= arena + arena_bytes);
}

static void check_bytes(const struct disk_read *read)
{
    assert_int_equal(read->failure, READ_OK);
    for (uint32_t i = 0; i < read->n_extent; i++)
        assert_memory_equal(read->to[i], content[read->extent[i].file] + read->extent[i].offset,
                            read->extent[i].n_bytes);
}

/* An extent of a random file; small, large, and up to the very end. */
static struct expert_extent draw_extent(uint64_t n_max)
{
    struct expert_extent extent = {.file = (uint32_t)draw(N_FILE)};
    const uint64_t size = file_bytes[extent.file];
    const uint64_t scale = 1ull << draw(25);
    extent.n_bytes = 1 + draw(scale);
    if (extent.n_bytes > n_max) extent.n_bytes = n_max;
    if (extent.n_bytes > size) extent.n_bytes = size;
    extent.offset = draw(4) ? draw(size - extent.n_bytes + 1) : size - extent.n_bytes;
    return extent;
}

static void draw_read(struct disk_read *read, char **at, uint64_t n_max)
{
    XXH3_state_t hash;
    *read = (struct disk_read){.n_extent = 1 + (uint32_t)draw(EXPERT_PART_MAX)};
    XXH3_64bits_reset(&hash);
    for (uint32_t i = 0; i < read->n_extent; i++) {
        read->extent[i] = draw_extent(n_max);
        read->to[i] = place(*at, &read->extent[i], at);
        XXH3_64bits_update(&hash, content[read->extent[i].file] + read->extent[i].offset,
                           read->extent[i].n_bytes);
        memset(*at, 0xa5, DISK_ALIGN); /* a page that nothing may write to */
        *at += DISK_ALIGN;
    }
    read->has_checksum = draw(2);
    read->checksum = XXH3_64bits_digest(&hash);
}

/* The page behind each extent's last block. */
static void check_untouched(const struct disk_read *read)
{
    for (uint32_t i = 0; i < read->n_extent; i++) {
        const uintptr_t last = (uintptr_t)read->to[i] + read->extent[i].n_bytes + DISK_ALIGN - 1;
        const uint8_t *page = (const uint8_t *)(last / DISK_ALIGN * DISK_ALIGN);
        for (size_t at = 0; at < DISK_ALIGN; at++)
            assert_int_equal(page[at], 0xa5);
    }
}

static void run_random(const struct mode *mode, uint32_t depth)
{
    struct disk_read read[N_READ], *ended[N_READ];
    struct disk_reader *reader = open_reader(mode, depth);
    char *at = arena;
    size_t n = 0;
    if (!reader) return;
    for (int i = 0; i < N_READ; i++)
        draw_read(&read[i], &at, i ? 2 * MIB : 20 * MIB);
    assert_true(at <= arena + arena_bytes);
    for (int i = 0; i < N_READ; i++)
        disk_reader_submit(reader, &read[i], (enum read_priority)draw(READ_PRIORITY_COUNT));
    while (n < N_READ) {
        const size_t n_more = disk_reader_reap(reader, ended + n, N_READ - n, true);
        assert_true(n_more > 0);
        n += n_more;
    }
    assert_int_equal(disk_reader_reap(reader, ended, 1, true), 0); /* nothing to wait for */
    for (int i = 0; i < N_READ; i++) {
        check_bytes(&read[i]);
        check_untouched(&read[i]);
    }
    disk_reader_destroy(reader);
}

static void test_random_extents(void **state)
{
    (void)state;
    static const uint32_t depths[] = {1, 3, 8, 32};
    for (int round = 0; round < 2; round++)
        for (int m = 0; m < N_MODE; m++)
            for (int d = 0; d < 4; d++)
                run_random(&modes[m], depths[d]);
}

/* An extent that the file has only in part, and one that lies behind its end; others go on. */
static void test_short_files(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODE; m++) {
        struct disk_read read[3], *ended[3];
        struct disk_reader *reader = open_reader(&modes[m], 8);
        if (!reader) continue;
        plan(&read[1], 2, 1 * MIB, 10, arena + MIB);
        plan(&read[2], 0, 100, 9 * MIB, arena + 2 * MIB);
        plan(&read[0], 0, 0, 1, arena + 30 * MIB);
        read[0].n_extent = 2;
        read[0].extent[1] = (struct expert_extent){1, file_bytes[1] - 5000, 5001};
        char *end;
        read[0].to[1] = place(arena, &read[0].extent[1], &end);
        for (int i = 0; i < 3; i++)
            disk_reader_submit(reader, &read[i], READ_DEMAND);
        for (size_t n = 0; n < 3;)
            n += disk_reader_reap(reader, ended, 3, true);
        assert_int_equal(read[0].failure, READ_SHORT);
        assert_int_equal(read[0].failed_extent, 1);
        assert_int_equal(read[1].failure, READ_SHORT);
        check_bytes(&read[2]);
        disk_reader_destroy(reader);
    }
}

/* Order. With depth 1 pieces run one after another, so the order of ends is exact, provided that
 * all reads were queued while the first, a long one, ran. */

enum { N_ORDER = 8 };

struct order {
    struct disk_reader *reader;
    struct disk_read read[N_ORDER];
    size_t n;
};

static void order_submit(struct order *order, uint64_t n_bytes, enum read_priority priority)
{
    const size_t i = order->n++;
    plan(&order->read[i], 0, i * 4096 + 1, n_bytes, arena + (i ? 60 + i : 0) * MIB);
    disk_reader_submit(order->reader, &order->read[i], priority);
}

/* Ends all reads; out: their indices in the order of ends. Returns their number. */
static size_t order_end(struct order *order, size_t out[N_ORDER])
{
    struct disk_read *ended;
    size_t n = 0;
    while (disk_reader_reap(order->reader, &ended, 1, true)) {
        check_bytes(ended);
        out[n++] = (size_t)(ended - order->read);
    }
    disk_reader_destroy(order->reader);
    return n;
}

/* Whether the first read still runs: what was queued meanwhile has not begun. */
static bool first_runs(struct order *order)
{
    const struct disk_reader_stats stats = disk_reader_stats(order->reader);
    return stats.n_read[READ_DEMAND] + stats.n_read[READ_SPECULATIVE] == 0;
}

static void wait_until_busy(struct disk_reader *reader)
{
    while (disk_reader_stats(reader).busy_s <= 0)
        usleep(10);
}

static bool order_begin(struct order *order, const struct mode *mode)
{
    order->n = 0;
    order->reader = open_reader(mode, 1);
    if (!order->reader) return false;
    order_submit(order, 36 * MIB, READ_DEMAND);
    wait_until_busy(order->reader);
    return true;
}

/* Runs `queue` behind a long read, again if that was over too early, and compares the order. */
static void check_order(void (*queue)(struct order *), const size_t *expected, size_t n_expected)
{
    for (int m = 0; m < N_MODE; m++) {
        size_t order_of_ends[N_ORDER];
        bool in_time = false;
        for (int attempt = 0; !in_time && attempt < 50; attempt++) {
            struct order order;
            if (!order_begin(&order, &modes[m])) break;
            queue(&order);
            in_time = first_runs(&order);
            const size_t n = order_end(&order, order_of_ends);
            if (in_time) assert_int_equal(n, n_expected);
        }
        if (!in_time) assert_int_equal(modes[m].engine, refused_engine);
        if (in_time) assert_memory_equal(order_of_ends, expected, n_expected * sizeof(*expected));
    }
}

static void queue_priorities(struct order *order)
{
    order_submit(order, 70000, READ_BACKGROUND);
    order_submit(order, 70000, READ_SPECULATIVE);
    order_submit(order, 70000, READ_DEMAND);
    order_submit(order, 70000, READ_BACKGROUND);
    order_submit(order, 70000, READ_SPECULATIVE);
    order_submit(order, 70000, READ_DEMAND);
}

static void test_demand_before_speculative_before_background(void **state)
{
    (void)state;
    check_order(queue_priorities, (const size_t[]){0, 3, 6, 2, 5, 1, 4}, 7);
}

static void queue_promotion(struct order *order)
{
    for (int i = 0; i < 4; i++)
        order_submit(order, 70000, READ_BACKGROUND);
    order_submit(order, 70000, READ_SPECULATIVE);
    disk_reader_promote(order->reader, &order->read[3], READ_DEMAND);
    disk_reader_promote(order->reader, &order->read[2], READ_SPECULATIVE);
    disk_reader_promote(order->reader, &order->read[5], READ_BACKGROUND); /* never lowers */
}

static void test_promotion(void **state)
{
    (void)state;
    check_order(queue_promotion, (const size_t[]){0, 3, 5, 2, 1, 4}, 6);
}

static void queue_cancel(struct order *order)
{
    for (int i = 0; i < 3; i++)
        order_submit(order, 70000, READ_BACKGROUND);
    if (!first_runs(order)) return;
    assert_false(disk_reader_cancel(order->reader, &order->read[0])); /* it runs */
    assert_true(disk_reader_cancel(order->reader, &order->read[2]));
    assert_false(disk_reader_cancel(order->reader, &order->read[2])); /* it is not there */
}

static void test_cancel(void **state)
{
    (void)state;
    check_order(queue_cancel, (const size_t[]){0, 1, 3}, 3);
}

/* A read that runs already and is then demanded ends once, as a demand. */
static void test_promotion_of_a_running_read(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODE; m++) {
        struct disk_reader *reader = open_reader(&modes[m], 8);
        struct disk_read read, *ended[2];
        if (!reader) continue;
        plan(&read, 0, 5, 30 * MIB, arena);
        disk_reader_submit(reader, &read, READ_SPECULATIVE);
        wait_until_busy(reader);
        disk_reader_promote(reader, &read, READ_DEMAND);
        assert_int_equal(disk_reader_reap(reader, ended, 2, true), 1);
        assert_int_equal(disk_reader_reap(reader, ended, 2, true), 0);
        check_bytes(&read);
        const struct disk_reader_stats stats = disk_reader_stats(reader);
        assert_int_equal(stats.n_read[READ_DEMAND] + stats.n_read[READ_SPECULATIVE], 1);
        assert_int_equal(stats.read_bytes[READ_DEMAND] + stats.read_bytes[READ_SPECULATIVE],
                         30 * MIB);
        disk_reader_destroy(reader);
    }
}

/* A demand waits for what runs, not for what is queued. Pieces may overtake each other, so the
 * bound leaves every slot two of them; a machine that is busy may hold up the thread that has it,
 * but not each time. */
static void test_demand_overtakes_a_preload(void **state)
{
    (void)state;
    enum { N = 100, DEPTH = 8 };
    static struct disk_read read[N + 1];
    struct disk_read *ended;
    for (int m = 0; m < N_MODE; m++) {
        size_t before = N, position = N;
        bool opened = true, overtook = false;
        for (int attempt = 0; !overtook && attempt < 20; attempt++) {
            struct disk_reader *reader = open_reader(&modes[m], DEPTH);
            opened = reader != NULL;
            if (!opened) break;
            for (size_t i = 0; i < N; i++) {
                plan(&read[i], 0, i * 4096, MIB, arena + i * MIB + i * 8192);
                disk_reader_submit(reader, &read[i], READ_BACKGROUND);
            }
            plan(&read[N], 1, 9, 9000, arena + arena_bytes - MIB);
            disk_reader_submit(reader, &read[N], READ_DEMAND);
            before = disk_reader_stats(reader).n_read[READ_BACKGROUND];
            for (size_t n = 0; disk_reader_reap(reader, &ended, 1, true); n++) {
                check_bytes(ended);
                if (ended == &read[N]) position = n;
            }
            disk_reader_destroy(reader);
            overtook = before <= N / 2 && position <= before + 3 * DEPTH;
        }
        if (opened && !overtook)
            fail_msg("the last demand was number %zu, %zu had ended before it", position, before);
    }
}

static void test_destroy_while_reads_run(void **state)
{
    (void)state;
    static struct disk_read read[50];
    for (int m = 0; m < N_MODE; m++) {
        for (int submitted = 0; submitted < 50; submitted += 7) {
            struct disk_reader *reader = open_reader(&modes[m], 4);
            if (!reader) break;
            for (int i = 0; i < submitted; i++) {
                plan(&read[i], 0, (uint64_t)i * MIB / 2, 3 * MIB, arena + i * 4 * (size_t)MIB);
                disk_reader_submit(reader, &read[i], READ_BACKGROUND);
            }
            disk_reader_destroy(reader);
        }
    }
    disk_reader_destroy(NULL);
}

static double cpu_s(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

static void test_idle_costs_nothing(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODE; m += 2) {
        struct disk_reader *reader = open_reader(&modes[m], 8);
        struct disk_read read, *ended;
        if (!reader) continue;
        plan(&read, 0, 0, MIB, arena);
        disk_reader_submit(reader, &read, READ_DEMAND);
        assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
        const double start_s = cpu_s();
        usleep(200000);
        assert_true(cpu_s() - start_s < 0.02);
        disk_reader_destroy(reader);
    }
}

/* Faults. */

static enum read_failure read_one(const struct mode *mode, struct disk_read *read)
{
    struct disk_reader *reader = open_reader(mode, 8);
    struct disk_read *ended;
    if (!reader) return READ_OK;
    disk_reader_submit(reader, read, READ_DEMAND);
    assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
    assert_ptr_equal(ended, read);
    disk_reader_destroy(reader);
    return read->failure;
}

static void test_checksum(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODE; m++) {
        struct disk_read read;
        plan(&read, 0, 12345, 5 * MIB, arena);
        read.has_checksum = true;
        read.checksum = XXH3_64bits(content[0] + 12345, 5 * MIB);
        assert_int_equal(read_one(&modes[m], &read), READ_OK);
        read.checksum ^= 1;
        const enum read_failure failure = read_one(&modes[m], &read);
        if ((int)modes[m].engine != refused_engine) assert_int_equal(failure, READ_CHECKSUM);
    }
}

/* A file that is cut while the reader has it open, and one that has got another behind its name. */
static void test_truncated_and_replaced(void **state)
{
    (void)state;
    char cut_path[80], moved_path[80];
    snprintf(cut_path, sizeof(cut_path), "%s/cut", folder);
    snprintf(moved_path, sizeof(moved_path), "%s/moved", folder);
    for (int m = 0; m < N_MODE; m++) {
        const int fd = open(cut_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(write(fd, content[0], 3 * MIB), 3 * MIB);
        const struct expert_file held = files[0];
        files[0] = (struct expert_file){.path = cut_path, .fd = fd};
        assert_int_equal(rename(cut_path, moved_path), 0);
        const int other = open(cut_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(write(other, content[1], MIB), MIB);
        struct disk_reader *reader = open_reader(&modes[m], 8);
        struct disk_read read, *ended;
        if (reader) {
            plan(&read, 0, 100, 2 * MIB, arena);
            disk_reader_submit(reader, &read, READ_DEMAND);
            assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
            check_bytes(&read);
            assert_int_equal(ftruncate(fd, MIB + 7), 0);
            disk_reader_submit(reader, &read, READ_DEMAND);
            assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
            assert_int_equal(read.failure, READ_SHORT);
            disk_reader_destroy(reader);
        }
        files[0] = held;
        close(other);
        close(fd);
        unlink(moved_path);
        unlink(cut_path);
    }
}

/* A "disk" with a hole: the memory of this process, of which one page is unmapped. It also refuses
 * direct reads. What lies before the hole is read, the hole is an EIO. */
static void test_error_of_the_device(void **state)
{
    (void)state;
    char *memory = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memcpy(memory, content[0], 3 * MIB);
    munmap(memory + MIB, DISK_ALIGN);
    const struct expert_file held = files[1];
    files[1] = (struct expert_file){.path = "/proc/self/mem",
                                    .fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC)};
    assert_true(files[1].fd >= 0);
    for (int m = 0; m < N_MODE; m++) {
        struct disk_reader *reader = open_reader(&modes[m], 8);
        struct disk_read bad, good, *ended[2];
        if (!reader) continue;
        plan(&bad, 1, (uintptr_t)memory + MIB - 100000, 200000, arena);
        plan(&good, 1, (uintptr_t)memory + MIB + DISK_ALIGN, MIB, arena + 2 * MIB);
        disk_reader_submit(reader, &bad, READ_DEMAND);
        disk_reader_submit(reader, &good, READ_DEMAND);
        for (size_t n = 0; n < 2;)
            n += disk_reader_reap(reader, ended, 2, true);
        assert_int_equal(bad.failure, READ_ERROR);
        assert_int_equal(bad.os_error, EIO);
        assert_int_equal(good.failure, READ_OK);
        assert_memory_equal(good.to[0], content[0] + MIB + DISK_ALIGN, MIB);
        disk_reader_destroy(reader);
    }
    close(files[1].fd);
    files[1] = held;
    munmap(memory, MIB);
    munmap(memory + MIB + DISK_ALIGN, 2 * MIB - DISK_ALIGN);
}

/* What single calls may bring. */
static void test_calls_that_bring_less(void **state)
{
    (void)state;
    char *to = arena;
    struct disk_piece piece = {
        .direct = true, .to = to, .offset = 8192, .n_bytes = 40960, .n_needed = 37000};
    assert_false(disk_piece_advance(&piece, -EINTR));
    assert_false(disk_piece_advance(&piece, -EAGAIN));
    assert_false(disk_piece_advance(&piece, 5000)); /* goes on at a whole block */
    assert_ptr_equal(piece.to, to + 4096);
    assert_int_equal(piece.offset, 12288);
    assert_int_equal(piece.n_bytes, 36864);
    assert_false(disk_piece_advance(&piece, 20480)); /* ends with a block */
    assert_int_equal(piece.offset, 32768);
    struct disk_piece short_piece = piece;
    assert_true(disk_piece_advance(&piece, 12424)); /* the end of the file, behind what is needed */
    assert_int_equal(piece.failure, READ_OK);

    assert_false(disk_piece_advance(&short_piece, 12423)); /* one byte less: is there more? */
    assert_int_equal(short_piece.offset, 32768 + 12288);
    assert_true(disk_piece_advance(&short_piece, 135)); /* no */
    assert_int_equal(short_piece.failure, READ_SHORT);

    struct disk_piece refused = {.direct = true, .n_bytes = 4096, .n_needed = 10};
    assert_false(disk_piece_advance(&refused, -EINVAL)); /* then through the cache */
    assert_false(refused.direct);
    assert_true(disk_piece_advance(&refused, -EINVAL));
    assert_int_equal(refused.failure, READ_ERROR);
    assert_int_equal(refused.os_error, EINVAL);

    struct disk_piece stuck = {.n_bytes = 10, .n_needed = 10};
    int n_call = 1;
    while (!disk_piece_advance(&stuck, -EAGAIN))
        assert_in_range(++n_call, 1, 10000);
    assert_int_equal(stuck.os_error, EAGAIN);
}

/* Access. */

static size_t n_cached(const uint8_t *mapping, size_t n_page)
{
    static unsigned char in_core[40 * MIB / 4096];
    size_t n = 0;
    assert_int_equal(mincore((void *)mapping, n_page * 4096, in_core), 0);
    for (size_t i = 0; i < n_page; i++)
        n += in_core[i] & 1;
    return n;
}

/* Buffered reads leave pages behind, unless they are to be dropped; the system may have taken a few
 * back already. */
static void test_dropping_from_the_cache(void **state)
{
    (void)state;
    enum { N_PAGE = 2048 };
    const uint8_t *mapping = mmap(NULL, N_PAGE * 4096, PROT_READ, MAP_SHARED, files[0].fd, 0);
    assert_ptr_not_equal(mapping, MAP_FAILED);
    posix_fadvise(files[0].fd, 0, 0, POSIX_FADV_DONTNEED);
    if (n_cached(mapping, N_PAGE)) {
        printf("not run: %s keeps its files in memory\n", folder);
        munmap((void *)mapping, N_PAGE * 4096);
        return;
    }
    for (int drop = 1; drop >= 0; drop--) {
        struct disk_reader *reader;
        struct disk_read read, *ended;
        struct lm_error err;
        const struct disk_reader_config config = {
            .file = files, .n_file = N_FILE, .access = DISK_ACCESS_BUFFERED, .drop_cached = drop};
        assert_int_equal(disk_reader_create(&reader, &config, &err), LM_OK);
        assert_false(disk_reader_stats(reader).direct);
        plan(&read, 0, 5000, 6 * MIB, arena);
        disk_reader_submit(reader, &read, READ_DEMAND);
        assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
        check_bytes(&read);
        disk_reader_destroy(reader);
        assert_in_range(n_cached(mapping, N_PAGE), drop ? 0 : 5 * MIB / 4096, drop ? 64 : N_PAGE);
    }
    munmap((void *)mapping, N_PAGE * 4096);
}

/* A file that is large enough to be tried out: both rates are known, and reads are right. */
static void test_probe(void **state)
{
    (void)state;
    struct disk_reader *reader;
    struct lm_error err;
    struct disk_read read, *ended;
    char large_path[80];
    snprintf(large_path, sizeof(large_path), "%s/large", folder);
    const int fd = open(large_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(pwrite(fd, content[0], 4 * MIB, 90 * MIB), 4 * MIB);
    const struct expert_file large = {.path = large_path, .fd = fd};
    const struct disk_reader_config config = {.file = &large, .n_file = 1};
    assert_int_equal(disk_reader_create(&reader, &config, &err), LM_OK);
    struct disk_reader_stats stats = disk_reader_stats(reader);
    if (stats.probe_direct_rate > 0) {
        assert_true(stats.probe_buffered_rate > 0);
        assert_int_equal(stats.direct, stats.probe_direct_rate * 1.25 >= stats.probe_buffered_rate);
        assert_true(stats.probe_shallow_rate > 0);
        assert_int_equal(reader->shallow_is_fast,
                         stats.probe_shallow_rate >= 0.75 * stats.probe_direct_rate);
    } else {
        printf("not run: no direct reads in %s\n", folder);
    }
    assert_int_equal(stats.n_read[READ_DEMAND], 0); /* the probe's own do not count */
    plan(&read, 0, 90 * MIB + 3, 3 * MIB, arena);
    disk_reader_submit(reader, &read, READ_BACKGROUND);
    assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
    assert_int_equal(read.failure, READ_OK);
    assert_memory_equal(read.to[0], content[0] + 3, 3 * MIB);
    stats = disk_reader_stats(reader);
    assert_int_equal(stats.n_read[READ_BACKGROUND], 1);
    assert_true(stats.busy_s > 0);
    disk_reader_destroy(reader);
    close(fd);
    unlink(large_path);
}

static void write_all(int fd, const uint8_t *bytes, size_t n_bytes)
{
    assert_int_equal(pwrite(fd, bytes, n_bytes, 0), (ssize_t)n_bytes);
    assert_int_equal(fdatasync(fd), 0);
}

/* A file that is another while it is read and the same again at the end is read again. The read
 * cannot end while the test holds the lock. */
static void test_mended_while_it_is_read(void **state)
{
    (void)state;
    const size_t n_bytes = file_bytes[0], n_head = 64 << 10;
    uint8_t *other = malloc(n_bytes);
    memcpy(other, content[0], n_bytes);
    for (size_t at = n_head; at < n_bytes; at++)
        other[at] ^= 1;
    for (int i = 0; i < N_MODE; i++) {
        struct disk_reader *reader = open_reader(&modes[i], 0);
        struct disk_read read, *ended;
        if (!reader) continue;
        write_all(files[0].fd, other, n_bytes);
        plan(&read, 0, MIB, 30 * MIB, arena);
        disk_reader_submit(reader, &read, READ_DEMAND);
        pthread_mutex_lock(&reader->lock);
        while (!read.n_running && !reader->done.first) {
            pthread_mutex_unlock(&reader->lock);
            pthread_mutex_lock(&reader->lock);
        }
        const bool over = !read.n_running; /* the test was held up so long: once more */
        usleep(20000);                     /* what runs has read the other bytes by now */
        write_all(files[0].fd, content[0], n_bytes);
        pthread_mutex_unlock(&reader->lock);
        assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
        if (over) i--;
        if (!over) check_bytes(&read);
        disk_reader_destroy(reader);
    }
    free(other);
}

/* Few pieces run at once where that was asked for and found to be fast, and all reads end. */
static void test_shallow(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODE; i++) {
        struct disk_reader *reader = open_reader(&modes[i], 8);
        struct disk_read read[N_READ], *ended;
        if (!reader) continue;
        reader->shallow_is_fast = true;
        disk_reader_set_shallow(reader, true);
        for (int k = 0; k < N_READ; k++) {
            plan(&read[k], 0, (uint64_t)k * MIB + 5, MIB, arena + (size_t)k * 2 * MIB);
            disk_reader_submit(reader, &read[k], k % 2 ? READ_DEMAND : READ_BACKGROUND);
        }
        for (int n = 0; n < N_READ; n++) {
            pthread_mutex_lock(&reader->lock);
            const uint32_t n_piece = reader->n_piece;
            pthread_mutex_unlock(&reader->lock);
            assert_in_range(n_piece, 0, 2);
            assert_int_equal(disk_reader_reap(reader, &ended, 1, true), 1);
            check_bytes(ended);
        }
        assert_int_equal(reader->piece_bytes, 0);
        disk_reader_destroy(reader);
    }
}

static void test_depth_is_bounded(void **state)
{
    (void)state;
    struct disk_reader *reader;
    struct lm_error err;
    const struct disk_reader_config config = {.file = files, .n_file = N_FILE, .depth = 33};
    assert_int_equal(disk_reader_create(&reader, &config, &err), LM_E_LIMIT);
}

/* What a process is not allowed, tried in a child. */

/* Reads one extent; true if the bytes are right and the engine has that name. */
static bool reads_with(const char *engine)
{
    struct disk_reader *reader;
    struct lm_error err;
    struct disk_read read, *ended;
    const struct disk_reader_config config = {
        .file = files, .n_file = N_FILE, .arena = arena, .arena_bytes = arena_bytes};
    if (disk_reader_create(&reader, &config, &err) != LM_OK) return false;
    const bool right_engine = !strcmp(disk_reader_stats(reader).engine, engine);
    plan(&read, 0, 70001, 7 * MIB, arena);
    disk_reader_submit(reader, &read, READ_DEMAND);
    const bool right_bytes = disk_reader_reap(reader, &ended, 1, true) == 1 && !read.failure &&
                             !memcmp(read.to[0], content[0] + 70001, 7 * MIB);
    disk_reader_destroy(reader);
    return right_engine && right_bytes;
}

static int read_without_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = 4, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        printf("not run: no system call filters here\n");
        return 0;
    }
    struct disk_reader *reader;
    struct lm_error err;
    const struct disk_reader_config config = {
        .file = files, .n_file = N_FILE, .engine = DISK_ENGINE_URING};
    if (disk_reader_create(&reader, &config, &err) != LM_E_UNSUPPORTED) return 1;
    return !reads_with("threads");
}

/* The user may neither lock the arena nor open the files again. */
static int read_as_nobody(void)
{
    const struct rlimit usual = {8 * MIB, 8 * MIB}; /* enough for the ring, not for the arena */
    if (setrlimit(RLIMIT_MEMLOCK, &usual) || (!geteuid() && setresuid(65534, 65534, 65534)))
        return 2;
    return !reads_with(refused_engine == DISK_ENGINE_URING ? "threads" : "io_uring");
}

static void check_in_child(int (*run)(void))
{
    int status;
    fflush(stdout);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) _exit(run());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_io_uring_refused(void **state)
{
    (void)state;
    check_in_child(read_without_uring);
}

static void test_few_rights(void **state)
{
    (void)state;
    check_in_child(read_as_nobody);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_extents),
        cmocka_unit_test(test_demand_before_speculative_before_background),
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_promotion_of_a_running_read),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_demand_overtakes_a_preload),
        cmocka_unit_test(test_destroy_while_reads_run),
        cmocka_unit_test(test_idle_costs_nothing),
        cmocka_unit_test(test_short_files),
        cmocka_unit_test(test_truncated_and_replaced),
        cmocka_unit_test(test_error_of_the_device),
        cmocka_unit_test(test_calls_that_bring_less),
        cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_dropping_from_the_cache),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_shallow),
        cmocka_unit_test(test_mended_while_it_is_read),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_io_uring_refused),
        cmocka_unit_test(test_few_rights),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
