/* What the ranks of a host get of its nodes and devices. */
#include "launch/binding.h"

#include <string.h>

#include "tests/unit/cmocka_all.h"

static void expect_nodes(uint32_t index, uint32_t n, uint32_t n_node, uint32_t begin, uint32_t end)
{
    uint32_t first, behind;
    binding_nodes((struct local_rank){index, n}, n_node, &first, &behind);
    assert_int_equal(first, begin);
    assert_int_equal(behind, end);
}

static void test_nodes_are_divided_in_order(void **state)
{
    (void)state;
    expect_nodes(0, 1, 4, 0, 4);
    expect_nodes(0, 2, 4, 0, 2);
    expect_nodes(1, 2, 4, 2, 4);
    expect_nodes(2, 4, 4, 2, 3);
    expect_nodes(0, 2, 3, 0, 1); /* one has one more */
    expect_nodes(1, 2, 3, 1, 3);
    expect_nodes(0, 4, 2, 0, 1); /* two ranks a node */
    expect_nodes(1, 4, 2, 0, 1);
    expect_nodes(2, 4, 2, 1, 2);
    expect_nodes(3, 4, 2, 1, 2);
}

/* Whatever the numbers, each rank has a node and each node a rank. */
static void test_no_node_and_no_rank_is_left_out(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 20; n++)
        for (uint32_t n_node = 1; n_node <= 20; n_node++) {
            bool taken[20] = {false};
            for (uint32_t i = 0; i < n; i++) {
                uint32_t begin, end;
                binding_nodes((struct local_rank){i, n}, n_node, &begin, &end);
                assert_true(begin < end && end <= n_node);
                for (uint32_t node = begin; node < end; node++)
                    taken[node] = true;
            }
            for (uint32_t node = 0; node < n_node; node++)
                assert_true(taken[node]);
        }
}

static const char *const uuids[] = {"00aa-0", "00aa-1", "00aa-2", "00aa-3",
                                    "00aa-4", "00aa-5", "00aa-6", "00aa-7"};

static uint32_t device_of(uint32_t index, uint32_t n, const char *devices, uint32_t n_device)
{
    uint32_t device;
    struct lm_error err;
    assert_int_equal(
        binding_device((struct local_rank){index, n}, devices, uuids, n_device, &device, &err),
        LM_OK);
    return device;
}

static void test_a_device_for_each_rank(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(device_of(i, 4, NULL, 8), i);
    assert_int_equal(device_of(0, 2, "3,1", 4), 3);
    assert_int_equal(device_of(1, 2, "3,1", 4), 1);
    assert_int_equal(device_of(1, 2, "5,7,2", 8), 7);
    assert_int_equal(device_of(1, 2, "5,GPU-00AA-3", 8), 3);
    assert_int_equal(device_of(0, 1, "00aa-6", 8), 6);
}

/* Each may see one of its own as its only one. */
static void test_fewer_devices_than_ranks(void **state)
{
    (void)state;
    assert_int_equal(device_of(2, 3, NULL, 2), 0);
    assert_int_equal(device_of(3, 4, "1,0", 2), 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(device_of(i, 4, NULL, 1), 0);
}

static void expect_refused(const char *devices, uint32_t n, uint32_t n_device, const char *text)
{
    uint32_t device;
    struct lm_error err;
    assert_int_equal(
        binding_device((struct local_rank){0, n}, devices, uuids, n_device, &device, &err),
        LM_E_USAGE);
    if (!strstr(err.message, text)) fail_msg("%s", err.message);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    expect_refused("", 1, 2, "no list of devices");
    expect_refused("0,", 1, 2, "no list of devices");
    expect_refused("0,x", 1, 2, "there is no device x, but 2");
    expect_refused("0 1", 1, 2, "there is no device 0 1");
    expect_refused("GPU-00aa-2", 1, 2, "there is no device GPU-00aa-2");
    expect_refused("1,GPU-00aa-1", 1, 2, "device 1 twice");
    expect_refused("99999999999999999999", 1, 2, "there is no device");
    expect_refused("0,2", 1, 2, "there is no device 2, but 2");
    expect_refused("1,0,1", 1, 2, "device 1 twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nodes_are_divided_in_order),
        cmocka_unit_test(test_no_node_and_no_rank_is_left_out),
        cmocka_unit_test(test_a_device_for_each_rank),
        cmocka_unit_test(test_fewer_devices_than_ranks),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
