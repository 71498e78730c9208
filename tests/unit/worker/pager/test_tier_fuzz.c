/* A device's slots under random steps: whatever is lent holds the bytes of its expert, at once and,
 * as long as operations may read it, also later. */
#include "tests/unit/worker/sealed_device.h"

#include <stdio.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/device_tier.h"
#include "worker/pager/policy.h"

enum { LENT_MAX = 64, BYTES_MAX = 1 << 20 };

/* Memory that operations called before a mark read. */
struct reading {
    const uint8_t *begin;
    size_t n_bytes;
    uint64_t mark;
};

static struct fuzz {
    struct gguf_file *file;
    struct hparams hp;
    struct expert_store *store;
    struct sealed_device device;
    struct backend_ops ops;
    struct expert_pager *pager;
    struct device_tier *tier;
    struct reading reading[3 * LENT_MAX]; /* since the last sync */
    size_t n_reading;
    float *scratch; /* of the device, as */
    uint8_t *pool;  /* [pool_bytes] whose beginning belongs to keys and values */
    size_t pool_bytes;
    uint32_t random;
    int n_lent, n_on_cpu, n_gathered, n_predicted, n_resize, n_written_back;
} fuzz;

static uint32_t random_below(uint32_t n)
{
    fuzz.random = fuzz.random * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)(fuzz.random >> 8) * n >> 24);
}

/* No copy may go where operations before its mark still read. */
static uint64_t watched_fetch(struct backend *backend, void *to, const void *from, size_t n_bytes,
                              uint64_t after, enum copy_lane lane)
{
    const uint8_t *const begin = to;
    for (size_t i = 0; i < fuzz.n_reading; i++) {
        const struct reading *const r = &fuzz.reading[i];
        if (begin >= r->begin + r->n_bytes || begin + n_bytes <= r->begin) continue;
        assert_true(after >= r->mark);
    }
    return sealed_ops.fetch(backend, to, from, n_bytes, after, lane);
}

static size_t matrix_bytes(const struct weight *w)
{
    return w->n_row * w->row_bytes;
}

static void compare(const void *at, const void *expected, size_t n_bytes)
{
    if (!n_bytes) return;
    assert_non_null(at);
    assert_memory_equal(at, expected, n_bytes);
}

/* That a view holds an expert. The device's memory must be unsealed. */
static void check_view(struct expert_key key, const struct expert_view *view)
{
    const struct expert_layer *const layer = expert_store_layer(fuzz.store, key.layer);
    const struct expert_view expected = expert_store_mapped(fuzz.store, key);
    compare(view->gate, expected.gate, matrix_bytes(&layer->gate));
    if (expected.up) compare(view->up, expected.up, matrix_bytes(&layer->up));
    compare(view->down, expected.down, matrix_bytes(&layer->down));
}

static void note_reading(const void *begin, size_t n_bytes, uint64_t mark)
{
    assert_true(fuzz.n_reading < sizeof(fuzz.reading) / sizeof(fuzz.reading[0]));
    fuzz.reading[fuzz.n_reading++] = (struct reading){begin, n_bytes, mark};
}

static void check_group(uint32_t layer, const struct device_group *group)
{
    struct backend *const device = &fuzz.device.backend;
    const struct expert_layer *const shape = expert_store_layer(fuzz.store, layer);
    unseal(device);
    for (size_t i = 0; i < group->n; i++)
        check_view((struct expert_key){layer, group->expert[i]}, &group->view[i]);
    seal(device);
    fuzz.n_lent += (int)group->n;
    fuzz.n_on_cpu += group->on_cpu ? (int)group->n : 0;
    if (group->on_cpu) return;
    device->ops->copy(device, fuzz.scratch, fuzz.scratch, 4); /* an operation that reads them */
    const uint64_t mark = (uint64_t)fuzz.device.n_op;
    for (size_t i = 0; i < group->n; i++) {
        const struct expert_view *const view = &group->view[i];
        note_reading(view->gate, matrix_bytes(&shape->gate), mark);
        if (view->up) note_reading(view->up, matrix_bytes(&shape->up), mark);
        note_reading(view->down, matrix_bytes(&shape->down), mark);
    }
}

static void sync_device(void)
{
    assert_int_equal(fuzz.device.backend.ops->sync(&fuzz.device.backend, NULL), LM_OK);
    fuzz.n_reading = 0;
}

