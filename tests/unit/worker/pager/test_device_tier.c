/* How much of a device's memory slots take, and what is brought into them before it is chosen. */
#include "tests/unit/worker/sealed_device.h"

#include <stdio.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/policy.h"

struct fixture {
    struct gguf_file *file;
    struct hparams hp;
    struct expert_store *store;
    struct sealed_device device;
    struct expert_pager *pager; /* of the mapping: it can lend all experts at once */
    struct device_tier *tier;
};

static int open_model(void **state, const char *name)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char path[1000];
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             name);
    assert_int_equal(gguf_open(&f->file, path, NULL), LM_OK);
    assert_int_equal(hparams_read(&f->hp, f->file, NULL), LM_OK);
    assert_int_equal(expert_store_create(&f->store, f->file, &f->hp, 0, f->hp.n_layer, NULL),
                     LM_OK);
    *state = f;
    return 0;
}

/* Experts of three sizes. */
static int set_up(void **state)
{
    return open_model(state, "qwen35moe-k-q4km");
}

/* 4 layers of 16 experts of one size. */
static int set_up_plain(void **state)
{
    return open_model(state, "qwen3moe-s-q8_0");
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    device_tier_destroy(f->tier);
    expert_pager_destroy(f->pager);
    if (f->device.cpu) sealed_device_fini(&f->device);
    expert_store_destroy(f->store);
    gguf_close(f->file);
    free(f);
    return 0;
}

static uint64_t bytes_of(const struct fixture *f, uint32_t n_slot)
{
    return device_tier_slot_bytes(f->store, 0, f->hp.n_layer, f->hp.n_expert, n_slot);
}

static void test_slots_fill_a_budget(void **state)
{
    const struct fixture *f = *state;
    const uint32_t n_all = f->hp.n_layer * f->hp.n_expert;
    const uint64_t least = bytes_of(f, 1);
    for (uint64_t budget = least; budget <= bytes_of(f, n_all); budget += least) {
        const uint32_t n =
            device_tier_slots_for(f->store, 0, f->hp.n_layer, f->hp.n_expert, budget);
        assert_in_range(n, 1, n_all);
        assert_true(bytes_of(f, n) <= budget);
        assert_true(n == n_all || bytes_of(f, n + 1) > budget);
    }
    assert_int_equal(device_tier_slots_for(f->store, 0, f->hp.n_layer, f->hp.n_expert, least - 1),
                     0);
}

/* Asked for more than there are, it makes one for each; for fewer than work, as many as work. */
static void test_slot_count_is_bounded(void **state)
{
    const struct fixture *f = *state;
    const uint32_t n_layer = f->hp.n_layer, n_expert = f->hp.n_expert, n_all = n_layer * n_expert;
    assert_int_equal(device_tier_slot_count(f->store, 0, n_layer, n_expert, 10 * n_all, 0), n_all);
    const uint32_t least = device_tier_slot_count(f->store, 0, n_layer, n_expert, 1, 0);
    assert_in_range(least, 2, n_all / 2);
    assert_true(device_tier_room_bytes(f->store, 0, n_layer, n_expert, f->hp.n_expert_used) > 0);
}

/* ---- what is brought into them ----------------------------------------------------------------
 */

enum { N_SLOT = 12 };

static void open_tier(struct fixture *f, enum miss_mode miss, enum prefetch prefetch)
{
    const struct expert_pager_config pager = {.store = f->store,
                                              .layer_end = f->hp.n_layer,
                                              .n_expert = f->hp.n_expert,
                                              .n_expert_used = f->hp.n_expert_used};
    sealed_device_init(&f->device);
    assert_int_equal(expert_pager_create(&f->pager, &pager, NULL), LM_OK);
    const struct device_tier_config tier = {.backend = &f->device.backend,
                                            .store = f->store,
                                            .pager = f->pager,
                                            .layer_end = f->hp.n_layer,
                                            .n_expert = f->hp.n_expert,
                                            .n_expert_used = f->hp.n_expert_used,
                                            .n_slot = N_SLOT,
                                            .policy = &policy_lfru,
                                            .miss = miss,
                                            .prefetch = prefetch};
    assert_int_equal(device_tier_create(&f->tier, &tier, NULL), LM_OK);
}

