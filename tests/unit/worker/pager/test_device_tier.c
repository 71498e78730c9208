/* How much of a device's memory slots take. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/device_tier.h"

struct fixture {
    struct gguf_file *file;
    struct hparams hp;
    struct expert_store *store;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char path[1000];
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/qwen35moe-k-q4km.gguf",
             getenv("LEAN_SOURCE_DIR"));
    assert_int_equal(gguf_open(&f->file, path, NULL), LM_OK);
    assert_int_equal(hparams_read(&f->hp, f->file, NULL), LM_OK);
    assert_int_equal(expert_store_create(&f->store, f->file, &f->hp, 0, f->hp.n_layer, NULL),
                     LM_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
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
    assert_int_equal(device_tier_slot_count(f->store, 0, n_layer, n_expert, 10 * n_all), n_all);
    const uint32_t least = device_tier_slot_count(f->store, 0, n_layer, n_expert, 1);
    assert_in_range(least, 2, n_all / 2);
    assert_true(device_tier_room_bytes(f->store, 0, n_layer, n_expert, f->hp.n_expert_used) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_slots_fill_a_budget, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slot_count_is_bounded, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
