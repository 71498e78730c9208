/* Which edges are NCCL's: those between devices that it connects, and what is said of the others.
 */
#include <stdio.h>
#include <string.h>

#include "launch/cluster.h"
#include "tests/unit/cmocka_all.h"

/* A rank with layers number .. number + 1, the device's from first on; "": none. */
static struct cluster_rank rank_on(uint32_t number, const char *gpu, uint32_t first, int version)
{
    struct cluster_rank rank = {.layer_begin = 2 * number,
                                .layer_end = 2 * number + 2,
                                .device_begin = 2 * number + first,
                                .offer = {.nccl_version = version}};
    snprintf(rank.name, sizeof(rank.name), "rank %u (a)", number);
    snprintf(rank.inventory.host, sizeof(rank.inventory.host), "a");
    snprintf(rank.offer.gpu, sizeof(rank.offer.gpu), "%s", gpu);
    if (!version) snprintf(rank.offer.why_not, sizeof(rank.offer.why_not), "no such file");
    return rank;
}

static void test_each_edge_is_judged_by_its_ends(void **state)
{
    (void)state;
    static const struct {
        const char *gpu[2];
        uint32_t first[2];
        int version[2];
        bool joins;          /* a device with a device */
        const char *why_not; /* NULL: it is NCCL's if so */
    } cases[] = {
        {{"x", "y"}, {0, 0}, {22809, 22809}, true, NULL},
        {{"x", "y"}, {1, 0}, {22809, 22809}, true, NULL},
        {{"x", "y"}, {0, 1}, {22809, 22809}, false, NULL},
        {{"x", "y"}, {2, 0}, {22809, 22809}, false, NULL},
        {{"x", ""}, {0, 0}, {22809, 0}, false, NULL},
        {{"", "y"}, {0, 0}, {0, 22809}, false, NULL},
        {{"x", "x"}, {0, 0}, {22809, 22809}, true, "rank 0 (a) and rank 1 (a) are on the same GPU"},
        {{"x", "y"}, {0, 0}, {22809, 0}, true, "rank 1 (a): no such file"},
        {{"x", "y"}, {0, 0}, {0, 22809}, true, "rank 0 (a): no such file"},
        {{"x", "y"},
         {0, 0},
         {22809, 21903},
         true,
         "rank 0 (a) has NCCL 22809 and rank 1 (a) 21903"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct lm_error err;
        bool nccl;
        const bool can = cases[i].joins && !cases[i].why_not;
        const struct cluster_rank ranks[] = {
            rank_on(0, cases[i].gpu[0], cases[i].first[0], cases[i].version[0]),
            rank_on(1, cases[i].gpu[1], cases[i].first[1], cases[i].version[1])};
        assert_int_equal(device_link_choose(&nccl, ranks, 2, "auto", &err), LM_OK);
        assert_int_equal(nccl, can);
        assert_int_equal(device_link_choose(&nccl, ranks, 2, "mpi", &err), LM_OK);
        assert_false(nccl);
        const enum lm_status status = device_link_choose(&nccl, ranks, 2, "nccl", &err);
        assert_int_equal(status, can ? LM_OK : LM_E_UNSUPPORTED);
        const char *const text = cases[i].why_not ? cases[i].why_not : "between no two ranks";
        if (!can) assert_non_null(strstr(err.message, text));
    }
}

/* The same number on another host is another device. */
static void test_edge_by_edge(void **state)
{
    (void)state;
    struct lm_error err;
    bool nccl[3];
    struct cluster_rank ranks[] = {rank_on(0, "emu:0", 0, 22809), rank_on(1, "emu:0", 0, 22809),
                                   rank_on(2, "", 0, 0), rank_on(3, "emu:1", 0, 22809)};
    snprintf(ranks[1].inventory.host, sizeof(ranks[1].inventory.host), "b");
    assert_int_equal(device_link_choose(nccl, ranks, 4, "nccl", &err), LM_OK);
    assert_true(nccl[0]);
    assert_false(nccl[1]);
    assert_false(nccl[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_edge_is_judged_by_its_ends),
        cmocka_unit_test(test_edge_by_edge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
