/* Limits are found in the group and above it, in both versions of the files. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/cgroup.h"

static char root[] = "/tmp/lean-test-cgroup-XXXXXX";

/* Writes a file below root, with the folders it needs. */
static void put(const char *path, const char *text)
{
    char full[400];
    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        mkdir(full, 0700);
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root + strlen(root) - 6, "XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

static void test_version_2(void **state)
{
    (void)state;
    assert_int_equal(cgroup_cpu_limit(root), UINT32_MAX); /* nothing there */
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(cgroup_cpu_limit(root), UINT32_MAX);
    put("sys/fs/cgroup/a/cpu.max", "350000 100000\n");
    assert_int_equal(cgroup_cpu_limit(root), 4);
    put("sys/fs/cgroup/a/b/cpu.max", "200000 100000\n");
    assert_int_equal(cgroup_cpu_limit(root), 2);
    put("sys/fs/cgroup/cpu.max", "1000 100000\n");
    assert_int_equal(cgroup_cpu_limit(root), 1);
    put("proc/self/cgroup", "0::/\n");
    assert_int_equal(cgroup_cpu_limit(root), 1);
}

static void test_version_1(void **state)
{
    (void)state;
    put("proc/self/cgroup", "9:cpuset:/x\n4:cpu,cpuacct:/jobs/7\n3:memory:/jobs/7\n");
    put("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "100000\n"); /* a group of another controller */
    put("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cgroup_cpu_limit(root), UINT32_MAX);
    put("sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us", "250000\n");
    put("sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cgroup_cpu_limit(root), 3);
}

static void test_malformed_files_limit_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "0 0", "0 100000", "100000", "-5 100000", "x y", "max"};
    put("proc/self/cgroup", "::\nnonsense\n0::/a\n");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        put("sys/fs/cgroup/a/cpu.max", bad[i]);
        assert_int_equal(cgroup_cpu_limit(root), UINT32_MAX);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_version_2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_version_1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_malformed_files_limit_nothing, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
