/* The disk reader brings the bytes of the files, in the order that priorities ask for, and says
 * what went wrong; by every engine and access. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
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
        printf("not run: %s\n", err.message);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short_files),
        cmocka_unit_test(test_random_extents),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
