/* What a server chooses fits, leaves the rest of the memory alone, and is as much as was promised.
 */
#include <stdlib.h>
#include <unistd.h>

#include "coordinator/plan/serve_plan.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/coordinator/plan/plan_model.h"

static struct memory_request settle(const struct hparams *hp, uint32_t n_slot, uint32_t n_ctx,
                                    uint64_t budget_bytes, uint64_t cache_bytes,
                                    struct memory_plan *plan)
{
    struct memory_request request = {
        .n_slot = n_slot, .n_ctx = n_ctx, .kv_type = TENSOR_F16, .budget_bytes = budget_bytes};
    serve_plan_settle(&request, cache_bytes, file, hp);
    memory_plan_make(plan, file, hp, &request);
    return request;
}

static void test_defaults_grow_with_memory_and_fit(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    struct memory_plan plan;
    uint64_t before = 0;
    for (uint64_t budget = 1ull << 30; budget <= 256ull << 30; budget *= 2) {
        const struct memory_request request =
            settle(&hp, 0, 0, budget, SERVE_PLAN_CACHE_AUTO, &plan);
        assert_int_equal(memory_plan_check(&plan, NULL), LM_OK);
        assert_true(request.n_slot >= 1 && request.n_slot <= SERVE_PLAN_SLOT_MAX);
        assert_int_equal(request.n_ctx & (request.n_ctx - 1), 0);
        assert_true(request.n_ctx >= 1024 && request.n_ctx <= hp.n_ctx_train);
        const uint64_t positions = (uint64_t)request.n_slot * request.n_ctx;
        assert_true(positions >= before);
        before = positions;
    }
    assert_int_equal(before, 64ull * 131072);
}

static void test_what_was_asked_for_stays(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    struct memory_plan plan;
    struct memory_request request = settle(&hp, 3, 5000, 16ull << 30, SERVE_PLAN_CACHE_AUTO, &plan);
    assert_int_equal(request.n_slot, 3);
    assert_int_equal(request.n_ctx, 5000);
    request = settle(&hp, 0, 65536, 16ull << 30, SERVE_PLAN_CACHE_AUTO, &plan);
    assert_int_equal(request.n_ctx, 65536);
    assert_int_equal(request.n_slot, 8); /* of 1.31 GiB each, in 7/8 of 16 GiB */
    request = settle(&hp, 4, 0, 16ull << 30, SERVE_PLAN_CACHE_AUTO, &plan);
    assert_int_equal(request.n_slot, 4);
    assert_int_equal(request.n_ctx, 131072); /* 2.5 GiB each */
}

/* The cache is what it was said to be: half of it states, half tokens. */
static void test_the_cache_has_its_size(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    struct memory_plan with, without;
    const uint64_t cache = 2ull << 30;
    const struct memory_request request = settle(&hp, 2, 8192, 16ull << 30, cache, &with);
    const struct memory_request none = settle(&hp, 2, 8192, 16ull << 30, 0, &without);
    assert_int_equal(none.n_snapshot, 0);
    assert_int_equal(none.n_cache_position, 0);
    assert_int_equal(request.n_snapshot, 14);
    assert_in_range(request.n_cache_position, 48000, 52000);
    const uint64_t taken = with.total_bytes - without.total_bytes;
    assert_int_equal(with.logprob_bytes, cache / SERVE_PLAN_LOGPROB_SHARE);
    assert_true(taken <= cache && taken > cache / 16 * 15);
}

static void test_a_small_host_gets_one_sequence(void **state)
{
    (void)state;
    const struct hparams hp = shape_35b();
    struct memory_plan plan;
    const struct memory_request request =
        settle(&hp, 0, 0, 64ull << 20, SERVE_PLAN_CACHE_AUTO, &plan);
    assert_int_equal(request.n_slot, 1);
    assert_int_equal(request.n_ctx, 1024);
    assert_int_equal(request.n_snapshot, 0);
    assert_int_equal(memory_plan_check(&plan, NULL), LM_E_NO_MEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_grow_with_memory_and_fit),
        cmocka_unit_test(test_what_was_asked_for_stays),
        cmocka_unit_test(test_the_cache_has_its_size),
        cmocka_unit_test(test_a_small_host_gets_one_sequence),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
