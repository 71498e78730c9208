/* A file that another was written over is told, though both begin alike; one that was touched, cut
 * off or made longer is still itself. */
#include "tests/unit/cmocka_all.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/file_identity.h"

enum { N_BYTES = 3 << 20, HEAD = FILE_IDENTITY_HEAD_BYTES };

static char *bytes;
static int fd;

static int open_file(void **state)
{
    char path[] = "/tmp/lean-test-identity-XXXXXX";
    (void)state;
    bytes = malloc(N_BYTES);
    for (size_t i = 0; i < N_BYTES; i++)
        bytes[i] = (char)(i * 2654435761u >> 13);
    fd = mkstemp(path);
    unlink(path);
    return fd < 0 || write(fd, bytes, N_BYTES) != N_BYTES;
}

static int close_file(void **state)
{
    (void)state;
    free(bytes);
    return close(fd);
}

/* Writing twice within a tick of the clock leaves no trace; tests are that fast, people are not. */
static void touch(void)
{
    static time_t second = 1000;
    const struct timespec times[2] = {{.tv_sec = second}, {.tv_sec = second}};
    second++;
    assert_int_equal(futimens(fd, times), 0);
}

static void put(const char *from, size_t n, off_t at)
{
    assert_int_equal(pwrite(fd, from, n, at), (ssize_t)n);
    touch();
}

static void test_another_with_the_same_beginning(void **state)
{
    (void)state;
    char *other = malloc(N_BYTES);
    memcpy(other, bytes, N_BYTES);
    for (size_t i = HEAD; i < N_BYTES; i++)
        other[i] ^= 1;
    struct file_identity identity = file_identity_of(fd);
    assert_true(file_identity_holds(&identity, fd));
    put(other, N_BYTES, 0);
    assert_false(file_identity_holds(&identity, fd));
    assert_false(file_identity_holds(&identity, fd)); /* and remains so */
    put(bytes, N_BYTES, 0);
    assert_true(file_identity_holds(&identity, fd));
    free(other);
}

/* A part that is as long as two pieces are apart cannot be missed, wherever it is. */
static void test_a_part_that_differs(void **state)
{
    (void)state;
    enum { PART = N_BYTES / FILE_IDENTITY_N_PIECE + 2 * FILE_IDENTITY_PIECE_BYTES };
    char *part = malloc(PART);
    struct file_identity identity = file_identity_of(fd);
    for (off_t at = 0; at + PART <= N_BYTES; at += 37 * 1024 + 11) {
        for (size_t i = 0; i < PART; i++)
            part[i] = (char)~bytes[(size_t)at + i];
        put(part, PART, at);
        assert_false(file_identity_holds(&identity, fd));
        put(bytes + at, PART, at);
        assert_true(file_identity_holds(&identity, fd));
    }
    free(part);
}

static void test_the_same_again(void **state)
{
    (void)state;
    struct file_identity identity = file_identity_of(fd);
    touch();
    assert_true(file_identity_holds(&identity, fd));
    put(bytes, N_BYTES, 0);
    assert_true(file_identity_holds(&identity, fd));
    put("more", 4, N_BYTES);
    assert_true(file_identity_holds(&identity, fd));
    assert_int_equal(ftruncate(fd, N_BYTES), 0);
}

/* What is left of it counts, until it is longer again and something else. */
static void test_cut_off(void **state)
{
    (void)state;
    struct file_identity identity = file_identity_of(fd);
    assert_int_equal(ftruncate(fd, N_BYTES / 2), 0);
    touch();
    assert_true(file_identity_holds(&identity, fd));
    char *rest = calloc(1, N_BYTES / 2);
    assert_int_equal(pwrite(fd, rest, N_BYTES / 2, N_BYTES / 2), N_BYTES / 2); /* time goes on */
    struct timespec times[2] = {identity.modified, identity.modified};
    times[1].tv_nsec ^= 1;
    futimens(fd, times);
    assert_false(file_identity_holds(&identity, fd));
    put(bytes + N_BYTES / 2, N_BYTES / 2, N_BYTES / 2);
    assert_true(file_identity_holds(&identity, fd));
    free(rest);
}

static void test_short_files_and_others(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    struct file_identity identity = file_identity_of(ends[0]);
    assert_false(identity.regular);
    assert_true(file_identity_holds(&identity, ends[0]));
    close(ends[0]);
    close(ends[1]);
    for (off_t n = 0; n < 3 * FILE_IDENTITY_PIECE_BYTES; n += 1000) {
        assert_int_equal(ftruncate(fd, n), 0);
        identity = file_identity_of(fd);
        touch();
        assert_true(file_identity_holds(&identity, fd));
        put("x", 1, n);
        assert_int_equal(file_identity_holds(&identity, fd), false); /* the head is longer */
        assert_int_equal(ftruncate(fd, n), 0);
    }
    assert_int_equal(pwrite(fd, bytes, N_BYTES, 0), N_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_with_the_same_beginning),
        cmocka_unit_test(test_a_part_that_differs),
        cmocka_unit_test(test_the_same_again),
        cmocka_unit_test(test_cut_off),
        cmocka_unit_test(test_short_files_and_others),
    };
    return cmocka_run_group_tests(tests, open_file, close_file);
}