/* Distinct experts, rising; a few of them are often the same. */
static size_t choose(struct expert_demand *demand, uint32_t n_wanted, uint32_t n_row)
{
    const uint32_t n_expert = fuzz.hp.n_expert;
    size_t n = 0;
    for (uint32_t ie = 0; ie < n_expert; ie++) {
        const bool often = ie % 5 == fuzz.random % 2 && n_wanted < n_expert;
        if (often || random_below(n_expert) < n_wanted)
            demand[n++] = (struct expert_demand){ie, 1 + random_below(n_row), NULL};
    }
    if (!n) demand[n++] = (struct expert_demand){random_below(n_expert), 1, NULL};
    return n;
}

static void predict(uint32_t layer)
{
    int32_t named[8];
    if (!device_tier_wants_prediction(fuzz.tier, layer)) return;
    for (int i = 0; i < 8; i++)
        named[i] = (int32_t)random_below(fuzz.hp.n_expert);
    device_tier_predict(fuzz.tier, layer, named, 8);
    fuzz.n_predicted++;
}

/* False: the step is given up in the middle. */
static bool visit(uint32_t layer, uint32_t n_row, bool many)
{
    struct expert_demand demand[LENT_MAX];
    struct device_group group;
    size_t n_lent = 0;
    const size_t n = choose(demand, many ? fuzz.hp.n_expert : fuzz.hp.n_expert_used, n_row);
    sync_device();
    device_tier_request(fuzz.tier, layer, demand, n, n_row);
    predict(layer + 1);
    do {
        if (!random_below(40)) return false;
        assert_int_equal(device_tier_acquire(fuzz.tier, &group, NULL), LM_OK);
        check_group(layer, &group);
        n_lent += group.n;
    } while (group.n);
    assert_int_equal(n_lent, n);
    return true;
}

/* What the device would read for each expert, from now to the end of the step. */
static void check_table(uint32_t layer)
{
    const struct expert_gather_args args = device_tier_gather(fuzz.tier, layer);
    unseal(&fuzz.device.backend);
    for (uint32_t ie = 0; ie < fuzz.hp.n_expert; ie++)
        check_view((struct expert_key){layer, ie}, &args.table[ie]);
    seal(&fuzz.device.backend);
    fuzz.n_gathered++;
}

static void gather_step(uint32_t n_row)
{
    struct expert_demand demand[LENT_MAX];
    for (int twice = 0; twice < 2; twice++) /* copies that are under way go nowhere else */
        for (uint32_t il = 0; il < fuzz.hp.n_layer; il++)
            check_table(il);
    sync_device();
    for (uint32_t il = 0; il < fuzz.hp.n_layer; il++)
        device_tier_count(fuzz.tier, il, demand, choose(demand, fuzz.hp.n_expert_used, n_row));
}

/* Keys and values take some of the pool, which is theirs to write, or give it back. */
static void resize(void)
{
    const size_t kv_bytes = random_below((uint32_t)fuzz.pool_bytes + 1);
    sync_device();
    assert_int_equal(device_tier_resize(fuzz.tier, kv_bytes, NULL), LM_OK);
    unseal(&fuzz.device.backend);
    memset(fuzz.pool, 0xee, kv_bytes);
    seal(&fuzz.device.backend);
    fuzz.n_resize++;
}

static void random_step(void)
{
    const bool prefill = !random_below(8);
    const uint32_t n_row = prefill ? 2 + random_below(30) : 1 + random_below(4);
    fuzz.device.copy_polls = (int)random_below(6);
    for (uint32_t n = random_below(8); n > 6; n--)
        device_tier_idle(fuzz.tier);
    if (!random_below(6)) resize();
    sync_device();
    expert_pager_step(fuzz.pager, n_row, prefill);
    device_tier_step(fuzz.tier, n_row, prefill);
    bool over = true;
    if (device_tier_gathers(fuzz.tier))
        gather_step(n_row);
    else
        for (uint32_t il = 0; il < fuzz.hp.n_layer && over; il++)
            over = visit(il, n_row, n_row > 4);
    if (!over) device_tier_abandon(fuzz.tier);
    sync_device();
    device_tier_end_step(fuzz.tier);
}

static bool tier_has(void *context, struct expert_key key)
{
    (void)context;
    return device_tier_is_resident(fuzz.tier, key);
}

static enum lm_status let_tier_go(void *context, struct lm_error *err)
{
    (void)context;
    return device_tier_let_go(fuzz.tier, err);
}