static void close_tier(struct fixture *f)
{
    device_tier_destroy(f->tier);
    expert_pager_destroy(f->pager);
    sealed_device_fini(&f->device);
    f->tier = NULL;
    f->pager = NULL;
    f->device.cpu = NULL;
}

static void step(struct fixture *f)
{
    expert_pager_step(f->pager, 1, false);
    device_tier_step(f->tier, 1, false);
}

/* A layer chooses n experts from first on, after which predicted is named for the layer behind. */
static void visit(struct fixture *f, uint32_t layer, uint32_t first, uint32_t n,
                  const int32_t *predicted, size_t n_predicted)
{
    struct expert_demand demand[8];
    struct device_group group;
    assert_true(n <= 8);
    for (uint32_t i = 0; i < n; i++)
        demand[i] = (struct expert_demand){first + i, 1, NULL};
    device_tier_request(f->tier, layer, demand, n, 1);
    if (n_predicted) device_tier_predict(f->tier, layer + 1, predicted, n_predicted);
    do
        assert_int_equal(device_tier_acquire(f->tier, &group, NULL), LM_OK);
    while (group.n);
}

static bool is_resident(const struct fixture *f, uint32_t layer, uint32_t expert)
{
    return device_tier_is_resident(f->tier, (struct expert_key){layer, expert});
}

/* The two likeliest of those that the device lacks come while it computes, behind the copies that
 * the layer has asked for; they are hits for who chooses them. */
static void test_predicted_experts_are_brought(void **state)
{
    static const int32_t predicted[] = {9, 8, 7, 6};
    struct fixture *f = *state;
    open_tier(f, MISS_GPU, PREFETCH_ON);
    step(f);
    visit(f, 0, 0, 3, predicted, 4);
    assert_true(is_resident(f, 1, 9) && is_resident(f, 1, 8));
    assert_false(is_resident(f, 1, 7) || is_resident(f, 1, 6));
    visit(f, 1, 8, 1, NULL, 0);
    step(f);
    visit(f, 1, 9, 2, NULL, 0);
    const struct device_tier_stats stats = device_tier_stats(f->tier);
    assert_int_equal(stats.prediction.n_named, 4);
    assert_int_equal(stats.prediction.n_chosen, 1);
    assert_int_equal(stats.prediction.n_recalled, 1);
    assert_int_equal(stats.prediction.n_read, 2);
    assert_int_equal(stats.prediction.n_used, 2);
    assert_int_equal(stats.prediction.n_in_time, 2);
    assert_int_equal(stats.useful_bytes, stats.predicted_bytes);
    assert_int_equal(stats.decode.n_hit, 2);
    assert_int_equal(stats.n_wasted, 0);
}

/* A copy that nobody waits for is under way: the link is not idle. */
static void test_one_thing_at_a_time_in_the_background(void **state)
{
    static const int32_t predicted[] = {9};
    struct fixture *f = *state;
    open_tier(f, MISS_CPU, PREFETCH_ON);
    f->device.copy_polls = 3;
    step(f);
    visit(f, 0, 0, 1, predicted, 1); /* the CPU computes it, and it is admitted */
    assert_true(is_resident(f, 0, 0));
    assert_int_equal(device_tier_stats(f->tier).n_admitted, 1);
    assert_int_equal(device_tier_stats(f->tier).prediction.n_read, 0);
    for (int i = 0; i < 4; i++) { /* which is over by then, and what it chooses there */
        step(f);
        visit(f, 0, 0, 1, predicted, i == 3);
    }
    assert_int_equal(device_tier_stats(f->tier).prediction.n_read, 1);
}

