/* Which layers go onto a device, and that what is planned there and on the host is the whole. */
#include <string.h>

#include "coordinator/plan/device_plan.h"
#include "tests/unit/coordinator/plan/plan_model.h"

static struct memory_request request_of(uint32_t begin, uint32_t end)
{
    return (struct memory_request){.layer_begin = begin,
                                   .layer_end = end,
                                   .n_ctx = 1024,
                                   .n_slot = 1,
                                   .prefill_chunk = 64,
                                   .kv_type = TENSOR_F16,
                                   .budget_bytes = UINT64_MAX};
}

static uint32_t split_of(const struct memory_request *request, int32_t n_layer, uint64_t n_bytes)
{
    return device_plan_split(file, &tiny, request, &(struct device_limits){n_layer, n_bytes});
}

static uint64_t device_bytes(const struct memory_request *request, uint32_t split)
{
    struct device_plan plan;
    device_plan_make(&plan, file, &tiny, request, split, UINT64_MAX);
    return plan.device.total_bytes;
}

/* As many as fit: a byte less than the layers from `il` on need, and one layer fewer is there. */
static void test_as_many_as_fit(void **state)
{
    (void)state;
    const struct memory_request request = request_of(0, tiny.n_layer);
    for (uint32_t il = 0; il < tiny.n_layer; il++) {
        const uint64_t n_bytes = device_bytes(&request, il);
        assert_int_equal(split_of(&request, DEVICE_LAYERS_AUTO, n_bytes), il);
        assert_int_equal(split_of(&request, DEVICE_LAYERS_AUTO, n_bytes - 1), il + 1);
    }
    assert_int_equal(split_of(&request, DEVICE_LAYERS_AUTO, UINT64_MAX), 0);
    assert_int_equal(split_of(&request, DEVICE_LAYERS_AUTO, 0), tiny.n_layer);
}

/* The last N of the model, whichever of them a rank has, and whether they fit or not. */
static void test_asked_for(void **state)
{
    (void)state;
    const uint32_t n = tiny.n_layer;
    const struct memory_request all = request_of(0, n), first = request_of(0, n - 2),
                                last = request_of(n - 2, n);
    assert_int_equal(split_of(&all, 0, UINT64_MAX), n);
    assert_int_equal(split_of(&all, 1, 0), n - 1);
    assert_int_equal(split_of(&all, (int32_t)n, 0), 0);
    assert_int_equal(split_of(&all, 65536, 0), 0);
    assert_int_equal(split_of(&first, 1, UINT64_MAX), n - 2);
    assert_int_equal(split_of(&first, 3, UINT64_MAX), n - 3);
    assert_int_equal(split_of(&last, 1, UINT64_MAX), n - 1);
    assert_int_equal(split_of(&last, 3, UINT64_MAX), n - 2);
}

/* Every weight and every key and value is planned once, but for an embedding that is the output,
 * too. */
static void test_both_are_the_whole(void **state)
{
    (void)state;
    const struct memory_request request = request_of(0, tiny.n_layer);
    struct memory_plan whole;
    memory_plan_make(&whole, file, &tiny, &request);
    assert_false(tiny.tied);
    for (uint32_t split = 0; split <= tiny.n_layer; split++) {
        struct device_plan plan;
        device_plan_make(&plan, file, &tiny, &request, split, UINT64_MAX);
        assert_int_equal(plan.host.weight_bytes + plan.device.weight_bytes, whole.weight_bytes);
        assert_int_equal(plan.host.kv_bytes + plan.device.kv_bytes, whole.kv_bytes);
        assert_int_equal(plan.host.recurrent_bytes + plan.device.recurrent_bytes,
                         whole.recurrent_bytes);
    }
}

/* A context that is left open is the longest for which there is room, here and there. Both have a
 * layer with keys and values. */
static void test_open_context(void **state)
{
    (void)state;
    const uint32_t n_ctx = 2048, n = tiny.n_layer;
    struct hparams hp = tiny;
    struct memory_request request = request_of(0, n);
    struct device_plan plan;
    hp.layer[0] = tiny.layer[n - 1];
    assert_false(hp.layer[0].recurrent);
    assert_true(n_ctx < hp.n_ctx_train);
    request.n_ctx = n_ctx;
    device_plan_make(&plan, file, &hp, &request, n - 1, UINT64_MAX);
    const uint64_t on_host = plan.host.total_bytes, on_device = plan.device.total_bytes;

    request.n_ctx = 0;
    device_plan_make(&plan, file, &hp, &request, n - 1, on_device);
    assert_int_equal(plan.device.n_ctx, n_ctx);
    assert_int_equal(plan.host.n_ctx, n_ctx);
    request.budget_bytes = on_host;
    device_plan_make(&plan, file, &hp, &request, n - 1, UINT64_MAX);
    assert_int_equal(plan.device.n_ctx, n_ctx);
    assert_int_equal(plan.host.n_ctx, n_ctx);
    assert_int_equal(plan.host.total_bytes, on_host);
}

static void test_what_does_not_fit(void **state)
{
    (void)state;
    struct lm_error err;
    struct device_plan plan;
    const struct memory_request request = request_of(0, tiny.n_layer);
    device_plan_make(&plan, file, &tiny, &request, 1, 40 << 20);
    plan.device.budget_bytes = plan.device.total_bytes;
    assert_int_equal(device_plan_check(&plan.device, "cuda:0", 2, 1, &err), LM_OK);
    plan.device.budget_bytes--;
    assert_int_equal(device_plan_check(&plan.device, "cuda:0", 2, 1, &err), LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "cuda:0: 2 layers need "));
    assert_non_null(strstr(err.hint, "--gpu-layers 1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_many_as_fit),     cmocka_unit_test(test_asked_for),
        cmocka_unit_test(test_both_are_the_whole), cmocka_unit_test(test_open_context),
        cmocka_unit_test(test_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
