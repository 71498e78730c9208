/* What ranks of a job get of devices that they have in common. */
#include "launch/device.h"

#include <string.h>

#include "tests/unit/cmocka_all.h"

enum { N = 4 };

/* Two hosts with a device of the same name each, which two ranks of the first host share. */
static void claim(struct device_claim claims[N], bool share)
{
    static const char *const hosts[N] = {"a", "a", "b", "a"}, *const uuids[N] = {"1", "1", "1", ""};
    static const char *const ranks[N] = {"rank 0 (a)", "rank 1 (a)", "rank 2 (b)", "rank 3 (a)"};
    for (uint32_t i = 0; i < N; i++)
        claims[i] = (struct device_claim){.host = hosts[i],
                                          .uuid = uuids[i],
                                          .rank = ranks[i],
                                          .name = "cuda:0 (X)",
                                          .share = share,
                                          .budget_bytes = 1000 - i};
}

static void test_halves(void **state)
{
    (void)state;
    struct lm_error err;
    struct device_claim claims[N];
    claim(claims, true);
    assert_int_equal(device_share(claims, N, &err), LM_OK);
    assert_int_equal(claims[0].budget_bytes, 499); /* of the least that was found */
    assert_int_equal(claims[1].budget_bytes, 499);
    assert_int_equal(claims[2].budget_bytes, 998); /* another host's */
    assert_int_equal(claims[3].budget_bytes, 997); /* nobody else can have it */
}

static void test_who_asks_gets(void **state)
{
    (void)state;
    struct lm_error err;
    struct device_claim claims[N];
    claim(claims, true);
    claims[0].asked_bytes = claims[0].budget_bytes = 300;
    assert_int_equal(device_share(claims, N, &err), LM_OK);
    assert_int_equal(claims[0].budget_bytes, 300);
    assert_int_equal(claims[1].budget_bytes, 699);
    claim(claims, true);
    claims[0].asked_bytes = claims[0].budget_bytes = 2000;
    assert_int_equal(device_share(claims, N, &err), LM_OK);
    assert_int_equal(claims[1].budget_bytes, 1); /* nothing fits, which is told */
}

static void test_not_without_being_told(void **state)
{
    (void)state;
    struct lm_error err;
    struct device_claim claims[N];
    claim(claims, false);
    claims[0].share = true;
    assert_int_equal(device_share(claims, N, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "rank 0 (a) and rank 1 (a) have the same device, cuda:0"));
    assert_non_null(strstr(err.hint, "--share-gpu"));
    claims[1].uuid = "2";
    assert_int_equal(device_share(claims, N, &err), LM_OK);
    assert_int_equal(claims[0].budget_bytes, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_who_asks_gets),
        cmocka_unit_test(test_not_without_being_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