/* n_held: slots of the pager; 0: it lends the mapping. */
static void run(enum miss_mode miss, uint32_t n_slot, uint32_t n_held, int n_step)
{
    const struct hparams *const hp = &fuzz.hp;
    sealed_device_init(&fuzz.device);
    fuzz.ops = sealed_ops;
    fuzz.ops.fetch = watched_fetch;
    fuzz.device.backend.ops = &fuzz.ops;
    fuzz.n_reading = 0;
    const struct expert_pager_config pager = {.store = fuzz.store,
                                              .layer_end = hp->n_layer,
                                              .n_expert = hp->n_expert,
                                              .n_expert_used = hp->n_expert_used,
                                              .n_slot = n_held,
                                              .policy = &policy_lfru,
                                              .device = &fuzz.device.backend};
    fuzz.pool_bytes = 9 * expert_store_layer(fuzz.store, 0)->n_bytes;
    fuzz.pool = fuzz.device.backend.ops->alloc(&fuzz.device.backend, fuzz.pool_bytes, NULL);
    assert_int_equal(expert_pager_create(&fuzz.pager, &pager, NULL), LM_OK);
    const struct device_tier_config tier = {.backend = &fuzz.device.backend,
                                            .store = fuzz.store,
                                            .pager = fuzz.pager,
                                            .layer_end = hp->n_layer,
                                            .n_expert = hp->n_expert,
                                            .n_expert_used = hp->n_expert_used,
                                            .n_slot = n_slot,
                                            .pool = fuzz.pool,
                                            .pool_bytes = fuzz.pool_bytes,
                                            .policy = &policy_lfru,
                                            .miss = miss,
                                            .prefetch = PREFETCH_ON};
    assert_int_equal(device_tier_create(&fuzz.tier, &tier, NULL), LM_OK);
    const struct expert_pager_above above = {.has = tier_has,
                                             .let_go = let_tier_go,
                                             .exclusive = device_tier_stats(fuzz.tier).exclusive};
    expert_pager_put_above(fuzz.pager, &above);
    fuzz.scratch = fuzz.device.backend.ops->alloc(&fuzz.device.backend, 64, NULL);
    for (uint32_t ie = 0; ie < hp->n_expert; ie += 2)
        device_tier_seed(fuzz.tier, (struct expert_key){random_below(hp->n_layer), ie}, .1f);
    device_tier_preload(fuzz.tier);
    for (int i = 0; i < n_step; i++)
        random_step();
    fuzz.n_written_back += (int)device_tier_stats(fuzz.tier).n_written_back;
    fuzz.device.backend.ops->free(&fuzz.device.backend, fuzz.scratch);
    device_tier_destroy(fuzz.tier);
    expert_pager_destroy(fuzz.pager);
    fuzz.device.backend.ops->free(&fuzz.device.backend, fuzz.pool);
    sealed_device_fini(&fuzz.device);
}

static void open_model(const char *name)
{
    char path[1000];
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/%s.gguf", getenv("LEAN_SOURCE_DIR"),
             name);
    assert_int_equal(gguf_open(&fuzz.file, path, NULL), LM_OK);
    assert_int_equal(hparams_read(&fuzz.hp, fuzz.file, NULL), LM_OK);
    assert_int_equal(
        expert_store_create(&fuzz.store, fuzz.file, &fuzz.hp, 0, fuzz.hp.n_layer, NULL), LM_OK);
}

/* From the fewest slots to one for each expert, of one size and of three. */
static void test_all_modes(void **state)
{
    static const char *const names[] = {"qwen3moe-s-q8_0", "qwen35moe-k-q4km"};
    const char *const seed = getenv("LEAN_FUZZ_SEED");
    (void)state;
    fuzz.random = seed ? (uint32_t)atol(seed) : 1;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        open_model(names[i]);
        const uint32_t n_layer = fuzz.hp.n_layer, n_all = n_layer * fuzz.hp.n_expert;
        const uint32_t n_slots[] = {1, n_layer * (fuzz.hp.n_expert_used + 1), n_all};
        for (int miss = MISS_AUTO; miss <= MISS_HYBRID; miss++)
            for (int k = 0; k < 3; k++) {
                run((enum miss_mode)miss, n_slots[k], 0, 25);
                run((enum miss_mode)miss, n_slots[k], 1, 10);
                run((enum miss_mode)miss, n_slots[k], n_all / 2, 25);
                run((enum miss_mode)miss, n_slots[k], n_all, 25);
            }
        expert_store_destroy(fuzz.store);
        gguf_close(fuzz.file);
    }
    print_message("%d lent, %d of them to the CPU, %d tables, %d predictions, %d written back\n",
                  fuzz.n_lent, fuzz.n_on_cpu, fuzz.n_gathered, fuzz.n_predicted,
                  fuzz.n_written_back);
    assert_true(fuzz.n_lent > fuzz.n_on_cpu && fuzz.n_on_cpu > 0);
    assert_true(fuzz.n_gathered > 0 && fuzz.n_predicted > 0 && fuzz.n_resize > 0);
    assert_true(fuzz.n_written_back > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_modes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