/* What is predicted and there stays, however much the layer before needs. */
static void test_predicted_experts_stay(void **state)
{
    static const int32_t predicted[] = {0, 1};
    struct fixture *f = *state;
    for (int predicts = 0; predicts < 2; predicts++) {
        open_tier(f, MISS_GPU, PREFETCH_ON);
        step(f);
        visit(f, 1, 0, 6, NULL, 0);
        step(f);
        visit(f, 1, 2, 4, NULL, 0);
        for (uint32_t i = 0; i < 8; i++) {
            step(f);
            for (uint32_t first = 0; first < 16; first += 8)
                visit(f, 0, first, 8, predicted, predicts ? 2 : 0);
        }
        assert_int_equal(is_resident(f, 1, 0) && is_resident(f, 1, 1), predicts);
        close_tier(f);
    }
}

/* Predictions that never come true are not asked for any more; later they are tried again. */
static void test_wrong_predictions_end(void **state)
{
    struct fixture *f = *state;
    const uint32_t n_expert = f->hp.n_expert;
    int n = 0;
    open_tier(f, MISS_GPU, PREFETCH_AUTO);
    for (step(f); n < 1000 && device_tier_wants_prediction(f->tier, 1); n++, step(f)) {
        const int32_t wrong = (int32_t)(8 + (uint32_t)n % (n_expert - 8));
        visit(f, 0, 0, 1, &wrong, 1);
        visit(f, 1, 0, 1, NULL, 0);
    }
    const struct device_tier_stats stats = device_tier_stats(f->tier);
    assert_in_range(n, 2, 999);
    assert_in_range(stats.prediction.n_read, 2, n);
    assert_int_equal(stats.prediction.n_recalled, 0);
    assert_int_equal(stats.useful_bytes, 0);
    for (n = 0; n < 1000 && !device_tier_wants_prediction(f->tier, 1); n++)
        step(f);
    assert_in_range(n, 1, 999);
}

static void test_nothing_is_predicted_unless_asked(void **state)
{
    struct fixture *f = *state;
    open_tier(f, MISS_GPU, PREFETCH_OFF);
    step(f);
    assert_false(device_tier_wants_prediction(f->tier, 1));
}

/* All modes are tried, and one is kept, though every other step has more tokens. */
static void test_modes_are_tried_between_other_steps(void **state)
{
    struct fixture *f = *state;
    int n_step[MISS_HYBRID + 1] = {0}, n_change = 0;
    enum miss_mode last = MISS_AUTO;
    open_tier(f, MISS_AUTO, PREFETCH_OFF);
    for (int i = 0; i < 400; i++) {
        device_tier_step(f->tier, 1 + i % 2, false);
        const enum miss_mode mode = device_tier_stats(f->tier).mode;
        n_step[mode]++;
        n_change += i >= 200 && mode != last;
        last = mode;
        device_tier_end_step(f->tier);
    }
    assert_true(n_step[MISS_GPU] >= 11 && n_step[MISS_CPU] >= 11 && n_step[MISS_HYBRID] >= 11);
    assert_int_equal(n_change, 0);
}

/* ---- a profile, and a prompt ------------------------------------------------------------------
 */

/* While there is nothing to do all free slots are filled, the hottest first. */
static void test_idle_time_preloads(void **state)
{
    struct fixture *f = *state;
    int n_call = 0;
    open_tier(f, MISS_GPU, PREFETCH_OFF);
    f->device.copy_polls = 2;
    for (uint32_t il = 0; il < f->hp.n_layer; il++)
        for (uint32_t ie = 0; ie < f->hp.n_expert; ie++)
            device_tier_seed(f->tier, (struct expert_key){il, ie}, ie == 5 || ie == 7 ? .5f : .1f);
    device_tier_preload(f->tier);
    assert_int_equal(device_tier_stats(f->tier).preload_bytes_s, 0);
    while (device_tier_idle(f->tier))
        assert_true(++n_call < 1000);
    const struct device_tier_stats stats = device_tier_stats(f->tier);
    assert_int_equal(stats.n_preloaded, N_SLOT);
    assert_int_equal(stats.n_resident, N_SLOT);
    assert_true(stats.preload_bytes_s > 0);
    for (uint32_t il = 0; il < f->hp.n_layer; il++)
        assert_true(is_resident(f, il, 5) && is_resident(f, il, 7));
    assert_false(device_tier_idle(f->tier));
    step(f);
    assert_int_equal(f->device.n_fetch, 3 * N_SLOT); /* nothing is copied twice */
}

