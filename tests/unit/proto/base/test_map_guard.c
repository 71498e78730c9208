/* A guarded mapping outlives the end of its file, and says so; any other dies as ever. */
#include "tests/unit/cmocka_all.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/base/map_guard.h"

enum { PAGE = 4096, N_PAGE = 12, N_BYTES = N_PAGE * PAGE, CUT = 6 * PAGE };

struct mapped {
    int fd;
    const volatile char *data;
};

static void fill(int fd)
{
    char content[N_BYTES];
    memset(content, 'x', sizeof(content));
    assert_int_equal(pwrite(fd, content, sizeof(content), 0), N_BYTES);
}

static struct mapped map_file(void)
{
    char path[] = "/tmp/lean-test-guard-XXXXXX";
    struct mapped mapped = {.fd = mkstemp(path)};
    fill(mapped.fd);
    unlink(path);
    mapped.data = mmap(NULL, N_BYTES, PROT_READ, MAP_SHARED, mapped.fd, 0);
    assert_ptr_not_equal(mapped.data, MAP_FAILED);
    return mapped;
}

static void unmap_file(struct mapped mapped)
{
    munmap((void *)(uintptr_t)mapped.data, N_BYTES);
    close(mapped.fd);
}

static void guard(const void *owner, struct mapped mapped, const char *path)
{
    map_guard_add(owner, (const void *)(uintptr_t)mapped.data, N_BYTES, mapped.fd, path);
}

static void test_a_loss_is_told_once_and_mended(void **state)
{
    (void)state;
    struct map_loss loss;
    const struct mapped a = map_file(), b = map_file();
    guard(&a, a, "a");
    guard(&b, b, "b");
    assert_false(map_guard_check(&a, &loss));
    assert_int_equal(ftruncate(a.fd, CUT + 1), 0);
    assert_int_equal(a.data[0], 'x');
    assert_int_equal(a.data[N_BYTES - 1], 0);
    assert_int_equal(a.data[CUT + PAGE], 0);
    assert_false(map_guard_check(&b, &loss));
    assert_true(map_guard_check(&a, &loss));
    assert_string_equal(loss.path, "a");
    assert_false(loss.replaced);
    assert_int_equal(loss.fd, a.fd);
    assert_int_equal(loss.offset, CUT + PAGE);
    assert_false(map_guard_check(&a, &loss));
    assert_int_equal(a.data[9 * PAGE], 0); /* still not there */
    assert_true(map_guard_check(&a, &loss));
    fill(a.fd);
    assert_int_equal(a.data[9 * PAGE], 'x');
    assert_false(map_guard_check(&a, &loss));
    map_guard_remove(&a);
    map_guard_remove(&b);
    unmap_file(a);
    unmap_file(b);
}

/* The same beginning again makes it the same file again. */
static void test_another_file_is_told_until_it_is_gone(void **state)
{
    (void)state;
    struct map_loss loss;
    const struct mapped a = map_file();
    guard(&a, a, "a");
    assert_int_equal(pwrite(a.fd, "y", 1, 100), 1);
    for (int i = 0; i < 2; i++) {
        assert_true(map_guard_check(&a, &loss));
        assert_true(loss.replaced);
    }
    assert_int_equal(pwrite(a.fd, "x", 1, 100), 1);
    assert_false(map_guard_check(&a, &loss));
    map_guard_remove(&a);
    unmap_file(a);
}

static int signal_of_child(void (*run)(void))
{
    int status;
    const pid_t child = fork();
    if (!child) {
        signal(SIGBUS, SIG_DFL); /* whatever a sanitizer has there */
        run();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void touch_unguarded(void)
{
    const struct mapped a = map_file(), b = map_file();
    guard(&a, a, "a");
    if (!ftruncate(b.fd, 0)) (void)b.data[0];
}

static void touch_after_removal(void)
{
    const struct mapped a = map_file();
    guard(&a, a, "a");
    map_guard_remove(&a);
    if (!ftruncate(a.fd, 0)) (void)a.data[0];
}

static void send_signal(void)
{
    const struct mapped a = map_file();
    guard(&a, a, "a");
    raise(SIGBUS);
}

/* The signal comes while the only thread is all but always inside. */
static void be_killed_in_check(void)
{
    struct map_loss loss;
    const struct mapped a = map_file();
    guard(&a, a, "a");
    alarm(5); /* where it waits for itself */
    if (!fork()) {
        usleep(20000);
        kill(getppid(), SIGBUS);
        _exit(0);
    }
    while (!map_guard_check(&a, &loss)) {
    }
}

static void test_what_is_not_guarded_dies(void **state)
{
    (void)state;
    assert_int_equal(signal_of_child(touch_unguarded), SIGBUS);
    assert_int_equal(signal_of_child(touch_after_removal), SIGBUS);
    assert_int_equal(signal_of_child(send_signal), SIGBUS);
    for (int i = 0; i < 5; i++)
        assert_int_equal(signal_of_child(be_killed_in_check), SIGBUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loss_is_told_once_and_mended),
        cmocka_unit_test(test_another_file_is_told_until_it_is_gone),
        cmocka_unit_test(test_what_is_not_guarded_dies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
