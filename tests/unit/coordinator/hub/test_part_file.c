/* Ranges in any order against a plain map of bytes; what a journal gives back; punched ranges. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/hub/part_file.h"
#include "tests/unit/cmocka_all.h"

enum { N = 4096 };
static char folder[] = "/tmp/lean-test-part-XXXXXX";
static char path[64];

static struct part_file *open_part(uint64_t n_bytes, const char *hash)
{
    struct part_file *part;
    assert_int_equal(part_file_open(&part, path, "m.gguf", n_bytes, hash, NULL), LM_OK);
    return part;
}

/* All the gaps, held against the bytes that are there. */
static void check_gaps(struct part_file *part, const uint8_t *there)
{
    uint64_t n_there = 0, prefix = 0;
    struct byte_range gap;
    for (uint64_t i = 0; i < N; i++)
        n_there += there[i];
    while (prefix < N && there[prefix])
        prefix++;
    assert_int_equal(part_file_done(part), n_there);
    assert_int_equal(part_file_prefix(part), prefix);
    uint64_t at = 0;
    while (part_file_next_gap(part, at, &gap)) {
        for (; at < gap.start; at++)
            assert_true(there[at]);
        for (; at < gap.end; at++)
            assert_false(there[at]);
    }
    for (; at < N; at++)
        assert_true(there[at]);
}

static void test_ranges_and_journal(void **state)
{
    uint8_t there[N] = {0}, synced[N] = {0}, bytes[N];
    (void)state;
    for (size_t i = 0; i < N; i++)
        bytes[i] = (uint8_t)(i * 31 >> 3);
    srand(7);
    for (int round = 0; round < 20; round++) {
        struct part_file *part = open_part(N, "abc");
        memcpy(there, synced, N); /* the rest of the last round was not in the journal */
        for (int k = 0; k < 12; k++) {
            const size_t start = (size_t)rand() % N, n = (size_t)rand() % 200 % (N - start) + 1;
            const size_t length = start + n <= N ? n : N - start;
            assert_int_equal(part_file_write(part, start, bytes + start, length, NULL), LM_OK);
            memset(there + start, 1, length);
            check_gaps(part, there);
            if (k % 5 != 4) continue;
            assert_int_equal(part_file_sync(part, NULL), LM_OK);
            assert_int_equal(part_file_unsynced(part), 0);
            memcpy(synced, there, N);
        }
        part_file_close(part);
    }
    struct part_file *part = open_part(N, "abc");
    check_gaps(part, synced);
    for (size_t i = 0; i < N; i++) {
        uint8_t byte;
        assert_int_equal(part_file_read(part, i, &byte, 1, NULL), LM_OK);
        if (synced[i]) assert_int_equal(byte, bytes[i]);
    }
    part_file_close(part);
    uint64_t n_done, n_all;
    char *name;
    assert_true(part_file_peek(path, "abc", &n_done, &n_all, &name));
    assert_int_equal(n_all, N);
    assert_string_equal(name, "m.gguf");
    free(name);
    assert_false(part_file_peek(path, "other", &n_done, &n_all, NULL));
    part = open_part(N, "other"); /* another file of that name starts over */
    assert_int_equal(part_file_done(part), 0);
    part_file_close(part);
    part_file_remove(path);
}

static void test_publish(void **state)
{
    struct stat info;
    (void)state;
    struct part_file *part = open_part(5, "abc");
    assert_int_equal(part_file_write(part, 0, "12345", 5, NULL), LM_OK);
    assert_int_equal(part_file_sync(part, NULL), LM_OK);
    assert_int_equal(part_file_publish(part, NULL), LM_OK);
    part_file_close(part);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 5);
    uint64_t n_done, n_all;
    assert_false(part_file_peek(path, NULL, &n_done, &n_all, NULL));
    unlink(path);
}

static void test_what_is_punched_out_is_fetched_again_by_another_run(void **state)
{
    enum { MIB = 1 << 20, N_MIB = 32 };
    struct byte_range gap;
    uint8_t *bytes = malloc(MIB);
    (void)state;
    memset(bytes, 7, MIB);
    struct part_file *part = open_part((uint64_t)N_MIB * MIB, "abc");
    for (uint64_t i = 0; i < N_MIB; i++)
        assert_int_equal(part_file_write(part, i * MIB, bytes, MIB, NULL), LM_OK);
    assert_int_equal(part_file_release(part, (struct byte_range){2 * MIB, 20 * MIB}, NULL), LM_OK);
    assert_int_equal(part_file_punch(part, NULL), LM_OK); /* nothing is hashed: nothing happens */
    assert_int_equal(part_file_read(part, 2 * MIB, bytes, 1, NULL), LM_OK);
    assert_int_equal(bytes[0], 7);
    part_file_set_hashed(part, 10 * MIB);
    assert_int_equal(part_file_punch(part, NULL), LM_OK);
    assert_int_equal(part_file_read(part, 2 * MIB, bytes, 1, NULL), LM_OK);
    assert_int_equal(bytes[0], 0);
    assert_int_equal(part_file_read(part, 10 * MIB, bytes, 1, NULL), LM_OK);
    assert_int_equal(bytes[0], 7);
    assert_false(part_file_next_gap(part, 0, &gap)); /* in this run it counts as there */
    part_file_close(part);
    part = open_part((uint64_t)N_MIB * MIB, "abc");
    assert_true(part_file_next_gap(part, 0, &gap));
    assert_int_equal(gap.start, 2 * MIB);
    assert_int_equal(gap.end, 10 * MIB);
    assert_false(part_file_next_gap(part, gap.end, &gap));
    part_file_close(part);
    part_file_remove(path);
    free(bytes);
}

/* Many lines come of a long download over several connections. */
static void test_a_long_journal(void **state)
{
    enum { N_LANE = 64, N_STEP = 200 };
    struct stat info;
    char journal[80];
    (void)state;
    struct part_file *part = open_part(N_LANE * 1000, "abc");
    for (uint64_t i = 0; i < N_STEP; i++) {
        for (uint64_t lane = 0; lane < N_LANE; lane++)
            assert_int_equal(part_file_write(part, lane * 1000 + i, "x", 1, NULL), LM_OK);
        assert_int_equal(part_file_sync(part, NULL), LM_OK);
    }
    snprintf(journal, sizeof(journal), "%s.lean-part.j", path);
    assert_int_equal(stat(journal, &info), 0);
    assert_in_range(info.st_size, 1, 4500 * 12); /* of 12800 lines */
    part_file_close(part);
    part = open_part(N_LANE * 1000, "abc");
    assert_int_equal(part_file_done(part), N_LANE * N_STEP);
    part_file_close(part);

    FILE *file = fopen(journal, "w");
    fputs("lean-part 1 10000000000 abc m\n", file);
    for (unsigned long long i = 0; i < 300000; i++)
        fprintf(file, "%llu %llu\n", i * 20000, i * 20000 + 10000);
    fclose(file);
    uint64_t n_done, n_all;
    alarm(10); /* time and memory that grow with the square would take minutes */
    assert_true(part_file_peek(path, "abc", &n_done, &n_all, NULL));
    alarm(0);
    assert_int_equal(n_done, 300000ull * 10000);
    part_file_remove(path);
}

int main(void)
{
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof(path), "%s/blob", folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges_and_journal),
        cmocka_unit_test(test_publish),
        cmocka_unit_test(test_what_is_punched_out_is_fetched_again_by_another_run),
        cmocka_unit_test(test_a_long_journal),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
