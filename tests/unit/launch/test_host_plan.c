/* Ranks given out to hosts: every rank once, neighbours together, and what cannot be is refused. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "launch/host_plan.h"

static void assert_plan(uint32_t n_rank, const char *hosts, uint32_t n_expected,
                        const char *expected)
{
    struct host_plan plan;
    struct lm_error err = {0};
    assert_int_equal(host_plan_init(&plan, n_rank, hosts, NULL, &err), LM_OK);
    assert_int_equal(plan.n_rank, n_expected);
    if (expected)
        assert_string_equal(plan.hosts, expected);
    else
        assert_null(plan.hosts);
    host_plan_fini(&plan);
}

static void assert_refused(uint32_t n_rank, const char *hosts, const char *words)
{
    struct host_plan plan;
    struct lm_error err = {0};
    assert_int_equal(host_plan_init(&plan, n_rank, hosts, NULL, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, words));
}

static void test_ranks_are_given_out(void **state)
{
    (void)state;
    assert_plan(0, NULL, 1, NULL);
    assert_plan(4, NULL, 4, NULL);
    assert_plan(0, "a", 1, "a");
    assert_plan(0, "a,b:3", 4, "a,b,b,b");
    assert_plan(2, "a:2,b:2", 2, "a,a");
    assert_plan(3, "a:2,b:2", 3, "a,a,b");
    assert_plan(5, "a,b", 5, "a,a,a,b,b"); /* nobody says how many: evenly */
    assert_plan(7, "a,b,c", 7, "a,a,a,b,b,c,c");
    assert_plan(2, "a,b,c", 2, "a,b");
    assert_plan(0, "a,b,a:2", 4, "a,a,a,b"); /* neighbours share a host */
}

static void test_what_cannot_be_is_refused(void **state)
{
    (void)state;
    assert_refused(3, "a:2", "3 ranks, but the hosts have 2 slots");
    assert_refused(0, "", "no name of a host");
    assert_refused(0, "a,", "no name of a host");
    assert_refused(0, "-x", "no name of a host");
    assert_refused(0, "a b", "no name of a host");
    assert_refused(0, "a:", "slots of a");
    assert_refused(0, "a:0", "slots of a");
    assert_refused(0, "a:1:2", "slots of a");
    assert_refused(0, "a:9999999999999999999", "slots of a");
}

static void test_a_file_of_hosts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *hosts, *fails;
    } cases[] = {
        {"# all\na slots=2 max_slots=4\n\n b:3 # big\nc\n", "a,a,b,b,b,c", NULL},
        {"a\r\nb slots=2\r\n", "a,b,b", NULL},
        {"", NULL, "no hosts in it"},
        {"a\nb slots=x\n", NULL, ":2: 'slots=x' is not slots=N"},
        {"a port=22\n", NULL, ":1: 'port=22' is not slots=N"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char path[] = "/tmp/lean-hosts-XXXXXX";
        struct host_plan plan;
        struct lm_error err = {0};
        FILE *file = fdopen(mkstemp(path), "w");
        fputs(cases[i].text, file);
        fclose(file);
        const enum lm_status status = host_plan_init(&plan, 0, NULL, path, &err);
        unlink(path);
        if (cases[i].hosts) {
            assert_int_equal(status, LM_OK);
            assert_string_equal(plan.hosts, cases[i].hosts);
            host_plan_fini(&plan);
        } else {
            assert_int_equal(status, LM_E_USAGE);
            assert_non_null(strstr(err.message, cases[i].fails));
        }
    }
}

static void test_whether_rank_0_is_here(void **state)
{
    (void)state;
    static const struct {
        const char *hosts;
        bool here;
    } cases[] = {{"localhost,b", true}, {"127.0.0.1", true}, {"host.invalid,localhost", false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct host_plan plan;
        assert_int_equal(host_plan_init(&plan, 0, cases[i].hosts, NULL, NULL), LM_OK);
        assert_int_equal(plan.rank0_is_here, cases[i].here);
        host_plan_fini(&plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_are_given_out),
        cmocka_unit_test(test_what_cannot_be_is_refused),
        cmocka_unit_test(test_a_file_of_hosts),
        cmocka_unit_test(test_whether_rank_0_is_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
