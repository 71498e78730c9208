/* Which layers go onto a device, and that what is planned there and on the host is the whole. */
#include <string.h>

#include "coordinator/plan/device_plan.h"
#include "coordinator/plan/weight_census.h"
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
    const struct device_limits limits = {.n_layer = n_layer, .budget_bytes = n_bytes};
    return device_plan_split(file, &tiny, request, &limits);
}

/* Of the layers from split on, all experts of which must be on the device if they are. */
static void make(struct device_plan *plan, const struct hparams *hp,
                 const struct memory_request *request, uint32_t split, uint64_t n_bytes)
{
    const struct device_limits limits = {.budget_bytes = n_bytes};
    device_plan_make(plan, file, hp, request, split, &limits);
}

static uint64_t device_bytes(const struct memory_request *request, uint32_t split)
{
    struct device_plan plan;
    make(&plan, &tiny, request, split, UINT64_MAX);
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

    /* the layer that drafts goes with the last one, and nowhere without it */
    const struct memory_request drafts = request_of(0, n + 1);
    assert_int_equal(split_of(&drafts, 0, UINT64_MAX), n + 1);
    assert_int_equal(split_of(&drafts, 1, UINT64_MAX), n - 1);
    assert_int_equal(split_of(&drafts, DEVICE_LAYERS_AUTO, 0), n + 1);
    assert_int_equal(split_of(&drafts, DEVICE_LAYERS_AUTO, UINT64_MAX), 0);
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
        make(&plan, &tiny, &request, split, UINT64_MAX);
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
    make(&plan, &hp, &request, n - 1, UINT64_MAX);
    const uint64_t on_host = plan.host.total_bytes, on_device = plan.device.total_bytes;

    request.n_ctx = 0;
    make(&plan, &hp, &request, n - 1, on_device);
    assert_int_equal(plan.device.n_ctx, n_ctx);
    assert_int_equal(plan.host.n_ctx, n_ctx);
    request.budget_bytes = on_host;
    make(&plan, &hp, &request, n - 1, UINT64_MAX);
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
    make(&plan, &tiny, &request, 1, 40 << 20);
    plan.device.budget_bytes = plan.device.total_bytes;
    assert_int_equal(device_plan_check(&plan.device, "cuda:0", 2, 1, &err), LM_OK);
    plan.device.budget_bytes--;
    assert_int_equal(device_plan_check(&plan.device, "cuda:0", 2, 1, &err), LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "cuda:0: 2 layers need "));
    assert_non_null(strstr(err.hint, "--gpu-layers 1"));
}

/* ---- fewer experts on the device than its layers have ---- */

enum { SLOT_BYTES_MIN = 50000 }; /* of each layer */

static uint64_t slot_bytes_min(const void *context, uint32_t begin, uint32_t end)
{
    (void)context;
    return (end - begin) * SLOT_BYTES_MIN;
}

static struct device_limits some_experts(int32_t n_layer, uint64_t n_bytes)
{
    return (struct device_limits){
        .n_layer = n_layer, .budget_bytes = n_bytes, .slot_bytes_min = slot_bytes_min};
}

static uint64_t expert_bytes(uint32_t begin, uint32_t end)
{
    struct weight_census census;
    weight_census_take_layers(&census, file, &tiny, begin, end);
    return census.group[WEIGHTS_EXPERTS].n_bytes;
}

/* All experts are there if they fit; with a byte less all layers stay, with fewer experts; the host
 * then keeps every one of them. */
static void test_all_layers_before_all_experts(void **state)
{
    (void)state;
    const uint32_t n = tiny.n_layer;
    const struct memory_request request = request_of(0, n);
    const uint64_t all = device_bytes(&request, 0), bank = expert_bytes(0, n);
    struct device_plan plan;
    struct device_limits limits = some_experts(DEVICE_LAYERS_AUTO, all);
    assert_int_equal(device_plan_split(file, &tiny, &request, &limits), 0);
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_false(plan.device.paged);
    assert_int_equal(plan.host.expert_bytes, 0);

    limits.budget_bytes--;
    assert_int_equal(device_plan_split(file, &tiny, &request, &limits), 0);
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_true(plan.device.paged);
    assert_int_equal(plan.device.total_bytes, all - 1);
    assert_int_equal(plan.device.slot_bytes, bank - 1);
    assert_false(plan.host.paged);
    assert_int_equal(plan.host.slot_bytes, bank);

    limits.budget_bytes = all - bank + n * SLOT_BYTES_MIN;
    assert_int_equal(device_plan_split(file, &tiny, &request, &limits), 0);
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_int_equal(plan.device.slot_bytes, n * SLOT_BYTES_MIN);
    assert_true(plan.device.total_bytes <= limits.budget_bytes);
}

/* When not even the fewest experts leave room for all layers, there are fewer layers. Layers that
 * were asked for stay, and what is missing is said. */