/* A prompt of which each row chooses n experts from first on in every layer. */
static void read_prompt(struct fixture *f, uint32_t n_row, uint32_t first, uint32_t n)
{
    struct expert_demand demand[16];
    struct device_group group;
    expert_pager_step(f->pager, n_row, true);
    device_tier_step(f->tier, n_row, true);
    for (uint32_t il = 0; il < f->hp.n_layer; il++) {
        for (uint32_t i = 0; i < f->hp.n_expert; i++)
            demand[i] = (struct expert_demand){i, i >= first && i < first + n ? n_row : 1, NULL};
        device_tier_request(f->tier, il, demand, f->hp.n_expert, n_row);
        do
            assert_int_equal(device_tier_acquire(f->tier, &group, NULL), LM_OK);
        while (group.n);
    }
    device_tier_end_step(f->tier);
}

static uint32_t n_resident(const struct fixture *f, uint32_t first, uint32_t n)
{
    uint32_t count = 0;
    for (uint32_t il = 0; il < f->hp.n_layer; il++)
        for (uint32_t ie = first; ie < first + n; ie++)
            count += is_resident(f, il, ie);
    return count;
}

/* What a prompt chose most comes with the first token that follows, but it gets no more than its
 * share of the slots; and what is hotter than it stays. */
static void test_a_prompt_warms_its_share(void **state)
{
    struct fixture *f = *state;
    for (int hot = 0; hot < 2; hot++) {
        open_tier(f, MISS_GPU, PREFETCH_OFF);
        read_prompt(f, 16, 0, 2); /* free slots are filled as it goes by */
        assert_int_equal(device_tier_stats(f->tier).n_resident, N_SLOT);
        for (int i = 0; hot && i < 40; i++) {
            step(f);
            for (uint32_t il = 0; il < f->hp.n_layer; il++)
                visit(f, il, 0, 3, NULL, 0);
        }
        const uint32_t n_hot = n_resident(f, 0, 3), n_before = n_resident(f, 8, 2);
        read_prompt(f, 8, 8, 2);
        read_prompt(f, 8, 8, 2);
        assert_int_equal(n_resident(f, 8, 2), n_before); /* it displaces nothing yet */
        step(f);
        const struct device_tier_stats stats = device_tier_stats(f->tier);
        if (hot) {
            assert_int_equal(n_resident(f, 0, 3), n_hot);
            assert_in_range(n_hot, N_SLOT - 3, N_SLOT);
        } else {
            assert_int_equal(stats.n_warmed, N_SLOT / 4);
            assert_int_equal(n_resident(f, 8, 2), n_before + N_SLOT / 4);
        }
        step(f); /* and that was all */
        assert_int_equal(device_tier_stats(f->tier).n_warmed, stats.n_warmed);
        close_tier(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_slots_fill_a_budget, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slot_count_is_bounded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_predicted_experts_are_brought, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_one_thing_at_a_time_in_the_background, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_predicted_experts_stay, set_up_plain, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_predictions_end, set_up_plain, tear_down),
        cmocka_unit_test_setup_teardown(test_modes_are_tried_between_other_steps, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_idle_time_preloads, set_up_plain, tear_down),
        cmocka_unit_test_setup_teardown(test_a_prompt_warms_its_share, set_up_plain, tear_down),
        cmocka_unit_test_setup_teardown(test_nothing_is_predicted_unless_asked, set_up_plain,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
