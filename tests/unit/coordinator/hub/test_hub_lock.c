/* Locks that other processes, users and programs left. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/hub/hub_lock.h"
#include "tests/unit/cmocka_all.h"

static char folder[] = "/tmp/lean-test-lock-XXXXXX";
static char path[64];

static enum lm_status give_up(void *context, const char *lock_path, const char *holder,
                              struct lm_error *err)
{
    (void)lock_path;
    snprintf(context, 320, "%s", holder);
    return lm_fail(err, LM_E_BUSY, "held");
}

static void test_held_and_released(void **state)
{
    struct hub_lock *lock, *other;
    char holder[320], expected[40];
    (void)state;
    assert_int_equal(hub_lock_acquire(&lock, path, give_up, holder, NULL), LM_OK);
    assert_int_equal(hub_lock_acquire(&other, path, give_up, holder, NULL), LM_E_BUSY);
    snprintf(expected, sizeof(expected), "process %d on ", (int)getpid());
    assert_ptr_equal(strstr(holder, expected), holder);
    assert_int_equal(hub_lock_beat(lock, NULL), LM_OK);
    hub_lock_release(lock);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* What is there under the lock's name and cannot be read holds it until it is a minute old. */
static void check_unreadable(void)
{
    const struct timespec then[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    struct hub_lock *lock;
    char holder[320];
    assert_int_equal(hub_lock_acquire(&lock, path, give_up, holder, NULL), LM_E_BUSY);
    assert_non_null(strstr(holder, "unknown"));
    assert_int_equal(utimensat(AT_FDCWD, path, then, AT_SYMLINK_NOFOLLOW), 0);
    assert_int_equal(hub_lock_acquire(&lock, path, give_up, holder, NULL), LM_OK);
    hub_lock_release(lock);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void test_locks_that_cannot_be_read(void **state)
{
    (void)state;
    alarm(20); /* it must not try for ever */
    assert_int_equal(symlink("nowhere", path), 0);
    check_unreadable();
    assert_int_equal(mkfifo(path, 0600), 0);
    check_unreadable();
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)); /* empty */
    check_unreadable();
    alarm(0);
}

int main(void)
{
    if (!mkdtemp(folder)) return 1;
    snprintf(path, sizeof(path), "%s/lock", folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held_and_released),
        cmocka_unit_test(test_locks_that_cannot_be_read),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