static void test_fewer_layers_of_few_experts(void **state)
{
    (void)state;
    const uint32_t n = tiny.n_layer;
    const struct memory_request request = request_of(0, n);
    struct lm_error err;
    struct device_plan plan;
    for (uint32_t il = 0; il + 1 < n; il++) {
        const uint64_t least =
            device_bytes(&request, il) - expert_bytes(il, n) + (n - il) * SLOT_BYTES_MIN;
        struct device_limits limits = some_experts(DEVICE_LAYERS_AUTO, least);
        assert_int_equal(device_plan_split(file, &tiny, &request, &limits), il);
        limits.budget_bytes--;
        assert_int_equal(device_plan_split(file, &tiny, &request, &limits), il + 1);
        limits.n_layer = (int32_t)(n - il);
        assert_int_equal(device_plan_split(file, &tiny, &request, &limits), il);
        device_plan_make(&plan, file, &tiny, &request, il, &limits);
        assert_int_equal(device_plan_check(&plan.device, "cuda:0", n - il, n - il - 1, &err),
                         LM_E_NO_MEM);
        assert_non_null(strstr(err.message, "with the fewest experts that work"));
        device_plan_make(&plan, file, &tiny, &request, il + 1, &limits);
        assert_int_equal(device_plan_check(&plan.device, "cuda:0", 1, 1, &err), LM_OK);
        /* what the device lacks is kept beside what the CPU's own layers have */
        assert_int_equal(plan.host.expert_bytes, expert_bytes(0, n));
    }
}

/* Where the host has no room for them either it pages them, beside its own layers' or alone. */
static void test_experts_on_disk(void **state)
{
    (void)state;
    const uint32_t n = tiny.n_layer;
    struct memory_request request = request_of(0, n);
    struct device_plan plan;
    for (uint32_t split = 0; split < 2; split++) {
        const struct device_limits limits =
            some_experts(DEVICE_LAYERS_AUTO, device_bytes(&request, split) - 1);
        request.budget_bytes = UINT64_MAX;
        request.slot_bytes_min = 1000;
        device_plan_make(&plan, file, &tiny, &request, split, &limits);
        request.budget_bytes = plan.host.total_bytes - 5000;
        device_plan_make(&plan, file, &tiny, &request, split, &limits);
        assert_true(plan.host.paged);
        assert_int_equal(plan.host.total_bytes, request.budget_bytes);
        assert_int_equal(plan.host.slot_bytes, expert_bytes(0, n) - 5000);
        request.slot_bytes = 2000; /* that many, whatever fits */
        device_plan_make(&plan, file, &tiny, &request, split, &limits);
        assert_int_equal(plan.host.slot_bytes, 2000);
        request.slot_bytes = 0;
    }
}

/* Each chunk brings all experts that are not there: it is as long as a sixteenth of the slots pays
 * for. Where all are there it is longer than on the CPU, but for a context that is as long. */
static void test_long_chunks(void **state)
{
    (void)state;
    struct memory_request request = request_of(0, tiny.n_layer);
    struct device_plan plan;
    request.n_ctx = 65536;
    request.prefill_chunk = 512;
    const uint64_t bank = UINT64_C(40) << 30;
    request.lacking_bytes = bank;
    struct device_limits limits = some_experts(DEVICE_LAYERS_AUTO, UINT64_C(8) << 30);
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    const struct memory_plan usual = plan.device;
    request.prefill_chunk = 0;
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_int_equal(plan.device.prefill_chunk, 16384);
    assert_true(plan.device.total_bytes <= limits.budget_bytes);
    assert_true(plan.device.scratch_bytes - usual.scratch_bytes <= usual.slot_bytes / 16);
    limits.budget_bytes = usual.total_bytes - usual.slot_bytes + usual.slot_bytes / 40;
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_in_range(plan.device.prefill_chunk, 512, 8192);
    assert_true(plan.device.total_bytes <= limits.budget_bytes);

    request.lacking_bytes = 0;
    limits.budget_bytes = UINT64_C(8) << 30;
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_false(plan.device.paged);
    assert_int_equal(plan.device.prefill_chunk, 2048);
    request.prefill_chunk = 512;
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    limits.budget_bytes = plan.device.total_bytes + 1;
    request.prefill_chunk = 0;
    device_plan_make(&plan, file, &tiny, &request, 0, &limits);
    assert_int_equal(plan.device.prefill_chunk, 512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_many_as_fit),
        cmocka_unit_test(test_asked_for),
        cmocka_unit_test(test_both_are_the_whole),
        cmocka_unit_test(test_open_context),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_all_layers_before_all_experts),
        cmocka_unit_test(test_fewer_layers_of_few_experts),
        cmocka_unit_test(test_experts_on_disk),
        cmocka_unit_test(test_long_chunks),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
